"""Two clusters' replica servers and a shipper without manners between them.

The shipper reads what a source may ship, cuts it anyhow, and puts the messages into a soup
from which they are delivered in any order, any number of times, while either server crashes.
It keeps the one rule that the machine keeps: a partition's log is shipped after its copy.
"""

from random import Random
from typing import Any

from pegaskv.base.errors import Timeout
from pegaskv.base.hashing import partition_index
from pegaskv.codec.messages_duplication import DuplicationOrder, SourceOrder
from pegaskv.codec.mutations import (
    OperationKind,
    decode_mutation,
    encode_mutation,
    encode_operation,
    mutation_timestamps,
)
from pegaskv.codec.operations import Operation
from pegaskv.replica.options import ReplicaOptions
from pegaskv.storage.log_options import LogOptions
from tests.replica.stub_world import Server
from tests.simulation.world import Life, World

__all__ = ["Link", "Model", "Side", "own_operations", "source_order", "stream_uuid"]

BUSY = (13, 20, 21, 26)


def stream_uuid(cluster_id: int) -> bytes:
    """The uuid of the duplication that goes out of a cluster."""
    return bytes([cluster_id]) * 16


def source_order(cluster_id: int, *, ended: bool = False) -> SourceOrder:
    """The order by which the other cluster takes it."""
    uuid = stream_uuid(cluster_id)
    return SourceOrder(uuid, cluster_id, f"uuid {cluster_id}", f"c{cluster_id}", 1, ended=ended)


def own_operations(payload: bytes) -> list[tuple[int, list[bytes]]]:
    """(hash, flat rows) of the client operations of a mutation."""
    return [
        (partition_hash, fields)
        for kind, partition_hash, fields in decode_mutation(payload)
        if kind is OperationKind.WRITE
    ]


