"""The streams of one source partition against targets that lose, repeat and forget."""

import random
from dataclasses import dataclass, field

import pytest

from pegaskv.codec.keys import RESERVED_PREFIX
from pegaskv.codec.messages_duplication import ShippedRecord
from pegaskv.codec.mutations import (
    OperationKind,
    decode_mutation,
    encode_mutation,
    encode_operation,
)
from pegaskv.duplication.machine import Batch, LogMachine, Lost, target_indices
from pegaskv.duplication.slicing import content_of

WRITE, RECEIVED = OperationKind.WRITE, OperationKind.RECEIVED


def write(number: int, partition_hash: int) -> bytes:
    return encode_operation(WRITE, partition_hash, [b"%d" % number, b"row"])


def received(rows: int) -> bytes:
    progress = [RESERVED_PREFIX + b"progress/" + bytes(24), bytes(16)]
    return encode_operation(RECEIVED, 0, [b"key", b"a row"] * rows + progress)


@dataclass
class Target:
    """A target's partitions as the protocol demands; it counts what it applies."""

    progress: dict[int, int]
    applied: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def take(self, batch: Batch) -> int:
        """Apply a batch if its time has come; return the progress."""
        at = self.progress[batch.target]
        if batch.previous > at or batch.last <= at:
            return at
        pairs = iter(batch.mutations)
        for decree, payload in zip(pairs, pairs, strict=True):
            assert isinstance(payload, bytes)
            assert isinstance(decree, int)
            assert batch.previous < decree <= batch.last
            if decree <= at:
                continue
            for kind, partition_hash, fields in decode_mutation(payload):
                assert kind is WRITE
                self.applied.setdefault(batch.target, []).append((decree, int(fields[0])))
                assert partition_hash is not None
        self.progress[batch.target] = batch.last
        return batch.last


@dataclass
class Log:
    """A source's log, with what each target partition must get of it."""

    mask: int
    records: list[ShippedRecord] = field(default_factory=list)
    expected: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    written: int = 0

    def append(self, rng: random.Random, classes: list[int], start: int) -> None:
        """Add a mutation: own operations, received ones, both, or a barrier."""
        decree = start + len(self.records) + 1
        operations = []
        for _ in range(rng.choice([0, 1, 1, 2, 5])):
            if rng.random() < 0.25:
                operations.append(received(rng.randrange(3)))
                continue
            self.written += 1
            partition_hash = rng.choice(classes) | rng.randrange(8) << 6
            operations.append(write(self.written, partition_hash))
            self.expected.setdefault(partition_hash & self.mask, []).append((decree, self.written))
        timestamp = 1_000 * decree
        self.records.append(ShippedRecord(decree, encode_mutation(timestamp, operations)))


@pytest.mark.parametrize(
    ("index", "count", "remote", "expected"),
    [
        (3, 8, 8, [3]),
        (3, 8, 2, [1]),
        (1, 2, 8, [1, 3, 5, 7]),
        (0, 1, 1, [0]),
        (5, 8, 1, [0]),
        (0, 1, 4, [0, 1, 2, 3]),
    ],
)
def test_a_source_partition_writes_to_its_hash_class_only(
    index: int, count: int, remote: int, expected: list[int]
) -> None:
    assert target_indices(index, count, remote) == expected


