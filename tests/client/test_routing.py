from itertools import pairwise
from random import Random
from typing import Any

import pytest

from pegaskv.base import errors
from pegaskv.base.errors import RequestError, Timeout, Unavailable, WireError
from pegaskv.client.options import Filter, RangeOptions
from pegaskv.client.ranges import full_range, hash_range, sort_range
from pegaskv.client.retry import PAUSE_MS_MAX, ROUTING_PAUSE_MS_MAX, BackOff, Deadline, Pace
from pegaskv.client.routing import Advice, PartitionTable, advise, read_partition_table


def test_writes_wait_for_the_disk_unless_the_meta_server_says_that_they_do_not() -> None:
    fields = [3, 1, 7, [[0, 1, "a:1", []]]]
    assert read_partition_table(fields, asked="a:1").waits
    assert read_partition_table([*fields, "fsync"], asked="a:1").waits
    assert not read_partition_table([*fields, "os"], asked="a:1").waits


def test_an_empty_primary_is_the_address_that_was_asked() -> None:
    fields = [3, 2, 7, [[1, 1, "", []], [0, 1, None, ["b:1"]]]]
    assert read_partition_table(fields, asked="a:1") == PartitionTable(
        3, 7, (None, "a:1"), (("b:1",), ())
    )


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [1, 2, 3],
        ["1", 2, 1, []],
        [1, 3, 1, []],
        [1, 0, 1, []],
        [1, 4096, 1, []],
        [1, True, 1, []],
        [1, 2, 1, None],
        [1, 2, 1, [[2, 1, "", []]]],
        [1, 2, 1, [[-1, 1, "", []]]],
        [1, 2, 1, [[0, 1, "", []], [0, 1, "", []]]],
        [1, 2, 1, [[0, 1, 5, []]]],
        [1, 2, 1, [[0, 1]]],
        [1, 2, 1, [5]],
    ],
)
def test_a_malformed_partition_table_is_refused(fields: list[Any]) -> None:
    with pytest.raises(WireError):
        read_partition_table(fields, asked="a:1")


def test_an_older_table_never_replaces_a_newer_one_of_the_same_id() -> None:
    known = PartitionTable(3, 7, ("a:1",))
    assert not PartitionTable(3, 6, ("b:1",)).replaces(known)
    assert PartitionTable(3, 7, ("b:1",)).replaces(known)
    assert PartitionTable(4, 1, ("b:1",)).replaces(known)
    assert PartitionTable(3, 1, ("b:1",)).replaces(None)


def test_a_write_of_unknown_outcome_is_repeated_only_on_request() -> None:
    for cls in (Timeout, Unavailable):
        assert advise(cls("", maybe_applied=True), retry_unknown=False) is Advice.GIVE_UP
        assert advise(cls("", maybe_applied=True), retry_unknown=True) is Advice.REFRESH
        assert advise(cls(""), retry_unknown=False) is Advice.REFRESH


def test_advice_agrees_with_what_the_errors_say_of_themselves() -> None:
    checked = 0
    for name in errors.__all__:
        cls = getattr(errors, name)
        if not (isinstance(cls, type) and issubclass(cls, RequestError)) or cls is RequestError:
            continue
        advice = advise(cls("x"), retry_unknown=False)
        if cls.refresh_routing:
            assert advice is Advice.REFRESH, name
        elif cls.retryable and cls is not errors.ForwardToOthers:
            assert advice is Advice.AGAIN, name
        elif cls in (errors.TableNotFound, errors.PartitionClosed):
            assert advice in (Advice.REFRESH_ONCE, Advice.ELSEWHERE), name
        elif cls not in (Timeout, Unavailable, errors.ForwardToOthers):
            assert advice is Advice.GIVE_UP, name
        checked += 1
    assert checked > 20


def test_pauses_begin_at_nothing_and_double_up_to_a_second() -> None:
    back_off = BackOff(Random(3))
    pauses = [back_off.next_ms() for _ in range(40)]
    assert pauses[0] == 0
    for number, pause in enumerate(pauses[1:]):
        ceiling = min(PAUSE_MS_MAX, 8 << number)
        assert ceiling // 2 <= pause <= ceiling
    assert len(set(pauses[10:])) > 5, "chance took no part"
    assert back_off.next_ms(at_least_ms=5_000) == 5_000


