import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from google_crc32c import value as crc32c

from pegaskv.base.errors import CorruptionError, UnsupportedFormat
from pegaskv.coordination.embedded import EmbeddedStore
from pegaskv.coordination.record_file import HEADER_BYTES
from pegaskv.coordination.store import ABSENT, Compacted, Guard, StoreUnavailable, WatchEvent
from pegaskv.runtime.tasks import TaskScope
from pegaskv.runtime.worker import ThreadWorker
from pegaskv.storage.disk import Disk
from pegaskv.storage.local_disk import LocalDisk
from tests.coordination.inline_worker import InlineWorker
from tests.coordination.store_contract import StoreContract
from tests.simulation.disk import Fault, SimulatedDisk

ROOT = Path("/data/meta")


class TestOnLocalDisk(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
        worker = ThreadWorker("store")
        store = await EmbeddedStore.open(LocalDisk(), tmp_path / "meta", worker=worker)
        yield store
        await store.close()
        await worker.close()


class TestOnSimulatedDisk(StoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[EmbeddedStore]:
        # So small that nearly every commit begins a new file.
        store = await opened(SimulatedDisk(Random(1)), compact_bytes=100)
        yield store
        await store.close()


async def opened(disk: Disk, *, compact_bytes: int = 1 << 20) -> EmbeddedStore:
    return await EmbeddedStore.open(disk, ROOT, worker=InlineWorker(), compact_bytes=compact_bytes)


async def content(store: EmbeddedStore) -> dict[str, tuple[bytes, int]]:
    found, _ = await store.list("")
    return {key: (one.value, one.revision) for key, one in found.items()}


async def next_event(events: AsyncIterator[WatchEvent]) -> WatchEvent:
    async with asyncio.timeout(5):
        return await anext(events)


def files(disk: SimulatedDisk) -> list[str]:
    return disk.list(ROOT)


async def test_a_reopened_store_has_everything_with_its_revisions() -> None:
    disk = SimulatedDisk(Random(1))
    store = await opened(disk, compact_bytes=400)
    for number in range(20):
        deletes = [f"k/{number - 3}"] if number % 4 == 3 else []
        await store.commit(puts={f"k/{number}": b"v" * number}, deletes=deletes)
    before = await store.list("")
    assert store.compactions > 2
    await store.close()
    again = await opened(disk)
    assert await again.list("") == before
    assert again.torn_bytes == 0
    assert await again.commit(guards=[Guard("k/0", ABSENT)], puts={"k/0": b""}) == 21
    await again.close()


async def test_every_start_writes_a_new_file_and_removes_the_old_one() -> None:
    disk = SimulatedDisk(Random(1))
    for generation in range(1, 5):
        store = await opened(disk)
        assert files(disk) == [f"records-{generation:010d}"]
        await store.commit(puts={"a": b"%d" % generation})
        disk.kill()
        disk = disk.reborn()


async def test_a_snapshot_of_many_and_large_values_is_read_back() -> None:
    disk = SimulatedDisk(Random(1))
    store = await opened(disk)
    for batch in range(25):
        await store.commit(puts={f"k/{batch}/{number}": b"v" * 10 for number in range(100)})
    for number in range(3):
        await store.commit(puts={f"large/{number}": bytes([number]) * 1_000_000})
    before = await content(store)
    await store.close()
    for _ in range(2):
        again = await opened(disk)
        assert await content(again) == before
        await again.close()


async def test_a_watcher_that_fell_behind_is_told_to_list_again() -> None:
    store = await opened(SimulatedDisk(Random(1)))
    for number in range(1_010):
        await store.commit(puts={"a": b"%d" % number})
    with pytest.raises(Compacted):
        await next_event(store.watch("", 5))
    event = await next_event(store.watch("", 1_000))
    assert event == WatchEvent("a", b"1000", 1_001)
    await store.close()
    again = await opened(SimulatedDisk(Random(2)))
    await again.commit(puts={"a": b""})
    assert (await next_event(again.watch("", 0))).revision == 1
    await again.close()


async def test_changes_before_a_start_are_not_known_to_watchers() -> None:
    disk = SimulatedDisk(Random(1))
    store = await opened(disk)
    await store.commit(puts={"a": b"1"})
    await store.close()
    again = await opened(disk)
    with pytest.raises(Compacted):
        await next_event(again.watch("", 0))
    await again.commit(puts={"b": b"1"})
    assert (await next_event(again.watch("", 1))).key == "b"
    await again.close()


# Damage.


async def written(count: int = 5) -> tuple[SimulatedDisk, Path, list[int]]:
    """A killed store's disk, its file, and where each commit's record ends."""
    disk = SimulatedDisk(Random(1))
    store = await opened(disk)
    path = ROOT / files(disk)[0]
    ends = []
    for number in range(count):
        await store.commit(puts={f"k/{number}": b"value"})
        ends.append(len(disk.read_bytes(path)))
    disk.kill()
    return disk.reborn(), path, ends


async def test_a_torn_tail_is_cut_off_at_every_byte() -> None:
    _, _, ends = await written()
    for size in range(ends[-2], ends[-1]):
        disk, path, _ = await written()
        disk.open(path, writable=True).truncate(size)
        store = await opened(disk)
        assert store.torn_bytes == size - ends[-2]
        assert sorted(await content(store)) == [f"k/{number}" for number in range(4)]
        await store.close()


async def test_a_flipped_byte_before_acknowledged_records_is_refused() -> None:
    _, _, ends = await written()
    for offset in range(ends[-2]):
        disk, path, _ = await written()
        disk.flip(path, offset)
        before = disk.read_bytes(path)
        with pytest.raises((CorruptionError, UnsupportedFormat)):
            await opened(disk)
        assert disk.read_bytes(path) == before
        assert files(disk) == [path.name]


async def test_a_flipped_byte_in_the_last_record_of_a_clean_stop_is_refused() -> None:
    disk = SimulatedDisk(Random(1))
    store = await opened(disk)
    await store.commit(puts={"a": b"1"})
    path = ROOT / files(disk)[0]
    end = len(disk.read_bytes(path))
    await store.commit(puts={"a": b"2"})
    await store.close()
    disk.flip(path, end + 30)
    with pytest.raises(CorruptionError, match="acknowledged"):
        await opened(disk)


async def test_a_damaged_snapshot_is_refused_even_if_nothing_follows() -> None:
    disk, _, _ = await written()
    await (await opened(disk)).close()
    path = ROOT / files(disk)[0]
    for size in range(HEADER_BYTES, len(disk.read_bytes(path)) - 40, 7):
        copy = SimulatedDisk(Random(1))
        copy.make_dirs(ROOT)
        copy.create(ROOT / path.name).write_at(0, disk.read_bytes(path)[:size])
        with pytest.raises(CorruptionError, match="snapshot"):
            await opened(copy)


async def test_a_file_of_another_format_is_refused_by_name() -> None:
    disk, path, _ = await written()
    file = disk.open(path, writable=True)
    header = bytearray(file.read_at(0, HEADER_BYTES))
    header[11] = 9
    header[-4:] = crc32c(bytes(header[:-4])).to_bytes(4, "big")
    file.write_at(0, bytes(header))
    with pytest.raises(UnsupportedFormat, match="format 9"):
        await opened(disk)
    file.write_at(0, b"something else, and long enough for a header")
    with pytest.raises(CorruptionError, match="not a file of the meta store"):
        await opened(disk)


async def test_a_record_of_another_place_is_not_taken() -> None:
    disk, path, ends = await written()
    data = disk.read_bytes(path)
    # Old blocks of the file system behind the end: good records, in the wrong place.
    disk.open(path, writable=True).write_at(len(data), data[ends[-3] : ends[-1]])
    store = await opened(disk)
    assert store.torn_bytes == ends[-1] - ends[-3]
    assert len(await content(store)) == 5
    await store.close()


# Failing disks.


async def test_after_a_failed_write_nothing_is_read_or_written_until_recovery() -> None:
    disk = SimulatedDisk(Random(1))
    store = await opened(disk)
    await store.commit(puts={"a": b"1"})
    disk.plan(1, Fault.FAIL)
    async with TaskScope("test") as scope:
        tasks = [scope.start("commit", refused(store, number)) for number in range(3)]
        for task in tasks:
            await task
    assert not store.usable
    with pytest.raises(StoreUnavailable):
        await store.get("a")
    with pytest.raises(StoreUnavailable) as caught:
        await store.commit(puts={"a": b"9"})
    assert isinstance(caught.value.__cause__, OSError)
    await store.recover()
    assert store.usable
    assert set(await content(store)) <= {"a", "k/0"}
    assert (await content(store))["a"] == (b"1", 1)
    await store.commit(puts={"a": b"2"})
    await store.close()


async def refused(store: EmbeddedStore, number: int) -> None:
    with pytest.raises(StoreUnavailable):
        await store.commit(puts={f"k/{number}": b""})


async def test_a_full_disk_is_left_as_soon_as_there_is_space() -> None:
    disk = SimulatedDisk(Random(1))
    store = await opened(disk)
    await store.commit(puts={"a": b"1"})
    used = len(disk.read_bytes(ROOT / files(disk)[0]))
    disk.set_capacity(used + 10)
    with pytest.raises(StoreUnavailable):
        await store.commit(puts={"b": bytes(1_000)})
    for _ in range(3):
        with pytest.raises(StoreUnavailable) as caught:
            await store.recover()
        assert isinstance(caught.value.__cause__, OSError)
    disk.set_capacity(1 << 20)
    await store.recover()
    assert await content(store) == {"a": (b"1", 1)}
    await store.commit(puts={"b": bytes(1_000)})
    await store.close()


async def test_a_full_disk_while_a_snapshot_is_written_stops_no_commit() -> None:
    disk = SimulatedDisk(Random(1))
    store = await opened(disk, compact_bytes=6_000)
    await store.commit(puts={"large": bytes(4_000)})
    # Room for the commits, and none for a second file beside them.
    disk.set_capacity(9_000)
    for number in range(60):
        await store.commit(puts={"a": b"%03d" % number})
    assert len(disk.read_bytes(ROOT / files(disk)[0])) > 6_000, "no snapshot was due"
    assert store.compactions == 0
    disk.set_capacity(100_000)
    for number in range(200):
        await store.commit(puts={"a": b"%03d" % number})
    assert store.compactions > 0
    await store.close()


async def test_a_watcher_hears_of_a_commit_that_failed_and_happened() -> None:
    disk = SimulatedDisk(Random(1))
    store = await opened(disk)
    await store.commit(puts={"a": b"1", "b": b"1"})
    disk.plan(1, Fault.FAIL)
    with pytest.raises(StoreUnavailable):
        await store.commit(puts={"a": b"2"}, deletes=["b"])
    await store.recover()
    # The page cache has kept what could not be synced: it is written again, and holds.
    assert await content(store) == {"a": (b"2", 2)}
    events = store.watch("", 1)
    assert {(await next_event(events)).key for _ in range(2)} == {"a", "b"}
    disk.power_cut()
    again = await opened(disk.reborn())
    assert await content(again) == {"a": (b"2", 2)}
    await again.close()


async def test_a_store_is_closed_while_a_commit_is_under_way() -> None:
    disk = SimulatedDisk(Random(1))
    store = await opened(disk)
    async with TaskScope("test") as scope:
        first = scope.start("first", store.commit(puts={"a": b"1"}))
        second = scope.start("second", refused(store, 2))
        await asyncio.sleep(0)
        await store.close()
        assert await first == 1
        await second
    again = await opened(disk)
    assert await content(again) == {"a": (b"1", 1)}
    assert again.torn_bytes == 0
    await again.close()
