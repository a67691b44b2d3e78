"""`python -m tools.bench [NAME] [--seconds N] [--rounds N] [--json FILE]`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tools.bench import client, duplication
from tools.bench.report import Comparison, show

BENCHES: Final[dict[str, Callable[[float, int], list[Comparison]]]] = {
    "client": client.run,
    "duplication": duplication.run,
}


def main() -> int:
    """Run one bench or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(BENCHES), help="default: all")
    parser.add_argument("--seconds", type=float, default=2.0, help="a side and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="append the JSON lines to this file")
    options = parser.parse_args()
    for name in [options.name] if options.name else sorted(BENCHES):
        line = show(name, BENCHES[name](options.seconds, options.rounds))
        print(line)
        if options.json is not None:
            with options.json.open("a") as file:
                file.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
