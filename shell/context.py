"""The state of a session: which cluster, which table, how long to wait, where output goes.

A context is handed to every command. It connects when the first command needs the
cluster, so `help` and `version` work without one, and keeps that connection until
the end.
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pegaskv.base.errors import InvalidArgument
from shell.errors import UsageError
from shell.terminal import Screen, now, sleep, wall_s

if TYPE_CHECKING:
    from pegaskv.client import Client, Table

__all__ = ["Connect", "Context", "Output", "StandardOutput"]

# From the address of a cluster and a time limit in seconds to a client that is a context manager.
Connect = Callable[[str, float], Any]


class Output(Protocol):
    """Where a command's lines go."""

    def data(self, text: str) -> None:
        """Write a part of the data, as it is."""

    def note(self, line: str) -> None:
        """Write a line that is for a person."""

    async def drain(self) -> None:
        """Wait until the reader has room; called often while much is written."""


class StandardOutput:
    """Data on stdout, everything else on stderr."""

    def __init__(self, stdout: Any, stderr: Any) -> None:
        self._stdout = stdout
        self._stderr = stderr

    def data(self, text: str) -> None:
        """Write to stdout."""
        self._stdout.write(text)

    def note(self, line: str) -> None:
        """Write a line to stderr, behind the data that was written before."""
        self._stdout.flush()
        self._stderr.write(line + "\n")
        self._stderr.flush()

    async def drain(self) -> None:
        """Flush, so that a reader at the other end of a pipe sees each answer at once."""
        self._stdout.flush()


@dataclass(slots=True)
class Context:
    """What the commands of one session share."""

    cluster: str
    connect: Connect
    output: Output
    timeout_ms: int = 5_000
    table_name: str = ""
    json: bool = False
    escape_all: bool = False
    yes: bool = False
    interactive: bool = False
    # Ask the operator a question; None when there is nobody to ask.
    ask: Callable[[str], Awaitable[str | None]] | None = None
    # The next line of input, for a command that takes several; None at the end.
    more: Callable[[str], Awaitable[str | None]] | None = None
    # Where a command may draw over what it drew before; None when nobody watches.
    screen: Screen | None = None
    # Pauses, and seconds that only go on, for commands that repeat themselves.
    sleep: Callable[[float], Awaitable[None]] = sleep
    now: Callable[[], float] = now
    # Seconds since 1970.
    wall_s: Callable[[], float] = wall_s
    # Whether the cluster has ever answered.
    connected: bool = False
    _client: Any = None
    _tables: dict[str, "Table"] = field(default_factory=dict)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def timeout_s(self) -> float:
        """How long one operation may take, in seconds."""
        return self.timeout_ms / 1000

    async def client(self) -> "Client":
        """Return the client of the session's cluster; the first call connects.

        Raises:
            UsageError: the cluster's address is none.
            Unavailable: no server of the cluster can be reached.

        """
        if self._client is None:
            try:
                connecting = self.connect(self.cluster, self.timeout_s)
                self._client = await self._stack.enter_async_context(connecting)
            except InvalidArgument as error:
                raise UsageError(error.message, hint="--cluster takes HOST:PORT[,…]") from None
            self.connected = True
        client: Client = self._client
        return client

    async def table(self) -> "Table":
        """Return the table in use.

        Raises:
            UsageError: no table is in use.
            TableNotFound: the table is gone.

        """
        name = self.require_table()
        table = self._tables.get(name)
        if table is None:
            table = await (await self.client()).table(name, timeout=self.timeout_s)
            # Kept, since to open one asks the meta server each time. It follows what moves.
            self._tables[name] = table
        return table

    def forget_table(self, name: str) -> None:
        """Open a table anew at its next use: its name may mean another one by then."""
        self._tables.pop(name, None)

    def require_table(self) -> str:
        """Return the name of the table in use.

        Raises:
            UsageError: no table is in use.

        """
        if not self.table_name:
            raise UsageError(
                "no table is in use", hint="say `use <table>` first; `ls` lists the tables"
            )
        return self.table_name

    async def close(self) -> None:
        """Close the connection, if there is one."""
        stack, self._stack = self._stack, AsyncExitStack()
        self._client = None
        self._tables.clear()
        await stack.aclose()
