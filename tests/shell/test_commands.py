"""Every command: what a person sees, what a script gets, what a mistake is answered with."""

import json

import pytest

from pegaskv.base.hashing import partition_hash, partition_index
from pegaskv.base.version import VERSION
from tests.shell.fake_client import START, FakeRow
from tests.shell.fake_duplications import duplication
from tests.shell.harness import COMMANDS, Session


@pytest.fixture
def session() -> Session:
    return Session()


async def test_a_row_is_set_read_and_deleted(session: Session) -> None:
    assert await session.text('set user_1 name "Ada L."') == ""
    assert session.output.notes == ["OK"]
    assert await session.text("get user_1 name") == '"Ada L."\n'
    assert await session.data("get user_1 name") == "Ada L."
    assert await session.data("exist user_1 name") is True
    assert await session.text("del user_1 name") == ""
    assert await session.text("exist user_1 name") == "false\n"


async def test_an_absent_row_is_null_and_no_failure(session: Session) -> None:
    assert await session.text("get user_1 name") == ""
    assert session.output.notes == ["Not found"]
    assert await session.data("get user_1 name") is None
    assert session.output.notes == []


async def test_an_empty_value_is_not_an_absent_one(session: Session) -> None:
    await session.text('set user_1 name ""')
    assert await session.text("get user_1 name") == '""\n'
    assert await session.data("get user_1 name") == ""


async def test_any_bytes_go_in_and_come_out_escaped(session: Session) -> None:
    await session.text(r'set "\x00\xff" "a\nb" "\x1b[31m \\ ñ \""')
    assert await session.text(r'get "\x00\xff" "a\nb"') == r'"\x1b[31m \\ ñ \""' + "\n"
    assert await session.data(r'get "\x00\xff" "a\nb"') == r'\x1b[31m \\ ñ "'
    scanned = await session.text("full_scan")
    assert scanned == r'"\x00\xff" : "a\x0ab" => "\x1b[31m \\ ñ \""' + "\n"


async def test_escape_all_shows_every_byte(session: Session) -> None:
    await session.text("set h s ab")
    await session.text("escape_all true")
    assert await session.text("get h s") == '"\\x61\\x62"\n'
    assert await session.data("get h s") == "\\x61\\x62"
    assert await session.text("hash_scan h") == '"\\x68" : "\\x73" => "\\x61\\x62"\n'
    assert await session.text("multi_get h") == '"\\x73" => "\\x61\\x62"\n'
    assert await session.text("escape_all") == "true\n"
    await session.text("escape_all false")
    assert await session.text("get h s") == '"ab"\n'


async def test_a_row_lives_as_long_as_its_ttl(session: Session) -> None:
    await session.text("set h s v 60")
    assert await session.text("ttl h s") == "60\n"
    assert await session.data("ttl h s") == 60
    await session.text("set h s v")
    assert await session.text("ttl h s") == "infinite\n"
    assert await session.data("ttl h s") == -1
    assert await session.text("ttl h other") == ""
    assert session.output.notes == ["Not found"]
    assert await session.data("ttl h other") == -2


async def test_incr_counts_and_keeps_or_sets_the_ttl(session: Session) -> None:
    assert await session.text("incr c n") == "1\n"
    assert await session.text("incr c n 10 -l 60") == "11\n"
    assert await session.data("incr c n -5") == 6
    assert await session.data("ttl c n") == 60
    await session.text("incr c n 0 -l -1")
    assert await session.data("ttl c n") == -1
    await session.text("set c word abc")
    assert "not a number (ERR_INVALID_PARAMETERS)" in await session.fails("incr c word", 1)


