"""Rows that were read are found in memory, never older than what was written, and in a bound."""

import gc
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from pegaskv.base.errors import ConfigurationError
from pegaskv.codec.operations import Operation
from pegaskv.replica.options import ReplicaOptions
from pegaskv.replica.row_cache import RowCache, RowCaches
from tests.replica.stub_world import Server, play
from tests.simulation.world import Life, World

UNREADABLE = OSError(5, "planned: nobody should look here")
# As the module counts it.
ROW_MEMORY = 176


def read(cache: RowCache, key: bytes) -> bytes | None:
    """Look a row up as a replica does."""
    row = cache.young.get(key)
    return cache.take_back(key) if row is None else row


def held(*members: RowCache) -> int:
    """The bytes of all rows that can be found."""
    return sum(
        len(key) + len(row) + ROW_MEMORY
        for cache in members
        for rows in (cache.young, cache.old)
        for key, row in rows.items()
    )


def test_rows_are_kept_within_the_bound_however_many_come() -> None:
    random = Random(1)
    caches = RowCaches(30_000)
    members = [caches.make() for _ in range(3)]
    most = 0
    for number in range(5_000):
        members[random.randrange(3)].add(b"%d" % number, bytes(random.randrange(500)))
        leaving = sum(
            len(key) + len(row) + ROW_MEMORY
            for rows in caches._leaving
            for key, row in rows.items()
        )
        assert held(*members) + leaving <= caches.bytes <= caches.bytes_max
        most = max(most, held(*members))
    assert most > 15_000


def test_who_is_read_again_stays_and_the_others_leave() -> None:
    caches = RowCaches(30_000)
    cache, other = caches.make(), caches.make()
    other.add(b"of another partition", b"v")
    cache.add(b"popular", b"v")
    for number in range(1_000):
        cache.add(b"%d" % number, bytes(100))
        assert read(cache, b"popular") == b"v"
    assert read(cache, b"0") is None
    assert read(cache, b"999") == bytes(100)
    assert not other.young
    assert not other.old


def test_no_row_is_kept_twice() -> None:
    caches = RowCaches(30_000)
    cache = caches.make()
    for number in range(300):
        key = b"%d" % (number % 60)
        if read(cache, key) is None:
            cache.add(key, bytes(100))
        assert not cache.young.keys() & cache.old.keys()


def test_rows_leave_a_few_at_a_time() -> None:
    caches = RowCaches(90_000)
    cache = caches.make()
    sizes = []
    for number in range(1_000):
        cache.add(b"%d" % number, bytes(100))
        sizes.append(sum(map(len, caches._leaving)))
    assert max(sizes) > 90
    assert max(before - after for before, after in pairwise(sizes)) == 2


def test_large_rows_are_not_kept_and_nothing_is_if_there_is_no_room() -> None:
    caches = RowCaches(1 << 20)
    cache = caches.make()
    cache.add(b"large", bytes(4_096))
    cache.add(b"small", bytes(3_900))
    assert list(cache.young) == [b"small"]
    nothing = RowCaches(0).make()
    nothing.add(b"k", b"v")
    assert not nothing.young


def test_a_partition_that_is_gone_is_forgotten() -> None:
    caches = RowCaches(30_000)
    caches.make().add(b"k", b"v")
    gc.collect()
    assert len(caches._members) == 0


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="row_cache_bytes"):
        ReplicaOptions(row_cache_bytes=-1).validate()
    ReplicaOptions(row_cache_bytes=0).validate()


async def opened(life: Life, **options: int) -> Server:
    server = Server(life, options=ReplicaOptions(**options))
    await server.start()
    await server.serve(first=True)
    return server


async def get_beside_the_engine(server: Server, sort_key: bytes) -> Any:
    """A read that fails if it looks into the engine."""
    engine = server.engine()
    engine.get_error = UNREADABLE
    try:
        return await server.get(sort_key)
    finally:
        engine.get_error = None


def test_a_row_is_read_from_the_engine_once() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"a", b"1")
        server.replica().apply_now()
        misses = server.replica().row_cache_misses
        assert await server.get(b"a") == b"1"
        assert server.replica().row_cache_misses == misses + 1
        for _ in range(3):
            assert await get_beside_the_engine(server, b"a") == b"1"
        assert server.replica().row_cache_misses == misses + 1

    play(scenario)


def test_nothing_is_kept_with_a_cache_of_no_bytes() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, row_cache_bytes=0)
        await server.set(b"a", b"1")
        server.replica().apply_now()
        for misses in (1, 2, 3):
            assert await server.get(b"a") == b"1"
            assert server.replica().row_cache_misses == misses

    play(scenario)


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_what_was_read_is_not_seen_again_after_a_write(in_thread: bool, old: bool) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica, engine = server.replica(), server.engine()
        for sort_key in (b"set", b"deleted", b"stays"):
            await server.set(sort_key, b"1")
        replica.apply_now()
        for sort_key in (b"set", b"deleted", b"stays"):
            assert await server.get(sort_key) == b"1"
        if old:
            server.stub._row_caches._grow_old()
        await server.set(b"set", b"2")
        await server.ask(Operation.DELETE, b"h", b"deleted")
        engine.is_calm = not in_thread
        server.slow("apply", 100_000)
        replica.apply_now()
        if in_thread:
            # One more of the same while the thread writes: the younger one is seen throughout.
            await server.set(b"set", b"3")
            while replica._in_thread is not None:
                assert await server.get(b"set") == b"3"
                assert await server.get(b"deleted") is None
                await world.sleep_ms(10)
        engine.is_calm = True
        replica.apply_now()
        assert not replica.applying
        assert await server.get(b"set") == (b"3" if in_thread else b"2")
        assert await server.get(b"deleted") is None
        assert await get_beside_the_engine(server, b"stays") == b"1"

    play(scenario)


def test_expired_rows_that_were_swept_are_not_kept() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, expiry_sweep_interval_ms=1_000)
        await server.set(b"a", b"1", ttl=2)
        server.replica().apply_now()
        assert await server.get(b"a") == b"1"
        await world.sleep_ms(60_000)
        assert server.stub._sweeper.rows_expired == 1
        cache = server.replica().cache
        assert not cache.young
        assert not cache.old
        assert await server.get(b"a") is None

    play(scenario)


def test_metrics_show_what_is_kept_and_its_bound() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, row_cache_bytes=100_000)
        await server.set(b"a", bytes(100))
        server.replica().apply_now()
        await server.get(b"a")
        found = {metric.name: metric.samples for metric in server.stub.metrics()}
        [(_, size)] = found["pegaskv_row_cache_bytes"]
        assert 100 + ROW_MEMORY < size < 200 + ROW_MEMORY
        assert found["pegaskv_row_cache_bytes_max"] == (((), 100_000.0),)
        [(_, misses)] = found["pegaskv_row_cache_misses_total"]
        assert misses == 1

    play(scenario)
