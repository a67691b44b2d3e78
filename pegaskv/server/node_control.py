"""A process's replica server as its meta server sees it: replicas first, then duplications.

A push is in force when the replicas have obeyed it (pins are committed, sources are
listed) and the duplications know it; only then does `configure` return. A replica that opens
later than the push that assigned it is told to the duplications too.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from pegaskv.base.types import Gpid
from pegaskv.codec.messages_meta import Order, TablePush

__all__ = ["NodeControl"]


class _Configured(Protocol):
    async def configure(self, push: TablePush) -> None: ...


class _Replicas(_Configured, Protocol):
    on_opened_late: Callable[[TablePush], Awaitable[None]] | None

    async def obey(self, order: Order) -> str: ...

    def states(self, table_id: int = 0) -> list[tuple[Gpid, dict[str, Any]]]: ...


class _Duplications(_Configured, Protocol):
    def state(self, gpid: Gpid, uuid: bytes) -> dict[str, Any]: ...


class NodeControl:
    """One door to the parts of a replica server that a table's push concerns."""

    def __init__(self, replicas: _Replicas, duplications: _Duplications) -> None:
        self._replicas = replicas
        self._duplications = duplications
        # Of each table: the version of the newest push, and which duplications go out of it.
        self._orders: dict[int, tuple[int, list[bytes]]] = {}
        replicas.on_opened_late = duplications.configure

    async def configure(self, push: TablePush) -> None:
        """Return when the push is in force in every part, in their order.

        Raises:
            PegasKVError, OSError: not yet; the meta server pushes again.

        """
        self._note(push)
        await self._replicas.configure(push)
        await self._duplications.configure(push)

    def _note(self, push: TablePush) -> None:
        table = push.table
        if push.purged:
            self._orders.pop(table.table_id, None)
        elif table.version >= self._orders.get(table.table_id, (-1,))[0]:
            live = [order.uuid for order in push.duplications if not order.ended]
            self._orders[table.table_id] = table.version, live

    async def obey(self, order: Order) -> str:
        """Do what an order about one partition says; return a sentence on what that is.

        Raises:
            PegasKVError, OSError: not now; the meta server says it again while it is wanted.

        """
        return await self._replicas.obey(order)

    async def states(
        self, table_id: int
    ) -> list[tuple[Gpid, Mapping[str, Any], Mapping[bytes, Mapping[str, Any]]]]:
        """Return what is shown of the replicas of a table (0: of all), and of what they ship."""
        found: list[tuple[Gpid, Mapping[str, Any], Mapping[bytes, Mapping[str, Any]]]] = []
        for gpid, state in self._replicas.states(table_id):
            _, uuids = self._orders.get(gpid.table_id, (0, []))
            shown = {uuid: self._duplications.state(gpid, uuid) for uuid in uuids}
            found.append((gpid, state, {uuid: each for uuid, each in shown.items() if each}))
        return found
