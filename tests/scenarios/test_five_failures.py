"""The five failures that duplication is known for, with real processes.

Stuck in DS_PREPARE, added twice, restarted in DS_PREPARE, the last write, empty tables. In the
soak also from and to replicated clusters, where a kill is that of all processes at once; what
single deaths do there is for `test_duplicated_clusters.py`.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import pegaskv
from pegaskv.errors import DuplicationExists, FollowerTable, InvalidArgument, PegasKVError
from pegaskv.runtime.tasks import TaskScope
from tests.helpers import poll_until
from tests.scenarios.pair import Pair, running_pair

pytestmark = pytest.mark.process

# After the cause is gone.
RECOVERED_S = 5.0
# While it lasts, it is shown.
SHOWN_S = 2.0

# Every run plays their like in virtual time: tests/simulation.
SOAK = pytest.mark.soak


@pytest.fixture(
    params=[
        pytest.param(0, id="one server each"),
        pytest.param(
            3, id="three replicas each", marks=[pytest.mark.soak, pytest.mark.timeout(240)]
        ),
    ]
)
async def pair(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    async with running_pair(tmp_path, replicas=request.param) as pair:
        yield pair


async def fill(pair: Pair, name: str, rows: int, partitions: int = 8) -> pegaskv.Table:
    await pair.source.admin.create_table(name, partitions)
    table = await pair.source.table(name)
    batch = [(b"h%d" % n, b"s", b"v%d" % n) for n in range(rows)]
    for begin in range(0, rows, 500):
        await table.batch_set(batch[begin : begin + 500])
    return table


async def shows_a_cause(pair: Pair, table: str) -> str:
    """Return the sentence that says why the table's duplication does not go on."""

    async def shown() -> bool:
        (one,) = await pair.source.admin.query_duplication(table)
        return bool(one.last_error and one.stalled_since and one.attempts and one.next_attempt_at)

    limit_s = SHOWN_S * pair.patience
    await poll_until(shown, deadline_s=limit_s, what="a cause with its next attempt")
    (one,) = await pair.source.admin.query_duplication(table)
    return str(one.last_error)


# Stuck in DS_PREPARE.


async def test_a_target_that_is_not_started_yet_is_waited_for_and_named(pair: Pair) -> None:
    await fill(pair, "t", 100)
    pair.beta.kill()
    await pair.source.admin.add_duplication("t", "beta")
    await shows_a_cause(pair, "t")
    assert await pair.status("t") == "DS_PREPARE"
    pair.beta.start()
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    await pair.equal("t")


async def acquainted(pair: Pair) -> None:
    """Let the source have a connection to the target already: its next call gets through."""
    await fill(pair, "earlier", 1)
    await pair.source.admin.add_duplication("earlier", "beta")
    await pair.reach("earlier", "DS_LOG", within_s=RECOVERED_S)


@SOAK
async def test_a_lost_reply_to_the_first_call_is_no_foreign_table(pair: Pair) -> None:
    await fill(pair, "t", 100)
    await acquainted(pair)
    pair.proxy.cut(requests=False, replies=True)
    await pair.source.admin.add_duplication("t", "beta")
    await shows_a_cause(pair, "t")
    pair.proxy.reset()
    pair.proxy.heal()
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    await pair.equal("t")
    names = [table.name for table in await pair.target.admin.list_tables()]
    assert sorted(names) == ["earlier", "t"]


async def test_both_ways_cut_and_healed_goes_on_by_itself(pair: Pair) -> None:
    await fill(pair, "t", 100)
    pair.proxy.cut()
    await pair.source.admin.add_duplication("t", "beta")
    await shows_a_cause(pair, "t")
    pair.proxy.heal()
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    await pair.equal("t")


@SOAK
async def test_a_target_killed_between_create_and_reply_goes_on(pair: Pair) -> None:
    await fill(pair, "t", 100)
    await acquainted(pair)
    pair.proxy.cut(requests=False, replies=True)
    await pair.source.admin.add_duplication("t", "beta")

    async def made() -> bool:
        return "t" in [table.name for table in await pair.target.admin.list_tables()]

    await poll_until(made, what="the table at the target")
    pair.beta.kill()
    pair.proxy.reset()
    pair.proxy.heal()
    pair.beta.start()
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    await pair.equal("t")


async def test_a_foreign_table_is_named_and_not_touched(pair: Pair) -> None:
    await fill(pair, "t", 100)
    await pair.target.admin.create_table("t", 8)
    foreign = await pair.target.table("t")
    await foreign.set(b"mine", b"s", b"stays")
    await pair.source.admin.add_duplication("t", "beta")
    sentence = await shows_a_cause(pair, "t")
    assert "`t`" in sentence
    assert await pair.status("t") == "DS_PREPARE"
    assert await foreign.get(b"mine", b"s") == b"stays"
    assert await foreign.count() == 1
    await pair.target.admin.drop_table("t")
    await pair.source.admin.start_duplication("t", "beta")
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    await pair.equal("t")


