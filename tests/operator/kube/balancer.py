"""A Service: one address that leads to a pod which is ready, a new one for each connection; those that there are stay where they are."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.operator.kube.http import is_ready
from tests.operator.kube.store import Store, labelled


@asynccontextmanager
async def service(store: Store, namespace: str, name: str, *, port: int) -> AsyncIterator[str]:
    """Serve a Service's first port; yields HOST:PORT."""
    turns = itertools.count()
    links: set[asyncio.Task[None]] = set()

    def endpoints() -> list[str]:
        found = store.find("Service", namespace, name)
        if found is None:
            return []
        pods = store.all("Pod", namespace, labelled(found["spec"]["selector"]))
        return [pod["status"]["podIP"] for pod in pods if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = endpoints()
        if not found:
            writer.close()
            return
        try:
            there = await asyncio.open_connection(found[next(turns) % len(found)], port)
        except OSError:
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        links.add(task)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pass(reader, there[1]))
                group.create_task(_pass(there[0], writer))
        except asyncio.CancelledError:
            return  # the test is over
        finally:
            links.discard(task)
            for end in (writer, there[1]):
                end.close()

    server = await asyncio.start_server(lead, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(256 * 1024):
            target.write(data)
            await target.drain()
    with suppress(OSError, RuntimeError):
        target.write_eof()
