"""A real broker that is pushed while its bucket is away keeps to its memory, and recovers by itself (I10)."""

import asyncio
import random
import re
import urllib.request
from pathlib import Path

import pytest
import tidelog
from tidelog.objects.s3 import S3Settings

from tests.chaos.cluster import BrokerProcess, broker_processes, tail
from tests.chaos.scenario import free_ports, wait_until_served
from tests.chaos.weather import weather

pytestmark = pytest.mark.alone

MIB = 2**20
BUDGET = 32 * MIB
PRODUCERS = 8
SLACK = (32 + 6 * PRODUCERS) * MIB
"""For what is not appends: the heap's holes, and what the transport holds of each connection."""
PARTITIONS = 16
VALUES = 80
VALUE = random.Random(1).randbytes(100_000)


@pytest.mark.timeout(280)
async def test_a_bucket_that_is_away_is_pushed_back_and_the_memory_stays_bounded(tmp_path: Path, s3_settings: S3Settings) -> None:
    assert s3_settings.endpoint_url is not None
    port, metrics_port = free_ports(2)
    async with (
        weather(s3_settings.endpoint_url) as sky,
        broker_processes(
            tmp_path,
            [port],
            bucket=f"s3://{s3_settings.bucket}/memory?endpoint={sky.endpoint}&path_style=true",
            metadata=f"sqlite://{tmp_path / 'metadata.db'}",
            metrics_listen=f"127.0.0.1:{metrics_port}",
            lease_ms=10_000,
            intake_budget_bytes=BUDGET,
            cache_bytes=MIB,
            block_cache_bytes=MIB,
        ) as [broker],
    ):
        await wait_until_served([broker])
        async with tidelog.connect(broker.address) as log:
            await log.admin.create_topic("flood", partitions=PARTITIONS)
            async with log.producer() as producer:
                await asyncio.gather(*(producer.send("flood", VALUE, partition=number % PARTITIONS) for number in range(PARTITIONS)))
        broker.measure()
        before = broker.most_rss
        measuring = asyncio.create_task(measure(broker))
        blackout = asyncio.create_task(sky.blackout(seconds=8))
        acks = await asyncio.gather(*(flood(broker) for _ in range(PRODUCERS)))
        await blackout
        measuring.cancel()
        offsets = sorted((ack.partition, ack.offset) for each in acks for ack in each)
        throttled = await asyncio.to_thread(counted, metrics_port)
        rise = broker.most_rss - before
        print(f"RSS rose by {rise / MIB:.0f} MiB from {before / MIB:.0f} MiB; {throttled:.0f} appends were pushed back")
        assert throttled > 0, "it was pushed to the limit"
        each = PRODUCERS * VALUES // PARTITIONS
        assert offsets == [(partition, offset) for partition in range(PARTITIONS) for offset in range(1, 1 + each)]
        assert rise < BUDGET + SLACK, tail(broker)


async def flood(broker: BrokerProcess) -> list[tidelog.Ack]:
    """Send everything at once; the client tries again until it is through."""
    async with tidelog.connect(broker.address) as log, log.producer(delivery_timeout_ms=120_000) as producer:
        return await asyncio.gather(*(producer.send("flood", VALUE, partition=number % PARTITIONS) for number in range(VALUES)))


async def measure(broker: BrokerProcess) -> None:
    while True:
        broker.measure()
        await asyncio.sleep(0.05)


def counted(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        found = re.search(r'^tidelog_appends_total\{result="throttled"\} (\S+)$', answer.read().decode(), re.MULTILINE)
    assert found
    return float(found[1])
