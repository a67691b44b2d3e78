"""One request to the meta server that leads, and what it takes and answers.

What the administration of tables and that of duplications have in common.
"""

# ruff: noqa: ASYNC109 - deadlines are kept by the connection, which costs nothing per call.

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any, Final

from pegaskv.base.errors import InvalidArgument, Unavailable, WireError
from pegaskv.base.types import TableInfo
from pegaskv.client.arguments import as_timeout_ms
from pegaskv.client.nodes import NodePool
from pegaskv.client.resolver import MetaResolver
from pegaskv.codec.messages_meta import table_from_wire
from pegaskv.codec.operations import Operation

__all__ = [
    "AdminRequests",
    "ChangedTable",
    "as_envs",
    "as_mapping",
    "as_name",
    "as_positive",
    "as_whole",
    "malformed",
    "warnings_of",
]

_CHANGES: Final = frozenset(
    {
        Operation.CREATE_TABLE,
        Operation.DROP_TABLE,
        Operation.RECALL_TABLE,
        Operation.RENAME_TABLE,
        Operation.SET_ENVS,
        Operation.DELETE_ENVS,
        Operation.CLEAR_ENVS,
        Operation.ADD_DUPLICATION,
        Operation.MODIFY_DUPLICATION,
        Operation.ADD_CLUSTER,
        Operation.REMOVE_CLUSTER,
        Operation.OPEN_TABLE,
        Operation.SET_META_LEVEL,
        Operation.SET_REPLICA_COUNT,
        Operation.BALANCE,
        Operation.PROPOSE_CHANGE,
    }
)


@dataclass(frozen=True, slots=True)
class ChangedTable(TableInfo):
    """A table as a request left it.

    `created` is False when `create_table` found it there with the same options. `warnings`
    are sentences for whoever asked: the request was obeyed, and may not be what was meant.
    """

    created: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def table(self) -> TableInfo:
        """The table itself."""
        return self


class AdminRequests:
    """Asks the leading meta server. `timeout` in seconds, None = the client's."""

    def __init__(self, resolver: MetaResolver, pool: NodePool) -> None:
        self._resolver = resolver
        self._pool = pool

    async def _ask(
        self,
        operation: Operation,
        fields: tuple[Any, ...],
        timeout: float | None,
    ) -> tuple[list[Any], str]:
        return await self._resolver.ask(
            int(operation),
            fields,
            self._pool.options.timeout_ms if timeout is None else as_timeout_ms(timeout),
            changes=operation in _CHANGES,
            what=operation.name.lower(),
        )

    def _table(self, reply: list[Any]) -> TableInfo:
        try:
            return table_from_wire(reply[0] if reply else None)
        except WireError as error:
            raise Unavailable(f"the meta server's reply is malformed: {error}") from None

    def _changed(
        self, reply: list[Any], warnings_at: int, *, created: bool = False
    ) -> ChangedTable:
        table = self._table(reply)
        values = {field.name: getattr(table, field.name) for field in fields_of(table)}
        return ChangedTable(**values, created=created, warnings=warnings_of(reply, warnings_at))


def as_name(value: object, what: str = "name") -> str:
    """Return `value` if it is text that can travel."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} must be text, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} is text that UTF-8 cannot encode") from None
    return value


def as_whole(what: str, value: object) -> int:
    """Return `value` if it is a whole number of 64 bits."""
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise InvalidArgument(f"{what} must be a whole number, not {value!r}")
    return value


def as_positive(what: str, value: object) -> int:
    """Return `value` if it is a whole number above 0."""
    if as_whole(what, value) < 1:
        raise InvalidArgument(f"{what} must be 1 or more, not {value}")
    return as_whole(what, value)


def as_envs(envs: object) -> dict[str, str]:
    """Return `envs` as a map of text to text."""
    if not isinstance(envs, Mapping):
        raise InvalidArgument(f"envs must be a mapping of name to text, not {envs!r}")
    return {
        as_name(name, "an environment's name"): as_name(value, f"the environment {name}")
        for name, value in envs.items()
    }


def as_mapping(operation: Operation, reply: list[Any]) -> dict[str, Any]:
    """Return the map that a reply begins with."""
    if not reply or not isinstance(reply[0], dict):
        raise malformed(operation)
    return reply[0]


def malformed(operation: Operation) -> Unavailable:
    """Return the error for a reply that cannot be read."""
    return Unavailable(f"{operation.name.lower()}: the meta server's reply is malformed")


def warnings_of(reply: list[Any], at: int) -> tuple[str, ...]:
    """Return the sentences that stand at one place of a reply; an older server sends none."""
    sent = reply[at] if len(reply) > at else None
    return tuple(text for text in sent if isinstance(text, str)) if isinstance(sent, list) else ()
