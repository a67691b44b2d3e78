"""One small duplication, whose servers are killed at a point that is given, and twice more.

What a server does is a row of steps: each callback of its loop goes from one await to the
next, and nothing else can come in between but the end of the process. So the points at
which a process can die are counted in a run that nobody disturbs, from `add_dup` until
everything is on the target, and then each of them can be tried: source, target or both are
killed there, or lose power, start again, and that two times more. Within a step, work of a
thread can die between two I/Os of its disk: those are points too.

After the last start the duplication must be in DS_LOG with equal rows, soon and without
help; and while the target is away, the source must say so.
"""

import asyncio
import contextvars
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pegaskv.base.errors import DuplicationExists, PegasKVError
from pegaskv.base.types import DuplicationStatus
from pegaskv.client import Client, Table
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.storage.log_options import LogOptions
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.duplication_sides import Cluster
from tests.simulation.duplication_world import rows_of
from tests.simulation.network import NetworkOptions
from tests.simulation.world import Life, World, WorldOptions

__all__ = [
    "BLOWS",
    "SCENES",
    "Case",
    "Outcome",
    "Points",
    "Scene",
    "all_cases",
    "count_points",
    "simulate_crash",
    "survive",
]

TABLE: Final = "t"
# In virtual time: from the last start, or the last write after it, until both are equal.
RECOVERED_MS: Final = 5_000
# While the target is away.
SHOWN_MS: Final = 2_000
BLOWS: Final = 3
_SEED: Final = 1
_CALL_S: Final = 0.4
_GIVE_UP_MS: Final = 60_000
_WRITES_AT_ONCE: Final = 8
_NEVER: Final = 1 << 60


@dataclass(frozen=True)
class Scene:
    """What is duplicated: so many rows in each of the two partitions; who is in the way."""

    rows: tuple[int, int]
    foreign: bool = False


SCENES: Final = {
    "empty": Scene((0, 0)),
    "one partition empty": Scene((40, 0)),
    "full": Scene((60, 60)),
    "target refuses": Scene((20, 1), foreign=True),
}


@dataclass(frozen=True)
class Case:
    """The first blow: who, how, and after how many steps of theirs.

    With a fault, `point` is the number of an I/O of the only victim's disk instead.
    """

    scene: str
    victims: tuple[str, ...]
    power: bool
    point: int
    fault: Fault | None = None


@dataclass
class Points:
    """What an undisturbed run counts from `add_dup` on, for each server."""

    steps: dict[str, int]
    ios: dict[str, int]


@dataclass
class Outcome:
    """What a case did, and what was wrong with it."""

    blows: int = 0
    # (phase, steps) of the duplication at each blow, as the source's clients last saw it.
    phases: list[str] = field(default_factory=list)
    recovered_ms: int = 0
    causes: int = 0
    rows: int = 0
    wrong: list[str] = field(default_factory=list)
    digest: str = ""
    # Which case it was.
    told: str = ""


