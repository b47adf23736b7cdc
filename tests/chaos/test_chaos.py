"""Real brokers under faults of every kind, with clients at work. `make chaos MINUTES=…` runs longer."""

import os
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tidelog.objects.s3 import S3Settings

from tests.chaos.aftermath import Database, Stores, checked, judge_logs, lost_under_load, lost_when_drained, settled, watched
from tests.chaos.cluster import BrokerProcess, tail
from tests.chaos.links import open_links, tcp, unix
from tests.chaos.nemesis import KINDS, S3, SQL, Nemesis, Plan, database_faults
from tests.chaos.scenario import Chaos, Report, run
from tests.chaos.shortlived import quick_lives, short_lived
from tests.chaos.weather import weather
from tests.postgres_server import SOCKET, PostgresServer

SECONDS = float(os.environ.get("CHAOS_SECONDS", "0"))
"""For both tests together; they last at least until each fault has struck."""
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().getrandbits(32)
KILLS = 50
LOSSES = 1 + int(SECONDS // 120)
"""How often the database is lost under load."""

pytestmark = [pytest.mark.timeout(SECONDS + 400), pytest.mark.alone]


def judge(report: Report, brokers: list[BrokerProcess], *, least_sends: int) -> None:
    print(report)
    for kind in ("merged segments written", "intake segments deleted", "merged segments deleted", "topics deleted"):
        assert report.lives[kind] > 0, (kind, str(report))
    assert not report.anomalies, ({name: what[:3] for name, what in report.anomalies.items()}, str(report), *map(tail, brokers))
    assert report.sends["ok"] > least_sends, (str(report), *map(tail, brokers))
    assert report.most_rss_mib < 512


async def test_nothing_acknowledged_is_lost_repeated_or_reordered_by_fifty_kills(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """Nor by the loss of all brokers and of their database at once, in the end."""
    objects = tmp_path / "objects"
    objects.mkdir()
    bucket = f"file://{objects}"
    plan = Plan(SECONDS / 5, {"kill": KILLS}, between_s=(0.05, 0.6), spared=0, away_leases=0.5)
    async with AsyncExitStack() as stack:
        seen = await stack.enter_async_context(watched(bucket))
        urls = [await stack.enter_async_context(postgres_server.database()) for _ in range(LOSSES + 1)]

        async def afterwards(chaos: Chaos) -> None:
            for url in urls[1:]:
                await lost_under_load(chaos, bucket, Database(url, url), seconds=2)
                await settled(chaos, Stores(bucket, url), seen)
                await checked(chaos, Stores(bucket, url))
            judge_logs(chaos)
            chaos.report.lives += seen.told()

        report, brokers = await run(
            tmp_path,
            lambda chaos: under(plan, chaos),
            seed=SEED,
            afterwards=afterwards,
            bucket=bucket,
            metadata=urls[0],
            **quick_lives(random.Random(SEED)),
        )
    judge(report, brokers, least_sends=100)


async def test_whatever_befalls_brokers_links_bucket_and_database_is_a_pause(
    tmp_path: Path, postgres_server: PostgresServer, s3_settings: S3Settings
) -> None:
    """All kinds of faults at once; every link runs through a proxy that can break it in every way. In the end the database is lost."""
    assert s3_settings.endpoint_url is not None
    chance = random.Random(SEED)
    bucket = f"s3://{s3_settings.bucket}/chaos?path_style=true&endpoint="
    async with (
        postgres_server.database() as url,
        postgres_server.database() as another,
        weather(s3_settings.endpoint_url) as sky,
        watched(bucket + s3_settings.endpoint_url) as seen,
        open_links(chance) as links,
    ):
        s3 = await links.listen(S3, tcp(sky.endpoint.removeprefix("http://")))
        sql = await links.listen(SQL, unix(postgres_server.directory / SOCKET))
        others = {"S3: storms": sky.storm, "S3: blackout": sky.blackout, **database_faults(postgres_server, named(url))}
        plan = Plan(SECONDS * 4 / 5, {"kill": 6, "pause": 4, "drain": 2}, others, links, between_s=(0.05, 0.6), calm=0.1)
        stores = Stores(bucket + s3_settings.endpoint_url, url)

        async def afterwards(chaos: Chaos) -> None:
            await settled(chaos, stores, seen)
            await checked(chaos, stores)
            await lost_when_drained(chaos, stores, Database(another, f"postgresql://postgres@{sql}/{named(another)}"))
            judge_logs(chaos)
            chaos.report.lives += seen.told()

        report, brokers = await run(
            tmp_path,
            lambda chaos: under(plan, chaos),
            seed=SEED + 1,
            links=links,
            afterwards=afterwards,
            bucket=f"{bucket}http://{s3}",
            metadata=f"postgresql://postgres@{sql}/{named(url)}",
            s3_read_timeout_ms=2000,
            s3_attempt_timeout_ms=4000,
            peer_timeout_ms=2000,
            append_timeout_ms=8000,
            **quick_lives(chance),
        )
    print(f"          {sky.refused} requests to S3 refused")
    judge(report, brokers, least_sends=50)
    reached = {kind for kind in KINDS for pair in report.connections if kind == kind_of(*pair)}
    assert reached == set(KINDS), report.connections


async def under(plan: Plan, chaos: Chaos) -> None:
    """Have faults strike while records and topics come and go."""
    async with short_lived(chaos):
        await Nemesis(plan, chaos).run()


def named(url: str) -> str:
    """Return the name of a database."""
    return url.partition("?")[0].rpartition("/")[2]


def kind_of(source: str, target: str) -> str:
    """Return the kind of a link, as `KINDS` has it."""
    return f"{'broker' if source.startswith('b') else source}-{'broker' if target.startswith('b') else target}"
