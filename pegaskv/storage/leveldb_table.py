"""pure: one key out of a LevelDB table file, or all blocks of it, without opening the database.

A checkpoint must say exactly which decree it holds, and only its tables know:
between the flush and the links more writes may have reached them. Opening a
LevelDB on the links would answer too, but it writes there and may start to
compact. So the one key is looked up here: footer, index block, data block; each
block is read alone, its checksum compared, and unpacked if it is compressed. And who
wants what is left of a damaged table must know which keys a damaged block had.
"""

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.leveldb_manifest import masked_crc32c, read_varint

__all__ = ["Entry", "FoundEntry", "find_newest", "read_blocks", "unpack_snappy"]

# (sequence number, value or None when the entry is a removal)
FoundEntry = tuple[int, bytes | None]
# (internal key: the key, then sequence number << 8 | kind in 8 bytes; value)
Entry = tuple[bytes, bytes]
ReadAt = Callable[[int, int], bytes]

_MAGIC: Final = 0xDB4775248B80FB57
_FOOTER_BYTES: Final = 48
_TRAILER_BYTES: Final = 5
_BLOCK_BYTES_MAX: Final = 64 * 1024 * 1024
_PLAIN, _SNAPPY = 0, 1
_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")


def find_newest(read_at: ReadAt, size: int, key: bytes) -> FoundEntry | None:
    """Return the newest entry of `key` in a table of `size` bytes, or None if it has none.

    Raises:
        CorruptionError: a block on the way is damaged.

    """
    index = _read_index(read_at, size)
    # An index entry's key is at or above the last key of its block.
    entry = _seek(index, key)
    if entry is None:
        return None
    handle, _ = _read_handle(entry[1], 0)
    found = _seek(_read_block(read_at, size, handle), key)
    if found is None or found[0][:-8] != key:
        return None
    tail = _U64.unpack_from(found[0], len(found[0]) - 8)[0]
    return tail >> 8, found[1] if tail & 0xFF else None


def read_blocks(read_at: ReadAt, size: int) -> Iterator[tuple[bytes, list[Entry] | None]]:
    """Yield (a key at or above the last one, entries) of each block; None for a damaged block.

    Raises:
        CorruptionError: the index is damaged: nobody knows the blocks.

    """
    for bound, place in _entries(_read_index(read_at, size)):
        try:
            handle, _ = _read_handle(place, 0)
            entries: list[Entry] | None = list(_entries(_read_block(read_at, size, handle)))
        except CorruptionError:
            entries = None
        yield bound[:-8], entries


def _read_index(read_at: ReadAt, size: int) -> bytes:
    footer = read_at(size - _FOOTER_BYTES, _FOOTER_BYTES) if size >= _FOOTER_BYTES else b""
    if len(footer) != _FOOTER_BYTES or _U64.unpack_from(footer, 40)[0] != _MAGIC:
        raise CorruptionError("table without a footer")
    _, at = _read_handle(footer, 0)
    handle, _ = _read_handle(footer, at)
    return _read_block(read_at, size, handle)


def _entries(block: bytes) -> Iterator[Entry]:
    limit = _limit(block)
    at = 0
    last = b""
    while at < limit:
        last, value, at = _read_entry(block, at, limit, last)
        yield last, value


def _limit(block: bytes) -> int:
    """Where the entries of a block end and its restart points begin."""
    count = _U32.unpack_from(block, len(block) - 4)[0] if len(block) >= 4 else 0
    limit = len(block) - 4 - 4 * count
    if count == 0 or limit < 0:
        raise CorruptionError("block without restart points")
    return limit


def _read_handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = read_varint(data, at)
    length, at = read_varint(data, at)
    return (offset, length), at


def _read_block(read_at: ReadAt, size: int, handle: tuple[int, int]) -> bytes:
    offset, length = handle
    if length > _BLOCK_BYTES_MAX or offset + length + _TRAILER_BYTES > size:
        raise CorruptionError("block outside of its table")
    data = read_at(offset, length + _TRAILER_BYTES)
    if len(data) != length + _TRAILER_BYTES:
        raise CorruptionError("block is cut short")
    if masked_crc32c(data[: length + 1]) != _U32.unpack_from(data, length + 1)[0]:
        raise CorruptionError("block with a wrong checksum")
    if data[length] == _PLAIN:
        return data[:length]
    if data[length] == _SNAPPY:
        return unpack_snappy(data[:length])
    raise CorruptionError(f"block with unknown compression {data[length]}")


def _seek(block: bytes, key: bytes) -> tuple[bytes, bytes] | None:
    # The first entry at or behind the newest possible version of `key`. Entries share their
    # beginning with the one before, except at restart points, which are searched by halves.
    limit = _limit(block)
    low, high = 0, (len(block) - limit) // 4 - 2
    while low < high:
        middle = (low + high + 1) // 2
        start = _U32.unpack_from(block, limit + 4 * middle)[0]
        if _read_entry(block, start, limit, b"")[0][:-8] < key:
            low = middle
        else:
            high = middle - 1
    at = _U32.unpack_from(block, limit + 4 * low)[0]
    last = b""
    while at < limit:
        last, value, at = _read_entry(block, at, limit, last)
        # Of one key the newest entry comes first.
        if last[:-8] >= key:
            return last, value
    return None


def _read_entry(block: bytes, at: int, limit: int, last: bytes) -> tuple[bytes, bytes, int]:
    shared, at = read_varint(block, at)
    unshared, at = read_varint(block, at)
    length, at = read_varint(block, at)
    end = at + unshared + length
    if shared > len(last) or end > limit or shared + unshared < 8:
        raise CorruptionError("block with an impossible entry")
    return last[:shared] + block[at : at + unshared], block[at + unshared : end], end


def unpack_snappy(data: bytes) -> bytes:
    """Return what Snappy packed.

    Raises:
        CorruptionError: the bytes are not Snappy's, or claim more than 64 MiB.

    """
    length, at = read_varint(data, 0)
    if length > _BLOCK_BYTES_MAX:
        raise CorruptionError(f"block of {length} bytes")
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            count = (tag >> 2) + 1
            if count > 60:
                extra = count - 60
                count = int.from_bytes(data[at : at + extra], "little") + 1
                at += extra
            if count > len(data) - at:
                raise CorruptionError("literal is cut short")
            out += data[at : at + count]
            at += count
        else:
            at = _copy(out, data, tag, at)
        if len(out) > length:
            break
    if len(out) != length:
        raise CorruptionError(f"block of {len(out)} bytes instead of {length}")
    return bytes(out)


def _copy(out: bytearray, data: bytes, tag: int, at: int) -> int:
    # Repeat bytes that were written before; the copy may overlap its own output.
    if tag & 3 == 1:
        count, extra = (tag >> 2 & 7) + 4, 1
        back = tag >> 5 << 8
    else:
        count, extra = (tag >> 2) + 1, 2 if tag & 3 == 2 else 4
        back = 0
    if extra > len(data) - at:
        raise CorruptionError("copy is cut short")
    back |= int.from_bytes(data[at : at + extra], "little")
    if not 1 <= back <= len(out):
        raise CorruptionError("copy from before the beginning")
    start = len(out) - back
    while count > 0:
        piece = out[start : start + count]
        out += piece
        count -= len(piece)
    return at + extra
