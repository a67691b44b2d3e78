"""Two clusters end equal to last-writer-wins, whatever comes in whatever order in between."""

from random import Random

import pytest

from pegaskv.codec.keys import RESERVED_PREFIX, encode_key
from pegaskv.codec.messages_duplication import DuplicationOrder
from pegaskv.codec.operations import Operation
from pegaskv.codec.values import ROW_HEADER_BYTES, is_deleted, is_visible, seconds_since_epoch
from tests.helpers import groups
from tests.replica.duplication_pair import Link, Model, Side, source_order, stream_uuid
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import World

HASH_KEYS = [b"a", b"b", b"c", b"d"]
SORT_KEYS = [b"1", b"2"]
STEPS = 120


async def write(side: Side, random: Random) -> None:
    """A tick of client writes, some of one key; whether they are taken is not waited for."""
    for _ in range(random.choice([1, 1, 2, 4])):
        hash_key, sort_key = random.choice(HASH_KEYS), random.choice(SORT_KEYS)
        index = side.index_of(hash_key)
        value = b"%d" % random.randrange(10**6)
        ttl = random.choice([0, 0, 0, 1, 2])
        match random.randrange(5):
            case 0 | 1:
                side.send(Operation.SET, hash_key, sort_key, value, ttl, index=index)
            case 2:
                side.send(Operation.DELETE, hash_key, sort_key, index=index)
            case 3:
                side.send(
                    Operation.MULTI_SET,
                    hash_key,
                    [part for key in SORT_KEYS for part in (key, value)],
                    ttl,
                    index=index,
                )
            case _:
                side.send(Operation.INCR, hash_key, sort_key, 3, 0, index=index)


async def step(sides: list[Side], links: list[Link], random: Random, *, power_cuts: bool) -> None:
    link = random.choice(links)
    s = random.randrange(link.source.partitions)
    match random.randrange(12):
        case 0 | 1 | 2:
            await write(random.choice([each.source for each in links]), random)
        case 3 | 4:
            await link.ship(s)
        case 5 | 6 | 7:
            await link.deliver()
        case 8:
            if s in link.copied:
                link.hold(s)
            else:
                await link.copy(s)
        case 9:
            await sides[0].world.sleep_ms(random.choice([1, 20, 500]))
        case 10:
            # A late message and a write meet in one tick.
            await write(link.target, random)
            await link.deliver()
        case _:
            side = random.choice(sides)
            if random.random() < 0.4:
                # In the middle of writes and of messages that arrive.
                await write(side, random)
                for each in links:
                    each.fire()
                await side.world.sleep_ms(random.choice([0, 1, 3]))
                await side.crash(power=power_cuts and random.random() < 0.5)
            else:
                side.node.jump_wall(random.choice([-1_000_000, 300_000]))


async def play_world(world: World, random: Random) -> tuple[list[Side], list[Link]]:
    counts = random.choice([(1, 1), (2, 2), (1, 4), (4, 1), (4, 2)])
    a = Side(world, 1, counts[0], random)
    b = Side(world, 2, counts[1], random)
    sides, model = [a, b], Model()
    two_way = random.random() < 0.6
    for side in sides:
        side.envs = {"durability": random.choice(["fsync", "os"])} if random.random() < 0.4 else {}
    # A power cut may take what an `os` table has acknowledged: that is another test's.
    power_cuts = all(side.envs.get("durability") != "os" for side in sides)
    await a.start(first=True)
    await b.start(first=True)
    for _ in range(random.randrange(20)):
        await write(a, random)
        await world.sleep_ms(1)
    a.duplications = (DuplicationOrder(1, stream_uuid(1), "c2"),)
    b.sources = (source_order(1),)
    links = [Link(a, b, model, random)]
    if two_way:
        b.duplications = (DuplicationOrder(1, stream_uuid(2), "c1"),)
        a.sources = (source_order(2),)
        links.append(Link(b, a, model, random))
    else:
        b.follower = True
    for side in sides:
        await side.order()
    for _ in range(STEPS):
        await step(sides, links, random, power_cuts=power_cuts)
    # All that is under way arrives, then what is missing; then the expiries pass.
    for link in links:
        while link.soup:
            await link.deliver()
    for _ in range(3):
        await world.sleep_ms(5_000)
        for link in links:
            await link.drain()
    await compare(sides, model)
    return sides, links


async def compare(sides: list[Side], model: Model) -> None:
    for hash_key in HASH_KEYS:
        for sort_key in SORT_KEYS:
            found = [await side.get(hash_key, sort_key) for side in sides]
            row = model.rows.get(encode_key(hash_key, sort_key))
            now = seconds_since_epoch(sides[0].node.wall_us())
            wanted = None
            if row is not None and is_visible(row, now):
                wanted = row[ROW_HEADER_BYTES:]
            assert found == [wanted, wanted], (hash_key, sort_key, row)


def rows_left(side: Side) -> list[tuple[bytes, bytes]]:
    found = []
    for index in range(side.partitions):
        replica = side.server.replica(1, index)
        replica.apply_now()
        snapshot = replica.engine.snapshot()
        found += list(snapshot.iterate(b"", b""))
        snapshot.close()
    return found


@pytest.mark.parametrize("group", groups(2, soak=16))
def test_two_clusters_end_as_the_last_writers_left_them(group: int) -> None:
    seen = dict.fromkeys(("rewound", "lost", "crashes"), 0)
    for seed in range(group * 12, group * 12 + 12):
        with World(seed, disk=SimulatedDisk, wall_offset_us=2_000_000) as world:
            sides, links = world.run(play_world(world, world.random("test")), limit_ms=3_600_000)
        assert all(link.delivered for link in links)
        seen["rewound"] += sum(link.rewound for link in links)
        seen["lost"] += sum(link.lost for link in links)
        seen["crashes"] += sum(side.crashes for side in sides)
    assert all(seen.values()), f"these worlds tested too little: {seen}"


def test_when_a_duplication_is_over_its_tombstones_and_keys_go() -> None:
    async def scenario(world: World) -> int:
        sides, _ = await play_world(world, world.random("test"))
        tombstones = sum(
            is_deleted(row)
            for side in sides
            for key, row in rows_left(side)
            if key < RESERVED_PREFIX
        )
        for side in sides:
            side.duplications = tuple(
                DuplicationOrder(1, order.uuid, order.remote_cluster, ended=True)
                for order in side.duplications
            )
            side.sources = tuple(
                source_order(order.cluster_id, ended=True) for order in side.sources
            )
            await side.order()
        await world.sleep_ms(5_000)
        for side in sides:
            for key, row in rows_left(side):
                if key < RESERVED_PREFIX:
                    assert not is_deleted(row)
                else:
                    assert b"/" not in key, key
        return tombstones

    tombstones = 0
    for seed in range(12):
        with World(seed, disk=SimulatedDisk, wall_offset_us=2_000_000) as world:
            tombstones += world.run(scenario(world), limit_ms=3_600_000)
    assert tombstones, "there was nothing to remove"
