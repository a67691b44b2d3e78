"""What a command is: one entry from which everything else follows.

Parsing, `help`, completion, the hint in the toolbar, the question before a
dangerous command and `docs/shell.md` are all read from the same entry, so they
cannot disagree. A command is a function with `@command` above it; it takes a
`Context` and its arguments by name, and returns what `shell.render` can show.
A test walks the registry and fails when an entry lacks any of its parts.
"""

import importlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from shell.render import Result

__all__ = [
    "Argument",
    "Command",
    "Kind",
    "Needs",
    "Option",
    "Source",
    "command",
    "load_commands",
]

MODULES: Final = (
    "shell.commands.session",
    "shell.commands.cluster",
    "shell.commands.tables",
    "shell.commands.replicas",
    "shell.commands.duplication",
    "shell.commands.waiting",
    "shell.commands.data",
    "shell.commands.multi",
    "shell.commands.scans",
    "shell.commands.checks",
)


class Kind(Enum):
    """How a word becomes a value."""

    BYTES = "bytes"
    TEXT = "text"
    INTEGER = "number"
    BOOLEAN = "true or false"
    CHOICE = "choice"
    DURATION = "milliseconds, or with a unit: 500ms, 5s, 2m"
    SECONDS = "seconds, or with a unit: 500ms, 5s, 2m"
    ENVS = "k=v,…"
    COMMAND = "a command with its arguments"
    SWITCH = "switch"


class Source(Enum):
    """Where the completions of an argument come from."""

    NOTHING = "nothing: only the caller knows"
    CHOICES = "the choices of the argument"
    COMMANDS = "names of commands"
    TABLES = "names of the tables that serve"
    ENVS = "names of table envs"
    TABLE_ENVS = "names of the envs that the table in use has"
    DROPPED_IDS = "ids of dropped tables"
    CLUSTERS = "names of the clusters that tables can be duplicated to"
    NODES = "addresses of the replica servers"
    PARTITIONS = "partitions, as table id and index"
    PARTITIONS_AND_TABLES = "partitions and names of tables"
    DUPLICATIONS = "remote clusters and ids of the duplications of the table named before"
    CONDITIONS = "what `wait_for` waits for, word by word"


class Needs(Enum):
    """What must be there before a command can run."""

    NOTHING = "nothing"
    CLUSTER = "a cluster"
    TABLE = "a table in use"


@dataclass(frozen=True, slots=True)
class Argument:
    """A value that a command takes by its place."""

    name: str
    help: str
    kind: Kind = Kind.BYTES
    required: bool = True
    default: Any = None
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    completes: Source = Source.NOTHING

    @property
    def source(self) -> Source:
        """Where completions come from; choices and booleans bring their own."""
        if self.kind in (Kind.CHOICE, Kind.BOOLEAN):
            return Source.CHOICES
        return self.completes

    @property
    def words(self) -> tuple[str, ...]:
        """The words that the argument may be, when they can be listed."""
        return ("true", "false") if self.kind is Kind.BOOLEAN else self.choices

    @property
    def usage(self) -> str:
        """The argument as a usage line shows it."""
        return f"<{self.name}>" if self.required else f"[{self.name}]"


@dataclass(frozen=True, slots=True)
class Option(Argument):
    """A value that a command takes by a flag: `-p 8` or `--partition-count 8`.

    `name` is the keyword of the command's function, and with `-` for `_` the long form;
    Pegasus's spelling with `_` is understood too.
    """

    required: bool = False
    short: str = ""
    repeated: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """Every way to write the flag, the short one first."""
        long = "--" + self.name.replace("_", "-")
        return (self.short, long) if self.short else (long,)

    @property
    def usage(self) -> str:
        """The option as a usage line shows it."""
        flag = self.flags[0]
        text = flag if self.kind is Kind.SWITCH else f"{flag} <{self.metavar}>"
        return text if self.required else f"[{text}]"

    @property
    def metavar(self) -> str:
        """The placeholder of the option's value."""
        return "|".join(self.words) if 0 < len(self.words) <= 2 else self.name


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the shell.

    `repeated` is a group of arguments that may follow any number of times, at least
    `repeated_minimum`; the function gets them as a list (of tuples, when the group has
    more than one) under the name `repeated_name`. `danger` says what a dangerous command
    takes away, and makes the shell ask first; with `danger_when`, only if that switch is
    given. `json` describes `data` in the JSON form. One that is `endless` is ended by
    Ctrl-C as a matter of course.
    """

    name: str
    group: str
    help: str
    run: Callable[..., Awaitable["Result"]]
    json: str
    examples: tuple[str, ...]
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    repeated: tuple[Argument, ...] = ()
    repeated_name: str = ""
    repeated_minimum: int = 0
    details: str = ""
    danger: str = ""
    danger_when: str = ""
    endless: bool = False
    needs: Needs = Needs.CLUSTER
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """The command with its arguments on one line."""
        parts = [self.name, *(argument.usage for argument in self.arguments)]
        if self.repeated:
            group = " ".join(f"<{argument.name}>" for argument in self.repeated)
            more = f"[{group} …]"
            parts.append(f"{group} {more}" if self.repeated_minimum else more)
        parts += [option.usage for option in self.options]
        return " ".join(parts)

    @property
    def nested(self) -> Argument | None:
        """The argument that is a whole command itself, if it has one; then its only one."""
        for argument in self.arguments:
            if argument.kind is Kind.COMMAND:
                return argument
        return None

    @property
    def all_options(self) -> tuple[Option, ...]:
        """Its own options, and `--yes` when it is dangerous."""
        return (*self.options, YES) if self.danger else self.options

    def option(self, flag: str) -> Option | None:
        """Return the option that `flag` (`-p`, `--partition-count`) names, or None."""
        wanted = flag
        if flag.startswith("--"):
            wanted = "--" + flag[2:].replace("_", "-")
        for option in self.all_options:
            if wanted in option.flags:
                return option
        return None


YES: Final = Option("yes", "do it without asking", Kind.SWITCH, default=False)

_COMMANDS: dict[str, Command] = {}


def command(
    name: str, **entry: Any
) -> Callable[[Callable[..., Awaitable["Result"]]], Callable[..., Awaitable["Result"]]]:
    """Enter the function below into the registry under `name`; see `Command` for the rest."""

    def enter(run: Callable[..., Awaitable["Result"]]) -> Callable[..., Awaitable["Result"]]:
        group = run.__module__.rpartition(".")[2]
        made = Command(name=name, group=group, run=run, **entry)
        for word in (name, *made.aliases):
            assert word not in _COMMANDS, f"two commands are called {word}"
            _COMMANDS[word] = made
        return run

    return enter


def load_commands() -> Mapping[str, Command]:
    """Return every command by its name and by its aliases, in the order of their modules."""
    for module in MODULES:
        importlib.import_module(module)
    return _COMMANDS
