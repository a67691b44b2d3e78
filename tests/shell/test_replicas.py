"""The commands of a replicated cluster: nodes, health, levels, moves, dead partitions."""

from dataclasses import replace
from typing import Any

import pytest

from pegaskv.base.types import Gpid
from pegaskv.client import DeadPartition, NodeInfo, PartitionInfo
from shell.completer import Live, LiveNames, candidates
from tests.shell.harness import COMMANDS, Session

NODES = [
    NodeInfo("id-c", "10.0.0.3:34801", "unalive", {"primaries": 0, "secondaries": 8}),
    NodeInfo("id-a", "10.0.0.1:34801", "alive", {"primaries": 8, "secondaries": 0, "free": 5}),
    NodeInfo("id-b", "10.0.0.2:34801", "alive", {"primaries": 0, "secondaries": 8}),
    NodeInfo("id-d", "", "not seen", {}),
]


def member(node: str, **known: Any) -> dict[str, Any]:
    return {"node": node, "status": "alive", "has_replica": True, "ballot": 4, **known}


DEAD = DeadPartition(
    Gpid(1, 3),
    {
        "reason": "its primary, node id-c, is unalive",
        "since": 1_800_000_000,
        "members": [
            {"node": "id-c", "status": "unalive", "has_replica": False},
            member("id-a", last_decree=7, amnesiac=True),
            member("id-b", last_decree=5, closed="its disk failed"),
        ],
        "dropped": [member("id-d", status="not seen", has_replica=False)],
        "advice": "start node id-c again; or `propose -g 1.3 -n id-a --accept-loss`",
    },
)


@pytest.fixture
def session() -> Session:
    session = Session()
    session.cluster.nodes = NODES
    session.cluster.layout = PartitionInfo(
        0, 5, "id-a", ("id-b", "id-c"), {"committed_decree": 70, "size_bytes": 4096}
    )
    users = session.cluster.find("users")
    session.cluster.tables[users.table_id] = type(users)(
        **{**{name: getattr(users, name) for name in users.__slots__}, "replica_count": 3}
    )
    return session


async def test_nodes_are_listed_by_address_and_state(session: Session) -> None:
    assert await session.text("nodes") == (
        "address         status    node_id\n"
        "-               not seen  id-d\n"
        "10.0.0.1:34801  alive     id-a\n"
        "10.0.0.2:34801  alive     id-b\n"
        "10.0.0.3:34801  unalive   id-c\n"
    )
    assert session.output.notes == ["4 nodes: 2 alive, 1 not seen, 1 unalive"]
    assert (await session.text("nodes -d")).splitlines()[:3:2] == [
        "address         status    node_id  primaries  secondaries  free",
        "10.0.0.1:34801  alive     id-a     8          0            5",
    ]
    assert [each["node_id"] for each in await session.data("nodes -s unalive")] == ["id-d", "id-c"]
    assert [each["node_id"] for each in await session.data("nodes -s alive")] == ["id-a", "id-b"]
    session.cluster.nodes = []
    assert await session.text("nodes") == ""
    assert session.output.notes == ["no nodes have reported"]


async def test_a_table_shows_how_well_it_is_served(session: Session) -> None:
    shown = await session.text("app users")
    assert "partitions_healthy          0\n" in shown
    assert "partitions_readable         3\n" in shown
    assert "partitions_writable         3\n" in shown
    assert session.output.notes == ["`app -d` shows every partition"]
    lines = (await session.text("app users -d")).splitlines()
    assert lines[0].split() == [
        "index", "ballot", "replicas", "health", "primary", "secondaries", "committed",
        "size_bytes", "remarks",
    ]  # fmt: skip
    assert lines[2].split(maxsplit=4) == [
        "1",
        "5",
        "3/3",
        "degraded",
        "10.0.0.1:34801  10.0.0.2:34801,10.0.0.3:34801 (unalive)         70        4096  -",
    ]
    assert session.output.notes == [
        "3 partitions: 0 healthy, 3 readable, 3 writable",
        "10.0.0.1:34801: 3 primaries, 0 secondaries",
        "10.0.0.2:34801: 0 primaries, 3 secondaries",
        "10.0.0.3:34801 (unalive): 0 primaries, 3 secondaries",
    ]
    data = await session.data("app users")
    assert data["partitions_healthy"] == 0
    assert data["partitions"][0]["secondaries"] == ["id-b", "id-c"]


