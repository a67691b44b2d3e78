"""The five failures that duplication is known for, in virtual time: one function a scenario.

Stuck in DS_PREPARE, added twice, restarted in DS_PREPARE, the last write, empty tables.
`tests/scenarios/test_five_failures.py` has the same with real processes. Here the network
is near and disks are quick, so that "within 5 s" is exact; a scenario that waits for
minutes costs a moment; and each can be played with an old mistake put back.

A scenario fails by an AssertionError.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from pegaskv.base.errors import DuplicationExists, InvalidArgument, RequestError
from pegaskv.client import Client, Duplication, Table
from pegaskv.duplication.options import DuplicationOptions
from tests.simulation.disk import SimulatedDisk
from tests.simulation.duplication_sides import Cluster
from tests.simulation.duplication_world import rows_of
from tests.simulation.network import NetworkOptions
from tests.simulation.world import World, WorldOptions

__all__ = ["SCENARIOS", "Pair", "Scenario", "play"]

Scenario = Callable[["Pair"], Awaitable[None]]

RECOVERED_MS: Final = 5_000
SHOWN_MS: Final = 2_000
# A write and its way to the target: several messages of at most a millisecond each.
ARRIVED_MS: Final = 15


class Pair:
    """Source and target."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alpha, self.beta = Cluster(world, "alpha", 1), Cluster(world, "beta", 2)
        self.alpha.others, self.beta.others = [self.beta], [self.alpha]
        for cluster in (self.alpha, self.beta):
            cluster.duplication = DuplicationOptions()
        self.source: Client
        self.target: Client

    async def start(self) -> None:
        """Start both, with a client for each."""
        self.alpha.start()
        self.beta.start()
        self.source = await self.alpha.connected()
        self.target = await self.beta.connected()

    async def kill(self, cluster: Cluster, *, down_ms: int = 0, power: bool = False) -> None:
        """Kill a server and start it again."""
        cluster.node.crash(power=power)
        await self.world.sleep_ms(down_ms)
        cluster.start()
        await self._greet(cluster)

    async def _greet(self, cluster: Cluster) -> None:
        client = await cluster.connected()
        if cluster is self.alpha:
            self.source = client
        else:
            self.target = client

    async def start_target(self) -> None:
        """Start a target that was killed."""
        self.beta.start()
        await self._greet(self.beta)

    def cut(self, *, to_target: bool, to_source: bool) -> None:
        """Let nothing through in one direction or in both."""
        here, there = self.alpha.node.address, self.beta.node.address
        if to_target:
            self.world.network.cut(here, there, both=False)
        if to_source:
            self.world.network.cut(there, here, both=False)

    def heal(self) -> None:
        """Let everything through again."""
        self.world.network.heal_all()

    def reset(self) -> None:
        """End all connections between the two."""
        self.world.network.reset(self.alpha.node.address, self.beta.node.address)

    async def fill(self, name: str, rows: int, partitions: int = 8) -> Table:
        """Make a table with so many rows."""
        await self.source.admin.create_table(name, partitions, timeout=60.0)
        table = await self.source.table(name)
        batch = [(b"h%d" % number, b"s", b"v%d" % number) for number in range(rows)]
        for begin in range(0, rows, 500):
            await table.batch_set(batch[begin : begin + 500])
        return table

    async def add(self, name: str, **options: Any) -> Duplication:
        """`add_dup`."""
        return await self.source.admin.add_duplication(name, "beta", **options)

    async def entry(self, name: str) -> Duplication:
        """The one duplication of a table."""
        entries = await self.source.admin.query_duplication(name, timeout=2.0)
        assert len(entries) == 1, f"{len(entries)} entries: {entries}"
        return entries[0]

    async def reach(self, name: str, status: str, *, within_ms: int = RECOVERED_MS) -> None:
        """Wait for a phase."""
        began_ms = self.world.now_ms
        while (found := await self.entry(name)).status.value != status:
            took_ms = self.world.now_ms - began_ms
            assert took_ms < within_ms, f"not {status} after {within_ms} ms: {found}"
            await self.world.sleep_ms(2 + took_ms // 20)

    async def shows_a_cause(self, name: str, *, what: str = "") -> Duplication:
        """Wait for the sentence that says why it does not go on."""
        end_ms = self.world.now_ms + SHOWN_MS
        while True:
            found = await self.entry(name)
            if (
                found.last_error
                and what in found.last_error
                and found.stalled_since
                and found.attempts
                and found.next_attempt_at
            ):
                assert found.status.value == "DS_PREPARE"
                return found
            assert self.world.now_ms < end_ms, f"no cause is shown: {found}"
            await self.world.sleep_ms(20)

    async def equal(self, name: str, *, within_s: float = 5.0, remote: str | None = None) -> None:
        """Everything has arrived, and nothing else is there."""
        await self.source.admin.wait_duplicated(name, timeout=within_s)
        here = await rows_of(await self.source.table(name, timeout=5.0))
        there = await rows_of(await self.target.table(remote or name, timeout=5.0))
        assert here == there, f"{len(here)} rows here, {len(there)} there"

    async def acquaint(self) -> None:
        """Let the source have a connection to the target: its next call gets through."""
        await self.fill("earlier", 1, 1)
        await self.add("earlier")
        await self.reach("earlier", "DS_LOG")

    async def target_has(self, name: str) -> None:
        """Wait until the target has made a table."""
        end_ms = self.world.now_ms + RECOVERED_MS
        while name not in [one.name for one in await self.target.admin.list_tables()]:
            assert self.world.now_ms < end_ms, f"the target never made {name}"
            await self.world.sleep_ms(1)


# Stuck in DS_PREPARE.


async def lost_reply_to_create(pair: Pair) -> None:
    """The table is made, the answer does not come: no foreign table."""
    await pair.fill("t", 20)
    await pair.acquaint()
    pair.cut(to_target=False, to_source=True)
    await pair.add("t")
    await pair.target_has("t")
    await pair.shows_a_cause("t")
    pair.reset()
    pair.heal()
    await pair.reach("t", "DS_LOG")
    await pair.equal("t")
    tables = [one.name for one in await pair.target.admin.list_tables()]
    assert sorted(tables) == ["earlier", "t"]


async def target_killed_between_create_and_reply(pair: Pair) -> None:
    """As before, and who was asked is gone."""
    await pair.fill("t", 20)
    await pair.acquaint()
    pair.cut(to_target=False, to_source=True)
    await pair.add("t")
    await pair.target_has("t")
    pair.beta.node.crash(power=True)
    pair.heal()
    await pair.shows_a_cause("t")
    await pair.start_target()
    await pair.reach("t", "DS_LOG")
    await pair.equal("t")


async def target_to_source_blocked(pair: Pair) -> None:
    """For a minute the target hears and cannot be heard."""
    await pair.fill("t", 20)
    await pair.acquaint()
    pair.cut(to_target=False, to_source=True)
    await pair.add("t")
    await pair.shows_a_cause("t")
    await pair.world.sleep_ms(60_000)
    await pair.shows_a_cause("t")
    pair.heal()
    await pair.reach("t", "DS_LOG")
    await pair.equal("t")


async def both_ways_cut_for_minutes(pair: Pair) -> None:
    """The two know nothing of each other, before the first word and in the middle of it."""
    await pair.fill("t", 20)
    pair.cut(to_target=True, to_source=True)
    await pair.add("t")
    await pair.shows_a_cause("t")
    await pair.world.sleep_ms(150_000)
    await pair.shows_a_cause("t")
    pair.heal()
    await pair.reach("t", "DS_LOG")
    await pair.equal("t")


async def target_not_started_yet(pair: Pair) -> None:
    """Nobody listens there for a minute."""
    await pair.fill("t", 20)
    pair.beta.node.crash(power=False)
    await pair.add("t")
    await pair.shows_a_cause("t")
    await pair.world.sleep_ms(60_000)
    await pair.shows_a_cause("t")
    await pair.start_target()
    await pair.reach("t", "DS_LOG")
    await pair.equal("t")


async def foreign_table_of_that_name(pair: Pair) -> None:
    """It is named and not touched; when it is gone, nobody needs to say so."""
    await pair.fill("t", 20)
    await pair.target.admin.create_table("t", 8)
    foreign = await pair.target.table("t")
    await foreign.set(b"mine", b"s", b"stays")
    await pair.add("t")
    await pair.shows_a_cause("t", what="`t`")
    await pair.world.sleep_ms(120_000)
    await pair.shows_a_cause("t", what="`t`")
    assert await rows_of(foreign) == {(b"mine", b"s"): (b"stays", None)}
    await pair.target.admin.drop_table("t")
    await pair.reach("t", "DS_LOG")
    await pair.equal("t")


# Added twice.


async def added_again_in_any_phase(pair: Pair) -> None:
    """One entry, untouched: in DS_PREPARE, DS_APP, DS_LOG and DS_PAUSE, and after a restart."""
    pair.alpha.copies_slowly()
    await pair.kill(pair.alpha)
    await pair.fill("t", 600, 2)
    pair.beta.node.crash(power=False)
    first = await pair.add("t", remote_table="t_copy")

    async def again() -> None:
        before = await pair.entry("t")
        for remote in ("t_copy", "other", None):
            try:
                await pair.add("t", remote_table=remote)
            except DuplicationExists as error:
                found = error.existing
                assert (found.dupid, found.remote_table) == (first.dupid, "t_copy"), found
            else:
                raise AssertionError("a second add was obeyed")
        after = await pair.entry("t")
        for field in ("dupid", "uuid", "remote_table", "checkpoint", "paused", "created_at"):
            assert getattr(after, field) == getattr(before, field), field

    await again()
    await pair.start_target()
    await pair.reach("t", "DS_APP")
    await again()
    assert (await pair.entry("t")).status.value == "DS_APP"
    await pair.reach("t", "DS_LOG", within_ms=60_000)
    await again()
    await pair.source.admin.pause_duplication("t", first.dupid)
    await again()
    await pair.kill(pair.alpha)
    await again()
    assert (await pair.entry("t")).status.value == "DS_PAUSE"
    await pair.source.admin.start_duplication("t", first.dupid)
    await pair.reach("t", "DS_LOG")
    await pair.equal("t", remote="t_copy")
    assert [one.name for one in await pair.target.admin.list_tables()] == ["t_copy"]


async def added_by_several_at_once(pair: Pair) -> None:
    """One of them makes it, all others are told of it."""
    await pair.fill("t", 10)
    outcomes: list[str] = []

    async def add(number: int) -> None:
        client = await pair.alpha.connected()
        try:
            await client.admin.add_duplication("t", "beta", f"t{number}")
        except DuplicationExists:
            outcomes.append("exists")
        else:
            outcomes.append("added")
        await client.close()

    for task in [pair.alpha.clients.task(add(number)) for number in range(6)]:
        await task
    assert sorted(outcomes) == ["added"] + ["exists"] * 5
    await pair.reach("t", "DS_LOG")
    await pair.equal("t", remote=(await pair.entry("t")).remote_table)


async def two_tables_to_one(pair: Pair) -> None:
    """Another table cannot go to the same remote table."""
    await pair.fill("t", 3)
    await pair.fill("u", 3)
    await pair.add("t", remote_table="common")
    try:
        await pair.add("u", remote_table="common")
    except InvalidArgument as error:
        if "common" not in str(error):
            raise
    else:
        raise AssertionError("two tables go to one")
    await pair.reach("t", "DS_LOG")
    await pair.equal("t", remote="common")
    assert await pair.source.admin.query_duplication("u") == []


# Restarts in DS_PREPARE. Each await of each phase is the business of `crash_points.py`.


async def restarted_in_prepare(pair: Pair) -> None:
    """The source goes down three times while nobody answers it, with and without rows."""
    await pair.fill("empty", 0, 2)
    await pair.fill("full", 20, 2)
    pair.beta.node.crash(power=False)
    for name in ("empty", "full"):
        await pair.add(name)
    starts: dict[str, list[int]] = {}
    for number in range(3):
        # Once with all that the tables have, once with what the log has, once by surprise.
        await pair.world.sleep_ms(400 * number)
        await pair.kill(pair.alpha, down_ms=10, power=number == 2)
        for name in ("empty", "full"):
            found = await pair.shows_a_cause(name)
            decrees = [one.start_decree for one in found.partitions]
            assert len(decrees) == 2
            assert min(decrees) >= 1, decrees
            assert starts.setdefault(name, decrees) == decrees
    await pair.start_target()
    for name in ("empty", "full"):
        await pair.reach(name, "DS_LOG")
        await (await pair.source.table(name)).set(b"after", b"s", b"v")
        await pair.equal(name)


# The last write.


async def last_write_before_silence(pair: Pair) -> None:
    """1, 2 and 100 writes arrive like any other, with no timer that is near."""
    pair.alpha.duplication = DuplicationOptions(confirm_interval_ms=60_000)
    await pair.kill(pair.alpha)
    table = await pair.fill("t", 0)
    await pair.add("t")
    await pair.reach("t", "DS_LOG")
    there = await pair.target.table("t")
    for count in (1, 2, 100, 1):
        await pair.world.sleep_ms(3_000)
        for number in range(count):
            # Most of these go to partitions that never had one before.
            await table.set(b"h%d" % number, b"last", b"%d of %d" % (number, count))
        await pair.world.sleep_ms(ARRIVED_MS)
        for number in range(count):
            found = await there.get(b"h%d" % number, b"last")
            assert found == b"%d of %d" % (number, count), f"{number} of {count}: {found!r}"
    found = await pair.entry("t")
    assert (found.gap, found.caught_up) == (0, True), found


# Empty and tiny tables.


async def empty_and_tiny_tables(pair: Pair) -> None:
    """No row, one and two in 8 partitions."""
    for rows in (0, 1, 2):
        await pair.fill(f"t{rows}", rows, 8)
        await pair.add(f"t{rows}")
        await pair.reach(f"t{rows}", "DS_LOG", within_ms=1_000)
        await pair.equal(f"t{rows}")


async def many_empty_partitions(pair: Pair) -> None:
    """64 of them."""
    await pair.fill("t", 0, 64)
    await pair.add("t")
    await pair.reach("t", "DS_LOG", within_ms=3_000)
    await pair.equal("t")


async def many_partitions_and_two_rows(pair: Pair) -> None:
    """64 again, and all but two or one are empty."""
    await pair.fill("t", 2, 64)
    await pair.add("t")
    await pair.reach("t", "DS_LOG", within_ms=3_000)
    await pair.equal("t")


async def rows_that_are_all_gone(pair: Pair) -> None:
    """They were deleted, or have expired."""
    table = await pair.fill("t", 20)
    await table.batch_delete([(b"h%d" % number, b"s") for number in range(20)])
    await table.set(b"short", b"s", b"v", ttl=1)
    await pair.world.sleep_ms(3_000)
    await pair.add("t")
    await pair.reach("t", "DS_LOG", within_ms=1_000)
    await pair.equal("t")
    assert await rows_of(await pair.target.table("t")) == {}


async def small_beside_large(pair: Pair) -> None:
    """A copy that takes long keeps nobody waiting."""
    pair.alpha.copies_slowly()
    await pair.kill(pair.alpha)
    await pair.fill("large", 3_000)
    await pair.fill("small", 1)
    await pair.fill("empty", 0)
    await pair.add("large")
    await pair.reach("large", "DS_APP")
    for name in ("small", "empty"):
        await pair.add(name)
        await pair.reach(name, "DS_LOG", within_ms=1_000)
        await pair.equal(name)
    assert (await pair.entry("large")).status.value == "DS_APP"
    await pair.reach("large", "DS_LOG", within_ms=60_000)
    await pair.equal("large")


# Two ways.


async def _two_ways(pair: Pair, rows: int) -> tuple[Table, Table]:
    here = await pair.fill("t", rows, 1)
    await pair.add("t")
    await pair.reach("t", "DS_LOG")
    await pair.target.admin.add_duplication("t", "alpha")
    await pair.target.admin.wait_duplicated("t", timeout=5.0)
    return here, await pair.target.table("t")


async def nothing_is_shipped_back(pair: Pair) -> None:
    """Each write crosses once, wherever it was made."""
    here, there = await _two_ways(pair, 0)
    for number in range(10):
        await here.set(b"here", b"%d" % number, b"v")
    for number in range(7):
        await there.set(b"there", b"%d" % number, b"v")
    await pair.world.sleep_ms(5_000)
    await pair.equal("t")
    [back] = await pair.target.admin.query_duplication("t")
    assert ((await pair.entry("t")).shipped, back.shipped) == (10, 7), back


async def equal_timestamps(pair: Pair) -> None:
    """Both clocks are behind what they have seen, so both count on from the same number."""
    here, there = await _two_ways(pair, 0)
    pair.alpha.node.jump_wall(60_000_000)
    await here.set(b"early", b"s", b"v")
    await pair.equal("t")
    pair.alpha.node.jump_wall(-60_000_000)
    for number in range(20):
        # Who wrote last is one ahead or level: both come.
        await (there if number % 2 else here).set(b"before", b"s", b"v")
        await pair.world.sleep_ms(50)
        writers = [
            cluster.clients.task(side.set(b"common", b"%d" % number, cluster.name.encode()))
            for cluster, side in ((pair.alpha, here), (pair.beta, there))
        ]
        for writer in writers:
            await writer
        await pair.world.sleep_ms(50)
    await pair.target.admin.wait_duplicated("t", timeout=5.0)
    await pair.equal("t")
    # Where the timestamps are equal the larger cluster id wins.
    values = list((await here.multi_get(b"common")).values())
    assert values.count(b"beta") >= 5, values


SCENARIOS: Final[dict[str, dict[str, Scenario]]] = {
    "stuck in DS_PREPARE": {
        "lost reply to create": lost_reply_to_create,
        "target killed between create and reply": target_killed_between_create_and_reply,
        "target to source blocked": target_to_source_blocked,
        "both ways cut for minutes": both_ways_cut_for_minutes,
        "target not started yet": target_not_started_yet,
        "foreign table of that name": foreign_table_of_that_name,
    },
    "added twice": {
        "in any phase": added_again_in_any_phase,
        "by several at once": added_by_several_at_once,
        "two tables to one": two_tables_to_one,
    },
    "restart in DS_PREPARE": {"three times": restarted_in_prepare},
    "last write": {"before silence": last_write_before_silence},
    "empty and tiny tables": {
        "0, 1 and 2 rows": empty_and_tiny_tables,
        "64 empty partitions": many_empty_partitions,
        "64 partitions and 2 rows": many_partitions_and_two_rows,
        "rows that are all gone": rows_that_are_all_gone,
        "beside a large one": small_beside_large,
    },
    "two ways": {
        "nothing is shipped back": nothing_is_shipped_back,
        "equal timestamps": equal_timestamps,
    },
}


def play(scenario: Scenario, seed: int = 1) -> None:
    """Play one scenario.

    Raises:
        AssertionError: something did not hold; it says what.

    """
    options = WorldOptions(
        network=NetworkOptions(), worker_slow=0.0, clock_drift_ppm=0, wall_offset_us=0
    )
    with World(seed, options=options, disk=SimulatedDisk) as world:
        pair = Pair(world)

        async def main() -> None:
            await pair.start()
            try:
                await scenario(pair)
            except RequestError as error:
                raise AssertionError(repr(error)) from error

        world.run(main(), limit_ms=600_000)
