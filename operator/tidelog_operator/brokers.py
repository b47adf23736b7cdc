"""What brokers say: each of its load and its readiness, any of them of the membership and of topics."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from uuid import UUID

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from tidelog.client.admin import Admin, TopicDescription
from tidelog.client.connection import Brokers, Credentials
from tidelog.clock import Clock
from tidelog.errors import TidelogError, TopicExists, UnknownTopic
from tidelog.randomness import Random

from tidelog_operator.metrics import OperatorMetrics
from tidelog_operator.observed import Broker, Report
from tidelog_operator.resources import HEALTH_PORT, LOG_PORT
from tidelog_operator.topics import AlterTopic, CreatePartitions, CreateTopic, DeleteTopic, Kept, Seen, TopicSeen

_ASK_AGAIN_AFTER_S = 4.0
"""Load is a rate: what two questions find that are closer to each other says little."""
_ANSWER_WITHIN_S = 2.0
_CALL_WITHIN_S = 3.0
_FAILED = ("unavailable", "unknown", "unusable")


@dataclass(frozen=True, slots=True)
class Counts:
    """What a broker has counted since it began, and what it holds."""

    at_s: float
    cpu_s: float = 0.0
    produced_bytes: float = 0.0
    in_flight_share: float = 0.0
    store: tuple[int, int] = 0, 0
    """Calls of the object store that failed, and that did not."""
    metadata: tuple[int, int] = 0, 0


@dataclass(slots=True)
class _Known:
    """What is known of one broker's process."""

    counts: Counts | None = None
    report: Report | None = None
    asked_s: float = float("-inf")


