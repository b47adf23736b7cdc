"""The one place where the public protobuf messages and the broker's dataclasses meet.

Nothing here waits or decides. Errors become `Error` messages inside streams and lists, and `google.rpc.ErrorInfo` where
a whole call fails; what was not foreseen becomes INTERNAL, and its text stays in the telemetry.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from tidelog import framing
from tidelog.broker import requests
from tidelog.broker.requests import Appended, AtTime, Bound, Position, Run
from tidelog.config import INTAKE_COPIES, Settings
from tidelog.errors import CorruptBatch, CorruptSegment, InvalidRequest, OffsetOutOfRange, TidelogError
from tidelog.metadata.membership import Broker, Membership
from tidelog.metadata.topics import PartitionState, Topic, TopicConfig
from tidelog.proto.v1 import admin_pb2, log_pb2
from tidelog.records.batch import Buffer
from tidelog.records.codec import Record

ERROR_DOMAIN = "tidelog"
STATUS_DETAILS = "grpc-status-details-bin"
_LARGE_BYTES = 64 * 1024
"""Below this a message is parsed faster than it is taken apart."""
_MOST_TEXT = 1000  # trailing metadata is limited, and messages repeat names that clients chose
_INTERNAL = "the broker met an error that it did not expect; its telemetry says which. Try again, and report it if it comes back"


# ---- errors


def known(error: BaseException) -> TidelogError:
    """Return an error that may be shown to a client: itself where it was raised on purpose, else INTERNAL without its text."""
    if isinstance(error, TidelogError):
        return error
    if isinstance(error, DecodeError):
        return InvalidRequest("the message is not a protobuf message of the type that this call takes; send what the .proto files say")
    return TidelogError(_INTERNAL)


def text(error: TidelogError) -> str:
    """Return an error's message, as long as it may travel."""
    said = str(error)
    return said if len(said) <= _MOST_TEXT else f"{said[: _MOST_TEXT - 1]}…"


def status_code(error: TidelogError) -> grpc.StatusCode:
    """Return the gRPC status of an error."""
    return grpc.StatusCode[error.status]


def error_metadata(error: TidelogError) -> dict[str, str]:
    """Return what an error says beside its reason, for machines."""
    found = {"retriable": "true" if error.retriable else "false"}
    if isinstance(error, OffsetOutOfRange):
        bounds = {"log_start_offset": error.log_start_offset, "high_watermark": error.high_watermark}
        found |= {name: str(offset) for name, offset in bounds.items() if offset >= 0}
    elif isinstance(error, CorruptBatch | CorruptSegment):
        found["position"] = str(error.position)
    return found


def error_message(error: TidelogError) -> log_pb2.Error:
    """Return an error of one item in a stream or a list."""
    return log_pb2.Error(
        code=status_code(error).value[0],
        reason=error.reason,
        message=text(error),
        metadata=error_metadata(error),
        retriable=error.retriable,
    )


def status_details(error: TidelogError) -> bytes:
    """Return a google.rpc.Status with ErrorInfo, as it travels in the trailing metadata of a failed call."""
    info = ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error_metadata(error))
    details = AnyMessage()
    details.Pack(info)
    found: bytes = Status(code=status_code(error).value[0], message=text(error), details=[details]).SerializeToString()
    return found


# ---- produce


def produce_request(data: bytes) -> list[tuple[log_pb2.ProduceAppend, Buffer]]:
    """Return the appends of a serialized ProduceRequest, and the batches of each. Raises DecodeError.

    Of a large message the batches are views, where parsing would copy them twice; but none keeps more of the message alive than
    intake counts for it.
    """
    if len(data) < _LARGE_BYTES:
        return [(append, append.batches) for append in log_pb2.ProduceRequest.FromString(data).appends]
    found: list[tuple[log_pb2.ProduceAppend, Buffer]] = []
    for content in framing.fields(memoryview(data), _APPENDS_TAG):
        rest, batches = framing.split(content, _APPEND_BATCHES_TAG)
        worth_it = len(batches) * INTAKE_COPIES >= len(data)
        found.append((log_pb2.ProduceAppend.FromString(rest), batches if worth_it else bytes(batches)))
    return found


