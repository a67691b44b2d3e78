"""A primary and its members: whom it removes, when it takes writes, what it holds for them."""

import itertools
import logging

import pytest

from pegaskv.base.errors import NotEnoughMembers
from pegaskv.base.hashing import partition_index
from pegaskv.base.limits import PEER_UNANSWERED_BYTES_MAX
from pegaskv.codec.messages_meta import ProposalKind
from pegaskv.codec.operations import Operation
from pegaskv.lease.options import LeaseOptions
from pegaskv.replica.membership import LOOK_MS
from pegaskv.storage.log_options import LogOptions
from tests.replica.members_world import GroupServer, led
from tests.replica.stub_world import play
from tests.simulation.cluster_servers import membership_of
from tests.simulation.world import Life, World

OK, FEW = 0, NotEnoughMembers.code
REMOVE = ProposalKind.REMOVE
LEASE = LeaseOptions()
# How much later than promised the watch may look, and a tick and an answer come.
LATE_MS = 2 * LOOK_MS
# After a commit, if no records tell.
TOLD_WITHIN_MS = 10
# What a primary that hears nobody leaves the others to go on without it, beyond the grace.
BENEFIT_MS = 1_500


def write(server: GroupServer) -> int:
    return server.send(Operation.SET, b"h", b"s", b"v", 0)


# Whom it removes.


def test_a_secondary_that_is_silent_alone_goes_after_the_prepare_timeout() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await led(life, ("b", "c"))
        server.silence("c")
        began_ms = life.clock.monotonic_ms()
        assert (await server.answer(write(server)))[0] == OK
        [(asked_ms, *asked)] = server.meta.asked
        assert asked == [REMOVE, "c"]
        assert 0 <= asked_ms - began_ms - LEASE.prepare_timeout_ms <= LATE_MS
        assert server.replica().machine.secondaries == ("b",)

    play(scenario)


def test_a_primary_that_hears_nobody_lets_the_others_go_on_before_it_goes_on_alone() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await led(life, ("b", "c"))
        server.silence("b", "c")
        began_ms = life.clock.monotonic_ms()
        request = write(server)
        await world.until(lambda: bool(server.meta.asked))
        [(asked_ms, *asked)] = server.meta.asked
        assert asked == [REMOVE, "b"]
        assert 0 <= asked_ms - began_ms - (LEASE.grace_ms + BENEFIT_MS) <= LATE_MS
        # The other one is silent alone from there on, and has been for long enough.
        assert (await server.answer(request))[0] == OK
        [_, (then_ms, *asked)] = server.meta.asked
        assert asked == [REMOVE, "c"]
        assert then_ms - asked_ms <= LATE_MS
        assert await server.get(b"s") == b"v"

    play(scenario)


# What it tells.


def test_members_hear_of_each_commit_by_records_or_soon_without() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await led(life, ("b", "c"))
        replica = server.replica()
        heard = [server.members.peer(each).heard for each in ("b", "c")]
        for number in range(40):
            # So that the last write is anywhere between two looks at who was told.
            for _ in range(number % 10 + 1):
                assert (await server.answer(write(server)))[0] == OK
            committed_ms = life.clock.monotonic_ms()
            committed = replica.machine.committed
            await world.sleep_ms(LOOK_MS)
            for beacons in heard:
                told_ms = min(at_ms for at_ms, commits in beacons if committed in commits)
                assert told_ms - committed_ms <= TOLD_WITHIN_MS

    play(scenario)


def test_members_that_get_records_all_the_time_are_told_by_these_alone() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await led(life, ("b", "c"))
        await world.sleep_ms(LOOK_MS)
        beacons = server.members.peer("b").heard
        began_ms, before = life.clock.monotonic_ms(), len(beacons)
        while life.clock.monotonic_ms() - began_ms < 5 * LEASE.beacon_interval_ms:
            assert (await server.answer(write(server)))[0] == OK
        # What is left are those that leases need.
        assert len(beacons) - before <= 6

    play(scenario)


# Whom it hands over to.


def test_a_partition_is_handed_over_only_to_one_that_answers_after_the_last_write() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await led(life, ("b", "c"))
        server.silence("b")
        replica = server.replica()
        began_ms = life.clock.monotonic_ms()
        membership_of(server.stub).hand_over(replica, "b", keep=True)
        await world.until(lambda: bool(server.meta.asked) or not replica.draining)
        # It is not led by who may be gone: it goes as every member that is silent.
        assert [each[1:] for each in server.meta.asked] == [(REMOVE, "b")]
        assert life.clock.monotonic_ms() - began_ms >= LEASE.prepare_timeout_ms
        await world.until(lambda: replica.machine.secondaries == ("c",))
        membership_of(server.stub).hand_over(replica, "c", keep=True)
        await world.until(lambda: len(server.meta.asked) == 2)
        assert server.meta.asked[1][1:] == (ProposalKind.HANDOVER, "c")

    play(scenario)


def test_who_hands_over_to_one_that_never_answers_takes_writes_again() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await led(life, ("b", "c"))
        server.meta.away = True
        server.silence("b")
        replica = server.replica()
        membership_of(server.stub).hand_over(replica, "b", keep=True)
        assert replica.draining
        await world.until(lambda: not replica.draining)
        assert not server.meta.asked

    play(scenario)


# When it takes writes.


def test_raising_the_replica_count_stops_no_writes() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = GroupServer(life)
        await server.start()
        await server.serve(first=True)
        await server.serve(replica_count=3, version=1)
        for _ in range(5):
            assert (await server.answer(write(server)))[0] == OK
            await world.sleep_ms(LOOK_MS)
        assert server.replica().min_members == 2

    play(scenario)


