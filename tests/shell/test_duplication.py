"""The commands about duplication: what a person sees, what a script gets, and the statuses."""

from dataclasses import replace
from typing import Any

import pytest

from pegaskv.base.types import DuplicationStatus, FailMode
from shell.duplications import ago, comparison, describe, utc, what_helps
from shell.render import Result, text_lines
from tests.shell.fake_duplications import NOW, duplication, partition
from tests.shell.harness import Session

PREPARE, APP, LOG = (
    DuplicationStatus.DS_PREPARE,
    DuplicationStatus.DS_APP,
    DuplicationStatus.DS_LOG,
)

STALLED: dict[str, Any] = {
    "status": PREPARE,
    "last_error": "beta does not answer at 127.0.0.1:1: connection refused",
    "error_class": "unreachable",
    "stalled_since": NOW - 75.2,
    "attempts": 12,
    "next_attempt_at": NOW + 1.75,
    "partitions": (partition(0, PREPARE, start_decree=0),),
}


@pytest.fixture
def session() -> Session:
    return Session()


# Adding.


async def test_adding_copies_and_says_what_to_do_next(session: Session) -> None:
    assert await session.text("add_dup users beta") == ""
    assert session.output.notes == [
        "duplication 7 of users to beta:users added; existing rows are copied first",
        "`watch query_dup users` shows how it goes, "
        "`wait_for dup users DS_LOG` waits until it ships writes",
    ]
    session.cluster.duplications.entries.clear()
    data = await session.data("add_dup users beta -a u2 -r 3 --no-checkpoint --merge --mesh")
    assert (data["dupid"], data["status"], data["checkpoint"]) == (7, "DS_PREPARE", False)
    assert session.output.notes == ["warning: both clusters are written to"]
    assert session.cluster.duplications.requests == [
        ("users", "beta", None, True, None, False, False),
        ("users", "beta", "u2", False, 3, True, True),
    ]


async def test_the_forms_of_pegasus_are_understood(session: Session) -> None:
    await session.text("add_dup users beta -s -a users_copy -r 1")
    assert session.output.notes[-1] == "-s is not needed: copying existing rows is the default"
    await session.text("dups -a user -m prefix -p -g 3 -u")
    assert session.cluster.duplications.requests[-1] == ("list", "user", "prefix")
    for line in (
        "query_dup users -d",
        "pause_dup users 7",
        "start_dup users 7",
        "set_dup_fail_mode users 7 skip",
        "remove_dup users 7 --yes",
    ):
        await session.text(line)


async def test_without_a_copy_it_says_what_is_not_there(session: Session) -> None:
    await session.text("add_dup users beta --no-checkpoint")
    assert "existing rows are not" in session.output.notes[0]


async def test_a_second_add_shows_the_stored_entry_beside_the_request(session: Session) -> None:
    session.cluster.duplications.entries.append(duplication(remote_table="users_copy"))
    await session.fails("add_dup users beta -r 3", 4)
    assert session.output.notes == [
        "error: table users is duplicated to beta already; nothing was changed (ERR_DUP_EXIST)",
        "  duplication           stored                requested",
        "  remote cluster        beta                  beta",
        "  remote table          users_copy            users      <- differs",
        "  copies existing rows  true                  true",
        "  remote replica count  1                     3          <- differs",
        "  id                    7                     -",
        "  status                DS_LOG                -",
        "  added                 2027-01-15T08:00:00Z  -",
        "hint: to have it as requested: `remove_dup users beta`, then add it again",
    ]
    assert session.output.data_text == ""
    answer = await session.json("add_dup users beta -r 3")
    error = answer["error"]
    assert (answer["ok"], error["code"], error["name"]) == (False, 50, "ERR_DUP_EXIST")
    assert error["differences"] == ["remote_table", "remote_replica_count"]
    assert error["existing"]["remote_table"] == "users_copy"
    assert error["requested"]["remote_replica_count"] == 3


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({}, "it is there as requested: `query_dup users` shows how far it is"),
        (
            {"status": DuplicationStatus.DS_PAUSE, "paused": True},
            "it is there as requested, and paused: `start_dup users beta` ends the pause",
        ),
        (
            {"failure": "needs_copy", "error_class": "log_limit"},
            "`start_dup users beta --copy` copies all rows anew, once beta can be reached",
        ),
    ],
)
async def test_a_second_add_says_what_to_do(
    session: Session, fields: dict[str, Any], hint: str
) -> None:
    session.cluster.duplications.entries.append(duplication(**fields))
    before = list(session.cluster.duplications.entries)
    assert (await session.fails("add_dup users beta", 4)).endswith(f"hint: {hint}")
    assert session.cluster.duplications.entries == before


