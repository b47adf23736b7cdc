"""Segment objects: how they are put together, and every check that a reader makes. `docs/format.md` is the specification.

Knows bytes only: not where objects are kept, nor what SQL says of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice, pairwise
from struct import Struct

from google.protobuf.message import DecodeError

from tidelog.errors import CorruptBatch, CorruptSegment
from tidelog.proto.v1 import segment_pb2
from tidelog.records.batch import HEADER_BYTES as BATCH_HEADER_BYTES
from tidelog.records.batch import BatchHeader, Buffer, scan
from tidelog.records.checksum import crc32c
from tidelog.segments.outline import fields

VERSION = 1
HEADER_BYTES = 8
TRAILER_BYTES = 12
MAX_FOOTER_BYTES = 64 * 1024 * 1024
MAX_SEGMENT_BYTES = 1024 * 1024 * 1024
INDEX_EVERY_BYTES = 65536

_MAGIC = b"TIDE"
_HEADER = Struct("<4sHH")
_TRAILER = Struct("<II4s")
_MERGED = 8
"""Number of the footer's field that holds the sparse index."""
_OTHER_FIELDS = 1000
"""Fields of a footer that are neither chunks nor index entries, those of later releases among them."""


class SegmentKind(IntEnum):
    """What a segment holds."""

    INTAKE = 1
    """Chunks of many partitions, batches unstamped."""
    MERGED = 2
    """One partition, batches stamped."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who wrote a segment, and which one."""

    cluster_id: str
    broker_id: str
    broker_epoch: int
    sequence: int
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One partition's bytes inside a segment."""

    topic_id: bytes
    """16 bytes."""
    partition: int
    position: int
    """From the object's first byte."""
    length: int
    batch_count: int
    record_count: int
    max_timestamp_ms: int
    crc32c: int

    @property
    def end(self) -> int:
        """Position after the chunk's last byte."""
        return self.position + self.length


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Where a run of a merged chunk's batches begins, and the checksum of the run."""

    offset: int
    max_timestamp_ms: int
    """Largest in the chunk up to this run's end."""
    position: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class MergedRange:
    """Which offsets a merged segment holds, and the sparse index to them."""

    base_offset: int
    next_offset: int
    first_leader_epoch: int
    last_leader_epoch: int
    index: tuple[IndexEntry, ...]


@dataclass(frozen=True, slots=True)
class Footer:
    """What a segment says of itself."""

    kind: SegmentKind
    origin: Origin
    chunks: tuple[Chunk, ...]
    merged: MergedRange | None = None


@dataclass(frozen=True, slots=True)
class ChunkSource:
    """The batches of one partition, checked and in order, that are to become a chunk."""

    topic_id: bytes
    partition: int
    parts: Sequence[Buffer]
    """Whole batches, back to back when joined."""
    headers: Sequence[BatchHeader]
    """Of all the batches, in order; their positions are not looked at."""


# ---- writing


def encode_intake(sources: Iterable[ChunkSource], origin: Origin) -> tuple[list[Buffer], Footer]:
    """Return an intake segment as parts, payload not copied, and its footer. Sources may come in any order.

    Raises CorruptSegment, as `encode_merged` does, rather than make what readers would refuse.
    """
    chunks: list[Chunk] = []
    parts: list[Buffer] = [_HEADER.pack(_MAGIC, VERSION, SegmentKind.INTAKE)]
    position = HEADER_BYTES
    for source in sorted(sources, key=lambda source: (source.topic_id, source.partition)):
        chunk = _chunk(source, position)
        position = chunk.end
        chunks.append(chunk)
        parts.extend(source.parts)
    footer = Footer(SegmentKind.INTAKE, origin, tuple(chunks))
    return [*parts, *_ending(footer)], footer


