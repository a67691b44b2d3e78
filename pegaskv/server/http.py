"""Metrics and health over HTTP, for Prometheus, load balancers and people with curl.

`/metrics` asks every source when it is asked itself, so counting costs the hot path
an addition and nothing else. `/health` answers 200 when there is nothing to complain
of and 503 with the reasons otherwise. This module is imported only when HTTP is on:
aiohttp and prometheus-client take a quarter of a second and thirty megabytes.
"""

import asyncio
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from pegaskv.base.metrics import Metric, MetricSource, gauges
from pegaskv.base.version import VERSION
from pegaskv.runtime.clock import Clock

__all__ = ["HttpServer", "LoopLag"]

# Scrapes and health checks come more often than this, or begin anew.
_IDLE_TIMEOUT_S: Final = 75.0

_INDEX = """pegaskv {version}

/metrics  counters and gauges, in the format of Prometheus
/health   200 when all is well, 503 with the reasons otherwise, as JSON
"""


class LoopLag:
    """How late the event loop runs what is due; `measure` is kept running in a scope."""

    interval_ms = 500

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_ms = 0
        self._worst_ms = 0

    async def measure(self) -> None:
        """Measure once."""
        before = self._clock.monotonic_ms()
        await self._clock.sleep_ms(self.interval_ms)
        self._last_ms = max(0, self._clock.monotonic_ms() - before - self.interval_ms)
        self._worst_ms = max(self._worst_ms, self._last_ms)

    def metrics(self) -> Iterable[Metric]:
        """The last lag, and the worst since this was last asked."""
        yield Metric(
            "pegaskv_loop_lag_seconds",
            "gauge",
            "How late the event loop was when last measured.",
            (((), self._last_ms / 1_000),),
        )
        yield Metric(
            "pegaskv_loop_lag_worst_seconds",
            "gauge",
            "The largest lag of the event loop since the last scrape.",
            (((), self._worst_ms / 1_000),),
        )
        self._worst_ms = self._last_ms


class HttpServer:
    """Serves /metrics, /health and a short index.

    `health` returns why the server is not well: one sentence each, none when it is.
    One connection more than `connections_max` ends the oldest: whoever asks for metrics
    once is never kept out by those who only hold connections.
    """

    def __init__(
        self,
        sources: Sequence[MetricSource],
        *,
        health: Callable[[], Sequence[str]],
        clock: Clock,
        connections_max: int = 64,
    ) -> None:
        self._health = health
        self._connections_max = connections_max
        self._clock = clock
        self._started_ms = clock.monotonic_ms()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_Sources([*sources, self._own_metrics]))
        app = web.Application(client_max_size=4_096)
        app.router.add_get("/", self._on_index)
        app.router.add_get("/metrics", self._on_metrics)
        app.router.add_get("/health", self._on_health)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=_IDLE_TIMEOUT_S
        )
        self._listener: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; return the host and port that it really has.

        Raises:
            OSError: the address is in use, or is none of this machine.

        """
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._admit, host, port, reuse_address=True)
        address = self._listener.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    def _admit(self) -> asyncio.BaseProtocol:
        """Make the protocol of a connection; the oldest ones make room for it."""
        server = self._runner.server
        assert server is not None
        connections = server.connections
        for oldest in connections[: max(0, len(connections) - self._connections_max + 1)]:
            oldest.force_close()
        return server()

    async def stop(self) -> None:
        """Stop listening and close all connections."""
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    def _own_metrics(self) -> Iterable[Metric]:
        yield Metric(
            "pegaskv_build_info",
            "gauge",
            "What is running; always 1.",
            (((("version", VERSION), ("python", platform.python_version())), 1.0),),
        )
        yield Metric(
            "pegaskv_uptime_seconds",
            "gauge",
            "Time since the server started.",
            (((), (self._clock.monotonic_ms() - self._started_ms) / 1_000),),
        )
        server = self._runner.server
        yield from gauges(
            (
                "http_connections",
                "Open connections for metrics and health.",
                len(server.connections) if server is not None else 0,
            ),
            ("http_connections_max", "Their bound.", self._connections_max),
        )

    async def _on_index(self, request: web.Request) -> web.Response:
        return web.Response(text=_INDEX.format(version=VERSION))

    async def _on_metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _on_health(self, request: web.Request) -> web.Response:
        reasons = list(self._health())
        return web.json_response(
            {"status": "failing" if reasons else "ok", "version": VERSION, "reasons": reasons},
            status=503 if reasons else 200,
        )


class _Sources(Collector):
    """Our plain values as Prometheus's families."""

    def __init__(self, sources: Sequence[MetricSource]) -> None:
        self._sources = sources

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        for source in self._sources:
            for metric in source():
                names = [name for name, _ in metric.samples[0][0]] if metric.samples else []
                family: CounterMetricFamily | GaugeMetricFamily
                if metric.kind == "counter":
                    family = CounterMetricFamily(metric.name, metric.help, labels=names)
                else:
                    family = GaugeMetricFamily(metric.name, metric.help, labels=names)
                for labels, value in metric.samples:
                    family.add_metric([text for _, text in labels], value)
                yield family

    def describe(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Nothing beforehand: asking the sources is what collecting is for."""
        return ()
