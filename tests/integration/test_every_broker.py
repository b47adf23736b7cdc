"""One address is enough: every call of Log and Admin works on every broker of three, real processes on PostgreSQL and a directory."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tidelog
from tidelog.proto.v1 import admin_pb2, admin_pb2_grpc, log_pb2, log_pb2_grpc
from tidelog.records.codec import Producer, encode_many

from tests.chaos.cluster import BrokerProcess, broker_processes
from tests.chaos.scenario import free_ports, wait_until_served
from tests.served import error_info

BROKERS = 3
PARTITIONS = 6


@pytest.fixture
async def brokers(tmp_path: Path, postgres_url: str) -> AsyncIterator[list[BrokerProcess]]:
    where = {"bucket": f"file://{tmp_path / 'objects'}", "metadata": postgres_url}
    # Calls are made once here, and must not meet a lease that lapsed because the machine is busy.
    async with broker_processes(tmp_path, free_ports(BROKERS), **where, lease_ms=30_000) as brokers:
        await wait_until_served(brokers)
        yield brokers


class Caller:
    """Calls one broker and no other, and notes which calls were answered."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.answered: set[str] = set()
        self._log: Any = log_pb2_grpc.LogStub(channel)
        self._admin: Any = admin_pb2_grpc.AdminStub(channel)

    async def log(self, name: str, request: object) -> Any:
        answer = await getattr(self._log, name)(request, timeout=30)
        self.answered.add(name)
        return answer

    async def admin(self, name: str, request: object) -> Any:
        answer = await getattr(self._admin, name)(request, timeout=30)
        self.answered.add(name)
        return answer

    async def produce(self, *appends: log_pb2.ProduceAppend) -> list[log_pb2.ProduceResult]:
        call = self._log.Produce(timeout=30)
        await call.write(log_pb2.ProduceRequest(appends=appends))
        await call.done_writing()
        results = [result async for response in call for result in response.results]
        self.answered.add("Produce")
        return sorted(results, key=lambda result: result.request_id)

    async def consume(self, *adds: log_pb2.AddPartition) -> dict[int, int]:
        """Return how many records' worth of offsets came of each subscription."""
        call = self._log.Consume(timeout=30)
        await call.write(log_pb2.ConsumeRequest(add=adds, credit_bytes=1 << 20))
        await call.done_writing()
        found = {add.subscription_id: 0 for add in adds}
        async for response in call:
            if response.WhichOneof("event") == "batches":
                found[response.batches.subscription_id] += response.batches.next_offset - response.batches.base_offset
            assert not response.end.HasField("error"), response.end.error
        self.answered.add("Consume")
        return found


def place(topic: str, partition: int = 0) -> log_pb2.TopicPartition:
    return log_pb2.TopicPartition(topic=topic, partition=partition)


