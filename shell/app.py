"""The `pegaskv-shell` command: arguments in, an exit status out.

A one-shot command is started thousands of times by scripts, so nothing is imported
before it is needed: the prompt and its library only at a terminal, the client only
when a command needs the cluster.
"""

import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from shell.config import ShellOptions
    from shell.context import Connect

__all__ = ["main"]


def main(arguments: "Sequence[str] | None" = None, *, connect: "Connect | None" = None) -> int:
    """Run the shell with the command line `arguments` and return the exit status.

    `connect` makes the client; tests give one without a cluster.
    """
    try:
        try:
            return _main(sys.argv[1:] if arguments is None else arguments, connect)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has left, as `head` does. Python would complain about it
        # once more when it flushes at exit, so what is unwritten goes nowhere.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the outermost loop: two lines instead of a traceback
        if sys.flags.dev_mode:
            raise
        _complain_of_bug(error)
        return 1


def _complain_of_bug(error: Exception) -> None:
    what = f"{type(error).__name__}: {error}"
    sys.stderr.write(
        f"pegaskv-shell: internal error: {what.splitlines()[0]!r}\n"
        "pegaskv-shell: hint: this is a bug; python -X dev -m shell shows where\n"
    )


def _main(arguments: "Sequence[str]", connect: "Connect | None") -> int:
    import os

    from shell.errors import ShellError

    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="surrogateescape")
    parsed = _parser().parse_args(arguments)
    try:
        options = _options(parsed, os.environ)
        return _run(parsed, options, connect or _connect)
    except ShellError as error:
        _complain(error)
        return error.status


def _connect(cluster: str, timeout_s: float) -> Any:
    from pegaskv.client import connect

    return connect(cluster, timeout=timeout_s)


def _complain(error: Exception) -> None:
    from shell.render import error_lines

    for line in error_lines(error, where="pegaskv-shell"):
        sys.stderr.write(line + "\n")


def _options(parsed: "argparse.Namespace", environment: Any) -> "ShellOptions":
    from pathlib import Path

    from shell.config import ShellOptions, choose_options, config_path, read_settings
    from shell.parser import parse_duration_ms

    path = Path(parsed.config) if parsed.config else config_path(environment)
    settings = read_settings(path, required=bool(parsed.config))
    options = choose_options(
        settings, profile=parsed.profile, cluster=parsed.cluster, environment=environment
    )
    timeout_ms = parse_duration_ms(parsed.timeout) if parsed.timeout else options.timeout_ms
    return ShellOptions(options.cluster, timeout_ms, parsed.table or options.table)


def _run(parsed: "argparse.Namespace", options: "ShellOptions", connect: "Connect") -> int:
    import asyncio

    from shell.batch import ask_on_terminal, expression, script, standard_input
    from shell.context import Context, StandardOutput
    from shell.registry import load_commands
    from shell.terminal import TerminalScreen

    commands = load_commands()
    context = Context(
        cluster=options.cluster,
        connect=connect,
        output=StandardOutput(sys.stdout, sys.stderr),
        timeout_ms=options.timeout_ms,
        table_name=options.table,
        json=parsed.json,
        yes=parsed.yes,
    )
    if sys.stdout.isatty():
        context.screen = TerminalScreen(sys.stdout)
    if not parsed.batch and sys.stdin.isatty():
        # Imported here: it takes longer than a whole one-shot command.
        from shell.interactive import run_interactive

        return asyncio.run(run_interactive(context, commands))
    if sys.stdin.isatty() and sys.stderr.isatty():
        context.ask = ask_on_terminal
    sources = [
        script(text) if kind == "-f" else expression(text, name=_place(parsed.batch, number))
        for number, (kind, text) in enumerate(parsed.batch, 1)
    ]
    return asyncio.run(
        _run_batch(context, commands, sources or [standard_input()], keep_going=parsed.keep_going)
    )


def _place(batch: "Sequence[tuple[str, str]]", number: int) -> str:
    """Return what stands before errors of a -e; a lone command has just been typed."""
    if len(batch) > 1:
        return f"-e {number}"
    return "-e" if "\n" in batch[0][1] else ""


async def _run_batch(context: Any, commands: Any, sources: Any, *, keep_going: bool) -> int:
    from shell.batch import run_batch

    try:
        return await run_batch(context, commands, sources, keep_going=keep_going)
    finally:
        await context.close()


def _parser() -> "argparse.ArgumentParser":
    import argparse

    from pegaskv.base.options import nearest
    from pegaskv.base.version import VERSION

    class Parser(argparse.ArgumentParser):
        """Answers a mistyped option with the nearest one."""

        def error(self, message: str) -> NoReturn:
            known = [flag for action in self._actions for flag in action.option_strings]
            guess = None
            if message.startswith("unrecognized arguments:"):
                guess = nearest(message.split(":", 1)[1].split()[0].partition("=")[0], known)
            hint = f"did you mean `{guess}`?" if guess else "`pegaskv-shell --help` lists them"
            self.exit(2, f"pegaskv-shell: error: {message}\npegaskv-shell: hint: {hint}\n")

    class AddBatch(argparse.Action):
        """Collects -e and -f in their order."""

        def __call__(
            self, _parser: Any, namespace: Any, values: Any, option_string: Any = None
        ) -> None:
            kind = "-f" if option_string in ("-f", "--file") else "-e"
            namespace.batch = [*namespace.batch, (kind, values)]

    parser = Parser(
        prog="pegaskv-shell",
        description="The shell of pegaskv: interactive at a terminal, or a batch of commands.",
        epilog="Exit status: 0 ok, 1 a command failed, 2 usage, 3 cannot connect, 4 already "
        "exists, 130 interrupted; of a batch, that of its first failed command. "
        "Environment: PEGASKV_CLUSTER, NO_COLOR, PAGER.",
        allow_abbrev=False,
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--cluster", metavar="HOST:PORT[,…]", help="meta servers (default 127.0.0.1:34601)"
    )
    where.add_argument("--profile", metavar="NAME", help="a cluster of the configuration file")
    add = parser.add_argument
    add("--config", metavar="FILE", help="configuration (default ~/.config/pegaskv/shell.toml)")
    add(
        "-e", "--execute", metavar="CMD", dest="batch", action=AddBatch, default=[],
        help="run this command and leave; may be repeated",
    )  # fmt: skip
    add(
        "-f", "--file", metavar="FILE", dest="batch", action=AddBatch,
        default=argparse.SUPPRESS, help="run the commands of a file; - is standard input",
    )  # fmt: skip
    add("--table", metavar="NAME", help="the table in use at the start")
    add("--json", action="store_true", help="answer with one JSON object a line")
    add("--keep-going", action="store_true", help="do not stop at the first error of a batch")
    add("--yes", action="store_true", help="do not ask before dangerous commands")
    add(
        "--timeout", metavar="MS",
        help="how long one operation may take: milliseconds, or 500ms, 5s, 2m (default 5000)",
    )  # fmt: skip
    add("--version", action="version", version=f"pegaskv-shell {VERSION}")
    return parser
