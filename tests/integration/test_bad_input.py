"""What cannot be done is refused by a whole service with the right reason, and what is beside it is done."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from struct import pack_into
from typing import Any

import grpc
import pytest
import tidelog
from crc32c import crc32c
from tidelog.proto.v1 import admin_pb2 as admin
from tidelog.proto.v1 import admin_pb2_grpc, log_pb2_grpc
from tidelog.proto.v1 import log_pb2 as log
from tidelog.records.codec import Producer, Record, encode

from tests.served import error_info

FAR = (1 << 63) - 1


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A service that does not make topics by itself."""
    with tidelog.embedded(auto_create_topics=False, max_queries_per_call=10, max_partitions_per_topic=50) as address:
        yield address


@dataclass
class Stubs:
    log: Any
    admin: Any
    channel: grpc.aio.Channel


@pytest.fixture
async def stubs(address: str) -> AsyncIterator[Stubs]:
    """The calls, and a topic "t" of two partitions; partition 0 holds offsets 2 to 5."""
    async with grpc.aio.insecure_channel(address) as channel:
        stubs = Stubs(log_pb2_grpc.LogStub(channel), admin_pb2_grpc.AdminStub(channel), channel)
        await stubs.admin.CreateTopic(admin.CreateTopicRequest(name="t", partitions=2))
        await stubs.log.Append(log.AppendRequest(topic="t", partition=0, records=[log.Record(value=b"v")] * 5))
        await stubs.admin.DeleteRecords(admin.DeleteRecordsRequest(partition=place("t"), before_offset=2))
        yield stubs
        await stubs.admin.DeleteTopic(admin.DeleteTopicRequest(name="t"))


def place(topic: str, partition: int = 0) -> log.TopicPartition:
    return log.TopicPartition(topic=topic, partition=partition)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Return status, reason and metadata of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    info = error_info(failed.value)
    assert failed.value.details()
    return failed.value.code(), info.reason, dict(info.metadata)


# ---- names and numbers


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "é", "a" * 250, "__own", "a\n", "a/b", "'; DROP TABLE topics; --"])
async def test_an_illegal_name_is_no_topics(stubs: Stubs, name: str) -> None:
    assert (await refused(stubs.admin.CreateTopic(admin.CreateTopicRequest(name=name))))[1] == "INVALID_REQUEST"
    assert (await refused(stubs.log.Append(log.AppendRequest(topic=name, records=[log.Record(value=b"v")]))))[1] == "UNKNOWN_TOPIC"


async def test_a_name_that_is_taken_is_refused_and_free_again_when_it_is_deleted(stubs: Stubs) -> None:
    taken = admin.CreateTopicRequest(name="t", partitions=3)
    assert (await refused(stubs.admin.CreateTopic(taken)))[:2] == (grpc.StatusCode.ALREADY_EXISTS, "TOPIC_EXISTS")
    await stubs.admin.DeleteTopic(admin.DeleteTopicRequest(name="t"))
    assert len((await stubs.admin.CreateTopic(taken)).topic.partitions) == 3


@pytest.mark.parametrize("partitions", [51, (1 << 32) - 1])
async def test_more_partitions_than_a_topic_may_have_are_refused(stubs: Stubs, partitions: int) -> None:
    assert (await refused(stubs.admin.CreateTopic(admin.CreateTopicRequest(name="big", partitions=partitions))))[1] == "INVALID_REQUEST"
    assert (await refused(stubs.admin.CreatePartitions(admin.CreatePartitionsRequest(name="t", partitions=partitions))))[
        1
    ] == "INVALID_REQUEST"


@pytest.mark.parametrize("number", [-2, -(1 << 63)])
@pytest.mark.parametrize("setting", ["retention_ms", "retention_bytes"])
async def test_a_retention_below_minus_one_means_nothing(stubs: Stubs, setting: str, number: int) -> None:
    config = admin.TopicConfig()
    setattr(config, setting, number)
    assert (await refused(stubs.admin.CreateTopic(admin.CreateTopicRequest(name="r", config=config))))[1] == "INVALID_REQUEST"
    assert (await refused(stubs.admin.AlterTopic(admin.AlterTopicRequest(name="t", config=config))))[1] == "INVALID_REQUEST"


