"""No command may lack a part: what a user needs to know follows from its entry alone."""

import inspect
from pathlib import Path

import pytest

from pegaskv.base.types import CheckType
from pegaskv.meta.envs import ENVS as SERVER_ENVS
from shell.commands.checks import MUTATION_COMMANDS
from shell.commands.session import GROUPS, help_lines
from shell.completer import ENVS
from shell.context import Context
from shell.parser import parse
from shell.registry import Argument, Command, Kind, Option, Source
from tests.shell.harness import COMMANDS
from tools.shell_docs import document

UNIQUE = list(dict.fromkeys(COMMANDS.values()))

# Words of Pegasus's shell; that each is there is what lets its users begin at once.
PEGASUS = [
    "help",
    "version",
    "exit",
    "use",
    "timeout",
    "escape_all",
    "hash",
    "cluster_info",
    "nodes",
    "server_info",
    "get_meta_level",
    "set_meta_level",
    "propose",
    "balance",
    "get_replica_count",
    "set_replica_count",
    "ddd_diagnose",
    "ls",
    "app",
    "create",
    "drop",
    "recall",
    "rename",
    "set",
    "get",
    "del",
    "exist",
    "ttl",
    "incr",
    "multi_set",
    "multi_get",
    "multi_get_range",
    "multi_get_sortkeys",
    "count",
    "multi_del",
    "multi_del_range",
    "hash_scan",
    "full_scan",
    "count_data",
    "check_and_set",
    "check_and_mutate",
    "set_app_envs",
    "get_app_envs",
    "del_app_envs",
    "clear_app_envs",
    "add_dup",
    "query_dup",
    "dups",
    "pause_dup",
    "start_dup",
    "remove_dup",
    "set_dup_fail_mode",
]


def test_the_commands_have_pegasus_names() -> None:
    assert set(PEGASUS) <= set(COMMANDS)


@pytest.mark.parametrize("command", UNIQUE, ids=lambda command: command.name)
def test_an_entry_is_complete(command: Command) -> None:
    assert command.help[0].islower()
    assert not command.help.endswith(".")
    assert command.json
    assert command.examples
    assert command.group in GROUPS
    assert bool(command.repeated) == bool(command.repeated_name)
    text = "\n".join(help_lines(command))
    for argument in (*command.arguments, *command.repeated, *command.all_options):
        assert argument.help
        assert argument.help in text
        assert argument.name.isidentifier()
        if argument.source is Source.CHOICES:
            assert argument.words, f"<{argument.name}> offers nothing"
        # Only what the caller alone can know may be without completion.
        if argument.source is Source.NOTHING:
            assert argument.kind is not Kind.ENVS
            assert argument.name not in ("table", "command", "table_id", "name") or (
                command.name == "create"
            )
    optional = [argument.required for argument in command.arguments]
    assert optional == sorted(optional, reverse=True), "an optional argument stands before others"


@pytest.mark.parametrize("command", UNIQUE, ids=lambda command: command.name)
def test_flags_are_told_apart(command: Command) -> None:
    flags = [flag for option in command.all_options for flag in option.flags]
    assert len(flags) == len(set(flags))
    for option in command.all_options:
        assert not option.short or (len(option.short) == 2 and option.short.startswith("-"))
        for flag in option.flags:
            assert command.option(flag) == option
            assert command.option(flag.replace("-", "_").replace("__", "--", 1)) == option or (
                not flag.startswith("--")
            )


@pytest.mark.parametrize("command", UNIQUE, ids=lambda command: command.name)
def test_the_examples_are_of_the_command_and_parse(command: Command) -> None:
    for example in command.examples:
        invocation = parse(example, COMMANDS)
        assert invocation is not None
        assert invocation.command is command


@pytest.mark.parametrize("command", UNIQUE, ids=lambda command: command.name)
def test_a_function_takes_exactly_the_arguments_of_its_entry(command: Command) -> None:
    invocation = parse(command.examples[-1], COMMANDS)
    assert invocation is not None
    signature = inspect.signature(command.run)
    bound = signature.bind(Context("x", lambda *_: None, None), **invocation.values)  # type: ignore[arg-type]
    taken = {**bound.arguments, **bound.arguments.get("options", {})}
    taken |= bound.arguments.get("filters", {})
    for argument in (*command.arguments, *command.options):
        assert argument.name in taken


def test_every_check_has_its_word() -> None:
    option = COMMANDS["check_and_set"].option("-t")
    assert option is not None
    assert option.choices == tuple(check.name.lower() for check in CheckType)


def test_completion_knows_the_envs_of_the_server() -> None:
    assert set(ENVS) == set(SERVER_ENVS)


def test_mutations_are_parsed_by_the_same_rules() -> None:
    assert set(MUTATION_COMMANDS) == {"set", "del", "ok", "abort"}


def test_the_page_of_the_documentation_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "shell.md"
    assert page.read_text() == document(), "run: python -m tools.shell_docs"


def test_an_option_is_an_argument_that_is_not_required() -> None:
    assert not Option("x", "help").required
    assert Argument("x", "help").required
