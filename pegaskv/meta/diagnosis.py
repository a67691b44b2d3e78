"""pure: partitions that nobody can serve: why, since when, and what can be done.

Pegasus calls them DDD: double dead. Here it is said of every member whether it is there and how
far its log goes, since that is what an operator has to weigh.
"""

from collections.abc import Mapping
from typing import Any

from pegaskv.base.types import Gpid, TableStatus
from pegaskv.meta import tables
from pegaskv.meta.cluster import PartitionRecord
from pegaskv.meta.live import LiveStates
from pegaskv.meta.machine import MetaMachine

__all__ = ["diagnose"]


def diagnose(machine: MetaMachine, name: str | None, live: LiveStates) -> list[list[Any]]:
    """Return [table id, partition index, detail] of each partition that nobody can serve.

    Raises:
        TableNotFound: there is no table of that name.

    """
    cluster = machine.cluster
    table_ids = sorted(cluster.tables)
    if name is not None:
        table_ids = [tables.find(cluster, name).table_id]
    found = []
    for table_id in table_ids:
        if cluster.tables[table_id].status is not TableStatus.AVAILABLE:
            continue
        for index, record in sorted(cluster.partitions[table_id].items()):
            why = _why(machine, record, live)
            if why:
                found.append([table_id, index, _detail(machine, record, why, live)])
    return found


def _why(machine: MetaMachine, record: PartitionRecord, live: LiveStates) -> str:
    why = machine.nodes.why_not_led(record)
    if why and not machine.nodes.is_alive(record.primary):
        return why
    # What was reported at its start may have been mended since, or have got worse.
    state = live.replica(record.gpid, record.primary)
    if not state:
        return why
    if state.get("serving") is True:
        return ""
    return str(state.get("closed") or "") and (
        f"its primary, node {record.primary}, has closed it: {state['closed']}"
    )


def _detail(
    machine: MetaMachine, record: PartitionRecord, why: str, live: LiveStates
) -> dict[str, Any]:
    members = [_member(machine, node_id, record.gpid, live) for node_id in record.members]
    away = [_member(machine, node_id, record.gpid, live) for node_id in record.dropped]
    return {
        "table": machine.cluster.tables[record.gpid.table_id].name,
        "reason": why,
        "since": machine.guardian.unled_since(record.gpid),
        "ballot": record.ballot,
        "members": members,
        "dropped": away,
        "advice": _advice(machine, record, members),
    }


def _member(machine: MetaMachine, node_id: str, gpid: Gpid, live: LiveStates) -> dict[str, Any]:
    node = machine.nodes.get(node_id)
    replica = machine.nodes.replica(node_id, gpid)
    shown: dict[str, Any] = {
        "node": node_id,
        "address": "" if node is None else node.address,
        "status": "not seen" if node is None else node.status,
        "has_replica": replica is not None,
    }
    if replica is not None:
        state = live.replica(gpid, node_id)
        shown["ballot"] = max(replica.ballot, _number(state, "ballot"))
        shown["last_decree"] = max(replica.last_decree, _number(state, "committed_decree"))
        shown["closed"] = replica.closed
        shown["amnesiac"] = replica.amnesiac
    return shown


def _number(state: Mapping[str, Any], name: str) -> int:
    value = state.get(name, 0)
    return value if type(value) is int else 0


def _advice(machine: MetaMachine, record: PartitionRecord, members: list[dict[str, Any]]) -> str:
    gpid = record.gpid
    sound = [
        one
        for one in members
        if one["node"] != record.primary
        and one["status"] in ("alive", "leaving")
        and one["has_replica"]
        and not (one["closed"] or one["amnesiac"])
    ]
    if sound:
        return f"wait: node {sound[0]['node']} takes over by itself in some seconds"
    away = [one["node"] for one in members if one["status"] not in ("alive", "leaving")]
    if away:
        text = f"start node {' or '.join(away)} again: what it has is whole"
    else:
        text = "mend the replica on its node, or take it from a backup"
    there = [one for one in members if one["status"] == "alive" and one["has_replica"]]
    if there:
        best = max(there, key=lambda one: (one["ballot"], one["last_decree"], one["node"]))
        target, rest = best["node"], "what it lacks is lost"
    elif takers := machine.nodes.takers:
        target, rest = takers[0].node_id, "all its rows are lost"
    else:
        return text
    return (
        f"{text}; or give up what only others have: `propose -g {gpid} -p assign_primary "
        f"-n {target} --accept-loss` ({rest})"
    )
