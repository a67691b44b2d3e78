"""Ways to other servers: messages leave in order and together, and each is answered once."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pegaskv.base.errors import InvalidArgument, InvalidData, Timeout, Unavailable, UnknownOperation
from pegaskv.base.limits import (
    CLIENT_FRAME_BYTES_MAX,
    FRAME_MESSAGES_MAX,
    PEER_FRAME_BYTES,
    SERVER_FRAME_BYTES_MAX,
)
from pegaskv.codec.operations import Operation
from pegaskv.net.acceptor import Acceptor
from pegaskv.net.connection import ServerConnection
from pegaskv.net.hello import ServerIdentity
from pegaskv.net.peer import Peer, PeerConnections
from pegaskv.runtime.tasks import TaskScope
from tests.net.connection_support import Server as RecordedServer
from tests.net.connection_support import hello, turn
from tests.simulation.network import NetworkOptions
from tests.simulation.world import Life, Node, World

NEAR = NetworkOptions(latency_us=(100, 200), jitter_us=50)
PORT = 34_801
ECHO, NEVER, REFUSE, COUNT = 90, 91, 92, 93


class Listening:
    """A server of the simulation with a few handlers."""

    def __init__(self, node: Node, node_id: str, *, cluster_id: int = 5, uuid: str = "c1") -> None:
        self.node = node
        self.node_id = node_id
        self.identity = ServerIdentity("here", cluster_id, uuid, node_id)
        self.seen: list[list[Any]] = []
        self.frames: list[int] = []

    @property
    def address(self) -> str:
        return f"{self.node.address}:{PORT}"

    def start(self) -> None:
        self.node.start(self._serve)

    async def _serve(self, life: Life) -> None:
        acceptor = Acceptor(
            {ECHO: self._echo, NEVER: self._never, REFUSE: self._refuse, COUNT: self._count},
            identity=self.identity,
            clock=life.clock,
        )
        received = ServerConnection.data_received

        class Counted(ServerConnection):
            __slots__ = ()

            def data_received(counted, data: bytes) -> None:
                before = len(self.seen)
                received(counted, data)
                if len(self.seen) > before:
                    self.frames.append(len(self.seen) - before)

        await life.network.listen(
            lambda: Counted(acceptor, acceptor._handlers), life.node.address, PORT
        )
        await acceptor.run()

    def _echo(self, connection: ServerConnection, message: list[Any]) -> None:
        self.seen.append(message)
        connection.out.append((message[0], 0, *message[3:]))

    def _count(self, connection: ServerConnection, message: list[Any]) -> None:
        self.seen.append(message)
        connection.out.append((message[0], 0, len(message[3])))

    def _never(self, connection: ServerConnection, message: list[Any]) -> None:
        self.seen.append(message)
        connection.defer()

    def _refuse(self, connection: ServerConnection, message: list[Any]) -> None:
        raise InvalidArgument("not this", hint="that", details={"a": 1})


class Asking:
    """The server that connects to others."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.life = world.node("asking").spawn()
        self.scope = TaskScope("test")
        self.told: list[tuple[str, bool]] = []
        self.peers = PeerConnections(
            network=self.life.network,
            clock=self.life.clock,
            scope=self.scope,
            random=self.life.random("peers"),
            cluster_id=5,
        )
        self.peers.on_connected(
            lambda node_id: self.told.append((node_id, self.peers.peer(node_id).connected))
        )

    def peer(self, server: Listening) -> Peer:
        self.peers.set_addresses({server.node_id: server.address})
        return self.peers.peer(server.node_id)

    async def connected(self, server: Listening) -> Peer:
        peer = self.peer(server)
        await self.world.until(lambda: peer.connected, limit_ms=5_000)
        return peer


def near(seed: int = 1) -> World:
    return World(seed, network=NEAR)


Main = Callable[[World, Asking, Listening], Coroutine[Any, Any, None]]


def run(main: Main, *, seed: int = 1, started: bool = True) -> None:
    """Run `main` with one server that listens, unless it should not be `started`."""
    with near(seed) as world:
        server = Listening(world.node("other"), "n1")
        if started:
            server.start()
        asking = Asking(world)

        async def whole() -> None:
            try:
                # As a task of the node, so that its sockets are its own.
                await asking.life.task(main(world, asking, server))
            finally:
                await asking.scope.close()

        world.run(whole())


