import asyncio

import pytest

from pegaskv.base.errors import Busy
from pegaskv.runtime.driver import drive
from pegaskv.runtime.mailbox import Mailbox
from pegaskv.runtime.tasks import TaskScope


class Doubler:
    """Answers each number with two effects."""

    def step(self, event: int, /) -> list[str]:
        return [f"append {event}", f"send {event}"]


async def test_effects_are_performed_one_after_another_in_their_order() -> None:
    mailbox: Mailbox[int] = Mailbox("numbers", limit=10)
    done: list[str] = []

    async def perform(effect: str) -> None:
        # The first of each pair is the slower: only awaiting keeps the order.
        for _ in range(3 if effect.startswith("append") else 0):
            await asyncio.sleep(0)
        done.append(effect)

    scope = TaskScope("test")
    scope.start("machine", drive(Doubler(), mailbox, perform))
    for number in range(3):
        await mailbox.put(number)
    while len(done) < 6:
        await asyncio.sleep(0)
    await scope.close()
    assert done == ["append 0", "send 0", "append 1", "send 1", "append 2", "send 2"]


async def test_a_failing_effect_ends_the_drive() -> None:
    mailbox: Mailbox[int] = Mailbox("numbers", limit=10)
    mailbox.put_nowait(1)

    async def perform(effect: str) -> None:
        raise OSError(effect)

    with pytest.raises(OSError, match="append 1"):
        await drive(Doubler(), mailbox, perform)


async def test_a_full_mailbox_answers_busy_to_those_who_cannot_wait() -> None:
    mailbox: Mailbox[int] = Mailbox("replica 1.0", limit=2)
    mailbox.put_nowait(1)
    mailbox.put_nowait(2)
    with pytest.raises(Busy, match=r"replica 1\.0 has 2 events"):
        mailbox.put_nowait(3)
    assert len(mailbox) == 2
    assert await mailbox.get() == 1
    mailbox.put_nowait(3)


async def test_a_full_mailbox_makes_those_who_can_wait_wait() -> None:
    mailbox: Mailbox[int] = Mailbox("numbers", limit=1)
    mailbox.put_nowait(1)
    async with TaskScope("test") as scope:
        sender = scope.start("put", mailbox.put(2))
        await asyncio.sleep(0)
        assert not sender.done()
        assert await mailbox.get() == 1
        assert await mailbox.get() == 2
    assert len(mailbox) == 0
