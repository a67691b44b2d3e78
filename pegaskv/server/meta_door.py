"""The meta servers of the cluster, as a replica server sees them: whoever leads is asked.

The other side is `node_handlers.node_handlers`. One of them is asked; when it says that
another leads, or does not answer, the next call asks the other. Nothing here is on the path
of a read or a write: replicas go on while no meta server answers.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from pegaskv.base.errors import (
    ForwardToOthers,
    PegasKVError,
    Timeout,
    Unavailable,
    WireError,
)
from pegaskv.base.types import PartitionConfiguration
from pegaskv.codec.messages_duplication import PartitionProgress, ProgressReport
from pegaskv.codec.messages_meta import NodeBeacon, NodeReport, Proposal
from pegaskv.codec.operations import Operation
from pegaskv.codec.wire_meta import (
    configuration_from_wire,
    node_beacon_to_wire,
    node_report_to_wire,
    partition_progress_from_wire,
    progress_report_to_wire,
    proposal_to_wire,
)
from pegaskv.net.peer import PeerConnections
from pegaskv.runtime.clock import Clock

__all__ = ["Cluster", "MetaDoor", "MetaSession"]

_log = logging.getLogger(__name__)

# A report is answered when all that the node has to do was told to it.
_REPORT_MS: Final = 60_000
_ASK_MS: Final = 3_000
_BEACON_MS: Final = 2_000
_RETRY_MS: Final = 500

# What a meta server says of the cluster that it leads: name, id, uuid.
Cluster = tuple[str, int, str]


class MetaDoor:
    """Asks the leading one of `metas`, HOST:PORT each."""

    def __init__(self, metas: Sequence[str], *, peers: PeerConnections) -> None:
        self._metas = list(metas)
        self._peers = peers
        self.address = self._metas[0]

    @property
    def connection(self) -> tuple[str, int]:
        """Which connection is used: another value means that a new one was made."""
        return self.address, self._peers.at(self.address).made

    @property
    def own_host(self) -> str:
        """The address of this machine on the way to the meta server, "" while not connected."""
        return self._peers.at(self.address).own_host

    async def reach(self) -> None:
        """Return when the meta server was heard. Raises PegasKVError."""
        await self._ask(Operation.PING, _BEACON_MS, ())

    async def report(self, report: NodeReport) -> Cluster:
        """Tell who this node is and what it has; return whose cluster it is in.

        Raises:
            PegasKVError: nothing is known of it; report again.

        """
        fields = await self._ask(Operation.NODE_REPORT, _REPORT_MS, node_report_to_wire(report))
        match fields:
            case [str(name), int(cluster_id), str(uuid)]:
                return name, cluster_id, uuid
        raise WireError("the meta server answered a report by what is no answer")

    async def beacon(self, beacon: NodeBeacon) -> bool:
        """Say that this node lives; return whether it is known there. Raises PegasKVError."""
        fields = await self._ask(Operation.NODE_BEACON, _BEACON_MS, node_beacon_to_wire(beacon))
        return fields == [True]

    async def leaving(self, node_id: str, process: str) -> int:
        """Say that this node is about to go; return how many partitions still name it.

        Raises:
            PegasKVError: the meta server cannot be asked at this moment.

        """
        fields = await self._ask(Operation.NODE_LEAVING, _BEACON_MS, (node_id, process))
        if len(fields) != 1 or type(fields[0]) is not int:
            raise WireError("the meta server answered a leave by what is no answer")
        return fields[0]

    async def propose(self, proposal: Proposal) -> tuple[PartitionConfiguration, Mapping[str, str]]:
        """See `replica.doors.ConfigurationDoor`."""
        fields = await self._ask(Operation.PROPOSE, _ASK_MS, proposal_to_wire(proposal))
        return configuration_from_wire(proposal.gpid, fields)

    async def report_progress(self, reports: list[ProgressReport]) -> list[PartitionProgress]:
        """See `duplication.doors.ProgressDoor`."""
        sent = [progress_report_to_wire(one) for one in reports]
        fields = await self._ask(Operation.REPORT_PROGRESS, _ASK_MS, (sent,))
        if len(fields) != 1 or type(fields[0]) is not list:
            raise WireError("the meta server answered a report of progress by what is no answer")
        return [partition_progress_from_wire(one) for one in fields[0]]

    async def _ask(
        self, operation: Operation, timeout_ms: int, fields: tuple[Any, ...]
    ) -> list[Any]:
        # Each may be away, and one may say who leads.
        for _ in range(2 * len(self._metas)):
            asked = self.address
            try:
                return await self._peers.at(asked).request(operation, timeout_ms, *fields)
            except ForwardToOthers as error:
                leader = error.details if type(error.details) is str else ""
                self._turn_from(asked, leader)
            except (Unavailable, Timeout) as error:
                self._turn_from(asked)
                if error.maybe_applied or len(self._metas) == 1:
                    raise
        raise Unavailable("none of the meta servers leads at this moment")

    def _turn_from(self, asked: str, leader: str = "") -> None:
        """Ask another one from now on, unless somebody else has turned already."""
        if self.address == asked:
            known = self._metas.index(asked) if asked in self._metas else -1
            self.address = leader or self._metas[(known + 1) % len(self._metas)]


class MetaSession:
    """Keeps the meta server informed of this node: a report, then beacons.

    It reports on every new connection, and whenever the meta server does not know the node.
    `on_joined` is called with what each report was answered.
    """

    def __init__(
        self,
        door: MetaDoor,
        *,
        clock: Clock,
        report: Callable[[], NodeReport],
        beacon: Callable[[], NodeBeacon],
        beacon_interval_ms: int,
        on_joined: Callable[[Cluster], Any],
    ) -> None:
        self._door = door
        self._clock = clock
        self._report = report
        self._beacon = beacon
        self._interval_ms = beacon_interval_ms
        self._on_joined = on_joined
        self._poked = asyncio.Event()
        # Why the meta server could not be told, since when.
        self._trouble = ""
        self._since_ms = 0

    def poke(self) -> None:
        """A connection was made, or has ended: do not wait for the next beacon."""
        self._poked.set()

    @property
    def trouble(self) -> str:
        """Why no meta server knows of this node at the moment, in a sentence; "" when one does."""
        if not self._trouble:
            return ""
        seconds = (self._clock.monotonic_ms() - self._since_ms) // 1_000
        return f"no meta server answers, for {seconds} s: {self._trouble}"

    async def run(self) -> None:
        """Report and send beacons until cancelled."""
        while True:
            connection = await self._join()
            while await self._is_known(connection):
                await self._pause(self._interval_ms)

    async def _join(self) -> tuple[str, int]:
        while True:
            try:
                # Then it is known too how this machine is reached from there.
                await self._door.reach()
                joined = await self._door.report(self._report())
            except (PegasKVError, OSError) as error:
                self._failed(error)
                await self._pause(_RETRY_MS)
            else:
                self._succeeded()
                self._on_joined(joined)
                return self._door.connection

    async def _is_known(self, connection: tuple[str, int]) -> bool:
        if self._door.connection != connection:
            return False
        try:
            known = await self._door.beacon(self._beacon())
        except (PegasKVError, OSError) as error:
            self._failed(error)
            return True
        self._succeeded()
        return known

    async def _pause(self, milliseconds: int) -> None:
        # A poke that came before counts too: it may have come while a beacon was on its way.
        with suppress(TimeoutError):
            async with self._clock.timeout_ms(milliseconds):
                await self._poked.wait()
        self._poked.clear()

    def _failed(self, error: Exception) -> None:
        if not self._trouble:
            self._since_ms = self._clock.monotonic_ms()
            _log.warning(
                "no meta server answers: %s; it is asked again and again, and rows are served "
                "meanwhile",
                error,
            )
        self._trouble = str(error) or type(error).__name__

    def _succeeded(self) -> None:
        if self._trouble:
            _log.info("the meta server at %s answers", self._door.address)
        self._trouble = ""
