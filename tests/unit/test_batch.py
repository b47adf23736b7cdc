"""Headers of record batches: what is read, what is refused, what is stamped."""

from pathlib import Path
from struct import pack_into

import pytest
from crc32c import crc32c
from tidelog.errors import CorruptBatch, RecordTooLarge, TidelogError
from tidelog.records.batch import BatchLimits, check_append, scan, stamp, unstamp
from tidelog.records.codec import Producer, Record, decode, encode, encode_many

GOLDEN = Path(__file__).parent.parent / "golden"
NOW = 1_750_000_000_000
LIMITS = BatchLimits()


def altered(batch: bytes, at: int, layout: str, value: int) -> bytes:
    """Return the batch with one field changed and its CRC made right again: a lying batch, not a damaged one."""
    copy = bytearray(batch)
    pack_into(layout, copy, at, value)
    pack_into(">I", copy, 17, crc32c(bytes(copy[21:])))
    return bytes(copy)


@pytest.fixture
def batch() -> bytes:
    return encode([Record(b"one", timestamp_ms=NOW), Record(b"two", timestamp_ms=NOW + 5)], producer=Producer(7, 0, 3))


def test_a_concatenation_is_scanned_without_decoding_a_record(batch: bytes) -> None:
    other = encode_many([b"x"] * 100, timestamps_ms=NOW, compression="gzip")
    first, second, third = scan(memoryview(batch + other + batch))
    assert (first.position, second.position, third.position) == (0, len(batch), len(batch) + len(other))
    assert (first.record_count, first.max_timestamp_ms, first.producer_id, first.base_sequence) == (2, NOW + 5, 7, 3)
    assert (second.compression, second.record_count, second.next_offset) == ("gzip", 100, 100)
    assert scan(b"") == []


@pytest.mark.parametrize("name", ["plain", "stamped", "uniform", "gzip", "snappy", "lz4", "zstd"])
def test_golden_batches_are_read(name: str) -> None:
    [header] = scan((GOLDEN / f"batch-{name}.bin").read_bytes())
    assert header.record_count == (200 if name == "uniform" else 3)
    assert (header.base_offset, header.leader_epoch) == ((123456789012, 17) if name == "stamped" else (0, -1))


def test_every_truncation_is_refused_with_the_batchs_position(batch: bytes) -> None:
    for length in range(1, len(batch)):
        with pytest.raises(CorruptBatch) as caught:
            scan(batch + batch[:length])
        assert caught.value.position == len(batch)


def test_every_flipped_bit_is_refused_but_those_outside_the_crc(batch: bytes) -> None:
    outside = {*range(8), *range(12, 16)}
    for at in range(len(batch)):
        damaged = bytearray(batch)
        damaged[at] ^= 1 << (at % 8)
        if at in outside:
            [header] = scan(damaged)
            assert [r.value for r in decode(damaged)] == [b"one", b"two"]
            assert header.crc == scan(batch)[0].crc
        else:
            with pytest.raises(CorruptBatch):
                scan(damaged)


@pytest.mark.parametrize("length", [-(2**31), -1, 0, 48, 2**31 - 1])
def test_a_lying_length_is_refused_before_it_is_used(batch: bytes, length: int) -> None:
    with pytest.raises(CorruptBatch, match=f"its length field says {length}"):
        scan(altered(batch, 8, ">i", length))


@pytest.mark.parametrize(
    ("at", "layout", "value", "sentence"),
    [
        (16, ">b", 1, "its magic is 1, but only version 2"),
        (21, ">h", 5, "its compression is 5"),
        (57, ">i", 0, "it claims 0 records"),
        (57, ">i", -1, "it claims -1 records"),
        (57, ">i", 2**31 - 1, "too few for 2147483647 records"),
        (23, ">i", 0, "its last offset delta is 0, too few"),
    ],
)
def test_a_lying_header_is_refused(batch: bytes, at: int, layout: str, value: int, sentence: str) -> None:
    with pytest.raises(CorruptBatch, match=sentence):
        scan(altered(batch, at, layout, value))


def test_more_records_than_the_bytes_can_hold_are_refused_without_decoding_one(batch: bytes) -> None:
    lying = altered(altered(batch, 23, ">i", 999_999), 57, ">i", 1_000_000)
    with pytest.raises(CorruptBatch, match=r"it claims 1000000 records in \d+ bytes"):
        scan(lying)


@pytest.mark.parametrize(
    ("at", "layout", "value", "sentence"),
    [
        (23, ">i", 5, "its last offset delta is 5, but must be 1"),
        (21, ">h", 0x08, "log-append-time batches are refused"),
        (21, ">h", 0x10, "transactional"),
        (21, ">h", 0x20, "control"),
        (21, ">h", 0x40, "0x0040"),
        (21, ">h", -32768, "0x8000"),
        (27, ">q", -1, "not before 1970"),
        (35, ">q", NOW - 1, "the largest not below the first"),
        (35, ">q", NOW + 25 * 3600 * 1000, "mend the producer's clock"),
        (51, ">h", -1, r"\(7, -1, 3\); either all are given, from 0 on, or all are -1"),
        (53, ">i", -1, "either all are given"),
        (43, ">q", -1, "either all are given"),
        (43, ">q", -2, "either all are given"),
    ],
)
def test_what_a_client_may_not_send_is_refused_and_named(batch: bytes, at: int, layout: str, value: int, sentence: str) -> None:
    assert len(check_append(batch, limits=LIMITS, now_ms=NOW)) == 1
    with pytest.raises(CorruptBatch, match=sentence):
        check_append(batch + altered(batch, at, layout, value), limits=LIMITS, now_ms=NOW)


def test_a_producer_is_named_wholly_or_by_nothing_but_the_sign_of_none() -> None:
    nobody = encode([Record(b"x", timestamp_ms=NOW)])
    assert len(check_append(nobody, limits=LIMITS, now_ms=NOW)) == 1
    for at, layout in ((43, ">q"), (51, ">h"), (53, ">i")):
        with pytest.raises(CorruptBatch, match="or all are -1"):
            check_append(altered(nobody, at, layout, -2), limits=LIMITS, now_ms=NOW)


def test_limits_name_the_setting_that_set_them(batch: bytes) -> None:
    for limits, setting in (
        (BatchLimits(max_append_bytes=10), "max_append_bytes is 10"),
        (BatchLimits(max_batch_bytes=10), "max_batch_bytes is 10"),
        (BatchLimits(max_batch_records=1), "max_batch_records is 1"),
    ):
        with pytest.raises(RecordTooLarge, match=setting):
            check_append(batch, limits=limits, now_ms=NOW)
    with pytest.raises(CorruptBatch, match="holds no batch"):
        check_append(b"", limits=LIMITS, now_ms=NOW)


def test_stamping_is_dense_and_leaves_the_crc_whole(batch: bytes) -> None:
    buffer = bytearray(batch + batch)
    assert stamp(buffer, scan(buffer), base_offset=1000, leader_epoch=4) == 1004
    stamped = scan(buffer)
    assert [(h.base_offset, h.leader_epoch) for h in stamped] == [(1000, 4), (1002, 4)]
    assert [r.offset for r in decode(buffer[len(batch) :])] == [1002, 1003]
    unstamp(buffer, stamped)
    assert bytes(buffer) == batch + batch


def test_arbitrary_bytes_never_raise_anything_but_the_trees_errors() -> None:
    import random

    chance = random.Random(7)
    for _ in range(2000):
        with pytest.raises(TidelogError):
            scan(chance.randbytes(chance.randrange(1, 200)))
