"""A worker that counts words, and goes on where it stopped: each record counts once, whatever happens.

    python examples/worker.py lines counts.db

Its result and its bookmark are in one database and change in one transaction. So there is no moment at which one is
ahead of the other, and a worker that is killed anywhere goes on with the first record that does not count yet.
"""

import asyncio
import os
import sqlite3
import sys

import tidelog
from tidelog.client.consumer import ConsumedBatch


def open_counts(path: str) -> sqlite3.Connection:
    """Open the result: words, and per partition the next offset."""
    counts = sqlite3.connect(path)
    counts.execute("PRAGMA journal_mode = WAL")  # others may look at any time
    with counts:
        counts.execute("CREATE TABLE IF NOT EXISTS words (word TEXT PRIMARY KEY, count INTEGER NOT NULL)")
        counts.execute("CREATE TABLE IF NOT EXISTS bookmarks (partition INTEGER PRIMARY KEY, next_offset INTEGER NOT NULL)")
    return counts


def count(counts: sqlite3.Connection, batch: ConsumedBatch) -> None:
    """Count a batch's words and move its bookmark, both or neither."""
    with counts:
        for value in batch.values:
            for word in (value or b"").decode(errors="replace").split():
                counts.execute("INSERT INTO words VALUES (?, 1) ON CONFLICT (word) DO UPDATE SET count = count + 1", (word,))
        counts.execute("INSERT OR REPLACE INTO bookmarks VALUES (?, ?)", (batch.partition, batch.next_offset))


async def work(topic: str, path: str, server: str) -> None:
    """Count all that comes, until cancelled."""
    counts = open_counts(path)
    async with tidelog.connect(server) as log, asyncio.TaskGroup() as group:

        async def follow(partition: int) -> None:
            row = counts.execute("SELECT next_offset FROM bookmarks WHERE partition = ?", (partition,)).fetchone()
            start = row[0] if row else "earliest"
            print(f"{topic}/{partition}: going on at {start}", flush=True)
            async for batch in log.consume(topic, partitions=[partition], start=start).batches():
                count(counts, batch)

        for described in (await log.admin.describe_topic(topic)).partitions:
            group.create_task(follow(described.partition))


if __name__ == "__main__":
    try:
        asyncio.run(work(sys.argv[1], sys.argv[2], os.environ.get("TIDELOG_SERVER", "localhost:9595")))
    except KeyboardInterrupt:
        sys.exit(130)
