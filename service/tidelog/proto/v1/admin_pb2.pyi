from tidelog.proto.v1 import log_pb2 as _log_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TopicConfig(_message.Message):
    __slots__ = ("retention_ms", "retention_bytes", "compact")
    RETENTION_MS_FIELD_NUMBER: _ClassVar[int]
    RETENTION_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPACT_FIELD_NUMBER: _ClassVar[int]
    retention_ms: int
    retention_bytes: int
    compact: bool
    def __init__(self, retention_ms: _Optional[int] = ..., retention_bytes: _Optional[int] = ..., compact: _Optional[bool] = ...) -> None: ...

class CreateTopicRequest(_message.Message):
    __slots__ = ("name", "partitions", "config")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    name: str
    partitions: int
    config: TopicConfig
    def __init__(self, name: _Optional[str] = ..., partitions: _Optional[int] = ..., config: _Optional[_Union[TopicConfig, _Mapping]] = ...) -> None: ...

class CreateTopicResponse(_message.Message):
    __slots__ = ("topic",)
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    topic: TopicDescription
    def __init__(self, topic: _Optional[_Union[TopicDescription, _Mapping]] = ...) -> None: ...

class TopicDescription(_message.Message):
    __slots__ = ("name", "topic_id", "config", "partitions", "error")
    class Partition(_message.Message):
        __slots__ = ("partition", "leader", "leader_epoch", "log_start_offset", "next_offset")
        PARTITION_FIELD_NUMBER: _ClassVar[int]
        LEADER_FIELD_NUMBER: _ClassVar[int]
        LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
        LOG_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
        NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
        partition: int
        leader: str
        leader_epoch: int
        log_start_offset: int
        next_offset: int
        def __init__(self, partition: _Optional[int] = ..., leader: _Optional[str] = ..., leader_epoch: _Optional[int] = ..., log_start_offset: _Optional[int] = ..., next_offset: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    topic_id: bytes
    config: TopicConfig
    partitions: _containers.RepeatedCompositeFieldContainer[TopicDescription.Partition]
    error: _log_pb2.Error
    def __init__(self, name: _Optional[str] = ..., topic_id: _Optional[bytes] = ..., config: _Optional[_Union[TopicConfig, _Mapping]] = ..., partitions: _Optional[_Iterable[_Union[TopicDescription.Partition, _Mapping]]] = ..., error: _Optional[_Union[_log_pb2.Error, _Mapping]] = ...) -> None: ...

class DeleteTopicRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteTopicResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeTopicsRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeTopicsResponse(_message.Message):
    __slots__ = ("topics",)
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    topics: _containers.RepeatedCompositeFieldContainer[TopicDescription]
    def __init__(self, topics: _Optional[_Iterable[_Union[TopicDescription, _Mapping]]] = ...) -> None: ...

class AlterTopicRequest(_message.Message):
    __slots__ = ("name", "config")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    name: str
    config: TopicConfig
    def __init__(self, name: _Optional[str] = ..., config: _Optional[_Union[TopicConfig, _Mapping]] = ...) -> None: ...

class AlterTopicResponse(_message.Message):
    __slots__ = ("topic",)
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    topic: TopicDescription
    def __init__(self, topic: _Optional[_Union[TopicDescription, _Mapping]] = ...) -> None: ...

class CreatePartitionsRequest(_message.Message):
    __slots__ = ("name", "partitions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    partitions: int
    def __init__(self, name: _Optional[str] = ..., partitions: _Optional[int] = ...) -> None: ...

class CreatePartitionsResponse(_message.Message):
    __slots__ = ("topic",)
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    topic: TopicDescription
    def __init__(self, topic: _Optional[_Union[TopicDescription, _Mapping]] = ...) -> None: ...

class DeleteRecordsRequest(_message.Message):
    __slots__ = ("partition", "before_offset")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    BEFORE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    partition: _log_pb2.TopicPartition
    before_offset: int
    def __init__(self, partition: _Optional[_Union[_log_pb2.TopicPartition, _Mapping]] = ..., before_offset: _Optional[int] = ...) -> None: ...

class DeleteRecordsResponse(_message.Message):
    __slots__ = ("log_start_offset",)
    LOG_START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    log_start_offset: int
    def __init__(self, log_start_offset: _Optional[int] = ...) -> None: ...

class ListGroupsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListGroupsResponse(_message.Message):
    __slots__ = ("group_ids",)
    GROUP_IDS_FIELD_NUMBER: _ClassVar[int]
    group_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, group_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeGroupRequest(_message.Message):
    __slots__ = ("group_id",)
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    def __init__(self, group_id: _Optional[str] = ...) -> None: ...

class DescribeGroupResponse(_message.Message):
    __slots__ = ("group_id", "generation", "members", "lags")
    class Member(_message.Message):
        __slots__ = ("member_id", "partitions")
        MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
        PARTITIONS_FIELD_NUMBER: _ClassVar[int]
        member_id: str
        partitions: _containers.RepeatedCompositeFieldContainer[_log_pb2.TopicPartition]
        def __init__(self, member_id: _Optional[str] = ..., partitions: _Optional[_Iterable[_Union[_log_pb2.TopicPartition, _Mapping]]] = ...) -> None: ...
    class Lag(_message.Message):
        __slots__ = ("partition", "next_offset", "high_watermark", "lag_records")
        PARTITION_FIELD_NUMBER: _ClassVar[int]
        NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
        HIGH_WATERMARK_FIELD_NUMBER: _ClassVar[int]
        LAG_RECORDS_FIELD_NUMBER: _ClassVar[int]
        partition: _log_pb2.TopicPartition
        next_offset: int
        high_watermark: int
        lag_records: int
        def __init__(self, partition: _Optional[_Union[_log_pb2.TopicPartition, _Mapping]] = ..., next_offset: _Optional[int] = ..., high_watermark: _Optional[int] = ..., lag_records: _Optional[int] = ...) -> None: ...
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    LAGS_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    generation: int
    members: _containers.RepeatedCompositeFieldContainer[DescribeGroupResponse.Member]
    lags: _containers.RepeatedCompositeFieldContainer[DescribeGroupResponse.Lag]
    def __init__(self, group_id: _Optional[str] = ..., generation: _Optional[int] = ..., members: _Optional[_Iterable[_Union[DescribeGroupResponse.Member, _Mapping]]] = ..., lags: _Optional[_Iterable[_Union[DescribeGroupResponse.Lag, _Mapping]]] = ...) -> None: ...

class DeleteGroupRequest(_message.Message):
    __slots__ = ("group_id",)
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    def __init__(self, group_id: _Optional[str] = ...) -> None: ...

class DeleteGroupResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResetOffsetsRequest(_message.Message):
    __slots__ = ("group_id", "topic", "to")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    topic: str
    to: _log_pb2.Position
    def __init__(self, group_id: _Optional[str] = ..., topic: _Optional[str] = ..., to: _Optional[_Union[_log_pb2.Position, _Mapping]] = ...) -> None: ...

class ResetOffsetsResponse(_message.Message):
    __slots__ = ("offsets",)
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    offsets: _containers.RepeatedCompositeFieldContainer[_log_pb2.GroupOffset]
    def __init__(self, offsets: _Optional[_Iterable[_Union[_log_pb2.GroupOffset, _Mapping]]] = ...) -> None: ...

class DescribeClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeClusterResponse(_message.Message):
    __slots__ = ("cluster_id", "format_version", "membership_version", "brokers")
    class Broker(_message.Message):
        __slots__ = ("broker_id", "broker_epoch", "address", "zone", "draining", "lease_remaining_ms", "led_partitions")
        BROKER_ID_FIELD_NUMBER: _ClassVar[int]
        BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        ZONE_FIELD_NUMBER: _ClassVar[int]
        DRAINING_FIELD_NUMBER: _ClassVar[int]
        LEASE_REMAINING_MS_FIELD_NUMBER: _ClassVar[int]
        LED_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
        broker_id: str
        broker_epoch: int
        address: str
        zone: str
        draining: bool
        lease_remaining_ms: int
        led_partitions: int
        def __init__(self, broker_id: _Optional[str] = ..., broker_epoch: _Optional[int] = ..., address: _Optional[str] = ..., zone: _Optional[str] = ..., draining: _Optional[bool] = ..., lease_remaining_ms: _Optional[int] = ..., led_partitions: _Optional[int] = ...) -> None: ...
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_VERSION_FIELD_NUMBER: _ClassVar[int]
    BROKERS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    format_version: int
    membership_version: int
    brokers: _containers.RepeatedCompositeFieldContainer[DescribeClusterResponse.Broker]
    def __init__(self, cluster_id: _Optional[str] = ..., format_version: _Optional[int] = ..., membership_version: _Optional[int] = ..., brokers: _Optional[_Iterable[_Union[DescribeClusterResponse.Broker, _Mapping]]] = ...) -> None: ...

class DrainBrokerRequest(_message.Message):
    __slots__ = ("broker_id", "undo")
    BROKER_ID_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    broker_id: str
    undo: bool
    def __init__(self, broker_id: _Optional[str] = ..., undo: _Optional[bool] = ...) -> None: ...

class DrainBrokerResponse(_message.Message):
    __slots__ = ("drained", "led_partitions")
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    LED_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    drained: bool
    led_partitions: int
    def __init__(self, drained: _Optional[bool] = ..., led_partitions: _Optional[int] = ...) -> None: ...

class PlanCleaningRequest(_message.Message):
    __slots__ = ("max_objects",)
    MAX_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    max_objects: int
    def __init__(self, max_objects: _Optional[int] = ...) -> None: ...

class PlanCleaningResponse(_message.Message):
    __slots__ = ("objects", "listed", "complete")
    class Object(_message.Message):
        __slots__ = ("key", "reason", "state", "bytes", "age_ms")
        KEY_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        BYTES_FIELD_NUMBER: _ClassVar[int]
        AGE_MS_FIELD_NUMBER: _ClassVar[int]
        key: str
        reason: str
        state: str
        bytes: int
        age_ms: int
        def __init__(self, key: _Optional[str] = ..., reason: _Optional[str] = ..., state: _Optional[str] = ..., bytes: _Optional[int] = ..., age_ms: _Optional[int] = ...) -> None: ...
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    LISTED_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    objects: _containers.RepeatedCompositeFieldContainer[PlanCleaningResponse.Object]
    listed: int
    complete: bool
    def __init__(self, objects: _Optional[_Iterable[_Union[PlanCleaningResponse.Object, _Mapping]]] = ..., listed: _Optional[int] = ..., complete: _Optional[bool] = ...) -> None: ...
