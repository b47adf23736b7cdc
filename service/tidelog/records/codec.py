"""Records to batch bytes and back: the one module that knows how a record is encoded.

The ordinary path is aiokafka's codec, compiled where its wheel is, pure Python where not; it loads at first use. The
column paths (`encode_many`, `decode_values`, `decode_buffers`) join whole columns of bytes, and give the same bytes.
"""

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, pairwise, repeat
from struct import Struct
from types import NoneType
from typing import Any, NamedTuple

from tidelog.errors import CorruptBatch, InvalidRequest, RecordTooLarge
from tidelog.records.batch import COMPRESSIONS, HEADER_BYTES, BatchHeader, Buffer, scan
from tidelog.records.checksum import crc32c
from tidelog.records.compression import DecompressionLimits, compress, decompress

_HEAD = Struct(">qiibI")
_COVERED = Struct(">hiqqqhii")
_COVERED_FROM = _HEAD.size
_TIMES = Struct(">qq")
_PRODUCER = Struct(">qhi")
_PRODUCER_AT = 22  # within what the CRC covers
_WHOLE_BATCH = 1 << 30
_CACHED_RECORDS = 1 << 16
_CACHED_LENGTHS = 1 << 12
_LEAST_RECORD_BYTES = 7
_READ_AHEAD_BYTES = 32
_AT_ONCE = 64
_DEFAULT_LIMITS = DecompressionLimits()


class Record(NamedTuple):
    """What a user appends and reads. `offset` is -1 before it has one.

    A named tuple, because one is made for every record read, and a frozen dataclass takes twice as long.
    """

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
    """Values without an object each, in the layout of Arrow's binary array: value i is `values[offsets[i]:offsets[i + 1]]`."""

    offsets: "array[int]"
    """Signed 32-bit integers, one more than there are values."""
    values: bytes
    validity: bytes | None
    """Arrow's bitmap: bit i, counted from the least significant of the first byte, is 0 for a tombstone. None without tombstones."""


_NOBODY = Producer()


def encode(records: Sequence[Record], *, compression: str = "none", producer: Producer = _NOBODY) -> bytes:
    """Return one batch. Records without a timestamp keep 0; offsets are given later.

    Raises InvalidRequest for no records, and for what cannot be part of one.
    """
    _check_some(len(records))
    with _said_what_was_wrong():
        values, keys, times, headers, _ = zip(*records, strict=True)
        return _ordinary(values, keys, times, map(list, headers), compression, producer)


def encode_many(
    values: Sequence[bytes | None],
    *,
    keys: Sequence[bytes | None] | None = None,
    timestamps_ms: int | Sequence[int] = 0,
    compression: str = "none",
    producer: Producer = _NOBODY,
) -> bytes:
    """Return one batch of these columns, the same bytes as `encode` gives. One timestamp stands for all, or each has its own.

    Values of `bytes` without keys and with one timestamp are put together at the speed of joins. Raises InvalidRequest for columns
    of unequal length or without a value, and for what cannot be part of a record.
    """
    count = len(values)
    _check_some(count)
    with _said_what_was_wrong():
        for name, column in (("keys", keys), ("timestamps_ms", timestamps_ms)):
            if column is not None and not isinstance(column, int) and len(column) != count:
                raise InvalidRequest(f"{count} values came with {len(column)} {name}; give one for each value")
        # Of bytes alone: a view's length counts its items, which may be larger than bytes, and None has none.
        if keys is None and isinstance(timestamps_ms, int) and list(map(type, values)).count(bytes) == count:
            lengths = list(map(len, values))  # type: ignore[arg-type]
            uniform = lengths.count(lengths[0]) == count
            body = _uniform_body(values, lengths[0]) if uniform else _any_body(values, lengths)  # type: ignore[arg-type]
            return _batch(body, count, timestamps_ms, timestamps_ms, compression, producer)
        times = [timestamps_ms] * count if isinstance(timestamps_ms, int) else timestamps_ms
        return _ordinary(values, keys or [None] * count, times, repeat([], count), compression, producer)


def decode(batch: Buffer, *, header: BatchHeader | None = None, limits: DecompressionLimits = _DEFAULT_LIMITS) -> list[Record]:
    """Return the records of one batch, with their offsets. Raises CorruptBatch.

    `header` is that of a batch which was scanned already: it is not checked again.
    """
    header, body = _open(batch, header, limits)
    return [Record._make((r.value, r.key, r.timestamp, tuple(r.headers), r.offset)) for r in _general(header, body)]


