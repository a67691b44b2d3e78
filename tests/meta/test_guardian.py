"""The guardian and the moves: every partition gets its members, evenly, and litter goes."""

import pytest

from pegaskv.base.types import Gpid
from pegaskv.codec.messages_meta import NodeBeacon, OrderKind, Proposal, ProposalKind
from pegaskv.meta.events import NodeLeaving, SetReplicaCount, TimePassed
from tests.meta.calm import Calm
from tests.meta.cluster_world import Replica
from tests.meta.harness import drop

LEARN, REMOVE = OrderKind.ADD_LEARNER, OrderKind.REMOVE


def members(cluster: Calm, index: int = 0) -> set[str]:
    return set(cluster.record(1, index).members)


# Repair.


def test_a_node_that_was_a_member_is_waited_for_and_taken_when_it_comes() -> None:
    cluster = Calm(4)
    cluster.create()
    gone = cluster.servers[cluster.record().secondaries[0]]
    gone.stop()
    cluster.settle(20)
    assert len(members(cluster)) == 2
    gone.start()
    cluster.settle(5)
    assert gone.node_id in members(cluster)
    assert {one.order.node_id for one in cluster.orders(LEARN)} == {gone.node_id}


def test_when_it_stays_away_another_node_gets_a_copy() -> None:
    cluster = Calm(4)
    cluster.create()
    gone = cluster.servers[cluster.record().secondaries[0]]
    [spare] = set(cluster.servers) - members(cluster)
    gone.stop()
    cluster.settle(80)
    assert spare in members(cluster)
    assert len(members(cluster)) == 3
    # It comes too late: what it has is thrown away.
    gone.start()
    cluster.settle(10)
    assert gone.replicas == {}


def test_who_began_anew_on_an_empty_disk_is_not_waited_for() -> None:
    cluster = Calm(3)
    cluster.create()
    gone = cluster.servers[cluster.record().secondaries[0]]
    gone.stop()
    cluster.settle(20)
    cluster.add("anew", address=gone.address)
    cluster.settle(20)
    assert "anew" in members(cluster)
    assert gone.node_id not in members(cluster)


def test_nobody_is_waited_for_when_too_few_are_left_to_write() -> None:
    cluster = Calm(4)
    cluster.create()
    for node_id in cluster.record().secondaries:
        cluster.servers[node_id].stop()
    cluster.settle(15)
    assert len(members(cluster)) == 2


def test_a_copy_that_goes_on_is_waited_for_and_one_that_stands_still_is_given_up() -> None:
    cluster = Calm(5, replica_assign_delay_ms=1)
    cluster.create()
    gone = cluster.record().secondaries[0]
    cluster.servers[gone].stop()
    cluster.settle(3)
    meta, gpid = cluster.meta, Gpid(1, 0)
    # Nobody teaches: only beacons say how far it is.
    cluster.pass_time(12_000)
    chosen = cluster.machine.guardian.learner(gpid)
    assert chosen is not None
    process = cluster.servers[chosen].process
    for done in range(60):
        meta.now_ms += 1_000
        beacons = [
            (one.beacon(), meta.now_ms)
            for one in cluster.servers.values()
            if one.up and one.node_id != chosen
        ]
        learning = ((gpid, min(done, 20), 100),)
        beacons.append((NodeBeacon(chosen, process, 1, False, learning), meta.now_ms))
        meta.feed(TimePassed(tuple(beacons)))
        assert cluster.machine.guardian.learner(gpid) == chosen or done > 45
    again = cluster.machine.guardian.learner(gpid)
    assert again not in (None, chosen)
    given_up = [one for one in meta.orders if one.order.kind is REMOVE]
    assert {one.order.node_id for one in given_up} == {chosen}


def test_a_node_gets_so_many_copies_at_a_time() -> None:
    cluster = Calm(3, learners_per_node_max=2, replica_assign_delay_ms=1)
    cluster.create(partitions=8, replicas=2)
    cluster.add("n4")
    guardian = cluster.machine.guardian
    cluster.ask(SetReplicaCount(cluster.next_id(), "t", 4))
    most = 0
    for _ in range(60):
        cluster.settle(1)
        most = max(most, *(guardian.copies_to(one) for one in cluster.servers))
    assert most == 2
    assert all(len(members(cluster, index)) == 4 for index in range(8))


def test_an_order_is_repeated_and_not_every_second() -> None:
    cluster = Calm(4, replica_assign_delay_ms=1)
    cluster.create()
    gone = cluster.record().secondaries[0]
    cluster.servers[gone].stop()
    cluster.settle(2)
    cluster.ordered.clear()
    cluster.pass_time(20_000)
    # Of those seconds, the first ten were the time in which the node may have come back.
    assert 4 <= len(cluster.orders(LEARN)) <= 10