@pytest.mark.parametrize(
    ("topic", "partition", "reason"), [("none", 0, "UNKNOWN_TOPIC"), ("t", 2, "UNKNOWN_PARTITION"), ("t", 4294967295, "UNKNOWN_PARTITION")]
)
async def test_what_is_not_there_is_named_by_every_call_that_needs_it(stubs: Stubs, topic: str, partition: int, reason: str) -> None:
    where = place(topic, partition)
    not_found = (grpc.StatusCode.NOT_FOUND, reason)
    assert (await refused(stubs.log.Append(log.AppendRequest(topic=topic, partition=partition, records=[log.Record(value=b"v")]))))[
        :2
    ] == not_found
    assert (await refused(stubs.log.Read(log.ReadRequest(partition=where))))[:2] == not_found
    assert (await refused(stubs.log.SetFencingToken(log.SetFencingTokenRequest(partition=where, token="a"))))[:2] == not_found
    assert (await refused(stubs.admin.DeleteRecords(admin.DeleteRecordsRequest(partition=where))))[:2] == not_found
    query = log.ListOffsetsRequest.Query(partition=where)
    assert (await stubs.log.ListOffsets(log.ListOffsetsRequest(queries=[query]))).answers[0].error.reason == reason
    assert (await consumed(stubs, where, log.Position(earliest=True))).reason == reason
    assert (await produced(stubs, encode([Record(b"v")]), topic=topic, partition=partition)).reason == reason


async def test_partitions_that_another_call_has_just_added_are_known(stubs: Stubs) -> None:
    await stubs.admin.CreatePartitions(admin.CreatePartitionsRequest(name="t", partitions=4))
    assert not (await produced(stubs, encode([Record(b"v")]), partition=3)).reason


async def test_too_many_names_in_one_call_are_refused(stubs: Stubs) -> None:
    names = [f"n{number}" for number in range(11)]
    for call in (
        stubs.log.GetMetadata(log.GetMetadataRequest(topics=names, create_missing=True)),
        stubs.admin.DescribeTopics(admin.DescribeTopicsRequest(names=names)),
        stubs.log.ListOffsets(log.ListOffsetsRequest(queries=[log.ListOffsetsRequest.Query()] * 11)),
    ):
        assert (await refused(call))[1] == "INVALID_REQUEST"


# ---- offsets and times