def encode_merged(source: ChunkSource, origin: Origin, *, base_offset: int, next_offset: int) -> tuple[list[Buffer], Footer]:
    """Return a merged segment of stamped batches as parts, and its footer with the sparse index."""
    chunk = _chunk(source, HEADER_BYTES)
    index = _index(source.parts, source.headers)
    first_epoch, last_epoch = source.headers[0].leader_epoch, source.headers[-1].leader_epoch
    footer = Footer(SegmentKind.MERGED, origin, (chunk,), MergedRange(base_offset, next_offset, first_epoch, last_epoch, index))
    return [_HEADER.pack(_MAGIC, VERSION, SegmentKind.MERGED), *source.parts, *_ending(footer)], footer


class MergedEncoder:
    """Puts a merged segment together piece by piece, so that nobody has to hold all of it: the bytes that `encode_merged` makes."""

    def __init__(self, topic_id: bytes, partition: int, origin: Origin, *, base_offset: int, next_offset: int) -> None:
        self._topic_id = topic_id
        self._partition = partition
        self._origin = origin
        self._range = base_offset, next_offset
        self._epochs: tuple[int, int] | None = None
        self._length = self._batches = self._records = self._crc = self._largest = 0
        self._index: list[IndexEntry] = []
        self._entry: tuple[int, int] | None = None
        """Offset and position, within the chunk, of the index entry that is being gathered."""
        self._entry_crc = 0

    def begin(self) -> bytes:
        """Return what comes before the batches."""
        return _HEADER.pack(_MAGIC, VERSION, SegmentKind.MERGED)

    def add(self, data: Buffer, headers: Sequence[BatchHeader]) -> None:
        """Take stamped batches that follow on those before; `headers` are those of `scan(data)`."""
        if not headers:
            return
        view = memoryview(data)
        counted = 0
        for header in headers:
            at = self._length + header.position
            if self._entry is None or at - self._entry[1] >= INDEX_EVERY_BYTES:
                self._entry_crc = crc32c(view[counted : header.position], self._entry_crc)
                counted = header.position
                self._end_entry()
                self._entry = header.base_offset, at
            self._largest = max(self._largest, header.max_timestamp_ms)
            self._records += header.record_count
        self._entry_crc = crc32c(view[counted:], self._entry_crc)
        self._crc = crc32c(view, self._crc)
        self._batches += len(headers)
        self._length += len(view)
        self._epochs = (self._epochs[0] if self._epochs else headers[0].leader_epoch, headers[-1].leader_epoch)

    def end(self) -> tuple[list[bytes], Footer]:
        """Return what comes after the batches, and the footer. Raises CorruptSegment rather than end what readers would refuse."""
        if self._epochs is None:
            raise CorruptSegment("a merged segment was to be made of no batches", position=HEADER_BYTES)
        self._end_entry()
        chunk = Chunk(self._topic_id, self._partition, HEADER_BYTES, self._length, self._batches, self._records, self._largest, self._crc)
        footer = Footer(SegmentKind.MERGED, self._origin, (chunk,), MergedRange(*self._range, *self._epochs, tuple(self._index)))
        return _ending(footer), footer

    def _end_entry(self) -> None:
        if self._entry is not None:
            offset, position = self._entry
            self._index.append(IndexEntry(offset, self._largest, HEADER_BYTES + position, self._entry_crc))
        self._entry_crc = 0


def _chunk(source: ChunkSource, position: int) -> Chunk:
    checksum = length = 0
    for part in source.parts:
        checksum = crc32c(part, checksum)
        length += len(part)
    sizes = sum(header.size for header in source.headers)
    if length != sizes or not sizes:
        raise CorruptSegment(f"a chunk of {length} bytes was to be made of batches of {sizes} bytes", position=position)
    return Chunk(
        topic_id=source.topic_id,
        partition=source.partition,
        position=position,
        length=length,
        batch_count=len(source.headers),
        record_count=sum(header.record_count for header in source.headers),
        max_timestamp_ms=max(header.max_timestamp_ms for header in source.headers),
        crc32c=checksum,
    )


