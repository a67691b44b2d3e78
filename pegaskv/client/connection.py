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

A server that is stopped, stalled or cut off does not close its connections, so silence is
noticed here: after half a second without a byte, while requests wait, the server is asked
whether it is there (a slow one says so at once); after another half the connection is
*silent*. Then every caller is told by a `Lost` with the status `SILENT`: a read goes
elsewhere, what never left goes elsewhere, and a write that left goes on waiting for
`later`. Nothing new is sent until the server is heard again. A server that says goodbye
(id 0) is sent nothing new either; it answers what it has, and then the connection ends.
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

__all__ = ["LOST", "SILENT", "SILENT_MS", "SLOT_MS", "TIMED_OUT", "Connection", "Lost"]

# Statuses of requests without a reply; those on the wire are 0 and above.
TIMED_OUT: Final = -1
LOST: Final = -2
SILENT: Final = -3

SLOT_MS: Final = 50
# Half of the requests under way, but so many at least, are written before the turn of the
# loop ends; the number doubles in one turn. Smaller parts would each cost the server a tick.
_EARLY_MESSAGES_MIN: Final = 16
# Before hello is accepted a server has no reason to send more.
_BEFORE_HELLO_BYTES_MAX: Final = 64 * 1024
# After so long without a byte, while something waits, a peer is asked whether it is there;
# then it counts as silent; and when something timed out as well it is given up. By then a
# secondary has taken over: a new connection would only be waited for in vain before.
_ASK_MS: Final = 500
SILENT_MS: Final = 1_000
_GIVE_UP_MS: Final = 7_000
# When the loop looks up so late it is itself the reason why nothing was heard.
_LATE_MS: Final = 4 * SLOT_MS
_ID_MASK: Final = 0xFFFFFFFF


class Lost(NamedTuple):
    """The end of a request without a reply; `sent` says whether it may have left.

    With the status `SILENT` the request may still be answered: `later` gets that reply, or
    another `Lost`. It is None when the request never left and never will.
    """

    id: int
    status: int
    sent: bool
    cause: str
    later: "asyncio.Future[Any] | None" = None


