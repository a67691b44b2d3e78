"""What ends a duplication or leaves something out: shown with what helps, and mended by it."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from pegaskv.base.types import Gpid
from pegaskv.client import Duplication
from pegaskv.codec.keys import encode_key, end_of_prefix
from pegaskv.codec.values import ROW_HEADER_BYTES, make_timetag, pack_row_header
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.replica import received_rows
from pegaskv.replica.participation import PIN_PREFIX
from pegaskv.replica.received import ReceivedHandlers
from pegaskv.storage.engine import ReplicaState
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.memory import MemoryEngine, MemoryFactory
from shell.duplications import what_helps
from tests.simulation.disk import SimulatedDisk
from tests.simulation.five_failures import Pair, play
from tests.simulation.servers import DATA

_ENGINE = DATA / "replicas" / str(Gpid(1, 0)) / "engine"


async def shown(
    pair: Pair, matches: Callable[[Duplication], bool], *, within_ms: int = 8_000
) -> Duplication:
    """Wait until the duplication of `t` is so."""
    end_ms = pair.world.now_ms + within_ms
    while not matches(found := await pair.entry("t")):
        assert pair.world.now_ms < end_ms, found
        await pair.world.sleep_ms(20)
    return found


async def shipping(pair: Pair, **envs: str) -> Any:
    """A table `t` with some rows that is duplicated, and all of it is there."""
    # Tables follow the log soon.
    pair.alpha.log = LogOptions(log_segment_bytes=64 * 1024, flush_age_ms=200)
    await pair.kill(pair.alpha)
    await pair.source.admin.create_table("t", 1, envs=envs)
    table = await pair.source.table("t")
    for number in range(20):
        await table.set(b"h%d" % number, b"s", b"v")
    await pair.add("t")
    await pair.reach("t", "DS_LOG")
    await pair.equal("t")
    return table


def change_tables(pair: Pair, change: Callable[[MemoryEngine], None]) -> None:
    """Change what the tables of the source's only partition hold while its server is down."""
    disk = pair.alpha.node.disk = pair.alpha.node.disk.reborn()  # type: ignore[union-attr]
    engine = MemoryFactory(disk).open(_ENGINE)  # type: ignore[arg-type]
    change(engine)
    engine.flush()
    engine.close()


async def copied_anew(pair: Pair, found: Duplication) -> None:
    """What is shown says that a copy helps, and it does."""
    assert "`start_dup --copy`" in found.failure
    assert "`start_dup t beta --copy`" in what_helps(found)
    assert (found.attempts, found.next_attempt_at) == (0, 0)
    await pair.source.admin.start_duplication("t", "beta", copy=True)
    await pair.reach("t", "DS_LOG")
    await pair.equal("t")
    assert not (await pair.entry("t")).failure


def test_a_target_that_was_dropped_is_waited_for_and_one_that_is_gone_for_good_is_not() -> None:
    async def scenario(pair: Pair) -> None:
        table = await shipping(pair)
        there = pair.target.admin
        await there.drop_table("t", force=True)
        await table.set(b"h", b"s", b"while it is dropped")
        found = await shown(pair, lambda one: one.error_class == "target_gone")
        assert "`recall 1`" in found.last_error
        assert (found.failure, found.next_attempt_at > 0) == ("", True)
        await pair.world.sleep_ms(20_000)
        await there.recall_table(1)
        await pair.equal("t", within_s=5.0)
        await there.drop_table("t", 0, force=True)
        await table.set(b"h", b"s", b"after the purge")
        found = await shown(pair, lambda one: bool(one.failure), within_ms=20_000)
        assert found.error_class == "target_purged"
        assert "dropped and its time to be recalled has passed" in found.failure
        assert "`remove_dup`" in found.failure
        await copied_anew(pair, found)

    play(scenario)


