"""The metrics of a broker, and the wrappers that count for the ports."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from tidelog.broker.cache import ReadStats
from tidelog.clock import SystemClock
from tidelog.costs import Prices
from tidelog.errors import Fenced, MetadataUnavailable, ObjectExists, ObjectNotFound, StoreUnavailable
from tidelog.executors import InlineExecutor
from tidelog.metadata.marks import report_resolved
from tidelog.metadata.membership import initialise, membership
from tidelog.metadata.metered import MeteredMetadataStore
from tidelog.metadata.sqlite import IN_MEMORY, open_sqlite
from tidelog.metadata.store import Transaction
from tidelog.metrics import Metrics
from tidelog.objects.memory import MemoryStore
from tidelog.objects.metered import MeteredObjectStore
from tidelog.objects.s3 import S3Settings, open_s3
from tidelog.randomness import system_random


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def series(metrics: Metrics) -> Iterator[str]:
    for line in generate_latest(metrics.registry).decode().splitlines():
        if not line.startswith("#"):
            yield re.split(r"[{ ]", line)[0]


def test_an_idle_broker_shows_every_metric_but_those_of_verbs_calls_and_topics() -> None:
    metrics = Metrics()
    shown = {name.removesuffix("_bucket") for name in series(metrics)}
    assert {description.name for description in metrics.described} - shown == {
        "tidelog_metadata_transactions_total",
        "tidelog_metadata_transaction_seconds",
        "tidelog_grpc_calls_total",
        "tidelog_grpc_call_seconds",
        "tidelog_grpc_open_calls",
    }


def test_topics_beyond_the_limit_are_counted_together() -> None:
    metrics = Metrics(most_topics=2)
    for number, topic in enumerate(("a", "b", "c", "d", "a"), 1):
        metrics.topic_taken(topic, number)
    [family] = [family for family in metrics.registry.collect() if family.name == "tidelog_topic_taken_bytes"]
    counts = {sample.labels["topic"]: sample.value for sample in family.samples if sample.name.endswith("_total")}
    assert counts == {"a": 6, "b": 2, "": 7}


def test_requests_are_priced_as_the_settings_say() -> None:
    metrics = Metrics(prices=Prices(put_dollars_per_1000=2, get_dollars_per_1000=1))
    metrics.store_calls["put"]["done"].inc(500)
    metrics.store_calls["put"]["unknown"].inc(500)
    metrics.store_calls["head"]["not_found"].inc(100)
    metrics.store_calls["delete"]["done"].inc(100)
    [family] = [family for family in metrics.registry.collect() if family.name == "tidelog_store_dollars"]
    assert {sample.labels["operation"]: sample.value for sample in family.samples} == {
        "put": pytest.approx(2), "get": 0, "head": pytest.approx(0.1), "list": 0, "delete": 0,
    }  # fmt: skip


def test_what_a_scrape_shows_is_described_and_no_label_has_values_without_end() -> None:
    """Labels whose values are not listed are those that the code alone can add to: verbs, methods, what runs; and topics, up to a limit."""
    metrics = Metrics()
    described = {description.name: description for description in metrics.described}
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if not name.startswith("tidelog_process_"):
            assert name in described
            assert described[name].kind == family.type
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(described[name].labels)
    unlisted = {label for description in metrics.described for label, values in description.labels.items() if not values}
    assert unlisted == {"verb", "method", "code", "version", "python", "topic"}


def test_what_readers_count_is_shown_for_all_of_them_together() -> None:
    metrics = Metrics()
    for hits in (2, 3):
        stats = ReadStats(memory_hits=hits)
        metrics.count_reading_of(
            lambda stats=stats: (
                stats.as_dict()  # type: ignore[misc]
                | {"record_cache_bytes": 1, "block_cache_bytes": 0, "cold_reads": 0, "tail_reads": 0}
            )
        )
    assert value(metrics, "tidelog_reads_total", source="memory") == 5
    assert value(metrics, "tidelog_reads_total", source="bucket") == 0
    assert value(metrics, "tidelog_cache_bytes", cache="records") == 2


def test_names_begin_with_the_project_and_have_their_unit_last() -> None:
    metrics = Metrics()
    assert all(name.startswith("tidelog_") for name in series(metrics))
    names = [description.name for description in metrics.described]
    assert len(set(names)) == len(names)
    for description in metrics.described:
        assert description.name.endswith("_total") == (description.kind == "counter"), description
        assert description.sentence.endswith("."), description
        unit = re.search(r"_(seconds|bytes)(?!(_total)?$)", description.name)
        assert unit is None, description


def test_two_brokers_in_a_process_do_not_share_figures() -> None:
    one, other = Metrics(), Metrics()
    one.appends["accepted"].inc()
    assert value(one, "tidelog_appends_total", result="accepted") == 1
    assert value(other, "tidelog_appends_total", result="accepted") == 0


def test_a_label_value_that_is_not_listed_makes_no_series() -> None:
    with pytest.raises(KeyError):
        Metrics().appends["whatever"]


async def test_calls_of_an_object_store_are_counted_by_outcome() -> None:
    metrics = Metrics()
    store = MeteredObjectStore(MemoryStore(clock=SystemClock()), metrics=metrics, clock=SystemClock())
    await store.put_new("a", [b"12", memoryview(b"345")])
    with pytest.raises(ObjectExists):
        await store.put_new("a", [b"other"])
    assert await store.get_range("a", 1, 2) == b"23"
    with pytest.raises(ObjectNotFound):
        await store.head("b")
    assert [found.key async for found in store.list()] == ["a"]
    assert await store.delete_many(["a"]) == {}
    for operation, outcome in (
        ("put", "done"),
        ("put", "exists"),
        ("get", "done"),
        ("head", "not_found"),
        ("list", "done"),
        ("delete", "done"),
    ):
        assert value(metrics, "tidelog_store_calls_total", operation=operation, outcome=outcome) == 1
    assert value(metrics, "tidelog_store_bytes_total", operation="put") == 5
    assert value(metrics, "tidelog_store_bytes_total", operation="get") == 2
    assert value(metrics, "tidelog_store_call_seconds_count", operation="put") == 1


async def test_transactions_are_counted_by_verb_and_outcome() -> None:
    metrics = Metrics()
    inner = await open_sqlite(IN_MEMORY, clock=SystemClock(), executor=InlineExecutor())
    store = MeteredMetadataStore(inner, metrics=metrics, clock=SystemClock())
    assert store.exclusive

    def weather(_tx: Transaction) -> None:
        raise MetadataUnavailable("not now")

    await store.run(initialise, cluster_id="c", format_version=1)
    await store.run(membership)
    await store.run_reserved(membership)
    with pytest.raises(Fenced):
        await store.run(report_resolved, broker_epoch=1, sequence=1)
    with pytest.raises(MetadataUnavailable):
        await store.run(weather)
    await store.close()
    for verb, outcome, times in (("membership", "done", 2), ("report_resolved", "refused", 1), ("weather", "unavailable", 1)):
        assert value(metrics, "tidelog_metadata_transactions_total", verb=verb, outcome=outcome) == times
        assert value(metrics, "tidelog_metadata_transaction_seconds_count", verb=verb) == times
    assert value(metrics, "tidelog_metadata_transactions_total", verb="membership", outcome="unknown") == 0


async def test_requests_that_s3_really_gets_are_shown(s3_settings: S3Settings) -> None:
    metrics = Metrics()
    store = await open_s3(s3_settings, clock=SystemClock(), chance=system_random())
    metrics.count_requests_of(store)
    await store.put_new("a", [b"12"])
    await store.put_new("a", [b"12"])  # PUT is refused with 412, HEAD shows that it is the same
    await store.get_range("a", 0, 1)
    await store.close()
    for operation, times in (("put", 2), ("head", 1), ("get", 1), ("list", 0), ("delete", 0)):
        assert value(metrics, "tidelog_store_requests_total", operation=operation) == times
    assert value(metrics, "tidelog_store_retries_total") == 0


async def test_retries_are_shown_where_nobody_listens(s3_settings: S3Settings) -> None:
    settings = replace(s3_settings, endpoint_url="http://127.0.0.1:1", max_attempts=3, backoff_base_ms=0)
    store = await open_s3(settings, clock=SystemClock(), chance=system_random())
    with pytest.raises(StoreUnavailable):
        await store.head("a")
    await store.close()
    assert (store.requests["head"], store.retries) == (3, 2)