def test_a_new_member_that_hears_late_what_it_is_keeps_clients_waiting_hardly_longer() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = GroupServer(life)
        await server.start()
        await server.serve(first=True)
        assert server.replica().serving
        new = server.members.peer("b")
        new.unnamed = True
        server.scope.start("push", server.serve(replica_count=3, version=1, secondaries=("b",)))
        await world.until(lambda: bool(new.asked_ms))
        await world.sleep_ms(30)
        assert not server.replica().serving
        new.unnamed = False
        began_ms = life.clock.monotonic_ms()
        await world.until(lambda: server.replica().serving)
        # It is asked again after as long as it was refused, at most, and has to answer twice.
        assert life.clock.monotonic_ms() - began_ms <= 2 * 30 + 5
        assert (await server.answer(write(server)))[0] == OK

    play(scenario)


def test_a_member_that_goes_on_refusing_is_asked_less_and_less_often() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = GroupServer(life)
        await server.start()
        await server.serve(first=True)
        new = server.members.peer("b")
        new.unnamed = True
        server.scope.start("push", server.serve(replica_count=3, version=1, secondaries=("b",)))
        began_ms = life.clock.monotonic_ms()
        await world.sleep_ms(1_500)
        pauses = [after - before for before, after in itertools.pairwise(new.asked_ms)]
        assert all(8 <= pause <= 200 + LATE_MS for pause in pauses)
        assert min(pauses[5:]) >= 200
        assert len([asked for asked in new.asked_ms if asked - began_ms > 400]) <= 6

    play(scenario)


def test_a_partition_that_has_grown_takes_no_writes_once_its_members_are_gone() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = GroupServer(life)
        await server.start()
        await server.serve(first=True)
        await server.serve(replica_count=3, version=1)
        await server.serve(replica_count=3, version=1, secondaries=("b",))
        assert (await server.answer(write(server)))[0] == OK
        server.silence("b")
        await world.until(lambda: not server.replica().machine.secondaries)
        assert (await server.answer(write(server)))[0] == FEW
        assert await server.get(b"s") == b"v"

    play(scenario)


@pytest.mark.parametrize("grown", [False, True])
def test_who_followed_while_the_partition_grew_does_not_take_writes_alone(grown: bool) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = GroupServer(life)
        await server.start()
        here = server.directory.node_id
        await server.serve(first=True, replica_count=2, primary="b", secondaries=(here,))
        await server.serve(replica_count=3, version=1, primary="b", secondaries=(here,))
        if grown:
            await server.serve(replica_count=3, version=1, primary="b", secondaries=(here, "c"))
        await server.serve(replica_count=3, version=1)
        assert (await server.answer(write(server)))[0] == FEW
        assert await server.get(b"s") is None

    play(scenario)


# What it holds for the silent.


def test_what_is_held_for_members_that_do_not_answer_is_bounded() -> None:
    async def scenario(world: World, life: Life) -> None:
        large = LogOptions(log_segment_bytes=16 * 1024 * 1024)
        server = await led(life, ("b", "c"), partitions=128, log_options=large)
        await server.serve(2, first=True, secondaries=("b",))
        server.silence("b", "c")
        members = [server.members.peer("b"), server.members.peer("c")]
        value = bytes(1_000_000)
        # One write to each of many partitions.
        keys = {partition_index(b"%d" % number, b"", 128): b"%d" % number for number in range(800)}
        requests = []
        for index, key in list(keys.items())[:100]:
            requests.append(server.send(Operation.SET, key, b"", value, 0, index=index))
            await world.sleep_ms(15)
        assert len(requests) * len(value) > PEER_UNANSWERED_BYTES_MAX + 20 * len(value)
        for member in members:
            # What was on its way when the bound was passed comes to little.
            assert 0 <= member.held_bytes - PEER_UNANSWERED_BYTES_MAX < 3 * len(value)
        # Of another table, that is with the first of them alone: it waits for that one only.
        other = server.send(Operation.SET, keys[0], b"", b"v", 0, table_id=2)
        await world.sleep_ms(50)
        assert not server.connection.answers
        members[0].speak()
        assert (await server.answer(other, limit_ms=50))[0] == OK
        members[1].speak()
        assert [(await server.answer(each))[0] for each in requests] == [OK] * 100
        assert not any(member.held_bytes for member in members)
        assert not server.meta.asked

    play(scenario)


# What time it has.


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]


def test_a_wall_clock_that_is_off_those_of_all_others_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await led(life, ("b", "c"))
        members = [server.members.peer("b"), server.members.peer("c")]

        async def ahead(*seconds: int) -> None:
            for member, ahead_s in zip(members, seconds, strict=True):
                member.ahead_us = ahead_s * 1_000_000
            await world.sleep_ms(5 * LEASE.beacon_interval_ms)

        # Somebody else's is wrong, or nobody's by much.
        await ahead(90, 0)
        await ahead(-90, 50)
        assert not said(caplog)
        await ahead(90, 120)
        [text] = said(caplog)
        assert "is -90 s off" in text
        # Set, and wrong again.
        await ahead(0, 0)
        await ahead(-300, -100)
        assert len(said(caplog)) == 2
        assert "is 100 s off" in said(caplog)[1]

    play(scenario)


def test_of_two_wall_clocks_nobody_knows_which_is_wrong(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await led(life, ("b",))
        server.members.peer("b").ahead_us = 3_600_000_000
        await world.sleep_ms(5 * LEASE.beacon_interval_ms)
        assert not said(caplog)

    play(scenario)
