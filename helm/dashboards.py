"""Makes the chart's dashboards for Grafana: `make chart`. What a panel asks stands here; the rest of their JSON is the same everywhere."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

OF = 'cluster=~"$cluster",broker=~"$broker"'
"""The series of the brokers that are chosen."""
RANGE = "$__rate_interval"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: what is asked, each query with its legend, and how it is shown."""

    title: str
    text: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    steps: Sequence[tuple[str, float | None]] = (("green", None),)
    """Colours, each from a value on."""
    said: dict[str, str] = field(default_factory=dict)
    """Words in the place of values."""
    counts: Sequence[str] = ()
    """Legends that are plain numbers beside values that have a unit and colours."""


@dataclass(frozen=True, slots=True)
class Row:
    """A heading, and panels below it."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard. Its uid never changes: links and bookmarks name it."""

    uid: str
    title: str
    rows: Sequence[Row]
    variables: Sequence[tuple[str, str, str]]
    """Name, label, and the query of its values."""


def rate(metric: str, *, by: str = "", of: str = OF, more: str = "") -> str:
    """Return the query of what a counter gains per second."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{_and(of, more)}}}[{RANGE}]))"


def quantile(share: float, metric: str, *, by: str = "", of: str = OF, more: str = "") -> str:
    """Return the query of a quantile; 0 where nothing was observed, for an idle cluster is no missing one."""
    buckets = rate(f"{metric}_bucket", by=f"le, {by}" if by else "le", of=of, more=more)
    return f"histogram_quantile({share}, {buckets}) >= 0 or {rate(f'{metric}_count', by=by, of=of, more=more)} * 0"


def mean(metric: str, *, by: str = "", more: str = "") -> str:
    """Return the query of an average; 0 where nothing was observed."""
    count = rate(f"{metric}_count", by=by, more=more)
    return f"{rate(f'{metric}_sum', by=by, more=more)} / ({count} > 0) or {count} * 0"


def share(part: str, whole: str) -> str:
    """Return the query of a part of a whole; 0 where there is nothing of it."""
    return f"{part} / ({whole} > 0) or {whole} * 0"


def gauge(metric: str, *, how: str = "sum", by: str = "", of: str = OF, more: str = "") -> str:
    """Return the query of a gauge over brokers."""
    grouped = f" by ({by})" if by else ""
    return f"{how}{grouped} ({metric}{{{_and(of, more)}}})"


def _and(*selectors: str) -> str:
    return ",".join(each for each in selectors if each)


def _quantiles(metric: str, *, by: str = "", legend: str = "") -> list[tuple[str, str]]:
    return [(quantile(q, metric, by=by), f"{legend} {name}".strip()) for q, name in ((0.5, "p50"), (0.99, "p99"))]


BROKERS = (
    ("cluster", "Cluster", "label_values(tidelog_build_info, cluster)"),
    ("broker", "Broker", 'label_values(tidelog_build_info{cluster=~"$cluster"}, broker)'),
)
TOPICS = (*BROKERS, ("topic", "Topic", 'label_values(tidelog_topic_taken_bytes_total{cluster=~"$cluster"}, topic)'))
BAD = 'found=~"damaged|missing"'
FAILED = 'outcome=~"unavailable|unknown|unusable"'
TAKEN = 'result="accepted"'
_PRICE = {of: gauge("tidelog_price_dollars", how="max", more=f'of="{of}"') for of in ("gib_month", "gb_between_zones")}
_CROSSING = rate("tidelog_client_bytes_total", more='zone="other"')
DOLLARS_AN_HOUR = " + ".join(
    (
        f"{rate('tidelog_store_dollars_total')} * 3600",
        f"{gauge('tidelog_stored_bytes', how='max')} / 2 ^ 30 * {_PRICE['gib_month']} / 730",
        f"{_CROSSING} * 3600 / 1e9 * 2 * {_PRICE['gb_between_zones']}",  # each end is charged
    )
)
FAULTS = " + ".join(
    f"sum (increase({metric}{{{_and(OF, more)}}}[1h]))"
    for metric, more in (
        ("tidelog_uploads_total", 'outcome="given_up"'),
        ("tidelog_scrub_extents_total", BAD),
        ("tidelog_corrupt_reads_total", ""),
    )
)
_CHECKPOINT = f"max (tidelog_checkpoint_time_seconds{{{OF}}})"
CHECKPOINT_AGE = f"(time() - ({_CHECKPOINT} > 0)) or {_CHECKPOINT}"

OVERVIEW = Dashboard(
    "tidelog-overview",
    "Tidelog / Overview",
    (
        Row(
            "At a glance",
            (
                Panel(
                    "Up?",
                    "Share of the brokers that answer and take appends.",
                    [(share(gauge("tidelog_ready"), gauge("tidelog_ready", how="count")), "ready")],
                    "percentunit",
                    "stat",
                    4,
                    steps=(("red", None), ("orange", 0.5), ("green", 1)),
                ),
                Panel(
                    "Durable?",
                    "What must not happen, within an hour: uploads given up, stored extents damaged or missing, reads with wrong bytes.",
                    [(FAULTS, "faults")],
                    "short",
                    "stat",
                    4,
                    steps=(("green", None), ("red", 0.5)),
                    said={"0": "yes"},
                ),
                Panel(
                    "Fast?",
                    "How long the slowest hundredth of appends took.",
                    [(quantile(0.99, "tidelog_append_seconds", more='stage="total"'), "p99")],
                    "s",
                    "stat",
                    4,
                    steps=(("green", None), ("orange", 0.5), ("red", 1)),
                ),
                Panel(
                    "Behind?",
                    "The open Consume stream that is furthest behind: for how long it has not been at the end, and by how many records.",
                    [
                        (gauge("tidelog_consume_lag_seconds", how="max"), "seconds"),
                        (gauge("tidelog_consume_lag_records", how="max"), "records"),
                    ],
                    "s",
                    "stat",
                    6,
                    steps=(("green", None), ("orange", 60), ("red", 600)),
                    counts=("records",),
                ),
                Panel(
                    "Cost?",
                    "Dollars an hour: requests to the bucket, what is stored, records that cross zones. Without machines and database.",
                    [(DOLLARS_AN_HOUR, "an hour")],
                    "currencyUSD",
                    "stat",
                    6,
                ),
            ),
        ),
        Row(
            "Where an append's time goes: S3, SQL or us?",
            (
                Panel(
                    "By stage",
                    "Mean time of an append in the open segment (wait), until its bytes are durable (upload), until committed (order).",
                    [(mean("tidelog_append_seconds", by="stage", more='stage!="total"'), "{{stage}}")],
                    "s",
                    width=6,
                    stacked=True,
                ),
                Panel(
                    "S3",
                    "How long uploads of segments and calls of the bucket took.",
                    [
                        (quantile(0.99, "tidelog_upload_seconds"), "upload p99"),
                        (quantile(0.99, "tidelog_store_call_seconds", by="operation"), "{{operation}} p99"),
                    ],
                    "s",
                    width=6,
                ),
                Panel(
                    "SQL",
                    "How long commits took, and all transactions.",
                    [
                        (quantile(0.99, "tidelog_commit_seconds"), "commit p99"),
                        (quantile(0.99, "tidelog_metadata_transaction_seconds"), "any p99"),
                        (quantile(0.5, "tidelog_commit_seconds"), "commit p50"),
                    ],
                    "s",
                    width=6,
                ),
                Panel(
                    "Us",
                    "How late event loops woke, and how long appends waited for company.",
                    [
                        (quantile(0.99, "tidelog_event_loop_lag_seconds"), "event loop p99"),
                        (quantile(0.99, "tidelog_append_seconds", more='stage="wait"'), "wait p99"),
                    ],
                    "s",
                    width=6,
                ),
            ),
        ),
        Row(
            "Load",
            (
                Panel(
                    "Appends",
                    "Appends answered, by what became of them.",
                    [(rate("tidelog_appends_total", by="result"), "{{result}}")],
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Bytes",
                    "Bytes taken in, and given to readers.",
                    [(rate("tidelog_append_bytes_total", more=TAKEN), "in"), (rate("tidelog_consume_bytes_total"), "out")],
                    "Bps",
                ),
                Panel("Records", "Records taken in.", [(rate("tidelog_append_records_total", more=TAKEN), "in")], "rps"),
            ),
        ),
        Row(
            "Brokers",
            (
                Panel("Ready", "1 while a broker takes appends.", [(gauge("tidelog_ready", by="broker"), "{{broker}}")]),
                Panel(
                    "Partitions led",
                    "Partitions that each broker leads.",
                    [(gauge("tidelog_led_partitions", by="broker"), "{{broker}}")],
                    stacked=True,
                ),
                Panel(
                    "CPU",
                    "Cores that each broker uses; one process uses little more than one.",
                    [(rate("tidelog_process_cpu_seconds_total", by="broker"), "{{broker}}")],
                    "cores",
                ),
            ),
        ),
    ),
    BROKERS,
)

BROKER = Dashboard(
    "tidelog-broker",
    "Tidelog / Broker",
    (
        Row(
            "Intake",
            (
                Panel(
                    "Memory of appends",
                    "Bytes held, every copy counted, and the budget beyond which appends are pushed back.",
                    [
                        (gauge("tidelog_intake_bytes", by="broker"), "{{broker}}"),
                        (gauge("tidelog_intake_budget_bytes", how="max"), "budget"),
                    ],
                    "bytes",
                ),
                Panel(
                    "Segments sealed",
                    "By what sealed them: full, the deadline of an append, nothing else under way, a drain.",
                    [(rate("tidelog_segments_sealed_total", by="reason"), "{{reason}}")],
                    "ops",
                    stacked=True,
                ),
                Panel("Segment size", "Bytes of sealed segments.", _quantiles("tidelog_segment_bytes"), "bytes"),
                Panel("Partitions in a segment", "How many partitions share an upload.", _quantiles("tidelog_segment_partitions")),
                Panel(
                    "Uploads",
                    "Segments under way, and those whose appends are not all answered.",
                    [
                        (gauge("tidelog_uploads_in_flight", by="broker"), "{{broker}} uploading"),
                        (gauge("tidelog_open_sequences", by="broker"), "{{broker}} open"),
                    ],
                ),
                Panel(
                    "Upload time",
                    "Retries and hedges included.",
                    _quantiles("tidelog_upload_seconds", by="broker", legend="{{broker}}"),
                    "s",
                ),
            ),
        ),
        Row(
            "Order",
            (
                Panel(
                    "Commit time", "From beginning to durable.", _quantiles("tidelog_commit_seconds", by="broker", legend="{{broker}}"), "s"
                ),
                Panel(
                    "Commits",
                    "Partitions in commits, by what became of them.",
                    [(rate("tidelog_commit_outcomes_total", by="outcome"), "{{outcome}}")],
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "References",
                    "Sent to leaders, sent again, answered for good or not now.",
                    [
                        (rate("tidelog_references_sent_total"), "sent"),
                        (rate("tidelog_references_repeated_total"), "sent again"),
                        (rate("tidelog_references_answered_total", by="answer"), "{{answer}}"),
                    ],
                    "ops",
                ),
                Panel(
                    "Waiting for a commit",
                    "References that wait at leaders.",
                    [(gauge("tidelog_ledger_pending_references", by="broker"), "{{broker}}")],
                ),
                Panel(
                    "Metadata store",
                    "Transactions per second, by outcome.",
                    [(rate("tidelog_metadata_transactions_total", by="outcome"), "{{outcome}}")],
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Metadata store by verb",
                    "How long the slowest hundredth of each verb's transactions took, queueing included.",
                    [(quantile(0.99, "tidelog_metadata_transaction_seconds", by="verb"), "{{verb}}")],
                    "s",
                ),
            ),
        ),
        Row(
            "Leadership",
            (
                Panel(
                    "Lease remaining",
                    "Until a broker stops to lead, were its lease not renewed.",
                    [(gauge("tidelog_lease_remaining_seconds", how="min", by="broker"), "{{broker}}")],
                    "s",
                ),
                Panel("Renewals", "Of leases, by outcome.", [(rate("tidelog_lease_renewals_total", by="outcome"), "{{outcome}}")], "ops"),
                Panel(
                    "Changes",
                    "Partitions taken over, handed over, and found to have another leader.",
                    [
                        (rate("tidelog_take_overs_total"), "taken over"),
                        (rate("tidelog_transfers_total"), "handed over"),
                        (rate("tidelog_fenced_total"), "fenced"),
                    ],
                    "ops",
                ),
            ),
        ),
        Row(
            "Process",
            (
                Panel(
                    "Calls",
                    "gRPC calls that have ended, by status.",
                    [(rate("tidelog_grpc_calls_total", by="code"), "{{code}}")],
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Event loop",
                    "How late it woke a timer.",
                    [(quantile(0.99, "tidelog_event_loop_lag_seconds", by="broker"), "{{broker}} p99")],
                    "s",
                ),
                Panel("CPU", "Cores in use.", [(rate("tidelog_process_cpu_seconds_total", by="broker"), "{{broker}}")], "cores"),
                Panel("Memory", "Resident.", [(gauge("tidelog_process_resident_memory_bytes", by="broker"), "{{broker}}")], "bytes"),
                Panel("Open files", "Connections included.", [(gauge("tidelog_process_open_fds", by="broker"), "{{broker}}")]),
                Panel(
                    "Version",
                    "Brokers by what runs.",
                    [(gauge("tidelog_build_info", by="version, python"), "{{version}} on Python {{python}}")],
                    stacked=True,
                ),
            ),
        ),
    ),
    BROKERS,
)

BY_TOPIC = f'{OF},topic=~"$topic"'
TOPICS_AND_GROUPS = Dashboard(
    "tidelog-topics",
    "Tidelog / Topics and groups",
    (
        Row(
            "Topics",
            (
                Panel(
                    "Bytes in",
                    "Bytes taken in by topic; the series without a name is the rest, beyond metrics_most_topics.",
                    [(rate("tidelog_topic_taken_bytes_total", by="topic", of=BY_TOPIC), "{{topic}}")],
                    "Bps",
                    width=16,
                    stacked=True,
                ),
                Panel(
                    "Bytes in, in all",
                    "Bytes of the topics that are chosen.",
                    [(rate("tidelog_topic_taken_bytes_total", of=BY_TOPIC), "in")],
                    "Bps",
                    "stat",
                ),
            ),
        ),
        Row(
            "Readers",
            (
                Panel(
                    "Lag in records",
                    "Of the partition that is furthest behind: committed offsets that an open Consume stream was not given yet.",
                    [(gauge("tidelog_consume_lag_records", how="max", by="topic", of=BY_TOPIC), "{{topic}}")],
                    width=12,
                ),
                Panel(
                    "Lag in seconds",
                    "For how long the reader that is behind longest has not been at the end of its partition.",
                    [(gauge("tidelog_consume_lag_seconds", how="max", by="topic", of=BY_TOPIC), "{{topic}}")],
                    "s",
                    width=12,
                ),
                Panel(
                    "Bytes out",
                    "By where they were.",
                    [(rate("tidelog_consume_bytes_total", by="source"), "{{source}}")],
                    "Bps",
                    stacked=True,
                ),
                Panel(
                    "From memory",
                    "Share of reads that the bucket was not asked for.",
                    [(share(rate("tidelog_reads_total", more='source="memory"'), rate("tidelog_reads_total")), "memory")],
                    "percentunit",
                ),
                Panel(
                    "Partitions followed",
                    "By open Consume streams.",
                    [(gauge("tidelog_consume_subscriptions", by="broker"), "{{broker}}")],
                    stacked=True,
                ),
                Panel(
                    "Credit and unsent",
                    "Bytes that clients allow, and bytes that wait to be sent to them.",
                    [(gauge("tidelog_consume_credit_bytes"), "credit"), (gauge("tidelog_consume_unsent_bytes"), "unsent")],
                    "bytes",
                ),
                Panel(
                    "Reads of the past and of the tail",
                    "Ranged GETs under way.",
                    [(gauge("tidelog_bucket_reads_in_flight", by="of"), "{{of}}")],
                ),
                Panel(
                    "Followers without a feed",
                    "Polls in the place of a leader's feed, and those that failed.",
                    [(rate("tidelog_follower_polls_total"), "polls"), (rate("tidelog_failed_polls_total"), "failed")],
                    "ops",
                ),
            ),
        ),
        Row(
            "Groups",
            (
                Panel(
                    "Consumer groups",
                    "Brokers serve no consumer groups yet, so there is nothing to show of them. Lag above is that of open Consume streams, "
                    "whoever opened them.",
                    [],
                    kind="text",
                    width=24,
                ),
            ),
        ),
    ),
    TOPICS,
)

STORAGE = Dashboard(
    "tidelog-storage",
    "Tidelog / Storage and cost",
    (
        Row(
            "Cost",
            (
                Panel(
                    "Dollars an hour",
                    "Requests, storage, and records that cross zones.",
                    [(DOLLARS_AN_HOUR, "an hour")],
                    "currencyUSD",
                    "stat",
                    6,
                ),
                Panel(
                    "Requests, dollars an hour",
                    "By operation, at the prices of the settings.",
                    [(f"{rate('tidelog_store_dollars_total', by='operation')} * 3600", "{{operation}}")],
                    "currencyUSD",
                    width=9,
                    stacked=True,
                ),
                Panel(
                    "Requests' dollars per GiB appended",
                    "Falls with load: larger segments cost the same request.",
                    [
                        (
                            share(
                                rate("tidelog_store_dollars_total"),
                                f"{rate('tidelog_append_bytes_total', more=TAKEN)} / 2 ^ 30",
                            ),
                            "a GiB",
                        )
                    ],
                    "currencyUSD",
                    width=9,
                ),
            ),
        ),
        Row(
            "Bucket",
            (
                Panel(
                    "Requests",
                    "Calls by operation; on S3 what is really sent stands beside.",
                    [
                        (rate("tidelog_store_calls_total", by="operation"), "{{operation}} calls"),
                        (rate("tidelog_store_requests_total", by="operation"), "{{operation}} requests"),
                    ],
                    "ops",
                ),
                Panel(
                    "Call time",
                    "The slowest hundredth of each operation.",
                    [(quantile(0.99, "tidelog_store_call_seconds", by="operation"), "{{operation}}")],
                    "s",
                ),
                Panel(
                    "Failures",
                    "Calls that failed, requests sent again, slow ones sent a second time.",
                    [
                        (rate("tidelog_store_calls_total", by="outcome", more=FAILED), "{{outcome}}"),
                        (rate("tidelog_store_retries_total"), "retries"),
                        (rate("tidelog_store_hedges_total"), "hedges"),
                    ],
                    "ops",
                ),
                Panel("Bytes", "Written and read.", [(rate("tidelog_store_bytes_total", by="operation"), "{{operation}}")], "Bps"),
                Panel(
                    "Records by zone",
                    "Bytes from clients and to them, by whether they are in the broker's zone: what crosses zones is charged.",
                    [(rate("tidelog_client_bytes_total", by="zone"), "{{zone}}")],
                    "Bps",
                    stacked=True,
                ),
                Panel("Stored", "Bytes that extents refer to.", [(gauge("tidelog_stored_bytes", how="max"), "stored")], "bytes"),
                Panel(
                    "Integrity",
                    "Found within an hour: damaged or missing extents, reads with wrong bytes.",
                    [
                        (f"sum by (found) (increase(tidelog_scrub_extents_total{{{OF},{BAD}}}[1h]))", "{{found}}"),
                        (f"sum (increase(tidelog_corrupt_reads_total{{{OF}}}[1h]))", "wrong when read"),
                    ],
                    steps=(("green", None), ("red", 0.5)),
                ),
            ),
        ),
        Row(
            "Merging",
            (
                Panel("Merges", "By outcome.", [(rate("tidelog_merges_total", by="outcome"), "{{outcome}}")], "ops", stacked=True),
                Panel(
                    "Bytes merged",
                    "Read, and written in their place; and those appended, to compare.",
                    [
                        (rate("tidelog_merge_read_bytes_total"), "read"),
                        (rate("tidelog_merged_bytes_total"), "written"),
                        (rate("tidelog_append_bytes_total", more=TAKEN), "appended"),
                    ],
                    "Bps",
                ),
                Panel(
                    "Backlog",
                    "Merges that wait, and extents that could not be read and are let alone.",
                    [(gauge("tidelog_merges_waiting"), "waiting"), (gauge("tidelog_merge_quarantined_extents"), "let alone")],
                ),
            ),
        ),
        Row(
            "Retention and cleaning",
            (
                Panel(
                    "Deleted objects", "By why.", [(rate("tidelog_objects_deleted_total", by="reason"), "{{reason}}")], "ops", stacked=True
                ),
                Panel(
                    "Waiting to be deleted",
                    "Segments that nothing refers to any more.",
                    [(gauge("tidelog_released_segments", how="max"), "segments")],
                ),
                Panel(
                    "Oldest of them",
                    "How long the one that waits longest has waited.",
                    [(gauge("tidelog_released_oldest_seconds", how="max"), "oldest")],
                    "s",
                ),
                Panel(
                    "Cleaner's rounds",
                    "By outcome.",
                    [(rate("tidelog_cleaner_rounds_total", by="outcome"), "{{outcome}}")],
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Let alone",
                    "Objects that cannot be deleted, partitions whose extents cannot be released.",
                    [
                        (gauge("tidelog_cleaner_quarantined", how="max"), "objects"),
                        (f"sum (increase(tidelog_retention_poisoned_total{{{OF}}}[1h]))", "partitions, within an hour"),
                    ],
                ),
                Panel("Log starts moved", "By retention and DeleteRecords.", [(rate("tidelog_log_starts_moved_total"), "moved")], "ops"),
            ),
        ),
        Row(
            "Checkpoints and scrub",
            (
                Panel(
                    "Age of the newest checkpoint",
                    "What a rebuild may have to guess; 0 where there never was one.",
                    [
                        (
                            CHECKPOINT_AGE,
                            "age",
                        )
                    ],
                    "s",
                ),
                Panel(
                    "Checkpoints", "By outcome.", [(rate("tidelog_checkpoints_total", by="outcome"), "{{outcome}}")], "ops", stacked=True
                ),
                Panel(
                    "Scrub",
                    "Extents whose stored bytes were looked at, by what was found.",
                    [(rate("tidelog_scrub_extents_total", by="found"), "{{found}}")],
                    "ops",
                    stacked=True,
                ),
            ),
        ),
    ),
    BROKERS,
)

_OPERATED = 'cluster=~"$cluster"'
OPERATOR = Dashboard(
    "tidelog-operator",
    "Tidelog / Operator",
    (
        Row(
            "Clusters",
            (
                Panel(
                    "Brokers",
                    "Wanted, present, ready, up to date, draining.",
                    [(f"{gauge('tidelog_operator_brokers', by='cluster, state', of=_OPERATED)} or vector(0)", "{{cluster}} {{state}}")],
                    width=12,
                ),
                Panel(
                    "Conditions",
                    "1 while a condition is True. Ready should be; Degraded and DrainBlocked should not.",
                    [
                        (
                            f"{gauge('tidelog_operator_condition', how='max', by='cluster, type', of=_OPERATED)} or vector(0)",
                            "{{cluster}} {{type}}",
                        )
                    ],
                    width=12,
                ),
            ),
        ),
        Row(
            "Operator",
            (
                Panel(
                    "Leaders",
                    "Processes that lead: one.",
                    [(gauge("tidelog_operator_leader", of=""), "leading")],
                    kind="stat",
                    width=4,
                    steps=(("red", None), ("green", 1), ("red", 2)),
                ),
                Panel(
                    "Queue",
                    "Objects that are to be looked at now.",
                    [(gauge("tidelog_operator_queue_length", how="max", of=""), "waiting")],
                    width=4,
                ),
                Panel(
                    "Looks",
                    "At clusters and topics, by outcome.",
                    [(rate("tidelog_operator_reconciles_total", by="kind, outcome", of=""), "{{kind}} {{outcome}}")],
                    "ops",
                ),
                Panel(
                    "Time of a look",
                    "The slowest hundredth.",
                    [(quantile(0.99, "tidelog_operator_reconcile_seconds", by="kind", of=""), "{{kind}}")],
                    "s",
                ),
                Panel(
                    "Actions",
                    "What was done.",
                    [(rate("tidelog_operator_actions_total", by="action", of=""), "{{action}}")],
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Questions to brokers",
                    "By outcome.",
                    [(rate("tidelog_operator_broker_questions_total", by="question, outcome", of=""), "{{question}} {{outcome}}")],
                    "ops",
                ),
                Panel(
                    "Requests to the API server",
                    "By outcome.",
                    [(rate("tidelog_operator_api_requests_total", by="outcome", of=""), "{{outcome}}")],
                    "ops",
                ),
                Panel(
                    "Watches ended", "By why.", [(rate("tidelog_operator_watches_ended_total", by="reason", of=""), "{{reason}}")], "ops"
                ),
            ),
        ),
    ),
    (("cluster", "Cluster", "label_values(tidelog_operator_brokers, cluster)"),),
)

DASHBOARDS = {"overview": OVERVIEW, "broker": BROKER, "topics": TOPICS_AND_GROUPS, "storage": STORAGE, "operator": OPERATOR}


def rendered(dashboard: Dashboard) -> str:
    """Return a dashboard as Grafana loads it."""
    variables = [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}]
    model = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["tidelog"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {"type": "dashboards", "title": "Tidelog", "tags": ["tidelog"], "asDropdown": True, "includeVars": True, "keepTime": True}
        ],
        "templating": {"list": [*variables, *map(_variable, dashboard.variables)]},
        "panels": list(_panels(dashboard)),
    }
    return json.dumps(model, indent=1, ensure_ascii=False) + "\n"


def _variable(of: tuple[str, str, str]) -> dict[str, Any]:
    name, label, query = of
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for row in dashboard.rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
        }
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            number += 1
            height = {"stat": 5, "text": 3}.get(panel.kind, 8)
            if x + panel.width > _WIDTH:
                x, y, tallest = 0, y + tallest, 0
            yield _panel(panel, number) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": height}}
            x, tallest = x + panel.width, max(tallest, height)
        y += tallest


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    if panel.kind == "text":
        return {"id": number, "type": "text", "title": panel.title, "options": {"mode": "markdown", "content": panel.text}}
    targets = [
        {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        for place, (expr, legend) in enumerate(panel.queries)
    ]
    steps = [{"color": colour, "value": value} for colour, value in panel.steps]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.said:
        defaults["mappings"] = [{"type": "value", "options": {value: {"text": text} for value, text in panel.said.items()}}]
    options: dict[str, Any]
    if panel.kind == "stat":
        defaults["color"] = {"mode": "thresholds"}
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "textMode": "auto"}
    else:
        defaults["custom"] = {"fillOpacity": 20 if panel.stacked else 0, "stacking": {"mode": "normal" if panel.stacked else "none"}}
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": [_plain(name) for name in panel.counts]},
        "options": options,
    }


def _plain(name: str) -> dict[str, Any]:
    colour = {"mode": "fixed", "fixedColor": "text"}
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": "unit", "value": "short"}, {"id": "color", "value": colour}],
    }
