"""Large fields are joined to messages and taken out of them, and protobuf cannot tell."""

from unittest import mock

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tidelog import framing
from tidelog.client import wire as client_wire
from tidelog.proto.v1 import log_pb2
from tidelog.server import wire

MOST_NUMBER = 2**64 - 1
appends = st.builds(
    log_pb2.ProduceAppend,
    request_id=st.integers(0, MOST_NUMBER),
    topic=st.text(max_size=20),
    partition=st.integers(0, 2**32 - 1),
    timeout_ms=st.integers(0, 2**32 - 1),
    expected_next_offset=st.none() | st.integers(-1, 2**63 - 1),
    fencing_token=st.none() | st.text(max_size=20),
)
sizes = st.sampled_from([0, 1, 127, 128, 20_000, 70_000])
some_bytes = bytes(range(256)) * 300


def told(data: bytes) -> list[log_pb2.ProduceAppend]:
    """What the server makes of a message, its batches put back."""
    found = []
    for append, batches in wire.produce_request(data):
        assert not append.batches or append.batches == bytes(batches)
        append.batches = bytes(batches)
        found.append(append)
    return found


@given(st.lists(st.tuples(appends, sizes), max_size=5))
def test_what_a_client_joins_is_what_protobuf_would_make_and_what_the_server_takes_apart(
    given: list[tuple[log_pb2.ProduceAppend, int]],
) -> None:
    data = client_wire.produce_request([(append, some_bytes[:size]) for append, size in given])
    whole = []
    for append, size in given:
        whole.append(log_pb2.ProduceAppend())
        whole[-1].CopyFrom(append)
        whole[-1].batches = some_bytes[:size]
    assert list(log_pb2.ProduceRequest.FromString(data).appends) == whole
    assert told(data) == whole
    assert told(log_pb2.ProduceRequest(appends=whole).SerializeToString()) == whole


def field(number: int, kind: int, content: bytes) -> bytes:
    return bytes([number << 3 | kind]) + content


def with_length(number: int, content: bytes) -> bytes:
    size = len(content)
    return field(number, 2, bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + content)


def test_fields_of_later_releases_are_passed_over_and_of_several_batches_the_last_count() -> None:
    append = b"".join(
        [
            field(15, 0, b"\xff" * 9 + b"\x01"), with_length(4, b"first"), field(15, 1, b"12345678"), with_length(2, b"t"),
            field(15, 5, b"1234"), with_length(4, some_bytes), with_length(15, b"?"),
        ]
    )  # fmt: skip
    data = field(15, 5, b"1234") + with_length(1, append) + with_length(15, b"?")
    ((found, batches),) = wire.produce_request(data)
    assert (found.topic, bytes(batches)) == ("t", some_bytes)
    assert next(iter(log_pb2.ProduceRequest.FromString(data).appends)).batches == some_bytes


no_groups = st.lists(st.sampled_from([byte for byte in range(256) if byte & 7 not in (3, 4)]), max_size=40).map(bytes)


@given(no_groups, st.integers(0, 200))
@example(b"\x80" * 11, 0)
@example(b"\x02\x00", 0)
@example(b"\xf8\xff\xff\xff\xff\x01\x00", 0)
@example(b"\x78" + b"\xff" * 9 + b"\x7f", 0)
def test_what_protobuf_cannot_parse_is_refused_in_large_messages_too(garbage: bytes, cut: int) -> None:
    whole = log_pb2.ProduceRequest(appends=[log_pb2.ProduceAppend(topic="t", batches=some_bytes)]).SerializeToString()
    for data in (whole + garbage, whole[: len(whole) - cut] + garbage):
        try:
            expected = list(log_pb2.ProduceRequest.FromString(data).appends)
        except DecodeError:
            with pytest.raises(DecodeError):
                wire.produce_request(data)
        else:
            assert told(data) == expected


def padded_varint(value: int, padding: int) -> bytes:
    """A number in more bytes than it needs, which is allowed up to ten."""
    found = framing._varint(value)
    return found if not padding else found[:-1] + bytes([found[-1] | 0x80]) + b"\x80" * (padding - 1) + b"\0"


