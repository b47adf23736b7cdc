"""`tidelog rebuild`: the stores that settings name, opened for a rebuild and closed after it."""

from contextlib import AsyncExitStack

from tidelog.broker.rebuild import rebuild
from tidelog.broker.rebuild_report import Newer, Report
from tidelog.clock import SystemClock
from tidelog.config import Settings
from tidelog.errors import InvalidSettings
from tidelog.metrics import Metrics
from tidelog.randomness import system_random
from tidelog.server.stores import open_bucket, open_metadata


async def rebuild_stores(settings: Settings, *, newer: Newer, dry_run: bool) -> Report:
    """Fill the metadata store that `settings` name from their bucket; on a dry run it is not even opened.

    Raises InvalidSettings, and as `rebuild` does.
    """
    if settings.bucket.startswith("memory:") or (settings.metadata == "sqlite://" and not dry_run):
        raise InvalidSettings("what is kept in memory dies with its process, and this one ends with the rebuild; name other stores")
    clock, chance, metrics = SystemClock(), system_random(), Metrics()
    async with AsyncExitStack() as stack:
        bucket = await open_bucket(settings, metrics=metrics, clock=clock, chance=chance)
        stack.push_async_callback(bucket.close)
        store = None
        if not dry_run:
            store = await open_metadata(settings, metrics=metrics, clock=clock)
            stack.push_async_callback(store.close)
        return await rebuild(bucket=bucket, store=store, newer=newer)
