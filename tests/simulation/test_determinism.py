import os
import subprocess
import sys

from tests.simulation.toy import run

SEEDS = 12


def digests_of_a_process(hash_seed: str) -> list[str]:
    """Run the seeds in a fresh interpreter, whose sets of strings have an order of their own."""
    answer = subprocess.run(
        [sys.executable, "-m", "tests.simulation.toy", "0", str(SEEDS)],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    return [line.split()[1] for line in answer.stdout.splitlines()]


def test_a_seed_gives_one_trace_in_every_process_and_no_two_seeds_give_the_same() -> None:
    one, two = digests_of_a_process("1"), digests_of_a_process("2")
    assert one == two
    assert len(set(one)) == SEEDS
    here = [run(seed)[0] for seed in range(SEEDS)]
    assert [world.digest() for world in here] == one
    assert min(world.trace.count for world in here) > 1_000, "hardly anything happened"


def test_the_trace_sees_a_difference_of_one_byte() -> None:
    one = run(3, writes=40)[0]
    two = run(3, writes=41)[0]
    assert one.digest() != two.digest()


def test_the_last_lines_of_a_trace_can_be_read() -> None:
    world, _ = run(3, trace_lines=50)
    assert 50 <= len(world.trace.lines) <= 100
    assert any(" read " in f" {line}" for line in world.trace.lines)
    assert world.digest() == run(3)[0].digest()
