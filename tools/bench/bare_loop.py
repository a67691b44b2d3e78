"""The least that a server in Python can do: what ours is held against.

It takes the frames of our protocol, and does nothing but decode, store and answer: no
checksum, no check of a field, no log, no decree, no deadline, no metrics, no hello. With
`--store leveldb` the writes of one turn of the loop are one batch of one LevelDB, which
syncs nothing; with `--store dict` there is no storage at all.
"""

import argparse
import asyncio
import struct
import tempfile
from collections.abc import Callable
from typing import Any, Final, cast

import msgpack
import plyvel
import uvloop

from pegaskv.codec.operations import Operation

_HEADER: Final = struct.Struct(">II")
_GET: Final = int(Operation.GET)

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def _frame(replies: list[Any]) -> bytes:
    body: bytes = _pack(replies)
    return _HEADER.pack(len(body), 0) + body


class _LevelDBStore:
    """One LevelDB; a write is there once `commit` has run."""

    def __init__(self, directory: str) -> None:
        self._db = plyvel.DB(
            directory,
            create_if_missing=True,
            write_buffer_size=16 << 20,
            lru_cache_size=128 << 20,
            bloom_filter_bits=10,
        )
        self.get = self._db.get
        self._open: list[tuple[bytes, bytes]] = []

    def put(self, key: bytes, value: bytes) -> None:
        self._open.append((key, value))

    def commit(self) -> None:
        if self._open:
            batch = self._db.write_batch()
            put = batch.put
            for key, value in self._open:
                put(key, value)
            batch.write()
            self._open.clear()


class _DictStore:
    """A dictionary."""

    def __init__(self) -> None:
        rows: dict[bytes, bytes] = {}
        self.get = rows.get
        self.put = rows.__setitem__

    def commit(self) -> None:
        pass


class _Loop:
    """What all connections share: the store, and who is answered at the end of the turn."""

    def __init__(self, store: _LevelDBStore | _DictStore, call_soon: Callable[..., Any]) -> None:
        self.store = store
        self._call_soon = call_soon
        self._waiting: list[_Connection] = []

    def answer_later(self, connection: "_Connection") -> None:
        if not self._waiting:
            self._call_soon(self._turn)
        self._waiting.append(connection)

    def _turn(self) -> None:
        self.store.commit()
        for connection in self._waiting:
            connection.flush()
        self._waiting.clear()


class _Connection(asyncio.Protocol):
    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._held = b""
        self._out: list[list[Any]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.Transport, transport).write

    def data_received(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
        position, end = 0, len(data)
        store, wrote = self._loop.store, False
        while end - position >= 8:
            body_end = position + 8 + _HEADER.unpack_from(data, position)[0]
            if body_end > end:
                break
            replies: list[Any] = []
            for message in msgpack.unpackb(data[position + 8 : body_end]):
                key = message[5] + message[6]
                if message[1] == _GET:
                    replies.append((message[0], 0, store.get(key)))
                else:
                    store.put(key, message[7])
                    replies.append((message[0], 0, 1))
                    wrote = True
            self._out.append(replies)
            position = body_end
        self._held = data[position:]
        if wrote:
            self._loop.answer_later(self)
        else:
            self.flush()

    def flush(self) -> None:
        out = self._out
        if out:
            self._write(_frame(out[0]) if len(out) == 1 else b"".join(map(_frame, out)))
            out.clear()


async def _serve(port: int, store: _LevelDBStore | _DictStore) -> None:
    loop = asyncio.get_running_loop()
    shared = _Loop(store, loop.call_soon)
    server = await loop.create_server(lambda: _Connection(shared), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.bare_loop", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", choices=["leveldb", "dict"], required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-bare-") as directory:
        store = _LevelDBStore(directory) if options.store == "leveldb" else _DictStore()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(options.port, store))


if __name__ == "__main__":
    main()
