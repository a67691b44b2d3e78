import asyncio
import socket
from typing import Any

import pytest

from pegaskv.net.asyncio_network import AsyncioNetwork
from tests.loops import CheckedLoop
from tests.net.network_contract import CHECKS, Recorder, Site
from tests.simulation.world import World

SEEDS = range(12)
# Servers run on uvloop; a program that uses the client may run on either.
LOOPS = [asyncio.new_event_loop, CheckedLoop]


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("factory", LOOPS)
def test_real_sockets_keep_the_contract(factory: Any, name: str) -> None:
    network = AsyncioNetwork()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(CHECKS[name](Site(network, network, "127.0.0.1")))


@pytest.mark.parametrize("name", CHECKS)
def test_the_simulated_network_keeps_the_contract_in_every_world(name: str) -> None:
    for seed in SEEDS:
        with World(seed) as world:
            server, client = world.node("server"), world.node("client")
            site = Site(server.spawn().network, client.spawn().network, server.address)
            world.run(CHECKS[name](site))
            assert not world.network.connections, "a connection is left"


@pytest.mark.parametrize("name", CHECKS)
def test_a_simulated_node_reaches_itself_by_loopback(name: str) -> None:
    with World(1) as world:
        network = world.node("server").spawn().network
        world.run(CHECKS[name](Site(network, network, "127.0.0.1")))


@pytest.mark.parametrize("factory", LOOPS)
def test_real_connections_never_wait_to_fill_a_packet(factory: Any) -> None:
    async def main() -> None:
        network = AsyncioNetwork()
        accepted: list[Recorder] = []

        def accept() -> Recorder:
            accepted.append(Recorder())
            return accepted[0]

        listener = await network.listen(accept, "127.0.0.1", 0)
        transport, client = await network.connect(Recorder, *listener.address)
        assert isinstance(client, Recorder)
        transport.write(b"x")
        async with asyncio.timeout(20):
            while not accepted:
                await asyncio.sleep(0)
        await accepted[0].until(lambda: accepted[0].data == b"x")
        for side in (client, accepted[0]):
            assert side.transport is not None
            opened = side.transport.get_extra_info("socket")
            assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        transport.close()
        await client.has("lost")
        await accepted[0].has("lost")
        await listener.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def test_an_unknown_host_is_an_oserror() -> None:
    with pytest.raises(OSError, match=r"not known|Name|resolution|failure"):
        await AsyncioNetwork().connect(asyncio.Protocol, "no-such-host.invalid", 1)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_ipv6_addresses_work_where_the_machine_has_them() -> None:
    network = AsyncioNetwork()
    if not has_ipv6():
        with pytest.raises(OSError, match=r"assign|support"):
            await network.listen(Recorder, "::1", 0)
        return
    listener = await network.listen(Recorder, "::1", 0)
    transport, client = await network.connect(Recorder, *listener.address)
    assert isinstance(client, Recorder)
    transport.abort()
    await client.has("lost")
    await listener.close()