def _index(parts: Iterable[Buffer], headers: Sequence[BatchHeader]) -> tuple[IndexEntry, ...]:
    """Return the sparse index that the merged chunk of these bytes has: the writer's, and the reader's to compare with."""
    starts: list[tuple[int, int, int]] = []  # offset, position in the chunk, largest timestamp before
    position = 0
    largest = 0
    for header in headers:
        if not starts or position - starts[-1][1] >= INDEX_EVERY_BYTES:
            starts.append((header.base_offset, position, largest))
        largest = max(largest, header.max_timestamp_ms)
        position += header.size
    ends = [*starts[1:], (0, position, largest)]
    checksums = _checksums(parts, (end - start for (_, start, _), (_, end, _) in zip(starts, ends, strict=True)))
    return tuple(
        IndexEntry(offset, most, HEADER_BYTES + start, checksum)
        for (offset, start, _), (_, _, most), checksum in zip(starts, ends, checksums, strict=True)
    )


def _checksums(parts: Iterable[Buffer], lengths: Iterable[int]) -> Iterator[int]:
    """Yield the CRC-32C of consecutive runs of so many bytes, without joining the parts."""
    views = iter([memoryview(part) for part in parts])
    view = memoryview(b"")
    for length in lengths:
        checksum, left = 0, length
        while left:
            view = view or next(views)
            checksum = crc32c(view[:left], checksum)
            view, left = view[left:], left - min(left, len(view))
        yield checksum


def _ending(footer: Footer) -> list[bytes]:
    origin = footer.origin
    message = segment_pb2.SegmentFooter(
        cluster_id=origin.cluster_id,
        broker_id=origin.broker_id,
        broker_epoch=origin.broker_epoch,
        sequence=origin.sequence,
        created_at_ms=origin.created_at_ms,
        kind=segment_pb2.SegmentKind.Name(footer.kind.value),
        chunks=[
            segment_pb2.Chunk(
                topic_id=chunk.topic_id,
                partition=chunk.partition,
                position=chunk.position,
                length=chunk.length,
                batch_count=chunk.batch_count,
                record_count=chunk.record_count,
                max_timestamp_ms=chunk.max_timestamp_ms,
                crc32c=chunk.crc32c,
            )
            for chunk in footer.chunks
        ],
    )
    if footer.merged is not None:
        merged = footer.merged
        message.merged.base_offset = merged.base_offset
        message.merged.next_offset = merged.next_offset
        message.merged.first_leader_epoch = merged.first_leader_epoch
        message.merged.last_leader_epoch = merged.last_leader_epoch
        for entry in merged.index:
            message.merged.index.add(
                offset=entry.offset, max_timestamp_ms=entry.max_timestamp_ms, position=entry.position, crc32c=entry.crc32c
            )
    body = message.SerializeToString(deterministic=True)
    _check_chunks(footer, start := footer.chunks[-1].end if footer.chunks else HEADER_BYTES)
    if footer.merged is not None:
        _check_range(footer.merged, footer.chunks[0], start)
    if len(body) > MAX_FOOTER_BYTES or start + len(body) + TRAILER_BYTES > MAX_SEGMENT_BYTES:
        raise CorruptSegment(
            f"a segment of {start} bytes and a footer of {len(body)} was to be made, but at most {MAX_SEGMENT_BYTES} in all and"
            f" {MAX_FOOTER_BYTES} are read",
            position=start,
        )
    return [body, _TRAILER.pack(len(body), crc32c(body), _MAGIC)]


# ---- reading


def footer_start(tail: Buffer, *, size: int) -> int:
    """Return where the footer of an object of `size` bytes begins, given its last bytes, at least the trailer."""
    if size < HEADER_BYTES + TRAILER_BYTES:
        raise CorruptSegment(f"the object has {size} bytes, but a segment has at least {HEADER_BYTES + TRAILER_BYTES}", position=0)
    length: int
    length, _, magic = _TRAILER.unpack_from(tail, len(tail) - TRAILER_BYTES)
    if magic != _MAGIC:
        raise CorruptSegment(f"it ends with {magic!r}, but must end with {_MAGIC!r}", position=size - 4)
    room = min(size - HEADER_BYTES - TRAILER_BYTES, MAX_FOOTER_BYTES)
    if not 0 < length <= room:
        raise CorruptSegment(f"the footer's length is {length}, but must lie between 1 and {room}", position=size - TRAILER_BYTES)
    return size - TRAILER_BYTES - length


