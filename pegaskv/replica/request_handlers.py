"""Puts the handlers of all data operations of one server together, and what guards them."""

from collections.abc import Callable

from pegaskv.base.errors import RequestError
from pegaskv.net.connection import Handler
from pegaskv.replica.guards import GuardedRequests
from pegaskv.replica.lane import Lane
from pegaskv.replica.read_handlers import ReadHandlers
from pegaskv.replica.received import ReceivedHandlers
from pegaskv.replica.replica import Replica
from pegaskv.replica.slow_requests import SlowRequests
from pegaskv.replica.throttling import ThrottledLine
from pegaskv.replica.workers import Workers
from pegaskv.replica.writes import WriteHandlers
from pegaskv.runtime.clock import Clock

__all__ = ["request_handlers"]


def request_handlers(
    replicas: dict[tuple[int, int], Replica],
    closed: dict[tuple[int, int], str],
    *,
    clock: Clock,
    workers: Workers,
    scans_waiting_max: int,
    on_corruption: Callable[[Replica, BaseException], RequestError],
    line: ThrottledLine,
    slow: SlowRequests,
) -> dict[int, Handler]:
    """Return the handler of each data operation."""
    guarded = GuardedRequests(replicas, line=line, slow=slow)
    lane = Lane()
    reads = ReadHandlers(
        replicas,
        closed,
        clock=clock,
        line=workers.reads,
        lane=lane,
        scans_waiting_max=scans_waiting_max,
        on_corruption=on_corruption,
        guarded=guarded.on_request,
        slow=slow,
    )
    writes = WriteHandlers(
        replicas,
        closed,
        clock=clock,
        lane=lane,
        on_corruption=on_corruption,
        guarded=guarded.on_request,
    )
    received = ReceivedHandlers(
        replicas,
        closed,
        clock=clock,
        worker=workers.scan,
        lane=lane,
        scans_waiting_max=scans_waiting_max,
        on_corruption=on_corruption,
    )
    line.handlers = guarded.handlers = reads.handlers() | writes.handlers()
    return {**guarded.handlers, **received.handlers()}
