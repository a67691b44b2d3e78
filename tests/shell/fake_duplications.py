"""Duplications of the fake cluster: entries that a test moves on, one look at a time."""
# ruff: noqa: ASYNC109 - the signatures are those of the client

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pegaskv.base.errors import (
    DuplicationExists,
    DuplicationNotFound,
    InvalidArgument,
    OperationDisabled,
    Timeout,
)
from pegaskv.base.types import DuplicationStatus, FailMode
from pegaskv.client import ChangedTable, Duplication, DuplicationPartition, RemoteCluster

NOW = 1_800_000_100.0


def partition(
    index: int, status: DuplicationStatus = DuplicationStatus.DS_LOG, **more: Any
) -> DuplicationPartition:
    known = {"start_decree": 1, "confirmed_decree": 5, "last_committed_decree": 5}
    return DuplicationPartition(index, status, **{**known, **more})


def duplication(**more: Any) -> Duplication:
    """An entry in DS_LOG with two partitions and nothing behind, changed by `more`."""
    fields: dict[str, Any] = {
        "dupid": 7,
        "status": DuplicationStatus.DS_LOG,
        "remote_cluster": "beta",
        "remote_table": "users",
        "table": "users",
        "remote_replica_count": 1,
        "created_at": 1_800_000_000.0,
        "partitions": (partition(0), partition(1)),
        "asked_at": NOW,
    }
    return Duplication(**{**fields, **more})


@dataclass
class FakeDuplications:
    """What the cluster has, and what happens before it is looked at the n-th time."""

    entries: list[Duplication] = field(default_factory=list)
    clusters: dict[str, RemoteCluster] = field(default_factory=dict)
    requests: list[tuple[Any, ...]] = field(default_factory=list)
    on_look: Callable[[int], None] = lambda number: None
    looks: int = 0
    # Raised by wait_duplicated, or None.
    late: Exception | None = None
    differences: tuple[str, ...] = ()


class FakeDuplicationAdmin:
    cluster: Any

    @property
    def _it(self) -> FakeDuplications:
        it: FakeDuplications = self.cluster.duplications
        return it

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
        timeout: float,
    ) -> Duplication:
        self.cluster.called("add_duplication", timeout)
        self.cluster.find(table)
        self._it.requests.append(
            (table, remote_cluster, remote_table, checkpoint, remote_replica_count, mesh, merge)
        )
        for each in self._it.entries:
            if (each.table, each.remote_cluster) == (table, remote_cluster):
                details = {"existing": each, "differences": list(self._it.differences)}
                raise DuplicationExists("it exists", details=details)
        made = duplication(
            status=DuplicationStatus.DS_PREPARE,
            table=table,
            remote_cluster=remote_cluster,
            remote_table=remote_table or table,
            checkpoint=checkpoint,
        )
        self._it.entries.append(made)
        return replace(made, warnings=("both clusters are written to",) if merge else ())

    async def query_duplication(self, table: str, *, timeout: float) -> list[Duplication]:
        self.cluster.called("query_duplication", timeout)
        self._it.looks += 1
        self._it.on_look(self._it.looks)
        self.cluster.called("query_duplication", timeout)
        self.cluster.find(table)
        return [each for each in self._it.entries if each.table == table]

    async def list_duplications(
        self, pattern: str = "", match: str = "all", *, timeout: float
    ) -> list[Duplication]:
        self.cluster.called("list_duplications", timeout)
        self._it.requests.append(("list", pattern, match))
        return [each for each in self._it.entries if match == "all" or pattern in each.table]

    async def pause_duplication(self, table: str, name: str, *, timeout: float) -> Duplication:
        return self._modify("pause", table, name, timeout, paused=True)

    async def start_duplication(
        self, table: str, name: str, *, copy: bool = False, timeout: float
    ) -> Duplication:
        return self._modify("copy" if copy else "start", table, name, timeout, paused=False)

    async def remove_duplication(self, table: str, name: str, *, timeout: float) -> Duplication:
        gone = self._modify("remove", table, name, timeout, status=DuplicationStatus.DS_REMOVED)
        self._it.entries.remove(gone)
        return gone

    async def set_duplication_fail_mode(
        self, table: str, name: str, fail_mode: str, *, timeout: float
    ) -> Duplication:
        return self._modify("fail_mode", table, name, timeout, fail_mode=FailMode(fail_mode))

    def _modify(
        self, action: str, table: str, name: str, timeout: float, **fields: Any
    ) -> Duplication:
        self.cluster.called(action, timeout)
        self._it.requests.append((action, table, name))
        for number, each in enumerate(self._it.entries):
            if each.table == table and name in (each.remote_cluster, str(each.dupid)):
                self._it.entries[number] = replace(each, **fields)
                return self._it.entries[number]
        raise DuplicationNotFound(f"table {table} has no duplication by the name or id {name}")

    async def wait_duplicated(
        self, table: str, *, remote_cluster: str | None = None, timeout: float
    ) -> None:
        self.cluster.called("wait_duplicated", timeout)
        self._it.requests.append(("wait", table, remote_cluster))
        if isinstance(self._it.late, Timeout | OperationDisabled):
            raise self._it.late

    async def add_cluster(
        self,
        name: str,
        metas: str,
        cluster_id: int,
        *,
        user: str | None = None,
        password_file: str | None = None,
        timeout: float,
    ) -> RemoteCluster:
        self.cluster.called("add_cluster", timeout)
        made = RemoteCluster(name, metas, cluster_id, "", user or "", {"password_file": "f"})
        self._it.clusters[name] = made
        return made

    async def remove_cluster(self, name: str, *, timeout: float) -> RemoteCluster:
        self.cluster.called("remove_cluster", timeout)
        if name not in self._it.clusters:
            raise InvalidArgument(f"no cluster is called {name}")
        return self._it.clusters.pop(name)

    async def list_clusters(self, *, timeout: float) -> list[RemoteCluster]:
        self.cluster.called("list_clusters", timeout)
        return list(self._it.clusters.values())

    async def open_table(self, table: str, *, timeout: float) -> ChangedTable:
        self.cluster.called("open_table", timeout)
        info = replace(self.cluster.find(table), follower=False)
        self.cluster.tables[info.table_id] = info
        values = {name: getattr(info, name) for name in info.__dataclass_fields__}
        return ChangedTable(**values, warnings=("it is not shipped back",))
