"""The machine as the source of duplications."""

from dataclasses import replace
from typing import Any

import pytest

from pegaskv.base.errors import (
    DuplicationExists,
    DuplicationNotFound,
    InvalidArgument,
    TableNotFound,
    Unavailable,
)
from pegaskv.base.types import FailMode, Gpid
from pegaskv.codec.messages_duplication import EnsureAnswer
from pegaskv.codec.messages_meta import NodeReport
from pegaskv.codec.operations import Operation
from pegaskv.meta.events import CollectDue, Ensured, NodeReported, RecallTable
from pegaskv.meta.sources import FORGET_FOR_S
from tests.meta.harness import Crash, drop
from tests.meta.sides import APP, LOG, Side, connected, progress


@pytest.fixture
def sides() -> list[Side]:
    return connected()


@pytest.fixture
def alpha(sides: list[Side]) -> Side:
    sides[0].create("t")
    return sides[0]


@pytest.fixture
def beta(sides: list[Side]) -> Side:
    return sides[1]


def pins(side: Side, table_id: int = 1) -> list[dict[bytes, bool]]:
    return [side.server.pins.get(Gpid(table_id, index), {}) for index in range(4)]


# Add.


def test_a_new_duplication_is_stored_pinned_ensured_and_ships(alpha: Side, beta: Side) -> None:
    entry = alpha.add("t")
    assert alpha.phase(entry) == "DS_PREPARE"
    assert pins(alpha) == [{entry.uuid: True}] * 4
    [order] = alpha.server.orders[1].duplications
    assert (order.remote_table_id, order.metas) == (0, "10.0.0.2:34601")
    [answer] = alpha.coordinate(beta)
    assert isinstance(answer, EnsureAnswer)
    assert (answer.outcome, answer.partition_count) == ("CREATED", 4)
    assert beta.meta.table("t").follower
    [order] = alpha.server.orders[1].duplications
    assert (order.remote_table_id, order.remote_partition_count) == (answer.table_id, 4)
    assert alpha.work() == []
    alpha.report(entry, progress(0, APP), progress(1), progress(2), progress(3))
    assert alpha.phase(entry) == "DS_APP"
    alpha.report(entry, progress(0))
    assert alpha.phase(entry) == "DS_LOG"


