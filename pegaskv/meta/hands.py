"""pure: what operators do by hand: the level, moves, and configurations by force.

Whatever the members can do themselves is asked of the primary. Only an assignment that leaves
a living or an unknown member out is done here, and never without the words that data may
be lost: it waits until whoever led has surely stopped, as far as that can be known.
"""

from dataclasses import dataclass, replace

from pegaskv.base.errors import InvalidArgument, TableNotFound
from pegaskv.base.limits import REPLICA_COUNT_MAX
from pegaskv.base.types import Gpid, TableStatus
from pegaskv.codec.messages_meta import OrderKind
from pegaskv.meta.assignment import Assignments
from pegaskv.meta.balancer import Shift
from pegaskv.meta.cluster import Change, PartitionRecord
from pegaskv.meta.effects import Answer, Effect, Refuse
from pegaskv.meta.events import BalanceByHand, ProposeByHand, ReplicaRequest, SetLevel
from pegaskv.meta.guardian import Guardian
from pegaskv.meta.host import Host
from pegaskv.meta.levels import check_changes_allowed
from pegaskv.meta.moves import Moves
from pegaskv.meta.nodes import Node
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.orders import Orders
from pegaskv.meta.waiting import Waiter

__all__ = ["Hands"]


@dataclass(frozen=True, slots=True)
class _Forced:
    """An assignment that waits until whoever leads has stopped."""

    request_id: int
    node_id: str
    due_ms: int


