"""The table of operations on the wire: number, name, fields of request and reply.

A request is `[id, operation, timeout_ms, *fields]`, a successful reply
`[id, 0, *fields]` and any other `[id, code, message, hint, details]`. `id` is the
caller's, a u32 that is unique among its requests under way. In place of
`timeout_ms` an array `[timeout_ms, client uuid, sequence]` is accepted and its
tail ignored: room for a later server-side deduplication of retries.

Data operations begin with the table id and the partition index. `docs/protocol.md`
is written from this table, and a test keeps them equal.
"""

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

__all__ = ["ANY_MEMBER", "OPERATIONS", "Operation", "OperationSpec", "RangeFlag", "ScanFlag"]

# Added to the partition index of a read: any member may answer, from what it has applied.
ANY_MEMBER: Final = 1 << 16


class Operation(IntEnum):
    """Numbers of operations; they are never reused."""

    HELLO = 0
    PING = 1

    GET = 10
    TTL = 11
    MULTI_GET = 12
    BATCH_GET = 13
    SCAN = 14
    DUPLICATION_PROGRESS = 15

    SET = 30
    DELETE = 31
    MULTI_SET = 32
    MULTI_DELETE = 33
    INCR = 34
    CHECK_AND_SET = 35
    CHECK_AND_MUTATE = 36
    BATCH_SET = 37
    BATCH_DELETE = 38

    DUPLICATE = 50
    COPY_RANGE = 51

    QUERY_CONFIG = 60
    CREATE_TABLE = 61
    DROP_TABLE = 62
    RECALL_TABLE = 63
    RENAME_TABLE = 64
    LIST_TABLES = 65
    TABLE_INFO = 66
    SET_ENVS = 67
    DELETE_ENVS = 68
    CLEAR_ENVS = 69
    LIST_NODES = 70
    CLUSTER_INFO = 71
    SERVER_INFO = 72
    GET_META_LEVEL = 73
    SET_META_LEVEL = 74
    SET_REPLICA_COUNT = 75
    BALANCE = 76
    PROPOSE_CHANGE = 77
    DIAGNOSE = 78

    ADD_DUPLICATION = 80
    MODIFY_DUPLICATION = 81
    QUERY_DUPLICATION = 82
    LIST_DUPLICATIONS = 83
    ADD_CLUSTER = 84
    REMOVE_CLUSTER = 85
    LIST_CLUSTERS = 86
    OPEN_TABLE = 87

    ENSURE_DUPLICATION = 90
    FORGET_DUPLICATION = 91

    PREPARE = 100
    ADOPT = 101
    BEACON = 102
    LEARN_BEGIN = 103
    LEARN_READ = 104
    LEARN_LOG = 105
    LEARN_JOIN = 106
    LOG_HELD = 107

    NODE_REPORT = 120
    NODE_BEACON = 121
    NODE_LEAVING = 122
    PROPOSE = 123
    REPORT_PROGRESS = 124
    CONFIGURE = 130
    OBEY = 131
    REPLICA_STATES = 132


class RangeFlag(IntFlag):
    """The `flags` of MULTI_GET."""

    START_INCLUSIVE = 1
    STOP_INCLUSIVE = 2
    REVERSE = 4
    NO_VALUE = 8


class ScanFlag(IntFlag):
    """The `flags` of SCAN."""

    NO_VALUE = 1
    RETURN_EXPIRY = 2
    COUNT_ONLY = 4


class OperationSpec(NamedTuple):
    """What a request and its successful reply carry after their first three or two elements."""

    request: str
    reply: str
    is_write: bool = False


_P: Final = "table id, partition index, "

