"""Segment objects: golden files, round trips, and what a damaged or lying one is told."""

import json
import runpy
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
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
from tidelog.segments import format as segment_format
from tidelog.segments.format import (
    ChunkSource,
    MergedEncoder,
    Origin,
    SegmentKind,
    decode,
    decode_footer,
    encode_intake,
    encode_merged,
    footer_start,
)
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


def test_every_golden_segment_ever_released_is_read() -> None:
    files = sorted(GOLDEN.glob("segment-v*.seg"))
    assert {file.name for file in files} >= {"segment-v1-intake.seg", "segment-v1-merged.seg"}
    for file in files:
        version = int(file.name.removeprefix("segment-v").partition("-")[0])
        content = file.read_bytes()
        assert int.from_bytes(content[4:6], "little") == version
        assert sum(chunk.record_count for chunk in decode(content).chunks) > 0


def test_golden_files_never_change() -> None:
    """A new version adds files, and their digests here; those of a released one stay as they are."""
    known = sorted((GOLDEN / "SHA256SUMS").read_text().splitlines())
    golden = [path for path in GOLDEN.iterdir() if path.suffix in (".bin", ".seg", ".json")]
    assert sorted(f"{sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in golden) == known


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


# ---- more than the object can hold


def sized(number: int, content: bytes) -> bytes:
    """A field of protobuf that says its size."""
    size = b""
    left = len(content)
    while left >= 0x80:
        size += bytes([left & 0x7F | 0x80])
        left >>= 7
    return bytes([number << 3 | 2]) + size + bytes([left]) + content


def with_footer(body: bytes, kind: int = 1) -> bytes:
    return b"TIDE" + pack("<HH", 1, kind) + bytes(100) + body + pack("<II", len(body), crc32c(body)) + b"TIDE"


BOMBS = {
    "chunks": (1, b"\x3a\0" * 500_000),
    "index entries": (2, sized(8, b"\x2a\0" * 500_000)),
    "merged ranges of index entries": (2, sized(8, b"\x2a\0" * 600) * 1000),
    "unknown fields": (1, b"\xf8\x07\0" * 400_000),
    "unknown fields of a merged range": (2, sized(8, b"\xf8\x07\0" * 400_000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_footer_that_would_grow_when_parsed_is_refused_before_it_takes_memory(name: str) -> None:
    kind, body = BOMBS[name]
    whole = with_footer(sized(1, b"c") + sized(2, b"b") + bytes([0x30, kind]) + body, kind)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptSegment, match="or more, but 100 bytes hold 1 and 1") as caught:
            decode(whole)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
    assert caught.value.position == 108


def test_fields_of_later_releases_and_broken_ones_are_left_to_the_parser() -> None:
    start = footer_start(INTAKE, size=len(INTAKE))
    good = INTAKE[start:-12]
    later = b"\xf8\x07\x05" + b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4) + b"\xfa\x07\x03new"
    for extra in (later, later * 100):
        body = good + extra
        assert decode(INTAKE[:start] + body + pack("<II", len(body), crc32c(body)) + b"TIDE") == decode(INTAKE)
    for broken in (b"\xf8\x07", b"\xfa\x07\x7fx", b"\xfb\x07", b"\xfa\x07" + b"\xff" * 9 + b"\x7f", b"\xff" * 30):
        body = good + broken
        with pytest.raises(CorruptSegment, match="no SegmentFooter message"):
            decode(INTAKE[:start] + body + pack("<II", len(body), crc32c(body)) + b"TIDE")


# ---- what is never written


def test_what_readers_would_refuse_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = encode_many([b"v" * 20])
    one = source(b"t" * 16, 0, batch)
    for sources, sentence in (
        ([], "lists 0 chunks"),
        ([one, one], "does not come after the one before it"),
        ([source(b"short", 0, batch)], "ids have 16"),
        ([ChunkSource(b"t" * 16, 0, [], [])], "a chunk of 0 bytes was to be made of batches of 0 bytes"),
        ([ChunkSource(b"t" * 16, 0, [batch, batch], scan(batch))], r"a chunk of \d+ bytes was to be made of batches of \d+ bytes"),
    ):
        with pytest.raises(CorruptSegment, match=sentence):
            encode_intake(sources, ORIGIN)
    for base, end, sentence in ((5, 5, "cannot hold 1 records"), (-1, 1, "cannot hold"), (1, 2, "runs from offset 0 to 0, beyond 1 to 2")):
        with pytest.raises(CorruptSegment, match=sentence):
            encode_merged(one, ORIGIN, base_offset=base, next_offset=end)
    for limit in ("MAX_SEGMENT_BYTES", "MAX_FOOTER_BYTES"):
        with monkeypatch.context() as patched:
            patched.setattr(segment_format, limit, 10)
            with pytest.raises(CorruptSegment, match="a segment of 96 bytes and a footer of .* was to be made, but at most .* are read"):
                encode_intake([one], ORIGIN)


def test_a_merged_chunk_is_indexed_alike_however_its_batches_are_divided_into_parts() -> None:
    [chunk] = decode(MERGED).chunks
    data = MERGED[chunk.position : chunk.end]
    headers = scan(data)
    bounds = [header.position for header in headers] + [len(data)]
    for number in (1, 2, len(headers)):
        cuts = sorted({*bounds[:: -(-len(headers) // number)], len(data)})
        parts = [memoryview(data)[start:end] for start, end in pairwise(cuts)]
        assert len(parts) >= number
        made, footer = encode_merged(ChunkSource(chunk.topic_id, 0, parts, headers), ORIGIN, base_offset=1000, next_offset=2300)
        assert b"".join(made) == MERGED
        assert footer == decode(MERGED)


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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40), st.lists(st.integers(1, 7), min_size=1, max_size=10))
def test_a_merged_segment_made_piece_by_piece_is_the_one_made_at_once(counts: list[int], cuts: list[int]) -> None:
    """Whatever the pieces are: so a stream that is sent again sends the same bytes (I5)."""
    batches = []
    offset = 1000
    for count in counts:
        batch = bytearray(encode_many([b"0123456789" * 4] * count, timestamps_ms=1_750_000_000_000 + offset % 7))
        offset = stamp(batch, scan(batch), base_offset=offset, leader_epoch=3)
        batches.append(bytes(batch))
    whole = b"".join(batches)
    parts, footer = encode_merged(source(b"t" * 16, 5, whole), ORIGIN, base_offset=1000, next_offset=offset)
    encoder = MergedEncoder(b"t" * 16, 5, ORIGIN, base_offset=1000, next_offset=offset)
    made = [encoder.begin()]
    at = 0
    while at < len(batches):
        cut = cuts[at % len(cuts)]
        piece = b"".join(batches[at : at + cut])
        encoder.add(piece, scan(piece))
        made.append(piece)
        at += cut
    ending, found = encoder.end()
    assert (b"".join([*made, *ending]), found) == (b"".join(parts), footer)
    decode(b"".join([*made, *ending]))
