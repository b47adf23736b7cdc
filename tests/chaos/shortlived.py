"""What is not kept, under faults: a topic with narrow limits, and topics that are made to be deleted."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import tidelog
from tidelog.errors import OffsetOutOfRange, TidelogError, TopicExists, UnknownTopic

from tests.chaos.scenario import Chaos
from tests.sim.history import Asked

BRIEF = "brief"
BRIEF_PARTITIONS = 2
RETENTION_MS, RETENTION_BYTES = 4000, 20_000


def quick_lives(chance: random.Random) -> dict[str, Any]:
    """Draw settings with which segments are merged and deleted within seconds."""
    return {
        "merge_target_bytes": chance.choice((20_000, 200_000)),
        "merge_least_extents": chance.choice((2, 4)),
        "merge_most_extents": chance.choice((16, 100)),
        "merge_max_age_ms": chance.choice((1000, 3000)),
        "merge_settle_ms": chance.choice((500, 2000)),
        "merge_buffer_bytes": chance.choice((65536, 1 << 20)),
        "block_cache_bytes": 1 << 18,
        "retention_interval_ms": 500,
        "cleaner_interval_ms": 500,
        "reader_grace_ms": 1000,
        "orphan_age_seconds": 1,
        "orphan_scan_interval_ms": 2000,
        "cleaner_retry_ms": 3000,
        "checkpoint_interval_ms": 1500,
        "scrub_interval_ms": 5000,
        "scrub_reads_per_second": 2,
    }


@asynccontextmanager
async def short_lived(chaos: Chaos) -> AsyncIterator[None]:
    """Have clients append to what is soon gone, delete records and topics, and read what may be gone; in the end what is left is kept."""
    chaos.padding = (0, 0, 200, 5000)
    async with tidelog.connect(chaos.address()) as log:
        await log.admin.create_topic(BRIEF, partitions=BRIEF_PARTITIONS, retention_ms=RETENTION_MS, retention_bytes=RETENTION_BYTES)
        chaos.places += [(BRIEF, partition) for partition in range(BRIEF_PARTITIONS)]
        for place, (topic, partition) in enumerate(chaos.places):
            await log.admin.set_fencing_token(topic, partition, f"writer {place}")
    clients = [asyncio.create_task(_read(chaos, 150 + partition, partition)) for partition in range(BRIEF_PARTITIONS)]
    clients += [asyncio.create_task(_trim(chaos)), asyncio.create_task(_doom(chaos))]
    yield
    chaos.stopping.set()
    await asyncio.gather(*clients)
    async with tidelog.connect(chaos.address()) as log:
        await log.admin.alter_topic(BRIEF, retention_ms=-1, retention_bytes=-1)


async def _read(chaos: Chaos, number: int, partition: int) -> None:
    """Read one partition, again and again from where it once began: below the log start one is told so, and where it begins now."""
    place = chaos.places.index((BRIEF, partition))
    at = 0
    async with tidelog.connect(chaos.address()) as log:
        for generation in itertools.count():
            if chaos.stopping.is_set():
                return
            asked = time.monotonic()
            consumption = log.consume(BRIEF, partitions=[partition], start=at)
            try:
                async with asyncio.timeout(chaos.chance.uniform(0.2, 3)), consumption:
                    async for batch in consumption.batches():
                        chaos.polled(number, batch, generation=generation)
                        asked = time.monotonic()
            except TimeoutError:
                at = chaos.chance.choice((0, consumption.next_offsets.get((BRIEF, partition), at)))
            except OffsetOutOfRange as error:
                at = consumption.next_offsets[BRIEF, partition]
                chaos.history.asked.append(Asked(place, asked, time.monotonic(), error.high_watermark, error.log_start_offset))
                chaos.report.lives["readers told of a log start"] += 1
                if at >= error.log_start_offset:
                    chaos.anomaly("out of range, though kept", (partition, at, error.log_start_offset, error.high_watermark))
                at = error.log_start_offset
            except TidelogError as error:
                chaos.mended(error)


async def _trim(chaos: Chaos) -> None:
    """Delete old records now and then."""
    async with tidelog.connect(chaos.address()) as log:
        while not chaos.stopping.is_set():
            await asyncio.sleep(chaos.chance.uniform(0.2, 2))
            partition = chaos.chance.randrange(BRIEF_PARTITIONS)
            try:
                end = (await log.admin.list_offsets(BRIEF, partitions=[partition]))[partition]
                began = time.monotonic()
                before = max(0, end - chaos.chance.randrange(20))
                log_start = await log.admin.delete_records(BRIEF, partition, before_offset=before)
            except TidelogError as error:
                chaos.mended(error)
            else:
                place = chaos.places.index((BRIEF, partition))
                chaos.history.asked.append(Asked(place, began, time.monotonic(), None, log_start))
                chaos.report.lives["deletes of records"] += 1


async def _doom(chaos: Chaos) -> None:
    """Make topics, append to them, and delete them."""
    async with tidelog.connect(chaos.address()) as log:
        for number in itertools.count(1):
            if chaos.stopping.is_set():
                return
            name = f"doomed-{number}"
            try:
                await log.admin.create_topic(name, partitions=chaos.chance.choice((1, 3)))
                async with log.producer(delivery_timeout_ms=3000, request_timeout_ms=2000) as producer:
                    for _ in range(chaos.chance.randrange(1, 6)):
                        await producer.send(name, b"-1" + b" " * chaos.chance.choice(chaos.padding), partition=0)
            except TopicExists:
                chaos.report.lives["topics made before their maker heard"] += 1
            except TidelogError as error:
                chaos.mended(error)
            await _delete(chaos, log, name)


async def _delete(chaos: Chaos, log: tidelog.Log, name: str) -> None:
    """Delete a topic, however often one has to ask."""
    while True:
        await asyncio.sleep(chaos.chance.uniform(0, 1))
        try:
            await log.admin.delete_topic(name)
        except UnknownTopic:
            break
        except TidelogError as error:
            chaos.mended(error)
        else:
            break
    chaos.report.lives["topics deleted"] += 1
