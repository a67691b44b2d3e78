"""A copied checkpoint: whole or not there, and the old replica until then; at every crash."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

import pytest

from pegaskv.base.errors import CorruptionError
from pegaskv.base.types import Gpid
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import Engine, EngineFactory, ReplicaState
from pegaskv.storage.learned import CopiedCheckpoint, KeptCheckpoint, kept_name, page_digest
from pegaskv.storage.leveldb import LevelDBFactory
from pegaskv.storage.local_disk import LocalDisk
from pegaskv.storage.memory import MemoryFactory
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.errors import NodeDead
from tests.storage.engine_contract import rows_of, write_row

ROOT: Final = Path("/data/pegaskv")
SOURCE: Final = Path("/source")
GPID: Final = Gpid(5, 3)
PAGE: Final = 64


def opened(disk: Disk, path: Path = ROOT) -> DataDirectory:
    return DataDirectory.open(disk, path, random=Random(1))


def made(
    disk: Disk, factory: EngineFactory, path: Path, rows: int
) -> tuple[KeptCheckpoint, Engine]:
    """A primary's replica with so many rows, and a checkpoint of it that is kept."""
    engine = factory.open(path / "engine")
    for decree in range(1, rows + 1):
        write_row(engine, decree, b"%03d" % decree, b"row of the primary")
    kept = KeptCheckpoint(disk, path / "learners" / kept_name(Random(rows)))
    kept.make(engine)
    return kept, engine


def pages(files: list[tuple[str, int]], page: int = PAGE) -> Iterator[tuple[str, int, bool]]:
    for name, size in files:
        for offset in range(0, size or 1, page):
            yield name, offset, offset + page >= size


def copy_all(kept: KeptCheckpoint, copy: CopiedCheckpoint) -> None:
    for name, offset, ends in pages(copy.missing):
        data, digest = kept.read(name, offset, PAGE)
        copy.write(name, offset, data, digest)
        if ends:
            copy.finish(name)


def copied(directory: DataDirectory, disk: Disk, kept: KeptCheckpoint) -> CopiedCheckpoint:
    copy = CopiedCheckpoint(
        disk, directory.learned_path(GPID), kept.name, kept.state, list(kept.files)
    )
    copy.begin()
    copy_all(kept, copy)
    return copy


def install(
    directory: DataDirectory,
    factory: EngineFactory,
    copy: CopiedCheckpoint,
    incarnation: int,
    *,
    keep_old: bool = False,
    accepted: frozenset[str] = frozenset(),
) -> None:
    copy.publish()
    copy.prove(factory)
    directory.install_learned(
        GPID, incarnation, copy.state, at_us=50, accepted=accepted, keep_old=keep_old
    )


# From one server to another.


@pytest.mark.parametrize("kind", ["memory", "leveldb"])
def test_what_is_copied_is_what_the_primary_had_whatever_it_writes_meanwhile(
    kind: str, tmp_path: Path
) -> None:
    disk: Disk = LocalDisk() if kind == "leveldb" else SimulatedDisk(Random(1))
    factory: EngineFactory = LevelDBFactory(disk) if kind == "leveldb" else MemoryFactory(disk)
    kept, engine = made(disk, factory, tmp_path / "primary", 40)
    expected = rows_of(engine)
    directory = opened(disk, tmp_path / "learner")
    directory.create_replica(GPID, 1, created_at_us=1)
    copy = CopiedCheckpoint(
        disk, directory.learned_path(GPID), kept.name, kept.state, list(kept.files)
    )
    copy.begin()
    for name, offset, ends in pages(copy.missing):
        data, digest = kept.read(name, offset, PAGE)
        copy.write(name, offset, data, digest)
        if ends:
            copy.finish(name)
        if offset == 0:
            # Flushes and compactions of the primary take nothing of it away.
            write_row(engine, engine.state().decree + 1, b"001", b"written later")
            engine.compact()
            engine.flush()
    install(directory, factory, copy, 7)
    learned = factory.open(directory.engine_path(GPID))
    assert learned.state() == kept.state
    assert learned.state().decree == 40
    assert rows_of(learned) == expected
    learned.close()
    manifest = directory.manifest(GPID)
    assert (manifest.incarnation, manifest.base_decree, manifest.base_ballot) == (
        7,
        40,
        kept.state.ballot,
    )
    # It is a checkpoint to fall back on as well.
    assert directory.checkpoint_decree(GPID) == 40
    assert disk.list(directory.path / "trash") == []
    kept.remove()
    with pytest.raises(FileNotFoundError):
        kept.read(kept.files[0][0], 0, PAGE)
    engine.close()
    directory.close()


