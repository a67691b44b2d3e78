"""`import pegaskv` costs nothing, and its names are where they are said to be."""

import subprocess
import sys

import pegaskv
from pegaskv.base.version import VERSION

HEAVY = ("aiohttp", "asyncio", "msgpack", "plyvel", "prometheus_client", "prompt_toolkit", "rich")


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return set(done.stdout.decode().split())


def test_the_package_imports_nothing_heavy() -> None:
    assert not modules_after("import pegaskv") & set(HEAVY)


def test_the_client_imports_neither_http_nor_terminal_nor_storage() -> None:
    loaded = modules_after("import pegaskv; pegaskv.connect; pegaskv.Table")
    assert not loaded & {"aiohttp", "plyvel", "prometheus_client", "prompt_toolkit", "rich"}
    assert "pegaskv.client.client" in loaded


def test_a_server_without_http_does_not_import_it() -> None:
    loaded = modules_after("import pegaskv.server.main")
    assert not loaded & {"aiohttp", "prometheus_client"}


def test_every_public_name_can_be_used() -> None:
    for name in pegaskv.__all__:
        assert getattr(pegaskv, name) is not None, name
    assert set(pegaskv.__all__) <= set(dir(pegaskv))
    assert pegaskv.__version__ == VERSION


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(pegaskv, "no_such_name")
