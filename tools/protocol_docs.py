"""Writes the generated parts of the documents from the code, so that they cannot part.

`python -m tools.protocol_docs` rewrites what stands between `<!-- generated: name -->`
and `<!-- end -->` in `docs/`; `--check` only says whether anything would change.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from pegaskv.base import errors, limits, version
from pegaskv.base.errors import RequestError, Timeout, Unavailable
from pegaskv.base.types import CheckType, FilterType
from pegaskv.codec.operations import OPERATIONS, Operation, RangeFlag, ScanFlag
from pegaskv.net.hello import ANNOUNCED_LIMITS
from pegaskv.server.option_metrics import FIXED_BOUNDS

__all__ = ["SECTIONS", "generate", "main"]

ROOT: Final = Path(__file__).resolve().parent.parent
VECTORS: Final = ROOT / "tests" / "codec" / "protocol_vectors.json"
DOCUMENTS: Final = ("protocol.md", "operations.md", "formats.md")

_SECTION: Final = re.compile(
    r"(?P<open><!-- generated: (?P<name>[a-z]+) -->\n).*?(?P<close><!-- end -->)", re.DOTALL
)

# Limits that a client should know and that hello does not announce: name, value, meaning.
_OTHER_LIMITS: Final = (
    ("frame before hello", limits.BEFORE_HELLO_BYTES_MAX, "bytes of body"),
    (
        "values in a frame of requests",
        limits.REQUEST_VALUES_MAX,
        f"counted above 64 KiB of body; an array or map is {limits.CONTAINER_VALUES} more",
    ),
    ("values in a frame of replies", limits.FRAME_VALUES_MAX, "counted in the same way"),
    ("time to live", limits.TTL_SECONDS_MAX, "seconds"),
    ("time limit", limits.TIMEOUT_MS_MAX, "milliseconds"),
    ("table name", limits.TABLE_NAME_BYTES_MAX, "bytes"),
    ("partitions of a table", limits.PARTITION_COUNT_MAX, "a power of two"),
    ("replicas of a partition", limits.REPLICA_COUNT_MAX, ""),
    ("envs of a table", limits.ENV_COUNT_MAX, ""),
    ("value of an env", limits.ENV_VALUE_BYTES_MAX, "bytes"),
)


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check the documents; the exit status of --check is 1 if one is stale."""
    parser = argparse.ArgumentParser(prog="python -m tools.protocol_docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, say what is stale")
    check = parser.parse_args(arguments).check
    stale = False
    for name in DOCUMENTS:
        path = ROOT / "docs" / name
        old = path.read_text(encoding="utf-8")
        new = generate(old)
        if new != old:
            stale = True
            print(f"docs/{name} {'is stale' if check else 'was rewritten'}")
            if not check:
                path.write_text(new, encoding="utf-8")
    return 1 if stale and check else 0


def generate(text: str) -> str:
    """Return `text` with its generated sections as the code says now."""
    return _SECTION.sub(
        lambda match: match["open"] + "\n" + SECTIONS[match["name"]]() + "\n" + match["close"], text
    )


def _operations() -> str:
    rows = [
        (operation.value, f"[{operation.name}](#{_anchor(operation)})", spec.request, spec.reply)
        for operation, spec in OPERATIONS.items()
    ]
    return _table(("number", "operation", "fields of the request", "fields of the reply"), rows)


def _anchor(operation: Operation) -> str:
    return f"{operation.name.lower()}-{operation.value}"


def _enums() -> str:
    kinds: tuple[tuple[str, Iterable[Any]], ...] = (
        ("range flag", RangeFlag),
        ("scan flag", ScanFlag),
        ("filter type", FilterType),
        ("check type", CheckType),
    )
    return "\n".join(
        _table((title, "name"), [(member.value, f"`{member.name}`") for member in members])
        for title, members in kinds
    )


def _errors() -> str:
    classes = sorted(
        (
            cls
            for cls in vars(errors).values()
            if isinstance(cls, type) and issubclass(cls, RequestError) and cls is not RequestError
        ),
        key=lambda cls: cls.code,
    )
    rows = [(cls.code, f"`{cls.name}`", _first_line(cls), _advice(cls)) for cls in classes]
    return _table(("code", "name", "meaning", "a client"), rows)


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def _advice(cls: type[RequestError]) -> str:
    if issubclass(cls, (Timeout, Unavailable)):
        return "unknown"
    words = ["refresh"] * cls.refresh_routing + ["retry"] * cls.retryable
    return ", ".join(words) or "tells the caller"


def _limits() -> str:
    announced = [(f"`{name}`", f"{value:,}", "") for name, value in ANNOUNCED_LIMITS.items()]
    others = [(name, f"{value:,}", note) for name, value, note in _OTHER_LIMITS]
    return _table(("limit, as hello names it", "value", "unit"), announced + others)


def _bounds() -> str:
    rows = [(f"`{name}`", f"{getattr(limits, name):,}") for name in FIXED_BOUNDS]
    return _table(("bound", "value"), rows)


def _versions() -> str:
    what = {
        "DATA_FORMAT": "data directory, keys and rows",
        "LOG_FORMAT": "log segment and its records",
        "MUTATION_FORMAT": "mutation",
        "MANIFEST_FORMAT": "replica manifest",
        "META_RECORD_FORMAT": "meta store's file and records",
    }
    rows = [(text, getattr(version, name)) for name, text in what.items()]
    return _table(("format", "version"), rows)


def _vectors() -> str:
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    parts = []
    for group, cases in vectors.items():
        parts.append(f"### {group}\n")
        for case in cases:
            given = {key: value for key, value in case.items() if key not in ("name", "hex")}
            shown = "; ".join(f"{key} = {_notation(value)}" for key, value in given.items())
            parts.append(f"{case['name']}: {shown}\n")
            if "hex" in case:
                lines = re.findall(".{1,96}", case["hex"])
                parts.append("```\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


def _notation(value: Any) -> str:
    """Return a value as the document writes it, in code marks."""
    return f"`{_inner(value)}`"


def _inner(value: Any) -> str:
    match value:
        case None:
            return "nil"
        case bool():
            return str(value).lower()
        case {"hex": str(digits)} if len(value) == 1:
            return f"h'{digits}'"
        case dict():
            return "{" + ", ".join(f'"{key}": {_inner(v)}' for key, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_inner, value)) + "]"
        case str():
            return json.dumps(value)
    return str(value)


def _table(titles: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(cell: Any) -> str:
    return str(cell.value if isinstance(cell, IntEnum) else cell).replace("|", "\\|") or " "


SECTIONS: Final[Mapping[str, Callable[[], str]]] = {
    "bounds": _bounds,
    "enums": _enums,
    "errors": _errors,
    "limits": _limits,
    "operations": _operations,
    "vectors": _vectors,
    "versions": _versions,
}

if __name__ == "__main__":
    sys.exit(main())