Replies = list[list[Any] | None]


def test_messages_of_one_turn_leave_as_one_frame_in_their_order() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        replies: Replies = []
        for number in range(100):
            assert peer.submit((ECHO, 0, number), replies.append)
        assert not replies
        await world.until(lambda: len(replies) == 100)
        assert [message[3] for message in server.seen] == list(range(100))
        assert [reply[1:] for reply in replies if reply is not None] == [
            [0, number] for number in range(100)
        ]
        assert server.frames == [100]

    run(main)


def test_who_knows_that_a_turn_brings_no_more_sends_at_once() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        def sent() -> float:
            values = {one.name: one.samples[0][1] for one in asking.peers.metrics()}
            return values["pegaskv_peers_sent_bytes_total"]

        peer = await asking.connected(server)
        replies: Replies = []
        before = sent()
        assert peer.submit((ECHO, 0, 1), replies.append)
        assert sent() == before
        peer.flush()
        once = sent()
        assert once > before
        # And not a second time when the turn ends.
        await world.until(lambda: len(replies) == 1)
        assert sent() == once
        assert [message[3] for message in server.seen] == [1]

    run(main)


def test_a_turn_that_has_too_much_for_a_frame_sends_several() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        replies: Replies = []
        for number in range(2 * FRAME_MESSAGES_MAX + 1):
            peer.submit((ECHO, 0, number), replies.append)
        large = bytes(PEER_FRAME_BYTES // 2)
        for _ in range(5):
            peer.submit((COUNT, 0, large), replies.append, len(large))
        await world.until(lambda: len(replies) == 2 * FRAME_MESSAGES_MAX + 6)
        assert [reply[2] for reply in replies if reply] == [
            *range(2 * FRAME_MESSAGES_MAX + 1),
            *[len(large)] * 5,
        ]

    run(main)


def test_nothing_is_sent_before_there_is_a_connection() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        replies: Replies = []
        unknown = asking.peers.peer("n1")
        assert not unknown.submit((ECHO, 0), replies.append)
        assert not unknown.connected
        peer = await asking.connected(server)
        assert peer is unknown
        assert asking.peers.addresses(["n1", "n2"]) == {"n1": server.address}
        assert peer.submit((ECHO, 0), replies.append)
        await world.until(lambda: len(replies) == 1)
        assert asking.told == [("n1", True)]

    run(main)


def test_whoever_waits_when_the_connection_ends_is_told_once_and_before_the_callback() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        told: list[Any] = []
        asking.peers.on_connected(lambda node_id: told.append((node_id, peer.connected)))
        for _ in range(3):
            peer.submit((NEVER, 0), told.append)
        await world.until(lambda: len(server.seen) == 3)
        server.node.crash(power=False)
        await world.until(lambda: len(told) == 4)
        assert told == [None, None, None, ("n1", False)]
        assert not peer.submit((ECHO, 0), told.append)
        server.start()
        await world.until(lambda: peer.connected)
        assert told[4:] == [("n1", True)]

    run(main)


def test_closing_calls_nobody_back_in_the_same_turn() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        replies: Replies = []
        peer.submit((NEVER, 0), replies.append)
        peer.close("a test")
        assert not peer.connected
        assert replies == []
        await world.until(lambda: replies == [None])

    run(main)


def test_a_server_that_comes_back_is_connected_to_within_a_second() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        for away_ms in (100, 10_000):
            server.node.crash(power=False)
            await world.until(lambda: not peer.connected)
            await world.sleep_ms(away_ms)
            server.start()
            await world.until(lambda: peer.connected, limit_ms=1_100)
        assert peer.made == 3

    run(main)


def test_a_connection_that_breaks_alone_is_made_again_at_once() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        await world.sleep_ms(2_000)
        assert world.network.reset(asking.life.node.address, server.node.address) == 1
        await world.until(lambda: peer.made == 2, limit_ms=10)
        assert asking.told == [("n1", True), ("n1", False), ("n1", True)]

    run(main)


def test_a_peer_that_falls_silent_is_given_up_after_five_seconds() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        replies: Replies = []
        world.network.cut(asking.life.node.address, server.node.address)
        peer.submit((ECHO, 0), replies.append)
        before_ms = world.now_ms
        await world.until(lambda: replies == [None], limit_ms=6_000)
        assert world.now_ms - before_ms > 4_000
        world.network.heal_all()
        await world.until(lambda: peer.connected, limit_ms=5_000)

    run(main)


def test_a_peer_with_nothing_to_say_is_kept() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        await world.sleep_ms(60_000)
        assert peer.connected
        assert peer.made == 1

    run(main)


def test_a_stall_of_our_own_is_no_silence_of_the_peer() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        replies: Replies = []

        async def stalled() -> None:
            await world.sleep_ms(100)
            asking.life.node.stall()
            await world.sleep_ms(60_000)
            asking.life.node.resume()

        peer.submit((ECHO, 0), replies.append)
        stall = world.node("watcher").spawn().task(stalled())
        await stall
        await world.sleep_ms(3_000)
        assert peer.made == 1
        assert peer.connected

    run(main)


def test_another_node_at_the_address_is_no_peer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def main(world: World, asking: Asking, server: Listening) -> None:
        asking.peers.set_addresses({"n2": server.address})
        peer = asking.peers.peer("n2")
        await world.sleep_ms(20_000)
        assert not peer.connected
        assert "is node n1" in peer.trouble
        # It moved, and is found there.
        moved = Listening(world.node("moved"), "n2")
        moved.start()
        await asking.connected(moved)

    run(main)
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "is node n1" in line]) == 1


