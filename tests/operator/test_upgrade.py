"""A rolling upgrade under load between two releases that follow each other. `make operator-day` runs it."""

import asyncio
import os
from pathlib import Path

import aiohttp
import pytest

from tests.chaos.scenario import PARTITIONS, TOPIC
from tests.operator import releases
from tests.operator.day import day, write
from tests.operator.rig import Rig

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif("OPERATOR_ROUNDS" not in os.environ, reason="builds two releases: make operator-day runs it"),
]
BEFORE, AFTER = "0.1.0", "0.2.0"


async def test_a_rolling_upgrade_to_the_next_release_loses_nothing_and_nobody_notices(it: Rig, tmp_path: Path) -> None:
    for version, larger in ((BEFORE, False), (AFTER, True)):
        installed = await asyncio.to_thread(releases.build, tmp_path, version, larger_schema=larger)
        it.kube.kubelet.images[f"tidelog:{version}"] = releases.image(installed)

    async def running() -> set[str]:
        """Return the releases that brokers say they are."""
        found = set()
        async with aiohttp.ClientSession() as session:
            for pod in it.ready():
                async with session.get(f"http://{pod['status']['podIP']}:9596/metrics") as answer:
                    found |= {
                        line.partition('version="')[2].partition('"')[0]
                        for line in (await answer.text()).splitlines()
                        if "build_info{" in line
                    }
        return found

    await it.operator()
    it.create_cluster(replicas=3, image=f"tidelog:{BEFORE}")
    it.create_topic(TOPIC, partitions=PARTITIONS)
    await it.until(lambda: it.settled(3) and it.topic_ready(TOPIC), within_s=120)
    assert await running() == {BEFORE}
    async with day(it, 1) as today:
        async with today.phase("nothing, to compare with"):
            await asyncio.sleep(5)
        async with today.phase("rolling upgrade"):
            before = {pod["metadata"]["name"] for pod in it.pods()}
            it.change_cluster(image=f"tidelog:{AFTER}")
            await it.until(
                lambda: it.settled(3) and not before & {pod["metadata"]["name"] for pod in it.pods()}, within_s=180, what="the upgrade"
            )
        assert await running() == {AFTER}
        async with today.phase("going back is refused, and forward again"):
            it.change_cluster(image=f"tidelog:{BEFORE}")
            refusal = "it was written by a newer one; run that release, or a later one"
            await it.until(lambda: refusal in it.condition("Degraded")["message"], within_s=60, what="the older release's refusal")
            it.change_cluster(image=f"tidelog:{AFTER}")
            await it.until(lambda: it.settled(3), within_s=120, what="the later release again")
        assert await running() == {AFTER}
    table = today.judge()
    print("\n" + table)
    write("upgrade", table)
    assert not today.chaos.report.anomalies, (today.chaos.report.anomalies, it.told())
    assert [phase.errors for phase in today.phases] == [0, 0, 0]
