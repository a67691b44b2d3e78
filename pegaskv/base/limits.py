"""Every bound of the system in one place, with the relations between them.

A bound that an operator may want to move is an option whose default stands
here. What must hold between bounds is asserted at the end of this file.
"""

from typing import Final

__all__ = [
    "BATCH_ROWS_MAX",
    "BEFORE_HELLO_BYTES_MAX",
    "CLIENT_FRAME_BYTES_MAX",
    "CONNECTION_BYTES_IN_FLIGHT_MAX",
    "CONNECTION_OUTPUT_BYTES_MAX",
    "CONNECTION_OUTPUT_PAUSE_BYTES",
    "CONNECTION_REQUESTS_IN_FLIGHT_MAX",
    "CONTAINER_VALUES",
    "ENV_COUNT_MAX",
    "ENV_VALUE_BYTES_MAX",
    "FRAME_MESSAGES_MAX",
    "FRAME_SHARED_BYTES_MAX",
    "FRAME_UNCOUNTED_BYTES_MAX",
    "FRAME_VALUES_MAX",
    "HASH_KEY_BYTES_MAX",
    "MUTATION_BYTES_MAX",
    "MUTATION_OPERATIONS_MAX",
    "OPERATION_ROWS_MAX",
    "PAGE_BYTES_MAX",
    "PAGE_ROWS_MAX",
    "PAGE_TIME_MS_MAX",
    "PARTITION_BYTES_UNAPPLIED_MAX",
    "PARTITION_BYTES_UNCOMMITTED_MAX",
    "PARTITION_COUNT_MAX",
    "PARTITION_MUTATIONS_UNCOMMITTED_MAX",
    "PEER_FRAME_BYTES",
    "PEER_UNANSWERED_BYTES_MAX",
    "PROCESS_BYTES_IN_FLIGHT_MAX",
    "REPLICA_COUNT_MAX",
    "REPLY_FLUSH_BYTES",
    "REQUEST_VALUES_MAX",
    "SERVER_FRAME_BYTES_MAX",
    "SORT_KEY_BYTES_MAX",
    "SPIN_US_MAX",
    "TABLE_NAME_BYTES_MAX",
    "TIMEOUT_MS_MAX",
    "TRIGGER_SECONDS_MAX",
    "TTL_SECONDS_MAX",
    "VALUE_BYTES_MAX",
]

# Frames.
CLIENT_FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
SERVER_FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
BEFORE_HELLO_BYTES_MAX: Final = 4 * 1024
FRAME_MESSAGES_MAX: Final = 1_024
# Arrays, maps, numbers and strings in one frame. Sixteen million empty maps fit 16 MiB and
# take a gigabyte once decoded; a frame that is short cannot do much, and is not counted.
FRAME_VALUES_MAX: Final = 1024 * 1024
FRAME_UNCOUNTED_BYTES_MAX: Final = 64 * 1024
# The same in a frame of requests: a server that decodes one serves nobody else meanwhile.
REQUEST_VALUES_MAX: Final = 256 * 1024
# A sender puts several messages into one frame up to this size: then the count never bites.
FRAME_SHARED_BYTES_MAX: Final = 160 * 1024
# Servers put what they tell each other in one turn into one frame up to about this size.
PEER_FRAME_BYTES: Final = 4 * 1024 * 1024
# What one replica server may have sent to another without an answer; then the partitions that
# wait for it take no more, and soon it is removed from them.
PEER_UNANSWERED_BYTES_MAX: Final = 64 * 1024 * 1024
# What an array or map counts beside what is in it: an empty one takes its time too.
CONTAINER_VALUES: Final = 3

# Rows. A hash key of 65 535 bytes would collide with the reserved keys.
HASH_KEY_BYTES_MAX: Final = 65_534
SORT_KEY_BYTES_MAX: Final = 1024 * 1024
VALUE_BYTES_MAX: Final = 1024 * 1024
# Expiry is a u32 of seconds since 2016: a time to live ends before it wraps.
TTL_SECONDS_MAX: Final = 2_000_000_000
# For when a manual compaction may be ordered, from 1970 on: the end of 9999.
TRIGGER_SECONDS_MAX: Final = 253_402_300_799

