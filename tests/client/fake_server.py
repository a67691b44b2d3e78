"""A server in memory that speaks the real protocol, and misbehaves on demand.

It knows enough of the semantics to answer every operation of the client, keeps every
message that it received, and does what `faults` says to the next requests of a kind.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from pegaskv.base.errors import InvalidArgument, NotReady, NotServing, RequestError, TableExists
from pegaskv.base.errors import TableNotFound as NotFound
from pegaskv.base.hashing import partition_index
from pegaskv.codec.frames import FrameSplitter, encode_frame
from pegaskv.codec.keys import encode_key
from pegaskv.codec.operations import ANY_MEMBER, Operation, RangeFlag, ScanFlag
from pegaskv.net.network import Listener, Network

__all__ = ["FakeServer", "FakeStore", "FakeTable", "Fault", "begin"]

T = TypeVar("T")


def begin(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a call that the test waits for later."""
    return asyncio.get_running_loop().create_task(coroutine)


LIMITS = {"requests_in_flight_max": 1_024, "bytes_in_flight_max": 16 * 1024 * 1024}


@dataclass
class FakeTable:
    """Rows by stored key: (value, seconds left or 0)."""

    table_id: int
    name: str
    partition_count: int
    envs: dict[str, str] = field(default_factory=dict)
    rows: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    version: int = 1
    dropped: bool = False
    # Primaries by index; "" is the address that was asked.
    primaries: dict[int, str | None] = field(default_factory=dict)
    secondaries: dict[int, list[str]] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        return {
            "table_id": self.table_id,
            "name": self.name,
            "status": "dropped" if self.dropped else "available",
            "partition_count": self.partition_count,
            "replica_count": 1,
            "envs": self.envs,
            "created_at": 1,
            "dropped_at": int(self.dropped),
            "expires_at": 0,
            "version": self.version,
            "follower": False,
        }


@dataclass
class Fault:
    """What happens to the next request of `operation`.

    `action` is "lose" (not applied, no reply), "drop" (applied, no reply), "close_before",
    "close_after", "hold" (answered by `release`), an error, or a function from the request's
    id to the raw reply or to raw bytes.
    """

    operation: Operation
    action: str | RequestError | Callable[[int], Any]
    times: int = 1


class FakeStore:
    """The tables, which several servers may share."""

    def __init__(self) -> None:
        self.tables: dict[str, FakeTable] = {}
        self.dropped: dict[int, FakeTable] = {}
        self.next_id = 1
        self.page_rows = 1_000
        self.level = "lively"
        self.nodes: list[Any] = [["node-1", "", "alive", {}]]
        self.add("t", 4)

    def add(self, name: str, partition_count: int) -> FakeTable:
        table = FakeTable(self.next_id, name, partition_count)
        self.next_id += 1
        self.tables[name] = table
        return table

    def by_id(self, table_id: int, index: int) -> FakeTable:
        for table in self.tables.values():
            if table.table_id == table_id and 0 <= index < table.partition_count:
                return table
        raise NotFound(f"no table {table_id}")


