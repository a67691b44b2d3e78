import pytest

from pegaskv.base.errors import (
    BusyCreating,
    InvalidArgument,
    NotReady,
    TableExists,
    TableNotFound,
    Unavailable,
)
from pegaskv.base.types import Gpid, TableStatus
from pegaskv.codec.messages_meta import NodeReport, ReplicaReport
from pegaskv.meta.cluster import Cluster
from pegaskv.meta.effects import Answer, PushLater
from pegaskv.meta.events import (
    ClearEnvs,
    CollectDue,
    DeleteEnvs,
    NodeReported,
    PushDue,
    PushEnded,
    RecallTable,
    RenameTable,
    SetEnvs,
    Started,
)
from pegaskv.meta.machine import MetaMachine
from pegaskv.meta.options import MetaOptions
from tests.meta.harness import UUID, Crash, Meta, ReplicaServer, create, drop


@pytest.fixture
def server() -> ReplicaServer:
    return ReplicaServer()


@pytest.fixture
def meta(server: ReplicaServer) -> Meta:
    meta = Meta()
    meta.join(server)
    return meta


def ballots(meta: Meta, table_id: int) -> list[int]:
    return [one.ballot for _, one in sorted(meta.machine.cluster.partitions[table_id].items())]


# Starting.


def test_the_first_start_gives_the_cluster_its_uuid_and_no_later_one_changes_it() -> None:
    meta = Meta()
    assert meta.machine.cluster.record is not None
    assert meta.machine.cluster.record.uuid == UUID
    commits = meta.records.commits
    again = meta.restart()
    assert again.machine.cluster.record == meta.machine.cluster.record
    assert again.records.commits == commits


def test_a_report_without_replicas_is_answered_at_once() -> None:
    meta = Meta()
    server = ReplicaServer()
    effects = meta.feed(NodeReported(7, server.report(), watched=False))
    assert effects == [Answer(7, None)]


