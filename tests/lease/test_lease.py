"""Leases and graces: whoever has lost a lease stops before anybody else may lead."""

import random

import pytest

from pegaskv.base.errors import ConfigurationError
from pegaskv.lease.lease import FOR_EVER, Grace, PrimaryLease
from pegaskv.lease.options import LeaseOptions

OPTIONS = LeaseOptions()


def test_a_primary_without_members_never_loses_its_lease() -> None:
    lease = PrimaryLease(OPTIONS)
    lease.set_members([], 7)
    assert lease.until == FOR_EVER
    assert lease.valid(1 << 50)


def test_a_lease_counts_from_the_sending_of_what_was_acknowledged() -> None:
    lease = PrimaryLease(OPTIONS)
    lease.set_members(["a", "b"], 1_000)
    assert not lease.valid(1_000)
    lease.acknowledged("a", 1_000)
    assert not lease.valid(1_000)
    lease.acknowledged("b", 1_500)
    assert lease.valid(4_999)
    assert not lease.valid(5_000)


def test_a_late_acknowledgement_of_an_old_beacon_takes_nothing_back() -> None:
    lease = PrimaryLease(OPTIONS)
    lease.set_members(["a"], 0)
    lease.acknowledged("a", 2_000)
    lease.acknowledged("a", 1_000)
    lease.acknowledged("stranger", 9_000)
    assert lease.until == 6_000


def test_a_new_member_has_agreed_to_nothing_and_the_others_keep_what_they_have() -> None:
    lease = PrimaryLease(OPTIONS)
    lease.set_members(["a"], 0)
    lease.acknowledged("a", 3_000)
    lease.set_members(["a", "b"], 3_500)
    assert not lease.valid(3_500)
    lease.acknowledged("b", 3_500)
    assert lease.until == 7_000
    lease.set_members(["b"], 3_600)
    assert lease.until == 7_500


@pytest.mark.parametrize(
    ("beacon_ms", "lease_ms", "grace_ms", "timeout_ms"),
    [(1_000, 5_000, 5_000, 2_000), (3_000, 4_000, 5_000, 2_000), (0, 4, 5, 1), (1, 4, 5, 0)],
)
def test_times_that_could_let_two_serve_are_refused(
    beacon_ms: int, lease_ms: int, grace_ms: int, timeout_ms: int
) -> None:
    with pytest.raises(ConfigurationError):
        LeaseOptions(beacon_ms, lease_ms, grace_ms, timeout_ms)


@pytest.mark.parametrize("seed", range(40))
def test_no_secondary_may_lead_while_the_primary_may_serve_whatever_the_wire_does(
    seed: int,
) -> None:
    """Clocks drift by up to (grace - lease) / lease against each other."""
    rng = random.Random(seed)
    options = LeaseOptions()
    drift = (options.grace_ms - options.lease_ms) / options.lease_ms
    rate = 1 + rng.uniform(-0.99, 0.99) * drift / (1 + drift)
    offset = rng.randrange(10_000_000)

    def there(now_ms: float) -> int:
        return int(now_ms * rate) + offset

    lease = PrimaryLease(options)
    lease.set_members(["s"], 0)
    grace = Grace(options, there(0))
    beacons: list[tuple[float, int]] = []
    answers: list[tuple[float, int]] = []
    now = served = claimable = 0.0
    claimed = False
    while now < 60_000:
        now += rng.uniform(1, 400)
        if rng.random() < 0.6:
            beacons.append((now + rng.choice([1, 50, 3_000, 9_000]) * rng.random(), int(now)))
        for arrived, sent in [one for one in beacons if one[0] <= now]:
            beacons.remove((arrived, sent))
            if not claimed:
                # Who has asked to lead acknowledges its old primary nothing any more.
                grace.heard(there(now))
                answers.append((now + rng.choice([1, 50, 5_000]) * rng.random(), sent))
        for arrived, sent in [one for one in answers if one[0] <= now]:
            answers.remove((arrived, sent))
            lease.acknowledged("s", sent)
        serves, over = lease.valid(int(now)), grace.over(there(now))
        claimed = claimed or (over and rng.random() < 0.5)
        assert not (serves and claimed)
        served += serves
        claimable += over
    assert served or claimable