def decode_values(batch: Buffer, *, header: BatchHeader | None = None, limits: DecompressionLimits = _DEFAULT_LIMITS) -> list[bytes | None]:
    """Return the values of one batch, None for tombstones. See `decode`."""
    header, body = _open(batch, header, limits)
    values = _uniform(header, body)
    return [record.value for record in _general(header, body)] if values is None else list(values)


def decode_buffers(batch: Buffer, *, header: BatchHeader | None = None, limits: DecompressionLimits = _DEFAULT_LIMITS) -> ValueBuffers:
    """Return the values of one batch as buffers; a tombstone has no bytes. See `decode`."""
    header, body = _open(batch, header, limits)
    columns = _uniform(header, body)
    if columns is not None:
        data = b"".join(columns)
        value_bytes = len(data) // header.record_count
        return ValueBuffers(_multiples(value_bytes, header.record_count), data, None)
    return value_buffers([record.value for record in _general(header, body)])


def value_buffers(values: Sequence[bytes | None]) -> ValueBuffers:
    """Return values as buffers."""
    validity = _bitmap(values) if None in values else None
    present = [value or b"" for value in values]
    return ValueBuffers(array("i", accumulate(map(len, present), initial=0)), b"".join(present), validity)


def reassigned(batch: bytes, producer: Producer) -> bytes:
    """Return one batch of this module's making under another producer id, epoch and sequence; its records stay as they are."""
    covered = bytearray(memoryview(batch)[_COVERED_FROM:])
    _PRODUCER.pack_into(covered, _PRODUCER_AT, producer.producer_id, producer.producer_epoch, producer.base_sequence)
    return b"".join((_HEAD.pack(0, len(covered) + 9, -1, 2, crc32c(covered)), covered))


# ---- one batch's frame


def _batch(body: bytes, count: int, base_timestamp: int, max_timestamp: int, compression: str, producer: Producer) -> bytes:
    if len(body) > _WHOLE_BATCH:
        raise _too_large()
    packed = compress(body, compression)
    attributes = COMPRESSIONS.index(compression)
    if len(packed) >= len(body):  # as Kafka's own producers do: what does not shrink travels as it is
        packed, attributes = body, 0
    covered = _COVERED.pack(
        attributes, count - 1, base_timestamp, max_timestamp, producer.producer_id, producer.producer_epoch, producer.base_sequence, count
    )
    crc = crc32c(packed, crc32c(covered))
    return b"".join((_HEAD.pack(0, len(covered) + len(packed) + 9, -1, 2, crc), covered, packed))


def _open(batch: Buffer, header: BatchHeader | None, limits: DecompressionLimits) -> tuple[BatchHeader, bytes]:
    if header is None:
        headers = scan(batch)
        if len(headers) != 1:
            raise CorruptBatch(f"one batch was to be decoded, but there are {len(headers)}; scan them, and decode each", position=0)
        header = headers[0]
    return header, decompress(bytes(memoryview(batch)[HEADER_BYTES:]), header.compression, limits=limits)


def _check_some(count: int) -> None:
    if not count:
        raise InvalidRequest("a batch of no records was to be encoded; give at least one")


def _ordinary(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    times: Sequence[int],
    headers: Iterable[list[tuple[str, bytes | None]]],
    compression: str,
    producer: Producer,
) -> bytes:
    """Return one batch by aiokafka's codec."""
    builder = _builder()
    append = builder.append
    for index, (time, key, value, names) in enumerate(zip(times, _plain(keys), _plain(values), headers, strict=True)):
        if append(index, time, key, value, names) is None:  # it left the record out; the batch must not go without it
            raise _too_large()
    _TIMES.pack(min(times), max(times))  # the pure codec would take any
    return _batch(bytes(builder.build())[HEADER_BYTES:], len(values), times[0], max(times), compression, producer)


def _plain(column: Sequence[bytes | None]) -> Sequence[bytes | None]:
    """Return the column with bytes in place of other buffers: the pure codec would count their items, and copy their bytes."""
    if set(map(type, column)) <= {bytes, NoneType}:
        return column
    return [value if value is None else bytes(memoryview(value)) for value in column]


