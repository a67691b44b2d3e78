"""Options from a mapping: unknown keys and wrong types are refused by name.

Each part of the system has one frozen dataclass of options. Its fields are the
only list of what can be configured and its defaults the only defaults.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

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


def _check_type(value: Any, expected: Any, where: str) -> None:
    # bool is an int to Python and a mistake to an operator.
    if expected is int and isinstance(value, bool):
        raise ConfigurationError(f"{where}: expected a whole number, got {value!r}")
    if expected is float:
        expected = (int, float)
    if not isinstance(value, expected):
        names = {int: "a whole number", str: "a string", bool: "true or false"}
        kind = names.get(expected, getattr(expected, "__name__", "a number"))
        raise ConfigurationError(f"{where}: expected {kind}, got {value!r}")
