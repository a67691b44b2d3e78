"""Finds the meta server that answers, among those that were named.

The one that answered last is asked first. A server that does not lead names the
one that does, if it knows; that address is followed even when it was not in the
list. A request that may have changed something is sent to one server at most,
unless that one refused it.
"""

from typing import Any, Final

from pegaskv.base.errors import ForwardToOthers, RequestError, Timeout, Unavailable
from pegaskv.client.connection import SILENT, TIMED_OUT, Lost
from pegaskv.client.nodes import NodePool, error_of_reply
from pegaskv.client.retry import BackOff, Deadline
from pegaskv.client.routing import Advice, advise

__all__ = ["MetaResolver", "retry_after_ms"]

# A leader that is named by a server that is named by a server: then something turns in a circle.
_FORWARDS_MAX: Final = 4


class MetaResolver:
    """Asks the meta servers of one cluster."""

    def __init__(self, addresses: list[str], pool: NodePool) -> None:
        assert addresses
        self.addresses = addresses
        self._pool = pool
        self._clock = pool.clock
        # Where the last answer came from.
        self._preferred = addresses[0]

    async def greet(self, timeout_ms: int) -> None:
        """Connect to the first meta server that answers; each is tried once.

        Raises:
            Unavailable: none does; the message has what happened at each address.

        """
        deadline = self._deadline(timeout_ms)
        failures: list[RequestError] = []
        for number, address in enumerate(self.addresses):
            try:
                await self._pool.node(address).connected(
                    self._share(deadline, len(self.addresses) - number)
                )
            except RequestError as error:
                failures.append(error)
            else:
                self._preferred = address
                return
        if len(failures) == 1:
            raise failures[0]
        raise Unavailable(
            "no meta server answers: " + "; ".join(error.message for error in failures),
            hint=failures[0].hint,
        )

    async def ask(
        self, operation: int, fields: tuple[Any, ...], timeout_ms: int, *, changes: bool, what: str
    ) -> tuple[list[Any], str]:
        """Return the fields of a successful reply, and the address that gave it.

        `changes` says that the request is not to be repeated once it may have been done;
        `what` names it in messages.

        Raises:
            Timeout, Unavailable: nobody answered; see `maybe_applied`.
            RequestError: the answer.

        """
        deadline = self._deadline(timeout_ms)
        back_off = BackOff(self._pool.random)
        candidates = self._candidates()
        forwards = 0
        while True:
            address = candidates.pop(0)
            try:
                share = self._share(deadline, 1 + len(candidates))
                reply = await self._ask_one(
                    address, operation, fields, share, what=what, changes=changes
                )
            except RequestError as error:
                last = error
            else:
                self._preferred = address
                return reply[2:], address
            if isinstance(last, ForwardToOthers):
                leader = last.details
                forwards += 1
                if isinstance(leader, str) and leader and forwards <= _FORWARDS_MAX:
                    candidates = [leader, *(each for each in candidates if each != leader)]
                    continue
            elif advise(last, retry_unknown=not changes) not in (Advice.AGAIN, Advice.REFRESH):
                raise last
            if self._pool.closed:
                raise Unavailable(f"{what}: the client is closed")
            if candidates:
                continue
            pause_ms = back_off.next_ms(at_least_ms=retry_after_ms(last))
            if pause_ms >= deadline.remaining_ms(now_ms=self._clock.monotonic_ms()):
                raise self._give_up(last, deadline, what)
            if pause_ms:
                await self._clock.sleep_ms(pause_ms)
            candidates = self._candidates()
            forwards = 0

    async def look(
        self, operation: int, fields: tuple[Any, ...], timeout_ms: int, *, what: str
    ) -> list[Any]:
        """Ask the first server, and it alone, once; return the fields of its reply.

        Raises:
            Timeout, Unavailable: it did not answer.
            RequestError: the answer.

        """
        address = self.addresses[0]
        try:
            reply = await self._ask_one(
                address, operation, fields, self._deadline(timeout_ms), what=what, changes=False
            )
        except (Timeout, Unavailable) as error:
            error.hint = f"is the server at {address} running?"
            error.maybe_applied = False
            raise
        return reply[2:]

    async def _ask_one(
        self,
        address: str,
        operation: int,
        fields: tuple[Any, ...],
        deadline: Deadline,
        *,
        what: str,
        changes: bool,
    ) -> list[Any]:
        connection = await self._pool.node(address).connected(deadline)
        remaining = deadline.remaining_ms(now_ms=self._clock.monotonic_ms())
        future = connection.submit((operation, max(1, remaining), *fields))
        if future is None:
            raise Unavailable(f"{address}: {connection.cause}")
        reply = await future
        while isinstance(reply, Lost) and reply.later is not None and changes:
            # It may have been done, so nobody else is asked.
            reply = await reply.later
        if isinstance(reply, Lost):
            if reply.status == SILENT:
                raise Timeout(f"{what}: meta server {address}: {reply.cause}")
            if reply.status == TIMED_OUT:
                raise Timeout(
                    f"{what}: no answer from meta server {address} "
                    f"within {deadline.timeout_ms / 1_000:g} s",
                    maybe_applied=reply.sent,
                )
            raise Unavailable(f"{what}: {address}: {reply.cause}", maybe_applied=reply.sent)
        if reply[1] == 0:
            return list(reply)
        error = error_of_reply(reply)
        if isinstance(error, Timeout | Unavailable):
            error.maybe_applied = True
        raise error

    def _candidates(self) -> list[str]:
        rest = [address for address in self.addresses if address != self._preferred]
        return [self._preferred, *rest]

    def _deadline(self, timeout_ms: int) -> Deadline:
        return Deadline(now_ms=self._clock.monotonic_ms(), timeout_ms=timeout_ms)

    def _share(self, deadline: Deadline, candidates: int) -> Deadline:
        """The part of the time that one of several candidates gets: a silent one takes no more."""
        remaining = deadline.remaining_ms(now_ms=self._clock.monotonic_ms())
        return self._deadline(max(1, remaining // candidates))

    def _give_up(self, last: RequestError, deadline: Deadline, what: str) -> RequestError:
        if not isinstance(last, Timeout | Unavailable | ForwardToOthers):
            return last
        if isinstance(last, Timeout):
            # What is repeated has changed nothing, so nothing may have been applied.
            return Timeout(last.message, hint=last.hint or "is the meta server overloaded?")
        return Unavailable(
            f"{what}: no meta server did it within {deadline.timeout_ms / 1_000:g} s; "
            f"the last answer: {last.message}",
            hint="are the meta servers running, and are the addresses right?",
        )


def retry_after_ms(error: RequestError) -> int:
    """The pause that a server asks for in the details of its refusal, or 0."""
    details = error.details
    value = details.get("retry_after_ms") if isinstance(details, dict) else None
    return value if type(value) is int and 0 < value <= 3_600_000 else 0
