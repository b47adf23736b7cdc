"""Records to batch bytes and back: the one module that knows how a record is encoded.

The ordinary path is aiokafka's codec, compiled where its wheel is, pure Python where not; it loads at first use. The
column paths (`encode_many`, `decode_values`, `decode_buffers`) join whole columns of bytes, and give the same bytes.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from struct import Struct
from typing import Any

from crc32c import crc32c

from tidelog.errors import CorruptBatch, InvalidRequest
from tidelog.records.batch import COMPRESSIONS, HEADER_BYTES, BatchHeader, Buffer, scan
from tidelog.records.compression import DecompressionLimits, compress, decompress

_HEAD = Struct(">qiibI")
_COVERED = Struct(">hiqqqhii")
_WHOLE_BATCH = 1 << 30
_CACHED_RECORDS = 1 << 17
_DEFAULT_LIMITS = DecompressionLimits()


@dataclass(frozen=True, slots=True)
class Record:
    """What a user appends and reads. `offset` is -1 before it has one."""

    value: bytes | None
    key: bytes | None = None
    timestamp_ms: int = 0
    headers: tuple[tuple[str, bytes | None], ...] = ()
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Producer:
    """Who appends, for batches of idempotent producers."""

    producer_id: int = -1
    producer_epoch: int = -1
    base_sequence: int = -1


@dataclass(frozen=True, slots=True)
class ValueBuffers:
    """Values without an object each: value i is `data[starts[i]:ends[i]]`. They need not lie back to back."""

    starts: "array[int]"
    """Signed 32-bit integers."""
    ends: "array[int]"
    """Signed 32-bit integers."""
    data: bytes


_NOBODY = Producer()


def encode(records: Sequence[Record], *, compression: str = "none", producer: Producer = _NOBODY) -> bytes:
    """Return one batch. Records without a timestamp keep 0; offsets are given later. Raises InvalidRequest for no records."""
    _check_some(len(records))
    builder = _builder()
    for index, record in enumerate(records):
        builder.append(index, record.timestamp_ms, record.key, record.value, list(record.headers))
    body = bytes(builder.build())[HEADER_BYTES:]
    times = [record.timestamp_ms for record in records]
    return _batch(body, len(records), times[0], max(times), compression, producer)


def encode_many(
    values: Sequence[bytes | None],
    *,
    keys: Sequence[bytes | None] | None = None,
    timestamps_ms: int | Sequence[int] = 0,
    compression: str = "none",
    producer: Producer = _NOBODY,
) -> bytes:
    """Return one batch of these columns, the same bytes as `encode` gives. One timestamp stands for all, or each has its own.

    Without keys and with one timestamp it runs at the speed of joins. Raises InvalidRequest for columns of unequal
    length or without a value.
    """
    count = len(values)
    _check_some(count)
    for name, column in (("keys", keys), ("timestamps_ms", timestamps_ms)):
        if column is not None and not isinstance(column, int) and len(column) != count:
            raise InvalidRequest(f"{count} values came with {len(column)} {name}; give one for each value")
    if keys is None and isinstance(timestamps_ms, int):
        try:
            lengths = list(map(len, values))  # type: ignore[arg-type]
        except TypeError:  # a None among them
            pass
        else:
            body = _uniform_body(values, lengths[0]) if len(set(lengths)) == 1 else _any_body(values, lengths)  # type: ignore[arg-type]
            return _batch(body, count, timestamps_ms, timestamps_ms, compression, producer)
    builder = _builder()
    times = [timestamps_ms] * count if isinstance(timestamps_ms, int) else timestamps_ms
    append = builder.append
    nothing: list[object] = []
    for index, (timestamp, key, value) in enumerate(zip(times, keys or [None] * count, values, strict=True)):
        append(index, timestamp, key, value, nothing)
    return _batch(bytes(builder.build())[HEADER_BYTES:], count, times[0], max(times), compression, producer)


def decode(batch: Buffer, *, limits: DecompressionLimits = _DEFAULT_LIMITS) -> list[Record]:
    """Return the records of one batch, with their offsets. Raises CorruptBatch."""
    header, body = _open(batch, limits)
    return [Record(r.value, r.key, r.timestamp, tuple(r.headers), r.offset) for r in _general(header, body)]


def decode_values(batch: Buffer, *, limits: DecompressionLimits = _DEFAULT_LIMITS) -> list[bytes | None]:
    """Return the values of one batch, None for tombstones. Raises CorruptBatch."""
    header, body = _open(batch, limits)
    value_bytes = _uniform(header, body)
    if value_bytes is None:
        return [record.value for record in _general(header, body)]
    values: list[bytes | None] = []
    for region in _regions_of(value_bytes, header.record_count):
        values += [body[at : at + value_bytes] for at in range(region.start + region.lead, region.stop, region.stride)]
    return values


def decode_buffers(batch: Buffer, *, limits: DecompressionLimits = _DEFAULT_LIMITS) -> ValueBuffers:
    """Return the values of one batch as buffers; a tombstone's is empty. Raises CorruptBatch."""
    header, body = _open(batch, limits)
    value_bytes = _uniform(header, body)
    if value_bytes is not None:
        starts, ends = _places(value_bytes, header.record_count)
        return ValueBuffers(starts[:], ends[:], body)
    values = [record.value or b"" for record in _general(header, body)]
    bounds = array("i", accumulate(map(len, values), initial=0))
    return ValueBuffers(bounds[:-1], bounds[1:], b"".join(values))


