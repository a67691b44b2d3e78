"""The conformance suite, unchanged, against a cluster of three replica servers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.servers import running_servers

pytestmark = [pytest.mark.process, pytest.mark.soak]

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)
def test_the_conformance_suite_passes_on_three_replicas(tmp_path: Path) -> None:
    with running_servers(tmp_path / "servers") as servers:
        finished = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/conformance"],
            cwd=ROOT,
            env=os.environ | {"PEGASKV_CONFORMANCE": servers.address},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    assert finished.returncode == 0, finished.stdout[-4_000:]
    assert " passed" in finished.stdout
