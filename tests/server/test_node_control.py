"""What a replica server's parts are told, in their order, and what they show together."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from pegaskv.base.types import Gpid, TableInfo, TableStatus
from pegaskv.codec.messages_duplication import DuplicationOrder
from pegaskv.codec.messages_meta import Order, OrderKind, TablePush
from pegaskv.server.node_control import NodeControl

TABLE = TableInfo(1, "t", TableStatus.AVAILABLE, 2, 3, version=5)
FIRST, SECOND = b"1" * 16, b"2" * 16


class FakeParts:
    """Replicas and duplications, and what they were told."""

    on_opened_late: Callable[[TablePush], Awaitable[None]] | None = None

    def __init__(self, told: list[str], name: str) -> None:
        self.told = told
        self.name = name
        self.failure: Exception | None = None

    async def configure(self, push: TablePush) -> None:
        if self.failure is not None:
            raise self.failure
        self.told.append(self.name)

    async def obey(self, order: Order) -> str:
        return f"{order.kind.name} is done"

    def states(self, table_id: int = 0) -> list[tuple[Gpid, dict[str, Any]]]:
        gpids = [Gpid(1, 0), Gpid(1, 1), Gpid(2, 0)]
        return [(gpid, {"ballot": 3}) for gpid in gpids if table_id in (0, gpid.table_id)]

    def state(self, gpid: Gpid, uuid: bytes) -> dict[str, Any]:
        return {"lag_ms": 1} if (gpid, uuid) == (Gpid(1, 0), FIRST) else {}


def push(version: int, *uuids: bytes, ended: bytes = b"") -> TablePush:
    orders = [
        DuplicationOrder(number, uuid, "far", ended=uuid == ended)
        for number, uuid in enumerate(uuids, 1)
    ]
    return TablePush(replace(TABLE, version=version), duplications=tuple(orders))


def make() -> tuple[NodeControl, FakeParts, list[str]]:
    told: list[str] = []
    replicas = FakeParts(told, "replicas")
    return NodeControl(replicas, FakeParts(told, "duplications")), replicas, told


async def test_replicas_are_told_first_and_duplications_only_what_is_in_force() -> None:
    control, replicas, told = make()
    await control.configure(push(1))
    assert told == ["replicas", "duplications"]
    replicas.failure = OSError("not now")
    with pytest.raises(OSError, match="not now"):
        await control.configure(push(2))
    assert told == ["replicas", "duplications"]
    assert await control.obey(Order(OrderKind.DISCARD, Gpid(1, 0), 3)) == "DISCARD is done"


async def test_duplications_are_told_of_what_opens_late() -> None:
    _, replicas, told = make()
    assert replicas.on_opened_late is not None
    await replicas.on_opened_late(push(1))
    assert told == ["duplications"]


async def test_each_replica_is_shown_with_the_duplications_that_go_on() -> None:
    control, _, _ = make()
    here = [(Gpid(1, 0), {"ballot": 3}), (Gpid(1, 1), {"ballot": 3})]
    assert await control.states(1) == [(gpid, state, {}) for gpid, state in here]
    await control.configure(push(5, FIRST, SECOND))
    shown = await control.states(0)
    assert [state for _, _, state in shown] == [{FIRST: {"lag_ms": 1}}, {}, {}]
    # An older push changes nothing, and one that has ended is shown no more.
    await control.configure(push(4))
    assert await control.states(0) == shown
    await control.configure(push(6, FIRST, ended=FIRST))
    assert [state for _, _, state in await control.states(0)] == [{}, {}, {}]
    await control.configure(push(7, FIRST))
    await control.configure(replace(push(8), purged=True))
    assert [state for _, _, state in await control.states(0)] == [{}, {}, {}]
