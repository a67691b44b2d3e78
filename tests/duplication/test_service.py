"""What is shown and counted of source partitions, whatever runs at the moment."""

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pytest

from pegaskv.base.types import DuplicationStatus, Gpid, TableInfo, TableStatus
from pegaskv.codec.messages_duplication import DuplicationOrder, PartitionProgress
from pegaskv.codec.messages_meta import TablePush
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.duplication.remote import RemoteClusters
from pegaskv.duplication.service import DuplicationService
from pegaskv.runtime.clock import SystemClock
from pegaskv.runtime.tasks import TaskScope
from pegaskv.server.late_door import LateMetaDoor

GPID = Gpid(1, 0)


class Source:
    """A partition that is pinned and does not serve yet."""

    gpid = GPID
    partition_count = 1
    serving = False
    shippable_decree = committed_decree = 9
    clock_us = size_bytes = 0
    ballot = term = 1

    def start_decree(self, uuid: bytes) -> int:
        return 3

    def held_bytes(self, uuid: bytes) -> int:
        return 10

    def subscribe(self, on_advance: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


class Replicas:
    """One replica, which is primary or not."""

    def __init__(self, source: Any = None) -> None:
        self.shown: dict[str, Any] = {}
        self.primary = source

    def source(self, gpid: Gpid) -> Any:
        return self.primary

    def replica_state(self, gpid: Gpid) -> Mapping[str, Any]:
        return self.shown


def service_over(replicas: Replicas, scope: TaskScope) -> DuplicationService:
    def no_cluster(metas: str) -> Any:
        raise AssertionError(metas)

    return DuplicationService(
        sources=replicas,
        meta=LateMetaDoor(),
        remotes=RemoteClusters(no_cluster),
        clock=SystemClock(),
        random=Random(1),
        scope=scope,
        options=DuplicationOptions(),
        free_bytes=lambda: 0,
    )


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ({"closed": "its log is damaged"}, "partition 1.0 is closed: its log is damaged"),
        ({"closed": "", "storage_error": "EIO"}, "partition 1.0 opens its storage again: EIO"),
        ({"closed": "", "storage_error": ""}, ""),
        ({}, ""),
    ],
)
async def test_a_partition_that_cannot_serve_says_so_and_since_when(
    shown: dict[str, Any], text: str
) -> None:
    async with TaskScope("test") as scope:
        replicas = Replicas()
        service = service_over(replicas, scope)
        replicas.shown = shown
        first = service.state(GPID, b"u" * 16)
        assert first.get("last_error", "") == text
        assert first.get("error_class", "") == ("source_closed" if text else "")
        assert service.state(GPID, b"u" * 16) == first
        replicas.shown = {}
        assert service.state(GPID, b"u" * 16) == {}
        replicas.shown = {"closed": "again"}
        again = service.state(GPID, b"u" * 16)
        assert again["stalled_since"] > first.get("stalled_since", 0)


async def test_what_was_left_out_before_a_restart_is_counted_on() -> None:
    async with TaskScope("test") as scope:
        service = service_over(Replicas(Source()), scope)
        stored = PartitionProgress(0, DuplicationStatus.DS_LOG, 3, 5, skipped=7, skipped_decree=4)
        order = DuplicationOrder(1, b"u" * 16, "far", progress=(stored,))
        table = TableInfo(1, "t", TableStatus.AVAILABLE, 1, 1, {})
        await service.configure(TablePush(table, duplications=(order,)))
        labels = (("table", "t"), ("remote_cluster", "far"), ("dupid", "1"))
        found = {metric.name: dict(metric.samples) for metric in service.metrics()}
        assert found["pegaskv_duplication_skipped_total"] == {labels: 7}
        assert found["pegaskv_duplication_bytes_held"] == {labels: 10}
        assert service.state(GPID, b"u" * 16)["skipped"] == 7
        await service.stop()


async def test_a_push_that_took_longer_than_a_newer_one_brings_no_old_orders() -> None:
    async with TaskScope("test") as scope:
        replicas = Replicas()
        service = service_over(replicas, scope)

        def push(version: int, remote: str) -> TablePush:
            table = TableInfo(1, "t", TableStatus.AVAILABLE, 1, 1, {}, version=version)
            return TablePush(table, duplications=(DuplicationOrder(1, b"u" * 16, remote),))

        def remotes() -> list[str]:
            (bytes_held,) = [
                metric
                for metric in service.metrics()
                if metric.name == "pegaskv_duplication_bytes_held"
            ]
            return [dict(labels)["remote_cluster"] for labels, _ in bytes_held.samples]

        await service.configure(push(7, "newer"))
        assert remotes() == []
        # What it waited for: the partition serves now, and gets the newest orders there are.
        replicas.primary = Source()
        await service.configure(push(6, "older"))
        assert remotes() == ["newer"]
        await service.configure(push(6, "older"))
        assert remotes() == ["newer"]
        await service.configure(push(8, "newest"))
        assert remotes() == ["newest"]
        await service.stop()
