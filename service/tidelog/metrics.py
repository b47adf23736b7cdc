"""Every metric of a broker, in one place: what it counts, in which unit, by which labels.

A `Metrics` belongs to one registry, so one process may hold many brokers. Label values are fixed and resolved here: the
hot path does `metrics.appends["accepted"].inc()`, which is a dictionary look-up and an addition, and a value that is not
in the list is a KeyError and never a new series. All series exist from the start, at zero.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, Protocol, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from tidelog.costs import Prices

M = TypeVar("M", bound=MetricWrapperBase)

AppendResult = Literal["accepted", "duplicate", "refused", "throttled", "not_ready", "timed_out", "unknown"]
"""`refused`: can never work as asked; `throttled` and `not_ready` (draining included): not done; `unknown`: see I5."""
AppendStage = Literal["wait", "upload", "order", "total"]
"""In the open segment; until the bytes are durable; until the leader's commit is known; from taking it to answering it."""
SealReason = Literal["size", "deadline", "idle", "drain"]
UploadOutcome = Literal["done", "given_up"]
AnswerKind = Literal["decided", "not_now"]
CommitOutcome = Literal["committed", "not_leader", "refused", "not_done", "unknown"]
"""Of one partition in a commit; `not_done` and `unknown`: the transaction's."""
MergeOutcome = Literal["merged", "refused", "corrupt", "missing", "failed"]
"""`refused`: the extents or their leader had changed; `corrupt` and `missing`: a source was, and is let alone; `failed`: tried again."""
CheckpointOutcome = Literal["written", "unchanged", "failed"]
RenewalOutcome = Literal["done", "failed", "fenced"]
PassOutcome = Literal["done", "failed"]
RoundOutcome = Literal["cleaned", "nothing", "failed", "time_travel"]
"""`nothing`: there was nothing to delete; `time_travel`: the metadata store is older than the bucket, so nothing was deleted."""
DeletionReason = Literal["released", "orphan"]
ScrubFinding = Literal["sound", "damaged", "missing", "moved", "unread"]
"""`damaged`, `missing`: records are unreadable, see the log; `moved`: merged or expired meanwhile; `unread`: the store did not answer."""
StoreOperation = Literal["put", "get", "head", "list", "delete"]
StoreOutcome = Literal["done", "not_found", "exists", "unavailable", "unknown", "unusable"]
ByteDirection = Literal["in", "out"]
ZoneRelation = Literal["same", "other", "unknown"]
"""`unknown`: the client, or this broker, does not say where it is."""
TransactionOutcome = Literal["done", "refused", "unavailable", "unknown", "unusable"]
"""`refused`: the verb said no (fenced, no such topic, …)."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BYTES = (4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 8388608.0, 16777216.0, 67108864.0, 268435456.0)
_PARTITIONS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)


class RequestCounts(Protocol):
    """What an object store knows of the requests that it really sent, retries and hedges included."""

    @property
    def requests(self) -> Mapping[str, int]:
        """How many were sent, by operation (`StoreOperation`)."""
        ...

    @property
    def hedges(self) -> int:
        """How many were sent a second time because the first was slow."""
        ...

    @property
    def retries(self) -> int:
        """How many were sent again because the one before came to nothing."""
        ...


@dataclass(frozen=True, slots=True)
class ReaderLag:
    """How far one reader of one partition is behind."""

    topic: str
    records: int
    seconds: float
    """For how long it has not been at the end; 0 where it is."""


@dataclass(frozen=True, slots=True)
class MetricDescription:
    """What `docs/metrics.md` says of a metric."""

    name: str
    """As a scrape shows it."""
    kind: str
    sentence: str
    labels: Mapping[str, tuple[str, ...]]
    """Names and their values; no values where they are not known before."""


class Metrics:
    """The metrics of one broker, as attributes."""

    def __init__(self, registry: CollectorRegistry | None = None, *, prices: Prices | None = None, most_topics: int = 100) -> None:
        """Register everything with `registry`; None makes one."""
        self._most_topics = most_topics
        self._topics: dict[str, Counter] = {}
        self.registry = registry or CollectorRegistry()
        self.described: list[MetricDescription] = []
        self._stores: list[RequestCounts] = []

        # ---- produce
        results = get_args(AppendResult)
        self.appends = self._counters("appends", "Appends answered, those refused at once included.", "result", results)
        self.append_records = self._counters(
            "append_records", "Records of the appends answered; not of those refused at once.", "result", results
        )
        self.append_bytes = self._counters("append_bytes", "Bytes of the appends answered, as they travelled.", "result", results)
        self.append_seconds = self._histograms(
            "append_seconds",
            "How long appends spent in each stage: waiting for company, upload, order, and all.",
            "stage",
            get_args(AppendStage),
        )
        self.intake_bytes = self._gauge("intake_bytes", "Bytes of appends held now, every copy counted.")
        self.intake_budget_bytes = self._gauge("intake_budget_bytes", "Bytes of appends that may be held; beyond it they are pushed back.")
        self.segments_sealed = self._counters("segments_sealed", "Segments sealed, by what sealed them.", "reason", get_args(SealReason))
        self.segment_bytes = self._histogram("segment_bytes", "Sizes of sealed intake segments.", _BYTES)
        self.segment_partitions = self._histogram("segment_partitions", "Partitions that a sealed intake segment holds.", _PARTITIONS)
        self.uploads_in_flight = self._gauge("uploads_in_flight", "Segments being uploaded now.")
        self.upload_seconds = self._histogram("upload_seconds", "How long uploads took, retries and hedges included.", _SECONDS)
        self.uploads = self._counters("uploads", "Segments whose upload ended.", "outcome", get_args(UploadOutcome))
        self.open_sequences = self._gauge("open_sequences", "Segments whose appends are not all answered.")

        # ---- order
        self.references_sent = self._counter("references_sent", "References sent to leaders, repeated ones included.")
        self.references_repeated = self._counter("references_repeated", "References sent again: another leader, a broken link.")
        self.references_answered = self._counters(
            "references_answered", "Answers of leaders: decided for good, or not now.", "answer", get_args(AnswerKind)
        )
        self.ledger_pending = self._gauge("ledger_pending_references", "References that wait here for a commit.")
        self.commit_seconds = self._histogram("commit_seconds", "How long commits took, from beginning to durable.", _SECONDS)
        self.commit_partitions = self._histogram("commit_partitions", "Partitions in one commit.", _PARTITIONS)
        self.commits = self._counters(
            "commit_outcomes", "Partitions in commits, by what became of them.", "outcome", get_args(CommitOutcome)
        )

        # ---- consume
        self.described += [description for description, _ in _READING]
        self._reading: list[Callable[[], Mapping[str, float]]] = []
        self.registry.register(_Reading(self._reading))
        self.subscriptions = self._gauge("consume_subscriptions", "Partitions followed by open Consume streams.")
        self.credit_bytes = self._gauge("consume_credit_bytes", "Credit that open Consume streams hold and have not used.")
        self.unsent_bytes = self._gauge("consume_unsent_bytes", "Bytes that were read for open Consume streams and are not sent yet.")
        self._lags: list[Callable[[], Iterable[ReaderLag]]] = []
        self.described += _LAGS
        self.registry.register(_Lags(self._lags, self._topic_label))

        # ---- merging
        self.merges = self._counters("merges", "Merges that ended, by what became of them.", "outcome", get_args(MergeOutcome))
        self.merged_extents = self._counter("merged_extents", "Extents that gave way to merged ones.")
        self.merged_bytes = self._counter("merged_bytes", "Bytes of the merged segments that took their place.")
        self.merge_read_bytes = self._counter("merge_read_bytes", "Bytes that merging read.")
        self.merge_seconds = self._histogram("merge_seconds", "How long merges took, from the first read to the swap.", _SECONDS)
        self.merges_waiting = self._gauge("merges_waiting", "Merges that are planned and have not begun.")
        self.merge_quarantined = self._gauge("merge_quarantined_extents", "Extents that could not be read, and are let alone for a while.")

        # ---- membership and leadership
        self.ready = self._gauge("ready", "1 while this broker takes appends, as /readyz says.")
        self.broker_epoch = self._gauge("broker_epoch", "This broker's epoch; 0 while it has none.")
        self.lease_remaining_seconds = self._gauge(
            "lease_remaining_seconds", "Until this broker stops to lead, were its lease not renewed."
        )
        self.lease_renewals = self._counters("lease_renewals", "Renewals of the lease.", "outcome", get_args(RenewalOutcome))
        self.members = self._gauge("members", "Brokers in the membership that this one knows.")
        self.led_partitions = self._gauge("led_partitions", "Partitions that this broker leads.")
        self.take_overs = self._counter("take_overs", "Partitions that this broker took over.")
        self.transfers = self._counter("transfers", "Partitions that this broker handed to another.")
        self.fenced = self._counter("fenced", "Times that this broker found its epoch, or a partition's leader epoch, passed.")

        # ---- scrub
        self.scrubbed = self._counters(
            "scrub_extents", "Extents whose stored bytes were looked at, by what was found.", "found", get_args(ScrubFinding)
        )
        self.scrub_bytes = self._counter("scrub_bytes", "Bytes that a scrub read from the bucket.")
        self.scrub_looks_again = self._counter("scrub_looks_again", "Looks taken again because the one before found something.")
        self.scrub_passes = self._counter("scrub_passes", "Times that all partitions led here have been gone through.")

        # ---- checkpoints
        self.checkpoints = self._counters(
            "checkpoints", "Checkpoints of the metadata, by what became of them.", "outcome", get_args(CheckpointOutcome)
        )
        self.checkpoint_seconds = self._histogram("checkpoint_seconds", "How long checkpoints took.", _SECONDS)
        self.checkpoint_bytes = self._counter("checkpoint_bytes", "Bytes of checkpoints written.")
        self.checkpoint_time = self._gauge(
            "checkpoint_time_seconds", "Unix time at which this broker last had a checkpoint of everything in the bucket; 0: never."
        )

        # ---- retention and cleaning
        self.retention_passes = self._counters(
            "retention_passes", "Looks of a leader at what is not kept any more.", "outcome", get_args(PassOutcome)
        )
        self.log_starts_moved = self._counter("log_starts_moved", "Log starts that moved, or that a leader found moved.")
        self.extents_released = self._counter("extents_released", "Extents released because they lie below the log start.")
        self.retention_poisoned = self._counter("retention_poisoned", "Partitions whose extents cannot be released; the log says which.")
        self.topics_dropped = self._counter("topics_dropped", "Deleted topics whose last rows this broker took away.")
        self.cleaner_lease = self._gauge("cleaner_lease", "1 while this broker is the cleaner.")
        self.cleaner_rounds = self._counters("cleaner_rounds", "Rounds of the cleaner.", "outcome", get_args(RoundOutcome))
        self.released_segments = self._gauge("released_segments", "Segments that wait for the cleaner, as it last saw.")
        self.released_oldest_seconds = self._gauge("released_oldest_seconds", "How long the one that waits longest has waited.")
        self.objects_deleted = self._counters("objects_deleted", "Objects deleted, by why.", "reason", get_args(DeletionReason))
        self.deleted_bytes = self._counters(
            "deleted_bytes", "Bytes deleted: of orphans the objects', of others their extents'.", "reason", get_args(DeletionReason)
        )
        self.deletions_refused = self._counter("deletions_refused", "Deletions that the object store refused.")
        self.cleaner_quarantined = self._gauge("cleaner_quarantined", "Objects that failed again and again, and are tried rarely.")
        self.orphan_scans = self._counter("orphan_scans", "Looks for orphans that came to their end.")
        self.objects_listed = self._counter("objects_listed", "Objects listed in looking for orphans.")

        # ---- metadata store: verbs are known when they are first used
        self._transactions = self._declare(
            Counter, "metadata_transactions", "Transactions, by verb and outcome.", {"verb": (), "outcome": get_args(TransactionOutcome)}
        )
        self._transaction_seconds = self._declare(
            Histogram, "metadata_transaction_seconds", "How long transactions took, queueing included.", {"verb": ()}, _SECONDS
        )
        self._verbs: dict[str, tuple[dict[str, Counter], Histogram]] = {}

        # ---- object store
        operations = get_args(StoreOperation)
        calls = self._declare(
            Counter,
            "store_calls",
            "Calls of the object store, by operation and outcome; one call may take several requests.",
            {"operation": operations, "outcome": get_args(StoreOutcome)},
        )
        self.store_calls = {
            operation: {outcome: calls.labels(operation, outcome) for outcome in get_args(StoreOutcome)} for operation in operations
        }
        self.store_seconds = self._histograms(
            "store_call_seconds", "How long calls took, retries included.", "operation", tuple(o for o in operations if o != "list")
        )
        self.store_bytes = self._counters("store_bytes", "Bytes written and read.", "operation", ("put", "get"))
        self.described += _request_descriptions()
        self.registry.register(_Requests(self._stores))
        self.described += [_DOLLARS, _PRICES]
        self.registry.register(_Dollars(prices or Prices(), self._stores, self.store_calls))

        # ---- cost
        self._topic_bytes = self._declare(
            Counter, "topic_taken_bytes", "Bytes taken in by topic; those beyond `metrics_most_topics` under no name.", {"topic": ()}
        )
        self._topic_bytes.labels("")
        self.stored_bytes = self._gauge(
            "stored_bytes", "Bytes that extents refer to, as this broker has last added them up; 0 where another one does."
        )

        # ---- calls: methods are known when they are first called; those that do not exist are not counted
        self.grpc_calls = self._declare(Counter, "grpc_calls", "Calls that have ended, by gRPC status.", {"method": (), "code": ()})
        self.grpc_call_seconds = self._declare(Histogram, "grpc_call_seconds", "How long unary calls took.", {"method": ()}, _SECONDS)
        self.grpc_open_calls = self._declare(Gauge, "grpc_open_calls", "Calls that are being answered now.", {"method": ()})

        client_bytes = self._declare(
            Counter,
            "client_bytes",
            "Bytes of records from clients and to them, by whether they are in this broker's zone: what crosses zones is paid for.",
            {"direction": get_args(ByteDirection), "zone": get_args(ZoneRelation)},
        )
        self.client_bytes: dict[ByteDirection, dict[ZoneRelation, Counter]] = {
            direction: {relation: client_bytes.labels(direction, relation) for relation in get_args(ZoneRelation)}
            for direction in get_args(ByteDirection)
        }

        # ---- process
        self.event_loop_lag_seconds = self._histogram("event_loop_lag_seconds", "How late the event loop woke a timer.", _SECONDS)
        build = self._declare(Gauge, "build_info", "Always 1; the labels say what runs.", {"version": (), "python": ()})
        build.labels(version("tidelog"), platform.python_version()).set(1)
        ProcessCollector(registry=self.registry, namespace="tidelog")

    def count_requests_of(self, store: RequestCounts) -> None:
        """Show the requests that a store really sends."""
        self._stores.append(store)

    def count_reading_of(self, counts: Callable[[], Mapping[str, float]]) -> None:
        """Show what a reader counts itself, by the names of `_READING`."""
        self._reading.append(counts)

    def show_lags_of(self, lags: Callable[[], Iterable[ReaderLag]]) -> None:
        """Show how far readers are behind."""
        self._lags.append(lags)

    def topic_taken(self, topic: str, count: int) -> None:
        """Count bytes taken in for a topic."""
        counter = self._topics.get(topic)
        if counter is None:
            counter = self._topic_bytes.labels(self._topic_label(topic))
        counter.inc(count)

    def _topic_label(self, topic: str) -> str:
        """Return the name by which a topic is shown: its own, or none where others came first."""
        if topic in self._topics:
            return topic
        if len(self._topics) >= self._most_topics:
            return ""
        self._topics[topic] = self._topic_bytes.labels(topic)
        return topic

    def transaction(self, verb: str) -> tuple[Mapping[str, Counter], Histogram]:
        """Return the counters of a metadata verb by outcome, and the histogram of its seconds."""
        found = self._verbs.get(verb)
        if found is None:
            counters = {outcome: self._transactions.labels(verb, outcome) for outcome in get_args(TransactionOutcome)}
            found = self._verbs[verb] = counters, self._transaction_seconds.labels(verb)
        return found

    def _counter(self, name: str, sentence: str) -> Counter:
        return self._declare(Counter, name, sentence, {})

    def _gauge(self, name: str, sentence: str) -> Gauge:
        return self._declare(Gauge, name, sentence, {})

    def _histogram(self, name: str, sentence: str, buckets: Sequence[float]) -> Histogram:
        return self._declare(Histogram, name, sentence, {}, buckets)

    def _counters(self, name: str, sentence: str, label: str, values: tuple[str, ...]) -> dict[str, Counter]:
        family = self._declare(Counter, name, sentence, {label: values})
        return {value: family.labels(value) for value in values}

    def _histograms(self, name: str, sentence: str, label: str, values: tuple[str, ...]) -> dict[str, Histogram]:
        family = self._declare(Histogram, name, sentence, {label: values}, _SECONDS)
        return {value: family.labels(value) for value in values}

    def _declare(
        self, kind: type[M], name: str, sentence: str, labels: Mapping[str, tuple[str, ...]], buckets: Sequence[float] | None = None
    ) -> M:
        more: dict[str, Any] = {} if buckets is None else {"buckets": buckets}
        full = f"tidelog_{name}_total" if kind is Counter else f"tidelog_{name}"
        self.described.append(MetricDescription(full, kind.__name__.lower(), sentence, labels))
        return kind(full, sentence, tuple(labels), registry=self.registry, **more)


_READING: tuple[tuple[MetricDescription, tuple[str, ...]], ...] = (
    (
        MetricDescription(
            "tidelog_reads_total", "counter", "Reads of a partition, by where its batches were.", {"source": ("memory", "bucket")}
        ),
        ("memory_hits", "memory_misses"),
    ),
    (
        MetricDescription(
            "tidelog_consume_bytes_total", "counter", "Bytes given to readers, by where they were.", {"source": ("memory", "bucket")}
        ),
        ("memory_bytes", "bucket_bytes"),
    ),
    (
        MetricDescription(
            "tidelog_bucket_read_seconds_total",
            "counter",
            "How long reads of batches from the bucket took together, queueing included.",
            {},
        ),
        ("bucket_seconds",),
    ),
    (
        MetricDescription("tidelog_bucket_reads_in_flight", "gauge", "Ranged GETs going on now.", {"of": ("past", "tail")}),
        ("cold_reads", "tail_reads"),
    ),
    (
        MetricDescription(
            "tidelog_block_lookups_total", "counter", "Looks for a block of a segment in memory.", {"result": ("hit", "miss")}
        ),
        ("block_hits", "block_misses"),
    ),
    (MetricDescription("tidelog_blocks_ahead_total", "counter", "Blocks fetched before they were asked for.", {}), ("blocks_ahead",)),
    (MetricDescription("tidelog_fetched_bytes_total", "counter", "Bytes of blocks fetched from the bucket.", {}), ("bytes_fetched",)),
    (
        MetricDescription("tidelog_cache_bytes", "gauge", "Memory held for readers now.", {"cache": ("records", "blocks")}),
        ("record_cache_bytes", "block_cache_bytes"),
    ),
    (MetricDescription("tidelog_extent_lookups_total", "counter", "Statements that asked SQL where offsets are.", {}), ("look_ups",)),
    (
        MetricDescription("tidelog_follower_polls_total", "counter", "Polls in the place of a leader's feed, failed ones included.", {}),
        ("polls",),
    ),
    (MetricDescription("tidelog_failed_polls_total", "counter", "Those that failed.", {}), ("failed_polls",)),
    (
        MetricDescription("tidelog_feeds_total", "counter", "Feeds from leaders on other brokers.", {"event": ("opened", "broken")}),
        ("feeds_opened", "feeds_broken"),
    ),
    (
        MetricDescription("tidelog_news_gaps_total", "counter", "Times that a feed's news did not follow on what was known.", {}),
        ("news_gaps",),
    ),
    (
        MetricDescription(
            "tidelog_missing_objects_total", "counter", "Objects that were gone when they were read: merged or expired meanwhile.", {}
        ),
        ("missing_objects",),
    ),
    (MetricDescription("tidelog_corrupt_reads_total", "counter", "Reads from the bucket whose bytes were wrong.", {}), ("corrupt_reads",)),
)
"""What a reader counts, each with the names of its counts, one for each value of its label."""


class _Reading(Collector):
    """Shows what readers count themselves."""

    def __init__(self, readers: Iterable[Callable[[], Mapping[str, float]]]) -> None:
        self._readers = readers

    def collect(self) -> Iterator[Metric]:
        counts = [reader() for reader in self._readers]
        for description, names in _READING:
            kind = CounterMetricFamily if description.kind == "counter" else GaugeMetricFamily
            family = kind(description.name, description.sentence, labels=tuple(description.labels))
            values = next(iter(description.labels.values()), ())
            for place, name in enumerate(names):
                family.add_metric(values[place : place + 1], sum(each[name] for each in counts))
            yield family


_LAGS = (
    MetricDescription(
        "tidelog_consume_lag_records",
        "gauge",
        "Of the partition that is furthest behind: offsets that are committed and were not passed on yet to an open Consume stream.",
        {"topic": ()},
    ),
    MetricDescription(
        "tidelog_consume_lag_seconds",
        "gauge",
        "How long the open Consume stream that is behind longest has not been at the end of a partition; one that begins in the past counts"
        " from its beginning.",
        {"topic": ()},
    ),
)


class _Lags(Collector):
    """Shows how far readers are behind, by topic; 0 where nobody reads."""

    def __init__(self, lags: Iterable[Callable[[], Iterable[ReaderLag]]], label: Callable[[str], str]) -> None:
        self._lags = lags
        self._label = label

    def collect(self) -> Iterator[Metric]:
        worst: dict[str, tuple[int, float]] = {"": (0, 0.0)}
        for lag in (lag for source in self._lags for lag in source()):
            topic = self._label(lag.topic)
            records, seconds = worst.get(topic, (0, 0.0))
            worst[topic] = max(records, lag.records), max(seconds, lag.seconds)
        for place, description in enumerate(_LAGS):
            family = GaugeMetricFamily(description.name, description.sentence, labels=tuple(description.labels))
            for topic, found in worst.items():
                family.add_metric([topic], found[place])
            yield family


class _Requests(Collector):
    """Shows what the stores count themselves."""

    def __init__(self, stores: Iterable[RequestCounts]) -> None:
        self._stores = stores

    def collect(self) -> Iterator[Metric]:
        requests, hedges, retries = (_family(description) for description in _request_descriptions())
        for operation in get_args(StoreOperation):
            requests.add_metric([operation], sum(store.requests.get(operation, 0) for store in self._stores))
        hedges.add_metric([], sum(store.hedges for store in self._stores))
        retries.add_metric([], sum(store.retries for store in self._stores))
        yield from (requests, hedges, retries)


class _Dollars(Collector):
    """Shows what requests have cost: those that S3 has really got, else as many as there were calls."""

    def __init__(
        self, prices: Prices, stores: Sequence[RequestCounts], calls: Mapping[StoreOperation, Mapping[StoreOutcome, Counter]]
    ) -> None:
        self._prices = prices
        self._stores = stores
        self._calls = calls

    def collect(self) -> Iterator[Metric]:
        dollars = CounterMetricFamily(_DOLLARS.name, _DOLLARS.sentence, labels=("operation",))
        prices = GaugeMetricFamily(_PRICES.name, _PRICES.sentence, labels=("of",))
        for operation in get_args(StoreOperation):
            price = self._prices.of_request(operation)
            sent: float = sum(store.requests.get(operation, 0) for store in self._stores)
            if not self._stores:
                sent = sum((sample.value for counter in self._calls[operation].values() for sample in _totals(counter)), 0.0)
            dollars.add_metric([operation], sent * price)
            prices.add_metric([operation], price)
        prices.add_metric(["gib_month"], self._prices.storage_dollars_per_gib_month)
        prices.add_metric(["gb_between_zones"], self._prices.transfer_dollars_per_gb)
        yield from (dollars, prices)


def _totals(counter: Counter) -> Iterator[Sample]:
    for family in counter.collect():
        yield from (sample for sample in family.samples if sample.name.endswith("_total"))


_DOLLARS = MetricDescription(
    "tidelog_store_dollars_total",
    "counter",
    "What the requests of the object store have cost, at the prices of the settings.",
    {"operation": get_args(StoreOperation)},
)
_PRICES = MetricDescription(
    "tidelog_price_dollars",
    "gauge",
    "Prices: of one request, of a GiB for a month, and of a GB between zones, at each end.",
    {"of": (*get_args(StoreOperation), "gib_month", "gb_between_zones")},
)


def _request_descriptions() -> tuple[MetricDescription, MetricDescription, MetricDescription]:
    return (
        MetricDescription(
            "tidelog_store_requests_total",
            "counter",
            "Requests sent to S3, retries and hedges included: what is paid for.",
            {"operation": get_args(StoreOperation)},
        ),
        MetricDescription("tidelog_store_hedges_total", "counter", "Requests to S3 sent a second time because the first was slow.", {}),
        MetricDescription("tidelog_store_retries_total", "counter", "Requests to S3 sent again because the one before failed.", {}),
    )


def _family(description: MetricDescription) -> CounterMetricFamily:
    return CounterMetricFamily(description.name, description.sentence, labels=tuple(description.labels))
