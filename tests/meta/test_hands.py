"""What operators do by hand: levels, moves, configurations; and what they are told."""

from typing import Any

import pytest

from pegaskv.base.errors import InvalidArgument, StateFreezed, TableNotFound
from pegaskv.base.types import Gpid, ReplicaStatus
from pegaskv.codec.messages_meta import OrderKind, Proposal, ProposalKind
from pegaskv.meta.diagnosis import diagnose
from pegaskv.meta.events import (
    BalanceByHand,
    CollectDue,
    ProposeByHand,
    SetEnvs,
    SetLevel,
    SetReplicaCount,
)
from pegaskv.meta.levels import Level, read_level
from pegaskv.meta.live import NO_STATES, LiveStates
from tests.meta.calm import Calm
from tests.meta.harness import create, drop

GPID = Gpid(1, 0)


@pytest.fixture
def cluster() -> Calm:
    """Four nodes, and a table of which n1 leads the only partition, with n2 and n3."""
    cluster = Calm(4)
    cluster.create()
    assert cluster.record().members == ("n1", "n2", "n3")
    return cluster


def by_hand(cluster: Calm, kind: str, node_id: str, *, accept_loss: bool = False) -> str:
    event = ProposeByHand(cluster.next_id(), GPID, kind, node_id, accept_loss)
    sentence: str = cluster.ask(event).more[0]
    return sentence


def balance(cluster: Calm, kind: str, source: str, target: str) -> str:
    event = BalanceByHand(cluster.next_id(), GPID, kind, source, target)
    sentence: str = cluster.ask(event).more[0]
    return sentence


def set_level(cluster: Calm, level: Level) -> tuple[str, str]:
    before, now = cluster.ask(SetLevel(cluster.next_id(), level)).more
    return before, now


# Levels.


def test_a_level_is_stored_and_survives_a_new_meta_server(cluster: Calm) -> None:
    assert cluster.machine.level is Level.LIVELY
    assert set_level(cluster, Level.FREEZED) == ("lively", "freezed")
    assert set_level(cluster, Level.FREEZED) == ("freezed", "freezed")
    cluster.restart_meta()
    assert cluster.machine.level is Level.FREEZED


@pytest.mark.parametrize("level", [Level.STOPPED, Level.BLIND, Level.FREEZED])
def test_no_table_is_changed_at_a_low_level(cluster: Calm, level: Level) -> None:
    set_level(cluster, level)
    commits = cluster.records.commits
    events: list[Any] = [
        create(cluster.next_id(), "more", replicas=1),
        drop(cluster.next_id(), "t"),
        SetEnvs(cluster.next_id(), "t", {"default_ttl": "1"}),
        SetReplicaCount(cluster.next_id(), "t", 2),
        ProposeByHand(cluster.next_id(), GPID, "downgrade", "n1", False),
        BalanceByHand(cluster.next_id(), GPID, "move_pri", "n1", "n2"),
    ]
    for event in events:
        with pytest.raises(StateFreezed, match=level.value):
            cluster.ask(event)
    assert cluster.records.commits == commits


@pytest.mark.parametrize("level", list(Level))
def test_what_replicas_may_change_depends_on_the_level(cluster: Calm, level: Level) -> None:
    set_level(cluster, level)
    for kind, node_id, allowed in (
        (ProposalKind.REMOVE, "n3", level.fails_over),
        (ProposalKind.UPGRADE, "n4", level.repairs),
        (ProposalKind.HANDOVER, "n2", level.repairs),
    ):
        record = cluster.record()
        process = cluster.servers["n1"].process
        proposal = Proposal("n1", GPID, record.ballot, kind, node_id, process=process)
        cluster.propose(proposal)
        assert (cluster.record().ballot > record.ballot) == allowed


def test_a_primary_that_starts_again_gets_its_ballot_at_every_level(cluster: Calm) -> None:
    set_level(cluster, Level.STOPPED)
    cluster.servers["n1"].start()
    cluster.join(cluster.servers["n1"])
    assert cluster.record().ballot == 2


def test_below_lively_nothing_is_moved_or_thrown_away(cluster: Calm) -> None:
    set_level(cluster, Level.STEADY)
    cluster.create("more", partitions=8)
    cluster.add("n5")
    cluster.ask(SetReplicaCount(cluster.next_id(), "more", 2))
    cluster.ask(drop(cluster.next_id(), "t", reserve=0))
    cluster.meta.feed(CollectDue())
    cluster.settle(40)
    assert cluster.servers["n5"].replicas == {}
    assert sum(len(one.replicas) for one in cluster.servers.values()) == 3 + 24
    set_level(cluster, Level.LIVELY)
    cluster.meta.feed(CollectDue())
    cluster.settle(80)
    assert len(cluster.servers["n5"].replicas) in (3, 4)
    assert sum(len(one.replicas) for one in cluster.servers.values()) == 16