@dataclass(slots=True)
class Asked:
    """One cluster's brokers, and what they said last."""

    known: dict[str, _Known] = field(default_factory=dict)
    """By pod and its address: a container that began anew counts from nothing."""
    brokers: Brokers | None = None
    reached_by: object = None
    """What `brokers` was made of."""
    answers: bool = True
    """Whether one of them answered last time: if not, only the cluster's own looks find out whether one does again."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def counts_of(text: str, at_s: float) -> Counts:
    """Return what a broker's /metrics says. Raises ValueError for what is not in Prometheus' format."""
    sums: dict[str, float] = {}
    outcomes = {"tidelog_store_calls_total": [0, 0], "tidelog_metadata_transactions_total": [0, 0]}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in outcomes:
                outcomes[sample.name][sample.labels["outcome"] not in _FAILED] += int(sample.value)
            elif sample.name != "tidelog_append_bytes_total" or sample.labels["result"] in ("accepted", "duplicate"):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    store, metadata = outcomes.values()
    return Counts(
        at_s=at_s,
        cpu_s=sums.get("tidelog_process_cpu_seconds_total", 0.0),
        produced_bytes=sums.get("tidelog_append_bytes_total", 0.0),
        in_flight_share=sums.get("tidelog_intake_bytes", 0.0) / (sums.get("tidelog_intake_budget_bytes", 0.0) or 1.0),
        store=(store[0], store[1]),
        metadata=(metadata[0], metadata[1]),
    )


def report_of(before: Counts, now: Counts, *, not_ready_why: str, at_s: float) -> Report:
    """Return what a broker did between two moments, as of `at_s` (Unix time). One that began anew meanwhile has done all it counted."""
    if now.cpu_s < before.cpu_s:
        before = Counts(at_s=before.at_s)
    seconds = max(now.at_s - before.at_s, 0.001)
    return Report(
        at_s=at_s,
        cpu_cores=(now.cpu_s - before.cpu_s) / seconds,
        produce_bytes_per_second=(now.produced_bytes - before.produced_bytes) / seconds,
        in_flight_share=now.in_flight_share,
        store_failures=now.store[0] - before.store[0],
        store_successes=now.store[1] - before.store[1],
        metadata_failures=now.metadata[0] - before.metadata[0],
        metadata_successes=now.metadata[1] - before.metadata[1],
        not_ready_why=not_ready_why,
    )


class BrokerQuestions:
    """Asks the brokers of all clusters. `async with` it."""

    def __init__(self, *, clock: Clock, chance: Random, metrics: OperatorMetrics) -> None:
        self._clock = clock
        self._chance = chance
        self._metrics = metrics
        self._http: aiohttp.ClientSession | None = None
        self._clusters: dict[tuple[str, str], Asked] = {}

    async def __aenter__(self) -> "BrokerQuestions":
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWER_WITHIN_S))
        return self

    async def __aexit__(self, *_: object) -> None:
        for asked in self._clusters.values():
            if asked.brokers is not None:
                await asked.brokers.close()
        self._clusters.clear()
        assert self._http is not None
        await self._http.close()

    async def forget(self, cluster: tuple[str, str]) -> None:
        """Keep nothing of a cluster that is gone."""
        asked = self._clusters.pop(cluster, None)
        if asked is not None and asked.brokers is not None:
            async with asked.lock:
                await asked.brokers.close()

    # ---- each of itself

    async def reports(self, cluster: tuple[str, str], addresses: Mapping[str, str]) -> dict[str, Report]:
        """Return the latest report of each pod; `addresses` are the pods' IP addresses, by name."""
        asked = self._clusters.setdefault(cluster, Asked())
        keys = {f"{name} {address}": name for name, address in addresses.items()}
        asked.known = {key: asked.known.get(key) or _Known() for key in keys}
        now = self._clock.monotonic()
        due = [key for key, known in asked.known.items() if now - known.asked_s >= _ASK_AGAIN_AFTER_S]
        await asyncio.gather(*(self._ask(asked.known[key], addresses[keys[key]]) for key in due))
        return {keys[key]: known.report for key, known in asked.known.items() if known.report is not None}

    async def _ask(self, known: _Known, address: str) -> None:
        known.asked_s = self._clock.monotonic()
        outcomes = self._metrics.broker_questions["metrics"]
        try:
            text, _ = await self._get(address, "/metrics")
            counts = counts_of(text, self._clock.monotonic())
            why, status = await self._get(address, "/readyz")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            outcomes["failed"].inc()  # its last report grows old, and says so by its time
            return
        outcomes["answered"].inc()
        before, known.counts = known.counts, counts
        if before is not None:
            known.report = report_of(
                before, counts, not_ready_why="" if status == 200 else why.strip()[:500], at_s=self._clock.wall_ms() / 1000
            )

    async def _get(self, address: str, path: str) -> tuple[str, int]:
        assert self._http is not None
        host = f"[{address}]" if ":" in address else address
        async with self._http.get(f"http://{host}:{HEALTH_PORT}{path}") as response:
            return await response.text(), response.status

    # ---- any of all

    async def members(self, cluster: tuple[str, str], addresses: Sequence[str], credentials: Credentials) -> dict[str, Broker] | None:
        """Return the membership by broker id; None: nobody could be asked."""
        outcomes = self._metrics.broker_questions["members"]
        asked = self._clusters.setdefault(cluster, Asked())
        try:
            async with self._admin(cluster, addresses, credentials) as admin:
                told = await admin.describe_cluster()
        except (TidelogError, TimeoutError):
            outcomes["failed"].inc()
            asked.answers = False
            return None
        outcomes["answered"].inc()
        asked.answers = True
        return {each.broker_id: Broker(draining=each.draining, led_partitions=each.led_partitions) for each in told.brokers}

    async def drain(
        self, cluster: tuple[str, str], addresses: Sequence[str], credentials: Credentials, broker_id: str, *, undo: bool
    ) -> None:
        """Have a broker drain, or not any more. Raises TidelogError, TimeoutError."""
        async with self._admin(cluster, addresses, credentials) as admin:
            await admin.drain(broker_id, undo=undo)

    async def topic(self, cluster: tuple[str, str], addresses: Sequence[str], credentials: Credentials, name: str) -> Seen:
        """Return what is known of a topic."""
        if not self._clusters.setdefault(cluster, Asked()).answers:
            return Seen(answered=False)
        try:
            async with self._admin(cluster, addresses, credentials) as admin:
                found = await admin.describe_topic(name)
        except UnknownTopic:
            return Seen()
        except (TidelogError, TimeoutError):
            return Seen(answered=False)
        return Seen(topic=_seen(found))

    async def change_topic(
        self,
        cluster: tuple[str, str],
        addresses: Sequence[str],
        credentials: Credentials,
        change: CreateTopic | CreatePartitions | AlterTopic | DeleteTopic,
    ) -> None:
        """Change a topic; what is done already is no error. Raises TidelogError, TimeoutError."""
        async with self._admin(cluster, addresses, credentials) as admin:
            match change:
                case CreateTopic(name=name, partitions=partitions, kept=kept):
                    with suppress(TopicExists):  # the next look finds whether it is as it should be
                        await admin.create_topic(
                            name, partitions=partitions, retention_ms=kept.retention_ms, retention_bytes=kept.retention_bytes,
                            compact=kept.compact,
                        )  # fmt: skip
                case CreatePartitions(name=name, partitions=partitions):
                    await admin.create_partitions(name, partitions=partitions)
                case AlterTopic(name=name, kept=kept):
                    await admin.alter_topic(
                        name, retention_ms=kept.retention_ms, retention_bytes=kept.retention_bytes, compact=kept.compact
                    )
                case DeleteTopic(name=name):
                    with suppress(UnknownTopic):
                        await admin.delete_topic(name)

    @asynccontextmanager
    async def _admin(self, cluster: tuple[str, str], addresses: Sequence[str], credentials: Credentials) -> AsyncIterator[Admin]:
        """Return the Admin calls of whichever broker answers, for a few seconds; connections are kept."""
        if not addresses:
            raise TimeoutError
        asked = self._clusters.setdefault(cluster, Asked())
        servers = [f"[{each}]:{LOG_PORT}" if ":" in each else f"{each}:{LOG_PORT}" for each in sorted(addresses)]
        reached_by = (tuple(servers), credentials)
        async with asyncio.timeout(2 * _CALL_WITHIN_S), asked.lock:  # one at a time: closing connections would cancel another's call
            if asked.brokers is None or asked.reached_by != reached_by:
                if asked.brokers is not None:
                    await asked.brokers.close()
                asked.reached_by = reached_by
                asked.brokers = Brokers(
                    servers, credentials=credentials, zone=None, call_timeout_s=_CALL_WITHIN_S, clock=self._clock, chance=self._chance
                )
            yield Admin(asked.brokers)


def _seen(found: TopicDescription) -> TopicSeen:
    kept = Kept(retention_ms=found.config.retention_ms, retention_bytes=found.config.retention_bytes, compact=bool(found.config.compact))
    return TopicSeen(topic_id=str(UUID(bytes=found.topic_id)), partitions=len(found.partitions), kept=kept)
