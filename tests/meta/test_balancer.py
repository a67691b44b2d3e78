"""Plans for balance: they end, and then nothing is uneven."""

from random import Random

import pytest

from pegaskv.base.types import Gpid
from pegaskv.meta.balancer import plan_shifts, spread_primaries
from pegaskv.meta.placement import Layout, min_write_replicas


def any_layout(random: Random) -> Layout:
    nodes = [f"n{one}" for one in range(1, random.randrange(2, 8))]
    # Some have just come, and one that leaves holds replicas still.
    old = [*random.sample(nodes, random.randrange(1, len(nodes) + 1)), "leaving"]
    layout = Layout(nodes)
    for table_id in range(1, random.randrange(2, 6)):
        count = min(random.randrange(1, 4), len(old))
        for index in range(random.choice((1, 2, 4, 8, 16))):
            members = random.sample(old, count)
            layout.put(Gpid(table_id, index), members[0], members)
    return layout


@pytest.mark.parametrize("seed", range(60))
def test_rounds_of_moves_end_with_every_table_and_all_together_spread_evenly(seed: int) -> None:
    random = Random(seed)
    layout = any_layout(random)
    limit, moves = random.choice((1, 3, 10)), 0
    for _ in range(2_000):
        before = dict(layout.primary), dict(layout.members)
        shifts = plan_shifts(layout, limit)
        if not shifts:
            break
        assert len({one.gpid for one in shifts}) == len(shifts), "moved twice at once"
        for shift in shifts:
            assert shift.source in before[1][shift.gpid]
            assert (shift.target in before[1][shift.gpid]) == (not shift.copies)
        moves += len(shifts)
    else:
        raise AssertionError("it moves without end")
    for table_id in layout.by_table:
        assert layout.spread(layout.primaries[table_id]) <= 1
        assert layout.spread(layout.replicas[table_id]) <= 1
    assert layout.spread(layout.members_all) <= 1
    _counts_are_right(layout)


def _counts_are_right(layout: Layout) -> None:
    for node_id in layout.nodes:
        leads = sum(one == node_id for one in layout.primary.values())
        has = sum(node_id in members for members in layout.members.values())
        assert (layout.primaries_all[node_id], layout.members_all[node_id]) == (leads, has)
    for gpid, members in layout.members.items():
        assert layout.primary[gpid] in members
        assert len(set(members)) == len(members)


def test_a_new_node_gets_its_share_and_no_more_is_moved_than_that() -> None:
    layout = Layout(["a", "b", "c", "d"])
    for index in range(8):
        members = ["a", "b", "c"]
        layout.put(Gpid(1, index), members[index % 3], members)
    copies = 0
    while shifts := plan_shifts(layout, 10):
        copies += sum(one.copies for one in shifts)
    assert copies == 6
    assert sorted(layout.members_all.values()) == [6, 6, 6, 6]
    assert sorted(layout.primaries_all.values()) == [2, 2, 2, 2]


def test_the_lead_goes_by_way_of_others_where_no_replica_is() -> None:
    layout = Layout(["a", "b", "c"])
    # `a` and `c` have no partition together.
    for index, (primary, other) in enumerate([("a", "b"), ("a", "b"), ("b", "c")]):
        layout.put(Gpid(1, index), primary, [primary, other])
    spread_primaries(layout, 1)
    assert layout.primaries_all == {"a": 1, "b": 1, "c": 1}


def test_one_node_alone_or_nothing_at_all_needs_no_move() -> None:
    layout = Layout(["a"])
    layout.put(Gpid(1, 0), "a", ["a"])
    assert plan_shifts(layout, 10) == []
    assert plan_shifts(Layout(["a", "b"]), 10) == []
    assert plan_shifts(Layout([]), 10) == []


def test_small_tables_of_one_partition_are_spread_together() -> None:
    layout = Layout(["a", "b", "c"])
    for table_id in range(1, 31):
        layout.put(Gpid(table_id, 0), "a", ["a"])
    while plan_shifts(layout, 10):
        pass
    assert sorted(layout.primaries_all.values()) == [10, 10, 10]


def test_who_may_write_below_the_full_count() -> None:
    assert [min_write_replicas(count) for count in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 2]