def decode_footer(tail: Buffer, *, size: int) -> Footer:
    """Return the checked footer of an object of `size` bytes, given its last bytes, from `footer_start` at least.

    Chunks and index are checked against each other and against the object's size, not against bytes that are not here.
    """
    start = footer_start(tail, size=size)
    if size - start > len(tail):
        raise CorruptSegment(
            f"the footer's length says that it begins at {start}, but the object's last {len(tail)} bytes were to hold it",
            position=size - TRAILER_BYTES,
        )
    view = memoryview(tail)[len(tail) - (size - start) :]
    length, expected, _ = _TRAILER.unpack_from(view, len(view) - TRAILER_BYTES)
    body = view[:length]
    found = crc32c(body)
    if found != expected:
        raise CorruptSegment(f"the footer's CRC-32C says {expected:#010x}, but its bytes give {found:#010x}", position=start)
    _check_counts(body, start)
    try:
        message = segment_pb2.SegmentFooter.FromString(bytes(body))
    except DecodeError as error:
        raise CorruptSegment(f"the footer is no SegmentFooter message: {error}", position=start) from error
    footer = _footer(message, start)
    _check_chunks(footer, start)
    if footer.merged is not None:
        _check_range(footer.merged, footer.chunks[0], start)
    return footer


def decode(data: Buffer) -> Footer:
    """Check a whole object, every byte of it, and return its footer. Raises CorruptSegment, saying what and where."""
    if len(data) > MAX_SEGMENT_BYTES:
        raise CorruptSegment(f"the object has {len(data)} bytes, but a segment has at most {MAX_SEGMENT_BYTES}", position=0)
    footer_start(data, size=len(data))
    _raise_first(header_defects(data))
    footer = decode_footer(data, size=len(data))
    _raise_first(kind_defects(data, footer))
    view = memoryview(data)
    for chunk in footer.chunks:
        content = view[chunk.position : chunk.end]
        headers = decode_chunk(content, chunk)
        if footer.merged is None:
            _raise_first(unstamped_defects(headers, chunk))
        else:
            _raise_first(stamped_defects(headers, chunk, footer.merged))
            _raise_first(index_defects(content, headers, chunk, footer.merged))
    return footer


def decode_chunk(data: Buffer, chunk: Chunk) -> list[BatchHeader]:
    """Check a chunk's bytes against the footer and return its batches' headers, whose positions count from the chunk's start."""
    _raise_first(checksum_defects(data, chunk))
    try:
        headers = scan(data)
    except CorruptBatch as error:
        raise CorruptSegment(f"{_name(chunk)}: {error.problem}", position=chunk.position + error.position) from error
    _raise_first(count_defects(headers, chunk))
    return headers


def _check_counts(body: memoryview, start: int) -> None:
    """Refuse more chunks or index entries than the bytes before the footer can hold."""
    room = start - HEADER_BYTES
    most_chunks, most_entries = room // BATCH_HEADER_BYTES, room // INDEX_EVERY_BYTES + 1
    count = entries = 0
    for count, (number, content) in enumerate(fields(body), 1):
        if count > most_chunks + _OTHER_FIELDS:
            break
        if number == _MERGED:
            entries += sum(1 for _ in islice(fields(content), most_entries + _OTHER_FIELDS + 1))
            if entries > most_entries + _OTHER_FIELDS:
                break
    else:
        return
    raise CorruptSegment(
        f"the footer lists {count} chunks and {entries} index entries or more, but {room} bytes hold {most_chunks} and {most_entries}",
        position=start,
    )