class Hands:
    """Takes the requests of operators about levels and replicas."""

    def __init__(
        self,
        host: Host,
        assignments: Assignments,
        guardian: Guardian,
        moves: Moves,
        orders: Orders,
        options: MetaOptions,
    ) -> None:
        self._host = host
        self._assignments = assignments
        self._guardian = guardian
        self._moves = moves
        self._orders = orders
        self._wait_ms = options.forced_move_wait_ms
        self._forced: dict[Gpid, _Forced] = {}

    def on_request(self, event: ReplicaRequest) -> list[Effect]:
        """Take a request."""
        match event:
            case SetLevel():
                return self._on_level(event)
            case BalanceByHand():
                check_changes_allowed(self._host.level)
                return self._on_balance(event)
            case ProposeByHand():
                check_changes_allowed(self._host.level)
                return self._on_propose(event)

    def on_time(self) -> list[Effect]:
        """Do the forced assignments that have waited long enough."""
        host, effects = self._host, list[Effect]()
        for gpid, forced in list(self._forced.items()):
            if host.now_ms < forced.due_ms:
                continue
            del self._forced[gpid]
            try:
                record = self._partition(gpid)
                node = self._node(forced.node_id)
            except (InvalidArgument, TableNotFound) as error:
                effects.append(Refuse(forced.request_id, error))
                continue
            empty = gpid not in node.replicas
            self._assignments.force(record, node.node_id, empty=empty)
            rows = "an empty replica" if empty else "what it has"
            text = f"node {node.node_id} leads partition {gpid} with {rows}"
            version = host.cluster.tables[gpid.table_id].version + 1
            host.waiters.add(gpid.table_id, Waiter(forced.request_id, version, (text,)))
        return effects

    # Levels.

    def _on_level(self, event: SetLevel) -> list[Effect]:
        host = self._host
        record = host.cluster.record
        assert record is not None
        before, level = record.level, event.level
        answer = Answer(event.request_id, None, (before.value, level.value))
        if before is level:
            return [answer]

        def then() -> list[Effect]:
            self._guardian.look_at_all()
            self._moves.look_again()
            return [answer]

        return host.store(Change(replace(record, level=level)), then)

    # Moves.

    def _on_balance(self, event: BalanceByHand) -> list[Effect]:
        gpid, source, target = event.gpid, event.source, event.target
        record = self._partition(gpid)
        self._taker(target)
        self._check_led(record)
        leads = event.kind != "copy_sec"
        if leads and record.primary != source:
            raise InvalidArgument(
                f"node {source} is not the primary of partition {gpid}",
                hint=f"its primary is node {record.primary}",
            )
        if not leads and source not in record.secondaries:
            raise InvalidArgument(f"node {source} is not a secondary of partition {gpid}")
        copies = event.kind != "move_pri"
        if copies and target in record.members:
            raise InvalidArgument(
                f"node {target} is a member of partition {gpid} already",
                hint="`balance` with move_pri moves the primary to a member",
            )
        if not copies and target not in record.secondaries:
            raise InvalidArgument(
                f"node {target} is not a secondary of partition {gpid}",
                hint="copy_pri makes a copy first",
            )
        effects = self._moves.begin(Shift(gpid, source, target, copies))
        what = "a replica" if copies else "the lead"
        text = f"partition {gpid}: {what} goes from node {source} to node {target}; `app` shows it"
        return [Answer(event.request_id, None, (text,)), *effects]

    # Proposals.

    def _on_propose(self, event: ProposeByHand) -> list[Effect]:
        record = self._partition(event.gpid)
        match event.kind:
            case "assign_primary":
                return self._assign(event, record)
            case "add_secondary":
                return self._add(event, record)
            case "remove":
                return self._remove(event, record)
        return self._downgrade(event, record)

    def _assign(self, event: ProposeByHand, record: PartitionRecord) -> list[Effect]:
        gpid, node = event.gpid, self._node(event.node_id)
        trouble = self._host.nodes.why_not_led(record)
        if not trouble and record.primary == node.node_id:
            text = f"node {node.node_id} is the primary of partition {gpid} already"
            return [Answer(event.request_id, None, (text,))]
        if not trouble and node.node_id in record.secondaries:
            return self._lead(event, record, node.node_id)
        if not event.accept_loss:
            why = trouble or f"its primary, node {record.primary}, serves it"
            raise InvalidArgument(
                f"node {node.node_id} could lead partition {gpid} by force only: {why}",
                hint="a secondary that is well takes over by itself; with --accept-loss node "
                f"{node.node_id} leads, and what it lacks is lost"
                + ("" if gpid in node.replicas else ": it has no replica, so that is everything"),
            )
        if gpid in self._forced:
            raise InvalidArgument(f"partition {gpid} is being assigned by force already")
        due_ms = self._host.now_ms + self._wait_ms
        self._forced[gpid] = _Forced(event.request_id, node.node_id, due_ms)
        return []

    def _lead(self, event: ProposeByHand, record: PartitionRecord, target: str) -> list[Effect]:
        assert record.primary is not None
        effects = self._moves.begin(Shift(event.gpid, record.primary, target, copies=False))
        text = f"partition {event.gpid}: the lead goes from node {record.primary} to node {target}"
        return [Answer(event.request_id, None, (text,)), *effects]

    def _add(self, event: ProposeByHand, record: PartitionRecord) -> list[Effect]:
        gpid, node = event.gpid, self._taker(event.node_id)
        if node.node_id in record.members:
            raise InvalidArgument(f"node {node.node_id} is a member of partition {gpid} already")
        if len(record.members) >= REPLICA_COUNT_MAX:
            raise InvalidArgument(f"partition {gpid} has {REPLICA_COUNT_MAX} members already")
        self._check_led(record)
        learner = self._guardian.learner(gpid)
        if learner == node.node_id:
            effects = []
        elif learner is not None:
            raise InvalidArgument(
                f"node {learner} is being made a secondary of partition {gpid}",
                hint="try again when it is one",
            )
        else:
            effects = self._guardian.learn(record, node.node_id)
        text = f"node {node.node_id} copies partition {gpid}, and is a secondary when it has all"
        table = self._host.cluster.tables[gpid.table_id]
        if len(record.members) >= table.replica_count:
            text += f"; the table wants {table.replica_count}, so one is removed then"
        return [Answer(event.request_id, None, (text,)), *effects]

    def _remove(self, event: ProposeByHand, record: PartitionRecord) -> list[Effect]:
        gpid, node_id = event.gpid, event.node_id
        if node_id == record.primary:
            raise InvalidArgument(
                f"node {node_id} is the primary of partition {gpid}",
                hint="`propose` with downgrade makes it a secondary first",
            )
        if node_id not in record.secondaries:
            raise InvalidArgument(f"node {node_id} is not a member of partition {gpid}")
        self._check_led(record)
        text = f"node {node_id} is taken out of partition {gpid}"
        effects = self._orders.to_primary(record, OrderKind.REMOVE, node_id, self._host.now_ms)
        return [Answer(event.request_id, None, (text,)), *effects]

    def _downgrade(self, event: ProposeByHand, record: PartitionRecord) -> list[Effect]:
        gpid, nodes = event.gpid, self._host.nodes
        if event.node_id != record.primary:
            raise InvalidArgument(
                f"node {event.node_id} is not the primary of partition {gpid}",
                hint="`propose` with remove takes a secondary out",
            )
        self._check_led(record)
        heirs = [one for one in record.secondaries if nodes.is_alive(one)]
        heirs = [one for one in heirs if not nodes[one].leaving]
        if not heirs:
            raise InvalidArgument(f"partition {gpid} has no other member that is alive")
        primaries, _ = nodes.counts()
        target = min(heirs, key=lambda one: (primaries.get(one, 0), one))
        return self._lead(event, record, target)

    # What there must be.

    def _partition(self, gpid: Gpid) -> PartitionRecord:
        record = self._host.cluster.partition(gpid)
        table = self._host.cluster.tables.get(gpid.table_id)
        if record is None or table is None or table.status is TableStatus.DROPPED:
            raise TableNotFound(f"there is no partition {gpid}", hint="`ls` shows the tables")
        if table.status is TableStatus.CREATING:
            raise InvalidArgument(f"table `{table.name}` is being created")
        return record

    def _node(self, node_id: str) -> Node:
        node = self._host.nodes.get(node_id)
        if node is None or not node.alive:
            raise InvalidArgument(
                f"node {node_id[:80]} is not alive", hint="`nodes` shows the ids of those that are"
            )
        return node

    def _taker(self, node_id: str) -> Node:
        node = self._node(node_id)
        if not node.takes_replicas:
            why = "leaves" if node.leaving else "has a disk that is nearly full"
            raise InvalidArgument(f"node {node_id} {why}, so it gets no replicas")
        return node

    def _check_led(self, record: PartitionRecord) -> None:
        trouble = self._host.nodes.why_not_led(record)
        if trouble:
            raise InvalidArgument(
                f"nobody leads partition {record.gpid}: {trouble}",
                hint="`ddd_diagnose` says what can be done",
            )
