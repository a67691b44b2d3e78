"""Client reads. On the hot path: a get is answered inline, from the loop.

A warm get costs about a microsecond here and some eighty through a thread, so
single rows and lists of rows are read on the loop. Range reads and scans may walk
over anything, so they run in a thread on a snapshot taken on the loop, bounded by
time, and so many may wait.
"""

from collections.abc import Callable
from struct import Struct
from typing import Any

from xxhash import xxh3_64_intdigest

from pegaskv.base.errors import (
    Busy,
    CorruptionError,
    InternalError,
    InvalidArgument,
    InvalidData,
    RequestError,
    Timeout,
    WrongPartition,
)
from pegaskv.base.limits import BATCH_ROWS_MAX, OPERATION_ROWS_MAX, PAGE_BYTES_MAX, PAGE_TIME_MS_MAX
from pegaskv.codec.keys import encode_key
from pegaskv.codec.operations import ANY_MEMBER, Operation, RangeFlag, ScanFlag
from pegaskv.codec.values import (
    LEAST_EXPIRY,
    ROW_HEADER_BYTES,
    is_visible,
    row_expiry,
    seconds_since_epoch,
)
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.net.detour import Detour
from pegaskv.replica.fields import (
    check_filter,
    check_flags,
    check_integer,
    check_row,
    explain_target,
    require_hash_key,
)
from pegaskv.replica.lane import SLICE_BYTES, SLICE_ROWS, Lane, Steps
from pegaskv.replica.read_line import ReadLine
from pegaskv.replica.reads import RangeRead, ScanRead, multi_get_keys, multi_get_range, scan
from pegaskv.replica.replica import Replica
from pegaskv.replica.slow_requests import SlowRequests
from pegaskv.runtime.clock import Clock
from pegaskv.storage.engine import Snapshot

__all__ = ["ReadHandlers"]

_pack_length = Struct(">H").pack
_RANGE_FLAGS = int(~RangeFlag(0))
_SCAN_FLAGS = int(~ScanFlag(0))
# Where a request without a usable time limit gives up waiting for its thread.
_DEFAULT_TIMEOUT_MS = 30_000


