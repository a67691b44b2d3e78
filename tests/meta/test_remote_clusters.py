"""Other clusters: by a command, by the configuration, and what changes when they do."""

from typing import Any

import pytest

from pegaskv.base.errors import InvalidArgument
from pegaskv.meta.events import AddCluster, RemotesChanged, RemoveCluster
from pegaskv.meta.remotes import RemoteClusterInfo
from tests.meta.sides import Side, connected


@pytest.fixture
def alpha() -> Side:
    side = connected()[0]
    side.create("t")
    return side


def info(name: str, number: int, metas: str = "h:1") -> RemoteClusterInfo:
    return RemoteClusterInfo(name, metas, number)


def test_clusters_are_added_changed_used_and_removed(alpha: Side) -> None:
    answer = alpha.ask(AddCluster(alpha.next_id(), info("delta", 9, " h:1, [::1]:34601")))
    assert answer.more[0].metas == "h:1,[::1]:34601"
    alpha.restart()
    entry = alpha.add("t", "delta")
    assert alpha.server.orders[1].duplications[0].metas == "h:1,[::1]:34601"
    alpha.ask(AddCluster(alpha.next_id(), info("delta", 9, "other:2")))
    alpha.meta.deliver(alpha.server)
    assert alpha.server.orders[1].duplications[0].metas == "other:2"
    with pytest.raises(InvalidArgument, match="known with the id 9"):
        alpha.ask(AddCluster(alpha.next_id(), info("delta", 10)))
    with pytest.raises(InvalidArgument, match="table `t` is duplicated"):
        alpha.ask(RemoveCluster(alpha.next_id(), "delta"))
    alpha.modify(entry, "remove")
    alpha.ask(RemoveCluster(alpha.next_id(), "delta"))
    assert "clusters/delta" not in alpha.records.entries
    with pytest.raises(InvalidArgument, match="no cluster is known"):
        alpha.ask(RemoveCluster(alpha.next_id(), "delta"))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (info("alpha", 9), "itself"),
        (info("delta", 1), "the id of this cluster"),
        (info("delta", 2), "`beta` has the id 2"),
        (info("delta", 0), "the id 0"),
        (info("delta", 128), "the id 128"),
        (info("a b", 9), "named 'a b'"),
        (info("delta", 9, ""), "HOST:PORT"),
        (info("delta", 9, "h:0"), "HOST:PORT"),
        (info("delta", 9, "h:1,,h:2"), "HOST:PORT"),
        (info("delta", 9, "::1:34601"), "HOST:PORT"),
        (info("beta", 2), "in the configuration"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(alpha: Side, wrong: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        alpha.ask(AddCluster(alpha.next_id(), wrong))


def test_a_cluster_of_the_configuration_is_removed_there(alpha: Side) -> None:
    with pytest.raises(InvalidArgument, match="in the configuration") as caught:
        alpha.ask(RemoveCluster(alpha.next_id(), "beta"))
    assert "[clusters.beta]" in caught.value.hint


def test_a_configuration_that_was_read_again_is_told_to_the_nodes(alpha: Side) -> None:
    alpha.add("t")
    for clusters, metas in (
        ({"beta": info("beta", 2, "new:5")}, "new:5"),
        ({}, ""),
        ({"beta": info("beta", 2, "back:6")}, "back:6"),
    ):
        alpha.meta.feed(RemotesChanged(clusters))
        alpha.meta.deliver(alpha.server)
        assert alpha.server.orders[1].duplications[0].metas == metas
        assert alpha.work()[0].metas == metas
    commits = alpha.records.commits
    alpha.meta.feed(RemotesChanged({"beta": info("beta", 2, "back:6")}))
    assert alpha.records.commits == commits
