"""Log lines: one event is one line, and what users name cannot forge another."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from pegaskv.server.logs import escape, set_up_logs


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising


def logged(style: str, *, level: str = "info") -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    set_up_logs(level=level, style=style, stream=stream)
    return logging.getLogger("pegaskv.test"), stream


HOSTILE = "a\nERROR forged \x1b[31mred\x1b[0m \r\x00 \u202e \x9b1m"


@pytest.mark.parametrize("style", ["text", "json"])
def test_control_characters_stay_on_one_line_as_escapes(
    root_logger: logging.Logger, style: str
) -> None:
    log, stream = logged(style)
    log.warning("table %s", HOSTILE)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert not {"\x1b", "\r", "\x00", "\u202e", "\x9b"} & set(text)
    assert "forged" in text


def test_text_lines_have_time_level_and_name(root_logger: logging.Logger) -> None:
    log, stream = logged("text")
    log.info("hello %d", 5)
    when, level, rest = stream.getvalue().split(maxsplit=2)
    assert when.endswith("Z")
    assert level == "INFO"
    assert rest == "pegaskv.test: hello 5\n"


def test_json_lines_are_objects_with_the_message_as_it_was(root_logger: logging.Logger) -> None:
    log, stream = logged("json")
    log.warning("table %s", HOSTILE)
    event = json.loads(stream.getvalue())
    assert event["message"] == f"table {HOSTILE}"
    assert event["level"] == "warning"
    assert event["logger"] == "pegaskv.test"


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_traceback_is_kept_and_escaped(root_logger: logging.Logger, style: str) -> None:
    log, stream = logged(style)
    try:
        raise ValueError("bad \x1b[31m name")
    except ValueError:
        log.exception("failed")
    assert "ValueError" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_levels_below_the_chosen_one_are_silent(root_logger: logging.Logger) -> None:
    log, stream = logged("text", level="warning")
    log.info("quiet")
    log.warning("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_printable_text_of_any_script_is_not_escaped() -> None:
    assert escape("Größe 表 ключ") == "Größe 表 ключ"
    assert escape("\\n") == "\\n"