def test_of_several_that_become_members_at_once_nobody_is_let_go() -> None:
    cluster = Calm(3, learners_per_node_max=4)
    cluster.create(partitions=8)
    cluster.servers["n1"].stop()
    cluster.settle(10)
    cluster.servers["n1"].start()
    cluster.pass_time(1_000)
    records = [cluster.record(1, index) for index in range(8)]
    learnt = [one for one in records if cluster.machine.guardian.learner(one.gpid) == "n1"]
    assert len(learnt) == 4
    cluster.ordered.clear()
    # What primaries ask for while the store is busy is stored together.
    cluster.propose(
        *(
            Proposal(
                str(one.primary),
                one.gpid,
                one.ballot,
                ProposalKind.UPGRADE,
                "n1",
                process=cluster.servers[str(one.primary)].process,
            )
            for one in learnt
        )
    )
    cluster.deliver()
    assert all(len(members(cluster, one.gpid.partition_index)) == 3 for one in learnt)
    given = cluster.ordered
    assert [one for one in given if one.order.kind is REMOVE] == []
    # The others begin at once.
    assert len({one.order.gpid for one in given if one.order.kind is LEARN}) == 4


def test_more_and_fewer_replicas_of_a_table_come_by_themselves() -> None:
    cluster = Calm(5)
    cluster.create(partitions=4, replicas=1)
    for count in (3, 5, 2, 1):
        answer = cluster.ask(SetReplicaCount(cluster.next_id(), "t", count))
        assert answer.table is not None
        assert answer.table.replica_count == count
        cluster.settle(60)
        assert [len(members(cluster, index)) for index in range(4)] == [count] * 4
        assert sum(len(one.replicas) for one in cluster.servers.values()) == 4 * count


def test_replicas_of_dropped_tables_stay_where_they_are() -> None:
    cluster = Calm(3)
    cluster.create()
    cluster.servers["n3"].replicas[Gpid(1, 0)] = Replica(1)
    cluster.ask(drop(cluster.next_id(), "t"))
    cluster.settle(5)
    assert all(len(one.replicas) == 1 for one in cluster.servers.values())


# Leaving.


def test_a_node_that_leaves_is_taken_out_and_nobody_gets_a_copy_in_its_place() -> None:
    cluster = Calm(4)
    cluster.create(partitions=8)
    [leaver] = [cluster.servers["n1"]]
    request_id = cluster.next_id()
    cluster.meta.feed(NodeLeaving(request_id, "n1", leaver.process))
    [left] = cluster.meta.answers[request_id].more
    assert left == sum("n1" in members(cluster, index) for index in range(8))
    assert cluster.machine.nodes["n1"].status == "leaving"
    cluster.deliver()
    cluster.act()
    assert all("n1" not in cluster.record(1, index).secondaries for index in range(8))
    cluster.settle(5)
    assert cluster.orders(LEARN) == []
    # It begins again, and gets back what it had.
    leaver.start()
    cluster.settle(20)
    assert all(len(members(cluster, index)) == 3 for index in range(8))
    assert cluster.machine.nodes["n1"].status == "alive"


def test_a_leaving_node_that_is_alone_or_unknown_has_nothing_to_wait_for() -> None:
    cluster = Calm(2)
    cluster.create(partitions=4, replicas=1)
    for node_id, process in (("n1", cluster.servers["n1"].process), ("n1", "old"), ("n9", "x")):
        request_id = cluster.next_id()
        cluster.meta.feed(NodeLeaving(request_id, node_id, process))
        assert cluster.meta.answers[request_id].more == (0,)


# Balance.


def test_a_new_empty_node_gets_its_share_by_itself() -> None:
    cluster = Calm(3)
    cluster.create(partitions=8)
    cluster.add("n4")
    cluster.settle(60)
    counts = cluster.machine.nodes.counts()
    assert sorted(counts[0].values()) == [2, 2, 2, 2]
    assert sorted(counts[1].values()) == [6, 6, 6, 6]
    assert sum(len(one.replicas) for one in cluster.servers.values()) == 24
    assert cluster.machine.moves.even


def test_single_replicas_are_moved_too() -> None:
    cluster = Calm(1)
    cluster.create(partitions=8, replicas=1)
    cluster.add("n2")
    cluster.settle(40)
    assert sorted(cluster.machine.nodes.counts()[0].values()) == [4, 4]
    assert all(len(one.replicas) == 4 for one in cluster.servers.values())


def test_nothing_is_moved_while_a_partition_lacks_something() -> None:
    cluster = Calm(3)
    cluster.create(partitions=8)
    cluster.add("n4")
    cluster.servers["n2"].stop()
    cluster.settle(30)
    assert cluster.machine.moves.count == 0
    assert cluster.orders(OrderKind.MOVE_PRIMARY) == []


@pytest.mark.parametrize("away", ["source", "target"])
def test_a_move_whose_node_dies_leaves_a_whole_partition(away: str) -> None:
    cluster = Calm(3, replica_assign_delay_ms=1)
    cluster.create(partitions=4, replicas=2)
    cluster.add("n4")
    for _ in range(30):
        cluster.pass_time(1_000)
        if cluster.machine.moves.count:
            break
    assert cluster.machine.moves.count
    dying = "n4" if away == "target" else cluster.record().primary
    assert dying is not None
    cluster.servers[dying].stop()
    cluster.settle(60)
    for index in range(4):
        assert len(members(cluster, index)) == 2
        assert dying not in members(cluster, index)
    cluster.servers[dying].start()
    cluster.settle(60)
    assert cluster.machine.moves.even
