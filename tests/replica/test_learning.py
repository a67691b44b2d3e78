"""Learning: whatever a server had before, it ends with the primary's history and no other."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

import pytest

from pegaskv.base.errors import (
    CorruptionError,
    InvalidArgument,
    NotPrimary,
    PegasKVError,
    Unavailable,
)
from pegaskv.base.types import ReplicaStatus
from pegaskv.codec.operations import Operation
from pegaskv.replica.learning import have_decree
from pegaskv.replica.recovery import RecoveredReplica, apply_records
from pegaskv.storage.memory import MemoryFactory
from pegaskv.storage.mutation_log import LogRecord
from tests.replica.learning_support import GPID, Primary, Student, payload_of
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.world import Node, World

T = TypeVar("T")

READ: Final = Operation.LEARN_READ
LOG: Final = Operation.LEARN_LOG
UUID: Final = "11" * 16


def play(scenario: Callable[[World, Node, Node], Coroutine[Any, Any, T]], *, seed: int = 1) -> T:
    """Run a test on two machines with quick disks."""
    settled: dict[str, Any] = {"worker_us": (5, 50), "worker_slow": 0.0, "wall_offset_us": 0}
    with World(seed, disk=SimulatedDisk, **settled) as world:
        return world.run(scenario(world, world.node("primary"), world.node("learner")))


async def primary_of(node: Node, **teaching: Any) -> Primary:
    life = node.spawn()
    return await life.task(Primary(life).start(**teaching))


async def student_of(node: Node, **learner: Any) -> Student:
    life = node.spawn()
    return await life.task(Student(life).start(page_bytes=700, **learner))


async def learn(student: Student, primary: Primary) -> Any:
    wire = student.wire(primary)
    await student.life.task(student.learn())
    return wire


# What is copied, and what is not.


def test_who_has_nothing_copies_a_checkpoint_and_then_the_log() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(60)
        await primary.flush_all()
        writing = one.life.task(primary.write(40))  # type: ignore[union-attr]
        wire = await learn(student, primary)
        assert wire.asked[READ] > 5
        assert wire.asked[LOG] > 0
        await writing
        # Those that came after it had joined are not its business here.
        await learn(student, primary)
        student.check_equal()
        assert student.directory.manifest(GPID).base_decree >= 60
        assert student.learner.progress == ()

    play(scenario)


def test_who_has_most_of_it_copies_log_alone_under_a_new_incarnation() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(20)
        await learn(student, primary)
        before = student.replica.incarnation
        await primary.write(30)
        wire = await learn(student, primary)
        assert wire.asked[READ] == 0
        student.check_equal()
        manifest = student.directory.manifest(GPID)
        assert manifest.incarnation > before
        assert manifest.base_decree == 20
        # The old log is nobody's any more, and the new one has all above the base.
        assert student.decrees(21) == list(range(21, 51))
        with pytest.raises(CorruptionError, match="lacks"):
            student.decrees(20)

    play(scenario)


def test_an_idle_partition_is_not_copied_again_although_the_log_holds_nothing_of_it() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(20)
        await primary.flush_all()
        await learn(student, primary)
        await primary.flush(primary.engine)
        # Its log is gone for good, not only dead.
        primary.log.forget(GPID)
        await primary.log.collect()
        primary.log.set_incarnation(GPID, 1, primary.committed)
        other.crash(power=False)
        student = await student_of(other)
        wire = await learn(student, primary)
        assert wire.asked[READ] == 0
        student.check_equal()
        # A new ballot begins with a record of its own.
        primary.leader.machine.ballot = 2
        await primary.write(1)
        other.crash(power=False)
        student = await student_of(other)
        wire = await learn(student, primary)
        assert wire.asked[READ] == 0
        student.check_equal()

    play(scenario)


@pytest.mark.parametrize("beyond", [0, 5])
@pytest.mark.parametrize("flushed", [False, True])
def test_decrees_of_a_history_that_was_given_up_are_not_built_upon(
    beyond: int, flushed: bool
) -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(20)
        await learn(student, primary)
        # The learner commits alone; then an operator goes on without it.
        assert student.replica.engine is not None
        for decree in range(21, 31):
            record = LogRecord(
                *GPID,
                student.replica.incarnation,
                2,
                decree,
                decree - 1,
                decree * 100,
                payload_of(decree, mark=b" of the other"),
            )
            await student.life.task(student.put([record]))
            apply_records(student.replica.engine, [record])
            student.replica.decree = decree
        primary.leader.machine.ballot = 3
        await primary.write(10 - beyond)
        if flushed:
            await primary.flush(primary.engine)
        wire = await learn(student, primary)
        assert wire.asked[READ] > 0
        student.check_equal()

    play(scenario)


def test_what_a_later_primary_proposed_again_is_the_same_history() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(19)
        machine = primary.leader.machine
        # Decree 20 is known to the learner by ballot 1, and was proposed again by ballot 2.
        await learn(student, primary)
        assert student.replica.engine is not None
        record = LogRecord(*GPID, 1, 1, 20, 19, 2_000, payload_of(20))
        apply_records(student.replica.engine, [record])
        student.replica.decree = 20
        machine.ballot = 2
        await primary.write(5)
        wire = await learn(student, primary)
        assert wire.asked[READ] == 0
        student.check_equal()

    play(scenario)


@pytest.mark.parametrize(
    ("changes", "amnesiac", "expected"),
    [
        ({"engine": None}, False, -1),
        ({"closed": "damaged"}, False, -1),
        ({"damage": "a table"}, False, -1),
        ({"salvaged": True}, False, -1),
        ({"lost_from": 7}, False, -1),
        ({}, True, -1),
        ({}, False, 9),
    ],
)
def test_who_may_lack_something_has_nothing(
    changes: dict[str, Any], amnesiac: bool, expected: int
) -> None:
    engine = MemoryFactory(SimulatedDisk(Random(1))).open(Path("/engine"))
    replica = RecoveredReplica(**({"engine": engine, "decree": 9} | changes))
    assert have_decree(replica, amnesiac=amnesiac) == expected


def test_an_amnesiac_replica_takes_the_whole_and_what_it_was_is_kept() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(20)
        await learn(student, primary)
        directory = student.directory
        directory.mark_os_acknowledged(GPID, True)
        directory._save(
            type(directory.manifest(GPID)).decode(directory.manifest(GPID).encode(), "manifest")
        )
        object.__setattr__(directory.manifest(GPID), "amnesiac", True)
        wire = await learn(student, primary)
        assert wire.asked[READ] > 0
        assert not directory.manifest(GPID).amnesiac
        student.check_equal()
        assert len(student.disk.list(Path("/data/trash"))) == 1

    play(scenario)


# What goes wrong on the way.


def test_a_page_that_was_changed_on_the_way_is_found() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(60)
        await primary.flush_all()
        wire = student.wire(primary)
        changed = 0

        def change(operation: Operation, fields: list[Any], answer: list[Any]) -> list[Any]:
            nonlocal changed
            if operation is READ and fields[4] == 1_400 and not changed:
                changed += 1
                return [answer[0][:-1] + b"\xff", *answer[1:]]
            return answer

        wire.change = change
        await student.life.task(student.learn())
        student.check_equal()
        assert changed == 1
        assert wire.asked[Operation.LEARN_BEGIN] == 2

    play(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        [True, 1, {}],
        [True, 0, {}, None],
        [True, 1, {"11": "x"}, None],
        [True, 30, {}, None],
        [False, 1, {}, ["learn-1", b"short", []]],
        [False, 1, {}, ["learn-1", b"", [["rows"]]]],
        [False, 1, {}, ["learn-1", b"\x01" + bytes(20), [["../manifest", 5]]]],
    ],
)
def test_an_answer_that_makes_no_sense_changes_nothing(answer: list[Any]) -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary = await primary_of(one)
        student = await student_of(other, patience_ms=300)
        await primary.write(20)
        await learn(student, primary)
        before = student.directory.manifest(GPID)
        wire = student.wire(primary)
        wire.change = lambda *_: answer
        with pytest.raises((PegasKVError, ValueError)):
            await student.life.task(student.learn())
        assert student.directory.manifest(GPID) == before
        wire.change = None
        await student.life.task(student.learn())
        student.check_equal()

    play(scenario)


@pytest.mark.parametrize("wrong", ["gap", "foreign", "ballot", "uncommitted", "cut"])
def test_log_that_is_not_what_comes_next_is_not_appended(wrong: str) -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(5)
        await learn(student, primary)
        await primary.write(15)
        wire = student.wire(primary)

        def change(operation: Operation, fields: list[Any], answer: list[Any]) -> list[Any]:
            if operation is not LOG:
                return answer
            body, commit_point, last = answer
            if wrong == "gap":
                return [body[45 + int.from_bytes(body[41:45]) :], commit_point, last]
            if wrong == "foreign":
                return [body[:4] + b"\x07" + body[5:], commit_point, last]
            if wrong == "ballot":
                return [body[:16] + b"\x09" + body[17:], commit_point, last]
            if wrong == "uncommitted":
                return [body, commit_point - 1, last]
            return [body[:-1], commit_point, last]

        wire.change = change
        with pytest.raises(CorruptionError):
            await student.life.task(student.learn())
        assert student.replica.decree == 5
        wire.change = None
        await student.life.task(student.learn())
        student.check_equal()

    play(scenario)


@pytest.mark.parametrize("after", range(1, 24, 2))
def test_a_connection_that_breaks_anywhere_costs_no_file_that_was_whole(after: int) -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(60)
        await primary.flush_all()
        await primary.write(20)
        wire = student.wire(primary)
        wire.left = after
        learning = student.life.task(student.learn())
        await world.until(lambda: wire.left <= 0 or learning.done())
        await world.sleep_ms(500)
        wire.left = 1 << 60
        await learning
        student.check_equal()
        assert primary.teaching.learners == [(GPID, student.node_id)]
        assert wire.asked[Operation.LEARN_BEGIN] >= 2 or after > 20

    play(scenario, seed=after)


def test_the_primary_dies_and_another_one_is_learned_from() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(60)
        await primary.flush_all()
        wire = student.wire(primary)
        wire.left = 6
        learning = student.life.task(student.learn())
        await world.until(lambda: wire.left <= 0)
        one.crash()
        learning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await learning
        third = await primary_of(world.node("third"))
        third.leader.machine.ballot = 2
        await third.write(70, mark=b" of the third")
        await third.flush_all()
        student.wire(third)
        assert student.adoption is not None
        object.__setattr__(student.adoption, "primary", "third")
        await student.life.task(student.learn())
        student.check_equal()

    play(scenario)


def test_log_that_went_meanwhile_means_to_begin_anew() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(20)
        student.wire(primary)
        assert student.adoption is not None
        copy = student.life.task(student.learner.copy(student.adoption, student.replica))
        first = await copy
        # It sleeps for longer than its primary waits.
        await world.sleep_ms(61_000)
        await one.life.task(primary.teaching.look())  # type: ignore[union-attr]
        assert primary.teaching.learners == []
        await primary.flush_all()
        catch_up = student.learner.catch_up(student.adoption, student.replica.incarnation, first)
        with pytest.raises(InvalidArgument, match="begin anew"):
            await student.life.task(catch_up)
        await student.life.task(student.learn())
        student.check_equal()

    play(scenario)


def test_patience_ends_and_the_next_try_goes_on() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(60)
        await primary.flush_all()
        wire = student.wire(primary)
        wire.left = 8
        began_ms = world.now_ms
        with pytest.raises(Unavailable):
            await student.life.task(student.learn())
        assert 60_000 <= world.now_ms - began_ms < 70_000
        assert wire.asked[Operation.LEARN_BEGIN] < 30
        wire.left = 1 << 60
        await student.life.task(student.learn())
        student.check_equal()

    play(scenario)


# Cancellation, crashes.


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
        for _ in range(80):
            wire = student.wire(primary)
            wire.asked = asked
            learning = student.life.task(student.learn())
            await asyncio.sleep(0.000_3 * 60 ** random.random())
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


# Pins.


def test_what_a_duplication_needs_is_copied_too_and_stays() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(10)
        primary.log.set_pin(GPID, UUID, 10)
        await primary.write(50)
        await primary.flush_all()
        wire = await learn(student, primary)
        assert wire.asked[READ] > 0
        student.check_equal()
        assert student.replica.engine is not None
        assert student.log.pins(GPID)[UUID].decree == 10
        # It outlives flushes here, and is not counted as what a restart replays.
        await student.life.task(student.flush(student.replica.engine))
        assert student.decrees(11) == list(range(11, primary.committed + 1))
        assert student.log.total_unflushed == 0
        # And a restart, that has it from its own tables.
        await primary.write(5)
        await learn(student, primary)
        assert wire.asked[READ] > 0
        student.check_equal()
        assert student.decrees(11) == list(range(11, primary.committed + 1))
        # When the duplication is over it goes.
        student.log.clear_pin(GPID, UUID)
        await student.life.task(student.flush(student.replica.engine))
        assert student.decrees(11) == []

    play(scenario)


def test_while_somebody_copies_nothing_that_it_needs_goes_and_afterwards_it_does() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(40)
        await primary.flush_all()
        wire = student.wire(primary)
        learning = student.life.task(student.learn())
        await world.until(lambda: wire.asked[READ] > 2)
        wire.left = 0
        start = primary.committed
        for _ in range(5):
            await primary.flush_all()
        assert primary.decrees(start + 1)[0] == start + 1
        kept = primary.directory.files(GPID).learners_path
        assert len(primary.disk.list(kept)) == 1
        wire.left = 1 << 60
        await learning
        assert student.directory.manifest(GPID).base_decree <= start
        student.check_equal()
        released = primary.released
        primary.teaching.release(GPID, student.node_id)
        assert primary.released == released + 1
        await primary.flush_all()
        assert primary.decrees(start + 1) == []
        assert primary.disk.list(kept) == []

    play(scenario)


# Several, and roles.


def test_two_learn_at_once_and_a_third_waits_its_turn() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary = await primary_of(one, learners_max=2)
        await primary.write(60)
        await primary.flush_all()
        students = [await student_of(other)]
        students += [await student_of(world.node(name)) for name in ("third", "fourth")]
        wires = []
        for number, student in enumerate(students):
            student.node_id = f"node {number}"
            student.learner._node_id = student.node_id
            wires.append(student.wire(primary))
        tasks = [student.life.task(student.learn()) for student in students]
        await world.until(lambda: sum(task.done() for task in tasks) == 2)
        await world.sleep_ms(2_000)
        [waiting] = [number for number, task in enumerate(tasks) if not task.done()]
        assert wires[waiting].asked[READ] == 0
        assert len(primary.teaching.learners) == 2
        primary.teaching.release(*primary.teaching.learners[0])
        await tasks[waiting]
        for task, student in zip(tasks, students, strict=True):
            await task
            student.check_equal()

    play(scenario)


def test_who_leads_no_more_teaches_no_more_and_keeps_nothing() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary = await primary_of(one)
        student = await student_of(other, patience_ms=1_000)
        await primary.write(60)
        await primary.flush_all()
        wire = student.wire(primary)
        learning = student.life.task(student.learn())
        await world.until(lambda: wire.asked[READ] > 2)
        primary.leader.machine.status = ReplicaStatus.SECONDARY
        await one.life.task(primary.teaching.look())  # type: ignore[union-attr]
        assert primary.teaching.learners == []
        with pytest.raises(NotPrimary):
            await learning
        await world.sleep_ms(100)
        assert primary.disk.list(primary.directory.files(GPID).learners_path) == []
        # A ballot that is another one is refused as well.
        primary.leader.machine.status = ReplicaStatus.PRIMARY
        primary.leader.machine.ballot = 2
        with pytest.raises(NotPrimary):
            await student.life.task(student.learn())
        await learn(student, primary)
        student.check_equal()

    play(scenario)


def test_only_so_many_are_copied_at_a_time_and_those_that_wait_lose_no_patience() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary = await primary_of(one)
        student = await student_of(other, copies_max=1, patience_ms=500)
        await primary.write(20)
        wire = student.wire(primary)
        assert student.adoption is not None
        async with student.learner._slots:
            learning = student.life.task(student.learn())
            await world.sleep_ms(5_000)
            assert not wire.asked
            assert student.learner.progress == ((GPID, 0, 0),)
        await learning
        student.check_equal()

    play(scenario)


def test_log_that_is_damaged_is_gone_round_by_a_checkpoint() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(10)
        await learn(student, primary)
        await primary.write(30, size=1_000)
        # A record that the learner needs rots in a segment.
        [run, *_] = [run for run in primary.log._index.held_runs(GPID, 12) if run.first > 12]
        path = primary.data / "log"
        name = next(
            each
            for each in primary.disk.list(path)
            if each.startswith(f"{run.segment:08}") or str(run.segment) in each
        )
        primary.disk.flip(path / name, run.start + 60)
        wire = student.wire(primary)
        with pytest.raises(InvalidArgument):
            await student.life.task(student.learn())
        assert wire.asked[READ] == 0
        await student.life.task(student.learn())
        assert wire.asked[READ] > 0
        student.check_equal()

    play(scenario)
