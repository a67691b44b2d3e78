"""A request whose handler sends it to another one is answered by that one, once."""

from typing import Any

from pegaskv.base.errors import Busy
from pegaskv.net.connection import ServerConnection
from pegaskv.net.detour import Detour
from tests.net.connection_support import Server

ROUND, REFUSED, BUG, HELD = 201, 202, 203, 204


def echo(connection: ServerConnection, message: list[Any]) -> None:
    connection.out.append((message[0], 0, "round"))


def refuse(connection: ServerConnection, message: list[Any]) -> None:
    raise Busy("not now")


def fail(connection: ServerConnection, message: list[Any]) -> None:
    raise LookupError("a bug of ours")


def hold(connection: ServerConnection, message: list[Any]) -> None:
    connection.defer()


def send_to(handler: Any) -> Any:
    def on_request(connection: ServerConnection, message: list[Any]) -> None:
        raise Detour(handler)

    return on_request


async def test_a_detour_is_followed_and_its_errors_are_answered() -> None:
    server = Server({ROUND: send_to(echo), REFUSED: send_to(refuse), BUG: send_to(fail)})
    peer = server.greeted()
    peer.send([[2, ROUND, 0], [3, REFUSED, 0], [4, BUG, 0], [5, ROUND, 0]])
    replies = peer.replies()
    assert [reply[:2] for reply in replies] == [[2, 0], [3, 20], [4, 4], [5, 0]]
    assert replies[0][2] == replies[3][2] == "round"
    assert not peer.refused
    assert server.acceptor.handler_failures == 1


async def test_a_request_that_is_kept_for_later_is_under_way() -> None:
    server = Server({HELD: send_to(hold)})
    peer = server.greeted()
    peer.send([[2, HELD, 0, b"x" * 1_000]])
    assert peer.replies() == []
    assert peer.connection.in_flight == 1
    assert peer.connection.held_bytes > 1_000
    peer.connection.finish((2, 0))
    peer.connection.flush()
    assert peer.replies() == [[2, 0]]
    assert server.acceptor.bytes_in_flight == 0
