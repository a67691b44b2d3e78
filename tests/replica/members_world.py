"""One replica server of several: its members and the meta server are played by the test.

A member acknowledges at once whatever it is sent, as long as it is not `silent`; the meta server
does what it is asked for by compare-and-set, and keeps who asked for what, and when.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pegaskv.base.errors import Unavailable
from pegaskv.base.types import Gpid, PartitionConfiguration, ReplicaStatus
from pegaskv.codec.messages_meta import Proposal, ProposalKind, TablePush
from pegaskv.codec.operations import Operation
from pegaskv.runtime.clock import Clock
from pegaskv.storage.log_format import LogRecord, encode_records
from tests.replica.received_support import key, mutation, row
from tests.replica.stub_world import GPID, Server
from tests.simulation.cluster_meta import next_configuration
from tests.simulation.world import Life

__all__ = ["NOW_US", "GroupServer", "Member", "Members", "Meta", "following", "led", "prepare"]

_ANSWER_S: Final = 0.001
# About when a primary that the test plays has written.
NOW_US: Final = 1_600_000_000_000_000


class Member:
    """The way to another server, and that server."""

    def __init__(self, node_id: str, clock: Clock) -> None:
        self.node_id = node_id
        self.connected = True
        self.silent = False
        # It was not told by the meta server what it is, and refuses; when it was asked.
        self.unnamed = False
        self.asked_ms: list[int] = []
        # Whether it teaches, and how often it has begun to.
        self.teaches = False
        self.taught = 0
        # By how much its wall clock is ahead.
        self.ahead_us = 0
        # What it was sent and has not answered.
        self.held: deque[tuple[int, Callable[[list[Any] | None], None], int]] = deque()
        # When it heard a beacon, and of each partition in it the commit point.
        self.heard: list[tuple[int, list[int]]] = []
        self._clock = clock

    @property
    def held_bytes(self) -> int:
        return sum(size for _, _, size in self.held)

    def submit(
        self, fields: tuple[Any, ...], done: Callable[[list[Any] | None], None], size: int = 0
    ) -> bool:
        if fields[0] == Operation.BEACON:
            self.heard.append((self._clock.monotonic_ms(), fields[2][3::4]))
        self.held.append((fields[0], done, size))
        if not self.silent:
            asyncio.get_running_loop().call_later(_ANSWER_S, self._answer_next)
        return True

    def speak(self) -> None:
        """Be silent no more: acknowledge all that it was sent."""
        self.silent = False
        for _ in range(len(self.held)):
            self._answer_next()

    def _answer_next(self) -> None:
        operation, done, _ = self.held.popleft()
        if operation == Operation.ADOPT:
            self.asked_ms.append(self._clock.monotonic_ms())
            done([1, 0, not self.unnamed, 0, 0])
        elif operation == Operation.BEACON:
            done([1, 0, [], self._clock.wall_us() + self.ahead_us])
        else:
            assert operation == Operation.PREPARE
            done([1, 0, [*GPID, 0, 0] if self.unnamed else []])

    def flush(self) -> None:
        """All is taken as it comes."""

    async def request(self, operation: int, timeout_ms: int, *fields: Any) -> list[Any]:
        if operation == Operation.LEARN_BEGIN and self.teaches:
            # Nothing is copied, and the log goes on from its beginning.
            self.taught += 1
            return [True, 1, {}, None]
        raise Unavailable("nothing more can be learned from a member here")


class Members:
    """All other servers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._members: dict[str, Member] = {}

    def peer(self, node_id: str) -> Member:
        if node_id not in self._members:
            self._members[node_id] = Member(node_id, self._clock)
        return self._members[node_id]

    def set_addresses(self, addresses: Mapping[str, str]) -> None:
        """They are where they are."""

    def addresses(self, node_ids: Iterable[str]) -> dict[str, str]:
        return {}

    def on_connected(self, call: Callable[[str], None]) -> None:
        """They always are."""


class Meta:
    """Compare-and-set, and what was asked for: (when, kind, node id)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.stored: dict[Gpid, PartitionConfiguration] = {}
        self.away = False
        self.asked: list[tuple[int, ProposalKind, str]] = []

    async def propose(self, proposal: Proposal) -> tuple[PartitionConfiguration, Mapping[str, str]]:
        if self.away:
            raise Unavailable("nobody answers")
        self.asked.append((self._clock.monotonic_ms(), proposal.kind, proposal.node_id))
        stored = self.stored[proposal.gpid]
        stored = self.stored[proposal.gpid] = next_configuration(stored, proposal) or stored
        return stored, {}


class GroupServer(Server):
    """A server that is one of several."""

    def __init__(self, life: Life, **more: Any) -> None:
        super().__init__(life, **more)
        self.members = Members(life.clock)
        self.meta = Meta(life.clock)
        self.doors = {"meta": self.meta, "peers": self.members}

    def push(self, table_id: int = 1, **changes: Any) -> TablePush:
        push = super().push(table_id, **changes)
        self.meta.stored |= {each.gpid: each for each in push.partitions}
        return push

    def silence(self, *node_ids: str) -> None:
        """Let these answer no more, from what comes next on."""
        for node_id in node_ids:
            self.members.peer(node_id).silent = True


async def led(life: Life, secondaries: tuple[str, ...], **more: Any) -> GroupServer:
    """A server that leads all partitions of a table of three replicas, with these secondaries."""
    server = GroupServer(life, **more)
    await server.start()
    await server.serve(first=True, secondaries=secondaries, replica_count=3)
    return server


async def following(life: Life, **more: Any) -> GroupServer:
    """A secondary of which the primary, `b`, has written `s`; it was heard just now."""
    server = GroupServer(life)
    await server.start()
    here = server.directory.node_id
    await server.serve(first=True, primary="b", secondaries=(here,), replica_count=3, **more)
    assert server.replica().machine.status is ReplicaStatus.SECONDARY
    await prepare(server, 1, b"v")
    await prepare(server, 2, b"not committed")
    return server


async def prepare(server: GroupServer, decree: int, value: bytes) -> None:
    """Hear from the primary what it has written; all before it is committed."""
    payload = mutation(NOW_US + decree, [key(b"s"), row(NOW_US + decree, value)])
    record = LogRecord(*GPID, 1, 1, decree, decree - 1, NOW_US + decree, payload)
    request = server.hand(Operation.PREPARE, 1_000, encode_records([record]))
    assert await server.answer(request) == [0, []]
    server.replica().apply_now()
