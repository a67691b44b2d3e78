"""A process that writes 1-KB rows as fast as it is let: `python -m tools.bench.flood`.

Beside the process that measures, so that the two do not wait for each other. The values cannot
be compressed. It says `ready` on stdout when it is connected, begins when it gets a line on
stdin, and says how many rows it wrote when it ends by itself.
"""

import argparse
import asyncio
import sys
import time
from random import Random
from typing import Final

import pegaskv
from pegaskv.runtime.tasks import TaskScope

__all__ = ["ROW_BYTES", "command", "values"]

ROW_BYTES: Final = 1_000
BATCH: Final = 100
TASKS: Final = 8
# What the values are cut out of.
_NOISE_BYTES: Final = 1 << 20


def values(size: int = ROW_BYTES) -> list[bytes]:
    """Return some values that have nothing in common."""
    noise = Random(1).randbytes(_NOISE_BYTES)
    return [noise[start : start + size] for start in range(0, _NOISE_BYTES - size, size)]


def command(
    address: str,
    table: str,
    *,
    prefix: str,
    rows: int,
    seconds: float = 0,
    rate: int = 0,
    ttl: int = 0,
    size: int = ROW_BYTES,
) -> list[str]:
    """Return the command that writes into `rows` keys, in order, again and again.

    It ends after `seconds`, or (0) when each key was written once. `rate` is rows a second,
    0 as many as it can. With a `ttl` all rows expire so many seconds after the beginning.
    """
    numbers = {"rows": rows, "seconds": seconds, "rate": rate, "ttl": ttl, "size": size}
    flags = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "tools.bench.flood", address, table, prefix, *flags]


async def _flood(options: argparse.Namespace) -> int:
    written = 0
    begun = 0
    some = values(options.size)
    began = 0.0
    # A table that is asked for more than it can take answers Busy, and has its time.
    async with pegaskv.connect(options.address, timeout=120) as client:
        table = await client.table(options.table)
        # The first call of a client takes longer than the others.
        await table.get(b"nothing", b"")
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        began = time.perf_counter()

        async def write() -> None:
            nonlocal written, begun
            while options.seconds or begun < options.rows:
                if options.seconds and time.perf_counter() - began >= options.seconds:
                    return
                if options.rate:
                    await asyncio.sleep(began + begun / options.rate - time.perf_counter())
                first, begun = begun, begun + BATCH
                numbers = range(first, begun)
                await table.batch_set(
                    [
                        (
                            b"%s%08d" % (options.prefix.encode(), number % options.rows),
                            b"s",
                            some[number % len(some)],
                        )
                        for number in numbers
                    ],
                    options.ttl and max(1, options.ttl - int(time.perf_counter() - began)),
                )
                written += BATCH

        async with TaskScope("flood") as scope:
            for _ in range(TASKS):
                scope.start("write", write())
    return written


def main() -> int:
    """Write."""
    import uvloop

    parser = argparse.ArgumentParser(prog="python -m tools.bench.flood", description=__doc__)
    for name in ("address", "table", "prefix"):
        parser.add_argument(name)
    for name in ("rows", "rate", "ttl", "size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(_flood(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
