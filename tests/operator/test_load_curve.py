"""Real brokers follow a load curve: quiet, ramp, peak, quiet. `make operator-load` runs it and writes the table in docs/kubernetes.md.

As in life, but a hundred times smaller and quicker: what takes half an hour there takes twenty seconds here.
"""

import asyncio
import itertools
import time
from dataclasses import dataclass

import pytest
import tidelog

from tests.chaos.scenario import PARTITIONS, TOPIC
from tests.operator.day import WRITES, Day, day, write
from tests.operator.rig import NAMESPACE, Rig

KIB = 1024
EACH = 128 * KIB
"""Bytes a second that are for each broker."""
VALUE_BYTES = 8 * KIB
QUIET_S, RAMP_S, PEAK_S = 20, 40, 40
LEAST, MOST = 100 * KIB, 600 * KIB

pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(not WRITES, reason="takes minutes: make operator-load runs it")]


@dataclass(frozen=True, slots=True)
class Moment:
    at_s: float
    offered: float
    wanted: int
    ready: int
    why: str
    doing: str
    """What goes on, or is waited for."""


def offered(at_s: float) -> float:
    """Return the load at a time, in bytes a second."""
    if at_s < QUIET_S:
        return LEAST
    if at_s < QUIET_S + RAMP_S:
        return LEAST + (MOST - LEAST) * (at_s - QUIET_S) / RAMP_S
    return MOST if at_s < QUIET_S + RAMP_S + PEAK_S else LEAST


async def test_brokers_follow_a_load_curve_once_up_and_once_down(it: Rig) -> None:
    await it.operator(resync_s=2.0)
    rules = {
        "enabled": True, "minReplicas": 2, "maxReplicas": 8, "targets": {"produceBytesPerBroker": EACH},
        "scaleUp": {"stabilizationSeconds": 4, "pods": 2, "periodSeconds": 5},
        "scaleDown": {"stabilizationSeconds": 20, "periodSeconds": 10},
    }  # fmt: skip
    it.create_cluster(replicas=2, autoscaling=rules)
    it.create_topic(TOPIC, partitions=PARTITIONS)
    await it.until(lambda: it.settled(2) and it.topic_ready(TOPIC), within_s=60)
    moments: list[Moment] = []

    def doing() -> str:
        progress, active = it.condition("Progressing"), it.condition("ScalingActive")
        return active["message"] if active["status"] != "True" else "" if progress["reason"] == "Complete" else progress["message"]

    async with day(it, 1, producers=0) as today:
        began = time.monotonic()
        over = asyncio.Event()
        loading = asyncio.create_task(load(today, began, over))
        async with today.phase("the whole curve"):
            while not (moments and moments[-1].wanted == 2 and moments[-1].at_s > QUIET_S + RAMP_S + PEAK_S + 30 and it.settled(2)):
                at_s = time.monotonic() - began
                assert at_s < 400, it.told()
                status = it.cluster()["status"]
                deployment = it.store.find("Deployment", NAMESPACE, "logs")
                assert deployment is not None
                wanted = deployment["spec"]["replicas"]
                moments.append(Moment(at_s, offered(at_s), wanted, status["readyReplicas"], status["lastScaleReason"], doing()))
                await asyncio.sleep(1)
        over.set()
        await loading
    noticed = today.judge()
    table = as_table(moments)
    print(f"\n{table}\n\n{noticed}")
    print(*(f"{moment.at_s:.0f} {moment.wanted} {moment.ready} {moment.doing}" for moment in moments), sep="\n")
    numbers = [number for number, _ in itertools.groupby(moment.wanted for moment in moments)]
    peak = numbers.index(max(numbers))
    assert numbers[: peak + 1] == sorted(numbers[: peak + 1]), "once up"
    assert numbers[peak:] == list(range(max(numbers), 1, -1)), "once down, one by one"
    assert max(numbers) == 5, "600 KiB/s at 128 each"
    down = next(moment for moment in moments if moment.at_s > QUIET_S + RAMP_S and moment.wanted < 5)
    assert down.at_s >= QUIET_S + RAMP_S + PEAK_S + 20
    assert not today.chaos.report.anomalies
    assert today.phases[0].errors == 0
    write("load", table)


async def load(today: Day, began: float, over: asyncio.Event) -> None:
    """Append at the curve's rate."""
    chaos, number = today.chaos, 0
    settled: set[asyncio.Task[bool]] = set()
    async with tidelog.connect(chaos.address()) as log, log.producer(linger_ms=5, delivery_timeout_ms=20_000) as producer:
        due = time.monotonic()
        while not over.is_set():
            send = chaos.begin((0, 0), number, number % PARTITIONS)
            number += 1
            value = (b"%d" % send.value).ljust(VALUE_BYTES)
            future = producer.send_nowait(TOPIC, value, partition=send.partition)
            settled = {task for task in settled if not task.done()} | {asyncio.create_task(chaos.settle(send, future))}
            due = max(due + VALUE_BYTES / offered(due - began), time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*settled)


def as_table(moments: list[Moment]) -> str:
    rows = ["| s | KiB/s | brokers wanted | ready | which should take, KiB/s | last change |", "|---|---|---|---|---|---|"]
    last: Moment | None = None
    for moment in moments:
        if last is None or moment.wanted != last.wanted or moment.at_s - last.at_s >= 30:
            counts = f"{moment.at_s:.0f} | {moment.offered / KIB:.0f} | {moment.wanted} | {moment.ready} | {moment.wanted * EACH // KIB}"
            rows.append(f"| {counts} | {moment.why} |")
            last = moment
    return "\n".join(rows)
