"""The shell on a fake cluster with the table `users`, as a process of its own."""

import sys

from shell.app import main
from tests.shell.fake_client import FakeCluster

if __name__ == "__main__":
    cluster = FakeCluster()
    cluster.create("users")
    sys.exit(main(connect=cluster.connect))
