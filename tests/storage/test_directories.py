"""The data directory: what it refuses, what it remembers, and every crash on the way."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from pegaskv.base.errors import CorruptionError, DirectoryUnusable, UnsupportedFormat
from pegaskv.base.types import Gpid
from pegaskv.storage.checkpoints import seal
from pegaskv.storage.directories import DataDirectory, ReplicaManifest
from pegaskv.storage.leveldb import LevelDBFactory
from pegaskv.storage.local_disk import LocalDisk
from pegaskv.storage.memory import MemoryFactory
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.errors import NodeDead
from tests.storage.engine_contract import rows_of, write_row

ROOT = Path("/data/pegaskv")
FIRST, SECOND = Gpid(5, 3), Gpid(5, 12)


def new_disk(seed: int = 1) -> SimulatedDisk:
    return SimulatedDisk(Random(seed))


def opened(disk: SimulatedDisk, seed: int = 1) -> DataDirectory:
    return DataDirectory.open(disk, ROOT, random=Random(seed), process_id=4_711)


def after_kill(disk: SimulatedDisk) -> tuple[SimulatedDisk, DataDirectory]:
    disk.kill()
    disk = disk.reborn()
    return disk, opened(disk, 99)


def after_power_cut(disk: SimulatedDisk) -> tuple[SimulatedDisk, DataDirectory]:
    disk.power_cut()
    disk = disk.reborn()
    return disk, opened(disk, 99)


# Whose it is.


def test_a_new_directory_is_made_and_kept_to_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    directory = DataDirectory.open(LocalDisk(), path, random=Random(1), process_id=os.getpid())
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "lock").read_text() == f"{os.getpid()}\n"
    assert (path / "FORMAT").read_text() == "pegaskv data directory\nformat 1\n"
    assert directory.list_replicas() == []
    directory.close()
    directory.close()
    for found in path.iterdir():
        assert found.stat().st_mode & 0o077 == 0


def test_a_directory_in_use_is_refused_with_its_holder(tmp_path: Path) -> None:
    held = DataDirectory.open(LocalDisk(), tmp_path, random=Random(1), process_id=4_711)
    program = (
        "import sys; from pathlib import Path; from random import Random\n"
        "from pegaskv.storage.directories import DataDirectory\n"
        "from pegaskv.storage.local_disk import LocalDisk\n"
        "try: DataDirectory.open(LocalDisk(), Path(sys.argv[1]), random=Random(2), process_id=1)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", program, tmp_path]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert other.stdout.startswith(
        f"DirectoryUnusable {tmp_path} is in use by another process 4711"
    )
    held.close()
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert other.stdout == ""
    again = DataDirectory.open(LocalDisk(), tmp_path, random=Random(3))
    assert again.node_id == held.node_id
    assert (tmp_path / "lock").read_text() == ""
    again.close()


def test_the_lock_of_a_dead_process_is_free() -> None:
    disk = new_disk()
    node = opened(disk).node_id
    disk, directory = after_kill(disk)
    assert directory.node_id == node
    with pytest.raises(DirectoryUnusable, match="in use by another process 4711"):
        opened(disk)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("notes.txt", b"mine"),
        ("node", b"something else"),
        ("FORMAT", b"of something else\n"),
        ("FORMAT", b""),
        ("FORMAT", b"\xff\xfe\x00"),
    ],
)
def test_a_directory_of_somebody_else_is_refused_and_not_touched(name: str, data: bytes) -> None:
    disk = new_disk()
    disk.make_dirs(ROOT)
    disk.write_atomic(ROOT / name, data)
    before = disk.ios
    with pytest.raises(DirectoryUnusable, match=str(ROOT)) as refused:
        opened(disk)
    assert "--data" in refused.value.hint
    assert disk.ios == before, "it was touched"
    assert disk.list(ROOT) == [name]


def test_an_empty_mount_point_is_taken() -> None:
    disk = new_disk()
    disk.make_dirs(ROOT / "lost+found")
    assert opened(disk).list_replicas() == []


@pytest.mark.parametrize("text", ["format 2", "format 10", "format one", ""])
def test_another_format_is_refused_with_what_to_do(text: str) -> None:
    disk = new_disk()
    opened(disk).close()
    disk.write_atomic(ROOT / "FORMAT", f"pegaskv data directory\n{text}\n".encode())
    before = disk.ios
    with pytest.raises(DirectoryUnusable, match="reads format 1") as refused:
        opened(disk)
    assert repr(text or "") in str(refused.value) or "no format" in str(refused.value)
    assert "newer" in refused.value.hint
    assert disk.ios == before


def test_a_file_in_the_place_of_the_directory_is_refused() -> None:
    disk = new_disk()
    disk.make_dirs(ROOT.parent)
    disk.write_atomic(ROOT, b"a file")
    with pytest.raises(DirectoryUnusable, match="not a directory"):
        opened(disk)


def test_every_io_error_at_open_names_the_directory_and_leaves_it_free() -> None:
    failed = tolerated = 0
    for step in range(200):
        disk = new_disk()
        disk.plan(step, Fault.FULL if step % 2 else Fault.FAIL)
        try:
            opened(disk)
        except DirectoryUnusable as error:
            refused = error
        else:
            if disk.planned:
                break
            # The process id is for people only; without room there is none.
            tolerated += 1
            continue
        failed += 1
        assert str(ROOT) in str(refused)
        assert refused.hint
        # Nothing stays locked, and the next try finishes what this one began.
        assert opened(disk).list_replicas() == []
    assert failed > 10
    assert tolerated <= 1


# Who we are, and how we stopped.


@pytest.mark.parametrize("crash", [after_kill, after_power_cut])
def test_a_full_disk_is_no_reason_not_to_open_and_no_crash_on_it_is_taken_for_a_clean_stop(
    crash: Callable[[SimulatedDisk], tuple[SimulatedDisk, DataDirectory]],
) -> None:
    disk = new_disk()
    directory = opened(disk)
    directory.create_replica(FIRST, 1, created_at_us=1)
    if crash is after_kill:
        directory.mark_os_acknowledged(FIRST, True)
    directory.mark_clean_stop()
    directory.close()
    disk.set_capacity(1)
    directory = opened(disk)
    assert directory.was_clean_stop
    # A crash now, and the disk still full.
    disk, directory = crash(disk)
    assert not directory.was_clean_stop
    directory.mark_clean_stop()
    directory.close()
    assert opened(disk).was_clean_stop


def test_a_node_has_one_id_for_ever() -> None:
    disk = new_disk()
    node = opened(disk, 1).node_id
    assert UUID(node).version == 4
    assert opened(new_disk(), 2).node_id != node
    for _ in range(3):
        disk, directory = after_power_cut(disk)
        assert directory.node_id == node


@pytest.mark.parametrize("data", [None, b"", b"nonsense\n", b"\xff" * 36])
def test_replicas_without_their_node_id_are_refused(data: bytes | None) -> None:
    disk = new_disk()
    directory = opened(disk)
    directory.create_replica(FIRST, 1, created_at_us=1)
    directory.close()
    if data is None:
        disk.unlink(ROOT / "node")
    else:
        disk.write_atomic(ROOT / "node", data)
    with pytest.raises(DirectoryUnusable, match=r"node is (missing|damaged)"):
        opened(disk)


def test_how_the_last_process_stopped_is_known() -> None:
    disk = new_disk()
    directory = opened(disk)
    assert (directory.was_clean_stop, directory.same_boot) == (True, True)
    disk, directory = after_kill(disk)
    assert (directory.was_clean_stop, directory.same_boot) == (False, True)
    disk, directory = after_power_cut(disk)
    assert (directory.was_clean_stop, directory.same_boot) == (False, False)
    directory.mark_clean_stop()
    directory.close()
    disk, directory = after_power_cut(disk)
    assert (directory.was_clean_stop, directory.same_boot) == (True, False)
    disk, directory = after_kill(disk)
    assert (directory.was_clean_stop, directory.same_boot) == (False, True), "the mark stayed"


@pytest.mark.parametrize("data", [None, b"", b"rubbish", seal([1]), seal([2, "boot", True])])
def test_an_unreadable_boot_file_counts_as_a_power_cut(data: bytes | None) -> None:
    disk = new_disk()
    directory = opened(disk)
    directory.create_replica(FIRST, 1, created_at_us=1)
    directory.mark_os_acknowledged(FIRST, True)
    directory.mark_clean_stop()
    directory.close()
    if data is None:
        disk.unlink(ROOT / "boot")
    else:
        disk.write_atomic(ROOT / "boot", data)
    directory = opened(disk)
    assert (directory.was_clean_stop, directory.same_boot) == (False, False)
    assert directory.manifest(FIRST).amnesiac


def test_amnesia_is_remembered_until_it_was_settled() -> None:
    disk = new_disk()
    directory = opened(disk)
    for gpid in (FIRST, SECOND):
        directory.create_replica(gpid, 1, created_at_us=1)
    directory.mark_os_acknowledged(FIRST, True)
    disk, directory = after_kill(disk)
    assert not directory.manifest(FIRST).amnesiac
    disk, directory = after_power_cut(disk)
    assert directory.manifest(FIRST).amnesiac
    assert not directory.manifest(SECOND).amnesiac
    # The process that found it dies before it did anything about it.
    disk, directory = after_kill(disk)
    assert directory.manifest(FIRST).amnesiac
    directory.mark_clean_stop()
    directory.close()
    directory = opened(disk)
    assert directory.manifest(FIRST).amnesiac
    directory.clear_amnesia(FIRST)
    directory.mark_os_acknowledged(FIRST, False)
    disk, directory = after_power_cut(disk)
    assert directory.list_replicas()[0] == ReplicaManifest(FIRST, 1, created_at_us=1)


# Replicas.


def test_a_replica_is_listed_until_it_is_trashed_whatever_happens() -> None:
    disk = new_disk()
    directory = opened(disk)
    created = directory.create_replica(FIRST, 7, created_at_us=123, base_decree=40, base_ballot=2)
    assert created == ReplicaManifest(FIRST, 7, 40, 2, False, False, 123)
    directory.create_replica(SECOND, 8, created_at_us=124)
    assert directory.engine_path(FIRST) == ROOT / "replicas" / "5.3" / "engine"
    disk, directory = after_power_cut(disk)
    assert [manifest.gpid for manifest in directory.list_replicas()] == [FIRST, SECOND]
    assert directory.manifest(FIRST) == created
    with pytest.raises(FileExistsError):
        directory.create_replica(FIRST, 9, created_at_us=125)
    where = directory.trash_replica(FIRST, "Moved away: on order!", at_us=1_000)
    assert where == ROOT / "trash" / "5.3.1000.moved-away-on-order"
    assert disk.exists(where / "engine")
    disk, directory = after_power_cut(disk)
    assert directory.list_replicas() == [ReplicaManifest(SECOND, 8, created_at_us=124)]
    directory.create_replica(FIRST, 9, created_at_us=126)
    again = directory.trash_replica(FIRST, "moved away: on order", at_us=1_000)
    assert again.name == "5.3.1001.moved-away-on-order"


def test_the_trash_is_emptied_by_age() -> None:
    disk = new_disk()
    directory = opened(disk)
    for number, at_us in enumerate((1_000, 2_000, 3_000)):
        directory.create_replica(FIRST, number + 1, created_at_us=1)
        directory.trash_replica(FIRST, "", at_us=at_us)
    disk.make_dirs(ROOT / "trash" / "of somebody")
    assert directory.empty_trash(before_us=1_000) == 0
    assert directory.empty_trash(before_us=2_001) == 2
    assert disk.list(ROOT / "trash") == ["5.3.3000.removed", "of somebody"]


def test_a_damaged_replica_is_named_and_left_alone() -> None:
    disk = new_disk()
    directory = opened(disk)
    gpids = [Gpid(1, index) for index in range(6)]
    for gpid in gpids:
        directory.create_replica(gpid, 1, created_at_us=1)
    directory.close()
    good = disk.read_bytes(ROOT / "replicas" / "1.0" / "manifest")
    disk.flip(ROOT / "replicas" / "1.1" / "manifest", 4)
    disk.unlink(ROOT / "replicas" / "1.2" / "manifest")
    disk.write_atomic(ROOT / "replicas" / "1.3" / "manifest", seal([2, "of the future"]))
    disk.write_atomic(ROOT / "replicas" / "1.4" / "manifest", good)
    disk.remove_tree(ROOT / "replicas" / "1.5" / "engine")
    disk.make_dirs(ROOT / "replicas" / "of somebody")
    directory = opened(disk)
    assert [manifest.gpid for manifest in directory.list_replicas()] == [gpids[0]]
    assert sorted(directory.damaged) == gpids[1:]
    assert isinstance(directory.damaged[gpids[3]], UnsupportedFormat)
    assert "format 2" in str(directory.damaged[gpids[3]])
    assert "of partition 1.0" in str(directory.damaged[gpids[4]])
    assert "engine is missing" in str(directory.damaged[gpids[5]])
    for gpid in gpids[1:]:
        assert str(ROOT / "replicas" / str(gpid)) in str(directory.damaged[gpid])
        with pytest.raises(FileExistsError):
            directory.create_replica(gpid, 2, created_at_us=2)
        directory.trash_replica(gpid, "damaged", at_us=5)
    assert directory.damaged == {}
    directory.create_replica(gpids[1], 2, created_at_us=2)


def test_a_manifest_is_what_was_written_or_damage() -> None:
    manifest = ReplicaManifest(FIRST, 7, 8, 9, True, False, 1 << 60)
    data = manifest.encode()
    assert ReplicaManifest.decode(data, "manifest") == manifest
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= 1
        with pytest.raises(CorruptionError, match="manifest is damaged"):
            ReplicaManifest.decode(bytes(changed), "manifest")
    for value in (None, [], [1], [1, [1], 7, 8, 9, True, False, 1], [1, *"1234567"]):
        with pytest.raises(CorruptionError):
            ReplicaManifest.decode(seal(value), "manifest")


# Checkpoints.


def test_a_replica_has_one_checkpoint_the_last() -> None:
    disk = new_disk()
    directory = opened(disk)
    factory = MemoryFactory(disk)
    directory.create_replica(FIRST, 1, created_at_us=1)
    engine = factory.open(directory.engine_path(FIRST))
    for decree in range(1, 4):
        write_row(engine, decree, b"key", b"%d" % decree)
        assert directory.publish_checkpoint(FIRST, engine).decree == decree
        assert disk.list(directory.replica_path(FIRST) / "checkpoint") == [str(decree)]
    write_row(engine, 4, b"key", b"4")
    engine.close()
    restored = directory.restore_checkpoint(FIRST, factory)
    assert restored.state().decree == 3
    assert rows_of(restored) == [(b"key", b"3")]
    assert disk.exists(directory.replica_path(FIRST) / "engine.damaged")
    # And once more, from the same checkpoint.
    restored.close()
    assert rows_of(directory.restore_checkpoint(FIRST, factory)) == [(b"key", b"3")]


def test_a_failed_checkpoint_leaves_the_last_one() -> None:
    disk = new_disk()
    directory = opened(disk)
    factory = MemoryFactory(disk)
    directory.create_replica(FIRST, 1, created_at_us=1)
    engine = factory.open(directory.engine_path(FIRST))
    write_row(engine, 1, b"key", b"1")
    directory.publish_checkpoint(FIRST, engine)
    write_row(engine, 2, b"key", b"2")
    disk.plan(12, Fault.FULL)
    with pytest.raises(OSError, match="no space"):
        directory.publish_checkpoint(FIRST, engine)
    engine.close()
    disk, directory = after_power_cut(disk)
    factory = MemoryFactory(disk)
    assert rows_of(directory.restore_checkpoint(FIRST, factory)) == [(b"key", b"1")]


def test_without_a_sound_checkpoint_nothing_is_replaced() -> None:
    disk = new_disk()
    directory = opened(disk)
    factory = MemoryFactory(disk)
    directory.create_replica(FIRST, 1, created_at_us=1)
    with pytest.raises(CorruptionError, match="no checkpoint"):
        directory.restore_checkpoint(FIRST, factory)
    engine = factory.open(directory.engine_path(FIRST))
    write_row(engine, 1, b"key", b"1")
    path = directory.publish_checkpoint(FIRST, engine).path
    engine.close()
    disk.flip(path / "rows", 30)
    with pytest.raises(CorruptionError):
        directory.restore_checkpoint(FIRST, factory)
    assert rows_of(factory.open(directory.engine_path(FIRST))) == [(b"key", b"1")]


def test_damaged_tables_of_leveldb_are_replaced_by_the_checkpoint(tmp_path: Path) -> None:
    disk = LocalDisk()
    directory = DataDirectory.open(disk, tmp_path / "data", random=Random(1))
    factory = LevelDBFactory(disk)
    directory.create_replica(FIRST, 1, created_at_us=1)
    engine = factory.open(directory.engine_path(FIRST))
    for decree in range(1, 6):
        write_row(engine, decree, b"%d" % decree, b"row")
        if decree < 5:
            directory.publish_checkpoint(FIRST, engine)
    engine.close()
    # What was written after the last checkpoint is in a table that nobody else holds.
    (directory.engine_path(FIRST) / "CURRENT").unlink()
    with pytest.raises(CorruptionError):
        factory.open(directory.engine_path(FIRST))
    restored = directory.restore_checkpoint(FIRST, factory)
    assert restored.state().decree == 4
    write_row(restored, 5, b"5", b"row")
    assert [key for key, _ in rows_of(restored)] == [b"1", b"2", b"3", b"4", b"5"]
    directory.publish_checkpoint(FIRST, restored)
    restored.close()
    directory.close()


# A crash at every single I/O.


def story(disk: SimulatedDisk, done: list[str]) -> None:
    """Everything that a data directory does, noting each step when it is over."""
    directory = opened(disk)
    done.append(f"node {directory.node_id}")
    factory = MemoryFactory(disk)
    directory.create_replica(FIRST, 1, created_at_us=1)
    done.append("created")
    engine = factory.open(directory.engine_path(FIRST))
    write_row(engine, 1, b"key", b"1")
    directory.publish_checkpoint(FIRST, engine)
    done.append("checkpoint 1")
    directory.mark_os_acknowledged(FIRST, True)
    done.append("marked")
    write_row(engine, 2, b"key", b"2")
    directory.publish_checkpoint(FIRST, engine)
    done.append("checkpoint 2")
    engine.close()
    restored = directory.restore_checkpoint(FIRST, factory)
    done.append("restored")
    restored.close()
    directory.create_replica(SECOND, 2, created_at_us=2)
    done.append("second created")
    directory.trash_replica(SECOND, "removed", at_us=3)
    done.append("second trashed")
    directory.empty_trash(before_us=10)
    # From here on the mark may be on disk.
    done.append("stopping")
    directory.mark_clean_stop()
    directory.close()


def check_after_crash(disk: SimulatedDisk, done: list[str], *, power_cut: bool) -> None:
    directory = opened(disk, 77)
    for note in done:
        if note.startswith("node "):
            assert directory.node_id == note[5:]
    manifests = {manifest.gpid: manifest for manifest in directory.list_replicas()}
    assert directory.damaged == {}
    if "created" in done:
        first = manifests[FIRST]
        assert first.incarnation == 1
        if "marked" in done:
            assert first.os_acknowledged
            assert first.amnesiac == power_cut or "stopping" in done
        checkpoints = [note for note in done if note.startswith("checkpoint")]
        if checkpoints:
            factory = MemoryFactory(disk)
            least = int(checkpoints[-1][-1])
            # The engine is never an empty one made anew, and neither is the checkpoint.
            engine = factory.open(directory.engine_path(FIRST))
            assert engine.state().decree >= least
            engine.close()
            restored = directory.restore_checkpoint(FIRST, factory)
            assert restored.state().decree >= least
            assert rows_of(restored) == [(b"key", b"%d" % restored.state().decree)]
            restored.close()
    if "second trashed" in done:
        assert SECOND not in manifests
    elif "second created" in done:
        assert SECOND in manifests or disk.list(ROOT / "trash")
    for name in disk.list(ROOT / "replicas"):
        assert not name.endswith(".tmp")
    # And it can be used: the same story again, with what is there out of the way.
    for gpid in manifests:
        directory.trash_replica(gpid, "", at_us=50)
    directory.close()
    story(disk, [])


@pytest.mark.parametrize("fault", [Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.KILL_TORN])
@pytest.mark.parametrize("power_cut", [False, True])
def test_after_a_crash_at_any_io_all_that_was_done_is_there(fault: Fault, power_cut: bool) -> None:
    crashes = 0
    notes = set()
    for step in range(1_000):
        disk = new_disk(step)
        disk.plan(step, fault)
        done: list[str] = []
        try:
            story(disk, done)
        except NodeDead:
            crashes += 1
        else:
            break
        notes.add(len(done))
        if power_cut:
            disk.power_cut()
        disk = disk.reborn()
        # A second crash right after the first: recovery is cut short too.
        disk.plan(step % 7, Fault.KILL_AFTER)
        try:
            opened(disk, 78).close()
        except NodeDead:
            crashes += 1
        if not disk.dead:
            disk.kill()
        disk = disk.reborn()
        check_after_crash(disk, done, power_cut=power_cut)
    assert crashes > 150
    assert len(notes) > 8


def test_an_unmarked_manifest_is_written_only_when_it_changes() -> None:
    disk = new_disk()
    directory = opened(disk)
    directory.create_replica(FIRST, 1, created_at_us=1)
    before = disk.ios
    directory.mark_os_acknowledged(FIRST, False)
    directory.clear_amnesia(FIRST)
    assert disk.ios == before
    directory.mark_os_acknowledged(FIRST, True)
    assert disk.ios > before
    assert directory.manifest(FIRST) == replace(
        ReplicaManifest(FIRST, 1, created_at_us=1), os_acknowledged=True
    )


def test_an_exchange_of_engines_that_fails_at_any_io_is_finished_by_another_call() -> None:
    failed = 0
    for step in range(50):
        disk = new_disk()
        directory = opened(disk)
        directory.create_replica(FIRST, 1, created_at_us=1)
        factory = MemoryFactory(disk)
        engine = factory.open(directory.engine_path(FIRST))
        write_row(engine, 1, b"key", b"old")
        engine.close()
        files = directory.files(FIRST)
        other = files.open_empty(factory)
        write_row(other, 2, b"key", b"new")
        other.close()
        disk.plan(step, Fault.FAIL)
        try:
            files.adopt()
        except OSError:
            failed += 1
            if step % 2:
                files.adopt()
            else:
                # A crash there, and a start.
                disk, directory = after_power_cut(disk)
                factory = MemoryFactory(disk)
        found = rows_of(factory.open(directory.engine_path(FIRST)))
        assert found in ([(b"key", b"new")], [(b"key", b"old")])
        assert found == [(b"key", b"new")] or not step % 2
        if disk.planned:
            break
    assert failed > 3
