"""What holds for every test: the loop they run on, which are left out, how much chance they try."""

import gc
import os
import shlex
import signal
import sys
from collections.abc import Callable, Generator, Mapping
from typing import Any

import hypothesis
import pytest

from tests.loops import CheckedLoop

# No database and no fresh seed: `make test` gives the same answer for the same code. New
# examples are the business of `make soak`. No deadline, since other work may hold the machine.
hypothesis.settings.register_profile(
    "test",
    deadline=None,
    max_examples=60,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "soak",
    parent=hypothesis.settings.get_profile("test"),
    max_examples=5_000,
    derandomize=False,
)


def pytest_configure(config: pytest.Config) -> None:
    # Who runs the tests in debug mode means the processes that they are spread over, too.
    assert getattr(config, "workerinput", {}).get("dev_mode", False) <= sys.flags.dev_mode
    soak = "soak" in config.option.markexpr
    hypothesis.settings.load_profile("soak" if soak else "test")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Somebody runs the tests in the background of a script. Servers and shells that are
        # started here would inherit that, and never be interrupted.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Servers and shells under test run as users run them: asyncio's remarks about slow callbacks
    # on a busy machine would be lines that no user sees.
    for name in ("PYTHONASYNCIODEBUG", "PYTHONDEVMODE", "PYTHONWARNINGS"):
        os.environ.pop(name, None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Start the processes that tests are spread over with the flags of this one."""
    flags = "-X dev -W error" if sys.flags.dev_mode else ""
    for spec in specs:
        spec.python = f"{shlex.quote(sys.executable)} {flags}"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["dev_mode"] = sys.flags.dev_mode


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that is skipped has failed: nobody would see that it no longer runs."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped: {report.longrepr}"
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say in which order the tests ran; `-q` keeps it back."""
    seed = config.getoption("randomly_seed", None)
    if seed is not None:
        terminalreporter.write_line(f"in the order of --randomly-seed={seed}")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], Any]]:
    """The servers run on uvloop, so the tests do."""
    return {"uvloop": CheckedLoop}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out unless `-m` speaks of them."""
    if "soak" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("soak")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking at thousands of tests in each of them."""
    gc.collect()
    gc.freeze()
