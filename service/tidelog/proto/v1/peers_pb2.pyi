from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReferencesRequest(_message.Message):
    __slots__ = ("references",)
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    references: _containers.RepeatedCompositeFieldContainer[Reference]
    def __init__(self, references: _Optional[_Iterable[_Union[Reference, _Mapping]]] = ...) -> None: ...

class Reference(_message.Message):
    __slots__ = ("partition_id", "broker_epoch", "sequence", "leader_epoch", "number", "lowest_wanted", "tried_epoch", "resolved_sequence", "appends")
    PARTITION_ID_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LOWEST_WANTED_FIELD_NUMBER: _ClassVar[int]
    TRIED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    APPENDS_FIELD_NUMBER: _ClassVar[int]
    partition_id: int
    broker_epoch: int
    sequence: int
    leader_epoch: int
    number: int
    lowest_wanted: int
    tried_epoch: int
    resolved_sequence: int
    appends: _containers.RepeatedCompositeFieldContainer[AppendReference]
    def __init__(self, partition_id: _Optional[int] = ..., broker_epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., leader_epoch: _Optional[int] = ..., number: _Optional[int] = ..., lowest_wanted: _Optional[int] = ..., tried_epoch: _Optional[int] = ..., resolved_sequence: _Optional[int] = ..., appends: _Optional[_Iterable[_Union[AppendReference, _Mapping]]] = ...) -> None: ...

class AppendReference(_message.Message):
    __slots__ = ("position", "length", "record_count", "max_timestamp_ms", "sequence", "expected_next_offset", "fencing_token")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_TIMESTAMP_MS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    position: int
    length: int
    record_count: int
    max_timestamp_ms: int
    sequence: ProducerSequence
    expected_next_offset: int
    fencing_token: str
    def __init__(self, position: _Optional[int] = ..., length: _Optional[int] = ..., record_count: _Optional[int] = ..., max_timestamp_ms: _Optional[int] = ..., sequence: _Optional[_Union[ProducerSequence, _Mapping]] = ..., expected_next_offset: _Optional[int] = ..., fencing_token: _Optional[str] = ...) -> None: ...

class ProducerSequence(_message.Message):
    __slots__ = ("producer_id", "producer_epoch", "first", "last")
    PRODUCER_ID_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    producer_id: int
    producer_epoch: int
    first: int
    last: int
    def __init__(self, producer_id: _Optional[int] = ..., producer_epoch: _Optional[int] = ..., first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class ReferencesResponse(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[Answer]
    def __init__(self, answers: _Optional[_Iterable[_Union[Answer, _Mapping]]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("partition_id", "broker_epoch", "leader_epoch", "number", "not_now", "outcomes")
    PARTITION_ID_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NOT_NOW_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    partition_id: int
    broker_epoch: int
    leader_epoch: int
    number: int
    not_now: bool
    outcomes: _containers.RepeatedCompositeFieldContainer[AppendOutcome]
    def __init__(self, partition_id: _Optional[int] = ..., broker_epoch: _Optional[int] = ..., leader_epoch: _Optional[int] = ..., number: _Optional[int] = ..., not_now: _Optional[bool] = ..., outcomes: _Optional[_Iterable[_Union[AppendOutcome, _Mapping]]] = ...) -> None: ...

class AppendOutcome(_message.Message):
    __slots__ = ("accepted", "refused", "unknown")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    refused: Refused
    unknown: Unknown
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., unknown: _Optional[_Union[Unknown, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("base_offset", "next_offset", "leader_epoch", "duplicate")
    BASE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    base_offset: int
    next_offset: int
    leader_epoch: int
    duplicate: bool
    def __init__(self, base_offset: _Optional[int] = ..., next_offset: _Optional[int] = ..., leader_epoch: _Optional[int] = ..., duplicate: _Optional[bool] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Unknown(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class FeedRequest(_message.Message):
    __slots__ = ("changes",)
    class Change(_message.Message):
        __slots__ = ("follow", "partition_ids")
        FOLLOW_FIELD_NUMBER: _ClassVar[int]
        PARTITION_IDS_FIELD_NUMBER: _ClassVar[int]
        follow: bool
        partition_ids: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, follow: _Optional[bool] = ..., partition_ids: _Optional[_Iterable[int]] = ...) -> None: ...
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[FeedRequest.Change]
    def __init__(self, changes: _Optional[_Iterable[_Union[FeedRequest.Change, _Mapping]]] = ...) -> None: ...

class FeedResponse(_message.Message):
    __slots__ = ("news",)
    NEWS_FIELD_NUMBER: _ClassVar[int]
    news: _containers.RepeatedCompositeFieldContainer[CommittedExtents]
    def __init__(self, news: _Optional[_Iterable[_Union[CommittedExtents, _Mapping]]] = ...) -> None: ...

class CommittedExtents(_message.Message):
    __slots__ = ("partition_id", "extents", "high_watermark", "log_start_offset")
    PARTITION_ID_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
    LOG_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    partition_id: int
    extents: _containers.RepeatedCompositeFieldContainer[Extent]
    high_watermark: int
    log_start_offset: int
    def __init__(self, partition_id: _Optional[int] = ..., extents: _Optional[_Iterable[_Union[Extent, _Mapping]]] = ..., high_watermark: _Optional[int] = ..., log_start_offset: _Optional[int] = ...) -> None: ...

class Extent(_message.Message):
    __slots__ = ("partition_id", "base_offset", "next_offset", "broker_epoch", "sequence", "position", "length", "record_count", "level", "max_timestamp_ms", "commit_time_ms", "leader_epoch")
    PARTITION_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    MAX_TIMESTAMP_MS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    partition_id: int
    base_offset: int
    next_offset: int
    broker_epoch: int
    sequence: int
    position: int
    length: int
    record_count: int
    level: int
    max_timestamp_ms: int
    commit_time_ms: int
    leader_epoch: int
    def __init__(self, partition_id: _Optional[int] = ..., base_offset: _Optional[int] = ..., next_offset: _Optional[int] = ..., broker_epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., position: _Optional[int] = ..., length: _Optional[int] = ..., record_count: _Optional[int] = ..., level: _Optional[int] = ..., max_timestamp_ms: _Optional[int] = ..., commit_time_ms: _Optional[int] = ..., leader_epoch: _Optional[int] = ...) -> None: ...

class NudgeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NudgeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
