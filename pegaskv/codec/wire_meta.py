"""What meta and replica servers tell each other, as plain values for a message and back.

Each `*_to_wire` returns the fields that `operations` names for its request or reply, or the
map or list that is one of them; `*_from_wire` reads what came. Everything is checked
before it is believed: how many fields, their exact types, ranges of numbers. Of maps, names
that are not known are ignored, since a newer server may say more; a field that is missing or
wrong is refused by name.

What a request brings is refused as `InvalidArgument`, which its sender is told; what a
reply brings as `WireError`, which means that nothing is known of the outcome.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any, Final, TypeAlias, TypeVar

from pegaskv.base.errors import InvalidArgument, WireError
from pegaskv.base.hashing import is_power_of_two
from pegaskv.base.limits import PARTITION_COUNT_MAX
from pegaskv.base.types import (
    DuplicationStatus,
    FailMode,
    Gpid,
    PartitionConfiguration,
    ReplicaStatus,
)
from pegaskv.codec.messages_duplication import (
    UUID_BYTES,
    DuplicationOrder,
    PartitionProgress,
    ProgressReport,
    SourceOrder,
)
from pegaskv.codec.messages_meta import (
    NodeBeacon,
    NodeReport,
    Order,
    OrderKind,
    Proposal,
    ProposalKind,
    ReplicaReport,
    TablePush,
    table_from_wire,
    table_to_wire,
)

__all__ = [
    "ReplicaStates",
    "configuration_from_wire",
    "configuration_to_wire",
    "node_beacon_from_wire",
    "node_beacon_to_wire",
    "node_leaving_from_wire",
    "node_report_from_wire",
    "node_report_to_wire",
    "order_from_wire",
    "order_to_wire",
    "partition_progress_from_wire",
    "partition_progress_to_wire",
    "progress_report_from_wire",
    "progress_report_to_wire",
    "proposal_from_wire",
    "proposal_to_wire",
    "push_from_wire",
    "push_to_wire",
    "replica_states_from_wire",
    "replica_states_to_wire",
]

# Of each replica: what is shown of it, and of its part in each duplication by uuid.
ReplicaStates: TypeAlias = Iterable[
    tuple[Gpid, Mapping[str, Any], Mapping[bytes, Mapping[str, Any]]]
]

T = TypeVar("T")
EnumT = TypeVar("EnumT", bound=Enum)


class _Signed:
    """Stands for a whole number that may be negative; `int` is one that may not."""


class _Optional:
    """Stands for text or nothing."""


# Whole numbers are stored in eight bytes, and table ids in four.
_NUMBER_MAX: Final = (1 << 63) - 1
_TABLE_ID_MAX: Final = (1 << 32) - 1

_KIND_NAMES: Final[dict[type, str]] = {
    int: "a whole number from 0 on",
    _Signed: "a whole number",
    _Optional: "text or nil",
    str: "text",
    bytes: "bytes",
    bool: "true or false",
    list: "a list",
    dict: "a map",
}

# --- Reports and beacons of replica servers ---------------------------------------------

_REPLICA_REPORT: Final = {
    "table id": int,
    "partition index": int,
    "ballot": int,
    "last decree": _Signed,
    "committed decree": _Signed,
    "why closed": str,
    "status": str,
    "amnesiac": bool,
}


def node_report_to_wire(report: NodeReport) -> tuple[Any, ...]:
    """Return the fields of NODE_REPORT."""
    replicas = [
        [
            *one.gpid,
            one.ballot,
            one.last_decree,
            one.committed_decree,
            one.closed,
            one.status.value,
            one.amnesiac,
        ]
        for one in report.replicas
    ]
    return (report.node_id, report.address, report.process, replicas)


def node_report_from_wire(fields: Any) -> NodeReport:
    """Read the fields of NODE_REPORT. Raises InvalidArgument."""
    with _request("a node report"):
        kinds = {"node id": str, "address": str, "process": str, "replicas": list}
        node_id, address, process, replicas = _row(fields, kinds)
        return NodeReport(_node(node_id), address, _each(replicas, _replica_report), process)


def _replica_report(fields: Any) -> ReplicaReport:
    table_id, index, ballot, last, committed, closed, status, amnesiac = _row(
        fields, _REPLICA_REPORT
    )
    return ReplicaReport(
        _gpid(table_id, index),
        ballot,
        last,
        committed,
        closed,
        _member(ReplicaStatus, status, "status"),
        amnesiac,
    )


def node_beacon_to_wire(beacon: NodeBeacon) -> tuple[Any, ...]:
    """Return the fields of NODE_BEACON."""
    learning = [[*gpid, copied, size] for gpid, copied, size in beacon.learning]
    return (beacon.node_id, beacon.process, beacon.free_bytes, beacon.disk_full, learning)


def node_beacon_from_wire(fields: Any) -> NodeBeacon:
    """Read the fields of NODE_BEACON. Raises InvalidArgument."""
    with _request("a node's beacon"):
        kinds = {"node id": str, "process": str, "free bytes": int, "disk full": bool}
        node_id, process, free_bytes, disk_full, learning = _row(fields, kinds | {"learning": list})
        return NodeBeacon(_node(node_id), process, free_bytes, disk_full, _each(learning, _learned))


def _learned(fields: Any) -> tuple[Gpid, int, int]:
    kinds = {"table id": int, "partition index": int, "bytes copied": int, "bytes in all": int}
    table_id, index, copied, size = _row(fields, kinds)
    return _gpid(table_id, index), copied, size


def node_leaving_from_wire(fields: Any) -> tuple[str, str]:
    """Read the fields of NODE_LEAVING: node id and process. Raises InvalidArgument."""
    with _request("a node's leave"):
        node_id, process = _row(fields, {"node id": str, "process": str})
        return _node(node_id), process


# --- Proposals, configurations, orders ----------------------------------------------------


def proposal_to_wire(proposal: Proposal) -> tuple[Any, ...]:
    """Return the fields of PROPOSE."""
    return (
        proposal.proposer,
        *proposal.gpid,
        proposal.ballot,
        int(proposal.kind),
        proposal.node_id,
        proposal.keep,
        proposal.process,
    )


def proposal_from_wire(fields: Any) -> Proposal:
    """Read the fields of PROPOSE. Raises InvalidArgument."""
    with _request("a proposal"):
        proposer, table_id, index, ballot, kind, node_id, keep, process = _row(
            fields,
            {
                "proposer": str,
                "table id": int,
                "partition index": int,
                "ballot": int,
                "kind": int,
                "node id": str,
                "keep": bool,
                "process": str,
            },
        )
        return Proposal(
            _node(proposer),
            _gpid(table_id, index),
            ballot,
            _member(ProposalKind, kind, "kind"),
            node_id,
            keep,
            process,
        )


_CONFIGURATION: Final = {"ballot": int, "primary": _Optional, "secondaries": list}


def configuration_to_wire(
    configuration: PartitionConfiguration, addresses: Mapping[str, str]
) -> tuple[Any, ...]:
    """Return the fields of a reply to PROPOSE; of the addresses, those of the members."""
    members = (configuration.primary, *configuration.secondaries)
    named = {one: addresses[one] for one in members if one is not None and one in addresses}
    return (*_configuration_row(configuration), named)


def configuration_from_wire(
    gpid: Gpid, fields: Any
) -> tuple[PartitionConfiguration, dict[str, str]]:
    """Read the fields of a reply to PROPOSE about `gpid`. Raises WireError."""
    with _reply("a configuration"):
        *configuration, addresses = _row(fields, {**_CONFIGURATION, "addresses": dict})
        return _configuration(gpid, configuration), _texts(addresses, "addresses")


def _configuration_row(configuration: PartitionConfiguration) -> list[Any]:
    return [configuration.ballot, configuration.primary, list(configuration.secondaries)]


def _configuration(gpid: Gpid, fields: list[Any]) -> PartitionConfiguration:
    ballot, primary, secondaries = fields
    if primary is not None:
        _node(primary)
    members = _each(secondaries, _node)
    if len({primary, *members}) != len(members) + 1:
        raise _Wrong("a member is named twice")
    return PartitionConfiguration(gpid, ballot, primary, members)


def order_to_wire(order: Order) -> tuple[Any, ...]:
    """Return the fields of OBEY."""
    return (int(order.kind), *order.gpid, order.ballot, order.node_id, order.address)


def order_from_wire(fields: Any) -> Order:
    """Read the fields of OBEY. Raises InvalidArgument."""
    with _request("an order"):
        kind, table_id, index, ballot, node_id, address = _row(
            fields,
            {
                "kind": int,
                "table id": int,
                "partition index": int,
                "ballot": int,
                "node id": str,
                "address": str,
            },
        )
        kind = _member(OrderKind, kind, "kind")
        return Order(kind, _gpid(table_id, index), ballot, node_id, address)


# --- A table's push -----------------------------------------------------------------------

_PUSH: Final = {
    "table": dict,
    "partitions": list,
    "first_assignment": list,
    "purged": bool,
    "duplications": list,
    "sources": list,
    "addresses": dict,
    "accept_amnesia": list,
    "process": str,
}


def push_to_wire(push: TablePush) -> dict[str, Any]:
    """Return the map that is the field of CONFIGURE."""
    partitions = [[one.gpid.partition_index, *_configuration_row(one)] for one in push.partitions]
    return {
        "table": table_to_wire(push.table),
        "partitions": partitions,
        "first_assignment": sorted(push.first_assignment),
        "purged": push.purged,
        "duplications": [_order_map(one) for one in push.duplications],
        "sources": [dataclasses.asdict(one) for one in push.sources],
        "addresses": dict(push.addresses),
        "accept_amnesia": sorted(push.accept_amnesia),
        "process": push.process,
    }


def push_from_wire(value: Any) -> TablePush:
    """Read the field of CONFIGURE. Raises InvalidArgument."""
    with _request("a push"):
        fields = _map(value, _PUSH)
        table = table_from_wire(fields["table"])
        _gpid(table.table_id, 0)
        _texts(table.envs, "envs")
        count = table.partition_count
        if not (0 < count <= PARTITION_COUNT_MAX and is_power_of_two(count)):
            raise _Wrong(f"{count} partitions")

        def index(value: Any) -> int:
            if type(value) is not int or not 0 <= value < count:
                raise _Wrong(f"partition {value!r} of {count}")
            return value

        def partition(row: Any) -> PartitionConfiguration:
            number, *configuration = _row(row, {"index": int, **_CONFIGURATION})
            return _configuration(Gpid(table.table_id, index(number)), configuration)

        return TablePush(
            table,
            _each(fields["partitions"], partition),
            frozenset(_each(fields["first_assignment"], index)),
            fields["purged"],
            _each(fields["duplications"], _duplication_order),
            _each(fields["sources"], _source_order),
            _texts(fields["addresses"], "addresses"),
            frozenset(_each(fields["accept_amnesia"], index)),
            fields["process"],
        )


_DUPLICATION_ORDER: Final = {
    "dupid": int,
    "uuid": bytes,
    "remote_cluster": str,
    "remote_cluster_id": int,
    "metas": str,
    "user": str,
    "password_file": str,
    "remote_table_id": int,
    "remote_partition_count": int,
    "checkpoint": bool,
    "paused": bool,
    "ended": bool,
    "broken": bool,
    "fail_mode": str,
    "attempt": int,
    "progress": list,
    "remote_cluster_uuid": str,
}


def _order_map(order: DuplicationOrder) -> dict[str, Any]:
    found = {name: getattr(order, name) for name in _DUPLICATION_ORDER}
    found["fail_mode"] = order.fail_mode.value
    found["progress"] = [partition_progress_to_wire(one) for one in order.progress]
    return found


def _duplication_order(value: Any) -> DuplicationOrder:
    fields = _map(value, _DUPLICATION_ORDER)
    fields["uuid"] = _uuid(fields["uuid"])
    fields["fail_mode"] = _member(FailMode, fields["fail_mode"], "fail_mode")
    fields["progress"] = _each(fields["progress"], _progress)
    return DuplicationOrder(**fields)


_SOURCE_ORDER: Final = {
    "uuid": bytes,
    "cluster_id": int,
    "cluster_uuid": str,
    "cluster_name": str,
    "table_id": int,
    "ended": bool,
}


def _source_order(value: Any) -> SourceOrder:
    fields = _map(value, _SOURCE_ORDER)
    fields["uuid"] = _uuid(fields["uuid"])
    return SourceOrder(**fields)


# --- Progress of duplications ---------------------------------------------------------------

_PROGRESS: Final = {
    "index": int,
    "status": str,
    "start_decree": int,
    "confirmed_decree": int,
    "confirmed_clock_us": int,
    "copied_key": bytes,
    "skipped": int,
    "skipped_decree": int,
}
_PROGRESS_REPORT: Final = {
    "table_id": int,
    "partition_index": int,
    "dupid": int,
    "uuid": bytes,
    "progress": dict,
    "failure": str,
    "ballot": int,
}


def partition_progress_to_wire(progress: PartitionProgress) -> dict[str, Any]:
    """Return one element of the reply to REPORT_PROGRESS."""
    found = {name: getattr(progress, name) for name in _PROGRESS}
    found["status"] = progress.status.value
    return found


def partition_progress_from_wire(value: Any) -> PartitionProgress:
    """Read one element of the reply to REPORT_PROGRESS. Raises WireError."""
    with _reply("a partition's progress"):
        return _progress(value)


def _progress(value: Any) -> PartitionProgress:
    fields = _map(value, _PROGRESS)
    fields["status"] = _member(DuplicationStatus, fields["status"], "status")
    return PartitionProgress(**fields)


def progress_report_to_wire(report: ProgressReport) -> dict[str, Any]:
    """Return one element of the request REPORT_PROGRESS."""
    return {
        "table_id": report.gpid.table_id,
        "partition_index": report.gpid.partition_index,
        "dupid": report.dupid,
        "uuid": report.uuid,
        "progress": partition_progress_to_wire(report.progress),
        "failure": report.failure,
        "ballot": report.ballot,
    }


def progress_report_from_wire(value: Any) -> ProgressReport:
    """Read one element of the request REPORT_PROGRESS. Raises InvalidArgument."""
    with _request("a progress report"):
        fields = _map(value, _PROGRESS_REPORT)
        return ProgressReport(
            _gpid(fields["table_id"], fields["partition_index"]),
            fields["dupid"],
            _uuid(fields["uuid"]),
            _progress(fields["progress"]),
            fields["failure"],
            fields["ballot"],
        )


# --- What is shown of replicas ----------------------------------------------------------------


def replica_states_to_wire(states: ReplicaStates) -> list[Any]:
    """Return the field of a reply to REPLICA_STATES."""
    return [
        [*gpid, dict(state), {uuid: dict(shown) for uuid, shown in duplications.items()}]
        for gpid, state, duplications in states
    ]


def replica_states_from_wire(
    value: Any,
) -> list[tuple[Gpid, dict[str, Any], dict[bytes, dict[str, Any]]]]:
    """Read the field of a reply to REPLICA_STATES. Raises WireError."""
    with _reply("states of replicas"):
        return list(_each(value, _replica_states))


def _replica_states(
    fields: Any,
) -> tuple[Gpid, dict[str, Any], dict[bytes, dict[str, Any]]]:
    kinds = {"table id": int, "partition index": int, "state": dict, "duplications": dict}
    table_id, index, state, duplications = _row(fields, kinds)
    for uuid, shown in duplications.items():
        _uuid(uuid)
        _state(shown)
    return _gpid(table_id, index), _state(state), duplications


def _state(value: Any) -> dict[str, Any]:
    if type(value) is not dict or any(type(name) is not str for name in value):
        raise _Wrong("a state is a map by name")
    return value


# --- Checks -------------------------------------------------------------------------------


class _Wrong(Exception):
    """What is wrong, in words."""


@contextmanager
def _request(what: str) -> Iterator[None]:
    try:
        yield
    except (_Wrong, WireError) as error:
        raise InvalidArgument(f"not {what}: {error}") from None


@contextmanager
def _reply(what: str) -> Iterator[None]:
    try:
        yield
    except _Wrong as error:
        raise WireError(f"not {what}: {error}") from None


def _row(fields: Any, kinds: Mapping[str, type]) -> list[Any]:
    """Return `fields`, which must be a list of exactly these."""
    if type(fields) is not list or len(fields) != len(kinds):
        count = f"{len(fields)} fields" if type(fields) is list else type(fields).__name__
        raise _Wrong(f"{count}, where [{', '.join(kinds)}] belongs")
    for value, (name, kind) in zip(fields, kinds.items(), strict=True):
        _check(value, kind, name)
    return fields


def _map(value: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return these of the map `value`, all of which must be there."""
    if type(value) is not dict:
        raise _Wrong(f"{type(value).__name__}, where a map belongs")
    for name, kind in kinds.items():
        if name not in value:
            raise _Wrong(f"{name} is missing")
        _check(value[name], kind, name)
    return {name: value[name] for name in kinds}


