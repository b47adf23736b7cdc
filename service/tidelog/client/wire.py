"""What goes over the wire, checked before; and errors as they come back, as classes of the tree."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from tidelog import errors, framing
from tidelog.errors import TidelogError
from tidelog.proto.v1 import log_pb2 as pb

_STORES = (errors.StoreOutcomeUnknown, errors.MetadataOutcomeUnknown)
"""They share their reason with OutcomeUnknown, which is what a client is told."""


def _tree(root: type[TidelogError]) -> Iterator[type[TidelogError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


_CLASSES = {found.reason: found for found in _tree(TidelogError) if "reason" in vars(found) and found not in _STORES}

_BY_STATUS: dict[grpc.StatusCode, type[TidelogError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.NotReady,
    grpc.StatusCode.CANCELLED: errors.NotReady,
    grpc.StatusCode.ABORTED: errors.NotReady,
    grpc.StatusCode.INTERNAL: errors.NotReady,  # a stream that was reset
    grpc.StatusCode.UNKNOWN: errors.NotReady,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.TimedOut,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Throttled,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
}


_APPENDS_TAG = framing.field_tag(pb.ProduceRequest, "appends")
_BATCHES_TAG = framing.field_tag(pb.ProduceAppend, "batches")


def produce_request(appends: Iterable[tuple[pb.ProduceAppend, bytes]]) -> bytes:
    """Return a ProduceRequest of these appends, serialized; the batches of each come beside it."""
    return b"".join(part for append, batches in appends for part in framing.nested(_APPENDS_TAG, append, _BATCHES_TAG, batches))


_RESPONSE_TAG = framing.field_tag(pb.ConsumeResponse, "batches")
_RESPONSE_BATCHES_TAG = framing.field_tag(pb.Batches, "batches")


def consume_response(data: bytes) -> tuple[pb.ConsumeResponse, memoryview]:
    """Return a serialized ConsumeResponse without its batches, and those: a view, where parsing would copy them. Raises DecodeError."""
    rest, content = framing.split(memoryview(data), _RESPONSE_TAG)
    head, batches = framing.split(content, _RESPONSE_BATCHES_TAG)
    response = pb.ConsumeResponse.FromString(rest)
    if content:
        response.batches.MergeFromString(head)
    return response, batches


@contextmanager
def checked() -> Iterator[None]:
    """Have what protobuf refuses (a number out of range, a wrong type) raised as InvalidRequest."""
    try:
        yield
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is one
        raise errors.InvalidRequest(f"what was given cannot be sent: {error}; give numbers and names as the documentation says") from error


def partition(topic: str, number: int) -> pb.TopicPartition:
    """Return a partition for the wire. Raises InvalidRequest, UnknownPartition."""
    with checked():
        if not 0 <= number < 1 << 32:
            raise errors.UnknownPartition(
                f"partition {number} of topic {topic!r} was asked for, but partitions are counted from 0; choose one"
            )
        return pb.TopicPartition(topic=topic, partition=number)


def error_of(error: pb.Error) -> TidelogError:
    """Return an item's error as one of the tree; a reason that this release does not know is a TidelogError that carries it."""
    return _error(error.reason, error.message, error.metadata, retriable=error.retriable)


def error_of_call(error: grpc.aio.AioRpcError, *, address: str) -> TidelogError:
    """Return a failed call's error. Where no broker has spoken (`has_spoken`), it says what the transport reports."""
    info = _info(error)
    if info is None:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or ""):
            return errors.RecordTooLarge(f"{address} takes no message of this size ({error.details()}); send less at once")
        message = f"{address} was called and gave no answer: {error.code().name}, {error.details()}"
        return _BY_STATUS.get(error.code(), TidelogError)(message)
    told = info.metadata.get("retriable")
    return _error(info.reason, error.details() or "", info.metadata, retriable=None if told is None else told == "true")


def has_spoken(error: grpc.aio.AioRpcError) -> bool:
    """Return whether a broker gave this error; without its word, what was asked may or may not have been done (I5)."""
    return _info(error) is not None


def _info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info
    return None


def _error(reason: str, message: str, metadata: Mapping[str, str], *, retriable: bool | None) -> TidelogError:
    found = _CLASSES.get(reason)
    error: TidelogError
    if found is errors.OffsetOutOfRange:
        error = errors.OffsetOutOfRange(
            message, log_start_offset=_number(metadata, "log_start_offset"), high_watermark=_number(metadata, "high_watermark")
        )
    elif found is errors.BrokerIdTaken:
        error = errors.BrokerIdTaken(message, expires_in_ms=_number(metadata, "expires_in_ms"))
    elif found in (errors.CorruptBatch, errors.CorruptSegment):
        error = found.__new__(found, message)  # their constructors make a message of a position; this one is made already
        vars(error).update(problem=message, position=_number(metadata, "position"))
    else:
        error = (found or TidelogError)(message)
    if found is None:
        vars(error)["reason"] = reason
    if retriable is not None and retriable != error.retriable:
        vars(error)["retriable"] = retriable  # the broker knows better than the class
    return error


def _number(metadata: Mapping[str, str], name: str) -> int:
    text = metadata.get(name, "")
    return int(text) if text.lstrip("-").isdecimal() else -1