@pytest.mark.parametrize(("cluster_id", "uuid"), [(6, "c1"), (5, "c2")])
def test_a_server_of_another_cluster_is_no_peer(cluster_id: int, uuid: str) -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        asking.peers.cluster_uuid = "c1"
        other = Listening(world.node("far"), "n9", cluster_id=cluster_id, uuid=uuid)
        other.start()
        peer = asking.peer(other)
        await world.until(lambda: "cluster" in peer.trouble)
        await world.sleep_ms(3_000)
        assert not peer.connected
        with pytest.raises(Unavailable, match="cluster"):
            await peer.request(ECHO, 1_000)

    run(main)


def test_a_request_returns_its_fields_or_raises_what_was_answered() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        # It waits for the connection that is being made.
        peer = asking.peer(server)
        assert await peer.request(ECHO, 1_000, "a", 1) == ["a", 1]
        with pytest.raises(InvalidArgument, match="not this") as caught:
            await peer.request(REFUSE, 1_000)
        assert caught.value.hint == "that"
        assert caught.value.details == {"a": 1}

    run(main)


def test_a_request_without_an_answer_ends_in_time_and_says_that_it_may_have_been_done() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        before_ms = world.now_ms
        with pytest.raises(Timeout, match=r"n1 .*no answer within 0\.3 s") as late:
            await peer.request(NEVER, 300)
        assert late.value.maybe_applied
        assert 290 <= world.now_ms - before_ms < 400
        waiting = asking.life.task(peer.request(NEVER, 60_000))
        await world.until(lambda: len(server.seen) == 2)
        server.node.crash(power=False)
        with pytest.raises(Unavailable, match="n1") as lost:
            await waiting
        assert lost.value.maybe_applied

    run(main)


def test_a_request_to_nobody_fails_when_the_attempt_does() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        with pytest.raises(Unavailable, match="address is not known") as unknown:
            await asking.peers.peer("n1").request(ECHO, 60_000)
        assert not unknown.value.maybe_applied
        before_ms = world.now_ms
        with pytest.raises(Unavailable, match="nothing listens there") as absent:
            await asking.peers.at(server.address).request(ECHO, 60_000)
        assert not absent.value.maybe_applied
        assert world.now_ms - before_ms < 5_000

    run(main, started=False)


def test_a_server_of_which_only_the_address_is_known_says_who_it_is() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = asking.peers.at(server.address)
        assert asking.peers.at(server.address) is peer
        assert await peer.request(ECHO, 1_000, 1) == [1]
        assert peer.greeting is not None
        assert peer.greeting.node_id == "n1"
        assert peer.greeting.cluster_uuid == "c1"
        assert peer.own_host == asking.life.node.address
        peer.close("a test")
        assert peer.own_host == ""

    run(main)


