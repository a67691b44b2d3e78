"""The one tree of errors, with their numbers on the wire.

```
PegasKVError
├── RequestError                 an answer to a request; has a code
│   ├── the caller's fault       InvalidArgument, TableNotFound, TableExists, ...
│   ├── try again                Busy, NotReady, DiskFull, ...
│   ├── ask for the routing      NotServing, NotPrimary, WrongPartition
│   └── the outcome is unknown   Timeout, Unavailable
├── WireError                    bytes that are not our protocol
├── UnsupportedFormat            a file or message of a version that we do not know
├── CorruptionError              stored bytes that are not what was written
├── ConfigurationError           an option that cannot be
└── DirectoryUnusable            a data directory that is locked, foreign or of another format
```

Each request error says whether a request that met it was certainly not applied
and may be sent again (`retryable`), and whether the caller's routing is stale
(`refresh_routing`). `name` is Pegasus's word for it where it has one. Wrong
input from another process is answered with one of these; a broken promise of
our own is an `assert`.
"""

from typing import Any, ClassVar, Final

__all__ = [
    "AuthenticationError",
    "Busy",
    "BusyCreating",
    "BusyDropping",
    "ClockSkew",
    "ConfigurationError",
    "CorruptionError",
    "DirectoryUnusable",
    "DiskFull",
    "DuplicationExists",
    "DuplicationNotFound",
    "DuplicationNotListed",
    "FollowerTable",
    "ForwardToOthers",
    "InternalError",
    "InvalidArgument",
    "InvalidData",
    "NotEnoughMembers",
    "NotPrimary",
    "NotReady",
    "NotServing",
    "OperationDisabled",
    "PartitionClosed",
    "PegasKVError",
    "PermissionDenied",
    "RequestError",
    "StateFreezed",
    "TableExists",
    "TableNotFound",
    "Timeout",
    "Unavailable",
    "UnknownOperation",
    "UnsupportedFormat",
    "WireError",
    "WrongPartition",
    "error_from_code",
]


class PegasKVError(Exception):
    """The root of every error that this package raises on purpose.

    `hint` says what the reader can do about it, in a sentence, or is empty.
    """

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class WireError(PegasKVError):
    """Bytes that are not our protocol; the connection that sent them is closed."""


class UnsupportedFormat(PegasKVError):
    """A format version that this software does not read."""


class CorruptionError(PegasKVError):
    """Stored bytes differ from what was written."""


class ConfigurationError(PegasKVError):
    """An option that is unknown, of a wrong type, or out of its range."""


class DirectoryUnusable(PegasKVError):
    """A data directory is locked, of another format, or cannot be used."""


class RequestError(PegasKVError):
    """An answer other than success. `details` travels with it as a msgpack value."""

    code: ClassVar[int] = -1
    name: ClassVar[str] = "ERR_UNKNOWN"
    retryable: ClassVar[bool] = False
    refresh_routing: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    _by_code: ClassVar[dict[int, type["RequestError"]]] = {}

    def __init__(self, message: str = "", *, hint: str = "", details: Any = None) -> None:
        super().__init__(message or self.name, hint=hint or self.default_hint)
        self.details = details

    def __init_subclass__(cls) -> None:
        assert cls.code > 0, f"{cls.__name__} has no code"
        assert cls.code not in RequestError._by_code, f"code {cls.code} is taken"
        RequestError._by_code[cls.code] = cls


class InvalidArgument(RequestError):
    """The request can never succeed as it is."""

    code = 1
    name = "ERR_INVALID_PARAMETERS"


class InvalidData(RequestError):
    """A row, or a request as a whole, is too large."""

    code = 2
    name = "ERR_INVALID_DATA"


class UnknownOperation(RequestError):
    """The server does not know the operation: it is older than the client."""

    code = 3
    name = "ERR_HANDLER_NOT_FOUND"


class InternalError(RequestError):
    """The server met a condition that it did not expect; its log says more."""

    code = 4
    name = "ERR_SERVER_INTERNAL_ERROR"
    default_hint = "the server's log has the cause"


class NotServing(RequestError):
    """The node does not hold the partition."""

    code = 10
    name = "ERR_OBJECT_NOT_FOUND"
    retryable = True
    refresh_routing = True


class NotPrimary(RequestError):
    """The node holds the partition and is not its primary."""

    code = 11
    name = "ERR_INVALID_STATE"
    retryable = True
    refresh_routing = True


class WrongPartition(RequestError):
    """The row belongs to another partition: the caller's partition count is stale."""

    code = 12
    name = "ERR_PARENT_PARTITION_MISUSED"
    retryable = True
    refresh_routing = True


