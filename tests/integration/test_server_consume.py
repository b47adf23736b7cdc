"""The Consume stream, Read and ListOffsets, over real sockets."""

import asyncio
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tidelog.metadata.topics import TopicConfig
from tidelog.proto.v1 import log_pb2
from tidelog.records.codec import decode

from tests.served import Served, batch, error_info, serving

CREDIT = 10_000_000


def add(subscription_id: int, offset: int = 0, *, topic: str = "t", partition: int = 0, stop: int | None = None) -> log_pb2.AddPartition:
    return log_pb2.AddPartition(
        subscription_id=subscription_id,
        partition=log_pb2.TopicPartition(topic=topic, partition=partition),
        start=log_pb2.Position(offset=offset),
        stop_offset=stop,
    )


def grant(*adds: log_pb2.AddPartition, credit: int = CREDIT, drop: tuple[int, ...] = ()) -> log_pb2.ConsumeRequest:
    return log_pb2.ConsumeRequest(add=adds, drop=drop, credit_bytes=credit)


async def next_of(call: Any, kind: str) -> Any:
    while True:
        response = await call.read()
        assert response is not grpc.aio.EOF
        if response.WhichOneof("event") == kind:
            return getattr(response, kind)


async def test_a_bounded_read_gives_everything_in_order_and_then_ends(served: Served) -> None:
    log = served.broker.logs["t"][0]
    for number in range(10):
        log.append(batch(b"%d" % (2 * number), b"%d" % (2 * number + 1)))
    call = served.log.Consume()
    await call.write(grant(add(5, 0, stop=20)))
    await call.done_writing()
    responses = [response async for response in call]
    assert [response.WhichOneof("event") for response in responses] == ["progress", "batches", "end"]
    progress, batches, end = responses[0].progress, responses[1].batches, responses[2].end
    assert (progress.subscription_id, progress.next_offset, progress.high_watermark) == (5, 0, 20)
    assert (batches.base_offset, batches.next_offset, batches.high_watermark) == (0, 20, 20)
    assert (end.subscription_id, end.next_offset, end.HasField("error")) == (5, 20, False)


async def test_what_commits_later_is_pushed(served: Served) -> None:
    log = served.broker.logs["t"][0]
    call = served.log.Consume()
    await call.write(grant(add(1)))
    assert (await next_of(call, "progress")).high_watermark == 0
    for number in range(3):
        log.append(batch(b"%d" % number))
        batches = await next_of(call, "batches")
        assert (batches.base_offset, batches.next_offset) == (number, number + 1)
        assert [record.value for record in decode(batches.batches)] == [b"%d" % number]
    call.cancel()


async def test_nothing_is_read_without_credit_and_credit_limits_what_is_sent() -> None:
    async with serving(response_bytes=1024) as served:
        log = served.broker.logs["t"][0]
        data = batch(bytes(900))
        for _ in range(10):
            log.append(data)
        call = served.log.Consume()
        await call.write(grant(add(1), credit=0))
        await call.write(grant(add(2, 0, topic="none"), credit=0))
        assert (await next_of(call, "end")).error.reason == "UNKNOWN_TOPIC"
        assert log.reads == 0
        await call.write(grant(credit=3 * len(data)))
        got = [await next_of(call, "batches") for _ in range(3)]
        assert [found.base_offset for found in got] == [0, 1, 2]
        _, waiting = await asyncio.wait([reading := asyncio.create_task(next_of(call, "batches"))], timeout=0.3)
        assert waiting, "more came than the credit allows"
        assert log.reads == 3
        await call.write(grant(credit=1))
        assert (await reading).base_offset == 3  # at least one batch, however little the credit
        call.cancel()


def lags(served: Served) -> dict[str, tuple[float, float]]:
    """Records and seconds by topic, as a scrape shows them."""
    families = {family.name: family for family in served.registry.collect() if family.name.startswith("tidelog_consume_lag_")}
    records, seconds = (
        {sample.labels["topic"]: sample.value for sample in families[f"tidelog_consume_lag_{of}"].samples} for of in ("records", "seconds")
    )
    return {topic: (count, seconds[topic]) for topic, count in records.items()}