def test_one_large_message_passes_between_servers_and_one_too_large_is_answered_here() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        size = CLIENT_FRAME_BYTES_MAX + 1
        assert await peer.request(COUNT, 5_000, bytes(size)) == [size]
        with pytest.raises(InvalidData, match="a frame has"):
            await peer.request(COUNT, 5_000, bytes(SERVER_FRAME_BYTES_MAX))
        assert peer.connected
        assert peer.made == 1

    run(main)


def test_a_message_that_cannot_be_packed_ends_the_connection_and_nobody_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        replies: Replies = []
        peer.submit((ECHO, 0, object()), replies.append)
        await world.until(lambda: replies == [None], limit_ms=100)
        await world.until(lambda: peer.made == 2)

    run(main)
    assert "could not be packed" in caplog.text


def test_a_peer_that_was_released_is_left_alone() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        asking.peers.release("n1")
        await world.until(lambda: not peer.connected)
        await world.sleep_ms(5_000)
        assert peer.made == 1
        again = await asking.connected(server)
        assert again is not peer
        asking.peers.close()
        await world.until(lambda: not again.connected)
        stopping = asking.peers.peer("n7")
        with pytest.raises(Unavailable, match="stopping"):
            await stopping.request(ECHO, 1_000)

    run(main)


def test_what_connections_carried_is_counted_also_after_their_end() -> None:
    async def main(world: World, asking: Asking, server: Listening) -> None:
        peer = await asking.connected(server)
        await peer.request(COUNT, 1_000, bytes(1_000))
        peer.close("a test")
        await world.until(lambda: peer.made == 2)
        values = {one.name: one.samples[0][1] for one in asking.peers.metrics()}
        assert values["pegaskv_peers"] == values["pegaskv_peers_connected"] == 1
        assert values["pegaskv_peers_connections_made_total"] == 2
        assert 1_000 < values["pegaskv_peers_sent_bytes_total"] < 2_000
        assert 0 < values["pegaskv_peers_received_bytes_total"] < 2_000

    run(main)


# The side that accepts.


def server_hello() -> list[Any]:
    return [*hello()[:7], ["server", "colour"], []]


async def test_only_a_server_may_send_the_frames_of_servers() -> None:
    server = RecordedServer(connection_in_flight_bytes_max=64 * 1024)
    other, client = server.connect(), server.greeted()
    other.send([server_hello()])
    (reply,) = other.replies()
    assert reply[8] == ["server"]
    body = [[2, 91, 0, bytes(CLIENT_FRAME_BYTES_MAX)]]
    other.send(body)
    client.send(body)
    await turn()
    assert not other.refused
    assert other.transport.reading, "a server may have more under way than a client"
    assert client.refused
    assert len(server.waiting) == 1
    server.answer()
    await turn()
    assert server.acceptor.bytes_in_flight == 0


async def test_what_servers_say_to_each_other_is_unknown_to_clients() -> None:
    handled: list[int] = []

    def handle(connection: ServerConnection, message: list[Any]) -> None:
        handled.append(message[0])
        connection.out.append((message[0], 0))

    server = RecordedServer({Operation.PREPARE: handle, Operation.OBEY: handle})
    other, client = server.connect(), server.greeted()
    other.send([server_hello()])
    other.replies()
    for peer in (other, client):
        peer.send([[2, Operation.PREPARE, 0], [3, Operation.OBEY, 0]])
    assert [reply[:2] for reply in other.replies()] == [[2, 0], [3, 0]]
    assert [reply[1] for reply in client.replies()] == [UnknownOperation.code] * 2
    assert handled == [2, 3]


async def test_a_server_may_name_more_values_in_one_frame_than_a_client() -> None:
    server = RecordedServer()
    other, client = server.connect(), server.greeted()
    other.send([server_hello()])
    body = [[2, 90, 0, *[[0] * 15_000 for _ in range(20)]]]
    other.send(body)
    client.send(body)
    assert not other.refused
    assert client.refused


async def test_the_account_of_the_process_holds_for_servers_too() -> None:
    server = RecordedServer(bytes_in_flight_max=1024 * 1024)
    other = server.connect()
    other.send([server_hello()])
    other.send([[2, 91, 0, bytes(2 * 1024 * 1024)]])
    assert not other.transport.reading
    server.answer()
    await turn()
    assert other.transport.reading
