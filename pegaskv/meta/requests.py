"""pure: the fields of a request, checked, to the event it asks for.

Messages come from strangers: each field's type is checked here, by name, and nothing
else is. What the values mean is the machine's business.
"""

from typing import Any, Final

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.options import nearest
from pegaskv.base.types import Gpid
from pegaskv.codec.messages_duplication import UUID_BYTES
from pegaskv.codec.operations import Operation
from pegaskv.meta.events import (
    AddCluster,
    AddDuplication,
    BalanceByHand,
    ClearEnvs,
    CreateTable,
    DeleteEnvs,
    DropTable,
    EnsureDuplication,
    ForgetDuplication,
    ModifyDuplication,
    OpenTable,
    ProposeByHand,
    RecallTable,
    RemoveCluster,
    RenameTable,
    Request,
    SetEnvs,
    SetLevel,
    SetReplicaCount,
)
from pegaskv.meta.levels import read_level
from pegaskv.meta.remotes import CLUSTER_ID_MAX, RemoteClusterInfo

__all__ = [
    "no_fields",
    "one_flag",
    "one_name",
    "one_name_or_id",
    "one_name_or_none",
    "pattern_and_match",
    "read_request",
]

# Anything longer is no name; the rule itself is the machine's.
_TEXT_MAX: Final = 4_096
_NUMBER_MAX: Final = 1 << 32
_ENVS_MAX: Final = 1_000

_ENSURE_OPTIONS: Final = {"mesh": bool, "table_id": int, "dupid": int, "attempt": int}
_MOVES: Final = ("move_pri", "copy_pri", "copy_sec")
_CHANGES: Final = ("assign_primary", "add_secondary", "remove", "downgrade")
_MATCHES: Final = ("all", "exact", "anywhere", "prefix", "postfix")


def read_request(
    operation: Operation, request_id: int, fields: list[Any], *, new_uuid: bytes = b""
) -> Request:
    """Return the event that the fields of a changing request ask for.

    `new_uuid` is for whatever it makes.

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
            force = len(fields) == 4 and _flag(fields.pop(), "force")
            _count_is(fields, 3, "name, reserve seconds, if not exists, (force)")
            return DropTable(
                request_id,
                _text(fields[0], "name"),
                _number(fields[1], "reserve seconds", least=-1),
                _choice(fields[2], "if not exists", ("fail", "ok")) == "ok",
                force,
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
        case Operation.OPEN_TABLE:
            return OpenTable(request_id, one_name(fields))
        case Operation.SET_REPLICA_COUNT:
            _count_is(fields, 2, "table name, replica count")
            name, count = _text(fields[0], "table name"), _number(fields[1], "replica count")
            return SetReplicaCount(request_id, name, count)
        case Operation.SET_META_LEVEL:
            _count_is(fields, 1, "level")
            return SetLevel(request_id, read_level(_text(fields[0], "level")))
        case Operation.BALANCE | Operation.PROPOSE_CHANGE:
            return _by_hand(operation, request_id, fields)
    return _read_duplication(operation, request_id, fields, new_uuid)


def _by_hand(operation: Operation, request_id: int, fields: list[Any]) -> Request:
    balance = operation is Operation.BALANCE
    last = "from node id, to node id" if balance else "node id, accept loss"
    _count_is(fields, 5, f"table id, partition index, kind, {last}")
    gpid = Gpid(_number(fields[0], "table id"), _number(fields[1], "partition index"))
    kind = _choice(fields[2], "kind", _MOVES if balance else _CHANGES)
    if balance:
        source, target = _text(fields[3], "from node id"), _text(fields[4], "to node id")
        return BalanceByHand(request_id, gpid, kind, source, target)
    node_id, accept_loss = _text(fields[3], "node id"), _flag(fields[4], "accept loss")
    return ProposeByHand(request_id, gpid, kind, node_id, accept_loss)


def _read_duplication(
    operation: Operation, request_id: int, fields: list[Any], new_uuid: bytes
) -> Request:
    match operation:
        case Operation.ADD_DUPLICATION:
            return _add_duplication(request_id, fields, new_uuid)
        case Operation.MODIFY_DUPLICATION:
            return _modify_duplication(request_id, fields, new_uuid)
        case Operation.ADD_CLUSTER:
            _count_is(fields, 5, "name, meta servers, cluster id, user, password file")
            info = RemoteClusterInfo(
                _text(fields[0], "name"),
                _text(fields[1], "meta servers"),
                _number(fields[2], "cluster id"),
                _text(fields[3], "user"),
                _text(fields[4], "password file"),
            )
            return AddCluster(request_id, info)
        case Operation.REMOVE_CLUSTER:
            _count_is(fields, 1, "name")
            return RemoveCluster(request_id, _text(fields[0], "name"))
        case Operation.ENSURE_DUPLICATION:
            return _ensure_duplication(request_id, fields)
        case Operation.FORGET_DUPLICATION:
            _count_is(fields, 2, "table id, duplication uuid")
            table_id = _number(fields[0], "table id")
            return ForgetDuplication(request_id, table_id, _uuid(fields[1]))
    raise AssertionError(f"{operation!r} changes nothing")


def _add_duplication(request_id: int, fields: list[Any], new_uuid: bytes) -> Request:
    _count_is(
        fields,
        6,
        "table name, remote cluster, remote table or nil, copy existing rows, "
        "remote replica count, options",
    )
    options = _options(fields[5], {"mesh": bool, "merge": bool})
    return AddDuplication(
        request_id,
        _text(fields[0], "table name"),
        _text(fields[1], "remote cluster"),
        None if fields[2] is None else _text(fields[2], "remote table"),
        _flag(fields[3], "copy existing rows"),
        _number(fields[4], "remote replica count"),
        options.get("mesh", False),
        options.get("merge", False),
        new_uuid,
    )


def _modify_duplication(request_id: int, fields: list[Any], new_uuid: bytes) -> Request:
    _count_is(fields, 4, "table name, duplication id, action, argument or nil")
    action = _choice(fields[2], "action", ("pause", "start", "copy", "remove", "fail_mode"))
    argument = fields[3]
    if action == "fail_mode":
        argument = _choice(argument, "argument", ("slow", "skip"))
    elif argument is not None:
        raise InvalidArgument(f"argument: {action} takes none")
    return ModifyDuplication(
        request_id,
        _text(fields[0], "table name"),
        _number(fields[1], "duplication id"),
        action,
        argument,
        new_uuid,
    )


def _ensure_duplication(request_id: int, fields: list[Any]) -> Request:
    options = _options(fields.pop(), _ENSURE_OPTIONS) if len(fields) == 11 else {}
    _count_is(
        fields,
        10,
        "duplication uuid, source cluster uuid, source cluster id, source cluster name, "
        "source table id, table name, wanted, partition count, replica count, envs, (options)",
    )
    cluster_uuid = _text(fields[1], "source cluster uuid")
    if not cluster_uuid:
        raise InvalidArgument("source cluster uuid: it is empty")
    cluster_id = _number(fields[2], "source cluster id", least=1)
    if cluster_id > CLUSTER_ID_MAX:
        raise InvalidArgument(f"source cluster id: {cluster_id} is above {CLUSTER_ID_MAX}")
    return EnsureDuplication(
        request_id,
        _uuid(fields[0]),
        cluster_uuid,
        cluster_id,
        _text(fields[3], "source cluster name"),
        _number(fields[4], "source table id", least=1),
        _text(fields[5], "table name"),
        _choice(fields[6], "wanted", ("create", "merge", "existing")),
        _number(fields[7], "partition count"),
        _number(fields[8], "replica count"),
        _map(fields[9], "envs"),
        options.get("mesh", False),
        _number(options.get("table_id", 0), "option table_id"),
        _number(options.get("dupid", 0), "option dupid"),
        _number(options.get("attempt", 0), "option attempt"),
    )


def one_name_or_id(fields: list[Any]) -> str | int:
    """Return the table's name or id that is the only field."""
    _count_is(fields, 1, "table name or id")
    if type(fields[0]) is int:
        return _number(fields[0], "table id")
    return _text(fields[0], "table name")


