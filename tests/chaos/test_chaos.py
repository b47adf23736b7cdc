"""Real brokers under faults of every kind, with clients at work. `make chaos MINUTES=…` runs longer."""

import os
import random
from pathlib import Path

import pytest
from tidelog.objects.s3 import S3Settings

from tests.chaos.cluster import BrokerProcess, tail
from tests.chaos.links import open_links, tcp, unix
from tests.chaos.nemesis import KINDS, S3, SQL, Nemesis, Plan, database_faults
from tests.chaos.scenario import Report, run
from tests.chaos.weather import weather
from tests.postgres_server import SOCKET, PostgresServer

SECONDS = float(os.environ.get("CHAOS_SECONDS", "0"))
"""For both tests together; they last at least until each fault has struck."""
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().getrandbits(32)
KILLS = 50

pytestmark = [pytest.mark.timeout(SECONDS + 400), pytest.mark.alone]


def judge(report: Report, brokers: list[BrokerProcess], *, least_sends: int) -> None:
    print(report)
    assert not report.anomalies, ({name: what[:3] for name, what in report.anomalies.items()}, str(report), *map(tail, brokers))
    assert report.sends["ok"] > least_sends, (str(report), *map(tail, brokers))
    assert report.most_rss_mib < 512


async def test_nothing_acknowledged_is_lost_repeated_or_reordered_by_fifty_kills(tmp_path: Path, postgres_server: PostgresServer) -> None:
    async with postgres_server.database() as url:
        plan = Plan(SECONDS / 5, {"kill": KILLS}, between_s=(0.1, 0.9), spared=0, away_leases=0.5)
        bucket = f"file://{tmp_path / 'objects'}"
        report, brokers = await run(tmp_path, lambda chaos: Nemesis(plan, chaos).run(), seed=SEED, bucket=bucket, metadata=url)
    judge(report, brokers, least_sends=100)


async def test_whatever_befalls_brokers_links_bucket_and_database_is_a_pause(
    tmp_path: Path, postgres_server: PostgresServer, s3_settings: S3Settings
) -> None:
    """All kinds of faults at once; every link runs through a proxy that can break it in every way."""
    assert s3_settings.endpoint_url is not None
    chance = random.Random(SEED)
    async with (
        postgres_server.database() as url,
        weather(s3_settings.endpoint_url) as sky,
        open_links(chance) as links,
    ):
        database = url.partition("?")[0].rpartition("/")[2]
        s3 = await links.listen(S3, tcp(sky.endpoint.removeprefix("http://")))
        sql = await links.listen(SQL, unix(postgres_server.directory / SOCKET))
        others = {"S3: storms": sky.storm, "S3: blackout": sky.blackout, **database_faults(postgres_server, database)}
        plan = Plan(SECONDS * 4 / 5, {"kill": 8, "pause": 6, "drain": 2}, others, links, calm=0.1)
        report, brokers = await run(
            tmp_path,
            lambda chaos: Nemesis(plan, chaos).run(),
            seed=SEED + 1,
            links=links,
            bucket=f"s3://{s3_settings.bucket}/chaos?endpoint=http://{s3}&path_style=true",
            metadata=f"postgresql://postgres@{sql}/{database}",
            s3_read_timeout_ms=2000,
            s3_attempt_timeout_ms=4000,
            peer_timeout_ms=2000,
            append_timeout_ms=8000,
        )
    print(f"          {sky.refused} requests to S3 refused")
    judge(report, brokers, least_sends=100)
    reached = {kind for kind in KINDS for pair in report.connections if kind == kind_of(*pair)}
    assert reached == set(KINDS), report.connections


def kind_of(source: str, target: str) -> str:
    """Return the kind of a link, as `KINDS` has it."""
    return f"{'broker' if source.startswith('b') else source}-{'broker' if target.startswith('b') else target}"
