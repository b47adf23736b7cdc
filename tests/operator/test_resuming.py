"""Operators are killed at every step of a drain, before and after it is done; the next leader goes on, and clients notice nothing."""

import asyncio
import json
import re
from collections import Counter
from typing import Any

import pytest
from tidelog_operator.observed import STATE

from tests.chaos.scenario import PARTITIONS, TOPIC
from tests.operator.day import day
from tests.operator.rig import NAMESPACE, Rig

pytestmark = [pytest.mark.timeout(300), pytest.mark.alone]
LEASE_S = 1.0
"""So long does each next operator wait."""


def step(method: str, path: str, body: Any) -> str | None:
    """Return which step of a drain a request is, if it is one."""
    if method == "PATCH" and path.endswith("/deployments/logs") and "annotations" in body.get("metadata", {}):
        notes = body["metadata"]["annotations"].get(STATE)
        if notes is None:
            return None
        drain = json.loads(notes).get("drain")
        return f"note {drain['phase'] if drain else 'that it is over'}"
    if method == "GET" and path.endswith("/deployments/logs"):
        return "look whether the note stands still"
    if method == "PATCH" and re.search(r"/pods/[^/]+$", path):
        return "set the deletion cost"
    return None


class Killer:
    """Kills whoever leads, once before and once after each step."""

    def __init__(self, it: Rig) -> None:
        self.it = it
        self.struck: list[tuple[str, str]] = []
        self.seen: Counter[tuple[str, str]] = Counter()

    def __call__(self, when: str, method: str, path: str, body: Any) -> None:
        found = step(method, path, body)
        if found is None:
            return
        # The note is looked at before the broker is told, and before the cost is set.
        most = 2 if found.startswith("look") else 1
        self.seen[when, found] += 1
        if self.struck.count((when, found)) < most:
            self.struck.append((when, found))
            lease = self.it.store.find("Lease", NAMESPACE, "tidelog-operator")
            assert lease is not None
            leader = lease["spec"]["holderIdentity"]
            next(each for each in self.it.operators if each.identity == leader).kill()
            raise ConnectionError("the operator is gone")


async def test_whenever_an_operator_ends_the_next_one_finishes_its_drain(it: Rig) -> None:
    await it.operator(lease_s=LEASE_S)
    it.create_cluster(replicas=3, drain={"propagationSeconds": 1, "timeoutSeconds": 300})
    it.create_topic(TOPIC, partitions=PARTITIONS)
    await it.until(lambda: it.settled(3) and it.topic_ready(TOPIC), within_s=60)
    before = {pod["metadata"]["name"] for pod in it.pods()}
    killer = Killer(it)
    it.kube.api.hooks.append(killer)
    victims: set[str] = set()

    async def replace_operators() -> None:
        while True:
            await asyncio.wait([it.operators[-1].ended])
            await it.operator(lease_s=LEASE_S)

    async with day(it, 1) as today:
        replacing = asyncio.create_task(replace_operators())
        async with today.phase("a drain by many operators"):
            it.change_cluster(replicas=2)
            async with asyncio.timeout(120):
                while not it.settled(2):
                    changed = it.store.changed
                    deployment = it.store.find("Deployment", NAMESPACE, "logs")
                    assert deployment is not None
                    drain = json.loads((deployment["metadata"]["annotations"]).get(STATE, "{}")).get("drain")
                    victims |= {drain["pod"]} if drain else set()
                    await changed.wait()
        replacing.cancel()
    print("\n" + today.judge(), *killer.struck, sep="\n")
    left = {pod["metadata"]["name"] for pod in it.pods()}
    assert len(victims) == 1, "each leader went on with the same broker"
    assert before - left == victims
    steps = ["note asked", "note leaving", "set the deletion cost", "note removing", "note that it is over"]
    wanted = {(when, each) for when in ("before", "after") for each in (*steps, "look whether the note stands still")}
    assert set(killer.struck) == wanted
    assert not today.chaos.report.anomalies, (today.chaos.report.anomalies, it.told())
    assert today.phases[0].errors == 0
    assert not it.kube.api.refused
