"""A meta service on a simulated disk, in virtual time, with a client that asks and a fake node."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pegaskv.base.errors import RequestError, error_from_code
from pegaskv.base.types import Gpid
from pegaskv.codec.messages_meta import Order, TablePush
from pegaskv.codec.operations import Operation
from pegaskv.coordination.embedded import EmbeddedStore
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.service import MetaService
from pegaskv.runtime.tasks import TaskScope
from tests.meta.harness import ReplicaServer
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import Life, World

__all__ = ["META_PATH", "Client", "Node", "Process", "run_process"]

META_PATH = Path("/data/meta")


class Client:
    """A connection without a socket: answers are kept by id."""

    def __init__(self, service: MetaService) -> None:
        self.out: list[Any] = []
        self.in_flight = 0
        self._handlers = service.handlers()
        self._last_id = 0
        self._replies: dict[int, asyncio.Future[tuple[Any, ...]]] = {}

    def defer(self) -> None:
        self.in_flight += 1

    def finish(self, reply: tuple[Any, ...]) -> None:
        self.in_flight -= 1
        assert self.in_flight >= 0
        self.out.append(reply)

    def error(self, request_id: int, error: RequestError) -> tuple[Any, ...]:
        return (request_id, error.code, error.message, error.hint, error.details)

    def flush(self) -> None:
        for reply in self.out:
            self._replies.pop(reply[0]).set_result(reply)
        self.out.clear()

    async def ask(self, operation: Operation, *fields: Any) -> list[Any]:
        """Return the reply's fields, or raise its error."""
        self._last_id += 1
        message = [self._last_id, int(operation), 1_000, *fields]
        answered: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()
        self._replies[self._last_id] = answered
        try:
            # As a real connection does it: whatever is raised is that message's answer.
            self._handlers[operation](self, message)  # type: ignore[arg-type]
        except RequestError as error:
            self.out.append(self.error(self._last_id, error))
        self.flush()
        reply = await answered
        if reply[1] != 0:
            raise error_from_code(*reply[1:])
        return list(reply[2:])

    async def create(self, name: str, partitions: int = 4, **envs: str) -> dict[str, Any]:
        return (await self.ask(Operation.CREATE_TABLE, name, partitions, 0, envs, "fail"))[0]

    async def tables(self, *, with_dropped: bool = False) -> dict[str, dict[str, Any]]:
        [rows] = await self.ask(Operation.LIST_TABLES, with_dropped)
        return {row["name"]: row for row in rows}


class Node:
    """The fake replica server behind an awaitable door; its replicas outlive the process."""

    def __init__(self, node_id: str = "node-1") -> None:
        self.server = ReplicaServer(node_id)
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.states_gate: asyncio.Event | None = None
        self.failures = 0
        self.orders: list[Order] = []
        self.duplication_state: Callable[[Gpid, bytes], dict[str, Any]] = lambda gpid, uuid: {}

    async def configure(self, push: TablePush) -> None:
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            self.failures += 1
            raise self.error
        self.server.configure(push)

    async def obey(self, order: Order) -> str:
        self.orders.append(order)
        return "done"

    async def states(
        self, table_id: int
    ) -> list[tuple[Gpid, dict[str, Any], dict[bytes, dict[str, Any]]]]:
        await asyncio.sleep(0)
        if self.states_gate is not None:
            await self.states_gate.wait()
        return [
            (gpid, {"open": gpid in self.server.open}, self.shipping(gpid))
            for gpid in sorted(self.server.replicas)
            if table_id in (0, gpid.table_id)
        ]

    def shipping(self, gpid: Gpid) -> dict[bytes, dict[str, Any]]:
        push = self.server.orders.get(gpid.table_id)
        orders = () if push is None else push.duplications
        return {one.uuid: self.duplication_state(gpid, one.uuid) for one in orders}


class Process:
    """One life of a standalone server's meta half."""

    def __init__(self, life: Life, node: Node, options: MetaOptions) -> None:
        self.life = life
        self.node = node
        self.options = options
        self.crashes: list[BaseException] = []
        # Nodes beside the first.
        self.doors: dict[str, Node] = {}
        # What runs of duplications, at the partitions and at other clusters.
        self.live: dict[str, Any] = {}
        self.stalled: dict[int, float] = {}
        self.remote: dict[str, Any] = {}
        self.remote_work = 0

    async def start(self, *, report: bool = True) -> None:
        life = self.life
        worker = life.worker("meta store")
        self.store = await EmbeddedStore.open(
            life.disk, META_PATH, worker=worker, compact_bytes=2_000
        )
        self.scope = TaskScope("process", on_crash=self.crashes.append)
        self.service = MetaService(
            self.store,
            node_door=lambda node_id, address: self.doors.get(node_id, self.node),
            clock=life.clock,
            random=life.random("meta"),
            options=self.options,
            scope=self.scope,
            cluster_name="here",
            cluster_id=7,
            remote_state=lambda dupid, uuid: self.remote,
            on_remote_work=self.on_remote_work,
        )
        self.node.duplication_state = self.duplication_state
        await self.service.start()
        self.client = Client(self.service)
        self.node.server.restart()
        if report:
            await self.service.report(self.node.server.report(), watched=False)

    def duplication_state(self, gpid: Gpid, uuid: bytes) -> dict[str, Any]:
        since = self.stalled.get(gpid.partition_index)
        if since is None:
            return dict(self.live)
        text = f"partition {gpid.partition_index} waits"
        return {**self.live, "last_error": text, "stalled_since": since}

    def on_remote_work(self) -> None:
        self.remote_work += 1

    async def stop(self) -> None:
        await self.scope.close()
        await self.service.stop()
        await self.store.close()
        assert self.crashes == []


def run_process(
    test: Callable[[Process], Coroutine[Any, Any, None]],
    *,
    seed: int = 1,
    options: MetaOptions | None = None,
    report: bool = True,
) -> None:
    """Run `test` in one process that starts and stops cleanly."""

    async def main(life: Life) -> None:
        process = Process(life, Node(), options or MetaOptions())
        await process.start(report=report)
        await test(process)
        await process.stop()
        finished.append(True)

    async def wait(world: World) -> None:
        life = world.node("server").start(main)
        await life.ended

    finished: list[bool] = []
    with World(seed, disk=SimulatedDisk) as world:
        world.run(wait(world), limit_ms=3_600_000)
    assert finished
