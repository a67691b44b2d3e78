"""A distributed, persistent key-value store with duplication between clusters.

    async with pegaskv.connect("127.0.0.1:34601") as client:
        table = await client.table("users")
        await table.set("user:1", "name", "Ada")

Names are imported when they are first used, so that a pure module can be loaded alone
and `import pegaskv` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pegaskv.blocking as blocking
    import pegaskv.errors as errors
    from pegaskv.base.types import DuplicationStatus as DuplicationStatus
    from pegaskv.base.types import FailMode as FailMode
    from pegaskv.base.version import VERSION as __version__
    from pegaskv.client.client import Client as Client
    from pegaskv.client.client import connect as connect
    from pegaskv.client.duplications import Duplication as Duplication
    from pegaskv.client.options import Check as Check
    from pegaskv.client.options import CheckResult as CheckResult
    from pegaskv.client.options import ClientOptions as ClientOptions
    from pegaskv.client.options import Delete as Delete
    from pegaskv.client.options import Filter as Filter
    from pegaskv.client.options import MultiGetResult as MultiGetResult
    from pegaskv.client.options import Put as Put
    from pegaskv.client.options import RangeOptions as RangeOptions
    from pegaskv.client.options import Row as Row
    from pegaskv.client.options import ScanOptions as ScanOptions
    from pegaskv.client.options import SortKeys as SortKeys
    from pegaskv.client.table import Table as Table

__all__ = [
    "Check",
    "CheckResult",
    "Client",
    "ClientOptions",
    "Delete",
    "Duplication",
    "DuplicationStatus",
    "FailMode",
    "Filter",
    "MultiGetResult",
    "Put",
    "RangeOptions",
    "Row",
    "ScanOptions",
    "SortKeys",
    "Table",
    "__version__",
    "blocking",
    "connect",
    "errors",
]

_CLIENT = "pegaskv.client.client"
_OPTIONS = "pegaskv.client.options"
_TYPES = "pegaskv.base.types"

# Name -> module and the name there; None is the module itself.
_HOMES: dict[str, tuple[str, str | None]] = {
    "Check": (_OPTIONS, "Check"),
    "Client": (_CLIENT, "Client"),
    "CheckResult": (_OPTIONS, "CheckResult"),
    "ClientOptions": (_OPTIONS, "ClientOptions"),
    "MultiGetResult": (_OPTIONS, "MultiGetResult"),
    "Row": (_OPTIONS, "Row"),
    "SortKeys": (_OPTIONS, "SortKeys"),
    "Delete": (_OPTIONS, "Delete"),
    "Duplication": ("pegaskv.client.duplications", "Duplication"),
    "DuplicationStatus": (_TYPES, "DuplicationStatus"),
    "FailMode": (_TYPES, "FailMode"),
    "Filter": (_OPTIONS, "Filter"),
    "Put": (_OPTIONS, "Put"),
    "RangeOptions": (_OPTIONS, "RangeOptions"),
    "ScanOptions": (_OPTIONS, "ScanOptions"),
    "Table": ("pegaskv.client.table", "Table"),
    "__version__": ("pegaskv.base.version", "VERSION"),
    "blocking": ("pegaskv.blocking", None),
    "connect": (_CLIENT, "connect"),
    "errors": ("pegaskv.errors", None),
}


def __getattr__(name: str) -> Any:
    try:
        module_name, attribute = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    module = import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
