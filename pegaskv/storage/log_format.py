"""pure: the bytes of a log segment, to records and back. Encoding is on the hot path.

```
segment   header, the same header again at 4 096, blocks from 8 192, footer, zeros
header    magic 8, version u16, crc u32 (of these ten bytes),
          number u32, salt u32, synced u64, crc u32 (of the whole header)
frame     magic u32, length u32, crc u32, then `length` bytes: position u64, synced u64, body
block     a frame whose body is records: version u8, table u32, partition u32, incarnation u32,
          ballot u32, decree u64, committed u64, first timestamp u64, payload length u32, payload
footer    a frame whose body is runs: table u32, partition u32, incarnation u32, ballot u32,
          first decree u64, last decree u64, committed u64, bytes u64; at its end the
          frame's length u32 and a magic u32, so that it is found from the end of the file
```

Big-endian; checksums are CRC-32C. A position is *segment number << 32 | offset*: one order
over the whole log. A frame names its own position, so nothing that was copied from
elsewhere passes for one, and its checksum starts from the segment's salt, which no client
knows, so no value can be made to look like one (a footer's from another number, so that a
flipped bit in the magic makes no footer of a block). `synced` is the position up to which
everything was known durable when the frame was written: what recovery weighs damage by.
The header stands twice, since without its salt no block can be believed.
"""

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from google_crc32c import extend, value

from pegaskv.base.errors import CorruptionError, UnsupportedFormat
from pegaskv.base.version import LOG_FORMAT

__all__ = [
    "DATA_START",
    "FRAME_BYTES",
    "RECORD_BYTES",
    "RUN_BYTES",
    "TRAILER_BYTES",
    "Frame",
    "LogRecord",
    "LogRun",
    "RecordFields",
    "SegmentHeader",
    "decode_footer",
    "decode_records",
    "encode_block",
    "encode_footer",
    "encode_header",
    "encode_records",
    "find_frames",
    "footer_begins",
    "footer_bytes",
    "footer_offset",
    "parse_header",
    "position_of",
    "runs_of",
    "scan_frames",
    "valid_history",
    "wrap_records",
]

_PREFIX: Final = Struct(">8sH")
_PREFIX_CRC: Final = Struct(">I")
_HEADER: Final = Struct(">IIQ")
_FRAME: Final = Struct(">IIIQQ")
_FRAME_START: Final = Struct(">III")
_FRAME_REST: Final = Struct(">QQ")
_RECORD: Final = Struct(">BIIIIQQQI")
_RUN: Final = Struct(">IIIIQQQQ")
_TRAILER: Final = Struct(">II")

_pack_frame_start = _FRAME_START.pack
_pack_frame_rest = _FRAME_REST.pack
_pack_record = _RECORD.pack
_unpack_frame = _FRAME.unpack_from
_unpack_record = _RECORD.unpack_from

_SEGMENT_MAGIC: Final = b"PKV\rLOG\n"
_BLOCK_MAGIC: Final = 0x504B5642  # PKVB
_FOOTER_MAGIC: Final = 0x504B5646  # PKVF
_END_MAGIC: Final = 0x504B5645  # PKVE
_MAGIC_START: Final = b"PKV"

HEADER_COPY_OFFSET: Final = 4_096
DATA_START: Final = 8_192
FRAME_BYTES: Final = _FRAME.size
RECORD_BYTES: Final = _RECORD.size
RUN_BYTES: Final = _RUN.size
TRAILER_BYTES: Final = _TRAILER.size
# What a frame's length counts beside its body.
_REST_BYTES: Final = _FRAME_REST.size
_START_BYTES: Final = _FRAME_START.size


class LogRecord(NamedTuple):
    """One mutation of one partition as the log has it."""

    gpid_table: int
    gpid_index: int
    incarnation: int
    ballot: int
    decree: int
    # The commit point of the partition when the record was written.
    committed: int
    first_timestamp_us: int
    payload: bytes


# What makes a `LogRecord`; the log itself does not ask for more.
RecordFields: TypeAlias = tuple[int, int, int, int, int, int, int, bytes]


class SegmentHeader(NamedTuple):
    """The identity of a segment."""

    number: int
    salt: int
    # The position known durable when the header was written.
    synced: int


class LogRun(NamedTuple):
    """Records of one partition in one segment: consecutive decrees of one ballot."""

    table_id: int
    partition_index: int
    incarnation: int
    ballot: int
    first: int
    last: int
    # The commit point that the last of them carries.
    committed: int
    # Bytes of the records, their headers included.
    size: int


class Frame(NamedTuple):
    """Where a valid frame lies in its segment, and what it knows durable."""

    start: int
    end: int
    synced: int
    is_footer: bool


def position_of(number: int, offset: int) -> int:
    """Return the position of an offset in a segment."""
    return number << 32 | offset


