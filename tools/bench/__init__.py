"""Benchmarks beside peers: `python -m tools.bench NAME`. Never part of the tests.

Both sides of a comparison run in turn in one run, so that their ratio holds when the
machine's speed drifts. Two runs of the same thing differ by 10 to 15 %.
"""
