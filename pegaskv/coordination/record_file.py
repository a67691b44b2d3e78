"""The bytes of the embedded store's file: a header, a snapshot, then commits.

Every record carries its position and the file's generation under its checksum, and is
synced before the next one is written. So where the first bad record stands tells what
happened: with nothing valid behind it, it is the torn tail of a write that nobody was
told of, and is cut off; with a valid record behind it, records that were synced are
damaged, and the file is refused, since going on would forget what was acknowledged.

A file is published by rename after it was synced up to the end of its snapshot, so a
snapshot that is not whole is damage too. A record at the very end says that the store
was closed: then the tail cannot be torn.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final

from google_crc32c import value as crc32c

from pegaskv.base.errors import CorruptionError, UnsupportedFormat, WireError
from pegaskv.base.version import META_RECORD_FORMAT
from pegaskv.codec.packing import pack, unpack

__all__ = [
    "HEADER_BYTES",
    "Contents",
    "commit_record",
    "end_record",
    "read_contents",
    "snapshot_blocks",
]

_MAGIC: Final = b"pegaskvm"
_HEADER: Final = Struct(">8sIQ")
_CHECKSUM: Final = Struct(">I")
HEADER_BYTES: Final = _HEADER.size + _CHECKSUM.size

_RECORD_MAGIC: Final = b"\xf5rec"
# Magic, length of the body, then what the checksum covers beside the body.
_RECORD: Final = Struct(">4sII")
_PLACE: Final = Struct(">QQ")
_BODY_AT: Final = _RECORD.size + _PLACE.size

# The first element of a record's body.
_SNAPSHOT: Final = 1
_SNAPSHOT_END: Final = 2
_COMMIT: Final = 3
_CLOSED: Final = 4

# A record of a snapshot holds so many keys, or so many bytes of values, at most by one.
_SNAPSHOT_KEYS: Final = 1_000
_SNAPSHOT_BYTES: Final = 1024 * 1024


@dataclass(slots=True)
class Contents:
    """What a file says: all keys with (value, revision), and the revision of the whole."""

    generation: int
    revision: int = 0
    entries: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    # Bytes behind the last good record, which nobody was told of.
    torn_bytes: int = 0


def snapshot_blocks(
    generation: int, revision: int, entries: Mapping[str, tuple[bytes, int]]
) -> Iterator[bytes]:
    """Yield the beginning of a new file, to be written one after another."""
    header = _HEADER.pack(_MAGIC, META_RECORD_FORMAT, generation)
    yield header + _CHECKSUM.pack(crc32c(header))
    position = HEADER_BYTES
    for part in _parts(entries):
        block = _record(position, generation, [_SNAPSHOT, part])
        position += len(block)
        yield block
    yield _record(position, generation, [_SNAPSHOT_END, revision, len(entries)])


def commit_record(
    position: int, generation: int, revision: int, changes: Iterable[tuple[str, bytes | None]]
) -> bytes:
    """Return the record of one commit; None deletes a key."""
    return _record(position, generation, [_COMMIT, revision, [list(one) for one in changes]])


def end_record(position: int, generation: int) -> bytes:
    """Return the record that a store writes when it is closed."""
    return _record(position, generation, [_CLOSED])


def read_contents(data: bytes, name: str) -> Contents:
    """Read a whole file; `name` is for messages.

    Raises:
        UnsupportedFormat: other software wrote it.
        CorruptionError: records that were synced are damaged.

    """
    contents = Contents(_read_header(data, name))
    position = HEADER_BYTES
    whole = closed = False
    while (found := _record_at(data, position, contents.generation)) is not None:
        body, after = found
        if closed:
            raise CorruptionError(f"{name}: a record behind its end, at byte {position}")
        kind = _take(contents, body, whole, f"{name}, byte {position}")
        whole = whole or kind == _SNAPSHOT_END
        closed = kind == _CLOSED
        position = after
    if not whole:
        raise CorruptionError(
            f"{name}: its snapshot is damaged at byte {position}",
            hint="the tables of this server are listed in this file: restore it from a copy",
        )
    later = _later_record(data, position, contents.generation)
    if later is not None or (closed and position < len(data)):
        raise CorruptionError(
            f"{name}: damaged at byte {position}, before records that were acknowledged",
            hint="restore the file from a copy; nothing was changed",
        )
    contents.torn_bytes = len(data) - position
    return contents


def _parts(entries: Mapping[str, tuple[bytes, int]]) -> Iterator[list[Any]]:
    part: list[Any] = []
    size = 0
    for key, (value, revision) in entries.items():
        part.append([key, value, revision])
        size += len(value)
        if len(part) == _SNAPSHOT_KEYS or size >= _SNAPSHOT_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _record(position: int, generation: int, body: list[Any]) -> bytes:
    checked = _PLACE.pack(position, generation) + pack(body)
    length = len(checked) - _PLACE.size
    return _RECORD.pack(_RECORD_MAGIC, length, crc32c(checked)) + checked


def _read_header(data: bytes, name: str) -> int:
    if len(data) < HEADER_BYTES or data[:8] != _MAGIC:
        raise CorruptionError(f"{name} is not a file of the meta store")
    magic, version, generation = _HEADER.unpack_from(data)
    assert magic == _MAGIC
    if crc32c(data[: _HEADER.size]) != _CHECKSUM.unpack_from(data, _HEADER.size)[0]:
        raise CorruptionError(f"{name}: its header is damaged")
    if version != META_RECORD_FORMAT:
        raise UnsupportedFormat(
            f"{name} has format {version}; this software reads {META_RECORD_FORMAT}",
            hint="start the version of pegaskv that wrote it",
        )
    return int(generation)


def _record_at(data: bytes, position: int, generation: int) -> tuple[bytes, int] | None:
    """Return the body of the valid record at `position` and where it ends, or None."""
    body_at = position + _BODY_AT
    if body_at > len(data):
        return None
    magic, length, checksum = _RECORD.unpack_from(data, position)
    if magic != _RECORD_MAGIC or length > len(data) - body_at:
        return None
    end = body_at + length
    if _PLACE.unpack_from(data, position + _RECORD.size) != (position, generation):
        return None
    if crc32c(data[position + _RECORD.size : end]) != checksum:
        return None
    return data[body_at:end], end


def _later_record(data: bytes, position: int, generation: int) -> int | None:
    """Return where a valid record begins behind `position`, or None."""
    while (position := data.find(_RECORD_MAGIC, position + 1)) >= 0:
        if _record_at(data, position, generation) is not None:
            return position
    return None


def _take(contents: Contents, body: bytes, whole: bool, where: str) -> int:
    """Add one record to `contents`; return its kind."""
    try:
        match unpack(body):
            case [1, [*part]] if not whole:
                for key, value, revision in part:
                    contents.entries[str(key)] = (bytes(value), int(revision))
                return _SNAPSHOT
            case [2, int(revision), int(count)] if not whole and count == len(contents.entries):
                contents.revision = revision
                return _SNAPSHOT_END
            case [3, int(revision), [*changes]] if whole and revision == contents.revision + 1:
                contents.revision = revision
                for key, value in changes:
                    if value is None:
                        contents.entries.pop(key, None)
                    else:
                        contents.entries[str(key)] = (bytes(value), revision)
                return _COMMIT
            case [4] if whole:
                return _CLOSED
    except (WireError, TypeError, ValueError):
        pass
    raise CorruptionError(f"{where}: a record that is whole and makes no sense")