async def test_a_reader_that_is_behind_is_shown_with_records_and_seconds_and_one_at_the_end_with_none(served: Served) -> None:
    log = served.broker.logs["t"][0]
    assert lags(served) == {"": (0, 0)}, "nobody reads, and there is a series all the same"
    for _ in range(5):
        log.append(batch(b"a", b"b"))
    call = served.log.Consume()
    await call.write(grant(add(1), add(2, topic="no such topic"), credit=0))
    assert (await next_of(call, "end")).error.reason == "UNKNOWN_TOPIC"
    await wait_for(lambda: "t" in lags(served))
    first = lags(served)["t"]
    await wait_for(lambda: lags(served)["t"][1] > first[1])
    assert first[0] == 10
    await call.write(grant())
    await wait_for(lambda: lags(served)["t"] == (0, 0))
    log.append(batch(b"c"))
    await wait_for(lambda: lags(served)["t"] == (0, 0))
    await call.write(grant(add(3, 4, stop=6), credit=0))
    assert set(lags(served)) == {"", "t"}, "a name that nobody has is no series"
    call.cancel()
    await wait_for(lambda: lags(served) == {"": (0, 0)})


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_client_that_does_not_read_costs_a_few_responses() -> None:
    async with serving(response_bytes=65536, options=[("grpc.http2.lookahead_bytes", 65536)]) as served:
        log = served.broker.logs["t"][0]
        for _ in range(1000):
            log.append(batch(bytes(60_000)))
        call = served.log.Consume()
        await call.write(grant(add(1), credit=60_000_000))
        await next_of(call, "batches")
        seen = -1
        while seen != log.reads:  # until flow control has stopped it
            seen = log.reads
            await asyncio.sleep(0.2)
        assert log.reads < 500
        for _ in range(900):
            await next_of(call, "batches")
        call.cancel()


async def test_many_partitions_that_a_client_does_not_read_cost_a_few_responses_and_not_all_its_credit() -> None:
    async with serving(response_bytes=65536, options=[("grpc.http2.lookahead_bytes", 65536)]) as served:
        await served.broker.create_topic("wide", partitions=200, config=TopicConfig())
        logs = served.broker.logs["wide"]
        for log in logs:
            for _ in range(2):
                log.append(batch(bytes(60_000)))
        call = served.log.Consume()
        await call.write(grant(*(add(number + 1, topic="wide", partition=number) for number in range(200)), credit=60_000_000))
        await next_of(call, "batches")
        seen = -1
        while seen != sum(log.reads for log in logs):  # until flow control has stopped it
            seen = sum(log.reads for log in logs)
            await asyncio.sleep(0.2)
        assert seen < 150
        call.cancel()


async def test_clients_that_do_not_read_cannot_fill_the_memory_together_nor_stop_one_that_does() -> None:
    limit, message, streams = 4 * 65536, 60_000, 12
    async with serving(response_bytes=65536, max_unsent_bytes=limit, options=[("grpc.http2.lookahead_bytes", 65536)]) as served:
        log = served.broker.logs["t"][0]
        for _ in range(500):
            log.append(batch(bytes(message)))
        stalled = [served.log.Consume() for _ in range(streams)]
        for call in stalled:
            await call.write(grant(add(1), credit=60_000_000))
        seen = -1
        while seen != log.reads:  # until flow control has stopped them
            seen = log.reads
            await asyncio.sleep(0.2)

        def unsent() -> float:
            return served.registry.get_sample_value("tidelog_consume_unsent_bytes") or 0

        assert 2 * limit < unsent() <= limit + (streams + 1) * (message + 100)
        fast = served.log.Consume()
        await fast.write(grant(add(1, stop=500), credit=60_000_000))
        offsets = [(await next_of(fast, "batches")).base_offset for _ in range(500)]
        assert offsets == list(range(500))
        for call in (*stalled, fast):
            call.cancel()
        async with asyncio.timeout(10):
            while unsent():
                await asyncio.sleep(0.01)