def _check(value: Any, kind: type, name: str) -> None:
    # The types are exact: a truth value is no number here.
    if kind is int:
        fits = type(value) is int and 0 <= value <= _NUMBER_MAX
    elif kind is _Signed:
        fits = type(value) is int and -_NUMBER_MAX <= value <= _NUMBER_MAX
    elif kind is _Optional:
        fits = value is None or type(value) is str
    else:
        fits = type(value) is kind
    if not fits:
        raise _Wrong(f"{name} must be {_KIND_NAMES[kind]}")


def _each(values: Any, read: Callable[[Any], T]) -> tuple[T, ...]:
    if type(values) is not list:
        raise _Wrong(f"{type(values).__name__}, where a list belongs")
    return tuple([read(value) for value in values])


def _gpid(table_id: int, index: int) -> Gpid:
    if not 0 < table_id <= _TABLE_ID_MAX or index >= PARTITION_COUNT_MAX:
        raise _Wrong(f"there is no partition {table_id}.{index}")
    return Gpid(table_id, index)


def _node(node_id: Any) -> str:
    if type(node_id) is not str or not node_id:
        raise _Wrong("a node id is text and not empty")
    return node_id


def _uuid(uuid: Any) -> bytes:
    if type(uuid) is not bytes or len(uuid) != UUID_BYTES:
        raise _Wrong(f"a duplication's uuid has {UUID_BYTES} bytes")
    return uuid


def _member(kind: type[EnumT], value: Any, name: str) -> EnumT:
    try:
        return kind(value)
    except ValueError:
        raise _Wrong(f"{name} cannot be {value!r}") from None


def _texts(value: Any, name: str) -> dict[str, str]:
    if any(type(each) is not str for pair in value.items() for each in pair):
        raise _Wrong(f"{name} must be text by text")
    return dict(value)