async def test_rows_of_one_hash_key_are_written_and_read_together(session: Session) -> None:
    assert await session.data("multi_set h b 2 a 1 c 3 -l 60") == {"count": 3}
    assert await session.text("multi_get h") == '"a" => "1"\n"b" => "2"\n"c" => "3"\n'
    assert session.output.notes == ["3 rows"]
    assert await session.text("multi_get h c a x") == '"a" => "1"\n"c" => "3"\n'
    assert await session.data("multi_get h -n 1") == {
        "rows": [{"sort_key": "a", "value": "1"}],
        "complete": False,
    }
    await session.text("multi_get h -n 1")
    assert session.output.notes == ["1 row; there are more"]
    assert await session.text("multi_get_sortkeys h") == '"a"\n"b"\n"c"\n'
    assert await session.data("multi_get_sortkeys h -n 2") == {
        "sort_keys": ["a", "b"],
        "complete": False,
    }
    assert await session.text("count h") == "3\n"
    assert await session.text("multi_del h a x") == "2\n"
    assert await session.data("count h") == 2
    assert "given twice" in await session.fails("multi_set h a 1 a 2")


async def test_a_range_has_ends_filters_and_a_direction(session: Session) -> None:
    await session.text("multi_set h a1 1 a2 2 b1 3 b2 4")

    async def keys(options: str) -> list[str]:
        rows = (await session.data(f"multi_get_range h {options}"))["rows"]
        return [row["sort_key"] for row in rows]

    assert await keys("a1 b1") == ["a1", "a2"]
    assert await keys("a1 b1 -a false -b true") == ["a2", "b1"]
    assert await keys('"" "" -s prefix -y a') == ["a1", "a2"]
    assert await keys('"" "" -s postfix -y 1') == ["a1", "b1"]
    assert await keys('"" "" -y b') == ["b1", "b2"]
    assert await keys('"" "" -n 1 -r') == ["b2"]
    assert await keys("-n 1") == ["a1"]
    assert await session.data("multi_get_range h a1 a2 -i") == {
        "rows": [{"sort_key": "a1"}],
        "complete": True,
    }
    assert "a filter type needs a pattern" in await session.fails("multi_get_range h a b -s prefix")


async def test_a_range_is_deleted_only_after_a_yes(session: Session) -> None:
    await session.text("multi_set h a 1 b 2 c 3")
    said = await session.fails("multi_del_range h a c")
    assert "nothing brings them back" in said
    assert "--yes" in said
    assert await session.data("count h") == 3
    assert await session.text("multi_del_range h a c --yes") == "2\n"
    assert await session.data("multi_get h") == {
        "rows": [{"sort_key": "c", "value": "3"}],
        "complete": True,
    }


async def test_a_hash_key_is_scanned_with_filters_and_a_limit(session: Session) -> None:
    await session.text("multi_set h a 1 b 2 c 12")
    await session.text("set other a 1 60")
    assert await session.text("hash_scan h") == '"h" : "a" => "1"\n"h" : "b" => "2"\n' + (
        '"h" : "c" => "12"\n'
    )
    assert session.output.notes == ["3 rows"]
    assert await session.text("hash_scan h b") == '"h" : "b" => "2"\n"h" : "c" => "12"\n'
    assert await session.text('hash_scan h "" "" -v prefix -z 1 -n 1') == '"h" : "a" => "1"\n'
    assert session.output.notes == ["1 row"]
    assert await session.text("hash_scan h b c -i") == '"h" : "b"\n'


async def test_a_table_is_scanned_and_counted(session: Session) -> None:
    await session.text("multi_set h a 1 b 2")
    await session.text("set other a 1 60")
    assert await session.data("full_scan -d") == [
        {"hash_key": "h", "sort_key": "a", "value": "1", "expires_at": None},
        {"hash_key": "h", "sort_key": "b", "value": "2", "expires_at": None},
        {"hash_key": "other", "sort_key": "a", "value": "1", "expires_at": START + 60},
    ]
    assert await session.text("full_scan -h exact -x other -i -d") == (
        f'"other" : "a" expires_at {START + 60}\n'
    )
    assert await session.data("full_scan -h prefix -x zzz") == []
    assert await session.text("count_data") == "3\n"
    assert await session.data("count_data -c -h prefix -x h") == 2