def test_another_cluster_at_the_targets_address_is_not_believed_that_the_table_is_gone() -> None:
    async def scenario(pair: Pair) -> None:
        table = await shipping(pair)
        pair.beta.node.crash(power=True)
        # A cluster that has given more ids, and never had this table.
        pair.beta.node.disk = SimulatedDisk(Random(9))
        await pair.start_target()
        for name in ("a", "b"):
            await pair.target.admin.create_table(name, 1)
            await pair.target.admin.drop_table(name, 0)
        await pair.world.sleep_ms(15_000)
        await table.set(b"h", b"s", b"v")
        found = await shown(pair, lambda one: bool(one.last_error))
        await pair.world.sleep_ms(5_000)
        assert (found.error_class, (await pair.entry("t")).failure) == ("target_gone", "")

    play(scenario)


def test_a_pin_that_was_lost_with_damaged_tables_leaves_no_hole() -> None:
    def lose_pins(engine: MemoryEngine) -> None:
        pins = [key for key, _ in engine.snapshot().iterate(PIN_PREFIX, end_of_prefix(PIN_PREFIX))]
        assert pins
        engine.write([part for key in pins for part in (key, None)], engine.state())

    async def scenario(pair: Pair) -> None:
        table = await shipping(pair)
        pair.beta.node.crash(power=True)
        await table.set(b"only here", b"s", b"v")
        await pair.world.sleep_ms(3_000)
        pair.alpha.node.crash(power=False)
        change_tables(pair, lose_pins)
        pair.alpha.start()
        await pair.start_target()
        pair.source = await pair.alpha.connected()
        found = await shown(pair, lambda one: bool(one.failure))
        assert "the source lost its pin of decree" in found.failure
        assert found.error_class == "source_lost"
        await copied_anew(pair, found)
        assert await (await pair.target.table("t")).get(b"only here", b"s") == b"v"

    play(scenario)


def test_a_gap_in_the_local_log_is_shown_and_a_copy_mends_it() -> None:
    def run_ahead(engine: MemoryEngine) -> None:
        # A power cut left the tables further than a log without syncs.
        state = engine.state()
        stamp = state.last_timestamp_us + 1
        row = pack_row_header(0, make_timetag(stamp, 1)) + b"v"
        ahead = ReplicaState(state.decree + 4, state.ballot, stamp)
        engine.write([encode_key(b"not in the log", b"s"), row], ahead)

    async def scenario(pair: Pair) -> None:
        table = await shipping(pair, durability="os")
        pair.beta.node.crash(power=True)
        await table.set(b"only here", b"s", b"v")
        await pair.world.sleep_ms(3_000)
        pair.alpha.node.crash(power=False)
        change_tables(pair, run_ahead)
        pair.alpha.start()
        await pair.start_target()
        pair.source = await pair.alpha.connected()
        found = await shown(pair, lambda one: bool(one.failure))
        assert "partition 1.0: local log damaged: the log of partition 1.0 lacks decrees" in (
            found.failure
        )
        assert found.error_class == "log_damaged"
        await copied_anew(pair, found)
        there = await pair.target.table("t")
        assert await there.get(b"not in the log", b"s") == b"v"
        assert await there.get(b"only here", b"s") == b"v"

    play(scenario)