class ReadHandlers:
    """The handlers of all read operations, over one server's replicas."""

    def __init__(
        self,
        replicas: dict[tuple[int, int], Replica],
        closed: dict[tuple[int, int], str],
        *,
        clock: Clock,
        line: ReadLine,
        lane: Lane,
        scans_waiting_max: int,
        on_corruption: Callable[[Replica, BaseException], RequestError],
        guarded: Handler,
        slow: SlowRequests,
    ) -> None:
        self._replicas = replicas
        self._closed = closed
        self._clock = clock
        self._line = line
        self._lane = lane
        self._scans_waiting_max = scans_waiting_max
        self._on_corruption = on_corruption
        self._guarded = guarded
        self._slow = slow
        self._handlers = self.handlers()

    def handlers(self) -> dict[int, Handler]:
        """Return the handler of each operation."""
        return {
            Operation.GET: self.on_get,
            Operation.TTL: self.on_ttl,
            Operation.BATCH_GET: self.on_batch_get,
            Operation.MULTI_GET: self.on_multi_get,
            Operation.SCAN: self.on_scan,
        }

    def on_get(self, connection: ServerConnection, message: list[Any]) -> None:
        """One row's value, or nil."""
        try:
            request_id, _, _, table_id, index, hash_key, sort_key = message
            replica = self._replicas[table_id, index]
        except (ValueError, KeyError, TypeError):
            raise self._elsewhere(message, 7) from None
        if type(hash_key) is not bytes or type(sort_key) is not bytes or len(hash_key) > 65_534:
            check_row(hash_key, sort_key)
        # True and 1.0 find what 1 finds.
        if type(table_id) is not int or type(index) is not int:
            raise explain_target(message, 7, self._closed)
        if xxh3_64_intdigest(hash_key or sort_key) & replica.mask != index:
            raise WrongPartition(f"the row does not belong to partition {replica.gpid}")
        if not replica.unguarded:
            if not replica.serving:
                raise replica.refusal()
            self._guarded(connection, message)
            return
        replica.reads += 1
        key = _pack_length(len(hash_key)) + hash_key + sort_key
        # `Replica.get`, written out for what was read lately.
        row = None if replica.applying else replica.cache.young.get(key)
        if row is None:
            row = self._get(replica, key)
        if row is None or (
            (row >= LEAST_EXPIRY or row[11] & 1) and not is_visible(row, self._now())
        ):
            connection.out.append((request_id, 0, None))
            return
        connection.out_bytes += len(row)
        connection.out.append((request_id, 0, row[ROW_HEADER_BYTES:]))

    def on_ttl(self, connection: ServerConnection, message: list[Any]) -> None:
        """The seconds that a row has left: -1 for ever, -2 absent."""
        replica, (hash_key, sort_key) = self._target(message, 7)
        check_row(hash_key, sort_key)
        self._check_partition(replica, hash_key or sort_key)
        replica.reads += 1
        row = self._get(replica, encode_key(hash_key, sort_key))
        now = self._now()
        if row is None or not is_visible(row, now):
            seconds = -2
        else:
            expiry = row_expiry(row)
            seconds = expiry - now if expiry else -1
        connection.out.append((message[0], 0, seconds))

    def on_batch_get(self, connection: ServerConnection, message: list[Any]) -> None:
        """Rows of any hash keys of one partition, in the order asked; nil for absent ones."""
        replica, (flat,) = self._target(message, 6)
        if type(flat) is not list or not flat or len(flat) % 2:
            raise InvalidArgument("the rows must be a flat list [hash key, sort key, ...]")
        if len(flat) > 2 * BATCH_ROWS_MAX:
            raise InvalidData(f"a batch holds at most {BATCH_ROWS_MAX} rows")
        steps = self._batch_get(connection, message[0], replica, flat)
        self._lane.begin(connection, connection, message[0], steps, rows=len(flat) // 2)

    def _batch_get(
        self, connection: ServerConnection, request_id: int, replica: Replica, flat: list[Any]
    ) -> Steps:
        values: list[bytes | None] = []
        now = self._now()
        served, ballot = replica.serving, replica.machine.ballot
        size = charged = 0
        yielded = False
        for position in range(0, len(flat), 2):
            if size - charged > SLICE_BYTES or (position and position % (2 * SLICE_ROWS) == 0):
                yielded, charged = True, size
                yield
                if (served and not replica.serving) or replica.machine.ballot != ballot:
                    raise replica.refusal()
            hash_key, sort_key = flat[position], flat[position + 1]
            check_row(hash_key, sort_key)
            self._check_partition(replica, hash_key or sort_key)
            replica.reads += 1
            row = self._get(replica, encode_key(hash_key, sort_key))
            if row is None or not is_visible(row, now):
                values.append(None)
                continue
            size += len(row)
            if size > 8 * PAGE_BYTES_MAX:
                raise InvalidData(
                    f"the values of this batch have more than {8 * PAGE_BYTES_MAX} bytes",
                    hint="ask for fewer rows at once",
                )
            values.append(row[ROW_HEADER_BYTES:])
        if yielded and replica.read_gate is not None:
            # What is answered at once is charged by who guards the replica.
            replica.read_gate.charge(size)
        connection.out_bytes += size
        connection.finish((request_id, 0, values))

    def on_multi_get(self, connection: ServerConnection, message: list[Any]) -> None:
        """Rows of one hash key: exactly those named, or a range with a filter."""
        replica, fields = self._target(message, 14)
        hash_key, sort_keys, start, stop, flags, kind, pattern, rows_max, bytes_max = fields
        require_hash_key(hash_key)
        self._check_partition(replica, hash_key)
        check_flags(flags, _RANGE_FLAGS)
        check_integer("the row limit", rows_max)
        check_integer("the byte limit", bytes_max)
        read = RangeRead(hash_key, start, stop, flags, kind, pattern, rows_max, bytes_max)
        if sort_keys is None:
            check_row(hash_key, start)
            check_row(hash_key, stop)
            check_filter("sort-key", kind, pattern)
            self._in_thread(
                connection,
                message,
                replica,
                lambda snapshot, now, is_late: multi_get_range(
                    snapshot, read, now=now, is_late=is_late
                ),
            )
            return
        if type(sort_keys) is not list or not sort_keys:
            raise InvalidArgument("the sort keys must be a list of at least one, or nil")
        if len(sort_keys) > OPERATION_ROWS_MAX:
            raise InvalidData(f"at most {OPERATION_ROWS_MAX} sort keys may be named at once")
        if len(sort_keys) > SLICE_ROWS:
            self._in_thread(
                connection,
                message,
                replica,
                lambda snapshot, now, is_late: multi_get_keys(
                    snapshot.get, read, sort_keys, now=now, is_late=is_late
                ),
            )
            return
        replica.reads += 1
        try:
            complete, found, last = multi_get_keys(
                replica.get, read, sort_keys, now=self._now(), is_late=_never_late
            )
        except CorruptionError as error:
            raise self._on_corruption(replica, error) from error
        connection.out_bytes += sum(map(len, found))
        connection.out.append((message[0], 0, complete, found, last))

    def on_scan(self, connection: ServerConnection, message: list[Any]) -> None:
        """One page of a scan over a partition's rows in stored-key order."""
        replica, fields = self._target(message, 16)
        start, stop, flags, hash_kind, hash_pattern, sort_kind, sort_pattern = fields[:7]
        value_kind, value_pattern, rows_max, bytes_max = fields[7:]
        if type(start) is not bytes or type(stop) is not bytes:
            raise InvalidArgument("start and stop of a scan must be bytes")
        check_flags(flags, _SCAN_FLAGS)
        check_filter("hash-key", hash_kind, hash_pattern)
        check_filter("sort-key", sort_kind, sort_pattern)
        check_filter("value", value_kind, value_pattern)
        check_integer("the row limit", rows_max)
        check_integer("the byte limit", bytes_max)
        read = ScanRead(
            start,
            stop,
            flags,
            hash_kind,
            hash_pattern,
            sort_kind,
            sort_pattern,
            value_kind,
            value_pattern,
            rows_max,
            bytes_max,
        )
        self._in_thread(
            connection,
            message,
            replica,
            lambda snapshot, now, is_late: scan(snapshot, read, now=now, is_late=is_late),
        )

    def _in_thread(
        self,
        connection: ServerConnection,
        message: list[Any],
        replica: Replica,
        read: Callable[[Snapshot, int, Callable[[], bool]], tuple[Any, Any, Any]],
    ) -> None:
        """Answer with what `read` returns of a snapshot, from the worker's thread."""
        if connection.output_paused:
            # Pages that nobody takes would only pile up.
            raise Busy("the replies before this one are not read", details={"retry_after_ms": 50})
        if self._line.pending >= self._scans_waiting_max:
            raise Busy("too many scans are waiting", details={"retry_after_ms": 50})
        replica.scans += 1
        request_id = message[0]
        clock = self._clock
        now = self._now()
        ballot = replica.machine.ballot
        came_ms = started = clock.monotonic_ms()
        give_up_at = came_ms + _time_limit_ms(message[2])
        connection.defer()

        def work(snapshot: Snapshot) -> tuple[Any, Any, Any]:
            nonlocal started
            try:
                started = clock.monotonic_ms()
                if connection.closed or started > give_up_at:
                    raise Timeout("the read waited longer for its turn than its time limit")
                return read(
                    snapshot, now, lambda: clock.monotonic_ms() - started > PAGE_TIME_MS_MAX
                )
            finally:
                snapshot.close()

        def done(result: tuple[Any, Any, Any] | None, error: BaseException | None) -> None:
            if result is not None and not (replica.leased and replica.machine.ballot == ballot):
                # What was read may have been old by then.
                result, error = None, replica.refusal()
            if result is not None:
                found = next(part for part in result if type(part) is list)
                size = _bytes_of(found)
                connection.out_bytes += size
                connection.finish((request_id, 0, *result))
                if replica.read_gate is not None:
                    replica.read_gate.charge(size)
            else:
                assert error is not None
                connection.finish(
                    connection.error(request_id, self._as_request_error(replica, error))
                )
            took_ms = clock.monotonic_ms() - came_ms
            if took_ms >= replica.slow_ms:
                waited_ms = started - came_ms
                self._slow.on_read(
                    replica, connection.address, message, took_ms, waited_ms=waited_ms
                )
            connection.flush()

        def begin(snapshot: Snapshot | BaseException) -> None:
            if isinstance(snapshot, BaseException):
                done(None, snapshot)
            else:
                self._line.submit(connection, lambda: work(snapshot), done)

        replica.snapshot_then(begin)

    def _as_request_error(self, replica: Replica, error: BaseException) -> RequestError:
        if isinstance(error, RequestError):
            return error
        if isinstance(error, CorruptionError):
            return self._on_corruption(replica, error)
        if isinstance(error, MemoryError):
            return Busy(
                f"no memory to read from partition {replica.gpid}",
                details={"retry_after_ms": 200},
            )
        return InternalError(f"reading partition {replica.gpid} failed: {error}")

    def _get(self, replica: Replica, key: bytes) -> bytes | None:
        try:
            return replica.get(key)
        except CorruptionError as error:
            raise self._on_corruption(replica, error) from error

    def _elsewhere(self, message: list[Any], length: int) -> Exception:
        """Return what becomes of a read whose partition is not here under its index."""
        if len(message) == length and type(message[4]) is int and message[4] & ANY_MEMBER:
            return Detour(self._on_any_member)
        return explain_target(message, length, self._closed)

    def _on_any_member(self, connection: ServerConnection, message: list[Any]) -> None:
        """A read that a secondary may answer, from what it has applied."""
        plain = [*message[:4], message[4] & ~ANY_MEMBER, *message[5:]]
        replica = None
        if type(plain[3]) is int:
            replica = self._replicas.get((plain[3], plain[4]))
        if replica is None:
            raise explain_target(plain, len(plain), self._closed)
        if replica.serving:
            self._handlers[plain[1]](connection, plain)
            return
        if not replica.may_answer_late(self._clock.monotonic_ms()):
            raise replica.refusal()
        replica.unguarded = True
        try:
            self._handlers[plain[1]](connection, plain)
        finally:
            replica.raise_guards()

    def _target(self, message: list[Any], length: int) -> tuple[Replica, list[Any]]:
        """Return the serving replica that a message names, and the fields behind it."""
        try:
            replica = self._replicas[message[3], message[4]]
        except (IndexError, KeyError, TypeError):
            raise self._elsewhere(message, length) from None
        if len(message) != length or type(message[3]) is not int or type(message[4]) is not int:
            raise explain_target(message, length, self._closed)
        if not replica.unguarded:
            raise Detour(self._guarded) if replica.serving else replica.refusal()
        return replica, message[5:]

    @staticmethod
    def _check_partition(replica: Replica, hashed: bytes) -> None:
        if xxh3_64_intdigest(hashed) & replica.mask != replica.index:
            raise WrongPartition(f"the row does not belong to partition {replica.gpid}")

    def _now(self) -> int:
        return seconds_since_epoch(self._clock.wall_us())


def _bytes_of(found: list[Any]) -> int:
    """Return the bytes of a flat list of keys and values, or of keys, values and expiries."""
    if len(found) > 2 and type(found[2]) is int:
        return sum(map(len, found[::3])) + sum(map(len, found[1::3]))
    return sum(map(len, found))


def _never_late() -> bool:
    return False


def _time_limit_ms(field: Any) -> int:
    """Return a request's time limit; it may stand in an array with what a later version adds."""
    limit = field[0] if type(field) is list and field else field
    return limit if type(limit) is int and limit > 0 else _DEFAULT_TIMEOUT_MS