async def test_a_scan_that_breaks_says_so_behind_the_rows_it_read(session: Session) -> None:
    await session.text("multi_set h a 1 b 2 c 3")
    session.cluster.break_scan_after = 2
    outcome = await session.run("full_scan")
    assert outcome.status == 1
    assert session.output.data_text.count("\n") == 2
    assert session.output.notes == ["error: the connection broke (ERR_NETWORK_FAILURE)"]
    answer = await session.json("full_scan")
    assert answer["ok"] is False
    assert len(answer["data"]) == 2
    assert answer["error"]["name"] == "ERR_NETWORK_FAILURE"


async def test_a_checked_set_tells_whether_it_wrote(session: Session) -> None:
    line = "check_and_set lock -c owner -t not_exist -v me -l 30"
    assert await session.text(line) == "passed\n"
    assert await session.text(line) == "not passed\n"
    assert await session.data(f"{line} -r") == {"passed": False, "exists": True, "value": "me"}
    assert await session.data("ttl lock owner") == 30
    assert await session.text("check_and_set lock -c owner -t exist -s copy -v x -r") == (
        'passed\ncheck value: "me"\n'
    )
    assert await session.data("get lock copy") == "x"
    assert await session.text("check_and_set lock -c absent -t exist -v x -r") == (
        "not passed\ncheck value: not found\n"
    )


async def test_mutations_are_given_by_options(session: Session) -> None:
    await session.text("multi_set h version 7 draft x")
    answer = await session.data(
        "check_and_mutate h -c version -t bytes_equal -o 7 "
        r"""-m 'set version 8 60' -m 'del draft' -m 'set "a\x00" b'"""
    )
    assert answer == {"passed": True}
    assert session.cluster.rows[1] == {
        (b"h", b"version"): FakeRow(b"8", START + 60),
        (b"h", b"a\0"): FakeRow(b"b"),
    }


@pytest.mark.parametrize("ending", ["ok", "abort"])
async def test_mutations_may_follow_line_by_line(session: Session, ending: str) -> None:
    script = f"check_and_mutate h -c a -t not_exist\nset a 1\n\nset b 2\n{ending}\ncount h"
    assert await session.script(script) == 0
    assert session.output.data_text.endswith("2\n" if ending == "ok" else "0\n")


@pytest.mark.parametrize("body", ["set a 1", "set a 1\nget a b\nok", "ok", "ok ok\nok"])
async def test_wrong_mutations_send_nothing_and_run_nothing(session: Session, body: str) -> None:
    script = f"check_and_mutate h -c a -t not_exist\n{body}"
    assert await session.script(script, keep_going=True) == 2
    assert session.cluster.rows[1] == {}
    assert session.cluster.log == []


async def test_tables_are_created_listed_and_shown(session: Session) -> None:
    made = await session.data("create orders -p 16 -r 1 -e default_ttl=60,durability=os")
    assert made["created"] is True
    assert (made["table_id"], made["partition_count"]) == (2, 16)
    assert made["envs"] == {"default_ttl": "60", "durability": "os"}
    assert await session.text("ls") == (
        "id  status     name    partitions  replicas  created\n"
        " 1  available  users            8         1  2027-01-15T08:00:00Z\n"
        " 2  available  orders          16         1  2027-01-15T08:00:00Z\n"
    )
    assert [each["name"] for each in await session.data("ls -p ord")] == ["orders"]
    assert "default_ttl=60,durability=os" in await session.text("ls -d")
    shown = await session.text("app orders")
    assert "partition_count             16\n" in shown
    assert "created_at                  2027-01-15T08:00:00Z\n" in shown
    described = await session.data("app orders")
    assert len(described["partitions"]) == 16
    assert described["partitions"][3]["last_decree"] == 7
    assert (await session.text("app orders -d")).count("\n") == 17


async def test_creating_what_exists_has_its_own_status(session: Session) -> None:
    assert "there already" in await session.fails("create users", 4)
    assert (await session.data("create users --if-not-exists"))["created"] is False
    await session.text("create users --if-not-exists")
    assert "is there already, with the same options" in session.output.notes[0]
    await session.fails("create users -p 16 --if-not-exists", 4)
    assert "given twice" in await session.fails("create t -e default_ttl=1 -e default_ttl=2")
    assert "no env is called ttl" in await session.fails("create t -e ttl=1", 1)


