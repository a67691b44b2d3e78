"""Processes that may end badly, for `test_leveldb.py`; the arguments are a mode and a directory."""

import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.engine import EngineClosed, ReplicaState
from pegaskv.storage.leveldb import LevelDBEngine, LevelDBFactory
from pegaskv.storage.local_disk import LocalDisk
from pegaskv.storage.options import StorageOptions

KEYS = 300
SMALL = StorageOptions(write_buffer_bytes=64 * 1024, table_file_bytes=1024 * 1024)


def rows_at(decree: int) -> list[tuple[bytes, bytes]]:
    """What `write_one` leaves after that decree."""
    last = {number % KEYS: number for number in range(max(1, decree - KEYS + 1), decree + 1)}
    return [(b"%04d" % key, b"%d " % number * 20) for key, number in sorted(last.items())]


def write_one(engine: LevelDBEngine, decree: int) -> None:
    key, row = b"%04d" % (decree % KEYS), b"%d " % decree * 20
    engine.write([key, row], ReplicaState(decree, 1, decree))


def say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def write_for_ever(path: Path) -> None:
    """Write; say after each flush which decree it covered."""
    engine = LevelDBFactory(LocalDisk(), SMALL).open(path)
    decree = engine.state().decree
    while True:
        for _ in range(100):
            decree += 1
            write_one(engine, decree)
        say(engine.flush())


def close_in_the_middle(path: Path) -> None:
    """Close engines while other threads use them in every way; print how many were refused."""
    random = Random(1)
    factory = LevelDBFactory(LocalDisk(), SMALL)
    refused = 0
    for number in range(15):
        engine = factory.open(path / str(number))
        for decree in range(1, 2_000):
            write_one(engine, decree)
        checkpoints = path / f"checkpoints-{number}"
        checkpoints.mkdir()
        ended: list[str] = []
        threads = [
            threading.Thread(target=_until_refused, args=(use, ended))
            for use in _uses(engine, checkpoints)
        ]
        for thread in threads:
            thread.start()
        threading.Event().wait(random.random() * 0.03)
        engine.close()
        for thread in threads:
            thread.join()
        refused += len(ended)
    say(refused)


def _until_refused(use: Callable[[int], object], ended: list[str]) -> None:
    count = 0
    try:
        while True:
            count += 1
            use(count)
    except EngineClosed as error:
        ended.append(str(error))


def _uses(engine: LevelDBEngine, checkpoints: Path) -> list[Callable[[int], object]]:
    def scan(_: int) -> None:
        snapshot = engine.snapshot()
        sum(len(row) for _, row in snapshot.iterate(b"", b"", reverse=True))
        snapshot.close()

    return [
        lambda count: engine.get(b"%04d" % (count % KEYS)),
        lambda count: write_one(engine, 2_000 + count),
        scan,
        lambda _: engine.flush(),
        lambda _: engine.compact(),
        lambda _: engine.size_bytes(),
        lambda count: engine.checkpoint(checkpoints / str(count)),
    ]


def fill_the_disk(path: Path) -> None:
    """Flush where files cannot grow, and go on after; print what each step met."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    factory = LevelDBFactory(LocalDisk(), SMALL)
    engine = factory.open(path)
    noise = Random(1)
    engine.write([b"kept", b"1"], ReplicaState(1, 1, 1))
    assert engine.flush() == 1
    engine.write([b"big", noise.randbytes(20_000)], ReplicaState(2, 1, 2))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, unlimited[1]))
    found = [_outcome(engine.flush)]
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    # LevelDB keeps its first error until it is opened again.
    found.append(_outcome(lambda: engine.write([b"late", b"1"], ReplicaState(3, 1, 3))))
    found.append(_outcome(engine.flush))
    found.append(_outcome(lambda: engine.checkpoint(path.parent / "checkpoint")))
    assert engine.get(b"kept") == b"1"
    engine.close()
    again = factory.open(path)
    found.append(f"decree {again.state().decree}")
    again.write([b"big", b"2"], ReplicaState(2, 1, 2))
    found.append(f"decree {again.flush()}")
    again.close()
    say("\n".join(found))


def _outcome(use: Callable[[], object]) -> str:
    try:
        use()
    except CorruptionError:
        return "damage"
    except OSError as error:
        return f"error {error.errno}"
    return "fine"


MODES = {
    "write": write_for_ever,
    "close": close_in_the_middle,
    "full": fill_the_disk,
}

if __name__ == "__main__":
    MODES[sys.argv[1]](Path(sys.argv[2]))
