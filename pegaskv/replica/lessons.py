"""What a learner asks of a primary, what the answers must be, and the log page by page.

Answers come from another server: each is checked before anything is done with it, and a
record that is not the next one never reaches the log.
"""

from dataclasses import dataclass
from typing import Any, Final, Protocol

from pegaskv.base.errors import CorruptionError
from pegaskv.base.types import Gpid
from pegaskv.codec.operations import Operation
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope
from pegaskv.storage.engine import Engine, ReplicaState
from pegaskv.storage.log_format import FRAME_BYTES, decode_records
from pegaskv.storage.mutation_log import LogRecord

__all__ = [
    "PAGE_TIMEOUT_MS",
    "Adoption",
    "LearnPeer",
    "LearnerHost",
    "LogReader",
    "Plan",
    "Progress",
    "read_plan",
]

PAGE_TIMEOUT_MS: Final = 15_000
_LOG_PAGE_BYTES: Final = 1024 * 1024
_JOIN_PAUSE_MS: Final = 20
_FILES_MAX: Final = 20_000


class LearnPeer(Protocol):
    """The way to the primary."""

    async def request(self, operation: int, timeout_ms: int, *fields: Any) -> list[Any]:
        """Return the fields of the reply; raises RequestError, Unavailable or Timeout."""
        ...


class LearnerHost(Protocol):
    """What the server does for its learner."""

    def next_incarnation(self) -> int:
        """Return a number that no replica of this server ever had."""
        ...

    async def append(self, gpid: Gpid, records: list[LogRecord]) -> None:
        """Put committed records of the new incarnation into the log; return when durable.

        They come in decree order. Those above the replica's decree are its history; those at or
        below it are for duplications only.
        """
        ...

    async def join(self, gpid: Gpid, next_decree: int) -> bool:
        """Ask the primary for everything from `next_decree` on; False: copy more log first."""
        ...


@dataclass(frozen=True, slots=True)
class Adoption:
    """Who leads a partition that this server is to learn, and under which ballot."""

    gpid: Gpid
    ballot: int
    primary: str
    peer: LearnPeer


@dataclass(slots=True)
class Plan:
    """What the primary said that must be copied."""

    first_decree: int
    pins: dict[str, int]
    checkpoint: tuple[str, ReplicaState, list[tuple[str, int]]] | None


@dataclass(slots=True)
class Progress:
    """How far a partition is; `step_ms` is when it last came forward."""

    step_ms: int
    copied: int = 0
    total: int = 0
    # What was made durable of which engine, since this copy began.
    secured: tuple[Engine, ReplicaState] | None = None


def read_plan(reply: list[Any]) -> Plan:
    """Read what LEARN_BEGIN answers.

    Raises:
        CorruptionError: it is something else.

    """
    match reply:
        case [bool(), int(first_decree), dict(pins), checkpoint] if first_decree > 0:
            pass
        case _:
            raise CorruptionError("the answer to LEARN_BEGIN is not one")
    for name, decree in pins.items():
        if type(name) is not str or type(decree) is not int or decree < 0:
            raise CorruptionError("the pins in the answer to LEARN_BEGIN are none")
    match checkpoint:
        case None:
            return Plan(first_decree, pins, None)
        case [str(name), bytes(state), [*entries]] if len(entries) <= _FILES_MAX:
            files: list[tuple[str, int]] = []
            for entry in entries:
                match entry:
                    case [str(file), int(size)]:
                        files.append((file, size))
                    case _:
                        raise CorruptionError(f"a checkpoint with a file {entry!r}")
            return Plan(first_decree, pins, (name, ReplicaState.decode(state), files))
    raise CorruptionError("the checkpoint in the answer to LEARN_BEGIN is none")


class LogReader:
    """Copies the log of one partition; where it is outlives an attempt."""

    def __init__(
        self,
        host: LearnerHost,
        node_id: str,
        adoption: Adoption,
        incarnation: int,
        first_decree: int,
    ) -> None:
        self._host = host
        self._node_id = node_id
        self._adoption = adoption
        self._incarnation = incarnation
        # Of what is durable here.
        self._next = first_decree
        self._ballot = 0

    async def run(self, clock: Clock, progress: Progress) -> None:
        """Copy and join."""
        async with TaskScope(f"log of {self._adoption.gpid}") as scope:
            page = await self._request(self._next)
            while True:
                records, commit_point = self._read(page)
                if not records:
                    if await self._host.join(self._adoption.gpid, self._next):
                        return
                    await clock.sleep_ms(_JOIN_PAUSE_MS)
                    page = await self._request(self._next)
                    continue
                last = records[-1].decree
                # The next page is on its way while this one becomes durable.
                more = scope.start("page", self._request(last + 1)) if last < commit_point else None
                await self._host.append(self._adoption.gpid, records)
                self._next, self._ballot = last + 1, records[-1].ballot
                progress.copied += sum(len(record.payload) for record in records)
                progress.step_ms = clock.monotonic_ms()
                if more is None:
                    if await self._host.join(self._adoption.gpid, self._next):
                        return
                    page = await self._request(self._next)
                else:
                    page = await more

    async def _request(self, first_decree: int) -> list[Any]:
        adoption = self._adoption
        return await adoption.peer.request(
            Operation.LEARN_LOG,
            PAGE_TIMEOUT_MS,
            *adoption.gpid,
            adoption.ballot,
            self._node_id,
            first_decree,
            _LOG_PAGE_BYTES,
        )

    def _read(self, page: list[Any]) -> tuple[list[LogRecord], int]:
        """Return the page's records as the own log takes them, and the commit point.

        Raises:
            CorruptionError: they are not the ones that come next.

        """
        match page:
            case [bytes(body), int(commit_point), int()]:
                # Without the frame that a block has around them.
                records = decode_records(body, -FRAME_BYTES, len(body))
            case _:
                raise CorruptionError("a page of log is not what was asked for")
        gpid, ballot = self._adoption.gpid, self._ballot
        for place, record in enumerate(records):
            if (
                record[:2] != gpid
                or record.decree != self._next + place
                or record.decree > commit_point
                or not ballot <= record.ballot <= self._adoption.ballot
            ):
                raise CorruptionError(
                    f"a page of the log of partition {gpid} has {record[:5]} in the place of "
                    f"decree {self._next + place}"
                )
            ballot = record.ballot
        return [
            # All of it is committed, and a restart may know.
            record._replace(incarnation=self._incarnation, committed=record.decree)
            for record in records
        ], commit_point
