"""Replies of one turn of the loop leave together; who calls alone is answered at once."""

from dataclasses import dataclass, field

import pytest

from pegaskv.codec.frames import encode_frame
from pegaskv.net.outgoing import Outgoing
from tests.net.connection_support import ECHO, LARGE, LATER, Peer, Server, hello, turn


@dataclass
class Replying:
    """A connection that says when it was flushed."""

    name: str
    log: list[str]
    out: list[object] = field(default_factory=lambda: [(1, 0)])
    out_bytes: int = 0

    def flush(self) -> None:
        self.log.append(self.name)

    def abort(self) -> None:
        self.log.append(f"{self.name} aborted")


def several(count: int, log: list[str]) -> list[Replying]:
    return [Replying(str(number), log) for number in range(count)]


async def test_those_of_a_turn_are_flushed_at_its_end_in_their_order() -> None:
    log: list[str] = []
    outgoing = Outgoing()
    for connection in several(3, log):
        outgoing.add(connection)
        assert outgoing.last is connection
    assert log == []
    await turn()
    assert log == ["0", "1", "2"]
    assert outgoing.waiting == []
    outgoing.add(Replying("again", log))
    await turn()
    assert log[3:] == ["again"]


async def test_only_so_many_wait_for_each_other() -> None:
    log: list[str] = []
    outgoing = Outgoing()
    connections = several(70, log)
    for connection in connections[:63]:
        outgoing.add(connection)
    assert log == []
    outgoing.add(connections[63])
    assert len(log) == 64
    for connection in connections[64:]:
        outgoing.add(connection)
    assert len(log) == 64
    await turn()
    assert log == [connection.name for connection in connections]


@pytest.mark.parametrize("replies", [1, 300])
async def test_only_so_many_bytes_wait(replies: int) -> None:
    log: list[str] = []
    outgoing = Outgoing()
    size = 64 * 1024 if replies == 1 else 0
    added = 0
    while not log:
        outgoing.add(Replying(str(added), log, out=[(1, 0)] * replies, out_bytes=size))
        added += 1
    assert len(log) == added == 4
    # The next ones have all of the room again.
    outgoing.add(Replying("next", log, out=[(1, 0)] * replies, out_bytes=size))
    assert len(log) == 4
    await turn()
    assert len(log) == 5


async def test_one_that_cannot_be_flushed_is_aborted_and_keeps_nobody_waiting() -> None:
    class Scarce(Replying):
        def flush(self) -> None:
            raise MemoryError

    log: list[str] = []
    outgoing = Outgoing()
    for connection in (Replying("1", log), Scarce("2", log), Replying("3", log)):
        outgoing.add(connection)
    await turn()
    assert log == ["1", "2 aborted", "3"]


async def test_who_has_ended_is_not_the_last_one_any_more() -> None:
    outgoing = Outgoing()
    first, second = several(2, [])
    outgoing.add(first)
    outgoing.forget(second)
    assert outgoing.last is first
    outgoing.forget(first)
    assert outgoing.last is None


# Of a server's connections.


def read(peer: Peer, *frames: list[list[object]]) -> None:
    """The loop reads what the peer sent; its turn goes on."""
    peer.connection.data_received(b"".join(map(encode_frame, frames)))


def echo(request_id: int, operation: int = ECHO, *fields: object) -> list[object]:
    return [request_id, operation, 1_000, *fields]


async def test_many_callers_are_written_to_one_after_the_other() -> None:
    server = Server()
    peers = [server.greeted() for _ in range(3)]
    for peer in peers:
        read(peer, [echo(2)])
    assert [peer.replies() for peer in peers] == [[], [], []]
    await turn()
    assert [peer.replies() for peer in peers] == [[[2, 0]]] * 3


async def test_who_calls_alone_is_answered_at_once() -> None:
    server = Server()
    peer, other = server.greeted(), server.greeted()
    read(peer, [echo(2)])
    await turn()
    writes = peer.transport.writes
    for request_id in range(3, 6):
        read(peer, [echo(request_id)])
        assert peer.replies()[-1] == [request_id, 0]
    assert peer.transport.writes == writes + 3
    # Until somebody else does; and again from the second call on.
    read(other, [echo(2)])
    read(peer, [echo(6)])
    assert other.replies() == peer.replies() == []
    read(peer, [echo(7)])
    assert peer.replies() == [[6, 0], [7, 0]]
    await turn()
    assert other.replies() == [[2, 0]]
    assert peer.replies() == []


def look_at(peer: Peer, bulk: Peer) -> tuple[int, list[int]]:
    """Return how often `peer` was written to, and where each request 99 of `bulk` notes that."""
    written: list[int] = []

    def look(connection: object, message: list[object]) -> None:
        written.append(peer.transport.writes)

    bulk.connection._handlers = {**bulk.connection._handlers, 99: look}
    return peer.transport.writes, written


async def test_small_replies_do_not_wait_for_what_takes_long() -> None:
    server = Server()
    peer, bulk = server.greeted(), server.greeted()
    before, written = look_at(peer, bulk)
    read(peer, [echo(2)])
    read(bulk, [[2, 99, 1_000]])
    assert written == [before]
    read(bulk, [[3, 99, 1_000, bytes(600)]])
    assert written == [before, before + 1]
    assert peer.replies() == [[2, 0]]


async def test_small_replies_do_not_wait_for_the_next_turn_of_a_large_read() -> None:
    server = Server()
    peer, bulk = server.greeted(), server.greeted()
    before, written = look_at(peer, bulk)
    # More than one turn takes.
    read(bulk, *([[number, 99, 1_000]] for number in range(1, 401)))
    assert len(written) == 256
    read(peer, [echo(2)])
    await turn()
    await turn()
    assert written == [before] * 256 + [before + 1] * 144
    assert peer.replies() == [[2, 0]]


