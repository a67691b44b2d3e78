"""Bytes of the log: what was written is read, and nothing else is believed."""

import struct
from random import Random

import google_crc32c
import pytest

from pegaskv.base.errors import CorruptionError, UnsupportedFormat
from pegaskv.base.types import Gpid
from pegaskv.storage.log_format import (
    DATA_START,
    RECORD_BYTES,
    TRAILER_BYTES,
    LogRecord,
    LogRun,
    SegmentHeader,
    decode_footer,
    decode_records,
    encode_block,
    encode_footer,
    encode_header,
    encode_records,
    find_frames,
    footer_begins,
    footer_bytes,
    footer_offset,
    parse_header,
    position_of,
    runs_of,
    scan_frames,
    valid_history,
    wrap_records,
)
from tests.storage.fakes import record

HEADER = SegmentHeader(7, 0xDEADBEEF, position_of(6, 12_345))
A, B = Gpid(1, 0), Gpid(2, 5)


def any_record(random: Random) -> LogRecord:
    small, large = 1 << 32, 1 << 64
    numbers = [random.randrange(small) for _ in range(4)]
    numbers += [random.randrange(large) for _ in range(3)]
    return LogRecord(*numbers, random.randbytes(random.choice((0, 1, 30, 3_000))))


def segment(bodies: list[list[LogRecord]], *, footer: bool = False) -> tuple[bytes, list[int]]:
    """A segment of these blocks, and where each of its frames ends."""
    data = encode_header(HEADER)
    ends = []
    for records in bodies:
        position = position_of(HEADER.number, len(data))
        data += encode_block(records, position=position, synced=position - 9, salt=HEADER.salt)
        ends.append(len(data))
    if footer:
        runs = runs_of(one for records in bodies for one in records)
        position = position_of(HEADER.number, len(data))
        data += encode_footer(runs, position=position, synced=position, salt=HEADER.salt)
        ends.append(len(data))
    return data, ends


def small_segment(*, footer: bool = False) -> tuple[bytes, list[int]]:
    return segment(
        [[record(A, 1), record(B, 1)], [record(A, 2)], [], [record(B, 2), record(B, 3)]],
        footer=footer,
    )


def flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def test_records_of_any_size_and_number_come_back_as_they_were() -> None:
    random = Random(1)
    bodies = [[any_record(random) for _ in range(random.randrange(6))] for _ in range(60)]
    data, ends = segment(bodies, footer=True)
    assert parse_header(data, HEADER.number) == HEADER
    frames = scan_frames(data + bytes(5_000), HEADER, DATA_START)
    assert [frame.end for frame in frames] == ends
    assert [frame.is_footer for frame in frames] == [False] * 60 + [True]
    assert frames[0].synced == position_of(HEADER.number, DATA_START) - 9
    for frame, body in zip(frames[:-1], bodies, strict=True):
        decoded = decode_records(data, frame.start, frame.end)
        assert decoded == body
        assert all(type(one) is LogRecord for one in decoded)
    # What is read from the middle of a segment is the same.
    base = ends[10]
    assert scan_frames(data[base:], HEADER, base, base=base) == frames[11:]


def test_copied_records_make_the_block_that_they_would_have_made_at_first() -> None:
    records = [record(A, 5), record(B, 9, size=700)]
    place = {"position": position_of(7, DATA_START), "synced": 88, "salt": 5}
    assert wrap_records(encode_records(records), **place) == encode_block(records, **place)


def test_the_layout_is_the_documented_one() -> None:
    block = encode_block([record(A, 3)], position=77, synced=66, salt=0)
    payload = record(A, 3).payload
    body = struct.pack(">QQ", 77, 66)
    body += struct.pack(">BIIIIQQQI", 1, 1, 0, 1, 1, 3, 2, 30, len(payload)) + payload
    assert block == b"PKVB" + struct.pack(">II", len(body), google_crc32c.value(body)) + body


def test_a_segment_that_is_cut_anywhere_gives_the_blocks_before_the_cut() -> None:
    data, ends = small_segment(footer=True)
    for cut in range(DATA_START, len(data)):
        whole = [end for end in ends if end <= cut]
        for tail in (b"", bytes(300)):
            torn = data[:cut] + tail
            frames = scan_frames(torn, HEADER, DATA_START)
            found = [frame.end for frame in frames]
            # Zeros behind the cut may be what was there before it.
            assert found == (whole if torn[: len(data)] != data else ends)
            assert find_frames(torn, HEADER, DATA_START) == frames


