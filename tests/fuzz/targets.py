"""What a fuzzer drives: every decoder that meets outside bytes, and what it may answer.

A target returns for whatever it accepts or refuses as promised; anything else that it raises is a finding. Where a checksum
would stop a fuzzer at the door, a second target puts the checksum right first.
"""

from collections.abc import Callable
from contextlib import suppress
from struct import Struct

from crc32c import crc32c
from google.protobuf.message import DecodeError, Message
from tidelog.broker.ledger import committed_offsets
from tidelog.errors import CorruptBatch, CorruptSegment, InvalidRequest, RecordTooLarge, TidelogError
from tidelog.metadata.topics import TopicConfig
from tidelog.proto.v1 import admin_pb2, log_pb2, peers_pb2, segment_pb2
from tidelog.records.batch import HEADER_BYTES, BatchLimits, check_append, scan, stamp, unstamp
from tidelog.records.codec import decode, decode_buffers, decode_values
from tidelog.records.compression import DecompressionLimits
from tidelog.segments.format import TRAILER_BYTES, decode_footer
from tidelog.segments.format import decode as decode_segment
from tidelog.segments.inspection import inspect
from tidelog.server import peer_wire, wire

NOW_MS = 1_700_000_000_000
SMALL = BatchLimits(max_append_bytes=1 << 20, max_batch_bytes=1 << 19, max_batch_records=1000)
ROOM = DecompressionLimits(max_bytes=1 << 20)
_BEFORE_LENGTH_ENDS = 12
_CRC_AT = 17
_COVERED_FROM = 21
_MAGIC_AT = 16
_COUNT_AT = 57
_LENGTH = Struct(">i")
_CRC = Struct(">I")
_TRAILER = Struct("<II4s")
_PADDING = b"\x7a\x80\x80\x04" + bytes(1 << 16)
"""A field that no message has."""


def batches(data: bytes) -> None:
    """A client's append, as it came: accepted as it is, or refused with a position."""
    try:
        headers = check_append(data, limits=SMALL, now_ms=NOW_MS)
    except (CorruptBatch, RecordTooLarge) as error:
        _says_where(error, data)
        return
    assert [header.position for header in headers] == [sum(h.size for h in headers[:i]) for i in range(len(headers))]
    assert headers[-1].position + headers[-1].size == len(data)
    copy = bytearray(data)
    after = stamp(copy, headers, base_offset=7, leader_epoch=3)
    assert after == 7 + sum(header.record_count for header in headers)
    unstamp(copy, headers)
    assert [header.crc for header in scan(copy)] == [header.crc for header in headers]


def records(data: bytes) -> None:
    """A batch whose length, magic and checksum are put right: its records, or a refusal."""
    if len(data) < HEADER_BYTES:
        return
    batch = bytearray(data)
    _LENGTH.pack_into(batch, 8, len(batch) - _BEFORE_LENGTH_ENDS)
    batch[_MAGIC_AT] = 2
    _CRC.pack_into(batch, _CRC_AT, crc32c(memoryview(batch)[_COVERED_FROM:]))
    batches(bytes(batch))
    try:
        found = decode(batch, limits=ROOM)
    except CorruptBatch as error:
        _says_where(error, batch)
        return
    assert 0 < len(found) <= _LENGTH.unpack_from(batch, _COUNT_AT)[0]
    assert decode_values(batch, limits=ROOM) == [record.value for record in found]
    assert decode_buffers(batch, limits=ROOM).values == b"".join(record.value or b"" for record in found)


def footer(data: bytes) -> None:
    """The last bytes of an object, as they came."""
    if len(data) >= TRAILER_BYTES:
        _footer(data)


def footer_mended(data: bytes) -> None:
    """A footer whose trailer is put right."""
    _footer(data + _TRAILER.pack(len(data), crc32c(data), b"TIDE"))


def _footer(tail: bytes) -> None:
    try:
        found = decode_footer(tail, size=len(tail) + 4096)
    except CorruptSegment as error:
        _says_where(error, bytes(4096) + tail)
        return
    assert found.chunks
    assert all(chunk.end <= len(tail) + 4096 for chunk in found.chunks)


def segment(data: bytes) -> None:
    """A whole object: sound, or with its first defect; and what an inspection makes of it."""
    defects = inspect(data, most_defects=10).defects
    try:
        decode_segment(data)
    except CorruptSegment as error:
        _says_where(error, data)
        sound = False
    else:
        sound = True
    assert sound == (not defects)