@pytest.mark.parametrize("offset", [0, 1, 6, FAR])
async def test_an_offset_out_of_range_comes_with_both_bounds(stubs: Stubs, offset: int) -> None:
    code, reason, metadata = await refused(stubs.log.Read(log.ReadRequest(partition=place("t"), start=log.Position(offset=offset))))
    assert (code, reason) == (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_OUT_OF_RANGE")
    assert (metadata["log_start_offset"], metadata["high_watermark"], metadata["retriable"]) == ("2", "5", "false")
    error = await consumed(stubs, place("t"), log.Position(offset=offset))
    assert (error.reason, error.metadata["log_start_offset"], error.metadata["high_watermark"]) == ("OFFSET_OUT_OF_RANGE", "2", "5")
    if offset > 5:
        deletion = stubs.admin.DeleteRecords(admin.DeleteRecordsRequest(partition=place("t"), before_offset=offset))
        assert (await refused(deletion))[2]["high_watermark"] == "5"


async def test_negative_offsets_are_refused(stubs: Stubs) -> None:
    nowhere = log.Position(offset=-1)
    assert (await refused(stubs.log.Read(log.ReadRequest(partition=place("t"), start=nowhere))))[1] == "INVALID_REQUEST"
    assert (await consumed(stubs, place("t"), nowhere)).reason == "INVALID_REQUEST"
    assert (await refused(stubs.admin.DeleteRecords(admin.DeleteRecordsRequest(partition=place("t"), before_offset=-2))))[
        1
    ] == "INVALID_REQUEST"


@pytest.mark.parametrize(("timestamp_ms", "offset"), [(-FAR - 1, 2), (-1, 2), (0, 2), (FAR, 5)])
async def test_an_absurd_time_to_read_from_is_the_beginning_or_the_end(stubs: Stubs, timestamp_ms: int, offset: int) -> None:
    query = log.ListOffsetsRequest.Query(partition=place("t"), at=log.Position(timestamp_ms=timestamp_ms))
    (answer,) = (await stubs.log.ListOffsets(log.ListOffsetsRequest(queries=[query]))).answers
    assert (answer.offset, answer.error.reason) == (offset, "")


@pytest.mark.parametrize(
    ("timestamps", "reason"),
    [((-1,), "INVALID_REQUEST"), ((FAR,), "CORRUPT_BATCH"), ((FAR, 1), "CORRUPT_BATCH"), ((1 << 62,), "CORRUPT_BATCH")],
)
async def test_an_absurd_timestamp_is_refused(stubs: Stubs, timestamps: tuple[int, ...], reason: str) -> None:
    records = [log.Record(value=b"v", timestamp_ms=timestamp) for timestamp in timestamps]
    assert (await refused(stubs.log.Append(log.AppendRequest(topic="t", partition=0, records=records))))[1] == reason


@pytest.mark.parametrize("expected", [-5, 0, 6, FAR])
async def test_a_condition_that_does_not_hold_is_refused(stubs: Stubs, expected: int) -> None:
    request = log.AppendRequest(topic="t", partition=0, records=[log.Record(value=b"v")], expected_next_offset=expected)
    assert (await refused(stubs.log.Append(request)))[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "CONDITION_FAILED")


# ---- batches

GOOD = encode([Record(b"v", timestamp_ms=1000)])


def forged(position: int, layout: str, number: int, *, crc: bool = True) -> bytes:
    """Return the good batch with another number somewhere; with a CRC that holds, unless told otherwise."""
    data = bytearray(GOOD)
    pack_into(layout, data, position, number)
    if crc:
        pack_into(">I", data, 17, crc32c(bytes(data[21:])))
    return bytes(data)


BAD_BATCHES = {
    "nothing": b"",
    "no batch": b"lies" * 30,
    "cut off": GOOD[:-1],
    "more than it says": GOOD + b"x",
    "a second one cut off": GOOD + GOOD[:-1],
    "a flipped bit": forged(30, ">b", 1, crc=False),
    "a length beyond the end": forged(8, ">i", 1 << 20, crc=False),
    "a negative length": forged(8, ">i", -1, crc=False),
    "an old magic": forged(16, ">b", 1, crc=False),
    "an unknown compression": forged(21, ">h", 5),
    "the transactional bit": forged(21, ">h", 0x10),
    "the control bit": forged(21, ">h", 0x20),
    "the log-append-time bit": forged(21, ">h", 0x08),
    "a bit without a meaning": forged(21, ">h", 0x4000),
    "more records than can be": forged(57, ">i", 1000),
    "no records": forged(57, ">i", 0),
    "minus one records": forged(57, ">i", -1),
    "offsets with gaps": forged(23, ">i", 5),
    "a time before 1970": forged(27, ">q", -1),
    "a time far ahead": forged(35, ">q", 1 << 62),
    "a largest time below the first": forged(35, ">q", 999),
    "a producer id without epoch and sequence": forged(43, ">q", 7),
    "a sequence without a producer": forged(53, ">i", 7),
}


async def produced(stubs: Stubs, data: bytes, *, topic: str = "t", partition: int = 1) -> log.Error:
    call = stubs.log.Produce()
    await call.write(log.ProduceRequest(appends=[log.ProduceAppend(request_id=1, topic=topic, partition=partition, batches=data)]))
    await call.done_writing()
    (result,) = [result async for response in call for result in response.results]
    error: log.Error = result.error
    return error


async def consumed(stubs: Stubs, where: log.TopicPartition, start: log.Position) -> log.Error:
    call = stubs.log.Consume()
    await call.write(log.ConsumeRequest(add=[log.AddPartition(subscription_id=1, partition=where, start=start)], credit_bytes=1 << 20))
    async for response in call:
        if response.WhichOneof("event") == "end":
            error: log.Error = response.end.error
            return error
    raise AssertionError("the subscription goes on")


@pytest.mark.parametrize("lie", BAD_BATCHES)
async def test_a_corrupt_or_lying_batch_is_refused_as_a_whole_and_the_partition_goes_on(stubs: Stubs, lie: str) -> None:
    error = await produced(stubs, BAD_BATCHES[lie])
    assert (error.reason, error.code, error.retriable) == ("CORRUPT_BATCH", grpc.StatusCode.INVALID_ARGUMENT.value[0], False)
    assert "position" in error.metadata
    assert not (await produced(stubs, GOOD)).reason
    assert (await stubs.log.Read(log.ReadRequest(partition=place("t", 1)))).high_watermark == 1


async def test_records_that_lie_under_a_good_crc_hide_nothing_behind_them(stubs: Stubs) -> None:
    """No record is decoded on the way in. Who reads is told which offsets they are, and where it goes on."""
    for data in (GOOD, forged(61, ">b", 60), forged(21, ">h", 4), GOOD):
        assert not (await produced(stubs, data)).reason
    first = await stubs.log.Read(log.ReadRequest(partition=place("t", 1), max_records=1))
    assert [record.value for record in first.records] == [b"v"]
    for offset in (1, 2):
        code, reason, metadata = await refused(stubs.log.Read(log.ReadRequest(partition=place("t", 1), start=log.Position(offset=offset))))
        assert (code, reason, metadata["retriable"]) == (grpc.StatusCode.DATA_LOSS, "CORRUPT_BATCH", "false")
    last = await stubs.log.Read(log.ReadRequest(partition=place("t", 1), start=log.Position(offset=3)))
    assert [record.offset for record in last.records] == [3]


async def test_too_large_is_told_by_the_limit_that_it_passes(stubs: Stubs) -> None:
    record = log.Record(value=bytes(2 << 20))
    assert (await refused(stubs.log.Append(log.AppendRequest(topic="t", partition=0, records=[record]))))[:2] == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "RECORD_TOO_LARGE",
    )
    assert (await produced(stubs, encode([Record(bytes(2 << 20))]))).reason == "RECORD_TOO_LARGE"
    assert (await produced(stubs, GOOD * (9 << 20 >> 6))).reason == "RECORD_TOO_LARGE"


