"""What one connection of a server promises, without sockets."""

import random

import pytest

from pegaskv.base.errors import InternalError, InvalidArgument, UnknownOperation
from pegaskv.base.limits import (
    CONNECTION_REQUESTS_IN_FLIGHT_MAX,
    FRAME_MESSAGES_MAX,
    REPLY_FLUSH_BYTES,
)
from pegaskv.base.version import VERSION
from pegaskv.codec.frames import HEADER_BYTES, encode_frame
from pegaskv.net.turns import TURN_MESSAGES
from tests.net.connection_support import (
    BROKEN,
    ECHO,
    IDENTITY,
    LARGE,
    LATER,
    UNPACKABLE,
    Peer,
    Server,
    hello,
    turn,
)


def echo(request_id: int, *fields: object) -> list[object]:
    return [request_id, ECHO, 0, *fields]


# Hello.


async def test_hello_says_who_the_server_is_and_its_limits() -> None:
    peer = Server().connect()
    peer.send([hello(7, cluster_id=5)])
    [reply] = peer.replies()
    assert reply[:8] == [
        7,
        0,
        1,
        VERSION,
        IDENTITY.cluster_name,
        IDENTITY.cluster_id,
        IDENTITY.cluster_uuid,
        IDENTITY.node_id,
    ]
    assert reply[10]["frame_messages_max"] == FRAME_MESSAGES_MAX
    assert not peer.refused


async def test_hello_agrees_on_the_highest_common_version() -> None:
    peer = Server().connect()
    peer.send([hello(versions=(1, 9))])
    assert peer.replies()[0][:3] == [1, 0, 1]


@pytest.mark.parametrize(("versions", "older"), [((2, 3), "server")])
async def test_hello_without_a_common_version_names_both_ranges(
    versions: tuple[int, int], older: str
) -> None:
    peer = Server().connect()
    peer.send([hello(3, versions=versions)])
    [reply] = peer.replies()
    assert reply[:2] == [3, InvalidArgument.code]
    assert "2 to 3" in reply[2]
    assert "1 to 1" in reply[2]
    assert reply[3] == f"upgrade the {older}"
    assert peer.refused


async def test_hello_for_another_cluster_is_refused_by_both_names() -> None:
    peer = Server().connect()
    peer.send([hello(cluster_id=6)])
    [reply] = peer.replies()
    assert reply[1] == InvalidArgument.code
    assert "`onebox` with id 5" in reply[2]
    assert "id 6" in reply[2]
    assert peer.refused


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [1, 1, "x", 0, []],
        [1, 1, "x", 0, [], [], []],
        [2, 1, "x", 0, [], []],
        [0, 1, "x", 0, [], []],
        [True, True, "x", 0, [], []],
        ["1", 1, "x", 0, [], []],
        [1, 1, b"x", 0, [], []],
        [1, 1, "x", 128, [], []],
        [1, 1, "x", -1, [], []],
        [1, 1, "x", None, [], []],
        [1, 1, "x", 0, "f", []],
        [1, 1, "x", 0, [1], []],
        [1, 1, "x", 0, [], [b"m"]],
    ],
)
async def test_a_malformed_hello_is_answered_and_ends_the_connection(fields: list[object]) -> None:
    peer = Server().connect()
    peer.send([[9, 0, 0, *fields]])
    assert peer.replies()[0][:2] == [9, InvalidArgument.code]
    assert peer.refused


async def test_nothing_is_handled_before_hello() -> None:
    server = Server()
    peer = server.connect()
    peer.send([echo(4)])
    assert server.handled == []
    assert peer.replies()[0][:2] == [0, InvalidArgument.code]
    assert peer.refused


async def test_two_messages_in_the_first_frame_are_refused() -> None:
    server = Server()
    peer = server.connect()
    peer.send([hello(), echo(4)])
    assert server.handled == []
    assert peer.refused


async def test_a_frame_over_4_kib_is_refused_by_its_header_before_hello() -> None:
    peer = Server().connect()
    peer.send_bytes(encode_frame([[1, 0, 0, b"x" * 5_000]])[:HEADER_BYTES])
    assert peer.refused
    assert peer.connection.held_bytes == 0


