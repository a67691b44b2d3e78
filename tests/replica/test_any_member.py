"""Reads that any member may answer: a secondary does so when asked for it, and never else."""

from typing import Any

import pytest

from pegaskv.base.errors import InvalidArgument, NotPrimary, NotReady, NotServing, PartitionClosed
from pegaskv.base.types import Gpid, ReplicaStatus
from pegaskv.codec.keys import encode_key
from pegaskv.codec.operations import ANY_MEMBER, Operation
from pegaskv.lease.options import LeaseOptions
from pegaskv.replica.events import Taught
from tests.replica.members_world import GroupServer, following, led
from tests.replica.stub_world import GPID, play
from tests.simulation.world import Life, World

OK = 0
# Each read that there is, and what it answers where `s` is `v`.
READS: dict[Operation, tuple[tuple[Any, ...], list[Any]]] = {
    Operation.GET: ((b"h", b"s"), [b"v"]),
    Operation.TTL: ((b"h", b"s"), [-1]),
    Operation.BATCH_GET: (([b"h", b"s", b"h", b"t"],), [[b"v", None]]),
    Operation.MULTI_GET: (
        (b"h", None, b"", b"", 3, 0, b"", 0, 0),
        [True, [b"s", b"v"], None],
    ),
    Operation.SCAN: (
        (b"", b"", 0, 0, b"", 0, b"", 0, b"", 0, 0),
        [None, 1, [encode_key(b"h", b"s"), b"v"]],
    ),
}


async def ask_any(server: GroupServer, operation: Operation, *fields: Any, index: int = 0) -> Any:
    return await server.ask(operation, *fields, index=index | ANY_MEMBER)


@pytest.mark.parametrize("operation", READS, ids=lambda each: each.name)
def test_a_secondary_answers_what_it_has_applied_to_who_allows_that(operation: Operation) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await following(life)
        fields, expected = READS[operation]
        assert (await server.ask(operation, *fields))[0] == NotPrimary.code
        assert await ask_any(server, operation, *fields) == [OK, *expected]
        # That was for this one request.
        assert (await server.ask(operation, *fields))[0] == NotPrimary.code

    play(scenario)


def test_a_secondary_that_has_not_heard_its_primary_for_the_grace_answers_nobody() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await following(life)
        # So that nobody lets it lead.
        server.meta.away = True
        await world.sleep_ms(LeaseOptions().grace_ms - 100)
        assert await ask_any(server, Operation.GET, b"h", b"s") == [OK, b"v"]
        await world.sleep_ms(200)
        assert (await ask_any(server, Operation.GET, b"h", b"s"))[0] == NotPrimary.code
        assert not server.crashes

    play(scenario)


def test_a_beacon_of_the_primary_lets_a_secondary_answer_what_it_says_is_committed() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await following(life)
        server.meta.away = True
        for _ in range(3):
            await world.sleep_ms(LeaseOptions().grace_ms - 100)
            server.hand(Operation.BEACON, 1_000, [*GPID, 1, 2], 0, [])
        await world.sleep_ms(LeaseOptions().grace_ms - 100)
        assert await ask_any(server, Operation.GET, b"h", b"s") == [OK, b"not committed"]

    play(scenario)


def test_who_learns_or_is_nobody_or_is_closed_answers_nobody() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await following(life)
        server.replica().closed = "a test"
        assert (await ask_any(server, Operation.GET, b"h", b"s"))[0] == PartitionClosed.code
        server.replica().closed = ""
        server.replica().reopening = True
        assert (await ask_any(server, Operation.GET, b"h", b"s"))[0] == NotPrimary.code
        server.replica().reopening = False
        assert await ask_any(server, Operation.GET, b"h", b"s") == [OK, b"v"]
        server.replica().step_down(Taught(2))
        assert (await ask_any(server, Operation.GET, b"h", b"s"))[0] == NotPrimary.code
        await server.serve(ballot=3, primary="b", secondaries=("c",))
        assert server.replica().machine.status is ReplicaStatus.INACTIVE
        assert (await ask_any(server, Operation.GET, b"h", b"s"))[0] == NotReady.code

    play(scenario)


def test_no_write_is_taken_by_a_secondary_whatever_it_allows() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await following(life)
        for operation, fields in {
            Operation.SET: (b"h", b"s", b"w", 0),
            Operation.DELETE: (b"h", b"s"),
            Operation.INCR: (b"h", b"n", 1, 0),
        }.items():
            assert (await server.ask(operation, *fields))[0] == NotPrimary.code
            assert (await ask_any(server, operation, *fields))[0] == NotServing.code
        assert await ask_any(server, Operation.GET, b"h", b"s") == [OK, b"v"]

    play(scenario)


def test_a_primary_answers_as_ever_and_not_once_its_leases_have_ended() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await led(life, ("b", "c"))
        await server.set(b"s", b"v")
        assert await ask_any(server, Operation.GET, b"h", b"s") == [OK, b"v"]
        server.silence("b", "c")
        await world.sleep_ms(LeaseOptions().grace_ms)
        assert (await ask_any(server, Operation.GET, b"h", b"s"))[0] == NotReady.code

    play(scenario)


def test_what_is_not_here_or_not_of_here_is_refused_by_its_own_name() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await following(life)
        elsewhere = server.send(Operation.GET, b"h", b"s", table_id=7, index=ANY_MEMBER)
        code, message, *_ = await server.answer(elsewhere)
        assert (code, message) == (NotServing.code, "partition 7.0 is not on this server")
        server.stub._partitions.closed[Gpid(1, 1)] = "a test"
        assert (await ask_any(server, Operation.GET, b"h", b"s", index=1))[0] == (
            PartitionClosed.code
        )
        assert (await ask_any(server, Operation.GET, b"h"))[0] == InvalidArgument.code
        short = server.hand(Operation.GET, 1_000, 1)
        assert (await server.answer(short))[0] == InvalidArgument.code

    play(scenario)
