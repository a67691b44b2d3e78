"""A learner that is stopped anywhere: by whoever started it, by a kill, by a power cut."""

import asyncio
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pegaskv.codec.operations import Operation
from pegaskv.storage.mutation_log import LogRecord
from tests.replica.learning_support import (
    GPID,
    READ,
    Student,
    learn,
    payload_of,
    play,
    primary_of,
    student_of,
)
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.world import Node, World


def check_truth(student: Student) -> None:
    """What the caller holds is what the disk has."""
    replica = student.replica
    if replica.engine is not None and not replica.closed:
        manifest = student.directory.manifest(GPID)
        assert manifest.incarnation == replica.incarnation
        assert replica.decree >= manifest.base_decree
        assert student.log._index.incarnation(GPID) == replica.incarnation


@pytest.mark.parametrize("have", [0, 20])
def test_cancelled_at_any_time_it_leaves_the_truth(have: int) -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(20)
        if have:
            await learn(student, primary)
        await primary.write(30)
        await primary.flush_all()
        random = Random(have)
        cancelled = finished = 0
        asked: Counter[Operation] = Counter()
        for _ in range(32):
            wire = student.wire(primary)
            wire.asked = asked
            learning = student.life.task(student.learn())
            await world.sleep_ms(random.randrange(1, 500))
            if learning.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await learning
                cancelled += 1
            else:
                await learning
                finished += 1
                await primary.write(3)
                if finished % 2:
                    primary.teaching.release_all(GPID)
                    await primary.flush_all()
            check_truth(student)
        assert cancelled > 10
        assert finished > 3
        assert asked[READ] > 20
        await learn(student, primary)
        student.check_equal()
        await student.learner.forget(GPID)
        assert student.disk.list(Path("/data/replicas")) == ["1.0"]

    play(scenario, worker_us=(500, 3_000))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_cancelled_while_the_disk_takes_the_new_incarnation_the_caller_has_it_too(
    checkpoint: bool,
) -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(20)
        await learn(student, primary)
        before = student.directory.manifest(GPID)
        await primary.write(5)
        if checkpoint:
            primary.teaching.release_all(GPID)
            await primary.flush_all()
        wire = student.wire(primary)
        # Long enough to come in between: the disk has it, and nobody was told.
        upkeep: Any = student.workers.upkeep
        upkeep.least_us = 20_000
        learning = student.life.task(student.learn())
        await world.until(lambda: student.directory.manifest(GPID) != before)
        learning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await learning
        assert (wire.asked[READ] > 0) == checkpoint
        assert student.replica.engine is not None
        assert student.replica.incarnation > before.incarnation
        check_truth(student)
        upkeep.least_us = 0
        await learn(student, primary)
        student.check_equal()

    play(scenario)


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("fault", [Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.KILL_TORN])
def test_after_a_crash_at_any_io_nothing_of_an_earlier_incarnation_is_read(
    fault: Fault, power: bool
) -> None:
    """L3: the learner has a tail of its own that never was, longer than the copy."""

    async def scenario(world: World, one: Node, other: Node, step: int) -> bool:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(8)
        await learn(student, primary)
        incarnation = student.replica.incarnation
        ghosts = [
            LogRecord(
                *GPID, incarnation, 1, decree, 8, decree * 100, payload_of(decree, mark=b" ghost")
            )
            for decree in range(9, 40)
        ]
        await student.life.task(student.put(ghosts))
        primary.leader.machine.ballot = 2
        await primary.write(6)
        if step % 2:
            await primary.flush_all()
        student.wire(primary)
        other.life.disk.plan(step, fault)  # type: ignore[union-attr]
        learning = student.life.task(student.learn())
        await world.until(lambda: learning.done() or not other.alive)
        crashed = not other.alive
        if crashed:
            if power:
                other.crash(power=True)
        else:
            other.crash(power=power)
        student = await student_of(other)
        replica = student.replica
        assert not replica.closed
        assert replica.engine is not None
        manifest = student.directory.manifest(GPID)
        if manifest.incarnation == incarnation:
            assert replica.decree == 8
        else:
            # Of the new one nothing is there but what the primary has committed.
            assert all(b"ghost" not in each.payload for each in replica.tail)
            records = student.log.read(GPID, replica.decree + 1, 1 << 30)
            assert all(record.ballot == 2 for record in records)
        await learn(student, primary)
        student.check_equal()
        return crashed

    crashes = 0
    for step in range(300):
        settled: dict[str, Any] = {"worker_us": (5, 50), "worker_slow": 0.0, "wall_offset_us": 0}
        with World(step, disk=SimulatedDisk, **settled) as world:
            nodes = world.node("primary"), world.node("learner")
            if not world.run(scenario(world, *nodes, step)):
                break
            crashes += 1
    assert crashes > 20
