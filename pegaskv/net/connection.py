"""One client's connection at a server. On the hot path.

Requests come in frames of many messages, and replies leave the same way: handlers
append tuples to `out`, and whatever the bytes that just arrived have caused is packed
once and written once. A request costs a dictionary look-up and a call: there is no
task, future, clock reading or log line for it, and what must be counted or charged is
counted per frame or per chunk of bytes. Who changes this file measures before and after.

Everything here is read from strangers, so it promises:

* before hello is accepted only small frames (4 KiB) with one message are read;
* a message that is wrong is answered by its id; one without an id, or bytes that are
  not a frame, close this connection, and nothing else notices;
* what is held for a connection is bounded: reading pauses while too many requests (1 024)
  or bytes (16 MiB) are under way or unsent (1 MiB), and goes on by itself.

Time limits (a silent or half-sent hello, a frame that never ends, a peer that reads
nothing) are kept by the acceptor, which looks at watched connections now and then.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from pegaskv.base.errors import (
    Busy,
    InvalidArgument,
    NotReady,
    RequestError,
    WireError,
)
from pegaskv.base.limits import (
    CLIENT_FRAME_BYTES_MAX,
    FRAME_MESSAGES_MAX,
    FRAME_VALUES_MAX,
    REPLY_FLUSH_BYTES,
    SERVER_FRAME_BYTES_MAX,
)
from pegaskv.codec.frames import FrameSplitter, encode_frame, encode_write_reply, whole_frame
from pegaskv.codec.operations import Operation
from pegaskv.net.detour import Detour
from pegaskv.net.flow_control import (
    DRAIN,
    FEW_REQUESTS,
    HOLDING,
    IN_FLIGHT,
    LITTLE_BYTES,
    OUTPUT,
    TURN,
    FlowControl,
)
from pegaskv.net.frames_apart import frames_apart
from pegaskv.net.hello import SERVER_FEATURE, answer_hello
from pegaskv.net.refusing import HTTP_ANSWER, HTTP_METHODS, has_id
from pegaskv.net.turns import DECODED_BYTES_MAX, FULL_READ_BYTES, TURN_BYTES, TURN_MESSAGES, cut

if TYPE_CHECKING:
    from pegaskv.net.acceptor import Acceptor

__all__ = ["CONNECTION_ID", "Handler", "ServerConnection"]

_log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[["ServerConnection", list[Any]], None]

# The request id of an error that concerns the connection as a whole, sent before it is closed.
CONNECTION_ID: Final = 0

# After so many small reads who had much to do counts as one with little.
_SMALL_READS: Final = 8


class ServerConnection(FlowControl):
    """One connection: frames in, handlers called, replies out.

    Handlers append replies to `out` (and the size of large ones to `out_bytes`), or call
    `defer` and later `finish` and `flush`. `closed` is true as soon as nothing more will
    be read or answered; `defer`, `finish` and `flush` may be called nevertheless.
    """

    __slots__ = (
        "_handlers",
        "_outgoing",
        "_single",
        "_small_reads",
        "_spinner",
        "_turns",
        "address",
        "deadline_ms",
        "descriptor",
        "greeted",
        "of_server",
        "out",
        "out_bytes",
        "pace",
        "progress",
        "received_bytes",
        "requests",
        "rests",
        "sent_bytes",
        "unsent_since_ms",
    )

    def __init__(self, acceptor: "Acceptor", handlers: Mapping[int, Handler]) -> None:
        super().__init__(acceptor)
        self.out: list[Any] = []
        self.out_bytes = 0
        # Whether hello was accepted.
        self.greeted = False
        self.of_server = False
        # Whether it is a client's, whose large work rests while others call.
        self.rests = True
        self.pace = acceptor.pace
        # Read and written by the acceptor's sweep.
        self.address = "?"
        self.descriptor = -1
        self.deadline_ms: int | None = None
        self.unsent_since_ms: int | None = None
        self.progress = -1
        self.requests = 0
        self.received_bytes = 0
        self.sent_bytes = 0

        self._handlers = handlers
        self._outgoing = acceptor.outgoing
        self._turns = acceptor.turns
        self._spinner = acceptor.spinner
        self._single = acceptor.single
        # How many small reads are left until this counts as a caller with little to do.
        self._small_reads = 0

    # What handlers call.

    def defer(self) -> None:
        """Say that the request at hand will be answered later."""
        self.in_flight += 1

    def finish(self, reply: Sequence[Any]) -> None:
        """Answer a deferred request; the caller flushes when it has answered all it can."""
        self.in_flight -= 1
        self.out.append(reply)

    def error(self, request_id: int, error: RequestError) -> tuple[Any, ...]:
        """Return the reply that carries `error`."""
        return (request_id, error.code, error.message, error.hint, error.details)

    def never_rest(self) -> None:
        """It is of a server or another cluster, which have bounds of their own."""
        self.rests = False
        self._turns = self._acceptor.server_turns

    def flush(self) -> None:
        """Pack what is in `out` and write it; nothing happens if it is empty."""
        out = self.out
        if self.closed:
            out.clear()
            return
        if out:
            if len(out) <= FRAME_MESSAGES_MAX and self.out_bytes <= REPLY_FLUSH_BYTES:
                try:
                    frame = encode_frame(out)
                except (TypeError, ValueError, OverflowError, MemoryError):
                    self._write_apart(out)
                else:
                    if self._paused or self._acceptor.may_answer is not None:
                        self._write(frame)
                    else:
                        # `_write`, written out.
                        self._transport.write(frame)  # type: ignore[union-attr]
                        self.sent_bytes += len(frame)
                        if self._paused:
                            self._bound_unsent()
            else:
                self._write_apart(out)
            out.clear()
            self.out_bytes = 0
        if self.in_flight < self._counted:
            self._settle()
        if self._paused:
            self._consider()

    def answer(self, frame: bytes, count: int) -> None:
        """Write a frame with the replies of `count` deferred requests, packed before."""
        self.in_flight -= count
        if not self.closed:
            self._write(frame)
        self.flush()

    def answer_write(self, reply: list[int]) -> None:
        """Answer the last deferred request, a write, with [request id, 0, decree]."""
        try:
            # If there is nothing else to say.
            frame = b"" if self.closed or self.out else encode_write_reply(reply[0], reply[2])
        except MemoryError:
            frame = b""
        if not frame:
            self.finish(reply)
            self.flush()
            return
        self.in_flight -= 1
        if self._paused or self._acceptor.may_answer is not None:
            self._write(frame)
        else:
            # `_write`, written out.
            self._transport.write(frame)  # type: ignore[union-attr]
            self.sent_bytes += len(frame)
            if self._paused:
                self._bound_unsent()
        if self._counted:
            self._settle()
        if self._paused:
            self._consider()

    def close(self) -> None:
        """Write what is in `out`, then close when the peer has taken it."""
        if not self.closed:
            if self.out:  # Not by `flush`, which would come back here at the end of a drain.
                self._write_apart(self.out)
            self._end()
        if self._transport is not None and not self._transport.is_closing():
            self._acceptor.expect_end(self)
            self._transport.close()

    def abort(self) -> None:
        """Close at once; what is unsent is lost."""
        self._end()
        if self._transport is not None:
            self._transport.abort()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The peer has connected: it may speak if the acceptor has room."""
        # A cast, since uvloop's transports are no subclass of asyncio's.
        self._transport = transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        most = self._options.connection_unsent_pause_bytes
        transport.set_write_buffer_limits(high=most, low=most // 4)
        peer = transport.get_extra_info("peername")
        if peer:
            self.address = str(peer[0])
        opened = transport.get_extra_info("socket")
        if opened is not None:
            self.descriptor = opened.fileno()
        refusal = self._acceptor.admit(self)
        if refusal is not None:
            self.turn_away(refusal)

    def connection_lost(self, error: BaseException | None) -> None:
        """The connection has ended, by either side."""
        self._end()
        self._transport = None
        self._acceptor.forget(self)

    def data_received(self, data: bytes) -> None:
        """Take what arrived, answer what can be answered at once, write once."""
        size = len(data)
        self.received_bytes += size
        if (
            size <= LITTLE_BYTES
            and self.in_flight < self._few
            # A frame that is not complete is charged; so are requests that wait, but their order
            # must not depend on that.
            and not (self._paused or self._charged or self._backlog)
            and (messages := whole_frame(data)) is not None
        ):
            # Nothing to split or to put off: what `_read` does of more, written out.
            if len(messages) == 1:
                self.requests += 1
                message = messages[0]
                # And what `_take` does.
                try:
                    if (
                        type(message) is not list
                        or type(message[0]) is not int
                        or not 0 < message[0] <= 0xFFFFFFFF
                        or type(message[1]) is not int
                        or (type(message[2]) is not int and type(message[2]) is not list)
                    ):
                        raise WireError("not a request")
                    self._handlers[message[1]](self, message)
                except Exception as error:  # noqa: BLE001 - a stranger's message ends nothing
                    self.refuse(message, error)
            else:
                self._handle([messages])
                self._received(size, whole=True)
            if self._small_reads:
                self._small_reads -= 1
            elif self.rests:
                self.pace.heard = True
        else:
            self._read(data, size)
        if self.out:
            outgoing = self._outgoing
            if outgoing.last is self:
                self.flush()
            else:
                outgoing.add(self)
        if self.in_flight == 1:
            single = self._single
            single.count += 1
            if single.alone:
                single.answer()
        if self._spinner is not None:
            self._spinner.wake()

    def pause_writing(self) -> None:
        """The peer does not read its replies: stop reading its requests."""
        self.unsent_since_ms = self._acceptor.now_ms
        self._acceptor.watch(self)
        self._pause(OUTPUT)

    def resume_writing(self) -> None:
        """The peer has read most of its replies."""
        self.unsent_since_ms = None
        self.resume(OUTPUT)

    # Requests.

    def _read(self, data: bytes, size: int) -> None:
        """Split what arrived into frames; handle them, or keep them if others come first."""
        if self.closed:
            return
        began_us = 0
        if size > LITTLE_BYTES:
            self.write_waiting()
            if size >= DECODED_BYTES_MAX:
                began_us = self.pace.now_us()
        splitter = self._splitter
        try:
            frames = splitter.feed(data)
        except WireError as error:
            self._break(error, data)
            return
        except MemoryError:
            self._acceptor.out_of_memory(self)
            self.turn_away(Busy("the server is short of memory", details={"retry_after_ms": 1_000}))
            return
        if frames:
            if not self.greeted:
                frames = self._greet(frames)
            if self._paused & HOLDING or self._backlog:
                self._backlog.extend(frames)
            else:
                self._handle(frames)
        if self.in_flight or self._charged or splitter.held or self._backlog:
            self._received(size, whole=bool(frames))
        if (splitter.more or size >= FULL_READ_BYTES) and not self.closed:
            self._end_turn(began_us)
        elif self._small_reads:
            self._small_reads -= 1
        elif self.rests:
            self.pace.heard = True

    def _handle(self, frames: list[list[Any]]) -> None:
        if len(frames) != 1 or len(frames[0]) > TURN_MESSAGES:
            frames, behind = cut(frames)
            if behind:
                self._backlog = behind + self._backlog
                self._end_turn()
        written = 0
        for number, messages in enumerate(frames, 1):
            count = len(messages)
            if self.in_flight + count > self._options.connection_requests_max and self.in_flight:
                self._backlog = frames[number - 1 :] + self._backlog
                self._pause(IN_FLIGHT)
                return
            self.requests += count
            rest = iter(messages)
            while not self._take(rest):
                if self.closed:
                    return
                written += self.out_bytes
                self.flush()
                if written > TURN_BYTES:
                    self._end_turn()
                if self._paused & HOLDING or self.closed:
                    # The peer is slower than we are: the rest is for later.
                    left = list(rest)
                    self.requests -= len(left)
                    behind = [left, *frames[number:]] if left else frames[number:]
                    self._backlog = behind + self._backlog
                    return

    def _take(self, messages: Iterable[Any]) -> bool:
        """Handle messages; False when the connection has ended or the replies should leave."""
        handlers = self._handlers
        for message in messages:
            try:
                # The types are exact: a bool is no number here.
                if (
                    type(message) is not list
                    or type(message[0]) is not int
                    or not 0 < message[0] <= 0xFFFFFFFF
                    or type(message[1]) is not int
                    or (type(message[2]) is not int and type(message[2]) is not list)
                ):
                    raise WireError("not a request")
                handlers[message[1]](self, message)
            except Exception as error:  # noqa: BLE001 - a stranger's message ends nothing
                self.refuse(message, error)
                if self.closed:
                    return False
            if self.out_bytes > REPLY_FLUSH_BYTES:
                return False
        return True

    def _end_turn(self, began_us: int = 0) -> None:
        self._pause(TURN)
        self._small_reads = _SMALL_READS
        self._turns.wait(self, began_us or self.pace.now_us())

    def take_turn(self) -> None:
        """Go on after the end of a turn."""
        self._paused &= ~TURN
        self.write_waiting()
        self._go_on()

    def write_waiting(self) -> None:
        """Small replies, of others mostly, do not wait for what is about to take long."""
        self._outgoing.write()

    def refuse(self, message: Any, error: Exception) -> None:
        """Answer a message that its handler did not take, or close if it has no id."""
        if self.closed:
            return
        if isinstance(error, Detour):
            met = error.take(self, message)
            if met is None:
                return
            error = met
        if not has_id(message):
            self._break(WireError("a message without a request id"))
            return
        if not isinstance(error, RequestError):
            error = self._acceptor.explain(self, message, error, self._handlers)
        self.out.append(self.error(message[0], error))

    def _greet(self, frames: list[list[Any]]) -> list[list[Any]]:
        """Take the first frame, which must be hello; return the frames after it."""
        message = frames[0][0]
        if len(frames[0]) != 1 or not has_id(message) or message[1:2] != [Operation.HELLO]:
            self._break(WireError("the first frame is not one hello"))
            return []
        try:
            fields = answer_hello(self._acceptor.identity, message[3:], self._acceptor.limits)
        except RequestError as error:
            self._acceptor.refuse_hello(self, error)
            self.turn_away(error, request_id=message[0])
            return []
        self.greeted = True
        self.deadline_ms = None
        self._few = min(FEW_REQUESTS, self._options.connection_requests_max - 1)
        self._splitter.frame_bytes_max = CLIENT_FRAME_BYTES_MAX
        if SERVER_FEATURE in message[7]:
            self.of_server = True
            self.never_rest()
            self._handlers = self._acceptor.handlers_for_servers
            self._splitter.frame_bytes_max = SERVER_FRAME_BYTES_MAX
            self._splitter.values_max = FRAME_VALUES_MAX
            self._bytes_max = max(self._bytes_max, SERVER_FRAME_BYTES_MAX)
        self.out.append((message[0], 0, *fields))
        return frames[1:]

    # Output.

    def _write(self, frame: bytes) -> None:
        transport = self._transport
        assert transport is not None
        may_answer = self._acceptor.may_answer
        if may_answer is not None and not may_answer():
            # What it says may not be so any more; whoever asked does not hear it.
            self.abort()
            return
        transport.write(frame)
        self.sent_bytes += len(frame)
        if self._paused:
            self._bound_unsent()

    def _bound_unsent(self) -> None:
        if self._paused & OUTPUT and self.unsent_bytes > self._options.connection_unsent_bytes_max:
            self._acceptor.cut_off(self, "its unsent replies passed the limit")

    def _write_apart(self, out: list[Any]) -> None:
        """Write replies that are many, large or broken in frames of their own."""
        try:
            for frame in frames_apart(out, self.out_bytes, self._unsendable):
                self._write(frame)
                if self.closed:
                    return
        except MemoryError:
            self.abort()

    def _unsendable(self, reply: Any, reason: str) -> tuple[Any, ...]:
        return self.error(reply[0], self._acceptor.unsendable(self, reason))

    # Pauses.

    def _go_on(self) -> None:
        self._going_on = False
        if self._paused & HOLDING or self.closed:
            return
        if self._backlog:
            frames, self._backlog = self._backlog, []
            self._handle(frames)
            if self.closed:
                return
            self._charge(0, whole=False)
            if self.out:
                self.flush()
        if self._splitter.more and not self._paused & HOLDING:
            self.data_received(b"")
        if not self._paused and not self._going_on and not self.closed:
            assert self._transport is not None
            self._transport.resume_reading()

    # The end.

    def drain(self) -> None:
        """Stop reading, answer what is under way, then close."""
        if self.closed:
            return
        self._pause(DRAIN)
        stopping = NotReady("the server is stopping", hint="try again when it is back")
        with suppress(WireError, MemoryError):
            while self._splitter.more:
                self._backlog += self._splitter.feed(b"")
        for message in (message for frame in self._backlog for message in frame):
            self.refuse(message, stopping)
            if self.closed:
                return
        self._backlog.clear()
        if self.in_flight:
            self.flush()
        else:
            self.close()

    def turn_away(self, error: RequestError, *, request_id: int = CONNECTION_ID) -> None:
        """Answer `error`, and close when the peer had time to read it."""
        self.out.append(self.error(request_id, error))
        self._write_apart(self.out)
        if self.closed:
            return
        self._end()
        self._acceptor.linger(self)
        if self._paused and self._transport is not None and not self._transport.is_closing():
            # What comes is thrown away; unread bytes would destroy the answer on its way.
            self._paused = 0
            self._transport.resume_reading()

    def _break(self, error: WireError, data: bytes = b"") -> None:
        """The peer does not speak our protocol, or breaks it."""
        if not self.greeted and data.startswith(HTTP_METHODS):
            self._acceptor.count_broken(self, WireError("HTTP on the protocol's port"))
            self._write(HTTP_ANSWER)
            self.close()
            return
        self._acceptor.count_broken(self, error)
        self.turn_away(InvalidArgument(error.message, hint="the connection is closed"))

    def _end(self) -> None:
        self.closed = True
        # So that what comes is not looked at.
        self._few = 0
        self.partial_since_ms = None
        self.unsent_since_ms = None
        self.out.clear()
        self._backlog.clear()
        self._splitter = FrameSplitter(0)
        self._request_bytes = self.partial_bytes = self._counted = 0
        self._book()
