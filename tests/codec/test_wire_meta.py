"""What servers tell each other survives the wire whole, and nothing else is believed."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaskv.base.errors import InvalidArgument, WireError
from pegaskv.base.types import (
    DuplicationStatus,
    FailMode,
    Gpid,
    PartitionConfiguration,
    ReplicaStatus,
    TableInfo,
    TableStatus,
)
from pegaskv.codec import wire_meta as wire
from pegaskv.codec.messages_duplication import (
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
)
from pegaskv.codec.operations import OPERATIONS, Operation
from pegaskv.codec.packing import pack, unpack

NUMBERS = st.integers(0, (1 << 63) - 1)
SIGNED = st.integers(-1, (1 << 63) - 1)
TEXTS = st.text(max_size=8)
NODES = st.text(min_size=1, max_size=8)
UUIDS = st.binary(min_size=16, max_size=16)
ADDRESSES = st.dictionaries(NODES, TEXTS, max_size=3)
GPIDS = st.builds(Gpid, st.integers(1, (1 << 32) - 1), st.integers(0, 1_023))

REPORTS = st.builds(
    NodeReport,
    NODES,
    TEXTS,
    st.lists(
        st.builds(
            ReplicaReport,
            GPIDS,
            NUMBERS,
            SIGNED,
            SIGNED,
            TEXTS,
            st.sampled_from(ReplicaStatus),
            st.booleans(),
        ),
        max_size=3,
    ).map(tuple),
    TEXTS,
)
BEACONS = st.builds(
    NodeBeacon,
    NODES,
    TEXTS,
    NUMBERS,
    st.booleans(),
    st.lists(st.tuples(GPIDS, NUMBERS, NUMBERS), max_size=3).map(tuple),
)
PROPOSALS = st.builds(
    Proposal, NODES, GPIDS, NUMBERS, st.sampled_from(ProposalKind), TEXTS, st.booleans()
)
ORDERS = st.builds(Order, st.sampled_from(OrderKind), GPIDS, NUMBERS, TEXTS, TEXTS)
PROGRESS = st.builds(
    PartitionProgress,
    NUMBERS,
    st.sampled_from(DuplicationStatus),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.binary(max_size=8),
    NUMBERS,
    NUMBERS,
)
PROGRESS_REPORTS = st.builds(ProgressReport, GPIDS, NUMBERS, UUIDS, PROGRESS, TEXTS)
MEMBERS = st.lists(st.none() | NODES, min_size=1, max_size=5, unique=True).filter(
    lambda members: None not in members[1:]
)


@st.composite
def configurations(draw: st.DrawFn, gpids: st.SearchStrategy[Gpid]) -> PartitionConfiguration:
    primary, *secondaries = draw(MEMBERS)
    return PartitionConfiguration(draw(gpids), draw(NUMBERS), primary, tuple(secondaries))


@st.composite
def pushes(draw: st.DrawFn) -> TablePush:
    table_id = draw(st.integers(1, (1 << 32) - 1))
    count = draw(st.sampled_from([1, 2, 8, 1_024]))
    table = TableInfo(
        table_id,
        draw(TEXTS),
        draw(st.sampled_from(TableStatus)),
        count,
        draw(st.integers(1, 5)),
        draw(st.dictionaries(TEXTS, TEXTS, max_size=3)),
        version=draw(NUMBERS),
        follower=draw(st.booleans()),
    )
    indices = st.integers(0, count - 1)
    own = indices.map(lambda index: Gpid(table_id, index))
    duplications = st.builds(
        DuplicationOrder,
        dupid=NUMBERS,
        uuid=UUIDS,
        remote_cluster=TEXTS,
        remote_cluster_id=NUMBERS,
        metas=TEXTS,
        user=TEXTS,
        password_file=TEXTS,
        remote_table_id=NUMBERS,
        remote_partition_count=NUMBERS,
        checkpoint=st.booleans(),
        paused=st.booleans(),
        ended=st.booleans(),
        broken=st.booleans(),
        fail_mode=st.sampled_from(FailMode),
        attempt=NUMBERS,
        progress=st.lists(PROGRESS, max_size=2).map(tuple),
        remote_cluster_uuid=TEXTS,
    )
    sources = st.builds(SourceOrder, UUIDS, NUMBERS, TEXTS, TEXTS, NUMBERS, st.booleans())
    return TablePush(
        table,
        tuple(draw(st.lists(configurations(own), max_size=3))),
        draw(st.frozensets(indices, max_size=3)),
        draw(st.booleans()),
        tuple(draw(st.lists(duplications, max_size=2))),
        tuple(draw(st.lists(sources, max_size=2))),
        draw(ADDRESSES),
        draw(st.frozensets(indices, max_size=3)),
    )


def over_the_wire(value: Any) -> Any:
    return unpack(pack(value))


# --- Whole ------------------------------------------------------------------------------------


@given(REPORTS)
def test_a_report_survives_the_wire(report: NodeReport) -> None:
    assert wire.node_report_from_wire(over_the_wire(wire.node_report_to_wire(report))) == report


@given(BEACONS)
def test_a_beacon_survives_the_wire(beacon: NodeBeacon) -> None:
    assert wire.node_beacon_from_wire(over_the_wire(wire.node_beacon_to_wire(beacon))) == beacon


@given(PROPOSALS)
def test_a_proposal_survives_the_wire(proposal: Proposal) -> None:
    fields = over_the_wire(wire.proposal_to_wire(proposal))
    assert wire.proposal_from_wire(fields) == proposal


@given(ORDERS)
def test_an_order_survives_the_wire(order: Order) -> None:
    assert wire.order_from_wire(over_the_wire(wire.order_to_wire(order))) == order


@given(PROGRESS_REPORTS)
def test_progress_survives_the_wire(report: ProgressReport) -> None:
    sent = over_the_wire(wire.progress_report_to_wire(report))
    assert wire.progress_report_from_wire(sent) == report
    progress = over_the_wire(wire.partition_progress_to_wire(report.progress))
    assert wire.partition_progress_from_wire(progress) == report.progress


@given(pushes())
def test_a_push_survives_the_wire(push: TablePush) -> None:
    assert wire.push_from_wire(over_the_wire(wire.push_to_wire(push))) == push


@given(configurations(GPIDS), ADDRESSES)
def test_a_configuration_survives_the_wire_with_its_members_addresses(
    configuration: PartitionConfiguration, others: dict[str, str]
) -> None:
    members = [one for one in (configuration.primary, *configuration.secondaries) if one]
    known = {member: f"10.0.0.{number}:1" for number, member in enumerate(members)}
    fields = over_the_wire(wire.configuration_to_wire(configuration, others | known))
    found = wire.configuration_from_wire(configuration.gpid, fields)
    assert found == (configuration, known)


def test_states_survive_the_wire() -> None:
    states = [
        (Gpid(1, 0), {"status": "primary", "ballot": 3}, {b"u" * 16: {"lag_ms": 4}}),
        (Gpid(1, 1), {}, {}),
    ]
    assert wire.replica_states_from_wire(over_the_wire(wire.replica_states_to_wire(states))) == (
        states
    )


# --- As the table of operations says ------------------------------------------------------------

REPORT = NodeReport("n1", "a:1", (ReplicaReport(Gpid(1, 0), 3, 9, 8),), "p1")
BEACON = NodeBeacon("n1", "p1", 7, True, ((Gpid(1, 0), 2, 3),))
PROPOSAL = Proposal("n1", Gpid(1, 0), 3, ProposalKind.HANDOVER, "n2", True, "p1")
ORDER = Order(OrderKind.ADD_LEARNER, Gpid(1, 0), 3, "n2", "a:2")
PUSH = TablePush(
    TableInfo(1, "t", TableStatus.AVAILABLE, 8, 3),
    (PartitionConfiguration(Gpid(1, 2), 3, "n1", ("n2", "n3")),),
    frozenset({2}),
    False,
    (DuplicationOrder(1, b"u" * 16, "far", progress=(PartitionProgress(2),)),),
    (SourceOrder(b"v" * 16, 2, "cluster", "far", 9),),
    {"n1": "a:1"},
)
PROGRESS_REPORT = ProgressReport(Gpid(1, 0), 1, b"u" * 16, PartitionProgress(0))


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        (Operation.NODE_REPORT, wire.node_report_to_wire(REPORT)),
        (Operation.NODE_BEACON, wire.node_beacon_to_wire(BEACON)),
        (Operation.PROPOSE, wire.proposal_to_wire(PROPOSAL)),
        (Operation.OBEY, wire.order_to_wire(ORDER)),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Operation) else "",
)
def test_there_are_as_many_fields_as_the_table_of_operations_names(
    operation: Operation, fields: tuple[Any, ...]
) -> None:
    described, depth, count = OPERATIONS[operation].request, 0, 1
    for character in described:
        depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(character, 0)
        count += character == "," and depth == 0
    assert len(fields) == count, described


# --- Nothing else -------------------------------------------------------------------------------

Reader = Callable[[Any], Any]
REQUESTS: dict[str, tuple[Reader, Any]] = {
    "report": (wire.node_report_from_wire, list(wire.node_report_to_wire(REPORT))),
    "beacon": (wire.node_beacon_from_wire, list(wire.node_beacon_to_wire(BEACON))),
    "leaving": (wire.node_leaving_from_wire, ["n1", "p1"]),
    "proposal": (wire.proposal_from_wire, list(wire.proposal_to_wire(PROPOSAL))),
    "order": (wire.order_from_wire, list(wire.order_to_wire(ORDER))),
    "push": (wire.push_from_wire, wire.push_to_wire(PUSH)),
    "progress report": (
        wire.progress_report_from_wire,
        wire.progress_report_to_wire(PROGRESS_REPORT),
    ),
}
REPLIES: dict[str, tuple[Reader, Any]] = {
    "configuration": (
        lambda fields: wire.configuration_from_wire(Gpid(1, 2), fields),
        list(wire.configuration_to_wire(PUSH.partitions[0], {"n1": "a:1"})),
    ),
    "progress": (
        wire.partition_progress_from_wire,
        wire.partition_progress_to_wire(PROGRESS_REPORT.progress),
    ),
    "states": (
        wire.replica_states_from_wire,
        wire.replica_states_to_wire([(Gpid(1, 0), {"a": 1}, {b"u" * 16: {"b": 2}})]),
    ),
}
ALL = [
    *((reader, sent, InvalidArgument) for reader, sent in REQUESTS.values()),
    *((reader, sent, WireError) for reader, sent in REPLIES.values()),
]
NAMES = [*REQUESTS, *REPLIES]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=4)
    | st.binary(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside."""
    found = [path]
    if isinstance(value, dict):
        for name in value:
            found += places(value[name], (*path, name))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            found += places(each, (*path, index))
    return found


