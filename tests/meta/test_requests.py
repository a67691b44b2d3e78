from typing import Any

import pytest

from pegaskv.base.errors import InvalidArgument
from pegaskv.codec.operations import Operation
from pegaskv.meta.events import (
    AddCluster,
    AddDuplication,
    ClearEnvs,
    CreateTable,
    DeleteEnvs,
    DropTable,
    ForgetDuplication,
    ModifyDuplication,
    OpenTable,
    RecallTable,
    RemoveCluster,
    RenameTable,
    SetEnvs,
)
from pegaskv.meta.remotes import RemoteClusterInfo
from pegaskv.meta.requests import (
    no_fields,
    one_flag,
    one_name,
    one_name_or_id,
    pattern_and_match,
    read_request,
)

UUID = b"0123456789abcdef"

GOOD: list[tuple[Operation, list[Any], Any]] = [
    (
        Operation.CREATE_TABLE,
        ["a", 8, 0, {"durability": "os"}, "fail"],
        CreateTable(5, "a", 8, 0, {"durability": "os"}, False),
    ),
    (Operation.CREATE_TABLE, ["", 0, 1, {}, "same"], CreateTable(5, "", 0, 1, {}, True)),
    (Operation.DROP_TABLE, ["a", -1, "fail"], DropTable(5, "a", -1, False)),
    (Operation.DROP_TABLE, ["a", 0, "ok"], DropTable(5, "a", 0, True)),
    (Operation.DROP_TABLE, ["a", 0, "ok", True], DropTable(5, "a", 0, True, True)),
    (Operation.OPEN_TABLE, ["a"], OpenTable(5, "a")),
    (
        Operation.ADD_DUPLICATION,
        ["a", "beta", None, True, 0, {"mesh": True}],
        AddDuplication(5, "a", "beta", None, True, 0, True, False, UUID),
    ),
    (
        Operation.ADD_DUPLICATION,
        ["a", "beta", "b", False, 3, {"merge": True}],
        AddDuplication(5, "a", "beta", "b", False, 3, False, True, UUID),
    ),
    (
        Operation.MODIFY_DUPLICATION,
        ["a", 9, "pause", None],
        ModifyDuplication(5, "a", 9, "pause", None, UUID),
    ),
    (
        Operation.MODIFY_DUPLICATION,
        ["a", 9, "fail_mode", "skip"],
        ModifyDuplication(5, "a", 9, "fail_mode", "skip", UUID),
    ),
    (
        Operation.MODIFY_DUPLICATION,
        ["a", 9, "copy", None],
        ModifyDuplication(5, "a", 9, "copy", None, UUID),
    ),
    (
        Operation.ADD_CLUSTER,
        ["beta", "h:1", 2, "", ""],
        AddCluster(5, RemoteClusterInfo("beta", "h:1", 2)),
    ),
    (Operation.REMOVE_CLUSTER, ["beta"], RemoveCluster(5, "beta")),
    (Operation.FORGET_DUPLICATION, [0, UUID], ForgetDuplication(5, 0, UUID)),
    (Operation.RECALL_TABLE, [7, None], RecallTable(5, 7, None)),
    (Operation.RECALL_TABLE, [7, "b"], RecallTable(5, 7, "b")),
    (Operation.RENAME_TABLE, ["a", "b"], RenameTable(5, "a", "b")),
    (Operation.SET_ENVS, ["a", {"x": "y"}], SetEnvs(5, "a", {"x": "y"})),
    (Operation.DELETE_ENVS, ["a", ["x", "y"]], DeleteEnvs(5, "a", ("x", "y"))),
    (Operation.CLEAR_ENVS, ["a", None], ClearEnvs(5, "a", None)),
    (Operation.CLEAR_ENVS, ["a", "p"], ClearEnvs(5, "a", "p")),
]

# What a field may be replaced with by a stranger.
STRANGE = [None, True, False, -2, 1 << 40, 1.0, "", "x" * 5_000, b"a", [], ["a", 1], {}, {"a": 1}]


@pytest.mark.parametrize(("operation", "fields", "event"), GOOD)
def test_a_good_request_becomes_its_event(
    operation: Operation, fields: list[Any], event: Any
) -> None:
    assert read_request(operation, 5, [*fields], new_uuid=UUID) == event


@pytest.mark.parametrize(("operation", "fields", "event"), GOOD)
def test_a_field_too_many_or_too_few_is_refused(
    operation: Operation, fields: list[Any], event: Any
) -> None:
    # What may be left out may be there.
    more = [None] * (2 if operation is Operation.DROP_TABLE and len(fields) == 3 else 1)
    for wrong in (fields[: 2 if operation is Operation.DROP_TABLE else -1], [*fields, *more], []):
        with pytest.raises(InvalidArgument, match="fields instead of"):
            read_request(operation, 5, wrong)


@pytest.mark.parametrize(("operation", "fields", "event"), GOOD)
def test_a_field_of_another_type_is_refused_and_nothing_else_is_raised(
    operation: Operation, fields: list[Any], event: Any
) -> None:
    refused = 0
    for index in range(len(fields)):
        for value in STRANGE:
            changed = [*fields]
            changed[index] = value
            try:
                found = read_request(operation, 5, changed)
            except InvalidArgument:
                refused += 1
            else:
                assert type(found) is type(event)
    assert refused >= 9 * len(fields) - 4


