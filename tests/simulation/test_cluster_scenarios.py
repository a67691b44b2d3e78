"""Courses of events in a cluster that seeds hardly ever draw, each told step by step."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from pegaskv.base.types import Gpid
from pegaskv.codec.messages_meta import ProposalKind
from pegaskv.replica.events import Taught
from pegaskv.replica.machine import ReplicaMachine
from pegaskv.replica.studies import Studies
from tests.simulation.cluster_servers import Machine, stub_of
from tests.simulation.cluster_world import (
    ClusterRun,
    Play,
    Story,
    TableStory,
    simulate_cluster,
    simulate_group,
)
from tests.simulation.loop import OWNER

STORY: Final = Story(
    servers=3,
    tables=(TableStory(3, 1, "fsync"),),
    clients=2,
    writers=6,
    seconds=1,
    pace_ms=5,
    at_once=1,
    between_ms=100,
    kinds=("kill",),
)
OS_STORY: Final = replace(STORY, tables=(TableStory(3, 1, "os"),))


def tell(
    monkeypatch: pytest.MonkeyPatch,
    scenario: Callable[[Play, pytest.MonkeyPatch], Awaitable[None]],
    seed: int,
    story: Story = STORY,
    simulate: Callable[[int, Story], ClusterRun] = simulate_group,
) -> None:
    """Play `scenario` in the place of random faults; the rest is as ever.

    What it puts around production code by its second argument lies around what the world has put
    there, and is taken away before that.
    """
    told = []

    async def safety_phase(play: Play) -> None:
        await play.world.sleep_ms(1_000)
        with pytest.MonkeyPatch.context() as patch:
            await scenario(play, patch)
        play._check_now()
        told.append(seed)

    monkeypatch.setattr(Play, "_safety_phase", safety_phase)
    run = simulate(seed, story)
    assert run.wrong == [], f"seed {seed}"
    assert told == [seed]
    assert run.done > 20


def members(play: Play) -> tuple[Machine, list[Machine]]:
    """The primary and the secondaries of the only partition."""
    [stored] = play.configurations().values()
    by_id = {play.node_id(each): each for each in play.servers}
    return by_id[stored.primary or ""], [by_id[each] for each in stored.secondaries]


def count(play: Play) -> int:
    """How many members the partition has."""
    [stored] = play.configurations().values()
    return 1 + len(stored.secondaries)


@pytest.mark.parametrize("seed", [1, 3])
def test_what_a_learner_has_acknowledged_is_not_learned_anew_while_it_is_being_upgraded(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Its proposal is on its way, its connection breaks, the proposal arrives, all others die.

    If it began to learn anew then, it would lead without writes that it had acknowledged.
    """
    taught: list[int] = []
    proposed: list[str] = []

    async def scenario(play: Play, patch: pytest.MonkeyPatch) -> None:
        world, meta = play.world, play.meta.node.address
        primary, [learner, other] = members(play)
        step = ReplicaMachine.step

        def stepped(machine: ReplicaMachine, event: Any) -> Any:
            effects = step(machine, event)
            if proposed and isinstance(event, Taught) and _is_on(learner):
                taught.append(machine.prepared.committed)
                # At the worst moment: nothing more comes from the primary.
                world.network.cut(primary.node.address, learner.node.address)
                world.network.heal(primary.node.address, meta)
            return effects

        def on_proposed(_: ProposalKind, proposer_id: str, node_id: str) -> None:
            if node_id == play.node_id(learner) and play.node_id(primary) == proposer_id:
                proposed.append(node_id)
                world.network.cut(primary.node.address, meta, both=False)
                loop = world.loop
                loop.call_later(0.02, world.network.reset, primary.node.address,
                                learner.node.address)  # fmt: skip
                loop.call_later(1.0, world.network.heal, primary.node.address, meta)

        patch.setattr(ReplicaMachine, "step", stepped)
        learner.crash(power=False)
        await world.until(lambda: count(play) == 2, what="the removal")
        play.watch.on_proposed = on_proposed
        learner.start()
        await world.until(lambda: count(play) == 3, what="the upgrade")
        await world.sleep_ms(play.random.choice([1, 20, 100]))
        primary.crash(power=False)
        other.crash(power=False)
        await world.sleep_ms(9_000)

    tell(monkeypatch, scenario, seed)
    assert proposed
    assert taught == []


