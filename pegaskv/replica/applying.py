"""The part of a replica that brings committed rows to its engine, and reads them. Hot.

The engine gets committed rows late and many at once, since a LevelDB write costs ten
times as much as a row in it: until then they are in `applying`, where reads look first.
When a write would be made to wait, it goes through a thread. A failed engine write ends
the engine, not the replica: committed rows stay in `applying`, reads and scans go on,
writes are refused, and `repairs` sees to the engine.
"""

from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Any, Final

from pegaskv.base.errors import NotReady, PegasKVError
from pegaskv.replica.admission import Admission
from pegaskv.replica.batch import Batch
from pegaskv.replica.overlay import OverlaidSnapshot
from pegaskv.replica.participation import Participation
from pegaskv.runtime.worker import Worker
from pegaskv.storage.engine import Engine, ReplicaState, Snapshot

__all__ = ["Applying"]

# Committed rows are written to the engine when there are so many, or so many bytes of
# them; the front sees to it that none waits longer than half a second.
_APPLY_ROWS: Final = 512
_APPLY_BYTES: Final = 256 * 1024
# More than this goes through the thread also when the engine is calm.
_LOOP_ROWS: Final = 1_024
_LOOP_BYTES: Final = 512 * 1024

_MISSING: Final[Any] = object()


class Applying(Admission):
    """Committed batches on their way into the engine.

    Invariant: `applying` is the union of the rows of `unapplied`, the youngest of each key.
    """

    reopening = False
    # The engine is closed for ever.
    engine_gone = False

    def __init__(
        self,
        *,
        engine: Engine,
        participation: Participation,
        apply_worker: Worker,
        call_soon: Callable[[Callable[[], Any]], Any],
        lag: Callable[[Any], None],
        on_engine_failed: Callable[[Any, BaseException], None],
    ) -> None:
        self.engine = engine
        # What the committed part of the log has made of the partition.
        self.participation = participation
        self.applying: dict[bytes, bytes | None] = {}
        self.unapplied: deque[Batch] = deque()
        self.applying_bytes = 0
        # How many of the unapplied batches a thread is writing at the moment.
        self._in_thread = 0
        # Who waits for a snapshot that holds everything up to a decree.
        self._snapshots: deque[tuple[int, Callable[[Snapshot | BaseException], None]]] = deque()
        self._apply_worker = apply_worker
        self._call_soon = call_soon
        self._lag = lag
        self._on_engine_failed = on_engine_failed

    # --- Reading -----------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """Return the committed row under a stored key."""
        if self.applying:
            row = self.applying.get(key, _MISSING)
            if row is not _MISSING:
                return row  # type: ignore[no-any-return]
        return self.engine.get(key)

    def snapshot_then(self, use: Callable[[Snapshot | BaseException], None]) -> None:
        """Call `use` with a snapshot that holds all that is committed now.

        On the loop, at once unless the engine is behind. The caller closes the snapshot.
        """
        self.apply_now()
        if self.reopening:
            use(NotReady(f"partition {self.gpid} is reopening its storage"))
        elif not self.unapplied or self.engine_failed is not None:
            use(self._view())
        else:
            self._snapshots.append((self.unapplied[-1].decree, use))

    def _view(self) -> Snapshot | BaseException:
        try:
            snapshot = self.engine.snapshot()
            # What the engine does not take is seen beside it.
            return OverlaidSnapshot(snapshot, self.applying) if self.applying else snapshot
        except (OSError, MemoryError, PegasKVError) as error:
            return error

    # --- The engine --------------------------------------------------------------------

    def _keep(self, batch: Batch) -> None:
        """Hold committed rows where reads see them until the engine has taken them."""
        if not self.unapplied:
            self._lag(self)
        self.unapplied.append(batch)
        self.applying_bytes += batch.size
        applying = self.applying
        if batch.progress:
            self.participation.progress.update(batch.progress)
        # An order is the last of its mutation: what is forgotten may have come with it.
        for kind, fields in batch.controls:
            rows = self.participation.obey(kind, fields, batch.decree)
            batch.rows.update(zip(rows[::2], rows[1::2], strict=True))  # type: ignore[arg-type]
        applying.update(batch.rows)
        if len(applying) >= _APPLY_ROWS or self.applying_bytes >= _APPLY_BYTES:
            # Once the answers are on their way.
            self._call_soon(self.apply_now)

    def apply_now(self) -> None:
        """Write what is committed to the engine: here if it is calm, else in a thread."""
        if not self.unapplied or self._in_thread or self.engine_failed is not None:
            return
        rows = list(chain.from_iterable(self.applying.items()))
        last = self.unapplied[-1]
        state = ReplicaState(last.decree, last.ballot, last.last_timestamp_us)
        engine = self.engine
        try:
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
            self.unapplied.clear()
            self.applying.clear()
            self.applying_bytes = 0
            self._hand_out_snapshots(last.decree)
            return
        self._in_thread = len(self.unapplied)

        def done(_: None, error: BaseException | None) -> None:
            if engine is self.engine and self._in_thread:
                self._on_applied(error)

        self._apply_worker.submit(lambda: engine.write(rows, state), done)

    def _on_applied(self, error: BaseException | None) -> None:
        count, self._in_thread = self._in_thread, 0
        if error is not None:
            self.fail_engine(error)
            return
        decree = 0
        for _ in range(count):
            batch = self.unapplied.popleft()
            decree = batch.decree
            self.applying_bytes -= batch.size
        # Made anew: one deletion looks like any other, so nobody can tell whose row is there.
        self.applying.clear()
        for batch in self.unapplied:
            self.applying.update(batch.rows)
        self._hand_out_snapshots(decree)
        self.apply_now()

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
        self._in_thread = 0
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
        kept = [batch for batch in self.unapplied if batch.decree > engine.state().decree]
        self.unapplied.clear()
        self.applying.clear()
        self.applying_bytes = 0
        for batch in kept:
            batch.controls = ()
            batch.progress = None
            self._keep(batch)
