"""Real brokers that are killed, paused and drained under load. `make chaos MINUTES=…` runs longer."""

import os
import random
from pathlib import Path

import pytest
from tidelog.objects.s3 import S3Settings

from tests.chaos.cluster import tail
from tests.chaos.scenario import run
from tests.chaos.weather import weather
from tests.postgres_server import PostgresServer

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().getrandbits(32)


@pytest.mark.timeout(SECONDS + 280)
async def test_nothing_acknowledged_is_lost_repeated_or_reordered(tmp_path: Path, postgres_server: PostgresServer) -> None:
    async with postgres_server.database() as url:
        database = url.partition("?")[0].rpartition("/")[2]

        async def cut_sessions() -> None:
            """What a restart of the database does to its clients."""
            await postgres_server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")

        report, brokers = await run(
            tmp_path,
            seed=SEED,
            seconds=SECONDS,
            bucket=f"file://{tmp_path / 'objects'}",
            metadata=url,
            others={"database sessions cut": cut_sessions},
        )
    print(f"seed {report.seed}: {dict(report.faults)}, {dict(report.sends)}, at most {report.most_rss_mib} MiB")
    assert not report.anomalies, ({name: what[:3] for name, what in report.anomalies.items()}, report, *map(tail, brokers))
    assert report.sends["ok"] > 100, (report, *map(tail, brokers))
    assert report.most_rss_mib < 512


@pytest.mark.timeout(SECONDS + 280)
async def test_a_bucket_that_storms_and_falls_silent_loses_nothing(
    tmp_path: Path, postgres_server: PostgresServer, s3_settings: S3Settings
) -> None:
    assert s3_settings.endpoint_url is not None
    async with postgres_server.database() as url, weather(s3_settings.endpoint_url) as sky:
        report, brokers = await run(
            tmp_path,
            seed=SEED + 1,
            seconds=SECONDS,
            bucket=f"s3://{s3_settings.bucket}/chaos?endpoint={sky.endpoint}&path_style=true",
            metadata=url,
            others={"storm of 503": sky.storm, "blackout": sky.blackout},
        )
    print(f"seed {report.seed}: {dict(report.faults)}, {dict(report.sends)}, at most {report.most_rss_mib} MiB, {sky.refused} refused")
    assert not report.anomalies, ({name: what[:3] for name, what in report.anomalies.items()}, report, *map(tail, brokers))
    assert report.sends["ok"] > 50, (report, *map(tail, brokers))
    assert report.most_rss_mib < 512
