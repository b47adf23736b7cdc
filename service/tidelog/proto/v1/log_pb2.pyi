from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Error(_message.Message):
    __slots__ = ("code", "reason", "message", "metadata", "retriable")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RETRIABLE_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    retriable: bool
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., retriable: _Optional[bool] = ...) -> None: ...

class TopicPartition(_message.Message):
    __slots__ = ("topic", "partition")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: bytes
    def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("key", "value", "headers", "timestamp_ms", "offset")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_MS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    timestamp_ms: int
    offset: int
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., timestamp_ms: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class ProduceRequest(_message.Message):
    __slots__ = ("appends",)
    APPENDS_FIELD_NUMBER: _ClassVar[int]
    appends: _containers.RepeatedCompositeFieldContainer[ProduceAppend]
    def __init__(self, appends: _Optional[_Iterable[_Union[ProduceAppend, _Mapping]]] = ...) -> None: ...

class ProduceAppend(_message.Message):
    __slots__ = ("request_id", "topic", "partition", "batches", "timeout_ms", "max_latency_ms", "expected_next_offset", "fencing_token")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    topic: str
    partition: int
    batches: bytes
    timeout_ms: int
    max_latency_ms: int
    expected_next_offset: int
    fencing_token: str
    def __init__(self, request_id: _Optional[int] = ..., topic: _Optional[str] = ..., partition: _Optional[int] = ..., batches: _Optional[bytes] = ..., timeout_ms: _Optional[int] = ..., max_latency_ms: _Optional[int] = ..., expected_next_offset: _Optional[int] = ..., fencing_token: _Optional[str] = ...) -> None: ...

class ProduceResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ProduceResult]
    def __init__(self, results: _Optional[_Iterable[_Union[ProduceResult, _Mapping]]] = ...) -> None: ...

class ProduceResult(_message.Message):
    __slots__ = ("request_id", "base_offset", "next_offset", "error", "duplicate")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    base_offset: int
    next_offset: int
    error: Error
    duplicate: bool
    def __init__(self, request_id: _Optional[int] = ..., base_offset: _Optional[int] = ..., next_offset: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., duplicate: _Optional[bool] = ...) -> None: ...

class AppendRequest(_message.Message):
    __slots__ = ("topic", "partition", "records", "timeout_ms", "max_latency_ms", "expected_next_offset", "fencing_token")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    records: _containers.RepeatedCompositeFieldContainer[Record]
    timeout_ms: int
    max_latency_ms: int
    expected_next_offset: int
    fencing_token: str
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., timeout_ms: _Optional[int] = ..., max_latency_ms: _Optional[int] = ..., expected_next_offset: _Optional[int] = ..., fencing_token: _Optional[str] = ...) -> None: ...

class AppendResponse(_message.Message):
    __slots__ = ("partition", "base_offset", "next_offset")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    BASE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    partition: int
    base_offset: int
    next_offset: int
    def __init__(self, partition: _Optional[int] = ..., base_offset: _Optional[int] = ..., next_offset: _Optional[int] = ...) -> None: ...

class InitProducerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InitProducerResponse(_message.Message):
    __slots__ = ("producer_id", "producer_epoch")
    PRODUCER_ID_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    producer_id: int
    producer_epoch: int
    def __init__(self, producer_id: _Optional[int] = ..., producer_epoch: _Optional[int] = ...) -> None: ...

class SetFencingTokenRequest(_message.Message):
    __slots__ = ("partition", "token", "expected_token")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TOKEN_FIELD_NUMBER: _ClassVar[int]
    partition: TopicPartition
    token: str
    expected_token: str
    def __init__(self, partition: _Optional[_Union[TopicPartition, _Mapping]] = ..., token: _Optional[str] = ..., expected_token: _Optional[str] = ...) -> None: ...

