"""The end of a log that may be shipped, and its newest part in memory."""

from random import Random

from pegaskv.codec.mutations import OperationKind, encode_mutation
from pegaskv.replica.participation import Participation, SourceFacts
from pegaskv.replica.shipping import RECENT_BYTES_MAX, Shipping, ShippingMemory


def pinned_state() -> Participation:
    state = Participation()
    state.obey(OperationKind.PIN, [b"u" * 16], 1)
    return state


def pinned(committed: int = 0) -> Shipping:
    shipping = Shipping(committed, 7)
    shipping.look(pinned_state())
    return shipping


def payload(timestamp_us: int, operations: int = 1, size: int = 0) -> bytes:
    return encode_mutation(timestamp_us, [bytes(size)] * operations)


def test_shippable_is_what_is_both_committed_and_synced() -> None:
    shipping = pinned()
    told: list[int] = []
    shipping.subscribe(lambda: told.append(shipping.shippable))
    for decree in (1, 2, 3):
        shipping.remember(decree, payload(decree * 100, 5))
    shipping.advance(2)
    assert (shipping.shippable, shipping.clock_us) == (0, 7)
    shipping.synced = 1
    shipping.advance(2)
    assert (shipping.shippable, shipping.clock_us) == (1, 104)
    shipping.synced = 3
    shipping.advance(2)
    shipping.advance(1)
    assert (shipping.shippable, shipping.clock_us) == (2, 204)
    assert told == [1, 2]
    assert [decree for decree, _ in shipping.recent(1, 1 << 20) or []] == [1, 2]
    assert [decree for decree, _ in shipping.recent(1, 1) or []] == [1]
    assert shipping.recent(3, 1) == []


def test_memory_is_bounded_and_keeps_the_newest() -> None:
    shipping = pinned()
    size = 100_000
    count = 2 * RECENT_BYTES_MAX // size
    for decree in range(1, count + 1):
        shipping.remember(decree, payload(decree, 1, size))
    shipping.synced = count
    shipping.advance(count)
    assert shipping.recent(1, 1) is None
    assert shipping.recent(count // 2, 1) is None
    kept = shipping.recent(count // 2 + 5, 1 << 40)
    assert kept is not None
    assert kept[-1][0] == count
    assert sum(len(each) for _, each in kept) <= RECENT_BYTES_MAX
    shipping.remember(count + 1, payload(1, 1, 2 * RECENT_BYTES_MAX))
    shipping.synced = count + 1
    shipping.advance(count + 1)
    assert len(shipping.recent(count + 1, 1) or []) == 1


def test_all_partitions_together_keep_what_they_may_and_the_newest_stays() -> None:
    memory = ShippingMemory(1_000_000)
    partitions = [pinned() for _ in range(40)]
    decrees = dict.fromkeys(range(40), 0)
    random = Random(5)
    seen = set()
    for _ in range(3_000):
        index = random.randrange(40)
        one = partitions[index]
        one.memory = memory
        match random.randrange(12):
            case 0:
                one.forget(decrees[index] - random.randrange(3))
            case 1 if random.random() < 0.2:
                one.look(Participation())
                one.look(pinned_state())
            case _:
                # Now and then a decree comes again.
                decrees[index] = max(1, decrees[index] + (random.random() < 0.9))
                size = random.choice([10, 20_000, 60_000])
                one.remember(decrees[index], payload(1, 1, size))
                assert one.recent_bytes >= size, "the newest is not in memory"
        kept = sum(each.recent_bytes for each in partitions)
        assert memory.bytes == kept <= 1_000_000
        seen.add(kept > 800_000)
    assert seen == {False, True}
    # One that is larger than all that may be kept is kept alone.
    partitions[3].remember(decrees[3] + 1, payload(1, 1, 2_000_000))
    assert [each.recent_bytes > 0 for each in partitions] == [n == 3 for n in range(40)]
    partitions[3].give_back()
    assert memory.bytes == 0


def test_what_is_proposed_again_takes_the_place_of_what_was_there() -> None:
    shipping = pinned()
    for decree in (1, 2, 3):
        shipping.remember(decree, payload(900 + decree))
    for decree in (2, 3, 4):
        shipping.remember(decree, payload(100 * decree))
    shipping.synced = 4
    shipping.advance(3)
    assert [each for _, each in shipping.recent(1, 1 << 20) or []] == [
        payload(901),
        payload(200),
        payload(300),
    ]
    # Decrees that went by unseen leave no hole.
    shipping.remember(9, payload(1_000))
    assert shipping.recent(4, 1) is None


def test_what_every_target_has_leaves_the_memory() -> None:
    shipping = pinned()
    for decree in range(1, 6):
        shipping.remember(decree, payload(decree))
    shipping.synced = 5
    shipping.advance(5)
    shipping.forget(3)
    assert shipping.recent(3, 1) is None
    assert [decree for decree, _ in shipping.recent(4, 1 << 20) or []] == [4, 5]
    shipping.forget(5)
    assert shipping.recent(6, 1) is None


def test_without_a_pin_nothing_stays_in_memory() -> None:
    shipping = pinned()
    shipping.confirmed[b"u" * 16] = 5
    shipping.remember(1, payload(1))
    told: list[bool] = []
    end = shipping.subscribe(lambda: told.append(shipping.pinned))
    shipping.look(Participation())
    assert told == [False]
    assert shipping.recent(1, 1) is None
    assert not shipping.confirmed
    end()
    end()
    shipping.notify()
    assert told == [False]


def test_a_primary_that_is_made_one_may_ship_what_is_committed_only_if_that_is_synced() -> None:
    for durable, shippable in ((True, 9), (False, 4)):
        shipping = pinned(4)
        shipping.synced = 12
        shipping.restart(9, 500, durable=durable)
        assert shipping.shippable == shippable
        assert shipping.terms == 1
        # What was synced under another primary above the commit point may be exchanged by now.
        shipping.advance(12)
        assert shipping.shippable == shippable
        shipping.synced = 12
        shipping.advance(12)
        assert (shipping.shippable, shipping.clock_us) == (12, 500)


def test_what_was_confirmed_counts_while_nothing_unknown_may_come_back() -> None:
    shipping, state = pinned(), pinned_state()
    uuid, back = next(iter(state.pins)), b"b" * 16
    assert shipping.confirmed_us(uuid, state) == 0
    shipping.confirmed[uuid] = 7
    assert shipping.confirmed_us(uuid, state) == 7
    shipping.back[uuid] = {0: (back,)}
    assert shipping.confirmed_us(uuid, state) == 0
    state.sources[back] = SourceFacts(2, "uuid", "name", 1)
    assert shipping.confirmed_us(uuid, state) == 7