def test_a_file_that_changed_on_the_way_is_found_and_copied_again() -> None:
    disk = SimulatedDisk(Random(1))
    factory = MemoryFactory(disk)
    kept, _ = made(disk, factory, SOURCE, 40)
    directory = opened(disk)
    copy = CopiedCheckpoint(
        disk, directory.learned_path(GPID), kept.name, kept.state, list(kept.files)
    )
    copy.begin()
    [(name, size)] = kept.files
    assert size > 3 * PAGE
    data, digest = kept.read(name, 0, PAGE)
    copy.write(name, 0, data, digest)
    data, digest = kept.read(name, PAGE, PAGE)
    with pytest.raises(CorruptionError, match="not what was read"):
        copy.write(name, PAGE, data[:-1] + bytes([data[-1] ^ 1]), digest)
    # Nor is a page that belongs elsewhere.
    with pytest.raises(CorruptionError, match="not what was read"):
        copy.write(name, PAGE, *kept.read(name, 2 * PAGE, PAGE))
    assert copy.missing == [(name, size)]
    # Beginning anew is enough.
    copy_all(kept, copy)
    assert copy.missing == []
    assert copy.copied == copy.bytes == size
    install(directory, factory, copy, 2)
    assert factory.open(directory.engine_path(GPID)).state() == kept.state


def test_pages_that_are_missing_or_too_short_make_no_file() -> None:
    disk = SimulatedDisk(Random(1))
    copy = CopiedCheckpoint(disk, ROOT / "5.3.learn", "learn-1", ReplicaState(), [("a", 100)])
    copy.begin()

    def write(offset: int, length: int) -> None:
        data = b"x" * length
        copy.write("a", offset, data, page_digest("a", offset, data))

    with pytest.raises(CorruptionError, match="lacks what is before 10"):
        write(10, 10)
    write(0, 10)
    with pytest.raises(CorruptionError, match="lacks what is before 20"):
        write(20, 80)
    with pytest.raises(CorruptionError, match="has not 100 bytes"):
        copy.finish("a")
    write(10, 91)
    with pytest.raises(CorruptionError, match="has not 100 bytes"):
        copy.finish("a")
    write(0, 100)
    copy.finish("a")
    assert copy.missing == []


@pytest.mark.parametrize(
    "files",
    [
        [("../manifest", 1)],
        [("", 1)],
        [("..", 1)],
        [("CHECKPOINT", 1)],
        [("a\0b", 1)],
        [("a", -1)],
        [("a", 1), ("a", 2)],
    ],
)
def test_names_that_lead_elsewhere_are_refused(files: list[tuple[str, int]]) -> None:
    with pytest.raises(CorruptionError):
        CopiedCheckpoint(SimulatedDisk(Random(1)), ROOT, "learn-1", ReplicaState(), files)


def test_tables_that_are_not_at_the_state_that_was_named_take_nobodys_place() -> None:
    disk = SimulatedDisk(Random(1))
    factory = MemoryFactory(disk)
    kept, _ = made(disk, factory, SOURCE, 5)
    directory = opened(disk)
    kept.state = ReplicaState(6, 1, 60)
    copy = copied(directory, disk, kept)
    copy.publish()
    with pytest.raises(CorruptionError, match="not at"):
        copy.prove(factory)


