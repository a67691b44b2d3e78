import asyncio
import errno
from dataclasses import replace
from typing import cast

import pytest

from tests.net.network_contract import Recorder
from tests.simulation.errors import NodeDead
from tests.simulation.network import NetworkOptions
from tests.simulation.world import Life, Node, World

SEEDS = range(15)
NEAR = NetworkOptions(latency_us=(100, 200), jitter_us=50)


def near(seed: int = 1, **changes: object) -> World:
    return World(seed, network=replace(NEAR, **changes))


class Pair:
    """A server and a client node with one connection between them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.server, self.client = world.node("server"), world.node("client")
        self.accepted: list[Recorder] = []
        self.port = 0

    async def open(self) -> tuple[Recorder, Recorder]:
        """The client's protocol and the server's."""
        if not self.server.alive:
            self.server.spawn()
        if not self.client.alive:
            self.client.spawn()
        listener = await life_of(self.server).network.listen(self._accept, "0.0.0.0", 0)
        self.port = listener.address[1]
        recorder = await self.connect()
        await self.world.until(lambda: bool(self.accepted) and "made" in self.accepted[0].calls)
        return recorder, self.accepted[0]

    async def connect(self) -> Recorder:
        network = life_of(self.client).network
        _, protocol = await network.connect(Recorder, self.server.address, self.port)
        return cast(Recorder, protocol)

    def _accept(self) -> Recorder:
        self.accepted.append(Recorder())
        return self.accepted[-1]


def life_of(node: Node) -> Life:
    assert node.life is not None
    return node.life


def write(recorder: Recorder, data: bytes) -> None:
    assert recorder.transport is not None
    recorder.transport.write(data)


def test_a_message_takes_the_latency_of_its_direction() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        there = world.network.link(pair.client.address, pair.server.address)
        back = world.network.link(pair.server.address, pair.client.address)
        there.latency_us, back.latency_us = 300_000, 1_000
        before = world.now_ms
        write(client, b"ping")
        await accepted.until(lambda: bool(accepted.data))
        assert 300 <= world.now_ms - before <= 302
        before = world.now_ms
        write(accepted, b"pong")
        await client.until(lambda: bool(client.data))
        assert 1 <= world.now_ms - before <= 3

    with near() as world:
        world.run(main(world))


def test_messages_follow_one_another_without_waiting_for_answers() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        world.network.link(pair.client.address, pair.server.address).latency_us = 100_000
        before = world.now_ms
        for _ in range(50):
            write(client, b"x" * 100)
            await world.sleep_ms(1)
        await accepted.until(lambda: len(accepted.data) == 5_000)
        assert world.now_ms - before < 200

    with near() as world:
        world.run(main(world))


def test_a_slow_link_takes_time_for_each_byte() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        world.network.link(pair.client.address, pair.server.address).bytes_per_s = 10_000
        before = world.now_ms
        write(client, bytes(20_000))
        await accepted.until(lambda: len(accepted.data) == 20_000)
        assert 2_000 <= world.now_ms - before <= 2_010

    with near() as world:
        world.run(main(world))


def test_what_is_held_is_overtaken_by_a_new_connection_and_outlives_its_sender() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        here, there = pair.client.address, pair.server.address
        world.network.hold(here, there)
        write(client, b"held")
        write(accepted, b"the other way")
        await client.until(lambda: client.data == b"the other way")
        pair.client.crash(power=False)
        pair.client.spawn()
        write(await pair.connect(), b"new")
        await world.until(lambda: len(pair.accepted) == 2 and pair.accepted[1].data == b"new")
        await world.sleep_ms(10_000)
        assert accepted.calls == ["made"]
        assert accepted.data == b""
        world.network.release(here, there)
        await accepted.until(lambda: accepted.data == b"held")
        await accepted.until(lambda: "lost" in accepted.calls)

    for seed in SEEDS:
        with World(seed) as world:
            world.run(main(world))


@pytest.mark.parametrize("both", [True, False])
def test_a_cut_holds_bytes_back_until_it_heals(both: bool) -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        here, there = pair.client.address, pair.server.address
        world.network.cut(here, there, both=both)
        write(client, b"held back")
        write(accepted, b"the other way")
        await world.sleep_ms(30_000)
        assert accepted.data == b""
        assert client.data == (b"" if both else b"the other way")
        world.network.heal(here, there)
        await accepted.until(lambda: accepted.data == b"held back")
        await client.until(lambda: client.data == b"the other way")
        assert client.calls == accepted.calls == ["made"]

    for seed in SEEDS:
        with World(seed) as world:
            world.run(main(world))


def test_a_cut_that_lasts_ends_the_connection_of_who_sends() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        world.network.cut(pair.client.address, pair.server.address)
        write(client, b"nobody hears this")
        await client.has("lost")
        assert isinstance(client.error, TimeoutError)
        assert accepted.calls == ["made"], "a silent reader cannot know"
        world.network.heal_all()
        write(accepted, b"are you there?")
        await accepted.has("lost")
        assert isinstance(accepted.error, ConnectionResetError)
        assert not world.network.connections

    with near() as world:
        world.run(main(world))


def test_a_connect_through_a_cut_times_out_and_a_cancelled_one_leaves_nothing() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        world.network.isolate(pair.client.address)
        before = world.now_ms
        with pytest.raises(TimeoutError) as caught:
            await pair.connect()
        assert caught.value.errno == errno.ETIMEDOUT
        assert world.now_ms - before == pytest.approx(120_000, abs=10)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await pair.connect()
        world.network.heal_all()
        assert client.transport is not None
        client.transport.close()
        await accepted.has("lost")
        await client.has("lost")
        await world.sleep_ms(1_000)
        assert not world.network.connections

    with near() as world:
        world.run(main(world))


def test_a_cancelled_connect_may_still_be_accepted_and_then_ends() -> None:
    ghosts = 0

    async def main(world: World) -> int:
        pair = Pair(world)
        await pair.open()
        attempt = asyncio.create_task(pair.connect())  # noqa: TID251 - a caller who gives up
        await world.sleep_ms(0)
        attempt.cancel()
        await world.sleep_ms(1_000)
        assert attempt.cancelled()
        for recorder in pair.accepted[1:]:
            assert recorder.calls[-1] == "lost"
        return len(pair.accepted) - 1

    for seed in SEEDS:
        with near(seed) as world:
            ghosts += world.run(main(world))
    assert 0 < ghosts < len(SEEDS)


def test_unknown_hosts_and_silent_ports_are_told_apart() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        await pair.open()
        network = life_of(pair.client).network
        with pytest.raises(OSError, match=r"route|reach") as caught:
            await network.connect(Recorder, "10.9.9.9", 1)
        assert caught.value.errno == errno.EHOSTUNREACH
        with pytest.raises(ConnectionRefusedError):
            await network.connect(Recorder, pair.server.address, pair.port + 1)
        with pytest.raises(ConnectionRefusedError):
            await network.connect(Recorder, "127.0.0.1", pair.port)

    with near() as world:
        world.run(main(world))


def test_a_killed_process_ends_its_connections_and_frees_its_ports() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        old = life_of(pair.server)
        write(accepted, b"last words")
        pair.server.crash(power=False)
        with pytest.raises(NodeDead):
            write(accepted, b"never")
        await client.has("lost")
        assert client.data == b"last words"
        assert accepted.calls == ["made"], "the dead are told nothing"
        with pytest.raises(ConnectionRefusedError):
            await pair.connect()
        with pytest.raises(NodeDead):
            await old.network.connect(Recorder, pair.client.address, 1)
        listener = await pair.server.spawn().network.listen(Recorder, "0.0.0.0", pair.port)
        assert listener.address == (pair.server.address, pair.port)

    for seed in SEEDS:
        with World(seed) as world:
            world.run(main(world))


def test_a_machine_without_power_is_silent_and_resets_when_it_is_back() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, _ = await pair.open()
        pair.server.crash(power=True)
        write(client, b"hello?")
        await world.sleep_ms(10_000)
        assert client.calls == ["made"]
        pair.server.spawn()
        await client.has("lost")
        assert isinstance(client.error, ConnectionResetError)
        with pytest.raises(ConnectionRefusedError):
            await pair.connect()

    for seed in SEEDS:
        with World(seed) as world:
            world.run(main(world))


def test_what_the_process_had_not_handed_to_its_kernel_dies_with_it() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        assert accepted.transport is not None
        accepted.transport.pause_reading()
        write(client, bytes(1_000_000))
        assert client.transport is not None
        unsent = client.transport.get_write_buffer_size()
        assert unsent > 0
        pair.client.crash(power=False)
        accepted.transport.resume_reading()
        await accepted.has("lost")
        assert len(accepted.data) == 1_000_000 - unsent

    with near() as world:
        world.run(main(world))


def test_a_reset_is_seen_by_both_sides_and_may_cut_a_message_anywhere() -> None:
    sizes: set[int] = set()

    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        write(client, bytes(1_000))
        await client.has("lost")
        await accepted.has("lost")
        assert isinstance(client.error, ConnectionResetError)
        assert isinstance(accepted.error, ConnectionResetError)
        sizes.add(len(accepted.data))

    for seed in SEEDS:
        with near(seed, reset=1.0) as world:
            world.run(main(world))
    assert len(sizes) > 5
    assert max(sizes) <= 1_000


def test_resets_between_two_hosts_on_demand() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        assert world.network.reset(pair.server.address, pair.client.address) == 1
        await client.has("lost")
        await accepted.has("lost")
        assert world.network.reset(pair.server.address, pair.client.address) == 0

    with near() as world:
        world.run(main(world))


def test_a_paused_reader_learns_of_a_reset_when_it_writes() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        assert accepted.transport is not None
        assert client.transport is not None
        accepted.transport.pause_reading()
        client.transport.abort()
        await world.sleep_ms(1_000)
        assert accepted.calls == ["made"]
        write(accepted, b"anyone?")
        assert accepted.calls == ["made"], "connection_lost is never called inside write"
        await accepted.has("lost")

    with near() as world:
        world.run(main(world))


def test_closing_with_unread_bytes_resets_the_peer() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        assert accepted.transport is not None
        accepted.transport.pause_reading()
        write(client, b"unread")
        await world.sleep_ms(100)
        accepted.transport.close()
        await client.has("lost")
        assert isinstance(client.error, ConnectionResetError)

    with near() as world:
        world.run(main(world))


def test_calls_that_not_every_loop_allows_behind_connection_lost_are_refused() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, _ = await pair.open()
        assert client.transport is not None
        client.transport.close()
        await client.has("lost")
        await world.sleep_ms(1)
        for call in (
            lambda: write(client, b"x"),
            client.transport.abort,
            client.transport.set_write_buffer_limits,
        ):
            with pytest.raises(RuntimeError, match="behind connection_lost"):
                call()

    with near() as world:
        world.run(main(world))


def test_flipped_bits_change_bytes_and_nothing_else() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        write(client, bytes(1_000))
        await accepted.until(lambda: len(accepted.data) == 1_000)
        assert sum(byte.bit_count() for byte in accepted.data) == 1

    with near(flip=1.0) as world:
        world.run(main(world))


def test_pieces_are_cut_where_the_seed_says() -> None:
    pieces: set[int] = set()

    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        write(client, bytes(10_000))
        await accepted.until(lambda: len(accepted.data) == 10_000)
        pieces.add(accepted.pieces)

    for seed in SEEDS:
        with near(seed, split=0.9) as world:
            world.run(main(world))
    assert len(pieces) > 3


def test_writes_of_one_moment_may_arrive_as_one_piece() -> None:
    async def main(world: World) -> int:
        pair = Pair(world)
        client, accepted = await pair.open()
        for _ in range(10):
            write(client, b"x")
        await accepted.until(lambda: len(accepted.data) == 10)
        return accepted.pieces

    pieces = []
    for seed in SEEDS:
        with near(seed, split=0.0) as world:
            pieces.append(world.run(main(world)))
    assert min(pieces) < 10
    assert len(set(pieces)) > 1


class Faulty(asyncio.Protocol):
    """A protocol with a bug."""

    def data_received(self, data: bytes) -> None:
        raise ValueError("a bug")


def test_a_bug_in_a_protocol_ends_its_connection_and_is_a_problem_of_the_world() -> None:
    async def main(world: World) -> None:
        server, client = world.node("server").spawn(), world.node("client").spawn()
        listener = await server.network.listen(Faulty, "0.0.0.0", 0)
        _, protocol = await client.network.connect(Recorder, *listener.address)
        recorder = cast(Recorder, protocol)
        write(recorder, b"x")
        await recorder.has("lost")

    with near() as world, pytest.raises(AssertionError, match="ValueError\\('a bug'\\)"):
        world.run(main(world))


def test_a_stalled_process_is_still_connected_and_reads_later() -> None:
    async def main(world: World) -> None:
        pair = Pair(world)
        client, accepted = await pair.open()
        pair.server.stall()
        write(client, b"are you slow?")
        another = await pair.connect()
        await world.sleep_ms(20_000)
        assert accepted.data == b""
        assert another.calls == ["made"]
        assert len(pair.accepted) == 1
        pair.server.resume()
        await accepted.until(lambda: accepted.data == b"are you slow?")
        await world.until(lambda: len(pair.accepted) == 2)

    for seed in SEEDS:
        with World(seed) as world:
            world.run(main(world))
