"""pure: which decrees a damaged log may have lost, of whom, and who lost nothing.

A gap is a stretch of a segment that was durable and cannot be read. What was in it
follows from what is around it: the segment's footer, if it can be read, names every
run; without it the chain of each partition must close over the gap, because within
one ballot decrees are appended in order, each once, and what is committed is never
appended again. What cannot be proved is reported as lost.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pegaskv.base.errors import CorruptionError
from pegaskv.base.types import Gpid
from pegaskv.storage.log_format import LogRun

__all__ = ["Damage", "DamageReport", "Gap", "Loss", "assess", "decode_reports", "encode_reports"]

# Table id, partition index, incarnation.
Key = tuple[int, int, int]
Wanted = Callable[[Gpid, int, int], bool]

# A decree above all others: is anything of this incarnation wanted?
_ANY_DECREE: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Loss:
    """Decrees that may be lost: from `first` (0 = unknown) to `last` (None = unknown)."""

    first: int
    last: int | None

    def __str__(self) -> str:
        if self.last is None:
            return f"decrees from {self.first} on" if self.first else "unknown decrees"
        if not self.first:
            return f"decrees up to {self.last}"
        return (
            f"decrees {self.first} to {self.last}"
            if self.last > self.first
            else (f"decree {self.first}")
        )

    def union(self, other: "Loss") -> "Loss":
        """The smallest loss that holds both."""
        last = None if self.last is None or other.last is None else max(self.last, other.last)
        return Loss(min(self.first, other.first), last)


@dataclass(frozen=True, slots=True)
class Gap:
    """A place in a segment where durable bytes cannot be read; `footer` names its runs."""

    segment: int
    cold: bool
    footer: list[LogRun] | None


@dataclass(frozen=True, slots=True)
class DamageReport:
    """What one damage of the log may have lost."""

    # The files that were kept aside.
    files: tuple[str, ...]
    losses: dict[Key, Loss]
    # Who is proved to have lost nothing, and whether anybody else may have.
    intact: frozenset[Key]
    others_too: bool

    @property
    def names(self) -> tuple[str, ...]:
        """What tells this report from others: its files; one that was lost itself has none."""
        return self.files or ("an unreadable report",)

    def loss(self, key: Key) -> Loss | None:
        """Return what the replica may have lost; None when it is proved to have lost nothing."""
        known = self.losses.get(key)
        if known is not None:
            return known
        return Loss(0, None) if self.others_too and key not in self.intact else None


@dataclass(frozen=True, slots=True)
class Damage:
    """All damage that was found and not settled yet."""

    reports: tuple[DamageReport, ...] = field(default_factory=tuple)

    def loss(self, gpid: Gpid, incarnation: int) -> Loss | None:
        """Return what a replica may have lost; None when it is proved to have lost nothing."""
        found = [
            loss
            for report in self.reports
            if (loss := report.loss((*gpid, incarnation))) is not None
        ]
        if not found:
            return None
        whole = found[0]
        for loss in found[1:]:
            whole = whole.union(loss)
        return whole

    def describe(self, gpid: Gpid, incarnation: int) -> str:
        """Say what a replica may have lost and where the files are; empty when nothing."""
        loss = self.loss(gpid, incarnation)
        if loss is None:
            return ""
        files = ", ".join(name for report in self.reports for name in report.files)
        return f"{loss} may be lost; the damaged part is kept as {files}"

    @property
    def names(self) -> frozenset[str]:
        """What `without` leaves nothing of."""
        return frozenset(name for report in self.reports for name in report.names)

    def files_of(self, gpid: Gpid, incarnation: int) -> frozenset[str]:
        """Name the kept files of every report in which a replica may have lost something."""
        return frozenset(
            name
            for report in self.reports
            if report.loss((*gpid, incarnation)) is not None
            for name in report.names
        )

    def without(self, files: frozenset[str]) -> "Damage":
        """Leave out the reports whose files are all among these."""
        return Damage(tuple(each for each in self.reports if not files.issuperset(each.names)))

    def still_wanted(self, wanted: Wanted) -> "Damage":
        """Leave out what no replica needs any more."""
        reports = []
        for report in self.reports:
            losses = {
                key: loss for key, loss in report.losses.items() if _matters(key, loss, wanted)
            }
            gone = report.losses.keys() - losses.keys()
            if losses or report.others_too:
                reports.append(
                    DamageReport(report.files, losses, report.intact | gone, report.others_too)
                )
        return Damage(tuple(reports))


def _matters(key: Key, loss: Loss, wanted: Wanted) -> bool:
    table, index, incarnation = key
    last = _ANY_DECREE if loss.last is None else loss.last
    return wanted(Gpid(table, index), incarnation, last)


def assess(
    stream: Sequence[LogRun | Gap], copies: Sequence[LogRun], files: tuple[str, ...]
) -> DamageReport:
    """Return what is lost.

    `stream` is what can be read of the hot segments, in the order it was written, with the
    gaps in their places; gaps of cold segments may stand anywhere. `copies` are the runs
    that can be read in cold segments.
    """
    gaps = [each for each in stream if not isinstance(each, LogRun)]
    survivors = [each for each in stream if isinstance(each, LogRun)] + list(copies)
    keys = {run[:3] for run in survivors}
    for gap in gaps:
        keys |= {run[:3] for run in gap.footer or ()}
    losses: dict[Key, Loss] = {}
    for key in sorted(keys):
        own = [run for run in survivors if run[:3] == key]
        for position, each in enumerate(stream):
            if isinstance(each, LogRun):
                continue
            if each.footer is not None:
                loss = _missing([run for run in each.footer if run[:3] == key], own)
            elif each.cold:
                loss = Loss(0, None)
            else:
                loss = _unchained(
                    _runs_of(stream[:position], key),
                    _runs_of(stream[position:], key),
                )
            if loss is not None:
                losses[key] = loss if key not in losses else losses[key].union(loss)
    return DamageReport(
        files,
        losses,
        frozenset(keys - losses.keys()),
        others_too=any(gap.footer is None for gap in gaps),
    )


def _runs_of(stream: Sequence[LogRun | Gap], key: Key) -> list[LogRun]:
    return [each for each in stream if isinstance(each, LogRun) and each[:3] == key]


def _missing(named: list[LogRun], own: list[LogRun]) -> Loss | None:
    """What the footer names and no surviving run of the same ballot has."""
    loss: Loss | None = None
    for run in named:
        at = run.first
        there = sorted((each.first, each.last) for each in own if each.ballot == run.ballot)
        for first, last in [*there, (run.last + 1, run.last + 1)]:
            if first > at:
                part = Loss(at, min(first - 1, run.last))
                loss = part if loss is None else loss.union(part)
            at = max(at, last + 1)
            if at > run.last:
                break
    return loss


def _unchained(before: list[LogRun], after: list[LogRun]) -> Loss | None:
    """What the gap may hide between the runs of one key on both of its sides."""
    first = 0
    if before and after and before[-1].ballot == after[0].ballot:
        first = before[-1].last + 1
    elif before:
        # A later ballot proposes again what its primary did not know committed.
        first = before[-1].committed + 1
    if not after:
        return Loss(first, None)
    last = after[0].first - 1
    return Loss(first, last) if last >= max(first, 1) else None


def encode_reports(reports: Sequence[DamageReport]) -> bytes:
    """Return the reports as the text that is kept beside the log."""
    return json.dumps(
        [
            {
                "files": list(report.files),
                "losses": [
                    [*key, loss.first, loss.last] for key, loss in sorted(report.losses.items())
                ],
                "intact": [list(key) for key in sorted(report.intact)],
                "others_too": report.others_too,
            }
            for report in reports
        ],
        indent=1,
    ).encode()


def decode_reports(data: bytes) -> tuple[DamageReport, ...]:
    """Read what `encode_reports` wrote.

    Raises:
        CorruptionError: the text is not that.

    """
    try:
        return tuple(
            DamageReport(
                tuple(str(name) for name in report["files"]),
                {
                    (int(table), int(index), int(incarnation)): Loss(
                        int(first), None if last is None else int(last)
                    )
                    for table, index, incarnation, first, last in report["losses"]
                },
                frozenset(
                    (int(table), int(index), int(incarnation))
                    for table, index, incarnation in report["intact"]
                ),
                bool(report["others_too"]),
            )
            for report in json.loads(data)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"the report of the log's damage cannot be read: {error}") from None
