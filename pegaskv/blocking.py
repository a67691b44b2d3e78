"""The client for programs without asyncio: the same names without `await`.

    with pegaskv.blocking.connect("127.0.0.1:34601") as client:
        table = client.table("users")
        table.set(b"ann", b"mail", b"ann@example.org")

A thread of its own runs the asyncio client; every method hands its work over and waits.
It may be used from any number of threads at once, and their calls then share the
connections. A process that forks must connect after the fork: threads do not survive it.

A single call pays for the way to the other thread and back (some tens of
microseconds); `multi_*`, `batch_*` and scans pay it once for many rows.
"""

import asyncio
import functools
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from pegaskv.base.errors import Unavailable
from pegaskv.client import admin as asyncio_admin
from pegaskv.client import client as asyncio_client
from pegaskv.client import scanner as asyncio_scanner
from pegaskv.client import table as asyncio_table
from pegaskv.client.arguments import BytesLike
from pegaskv.client.options import ClientOptions, Row, ScanOptions

__all__ = ["AdminClient", "Client", "Scanner", "Table", "connect"]

P = ParamSpec("P")
T = TypeVar("T")
Inner = TypeVar("Inner")


class _LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        started = threading.Event()
        # A daemon: a program that forgets to close can end all the same.
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="pegaskv-client", daemon=True
        )
        self._thread.start()
        started.wait()

    def _run(self, started: threading.Event) -> None:
        # The runner cancels what is left when `_serve` ends, and waits for it.
        with asyncio.Runner() as runner:
            runner.run(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        started.set()
        await self._stop.wait()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there; return its result or raise its error here."""
        with self._lock:
            if self._loop is None:
                coroutine.close()
                raise Unavailable("the client is closed")
            if threading.current_thread() is self._thread:
                coroutine.close()
                raise RuntimeError("the blocking client was called from its own thread")
            future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in the waiting thread: do not leave the call running behind it.
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and the thread; calls under way are cancelled. May be called again."""
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is not None:
                assert self._stop is not None
                loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


class _Facade:
    """What every blocking object holds: its asyncio twin and the thread that runs it."""

    def __init__(self, inner: Any, thread: _LoopThread, owner: Any = None) -> None:
        self._inner = inner
        self._thread = thread
        # A table in use keeps its client: a forgotten client closes itself.
        self._owner = owner


def _blocking(
    method: Callable[Concatenate[Inner, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Make the blocking twin of an asyncio method."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        thread: _LoopThread = self._thread
        return thread.call(method(self._inner, *args, **kwargs))

    return call


class Scanner(_Facade):
    """An iterator of `Row`; rows come page by page, the next one being fetched meanwhile."""

    _inner: asyncio_scanner.Scanner

    def __init__(self, inner: asyncio_scanner.Scanner, thread: _LoopThread, owner: Any) -> None:
        super().__init__(inner, thread, owner)
        self._rows: Iterator[Row] = iter(())

    def __iter__(self) -> "Scanner":
        return self

    def __next__(self) -> Row:
        for row in self._rows:
            return row
        page = self._thread.call(self._inner.next_page())
        if not page:
            raise StopIteration
        self._rows = iter(page)
        return next(self._rows)

    def __enter__(self) -> "Scanner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the scan. May be called again."""
        self._rows = iter(())
        self._thread.call(self._inner.aclose())


class Table(_Facade):
    """`pegaskv.client.table.Table` without `await`."""

    _inner: asyncio_table.Table

    get = _blocking(asyncio_table.Table.get)
    set = _blocking(asyncio_table.Table.set)
    delete = _blocking(asyncio_table.Table.delete)
    exist = _blocking(asyncio_table.Table.exist)
    ttl = _blocking(asyncio_table.Table.ttl)
    incr = _blocking(asyncio_table.Table.incr)
    multi_set = _blocking(asyncio_table.Table.multi_set)
    multi_get = _blocking(asyncio_table.Table.multi_get)
    multi_get_sort_keys = _blocking(asyncio_table.Table.multi_get_sort_keys)
    multi_delete = _blocking(asyncio_table.Table.multi_delete)
    delete_range = _blocking(asyncio_table.Table.delete_range)
    sort_key_count = _blocking(asyncio_table.Table.sort_key_count)
    check_and_set = _blocking(asyncio_table.Table.check_and_set)
    check_and_mutate = _blocking(asyncio_table.Table.check_and_mutate)
    compare_exchange = _blocking(asyncio_table.Table.compare_exchange)
    batch_get = _blocking(asyncio_table.Table.batch_get)
    batch_set = _blocking(asyncio_table.Table.batch_set)
    batch_delete = _blocking(asyncio_table.Table.batch_delete)
    count = _blocking(asyncio_table.Table.count)

    @property
    def name(self) -> str:
        """The table's name."""
        return self._inner.name

    @property
    def partition_count(self) -> int:
        """The number of partitions, as far as it is known (0 = not at this moment)."""
        return self._inner.partition_count

    def partition_of(self, hash_key: BytesLike, sort_key: BytesLike = b"") -> int:
        """Return the index of the partition that holds a row."""
        return self._inner.partition_of(hash_key, sort_key)

    @functools.wraps(asyncio_table.Table.scan)
    def scan(self, *args: Any, **kwargs: Any) -> Scanner:
        """Return an iterator over rows of one hash key in sort-key order."""
        return Scanner(self._inner.scan(*args, **kwargs), self._thread, self._owner)

    def full_scan(
        self, options: ScanOptions | None = None, *, timeout: float | None = None
    ) -> Scanner:
        """Return an iterator over all rows, partition by partition; `timeout` a page."""
        scanner = self._inner.full_scan(options or ScanOptions(), timeout=timeout)
        return Scanner(scanner, self._thread, self._owner)

    def unordered_scanners(
        self,
        max_split_count: int,
        options: ScanOptions | None = None,
        *,
        timeout: float | None = None,
    ) -> list[Scanner]:
        """Return at most `max_split_count` scanners that share the partitions evenly."""
        scanners = self._thread.call(
            self._inner.unordered_scanners(
                max_split_count, options or ScanOptions(), timeout=timeout
            )
        )
        return [Scanner(scanner, self._thread, self._owner) for scanner in scanners]


class AdminClient(_Facade):
    """`pegaskv.client.admin.AdminClient` without `await`."""

    create_table = _blocking(asyncio_admin.AdminClient.create_table)
    drop_table = _blocking(asyncio_admin.AdminClient.drop_table)
    recall_table = _blocking(asyncio_admin.AdminClient.recall_table)
    rename_table = _blocking(asyncio_admin.AdminClient.rename_table)
    list_tables = _blocking(asyncio_admin.AdminClient.list_tables)
    table_info = _blocking(asyncio_admin.AdminClient.table_info)
    set_envs = _blocking(asyncio_admin.AdminClient.set_envs)
    get_envs = _blocking(asyncio_admin.AdminClient.get_envs)
    delete_envs = _blocking(asyncio_admin.AdminClient.delete_envs)
    clear_envs = _blocking(asyncio_admin.AdminClient.clear_envs)
    nodes = _blocking(asyncio_admin.AdminClient.nodes)
    cluster_info = _blocking(asyncio_admin.AdminClient.cluster_info)
    server_info = _blocking(asyncio_admin.AdminClient.server_info)
    get_meta_level = _blocking(asyncio_admin.AdminClient.get_meta_level)
    set_meta_level = _blocking(asyncio_admin.AdminClient.set_meta_level)
    get_replica_count = _blocking(asyncio_admin.AdminClient.get_replica_count)
    set_replica_count = _blocking(asyncio_admin.AdminClient.set_replica_count)
    balance = _blocking(asyncio_admin.AdminClient.balance)
    propose = _blocking(asyncio_admin.AdminClient.propose)
    diagnose = _blocking(asyncio_admin.AdminClient.diagnose)
    add_duplication = _blocking(asyncio_admin.AdminClient.add_duplication)
    query_duplication = _blocking(asyncio_admin.AdminClient.query_duplication)
    list_duplications = _blocking(asyncio_admin.AdminClient.list_duplications)
    pause_duplication = _blocking(asyncio_admin.AdminClient.pause_duplication)
    start_duplication = _blocking(asyncio_admin.AdminClient.start_duplication)
    remove_duplication = _blocking(asyncio_admin.AdminClient.remove_duplication)
    set_duplication_fail_mode = _blocking(asyncio_admin.AdminClient.set_duplication_fail_mode)
    wait_duplicated = _blocking(asyncio_admin.AdminClient.wait_duplicated)
    add_cluster = _blocking(asyncio_admin.AdminClient.add_cluster)
    remove_cluster = _blocking(asyncio_admin.AdminClient.remove_cluster)
    list_clusters = _blocking(asyncio_admin.AdminClient.list_clusters)
    open_table = _blocking(asyncio_admin.AdminClient.open_table)


class Client(_Facade):
    """A cluster. Made by `connect`; close it, or use it in a `with` block."""

    _inner: asyncio_client.Client

    def __init__(self, inner: asyncio_client.Client, thread: _LoopThread) -> None:
        super().__init__(inner, thread)
        self.admin = AdminClient(inner.admin, thread, self)
        # A client that is forgotten takes its thread with it.
        self._finalizer = weakref.finalize(self, _close, inner, thread)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._inner.closed

    @property
    def metas(self) -> list[str]:
        """The meta servers' addresses as they were given."""
        return self._inner.metas

    @property
    def timeout(self) -> float:
        """Seconds that a call may take when it names no time limit of its own."""
        return self._inner.timeout

    def table(
        self,
        name: str,
        *,
        read_from: Literal["primary", "any"] = "primary",
        timeout: float | None = None,
    ) -> Table:
        """Return the table `name`; `read_from` as in `pegaskv.client.Client.table`.

        Raises:
            TableNotFound: there is none.
            Timeout, Unavailable: no meta server answered.

        """
        inner = self._thread.call(self._inner.table(name, read_from=read_from, timeout=timeout))
        return Table(inner, self._thread, self)

    def close(self) -> None:
        """End all connections and the thread; calls under way raise `Unavailable`."""
        self._finalizer()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(inner: asyncio_client.Client, thread: _LoopThread) -> None:
    try:
        thread.call(inner.close())
    finally:
        thread.stop()


def connect(
    metas: str | Sequence[str],
    *,
    user: str | None = None,
    password: str | None = None,
    tls: Any = None,
    timeout: float = 5.0,
    options: ClientOptions | None = None,
) -> Client:
    """Open the cluster of the meta servers `metas`: `HOST:PORT`, several by commas or a list.

    Raises:
        InvalidArgument: an address or the time limit cannot be.
        Unavailable: no meta server answers.

    """
    connecting = asyncio_client.connect(
        metas, user=user, password=password, tls=tls, timeout=timeout, options=options
    )
    thread = _LoopThread()
    try:
        return Client(thread.call(_open(connecting)), thread)
    except BaseException:
        thread.stop()
        raise


async def _open(connecting: asyncio_client.Connecting) -> asyncio_client.Client:
    return await connecting
