"""What Tab offers and what the toolbar says, at every place of a line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from pegaskv.base.errors import UnknownOperation
from shell.completer import Live, LiveNames, ShellCompleter, candidates
from shell.hints import hint
from tests.shell.fake_duplications import duplication
from tests.shell.harness import COMMANDS, Session

OPTIONS_OF_ADD_DUP = [
    *("--remote-table", "--remote-replica-count", "--no-checkpoint", "--merge", "--mesh", "--sst"),
    *("-a", "-r", "-s"),
]

LIVE = Live(
    tables=("users", "orders"),
    clusters={"beta": "h:1", "gamma": "h:2"},
    duplications={"users": {"7": "beta", "8": "gamma"}},
    dropped={"3": "old_users"},
    table_envs=("default_ttl",),
    trouble="",
)


def offered(text: str) -> list[str]:
    return [each.text for each in candidates(text, COMMANDS, LIVE)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cre", ["create", "clear_app_envs"]),
        ("mget", ["multi_get", "multi_get_range", "multi_get_sortkeys"]),
        ("use ", ["users", "orders"]),
        ("use o", ["orders", "users"][:1]),
        ("app us", ["users"]),
        ("rename or", ["orders"]),
        ("create ", ["--partition-count", "--replica-count", "--envs", "--if-not-exists"]),
        ("create t --if", ["--if-not-exists"]),
        ("create t -e d", ["default_ttl=", "durability="]),
        ("create t -e default_ttl=5,du", ["durability="]),
        ("create t -e durability=", ["fsync", "os"]),
        ("recall ", ["3"]),
        ("help exi", ["exit", "exist"]),
        ("set_app_envs du", ["durability"]),
        ("set_app_envs durability ", ["fsync", "os"]),
        ("set_app_envs default_ttl ", []),
        ("del_app_envs ", ["default_ttl"]),
        ("escape_all ", ["true", "false"]),
        ("full_scan -h pre", ["prefix"]),
        ("check_and_set h -t int_l", ["int_less", "int_less_or_equal"]),
        ("drop users --y", ["--yes"]),
        ("add_dup us", ["users"]),
        ("add_dup users ", ["beta", "gamma"]),
        ("add_dup users beta --m", ["--merge", "--mesh"]),
        ("pause_dup users ", ["beta", "gamma", "7", "8"]),
        ("query_dup users g", ["gamma"]),
        ("pause_dup orders ", []),
        ("set_dup_fail_mode users beta s", ["slow", "skip"]),
        ("remove_cluster ", ["beta", "gamma"]),
        ("wait_for ", ["dup", "table"]),
        ("wait_for dup users DS_L", ["DS_LOG"]),
        ("wait_for dup users be", ["beta"]),
        ("wait_for -t 5 table users av", ["available"]),
        ("watch query_d", ["query_dup"]),
        ("watch -n 2 query_dup us", ["users"]),
        ("watch query_dup users --det", ["--detailed"]),
        ("watch --unt", ["--until"]),
        ("get ", []),
        ("set h s ", []),
        ("nosuch ", []),
        ('use "us', []),
        ("use # ", []),
    ],
)
def test_completions_fit_their_place(text: str, expected: list[str]) -> None:
    found = offered(text)
    assert found[: len(expected)] == expected
    if not expected:
        assert found == []


def test_a_completion_replaces_what_was_typed_of_it() -> None:
    assert candidates("use us", COMMANDS, LIVE)[0].replaces == 2
    assert candidates("create t -e default_ttl=5,du", COMMANDS, LIVE)[0].replaces == 2


def test_an_option_is_offered_once() -> None:
    assert "--partition-count" not in offered("create -p 8 ")
    assert "--envs" in offered("create -e a=1 ")


@given(st.text(max_size=30), st.sampled_from(["", *sorted(COMMANDS)]))
def test_no_line_breaks_completion_or_the_toolbar(rest: str, name: str) -> None:
    line = f"{name} {rest}"
    for each in candidates(line, COMMANDS, LIVE):
        assert 0 <= each.replaces <= len(line)
    assert hint(line, COMMANDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "help lists the commands, Tab completes"),
        ("mul", "multi_set  multi_get  multi_get_range"),
        ("set", "set <hash_key> <sort_key> <value> [ttl] — write one row"),
        ("set ", "<hash_key>: the hash key"),
        ("set h s", "<sort_key>: the sort key"),
        ("set h s v ", "[ttl], number: time to live in seconds"),
        ("create t ", "options: [-p <partition_count>]"),
        ("create t -p", "-p, --partition-count: how many partitions, a power of two"),
        ("create t -p ", "partition_count, number: how many partitions"),
        ("escape_all ", "[on], true or false: true or false (true false)"),
        ("get h s ", "nothing more; Enter runs it"),
        ("gte ", 'unknown command "gte"; did you mean `get`?'),
        ('set "a', "the quote is open: Enter goes on in the next line"),
        (r'set "\q" ', r"unknown escape \q in double quotes"),
        ("watch query_dup ", "<table>: the table's name"),
        ("watch ", "<command>, a command with its arguments: the command to repeat"),
        ("wait_for ", "<condition>: dup <table> [cluster] <phase>"),
        ("check_and_set h -t ", "check_type: what must hold of that row (no_check not_exist"),
    ],
)
def test_the_toolbar_says_what_comes_next(text: str, said: str) -> None:
    assert hint(text, COMMANDS).startswith(said)


class Seconds:
    """A clock that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def complete(completer: ShellCompleter, text: str) -> list[str]:
    event = CompleteEvent(completion_requested=True)
    return [each.text async for each in completer.get_completions_async(Document(text), event)]