class Connection(asyncio.Protocol):
    """Requests out, replies in. Made by `nodes.Node`, which says hello first.

    Invariants: an id is in `_pending` once at most; everything in `_backlog` and `_out` is
    in `_pending`, or its caller has gone; after `_end` nothing is pending.
    """

    __slots__ = (
        "_alone",
        "_backlog",
        "_bytes",
        "_bytes_max",
        "_clock",
        "_create_future",
        "_early",
        "_ended",
        "_greeted",
        "_heard",
        "_heard_ms",
        "_leaving",
        "_loop",
        "_next_id",
        "_on_change",
        "_out",
        "_overdue",
        "_paused",
        "_pending",
        "_placed_id",
        "_probe_id",
        "_requests_max",
        "_scheduled",
        "_silent",
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
        on_change: Callable[["Connection"], Any],
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
        # Told whenever `usable` has changed.
        self._on_change = on_change
        self._ended: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._splitter = FrameSplitter(_BEFORE_HELLO_BYTES_MAX)
        # Whether the last turn of the loop that sent anything sent one request.
        self._alone = False

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
        self._greeted = False
        self._leaving = False
        self._silent = False
        self._heard = False
        self._heard_ms = self.now_ms
        self._probe_id = -1
        # Something that was sent has timed out, and nothing was heard since.
        self._overdue = False
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

    @property
    def usable(self) -> bool:
        """Whether a request that is made now is likely to be answered."""
        return not (self.closed or self._silent or self._leaving)

    @property
    def silent(self) -> bool:
        """Whether nothing was heard for so long that it may be gone; it may be heard again."""
        return self._silent and not self.closed

    @property
    def silent_ms(self) -> int:
        """How long nothing was heard, as of the last tick."""
        return self.now_ms - self._heard_ms

    def accept(self, *, requests_max: int, bytes_max: int) -> None:
        """Hello was accepted: read whole frames, and keep to the server's limits too."""
        self._greeted = True
        self._splitter.frame_bytes_max = CLIENT_FRAME_BYTES_MAX
        # One place is kept for asking whether the server is there.
        self._requests_max = min(self._requests_max, max(1, requests_max - 1))
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
            if self._alone and len(pending) == 1:
                self._send_alone()
            else:
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
        if self._silent:
            self._hear()
        try:
            frames = self._splitter.feed(data)
        except WireError as error:
            self._break(f"what it sent is not the protocol of pegaskv: {error.message}")
            return
        pending = self._pending
        pop = pending.pop
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
        if self._leaving and not pending:
            self.close(self.cause)

    # Sending.

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._flush)
        if self._ticking is None:
            self._begin_ticking()

    def _send_alone(self) -> None:
        """Who calls one after another need not wait for others of this turn of the loop."""
        if self._ticking is None:
            self._begin_ticking()
        self._write_out()
        if self._spinner is not None:
            self._spinner.wake()

    def _begin_ticking(self) -> None:
        self.now_ms = self._heard_ms = self._clock.monotonic_ms()
        self._ticking = self._loop.call_later(SLOT_MS / 1_000, self._tick)

    def _flush(self) -> None:
        self._scheduled = False
        self._alone = len(self._out) == 1
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
        if self.closed:
            return
        before, now = self.now_ms, self._clock.monotonic_ms()
        self.now_ms = now
        if self._heard:
            self._heard = False
            self._overdue = False
            self._heard_ms = now
            self._probe_id = -1
        elif now - before > _LATE_MS:
            # We did not listen.
            self._heard_ms += now - before
        self._place(now)
        slot_now = now // SLOT_MS
        for slot in sorted(slot for slot in self._wheel if slot <= slot_now):
            for request_id in self._wheel.pop(slot):
                if request_id in self._pending:
                    self._expire(request_id)
        if self._greeted and (self._pending or self._silent) and now - self._heard_ms >= _ASK_MS:
            self._on_silence(now - self._heard_ms)
            if self.closed:
                return
        if self._pending or self._silent:
            self._ticking = self._loop.call_later(SLOT_MS / 1_000, self._tick)
        else:
            self._ticking = None
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
            # It is asked again as long as the silence lasts.
            self._probe_id = -1
        elif sent and self._greeted:
            self._overdue = True
            # Alive and slow, or gone without a word? An answer of any kind tells.
            self._ask()
        if not future.done():
            future.set_result(Lost(request_id, TIMED_OUT, sent, self.cause))

    # Silence.

    def _on_silence(self, silent_ms: int) -> None:
        """Nothing was heard for a while: ask, tell the callers, and give up, in this order."""
        if not self._silent and silent_ms >= SILENT_MS:
            self._fall_silent(silent_ms)
        elif self._overdue and silent_ms >= _GIVE_UP_MS:
            self._break(f"nothing was heard of it for {silent_ms} ms")
            return
        self._ask()

    def _ask(self) -> None:
        """Ask the peer whether it is there, past all who wait, unless it was asked already."""
        if self._probe_id >= 0:
            return
        request_id = self._next_id
        while request_id in self._pending or not request_id:
            request_id = (request_id + 1) & _ID_MASK
        self._next_id = (request_id + 1) & _ID_MASK
        self._probe_id = request_id
        self._pending[request_id] = self._create_future()
        self._timeouts[request_id] = _GIVE_UP_MS
        self._out.append((request_id, int(Operation.PING), _GIVE_UP_MS))
        if not self._scheduled:
            self._schedule()

    def _fall_silent(self, silent_ms: int) -> None:
        """Tell all callers; what was sent may still be answered, what was not never leaves."""
        self._silent = True
        cause = f"nothing was heard of it for {silent_ms} ms"
        waiting = self._out + list(self._backlog)
        for message in self._out:
            self._bytes -= self._weights.get(message[0], 0)
        self._out = [message for message in self._out if message[0] == self._probe_id]
        self._backlog.clear()
        for request_id, *_ in waiting:
            if request_id == self._probe_id:
                continue
            future = self._pending.pop(request_id, None)
            self._weights.pop(request_id, None)
            if future is not None and not future.done():
                future.set_result(Lost(request_id, SILENT, False, cause))
        for request_id, future in self._pending.items():
            if request_id != self._probe_id and not future.done():
                later = self._pending[request_id] = self._create_future()
                future.set_result(Lost(request_id, SILENT, True, cause, later))
        self._on_change(self)

    def _hear(self) -> None:
        self._silent = False
        self._on_change(self)

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
        """The server says why it is about to close the connection: it gets nothing new."""
        if message[1] != 0 and len(message) > 2 and isinstance(message[2], str):
            self.cause = message[2]
            if len(message) > 3 and isinstance(message[3], str):
                self.advice = message[3]
        if self._greeted and not self._leaving:
            self._leaving = True
            self._on_change(self)

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
        self._on_change(self)
