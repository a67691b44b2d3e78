"""pure: answers of a target, checked before anything is concluded from them.

They come from another server, and must not be able to stop this one.
"""

from typing import Any, Final

from pegaskv.base.errors import WireError
from pegaskv.codec.operations import Operation

__all__ = ["checked_answer"]

_NUMBERS: Final = {
    # decree, progress, rows that lost
    Operation.DUPLICATE: 3,
    # decree, rows that lost, rows that went
    Operation.COPY_RANGE: 3,
    # progress, clock
    Operation.DUPLICATION_PROGRESS: 2,
}
_MAX: Final = 1 << 63


def checked_answer(operation: Operation, fields: list[Any], cluster: str) -> list[Any]:
    """Return the fields of an answer of `cluster`.

    Raises:
        WireError: they are no answer to this operation.

    """
    numbers = fields[: _NUMBERS[operation]]
    if len(numbers) < _NUMBERS[operation] or not all(
        type(one) is int and 0 <= one < _MAX for one in numbers
    ):
        raise WireError(
            f"{cluster} answered {operation.name} with {str(fields)[:100]}, which is no answer",
            hint="is it a server of this kind, and of a version that is compatible?",
        )
    return fields
