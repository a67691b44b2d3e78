"""What a primary does when its log is damaged where a duplication needs it: it lets another lead.

Each member of a partition keeps the log that duplications need, so damage on one disk is no
loss: the members are asked who can read it, one that can is made primary, and this server
leaves and learns the partition anew, its log as well. Only when nobody has it is it lost.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from pegaskv.base.errors import CorruptionError, InvalidArgument, NotReady, RequestError
from pegaskv.base.types import Gpid
from pegaskv.codec.operations import Operation
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.replica.machine import ReplicaMachine
from pegaskv.replica.replica import Replica
from pegaskv.runtime.worker import Worker
from pegaskv.storage.mutation_log import MutationLog

__all__ = ["DamagedLogs"]

_log = logging.getLogger(__name__)

_ASK_MS: Final = 10_000
_READ_BYTES: Final = 8 * 1024 * 1024


class DamagedLogs:
    """Both sides of it, for one server. `hand_over(replica, node id)` begins a hand-over."""

    def __init__(
        self,
        replicas: Mapping[tuple[int, int], Replica],
        *,
        log: MutationLog,
        reader: Worker,
        hand_over: Callable[[Replica, str], None],
    ) -> None:
        self._replicas = replicas
        self._log = log
        self._reader = reader
        self._hand_over = hand_over

    def handlers(self) -> dict[int, Handler]:
        """Return the handler of LOG_HELD."""
        return {Operation.LOG_HELD: self.on_held}

    async def leave(self, replica: Replica, decree: int) -> str:
        """Let a member lead that can read the log from `decree` on.

        Returns why that is in vain, or "" when another one is about to lead.

        Raises:
            RequestError: a member could not be asked, so it is not known whether it has it.

        """
        members = [each for each in replica.streams.values() if not each.learner]
        if not members:
            return "this server has the only replica"
        best, reaches = "", decree - 1
        unasked: RequestError | None = None
        for stream in members:
            try:
                reply = await stream.line.peer.request(
                    Operation.LOG_HELD, _ASK_MS, *replica.gpid, decree
                )
                last = _last_of(reply)
            except RequestError as error:
                unasked = error
                continue
            if last > reaches:
                best, reaches = stream.node_id, last
        if not best:
            if unasked is not None:
                raise unasked
            return "no member has it"
        if not replica.serving:
            raise NotReady(f"partition {replica.gpid} is not led here any more")
        _log.error(
            "partition %s: the log is damaged at decree %d; node %s, which has it, shall lead",
            replica.gpid, decree, best,
        )  # fmt: skip
        self._hand_over(replica, best)
        return ""

    def on_held(self, connection: ServerConnection, message: list[Any]) -> None:
        """Say how far the log can be read here from a decree on."""
        if len(message) != 6 or any(type(field) is not int for field in message[3:]):
            raise InvalidArgument("LOG_HELD carries a partition and a decree")
        gpid, decree = Gpid(message[3], message[4]), message[5]
        replica = self._replicas.get(gpid)
        if replica is None or replica.closed:
            connection.out.append((message[0], 0, 0))
            return
        connection.defer()
        machine: ReplicaMachine = replica.machine
        through = machine.committed

        def read() -> int:
            try:
                records = self._log.read(gpid, decree, _READ_BYTES, through=through)
            except CorruptionError:
                return 0
            return records[-1].decree if records and records[0].decree == decree else 0

        def done(last: int | None, error: BaseException | None) -> None:
            # Whoever cannot say has it not.
            connection.finish((message[0], 0, last or 0))
            connection.flush()

        self._reader.submit(read, done)


def _last_of(reply: list[Any]) -> int:
    match reply:
        case [int(last)]:
            return last
    raise NotReady("a member answered what is no decree")
