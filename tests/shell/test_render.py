import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaskv.base.errors import InvalidArgument, TableExists, Timeout, Unavailable
from shell.errors import Interrupted, NotConfirmed, UsageError, exit_status
from shell.render import (
    Fields,
    Result,
    Table,
    error_lines,
    json_failure,
    json_success,
    plain,
    printable,
    text_lines,
)


def test_a_table_is_aligned_with_numbers_to_the_right() -> None:
    rows = [[1, "a", None], [22, "long name", b"\x00"]]
    assert text_lines(Result(show=Table(("id", "name", "key"), rows))) == [
        "id  name       key",
        " 1  a          -",
        '22  long name  "\\x00"',
    ]


def test_wide_and_combining_signs_keep_the_columns() -> None:
    rows = [["漢字", "x"], ["e\u0301a", "x"], ["abcd", "x"]]
    lines = text_lines(Result(show=Table(("name", "y"), rows)))
    assert lines == ["name  y", "漢字  x", "e\u0301a    x", "abcd  x"]


def test_values_of_fields_are_shown_plainly() -> None:
    fields = Fields({"a": True, "long": {"x": 1, "y": "z"}, "empty": [], "list": [1, "b"]})
    assert text_lines(Result(show=fields)) == [
        "a      true",
        "long   x=1,y=z",
        "empty  -",
        "list   1,b",
    ]


@given(st.text())
def test_no_text_reaches_the_terminal_with_control_characters(text: str) -> None:
    assert printable(text).isprintable()
    shown = [*text_lines(Result(show=Fields({text: text}))), *text_lines(Result(show=[text]))]
    shown += text_lines(Result(show=Table((text,), [[text]])))[1:]
    shown += error_lines(InvalidArgument(text, hint=text), where=text)
    for line in shown:
        assert line.isprintable()


@given(st.recursive(st.binary() | st.text() | st.integers() | st.none(), st.lists, max_leaves=8))
def test_a_json_answer_is_one_line_of_ascii(data: object) -> None:
    line = json_success("get", data)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == {"ok": True, "command": "get", "data": plain(data)}


def test_bytes_in_json_are_escaped_text() -> None:
    assert plain({b"k\0": [b"\\", ("ñ".encode(), 1.5, True, None)]}) == {
        "k\\x00": ["\\\\", ["ñ", 1.5, True, None]]
    }


def test_an_error_is_a_line_and_a_hint() -> None:
    error = InvalidArgument("no such env", hint="did you mean x?")
    assert error_lines(error, where="script:12") == [
        "script:12: error: no such env (ERR_INVALID_PARAMETERS)",
        "script:12: hint: did you mean x?",
    ]
    assert error_lines(UsageError("bad")) == ["error: bad"]
    assert error_lines(ConnectionRefusedError(111, "refused")) == [
        "error: [Errno 111] refused (ERR_UNKNOWN)"
    ]


def test_a_write_of_unknown_outcome_says_what_to_do() -> None:
    for error in (Timeout("no answer", maybe_applied=True), Unavailable("x", maybe_applied=True)):
        hint = json.loads(json_failure("set", error))["error"]["hint"]
        assert hint == "the write may have been applied: read the row before you write it again"
    assert "--timeout" in json.loads(json_failure("get", Timeout("x")))["error"]["hint"]


@pytest.mark.parametrize(
    ("error", "connected", "status"),
    [
        (UsageError("x"), True, 2),
        (NotConfirmed("x"), True, 1),
        (Interrupted("x"), True, 130),
        (TableExists("x"), True, 4),
        (Unavailable("x"), False, 3),
        (Timeout("x"), False, 3),
        (ConnectionRefusedError("x"), False, 3),
        (Unavailable("x"), True, 1),
        (InvalidArgument("x"), False, 1),
    ],
)
def test_every_kind_of_error_has_its_exit_status(
    error: Exception, connected: bool, status: int
) -> None:
    assert exit_status(error, connected=connected) == status
