"""`python -m tools.bench [NAME] [--seconds N] [--rounds N] [--json FILE]`."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from tools.bench import client, duplication, memory, partitions, recovery, scan, server, steadiness
from tools.bench.report import Report, show

# In the order of the document.
BENCHES: Final[dict[str, Callable[[float, int], Report]]] = {
    "client": client.run,
    "server": server.run,
    "scan": scan.run,
    "duplication": duplication.run,
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
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    try:
        for name in BENCHES if options.name == "all" else [options.name]:
            report = BENCHES[name](options.seconds, options.rounds)
            show(report)
            print(report.as_json(), flush=True)
            if options.json is not None:
                with options.json.open("a") as file:
                    file.write(report.as_json() + "\n")
    except KeyboardInterrupt:
        return 130
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    # As an exception, so that every server that was started is ended.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
