"""Where the meta server keeps what it must never forget.

Keys are paths like `tables/5`, values are bytes, and every key has the revision
at which it was last written. One contract suite covers all stores.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pegaskv.base.errors import PegasKVError

__all__ = [
    "ABSENT",
    "COMMIT_BYTES_MAX",
    "COMMIT_OPERATIONS_MAX",
    "Compacted",
    "Conflict",
    "Fence",
    "Fenced",
    "Guard",
    "MetaStore",
    "Session",
    "StoreUnavailable",
    "Versioned",
    "WatchEvent",
]

# etcd refuses larger transactions; every store refuses them alike.
COMMIT_OPERATIONS_MAX: Final = 100
COMMIT_BYTES_MAX: Final = 1024 * 1024

# As a guard's revision: the key must not be there.
ABSENT: Final = 0


class Conflict(PegasKVError):
    """A guard did not hold; nothing was written."""


class Fenced(PegasKVError):
    """The fence is no longer the leader's; nothing was written."""


class StoreUnavailable(PegasKVError):
    """The store cannot be reached or cannot write; a commit may or may not have happened."""


class Compacted(PegasKVError):
    """The changes that a watcher asks for are no longer known: it must list again."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """A value and the revision at which it was written."""

    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Guard:
    """`key` must be at `revision` (ABSENT = not there) for the commit to happen."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of leadership that every commit of a leader carries."""

    election: str
    token: int


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """A key changed; `value` is None when it was deleted."""

    key: str
    value: bytes | None
    revision: int


class Session(Protocol):
    """A lease of this process with the store."""

    @property
    def lost(self) -> asyncio.Event:
        """Set when the session has certainly ended, by the local clock."""
        ...

    async def close(self) -> None:
        """End it now."""
        ...


class MetaStore(Protocol):
    """A small, durable, ordered map with guarded commits."""

    async def get(self, key: str) -> Versioned | None:
        """Return the value, or None."""
        ...

    async def list(self, prefix: str) -> tuple[dict[str, Versioned], int]:
        """Return all keys that begin with `prefix`, in order, and the store's revision."""
        ...

    async def commit(
        self,
        *,
        guards: Sequence[Guard] = (),
        puts: Mapping[str, bytes] | None = None,
        deletes: Sequence[str] = (),
        fence: Fence | None = None,
    ) -> int:
        """Write all or nothing, durably; return the new revision.

        Raises:
            Conflict: a guard did not hold.
            Fenced: another process leads.
            ValueError: more than COMMIT_OPERATIONS_MAX operations or COMMIT_BYTES_MAX bytes.
            StoreUnavailable: the outcome is unknown.

        """
        ...

    def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchEvent]:
        """Yield the changes after `from_revision`, in order, for ever.

        Raises:
            Compacted: the changes after `from_revision` are no longer known.
            StoreUnavailable: the store was closed.

        """
        ...

    async def recover(self) -> None:
        """After StoreUnavailable: return when the store can be used again.

        A commit whose outcome was unknown has happened or not from then on, and a list says so.

        Raises:
            StoreUnavailable: not yet.

        """
        ...

    async def session(self, ttl_ms: int) -> Session:
        """Open a session."""
        ...

    async def campaign(self, election: str, session: Session, value: bytes) -> Fence:
        """Return when this process leads `election`."""
        ...

    async def resign(self, fence: Fence) -> None:
        """Stop leading."""
        ...

    async def close(self) -> None:
        """Release everything."""
        ...
