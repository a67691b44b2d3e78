"""A data directory is of one kind of server and of one cluster."""

from pathlib import Path
from random import Random

import pytest

from pegaskv.base.errors import DirectoryUnusable
from pegaskv.server.belonging import check_role, joined_cluster, keep_role, remember_cluster
from tests.simulation.disk import SimulatedDisk

DATA = Path("/data")
ROLES = ("standalone", "meta", "replica")


@pytest.fixture
def disk() -> SimulatedDisk:
    disk = SimulatedDisk(Random(1))
    disk.make_dirs(DATA)
    return disk


@pytest.mark.parametrize("found", ROLES)
def test_only_the_kind_of_server_that_made_a_directory_may_have_it(
    found: str, disk: SimulatedDisk
) -> None:
    for role in ROLES:
        check_role(disk, DATA, role)
    keep_role(disk, DATA, found)
    keep_role(disk, DATA, found)
    check_role(disk, DATA, found)
    for other in set(ROLES) - {found}:
        with pytest.raises(DirectoryUnusable, match=f"of a {found} server") as met:
            check_role(disk, DATA, other)
        assert f"pegaskv {found}" in met.value.hint


def test_what_is_no_kind_of_server_is_shown(disk: SimulatedDisk) -> None:
    for text in (b"", b"\xff\x00", b"shell"):
        disk.write_atomic(DATA / "role", text)
        with pytest.raises(DirectoryUnusable, match="damaged"):
            check_role(disk, DATA, "meta")


def test_the_cluster_that_was_joined_is_remembered(disk: SimulatedDisk) -> None:
    assert joined_cluster(disk, DATA) == ""
    remember_cluster(disk, DATA, "0f2a")
    assert joined_cluster(disk, DATA) == "0f2a"
    for text in (b"x" * 65, b"a\x00b"):
        disk.write_atomic(DATA / "cluster", text)
        with pytest.raises(DirectoryUnusable, match="damaged"):
            joined_cluster(disk, DATA)
