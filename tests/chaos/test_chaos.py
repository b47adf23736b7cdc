"""Real brokers that are killed, paused and drained under load. `make chaos MINUTES=…` runs longer."""

import os
import random
from pathlib import Path

import pytest

from tests.chaos.cluster import tail
from tests.chaos.scenario import run
from tests.postgres_server import PostgresServer

SECONDS = float(os.environ.get("CHAOS_SECONDS", "25"))
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
