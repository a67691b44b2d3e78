"""What is shown of a source partition that serves nobody: it is named as the cause."""

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from pegaskv.base.types import Gpid
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.duplication.remote import RemoteClusters
from pegaskv.duplication.service import DuplicationService
from pegaskv.runtime.clock import SystemClock
from pegaskv.runtime.tasks import TaskScope
from pegaskv.server.late_door import LateMetaDoor

GPID = Gpid(1, 0)


class Replicas:
    """One replica, which is not primary."""

    def __init__(self) -> None:
        self.shown: dict[str, Any] = {}

    def source(self, gpid: Gpid) -> None:
        return None

    def replica_state(self, gpid: Gpid) -> Mapping[str, Any]:
        return self.shown


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

        def no_cluster(metas: str) -> Any:
            raise AssertionError(metas)

        service = DuplicationService(
            sources=replicas,
            meta=LateMetaDoor(),
            remotes=RemoteClusters(no_cluster),
            clock=SystemClock(),
            random=Random(1),
            scope=scope,
            options=DuplicationOptions(),
            free_bytes=lambda: 0,
        )
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
