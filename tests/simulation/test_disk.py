"""The simulated disk forgets what it may forget, keeps what it must, and fails on demand."""

import errno
from pathlib import Path
from random import Random

import pytest

from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.errors import NodeDead

ROOT = Path("/data")
FILE = ROOT / "file"


def disk_with_file(seed: int, synced: bytes) -> SimulatedDisk:
    disk = SimulatedDisk(Random(seed))
    disk.make_dirs(ROOT)
    file = disk.create(FILE)
    file.write_at(0, synced)
    file.fdatasync()
    disk.fsync_dir(ROOT)
    return disk


def test_a_killed_process_loses_nothing_and_can_do_nothing() -> None:
    disk = SimulatedDisk(Random(1))
    disk.make_dirs(ROOT)
    file = disk.create(FILE)
    file.write_at(0, b"unsynced")
    disk.lock(ROOT / "LOCK")
    boot = disk.boot_id()
    disk.kill()
    for call in (
        lambda: file.write_at(0, b"x"),
        lambda: file.read_at(0, 1),
        file.fdatasync,
        file.close,
        lambda: disk.unlink(FILE),
        lambda: disk.read_bytes(FILE),
        lambda: disk.make_dirs(ROOT),
        lambda: disk.free_bytes(ROOT),
    ):
        with pytest.raises(NodeDead):
            call()
    disk = disk.reborn()
    assert disk.read_bytes(FILE) == b"unsynced"
    assert disk.boot_id() == boot
    disk.lock(ROOT / "LOCK")


def test_a_power_cut_keeps_every_synced_byte_and_some_of_the_others() -> None:
    outcomes = set()
    for seed in range(300):
        disk = disk_with_file(seed, b"s" * 6_000)
        file = disk.open(FILE, writable=True)
        boot = disk.boot_id()
        file.write_at(6_000, b"a" * 3_000)
        file.write_at(9_000, b"b" * 3_000)
        disk.power_cut()
        disk = disk.reborn()
        data = disk.read_bytes(FILE)
        assert data[:6_000] == b"s" * 6_000
        rest = data[6_000:]
        assert set(rest) <= {0, ord("a"), ord("b")}
        assert set(rest[:3_000]) <= {0, ord("a")}
        assert disk.boot_id() != boot
        outcomes.add(
            "all" if rest == b"a" * 3_000 + b"b" * 3_000
            else "nothing" if rest == b""
            else "zeros" if set(rest) == {0}
            else "out of order" if b"b" in rest and 0 in rest[:3_000]
            else "torn"
        )  # fmt: skip
    assert outcomes == {"all", "nothing", "zeros", "torn", "out of order"}


def test_a_power_cut_may_undo_an_overwrite_and_a_truncation_but_no_synced_one() -> None:
    seen = set()
    for seed in range(100):
        disk = disk_with_file(seed, b"0123456789")
        file = disk.open(FILE, writable=True)
        file.truncate(6)
        file.write_at(2, b"xx")
        disk.power_cut()
        data = disk.reborn().read_bytes(FILE)
        assert data[:2] == b"01"
        seen.add(data)

        disk = disk_with_file(seed, b"0123456789")
        file = disk.open(FILE, writable=True)
        file.truncate(6)
        file.write_at(2, b"xx")
        file.fdatasync()
        disk.power_cut()
        assert disk.reborn().read_bytes(FILE) == b"01xx45"
    assert {b"0123456789", b"01xx45"} <= seen


def test_after_a_failed_sync_the_bytes_can_be_read_and_are_never_durable() -> None:
    for seed in range(50):
        disk = disk_with_file(seed, b"synced")
        file = disk.open(FILE, writable=True)
        file.write_at(6, b"-lost")
        disk.plan(0, Fault.FAIL)
        with pytest.raises(OSError, match="input/output") as failure:
            file.fdatasync()
        assert failure.value.errno == errno.EIO
        assert disk.read_bytes(FILE) == b"synced-lost"
        file.write_at(6, b"-k")
        file.fdatasync()
        assert disk.read_bytes(FILE) == b"synced-kost"
        disk.power_cut()
        assert disk.reborn().read_bytes(FILE) == b"synced-k\0\0\0"


def test_names_are_durable_only_after_the_directory_was_synced() -> None:
    seen = set()
    for seed in range(200):
        disk = SimulatedDisk(Random(seed))
        disk.make_dirs(ROOT)
        for name in ("a", "b"):
            file = disk.create(ROOT / name)
            file.write_at(0, name.encode())
            file.fdatasync()
        disk.fsync_dir(ROOT)
        disk.rename(ROOT / "a", ROOT / "c")
        disk.unlink(ROOT / "b")
        disk.create(ROOT / "d").close()
        disk.power_cut()
        disk = disk.reborn()
        names = disk.list(ROOT)
        assert ("a" in names) != ("c" in names)
        assert disk.read_bytes(ROOT / ("a" if "a" in names else "c")) == b"a"
        if "b" in names:
            assert disk.read_bytes(ROOT / "b") == b"b"
        seen.add(" ".join(names))
    assert {"a b", "c d", "a d", "b c", "a b d", "a", "c", "b c d"} == seen


