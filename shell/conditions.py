"""pure: what `wait_for` waits for: words to a condition, and what it says of the cluster.

    dup <table> [<cluster or id>] DS_LOG         the phase is reached (DS_REMOVED: it is gone)
    dup <table> [<cluster or id>] gap <n>        in DS_LOG with at most n decrees behind
    dup <table> [<cluster or id>] shipped        all that is committed now is on the target
    table <table> available | dropped | absent | open | follower

Without a cluster a condition is about every duplication of the table.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pegaskv.base.errors import DuplicationNotFound
from pegaskv.base.options import nearest
from pegaskv.base.types import DuplicationStatus, TableInfo, TableStatus
from shell.duplications import duplication_data, gap_text, short_state, stall_lines, what_helps
from shell.errors import UsageError
from shell.parser import quote

if TYPE_CHECKING:
    from pegaskv.client import Duplication

__all__ = ["DuplicationCondition", "Seen", "TableCondition", "next_words", "parse_condition"]

_SUBJECTS: Final = ("dup", "table")
_PHASES: Final = tuple(status.value for status in DuplicationStatus)
_TABLE_STATES: Final = ("available", "dropped", "absent", "open", "follower")
_DUP_WORDS: Final = (*_PHASES, "gap", "shipped")
_EXAMPLES: Final = "for example: `dup users DS_LOG`, `dup users gap 0`, `table users available`"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look found. `never` says why it cannot come any more, or is empty."""

    reached: bool
    state: str
    data: Any = None
    lines: Sequence[str] = ()
    never: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class TableCondition:
    """A table in a state."""

    table: str
    state: str

    @property
    def is_shipped(self) -> bool:
        """Whether it is about rows at another cluster."""
        return False

    def judge(self, tables: Iterable[TableInfo]) -> Seen:
        """Judge by the tables of the cluster, dropped ones included."""
        named = [info for info in tables if info.name == self.table]
        live = [info for info in named if info.status is not TableStatus.DROPPED]
        if not named:
            return Seen(self.state == "absent", f"there is no table {self.table}")
        info = live[0] if live else named[-1]
        state = info.status.value
        available = info.status is TableStatus.AVAILABLE
        kind = "follower" if info.follower else "open"
        reached = {
            "available": available,
            "dropped": info.status is TableStatus.DROPPED,
            "absent": not live,
            "open": available and not info.follower,
            "follower": available and info.follower,
        }[self.state]
        text = f"table {self.table} is {state}" + (f" and {kind}" if available else "")
        return Seen(reached, text, {"table": self.table, "status": state, "kind": kind})


@dataclass(frozen=True, slots=True)
class DuplicationCondition:
    """Duplications of a table: a phase, or in DS_LOG and at most so far behind, or all shipped."""

    table: str
    name: str | None
    status: DuplicationStatus | None = None
    gap: int | None = None

    @property
    def is_shipped(self) -> bool:
        """Whether it is about all that is committed at one moment."""
        return self.status is None and self.gap is None

    def judge(self, found: Sequence["Duplication"]) -> Seen:
        """Judge by the duplications of the table.

        Raises:
            DuplicationNotFound: there is none, and not its end is waited for.

        """
        mine = [
            each
            for each in found
            if self.name in (None, each.remote_cluster, str(each.dupid))
            and each.status is not DuplicationStatus.DS_REMOVED
        ]
        if not mine:
            where = f" by the name or id {self.name}" if self.name else ""
            text = f"table {self.table} has no duplication{where}"
            if self.status is DuplicationStatus.DS_REMOVED:
                return Seen(True, text, [])
            raise DuplicationNotFound(text, hint="`dups` lists them, `add_dup` makes one")
        lines = [line for each in mine for line in self._lines(each)]
        broken = [each for each in mine if each.failure]
        ends = self.status is DuplicationStatus.DS_REMOVED
        return Seen(
            not (broken and not ends) and all(self._holds(each) for each in mine),
            "; ".join(_state(each) for each in mine),
            [duplication_data(each) for each in mine],
            lines,
            never=f"the duplication is broken: {broken[0].failure}" if broken and not ends else "",
            hint=what_helps(broken[0]) if broken else "",
        )

    def _holds(self, duplication: "Duplication") -> bool:
        if self.gap is None:
            return duplication.status is self.status
        # A gap says something in DS_LOG alone, once every partition has told its own.
        return (
            duplication.status is DuplicationStatus.DS_LOG
            and duplication.gap <= self.gap
            and all(partition.known for partition in duplication.partitions)
        )

    def _lines(self, duplication: "Duplication") -> list[str]:
        return [f"  {line}" for line in stall_lines(duplication)]


def _state(duplication: "Duplication") -> str:
    it = duplication
    table = it.table or "the table"
    return f"{table} => {it.remote_cluster}: {short_state(it)}, gap {gap_text(it)}"


def parse_condition(words: Sequence[str]) -> TableCondition | DuplicationCondition:
    """Return what `words` ask for.

    Raises:
        UsageError: they are no condition.

    """
    subject = words[0] if words else ""
    if subject not in _SUBJECTS:
        raise UsageError(f"a condition begins with dup or table, not {_q(subject)}", hint=_EXAMPLES)
    if len(words) < 3:
        raise UsageError(f"the condition {_q(' '.join(words))} is too short", hint=_EXAMPLES)
    if subject == "table":
        if len(words) > 3:
            raise UsageError(f"nothing follows {_q(words[2])} here", hint=_EXAMPLES)
        return TableCondition(words[1], _choice(words[2], _TABLE_STATES))
    table, *rest = words[1:]
    name = None
    # What is not a phase can only be the name of a cluster, if more follows.
    if rest[0] not in _DUP_WORDS and len(rest) > 1:
        name, *rest = rest
    wanted = _choice(rest[0], _DUP_WORDS)
    if wanted == "gap":
        if len(rest) != 2 or not (rest[1].isascii() and rest[1].isdigit()) or len(rest[1]) > 18:
            raise UsageError("behind gap stands one number, the most that may be behind")
        return DuplicationCondition(table, name, gap=int(rest[1]))
    if len(rest) > 1:
        raise UsageError(f"nothing follows {_q(wanted)} here", hint=_EXAMPLES)
    if wanted == "shipped":
        return DuplicationCondition(table, name)
    return DuplicationCondition(table, name, status=DuplicationStatus(wanted))


def _choice(word: str, choices: tuple[str, ...]) -> str:
    if word in choices:
        return word
    guess = nearest(word, choices)
    raise UsageError(
        f"{_q(word)} is nothing to wait for",
        hint=f"did you mean `{guess}`?" if guess else f"it is one of {', '.join(choices)}",
    )


def _q(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"))


def next_words(
    words: Sequence[str], tables: Iterable[str], duplications: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, str]]:
    """Return what may follow the complete `words` of a condition, each with what it is."""
    match list(words):
        case []:
            return [("dup", "a duplication"), ("table", "a table")]
        case ["dup"]:
            return [(name, "table") for name in duplications]
        case ["table"]:
            return [(name, "table") for name in tables]
        case ["table", _]:
            return [(state, "state") for state in _TABLE_STATES]
        case ["dup", table, *rest] if len(rest) < 2 and not set(rest) & set(_DUP_WORDS):
            names = dict.fromkeys(duplications.get(table, {}).values()) if not rest else {}
            return [(word, "") for word in _DUP_WORDS] + [(name, "cluster") for name in names]
        case ["dup", _, *rest] if rest[-1:] == ["gap"]:
            return [("0", "nothing is behind")]
    return []