# Added twice.


@SOAK
async def test_adding_again_in_any_phase_changes_nothing_and_shows_what_is_there(
    pair: Pair,
) -> None:
    await fill(pair, "t", 100)
    admin = pair.source.admin
    pair.beta.kill()
    first = await admin.add_duplication("t", "beta", "t_copy")

    async def again(remote: str | None) -> None:
        with pytest.raises(DuplicationExists) as caught:
            await admin.add_duplication("t", "beta", remote)
        existing = caught.value.existing
        assert (existing.dupid, existing.remote_table) == (first.dupid, "t_copy")

    for remote in ("t_copy", "other", None):
        await again(remote)
    pair.beta.start()
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    await again("other")
    await admin.pause_duplication("t", first.dupid)
    await again("t_copy")
    assert await pair.status("t") == "DS_PAUSE"
    await admin.start_duplication("t", first.dupid)
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    (only,) = await admin.query_duplication("t")
    assert only.dupid == first.dupid
    assert [table.name for table in await pair.target.admin.list_tables()] == ["t_copy"]
    await fill(pair, "u", 1)
    with pytest.raises(InvalidArgument, match="t_copy"):
        await admin.add_duplication("u", "beta", "t_copy")


@SOAK
async def test_two_who_add_at_once_make_one(pair: Pair) -> None:
    await fill(pair, "t", 10)
    outcomes: list[str] = []

    async def add(name: str) -> None:
        try:
            await pair.source.admin.add_duplication("t", "beta", name)
        except DuplicationExists:
            outcomes.append("exists")
        else:
            outcomes.append("added")

    async with TaskScope("adders") as scope:
        for number in range(6):
            scope.start("add", add(f"t{number}"))
    assert sorted(outcomes) == ["added"] + ["exists"] * 5
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    assert len(await pair.source.admin.query_duplication("t")) == 1


# Restarts.


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(0, marks=SOAK),
        2,
        pytest.param(3_000, marks=SOAK),
    ],
)
async def test_killed_three_times_in_each_phase_it_goes_on(pair: Pair, rows: int) -> None:
    table = await fill(pair, "t", rows)
    pair.beta.kill()
    await pair.source.admin.add_duplication("t", "beta")
    for _ in range(3):
        pair.alpha.kill()
        pair.alpha.start()
    assert await pair.status("t") == "DS_PREPARE"
    pair.beta.start()
    for _ in range(3):
        pair.alpha.kill()
        pair.alpha.start()
        pair.beta.kill()
        pair.beta.start()
    await pair.reach("t", "DS_LOG", within_s=2 * RECOVERED_S)
    for number in range(3):
        await table.set(b"after", b"%d" % number, b"x", retry_unknown=True)
        pair.alpha.kill()
        pair.alpha.start()
    await pair.equal("t")


# The last write.


async def test_the_last_write_before_silence_arrives_like_any_other(pair: Pair) -> None:
    table = await fill(pair, "t", 0)
    await pair.source.admin.add_duplication("t", "beta")
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    there = await pair.target.table("t")
    for count in (1, 2, 100, 1):
        for number in range(count):
            await table.set(b"h%d" % number, b"last", b"%d of %d" % (number, count))
        last = b"h%d" % (count - 1), b"last"
        wanted = await table.get(*last)

        async def arrived(last: tuple[bytes, bytes] = last, wanted: bytes | None = wanted) -> bool:
            return await there.get(*last) == wanted

        await poll_until(arrived, deadline_s=1.0 * pair.patience, what=f"the last of {count}")
        await pair.equal("t", within_s=3.0)
    (one,) = await pair.source.admin.query_duplication("t")
    assert one.gap == 0


# Empty and tiny tables.


@pytest.mark.parametrize(
    ("partitions", "rows", "within_s"),
    [
        (8, 0, 2.0),
        pytest.param(8, 1, 2.0, marks=SOAK),
        (8, 2, 2.0),
        pytest.param(64, 0, 6.0, marks=SOAK),
        pytest.param(64, 1, 6.0, marks=SOAK),
        pytest.param(64, 2, 6.0, marks=SOAK),
    ],
)
async def test_an_empty_or_tiny_table_is_there_at_once(
    pair: Pair, partitions: int, rows: int, within_s: float
) -> None:
    await fill(pair, "t", rows, partitions)
    await pair.source.admin.add_duplication("t", "beta")
    await pair.reach("t", "DS_LOG", within_s=within_s)
    await pair.equal("t")