async def test_what_a_replica_says_of_itself_is_remarked(session: Session) -> None:
    session.cluster.layout = PartitionInfo(
        0, 5, "id-a", ("id-b",), {"closed": "the log is damaged"},
        {"id-a": {}, "id-b": {"closed": "no room"}, "id-c": {"status": "potential_secondary"}},
    )  # fmt: skip
    shown = await session.text("app users -d")
    assert "unavailable" in shown
    assert (
        "the log is damaged; 10.0.0.2:34801: no room; 10.0.0.3:34801: potential_secondary" in shown
    )
    assert (await session.data("app users -d"))["partitions"][0]["replicas"]["id-c"] == {
        "status": "potential_secondary"
    }
    session.cluster.layout = PartitionInfo(0, 5, "id-a", ("id-b",), {}, {"id-b": {}})
    shown = await session.text("app users -d")
    assert "unavailable" in shown
    assert "10.0.0.1:34801 does not answer" in shown


async def test_a_detailed_list_of_tables_shows_health(session: Session) -> None:
    shown = await session.text("ls -d")
    assert "healthy  readable  writable  envs" in shown.splitlines()[0]
    assert session.output.notes == ["3 partitions: 0 healthy, 3 readable, 3 writable"]
    assert (await session.data("ls -d"))[0]["partitions_writable"] == 3
    assert "partitions_writable" not in (await session.data("ls"))[0]
    await session.run("drop users --yes")
    assert (await session.data("ls -a -d"))[0]["status"] == "dropped"


async def test_the_cluster_tells_how_many_partitions_are_well(session: Session) -> None:
    session.cluster.info = {
        "partitions_unhealthy": 2,
        "partitions_healthy": 6,
        "partitions_readable": 8,
        "partitions_writable": 7,
    }
    assert "partitions_healthy    6\n" in await session.text("cluster_info")
    assert session.output.notes == ["8 partitions: 6 healthy, 8 readable, 7 writable"]
    names = LiveNames(session.context, now=lambda: 1.0)
    await names.refresh()
    assert names.live.health is not None
    assert names.live.health.word == "read only"
    assert names.live.addresses["10.0.0.3:34801"] == "unalive"
    assert names.live.partitions["1.7"] == "users"


async def test_one_server_is_asked_by_its_address(session: Session) -> None:
    assert (await session.data("server_info 10.0.0.2:34801"))["address"] == "10.0.0.2:34801"
    assert (await session.data("server_info"))["address"] == "fake:1"


async def test_the_level_is_shown_and_set(session: Session) -> None:
    assert await session.text("get_meta_level") == "lively\n"
    assert session.output.notes == ["what that means"]
    assert await session.data("set_meta_level steady") == {"before": "lively", "level": "steady"}
    await session.text("set_meta_level steady")
    assert session.output.notes == ["the level is steady already"]
    await session.text("set_meta_level blind")
    assert session.output.notes[0] == "the level was steady and is blind now"
    assert session.output.notes[1].startswith("warning: at level blind a primary that dies")
    assert "lively" in await session.fails("set_meta_level lvely")


async def test_the_replica_count_is_shown_and_set(session: Session) -> None:
    assert await session.text("get_replica_count users") == "3\n"
    assert await session.data("get_replica_count users") == {"table": "users", "replica_count": 3}
    await session.text("set_replica_count users 2")
    assert session.output.notes == [
        "table users is to have 2 replicas of each partition; `app users -d` shows how far that is",
        "warning: only 1 node is alive",
    ]
    await session.fails("set_replica_count users 0")
    await session.fails("set_replica_count users 9")
    assert "no table" in await session.fails("set_replica_count nosuch 2", 1)


async def test_moves_are_said_with_addresses(session: Session) -> None:
    line = "balance -g 1.3 -p move_pri -f 10.0.0.1:34801 -t id-b"
    assert await session.text(line) == ""
    assert session.output.notes == [
        "partition 1.3: the lead goes from node node-1 to node 10.0.0.2:34801"
    ]
    assert session.cluster.proposals == [("1.3", "move_pri", "10.0.0.1:34801", "id-b")]
    assert "needs -t" in await session.fails("balance -g 1.3 -p move_pri -f 10.0.0.1:34801")
    assert "move_pri" in await session.fails("balance -g 1.3 -p move -f a -t b")


