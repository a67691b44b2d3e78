"""The command `pegaskv`: arguments to options, one server, one exit status.

Whatever goes wrong ends in one readable line on stderr that says what to do, never in
a traceback: the reader is an operator at night, or a script that looks at the status.

    0  clean stop (SIGTERM, which lets other servers take over first; SIGINT)
    1  anything else, also a disk that failed while the server ran
    2  wrong usage or configuration
    3  an address is in use
    4  the data directory is locked, of another format, or cannot be used

The line `pegaskv standalone ready on HOST:PORT (http HOST:PORT)` on stdout (and likewise for
`meta` and `replica`) is the sign that requests are served; nothing else is written there.
"""

import argparse
import asyncio
import dataclasses
import errno
import gc
import logging
import os
import resource
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from pegaskv.base.errors import (
    ConfigurationError,
    CorruptionError,
    DirectoryUnusable,
    PegasKVError,
    UnsupportedFormat,
)
from pegaskv.base.version import DATA_FORMAT, PROTOCOL_VERSION, VERSION
from pegaskv.runtime.signals import StopSignals
from pegaskv.server.arguments import make_parser
from pegaskv.server.config import Config, config_from_text, read_config
from pegaskv.server.listening import ListenError
from pegaskv.server.logs import escape, set_up_logs
from pegaskv.server.memory_budget import free_memory
from pegaskv.storage.local_disk import LocalDisk

if TYPE_CHECKING:
    from pegaskv.server.host import Host

__all__ = ["ExitStatus", "main"]

_log = logging.getLogger(__name__)

# Below so many files there is no room for a server; below so many, a warning says what is missing.
_FILES_LEAST: Final = 48
_FILES_COMFORTABLE: Final = 1_024
# How long a thread may keep the interpreter while another waits for it. With Python's 5 ms the
# loop waits so long beside each flush, scan or sweep, and a sync that is done as long for the loop.
_SWITCH_INTERVAL_S: Final = 0.0001
# More containers than requests under way have, in three generations.
_COLLECTED_AFTER: Final = (20_000, 20, 100)


class ExitStatus(IntEnum):
    """How the process ended; scripts rely on the numbers."""

    CLEAN_STOP = 0
    OTHER = 1
    USAGE = 2
    ADDRESS_IN_USE = 3
    DIRECTORY = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (that of the process by default); return the exit status."""
    # Whatever this process creates is for its user alone.
    os.umask(0o077)
    arguments = make_parser(_version()).parse_args(argv)
    if arguments.command == "onebox":
        from pegaskv.server.onebox import run_onebox

        return run_onebox(arguments)
    style = arguments.log_format or "text"
    try:
        config = _config(arguments)
        style = config.log.format
        data = _data_directory(config)
    except ConfigurationError as error:
        return _fail(ExitStatus.USAGE, error, style)
    set_up_logs(level=config.log.level, style=style)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            serving = _serve(
                config,
                data,
                accept_loss=arguments.accept_loss,
                read_again=lambda: _config(arguments),
            )
            return runner.run(serving)
    except KeyboardInterrupt:
        # Before the signals were in our hands; nothing was served.
        return _fail(ExitStatus.OTHER, "interrupted while starting", style)
    except (PegasKVError, OSError) as error:
        return _fail(_status_of(error), _with_hint(error, data), style)
    except Exception as error:  # noqa: BLE001 - the outermost frame: one line, then the end
        _log.debug("the traceback of the failure", exc_info=True)
        return _fail(
            ExitStatus.OTHER,
            f"internal error: {type(error).__name__}: {error} "
            "(this is a bug; [log] level = debug shows where)",
            style,
        )


async def _serve(
    config: Config, data: Path, *, accept_loss: bool, read_again: Callable[[], Config]
) -> int:
    # Somebody has changed [clusters]; or the terminal is gone, which is no reason to end.
    with StopSignals(on_hangup=lambda: _read_clusters_again(server, read_again)) as signals:

        def on_ready() -> None:
            _spare_the_loop()
            if not signals.stop.is_set():
                _say_ready(config.role, server.address, server.http_address)

        server = _server_class(config.role)(
            config,
            data,
            files_max=_raise_file_limit(),
            free_memory=lambda: free_memory(LocalDisk()),
            accept_loss=accept_loss,
            process_id=os.getpid(),
            on_ready=on_ready,
            on_fatal=lambda error: signals.stop.set(),
        )
        try:
            await server.start()
            await signals.stop.wait()
            if server.failure is None:
                _log.info("stopping: %s", signals.reason)
        finally:
            # Ctrl-C is for all at once, or for somebody in a hurry: nobody would take over.
            await server.stop(hand_over=signals.reason == "SIGTERM")
    if server.failure is not None:
        raise server.failure
    return ExitStatus.CLEAN_STOP


def _server_class(role: str) -> "type[Host]":
    # Imported here: --version and a wrong flag need none of it.
    if role == "meta":
        from pegaskv.server.meta_server import MetaServer

        return MetaServer
    if role == "replica":
        from pegaskv.server.replica_server import ReplicaServer

        return ReplicaServer
    from pegaskv.server.standalone import Standalone

    return Standalone


def _spare_the_loop() -> None:
    """Keep the garbage collector from looking at what is no garbage, again and again.

    What was imported stays: a full collection that looks at it holds the loop for 20 ms. And a
    request of thousands of rows is a burst of objects that go by themselves.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTED_AFTER)


