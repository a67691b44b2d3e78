"""pure: which rows of a page go to which partition of the target."""

from xxhash import xxh3_64_intdigest

from pegaskv.codec.keys import decode_key

__all__ = ["split_page"]


def split_page(rows: list[bytes], targets: list[int], remote_count: int) -> dict[int, list[bytes]]:
    """Return the flat rows [stored key, row, ...] of each target partition, empty ones too.

    A partition without rows is told of the range all the same: what it has there may have
    to go.
    """
    if len(targets) == 1:
        return {targets[0]: rows}
    split: dict[int, list[bytes]] = {target: [] for target in targets}
    for place in range(0, len(rows), 2):
        hash_key, sort_key = decode_key(rows[place])
        target = xxh3_64_intdigest(hash_key or sort_key) & (remote_count - 1)
        split[target] += rows[place : place + 2]
    return split