# ---- one batch's frame


def _batch(body: bytes, count: int, base_timestamp: int, max_timestamp: int, compression: str, producer: Producer) -> bytes:
    packed = compress(body, compression)
    attributes = COMPRESSIONS.index(compression)
    if len(packed) >= len(body):  # as Kafka's own producers do: what does not shrink travels as it is
        packed, attributes = body, 0
    covered = _COVERED.pack(
        attributes, count - 1, base_timestamp, max_timestamp, producer.producer_id, producer.producer_epoch, producer.base_sequence, count
    )
    crc = crc32c(packed, crc32c(covered))
    return b"".join((_HEAD.pack(0, len(covered) + len(packed) + 9, -1, 2, crc), covered, packed))


def _open(batch: Buffer, limits: DecompressionLimits) -> tuple[BatchHeader, bytes]:
    headers = scan(batch)
    if len(headers) != 1:
        raise CorruptBatch(f"one batch was to be decoded, but there are {len(headers)}; scan them, and decode each", position=0)
    return headers[0], decompress(bytes(memoryview(batch)[HEADER_BYTES:]), headers[0].compression, limits=limits)


def _check_some(count: int) -> None:
    if not count:
        raise InvalidRequest("a batch of no records was to be encoded; give at least one")


# ---- the ordinary path


def _builder() -> Any:
    from aiokafka.record.default_records import DefaultRecordBatchBuilder

    return DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=_WHOLE_BATCH
    )