class NotReady(RequestError):
    """The partition is being opened; it will serve in a moment."""

    code = 13
    name = "ERR_INACTIVE_STATE"
    retryable = True
    refresh_routing = True


class PartitionClosed(RequestError):
    """The partition stays closed until an operator decides, since it may have lost data."""

    code = 14
    name = "ERR_UNDER_RECOVERY"


class Busy(RequestError):
    """A bound was reached; nothing was done. `details["retry_after_ms"]` says when to retry.

    With `details["throttled_by"]`, the env that limits the table, a client should not.
    """

    code = 20
    name = "ERR_BUSY"
    retryable = True
    default_hint = "the server is at a limit: send less at once, or try again shortly"


class DiskFull(RequestError):
    """The server's disk is nearly full: it refuses writes and goes on reading."""

    code = 21
    name = "ERR_DISK_INSUFFICIENT"
    default_hint = "free space on the server's disk; writes resume by themselves"


class OperationDisabled(RequestError):
    """The operation is switched off for this table or server."""

    code = 22
    name = "ERR_OPERATION_DISABLED"


class FollowerTable(RequestError):
    """The table is the target of a duplication and takes no client writes."""

    code = 23
    name = "ERR_FOLLOWER"


class NotEnoughMembers(RequestError):
    """The partition has fewer replicas than a write needs; reading goes on."""

    code = 24
    name = "ERR_NOT_ENOUGH_MEMBER"
    retryable = True
    default_hint = "writes resume when a replica server is back; `nodes` shows who is away"


class Timeout(RequestError):
    """No answer inside the deadline.

    `maybe_applied` says that a write may or may not have been applied.
    """

    code = 30
    name = "ERR_TIMEOUT"

    def __init__(
        self, message: str = "", *, hint: str = "", details: Any = None, maybe_applied: bool = False
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.maybe_applied = maybe_applied


class Unavailable(RequestError):
    """No server could be reached, or the connection broke before the answer.

    `maybe_applied` says that a write may or may not have been applied.
    """

    code = 31
    name = "ERR_NETWORK_FAILURE"

    def __init__(
        self, message: str = "", *, hint: str = "", details: Any = None, maybe_applied: bool = False
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.maybe_applied = maybe_applied


class TableNotFound(RequestError):
    """No table has this name or id."""

    code = 40
    name = "ERR_APP_NOT_EXIST"


class TableExists(RequestError):
    """A table of this name is there already."""

    code = 41
    name = "ERR_APP_EXIST"


class BusyCreating(RequestError):
    """The table is being created or recalled."""

    code = 42
    name = "ERR_BUSY_CREATING"
    retryable = True


class BusyDropping(RequestError):
    """The table is being dropped."""

    code = 43
    name = "ERR_BUSY_DROPPING"
    retryable = True


class StateFreezed(RequestError):
    """The meta server's function level allows no changes."""

    code = 44
    name = "ERR_STATE_FREEZED"


class ForwardToOthers(RequestError):
    """The meta server asked does not lead; `details` is the leader's address, if known."""

    code = 45
    name = "ERR_FORWARD_TO_OTHERS"
    retryable = True


class DuplicationExists(RequestError):
    """The table is duplicated to that cluster already; `existing` is the stored entry."""

    code = 50
    name = "ERR_DUP_EXIST"

    @property
    def existing(self) -> Any:
        """The stored entry; what was asked for and how it differs stand beside it in `details`."""
        return self.details["existing"] if isinstance(self.details, dict) else self.details


class DuplicationNotFound(RequestError):
    """The table has no such duplication."""

    code = 51
    name = "ERR_DUP_NOT_EXIST"


class DuplicationNotListed(RequestError):
    """The target table takes nothing from this duplication: it was removed, or never ensured."""

    code = 52
    name = "ERR_DUP_NOT_LISTED"


class ClockSkew(RequestError):
    """Received timestamps are too far ahead of this server's clock; `details` is by how many us."""

    code = 53
    name = "ERR_CLOCK_SKEW"


class AuthenticationError(RequestError):
    """The user is unknown or the password is wrong."""

    code = 60
    name = "ERR_UNAUTHENTICATED"


class PermissionDenied(RequestError):
    """The user may not do this."""

    code = 61
    name = "ERR_ACL_DENY"


OK: Final = 0


def error_from_code(code: int, message: str, hint: str = "", details: Any = None) -> RequestError:
    """Return the error that a reply's status means.

    A code of a newer server becomes an `InternalError` that names it.
    """
    cls = RequestError._by_code.get(code)
    if cls is None:
        return InternalError(f"error {code}: {message}", hint=hint, details=details)
    return cls(message, hint=hint, details=details)
