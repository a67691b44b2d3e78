"""From a row's key to its partition.

The hash is xxh3_64 with seed 0 over the hash key, or over the sort key when
the hash key is empty. Partition counts are powers of two, and the partition is
the hash's low bits: doubling a count splits each partition in two.
"""

from xxhash import xxh3_64_intdigest

__all__ = ["is_power_of_two", "partition_hash", "partition_index"]


def partition_hash(hash_key: bytes, sort_key: bytes) -> int:
    """Return the 64-bit hash that places a row."""
    return xxh3_64_intdigest(hash_key or sort_key)


def partition_index(hash_key: bytes, sort_key: bytes, partition_count: int) -> int:
    """Return the index of the partition that holds a row, among `partition_count`."""
    return xxh3_64_intdigest(hash_key or sort_key) & (partition_count - 1)


def is_power_of_two(count: int) -> bool:
    """Whether `count` may be a partition count."""
    return count > 0 and count & (count - 1) == 0