def encode_header(header: SegmentHeader) -> bytes:
    """Return the first `DATA_START` bytes of a segment."""
    prefix = _PREFIX.pack(_SEGMENT_MAGIC, LOG_FORMAT)
    data = prefix + _PREFIX_CRC.pack(value(prefix)) + _HEADER.pack(*header)
    data += _PREFIX_CRC.pack(value(data))
    copy = data.ljust(HEADER_COPY_OFFSET, b"\0")
    return copy + copy


def parse_header(data: bytes, number: int) -> SegmentHeader | None:
    """Return the header that begins `data`; None when neither of its copies is one.

    Raises:
        UnsupportedFormat: another version of the software wrote the segment.

    """
    for offset in (0, HEADER_COPY_OFFSET):
        prefix = data[offset : offset + _PREFIX.size]
        rest = offset + _PREFIX.size + _PREFIX_CRC.size
        end = rest + _HEADER.size
        if len(data) < end + _PREFIX_CRC.size:
            continue
        if _PREFIX_CRC.unpack_from(data, offset + _PREFIX.size)[0] != value(prefix):
            continue
        magic, version = _PREFIX.unpack(prefix)
        if magic != _SEGMENT_MAGIC:
            continue
        if version != LOG_FORMAT:
            raise UnsupportedFormat(
                f"log segment {number} has version {version}; this software knows {LOG_FORMAT}",
                hint="start the version of the software that wrote it",
            )
        if _PREFIX_CRC.unpack_from(data, end)[0] != value(data[offset:end]):
            continue
        header = SegmentHeader(*_HEADER.unpack_from(data, rest))
        if header.number == number:
            return header
    return None


def encode_block(
    records: Sequence[RecordFields], *, position: int, synced: int, salt: int
) -> bytes:
    """Return the frame that carries `records`; once per tick, for all partitions."""
    parts = [_pack_frame_rest(position, synced)]
    _add_records(parts, records)
    body = b"".join(parts)
    return _pack_frame_start(_BLOCK_MAGIC, len(body), extend(salt, body)) + body


def encode_records(records: Sequence[RecordFields]) -> bytes:
    """Return the records as they stand in a block, for `wrap_records`."""
    parts: list[bytes] = []
    _add_records(parts, records)
    return b"".join(parts)


def wrap_records(body: bytes, *, position: int, synced: int, salt: int) -> bytes:
    """Return the block whose records are the bytes `body`, taken from other blocks unchanged."""
    rest = _pack_frame_rest(position, synced)
    checksum = extend(extend(salt, rest), body)
    return _pack_frame_start(_BLOCK_MAGIC, len(rest) + len(body), checksum) + rest + body


def _add_records(parts: list[bytes], records: Sequence[RecordFields]) -> None:
    add = parts.append
    for table, index, incarnation, ballot, decree, committed, first, payload in records:
        size = len(payload)
        add(
            _pack_record(
                LOG_FORMAT, table, index, incarnation, ballot, decree, committed, first, size
            )
        )
        add(payload)


def encode_footer(runs: list[LogRun], *, position: int, synced: int, salt: int) -> bytes:
    """Return the frame that ends a segment and says what is in it."""
    parts = [_pack_frame_rest(position, synced)]
    parts += [_RUN.pack(*run) for run in runs]
    length = footer_bytes(len(runs))
    parts.append(_TRAILER.pack(length, _END_MAGIC))
    body = b"".join(parts)
    checksum = extend(salt ^ _FOOTER_MAGIC, body)
    return _pack_frame_start(_FOOTER_MAGIC, len(body), checksum) + body


def footer_bytes(runs: int) -> int:
    """How long a footer of so many runs is."""
    return FRAME_BYTES + runs * RUN_BYTES + TRAILER_BYTES


def footer_offset(tail: bytes, size: int) -> int:
    """Return where the footer of a file of `size` bytes begins, by its last bytes; 0 = nowhere."""
    if len(tail) != TRAILER_BYTES:
        return 0
    length: int
    length, magic = _TRAILER.unpack(tail)
    if magic != _END_MAGIC or not footer_bytes(0) <= length <= size - DATA_START:
        return 0
    return size - length


def footer_begins(data: bytes, start: int) -> bool:
    """Whether all that a segment holds from `start` on was its footer, damaged as it may be."""
    size = len(data)
    if footer_offset(data[-TRAILER_BYTES:], size) == start:
        return True
    if size - start < footer_bytes(0):
        return False
    magic, length, _ = _FRAME_START.unpack_from(data, start)
    return bool(magic == _FOOTER_MAGIC and start + _START_BYTES + length == size)


