"""Orders that go through a partition's own log, and what a table's push asks for.

An order is in force when it is committed: on every replica, in every checkpoint. Nothing is
concluded from what a push lacks; each order is given once, by the uuid of its duplication.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from pegaskv.base.errors import NotReady
from pegaskv.codec.messages_duplication import DuplicationOrder, SourceOrder
from pegaskv.codec.messages_meta import TablePush
from pegaskv.codec.mutations import OperationKind, encode_operation
from pegaskv.replica.participation import BROKEN, SourceFacts
from pegaskv.replica.replica import Replica
from pegaskv.storage.mutation_log import LogGone, MutationLog

__all__ = [
    "begin_to_serve",
    "call_after_pending",
    "give_orders",
    "limit_batch",
    "on_pin_changed",
    "on_pins_told",
    "propose_control",
]

_log = logging.getLogger(__name__)


def limit_batch(replica: Replica) -> None:
    """Close the open batch, if any: what comes next goes into the next mutation."""
    batch = replica.open
    if batch is None:
        return
    batch.last_timestamp_us = replica.last_timestamp_us
    replica.full.append(batch)
    replica.uncommitted_bytes += batch.size
    replica.open = None


def propose_control(replica: Replica, kind: OperationKind, fields: list[bytes]) -> None:
    """Put an order into the partition's own log; it acts when it is committed.

    It is the last of its mutation, so that what follows it in the log follows it in time.
    """
    operation = encode_operation(kind, replica.index, fields)
    batch = replica.open
    if batch is None:
        batch = replica.open = replica.begin_batch()
    replica.last_timestamp_us += 1
    batch.operations.append(operation)
    batch.size += len(operation)
    batch.controls += ((kind, fields),)
    # The decree is not known yet; nobody asks `proposed` for it.
    replica.proposed.obey(kind, fields, 1)
    replica.shipping.look(replica.proposed)
    limit_batch(replica)


def call_after_pending(replica: Replica, call: Callable[[], None]) -> None:
    """Call back once all that is pending now is committed, or will never be."""
    batch = replica.last_pending
    if batch is None:
        call()
    else:
        batch.settled += (call,)


def begin_to_serve(
    replica: Replica, orders: Mapping[int, TablePush], serving: asyncio.Event
) -> None:
    """Give a replica that just began to serve the orders of its table, then set `serving`.

    Until this returns no client is heard, so whatever a client writes stands behind them in the
    log: a duplication that was added while the replica was closed misses nothing of it.
    """
    push = orders.get(replica.gpid.table_id)
    # It is also called when the replica goes, and whoever waits for it waits in vain.
    if push is not None and replica.machine.serving:
        _propose(replica, push.duplications, push.sources)
    serving.set()


def _propose(
    replica: Replica,
    duplications: tuple[DuplicationOrder, ...],
    sources: tuple[SourceOrder, ...],
) -> None:
    for kind, fields in _orders(replica, duplications, sources):
        _log.debug("partition %s: %s %s", replica.gpid, kind.name, fields[0].hex())
        propose_control(replica, kind, fields)


async def give_orders(
    replicas: Iterable[Replica],
    duplications: tuple[DuplicationOrder, ...],
    sources: tuple[SourceOrder, ...],
) -> None:
    """Bring the orders of a table to its replicas; return when all are committed.

    Replicas that do not lead take them from their leader. One that does not serve yet gets them
    when it begins to, before its first client.

    Raises:
        NotReady: nobody knows whether they are, since the leader may have changed.

    """
    waiting: list[tuple[Replica, int, asyncio.Event]] = []
    for replica in replicas:
        if not replica.machine.serving:
            continue
        _propose(replica, duplications, sources)
        # Also when there was nothing to do: an earlier push may wait for the log still.
        settled = asyncio.Event()
        call_after_pending(replica, settled.set)
        waiting.append((replica, replica.machine.ballot, settled))
    for _, _, settled in waiting:
        await settled.wait()
    for replica, ballot, _ in waiting:
        if replica.machine.ballot != ballot:
            # What was given may be void; whoever leads now gives it again.
            raise NotReady(f"partition {replica.gpid} has got a new ballot meanwhile")


def _orders(
    replica: Replica,
    duplications: tuple[DuplicationOrder, ...],
    sources: tuple[SourceOrder, ...],
) -> list[tuple[OperationKind, list[bytes]]]:
    """What of the orders has not been proposed here."""
    pins, known = replica.proposed.pins, replica.proposed.sources
    remotes = replica.shipping.remotes
    found: list[tuple[OperationKind, list[bytes]]] = []
    for order in duplications:
        uuid = order.uuid
        if not order.ended or order.broken:
            remotes[uuid] = order.remote_cluster_id
        else:
            remotes.pop(uuid, None)
        if not order.ended:
            if uuid not in pins:
                found.append((OperationKind.PIN, [uuid]))
        elif order.broken:
            # Never pinned here counts too: there are deletes that its target may not know.
            if pins.get(uuid) != 0:
                found.append((OperationKind.UNPIN, [uuid, BROKEN]))
        elif uuid in pins:
            found.append((OperationKind.UNPIN, [uuid]))
    for source in sources:
        facts = SourceFacts(
            source.cluster_id, source.cluster_uuid, source.cluster_name, source.table_id
        )
        if source.ended:
            if source.uuid in known:
                found.append((OperationKind.FORGET, [source.uuid]))
        elif known.get(source.uuid) != facts:
            found.append((OperationKind.SOURCE, [source.uuid, facts.encode()]))
    return found


def on_pin_changed(log: MutationLog, replica: Replica, uuid: bytes) -> None:
    """A PIN or UNPIN is committed: hold the log from there on, or let it go."""
    start_decree = replica.participation.pins.get(uuid, 0)
    if start_decree:
        log.set_pin(replica.gpid, uuid.hex(), start_decree)
    else:
        log.clear_pin(replica.gpid, uuid.hex())
    # What was kept for it may go now.
    replica.expires = True


def on_pins_told(
    log: MutationLog, replica: Replica, uuid: bytes, decree: int, clock_us: int
) -> None:
    """The primary says that a target has everything up to `decree`: let that log go here too.

    And the tombstones up to the source's clock there, which it gave when it knew of nothing older
    that may come: what it knew of then is known here as well, once it is decoded.
    """
    replica.digest()
    if 0 < replica.participation.pins.get(uuid, 0) <= decree:
        confirmed = replica.shipping.confirmed
        if clock_us > confirmed.get(uuid, 0):
            confirmed[uuid] = clock_us
        if replica.held.get(uuid) == decree:
            return
        try:
            log.set_pin(replica.gpid, uuid.hex(), decree)
        except LogGone:
            # Heard before, and given up.
            return
        replica.held[uuid] = decree