def test_a_directory_that_was_durable_once_is_made_durable_again() -> None:
    for seed in range(20):
        disk = SimulatedDisk(Random(seed))
        disk.make_dirs(ROOT / "sub")
        disk.remove_tree(ROOT / "sub")
        disk.make_dir(ROOT / "sub")
        disk.make_dirs(ROOT / "sub")
        disk.power_cut()
        assert disk.reborn().is_dir(ROOT / "sub")


def test_synced_names_stay_whatever_happens() -> None:
    for seed in range(50):
        disk = SimulatedDisk(Random(seed))
        disk.make_dirs(ROOT / "sub")
        disk.write_atomic(ROOT / "a", b"1")
        disk.rename(ROOT / "a", ROOT / "sub" / "b")
        disk.link(ROOT / "sub" / "b", ROOT / "sub" / "c")
        disk.fsync_dir(ROOT / "sub")
        disk.power_cut()
        disk = disk.reborn()
        assert disk.list(ROOT) == ["sub"]
        assert disk.list(ROOT / "sub") == ["b", "c"]
        assert disk.read_bytes(ROOT / "sub" / "c") == b"1"


def test_an_atomic_write_is_old_or_new_at_every_crash_and_new_once_it_returned() -> None:
    tried = 0
    for fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.KILL_TORN, Fault.FAIL, Fault.TEAR):
        for at in range(10):
            disk = SimulatedDisk(Random(at))
            disk.make_dirs(ROOT)
            disk.write_atomic(FILE, b"old " * 2_000)
            disk.plan(at, fault)
            try:
                disk.write_atomic(FILE, b"new " * 3_000)
            except (OSError, NodeDead):
                tried += 1
                allowed = {b"old " * 2_000, b"new " * 3_000}
            else:
                allowed = {b"new " * 3_000}
            disk.power_cut()
            assert disk.reborn().read_bytes(FILE) in allowed
    assert tried >= 20


def test_directories_of_a_killed_process_become_durable_when_made_again() -> None:
    for seed in range(30):
        disk = SimulatedDisk(Random(seed))
        disk.plan(seed % 4, Fault.KILL_AFTER)
        with pytest.raises(NodeDead):
            disk.make_dirs(ROOT / "sub")
        disk = disk.reborn()
        disk.make_dirs(ROOT / "sub")
        disk.power_cut()
        assert disk.reborn().is_dir(ROOT / "sub")


def test_a_full_disk_refuses_growth_and_allows_what_was_preallocated() -> None:
    disk = SimulatedDisk(Random(1), capacity_bytes=1_000)
    disk.make_dirs(ROOT)
    file = disk.create(FILE)
    file.preallocate(600)
    assert disk.free_bytes(ROOT) == (400, 1_000)
    other = disk.create(ROOT / "other")
    with pytest.raises(OSError, match="no space") as failure:
        other.write_at(0, bytes(401))
    assert failure.value.errno == errno.ENOSPC
    other.write_at(0, bytes(400))
    file.write_at(0, b"x" * 600)
    with pytest.raises(OSError, match="no space"):
        file.write_at(600, b"x")
    disk.unlink(ROOT / "other")
    file.write_at(600, b"x")
    disk.set_capacity(100)
    assert disk.free_bytes(ROOT) == (0, 100)


def test_faults_come_at_the_planned_io_and_once() -> None:
    disk = disk_with_file(1, b"")
    file = disk.open(FILE, writable=True)
    disk.plan(1, Fault.FAIL)
    disk.plan(2, Fault.FULL)
    disk.plan(3, Fault.TEAR)
    file.write_at(0, b"one")
    with pytest.raises(OSError, match="input/output"):
        file.write_at(3, b"two")
    with pytest.raises(OSError, match="no space"):
        file.write_at(3, b"two")
    assert disk.read_bytes(FILE) == b"one"
    with pytest.raises(OSError, match="input/output"):
        file.write_at(3, b"t" * 100)
    torn = disk.read_bytes(FILE)
    assert 3 <= len(torn) <= 103
    assert disk.planned == 0
    file.write_at(3, b"two")
    disk.plan_read(0)
    with pytest.raises(OSError, match="input/output"):
        file.read_at(0, 3)
    assert file.read_at(0, 6) == b"onetwo"
    disk.plan(0, Fault.KILL_TORN)
    with pytest.raises(NodeDead):
        file.write_at(0, b"x" * 100)
    assert disk.dead


def test_a_flipped_byte_stays_flipped() -> None:
    disk = disk_with_file(1, b"\0\0")
    file = disk.open(FILE, writable=True)
    file.write_at(2, b"\0\0")
    disk.flip(FILE, 1)
    disk.flip(FILE, 3, 0x80)
    assert disk.read_bytes(FILE) == b"\0\1\0\x80"
    file.fdatasync()
    disk.power_cut()
    assert disk.reborn().read_bytes(FILE) == b"\0\1\0\x80"
