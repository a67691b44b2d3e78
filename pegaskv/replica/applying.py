"""The part of a replica that brings committed rows to its engine, and reads them. Hot.

The engine gets committed rows late, many at once and sorted: LevelDB finds the place of a
row in a list that is larger than the processor's caches, and the places of sorted rows are
near each other. Until then they are in `applying`, where reads look first. When a write
would be made to wait, it goes through a thread. A failed engine write ends the engine, not
the replica: committed rows stay in `applying`, reads and scans go on, writes are refused,
and `repairs` sees to the engine.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from pegaskv.base.errors import NotReady, PegasKVError
from pegaskv.replica.admission import Admission
from pegaskv.replica.batch import Batch
from pegaskv.replica.overlay import OverlaidSnapshot
from pegaskv.replica.participation import Participation
from pegaskv.replica.row_cache import RowCache
from pegaskv.replica.ticking import Tick
from pegaskv.runtime.worker import Worker
from pegaskv.storage.engine import Engine, ReplicaState, Snapshot

__all__ = ["Applying"]

# Committed rows are written to the engine when there are so many, or so many bytes of
# them; the front sees to it that none waits long.
_APPLY_ROWS: Final = 2_048
_APPLY_BYTES: Final = 256 * 1024
# More than this goes through the thread also when the engine is calm.
_LOOP_ROWS: Final = 4_096
_LOOP_BYTES: Final = 512 * 1024

_MISSING: Final[Any] = object()


class Applying(Admission):
    """Committed rows on their way into the engine.

    Invariant: `applying` has the youngest row of each key that the engine may lack, and
    `unapplied` is the last batch that added to it; None = the engine has all.
    """

    reopening = False
    # The engine is closed for ever.
    engine_gone = False

    def __init__(
        self,
        *,
        engine: Engine,
        cache: RowCache,
        participation: Participation,
        apply_worker: Worker,
        tick: Tick,
        on_engine_failed: Callable[[Any, BaseException], None],
    ) -> None:
        self.engine = engine
        # Rows of the engine; those that `applying` has too are younger there.
        self.cache = cache
        # What the committed part of the log has made of the partition.
        self.participation = participation
        self.applying: dict[bytes, bytes | None] = {}
        self.unapplied: Batch | None = None
        self.applying_bytes = 0
        # The last batch of those that a thread is writing at the moment.
        self._in_thread: Batch | None = None
        # Who waits for a snapshot that holds everything up to a decree.
        self._snapshots: deque[tuple[int, Callable[[Snapshot | BaseException], None]]] = deque()
        self._apply_worker = apply_worker
        self._lag, self._apply_soon = tick.lag, tick.apply_soon
        self._on_engine_failed = on_engine_failed

    # --- Reading -----------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """Return the committed row under a stored key."""
        if self.applying:
            row = self.applying.get(key, _MISSING)
            if row is not _MISSING:
                return row  # type: ignore[no-any-return]
        row = self.cache.young.get(key)
        return self._read(key) if row is None else row

    def _read(self, key: bytes) -> bytes | None:
        row = self.cache.take_back(key)
        if row is None:
            self.row_cache_misses += 1
            row = self.engine.get(key)
            if row is not None:
                self.cache.add(key, row)
        return row

    def snapshot_then(self, use: Callable[[Snapshot | BaseException], None]) -> None:
        """Call `use` with a snapshot that holds all that is committed now.

        On the loop, at once unless the engine is behind. The caller closes the snapshot.
        """
        self.apply_now()
        if self.reopening:
            use(NotReady(f"partition {self.gpid} is reopening its storage"))
        elif self.unapplied is None or self.engine_failed is not None:
            use(self._view())
        else:
            self._snapshots.append((self.unapplied.decree, use))

    def _view(self) -> Snapshot | BaseException:
        try:
            snapshot = self.engine.snapshot()
            # What the engine does not take is seen beside it.
            return OverlaidSnapshot(snapshot, self.applying) if self.applying else snapshot
        except (OSError, MemoryError, PegasKVError) as error:
            return error

    # --- The engine --------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """Whether the engine lacks what is committed."""
        return self.unapplied is not None

    def _keep(self, batch: Batch) -> None:
        """Hold committed rows where reads see them until the engine has taken them."""
        if self.unapplied is None:
            self._lag(self)
        self.unapplied = batch
        self.applying_bytes += batch.size
        applying = self.applying
        if batch.progress:
            self.participation.progress.update(batch.progress)
        # An order is the last of its mutation: what is forgotten may have come with it.
        for kind, fields in batch.controls:
            rows = self.participation.obey(kind, fields, batch.decree)
            batch.rows.update(zip(rows[::2], rows[1::2], strict=True))  # type: ignore[arg-type]
        applying.update(batch.rows)
        # `_has_many`, written out.
        if (
            len(applying) >= _APPLY_ROWS or self.applying_bytes >= _APPLY_BYTES
        ) and self._in_thread is None:
            # Once the answers are on their way.
            self._apply_soon(self)

    @property
    def _has_many(self) -> bool:
        return len(self.applying) >= _APPLY_ROWS or self.applying_bytes >= _APPLY_BYTES

    def apply_now(self) -> None:
        """Write what is committed to the engine: here if it is calm, else in a thread."""
        last = self.unapplied
        if last is None or self._in_thread is not None or self.engine_failed is not None:
            return
        engine = self.engine
        state = ReplicaState(last.decree, last.ballot, last.last_timestamp_us)
        try:
            rows = _sorted_rows(self.applying)
            calm = len(rows) <= _LOOP_ROWS * 2 and self.applying_bytes <= _LOOP_BYTES
            calm = calm and engine.calm()
            if calm:
                engine.write(rows, state)
        except MemoryError:
            # They are safe in the log and visible here; the front asks again soon.
            self._lag(self)
            return
        except (OSError, PegasKVError) as error:
            self.fail_engine(error)
            return
        if calm:
            self._forget_applied()
            self._hand_out_snapshots(last.decree)
            return
        self._in_thread = last
        size = self.applying_bytes

        def done(_: None, error: BaseException | None) -> None:
            if engine is self.engine and self._in_thread is last:
                self._on_applied(rows, size, error)

        self._apply_worker.submit(lambda: engine.write(rows, state), done)

    def _on_applied(self, rows: list[bytes | None], size: int, error: BaseException | None) -> None:
        last, self._in_thread = self._in_thread, None
        if error is not None:
            self.fail_engine(error)
            return
        assert last is not None
        if self.unapplied is last:
            self._forget_applied()
        else:
            self.applying_bytes -= size
            applying = self.applying
            self.cache.drop(dict.fromkeys(rows[::2]))  # type: ignore[arg-type]
            for key, row in zip(rows[::2], rows[1::2], strict=True):
                # A younger one stays. One deletion looks like any other, and leaves as much.
                if applying[key] is row:  # type: ignore[index]
                    del applying[key]  # type: ignore[arg-type]
        self._hand_out_snapshots(last.decree)
        if self._snapshots or self._has_many:
            self.apply_now()
        elif self.behind:
            self._lag(self)

    def _forget_applied(self) -> None:
        self.unapplied = None
        self.cache.drop(self.applying)
        self.applying.clear()
        self.applying_bytes = 0

    def forget_read(self, rows: Mapping[bytes, object]) -> None:
        """The engine was written beside the log: what was read of these keys is no more."""
        self.cache.drop(rows)

    def _hand_out_snapshots(self, decree: int) -> None:
        """The engine is at `decree`: whoever waited for that has waited long enough."""
        while self._snapshots and self._snapshots[0][0] <= decree:
            self._snapshots.popleft()[1](self._view())

    def fail_engine(self, error: BaseException) -> None:
        """The engine takes no more writes: keep rows here until it has been opened again."""
        if self.engine_failed is not None:
            # It is being opened again already.
            return
        self.engine_failed = error
        self._in_thread = None
        while self._snapshots:
            self._snapshots.popleft()[1](self._view())
        self._on_engine_failed(self, error)

    def _refuse_snapshots(self, reason: str) -> None:
        while self._snapshots:
            self._snapshots.popleft()[1](NotReady(reason))

    def replace_engine(self, engine: Engine) -> None:
        """Go on with an engine that was opened again and brought up from the log.

        What was committed meanwhile and is above its decree is applied to it here.
        """
        self.engine = engine
        self.engine_failed = None
        self.reopening = False
        last = self.unapplied
        if last is not None and last.decree <= engine.state().decree:
            self._forget_applied()
        elif last is not None:
            # The log may have brought it some of these rows; the youngest of each key is here.
            self._lag(self)


def _sorted_rows(rows: dict[bytes, bytes | None]) -> list[bytes | None]:
    """Return a flat list [key, row, key, row, ...] by key."""
    keys = sorted(rows)
    flat: list[bytes | None] = [None] * (2 * len(keys))
    flat[::2] = keys
    flat[1::2] = [rows[key] for key in keys]
    return flat