# Pages of a reply.
PAGE_BYTES_MAX: Final = 1024 * 1024
PAGE_ROWS_MAX: Final = 1_000
PAGE_TIME_MS_MAX: Final = 20
REPLY_FLUSH_BYTES: Final = 64 * 1024

# One batch_* request may name this many rows.
BATCH_ROWS_MAX: Final = 1_000
# One multi-operation on one hash key, which is one operation of a mutation.
OPERATION_ROWS_MAX: Final = 10_000

# What one connection may have under way, and may leave unread.
CONNECTION_REQUESTS_IN_FLIGHT_MAX: Final = 1_024
CONNECTION_BYTES_IN_FLIGHT_MAX: Final = 16 * 1024 * 1024
CONNECTION_OUTPUT_PAUSE_BYTES: Final = 1024 * 1024
CONNECTION_OUTPUT_BYTES_MAX: Final = 16 * 1024 * 1024
PROCESS_BYTES_IN_FLIGHT_MAX: Final = 256 * 1024 * 1024

# One partition's open mutation, and what it may have prepared and not committed.
MUTATION_OPERATIONS_MAX: Final = 1_000
MUTATION_BYTES_MAX: Final = 1024 * 1024
PARTITION_MUTATIONS_UNCOMMITTED_MAX: Final = 64
PARTITION_BYTES_UNCOMMITTED_MAX: Final = 16 * 1024 * 1024
# Committed rows that a stalled engine has not taken.
PARTITION_BYTES_UNAPPLIED_MAX: Final = 8 * 1024 * 1024

# Tables.
TABLE_NAME_BYTES_MAX: Final = 64
PARTITION_COUNT_MAX: Final = 1_024
REPLICA_COUNT_MAX: Final = 5
ENV_COUNT_MAX: Final = 64
ENV_VALUE_BYTES_MAX: Final = 1_024

TIMEOUT_MS_MAX: Final = 3_600_000
SPIN_US_MAX: Final = 10_000

# A frame carries a request with the largest row, and a full page with its last row.
assert HASH_KEY_BYTES_MAX + SORT_KEY_BYTES_MAX + VALUE_BYTES_MAX < CLIENT_FRAME_BYTES_MAX // 2
assert PAGE_BYTES_MAX + SORT_KEY_BYTES_MAX + VALUE_BYTES_MAX < CLIENT_FRAME_BYTES_MAX // 2
assert CLIENT_FRAME_BYTES_MAX <= SERVER_FRAME_BYTES_MAX
assert PEER_FRAME_BYTES < CLIENT_FRAME_BYTES_MAX
# A frame of one full page or operation passes the count, and so does whatever is shared. The
# shortest thing that is sent in numbers is [2, b""]: 4 bytes, and one value of what holds it.
assert FRAME_SHARED_BYTES_MAX * (3 + CONTAINER_VALUES) // 4 <= REQUEST_VALUES_MAX
assert REQUEST_VALUES_MAX <= FRAME_VALUES_MAX
assert (5 + CONTAINER_VALUES) * max(BATCH_ROWS_MAX, OPERATION_ROWS_MAX) < REQUEST_VALUES_MAX
assert 4 * PAGE_ROWS_MAX < FRAME_VALUES_MAX
assert BEFORE_HELLO_BYTES_MAX < FRAME_UNCOUNTED_BYTES_MAX < CLIENT_FRAME_BYTES_MAX
assert CLIENT_FRAME_BYTES_MAX <= CONNECTION_BYTES_IN_FLIGHT_MAX <= PROCESS_BYTES_IN_FLIGHT_MAX
assert REPLY_FLUSH_BYTES < CONNECTION_OUTPUT_PAUSE_BYTES < CONNECTION_OUTPUT_BYTES_MAX
# The largest single write still fits a partition's window.
assert MUTATION_BYTES_MAX <= PARTITION_BYTES_UNCOMMITTED_MAX
