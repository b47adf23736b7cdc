"""Record batches as bytes: what their headers say, whether they are whole, and where they stand in the log.

No record is decoded here. `docs/format.md` gives the layout and the rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from tidelog.errors import CorruptBatch, RecordTooLarge
from tidelog.records.checksum import crc32c

Buffer = bytes | bytearray | memoryview

HEADER_BYTES = 61
COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")

_HEADER = Struct(">qiibIhiqqqhii")
_STAMP = Struct(">q")
_EPOCH = Struct(">i")
_BEFORE_LENGTH_ENDS = 12
_COVERED_FROM = 21
_LEAST_LENGTH = HEADER_BYTES - _BEFORE_LENGTH_ENDS
_COMPRESSION_BITS = 0x07
_LEAST_RECORD_BYTES = 7


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one append may bring."""

    max_append_bytes: int = 8 * 1024 * 1024
    """All batches of one append together."""
    max_batch_bytes: int = 1024 * 1024
    """One batch, header included, as it travels (compressed)."""
    max_batch_records: int = 1_000_000
    max_timestamp_skew_ms: int = 24 * 3600 * 1000
    """How far a record's timestamp may lie ahead of the broker's clock; earlier ones are always allowed."""


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """What a batch says of itself. `position` and `size` are bytes within what was scanned."""

    position: int
    size: int
    base_offset: int
    leader_epoch: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int
    crc: int

    @property
    def compression(self) -> str:
        """Name of the compression, one of `COMPRESSIONS`."""
        return COMPRESSIONS[self.attributes & _COMPRESSION_BITS]

    @property
    def next_offset(self) -> int:
        """Offset after the batch's last one, compacted away or not."""
        return self.base_offset + self.last_offset_delta + 1


def scan(data: Buffer) -> list[BatchHeader]:
    """Return the headers of a concatenation of batches, each batch checked: length, magic, CRC, counts.

    Every length is compared with the bytes that remain before it is used. Raises CorruptBatch with the position of the
    batch that is wrong; empty input has no batches.
    """
    view = memoryview(data)
    end = len(view)
    headers = []
    position = 0
    while position < end:
        header = _read_header(view, position, end)
        headers.append(header)
        position += header.size
    return headers


def batch_end(data: Buffer, position: int) -> int | None:
    """Return where a batch ends by its length field, whatever else is wrong with it; None where that cannot be."""
    remaining = len(data) - position
    if remaining < HEADER_BYTES:
        return None
    length: int = _HEADER.unpack_from(data, position)[1]
    return position + _BEFORE_LENGTH_ENDS + length if _LEAST_LENGTH <= length <= remaining - _BEFORE_LENGTH_ENDS else None


def check_append(data: Buffer, *, limits: BatchLimits, now_ms: int) -> list[BatchHeader]:
    """Return the headers of a client's append, which must keep the rules for clients' batches and the limits.

    Raises CorruptBatch and RecordTooLarge; the append is refused as a whole (I4).
    """
    if len(data) > limits.max_append_bytes:
        raise RecordTooLarge(
            f"an append of {len(data)} bytes was sent, but max_append_bytes is {limits.max_append_bytes}; send less at once"
        )
    headers = scan(data)
    if not headers:
        raise CorruptBatch("an append holds no batch; send at least one record", position=0)
    for header in headers:
        _check_rules(header, limits, now_ms)
    return headers


def stamp(buffer: bytearray | memoryview, headers: Sequence[BatchHeader], *, base_offset: int, leader_epoch: int) -> int:
    """Write offsets and leader epoch into batches in place, densely from `base_offset`; return the offset that follows.

    Touches only what lies outside the CRC. `headers` are those of `scan(buffer)`.
    """
    offset = base_offset
    for header in headers:
        _STAMP.pack_into(buffer, header.position, offset)
        _EPOCH.pack_into(buffer, header.position + _BEFORE_LENGTH_ENDS, leader_epoch)
        offset += header.record_count
    return offset


def unstamp(buffer: bytearray | memoryview, headers: Sequence[BatchHeader]) -> None:
    """Write what intake stores: base offset 0 and leader epoch -1 in every batch, whatever a client had put there."""
    for header in headers:
        _STAMP.pack_into(buffer, header.position, 0)
        _EPOCH.pack_into(buffer, header.position + _BEFORE_LENGTH_ENDS, -1)


