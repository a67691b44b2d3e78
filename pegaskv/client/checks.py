"""pure: the fields of checked writes, and what their replies say."""

from collections.abc import Sequence
from typing import Any, Final

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.limits import VALUE_BYTES_MAX
from pegaskv.base.types import CheckType
from pegaskv.client.arguments import (
    BytesLike,
    as_bytes,
    as_sort_key,
    as_ttl,
    as_value,
    check_operation,
    weight_of,
)
from pegaskv.client.calls import Call, malformed
from pegaskv.client.options import CheckResult, Delete, Put

__all__ = ["check_fields", "check_result", "mutation_fields"]

_KNOWN: Final = frozenset(map(int, CheckType))


def check_fields(
    check_sort_key: BytesLike, check: object, operand: BytesLike
) -> tuple[bytes, int, bytes]:
    """Return (check sort key, check type, operand).

    Raises:
        InvalidArgument: one of them cannot be.

    """
    # A bool is a number to Python and a mistake here.
    if not isinstance(check, int) or isinstance(check, bool) or check not in _KNOWN:
        raise InvalidArgument(
            f"check {check!r} is unknown", hint="it is one of Check.NOT_EXIST, Check.EXIST ..."
        )
    return (
        as_sort_key(check_sort_key, "check_sort_key"),
        int(check),
        as_bytes("operand", operand, VALUE_BYTES_MAX),
    )


def mutation_fields(mutations: object) -> list[list[Any]]:
    """Return the mutations of `check_and_mutate` as they travel.

    Raises:
        InvalidArgument: they are no list of `Put` and `Delete`, empty, or too large.

    """
    if not isinstance(mutations, Sequence) or isinstance(mutations, str | bytes | bytearray):
        raise InvalidArgument("mutations must be a list of Put and Delete")
    fields: list[list[Any]] = []
    for number, mutation in enumerate(mutations):
        if isinstance(mutation, Put):
            value = as_value(mutation.value)
            fields.append([1, as_sort_key(mutation.sort_key), value, as_ttl(mutation.ttl)])
        elif isinstance(mutation, Delete):
            fields.append([2, as_sort_key(mutation.sort_key)])
        else:
            raise InvalidArgument(f"mutations[{number}] must be Put or Delete, not {mutation!r}")
    if not fields:
        raise InvalidArgument("mutations is empty", hint="name at least one Put or Delete")
    check_operation("mutations", rows=len(fields), byte_count=weight_of(fields))
    return fields


def check_result(call: Call, reply: list[Any]) -> CheckResult:
    """Return the outcome of a checked write.

    Raises:
        Unavailable: the reply is malformed; the write may have been applied.

    """
    if len(reply) < 6:
        raise malformed(call, "a check has four fields")
    passed, exists, value = reply[3:6]
    if (
        type(passed) is not bool
        or not (exists is None or type(exists) is bool)
        or not (value is None or type(value) is bytes)
    ):
        raise malformed(call, "a check passed or not, exists or not, and has a value or not")
    return CheckResult(passed, exists, value)
