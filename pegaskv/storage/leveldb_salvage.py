"""What is left of a LevelDB whose tables are damaged: rows that are surely the newest.

A damaged block takes away the versions of some keys, and other tables may have older and
younger ones. An older version must not come back in the place of the one that is lost, and
a removed row must not come back at all; a younger one is as good as ever. So of a key that
a damaged block may have had only what a younger table says counts, and without that the
row is lost. LevelDB's own repair would bring the old versions back.

Nothing is written here, and nothing is opened by LevelDB. All functions block.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.disk import Disk, File
from pegaskv.storage.leveldb_files import live_tables
from pegaskv.storage.leveldb_manifest import LiveTable
from pegaskv.storage.leveldb_table import Entry, read_blocks

__all__ = ["DamagedRange", "Salvage"]

_REMOVED: Final = 0

# The key, the complement of its sequence number and kind, so that newer ones come first, its
# table, the row.
_Version = tuple[bytes, int, LiveTable, bytes]


@dataclass(frozen=True, slots=True)
class DamagedRange:
    """Stored keys from `first` to `last`, of which `table` had versions that cannot be read."""

    first: bytes
    last: bytes
    table: LiveTable


class Salvage:
    """The rows that are left in the closed database in `path`, and where some are lost.

    Raises:
        CorruptionError: its MANIFEST cannot be read: nobody knows its tables.
        OSError: the disk refused.

    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path
        tables = live_tables(disk, path)
        # Tables of a level above 0 do not overlap, so that one file is open for each of them.
        levels: dict[int, list[LiveTable]] = {}
        for table in sorted(tables, key=lambda each: (each.level, each.smallest)):
            levels.setdefault(table.level, []).append(table)
        self._streams = [[table] for table in levels.pop(0, [])] + list(levels.values())
        self.damage = sorted(
            (lost for table in tables for lost in self._damage_of(table)),
            key=lambda each: (each.first, each.last, each.table.number),
        )

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, row) in key order; what is removed or lost is left out."""
        waiting = iter(self.damage)
        following = next(waiting, None)
        active: list[DamagedRange] = []
        previous: bytes | None = None
        streams = (self._versions_of(tables) for tables in self._streams)
        for key, complement, table, row in heapq.merge(*streams, key=lambda each: each[:2]):
            if key == previous:
                continue
            previous = key
            while following is not None and following.first <= key:
                active.append(following)
                following = next(waiting, None)
            if active:
                active = [each for each in active if each.last >= key]
            if any(not _is_younger(table, each.table) for each in active):
                continue
            if ~complement & 0xFF != _REMOVED:
                yield key, row

    def _versions_of(self, tables: list[LiveTable]) -> Iterator[_Version]:
        for table in tables:
            for _, entries in self._blocks_of(table):
                for internal, row in entries or ():
                    yield internal[:-8], ~int.from_bytes(internal[-8:], "little"), table, row

    def _damage_of(self, table: LiveTable) -> Iterator[DamagedRange]:
        smallest, largest = table.first_key, table.last_key
        first = smallest
        for bound, entries in self._blocks_of(table):
            if entries is None:
                yield DamagedRange(first, min(bound, largest), table)
            # The next block begins behind this one: a key that goes on there is older there.
            first = bound + b"\0"

    def _blocks_of(self, table: LiveTable) -> Iterator[tuple[bytes, list[Entry] | None]]:
        try:
            file = self._disk.open(self._path / table.name)
        except FileNotFoundError:
            yield table.last_key, None
            return
        try:
            yield from _blocks(file, table)
        finally:
            file.close()


def _blocks(file: File, table: LiveTable) -> Iterator[tuple[bytes, list[Entry] | None]]:
    try:
        yield from read_blocks(file.read_at, file.size())
    except CorruptionError:
        # Without its index all of it is lost; it is read before any block.
        yield table.last_key, None


def _is_younger(one: LiveTable, other: LiveTable) -> bool:
    """Whether all versions in `one` are newer than those of the same keys in `other`."""
    if one.level == other.level == 0:
        return one.number > other.number
    return one.level < other.level