def test_what_the_target_finds_invalid_is_left_out_counted_once_and_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(received_rows, "_ROW_BYTES_MAX", ROW_HEADER_BYTES + 100)

    async def scenario(pair: Pair) -> None:
        admin = pair.source.admin
        await admin.create_table("t", 2)
        table = await pair.source.table("t")
        for number in range(200):
            await table.set(b"h%d" % number, b"s", bytes(101 if number in (30, 90) else 50))
        await pair.add("t")
        # The copy meets rows that the target never takes.
        found = await shown(pair, lambda one: one.error_class == "rejected")
        assert "`set_dup_fail_mode t beta skip`" in what_helps(found)
        await pair.world.sleep_ms(3_000)
        assert (await pair.entry("t")).skipped == 0
        await admin.set_duplication_fail_mode("t", "beta", "skip")
        await pair.reach("t", "DS_LOG", within_ms=40_000)
        await pair.source.admin.wait_duplicated("t", timeout=20.0)
        there = await pair.target.table("t")
        assert await there.count() == 198
        # The log brings them again, since they stand behind no pin; and others.
        await table.set(b"h5", b"s", b"new")
        await table.set(b"h5", b"big", bytes(500))
        await table.multi_set(b"h5", {b"x": b"1", b"y": bytes(500)})
        await table.set(b"h5", b"last", b"1")
        await pair.source.admin.wait_duplicated("t", timeout=20.0)
        found = await pair.entry("t")
        assert (found.skipped, found.incomplete, found.status.value) == (4, True, "DS_LOG")
        row = [await there.get(b"h5", key) for key in (b"s", b"big", b"x", b"y", b"last")]
        assert row == [b"new", None, None, None, b"1"]
        # No restart forgets them or counts them twice.
        for victim in (pair.alpha, pair.beta, pair.alpha):
            await pair.kill(victim)
            await table_writes(pair)
            assert (await pair.entry("t")).skipped == 4
        await (await pair.source.table("t")).set(b"h5", b"big", bytes(500))
        await pair.source.admin.wait_duplicated("t", timeout=20.0)
        found = await pair.entry("t")
        assert (found.skipped, found.incomplete) == (5, True)

    async def table_writes(pair: Pair) -> None:
        await (await pair.source.table("t")).set(b"h5", b"after", b"1")
        await pair.source.admin.wait_duplicated("t", timeout=20.0)

    play(scenario)


def test_a_source_partition_that_is_closed_is_named_as_the_cause() -> None:
    async def scenario(pair: Pair) -> None:
        await shipping(pair)
        pair.alpha.node.crash(power=False)
        disk = pair.alpha.node.disk = pair.alpha.node.disk.reborn()  # type: ignore[union-attr]
        disk.remove_tree(_ENGINE.parent)  # type: ignore[attr-defined]
        pair.alpha.start()
        pair.source = await pair.alpha.connected()
        found = await shown(pair, lambda one: bool(one.last_error))
        assert "partition 1.0 is closed: its replica is missing" in found.last_error
        assert (found.error_class, found.failure) == ("source_closed", "")
        assert found.stalled_since > 0
        assert "`app t -d`" in what_helps(found)

    play(scenario)


@pytest.mark.parametrize("answer", [[], ["x", 1], [-1, 0]])
def test_a_target_that_answers_nonsense_stops_nothing_but_its_duplication(
    monkeypatch: pytest.MonkeyPatch, answer: list[Any]
) -> None:
    mad = False
    progress = ReceivedHandlers.on_progress

    def on_progress(self: ReceivedHandlers, connection: Any, message: list[Any]) -> None:
        if mad:
            connection.out.append((message[0], 0, *answer))
        else:
            progress(self, connection, message)

    monkeypatch.setattr(ReceivedHandlers, "on_progress", on_progress)

    async def scenario(pair: Pair) -> None:
        nonlocal mad
        await shipping(pair)
        mad = True
        await pair.kill(pair.alpha)
        await (await pair.source.table("t")).set(b"h", b"s", b"v2")
        found = await shown(pair, lambda one: one.error_class == "target_error")
        assert "beta answered DUPLICATION_PROGRESS" in found.last_error
        mad = False
        await pair.source.admin.start_duplication("t", "beta")
        await pair.equal("t")

    play(scenario)


