"""pure: LevelDB's CURRENT and MANIFEST: which tables make up the database.

A checkpoint links exactly the live tables, so the list must be right: one table
too few is a broken copy, one too many is a file number that the copy would hand
out again and overwrite. The MANIFEST is a log of version edits in blocks of
32 KiB; each record has a masked CRC-32C, a length and a type, and a record that
does not fit is split. Whatever prefix of whole records is read is a valid version.

`ManifestReader` takes the file in any pieces and so can follow one that grows.
A record cut short at the end is waited for; `check_end` decides, for a file that
nobody appends to any more, whether the end was torn (an older version, valid) or
something in the middle is damaged.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final

import google_crc32c

from pegaskv.base.errors import CorruptionError

__all__ = [
    "LiveTable",
    "ManifestReader",
    "manifest_name",
    "masked_crc32c",
    "read_varint",
]

_BLOCK_BYTES: Final = 32 * 1024
_HEADER: Final = Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_LEVELS: Final = 7
_UINT64_MAX: Final = (1 << 64) - 1
# What an internal key has behind the key: sequence number and kind.
_TRAILER_BYTES: Final = 8

# Tags of the fields in a version edit.
_COMPARATOR, _LOG_NUMBER, _NEXT_FILE, _LAST_SEQUENCE = 1, 2, 3, 4
_COMPACT_POINTER, _DELETED_TABLE, _NEW_TABLE, _PREVIOUS_LOG = 5, 6, 7, 9


@dataclass(frozen=True, slots=True)
class LiveTable:
    """One table file of the current version; keys are LevelDB's internal keys."""

    number: int
    level: int
    size: int
    smallest: bytes
    largest: bytes

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.number:06d}.ldb"

    @property
    def first_key(self) -> bytes:
        """The smallest key, as it was written."""
        return self.smallest[:-_TRAILER_BYTES]

    @property
    def last_key(self) -> bytes:
        """The largest key, as it was written."""
        return self.largest[:-_TRAILER_BYTES]


def manifest_name(current: bytes) -> str:
    """Return the file name in the contents of CURRENT.

    Raises:
        CorruptionError: it is not what LevelDB writes.

    """
    digits = current[len(b"MANIFEST-") : -1]
    if (
        not current.startswith(b"MANIFEST-")
        or not current.endswith(b"\n")
        or not digits.isdigit()
        or not 6 <= len(digits) <= 20
    ):
        raise CorruptionError(f"CURRENT holds {current[:40]!r}")
    return current[:-1].decode("ascii")


