"""Every metric is one that something counts: a whole service at work moves them all, but for those that need more than that."""

import asyncio
import re
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest
import tidelog
from tidelog.errors import InvalidRequest, TidelogError
from tidelog.metrics import Metrics

from tests.integration.test_server_connections import service

NEED_OTHER_BROKERS = {"transfers_total", "fenced_total", "references_repeated_total", "feeds_total", "news_gaps_total"}
NEED_WEATHER = {
    "failed_polls_total",
    "missing_objects_total",
    "corrupt_reads_total",
    "deletions_refused_total",
    "cleaner_quarantined",
    "retention_poisoned_total",
}
NEED_HOURS = {"scrub_extents_total", "scrub_bytes_total", "scrub_looks_again_total", "scrub_passes_total"}
"""`tests/integration/test_scrub.py` looks at these."""
NEED_S3 = {"store_requests_total", "store_hedges_total", "store_retries_total"}
NEED_MERGING = {name.removeprefix("tidelog_") for name in (each.name for each in Metrics().described) if "_merge" in name}
"""Minutes, with its settings as they are: `test_merging` looks at these."""
NEED_TIME = {"stored_bytes"}
"""Added up every ten minutes."""
NOTHING_IS_UNDER_WAY = {
    "consume_lag_records",
    "consume_lag_seconds",
    "intake_bytes",
    "uploads_in_flight",
    "open_sequences",
    "ledger_pending_references",
    "bucket_reads_in_flight",
    "grpc_open_calls",
    "consume_unsent_bytes",
    "consume_subscriptions",
    "consume_credit_bytes",
    "released_segments",
    "released_oldest_seconds",
}
"""When a scrape comes; other tests look at these while something is."""

SLOW = {"log_starts_moved_total", "objects_deleted_total", "topics_dropped_total", "orphan_scans_total"}
"""What happens behind the scenes, after a while."""


def scraped(address: str) -> dict[str, float]:
    """Return the largest sample of each metric."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as page:
        text = page.read().decode()
    found: dict[str, float] = defaultdict(float)
    for line in text.splitlines():
        if not line.startswith("#"):
            name = re.sub(r"_(bucket|sum|count)$", "", re.split(r"[{ ]", line)[0])
            found[name] = max(found[name], float(line.rpartition(" ")[2]))
    return found


async def test_a_service_at_work_moves_every_metric(tmp_path: Path) -> None:
    with service(
        tmp_path,
        cache_bytes="0",
        read_block_bytes="4096",
        retention_interval_ms="50",
        cleaner_interval_ms="50",
        reader_grace_ms="1",
        checkpoint_interval_ms="500",
        orphan_age_seconds="0",
        orphan_scan_interval_ms="50",
    ) as served:
        async with tidelog.connect(served.address) as log:
            await log.admin.create_topic("t", partitions=2)
            async with log.producer(batch_bytes=8192) as producer:
                await producer.send_many("t", [b"%d" % number + bytes(200) for number in range(5000)])
                with pytest.raises(TidelogError):
                    await producer.send("t", b"v", timestamp_ms=1 << 61)
            for _ in range(2):
                assert len([record async for record in log.consume("t", follow=False)]) == 5000
            with pytest.raises(InvalidRequest):
                await log.admin.create_topic("not a name")
            await log.admin.delete_records("t", 0)
            await log.admin.alter_topic("t", retention_bytes=0)
            await log.admin.create_topic("gone")
            await log.admin.delete_topic("gone")
        async with asyncio.timeout(20):
            while not all((found := scraped(served.metrics_address))[f"tidelog_{name}"] for name in SLOW):
                await asyncio.sleep(0.1)
    described = {description.name.removeprefix("tidelog_") for description in Metrics().described}
    still = {name for name in described if not found[f"tidelog_{name}"]}
    expected = NEED_OTHER_BROKERS | NEED_WEATHER | NEED_S3 | NEED_MERGING | NEED_TIME | NEED_HOURS | NOTHING_IS_UNDER_WAY
    assert still - expected == set(), "nothing counts these"
    assert expected <= described
