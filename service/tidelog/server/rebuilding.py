"""`tidelog rebuild`: the stores that settings name, opened for a rebuild and closed after it."""

from contextlib import AsyncExitStack

from tidelog.broker.rebuild import rebuild
from tidelog.broker.rebuild_report import Newer, Report
from tidelog.clock import SystemClock
from tidelog.config import Settings
from tidelog.errors import InvalidSettings
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import Metrics
from tidelog.randomness import system_random
from tidelog.server.stores import bucket_in_memory, directory_of, metadata_in_memory, open_bucket, open_metadata


async def rebuild_stores(settings: Settings, *, newer: Newer, dry_run: bool) -> Report:
    """Fill the metadata store that `settings` name from their bucket; it is not even made where there is no checkpoint, or on a dry run.

    Raises InvalidSettings, and as `rebuild` does.
    """
    if bucket_in_memory(settings) or (metadata_in_memory(settings) and not dry_run):
        raise InvalidSettings("what is kept in memory dies with its process, and this one ends with the rebuild; name other stores")
    # A directory that is not there is never made: what a rebuild reads was there before.
    reading = dry_run or directory_of(settings.bucket) is not None
    clock, chance, metrics = SystemClock(), system_random(), Metrics()
    async with AsyncExitStack() as stack:
        bucket = await open_bucket(settings, metrics=metrics, clock=clock, chance=chance, reading=reading)
        stack.push_async_callback(bucket.close)

        async def opened() -> MetadataStore:
            store = await open_metadata(settings, metrics=metrics, clock=clock)
            stack.push_async_callback(store.close)
            return store

        return await rebuild(bucket=bucket, into=None if dry_run else opened, newer=newer)
