"""The judges of histories: what they must find, and what they must let pass."""

from itertools import permutations
from random import Random
from typing import Final

from tests.simulation.checkers import NEVER, Act, Key, Op, Outcome, Row, Witness, check_zones

KEY: Final[Key] = ("t", b"h", b"s")


def write(value: bytes | None, began: int, ended: int, **more: object) -> Op:
    return Op(Act.WRITE, KEY, value, began, ended, Outcome.DONE, **more)  # type: ignore[arg-type]


def unknown(value: bytes, began: int) -> Op:
    return Op(Act.WRITE, KEY, value, began)


def refused(value: bytes, began: int, ended: int) -> Op:
    return Op(Act.WRITE, KEY, value, began, ended, Outcome.REFUSED)


def read(value: bytes | None, began: int, ended: int) -> Op:
    return Op(Act.READ, KEY, value, began, ended, Outcome.DONE)


def test_a_history_in_order_passes_both_judges() -> None:
    ops = [read(None, 0, 1), write(b"a", 2, 3, decree=5), read(b"a", 4, 5), unknown(b"b", 6)]
    assert check_zones(ops) == []
    assert Witness({KEY: [Row(5, b"a")]}).check(ops) == []
    # What nobody knows of may show at any later time.
    late = [*ops, read(b"a", 7, 8), read(b"b", 9, 10)]
    assert check_zones(late) == []
    assert Witness({KEY: [Row(5, b"a"), Row(9, b"b")]}).check(late) == []


def test_an_old_value_behind_a_new_one_is_found() -> None:
    ops = [write(b"a", 0, 1), write(b"b", 2, 3), read(b"a", 4, 5)]
    assert check_zones(ops)
    assert Witness({KEY: [Row(1, b"a"), Row(2, b"b")]}).check(ops)


def test_what_was_seen_and_is_gone_again_is_found() -> None:
    ops = [write(b"a", 0, 1), unknown(b"b", 2), read(b"b", 3, 4), read(b"a", 5, 6)]
    assert check_zones(ops)
    assert Witness({KEY: [Row(1, b"a"), Row(2, b"b")]}).check(ops)


def test_a_lost_write_and_a_refused_one_that_was_applied_are_found() -> None:
    assert Witness({KEY: []}).check([write(b"a", 0, 1)])
    assert check_zones([write(b"a", 0, 1), read(None, 2, 3)])
    applied = [refused(b"a", 0, 1), read(b"a", 2, 3)]
    assert check_zones(applied)
    assert Witness({KEY: [Row(1, b"a")]}).check(applied)
    assert Witness({KEY: [Row(1, b"a"), Row(2, b"a")]}).check([write(b"a", 0, 1)])


def test_a_value_that_nobody_wrote_or_that_comes_too_early_is_found() -> None:
    assert check_zones([read(b"x", 0, 1)])
    assert Witness({}).check([read(b"x", 0, 1)])
    assert check_zones([read(b"a", 0, 1), write(b"a", 2, 3)])


def test_the_decree_of_a_reply_and_the_order_of_decrees_must_be_true() -> None:
    rows = {KEY: [Row(1, b"a"), Row(2, b"b")]}
    assert Witness(rows).check([write(b"a", 0, 1, decree=2)])
    assert Witness(rows).check([write(b"b", 0, 1, decree=2), write(b"a", 2, 3, decree=1)])


def test_deletes_and_exchanges_are_judged_by_the_order() -> None:
    rows = {KEY: [Row(1, b"a"), Row(2, None), Row(3, b"c")]}
    good = [
        write(b"a", 0, 1, decree=1),
        write(None, 2, 3, decree=2),
        read(None, 4, 5),
        Op(Act.EXCHANGE, KEY, b"c", 6, 7, Outcome.DONE, decree=3, expected=None),
        Op(Act.EXCHANGE, KEY, b"d", 8, 9, Outcome.DONE, expected=b"a", passed=False, seen=b"c"),
    ]
    assert Witness(rows).check(good) == []
    assert Witness(rows).check([*good, read(None, 10, 11)])
    wrong = Op(Act.EXCHANGE, KEY, b"c", 0, 9, Outcome.DONE, decree=3, expected=b"a")
    assert Witness(rows).check([wrong])
    assert Witness(rows).check([write(None, 0, 1, decree=9)])


def test_reads_see_whole_mutations() -> None:
    rows = {KEY: [Row(1, b"a"), Row(1, b"b")]}
    assert Witness(rows).check([read(b"b", 0, 1)]) == []
    assert Witness(rows).check([read(b"a", 0, 1)])


def _linearizable(ops: list[Op]) -> bool:
    """By trying all orders, with and without what nobody knows of."""
    doubtful = [op for op in ops if op.act is Act.WRITE and op.outcome is not Outcome.DONE]
    for kept in range(1 << len(doubtful)):
        dropped = [op for place, op in enumerate(doubtful) if not kept >> place & 1]
        if any(_explains(order) for order in permutations([o for o in ops if o not in dropped])):
            return True
    return False


def _explains(order: tuple[Op, ...]) -> bool:
    value: bytes | None = None
    for place, op in enumerate(order):
        if any(later.ended < op.began for later in order[place + 1 :]):
            return False
        if op.act is Act.WRITE:
            value = op.value
        elif op.value != value:
            return False
    return True


def test_the_zones_agree_with_all_orders_of_small_histories() -> None:
    random = Random(5)
    verdicts = []
    for _ in range(300):
        ops = []
        for number in range(random.randint(2, 5)):
            began = random.randrange(12)
            ended = began + random.randrange(6)
            if random.random() < 0.5:
                known = random.random() < 0.7
                value = b"%d" % number
                ops.append(write(value, began, ended) if known else unknown(value, began))
            else:
                values = [None, *(op.value for op in ops if op.act is Act.WRITE)]
                ops.append(read(random.choice(values), began, ended))
        assert all(op.ended == NEVER or op.outcome is Outcome.DONE for op in ops)
        expected = _linearizable(ops)
        assert (check_zones(ops) == []) is expected, "\n".join(map(str, ops))
        verdicts.append(expected)
    assert 60 < sum(verdicts) < 240, "the histories were all alike"
