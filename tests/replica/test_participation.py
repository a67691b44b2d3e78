"""What the log makes of a partition's duplications, whoever reads it and however often."""

import pytest

from pegaskv.base.errors import CorruptionError
from pegaskv.codec.keys import encode_key
from pegaskv.codec.messages_duplication import progress_key
from pegaskv.codec.mutations import OperationKind, encode_mutation, encode_operation
from pegaskv.codec.values import make_timetag, pack_row_header
from pegaskv.replica.participation import (
    BROKEN,
    PIN_PREFIX,
    PROGRESS_PREFIX,
    SOURCE_PREFIX,
    Participation,
    SourceFacts,
    pack_progress,
)
from pegaskv.replica.replay import mutation_effects, mutation_rows

A, B = b"a" * 16, b"b" * 16
FACTS = SourceFacts(7, "uuid", "other", 3)
TOMBSTONE = pack_row_header(0, make_timetag(5, 1, deleted=True))
KEY = encode_key(b"h", b"s")


def delete() -> bytes:
    return encode_operation(OperationKind.WRITE, 0, [KEY, TOMBSTONE])


def order(kind: OperationKind, *fields: bytes) -> bytes:
    return encode_operation(kind, 0, list(fields))


def test_a_delete_stays_from_the_first_order_on_and_to_the_last_one() -> None:
    state = Participation()
    operations = [
        delete(),
        order(OperationKind.PIN, A),
        delete(),
        order(OperationKind.SOURCE, B, FACTS.encode()),
        order(OperationKind.UNPIN, A, BROKEN),
        delete(),
        order(OperationKind.UNPIN, A),
        delete(),
        order(OperationKind.FORGET, B),
        delete(),
    ]
    payload = encode_mutation(1, operations)
    rows = mutation_rows(payload, 9, state)
    kept = [row for key, row in zip(rows[::2], rows[1::2], strict=True) if key == KEY]
    assert kept == [None, TOMBSTONE, TOMBSTONE, TOMBSTONE, None]
    assert not state.keeps_tombstones
    assert [kind for kind, _ in mutation_effects(payload, 9, Participation())[1]] == [
        OperationKind.PIN,
        OperationKind.SOURCE,
        OperationKind.UNPIN,
        OperationKind.UNPIN,
        OperationKind.FORGET,
    ]


def test_the_first_pin_of_a_uuid_holds() -> None:
    state = Participation()
    assert state.obey(OperationKind.PIN, [A], 5) == [PIN_PREFIX + A, (5).to_bytes(8, "big")]
    state.obey(OperationKind.PIN, [A], 9)
    assert state.pins == {A: 5}
    assert state.holds_log
    state.obey(OperationKind.UNPIN, [A, BROKEN], 10)
    state.obey(OperationKind.PIN, [A], 11)
    assert state.pins == {A: 0}
    assert not state.holds_log
    assert state.keeps_tombstones


def test_forgetting_a_source_takes_its_progress_and_no_other() -> None:
    state = Participation()
    streams = [progress_key(A, 4, 0), progress_key(A, 4, 2), progress_key(B, 4, 0)]
    for number, stream in enumerate(streams):
        fields = [KEY, TOMBSTONE, PROGRESS_PREFIX + stream, pack_progress(number, 100)]
        rows = mutation_rows(
            encode_mutation(1, [encode_operation(OperationKind.RECEIVED, 0, list(fields))]),
            number,
            state,
        )
        assert rows == fields
        assert state.progress_in(rows) == {stream: (number, 100)}
    gone = state.obey(OperationKind.FORGET, [A], 1)
    assert gone[::2] == [SOURCE_PREFIX + A, *(PROGRESS_PREFIX + each for each in streams[:2])]
    assert set(gone[1::2]) == {None}
    assert state.progress == {streams[2]: (2, 100)}


def test_what_stands_in_the_engine_is_what_the_log_made() -> None:
    state = Participation()
    stored: dict[bytes, bytes | None] = {}
    rows = [
        *state.obey(OperationKind.PIN, [A], 5),
        *state.obey(OperationKind.SOURCE, [B, FACTS.encode()], 6),
        PROGRESS_PREFIX + progress_key(B, 2, 1),
        pack_progress(8, 9),
    ]
    state.note_received(rows[-2:])
    stored.update(zip(rows[::2], rows[1::2], strict=True))  # type: ignore[arg-type]
    found = Participation.read((key, row) for key, row in stored.items() if row is not None)
    assert (found.pins, found.sources, found.progress) == (
        state.pins,
        state.sources,
        state.progress,
    )
    copy = found.copy()
    copy.obey(OperationKind.FORGET, [B], 7)
    copy.obey(OperationKind.UNPIN, [A], 7)
    assert found.keeps_tombstones
    assert found.progress
    assert [(stream.source_index, decree) for stream, decree, _ in found.streams(B)] == [(1, 8)]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (OperationKind.PIN, []),
        (OperationKind.PIN, [A, B]),
        (OperationKind.PIN, ["text"]),
        (OperationKind.UNPIN, [A, BROKEN, A]),
        (OperationKind.SOURCE, [A]),
        (OperationKind.SOURCE, [A, b"no facts"]),
        (OperationKind.SOURCE, [A, b"\x93\x01\x02\x03"]),
        (OperationKind.FORGET, [None]),
    ],
)
def test_an_order_that_does_not_carry_what_it_should_closes_the_replica(
    kind: OperationKind, fields: list[bytes]
) -> None:
    state = Participation()
    with pytest.raises(CorruptionError):
        mutation_rows(encode_mutation(1, [encode_operation(kind, 0, list(fields))]), 1, state)
    assert not state.keeps_tombstones


@pytest.mark.parametrize(
    ("key", "row"),
    [
        (PROGRESS_PREFIX + b"short", pack_progress(1, 1)),
        (PROGRESS_PREFIX + progress_key(A, 1, 0), b"short"),
        (SOURCE_PREFIX + A, b"no facts"),
    ],
)
def test_damaged_rows_of_the_server_are_told(key: bytes, row: bytes) -> None:
    with pytest.raises(CorruptionError):
        Participation.read([(key, row)])


def test_what_reaches_behind_a_loss_is_set_anew_and_lost_rows_make_all_progress_unsure() -> None:
    stream = progress_key(B, 1, 0)

    def state() -> Participation:
        found = Participation()
        for uuid, decree in ((A, 5), (b"c" * 16, 9), (b"d" * 16, 4)):
            found.obey(OperationKind.PIN, [uuid], decree)
        found.obey(OperationKind.UNPIN, [b"d" * 16, BROKEN], 6)
        found.obey(OperationKind.SOURCE, [B, FACTS.encode()], 7)
        found.note_progress(PROGRESS_PREFIX + stream, pack_progress(50, 60))
        return found

    one = state()
    assert one.lose(0, rows=False) == []
    # Decrees from 9 on are used again: a pin of one of them is a new one.
    assert one.lose(9, rows=False) == [PIN_PREFIX + A, None]
    assert one.pins == {b"c" * 16: 9, b"d" * 16: 0}
    assert one.progress == {stream: (50, 60)}
    one = state()
    rows = one.lose(1 << 63, rows=True)
    assert set(rows[::2]) == {PIN_PREFIX + A, PIN_PREFIX + b"c" * 16, PROGRESS_PREFIX + stream}
    assert set(rows[1::2]) == {None}
    # Who may send, and what was broken before, stays.
    assert (one.pins, one.sources, one.progress) == ({b"d" * 16: 0}, {B: FACTS}, {})