@pytest.mark.parametrize("seed", [1, 3])
def test_a_learner_that_is_asked_again_is_upgraded_only_by_what_it_learns_then(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """It joins late, its primary has asked once more, and that arrives behind the join.

    What it acknowledges in the turn before it begins anew would make it a member.
    """
    taught: list[int] = []
    proposed: list[int] = []

    async def scenario(play: Play, patch: pytest.MonkeyPatch) -> None:
        world = play.world
        primary, [learner, _] = members(play)
        hosts = primary.node.address, learner.node.address
        join, step = Studies.join, ReplicaMachine.step

        async def joined(studies: Studies, gpid: Gpid, next_decree: int) -> bool:
            if len(taught) == 1:
                world.network.hold(*hosts)
                # Longer than a primary waits before it asks again.
                await world.sleep_ms(3_400)
            return await join(studies, gpid, next_decree)

        def stepped(machine: ReplicaMachine, event: Any) -> Any:
            effects = step(machine, event)
            if isinstance(event, Taught) and _is_on(learner):
                taught.append(len(proposed))
            return effects

        def on_proposed(kind: ProposalKind, proposer_id: str, node_id: str) -> None:
            if kind is ProposalKind.UPGRADE:
                proposed.append(len(taught))

        def opened() -> bool:
            [replica] = stub_of(primary)._replicas.values()
            stream = replica.streams.get(play.node_id(learner))
            return stream is not None and stream.opened

        patch.setattr(Studies, "join", joined)
        patch.setattr(ReplicaMachine, "step", stepped)
        learner.crash(power=False)
        await world.until(lambda: count(play) == 2, what="the removal")
        play.watch.on_proposed = on_proposed
        learner.start()
        await world.until(opened, what="the join")
        await world.sleep_ms(play.random.choice([1, 20, 100]))
        world.network.release(*hosts)
        await world.until(lambda: count(play) == 3, what="the upgrade")

    tell(monkeypatch, scenario, seed)
    # It was taught twice before anybody asked for its upgrade.
    assert taught == [0, 0]
    assert set(proposed) == {2}


def _is_on(machine: Machine) -> bool:
    return OWNER.get() is machine.node.life


def test_a_process_that_stands_still_as_soon_as_it_leads_answers_nothing_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has a lease from the ballot before, and another one leads when it goes on."""
    stalled: list[str] = []

    async def scenario(play: Play, patch: pytest.MonkeyPatch) -> None:
        world = play.world
        primary, [gone, _] = members(play)
        assign = ReplicaMachine._on_assigned

        def assigned(machine: ReplicaMachine, *arguments: Any) -> Any:
            effects = assign(machine, *arguments)
            if not stalled and _is_on(primary) and len(machine.secondaries) == 1:
                stalled.append(primary.name)
                world.loop.call_later(0.015, primary.node.stall)
            return effects

        patch.setattr(ReplicaMachine, "_on_assigned", assigned)
        # A new process has no lease of one that does not hear it.
        gone.node.stall()
        primary.crash(power=False)
        primary.start()
        await world.until(lambda: bool(stalled), what="the ballot without it")
        await world.until(lambda: members(play)[0] is not primary, what="the claim")
        await world.sleep_ms(500)
        primary.node.resume()
        await world.sleep_ms(500)
        gone.node.resume()

    tell(monkeypatch, scenario, 3)
    assert stalled


@pytest.mark.parametrize("simulate", [simulate_group, simulate_cluster])
@pytest.mark.parametrize(
    "pause_ms", [1, *(pytest.param(ms, marks=pytest.mark.soak) for ms in (0, 53, 300))]
)
def test_who_stops_hands_nothing_over_to_one_that_has_just_lost_power(
    monkeypatch: pytest.MonkeyPatch,
    simulate: Callable[[int, Story], ClusterRun],
    pause_ms: int,
) -> None:
    """Of two members one has lost what it had not synced: led by it alone, that would be gone."""

    async def scenario(play: Play, patch: pytest.MonkeyPatch) -> None:
        world = play.world
        primary, [gone, other] = members(play)
        gone.crash(power=False)
        await world.until(lambda: count(play) == 2, what="the removal")
        await world.sleep_ms(500)
        other.crash(power=True)
        play.on_power_cut(other)
        other.start()
        await world.sleep_ms(pause_ms)
        primary.stop()
        await world.until(lambda: not primary.alive, what="the stop")
        [stored] = play.configurations().values()
        assert play.node_id(primary) in (stored.primary, *stored.secondaries)
        await world.sleep_ms(500)
        primary.start()
        gone.start()
        await world.sleep_ms(3_000)

    tell(monkeypatch, scenario, 3, OS_STORY, simulate)