async def test_replies_that_wait_are_written_before_a_close() -> None:
    server = Server()
    peers = [server.greeted() for _ in range(4)]
    for peer in peers:
        read(peer, [echo(2)])
    closed, drained, ended, aborted = peers
    closed.connection.close()
    assert closed.replies() == [[2, 0]]
    drained.connection.drain()
    assert drained.replies() == [[2, 0]]
    ended.transport.lose()
    aborted.connection.abort()
    await turn()
    assert ended.replies() == aborted.replies() == []
    server.acceptor.check()


async def test_a_reply_leaves_with_what_a_tick_answers_before_the_end_of_the_turn() -> None:
    server = Server()
    peer, other = server.greeted(), server.greeted()
    read(other, [echo(2)])
    read(peer, [echo(2, LATER), echo(3)])
    assert peer.replies() == []
    server.answer()
    assert peer.frames() == [[[3, 0], [2, 0]]]
    writes = peer.transport.writes
    await turn()
    assert peer.transport.writes == writes


async def test_one_message_in_a_small_frame_is_taken_as_any_other() -> None:
    """The short way of one small request and the long one of many tell the same."""
    told = []
    for apart in (False, True):
        server = Server(connection_requests_max=4)
        peer = server.greeted()
        for frame in (
            [echo(2)],
            [echo(3, LATER)],
            [echo(4, LARGE, 70_000)],
            [[5, 255, 1_000]],
            [[6, "text", 1_000]],
            [echo(7, LATER), echo(8)],
            [echo(9, LATER)],
        ):
            data = encode_frame(frame)
            if apart:
                # In two reads no frame is small and whole.
                read_bytes(peer, data[:5])
                data = data[5:]
            read_bytes(peer, data)
        await turn()
        server.answer()
        told.append((peer.replies(), server.handled, peer.connection.requests))
    assert told[0] == told[1]
    assert [reply[0] for reply in told[0][0]] == [2, 4, 5, 6, 8, 3, 7, 9]
    assert told[0][2] == 8


def read_bytes(peer: Peer, data: bytes) -> None:
    peer.connection.data_received(data)
    peer.server.acceptor.check()


async def test_a_good_small_frame_is_nothing_before_hello() -> None:
    server = Server()
    peer = server.connect()
    read(peer, [echo(2)])
    assert server.handled == []
    assert peer.refused
    late = server.connect()
    read(late, [hello()], [echo(2)])
    await turn()
    assert [reply[:2] for reply in late.replies()] == [[1, 0], [2, 0]]


async def test_requests_under_way_are_bounded_on_the_short_way_too() -> None:
    server = Server(connection_requests_max=3)
    peer = server.greeted()
    for request_id in range(2, 9):
        read(peer, [echo(request_id, LATER)])
    assert len(server.handled) == 3
    assert not peer.transport.reading
    while server.waiting:
        server.answer(1)
        await turn()
    assert server.handled == [*range(2, 9)]
    assert peer.transport.reading


def bulk(request_id: int, size: int) -> list[object]:
    return [request_id, ECHO, 1_000, bytes(size)]


@pytest.mark.parametrize("size", [1, 20_000])
async def test_a_small_request_does_not_pass_what_came_before_it(size: int) -> None:
    server = Server(connection_unsent_pause_bytes=10_000)
    peer = server.greeted(reads=False)
    read(peer, [bulk(2, 20_000)])
    # It does not read its replies: what comes is kept.
    read(peer, [bulk(3, size)])
    read(peer, [echo(4)])
    assert server.handled == [2]
    peer.transport.take()
    # Reading goes on in the next turn; before that comes one more.
    read(peer, [echo(5)])
    assert server.handled == [2]
    for _ in range(8):
        await turn()
        peer.transport.take()
    assert server.handled == [2, 3, 4, 5]


async def test_requests_of_a_small_frame_that_have_to_wait_are_charged() -> None:
    server = Server(connection_unsent_pause_bytes=10_000)
    peer = server.greeted(reads=False)
    read(peer, [echo(number, LARGE, 70_000) for number in range(2, 5)])
    assert server.handled == [2]
    assert peer.connection.held_bytes > 0
    server.acceptor.check()
    for _ in range(8):
        peer.transport.take()
        await turn()
    assert server.handled == [2, 3, 4]
    assert peer.connection.held_bytes == 0


async def test_a_part_of_a_large_frame_is_no_frame_whatever_it_looks_like() -> None:
    server = Server()
    peer = server.greeted()
    hidden = encode_frame([echo(66)])
    outer = encode_frame([[2, ECHO, 1_000, b"before" + hidden + b"behind"]])
    begin = outer.index(hidden)
    for part in (outer[:begin], hidden, outer[begin + len(hidden) :]):
        read_bytes(peer, part)
    assert server.handled == [2]


async def test_who_ends_is_forgotten() -> None:
    server = Server()
    peer = server.greeted()
    read(peer, [echo(2)])
    await turn()
    assert server.acceptor.outgoing.last is peer.connection
    peer.transport.lose()
    assert server.acceptor.outgoing.last is None


async def test_a_small_request_is_heard_but_for_the_last_parts_of_large_ones() -> None:
    server = Server()
    peer = server.greeted()
    pace = server.acceptor.pace
    pace.heard = False
    peer.connection._small_reads = 2
    for heard in (False, False, True):
        read(peer, [echo(2)])
        assert pace.heard is heard
    pace.heard = False
    peer.connection.rests = False
    read(peer, [echo(3)])
    assert pace.heard is False
