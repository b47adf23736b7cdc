"""A cluster's day, with real brokers under continuous produce and consume: nothing is lost or doubled, and what is planned nobody notices.

`make operator-day ROUNDS=…` has many of them.
"""

import asyncio
import os
import random

import pytest

from tests.chaos.scenario import PARTITIONS, TOPIC
from tests.operator.day import Day, day, write
from tests.operator.rig import NAMESPACE, Rig

ROUNDS = int(os.environ.get("OPERATOR_ROUNDS", "1"))
SEED = int(os.environ.get("OPERATOR_SEED", "0")) or random.SystemRandom().getrandbits(32)
NOTICED_MOST_S = 10.0
"""How long an append may take while something planned is done. On cores that do nothing else it is one second; here others' tests run."""

pytestmark = [pytest.mark.timeout(300 + 120 * ROUNDS), pytest.mark.alone]


async def test_nothing_is_lost_by_whatever_befalls_a_cluster_and_nobody_notices_what_is_planned(it: Rig) -> None:
    await it.operator()
    await it.operator()
    it.create_cluster()
    it.create_topic(TOPIC, partitions=PARTITIONS)
    await it.until(lambda: it.settled(3), within_s=60)
    await it.until(lambda: it.topic_ready(TOPIC), within_s=20)
    async with day(it, SEED) as today:
        async with today.phase("nothing, to compare with"):
            await asyncio.sleep(3)
        for number in range(ROUNDS):
            await one_round(today, number)
    table = today.judge()
    print(f"\nseed {SEED}\n{table}")
    write("day", table)
    anomalies = {name: what[:3] for name, what in today.chaos.report.anomalies.items()}
    assert not anomalies, (anomalies, it.told())
    assert not it.kube.api.refused, "the operator asked for what it has no right to"
    for phase in today.phases:
        assert phase.appends > 20, table
        if phase.planned:
            assert not phase.errors, (table, today.chaos.report.sends)
            assert phase.longest_append_s < NOTICED_MOST_S, table


async def one_round(today: Day, number: int) -> None:
    it = today.it
    async with today.phase(f"{len(it.pods())} to 5 brokers"):
        it.change_cluster(replicas=5)
        await it.until(lambda: it.settled(5), within_s=60, what="5 brokers")
    async with today.phase("5 to 2 brokers"):
        it.change_cluster(replicas=2)
        await it.until(lambda: it.settled(2), within_s=90, what="2 brokers")
    async with today.phase("rolling update"):
        before = {pod["metadata"]["name"] for pod in it.pods()}
        it.change_cluster(config={"max_latency_ms": str(101 + number)})
        await it.until(
            lambda: it.settled(2) and not before & {pod["metadata"]["name"] for pod in it.pods()}, within_s=90, what="the update"
        )
    async with today.phase("eviction"):
        gone, other = (pod["metadata"]["name"] for pod in it.pods())
        assert await it.evict(gone)
        assert not await it.evict(other), "the disruption budget allows one at a time"
        await it.until(lambda: it.store.find("Pod", NAMESPACE, gone) is None and it.settled(2), within_s=60, what="the eviction")
    async with today.phase("loss of a node", planned=False):
        lost = it.pods()[0]
        it.kube.workloads.nodes.pop(lost["spec"]["nodeName"])
        it.kube.workloads.nodes[f"node-{number}"] = "zone-a"
        await it.kube.kubelet.lose(lost["spec"]["nodeName"])
        await it.until(
            lambda: it.store.find("Pod", NAMESPACE, lost["metadata"]["name"]) is None and it.settled(2), within_s=60, what="another broker"
        )
