"""Administration: topics, partitions, offsets and brokers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tidelog.client import wire
from tidelog.client.connection import Brokers
from tidelog.client.consumer import position, resolve
from tidelog.errors import InvalidRequest
from tidelog.proto.v1 import admin_pb2 as pb
from tidelog.proto.v1 import log_pb2


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """What a topic keeps. None: the cluster's default, or what is set."""

    retention_ms: int | None = None
    """-1: for ever."""
    retention_bytes: int | None = None
    """Per partition; -1: no limit."""
    compact: bool | None = None


@dataclass(frozen=True, slots=True)
class PartitionDescription:
    """One partition as it is now."""

    partition: int
    leader: str
    """A broker id; empty: none now."""
    leader_epoch: int
    log_start_offset: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic as it is now."""

    name: str
    topic_id: bytes
    config: TopicConfig
    partitions: tuple[PartitionDescription, ...]


@dataclass(frozen=True, slots=True)
class BrokerDescription:
    """A broker that is a member."""

    broker_id: str
    broker_epoch: int
    address: str
    zone: str
    draining: bool
    lease_remaining_ms: int
    led_partitions: int


@dataclass(frozen=True, slots=True)
class PlannedObject:
    """An object that the cleaner has in mind."""

    key: str
    reason: str
    """released: all its records are merged or expired; orphan: no row knows it."""
    state: str
    """deletable; or why not yet: grace, checkpoint, unresolved, referenced, young."""
    bytes: int
    age_ms: int


@dataclass(frozen=True, slots=True)
class CleaningPlan:
    """What the cleaner would do."""

    objects: tuple[PlannedObject, ...]
    listed: int
    """Objects of the bucket that were looked at."""
    complete: bool
    """These are all there are."""


@dataclass(frozen=True, slots=True)
class ClusterDescription:
    """The cluster as it is now."""

    cluster_id: str
    format_version: int
    membership_version: int
    brokers: tuple[BrokerDescription, ...]


class Admin:
    """`log.admin`. What can be tried again is, until the call's time is over.

    All calls raise PermissionDenied and the errors of a cluster that is not well. What creates or deletes raises
    OutcomeUnknown where no answer came.
    """

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers

    # ---- topics

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int = 0,
        retention_ms: int | None = None,
        retention_bytes: int | None = None,
        compact: bool | None = None,
    ) -> TopicDescription:
        """Create a topic; 0 partitions: the cluster's default. Raises TopicExists, InvalidRequest."""
        _check_count("partitions", partitions)
        with wire.checked():
            request = pb.CreateTopicRequest(name=name, partitions=partitions, config=_config(retention_ms, retention_bytes, compact))
        answer = await self._brokers.call(lambda broker: broker.admin.CreateTopic, request, repeatable=False)
        return _topic(answer.topic)

    async def delete_topic(self, name: str) -> None:
        """Delete a topic and all its records. Raises UnknownTopic."""
        with wire.checked():
            request = pb.DeleteTopicRequest(name=name)
        await self._brokers.call(lambda broker: broker.admin.DeleteTopic, request, repeatable=False)

    async def alter_topic(
        self, name: str, *, retention_ms: int | None = None, retention_bytes: int | None = None, compact: bool | None = None
    ) -> TopicDescription:
        """Set what a topic keeps; what is None stays. Raises UnknownTopic."""
        with wire.checked():
            request = pb.AlterTopicRequest(name=name, config=_config(retention_ms, retention_bytes, compact))
        return _topic((await self._brokers.call(lambda broker: broker.admin.AlterTopic, request)).topic)

    async def create_partitions(self, name: str, *, partitions: int) -> TopicDescription:
        """Raise a topic's number of partitions to this. Raises UnknownTopic, InvalidRequest."""
        _check_count("partitions", partitions)
        with wire.checked():
            request = pb.CreatePartitionsRequest(name=name, partitions=partitions)
        return _topic((await self._brokers.call(lambda broker: broker.admin.CreatePartitions, request)).topic)

    async def describe_topics(self, names: Sequence[str] = ()) -> list[TopicDescription]:
        """Return these topics, or all. Raises UnknownTopic."""
        with wire.checked():
            request = pb.DescribeTopicsRequest(names=names)
        answer = await self._brokers.call(lambda broker: broker.admin.DescribeTopics, request)
        for told in answer.topics:
            if told.HasField("error"):
                raise wire.error_of(told.error)
        return [_topic(told) for told in answer.topics]

    async def describe_topic(self, name: str) -> TopicDescription:
        """Return one topic. Raises UnknownTopic."""
        return (await self.describe_topics([name]))[0]

    async def list_topics(self) -> list[str]:
        """Return the names of all topics that the caller may see, sorted."""
        return sorted(topic.name for topic in (await self._brokers.metadata([])).topics)

    # ---- records

    async def delete_records(self, topic: str, partition: int, *, before_offset: int | None = None) -> int:
        """Move the log start to `before_offset`, or (None) to the end; return it. Raises OffsetOutOfRange."""
        if before_offset is not None:
            _check_count("before_offset", before_offset)
        where = wire.partition(topic, partition)
        with wire.checked():
            request = pb.DeleteRecordsRequest(partition=where, before_offset=-1 if before_offset is None else before_offset)
        answer = await self._brokers.call(
            lambda broker: broker.admin.DeleteRecords, request, repeatable=before_offset is not None
        )  # the end may be another the second time
        return int(answer.log_start_offset)

    async def list_offsets(self, topic: str, *, partitions: Sequence[int] | None = None, at: str | datetime = "latest") -> dict[int, int]:
        """Return an offset per partition: "earliest", "latest", or the first record of a time or later (else the end)."""
        where = position(at, name="at")
        if where.HasField("offset"):
            raise InvalidRequest(f'at={at} was asked for; give "earliest", "latest", or a datetime with a time zone')
        if partitions is None:
            told = (await self._brokers.metadata([topic])).topics[0]
            if told.HasField("error"):
                raise wire.error_of(told.error)
            partitions = range(told.partitions)
        offsets = await resolve(self._brokers, [(topic, partition) for partition in partitions], where)
        return dict(zip(partitions, offsets, strict=True))

    async def set_fencing_token(self, topic: str, partition: int, token: str | None, *, expected: str | None = None) -> int:
        """Take a partition over: from now on appends that show another token than this are refused, those under way included.

        Returns where the partition ended then: what `log.producer(fencing_token=token)` appends comes at or after that, and nothing of
        a writer with another token does. Appends that show none are not looked at. `expected` sets it only where it is that one now
        ("": none is); None as `token` takes it away. Takes the right to write to the topic.

        Raises UnknownTopic, UnknownPartition, ConditionFailed (it was another), OutcomeUnknown (set the same one again).
        """
        where = wire.partition(topic, partition)
        with wire.checked():
            request = log_pb2.SetFencingTokenRequest(partition=where, token=token, expected_token=expected)
        answer = await self._brokers.call(lambda broker: broker.log.SetFencingToken, request)
        return int(answer.next_offset)

    # ---- brokers

    async def describe_cluster(self) -> ClusterDescription:
        """Return the cluster and its brokers."""
        told = await self._brokers.call(lambda broker: broker.admin.DescribeCluster, pb.DescribeClusterRequest())
        brokers = tuple(
            BrokerDescription(
                broker.broker_id, broker.broker_epoch, broker.address, broker.zone, broker.draining, broker.lease_remaining_ms,
                broker.led_partitions,
            )
            for broker in told.brokers
        )  # fmt: skip
        return ClusterDescription(told.cluster_id, told.format_version, told.membership_version, brokers)

    async def plan_cleaning(self, *, max_objects: int = 0) -> CleaningPlan:
        """Return what the cleaner would delete now, and why; nothing is deleted. 0 stands for the broker's own limit."""
        _check_count("max_objects", max_objects)
        with wire.checked():
            request = pb.PlanCleaningRequest(max_objects=max_objects)
        plan = await self._brokers.call(lambda broker: broker.admin.PlanCleaning, request)
        objects = tuple(PlannedObject(each.key, each.reason, each.state, each.bytes, each.age_ms) for each in plan.objects)
        return CleaningPlan(objects, plan.listed, plan.complete)

    async def drain(self, broker_id: str, *, undo: bool = False) -> tuple[bool, int]:
        """Have a broker hand over what it leads and take nothing new; return whether it is done, and what is left to hand over.

        Returns at once; call again to see how far it is. `undo` takes it back.
        """
        with wire.checked():
            request = pb.DrainBrokerRequest(broker_id=broker_id, undo=undo)
        answer = await self._brokers.call(lambda broker: broker.admin.DrainBroker, request)
        return answer.drained, answer.led_partitions


def _check_count(name: str, number: int) -> None:
    if number < 0:
        raise InvalidRequest(f"{name}={number} was asked for; it must not be below 0")


def _config(retention_ms: int | None, retention_bytes: int | None, compact: bool | None) -> pb.TopicConfig:
    return pb.TopicConfig(retention_ms=retention_ms, retention_bytes=retention_bytes, compact=compact)


def _topic(told: pb.TopicDescription) -> TopicDescription:
    config = TopicConfig(
        told.config.retention_ms if told.config.HasField("retention_ms") else None,
        told.config.retention_bytes if told.config.HasField("retention_bytes") else None,
        told.config.compact if told.config.HasField("compact") else None,
    )
    partitions = tuple(
        PartitionDescription(part.partition, part.leader, part.leader_epoch, part.log_start_offset, part.next_offset)
        for part in told.partitions
    )
    return TopicDescription(told.name, told.topic_id, config, partitions)
