"""One connection to one node, shared by all callers. The hot path of the client.

Callers append messages as tuples; one `call_soon` later all of them are packed as one
frame and written once. When many callers run in the same turn of the loop the first half
does not wait for the second, so that the server works on one while we make the other
(1.4 times the sets, 1.6 times the gets of 50 tasks). A reply finds its caller by the
request's id. There is no task, timer or lock for a request: a deadline costs nothing while
it holds, because every 50 ms the ids that are still open are put into the slot in which
they end, and most requests are answered before that. Whoever changes this file measures
before and after.

A future of a request always gets a result and never an exception, so that one that
nobody waits for any more is no error: a list is the server's reply, a tuple `Lost` says
why there is none. A cancelled caller leaves its id occupied until the reply or the
deadline comes, and that reply is dropped.

What is under way is bounded (requests and bytes, ours or the server's limit, the smaller);
what is above waits in its order and is sent when there is room.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from pegaskv.base.errors import WireError
from pegaskv.base.limits import (
    CLIENT_FRAME_BYTES_MAX,
    FRAME_MESSAGES_MAX,
    FRAME_SHARED_BYTES_MAX,
)
from pegaskv.codec.frames import FrameSplitter, encode_frame
from pegaskv.codec.operations import Operation
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.spin import Spinner

__all__ = ["LOST", "SLOT_MS", "TIMED_OUT", "Connection", "Lost"]

# Statuses of requests without a reply; those on the wire are 0 and above.
TIMED_OUT: Final = -1
LOST: Final = -2

SLOT_MS: Final = 50
# Half of the requests under way, but so many at least, are written before the turn of the
# loop ends; the number doubles in one turn. Smaller parts would each cost the server a tick.
_EARLY_MESSAGES_MIN: Final = 16
# Before hello is accepted a server has no reason to send more.
_BEFORE_HELLO_BYTES_MAX: Final = 64 * 1024
# A peer that is silent for so long after something timed out is asked whether it is there,
# and given up when it does not say so.
_PROBE_MS: Final = 2_000
_ID_MASK: Final = 0xFFFFFFFF


class Lost(NamedTuple):
    """The end of a request without a reply; `sent` says whether it may have left."""

    id: int
    status: int
    sent: bool
    cause: str


class Connection(asyncio.Protocol):
    """Requests out, replies in. Made by `nodes.Node`, which says hello first.

    Invariants: an id is in `_pending` once at most; everything in `_backlog` and `_out` is
    in `_pending`, or its caller has gone; after `_end` nothing is pending.
    """

    __slots__ = (
        "_backlog",
        "_bytes",
        "_bytes_max",
        "_clock",
        "_create_future",
        "_early",
        "_ended",
        "_heard",
        "_heard_ms",
        "_loop",
        "_next_id",
        "_on_end",
        "_out",
        "_paused",
        "_pending",
        "_placed_id",
        "_probe_id",
        "_requests_max",
        "_scheduled",
        "_spinner",
        "_splitter",
        "_ticking",
        "_timeouts",
        "_transport",
        "_usual_timeout_ms",
        "_weights",
        "_wheel",
        "advice",
        "cause",
        "closed",
        "now_ms",
    )

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        usual_timeout_ms: int,
        requests_max: int,
        bytes_max: int,
        on_end: Callable[["Connection"], Any],
        spin_us: int = 0,
    ) -> None:
        self.closed = False
        self.cause = ""
        # What the server advised with it.
        self.advice = ""
        # The time at the last tick, or when the first request after silence was made.
        self.now_ms = clock.monotonic_ms()
        self._clock = clock
        self._loop = loop
        self._create_future = loop.create_future
        self._on_end = on_end
        self._ended: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._splitter = FrameSplitter(_BEFORE_HELLO_BYTES_MAX)

        # Id 0 is the server's, for what concerns the connection as a whole.
        self._next_id = 1
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._out: list[Any] = []
        self._early = _EARLY_MESSAGES_MIN
        self._scheduled = False
        self._paused = False

        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self._bytes = 0
        # Of large requests alone, by id; and what waits for room, in its order.
        self._weights: dict[int, int] = {}
        self._backlog: deque[tuple[Any, ...]] = deque()

        # Deadlines: slot to ids; those before `_placed_id` are placed.
        self._usual_timeout_ms = usual_timeout_ms
        self._timeouts: dict[int, int] = {}
        self._wheel: dict[int, list[int]] = {}
        self._placed_id = 1
        self._ticking: asyncio.TimerHandle | None = None
        self._heard = False
        self._heard_ms = self.now_ms
        self._probe_id = -1
        self._spinner = (
            Spinner(
                spin_us,
                now_us=clock.wall_us,
                call_soon=loop.call_soon,
                is_useful=self._pending.__len__,
            )
            if spin_us
            else None
        )

    @property
    def pending(self) -> int:
        """How many requests have neither a reply nor an end."""
        return len(self._pending)

    def accept(self, *, requests_max: int, bytes_max: int) -> None:
        """Hello was accepted: read whole frames, and keep to the server's limits too."""
        self._splitter.frame_bytes_max = CLIENT_FRAME_BYTES_MAX
        self._requests_max = min(self._requests_max, requests_max)
        self._bytes_max = min(self._bytes_max, bytes_max)

    def submit(
        self, fields: tuple[Any, ...], weight: int = 0, early: bool = True
    ) -> "asyncio.Future[Any] | None":
        """Send `(operation, timeout_ms, ...)`; return the future of its reply.

        `weight` is the size of a large request (above a few KiB) and 0 for others. With
        `early` it may leave before the turn of the loop ends, in the first of two parts.
        Returns None when the connection is closed.
        """
        if self.closed:
            return None
        pending = self._pending
        request_id = self._next_id
        # After four billion requests an id may still be taken.
        while request_id in pending or not request_id:
            request_id = (request_id + 1) & _ID_MASK
        self._next_id = (request_id + 1) & _ID_MASK
        future = self._create_future()
        if weight:
            self._weights[request_id] = weight
        if weight or len(pending) >= self._requests_max:
            pending[request_id] = future
            self._backlog.append((request_id, *fields))
            self._admit()
        else:
            pending[request_id] = future
            self._out.append((request_id, *fields))
        if fields[1] != self._usual_timeout_ms:
            self._timeouts[request_id] = fields[1]
        if not self._scheduled:
            self._schedule()
        if early and len(self._out) >= self._early:
            self._early *= 2
            self._write_out()
        return future

    def close(self, cause: str) -> None:
        """End every request with `cause` and close; `wait_ended` waits for the transport."""
        self._end(cause)
        if self._transport is not None:
            self._transport.abort()
        elif not self._ended.done():
            self._ended.set_result(None)

    @property
    def gone(self) -> bool:
        """Whether the transport is gone too."""
        return self._ended.done()

    async def wait_ended(self) -> None:
        """Return when the transport is gone."""
        await asyncio.shield(self._ended)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The peer has accepted; hello comes next."""
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        # What is written leaves at once; what the kernel does not take is kept here.
        self._transport.set_write_buffer_limits(high=0)
        if self.closed:
            self._transport.abort()

    def connection_lost(self, error: BaseException | None) -> None:
        """The connection has ended, by either side."""
        self._transport = None
        self._end(f"the connection broke: {error}" if error else "the node closed the connection")
        if not self._ended.done():
            self._ended.set_result(None)

    def pause_writing(self) -> None:
        """The peer does not read: keep what comes, so that we know that it never left."""
        self._paused = True

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._paused = False
        if self._out and not self._scheduled:
            self._schedule()

    def data_received(self, data: bytes) -> None:
        """Give each reply to its caller."""
        if self.closed:
            return
        self._heard = True
        try:
            frames = self._splitter.feed(data)
        except WireError as error:
            self._break(f"what it sent is not the protocol of pegaskv: {error.message}")
            return
        pop = self._pending.pop
        try:
            for messages in frames:
                for message in messages:
                    if type(message) is not list or type(message[1]) is not int:
                        self._break("it sent a message that is no reply")
                        return
                    future = pop(message[0], None)
                    if future is None:
                        if message[0] == 0:
                            self._on_farewell(message)
                    elif not future.done():
                        future.set_result(message)
                    if self._weights:
                        self._bytes -= self._weights.pop(message[0], 0)
        except (IndexError, TypeError):
            self._break("it sent a message that is no reply")
            return
        if self._backlog:
            self._admit()

    # Sending.

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._flush)
        if self._ticking is None:
            self.now_ms = self._heard_ms = self._clock.monotonic_ms()
            self._ticking = self._loop.call_later(SLOT_MS / 1_000, self._tick)

    def _flush(self) -> None:
        self._scheduled = False
        half = len(self._pending) // 2
        self._early = half if half > _EARLY_MESSAGES_MIN else _EARLY_MESSAGES_MIN
        self._write_out()
        if self._spinner is not None:
            self._spinner.wake()

    def _write_out(self) -> None:
        out = self._out
        if self._paused or not out or self._transport is None:
            return
        self._out = []
        if len(out) <= FRAME_MESSAGES_MAX:
            self._write_split(out)
        else:
            for position in range(0, len(out), FRAME_MESSAGES_MAX):
                self._write_split(out[position : position + FRAME_MESSAGES_MAX])

    def _write_split(self, messages: list[Any]) -> None:
        """Write `messages` as one frame, or halves of them when that is too large."""
        assert self._transport is not None
        frame = encode_frame(messages)
        if len(frame) <= FRAME_SHARED_BYTES_MAX or len(messages) == 1:
            self._transport.write(frame)
            return
        middle = len(messages) // 2
        self._write_split(messages[:middle])
        self._write_split(messages[middle:])

    def _admit(self) -> None:
        """Move from the backlog to what is sent next, as far as there is room."""
        backlog = self._backlog
        pending = self._pending
        while backlog:
            request_id = backlog[0][0]
            future = pending.get(request_id)
            if future is None or future.done():
                # Timed out, or its caller has gone: it never leaves.
                backlog.popleft()
                pending.pop(request_id, None)
                self._weights.pop(request_id, None)
                continue
            weight = self._weights.get(request_id, 0)
            under_way = len(pending) - len(backlog)
            if under_way >= self._requests_max:
                break
            if weight and self._bytes and self._bytes + weight > self._bytes_max:
                break
            self._bytes += weight
            self._out.append(backlog.popleft())
        if self._out and not self._scheduled:
            self._schedule()

    # Deadlines.

    def _tick(self) -> None:
        self._ticking = None
        if self.closed:
            return
        now = self.now_ms = self._clock.monotonic_ms()
        if self._heard:
            self._heard = False
            self._heard_ms = now
            self._probe_id = -1
        self._place(now)
        slot_now = now // SLOT_MS
        for slot in sorted(slot for slot in self._wheel if slot <= slot_now):
            for request_id in self._wheel.pop(slot):
                if request_id in self._pending:
                    self._expire(request_id)
                    if self.closed:
                        return
        if self._pending:
            self._ticking = self._loop.call_later(SLOT_MS / 1_000, self._tick)
        else:
            self._wheel.clear()
        if self._backlog:
            self._admit()

    def _place(self, now: int) -> None:
        """Put what was made since the last tick and is still open into the slots of its end."""
        fresh = (self._next_id - self._placed_id) & _ID_MASK
        timeouts = self._timeouts
        # Newest first, and ids of one connection come in their order.
        for request_id in reversed(self._pending):
            if (request_id - self._placed_id) & _ID_MASK >= fresh:
                break
            timeout_ms = timeouts.get(request_id, self._usual_timeout_ms)
            self._wheel.setdefault((now + timeout_ms) // SLOT_MS + 1, []).append(request_id)
        self._placed_id = self._next_id
        timeouts.clear()

    def _expire(self, request_id: int) -> None:
        future = self._pending.pop(request_id)
        sent = not self._take_back(request_id)
        if request_id == self._probe_id:
            self._break(f"nothing was heard of it for {self.now_ms - self._heard_ms} ms")
        elif self._probe_id < 0 and sent:
            # Alive and slow, or gone without a word? An answer of any kind tells.
            self.submit((int(Operation.PING), _PROBE_MS))
            self._probe_id = next(reversed(self._pending))
        if not future.done():
            future.set_result(Lost(request_id, TIMED_OUT, sent, self.cause))

    def _take_back(self, request_id: int) -> bool:
        """Forget a request that is still here; whether it was."""
        weight = self._weights.pop(request_id, 0)
        for queue in (self._out, self._backlog):
            for message in queue:
                if message[0] == request_id:
                    queue.remove(message)
                    if queue is self._out:
                        self._bytes -= weight
                    return True
        self._bytes -= weight
        return False

    # The end.

    def _on_farewell(self, message: list[Any]) -> None:
        """The server says why it is about to close the connection."""
        if message[1] != 0 and len(message) > 2 and isinstance(message[2], str):
            self.cause = message[2]
            if len(message) > 3 and isinstance(message[3], str):
                self.advice = message[3]

    def _break(self, cause: str) -> None:
        """The peer cannot be talked to any more."""
        self._end(cause)
        if self._transport is not None:
            self._transport.abort()

    def _end(self, cause: str) -> None:
        if self.closed:
            return
        self.closed = True
        self.cause = cause = self.cause or cause
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        unsent = {message[0] for queue in (self._out, self._backlog) for message in queue}
        pending, self._pending = self._pending, {}
        self._out.clear()
        self._backlog.clear()
        self._weights.clear()
        self._wheel.clear()
        for request_id, future in pending.items():
            if not future.done():
                future.set_result(Lost(request_id, LOST, request_id not in unsent, cause))
        self._on_end(self)