async def test_a_dropped_table_comes_back(session: Session) -> None:
    await session.text("set h s v")
    dropped = await session.data("drop users -r 3600 --yes")
    assert dropped["status"] == "dropped"
    assert dropped["expires_at"] == START + 3600
    assert session.context.table_name == ""
    await session.text("ls")
    assert session.output.notes == ["no tables"]
    assert "dropped" in await session.text("ls -a")
    assert "dropped" in await session.text("ls -s dropped")
    assert "no table is in use" in await session.fails("get h s")
    assert (await session.data("recall 1 people"))["name"] == "people"
    await session.text("use people")
    assert await session.data("get h s") == "v"


async def test_dropping_says_how_to_undo_it(session: Session) -> None:
    await session.text("drop users --yes")
    assert "`recall 1` brings it back until 2027-01-22T08:00:00Z" in session.output.notes[0]
    assert "no table is called users" in await session.fails("drop users --yes", 1)
    assert await session.data("drop users --if-exists --yes") is None


async def test_dropping_for_good_names_no_way_back(session: Session) -> None:
    await session.text("drop users -r 0 --yes")
    assert session.output.notes == ["table users dropped, and its rows are removed now"]


async def test_a_renamed_table_stays_in_use(session: Session) -> None:
    assert (await session.data("rename users people"))["name"] == "people"
    assert session.context.table_name == "people"


async def test_envs_are_set_shown_and_removed(session: Session) -> None:
    assert await session.data("set_app_envs default_ttl 60 durability os") == {
        "default_ttl": "60",
        "durability": "os",
    }
    assert await session.text("get_app_envs") == "default_ttl  60\ndurability   os\n"
    assert await session.data("del_app_envs default_ttl") == {"durability": "os"}
    assert "say either -a" in await session.fails("clear_app_envs --yes")
    assert await session.data("clear_app_envs -p dura --yes") == {}
    await session.text("get_app_envs")
    assert session.output.notes == ["no envs"]
    await session.text("set_app_envs durability os")
    assert await session.data("clear_app_envs -a --yes") == {}
    name = "manual_compact.once.trigger_time"
    session.context.wall_s = lambda: 1_767_225_600.9
    assert await session.data(f"set_app_envs {name} now") == {name: "1767225600"}
    made = await session.data(f"create compacted -e {name}=now -e durability=os")
    assert made["envs"] == {name: "1767225600", "durability": "os"}
    assert "given twice" in await session.fails("set_app_envs a 1 a 2")


async def test_the_cluster_is_shown(session: Session) -> None:
    assert "cluster_name  fake\n" in await session.text("cluster_info")
    assert await session.data("cluster_info") == {"cluster_name": "fake", "cluster_id": 1}
    assert "127.0.0.1:34601  alive   node-1" in await session.text("nodes")
    assert (await session.data("nodes"))[0]["primaries"] == 8
    assert (await session.data("server_info"))["role"] == "standalone"


async def test_the_hash_names_the_partition_of_the_table_in_use(session: Session) -> None:
    assert await session.data("hash h s") == {
        "hash": partition_hash(b"h", b"s"),
        "table_id": 1,
        "partition_index": partition_index(b"h", b"s", 8),
        "partition_count": 8,
    }
    session.context.table_name = ""
    assert await session.data("hash h s") == {"hash": partition_hash(b"h", b"s")}


async def test_use_checks_that_the_table_is_there(session: Session) -> None:
    assert await session.data("use") == {"table": "users"}
    said = await session.fails("use nowhere", 1)
    assert said.splitlines() == [
        "error: no table is called nowhere (ERR_APP_NOT_EXIST)",
        "hint: `ls` lists the tables",
    ]
    assert session.context.table_name == "users"
    session.context.table_name = ""
    assert await session.data("use") == {"table": None}


async def test_data_commands_say_how_to_choose_a_table() -> None:
    session = Session(table="")
    said = await session.fails("get h s")
    assert said.splitlines() == [
        "error: no table is in use",
        "hint: say `use <table>` first; `ls` lists the tables",
    ]
    assert session.cluster.log == []


