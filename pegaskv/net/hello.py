"""What a server answers to hello: who it is, what both sides speak, and its limits.

Hello is the first frame on a connection. It agrees on the highest protocol version
that both sides know, and refuses a client that means another cluster, before anything
else is read: a newer frame format could not be understood, and a write that reaches
the wrong cluster cannot be taken back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pegaskv.base import limits
from pegaskv.base.errors import InvalidArgument
from pegaskv.base.version import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, VERSION

__all__ = ["ANNOUNCED_LIMITS", "SERVER_FEATURE", "ServerIdentity", "answer_hello"]

# Who names this feature is a server itself, and may send the large frames of servers.
SERVER_FEATURE: Final = "server"

CLUSTER_ID_MAX: Final = 127

# What a client must know to stay inside the bounds. Clients ignore names that they do not know.
ANNOUNCED_LIMITS: Final[Mapping[str, int]] = {
    "frame_bytes_max": limits.CLIENT_FRAME_BYTES_MAX,
    "frame_messages_max": limits.FRAME_MESSAGES_MAX,
    "requests_in_flight_max": limits.CONNECTION_REQUESTS_IN_FLIGHT_MAX,
    "bytes_in_flight_max": limits.CONNECTION_BYTES_IN_FLIGHT_MAX,
    "hash_key_bytes_max": limits.HASH_KEY_BYTES_MAX,
    "sort_key_bytes_max": limits.SORT_KEY_BYTES_MAX,
    "value_bytes_max": limits.VALUE_BYTES_MAX,
    "batch_rows_max": limits.BATCH_ROWS_MAX,
    "operation_rows_max": limits.OPERATION_ROWS_MAX,
    "page_bytes_max": limits.PAGE_BYTES_MAX,
    "page_rows_max": limits.PAGE_ROWS_MAX,
}


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a server says of itself; the ids are stored in its data directory."""

    cluster_name: str
    cluster_id: int
    cluster_uuid: str
    node_id: str


def answer_hello(
    identity: ServerIdentity, fields: list[Any], announced: Mapping[str, int] = ANNOUNCED_LIMITS
) -> tuple[Any, ...]:
    """Return the fields of the reply to a hello with `fields`, those after its time limit.

    Raises:
        InvalidArgument: the fields are not hello's, no protocol version is common, or the
            client means another cluster.

    """
    if len(fields) != 6:
        raise InvalidArgument(f"hello has 6 fields after its time limit; these are {len(fields)}")
    lowest, highest, software, cluster_id, features, mechanisms = fields
    if type(lowest) is not int or type(highest) is not int or not 0 < lowest <= highest:
        raise InvalidArgument("hello's protocol versions must be two whole numbers, lowest first")
    if type(software) is not str or not _are_names(features) or not _are_names(mechanisms):
        raise InvalidArgument("hello's software version, features and mechanisms must be text")
    if type(cluster_id) is not int or not 0 <= cluster_id <= CLUSTER_ID_MAX:
        raise InvalidArgument(f"hello's cluster id must be from 0 to {CLUSTER_ID_MAX}")
    version = min(highest, PROTOCOL_VERSION)
    if version < max(lowest, PROTOCOL_VERSION_MIN):
        older = "client" if highest < PROTOCOL_VERSION_MIN else "server"
        raise InvalidArgument(
            f"no common protocol version: the client speaks {lowest} to {highest}, this server "
            f"(pegaskv {VERSION}) speaks {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}",
            hint=f"upgrade the {older}",
            details={"protocol_versions": [PROTOCOL_VERSION_MIN, PROTOCOL_VERSION]},
        )
    if cluster_id not in (0, identity.cluster_id):
        raise InvalidArgument(
            f"this is cluster `{identity.cluster_name}` with id {identity.cluster_id}; "
            f"the client asked for id {cluster_id}",
            hint="check the address, or the cluster id in the client's configuration",
        )
    return (
        version,
        VERSION,
        identity.cluster_name,
        identity.cluster_id,
        identity.cluster_uuid,
        identity.node_id,
        [SERVER_FEATURE] if SERVER_FEATURE in features else [],
        [],
        dict(announced),
    )


def _are_names(value: Any) -> bool:
    return type(value) is list and all(type(name) is str for name in value)
