"""Administration of a cluster's servers: who is there, how much the meta server does, moves.

Nodes are named by their ids in what is stored and sent; wherever a call takes a node, its
address `HOST:PORT` does as well, and so does the beginning of an id that only one has.
"""

# ruff: noqa: ASYNC109 - deadlines are kept by the connection, which costs nothing per call.

from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.types import Gpid
from pegaskv.client.admin_requests import (
    AdminRequests,
    ChangedTable,
    as_mapping,
    as_name,
    as_positive,
    malformed,
)
from pegaskv.client.arguments import as_bool, as_timeout_ms
from pegaskv.client.resolver import MetaResolver
from pegaskv.codec.operations import Operation

__all__ = [
    "ClusterAdmin",
    "DeadPartition",
    "LevelChange",
    "MetaLevel",
    "NodeInfo",
    "as_gpid",
]

Level = Literal["stopped", "blind", "freezed", "steady", "lively"]
Move = Literal["move_pri", "copy_pri", "copy_sec"]
Change = Literal["assign_primary", "add_secondary", "remove", "downgrade"]

LEVELS: Final = ("stopped", "blind", "freezed", "steady", "lively")
MOVES: Final = ("move_pri", "copy_pri", "copy_sec")
CHANGES: Final = ("assign_primary", "add_secondary", "remove", "downgrade")
# The beginning of a node's id that is taken for the whole has so many signs at least.
_PREFIX_MIN: Final = 4
# How a node is called that configurations name and nobody has heard of.
_NOT_SEEN: Final = "not seen"


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A replica server as the meta server knows it."""

    node_id: str
    address: str
    status: str
    detail: dict[str, Any] = field(default_factory=dict)


class MetaLevel(NamedTuple):
    """How much the meta server does, and what that means in a sentence."""

    level: str
    meaning: str = ""


class LevelChange(NamedTuple):
    """The level before a change and after it."""

    before: str
    now: str


@dataclass(frozen=True, slots=True)
class DeadPartition:
    """A partition that nobody can serve: why, since when, and what may be done, in `detail`."""

    gpid: Gpid
    detail: dict[str, Any] = field(default_factory=dict)


class ClusterAdmin(AdminRequests):
    """The part of `AdminClient` that is about servers."""

    async def nodes(self, *, timeout: float | None = None) -> list[NodeInfo]:
        """Return the replica servers that the meta server knows."""
        reply, asked = await self._ask(Operation.LIST_NODES, (), timeout)
        try:
            return [
                NodeInfo(
                    str(node_id),
                    # Without an address it is where we asked, unless nobody knows where it is.
                    str(address) or ("" if status == _NOT_SEEN else asked),
                    str(status),
                    dict(detail[0]) if detail and detail[0] is not None else {},
                )
                for node_id, address, status, *detail in reply[0]
            ]
        except (IndexError, TypeError, ValueError):
            raise malformed(Operation.LIST_NODES) from None

    async def cluster_info(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Return what the leading meta server says of the cluster."""
        reply, _ = await self._ask(Operation.CLUSTER_INFO, (), timeout)
        return as_mapping(Operation.CLUSTER_INFO, reply)

    async def server_info(
        self, address: str | None = None, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Return what one server says of itself; None = the meta server that answers."""
        if address is None:
            reply, _ = await self._ask(Operation.SERVER_INFO, (), timeout)
            return as_mapping(Operation.SERVER_INFO, reply)
        one = MetaResolver([as_name(address, "address")], self._pool)
        limit_ms = self._pool.options.timeout_ms if timeout is None else as_timeout_ms(timeout)
        reply = await one.look(Operation.SERVER_INFO, (), limit_ms, what="server_info")
        return as_mapping(Operation.SERVER_INFO, reply)

    async def get_meta_level(self, *, timeout: float | None = None) -> MetaLevel:
        """Return how much the meta server does at the moment."""
        reply, _ = await self._ask(Operation.GET_META_LEVEL, (), timeout)
        return MetaLevel(*_texts(Operation.GET_META_LEVEL, reply, at_least=1))

    async def set_meta_level(self, level: Level, *, timeout: float | None = None) -> LevelChange:
        """Say how much the meta server does from now on; it is stored.

        From little to all: "stopped" and "blind" change nothing, "freezed" takes out
        members that are gone, "steady" repairs as well and lets tables be changed, "lively"
        also moves replicas for balance and throws away what nobody needs.
        """
        fields = (_choice("level", level, LEVELS),)
        reply, _ = await self._ask(Operation.SET_META_LEVEL, fields, timeout)
        return LevelChange(*_texts(Operation.SET_META_LEVEL, reply, at_least=2))

    async def get_replica_count(self, table: str, *, timeout: float | None = None) -> int:
        """Return how many replicas each partition of a table is to have."""
        reply, _ = await self._ask(Operation.TABLE_INFO, (as_name(table, "table"),), timeout)
        return self._table(reply).replica_count

    async def set_replica_count(
        self, table: str, replica_count: int, *, timeout: float | None = None
    ) -> ChangedTable:
        """Change how many replicas each partition of a table is to have.

        It returns when that is stored. Replicas are then made, or given up, one after
        another; `table_info` shows how far that is.
        """
        fields = (as_name(table, "table"), as_positive("replica_count", replica_count))
        reply, _ = await self._ask(Operation.SET_REPLICA_COUNT, fields, timeout)
        return self._changed(reply, 1)

    async def balance(
        self,
        gpid: Gpid | str,
        kind: Move,
        from_node: str,
        to_node: str,
        *,
        timeout: float | None = None,
    ) -> str:
        """Move one replica: "move_pri" lets a secondary lead, "copy_*" makes a new replica first.

        Returns what was begun, in a sentence.
        """
        one = as_gpid(gpid)
        move = _choice("kind", kind, MOVES)
        ids = await self._node_ids((from_node, to_node), timeout)
        return await self._sentence(Operation.BALANCE, (*one, move, *ids), timeout)

    async def propose(
        self,
        gpid: Gpid | str,
        kind: Change,
        node: str,
        *,
        accept_loss: bool = False,
        timeout: float | None = None,
    ) -> str:
        """Change the configuration of one partition by hand; returns what was done.

        "assign_primary" lets `node` lead, "add_secondary" lets it learn, "remove" takes it
        out, and "downgrade" lets another one lead in its place. What may lose acknowledged
        writes is refused unless `accept_loss`.
        """
        one = as_gpid(gpid)
        change = _choice("kind", kind, CHANGES)
        accepted = as_bool("accept_loss", accept_loss)
        (node_id,) = await self._node_ids((node,), timeout)
        fields = (*one, change, node_id, accepted)
        return await self._sentence(Operation.PROPOSE_CHANGE, fields, timeout)

    async def diagnose(
        self, table: str | None = None, *, timeout: float | None = None
    ) -> list[DeadPartition]:
        """Return the partitions that nobody can serve, of one table or of all."""
        fields = (None if table is None else as_name(table, "table"),)
        reply, _ = await self._ask(Operation.DIAGNOSE, fields, timeout)
        try:
            return [
                DeadPartition(Gpid(int(table_id), int(index)), dict(detail))
                for table_id, index, detail, *_ in reply[0]
            ]
        except (IndexError, TypeError, ValueError):
            raise malformed(Operation.DIAGNOSE) from None

    async def _sentence(
        self, operation: Operation, fields: tuple[Any, ...], timeout: float | None
    ) -> str:
        reply, _ = await self._ask(operation, fields, timeout)
        return _texts(operation, reply, at_least=1)[0]

    async def _node_ids(self, names: tuple[str, ...], timeout: float | None) -> list[str]:
        """Return the ids of nodes that are named by id, its beginning, or address."""
        for name in names:
            if not as_name(name, "a node"):
                raise InvalidArgument("a node's name is empty", hint="`nodes` lists them")
        known = await self.nodes(timeout=timeout)
        return [_node_id(name, known) for name in names]


def _node_id(name: str, known: list[NodeInfo]) -> str:
    for matches in (
        [node for node in known if name == node.node_id],
        # A server that began anew on an empty disk is another node at the same address.
        [node for node in known if name == node.address and node.status == "alive"],
        [node for node in known if name == node.address],
        [node for node in known if len(name) >= _PREFIX_MIN and node.node_id.startswith(name)],
    ):
        if len(matches) == 1:
            return matches[0].node_id
        if matches:
            ids = ", ".join(node.node_id for node in matches)
            raise InvalidArgument(f"{name} may be each of {ids}", hint="say the whole id")
    addresses = ", ".join(node.address or node.node_id for node in known)
    raise InvalidArgument(
        f"there is no node {name}", hint=f"the nodes are {addresses}" if known else ""
    )


def as_gpid(value: Gpid | str) -> Gpid:
    """Return a partition that is named as `5.3`, table id and index.

    Raises:
        InvalidArgument: it is no such name.

    """
    if isinstance(value, Gpid):
        return value
    if isinstance(value, str):
        table_id, dot, index = value.partition(".")
        if dot and table_id.isdecimal() and index.isdecimal() and value.isascii():
            return Gpid(int(table_id[:12]), int(index[:12]))
    raise InvalidArgument(
        f"a partition is <table id>.<index>, as in 5.3, not {value!r:.40}",
        hint="`ls` shows the ids of tables",
    )


def _choice(what: str, value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgument(f"{what} must be one of {', '.join(choices)}, not {value!r:.40}")
    return value


def _texts(operation: Operation, reply: list[Any], *, at_least: int) -> list[str]:
    texts = reply[:2] if at_least == 2 or len(reply) > 1 else reply[:1]
    if len(texts) < at_least or not all(isinstance(text, str) for text in texts):
        raise malformed(operation)
    return texts