def _footer(message: segment_pb2.SegmentFooter, start: int) -> Footer:
    if int(message.kind) not in set(SegmentKind):
        raise CorruptSegment(f"the footer says kind {message.kind}, which this release does not know", position=start)
    kind = SegmentKind(int(message.kind))
    if not message.cluster_id or not message.broker_id:
        raise CorruptSegment("the footer names no cluster or no broker", position=start)
    origin = Origin(message.cluster_id, message.broker_id, message.broker_epoch, message.sequence, message.created_at_ms)
    chunks = tuple(
        Chunk(c.topic_id, c.partition, c.position, c.length, c.batch_count, c.record_count, c.max_timestamp_ms, c.crc32c)
        for c in message.chunks
    )
    merged = None
    if message.HasField("merged"):
        m = message.merged
        index = tuple(IndexEntry(e.offset, e.max_timestamp_ms, e.position, e.crc32c) for e in m.index)
        merged = MergedRange(m.base_offset, m.next_offset, m.first_leader_epoch, m.last_leader_epoch, index)
    if (merged is not None) != (kind is SegmentKind.MERGED):
        raise CorruptSegment("the footer has a merged range but in merged segments, or lacks it in one", position=start)
    return Footer(kind, origin, chunks, merged)


def _check_chunks(footer: Footer, start: int) -> None:
    if not footer.chunks or (footer.merged is not None and len(footer.chunks) != 1):
        raise CorruptSegment(
            f"the footer lists {len(footer.chunks)} chunks, but there must be one, or in an intake segment more", position=start
        )
    position = HEADER_BYTES
    before: tuple[bytes, int] = (b"", -1)
    for chunk in footer.chunks:
        if len(chunk.topic_id) != 16:
            raise CorruptSegment(f"the footer names a topic by {len(chunk.topic_id)} bytes, but ids have 16", position=start)
        if (chunk.topic_id, chunk.partition) <= before:
            raise CorruptSegment(f"{_name(chunk)} does not come after the one before it", position=start)
        if chunk.position != position or not 0 < chunk.length <= start - position:
            raise CorruptSegment(
                f"{_name(chunk)} is said to lie at {chunk.position} with {chunk.length} bytes, but must begin at"
                f" {position} and end by {start}",
                position=start,
            )
        before = (chunk.topic_id, chunk.partition)
        position = chunk.end
    if position != start:
        raise CorruptSegment(f"the chunks end at {position}, but the footer begins at {start}", position=position)


def _check_range(merged: MergedRange, chunk: Chunk, start: int) -> None:
    places = [entry.position for entry in merged.index]
    offsets = [entry.offset for entry in merged.index]
    if not 0 <= merged.base_offset <= merged.next_offset - chunk.record_count:
        raise CorruptSegment(
            f"offsets {merged.base_offset} to {merged.next_offset} cannot hold {chunk.record_count} records", position=start
        )
    ascending = all(a < b for a, b in pairwise(places)) and all(a < b for a, b in pairwise(offsets))
    if not places or places[0] != chunk.position or places[-1] >= chunk.end or not ascending:
        raise CorruptSegment(
            f"the sparse index must ascend from {chunk.position} to below {chunk.end}, but its {len(places)} positions do not",
            position=start,
        )
    if offsets[0] < merged.base_offset or offsets[-1] >= merged.next_offset:
        raise CorruptSegment(
            f"the sparse index runs from offset {offsets[0]} to {offsets[-1]}, beyond {merged.base_offset} to {merged.next_offset}",
            position=start,
        )
    times = [entry.max_timestamp_ms for entry in merged.index]
    if times != sorted(times) or times[-1] != chunk.max_timestamp_ms:
        raise CorruptSegment(
            f"the largest timestamps in the sparse index must ascend to {chunk.max_timestamp_ms}, but do not", position=start
        )


def unstamped_defects(headers: Sequence[BatchHeader], chunk: Chunk) -> Iterator[CorruptSegment]:
    """Yield what is wrong with the stamps of an intake segment's batches: they have none."""
    for header in headers:
        if (header.base_offset, header.leader_epoch, header.last_offset_delta) != (0, -1, header.record_count - 1):
            yield CorruptSegment(
                f"{_name(chunk)}: a batch of an intake segment is stamped with offset {header.base_offset} and leader epoch"
                f" {header.leader_epoch}, or has gaps",
                position=chunk.position + header.position,
            )


