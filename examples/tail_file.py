"""Append a file's lines to a topic as they are written, and go on where it stopped.

    python examples/tail_file.py access.log visits

The log itself keeps the bookmark: every record carries where its line ended in the file, so that the last record says where to go
on. A line is appended once, also where this process is killed: an append goes through only if the partition still ends where
this process has last seen it (`expected_next_offset`).
"""

import asyncio
import os
import sys
from pathlib import Path

import tidelog

POSITION = "file-position"


async def bookmark(log: tidelog.Log, topic: str) -> tuple[int, int]:
    """Return the partition's end, and where the file goes on after its last record."""
    end = (await log.admin.list_offsets(topic, partitions=[0], at="latest"))[0]
    if end == 0:
        return 0, 0
    async for record in log.consume(topic, partitions=[0], start=end - 1, max_records=1):
        return end, int(dict(record.headers)[POSITION] or b"0")
    raise AssertionError("a topic that does not end at 0 has a last record")


async def tail(path: Path, topic: str, server: str) -> None:
    """Append what is in the file, and then what comes, until cancelled."""
    async with tidelog.connect(server) as log, log.producer() as producer:
        try:
            await log.admin.create_topic(topic, partitions=1)
        except tidelog.TidelogError as error:
            if error.reason != "TOPIC_EXISTS":
                raise
        end, position = await bookmark(log, topic)
        print(f"{topic} ends at offset {end}; {path} goes on at byte {position}", flush=True)
        with path.open("rb") as file:
            file.seek(position)
            while True:
                line = file.readline()
                if not line.endswith(b"\n"):  # nothing more yet, or half a line
                    file.seek(position)
                    await asyncio.sleep(0.1)
                    continue
                position = file.tell()
                headers = [(POSITION, b"%d" % position)]
                await producer.send(topic, line[:-1], partition=0, headers=headers, expected_next_offset=end)
                end += 1


if __name__ == "__main__":
    try:
        asyncio.run(tail(Path(sys.argv[1]), sys.argv[2], os.environ.get("TIDELOG_SERVER", "localhost:9595")))
    except KeyboardInterrupt:
        sys.exit(130)