async def call_everything(caller: Caller, topic: str, names: list[str]) -> None:
    """Make each call once at least, on partitions of every leader, and look at what is answered."""
    created = await caller.admin("CreateTopic", admin_pb2.CreateTopicRequest(name=topic, partitions=PARTITIONS - 1))
    assert len(created.topic.partitions) == PARTITIONS - 1
    await caller.admin("CreatePartitions", admin_pb2.CreatePartitionsRequest(name=topic, partitions=PARTITIONS))
    altered = await caller.admin("AlterTopic", admin_pb2.AlterTopicRequest(name=topic, config=admin_pb2.TopicConfig(retention_ms=5)))
    assert altered.topic.config.retention_ms == 5
    told = (await caller.log("GetMetadata", log_pb2.GetMetadataRequest(topics=[topic]))).topics[0]
    assert (told.partitions, len(told.topic_id)) == (PARTITIONS, 16)

    identity = await caller.log("InitProducer", log_pb2.InitProducerRequest())
    data = bytes(encode_many([b"a", b"b"], producer=Producer(identity.producer_id, identity.producer_epoch, 0)))
    appends = [log_pb2.ProduceAppend(request_id=n, topic=topic, partition=n, batches=data) for n in range(PARTITIONS)]
    for repeated in (False, True):
        results = await caller.produce(*appends)
        assert [(r.base_offset, r.next_offset, r.duplicate, r.error.reason) for r in results] == [(0, 2, repeated, "")] * PARTITIONS
    for partition in range(PARTITIONS):
        request = log_pb2.AppendRequest(topic=topic, partition=partition, records=[log_pb2.Record(value=b"c")])
        assert (await caller.log("Append", request)).base_offset == 2
        token = log_pb2.SetFencingTokenRequest(partition=place(topic, partition), token="mine")
        assert (await caller.log("SetFencingToken", token)).next_offset == 3

    adds = [
        log_pb2.AddPartition(subscription_id=n, partition=place(topic, n), start=log_pb2.Position(earliest=True), stop_offset=3)
        for n in range(PARTITIONS)
    ]
    assert await caller.consume(*adds) == dict.fromkeys(range(PARTITIONS), 3)
    for partition in range(PARTITIONS):
        read = await caller.log("Read", log_pb2.ReadRequest(partition=place(topic, partition)))
        assert [record.value for record in read.records] == [b"a", b"b", b"c"]
    query = log_pb2.ListOffsetsRequest.Query
    queries = [query(partition=place(topic, n), at=log_pb2.Position(latest=True)) for n in range(PARTITIONS)]
    answers = (await caller.log("ListOffsets", log_pb2.ListOffsetsRequest(queries=queries))).answers
    assert [answer.offset for answer in answers] == [3] * PARTITIONS
    deleted = await caller.admin("DeleteRecords", admin_pb2.DeleteRecordsRequest(partition=place(topic, 1), before_offset=2))
    assert deleted.log_start_offset == 2
    described = (await caller.admin("DescribeTopics", admin_pb2.DescribeTopicsRequest(names=[topic]))).topics[0]
    assert [(part.log_start_offset, part.next_offset) for part in described.partitions][:2] == [(0, 3), (2, 3)]
    assert {part.leader for part in described.partitions} <= set(names)

    cluster = await caller.admin("DescribeCluster", admin_pb2.DescribeClusterRequest())
    assert sorted(broker.broker_id for broker in cluster.brokers) == sorted(names)
    for name in names:
        await caller.admin("DrainBroker", admin_pb2.DrainBrokerRequest(broker_id=name, undo=True))
    plan = await caller.admin("PlanCleaning", admin_pb2.PlanCleaningRequest())
    assert plan.complete
    await caller.admin("DeleteTopic", admin_pb2.DeleteTopicRequest(name=topic))


async def test_every_call_works_on_every_broker_of_three(brokers: list[BrokerProcess]) -> None:
    names = [broker.name for broker in brokers]
    groups = {"Group", "ListGroups", "DescribeGroup", "DeleteGroup", "ResetOffsets"}
    services = (log_pb2.DESCRIPTOR.services_by_name["Log"], admin_pb2.DESCRIPTOR.services_by_name["Admin"])
    every = {method.name for service in services for method in service.methods}
    for broker in brokers:
        async with grpc.aio.insecure_channel(broker.address) as channel:
            caller = Caller(channel)
            await call_everything(caller, f"of-{broker.name}", names)
            assert caller.answered == every - groups
            for name in groups - {"Group"}:
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await caller.admin(name, getattr(admin_pb2, f"{name}Request")())
                assert (failed.value.code(), error_info(failed.value).reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_SERVED")


async def test_a_client_that_knows_one_address_sees_a_drain_of_that_broker_through(brokers: list[BrokerProcess]) -> None:
    """It was told of the others, and goes on there; what it sends and reads is whole."""
    async with tidelog.connect(brokers[0].address) as log:
        await log.admin.create_topic("t", partitions=PARTITIONS)
        async with log.producer(linger_ms=1) as producer:
            for number in range(600):
                if number == 200:
                    assert await brokers[0].drain() == 0
                await producer.send("t", b"%d" % number, partition=number % PARTITIONS)
        found = {(record.partition, record.offset): record.value async for record in log.consume("t", follow=False)}
    assert found == {(number % PARTITIONS, number // PARTITIONS): b"%d" % number for number in range(600)}