@pytest.mark.parametrize("broken", [False, True])
async def test_what_a_connection_sends_after_its_end_is_not_handled(broken: bool) -> None:
    server = Server()
    peer = server.greeted()
    if broken:
        peer.send_bytes(bytes(100))
        assert len(peer.replies()) == 1
    else:
        peer.connection.drain()
    assert peer.refused
    peer.send([echo(2)])
    peer.send([echo(3), echo(4)])
    assert server.handled == []
    assert peer.replies() == []


async def test_requests_behind_hello_in_one_packet_are_served() -> None:
    peer = Server().connect()
    peer.send([hello()], [echo(2)])
    assert [reply[:2] for reply in peer.replies()] == [[1, 0], [2, 0]]


async def test_a_second_hello_is_an_error_and_the_connection_goes_on() -> None:
    peer = Server().greeted()
    peer.send([hello(8)], [echo(9)])
    assert [reply[:2] for reply in peer.replies()] == [[8, InvalidArgument.code], [9, 0]]


async def test_a_silent_connection_is_closed_after_its_time() -> None:
    server = Server()
    peer = server.connect()
    server.pass_time(4_900)
    assert not peer.refused
    server.pass_time(200)
    assert peer.refused
    assert peer.replies()[0][:2] == [0, InvalidArgument.code]
    server.pass_time(1_000)
    assert peer.transport.aborted


async def test_an_idle_connection_is_kept() -> None:
    server = Server()
    peer = server.greeted()
    for _ in range(50):
        server.pass_time(60_000)
    peer.send([echo(2)])
    assert peer.replies() == [[2, 0]]


# Requests and replies.


async def test_replies_of_all_frames_in_one_packet_leave_in_one_write() -> None:
    peer = Server().greeted()
    before = peer.transport.writes
    peer.send([echo(1), echo(2)], [echo(3)])
    assert peer.frames() == [[[1, 0], [2, 0], [3, 0]]]
    assert peer.transport.writes == before + 1


async def test_ping_tells_the_wall_clock() -> None:
    peer = Server().greeted()
    peer.send([[2, 1, 0]], [[3, 1, 0, 1]])
    assert peer.replies()[0] == [2, 0, 1_000_000]
    assert not peer.refused


@pytest.mark.parametrize("cut", range(1, 40))
async def test_the_cut_of_the_bytes_never_matters(cut: int) -> None:
    server = Server()
    peer = server.connect()
    data = b"".join(
        encode_frame(frame)
        for frame in ([hello()], [echo(2, b"a"), echo(3)], [echo(4, b"x" * 300)], [[5, LATER, 0]])
    )
    for begin in range(0, len(data), cut):
        peer.send_bytes(data[begin : begin + cut])
    server.answer()
    assert [reply[:2] for reply in peer.replies()] == [[number, 0] for number in range(1, 6)]
    assert server.acceptor.bytes_in_flight == 0


async def test_a_deferred_request_is_answered_when_it_is_finished() -> None:
    server = Server()
    peer = server.greeted()
    peer.send([[2, LATER, 0], echo(3)])
    assert peer.replies() == [[3, 0]]
    assert peer.connection.in_flight == 1
    server.answer()
    assert peer.replies() == [[2, 0]]
    assert peer.connection.in_flight == 0


async def test_finish_after_the_connection_is_lost_is_harmless() -> None:
    server = Server()
    peer = server.greeted()
    peer.send([[2, LATER, 0]])
    peer.transport.lose()
    server.answer()
    assert server.acceptor.connection_count == 0
    assert server.acceptor.bytes_in_flight == 0
    server.acceptor.check()