def test_what_was_damaged_is_kept_once_and_what_was_merely_old_is_not() -> None:
    disk = SimulatedDisk(Random(1))
    factory = MemoryFactory(disk)
    kept, _ = made(disk, factory, SOURCE, 5)
    directory = opened(disk)
    directory.create_replica(GPID, 1, created_at_us=1)
    install(directory, factory, copied(directory, disk, kept), 2)
    assert disk.list(ROOT / "trash") == []
    for incarnation in (3, 4, 5):
        copy = copied(directory, disk, kept)
        install(directory, factory, copy, incarnation, keep_old=True)
        [name] = disk.list(ROOT / "trash")
        assert "learned" in name
    assert directory.manifest(GPID).incarnation == 5


def test_damage_of_the_log_that_is_older_than_a_copy_is_nothing_to_it() -> None:
    disk = SimulatedDisk(Random(1))
    factory = MemoryFactory(disk)
    kept, _ = made(disk, factory, SOURCE, 5)
    directory = opened(disk)
    accepted = frozenset({"3.log"})
    install(directory, factory, copied(directory, disk, kept), 2, accepted=accepted)
    found = directory.files(GPID).accepted()
    assert (found.incarnation, found.files) == (2, accepted)
    state = ReplicaState(5, 1, 50)
    directory.begin_incarnation(GPID, 3, state, accepted=accepted | {"4.log"})
    found = directory.files(GPID).accepted()
    assert (found.incarnation, found.files) == (3, accepted | {"4.log"})


def test_a_replica_that_is_trashed_does_not_come_back_as_a_copy_that_lay_beside_it() -> None:
    disk = SimulatedDisk(Random(1))
    factory = MemoryFactory(disk)
    kept, _ = made(disk, factory, SOURCE, 5)
    directory = opened(disk)
    directory.create_replica(GPID, 1, created_at_us=1)
    copied(directory, disk, kept).publish()
    disk.write_atomic(directory.learned_path(GPID) / "manifest", b"as if it were whole")
    directory.trash_replica(GPID, "purged", at_us=1)
    disk.kill()
    disk = disk.reborn()
    assert opened(disk).list_replicas() == []
    assert disk.list(ROOT / "replicas") == []


def test_checkpoints_that_were_kept_for_learners_go_with_the_process() -> None:
    disk = SimulatedDisk(Random(1))
    factory = MemoryFactory(disk)
    directory = opened(disk)
    directory.create_replica(GPID, 1, created_at_us=1)
    engine = factory.open(directory.engine_path(GPID))
    write_row(engine, 1, b"key", b"row")
    learners = directory.files(GPID).learners_path
    KeptCheckpoint(disk, learners / "learn-1").make(engine)
    assert disk.list(learners) == ["learn-1"]
    disk.kill()
    disk = disk.reborn()
    directory = opened(disk)
    assert not disk.exists(learners)
    assert MemoryFactory(disk).open(directory.engine_path(GPID)).state().decree == 1


# A crash, and an error, at every single I/O.


def learn(disk: SimulatedDisk, done: list[str], *, old: bool) -> None:
    """A server that had a replica, or had none, and learns another."""
    factory = MemoryFactory(disk)
    directory = opened(disk)
    if old and GPID not in {one.gpid for one in directory.list_replicas()}:
        directory.create_replica(GPID, 1, created_at_us=1)
        engine = factory.open(directory.engine_path(GPID))
        write_row(engine, 9, b"old", b"row")
        directory.publish_checkpoint(GPID, engine)
        engine.close()
    done.append("old")
    kept, _ = made(disk, factory, SOURCE / str(disk.ios), 3)
    done.append("copying")
    copy = copied(directory, disk, kept)
    install(directory, factory, copy, 2, keep_old=disk.ios % 2 == 0)
    done.append("learned")
    directory.begin_incarnation(GPID, 3, copy.state, accepted=frozenset())
    done.append("again")
    directory.close()


