"""Opens a cluster: from the addresses of its meta servers to tables and the admin client.

    async with pegaskv.connect("127.0.0.1:34601") as client:
        table = await client.table("users")
        await table.set(b"ann", b"mail", b"ann@example.org")

A client has one connection per node, used by all its tables and tasks. It owns no
background task: what is not awaited by a caller is a callback of a connection.

When servers fail, this is what a call with its time limit meets:

- A server that is restarted in order hands over and says goodbye first: no call fails.
- A primary that dies is followed by another member within 6 s (a grace of 5 s and some
  more). Reads, and writes that were not sent or were refused, are tried there as long as
  their time limit allows. The default of 5 s is a little less than that: whoever would
  rather wait than be told gives `timeout=10`. A write that was on its way raises at once
  when the connection breaks, and `maybe_applied` says that its outcome is not known.
- A primary that is paused or cut off keeps its connection and says nothing. After a second
  the client counts it as silent: reads go elsewhere as soon as somebody else serves, new
  writes are not sent to it, and those on their way end when another member has taken over,
  or with their time limit.
- A meta server is needed to open a table for the first time and to find who serves after a
  change. While none answers, the client goes by what it knows.
"""

# ruff: noqa: ASYNC109 - deadlines are kept by the connection, which costs nothing per call.

from collections.abc import Generator, Sequence
from random import Random
from types import TracebackType
from typing import Any, Literal

from pegaskv.base.errors import InvalidArgument
from pegaskv.client.admin import AdminClient
from pegaskv.client.any_member import AnyMemberTable
from pegaskv.client.arguments import as_timeout_ms, parse_metas
from pegaskv.client.calls import Calls
from pegaskv.client.nodes import NodePool
from pegaskv.client.options import ClientOptions
from pegaskv.client.resolver import MetaResolver
from pegaskv.client.retry import Deadline
from pegaskv.client.table import Table
from pegaskv.net.asyncio_network import AsyncioNetwork
from pegaskv.net.network import Network
from pegaskv.runtime.clock import Clock, SystemClock

__all__ = ["Client", "Connecting", "connect"]


class Client:
    """A cluster: its tables and its administration. Made by `connect`."""

    def __init__(
        self,
        metas: list[str],
        *,
        network: Network,
        clock: Clock,
        random: Random,
        options: ClientOptions,
    ) -> None:
        options.validate()
        self._options = options
        self._pool = NodePool(network=network, clock=clock, random=random, options=options)
        self._resolver = MetaResolver(metas, self._pool)
        # By name, and whether any member may answer reads.
        self._tables: dict[tuple[str, bool], Table] = {}
        self._calls: dict[tuple[str, bool], Calls] = {}
        self.admin = AdminClient(self._resolver, self._pool)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._pool.closed

    @property
    def metas(self) -> list[str]:
        """The meta servers' addresses as they were given."""
        return list(self._resolver.addresses)

    @property
    def timeout(self) -> float:
        """Seconds that a call may take when it names no time limit of its own."""
        return self._options.timeout_ms / 1_000

    async def table(
        self,
        name: str,
        *,
        read_from: Literal["primary", "any"] = "primary",
        timeout: float | None = None,
    ) -> Table:
        """Return the table `name`; the same object each time.

        With `read_from="any"` its reads (not its writes) may be answered by a secondary: they
        go on while a partition has no primary, and may miss the last writes.

        One that was opened before is returned while no meta server answers, too.

        Raises:
            TableNotFound: there is none.
            InvalidArgument: `name` is no text.
            Timeout, Unavailable: no meta server answered.

        """
        if not isinstance(name, str):
            raise InvalidArgument(f"a table's name must be text, not {name!r}")
        timeout_ms = self._options.timeout_ms if timeout is None else as_timeout_ms(timeout)
        if read_from not in ("primary", "any"):
            raise InvalidArgument(f'read_from must be "primary" or "any", not {read_from!r}')
        any_member = read_from == "any"
        key = (name, any_member)
        calls = self._calls.get(key) or Calls(
            name, self._resolver, self._pool, any_member=any_member
        )
        clock = self._pool.clock
        # Asked each time: the table may have been dropped since.
        await calls.looked_up(
            calls.route, Deadline(now_ms=clock.monotonic_ms(), timeout_ms=timeout_ms)
        )
        if key not in self._tables:
            kind = AnyMemberTable if any_member else Table
            self._calls[key] = calls
            self._tables[key] = kind(calls, timeout_ms=self._options.timeout_ms)
        return self._tables[key]

    async def close(self) -> None:
        """End all connections; calls under way raise `Unavailable`. May be called again."""
        await self._pool.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> "Client":
        """Connect to a meta server, so that a wrong address is noticed at once."""
        try:
            await self._resolver.greet(self._options.timeout_ms)
        except BaseException:
            await self.close()
            raise
        return self


class Connecting:
    """What `connect` returns: `await` it for a client, or use it by `async with`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __await__(self) -> Generator[Any, None, Client]:
        return self._client.open().__await__()

    async def __aenter__(self) -> Client:
        return await self._client.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.close()


def connect(
    metas: str | Sequence[str],
    *,
    user: str | None = None,
    password: str | None = None,
    tls: Any = None,
    timeout: float = 5.0,
    options: ClientOptions | None = None,
    network: Network | None = None,
    clock: Clock | None = None,
    random: Random | None = None,
) -> Connecting:
    """Open the cluster of the meta servers `metas`: `HOST:PORT`, several by commas or a list.

    `timeout` is the time limit in seconds of each call that names none, and of connecting.
    `options`, when given, says that and more. The last three are the doors to the world.

    Raises:
        InvalidArgument: an address or the time limit cannot be.
        Unavailable: (when awaited) no meta server answers.

    """
    for name, value in (("user", user), ("password", password), ("tls", tls)):
        if value is not None:
            raise InvalidArgument(
                f"{name} is given, and this version has no authentication or encryption",
                hint=f"leave {name} out, or use a newer version",
            )
    if options is None:
        options = ClientOptions(timeout_ms=as_timeout_ms(timeout))
    client = Client(
        parse_metas(metas),
        network=network or AsyncioNetwork(),
        clock=clock or SystemClock(),
        random=random or Random(),
        options=options,
    )
    return Connecting(client)
