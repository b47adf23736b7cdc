"""Real brokers that are killed, paused and drained under load. `make chaos MINUTES=…` runs longer."""

import asyncio
import os
import random
from pathlib import Path

import pytest
from tidelog.objects.s3 import S3Settings

from tests.chaos.cluster import LEASE_MS, BrokerProcess, tail
from tests.chaos.scenario import Plan, Report, run
from tests.chaos.weather import weather
from tests.postgres_server import PostgresServer

SECONDS = float(os.environ.get("CHAOS_SECONDS", "45")) / 3
"""For each test."""
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().getrandbits(32)
KILLS = 50

pytestmark = pytest.mark.timeout(SECONDS + 280)


def judge(report: Report, brokers: list[BrokerProcess], *, least_sends: int) -> None:
    print(f"seed {report.seed}: {dict(report.faults)}, {dict(report.sends)}, at most {report.most_rss_mib} MiB")
    assert not report.anomalies, ({name: what[:3] for name, what in report.anomalies.items()}, report, *map(tail, brokers))
    assert report.sends["ok"] > least_sends, (report, *map(tail, brokers))
    assert report.most_rss_mib < 512


async def test_nothing_acknowledged_is_lost_repeated_or_reordered_by_fifty_kills(tmp_path: Path, postgres_server: PostgresServer) -> None:
    async with postgres_server.database() as url:
        plan = Plan(SECONDS, kills=KILLS, weights={"kill": 1}, between_s=(0.1, 1.2), spared=0, away_leases=0.5)
        report, brokers = await run(tmp_path, plan, seed=SEED, bucket=f"file://{tmp_path / 'objects'}", metadata=url)
    judge(report, brokers, least_sends=100)


async def test_a_database_that_restarts_and_crashes_is_a_pause(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """Beside kills, pauses and drains; also when it is away for longer than a lease."""
    one_at_a_time = asyncio.Lock()

    async def restarts() -> None:
        async with one_at_a_time:
            await postgres_server.restart(crash=False)

    async def crashes() -> None:
        async with one_at_a_time:
            await postgres_server.restart(crash=True)

    async def stays_away() -> None:
        async with one_at_a_time:
            await postgres_server.restart(crash=False, away_s=1.5 * LEASE_MS / 1000)

    async with postgres_server.database() as url:
        database = url.partition("?")[0].rpartition("/")[2]

        async def cut_sessions() -> None:
            async with one_at_a_time:
                await postgres_server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")

        others = {
            "database restarts": restarts,
            "database crashes": crashes,
            "database stays away": stays_away,
            "database sessions cut": cut_sessions,
        }
        plan = Plan(SECONDS, others=others)
        report, brokers = await run(tmp_path, plan, seed=SEED + 1, bucket=f"file://{tmp_path / 'objects'}", metadata=url)
    judge(report, brokers, least_sends=50)


async def test_a_bucket_that_storms_and_falls_silent_loses_nothing(
    tmp_path: Path, postgres_server: PostgresServer, s3_settings: S3Settings
) -> None:
    assert s3_settings.endpoint_url is not None
    async with postgres_server.database() as url, weather(s3_settings.endpoint_url) as sky:
        bucket = f"s3://{s3_settings.bucket}/chaos?endpoint={sky.endpoint}&path_style=true"
        plan = Plan(SECONDS, others={"storm of 503": sky.storm, "blackout": sky.blackout})
        report, brokers = await run(tmp_path, plan, seed=SEED + 2, bucket=bucket, metadata=url)
    print(f"{sky.refused} requests refused")
    judge(report, brokers, least_sends=50)
