"""What a primary keeps for those who learn from it, for how long, and for how many."""

from typing import Any

import pytest

from pegaskv.base.errors import (
    InvalidArgument,
    NotPrimary,
    NotServing,
)
from pegaskv.base.types import ReplicaStatus
from pegaskv.codec.operations import Operation
from tests.replica.learning_support import (
    GPID,
    LOG,
    READ,
    UUID,
    learn,
    play,
    primary_of,
    student_of,
)
from tests.simulation.world import Node, World

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


# Requests of strangers.


@pytest.mark.parametrize(
    ("operation", "fields", "error"),
    [
        (Operation.LEARN_BEGIN, [1, 0, 1, "node", None], InvalidArgument),
        (Operation.LEARN_BEGIN, ["1", 0, 1, "node", None, None], InvalidArgument),
        (Operation.LEARN_BEGIN, [1, 0, "1", "node", None, None], InvalidArgument),
        (Operation.LEARN_BEGIN, [1, 0, 1, "", None, None], InvalidArgument),
        (Operation.LEARN_BEGIN, [1, 0, 1, "n" * 65, None, None], InvalidArgument),
        (Operation.LEARN_BEGIN, [1, 0, 1, "node", 7, None], InvalidArgument),
        (Operation.LEARN_BEGIN, [1, 0, 1, "node", b"short", None], InvalidArgument),
        (Operation.LEARN_BEGIN, [1, 0, 1, "node", None, 5], InvalidArgument),
        (Operation.LEARN_BEGIN, [1, 1, 1, "node", None, None], NotServing),
        (Operation.LEARN_BEGIN, [1, 0, 2, "node", None, None], NotPrimary),
        (Operation.LEARN_BEGIN, [1, 0, 1, "nobody", None, None], NotPrimary),
        (READ, [1, 0, "learn-1", "rows", 0], InvalidArgument),
        (READ, [1, 0, 1, "rows", 0, 1], InvalidArgument),
        (READ, [1, 0, "learn-1", "rows", -1, 1], InvalidArgument),
        (READ, [1, 0, "learn-1", "rows", 0, 0], InvalidArgument),
        (READ, [1, 0, "learn-1", "rows", 0, 1], InvalidArgument),
        (LOG, [1, 0, 1, "node", 1], InvalidArgument),
        (LOG, [1, 0, 1, 5, 1, 1], InvalidArgument),
        (LOG, [1, 0, 1, "node", 0, 1], InvalidArgument),
        (LOG, [1, 0, 1, "node", 1, True], InvalidArgument),
        (LOG, [1, 0, 1, "node", 1, 1], InvalidArgument),
        (LOG, [1, 0, 2, "node", 1, 1], NotPrimary),
    ],
)
def test_requests_that_cannot_be_are_answered_with_why(
    operation: Operation, fields: list[Any], error: type[Exception]
) -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary = await primary_of(one, admits=lambda gpid, node_id: node_id != "nobody")
        student = await student_of(other)
        await primary.write(1)
        with pytest.raises(error):
            await student.life.task(student.wire(primary).request(operation, 1_000, *fields))
        assert primary.teaching.learners == []

    play(scenario)


def test_nothing_is_taught_before_the_barrier_of_the_ballot_is_committed() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(20)
        primary.leader.serving = False
        wire = student.wire(primary)
        learning = student.life.task(student.learn())
        await world.sleep_ms(3_000)
        assert wire.asked == {Operation.LEARN_BEGIN: wire.asked[Operation.LEARN_BEGIN]}
        primary.leader.serving = True
        await learning
        student.check_equal()

    play(scenario)


def test_a_page_of_a_file_that_is_not_the_checkpoints_is_refused() -> None:
    async def scenario(world: World, one: Node, other: Node) -> None:
        primary, student = await primary_of(one), await student_of(other)
        await primary.write(20)
        await primary.flush_all()
        wire = student.wire(primary)
        begin = wire.request(Operation.LEARN_BEGIN, 1_000, 1, 0, 1, "node", None, None)
        _, _, _, [name, _, [[file, size]]] = await student.life.task(begin)
        for wrong in ("CHECKPOINT", "../../manifest", "CURRENT"):
            with pytest.raises(InvalidArgument):
                await student.life.task(wire.request(READ, 1_000, 1, 0, name, wrong, 0, 10))
        read = wire.request(READ, 1_000, 1, 0, name, file, 0, 1 << 40)
        data, _ = await student.life.task(read)
        assert len(data) == size

    play(scenario)