async def test_more_replies_than_a_frame_holds_leave_in_several() -> None:
    server = Server()
    peer = server.greeted()
    total = FRAME_MESSAGES_MAX + 300
    peer.send([echo(number) for number in range(1, 1_001)], [echo(1) for _ in range(total - 1_000)])
    for _ in range(total // TURN_MESSAGES):
        await turn()
    frames = peer.frames()
    assert max(map(len, frames)) <= FRAME_MESSAGES_MAX
    assert sum(map(len, frames)) == total


async def test_who_sends_without_end_is_handled_a_share_a_turn_and_others_between() -> None:
    server = Server()
    greedy = [server.greeted(f"10.0.0.{number}") for number in range(3)]
    polite = server.greeted("10.0.1.1")
    for number, peer in enumerate(greedy):
        peer.send(*([echo(1_000 * number + each) for each in range(1, 1_000)] for _ in range(2)))
        assert not peer.transport.reading
    # What came first, of each; then one of them goes on in each turn.
    shares = 0
    while not all(peer.transport.reading for peer in greedy):
        before = len(server.handled)
        polite.send([echo(9_999)])
        assert server.handled[-1] == 9_999
        await turn()
        shares += 1
        assert len(server.handled) - before <= TURN_MESSAGES + 1
    assert shares > 3 * 2_000 // TURN_MESSAGES - 3
    for number, peer in enumerate(greedy):
        ids = [reply[0] for reply in peer.replies()]
        assert ids == [1_000 * number + each for each in range(1, 1_000)] * 2


async def test_many_small_frames_are_decoded_a_share_a_turn() -> None:
    server = Server()
    peer = server.greeted()
    value = bytes(10_000)
    peer.send(*([echo(number, value)] for number in range(1, 101)))
    assert 1 < len(server.handled) < 10
    assert not peer.transport.reading
    while not peer.transport.reading:
        await turn()
        server.acceptor.check()
    assert server.handled == list(range(1, 101))
    assert len(peer.replies()) == 100


@pytest.mark.parametrize("rest", [1, 4, 7, 8, 20])
async def test_a_read_that_ends_within_a_header_keeps_nobody_from_reading_on(rest: int) -> None:
    server = Server()
    peer = server.greeted()
    frame = encode_frame([echo(1, bytes(40_000))])
    last = encode_frame([echo(2)])
    peer.connection.data_received(frame + last[:rest])
    for _ in range(5):
        await turn()
    assert peer.transport.reading
    peer.connection.data_received(last[rest:])
    assert server.handled == [1, 2]


async def test_a_server_that_stops_ends_a_connection_that_ends_within_a_header() -> None:
    server = Server()
    peer = server.greeted()
    frame = encode_frame([echo(1, bytes(40_000))])
    peer.connection.data_received(frame + frame[:4])
    peer.connection.drain()
    assert peer.connection.closed


async def test_a_large_reply_does_not_hold_small_ones_back() -> None:
    peer = Server().greeted()
    peer.send([echo(2), [3, LARGE, 0, 4 * REPLY_FLUSH_BYTES], echo(4)])
    frames = peer.frames()
    assert len(frames) >= 2
    assert [reply[0] for frame in frames for reply in frame] == [2, 3, 4]


async def test_large_deferred_replies_leave_in_frames_of_about_the_flush_size() -> None:
    peer = Server().greeted()
    connection = peer.connection
    for number in range(1, 41):
        connection.defer()
        connection.out_bytes += 16 * 1024
        connection.finish((number, 0, bytes(16 * 1024)))
    connection.flush()
    frames = peer.frames()
    assert [reply[0] for frame in frames for reply in frame] == list(range(1, 41))
    assert max(len(encode_frame(frame)) for frame in frames) <= 2 * REPLY_FLUSH_BYTES


async def test_a_failing_handler_is_answered_and_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    peer = server.greeted()
    peer.send([echo(2), [3, BROKEN, 0], echo(4)])
    replies = peer.replies()
    assert [reply[:2] for reply in replies] == [[2, 0], [3, InternalError.code], [4, 0]]
    assert "a bug of ours" not in replies[1][2]
    assert "a bug of ours" in caplog.text
    assert server.acceptor.handler_failures == 1


async def test_a_reply_that_cannot_be_packed_becomes_an_error_and_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer = Server().greeted()
    peer.send([echo(2), [3, UNPACKABLE, 0], echo(4), [5, UNPACKABLE, 0]])
    assert [reply[:2] for reply in peer.replies()] == [
        [2, 0],
        [3, InternalError.code],
        [4, 0],
        [5, InternalError.code],
    ]
    assert "cannot be packed" in caplog.text


async def test_an_unknown_operation_is_answered_by_its_number() -> None:
    peer = Server().greeted()
    peer.send([[2, 4_000, 0], echo(3)])
    replies = peer.replies()
    assert replies[0][:2] == [2, UnknownOperation.code]
    assert "4000" in replies[0][2]
    assert replies[1] == [3, 0]


@pytest.mark.parametrize("count", [1, 2])
async def test_what_may_not_be_said_any_more_is_not_said_and_ends_the_connection(
    count: int,
) -> None:
    server = Server()
    may_answer = True
    server.acceptor.may_answer = lambda: may_answer
    peer, other = server.greeted(), server.greeted()
    peer.send([echo(number) for number in range(2, 2 + count)])
    assert len(peer.replies()) == count
    may_answer = False
    peer.send([echo(number) for number in range(9, 9 + count)])
    assert peer.replies() == []
    assert peer.transport.aborted
    may_answer = True
    other.send([echo(2)])
    assert other.replies() == [[2, 0]]


@pytest.mark.parametrize("reads", [True, False])
async def test_requests_and_bytes_are_counted(reads: bool) -> None:
    server = Server()
    peer = server.greeted(reads=reads)
    for frame in ([echo(2)], [echo(3), echo(4)], [[5, LARGE, 0, 3 * REPLY_FLUSH_BYTES]]):
        before = _counts(server)
        written = len(peer.transport.written)
        peer.send(frame)
        after = _counts(server)
        assert after["requests"] - before["requests"] == len(frame)
        assert after["received_bytes"] - before["received_bytes"] == len(encode_frame(frame))
        assert after["sent_bytes"] - before["sent_bytes"] == len(peer.transport.written) - written


def _counts(server: Server) -> dict[str, float]:
    found = {metric.name: metric.samples for metric in server.acceptor.metrics()}
    return {
        name: found[f"pegaskv_{name}_total"][0][1]
        for name in ("requests", "received_bytes", "sent_bytes")
    }


# Any order of events.


@pytest.mark.parametrize("seed", range(30))
async def test_accounts_are_right_and_every_request_is_answered_in_any_order(seed: int) -> None:
    chance = random.Random(seed)
    server = Server(bytes_in_flight_max=400_000)
    peers: list[Peer] = [server.greeted(reads=chance.random() < 0.5) for _ in range(4)]
    sent: dict[Peer, list[int]] = {peer: [] for peer in peers}
    pauses = 0
    for step in range(300):
        peer = chance.choice(peers)
        action = chance.random()
        if action < 0.5 and peer.transport.reading:
            count = chance.choice((1, 3, 40, 500))
            operation = chance.choice((ECHO, LATER, LATER))
            size = chance.choice((0, 10, 2_000))
            ids = [step * 1_000 + number + 1 for number in range(count)]
            sent[peer] += ids
            peer.send([[number, operation, 0, bytes(size)] for number in ids])
        elif action < 0.8:
            chance.shuffle(server.waiting)
            server.answer(chance.randrange(200))
        else:
            peer.transport.take()
            await turn()
        pauses += not peer.transport.reading
        server.acceptor.check()
        assert peer.connection.in_flight <= CONNECTION_REQUESTS_IN_FLIGHT_MAX
    for _ in range(200):
        server.answer()
        for peer in peers:
            peer.transport.take()
        await turn()
    for peer in peers:
        assert not peer.refused
        assert peer.transport.reading
        assert sorted(reply[0] for reply in peer.replies()) == sorted(sent[peer])
    assert server.acceptor.bytes_in_flight == 0
    assert pauses > 10, "no limit was reached: nothing was tested"


@pytest.mark.parametrize("alone", [True, False])
async def test_a_read_that_leaves_one_request_under_way_is_told(alone: bool) -> None:
    server = Server()
    told: list[int] = []
    single = server.acceptor.single
    single.alone = alone
    single.answer = lambda: told.append(len(server.waiting))
    peer = server.greeted()
    peer.send([[2, ECHO, 0]])
    assert single.count == 0
    peer.send([[3, LATER, 0]])
    assert single.count == 1
    peer.send([[4, LATER, 0]])
    server.answer()
    peer.send([[5, LATER, 0], [6, LATER, 0]])
    assert single.count == 1
    assert told == ([1] if alone else [])
    server.answer()