def append_request(message: log_pb2.ProduceAppend, batches: Buffer) -> requests.AppendRequest:
    """Return what a Produce stream asks to append."""
    return requests.AppendRequest(
        message.topic,
        message.partition,
        batches,
        message.timeout_ms,
        message.max_latency_ms,
        message.expected_next_offset if message.HasField("expected_next_offset") else None,
        message.fencing_token if message.HasField("fencing_token") else None,
    )


def produce_result(request_id: int, outcome: Appended | TidelogError) -> log_pb2.ProduceResult:
    """Return the answer to one append of a Produce stream."""
    if isinstance(outcome, TidelogError):
        return log_pb2.ProduceResult(request_id=request_id, error=error_message(outcome))
    return log_pb2.ProduceResult(
        request_id=request_id, base_offset=outcome.base_offset, next_offset=outcome.next_offset, duplicate=outcome.duplicate
    )


def produce_response(outcomes: Iterable[tuple[int, Appended | TidelogError]]) -> log_pb2.ProduceResponse:
    """Return several answers as one message."""
    return log_pb2.ProduceResponse(results=[produce_result(request_id, outcome) for request_id, outcome in outcomes])


def records(messages: Sequence[log_pb2.Record], *, now_ms: int) -> list[Record]:
    """Return plain records to append; those without a time get the broker's. Raises InvalidRequest."""
    found = []
    for message in messages:
        if message.timestamp_ms < 0:
            raise InvalidRequest(f"a record's timestamp is {message.timestamp_ms}; give Unix milliseconds, or 0 for the broker's time")
        found.append(
            Record(
                message.value if message.HasField("value") else None,
                message.key if message.HasField("key") else None,
                message.timestamp_ms or now_ms,
                tuple((header.key, header.value if header.HasField("value") else None) for header in message.headers),
            )
        )
    return found


# ---- consume


def record_message(record: Record) -> log_pb2.Record:
    """Return a plain record that was read."""
    headers = [log_pb2.Header(key=key, value=value) for key, value in record.headers]
    return log_pb2.Record(key=record.key, value=record.value, headers=headers, timestamp_ms=record.timestamp_ms, offset=record.offset)


def position(message: log_pb2.Position) -> Position:
    """Return where reading begins; nothing said means the earliest. Raises InvalidRequest."""
    match message.WhichOneof("at"):
        case "offset":
            if message.offset < 0:
                raise InvalidRequest(f"offset {message.offset} was asked for; offsets begin at 0")
            return message.offset
        case "timestamp_ms":
            return AtTime(message.timestamp_ms)
        case "latest":
            return Bound.LATEST
        case _:
            return Bound.EARLIEST


def batches_response(subscription_id: int, run: Run) -> bytes:
    """Return a run of batches as a Consume stream sends it: a ConsumeResponse, serialized."""
    message = log_pb2.Batches(
        subscription_id=subscription_id,
        base_offset=run.base_offset,
        next_offset=run.next_offset,
        high_watermark=run.high_watermark,
        log_start_offset=run.log_start_offset,
    )
    return b"".join(framing.nested(_RESPONSE_TAG, message, _BATCHES_TAG, run.batches))


DESERIALIZERS: Mapping[str, Callable[[bytes], object]] = {"/tidelog.v1.Log/Produce": produce_request}
"""By method: those that protobuf does not do alone."""


def serialized(message: Message | bytes) -> bytes:
    """Return a response as it travels; some are made that way."""
    return message if isinstance(message, bytes) else message.SerializeToString()


_APPENDS_TAG = framing.field_tag(log_pb2.ProduceRequest, "appends")
_APPEND_BATCHES_TAG = framing.field_tag(log_pb2.ProduceAppend, "batches")
_RESPONSE_TAG = framing.field_tag(log_pb2.ConsumeResponse, "batches")
_BATCHES_TAG = framing.field_tag(log_pb2.Batches, "batches")


