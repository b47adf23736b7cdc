"""The Admin service: what operators call. Rights are looked at first, so that a refusal says nothing of what exists."""

from collections.abc import Sequence
from typing import Any

import grpc

from tidelog.broker.marker import FORMAT_VERSION
from tidelog.config import Settings
from tidelog.errors import InvalidRequest, NotServed, PermissionDenied, TidelogError, UnknownTopic
from tidelog.metadata.topics import Topic, TopicConfig
from tidelog.proto.v1 import admin_pb2, admin_pb2_grpc
from tidelog.server import wire
from tidelog.server.callers import caller
from tidelog.server.ports import LogBroker

_Context = grpc.aio.ServicerContext[Any, Any]


class AdminServicer(admin_pb2_grpc.AdminServicer):
    """Answers the Admin service's calls from a broker."""

    def __init__(self, broker: LogBroker, settings: Settings) -> None:
        self._broker = broker
        self._settings = settings
        self._defaults = TopicConfig(settings.default_retention_ms, settings.default_retention_bytes)

    async def CreateTopic(self, request: admin_pb2.CreateTopicRequest, _context: _Context) -> admin_pb2.CreateTopicResponse:  # noqa: N802 - the contract's names
        """Create a topic."""
        caller().check_admin(request.name)
        config = wire.topic_config(request.config, defaults=self._defaults)
        topic = await self._broker.create_topic(request.name, partitions=request.partitions, config=config)
        return admin_pb2.CreateTopicResponse(topic=await self._described(topic))

    async def DeleteTopic(self, request: admin_pb2.DeleteTopicRequest, _context: _Context) -> admin_pb2.DeleteTopicResponse:  # noqa: N802
        """Delete a topic."""
        caller().check_admin(request.name)
        await self._broker.delete_topic(request.name)
        return admin_pb2.DeleteTopicResponse()

    async def DescribeTopics(  # noqa: N802
        self, request: admin_pb2.DescribeTopicsRequest, _context: _Context
    ) -> admin_pb2.DescribeTopicsResponse:
        """Describe the topics named, or all that the caller may see."""
        who = caller()
        wire.check_count("topics", len(request.names), self._settings)
        if not request.names:
            shown = [topic for topic in await self._broker.topics(None) if who.may_see(topic.name)]
            return admin_pb2.DescribeTopicsResponse(topics=await self._all_described(shown))
        allowed = [name for name in dict.fromkeys(request.names) if who.may_see(name)]
        topics = await self._broker.topics(allowed) if allowed else ()
        found = {description.name: description for description in await self._all_described(topics)}
        for name in request.names:
            if name not in found:
                error = _unknown(name) if name in allowed else _unseen(name)
                found[name] = admin_pb2.TopicDescription(name=name, error=wire.error_message(error))
        return admin_pb2.DescribeTopicsResponse(topics=[found[name] for name in dict.fromkeys(request.names)])

    async def AlterTopic(self, request: admin_pb2.AlterTopicRequest, _context: _Context) -> admin_pb2.AlterTopicResponse:  # noqa: N802
        """Set what a topic keeps; what the request does not say stays."""
        caller().check_admin(request.name)
        topics = await self._broker.topics([request.name])
        if not topics:
            raise _unknown(request.name)
        config = wire.topic_config(request.config, defaults=topics[0].config)
        topic = await self._broker.alter_topic(request.name, config=config)
        return admin_pb2.AlterTopicResponse(topic=await self._described(topic))

    async def CreatePartitions(  # noqa: N802
        self, request: admin_pb2.CreatePartitionsRequest, _context: _Context
    ) -> admin_pb2.CreatePartitionsResponse:
        """Raise a topic's number of partitions."""
        caller().check_admin(request.name)
        topic = await self._broker.create_partitions(request.name, partitions=request.partitions)
        return admin_pb2.CreatePartitionsResponse(topic=await self._described(topic))

    async def DeleteRecords(  # noqa: N802
        self, request: admin_pb2.DeleteRecordsRequest, _context: _Context
    ) -> admin_pb2.DeleteRecordsResponse:
        """Move a partition's log start forward."""
        caller().check_admin(request.partition.topic)
        if request.before_offset < -1:
            raise InvalidRequest(f"records before offset {request.before_offset} were to be deleted; give an offset, or -1 for all")
        start = await self._broker.delete_records(request.partition.topic, request.partition.partition, request.before_offset)
        return admin_pb2.DeleteRecordsResponse(log_start_offset=start)

    async def DescribeCluster(self, _request: object, _context: _Context) -> admin_pb2.DescribeClusterResponse:  # noqa: N802
        """Describe the brokers, their leases and their load."""
        caller().check_see_all()
        membership = await self._broker.membership()
        led = await self._broker.led_partitions()
        return admin_pb2.DescribeClusterResponse(
            cluster_id=self._broker.cluster_id(),
            format_version=FORMAT_VERSION,
            membership_version=membership.version,
            brokers=[
                wire.cluster_broker(broker, membership, led_partitions=led.get(broker.broker_epoch, 0)) for broker in membership.brokers
            ],
        )

    async def DrainBroker(self, request: admin_pb2.DrainBrokerRequest, _context: _Context) -> admin_pb2.DrainBrokerResponse:  # noqa: N802
        """Mark a broker as draining, or not, and say how far it is."""
        caller().check_operator()
        drained, led_partitions = await self._broker.drain(request.broker_id, undo=request.undo)
        return admin_pb2.DrainBrokerResponse(drained=drained, led_partitions=led_partitions)

    async def PlanCleaning(  # noqa: N802
        self, request: admin_pb2.PlanCleaningRequest, _context: _Context
    ) -> admin_pb2.PlanCleaningResponse:
        """Say what the cleaner would delete now."""
        caller().check_operator()
        plan = await self._broker.plan_cleaning(request.max_objects)
        objects = [
            admin_pb2.PlanCleaningResponse.Object(
                key=each.key, reason=each.reason, state=each.state, bytes=each.bytes, age_ms=max(0, each.age_ms)
            )
            for each in plan.objects
        ]
        return admin_pb2.PlanCleaningResponse(objects=objects, listed=plan.listed, complete=plan.complete)

    async def ListGroups(self, _request: object, _context: _Context) -> None:  # noqa: N802
        """Refuse: groups are not served yet."""
        raise _no_groups()

    async def DescribeGroup(self, _request: object, _context: _Context) -> None:  # noqa: N802
        """Refuse: groups are not served yet."""
        raise _no_groups()

    async def DeleteGroup(self, _request: object, _context: _Context) -> None:  # noqa: N802
        """Refuse: groups are not served yet."""
        raise _no_groups()

    async def ResetOffsets(self, _request: object, _context: _Context) -> None:  # noqa: N802
        """Refuse: groups are not served yet."""
        raise _no_groups()

    async def _described(self, topic: Topic) -> admin_pb2.TopicDescription:
        return (await self._all_described([topic]))[0]

    async def _all_described(self, topics: Sequence[Topic]) -> list[admin_pb2.TopicDescription]:
        leaders = {broker.broker_epoch: broker.broker_id for broker in (await self._broker.membership()).brokers}
        return [wire.topic_description(topic, await self._broker.partitions(topic.topic_id), leaders) for topic in topics]


def _no_groups() -> NotServed:
    return NotServed("groups were asked for, but this release serves no consumer groups; a later one will")


def _unknown(name: str) -> TidelogError:
    return UnknownTopic(f"topic {name!r} was asked for, but there is no such topic; list topics to see what there is")


def _unseen(name: str) -> TidelogError:
    return PermissionDenied(f"{caller().name} may not look at topic {name!r}, whether or not it exists; ask for a token with that scope")
