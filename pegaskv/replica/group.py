"""What makes a replica server one of several."""

from dataclasses import dataclass
from random import Random

from pegaskv.lease.options import LeaseOptions
from pegaskv.replica.doors import ConfigurationDoor, Peers

__all__ = ["Group"]


@dataclass(slots=True)
class Group:
    """What a server needs to be one of several: whom it asks, whom it speaks to, how patiently."""

    meta: ConfigurationDoor
    peers: Peers
    lease: LeaseOptions
    random: Random
    # Made anew by each start.
    process: str = ""

    def __post_init__(self) -> None:
        self.process = self.process or f"{self.random.getrandbits(64):016x}"
