"""What few tables need of every request, kept away from all others.

A replica's two flags, `unguarded` for reads and `checks_writes`, are what the hot path
looks at in any case (does it serve? is it a follower?). On a table that throttles or times
its requests they send a request round by `GuardedRequests`, which does that and then
calls the plain handler, with the guard taken away for this one call.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

from pegaskv.base.throttling import (
    READ_THROTTLING,
    READ_THROTTLING_BY_SIZE,
    SLOW_QUERY_MS_DEFAULT,
    SLOW_QUERY_THRESHOLD,
    WRITE_THROTTLING,
    WRITE_THROTTLING_BY_SIZE,
    Throttling,
    ThrottlingError,
    parse_read_size,
    parse_throttling,
)
from pegaskv.base.types import Gpid, TableInfo
from pegaskv.codec.operations import OPERATIONS
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.replica.counts import ReplicaCounts
from pegaskv.replica.slow_requests import SlowRequests
from pegaskv.replica.throttling import Bucket, Gate, ThrottledLine, Window, refusal

__all__ = ["Guarded", "GuardedRequests", "guard"]

_log = logging.getLogger(__name__)

_GUARDING: Final = (
    WRITE_THROTTLING,
    WRITE_THROTTLING_BY_SIZE,
    READ_THROTTLING,
    READ_THROTTLING_BY_SIZE,
    SLOW_QUERY_THRESHOLD,
)
_WRITES: Final = frozenset(
    operation for operation, specification in OPERATIONS.items() if specification.is_write
)


class Guarded(ReplicaCounts):
    """The part of a replica that says whether requests may go straight on.

    Invariant: `unguarded` is `serving` without a gate for reads; `checks_writes` is that
    there is a gate for writes, or `follower`.
    """

    gpid: Gpid
    unguarded = False
    checks_writes = False
    writes_guarded = False
    read_gate: Gate | None = None
    write_gate: Gate | None = None
    # From how many milliseconds on a request is slow, and whether single reads are timed too.
    slow_ms = SLOW_QUERY_MS_DEFAULT
    times_reads = False
    # What the gates were made from.
    guarded_by: Mapping[str, str] = {}
    table_name = ""

    _serving = False
    _follower = False

    @property
    def serving(self) -> bool:
        """Whether clients are served."""
        return self._serving

    @serving.setter
    def serving(self, serving: bool) -> None:
        self._serving = serving
        self.raise_guards()

    @property
    def follower(self) -> bool:
        """Whether this is the target of a duplication, which takes no writes of clients."""
        return self._follower

    @follower.setter
    def follower(self, follower: bool) -> None:
        self._follower = follower
        self.raise_guards()

    def raise_guards(self) -> None:
        """Bring the flags that the hot path looks at in line with the rest."""
        self.unguarded = self._serving and self.read_gate is None
        self.writes_guarded = self.write_gate is not None
        self.checks_writes = self._follower or self.writes_guarded

    def lower_guards(self) -> None:
        """Let the next request go straight on; `raise_guards` follows in the same turn."""
        self.unguarded = self._serving
        self.writes_guarded = False


class GuardedRequests:
    """Takes requests of guarded replicas; `handlers` are the plain ones."""

    def __init__(
        self,
        replicas: Mapping[tuple[int, int], Guarded],
        *,
        line: ThrottledLine,
        slow: SlowRequests,
    ) -> None:
        self._replicas = replicas
        self._line = line
        self._slow = slow
        self.handlers: Mapping[int, Handler] = {}

    def on_request(self, connection: ServerConnection, message: list[Any]) -> None:
        """Throttle and time a request whose shape and partition were found right."""
        replica = self._replicas[message[3], message[4]]
        write = message[1] in _WRITES
        gate = replica.write_gate if write else replica.read_gate
        now_ms = self._slow.now_ms()
        # What is refused in any case is not counted.
        counts = replica.serving and not (write and replica.follower)
        if gate is not None and counts and not self._line.releasing:
            found = gate.admit(message, now_ms)
            if found is not None:
                self._hold(connection, message, replica, *found, now_ms=now_ms)
                return
        before, in_flight = connection.out_bytes, connection.in_flight
        replica.lower_guards()
        try:
            self.handlers[message[1]](connection, message)
        finally:
            replica.raise_guards()
        if write or gate is None or connection.in_flight > in_flight:
            # Writes are timed by their batch, what is deferred where it ends.
            return
        gate.charge(connection.out_bytes - before)
        if replica.times_reads:
            took_ms = self._slow.now_ms() - now_ms
            if took_ms >= replica.slow_ms:
                self._slow.on_read(replica, connection.address, message, took_ms, waited_ms=0)

    def _hold(
        self,
        connection: ServerConnection,
        message: list[Any],
        replica: Guarded,
        pause_ms: int,
        limit: Window | Bucket | None,
        *,
        now_ms: int,
    ) -> None:
        error = None
        if limit is not None:
            name = f"partition {replica.gpid} of table `{replica.table_name}`"
            error = refusal(limit, now_ms, name)
        if message[1] in _WRITES:
            replica.throttling_rejected_write_requests += error is not None
            replica.throttling_delayed_write_requests += error is None
        else:
            replica.throttling_rejected_read_requests += error is not None
            replica.throttling_delayed_read_requests += error is None
        if error is not None and not pause_ms:
            raise error
        self._line.hold(connection, message, pause_ms, error)


def guard(replica: Guarded, table: TableInfo) -> None:
    """Make the gates that the envs of `table` ask for; those that did not change go on counting."""
    envs = {name: table.envs[name] for name in _GUARDING if name in table.envs}
    replica.table_name = table.name
    if envs == replica.guarded_by:
        return
    replica.guarded_by = envs
    count = table.partition_count
    writes = _windows(envs, WRITE_THROTTLING, WRITE_THROTTLING_BY_SIZE, count)
    replica.write_gate = Gate(writes) if writes else None
    reads = _windows(envs, READ_THROTTLING, "", count)
    bucket = _bucket(envs, count)
    slow = envs.get(SLOW_QUERY_THRESHOLD, "")
    # Another version of the software may have stored what this one cannot read.
    known = slow.isdigit() and slow.isascii()
    replica.slow_ms = int(slow) if known else SLOW_QUERY_MS_DEFAULT
    replica.times_reads = known
    replica.read_gate = Gate(reads, bucket) if reads or bucket or known else None
    replica.raise_guards()


def _windows(
    envs: Mapping[str, str], by_number: str, by_size: str, count: int
) -> tuple[Window, ...]:
    found = []
    for name in (by_number, by_size):
        rule = _read(envs, name)
        if rule is not None:
            text = envs[name]
            found.append(Window(name, text, rule, partition_count=count, by_size=name == by_size))
    return tuple(found)


def _bucket(envs: Mapping[str, str], count: int) -> Bucket | None:
    rule = _read(envs, READ_THROTTLING_BY_SIZE)
    if rule is None or rule.reject is None:
        return None
    text = envs[READ_THROTTLING_BY_SIZE]
    return Bucket(READ_THROTTLING_BY_SIZE, text, rule, partition_count=count)


def _read(envs: Mapping[str, str], name: str) -> Throttling | None:
    if name not in envs:
        return None
    try:
        return (
            parse_read_size(envs[name])
            if name == READ_THROTTLING_BY_SIZE
            else (parse_throttling(envs[name]))
        )
    except ThrottlingError as error:
        _log.warning("env %s is not understood, and left aside: %s", name, error)
        return None