async def test_nothing_is_kept_of_what_was_sent() -> None:
    async with serving(response_bytes=65536) as served:
        await served.broker.create_topic("wide", partitions=40, config=TopicConfig())
        for log in served.broker.logs["wide"]:
            log.append(batch(bytes(60_000)))
            log.append(batch(bytes(60_000)))
        tracemalloc.start()
        try:
            call = served.log.Consume()
            adds = [add(number + 1, topic="wide", partition=number) for number in range(40)]
            await call.write(grant(*adds, credit=40 * 60_000))
            for _ in range(40):  # and then all of them wait for credit
                await next_of(call, "batches")
            kept = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/tidelog/server/wire.py")])
        finally:
            tracemalloc.stop()
        assert sum(trace.size for trace in kept.traces) < 5 * 60_000
        call.cancel()


async def test_what_lies_beyond_a_stop_takes_nothing_of_the_credit() -> None:
    async with serving(response_bytes=8192) as served:
        log = served.broker.logs["t"][0]
        for _ in range(10):
            log.append(batch(bytes(1000)))
        call = served.log.Consume()
        most = credit = 8192  # a run of seven batches, of which each subscription wants the first alone
        for number in range(20):
            await call.write(grant(add(number, 0, stop=1), credit=credit))
            credit = len((await next_of(call, "batches")).batches)
            await next_of(call, "end")
        await call.write(grant(add(20), credit=credit))
        assert len((await next_of(call, "batches")).batches) > most - 1100
        call.cancel()


async def test_seeks_and_drops_lose_no_credit() -> None:
    async with serving(response_bytes=2048) as served:
        for log in served.broker.logs["t"]:
            for _ in range(500):
                log.append(batch(bytes(1000)))
        chance = random.Random(4)
        most = 20_000
        call = served.log.Consume()
        reading = asyncio.ensure_future(next_of(call, "batches"))

        async def received(seconds: float) -> int:
            """Bytes of a batch that comes, or 0."""
            nonlocal reading
            if not (await asyncio.wait([reading], timeout=seconds))[0]:
                return 0
            found, reading = len(reading.result().batches), asyncio.ensure_future(next_of(call, "batches"))
            return found

        credit = most
        for _ in range(200):
            seeks = [add(chance.randrange(6), chance.randrange(400), partition=chance.randrange(2)) for _ in range(chance.randrange(3))]
            await call.write(grant(*seeks, credit=credit, drop=(chance.randrange(6),)))
            credit = sum([await received(0.01) for _ in range(chance.randrange(4))])
        await call.write(grant(add(7), credit=credit, drop=tuple(range(6))))
        left = 0
        while more := await received(1):
            left += more
        assert left >= most, "all of it is there for whoever is left"
        call.cancel()
        await asyncio.wait([reading])


async def test_a_seek_sends_nothing_more_of_the_old_position() -> None:
    async with serving(response_bytes=1024) as served:
        log = served.broker.logs["t"][0]
        for _ in range(100):
            log.append(batch(bytes(1000)))
        call = served.log.Consume()
        await call.write(grant(add(1), credit=1_000_000))
        await next_of(call, "batches")
        await call.write(grant(add(1, 90), credit=0))
        offsets: list[int] = []
        while not offsets or offsets[-1] < 99:
            offsets.append((await next_of(call, "batches")).base_offset)
        seek = offsets.index(90)
        assert offsets[seek:] == list(range(90, 100))
        assert offsets[:seek] == list(range(1, seek + 1))
        call.cancel()


async def test_a_dropped_partition_sends_nothing_more_and_others_go_on(served: Served) -> None:
    call = served.log.Consume()
    await call.write(grant(add(1), add(2, partition=1)))
    for _ in range(2):
        await next_of(call, "progress")
    await call.write(grant(drop=(1, 77), credit=0))
    served.broker.logs["t"][0].append(batch(b"no"))
    while True:
        served.broker.logs["t"][1].append(batch(b"yes"))
        found = await next_of(call, "batches")
        if found.subscription_id == 2:
            break
    call.cancel()


async def test_a_stop_in_the_middle_leaves_out_batches_beyond_it(served: Served) -> None:
    log = served.broker.logs["t"][0]
    for number in range(5):
        log.append(batch(b"a%d" % number, b"b%d" % number))
    call = served.log.Consume()
    await call.write(grant(add(1, 1, stop=5)))
    await call.done_writing()
    _, batches, end = [response async for response in call]
    assert (batches.batches.base_offset, batches.batches.next_offset) == (0, 6)
    assert len(batches.batches.batches) == 3 * len(batch(b"a0", b"b0"))
    assert end.end.next_offset == 5


