"""Administration of duplications: add, look, pause, start, remove, wait; the other clusters.

A duplication is named by its id or, since a table has at most one to each, by the name of
the remote cluster. Adding one that is there changes nothing: `DuplicationExists` carries it
as `.existing`, whatever phase it is in.
"""

# ruff: noqa: ASYNC109 - deadlines are kept by the connection, which costs nothing per call.

from collections.abc import Sequence
from typing import Any, Final, Literal

from pegaskv.base.errors import (
    DuplicationExists,
    DuplicationNotFound,
    InvalidArgument,
    OperationDisabled,
    Timeout,
    Unavailable,
    WireError,
)
from pegaskv.base.types import DuplicationStatus, FailMode
from pegaskv.client.admin_requests import (
    AdminRequests,
    ChangedTable,
    as_name,
    as_positive,
    as_whole,
    malformed,
    warnings_of,
)
from pegaskv.client.arguments import as_bool, as_timeout_ms, parse_metas
from pegaskv.client.duplications import (
    Duplication,
    RemoteCluster,
    cluster_from_wire,
    duplication_from_wire,
)
from pegaskv.client.retry import Deadline
from pegaskv.codec.operations import Operation

__all__ = ["DuplicationAdmin"]

# Between two looks of `wait_duplicated`: short at first, since most waits are.
PAUSE_MS_FIRST: Final = 10
PAUSE_MS_MAX: Final = 200
# Partitions that the message of a Timeout names.
NAMED_MAX: Final = 5

_MATCHES: Final = ("all", "exact", "anywhere", "prefix", "postfix")


