"""Who is made a member and a primary: first assignments, proposals, and starts of nodes."""

from dataclasses import replace
from typing import Any

import pytest

from pegaskv.base.errors import InvalidArgument, NotReady, TableNotFound
from pegaskv.base.types import Gpid, PartitionConfiguration, ReplicaStatus, TableStatus
from pegaskv.codec.messages_meta import Proposal, ProposalKind
from pegaskv.meta.events import (
    CollectDue,
    NodeReported,
    Proposed,
    PushEnded,
    SetEnvs,
    TimePassed,
)
from tests.meta.calm import Calm
from tests.meta.cluster_world import Replica
from tests.meta.harness import create, drop

CLAIM, REMOVE = ProposalKind.CLAIM, ProposalKind.REMOVE
UPGRADE, HANDOVER = ProposalKind.UPGRADE, ProposalKind.HANDOVER


def asked(
    cluster: Calm, node_id: str, kind: ProposalKind, other: str = "", **more: Any
) -> Proposal:
    """A proposal about the first partition, under the ballot that is stored."""
    process = cluster.servers[node_id].process
    gpid, ballot = Gpid(1, 0), cluster.record().ballot
    proposal = Proposal(node_id, gpid, ballot, kind, other, process=process)
    return replace(proposal, **more)


@pytest.fixture
def cluster() -> Calm:
    """Three nodes, and a table of which n1 leads the only partition."""
    cluster = Calm()
    cluster.create()
    assert cluster.record().members == ("n1", "n2", "n3")
    return cluster


# First assignments.


def test_primaries_and_replicas_of_new_tables_are_spread_evenly() -> None:
    cluster = Calm(5)
    for number, replicas in enumerate((3, 2, 1, 5)):
        table_id = cluster.create(f"t{number}", partitions=8, replicas=replicas)
        records = [cluster.record(table_id, index) for index in range(8)]
        assert all(len(set(one.members)) == replicas and one.ballot == 1 for one in records)
        leads = [sum(one.primary == node for one in records) for node in cluster.servers]
        has = [sum(node in one.members for one in records) for node in cluster.servers]
        assert max(leads) - min(leads) <= 1
        assert max(has) - min(has) <= 1
    primaries, members = cluster.machine.nodes.counts()
    assert max(members.values()) - min(members.values()) <= 1
    assert max(primaries.values()) - min(primaries.values()) <= 1


def test_all_members_are_told_together_that_they_may_begin_empty_and_where_the_others_are() -> None:
    cluster = Calm()
    cluster.create()
    firsts = [one for one in cluster.pushed if one.push.first_assignment]
    assert sorted(one.node_id for one in firsts) == ["n1", "n2", "n3"]
    for one in firsts:
        assert one.push.addresses == {node: f"{node}:34801" for node in cluster.servers}


def test_more_replicas_than_nodes_that_take_them_are_refused() -> None:
    cluster = Calm(3)
    cluster.machine.nodes["n3"].leaving = True
    with pytest.raises(InvalidArgument, match="3 replicas need 3 replica servers, and 2 replica"):
        cluster.ask(create(cluster.next_id(), "t", replicas=3))


def test_a_node_that_dies_while_a_table_is_made_does_not_hold_it_up() -> None:
    cluster = Calm(4)
    cluster.meta.feed(create(900, "t", partitions=4, replicas=3))
    cluster.servers["n4"].stop()
    cluster.deliver()
    assert cluster.machine.cluster.tables[1].status is TableStatus.CREATING
    cluster.settle(15)
    assert cluster.machine.cluster.tables[1].status is TableStatus.AVAILABLE
    for index in range(4):
        assert cluster.record(1, index).primary != "n4"


def test_a_partition_whose_every_member_is_gone_before_a_client_came_is_placed_anew() -> None:
    cluster = Calm(2)
    cluster.meta.feed(create(900, "t", partitions=2, replicas=1))
    cluster.servers["n1"].stop()
    cluster.settle(12)
    assert cluster.machine.cluster.tables[1].status is TableStatus.AVAILABLE
    assert [cluster.record(1, index).primary for index in (0, 1)] == ["n2", "n2"]
    # What n1 had made of it belongs to nobody.
    cluster.servers["n1"].start()
    cluster.settle(20)
    assert cluster.servers["n1"].replicas.keys() == {
        Gpid(1, index) for index in (0, 1) if "n1" in cluster.record(1, index).members
    }