class Model:
    """Last writer wins, over everything that was ever committed anywhere."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def take(self, rows: list[bytes]) -> None:
        for key, row in zip(rows[::2], rows[1::2], strict=True):
            if key not in self.rows or self.rows[key][4:12] < row[4:12]:
                self.rows[key] = row


class Side:
    """One cluster: a server that may be killed, and what it is ordered to do."""

    def __init__(self, world: World, cluster_id: int, partitions: int, random: Random) -> None:
        self.world = world
        self.cluster_id = cluster_id
        self.partitions = partitions
        self.random = random
        self.node = world.node(f"c{cluster_id}")
        self.log_options = LogOptions(
            log_segment_bytes=64 * 1024,
            flush_partition_bytes=random.choice([1_000, 20_000]),
            flush_age_ms=random.choice([200, 5_000]),
        )
        self.duplications: tuple[DuplicationOrder, ...] = ()
        self.sources: tuple[SourceOrder, ...] = ()
        self.follower = False
        self.envs: dict[str, str] = {}
        self.version = 0
        self.crashes = 0

    async def start(self, *, first: bool = False) -> None:
        self.life: Life = self.node.spawn()
        self.server = Server(
            self.life,
            cluster_id=self.cluster_id,
            partitions=self.partitions,
            options=ReplicaOptions(expiry_sweep_interval_ms=300),
            log_options=self.log_options,
        )
        await self.life.task(self.server.start())
        await self.order(first=first)

    async def order(self, *, first: bool = False) -> None:
        self.version += 1
        await self.life.task(
            self.server.serve(
                first=first,
                envs=self.envs,
                version=self.version,
                follower=self.follower,
                duplications=self.duplications,
                sources=self.sources,
            )
        )

    async def crash(self, *, power: bool) -> None:
        self.node.crash(power=power)
        self.crashes += 1
        await self.world.sleep_ms(self.random.choice([1, 50]))
        await self.start()

    def send(self, operation: Operation, *fields: Any, index: int) -> int:
        return self.life.context.copy().run(
            lambda: self.server.send(operation, *fields, index=index)
        )

    async def ask(self, operation: Operation, *fields: Any, index: int) -> list[Any]:
        """Ask until it is answered by something other than "not now"."""
        while True:
            request = self.send(operation, *fields, index=index)
            reply: list[Any] = await self.server.answer(request)
            if reply[0] not in BUSY:
                return reply
            await self.world.sleep_ms(20)

    def index_of(self, hash_key: bytes) -> int:
        return partition_index(hash_key, b"", self.partitions)

    async def get(self, hash_key: bytes, sort_key: bytes) -> bytes | None:
        reply = await self.ask(Operation.GET, hash_key, sort_key, index=self.index_of(hash_key))
        assert reply[0] == 0, reply
        value: bytes | None = reply[1]
        return value


class Link:
    """One duplication from `source` to `target`, shipped without manners."""

    def __init__(self, source: Side, target: Side, model: Model, random: Random) -> None:
        self.source = source
        self.target = target
        self.model = model
        self.random = random
        self.uuid = stream_uuid(source.cluster_id)
        # Requests, and whose progress their answer tells.
        self.soup: list[tuple[Operation, int, int, tuple[Any, ...]]] = []
        self.acked: dict[tuple[int, int], int] = {}
        self.sent: dict[tuple[int, int], int] = {}
        self.clocks: dict[tuple[int, int], int] = {}
        self.copied: set[int] = set()
        self.delivered = self.rewound = self.pages = self.batches = self.lost = self.removed = 0

    def targets(self, s: int) -> list[int]:
        least = min(self.source.partitions, self.target.partitions)
        return [t for t in range(self.target.partitions) if t % least == s % least]

    def _slice(self, payload: bytes, t: int) -> bytes:
        mask = self.target.partitions - 1
        kept = [each for each in own_operations(payload) if each[0] & mask == t]
        operations = [
            encode_operation(OperationKind.WRITE, digest, list(rows)) for digest, rows in kept
        ]
        return encode_mutation(mutation_timestamps(payload)[0], operations) if kept else b""

    async def copy(self, s: int) -> None:
        """Push pages of snapshots, some twice, while both sides go on; all of them arrive."""
        start: bytes = b""
        while True:
            source = self.source.server.source(s)
            rows_max = self.random.choice([1, 3, 100])
            page = await self.source.life.task(source.read_rows(start, rows_max, 1 << 20))
            self.model.take(page.rows)
            for t in self.targets(s):
                rows = [
                    part
                    for key, row in zip(page.rows[::2], page.rows[1::2], strict=True)
                    for part in (key, row)
                    if self.target.index_of(key[2 : 2 + key[1]]) == t
                ]
                fields = (start, page.next_key or b"", page.clock_us, False, rows)
                request = (Operation.COPY_RANGE, s, t, fields)
                reply = await self._deliver(request)
                while reply[0] == Timeout.code:
                    reply = await self._deliver(request)
                assert reply[0] == 0, reply
                self.removed += reply[3]
                self.pages += 1
                if self.random.random() < 0.5:
                    self.soup.append(request)
            if page.next_key is None:
                break
            start = page.next_key
        self.copied.add(s)

    async def ship(self, s: int) -> None:
        """Read on from what one target has, or from before, and put a batch into the soup."""
        if s not in self.copied:
            return
        t = self.random.choice(self.targets(s))
        for _ in range(self.random.choice([1, 2, 3])):
            acked, sent = self.acked.get((s, t), 0), self.sent.get((s, t), 0)
            # Several may be under way: this one counts on those before it, or does not.
            previous = self.random.choice([acked, max(acked, sent), max(acked, sent)])
            request = await self._batch(s, t, self.random.choice([1, 200, 1 << 20]), previous)
            if request is not None:
                self.sent[s, t] = request[3][1]
                self.soup.append(request)

    async def _batch(
        self, s: int, t: int, max_bytes: int, previous: int
    ) -> tuple[Operation, int, int, tuple[Any, ...]] | None:
        source = self.source.server.source(s)
        start_decree = source.start_decree(self.uuid)
        assert start_decree > 0
        begin = max(previous, start_decree) + 1
        records = await self.source.life.task(source.read_records(begin, max_bytes))
        if not records:
            return None
        mutations: list[Any] = []
        for place, (decree, payload) in enumerate(records):
            assert decree == begin + place
            for _, rows in own_operations(payload):
                self.model.take(rows)
            part = self._slice(payload, t)
            if part:
                mutations += (decree, part)
        clock_us = mutation_timestamps(records[-1].payload)[1]
        self.batches += 1
        return Operation.DUPLICATE, s, t, (previous, records[-1].decree, clock_us, mutations)

    async def deliver(self) -> None:
        """Let some message arrive, and perhaps stay to arrive again."""
        if not self.soup:
            return
        place = self.random.randrange(len(self.soup))
        request = self.soup[place]
        if self.random.random() < 0.7:
            del self.soup[place]
        await self._deliver(request)

    def fire(self) -> None:
        """Let some message arrive, and wait for no answer."""
        if self.soup:
            operation, s, t, fields = self.random.choice(self.soup)
            self.target.send(operation, self.uuid, self.source.partitions, s, *fields, index=t)

    async def _deliver(self, request: tuple[Operation, int, int, tuple[Any, ...]]) -> list[Any]:
        operation, s, t, fields = request
        stream = (self.uuid, self.source.partitions, s)
        reply = await self.target.ask(operation, *stream, *fields, index=t)
        self.delivered += 1
        if operation is Operation.DUPLICATE:
            assert reply[0] == 0, reply
            progress = reply[2]
            assert progress >= self.acked.get((s, t), 0), "what was acknowledged is gone"
            self.acked[s, t] = progress
            self.rewound += progress < fields[1]
            self.lost += reply[3]
            self.source.server.source(s).note_back(self.uuid, t, tuple(reply[4]))
            if progress == fields[1]:
                self.clocks[s, t] = max(self.clocks.get((s, t), 0), fields[2])
        return reply

    def hold(self, s: int) -> None:
        """Tell the source what all targets have."""
        streams = [(s, t) for t in self.targets(s)]
        if all(stream in self.acked and stream in self.clocks for stream in streams):
            decree = min(self.acked[stream] for stream in streams)
            clock_us = min(self.clocks[stream] for stream in streams)
            self.source.server.source(s).hold(self.uuid, decree, clock_us)

    async def drain(self) -> None:
        """Bring everything that is shippable now to the target, in order."""
        for s in range(self.source.partitions):
            if s not in self.copied:
                await self.copy(s)
            end = self.source.server.source(s).shippable_decree
            for t in self.targets(s):
                while self.acked.get((s, t), 0) < end:
                    request = await self._batch(s, t, 1 << 20, self.acked.get((s, t), 0))
                    if request is None:
                        # Nothing was written since the pin: the stream begins with nothing.
                        clock_us = self.source.server.source(s).clock_us
                        request = (Operation.DUPLICATE, s, t, (0, end, clock_us, []))
                    await self._deliver(request)
                progress = await self.target.ask(
                    Operation.DUPLICATION_PROGRESS, self.uuid, self.source.partitions, s, index=t
                )
                assert progress[1] == self.acked[s, t]
            self.hold(s)
