"""The errors that programs catch, under one short name: `pegaskv.errors`.

Those that only make the client ask elsewhere are not here: when there is no time for
another attempt, the caller meets `Unavailable`.
"""

from pegaskv.base.errors import (
    AuthenticationError,
    Busy,
    BusyCreating,
    BusyDropping,
    ConfigurationError,
    DiskFull,
    DuplicationExists,
    FollowerTable,
    InternalError,
    InvalidArgument,
    InvalidData,
    OperationDisabled,
    PartitionClosed,
    PegasKVError,
    PermissionDenied,
    RequestError,
    StateFreezed,
    TableExists,
    TableNotFound,
    Timeout,
    Unavailable,
    UnknownOperation,
)

__all__ = [
    "AuthenticationError",
    "Busy",
    "BusyCreating",
    "BusyDropping",
    "ConfigurationError",
    "DiskFull",
    "DuplicationExists",
    "FollowerTable",
    "InternalError",
    "InvalidArgument",
    "InvalidData",
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
]
