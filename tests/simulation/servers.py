"""The production standalone server in a life of a simulated node."""

from pathlib import Path
from random import Random
from typing import Final

from pegaskv.server.config import Config
from pegaskv.server.standalone import Standalone
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.memory import MemoryFactory
from tests.simulation.world import Life

__all__ = ["PORT", "serve", "tiny_log"]

PORT: Final = 34_601
DATA: Final = Path("/data")


def tiny_log(random: Random) -> LogOptions:
    """Tiny limits, so that segments switch and engines flush all the time."""
    return LogOptions(
        log_segment_bytes=random.choice([64, 256, 1_024]) * 1_024,
        flush_partition_bytes=random.choice([2, 16, 256]) * 1_024,
        flush_total_bytes=random.choice([16, 128, 1_024]) * 1_024,
        flush_age_ms=random.choice([200, 5_000, 300_000]),
    )


async def serve(life: Life, config: Config) -> None:
    """Serve until this life ends; engines are as old as their last flush after a crash."""
    server = Standalone(
        config.with_server(listen=f"{life.node.address}:{PORT}", http="none"),
        DATA,
        clock=life.clock,
        disk=life.disk,
        network=life.network,
        engine_factory=MemoryFactory(life.disk, life.random("engine")),
        make_worker=life.worker,
        random=life.random("server"),
        process_id=life.number,
    )
    await server.start()
    await life.world.loop.create_future()
