"""Metrics and health over HTTP, asked as Prometheus and a load balancer would."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pegaskv.base.metrics import Metric
from pegaskv.base.version import VERSION
from pegaskv.runtime.clock import SystemClock
from pegaskv.server.http import HttpServer, LoopLag

REASONS: list[str] = []
HOSTILE = 'tab"le\n\\x'


def source() -> Iterable[Metric]:
    yield Metric("pegaskv_things_total", "counter", "Things.", (((), 5.0),))
    yield Metric(
        "pegaskv_rows",
        "gauge",
        "Rows.",
        (((("table", "users"),), 7.0), ((("table", HOSTILE),), 9.0)),
    )
    yield Metric("pegaskv_none_total", "counter", "Nothing was counted.", ())


@pytest.fixture
async def url() -> AsyncIterator[str]:
    REASONS.clear()
    server = HttpServer([source], health=lambda: REASONS, clock=SystemClock())
    host, port = await server.start("127.0.0.1", 0)
    assert port
    yield f"http://{host}:{port}"
    await server.stop()


async def fetch(url: str) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, response.content_type, await response.text()


async def test_metrics_are_what_prometheus_reads(url: str) -> None:
    status, kind, text = await fetch(f"{url}/metrics")
    assert (status, kind) == (200, "text/plain")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["pegaskv_things"].type == "counter"
    assert families["pegaskv_things"].samples[0].value == 5
    rows = {sample.labels["table"]: sample.value for sample in families["pegaskv_rows"].samples}
    assert rows == {"users": 7, HOSTILE: 9}
    assert families["pegaskv_build_info"].samples[0].labels["version"] == VERSION
    for name in (
        "pegaskv_uptime_seconds",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_cpu_seconds",
    ):
        assert families[name].samples[0].value >= 0, name


async def test_health_is_200_when_all_is_well_and_503_with_the_reasons_else(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/health") as response:
            assert response.status == 200
            assert (await response.json())["status"] == "ok"
        REASONS.append("partition 2.1 is closed: damage")
        async with session.get(f"{url}/health") as response:
            assert response.status == 503
            body = await response.json()
            assert body["status"] == "failing"
            assert body["reasons"] == REASONS


async def test_the_index_names_the_pages_and_others_are_404(url: str) -> None:
    status, _, text = await fetch(url)
    assert status == 200
    assert "/metrics" in text
    assert (await fetch(f"{url}/other"))[0] == 404


async def test_who_holds_connections_keeps_nobody_out() -> None:
    server = HttpServer([], health=list, clock=SystemClock(), connections_max=4)
    host, port = await server.start("127.0.0.1", 0)
    held = [await asyncio.open_connection(host, port) for _ in range(20)]
    # Half a request is no better than none.
    held[-1][1].write(b"GET /health HT")
    for _ in range(3):
        assert (await fetch(f"http://{host}:{port}/health"))[0] == 200
    for reader, _ in held[:16]:
        assert await reader.read() == b""
    for _, writer in held:
        writer.close()
    await server.stop()


async def test_a_taken_address_is_an_os_error(url: str) -> None:
    server = HttpServer([], health=list, clock=SystemClock())
    with pytest.raises(OSError, match="in use"):
        await server.start("127.0.0.1", int(url.rpartition(":")[2]))
    await server.stop()


class SteppingClock(SystemClock):
    """Each sleep takes 40 ms longer than asked."""

    def __init__(self) -> None:
        self.now_ms = 0

    def monotonic_ms(self) -> int:
        return self.now_ms

    async def sleep_ms(self, milliseconds: int) -> None:
        self.now_ms += milliseconds + 40


async def test_the_lag_of_the_loop_is_what_a_sleep_took_too_long() -> None:
    lag = LoopLag(SteppingClock())
    await lag.measure()
    values = {metric.name: metric.samples[0][1] for metric in lag.metrics()}
    assert values == {
        "pegaskv_loop_lag_seconds": 0.04,
        "pegaskv_loop_lag_worst_seconds": 0.04,
    }