async def test_a_stop_that_lies_ahead_is_waited_for(served: Served) -> None:
    log = served.broker.logs["t"][0]
    call = served.log.Consume()
    await call.write(grant(add(1, 0, stop=2)))
    await next_of(call, "progress")
    log.append(batch(b"a"))
    log.append(batch(b"b"))
    assert (await next_of(call, "end")).next_offset == 2
    call.cancel()


async def test_a_start_beyond_the_stop_ends_at_once_without_credit(served: Served) -> None:
    served.broker.logs["t"][0].append(batch(b"a", b"b", b"c"))
    call = served.log.Consume()
    await call.write(grant(add(1, 3, stop=1), credit=0))
    assert (await next_of(call, "end")).next_offset == 3
    call.cancel()


async def test_an_offset_out_of_range_comes_with_the_bounds(served: Served) -> None:
    served.broker.logs["t"][0].append(batch(b"v"))
    call = served.log.Consume()
    await call.write(grant(add(1, 50)))
    error = (await next_of(call, "end")).error
    assert (error.reason, error.code) == ("OFFSET_OUT_OF_RANGE", grpc.StatusCode.OUT_OF_RANGE.value[0])
    assert (error.metadata["log_start_offset"], error.metadata["high_watermark"]) == ("0", "1")
    call.cancel()


async def test_too_much_credit_and_too_many_partitions_are_refused() -> None:
    async with serving(max_credit_bytes=2000, max_subscriptions_per_stream=1) as served:
        call = served.log.Consume()
        await call.write(grant(add(1), add(2), credit=2000))
        end = await next_of(call, "end")
        assert (end.subscription_id, end.error.reason) == (2, "INVALID_REQUEST")
        await call.write(grant(credit=1))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await next_of(call, "batches")
        assert error_info(failed.value).reason == "INVALID_REQUEST"


async def test_a_client_that_closed_its_side_without_enough_credit_is_told(served: Served) -> None:
    served.broker.logs["t"][0].append(batch(b"v"))
    served.broker.logs["t"][0].append(batch(b"v"))
    call = served.log.Consume()
    await call.write(grant(add(1), credit=1))
    await call.done_writing()
    responses = [response async for response in call]
    assert responses[-1].end.error.reason == "INVALID_REQUEST"
    assert responses[-1].end.next_offset == 1


async def test_a_leaving_server_ends_consumers_with_draining(served: Served) -> None:
    call = served.log.Consume()
    await call.write(grant(add(1)))
    await next_of(call, "progress")
    stopping = asyncio.create_task(served.server.stop())
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await next_of(call, "batches")
    assert error_info(failed.value).reason == "DRAINING"
    await stopping


async def test_a_client_that_does_not_read_does_not_hold_up_a_leaving_server() -> None:
    async with serving(drain_timeout_ms=60_000, options=[("grpc.http2.lookahead_bytes", 65536)]) as served:
        log = served.broker.logs["t"][0]
        for _ in range(200):
            log.append(batch(bytes(60_000)))
        call = served.log.Consume()
        await call.write(grant(add(1), credit=60_000_000))
        seen = -1
        while seen != log.reads:  # until flow control has stopped it
            seen = log.reads
            await asyncio.sleep(0.2)
        async with asyncio.timeout(20):
            await served.server.stop()


async def test_a_consumer_that_leaves_leaves_no_task_behind(served: Served) -> None:
    before = len(asyncio.all_tasks())
    call = served.log.Consume()
    await call.write(grant(*(add(number) for number in range(500))))
    for _ in range(500):
        await next_of(call, "progress")
    assert len(asyncio.all_tasks()) >= before + 500
    call.cancel()
    while len(asyncio.all_tasks()) > before:
        await asyncio.sleep(0.005)


# ---- Read, ListOffsets


def read(offset: int = 0, **more: Any) -> log_pb2.ReadRequest:
    return log_pb2.ReadRequest(partition=log_pb2.TopicPartition(topic="t"), start=log_pb2.Position(offset=offset), **more)