def test_an_unknown_level_is_refused_with_what_was_meant() -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_level("livly")
    assert "lively" in caught.value.hint
    assert [read_level(one.value) for one in Level] == list(Level)
    assert all(one.meaning for one in Level)


# Moves.


def test_a_primary_is_moved_to_a_member_and_stays_a_member(cluster: Calm) -> None:
    set_level(cluster, Level.STEADY)
    assert "n1" in balance(cluster, "move_pri", "n1", "n2")
    cluster.settle(3)
    assert cluster.record().primary == "n2"
    assert set(cluster.record().members) == {"n1", "n2", "n3"}


@pytest.mark.parametrize(("kind", "source"), [("copy_pri", "n1"), ("copy_sec", "n3")])
def test_a_replica_is_copied_to_another_node_and_removed_here(
    cluster: Calm, kind: str, source: str
) -> None:
    set_level(cluster, Level.STEADY)
    balance(cluster, kind, source, "n4")
    cluster.settle(10)
    assert set(cluster.record().members) == {"n1", "n2", "n3", "n4"} - {source}
    assert (cluster.record().primary == "n4") == (kind == "copy_pri")


@pytest.mark.parametrize(
    ("kind", "source", "target", "why"),
    [
        ("move_pri", "n2", "n3", "not the primary"),
        ("move_pri", "n1", "n4", "not a secondary"),
        ("copy_pri", "n1", "n2", "a member"),
        ("copy_sec", "n1", "n4", "not a secondary"),
        ("copy_sec", "n2", "n9", "not alive"),
    ],
)
def test_a_move_that_cannot_be_is_refused_with_the_reason(
    cluster: Calm, kind: str, source: str, target: str, why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        balance(cluster, kind, source, target)


def test_one_partition_is_moved_once_at_a_time(cluster: Calm) -> None:
    cluster.meta.feed(BalanceByHand(cluster.next_id(), GPID, "copy_sec", "n2", "n4"))
    with pytest.raises(InvalidArgument, match="is being moved already"):
        balance(cluster, "move_pri", "n1", "n2")


# Configurations.


def test_a_lead_is_given_away_and_a_secondary_added_or_removed(cluster: Calm) -> None:
    set_level(cluster, Level.STEADY)
    by_hand(cluster, "downgrade", "n1")
    cluster.settle(3)
    assert cluster.record().primary in ("n2", "n3")
    by_hand(cluster, "assign_primary", "n1")
    cluster.settle(3)
    assert cluster.record().primary == "n1"
    assert "already" in by_hand(cluster, "assign_primary", "n1")
    assert "one is removed then" in by_hand(cluster, "add_secondary", "n4")
    cluster.ordered.clear()
    cluster.settle(5)
    assert len(cluster.record().members) == 3
    by_hand(cluster, "remove", cluster.record().secondaries[0])
    cluster.act()
    assert len(cluster.record().members) == 2


@pytest.mark.parametrize(
    ("kind", "node_id", "why"),
    [
        ("remove", "n1", "is the primary"),
        ("remove", "n4", "not a member"),
        ("downgrade", "n2", "not the primary"),
        ("add_secondary", "n2", "a member"),
        ("add_secondary", "n9", "not alive"),
        ("assign_primary", "n9", "not alive"),
        ("assign_primary", "n4", "by force only"),
    ],
)
def test_a_change_that_cannot_be_is_refused_with_the_reason(
    cluster: Calm, kind: str, node_id: str, why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        by_hand(cluster, kind, node_id)


def test_a_partition_that_is_none_is_refused(cluster: Calm) -> None:
    with pytest.raises(TableNotFound):
        cluster.ask(ProposeByHand(cluster.next_id(), Gpid(1, 9), "remove", "n2", False))
    with pytest.raises(TableNotFound):
        cluster.ask(BalanceByHand(cluster.next_id(), Gpid(9, 0), "move_pri", "n1", "n2"))


def lost(cluster: Calm) -> None:
    """All members but an amnesiac n2 are away."""
    cluster.servers["n1"].stop()
    cluster.servers["n3"].stop()
    cluster.servers["n2"].start(amnesiac=True)
    cluster.settle(15)
    assert cluster.machine.nodes.why_not_led(cluster.record()) != ""


def test_by_force_a_node_leads_after_a_while_and_only_with_the_loss_accepted(
    cluster: Calm,
) -> None:
    lost(cluster)
    with pytest.raises(InvalidArgument, match="is unalive") as caught:
        by_hand(cluster, "assign_primary", "n2")
    assert "--accept-loss" in caught.value.hint
    cluster.peers.forced.add(GPID)
    event = ProposeByHand(cluster.next_id(), GPID, "assign_primary", "n2", True)
    cluster.meta.feed(event)
    cluster.pass_time(8_000)
    assert cluster.record().ballot == 1, "whoever led may not have stopped yet"
    assert event.request_id not in cluster.meta.answers
    with pytest.raises(InvalidArgument, match="already"):
        by_hand(cluster, "assign_primary", "n2", accept_loss=True)
    cluster.pass_time(2_000)
    assert (
        "n2 leads partition 1.0 with what it has" in cluster.meta.answers[event.request_id].more[0]
    )
    assert cluster.servers["n2"].replicas[GPID].status is ReplicaStatus.PRIMARY
    # The others come back, have nothing to say, and are taken in again.
    for node_id in ("n1", "n3"):
        cluster.servers[node_id].start()
    cluster.settle(20)
    assert set(cluster.record().members) >= {"n2"}
    assert len(cluster.record().members) == 3


def test_by_force_an_empty_replica_is_possible_where_nothing_is_left(cluster: Calm) -> None:
    for node_id in ("n1", "n2", "n3"):
        cluster.servers[node_id].stop()
    cluster.settle(12)
    cluster.peers.forced.add(GPID)
    event = ProposeByHand(cluster.next_id(), GPID, "assign_primary", "n4", True)
    cluster.meta.feed(event)
    cluster.pass_time(10_000)
    assert "an empty replica" in cluster.meta.answers[event.request_id].more[0]
    assert cluster.servers["n4"].replicas[GPID].status is ReplicaStatus.PRIMARY


def test_a_node_that_goes_while_force_waits_changes_nothing() -> None:
    cluster = Calm(4, forced_move_wait_ms=20_000)
    cluster.create()
    lost(cluster)
    event = ProposeByHand(cluster.next_id(), GPID, "assign_primary", "n2", True)
    cluster.meta.feed(event)
    cluster.servers["n2"].stop()
    cluster.pass_time(22_000)
    assert cluster.record().ballot == 1
    assert "not alive" in str(cluster.meta.refusals[event.request_id])


# Diagnosis.


def test_a_partition_that_is_served_is_not_in_the_diagnosis(cluster: Calm) -> None:
    assert diagnose(cluster.machine, None, NO_STATES) == []
    with pytest.raises(TableNotFound):
        diagnose(cluster.machine, "x", NO_STATES)


def test_of_a_dead_partition_it_is_said_why_since_when_and_what_can_be_done(cluster: Calm) -> None:
    lost(cluster)
    [[table_id, index, detail]] = diagnose(cluster.machine, "t", NO_STATES)
    assert (table_id, index, detail["table"]) == (1, 0, "t")
    assert detail["reason"] == "its primary, node n1, is unalive"
    assert 0 < detail["since"] <= cluster.meta.now
    members = {one["node"]: one for one in detail["members"]}
    assert [members[one]["status"] for one in ("n1", "n2", "n3")] == ["unalive", "alive", "unalive"]
    assert members["n2"]["amnesiac"] is True
    assert "start node n1 or n3 again" in detail["advice"]
    assert "-n n2 --accept-loss` (what it lacks is lost)" in detail["advice"]


def test_while_a_member_will_take_over_the_advice_is_to_wait(cluster: Calm) -> None:
    cluster.servers["n1"].stop()
    cluster.pass_time(12_000)
    [[_, _, detail]] = diagnose(cluster.machine, None, NO_STATES)
    assert detail["advice"].startswith("wait: node n2")


def test_what_the_primary_says_now_comes_before_what_it_reported(cluster: Calm) -> None:
    live = LiveStates()
    live.add("n1", [(GPID, {"closed": "its engine", "serving": False}, {})])
    [[_, _, detail]] = diagnose(cluster.machine, None, live)
    assert "its engine" in detail["reason"]
    live = LiveStates()
    live.add("n1", [(GPID, {"serving": True}, {})])
    assert diagnose(cluster.machine, None, live) == []


def test_orders_about_moves_go_to_the_primary_with_the_ballot_and_the_address(
    cluster: Calm,
) -> None:
    balance(cluster, "move_pri", "n1", "n2")
    [obey] = cluster.orders(OrderKind.MOVE_PRIMARY)
    assert obey.node_id == "n1"
    assert (obey.order.ballot, obey.order.node_id, obey.order.address) == (1, "n2", "n2:34801")