def any_field(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """A field of a number that is known or not, of any wire type, whatever it should have: what comes after it may be cut short."""
    number = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 15, 16, 2**29 - 1])
    padding = st.sampled_from([0, 0, 0, 1, 3])
    tagged = st.builds(lambda n, kind, more: padded_varint(n << 3 | kind, more), number, st.sampled_from([0, 1, 2, 2, 2, 5]), padding)
    held = st.one_of(
        st.builds(lambda data, more: padded_varint(len(data), more) + data, content, padding),
        st.builds(padded_varint, st.integers(0, MOST_NUMBER), padding),
        st.binary(min_size=4, max_size=8),
    )
    return st.builds(bytes.__add__, tagged, held)


def any_message(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(any_field(content), max_size=5).map(b"".join)


hostile = st.builds(
    lambda data, keep, at, byte: (data[:at] + bytes([byte]) + data[at + 1 :])[: max(0, len(data) - keep)],
    any_message(any_message(st.one_of(st.text(max_size=5).map(str.encode), st.binary(max_size=5)))),
    st.sampled_from([0, 0, 0, 1, 2, 5]),
    st.integers(0, 40),
    st.integers(0, 255),
)


@given(hostile)
@settings(max_examples=300, deadline=None)
def test_whatever_bytes_come_are_told_as_protobuf_tells_them(data: bytes) -> None:
    with mock.patch.object(wire, "_LARGE_BYTES", 0):
        try:
            expected = list(log_pb2.ProduceRequest.FromString(data).appends)
        except DecodeError:
            with pytest.raises(DecodeError):
                wire.produce_request(data)
            return
        found, refused = None, ""
        try:
            found = told(data)
        except DecodeError as error:
            refused = str(error)
        assert found == expected or "wire type" in refused, "groups alone are refused here and not there"


offsets = st.integers(0, 2**63 - 1)
pushed = st.one_of(
    st.builds(
        log_pb2.Batches,
        subscription_id=st.integers(1, MOST_NUMBER),
        base_offset=offsets,
        next_offset=offsets,
        high_watermark=offsets,
        log_start_offset=offsets,
        batches=st.binary(max_size=20),
    ).map(lambda batches: log_pb2.ConsumeResponse(batches=batches)),
    st.builds(log_pb2.Progress, subscription_id=st.integers(1, MOST_NUMBER), next_offset=offsets).map(
        lambda progress: log_pb2.ConsumeResponse(progress=progress)
    ),
    st.builds(log_pb2.SubscriptionEnd, subscription_id=st.integers(1, MOST_NUMBER), next_offset=offsets).map(
        lambda end: log_pb2.ConsumeResponse(end=end)
    ),
)


@given(pushed, st.sampled_from([0, 0, 0, 1, 2, 3, 10]), st.integers(0, 60), st.integers(0, 255))
@settings(max_examples=300)
def test_what_a_broker_pushes_is_told_as_protobuf_tells_it(response: log_pb2.ConsumeResponse, cut: int, at: int, byte: int) -> None:
    whole = response.SerializeToString()
    found, batches = client_wire.consume_response(whole)
    if response.HasField("batches"):
        found.batches.batches = bytes(batches)
    assert found == response
    damaged = (whole[:at] + bytes([byte]) + whole[at + 1 :])[: max(0, len(whole) - cut)]
    try:
        log_pb2.ConsumeResponse.FromString(damaged)
    except DecodeError:
        with pytest.raises(DecodeError):
            client_wire.consume_response(damaged)


def test_groups_which_no_message_here_uses_are_refused_in_large_messages() -> None:
    with pytest.raises(DecodeError, match="wire type 3"):
        wire.produce_request(with_length(1, with_length(4, some_bytes)) + field(15, 3, field(15, 4, b"")))


def test_batches_are_views_of_a_large_message_only_where_they_are_a_large_part_of_it() -> None:
    append = log_pb2.ProduceAppend(topic="t")
    data = client_wire.produce_request([(append, some_bytes), (append, b"little")])
    large, little = (batches for _, batches in wire.produce_request(data))
    assert isinstance(large, memoryview)
    assert large.obj is data
    assert little == b"little"
    assert isinstance(little, bytes)
