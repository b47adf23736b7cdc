"""Without a right, a call tells nothing: it answers the same of a topic that exists and of one that does not."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from tidelog.metadata.topics import TopicConfig
from tidelog.proto.v1 import admin_pb2 as admin
from tidelog.proto.v1 import log_pb2 as log
from tidelog.proto.v1 import peers_pb2, peers_pb2_grpc

from tests.listed_broker import ListedBroker
from tests.served import Served, batch, error_info, serving

STRANGER = (("authorization", "Bearer stranger"),)
READER = (("authorization", "Bearer reader"),)


def tokens(*entries: str) -> str:
    return "tokens:\n" + "".join(
        f"  - {{name: {entry.split()[0]}, token: {entry.split()[0]}, {entry.partition(' ')[2]}}}\n" for entry in entries
    )


TOKENS = tokens("stranger read: [open], write: [open], admin: [open]", "reader read: ['']", "none read: []")


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Served]:
    file = tmp_path / "tokens.yaml"
    file.write_text(TOKENS)
    broker = ListedBroker()
    broker.creates_topics = True
    for name in ("open", "secret"):
        await broker.create_topic(name, partitions=1, config=TopicConfig())
        broker.logs[name][0].append(batch(b"v"))
    async with serving(broker, tokens_file=str(file)) as served:
        yield served


def place(topic: str, partition: int = 0) -> log.TopicPartition:
    return log.TopicPartition(topic=topic, partition=partition)


def shown(error: BaseException) -> str:
    assert isinstance(error, grpc.aio.AioRpcError), repr(error)
    info = error_info(error)
    return f"{error.code().name} {info.reason} {sorted(info.metadata.items())} {error.details()}"


async def answer(call: Awaitable[Message]) -> str:
    try:
        return str(await call)
    except grpc.aio.AioRpcError as error:
        return shown(error)


async def exchange(call: Any, request: Message) -> str:
    await call.write(request)
    response = await call.read()
    call.cancel()
    return str(response)


Ask = Callable[[Served, str], Awaitable[str]]
ABOUT_TOPICS: dict[str, Ask] = {
    "Produce": lambda s, t: exchange(
        s.log.Produce(metadata=STRANGER), log.ProduceRequest(appends=[log.ProduceAppend(topic=t, batches=batch(b"v"))])
    ),
    "Consume": lambda s, t: exchange(
        s.log.Consume(metadata=STRANGER), log.ConsumeRequest(add=[log.AddPartition(subscription_id=1, partition=place(t))], credit_bytes=99)
    ),
    "Append": lambda s, t: answer(s.log.Append(log.AppendRequest(topic=t, records=[log.Record(value=b"v")]), metadata=STRANGER)),
    "Read": lambda s, t: answer(s.log.Read(log.ReadRequest(partition=place(t)), metadata=STRANGER)),
    "ListOffsets": lambda s, t: answer(
        s.log.ListOffsets(log.ListOffsetsRequest(queries=[log.ListOffsetsRequest.Query(partition=place(t))]), metadata=STRANGER)
    ),
    "GetMetadata": lambda s, t: answer(s.log.GetMetadata(log.GetMetadataRequest(topics=[t], create_missing=True), metadata=STRANGER)),
    "SetFencingToken": lambda s, t: answer(
        s.log.SetFencingToken(log.SetFencingTokenRequest(partition=place(t), token="a"), metadata=STRANGER)
    ),
    "CreateTopic": lambda s, t: answer(s.admin.CreateTopic(admin.CreateTopicRequest(name=t), metadata=STRANGER)),
    "DeleteTopic": lambda s, t: answer(s.admin.DeleteTopic(admin.DeleteTopicRequest(name=t), metadata=STRANGER)),
    "DescribeTopics": lambda s, t: answer(s.admin.DescribeTopics(admin.DescribeTopicsRequest(names=[t]), metadata=STRANGER)),
    "AlterTopic": lambda s, t: answer(s.admin.AlterTopic(admin.AlterTopicRequest(name=t), metadata=STRANGER)),
    "CreatePartitions": lambda s, t: answer(s.admin.CreatePartitions(admin.CreatePartitionsRequest(name=t), metadata=STRANGER)),
    "DeleteRecords": lambda s, t: answer(s.admin.DeleteRecords(admin.DeleteRecordsRequest(partition=place(t)), metadata=STRANGER)),
}
NOT_ABOUT_TOPICS = {"InitProducer", "DescribeCluster", "DrainBroker", "PlanCleaning"}
NOT_SERVED = {"Group", "ListGroups", "DescribeGroup", "DeleteGroup", "ResetOffsets"}


def test_every_call_is_asked_about() -> None:
    services = (log.DESCRIPTOR.services_by_name["Log"], admin.DESCRIPTOR.services_by_name["Admin"])
    assert {method.name for service in services for method in service.methods} == set(ABOUT_TOPICS) | NOT_ABOUT_TOPICS | NOT_SERVED


@pytest.mark.parametrize("name", ABOUT_TOPICS)
async def test_without_a_right_a_topic_that_exists_answers_as_one_that_does_not(guarded: Served, name: str) -> None:
    there, absent = [(await ABOUT_TOPICS[name](guarded, topic)).replace(topic, "TOPIC") for topic in ("secret", "absent")]
    assert there == absent
    assert "PERMISSION_DENIED" in there
    assert "absent" not in guarded.broker.known
    assert [record.next_offset for record in guarded.broker.logs["secret"]] == [1]


@pytest.mark.parametrize("name", ABOUT_TOPICS)
async def test_with_the_right_the_same_call_is_done(guarded: Served, name: str) -> None:
    """Else the test above would pass for calls that are wrong in another way."""
    done = await ABOUT_TOPICS[name](guarded, "open")
    expected = {"CreateTopic": "TOPIC_EXISTS", "CreatePartitions": "INVALID_REQUEST"}.get(name)
    assert expected in done if expected else "error" not in done and "reason" not in done


async def test_lists_and_counts_show_what_the_caller_may_see(guarded: Served) -> None:
    listed = await guarded.log.GetMetadata(log.GetMetadataRequest(), metadata=STRANGER)
    described = await guarded.admin.DescribeTopics(admin.DescribeTopicsRequest(), metadata=STRANGER)
    assert [topic.name for topic in (*listed.topics, *described.topics)] == ["open", "open"]
    cluster = admin.DescribeClusterRequest()
    assert "PERMISSION_DENIED" in await answer(guarded.admin.DescribeCluster(cluster, metadata=STRANGER)), "led partitions are a count"
    assert (await guarded.admin.DescribeCluster(cluster, metadata=READER)).brokers[0].led_partitions == 2
    assert "PERMISSION_DENIED" in await answer(guarded.log.InitProducer(log.InitProducerRequest(), metadata=READER))
    assert "PERMISSION_DENIED" in await answer(guarded.admin.DrainBroker(admin.DrainBrokerRequest(), metadata=READER))
    assert "PERMISSION_DENIED" in await answer(guarded.admin.PlanCleaning(admin.PlanCleaningRequest(), metadata=READER))


async def test_a_token_that_is_taken_back_ends_what_was_opened_with_it(guarded: Served, tmp_path: Path) -> None:
    produce = guarded.log.Produce(metadata=STRANGER)
    append = log.ProduceRequest(appends=[log.ProduceAppend(topic="open", batches=batch(b"v"))])
    await produce.write(append)
    assert not (await produce.read()).results[0].HasField("error")
    consume = guarded.log.Consume(metadata=STRANGER)
    start = log.Position(latest=True)
    await consume.write(
        log.ConsumeRequest(add=[log.AddPartition(subscription_id=1, partition=place("open"), start=start)], credit_bytes=9_999_999)
    )
    assert (await consume.read()).HasField("progress")
    (tmp_path / "tokens.yaml").write_text(tokens("reader read: ['']"))
    async with asyncio.timeout(20):
        while True:
            await produce.write(append)
            result = (await produce.read()).results[0]
            if result.HasField("error"):
                break
            await asyncio.sleep(0.05)
        assert result.error.reason == "UNAUTHENTICATED"
        guarded.broker.logs["open"][0].append(batch(b"not for them any more"))
        while (response := await consume.read()).WhichOneof("event") != "end":
            assert b"not for them" not in response.batches.batches
    assert response.end.error.reason == "UNAUTHENTICATED"
    produce.cancel()
    consume.cancel()


async def test_a_token_whose_scope_shrinks_loses_the_rest(guarded: Served, tmp_path: Path) -> None:
    produce = guarded.log.Produce(metadata=STRANGER)
    (tmp_path / "tokens.yaml").write_text(tokens("stranger read: [open], write: [else]"))
    async with asyncio.timeout(20):
        while True:
            await produce.write(log.ProduceRequest(appends=[log.ProduceAppend(topic="open", batches=batch(b"v"))]))
            if (error := (await produce.read()).results[0].error).reason:
                break
            await asyncio.sleep(0.05)
    assert error.reason == "PERMISSION_DENIED"
    produce.cancel()


async def test_what_tokens_do_not_open_is_not_open_by_the_way_of_brokers(guarded: Served) -> None:
    """Whoever may speak as a broker may append anywhere and hear of everything: being on this machine is not enough."""
    for metadata in ((), STRANGER):
        peers: Any = peers_pb2_grpc.PeersStub(guarded.channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await peers.Nudge(peers_pb2.NudgeRequest(), metadata=metadata)
        assert error_info(failed.value).reason == "UNAUTHENTICATED"
        assert "peer_token" in (failed.value.details() or "")


async def test_brokers_with_the_same_secret_reach_each_other_beside_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text(TOKENS)
    secret = hashlib.sha256(b"house").hexdigest()
    async with serving(tokens_file=str(file), peer_token=secret) as served:
        peers: Any = peers_pb2_grpc.PeersStub(served.channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await peers.Nudge(peers_pb2.NudgeRequest(), metadata=(("tidelog-peer-token", secret),))
        assert error_info(failed.value).reason != "UNAUTHENTICATED", "let in; then asked for what it left out"