def decode_footer(data: bytes, start: int, end: int) -> list[LogRun]:
    """Return the runs in a valid footer.

    Raises:
        CorruptionError: its length is not that of whole runs.

    """
    start += FRAME_BYTES
    end -= TRAILER_BYTES
    if end < start or (end - start) % RUN_BYTES:
        raise CorruptionError(f"a log footer with {end - start} bytes of runs")
    return [LogRun(*_RUN.unpack_from(data, at)) for at in range(start, end, RUN_BYTES)]


def scan_frames(data: bytes, header: SegmentHeader, start: int, base: int = 0) -> list[Frame]:
    """Return the valid frames from `start` on, each directly behind the other.

    `base` is the offset of `data` in its segment; all offsets returned are in the segment.
    The first bytes that are no valid frame end the list, and so does a footer.
    """
    frames: list[Frame] = []
    salt = header.salt
    size = len(data)
    at = start - base
    expected = position_of(header.number, start)
    while at + FRAME_BYTES <= size:
        magic, length, checksum, position, synced = _unpack_frame(data, at)
        end = at + _START_BYTES + length
        seed = salt if magic == _BLOCK_MAGIC else salt ^ _FOOTER_MAGIC
        if (
            position != expected
            or length < _REST_BYTES
            or end > size
            or (magic != _BLOCK_MAGIC and magic != _FOOTER_MAGIC)
            or extend(seed, data[at + _START_BYTES : end]) != checksum
        ):
            break
        frames.append(Frame(base + at, base + end, synced, magic == _FOOTER_MAGIC))
        if magic == _FOOTER_MAGIC:
            break
        expected += end - at
        at = end
    return frames


def find_frames(data: bytes, header: SegmentHeader, start: int) -> list[Frame]:
    """Return all valid frames at or after `start`, wherever they lie, in their order."""
    frames: list[Frame] = []
    at = data.find(_MAGIC_START, start)
    while at >= 0:
        # What is no frame in its place is refused by its position, before its length is believed.
        island = scan_frames(data, header, at)
        frames += island
        at = data.find(_MAGIC_START, island[-1].end if island else at + 1)
    return frames


def decode_records(data: bytes, start: int, end: int) -> list[LogRecord]:
    """Return the records of a valid block; `start` and `end` are those of its frame.

    Raises:
        UnsupportedFormat: a record of another version.
        CorruptionError: the lengths do not add up.

    """
    records: list[LogRecord] = []
    add = records.append
    new = tuple.__new__
    at = start + FRAME_BYTES
    while at < end:
        payload_start = at + RECORD_BYTES
        if payload_start > end:
            raise CorruptionError(f"a log block ends inside a record at {at}")
        version, table, index, incarnation, ballot, decree, committed, first, length = (
            _unpack_record(data, at)
        )
        if version != LOG_FORMAT:
            raise UnsupportedFormat(
                f"a log record has version {version}; this software knows {LOG_FORMAT}",
                hint="start the version of the software that wrote it",
            )
        at = payload_start + length
        if at > end:
            raise CorruptionError(f"a log block ends inside the payload at {payload_start}")
        add(
            new(
                LogRecord,
                (
                    table,
                    index,
                    incarnation,
                    ballot,
                    decree,
                    committed,
                    first,
                    data[payload_start:at],
                ),
            )
        )
    return records


def runs_of(records: Iterable[LogRecord]) -> list[LogRun]:
    """Return the runs of `records` of any partitions, in the order of their first records."""
    runs: list[LogRun] = []
    last: dict[tuple[int, int, int], int] = {}
    for table, index, incarnation, ballot, decree, committed, _, payload in records:
        size = RECORD_BYTES + len(payload)
        key = (table, index, incarnation)
        at = last.get(key)
        if at is not None and runs[at].ballot == ballot and runs[at].last + 1 == decree:
            run = runs[at]
            runs[at] = run._replace(last=decree, committed=committed, size=run.size + size)
        else:
            last[key] = len(runs)
            runs.append(LogRun(*key, ballot, decree, decree, committed, size))
    return runs


def valid_history(records: Iterable[LogRecord], *, ballot: int = 0) -> list[LogRecord]:
    """Return what of one replica's records ever was: one for each decree, in their order.

    For each decree the record of the highest ballot; read upward, the history ends before
    the first decree whose ballot is lower than that of the one below: what lies beyond was
    prepared under an older primary and lost. It depends on (ballot, decree) alone, never
    on where a record lies, so copies change nothing. `ballot` is that of the decree below
    the first, if it is known. A decree that is missing is left out: the caller looks for it.
    """
    best: dict[int, LogRecord] = {}
    for record in records:
        there = best.get(record.decree)
        if there is None or record.ballot > there.ballot:
            best[record.decree] = record
    history: list[LogRecord] = []
    for decree in sorted(best):
        record = best[decree]
        if record.ballot < ballot:
            break
        ballot = record.ballot
        history.append(record)
    return history
