"""Makes a failing run of a cluster smaller: fewer faults, clients, servers, less time.

Each step leaves something out and plays the same seed again; when it still fails, in whatever
way, the step is kept. What comes out is a story that a person can follow.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tests.simulation.cluster_world import (
    Story,
    TableStory,
    simulate_cluster,
    simulate_group,
    story_of,
)

__all__ = ["shrink", "shrink_cluster", "shrink_group"]


def shrink_cluster(seed: int, goes_on: Callable[[], bool]) -> str:
    """Return what is left of a failing seed of a whole cluster, as an expression, and its fault."""
    return shrink(seed, story_of(seed), simulate_cluster, goes_on)


def shrink_group(seed: int, goes_on: Callable[[], bool]) -> str:
    """The same for a group."""
    return shrink(seed, story_of(seed, group=True), simulate_group, goes_on)


def shrink(
    seed: int,
    story: Story,
    simulate: Callable[[int, Story], Any],
    goes_on: Callable[[], bool] = lambda: True,
) -> str:
    """Leave out what a failure does not need, as long as `goes_on()`."""
    failure = _failure(simulate, seed, story)
    if not failure:
        return "it did not fail again"
    tried: set[Story] = {story}
    smaller = True
    while smaller and goes_on():
        smaller = False
        for candidate in _smaller(story):
            if candidate in tried or not goes_on():
                continue
            tried.add(candidate)
            found = _failure(simulate, seed, candidate)
            if found:
                story, failure, smaller = candidate, found, True
                break
    return f"{simulate.__name__}({seed}, {story}): {failure}"


def _failure(simulate: Callable[[int, Story], Any], seed: int, story: Story) -> str:
    try:
        wrong: list[str] = simulate(seed, story).wrong
    except Exception as error:  # noqa: BLE001 - whatever it is, the run has failed
        return f"{type(error).__name__}: {str(error)[:400]}"
    return "; ".join(wrong)[:400]


def _smaller(story: Story) -> Iterator[Story]:
    """Stories with one thing less, the largest steps first."""
    kinds = story.kinds
    if len(kinds) > 1:
        half = len(kinds) // 2
        yield replace(story, kinds=kinds[:half])
        yield replace(story, kinds=kinds[half:])
        for place in range(len(kinds)):
            yield replace(story, kinds=kinds[:place] + kinds[place + 1 :])
    if story.seconds > 1:
        yield replace(story, seconds=story.seconds // 2)
        yield replace(story, seconds=story.seconds - 1)
    for tables in _fewer_tables(story.tables):
        yield replace(story, tables=tables)
    for name, least in (("writers", 1), ("clients", 1), ("at_once", 1), ("servers", 3)):
        value = getattr(story, name)
        if value > least:
            yield replace(story, **{name: least})
            yield replace(story, **{name: value - 1})


def _fewer_tables(tables: tuple[TableStory, ...]) -> Iterator[tuple[TableStory, ...]]:
    if len(tables) > 1:
        for place in range(len(tables)):
            yield tables[:place] + tables[place + 1 :]
    for place, table in enumerate(tables):
        if table.partitions > 1:
            smaller = replace(table, partitions=1)
            yield (*tables[:place], smaller, *tables[place + 1 :])
