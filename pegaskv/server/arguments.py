"""The command line of `pegaskv`: which commands and flags there are, and what they mean."""

import argparse
from pathlib import Path
from typing import Final

__all__ = ["make_parser"]

_FLAGS: Final = (
    "Flags win over the file; no file means defaults. The process writes one line to stdout when "
    "it serves, and its log to stderr."
)
_DATA: Final = "in $XDG_DATA_HOME or ~/.local/share"


def make_parser(version: str) -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="pegaskv",
        description="A distributed, persistent key-value store.",
        epilog="Exit status: 0 clean stop, 1 other, 2 usage or configuration, "
        "3 address in use, 4 data directory locked, of another format or unusable.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_server(
        commands,
        "standalone",
        "one server that keeps everything: to try, develop and embed",
        "Run one meta server and one replica server in one process, with one copy of the data.",
        listen="127.0.0.1:34601",
        http="127.0.0.1:34101",
    )
    _add_server(
        commands,
        "meta",
        "the server of a cluster that knows its tables and places them",
        "Run the meta server of a cluster: tables, who serves which partition, repair, balance.",
        listen="127.0.0.1:34601",
        http="127.0.0.1:34101",
    )
    replica = _add_server(
        commands,
        "replica",
        "a server of a cluster that keeps rows",
        "Run a replica server of a cluster. It joins the cluster of the meta servers that are "
        "named, and is given partitions by them.",
        listen="127.0.0.1:34801",
        http="127.0.0.1:34201",
    )
    replica.add_argument(
        "--meta",
        metavar="HOST:PORT[,...]",
        help="the meta servers of the cluster (default: 127.0.0.1:34601)",
    )
    _add_onebox(commands)
    return parser


def _add_server(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    description: str,
    *,
    listen: str,
    http: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{description} {_FLAGS}", allow_abbrev=False
    )
    add = parser.add_argument
    add("--config", metavar="FILE", type=Path, help=f"TOML; conf/{name}.toml has every option")
    add(
        "--data",
        metavar="DIR",
        help=f"where the data is kept (default: pegaskv/{name} {_DATA})",
    )
    add(
        "--listen",
        metavar="HOST:PORT",
        help=f"where clients connect; port 0 picks one (default: {listen})",
    )
    add(
        "--http",
        metavar="HOST:PORT|none",
        help=f"where metrics and health are served (default: {http})",
    )
    add("--log-format", choices=("text", "json"), help="how log lines look (default: text)")
    if name == "meta":
        parser.set_defaults(accept_loss=False)
    else:
        add(
            "--accept-loss",
            action="store_true",
            help="open partitions that may have lost acknowledged writes, which otherwise stay "
            "closed",
        )
    return parser


def _add_onebox(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    onebox = commands.add_parser(
        "onebox",
        help="a whole cluster on this machine: to develop and test",
        description="Run a cluster of several processes on 127.0.0.1: one meta server and some "
        "replica servers. They go on when this command has ended.",
        allow_abbrev=False,
    )
    actions = onebox.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text, description=f"{text}.", allow_abbrev=False)
        parser.add_argument(
            "--dir",
            metavar="DIR",
            help="where the cluster keeps its data, logs and state (default: pegaskv/onebox in "
            "$XDG_STATE_HOME or ~/.local/state)",
        )
        return parser

    start = add("start", "start the cluster, or those of its servers that do not run")
    start.add_argument(
        "--replica", metavar="N", type=int, help="replica servers of a new cluster (default: 3)"
    )
    start.add_argument(
        "--meta", metavar="N", type=int, help="meta servers of a new cluster (default: 1)"
    )
    start.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML, for all servers; remembered. Flags of addresses and data win over it",
    )
    add("stop", "stop all servers cleanly, replica servers first")
    add("list", "show all servers: process, address, state")
    for name, text in (
        ("kill", "end one server at once, as a crash would (SIGKILL)"),
        ("restart", "stop one server cleanly if it runs, and start it again"),
    ):
        add(name, text).add_argument("name", metavar="NAME", help="for example replica2, or meta1")
    clear = add("clear", "remove the data, logs and state of a cluster that is stopped")
    clear.add_argument("--yes", action="store_true", help="do it, without being asked")