@contextmanager
def _said_what_was_wrong() -> Iterator[None]:
    """Raise what the codec says of values that are no bytes, or numbers out of range, as an error of the tree."""
    try:
        yield
    except (TypeError, AttributeError, OverflowError, UnicodeError, struct.error) as error:
        raise InvalidRequest(
            f"records cannot be encoded: {error}; keys and values are bytes or None, names of headers text, times integers of 64 bits"
        ) from error


def _too_large() -> RecordTooLarge:
    return RecordTooLarge(f"a batch of more than {_WHOLE_BATCH} bytes of records was to be encoded; make smaller batches")


def _bitmap(values: Sequence[bytes | None]) -> bytes:
    digits = "".join("0" if value is None else "1" for value in reversed(values))
    return int(digits, 2).to_bytes((len(values) + 7) // 8, "little")


# ---- the ordinary path


def _builder() -> Any:
    import aiokafka  # noqa: F401  see `_general`
    from aiokafka.record.default_records import DefaultRecordBatchBuilder

    return DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=_WHOLE_BATCH
    )


def _general(header: BatchHeader, body: bytes) -> Iterator[Any]:
    """Yield aiokafka's records, one at a time: each is freed before the next is made, which keeps the collector quiet."""
    import aiokafka  # noqa: F401  as a whole: a thread that asks for a part, while another one loads the package, gets half of it
    from aiokafka.errors import CorruptRecordException
    from aiokafka.record.default_records import DefaultRecordBatch

    if header.record_count > len(body) // _LEAST_RECORD_BYTES:
        raise CorruptBatch(f"it claims {header.record_count} records in {len(body)} bytes", position=header.position)
    frame = _HEAD.pack(header.base_offset, len(body) + _COVERED.size + 9, header.leader_epoch, 2, 0) + _COVERED.pack(
        0, header.last_offset_delta, header.base_timestamp_ms, header.max_timestamp_ms, -1, -1, -1, header.record_count
    )
    # The compiled codec checks bounds before a varint, not within it, and so may look at two varints beyond the end
    # before it notices. It must find memory of ours there.
    roomy = b"".join((frame, body, bytes(_READ_AHEAD_BYTES)))
    least, last = header.base_offset, header.next_offset - 1
    try:
        for record in DefaultRecordBatch(memoryview(roomy)[:-_READ_AHEAD_BYTES]):
            offset = record.offset
            if not least <= offset <= last:
                raise CorruptBatch(f"a record has offset {offset}, but must lie between {least} and {last}", position=HEADER_BYTES)
            least = offset + 1
            yield record
    except (CorruptRecordException, ValueError, IndexError, OverflowError, MemoryError) as error:
        # MemoryError: a length near 2**63 passes the compiled codec's bounds check and fails to be allocated.
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


@lru_cache(maxsize=1)
def _cached_deltas() -> list[bytes]:
    return [_varint(delta) for delta in range(_CACHED_RECORDS)]


def _offset_deltas(count: int) -> list[bytes]:
    return _cached_deltas()[:count] if count <= _CACHED_RECORDS else [_varint(delta) for delta in range(count)]


def _regions(count: int) -> list[tuple[int, int, int]]:
    """Return (first, end, bytes of the offset delta) of the runs of records whose deltas have equally many bytes."""
    bounds = [0, 1 << 6, 1 << 13, 1 << 20, 1 << 27, 1 << 31]
    return [(first, min(end, count), width + 1) for width, (first, end) in enumerate(pairwise(bounds)) if first < count]


def _length(value_bytes: int, delta_bytes: int) -> bytes:
    return _varint(delta_bytes + len(_varint(value_bytes)) + value_bytes + 4)


def _head(value_bytes: int, delta_bytes: int) -> bytes:
    """Return what lies between two values up to the offset delta: the end of the record before, the beginning of this one."""
    return b"\0" + _length(value_bytes, delta_bytes) + b"\0\0"


def _tail(value_bytes: int, _: int) -> bytes:
    """Return what lies between the offset delta and the value."""
    return b"\x01" + _varint(value_bytes)


@lru_cache(maxsize=16)  # heads for each width of a delta, and tails: at most 2 MB
def _cached_pieces(make: Callable[[int, int], bytes], delta_bytes: int) -> list[bytes]:
    return [make(value_bytes, delta_bytes) for value_bytes in range(_CACHED_LENGTHS)]


