"""The table of operations: complete, and its numbers for ever."""

import pytest

from pegaskv.codec.operations import OPERATIONS, Operation, RangeFlag, ScanFlag


def test_every_operation_has_a_row_in_the_table() -> None:
    assert set(OPERATIONS) == set(Operation)


def test_the_numbers_of_operations_never_change() -> None:
    assert {operation.name: operation.value for operation in Operation} == {
        "HELLO": 0,
        "PING": 1,
        "GET": 10,
        "TTL": 11,
        "MULTI_GET": 12,
        "BATCH_GET": 13,
        "SCAN": 14,
        "DUPLICATION_PROGRESS": 15,
        "SET": 30,
        "DELETE": 31,
        "MULTI_SET": 32,
        "MULTI_DELETE": 33,
        "INCR": 34,
        "CHECK_AND_SET": 35,
        "CHECK_AND_MUTATE": 36,
        "BATCH_SET": 37,
        "BATCH_DELETE": 38,
        "DUPLICATE": 50,
        "COPY_RANGE": 51,
        "QUERY_CONFIG": 60,
        "CREATE_TABLE": 61,
        "DROP_TABLE": 62,
        "RECALL_TABLE": 63,
        "RENAME_TABLE": 64,
        "LIST_TABLES": 65,
        "TABLE_INFO": 66,
        "SET_ENVS": 67,
        "DELETE_ENVS": 68,
        "CLEAR_ENVS": 69,
        "LIST_NODES": 70,
        "CLUSTER_INFO": 71,
        "SERVER_INFO": 72,
        "GET_META_LEVEL": 73,
        "SET_META_LEVEL": 74,
        "SET_REPLICA_COUNT": 75,
        "BALANCE": 76,
        "PROPOSE_CHANGE": 77,
        "DIAGNOSE": 78,
        "ADD_DUPLICATION": 80,
        "MODIFY_DUPLICATION": 81,
        "QUERY_DUPLICATION": 82,
        "LIST_DUPLICATIONS": 83,
        "ADD_CLUSTER": 84,
        "REMOVE_CLUSTER": 85,
        "LIST_CLUSTERS": 86,
        "OPEN_TABLE": 87,
        "ENSURE_DUPLICATION": 90,
        "FORGET_DUPLICATION": 91,
        "PREPARE": 100,
        "ADOPT": 101,
        "BEACON": 102,
        "LEARN_BEGIN": 103,
        "LEARN_READ": 104,
        "LEARN_LOG": 105,
        "LEARN_JOIN": 106,
        "LOG_HELD": 107,
        "NODE_REPORT": 120,
        "NODE_BEACON": 121,
        "NODE_LEAVING": 122,
        "PROPOSE": 123,
        "REPORT_PROGRESS": 124,
        "CONFIGURE": 130,
        "OBEY": 131,
        "REPLICA_STATES": 132,
    }


def test_the_flags_never_change() -> None:
    assert [(flag.name, flag.value) for flag in RangeFlag] == [
        ("START_INCLUSIVE", 1),
        ("STOP_INCLUSIVE", 2),
        ("REVERSE", 4),
        ("NO_VALUE", 8),
    ]
    assert [(flag.name, flag.value) for flag in ScanFlag] == [
        ("NO_VALUE", 1),
        ("RETURN_EXPIRY", 2),
        ("COUNT_ONLY", 4),
    ]


@pytest.mark.parametrize("operation", [one for one in Operation if one < 70])
def test_data_operations_name_their_partition_first_and_others_do_not(
    operation: Operation,
) -> None:
    is_data = 10 <= operation < 60
    named = OPERATIONS[operation].request.startswith("table id, partition index, ")
    assert named == is_data


@pytest.mark.parametrize("operation", list(Operation))
def test_writes_are_marked_and_answer_their_decree(operation: Operation) -> None:
    spec = OPERATIONS[operation]
    assert spec.is_write == (30 <= operation < 60)
    assert spec.reply.startswith("decree") == spec.is_write
