"""One partition's open mutation: what collects during a tick. On the hot path.

A batch is filled by request handlers, closed once per tick, and then is the
event: there is no object per request beside its reply. Operation i has the
timestamp `first_timestamp_us + i`, so rows are stamped when they come in.
"""

from collections.abc import Callable
from typing import Any

from pegaskv.codec.mutations import OperationKind
from pegaskv.codec.values import seconds_since_epoch
from pegaskv.net.connection import ServerConnection
from pegaskv.replica.prepare_list import Mutation

__all__ = ["Batch"]


class Batch(Mutation):
    """A mutation with what is known where it was collected; it has a decree once it is closed.

    `rows` is what the engine gets, by key, since atomic operations look at pending writes;
    `replies` says who must be told. A reply is a list whose third
    element becomes the decree, unless it is an error. `settled` is called when the batch is
    committed, or when nobody will ever know whether it is.
    """

    __slots__ = (
        "answered",
        "controls",
        "opened_ms",
        "opened_us",
        "operations",
        "progress",
        "replies",
        "rows",
        "settled",
        "size",
    )

    def __init__(self, first_timestamp_us: int, opened_us: int = 0, opened_ms: int = 0) -> None:
        self.first_timestamp_us = first_timestamp_us
        # The timestamp of the last operation; while the batch is open, of the next one less 1.
        self.last_timestamp_us = first_timestamp_us - 1
        # What the wall clock said when the batch was opened, and the clock that never jumps.
        self.opened_us = opened_us
        self.opened_ms = opened_ms
        self.operations: list[bytes] = []
        self.rows: dict[bytes, bytes | None] = {}
        self.replies: list[tuple[ServerConnection, Any]] = []
        # How many of them, from the first on, have been sent.
        self.answered = 0
        # Orders (DURABILITY, PIN ...) whose effect begins with the commit.
        self.controls: tuple[tuple[OperationKind, list[bytes]], ...] = ()
        # How far streams have come with it, as in `Participation`; None = none has.
        self.progress: dict[bytes, tuple[int, int]] | None = None
        self.settled: tuple[Callable[[], None], ...] = ()
        self.size = 0
        self.decree = 0
        self.ballot = 0
        self.payload = b""

    @property
    def now(self) -> int:
        """When the batch was opened, in seconds since 2016: what its expiries count from."""
        return seconds_since_epoch(self.opened_us)
