"""What stands before the requests of a throttled table: windows, and a line to wait in.

A table's limit is shared out evenly to its partitions, as in Pegasus, so that nothing must
be agreed on between servers: each partition counts what it was asked in the second at
hand. Above the `delay` limit a request waits before it is done, above the `reject` limit
it is refused, after a pause. Both wait in one line for the whole server, which holds no
loop: a request in it is under way for its connection, which so stops reading at its
bounds, and the line is bounded too.

Tables without these envs have no gate, and nothing here is called for them. Rows that
come from other clusters pass no gate: what is throttled is clients.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from pegaskv.base.errors import Busy, RequestError
from pegaskv.base.throttling import Throttling
from pegaskv.codec.operations import Operation
from pegaskv.net.connection import Handler, ServerConnection

__all__ = ["Bucket", "Gate", "ThrottledLine", "Window", "bytes_in", "operations_in", "refusal"]

# One request may take more than a second's share; the seconds that follow pay for it, at
# most so many: with a limit that is far too low a table would else be closed for days.
_DEBT_SECONDS_MAX: Final = 10
# How exactly pauses end, and how many requests one turn of the loop takes out of the line.
_SLOT_MS: Final = 10
_TURN_REQUESTS: Final = 256
# What a batch_* request has for each of its rows.
_ROW_FIELDS: Final[Mapping[int, int]] = {
    Operation.BATCH_SET: 3,
    Operation.BATCH_DELETE: 2,
    Operation.BATCH_GET: 2,
}


class Window:
    """What one partition was asked in the second at hand, against one env's limits."""

    __slots__ = (
        "_second",
        "_used",
        "by_size",
        "delay_ms",
        "delay_units",
        "env",
        "reject_ms",
        "reject_units",
        "text",
    )

    def __init__(
        self, env: str, text: str, rule: Throttling, *, partition_count: int, by_size: bool
    ) -> None:
        self.env = env
        self.text = text
        self.by_size = by_size
        self.delay_units = _share(rule.delay.units, partition_count) if rule.delay else 0
        self.delay_ms = rule.delay.pause_ms if rule.delay else 0
        self.reject_units = _share(rule.reject.units, partition_count) if rule.reject else 0
        self.reject_ms = rule.reject.pause_ms if rule.reject else 0
        self._second = 0
        self._used = 0

    def rejects(self, now_ms: int) -> bool:
        """Whether nothing more is taken in this second."""
        second = now_ms // 1_000
        if second != self._second:
            if self.reject_units:
                most = min(self._used, _DEBT_SECONDS_MAX * self.reject_units)
                self._used = max(0, most - self.reject_units * (second - self._second))
            else:
                self._used = 0
            self._second = second
        return 0 < self.reject_units <= self._used

    def take(self, units: int) -> bool:
        """Count a request that is not rejected; return whether it must wait."""
        delayed = 0 < self.delay_units <= self._used
        self._used += units
        return delayed


class Bucket:
    """Bytes that may be read: filled evenly, and charged when it is known how many they were."""

    __slots__ = ("_bytes_a_second", "_filled_ms", "_level", "env", "reject_ms", "text")

    def __init__(self, env: str, text: str, rule: Throttling, *, partition_count: int) -> None:
        assert rule.reject is not None
        self.env = env
        self.text = text
        self.reject_ms = rule.reject.pause_ms
        self._bytes_a_second = _share(rule.reject.units, partition_count)
        # In thousandths of a byte, so that a millisecond is never worth nothing.
        self._level = self._bytes_a_second * 1_000
        self._filled_ms = 0

    def rejects(self, now_ms: int) -> bool:
        """Whether what was read before is not paid for yet."""
        rate = self._bytes_a_second
        passed_ms = max(0, now_ms - self._filled_ms)
        self._filled_ms = now_ms
        self._level = min(rate * 1_000, self._level + rate * passed_ms)
        return self._level <= 0

    def charge(self, size: int) -> None:
        """Take out `size` bytes that were read."""
        lowest = -_DEBT_SECONDS_MAX * self._bytes_a_second * 1_000
        self._level = max(lowest, self._level - size * 1_000)


class Gate:
    """All that stands before the reads, or the writes, of one replica."""

    __slots__ = ("bucket", "windows")

    def __init__(self, windows: tuple[Window, ...] = (), bucket: Bucket | None = None) -> None:
        self.windows = windows
        self.bucket = bucket

    def admit(self, message: list[Any], now_ms: int) -> tuple[int, Window | Bucket | None] | None:
        """Return None for a request that may be done now; else a pause in ms, and what refuses it.

        After the pause the request is refused, or done if there is nothing that refuses it.
        """
        bucket = self.bucket
        if bucket is not None and bucket.rejects(now_ms):
            return _patience(message, bucket.reject_ms), bucket
        for window in self.windows:
            if window.rejects(now_ms):
                return _patience(message, window.reject_ms), window
        pause_ms = 0
        for window in self.windows:
            if window.take(bytes_in(message) if window.by_size else operations_in(message)):
                pause_ms = max(pause_ms, _patience(message, window.delay_ms))
        return (pause_ms, None) if pause_ms else None

    def charge(self, size: int) -> None:
        """Say how many bytes a read of this replica had."""
        if self.bucket is not None:
            self.bucket.charge(size)


