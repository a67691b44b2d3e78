"""One connection to another server, from the side that asks. On the hot path.

A replicated write crosses it twice, so a message costs an append and its answer a look-up
and a call: there is no task, future or timer for it. All messages of one turn of the loop
leave as one frame, in the order in which they were submitted; a turn that has more than a
frame should hold sends several.

Whoever submits is called exactly once and never in the same turn: with the reply, or with
None when the connection ended first. Whether a silent connection still lives is found out by
who holds it (`look`), by pings, since no request has a time limit of its own.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

from pegaskv.base.errors import InvalidData, WireError
from pegaskv.base.limits import (
    CLIENT_FRAME_BYTES_MAX,
    FRAME_MESSAGES_MAX,
    PEER_FRAME_BYTES,
    SERVER_FRAME_BYTES_MAX,
)
from pegaskv.codec.frames import HEADER_BYTES, FrameSplitter, encode_frame
from pegaskv.codec.operations import Operation
from pegaskv.runtime.spin import Spinner

__all__ = ["Done", "PeerConnection"]

_log = logging.getLogger(__name__)

Done: TypeAlias = Callable[[list[Any] | None], Any]

_ID_MASK: Final = 0xFFFFFFFF
# Before hello is answered nobody has a reason to send more.
_BEFORE_HELLO_BYTES_MAX: Final = 64 * 1024
# What a peer may leave unread. The windows of partitions stop a primary long before this.
_UNSENT_BYTES_MAX: Final = 4 * SERVER_FRAME_BYTES_MAX
# Looks without a word from the peer, until it is asked whether it is there, and until it is given
# up. Looks are counted and not time: after a stall of our own what it said waits to be read.
_LOOKS_UNTIL_PING: Final = 4
_LOOKS_UNTIL_END: Final = 10
_PING_MS: Final = 2_000


class PeerConnection(asyncio.Protocol):
    """Requests out, replies in. `cause` says why it has ended, once `closed`.

    `on_end` is called at once when it ends, and `on_gone` in a later turn, after everybody who
    waited for a reply was told that there is none.
    """

    __slots__ = (
        "_frame_bytes_max",
        "_loop",
        "_next_id",
        "_on_end",
        "_on_gone",
        "_out",
        "_out_bytes",
        "_pending",
        "_scheduled",
        "_silent_looks",
        "_spinner",
        "_splitter",
        "_transport",
        "cause",
        "closed",
        "heard",
        "received_bytes",
        "sent_bytes",
    )

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        on_end: Callable[["PeerConnection"], Any],
        on_gone: Callable[["PeerConnection"], Any],
        spinner: Spinner | None = None,
    ) -> None:
        self.closed = False
        self.cause = ""
        # Whether anything came since the last look.
        self.heard = True
        self.received_bytes = 0
        self.sent_bytes = 0
        self._loop = loop
        self._on_end = on_end
        self._on_gone = on_gone
        self._spinner = spinner
        self._transport: asyncio.Transport | None = None
        self._splitter = FrameSplitter(_BEFORE_HELLO_BYTES_MAX)
        self._frame_bytes_max = CLIENT_FRAME_BYTES_MAX
        self._silent_looks = 0
        # Id 0 is the server's, for what concerns the connection as a whole.
        self._next_id = 1
        self._pending: dict[int, Done] = {}
        self._out: list[Any] = []
        self._out_bytes = 0
        self._scheduled = False

    @property
    def own_host(self) -> str:
        """The address of this machine on the way to the peer; "" before and after."""
        transport = None if self.closed else self._transport
        name = None if transport is None else transport.get_extra_info("sockname")
        return str(name[0]) if name else ""

    @property
    def pending(self) -> int:
        """How many requests have no reply yet."""
        return len(self._pending)

    def accept(self, *, as_server: bool) -> None:
        """Hello was accepted; `as_server`: the peer takes the large frames of servers."""
        self._splitter.frame_bytes_max = SERVER_FRAME_BYTES_MAX
        if as_server:
            self._frame_bytes_max = SERVER_FRAME_BYTES_MAX

    def submit(self, fields: tuple[Any, ...], done: Done, size: int = 0) -> bool:
        """Send `(operation, timeout_ms, ...)`; see `replica.doors.Peer`."""
        if self.closed:
            return False
        pending = self._pending
        request_id = self._next_id
        # After four billion requests an id may still be taken.
        while request_id in pending or not request_id:
            request_id = (request_id + 1) & _ID_MASK
        self._next_id = (request_id + 1) & _ID_MASK
        pending[request_id] = done
        if self._out and (
            len(self._out) == FRAME_MESSAGES_MAX or self._out_bytes + size > PEER_FRAME_BYTES
        ):
            self._write_out()
        self._out.append((request_id, *fields))
        self._out_bytes += size
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
        return True

    def close(self, cause: str) -> None:
        """End: what is under way is not waited for."""
        self._end(cause)
        if self._transport is not None:
            self._transport.abort()

    def look(self) -> None:
        """Find out whether the peer is there; called at regular times."""
        if self.heard:
            self.heard = False
            self._silent_looks = 0
            return
        self._silent_looks += 1
        if self._silent_looks == _LOOKS_UNTIL_PING:
            self.submit((int(Operation.PING), _PING_MS), _ignore)
        elif self._silent_looks >= _LOOKS_UNTIL_END:
            self.close("nothing was heard of it, not even an answer to a ping")

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The peer has accepted; hello comes next."""
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if self.closed:
            self._transport.abort()

    def connection_lost(self, error: BaseException | None) -> None:
        """The connection has ended, by either side."""
        self._transport = None
        self._end(f"the connection broke: {error}" if error else "it closed the connection")

    def data_received(self, data: bytes) -> None:
        """Give each reply to whoever waits for it."""
        if self.closed:
            return
        self.heard = True
        self.received_bytes += len(data)
        try:
            frames = self._splitter.feed(data)
        except WireError as error:
            self.close(f"what it sent is not the protocol of pegaskv: {error.message}")
            return
        except MemoryError:
            self.close("there is no memory for what it sent")
            return
        pop = self._pending.pop
        for messages in frames:
            for message in messages:
                if (
                    type(message) is not list
                    or len(message) < 2
                    or type(message[0]) is not int
                    or type(message[1]) is not int
                ):
                    self.close("it sent a message that is no reply")
                    return
                done = pop(message[0], None)
                if done is not None:
                    done(message)
                elif message[0] == 0 and len(message) > 2 and type(message[2]) is str:
                    # The server says why it is about to close the connection.
                    self.cause = message[2]
        if self._spinner is not None:
            self._spinner.wake()

    # Sending.

    def _flush(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send what was submitted, without waiting for the end of the turn."""
        if self._out and not self.closed:
            self._write_out()

    def _write_out(self) -> None:
        out, self._out, self._out_bytes = self._out, [], 0
        try:
            self._write(out)
        except (TypeError, ValueError, OverflowError, MemoryError) as error:
            _log.exception("messages to another server could not be packed")
            self.close(f"a message could not be packed: {error}")

    def _write(self, messages: list[Any]) -> None:
        transport = self._transport
        if transport is None:
            return
        frame = encode_frame(messages)
        size = len(frame)
        if size <= self._frame_bytes_max + HEADER_BYTES:
            transport.write(frame)
            self.sent_bytes += size
            if transport.get_write_buffer_size() > _UNSENT_BYTES_MAX:
                self.close("it does not read what is sent to it")
        elif len(messages) > 1:
            middle = len(messages) // 2
            self._write(messages[:middle])
            self._write(messages[middle:])
        else:
            self._refuse(messages[0][0], size)

    def _refuse(self, request_id: int, size: int) -> None:
        """Answer for the peer, in a later turn, that a message fits no frame."""
        done = self._pending.pop(request_id, None)
        if done is not None:
            text = f"a message of {size} bytes; a frame has {self._frame_bytes_max} at most"
            self._loop.call_soon(done, [request_id, InvalidData.code, text, "", None])

    # The end.

    def _end(self, cause: str) -> None:
        if self.closed:
            return
        self.closed = True
        self.cause = self.cause or cause
        self._out.clear()
        self._on_end(self)
        # Not now: this may be the turn in which somebody submits.
        self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        pending, self._pending = self._pending, {}
        for done in pending.values():
            done(None)
        self._on_gone(self)


def _ignore(reply: list[Any] | None) -> None:
    """What is heard of a peer is all that its answer to a ping tells."""
