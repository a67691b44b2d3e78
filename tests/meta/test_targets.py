"""The machine as the target of duplications that other clusters began."""

from typing import Any

import pytest

from pegaskv.base.errors import (
    DuplicationNotListed,
    InvalidArgument,
    RequestError,
    TableNotFound,
    Unavailable,
)
from pegaskv.base.types import Gpid, TableStatus
from pegaskv.codec.messages_duplication import EnsureAnswer, RemoteWork
from pegaskv.codec.operations import Operation
from pegaskv.meta.events import CollectDue, EnsureDuplication, OpenTable, RecallTable
from pegaskv.meta.requests import read_request
from tests.meta.harness import Crash, drop
from tests.meta.sides import Side, connected

OTHER = "99999999-2222-4333-8444-555555555555"


@pytest.fixture
def beta() -> Side:
    return connected()[1]


def wanting(side: Side, **fields: Any) -> EnsureDuplication:
    values: dict[str, Any] = {
        "uuid": b"u" * 16,
        "cluster_uuid": OTHER,
        "cluster_id": 9,
        "cluster_name": "omega",
        "source_table_id": 5,
        "name": "t",
        "wanted": "create",
        "partition_count": 4,
        "replica_count": 1,
        "envs": {},
        "dupid": 100,
    }
    return EnsureDuplication(side.next_id(), **{**values, **fields})


def ensure(side: Side, **fields: Any) -> tuple[str, int, str]:
    answer = side.ask(wanting(side, **fields))
    assert answer.table is not None
    return (answer.more[0], answer.table.table_id, answer.more[1])


def listed(side: Side, table_id: int = 1) -> list[bytes]:
    """Who may send, which must be the same in every partition."""
    count = side.meta.machine.cluster.tables[table_id].partition_count
    found = [sorted(side.server.listed[Gpid(table_id, index)]) for index in range(count)]
    assert found == [found[0]] * count
    return found[0]


def test_a_table_is_made_with_the_sources_partitions_and_envs(beta: Side) -> None:
    outcome, table_id, text = ensure(beta, partition_count=8, envs={"default_ttl": "60"})
    assert (outcome, text) == ("CREATED", "table `t` was made with 8 partitions")
    table = beta.meta.table("t")
    assert (table.table_id, table.partition_count, table.envs) == (
        table_id,
        8,
        {"default_ttl": "60"},
    )
    assert table.follower
    assert table.status is TableStatus.AVAILABLE
    assert listed(beta) == [b"u" * 16]


def test_nothing_is_answered_before_every_partition_lists_it(beta: Side) -> None:
    beta.create("t")
    event = wanting(beta, wanted="merge")
    beta.meta.feed(event)
    assert event.request_id not in beta.meta.answers
    beta.meta.deliver(beta.server)
    assert beta.meta.answers[event.request_id].more[0] == "ALREADY_YOURS"
    assert listed(beta) == [b"u" * 16]


def test_a_node_that_cannot_take_it_is_no_success_and_the_next_call_is(beta: Side) -> None:
    beta.create("t")
    event = wanting(beta, wanted="merge")
    beta.meta.feed(event)
    beta.meta.deliver(beta.server, error="the disk is full")
    assert isinstance(beta.meta.refusals[event.request_id], Unavailable)
    again = wanting(beta, wanted="merge")
    beta.meta.feed(again)
    assert isinstance(beta.meta.refusals[again.request_id], Unavailable), "it waits for its pause"
    beta.restart()
    assert ensure(beta, wanted="merge")[0] == "ALREADY_YOURS"


def test_a_node_that_is_not_there_yet_is_no_success(beta: Side) -> None:
    ensure(beta)
    beta.meta = beta.start()
    with pytest.raises(Unavailable, match="not reported yet"):
        ensure(beta)
    beta.restart()
    assert ensure(beta)[0] == "ALREADY_YOURS"


