"""Where the messages between brokers and `broker.references` meet; `wire` is this for the public contract."""

from collections.abc import Sequence

from tidelog.broker.references import (
    Accepted,
    Answer,
    AppendOutcome,
    AppendReference,
    CommittedExtents,
    ProducerSequence,
    Reference,
    RefusedAppend,
    Unknown,
)
from tidelog.errors import InvalidRequest
from tidelog.metadata.extents import Extent
from tidelog.proto.v1 import peers_pb2

_EXTENT = tuple(Extent.__dataclass_fields__)  # the message mirrors it, name for name


def reference_message(reference: Reference) -> peers_pb2.Reference:
    """Return a reference as it travels."""
    return peers_pb2.Reference(
        partition_id=reference.partition_id,
        broker_epoch=reference.broker_epoch,
        sequence=reference.sequence,
        leader_epoch=reference.leader_epoch,
        number=reference.number,
        lowest_wanted=reference.lowest_wanted,
        tried_epoch=reference.tried_epoch,
        resolved_sequence=reference.resolved_sequence,
        appends=map(_append_message, reference.appends),
    )


def reference(message: peers_pb2.Reference) -> Reference:
    """Return a reference that came from another broker."""
    return Reference(
        partition_id=message.partition_id,
        broker_epoch=message.broker_epoch,
        sequence=message.sequence,
        leader_epoch=message.leader_epoch,
        number=message.number,
        lowest_wanted=message.lowest_wanted,
        tried_epoch=message.tried_epoch,
        resolved_sequence=message.resolved_sequence,
        appends=tuple(map(_append, message.appends)),
    )


def answer_message(answer: Answer) -> peers_pb2.Answer:
    """Return an answer as it travels."""
    return peers_pb2.Answer(
        partition_id=answer.partition_id,
        broker_epoch=answer.broker_epoch,
        leader_epoch=answer.leader_epoch,
        number=answer.number,
        not_now=answer.outcomes is None,
        outcomes=map(_outcome_message, answer.outcomes or ()),
    )


def answer(message: peers_pb2.Answer) -> Answer:
    """Return an answer that came from a leader. Raises InvalidRequest for an outcome that this release does not know."""
    outcomes = None if message.not_now else tuple(map(_outcome, message.outcomes))
    return Answer(message.partition_id, message.broker_epoch, message.leader_epoch, message.number, outcomes)


def news_message(news: CommittedExtents) -> peers_pb2.CommittedExtents:
    """Return news of a partition as they travel."""
    return peers_pb2.CommittedExtents(
        partition_id=news.partition_id,
        extents=[peers_pb2.Extent(**{name: getattr(extent, name) for name in _EXTENT}) for extent in news.extents],
        high_watermark=news.high_watermark,
        log_start_offset=news.log_start_offset,
    )


def news(message: peers_pb2.CommittedExtents) -> CommittedExtents:
    """Return news that came from a leader."""
    extents = tuple(Extent(**{name: getattr(extent, name) for name in _EXTENT}) for extent in message.extents)
    return CommittedExtents(message.partition_id, extents, message.high_watermark, message.log_start_offset)


def references_message(references: Sequence[Reference]) -> peers_pb2.ReferencesRequest:
    """Return references as one message."""
    return peers_pb2.ReferencesRequest(references=map(reference_message, references))


def answers_message(answers: Sequence[Answer]) -> peers_pb2.ReferencesResponse:
    """Return answers as one message."""
    return peers_pb2.ReferencesResponse(answers=map(answer_message, answers))


def all_news_message(all_news: Sequence[CommittedExtents]) -> peers_pb2.FeedResponse:
    """Return news of several partitions as one message."""
    return peers_pb2.FeedResponse(news=map(news_message, all_news))


def change_message(changes: Sequence[tuple[bool, tuple[int, ...]]]) -> peers_pb2.FeedRequest:
    """Return what is to be followed (or not any more), in order, as one message."""
    change = peers_pb2.FeedRequest.Change
    return peers_pb2.FeedRequest(changes=[change(follow=follow, partition_ids=ids) for follow, ids in changes])


def _append_message(append: AppendReference) -> peers_pb2.AppendReference:
    sequence = append.sequence
    return peers_pb2.AppendReference(
        position=append.position,
        length=append.length,
        record_count=append.record_count,
        max_timestamp_ms=append.max_timestamp_ms,
        sequence=None
        if sequence is None
        else peers_pb2.ProducerSequence(
            producer_id=sequence.producer_id, producer_epoch=sequence.producer_epoch, first=sequence.first, last=sequence.last
        ),
        expected_next_offset=append.expected_next_offset,
        fencing_token=append.fencing_token,
    )


def _append(message: peers_pb2.AppendReference) -> AppendReference:
    said = message.sequence
    return AppendReference(
        position=message.position,
        length=message.length,
        record_count=message.record_count,
        max_timestamp_ms=message.max_timestamp_ms,
        sequence=ProducerSequence(said.producer_id, said.producer_epoch, said.first, said.last) if message.HasField("sequence") else None,
        expected_next_offset=message.expected_next_offset if message.HasField("expected_next_offset") else None,
        fencing_token=message.fencing_token if message.HasField("fencing_token") else None,
    )


def _outcome_message(outcome: AppendOutcome) -> peers_pb2.AppendOutcome:
    match outcome:
        case Accepted():
            accepted = peers_pb2.Accepted(
                base_offset=outcome.base_offset,
                next_offset=outcome.next_offset,
                leader_epoch=outcome.leader_epoch,
                duplicate=outcome.duplicate,
            )
            return peers_pb2.AppendOutcome(accepted=accepted)
        case RefusedAppend():
            return peers_pb2.AppendOutcome(refused=peers_pb2.Refused(reason=outcome.reason, message=outcome.message))
        case Unknown():
            return peers_pb2.AppendOutcome(unknown=peers_pb2.Unknown(message=outcome.message))


def _outcome(message: peers_pb2.AppendOutcome) -> AppendOutcome:
    match message.WhichOneof("outcome"):
        case "accepted":
            said = message.accepted
            return Accepted(said.base_offset, said.next_offset, said.leader_epoch, said.duplicate)
        case "refused":
            return RefusedAppend(message.refused.reason, message.refused.message)
        case "unknown":
            return Unknown(message.unknown.message)
        case _:
            # Guessing could turn a commit into a failure; without an answer the reference is simply sent again.
            raise InvalidRequest("a leader sent an outcome that this release does not know; bring all brokers to one release")
