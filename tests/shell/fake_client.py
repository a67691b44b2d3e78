"""A client whose cluster is a dictionary: what the shell's commands see of the real one.

It keeps rows, expiry (by a clock that a test moves), checks, ranges, filters and table
administration with the semantics of the real client, so that a command's answer can be
compared with what was done. `unreachable` makes it behave as a cluster that is not there.
"""
# ruff: noqa: ASYNC109 - the signatures are those of the client

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pegaskv.base.errors import InvalidArgument, TableExists, TableNotFound, Unavailable
from pegaskv.base.types import CheckType, FilterType, TableInfo, TableStatus
from pegaskv.client import (
    ChangedTable,
    CheckResult,
    DeadPartition,
    Filter,
    LevelChange,
    MetaLevel,
    MultiGetResult,
    NodeInfo,
    PartitionInfo,
    Put,
    RangeOptions,
    Row,
    ScanOptions,
    SortKeys,
    TableDetails,
)
from tests.shell.fake_duplications import FakeDuplicationAdmin, FakeDuplications

KNOWN_ENVS = (
    "default_ttl",
    "durability",
    "replica.write_throttling",
    "manual_compact.once.trigger_time",
)
START = 1_800_000_000


@dataclass
class FakeRow:
    value: bytes
    expires_at: int | None = None


@dataclass
class FakeCluster:
    """The state that all clients of it share; `log` has every call with its timeout."""

    tables: dict[int, TableInfo] = field(default_factory=dict)
    rows: dict[int, dict[tuple[bytes, bytes], FakeRow]] = field(default_factory=dict)
    now: int = START
    unreachable: bool = False
    # Takes connections and answers no question about itself.
    silent: bool = False
    addresses: list[str] = field(default_factory=list)
    log: list[tuple[str, float]] = field(default_factory=list)
    # Raised by a scan behind this many rows.
    break_scan_after: int | None = None
    opened: int = 0
    closed: int = 0
    duplications: FakeDuplications = field(default_factory=FakeDuplications)
    nodes: list[NodeInfo] = field(
        default_factory=lambda: [NodeInfo("node-1", "127.0.0.1:34601", "alive", {"primaries": 8})]
    )
    # What `cluster_info` tells besides, and the partition that all of a table's are like.
    info: dict[str, Any] = field(default_factory=dict)
    layout: PartitionInfo | None = None
    level: str = "lively"
    proposals: list[Any] = field(default_factory=list)
    dead: list[DeadPartition] = field(default_factory=list)

    def connect(self, cluster: str, timeout_s: float) -> Any:
        """What the shell calls to connect."""
        self.addresses.append(cluster)
        return self._connected(timeout_s)

    @asynccontextmanager
    async def _connected(self, timeout_s: float) -> AsyncIterator["FakeClient"]:
        self.opened += 1
        # The real client greets a meta server before it is handed out.
        self.called("connect", timeout_s)
        try:
            yield FakeClient(self)
        finally:
            self.closed += 1

    def called(self, name: str, timeout: float) -> None:
        assert timeout > 0
        self.log.append((name, timeout))
        if self.unreachable:
            raise Unavailable("no meta server answers at 127.0.0.1:34601")

    def find(self, name: str) -> TableInfo:
        for info in self.tables.values():
            if info.name == name and info.status is TableStatus.AVAILABLE:
                return info
        raise TableNotFound(f"no table is called {name}", hint="`ls` lists the tables")

    def create(self, name: str, **fields: Any) -> TableInfo:
        table_id = len(self.tables) + 1
        info = TableInfo(
            table_id,
            name,
            TableStatus.AVAILABLE,
            fields.get("partition_count", 8),
            fields.get("replica_count") or 1,
            dict(fields.get("envs") or {}),
            created_at=self.now,
        )
        self.tables[table_id] = info
        self.rows[table_id] = {}
        return info


class FakeClient:
    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.admin = FakeAdmin(cluster)

    async def table(self, name: str, *, timeout: float) -> "FakeTable":
        self.cluster.called("table", timeout)
        return FakeTable(self.cluster, self.cluster.find(name).table_id)