def pattern_and_match(fields: list[Any]) -> tuple[str, str]:
    """Return the two fields of LIST_DUPLICATIONS."""
    _count_is(fields, 2, "pattern, match type")
    pattern = _text(fields[0], "pattern")
    match = _choice(fields[1], "match type", _MATCHES)
    if match != "all" and not pattern:
        raise InvalidArgument("pattern: it is empty", hint="match type `all` finds every table")
    return pattern, match


def one_name_or_none(fields: list[Any]) -> str | None:
    """Return the table name that is the only field, or None."""
    _count_is(fields, 1, "table name or nil")
    return None if fields[0] is None else _text(fields[0], "table name")


def one_name(fields: list[Any]) -> str:
    """Return the table name that is the only field."""
    _count_is(fields, 1, "table name")
    return _text(fields[0], "table name")


def one_flag(fields: list[Any], name: str) -> bool:
    """Return the truth value that is the only field."""
    _count_is(fields, 1, name)
    return _flag(fields[0], name)


def no_fields(fields: list[Any]) -> None:
    """Refuse fields where there are none."""
    _count_is(fields, 0, "none")


def _count_is(fields: list[Any], count: int, names: str) -> None:
    if len(fields) != count:
        raise InvalidArgument(f"{len(fields)} fields instead of {count}", hint=f"fields: {names}")


def _flag(value: Any, name: str) -> bool:
    if type(value) is not bool:
        raise InvalidArgument(f"{name}: expected true or false")
    return value


def _uuid(value: Any) -> bytes:
    if type(value) is not bytes or len(value) != UUID_BYTES:
        raise InvalidArgument(f"duplication uuid: expected {UUID_BYTES} bytes")
    return value


def _options(value: Any, known: dict[str, type]) -> dict[str, Any]:
    """Return options by name; one that is not known is refused, since it would do nothing."""
    if type(value) is not dict:
        raise InvalidArgument("options: expected a map")
    for name, one in value.items():
        if type(name) is not str or name not in known:
            guess = nearest(name[:_TEXT_MAX], list(known)) if type(name) is str else None
            raise InvalidArgument(
                f"options: there is no option {name!r:.80}",
                hint=f"did you mean `{guess}`?" if guess else f"known: {', '.join(known)}",
            )
        if type(one) is not known[name]:
            kind = "true or false" if known[name] is bool else "a whole number"
            raise InvalidArgument(f"option {name}: expected {kind}")
    return value


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