def test_a_pause_is_no_longer_than_its_kind_may_be() -> None:
    back_off = BackOff(Random(3))
    assert max(back_off.next_ms(at_most_ms=ROUTING_PAUSE_MS_MAX) for _ in range(40)) <= 250
    assert back_off.next_ms(at_least_ms=5_000, at_most_ms=250) == 5_000


def test_a_question_of_many_is_asked_at_once_and_then_at_a_pace() -> None:
    pace, now_ms, asked_at_ms = Pace(Random(3)), 5_000, []
    while now_ms < 15_000:
        now_ms += pace.wait_ms(now_ms=now_ms)
        pace.on_asked(now_ms=now_ms)
        asked_at_ms.append(now_ms)
        now_ms += 1
    assert asked_at_ms[0] == 5_000
    gaps = [b - a for a, b in pairwise(asked_at_ms)]
    assert all(ROUTING_PAUSE_MS_MAX // 2 <= gap <= ROUTING_PAUSE_MS_MAX for gap in gaps[6:])
    assert len(asked_at_ms) > 30
    # After a calm time it is the first again.
    pace.on_asked(now_ms=20_000)
    assert 0 < pace.wait_ms(now_ms=20_000) <= 8


def test_a_deadline_runs_out_and_not_below_nothing() -> None:
    deadline = Deadline(now_ms=100, timeout_ms=50)
    assert deadline.remaining_ms(now_ms=120) == 30
    assert deadline.remaining_ms(now_ms=500) == 0


def test_filters_narrow_the_range_that_is_scanned() -> None:
    everything = sort_range(b"", b"", RangeOptions())
    first = b"\x00\x01h"
    assert hash_range(b"h", everything, None) == (first, b"\x00\x01i")
    assert hash_range(b"h", everything, Filter.prefix(b"ab")) == (first + b"ab", first + b"ac")
    assert hash_range(b"h", everything, Filter.prefix(b"\xff")) == (first + b"\xff", b"\x00\x01i")
    assert hash_range(b"h", everything, Filter.exact(b"a")) == (first + b"a", first + b"a\x00")
    assert hash_range(b"h", everything, Filter.postfix(b"a")) == (first, b"\x00\x01i")
    narrow = sort_range(b"b", b"d", RangeOptions(start_inclusive=False, stop_inclusive=True))
    assert hash_range(b"h", narrow, None) == (first + b"b\x00", first + b"d\x00")
    assert hash_range(b"h", narrow, Filter.prefix(b"a")) is None
    assert full_range(None) == (b"", b"")
    # A longer hash key may begin with the same bytes: the end stays open.
    assert full_range(Filter.prefix(b"h")) == (first, b"")
    assert full_range(Filter.exact(b"h")) == (first, b"\x00\x01i")


@pytest.mark.parametrize(
    ("start", "stop", "flags", "empty"),
    [
        (b"a", b"a", (True, True), False),
        (b"a", b"a", (True, False), True),
        (b"a", b"a", (False, True), True),
        (b"b", b"a", (True, True), True),
        (b"b", b"", (False, False), False),
    ],
)
def test_a_range_without_keys_is_known_to_be_empty(
    start: bytes, stop: bytes, flags: tuple[bool, bool], empty: bool
) -> None:
    options = RangeOptions(start_inclusive=flags[0], stop_inclusive=flags[1])
    assert sort_range(start, stop, options).is_empty is empty


def test_a_refusal_of_a_throttled_table_is_not_asked_for_again() -> None:
    """An operator limits the table: the same request, again and again, would be more load."""
    assert advise(errors.Busy("x"), retry_unknown=True) is Advice.AGAIN
    for details in (None, [], {}, {"retry_after_ms": 5}, "throttled_by"):
        assert advise(errors.Busy("x", details=details), retry_unknown=True) is Advice.AGAIN
    throttled = errors.Busy("x", details={"throttled_by": "replica.write_throttling"})
    assert advise(throttled, retry_unknown=True) is Advice.GIVE_UP
