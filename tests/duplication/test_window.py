"""How much one server of another cluster is asked at a time; see `test_remote` for all of them."""

from pegaskv.duplication.window import Window


def test_a_time_out_leaves_one_request_and_each_answer_makes_room_for_more() -> None:
    window = Window(64)
    window.under_way = 64
    assert window.full
    window.timed_out()
    window.under_way = 1
    assert window.full
    sizes = []
    for _ in range(40):
        window.answered()
        window.under_way = 0
        while not window.full:
            window.under_way += 1
        sizes.append(window.under_way)
    # One more with each answer up to half of what was too much, then slowly.
    assert sizes[:3] == [2, 3, 4]
    assert sizes[30] == 32
    assert sizes[-1] <= 33


def test_a_second_time_out_of_one_round_changes_nothing() -> None:
    window = Window(64)
    window.under_way = 40
    window.timed_out()
    window.under_way = 39
    window.timed_out()
    window.under_way = 0
    for _ in range(30):
        window.answered()
    while not window.full:
        window.under_way += 1
    # Half of forty were under way without being late.
    assert 20 <= window.under_way <= 21


def test_there_are_never_more_than_the_option_allows() -> None:
    window = Window(3)
    for _ in range(10):
        window.answered()
    window.under_way = 3
    assert window.full