def _read_clusters_again(server: "Host", read: Callable[[], Config]) -> None:
    try:
        config = read()
    except ConfigurationError as error:
        _log.error("SIGHUP: the configuration is not taken, the old one holds: %s", error)
        return
    server.read_clusters_again(config)
    known = ", ".join(sorted(config.clusters)) or "none"
    _log.info("SIGHUP: [clusters] was read again: %s; other options need a new start", known)


def _say_ready(role: str, address: str, http_address: str) -> None:
    line = f"pegaskv {role} ready on {address} (http {http_address})\n"
    try:
        sys.stdout.write(line)
        sys.stdout.flush()
    except OSError:
        # Whoever started us has closed its end; that is no reason not to serve. What is left
        # in the buffer must go somewhere, or the end of the process would fail by it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _log.info("%s", line.rstrip())


def _raise_file_limit() -> int:
    """Allow as many open files as the system lets us; return the number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            _log.debug("the limit of open files stays at %d", soft)
    if soft < _FILES_LEAST:
        raise PegasKVError(
            f"the process may have only {soft} files open, and needs {_FILES_LEAST} at least",
            hint="raise it by ulimit -n",
        )
    if soft < _FILES_COMFORTABLE:
        _log.warning(
            "the process may have only %d files open: connections and tables are limited by it "
            "(raise it by ulimit -n)",
            soft,
        )
    return soft


# The command line.


def _version() -> str:
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"pegaskv {VERSION} (protocol {PROTOCOL_VERSION}, data format {DATA_FORMAT}, "
        f"Python {python}, uvloop {uvloop.__version__})"  # type: ignore[attr-defined]
    )


def _config(arguments: argparse.Namespace) -> Config:
    role = arguments.command
    if arguments.config is None:
        config = config_from_text("", role)
    else:
        config = read_config(LocalDisk(), arguments.config.absolute(), role)
    changes = {
        name: value
        for name in ("data", "listen", "http")
        if (value := getattr(arguments, name)) is not None
    }
    if "data" in changes and not changes["data"]:
        raise ConfigurationError("--data: is empty", hint="give the path of a directory")
    try:
        config = config.with_server(**changes)
        if getattr(arguments, "meta", None) is not None:
            config = config.with_metas(arguments.meta)
    except ConfigurationError as error:
        # It was a flag if a flag was given: the file alone was valid.
        message = error.message.replace("[server] ", "--").replace("[replica] metas", "--meta")
        raise ConfigurationError(message, hint=error.hint) from None
    if arguments.log_format is not None:
        log = dataclasses.replace(config.log, format=arguments.log_format)
        config = dataclasses.replace(config, log=log)
    return config


def _data_directory(config: Config) -> Path:
    if config.server.data:
        return Path(config.server.data).absolute()
    base = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(base):
        home = os.environ.get("HOME", "")
        if not os.path.isabs(home):
            raise ConfigurationError(
                "there is no home directory to keep the data in", hint="say --data DIR"
            )
        base = os.path.join(home, ".local", "share")
    return Path(base) / "pegaskv" / config.role


# Failures.


def _status_of(error: BaseException) -> ExitStatus:
    if isinstance(error, ListenError):
        return ExitStatus.ADDRESS_IN_USE if error.in_use else ExitStatus.USAGE
    if isinstance(error, ConfigurationError):
        return ExitStatus.USAGE
    if isinstance(error, DirectoryUnusable | UnsupportedFormat | CorruptionError):
        return ExitStatus.DIRECTORY
    return ExitStatus.OTHER


def _with_hint(error: BaseException, data: Path) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{text} (free space on the disk that holds {data}, then start again)"
        return f"{text} (the data directory is {data}; the system's log may say more)"
    return text


def _fail(status: ExitStatus, error: object, style: str) -> int:
    """Write the one line that says why the process ends."""
    if style == "json":
        set_up_logs(level="error", style=style)
        logging.getLogger("pegaskv").error("%s", error)
    else:
        try:
            sys.stderr.write(f"pegaskv: {escape(str(error))}\n")
            sys.stderr.flush()
        except OSError:
            pass  # The status still says it.
    return int(status)
