"""set, get, delete, exist: one row (pegasus.md 1.4)."""

import pytest

import pegaskv
from pegaskv.errors import InvalidArgument, InvalidData, TableNotFound

ANY_BYTES = bytes(range(256))


async def test_get_returns_what_set_wrote(table: pegaskv.Table, hk: bytes) -> None:
    await table.set(hk, b"s", b"value")
    assert await table.get(hk, b"s") == b"value"


async def test_set_replaces_the_value(table: pegaskv.Table, hk: bytes) -> None:
    await table.set(hk, b"s", b"one")
    await table.set(hk, b"s", b"two")
    assert await table.get(hk, b"s") == b"two"


async def test_an_absent_row_is_none(table: pegaskv.Table, hk: bytes) -> None:
    assert await table.get(hk, b"s") is None
    assert await table.exist(hk, b"s") is False


async def test_exist_is_true_after_set_and_false_after_delete(
    table: pegaskv.Table, hk: bytes
) -> None:
    await table.set(hk, b"s", b"")
    assert await table.exist(hk, b"s") is True
    await table.delete(hk, b"s")
    assert await table.exist(hk, b"s") is False
    assert await table.get(hk, b"s") is None


async def test_deleting_an_absent_row_is_fine(table: pegaskv.Table, hk: bytes) -> None:
    await table.delete(hk, b"s")
    await table.delete(hk, b"s")


@pytest.mark.parametrize(
    ("sort_key", "value"), [(b"", b"v"), (b"s", b""), (b"", b""), (ANY_BYTES, ANY_BYTES)]
)
async def test_empty_and_binary_keys_and_values_come_back_as_they_are(
    table: pegaskv.Table, hk: bytes, sort_key: bytes, value: bytes
) -> None:
    await table.set(hk, sort_key, value)
    assert await table.get(hk, sort_key) == value
    assert await table.exist(hk, sort_key)


@pytest.mark.parametrize("byte", [0, 1, 0x7F, 0x80, 0xFE, 0xFF])
async def test_hash_keys_of_any_byte_are_apart_from_each_other(
    table: pegaskv.Table, hk: bytes, byte: int
) -> None:
    hash_key = hk + bytes((byte,))
    await table.set(hash_key, bytes((byte,)), hash_key)
    assert await table.get(hash_key, bytes((byte,))) == hash_key
    assert await table.get(hk, bytes((byte,))) is None


async def test_an_empty_hash_key_is_legal_for_single_rows(table: pegaskv.Table, hk: bytes) -> None:
    await table.set(b"", hk, b"1")
    assert await table.get(b"", hk) == b"1"
    assert await table.ttl(b"", hk) == -1
    assert await table.exist(b"", hk)
    await table.delete(b"", hk)
    assert await table.get(b"", hk) is None


async def test_str_is_taken_as_utf_8(table: pegaskv.Table, hk: bytes) -> None:
    await table.set(hk.decode(), "schlüssel", "größe")
    assert await table.get(hk, "schlüssel".encode()) == "größe".encode()


@pytest.mark.parametrize("length", [1, 255, 256, 65_534])
async def test_hash_keys_up_to_the_limit_are_taken(table: pegaskv.Table, length: int) -> None:
    hash_key = b"x" * length
    await table.set(hash_key, b"s", b"v")
    assert await table.get(hash_key, b"s") == b"v"


async def test_a_hash_key_over_the_limit_is_refused(table: pegaskv.Table) -> None:
    with pytest.raises((InvalidArgument, InvalidData), match="65535"):
        await table.set(b"x" * 65_535, b"s", b"v")
    with pytest.raises((InvalidArgument, InvalidData)):
        await table.get(b"x" * 65_536, b"s")


async def test_a_value_of_the_limit_is_taken_and_a_larger_one_refused(
    table: pegaskv.Table, hk: bytes
) -> None:
    limit = 1024 * 1024
    await table.set(hk, b"s", b"v" * limit)
    assert await table.get(hk, b"s") == b"v" * limit
    with pytest.raises((InvalidArgument, InvalidData), match=str(limit)):
        await table.set(hk, b"s", b"v" * (limit + 1))
    assert await table.get(hk, b"s") == b"v" * limit


@pytest.mark.parametrize("wrong", [None, 1, 1.5, ["x"], {"x": 1}])
async def test_keys_and_values_of_other_types_are_refused(
    table: pegaskv.Table, hk: bytes, wrong: object
) -> None:
    with pytest.raises(InvalidArgument):
        await table.set(wrong, b"s", b"v")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        await table.set(hk, wrong, b"v")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        await table.set(hk, b"s", wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        await table.get(hk, wrong)  # type: ignore[arg-type]


async def test_a_table_that_is_not_there_is_a_typed_error(client: pegaskv.Client) -> None:
    with pytest.raises(TableNotFound, match="no_such_table"):
        await (await client.table("no_such_table")).get(b"h", b"s")


async def test_rows_of_one_sort_key_in_many_hash_keys_do_not_meet(
    table: pegaskv.Table, hk: bytes
) -> None:
    for number in range(50):
        await table.set(hk + b"-%d" % number, b"s", b"%d" % number)
    for number in range(50):
        assert await table.get(hk + b"-%d" % number, b"s") == b"%d" % number