def progress_response(subscription_id: int, next_offset: int, run: Run) -> log_pb2.ConsumeResponse:
    """Return a partition's bounds and where its reader stands."""
    return log_pb2.ConsumeResponse(
        progress=log_pb2.Progress(
            subscription_id=subscription_id,
            next_offset=next_offset,
            high_watermark=run.high_watermark,
            log_start_offset=run.log_start_offset,
        )
    )


def end_response(subscription_id: int, next_offset: int, error: TidelogError | None = None) -> log_pb2.ConsumeResponse:
    """Return the end of a subscription: its stop offset was reached, or it failed."""
    message = None if error is None else error_message(error)
    return log_pb2.ConsumeResponse(end=log_pb2.SubscriptionEnd(subscription_id=subscription_id, next_offset=next_offset, error=message))


# ---- topics and brokers


def check_count(what: str, count: int, settings: Settings) -> None:
    """Raise InvalidRequest where a call asks for too much at once (I10)."""
    if count > settings.max_queries_per_call:
        raise InvalidRequest(
            f"{count} {what} were asked for at once, but max_queries_per_call is {settings.max_queries_per_call}; ask more often"
        )


def topic_config(message: admin_pb2.TopicConfig, *, defaults: TopicConfig) -> TopicConfig:
    """Return a topic's settings, with `defaults` where the message says nothing. Raises InvalidRequest."""
    said = {name: getattr(message, name) for name in ("retention_ms", "retention_bytes", "compact") if message.HasField(name)}
    for name, number in said.items():
        if number < -1:
            raise InvalidRequest(f"{name} was to be {number}; give a number from 0, or -1 for no limit")
    return replace(defaults, **said)


def topic_description(topic: Topic, partitions: Sequence[PartitionState], leaders: Mapping[int, str]) -> admin_pb2.TopicDescription:
    """Return a topic with its partitions; `leaders` are broker ids by broker epoch."""
    return admin_pb2.TopicDescription(
        name=topic.name,
        topic_id=bytes.fromhex(topic.topic_id),
        config=admin_pb2.TopicConfig(
            retention_ms=topic.config.retention_ms, retention_bytes=topic.config.retention_bytes, compact=topic.config.compact
        ),
        partitions=[
            admin_pb2.TopicDescription.Partition(
                partition=state.partition,
                leader=leaders.get(state.leader_broker_epoch or 0, ""),
                leader_epoch=state.leader_epoch,
                log_start_offset=state.log_start_offset,
                next_offset=state.next_offset,
            )
            for state in partitions
        ],
    )


def metadata_topic(name: str, topic: Topic | TidelogError) -> log_pb2.GetMetadataResponse.Topic:
    """Return a topic as producers and consumers need it, or why there is none."""
    if isinstance(topic, TidelogError):
        return log_pb2.GetMetadataResponse.Topic(name=name, error=error_message(topic))
    return log_pb2.GetMetadataResponse.Topic(name=topic.name, topic_id=bytes.fromhex(topic.topic_id), partitions=topic.partitions)


def metadata_broker(broker: Broker) -> log_pb2.GetMetadataResponse.Broker:
    """Return a broker as clients choose among them."""
    return log_pb2.GetMetadataResponse.Broker(
        broker_id=broker.broker_id, address=broker.address, zone=broker.zone, draining=broker.draining
    )


def cluster_broker(broker: Broker, membership: Membership, *, led_partitions: int) -> admin_pb2.DescribeClusterResponse.Broker:
    """Return a broker as operators see it."""
    return admin_pb2.DescribeClusterResponse.Broker(
        broker_id=broker.broker_id,
        broker_epoch=broker.broker_epoch,
        address=broker.address,
        zone=broker.zone,
        draining=broker.draining,
        lease_remaining_ms=max(0, broker.lease_expires_at_ms - membership.now_ms),
        led_partitions=led_partitions,
    )
