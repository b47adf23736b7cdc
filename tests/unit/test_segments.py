"""Segment objects: golden files, round trips, and what a damaged or lying one is told."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from tidelog.broker.placement import desired_leader, weight
from tidelog.errors import CorruptSegment, InvalidRequest
from tidelog.proto.v1.segment_pb2 import SegmentFooter
from tidelog.records.batch import scan, stamp
from tidelog.records.codec import encode_many
from tidelog.segments.format import ChunkSource, Origin, SegmentKind, decode, decode_footer, encode_intake, encode_merged, footer_start
from tidelog.segments.keys import IntakeKey, MergedKey, parse_key

GOLDEN = Path(__file__).parent.parent / "golden"
MADE = runpy.run_path(str(GOLDEN / "make_golden.py"))
INTAKE = (GOLDEN / "segment-v1-intake.seg").read_bytes()
MERGED = (GOLDEN / "segment-v1-merged.seg").read_bytes()
ORIGIN = Origin("6f1c24a2c2a84e0b9c1d0a5e8f3b7d11", "broker-0", 7, 42, 1_750_000_000_000)


def source(topic: bytes, partition: int, data: bytes) -> ChunkSource:
    return ChunkSource(topic, partition, [data], scan(data))


def relabelled(data: bytes, change: Callable[[SegmentFooter], Any]) -> bytes:
    """Return the segment with a footer that lies: changed, and with its length and CRC made right again."""
    length, _ = unpack_from("<II", data, len(data) - 12)
    footer = SegmentFooter.FromString(data[-12 - length : -12])
    change(footer)
    body = footer.SerializeToString(deterministic=True)
    return data[: -12 - length] + body + pack("<II", len(body), crc32c(body)) + b"TIDE"


def test_golden_segments_are_read_and_made_again() -> None:
    made = MADE["files"]()
    assert made["segment-v1-merged.seg"] == MERGED
    footer = decode(INTAKE)
    assert (footer.kind, footer.origin) == (SegmentKind.INTAKE, ORIGIN)
    assert [(c.partition, c.batch_count, c.record_count) for c in footer.chunks] == [(0, 1, 3), (300, 2, 203), (1, 1, 1)]
    sources = [source(c.topic_id, c.partition, INTAKE[c.position : c.end]) for c in footer.chunks]
    parts, written = encode_intake(reversed(sources), ORIGIN)
    assert (b"".join(parts), written) == (INTAKE, footer)
    merged = decode(MERGED)
    assert merged.merged is not None
    assert [entry.offset for entry in merged.merged.index] == [1000, 1700]
    [chunk] = merged.chunks
    parts, written = encode_merged(
        source(chunk.topic_id, 0, MERGED[chunk.position : chunk.end]), ORIGIN, base_offset=1000, next_offset=2300
    )
    assert (b"".join(parts), written) == (MERGED, merged)


def test_the_footer_is_read_from_the_objects_tail_alone() -> None:
    start = footer_start(INTAKE[-12:], size=len(INTAKE))
    assert decode_footer(INTAKE[start:], size=len(INTAKE)) == decode(INTAKE)
    assert decode_footer(INTAKE[start - 5 :], size=len(INTAKE)) == decode(INTAKE)


def test_a_tail_that_cannot_hold_the_footer_it_announces_is_told() -> None:
    start = footer_start(INTAKE, size=len(INTAKE))
    with pytest.raises(CorruptSegment, match="were to hold it"):
        decode_footer(INTAKE[start + 1 :], size=len(INTAKE))


def test_every_flipped_byte_is_found() -> None:
    small, _ = encode_intake([source(b"t" * 16, p, encode_many([b"v" * 20])) for p in range(3)], ORIGIN)
    for whole, step in ((b"".join(small), 1), (INTAKE, 97), (MERGED, 1009)):
        for at in range(0, len(whole), step):
            damaged = bytearray(whole)
            damaged[at] ^= 0xFF
            with pytest.raises(CorruptSegment) as caught:
                decode(damaged)
            assert 0 <= caught.value.position <= len(whole)


def test_every_truncation_is_found() -> None:
    small = b"".join(encode_intake([source(b"t" * 16, 0, encode_many([b"v" * 20]))], ORIGIN)[0])
    for length in range(len(small)):
        with pytest.raises(CorruptSegment):
            decode(small[:length])


def merged_kind_of_intake(footer: SegmentFooter) -> None:
    footer.kind = 2  # type: ignore[assignment]
    footer.merged.SetInParent()


def first_chunk(**fields: object) -> Callable[[SegmentFooter], Any]:
    def change(footer: SegmentFooter) -> None:
        for name, value in fields.items():
            setattr(footer.chunks[0], name, value)

    return change


def merged_range(**fields: object) -> Callable[[SegmentFooter], Any]:
    def change(footer: SegmentFooter) -> None:
        for name, value in fields.items():
            setattr(footer.merged, name, value)

    return change


def index_entry(number: int, **fields: object) -> Callable[[SegmentFooter], Any]:
    def change(footer: SegmentFooter) -> None:
        for name, value in fields.items():
            setattr(footer.merged.index[number], name, value)

    return change


@pytest.mark.parametrize(
    ("whole", "change", "sentence"),
    [
        (INTAKE, first_chunk(topic_id=b"short"), "by 5 bytes, but ids have 16"),
        (INTAKE, first_chunk(partition=301, topic_id=MADE["TOPIC_A"]), "does not come after the one before"),
        (INTAKE, first_chunk(position=9), "must begin at 8"),
        (INTAKE, first_chunk(length=2**63), "must begin at 8"),
        (INTAKE, first_chunk(length=0), "must begin at 8"),
        (INTAKE, first_chunk(record_count=4), r"\(1, 3, 1750000000005\), but the footer says \(1, 4,"),
        (INTAKE, first_chunk(batch_count=9), "but the footer says"),
        (INTAKE, first_chunk(max_timestamp_ms=1), "but the footer says"),
        (INTAKE, first_chunk(crc32c=1), "with 0x00000001"),
        (INTAKE, lambda f: f.ClearField("chunks"), "lists 0 chunks"),
        (INTAKE, lambda f: f.chunks.pop(), "the chunks end at"),
        (INTAKE, lambda f: f.ClearField("cluster_id"), "names no cluster"),
        (INTAKE, lambda f: setattr(f, "kind", 3), "kind 3, which this release does not know"),
        (INTAKE, lambda f: f.merged.SetInParent(), "merged range"),
        (INTAKE, merged_kind_of_intake, "lists 3 chunks"),
        (MERGED, lambda f: f.ClearField("merged"), "merged range"),
        (MERGED, merged_range(base_offset=1001), "beyond 1001 to 2300"),
        (MERGED, merged_range(base_offset=-5), "cannot hold"),
        (MERGED, merged_range(next_offset=2299), "to 2299"),
        (MERGED, merged_range(next_offset=1500), "cannot hold 1200 records"),
        (MERGED, merged_range(first_leader_epoch=5), "leader epoch 4, but it must lie in 5"),
        (MERGED, merged_range(last_leader_epoch=5), "leader epoch 6"),
        (MERGED, lambda f: f.merged.ClearField("index"), "sparse index must ascend"),
        (MERGED, lambda f: f.merged.index.pop(), "sparse index"),
        (MERGED, index_entry(1, position=2**40), "sparse index must ascend"),
        (MERGED, index_entry(1, position=70000), "the sparse index says"),
        (MERGED, index_entry(1, crc32c=5), "the sparse index says"),
        (MERGED, index_entry(0, max_timestamp_ms=5), "the sparse index says"),
        (MERGED, index_entry(0, max_timestamp_ms=2**60), "largest timestamps in the sparse index must ascend"),
        (MERGED, index_entry(1, max_timestamp_ms=2**60), "largest timestamps in the sparse index must ascend"),
        (MERGED, index_entry(0, offset=999), "runs from offset 999 to 1700, beyond 1000 to 2300"),
        (MERGED, index_entry(1, offset=2300), "runs from offset 1000 to 2300, beyond 1000 to 2300"),
        (MERGED, index_entry(1, offset=1600), "the sparse index says"),
    ],
)
def test_a_lying_footer_is_refused(whole: bytes, change: Callable[[SegmentFooter], Any], sentence: str) -> None:
    with pytest.raises(CorruptSegment, match=sentence):
        decode(relabelled(whole, change))


@pytest.mark.parametrize(
    ("at", "replacement", "sentence"),
    [
        (0, b"TIDY", "begins with b'TIDY'"),
        (4, b"\x02\x00", "version is 2, but this release reads version 1"),
        (6, b"\x02\x00", "header says kind 2, but its footer 1"),
        (-4, b"EDIT", "ends with b'EDIT'"),
        (-12, b"\xff\xff\xff\xff", "length is 4294967295, but must lie between 1"),
        (-12, b"\x00\x00\x00\x00", "length is 0"),
    ],
)
def test_a_lying_header_or_trailer_is_refused(at: int, replacement: bytes, sentence: str) -> None:
    lying = bytearray(INTAKE)
    lying[at % len(lying) : at % len(lying) + len(replacement)] = replacement
    with pytest.raises(CorruptSegment, match=sentence):
        decode(lying)


def test_a_footer_that_is_no_message_and_fields_of_the_future() -> None:
    start = footer_start(INTAKE, size=len(INTAKE))
    junk = b"\xff" * 20
    with pytest.raises(CorruptSegment, match="no SegmentFooter message"):
        decode(INTAKE[:start] + junk + pack("<II", len(junk), crc32c(junk)) + b"TIDE")
    body = INTAKE[start:-12] + b"\xfa\x3f\x03new"
    assert decode(INTAKE[:start] + body + pack("<II", len(body), crc32c(body)) + b"TIDE") == decode(INTAKE)


def test_a_stamped_batch_in_an_intake_segment_is_refused() -> None:
    batch = bytearray(encode_many([b"v"]))
    stamp(batch, scan(batch), base_offset=5, leader_epoch=1)
    whole = b"".join(encode_intake([source(b"t" * 16, 0, bytes(batch))], ORIGIN)[0])
    with pytest.raises(CorruptSegment, match="is stamped with offset 5"):
        decode(whole)


@given(
    chunks=st.dictionaries(
        st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1)),
        st.lists(st.lists(st.binary(max_size=50), min_size=1, max_size=5), min_size=1, max_size=4),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None)
def test_what_is_encoded_is_decoded(chunks: dict[tuple[bytes, int], list[list[bytes]]]) -> None:
    sources = [source(topic, partition, b"".join(map(encode_many, batches))) for (topic, partition), batches in chunks.items()]
    parts, footer = encode_intake(sources, ORIGIN)
    assert decode(b"".join(parts)) == footer
    assert [(c.topic_id, c.partition) for c in footer.chunks] == sorted(chunks)


def test_keys_are_made_and_read() -> None:
    intake = IntakeKey("broker-0", 7, 42, "a" * 32)
    merged = MergedKey("b" * 32, 300, 1000, "broker-0", 7, 43)
    assert str(intake) == f"intake/broker-0/0000000007/{42:020}-{'a' * 32}.seg"
    assert str(merged) == f"merged/{'b' * 32}/300/{1000:020}-broker-0-0000000007-{43:020}.seg"
    assert [parse_key(str(key)) for key in (intake, merged)] == [intake, merged]
    assert parse_key("cluster/00000000000000000001.json") is None
    with pytest.raises(InvalidRequest, match="'Broker_0' cannot be part of a key"):
        str(IntakeKey("Broker_0", 1, 1, "a" * 32))


def test_placement_is_that_of_the_golden_vectors() -> None:
    golden = json.loads((GOLDEN / "placement.json").read_bytes())
    for row in golden["partitions"]:
        for broker, expected in row["weights"].items():
            assert weight(row["topic_id"], row["partition"], broker) == int(expected)
        assert desired_leader(row["topic_id"], row["partition"], golden["brokers"]) == row["leader"]
    assert desired_leader("0" * 32, 0, []) is None


@given(st.sets(st.from_regex(r"[a-z0-9-]{1,10}", fullmatch=True), min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_a_broker_that_goes_moves_only_its_own_partitions(brokers: set[str]) -> None:
    gone, *rest = sorted(brokers)
    for partition in range(50):
        before = desired_leader("a" * 32, partition, sorted(brokers))
        if before != gone:
            assert desired_leader("a" * 32, partition, rest) == before
