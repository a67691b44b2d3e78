"""The asyncio client: `connect`, and what its methods take and return."""

from pegaskv.base.types import DuplicationStatus, FailMode, TableInfo, TableStatus
from pegaskv.client.admin import AdminClient, ChangedTable, NodeInfo, PartitionInfo, TableDetails
from pegaskv.client.admin_cluster import DeadPartition, LevelChange, MetaLevel, as_gpid
from pegaskv.client.client import Client, connect
from pegaskv.client.duplications import Duplication, DuplicationPartition, RemoteCluster
from pegaskv.client.health import Health, health_of, sum_health
from pegaskv.client.options import (
    Check,
    CheckResult,
    ClientOptions,
    Delete,
    Filter,
    MultiGetResult,
    Put,
    RangeOptions,
    Row,
    ScanOptions,
    SortKeys,
)
from pegaskv.client.scanner import Scanner
from pegaskv.client.table import Table

__all__ = [
    "AdminClient",
    "ChangedTable",
    "Check",
    "CheckResult",
    "Client",
    "ClientOptions",
    "DeadPartition",
    "Delete",
    "Duplication",
    "DuplicationPartition",
    "DuplicationStatus",
    "FailMode",
    "Filter",
    "Health",
    "LevelChange",
    "MetaLevel",
    "MultiGetResult",
    "NodeInfo",
    "PartitionInfo",
    "Put",
    "RangeOptions",
    "RemoteCluster",
    "Row",
    "ScanOptions",
    "Scanner",
    "SortKeys",
    "Table",
    "TableDetails",
    "TableInfo",
    "TableStatus",
    "as_gpid",
    "connect",
    "health_of",
    "sum_health",
]
