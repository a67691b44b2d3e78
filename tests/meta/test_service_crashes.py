"""The meta service dies at every I/O of its store, and comes back with all that it answered."""

from typing import Any

import pytest

from pegaskv.base.errors import RequestError, TableExists
from pegaskv.codec.operations import Operation
from pegaskv.meta.options import MetaOptions
from tests.meta.service_world import Node, Process
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.world import Life, World

OPTIONS = MetaOptions(collect_interval_ms=500)

# Each with what must be so once it was answered.
SCRIPT: list[tuple[Operation, list[Any]]] = [
    (Operation.CREATE_TABLE, ["users", 4, 0, {}, "same"]),
    (Operation.CREATE_TABLE, ["large", 128, 0, {"default_ttl": "60"}, "same"]),
    (Operation.SET_ENVS, ["users", {"durability": "os"}]),
    (Operation.RENAME_TABLE, ["users", "people"]),
    (Operation.DROP_TABLE, ["people", -1, "ok"]),
    (Operation.CREATE_TABLE, ["users", 2, 0, {}, "same"]),
    (Operation.RECALL_TABLE, [1, None]),
    (Operation.DROP_TABLE, ["large", 0, "ok"]),
]


def holds(answered: int, tables: dict[int, dict[str, Any]]) -> None:
    """Check what the first `answered` requests have promised, later ones undone or done."""
    done = [answered > step for step in range(len(SCRIPT))]
    if done[0]:
        assert tables[1]["partition_count"] == 4
        assert tables[1]["name"] in {"users", "people"}
    if done[1] and not done[6]:
        assert tables[2]["envs"] == {"default_ttl": "60"}
    if done[2]:
        assert tables[1]["envs"] == {"durability": "os"}
    if done[3]:
        assert tables[1]["name"] == "people"
    if done[4] and not done[5]:
        assert tables[1]["status"] == "dropped"
    if done[5]:
        assert (tables[3]["name"], tables[3]["partition_count"]) == ("users", 2)
    if done[6]:
        assert tables[1]["status"] == "available"
    if done[7]:
        assert 2 not in tables or tables[2]["status"] == "dropped"


class Run:
    """One world: a life that ends at a planned I/O, and another that looks at what is left."""

    def __init__(self) -> None:
        self.node = Node()
        self.answered = 0
        # I/Os of the whole life, and of its start.
        self.ios = 0
        self.start_ios = 0
        self.uuid = ""
        self.finished = False

    async def first(self, life: Life) -> None:
        process = Process(life, self.node, OPTIONS)
        await process.start()
        self.start_ios = life.disk.ios
        self.uuid = process.service.cluster_uuid
        for operation, fields in SCRIPT:
            await process.client.ask(operation, *fields)
            self.answered += 1
        await life.clock.sleep_ms(2_000)
        await process.stop()
        self.ios = life.disk.ios
        self.finished = True

    async def second(self, life: Life) -> None:
        process = Process(life, self.node, OPTIONS)
        await process.start()
        # What is half made is finished without anybody asking for it.
        await life.clock.sleep_ms(5_000)
        [rows] = await process.client.ask(Operation.LIST_TABLES, True)
        tables = {row["table_id"]: row for row in rows}
        assert len(tables) == len(rows)
        holds(self.answered, tables)
        if self.uuid:
            assert process.service.cluster_uuid == self.uuid
        server = self.node.server
        assert server.closed == set()
        for table_id, table in tables.items():
            assert table["status"] != "creating"
            opened = {gpid for gpid in server.open if gpid.table_id == table_id}
            wanted = table["partition_count"] if table["status"] == "available" else 0
            assert len(opened) == wanted, f"table {table}"
        assert {gpid.table_id for gpid in server.replicas} <= set(tables)
        created = await process.client.create("after")
        assert created["table_id"] not in tables
        await process.stop()
        self.finished = True


def play(seed: int, io: int | None, fault: Fault, *, power: bool) -> Run:
    run = Run()

    async def main(world: World) -> None:
        node = world.node("server")
        assert isinstance(node.disk, SimulatedDisk)
        if io is not None:
            node.disk.plan(io, fault)
        life = node.start(run.first)
        await world.until(
            lambda: not life.alive or bool(life.disk.dead), limit_ms=600_000, what="the end"
        )
        if io is None:
            return
        assert not run.finished
        node.crash(power=power)
        life = node.start(run.second)
        await world.until(lambda: not life.alive, limit_ms=600_000, what="the second life")

    with World(seed, disk=SimulatedDisk) as world:
        world.run(main(world), limit_ms=3_600_000)
    return run


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("power", [True, False])
@pytest.mark.parametrize("fault", [Fault.KILL_BEFORE, Fault.KILL_TORN, Fault.KILL_AFTER])
def test_a_crash_at_every_io_leaves_what_was_answered_and_finishes_the_rest(
    fault: Fault, power: bool, stride: int
) -> None:
    total = play(0, None, fault, power=power).ios
    assert total > 60
    answered = set()
    # Where not all places are taken, each case takes others; seeds vary the disk and the order.
    begin = 2 * [Fault.KILL_BEFORE, Fault.KILL_TORN, Fault.KILL_AFTER].index(fault) + power
    for io in range(begin % stride, total - 2, stride):
        run = play(io, io, fault, power=power)
        assert run.finished, f"I/O {io}"
        answered.add(run.answered)
    assert len(answered) > len(SCRIPT) // 2, "most requests were never interrupted"


class Operator:
    """Asks for the whole script, looks at the answers, and tries again."""

    def __init__(self) -> None:
        self.node = Node()
        self.errors: list[RequestError] = []
        self.finished = False

    async def main(self, life: Life) -> None:
        process = Process(life, self.node, OPTIONS)
        await process.start()
        for operation, fields in SCRIPT:
            for _ in range(20):
                if await self.done(process, operation, fields):
                    break
                await life.clock.sleep_ms(1_000)
        await life.clock.sleep_ms(5_000)
        found = await process.client.tables(with_dropped=True)
        assert set(found) == {"users", "people"}
        assert len(self.node.server.open) == 6
        await process.stop()
        self.finished = True

    async def done(self, process: Process, operation: Operation, fields: list[Any]) -> bool:
        try:
            await process.client.ask(operation, *fields)
        except RequestError as error:
            self.errors.append(error)
            # What could not be known may be done, and then is refused the second time.
            if operation is Operation.RENAME_TABLE:
                return "people" in await process.client.tables()
            return operation is Operation.RECALL_TABLE and isinstance(error, TableExists)
        return True


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.FULL, Fault.TEAR])
def test_an_error_at_every_io_is_survived_in_the_same_process(fault: Fault) -> None:
    whole = play(0, None, fault, power=False)
    failed = 0
    begin = whole.start_ios + [Fault.FAIL, Fault.FULL, Fault.TEAR].index(fault)
    for io in range(begin, whole.ios - 2, 5):
        operator = Operator()

        async def main(world: World, io: int = io, operator: Operator = operator) -> None:
            machine = world.node("server")
            assert isinstance(machine.disk, SimulatedDisk)
            machine.disk.plan(io, fault)
            await machine.start(operator.main).ended

        with World(io, disk=SimulatedDisk) as world:
            world.run(main(world), limit_ms=3_600_000)
        assert operator.finished, f"I/O {io}"
        failed += bool(operator.errors)
    assert failed > 5
