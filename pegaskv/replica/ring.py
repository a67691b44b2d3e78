"""The newest records of a partition while somebody learns it: what it joins the stream with."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from pegaskv.storage.log_format import LogRecord

__all__ = ["RING_BYTES_MAX", "Ring"]

# What a learner may have to catch up with at the moment at which it joins.
RING_BYTES_MAX: Final = 4 * 1024 * 1024


class Ring:
    """Invariant: consecutive decrees; above the bound the oldest go, but never the newest."""

    def __init__(self, records: Iterable[LogRecord]) -> None:
        self._records = deque(records)
        self._bytes = sum(len(record.payload) for record in self._records)

    def __iter__(self) -> Iterator[LogRecord]:
        return iter(self._records)

    @property
    def first_decree(self) -> int | None:
        """The oldest that is kept; None when nothing is."""
        return self._records[0].decree if self._records else None

    def add(self, record: LogRecord) -> None:
        """Keep a record; those of its decree and above, of older ballots, are void."""
        records = self._records
        while records and records[-1].decree >= record.decree:
            self._bytes -= len(records.pop().payload)
        if records and records[-1].decree != record.decree - 1:
            records.clear()
            self._bytes = 0
        records.append(record)
        self._bytes += len(record.payload)
        while self._bytes > RING_BYTES_MAX and len(records) > 1:
            self._bytes -= len(records.popleft().payload)
