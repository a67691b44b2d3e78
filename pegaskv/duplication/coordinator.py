"""What the meta server's duplications need of other clusters: their table, and its end.

It runs beside the meta server that leads. The meta server says what has to be done; this
does it, again and again with growing pauses, and says meanwhile what is in the way. Every
call may be repeated: a lost reply is made good by the next one.
"""

import asyncio
import logging
from random import Random
from typing import Any, Final

from pegaskv.base.errors import PegasKVError, Unavailable
from pegaskv.codec.messages_duplication import EnsureOutcome
from pegaskv.codec.operations import Operation
from pegaskv.duplication.doors import EnsureAnswer, MetaDoor, RemoteWork
from pegaskv.duplication.failures import UNREACHABLE, Failure, Foreign, failure_of
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.duplication.remote import RemoteCluster, RemoteClusters
from pegaskv.duplication.trouble import Trouble
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope

__all__ = ["Coordinator"]

_log = logging.getLogger(__name__)

_FOREIGN_MS: Final = 2_000
_FORGET_FOR_S: Final = 24 * 3_600

_OUTCOMES: Final = (
    EnsureOutcome.CREATED,
    EnsureOutcome.ALREADY_YOURS,
    EnsureOutcome.EXISTS_FOREIGN,
)
_UUID_CHARACTERS_MAX: Final = 64

_Key = tuple[str, int, bytes]


class _Work:
    """One thing to be done, and what is in the way."""

    def __init__(self, work: RemoteWork, trouble: Trouble) -> None:
        self.work = work
        self.changed = asyncio.Event()
        self.trouble = trouble


class Coordinator:
    """Does the meta server's remote work; `poke` says that there may be other work."""

    def __init__(
        self,
        *,
        meta: MetaDoor,
        remotes: RemoteClusters,
        clock: Clock,
        random: Random,
        scope: TaskScope,
        options: DuplicationOptions,
    ) -> None:
        self._meta = meta
        self._remotes = remotes
        self._clock = clock
        self._random = random
        self._scope = scope
        self._options = options
        self._work: dict[_Key, tuple[_Work, asyncio.Task[None]]] = {}

    def poke(self) -> None:
        """Look at what has to be done now."""
        wanted = {(work.kind, work.dupid, work.uuid): work for work in self._meta.remote_work()}
        for key in [key for key in self._work if key not in wanted]:
            self._work.pop(key)[1].cancel()
        for key, work in wanted.items():
            found = self._work.get(key)
            if found is not None and not found[1].done():
                if found[0].work != work:
                    if found[0].work.attempt != work.attempt:
                        found[0].trouble.begin_again()
                    found[0].work = work
                    found[0].changed.set()
                continue
            item = _Work(work, Trouble(self._clock, self._random, self._options))
            name = f"{work.kind} duplication {work.dupid} at {work.remote_cluster}"
            self._work[key] = item, self._scope.start(name, self._do(item))

    def state(self, dupid: int, uuid: bytes) -> dict[str, Any]:
        """Return what is in the way of a duplication at its target; empty when nothing is."""
        found = self._work.get(("ensure", dupid, uuid))
        if found is None or found[1].done():
            return {}
        return found[0].trouble.shown(found[0].work.remote_cluster)

    async def _do(self, item: _Work) -> None:
        while True:
            item.changed.clear()
            work = item.work
            if not work.metas:
                await item.changed.wait()
                continue
            remote = self._remotes.get(work.metas)
            try:
                if await self._attempt(item, work):
                    return
            except (PegasKVError, OSError, MemoryError) as error:
                failure = failure_of(error)
            else:
                continue
            if work.kind == "forget" and self._is_too_old(work):
                await self._forgotten(work)
                return
            await self._pause(item, failure, remote)

    async def _attempt(self, item: _Work, work: RemoteWork) -> bool:
        """Ask once; whether the work is done. Raises what is in the way."""
        remote = self._remotes.get(work.metas)
        item.trouble.asked()
        if work.kind == "forget":
            await remote.ask(Operation.FORGET_DUPLICATION, work.fields)
            await self._forgotten(work)
            return True
        fields = await remote.ask(Operation.ENSURE_DUPLICATION, work.fields)
        answer = _read_answer(work, fields)
        if answer.outcome == EnsureOutcome.EXISTS_FOREIGN:
            raise Foreign(answer.text)
        await self._meta.ensured(work.dupid, work.uuid, answer)
        return True

    async def _forgotten(self, work: RemoteWork) -> None:
        await self._meta.forgotten(work.dupid, work.uuid)

    def _is_too_old(self, work: RemoteWork) -> bool:
        now = self._clock.wall_us() // 1_000_000
        return bool(work.since_unix_seconds) and now - work.since_unix_seconds > _FORGET_FOR_S

    async def _pause(self, item: _Work, failure: Failure, remote: RemoteCluster) -> None:
        if item.trouble.failure != failure:
            _log.warning(
                "duplication %d to %s: %s",
                item.work.dupid, item.work.remote_cluster, failure.text,
            )  # fmt: skip
        foreign = failure.error_class == "foreign"
        pause_ms = item.trouble.failed(failure, least_ms=_FOREIGN_MS if foreign else 0)
        unsubscribe = None
        if failure.error_class == UNREACHABLE:
            remote.unreachable()
            unsubscribe = remote.when_reachable(item.changed.set)
        try:
            async with self._clock.timeout_ms(pause_ms):
                await item.changed.wait()
        except TimeoutError:
            pass
        finally:
            if unsubscribe is not None:
                unsubscribe()


def _read_answer(work: RemoteWork, fields: list[Any]) -> EnsureAnswer:
    kinds = (str, int, int, int, str, str)
    if len(fields) < len(kinds) or any(
        type(field) is not kind for field, kind in zip(fields, kinds, strict=False)
    ):
        raise Unavailable(f"{work.remote_cluster} answered what is no answer")
    answer = EnsureAnswer(*fields[: len(kinds)])
    if answer.outcome not in _OUTCOMES or len(answer.cluster_uuid) > _UUID_CHARACTERS_MAX:
        raise Unavailable(f"{work.remote_cluster} answered what is no answer")
    if work.remote_cluster_id not in (0, answer.cluster_id):
        raise Foreign(
            f"the cluster at {work.metas} has id {answer.cluster_id}, and {work.remote_cluster} "
            f"is known with id {work.remote_cluster_id}"
        )
    return answer
