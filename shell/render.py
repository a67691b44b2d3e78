r"""pure: what a command returns, as lines for a person or as JSON for a script.

A person gets aligned tables and quoted bytes; a script gets one JSON object a line.
Both write bytes so that they can be read back (`\xHH`), and neither lets a control
character through to the terminal, whatever a key or a message holds.
"""

import json
import unicodedata
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pegaskv.base.errors import RequestError, Timeout
from shell.errors import ShellError
from shell.parser import escape, quote

__all__ = [
    "Fields",
    "Result",
    "Stream",
    "Table",
    "clip",
    "error_fields",
    "error_lines",
    "json_failure",
    "json_success",
    "plain",
    "printable",
    "text_lines",
]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a line of column names."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Fields:
    """Names and values, one a line."""

    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stream:
    """Rows that are shown as they come, so that a table of any size fits.

    `text` makes the line of a row, given whether every byte is escaped; `data` its JSON
    value; `noun` is what one row is called.
    """

    rows: AsyncIterator[Any]
    text: Callable[[Any, bool], str]
    data: Callable[[Any], Any]
    noun: str = "row"


@dataclass(frozen=True, slots=True)
class Result:
    """What a command answers.

    `data` is the JSON form and `show` what a person sees on stdout (nothing, when None).
    `note` is for a person alone and goes to stderr; `warnings` go there for scripts too.
    With a `stream` there is no `data`.
    """

    data: Any = None
    show: Table | Fields | str | Sequence[str] | bytes | int | None = None
    note: str = ""
    warnings: Sequence[str] = ()
    stream: Stream | None = None
    leave: bool = False


def printable(text: str) -> str:
    r"""Return `text` without anything that a terminal would obey: such signs become \xHH."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else escape(_as_bytes(sign)) for sign in text)


def _as_bytes(sign: str) -> bytes:
    escaped = "\udc80" <= sign <= "\udcff"
    return sign.encode("utf-8", "surrogateescape" if escaped else "surrogatepass")


def text_lines(result: Result, *, every_byte: bool = False) -> list[str]:
    """Return the lines that `result` shows on stdout."""
    match result.show:
        case None:
            return []
        case Table():
            return _table_lines(result.show, every_byte)
        case Fields():
            return _field_lines(result.show, every_byte)
        case bytes() | int():
            return [_cell(result.show, every_byte)]
        case str():
            return [printable(line) for line in result.show.split("\n")]
        case _:
            return [printable(line) for line in result.show]


def _field_lines(fields: Fields, every_byte: bool) -> list[str]:
    cells = {
        _cell(name, every_byte): _cell(value, every_byte) for name, value in fields.values.items()
    }
    width = max(map(_width, cells), default=0)
    return [f"{_pad(name, width)}  {value}" for name, value in cells.items()]


def _table_lines(table: Table, every_byte: bool) -> list[str]:
    cells = [[_cell(value, every_byte) for value in row] for row in table.rows]
    numeric = [
        bool(table.rows) and all(type(row[n]) in (int, float) for row in table.rows)
        for n in range(len(table.columns))
    ]
    widths = [
        max([_width(name), *(_width(row[n]) for row in cells)])
        for n, name in enumerate(table.columns)
    ]
    lines = []
    for row in [list(table.columns), *cells]:
        padded = [
            _pad(cell, width, right=right)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def _cell(value: Any, every_byte: bool) -> str:
    match value:
        case bytes():
            return quote(value, every_byte=every_byte)
        case None | "":
            return "-"
        case bool():
            return "true" if value else "false"
        case Mapping():
            pairs = (
                f"{_cell(key, every_byte)}={_cell(each, every_byte)}" for key, each in value.items()
            )
            return ",".join(pairs) or "-"
        case list() | tuple():
            return ",".join(_cell(each, every_byte) for each in value) or "-"
        case _:
            return printable(str(value))


def _width(text: str) -> int:
    """Return the number of terminal columns that `text` takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        for sign in text
    )


def clip(text: str, width: int) -> str:
    """Return as much of `text` as `width` terminal columns hold."""
    if _width(text) <= width:
        return text
    kept, room = [], width
    for sign in text:
        room -= _width(sign)
        if room < 0:
            break
        kept.append(sign)
    return "".join(kept)


def _pad(text: str, width: int, *, right: bool = False) -> str:
    blanks = " " * (width - _width(text))
    return blanks + text if right else text + blanks


def plain(value: Any, *, every_byte: bool = False) -> Any:
    """Return `value` with bytes as escaped text, in types that JSON has."""
    match value:
        case bytes():
            return escape(value, every_byte=every_byte)
        case Mapping():
            return {
                key if isinstance(key, str) else str(plain(key, every_byte=every_byte)): plain(
                    each, every_byte=every_byte
                )
                for key, each in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [plain(each, every_byte=every_byte) for each in value]
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)


def json_success(command: str, data: Any, *, every_byte: bool = False) -> str:
    """Return the line of a command that did what it was asked."""
    return json.dumps({"ok": True, "command": command, "data": plain(data, every_byte=every_byte)})


def json_failure(command: str, error: BaseException) -> str:
    """Return the line of a command that failed."""
    return json.dumps({"ok": False, "command": command, "error": error_fields(error)})


def error_fields(error: BaseException) -> dict[str, Any]:
    """Return code, name, message and hint of `error`, and what else it tells a script.

    Codes below zero are the shell's own.
    """
    if isinstance(error, RequestError | ShellError):
        code, name, message, hint = error.code, error.name, error.message, error.hint
    else:
        code, name, hint = -1, "ERR_UNKNOWN", getattr(error, "hint", "")
        message = getattr(error, "message", "") or str(error) or type(error).__name__
    # The client's hints speak to a program; these speak to whoever sits at the shell.
    if getattr(error, "maybe_applied", False):
        hint = "the write may have been applied: read the row before you write it again"
    elif isinstance(error, Timeout):
        hint = "try again, or give operations more time: `timeout 20s`, or --timeout 20s"
    more = plain(error.data) if isinstance(error, ShellError) else {}
    return {"code": code, "name": name, "message": message, "hint": hint, **more}


def error_lines(error: BaseException, *, where: str = "") -> list[str]:
    """Return what a person reads about `error`: a line, what it explains, and a hint if any."""
    fields = error_fields(error)
    prefix = f"{where}: " if where else ""
    own = isinstance(error, ShellError) and error.code < 0
    name = "" if own else f" ({fields['name']})"
    lines = [printable(f"{prefix}error: {fields['message']}{name}")]
    if isinstance(error, ShellError):
        lines += [printable(line) for line in error.lines]
    if fields["hint"]:
        lines.append(printable(f"{prefix}hint: {fields['hint']}"))
    return lines