# ---- producers


async def test_sequence_gaps_and_unknown_producers_are_refused_each_by_its_reason(stubs: Stubs) -> None:
    made = await stubs.log.InitProducer(log.InitProducerRequest())

    def batch(sequence: int, *, epoch: int = 0) -> bytes:
        return encode([Record(b"v")], producer=Producer(made.producer_id, epoch, sequence))

    assert (await produced(stubs, batch(5))).reason == "UNKNOWN_PRODUCER"
    assert not (await produced(stubs, batch(0, epoch=1))).reason
    assert (await produced(stubs, batch(2, epoch=1))).reason == "OUT_OF_ORDER_SEQUENCE"
    assert (await produced(stubs, batch(1))).reason == "PRODUCER_FENCED"
    assert not (await produced(stubs, batch(1, epoch=1))).reason


# ---- what is no message at all


async def test_bytes_that_are_no_message_are_refused_like_any_request(stubs: Stubs) -> None:
    for method in ("Log/Append", "Log/Read", "Admin/CreateTopic"):
        raw: Any = stubs.channel.unary_unary(f"/tidelog.v1.{method}")
        assert (await refused(raw(b"\xff\xff\xff")))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_a_call_that_does_not_exist_is_unimplemented(stubs: Stubs) -> None:
    raw: Any = stubs.channel.unary_unary("/tidelog.v1.Log/Guess")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await raw(b"")
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_names_that_cannot_be_made_fail_alone_where_topics_are_made_on_first_use(tidelog_service: str) -> None:
    async with grpc.aio.insecure_channel(tidelog_service) as channel:
        stub: Any = log_pb2_grpc.LogStub(channel)
        answer = await stub.GetMetadata(log.GetMetadataRequest(topics=["made.now", "not a name"], create_missing=True))
    assert [(topic.name, topic.partitions, topic.error.reason) for topic in answer.topics] == [
        ("made.now", 1, ""),
        ("not a name", 0, "INVALID_REQUEST"),
    ]
