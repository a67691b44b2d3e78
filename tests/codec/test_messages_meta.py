"""A table on the wire: complete, and refused when it is not one."""

from typing import Any

import pytest

from pegaskv.base.errors import WireError
from pegaskv.base.types import TableInfo, TableStatus
from pegaskv.codec.messages_meta import table_from_wire, table_to_wire
from pegaskv.codec.packing import pack, unpack

TABLE = TableInfo(
    table_id=7,
    name="users",
    status=TableStatus.DROPPED,
    partition_count=8,
    replica_count=3,
    envs={"default_ttl": "60"},
    created_at=1,
    dropped_at=2,
    expires_at=3,
    version=4,
)


def test_a_table_survives_the_wire() -> None:
    assert table_from_wire(unpack(pack(table_to_wire(TABLE)))) == TABLE


@pytest.mark.parametrize("status", list(TableStatus))
def test_every_status_survives_the_wire(status: TableStatus) -> None:
    table = TableInfo(1, "t", status, 8, 1)
    assert table_from_wire(table_to_wire(table)) == table


def test_every_field_of_a_table_travels() -> None:
    assert set(table_to_wire(TABLE)) == set(TableInfo.__dataclass_fields__)


def test_a_field_of_a_newer_server_is_ignored() -> None:
    assert table_from_wire(table_to_wire(TABLE) | {"colour": "red"}) == TABLE


@pytest.mark.parametrize("name", sorted(TableInfo.__dataclass_fields__))
def test_a_missing_field_is_a_wire_error(name: str) -> None:
    fields = table_to_wire(TABLE)
    del fields[name]
    with pytest.raises(WireError, match=name):
        table_from_wire(fields)


@pytest.mark.parametrize("name", sorted(TableInfo.__dataclass_fields__))
@pytest.mark.parametrize("value", [None, b"bytes", [1], 1.5])
def test_a_field_of_a_wrong_type_is_a_wire_error(name: str, value: Any) -> None:
    with pytest.raises(WireError, match=name):
        table_from_wire(table_to_wire(TABLE) | {name: value})


@pytest.mark.parametrize("name", sorted({*TableInfo.__dataclass_fields__} - {"follower"}))
def test_a_truth_value_is_no_number_and_no_text(name: str) -> None:
    with pytest.raises(WireError, match=name):
        table_from_wire(table_to_wire(TABLE) | {name: True})


@pytest.mark.parametrize("fields", [None, 1, "table", b"table", [], [1, 2], {}, True])
def test_what_is_no_map_is_a_wire_error(fields: Any) -> None:
    with pytest.raises(WireError, match="not a table"):
        table_from_wire(fields)


def test_an_unknown_status_is_a_wire_error() -> None:
    with pytest.raises(WireError, match="lost"):
        table_from_wire(table_to_wire(TABLE) | {"status": "lost"})


def test_changing_what_was_sent_does_not_change_the_table() -> None:
    fields = table_to_wire(TABLE)
    fields["envs"]["default_ttl"] = "0"
    assert TABLE.envs == {"default_ttl": "60"}