class _Steps:
    """Counts the callbacks of each server, and strikes after one of them."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self._whose: tuple[str, ...] = ()
        self._at = 0
        self._strike: Callable[[], None] | None = None

    def watch(self, life: Life) -> None:
        """Count what a server does in a life that begins now."""
        ran, name = life.ran, life.node.name

        def counted() -> None:
            ran()
            self.count[name] += 1
            if self._strike is not None and self._of(self._whose) >= self._at:
                self.now()

        life.ran = counted  # type: ignore[method-assign]

    def after(self, steps: int, whose: tuple[str, ...], strike: Callable[[], None]) -> None:
        """Strike when these servers have made so many more steps together, or at `now`."""
        self._whose = whose
        self._at = self._of(whose) + steps
        self._strike = strike

    def now(self) -> None:
        """Strike, if that is still to come."""
        strike, self._strike = self._strike, None
        if strike is not None:
            strike()

    def _of(self, names: tuple[str, ...]) -> int:
        return sum(self.count[name] for name in names)


class _Play:
    def __init__(self, world: World, scene: Scene, case: Case | None) -> None:
        self.world = world
        self.scene = scene
        self.case = case
        self.outcome = Outcome()
        self.random = world.random(f"blows {case}")
        self.steps = _Steps()
        self.a, self.b = Cluster(world, "alpha", 1), Cluster(world, "beta", 2)
        self.a.others, self.b.others = [self.b], [self.a]
        for cluster in (self.a, self.b):
            # Several pages for a copy; segments and flushes that come while it goes on.
            cluster.duplication = DuplicationOptions(batch_bytes=4_096, confirm_interval_ms=10)
            cluster.log = LogOptions(
                log_segment_bytes=64 * 1024,
                flush_partition_bytes=4 * 1024,
                flush_total_bytes=16 * 1024,
                flush_age_ms=200,
            )
        self.model: dict[tuple[bytes, bytes], bytes] = {}
        self.dupid = 0
        self.phase = "before"
        self.typical = 1_000
        self.down: set[str] = set()
        self.started_ms = 0
        self.struck_ms = 0
        self.client: Client
        self.table: Table

    # Blows.

    def _start(self, cluster: Cluster) -> None:
        cluster.start()
        assert cluster.node.life is not None
        self.steps.watch(cluster.node.life)
        self.down.discard(cluster.name)
        self.started_ms = self.world.now_ms

    def _arm(self) -> None:
        """Let the next blow come; the first where the case says, the others anywhere."""
        case = self.case
        if case is None or self.outcome.blows == BLOWS:
            return
        if self.outcome.blows or case.fault is None:
            first = not self.outcome.blows
            steps = case.point if first else self.random.randint(1, self.typical)
            self.steps.after(steps, case.victims, self._strike)
            return
        [name] = case.victims
        node = self._cluster(name).node
        node.disk.plan(case.point, case.fault)
        # The disk ends the process itself; what comes then is the same.
        assert node.life is not None
        node.life.ended.add_done_callback(lambda _: self._strike(), context=contextvars.Context())
        self.steps.after(_NEVER, case.victims, self._strike)

    def _cluster(self, name: str) -> Cluster:
        return self.a if name == self.a.name else self.b

    def _strike(self) -> None:
        case, outcome = self.case, self.outcome
        assert case is not None
        if outcome.blows == BLOWS or self.down:
            return
        self.steps.after(_NEVER, (), self._strike)
        outcome.blows += 1
        self.struck_ms = self.world.now_ms
        outcome.phases.append(self.phase)
        self.down.update(case.victims)
        for name in case.victims:
            node = self._cluster(name).node
            if node.alive or case.power:
                node.crash(power=case.power)
        down_ms = self.random.choice([0, 1, 30, 300])
        if case.victims == ("beta",) and outcome.blows == BLOWS and self.dupid:
            # So long that the source must say what is wrong.
            down_ms = SHOWN_MS + 500
            self._task(self._see_a_cause(self.world.now_ms))
        self._task(self._come_back(down_ms))

    def _task(self, coroutine: Any) -> None:
        # It is called within a step of a server, and must not belong to it.
        self.world.loop.create_task(coroutine, context=contextvars.Context())

    async def _come_back(self, down_ms: int) -> None:
        assert self.case is not None
        await self.world.sleep_ms(down_ms)
        for name in self.case.victims:
            self._start(self._cluster(name))
        self._arm()

    async def _see_a_cause(self, since_ms: int) -> None:
        await self._write(b"while it is away", b"x")
        await self.world.sleep_ms(since_ms + SHOWN_MS - 50 - self.world.now_ms)
        client = await self.a.connected()
        [found] = await client.admin.query_duplication(TABLE)
        shown = found.last_error and found.stalled_since and found.attempts
        if not (shown and found.next_attempt_at >= found.asked_at - 0.1):
            self.outcome.wrong.append(f"no cause is shown: {found}")
        self.outcome.causes += 1
        await client.close()

    # The play.

    async def play(self) -> Outcome:
        self._start(self.a)
        self._start(self.b)
        self.client = await self.a.connected()
        await self.client.admin.create_table(TABLE, 2, timeout=60.0)
        self.table = await self.client.table(TABLE)
        await self._fill()
        if self.scene.foreign:
            await self._make_foreign()
        self._arm()
        first = self.steps.count.copy()
        ios = {cluster.name: cluster.node.disk.ios for cluster in (self.a, self.b)}
        writer = self.a.clients.task(self._write_some())
        await self._add()
        if self.scene.foreign:
            await self._wait_for(lambda one: "`t`" in one.last_error)
            await self.world.sleep_ms(20)
            await self._until_struck()
            await self._drop_foreign()
        await self._settle(writer)
        while self.case is not None and self.outcome.blows < BLOWS:
            # Nothing happens any more: that is a point too.
            await self._until_struck()
            await self._settle(writer)
        self.points = Points(
            {name: count - first[name] for name, count in self.steps.count.items()},
            {one.name: one.node.disk.ios - ios[one.name] for one in (self.a, self.b)},
        )
        await self._check_one_entry()
        return self.outcome

    async def _until_struck(self) -> None:
        while self.case is not None and (self.outcome.blows < BLOWS or self.down):
            self.steps.now()
            await self.world.sleep_ms(10)

    async def _fill(self) -> None:
        """So many rows in each partition, by the partition that their hash keys are in."""
        left = list(self.scene.rows)
        number = 0
        while any(left):
            number += 1
            hash_key = b"h%d" % number
            index = self.table.partition_of(hash_key)
            if left[index]:
                left[index] -= 1
                await self._write(hash_key, b"%d" % number + bytes(150))

    async def _write_some(self) -> None:
        """Write while the rows are copied: new ones, other values, deletes."""
        for number in range(1, _WRITES_AT_ONCE + 1):
            await self.world.sleep_ms(1)
            await self._write(b"new%d" % number, b"%d" % number)
            await self._write(b"h%d" % number, b"changed")
            await self._write(b"h%d" % (number + 10), None)

    async def _write(self, hash_key: bytes, value: bytes | None) -> None:
        """Write until it is acknowledged; to do it twice is harmless."""

        async def attempt() -> None:
            if value is None:
                await self.table.delete(hash_key, b"s", timeout=_CALL_S)
            else:
                await self.table.set(hash_key, b"s", value, timeout=_CALL_S)

        await self._persist(attempt)
        if value is None:
            self.model.pop((hash_key, b"s"), None)
        else:
            self.model[hash_key, b"s"] = value

    async def _persist(self, attempt: Callable[[], Awaitable[None]]) -> None:
        end_ms = self.world.now_ms + _GIVE_UP_MS
        while True:
            try:
                return await attempt()
            except PegasKVError:
                if self.world.now_ms > end_ms:
                    raise
                await self.world.sleep_ms(5)

    async def _add(self) -> None:
        async def attempt() -> None:
            try:
                added = await self.client.admin.add_duplication(TABLE, "beta", timeout=_CALL_S)
            except DuplicationExists as error:
                self.dupid = error.existing.dupid
            else:
                self.dupid = added.dupid

        await self._persist(attempt)

    # A table of that name which is not ours.

    async def _make_foreign(self) -> None:
        client = await self.b.connected()
        await client.admin.create_table(TABLE, 2, timeout=60.0)
        foreign = await client.table(TABLE)
        await foreign.set(b"mine", b"s", b"stays")
        await client.close()

    async def _drop_foreign(self) -> None:
        """The cause goes away, and nobody says so to the source."""
        client = await self.b.connected()
        foreign = await client.table(TABLE)
        if await rows_of(foreign) != {(b"mine", b"s"): (b"stays", None)}:
            self.outcome.wrong.append("the foreign table was touched")
        await client.admin.drop_table(TABLE)
        await client.close()
        self.started_ms = self.world.now_ms

    # The end.

    async def _wait_for(self, condition: Callable[[Any], bool]) -> Any:
        found: Any = None

        async def attempt() -> None:
            nonlocal found
            [found] = await self.client.admin.query_duplication(TABLE, timeout=_CALL_S)
            self.phase = found.status.value

        end_ms = self.world.now_ms + _GIVE_UP_MS
        while True:
            await self._persist(attempt)
            if condition(found):
                return found
            now_ms = self.world.now_ms
            assert now_ms < end_ms, f"stuck: {found}"
            # Often while it goes on, seldom while everybody waits for a server.
            since_ms = now_ms - max(self.started_ms, self.struck_ms)
            await self.world.sleep_ms(1 + since_ms // 10)

    async def _settle(self, writer: "asyncio.Task[None]") -> None:
        """DS_LOG, a write or two, silence: all of it is there, in time unless it is struck."""
        await self._wait_for(lambda one: one.status is DuplicationStatus.DS_LOG)
        in_log_ms, blows = self.world.now_ms, self.outcome.blows
        await writer
        self._must_be_soon("in DS_LOG", in_log_ms - self.started_ms)
        for number in range(2):
            await self._write(b"last", b"%d.%d" % (blows, number))
        written_ms = max(self.world.now_ms, self.started_ms)

        async def attempt() -> None:
            await self.client.admin.wait_duplicated(TABLE, timeout=_CALL_S)

        await self._persist(attempt)
        if self.down or self.outcome.blows != blows:
            return
        here, there = [await self._rows(cluster) for cluster in (self.a, self.b)]
        if self.down or self.outcome.blows != blows:
            return
        self.outcome.recovered_ms = self.world.now_ms - self.started_ms
        self._must_be_soon("equal", self.world.now_ms - written_ms)
        self.outcome.rows = len(here)
        wanted = {key: (value, None) for key, value in self.model.items()}
        for name, rows in (("alpha", here), ("beta", there)):
            if rows != wanted:
                differ = [k for k in {*rows, *wanted} if rows.get(k) != wanted.get(k)]
                self.outcome.wrong.append(f"{name}: {sorted(differ)} differ")

    def _must_be_soon(self, what: str, took_ms: int) -> None:
        finished = self.case is None or self.outcome.blows == BLOWS
        if finished and not self.down and took_ms > RECOVERED_MS:
            self.outcome.wrong.append(f"{what} after {took_ms} ms only")

    async def _rows(self, cluster: Cluster) -> dict[tuple[bytes, bytes], Any]:
        found: dict[tuple[bytes, bytes], Any] = {}

        async def attempt() -> None:
            nonlocal found
            client = await cluster.connect(limit_s=_CALL_S)
            try:
                found = await rows_of(await client.table(TABLE, timeout=_CALL_S))
            finally:
                await client.close()

        await self._persist(attempt)
        return found

    async def _check_one_entry(self) -> None:
        entries = await self.client.admin.query_duplication(TABLE)
        if [one.dupid for one in entries] != [self.dupid]:
            self.outcome.wrong.append(f"not the one entry {self.dupid}: {entries}")
        try:
            await self.client.admin.add_duplication(TABLE, "beta", "other")
        except DuplicationExists:
            pass
        else:
            self.outcome.wrong.append("a second add was obeyed")


def _options() -> WorldOptions:
    """A near network and quick disks: what must be soon is measured in virtual time."""
    return WorldOptions(
        network=NetworkOptions(), worker_slow=0.0, clock_drift_ppm=0, wall_offset_us=0
    )


def count_points(scene: str) -> Points:
    """Return how many points an undisturbed run has."""
    with World(_SEED, options=_options(), disk=SimulatedDisk) as world:
        play = _Play(world, SCENES[scene], None)
        outcome = world.run(play.play(), limit_ms=_GIVE_UP_MS)
        assert not outcome.wrong, outcome.wrong
        return play.points


def all_cases(scene: str, points: Points) -> Iterator[Case]:
    """Yield every case of a scene: each step of each server and of both, and each I/O."""
    for name, steps in points.steps.items():
        for point in range(1, steps + 1):
            for power in (False, True):
                yield Case(scene, (name,), power, point)
    for point in range(1, sum(points.steps.values()) + 1):
        yield Case(scene, ("alpha", "beta"), bool(point % 2), point)
    for name, ios in points.ios.items():
        for point in range(ios):
            for fault in (Fault.KILL_BEFORE, Fault.KILL_TORN):
                yield Case(scene, (name,), bool(point % 2), point, fault)


def survive(case: Case, points: Points) -> Outcome:
    """Play one case; the later blows come within as many steps as an undisturbed run has."""
    with World(_SEED, options=_options(), disk=SimulatedDisk) as world:
        play = _Play(world, SCENES[case.scene], case)
        play.typical = sum(points.steps[name] for name in case.victims)
        outcome = play.outcome
        outcome.told = str(case)
        try:
            world.run(play.play(), limit_ms=10 * _GIVE_UP_MS)
        except (PegasKVError, AssertionError, asyncio.CancelledError) as error:
            outcome.wrong.append(repr(error))
        if outcome.blows != BLOWS:
            outcome.wrong.append(f"{outcome.blows} blows")
        outcome.digest = world.digest()
        return outcome


@functools.cache
def _every_case() -> list[tuple[Case, Points]]:
    counted = {scene: count_points(scene) for scene in SCENES}
    return [
        (case, points) for scene, points in counted.items() for case in all_cases(scene, points)
    ]


def simulate_crash(number: int) -> Outcome:
    """Play one case of all scenes by its number; beyond the last it begins anew."""
    cases = _every_case()
    return survive(*cases[number % len(cases)])