def stamped_defects(headers: Sequence[BatchHeader], chunk: Chunk, merged: MergedRange) -> Iterator[CorruptSegment]:
    """Yield what is wrong with the stamps of a merged segment's batches: they ascend within the footer's range."""
    offset, epoch = merged.base_offset, merged.first_leader_epoch
    for header in headers:
        at = chunk.position + header.position
        if header.base_offset < offset or header.next_offset > merged.next_offset:
            yield CorruptSegment(
                f"a batch holds offsets {header.base_offset} to {header.next_offset}, but they must lie in {offset} to"
                f" {merged.next_offset}",
                position=at,
            )
        if not epoch <= header.leader_epoch <= merged.last_leader_epoch:
            yield CorruptSegment(
                f"a batch has leader epoch {header.leader_epoch}, but it must lie in {epoch} to {merged.last_leader_epoch}", position=at
            )
        offset, epoch = header.next_offset, header.leader_epoch


def index_defects(data: Buffer, headers: Sequence[BatchHeader], chunk: Chunk, merged: MergedRange) -> Iterator[CorruptSegment]:
    """Yield what is wrong with the sparse index of a merged chunk, given all of its batches."""
    index = _index([data], headers)
    for found, claimed in zip(index, merged.index, strict=False):
        if found != claimed:
            yield CorruptSegment(f"the sparse index says {claimed}, but the bytes give {found}", position=claimed.position)
    if len(index) != len(merged.index):
        yield CorruptSegment(
            f"the sparse index has {len(merged.index)} entries, which is not one for every 64 KiB", position=chunk.position
        )


def header_defects(data: Buffer) -> Iterator[CorruptSegment]:
    """Yield what is wrong with an object's first bytes, given at least those."""
    magic, version, _ = _HEADER.unpack_from(data, 0)
    if magic != _MAGIC:
        yield CorruptSegment(f"it begins with {magic!r}, but must begin with {_MAGIC!r}", position=0)
    if version != VERSION:
        yield CorruptSegment(f"its version is {version}, but this release reads version {VERSION}", position=4)


def kind_defects(data: Buffer, footer: Footer) -> Iterator[CorruptSegment]:
    """Yield where header and footer name different kinds."""
    kind = _HEADER.unpack_from(data, 0)[2]
    if kind != footer.kind:
        yield CorruptSegment(f"its header says kind {kind}, but its footer {footer.kind.value}", position=6)


def checksum_defects(data: Buffer, chunk: Chunk) -> Iterator[CorruptSegment]:
    """Yield where a chunk's bytes are not those that the footer names."""
    found = crc32c(data)
    if len(data) != chunk.length or found != chunk.crc32c:
        yield CorruptSegment(
            f"{_name(chunk)} has {len(data)} bytes with CRC-32C {found:#010x}, but the footer says"
            f" {chunk.length} with {chunk.crc32c:#010x}",
            position=chunk.position,
        )


def count_defects(headers: Sequence[BatchHeader], chunk: Chunk) -> Iterator[CorruptSegment]:
    """Yield where a chunk's batches are not those that the footer counts."""
    counted = (len(headers), sum(h.record_count for h in headers), max((h.max_timestamp_ms for h in headers), default=0))
    claimed = (chunk.batch_count, chunk.record_count, chunk.max_timestamp_ms)
    if counted != claimed:
        yield CorruptSegment(
            f"{_name(chunk)} has (batches, records, largest timestamp) {counted}, but the footer says {claimed}", position=chunk.position
        )


def _raise_first(defects: Iterator[CorruptSegment]) -> None:
    for defect in defects:
        raise defect


def _name(chunk: Chunk) -> str:
    return f"the chunk of partition {chunk.partition} of topic {chunk.topic_id.hex()}"
