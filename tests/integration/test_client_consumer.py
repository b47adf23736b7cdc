"""The consumer over real sockets: in order, each record once, nothing left out, whatever becomes of streams and brokers."""

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import TypeVar

import pytest
import tidelog
from hypothesis import given, settings
from hypothesis import strategies as st
from tidelog.client.consumer import ConsumedBatch, Consumption, position
from tidelog.errors import (
    CorruptBatch,
    Draining,
    InvalidRequest,
    MetadataUnavailable,
    NotReady,
    OffsetOutOfRange,
    UnknownPartition,
    UnknownTopic,
)
from tidelog.proto.v1 import log_pb2
from tidelog.records.batch import scan, stamp
from tidelog.records.checksum import crc32c
from tidelog.records.codec import Record, ValueBuffers, encode, encode_many

from tests.fake_broker import Cluster, CuttingProxy, running_cluster

T = TypeVar("T")


async def soon(work: Awaitable[T]) -> T:
    """What must come, but not how soon."""
    return await asyncio.wait_for(work, 30)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster() as found:
        found.topics |= {"one": 1, "four": 4}
        yield found


def fill(cluster: Cluster, batches: int, *, topic: str = "one", partition: int = 0, records: int = 10, size: int = 20) -> list[bytes]:
    """Append batches of values that name their offset."""
    first = cluster.next_offset[topic, partition]
    values = [b"%d" % offset + b"." * size for offset in range(first, first + batches * records)]
    for at in range(0, len(values), records):
        cluster.append(topic, partition, encode_many(values[at : at + records], timestamps_ms=1000 + first + at), None)
    return values


async def values_of(consumption: Consumption) -> list[bytes | None]:
    return [record.value async for record in consumption]


async def test_records_come_with_all_that_they_are(cluster: Cluster) -> None:
    cluster.append("one", 0, encode([Record(b"v", b"k", 77, (("h", b"x"), ("n", None))), Record(None, b"gone", 78)]), None)
    async with tidelog.connect(cluster.brokers[0].address) as log:
        records = [record async for record in log.consume("one", follow=False)]
    assert records == [("one", 0, 0, 77, b"k", b"v", (("h", b"x"), ("n", None))), ("one", 0, 1, 78, b"gone", None, ())]


