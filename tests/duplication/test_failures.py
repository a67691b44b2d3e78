"""What stops a duplication has a class, a bounded sentence, and a pause that fits."""

from typing import Any

import pytest

from pegaskv.base import errors
from pegaskv.base.errors import PegasKVError, RequestError, TableNotFound, WireError
from pegaskv.codec.messages_duplication import DuplicationOrder
from pegaskv.codec.operations import Operation
from pegaskv.duplication.answers import checked_answer
from pegaskv.duplication.failures import Foreign, failure_of, retry_ms, why_broken
from shell.duplications import _HELP

ORDER = DuplicationOrder(7, b"u" * 16, "far", remote_table_id=5, remote_cluster_uuid="the far one")


def _all_errors() -> list[type[PegasKVError]]:
    found = [getattr(errors, name) for name in errors.__all__]
    return [one for one in found if isinstance(one, type) and one is not RequestError]


def test_every_error_has_a_class_for_which_there_is_a_sentence_that_helps() -> None:
    classes = set()
    for cls in (*_all_errors(), Foreign, OSError, MemoryError):
        failure = failure_of(cls("what happened"))
        assert failure.error_class in _HELP, cls
        assert "what happened" in failure.text or cls is MemoryError
        assert failure_of(cls()).text
        classes.add(failure.error_class)
        pause = retry_ms(failure, 30, least=100, most=30_000)
        # Where nobody tells us that it is over, it is looked at often.
        assert pause <= (30_000 if failure.error_class in SLOW else 3_000), failure
    assert len(classes) >= 12


SLOW = {"refused", "target_too_old", "rejected", "unacceptable", "target_error"}


def test_a_sentence_from_elsewhere_is_bounded() -> None:
    for cls in (errors.InternalError, errors.Busy, errors.InvalidData):
        assert len(failure_of(cls("x" * 1_000_000)).text) <= 400


@pytest.mark.parametrize(
    ("details", "broken"),
    [
        ({"purged": True, "cluster_uuid": "the far one"}, True),
        ({"purged": True, "cluster_uuid": "another"}, False),
        ({"purged": 1, "cluster_uuid": "the far one"}, False),
        ({"purged": True}, False),
        ({}, False),
        (None, False),
        ([True], False),
    ],
)
def test_only_the_target_itself_can_say_that_its_table_is_gone_for_good(
    details: Any, *, broken: bool
) -> None:
    error = TableNotFound("gone", details=details)
    assert bool(why_broken(error, ORDER)) is broken
    assert not why_broken(error, DuplicationOrder(7, b"u" * 16, "far", remote_table_id=5))
    assert not why_broken(errors.Busy("busy", details=details), ORDER)


@pytest.mark.parametrize(
    "fields",
    [[], [1], ["1", 2, 3], [1, None, 3], [1, -1, 3], [1, 2.0, 3], [True, 2, 3], [1 << 63, 2, 3]],
)
def test_what_is_no_answer_is_a_failure_and_nothing_worse(fields: list[Any]) -> None:
    for operation in (Operation.DUPLICATE, Operation.COPY_RANGE, Operation.DUPLICATION_PROGRESS):
        with pytest.raises(WireError, match="far answered") as caught:
            checked_answer(operation, fields, "far")
        assert failure_of(caught.value).error_class == "target_error"
        good = [1, 2, 3, [b"u" * 16], "of a later version"]
        assert checked_answer(operation, good, "far") == good
