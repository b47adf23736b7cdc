from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SegmentKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENT_KIND_UNSPECIFIED: _ClassVar[SegmentKind]
    SEGMENT_KIND_INTAKE: _ClassVar[SegmentKind]
    SEGMENT_KIND_MERGED: _ClassVar[SegmentKind]
SEGMENT_KIND_UNSPECIFIED: SegmentKind
SEGMENT_KIND_INTAKE: SegmentKind
SEGMENT_KIND_MERGED: SegmentKind

class SegmentFooter(_message.Message):
    __slots__ = ("cluster_id", "broker_id", "broker_epoch", "sequence", "created_at_ms", "kind", "chunks", "merged")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    BROKER_ID_FIELD_NUMBER: _ClassVar[int]
    BROKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MERGED_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    broker_id: str
    broker_epoch: int
    sequence: int
    created_at_ms: int
    kind: SegmentKind
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    merged: MergedRange
    def __init__(self, cluster_id: _Optional[str] = ..., broker_id: _Optional[str] = ..., broker_epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., created_at_ms: _Optional[int] = ..., kind: _Optional[_Union[SegmentKind, str]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., merged: _Optional[_Union[MergedRange, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("topic_id", "partition", "position", "length", "batch_count", "record_count", "max_timestamp_ms", "crc32c")
    TOPIC_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    BATCH_COUNT_FIELD_NUMBER: _ClassVar[int]
    RECORD_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_TIMESTAMP_MS_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    topic_id: bytes
    partition: int
    position: int
    length: int
    batch_count: int
    record_count: int
    max_timestamp_ms: int
    crc32c: int
    def __init__(self, topic_id: _Optional[bytes] = ..., partition: _Optional[int] = ..., position: _Optional[int] = ..., length: _Optional[int] = ..., batch_count: _Optional[int] = ..., record_count: _Optional[int] = ..., max_timestamp_ms: _Optional[int] = ..., crc32c: _Optional[int] = ...) -> None: ...

class MergedRange(_message.Message):
    __slots__ = ("base_offset", "next_offset", "first_leader_epoch", "last_leader_epoch", "index")
    BASE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    FIRST_LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LAST_LEADER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    base_offset: int
    next_offset: int
    first_leader_epoch: int
    last_leader_epoch: int
    index: _containers.RepeatedCompositeFieldContainer[IndexEntry]
    def __init__(self, base_offset: _Optional[int] = ..., next_offset: _Optional[int] = ..., first_leader_epoch: _Optional[int] = ..., last_leader_epoch: _Optional[int] = ..., index: _Optional[_Iterable[_Union[IndexEntry, _Mapping]]] = ...) -> None: ...

class IndexEntry(_message.Message):
    __slots__ = ("offset", "max_timestamp_ms", "position", "crc32c")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MAX_TIMESTAMP_MS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    offset: int
    max_timestamp_ms: int
    position: int
    crc32c: int
    def __init__(self, offset: _Optional[int] = ..., max_timestamp_ms: _Optional[int] = ..., position: _Optional[int] = ..., crc32c: _Optional[int] = ...) -> None: ...
