"""Range reads are taken in turns of their connections, and the thread is never far ahead."""

from collections.abc import Callable
from typing import Any

from pegaskv.replica.read_line import ReadLine


class Thread:
    """A worker whose work is done when the test says so."""

    def __init__(self) -> None:
        self.given: list[tuple[Callable[[], Any], Callable[[Any, Any], Any]]] = []
        self.most = 0

    @property
    def pending(self) -> int:
        return len(self.given)

    def submit(self, work: Callable[[], Any], done: Callable[[Any, Any], Any]) -> None:
        self.given.append((work, done))
        self.most = max(self.most, len(self.given))

    def step(self) -> None:
        work, done = self.given.pop(0)
        done(work(), None)


def test_who_has_many_reads_under_way_waits_for_them_himself() -> None:
    thread: Any = Thread()
    line = ReadLine(thread)
    ended: list[tuple[str, int]] = []

    def read(name: str, number: int) -> None:
        connection: Any = name
        line.submit(connection, lambda: (name, number), lambda found, _: ended.append(found))

    for number in range(100):
        read("greedy", number)
    read("polite", 0)
    assert line.pending == 101
    for _ in range(4):
        thread.step()
    # Behind the two that the thread had, and one in front of it.
    assert ("polite", 0) in ended
    read("polite", 1)
    while thread.given:
        thread.step()
    assert line.pending == 0
    assert thread.most == 2
    assert [number for name, number in ended if name == "greedy"] == list(range(100))
    assert ended.index(("polite", 1)) < 10


def test_a_read_that_is_asked_for_by_an_answer_has_its_turn() -> None:
    thread: Any = Thread()
    line = ReadLine(thread)
    connection: Any = "one"
    pages: list[int] = []

    def next_page(found: int, _: BaseException | None) -> None:
        pages.append(found)
        if found < 50:
            line.submit(connection, lambda: found + 1, next_page)

    line.submit(connection, lambda: 1, next_page)
    while thread.given:
        thread.step()
    assert pages == list(range(1, 51))
    assert line.pending == 0


def test_once_it_is_stopped_the_thread_is_given_nothing_more() -> None:
    thread: Any = Thread()
    line = ReadLine(thread)
    ended: list[int] = []
    for number in range(5):
        connection: Any = number
        line.submit(connection, lambda n=number: n, lambda found, _: ended.append(found))  # type: ignore[misc]
    line.stop()
    line.submit(connection, lambda: 5, lambda found, _: ended.append(found))
    assert line.pending == len(thread.given) == 2
    while thread.given:
        thread.step()
    assert ended == [0, 1]
    assert line.pending == 0
