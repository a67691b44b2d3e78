"""Rows around the lengths at which their operations are packed otherwise."""

import pytest

from pegaskv.codec.keys import encode_key
from pegaskv.codec.mutations import (
    OperationKind,
    decode_mutation,
    encode_mutation,
    encode_operation,
)
from pegaskv.codec.operations import Operation
from tests.replica.stub_world import Server, play_lives
from tests.simulation.world import Life, World

# A stored key has two bytes and the hash key before the sort key, a row twelve before the value.
SORT_KEYS = (0, 1, 251, 252, 253, 254, 300, 20_000)
VALUES = (0, 1, 242, 243, 244, 245, 300, 20_000)


@pytest.mark.parametrize("sort_bytes", SORT_KEYS)
def test_an_operation_is_packed_as_every_other_and_survives_a_crash(sort_bytes: int) -> None:
    sort_keys = {
        size: (b"%d" % size).ljust(sort_bytes, b"k")[:sort_bytes] or b"%d" % size for size in VALUES
    }

    async def written(world: World, life: Life) -> None:
        server = Server(life)
        await server.start()
        await server.serve(first=True)
        replica = server.replica()
        for size in VALUES:
            sort_key = sort_keys[size]
            request = server.send(Operation.SET, b"h", sort_key, b"v" * size, 0)
            assert replica.open is not None
            operation = replica.open.operations[-1]
            ((key, row),) = replica.open.rows.items()
            assert key == encode_key(b"h", sort_key)
            await server.answer(request)
            mutation = encode_mutation(0, [operation])
            ((kind, partition_hash, body),) = decode_mutation(mutation)
            assert (kind, body) == (OperationKind.WRITE, [key, row])
            assert operation == encode_operation(kind, partition_hash, [key, row])

    async def read(world: World, life: Life) -> None:
        server = Server(life)
        await server.start()
        await server.serve()
        last = {sort_key: size for size, sort_key in sort_keys.items()}
        for sort_key, size in last.items():
            assert await server.get(sort_key) == b"v" * size

    play_lives(written, read)