def test_no_flipped_byte_passes_and_the_blocks_behind_it_are_still_found() -> None:
    data, ends = small_segment(footer=True)
    # All bits of each frame's head; elsewhere one bit of each byte will do.
    places = [(at, 1 << at % 8) for at in range(DATA_START, len(data))]
    heads = [DATA_START, *ends[:-1]]
    places += [(at + byte, 1 << bit) for at in heads for byte in range(28) for bit in range(8)]
    for at, bits in places:
        damaged = flipped(data, at, bits)
        before = [end for end in ends if end <= at]
        frames = scan_frames(damaged, HEADER, DATA_START)
        assert [frame.end for frame in frames] == before, at
        found = [frame.end for frame in find_frames(damaged, HEADER, DATA_START)]
        assert found == before + ends[len(before) + 1 :], at


def test_a_flipped_byte_in_one_header_costs_nothing_and_one_in_both_everything() -> None:
    data = encode_header(HEADER)
    used = 8 + 2 + 4 + 16 + 4
    for at in range(used):
        for bits in (0x01, 0x80):
            first = flipped(data, at, bits)
            assert parse_header(first, HEADER.number) == HEADER
            assert parse_header(flipped(data, 4_096 + at, bits), HEADER.number) == HEADER
            assert parse_header(flipped(first, 4_096 + at, bits), HEADER.number) is None
    assert parse_header(data, HEADER.number + 1) is None
    for cut in range(used):
        assert parse_header(data[:cut], HEADER.number) is None
    assert parse_header(bytes(DATA_START), HEADER.number) is None


def test_a_segment_of_another_version_is_refused_by_its_number_whatever_follows() -> None:
    prefix = struct.pack(">8sH", b"PKV\rLOG\n", 250)
    data = (prefix + struct.pack(">I", google_crc32c.value(prefix))).ljust(4_096, b"?") * 2
    with pytest.raises(UnsupportedFormat, match=r"segment 7 has version 250.* knows 1"):
        parse_header(data, 7)
    # Only with its checksum: a damaged version is damage.
    assert parse_header(flipped(flipped(data, 9, 1), 4_105, 1), 7) is None


def test_a_record_of_another_version_and_lengths_that_do_not_add_up_are_refused() -> None:
    body = encode_records([record(A, 1), record(A, 2)])
    second = len(body) // 2
    for changed, error in (
        (body[:second] + b"\x02" + body[second + 1 :], UnsupportedFormat),
        (body[:-1], CorruptionError),
        (body + b"\x01", CorruptionError),
        (body[: second + RECORD_BYTES - 1], CorruptionError),
    ):
        block = wrap_records(changed, position=1, synced=0, salt=3)
        with pytest.raises(error):
            decode_records(block, 0, len(block))


def test_a_block_that_was_copied_elsewhere_or_comes_from_another_segment_is_none() -> None:
    data, ends = small_segment()
    block = data[DATA_START : ends[0]]
    moved = data + block
    assert [frame.end for frame in find_frames(moved, HEADER, DATA_START)] == ends
    for other in (HEADER._replace(number=8), HEADER._replace(salt=HEADER.salt ^ 1)):
        assert scan_frames(data, other, DATA_START) == []
        assert find_frames(data, other, DATA_START) == []


def test_a_value_that_looks_like_a_block_is_no_block_to_who_does_not_know_the_salt() -> None:
    believed = 0
    for salt, expected in ((HEADER.salt + 1, 0), (0, 0), (HEADER.salt, 1)):
        # The position is right; only the salt is a guess.
        position = position_of(7, DATA_START + 28 + RECORD_BYTES)
        planted = encode_block([record(B, 99)], position=position, synced=1 << 60, salt=salt)
        data = bytearray(segment([[LogRecord(*A, 1, 1, 1, 0, 0, planted)]])[0])
        data[DATA_START] ^= 1
        found = find_frames(bytes(data), HEADER, DATA_START)
        assert len(found) == expected
        believed += len(found)
    assert believed == 1, "the guess was never at the right place"


def test_footers_are_found_from_the_end_and_say_every_run() -> None:
    random = Random(3)
    for count in (0, 1, 2, 40):
        runs = [
            LogRun(
                *(random.randrange(1 << 32) for _ in range(4)),
                *(random.randrange(1 << 64) for _ in range(4)),
            )
            for _ in range(count)
        ]
        data, _ = small_segment()
        start = len(data)
        data += encode_footer(runs, position=position_of(7, start), synced=1, salt=HEADER.salt)
        assert len(data) - start == footer_bytes(count)
        assert footer_offset(data[-TRAILER_BYTES:], len(data)) == start
        frame = scan_frames(data, HEADER, start)[0]
        assert decode_footer(data, frame.start, frame.end) == runs
        for cut in range(1, TRAILER_BYTES):
            assert footer_offset(data[:-cut][-TRAILER_BYTES:], len(data) - cut) == 0
        for at in range(start, len(data)):
            assert footer_begins(flipped(data, at, 4), start), "one bad byte hides a footer"
        with pytest.raises(CorruptionError):
            decode_footer(data, frame.start, frame.end - 1)
    assert not footer_begins(*_damaged_last_block())


def _damaged_last_block() -> tuple[bytes, int]:
    data, ends = small_segment()
    return flipped(data, ends[-1] - 1, 1), ends[-2]


