"""Copies share their rate: small ones first, and never more bytes than it says."""

from random import Random

from pegaskv.duplication.pacing import CopyPace
from tests.simulation.world import Life, World


def _run(rate: int, copies: dict[str, list[int]]) -> dict[str, int]:
    """Return when each copy, given as the sizes of its pages, had sent all of them."""
    ended: dict[str, int] = {}
    with World(1) as world:
        life: Life = world.node("source").spawn()
        pace = CopyPace(life.clock, rate)

        async def copy(name: str, pages: list[int]) -> None:
            sent = 0
            for size in pages:
                await pace.wait(size, sent)
                sent += size
            ended[name] = world.now_ms - began_ms

        began_ms = world.now_ms

        async def main() -> None:
            for task in [life.task(copy(name, pages)) for name, pages in copies.items()]:
                await task

        world.run(main())
    return ended


def test_a_small_copy_waits_for_one_page_of_a_large_one_at_the_most() -> None:
    large = {f"large {number}": [4_000] * 10 for number in range(64)}
    ended = _run(20_000, large | {"small": [30], "empty": [0]})
    assert ended["empty"] == 0
    assert ended["small"] <= 4_000 / 20 + 20
    assert max(ended.values()) >= 63 * 10 * 4_000 / 20


def test_all_copies_together_keep_the_rate_and_share_it() -> None:
    random = Random(7)
    copies = {str(n): [random.randrange(1, 5_000) for _ in range(20)] for n in range(5)}
    ended = _run(50_000, copies)
    total = sum(map(sum, copies.values()))
    last = max(pages[-1] for pages in copies.values())
    assert total > 100_000
    assert (total - last) / 50 - 200 <= max(ended.values()) <= total / 50 + 300


def test_without_a_rate_nothing_waits() -> None:
    assert set(_run(0, {"a": [1_000_000] * 5, "b": [1]}).values()) == {0}


def test_a_copy_that_is_given_up_holds_nobody_up() -> None:
    with World(2) as world:
        life = world.node("source").spawn()
        pace = CopyPace(life.clock, 1_000)

        async def main() -> None:
            await pace.wait(1_000, 0)
            given_up = life.task(pace.wait(1, 0))
            await world.sleep_ms(1)
            given_up.cancel()
            began_ms = world.now_ms
            await pace.wait(1_000, 0)
            assert world.now_ms - began_ms <= 1_010

        world.run(main())
