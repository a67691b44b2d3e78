"""Who is a member of what: streams opened, leases watched, changes proposed.

A primary keeps a stream open to each of its members, beacons to them, serves while all of
them have acknowledged within the lease, and asks for the removal of one that does not
answer. A secondary that hears nothing for the grace asks to lead. What they ask for is
decided by the meta server's compare-and-set alone, and while the outcome is unknown a
primary obeys both configurations; asking again is always right, so it is done until there
is an answer.

`may_answer` is what every connection asks before it writes: a primary whose leases ended
while its process stood still must not answer with what it read then.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from pegaskv.base.errors import PegasKVError, RequestError
from pegaskv.base.types import Gpid, PartitionConfiguration, ReplicaStatus, TableInfo
from pegaskv.codec.messages_meta import Proposal, ProposalKind, table_to_wire
from pegaskv.codec.operations import Operation
from pegaskv.lease.lease import FOR_EVER
from pegaskv.replica.events import ProposalClosed, ProposalOpened
from pegaskv.replica.ground import Ground, Partitions
from pegaskv.replica.group import Group
from pegaskv.replica.replica import Replica
from pegaskv.replica.streams import Line, Stream
from pegaskv.storage.log_format import LogRecord, RecordFields, encode_records

__all__ = ["LOOK_MS", "Membership"]

_log = logging.getLogger(__name__)

_PRIMARY: Final = ReplicaStatus.PRIMARY
_SECONDARY: Final = ReplicaStatus.SECONDARY
_ADOPT: Final = int(Operation.ADOPT)
_TIMEOUT_MS: Final = 10_000

# How often leases, graces and silent members are looked at.
LOOK_MS: Final = 100
# A primary stops serving so long before its lease ends, so that no answer is caught by its end.
_MARGIN_MS: Final = 250
# When this process stood still for longer, what others did meanwhile is on its way to us.
_STALL_MS: Final = 500
_PROPOSE_PAUSE_MS: Final = 100
# How far the wall clock may be off those of all other servers before that is said.
_CLOCK_US_MAX: Final = 60_000_000
# How long a primary that hears no secondary at all lets them claim before it removes them.
_BENEFIT_MS: Final = 1_500
# How soon a member, or a learner, that did not adopt its primary is asked again. A new member has
# mostly just not heard from the meta server yet that it is one, and clients wait for it: it is
# asked again very soon, and then later and later.
_RETRY_FIRST_MS: Final = 8
_RETRY_MS: Final = 200
_LEARNER_RETRY_MS: Final = 3_000
# How often is looked, at least, whether all that is under way is done.
_DRAIN_MS_MAX: Final = 16
# Who has been told nothing for so long is told; a member knows the commit point after twice that.
_TELL_S: Final = 0.005


class Membership:
    """All partitions of one server, as members of their groups.

    `on_configured` takes a configuration that the meta server has answered with.
    """

    def __init__(
        self,
        group: Group,
        partitions: Partitions,
        ground: Ground,
        *,
        call_later: Callable[[float, Callable[[], Any]], Any],
        on_configured: Callable[[PartitionConfiguration], Any],
    ) -> None:
        clock = self._clock = ground.clock
        self._node_id = ground.node_id
        self._process = group.process
        self._replicas = partitions.replicas
        self._tables = partitions.tables
        self._meta = group.meta
        peers = self._peers = group.peers
        self._options = group.lease
        self._scope = ground.scope
        self._call_later = call_later
        self._on_configured = on_configured
        self._on_committed = ground.front.committed
        self._lines: dict[str, Line] = {}
        # Who has committed what its members may not know, and what that was at first.
        self._untold: dict[Replica, int] = {}
        self._telling = False
        self._looked_ms = clock.monotonic_ms()
        self._beaconed_ms = 0
        self._proposing: set[tuple[int, int]] = set()
        # Until when all serving primaries here may answer.
        self._until_ms = FOR_EVER
        self._clock_is_wrong = False
        self.proposals = 0
        self.stalls = 0
        peers.on_connected(self._on_connected)

    # --- Leases ------------------------------------------------------------------------

    def may_answer(self) -> bool:
        """Whether what was read in this turn may leave; asked once for each write."""
        if self._until_ms == FOR_EVER:
            return True
        now_ms = self._clock.monotonic_ms()
        if now_ms >= self._until_ms:
            self._note_leases()
        return now_ms < self._until_ms

    def _note_leases(self) -> None:
        """Find out until when all that are leased may serve; later acknowledgements prolong it."""
        self._until_ms = min(
            (each.lease.until for each in self._replicas.values() if each.streams and each.leased),
            default=FOR_EVER,
        )

    # --- Streams -----------------------------------------------------------------------

    def lead(self, replica: Replica) -> None:
        """`replica` has just been assigned: open its streams under the new ballot."""
        machine = replica.machine
        now_ms = self._clock.monotonic_ms()
        learners = [each.node_id for each in replica.streams.values() if each.learner]
        replica.end_streams()
        for node_id in machine.secondaries:
            self._add_stream(replica, node_id, now_ms, learner=False)
        for node_id in learners:
            if node_id not in replica.streams and node_id != self._node_id:
                self._add_stream(replica, node_id, now_ms, learner=True)
        replica.lease.set_members(machine.followers, now_ms)
        for stream in replica.streams.values():
            # Its records, the barrier first, come with the next tick.
            self._open(stream, window=False)
        # Whoever acknowledged something under the ballot before waits a grace from then: that
        # lease goes on. A new member has given none yet.
        replica.set_leased(replica.lease.valid(now_ms + _MARGIN_MS))
        self.look_at(replica)
        # Not with the next look: this process may stand still before it.
        self._note_leases()

    def _add_stream(self, replica: Replica, node_id: str, now_ms: int, *, learner: bool) -> Stream:
        line = self._line(node_id)
        stream = Stream(replica, line, replica.machine.ballot, now_ms, learner=learner)
        replica.streams[node_id] = stream
        line.streams[stream] = None
        return stream

    def _line(self, node_id: str) -> Line:
        line = self._lines.get(node_id)
        if line is None:
            line = self._lines[node_id] = Line(
                self._peers.peer(node_id),
                now_ms=self._clock.monotonic_ms,
                wall_us=self._clock.wall_us,
                on_acknowledged=self._on_acknowledged,
            )
        return line

    def _open(self, stream: Stream, *, window: bool = True) -> None:
        """Let the member adopt the ballot; what it may lack follows.

        A learner asks for the stream itself, when it is near.
        """
        replica, peer = stream.replica, stream.line.peer
        table = self._tables.get(replica.gpid.table_id)
        if not peer.connected or stream.opening or table is None:
            return
        joining = stream.learner and stream.node_id in replica.machine.followers
        pause_ms = _RETRY_MS if joining or not stream.learner else _LEARNER_RETRY_MS
        stream.retry_ms = self._clock.monotonic_ms() + pause_ms
        if joining:
            # It may be a member by now: what it has acknowledged must not be learned anew.
            stream.opened = True
            self._send(stream, replica.window())
            return
        stream.opening = peer.submit(
            self._adoption(stream, table), partial(self._on_adopted, stream)
        )
        if not stream.opening or stream.learner:
            return
        stream.opened = True
        if window:
            self._send(stream, replica.window())

    def _adoption(self, stream: Stream, table: TableInfo) -> tuple[Any, ...]:
        replica = stream.replica
        machine = replica.machine
        members = (self._node_id, *machine.secondaries, stream.node_id)
        return (
            _ADOPT,
            _TIMEOUT_MS,
            *replica.gpid,
            stream.ballot,
            self._node_id,
            list(machine.secondaries),
            stream.learner,
            table_to_wire(table),
            self._peers.addresses(members),
        )

    def _send(self, stream: Stream, records: Iterable[LogRecord]) -> None:
        for record in records:
            stream.send(record)
        stream.line.send()

    def _on_adopted(self, stream: Stream, reply: list[Any] | None) -> None:
        stream.opening = False
        if not self._is_current(stream):
            return
        if reply is not None and reply[1] == 0 and reply[2] is True:
            return
        stream.close(self._clock.monotonic_ms())
        if reply is not None and not stream.learner:
            pause_ms = min(_RETRY_FIRST_MS << stream.refusals, _RETRY_MS)
            if pause_ms < _RETRY_MS:
                stream.refusals += 1
                self._call_later(pause_ms / 1_000, partial(self._open_again, stream))

    def _open_again(self, stream: Stream) -> None:
        if self._is_current(stream) and not stream.opened:
            self._open(stream)

    def _is_current(self, stream: Stream) -> bool:
        return stream.replica.streams.get(stream.node_id) is stream

    def _on_connected(self, node_id: str) -> None:
        """A connection was made or has ended."""
        line = self._lines.get(node_id)
        if line is None:
            return
        now_ms = self._clock.monotonic_ms()
        for stream in list(line.streams):
            stream.close(now_ms)
            if line.peer.connected:
                self._open(stream)
        line.beacon_since_ms = None
        if line.peer.connected:
            line.beacon(stream for stream in line.streams if not stream.learner)

    def join(self, replica: Replica, node_id: str, next_decree: int) -> bool:
        """A learner wants the stream from `next_decree` on; False when it must copy more log."""
        stream = replica.streams.get(node_id)
        if stream is None or not stream.learner or not stream.line.peer.connected:
            return False
        ring = replica.keep_ring()
        last = replica.machine.prepared.last_prepared
        first = ring.first_decree or last + 1
        if not first <= next_decree <= last + 1:
            return False
        # What waits for the next tick is sent with it.
        stream.opened = True
        stream.opening = False
        stream.acknowledged = next_decree - 1
        self._send(stream, [record for record in ring if record.decree >= next_decree])
        if next_decree > last:
            stream.waiting_since_ms = None
        # Before it may become a member it must have given a lease.
        stream.line.beacon([stream])
        return True

    def learn(self, replica: Replica, node_id: str) -> str:
        """Let a node learn; return how that stands."""
        stream = replica.streams.get(node_id)
        if stream is not None:
            return "it learns already" if stream.learner else "it is a member already"
        stream = self._add_stream(replica, node_id, self._clock.monotonic_ms(), learner=True)
        replica.keep_ring()
        self._open(stream)
        return "it begins to learn"

    def teaches(self, gpid: Gpid, node_id: str) -> bool:
        """Whether a node is to learn a partition that is led here."""
        replica = self._replicas.get(gpid)
        stream = None if replica is None else replica.streams.get(node_id)
        return stream is not None and stream.learner

    def dismiss(self, replica: Replica, node_id: str) -> str:
        """Let a learner go, or propose the removal of a secondary; return how that stands."""
        stream = replica.streams.get(node_id)
        if stream is None:
            return "it is no member"
        if stream.learner and replica.gpid not in self._proposing:
            self._drop(stream)
            return "it learns no more"
        if stream.learner:
            return "it is about to become a secondary"
        self._propose(replica, ProposalKind.REMOVE, node_id)
        return "its removal is proposed"

    def _drop(self, stream: Stream) -> None:
        replica = stream.replica
        replica.streams.pop(stream.node_id, None)
        stream.end()
        if not any(each.learner for each in replica.streams.values()):
            replica.ring = None

    # --- What comes back ---------------------------------------------------------------

    def _on_acknowledged(self, line: Line, acknowledged: Iterable[tuple[Stream, int]]) -> None:
        moved: dict[Replica, None] = {}
        for stream, sent_ms in acknowledged:
            replica, node_id = stream.replica, stream.node_id
            # `_is_current`, written out.
            if replica.streams.get(node_id) is not stream:
                continue
            machine = replica.machine
            if not stream.learner or node_id in machine.followers:
                replica.lease.acknowledged(node_id, sent_ms)
                if not replica.leased:
                    self.look_at(replica)
                committed = machine.prepared.committed
                machine.acknowledged(node_id, stream.ballot, stream.acknowledged)
                if machine.prepared.committed != committed:
                    moved[replica] = None
            if stream.learner:
                self._consider_upgrade(stream)
        if moved or line.was_full:
            # One answer may be too little room for those who wait.
            line.was_full = line.full
            self._on_committed(moved)

    def _consider_upgrade(self, stream: Stream) -> None:
        replica, now_ms = stream.replica, self._clock.monotonic_ms()
        if (
            stream.opened
            and replica.machine.serving
            and stream.node_id not in replica.machine.followers
            and replica.machine.has_all_committed(stream.acknowledged)
            and stream.leased_ms + self._options.lease_ms > now_ms + _MARGIN_MS
        ):
            self._propose(replica, ProposalKind.UPGRADE, stream.node_id)

    def untold(self, replica: Replica) -> None:
        """Its members hear the commit point with the next records, or soon without."""
        if replica not in self._untold:
            self._untold[replica] = replica.machine.committed
            if not self._telling:
                self._telling = True
                self._call_later(_TELL_S, self._tell)

    def _tell(self) -> None:
        """Tell by beacons what nobody was told by records since the last time."""
        self._telling = False
        untold, self._untold = self._untold, {}
        lines: dict[Line, list[Stream]] = {}
        for replica, old in untold.items():
            for stream in replica.streams.values():
                if not stream.opened:
                    continue
                if stream.told < old:
                    lines.setdefault(stream.line, []).append(stream)
                elif stream.told < replica.machine.committed:
                    # It is written to all the time: the next records will tell, or the next time.
                    self.untold(replica)
        for line, streams in lines.items():
            line.tell(streams)

    def send_lines(self, records: list[RecordFields]) -> None:
        """These records of own partitions were logged: send what streams have of them."""
        body = b""
        for line in self._lines.values():
            if not body and line.takes(len(records)):
                # Mostly every server gets all of it: packed once.
                body = encode_records(records)
            line.send(len(records), body)

    # --- The watch ---------------------------------------------------------------------

    async def look(self) -> None:
        """Look at all leases, graces and members; called every `LOOK_MS`."""
        now_ms = self._clock.monotonic_ms()
        late_ms = now_ms - self._looked_ms - LOOK_MS
        self._looked_ms = now_ms
        if late_ms > _STALL_MS:
            # What arrived meanwhile is not read yet: nobody is blamed for our own silence.
            self.stalls += 1
            _log.warning("this process stood still for %d ms", late_ms)
            for line in self._lines.values():
                if line.beacon_since_ms is not None:
                    line.beacon_since_ms = now_ms
        for replica in list(self._replicas.values()):
            status = replica.machine.status
            if status is _PRIMARY:
                if replica.streams:
                    self._look_at_members(replica, now_ms, stalled=late_ms > _STALL_MS)
                self.look_at(replica)
                if replica.closed:
                    self._hand_closed_over(replica)
            elif status is _SECONDARY:
                if late_ms > _STALL_MS:
                    replica.grace.heard(now_ms)
                elif replica.grace.over(now_ms) and not replica.closed:
                    self._propose(replica, ProposalKind.CLAIM, self._node_id)
        self._note_leases()
        if now_ms - self._beaconed_ms >= self._options.beacon_interval_ms:
            self._beaconed_ms = now_ms
            self._look_at_clock()
            for line in self._lines.values():
                line.beacon(list(line.streams))

    def _look_at_clock(self) -> None:
        """Say it when the wall clock here is another than everybody else's."""
        ahead = [line.ahead_us for line in self._lines.values() if line.peer.connected]
        others = min(ahead, key=abs, default=0)
        wrong = len(ahead) > 1 and abs(others) > _CLOCK_US_MAX
        if wrong and not self._clock_is_wrong:
            _log.error(
                "the wall clock of this server is %d s off those of all %d others: rows expire at "
                "wrong times, and what is written here may be refused elsewhere; set it",
                -others // 1_000_000,
                len(ahead),
            )
        self._clock_is_wrong = wrong

    def look_at(self, replica: Replica) -> None:
        """Serve, or stop serving, as the members' leases are."""
        now_ms = self._clock.monotonic_ms()
        leased = replica.lease.valid(now_ms + _MARGIN_MS)
        if leased is not replica.leased:
            if not leased:
                _log.warning("partition %s: a member is silent; nothing is served", replica.gpid)
            replica.set_leased(leased)
            self._note_leases()
        self._count_members(replica)

    def _count_members(self, replica: Replica) -> None:
        """Refuse writes while there are too few members, unless they are on their way."""
        members, wanted = 1 + len(replica.machine.secondaries), replica.min_members
        if members >= wanted:
            replica.growing = False
        few = members < wanted and not replica.growing
        if few is not bool(replica.too_few_members):
            what = f"{members} of the {wanted} replicas that a write needs"
            replica.too_few_members = f"partition {replica.gpid} has {what}" if few else ""

    def _hand_closed_over(self, replica: Replica) -> None:
        """What cannot serve here can elsewhere."""
        ready = [one for one in replica.streams.values() if one.opened and not one.learner]
        if ready:
            self.hand_over(replica, ready[0].node_id, keep=False)

    def _look_at_members(self, replica: Replica, now_ms: int, *, stalled: bool) -> None:
        silent: list[Stream] = []
        for stream in list(replica.streams.values()):
            if stalled and stream.waiting_since_ms is not None:
                stream.waiting_since_ms = now_ms
            if not stream.opened and now_ms >= stream.retry_ms:
                self._open(stream)
            if stream.learner:
                continue
            silent_ms = _silent_ms(stream, now_ms)
            if silent_ms >= self._options.prepare_timeout_ms:
                silent.append(stream)
        if not silent:
            return
        if len(silent) > 1 and len(silent) == len(replica.machine.secondaries):
            # More likely it is this server that nobody hears: the others are given the time to
            # go on without it, and if they are gone indeed, it goes on alone a little later.
            patience_ms = self._options.grace_ms + _BENEFIT_MS
            if min(_silent_ms(stream, now_ms) for stream in silent) < patience_ms:
                return
        self._propose(replica, ProposalKind.REMOVE, silent[0].node_id)

    # --- Proposals ---------------------------------------------------------------------

    def hand_over(self, replica: Replica, node_id: str, *, keep: bool) -> None:
        """Stop taking writes; once nothing is under way, propose that `node_id` leads."""
        if replica.draining or replica.gpid in self._proposing:
            return
        replica.set_leased(replica.leased, draining=True)
        self._scope.start(f"hand {replica.gpid} over", self._hand_over(replica, node_id, keep=keep))

    async def _hand_over(self, replica: Replica, node_id: str, *, keep: bool) -> None:
        ballot = replica.machine.ballot
        give_up_at = self._clock.monotonic_ms() + self._options.grace_ms
        asked_ms: int | None = None
        pause_ms = 1
        while True:
            if not (replica.in_flight or replica.full or replica.open is not None):
                stream = replica.streams.get(node_id)
                if stream is None or stream.learner:
                    break
                if asked_ms is None:
                    # It may be gone since it last answered, or have lost what it had: only who
                    # answers that it follows can go on.
                    asked_ms = self._clock.monotonic_ms()
                    stream.line.beacon([stream])
                if stream.opened and stream.leased_ms >= asked_ms:
                    if self._propose(replica, ProposalKind.HANDOVER, node_id, keep=keep):
                        return
                    break
            pause_ms = min(2 * pause_ms, _DRAIN_MS_MAX)
            await self._clock.sleep_ms(pause_ms)
            if not replica.draining or replica.machine.ballot != ballot:
                return
            if self._clock.monotonic_ms() > give_up_at:
                break
        replica.set_leased(replica.leased, draining=False)

    def _propose(
        self, replica: Replica, kind: ProposalKind, node_id: str, *, keep: bool = False
    ) -> bool:
        """Ask for a change, unless one is asked for already."""
        gpid, machine = replica.gpid, replica.machine
        if gpid in self._proposing or self._scope.closed:
            return False
        if machine.status is _PRIMARY:
            joining = node_id if kind is ProposalKind.UPGRADE else ""
            if machine.step(ProposalOpened(joining)):
                return False
            if joining:
                # From here on its lease counts as well.
                stream = replica.streams[joining]
                replica.lease.set_members(machine.followers, self._clock.monotonic_ms())
                machine.acknowledged(joining, machine.ballot, stream.acknowledged)
                replica.lease.acknowledged(joining, stream.leased_ms)
                self.look_at(replica)
                self._note_leases()
        elif kind is ProposalKind.CLAIM:
            # If it is granted late, the old primary must not have a lease from here by then.
            replica.claiming = True
        proposal = Proposal(self._node_id, gpid, machine.ballot, kind, node_id, keep, self._process)
        self._proposing.add(gpid)
        self.proposals += 1
        _log.info("partition %s: propose %s %s", gpid, kind.name.lower(), node_id)
        self._scope.start(f"propose for {gpid}", self._ask(replica, proposal))
        return True

    async def _ask(self, replica: Replica, proposal: Proposal) -> None:
        """Ask until there is an answer; nobody knows before whether the change holds."""
        gpid = proposal.gpid
        # Whether an earlier try may be on its way still.
        unsure = False
        try:
            while True:
                try:
                    stored, addresses = await self._meta.propose(proposal)
                except (PegasKVError, OSError) as error:
                    # Any other error is an answer: this try has changed nothing.
                    lost = not isinstance(error, RequestError)
                    unsure = unsure or getattr(error, "maybe_applied", lost)
                    _log.debug("partition %s: no answer to a proposal: %s", gpid, error)
                else:
                    if stored.ballot > proposal.ballot or not unsure:
                        break
                    # Nothing was changed yet. Only a higher ballot ends a proposal of which one
                    # try was never answered.
                if replica.machine.ballot != proposal.ballot:
                    # Somebody else was heard meanwhile.
                    return
                await self._clock.sleep_ms(_PROPOSE_PAUSE_MS)
        finally:
            self._proposing.discard(gpid)
            replica.claiming = False
        self._peers.set_addresses(addresses)
        if replica.machine.ballot != proposal.ballot:
            return
        if stored.ballot > proposal.ballot:
            self._on_configured(stored)
        else:
            self._refused(replica, proposal)

    def _refused(self, replica: Replica, proposal: Proposal) -> None:
        """Nothing was changed: go on as before, and let some time pass."""
        now_ms = self._clock.monotonic_ms()
        machine = replica.machine
        if machine.status is not _PRIMARY:
            replica.grace.heard(now_ms)
            return
        committed = machine.committed
        machine.step(ProposalClosed())
        replica.lease.set_members(machine.followers, now_ms)
        if replica.draining:
            replica.set_leased(replica.leased, draining=False)
        if proposal.kind is ProposalKind.REMOVE and proposal.node_id in replica.streams:
            replica.streams[proposal.node_id].waiting_since_ms = now_ms
        self.look_at(replica)
        if machine.committed != committed:
            self._on_committed([replica])


def _silent_ms(stream: Stream, now_ms: int) -> int:
    """For how long a member has not answered."""
    since = (stream.waiting_since_ms, stream.line.beacon_since_ms)
    return now_ms - min((each for each in since if each is not None), default=now_ms)