def changed(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    """A copy of `value` with `junk` at `path`."""
    if not path:
        return junk
    if isinstance(value, dict):
        return {**value, path[0]: changed(value[path[0]], path[1:], junk)}
    copy = list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], junk)
    return copy


@pytest.mark.parametrize(("reader", "sent", "refusal"), ALL, ids=NAMES)
@given(data=st.data())
def test_whatever_stands_anywhere_is_read_or_refused_in_words(
    reader: Reader, sent: Any, refusal: type[Exception], data: st.DataObject
) -> None:
    sent = over_the_wire(sent)
    path = data.draw(st.sampled_from(places(sent)))
    said = "not refused"
    try:
        reader(changed(sent, path, data.draw(JUNK)))
    except refusal as error:
        said = str(error)
    assert said.startswith("not ")


@pytest.mark.parametrize(("reader", "sent", "refusal"), ALL, ids=NAMES)
def test_a_value_of_no_kind_is_refused_wherever_it_stands(
    reader: Reader, sent: Any, refusal: type[Exception]
) -> None:
    sent = over_the_wire(sent)
    # What is inside of a state is for people, and not looked at.
    paths = [path for path in places(sent) if path[-1:] not in (("a",), ("b",))]
    for path in paths:
        with pytest.raises(refusal):
            reader(changed(sent, path, 1.5))
    assert paths