def _matches(wanted: Filter | None, data: bytes) -> bool:
    if wanted is None:
        return True
    return {
        FilterType.NO_FILTER: True,
        FilterType.MATCH_ANYWHERE: wanted.pattern in data,
        FilterType.MATCH_PREFIX: data.startswith(wanted.pattern),
        FilterType.MATCH_POSTFIX: data.endswith(wanted.pattern),
        FilterType.MATCH_EXACT: data == wanted.pattern,
    }[wanted.type]


def _in_range(sort_key: bytes, start: bytes, stop: bytes, options: RangeOptions) -> bool:
    if sort_key < start or (sort_key == start and start and not options.start_inclusive):
        return False
    if stop and (sort_key > stop or (sort_key == stop and not options.stop_inclusive)):
        return False
    return _matches(options.sort_key_filter, sort_key)


class FakeTable:
    def __init__(self, cluster: FakeCluster, table_id: int) -> None:
        self.cluster = cluster
        self.table_id = table_id

    def _live(self) -> dict[tuple[bytes, bytes], FakeRow]:
        now = self.cluster.now
        return {
            key: row
            for key, row in sorted(self.cluster.rows[self.table_id].items())
            if row.expires_at is None or row.expires_at > now
        }

    def _put(self, hash_key: bytes, sort_key: bytes, value: bytes, ttl: int) -> None:
        expires_at = self.cluster.now + ttl if ttl else None
        self.cluster.rows[self.table_id][hash_key, sort_key] = FakeRow(value, expires_at)

    async def set(
        self, hash_key: bytes, sort_key: bytes, value: bytes, *, ttl: int = 0, timeout: float
    ) -> None:
        self.cluster.called("set", timeout)
        self._put(hash_key, sort_key, value, ttl)

    async def get(self, hash_key: bytes, sort_key: bytes, *, timeout: float) -> bytes | None:
        self.cluster.called("get", timeout)
        if hash_key == b"hang":
            # Whoever wants to interrupt it must know that it has begun.
            os.write(2, b"hanging\r\n")
            await asyncio.Event().wait()
        row = self._live().get((hash_key, sort_key))
        return row.value if row else None

    async def delete(self, hash_key: bytes, sort_key: bytes, *, timeout: float) -> None:
        self.cluster.called("delete", timeout)
        self.cluster.rows[self.table_id].pop((hash_key, sort_key), None)

    async def exist(self, hash_key: bytes, sort_key: bytes, *, timeout: float) -> bool:
        self.cluster.called("exist", timeout)
        return (hash_key, sort_key) in self._live()

    async def ttl(self, hash_key: bytes, sort_key: bytes, *, timeout: float) -> int:
        self.cluster.called("ttl", timeout)
        row = self._live().get((hash_key, sort_key))
        if row is None:
            return -2
        return -1 if row.expires_at is None else row.expires_at - self.cluster.now

    async def incr(
        self, hash_key: bytes, sort_key: bytes, by: int = 1, *, ttl: int = 0, timeout: float
    ) -> int:
        self.cluster.called("incr", timeout)
        row = self._live().get((hash_key, sort_key)) or FakeRow(b"0")
        try:
            number = int(row.value or b"0") + by
        except ValueError:
            raise InvalidArgument("the stored value is not a number") from None
        self._put(hash_key, sort_key, str(number).encode(), max(ttl, 0))
        if ttl == 0:
            self.cluster.rows[self.table_id][hash_key, sort_key].expires_at = row.expires_at
        return number

    async def multi_set(
        self, hash_key: bytes, rows: Mapping[bytes, bytes], *, ttl: int = 0, timeout: float
    ) -> None:
        self.cluster.called("multi_set", timeout)
        for sort_key, value in rows.items():
            self._put(hash_key, sort_key, value, ttl)

    async def multi_get(
        self,
        hash_key: bytes,
        sort_keys: list[bytes] | None = None,
        *,
        start: bytes = b"",
        stop: bytes = b"",
        options: RangeOptions | None = None,
        max_count: int = 100,
        max_bytes: int = 1_000_000,
        timeout: float,
    ) -> MultiGetResult:
        self.cluster.called("multi_get", timeout)
        options = options or RangeOptions()
        found = [
            (sort_key, b"" if options.no_value else row.value)
            for (of, sort_key), row in self._live().items()
            if of == hash_key
            and (sort_keys is None or sort_key in sort_keys)
            and _in_range(sort_key, start, stop, options)
        ]
        complete = not max_count or len(found) <= max_count
        if not complete:
            found = found[-max_count:] if options.reverse else found[:max_count]
        return MultiGetResult(found, complete=complete)

    async def multi_get_sort_keys(
        self, hash_key: bytes, *, max_count: int = 100, max_bytes: int = 1_000_000, timeout: float
    ) -> SortKeys:
        rows = await self.multi_get(hash_key, max_count=max_count, timeout=timeout)
        return SortKeys(rows, complete=rows.complete)

    async def multi_delete(self, hash_key: bytes, sort_keys: list[bytes], *, timeout: float) -> int:
        self.cluster.called("multi_delete", timeout)
        for sort_key in sort_keys:
            self.cluster.rows[self.table_id].pop((hash_key, sort_key), None)
        return len(sort_keys)

    async def delete_range(
        self, hash_key: bytes, *, start: bytes, stop: bytes, options: RangeOptions, timeout: float
    ) -> int:
        rows = await self.multi_get(
            hash_key, start=start, stop=stop, options=options, max_count=0, timeout=timeout
        )
        return await self.multi_delete(hash_key, list(rows), timeout=timeout)

    async def sort_key_count(self, hash_key: bytes, *, timeout: float) -> int:
        return len(await self.multi_get(hash_key, max_count=0, timeout=timeout))

    def _check(self, row: FakeRow | None, check: CheckType, operand: bytes) -> bool:
        match check:
            case CheckType.NO_CHECK:
                return True
            case CheckType.NOT_EXIST:
                return row is None
            case CheckType.EXIST:
                return row is not None
            case CheckType.BYTES_EQUAL:
                return row is not None and row.value == operand
            case CheckType.INT_LESS:
                return row is not None and int(row.value) < int(operand)
            case CheckType.INT_EQUAL:
                return row is not None and int(row.value) == int(operand)
            case _:
                raise AssertionError(f"the fake knows no {check.name}")

    async def check_and_set(
        self,
        hash_key: bytes,
        check_sort_key: bytes,
        check: CheckType,
        operand: bytes = b"",
        *,
        set_sort_key: bytes | None = None,
        value: bytes,
        ttl: int = 0,
        return_check_value: bool = False,
        timeout: float,
    ) -> CheckResult:
        target = check_sort_key if set_sort_key is None else set_sort_key
        return await self.check_and_mutate(
            hash_key,
            check_sort_key,
            check,
            operand,
            mutations=[Put(target, value, ttl)],
            return_check_value=return_check_value,
            timeout=timeout,
        )

    async def check_and_mutate(
        self,
        hash_key: bytes,
        check_sort_key: bytes,
        check: CheckType,
        operand: bytes = b"",
        *,
        mutations: list[Any],
        return_check_value: bool = False,
        timeout: float,
    ) -> CheckResult:
        self.cluster.called("check_and_mutate", timeout)
        row = self._live().get((hash_key, check_sort_key))
        passed = self._check(row, check, operand)
        if passed:
            for each in mutations:
                if isinstance(each, Put):
                    self._put(hash_key, bytes(each.sort_key), bytes(each.value), each.ttl)
                else:
                    self.cluster.rows[self.table_id].pop((hash_key, each.sort_key), None)
        if not return_check_value:
            return CheckResult(passed)
        return CheckResult(passed, row is not None, row.value if row else None)

    async def scan(
        self,
        hash_key: bytes,
        *,
        start: bytes = b"",
        stop: bytes = b"",
        options: ScanOptions,
        timeout: float,
    ) -> AsyncIterator[Row]:
        async for row in self.full_scan(options=options, timeout=timeout):
            if row.hash_key == hash_key and _in_range(row.sort_key, start, stop, options):
                yield row

    async def full_scan(self, *, options: ScanOptions, timeout: float) -> AsyncIterator[Row]:
        self.cluster.called("scan", timeout)
        for number, ((hash_key, sort_key), row) in enumerate(self._live().items()):
            if number == self.cluster.break_scan_after:
                raise Unavailable("the connection broke")
            if (
                _matches(options.hash_key_filter, hash_key)
                and _matches(options.sort_key_filter, sort_key)
                and _matches(options.value_filter, row.value)
            ):
                yield Row(
                    hash_key,
                    sort_key,
                    b"" if options.no_value else row.value,
                    row.expires_at if options.return_expire else None,
                )

    async def count(self, *, options: ScanOptions, timeout: float) -> int:
        return len([row async for row in self.full_scan(options=options, timeout=timeout)])


