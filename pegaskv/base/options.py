"""Options from a mapping: unknown keys and wrong types are refused by name.

Each part of the system has one frozen dataclass of options. Its fields are the
only list of what can be configured and its defaults the only defaults.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from types import UnionType
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from pegaskv.base.errors import ConfigurationError

__all__ = ["nearest", "options_from_mapping"]

OptionsT = TypeVar("OptionsT")


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str | None:
    """Return the known name that `name` was most likely meant to be, or None."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def options_from_mapping(
    cls: type[OptionsT], values: Mapping[str, Any], *, section: str
) -> OptionsT:
    """Build `cls` from `values`, the keys of the configuration section `section`.

    Raises:
        ConfigurationError: a key is unknown (the nearest one is named), a value has the
            wrong type, or the class's own `validate()` refused the combination.

    """
    assert dataclasses.is_dataclass(cls)
    hints = get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for key, value in values.items():
        if key not in known:
            guess = nearest(key, known)
            raise ConfigurationError(
                f"unknown option `{key}` in section [{section}]",
                hint=f"did you mean `{guess}`?" if guess else f"known: {', '.join(known)}",
            )
        _check_type(value, hints[key], f"[{section}] {key}")
    options = cls(**values)
    validate = getattr(options, "validate", None)
    if validate is not None:
        validate()
    return options


_KIND_NAMES: Final[dict[type, str]] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "a section",
    type(None): "nothing",
}


def _check_type(value: Any, expected: Any, where: str) -> None:
    # `expected` is a class, a generic list or dict, a union of these, or a Literal.
    if get_origin(expected) is Literal:
        names = [repr(choice) for choice in get_args(expected)]
        fits = value in get_args(expected)
    else:
        members = get_args(expected) if isinstance(expected, UnionType) else (expected,)
        kinds = [get_origin(member) or member for member in members]
        names = [_KIND_NAMES.get(kind, kind.__name__) for kind in kinds]
        # By type(), since bool is an int to Python and a mistake to an operator.
        fits = type(value) in kinds or (type(value) is int and float in kinds)
    if not fits:
        raise ConfigurationError(f"{where}: expected {' or '.join(names)}, got {value!r}")
