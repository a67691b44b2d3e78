"""Rows that were read lately, in memory before the engine. On the hot path.

A look into a dictionary costs a tenth of LevelDB's look into its own memory, and waits for no
thread that writes or compacts.

Two generations: what is read goes to the young rows of its partition. When the young rows of
all partitions together have a third of the memory, they become the old ones, and of these only
what is read again comes back. The old ones of before make the last third; they leave one by
one as others come, since thousands at once would hold the loop.
"""

from collections.abc import Mapping
from typing import Final
from weakref import WeakSet

__all__ = ["RowCache", "RowCaches"]

# What a row takes beside its bytes: two objects, and its place in a dictionary.
_ROW_MEMORY: Final = 176
# Larger ones cost more to send than to find.
_ROW_BYTES_MAX: Final = 4096
# So many leave for each that comes.
_LEAVING_AT_ONCE: Final = 2


class RowCache:
    """Those of one partition, as they are in its engine or will be by what it was given.

    Invariant: no key is both young and old, and `old` may only be read through `take_back`.
    """

    __slots__ = ("__weakref__", "_caches", "old", "young")

    def __init__(self, caches: "RowCaches") -> None:
        # Read by whoever looks a row up, before it calls anything.
        self.young: dict[bytes, bytes] = {}
        self.old: dict[bytes, bytes] = {}
        self._caches = caches

    def take_back(self, key: bytes) -> bytes | None:
        """Return an old row, which is a young one from now on; None if there is none."""
        row = self.old.pop(key, None)
        if row is not None:
            self.add(key, row)
        return row

    def add(self, key: bytes, row: bytes) -> None:
        """Keep a row that was read from the engine."""
        size = len(key) + len(row) + _ROW_MEMORY
        if size <= self._caches.largest:
            self.young[key] = row
            self._caches.added(size)

    def drop(self, rows: Mapping[bytes, object]) -> None:
        """Forget the rows of these keys: the engine has, or lacks, others of them now."""
        for generation in (self.young, self.old):
            if generation:
                for key in generation.keys() & rows.keys():
                    del generation[key]


class RowCaches:
    """Those of all partitions of a server, under one bound; 0 keeps nothing."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.largest = min(_ROW_BYTES_MAX, bytes_max // 3)
        self._young_max = bytes_max // 3
        self._young_bytes = self._old_bytes = self._leaving_bytes = 0
        self._members: WeakSet[RowCache] = WeakSet()
        self._leaving: list[dict[bytes, bytes]] = []

    @property
    def bytes(self) -> int:
        """What the rows take, or took before some were dropped."""
        return self._young_bytes + self._old_bytes + self._leaving_bytes

    def make(self) -> RowCache:
        """Return the cache of one more partition; it is a member for as long as it is used."""
        cache = RowCache(self)
        self._members.add(cache)
        return cache

    def added(self, size: int) -> None:
        """A young row came that takes so many bytes."""
        self._young_bytes += size
        if self._leaving:
            self._let_go()
        if self._young_bytes > self._young_max:
            self._grow_old()

    def _let_go(self) -> None:
        rows = self._leaving[-1]
        for _ in range(_LEAVING_AT_ONCE):
            if not rows:
                self._leaving.pop()
                break
            rows.popitem()
        if not self._leaving:
            self._leaving_bytes = 0

    def _grow_old(self) -> None:
        # What has not left yet leaves at once; there is any only after much smaller rows.
        self._leaving = [cache.old for cache in self._members if cache.old]
        for cache in self._members:
            cache.old, cache.young = cache.young, {}
        self._leaving_bytes, self._old_bytes = self._old_bytes, self._young_bytes
        self._young_bytes = 0
