"""The benches run, say what they measured, and the page is made of what they said."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.bench.__main__ import BENCHES
from tools.bench.document import ORDER, document, main, read_lines
from tools.bench.report import OURS, Report
from tools.bench.targets import TARGETS

# Those that need several seconds also when there is next to nothing to measure: `make soak`.
LONG = (
    "duplication",
    "memory",
    "partitions",
    "recovery",
    "replication",
    "server",
    "steadiness",
)
# What a trial of `partitions` leaves out.
NOT_IN_A_TRIAL = ("256 partitions",)


def report_of(bench: str, **comparisons: dict[str, list[float]]) -> dict[str, Any]:
    """A line of a bench, as it would be read."""
    report = Report(bench, f"About {bench}.")
    report.run = {"seconds": 1.0, "rounds": 2, "machine": {"processors seen": "2"}}
    for name, rounds in comparisons.items():
        report.start(name, "calls/s").rounds = rounds
    line: dict[str, Any] = json.loads(report.as_json())
    return line


# Each bench once.


@pytest.mark.process
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.soak] if name in LONG else [], id=name)
        for name in BENCHES
    ],
)
def test_a_bench_prints_a_table_and_one_line_of_json(name: str, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tools.bench", name, "--alone"),
            *("--seconds", "0.01", "--rounds", "1", "--json", str(file)),
        ],
        cwd=Path(__file__).parents[2],
        # No binary of a peer is looked for, and the terminal's width is nobody's.
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120 if name in LONG else 50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table, _, _ = done.stdout.partition('{"bench"')
    assert f"{name}: median (least..most) of 1 rounds" in table
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("{")]
    assert file.read_text() == line + "\n"
    (bench,) = read_lines(line).values()
    assert bench["bench"] == name
    # Whose machine it was is nobody's business.
    assert all(value and "/" not in value for value in bench["machine"].values())
    assert re.fullmatch(r"Linux [0-9.]+", bench["machine"]["kernel"])
    assert bench["results"]
    for result in bench["results"]:
        assert result["rounds"][OURS], result["name"]
    # Of those that have peers the reader is told that they were not there.
    left_out = [note for note in bench["notes"] if "is left out" in note]
    assert bool(left_out) == (name not in ("partitions", "replication", "steadiness"))
    measured = [result["name"] for result in bench["results"]]
    for target in TARGETS:
        if target.bench == name and not target.comparison.endswith(NOT_IN_A_TRIAL):
            assert any(each.startswith(target.comparison) for each in measured), target


def test_the_document_is_of_all_benches_or_of_none() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench", "scan", "--document"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 2
    assert "the document is of all benches" in done.stderr


# The page.


def test_a_page_names_each_bench_also_those_that_did_not_run() -> None:
    page = document({"scan": report_of("scan", full_scan={OURS: [500_000.0, 700_000.0]})})
    assert sorted(ORDER) == sorted(BENCHES)
    assert [each for each in ORDER if f"\n## {each}\n" not in page] == []
    assert page.count("Not part of this run.") == len(BENCHES) - 1
    assert "About scan." in page
    assert "python -m tools.bench scan --seconds 1 --rounds 2" in page
    assert "| processors seen | 2 |" in page


@pytest.mark.parametrize(("load", "told"), [(4.2, True), (0.3, False), (None, False)])
def test_a_page_says_it_when_the_machine_was_not_quiet(load: float | None, told: bool) -> None:
    line = report_of("scan", full_scan={OURS: [500_000.0]}) | {"load": load}
    assert ("**The machine was not quiet**: its load was 4.2" in document({"scan": line})) == told


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(399_000.0, "**missed**"), (400_000.0, "held"), (650_000.0, "aim reached")],
)
def test_a_figure_is_held_against_its_target(rate: float, verdict: str) -> None:
    page = document({"scan": report_of("scan", full_scan={OURS: [rate]})})
    (row,) = [line for line in page.splitlines() if line.startswith("| scan |")]
    assert row.endswith(f"| {rate:,.0f} | {verdict} |")


def test_a_ratio_is_held_against_its_target_and_a_stop_by_its_worst_round() -> None:
    page = document(
        {
            "steadiness": report_of(
                "steadiness",
                **{
                    "a sweep: read, p99": {OURS: [6.0, 8.0], "quiet": [2.0, 2.0]},
                    "a sweep: read, longest stop": {OURS: [20.0, 101.0], "quiet": [5.0, 5.0]},
                },
            )
        }
    )
    rows = [line for line in page.splitlines() if line.startswith("| steadiness | a sweep: read")]
    assert [row.rpartition(" | ")[0].rpartition("| ")[2] for row in rows] == ["3.50", "101"]
    assert all(row.endswith("**missed** |") for row in rows)


@pytest.mark.parametrize(("ratio", "told"), [(1.7, True), (1.5, False)])
def test_a_reason_is_given_for_what_was_missed_and_for_nothing_else(
    ratio: float, told: bool
) -> None:
    missed = ("partitions", "set, os, 256 partitions")
    (target,) = [each for each in TARGETS if (each.bench, each.comparison) == missed]
    rounds = {OURS: [ratio], target.peer: [1.0]}
    page = document({"partitions": report_of("partitions", **{target.comparison: rounds})})
    assert target.why
    assert (f"* {target.comparison}. {target.why}" in page) == told


def test_a_peer_that_was_not_there_leaves_its_targets_open() -> None:
    page = document({"client": report_of("client", **{"set, os, 50 tasks": {OURS: [90_000.0]}})})
    (row,) = [line for line in page.splitlines() if line.startswith("| client | set, os, 50")]
    assert row.endswith("| - | not measured |")


def test_the_last_line_of_a_bench_counts(tmp_path: Path) -> None:
    lines = [
        json.dumps(report_of("scan", full_scan={OURS: [rate]})) for rate in (1_000.0, 450_000.0)
    ]
    (tmp_path / "lines").write_text("\n".join(lines))
    page = tmp_path / "page.md"
    assert main([str(tmp_path / "lines"), "--page", str(page)]) == 0
    assert "450,000" in page.read_text()
    assert "1,000" not in page.read_text()


@pytest.mark.parametrize("line", ["no JSON", "{}", "[]", "7"])
def test_what_no_bench_wrote_is_refused_with_its_line(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines").write_text(f"{json.dumps(report_of('scan'))}\n{line}\n")
    page = tmp_path / "page.md"
    assert main([str(tmp_path / "lines"), "--page", str(page)]) == 1
    assert "line 2 is no line of a bench" in capsys.readouterr().err
    assert not page.exists()