async def test_a_stalled_entry_says_so_to_a_second_add(session: Session) -> None:
    session.cluster.duplications.entries.append(duplication(**STALLED))
    said = await session.fails("add_dup users beta", 4)
    assert "connection refused" in said
    assert "in 1.8 s" in said


async def test_an_entry_that_cannot_be_read_is_refused_all_the_same(session: Session) -> None:
    class Unreadable:
        table, remote_cluster = "users", "beta"

    session.cluster.duplications.entries.append(Unreadable())  # type: ignore[arg-type]

    async def add(*_: Any, **__: Any) -> Any:
        from pegaskv.base.errors import DuplicationExists

        raise DuplicationExists("it exists", details={"existing": None})

    client = await session.context.client()
    client.admin.add_duplication = add  # type: ignore[method-assign]
    assert "`query_dup users` shows it" in await session.fails("add_dup users beta", 4)


def test_what_the_server_calls_different_is_marked_too() -> None:
    lines, different = comparison(duplication(), {"remote_table": "users"}, ["mesh"])
    assert different == ["mesh"]
    assert any(line.startswith("  mesh") and line.endswith("<- differs") for line in lines)


# Looking.


async def test_a_running_duplication_is_shown_in_a_few_lines(session: Session) -> None:
    parts = (partition(0), partition(1, confirmed_decree=3, gap=2))
    session.cluster.duplications.entries.append(
        duplication(partitions=parts, gap=2, lag_ms=15, conflicts=4, bytes_held=99)
    )
    assert (await session.text("query_dup users")).splitlines() == [
        "users => beta:users, id 7",
        "  phase      DS_LOG: writes are shipped as they are committed",
        "  gap        2 decrees not confirmed, 15 ms behind",
        "  added      2027-01-15T08:00:00Z",
        "  fail mode  slow",
        "  log held   99 bytes",
        "  conflicts  4",
    ]
    detailed = (await session.text("query_dup users beta -d")).splitlines()
    assert detailed[-3:] == [
        "  partition  status  start  confirmed  committed  gap  copied  error",
        "          0  DS_LOG      1          5          5    0       0  -",
        "          1  DS_LOG      1          3          5    2       0  -",
    ]


async def test_a_stalled_duplication_says_why_since_when_and_what_helps(session: Session) -> None:
    session.cluster.duplications.entries.append(duplication(**STALLED))
    lines = (await session.text("query_dup users")).splitlines()
    assert lines[1:] == [
        "  phase      DS_PREPARE: the remote table is made ready, and partitions mark their logs",
        "  gap        not known yet",
        "  added      2027-01-15T08:00:00Z",
        "  fail mode  slow",
        "  stalled    beta does not answer at 127.0.0.1:1: connection refused",
        "  since      2027-01-15T08:00:24Z, 1 min 15 s ago",
        "  attempts   12",
        "  next       in 1.8 s",
        "  to do      it goes on by itself when beta answers; "
        "`clusters` shows where it is looked for",
    ]


async def test_a_broken_duplication_needs_a_decision(session: Session) -> None:
    session.cluster.duplications.entries.append(
        duplication(failure="source lost decrees 4..9", error_class="source_lost", attempts=1)
    )
    shown = await session.text("query_dup users")
    assert "DS_LOG (broken): it will not go on by itself" in shown
    assert "broken     source lost decrees 4..9" in shown
    assert "next       none: it needs a decision" in shown
    assert "`start_dup users beta --copy`" in shown


