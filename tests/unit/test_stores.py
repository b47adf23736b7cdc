"""Stores from URLs."""

import random
from dataclasses import fields
from pathlib import Path

import pytest
from tidelog.broker.intake import COPIES
from tidelog.clock import SystemClock
from tidelog.config import INTAKE_COPIES, Settings
from tidelog.errors import InvalidSettings, StoreUnusable
from tidelog.metadata.membership import initialise
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import Metrics
from tidelog.objects.s3 import S3Settings
from tidelog.objects.store import ObjectStore
from tidelog.server.stores import open_bucket, open_metadata, s3_settings

from tests.postgres_server import PostgresServer


async def bucket_of(settings: Settings, metrics: Metrics | None = None) -> ObjectStore:
    return await open_bucket(settings, metrics=metrics or Metrics(), clock=SystemClock(), chance=random.Random(1))


async def metadata_of(url: str, metrics: Metrics | None = None) -> MetadataStore:
    return await open_metadata(Settings(metadata=url), metrics=metrics or Metrics(), clock=SystemClock())


async def test_a_file_url_is_a_directory(tmp_path: Path) -> None:
    bucket = await bucket_of(Settings(bucket=f"file://{tmp_path}/with%20space"))
    await bucket.put_new("a/b", [b"1"])
    await bucket.close()
    assert (tmp_path / "with space" / "a" / "b").read_bytes() == b"1"


async def test_a_memory_url_is_a_store_that_is_counted() -> None:
    metrics = Metrics()
    bucket = await bucket_of(Settings(bucket="memory://"), metrics)
    await bucket.put_new("a", [b"1"])
    assert metrics.registry.get_sample_value("tidelog_store_calls_total", {"operation": "put", "outcome": "done"}) == 1


async def test_an_s3_url_is_a_bucket_that_was_proved(s3_settings: S3Settings) -> None:
    metrics = Metrics()
    bucket = await bucket_of(Settings(bucket=f"s3://{s3_settings.bucket}/some/where?endpoint={s3_settings.endpoint_url}"), metrics)
    await bucket.put_new("a", [b"1"])
    assert [found.key async for found in bucket.list()] == ["a"]
    await bucket.close()
    sent = metrics.registry.get_sample_value("tidelog_store_requests_total", {"operation": "put"})
    assert sent is not None
    assert sent > 1  # those of the proof are paid for, too


async def test_a_bucket_that_is_not_there_is_told(s3_settings: S3Settings) -> None:
    settings = Settings(bucket="s3://no-such-bucket", s3_endpoint_url=str(s3_settings.endpoint_url))
    with pytest.raises(StoreUnusable, match="no such bucket"):
        await bucket_of(settings)


def test_an_s3_url_goes_before_the_settings() -> None:
    settings = Settings(
        bucket="s3://b/p/q?endpoint=http%3A%2F%2Fone%3A9000&region=eu-1&path_style=true",
        s3_endpoint_url="http://other",
        s3_region="other",
        s3_addressing_style="virtual",
        s3_max_attempts=7,
    )
    expected = S3Settings(bucket="b", prefix="p/q", endpoint_url="http://one:9000", region="eu-1", addressing_style="path", max_attempts=7)
    assert s3_settings(settings) == expected


def test_settings_of_s3_and_their_defaults_are_the_stores_own() -> None:
    assert s3_settings(Settings(bucket="s3://b")) == S3Settings(bucket="b")
    assert {f"s3_{field.name}" for field in fields(S3Settings)} - set(Settings.model_fields) == {"s3_bucket", "s3_prefix"}


def test_the_budget_of_bytes_is_checked_with_the_copies_that_intake_counts() -> None:
    assert INTAKE_COPIES == COPIES


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "bucket is not set; set it to s3://"),
        ("bucket", "names no store that Tidelog knows; write s3://"),
        ("gs://bucket", "names no store"),
        ("file://", "names no store"),
        ("file://relative/path", "names no store"),
        ("memory://x", "names no store"),
        ("file:///a?b=c", "names no store"),
        ("s3://", "after s3:// comes the bucket's name alone"),
        ("s3://bucket:port", "after s3:// comes the bucket's name alone"),
        ("s3://key:secret@bucket", "Credentials come from the usual AWS variables"),
        ("s3://bucket?end_point=http://x", "did you mean endpoint?"),
        ("s3://bucket?path_style=maybe", "write true or false"),
        ("s3://bucket?endpoint=localhost:9000", "write it with http:// or https:// in front"),
        ("s3://[", "names no store"),
    ],
)
async def test_a_url_of_no_bucket_is_refused_in_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        await bucket_of(Settings(bucket=url))
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "mysql://a:secret@h", "sqlite://relative.db", "sqlite:///a.db?mode=ro", "postgres://h/d"])
async def test_a_url_of_no_metadata_store_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        await metadata_of(url)
    assert "postgresql://" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_sqlite_keeps_a_file_or_lives_in_memory(tmp_path: Path) -> None:
    for url in ("sqlite://", f"sqlite://{tmp_path}/meta.db", f"sqlite:///{tmp_path}/meta.db"):
        store = await metadata_of(url)
        assert store.exclusive
        await store.run(initialise, cluster_id="c", format_version=1)
        await store.close()
    assert (tmp_path / "meta.db").exists()


async def test_postgres_is_opened_and_counted(postgres_server: PostgresServer) -> None:
    metrics = Metrics()
    async with postgres_server.database() as url:
        store = await metadata_of(url, metrics)
        await store.run(initialise, cluster_id="c", format_version=1)
        await store.close()
    labels = {"verb": "initialise", "outcome": "done"}
    assert not store.exclusive
    assert metrics.registry.get_sample_value("tidelog_metadata_transactions_total", labels) == 1