def _read_header(view: memoryview, position: int, end: int) -> BatchHeader:
    remaining = end - position
    if remaining < HEADER_BYTES:
        raise CorruptBatch(f"{remaining} bytes remain, but a batch has at least {HEADER_BYTES}", position=position)
    (
        base_offset, length, leader_epoch, magic, crc, attributes, last_offset_delta, base_timestamp_ms, max_timestamp_ms,
        producer_id, producer_epoch, base_sequence, record_count,
    ) = _HEADER.unpack_from(view, position)  # fmt: skip
    if length < _LEAST_LENGTH or length > remaining - _BEFORE_LENGTH_ENDS:
        raise CorruptBatch(
            f"its length field says {length}, but it must lie between {_LEAST_LENGTH} and the"
            f" {remaining - _BEFORE_LENGTH_ENDS} bytes that follow it",
            position=position,
        )
    if magic != 2:
        raise CorruptBatch(f"its magic is {magic}, but only version 2 is known", position=position)
    size = length + _BEFORE_LENGTH_ENDS
    found = crc32c(view[position + _COVERED_FROM : position + size])
    if found != crc:
        raise CorruptBatch(f"its CRC-32C says {crc:#010x}, but its bytes give {found:#010x}", position=position)
    if record_count < 1:
        raise CorruptBatch(f"it claims {record_count} records, but a batch has at least 1", position=position)
    if last_offset_delta < record_count - 1:
        raise CorruptBatch(f"its last offset delta is {last_offset_delta}, too few for {record_count} records", position=position)
    if attributes & _COMPRESSION_BITS >= len(COMPRESSIONS):
        raise CorruptBatch(
            f"its compression is {attributes & _COMPRESSION_BITS}, but only {', '.join(COMPRESSIONS)} are known", position=position
        )
    if not attributes & _COMPRESSION_BITS and record_count > (size - HEADER_BYTES) // _LEAST_RECORD_BYTES:
        raise CorruptBatch(f"it claims {record_count} records in {size - HEADER_BYTES} bytes", position=position)
    return BatchHeader(
        position, size, base_offset, leader_epoch, attributes, last_offset_delta, base_timestamp_ms, max_timestamp_ms,
        producer_id, producer_epoch, base_sequence, record_count, crc,
    )  # fmt: skip


def _check_rules(header: BatchHeader, limits: BatchLimits, now_ms: int) -> None:
    at = header.position
    if header.size > limits.max_batch_bytes:
        raise RecordTooLarge(
            f"the batch at byte {at} has {header.size} bytes, but max_batch_bytes is {limits.max_batch_bytes};"
            " send smaller batches or records"
        )
    if header.record_count > limits.max_batch_records:
        raise RecordTooLarge(
            f"the batch at byte {at} has {header.record_count} records, but max_batch_records is"
            f" {limits.max_batch_records}; send smaller batches"
        )
    if header.last_offset_delta != header.record_count - 1:
        raise CorruptBatch(
            f"its last offset delta is {header.last_offset_delta}, but must be {header.record_count - 1} for {header.record_count} records",
            position=at,
        )
    if header.attributes & ~_COMPRESSION_BITS:
        raise CorruptBatch(
            f"its attributes are {header.attributes & 0xFFFF:#06x}; transactional, control and log-append-time batches are refused",
            position=at,
        )
    if header.base_timestamp_ms < 0 or header.max_timestamp_ms < header.base_timestamp_ms:
        raise CorruptBatch(
            f"its timestamps run from {header.base_timestamp_ms} to {header.max_timestamp_ms}; they must be Unix milliseconds, not before"
            " 1970, the largest not below the first",
            position=at,
        )
    if header.max_timestamp_ms > now_ms + limits.max_timestamp_skew_ms:
        raise CorruptBatch(
            f"its largest timestamp is {header.max_timestamp_ms}, more than max_timestamp_skew_ms = {limits.max_timestamp_skew_ms} ahead of"
            f" the broker's {now_ms}; mend the producer's clock",
            position=at,
        )
    producer = (header.producer_id, header.producer_epoch, header.base_sequence)
    if min(producer) < 0 and producer != (-1, -1, -1):
        raise CorruptBatch(
            f"its producer id, epoch and sequence are {producer}; either all are given, from 0 on, or all are -1",
            position=at,
        )