def test_the_call_may_be_repeated_while_the_table_is_made(beta: Side) -> None:
    events = [wanting(beta) for _ in range(3)]
    for event in events:
        beta.meta.feed(event)
    assert not {one.request_id for one in events} & set(beta.meta.answers)
    beta.meta.deliver(beta.server)
    outcomes = [beta.meta.answers[one.request_id].more[0] for one in events]
    assert outcomes == ["CREATED", "ALREADY_YOURS", "ALREADY_YOURS"]
    assert len(beta.meta.machine.cluster.tables) == 1


def test_a_crash_anywhere_in_the_creation_leaves_a_table_that_the_next_call_finds() -> None:
    crashes = 0
    outcomes = set()
    for crash_at in range(8):
        for seed in range(4):
            beta = connected()[1]
            beta.records.crash_at = beta.records.commits + crash_at
            beta.records.crash_random.seed(seed)
            try:
                ensure(beta, partition_count=128)
            except Crash:
                crashes += 1
                beta.restart()
            outcome, table_id, _ = ensure(beta, partition_count=128)
            outcomes.add(outcome)
            assert table_id == 1
            assert list(beta.meta.machine.cluster.tables) == [1]
            assert beta.meta.table("t").follower
            assert listed(beta) == [b"u" * 16]
    assert crashes > 5
    assert outcomes == {"CREATED", "ALREADY_YOURS"}


def test_a_lost_reply_is_made_good_by_the_next_call() -> None:
    alpha, beta = connected()
    alpha.create("t")
    alpha.add("t")
    [work] = alpha.work()
    first = beta.take(work)
    beta.restart()
    second = beta.take(alpha.work()[0])
    assert isinstance(first, EnsureAnswer)
    assert isinstance(second, EnsureAnswer)
    assert (first.outcome, second.outcome) == ("CREATED", "ALREADY_YOURS")
    assert first.table_id == second.table_id
    alpha.hear(work, second)
    assert alpha.work() == []


@pytest.mark.parametrize(
    ("made_by", "text"), [("client", "made by a client"), ("other", "`omega`"), ("left", "is left")]
)
def test_a_foreign_table_is_named_and_not_touched(beta: Side, made_by: str, text: str) -> None:
    if made_by == "client":
        beta.create("t")
    else:
        ensure(beta)
    if made_by == "left":
        beta.send(Operation.FORGET_DUPLICATION, 1, b"u" * 16)
    before = dict(beta.records.entries)
    outcome, table_id, sentence = ensure(
        beta, uuid=b"v" * 16, cluster_uuid="another", cluster_id=10, cluster_name="psi"
    )
    assert (outcome, table_id) == ("EXISTS_FOREIGN", 1)
    assert text in sentence
    assert "--merge" in sentence
    assert beta.records.entries == before


def test_the_same_table_with_a_new_uuid_takes_the_place_of_the_old_one(beta: Side) -> None:
    ensure(beta)
    assert ensure(beta, uuid=b"v" * 16, attempt=1)[0] == "ALREADY_YOURS"
    assert listed(beta) == [b"v" * 16]
    assert len(beta.meta.machine.cluster.tables[1].sources) == 1
    # A late message of before changes nothing.
    for late in ({"uuid": b"u" * 16}, {"uuid": b"w" * 16, "dupid": 99, "attempt": 7}):
        with pytest.raises(DuplicationNotListed):
            ensure(beta, **late)
    assert listed(beta) == [b"v" * 16]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"cluster_uuid": "21111111-2222-4333-8444-555555555555"}, "to itself"),
        ({"cluster_id": 2}, "the id 2, which is that of this cluster"),
        ({"cluster_uuid": "second", "wanted": "merge", "uuid": b"v" * 16}, "has the id 9 too"),
        ({"source_table_id": 6, "wanted": "merge", "uuid": b"v" * 16}, "cannot go there too"),
        ({"source_table_id": 6}, "belongs to another table"),
        ({"name": "a b", "uuid": b"v" * 16, "source_table_id": 6}, "'a b'"),
        ({"name": "new", "uuid": b"v" * 16, "partition_count": 3, "source_table_id": 6}, "3 part"),
        ({"name": "new", "uuid": b"v" * 16, "replica_count": 2, "source_table_id": 6}, "2 replic"),
        ({"name": "new", "uuid": b"v" * 16, "replica_count": 0, "source_table_id": 6}, "0 replic"),
        ({"name": "new", "uuid": b"v" * 16, "envs": {"x": "y"}, "source_table_id": 6}, "env"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    beta: Side, fields: dict[str, Any], text: str
) -> None:
    ensure(beta)
    before = dict(beta.records.entries)
    with pytest.raises(InvalidArgument, match=text):
        ensure(beta, **fields)
    assert beta.records.entries == before


