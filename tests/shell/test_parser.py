import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell.errors import UsageError
from shell.parser import (
    UnfinishedQuote,
    escape,
    expected_next,
    parse,
    parse_duration_ms,
    quote,
    scan,
)
from tests.shell.harness import COMMANDS


def words(line: str) -> list[bytes]:
    scanned = scan(line)
    if scanned.error is not None:
        raise scanned.error
    return [word.value for word in scanned.words]


@given(st.binary(), st.booleans(), st.booleans())
def test_every_byte_string_reads_back_from_what_quote_writes(
    data: bytes, bare: bool, every_byte: bool
) -> None:
    assert words(quote(data, bare=bare, every_byte=every_byte)) == [data]


@given(st.lists(st.binary()))
def test_quoted_words_stay_apart(parts: list[bytes]) -> None:
    assert words(" ".join(quote(part, bare=True) for part in parts)) == parts


@given(st.binary(), st.booleans())
def test_escaped_bytes_are_printable_and_read_back(data: bytes, every_byte: bool) -> None:
    text = escape(data, every_byte=every_byte)
    assert text.isprintable()
    assert words('"' + text.replace('"', '\\"') + '"') == [data]


@given(st.text())
def test_no_line_makes_the_scanner_raise(line: str) -> None:
    scanned = scan(line)
    for word in scanned.words:
        assert word.start < word.end <= len(line)


@given(st.text(alphabet="\"'\\x0 an#-\t"))
def test_no_line_of_quotes_and_escapes_makes_the_scanner_raise(line: str) -> None:
    scan(line)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("   \t ", []),
        ("# only a comment", []),
        ("get a b # and a comment", [b"get", b"a", b"b"]),
        ("get a#b c", [b"get", b"a#b", b"c"]),
        ("get '#a' b", [b"get", b"#a", b"b"]),
        (r'"\x00\xfF\n\r\t\"\\"', [b'\x00\xff\n\r\t"\\']),
        (r"'\x00 \n'", [rb"\x00 \n"]),
        (r"a\x00b", [rb"a\x00b"]),
        ('""', [b""]),
        ("''", [b""]),
        ('a"b c"', [b"ab c"]),
        ('--envs="a b"', [b"--envs=a b"]),
        ("ñandú", ["ñandú".encode()]),
        ("a\xa0b", ["a\xa0b".encode()]),
        ("'two\nlines'", [b"two\nlines"]),
        ("\udcff", [b"\xff"]),
        ("get a b\r", [b"get", b"a", b"b"]),
    ],
)
def test_words_follow_the_rules_of_quoting(line: str, expected: list[bytes]) -> None:
    assert words(line) == expected


