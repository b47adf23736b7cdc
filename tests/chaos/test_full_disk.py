"""A real broker whose disk fills up: what it acknowledged stays, clients hear that a retry helps, and it goes on when there is room."""

import asyncio
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.cluster import tail
from tests.chaos.scenario import Chaos, run
from tests.small_disk import small_disk

SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().getrandbits(32)
REFUSED = 30
"""Appends, before anything is done about it."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mib=3) as disk:
        yield disk


@pytest.mark.parametrize("full", ["objects", "metadata"])
async def test_a_full_disk_loses_nothing_and_is_a_pause(tmp_path: Path, disk: Path, full: str) -> None:
    """Also for a broker that is killed meanwhile, and begins on the full disk."""
    places = {name: (disk if name == full else tmp_path) / name for name in ("objects", "metadata")}

    async def fill(chaos: Chaos) -> None:
        loads = [asyncio.create_task(chaos.load(10 + number, size=4000 if full == "objects" else 10, per_second=50)) for number in range(3)]
        async with asyncio.timeout(120):
            await refused(chaos, REFUSED)
            assert shutil.disk_usage(disk).free < 64 * 1024, "that is why"
            [broker] = chaos.brokers
            broker.send(signal.SIGKILL)
            await broker.ended()
            await broker.start()
            await refused(chaos, REFUSED)
            subprocess.run(["mount", "-o", "remount,size=300m", str(disk)], check=True)
            acknowledged = chaos.report.sends["ok"]
            while chaos.report.sends["ok"] < acknowledged + REFUSED:
                await asyncio.sleep(0.05)
        chaos.stopping.set()
        await asyncio.gather(*loads)

    report, brokers = await run(
        tmp_path,
        fill,
        seed=SEED,
        brokers=1,
        bucket=f"file://{places['objects']}",
        metadata=f"sqlite://{places['metadata']}",
        append_timeout_ms=2000,
    )
    print(report)
    assert not report.anomalies, ({name: what[:3] for name, what in report.anomalies.items()}, *map(tail, brokers))


async def refused(chaos: Chaos, count: int) -> None:
    """Wait until so many more appends were not acknowledged."""
    [broker] = chaos.brokers
    before = chaos.report.sends.total() - chaos.report.sends["ok"]
    while chaos.report.sends.total() - chaos.report.sends["ok"] < before + count:
        assert broker.alive, tail(broker)
        await asyncio.sleep(0.05)