class DuplicationAdmin(AdminRequests):
    """The part of `AdminClient` that is about duplications."""

    async def add_duplication(
        self,
        table: str,
        remote_cluster: str,
        remote_table: str | None = None,
        checkpoint: bool = True,
        remote_replica_count: int | None = None,
        *,
        mesh: bool = False,
        merge: bool = False,
        timeout: float | None = None,
    ) -> Duplication:
        """Ship a table to a cluster from now on; existing rows too with `checkpoint`.

        The remote table is made (`remote_table` None = the same name, `remote_replica_count`
        None = the table's), or with `merge` may be there already. `mesh` says that every two
        clusters of more than two are connected. Returns when the duplication is stored, and
        without `checkpoint` when nothing that is written from now on can be missed.

        Raises:
            DuplicationExists: to that cluster the table is duplicated already, see `.existing`.
            InvalidArgument: it cannot be: the own cluster, one that is not known, ...

        """
        if remote_replica_count is not None:
            as_positive("remote_replica_count", remote_replica_count)
        options = {"mesh": as_bool("mesh", mesh), "merge": as_bool("merge", merge)}
        fields = (
            as_name(table, "table"),
            as_name(remote_cluster, "remote_cluster"),
            None if remote_table is None else as_name(remote_table, "remote_table"),
            as_bool("checkpoint", checkpoint),
            remote_replica_count or 0,
            {name: True for name, wanted in options.items() if wanted},
        )
        try:
            reply, _ = await self._ask(Operation.ADD_DUPLICATION, fields, timeout)
        except DuplicationExists as error:
            error.details = self._existing(error.details)
            raise
        return self._duplication(Operation.ADD_DUPLICATION, reply)

    async def query_duplication(
        self, table: str, *, timeout: float | None = None
    ) -> list[Duplication]:
        """Return the duplications of a table, one for each remote cluster."""
        fields = (as_name(table, "table"),)
        reply, _ = await self._ask(Operation.QUERY_DUPLICATION, fields, timeout)
        return self._duplications(Operation.QUERY_DUPLICATION, reply)

    async def list_duplications(
        self,
        pattern: str = "",
        match: Literal["all", "exact", "anywhere", "prefix", "postfix"] = "all",
        *,
        timeout: float | None = None,
    ) -> list[Duplication]:
        """Return the duplications of the tables whose names match; `all` = every table."""
        if match not in _MATCHES:
            raise InvalidArgument(f"match must be one of {', '.join(_MATCHES)}, not {match!r}")
        fields = (as_name(pattern, "pattern"), match)
        reply, _ = await self._ask(Operation.LIST_DUPLICATIONS, fields, timeout)
        return self._duplications(Operation.LIST_DUPLICATIONS, reply)

    async def pause_duplication(
        self, table: str, duplication: int | str, *, timeout: float | None = None
    ) -> Duplication:
        """Ship nothing until it is started again; the log is kept meanwhile."""
        return await self._modify(table, duplication, "pause", None, timeout)

    async def start_duplication(
        self,
        table: str,
        duplication: int | str,
        *,
        copy: bool = False,
        timeout: float | None = None,
    ) -> Duplication:
        """End a pause, or try again at once; with `copy` copy all rows anew, broken or not."""
        action = "copy" if as_bool("copy", copy) else "start"
        return await self._modify(table, duplication, action, None, timeout)

    async def remove_duplication(
        self, table: str, duplication: int | str, *, timeout: float | None = None
    ) -> Duplication:
        """End a duplication for good; the remote table stays as it is."""
        return await self._modify(table, duplication, "remove", None, timeout)

    async def set_duplication_fail_mode(
        self,
        table: str,
        duplication: int | str,
        fail_mode: FailMode | Literal["slow", "skip"],
        *,
        timeout: float | None = None,
    ) -> Duplication:
        """Say what happens to a row that the target finds invalid: tried again, or skipped."""
        try:
            mode = FailMode(fail_mode)
        except ValueError:
            raise InvalidArgument(f"fail_mode must be slow or skip, not {fail_mode!r}") from None
        return await self._modify(table, duplication, "fail_mode", mode.value, timeout)

    async def wait_duplicated(
        self, table: str, *, remote_cluster: str | None = None, timeout: float | None = None
    ) -> None:
        """Return when all that was committed before this call is on every target, or on one.

        Raises:
            Timeout: not within `timeout` seconds; the message has what is behind, and why.
            OperationDisabled: a duplication is paused or broken, so it would never come.
            DuplicationNotFound: the table is duplicated nowhere, or not to that cluster.

        """
        clock, usual_ms = self._pool.clock, self._pool.options.timeout_ms
        limit_ms = usual_ms if timeout is None else as_timeout_ms(timeout)
        deadline = Deadline(now_ms=clock.monotonic_ms(), timeout_ms=limit_ms)
        waiting = _Waiting(as_name(table, "table"), remote_cluster)
        pause_ms = PAUSE_MS_FIRST
        while True:
            remaining = max(1, deadline.remaining_ms(now_ms=clock.monotonic_ms()))
            try:
                found = await self.query_duplication(
                    table, timeout=min(remaining, usual_ms) / 1_000
                )
            except (Timeout, Unavailable) as error:
                if self._pool.closed:
                    raise
                waiting.trouble = error.message
            else:
                if waiting.look(found):
                    return
            if deadline.remaining_ms(now_ms=clock.monotonic_ms()) <= pause_ms:
                raise Timeout(
                    f"{table}: not everything is on the target after {limit_ms / 1_000:g} s: "
                    f"{waiting.describe()}",
                    hint=waiting.hint,
                )
            await clock.sleep_ms(pause_ms)
            pause_ms = min(2 * pause_ms, PAUSE_MS_MAX)

    async def add_cluster(
        self,
        name: str,
        metas: str | Sequence[str],
        cluster_id: int,
        *,
        user: str | None = None,
        password_file: str | None = None,
        timeout: float | None = None,
    ) -> RemoteCluster:
        """Make another cluster known: its name here, its meta servers, its id (1 to 127).

        `password_file` is a file on the servers of this cluster.
        """
        fields = (
            as_name(name),
            ",".join(parse_metas(metas)),
            as_positive("cluster_id", cluster_id),
            as_name(user or "", "user"),
            as_name(password_file or "", "password_file"),
        )
        reply, _ = await self._ask(Operation.ADD_CLUSTER, fields, timeout)
        return self._cluster(Operation.ADD_CLUSTER, reply)

    async def remove_cluster(self, name: str, *, timeout: float | None = None) -> RemoteCluster:
        """Forget a cluster; refused while a table is duplicated there."""
        reply, _ = await self._ask(Operation.REMOVE_CLUSTER, (as_name(name),), timeout)
        return self._cluster(Operation.REMOVE_CLUSTER, reply)

    async def list_clusters(self, *, timeout: float | None = None) -> list[RemoteCluster]:
        """Return the clusters that tables can be duplicated to."""
        reply, _ = await self._ask(Operation.LIST_CLUSTERS, (), timeout)
        clusters = reply[0] if reply else None
        if not isinstance(clusters, list):
            raise malformed(Operation.LIST_CLUSTERS)
        return [self._cluster(Operation.LIST_CLUSTERS, [each]) for each in clusters]

    async def open_table(self, table: str, *, timeout: float | None = None) -> ChangedTable:
        """Let clients write to a table that a duplication made."""
        reply, _ = await self._ask(Operation.OPEN_TABLE, (as_name(table, "table"),), timeout)
        return self._changed(reply, 1)

    async def _modify(
        self,
        table: str,
        duplication: int | str,
        action: str,
        argument: str | None,
        timeout: float | None,
    ) -> Duplication:
        if isinstance(duplication, str):
            found = await self.query_duplication(table, timeout=timeout)
            dupid = _find(table, found, duplication).dupid
        else:
            dupid = as_whole("duplication", duplication)
        fields = (as_name(table, "table"), dupid, action, argument)
        reply, _ = await self._ask(Operation.MODIFY_DUPLICATION, fields, timeout)
        return self._duplication(Operation.MODIFY_DUPLICATION, reply)

    def _read(
        self, operation: Operation, fields: Any, warnings: tuple[str, ...] = ()
    ) -> Duplication:
        try:
            return duplication_from_wire(
                fields, now_us=self._pool.clock.wall_us(), warnings=warnings
            )
        except WireError as error:
            raise Unavailable(f"{malformed(operation).message}: {error}") from None

    def _duplication(self, operation: Operation, reply: list[Any]) -> Duplication:
        return self._read(operation, reply[0] if reply else None, warnings_of(reply, 1))

    def _duplications(self, operation: Operation, reply: list[Any]) -> list[Duplication]:
        if not reply or not isinstance(reply[0], list):
            raise malformed(operation)
        return [self._read(operation, fields) for fields in reply[0]]

    def _existing(self, details: Any) -> dict[str, Any]:
        """Read the stored entry in the details of a refusal; None when it cannot be read."""
        known = dict(details) if isinstance(details, dict) else {}
        try:
            known["existing"] = self._read(Operation.ADD_DUPLICATION, known.get("existing"))
        except Unavailable:
            # That it exists is the answer, even when the server tells no more.
            known["existing"] = None
        return known

    @staticmethod
    def _cluster(operation: Operation, reply: list[Any]) -> RemoteCluster:
        try:
            return cluster_from_wire(reply[0] if reply else None)
        except WireError as error:
            raise Unavailable(f"{malformed(operation).message}: {error}") from None