@pytest.mark.parametrize("phase", ["DS_PREPARE", "DS_APP", "DS_LOG", "paused"])
def test_log_is_bounded_in_every_phase(phase: str) -> None:
    async def scenario(pair: Pair) -> None:
        pair.alpha.log = LogOptions(
            log_segment_bytes=64 * 1024, flush_partition_bytes=16 * 1024, flush_age_ms=200
        )
        speed = 5_000 if phase == "DS_APP" else 0
        pair.alpha.duplication = DuplicationOptions(
            max_log_bytes_held=300_000, copy_bytes_per_second=speed, batch_bytes=4_096
        )
        await pair.kill(pair.alpha)
        admin = pair.source.admin
        for name in ("t", "small"):
            await admin.create_table(name, 1)
        table = await pair.source.table("t")
        for number in range(100 if phase == "DS_APP" else 1):
            await table.set(b"h%d" % number, b"s", bytes(1_000))
        if phase == "DS_PREPARE":
            pair.beta.node.crash(power=True)
        await pair.add("small")
        await pair.add("t")
        if phase != "DS_PREPARE":
            await pair.reach("small", "DS_LOG")
            await pair.reach("t", "DS_LOG" if phase == "paused" else phase)
        if phase == "paused":
            await admin.pause_duplication("t", "beta")
        elif phase == "DS_LOG":
            pair.beta.node.crash(power=True)
        await (await pair.source.table("small")).set(b"h", b"s", b"v")
        for number in range(400):
            await table.set(b"h", b"%d" % number, bytes(1_000))
        found = await shown(pair, lambda one: bool(one.failure))
        assert "more than max_log_bytes_held = 300000" in found.failure
        assert (found.error_class, found.status.value) == (
            "log_limit",
            "DS_PAUSE" if phase == "paused" else phase,
        )
        await pair.world.sleep_ms(5_000)
        # Who keeps little does not pay for it.
        (other,) = await admin.query_duplication("small")
        assert not other.failure
        if not pair.beta.node.alive:
            await pair.start_target()
        await pair.equal("small")
        # One that copies slower than it is written to would not end.
        pair.alpha.duplication = DuplicationOptions(max_log_bytes_held=300_000)
        await pair.kill(pair.alpha)
        await copied_anew(pair, await pair.entry("t"))

    play(scenario)


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_no_copied_row_is_lost_when_the_target_loses_its_power(durability: str) -> None:
    async def scenario(pair: Pair) -> None:
        pair.alpha.duplication = DuplicationOptions(copy_bytes_per_second=50_000, batch_bytes=4_096)
        await pair.kill(pair.alpha)
        await pair.source.admin.create_table("t", 1, envs={"durability": durability})
        table = await pair.source.table("t")
        for number in range(200):
            await table.set(b"h%d" % number, b"s", bytes(1_000))
        await pair.add("t")
        await pair.reach("t", "DS_APP")
        before = 0
        for _ in range(3):
            # As soon as it is told that a page is there.
            while (found := (await pair.entry("t")).partitions[0].copied_rows) <= before:
                await pair.world.sleep_ms(1)
            before = found
            pair.beta.node.crash(power=True)
            await pair.start_target()
            await pair.world.sleep_ms(300)
        assert before < 200
        await pair.reach("t", "DS_LOG", within_ms=60_000)
        await pair.equal("t")

    play(scenario)


def test_where_nothing_is_written_a_target_that_is_away_is_seen_and_comes_back() -> None:
    async def scenario(pair: Pair) -> None:
        await shipping(pair)
        pair.beta.node.crash(power=True)
        found = await shown(pair, lambda one: bool(one.last_error), within_ms=15_000)
        assert (found.error_class, found.gap, found.failure) == ("unreachable", 0, "")
        await pair.start_target()
        found = await shown(pair, lambda one: not one.last_error)
        assert (found.caught_up, found.attempts) == (True, 0)
        await pair.equal("t")

    play(scenario)


def test_a_last_write_that_a_target_without_syncs_loses_is_not_taken_for_there() -> None:
    async def scenario(pair: Pair) -> None:
        pair.alpha.duplication = DuplicationOptions(confirm_interval_ms=10)
        table = await shipping(pair, durability="os")
        for number in range(20):
            # At some time between two syncs of the target.
            await pair.world.sleep_ms(1_000 + 7 * number)
            last = b"last %d" % number
            await table.set(last, b"s", b"v")
            await pair.world.sleep_ms(30)
            pair.beta.node.crash(power=True)
            found = (await pair.entry("t")).partitions[0]
            assert found.confirmed_decree == found.last_committed_decree
            await pair.start_target()
            if await (await pair.target.table("t")).get(last, b"s") is None:
                break
        else:
            raise AssertionError("nothing was ever lost")
        found = await shown(pair, lambda one: bool(one.failure), within_ms=15_000)
        assert "the target lost what it had confirmed" in found.failure
        assert found.error_class == "target_lost"
        await copied_anew(pair, found)
        assert await (await pair.target.table("t")).get(last, b"s") == b"v"

    play(scenario)
