"""A client as a stranger would write it, from `docs/protocol.md` alone.

It shares nothing with `pegaskv`, so it fails when the document and the code part.
"""

import socket
import struct
from typing import Any

import msgpack
import xxhash

__all__ = [
    "Stranger",
    "stranger_crc32c",
    "stranger_decode",
    "stranger_encode",
    "stranger_end",
    "stranger_key",
    "stranger_partition",
]


def stranger_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def stranger_encode(messages: list[Any]) -> bytes:
    body = msgpack.packb(messages, use_bin_type=True)
    return struct.pack(">I", len(body)) + struct.pack(">I", stranger_crc32c(body)) + body


def stranger_decode(data: bytes) -> list[Any]:
    length, crc = struct.unpack(">II", data[:8])
    if length > 16 * 1024 * 1024 or len(data) != 8 + length or stranger_crc32c(data[8:]) != crc:
        raise ValueError("not a frame")
    messages = msgpack.unpackb(data[8:], raw=False, max_ext_len=0)
    if not isinstance(messages, list) or not 1 <= len(messages) <= 1024:
        raise ValueError("not messages")
    return messages


def stranger_key(hash_key: bytes, sort_key: bytes) -> bytes:
    return struct.pack(">H", len(hash_key)) + hash_key + sort_key


def stranger_end(prefix: bytes) -> bytes:
    number = int.from_bytes(prefix, "big") + 1
    return number.to_bytes(len(prefix), "big").rstrip(b"\x00")


def stranger_partition(hash_key: bytes, sort_key: bytes, count: int) -> int:
    return int(xxhash.xxh3_64(hash_key or sort_key, seed=0).hexdigest(), 16) % count


class Stranger:
    """One connection; calls one after another."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.last_id = 0

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> list[Any]:
        """The messages of the next frame; EOFError when the server has closed."""
        header = self._exactly(8)
        return stranger_decode(header + self._exactly(struct.unpack(">I", header[:4])[0]))

    def call(self, operation: int, *fields: Any) -> list[Any]:
        """The reply behind its id: the status, then its fields."""
        self.last_id += 1
        self.send(stranger_encode([[self.last_id, operation, 5000, *fields]]))
        (reply,) = self.receive()
        assert reply[0] == self.last_id
        return list(reply[1:])

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError(data)
            data += part
        return data
