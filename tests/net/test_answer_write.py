"""The answer to a write that is its connection's only request."""

from typing import Any

import pytest

from pegaskv.codec.frames import encode_frame
from pegaskv.net.connection import ServerConnection
from tests.net.connection_support import ECHO, Server, turn

SET = 80


class Writes(Server):
    """A server with one operation that is answered when the test says so."""

    def __init__(self, **options: int) -> None:
        super().__init__({SET: self._set}, **options)
        self.last: list[int] = []

    def _set(self, connection: ServerConnection, message: list[Any]) -> None:
        connection.defer()
        self.last = [message[0], 0, 7]


def sent_bytes(server: Server) -> float:
    found = {metric.name: metric.samples for metric in server.acceptor.metrics()}
    return found["pegaskv_sent_bytes_total"][0][1]


async def test_it_is_sent_at_once_and_counted() -> None:
    server = Writes()
    peer = server.greeted()
    for number in range(2, 5):
        peer.send([[number, SET, 0]])
        assert peer.replies() == []
        assert peer.connection.in_flight == 1
        peer.connection.answer_write(server.last)
        assert peer.replies() == [[number, 0, 7]]
        assert peer.connection.in_flight == 0
    assert sent_bytes(server) == len(peer.transport.written)


async def test_what_waits_to_be_sent_leaves_with_it() -> None:
    server = Writes()
    peer, other = server.greeted(), server.greeted()
    peer.send([[2, SET, 0]])
    other.send([[9, ECHO, 0]])
    peer.connection.data_received(encode_frame([[3, ECHO, 0]]))
    assert peer.replies() == []
    peer.connection.answer_write(server.last)
    assert sorted(peer.replies()) == [[2, 0, 7], [3, 0]]
    assert peer.connection.in_flight == 0
    server.acceptor.outgoing.write()
    assert peer.replies() == []


async def test_it_may_come_when_the_connection_has_ended() -> None:
    server = Writes()
    peer = server.greeted()
    peer.send([[2, SET, 0]])
    peer.transport.lose()
    peer.connection.answer_write(server.last)
    assert peer.connection.in_flight == 0
    assert peer.replies() == []


async def test_without_memory_for_it_the_reply_is_packed_as_others_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Writes()
    peer = server.greeted()
    peer.send([[2, SET, 0]])

    def scarce(request_id: int, decree: int) -> bytes:
        raise MemoryError

    monkeypatch.setattr("pegaskv.net.connection.encode_write_reply", scarce)
    peer.connection.answer_write(server.last)
    assert peer.replies() == [[2, 0, 7]]
    assert peer.connection.in_flight == 0


async def test_it_is_not_said_when_it_may_not_be_so_any_more() -> None:
    server = Writes()
    peer = server.greeted()
    peer.send([[2, SET, 0]])
    server.acceptor.may_answer = lambda: False
    peer.connection.answer_write(server.last)
    assert peer.replies() == []
    assert peer.transport.aborted


async def test_what_a_large_write_was_charged_is_given_back() -> None:
    server = Writes()
    peer = server.greeted()
    peer.send([[2, SET, 0, bytes(10_000)]])
    assert server.acceptor.bytes_in_flight > 10_000
    peer.connection.answer_write(server.last)
    assert server.acceptor.bytes_in_flight == 0


async def test_who_leaves_replies_unread_is_cut_off_at_the_limit() -> None:
    server = Writes(connection_unsent_pause_bytes=100, connection_unsent_bytes_max=400)
    peer = server.greeted(reads=False)
    peer.send([[2, SET, 0], [3, ECHO, 0, bytes(300)]])
    assert not peer.refused
    peer.connection.answer_write([2, 0, 7])
    assert not peer.refused
    peer.transport.unsent = 390
    peer.connection.in_flight += 1
    peer.connection.answer_write([4, 0, 7])
    assert peer.refused


async def test_one_write_that_passes_the_limit_is_enough() -> None:
    server = Writes(connection_unsent_pause_bytes=10, connection_unsent_bytes_max=20)
    peer, other = server.greeted(), server.greeted()
    peer.transport.reads = other.transport.reads = False
    peer.send([[2, SET, 0]])
    peer.connection.answer_write([2, 0, 7])
    assert peer.refused
    other.send([[3, ECHO, 0, bytes(10)]])
    assert other.refused


async def test_a_connection_that_drains_closes_behind_it() -> None:
    server = Writes()
    peer = server.greeted()
    peer.send([[2, SET, 0]])
    peer.connection.drain()
    assert not peer.transport.closing
    peer.connection.answer_write(server.last)
    assert peer.replies() == [[2, 0, 7]]
    assert peer.transport.closing


async def test_what_waited_for_room_is_read() -> None:
    server = Writes(connection_requests_max=1)
    peer = server.greeted()
    peer.send([[2, SET, 0]])
    assert not peer.transport.reading
    peer.connection.answer_write(server.last)
    await turn()
    assert peer.transport.reading
