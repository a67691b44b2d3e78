"""The thin loop around a machine: an event in, a step, its effects done in order.

The machine decides and touches nothing; whoever drives it acts. An effect that
takes long is started in a scope by `perform`, and its result comes back through
the mailbox as an event, so that no order waits behind a slow peer.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from pegaskv.runtime.mailbox import Mailbox

__all__ = ["Machine", "drive"]

Event = TypeVar("Event")
Effect = TypeVar("Effect")
EventIn = TypeVar("EventIn", contravariant=True)
EffectOut = TypeVar("EffectOut", covariant=True)


class Machine(Protocol[EventIn, EffectOut]):
    """A pure decision: the same events always give the same effects."""

    def step(self, event: EventIn, /) -> Iterable[EffectOut]:
        """Take one event; return what must be done, in this order."""
        ...


async def drive(
    machine: Machine[Event, Effect],
    mailbox: Mailbox[Event],
    perform: Callable[[Effect], Awaitable[Any]],
) -> None:
    """Run `machine` until cancelled; effects are performed one after another, in their order."""
    while True:
        event = await mailbox.get()
        for effect in machine.step(event):
            await perform(effect)
