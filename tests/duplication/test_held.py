"""Log that is kept for absent targets has one bound, and who keeps most pays for it."""

from pegaskv.base.types import Gpid
from pegaskv.duplication.held import HeldLog
from pegaskv.runtime.clock import SystemClock

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


class Later(SystemClock):
    """Time passes when it is told to."""

    now = 0

    def monotonic_ms(self) -> int:
        return self.now


def test_the_one_that_keeps_most_is_given_up_and_a_partition_counts_once() -> None:
    clock = Later()
    one, two = Gpid(1, 0), Gpid(2, 0)
    held = {(one, A): 60, (one, B): 50, (two, B): 30, (two, C): 1}
    looks = 0

    def look() -> list[tuple[Gpid, bytes, int]]:
        nonlocal looks
        looks += 1
        return [(gpid, uuid, size) for (gpid, uuid), size in held.items()]

    log = HeldLog(clock, 90, lambda: 0, look)
    assert [log.why_too_much(uuid) for uuid in (A, B, C)] == [""] * 3
    held[two, B] = 31
    # It is not added up for everybody who asks.
    assert [log.why_too_much(uuid) for uuid in (A, B, C)] == [""] * 3
    assert looks == 1
    clock.now += 1_000
    assert "91 bytes" in log.why_too_much(B)
    assert [log.why_too_much(uuid) for uuid in (A, C)] == [""] * 2
    del held[one, B], held[two, B]
    clock.now += 1_000
    assert [log.why_too_much(uuid) for uuid in (A, B, C)] == [""] * 3


def test_half_of_the_free_space_is_the_bound_unless_nobody_knows_it() -> None:
    clock = Later()
    free = 0
    log = HeldLog(clock, 0, lambda: free, lambda: [(Gpid(1, 0), A, 101)])
    assert not log.why_too_much(A)
    free = 202
    clock.now += 1_000
    assert not log.why_too_much(A)
    log = HeldLog(clock, 0, lambda: 200, lambda: [(Gpid(1, 0), A, 101)])
    assert log.why_too_much(A)
    assert log.bytes_max == 100
