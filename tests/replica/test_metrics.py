"""What is counted of roles is counted of primaries alone."""

from dataclasses import dataclass, field
from typing import Any

from pegaskv.base.types import ReplicaStatus
from pegaskv.replica.metrics import role_metrics


@dataclass
class FakeMachine:
    status: ReplicaStatus


@dataclass
class FakeReplica:
    machine: FakeMachine
    leased: bool = True
    too_few_members: str = ""


@dataclass
class Replicas:
    all: list[Any] = field(default_factory=list)

    def add(self, status: ReplicaStatus, **fields: Any) -> None:
        self.all.append(FakeReplica(FakeMachine(status), **fields))


def test_primaries_that_serve_nothing_or_take_no_writes_are_counted() -> None:
    replicas = Replicas()
    replicas.add(ReplicaStatus.PRIMARY)
    replicas.add(ReplicaStatus.PRIMARY, leased=False)
    replicas.add(ReplicaStatus.PRIMARY, leased=False, too_few_members="1 of 2")
    replicas.add(ReplicaStatus.SECONDARY, leased=False, too_few_members="left of when it led")
    found = role_metrics(
        replicas.all, learning=4, teaching=5, proposals=6, stalls=7, followed=8, refused=9
    )
    values = {each.name.removeprefix("pegaskv_"): each.samples[0][1] for each in found}
    assert values == {
        "replicas_led": 3,
        "replicas_unleased": 2,
        "replicas_short_of_members": 1,
        "replicas_learning": 4,
        "replicas_taught": 5,
        "proposals_total": 6,
        "stalls_total": 7,
        "followed_records_total": 8,
        "refused_records_total": 9,
    }
