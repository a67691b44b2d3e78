"""pure: a duplication as a person reads it: where it is, what holds it up, and what helps.

Every cause that a server tells by its class has a sentence here about what to do; most
need nothing, since a duplication goes on by itself. What a server of another version adds
is shown as it came.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from pegaskv.base.types import DuplicationStatus
from shell.render import Fields, Result, Table, text_lines

if TYPE_CHECKING:
    from pegaskv.client import Duplication, DuplicationPartition

__all__ = [
    "ago",
    "cause_of",
    "cluster_data",
    "comparison",
    "describe",
    "duplication_data",
    "gap_text",
    "is_unfinished",
    "partition_table",
    "short_state",
    "stall_lines",
    "utc",
    "what_helps",
]

_PHASES: Final[Mapping[DuplicationStatus, str]] = {
    DuplicationStatus.DS_INIT: "it was just added",
    DuplicationStatus.DS_PREPARE: "the remote table is made ready, and partitions mark their logs",
    DuplicationStatus.DS_APP: "existing rows are copied",
    DuplicationStatus.DS_LOG: "writes are shipped as they are committed",
    DuplicationStatus.DS_PAUSE: "paused: nothing is shipped, and the log is kept",
    DuplicationStatus.DS_REMOVED: "removed",
}

# What helps against each class of error; {t} is the table, {c} the cluster, {r} the remote table.
_HELP: Final[Mapping[str, str]] = {
    "unreachable": "it goes on by itself when {c} answers; `clusters` shows where it is looked for",
    "refused": "{c} refuses the user or password: mend it there, or add the cluster anew; "
    "`start_dup {t} {d}` tries at once",
    "foreign": "rename or drop {r} at {c}, and it goes on by itself; or `remove_dup {t} {d}`, "
    "then `add_dup {t} {c} -a <other name>`, or --merge to write into that table",
    "not_listed": "`start_dup {t} {d} --copy` has {c} list it anew and copies all rows, "
    "`remove_dup {t} {d}` ends it",
    "target_gone": "`recall` the table at {c} (or `create` it, if it was never there), and it goes "
    "on by itself; or `start_dup {t} {d} --copy` makes it anew",
    "target_closed": "`app {r} -d` at {c} shows the partition that is closed, and its server's log "
    "what it waits for; the duplication goes on by itself when it opens",
    "target_error": "the log of {c} has the cause; it goes on by itself",
    "source_error": "the log of this cluster's server has the cause; it goes on by itself",
    "unacceptable": "mend what the sentence names, here or at {c}, and it goes on by itself; "
    "`remove_dup {t} {d}` ends it",
    "target_purged": "`start_dup {t} {d} --copy` makes {r} anew at {c} and copies all rows",
    "source_closed": "`app {t} -d` shows the partition, and its server's log what it waits for; "
    "the duplication goes on by itself when it opens",
    "clock": "set the clocks of both clusters right; it goes on by itself, and no row is skipped",
    "rejected": "`set_dup_fail_mode {t} {d} skip` leaves out the rows that {c} finds invalid",
    "target_too_old": "upgrade {c}; it goes on by itself",
    "busy": "{c} has too much to do; it goes on by itself",
    "target_full": "free disk space at {c}; it goes on by itself",
    "source_lost": "`start_dup {t} {d} --copy` copies all rows anew",
    "target_lost": "`start_dup {t} {d} --copy` copies all rows anew",
    "log_damaged": "`start_dup {t} {d} --copy` copies all rows anew",
    "log_limit": "`start_dup {t} {d} --copy` copies all rows anew, once {c} can be reached",
}
_BROKEN: Final = "`start_dup {t} {d} --copy` copies all rows anew, `remove_dup {t} {d}` ends it"
_WAITING: Final = "it goes on by itself; `start_dup {t} {d}` tries at once"

_LABELS: Final = {"checkpoint": "copies existing rows"}

# Of an entry's fields these are not part of its JSON form: ages change without news.
_NOT_DATA: Final = ("asked_at", "warnings")


def duplication_data(duplication: "Duplication") -> dict[str, Any]:
    """Return the JSON form; times are Unix seconds, 0 = not so."""
    data = _as_data(duplication, _NOT_DATA)
    data["partitions"] = [_as_data(each) for each in duplication.partitions]
    return data


def _as_data(value: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    taken = {each.name: getattr(value, each.name) for each in fields(value)}
    return {
        name: each.value if isinstance(each, Enum) else each
        for name, each in taken.items()
        if name not in without
    }


def cluster_data(cluster: Any) -> dict[str, Any]:
    """Return the JSON form of a remote cluster."""
    data = _as_data(cluster, ("detail",))
    return {**cluster.detail, **data}


def utc(unix_seconds: float) -> str | None:
    """Return a time as text, None for 0 and for what is no time."""
    if not unix_seconds:
        return None
    try:
        return f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return None


def ago(seconds: float) -> str:
    """Return a length of time in at most two units; tenths of a second while it is short."""
    if seconds < 10:
        return f"{max(0.1, seconds):.1f} s"
    whole = int(seconds)
    for unit, name, smaller, small in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def short_state(duplication: "Duplication") -> str:
    """Return the phase in a word or two, as a list shows it."""
    status = duplication.status.value
    if duplication.failure:
        return f"{status} (broken)"
    if duplication.paused and duplication.status is not DuplicationStatus.DS_PAUSE:
        return f"{status} (paused)"
    return status


def describe(duplication: "Duplication", *, detailed: bool = False) -> list[str]:
    """Return all that a person wants to know of one duplication, as lines."""
    it = duplication
    shown: dict[str, Any] = {"phase": f"{short_state(it)}: {_phase(it)}"}
    if it.status is DuplicationStatus.DS_APP and it.copied_rows:
        shown["copied"] = f"{it.copied_rows} rows so far"
    shown["gap"] = gap_text(it)
    shown["added"] = utc(it.created_at)
    shown["fail mode"] = it.fail_mode.value
    if it.bytes_held:
        shown["log held"] = f"{it.bytes_held} bytes"
    counts = {"conflicts": it.conflicts, "skipped": it.skipped}
    shown |= {name: count for name, count in counts.items() if count}
    if it.incomplete:
        shown["incomplete"] = "rows were skipped: the tables differ; when the target can take "
        shown["incomplete"] += f"them, `start_dup {it.table} {it.remote_cluster} --copy`"
    head = f"{it.table or 'table'} => {it.remote_cluster}:{it.remote_table}, id {it.dupid}"
    lines = [head]
    shown |= _stall(it)
    lines += [f"  {line}" for line in text_lines(Result(show=Fields(shown)))]
    if detailed and it.partitions:
        lines += [f"  {line}" for line in text_lines(Result(show=partition_table(it)))]
    return lines


def _phase(duplication: "Duplication") -> str:
    text = _PHASES[duplication.status]
    if duplication.failure:
        text = "it will not go on by itself"
    elif duplication.paused and duplication.status is not DuplicationStatus.DS_PAUSE:
        text = "it goes no further than this until it is started"
    phases = Counter(each.status.value for each in duplication.partitions)
    if len(phases) > 1:
        parts = ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items()))
        text += f" (partitions: {parts})"
    return text


def gap_text(duplication: "Duplication") -> str:
    """Return how far the target is behind, in words."""
    it = duplication
    if it.gap:
        text = f"{it.gap} {'decree' if it.gap == 1 else 'decrees'} not confirmed"
        return text + (f", {it.lag_ms} ms behind" if it.lag_ms else "")
    known = it.partitions and all(each.known for each in it.partitions)
    return "0, nothing is behind" if known else "not known yet"


def stall_lines(duplication: "Duplication") -> list[str]:
    """Return why it does not go on: cause, since when, next attempt, what helps. Or nothing."""
    return text_lines(Result(show=Fields(_stall(duplication))))


def _stall(duplication: "Duplication") -> dict[str, str]:
    it = duplication
    if not (it.failure or it.last_error or it.stalled_since):
        paused = it.paused or it.status is DuplicationStatus.DS_PAUSE
        return {"to do": what_helps(it)} if paused else {}
    shown = {"broken" if it.failure else "stalled": cause_of(it) or "no cause is told"}
    if it.stalled_since:
        shown["since"] = f"{utc(it.stalled_since)}, {ago(it.stalled_seconds)} ago"
    if it.attempts:
        shown["attempts"] = str(it.attempts)
    if it.failure:
        shown["next"] = "none: it needs a decision"
    elif it.next_attempt_at:
        seconds = it.next_attempt_seconds
        shown["next"] = f"in {ago(seconds)}" if seconds > 0 else "now"
    shown["to do"] = what_helps(it)
    return shown


def cause_of(duplication: "Duplication") -> str:
    """Return why it does not go on, in one line; empty when it does."""
    it = duplication
    if it.failure and it.last_error and it.last_error != it.failure:
        return f"{it.failure}: {it.last_error}"
    return it.failure or it.last_error


def what_helps(duplication: "Duplication") -> str:
    """Return the sentence with the command that helps."""
    it = duplication
    if it.failure:
        text = _HELP.get(it.error_class, _BROKEN)
        text = text if "--copy" in text else _BROKEN
    elif it.paused or it.status is DuplicationStatus.DS_PAUSE:
        text = "`start_dup {t} {d}` ends the pause"
    else:
        text = _HELP.get(it.error_class, _WAITING)
    return text.format(
        t=it.table or "<table>", c=it.remote_cluster, r=it.remote_table, d=it.remote_cluster
    )


def is_unfinished(partition: "DuplicationPartition", gap: int = 0) -> bool:
    """Whether a partition is not in DS_LOG yet, or more than `gap` decrees behind."""
    return partition.status is not DuplicationStatus.DS_LOG or (
        not partition.known or partition.gap > gap
    )


def partition_table(duplication: "Duplication") -> Table:
    """Return the partitions as a table."""
    columns = ("partition", "status", "start", "confirmed", "committed", "gap", "copied", "error")
    rows = [
        (
            each.index,
            each.status.value,
            each.start_decree,
            each.confirmed_decree,
            each.last_committed_decree,
            each.gap if each.known else None,
            each.copied_rows,
            each.error,
        )
        for each in duplication.partitions
    ]
    return Table(columns, rows)


def comparison(
    existing: "Duplication", requested: Mapping[str, Any], differences: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Return the stored entry beside what was asked for, as lines, and the names that differ.

    A value of None in `requested` was left to the server and differs from nothing, unless
    the server names it in `differences`.
    """
    rows = []
    different = []
    names = [*requested, *(name for name in differences if name not in requested)]
    for name in names:
        stored = getattr(existing, name, None)
        asked = requested.get(name)
        differs = name in differences or (asked is not None and asked != stored)
        if differs:
            different.append(name)
        label = _LABELS.get(name, name.replace("_", " "))
        rows.append((label, stored, asked, "<- differs" if differs else " "))
    rows.append(("id", existing.dupid, None, " "))
    rows.append(("status", short_state(existing), None, " "))
    rows.append(("added", utc(existing.created_at), None, " "))
    table = Table(("duplication", "stored", "requested", " "), rows)
    lines = [f"  {line.rstrip()}" for line in text_lines(Result(show=table))]
    return lines + [f"  {line}" for line in stall_lines(existing)], different
