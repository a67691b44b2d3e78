import asyncio
import os
import signal
import subprocess
import sys

import pytest

from pegaskv.runtime.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_sigterm_and_sigint_set_the_stop_event(number: signal.Signals) -> None:
    with StopSignals() as signals:
        assert not signals.stop.is_set()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(signals.stop.wait(), 10)
        assert signals.reason == number.name


async def test_sighup_calls_the_hook_and_does_not_stop() -> None:
    called = asyncio.Event()
    with StopSignals(on_hangup=called.set) as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(called.wait(), 10)
        assert not signals.stop.is_set()


async def test_the_handlers_of_before_come_back() -> None:
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    before = [signal.getsignal(number) for number in numbers]
    with StopSignals(on_hangup=lambda: None) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(signals.stop.wait(), 10)
    assert [signal.getsignal(number) for number in numbers] == before


STUBBORN = """
import asyncio, time, uvloop
from pegaskv.runtime.signals import StopSignals

async def main():
    with StopSignals() as signals:
        print("ready", flush=True)
        await signals.stop.wait()
        print("stopping", flush=True)
        time.sleep(60)  # a loop that is stuck

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


def test_a_second_sigint_ends_the_process_even_when_the_loop_is_stuck() -> None:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
    finally:
        process.kill()
        process.communicate()
