"""What every `MetaStore` does; a store's own tests inherit this and give a fixture `store`."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pegaskv.coordination.store import (
    ABSENT,
    COMMIT_BYTES_MAX,
    COMMIT_OPERATIONS_MAX,
    Conflict,
    Fence,
    Fenced,
    Guard,
    MetaStore,
    StoreUnavailable,
    WatchEvent,
)
from pegaskv.runtime.tasks import TaskScope

__all__ = ["StoreContract"]


async def _take(events: AsyncIterator[WatchEvent], count: int) -> list[WatchEvent]:
    async with asyncio.timeout(5):
        return [await anext(events) for _ in range(count)]


class StoreContract:
    async def test_a_key_that_was_never_written_is_absent(self, store: MetaStore) -> None:
        assert await store.get("tables/1") is None
        found, revision = await store.list("")
        assert found == {}
        assert await store.commit(puts={"a": b""}) > revision

    async def test_what_was_committed_is_read_with_its_revision(self, store: MetaStore) -> None:
        first = await store.commit(puts={"a": b"1", "b": b"\x00\xff"})
        second = await store.commit(puts={"b": b"2", "ключ": b"3"})
        assert second > first
        a, b = await store.get("a"), await store.get("b")
        assert a is not None
        assert (a.value, a.revision) == (b"1", first)
        assert b is not None
        assert (b.value, b.revision) == (b"2", second)

    async def test_a_list_has_the_keys_of_the_prefix_in_order(self, store: MetaStore) -> None:
        revision = await store.commit(puts={"t/2": b"", "t/1": b"x", "u/1": b"", "t": b""})
        found, at = await store.list("t/")
        assert list(found) == ["t/1", "t/2"]
        assert found["t/1"].value == b"x"
        assert at == revision
        assert list((await store.list(""))[0]) == ["t", "t/1", "t/2", "u/1"]

    async def test_a_deleted_key_is_gone_and_may_come_back_at_a_new_revision(
        self, store: MetaStore
    ) -> None:
        first = await store.commit(puts={"a": b"1"})
        await store.commit(deletes=["a", "never there"])
        assert await store.get("a") is None
        third = await store.commit(guards=[Guard("a", ABSENT)], puts={"a": b"3"})
        with pytest.raises(Conflict):
            await store.commit(guards=[Guard("a", first)], puts={"a": b"4"})
        again = await store.get("a")
        assert again is not None
        assert (again.value, again.revision) == (b"3", third)

    async def test_a_guard_that_does_not_hold_writes_nothing(self, store: MetaStore) -> None:
        first = await store.commit(puts={"a": b"1", "c": b"0"})
        with pytest.raises(Conflict):
            await store.commit(
                guards=[Guard("a", first), Guard("c", ABSENT)],
                puts={"a": b"2", "b": b"2"},
                deletes=["c"],
            )
        assert {key: one.value for key, one in (await store.list(""))[0].items()} == {
            "a": b"1",
            "c": b"0",
        }
        await store.commit(guards=[Guard("a", first), Guard("b", ABSENT)], puts={"a": b"2"})

    async def test_a_guard_may_watch_a_key_that_is_not_written(self, store: MetaStore) -> None:
        first = await store.commit(puts={"a": b"1"})
        await store.commit(guards=[Guard("a", first)], puts={"b": b"1"})
        entry = await store.get("a")
        assert entry is not None
        assert entry.revision == first

    async def test_of_commits_with_one_guard_exactly_one_happens(self, store: MetaStore) -> None:
        first = await store.commit(puts={"a": b""})
        won: list[int] = []
        lost: list[int] = []

        async def change(number: int) -> None:
            try:
                await store.commit(guards=[Guard("a", first)], puts={"a": b"%d" % number})
            except Conflict:
                lost.append(number)
            else:
                won.append(number)

        async with TaskScope("test") as scope:
            for number in range(8):
                scope.start("change", change(number))
        assert len(won) == 1
        assert len(lost) == 7
        entry = await store.get("a")
        assert entry is not None
        assert entry.value == b"%d" % won[0]

    async def test_a_commit_without_changes_checks_its_guards(self, store: MetaStore) -> None:
        first = await store.commit(puts={"a": b"1"})
        assert await store.commit(guards=[Guard("a", first)]) >= first
        with pytest.raises(Conflict):
            await store.commit(guards=[Guard("a", ABSENT)])

    async def test_more_than_a_hundred_operations_are_refused(self, store: MetaStore) -> None:
        half = COMMIT_OPERATIONS_MAX // 2
        puts = {f"k/{number}": b"v" for number in range(half)}
        deletes = [f"d/{number}" for number in range(COMMIT_OPERATIONS_MAX - half)]
        guards = [Guard(key, ABSENT) for key in [*puts, *deletes]]
        await store.commit(guards=guards, puts=puts, deletes=deletes)
        with pytest.raises(ValueError, match="100"):
            await store.commit(puts={**puts, "more": b""}, deletes=deletes)
        assert await store.get("more") is None

    async def test_more_than_a_mebibyte_is_refused(self, store: MetaStore) -> None:
        await store.commit(puts={"k": bytes(COMMIT_BYTES_MAX - 1)})
        with pytest.raises(ValueError, match="bytes"):
            await store.commit(puts={"k": bytes(COMMIT_BYTES_MAX)})
        entry = await store.get("k")
        assert entry is not None
        assert len(entry.value) == COMMIT_BYTES_MAX - 1

    async def test_a_key_is_named_once_in_a_commit(self, store: MetaStore) -> None:
        with pytest.raises(ValueError, match="twice"):
            await store.commit(puts={"a": b""}, deletes=["a"])

    async def test_a_watcher_sees_all_changes_after_its_revision_in_order(
        self, store: MetaStore
    ) -> None:
        await store.commit(puts={"t/1": b"before"})
        _, revision = await store.list("")
        second = await store.commit(puts={"t/1": b"a", "u": b""})
        events = store.watch("t/", revision)
        third = await store.commit(puts={"t/2": b"b"})
        assert await _take(events, 2) == [
            WatchEvent("t/1", b"a", second),
            WatchEvent("t/2", b"b", third),
        ]
        async with TaskScope("test") as scope:
            coming = scope.start("watch", _take(events, 1))
            await store.commit(puts={"u": b"other"})
            fourth = await store.commit(deletes=["t/1"])
            assert await coming == [WatchEvent("t/1", None, fourth)]

    async def test_a_leader_commits_by_its_fence(self, store: MetaStore) -> None:
        session = await store.session(10_000)
        fence = await store.campaign("meta", session, b"me")
        await store.commit(puts={"a": b"1"}, fence=fence)
        assert not session.lost.is_set()
        with pytest.raises(Fenced):
            await store.commit(puts={"a": b"2"}, fence=Fence("other", fence.token))
        entry = await store.get("a")
        assert entry is not None
        assert entry.value == b"1"

    async def test_a_fence_of_the_past_writes_nothing(self, store: MetaStore) -> None:
        session, other = await store.session(10_000), await store.session(10_000)
        old = await store.campaign("meta", session, b"me")
        async with TaskScope("test") as scope:
            coming = scope.start("campaign", store.campaign("meta", other, b"other"))
            await store.commit(puts={"a": b"1"}, fence=old)
            assert not coming.done()
            await store.resign(old)
            new = await coming
        with pytest.raises(Fenced):
            await store.commit(puts={"a": b"2"}, fence=old)
        await store.commit(puts={"a": b"3"}, fence=new)
        # To resign twice ends nobody else's leadership.
        await store.resign(old)
        await store.commit(puts={"a": b"4"}, fence=new)

    async def test_a_session_that_ends_takes_its_leadership_along(self, store: MetaStore) -> None:
        session, other = await store.session(10_000), await store.session(10_000)
        old = await store.campaign("meta", session, b"me")
        await session.close()
        assert session.lost.is_set()
        with pytest.raises(Fenced):
            await store.commit(puts={"a": b"1"}, fence=old)
        async with asyncio.timeout(15):
            new = await store.campaign("meta", other, b"other")
        assert new.token != old.token
        await store.commit(puts={"a": b"2"}, fence=new)

    async def test_a_caller_that_is_cancelled_leaves_a_whole_commit_or_none(
        self, store: MetaStore
    ) -> None:
        async def put(number: int) -> None:
            value = b"%d" % number
            await store.commit(puts={"a": value, "b": value})

        async with TaskScope("test") as scope:
            for number in range(6):
                task = scope.start("commit", put(number))
                for _ in range(number):
                    await asyncio.sleep(0)
                task.cancel()
            await put(100)
        a, b = await store.get("a"), await store.get("b")
        assert a is not None
        assert a == b
        assert a.value == b"100"

    async def test_recovering_a_store_that_is_well_changes_nothing(self, store: MetaStore) -> None:
        await store.commit(puts={"a": b"1"})
        before = await store.list("")
        await store.recover()
        assert await store.list("") == before
        await store.commit(puts={"a": b"2"})

    async def test_a_closed_store_refuses_and_ends_its_watchers(self, store: MetaStore) -> None:
        async def watch_until_closed() -> None:
            with pytest.raises(StoreUnavailable):
                await _take(store.watch("", 0), 1)

        async with TaskScope("test") as scope:
            watching = scope.start("watch", watch_until_closed())
            await asyncio.sleep(0)
            await store.close()
            await watching
        with pytest.raises(StoreUnavailable):
            await store.commit(puts={"a": b"1"})
        with pytest.raises(StoreUnavailable):
            await store.get("a")
        await store.close()