# Proposals.


def test_a_secondary_that_claims_leads_without_the_old_primary(cluster: Calm) -> None:
    [(stored, addresses)] = cluster.propose(asked(cluster, "n2", CLAIM))
    assert stored == PartitionConfiguration(Gpid(1, 0), 2, "n2", ("n3",))
    assert addresses == {"n2": "n2:34801", "n3": "n3:34801"}
    assert cluster.record().dropped == ("n1",)
    cluster.deliver()
    assert cluster.servers["n1"].replicas[Gpid(1, 0)].status is ReplicaStatus.INACTIVE


def test_of_two_claims_the_first_wins_and_both_hear_what_is_stored(cluster: Calm) -> None:
    claims = [asked(cluster, node, CLAIM) for node in ("n3", "n2")]
    answers = cluster.propose(*claims)
    assert [stored.primary for stored, _ in answers] == ["n3", "n3"]
    assert cluster.record().ballot == 2
    # Asking again, as after a lost answer, changes nothing.
    assert cluster.propose(*claims) == answers


def test_a_primary_removes_takes_in_and_hands_over(cluster: Calm) -> None:
    cluster.propose(asked(cluster, "n1", REMOVE, "n3"))
    assert cluster.record().members == ("n1", "n2")
    cluster.propose(asked(cluster, "n1", UPGRADE, "n3"))
    assert cluster.record().members == ("n1", "n2", "n3")
    assert cluster.record().dropped == ()
    cluster.propose(asked(cluster, "n1", HANDOVER, "n2", keep=True))
    assert cluster.record().members == ("n2", "n3", "n1")
    cluster.propose(asked(cluster, "n2", HANDOVER, "n1"))
    assert cluster.record().members == ("n1", "n3")
    assert cluster.record().ballot == 5


def test_what_a_replica_may_not_ask_for_changes_nothing(cluster: Calm) -> None:
    before = cluster.record()
    ballot = before.ballot
    for proposal in (
        asked(cluster, "n1", CLAIM),
        asked(cluster, "n2", REMOVE, "n3"),
        asked(cluster, "n1", REMOVE, "n1"),
        asked(cluster, "n1", REMOVE, "n9"),
        asked(cluster, "n1", UPGRADE, "n2"),
        asked(cluster, "n1", UPGRADE, ""),
        asked(cluster, "n2", HANDOVER, "n3"),
        asked(cluster, "n1", HANDOVER, "n9"),
        asked(cluster, "n2", CLAIM, ballot=ballot - 1),
        asked(cluster, "n2", CLAIM, ballot=ballot + 1),
        # Of a process that has ended since.
        asked(cluster, "n2", CLAIM, process="n2/0"),
    ):
        commits = cluster.records.commits
        [(stored, _)] = cluster.propose(proposal)
        assert stored == before.configuration()
        assert cluster.records.commits == commits
    assert cluster.record() == before


def test_who_asks_before_it_has_reported_to_a_new_meta_server_is_told_to_ask_again(
    cluster: Calm,
) -> None:
    claim = asked(cluster, "n2", CLAIM)
    cluster.restart_meta()
    early, late = cluster.next_id(), cluster.next_id()
    cluster.meta.feed(Proposed(((early, claim),)))
    assert isinstance(cluster.meta.refusals[early], NotReady)
    assert cluster.record().ballot == claim.ballot
    cluster.join(cluster.servers["n2"])
    cluster.meta.feed(Proposed(((late, claim),)))
    assert cluster.record().primary == "n2"


def test_a_partition_has_at_most_five_members() -> None:
    cluster = Calm(6)
    cluster.create(replicas=5)
    record = cluster.record()
    [other] = set(cluster.servers) - set(record.members)
    assert record.primary is not None
    cluster.propose(asked(cluster, record.primary, UPGRADE, other))
    assert cluster.record() == record


