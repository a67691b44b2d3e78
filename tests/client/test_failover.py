"""What a call meets when servers die, pause, restart or hand over: all in virtual time."""

import asyncio
from typing import Any

import pytest

from pegaskv.base.errors import (
    Busy,
    InvalidArgument,
    NotReady,
    NotServing,
    PartitionClosed,
    Timeout,
    Unavailable,
)
from pegaskv.client import Client, Table
from pegaskv.client.connection import SILENT_MS
from pegaskv.codec.operations import Operation
from pegaskv.net.network import Network
from tests.client.fake_cluster import FakeCluster, in_cluster
from tests.client.fake_server import Fault, begin


class CountingNetwork:
    """Counts the connections that are tried."""

    def __init__(self, network: Network) -> None:
        self.attempts = 0
        self.listen = network.listen
        self._network = network

    async def connect(self, *arguments: Any) -> Any:
        self.attempts += 1
        return await self._network.connect(*arguments)


class Writers:
    """Tasks that write one key after another to what server 0 led, and what became of that."""

    def __init__(self, cluster: FakeCluster, table: Table, count: int = 10) -> None:
        self.cluster = cluster
        self.written_at_ms: list[int] = []
        self.unknown: list[bytes] = []
        self.unknown_at_ms: list[int] = []
        self.refused: list[bytes] = []
        self._table = table
        self._stopping = False
        self._tasks = [begin(self._write(number)) for number in range(count)]

    async def _write(self, number: int) -> None:
        key = self.cluster.key(0, number)
        step = 0
        while not self._stopping:
            step += 1
            name = b"%d" % step
            try:
                await self._table.set(key, name, "v")
            except (Timeout, Unavailable) as error:
                (self.unknown if error.maybe_applied else self.refused).append(name)
                if error.maybe_applied:
                    self.unknown_at_ms.append(self.cluster.world.now_ms)
            else:
                self.written_at_ms.append(self.cluster.world.now_ms)
            await self.cluster.world.sleep_ms(5)

    async def stop(self) -> None:
        self._stopping = True
        for task in self._tasks:
            await task

    def gap_ms(self) -> int:
        """The longest time without a write."""
        pairs = zip(self.written_at_ms, self.written_at_ms[1:], strict=False)
        return max(after - before for before, after in pairs)


def test_writes_wait_for_the_new_primary_of_one_that_was_killed() -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        writers = Writers(cluster, table)
        await cluster.world.sleep_ms(200)
        cluster.machines[0].crash(power=False)
        await cluster.world.sleep_ms(3_000)
        cluster.move(0, 1)
        await cluster.world.sleep_ms(2_000)
        await writers.stop()
        # Each task had one write on its way, and none that began later failed.
        assert len(writers.unknown) <= 10
        assert not writers.refused
        assert 2_900 < writers.gap_ms() < 3_000 + 500

    in_cluster(play)


@pytest.mark.parametrize("limit_ms", [5_000, 60_000])
def test_writes_go_on_soon_after_a_paused_primary_was_replaced(limit_ms: int) -> None:
    """Also those whose deadline is far: a write on its way is given up when it cannot succeed."""

    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        writers = Writers(cluster, table)
        await cluster.world.sleep_ms(200)
        cluster.machines[0].stall()
        await cluster.world.sleep_ms(5_500)
        cluster.move(0, 1)
        moved_ms = cluster.world.now_ms
        await cluster.world.sleep_ms(5_000)
        await writers.stop()
        assert max(writers.unknown_at_ms) < moved_ms + 600
        assert 1 <= len(writers.unknown) <= 10
        assert not writers.refused
        assert writers.gap_ms() < 6_100

    in_cluster(play, limit_ms=limit_ms)


def test_a_read_that_a_silent_primary_owes_is_answered_by_its_successor() -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        key = cluster.key(0)
        cluster.machines[0].stall()
        began_ms = cluster.world.now_ms
        reads = [
            begin(table.get(key, "s")),
            begin(table.batch_get([(key, "s")])),
            begin(table.multi_get(key)),
            begin(table.scan(key).next_page()),
            begin(table.ttl(key, "s")),
        ]
        await cluster.world.sleep_ms(1_500)
        assert not any(read.done() for read in reads)
        cluster.move(0, 2)
        answers = [await read for read in reads]
        assert answers[:3] == [b"v", [b"v"], {b"s": b"v"}]
        assert cluster.world.now_ms - began_ms < 1_500 + 600
        # What is asked meanwhile takes no second: it never goes to the silent one.
        began_ms = cluster.world.now_ms
        assert await table.get(key, "s") == b"v"
        assert cluster.world.now_ms - began_ms < 100

    in_cluster(play)


