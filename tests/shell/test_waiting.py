"""`wait_for` and `watch`, in time that a test moves and on a screen that it reads."""

import asyncio
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyte
import pytest

from pegaskv.base.errors import OperationDisabled, Timeout
from pegaskv.base.types import DuplicationStatus
from shell.conditions import next_words, parse_condition
from shell.errors import UsageError
from shell.terminal import TerminalScreen
from tests.shell.fake_duplications import NOW, duplication, partition
from tests.shell.harness import Session

PREPARE, LOG = DuplicationStatus.DS_PREPARE, DuplicationStatus.DS_LOG


class Time:
    """Seconds that pass only in pauses; `on_pause` is called in each with its number."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.pauses = 0
        self.on_pause: Callable[[int], None] = lambda number: None

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.seconds += seconds
        self.pauses += 1
        assert self.pauses < 10_000, "it never ends"
        self.on_pause(self.pauses)
        await asyncio.sleep(0)

    def now(self) -> float:
        return self.seconds


class Drawn:
    """A screen that remembers its pictures."""

    def __init__(self) -> None:
        self.pictures: list[list[str]] = []
        self.calls: list[str] = []

    def open(self) -> None:
        self.calls.append("open")

    def draw(self, lines: Any) -> None:
        self.calls.append("draw")
        self.pictures.append(list(lines))

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def session(time: Time) -> Session:
    session = Session(sleep=time.sleep, now=time.now)
    session.cluster.duplications.entries.append(duplication(status=PREPARE))
    return session


def change(session: Session, **fields: Any) -> None:
    entries = session.cluster.duplications.entries
    entries[0] = replace(entries[0], **fields)


# Conditions.


async def test_a_phase_is_waited_for_and_reached(session: Session, time: Time) -> None:
    time.on_pause = lambda number: change(session, status=LOG) if number == 4 else None
    await session.text("wait_for dup users DS_LOG")
    assert session.output.notes == ["users => beta: DS_LOG, gap 0, nothing is behind (after 0.8 s)"]
    data = await session.data("wait_for dup users DS_LOG")
    assert (data["condition"], data["seconds"]) == ("dup users DS_LOG", 0)
    assert data["state"][0]["status"] == "DS_LOG"


async def test_what_does_not_come_ends_with_the_state_and_its_cause(
    session: Session, time: Time
) -> None:
    change(
        session,
        last_error="beta does not answer",
        error_class="unreachable",
        stalled_since=NOW - 4,
        attempts=3,
        next_attempt_at=NOW + 2,
    )
    said = await session.fails("wait_for dup users DS_LOG --timeout 60", 1)
    assert 59 < time.seconds <= 60
    assert said.splitlines() == [
        "error: `dup users DS_LOG` did not come within 60 s: users => beta: DS_PREPARE, "
        "gap 0, nothing is behind",
        "  stalled   beta does not answer",
        "  since     2027-01-15T08:01:36Z, 4.0 s ago",
        "  attempts  3",
        "  next      in 2.0 s",
        "  to do     it goes on by itself when beta answers; "
        "`clusters` shows where it is looked for",
    ]
    error = (await session.json("wait_for dup users DS_LOG -t 500ms"))["error"]
    assert (error["code"], error["name"]) == (-5, "ERR_NOT_REACHED")
    assert error["state"][0]["last_error"] == "beta does not answer"


async def test_a_batch_stops_at_what_did_not_come(session: Session) -> None:
    assert await session.script("wait_for dup users DS_LOG -t 1\nversion") == 1
    assert session.output.data_text == ""
    change(session, status=LOG)
    assert await session.script("wait_for dup users DS_LOG -t 1\nversion") == 0
    assert session.output.data_text.startswith("pegaskv")


async def test_a_gap_counts_in_ds_log_alone_and_when_it_is_known(
    session: Session, time: Time
) -> None:
    steps: list[dict[str, Any]] = [
        {"status": LOG, "partitions": (partition(0, last_committed_decree=0, gap=0),)},
        {"gap": 3, "partitions": (partition(0, gap=3),)},
        {"gap": 2, "partitions": (partition(0, gap=2),)},
    ]
    time.on_pause = lambda number: change(session, **steps[number - 1])
    await session.text("wait_for dup users beta gap 2")
    assert time.pauses == 3
    assert "gap 2 decrees not confirmed" in session.output.notes[0]
    time.on_pause = lambda number: None
    assert "gap 2 decrees" in await session.fails("wait_for dup users gap 1 -t 1", 1)


async def test_every_duplication_of_the_table_counts_unless_one_is_named(
    session: Session,
) -> None:
    entries = session.cluster.duplications.entries
    entries.append(duplication(dupid=8, remote_cluster="gamma"))
    await session.fails("wait_for dup users DS_LOG -t 1", 1)
    await session.text("wait_for dup users gamma DS_LOG")
    await session.text("wait_for dup users 8 DS_LOG")
    await session.fails("wait_for dup users 7 DS_LOG -t 1", 1)


async def test_a_broken_one_is_told_at_once(session: Session, time: Time) -> None:
    change(session, status=LOG, failure="needs_copy", error_class="log_limit")
    said = await session.fails("wait_for dup users DS_LOG", 1)
    assert "broken: needs_copy" in said
    assert "`start_dup users beta --copy`" in said
    assert time.pauses == 0


async def test_an_end_may_be_waited_for(session: Session, time: Time) -> None:
    change(session, failure="needs_copy")
    time.on_pause = lambda number: session.cluster.duplications.entries.clear()
    await session.text("wait_for dup users DS_REMOVED")
    assert "has no duplication" in session.output.notes[0]


async def test_a_duplication_that_is_not_there_is_told_at_once(
    session: Session, time: Time
) -> None:
    assert "by the name or id gamma" in await session.fails("wait_for dup users gamma DS_LOG", 1)
    assert "no table is called x" in await session.fails("wait_for dup x DS_LOG", 1)
    assert time.pauses == 0


async def test_what_is_committed_now_may_be_waited_for(session: Session) -> None:
    requests = session.cluster.duplications.requests
    for line, remote in (("users", None), ("users beta", "beta"), ("users 7", "beta")):
        await session.text(f"wait_for dup {line} shipped")
        assert requests[-1] == ("wait", "users", remote)
    session.cluster.duplications.late = OperationDisabled("it is paused")
    assert "it is paused" in await session.fails("wait_for dup users shipped", 1)
    session.cluster.duplications.late = Timeout("partition 3 (confirmed 1 of 4)")
    assert "partition 3 (confirmed 1 of 4)" in await session.fails(
        "wait_for dup users shipped -t 1", 1
    )


@pytest.mark.parametrize(
    ("state", "fields"),
    [
        ("dropped", {}),
        ("absent", {}),
        ("follower", {"follower": True}),
        ("open", {"follower": False}),
        ("available", {}),
    ],
)
async def test_a_table_is_waited_for(
    session: Session, time: Time, state: str, fields: dict[str, Any]
) -> None:
    info = session.cluster.tables[1]
    session.cluster.tables[1] = replace(info, follower=state == "open")
    if state == "available":
        await session.run("drop users --yes")

    def step(number: int) -> None:
        if state == "available":
            session.cluster.create("users")
        elif fields:
            session.cluster.tables[1] = replace(info, **fields)
        else:
            del session.cluster.tables[1]
            session.cluster.tables[1] = replace(info, status=info.status.DROPPED)

    time.on_pause = step
    await session.text(f"wait_for table users {state}")
    assert time.pauses == 1
    assert "table users" in session.output.notes[0]


async def test_a_cluster_that_is_away_for_a_moment_is_asked_again(
    session: Session, time: Time
) -> None:
    session.cluster.duplications.on_look = lambda number: setattr(
        session.cluster, "unreachable", number == 1
    )

    def step(number: int) -> None:
        session.cluster.unreachable = False
        if number == 3:
            change(session, status=LOG)

    time.on_pause = step
    await session.text("wait_for dup users DS_LOG")
    assert time.pauses == 3
    time.on_pause = lambda number: setattr(session.cluster, "unreachable", True)
    change(session, status=PREPARE)
    assert "the last question was not answered" in await session.fails(
        "wait_for dup users DS_LOG -t 1", 1
    )


async def test_a_cluster_that_was_never_there_is_status_3(session: Session) -> None:
    session.cluster.unreachable = True
    await session.fails("wait_for dup users DS_LOG", 3)
    await session.fails("watch query_dup users --count 2", 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("users DS_LOG", "begins with dup or table"),
        ("dup users", "too short"),
        ("dup users DS_LOGG", "did you mean `DS_LOG`?"),
        ("dup users beta", "is nothing to wait for"),
        ("dup users beta gamma DS_LOG", "is nothing to wait for"),
        ("dup users gap", "one number"),
        ("dup users gap x", "one number"),
        ("dup users gap 1 2", "one number"),
        ("dup users DS_LOG now", "nothing follows"),
        ("table users there", "is nothing to wait for"),
        ("table users available now", "nothing follows"),
    ],
)
def test_what_is_no_condition_is_explained(words: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_condition(words.split())
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", ["dup", "table"]),
        ("dup", ["users"]),
        ("table", ["users", "orders"]),
        ("dup users", ["DS_INIT", "DS_PREPARE"]),
        ("dup users gap", ["0"]),
        ("table users", ["available", "dropped"]),
        ("dup users DS_LOG", []),
    ],
)
def test_conditions_are_completed_word_by_word(words: str, expected: list[str]) -> None:
    found = next_words(words.split(), ("users", "orders"), {"users": {"7": "beta"}})
    assert [word for word, _ in found][: len(expected)] == expected
    if not expected:
        assert found == []


# Watching.


async def test_a_script_sees_changes_alone(session: Session, time: Time) -> None:
    def step(number: int) -> None:
        # Time passes, which is no news.
        change(session, asked_at=NOW + number)
        if number == 3:
            change(session, status=LOG)

    time.on_pause = step
    shown = await session.text("watch query_dup users --until DS_LOG")
    assert shown.count("users => beta:users") == 2
    assert session.output.notes == ["2 changes"]
    assert (time.pauses, time.seconds) == (3, 3.0)


async def test_the_json_form_of_watching_is_one_object(session: Session, time: Time) -> None:
    time.on_pause = lambda number: change(session, gap=number)
    data = await session.data("watch query_dup users --count 3")
    assert [each[0]["gap"] for each in data] == [0, 1, 2]


async def test_watching_in_a_script_needs_an_end(session: Session) -> None:
    assert "--count <n> or --until" in await session.fails("watch query_dup users")
    said = await session.fails("watch query_dup users --count 2 --until DS_LOG", 1)
    assert "did not hold 'DS_LOG' within 2 runs" in said


@pytest.mark.parametrize(
    "line", ["drop users", "exit", "watch ls", "version", "full_scan", "check_and_mutate h -c a"]
)
async def test_what_cannot_be_watched_is_refused(session: Session, line: str) -> None:
    session.context.yes = True
    await session.fails(f"watch {line} --count 1")
    assert session.cluster.find("users")


async def test_mistakes_of_the_watched_command_are_found_before_anything_runs(
    session: Session,
) -> None:
    assert "did you mean `query_dup`?" in await session.fails("watch query_dpu users")
    assert "needs <table>" in await session.fails("watch query_dup --count 1")
    assert "has no option --cuont" in await session.fails("watch query_dup users --cuont 1")
    assert "needs <command>" in await session.fails("watch")
    assert "needs <command>" in await session.fails('watch ""')
    assert "never closed" in await session.fails('watch "get \'h"')
    assert session.cluster.log == []


@pytest.mark.parametrize(
    "line",
    [
        "watch -n 2 --count 2 get h a",
        "watch get h a -n 2 --count 2",
        "watch get h -n=2 a --count=2",
        'watch "get h a" -n 2s --count 2',
        "watch --count 2 'get h' a -n 2000ms",
    ],
)
async def test_options_of_watch_stand_where_one_writes_them(
    session: Session, time: Time, line: str
) -> None:
    await session.text("set h a 1")
    assert await session.text(line) == '"1"\n'
    assert (time.pauses, time.seconds) == (1, 2.0)


async def test_an_option_that_both_know_belongs_to_the_watched_command(session: Session) -> None:
    await session.text("multi_set h a 1 b 2")
    data = await session.data("watch --count 1 multi_get h -n 1")
    assert data == [{"rows": [{"sort_key": "a", "value": "1"}], "complete": False}]


async def test_a_key_that_looks_like_an_option_can_be_watched(session: Session) -> None:
    await session.text('set "-n" a 1')
    assert await session.text('watch get "-n" a --count 1') == '"1"\n'


async def test_a_terminal_is_drawn_again_and_given_back(session: Session, time: Time) -> None:
    screen = session.context.screen = Drawn()
    time.on_pause = lambda number: change(session, status=LOG) if number == 2 else None
    shown = await session.text("watch query_dup users --until DS_LOG")
    assert screen.calls == ["open", "draw", "draw", "draw", "close"]
    assert screen.pictures[0][:3] == [
        "every 1 s: query_dup; Ctrl-C ends it",
        "",
        "users => beta:users, id 7",
    ]
    # What was seen last stays on the terminal.
    assert "DS_LOG" in shown
    assert shown.splitlines() == screen.pictures[-1][2:]


async def test_ctrl_c_ends_watching_without_a_complaint(session: Session, time: Time) -> None:
    screen = session.context.screen = Drawn()
    task = asyncio.get_running_loop().create_task(session.run("watch -n 100ms query_dup users"))
    time.on_pause = lambda number: task.cancel() if number == 5 else None
    with pytest.raises(asyncio.CancelledError):
        await task
    assert screen.calls == ["open", *["draw"] * 5, "close"]
    assert session.output.notes == []
    assert session.output.data_text.startswith("users => beta:users")


async def test_a_cluster_that_goes_away_is_shown_and_watched_on(
    session: Session, time: Time
) -> None:
    screen = session.context.screen = Drawn()

    def step(number: int) -> None:
        session.cluster.unreachable = number in (1, 2)
        if number == 3:
            change(session, status=LOG)

    time.on_pause = step
    await session.text("watch query_dup users --until DS_LOG")
    assert ["no meta server answers" in "".join(lines) for lines in screen.pictures] == [
        *(False, True, True, False)
    ]
    session.context.screen = None
    time.pauses = 0
    time.on_pause = lambda number: setattr(session.cluster, "unreachable", True)
    said = await session.fails("watch query_dup users --count 2", 1)
    assert "no meta server answers" in said
    answer = json.loads((await _raw(session, "watch query_dup users --count 1"))[0])
    assert (answer["ok"], answer["data"][0]["error"]["code"]) == (False, 31)


async def _raw(session: Session, line: str) -> list[str]:
    session.context.json = True
    await session.run(line)
    session.context.json = False
    return session.output.data_text.splitlines()


async def test_watching_needs_the_table_of_its_command() -> None:
    session = Session(table="")
    assert "no table is in use" in await session.fails("watch get h a --count 1")


# The terminal.


class Terminal:
    """What a terminal of a size shows of what is written to it."""

    def __init__(self, columns: int, lines: int) -> None:
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.Stream(self.screen)
        self.written = ""

    def write(self, text: str) -> None:
        self.written += text
        self.stream.feed(text)

    def flush(self) -> None:
        pass

    @property
    def lines(self) -> list[str]:
        shown = [line.rstrip() for line in self.screen.display]
        while shown and not shown[-1]:
            shown.pop()
        return shown


def test_a_picture_replaces_the_one_before() -> None:
    terminal = Terminal(20, 5)
    screen = TerminalScreen(terminal, lambda: (20, 5))
    screen.open()
    screen.draw(["first line", "second", "third"])
    screen.draw(["other", "x"])
    assert terminal.lines == ["other", "x"]
    assert "\x1b[2J" not in terminal.written
    screen.close()
    assert terminal.written.endswith("\x1b[?25h\x1b[?1049l")


def test_a_picture_is_cut_to_the_screen() -> None:
    terminal = Terminal(10, 3)
    screen = TerminalScreen(terminal, lambda: (10, 3))
    screen.draw(["a" * 30, "漢字漢字漢字", "3", "4", "5"])
    assert [line.replace(" ", "") for line in terminal.lines] == ["a" * 9, "漢字漢字", "...3mor"]


def test_a_size_that_is_not_known_is_that_of_old() -> None:
    out = io.StringIO()
    TerminalScreen(out).draw([str(number) for number in range(30)])
    assert "... 7 more lines" in out.getvalue()