@SOAK
async def test_a_table_whose_rows_are_all_gone_is_empty_there(pair: Pair) -> None:
    table = await fill(pair, "t", 20)
    await table.batch_delete([(b"h%d" % n, b"s") for n in range(20)])
    await table.set(b"short", b"s", b"v", ttl=1)
    await pair.source.admin.add_duplication("t", "beta")
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)

    async def gone() -> bool:
        return await table.count() == 0

    await poll_until(gone, what="the expiry")
    await pair.equal("t")
    assert await (await pair.target.table("t")).count() == 0


@SOAK
async def test_a_small_table_does_not_wait_behind_a_large_one(pair: Pair) -> None:
    await fill(pair, "large", 60_000)
    await fill(pair, "small", 1)
    await pair.source.admin.add_duplication("large", "beta")
    await pair.source.admin.add_duplication("small", "beta")
    await pair.reach("small", "DS_LOG", within_s=2.0)
    await pair.reach("large", "DS_LOG", within_s=30.0)
    await pair.equal("large", within_s=20.0)


# Around them.


async def test_every_kind_of_write_arrives_and_a_follower_refuses_clients(pair: Pair) -> None:
    table = await fill(pair, "t", 10)
    await pair.source.admin.add_duplication("t", "beta")
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    await table.set(b"a", b"s", b"1", ttl=3_600)
    await table.multi_set(b"m", {b"x": b"1", b"y": b"2", b"z": b"3"})
    await table.multi_delete(b"m", [b"y"])
    for _ in range(5):
        await table.incr(b"n", b"count", 2)
    await table.check_and_set(b"m", b"x", pegaskv.Check.EXIST, set_sort_key=b"new", value=b"yes")
    await table.delete(b"h1", b"s")
    await pair.equal("t")
    there = await pair.target.table("t")
    with pytest.raises(FollowerTable):
        await there.set(b"a", b"s", b"mine")
    await pair.target.admin.open_table("t")
    await there.set(b"b", b"s", b"mine")
    assert await there.get(b"b", b"s") == b"mine"


@SOAK
async def test_partition_counts_may_differ(pair: Pair) -> None:
    for name, source, target in (("narrow", 8, 2), ("wide", 2, 8)):
        table = await fill(pair, name, 500, source)
        await pair.target.admin.create_table(name, target)
        await pair.source.admin.add_duplication(name, "beta", merge=True)
        await pair.reach(name, "DS_LOG", within_s=RECOVERED_S)
        for number in range(200):
            await table.set(b"h%d" % number, b"s", b"new")
        await table.batch_delete([(b"h%d" % n, b"s") for n in range(100)])
        await pair.equal(name)


@SOAK
async def test_two_ways_end_equal(pair: Pair) -> None:
    table = await fill(pair, "t", 200)
    await pair.source.admin.add_duplication("t", "beta")
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    await pair.target.admin.add_duplication("t", "alpha")
    there = await pair.target.table("t")

    async def open_there() -> bool:
        try:
            await there.set(b"x", b"x", b"x")
        except PegasKVError:
            return False
        return True

    await poll_until(open_there, what="the table is open at the target")

    async def write(side: pegaskv.Table, name: bytes) -> None:
        for number in range(300):
            await side.set(b"h%d" % (number % 20), b"s", b"%s %d" % (name, number))
            if number % 7 == 0:
                await side.delete(b"h%d" % (number % 20), b"s")

    async with TaskScope("writers") as scope:
        scope.start("alpha", write(table, b"alpha"))
        scope.start("beta", write(there, b"beta"))
    await pair.source.admin.wait_duplicated("t", timeout=10.0)
    await pair.target.admin.wait_duplicated("t", timeout=10.0)
    assert await pair.differences("t") == []


@SOAK
async def test_removed_and_added_again_onto_old_rows_ends_equal(pair: Pair) -> None:
    table = await fill(pair, "t", 200)
    admin = pair.source.admin
    first = await admin.add_duplication("t", "beta")
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    await pair.equal("t")
    await admin.remove_duplication("t", first.dupid)
    assert await admin.query_duplication("t") == []
    await table.batch_delete([(b"h%d" % n, b"s") for n in range(100)])
    await table.set(b"fresh", b"s", b"v")
    second = await admin.add_duplication("t", "beta", merge=True)
    assert second.dupid != first.dupid
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    await pair.equal("t")


@SOAK
async def test_without_a_copy_nothing_written_after_the_answer_is_missed(pair: Pair) -> None:
    table = await fill(pair, "t", 50)
    await pair.target.admin.create_table("t", 8)
    await pair.source.admin.add_duplication("t", "beta", checkpoint=False)
    for number in range(100):
        await table.set(b"new%d" % number, b"s", b"v")
    await pair.reach("t", "DS_LOG", within_s=RECOVERED_S)
    await pair.source.admin.wait_duplicated("t", timeout=10.0)
    assert await (await pair.target.table("t")).count() == 100