@pytest.mark.parametrize("start", [0, 1, 9, 10, 15, 49])
async def test_reading_begins_at_the_offset_asked_for_and_not_at_its_batch(cluster: Cluster, start: int) -> None:
    values = fill(cluster, 5)
    async with tidelog.connect(cluster.brokers[0].address) as log:
        assert await soon(values_of(log.consume("one", start=start, follow=False))) == values[start:]

        found = [batch async for batch in log.consume("one", start=start, stop=48).batches()]
    assert [value for batch in found for value in batch.values] == values[start:48]
    assert [(batch.base_offset, batch.next_offset) for batch in found][:1] == (
        [(start, min(48, start // 10 * 10 + 10))] if start < 48 else []
    )


async def test_an_offset_beyond_the_end_is_refused_also_where_only_what_is_there_is_read(cluster: Cluster) -> None:
    fill(cluster, 5)
    async with tidelog.connect(cluster.brokers[0].address) as log:
        assert await soon(values_of(log.consume("one", start=50, follow=False))) == []
        with pytest.raises(OffsetOutOfRange, match="from offset 51, but it ends before 50; begin at 50 or lower") as caught:
            await soon(values_of(log.consume("one", start=51, follow=False)))
        assert caught.value.high_watermark == 50


async def test_bounded_reads_end_by_themselves(cluster: Cluster) -> None:
    values = fill(cluster, 5)
    async with tidelog.connect(cluster.brokers[0].address) as log:
        assert await soon(values_of(log.consume("one", stop=13))) == values[:13]
        assert await soon(values_of(log.consume("one", max_records=27))) == values[:27]
        assert await soon(values_of(log.consume("one", max_records=0))) == []
        assert await soon(values_of(log.consume("one", start="latest", follow=False))) == []
        assert await soon(values_of(log.consume("one", start=7, stop=7))) == []
        assert await soon(values_of(log.consume("four", follow=False))) == []


async def test_times_are_positions(cluster: Cluster) -> None:
    values = fill(cluster, 3)
    async with tidelog.connect(cluster.brokers[0].address) as log:
        since, until = (datetime.fromtimestamp(second, UTC) for second in (1.01, 1.02))
        assert await soon(values_of(log.consume("one", start=since, stop=until))) == values[10:20]
        assert await log.admin.list_offsets("one", at=since) == {0: 10}
        assert await log.admin.list_offsets("one") == {0: 30}


async def test_following_goes_on_with_what_is_appended_later(cluster: Cluster) -> None:
    values = fill(cluster, 1)
    async with tidelog.connect(cluster.brokers[0].address) as log, log.consume("one") as consumption:
        found = []
        async for record in consumption:
            found.append(record.value)
            if len(found) == len(values):
                if len(values) == 30:
                    break
                values += fill(cluster, 1)
                async with cluster.grown:
                    cluster.grown.notify_all()
    assert found == values


async def test_latest_does_not_move_when_the_stream_breaks_before_the_first_record(cluster: Cluster) -> None:
    fill(cluster, 2)
    cluster.brokers[0].cut_consume_after.extend([0, 0, 0])
    async with tidelog.connect(cluster.brokers[0].address) as log:
        reading = asyncio.ensure_future(values_of(log.consume("one", start="latest", max_records=20)))
        while not cluster.brokers[0].adds:
            await asyncio.sleep(0.01)
        values = fill(cluster, 2)
        assert await soon(reading) == values
    assert cluster.brokers[0].consume_streams == 4
    assert {add.start.offset for add in cluster.brokers[0].adds} == {20}


async def test_streams_that_break_anywhere_lose_and_repeat_nothing() -> None:
    async with running_cluster("", "", "") as cluster:
        cluster.topics["four"] = 4
        expected = {partition: fill(cluster, 30, topic="four", partition=partition) for partition in range(4)}
        chance = random.Random(5)
        for broker in cluster.brokers:
            broker.cut_consume_after.extend(chance.randrange(12) for _ in range(6))
        found: dict[int, list[bytes | None]] = {partition: [] for partition in range(4)}
        async with tidelog.connect([broker.address for broker in cluster.brokers]) as log:
            async for record in log.consume("four", follow=False):
                assert record.offset == len(found[record.partition])
                found[record.partition].append(record.value)
        assert found == expected
        assert sum(broker.consume_streams for broker in cluster.brokers) > 6


async def test_connections_cut_in_the_midst_of_a_message_lose_and_repeat_nothing(cluster: Cluster) -> None:
    values = fill(cluster, 60, size=2000)
    chance = random.Random(2)
    async with CuttingProxy(cluster.brokers[0].address) as proxy:
        cluster.brokers[0].advertises = proxy.address
        proxy.cuts.extend(chance.randrange(1000, 250_000) for _ in range(8))
        async with tidelog.connect(proxy.address) as log:
            assert await soon(values_of(log.consume("one", follow=False))) == values
        assert proxy.connections > 4


async def test_errors_that_pass_are_waited_out_and_a_draining_broker_is_left() -> None:
    async with running_cluster("", "") as cluster:
        cluster.topics["one"] = 1
        values = fill(cluster, 3)
        for broker in cluster.brokers:
            broker.end_subscription.extend([NotReady("no leader yet"), NotReady("no leader yet"), Draining("about to leave")])
        async with tidelog.connect([broker.address for broker in cluster.brokers]) as log:
            reading = asyncio.ensure_future(values_of(log.consume("one", follow=False)))
            while not all(broker.consume_streams for broker in cluster.brokers):
                await asyncio.sleep(0.01)
            for broker in cluster.brokers:
                broker.end_subscription.clear()
            assert await soon(reading) == values


async def test_an_offset_out_of_range_is_raised_with_the_bounds(cluster: Cluster) -> None:
    fill(cluster, 1)
    cluster.brokers[0].end_subscription.append(OffsetOutOfRange("gone", log_start_offset=5, high_watermark=10))
    async with tidelog.connect(cluster.brokers[0].address) as log:
        with pytest.raises(OffsetOutOfRange, match="gone") as caught:
            await soon(values_of(log.consume("one", start=2, follow=False)))
    assert (caught.value.log_start_offset, caught.value.high_watermark) == (5, 10)


def hole(batches: log_pb2.Batches) -> None:
    if batches.base_offset == 10:
        batches.base_offset = 11


def flipped(batches: log_pb2.Batches) -> None:
    batches.batches = batches.batches[:-1] + bytes([batches.batches[-1] ^ 1])


def truncated(batches: log_pb2.Batches) -> None:
    batches.batches = batches.batches[:-1]


def beyond(batches: log_pb2.Batches) -> None:
    batches.next_offset -= 1


@pytest.mark.parametrize("tamper", [hole, flipped, truncated, beyond])
async def test_what_is_not_whole_or_leaves_something_out_is_an_error_and_not_a_hole(cluster: Cluster, tamper: object) -> None:
    values = fill(cluster, 3)
    cluster.brokers[0].tamper = tamper  # type: ignore[assignment]
    found = []
    async with tidelog.connect(cluster.brokers[0].address) as log:
        with pytest.raises(CorruptBatch):  # noqa: PT012 - what came before it counts
            async for record in log.consume("one", follow=False):
                found.append(record.value)  # noqa: PERF401 - and would be gone with a comprehension
    assert found in ([], values[:10])


async def test_no_more_is_under_way_than_was_granted(cluster: Cluster) -> None:
    fill(cluster, 200, size=1000)
    async with tidelog.connect(cluster.brokers[0].address) as log, log.consume("one", follow=False, credit_bytes=50_000) as consumption:
        number = 0
        async for _ in consumption.batches():
            number += 1
            if number == 3:
                await asyncio.sleep(0.2)
        assert number == 200
    batch_bytes = len(cluster.batches["one", 0][0])
    assert cluster.brokers[0].most_unacknowledged <= 50_000 + batch_bytes


async def test_partitions_that_are_added_later_are_read_from_their_beginning(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidelog.client.consumer._REFRESH_S", 0.05)
    fill(cluster, 1)
    async with tidelog.connect(cluster.brokers[0].address) as log, log.consume("one", start="latest") as consumption:
        reading = asyncio.ensure_future(anext(consumption.batches()))
        while not cluster.brokers[0].adds:
            await asyncio.sleep(0.01)
        cluster.topics["one"] = 2
        values = fill(cluster, 1, partition=1)
        batch = await soon(reading)
    assert (batch.partition, batch.values) == (1, values)


async def test_reading_goes_on_while_brokers_cannot_tell_of_partitions(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidelog.client.consumer._REFRESH_S", 0.05)
    broker = cluster.brokers[0]
    async with tidelog.connect(broker.address) as log, log.consume("one") as consumption:
        batches = consumption.batches()

        async def reads_what_is_appended() -> None:
            values = fill(cluster, 1)
            async with cluster.grown:
                cluster.grown.notify_all()
            assert (await soon(anext(batches))).values == values

        await reads_what_is_appended()
        broker.metadata_fails = MetadataUnavailable("the database is away")
        asked = broker.calls.count("GetMetadata")
        while broker.calls.count("GetMetadata") < asked + 5:
            await reads_what_is_appended()
        broker.metadata_fails, broker.metadata_hangs = None, True
        asked = broker.calls.count("GetMetadata")
        while broker.calls.count("GetMetadata") == asked:
            await reads_what_is_appended()
        async with asyncio.timeout(5):  # of the ten seconds that an answer may take
            await reads_what_is_appended()
        assert broker.consume_streams == 1


async def test_a_connection_without_an_answer_is_left(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidelog.client.consumer._REFRESH_S", 0.05)
    monkeypatch.setattr("tidelog.client.connection._ATTEMPT_TIMEOUT_S", 0.2)
    broker = cluster.brokers[0]
    async with tidelog.connect(broker.address) as log, log.consume("one") as consumption:
        reading = asyncio.ensure_future(anext(consumption.batches()))
        while not broker.consume_streams:
            await asyncio.sleep(0.01)
        broker.metadata_hangs = True
        while broker.consume_streams == 1:
            await asyncio.sleep(0.01)
        broker.metadata_hangs = False
        values = fill(cluster, 1)
        assert (await soon(reading)).values == values


async def test_what_cannot_be_told_now_is_asked_again_before_reading_begins(cluster: Cluster) -> None:
    values = fill(cluster, 1)
    cluster.brokers[0].list_offsets_fails.extend([MetadataUnavailable("the database is away")] * 8)
    async with tidelog.connect(cluster.brokers[0].address) as log:
        assert await soon(values_of(log.consume("one", follow=False))) == values


async def test_an_answer_that_leaves_a_partition_out_is_asked_for_again() -> None:
    async with running_cluster() as cluster, tidelog.connect(cluster.brokers[0].address) as log:
        cluster.topics["t"] = 2
        cluster.brokers[0].list_offsets_fails.extend([None, None, None])
        assert await log.admin.list_offsets("t", partitions=[0, 1]) == {0: 0, 1: 0}
        assert cluster.brokers[0].calls.count("ListOffsets") == 3


async def test_the_earliest_record_may_expire_before_it_is_read_but_not_one_that_was_asked_for(cluster: Cluster) -> None:
    values = fill(cluster, 3)
    expired = OffsetOutOfRange("expired", log_start_offset=10, high_watermark=30)
    async with tidelog.connect(cluster.brokers[0].address) as log:
        cluster.brokers[0].end_subscription.append(expired)
        assert await soon(values_of(log.consume("one", follow=False))) == values[10:]
        cluster.brokers[0].end_subscription.append(expired)
        with pytest.raises(OffsetOutOfRange):
            await soon(values_of(log.consume("one", start=0, follow=False)))


async def test_records_that_expire_under_a_reader_are_told_and_not_skipped(cluster: Cluster) -> None:
    """Also where it began at the earliest record: what follows its first was asked for."""
    values = fill(cluster, 3)
    broker = cluster.brokers[0]
    broker.cut_consume_after.append(1)
    broker.tamper = lambda batches: broker.end_subscription.append(OffsetOutOfRange("expired", log_start_offset=20, high_watermark=30))
    async with tidelog.connect(broker.address) as log, log.consume("one", follow=False) as consumption:
        batches = consumption.batches()
        assert (await soon(anext(batches))).values == values[:10]
        with pytest.raises(OffsetOutOfRange) as raised:
            await soon(anext(batches))
    assert raised.value.log_start_offset == 20


@given(
    when=st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)),  # noqa: DTZ001
    hours=st.integers(-12, 12),
)
def test_a_time_stands_for_the_first_millisecond_that_is_not_before_it(when: datetime, hours: int) -> None:
    zoned = when.replace(tzinfo=timezone(timedelta(hours=hours)))
    since = zoned - datetime(1970, 1, 1, tzinfo=UTC)
    asked = position(zoned, name="start").timestamp_ms
    assert timedelta(milliseconds=asked - 1) < since <= timedelta(milliseconds=asked)


async def test_what_is_not_there_is_named(cluster: Cluster) -> None:
    async with tidelog.connect(cluster.brokers[0].address) as log:
        with pytest.raises(UnknownTopic, match="nowhere"):
            await soon(values_of(log.consume("nowhere")))
        with pytest.raises(UnknownPartition, match="it has 1"):
            await soon(values_of(log.consume("one", partitions=[1])))
        with pytest.raises(InvalidRequest, match="with a time zone"):
            log.consume("one", start=datetime(2026, 1, 1))  # noqa: DTZ001
        with pytest.raises(InvalidRequest, match="earliest"):
            log.consume("one", start="begin")
        with pytest.raises(InvalidRequest, match="earliest"):
            log.consume("one", start=1 << 63)
        with pytest.raises(InvalidRequest, match="at least one"):
            log.consume([])
        with pytest.raises(InvalidRequest, match="leave `partitions` out"):
            log.consume("one", partitions=[])
        consumption = log.consume("one", follow=False)
        consumption.batches()
        with pytest.raises(InvalidRequest, match="twice"):
            consumption.batches()


async def test_partitions_can_be_chosen(cluster: Cluster) -> None:
    expected = {partition: fill(cluster, 1, topic="four", partition=partition) for partition in range(4)}
    async with tidelog.connect(cluster.brokers[0].address) as log:
        found = [record async for record in log.consume("four", partitions=[1, 3], follow=False)]
    assert {record.partition for record in found} == {1, 3}
    assert len(found) == len(expected[1]) + len(expected[3])


def unpacked(buffers: ValueBuffers) -> list[bytes | None]:
    count = len(buffers.offsets) - 1
    valid = [buffers.validity is None or bool(buffers.validity[index // 8] >> index % 8 & 1) for index in range(count)]
    return [buffers.values[buffers.offsets[index] : buffers.offsets[index + 1]] if valid[index] else None for index in range(count)]


@settings(deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), st.binary(max_size=5)), min_size=1, max_size=40),
    base=st.integers(0, 100),
    cut=st.tuples(st.integers(0, 50), st.integers(0, 50)),
)
def test_a_part_of_a_batch_is_the_same_as_records_values_and_buffers(
    values: Sequence[bytes | None], base: int, cut: tuple[int, int]
) -> None:
    first = cut[0] % len(values)
    last = first + 1 + cut[1] % (len(values) - first)
    data = bytearray(encode_many(values))
    stamp(data, scan(data), base_offset=base, leader_epoch=0)
    (header,) = scan(data)
    batch = ConsumedBatch("t", 0, bytes(data), header, start=base + first, stop=base + last)
    assert batch.values == unpacked(batch.buffers()) == [record.value for record in batch.records()] == list(values[first:last])
    assert len(batch) == last - first
    assert [record.offset for record in batch.records()] == list(range(base + first, base + last))
    assert batch.limited(1).values == list(values[first : first + 1])


def test_a_batch_of_which_compaction_left_nothing_behind_the_start_is_empty() -> None:
    data = bytearray(encode_many([b"a", b"b"]))
    struct.pack_into(">i", data, 23, 9)  # last offset delta: the batch stands for ten offsets
    struct.pack_into(">I", data, 17, crc32c(data[21:]))
    (header,) = scan(data)
    assert (header.record_count, header.next_offset) == (2, 10)
    batch = ConsumedBatch("t", 0, bytes(data), header, start=5, stop=None)
    assert (batch.records(), batch.values, unpacked(batch.buffers()), len(batch)) == ([], [], [], 0)
    whole = ConsumedBatch("t", 0, bytes(data), header, start=0, stop=None)
    assert whole.values == unpacked(whole.buffers()) == [b"a", b"b"]