async def test_a_pause_says_how_it_ends(session: Session) -> None:
    parts = (partition(0, APP, copied_rows=4), partition(1))
    session.cluster.duplications.entries += [
        duplication(status=DuplicationStatus.DS_PAUSE, paused=True),
        duplication(dupid=8, remote_cluster="gamma", status=APP, paused=True, partitions=parts),
    ]
    shown = await session.text("query_dup users")
    assert "DS_PAUSE: paused: nothing is shipped, and the log is kept" in shown
    assert "DS_APP (paused): it goes no further than this until it is started" in shown
    assert "(partitions: 1 DS_APP, 1 DS_LOG)" in shown
    assert "copied     4 rows so far" in shown
    assert "`start_dup users gamma` ends the pause" in shown
    assert "\n\nusers => gamma" in shown


async def test_one_of_several_may_be_asked_for(session: Session) -> None:
    session.cluster.duplications.entries += [
        duplication(),
        duplication(dupid=8, remote_cluster="7"),
    ]
    for name, dupid in (("beta", 7), ("8", 8), ("7", 8)):
        (found,) = await session.data(f"query_dup users {name}")
        assert found["dupid"] == dupid
    assert "by the name or id nowhere" in await session.fails("query_dup users nowhere", 1)


async def test_a_table_without_duplications_is_no_failure(session: Session) -> None:
    assert await session.text("query_dup users") == ""
    assert session.output.notes == ["table users is not duplicated; `add_dup` does it"]
    assert await session.data("query_dup users") == []
    assert "no table is called x" in await session.fails("query_dup x", 1)


async def test_the_json_form_has_everything_but_ages(session: Session) -> None:
    session.cluster.duplications.entries.append(duplication(**STALLED, fail_mode=FailMode.SKIP))
    (data,) = await session.data("query_dup users")
    assert data["status"] == "DS_PREPARE"
    assert data["fail_mode"] == "skip"
    assert data["stalled_since"] == STALLED["stalled_since"]
    assert data["partitions"][0]["status"] == "DS_PREPARE"
    # So that a script that compares two answers sees news alone.
    session.cluster.duplications.entries[0] = replace(
        session.cluster.duplications.entries[0], asked_at=NOW + 1
    )
    assert await session.data("query_dup users") == [data]


async def test_all_duplications_are_listed_with_what_holds_them_up(session: Session) -> None:
    session.cluster.duplications.entries += [
        duplication(dupid=8, **STALLED),
        duplication(table="orders", remote_table="o", gap=3, lag_ms=20),
        duplication(dupid=9, remote_cluster="gamma", failure="needs_copy"),
    ]
    assert (await session.text("dups")).splitlines() == [
        "table   id  status           remote_cluster  remote_table  gap  lag_ms  added"
        "                 held_up_by",
        "orders   7  DS_LOG           beta            o               3      20  "
        "2027-01-15T08:00:00Z  -",
        "users    8  DS_PREPARE       beta            users           0       0  "
        "2027-01-15T08:00:00Z  beta does not answer at 127.0.0.1:1: connection refused",
        "users    9  DS_LOG (broken)  gamma           users           0       0  "
        "2027-01-15T08:00:00Z  needs_copy",
    ]
    assert session.output.notes == [
        "3 duplications: 1 DS_LOG, 1 DS_LOG (broken), 1 DS_PREPARE; 2 unfinished"
    ]


async def test_only_what_is_behind_is_listed_when_asked(session: Session) -> None:
    behind = (partition(0), partition(1, confirmed_decree=1, gap=4))
    session.cluster.duplications.entries += [
        duplication(),
        duplication(dupid=8, remote_cluster="gamma", partitions=behind, gap=4),
    ]
    (found,) = await session.data("dups -u")
    assert found["dupid"] == 8
    assert [each["index"] for each in found["partitions"]] == [1]
    assert await session.data("dups -u -g 4") == []
    assert session.output.notes == []
    shown = await session.text("dups -u -p")
    assert [line.split()[3] for line in shown.splitlines()] == ["partition", "1"]
    assert await session.text("dups -u -g 4") == ""
    assert session.output.notes == ["2 duplications: 2 DS_LOG; 0 unfinished"]


