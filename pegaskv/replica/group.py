"""What makes a replica server one of several."""

from dataclasses import dataclass
from random import Random

from pegaskv.lease.options import LeaseOptions
from pegaskv.replica.doors import ConfigurationDoor, Peers

__all__ = ["Group"]


@dataclass(frozen=True, slots=True)
class Group:
    """What a server needs to be one of several: whom it asks, whom it speaks to, how patiently.

    `process` is made anew by each start.
    """

    meta: ConfigurationDoor
    peers: Peers
    lease: LeaseOptions
    random: Random
    process: str