class SetFencingTokenResponse(_message.Message):
    __slots__ = ("next_offset",)
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    next_offset: int
    def __init__(self, next_offset: _Optional[int] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("offset", "earliest", "latest", "timestamp_ms")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_MS_FIELD_NUMBER: _ClassVar[int]
    offset: int
    earliest: bool
    latest: bool
    timestamp_ms: int
    def __init__(self, offset: _Optional[int] = ..., earliest: _Optional[bool] = ..., latest: _Optional[bool] = ..., timestamp_ms: _Optional[int] = ...) -> None: ...

class ConsumeRequest(_message.Message):
    __slots__ = ("add", "drop", "credit_bytes")
    ADD_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    add: _containers.RepeatedCompositeFieldContainer[AddPartition]
    drop: _containers.RepeatedScalarFieldContainer[int]
    credit_bytes: int
    def __init__(self, add: _Optional[_Iterable[_Union[AddPartition, _Mapping]]] = ..., drop: _Optional[_Iterable[int]] = ..., credit_bytes: _Optional[int] = ...) -> None: ...

class AddPartition(_message.Message):
    __slots__ = ("subscription_id", "partition", "start", "stop_offset")
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_OFFSET_FIELD_NUMBER: _ClassVar[int]
    subscription_id: int
    partition: TopicPartition
    start: Position
    stop_offset: int
    def __init__(self, subscription_id: _Optional[int] = ..., partition: _Optional[_Union[TopicPartition, _Mapping]] = ..., start: _Optional[_Union[Position, _Mapping]] = ..., stop_offset: _Optional[int] = ...) -> None: ...

class ConsumeResponse(_message.Message):
    __slots__ = ("batches", "end", "progress")
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    batches: Batches
    end: SubscriptionEnd
    progress: Progress
    def __init__(self, batches: _Optional[_Union[Batches, _Mapping]] = ..., end: _Optional[_Union[SubscriptionEnd, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class Batches(_message.Message):
    __slots__ = ("subscription_id", "base_offset", "next_offset", "high_watermark", "log_start_offset", "batches")
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
    LOG_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    subscription_id: int
    base_offset: int
    next_offset: int
    high_watermark: int
    log_start_offset: int
    batches: bytes
    def __init__(self, subscription_id: _Optional[int] = ..., base_offset: _Optional[int] = ..., next_offset: _Optional[int] = ..., high_watermark: _Optional[int] = ..., log_start_offset: _Optional[int] = ..., batches: _Optional[bytes] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("subscription_id", "next_offset", "high_watermark", "log_start_offset")
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
    LOG_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    subscription_id: int
    next_offset: int
    high_watermark: int
    log_start_offset: int
    def __init__(self, subscription_id: _Optional[int] = ..., next_offset: _Optional[int] = ..., high_watermark: _Optional[int] = ..., log_start_offset: _Optional[int] = ...) -> None: ...

class SubscriptionEnd(_message.Message):
    __slots__ = ("subscription_id", "next_offset", "error")
    SUBSCRIPTION_ID_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    subscription_id: int
    next_offset: int
    error: Error
    def __init__(self, subscription_id: _Optional[int] = ..., next_offset: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("partition", "start", "max_records", "max_bytes", "max_wait_ms")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    MAX_RECORDS_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    partition: TopicPartition
    start: Position
    max_records: int
    max_bytes: int
    max_wait_ms: int
    def __init__(self, partition: _Optional[_Union[TopicPartition, _Mapping]] = ..., start: _Optional[_Union[Position, _Mapping]] = ..., max_records: _Optional[int] = ..., max_bytes: _Optional[int] = ..., max_wait_ms: _Optional[int] = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("records", "next_offset", "high_watermark", "log_start_offset")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
    LOG_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    next_offset: int
    high_watermark: int
    log_start_offset: int
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., next_offset: _Optional[int] = ..., high_watermark: _Optional[int] = ..., log_start_offset: _Optional[int] = ...) -> None: ...

class ListOffsetsRequest(_message.Message):
    __slots__ = ("queries",)
    class Query(_message.Message):
        __slots__ = ("partition", "at")
        PARTITION_FIELD_NUMBER: _ClassVar[int]
        AT_FIELD_NUMBER: _ClassVar[int]
        partition: TopicPartition
        at: Position
        def __init__(self, partition: _Optional[_Union[TopicPartition, _Mapping]] = ..., at: _Optional[_Union[Position, _Mapping]] = ...) -> None: ...
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedCompositeFieldContainer[ListOffsetsRequest.Query]
    def __init__(self, queries: _Optional[_Iterable[_Union[ListOffsetsRequest.Query, _Mapping]]] = ...) -> None: ...

class ListOffsetsResponse(_message.Message):
    __slots__ = ("answers",)
    class Answer(_message.Message):
        __slots__ = ("partition", "offset", "timestamp_ms", "error")
        PARTITION_FIELD_NUMBER: _ClassVar[int]
        OFFSET_FIELD_NUMBER: _ClassVar[int]
        TIMESTAMP_MS_FIELD_NUMBER: _ClassVar[int]
        ERROR_FIELD_NUMBER: _ClassVar[int]
        partition: TopicPartition
        offset: int
        timestamp_ms: int
        error: Error
        def __init__(self, partition: _Optional[_Union[TopicPartition, _Mapping]] = ..., offset: _Optional[int] = ..., timestamp_ms: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[ListOffsetsResponse.Answer]
    def __init__(self, answers: _Optional[_Iterable[_Union[ListOffsetsResponse.Answer, _Mapping]]] = ...) -> None: ...

class GetMetadataRequest(_message.Message):
    __slots__ = ("topics", "create_missing")
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    CREATE_MISSING_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedScalarFieldContainer[str]
    create_missing: bool
    def __init__(self, topics: _Optional[_Iterable[str]] = ..., create_missing: _Optional[bool] = ...) -> None: ...

class GetMetadataResponse(_message.Message):
    __slots__ = ("cluster_id", "brokers", "topics")
    class Broker(_message.Message):
        __slots__ = ("broker_id", "address", "zone", "draining")
        BROKER_ID_FIELD_NUMBER: _ClassVar[int]
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        ZONE_FIELD_NUMBER: _ClassVar[int]
        DRAINING_FIELD_NUMBER: _ClassVar[int]
        broker_id: str
        address: str
        zone: str
        draining: bool
        def __init__(self, broker_id: _Optional[str] = ..., address: _Optional[str] = ..., zone: _Optional[str] = ..., draining: _Optional[bool] = ...) -> None: ...
    class Topic(_message.Message):
        __slots__ = ("name", "topic_id", "partitions", "error")
        NAME_FIELD_NUMBER: _ClassVar[int]
        TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
        PARTITIONS_FIELD_NUMBER: _ClassVar[int]
        ERROR_FIELD_NUMBER: _ClassVar[int]
        name: str
        topic_id: bytes
        partitions: int
        error: Error
        def __init__(self, name: _Optional[str] = ..., topic_id: _Optional[bytes] = ..., partitions: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    BROKERS_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    brokers: _containers.RepeatedCompositeFieldContainer[GetMetadataResponse.Broker]
    topics: _containers.RepeatedCompositeFieldContainer[GetMetadataResponse.Topic]
    def __init__(self, cluster_id: _Optional[str] = ..., brokers: _Optional[_Iterable[_Union[GetMetadataResponse.Broker, _Mapping]]] = ..., topics: _Optional[_Iterable[_Union[GetMetadataResponse.Topic, _Mapping]]] = ...) -> None: ...

class GroupRequest(_message.Message):
    __slots__ = ("join", "heartbeat", "commit", "leave")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    join: JoinGroup
    heartbeat: GroupHeartbeat
    commit: CommitOffsets
    leave: LeaveGroup
    def __init__(self, join: _Optional[_Union[JoinGroup, _Mapping]] = ..., heartbeat: _Optional[_Union[GroupHeartbeat, _Mapping]] = ..., commit: _Optional[_Union[CommitOffsets, _Mapping]] = ..., leave: _Optional[_Union[LeaveGroup, _Mapping]] = ...) -> None: ...

class JoinGroup(_message.Message):
    __slots__ = ("group_id", "topics", "member_id", "session_timeout_ms")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    topics: _containers.RepeatedScalarFieldContainer[str]
    member_id: str
    session_timeout_ms: int
    def __init__(self, group_id: _Optional[str] = ..., topics: _Optional[_Iterable[str]] = ..., member_id: _Optional[str] = ..., session_timeout_ms: _Optional[int] = ...) -> None: ...

class GroupHeartbeat(_message.Message):
    __slots__ = ("generation", "owned")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    OWNED_FIELD_NUMBER: _ClassVar[int]
    generation: int
    owned: _containers.RepeatedCompositeFieldContainer[TopicPartition]
    def __init__(self, generation: _Optional[int] = ..., owned: _Optional[_Iterable[_Union[TopicPartition, _Mapping]]] = ...) -> None: ...

class CommitOffsets(_message.Message):
    __slots__ = ("request_id", "generation", "offsets")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    generation: int
    offsets: _containers.RepeatedCompositeFieldContainer[GroupOffset]
    def __init__(self, request_id: _Optional[int] = ..., generation: _Optional[int] = ..., offsets: _Optional[_Iterable[_Union[GroupOffset, _Mapping]]] = ...) -> None: ...

class GroupOffset(_message.Message):
    __slots__ = ("partition", "next_offset", "note")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    partition: TopicPartition
    next_offset: int
    note: str
    def __init__(self, partition: _Optional[_Union[TopicPartition, _Mapping]] = ..., next_offset: _Optional[int] = ..., note: _Optional[str] = ...) -> None: ...

class LeaveGroup(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: int
    def __init__(self, generation: _Optional[int] = ...) -> None: ...

class GroupResponse(_message.Message):
    __slots__ = ("assignment", "commit", "error")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    assignment: GroupAssignment
    commit: CommitOffsetsResult
    error: Error
    def __init__(self, assignment: _Optional[_Union[GroupAssignment, _Mapping]] = ..., commit: _Optional[_Union[CommitOffsetsResult, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class GroupAssignment(_message.Message):
    __slots__ = ("member_id", "generation", "partitions")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    member_id: str
    generation: int
    partitions: _containers.RepeatedCompositeFieldContainer[GroupOffset]
    def __init__(self, member_id: _Optional[str] = ..., generation: _Optional[int] = ..., partitions: _Optional[_Iterable[_Union[GroupOffset, _Mapping]]] = ...) -> None: ...

class CommitOffsetsResult(_message.Message):
    __slots__ = ("request_id", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    error: Error
    def __init__(self, request_id: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...