@pytest.mark.parametrize("seed", range(30))
def test_runs_are_the_records_of_one_ballot_in_their_order(seed: int) -> None:
    random = Random(seed)
    records = []
    decrees = {A: 0, B: 0}
    for _ in range(200):
        gpid = random.choice((A, B))
        decrees[gpid] += random.choice((1, 1, 1, 1, 3, -2))
        decrees[gpid] = max(decrees[gpid], 1)
        records.append(record(gpid, decrees[gpid], ballot=len(records) // 60 + 1))
    runs = runs_of(records)
    assert 10 < len(runs) < 200
    for gpid in (A, B):
        spelled = [
            (decree, run.ballot)
            for run in runs
            if run[:2] == gpid
            for decree in range(run.first, run.last + 1)
        ]
        own = [one for one in records if one[:2] == gpid]
        assert spelled == [(one.decree, one.ballot) for one in own]
        size = sum(RECORD_BYTES + len(one.payload) for one in own)
        assert sum(run.size for run in runs if run[:2] == gpid) == size
        assert all(run.committed == run.last - 1 for run in runs)


def test_a_ghost_of_an_older_primary_never_comes_back() -> None:
    # 102 was prepared under ballot 3 only; the primary of ballot 4 never had it.
    log = [record(A, 100, ballot=3), record(A, 101, ballot=3), record(A, 102, ballot=3)]
    log.append(record(A, 101, ballot=4))
    assert valid_history(log) == [log[0], log[3]]
    # What is known of the decree below counts as well.
    assert valid_history(log, ballot=4) == []
    assert valid_history(log[3:], ballot=4) == [log[3]]


@pytest.mark.parametrize("seed", range(60))
def test_the_history_is_that_of_the_last_primary_however_often_records_were_copied(
    seed: int,
) -> None:
    random = Random(seed)
    truth: list[LogRecord] = []
    log: list[LogRecord] = []
    committed = 0
    ghosts = 0
    for ballot in range(1, random.randint(2, 12)):
        kept = random.randint(committed, len(truth))
        fresh = [
            record(A, decree, ballot=ballot)
            for decree in range(kept + 1, kept + 1 + random.randint(1, 6))
        ]
        ghosts += max(len(truth) - kept - len(fresh), 0)
        truth = truth[:kept] + fresh
        log += fresh
        committed = random.randint(committed, len(truth))
    log += random.choices(log, k=10)
    random.shuffle(log)
    assert valid_history(log) == truth
    # The same, said in one sentence over all pairs.
    best = {d: max(one.ballot for one in log if one.decree == d) for d in {r.decree for r in log}}
    stays = [
        decree
        for decree in sorted(best)
        if all(best[low] <= best[high] for low in best for high in best if low <= high <= decree)
    ]
    assert [one.decree for one in truth] == stays
    assert ghosts or len(stays) == len(best)


def test_a_segment_is_what_the_page_of_formats_says() -> None:
    records = [record(A, 4), record(B, 5, ballot=3)]
    at = position_of(7, DATA_START)
    header = encode_header(HEADER)
    block = encode_block(records, position=at, synced=at, salt=HEADER.salt)
    footer = encode_footer(runs_of(records), position=at + len(block), synced=at, salt=HEADER.salt)

    # From here on with numbers of the page alone.
    assert len(header) == 8_192
    assert header[:4_096] == header[4_096:]
    assert struct.unpack(">8sH", header[:10]) == (b"PKV\rLOG\n", 1)
    (prefix_crc, number, salt, synced, crc) = struct.unpack(">IIIQI", header[10:34])
    assert (prefix_crc, crc) == (google_crc32c.value(header[:10]), google_crc32c.value(header[:30]))
    assert (number, salt, synced) == (7, 0xDEADBEEF, 6 << 32 | 12_345)

    for frame, wanted, seed in (
        (block, b"PKVB", salt),
        (footer, b"PKVF", salt ^ int.from_bytes(b"PKVF", "big")),
    ):
        magic, length, crc = struct.unpack(">4sII", frame[:12])
        assert (magic, length) == (wanted, len(frame) - 12)
        assert crc == google_crc32c.extend(seed, frame[12:])
    assert struct.unpack(">QQ", block[12:28]) == (7 << 32 | 8_192, 7 << 32 | 8_192)
    found = []
    rest = block[28:]
    while rest:
        *fields, length = struct.unpack(">BIIIIQQQI", rest[:45])
        found.append((*fields[1:], rest[45 : 45 + length]))
        assert fields[0] == 1
        rest = rest[45 + length :]
    assert found == [tuple(each) for each in records]
    runs, end = footer[28:-8], struct.unpack(">I4s", footer[-8:])
    assert end == (len(footer), b"PKVE")
    assert [run[0] for run in struct.iter_unpack(">IIIIQQQQ", runs)] == [1, 2]