def test_a_node_that_may_lack_what_it_acknowledged_cannot_claim(cluster: Calm) -> None:
    cluster.servers["n2"].start(amnesiac=True)
    cluster.join(cluster.servers["n2"])
    [(stored, _)] = cluster.propose(asked(cluster, "n2", CLAIM))
    assert stored.primary == "n1"


def test_nothing_is_handed_over_to_a_node_that_may_lack_what_it_acknowledged(
    cluster: Calm,
) -> None:
    """Its primary may not have noticed yet that it was away; alone it would lead with what it has.

    Once it has learned everything anew it is like any other.
    """
    cluster.propose(asked(cluster, "n1", REMOVE, "n3"))
    cluster.servers["n2"].start(amnesiac=True)
    cluster.join(cluster.servers["n2"])
    for keep in (False, True):
        [(stored, _)] = cluster.propose(asked(cluster, "n1", HANDOVER, "n2", keep=keep))
        assert (stored.primary, stored.secondaries) == ("n1", ("n2",))
    cluster.propose(asked(cluster, "n1", REMOVE, "n2"))
    cluster.propose(asked(cluster, "n1", UPGRADE, "n2"))
    [(stored, _)] = cluster.propose(asked(cluster, "n1", HANDOVER, "n2"))
    assert (stored.primary, stored.secondaries) == ("n2", ())


def test_a_partition_that_was_dropped_for_good_is_refused(cluster: Calm) -> None:
    cluster.ask(drop(cluster.next_id(), "t", reserve=0))
    proposal = asked(cluster, "n2", CLAIM)
    [(stored, _)] = cluster.propose(proposal)
    assert stored.primary == "n1"
    cluster.meta.feed(CollectDue())
    cluster.deliver()
    request_id = cluster.next_id()
    cluster.meta.feed(Proposed(((request_id, proposal),)))
    assert isinstance(cluster.meta.refusals[request_id], TableNotFound)


def test_all_partitions_of_a_dead_server_fail_over_in_few_commits() -> None:
    cluster = Calm(3)
    for number in range(4):
        cluster.create(f"t{number}", partitions=64)
    claims = []
    for table_id in range(1, 5):
        for index in range(64):
            record = cluster.record(table_id, index)
            heir = record.secondaries[0]
            process = cluster.servers[heir].process
            claims.append(Proposal(heir, record.gpid, record.ballot, CLAIM, process=process))
    commits, pushed = cluster.records.commits, len(cluster.pushed)
    answers = cluster.propose(*claims)
    assert [stored.primary for stored, _ in answers] == [one.proposer for one in claims]
    assert cluster.records.commits - commits == 3
    cluster.deliver()
    # Each server hears of each table once or twice, not of every step.
    assert len(cluster.pushed) - pushed <= 24


def test_a_node_is_told_of_its_own_partitions_alone() -> None:
    cluster = Calm(4)
    cluster.create(partitions=8, replicas=2)
    for one in cluster.pushed:
        for partition in one.push.partitions:
            assert one.node_id in (partition.primary, *partition.secondaries)


# Starts of nodes, and of the meta server.


def test_a_primary_whose_process_is_new_gets_a_new_ballot_with_the_same_members(
    cluster: Calm,
) -> None:
    cluster.servers["n1"].start()
    cluster.join(cluster.servers["n1"])
    assert cluster.record().configuration() == PartitionConfiguration(
        Gpid(1, 0), 2, "n1", ("n2", "n3")
    )


def test_a_secondary_that_starts_again_is_told_its_configuration_and_no_ballot_rises(
    cluster: Calm,
) -> None:
    cluster.servers["n2"].start()
    cluster.pushed.clear()
    cluster.join(cluster.servers["n2"])
    cluster.deliver()
    [push] = cluster.pushed
    assert (push.node_id, push.push.partitions) == ("n2", (cluster.record().configuration(),))
    assert cluster.record().ballot == 1


