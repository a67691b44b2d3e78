"""A new copy gets a uuid of its own when there is something to part from, and else none."""

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