@pytest.mark.parametrize("line", ['get "a', "get 'a", 'get "a\\', 'get "a\\"'])
def test_an_open_quote_is_told_from_other_mistakes(line: str) -> None:
    with pytest.raises(UnfinishedQuote, match="never closed"):
        words(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (r'"\q"', r"unknown escape \\q"),
        (r'"\x0"', r"unknown escape \\x"),
        ('"a"b', "right after the closing quote"),
        ("'a''b'", "right after the closing quote"),
    ],
)
def test_a_wrong_quote_is_said_clearly(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        words(line)
    assert caught.value.hint


def values(line: str) -> dict[str, object]:
    invocation = parse(line, COMMANDS)
    assert invocation is not None
    return dict(invocation.values)


def test_arguments_come_by_name() -> None:
    assert values("set h s v 60") == {
        "hash_key": b"h",
        "sort_key": b"s",
        "value": b"v",
        "ttl": 60,
    }
    assert values("set h s v")["ttl"] == 0


def test_options_may_stand_anywhere_and_in_every_form() -> None:
    for line in (
        "create t -p 16 --if-not-exists",
        "create -p 16 --if_not_exists t",
        "create --partition_count=16 t --if-not-exists",
        "create --partition-count 16 --if-not-exists -- t",
    ):
        assert values(line) == {
            "table": "t",
            "partition_count": 16,
            "replica_count": None,
            "envs": [],
            "if_not_exists": True,
        }


def test_a_quoted_word_is_never_an_option() -> None:
    assert values("get \"-h\" '--x'") == {"hash_key": b"-h", "sort_key": b"--x"}
    assert values("get -- -h --x") == {"hash_key": b"-h", "sort_key": b"--x"}


def test_a_negative_number_is_no_option() -> None:
    assert values("incr h s -5")["by"] == -5
    assert values("set h -1 -2") == {"hash_key": b"h", "sort_key": b"-1", "value": b"-2", "ttl": 0}


def test_an_option_takes_the_next_word_whatever_it_is() -> None:
    assert values("check_and_set h -c -x -t exist -v --")["check_sort_key"] == b"-x"


def test_repeated_arguments_come_as_groups() -> None:
    assert values("multi_set h a 1 b 2")["pairs"] == [(b"a", b"1"), (b"b", b"2")]
    assert values("multi_get h")["sort_keys"] == []
    assert values("multi_get h a b")["sort_keys"] == [b"a", b"b"]


def test_commas_belong_to_an_env_value_unless_a_name_follows() -> None:
    envs = values("create t -e a=100*delay*100,200*reject*10,b=2 -e c=")["envs"]
    assert envs == [{"a": "100*delay*100,200*reject*10", "b": "2"}, {"c": ""}]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("gte a b", 'unknown command "gte"', "did you mean `get`?"),
        ("zzzzzz", 'unknown command "zzzzzz"', "`help` lists the commands"),
        ("\x1b[31m", 'unknown command "\\x1b[31m"', "`help` lists"),
        ("get a", "get needs <sort_key>: the sort key", "usage: get <hash_key> <sort_key>"),
        ("get a b c", 'get takes no argument "c" here', "usage: get"),
        ("set a b c d", '<ttl> is a whole number, not "d"', "usage: set"),
        ("set a b c -1", "<ttl> is at least 0, not -1", "usage: set"),
        ("set a b c 99999999999", "<ttl> is at most", "usage: set"),
        ("set a b c " + "9" * 5000, "<ttl> is a whole number", "usage: set"),
        ("create t --partitoin_count 8", "create has no option --partitoin_count", "did you mean"),
        ("get a b -z", "get has no option -z", "goes in quotes"),
        ("create t -p", "-p needs a value: how many partitions", "usage: create"),
        ("create t -p 1 -p 2", "-p is given twice", "usage: create"),
        ("create t --if-not-exists=yes", "--if-not-exists takes no value", "usage: create"),
        ("create t -e a", 'envs are written k=v,k=v, and "a" is not', "for example"),
        ("create t -e a=1,a=2", "the env a is given twice", "usage: create"),
        ("multi_set h a", "the last <value> is missing", "usage: multi_set"),
        ("multi_set h", "multi_set needs <sort_key>", "usage: multi_set"),
        ("multi_del h", "multi_del needs <sort_key>", "usage: multi_del"),
        (
            "check_and_set h -c a -v b",
            "check_and_set needs -t <check_type>",
            "usage: check_and_set",
        ),
        ("check_and_set h -c a -t exists -v b", '<check_type> cannot be "exists"', "`exist`?"),
        ("hash_scan h a b -a perhaps", "<start_inclusive> is true or false", "usage: hash_scan"),
        (r'use "\xff"', "<table> is not text in UTF-8", "usage: use"),
        ("timeout 0", "<limit> is 1 to 3600000 milliseconds", "500ms"),
    ],
)
def test_a_wrong_line_is_answered_with_what_would_be_right(
    line: str, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line, COMMANDS)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("5000", 5000), ("500ms", 500), ("5s", 5000), ("2m", 120_000), ("1", 1)],
)
def test_a_duration_may_have_a_unit(text: str, milliseconds: int) -> None:
    assert parse_duration_ms(text) == milliseconds


@pytest.mark.parametrize("text", ["", "0", "-1", "5h", "s", "3600001", "61m", "1e3", "٣"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration_ms(text)


def test_what_comes_next_is_known_at_every_place() -> None:
    def after(line: str) -> str | None:
        scanned = scan(line)
        argument = expected_next(COMMANDS[scanned.words[0].text], scanned.words[1:]).argument
        return argument.name if argument else None

    assert after("set") == "hash_key"
    assert after("set h s") == "value"
    assert after("set h s v") == "ttl"
    assert after("set h s v 1") is None
    assert after("multi_set h a 1") == "sort_key"
    assert after("multi_set h a 1 b") == "value"
    assert after("create t -p") == "partition_count"
    assert after("create -p 8") == "table"
    assert after("create -p=8 t") is None


@given(st.text(max_size=40), st.sampled_from(sorted(COMMANDS)))
def test_no_line_makes_parsing_fail_in_another_way(rest: str, name: str) -> None:
    with contextlib.suppress(UsageError):
        parse(f"{name} {rest}", COMMANDS)