def test_a_new_meta_server_changes_nobody_who_leads(cluster: Calm) -> None:
    cluster.restart_meta()
    commits = cluster.records.commits
    cluster.pass_time(1_000)
    assert {node.node_id for node in cluster.machine.nodes.alive} == {"n1", "n2", "n3"}
    assert cluster.record().ballot == 1
    assert cluster.records.commits == commits


def test_a_primary_that_has_not_heard_of_its_ballot_yet_needs_no_other(cluster: Calm) -> None:
    """It claimed, the answer was lost, and it reports what it knew before."""
    cluster.propose(asked(cluster, "n2", CLAIM))
    cluster.meta.pushes.clear()
    cluster.join(cluster.servers["n2"])
    assert cluster.record().ballot == 2
    # A new meta server does not know whether that is the same process: it makes sure.
    cluster.restart_meta()
    cluster.join(cluster.servers["n2"])
    assert cluster.record().ballot == 3
    assert cluster.record().primary == "n2"


def test_a_primary_that_lost_its_replica_gets_no_ballot_and_no_empty_replica(
    cluster: Calm,
) -> None:
    cluster.servers["n1"].start(wiped=True)
    cluster.join(cluster.servers["n1"])
    cluster.deliver()
    assert cluster.record().ballot == 1
    assert cluster.servers["n1"].replicas == {}
    assert "has no such replica" in cluster.machine.nodes.why_not_led(cluster.record())
    # Another member leads, and the node gets a copy.
    cluster.settle(10)
    assert cluster.record().primary in ("n2", "n3")
    assert set(cluster.record().members) == {"n1", "n2", "n3"}


def test_a_closed_primary_is_shown_with_its_reason_until_another_leads(cluster: Calm) -> None:
    report = cluster.servers["n1"].report()
    closed = (replace(report.replicas[0], closed="its disk", status=ReplicaStatus.ERROR),)
    cluster.servers["n1"].life += 1
    report = replace(report, replicas=closed, process=cluster.servers["n1"].process)
    cluster.meta.feed(NodeReported(cluster.next_id(), report))
    assert "its disk" in cluster.machine.nodes.why_not_led(cluster.record())
    cluster.propose(asked(cluster, "n3", CLAIM))
    assert cluster.machine.nodes.why_not_led(cluster.record()) == ""


def test_if_all_members_may_lack_something_the_one_with_most_leads_when_all_are_there(
    cluster: Calm,
) -> None:
    gpid = Gpid(1, 0)
    for number, server in enumerate(cluster.servers.values()):
        server.start(amnesiac=True)
        server.replicas[gpid].decree = (5, 9, 7)[number]
    for node_id in ("n1", "n2"):
        cluster.join(cluster.servers[node_id])
        cluster.deliver()
        assert cluster.record().ballot == 1, "the one that is missing is waited for"
    cluster.join(cluster.servers["n3"])
    assert cluster.record().configuration() == PartitionConfiguration(gpid, 2, "n2", ())
    said = "partition 1.0 is led by node n2 with what it has"
    assert any(said in one for one in cluster.meta.warnings)
    cluster.deliver()
    accepted = [one for one in cluster.pushed if one.push.accept_amnesia]
    assert {one.node_id for one in accepted} >= {"n2"}
    assert all(one.push.accept_amnesia == {0} for one in accepted)
    assert cluster.servers["n2"].replicas[gpid].status is ReplicaStatus.PRIMARY


def test_a_single_member_in_doubt_begins_with_what_it_has() -> None:
    cluster = Calm(1)
    cluster.create(replicas=1)
    cluster.servers["n1"].start(amnesiac=True)
    cluster.join_all()
    assert cluster.servers["n1"].replicas[Gpid(1, 0)].status is ReplicaStatus.PRIMARY
    assert cluster.record().ballot == 2


def test_one_that_is_whole_and_away_is_waited_for_although_the_others_are_there(
    cluster: Calm,
) -> None:
    cluster.servers["n1"].stop()
    for node_id in ("n2", "n3"):
        cluster.servers[node_id].start(amnesiac=True)
        cluster.join(cluster.servers[node_id])
    cluster.settle(30)
    assert cluster.record().ballot == 1
    cluster.servers["n1"].start()
    cluster.settle(30)
    assert cluster.record().primary == "n1"
    assert len(cluster.record().members) == 3


