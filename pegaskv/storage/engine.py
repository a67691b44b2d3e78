"""What holds one replica's rows: LevelDB, or memory under the same contract.

The engine is a cache of the mutation log. It is handed committed mutations only,
in decree order; each write carries the replica's state (decree, ballot, last
timestamp) in the same atomic batch, under a reserved key. After a crash it may be
at any earlier decree, but never below the last `flush`, and never with a hole.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from struct import Struct
from typing import Final, Protocol

from pegaskv.base.errors import CorruptionError, PegasKVError, UnsupportedFormat
from pegaskv.base.version import STATE_FORMAT

__all__ = [
    "STATE_KEY",
    "CheckpointInfo",
    "Engine",
    "EngineClosed",
    "EngineFactory",
    "ReplicaState",
    "Snapshot",
    "cuts_between",
    "in_chunks",
]

# The reserved key that holds `ReplicaState`.
STATE_KEY: Final = b"\xff\xffstate"

# What `in_chunks` reads ahead at most: so many rows, or about so many bytes.
_CHUNK_ROWS: Final = 32
_CHUNK_BYTES: Final = 64 * 1024

_row_of: Final = itemgetter(1)

_STATE: Final = Struct(">BQIQ")
_pack_state = _STATE.pack


class EngineClosed(PegasKVError):
    """The engine or snapshot was closed before or while it was used."""


@dataclass(slots=True)
class ReplicaState:
    """How far an engine is: the last decree applied, its ballot, and the clock at it."""

    decree: int = 0
    ballot: int = 0
    last_timestamp_us: int = 0

    def encode(self) -> bytes:
        """Return the bytes under `STATE_KEY`."""
        return _pack_state(STATE_FORMAT, self.decree, self.ballot, self.last_timestamp_us)

    @classmethod
    def decode(cls, data: bytes | None) -> "ReplicaState":
        """Read what `encode` wrote; None is an engine that was never written.

        Raises:
            CorruptionError: the bytes have a wrong length.
            UnsupportedFormat: the bytes were written by another version.

        """
        if data is None:
            return cls()
        if len(data) != _STATE.size:
            raise CorruptionError(f"replica state of {len(data)} bytes")
        version, decree, ballot, timestamp = _STATE.unpack(data)
        if version != STATE_FORMAT:
            raise UnsupportedFormat(f"replica state version {version}")
        return cls(decree, ballot, timestamp)


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A published checkpoint: its directory, its last decree, and (name, bytes) of its files."""

    path: Path
    decree: int
    files: tuple[tuple[str, int], ...]


def in_chunks(rows: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Cut an iteration into lists that are not empty, for whoever does more rows at once.

    A mark, (key, b""), is always the last of its list. Lists are short at the beginning, behind
    marks and where rows are large, so that little is read in vain when a page ends. What was read
    before an error comes before it.
    """
    most = 1
    while True:
        chunk: list[tuple[bytes, bytes]] = []
        failure = None
        try:
            # What came before an error stays in the list.
            chunk.extend(islice(rows, most))
        except Exception as error:  # noqa: BLE001 - raised below
            failure = error
        marked = not all(map(_row_of, chunk))
        if marked:
            yield from _ended_by_marks(chunk)
        elif chunk:
            yield chunk
        if failure is not None:
            raise failure
        if len(chunk) < most:
            return
        _, last = chunk[-1]
        most = 1 if marked else min(4 * most, _CHUNK_ROWS, _CHUNK_BYTES // len(last) + 1)


def _ended_by_marks(rows: list[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    begin = 0
    for end, (_, row) in enumerate(rows, 1):
        if not row or end == len(rows):
            yield rows[begin:end]
            begin = end


class Snapshot(Protocol):
    """The engine as it was at one moment; may be read from a worker thread."""

    def get(self, key: bytes) -> bytes | None:
        """Return the stored row."""
        ...

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False, marks: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, row) with start <= key < stop (b"" = no end) in key order, or downward.

        Reserved keys are yielded like any others: the caller bounds the range. With `marks` an
        engine that walks over many removed rows says so now and then by (key, b""): the walk
        may end there, and go on from that key.
        """
        ...

    def chunks(self, start: bytes, stop: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield what `iterate` yields upward with marks, as `in_chunks` cuts it."""
        ...

    def close(self) -> None:
        """Let the snapshot go; a second call does nothing."""
        ...


class Engine(Protocol):
    """One replica's rows. `get` and `write` are for the loop, the rest for a worker."""

    def get(self, key: bytes) -> bytes | None:
        """Return the stored row.

        Raises:
            CorruptionError: the table that holds it is damaged.

        """
        ...

    def write(self, rows: list[bytes | None], state: ReplicaState) -> None:
        """Apply a flat list [key, row, key, None = remove, ...] and the state, atomically.

        A row is never empty.

        Raises:
            OSError: the engine takes no more writes until it is opened again.

        """
        ...

    def snapshot(self) -> Snapshot:
        """Return the engine as it is now; cheap."""
        ...

    def state(self) -> ReplicaState:
        """Return the state of the last write."""
        ...

    def flush(self) -> int:
        """Make everything written before the call durable; return its decree."""
        ...

    def checkpoint(self, target: Path) -> CheckpointInfo:
        """Flush, and publish a copy of hard links as the new directory `target`.

        The directory that it is in must be there.
        """
        ...

    def compact(self, first: bytes = b"", last: bytes | None = None) -> None:
        """Rewrite the tables that have keys from `first` to `last` (None: to the end).

        Removed rows give their space back then.
        """
        ...

    def compaction_cuts(self, step_bytes: int) -> list[bytes]:
        """Return keys, in order, between which there are tables of about `step_bytes` each."""
        ...

    def size_bytes(self) -> int:
        """Roughly the bytes of all tables on disk."""
        ...

    def calm(self) -> bool:
        """Whether a write on the loop would not be made to wait."""
        ...

    def close(self) -> None:
        """Wait for what is under way, flush and close; a second call does nothing."""
        ...


class EngineFactory(Protocol):
    """Opens engines; the place where LevelDB or memory is chosen."""

    def open(self, path: Path) -> Engine:
        """Open or create the engine in directory `path`, removing LevelDB's own log first.

        Raises:
            CorruptionError: the tables do not open.

        """
        ...

    def open_checkpoint(self, checkpoint: Path, path: Path) -> Engine:
        """Open a new engine in `path` from a published checkpoint."""
        ...

    def salvage(self, path: Path, target: Path, known: ReplicaState) -> list[tuple[bytes, bytes]]:
        """Make a new engine in `target` of what can be read of the closed one in `path`.

        `known` is a state that its tables have reached at least. Returns the ranges (first and
        last stored key) in which rows may be lost; everywhere else all rows are as they were.

        Raises:
            CorruptionError: nothing can be told from what is left.

        """
        ...


def cuts_between(sizes: Iterable[tuple[bytes, int]], step_bytes: int) -> list[bytes]:
    """Return keys, in order, between which there are about `step_bytes`.

    `sizes` are first keys, in order, and the bytes that begin there.
    """
    cuts = [b""]
    size = 0
    for first, more in sizes:
        if size >= step_bytes and first > cuts[-1]:
            cuts.append(first)
            size = 0
        size += more
    return cuts[1:]
