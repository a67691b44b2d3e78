"""What a primary says to this server's replicas: adopt me, prepare this, I am here. Hot.

Records are taken for all partitions at once, go into the log with the next tick, and are
acknowledged when they are there by their tables' durability. What does not fit (another
ballot, something missing before it) is refused by name, and the primary begins anew.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pegaskv.base.errors import CorruptionError, InvalidArgument, UnsupportedFormat, WireError
from pegaskv.base.types import Gpid, PartitionConfiguration, TableInfo
from pegaskv.codec.messages_meta import table_from_wire
from pegaskv.codec.operations import Operation
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.replica.follower import FOLLOWS
from pegaskv.replica.replica import Replica
from pegaskv.runtime.clock import Clock
from pegaskv.storage.log_format import FRAME_BYTES, LogRecord, decode_records

__all__ = ["Adopting", "Following"]


class Adopting(Protocol):
    """Whoever opens replicas: here a primary's word is obeyed, as far as it goes."""

    def adopt(
        self,
        table: TableInfo,
        configuration: PartitionConfiguration,
        addresses: Mapping[str, str],
        *,
        learner: bool,
    ) -> bool:
        """Follow, or learn from, the primary of a configuration; False: not at the moment."""
        ...

    def join(self, gpid: Gpid, ballot: int, node_id: str, next_decree: int) -> bool:
        """A learner of a partition led here asks for the stream; False: copy more log."""
        ...


class Following:
    """The handlers of PREPARE, ADOPT, BEACON and LEARN_JOIN, over one server's replicas.

    `into_log(records, done, synced)` puts records into the next tick and calls back when they
    are in the log, synced if asked; `on_pins` is told how far the log of pins may go.
    """

    def __init__(
        self,
        replicas: Mapping[tuple[int, int], Replica],
        *,
        clock: Clock,
        adopting: Adopting,
        into_log: Callable[[list[LogRecord], Callable[[], None], bool], None],
        on_pins: Callable[[Replica, bytes, int, int], None],
    ) -> None:
        self._replicas = replicas
        self._clock = clock
        self._adopting = adopting
        self._into_log = into_log
        self._on_pins = on_pins
        self.records = 0
        self.refused = 0

    def handlers(self) -> dict[int, Handler]:
        """Return the handler of each operation."""
        return {
            Operation.PREPARE: self.on_prepare,
            Operation.ADOPT: self.on_adopt,
            Operation.BEACON: self.on_beacon,
            Operation.LEARN_JOIN: self.on_join,
        }

    def on_prepare(self, connection: ServerConnection, message: list[Any]) -> None:
        """Take records of partitions that the sender leads."""
        if len(message) != 4 or type(message[3]) is not bytes:
            raise InvalidArgument("PREPARE carries the body of a log block")
        body = message[3]
        try:
            records = decode_records(body, -FRAME_BYTES, len(body))
        except (CorruptionError, UnsupportedFormat) as error:
            raise InvalidArgument(f"the records cannot be read: {error}") from error
        now_ms = self._clock.monotonic_ms()
        taken: list[LogRecord] = []
        refused: list[int] = []
        synced = False
        for record in records:
            replica = self._replicas.get((record.gpid_table, record.gpid_index))
            if replica is not None and replica.accept(record, taken):
                replica.grace.heard(now_ms)
                synced = synced or replica.fsync
                continue
            self.refused += 1
            known, last = (0, 0)
            if replica is not None:
                known, last = replica.machine.ballot, replica.machine.prepared.last_prepared
            refused += (record.gpid_table, record.gpid_index, known, last)
        self.records += len(taken)
        connection.defer()
        reply = (message[0], 0, refused)

        def done() -> None:
            connection.finish(reply)
            connection.flush()

        self._into_log(taken, done, synced)

    def on_beacon(self, connection: ServerConnection, message: list[Any]) -> None:
        """Hear that primaries are there, and what they have committed."""
        if (
            len(message) != 6
            or type(message[3]) is not list
            or type(message[4]) is not int
            or type(message[5]) is not list
            or any(type(each) is not int for each in message[3])
            or len(message[3]) % 4
            or len(message[5]) % 5
        ):
            raise InvalidArgument("BEACON names partitions with their ballots and commit points")
        now_ms = self._clock.monotonic_ms()
        refused: list[int] = []
        fields = iter(message[3])
        for table_id, index, ballot, committed in zip(fields, fields, fields, fields, strict=True):
            replica = self._replicas.get((table_id, index))
            if replica is not None:
                machine = replica.machine
                if machine.ballot == ballot and machine.status in FOLLOWS and not replica.claiming:
                    replica.grace.heard(now_ms)
                    replica.follow(committed)
                    continue
            refused += (table_id, index, 0 if replica is None else replica.machine.ballot)
        pins = iter(message[5])
        for table_id, index, uuid, decree, clock_us in zip(*[pins] * 5, strict=True):
            if type(uuid) is not bytes or type(decree) is not int or type(clock_us) is not int:
                raise InvalidArgument("BEACON's pins are uuids with their decrees and clocks")
            replica = self._replicas.get((table_id, index))
            if replica is not None and replica.machine.status in FOLLOWS:
                self._on_pins(replica, uuid, decree, clock_us)
        connection.out.append((message[0], 0, refused, self._clock.wall_us()))

    def on_adopt(self, connection: ServerConnection, message: list[Any]) -> None:
        """Follow the primary of a ballot, or learn from it."""
        if len(message) != 11:
            raise InvalidArgument("ADOPT carries a configuration and its table")
        table_id, index, ballot, primary, secondaries, learner, fields, addresses = message[3:]
        if (
            type(table_id) is not int
            or type(index) is not int
            or type(ballot) is not int
            or type(primary) is not str
            or not _is_texts(secondaries)
            or type(learner) is not bool
            or type(addresses) is not dict
            or not _is_texts(list(addresses))
            or not _is_texts(list(addresses.values()))
        ):
            raise InvalidArgument("ADOPT carries a configuration that cannot be read")
        try:
            table = table_from_wire(fields)
        except WireError as error:
            raise InvalidArgument(error.message) from error
        gpid = Gpid(table_id, index)
        configuration = PartitionConfiguration(gpid, ballot, primary, tuple(secondaries))
        accepted = self._adopting.adopt(table, configuration, addresses, learner=learner)
        replica = self._replicas.get(gpid)
        known, last = 0, 0
        if replica is not None:
            known, last = replica.machine.ballot, replica.machine.prepared.last_prepared
        connection.out.append((message[0], 0, accepted, known, last))

    def on_join(self, connection: ServerConnection, message: list[Any]) -> None:
        """A learner has copied nearly all of the log."""
        if len(message) != 8:
            raise InvalidArgument("LEARN_JOIN carries a partition, a ballot, a node and a decree")
        table_id, index, ballot, node_id, next_decree = message[3:]
        if (
            type(table_id) is not int
            or type(index) is not int
            or type(ballot) is not int
            or type(node_id) is not str
            or type(next_decree) is not int
        ):
            raise InvalidArgument("LEARN_JOIN's fields cannot be read")
        joined = self._adopting.join(Gpid(table_id, index), ballot, node_id, next_decree)
        connection.out.append((message[0], 0, joined))


def _is_texts(value: Any) -> bool:
    return type(value) is list and all(type(each) is str for each in value)
