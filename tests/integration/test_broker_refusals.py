"""What a broker's process refuses to begin with, each with a sentence and an exit code."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.cluster import broker_processes
from tests.chaos.scenario import free_ports, wait_until_served
from tests.e2e.crash_worker import TOPIC, open_broker


def refused(**settings: object) -> tuple[int, str]:
    """Run a broker that ends by itself; return its exit code and what it said."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {"log_format": "json", "metrics_listen": "", **settings}.items()]
    done = subprocess.run([sys.executable, "-m", "tidelog", "broker", *flags], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


async def test_a_second_broker_of_one_id_waits_for_the_lease_then_says_who_has_it(tmp_path: Path, postgres_url: str) -> None:
    bucket = f"file://{tmp_path / 'objects'}"
    async with broker_processes(tmp_path, free_ports(1), bucket=bucket, metadata=postgres_url) as brokers:
        await wait_until_served(brokers)
        code, said = await asyncio.to_thread(
            refused, broker_id="b0", bucket=bucket, metadata=postgres_url, listen="127.0.0.1:0", lease_ms=1500, catalog_poll_ms=100
        )
        assert code == 1
        assert "BROKER_ID_TAKEN" in said
        assert "or give this broker another id" in said
        assert brokers[0].alive, "the first goes on"


@pytest.mark.parametrize("which", ["a new database", "another cluster's database"])
def test_a_bucket_of_another_database_is_refused_before_anything_is_written(tmp_path: Path, which: str) -> None:
    """I11."""

    async def use(folder: Path) -> None:
        folder.mkdir()
        broker = await open_broker(folder)
        await broker.start()
        running = asyncio.ensure_future(broker.run(address="a:1", peer_address="a:1"))
        while broker.ready() is not None:
            await asyncio.wait([running], timeout=0.01)
        await broker.ensure_topic(TOPIC)
        running.cancel()
        await asyncio.wait([running])
        await broker._store.close()

    asyncio.run(use(tmp_path / "one"))
    metadata = tmp_path / "two" / "metadata.db"
    if which == "another cluster's database":
        asyncio.run(use(tmp_path / "two"))
    else:
        metadata.parent.mkdir()
    before = sorted(path for path in (tmp_path / "one" / "objects").rglob("*") if path.is_file())
    code, said = refused(
        broker_id="b", bucket=f"file://{tmp_path / 'one' / 'objects'}", metadata=f"sqlite://{metadata}", listen="127.0.0.1:0"
    )
    assert code == 1
    assert "TIME_TRAVEL" in said
    assert "point the brokers at the right database" in said
    assert sorted(path for path in (tmp_path / "one" / "objects").rglob("*") if path.is_file()) == before
