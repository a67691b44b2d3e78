"""Rows: expiry, timetag and who sees what."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pegaskv.base.limits import TTL_SECONDS_MAX
from pegaskv.base.types import EPOCH_UNIX_SECONDS
from pegaskv.codec.values import (
    ROW_HEADER_BYTES,
    TIMESTAMP_MAX,
    decode_row,
    expiry_from_ttl,
    is_deleted,
    is_visible,
    make_timetag,
    pack_row_header,
    row_data,
    row_expiry,
    row_timetag,
    seconds_since_epoch,
)

TIMESTAMPS = st.integers(0, TIMESTAMP_MAX - 1)
CLUSTERS = st.integers(1, 127)
EXPIRIES = st.integers(0, 2**32 - 1)


@given(EXPIRIES, TIMESTAMPS, CLUSTERS, st.booleans(), st.binary(max_size=30))
def test_a_row_is_decoded_as_it_was_encoded(
    expiry: int, timestamp: int, cluster: int, deleted: bool, data: bytes
) -> None:
    timetag = make_timetag(timestamp, cluster, deleted=deleted)
    row = pack_row_header(expiry, timetag) + data
    assert decode_row(row) == (expiry, timetag, data)
    assert row_expiry(row) == expiry
    assert row_timetag(row) == timetag
    assert row_data(row) == data
    assert is_deleted(row) == deleted


@given(
    st.tuples(TIMESTAMPS, CLUSTERS, st.booleans()), st.tuples(TIMESTAMPS, CLUSTERS, st.booleans())
)
def test_timetags_compare_as_bytes_in_last_writer_wins_order(
    a: tuple[int, int, bool], b: tuple[int, int, bool]
) -> None:
    first = make_timetag(a[0], a[1], deleted=a[2])
    second = make_timetag(b[0], b[1], deleted=b[2])
    rows = [pack_row_header(expiry, tag) for expiry, tag in ((7, first), (3, second))]
    assert (a < b) == (first < second) == (rows[0][4:12] < rows[1][4:12])


def test_of_one_instant_the_larger_cluster_wins() -> None:
    assert make_timetag(5, 1, deleted=True) < make_timetag(5, 2)


def test_of_two_instants_the_later_wins_whatever_the_cluster() -> None:
    assert make_timetag(5, 127, deleted=True) < make_timetag(6, 1)


def test_the_largest_timestamp_fits_the_eight_bytes() -> None:
    timetag = make_timetag(TIMESTAMP_MAX - 1, 127, deleted=True)
    assert row_timetag(pack_row_header(0, timetag)) == timetag
    # Year 3111: far enough.
    assert TIMESTAMP_MAX // 1_000_000 // 31_556_952 + 1970 > 3000


@given(EXPIRIES, EXPIRIES)
def test_a_row_is_visible_until_the_second_it_expires(expiry: int, now: int) -> None:
    row = pack_row_header(expiry, make_timetag(1, 1)) + b"data"
    assert is_visible(row, now) == (expiry == 0 or now < expiry)


@given(EXPIRIES, EXPIRIES)
def test_a_tombstone_is_never_visible(expiry: int, now: int) -> None:
    assert not is_visible(pack_row_header(expiry, make_timetag(1, 1, deleted=True)), now)


def test_a_row_expires_at_its_second_and_not_one_later() -> None:
    row = pack_row_header(100, make_timetag(1, 1))
    assert [is_visible(row, now) for now in (99, 100, 101)] == [True, False, False]


def test_seconds_count_from_2016() -> None:
    assert seconds_since_epoch(EPOCH_UNIX_SECONDS * 1_000_000) == 0
    assert seconds_since_epoch((EPOCH_UNIX_SECONDS + 5) * 1_000_000 + 999_999) == 5


@given(st.integers(0, EPOCH_UNIX_SECONDS * 1_000_000), st.integers(1, TTL_SECONDS_MAX))
def test_a_clock_before_2016_still_gives_rows_that_can_be_stored(wall_us: int, ttl: int) -> None:
    expiry = expiry_from_ttl(ttl, seconds_since_epoch(wall_us))
    assert row_expiry(pack_row_header(expiry, 0)) == expiry == ttl


@given(st.integers(0, 2**31), st.integers(1, TTL_SECONDS_MAX))
def test_the_longest_time_to_live_fits_for_decades(now: int, ttl: int) -> None:
    assume(now < 70 * 365 * 86_400)
    expiry = expiry_from_ttl(ttl, now)
    assert 0 < expiry == now + ttl < 2**32


def test_no_time_to_live_is_for_ever() -> None:
    assert expiry_from_ttl(0, 1_000) == 0


@pytest.mark.parametrize(("ttl", "now"), [(1, 0), (1, 5)])
def test_a_time_to_live_never_becomes_for_ever(ttl: int, now: int) -> None:
    assert expiry_from_ttl(ttl, now) > 0


def test_the_layout_of_a_row_never_changes() -> None:
    row = pack_row_header(0x01020304, make_timetag(0x0A0B0C0D0E0F, 3, deleted=True)) + b"xy"
    assert row.hex() == "01020304" + "000a0b0c0d0e0f07" + "7879"
    assert ROW_HEADER_BYTES == 12
