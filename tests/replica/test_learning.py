"""Learning: whatever a server had before, it ends with the primary's history and no other."""

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pegaskv.base.errors import (
    CorruptionError,
    InvalidArgument,
    PegasKVError,
    Unavailable,
)
from pegaskv.codec.operations import Operation
from pegaskv.replica.learning import have_decree
from pegaskv.replica.recovery import RecoveredReplica, apply_records
from pegaskv.storage.leveldb import LevelDBFactory
from pegaskv.storage.local_disk import LocalDisk
from pegaskv.storage.memory import MemoryFactory
from pegaskv.storage.mutation_log import LogRecord
from pegaskv.storage.options import StorageOptions
from tests.replica.learning_support import (
    GPID,
    LOG,
    READ,
    Primary,
    Student,
    learn,
    payload_of,
    play,
    primary_of,
    student_of,
)
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import Node, World

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
def test_a_connection_that_breaks_anywhere_is_gone_on_with(after: int) -> None:
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

    play(scenario, seed=after)


def test_a_file_that_was_whole_is_not_copied_again_and_tables_are_those_of_leveldb(
    tmp_path: Path,
) -> None:
    disk = LocalDisk()
    options = StorageOptions(write_buffer_bytes=64 * 1024, table_file_bytes=64 * 1024)

    async def scenario(world: World, one: Node, other: Node) -> None:
        places: dict[str, Any] = {"disk": disk, "factory": LevelDBFactory(disk, options)}
        life = one.spawn()
        primary = Primary(life, data=tmp_path / "primary", **places)
        await life.task(primary.start())
        life = other.spawn()
        student = Student(life, data=tmp_path / "learner", **places)
        await life.task(student.start(page_bytes=60_000))
        random = Random(1)
        for _ in range(4):
            await primary.write(8, mark=random.randbytes(90_000))
            await primary.flush(primary.engine)
        await primary.flush_all()
        wire = student.wire(primary)
        wire.left = 35
        learning = student.life.task(student.learn())
        await world.until(lambda: wire.left <= 0)
        [copy] = student.learner._copies.values()
        whole, files = set(copy.files.whole), dict(copy.files.files)
        assert 1 < len(whole) < len(files), (whole, files)
        [(_, copied, total)] = student.learner.progress
        assert 0 < copied < total == sum(files.values())
        await world.sleep_ms(500)
        wire.left = 1 << 60
        await learning
        assert {name: wire.read_bytes[name] for name in whole} == {
            name: files[name] for name in whole
        }
        assert wire.read_bytes.keys() == files.keys()
        await primary.write(3)
        await student.life.task(student.learn())
        student.check_equal()
        for side in (primary, student):
            side.directory.close()
        assert student.replica.engine is not None
        student.replica.engine.close()
        primary.engine.close()

    play(scenario)


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
