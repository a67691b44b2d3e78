"""Answers that are packed while the disk syncs: everybody gets one, and nobody two."""

from pegaskv.codec.operations import Operation
from tests.replica.stub_world import Server, play
from tests.simulation.world import Life, World

OK, SYNC_US = 0, 20_000


async def syncing(world: World, life: Life) -> tuple[Server, int]:
    """A server in the middle of the sync of one write, whose answer is packed."""
    server = Server(life)
    await server.start()
    await server.serve(first=True)
    request = server.send(Operation.SET, b"h", b"a", b"no number", 0)
    await world.sleep_ms(SYNC_US // 4_000)
    front = server.stub._front
    assert front is not None
    assert [count for _, count in front._answering] == [1]
    assert not server.connection.answers.keys() & {request}
    return server, request


def test_who_comes_after_the_answers_were_packed_is_answered_too() -> None:
    async def scenario(world: World, life: Life) -> None:
        server, first = await syncing(world, life)
        # Evaluated against the write that is being synced, and told when that is sure.
        late = server.send(Operation.INCR, b"h", b"a", 1, 0)
        behind = server.send(Operation.SET, b"h", b"b", b"1", 0)
        assert (await server.answer(first))[0] == OK
        assert (await server.answer(late))[0] != OK
        assert (await server.answer(behind))[0] == OK
        assert server.connection.in_flight == 0
        await server.stop()

    play(scenario, worker_us=(SYNC_US, SYNC_US))


def test_a_table_that_becomes_os_in_the_middle_of_a_sync_is_answered_once() -> None:
    async def scenario(world: World, life: Life) -> None:
        server, first = await syncing(world, life)
        # As its next tick finds it, which comes when this sync has ended and before its answers.
        server.replica().fsync = False
        second = server.send(Operation.SET, b"h", b"b", b"1", 0)
        # `flush` of the test's connection refuses a second answer to one request.
        assert (await server.answer(first))[0] == OK
        assert (await server.answer(second))[0] == OK
        await world.sleep_ms(200)
        assert server.connection.in_flight == 0
        await server.stop()

    play(scenario, worker_us=(SYNC_US, SYNC_US))
