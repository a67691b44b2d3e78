"""What operators meet around a duplication: too much log, pauses, drops, changed clusters."""

from pathlib import Path

import pytest

from pegaskv.errors import OperationDisabled, PegasKVError
from tests.helpers import poll_until
from tests.scenarios.pair import Pair, running_pair

pytestmark = pytest.mark.process

_LITTLE_LOG = """
[duplication]
max_log_bytes_held = 300000

[storage]
log_segment_bytes = 65536
flush_partition_bytes = 65536
flush_total_bytes = 131072
"""


async def rows(pair: Pair, name: str, count: int, prefix: bytes = b"h") -> None:
    table = await pair.source.table(name)
    batch = [(b"%s%d" % (prefix, n), b"s", bytes(1_000)) for n in range(count)]
    for begin in range(0, count, 100):
        await table.batch_set(batch[begin : begin + 100])


async def test_log_that_is_held_too_long_breaks_it_and_a_new_copy_mends_it(
    tmp_path: Path,
) -> None:
    async with running_pair(tmp_path, options=_LITTLE_LOG) as pair:
        admin = pair.source.admin
        await admin.create_table("t", 2)
        await rows(pair, "t", 100)
        await admin.add_duplication("t", "beta")
        await pair.reach("t", "DS_LOG", within_s=5.0)
        pair.beta.kill()
        await rows(pair, "t", 2_000, b"late")

        async def broken() -> bool:
            (one,) = await admin.query_duplication("t")
            return bool(one.failure)

        await poll_until(broken, deadline_s=20.0, what="a failure that is stored")
        (one,) = await admin.query_duplication("t")
        assert "needs_copy" in one.failure
        assert "start_dup --copy" in one.failure
        with pytest.raises(OperationDisabled):
            await admin.wait_duplicated("t", timeout=1.0)
        pair.alpha.kill()
        pair.alpha.start()
        pair.beta.start()
        with pytest.raises(PegasKVError, match="copy"):
            await admin.start_duplication("t", "beta")
        table = await pair.source.table("t")
        await table.batch_delete([(b"h%d" % n, b"s") for n in range(50)])
        await admin.start_duplication("t", "beta", copy=True)
        await pair.reach("t", "DS_LOG", within_s=10.0)
        await pair.equal("t")


async def test_a_pause_in_any_phase_holds_and_survives_a_restart(tmp_path: Path) -> None:
    async with running_pair(tmp_path) as pair:
        admin = pair.source.admin
        await admin.create_table("t", 2)
        await rows(pair, "t", 100)
        pair.beta.kill()
        await admin.add_duplication("t", "beta")
        await admin.pause_duplication("t", "beta")
        pair.alpha.kill()
        pair.alpha.start()
        pair.beta.start()
        (one,) = await admin.query_duplication("t")
        assert one.paused
        await admin.start_duplication("t", "beta")
        await pair.reach("t", "DS_LOG", within_s=5.0)
        await admin.pause_duplication("t", "beta")
        await rows(pair, "t", 50, b"paused")
        there = await pair.target.table("t")
        assert await there.count() == 100
        assert await pair.status("t") == "DS_PAUSE"
        await admin.start_duplication("t", "beta")
        await pair.equal("t")


async def test_renamed_tables_go_on_and_a_dropped_target_is_named_until_it_is_back(
    tmp_path: Path,
) -> None:
    async with running_pair(tmp_path) as pair:
        admin = pair.source.admin
        await admin.create_table("t", 2)
        await admin.add_duplication("t", "beta")
        await pair.reach("t", "DS_LOG", within_s=5.0)
        await admin.rename_table("t", "renamed")
        await pair.target.admin.rename_table("t", "other")
        await rows(pair, "renamed", 50)
        await pair.equal("renamed", "other")
        table_id = next(
            one.table_id for one in await pair.target.admin.list_tables() if one.name == "other"
        )
        await pair.target.admin.drop_table("other", force=True)
        await rows(pair, "renamed", 50, b"more")

        async def named() -> bool:
            (one,) = await admin.query_duplication("renamed")
            return bool(one.last_error and one.attempts)

        await poll_until(named, deadline_s=20.0, what="a cause")
        await pair.target.admin.recall_table(table_id)
        await admin.start_duplication("renamed", "beta")
        await pair.equal("renamed", "other", within_s=10.0)
