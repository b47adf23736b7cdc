"""Protobuf and dataclasses, there and back."""

from dataclasses import replace

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from tidelog.broker.requests import AppendRequest, AtTime, Bound, Run
from tidelog.errors import CorruptBatch, InvalidRequest, OffsetOutOfRange, Throttled, TidelogError
from tidelog.metadata.topics import TopicConfig
from tidelog.proto.v1 import admin_pb2, log_pb2, peers_pb2
from tidelog.records.codec import Record
from tidelog.server import peer_wire, wire

int64s = st.integers(0, 2**63 - 1)


def info_of(error: TidelogError) -> ErrorInfo:
    status = Status.FromString(wire.status_details(error))
    assert status.code == wire.status_code(error).value[0]
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


@given(int64s, int64s, int64s, int64s, int64s, st.binary(max_size=40_000))
def test_a_run_is_serialized_as_protobuf_would(subscription_id: int, base: int, following: int, mark: int, start: int, data: bytes) -> None:
    run = Run(memoryview(data), base, following, mark, start)
    response = log_pb2.ConsumeResponse.FromString(wire.batches_response(subscription_id, run))
    assert response == log_pb2.ConsumeResponse(
        batches=log_pb2.Batches(
            subscription_id=subscription_id,
            base_offset=base,
            next_offset=following,
            high_watermark=mark,
            log_start_offset=start,
            batches=data,
        )
    )


def test_the_batches_come_last_so_that_they_can_be_joined_on() -> None:
    assert max(field.number for field in log_pb2.Batches.DESCRIPTOR.fields) == log_pb2.Batches.BATCHES_FIELD_NUMBER


def test_an_absent_condition_is_not_a_condition_of_zero_or_nothing() -> None:
    plain = log_pb2.ProduceAppend(topic="t", partition=1, timeout_ms=2, max_latency_ms=3)
    assert wire.append_request(plain, b"b") == AppendRequest("t", 1, b"b", 2, 3)
    plain.expected_next_offset, plain.fencing_token = 0, ""
    assert wire.append_request(plain, b"b") == AppendRequest("t", 1, b"b", 2, 3, 0, "")


@pytest.mark.parametrize(
    ("message", "position"),
    [
        (log_pb2.Position(), Bound.EARLIEST),
        (log_pb2.Position(earliest=True), Bound.EARLIEST),
        (log_pb2.Position(latest=True), Bound.LATEST),
        (log_pb2.Position(offset=0), 0),
        (log_pb2.Position(timestamp_ms=5), AtTime(5)),
    ],
)
def test_positions(message: log_pb2.Position, position: object) -> None:
    assert wire.position(message) == position


def test_a_negative_offset_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="-1"):
        wire.position(log_pb2.Position(offset=-1))


def test_records_keep_absent_apart_from_empty_and_get_the_brokers_time() -> None:
    header = log_pb2.Header(key="h")
    messages = [log_pb2.Record(value=b"", headers=[header]), log_pb2.Record(key=b"k", timestamp_ms=7)]
    records = wire.records(messages, now_ms=99)
    assert records == [Record(b"", None, 99, (("h", None),)), Record(None, b"k", 7)]
    back = wire.record_message(records[1]._replace(offset=4))
    assert (back.HasField("value"), back.key, back.timestamp_ms, back.offset) == (False, b"k", 7, 4)
    with pytest.raises(InvalidRequest, match="timestamp"):
        wire.records([log_pb2.Record(timestamp_ms=-1)], now_ms=0)


def test_an_absent_setting_of_a_topic_keeps_what_is_set() -> None:
    before = TopicConfig(10, 20, compact=True)
    assert wire.topic_config(admin_pb2.TopicConfig(retention_bytes=-1), defaults=before) == replace(before, retention_bytes=-1)


def test_errors_say_reason_bounds_and_whether_to_retry() -> None:
    bounds = info_of(OffsetOutOfRange("no", log_start_offset=0, high_watermark=9))
    assert (bounds.reason, dict(bounds.metadata)) == (
        "OFFSET_OUT_OF_RANGE",
        {"retriable": "false", "log_start_offset": "0", "high_watermark": "9"},
    )
    assert dict(info_of(OffsetOutOfRange("no")).metadata) == {"retriable": "false"}
    assert info_of(CorruptBatch("no", position=3)).metadata["position"] == "3"
    told = wire.error_message(Throttled("later"))
    assert (told.code, told.reason, told.message, told.retriable) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
        "THROTTLED",
        "later",
        True,
    )


def test_what_was_not_foreseen_keeps_its_text_to_itself() -> None:
    shown = wire.known(KeyError("secret"))
    assert (shown.reason, "secret" in str(shown)) == ("INTERNAL", False)
    assert wire.known(DecodeError("secret")).reason == "INVALID_REQUEST"


def test_a_message_that_repeats_a_long_name_is_cut() -> None:
    assert len(wire.text(InvalidRequest("x" * 100_000))) == 1000


def test_an_outcome_of_a_later_release_is_not_guessed_at() -> None:
    with pytest.raises(InvalidRequest, match="release"):
        peer_wire.answer(peers_pb2.Answer(outcomes=[peers_pb2.AppendOutcome()]))
