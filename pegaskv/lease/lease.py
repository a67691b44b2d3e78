"""pure: one primary's lease from its members, and one secondary's patience.

A lease counts from the moment at which a beacon was *sent* that the member acknowledged;
the grace counts from the moment at which it was *received*, which is later. So whoever
has lost its lease stops before anybody else may lead.
"""

from collections.abc import Iterable

from pegaskv.lease.options import LeaseOptions

__all__ = ["FOR_EVER", "Grace", "PrimaryLease"]

# More than any time in milliseconds.
FOR_EVER = 1 << 62


class PrimaryLease:
    """When the members of a configuration acknowledged last what this primary sent.

    Invariant: `until` is the end of the oldest member's lease; without members it never ends.
    """

    __slots__ = ("_lease_ms", "_sent", "until")

    def __init__(self, options: LeaseOptions) -> None:
        self._lease_ms = options.lease_ms
        self._sent: dict[str, int] = {}
        self.until = FOR_EVER

    def set_members(self, members: Iterable[str], now_ms: int) -> None:
        """These must agree from now on; one that is new has agreed to nothing."""
        sent = self._sent
        # Not "now": a member that never acknowledged gives no lease.
        self._sent = {member: sent.get(member, now_ms - self._lease_ms) for member in members}
        self._look()

    def acknowledged(self, member: str, sent_ms: int) -> None:
        """`member` has acknowledged what was sent at `sent_ms`; strangers are ignored."""
        before = self._sent.get(member, FOR_EVER)
        if sent_ms > before:
            self._sent[member] = sent_ms
            if before + self._lease_ms <= self.until:
                # It was the oldest.
                self._look()

    def valid(self, now_ms: int) -> bool:
        """Whether this primary may serve at `now_ms`."""
        return now_ms < self.until

    def _look(self) -> None:
        oldest = min(self._sent.values(), default=FOR_EVER)
        self.until = oldest + self._lease_ms if oldest != FOR_EVER else FOR_EVER


class Grace:
    """How long a secondary has heard nothing of its primary."""

    __slots__ = ("_grace_ms", "_heard_ms")

    def __init__(self, options: LeaseOptions, now_ms: int) -> None:
        self._grace_ms = options.grace_ms
        self._heard_ms = now_ms

    def heard(self, now_ms: int) -> None:
        """The primary of the present ballot has spoken, or a new one was adopted."""
        if now_ms > self._heard_ms:
            self._heard_ms = now_ms

    def over(self, now_ms: int) -> bool:
        """Whether the primary can have no lease from here any more."""
        return now_ms >= self._heard_ms + self._grace_ms
