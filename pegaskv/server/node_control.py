"""A process's replica server as its meta server sees it: replicas first, then duplications.

A push is in force when the replicas have obeyed it (pins are committed, sources are
listed) and the duplications know it; only then does `configure` return. A replica that opens
later than the push that assigned it is told to the duplications too.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from pegaskv.codec.messages_meta import TablePush

__all__ = ["NodeControl"]


class _Configured(Protocol):
    async def configure(self, push: TablePush) -> None: ...


class _Replicas(_Configured, Protocol):
    on_opened_late: Callable[[TablePush], Awaitable[None]] | None


class NodeControl:
    """One door to the parts of a replica server that a table's push concerns."""

    def __init__(self, replicas: _Replicas, duplications: _Configured) -> None:
        self._replicas = replicas
        self._duplications = duplications
        replicas.on_opened_late = duplications.configure

    async def configure(self, push: TablePush) -> None:
        """Return when the push is in force in every part, in their order.

        Raises:
            PegasKVError, OSError: not yet; the meta server pushes again.

        """
        await self._replicas.configure(push)
        await self._duplications.configure(push)
