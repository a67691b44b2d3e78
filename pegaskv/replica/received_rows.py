"""pure: rows of another cluster, checked, and compared with what is here by timetag.

What comes in was sent by another server, and is checked like any input: it must not be able
to break a replica. The larger timetag stays; an equal one is the same version, come again.
Several microseconds a row are the whole budget of a duplication, so loops are written out.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from pegaskv.base.errors import (
    CorruptionError,
    InvalidArgument,
    InvalidData,
    UnknownOperation,
    UnsupportedFormat,
)
from pegaskv.base.limits import (
    HASH_KEY_BYTES_MAX,
    MUTATION_BYTES_MAX,
    PARTITION_COUNT_MAX,
    SORT_KEY_BYTES_MAX,
    VALUE_BYTES_MAX,
)
from pegaskv.codec.keys import RESERVED_PREFIX
from pegaskv.codec.messages_duplication import UUID_BYTES
from pegaskv.codec.mutations import OperationKind, decode_mutation
from pegaskv.codec.values import LEAST_EXPIRY, ROW_HEADER_BYTES, TIMESTAMP_MAX

__all__ = [
    "PART_ROWS",
    "Chunks",
    "Contest",
    "HashClass",
    "Removals",
    "in_parts",
    "parse_batch",
    "parse_page",
    "parse_stream",
]

_WRITE: Final = OperationKind.WRITE
_ROW_BYTES_MAX: Final = ROW_HEADER_BYTES + VALUE_BYTES_MAX
_DECREE_MAX: Final = (1 << 63) - 1
# What a row costs in an operation beside its bytes.
PAIR_BYTES: Final = 10
# So many rows are checked, or compared and logged, before others have their turn.
PART_ROWS: Final = 512
_EARLIEST: Final = bytes(8)


@dataclass(frozen=True, slots=True)
class HashClass:
    """The rows that one source partition shares with one partition here."""

    mask: int
    index: int
    source_mask: int
    source_index: int


def parse_stream(
    uuid: Any, source_count: Any, source_index: Any, mask: int, index: int
) -> HashClass:
    """Check what names a stream to partition `index`; return which rows belong to it.

    Raises:
        InvalidArgument: it cannot be a stream to this partition.

    """
    if type(uuid) is not bytes or len(uuid) != UUID_BYTES:
        raise InvalidArgument(f"the uuid of a duplication must be {UUID_BYTES} bytes")
    if (
        type(source_count) is not int
        or not 1 <= source_count <= PARTITION_COUNT_MAX
        or source_count & (source_count - 1)
    ):
        raise InvalidArgument(
            f"the source's partition count must be a power of two up to {PARTITION_COUNT_MAX}"
        )
    if type(source_index) is not int or not 0 <= source_index < source_count:
        raise InvalidArgument("the source's partition index must be below its partition count")
    if (source_index ^ index) & min(mask, source_count - 1):
        raise InvalidArgument(
            f"partition {source_index} of {source_count} has no rows of partition {index} of "
            f"{mask + 1}"
        )
    return HashClass(mask, index, source_count - 1, source_index)


def parse_batch(
    flat: Any, *, previous: Any, last: Any, progress: int, rows_of: HashClass, cluster_id: int
) -> Generator[None, None, tuple[list[list[bytes]], bytes]]:
    """Check a batch; return the rows of each operation above `progress`, and the newest tag.

    It yields after each PART_ROWS rows or so. Rows of other clusters than `cluster_id` are left
    out: those come from there.

    Raises:
        InvalidArgument: it is no batch at all.
        InvalidData: a mutation or a row in it can be no source's.
        UnknownOperation: a mutation is of a later version.

    """
    if type(previous) is not int or type(last) is not int:
        raise InvalidArgument("the decrees of a batch must be integers")
    if not 0 <= previous < last <= _DECREE_MAX:
        raise InvalidArgument(f"no batch goes from decree {previous} to {last}")
    if type(flat) is not list or len(flat) % 2:
        raise InvalidArgument("a batch must be a flat list [decree, mutation, ...]")
    operations: list[list[bytes]] = []
    newest = _EARLIEST
    before = previous
    seen = 0
    for position in range(0, len(flat), 2):
        decree, mutation = flat[position], flat[position + 1]
        if type(decree) is not int or type(mutation) is not bytes:
            raise InvalidArgument("a batch must be a flat list [decree, mutation, ...]")
        if not before < decree <= last:
            raise InvalidArgument(f"decree {decree} stands behind {before} in a batch to {last}")
        before = decree
        if decree <= progress:
            continue
        try:
            for kind, _hash, fields in decode_mutation(mutation):
                if kind is not _WRITE:
                    raise InvalidData(f"an operation of kind {kind.name} is not to be duplicated")
                seen += len(fields)
                if seen > 2 * PART_ROWS:
                    seen = len(fields)
                    yield
                rows, tag = _check_rows(fields, rows_of, cluster_id)
                if rows:
                    operations.append(rows)
                    newest = max(newest, tag)
        except UnsupportedFormat as error:
            # Not what nobody could take, but what this server is too old for: never left out.
            raise UnknownOperation(
                f"the mutation of decree {decree} is newer than this server: {error}",
                hint="upgrade this cluster",
            ) from None
        except CorruptionError as error:
            raise InvalidData(f"the mutation of decree {decree} cannot be read: {error}") from None
    return operations, newest


def in_parts(operations: list[list[bytes]]) -> list[list[list[bytes]]]:
    """Cut operations into parts of PART_ROWS rows or little more; one at least."""
    parts: list[list[list[bytes]]] = [[]]
    held = 0
    for rows in operations:
        if parts[-1] and held + len(rows) > 2 * PART_ROWS:
            parts.append([])
            held = 0
        parts[-1].append(rows)
        held += len(rows)
    return parts


def parse_page(
    flat: Any, start: Any, stop: Any, rows_of: HashClass
) -> Generator[None, None, tuple[list[list[bytes]], bytes]]:
    """Check a page of rows; return each as an operation of its own, and the newest tag.

    It yields after each PART_ROWS rows.

    Raises:
        InvalidArgument: it is no page at all.
        InvalidData: a row in it can be no source's.

    """
    if type(start) is not bytes or type(stop) is not bytes:
        raise InvalidArgument("a range is given by two stored keys")
    if type(flat) is not list or len(flat) % 2:
        raise InvalidArgument("a page must be a flat list [stored key, row, ...]")
    rows: list[bytes] = []
    newest = _EARLIEST
    for position in range(0, len(flat), 2 * PART_ROWS):
        if position:
            yield
        part, tag = _check_rows(flat[position : position + 2 * PART_ROWS], rows_of, 0)
        rows += part
        newest = max(newest, tag)
    before = None
    for key in rows[::2]:
        if key < start or (stop and key >= stop) or (before is not None and key <= before):
            raise InvalidArgument("the keys of a page must ascend inside of its range")
        before = key
    return [rows[position : position + 2] for position in range(0, len(rows), 2)], newest


def _check_rows(
    fields: list[Any], rows_of: HashClass, cluster_id: int
) -> tuple[list[bytes], bytes]:
    """Return the rows of a cluster (0 = of all) and the newest tag of them."""
    if len(fields) % 2:
        raise InvalidData("rows come as a flat list [stored key, row, ...]")
    mask, index = rows_of.mask, rows_of.index
    source_mask, source_index = rows_of.source_mask, rows_of.source_index
    found: list[bytes] = []
    newest = _EARLIEST
    pairs = iter(fields)
    for key, row in zip(pairs, pairs, strict=True):
        if type(key) is not bytes or type(row) is not bytes or len(key) < 2:
            raise InvalidData("keys and rows must be bytes, and a stored key has two at least")
        size = key[0] << 8 | key[1]
        if (
            not ROW_HEADER_BYTES <= len(row) <= _ROW_BYTES_MAX
            or size > HASH_KEY_BYTES_MAX
            or not 0 <= len(key) - 2 - size <= SORT_KEY_BYTES_MAX
        ):
            raise InvalidData(
                f"a key of {len(key)} bytes beginning with {key[:16]!r}, a row of {len(row)} "
                "bytes: at least one is none"
            )
        digest = xxh3_64_intdigest(key[2 : 2 + size] if size else key[2:])
        if digest & mask != index or digest & source_mask != source_index:
            raise InvalidData(
                f"the row {key[:40]!r} does not belong to partition {source_index} of "
                f"{source_mask + 1} there and {index} of {mask + 1} here"
            )
        origin = row[11] >> 1
        if not origin:
            raise InvalidData("a row of no cluster")
        if not cluster_id or origin == cluster_id:
            found.append(key)
            found.append(row)
            tag = row[4:12]
            if tag > newest:
                newest = tag
    if int.from_bytes(newest, "big") >> 8 >= TIMESTAMP_MAX:
        raise InvalidData("a row of the far future: its timestamp has more than 55 bits")
    return found, newest


class Chunks:
    """Rows cut into operations that each fit a mutation; one source operation is never cut."""

    __slots__ = ("_size", "chunks")

    def __init__(self) -> None:
        self.chunks: list[dict[bytes, bytes | None]] = [{}]
        self._size = 0

    def add(self, rows: dict[bytes, bytes] | dict[bytes, None], size: int) -> None:
        """Add the rows of one operation, which take about `size` bytes."""
        if self._size and self._size + size > MUTATION_BYTES_MAX:
            self.chunks.append({})
            self._size = 0
        self.chunks[-1].update(rows)
        self._size += size


@dataclass(slots=True)
class Contest:
    """Rows from another cluster against the versions here; see `judge`.

    `current` returns the version under a stored key as all pending writes leave it.
    `stale_until` is for a page that is older than the stream's progress: where nothing is
    here, a row of the source's own up to this tag was deleted since, and forgotten.
    """

    current: Callable[[bytes], bytes | None]
    cluster_id: int
    overwrite_equal: bool = False
    stale_until: bytes = b""
    won: Chunks = field(default_factory=Chunks)
    lost: int = 0
    conflicts: int = 0
    # Whether a winner may have to be swept one day.
    expires: bool = False
    _won_here: dict[bytes, bytes] = field(default_factory=dict)

    def judge(self, operations: list[list[bytes]]) -> None:
        """Sort operations, each a flat list of rows, into winners and losers."""
        current, here_by_key = self.current, self._won_here
        for rows in operations:
            winners: dict[bytes, bytes] = {}
            size = 0
            pairs = iter(rows)
            for key, row in zip(pairs, pairs, strict=True):
                here = here_by_key.get(key)
                if here is None:
                    here = current(key)
                if here is None:
                    if self.stale_until and self._is_stale(row):
                        self.lost += 1
                        continue
                else:
                    tag, other = row[4:12], here[4:12]
                    if tag < other:
                        self.lost += 1
                        if here[11] >> 1 != row[11] >> 1:
                            self.conflicts += 1
                        continue
                    if tag == other and (not self.overwrite_equal or row == here):
                        continue
                if row >= LEAST_EXPIRY or row[11] & 1:
                    self.expires = True
                here_by_key[key] = row
                winners[key] = row
                size += len(key) + len(row) + PAIR_BYTES
            if winners:
                self.won.add(winners, size)

    def _is_stale(self, row: bytes) -> bool:
        return row[11] >> 1 == self.cluster_id and row[4:12] <= self.stale_until


@dataclass(frozen=True, slots=True)
class Removals:
    """Which rows of a range a copy takes away: the source's own, old enough, and not named."""

    rows_of: HashClass
    cluster_id: int
    clock_us: int
    named: frozenset[bytes]
    start: bytes
    stop: bytes

    @property
    def end(self) -> bytes:
        """The first stored key after the range."""
        return self.stop if b"" < self.stop < RESERVED_PREFIX else RESERVED_PREFIX

    def covers(self, key: bytes, row: bytes) -> bool:
        """Whether this version goes; the key is one of the range."""
        if row[11] >> 1 != self.cluster_id or key in self.named:
            return False
        if int.from_bytes(row[4:11], "big") > self.clock_us:
            return False
        size = key[0] << 8 | key[1]
        digest = xxh3_64_intdigest(key[2 : 2 + size] if size else key[2:])
        return digest & self.rows_of.source_mask == self.rows_of.source_index