def test_more_replicas_than_servers_are_refused_with_what_helps_at_the_source(beta: Side) -> None:
    with pytest.raises(InvalidArgument) as caught:
        beta.ask(wanting(beta, replica_count=3))
    assert (
        caught.value.message == "3 replicas need 3 replica servers, and 1 replica server is alive"
    )
    assert "add the duplication with -r 1" in caught.value.hint


def test_the_uuid_of_a_clusters_id_is_kept_when_its_duplication_is_gone(beta: Side) -> None:
    ensure(beta)
    beta.send(Operation.FORGET_DUPLICATION, 1, b"u" * 16)
    beta.restart()
    assert beta.meta.machine.cluster.tables[1].sources == ()
    with pytest.raises(InvalidArgument, match="has the id 9 too"):
        ensure(beta, cluster_uuid="second", wanted="merge", uuid=b"v" * 16)
    assert ensure(beta, wanted="merge", uuid=b"v" * 16)[0] == "ALREADY_YOURS"


def test_existing_wants_a_table_and_takes_it_as_it_is(beta: Side) -> None:
    with pytest.raises(TableNotFound, match="`t`"):
        ensure(beta, wanted="existing")
    beta.create("t", 8)
    assert ensure(beta, wanted="existing")[0] == "ALREADY_YOURS"
    assert not beta.meta.table("t").follower


def test_a_dropped_target_is_gone_until_it_is_recalled(beta: Side) -> None:
    ensure(beta)
    beta.ask(drop(beta.next_id(), "t", force=True))
    with pytest.raises(TableNotFound, match="was dropped") as caught:
        ensure(beta)
    assert "`recall 1`" in caught.value.hint
    # A new table of that name is not the one that is meant.
    beta.create("t")
    with pytest.raises(TableNotFound):
        ensure(beta)
    beta.ask(RecallTable(beta.next_id(), 1, "back"))
    assert ensure(beta)[:2] == ("ALREADY_YOURS", 1)


def test_a_table_that_took_the_name_of_a_purged_one_is_foreign(beta: Side) -> None:
    ensure(beta)
    beta.ask(drop(beta.next_id(), "t", reserve=0, force=True))
    beta.meta.feed(CollectDue())
    beta.meta.deliver(beta.server)
    beta.create("t")
    outcome, table_id, _ = ensure(beta, uuid=b"v" * 16, wanted="merge", known_table_id=1)
    assert (outcome, table_id) == ("EXISTS_FOREIGN", 2)


def test_forgetting_is_told_to_the_partitions_and_may_be_repeated(beta: Side) -> None:
    ensure(beta)
    event = read_request(Operation.FORGET_DUPLICATION, beta.next_id(), [1, b"u" * 16])
    beta.meta.feed(event)
    beta.meta.deliver(beta.server)
    assert beta.meta.answers[event.request_id].more == (True,)
    assert listed(beta) == []
    assert beta.send(Operation.FORGET_DUPLICATION, 1, b"u" * 16).more == (False,)
    for table_id in (1, 0, 7):
        assert beta.send(Operation.FORGET_DUPLICATION, table_id, b"w" * 16).more == (False,)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("wanted", ["create", "merge", "existing"])
