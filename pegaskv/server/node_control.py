"""A process's replica server as its meta server sees it: replicas first, then duplications.

A push is in force when the replicas have obeyed it (pins are committed, sources are
listed) and the duplications know it; only then does `configure` return.
"""

from typing import Protocol

from pegaskv.codec.messages_meta import TablePush

__all__ = ["NodeControl"]


class _Configured(Protocol):
    async def configure(self, push: TablePush) -> None: ...


class NodeControl:
    """One door to the parts of a replica server that a table's push concerns."""

    def __init__(self, *parts: _Configured) -> None:
        self._parts = parts

    async def configure(self, push: TablePush) -> None:
        """Return when the push is in force in every part, in their order.

        Raises:
            PegasKVError, OSError: not yet; the meta server pushes again.

        """
        for part in self._parts:
            await part.configure(push)