def test_every_start_of_a_node_gives_its_partitions_new_ballots(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.request(create(1, "users"), server)
    assert ballots(meta, 1) == [1, 1, 1, 1]
    meta.join(server, 1_001)
    assert ballots(meta, 1) == [2, 2, 2, 2]
    again = meta.restart()
    assert ballots(again, 1) == [2, 2, 2, 2]
    again.join(server)
    assert ballots(again, 1) == [3, 3, 3, 3]
    assert len(server.open) == 4
    assert server.created == 4


def test_a_ballot_is_above_what_the_node_has_seen(meta: Meta, server: ReplicaServer) -> None:
    meta.request(create(1, "users"), server)
    server.replicas[Gpid(1, 2)] = 40
    meta.join(server, 1_001)
    assert ballots(meta, 1) == [2, 2, 41, 2]


def test_a_replica_that_had_data_and_is_not_reported_stays_closed(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.request(create(1, "users"), server)
    del server.replicas[Gpid(1, 2)]
    meta.join(server, 1_001)
    assert server.closed == {Gpid(1, 2)}
    assert len(server.open) == 3
    assert server.created == 4


def test_another_node_gets_no_partition_that_is_not_its_own(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.request(create(1, "users"), server)
    stranger = ReplicaServer("node-2")
    meta.join(stranger, 1_001)
    assert ballots(meta, 1) == [1, 1, 1, 1]
    assert stranger.versions == {}
    meta.request(create(2, "more", partitions=8, replicas=2), server)
    # Each table is spread by itself, whatever a node has of others.
    primaries = [one.primary for one in meta.machine.cluster.partitions[2].values()]
    assert primaries.count("node-2") == 4
    members = [set(one.members) for one in meta.machine.cluster.partitions[2].values()]
    assert members == [{"node-1", "node-2"}] * 8


def test_data_of_tables_that_are_not_recorded_is_kept_and_their_ids_are_not_given_again() -> None:
    server = ReplicaServer(replicas={Gpid(7, 0): 3, Gpid(7, 1): 3, Gpid(2, 0): 1})
    meta = Meta()
    meta.join(server)
    assert "2, 7" in meta.warnings[0]
    assert meta.request(create(1, "users"), server).table is not None
    assert meta.table("users").table_id == 8
    assert server.purged == []
    assert Gpid(7, 0) in server.replicas


# Creating.


def test_a_table_is_answered_for_when_its_partitions_are_open(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.feed(create(1, "users", envs={"default_ttl": "60"}))
    assert 1 not in meta.answers
    assert meta.table("users").status is TableStatus.CREATING
    assert [push.push.first_assignment for push in meta.pushes] == [frozenset(range(4))]
    meta.deliver(server)
    answer = meta.answers[1]
    assert answer.table is not None
    assert answer.more == (True, [])
    assert answer.table.status is TableStatus.AVAILABLE
    assert answer.table.partition_count == 4
    assert answer.table.replica_count == 1
    assert answer.table.envs == {"default_ttl": "60"}
    assert answer.table.created_at == meta.now
    assert server.open == {Gpid(1, index) for index in range(4)}
    assert server.tables[1] == answer.table


def test_counts_of_zero_ask_for_the_defaults(server: ReplicaServer) -> None:
    meta = Meta(options=MetaOptions(default_partition_count=16))
    meta.join(server)
    meta.request(create(1, "users", partitions=0), server)
    assert meta.table("users").partition_count == 16


def test_a_large_table_is_stored_in_batches(meta: Meta, server: ReplicaServer) -> None:
    commits = meta.records.commits
    meta.request(create(1, "large", partitions=1024), server)
    # 98 partitions beside the table, the rest by hundreds; ballots by 99; available.
    assert meta.records.commits - commits == 1 + 10 + 11 + 1
    assert len(server.open) == 1024
    assert ballots(meta, 1) == [1] * 1024
    meta.join(server, 1_001)
    assert ballots(meta, 1) == [2] * 1024
    assert len(server.open) == 1024


def test_many_small_tables_get_their_ballots_in_few_commits(
    meta: Meta, server: ReplicaServer
) -> None:
    for number in range(40):
        meta.request(create(number, f"t{number}", partitions=1), server)
    commits = meta.records.commits
    meta.join(server, 1_001)
    assert meta.records.commits - commits == 1
    assert len(server.open) == 40


def test_a_table_cannot_be_created_before_a_node_has_reported() -> None:
    meta = Meta()
    meta.feed(create(1, "users"))
    assert isinstance(meta.refusals[1], NotReady)
    assert meta.machine.cluster.tables == {}


def test_more_replicas_than_nodes_are_refused(meta: Meta) -> None:
    meta.feed(create(1, "users", replicas=3))
    assert isinstance(meta.refusals[1], InvalidArgument)
    assert "1 replica server is alive" in meta.refusals[1].message
    assert meta.machine.cluster.record is not None
    assert meta.machine.cluster.record.next_table_id == 1


def test_an_existing_table_is_said_with_its_id_and_how_it_differs(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.request(create(1, "users"), server)
    with pytest.raises(TableExists, match="with id 1") as caught:
        meta.request(create(2, "users"), server)
    assert caught.value.details["table_id"] == 1
    with pytest.raises(TableExists, match="its partition count is 4, not 8") as caught:
        meta.request(create(3, "users", partitions=8, same_is_fine=True), server)
    assert caught.value.details["partition_count"] == 4
    answer = meta.request(create(4, "users", same_is_fine=True), server)
    assert answer.more == (False, [])
    assert answer.table == meta.table("users")


def test_a_second_creation_waits_for_the_first_if_it_is_the_same(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.feed(create(1, "users"))
    meta.feed(create(2, "users", same_is_fine=True))
    meta.feed(create(3, "users"))
    assert isinstance(meta.refusals[3], BusyCreating)
    assert meta.answers.keys() == {1_000}
    meta.deliver(server)
    assert meta.answers[1].more[0] is True
    assert meta.answers[2].more[0] is False


def test_partitions_that_cannot_be_opened_are_said_and_tried_again(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.feed(create(1, "users"))
    meta.deliver(server, error="too many open files")
    assert isinstance(meta.refusals[1], Unavailable)
    assert "too many open files" in meta.refusals[1].message
    meta.feed(create(2, "users"))
    assert "too many open files" in meta.refusals[2].message
    meta.feed(create(3, "users", same_is_fine=True))
    assert isinstance(meta.refusals[3], Unavailable)
    delays = []
    for _ in range(9):
        [later] = meta.later
        meta.later.clear()
        delays.append(later.delay_ms)
        assert meta.pushes == []
        meta.feed(PushDue(later.node_id, later.table_id))
        assert meta.pushes[0].push.first_assignment == frozenset(range(4))
        meta.deliver(server, error="too many open files")
    assert delays == [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]
    meta.feed(PushDue("node-1", 1))
    meta.deliver(server)
    assert meta.table("users").status is TableStatus.AVAILABLE
    assert len(server.open) == 4


def test_a_table_being_created_can_be_neither_changed_nor_dropped(meta: Meta) -> None:
    meta.feed(create(1, "users"))
    for event in (
        drop(2, "users", missing_is_fine=True),
        RenameTable(3, "users", "other"),
        SetEnvs(4, "users", {"default_ttl": "1"}),
        DeleteEnvs(5, "users", ("default_ttl",)),
        ClearEnvs(6, "users", None),
    ):
        meta.feed(event)
        assert isinstance(meta.refusals[event.request_id], BusyCreating)
    meta.feed(RecallTable(7, 1, None))
    assert isinstance(meta.refusals[7], TableExists)


@pytest.mark.parametrize("partitions", [4, 256])
def test_a_half_made_table_is_finished_by_the_next_start(partitions: int) -> None:
    finished = removed = 0
    for crash_at in range(30):
        server = ReplicaServer()
        meta = Meta()
        meta.join(server)
        meta.records.crash_random.seed(crash_at)
        meta.records.crash_at = meta.records.commits + crash_at // 2
        try:
            meta.request(create(1, "users", partitions=partitions), server)
        except Crash:
            again = meta.restart()
            again.join(server)
            if again.machine.cluster.named("users") is None:
                removed += 1
                again.request(create(1, "users", partitions=partitions), server)
            else:
                finished += 1
            assert again.table("users").status is TableStatus.AVAILABLE
            assert len(server.open) == partitions
            assert server.closed == set()
    assert finished > 2
    assert removed > 0


# Changing.


def test_a_renamed_table_keeps_its_id_and_frees_its_name(meta: Meta, server: ReplicaServer) -> None:
    meta.request(create(1, "users"), server)
    answer = meta.request(RenameTable(2, "users", "people"), server)
    assert answer.table is not None
    assert (answer.table.table_id, answer.table.name) == (1, "people")
    assert server.tables[1].name == "people"
    with pytest.raises(TableNotFound):
        meta.request(RenameTable(3, "users", "x"), server)
    meta.request(create(4, "users"), server)
    with pytest.raises(TableExists, match="id 2"):
        meta.request(RenameTable(5, "people", "users"), server)
    with pytest.raises(InvalidArgument):
        meta.request(RenameTable(6, "people", "a b"), server)
    with pytest.raises(InvalidArgument, match="already"):
        meta.request(RenameTable(7, "people", "people"), server)


def test_envs_are_in_force_when_the_answer_comes(meta: Meta, server: ReplicaServer) -> None:
    meta.request(create(1, "users", envs={"default_ttl": "60"}), server)
    answer = meta.request(SetEnvs(2, "users", {"durability": "os"}), server)
    assert server.tables[1].envs == {"default_ttl": "60", "durability": "os"}
    assert "power" in answer.more[0][0]
    meta.request(DeleteEnvs(3, "users", ("default_ttl",)), server)
    assert server.tables[1].envs == {"durability": "os"}
    meta.request(ClearEnvs(4, "users", "durability"), server)
    assert server.tables[1].envs == {"durability": "os"}
    meta.request(ClearEnvs(5, "users", None), server)
    assert server.tables[1].envs == {}
    assert meta.table("users").envs == {}


def test_an_env_that_cannot_be_changes_nothing(meta: Meta, server: ReplicaServer) -> None:
    meta.request(create(1, "users"), server)
    commits = meta.records.commits
    with pytest.raises(InvalidArgument, match="durabilty"):
        meta.request(SetEnvs(2, "users", {"default_ttl": "1", "durabilty": "os"}), server)
    with pytest.raises(InvalidArgument):
        meta.request(DeleteEnvs(3, "users", ("ttl",)), server)
    assert meta.records.commits == commits
    assert meta.table("users").envs == {}


def test_what_changes_nothing_is_answered_without_a_commit(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.request(create(1, "users", envs={"durability": "os"}), server)
    commits = meta.records.commits
    answer = meta.request(SetEnvs(2, "users", {"durability": "os"}), server)
    assert len(answer.more[0]) == 1
    meta.request(DeleteEnvs(3, "users", ("default_ttl",)), server)
    meta.request(ClearEnvs(4, "users", "x"), server)
    assert meta.records.commits == commits


def test_changes_while_a_push_is_under_way_are_sent_together_behind_it(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.request(create(1, "users"), server)
    for number in range(5):
        meta.feed(SetEnvs(10 + number, "users", {"default_ttl": str(number)}))
    assert len(meta.pushes) == 1
    assert set(meta.answers) == {1_000, 1}
    assert len(meta.deliver(server)) == 2
    assert set(meta.answers) == {1_000, 1, 10, 11, 12, 13, 14}
    assert server.tables[1].envs == {"default_ttl": "4"}


def test_a_change_is_answered_when_it_is_stored_if_the_node_cannot_take_it(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.request(create(1, "users"), server)
    meta.feed(SetEnvs(2, "users", {"default_ttl": "1"}))
    meta.deliver(server, error="busy")
    assert meta.answers[2].table is not None
    assert meta.later == [PushLater("node-1", 1, 100)]
    # Those that come in the pause do not wait either, and the last state is sent.
    meta.feed(SetEnvs(3, "users", {"default_ttl": "2"}))
    assert 3 in meta.answers
    meta.feed(PushDue("node-1", 1))
    meta.deliver(server)
    assert server.tables[1].envs == {"default_ttl": "2"}


def test_the_end_of_a_push_of_before_a_restart_means_nothing(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.feed(create(1, "users"))
    [old] = meta.pushes
    meta.pushes.clear()
    server.restart()
    meta.feed(NodeReported(5, server.report(), watched=False))
    meta.feed(PushEnded(old.push_id, "node-1", 1))
    assert meta.table("users").status is TableStatus.CREATING
    assert 5 not in meta.answers
    meta.feed(PushDue("node-1", 1))
    meta.feed(PushDue("nobody", 1))
    meta.deliver(server)
    assert meta.table("users").status is TableStatus.AVAILABLE
    assert ballots(meta, 1) == [2, 2, 2, 2]
    assert {1, 5} <= meta.answers.keys()


def test_a_report_is_answered_when_each_table_was_taken_or_failed_once(
    meta: Meta, server: ReplicaServer
) -> None:
    for number in range(3):
        meta.request(create(number, f"t{number}"), server)
    server.restart()
    meta.feed(NodeReported(50, server.report(), watched=False))
    pushes = list(meta.pushes)
    meta.pushes.clear()
    assert len(pushes) == 3
    for number, push in enumerate(pushes):
        assert 50 not in meta.answers
        error = "no space" if number == 1 else ""
        meta.feed(PushEnded(push.push_id, "node-1", push.push.table.table_id, error))
    assert 50 in meta.answers


def test_a_newer_report_of_the_same_node_ends_the_wait_for_the_older(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.request(create(1, "users"), server)
    meta.feed(NodeReported(50, server.report(), watched=False))
    meta.feed(NodeReported(51, server.report(), watched=False))
    assert 50 in meta.answers
    assert 51 not in meta.answers


# Dropping and recalling.


def test_a_dropped_table_is_gone_at_its_nodes_and_its_name_is_free(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.request(create(1, "users"), server)
    answer = meta.request(drop(2, "users"), server)
    assert answer.table is not None
    assert answer.table.status is TableStatus.DROPPED
    assert answer.table.dropped_at == meta.now
    assert answer.table.expires_at == meta.now + 604_800
    assert server.open == set()
    assert len(server.replicas) == 4
    with pytest.raises(TableNotFound, match="no table") as caught:
        meta.request(drop(3, "users"), server)
    assert "`recall 1`" in caught.value.hint
    assert meta.request(drop(4, "users", missing_is_fine=True), server).table is None
    meta.request(create(5, "users"), server)
    assert meta.table("users").table_id == 2


def test_a_recalled_table_is_back_with_its_data_under_new_ballots(
    meta: Meta, server: ReplicaServer
) -> None:
    meta.request(create(1, "users"), server)
    meta.request(drop(2, "users"), server)
    again = meta.restart()
    again.join(server)
    assert server.open == set()
    assert server.tables[1].status is TableStatus.DROPPED
    answer = again.request(RecallTable(3, 1, None), server)
    assert answer.table is not None
    assert answer.table.status is TableStatus.AVAILABLE
    assert (answer.table.dropped_at, answer.table.expires_at) == (0, 0)
    assert len(server.open) == 4
    assert server.created == 4
    assert ballots(again, 1) == [2, 2, 2, 2]


def test_a_recall_needs_a_free_name(meta: Meta, server: ReplicaServer) -> None:
    meta.request(create(1, "users"), server)
    meta.request(drop(2, "users"), server)
    meta.request(create(3, "users"), server)
    with pytest.raises(TableExists, match="id 2") as caught:
        meta.request(RecallTable(4, 1, None), server)
    assert "recall 1 NEW_NAME" in caught.value.hint
    with pytest.raises(InvalidArgument):
        meta.request(RecallTable(5, 1, ".."), server)
    answer = meta.request(RecallTable(6, 1, "old_users"), server)
    assert answer.table is not None
    assert (answer.table.table_id, answer.table.name) == (1, "old_users")
    with pytest.raises(TableExists, match="only a dropped table"):
        meta.request(RecallTable(7, 1, None), server)


def test_a_table_can_be_recalled_before_its_node_is_back(server: ReplicaServer) -> None:
    meta = Meta()
    meta.join(server)
    meta.request(create(1, "users"), server)
    meta.request(drop(2, "users"), server)
    again = meta.restart()
    again.feed(RecallTable(3, 1, None))
    assert again.answers[3].table is not None
    again.join(server)
    assert len(server.open) == 4


def test_an_expired_table_is_purged_rows_first(meta: Meta, server: ReplicaServer) -> None:
    meta.request(create(1, "users", partitions=128), server)
    meta.request(drop(2, "users", reserve=100), server)
    meta.now += 99
    meta.feed(CollectDue())
    assert meta.pushes == []
    meta.now += 1
    with pytest.raises(TableNotFound, match="cannot be recalled"):
        meta.request(RecallTable(3, 1, None), server)
    meta.feed(CollectDue())
    assert meta.machine.cluster.tables[1].purging
    # The clock is set back: there is no way back nevertheless.
    meta.now -= 1_000
    with pytest.raises(TableNotFound, match="cannot be recalled"):
        meta.request(RecallTable(4, 1, None), server)
    meta.feed(CollectDue())
    assert server.purged == [1]
    assert meta.machine.cluster.tables == {}
    assert meta.machine.cluster.partition_count == 0
    assert set(meta.records.entries) == {"cluster"}
    assert server.replicas == {}
    meta.request(create(5, "users"), server)
    assert meta.table("users").table_id == 2


def test_records_stay_while_the_rows_cannot_be_removed(meta: Meta, server: ReplicaServer) -> None:
    meta.request(create(1, "users"), server)
    meta.request(drop(2, "users", reserve=0), server)
    meta.feed(CollectDue())
    meta.deliver(server, error="input/output error")
    assert 1 in meta.machine.cluster.tables
    again = meta.restart()
    again.feed(CollectDue())
    assert 1 in again.machine.cluster.tables
    again.join(server)
    assert again.machine.cluster.tables == {}
    assert server.replicas == {}


def test_a_purge_is_finished_by_the_next_start(server: ReplicaServer) -> None:
    crashes = 0
    for crash_at in range(12):
        server = ReplicaServer()
        meta = Meta()
        meta.join(server)
        meta.request(create(1, "users", partitions=256), server)
        meta.request(drop(2, "users", reserve=0), server)
        meta.records.crash_random.seed(crash_at)
        meta.records.crash_at = meta.records.commits + crash_at // 2
        try:
            meta.feed(CollectDue())
            meta.deliver(server)
        except Crash:
            crashes += 1
        meta = meta.restart()
        meta.join(server)
        meta.feed(CollectDue())
        meta.deliver(server)
        assert set(meta.records.entries) == {"cluster"}
        assert server.replicas == {}
    assert crashes > 5


# Restored state that makes no sense.


def test_a_partition_without_a_record_is_not_made_anew(meta: Meta, server: ReplicaServer) -> None:
    meta.request(create(1, "users"), server)
    del meta.records.entries["partitions/1/2"]
    entries = meta.records.entries

    machine = MetaMachine(Cluster.load(entries), MetaOptions())
    effects = machine.step(Started(UUID), unix_seconds=1, now_ms=1)
    assert len(effects) == 1
    [commit] = machine.step(NodeReported(1, server.report()), unix_seconds=1, now_ms=1)
    assert set(commit.puts) == {
        "tables/1", "partitions/1/0", "partitions/1/1", "partitions/1/3",
    }  # fmt: skip


def test_reports_of_strange_partitions_stop_nothing(meta: Meta, server: ReplicaServer) -> None:
    meta.request(create(1, "users"), server)
    strange = (
        ReplicaReport(Gpid(1, 99), 7, 0, 0),
        ReplicaReport(Gpid(0, 0), 0, 0, 0, "closed"),
        ReplicaReport(Gpid((1 << 32) - 1, 5), 1 << 31, 0, 0),
    )
    meta.feed(NodeReported(9, NodeReport("node-1", "", strange), watched=False))
    meta.deliver(server)
    assert 9 in meta.answers
    meta.request(create(2, "more"), server)
    assert meta.table("more").table_id == 1 << 32