def _find(table: str, found: list[Duplication], name: str) -> Duplication:
    """Return the duplication that `name` means: a remote cluster, or an id as text."""
    for wanted in (
        [each for each in found if each.remote_cluster == name],
        [each for each in found if str(each.dupid) == name],
    ):
        if wanted:
            return wanted[0]
    raise _not_found(table, found, name)


def _not_found(
    table: str, found: list[Duplication], name: str | None = None
) -> DuplicationNotFound:
    where = f" by the name or id {name}" if name is not None else ""
    known = ", ".join(f"{each.dupid} to {each.remote_cluster}" for each in found)
    return DuplicationNotFound(
        f"table {table} has no duplication{where}",
        hint=f"it has {known}" if known else "add_duplication makes one",
    )


class _Waiting:
    """What `wait_duplicated` waits for: a decree of each partition, from the first look at it."""

    def __init__(self, table: str, remote_cluster: str | None) -> None:
        self.trouble = ""
        self._table = table
        self._remote = None if remote_cluster is None else as_name(remote_cluster, "remote_cluster")
        # (dupid, partition) -> the decree that was committed last when it was first seen.
        self._wanted: dict[tuple[int, int], int] = {}
        self._behind: list[Duplication] = []

    def look(self, found: list[Duplication]) -> bool:
        """Whether everything is there.

        Raises:
            DuplicationNotFound, OperationDisabled: it will never be.

        """
        mine = [each for each in found if self._remote in (None, each.remote_cluster)]
        if not mine:
            raise _not_found(self._table, found, self._remote)
        for each in mine:
            self._check(each)
            for partition in each.partitions:
                if partition.known:
                    key = each.dupid, partition.index
                    self._wanted.setdefault(key, partition.last_committed_decree)
        self.trouble = ""
        self._behind = [each for each in mine if not each.partitions or self._late(each)]
        return not self._behind

    def _late(self, duplication: Duplication) -> list[str]:
        """Describe the partitions that are not there yet."""
        late = []
        for partition in duplication.partitions:
            wanted = self._wanted.get((duplication.dupid, partition.index))
            if wanted is not None and partition.has(wanted):
                continue
            at = "nothing is known of it yet"
            if wanted is not None:
                at = f"confirmed {partition.confirmed_decree} of {wanted}"
            if partition.status is not DuplicationStatus.DS_LOG:
                at = f"{partition.status.value}, {at}"
            error = f", {partition.error}" if partition.error else ""
            late.append(f"partition {partition.index} ({at}{error})")
        return late

    def _check(self, duplication: Duplication) -> None:
        name = f"the duplication {duplication.dupid} of {self._table} to "
        name += duplication.remote_cluster
        if duplication.failure:
            raise OperationDisabled(
                f"{name} is broken: {duplication.failure}",
                hint="start_duplication(copy=True) copies all rows anew",
            )
        if duplication.paused or duplication.status is DuplicationStatus.DS_PAUSE:
            raise OperationDisabled(f"{name} is paused", hint="start_duplication ends the pause")
        if duplication.status is DuplicationStatus.DS_REMOVED:
            raise DuplicationNotFound(f"{name} was removed")

    def describe(self) -> str:
        """Say what is behind, and why."""
        parts = []
        for each in self._behind:
            late = self._late(each)
            more = len(late) - NAMED_MAX
            text = ", ".join(late[:NAMED_MAX]) or "its partitions are not known yet"
            text += f" and {more} more" if more > 0 else ""
            why = f"; {each.last_error}" if each.last_error else ""
            parts.append(f"{each.remote_cluster} ({each.status.value}): {text}{why}")
        if self.trouble:
            parts.append(f"the last question was not answered: {self.trouble}")
        return "; ".join(parts) or "no answer yet"

    @property
    def hint(self) -> str:
        """What the reader can do."""
        if any(each.last_error for each in self._behind):
            return "it goes on by itself once the cause is gone"
        return "give it more time"