def check(disk: SimulatedDisk, done: list[str], *, old: bool) -> None:
    directory = opened(disk)
    assert directory.damaged == {}
    manifests = {each.gpid: each for each in directory.list_replicas()}
    assert not any(name.endswith((".learn", ".tmp")) for name in disk.list(ROOT / "replicas"))
    if GPID not in manifests:
        assert "learned" not in done
        assert not old or "old" not in done
        directory.close()
        return
    manifest = manifests[GPID]
    engine = MemoryFactory(disk).open(directory.engine_path(GPID))
    if manifest.incarnation == 1:
        assert "learned" not in done
        assert engine.state().decree == 9 or "old" not in done
    else:
        assert manifest.incarnation == 3 or "again" not in done
        assert manifest.base_decree == engine.state().decree == 3
        assert [key for key, _ in rows_of(engine)] == [b"001", b"002", b"003"]
        assert directory.checkpoint_decree(GPID) == 3
    engine.close()
    directory.close()


@pytest.mark.parametrize(
    ("fault", "old"),
    [(Fault.KILL_BEFORE, True), (Fault.KILL_AFTER, False), (Fault.KILL_TORN, True)],
)
@pytest.mark.parametrize("power_cut", [False, True])
def test_after_a_crash_at_any_io_there_is_the_old_replica_or_the_new_one(
    fault: Fault, power_cut: bool, old: bool
) -> None:
    crashes = 0
    seen: set[str] = set()
    for step in range(1_000):
        disk = SimulatedDisk(Random(step))
        disk.plan(step, fault)
        done: list[str] = []
        try:
            learn(disk, done, old=old)
        except NodeDead:
            crashes += 1
        else:
            break
        seen |= set(done[-1:])
        if power_cut:
            disk.power_cut()
        disk = disk.reborn()
        # The start after it is cut short too.
        disk.plan(step % 5, Fault.KILL_AFTER)
        try:
            opened(disk).close()
        except NodeDead:
            crashes += 1
        if not disk.dead:
            disk.kill()
        if power_cut:
            disk.power_cut()
        disk = disk.reborn()
        check(disk, done, old=old)
        # And it can be learned again.
        learn(disk, [], old=old)
    assert crashes > 60
    assert seen == {"old", "copying", "learned"} or seen == {"old", "copying", "learned", "again"}


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.TEAR, Fault.FULL])
def test_an_error_at_any_io_leaves_the_old_replica_or_the_new_one_for_the_next_try(
    fault: Fault,
) -> None:
    failed = 0
    for step in range(1_000):
        disk = SimulatedDisk(Random(step))
        factory = MemoryFactory(disk)
        directory = opened(disk)
        directory.create_replica(GPID, 1, created_at_us=1)
        engine = factory.open(directory.engine_path(GPID))
        write_row(engine, 9, b"old", b"row")
        engine.close()
        kept, _ = made(disk, factory, SOURCE, 3)
        disk.plan(step, fault)
        try:
            install(directory, factory, copied(directory, disk, kept), 2)
        except OSError:
            failed += 1
        if disk.planned:
            break
        manifest = directory.manifest(GPID)
        state = factory.open(directory.engine_path(GPID)).state()
        assert (manifest.incarnation, state.decree) in ((1, 9), (2, 3))
        if step % 2:
            install(directory, factory, copied(directory, disk, kept), 4)
            assert directory.manifest(GPID).base_decree == 3
        else:
            disk.power_cut()
            disk = disk.reborn()
            again = opened(disk)
            state = MemoryFactory(disk).open(again.engine_path(GPID)).state()
            assert (again.manifest(GPID).incarnation, state.decree) in ((1, 9), (2, 3))
    assert failed > 20
