"""`python -m tools.bench [NAME] [--seconds N] [--rounds N] [--json FILE] [--document]`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from tools.bench import (
    client,
    duplication,
    memory,
    partitions,
    recovery,
    replication,
    scan,
    server,
    steadiness,
)
from tools.bench.document import PAGE, document, read_lines
from tools.bench.machine import describe
from tools.bench.peers import leave_out
from tools.bench.report import Report, show

# In the order of the document.
BENCHES: Final[dict[str, Callable[[float, int], Report]]] = {
    "client": client.run,
    "server": server.run,
    "scan": scan.run,
    "duplication": duplication.run,
    "replication": replication.run,
    "recovery": recovery.run,
    "steadiness": steadiness.run,
    "partitions": partitions.run,
    "memory": memory.run,
}


def main() -> int:
    """Run one bench or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=[*BENCHES, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=1.0, help="a side and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="append the JSON lines to this file")
    parser.add_argument("--alone", action="store_true", help="leave Redis and etcd out")
    parser.add_argument("--document", action="store_true", help="then write docs/benchmarks.md")
    options = parser.parse_args()
    if options.document and options.name != "all":
        parser.error("the document is of all benches")
    if options.alone:
        leave_out()
    signal.signal(signal.SIGTERM, _end)
    lines: list[str] = []
    try:
        machine = describe()
        for name in BENCHES if options.name == "all" else [options.name]:
            # What else the machine does: the bench itself has not begun.
            load = round(os.getloadavg()[0], 1) if not lines else None
            report = BENCHES[name](options.seconds, options.rounds)
            report.run = {
                "seconds": options.seconds,
                "rounds": options.rounds,
                "load": load,
                "machine": machine,
            }
            show(report)
            lines.append(report.as_json())
            print(lines[-1], flush=True)
            if options.json is not None:
                with options.json.open("a") as file:
                    file.write(lines[-1] + "\n")
    except KeyboardInterrupt:
        return 130
    if options.document:
        PAGE.write_text(document(read_lines("\n".join(lines))))
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    # As an exception, so that every server that was started is ended.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