async def test_only_a_proposal_that_may_lose_data_asks() -> None:
    questions: list[str] = []

    async def ask(question: str) -> str | None:
        questions.append(question)
        return "no" if len(questions) == 1 else "yes"

    session = Session(ask=ask)
    await session.text("propose -g 1.3 -p downgrade -n node-1")
    assert not questions
    forced = "propose -g 1.3 -p assign_primary -n node-1 --accept-loss"
    assert "nothing was done" in await session.fails(forced, 1)
    assert questions[0].startswith("propose with --accept-loss gives up acknowledged writes")
    await session.text(forced)
    await session.text(forced + " --yes")
    assert len(questions) == 2
    assert session.cluster.proposals[-1] == ("1.3", "assign_primary", "node-1", True)
    # It takes longer than others, since whoever led must have stopped.
    assert session.cluster.log[-1] == ("propose", 60.0)
    session.context.ask = None
    assert "nobody to ask" in await session.fails(forced)
    refused = await session.fails("propose -g 1.3 -p assign_primary -n node-1", 1)
    assert "with --accept-loss node 127.0.0.1:34601 leads" in refused
    await session.text("propose -g 1.3 -p remove -n node-1 -t node-2")
    assert "warning: -t is not needed: the meta server knows who leads" in session.output.notes


async def test_dead_partitions_are_listed_with_what_helps(session: Session) -> None:
    assert await session.text("ddd_diagnose") == ""
    assert session.output.notes == ["no partition is without a server"]
    session.cluster.dead = [DEAD]
    shown = (await session.text("ddd_diagnose")).splitlines()
    assert shown[0].split() == ["gpid", "table", "since", "reason", "recommended"]
    assert shown[1] == (
        "1.3   users  2027-01-15T08:00:00Z  its primary, node 10.0.0.3:34801, is unalive  "
        "10.0.0.1:34801"
    )
    assert session.output.notes == [
        "start node 10.0.0.3:34801 again; or `propose -g 1.3 -n 10.0.0.1:34801 --accept-loss`"
    ]
    await session.text("ddd_diagnose -d")
    assert session.output.notes[:4] == [
        "1.3 at 10.0.0.3:34801: unalive, no replica",
        "1.3 at 10.0.0.1:34801: alive, ballot 4, last decree 7, may lack what it acknowledged",
        "1.3 at 10.0.0.2:34801: alive, ballot 4, last decree 5, closed its disk failed",
        "1.3 at id-d: not seen, a former member, no replica, ballot 4",
    ]
    session.cluster.dead = [replace(DEAD, gpid=Gpid(1, index)) for index in range(7)]
    await session.text("ddd_diagnose")
    assert session.output.notes[-1] == "and 2 more: `ddd_diagnose -g <gpid>` for each"
    assert len(session.output.notes) == 2
    session.cluster.dead = [DEAD]
    for place, count in (("users", 1), ("1.3", 1), ("1.2", 0)):
        assert len(await session.data(f"ddd_diagnose -g {place}")) == count
    assert "neither a table nor a partition" in await session.fails("ddd_diagnose -g nosuch", 1)
    assert "no table has the id 9" in await session.fails("ddd_diagnose -g 9.1", 1)


async def test_dead_partitions_are_brought_back_one_by_one(session: Session) -> None:
    second = DeadPartition(Gpid(1, 4), {"advice": "wait", "members": [member("id-a")]})
    session.cluster.dead = [DEAD, second]
    assert "here is nobody to ask" in await session.fails("ddd_diagnose -a")
    questions: list[str] = []
    answers = iter(["n", "y"])

    async def ask(question: str) -> str | None:
        questions.append(question)
        return next(answers)

    session.context.ask = ask
    assert [each["done"] for each in await session.data("ddd_diagnose -a")] == [None, None]
    assert not session.cluster.proposals
    await session.text("ddd_diagnose -a")
    assert questions[1].startswith("let 10.0.0.1:34801 lead partition 1.3? What it lacks is lost")
    assert session.cluster.proposals == [("1.3", "assign_primary", "id-a", True)]
    assert "1.4: no node can be recommended: wait" in session.output.notes
    session.context.ask = None
    done = await session.data("ddd_diagnose -a -s -g 1.3")
    assert done[0]["done"] == "node node-1 leads partition 1.3 with what it has"
    assert len(session.cluster.proposals) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nodes -s una", ["unalive"]),
        ("server_info ", ["h:1", "h:2"]),
        ("propose -g ", ["1.0", "1.1"]),
        ("propose -g 1.0 -p ass", ["assign_primary"]),
        ("propose -g 1.0 -n ", ["h:1", "h:2"]),
        ("balance -g 1.0 -f h:2", ["h:2"]),
        ("ddd_diagnose -g ", ["users", "1.0", "1.1"]),
        ("set_meta_level st", ["stopped", "steady"]),
        ("set_replica_count us", ["users"]),
    ],
)
def test_nodes_and_partitions_are_completed(text: str, expected: list[str]) -> None:
    live: Any = Live(
        tables=("users",),
        addresses={"h:1": "alive", "h:2": "unalive"},
        partitions={"1.0": "users", "1.1": "users"},
    )
    assert [each.text for each in candidates(text, COMMANDS, live)][: len(expected)] == expected