def _pieces(make: Callable[[int, int], bytes], lengths: Sequence[int], delta_bytes: int) -> list[bytes]:
    """Return `make` of each length: from a table where all are short, as most are; else made once for each distinct one."""
    try:
        table = _cached_pieces(make, delta_bytes)
        return [table[length] for length in lengths]
    except IndexError:
        made = {length: make(length, delta_bytes) for length in set(lengths)}
        return [made[length] for length in lengths]


def _make_prefixes(value_bytes: int, count: int) -> list[bytes]:
    """Return what comes before each value; from the second on that begins with the end of the record before."""
    deltas = _offset_deltas(count)
    tail = _tail(value_bytes, 0)
    found = []
    for first, end, width in _regions(count):
        head = _head(value_bytes, width)
        found += [head + delta + tail for delta in deltas[first:end]]
    found[0] = found[0][1:]
    return found


_cached_prefixes = lru_cache(maxsize=8)(_make_prefixes)  # at most 30 MB


def _prefixes(value_bytes: int, count: int) -> list[bytes]:
    """Return `_make_prefixes`, from the next power of two where that is cached: batches rarely have equally many records."""
    if count > _CACHED_RECORDS:
        return _make_prefixes(value_bytes, count)
    return _cached_prefixes(value_bytes, 1 << (count - 1).bit_length())[:count]


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
    for first, end, width in _regions(count):
        parts[4 * first : 4 * end : 4] = _pieces(_head, lengths[first:end], width)
    parts[1::4] = _offset_deltas(count)
    parts[2::4] = _pieces(_tail, lengths, 0)
    parts[3::4] = values
    parts[0] = parts[0][1:]
    parts[-1] = b"\0"
    return b"".join(parts)


def _multiples(value_bytes: int, count: int) -> "array[int]":
    """Return `count + 1` offsets of values of equal length."""
    if value_bytes and count <= _CACHED_RECORDS:
        return _cached_multiples(value_bytes, 1 << count.bit_length())[: count + 1]
    return array("i", [index * value_bytes for index in range(count + 1)])


@lru_cache(maxsize=8)
def _cached_multiples(value_bytes: int, count: int) -> "array[int]":
    return array("i", range(0, value_bytes * count, value_bytes))


def _delta_column(first: int, end: int, place: int, width: int) -> bytes:
    """Return byte `place` of each of the offset deltas of a region: the low bytes repeat, the higher ones come in runs."""
    more = 0x80 if place < width - 1 else 0
    if place == 0:
        return (bytes(byte | more for byte in range(0, 128, 2)) * ((end - first) // 64 + 1))[: end - first]
    run = 1 << (7 * place - 1)
    return b"".join(bytes([delta // run & 0x7F | more]) * run for delta in range(first, end, run))[: end - first]


def _uniform(header: BatchHeader, body: bytes) -> Iterator[bytes] | None:
    """Return the values where all records look alike but for value and a timestamp delta of one byte; else None.

    Every byte that is not a value's is compared, a column at a time.
    """
    count = header.record_count
    value_bytes = _first_value_bytes(body)
    if value_bytes is None or count != header.last_offset_delta + 1 or count * (value_bytes + _LEAST_RECORD_BYTES) > len(body):
        return None
    tail = _tail(value_bytes, 0)
    start = 0
    found: list[Iterator[tuple[bytes, ...]]] = []
    for first, end, width in _regions(count):
        head = _length(value_bytes, width) + b"\0"
        lead = len(head) + 1 + width + len(tail)
        stride = lead + value_bytes + 1
        stop = start + stride * (end - first)
        if stop > len(body):
            return None
        fixed = [*enumerate(head), *enumerate(tail, len(head) + 1 + width), (stride - 1, 0)]
        if any(body[start + place : stop : stride] != bytes([byte]) * (end - first) for place, byte in fixed):
            return None
        if not body[start + len(head) : stop : stride].isascii():  # the timestamp delta: one byte, whatever it says
            return None
        delta_at = start + len(head) + 1
        if any(body[delta_at + place : stop : stride] != _delta_column(first, end, place, width) for place in range(width)):
            return None
        record = f"{lead}x{value_bytes}s1x"
        whole = start + (end - first) // _AT_ONCE * _AT_ONCE * stride
        view = memoryview(body)
        found += (Struct(record * _AT_ONCE).iter_unpack(view[start:whole]), Struct(record).iter_unpack(view[whole:stop]))
        start = stop
    return chain.from_iterable(chain.from_iterable(found)) if start == len(body) else None


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
