"""What of a simulated disk outlives a process, and what of it a power cut may take.

A file is its bytes and the changes that were not synced, each with what is needed to undo it. Names
are kept in the same way, for all directories in one list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

__all__ = ["DirectoryNode", "FileNode", "Node", "Platter"]


@dataclass(slots=True)
class Change:
    """One change of a file that is not known to be durable: enough to undo it and do it again."""

    offset: int
    old: bytes
    new: bytes
    old_size: int
    new_size: int
    # A sync failed on it: it is never durable, whatever follows.
    doomed: bool = False
    # A later sync succeeded; it is kept here only because an older change is doomed.
    synced: bool = False

    def apply(self, data: bytearray) -> None:
        _resize(data, self.new_size)
        data[self.offset : self.offset + len(self.new)] = self.new

    def undo(self, data: bytearray) -> None:
        _resize(data, self.old_size)
        data[self.offset : self.offset + len(self.old)] = self.old


@dataclass(slots=True, eq=False)
class FileNode:
    """A file's bytes as a read shows them, and what of them may be lost."""

    data: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)

    def change(self, offset: int, new: bytes, new_size: int) -> None:
        data = self.data
        old_size = len(data)
        assert offset <= old_size
        old = bytes(data[new_size:] if new_size < old_size else data[offset : offset + len(new)])
        change = Change(offset, old, new, old_size, new_size)
        change.apply(data)
        self.changes.append(change)

    def synced(self) -> None:
        if any(change.doomed for change in self.changes):
            for change in self.changes:
                change.synced = not change.doomed
        else:
            self.changes.clear()

    def doomed(self) -> None:
        for change in self.changes:
            if not change.synced:
                change.doomed = True

    def settle(self, random: Random) -> None:
        """Decide what a power cut leaves; it is durable then."""
        changes, self.changes = self.changes, []
        if not changes:
            return
        data = self.data
        for change in reversed(changes):
            change.undo(data)
        open_changes = [change for change in changes if not change.doomed and not change.synced]
        mode = random.choice(("all", "nothing", "pages", "pages", "zeros"))
        page_bytes = random.choice((512, 4096))
        size_steps = random.choice((0, len(open_changes), random.randint(0, len(open_changes))))
        kept_steps: dict[int, int] = {}
        step = 0
        for change in changes:
            if change.doomed:
                continue
            if change.synced or mode == "all":
                change.apply(data)
                continue
            step += 1
            if mode == "zeros":
                change.new = bytes(len(change.new))
                change.apply(data)
            elif mode == "pages":
                if step <= size_steps:
                    _resize(data, change.new_size)
                for offset, piece in _pages(change, page_bytes):
                    page = offset // page_bytes
                    if page not in kept_steps:
                        kept_steps[page] = random.randint(0, len(open_changes))
                    if step <= kept_steps[page] and offset + len(piece) <= len(data):
                        data[offset : offset + len(piece)] = piece


def _resize(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    elif size > len(data):
        data.extend(bytes(size - len(data)))


def _pages(change: Change, page_bytes: int) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(change.new):
        offset = change.offset + position
        length = min(page_bytes - offset % page_bytes, len(change.new) - position)
        yield offset, change.new[position : position + length]
        position += length


@dataclass(slots=True, eq=False)
class DirectoryNode:
    entries: "dict[str, FileNode | DirectoryNode]" = field(default_factory=dict)


Node = FileNode | DirectoryNode


@dataclass(slots=True)
class Naming:
    """One change of names, in one or two directories: (directory, name, old, new)."""

    parts: list[tuple[DirectoryNode, str, Node | None, Node | None]]

    def touches(self, directories: list[DirectoryNode]) -> bool:
        return any(part[0] is directory for part in self.parts for directory in directories)

    def apply(self) -> None:
        for directory, name, _old, new in self.parts:
            _set_name(directory, name, new)

    def undo(self) -> None:
        for directory, name, old, _new in reversed(self.parts):
            _set_name(directory, name, old)


def _set_name(directory: DirectoryNode, name: str, node: Node | None) -> None:
    if node is None:
        directory.entries.pop(name, None)
    else:
        directory.entries[name] = node


class Platter:
    """What outlives a process: the files, the names, and the chance that rules them."""

    def __init__(self, random: Random, capacity_bytes: int) -> None:
        self.random = random
        self.capacity_bytes = capacity_bytes
        self.root = DirectoryNode()
        self.namings: list[Naming] = []
        self.boots = 1
        self.locks: set[Path] = set()

    def files(self) -> list[FileNode]:
        """Every file that has a name, or may have one after a power cut; each once."""
        found: dict[int, FileNode] = {}
        roots: list[Node] = [self.root]
        for naming in self.namings:
            roots += [node for part in naming.parts for node in part[2:] if node is not None]
        seen: set[int] = set()
        while roots:
            node = roots.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, FileNode):
                found[id(node)] = node
            else:
                roots += node.entries.values()
        return list(found.values())

    def named_bytes(self) -> int:
        """What the files with a name take now; a file with two names is counted once."""
        found: dict[int, int] = {}
        waiting: list[Node] = [self.root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, FileNode):
                found[id(node)] = len(node.data)
            else:
                waiting += node.entries.values()
        return sum(found.values())

    def name(self, changes: Sequence[tuple[DirectoryNode, str, Node | None]]) -> None:
        """Let names lead to other nodes, or to none, all at once."""
        naming = Naming(
            [
                (directory, name, directory.entries.get(name), new)
                for directory, name, new in changes
            ]
        )
        naming.apply()
        self.namings.append(naming)

    def sync_names(self, directory: DirectoryNode) -> None:
        """A journal commits what came before with it: also what shares a directory with it."""
        touched = [directory]
        left: list[Naming] = []
        for naming in reversed(self.namings):
            if naming.touches(touched):
                touched += [part[0] for part in naming.parts]
            else:
                left.append(naming)
        self.namings = left[::-1]

    def settle(self) -> None:
        random = self.random
        for node in self.files():
            node.settle(random)
        namings, self.namings = self.namings, []
        for naming in reversed(namings):
            naming.undo()
        mode = random.choice(("all", "nothing", "prefix", "some"))
        prefix = random.randint(0, len(namings))
        for position, naming in enumerate(namings):
            if (
                mode == "all"
                or (mode == "prefix" and position < prefix)
                or (mode == "some" and random.random() < 0.5)
            ):
                naming.apply()
        self.boots += 1
