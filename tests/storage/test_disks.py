"""What every disk does while nothing goes wrong; run on the real one and on the simulated one."""

import errno
import os
import stat
from pathlib import Path
from random import Random

import pytest

from pegaskv.storage.disk import Disk
from pegaskv.storage.local_disk import LocalDisk
from tests.simulation.disk import SimulatedDisk


@pytest.fixture(params=["local", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, Path]:
    disk: Disk = LocalDisk() if request.param == "local" else SimulatedDisk(Random(1))
    root = tmp_path / "data"
    disk.make_dirs(root)
    return disk, root


def test_bytes_are_read_where_they_were_written(place: tuple[Disk, Path]) -> None:
    disk, root = place
    file = disk.create(root / "a")
    file.write_at(0, b"hello")
    file.write_at(8, b"there")
    file.write_at(1, b"E")
    assert file.size() == 13
    assert file.read_at(0, 100) == b"hEllo\0\0\0there"
    assert file.read_at(8, 3) == b"the"
    assert file.read_at(13, 5) == b""
    file.fdatasync()
    file.close()
    file.close()
    assert disk.read_bytes(root / "a") == b"hEllo\0\0\0there"


def test_preallocate_extends_with_zeros_and_keeps_what_is_there(place: tuple[Disk, Path]) -> None:
    disk, root = place
    file = disk.create(root / "a")
    file.write_at(0, b"abc")
    file.preallocate(3_000_000)
    assert file.size() == 3_000_000
    assert file.read_at(0, 5) == b"abc\0\0"
    assert file.read_at(2_999_990, 100) == bytes(10)
    file.preallocate(10)
    assert file.size() == 3_000_000
    file.truncate(2)
    assert disk.read_bytes(root / "a") == b"ab"
    file.close()


def test_a_file_is_created_once_and_opened_only_if_it_is_there(place: tuple[Disk, Path]) -> None:
    disk, root = place
    disk.create(root / "a").close()
    with pytest.raises(FileExistsError):
        disk.create(root / "a")
    with pytest.raises(FileNotFoundError):
        disk.open(root / "b")
    with pytest.raises(FileNotFoundError):
        disk.create(root / "nowhere" / "b")
    with pytest.raises(FileNotFoundError):
        disk.read_bytes(root / "b")
    with pytest.raises(IsADirectoryError):
        disk.open(root)


def test_a_file_opened_for_reading_cannot_be_written(place: tuple[Disk, Path]) -> None:
    disk, root = place
    disk.create(root / "a").close()
    file = disk.open(root / "a")
    with pytest.raises(OSError, match="descriptor") as failure:
        file.write_at(0, b"x")
    assert failure.value.errno == errno.EBADF
    file.close()
    file = disk.open(root / "a", writable=True)
    file.write_at(0, b"x")
    assert file.read_at(0, 1) == b"x"
    file.close()


def test_names_are_listed_sorted_renamed_linked_and_removed(place: tuple[Disk, Path]) -> None:
    disk, root = place
    for name in ("b", "a", "c"):
        disk.write_atomic(root / name, name.encode())
    assert disk.list(root) == ["a", "b", "c"]
    disk.rename(root / "a", root / "b")
    assert disk.list(root) == ["b", "c"]
    assert disk.read_bytes(root / "b") == b"a"
    disk.link(root / "b", root / "d")
    with pytest.raises(FileExistsError):
        disk.link(root / "b", root / "c")
    disk.unlink(root / "b")
    assert disk.read_bytes(root / "d") == b"a"
    disk.unlink(root / "b", missing_ok=True)
    with pytest.raises(FileNotFoundError):
        disk.unlink(root / "b")
    with pytest.raises(FileNotFoundError):
        disk.rename(root / "b", root / "x")
    disk.fsync_dir(root)
    assert disk.list(root) == ["c", "d"]


def test_directories_are_made_with_their_parents_and_removed_whole(
    place: tuple[Disk, Path],
) -> None:
    disk, root = place
    disk.make_dirs(root / "x" / "y")
    disk.make_dirs(root / "x" / "y")
    disk.write_atomic(root / "x" / "y" / "f", b"1")
    assert disk.is_dir(root / "x" / "y")
    assert not disk.is_dir(root / "x" / "y" / "f")
    assert disk.exists(root / "x" / "y" / "f")
    disk.rename(root / "x", root / "z")
    assert disk.read_bytes(root / "z" / "y" / "f") == b"1"
    disk.remove_tree(root / "z")
    disk.remove_tree(root / "z")
    assert not disk.exists(root / "z")
    disk.write_atomic(root / "f", b"")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        disk.make_dirs(root / "f" / "g")


def test_one_directory_is_made_where_its_parent_is_and_nothing_else(
    place: tuple[Disk, Path],
) -> None:
    disk, root = place
    disk.make_dir(root / "x.tmp")
    disk.rename(root / "x.tmp", root / "x")
    assert disk.is_dir(root / "x")
    with pytest.raises(FileExistsError):
        disk.make_dir(root / "x")
    with pytest.raises(FileNotFoundError):
        disk.make_dir(root / "y" / "z")
    assert disk.list(root) == ["x"]


def test_an_atomic_write_replaces_the_whole_file_and_leaves_no_other(
    place: tuple[Disk, Path],
) -> None:
    disk, root = place
    disk.write_atomic(root / "a", b"a long first version")
    disk.write_atomic(root / "a", b"short")
    assert disk.read_bytes(root / "a") == b"short"
    assert disk.list(root) == ["a"]


def test_a_lock_is_held_by_one_until_it_is_released(place: tuple[Disk, Path]) -> None:
    disk, root = place
    lock = disk.lock(root / "LOCK")
    with pytest.raises(BlockingIOError):
        disk.lock(root / "LOCK")
    lock.release()
    lock.release()
    disk.lock(root / "LOCK").release()


def test_free_space_is_part_of_the_total_and_the_boot_is_named(place: tuple[Disk, Path]) -> None:
    disk, root = place
    free, total = disk.free_bytes(root)
    assert 0 < free <= total
    assert disk.boot_id() == disk.boot_id() != ""


def test_files_of_the_real_disk_are_private(tmp_path: Path) -> None:
    disk = LocalDisk()
    disk.make_dirs(tmp_path / "d")
    disk.write_atomic(tmp_path / "d" / "a", b"")
    disk.create(tmp_path / "d" / "b").close()
    disk.lock(tmp_path / "d" / "c").release()
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    for name in "abc":
        assert stat.S_IMODE((tmp_path / "d" / name).stat().st_mode) == 0o600


def test_descriptors_of_the_real_disk_are_not_inherited(tmp_path: Path) -> None:
    disk = LocalDisk()
    file = disk.create(tmp_path / "a")
    assert not os.get_inheritable(file._descriptor)
    file.close()


def test_a_directory_is_synced_once_and_again_when_it_is_another_one(tmp_path: Path) -> None:
    synced: list[Path] = []

    class Watched(LocalDisk):
        def fsync_dir(self, path: Path) -> None:
            synced.append(path)
            super().fsync_dir(path)

    disk = Watched()
    disk.make_dirs(tmp_path / "a")
    assert synced.pop() == tmp_path
    synced.clear()
    disk.make_dirs(tmp_path / "a")
    assert synced == []
    for make in (disk.make_dir, disk.make_dirs):
        disk.remove_tree(tmp_path / "a")
        make(tmp_path / "a")
        disk.make_dirs(tmp_path / "a")
        assert synced == [tmp_path]
        synced.clear()


def test_directories_that_are_made_and_renamed_for_ever_are_not_remembered(tmp_path: Path) -> None:
    disk = LocalDisk()
    disk.make_dirs(tmp_path / "checkpoint")
    known = len(disk._durable)
    for number in range(20):
        disk.make_dirs(tmp_path / "checkpoint" / f"{number}.tmp")
        disk.rename(
            tmp_path / "checkpoint" / f"{number}.tmp", tmp_path / "checkpoint" / str(number)
        )
    assert len(disk.list(tmp_path / "checkpoint")) == 20
    assert len(disk._durable) == known
