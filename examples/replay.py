"""Print what happened in a topic between two moments, in the order of time over all partitions.

    python examples/replay.py visits 2030-01-31T12:00:00Z 2030-01-31T13:00:00Z

Nothing is taken away by reading, so the past can be read as often as one likes: to find a fault, to try new code on old input,
or to make a view anew.
"""

import asyncio
import os
import sys
from datetime import datetime

import tidelog


async def replay(topic: str, start: datetime, stop: datetime, server: str) -> None:
    """Print time and value of every record from `start` to before `stop`."""
    async with tidelog.connect(server) as log:
        records = [record async for record in log.consume(topic, start=start, stop=stop)]
    for record in sorted(records, key=lambda record: (record.timestamp_ms, record.partition, record.offset)):
        moment = datetime.fromtimestamp(record.timestamp_ms / 1000).astimezone()
        print(f"{moment.isoformat(timespec='milliseconds')} {(record.value or b'').decode(errors='replace')}")


if __name__ == "__main__":
    asyncio.run(
        replay(
            sys.argv[1],
            datetime.fromisoformat(sys.argv[2]).astimezone(),
            datetime.fromisoformat(sys.argv[3]).astimezone(),
            os.environ.get("TIDELOG_SERVER", "localhost:9595"),
        )
    )