class ThrottledLine:
    """Where throttled requests of one server wait; `handlers` are called for them again.

    Invariant (`check`): `waiting` is the number of requests in all slots, and they are
    under way for their connections.
    """

    def __init__(self, *, now_ms: Callable[[], int], waiting_max: int) -> None:
        self.handlers: Mapping[int, Handler] = {}
        self.waiting = 0
        self.waiting_max = waiting_max
        # Set while a request is handled that has waited its time.
        self.releasing = False
        self._now_ms = now_ms
        # The requests that are due at the end of each slot of time.
        self._slots: dict[int, list[tuple[ServerConnection, list[Any], RequestError | None]]] = {}

    def hold(
        self,
        connection: ServerConnection,
        message: list[Any],
        pause_ms: int,
        refusal: RequestError | None,
    ) -> None:
        """Keep a request for `pause_ms`; then answer `refusal`, or handle it if that is None.

        Raises:
            RequestError: the line is full; `refusal`, if there is one.

        """
        if self.waiting >= self.waiting_max:
            raise refusal or Busy(
                f"{self.waiting_max} throttled requests are waiting on this server already",
                details={"retry_after_ms": pause_ms},
            )
        self.waiting += 1
        connection.defer()
        now_ms = self._now_ms()
        slot = -(-(now_ms + pause_ms) // _SLOT_MS)
        if slot not in self._slots:
            self._slots[slot] = []
            pause_s = (slot * _SLOT_MS - now_ms) / 1_000
            asyncio.get_running_loop().call_later(pause_s, self._release, slot)
        self._slots[slot].append((connection, message, refusal))

    def release_all(self) -> None:
        """Let nobody wait any longer: the server stops."""
        for slot in list(self._slots):
            asyncio.get_running_loop().call_soon(self._release, slot)

    def _release(self, slot: int) -> None:
        held = self._slots.get(slot)
        if held is None:
            # It was released early.
            return
        due, self._slots[slot] = held[:_TURN_REQUESTS], held[_TURN_REQUESTS:]
        if self._slots[slot]:
            asyncio.get_running_loop().call_later(0, self._release, slot)
        else:
            del self._slots[slot]
        self.waiting -= len(due)
        # A dictionary, since the order of a set of objects differs from run to run.
        touched: dict[ServerConnection, None] = {}
        for connection, message, refusal in due:
            touched[connection] = None
            if refusal is not None:
                connection.finish(connection.error(message[0], refusal))
                continue
            connection.in_flight -= 1
            if not connection.closed:
                self._handle(connection, message)
        for connection in touched:
            connection.flush()

    def _handle(self, connection: ServerConnection, message: list[Any]) -> None:
        self.releasing = True
        try:
            self.handlers[message[1]](connection, message)
        except Exception as error:  # noqa: BLE001 - as in the connection's own loop
            connection.refuse(message, error)
        finally:
            self.releasing = False

    def check(self) -> None:
        """Assert the invariants; tests call this."""
        assert self.waiting == sum(map(len, self._slots.values()))
        assert self.waiting <= self.waiting_max
        assert not self.releasing


def refusal(limit: Window | Bucket, now_ms: int, name: str) -> Busy:
    """Return the error for a request that `limit` refuses; `name` says to what it went."""
    return Busy(
        f"{name} was asked for more than `{limit.env}` allows in a second",
        hint=f"the env {limit.env}={limit.text} of the table limits it: send less at once, "
        "or change the env",
        details={"retry_after_ms": 1_000 - now_ms % 1_000, "throttled_by": limit.env},
    )


def operations_in(message: list[Any]) -> int:
    """Return what a request counts: each row of a batch_* request is an operation of its own."""
    width = _ROW_FIELDS.get(message[1])
    if width is None or type(message[5]) is not list:
        return 1
    return max(1, len(message[5]) // width)


def bytes_in(message: list[Any]) -> int:
    """Return the bytes of keys and values in a request whose fields nobody has checked."""
    size = 0
    for field in message[5:]:
        if type(field) is bytes:
            size += len(field)
        elif type(field) is list:
            for part in field:
                if type(part) is bytes:
                    size += len(part)
                elif type(part) is list:
                    size += sum(len(one) for one in part if type(one) is bytes)
    return size


def _share(units: int, partition_count: int) -> int:
    return -(-units // partition_count)


def _patience(message: list[Any], pause_ms: int) -> int:
    """Return a pause that leaves a request at least half of its time limit."""
    limit = message[2]
    if type(limit) is list and limit:
        limit = limit[0]
    return min(pause_ms, limit // 2) if type(limit) is int and limit > 0 else pause_ms
