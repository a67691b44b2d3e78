"""Writes `docs/benchmarks.md` from the JSON lines of a run: `python -m tools.bench.document FILE`.

`python -m tools.bench --document` measures everything and writes the page at once. Of a bench
that is in FILE twice the last one counts; a bench that is not there is named as missing.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tools.bench.report import OURS, spread
from tools.bench.targets import MISSED, TARGETS, Target

__all__ = ["ORDER", "PAGE", "document", "main", "read_lines"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "benchmarks.md"

_OPENING: Final = """# Benchmarks

This page is written by `python -m tools.bench.document` from a run of `make bench`, and says
nothing that the run did not measure. Figures are medians, with the least and the most of the
rounds in brackets. Both sides of a comparison take turns on the same machine; a ratio is taken
within each round, ours by the peer's, so that it holds when the machine's speed drifts. Two runs
of the same thing differ by 10 to 15 %.
"""

_HELD: Final = """## What must hold

*At least* is what a change must not go below, *aim* is where we want to be. For times and sizes
less is better.
"""

# What else may run while a machine counts as quiet.
_LOAD_QUIET: Final = 1.0

ORDER: Final = (
    "client",
    "server",
    "scan",
    "duplication",
    "replication",
    "recovery",
    "steadiness",
    "partitions",
    "memory",
)


def read_lines(text: str) -> dict[str, dict[str, Any]]:
    """Return the last line of each bench, by its name.

    Raises ValueError when a line is not what a bench wrote.
    """
    benches: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            bench = json.loads(line)
            benches[bench["bench"]] = bench
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} is no line of a bench: {error!r}") from None
    return benches


def document(benches: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    lines = [_OPENING]
    lines += _machines(benches)
    lines += _load(benches)
    lines += [_HELD, *_verdicts(benches), ""]
    for name in ORDER:
        lines += _bench(name, benches[name]) if name in benches else _absent(name)
    return "\n".join(lines)


def _machines(benches: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The machine of each run; one table when it was one run."""
    seen: list[dict[str, str]] = []
    for name in ORDER:
        machine = benches.get(name, {}).get("machine")
        if machine is not None and machine not in seen:
            seen.append(machine)
    for machine in seen:
        where = [name for name in ORDER if benches.get(name, {}).get("machine") == machine]
        title = "The machine" if len(seen) == 1 else f"The machine of {', '.join(where)}"
        yield f"## {title}\n"
        yield from _table(("", ""), [(name, value) for name, value in machine.items()])
        yield ""


def _load(benches: dict[str, dict[str, Any]]) -> list[str]:
    """Say it when the machine had other work: such figures are of little worth."""
    loads = [bench["load"] for bench in benches.values() if bench.get("load") is not None]
    if not loads or max(loads) < _LOAD_QUIET:
        return []
    return [
        f"**The machine was not quiet**: its load was {max(loads):g} before the run began, so the "
        "times are longer, the rates lower and the ratios less sure than they would be.\n"
    ]


def _verdicts(benches: dict[str, dict[str, Any]]) -> list[str]:
    rows = []
    reasons: dict[str, list[str]] = {}
    for target in TARGETS:
        figure = _figure(target, benches)
        row = (
            target.bench,
            target.comparison,
            f"÷ {target.peer}" if target.peer else "worst" if target.worst else "",
            f"{'≤' if target.at_most else '≥'} {target.least:,g}",
            f"{target.aim:,g}",
        )
        if figure is None:
            rows.append((*row, "-", "not measured"))
        else:
            digits = 0 if figure >= 100 else 2
            verdict = target.verdict(figure)
            rows.append((*row, f"{figure:,.{digits}f}", verdict))
            if verdict == MISSED and target.why:
                reasons.setdefault(target.why, []).append(target.comparison)
    names = ("bench", "what", "", "at least", "aim", "measured", "")
    lines = list(_table(names, rows, right=(3, 4, 5)))
    if reasons:
        lines.append("\nOf what was missed:\n")
        lines += [f"* {'; '.join(missed)}. {why}" for why, missed in reasons.items()]
    return lines


def _figure(target: Target, benches: dict[str, dict[str, Any]]) -> float | None:
    results = benches.get(target.bench, {}).get("results", [])
    found = [one for one in results if one["name"] == target.comparison]
    found += [one for one in results if one["name"].startswith(target.comparison)]
    return target.figure(found[0]) if found else None


def _absent(name: str) -> list[str]:
    return [f"## {name}\n", "Not part of this run.\n"]


def _bench(name: str, bench: dict[str, Any]) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{bench.get('about', '').strip()}\n"
    flags = f"--seconds {bench['seconds']:g} --rounds {bench['rounds']}"
    yield f"`python -m tools.bench {name} {flags}`\n"
    rows = []
    for one in bench["results"]:
        ours = one["rounds"].get(OURS, [])
        digits = 0 if ours and min(ours) >= 100 else 2
        first = (one["name"], one["unit"], spread(ours, digits))
        peers = [side for side in one["rounds"] if side != OURS]
        if not peers:
            rows.append((*first, "", "", ""))
        for peer in peers:
            theirs = spread(one["rounds"][peer], digits)
            rows.append((*first, peer, theirs, spread(one["ratios"].get(peer, []), 2)))
            first = ("", "", "")
    yield from _table(("what", "unit", OURS, "peer", "", "ratio"), rows, right=(2, 4, 5))
    yield ""
    if bench["notes"]:
        yield from (f"* {note}" for note in bench["notes"])
        yield ""


def _table(
    names: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{'|'.join('---:' if at in right else '---' for at in range(len(names)))}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.document", description=__doc__)
    parser.add_argument("file", type=Path, help="the JSON lines of a run")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write it")
    options = parser.parse_args(arguments)
    try:
        page = document(read_lines(options.file.read_text()))
    except (OSError, ValueError) as error:
        print(f"{options.file}: {error}", file=sys.stderr)
        return 1
    options.page.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
