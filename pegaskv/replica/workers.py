"""The threads of one replica server."""

from pegaskv.runtime.worker import Worker

__all__ = ["Workers"]


class Workers:
    """The threads of one replica server; a sync never waits behind a scan or a flush."""

    def __init__(self, *, log: Worker, apply: Worker, scan: Worker, upkeep: Worker) -> None:
        self.log = log
        self.apply = apply
        self.scan = scan
        self.upkeep = upkeep
