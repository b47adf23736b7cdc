"""Records to bytes and back, by every path, against an independent implementation."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from struct import pack_into
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record import MemoryRecords, MemoryRecordsBuilder
from tidelog.errors import CorruptBatch, InvalidRequest, RecordTooLarge
from tidelog.records import codec
from tidelog.records.batch import COMPRESSIONS, scan, stamp
from tidelog.records.codec import Producer, Record, ValueBuffers, decode, decode_buffers, decode_values, encode, encode_many

GOLDEN = Path(__file__).parent.parent / "golden"
WITHOUT_EXTENSIONS = bool(os.environ.get("AIOKAFKA_NO_EXTENSIONS"))
TIME = 1_750_000_000_000
binary = st.one_of(st.none(), st.binary(max_size=200))
records = st.lists(
    st.builds(
        Record,
        value=binary,
        key=binary,
        timestamp_ms=st.integers(TIME, TIME + 2**40),
        headers=st.lists(st.tuples(st.text(max_size=10), binary), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=80,
)


def by_kafka_python(rows: list[Record], compression: str = "none") -> bytes:
    builder = MemoryRecordsBuilder(2, COMPRESSIONS.index(compression), 1 << 30)
    for row in rows:
        builder.append(timestamp=row.timestamp_ms, key=row.key, value=row.value, headers=list(row.headers))
    builder.close()
    built = bytearray(builder.buffer())
    pack_into(">i", built, 12, -1)
    return bytes(built)


def unbuffered(buffers: ValueBuffers) -> list[bytes | None]:
    """Read Arrow's layout as any reader of it would."""
    return [
        buffers.values[start:end] if buffers.validity is None or buffers.validity[i // 8] >> (i % 8) & 1 else None
        for i, (start, end) in enumerate(pairwise(buffers.offsets))
    ]


def read_by_kafka_python(batch: bytes) -> list[Any]:
    return [record for part in iter(MemoryRecords(batch).next_batch, None) for record in part]


@given(rows=records)
@settings(max_examples=60, deadline=None)
def test_encoding_is_byte_for_byte_that_of_an_independent_implementation(rows: list[Record]) -> None:
    assert encode(rows) == by_kafka_python(rows)


@given(rows=records, compression=st.sampled_from(COMPRESSIONS))
@settings(max_examples=60, deadline=None)
def test_what_is_encoded_is_read_back_by_both(rows: list[Record], compression: str) -> None:
    batch = encode(rows, compression=compression)
    expected = [(index, row.timestamp_ms, row.key, row.value, list(row.headers)) for index, row in enumerate(rows)]
    assert [(r.offset, r.timestamp_ms, r.key, r.value, list(r.headers)) for r in decode(batch)] == expected
    assert [(r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in read_by_kafka_python(batch)] == expected
    assert decode_values(batch) == [row.value for row in rows]
    assert unbuffered(decode_buffers(batch)) == [row.value for row in rows]


@given(rows=records, compression=st.sampled_from(COMPRESSIONS))
@settings(max_examples=30, deadline=None)
def test_what_an_independent_implementation_compresses_is_read(rows: list[Record], compression: str) -> None:
    decoded = decode(by_kafka_python(rows, compression))
    assert decoded == [row._replace(offset=index) for index, row in enumerate(rows)]


@given(values=st.lists(st.binary(max_size=300), min_size=1, max_size=200), time=st.integers(0, TIME))
@settings(max_examples=60, deadline=None)
def test_columns_of_any_lengths_give_the_ordinary_bytes(values: list[bytes], time: int) -> None:
    rows = [Record(value, timestamp_ms=time) for value in values]
    batch = encode_many(values, timestamps_ms=time)
    assert batch == encode(rows) == by_kafka_python(rows)
    assert decode_values(batch) == values
    assert [record.value for record in read_by_kafka_python(batch)] == values


@given(
    longest=st.sampled_from([1, 2, 64, 4095, 4096, 4097, 20_000]),
    count=st.sampled_from([2, 3, 63, 64, 65, 8191, 8192, 8193]),
    chance=st.randoms(use_true_random=False),
)
@settings(max_examples=15, deadline=None)
def test_mixed_columns_give_the_ordinary_bytes_at_every_width_of_a_delta_and_a_length(longest: int, count: int, chance: Random) -> None:
    values = [b"x" * chance.choice([0, 1, 55, 58, 63, 64, 100]) for _ in range(count - 1)] + [b"y" * longest]
    rows = [Record(value, timestamp_ms=TIME) for value in values]
    batch = encode_many(values, timestamps_ms=TIME)
    assert batch == encode(rows) == by_kafka_python(rows)
    assert decode_values(batch) == values


@given(size=st.sampled_from([0, 1, 55, 58, 59, 63, 64, 100, 8191]), count=st.sampled_from([1, 2, 63, 64, 65, 8191, 8192, 8193]))
@settings(max_examples=30, deadline=None)
def test_uniform_columns_give_the_ordinary_bytes_at_every_width_of_a_delta(size: int, count: int) -> None:
    count = min(count, 65) if size > 1000 else count  # enough for two widths, without making tens of megabytes
    values = [index.to_bytes(4, "big") * (size // 4) + b"x" * (size % 4) for index in range(count)]
    rows = [Record(value, timestamp_ms=TIME) for value in values]
    batch = encode_many(values, timestamps_ms=TIME)
    assert batch == encode(rows) == by_kafka_python(rows)
    assert decode_values(batch) == values
    buffers = decode_buffers(batch)
    assert buffers.validity is None
    assert unbuffered(buffers) == values


@given(rows=records)
@settings(max_examples=40, deadline=None)
def test_columns_with_keys_tombstones_and_times_give_the_ordinary_bytes(rows: list[Record]) -> None:
    plain = [Record(row.value, row.key, row.timestamp_ms) for row in rows]
    columns = encode_many(
        [r.value for r in rows], keys=[r.key for r in rows], timestamps_ms=[r.timestamp_ms for r in rows], producer=Producer(1, 2, 3)
    )
    assert columns == encode(plain, producer=Producer(1, 2, 3))


@pytest.mark.skipif(WITHOUT_EXTENSIONS, reason="the ordinary path would take a minute")
@pytest.mark.parametrize("count", [1 << 16, (1 << 16) + 1, (1 << 20) + 1])
def test_columns_longer_than_what_is_kept_ready_give_the_ordinary_bytes(count: int) -> None:
    """Beyond tables that are cached, and at offset deltas of three and four bytes."""
    for values in ([b"v"] * count, [b"v", b"", *[b"vv"] * (count - 2)]):
        batch = encode_many(values, timestamps_ms=TIME)
        assert batch == encode([Record(value, timestamp_ms=TIME) for value in values])
        assert decode_values(batch) == values
        buffers = decode_buffers(batch)
        assert buffers.values == b"".join(values)
        assert list(buffers.offsets) == list(accumulate(map(len, values), initial=0))


@given(values=st.lists(st.binary(max_size=24), min_size=1, max_size=40), kind=st.sampled_from([bytearray, memoryview, "wide", "mixed"]))
@settings(max_examples=60, deadline=None)
def test_any_buffer_of_bytes_gives_the_ordinary_bytes_whatever_its_items_are(values: list[bytes], kind: Any) -> None:
    """A view's length counts its items: a batch made by it would be whole, accepted, and not to be read."""
    wide = [memoryview(value[: len(value) // 8 * 8]).cast("Q") for value in values]
    columns: dict[Any, list[Any]] = {
        bytearray: [bytearray(value) for value in values],
        memoryview: [memoryview(value) for value in values],
        "wide": wide,
        "mixed": [*values, *wide],
    }
    given_values = columns[kind]
    plain = [bytes(value) for value in given_values]
    batch = encode_many(given_values, timestamps_ms=TIME)
    assert batch == encode_many(plain, timestamps_ms=TIME)
    assert decode_values(batch) == plain


@pytest.mark.parametrize(
    ("value", "key", "time", "headers"),
    [
        ("text", None, 0, ()),
        (5, None, 0, ()),
        ([1, 2], None, 0, ()),
        (b"v", "text", 0, ()),
        (b"v", None, 2**63, ()),
        (b"v", None, -(2**63) - 1, ()),
        (b"v", None, 1.5, ()),
        (b"v", None, None, ()),
        (b"v", None, 0, ((b"name", b"v"),)),
        (b"v", None, 0, (("name", "text"),)),
        (b"v", None, 0, (("\ud800", b"v"),)),
    ],
)
def test_what_cannot_be_part_of_a_record_is_told_so(value: Any, key: Any, time: Any, headers: Any) -> None:
    makers: list[Callable[[], bytes]] = [lambda: encode([Record(b"good"), Record(value, key, time, headers)])]
    if not headers:
        makers += [
            lambda: encode_many([b"good", value], keys=[None, key], timestamps_ms=[0, time]),
            lambda: encode_many([value, value], keys=key and [key, key], timestamps_ms=time),
        ]
    for make in makers:
        with pytest.raises(InvalidRequest, match="records cannot be encoded: .*; keys and values are bytes or None, names of headers text"):
            make()


def test_a_producer_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="records cannot be encoded"):
        encode_many([b"v"], producer=Producer(2**63, 0, 0))


def test_uniform_batches_with_small_timestamp_deltas_are_read_by_column() -> None:
    values = [b"%04d" % index for index in range(1000)]
    batch = encode_many(values, timestamps_ms=[TIME + index // 20 for index in range(1000)])
    assert decode_values(batch) == values


def test_columns_of_unequal_length_and_empty_batches_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="2 values came with 1 keys"):
        encode_many([b"a", b"b"], keys=[b"k"])
    with pytest.raises(InvalidRequest, match="2 values came with 3 timestamps_ms"):
        encode_many([b"a", b"b"], timestamps_ms=[1, 2, 3])
    with pytest.raises(InvalidRequest, match="at least one"):
        encode([])
    with pytest.raises(InvalidRequest, match="choose one of none, gzip"):
        encode([Record(b"x" * 100)], compression="brotli")


def test_the_codec_under_test_is_pure_python_where_that_was_asked_for() -> None:
    from aiokafka.record import default_records

    pure = (default_records._DefaultRecordBatchBuilderPy, default_records._DefaultRecordBatchPy)
    assert ((default_records.DefaultRecordBatchBuilder, default_records.DefaultRecordBatch) == pure) == WITHOUT_EXTENSIONS


@pytest.mark.skipif(WITHOUT_EXTENSIONS, reason="this is that run")
def test_everything_here_holds_without_the_compiled_codec_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        cwd=GOLDEN.parent.parent,
        env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["plain", "stamped", "uniform", "gzip", "snappy", "lz4", "zstd"])
def test_golden_batches_are_decoded_and_made_again(name: str) -> None:
    made = runpy.run_path(str(GOLDEN / "make_golden.py"))
    stored = (GOLDEN / f"batch-{name}.bin").read_bytes()
    if name != "gzip":  # zlib's output may differ between its versions
        assert made["files"]()[f"batch-{name}.bin"] == stored
    rows = made["UNIFORM" if name == "uniform" else "PLAIN"]
    expected = [Record(value, key, made["TIME"] + delta, tuple(headers)) for delta, key, value, headers in rows]
    base = 123456789012 if name == "stamped" else 0
    assert decode(stored) == [Record(r.value, r.key, r.timestamp_ms, r.headers, offset=base + index) for index, r in enumerate(expected)]
    assert [(r.offset - base, r.value) for r in read_by_kafka_python(stored)] == [(index, r.value) for index, r in enumerate(expected)]
    if name in ("plain", "uniform"):
        assert encode(expected) == stored


def zigzag(value: int) -> bytes:
    zigzagged: Callable[[int], bytes] = runpy.run_path(str(GOLDEN / "make_golden.py"))["zigzag"]
    return zigzagged(value)


def framed(batch: bytes, body: bytes) -> bytes:
    """Return the batch with other records and a length and CRC that fit them."""
    made = bytearray(batch[:61] + body)
    pack_into(">i", made, 8, len(made) - 12)
    pack_into(">I", made, 17, crc32c(bytes(made[21:])))
    return bytes(made)


def test_lying_records_inside_a_whole_batch_are_refused() -> None:
    good = encode_many([b"value-%02d" % n for n in range(20)], timestamps_ms=TIME)
    for at in range(61, len(good)):
        for value in (0x00, 0x7F, 0xFF):
            lying = bytearray(good)
            lying[at] = value
            pack_into(">I", lying, 17, crc32c(bytes(lying[21:])))
            for read in (decode, decode_values, decode_buffers):
                try:
                    read(bytes(lying))
                except CorruptBatch as error:
                    assert error.position >= 0  # noqa: PT017 - a changed value is no error, so raising is not a must


@pytest.mark.parametrize("claimed", [0, 2, 7, -1, 2**40, -(2**40)])
def test_a_record_at_an_offset_that_is_not_its_own_is_refused(claimed: int) -> None:
    delta = zigzag(claimed)
    second = bytes([0, 0]) + delta + b"\x01\x02y\x00"
    body = b"\x0e\0\0\0\x01\x02x\0" + zigzag(len(second)) + second
    lying = framed(encode([Record(b"x"), Record(b"y")]), body)
    for read in (decode, decode_values, decode_buffers):
        with pytest.raises(CorruptBatch, match="must lie between"):
            read(lying)


@pytest.mark.parametrize("length", [2**31, 2**62, 2**63 - 1, 2**63 - 62, 2**63 - 75])
def test_a_length_near_the_end_of_the_number_line_is_refused(length: int) -> None:
    for body in (b"\x0e\0\0\0\x01" + zigzag(length), b"\x0e\0\0\0\x01\x01\x02" + zigzag(length), zigzag(length) + b"\0\0\0"):
        with pytest.raises(CorruptBatch):
            decode(framed(encode([Record(b"x")]), body.ljust(30, b"\0")))


def test_batches_that_compaction_thinned_out_keep_their_offsets() -> None:
    body = b"\x0e\0\0\x04\x01\x02x\0" + b"\x0e\0\0\x0a\x01\x02y\0"
    thinned = bytearray(framed(encode([Record(b"x"), Record(b"y")]), body))
    pack_into(">i", thinned, 23, 6)
    pack_into(">I", thinned, 17, crc32c(bytes(thinned[21:])))
    stamp(thinned, scan(thinned), base_offset=100, leader_epoch=1)
    assert [(record.offset, record.value) for record in decode(thinned)] == [(102, b"x"), (105, b"y")]
    assert decode_values(thinned) == [b"x", b"y"]


def test_a_batch_beyond_the_formats_length_is_refused_and_never_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_WHOLE_BATCH", 1000)
    values = [b"x" * 100] * 20
    encoders: list[Callable[[], bytes]] = [
        lambda: encode([Record(value) for value in values]),
        lambda: encode_many(values),
        lambda: encode_many(values, keys=values),
    ]
    for encoder in encoders:
        with pytest.raises(RecordTooLarge, match="make smaller batches"):
            encoder()


def test_two_batches_are_not_decoded_as_one() -> None:
    one = encode([Record(b"x")])
    with pytest.raises(CorruptBatch, match="there are 2; scan them"):
        decode(one + one)


def test_importing_the_codec_does_not_load_the_compiled_one() -> None:
    program = "import sys, tidelog.records.codec; sys.exit('aiokafka' in sys.modules or 'cramjam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_threads_that_need_the_codec_while_it_loads_all_get_it_whole() -> None:
    """It loads at first use, in a thousand small files; a broker decodes in threads."""
    program = f"""
import sys, threading, time
from tidelog.records.batch import scan
from tidelog.records.codec import decode
batch = bytes.fromhex({bytes(encode([Record(b"value", key=b"key", timestamp_ms=1)])).hex()!r})
[header] = scan(batch)
sys.setswitchinterval(0.00001)
failed = []
def work(number):
    time.sleep(number * 0.003)
    try:
        decode(batch, header=header)
    except Exception as error:
        failed.append(error)
threads = [threading.Thread(target=work, args=(number,)) for number in range(60)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(str(failed) if failed else 0)
"""
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
