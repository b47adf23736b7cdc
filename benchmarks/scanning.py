"""Readers of the past, in a process of their own: `python -m benchmarks.scanning ADDRESS TOPIC`.

Each reads one partition from its beginning to its end, again and again. Prints a line once each has read something, and ends when
its input does, with how many bytes it took a second.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import tidelog

READERS = 8


@contextmanager
def scans(address: str, topic: str, rates: list[float]) -> Iterator[None]:
    """Scan the topic while the context is open; add to `rates` how many bytes a second were read."""
    command = [sys.executable, "-m", "benchmarks.scanning", address, topic]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "reading\n"
            yield
        finally:
            process.stdin.close()
            rates.append(float(process.stdout.read()))


async def _scan(log: tidelog.Log, topic: str, partition: int, read: list[int]) -> None:
    while True:
        async for batch in log.consume(topic, partitions=[partition], follow=False).batches():
            read[partition] += len(batch.data)


async def _main(address: str, topic: str) -> None:
    read = [0] * READERS
    async with tidelog.connect(address) as log:
        began = time.perf_counter()
        tasks = [asyncio.create_task(_scan(log, topic, partition, read)) for partition in range(READERS)]
        while not all(read):
            await asyncio.sleep(0.01)
        print("reading", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        print(sum(read) / (time.perf_counter() - began))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