def segment_mended(data: bytes) -> None:
    """A whole object of one chunk, whose batches' and footer's checksums are put right: the fuzzer gives batches, a byte says the kind."""
    if len(data) < HEADER_BYTES + 1:
        return
    kind, content = 1 + data[0] % 2, bytearray(data[1:])
    _LENGTH.pack_into(content, 8, len(content) - _BEFORE_LENGTH_ENDS)
    content[_MAGIC_AT] = 2
    _CRC.pack_into(content, _CRC_AT, crc32c(memoryview(content)[_COVERED_FROM:]))
    count = max(0, _LENGTH.unpack_from(content, _COUNT_AT)[0])
    message = segment_pb2.SegmentFooter(cluster_id="c", broker_id="b", broker_epoch=1, sequence=1)
    message.kind = segment_pb2.SegmentKind.Name(kind)  # type: ignore[assignment]
    message.chunks.add(topic_id=bytes(16), position=8, length=len(content), batch_count=1, record_count=count, crc32c=crc32c(content))
    if kind == 2:
        message.merged.next_offset = count
        message.merged.index.add(position=8, crc32c=crc32c(content))
    body = message.SerializeToString()
    segment(b"TIDE" + bytes((1, 0, kind, 0)) + bytes(content) + body + _TRAILER.pack(len(body), crc32c(body), b"TIDE"))


def _produce(message: log_pb2.ProduceRequest) -> None:
    for each in message.appends:
        request = wire.append_request(each, each.batches)
        check_append(request.batches, limits=SMALL, now_ms=NOW_MS)


def _append(message: log_pb2.AppendRequest) -> None:
    wire.records(message.records, now_ms=NOW_MS)


def _consume(message: log_pb2.ConsumeRequest) -> None:
    for each in message.add:
        wire.position(each.start)


def _offsets(message: log_pb2.ListOffsetsRequest) -> None:
    for each in message.queries:
        wire.position(each.at)


def _topic(message: admin_pb2.CreateTopicRequest) -> None:
    wire.topic_config(message.config, defaults=TopicConfig())


def _references(message: peers_pb2.ReferencesRequest) -> None:
    for each in message.references:
        reference = peer_wire.reference(each)
        committed_offsets(reference, ())
        assert peer_wire.reference(peer_wire.reference_message(reference)) == reference


def _answers(message: peers_pb2.ReferencesResponse) -> None:
    for each in message.answers:
        answer = peer_wire.answer(each)
        assert peer_wire.answer(peer_wire.answer_message(answer)) == answer


def _news(message: peers_pb2.FeedResponse) -> None:
    for each in message.news:
        news = peer_wire.news(each)
        assert peer_wire.news(peer_wire.news_message(news)) == news


_MESSAGES: tuple[tuple[type[Message], Callable[..., None]], ...] = (
    (log_pb2.ProduceRequest, _produce),
    (log_pb2.AppendRequest, _append),
    (log_pb2.ConsumeRequest, _consume),
    (log_pb2.ListOffsetsRequest, _offsets),
    (admin_pb2.CreateTopicRequest, _topic),
    (peers_pb2.ReferencesRequest, _references),
    (peers_pb2.ReferencesResponse, _answers),
    (peers_pb2.FeedResponse, _news),
)


def requests(data: bytes) -> None:
    """Messages of clients and brokers: the first byte says which. Every error is one that may be shown."""
    if not data:
        return
    kind, look = _MESSAGES[data[0] % len(_MESSAGES)]
    try:
        message = kind.FromString(data[1:])
        look(message)
    except DecodeError as error:
        _may_be_shown(wire.known(error))
    except TidelogError as error:
        _may_be_shown(error)


def framed(data: bytes) -> None:
    """A Produce message large enough for its batches to be taken out of it: protobuf finds the same, or refuses it as well."""
    large = data + _PADDING
    refusal = ""
    expected: list[bytes] | None = None
    found: list[bytes] | None = None
    with suppress(DecodeError):
        expected = [each.SerializeToString(deterministic=True) for each in log_pb2.ProduceRequest.FromString(large).appends]
    try:
        appends = wire.produce_request(large)
    except DecodeError as error:
        refusal = str(error)
    else:
        for append, taken_out in appends:
            append.batches = bytes(taken_out)
        found = [append.SerializeToString(deterministic=True) for append, _ in appends]
    assert found == expected or "wire type" in refusal  # groups, which no message here uses


def _says_where(error: TidelogError, data: bytes | bytearray) -> None:
    assert not isinstance(error, CorruptBatch | CorruptSegment) or 0 <= error.position <= len(data)


def _may_be_shown(error: TidelogError) -> None:
    assert isinstance(error, InvalidRequest | CorruptBatch | RecordTooLarge)
    wire.error_message(error)
    wire.status_details(error)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "batches": batches,
    "records": records,
    "footer": footer,
    "footer_mended": footer_mended,
    "segment": segment,
    "segment_mended": segment_mended,
    "requests": requests,
    "framed": framed,
}
