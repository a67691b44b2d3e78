"""From a primary to its members: records, commit points, beacons. On the hot path.

A `Stream` is one member (or learner) of one partition. A `Line` is one other server: what
the streams to it have in one tick leaves as one message for each durability, with the very
bytes that the log has, and is answered by one. The order on a line is the order of the
decrees, so that a stream needs no numbers of its own.
"""

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from pegaskv.base.limits import PEER_UNANSWERED_BYTES_MAX
from pegaskv.codec.operations import Operation
from pegaskv.replica.doors import Peer
from pegaskv.storage.log_format import LogRecord, encode_records

if TYPE_CHECKING:
    from pegaskv.replica.replica import Replica

__all__ = ["Line", "Stream"]

_log = logging.getLogger(__name__)

_PREPARE: Final = int(Operation.PREPARE)
_BEACON: Final = int(Operation.BEACON)
# From this size on a message of records is sent in several, as far as that can be.
_MESSAGE_BYTES: Final = 4 * 1024 * 1024
_TIMEOUT_MS: Final = 10_000
# Of one message: more numbers than this names are refused as one array.
_BEACON_STREAMS_MAX: Final = 2_000


class Stream:
    """One member or learner of one partition under one ballot, as its primary sees it.

    `opened`: records go to it as they are logged. `waiting_since_ms` is when the oldest was sent
    (or should have been) that it has not acknowledged; None = it has all.
    """

    __slots__ = (
        "acknowledged",
        "ballot",
        "learner",
        "leased_ms",
        "line",
        "node_id",
        "opened",
        "opening",
        "refusals",
        "replica",
        "retry_ms",
        "sent",
        "told",
        "waiting_since_ms",
    )

    def __init__(
        self, replica: "Replica", line: "Line", ballot: int, now_ms: int, *, learner: bool
    ) -> None:
        self.replica = replica
        self.line = line
        self.node_id = line.peer.node_id
        self.ballot = ballot
        self.learner = learner
        self.opened = False
        # Whether the receiver was asked to adopt and has not answered.
        self.opening = False
        # How often it refused and was asked again soon, and when the watch may ask it again.
        self.refusals = 0
        self.retry_ms = 0
        # When the last was sent that it has acknowledged.
        self.leased_ms = 0
        self.acknowledged = 0
        self.sent = 0
        # The commit point that it has heard.
        self.told = 0
        self.waiting_since_ms: int | None = now_ms

    def send(self, record: LogRecord) -> None:
        """Add a record to what leaves at the end of this tick."""
        self.sent = record.decree
        self.told = record.committed
        self.line.add(self, record)

    def close(self, now_ms: int) -> None:
        """The way is broken, or the member refused: it is opened anew by the watch."""
        self.opened = self.opening = False
        if self.waiting_since_ms is None:
            self.waiting_since_ms = now_ms

    def end(self) -> None:
        """Nothing goes to the member from here any more."""
        self.opened = self.opening = False
        self.line.streams.pop(self, None)


class _Outgoing:
    """Records for one server that are answered together."""

    __slots__ = ("last", "records", "size")

    def __init__(self) -> None:
        self.records: list[LogRecord] = []
        self.last: dict[Stream, int] = {}
        self.size = 0


