"""What a connection holds, and when it does not read. On the hot path.

Reading pauses while too many requests or bytes are under way, while the peer leaves its replies
unread, while the process has no room, at the end of a turn, and for good when the server stops.
"""

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final

from pegaskv.base.limits import REQUEST_VALUES_MAX
from pegaskv.codec.frames import FrameSplitter
from pegaskv.net.turns import DECODED_BYTES_MAX

if TYPE_CHECKING:
    from pegaskv.net.acceptor import Acceptor

__all__ = [
    "DRAIN",
    "FEW_REQUESTS",
    "HOLDING",
    "IN_FLIGHT",
    "LITTLE_BYTES",
    "OUTPUT",
    "PROCESS",
    "TURN",
    "FlowControl",
]

# Why reading is paused; it goes on when no reason is left.
IN_FLIGHT: Final = 1
OUTPUT: Final = 2
PROCESS: Final = 4
DRAIN: Final = 8
TURN: Final = 16
# With one of these, frames that were read already wait too. When the process's account is
# full they must not: handling them is what empties it.
HOLDING: Final = IN_FLIGHT | OUTPUT | DRAIN | TURN
# So few requests that came in so few bytes each are not charged: 4 KiB of a connection, which is
# less than its buffers. To charge them costs a twentieth of a small write.
FEW_REQUESTS: Final = 8
LITTLE_BYTES: Final = 512


class FlowControl(asyncio.Protocol):
    """The part of a `ServerConnection` that counts what is under way, and stops reading for it.

    Invariant: the process's account holds `_charged` bytes of this connection: those of the
    partial frame, and `_request_bytes`, which stand for `_counted` requests under way.
    """

    __slots__ = (
        "_acceptor",
        "_backlog",
        "_bytes_max",
        "_charged",
        "_counted",
        "_few",
        "_going_on",
        "_loop",
        "_options",
        "_paused",
        "_request_bytes",
        "_splitter",
        "_transport",
        "closed",
        "in_flight",
        "partial_bytes",
        "partial_since_ms",
    )

    def __init__(self, acceptor: "Acceptor") -> None:
        self.in_flight = 0
        self.closed = False
        # Of a frame that is not complete: its bytes, and since when; read by the acceptor's sweep.
        self.partial_bytes = 0
        self.partial_since_ms: int | None = None
        self._acceptor = acceptor
        self._options = options = acceptor.options
        self._bytes_max = options.connection_in_flight_bytes_max
        # So many requests under way are few; none are before hello.
        self._few = 0
        self._splitter = FrameSplitter(
            options.hello_bytes_max, call_bytes_max=DECODED_BYTES_MAX, values_max=REQUEST_VALUES_MAX
        )
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Frames that were read and wait until reading may go on.
        self._backlog: list[list[Any]] = []
        self._paused = 0
        self._going_on = False
        self._request_bytes = 0
        self._charged = 0
        self._counted = 0

    @abstractmethod
    def close(self) -> None:
        """Write what there is to say, then close when the peer has taken it."""

    @abstractmethod
    def _go_on(self) -> None:
        """Handle what waited, and read again."""

    def _received(self, size: int, *, whole: bool) -> None:
        """Charge `size` bytes that just came, if they matter; `whole`: they completed a frame."""
        few = self.in_flight <= self._few and size <= LITTLE_BYTES
        if not few or self._charged or self._splitter.held or self._backlog:
            self._charge(size, whole=whole)

    def _charge(self, received: int, *, whole: bool) -> None:
        """Charge `received` bytes that just came; `whole` says that they completed a frame."""
        if self.closed:
            return
        buffered = len(self._splitter.held)
        if buffered:
            if whole or not self.partial_bytes:
                self.partial_since_ms = self._acceptor.now_ms
                self._acceptor.watch(self)  # type: ignore[arg-type]
        else:
            self.partial_since_ms = None
        if self.in_flight or self._backlog:
            self._request_bytes += received + self.partial_bytes - buffered
        else:
            self._request_bytes = 0
        self.partial_bytes = buffered
        self._counted = self.in_flight
        self._book()
        options = self._options
        if self.in_flight >= options.connection_requests_max or (
            self.in_flight and self._charged >= self._bytes_max
        ):
            self._pause(IN_FLIGHT)
        if received and self._acceptor.over_budget(self):  # type: ignore[arg-type]
            self._pause(PROCESS)

    def _settle(self) -> None:
        """Give back what was charged for requests that were answered since.

        Requests are not weighed one by one: each counts as the mean of those under way.
        """
        if self.in_flight:
            self._request_bytes = self._request_bytes * self.in_flight // self._counted
        elif not self._backlog:
            self._request_bytes = 0
        self._counted = self.in_flight
        self._book()

    def _book(self) -> None:
        charged = self._request_bytes + self.partial_bytes
        if charged != self._charged:
            change = charged - self._charged
            self._charged = charged
            self._acceptor.charge(change)

    @property
    def held_bytes(self) -> int:
        """What this connection has in the process's account of bytes."""
        return self._charged

    @property
    def paused(self) -> bool:
        """Whether nothing is read from the peer at the moment."""
        return self._paused != 0

    @property
    def output_paused(self) -> bool:
        """Whether the peer leaves so much unread that large replies should not be made now."""
        return self._paused & OUTPUT != 0

    @property
    def unsent_bytes(self) -> int:
        """Bytes of replies that the peer has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    # Pauses.

    def _pause(self, reason: int) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._paused |= reason

    def resume(self, reason: int = PROCESS) -> None:
        """Take one reason away; reading goes on in the next turn of the loop if none is left."""
        self._paused &= ~reason
        if not self._paused & HOLDING and not self.closed and not self._going_on:
            # Not at once: the caller may be in the middle of a batch that handlers would join.
            self._going_on = True
            assert self._loop is not None
            self._loop.call_soon(self._go_on)

    def _consider(self) -> None:
        """See whether answers have made room for what waits, and whether a drain has ended."""
        if self._paused & DRAIN:
            if not self.in_flight:
                self.close()
        elif self._paused & IN_FLIGHT:
            options = self._options
            few = self.in_flight <= options.connection_requests_max // 2
            waiting = len(self._backlog[0]) if self._backlog else 0
            if not self.in_flight or (
                few
                and self._charged <= self._bytes_max // 2
                and self.in_flight + waiting <= options.connection_requests_max
            ):
                self.resume(IN_FLIGHT)
