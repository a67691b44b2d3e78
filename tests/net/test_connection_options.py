"""The bounds of one connection are options, and metrics show them beside what is used."""

from typing import Any

import pytest

from tests.net.connection_support import LATER, Server, hello, turn


def values(server: Server) -> dict[str, float]:
    return {
        metric.name.removeprefix("pegaskv_"): metric.samples[0][1]
        for metric in server.acceptor.metrics()
        if metric.samples and not metric.samples[0][0]
    }


async def test_reading_pauses_at_the_number_of_requests_that_is_set() -> None:
    server = Server(connection_requests_max=4)
    peer, other = server.greeted(), server.greeted("10.0.0.2")
    peer.send([[number, LATER, 0] for number in range(2, 6)])
    other.send([[2, LATER, 0]])
    assert (peer.transport.reading, other.transport.reading) == (False, True)
    found = values(server)
    assert (found["in_flight_requests"], found["connection_requests"]) == (5, 4)
    assert found["connection_requests_max"] == 4
    server.answer()
    await turn()
    assert peer.transport.reading
    assert values(server)["in_flight_requests"] == 0


async def test_reading_pauses_at_the_number_of_bytes_that_is_set() -> None:
    server = Server(connection_in_flight_bytes_max=100_000)
    peer = server.greeted()
    peer.send([[2, LATER, 0, bytes(60_000)]])
    assert peer.transport.reading
    peer.send([[3, LATER, 0, bytes(60_000)]])
    assert not peer.transport.reading
    found = values(server)
    assert found["connection_in_flight_bytes_max"] == 100_000
    assert found["connection_in_flight_bytes"] == found["in_flight_bytes"] > 120_000
    server.answer()
    await turn()
    assert peer.transport.reading


async def test_who_reads_nothing_is_paused_and_cut_off_where_it_is_set() -> None:
    server = Server(connection_unsent_pause_bytes=10_000, connection_unsent_bytes_max=50_000)
    peer = server.greeted(reads=False)
    peer.send([[number, LATER, 0] for number in range(2, 12)])
    seen = []
    while not peer.refused:
        connection, request_id = server.waiting.pop()
        connection.finish((request_id, 0, bytes(9_000)))
        connection.flush()
        found = values(server)
        seen.append((peer.transport.reading, found["unsent_bytes"]))
        assert found["connection_unsent_bytes"] == found["unsent_bytes"] or peer.refused
    assert [reading for reading, _ in seen[:3]] == [True, False, False]
    assert len(seen) == 6
    assert found["connection_unsent_pause_bytes"] == 10_000
    assert found["connection_unsent_bytes_max"] == 50_000


@pytest.mark.parametrize(("most", "refused"), [(512, False), (16, True)])
async def test_a_hello_may_be_as_long_as_is_set(most: int, refused: bool) -> None:
    server = Server(hello_bytes_max=most)
    peer = server.connect()
    peer.send([hello()])
    assert peer.refused is refused
    assert values(server)["hello_bytes_max"] == most


async def test_clients_are_told_the_bounds_that_are_set() -> None:
    server = Server(connection_requests_max=7, connection_in_flight_bytes_max=70_000)
    peer = server.connect()
    peer.send([hello()])
    announced: dict[str, Any] = peer.replies()[0][-1]
    assert (announced["requests_in_flight_max"], announced["bytes_in_flight_max"]) == (7, 70_000)
    assert announced["value_bytes_max"] == 1024 * 1024


async def test_connections_are_shown_beside_their_bounds() -> None:
    server = Server(connections_max=5, connections_per_address_max=3)
    for address in ("10.0.0.1", "10.0.0.1", "10.0.0.2"):
        server.greeted(address)
    found = values(server)
    assert (found["connections"], found["connections_max"]) == (3, 5)
    assert (found["connections_per_address"], found["connections_per_address_max"]) == (2, 3)