class FakeServer:
    """Listens on a network; `requests` has every message but hello."""

    def __init__(self, network: Network, store: FakeStore | None = None) -> None:
        self.network = network
        self.store = store or FakeStore()
        self.requests: list[list[Any]] = []
        self.frames: list[int] = []
        self.faults: list[Fault] = []
        self.hello: Callable[[int], Any] | None = None
        self.connections: list[_Connection] = []
        self.accepted = 0
        self.held: list[Callable[[], None]] = []
        self._listener: Listener | None = None
        self.address = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> "FakeServer":
        self._listener = await self.network.listen(lambda: _Connection(self), host, port)
        self.address = "{}:{}".format(*self._listener.address)
        return self

    async def stop(self) -> None:
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection."""
        for connection in list(self.connections):
            connection.transport.abort()

    def say_goodbye(self) -> None:
        """Ask all clients to go elsewhere, as a server does that is about to stop."""
        leaving = [0, NotReady.code, "the server is stopping", "", None]
        for connection in list(self.connections):
            connection.transport.write(encode_frame([leaving]))

    def release(self) -> None:
        """Answer what was held."""
        held, self.held = self.held, []
        for answer in held:
            answer()

    def seen(self, operation: Operation) -> list[list[Any]]:
        """All requests of one kind, without id and time limit."""
        return [message[3:] for message in self.requests if message[1] == operation]

    def take_fault(self, operation: int) -> Fault | None:
        for fault in self.faults:
            if fault.operation == operation:
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                return fault
        return None

    def answer(self, message: list[Any]) -> list[Any]:
        """Apply a request; return the reply."""
        try:
            handler = getattr(self, "on_" + Operation(message[1]).name.lower())
            return [message[0], 0, *handler(*message[3:])]
        except RequestError as error:
            return [message[0], error.code, error.message, error.hint, error.details]

    # Rows.

    def _table(self, table_id: int, index: int, hash_key: bytes, sort_key: bytes) -> FakeTable:
        stale, index = bool(index & ANY_MEMBER), index & ~ANY_MEMBER
        table = self.store.by_id(table_id, index)
        if stale and self.address in table.secondaries.get(index, []):
            return table
        if partition_index(hash_key, sort_key, table.partition_count) != index:
            raise NotServing("another partition's row")
        if table.primaries.get(index, "") not in ("", self.address):
            raise NotServing("moved")
        return table

    def on_ping(self) -> tuple[Any, ...]:
        return (1,)

    def on_get(self, table_id: int, index: int, hash_key: bytes, sort_key: bytes) -> Any:
        table = self._table(table_id, index, hash_key, sort_key)
        return (table.rows.get(encode_key(hash_key, sort_key), (None, 0))[0],)

    def on_ttl(self, table_id: int, index: int, hash_key: bytes, sort_key: bytes) -> Any:
        table = self._table(table_id, index, hash_key, sort_key)
        row = table.rows.get(encode_key(hash_key, sort_key))
        return (-2 if row is None else row[1] or -1,)

    def on_set(
        self, table_id: int, index: int, hash_key: bytes, sort_key: bytes, value: bytes, ttl: int
    ) -> Any:
        table = self._table(table_id, index, hash_key, sort_key)
        table.rows[encode_key(hash_key, sort_key)] = (value, ttl)
        return (1,)

    def on_delete(self, table_id: int, index: int, hash_key: bytes, sort_key: bytes) -> Any:
        table = self._table(table_id, index, hash_key, sort_key)
        table.rows.pop(encode_key(hash_key, sort_key), None)
        return (1,)

    def on_incr(
        self, table_id: int, index: int, hash_key: bytes, sort_key: bytes, by: int, ttl: int
    ) -> Any:
        table = self._table(table_id, index, hash_key, sort_key)
        key = encode_key(hash_key, sort_key)
        value, expiry = table.rows.get(key, (b"0", 0))
        new = int(value or b"0") + by
        table.rows[key] = (b"%d" % new, expiry if ttl == 0 else max(0, ttl))
        return (1, new)

    def on_multi_set(
        self, table_id: int, index: int, hash_key: bytes, flat: list[bytes], ttl: int
    ) -> Any:
        table = self._table(table_id, index, hash_key, b"")
        for sort_key, value in zip(flat[::2], flat[1::2], strict=True):
            table.rows[encode_key(hash_key, sort_key)] = (value, ttl)
        return (1,)

    def on_multi_delete(
        self, table_id: int, index: int, hash_key: bytes, sort_keys: list[bytes]
    ) -> Any:
        table = self._table(table_id, index, hash_key, b"")
        for sort_key in sort_keys:
            table.rows.pop(encode_key(hash_key, sort_key), None)
        return (1, len(sort_keys))

    def on_multi_get(
        self,
        table_id: int,
        index: int,
        hash_key: bytes,
        sort_keys: list[bytes] | None,
        start: bytes,
        stop: bytes,
        flags: int,
        kind: int,
        pattern: bytes,
        rows_max: int,
        bytes_max: int,
    ) -> Any:
        table = self._table(table_id, index, hash_key, b"")
        prefix = encode_key(hash_key, b"")
        keys = sorted(key[len(prefix) :] for key in table.rows if key.startswith(prefix))
        if sort_keys is not None:
            keys = sorted(sort_keys)
        else:
            keys = [key for key in keys if key > start or (flags & 1 and key == start)]
            keys = [key for key in keys if not stop or key < stop or (flags & 2 and key == stop)]
        if flags & RangeFlag.REVERSE and sort_keys is None:
            keys.reverse()
        found: list[tuple[bytes, bytes]] = []
        size = 0
        last = None
        complete = True
        for number, key in enumerate(keys):
            row = table.rows.get(prefix + key)
            if row is not None and _matches(kind, pattern, key):
                full = (rows_max and len(found) >= rows_max) or (bytes_max and size >= bytes_max)
                if full or number >= self.store.page_rows:
                    complete = False
                    break
                found.append((key, b"" if flags & RangeFlag.NO_VALUE else row[0]))
                size += len(key) + len(found[-1][1])
            elif number >= self.store.page_rows:
                complete = False
                break
            last = key
        found.sort()
        return complete, [part for pair in found for part in pair], None if complete else last

    def on_check_and_set(
        self,
        table_id: int,
        index: int,
        hash_key: bytes,
        check_key: bytes,
        check: int,
        operand: bytes,
        set_key: bytes | None,
        value: bytes,
        ttl: int,
        with_value: bool,
    ) -> Any:
        mutations = [[1, check_key if set_key is None else set_key, value, ttl]]
        return self.on_check_and_mutate(
            table_id, index, hash_key, check_key, check, operand, mutations, with_value
        )

    def on_check_and_mutate(
        self,
        table_id: int,
        index: int,
        hash_key: bytes,
        check_key: bytes,
        check: int,
        operand: bytes,
        mutations: list[list[Any]],
        with_value: bool,
    ) -> Any:
        table = self._table(table_id, index, hash_key, b"")
        row = table.rows.get(encode_key(hash_key, check_key))
        passed = {
            0: True,
            1: row is None,
            3: row is not None,
            10: row is not None and row[0] == operand,
        }[check]
        if passed:
            for mutation in mutations:
                key = encode_key(hash_key, mutation[1])
                table.rows.pop(key, None)
                if mutation[0] == 1:
                    table.rows[key] = (mutation[2], mutation[3])
        seen = (row is not None, row[0] if row else None) if with_value else (None, None)
        return (1, passed, *seen)

    def on_batch_get(self, table_id: int, index: int, flat: list[bytes]) -> Any:
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return ([self.on_get(table_id, index, *pair)[0] for pair in pairs],)

    def on_batch_set(self, table_id: int, index: int, flat: list[bytes], ttl: int) -> Any:
        for row in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
            self.on_set(table_id, index, *row, ttl)
        return (1,)

    def on_batch_delete(self, table_id: int, index: int, flat: list[bytes]) -> Any:
        for pair in zip(flat[::2], flat[1::2], strict=True):
            self.on_delete(table_id, index, *pair)
        return (1,)

    def on_scan(
        self, table_id: int, index: int, start: bytes, stop: bytes, flags: int, *rest: Any
    ) -> Any:
        table = self.store.by_id(table_id, index)
        if table.primaries.get(index, "") not in ("", self.address):
            raise NotServing("moved")
        hash_kind, hash_pattern, sort_kind, sort_pattern, value_kind, value_pattern = rest[:6]
        rows_max = min(rest[6], self.store.page_rows)
        flat: list[Any] = []
        count = 0
        looked_at = 0
        for key in sorted(table.rows):
            end = 2 + int.from_bytes(key[:2], "big")
            hash_key, sort_key = key[2:end], key[end:]
            if partition_index(hash_key, sort_key, table.partition_count) != index:
                continue
            if key < start or (stop and key >= stop):
                continue
            # As the real one: a page ends by work done, so it may be short or empty.
            if looked_at >= rows_max:
                return key, count, flat
            looked_at += 1
            value, expiry = table.rows[key]
            if (
                _matches(hash_kind, hash_pattern, hash_key)
                and _matches(sort_kind, sort_pattern, sort_key)
                and _matches(value_kind, value_pattern, value)
            ):
                count += 1
                if flags & ScanFlag.COUNT_ONLY:
                    continue
                flat += (key, b"" if flags & ScanFlag.NO_VALUE else value)
                if flags & ScanFlag.RETURN_EXPIRY:
                    flat.append(expiry)
        return None, count, flat

    # Tables.

    def _named(self, name: str) -> FakeTable:
        if name not in self.store.tables:
            raise NotFound(f"there is no table {name}")
        return self.store.tables[name]

    def on_query_config(self, name: str) -> Any:
        table = self._named(name)
        return (
            table.table_id,
            table.partition_count,
            table.version,
            [
                [i, 1, table.primaries.get(i, ""), table.secondaries.get(i, [])]
                for i in range(table.partition_count)
            ],
        )

    def on_create_table(
        self, name: str, count: int, replicas: int, envs: dict[str, str], if_exists: str
    ) -> Any:
        if name in self.store.tables:
            if if_exists == "same":
                return self.store.tables[name].to_wire(), False
            raise TableExists(f"there is a table {name}")
        table = self.store.add(name, count)
        table.envs = envs
        return table.to_wire(), True

    def on_drop_table(self, name: str, reserve: int, if_not_exists: str) -> Any:
        if name not in self.store.tables and if_not_exists == "ok":
            return (None,)
        table = self._named(name)
        del self.store.tables[name]
        table.dropped = True
        self.store.dropped[table.table_id] = table
        return (table.to_wire(),)

    def on_recall_table(self, table_id: int, new_name: str | None) -> Any:
        table = self.store.dropped.pop(table_id)
        table.dropped = False
        table.name = new_name or table.name
        self.store.tables[table.name] = table
        return (table.to_wire(),)

    def on_rename_table(self, old: str, new: str) -> Any:
        table = self._named(old)
        del self.store.tables[old]
        table.name = new
        self.store.tables[new] = table
        return (table.to_wire(),)

    def on_list_tables(self, with_dropped: bool) -> Any:
        tables = [
            *self.store.tables.values(),
            *(self.store.dropped.values() if with_dropped else ()),
        ]
        return ([table.to_wire() for table in tables],)

    def on_table_info(self, name: str) -> Any:
        table = self._named(name)
        partitions = [[i, 1, "", [], {}] for i in range(table.partition_count)]
        return table.to_wire(), partitions

    def on_set_envs(self, name: str, envs: dict[str, str]) -> Any:
        if "wrong" in envs:
            raise InvalidArgument("`wrong` is no environment")
        self._named(name).envs.update(envs)
        return (self._named(name).to_wire(),)

    def on_delete_envs(self, name: str, names: list[str]) -> Any:
        for each in names:
            self._named(name).envs.pop(each, None)
        return (self._named(name).to_wire(),)

    def on_clear_envs(self, name: str, prefix: str | None) -> Any:
        table = self._named(name)
        table.envs = {k: v for k, v in table.envs.items() if prefix and not k.startswith(prefix)}
        return (table.to_wire(),)

    def on_list_nodes(self) -> Any:
        return (self.store.nodes,)

    def on_get_meta_level(self) -> Any:
        return self.store.level, "everything"

    def on_set_meta_level(self, level: str) -> Any:
        before, self.store.level = self.store.level, level
        return before, level

    def on_set_replica_count(self, name: str, count: int) -> Any:
        return {**self._named(name).to_wire(), "replica_count": count}, ["few nodes"]

    def on_balance(self, *_: Any) -> Any:
        return ("the move was begun",)

    def on_propose_change(self, *_: Any) -> Any:
        return ("the change was stored",)

    def on_diagnose(self, table: str | None) -> Any:
        return ([[1, 2, {"reason": "all are dead"}]],)

    def on_cluster_info(self) -> Any:
        return ({"name": "fake"},)

    def on_server_info(self) -> Any:
        return ({"address": self.address},)


class _Connection(asyncio.Protocol):
    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.splitter = FrameSplitter()
        self.greeted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.connections.append(self)
        self.server.accepted += 1

    def connection_lost(self, error: BaseException | None) -> None:
        self.server.connections.remove(self)

    def data_received(self, data: bytes) -> None:
        out: list[Any] = []
        for messages in self.splitter.feed(data):
            if self.greeted:
                self.server.frames.append(len(messages))
            for message in messages:
                self._take(message, out)
        if out and not self.transport.is_closing():
            self.transport.write(encode_frame(out))

    def _take(self, message: list[Any], out: list[Any]) -> None:
        server = self.server
        if message[1] == Operation.HELLO:
            self.greeted = True
            if server.hello is not None:
                self._raw(server.hello(message[0]), out)
            else:
                out.append([message[0], 0, 1, "fake", "fake", 1, "u", "n", [], [], LIMITS])
            return
        server.requests.append(message)
        fault = server.take_fault(message[1])
        match fault and fault.action:
            case None:
                out.append(server.answer(message))
            case RequestError() as error:
                out.append([message[0], error.code, error.message, error.hint, error.details])
            case "lose":
                pass
            case "drop":
                server.answer(message)
            case "close_before":
                self.transport.abort()
            case "close_after":
                server.answer(message)
                self.transport.abort()
            case "hold":
                server.held.append(lambda: self._late(server.answer(message)))
            case function:
                assert callable(function)
                self._raw(function(message[0]), out)

    def _raw(self, reply: Any, out: list[Any]) -> None:
        if isinstance(reply, bytes):
            self.transport.write(reply)
        elif reply is None:
            self.transport.abort()
        else:
            out.append(reply)

    def _late(self, reply: list[Any]) -> None:
        if not self.transport.is_closing():
            self.transport.write(encode_frame([reply]))


def _matches(kind: int, pattern: bytes, data: bytes) -> bool:
    match kind if pattern else 0:
        case 1:
            return pattern in data
        case 2:
            return data.startswith(pattern)
        case 3:
            return data.endswith(pattern)
        case 4:
            return data == pattern
    return True
