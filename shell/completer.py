"""Completion: commands, options, choices, and the names that live in the cluster.

What fits a line is decided by a pure function from the registry and the names that are
known. The names come from the cluster: they are fetched behind the prompt and kept, and
a completion waits for a fetch at most 200 ms. A dead cluster costs one such wait, then
the fetch is left alone for some seconds; the prompt never hangs.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from pegaskv.base.errors import OperationDisabled, PegasKVError, UnknownOperation
from pegaskv.base.types import TableStatus
from shell.conditions import next_words
from shell.context import Context
from shell.nodes import health_of_cluster
from shell.parser import expected_next, innermost, quote, scan
from shell.registry import Argument, Command, Kind, Option, Source

if TYPE_CHECKING:
    from pegaskv.client import AdminClient, Health

__all__ = ["Candidate", "Live", "LiveNames", "ShellCompleter", "candidates"]

FETCH_SECONDS_MAX: Final = 0.2
# How long names count as fresh, and how long a cluster that did not answer is left alone.
FRESH_SECONDS: Final = 2.0
FAILED_SECONDS: Final = 5.0

# The envs that every server of this version knows, with the values that can be listed.
ENVS: Final[Mapping[str, tuple[str, ...]]] = {
    "default_ttl": (),
    "durability": ("fsync", "os"),
    "replica.write_throttling": (),
    "replica.write_throttling_by_size": (),
    "replica.read_throttling": (),
    "replica.read_throttling_by_size": (),
    "replica.slow_query_threshold": (),
    "manual_compact.once.trigger_time": ("now",),
    "manual_compact.disabled": ("true", "false"),
}


class Candidate(NamedTuple):
    """A completion: the text, how many signs before the cursor it replaces, what it is."""

    text: str
    replaces: int
    meaning: str = ""


@dataclass(slots=True)
class Live:
    """What is known of the cluster."""

    tables: tuple[str, ...] = ()
    # Clusters that tables can be duplicated to, with their addresses.
    clusters: Mapping[str, str] = field(default_factory=dict)
    # Table -> ids of its duplications, with their remote clusters.
    duplications: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # Ids of dropped tables, with their names.
    dropped: Mapping[str, str] = field(default_factory=dict)
    table_envs: tuple[str, ...] = ()
    # Addresses of nodes, with their states; partitions (5.3), with the names of their tables.
    addresses: Mapping[str, str] = field(default_factory=dict)
    partitions: Mapping[str, str] = field(default_factory=dict)
    health: "Health | None" = None
    nodes_alive: int = 0
    nodes: int = 0
    # Why the cluster could not be asked, or "".
    trouble: str = "not asked yet"


def candidates(text: str, commands: Mapping[str, Command], live: Live) -> list[Candidate]:
    """Return what may stand at the end of `text`, the line up to the cursor."""
    scanned = scan(text)
    if scanned.error is not None or scanned.commented:
        return []
    words = scanned.words
    fragment = ""
    if words and words[-1].end == len(text):
        fragment = text[words[-1].start :]
        words = words[:-1]
    if not words:
        offers = [(name, each.help) for name, each in commands.items()]
        return _matching(fragment, offers)
    found = commands.get(words[0].text)
    if found is None:
        return []
    expected = expected_next(*innermost(found, words[1:], commands))
    options = [(flag, option.help) for option in expected.options for flag in option.flags[-1:]] + [
        (option.short, option.help) for option in expected.options if option.short
    ]
    if fragment.startswith("-") and expected.options:
        return _matching(fragment, options)
    made: list[Candidate] = []
    if expected.argument is not None:
        if expected.argument.kind is Kind.ENVS:
            return _envs_candidates(fragment)
        made = _matching(fragment, _offers(expected.argument, expected.seen, commands, live))
    if not fragment:
        made += _matching("", options)
    return made


def _offers(
    argument: Argument, seen: tuple[bytes, ...], commands: Mapping[str, Command], live: Live
) -> list[tuple[str, str]]:
    match argument.source:
        case Source.NOTHING:
            # The value of an env whose values can be listed.
            if argument.name == "value" and seen and not isinstance(argument, Option):
                known = ENVS.get(seen[-1].decode("utf-8", "replace"), ())
                return [(value, "") for value in known] if argument.kind is Kind.TEXT else []
            return []
        case Source.CHOICES:
            return [(word, "") for word in argument.words]
        case Source.COMMANDS:
            return [(name, each.help) for name, each in commands.items()]
        case Source.TABLES:
            return [(name, "table") for name in live.tables]
        case Source.ENVS:
            return [(name, "env") for name in ENVS]
        case Source.TABLE_ENVS:
            return [(name, "env") for name in live.table_envs]
        case Source.DROPPED_IDS:
            return list(live.dropped.items())
        case Source.CLUSTERS:
            return list(live.clusters.items())
        case Source.NODES:
            return list(live.addresses.items())
        case Source.PARTITIONS:
            return list(live.partitions.items())
        case Source.PARTITIONS_AND_TABLES:
            return [*((name, "table") for name in live.tables), *live.partitions.items()]
        case Source.DUPLICATIONS:
            table = seen[0].decode("utf-8", "replace") if seen else ""
            of_table = live.duplications.get(table, {})
            return [(cluster, "cluster") for cluster in dict.fromkeys(of_table.values())] + [
                (dupid, f"to {cluster}") for dupid, cluster in of_table.items()
            ]
        case Source.CONDITIONS:
            words = [word.decode("utf-8", "replace") for word in seen]
            return next_words(words, live.tables, live.duplications)


def _envs_candidates(fragment: str) -> list[Candidate]:
    last = fragment.rpartition(",")[2]
    name, equals, value = last.partition("=")
    if equals:
        return _matching(value, [(each, "") for each in ENVS.get(name, ())])
    return _matching(last, [(f"{each}=", "env") for each in ENVS])


def _matching(fragment: str, offers: Iterable[tuple[str, str]]) -> list[Candidate]:
    """Return the offers that begin with `fragment`, then those that hold its signs in order."""
    wanted = fragment.lower()
    begin: list[Candidate] = []
    fuzzy: list[Candidate] = []
    for text, meaning in offers:
        shown = text if text.startswith("-") or "=" in text else quote(text.encode(), bare=True)
        candidate = Candidate(shown, len(fragment), meaning)
        if text.lower().startswith(wanted):
            begin.append(candidate)
        elif _holds(text.lower(), wanted):
            fuzzy.append(candidate)
    return begin + fuzzy


def _holds(text: str, signs: str) -> bool:
    rest = iter(text)
    return all(sign in rest for sign in signs)


class LiveNames:
    """Keeps a `Live` fresh. `now` gives monotonic seconds."""

    def __init__(self, context: Context, *, now: Callable[[], float]) -> None:
        self.live = Live()
        self._context = context
        self._now = now
        self._next_fetch_at = 0.0
        self._table = ""
        self._lock = asyncio.Lock()

    @property
    def stale(self) -> bool:
        """Whether it is time to ask the cluster again."""
        return self._now() >= self._next_fetch_at or self._table != self._context.table_name

    async def refresh(self) -> None:
        """Ask the cluster, when it is time; what cannot be had stays as it was."""
        async with self._lock:
            if not self.stale:
                return
            self._table = self._context.table_name
            # Even when this call is cancelled, the next one waits.
            self._next_fetch_at = self._now() + FAILED_SECONDS
            try:
                await self._fetch()
            except (PegasKVError, OSError) as error:
                self.live.trouble = str(error) or type(error).__name__
            else:
                self.live.trouble = ""
                self._next_fetch_at = self._now() + FRESH_SECONDS

    async def _fetch(self) -> None:
        admin = (await self._context.client()).admin
        tables = await admin.list_tables(with_dropped=True, timeout=self._context.timeout_s)
        nodes = await admin.nodes(timeout=self._context.timeout_s)
        serving = [info for info in tables if info.status is not TableStatus.DROPPED]
        self.live.tables = tuple(info.name for info in serving)
        self.live.table_envs = tuple(
            name for info in serving if info.name == self._table for name in info.envs
        )
        self.live.dropped = {
            str(info.table_id): info.name for info in tables if info.status is TableStatus.DROPPED
        }
        await self._fetch_duplications(admin)
        self.live.partitions = {
            f"{info.table_id}.{index}": info.name
            for info in serving
            for index in range(info.partition_count)
        }
        self.live.addresses = {node.address: node.status for node in nodes if node.address}
        info = await admin.cluster_info(timeout=self._context.timeout_s)
        self.live.health = health_of_cluster(info)
        self.live.nodes = len(nodes)
        self.live.nodes_alive = sum(1 for node in nodes if node.status == "alive")

    async def _fetch_duplications(self, admin: "AdminClient") -> None:
        try:
            clusters = await admin.list_clusters(timeout=self._context.timeout_s)
            found = await admin.list_duplications(timeout=self._context.timeout_s)
        except (UnknownOperation, OperationDisabled):
            # A server that has no duplication has nothing to complete.
            return
        self.live.clusters = {each.name: each.metas for each in clusters}
        names: dict[str, dict[str, str]] = {}
        for each in found:
            names.setdefault(each.table, {})[str(each.dupid)] = each.remote_cluster
        self.live.duplications = names

    async def refresh_briefly(self) -> None:
        """The same, but give up waiting after 200 ms."""
        try:
            async with asyncio.timeout(FETCH_SECONDS_MAX):
                await self.refresh()
        except TimeoutError:
            self.live.trouble = "slow to answer"


class ShellCompleter(Completer):
    """`candidates` for prompt_toolkit."""

    def __init__(self, commands: Mapping[str, Command], names: LiveNames) -> None:
        self._commands = commands
        self._names = names

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterator[Completion]:
        """Complete from what is known."""
        text = document.text_before_cursor
        for each in candidates(text, self._commands, self._names.live):
            yield Completion(each.text, start_position=-each.replaces, display_meta=each.meaning)

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """Complete after a short look at the cluster."""
        if self._names.stale:
            await self._names.refresh_briefly()
        for completion in self.get_completions(document, complete_event):
            yield completion