@pytest.mark.parametrize("pause_ms", [800, 1_500, 4_000])
def test_a_short_pause_fails_no_call(pause_ms: int) -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        key = cluster.key(0)
        cluster.machines[0].stall()
        calls: list[Any] = [begin(table.incr(key, "n")), begin(table.get(key, "s"))]
        await cluster.world.sleep_ms(pause_ms // 2)
        calls += [begin(table.incr(key, "n")), begin(table.batch_set([(key, "b", "w")]))]
        await cluster.world.sleep_ms(pause_ms // 2)
        cluster.machines[0].resume()
        for call in calls:
            await call
        # Each write was made once.
        assert await table.get(key, "n") == b"2"
        assert cluster.servers[0].accepted == 1

    in_cluster(play)


def test_what_is_not_sent_to_a_silent_server_is_known_not_to_be_applied() -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        key = cluster.key(0)
        cluster.machines[0].stall()
        first = begin(table.set(key, "a", "v", timeout=4.0))
        await cluster.world.sleep_ms(SILENT_MS + 200)
        with pytest.raises(Timeout, match="nothing was heard of it for") as held:
            await table.set(key, "b", "v", timeout=2.0)
        assert not held.value.maybe_applied
        with pytest.raises(Timeout) as sent:
            await first
        assert sent.value.maybe_applied
        cluster.machines[0].resume()
        await cluster.world.sleep_ms(100)
        assert [row[5] for row in cluster.servers[0].requests if row[1] == Operation.SET][
            -1
        ] != b"b"

    in_cluster(play)


def test_retry_unknown_takes_a_write_from_a_silent_server_to_its_successor() -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        key = cluster.key(0)
        cluster.machines[0].stall()
        writing = begin(table.set(key, "a", "w", retry_unknown=True))
        await cluster.world.sleep_ms(1_200)
        cluster.move(0, 1)
        await writing
        assert await table.get(key, "a") == b"w"

    in_cluster(play)


def test_a_slow_server_is_not_a_silent_one() -> None:
    """An answer that takes long on a connection that is alive: nothing is sent twice."""

    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        server = cluster.servers[0]
        for operation in (Operation.GET, Operation.SET):
            server.faults.append(Fault(operation, "hold"))
        before = len(server.seen(Operation.GET))
        calls: list[Any] = [begin(table.get(cluster.key(0), "s"))]
        calls.append(begin(table.set(cluster.key(0), "s", "w")))
        await cluster.world.sleep_ms(3_500)
        assert server.seen(Operation.PING)
        server.release()
        for call in calls:
            await call
        assert len(server.seen(Operation.GET)) == before + 1

    in_cluster(play)


def test_a_thousand_calls_that_fail_at_once_are_no_storm() -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        key = cluster.key(0)
        before = cluster.routing_questions
        cluster.machines[0].crash(power=False)
        network = CountingNetwork(cluster.life.network)
        table._calls.pool.network = network
        calls = [begin(table.get(key, "s")) for _ in range(1_000)]
        await cluster.world.sleep_ms(4_000)
        cluster.move(0, 1)
        for call in calls:
            assert await call == b"v"
        # Four a second, and the first few.
        assert 10 < cluster.routing_questions - before < 40
        assert 10 < network.attempts < 100

    in_cluster(play)


def test_impatient_callers_do_not_ask_for_the_routing_more_often() -> None:
    """Each call has hardly any time, so each is the first attempt of another one."""

    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        before = cluster.routing_questions
        cluster.move(0, None)
        cluster.servers[0].faults.append(Fault(Operation.GET, NotServing("gone"), times=100_000))
        failed = 0

        async def ask() -> None:
            nonlocal failed
            while cluster.world.now_ms < ends_ms:
                with pytest.raises((Timeout, Unavailable)):
                    await table.get(cluster.key(0), "s", timeout=0.03)
                failed += 1

        ends_ms = cluster.world.now_ms + 3_000
        for each in [begin(ask()) for _ in range(10)]:
            await each
        assert failed > 500
        assert 5 < cluster.routing_questions - before < 40

    in_cluster(play)


def test_no_data_call_needs_a_meta_server_while_the_members_are_well() -> None:
    """Dead or paused for a minute: connections break and tables reopen meanwhile."""

    async def play(cluster: FakeCluster, client: Client, table: Table) -> None:
        cluster.meta_machine.stall()
        rounds = 0
        while rounds < 30:
            if rounds == 15:
                cluster.meta_machine.crash(power=False)
            trouble = cluster.servers[rounds % 3]
            if rounds % 5 == 0:
                trouble.hang_up()
                await cluster.world.sleep_ms(100)
            else:
                error = [NotReady("opening"), Busy("full")][rounds % 2]
                trouble.faults.append(Fault(Operation.SET, error, times=2))
            for number in range(3):
                await table.set(cluster.key(number), "s", b"%d" % rounds)
                assert await table.get(cluster.key(number), "s") == b"%d" % rounds
            assert await client.table("t") is table
            assert await table.count() == 3
            assert len([row async for row in table.full_scan()]) == 3
            await cluster.world.sleep_ms(2_000)
            rounds += 1

    in_cluster(play)


def test_a_call_that_timed_out_does_not_stop_others_while_no_meta_server_answers() -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        cluster.meta_machine.stall()
        cluster.servers[0].faults.append(Fault(Operation.GET, "lose"))
        with pytest.raises(Timeout):
            await table.get(cluster.key(0), "s", timeout=0.3)
        began_ms = cluster.world.now_ms
        for number in range(3):
            assert await table.get(cluster.key(number), "s") == b"v"
        assert cluster.world.now_ms - began_ms < 1_500

    in_cluster(play)


def test_a_paused_meta_server_is_passed_over() -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        # Any server of the fake answers for the meta server too.
        metas = f"{cluster.meta.address},{cluster.servers[2].address}"
        client = await cluster.client(metas=metas)
        opened = await client.table("t")
        cluster.meta_machine.stall()
        took_ms = []
        for number in range(2):
            cluster.move(number, number + 1)
            began_ms = cluster.world.now_ms
            assert await opened.get(cluster.key(0), "s") == b"v"
            took_ms.append(cluster.world.now_ms - began_ms)
        # Half of a second once; then the one that answered is asked first.
        assert took_ms[0] < 700
        assert took_ms[1] < 100
        began_ms = cluster.world.now_ms
        assert (await client.admin.table_info("t")).table.name == "t"
        assert cluster.world.now_ms - began_ms < 100
        await client.close()

    in_cluster(play)


def test_servers_that_restart_in_turn_fail_no_call() -> None:
    """Each hands over, says goodbye, answers what is on its way, and is closed by the client."""

    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        counts = {"calls": 0}
        stopping = asyncio.Event()

        async def work(number: int) -> None:
            key = cluster.key(number % 3, number)
            while not stopping.is_set():
                await table.incr(key, "n")
                assert await table.get(key, "n") is not None
                assert len(await table.batch_get([(cluster.key(n), "s") for n in range(3)])) == 3
                counts["calls"] += 3

        tasks = [begin(work(number)) for number in range(12)]
        for number in range(3):
            await cluster.world.sleep_ms(50)
            server = cluster.servers[number]
            cluster.move(number, (number + 1) % 3)
            server.say_goodbye()
            await cluster.world.until(lambda: not server.connections, limit_ms=1_000)  # noqa: B023
            await server.stop()
            cluster.machines[number].crash(power=False)
            await cluster.world.sleep_ms(50)
            await cluster.restart(number)
            cluster.move((number + 1) % 3, number)
        stopping.set()
        for task in tasks:
            await task
        assert counts["calls"] > 300

    in_cluster(play)


@pytest.mark.parametrize("pause", [False, True])
def test_scans_and_counts_go_on_at_the_new_primary(pause: bool) -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        rows = [(b"%d" % i, b"s", b"v") for i in range(200)]
        await table.batch_set(rows)
        cluster.store.page_rows = 5
        keys = []
        counting: Any = None
        async for row in table.full_scan():
            keys.append((row.hash_key, row.sort_key))
            if len(keys) == 20:
                counting = begin(table.count())
                cluster.machines[0].stall() if pause else cluster.machines[0].crash(power=False)
                cluster.world.loop.call_later(2.0, lambda: cluster.move(0, 1))
        assert len(keys) == len(set(keys)) == 203
        assert await counting == 203
        assert len(await table.batch_get([row[:2] for row in rows])) == 200

    in_cluster(play)


def test_a_batch_reaches_the_living_although_one_server_is_silent() -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        await table.get(cluster.key(0), "s")
        cluster.machines[0].stall()
        reading = begin(table.get(cluster.key(0), "s"))
        await cluster.world.sleep_ms(1_200)
        rows = [(b"%d" % i, b"s", b"v") for i in range(100)]
        with pytest.raises((Timeout, Unavailable)) as caught:
            await table.batch_set(rows, timeout=1.0)
        assert not caught.value.maybe_applied
        cluster.machines[0].resume()
        await reading
        found = await table.batch_get([row[:2] for row in rows])
        lost = sum(value is None for value in found)
        assert lost == sum(table.partition_of(row[0]) % 3 == 0 for row in rows)
        assert f"batch_set: {lost} of 100 rows" in str(caught.value)

    in_cluster(play)


def test_reads_of_any_member_go_on_without_a_primary_and_are_never_writes() -> None:
    async def play(cluster: FakeCluster, client: Client, table: Table) -> None:
        for index in range(16):
            others = [(index + 1) % 3, (index + 2) % 3]
            cluster.table.secondaries[index] = [cluster.servers[n].address for n in others]
        stale = await client.table("t", read_from="any")
        assert stale is not table
        assert await client.table("t", read_from="any") is stale
        key = cluster.key(0)
        for _ in range(60):
            assert await stale.get(key, "s") == b"v"
            assert await stale.multi_get(key) == {b"s": b"v"}
        assert all(server.seen(Operation.GET) for server in cluster.servers)
        await stale.set(key, "s", "w")
        assert cluster.servers[0].seen(Operation.SET)[-1][1] < 16
        cluster.machines[0].crash(power=False)
        cluster.move(0, None)
        for _ in range(20):
            assert await stale.get(key, "s", timeout=0.8) == b"w"
        with pytest.raises(Unavailable):
            await stale.set(key, "s", "x", timeout=0.3)
        with pytest.raises(InvalidArgument):
            await client.table("t", read_from="secondary")  # type: ignore[arg-type]

    in_cluster(play)


@pytest.mark.parametrize("seed", range(8))
def test_a_client_whose_own_loop_stalls_thinks_nobody_silent(seed: int) -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        server = cluster.servers[0]
        before = len(server.seen(Operation.GET))
        reading = cluster.life.task(table.get(cluster.key(0), "s"))
        await cluster.world.sleep_ms(0)
        cluster.client_machine.stall()
        await cluster.world.sleep_ms(3_000)
        cluster.client_machine.resume()
        assert await reading == b"v"
        assert len(server.seen(Operation.GET)) == before + 1

    in_cluster(play, seed=seed)


def test_who_keeps_a_partition_closed_is_left_for_the_one_that_leads_it_by_now() -> None:
    """It lost power, and has not heard that a member took its place."""

    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        closed = PartitionClosed("it may lack what it acknowledged")
        for operation in (Operation.SET, Operation.GET, Operation.SCAN):
            cluster.servers[0].faults.append(Fault(operation, closed, times=1_000))
        key, others = cluster.key(0), [(cluster.key(0, number), "s") for number in range(5)]
        # As long as it is the one that should lead, its word is final; all that ask share one look.
        asked = cluster.routing_questions
        for _ in range(3):
            await cluster.world.sleep_ms(10)
            with pytest.raises(PartitionClosed):
                await table.set(key, "s", "v")
        await cluster.world.sleep_ms(10)
        assert cluster.routing_questions == asked + 3
        reads = [begin(table.get(*other)) for other in others]
        for read in reads:
            with pytest.raises(PartitionClosed):
                await read
        assert cluster.routing_questions == asked + 4
        cluster.move(0, 1)
        began_ms = cluster.world.now_ms
        await table.set(key, "s", "w")
        assert await table.get(key, "s") == b"w"
        assert (await table.scan(key).next_page())[0]
        assert cluster.world.now_ms - began_ms < 1_000

    in_cluster(play)


def test_a_partition_that_is_closed_everywhere_is_said_to_be_closed() -> None:
    async def play(cluster: FakeCluster, _: Client, table: Table) -> None:
        for server in cluster.servers:
            server.faults.append(Fault(Operation.GET, PartitionClosed("lost"), times=1_000))
        cluster.move(0, 1)
        asked = len(cluster.servers[0].seen(Operation.GET))
        with pytest.raises(PartitionClosed, match="lost"):
            await table.get(cluster.key(0), "s")
        assert len(cluster.servers[0].seen(Operation.GET)) == asked + 1

    in_cluster(play)