class Line:
    """All streams to one server; `on_acknowledged` is told whose commit point may have moved."""

    def __init__(
        self,
        peer: Peer,
        *,
        now_ms: Callable[[], int],
        wall_us: Callable[[], int],
        on_acknowledged: Callable[["Line", Iterable[tuple[Stream, int]]], None],
    ) -> None:
        self.peer = peer
        self._now_ms = now_ms
        self._wall_us = wall_us
        self._on_acknowledged = on_acknowledged
        self._synced = _Outgoing()
        self._unsynced = _Outgoing()
        self.streams: dict[Stream, None] = {}
        # What was sent and is not answered.
        self.unanswered_bytes = 0
        # Whether somebody may wait for it to be less.
        self.was_full = False
        # When the oldest beacon was sent that is not answered.
        self.beacon_since_ms: int | None = None
        # By how much the other server's wall clock is ahead.
        self.ahead_us = 0

    def add(self, stream: Stream, record: LogRecord) -> None:
        """Put a record into this tick's message."""
        out = self._synced if stream.replica.fsync else self._unsynced
        out.records.append(record)
        out.last[stream] = record.decree
        out.size += len(record.payload)

    @property
    def full(self) -> bool:
        """Whether the other server is so far behind that nothing more is sent to it."""
        return self.unanswered_bytes >= PEER_UNANSWERED_BYTES_MAX

    def takes(self, count: int) -> bool:
        """Whether what is about to be sent has a message of so many records."""
        return count in (len(self._synced.records), len(self._unsynced.records))

    def send(self, count: int = 0, body: bytes = b"") -> None:
        """Send what was added; `body` has all `count` records of this tick, if it was made."""
        for synced in (True, False):
            out = self._synced if synced else self._unsynced
            if not out.records:
                continue
            if synced:
                self._synced = _Outgoing()
            else:
                self._unsynced = _Outgoing()
            if out.size > _MESSAGE_BYTES:
                self._send_in_parts(out)
                continue
            data = body if body and count == len(out.records) else encode_records(out.records)
            self._prepare(out.last, data)
        # A tick has one message for each durability: what else comes goes with the next one.
        self.peer.flush()

    def _send_in_parts(self, out: _Outgoing) -> None:
        """Send what is large in several messages, each partition's records in one of them.

        A tail that is proposed again must be taken as a whole, or not at all: half of it would
        end the history of what is committed behind it.
        """
        of_streams: dict[Stream, list[LogRecord]] = {}
        streams: dict[tuple[int, int], Stream] = {
            stream.replica.gpid: stream for stream in out.last
        }
        for record in out.records:
            of_streams.setdefault(streams[record[0], record[1]], []).append(record)
        part = _Outgoing()
        for stream, records in of_streams.items():
            part.records += records
            part.last[stream] = out.last[stream]
            part.size += sum(len(record.payload) for record in records)
            if part.size > _MESSAGE_BYTES:
                self._prepare(part.last, encode_records(part.records))
                part = _Outgoing()
        if part.records:
            self._prepare(part.last, encode_records(part.records))

    def _prepare(self, last: dict[Stream, int], data: bytes) -> None:
        sent_ms = self._now_ms()
        for stream in last:
            if stream.waiting_since_ms is None:
                stream.waiting_since_ms = sent_ms

        size = len(data)

        def done(reply: list[Any] | None) -> None:
            self.unanswered_bytes -= size
            self._on_prepared(last, sent_ms, reply)

        if self.peer.submit((_PREPARE, _TIMEOUT_MS, data), done, size):
            self.unanswered_bytes += size
            self.was_full = self.was_full or self.full
        else:
            for stream in last:
                stream.close(sent_ms)

    def _on_prepared(self, last: dict[Stream, int], sent_ms: int, reply: list[Any] | None) -> None:
        now_ms = self._now_ms()
        if reply is None or reply[1] != 0:
            if reply is not None:
                _log.warning("node %s refused records: %s", self.peer.node_id, reply[2])
            for stream in last:
                stream.close(now_ms)
            return
        refused = _pairs(reply[2], 4)
        acknowledged: list[tuple[Stream, int]] = []
        for stream, decree in last.items():
            if refused and tuple(stream.replica.gpid) in refused:
                stream.close(now_ms)
                continue
            if decree > stream.acknowledged:
                stream.acknowledged = decree
            stream.leased_ms = max(stream.leased_ms, sent_ms)
            stream.waiting_since_ms = None if decree >= stream.sent else now_ms
            acknowledged.append((stream, sent_ms))
        self._on_acknowledged(self, acknowledged)

    def beacon(self, streams: Iterable[Stream]) -> None:
        """Say that the primary is there, and what it has committed: who agrees gives a lease."""
        opened = [stream for stream in streams if stream.opened]
        for begin in range(0, len(opened), _BEACON_STREAMS_MAX):
            self._beacon(opened[begin : begin + _BEACON_STREAMS_MAX], leases=True)

    def tell(self, streams: list[Stream]) -> None:
        """Say what the primary has committed to those who have just given a lease."""
        for begin in range(0, len(streams), _BEACON_STREAMS_MAX):
            self._beacon(streams[begin : begin + _BEACON_STREAMS_MAX], leases=False)

    def _beacon(self, named: list[Stream], *, leases: bool) -> None:
        fields: list[int] = []
        for stream in named:
            replica = stream.replica
            stream.told = replica.machine.committed
            fields += (*replica.gpid, stream.ballot, stream.told)
        sent_ms = self._now_ms()
        pins = [pin for stream in named for pin in stream.replica.held_pins()]

        def done(reply: list[Any] | None) -> None:
            self._on_beacon(named, sent_ms, reply, leases=leases)

        if self.peer.submit((_BEACON, _TIMEOUT_MS, fields, self._wall_us(), pins), done):
            if self.beacon_since_ms is None:
                self.beacon_since_ms = sent_ms
        else:
            for stream in named:
                stream.close(sent_ms)

    def _on_beacon(
        self, named: list[Stream], sent_ms: int, reply: list[Any] | None, *, leases: bool
    ) -> None:
        now_ms = self._now_ms()
        self.beacon_since_ms = None
        if reply is None or reply[1] != 0:
            for stream in named:
                stream.close(now_ms)
            return
        refused = _pairs(reply[2], 3)
        self.ahead_us = reply[3] - self._wall_us()
        if not leases and not refused:
            return
        acknowledged: list[tuple[Stream, int]] = []
        for stream in named:
            if refused and tuple(stream.replica.gpid) in refused:
                stream.close(now_ms)
            else:
                stream.leased_ms = max(stream.leased_ms, sent_ms)
                acknowledged.append((stream, sent_ms))
        self._on_acknowledged(self, acknowledged)


def _pairs(flat: list[int], width: int) -> set[tuple[int, int]]:
    """Return the partitions that a flat list of `width` numbers each names."""
    return {(flat[place], flat[place + 1]) for place in range(0, len(flat), width)}