async def test_names_come_from_the_cluster_and_are_kept_a_while() -> None:
    session, seconds = Session(), Seconds()
    session.cluster.create("orders", envs={"durability": "os"})
    completer = ShellCompleter(COMMANDS, LiveNames(session.context, now=seconds))
    assert await complete(completer, "use ") == ["users", "orders"]
    asked = len(session.cluster.log)
    session.cluster.create("later")
    assert await complete(completer, "use ") == ["users", "orders"]
    assert len(session.cluster.log) == asked
    seconds.now += 2
    assert await complete(completer, "use l") == ["later"]
    session.context.table_name = "orders"
    assert await complete(completer, "del_app_envs ") == ["durability"]
    await session.run("drop users --yes")
    seconds.now += 2
    assert await complete(completer, "recall ") == ["1"]


async def test_duplications_and_clusters_come_from_the_cluster_too() -> None:
    session = Session()
    completer = ShellCompleter(COMMANDS, LiveNames(session.context, now=Seconds()))
    session.cluster.duplications.entries.append(duplication())
    await session.run("add_cluster delta h:1 4")
    assert await complete(completer, "add_dup users ") == ["delta", *OPTIONS_OF_ADD_DUP]
    assert (await complete(completer, "pause_dup users "))[:2] == ["beta", "7"]


async def test_a_server_without_duplication_has_nothing_to_complete() -> None:
    session = Session()

    async def list_clusters(**_: float) -> list[object]:
        raise UnknownOperation("operation 86")

    client = await session.context.client()
    client.admin.list_clusters = list_clusters  # type: ignore[method-assign, assignment]
    names = LiveNames(session.context, now=Seconds())
    assert await complete(ShellCompleter(COMMANDS, names), "use ") == ["users"]
    assert (names.live.trouble, names.live.nodes) == ("", 1)


async def test_a_dead_cluster_is_asked_once_and_left_alone() -> None:
    session, seconds = Session(), Seconds()
    session.cluster.unreachable = True
    names = LiveNames(session.context, now=seconds)
    completer = ShellCompleter(COMMANDS, names)
    for _ in range(3):
        assert await complete(completer, "use ") == []
    assert len(session.cluster.log) == 1
    assert "no meta server answers" in names.live.trouble
    session.cluster.unreachable = False
    seconds.now += 5
    assert await complete(completer, "use ") == ["users"]
    assert names.live.trouble == ""


async def test_a_silent_cluster_delays_a_completion_briefly() -> None:
    session, seconds = Session(), Seconds()
    session.cluster.silent = True
    names = LiveNames(session.context, now=seconds)
    completer = ShellCompleter(COMMANDS, names)
    assert await complete(completer, "use ") == []
    assert names.live.trouble == "slow to answer"
    assert not names.stale


def test_what_is_known_is_offered_without_a_loop() -> None:
    async def nobody() -> None: ...

    names = LiveNames(Session().context, now=Seconds())
    names.live.tables = ("users",)
    found = ShellCompleter(COMMANDS, names).get_completions(Document("use u"), CompleteEvent())
    assert [each.text for each in found] == ["users"]
