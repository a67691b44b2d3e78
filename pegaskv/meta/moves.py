"""pure: replicas on their way from one node to another, for balance or by an operator's order.

A move is carried out by the primary, step by step: the target learns and becomes a member, the
lead goes over if the source has it, the source is removed. Every step is an order that is
repeated until the stored configuration shows it; so a move that is given up on the way leaves
a whole partition, and the guardian takes away what is too much.

Plans are made only while nothing is to be repaired and nothing is being moved.
"""

from dataclasses import dataclass

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.limits import REPLICA_COUNT_MAX
from pegaskv.base.types import Gpid
from pegaskv.codec.messages_meta import OrderKind
from pegaskv.meta.balancer import Shift, plan_shifts
from pegaskv.meta.cluster import PartitionRecord
from pegaskv.meta.effects import Effect
from pegaskv.meta.guardian import Guardian
from pegaskv.meta.host import Host
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.orders import Orders
from pegaskv.meta.placement import Layout

__all__ = ["Moves"]


@dataclass(slots=True)
class _Move:
    shift: Shift
    since_ms: int
    # Ordered by an operator: done below the level lively too.
    by_hand: bool = False


class Moves:
    """All moves under way; invariant: at most one for each partition."""

    def __init__(
        self, host: Host, guardian: Guardian, orders: Orders, options: MetaOptions
    ) -> None:
        self._host = host
        self._guardian = guardian
        self._orders = orders
        self._options = options
        self._moves: dict[Gpid, _Move] = {}
        self._planned_ms = 0
        # Whether the last plan was empty, and nothing has changed since.
        self._even = False

    @property
    def count(self) -> int:
        """How many moves are under way."""
        return len(self._moves)

    @property
    def even(self) -> bool:
        """Whether nothing has to be moved, as far as it was looked at."""
        return self._even and not self._moves

    def look_again(self) -> None:
        """Nodes or tables have changed."""
        self._even = False

    def on_stored(self, record: PartitionRecord) -> list[Effect]:
        """A partition has another configuration: its move may go on."""
        self._even = False
        return self._go_on(record.gpid) if record.gpid in self._moves else []

    def on_time(self) -> list[Effect]:
        """Go on with what is under way, or plan more."""
        effects: list[Effect] = []
        for gpid in list(self._moves):
            effects += self._go_on(gpid)
        if not self._moves and self._may_plan():
            effects += self._plan()
        return effects

    def begin(self, shift: Shift) -> list[Effect]:
        """Begin a move by hand.

        Raises:
            InvalidArgument: it is moved already.

        """
        if shift.gpid in self._moves:
            raise InvalidArgument(
                f"partition {shift.gpid} is being moved already", hint="try again in a moment"
            )
        return self._begin(shift, by_hand=True)

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        assert set(self._moves) == self._guardian.moved

    # Planning.

    def _may_plan(self) -> bool:
        host, options = self._host, self._options
        now = host.now_ms
        return (
            not self._even
            and host.level.balances
            and host.nodes.settled
            and self._guardian.all_fit
            and now - self._planned_ms >= options.balance_interval_ms
            and all(now - one.since_ms >= options.balance_settle_ms for one in host.nodes.alive)
        )

    def _plan(self) -> list[Effect]:
        self._planned_ms = self._host.now_ms
        takers = [node.node_id for node in self._host.nodes.takers]
        layout = Layout.of(self._host.cluster, takers, available=True)
        shifts = plan_shifts(layout, self._options.balance_moves_max)
        self._even = not shifts
        effects: list[Effect] = []
        for shift in shifts:
            effects += self._begin(shift, by_hand=False)
        return effects

    def _begin(self, shift: Shift, *, by_hand: bool) -> list[Effect]:
        self._moves[shift.gpid] = _Move(shift, self._host.now_ms, by_hand)
        self._guardian.moved.add(shift.gpid)
        return self._go_on(shift.gpid)

    # Going on.

    def _go_on(self, gpid: Gpid) -> list[Effect]:
        move = self._moves[gpid]
        record = self._host.cluster.partition(gpid)
        if record is None or not self._holds(move, record):
            return self._end(gpid, record)
        shift, now = move.shift, self._host.now_ms
        source, target = shift.source, shift.target
        if target in record.members:
            if record.primary == source:
                return self._orders.to_primary(record, OrderKind.MOVE_PRIMARY, target, now)
            if not shift.copies or source not in record.members:
                return self._end(gpid, record)
            return self._orders.to_primary(record, OrderKind.REMOVE, source, now)
        if not shift.copies:
            return self._end(gpid, record)
        learner = self._guardian.learner(gpid)
        if learner is None:
            if len(record.members) >= REPLICA_COUNT_MAX:
                # Room is made first; there are members enough.
                if record.primary == source:
                    heir = record.secondaries[0]
                    return self._orders.to_primary(record, OrderKind.MOVE_PRIMARY, heir, now)
                return self._orders.to_primary(record, OrderKind.REMOVE, source, now)
            node = self._host.nodes[target]
            if not self._guardian.may_learn(gpid, node):
                move.since_ms = now
                return []
            return self._guardian.learn(record, target)
        if learner != target:
            return self._end(gpid, record)
        effects = self._guardian.go_on_learning(record)
        if self._guardian.learner(gpid) is None:
            return effects + self._end(gpid, record)
        move.since_ms = now
        return effects

    def _holds(self, move: _Move, record: PartitionRecord) -> bool:
        """Whether a move goes on: its nodes are well, and it does not take for ever."""
        host, shift = self._host, move.shift
        late = host.now_ms - move.since_ms >= self._options.learner_patience_ms
        target = host.nodes.get(shift.target)
        level = host.level.repairs if move.by_hand else host.level.balances
        return (
            level
            and (move.by_hand or all(host.nodes.is_alive(one) for one in record.members))
            and not late
            and target is not None
            and target.alive
            and not target.leaving
            and host.nodes.is_alive(record.primary)
            and shift.gpid.table_id in host.cluster.tables
            and not host.cluster.tables[shift.gpid.table_id].expires_at
        )

    def _end(self, gpid: Gpid, record: PartitionRecord | None) -> list[Effect]:
        """Whatever was reached stays; what is too much or too little is the guardian's."""
        shift = self._moves.pop(gpid).shift
        self._guardian.moved.discard(gpid)
        self._even = False
        if record is not None and self._guardian.learner(gpid) == shift.target:
            return self._guardian.give_up(record, shift.target)
        return []
