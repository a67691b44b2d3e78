"""The engine contract on LevelDB and on memory, line by line and as random histories."""

import shutil
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.engine import Engine, ReplicaState
from pegaskv.storage.leveldb import LevelDBFactory
from pegaskv.storage.local_disk import LocalDisk
from pegaskv.storage.memory import MemoryFactory
from pegaskv.storage.options import StorageOptions
from tests.helpers import wait_until
from tests.simulation.disk import Fault, SimulatedDisk
from tests.storage.engine_contract import EngineContract, EngineMachine, Harness, rows_of, write_row

SMALL = StorageOptions(write_buffer_bytes=64 * 1024, table_file_bytes=1024 * 1024)


def copy_as_it_is(source: Path, target: Path) -> None:
    """Copy a directory that an engine has open: what a process killed now would leave.

    LevelDB may be compacting in its own thread; a copy counts only if nothing changed
    while it was made.
    """

    def look() -> list[tuple[str, int, int]]:
        found = []
        for path in sorted(source.iterdir()):
            try:
                status = path.stat()
            except FileNotFoundError:
                return []
            found.append((path.name, status.st_size, status.st_mtime_ns))
        return found

    def copied() -> bool:
        shutil.rmtree(target, ignore_errors=True)
        before = look()
        try:
            shutil.copytree(source, target)
        except (shutil.Error, FileNotFoundError):
            return False
        return bool(before) and look() == before

    wait_until(copied, what="a quiet moment to copy in")


class LevelDBHarness:
    """LevelDB in a directory of this machine; a crash is a copy of what is on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.disk = LocalDisk()
        self.factory = LevelDBFactory(self.disk, SMALL)
        self.crashes = 0

    def crash(self, engine: Engine, path: Path) -> tuple[Engine, Path]:
        self.crashes += 1
        left = self.root / f"after-crash-{self.crashes}"
        copy_as_it_is(path, left)
        engine.close()
        return self.factory.open(left), left

    def close(self) -> None:
        shutil.rmtree(self.root)


class MemoryHarness:
    """Memory engines on a simulated disk; each crash is a power cut."""

    def __init__(self, seed: int, *, flushes_by_itself: bool) -> None:
        self.root = Path("/data")
        self.random = Random(seed)
        self.flushes_by_itself = flushes_by_itself
        self.disk = SimulatedDisk(self.random)
        self.disk.make_dirs(self.root)
        self._new_process()

    def _new_process(self) -> None:
        self.factory = MemoryFactory(self.disk, self.random if self.flushes_by_itself else None)

    def crash(self, engine: Engine, path: Path) -> tuple[Engine, Path]:
        self.disk.power_cut()
        self.disk = self.disk.reborn()
        self._new_process()
        return self.factory.open(path), path

    def close(self) -> None:
        pass


class TestLevelDB(EngineContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        return LevelDBHarness(tmp_path)


class TestMemory(EngineContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        return MemoryHarness(1, flushes_by_itself=False)

    @pytest.fixture
    def engine(self, harness: Harness, path: Path) -> Engine:
        # Nothing to close: the disk of a crashed engine is dead.
        return harness.factory.open(path)


class LevelDBMachine(EngineMachine):
    def make_harness(self) -> Harness:
        return LevelDBHarness(Path(tempfile.mkdtemp(prefix="pegaskv-engine-")))


class MemoryMachine(EngineMachine):
    @initialize(seed=st.integers(0, 1 << 32), flushes=st.booleans())
    def begin(self, seed: int, flushes: bool) -> None:
        assert isinstance(self.harness, MemoryHarness)
        self.harness.random.seed(seed)
        self.harness.flushes_by_itself = flushes
        self.harness._new_process()
        self.engine = self.harness.factory.open(self.path)

    def make_harness(self) -> Harness:
        return MemoryHarness(0, flushes_by_itself=False)

    @rule()
    def kill(self) -> None:
        assert isinstance(self.harness, MemoryHarness)
        self._drop_snapshots()
        self.harness.disk.kill()
        self.crash()


TestLevelDBHistories = LevelDBMachine.TestCase
TestLevelDBHistories.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestMemoryHistories = MemoryMachine.TestCase
TestMemoryHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_memory_engine_given_chance_flushes_by_itself() -> None:
    seen = set()
    for seed in range(20):
        harness = MemoryHarness(seed, flushes_by_itself=True)
        path = harness.root / "engine"
        engine: Engine = harness.factory.open(path)
        for decree in range(1, 31):
            write_row(engine, decree, b"key", b"%d" % decree)
        engine, _ = harness.crash(engine, path)
        decree = engine.state().decree
        seen.add(decree)
        assert rows_of(engine) == ([(b"key", b"%d" % decree)] if decree else [])
    assert len(seen) > 5, "all crashes fell back to the same few decrees"


def test_a_memory_engine_whose_flush_failed_takes_no_more_writes() -> None:
    harness = MemoryHarness(1, flushes_by_itself=False)
    path = harness.root / "engine"
    engine = harness.factory.open(path)
    write_row(engine, 1, b"a", b"1")
    harness.disk.plan(0, Fault.FULL)
    with pytest.raises(OSError, match="no space"):
        engine.flush()
    for use in (engine.flush, lambda: write_row(engine, 2, b"b", b"2")):
        with pytest.raises(OSError, match="earlier flush"):
            use()
    assert engine.get(b"a") == b"1"
    engine.close()
    assert harness.factory.open(path).state() == ReplicaState()


def test_a_damaged_memory_engine_does_not_open() -> None:
    harness = MemoryHarness(1, flushes_by_itself=False)
    path = harness.root / "engine"
    engine = harness.factory.open(path)
    write_row(engine, 1, b"a", b"1")
    engine.close()
    size = len(harness.disk.read_bytes(path / "rows"))
    for offset in range(size):
        harness.disk.flip(path / "rows", offset)
        with pytest.raises(CorruptionError):
            harness.factory.open(path)
        harness.disk.flip(path / "rows", offset)
    assert harness.factory.open(path).get(b"a") == b"1"
