"""The door to a meta server that is made after those who will use it."""

from pegaskv.codec.messages_duplication import PartitionProgress, ProgressReport
from pegaskv.duplication.doors import EnsureAnswer, MetaDoor, RemoteWork

__all__ = ["LateMetaDoor"]


class LateMetaDoor:
    """Hands every call on to `meta`, which is set before the first one comes."""

    def __init__(self) -> None:
        self.meta: MetaDoor | None = None

    @property
    def _there(self) -> MetaDoor:
        assert self.meta is not None
        return self.meta

    async def report_progress(self, reports: list[ProgressReport]) -> list[PartitionProgress]:
        """See `MetaDoor`."""
        return await self._there.report_progress(reports)

    def remote_work(self) -> list[RemoteWork]:
        """See `MetaDoor`."""
        return self._there.remote_work()

    async def ensured(self, dupid: int, uuid: bytes, answer: EnsureAnswer) -> None:
        """See `MetaDoor`."""
        await self._there.ensured(dupid, uuid, answer)

    async def forgotten(self, dupid: int, uuid: bytes) -> None:
        """See `MetaDoor`."""
        await self._there.forgotten(dupid, uuid)
