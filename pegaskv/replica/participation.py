"""pure: what a partition takes part in: pins, sources, and how far each stream has come.

All of it is made by operations of the partition's own log, so every replica and every
checkpoint that is at one decree has the same. It stands under reserved keys of the engine:

| key | row |
|---|---|
| pin/ uuid | decree u64 of the PIN; 0 = broken: the log was let go, tombstones stay |
| source/ uuid | [cluster id, cluster uuid, cluster name, table id] of an incoming duplication |
| progress/ uuid, source count u32, source index u32 | decree u64, the source's clock there u64 |

While there is any pin or source, deletes stay as rows: a write that arrives late must find
the version that it lost against.
"""

from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Any, Final, NamedTuple

from pegaskv.base.errors import CorruptionError, WireError
from pegaskv.codec.keys import RESERVED_PREFIX, end_of_prefix
from pegaskv.codec.messages_duplication import UUID_BYTES
from pegaskv.codec.mutations import OperationKind
from pegaskv.codec.packing import pack, unpack

__all__ = [
    "BROKEN",
    "DURABILITY_KEY",
    "FENCE_KEY",
    "PIN_PREFIX",
    "PROGRESS_PREFIX",
    "RESERVED_RANGES",
    "SOURCE_PREFIX",
    "Participation",
    "SourceFacts",
    "StreamKey",
    "pack_progress",
    "participation_state",
    "unpack_progress",
]

# Reserved keys, beside `STATE_KEY` of the engine.
DURABILITY_KEY: Final = RESERVED_PREFIX + b"durability"
FENCE_KEY: Final = RESERVED_PREFIX + b"fence"
PIN_PREFIX: Final = RESERVED_PREFIX + b"pin/"
PROGRESS_PREFIX: Final = RESERVED_PREFIX + b"progress/"
SOURCE_PREFIX: Final = RESERVED_PREFIX + b"source/"

# Where an engine keeps what `Participation.read` wants.
RESERVED_RANGES: Final = tuple(
    (prefix, end_of_prefix(prefix)) for prefix in (PIN_PREFIX, PROGRESS_PREFIX, SOURCE_PREFIX)
)

# The second field of an UNPIN that keeps tombstones.
BROKEN: Final = b"broken"

_PROGRESS: Final = Struct(">QQ")
_STREAM: Final = Struct(f">{UUID_BYTES}sII")

# (decree, clock) to the row of a stream's progress.
pack_progress = _PROGRESS.pack
unpack_progress: Callable[[bytes], tuple[int, int]] = _PROGRESS.unpack


class StreamKey(NamedTuple):
    """One source partition of one incoming duplication."""

    uuid: bytes
    source_count: int
    source_index: int

    @classmethod
    def decode(cls, data: bytes) -> "StreamKey":
        """Read what follows the prefix of a progress key.

        Raises:
            CorruptionError: it has a wrong length.

        """
        if len(data) != _STREAM.size:
            raise CorruptionError(f"the progress key {data!r} has a wrong length")
        return cls(*_STREAM.unpack(data))


class SourceFacts(NamedTuple):
    """Who an incoming duplication comes from."""

    cluster_id: int
    cluster_uuid: str
    cluster_name: str
    table_id: int

    def encode(self) -> bytes:
        """Return the row of the source."""
        return pack(list(self))

    @classmethod
    def decode(cls, data: Any) -> "SourceFacts":
        """Read what `encode` wrote; what a later version adds at the end is left out.

        Raises:
            CorruptionError: it is something else.

        """
        try:
            fields = unpack(data)[: len(cls._fields)]
            if [type(field) for field in fields] != [int, str, str, int]:
                raise TypeError("fields of other types")
        except (WireError, TypeError) as error:
            raise CorruptionError(f"the facts of a source are damaged: {error}") from None
        return cls(*fields)


