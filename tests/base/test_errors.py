"""Errors: one number each, and an answer to "may I try again?"."""

import pytest

from pegaskv import errors as public
from pegaskv.base import errors
from pegaskv.base.errors import (
    DuplicationExists,
    InternalError,
    PegasKVError,
    RequestError,
    Timeout,
    Unavailable,
    error_from_code,
)

REQUEST_ERRORS = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, RequestError) and cls is not RequestError
]


def test_there_are_errors_to_speak_of() -> None:
    assert len(REQUEST_ERRORS) > 20


def test_codes_and_names_are_unique() -> None:
    assert len({cls.code for cls in REQUEST_ERRORS}) == len(REQUEST_ERRORS)
    assert len({cls.name for cls in REQUEST_ERRORS}) == len(REQUEST_ERRORS)


def test_the_numbers_of_errors_never_change() -> None:
    assert {cls.code: cls.name for cls in REQUEST_ERRORS} == {
        1: "ERR_INVALID_PARAMETERS",
        2: "ERR_INVALID_DATA",
        3: "ERR_HANDLER_NOT_FOUND",
        4: "ERR_SERVER_INTERNAL_ERROR",
        10: "ERR_OBJECT_NOT_FOUND",
        11: "ERR_INVALID_STATE",
        12: "ERR_PARENT_PARTITION_MISUSED",
        13: "ERR_INACTIVE_STATE",
        14: "ERR_UNDER_RECOVERY",
        20: "ERR_BUSY",
        21: "ERR_DISK_INSUFFICIENT",
        22: "ERR_OPERATION_DISABLED",
        23: "ERR_FOLLOWER",
        24: "ERR_NOT_ENOUGH_MEMBER",
        30: "ERR_TIMEOUT",
        31: "ERR_NETWORK_FAILURE",
        40: "ERR_APP_NOT_EXIST",
        41: "ERR_APP_EXIST",
        42: "ERR_BUSY_CREATING",
        43: "ERR_BUSY_DROPPING",
        44: "ERR_STATE_FREEZED",
        45: "ERR_FORWARD_TO_OTHERS",
        50: "ERR_DUP_EXIST",
        51: "ERR_DUP_NOT_EXIST",
        52: "ERR_DUP_NOT_LISTED",
        53: "ERR_CLOCK_SKEW",
        60: "ERR_UNAUTHENTICATED",
        61: "ERR_ACL_DENY",
    }


def test_a_code_cannot_be_given_twice() -> None:
    with pytest.raises(AssertionError, match="code 1 is taken"):
        type("Second", (RequestError,), {"code": 1})
    with pytest.raises(AssertionError, match="has no code"):
        type("Nameless", (RequestError,), {})


@pytest.mark.parametrize("cls", REQUEST_ERRORS)
def test_every_code_becomes_its_error_again(cls: type[RequestError]) -> None:
    error = error_from_code(cls.code, "what happened", "what to do", {"a": 1})
    assert type(error) is cls
    assert str(error) == "what happened (what to do)"
    assert error.details == {"a": 1}


@pytest.mark.parametrize("code", [0, -1, 9_999])
def test_a_code_of_a_newer_server_is_named_in_an_internal_error(code: int) -> None:
    error = error_from_code(code, "what happened")
    assert type(error) is InternalError
    assert f"error {code}: what happened" in str(error)


@pytest.mark.parametrize("cls", REQUEST_ERRORS)
def test_an_error_without_words_says_its_name(cls: type[RequestError]) -> None:
    assert cls.name in str(cls())


@pytest.mark.parametrize("cls", REQUEST_ERRORS)
def test_only_what_was_certainly_not_applied_is_retryable(cls: type[RequestError]) -> None:
    if issubclass(cls, (Timeout, Unavailable)):
        assert not cls.retryable
        assert not cls().maybe_applied
        assert cls(maybe_applied=True).maybe_applied
    # A stale routing is mended by trying again elsewhere.
    assert cls.retryable or not cls.refresh_routing


def test_a_given_hint_wins_over_the_usual_one() -> None:
    assert "send less" in str(errors.Busy("full"))
    assert str(errors.Busy("full", hint="wait")) == "full (wait)"


def test_an_existing_duplication_shows_the_stored_entry() -> None:
    stored = {"dupid": 3}
    error = DuplicationExists("there", details={"existing": stored, "differences": []})
    assert error.existing == stored


@pytest.mark.parametrize("cls", [cls for cls in vars(errors).values() if isinstance(cls, type)])
def test_every_error_has_one_root(cls: type) -> None:
    if issubclass(cls, Exception):
        assert issubclass(cls, PegasKVError)


def test_the_public_module_offers_the_same_classes() -> None:
    assert set(public.__all__) <= set(errors.__all__)
    for name in public.__all__:
        assert getattr(public, name) is getattr(errors, name)


def test_what_a_caller_can_meet_is_public() -> None:
    answers = {
        name
        for name in errors.__all__
        if isinstance(cls := getattr(errors, name), type) and issubclass(cls, errors.RequestError)
    }
    followed_by_the_client = {name for name in answers if getattr(errors, name).refresh_routing} | {
        "ForwardToOthers"
    }
    assert followed_by_the_client > {"NotServing"}
    assert answers - followed_by_the_client <= set(public.__all__)
    # Raised by `connect` for `ClientOptions` that cannot be.
    assert "ConfigurationError" in public.__all__


@pytest.mark.parametrize(
    "name",
    [
        "PegasKVError",
        "TableNotFound",
        "TableExists",
        "DuplicationExists",
        "Timeout",
        "Unavailable",
        "Busy",
        "InvalidArgument",
        "AuthenticationError",
        "PermissionDenied",
    ],
)
def test_what_a_caller_handles_by_type_is_public(name: str) -> None:
    assert name in public.__all__
