"""Range reads and scans against a plain model."""

import random
from collections.abc import Iterator

import pytest

from pegaskv.base.limits import PAGE_BYTES_MAX, PAGE_ROWS_MAX
from pegaskv.base.types import FilterType
from pegaskv.codec.keys import encode_key
from pegaskv.codec.operations import RangeFlag, ScanFlag
from pegaskv.codec.values import is_visible, make_timetag, pack_row_header
from pegaskv.replica.checks import matches
from pegaskv.replica.reads import RangeRead, ScanRead, multi_get_keys, multi_get_range, scan
from pegaskv.storage.engine import in_chunks

NOW = 1_000


class ModelSnapshot:
    """Rows in a dictionary, read in order."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self.rows = rows

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False, marks: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        keys = sorted(key for key in self.rows if start <= key and (not stop or key < stop))
        for key in reversed(keys) if reverse else keys:
            yield key, self.rows[key]

    def chunks(self, start: bytes, stop: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
        return in_chunks(self.iterate(start, stop, marks=True))

    def close(self) -> None:
        pass


def row(data: bytes, *, expiry: int = 0, deleted: bool = False) -> bytes:
    return pack_row_header(expiry, make_timetag(1, 1, deleted=deleted)) + data


def rows_of(hash_key: bytes, sort_keys: list[bytes]) -> dict[bytes, bytes]:
    return {encode_key(hash_key, sort_key): row(b"v" + sort_key) for sort_key in sort_keys}


def never() -> bool:
    return False


def range_read(**fields: object) -> RangeRead:
    defaults: dict[str, object] = {
        "hash_key": b"h",
        "start": b"",
        "stop": b"",
        "flags": int(RangeFlag.START_INCLUSIVE),
        "filter_type": 0,
        "pattern": b"",
        "rows_max": 0,
        "bytes_max": 0,
    }
    return RangeRead(**(defaults | fields))  # type: ignore[arg-type]


def scan_read(**fields: object) -> ScanRead:
    defaults: dict[str, object] = {
        "start": b"",
        "stop": b"",
        "flags": 0,
        "hash_filter": 0,
        "hash_pattern": b"",
        "sort_filter": 0,
        "sort_pattern": b"",
        "value_filter": 0,
        "value_pattern": b"",
        "rows_max": 0,
        "bytes_max": 0,
    }
    return ScanRead(**(defaults | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(150))
def test_any_range_read_equals_the_model(seed: int) -> None:
    rng = random.Random(seed)
    alphabet = [b"", b"\x00", b"a", b"aa", b"ab", b"b", b"\xff", b"\xff\xff", b"a\xff", b"c"]
    sort_keys = rng.sample(alphabet, rng.randint(0, len(alphabet)))
    rows = rows_of(b"h", sort_keys) | rows_of(b"g", [b"x"]) | rows_of(b"hh", [b"", b"a"])
    flags = rng.randrange(16)
    start, stop = rng.choice(alphabet), rng.choice(alphabet)
    kind, pattern = rng.randrange(5), rng.choice([b"", b"a", b"\xff", b"b"])
    rows_max = rng.choice([0, -1, 1, 2, 3, 100])
    expected = sorted(
        sort_key
        for sort_key in sort_keys
        if (sort_key > start or (sort_key == start and flags & RangeFlag.START_INCLUSIVE))
        and (
            not stop
            or sort_key < stop
            or (sort_key == stop and bool(flags & RangeFlag.STOP_INCLUSIVE))
        )
        and matches(kind, pattern, sort_key)
    )
    complete, found, last = multi_get_range(
        ModelSnapshot(rows),
        range_read(
            start=start,
            stop=stop,
            flags=flags,
            filter_type=kind,
            pattern=pattern,
            rows_max=rows_max,
        ),
        now=NOW,
        is_late=never,
    )
    limit = rows_max if rows_max > 0 else len(expected)
    kept = expected[-limit:] if flags & RangeFlag.REVERSE and limit else expected[:limit]
    assert found[::2] == kept
    assert complete == (len(kept) == len(expected))
    assert (last is None) == complete
    no_value = flags & RangeFlag.NO_VALUE
    assert found[1::2] == [b"" if no_value else b"v" + sort_key for sort_key in kept]


def test_expired_and_deleted_rows_are_in_no_answer() -> None:
    rows = {
        encode_key(b"h", b"a"): row(b"1", expiry=NOW),
        encode_key(b"h", b"b"): row(b"2", expiry=NOW + 1),
        encode_key(b"h", b"c"): row(b"", deleted=True),
    }
    snapshot = ModelSnapshot(rows)
    assert multi_get_range(snapshot, range_read(), now=NOW, is_late=never)[1] == [b"b", b"2"]
    assert scan(snapshot, scan_read(), now=NOW, is_late=never)[1] == 1
    assert multi_get_keys(rows.get, range_read(), [b"a", b"b", b"c"], now=NOW, is_late=never) == (
        True,
        [b"b", b"2"],
        None,
    )


def test_reaching_the_end_exactly_is_complete() -> None:
    snapshot = ModelSnapshot(rows_of(b"h", [b"a", b"b"]))
    for rows_max, expected in ((1, False), (2, True), (3, True)):
        complete, *_ = multi_get_range(
            snapshot, range_read(rows_max=rows_max), now=NOW, is_late=never
        )
        assert complete is expected


def test_a_byte_limit_lets_the_row_that_reaches_it_through() -> None:
    snapshot = ModelSnapshot(rows_of(b"h", [b"a", b"b", b"c"]))
    complete, found, last = multi_get_range(
        snapshot, range_read(bytes_max=4), now=NOW, is_late=never
    )
    assert (complete, found[::2], last) == (False, [b"a", b"b"], b"b")


class MarkedSnapshot(ModelSnapshot):
    """Thousands of removed rows were before each empty one."""

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False, marks: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for key, row in super().iterate(start, stop, reverse=reverse):
            if row or marks:
                yield key, row


def test_a_page_may_end_among_removed_rows_and_goes_on_there() -> None:
    rows = {encode_key(b"h", b"%03d" % number): b"" for number in range(20)}
    rows |= rows_of(b"h", [b"005x", b"zz"])
    snapshot = MarkedSnapshot(rows)
    start: bytes | None = b""
    found: list[object] = []
    pages = 0
    while start is not None:
        page = scan(snapshot, scan_read(start=start), now=NOW, is_late=lambda: True)
        assert page[0] is None or page[0] > start
        found += page[2][::2]
        start = page[0]
        pages += 1
    assert found == [encode_key(b"h", b"005x"), encode_key(b"h", b"zz")]
    assert pages > 10
    for reverse in (0, int(RangeFlag.REVERSE)):
        flags = int(RangeFlag.START_INCLUSIVE) | reverse
        late = multi_get_range(snapshot, range_read(flags=flags), now=NOW, is_late=lambda: True)
        assert late[0] is False
        assert late[2] == (b"019" if reverse else b"000")
        whole = multi_get_range(snapshot, range_read(flags=flags), now=NOW, is_late=never)
        assert whole == (True, [b"005x", b"v005x", b"zz", b"vzz"], None)


def test_named_keys_come_ascending_once_and_within_the_limits() -> None:
    rows = rows_of(b"h", [b"a", b"b", b"c"])
    complete, found, last = multi_get_keys(
        rows.get,
        range_read(flags=RangeFlag.NO_VALUE, rows_max=2),
        [b"c", b"x", b"a", b"c", b"b"],
        now=NOW,
        is_late=never,
    )
    assert (complete, found, last) == (False, [b"a", b"", b"b", b""], b"b")


def test_many_named_keys_end_with_their_time_and_say_where() -> None:
    names = [b"%04d" % number for number in range(200)]
    rows = rows_of(b"h", names)
    page = multi_get_keys(rows.get, range_read(), names, now=NOW, is_late=lambda: True)
    assert page[0] is False
    # A page always makes progress.
    assert page[1][::2] == names[:64]
    assert page[2] == names[63]


def test_a_scan_goes_on_where_a_page_ended_and_sees_each_row_once() -> None:
    keys = [b"%04d" % number for number in range(PAGE_ROWS_MAX * 2 + 5)]
    snapshot = ModelSnapshot(rows_of(b"h", keys) | {b"\xff\xffstate": b"secret"})
    start: bytes | None = b""
    seen: list[bytes] = []
    pages = 0
    while start is not None:
        start, count, found = scan(snapshot, scan_read(start=start), now=NOW, is_late=never)
        assert count == len(found) // 2 <= PAGE_ROWS_MAX
        seen += [key for key in found[::2] if isinstance(key, bytes)]
        pages += 1
    assert seen == [encode_key(b"h", key) for key in keys]
    assert pages == 3


def test_a_late_page_ends_early_and_still_makes_progress() -> None:
    snapshot = ModelSnapshot(rows_of(b"h", [b"%04d" % number for number in range(200)]))
    start: bytes | None = b""
    total = pages = 0
    while start is not None:
        start, count, _ = scan(snapshot, scan_read(start=start), now=NOW, is_late=lambda: True)
        total += count
        pages += 1
    assert total == 200
    assert pages > 2


def test_counting_carries_no_rows_and_no_page_limit() -> None:
    keys = [b"%04d" % number for number in range(PAGE_ROWS_MAX + 5)]
    answer = scan(
        ModelSnapshot(rows_of(b"h", keys)),
        scan_read(flags=int(ScanFlag.COUNT_ONLY)),
        now=NOW,
        is_late=never,
    )
    assert answer == (None, len(keys), [])


def test_the_servers_own_keys_are_in_no_scan() -> None:
    snapshot = ModelSnapshot(rows_of(b"h", [b"a"]) | {b"\xff\xffstate": row(b"secret")})
    for start, stop in ((b"", b""), (b"", b"\xff\xff\xff"), (b"\xff\xff", b"")):
        _, _, found = scan(snapshot, scan_read(start=start, stop=stop), now=NOW, is_late=never)
        assert b"secret" not in found


def test_scan_filters_look_at_hash_key_sort_key_and_value() -> None:
    rows = rows_of(b"one", [b"a", b"b"]) | rows_of(b"two", [b"a", b"ab"])
    snapshot = ModelSnapshot(rows)
    prefix = int(FilterType.MATCH_PREFIX)

    def names(**fields: object) -> list[object]:
        return scan(snapshot, scan_read(**fields), now=NOW, is_late=never)[2][::2]

    assert names(hash_filter=prefix, hash_pattern=b"o") == [
        encode_key(b"one", b"a"),
        encode_key(b"one", b"b"),
    ]
    assert names(sort_filter=prefix, sort_pattern=b"ab") == [encode_key(b"two", b"ab")]
    assert names(value_filter=int(FilterType.MATCH_EXACT), value_pattern=b"vb") == [
        encode_key(b"one", b"b")
    ]


def test_expiry_is_returned_when_it_is_asked_for() -> None:
    snapshot = ModelSnapshot({encode_key(b"h", b"a"): row(b"1", expiry=NOW + 9)})
    _, _, found = scan(
        snapshot, scan_read(flags=int(ScanFlag.RETURN_EXPIRY)), now=NOW, is_late=never
    )
    assert found == [encode_key(b"h", b"a"), b"1", NOW + 9]


class CountedSnapshot(ModelSnapshot):
    """Says how many rows were taken of it."""

    taken = 0

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False, marks: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for pair in super().iterate(start, stop, reverse=reverse, marks=marks):
            self.taken += 1
            yield pair


@pytest.mark.parametrize("seed", range(60))
def test_each_page_has_what_its_limits_let_through_and_no_more(seed: int) -> None:
    """All rows at once, and one by one where some are hidden: the limits are the same."""
    chance = random.Random(seed)
    hidden = chance.choice([0, 0, 0.01, 0.3])
    rows = {}
    for number in range(chance.choice([5, 60, 400])):
        expiry = chance.choice([NOW, NOW + 9, 0]) if chance.random() < hidden else 0
        deleted = chance.random() < hidden / 2
        value = bytes(chance.choice([0, 9, 40] if seed % 4 else [9, 30_000]))
        rows[encode_key(b"h%03d" % number, b"")] = row(value, expiry=expiry, deleted=deleted)
    visible = [(key, stored[12:]) for key, stored in rows.items() if is_visible(stored, NOW)]
    snapshot = ModelSnapshot(rows)
    rows_max = chance.choice([0, 1, 7, 40, 64])
    bytes_max = chance.choice([0, 1, 300, 1_000, 5_000])
    flags = chance.choice([0, 0, int(ScanFlag.NO_VALUE)])
    start: bytes | None = b""
    found: list[tuple[object, object]] = []
    while start is not None:
        read = scan_read(start=start, flags=flags, rows_max=rows_max, bytes_max=bytes_max)
        start, count, flat = scan(snapshot, read, now=NOW, is_late=never)
        page = list(zip(flat[::2], flat[1::2], strict=True))
        assert count == len(page) <= (rows_max or PAGE_ROWS_MAX)
        sizes = [len(key) + len(value) for key, value in page]  # type: ignore[arg-type]
        most = bytes_max or PAGE_BYTES_MAX
        assert sum(sizes[:-1]) < most
        if start is not None:
            assert count == (rows_max or PAGE_ROWS_MAX) or sum(sizes) >= most
            assert not page or start > page[-1][0]  # type: ignore[operator]
        found += page
    assert found == [(key, b"" if flags else value) for key, value in visible]


@pytest.mark.parametrize("limits", [{"rows_max": 21}, {"bytes_max": 21 * 17}])
def test_a_page_that_is_full_does_not_walk_over_hidden_rows(limits: dict[str, int]) -> None:
    rows = {encode_key(b"h", b"%04d" % number): row(b"vvvvvvvvvv") for number in range(21)}
    rows |= {encode_key(b"h", b"x%04d" % number): row(b"", deleted=True) for number in range(5_000)}
    snapshot = CountedSnapshot(rows)
    resume, count, _ = scan(snapshot, scan_read(**limits), now=NOW, is_late=never)
    assert (resume, count) == (encode_key(b"h", b"x0000"), 21)
    assert snapshot.taken < 60