OPERATIONS: Final[dict[Operation, OperationSpec]] = {
    Operation.HELLO: OperationSpec(
        "protocol version min, protocol version max, software version, cluster id (0 = any), "
        "[feature, ...], [auth mechanism, ...]",
        "protocol version, software version, cluster name, cluster id, cluster uuid, node id, "
        "[feature, ...], [auth mechanism, ...], {limit name: value}",
    ),
    Operation.PING: OperationSpec("", "server's wall clock in microseconds"),
    Operation.GET: OperationSpec(_P + "hash key, sort key", "value or nil"),
    Operation.TTL: OperationSpec(_P + "hash key, sort key", "seconds; -1 for ever, -2 absent"),
    Operation.MULTI_GET: OperationSpec(
        _P + "hash key, [sort key, ...] or nil, start, stop, flags, filter type, filter pattern, "
        "max rows (0 = no limit), max bytes (0 = no limit)",
        "complete, [sort key, value, sort key, value, ...] in ascending order, "
        "last sort key looked at (nil when complete): go on behind it, or with REVERSE before it",
    ),
    Operation.BATCH_GET: OperationSpec(
        _P + "[hash key, sort key, hash key, sort key, ...]", "[value or nil, ...] in order"
    ),
    Operation.SCAN: OperationSpec(
        _P + "start key (stored form, inclusive), stop key (stored form, exclusive, empty = end), "
        "flags, hash-key filter type, pattern, sort-key filter type, pattern, "
        "value filter type, pattern, max rows, max bytes",
        "stored key to go on from or nil when complete, number of rows, "
        "[stored key, value, (expiry)...] or empty with COUNT_ONLY",
    ),
    Operation.DUPLICATION_PROGRESS: OperationSpec(
        _P + "duplication uuid, source partition count, source partition index",
        "progress (0 = nothing yet), source clock in microseconds there, [uuid, ...]: as in "
        "DUPLICATE",
    ),
    Operation.SET: OperationSpec(_P + "hash key, sort key, value, ttl", "decree", True),
    Operation.DELETE: OperationSpec(_P + "hash key, sort key", "decree", True),
    Operation.MULTI_SET: OperationSpec(
        _P + "hash key, [sort key, value, sort key, value, ...], ttl", "decree", True
    ),
    Operation.MULTI_DELETE: OperationSpec(
        _P + "hash key, [sort key, ...]", "decree, number of sort keys requested", True
    ),
    Operation.INCR: OperationSpec(
        _P + "hash key, sort key, increment, ttl (0 = keep, -1 = clear)",
        "decree, new value",
        True,
    ),
    Operation.CHECK_AND_SET: OperationSpec(
        _P + "hash key, check sort key, check type, operand, set sort key or nil, value, ttl, "
        "return check value",
        "decree, passed, exists or nil, value or nil",
        True,
    ),
    Operation.CHECK_AND_MUTATE: OperationSpec(
        _P + "hash key, check sort key, check type, operand, "
        "[[1, sort key, value, ttl] or [2, sort key], ...], return check value",
        "decree, passed, exists or nil, value or nil",
        True,
    ),
    Operation.BATCH_SET: OperationSpec(
        _P + "[hash key, sort key, value, hash key, sort key, value, ...], ttl", "decree", True
    ),
    Operation.BATCH_DELETE: OperationSpec(
        _P + "[hash key, sort key, hash key, sort key, ...]", "decree", True
    ),
    Operation.DUPLICATE: OperationSpec(
        _P + "duplication uuid, source partition count, source partition index, "
        "previous decree (0 = the stream begins), last decree, source clock in microseconds, "
        "[decree, mutation, decree, mutation, ...]: all of (previous, last] that this partition "
        "gets, and nothing else",
        "decree, progress: the source decree up to which everything is stored here (below "
        "`last` when `previous` was not reached: go on from there), rows that lost by timetag, "
        "[uuid, ...]: duplications back to the source that the log is pinned for",
        True,
    ),
    Operation.COPY_RANGE: OperationSpec(
        _P + "duplication uuid, source partition count, source partition index, "
        "first stored key, stored key after the last (empty = end), source clock in microseconds "
        "of the snapshot, overwrite equal timetags, [stored key, row, ...] ascending",
        "decree, rows that lost by timetag, rows removed",
        True,
    ),
    Operation.QUERY_CONFIG: OperationSpec(
        "table name or id",
        "table id, partition count, configuration version, "
        "[[index, ballot, primary address or nil, [secondary address, ...]], ...], durability",
    ),
    Operation.CREATE_TABLE: OperationSpec(
        "name, partition count, replica count (each 0 = server's default), {env: value}, "
        "if exists (fail | same)",
        "table, created, [warning, ...]",
    ),
    Operation.DROP_TABLE: OperationSpec(
        "name, reserve seconds (-1 = server's default), if not exists (fail | ok), "
        "force (may be left out): although it takes part in a duplication",
        "table or nil",
    ),
    Operation.RECALL_TABLE: OperationSpec("table id, new name or nil", "table"),
    Operation.RENAME_TABLE: OperationSpec("old name, new name", "table"),
    Operation.LIST_TABLES: OperationSpec("with dropped", "[table, ...]"),
    Operation.TABLE_INFO: OperationSpec(
        "name", "table, [[index, ballot, primary, [secondary, ...], {replica state}], ...]"
    ),
    Operation.SET_ENVS: OperationSpec("table name, {env: value}", "table, [warning, ...]"),
    Operation.DELETE_ENVS: OperationSpec("table name, [env, ...]", "table"),
    Operation.CLEAR_ENVS: OperationSpec("table name, prefix or nil for all", "table"),
    Operation.LIST_NODES: OperationSpec("", "[[node id, address, status, {detail}], ...]"),
    Operation.CLUSTER_INFO: OperationSpec("", "{name: value}"),
    Operation.SERVER_INFO: OperationSpec("", "{name: value}"),
    Operation.GET_META_LEVEL: OperationSpec(
        "", "level (stopped | blind | freezed | steady | lively), a sentence"
    ),
    Operation.SET_META_LEVEL: OperationSpec("level", "level before, level now"),
    Operation.SET_REPLICA_COUNT: OperationSpec(
        "table name, replica count", "table, [warning, ...]"
    ),
    Operation.BALANCE: OperationSpec(
        "table id, partition index, kind (move_pri | copy_pri | copy_sec), from node id, "
        "to node id",
        "a sentence",
    ),
    Operation.PROPOSE_CHANGE: OperationSpec(
        "table id, partition index, kind (assign_primary | add_secondary | remove | downgrade), "
        "node id, accept loss",
        "a sentence",
    ),
    Operation.DIAGNOSE: OperationSpec(
        "table name or nil for all",
        "[[table id, partition index, {what is wrong, since, last members, advice}], ...]: the "
        "partitions that nobody can serve",
    ),
    Operation.ADD_DUPLICATION: OperationSpec(
        "table name, remote cluster, remote table or nil (= the same name), "
        "copy existing rows, remote replica count (0 = the table's), "
        "{option: value} (mesh, merge: bool)",
        "duplication, [warning, ...]",
    ),
    Operation.MODIFY_DUPLICATION: OperationSpec(
        "table name, duplication id, action (pause | start | copy | remove | fail_mode), "
        "argument (of fail_mode: slow | skip) or nil",
        "duplication, [warning, ...]",
    ),
    Operation.QUERY_DUPLICATION: OperationSpec("table name", "[duplication, ...]"),
    Operation.LIST_DUPLICATIONS: OperationSpec(
        "pattern, match type (all | exact | anywhere | prefix | postfix)", "[duplication, ...]"
    ),
    Operation.ADD_CLUSTER: OperationSpec(
        "name, meta servers (HOST:PORT,...), cluster id, user, password file", "{cluster}"
    ),
    Operation.REMOVE_CLUSTER: OperationSpec("name", "{cluster}"),
    Operation.LIST_CLUSTERS: OperationSpec("", "[{cluster}, ...]"),
    Operation.OPEN_TABLE: OperationSpec("table name", "table, [warning, ...]"),
    Operation.ENSURE_DUPLICATION: OperationSpec(
        "duplication uuid, source cluster uuid, source cluster id, source cluster name, "
        "source table id, table name, wanted (create | merge | existing), partition count, "
        "replica count, {env: value}, {option: value} (may be left out; mesh: bool, "
        "table_id: the id of the table that is meant; dupid, attempt: a later attempt of one "
        "duplication is never replaced by an earlier one)",
        "outcome (CREATED | ALREADY_YOURS | EXISTS_FOREIGN), table id, partition count, "
        "cluster id, cluster uuid, a sentence",
    ),
    Operation.FORGET_DUPLICATION: OperationSpec("table id (0 = any), duplication uuid", "found"),
    Operation.PREPARE: OperationSpec(
        "records (the body of a log block, incarnations 0): new mutations of partitions that the "
        "sender leads",
        "[table id, partition index, ballot known, last decree, ...]: who refused; all others "
        "are in the log here, by their tables' durability",
    ),
    Operation.ADOPT: OperationSpec(
        "table id, partition index, ballot, primary, [secondary, ...], as learner, {table}, "
        "{node id: address}",
        "accepted, ballot known, last decree",
    ),
    Operation.BEACON: OperationSpec(
        "[table id, partition index, ballot, committed decree, ...] of partitions that the "
        "sender leads and the receiver is a member of, sender's wall clock in microseconds, "
        "[table id, partition index, duplication uuid, decree, source's clock, ...]: up to where "
        "the log may go, and the target has everything",
        "[table id, partition index, ballot known, ...]: who follows somebody else; receiver's "
        "wall clock in microseconds",
    ),
    Operation.LEARN_BEGIN: OperationSpec(
        "table id, partition index, ballot, learner's node id, state that its tables have for "
        "sure or nil, name of a checkpoint that it has begun to copy or nil",
        "log is enough, first decree of the log to copy, pins {uuid as hex: decree}, checkpoint "
        "or nil: [name, state, [[file, bytes], ...]]",
    ),
    Operation.LEARN_READ: OperationSpec(
        "table id, partition index, checkpoint name, file, offset, bytes",
        "bytes, xxh3_128 of file name, a zero byte, offset u64 and these bytes",
    ),
    Operation.LEARN_LOG: OperationSpec(
        "table id, partition index, ballot, learner's node id, first decree, max bytes",
        "committed records (the body of a log block, incarnations 0), commit point, last decree "
        "prepared",
    ),
    Operation.LEARN_JOIN: OperationSpec(
        "table id, partition index, ballot, learner's node id, next decree",
        "joined: every record from the next decree on follows by PREPARE; else copy more log",
    ),
    Operation.LOG_HELD: OperationSpec(
        "table id, partition index, first decree",
        "last decree of a piece of log from there on that can be read, or 0",
    ),
    Operation.NODE_REPORT: OperationSpec(
        "node id, address, process, [[table id, partition index, ballot, last decree, "
        "committed decree, why closed, status, amnesiac], ...]",
        "cluster name, cluster id, cluster uuid",
    ),
    Operation.NODE_BEACON: OperationSpec(
        "node id, process, free bytes, disk full, [[table id, partition index, bytes copied, "
        "bytes in all], ...] of what it learns",
        "known: else report again",
    ),
    Operation.NODE_LEAVING: OperationSpec(
        "node id, process", "how many partitions still name the node"
    ),
    Operation.PROPOSE: OperationSpec(
        "proposer, table id, partition index, ballot, kind (1 claim | 2 remove | 3 upgrade | "
        "4 hand over), node id, keep, process",
        "what is stored now: ballot, primary or nil, [secondary, ...], {node id: address}",
    ),
    Operation.REPORT_PROGRESS: OperationSpec(
        "[{progress report}, ...]", "[{partition progress}, ...] as they are stored"
    ),
    Operation.CONFIGURE: OperationSpec("{push}", ""),
    Operation.OBEY: OperationSpec(
        "kind (1 add learner | 2 remove | 3 move primary | 4 discard), table id, "
        "partition index, ballot, node id, address",
        "a sentence",
    ),
    Operation.REPLICA_STATES: OperationSpec(
        "table id (0 = all)",
        "[[table id, partition index, {replica state}, {duplication uuid: {state}}], ...]",
    ),
}

assert set(OPERATIONS) == set(Operation)
