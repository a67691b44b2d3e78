"""The threads of one replica server."""

from pegaskv.replica.read_line import ReadLine
from pegaskv.runtime.worker import Worker

__all__ = ["Workers"]


class Workers:
    """The threads of one replica server; a sync never waits behind a scan or a flush.

    `segments` makes the log's next segment while the last one fills: behind a few flushes it
    would come too late, and no write goes on without it.
    """

    def __init__(
        self, *, log: Worker, segments: Worker, apply: Worker, scan: Worker, upkeep: Worker
    ) -> None:
        self.log = log
        self.segments = segments
        self.apply = apply
        self.scan = scan
        # Reads of clients, in their turns.
        self.reads = ReadLine(scan)
        self.upkeep = upkeep