@pytest.mark.parametrize(
    ("fields", "error", "text", "hint"),
    [
        ({"remote": "alpha"}, InvalidArgument, "own cluster", ""),
        ({"remote": "betta"}, InvalidArgument, "`betta`", "`beta`"),
        ({"remote": "zzz"}, InvalidArgument, "`zzz`", "add_cluster"),
        ({"remote_replica_count": 6}, InvalidArgument, "6 replicas", "0 for as many"),
        ({"remote_table": "a b"}, InvalidArgument, "'a b'", "letters"),
        ({"table": "tt"}, TableNotFound, "`tt`", "did you mean `t`"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason_and_changes_nothing(
    alpha: Side, fields: dict[str, Any], error: type[Exception], text: str, hint: str
) -> None:
    commits = alpha.records.commits
    with pytest.raises(error, match=text) as caught:
        alpha.add(**{"table": "t", **fields})
    assert hint in caught.value.hint  # type: ignore[attr-defined]
    assert alpha.records.commits == commits


def test_the_checks_come_in_their_order(alpha: Side) -> None:
    with pytest.raises(InvalidArgument, match="own cluster"):
        alpha.add("none", "alpha", remote_replica_count=9)
    with pytest.raises(InvalidArgument, match="no cluster is known"):
        alpha.add("none", "gamma", remote_replica_count=9)
    with pytest.raises(InvalidArgument, match="9 replicas"):
        alpha.add("none", remote_replica_count=9)
    with pytest.raises(TableNotFound):
        alpha.add("none")


def test_a_second_add_shows_the_first_and_touches_nothing_in_any_phase(
    alpha: Side, beta: Side
) -> None:
    entry = alpha.add("t", remote_table="copy")

    def again() -> None:
        commits = alpha.records.commits
        before = dict(alpha.records.entries)
        with pytest.raises(DuplicationExists) as caught:
            alpha.add("t", remote_table="other", checkpoint=False)
        details = caught.value.details
        assert caught.value.existing["dupid"] == entry.dupid
        assert details["existing"]["remote_table"] == "copy"
        assert details["requested"]["remote_table"] == "other"
        assert len(details["differences"]) == 2
        assert "`copy`, not `other`" in str(caught.value)
        assert (alpha.records.commits, alpha.records.entries) == (commits, before)
        with pytest.raises(DuplicationExists) as same:
            alpha.add("t")
        assert same.value.details["differences"] == []

    again()
    alpha.coordinate(beta)
    again()
    alpha.report(entry, progress(0, APP))
    again()
    alpha.ship(entry)
    again()
    alpha.modify(entry, "pause")
    again()
    alpha.restart()
    again()
    alpha.report(entry, progress(0), failure="the source lost decrees 4 to 7")
    again()


def test_two_who_add_at_once_make_one(alpha: Side) -> None:
    events = [alpha.adding("t", remote_table=name) for name in ("x", "y")]
    for event in events:
        alpha.meta.feed(event)
    assert events[0].request_id in alpha.meta.answers
    assert isinstance(alpha.meta.refusals[events[1].request_id], DuplicationExists)
    [entry] = alpha.entries()
    assert entry.remote_table == "x"


def test_another_table_to_the_same_remote_table_is_refused_by_its_name(alpha: Side) -> None:
    alpha.create("u")
    alpha.add("t", remote_table="copy")
    with pytest.raises(InvalidArgument, match=r"`t` is duplicated to table `copy`"):
        alpha.add("u", remote_table="copy")
    alpha.add("u")


def test_without_a_copy_the_answer_waits_for_every_pin(alpha: Side) -> None:
    event = alpha.adding("t", checkpoint=False)
    alpha.meta.feed(event)
    assert event.request_id not in alpha.meta.answers
    assert pins(alpha) == [{}] * 4
    alpha.meta.deliver(alpha.server)
    assert event.request_id in alpha.meta.answers
    assert pins(alpha) == [{event.new_uuid: True}] * 4
    [work] = alpha.work()
    assert work.fields[6] == "existing"


def test_without_a_copy_a_pin_that_fails_is_no_success(alpha: Side) -> None:
    event = alpha.adding("t", checkpoint=False)
    alpha.meta.feed(event)
    alpha.meta.deliver(alpha.server, error="the disk is full")
    refusal = alpha.meta.refusals[event.request_id]
    assert isinstance(refusal, Unavailable)
    assert refusal.maybe_applied
    assert "the disk is full" in str(refusal)
    assert len(alpha.entries()) == 1
    # Who tries again is not told that all is well before it is.
    for in_force in (False, True):
        with pytest.raises(DuplicationExists) as caught:
            alpha.ask(alpha.adding("t", checkpoint=False))
        assert caught.value.details["in_force"] is in_force
        assert ("may be missed" in str(caught.value)) is not in_force
        alpha.restart()


# Topologies.


def test_a_chain_is_refused_at_its_source_and_at_its_target_unless_it_is_a_mesh() -> None:
    alpha, beta, gamma = connected(3)
    alpha.create("t")
    alpha.add("t")
    alpha.coordinate(beta)
    with pytest.raises(InvalidArgument, match="would not go on to `gamma`") as caught:
        beta.add("t", "gamma")
    assert "--mesh" in caught.value.hint
    beta.add("t", "gamma", mesh=True)
    # The other way round: the target sends to a third already.
    gamma.create("u")
    gamma.add("u", "alpha")
    beta.create("u")
    beta.add("u", "gamma", merge=True)
    [error] = [one for one in beta.coordinate(gamma) if isinstance(one, Exception)]
    assert isinstance(error, InvalidArgument)
    assert "`alpha`" in str(error)
    [entry] = [one for one in beta.entries() if one.remote_table == "u"]
    beta.modify(entry, "remove")
    beta.coordinate(gamma)
    beta.add("u", "gamma", merge=True, mesh=True)
    assert not [one for one in beta.coordinate(gamma) if isinstance(one, Exception)]


def test_a_star_needs_no_mesh_and_two_ways_neither() -> None:
    alpha, beta, gamma = connected(3)
    alpha.create("t")
    alpha.add("t", "beta")
    alpha.add("t", "gamma")
    alpha.coordinate(beta, gamma)
    assert alpha.work() == []
    beta.create("mine")
    beta.add("mine", "alpha")
    beta.coordinate(alpha)
    alpha.add("mine", "beta")
    alpha.coordinate(beta)
    assert alpha.work() == []


def test_the_way_back_opens_the_follower_and_finds_the_table_by_its_id(
    alpha: Side, beta: Side
) -> None:
    alpha.add("t", remote_table="copy")
    alpha.coordinate(beta)
    alpha.send(Operation.RENAME_TABLE, "t", "renamed")
    answer = beta.ask(beta.adding("copy", "alpha"))
    assert "exact within one cluster" in answer.more[1][0]
    assert not beta.meta.table("copy").follower
    assert not beta.server.tables[1].follower
    [work] = beta.work()
    assert work.fields[6] == "merge"
    [ensured] = beta.coordinate(alpha)
    assert isinstance(ensured, EnsureAnswer)
    assert (ensured.outcome, ensured.table_id) == ("ALREADY_YOURS", 1)
    assert not alpha.meta.table("renamed").follower


# Modify.


def test_a_pause_holds_in_every_phase_and_a_start_ends_it(alpha: Side, beta: Side) -> None:
    entry = alpha.add("t")
    paused = alpha.modify(entry, "pause")
    assert paused.paused
    assert alpha.work() == []
    assert alpha.server.orders[1].duplications[0].paused
    commits = alpha.records.commits
    assert alpha.modify(entry, "pause") == paused
    assert alpha.records.commits == commits, "the same state again stores nothing"
    started = alpha.modify(entry, "start")
    assert (started.paused, started.attempt) == (False, 1)
    assert alpha.modify(entry, "start") == started
    alpha.coordinate(beta)
    alpha.ship(entry)
    alpha.modify(entry, "pause")
    assert alpha.phase(entry) == "DS_PAUSE"


def test_start_of_what_is_stalled_begins_the_back_off_anew(alpha: Side) -> None:
    entry = alpha.add("t")
    assert alpha.modify(entry, "start", stalled=False).attempt == 0
    assert alpha.modify(entry, "start", stalled=True).attempt == 1
    assert alpha.server.orders[1].duplications[0].attempt == 1
    assert alpha.work()[0].attempt == 1


def test_the_fail_mode_is_told_to_the_nodes(alpha: Side) -> None:
    entry = alpha.add("t")
    assert alpha.modify(entry, "fail_mode", "skip").fail_mode is FailMode.SKIP
    assert alpha.server.orders[1].duplications[0].fail_mode is FailMode.SKIP
    assert alpha.restart() is None
    assert alpha.server.orders[1].duplications[0].fail_mode is FailMode.SKIP


def test_a_duplication_that_is_not_there_is_refused_with_those_that_are(alpha: Side) -> None:
    entry = alpha.add("t")
    with pytest.raises(DuplicationNotFound, match="no duplication 5") as caught:
        alpha.modify(entry.changed(dupid=5), "pause")
    assert str(entry.dupid) in caught.value.hint
    alpha.modify(entry, "remove")
    with pytest.raises(DuplicationNotFound) as caught:
        alpha.modify(entry, "start")
    assert "nowhere" in caught.value.hint


def test_a_failure_breaks_it_until_a_copy_which_has_a_new_uuid(alpha: Side, beta: Side) -> None:
    entry = alpha.add("t")
    alpha.coordinate(beta)
    alpha.ship(entry)
    alpha.report(entry, progress(2), failure="the source lost decrees 4 to 7")
    broken = alpha.entry(1, entry.dupid)
    assert broken.failure == "partition 1.2: the source lost decrees 4 to 7"
    assert pins(alpha) == [{entry.uuid: False}] * 4
    for action in ("start", "pause"):
        with pytest.raises(InvalidArgument, match="lost decrees") as caught:
            alpha.modify(entry, action)
        assert "start_dup --copy" in caught.value.hint
    # What comes late of a broken one says nothing.
    assert alpha.report(entry, progress(1, confirmed_decree=90)) == []
    copied = alpha.modify(entry, "copy")
    assert copied.uuid != entry.uuid
    assert (copied.failure, copied.ensured, copied.dupid) == ("", False, entry.dupid)
    assert alpha.phase(entry) == "DS_PREPARE"
    assert pins(alpha) == [{entry.uuid: False, copied.uuid: True}] * 4, "tombstones stay"
    [answer] = alpha.coordinate(beta)
    assert isinstance(answer, EnsureAnswer)
    assert answer.outcome == "ALREADY_YOURS"
    assert [set(beta.server.listed[Gpid(1, n)]) for n in range(4)] == [{copied.uuid}] * 4
    alpha.ship(copied)
    assert pins(alpha) == [{copied.uuid: True}] * 4, "the new copy is done"
    assert alpha.entry(1, entry.dupid).earlier == ()
    # Nothing is left of the old uuid on either side.
    assert [one.order.uuid for one in beta.meta.machine.cluster.tables[1].sources] == [copied.uuid]


# Remove.


def test_a_removed_one_is_unseen_until_all_obeyed_and_then_gone(alpha: Side, beta: Side) -> None:
    entry = alpha.add("t")
    alpha.coordinate(beta)
    alpha.ship(entry)
    removed = alpha.modify(entry, "remove")
    assert alpha.phase(removed) == "DS_REMOVED"
    assert alpha.meta.machine.cluster.book.of_table(1) == []
    assert pins(alpha) == [{}] * 4
    [work] = alpha.work()
    assert (work.kind, work.fields) == ("forget", (1, entry.uuid))
    assert alpha.coordinate(beta) == [True]
    assert alpha.entries() == []
    assert not [key for key in alpha.records.entries if key.startswith(("dupl", "progress"))]
    assert beta.meta.machine.cluster.tables[1].sources == ()
    assert beta.meta.table("t").follower
    assert [beta.server.listed[Gpid(1, n)] for n in range(4)] == [{}] * 4


def test_what_is_added_again_has_another_id_and_another_uuid(alpha: Side, beta: Side) -> None:
    seen = []
    for _ in range(3):
        entry = alpha.add("t", merge=True)
        alpha.coordinate(beta)
        alpha.ship(entry)
        alpha.modify(entry, "remove")
        alpha.coordinate(beta)
        seen.append((entry.dupid, entry.uuid))
        alpha.now -= 5
    assert len({dupid for dupid, _ in seen}) == len({uuid for _, uuid in seen}) == 3


def test_added_again_before_the_target_forgot_it_takes_its_place(alpha: Side, beta: Side) -> None:
    first = alpha.add("t")
    alpha.coordinate(beta)
    alpha.modify(first, "remove")
    second = alpha.add("t")
    forget, ensure = alpha.work()
    assert (forget.kind, ensure.kind) == ("forget", "ensure")
    answer = beta.take(ensure)
    assert isinstance(answer, EnsureAnswer)
    assert answer.outcome == "ALREADY_YOURS"
    alpha.hear(ensure, answer)
    alpha.hear(forget, beta.take(forget))
    assert set(beta.server.listed[Gpid(1, 0)]) == {second.uuid}
    assert alpha.entries() == [alpha.entry(1, second.dupid)]


def test_a_target_that_is_away_for_a_day_is_not_told_any_more(alpha: Side, beta: Side) -> None:
    entry = alpha.add("t")
    alpha.coordinate(beta)
    alpha.modify(entry, "remove")
    alpha.now += FORGET_FOR_S
    alpha.meta.now = alpha.now
    alpha.meta.feed(CollectDue())
    assert len(alpha.work()) == 1
    alpha.now += 1
    alpha.meta.now = alpha.now
    alpha.meta.feed(CollectDue())
    assert alpha.work() == []
    assert alpha.entries() == []


def test_a_removed_one_stays_while_a_replica_is_closed(alpha: Side, beta: Side) -> None:
    entry = alpha.add("t")
    alpha.coordinate(beta)
    replicas = alpha.server.report().replicas
    report = NodeReport("node-1", "h:1", (replace(replicas[0], closed="damaged"), *replicas[1:]))
    alpha.meta.feed(NodeReported(alpha.next_id(), report))
    alpha.meta.deliver(alpha.server)
    alpha.modify(entry, "remove")
    alpha.coordinate(beta)
    assert len(alpha.entries()) == 1
    alpha.restart()
    assert alpha.entries() == []


# Drop, recall, purge.


def test_a_table_that_takes_part_is_dropped_by_force_only(alpha: Side, beta: Side) -> None:
    alpha.add("t")
    alpha.coordinate(beta)
    for side in (alpha, beta):
        with pytest.raises(InvalidArgument, match="takes part in a duplication") as caught:
            side.ask(drop(side.next_id(), "t"))
        assert "--force" in caught.value.hint
    alpha.ask(drop(alpha.next_id(), "t", force=True))
    beta.ask(drop(beta.next_id(), "t", force=True))


def test_a_dropped_table_holds_its_log_and_goes_on_when_it_returns(alpha: Side, beta: Side) -> None:
    entry = alpha.add("t")
    alpha.coordinate(beta)
    alpha.ship(entry)
    alpha.ask(drop(alpha.next_id(), "t", force=True))
    [order] = alpha.server.orders[1].duplications
    assert order.paused
    assert not order.ended
    assert pins(alpha) == [{entry.uuid: True}] * 4
    alpha.restart()
    alpha.ask(RecallTable(alpha.next_id(), 1, None))
    [order] = alpha.server.orders[1].duplications
    assert not order.paused
    assert len(order.progress) == 4
    assert alpha.phase(entry) == "DS_LOG"


def test_a_purge_ends_it_and_the_target_is_told(alpha: Side, beta: Side) -> None:
    entry = alpha.add("t")
    alpha.coordinate(beta)
    alpha.ship(entry)
    alpha.ask(drop(alpha.next_id(), "t", reserve=0, force=True))
    alpha.meta.feed(CollectDue())
    alpha.meta.deliver(alpha.server)
    assert alpha.meta.machine.cluster.tables == {}
    [work] = alpha.work()
    assert work.kind == "forget"
    alpha.restart()
    assert alpha.coordinate(beta) == [True]
    assert alpha.entries() == []
    assert set(alpha.records.entries) == {"cluster"}


# Progress.


def test_progress_never_goes_back_and_is_stored_in_batches(alpha: Side, beta: Side) -> None:
    alpha.create("wide", 256)
    entry = alpha.add("wide")
    alpha.coordinate(beta)
    version = alpha.meta.table("wide").version
    commits = alpha.records.commits
    stored = alpha.report(
        entry, *(progress(n, confirmed_decree=9, confirmed_clock_us=90) for n in range(256))
    )
    assert len(stored) == 256
    assert alpha.records.commits == commits + 3
    [low] = alpha.report(entry, progress(7, APP, confirmed_decree=4, copied_key=b"k"))
    assert (low.status, low.confirmed_decree, low.confirmed_clock_us) == (LOG, 9, 90)
    assert low.copied_key == b""
    [high] = alpha.report(entry, progress(7, confirmed_decree=12))
    assert (high.confirmed_decree, high.start_decree) == (12, 3)
    commits = alpha.records.commits
    assert alpha.report(entry, progress(7, confirmed_decree=12)) == [high]
    assert alpha.records.commits == commits, "nothing new, nothing stored"
    assert alpha.meta.table("wide").version == version, "progress is no news to the nodes"
    alpha.restart()
    assert alpha.report(entry, progress(7)) == [high]
    order = alpha.server.orders[2].duplications[0]
    assert {one.index: one.confirmed_decree for one in order.progress}[7] == 12


def test_progress_of_what_is_over_is_ignored(alpha: Side, beta: Side) -> None:
    entry = alpha.add("t")
    alpha.coordinate(beta)
    before = dict(alpha.records.entries)
    assert alpha.report(entry.changed(uuid=b"x" * 16), progress(0)) == []
    assert alpha.report(entry.changed(dupid=1), progress(0)) == []
    assert alpha.report(entry.changed(table_id=9), progress(0)) == []
    assert alpha.report(entry, progress(4)) == []
    assert alpha.records.entries == before
    alpha.modify(entry, "remove")
    assert alpha.report(entry, progress(0)) == []


def test_skipped_operations_are_remembered(alpha: Side, beta: Side) -> None:
    entry = alpha.add("t")
    alpha.coordinate(beta)
    alpha.report(entry, progress(1, skipped=4, skipped_decree=7))
    # What a run that began before it tells late takes nothing back.
    alpha.report(entry, progress(1, skipped=1, skipped_decree=5))
    alpha.restart()
    stored = alpha.meta.machine.cluster.book.progress(entry)[1].partition
    assert (stored.skipped, stored.skipped_decree) == (4, 7)
    [order] = alpha.server.orders[1].duplications
    assert {one.index: one.skipped for one in order.progress} == {1: 4}


def test_a_pin_that_moved_breaks_it(alpha: Side, beta: Side) -> None:
    entry = alpha.add("t")
    alpha.coordinate(beta)
    alpha.ship(entry)
    alpha.restart()
    alpha.report(entry, progress(1))
    assert not alpha.entry(1, entry.dupid).failure
    alpha.report(entry, progress(2, start_decree=9))
    failure = alpha.entry(1, entry.dupid).failure
    assert "partition 1.2: the source lost its pin of decree 3 and has one of decree 9" in failure
    assert "`start_dup --copy`" in failure
    assert pins(alpha) == [{entry.uuid: False}] * 4
    again = alpha.modify(alpha.entry(1, entry.dupid), "copy")
    alpha.report(again, progress(2, start_decree=12))
    assert not alpha.entry(1, entry.dupid).failure


@pytest.mark.parametrize(
    "answer",
    [
        EnsureAnswer("CREATED", 0, 4, 2, "u", ""),
        EnsureAnswer("CREATED", 5, 3, 2, "u", ""),
        EnsureAnswer("CREATED", 5, 0, 2, "u", ""),
        EnsureAnswer("CREATED", 5, 1 << 40, 2, "u", ""),
        EnsureAnswer("CREATED", 5, 4, 2, "11111111-2222-4333-8444-555555555555", ""),
    ],
)
def test_an_answer_that_cannot_be_is_not_believed(alpha: Side, answer: EnsureAnswer) -> None:
    entry = alpha.add("t")
    with pytest.raises(InvalidArgument):
        alpha.ask(Ensured(alpha.next_id(), entry.dupid, entry.uuid, answer))
    assert not alpha.entry(1, entry.dupid).ensured


def test_an_answer_for_an_old_uuid_changes_nothing(alpha: Side) -> None:
    entry = alpha.add("t")
    answer = EnsureAnswer("CREATED", 5, 4, 2, "u", "")
    alpha.ask(Ensured(alpha.next_id(), entry.dupid, entry.uuid, answer))
    copied = alpha.modify(entry, "copy")
    alpha.ask(Ensured(alpha.next_id(), entry.dupid, entry.uuid, answer))
    assert alpha.entry(1, entry.dupid) == copied


# Crashes.


def test_a_crash_between_any_two_commits_goes_on_from_what_is_stored() -> None:
    crashes = 0
    for crash_at in range(60):
        alpha, beta = connected()
        alpha.create("t")
        alpha.records.crash_at = alpha.records.commits + crash_at
        alpha.records.crash_random.seed(crash_at)

        def steps(alpha: Side = alpha, beta: Side = beta) -> None:
            """All of a life; each step looks whether it was done before."""
            if not alpha.entries():
                alpha.add("t")
            [entry] = [one for one in alpha.entries() if one.live] or [None]
            if entry is not None and not entry.failure and not entry.earlier:
                alpha.coordinate(beta)
                alpha.ship(entry)
                alpha.report(entry, progress(0), failure="the target lost data")
            [entry] = [one for one in alpha.entries() if one.live] or [None]
            if entry is not None:
                if entry.failure:
                    entry = alpha.modify(entry, "copy")
                alpha.coordinate(beta)
                alpha.ship(entry)
                alpha.modify(entry, "remove")
            alpha.coordinate(beta)

        for _ in range(5):
            try:
                steps()
            except Crash:
                crashes += 1
                alpha.restart()
            else:
                break
        assert alpha.entries() == []
        assert pins(alpha) == [{}] * 4
        assert beta.meta.machine.cluster.tables[1].sources == ()
        assert len(beta.meta.machine.cluster.tables) == 1
    assert crashes > 10