def test_what_was_asked_before_the_removal_and_comes_after_it_makes_nothing(
    beta: Side, wanted: str, *, known: bool
) -> None:
    if known:
        ensure(beta)
    elif wanted != "create":
        beta.create("t")
    for _ in range(2):
        beta.send(Operation.FORGET_DUPLICATION, 0, b"u" * 16)
    # Also when the table's record has lost it, and the server has begun anew.
    beta.restart()
    tables = dict(beta.meta.machine.cluster.tables)
    with pytest.raises(DuplicationNotListed, match="removed or replaced") as caught:
        ensure(beta, wanted=wanted)
    assert "`add_dup`" in caught.value.hint
    assert beta.meta.machine.cluster.tables.keys() == tables.keys()
    assert not any(one.live_sources for one in beta.meta.machine.cluster.tables.values())
    # Another one may come, and the oldest are forgotten in the end.
    if not known and wanted == "create":
        assert ensure(beta, uuid=b"v" * 16)[0] == "CREATED"
    for number in range(1_000):
        beta.send(Operation.FORGET_DUPLICATION, 0, number.to_bytes(16, "big"))
    record = beta.meta.machine.cluster.record
    assert record is not None
    assert len(record.forgotten) == 1_000
    assert b"u" * 16 not in record.forgotten


def test_who_never_knew_the_table_forgets_by_the_uuid_alone(beta: Side) -> None:
    ensure(beta)
    assert beta.send(Operation.FORGET_DUPLICATION, 7, b"u" * 16).more == (False,)
    assert beta.send(Operation.FORGET_DUPLICATION, 0, b"u" * 16).more == (True,)
    assert listed(beta) == []


def test_a_follower_is_opened_once(beta: Side) -> None:
    ensure(beta)
    answer = beta.ask(OpenTable(beta.next_id(), "t"))
    assert answer.table is not None
    assert not answer.table.follower
    assert "`omega`" in answer.more[0][0]
    assert not beta.server.tables[1].follower
    commits = beta.records.commits
    beta.ask(OpenTable(beta.next_id(), "t"))
    assert beta.records.commits == commits
    with pytest.raises(TableNotFound):
        beta.ask(OpenTable(beta.next_id(), "tt"))


GOOD: list[Any] = [b"u" * 16, OTHER, 9, "omega", 5, "t", "create", 4, 1, {}, {"mesh": True}]
STRANGE: list[Any] = [None, True, -1, 1 << 70, 1.5, "", "x" * 5_000, b"", b"x" * 17, [], {"a": 1}]
NAMES = (
    "duplication uuid",
    "source cluster uuid",
    "source cluster id",
    "source cluster name",
    "source table id",
    "table name",
    "wanted",
    "partition count",
    "replica count",
    "envs",
    "option",
)


@pytest.mark.parametrize("place", range(len(GOOD)))
def test_fields_of_strangers_are_refused_by_name(beta: Side, place: int) -> None:
    refused: list[tuple[Any, RequestError]] = []
    for strange in STRANGE:
        fields = [*GOOD]
        fields[place] = strange
        try:
            beta.send(Operation.ENSURE_DUPLICATION, *fields)
        except RequestError as error:
            refused.append((strange, error))
    assert len(refused) >= len(STRANGE) - 3
    for strange, error in refused:
        if type(strange) is not type(GOOD[place]):
            assert isinstance(error, InvalidArgument)
            assert NAMES[place] in str(error)
    beta.meta.machine.check()
    assert beta.send(Operation.ENSURE_DUPLICATION, *GOOD).more[0] != ""


def test_work_is_what_is_sent() -> None:
    alpha, beta = connected()
    alpha.create("t")
    entry = alpha.add("t", mesh=True)
    work = alpha.work()[0]
    assert isinstance(work, RemoteWork)
    event = read_request(Operation.ENSURE_DUPLICATION, 1, list(work.fields))
    assert isinstance(event, EnsureDuplication)
    assert (event.uuid, event.mesh, event.dupid) == (entry.uuid, True, entry.dupid)
    assert (event.cluster_uuid, event.cluster_id) == (alpha.meta.uuid, 1)
    assert beta.take(work)