class Participation:
    """What the operations up to some place in the log have made of a partition.

    `pins` has the decree of each PIN (0 = broken), `progress` the (decree, clock) under what
    follows the prefix of the key.
    """

    __slots__ = ("pins", "progress", "sources")

    def __init__(self) -> None:
        self.pins: dict[bytes, int] = {}
        self.sources: dict[bytes, SourceFacts] = {}
        self.progress: dict[bytes, tuple[int, int]] = {}

    @classmethod
    def read(cls, rows: Iterable[tuple[bytes, bytes]]) -> "Participation":
        """Read the rows of `RESERVED_RANGES`.

        Raises:
            CorruptionError: one of them is damaged.

        """
        self = cls()
        for key, row in rows:
            if key.startswith(PIN_PREFIX):
                self.pins[key[len(PIN_PREFIX) :]] = int.from_bytes(row, "big")
            elif key.startswith(SOURCE_PREFIX):
                self.sources[key[len(SOURCE_PREFIX) :]] = SourceFacts.decode(row)
            else:
                self.note_progress(key, row)
        return self

    def copy(self) -> "Participation":
        """Return one that changes by itself."""
        copy = Participation()
        copy.pins = dict(self.pins)
        copy.sources = dict(self.sources)
        copy.progress = dict(self.progress)
        return copy

    @property
    def keeps_tombstones(self) -> bool:
        """Whether a delete stays as a row."""
        return bool(self.pins or self.sources)

    @property
    def holds_log(self) -> bool:
        """Whether there is a pin that is not broken."""
        return any(self.pins.values())

    def streams(self, uuid: bytes) -> Iterator[tuple[StreamKey, int, int]]:
        """Yield (stream, decree, clock) of an incoming duplication."""
        for key, (decree, clock_us) in self.progress.items():
            if key.startswith(uuid):
                yield StreamKey.decode(key), decree, clock_us

    def progress_in(self, rows: list[bytes | None]) -> dict[bytes, tuple[int, int]]:
        """Return how far the streams are that flat rows, just taken, have moved."""
        keys = [key for key in rows[::2] if key is not None and key.startswith(PROGRESS_PREFIX)]
        streams = [key[len(PROGRESS_PREFIX) :] for key in keys]
        return {stream: self.progress[stream] for stream in streams if stream in self.progress}

    def note_progress(self, key: bytes, row: bytes | None) -> None:
        """A stream's progress was written.

        Raises:
            CorruptionError: the row is damaged.

        """
        stream = key[len(PROGRESS_PREFIX) :]
        if row is None or len(row) != _PROGRESS.size or len(stream) != _STREAM.size:
            raise CorruptionError(f"the progress {key!r} is damaged: {row!r}")
        self.progress[stream] = _PROGRESS.unpack(row)

    def note_received(self, fields: list[bytes | None]) -> None:
        """Rows were received: progress, if any, comes last.

        Raises:
            CorruptionError: the fields are no pairs, or the progress is damaged.

        """
        if len(fields) % 2:
            raise CorruptionError("received rows are not pairs")
        if fields and fields[-2] is not None and fields[-2].startswith(PROGRESS_PREFIX):
            self.note_progress(fields[-2], fields[-1])

    def obey(self, kind: OperationKind, fields: list[bytes], decree: int) -> list[bytes | None]:
        """Take an order; return the flat rows that it leaves under reserved keys.

        Raises:
            CorruptionError: the order does not carry what its kind does.

        """
        counts = (1, 2) if kind is OperationKind.UNPIN else _FIELD_COUNTS[kind]
        if len(fields) not in counts or any(type(field) is not bytes for field in fields):
            raise CorruptionError(f"the order {kind.name} carries {fields!r}")
        subject = fields[0]
        match kind:
            case OperationKind.PIN:
                # The first one holds, whatever comes again.
                start = self.pins.setdefault(subject, decree)
                return [PIN_PREFIX + subject, start.to_bytes(8, "big")]
            case OperationKind.UNPIN if len(fields) == 2:
                self.pins[subject] = 0
                return [PIN_PREFIX + subject, bytes(8)]
            case OperationKind.UNPIN:
                self.pins.pop(subject, None)
                return [PIN_PREFIX + subject, None]
            case OperationKind.SOURCE:
                self.sources[subject] = SourceFacts.decode(fields[1])
                return [SOURCE_PREFIX + subject, fields[1]]
            case OperationKind.FORGET:
                return self._forget(subject)
            case OperationKind.FENCE:
                return [FENCE_KEY, subject]
        assert kind is OperationKind.DURABILITY
        return [DURABILITY_KEY, subject]

    def lose(self, from_decree: int, *, rows: bool) -> list[bytes | None]:
        """Decrees from here on are lost, or `rows` of any: return what must go from the engine.

        A pin below is taken away: it is set anew by the next order, and the meta server sees that
        it is another one. With rows gone nobody knows how far the streams are.
        """
        found: list[bytes | None] = []
        for uuid in [uuid for uuid, start in self.pins.items() if 0 < start < from_decree]:
            del self.pins[uuid]
            found += (PIN_PREFIX + uuid, None)
        for stream in list(self.progress) if rows else ():
            del self.progress[stream]
            found += (PROGRESS_PREFIX + stream, None)
        return found

    def _forget(self, uuid: bytes) -> list[bytes | None]:
        self.sources.pop(uuid, None)
        rows: list[bytes | None] = [SOURCE_PREFIX + uuid, None]
        for stream in [key for key in self.progress if key.startswith(uuid)]:
            del self.progress[stream]
            rows += (PROGRESS_PREFIX + stream, None)
        return rows


_FIELD_COUNTS: Final = {
    OperationKind.PIN: (1,),
    OperationKind.FENCE: (1,),
    OperationKind.DURABILITY: (1,),
    OperationKind.SOURCE: (2,),
    OperationKind.FORGET: (1,),
}


def participation_state(participation: Participation) -> dict[str, Any]:
    """Return what `app` shows: pins, sources and progress, with uuids as hex."""
    return {
        "pins": {uuid.hex(): start for uuid, start in participation.pins.items()},
        "sources": [
            {
                "uuid": uuid.hex(),
                "cluster_id": facts.cluster_id,
                "cluster_name": facts.cluster_name,
                "table_id": facts.table_id,
            }
            for uuid, facts in participation.sources.items()
        ],
        "progress": [
            {
                "uuid": stream.uuid.hex(),
                "source_partition": stream.source_index,
                "decree": decree,
                "clock_us": clock_us,
            }
            for uuid in participation.sources
            for stream, decree, clock_us in participation.streams(uuid)
        ],
    }