@pytest.mark.parametrize(("reader", "sent", "refusal"), ALL, ids=NAMES)
def test_a_field_too_few_is_refused_and_named_or_counted(
    reader: Reader, sent: Any, refusal: type[Exception]
) -> None:
    sent = over_the_wire(sent)
    if isinstance(sent, dict):
        for name in sent:
            with pytest.raises(refusal, match=name):
                reader({key: value for key, value in sent.items() if key != name})
    elif reader is not wire.replica_states_from_wire:
        for fields in (sent[:-1], [*sent, 0], []):
            with pytest.raises(refusal, match=f"{len(fields)} fields"):
                reader(fields)
    else:
        with pytest.raises(refusal, match="3 fields"):
            reader([sent[0][:-1]])


@pytest.mark.parametrize(
    "path",
    [(), ("table",), ("duplications", 0), ("duplications", 0, "progress", 0), ("sources", 0)],
)
def test_a_field_of_a_newer_server_is_ignored(path: tuple[Any, ...]) -> None:
    sent = over_the_wire(wire.push_to_wire(PUSH))
    inner = sent
    for step in path:
        inner = inner[step]
    assert wire.push_from_wire(changed(sent, path, inner | {"colour": "red"})) == PUSH


@pytest.mark.parametrize(
    ("path", "junk"),
    [
        (("table", "table_id"), 0),
        (("table", "table_id"), 1 << 32),
        (("table", "partition_count"), 0),
        (("table", "partition_count"), 3),
        (("table", "partition_count"), 2_048),
        (("table", "envs"), {"a": 1}),
        (("partitions", 0, 0), 8),
        (("partitions", 0, 1), -1),
        (("partitions", 0, 3), ["n1"]),
        (("partitions", 0, 3), ["n2", "n2"]),
        (("partitions", 0, 3), [""]),
        (("first_assignment", 0), 8),
        (("first_assignment", 0), True),
        (("duplications", 0, "uuid"), b"short"),
        (("duplications", 0, "fail_mode"), "fast"),
        (("duplications", 0, "progress", 0, "status"), "DS_SLEEP"),
        (("duplications", 0, "progress", 0, "confirmed_decree"), 1 << 63),
        (("addresses",), {"n1": 5}),
    ],
)
def test_a_push_that_cannot_be_is_refused(path: tuple[Any, ...], junk: Any) -> None:
    sent = over_the_wire(wire.push_to_wire(PUSH))
    with pytest.raises(InvalidArgument, match="not a push"):
        wire.push_from_wire(changed(sent, path, junk))
