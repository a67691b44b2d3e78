"""What bounds the connections of a server: how many, and how long each may keep us waiting."""

from dataclasses import dataclass

from pegaskv.base.limits import (
    BEFORE_HELLO_BYTES_MAX,
    CONNECTION_BYTES_IN_FLIGHT_MAX,
    CONNECTION_OUTPUT_BYTES_MAX,
    CONNECTION_OUTPUT_PAUSE_BYTES,
    CONNECTION_REQUESTS_IN_FLIGHT_MAX,
    PROCESS_BYTES_IN_FLIGHT_MAX,
)

__all__ = ["AcceptorOptions"]


@dataclass(frozen=True, slots=True)
class AcceptorOptions:
    """Bounds over all connections and of each; the defaults of most stand in `base/limits.py`.

    Times are looked at every `sweep_interval_ms`, so they are kept to within that.
    """

    connections_max: int = 10_000
    connections_per_address_max: int = 1_000
    # A connection with a descriptor above this is refused: the files left are for storage.
    descriptor_max: int = 1 << 30
    # Requests under way, with those that wait to be decoded, over all connections and of one.
    bytes_in_flight_max: int = PROCESS_BYTES_IN_FLIGHT_MAX
    connection_requests_max: int = CONNECTION_REQUESTS_IN_FLIGHT_MAX
    connection_in_flight_bytes_max: int = CONNECTION_BYTES_IN_FLIGHT_MAX
    # Replies that nobody has read, over all connections; who leaves most unread is cut off.
    bytes_unsent_max: int = PROCESS_BYTES_IN_FLIGHT_MAX
    # The same of one: from the first on its requests are not read, at the second it is cut off.
    connection_unsent_pause_bytes: int = CONNECTION_OUTPUT_PAUSE_BYTES
    connection_unsent_bytes_max: int = CONNECTION_OUTPUT_BYTES_MAX
    # The most of the loop's time, in percent, for clients that send or ask for much at once, while
    # others call too; 100 = all of it.
    bulk_share_percent: int = 10
    # What a connection may send before its hello is accepted: one frame.
    hello_bytes_max: int = BEFORE_HELLO_BYTES_MAX
    # A connection that has not said hello by then is closed.
    hello_timeout_ms: int = 5_000
    # A frame that began and is not complete by then closes its connection.
    partial_frame_timeout_ms: int = 10_000
    # A peer that reads none of its replies for so long is cut off.
    output_stall_timeout_ms: int = 30_000
    # What is refused stays open so long, since closing at once may destroy the answer on its way.
    linger_ms: int = 1_000
    lingering_max: int = 64
    sweep_interval_ms: int = 250
    # Broken frames of one kind are logged once in this time, with their number.
    log_interval_ms: int = 60_000
