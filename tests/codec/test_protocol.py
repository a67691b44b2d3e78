"""The protocol and its document: vectors, read by us and by a stranger, and generated parts."""

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from pegaskv.base.errors import WireError
from pegaskv.base.hashing import partition_hash, partition_index
from pegaskv.codec.frames import FrameSplitter, encode_frame
from pegaskv.codec.keys import decode_key, encode_key, hash_key_range
from pegaskv.codec.operations import OPERATIONS, Operation
from tests.codec.stranger import (
    stranger_crc32c,
    stranger_decode,
    stranger_encode,
    stranger_end,
    stranger_key,
    stranger_partition,
)
from tools import protocol_docs

ROOT = Path(__file__).resolve().parents[2]
VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "protocol_vectors.json").read_text()
)
DOCUMENT = ROOT / "docs" / "protocol.md"


def cases(group: str) -> Any:
    return pytest.mark.parametrize("case", VECTORS[group], ids=lambda case: case["name"])


def plain(value: Any) -> Any:
    """A value of the vectors with its bytes as bytes."""
    if isinstance(value, dict) and set(value) == {"hex"}:
        return bytes.fromhex(value["hex"])
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


@cases("Checksums")
def test_the_checksum_of_the_document_is_that_of_the_vectors(case: dict[str, Any]) -> None:
    assert f"{stranger_crc32c(plain(case['input'])):08x}" == case["crc32c"]


@cases("Frames")
def test_a_stranger_reads_and_writes_each_frame(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    assert stranger_decode(data) == plain(case["messages"])
    assert stranger_encode(plain(case["messages"])) == data


@cases("Frames")
def test_the_codec_reads_and_writes_each_frame(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    assert FrameSplitter().feed(data) == [plain(case["messages"])]
    assert encode_frame(plain(case["messages"])) == data


@cases("Frames")
def test_requests_have_the_number_of_fields_that_their_operation_takes(
    case: dict[str, Any],
) -> None:
    for message in case["messages"]:
        if len(message) > 2 and message[1] in set(Operation) - {0, 1}:
            is_request = message[2] == 5000 or isinstance(message[2], list)
            if is_request:
                # Commas inside brackets and parentheses separate no fields.
                assert len(message) - 3 == count_fields(OPERATIONS[message[1]].request)


def count_fields(text: str) -> int:
    depth, fields = 0, 1 if text else 0
    for character in text:
        depth += (character in "[({") - (character in "])}")
        fields += character == "," and depth == 0
    return fields


@cases("Frames that close the connection")
def test_both_refuse_each_broken_frame(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    with pytest.raises(WireError):
        FrameSplitter().feed(data)
    with pytest.raises((ValueError, msgpack.exceptions.UnpackException)):
        stranger_decode(data)


@cases("Stored keys")
def test_both_agree_on_each_stored_key(case: dict[str, Any]) -> None:
    hash_key, sort_key = plain(case["hash_key"]), plain(case["sort_key"])
    assert encode_key(hash_key, sort_key).hex() == case["hex"]
    assert stranger_key(hash_key, sort_key).hex() == case["hex"]
    assert decode_key(bytes.fromhex(case["hex"])) == (hash_key, sort_key)


@cases("Ranges of a hash key")
def test_both_agree_on_each_range(case: dict[str, Any]) -> None:
    bounds = (plain(case["start"]), plain(case["stop"]))
    assert hash_key_range(plain(case["hash_key"])) == bounds
    start = stranger_key(plain(case["hash_key"]), b"")
    assert (start, stranger_end(start)) == bounds


@cases("Hashes")
def test_both_agree_on_the_partition_of_each_row(case: dict[str, Any]) -> None:
    hash_key, sort_key = plain(case["hash_key"]), plain(case["sort_key"])
    assert f"{partition_hash(hash_key, sort_key):016x}" == case["xxh3_64"]
    for count in (8, 1024):
        expected = case[f"partition_of_{count}"]
        assert partition_index(hash_key, sort_key, count) == expected
        assert stranger_partition(hash_key, sort_key, count) == expected


# The document.


@pytest.mark.parametrize("name", protocol_docs.DOCUMENTS)
def test_the_generated_parts_of_a_document_are_what_the_code_says(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert "<!-- generated: " in text
    assert protocol_docs.generate(text) == text, "say python -m tools.protocol_docs"


def test_a_changed_table_in_a_document_is_found() -> None:
    text = DOCUMENT.read_text()
    assert "ERR_BUSY" in text
    changed = text.replace("`ERR_BUSY` |", "`ERR_LAZY` |")
    assert changed != text
    assert protocol_docs.generate(changed) == text


@pytest.mark.parametrize("operation", list(Operation))
def test_every_operation_has_a_section_of_its_own(operation: Operation) -> None:
    assert f"\n### {operation.name} ({operation.value})\n" in DOCUMENT.read_text()


def test_the_document_describes_no_operation_that_is_not_there() -> None:
    sections = [
        line
        for line in DOCUMENT.read_text().splitlines()
        if line.startswith("### ") and "(" in line
    ]
    known = {f"### {operation.name} ({operation.value})" for operation in Operation}
    assert set(sections) == known


@pytest.mark.parametrize("group", sorted(VECTORS))
def test_every_vector_is_printed_in_the_document(group: str) -> None:
    text = DOCUMENT.read_text().replace("\n", "")
    for case in VECTORS[group]:
        assert case["name"] in text
        assert case.get("hex", "") in text


def test_all_limits_of_the_code_stand_in_the_document() -> None:
    text = DOCUMENT.read_text()
    for words in ("4 096 bytes", "16 MiB", "1 024 messages", "20 016 elements", "1 048 576 values"):
        assert words in text
