"""pure: the fields of a request, checked, to the event it asks for.

Messages come from strangers: each field's type is checked here, by name, and nothing
else is. What the values mean is the machine's business.
"""

from typing import Any, Final

from pegaskv.base.errors import InvalidArgument
from pegaskv.codec.operations import Operation
from pegaskv.meta.events import (
    ClearEnvs,
    CreateTable,
    DeleteEnvs,
    DropTable,
    RecallTable,
    RenameTable,
    Request,
    SetEnvs,
)

__all__ = ["no_fields", "one_flag", "one_name", "read_request"]

# Anything longer is no name; the rule itself is the machine's.
_TEXT_MAX: Final = 4_096
_NUMBER_MAX: Final = 1 << 32
_ENVS_MAX: Final = 1_000


def read_request(operation: Operation, request_id: int, fields: list[Any]) -> Request:
    """Return the event that the fields of a changing request ask for.

    Raises:
        InvalidArgument: a field is missing or has a wrong type; it is named.

    """
    match operation:
        case Operation.CREATE_TABLE:
            _count_is(fields, 5, "name, partition count, replica count, envs, if exists")
            return CreateTable(
                request_id,
                _text(fields[0], "name"),
                _number(fields[1], "partition count"),
                _number(fields[2], "replica count"),
                _map(fields[3], "envs"),
                _choice(fields[4], "if exists", ("fail", "same")) == "same",
            )
        case Operation.DROP_TABLE:
            _count_is(fields, 3, "name, reserve seconds, if not exists")
            return DropTable(
                request_id,
                _text(fields[0], "name"),
                _number(fields[1], "reserve seconds", least=-1),
                _choice(fields[2], "if not exists", ("fail", "ok")) == "ok",
            )
        case Operation.RECALL_TABLE:
            _count_is(fields, 2, "table id, new name")
            new_name = None if fields[1] is None else _text(fields[1], "new name")
            return RecallTable(request_id, _number(fields[0], "table id"), new_name)
        case Operation.RENAME_TABLE:
            _count_is(fields, 2, "old name, new name")
            return RenameTable(
                request_id, _text(fields[0], "old name"), _text(fields[1], "new name")
            )
        case Operation.SET_ENVS:
            _count_is(fields, 2, "table name, envs")
            values = _map(fields[1], "envs")
            if not values:
                raise InvalidArgument("envs: none is given")
            return SetEnvs(request_id, _text(fields[0], "table name"), values)
        case Operation.DELETE_ENVS:
            _count_is(fields, 2, "table name, envs")
            return DeleteEnvs(request_id, _text(fields[0], "table name"), _list(fields[1], "envs"))
        case Operation.CLEAR_ENVS:
            _count_is(fields, 2, "table name, prefix")
            prefix = None if fields[1] is None else _text(fields[1], "prefix")
            return ClearEnvs(request_id, _text(fields[0], "table name"), prefix)
    raise AssertionError(f"{operation!r} changes nothing")


def one_name(fields: list[Any]) -> str:
    """Return the table name that is the only field."""
    _count_is(fields, 1, "table name")
    return _text(fields[0], "table name")


def one_flag(fields: list[Any], name: str) -> bool:
    """Return the truth value that is the only field."""
    _count_is(fields, 1, name)
    if type(fields[0]) is not bool:
        raise InvalidArgument(f"{name}: expected true or false")
    return fields[0]


def no_fields(fields: list[Any]) -> None:
    """Refuse fields where there are none."""
    _count_is(fields, 0, "none")


def _count_is(fields: list[Any], count: int, names: str) -> None:
    if len(fields) != count:
        raise InvalidArgument(f"{len(fields)} fields instead of {count}", hint=f"fields: {names}")


def _text(value: Any, name: str) -> str:
    if type(value) is not str:
        raise InvalidArgument(f"{name}: expected text")
    if len(value) > _TEXT_MAX:
        raise InvalidArgument(f"{name}: longer than {_TEXT_MAX} characters")
    return value


def _number(value: Any, name: str, *, least: int = 0) -> int:
    # The type is exact: a bool is no number here.
    if type(value) is not int:
        raise InvalidArgument(f"{name}: expected a whole number")
    if not least <= value <= _NUMBER_MAX:
        raise InvalidArgument(f"{name}: {value} is not between {least} and {_NUMBER_MAX}")
    return value


def _choice(value: Any, name: str, known: tuple[str, ...]) -> str:
    if type(value) is not str or value not in known:
        raise InvalidArgument(f"{name}: expected {' or '.join(known)}")
    return value


def _map(value: Any, name: str) -> dict[str, str]:
    if type(value) is not dict:
        raise InvalidArgument(f"{name}: expected a map of text to text")
    if len(value) > _ENVS_MAX:
        raise InvalidArgument(f"{name}: more than {_ENVS_MAX}")
    return {
        _text(key, f"{name}, a name"): _text(one, f"{name}, a value") for key, one in value.items()
    }


def _list(value: Any, name: str) -> tuple[str, ...]:
    if type(value) is not list or not value:
        raise InvalidArgument(f"{name}: expected a list of names")
    if len(value) > _ENVS_MAX:
        raise InvalidArgument(f"{name}: more than {_ENVS_MAX}")
    return tuple(_text(one, f"{name}, a name") for one in value)
