"""What replica servers and their meta server ask of each other, as handlers of requests."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.types import Gpid, PartitionConfiguration
from pegaskv.codec.messages_duplication import PartitionProgress, ProgressReport
from pegaskv.codec.messages_meta import NodeBeacon, NodeReport, Order, Proposal, TablePush
from pegaskv.codec.operations import Operation
from pegaskv.codec.wire_meta import (
    configuration_to_wire,
    node_beacon_from_wire,
    node_leaving_from_wire,
    node_report_from_wire,
    order_from_wire,
    partition_progress_to_wire,
    progress_report_from_wire,
    proposal_from_wire,
    push_from_wire,
    replica_states_to_wire,
)
from pegaskv.net.connection import Handler
from pegaskv.runtime.tasks import TaskScope
from pegaskv.server.deferring import Work, deferring

__all__ = ["ControlledNode", "LeadingMeta", "control_handlers", "node_handlers"]


class ControlledNode(Protocol):
    """A replica server, as its meta server commands it."""

    async def configure(self, push: TablePush) -> None:
        """Return when the push is in force."""
        ...

    async def obey(self, order: Order) -> str:
        """Do as ordered; return a sentence on what that is."""
        ...

    async def states(
        self, table_id: int
    ) -> Iterable[tuple[Gpid, Mapping[str, Any], Mapping[bytes, Mapping[str, Any]]]]:
        """Return what is shown of the replicas of a table, or of all."""
        ...


class LeadingMeta(Protocol):
    """A meta server, as its replica servers see it."""

    @property
    def cluster_uuid(self) -> str:
        """Which cluster it leads."""
        ...

    async def report(self, report: NodeReport) -> None:
        """Return when the node has been told what it has to do."""
        ...

    def beacon(self, beacon: NodeBeacon) -> bool:
        """The node is alive; whether it has reported."""
        ...

    async def leaving(self, node_id: str, process: str) -> int:
        """The node is about to go; return how many partitions still need it."""
        ...

    async def propose(self, proposal: Proposal) -> tuple[PartitionConfiguration, Mapping[str, str]]:
        """Return what is stored now."""
        ...

    async def report_progress(self, reports: list[ProgressReport]) -> list[PartitionProgress]:
        """Return when they are stored."""
        ...


def control_handlers(node: ControlledNode, scope: TaskScope) -> dict[int, Handler]:
    """Return what a replica server answers to its meta server."""

    def configure(fields: list[Any]) -> Work:
        push = push_from_wire(_one(fields, "configure"))

        async def work() -> tuple[Any, ...]:
            await node.configure(push)
            return ()

        return work

    def obey(fields: list[Any]) -> Work:
        order = order_from_wire(fields)

        async def work() -> tuple[Any, ...]:
            return (await node.obey(order),)

        return work

    def states(fields: list[Any]) -> Work:
        table_id = _one(fields, "replica_states")
        if type(table_id) is not int:
            raise InvalidArgument("a table id is a whole number")

        async def work() -> tuple[Any, ...]:
            return (replica_states_to_wire(await node.states(table_id)),)

        return work

    return {
        Operation.CONFIGURE: deferring(scope, "configure", configure),
        Operation.OBEY: deferring(scope, "obey", obey),
        Operation.REPLICA_STATES: deferring(scope, "replica states", states),
    }


def node_handlers(
    meta: LeadingMeta, scope: TaskScope, *, cluster_name: str, cluster_id: int
) -> dict[int, Handler]:
    """Return what a meta server answers to its replica servers."""

    def report(fields: list[Any]) -> Work:
        found = node_report_from_wire(fields)

        async def work() -> tuple[Any, ...]:
            await meta.report(found)
            return (cluster_name, cluster_id, meta.cluster_uuid)

        return work

    def beacon(connection: Any, message: list[Any]) -> None:
        known = meta.beacon(node_beacon_from_wire(message[3:]))
        connection.out.append((message[0], 0, known))

    def leaving(fields: list[Any]) -> Work:
        node_id, process = node_leaving_from_wire(fields)

        async def work() -> tuple[Any, ...]:
            return (await meta.leaving(node_id, process),)

        return work

    def propose(fields: list[Any]) -> Work:
        proposal = proposal_from_wire(fields)

        async def work() -> tuple[Any, ...]:
            return configuration_to_wire(*await meta.propose(proposal))

        return work

    def report_progress(fields: list[Any]) -> Work:
        sent = _one(fields, "report_progress")
        if type(sent) is not list:
            raise InvalidArgument("progress is reported as a list")
        reports = [progress_report_from_wire(one) for one in sent]

        async def work() -> tuple[Any, ...]:
            stored = await meta.report_progress(reports)
            return ([partition_progress_to_wire(one) for one in stored],)

        return work

    return {
        Operation.NODE_REPORT: deferring(scope, "node report", report),
        Operation.NODE_BEACON: beacon,
        Operation.NODE_LEAVING: deferring(scope, "node leaving", leaving),
        Operation.PROPOSE: deferring(scope, "proposal", propose),
        Operation.REPORT_PROGRESS: deferring(scope, "progress", report_progress),
    }


def _one(fields: list[Any], name: str) -> Any:
    if len(fields) != 1:
        raise InvalidArgument(f"{name} has one field; these are {len(fields)}")
    return fields[0]