async def test_the_time_limit_reaches_every_call(session: Session) -> None:
    assert await session.text("timeout") == "5000 ms\n"
    assert await session.data("timeout 2s") == {"timeout_ms": 2000}
    await session.text("get h s")
    assert session.cluster.log[-1] == ("get", 2.0)


async def test_version_and_help_need_no_cluster(session: Session) -> None:
    session.cluster.unreachable = True
    assert await session.text("version") == f"pegaskv {VERSION}\n"
    overview = await session.text("help")
    for name, command in COMMANDS.items():
        if name == command.name:
            assert f"\n  {name} " in overview
    assert "set <hash_key> <sort_key> <value> [ttl]" in await session.text("help set")
    assert (await session.data("help set"))[0]["name"] == "set"
    assert "did you mean `get`?" in await session.fails("help gte")
    assert session.cluster.opened == 0


@pytest.mark.parametrize("line", ["exit", "quit"])
async def test_exit_and_quit_leave_the_shell(session: Session, line: str) -> None:
    assert (await session.run(line)).leave


async def test_an_unreachable_cluster_has_its_own_status_until_it_answered_once() -> None:
    session = Session()
    session.cluster.unreachable = True
    said = await session.fails("get h s", 3)
    assert "does a server run at fake:1?" in said
    session.cluster.unreachable = False
    await session.text("get h s")
    session.cluster.unreachable = True
    assert "does a server run" not in await session.fails("get h s", 1)


async def test_one_connection_serves_the_session(session: Session) -> None:
    await session.text("get h s")
    await session.text("ls")
    assert (session.cluster.opened, session.cluster.closed) == (1, 0)
    await session.context.close()
    assert session.cluster.closed == 1


async def test_a_dangerous_command_asks_and_takes_no_for_an_answer() -> None:
    questions: list[str] = []
    answers = iter(["", "no", None, "yes"])

    async def ask(question: str) -> str | None:
        questions.append(question)
        return next(answers)

    session = Session(ask=ask)
    for _ in range(3):
        said = await session.fails("drop users", 1)
        assert "not confirmed; nothing was done" in said
    assert len(session.cluster.tables) == 1
    assert session.cluster.log == []
    await session.text("drop users")
    assert questions[0].startswith("drop takes the table away from its clients")
    assert questions[0].endswith("Go on? [y/N] ")


async def test_an_error_in_json_has_code_name_message_and_hint(session: Session) -> None:
    assert await session.json("use nowhere") == {
        "ok": False,
        "command": "use",
        "error": {
            "code": 40,
            "name": "ERR_APP_NOT_EXIST",
            "message": "no table is called nowhere",
            "hint": "`ls` lists the tables",
        },
    }
    assert await session.json("gte") == {
        "ok": False,
        "command": "gte",
        "error": {
            "code": -2,
            "name": "ERR_USAGE",
            "message": 'unknown command "gte"',
            "hint": "did you mean `get`?",
        },
    }


async def test_every_example_of_every_command_runs() -> None:
    ran = 0
    for name, command in COMMANDS.items():
        if name != command.name:
            continue
        for example in command.examples:
            session = Session()
            session.cluster.create("sessions_of_may")
            if command.name == "recall":
                for each in range(3):
                    session.cluster.create(f"t{each}")
                    await session.run(f"drop t{each} --yes")
            if command.danger and "--yes" not in example:
                session.context.yes = True
            if command.name == "create":
                await session.run("drop users --yes")
            await session.run("set user_1 version 7")
            if command.name != "add_dup":
                session.cluster.duplications.entries.append(duplication(dupid=1_800_000_000))
            if command.name == "remove_cluster":
                await session.run("add_cluster beta h:1 2")
            if command.name == "watch" and "--until" not in example:
                example += " --count 1"
            answer = await session.json(example)
            assert answer["ok"], (example, answer)
            assert json.dumps(answer["data"]) is not None
            ran += 1
    assert ran > 50


async def test_what_the_server_warns_of_reaches_stderr_and_never_the_data(
    session: Session,
) -> None:
    shown = await session.text("set_app_envs durability os")
    assert "warning: os is not safe alone" in session.output.notes
    assert "warning" not in shown