async def test_read_returns_records_from_the_offset_on_within_its_limits(served: Served) -> None:
    log = served.broker.logs["t"][0]
    log.append(batch(b"0", b"1", b"2"))
    log.append(batch(b"3", b"4"))
    everything = await served.log.Read(read(1))
    assert [(record.offset, record.value) for record in everything.records] == [(n, b"%d" % n) for n in range(1, 5)]
    assert (everything.next_offset, everything.high_watermark) == (5, 5)
    some = await served.log.Read(read(1, max_records=3))
    assert ([record.offset for record in some.records], some.next_offset) == ([1, 2, 3], 4)
    least = await served.log.Read(read(2, max_bytes=1))
    assert ([record.offset for record in least.records], least.next_offset) == ([2], 3)


async def test_read_waits_for_a_first_record_as_long_as_asked(served: Served) -> None:
    empty = await served.log.Read(read(0, max_wait_ms=20))
    assert (list(empty.records), empty.next_offset) == ([], 0)
    before = served.broker.logs["t"][0].reads
    reading = asyncio.ensure_future(served.log.Read(read(0, max_wait_ms=30_000)))
    while served.broker.logs["t"][0].reads == before:
        await asyncio.sleep(0.001)
    served.broker.logs["t"][0].append(batch(b"v"))
    assert [record.value for record in (await reading).records] == [b"v"]


async def test_a_read_that_waits_does_not_hold_up_a_leaving_server() -> None:
    async with serving(drain_timeout_ms=30_000) as served:
        reading = asyncio.ensure_future(served.log.Read(read(0, max_wait_ms=60_000)))
        while not served.broker.logs["t"][0].reads:
            await asyncio.sleep(0.001)
        async with asyncio.timeout(5):
            await served.server.stop()
        assert list((await reading).records) == []


async def test_reads_beyond_the_limit_wait_their_turn_and_not_for_those_that_wait_for_records() -> None:
    async with serving(max_reads=1) as served:
        log = served.broker.logs["t"][0]
        waiting = [asyncio.ensure_future(served.log.Read(read(0, max_wait_ms=60_000))) for _ in range(5)]
        while log.reads < 5:
            await asyncio.sleep(0.001)
        log.append(batch(b"v"))
        assert [[record.value for record in (await each).records] for each in waiting] == [[b"v"]] * 5


async def test_a_batch_that_grows_beyond_the_limit_is_refused_before_it_is_allocated() -> None:
    from tidelog.records.codec import Record, encode

    async with serving(max_decompressed_bytes=65536) as served:
        served.broker.logs["t"][0].append(encode([Record(bytes(10_000_000))], compression="zstd"))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await served.log.Read(read(0))
        assert error_info(failed.value).reason == "CORRUPT_BATCH"


async def test_list_offsets_answers_each_query_for_itself(served: Served) -> None:
    served.broker.logs["t"][0].append(batch(b"a", b"b"))
    query = log_pb2.ListOffsetsRequest.Query
    here, nowhere = log_pb2.TopicPartition(topic="t"), log_pb2.TopicPartition(topic="none")
    queries = [
        query(partition=here, at=log_pb2.Position(latest=True)),
        query(partition=nowhere, at=log_pb2.Position(latest=True)),
        query(partition=here, at=log_pb2.Position(earliest=True)),
    ]
    answers = (await served.log.ListOffsets(log_pb2.ListOffsetsRequest(queries=queries))).answers
    assert [(answer.offset, answer.error.reason) for answer in answers] == [(2, ""), (-1, "UNKNOWN_TOPIC"), (0, "")]


async def test_metadata_names_brokers_and_topics(served: Served) -> None:
    await served.broker.create_topic("u", partitions=3, config=TopicConfig())
    found = await served.log.GetMetadata(log_pb2.GetMetadataRequest())
    assert found.cluster_id == "listed-cluster"
    assert [(broker.broker_id, broker.zone) for broker in found.brokers] == [("listed", "zone-a")]
    assert [(topic.name, topic.partitions) for topic in found.topics] == [("t", 2), ("u", 3)]
    named = await served.log.GetMetadata(log_pb2.GetMetadataRequest(topics=["none", "t"]))
    assert [(topic.name, topic.error.reason) for topic in named.topics] == [("none", "UNKNOWN_TOPIC"), ("t", "")]
