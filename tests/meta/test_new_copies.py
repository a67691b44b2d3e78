"""A new copy gets a uuid of its own when there is something to part from, and else none."""

from pegaskv.codec.messages_duplication import EnsureAnswer
from pegaskv.codec.operations import Operation
from tests.meta.sides import connected


def test_a_copy_that_has_not_begun_is_not_begun_anew_for_ever() -> None:
    alpha, beta = connected()
    alpha.create("t")
    entry = alpha.modify(alpha.add("t"), "pause")
    for number in range(1, 6):
        again = alpha.modify(entry, "copy")
        assert (again.uuid, again.earlier, again.paused) == (entry.uuid, (), False)
        assert again.attempt == entry.attempt + number
    alpha.coordinate(beta)
    assert alpha.modify(entry, "copy").uuid != entry.uuid


def test_a_new_copy_is_listed_where_the_target_has_forgotten_the_old_one() -> None:
    alpha, beta = connected()
    alpha.create("t")
    entry = alpha.add("t")
    alpha.coordinate(beta)
    alpha.ship(entry)
    beta.send(Operation.FORGET_DUPLICATION, 0, entry.uuid)
    copied = alpha.modify(entry, "copy")
    [answer] = alpha.coordinate(beta)
    assert isinstance(answer, EnsureAnswer)
    assert (answer.outcome, answer.table_id) == ("ALREADY_YOURS", 1)
    assert [one.order.uuid for one in beta.meta.machine.cluster.tables[1].live_sources] == [
        copied.uuid
    ]
    # One without a copy that never found its table goes on asking for one that exists.
    alpha.create("u")
    other = alpha.modify(alpha.add("u", checkpoint=False), "copy")
    assert other.wanted == "existing"
