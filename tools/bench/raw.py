"""An equal raw driver for every server: requests packed beforehand, replies only counted.

No asyncio: sockets and epoll, so that the driver costs as little as Python can and the
same for each side. Each connection sends one chunk of `depth` requests, waits for all of
their replies, and sends its next chunk.
"""

import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pegaskv.codec.packing import unpack

__all__ = ["Count", "FixedReplies", "FrameReplies", "Lane", "Lanes"]

_HEADER: Final = struct.Struct(">I")
_PATIENCE_S: Final = 10.0
# Small: Python makes room for all of it before each read.
_READ_BYTES: Final = 1 << 14

# Takes what a connection received, returns how many replies that completed.
Count = Callable[[bytes], int]


class FixedReplies:
    """Counts replies of one known length."""

    def __init__(self, reply_bytes: int) -> None:
        self._reply_bytes = reply_bytes
        self._received = 0

    def __call__(self, data: bytes) -> int:
        """Take what was received; return how many replies it completed."""
        whole, self._received = divmod(self._received + len(data), self._reply_bytes)
        return whole


class FrameReplies:
    """Counts the messages of our frames by the head of each body; the first are looked into."""

    def __init__(self) -> None:
        self._held = b""
        self._trusted = False

    def __call__(self, data: bytes) -> int:
        """Take what was received; return how many replies it completed."""
        if self._held:
            data = self._held + data
        position, end, replies = 0, len(data), 0
        while end - position > 10:
            body_end = position + 8 + _HEADER.unpack_from(data, position)[0]
            if body_end > end:
                break
            if not self._trusted:
                self._look_into(data[position:body_end])
            head = data[position + 8]
            # A msgpack array of up to 15 elements, or one with its length in two bytes.
            replies += head & 15 if head < 0xA0 else data[position + 9] << 8 | data[position + 10]
            position = body_end
        self._held = data[position:]
        return replies

    def _look_into(self, frame: bytes) -> None:
        for reply in unpack(frame[8:]):
            if reply[1] != 0:
                raise SystemExit(f"the server answered {reply}")
        self._trusted = True


@dataclass
class Lane:
    """One connection: what it sends, chunk after chunk, and how its replies are counted."""

    socket: socket.socket
    chunks: Sequence[bytes]
    depth: int
    count: Count
    next: int = 0
    missing: int = 0

    def send(self) -> None:
        """Send the next chunk."""
        self.socket.sendall(self.chunks[self.next])
        self.next = (self.next + 1) % len(self.chunks)
        self.missing = self.depth


class Lanes:
    """All connections of one side."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = {lane.socket.fileno(): lane for lane in lanes}
        self._epoll = select.epoll()
        for descriptor in self._lanes:
            self._epoll.register(descriptor, select.EPOLLIN)

    def rate(self, seconds: float) -> float:
        """Return the replies a second, over `seconds`; nothing is under way afterwards."""
        for lane in self._lanes.values():
            lane.send()
        self._until(time.perf_counter() + seconds / 10)
        began = time.perf_counter()
        replies = self._until(began + seconds)
        taken = time.perf_counter() - began
        self.drain()
        return replies / taken

    def once(self) -> None:
        """Send every chunk once."""
        for _ in range(max(len(lane.chunks) for lane in self._lanes.values())):
            for lane in self._lanes.values():
                lane.send()
            self.drain()

    def _until(self, end: float) -> int:
        lanes, poll, now = self._lanes, self._epoll.poll, time.perf_counter
        done = 0
        while now() < end:
            events = poll(_PATIENCE_S)
            if not events:
                raise SystemExit(f"a server has not answered for {_PATIENCE_S:.0f} s")
            free = []
            for descriptor, _ in events:
                lane = lanes[descriptor]
                got = lane.count(_received(lane.socket))
                done += got
                lane.missing -= got
                if lane.missing <= 0:
                    free.append(lane)
            # All sends together: one that finds the server asleep costs as much as ten others.
            for lane in free:
                lane.send()
        return done

    def drain(self) -> None:
        """Take all replies that are on their way."""
        while any(lane.missing for lane in self._lanes.values()):
            events = self._epoll.poll(_PATIENCE_S)
            if not events:
                raise SystemExit(f"a server has not answered for {_PATIENCE_S:.0f} s")
            for descriptor, _ in events:
                lane = self._lanes[descriptor]
                lane.missing -= lane.count(_received(lane.socket))

    def close(self) -> None:
        """Close all connections."""
        self._epoll.close()
        for lane in self._lanes.values():
            lane.socket.close()


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(_READ_BYTES)
    if not data:
        raise SystemExit("a server closed its connection")
    return data