def _general(header: BatchHeader, body: bytes) -> list[Any]:
    from aiokafka.errors import CorruptRecordException
    from aiokafka.record.default_records import DefaultRecordBatch

    if header.record_count > len(body) // 7:  # the smallest record has 7 bytes
        raise CorruptBatch(f"it claims {header.record_count} records in {len(body)} bytes", position=header.position)
    frame = _HEAD.pack(header.base_offset, len(body) + _COVERED.size + 9, header.leader_epoch, 2, 0) + _COVERED.pack(
        0, header.last_offset_delta, header.base_timestamp_ms, header.max_timestamp_ms, -1, -1, -1, header.record_count
    )
    try:
        return list(DefaultRecordBatch(frame + body))
    except (CorruptRecordException, ValueError, IndexError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise CorruptBatch(f"its records cannot be decoded: {error!r}", position=HEADER_BYTES) from error


# ---- columns. A record without key and headers, of its batch's own timestamp, is
#      length | 0 | 0 | offset delta | -1 | value length | value | 0
# and all but the value depends on the value's length and the offset delta alone.


def _varint(value: int) -> bytes:
    """Zigzag varint of a value ≥ 0."""
    value <<= 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_deltas: list[bytes] = []


def _offset_deltas(count: int) -> list[bytes]:
    if count > _CACHED_RECORDS:
        return [_varint(delta) for delta in range(count)]
    if len(_deltas) < count:
        _deltas.extend(_varint(delta) for delta in range(len(_deltas), count))
    return _deltas[:count]


def _regions(count: int) -> list[tuple[int, int, int]]:
    """Return (first, end, bytes of the offset delta) of the runs of records whose deltas have equally many bytes."""
    bounds = [0, 1 << 6, 1 << 13, 1 << 20, 1 << 27, 1 << 31]
    return [(first, min(end, count), width + 1) for width, (first, end) in enumerate(pairwise(bounds)) if first < count]


def _length(value_bytes: int, delta_bytes: int) -> bytes:
    return _varint(delta_bytes + len(_varint(value_bytes)) + value_bytes + 4)


@lru_cache(maxsize=16)
def _prefixes(value_bytes: int, count: int) -> list[bytes]:
    """Return what comes before each value; from the second on that begins with the end of the record before."""
    deltas = _offset_deltas(count)
    tail = b"\x01" + _varint(value_bytes)
    found = []
    for first, end, width in _regions(count):
        head = b"\0" + _length(value_bytes, width) + b"\0\0"
        found += [head + delta + tail for delta in deltas[first:end]]
    found[0] = found[0][1:]
    return found


def _uniform_body(values: Sequence[bytes], value_bytes: int) -> bytes:
    count = len(values)
    parts: list[bytes] = [b""] * (2 * count + 1)
    parts[0:-1:2] = _prefixes(value_bytes, count)
    parts[1::2] = values
    parts[-1] = b"\0"
    return b"".join(parts)


def _any_body(values: Sequence[bytes], lengths: list[int]) -> bytes:
    count = len(values)
    parts: list[bytes] = [b""] * (4 * count + 1)
    distinct = set(lengths)
    tails = {length: b"\x01" + _varint(length) for length in distinct}
    for first, end, width in _regions(count):
        heads = {length: b"\0" + _length(length, width) + b"\0\0" for length in distinct}
        parts[4 * first : 4 * end : 4] = map(heads.__getitem__, lengths[first:end])
    parts[1::4] = _offset_deltas(count)
    parts[2::4] = map(tails.__getitem__, lengths)
    parts[3::4] = values
    parts[0] = parts[0][1:]
    parts[-1] = b"\0"
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class _Region:
    """A run of uniform records, as bytes of the body: what is before, after and around their values."""

    start: int
    stop: int
    stride: int
    lead: int
    """Bytes of a record before its value."""
    stamp: int
    """Place of the timestamp delta in a record."""
    expected: tuple[tuple[int, bytes], ...]
    """(place in a record, that byte of every record)."""


@lru_cache(maxsize=16)
def _regions_of(value_bytes: int, count: int) -> tuple[_Region, ...]:
    found = []
    start = 0
    deltas = _offset_deltas(count)
    for first, end, width in _regions(count):
        head = _length(value_bytes, width) + b"\0\0"
        tail = b"\x01" + _varint(value_bytes)
        lead = len(head) + width + len(tail)
        stride = lead + value_bytes + 1
        joined = b"".join(deltas[first:end])
        expected = [(place, bytes([byte]) * (end - first)) for place, byte in enumerate(head[:-1])]
        expected += [(len(head) + place, joined[place::width]) for place in range(width)]
        expected += [(len(head) + width + place, bytes([byte]) * (end - first)) for place, byte in enumerate(tail)]
        expected.append((stride - 1, bytes(end - first)))
        found.append(_Region(start, start + stride * (end - first), stride, lead, len(head) - 1, tuple(expected)))
        start = found[-1].stop
    return tuple(found)


@lru_cache(maxsize=16)
def _places(value_bytes: int, count: int) -> "tuple[array[int], array[int]]":
    starts = array("i")
    for region in _regions_of(value_bytes, count):
        starts.extend(range(region.start + region.lead, region.stop, region.stride))
    return starts, array("i", [start + value_bytes for start in starts])


def _uniform(header: BatchHeader, body: bytes) -> int | None:
    """Return the values' length where all records look alike but for value and a timestamp delta of one byte; else None.

    Every byte that is not a value's is compared, a column at a time.
    """
    count = header.record_count
    value_bytes = _first_value_bytes(body)
    if value_bytes is None or count != header.last_offset_delta + 1 or count * (value_bytes + 7) > len(body):
        return None
    regions = _regions_of(value_bytes, count)
    if regions[-1].stop != len(body):
        return None
    for region in regions:
        if any(body[region.start + place : region.stop : region.stride] != column for place, column in region.expected):
            return None
        if not body[region.start + region.stamp : region.stop : region.stride].isascii():
            return None
    return value_bytes


def _first_value_bytes(body: bytes) -> int | None:
    """Return the first value's length, where the first record may be one of many alike."""
    at = 0
    fields = []
    for _ in range(6):  # length, attributes, timestamp delta, offset delta, key length, value length
        number = shift = 0
        while True:
            if at >= len(body) or shift > 28:
                return None
            byte = body[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        fields.append(number)
    return fields[5] >> 1 if fields[1] == 0 and fields[3] == 0 and fields[4] == 1 and not fields[5] & 1 else None
