"""The client and a real service in a process of its own: a directory for a bucket, SQLite for metadata."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import tidelog
from tidelog.client.connection import Broker
from tidelog.errors import ConditionFailed, InvalidRequest, OffsetOutOfRange, TopicExists, UnknownTopic
from tidelog.proto.v1 import log_pb2 as pb


@contextmanager
def service(data_dir: Path, *, port: str = "0") -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A service that takes appends, and its address."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TIDELOG_")}
    command = [sys.executable, "-m", "tidelog", "dev", "--data-dir", str(data_dir), "--port", port, "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"listens on (127\.0\.0\.1:\d+)", process.stdout.readline())
            assert found, process.poll()
            yield process, found[1]
        finally:
            process.kill()


def port_of(address: str) -> str:
    return address.rpartition(":")[2]


async def test_what_is_sent_comes_back(tmp_path: Path) -> None:
    values = [b"%06d" % number + b"." * 94 for number in range(50_000)]
    with service(tmp_path) as (_, address):
        async with tidelog.connect(address) as log, asyncio.timeout(120):
            topic = await log.admin.create_topic("clicks", partitions=3)
            assert len(topic.partitions) == 3
            async with log.producer(compression="zstd") as producer:
                acks = await producer.send_many("clicks", values)
                one = await producer.send("clicks", b"value", key=b"user-1", headers=[("h", b"x")], timestamp_ms=77)
            found = {(record.partition, record.offset): record async for record in log.consume("clicks", follow=False)}
            columns = [value async for batch in log.consume("clicks", follow=False).batches() for value in batch.values]
        assert len(found) == len(columns) == len(values) + 1
        for index in range(0, len(values), 101):
            assert found[acks[index].partition, acks[index].offset].value == values[index]
        last = found[one.partition, one.offset]
        assert (last.key, last.value, last.headers, last.timestamp_ms) == (b"user-1", b"value", (("h", b"x"),), 77)
        assert Counter(columns) == Counter([*values, b"value"])


async def test_calls_outlive_a_channel_that_another_call_found_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = {"produce": 1, "consume": 1, "call": 1}

    def leave(broker: Broker, kind: str) -> None:
        """What `connected` does with a channel that others may be about to use."""
        if left[kind]:
            left[kind] -= 1
            broker.leave()

    def leaving(kind: Literal["produce", "consume"]) -> None:
        opened = getattr(Broker, kind)

        def open_and_leave(broker: Broker) -> Any:
            call = opened(broker)  # which begins in a later turn of the event loop
            leave(broker, kind)
            return call

        monkeypatch.setattr(Broker, kind, open_and_leave)

    leaving("produce")
    leaving("consume")
    with service(tmp_path) as (_, address):
        async with tidelog.connect(address) as log, asyncio.timeout(120):
            async with log.producer() as producer:
                assert (await producer.send("t", b"value")).offset == 0
            assert [record.value async for record in log.consume("t", follow=False)] == [b"value"]

            async def after_it_closed(broker: Broker, request: object, **how: object) -> Any:
                method = broker.log.GetMetadata
                leave(broker, "call")
                await asyncio.sleep(0.01)
                return await method(request, **how)

            answer = await log._brokers.call(lambda broker: partial(after_it_closed, broker), pb.GetMetadataRequest(topics=["t"]))
            assert answer.topics[0].name == "t"
    assert left == {"produce": 0, "consume": 0, "call": 0}


async def test_administration(tmp_path: Path) -> None:
    with service(tmp_path) as (_, address):
        async with tidelog.connect(address) as log, asyncio.timeout(120):
            await log.admin.create_topic("t", partitions=1, retention_ms=1000)
            with pytest.raises(TopicExists):
                await log.admin.create_topic("t")
            with pytest.raises(UnknownTopic):
                await log.admin.describe_topic("nowhere")
            with pytest.raises(InvalidRequest):
                await log.admin.create_topic("no spaces, please", partitions=1)
            assert (await log.admin.alter_topic("t", retention_ms=-1)).config.retention_ms == -1
            async with log.producer() as producer:
                await producer.send_many("t", [b"v"] * 10, partition=0)
            assert await log.admin.delete_records("t", 0, before_offset=4) == 4
            assert await log.admin.list_offsets("t", at="earliest") == {0: 4}
            assert await log.admin.list_offsets("t") == {0: 10}
            with pytest.raises(OffsetOutOfRange) as caught:
                _ = [record async for record in log.consume("t", start=3, follow=False)]
            assert (caught.value.log_start_offset, caught.value.high_watermark) == (4, 10)
            assert len((await log.admin.create_partitions("t", partitions=2)).partitions) == 2
            assert await log.admin.list_topics() == ["t"]
            (broker,) = (await log.admin.describe_cluster()).brokers
            assert broker.address == address
            await log.admin.delete_topic("t")
            assert await log.admin.list_topics() == []


async def test_a_conditional_append_is_decided_by_the_service(tmp_path: Path) -> None:
    with service(tmp_path) as (_, address):
        async with tidelog.connect(address) as log, asyncio.timeout(120):
            await log.admin.create_topic("t", partitions=1)
            async with log.producer() as producer:
                assert (await producer.send("t", b"a", partition=0, expected_next_offset=0)).offset == 0
                with pytest.raises(ConditionFailed):
                    await producer.send("t", b"b", partition=0, expected_next_offset=0)
                assert (await producer.send("t", b"c", partition=0)).offset == 1


async def test_a_topic_is_made_on_first_use(tmp_path: Path) -> None:
    with service(tmp_path) as (_, address):
        async with tidelog.connect(address) as log, asyncio.timeout(120), log.producer() as producer:
            assert (await producer.send("new", b"v")).offset == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_service_that_is_ended_under_load_and_started_again_loses_and_repeats_nothing(tmp_path: Path, how: signal.Signals) -> None:
    """A producer and a consumer of before the end see it through; both are told nothing of it."""
    count, partitions = 6000, 2
    read: dict[int, list[bytes | None]] = {partition: [] for partition in range(partitions)}
    acks: list[tidelog.Ack] = []
    with service(tmp_path) as (process, address):
        async with tidelog.connect(address) as log, asyncio.timeout(240):
            await log.admin.create_topic("t", partitions=partitions)

            async def consume() -> None:
                async for record in log.consume("t", max_records=count):
                    assert record.offset == len(read[record.partition])
                    read[record.partition].append(record.value)

            async def produce(producer: tidelog.Producer) -> None:
                futures = []
                for number in range(count):
                    futures.append(producer.send_nowait("t", b"%d" % number, partition=number % partitions))
                    if number % 50 == 0:
                        await asyncio.sleep(0.01)
                acks.extend([await future for future in futures])

            async with log.producer(linger_ms=1, batch_bytes=2000) as producer, asyncio.TaskGroup() as group:
                group.create_task(consume())
                group.create_task(produce(producer))
                while sum(map(len, read.values())) < count // 10:
                    await asyncio.sleep(0.01)
                process.send_signal(how)
                await asyncio.to_thread(process.wait, 60)
                with service(tmp_path, port=port_of(address)) as (_, again):
                    assert again == address
                    while sum(map(len, read.values())) < count or len(acks) < count:
                        await asyncio.sleep(0.01)
    for partition in range(partitions):
        assert read[partition] == [b"%d" % number for number in range(partition, count, partitions)]
    assert all(read[ack.partition][ack.offset] == b"%d" % number for number, ack in enumerate(acks))
