"""A sweep looks at little at a time, and finds what is to go however it is cut into pages."""

from random import Random

import pytest

from pegaskv.codec.keys import encode_key
from pegaskv.codec.operations import Operation
from pegaskv.codec.values import make_timetag, pack_row_header
from pegaskv.replica.expiry import EVERYTHING, InvisiblePage, find_invisible
from pegaskv.replica.options import ReplicaOptions
from pegaskv.storage.engine import ReplicaState, Snapshot
from pegaskv.storage.memory import MemoryEngine, MemoryFactory
from tests.replica.stub_world import DATA, Server, play
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import Life, World

NOW = 1_000
# As the module has them.
PAGE_ROWS, PAGE_BYTES = 400, 400 * 1024


def row(kind: str, size: int) -> bytes:
    timetag = make_timetag(5, 1, deleted=kind == "tombstone")
    expiry = {"expired": NOW, "mortal": NOW + 50}.get(kind, 0)
    return pack_row_header(expiry, timetag) + bytes(size)


def engine_of(rows: dict[bytes, bytes]) -> MemoryEngine:
    engine = MemoryFactory(SimulatedDisk(Random(1))).open(DATA)
    engine.write([part for pair in rows.items() for part in pair], ReplicaState(1, 1, 1))
    return engine


def pages(snapshot: Snapshot) -> list[InvisiblePage]:
    found = [find_invisible(snapshot, b"", NOW, EVERYTHING)]
    while (start := found[-1].next_key) is not None:
        found.append(find_invisible(snapshot, start, NOW, EVERYTHING))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_looked_at_once_whatever_its_size(seed: int) -> None:
    random = Random(seed)
    kinds: dict[bytes, str] = {}
    rows: dict[bytes, bytes] = {}
    for number in range(random.choice([1, PAGE_ROWS, PAGE_ROWS + 1, 1_500])):
        key = encode_key(b"h%d" % number, b"s")
        kinds[key] = random.choice(["living", "mortal", "expired", "tombstone"])
        rows[key] = row(kinds[key], random.choice([0, 100, 3_000]))
    found = pages(engine_of(rows).snapshot())
    for kind, gone in (
        ("expired", [key for page in found for key, _ in page.expired]),
        ("tombstone", [key for page in found for key, _ in page.tombstones]),
    ):
        assert gone == sorted(key for key, other in kinds.items() if other == kind)
    mortal = "mortal" in kinds.values()
    assert max(page.earliest for page in found) == (NOW + 50 if mortal else 0)


@pytest.mark.parametrize(
    ("size", "count"), [(10, 1_000 // PAGE_ROWS + 1), (4_096, 10), (PAGE_BYTES + 1, 1_000)]
)
def test_a_page_ends_after_so_many_rows_or_bytes(size: int, count: int) -> None:
    # Also a row that is larger than a page is one step of the way.
    rows = {encode_key(b"%04d" % number, b"s"): row("living", size) for number in range(1_000)}
    found = pages(engine_of(rows).snapshot())
    assert abs(len(found) - count) <= 1
    assert not any(page.expired or page.tombstones or page.earliest for page in found)


@pytest.mark.parametrize("where", ["in memory", "in a thread", "in the log", "in a batch"])
def test_a_row_that_the_engine_has_not_taken_yet_is_for_the_next_pass(where: str) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = Server(life, options=ReplicaOptions(expiry_sweep_interval_ms=200))
        await server.start()
        await server.serve(first=True)
        await world.sleep_ms(3_000)
        replica, sweeper = server.replica(), server.stub._sweeper
        assert not replica.expires, "there was nothing to look for"
        if where == "in a thread":
            server.engine().is_calm = False
            server.slow("apply", 400_000)
        elif where == "in the log":
            server.slow("log", 400_000)
        request = server.send(Operation.SET, b"h", b"s", b"1", 5)
        if where != "in a batch":
            await world.sleep_ms(10)
        await sweeper.sweep(replica)
        assert (await server.answer(request))[0] == 0
        key = encode_key(b"h", b"s")
        await world.until(lambda: server.engine().get(key) is not None, what="the row")
        await world.until(lambda: sweeper.rows_expired == 1, limit_ms=10_000, what="its end")
        assert server.engine().get(key) is None
        # And then there is nothing to look for again.
        await world.sleep_ms(2_000)
        assert not replica.expires
        await server.stop()

    play(scenario)
