"""Faults that help one course of events along, step by step.

What goes wrong by chance hardly ever goes wrong in the order in which a rule of the replication
is needed. Each of these plays one such order: somebody is not heard, asks to lead, and the
answer, the question itself, or the process that asked, is late or gone. They look into the
servers to know when the next step is due; what they do is what networks and machines do. To
servers that obey the rules it is a bad quarter of a minute like others.
"""

from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pegaskv.base.types import Gpid, PartitionConfiguration
from pegaskv.codec.messages_meta import ProposalKind
from tests.simulation.cluster_servers import Machine, stub_of

if TYPE_CHECKING:
    from tests.simulation.cluster_faults import Playground

__all__ = ["AIMED", "Aim"]

_STEP_MS: Final = 5
# A grace, its drift and the looks at it.
_CLAIM_MS: Final = 8_000
# How long a step is waited for that only a mistake would make: shorter than a lease.
_MISTAKE_MS: Final = 3_500
_LEARNED_MS: Final = 25_000


class _Cast(NamedTuple):
    """Who plays in it."""

    gpid: Gpid
    ballot: int
    primary: Machine
    secondaries: list[Machine]


class Aim:
    """The faults that are aimed, on one ground."""

    def __init__(self, ground: "Playground", random: Random) -> None:
        self._ground = ground
        self._world = ground.world
        self._network = ground.world.network
        self._random = random
        # Who waits for a proposal; it is told at once, before anything was sent.
        self._traps: list[Callable[[ProposalKind, str, str], None]] = []
        self._playing = False

    async def strike(self, kind: str) -> bool:
        """Play one of `AIMED`, unless one is being played: two would spoil each other."""
        if self._playing:
            return False
        self._playing = True
        try:
            return await AIMED[kind](self)
        finally:
            self._playing = False

    def on_proposed(self, kind: ProposalKind, proposer_id: str, node_id: str) -> None:
        """A server asks for a change that concerns a node."""
        for trap in list(self._traps):
            trap(kind, proposer_id, node_id)

    # Who, and when.

    def _cast(self, secondaries: int) -> _Cast | None:
        """Draw a partition that is led and followed by so many, in any order."""
        by_id = {self._ground.node_id(each): each for each in self._ground.servers}
        found = []
        for gpid, stored in sorted(self._ground.configurations().items()):
            members = [by_id.get(each or "") for each in (stored.primary, *stored.secondaries)]
            there = [each for each in members if each and self._follows(each, gpid, stored.ballot)]
            if len(there) == len(members) > secondaries:
                found.append(_Cast(gpid, stored.ballot, there[0], there[1:]))
        if not found:
            return None
        cast = self._random.choice(found)
        self._random.shuffle(cast.secondaries)
        return cast

    def _stored(self, gpid: Gpid) -> PartitionConfiguration:
        return self._ground.configurations()[gpid]

    def _leads(self, machine: Machine, gpid: Gpid) -> bool:
        """Whether a machine is the stored primary."""
        return self._stored(gpid).primary == self._ground.node_id(machine)

    def _replica(self, machine: Machine, gpid: Gpid) -> Any:
        stub = stub_of(machine)
        return None if stub is None or machine.stalled else stub._replicas.get(tuple(gpid))

    def _follows(self, machine: Machine, gpid: Gpid, ballot: int) -> bool:
        """Whether a machine knows of a ballot."""
        replica = self._replica(machine, gpid)
        return replica is not None and replica.machine.ballot >= ballot

    def _serves(self, machine: Machine, gpid: Gpid) -> bool:
        replica = self._replica(machine, gpid)
        return replica is not None and replica.serving

    async def _until(self, condition: Callable[[], bool], limit_ms: int) -> bool:
        end_ms = self._world.now_ms + limit_ms
        while not condition():
            if self._world.now_ms >= end_ms:
                return False
            await self._world.sleep_ms(_STEP_MS)
        return True

    async def _proposed(
        self, kind: ProposalKind, proposer: Machine, limit_ms: int, then: Callable[[str], None]
    ) -> bool:
        """Do `then` with whom it concerns at the very moment at which a machine asks for that."""
        asked: list[str] = []

        def trap(asked_kind: ProposalKind, proposer_id: str, node_id: str) -> None:
            if not asked and asked_kind is kind and proposer_id == self._ground.node_id(proposer):
                asked.append(node_id)
                then(node_id)

        self._traps.append(trap)
        await self._until(lambda: bool(asked), limit_ms)
        self._traps.remove(trap)
        return bool(asked)

    async def _pause(self, *pauses_ms: int) -> None:
        await self._world.sleep_ms(self._random.choice(pauses_ms))

    def _crash(self, machine: Machine) -> bool:
        if not machine.alive or machine.stalled:
            return False
        machine.crash(power=False)
        return True

    def _start(self, machine: Machine) -> None:
        if not machine.alive:
            machine.start()

    def _darken(self, cast: _Cast) -> tuple[str, str, str]:
        """One secondary hears the primary no more, nor does the meta server, nor it that."""
        primary = cast.primary.node.address
        secondary = cast.secondaries[0].node.address
        metas = self._ground.meta.node.address
        self._network.cut(primary, secondary, both=False)
        self._network.cut(primary, metas)
        return primary, secondary, metas

    # What happens.

    async def late_answer(self) -> bool:
        """A secondary that claims hears its primary again before it hears what it is."""
        cast = self._cast(1)
        if cast is None:
            return False
        _, secondary, metas = self._darken(cast)
        network = self._network
        claimed = await self._claim_unanswered(cast, secondary, metas)
        await self._meet_again(cast, _MISTAKE_MS, lambda: network.heal(metas, secondary))
        return claimed

    async def ended_claimer(self) -> bool:
        """A secondary ends when its claim is stored; its next process hears the old primary."""
        cast = self._cast(1)
        if cast is None:
            return False
        _, secondary, metas = self._darken(cast)
        network, claimer = self._network, cast.secondaries[0]
        claimed = await self._claim_unanswered(cast, secondary, metas)
        if claimed:
            await self._until(lambda: self._leads(claimer, cast.gpid), 2_000)
            network.cut(metas, secondary)
            claimed = self._crash(claimer)
        await self._meet_again(cast, _MISTAKE_MS, lambda: network.heal(metas, secondary))
        return claimed

    async def claim_of_the_ended(self) -> bool:
        """A secondary ends, and what it claimed arrives when its next process follows again."""
        cast = self._cast(1)
        if cast is None:
            return False
        _, secondary, metas = self._darken(cast)
        network, claimer = self._network, cast.secondaries[0]
        claimed = await self._proposed(
            ProposalKind.CLAIM, claimer, _CLAIM_MS, lambda _: network.hold(secondary, metas)
        )
        if claimed:
            # It is on its way.
            await self._pause(30, 100)
            claimed = self._crash(claimer)
        await self._meet_again(cast, _CLAIM_MS, lambda: network.release(secondary, metas))
        return claimed

    async def _claim_unanswered(self, cast: _Cast, secondary: str, metas: str) -> bool:
        """The first secondary claims, and is cut off from the answer."""
        return await self._proposed(
            ProposalKind.CLAIM,
            cast.secondaries[0],
            _CLAIM_MS,
            lambda _: self._network.cut(metas, secondary, both=False),
        )

    async def _meet_again(
        self, cast: _Cast, limit_ms: int, let_through: Callable[[], None]
    ) -> None:
        """Primary and claimer hear each other; then the claim, or its answer, gets through."""
        claimer, primary = cast.secondaries[0], cast.primary.node.address
        self._network.heal(primary, claimer.node.address)
        self._start(claimer)
        await self._until(lambda: self._serves(cast.primary, cast.gpid), limit_ms)
        let_through()
        await self._until(lambda: self._serves(claimer, cast.gpid), _MISTAKE_MS)
        await self._pause(0, 500)
        self._network.heal(primary, self._ground.meta.node.address)

    async def late_claim(self) -> bool:
        """Of two that claim, the first is not heard until it has followed the other for a while."""
        cast = self._cast(2)
        if cast is None:
            return False
        network, metas = self._network, self._ground.meta.node.address
        late, other = cast.secondaries[:2]
        primary, first, second = (each.node.address for each in (cast.primary, late, other))
        network.cut(primary, first, both=False)
        await self._pause(1_200)
        crashed = self._crash(cast.primary)
        claimed = await self._proposed(
            ProposalKind.CLAIM, late, _CLAIM_MS, lambda _: network.hold(first, metas)
        )
        if claimed and await self._until(lambda: self._leads(other, cast.gpid), _CLAIM_MS):
            ballot = self._stored(cast.gpid).ballot
            await self._until(lambda: self._follows(other, cast.gpid, ballot), 2_000)
            # It would let go who is silent, and would be told who leads.
            network.cut(second, metas)
            await self._until(lambda: self._serves(other, cast.gpid), _CLAIM_MS)
        network.release(first, metas)
        await self._until(lambda: self._serves(late, cast.gpid), _MISTAKE_MS)
        await self._pause(0, 500)
        network.heal(second, metas)
        network.heal(primary, first)
        if crashed:
            self._start(cast.primary)
        return claimed

    async def two_histories(self) -> bool:
        """Another leads than who was heard by some: what those have above is void, and they end."""
        cast = self._cast(2)
        if cast is None:
            return False
        primary, secondary, metas = self._darken(cast)
        leader, heard = cast.secondaries[:2]
        led = await self._until(lambda: self._leads(leader, cast.gpid), _CLAIM_MS)
        led = led and await self._until(lambda: self._serves(leader, cast.gpid), _CLAIM_MS)
        replica = self._replica(leader, cast.gpid)
        barrier = 0 if replica is None else replica.machine._barrier
        if led:
            await self._end_at(heard, cast, barrier, 1_000)
        self._network.heal(primary, secondary)
        self._network.heal(primary, metas)
        if led:
            await self._end_at(cast.primary, cast, barrier, _LEARNED_MS)
        return led

    def _has(self, machine: Machine, cast: _Cast, decree: int) -> bool:
        """Whether a machine has so much of a later ballot than at the beginning."""
        if not self._follows(machine, cast.gpid, cast.ballot + 1):
            return False
        return bool(self._replica(machine, cast.gpid).machine.committed >= decree)

    async def _end_at(self, machine: Machine, cast: _Cast, decree: int, limit_ms: int) -> None:
        """Let a machine end soon after it has so much, and start again."""
        if await self._until(lambda: self._has(machine, cast, decree), limit_ms):
            await self._pause(0, 20, 200)
            if self._crash(machine):
                await self._pause(0, 50)
                self._start(machine)

    async def silent_newcomer(self) -> bool:
        """A primary is told late that its learner is a member, which hears nothing meanwhile."""
        cast = self._cast(1)
        if cast is None:
            return False
        network, metas = self._network, self._ground.meta.node.address
        primary = cast.primary.node.address
        newcomers: list[Machine] = []

        def cut_off(node_id: str) -> None:
            found = [each for each in self._ground.servers if self._ground.node_id(each) == node_id]
            newcomers.extend(found)
            network.cut(metas, primary, both=False)
            for each in found:
                network.cut(primary, each.node.address, both=False)

        gone = cast.secondaries[0]
        if not self._crash(gone):
            return False
        back = self._world.loop.create_task(self._come_back(gone))
        upgraded = await self._proposed(ProposalKind.UPGRADE, cast.primary, _LEARNED_MS, cut_off)
        if upgraded:
            await self._pause(300, 1_000, 1_800)
        network.heal(metas, primary)
        if upgraded:
            ballot = self._stored(cast.gpid).ballot
            await self._until(lambda: self._follows(cast.primary, cast.gpid, ballot), 4_000)
            await self._pause(0, 300)
        for each in newcomers:
            network.heal(primary, each.node.address)
        await back
        return upgraded

    async def _come_back(self, machine: Machine) -> None:
        await self._pause(2_500, 4_000)
        self._start(machine)


AIMED: Final[dict[str, Callable[[Aim], Awaitable[bool]]]] = {
    "late answer": Aim.late_answer,
    "ended claimer": Aim.ended_claimer,
    "claim of the ended": Aim.claim_of_the_ended,
    "late claim": Aim.late_claim,
    "two histories": Aim.two_histories,
    "silent newcomer": Aim.silent_newcomer,
}
