"""A bucket that is away for long, under load: memory keeps its bound, clients hear only what a retry mends, and all is well soon after.

`make blackout MINUTES=…` has it away for longer.
"""

import asyncio
import os
import random
import re
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tidelog.objects.s3 import S3Settings

from tests.chaos.cluster import BrokerProcess, tail
from tests.chaos.scenario import Chaos, run
from tests.chaos.weather import weather
from tests.postgres_server import PostgresServer
from tests.sim.history import Send

pytestmark = pytest.mark.alone

AWAY_S = float(os.environ.get("BLACKOUT_SECONDS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().getrandbits(32)
NORMAL_WITHIN_S = 60
MIB = 2**20
BUDGET = 16 * MIB
"""For appends, in each broker."""
CACHES = 2 * MIB
LOADS = 16
SIZE = 100_000
PER_SECOND = 1.25
"""Of each load: together they fill all budgets well within twenty seconds."""
SLACK = 40 * MIB
"""For what is not appends: the heap's holes, and what the transport holds of each connection."""
_WINDOW_S = 1.0
_WINDOWS = 5


def slowest(sends: list[Send], begun: float) -> float | None:
    """Return how long the slowest of the appends took that began within a second; None where one was not acknowledged."""
    took = [send.ended - send.began if send.kind == "ok" else None for send in sends if begun <= send.began < begun + _WINDOW_S]
    return None if None in took or not took else max(each for each in took if each is not None)


@asynccontextmanager
async def loaded(chaos: Chaos) -> AsyncIterator[None]:
    loads = [asyncio.create_task(chaos.load(10 + number, size=SIZE, per_second=PER_SECOND)) for number in range(LOADS)]
    yield
    chaos.stopping.set()
    await asyncio.gather(*loads)


@pytest.mark.timeout(AWAY_S + 300)
async def test_a_bucket_that_is_away_for_long_costs_neither_memory_nor_records(
    tmp_path: Path, postgres_server: PostgresServer, s3_settings: S3Settings
) -> None:
    assert s3_settings.endpoint_url is not None
    figures: dict[str, float] = {}

    async def away(chaos: Chaos) -> None:
        async with loaded(chaos):
            await asyncio.sleep(10)
            now = time.monotonic()
            before = [slowest(chaos.history.sends, now - back) for back in range(2, 7)]
            assert None not in before, "all was well"
            normal_s = max(1.0, 2 * max(each for each in before if each is not None))
            figures["slowest append before, s"] = max(each for each in before if each is not None)
            rss = {broker.name: broker.most_rss for broker in chaos.brokers}
            await sky.blackout(seconds=AWAY_S)
            figures["appends pushed back"] = sum([await asyncio.to_thread(pushed_back, broker) for broker in chaos.brokers])
            figures["RSS rose by at most, MiB"] = max(broker.most_rss - rss[broker.name] for broker in chaos.brokers) / MIB
            figures["normal again after, s"] = await again(chaos, time.monotonic(), normal_s)

    async with postgres_server.database() as url, weather(s3_settings.endpoint_url) as sky:
        report, brokers = await run(
            tmp_path,
            away,
            seed=SEED,
            bucket=f"s3://{s3_settings.bucket}/blackout?endpoint={sky.endpoint}&path_style=true",
            metadata=url,
            lease_ms=10_000,
            max_latency_ms=250,
            metrics_listen="127.0.0.1:0",
            append_timeout_ms=10_000,
            intake_budget_bytes=BUDGET,
            max_append_bytes=MIB,
            cache_bytes=CACHES,
            block_cache_bytes=CACHES,
        )
    print(report, *(f"{name}: {value:.1f}" for name, value in figures.items()), f"{sky.refused} requests refused", sep="\n")
    assert not report.anomalies, ({name: what[:3] for name, what in report.anomalies.items()}, *map(tail, brokers))
    assert report.sends.total() > report.sends["ok"], "it was away for longer than clients waited"
    assert figures["appends pushed back"] > 0, "memory was pushed to its limit"
    assert figures["RSS rose by at most, MiB"] * MIB < BUDGET + 2 * CACHES + SLACK
    assert figures["normal again after, s"] <= NORMAL_WITHIN_S


async def again(chaos: Chaos, ended: float, normal_s: float) -> float:
    """Return how long after the blackout the first of some seconds in a row began in which all appends went as well as before."""
    window = ended
    good = 0
    while good < _WINDOWS and window - ended < 2 * NORMAL_WITHIN_S:
        await asyncio.sleep(max(0, window + _WINDOW_S + normal_s - time.monotonic()))
        took = slowest(chaos.history.sends, window)
        good = good + 1 if took is not None and took <= normal_s else 0
        window += _WINDOW_S
    return window - good * _WINDOW_S - ended


def pushed_back(broker: BrokerProcess) -> float:
    """Return how many appends a broker had no room for."""
    [told] = re.findall(r'"metrics_address": ?"(.+?)"', broker.log.read_text())[-1:]
    with urllib.request.urlopen(f"http://{told}/metrics", timeout=30) as answer:
        found = re.search(r'^tidelog_appends_total\{result="throttled"\} (\S+)$', answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0
