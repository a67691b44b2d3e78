"""The demonstration counts what it claims to count, and leaves no server behind."""

from pathlib import Path

import pytest
from rich.console import Console

from pegaskv.errors import Busy, Timeout
from pegaskv.server.onebox import Onebox, OneboxError
from tools.demo_cluster import Cluster, Figures, Witness

STATE = """{"format": 1, "config": "", "servers": [
 {"name": "meta1", "role": "meta", "listen": "127.0.0.1:1", "http": "127.0.0.1:2",
  "process": null, "stopped": false},
 {"name": "replica1", "role": "replica", "listen": "127.0.0.1:3", "http": "127.0.0.1:4",
  "process": null, "stopped": false}]}
"""


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


def test_a_row_that_is_missing_or_old_is_a_lost_one() -> None:
    witness = Witness(Figures())
    for number in range(4):
        witness.on_written((b"writer", b"%d" % number), b"new", 0.5 * number)
    rows = dict(witness.acknowledged)
    witness.look_for(rows)
    assert (witness.out.looked_for, witness.out.lost) == (4, 0)
    rows[b"writer", b"1"] = b"old"
    del rows[b"writer", b"2"]
    witness.look_for(rows)
    assert witness.out.lost == 2
    assert witness.out.longest_s == 1.5


def test_a_write_of_unknown_outcome_is_not_counted_as_refused() -> None:
    witness = Witness(Figures())
    witness.on_failed(Timeout("late", maybe_applied=True))
    witness.on_failed(Timeout("never sent"))
    witness.on_failed(Busy("later"))
    assert (witness.out.unknown, witness.out.failed) == (1, 2)


def test_what_never_started_is_stopped_without_a_word(tmp_path: Path, console: Console) -> None:
    Cluster(tmp_path / "cluster", console).stop()
    assert not (tmp_path / "cluster").exists()


def test_servers_that_do_not_stop_are_killed(tmp_path: Path, console: Console) -> None:
    (tmp_path / "onebox.json").write_text(STATE)
    killed: list[str] = []

    class StuckOnebox(Onebox):
        """One whose servers do not end when they are asked to."""

        def stop(self) -> None:
            raise OneboxError("it has not ended")

        def kill(self, name: str) -> None:
            killed.append(name)
            raise OneboxError("it does not run")

    Cluster(tmp_path, console, StuckOnebox).stop()
    assert killed == ["meta1", "replica1"]
