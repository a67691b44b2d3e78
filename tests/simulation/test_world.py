import asyncio
from pathlib import Path
from random import Random

import pytest

from pegaskv.runtime.tasks import TaskScope
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.errors import NodeDead
from tests.simulation.world import Life, World

PATH = Path("/state")


class Paper:
    """A disk of one list; a power cut loses what was not synced."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.synced: list[str] = []
        self.lines: list[str] = []
        self.dead = False

    def write(self, line: str) -> None:
        self._check()
        self.lines.append(line)

    def sync(self) -> None:
        self._check()
        self.synced = list(self.lines)

    def kill(self) -> None:
        self.dead = True

    def power_cut(self) -> None:
        self.dead = True
        self.lines = list(self.synced)

    def reborn(self) -> "Paper":
        paper = Paper(self.random)
        paper.lines, paper.synced = list(self.lines), self.synced
        return paper

    def _check(self) -> None:
        if self.dead:
            raise NodeDead("paper")


def test_options_differ_between_seeds_and_can_be_printed() -> None:
    options = [World(seed).options for seed in range(30)]
    assert len({str(option) for option in options}) > 20
    assert str(World(3).options) == str(options[3])
    assert "latency_us=" in str(options[0])
    assert World(3, shuffle=0.25).options.shuffle == 0.25


def test_a_draw_for_one_purpose_changes_no_other() -> None:
    one, two = World(5), World(5)
    one.random("a").random()
    assert one.random("b").random() == two.random("b").random()
    assert one.random("a").random() != two.random("b").random()
    assert World(6).random("b").random() != two.random("b").random()


def test_a_failure_names_its_seed_and_options() -> None:
    async def main() -> None:
        raise ValueError("boom")

    with World(42) as world, pytest.raises(ValueError, match="boom") as caught:
        world.run(main())
    assert caught.value.__notes__[0].startswith("seed 42: shuffle=")


def test_clocks_drift_within_their_bound_and_wall_time_jumps_alone() -> None:
    seen: dict[str, int] = {}

    async def main(world: World) -> None:
        nodes = [world.node(f"n{number}") for number in range(5)]
        lives = [node.spawn() for node in nodes]
        before = [(life.clock.monotonic_ms(), life.clock.wall_us()) for life in lives]
        await world.sleep_ms(1_000_000)
        for node, life, (monotonic_ms, wall_us) in zip(nodes, lives, before, strict=True):
            passed_ms = life.clock.monotonic_ms() - monotonic_ms
            assert 995_000 <= passed_ms <= 1_005_001
            assert abs((life.clock.wall_us() - wall_us) // 1_000 - passed_ms) <= 1
            seen[f"rate {passed_ms}"] = 1
            node.jump_wall(-3_600_000_000)
            assert life.clock.wall_us() < wall_us
            assert life.clock.monotonic_ms() - monotonic_ms == passed_ms

    with World(1, clock_drift_ppm=5_000) as world:
        world.run(main(world), limit_ms=2_000_000)
    assert len(seen) > 1, "all clocks ran at one rate"


def test_sleep_lasts_at_least_so_long_on_the_clock_of_the_node() -> None:
    async def main(world: World) -> None:
        for number in range(20):
            clock = world.node(f"n{number}").spawn().clock
            before = clock.monotonic_ms()
            await clock.sleep_ms(777)
            assert 777 <= clock.monotonic_ms() - before <= 779
            with pytest.raises(TimeoutError):
                async with clock.timeout_ms(50):
                    await asyncio.Event().wait()

    with World(2, clock_drift_ppm=5_000) as world:
        world.run(main(world))


def test_a_worker_runs_in_order_later_and_hands_every_error_over() -> None:
    lines: list[str] = []

    async def serve(life: Life) -> None:
        worker = life.worker("disk")

        def fail() -> None:
            lines.append("fail")
            raise OSError("full")

        worker.submit(lambda: lines.append("a"), lambda result, error: lines.append("a done"))
        worker.submit(fail, lambda result, error: lines.append(f"fail done {error!r}"))
        assert (worker.pending, lines) == (2, [])
        assert await worker.run(lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0)
        worker.submit(lambda: lines.append("last"), lambda result, error: None)
        await worker.close()
        assert worker.pending == 0
        with pytest.raises(RuntimeError, match="closed"):
            worker.submit(lambda: None, lambda result, error: None)

    for seed in range(5):
        lines.clear()
        with World(seed) as world:
            life = world.node("n").start(serve)
            world.run(asyncio.wait_for(life.ended, 60))
        expected = ["a", "a done", "fail", "fail done OSError('full')", "last"]
        assert lines == expected


@pytest.mark.parametrize("power", [True, False])
def test_leftovers_of_a_crashed_node_change_nothing(power: bool) -> None:
    met: list[str] = []

    async def serve(life: Life) -> None:
        life.disk.write("first")
        life.disk.sync()
        life.disk.write("second")
        worker = life.worker()
        worker.submit(
            lambda: life.disk.write("by the worker"),
            lambda result, error: met.append("done of a dead worker"),
        )
        asyncio.get_running_loop().call_later(5, met.append, "timer of a dead node")
        try:
            await life.clock.sleep_ms(60_000)
        finally:
            for name, touch in (
                ("disk", lambda: life.disk.write("by the clean-up")),
                ("clock", life.clock.monotonic_ms),
                ("worker", lambda: worker.submit(lambda: None, lambda result, error: None)),
            ):
                try:
                    touch()
                except NodeDead:
                    met.append(name)
            try:
                await life.network.listen(asyncio.Protocol, "127.0.0.1", 1)
            except NodeDead:
                met.append("network")

    async def main(world: World) -> None:
        node = world.node("n")
        life = node.start(serve)
        await world.sleep_ms(1)
        # Before the worker has begun.
        node.crash(power=power)
        assert not node.alive
        assert life.ended.done()
        await world.sleep_ms(10_000)
        assert met == ["disk", "clock", "worker", "network"]
        assert world.loop.tasks(life) == []
        node.spawn()
        assert node.disk.lines == (["first"] if power else ["first", "second"])

    with World(7, disk=Paper, worker_us=(1_000_000, 2_000_000)) as world:
        world.run(main(world))


def test_a_crash_between_the_work_and_its_answer_keeps_the_effect_and_tells_nobody() -> None:
    outcomes: dict[str, int] = {}

    async def serve(life: Life) -> None:
        worker = life.worker()

        def work() -> None:
            life.disk.write("effect")
            life.disk.sync()

        await worker.run(work)
        outcomes["told"] = outcomes.get("told", 0) + 1
        await life.clock.sleep_ms(60_000)

    async def main(world: World) -> None:
        node = world.node("n")
        node.start(serve)
        await asyncio.sleep(world.random("crash").uniform(0, 0.003))
        told = outcomes.get("told", 0)
        node.crash()
        if node.disk.lines and not told:
            outcomes["untold"] = outcomes.get("untold", 0) + 1
        elif not node.disk.lines:
            assert not told
            outcomes["nothing"] = outcomes.get("nothing", 0) + 1

    total = {"told": 0, "untold": 0, "nothing": 0}
    for seed in range(60):
        outcomes.clear()
        with World(seed, disk=Paper, worker_us=(200, 1_500), worker_slow=0.0) as world:
            world.run(main(world))
        assert sum(outcomes.values()) == 1
        for name, count in outcomes.items():
            total[name] += count
    assert all(total.values()), f"not all that can happen did: {total}"


def test_a_crash_from_within_the_nodes_own_code_stops_it_at_the_next_touch() -> None:
    reached: list[str] = []

    async def serve(life: Life) -> None:
        life.node.crash()
        reached.append("after the crash, before a touch")
        life.clock.monotonic_ms()
        reached.append("never")

    async def main(world: World) -> None:
        world.node("n").start(serve)
        await world.sleep_ms(100)

    with World(3) as world:
        world.run(main(world))
    assert reached == ["after the crash, before a touch"]


@pytest.mark.parametrize("where", ["loop", "worker"])
def test_a_kill_planned_in_the_disk_ends_the_node_in_the_middle_of_a_call(where: str) -> None:
    told: list[str] = []

    async def serve(life: Life) -> None:
        life.disk.write_atomic(PATH, b"old")
        life.disk.plan(0, Fault.KILL_AFTER)

        def write() -> None:
            life.disk.write_atomic(PATH, b"new")

        if where == "loop":
            write()
        else:
            life.worker().submit(write, lambda result, error: told.append("done"))
        await life.clock.sleep_ms(1_000)
        told.append("went on")

    async def main(world: World) -> None:
        node = world.node("n")
        life = node.start(serve)
        await life.ended
        assert node.disk.dead
        node.crash(power=True)
        assert node.spawn().disk.read_bytes(PATH) == b"old"
        await world.sleep_ms(2_000)

    with World(5, disk=SimulatedDisk) as world:
        world.run(main(world))
    assert told == []


def test_power_may_be_cut_after_the_process_was_killed() -> None:
    async def main(world: World) -> None:
        node = world.node("n")
        node.spawn().disk.write("in the page cache")
        node.crash(power=False)
        life = node.spawn()
        assert life.disk.lines == ["in the page cache"]
        before = life.clock.monotonic_ms()
        node.crash(power=False)
        node.crash(power=True)
        life = node.spawn()
        assert life.disk.lines == []
        assert life.clock.monotonic_ms() != before

    with World(6, disk=Paper) as world:
        world.run(main(world))


def test_a_stalled_node_runs_nothing_and_then_catches_up() -> None:
    beats: list[int] = []

    async def serve(life: Life) -> None:
        async with TaskScope("n") as scope:

            async def beat() -> None:
                beats.append(life.world.now_ms)

            scope.keep("beat", beat, pause=lambda: life.clock.sleep_ms(10))

    async def main(world: World) -> None:
        node = world.node("n")
        node.start(serve)
        await world.sleep_ms(100)
        node.stall()
        count = len(beats)
        assert count >= 5
        await world.sleep_ms(5_000)
        assert len(beats) == count
        node.resume()
        await world.sleep_ms(100)
        assert len(beats) > count
        node.stall()
        node.crash()
        await world.sleep_ms(100)
        assert world.loop.tasks(node.life) == []

    with World(4) as world:
        world.run(main(world))


def test_a_process_that_fails_is_a_problem_unless_it_may() -> None:
    async def serve(life: Life) -> None:
        raise OSError("no disk")

    async def main(world: World, may_fail: bool) -> None:
        life = world.node("n").start(serve, may_fail=may_fail)
        await life.ended
        assert isinstance(life.error, OSError)
        assert not life.alive

    with World(1) as world:
        world.run(main(world, True))
    with pytest.raises(AssertionError, match="n/1 ended with OSError"), World(1) as world:
        world.run(main(world, False))


def test_a_task_that_swallows_its_cancellation_is_found() -> None:
    async def stubborn(life: Life) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    async def main(world: World) -> None:
        node = world.node("n")
        node.start(stubborn)
        await world.sleep_ms(10)
        node.crash()
        await world.sleep_ms(10)

    world = World(1)
    with pytest.raises(AssertionError, match="cancelled in vain: n/1 main"):
        world.run(main(world))
    with pytest.raises(AssertionError, match="swallow their cancellation"):
        world.close()
