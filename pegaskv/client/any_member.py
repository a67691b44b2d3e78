"""A table whose reads need not be answered by primaries."""

# ruff: noqa: ASYNC109 - deadlines are kept by the connection, as in `table`.

from pegaskv.client.arguments import BytesLike
from pegaskv.client.table import Table, value_of
from pegaskv.codec.operations import Operation

__all__ = ["AnyMemberTable"]


class AnyMemberTable(Table):
    """A table whose reads any member of a partition may answer, from what it has applied.

    They may miss the last writes, also the caller's own, and one may see less than the one
    before it. Writes are those of every table.
    """

    async def get(
        self, hash_key: BytesLike, sort_key: BytesLike, *, timeout: float | None = None
    ) -> bytes | None:
        """Return a row's value as some member knows it, or None."""
        call = self._row_call(Operation.GET, hash_key, sort_key, (), timeout)
        return value_of(call, await self._calls.send(call))