@pytest.mark.parametrize("seed", range(120))
def test_every_own_operation_arrives_once_in_order_whatever_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    count, remote = rng.choice([1, 2, 4]), rng.choice([1, 2, 4, 8])
    index = rng.randrange(count)
    targets = target_indices(index, count, remote)
    classes = [index + count * high for high in range(64 // count)]
    start = rng.choice([1, 7])
    log = Log(remote - 1)
    target = Target(dict.fromkeys(targets, 0))
    stored = rewinds = 0
    machine = LogMachine(index, count, remote, start_decree=start)
    flying: list[Batch] = []

    def opened() -> None:
        nonlocal rewinds
        rewinds += 1
        flying.clear()
        lost = machine.opened(
            {index: (decree, 1_000 * decree) for index, decree in target.progress.items()},
            committed_decree=start + len(log.records),
            confirmed_decree=stored,
        )
        assert lost is None, lost

    def ship(most: int) -> None:
        shippable = start + len(log.records)
        records = log.records[machine.read - start :][:most]
        if records:
            clock = 1_000 * shippable
            flying.extend(machine.take(records, shippable_decree=shippable, clock_us=clock))

    def answer(position: int) -> None:
        batch = flying.pop(position)
        if not machine.acked(batch.target, target.take(batch)):
            opened()

    opened()
    for _ in range(150):
        match rng.randrange(8):
            case 0 | 1 | 2:
                log.append(rng, classes, start)
            case 3 | 4:
                ship(rng.randrange(1, 6))
            case 5 if flying:
                # Those of one stream are answered in their order; or one is lost on its way.
                first = next(i for i, b in enumerate(flying) if b.target == flying[-1].target)
                answer(first)
            case 6 if rng.random() < 0.3:
                for batch in rng.sample(flying, rng.randrange(len(flying) + 1)):
                    # It arrived, late or early, and its answer did not.
                    target.take(batch)
                opened()
            case 7:
                flying.extend(machine.empty_batches())
        machine.check()
        assert machine.stored_decree >= stored
        stored = machine.stored_decree
        assert machine.confirmed_decree <= start + len(log.records)
    while machine.read < start + len(log.records):
        ship(3)
    while flying:
        answer(0)
    assert machine.confirmed_decree == start + len(log.records)
    flying.extend(machine.empty_batches())
    while flying:
        answer(0)
    assert {t: rows for t, rows in target.applied.items() if rows} == log.expected
    assert log.written, "nothing was written"
    assert not machine.wants_empty_batches


def test_the_last_write_is_a_batch_of_its_own_and_confirms_at_once() -> None:
    machine = LogMachine(0, 1, 1, start_decree=1)
    assert machine.opened({0: (0, 0)}, committed_decree=1, confirmed_decree=0) is None
    record = ShippedRecord(2, encode_mutation(500, [write(1, 0)]))
    (batch,) = machine.take([record], shippable_decree=2, clock_us=600)
    assert (batch.previous, batch.last, batch.clock_us) == (0, 2, 600)
    assert machine.confirmed_decree == 1
    assert machine.acked(0, 2)
    assert machine.confirmed_decree == 2
    assert machine.stored_clock_us == 600


def test_the_clock_of_what_was_answered_on_a_broken_connection_is_told_when_it_is_opened() -> None:
    machine = LogMachine(0, 1, 2, start_decree=1)
    machine.opened({0: (4, 700), 1: (4, 600)}, committed_decree=4, confirmed_decree=0)
    # Nothing is left to ship, so no answer will ever tell.
    assert not machine.wants_empty_batches
    assert (machine.stored_decree, machine.stored_clock_us) == (4, 600)


def test_progress_alone_is_no_reason_for_an_empty_batch_and_received_rows_are() -> None:
    machine = LogMachine(0, 1, 1, start_decree=1)
    machine.opened({0: (0, 0)}, committed_decree=1, confirmed_decree=0)
    alone = ShippedRecord(2, encode_mutation(500, [received(0)]))
    assert machine.take([alone], shippable_decree=2, clock_us=600) == []
    assert machine.empty_batches() == []
    rows = ShippedRecord(3, encode_mutation(700, [received(2)]))
    assert machine.take([rows], shippable_decree=3, clock_us=800) == []
    (batch,) = machine.empty_batches()
    assert (batch.previous, batch.last, batch.mutations) == (0, 3, [])
    assert machine.confirmed_decree == 3


@pytest.mark.parametrize(
    ("progress", "shippable", "confirmed", "words"),
    [
        (12, 10, 5, "the source lost decrees 11 to 12"),
        (4, 10, 5, "the target lost"),
    ],
)
def test_a_side_that_lost_decrees_ends_it_with_a_reason(
    progress: int, shippable: int, confirmed: int, words: str
) -> None:
    machine = LogMachine(0, 1, 1, start_decree=1)
    lost = machine.opened(
        {0: (progress, 0)}, committed_decree=shippable, confirmed_decree=confirmed
    )
    assert isinstance(lost, Lost)
    assert words in lost.text


def test_an_operation_for_another_partition_stays_out_of_its_batch() -> None:
    machine = LogMachine(0, 1, 4, start_decree=1)
    machine.opened(dict.fromkeys(range(4), (0, 0)), committed_decree=1, confirmed_decree=0)
    payload = encode_mutation(500, [write(1, 0), write(2, 3), received(1), write(3, 3)])
    batches = machine.take([ShippedRecord(2, payload)], shippable_decree=2, clock_us=600)
    found = {
        batch.target: [int(fields[0]) for _, _, fields in decode_mutation(batch.mutations[1])]  # type: ignore[arg-type]
        for batch in batches
    }
    assert found == {0: [1], 3: [2, 3]}
    assert {batch.target for batch in machine.empty_batches()} == {1, 2}


def test_a_removal_that_came_in_is_more_than_progress() -> None:
    removal = encode_operation(RECEIVED, 0, [b"k", None])
    assert content_of(encode_mutation(1, [removal])).received_rows
    assert not content_of(encode_mutation(1, [received(0)])).received_rows