@pytest.mark.parametrize(
    ("operation", "fields", "name"),
    [
        (Operation.CREATE_TABLE, [b"a", 8, 0, {}, "fail"], "name"),
        (Operation.CREATE_TABLE, ["a", True, 0, {}, "fail"], "partition count"),
        (Operation.CREATE_TABLE, ["a", 8, -1, {}, "fail"], "replica count"),
        (Operation.CREATE_TABLE, ["a", 8, 0, {"a": 1}, "fail"], "envs, a value"),
        (Operation.CREATE_TABLE, ["a", 8, 0, {1: "a"}, "fail"], "envs, a name"),
        (Operation.CREATE_TABLE, ["a", 8, 0, {}, "maybe"], "if exists"),
        (Operation.DROP_TABLE, ["a", "1", "fail"], "reserve seconds"),
        (Operation.DROP_TABLE, ["a", 1, "same"], "if not exists"),
        (Operation.RECALL_TABLE, ["7", None], "table id"),
        (Operation.RECALL_TABLE, [7, 8], "new name"),
        (Operation.SET_ENVS, ["a", {}], "envs"),
        (Operation.SET_ENVS, ["a", {str(n): "" for n in range(1_001)}], "envs"),
        (Operation.DELETE_ENVS, ["a", ["x"] * 1_001], "envs"),
        (Operation.CLEAR_ENVS, ["a", b"x"], "prefix"),
        (Operation.DROP_TABLE, ["a", 1, "ok", 1], "force"),
        (Operation.ADD_DUPLICATION, ["a", 1, None, True, 0, {}], "remote cluster"),
        (Operation.ADD_DUPLICATION, ["a", "b", 1, True, 0, {}], "remote table"),
        (Operation.ADD_DUPLICATION, ["a", "b", None, 1, 0, {}], "copy existing rows"),
        (Operation.ADD_DUPLICATION, ["a", "b", None, True, -1, {}], "remote replica count"),
        (Operation.ADD_DUPLICATION, ["a", "b", None, True, 0, []], "options"),
        (Operation.ADD_DUPLICATION, ["a", "b", None, True, 0, {"mess": True}], "options"),
        (Operation.ADD_DUPLICATION, ["a", "b", None, True, 0, {b"mesh": True}], "options"),
        (Operation.ADD_DUPLICATION, ["a", "b", None, True, 0, {"mesh": 1}], "option mesh"),
        (Operation.MODIFY_DUPLICATION, ["a", True, "pause", None], "duplication id"),
        (Operation.MODIFY_DUPLICATION, ["a", 1, "stop", None], "action"),
        (Operation.MODIFY_DUPLICATION, ["a", 1, "pause", "x"], "argument"),
        (Operation.MODIFY_DUPLICATION, ["a", 1, "fail_mode", None], "argument"),
        (Operation.MODIFY_DUPLICATION, ["a", 1, "copy", "slow"], "argument"),
        (Operation.ADD_CLUSTER, ["b", "h:1", "2", "", ""], "cluster id"),
        (Operation.ADD_CLUSTER, ["b", None, 2, "", ""], "meta servers"),
        (Operation.ADD_CLUSTER, ["b", "h:1", 2, None, ""], "user"),
        (Operation.FORGET_DUPLICATION, [0, b"short"], "duplication uuid"),
        (Operation.FORGET_DUPLICATION, [0, "x" * 16], "duplication uuid"),
    ],
)
def test_a_wrong_field_is_named(operation: Operation, fields: list[Any], name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_request(operation, 5, fields)
    assert caught.value.message.startswith(f"{name}: ")


def test_an_option_that_is_not_known_is_refused_with_the_nearest() -> None:
    fields = ["a", "b", None, True, 0, {"mess": True}]
    with pytest.raises(InvalidArgument) as caught:
        read_request(Operation.ADD_DUPLICATION, 5, fields)
    assert caught.value.hint == "did you mean `mesh`?"


def test_questions_about_duplications_have_their_fields_checked() -> None:
    assert one_name_or_id(["a"]) == "a"
    assert one_name_or_id([7]) == 7
    assert pattern_and_match(["", "all"]) == ("", "all")
    assert pattern_and_match(["a", "prefix"]) == ("a", "prefix")
    for wrong in ([], [None], [True], [-1], [1, 2]):
        with pytest.raises(InvalidArgument):
            one_name_or_id(wrong)
    for wrong in ([], ["a"], ["a", "some"], [1, "all"], ["", "exact"]):
        with pytest.raises(InvalidArgument):
            pattern_and_match(wrong)


def test_questions_have_their_fields_checked_too() -> None:
    assert one_name(["a"]) == "a"
    assert one_flag([True], "with dropped") is True
    no_fields([])
    for wrong in ([], [1], ["a", "b"], [None]):
        with pytest.raises(InvalidArgument):
            one_name(wrong)
        with pytest.raises(InvalidArgument):
            one_flag(wrong, "with dropped")
    with pytest.raises(InvalidArgument):
        no_fields([1])
