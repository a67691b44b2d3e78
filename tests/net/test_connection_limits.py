"""The limits of connections, each with a test that leans on it; and the clean stop."""

from typing import Any

import pytest

from pegaskv.base.errors import Busy, InternalError
from pegaskv.base.limits import (
    CONNECTION_BYTES_IN_FLIGHT_MAX,
    CONNECTION_OUTPUT_BYTES_MAX,
    CONNECTION_OUTPUT_PAUSE_BYTES,
    CONNECTION_REQUESTS_IN_FLIGHT_MAX,
)
from pegaskv.codec.frames import encode_frame
from pegaskv.runtime.tasks import TaskScope
from tests.net.connection_support import ECHO, LARGE, LATER, Server, hello, turn


def echo(request_id: int, *fields: object) -> list[object]:
    return [request_id, ECHO, 0, *fields]


# Limits: what is under way.


async def test_reading_pauses_at_the_limit_of_requests_and_goes_on_below_it() -> None:
    server = Server()
    peer = server.greeted()
    most = CONNECTION_REQUESTS_IN_FLIGHT_MAX
    for begin in range(0, most, 256):
        peer.send([[number, LATER, 0] for number in range(begin + 1, begin + 257)])
    assert not peer.transport.reading
    server.answer(most // 4)
    await turn()
    assert not peer.transport.reading
    server.answer(most // 4)
    await turn()
    assert peer.transport.reading


async def test_never_more_requests_than_the_limit_are_under_way() -> None:
    server = Server()
    peer = server.greeted()
    total = 10_000
    peer.send(
        *(
            [[number + 1, LATER, 0] for number in range(begin, begin + 100)]
            for begin in range(0, total, 100)
        )
    )
    most = 0
    while server.waiting:
        most = max(most, peer.connection.in_flight)
        assert peer.connection.in_flight <= CONNECTION_REQUESTS_IN_FLIGHT_MAX
        server.answer(len(server.waiting) // 8 + 1)
        server.acceptor.check()
        await turn()
    assert most > CONNECTION_REQUESTS_IN_FLIGHT_MAX - 100
    assert server.handled == list(range(1, total + 1))
    assert sorted(reply[0] for reply in peer.replies()) == list(range(1, total + 1))
    assert peer.transport.reading
    assert server.acceptor.bytes_in_flight == 0


async def test_reading_pauses_at_the_limit_of_bytes_and_goes_on_below_it() -> None:
    server = Server()
    peer = server.greeted()
    size = CONNECTION_BYTES_IN_FLIGHT_MAX // 8
    for number in range(1, 9):
        assert peer.transport.reading
        peer.send([[number, LATER, 0, bytes(size)]])
        await turn()
    assert not peer.transport.reading
    assert peer.connection.held_bytes >= CONNECTION_BYTES_IN_FLIGHT_MAX
    server.answer(5)
    await turn()
    assert peer.transport.reading
    server.answer()
    assert server.acceptor.bytes_in_flight == 0


async def test_a_slow_request_does_not_keep_the_bytes_of_quick_ones() -> None:
    server = Server()
    peer = server.greeted()
    peer.send([[1, LATER, 0]])
    slow = server.waiting.pop()
    for number in range(2, 200):
        peer.send([[number, LATER, 0, bytes(512 * 1024)]])
        server.answer()
        await turn()
        assert peer.transport.reading
    assert peer.connection.held_bytes < CONNECTION_BYTES_IN_FLIGHT_MAX // 2
    server.waiting.append(slow)
    server.answer()
    assert server.acceptor.bytes_in_flight == 0


async def test_the_process_budget_pauses_all_and_is_given_back() -> None:
    server = Server(bytes_in_flight_max=1_000_000)
    peers = [server.greeted(f"10.0.0.{number}") for number in range(4)]
    for peer in peers:
        peer.send([[1, LATER, 0, bytes(400_000)]])
        await turn()
    assert [peer.transport.reading for peer in peers] == [True, True, False, False]
    peers[0].send([[2, LATER, 0]])
    assert not peers[0].transport.reading
    server.answer(3)
    await turn()
    assert all(peer.transport.reading for peer in peers)
    server.answer()
    assert server.acceptor.bytes_in_flight == 0


async def test_who_holds_next_to_nothing_is_served_although_others_fill_the_budget() -> None:
    server = Server(bytes_in_flight_max=1_000_000)
    greedy = [server.greeted(f"10.0.0.{number}") for number in range(3)]
    frame = encode_frame([[1, ECHO, 0, bytes(900_000)]])
    for peer in greedy:
        peer.send_bytes(frame[:-1])
        await turn()
    assert server.acceptor.bytes_in_flight > 1_000_000
    polite = server.greeted("10.0.1.1")
    for number in range(1, 50):
        polite.send([[number, ECHO, 0], [1_000 + number, LATER, 0]])
        assert polite.transport.reading
    assert len(polite.replies()) == 49
    polite.send([[99, LATER, 0, bytes(50_000)]])
    assert not polite.transport.reading
    server.answer()
    # Those that hold much are given up one by one.
    for _ in greedy:
        server.pass_time(250)
    await turn()
    assert polite.transport.reading


async def test_when_half_sent_frames_fill_the_budget_the_largest_is_given_up() -> None:
    server = Server(bytes_in_flight_max=1_000_000)
    small, large, late = (server.greeted(f"10.0.0.{number}") for number in range(3))
    frame = encode_frame([[1, ECHO, 0, bytes(900_000)]])
    small.send_bytes(frame[:300_000])
    large.send_bytes(frame[:600_000])
    late.send_bytes(frame[:200_000])
    assert not late.transport.reading
    server.pass_time(250)
    assert large.refused
    assert large.replies()[0][:2] == [0, Busy.code]
    assert not small.refused
    await turn()
    assert late.transport.reading
    late.send_bytes(frame[200_000:])
    assert late.replies()[0][:2] == [1, 0]


# Limits: what is unsent.


async def test_a_peer_that_does_not_read_is_not_read_from() -> None:
    server = Server()
    peer = server.greeted(reads=False)
    requests = [[number, LARGE, 0, 100_000] for number in range(2, 102)]
    peer.send(requests[:50], requests[50:])
    for _ in range(10):
        await turn()
    assert not peer.transport.reading
    # It stopped in the middle of the first frame: ten more would not have been made.
    assert peer.transport.unsent < CONNECTION_OUTPUT_PAUSE_BYTES + 300_000
    assert len(server.handled) < 20
    replies: list[Any] = []
    for _ in range(1_000):
        peer.transport.take()
        await turn()
        replies += peer.replies()
        if len(replies) >= len(requests):
            break
    assert [reply[0] for reply in replies] == list(range(2, 102))
    assert peer.transport.reading
    assert server.acceptor.bytes_in_flight == 0


async def test_who_asks_for_much_takes_turns_with_the_others() -> None:
    server = Server()
    greedy, modest = server.greeted(), server.greeted()
    requests = [[number, LARGE, 0, 100_000] for number in range(2, 102)]
    greedy.send(requests[:50], requests[50:])

    def large() -> int:
        return sum(number < 1_000 for number in server.handled)

    # No more than a quarter of a megabyte and the reply that passed it, though it reads all.
    assert large() <= 4
    rounds = 0
    while large() < 100:
        modest.send([echo(1_000 + rounds)])
        assert modest.replies()[-1][0] == 1_000 + rounds
        handled = large()
        await turn()
        assert handled < large() <= handled + 4
        # What is not handled is not added to.
        assert greedy.transport.reading == (large() == 100)
        rounds += 1
    assert rounds > 20
    assert [reply[0] for reply in greedy.replies()] == list(range(2, 102))
    greedy.send([echo(2_000)])
    assert greedy.replies()[-1][0] == 2_000
    server.acceptor.check()
    assert server.acceptor.bytes_in_flight == 0


async def test_too_many_unsent_bytes_close_the_connection() -> None:
    server = Server()
    peer = server.greeted(reads=False)
    peer.send([[number, LATER, 0] for number in range(2, 42)])
    finished = 0
    while not peer.refused:
        connection, request_id = server.waiting.pop()
        connection.out_bytes += 1_000_000
        connection.finish((request_id, 0, bytes(1_000_000)))
        connection.flush()
        finished += 1
    assert peer.transport.aborted
    assert finished == CONNECTION_OUTPUT_BYTES_MAX // 1_000_000 + 1
    assert server.acceptor.bytes_in_flight == 0


async def test_a_peer_that_reads_nothing_for_long_is_cut_off() -> None:
    server = Server()
    peer = server.greeted(reads=False)
    peer.send([[2, LARGE, 0, 2_000_000]])
    server.pass_time(29_000)
    server.pass_time(500)
    assert not peer.refused
    server.pass_time(31_000)
    assert peer.transport.aborted


async def test_a_peer_that_reads_slowly_is_kept() -> None:
    server = Server()
    peer = server.greeted(reads=False)
    peer.send([[2, LARGE, 0, 2_000_000]])
    for _ in range(20):
        server.pass_time(20_000)
        peer.transport.take(1_000)
    assert not peer.refused


async def test_a_frame_that_is_never_completed_closes_the_connection() -> None:
    server = Server()
    peer = server.greeted()
    frame = encode_frame([echo(2, bytes(100))])
    for byte in range(60):
        peer.send_bytes(frame[byte : byte + 1])
        server.pass_time(150)
        assert not peer.refused
    peer.send_bytes(frame[60:61])
    server.pass_time(1_500)
    assert peer.transport.aborted


async def test_complete_frames_give_the_next_one_its_own_time() -> None:
    server = Server()
    peer = server.greeted()
    frame = encode_frame([echo(2)])
    peer.send_bytes(frame[:3])
    for _ in range(10):
        server.pass_time(5_000)
        peer.send_bytes(frame[3:] + frame[:3])
    assert not peer.refused
    assert len(peer.replies()) == 10


# Admission.


async def test_connections_over_the_cap_of_an_address_are_refused_politely() -> None:
    server = Server(connections_per_address_max=2)
    first, _, third = (server.connect("10.0.0.1") for _ in range(3))
    other = server.connect("10.0.0.2")
    assert third.refused
    assert third.replies()[0][:2] == [0, Busy.code]
    assert not other.refused
    first.transport.lose()
    assert not server.connect("10.0.0.1").refused
    server.acceptor.check()


async def test_connections_over_the_cap_of_the_server_are_refused_politely() -> None:
    server = Server(connections_max=3)
    peers = [server.connect(f"10.0.0.{number}") for number in range(4)]
    assert [peer.refused for peer in peers] == [False, False, False, True]
    assert peers[3].replies()[0][:2] == [0, Busy.code]
    # It may still speak; nobody listens, and after a moment it is closed.
    peers[3].send([hello()])
    assert peers[3].replies() == []
    server.pass_time(1_000)
    assert peers[3].transport.aborted


async def test_a_flood_of_refused_connections_does_not_stay() -> None:
    server = Server(connections_max=1, lingering_max=5)
    server.connect()
    flood = [server.connect() for _ in range(20)]
    for peer in flood:
        if peer.transport.aborted:
            peer.transport.lose()
    assert sum(not peer.transport.aborted for peer in flood) == 5


# The clean stop.


async def test_drain_answers_what_is_under_way_and_closes() -> None:
    server = Server()
    idle, busy = server.greeted(), server.greeted()
    busy.send([[2, LATER, 0]])
    scope = TaskScope("test")
    stop = scope.start("drain", server.acceptor.drain(5_000))
    await turn()
    assert idle.transport.closing
    assert not busy.transport.closing
    assert not busy.transport.reading
    idle.transport.lose()
    server.answer()
    assert busy.replies() == [[2, 0]]
    assert busy.transport.closing
    assert not busy.transport.aborted
    busy.transport.lose()
    await stop


async def test_drain_refuses_what_it_has_not_begun() -> None:
    server = Server()
    peer = server.greeted()
    most = CONNECTION_REQUESTS_IN_FLIGHT_MAX
    for begin in range(0, most, 256):
        peer.send([[number, LATER, 0] for number in range(begin + 1, begin + 257)])
    peer.send([[2_000, LATER, 0], [2_001, ECHO, 0]])
    peer.connection.drain()
    server.answer()
    replies = peer.replies()
    assert [reply[:2] for reply in replies[:2]] == [[2_000, 13], [2_001, 13]]
    assert [reply[1] for reply in replies[2:]] == [0] * most
    assert peer.transport.closing


async def test_drain_cuts_off_who_does_not_end_in_time() -> None:
    server = Server()
    peer = server.greeted()
    peer.send([[2, LATER, 0]])
    await server.acceptor.drain(10)
    assert peer.transport.aborted


async def test_a_connection_that_comes_during_the_drain_is_refused() -> None:
    server = Server()
    await server.acceptor.drain(10)
    assert server.connect().refused


# Limits: memory.


async def test_when_all_leave_replies_unread_those_with_most_are_cut_off() -> None:
    server = Server(bytes_unsent_max=3_000_000)
    peers = [server.greeted(f"10.0.0.{number}", reads=False) for number in range(5)]
    for number, peer in enumerate(peers):
        peer.send([[2, LARGE, 0, 400_000 + 200_000 * number]])
    reader = server.greeted("10.0.1.0")
    server.pass_time(250)
    assert [peer.connection.closed for peer in peers] == [False] * 4 + [True]
    reader.send([echo(3)])
    assert reader.replies()[-1][:2] == [3, 0]
    server.pass_time(250)
    assert [peer.connection.closed for peer in peers].count(True) == 1


async def test_a_handler_without_memory_is_an_answer_and_ends_nothing() -> None:
    server = Server()
    peer = server.greeted()

    def hungry(connection: Any, message: list[Any]) -> None:
        raise MemoryError

    server.acceptor._handlers[ECHO] = hungry
    peer.send([[2, ECHO, 0]])
    reply = peer.replies()[-1]
    assert reply[:3] == [2, InternalError.code, "the server has no memory for this request"]
    assert not peer.connection.closed
    failures = {metric.name: metric.samples for metric in server.acceptor.metrics()}
    assert failures["pegaskv_memory_failures_total"] == (((), 1.0),)


async def test_a_reply_without_memory_is_an_error_and_the_next_ones_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    peer = server.greeted()

    def scarce(messages: list[Any]) -> bytes:
        if sum(len(part) for message in messages for part in message if type(part) is bytes) > 99:
            raise MemoryError
        return encode_frame(messages)

    for module in ("connection", "frames_apart"):
        monkeypatch.setattr(f"pegaskv.net.{module}.encode_frame", scarce)
    peer.send([echo(2, b"small"), echo(3, bytes(100)), echo(4, b"small")])
    replies = {reply[0]: reply[1:] for reply in peer.replies()}
    assert replies[2] == replies[4] == [0, b"small"]
    assert replies[3][:2] == [InternalError.code, "the server has no memory for the reply"]
    assert not peer.connection.closed


async def test_a_frame_without_memory_ends_its_connection_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    peer, other = server.greeted(), server.greeted()

    def scarce(body: bytes, **limits: int) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        for name in ("unpack", "unpack_harmless"):
            patch.setattr(f"pegaskv.codec.frames.{name}", scarce)
        peer.send([echo(2)])
    assert peer.replies()[-1][:3] == [0, Busy.code, "the server is short of memory"]
    assert peer.connection.closed
    other.send([echo(2)])
    assert other.replies()[-1][:2] == [2, 0]
