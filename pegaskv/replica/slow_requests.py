"""Requests that took long: counted all, logged few, so that a slow hour cannot fill a disk.

Nothing is measured for this on the hot path of a table without the env. A range read or a
page of a scan knows when it came, and writes are looked at once for each batch; single
rows are timed on a table that has `replica.slow_query_threshold` set.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from pegaskv.base.types import Gpid
from pegaskv.codec.keys import RESERVED_PREFIX, decode_key
from pegaskv.codec.operations import Operation
from pegaskv.replica.batch import Batch

__all__ = ["SlowRequests", "Slowable"]

_log = logging.getLogger(__name__)

_INTERVAL_MS: Final = 10_000
_KEY_BYTES_MAX: Final = 64


class Slowable(Protocol):
    """What is asked of a replica here."""

    gpid: Gpid
    slow_ms: int
    slow_read_requests: int
    slow_write_requests: int


class SlowRequests:
    """Counts slow requests on their replicas, and logs `lines_max` of them in ten seconds."""

    def __init__(
        self,
        *,
        now_ms: Callable[[], int],
        table_name: Callable[[int], str],
        lines_max: int,
    ) -> None:
        self.now_ms = now_ms
        self._table_name = table_name
        self._lines_max = lines_max
        self._interval = -1
        self._lines = 0
        self._unlogged = 0

    def on_read(
        self, replica: Slowable, client: str, message: list[Any], took_ms: int, *, waited_ms: int
    ) -> None:
        """A read took long; `waited_ms` of it in front of the thread that reads."""
        replica.slow_read_requests += 1
        if self._may_log():
            # A scan has none, and a batch many.
            key = message[5][0] if message[1] == Operation.BATCH_GET else message[5]
            has_key = message[1] != Operation.SCAN
            _log.warning(
                "slow request: %s operation=%s client=%s%s took %d ms "
                "(waited %d, read %d), threshold %d ms%s",
                self._partition(replica),
                Operation(message[1]).name.lower(),
                client,
                f" hash_key={_shown(key)}" if has_key else "",
                took_ms,
                waited_ms,
                took_ms - waited_ms,
                replica.slow_ms,
                self._more(),
            )

    def on_batch(self, replica: Slowable, batch: Batch, took_ms: int) -> None:
        """The writes of a batch took long; the first of them has waited longest."""
        replica.slow_write_requests += len(batch.replies)
        if batch.replies and self._may_log():
            keys = [each for each in batch.rows if each[:2] != RESERVED_PREFIX]
            key = f" hash_key={_shown(decode_key(keys[0])[0])}" if keys else ""
            _log.warning(
                "slow request: %s operation=write client=%s%s took %d ms with %d requests and "
                "%d rows in its batch, threshold %d ms%s",
                self._partition(replica),
                batch.replies[0][0].address,
                key,
                took_ms,
                len(batch.replies),
                len(keys),
                replica.slow_ms,
                self._more(),
            )

    def _may_log(self) -> bool:
        interval = self.now_ms() // _INTERVAL_MS
        if interval != self._interval:
            self._interval = interval
            self._lines = 0
        if self._lines >= self._lines_max:
            self._unlogged += 1
            return False
        self._lines += 1
        return True

    def _more(self) -> str:
        unlogged, self._unlogged = self._unlogged, 0
        return f" (and {unlogged} lines more that were not logged)" if unlogged else ""

    def _partition(self, replica: Slowable) -> str:
        return f"table={self._table_name(replica.gpid.table_id)} partition={replica.gpid}"


def _shown(key: bytes) -> str:
    """Return the beginning of a key in quotes, with an escape for what is not printable ASCII."""
    text = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}"
        for byte in key[:_KEY_BYTES_MAX]
    )
    rest = len(key) - _KEY_BYTES_MAX
    return f'"{text}"' + (f"+{rest} bytes" if rest > 0 else "")