async def test_a_pattern_matches_anywhere_unless_told(session: Session) -> None:
    session.cluster.duplications.entries.append(duplication())
    for line, sent in (
        ("dups", ("list", "", "all")),
        ("dups ser", ("list", "ser", "anywhere")),
        ("dups -a ser -m postfix", ("list", "ser", "postfix")),
    ):
        await session.text(line)
        assert session.cluster.duplications.requests[-1] == sent
    await session.text("dups nothing")
    assert session.output.notes == ["no duplications"]


# Changing.


async def test_a_duplication_is_paused_started_and_removed(session: Session) -> None:
    session.cluster.duplications.entries.append(duplication())
    await session.text("pause_dup users beta")
    assert "until `start_dup users beta`" in session.output.notes[0]
    await session.text("start_dup users 7")
    assert "goes on" in session.output.notes[0]
    await session.text("start_dup users beta --copy")
    assert "copies all rows anew" in session.output.notes[0]
    assert (await session.data("set_dup_fail_mode users beta skip"))["fail_mode"] == "skip"
    said = await session.fails("remove_dup users beta")
    assert "what was not shipped yet never will be" in said
    assert session.cluster.duplications.entries
    await session.text("remove_dup users beta --yes")
    assert "`open_table users` there" in session.output.notes[0]
    assert not session.cluster.duplications.entries
    assert [each[0] for each in session.cluster.duplications.requests] == [
        *("pause", "start", "copy", "fail_mode", "remove")
    ]
    assert "no duplication" in await session.fails("pause_dup users beta", 1)
    assert "did you mean `skip`?" in await session.fails("set_dup_fail_mode users beta skp")


async def test_clusters_come_and_go(session: Session) -> None:
    assert await session.text("clusters") == ""
    assert session.output.notes == ["no other clusters; `add_cluster` makes one known"]
    added = await session.data("add_cluster beta h:1,h:2 2 -u shipper --password-file f")
    assert (added["name"], added["metas"], added["cluster_id"]) == ("beta", "h:1,h:2", 2)
    assert await session.text("clusters") == (
        "name  metas    id  user     detail\nbeta  h:1,h:2   2  shipper  password_file=f\n"
    )
    assert (await session.data("clusters"))[0]["password_file"] == "f"
    await session.text("remove_cluster beta")
    assert session.output.notes == ["cluster beta is forgotten"]
    assert "at most 127" in await session.fails("add_cluster beta h:1 128")


async def test_a_follower_is_opened_with_a_warning(session: Session) -> None:
    assert (await session.data("open_table users"))["name"] == "users"
    assert session.output.notes == ["warning: it is not shipped back"]


# Words.


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.1 s"),
        (1.75, "1.8 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3_720, "1 h 2 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_a_length_of_time_is_short(seconds: float, said: str) -> None:
    assert ago(seconds) == said


def test_a_time_that_cannot_be_is_left_out() -> None:
    assert (utc(0), utc(1e300), utc(-1e18)) == (None, None, None)


@pytest.mark.parametrize(
    "error_class",
    [
        *("unreachable", "refused", "foreign", "target_gone", "clock", "rejected"),
        *("target_too_old", "busy", "target_full", "source_lost", "target_lost"),
        *("log_damaged", "log_limit", "target_purged", "source_closed"),
        *("not_listed", "target_closed", "target_error", "source_error", "unacceptable"),
        *("of another version", ""),
    ],
)
def test_every_cause_has_a_sentence_that_helps(error_class: str) -> None:
    for fields in ({"last_error": "e"}, {"failure": "f"}):
        text = what_helps(duplication(error_class=error_class, remote_table="t2", **fields))
        assert len(text) > 20
        assert "{" not in text
        if "failure" in fields:
            assert "`start_dup users beta --copy`" in text


def test_nothing_of_an_entry_reaches_the_terminal_unescaped() -> None:
    wild = duplication(
        remote_table="\x1b[31m", last_error="\x07\n", error_class="\x1b", stalled_since=1.0
    )
    lines = text_lines(Result(show=describe(wild, detailed=True)))
    assert len(lines) > 5
    assert all(line.isprintable() for line in lines)
