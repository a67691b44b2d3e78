"""Log lines on stderr, as text for people or as JSON for machines.

One event is one line. What users name (tables, hosts, keys) may hold control
characters, which could forge lines or drive a terminal: everything that is not
printable is escaped. Secrets are never given to the log in the first place.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

__all__ = ["JsonFormatter", "TextFormatter", "escape", "set_up_logs"]

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def escape(text: str) -> str:
    """Return `text` with everything that is not printable as a backslash escape."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def _time_of(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1_000:03d}Z"


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO pegaskv.net: message`, with a traceback indented below."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one event."""
        line = (
            f"{_time_of(record)} {record.levelname:<7} {record.name}: {escape(record.getMessage())}"
        )
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {escape(each)}" for each in trace.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message and, if there is one, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one event."""
        event: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event)


def set_up_logs(*, level: str, style: str, stream: TextIO | None = None) -> None:
    """Send all log events of this process to `stream` (stderr), from `level` on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    # A log that cannot be written (a closed pipe) must not fill stderr with its own traces.
    logging.raiseExceptions = False