def _changed(table: TableInfo, *, created: bool = False) -> ChangedTable:
    values = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    return ChangedTable(**values, created=created)


class FakeAdmin(FakeDuplicationAdmin):
    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster

    async def list_tables(self, *, with_dropped: bool, timeout: float) -> list[TableInfo]:
        self.cluster.called("list_tables", timeout)
        if self.cluster.silent:
            await asyncio.Event().wait()
        return [
            info
            for info in self.cluster.tables.values()
            if with_dropped or info.status is not TableStatus.DROPPED
        ]

    async def table_info(self, name: str, *, timeout: float) -> TableDetails:
        self.cluster.called("table_info", timeout)
        info = self.cluster.find(name)
        partitions = [
            PartitionInfo(n, 1, "node-1", (), {"last_decree": 7})
            for n in range(info.partition_count)
        ]
        if self.cluster.layout is not None:
            partitions = [replace(self.cluster.layout, index=n) for n in range(3)]
        return TableDetails(info, partitions)

    async def create_table(
        self,
        name: str,
        partition_count: int = 8,
        replica_count: int | None = None,
        envs: Mapping[str, str] | None = None,
        *,
        if_exists: str = "fail",
        timeout: float,
    ) -> ChangedTable:
        self.cluster.called("create_table", timeout)
        self._check_envs(envs or {})
        try:
            there = self.cluster.find(name)
        except TableNotFound:
            made = self.cluster.create(
                name, partition_count=partition_count, replica_count=replica_count, envs=envs
            )
            return _changed(made, created=True)
        if if_exists == "same" and there.partition_count == partition_count:
            return _changed(there)
        raise TableExists(f"a table {name} is there already, with id {there.table_id}")

    async def drop_table(
        self,
        name: str,
        reserve_seconds: int | None = None,
        *,
        if_not_exists: str = "fail",
        force: bool = False,
        timeout: float,
    ) -> TableInfo | None:
        self.cluster.called("drop_table", timeout)
        try:
            info = self.cluster.find(name)
        except TableNotFound:
            if if_not_exists == "ok":
                return None
            raise
        reserve = 604_800 if reserve_seconds is None else reserve_seconds
        return self._change(
            info,
            status=TableStatus.DROPPED,
            dropped_at=self.cluster.now,
            expires_at=self.cluster.now + reserve,
        )

    async def recall_table(
        self, table_id: int, new_name: str | None = None, *, timeout: float
    ) -> TableInfo:
        self.cluster.called("recall_table", timeout)
        info = self.cluster.tables.get(table_id)
        if info is None or info.status is not TableStatus.DROPPED:
            raise TableNotFound(f"no dropped table has the id {table_id}")
        return self._change(
            info,
            status=TableStatus.AVAILABLE,
            name=new_name or info.name,
            dropped_at=0,
            expires_at=0,
        )

    async def rename_table(self, old_name: str, new_name: str, *, timeout: float) -> TableInfo:
        self.cluster.called("rename_table", timeout)
        return self._change(self.cluster.find(old_name), name=new_name)

    async def get_envs(self, name: str, *, timeout: float) -> dict[str, str]:
        self.cluster.called("get_envs", timeout)
        return dict(self.cluster.find(name).envs)

    async def set_envs(self, name: str, envs: Mapping[str, str], *, timeout: float) -> ChangedTable:
        self.cluster.called("set_envs", timeout)
        self._check_envs(envs)
        info = self.cluster.find(name)
        warnings = ("os is not safe alone",) if envs.get("durability") == "os" else ()
        changed = self._change(info, envs={**info.envs, **envs})
        return dataclasses.replace(_changed(changed), warnings=warnings)

    async def delete_envs(self, name: str, names: list[str], *, timeout: float) -> TableInfo:
        self.cluster.called("delete_envs", timeout)
        info = self.cluster.find(name)
        return self._change(info, envs={k: v for k, v in info.envs.items() if k not in names})

    async def clear_envs(
        self, name: str, prefix: str | None = None, *, timeout: float
    ) -> TableInfo:
        self.cluster.called("clear_envs", timeout)
        info = self.cluster.find(name)
        left = {
            k: v for k, v in info.envs.items() if prefix is not None and not k.startswith(prefix)
        }
        return self._change(info, envs=left)

    async def nodes(self, *, timeout: float) -> list[NodeInfo]:
        self.cluster.called("nodes", timeout)
        return self.cluster.nodes

    async def cluster_info(self, *, timeout: float) -> dict[str, Any]:
        self.cluster.called("cluster_info", timeout)
        return {"cluster_name": "fake", "cluster_id": 1, **self.cluster.info}

    async def server_info(self, address: str | None = None, *, timeout: float) -> dict[str, Any]:
        self.cluster.called("server_info", timeout)
        return {"version": "0.1.0", "role": "standalone", "address": address or "fake:1"}

    async def get_meta_level(self, *, timeout: float) -> MetaLevel:
        self.cluster.called("get_meta_level", timeout)
        return MetaLevel(self.cluster.level, "what that means")

    async def set_meta_level(self, level: str, *, timeout: float) -> LevelChange:
        self.cluster.called("set_meta_level", timeout)
        before, self.cluster.level = self.cluster.level, level
        return LevelChange(before, level)

    async def get_replica_count(self, table: str, *, timeout: float) -> int:
        self.cluster.called("get_replica_count", timeout)
        return self.cluster.find(table).replica_count

    async def set_replica_count(self, table: str, count: int, *, timeout: float) -> ChangedTable:
        self.cluster.called("set_replica_count", timeout)
        changed = _changed(self._change(self.cluster.find(table), replica_count=count))
        return dataclasses.replace(changed, warnings=("only 1 node is alive",))

    async def balance(
        self, gpid: str, kind: str, from_node: str, to_node: str, *, timeout: float
    ) -> str:
        self.cluster.called("balance", timeout)
        self.cluster.proposals.append((gpid, kind, from_node, to_node))
        return f"partition {gpid}: the lead goes from node node-1 to node {to_node}"

    async def propose(
        self, gpid: str, kind: str, node: str, *, accept_loss: bool = False, timeout: float
    ) -> str:
        self.cluster.called("propose", timeout)
        if kind == "assign_primary" and not accept_loss:
            raise InvalidArgument(
                "node node-1 could lead by force only", hint="with --accept-loss node node-1 leads"
            )
        self.cluster.proposals.append((gpid, kind, node, accept_loss))
        return f"node node-1 leads partition {gpid} with what it has"

    async def diagnose(self, table: str | None = None, *, timeout: float) -> list[DeadPartition]:
        self.cluster.called("diagnose", timeout)
        wanted = None if table is None else self.cluster.find(table).table_id
        return [d for d in self.cluster.dead if wanted in (None, d.gpid.table_id)]

    def _change(self, info: TableInfo, **fields: Any) -> TableInfo:
        changed = replace(info, **fields)
        self.cluster.tables[info.table_id] = changed
        return changed

    def _check_envs(self, envs: Mapping[str, str]) -> None:
        for name in envs:
            if name not in KNOWN_ENVS:
                raise InvalidArgument(f"no env is called {name}")