def masked_crc32c(data: bytes) -> int:
    """CRC-32C as LevelDB stores it: rotated, plus a constant."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at `at` and the position behind it.

    Raises:
        CorruptionError: it does not end, or is larger than 64 bits.

    """
    value = shift = 0
    while shift < 64:
        if at >= len(data):
            raise CorruptionError("a number is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > _UINT64_MAX:
                break
            return value, at
        shift += 7
    raise CorruptionError("a number is longer than 64 bits")


def _read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    length, at = read_varint(data, at)
    if length > len(data) - at:
        raise CorruptionError("a string is cut short")
    return data[at : at + length], at + length


class ManifestReader:
    """Follows one MANIFEST file.

    `valid_bytes` is how long the prefix of whole records is; the other fields are the
    version that it describes.
    """

    def __init__(self) -> None:
        self.valid_bytes = 0
        self.log_number: int | None = None
        self.next_file_number: int | None = None
        self.last_sequence: int | None = None
        self._tables: dict[int, LiveTable] = {}

    def advance(self, data: bytes) -> None:
        """Take the file's bytes from `valid_bytes` on; whole records are applied.

        Raises:
            CorruptionError: a record with a right checksum has contents that cannot be.

        """
        base = self.valid_bytes
        at = 0
        parts: list[bytes] = []
        while (found := _next_fragment(data, at, base)) is not None:
            kind, body, at = found
            if kind == _FULL:
                parts = [body]
            elif kind == _FIRST:
                parts = [body]
                continue
            elif parts:
                parts.append(body)
                if kind == _MIDDLE:
                    continue
            else:
                return
            self._apply(b"".join(parts))
            parts = []
            self.valid_bytes = base + at

    def check_end(self, rest: bytes) -> None:
        """Judge what follows `valid_bytes` in a file that no longer grows.

        Raises:
            CorruptionError: a valid record lies behind an invalid one, or there is no version.

        """
        if _holds_a_record(rest, self.valid_bytes):
            raise CorruptionError(f"MANIFEST is damaged at byte {self.valid_bytes}")
        self.tables()

    def tables(self) -> list[LiveTable]:
        """Return the live tables by number.

        Raises:
            CorruptionError: what was read so far is not a version.

        """
        if self.log_number is None or self.next_file_number is None or self.last_sequence is None:
            raise CorruptionError("MANIFEST holds no version")
        tables = sorted(self._tables.values(), key=lambda table: table.number)
        if tables and tables[-1].number >= self.next_file_number:
            # LevelDB would give the number to another file and truncate this one.
            raise CorruptionError(f"table {tables[-1].number} has a number not handed out yet")
        return tables

    def _apply(self, edit: bytes) -> None:
        at = 0
        deleted: list[tuple[int, int]] = []
        added: list[LiveTable] = []
        while at < len(edit):
            tag, at = read_varint(edit, at)
            if tag == _COMPARATOR:
                name, at = _read_bytes(edit, at)
                if name != b"leveldb.BytewiseComparator":
                    raise CorruptionError(f"tables are ordered by {name[:40]!r}")
            elif tag == _LOG_NUMBER:
                self.log_number, at = read_varint(edit, at)
            elif tag == _PREVIOUS_LOG:
                _, at = read_varint(edit, at)
            elif tag == _NEXT_FILE:
                self.next_file_number, at = read_varint(edit, at)
            elif tag == _LAST_SEQUENCE:
                self.last_sequence, at = read_varint(edit, at)
            elif tag == _COMPACT_POINTER:
                _, at = _read_level(edit, at)
                _, at = _read_bytes(edit, at)
            elif tag == _DELETED_TABLE:
                level, at = _read_level(edit, at)
                number, at = read_varint(edit, at)
                deleted.append((level, number))
            elif tag == _NEW_TABLE:
                table, at = _read_new_table(edit, at)
                added.append(table)
            else:
                raise CorruptionError(f"version edit with unknown field {tag}")
        # A table that moves to another level is deleted and added in one edit.
        for level, number in deleted:
            table_there = self._tables.get(number)
            if table_there is not None and table_there.level == level:
                del self._tables[number]
        for table in added:
            if table.number in self._tables:
                raise CorruptionError(f"table {table.number} is added twice")
            self._tables[table.number] = table


def _read_level(edit: bytes, at: int) -> tuple[int, int]:
    level, at = read_varint(edit, at)
    if level >= _LEVELS:
        raise CorruptionError(f"level {level}")
    return level, at


def _read_new_table(edit: bytes, at: int) -> tuple[LiveTable, int]:
    level, at = _read_level(edit, at)
    number, at = read_varint(edit, at)
    size, at = read_varint(edit, at)
    smallest, at = _read_bytes(edit, at)
    largest, at = _read_bytes(edit, at)
    return LiveTable(number, level, size, smallest, largest), at


def _next_fragment(data: bytes, at: int, base: int) -> tuple[int, bytes, int] | None:
    # Returns (type, body, position behind it), or None where no valid record begins.
    left = _BLOCK_BYTES - (base + at) % _BLOCK_BYTES
    if left < _HEADER.size:
        # A header never straddles blocks; the rest of the block is padding.
        if data[at : at + left].strip(b"\0"):
            return None
        at += left
        left = _BLOCK_BYTES
    if len(data) - at < _HEADER.size:
        return None
    crc, length, kind = _HEADER.unpack_from(data, at)
    end = at + _HEADER.size + length
    if not _FULL <= kind <= _LAST or length > left - _HEADER.size or end > len(data):
        return None
    if masked_crc32c(data[at + 6 : end]) != crc:
        return None
    return kind, data[at + _HEADER.size : end], end


def _holds_a_record(rest: bytes, base: int) -> bool:
    # The first fragments of a record whose end was torn off are no damage: behind them there
    # is nothing. So what counts is a record, whole or the last part of one.
    return any(
        (found := _next_fragment(rest, at, base)) is not None and found[0] in (_FULL, _LAST)
        for at in range(len(rest))
        if _may_begin_a_record(rest, at)
    )


def _may_begin_a_record(rest: bytes, at: int) -> bool:
    # Checksums are computed only where type and length could be right.
    if len(rest) - at < _HEADER.size or rest[at + 6] not in (_FULL, _LAST):
        return False
    return at + _HEADER.size + int.from_bytes(rest[at + 4 : at + 6], "little") <= len(rest)