# Nodes that die.


def test_a_node_without_beacons_is_unalive_and_one_that_comes_back_reports_again(
    cluster: Calm,
) -> None:
    nodes = cluster.machine.nodes
    cluster.servers["n3"].reachable = False
    cluster.pass_time(9_000)
    assert nodes["n3"].status == "alive"
    cluster.pass_time(2_000)
    assert nodes["n3"].status == "unalive"
    cluster.servers["n3"].reachable = True
    cluster.pass_time(1_000)
    assert nodes["n3"].status == "alive"
    assert cluster.record().ballot == 1


def test_silence_while_the_meta_server_itself_stood_still_counts_for_nobody(
    cluster: Calm,
) -> None:
    cluster.meta.now_ms += 60_000
    cluster.meta.feed(TimePassed(()))
    assert [one.status for one in cluster.machine.nodes.values()] == ["alive"] * 3


def test_an_unalive_member_holds_no_change_up_and_is_told_when_it_comes(cluster: Calm) -> None:
    cluster.servers["n3"].stop()
    cluster.pass_time(12_000)
    cluster.pushed.clear()
    cluster.ask(SetEnvs(cluster.next_id(), "t", {"default_ttl": "9"}))
    cluster.create("u", replicas=2)
    assert {one.node_id for one in cluster.pushed} == {"n1", "n2"}
    cluster.servers["n3"].start()
    cluster.pushed.clear()
    cluster.pass_time(1_000)
    told = [one for one in cluster.pushed if one.node_id == "n3"]
    assert [one.push.table.envs for one in told if one.push.table.name == "t"] == [
        {"default_ttl": "9"}
    ]


def test_a_table_is_purged_without_a_node_that_is_away_which_throws_its_part_away_later() -> None:
    cluster = Calm()
    cluster.create(partitions=4)
    cluster.servers["n3"].stop()
    cluster.pass_time(12_000)
    cluster.ask(drop(cluster.next_id(), "t", reserve=0))
    cluster.meta.feed(CollectDue())
    cluster.deliver()
    assert cluster.machine.cluster.tables == {}
    assert len(cluster.servers["n3"].replicas) == 4
    cluster.servers["n3"].start()
    cluster.pass_time(3_000)
    assert cluster.servers["n3"].replicas == {}


def test_data_under_ids_that_were_passed_over_is_never_thrown_away() -> None:
    cluster = Calm(1)
    server = cluster.servers["n1"]
    server.replicas[Gpid(7, 0)] = Replica(3, 5)
    for _ in range(2):
        server.start()
        cluster.settle(3)
    assert Gpid(7, 0) in server.replicas
    cluster.restart_meta()
    cluster.settle(12)
    assert Gpid(7, 0) in server.replicas
    assert cluster.create(replicas=1) == 8


def test_a_push_that_does_not_end_holds_no_other_configuration_back(cluster: Calm) -> None:
    meta = cluster.meta
    cluster.propose(asked(cluster, "n2", CLAIM))
    stuck = [one for one in meta.pushes if one.node_id == "n3"]
    meta.pushes.clear()
    cluster.propose(asked(cluster, "n2", HANDOVER, "n3", keep=True))
    [later] = [one for one in meta.pushes if one.node_id == "n3"]
    assert later.push.partitions == (cluster.record().configuration(),)
    # It is in force when the earlier one has ended too.
    table = meta.machine.cluster.tables[1]
    meta.pushes.clear()
    for node_id in ("n1", "n2"):
        cluster.machine.nodes[node_id].alive = False
        cluster.machine.delivery.on_died(node_id)
    meta.feed(PushEnded(later.push_id, "n3", 1))
    assert not cluster.machine.delivery.acknowledged(1, table.version)
    meta.feed(PushEnded(stuck[0].push_id, "n3", 1))
    assert cluster.machine.delivery.acknowledged(1, table.version)
