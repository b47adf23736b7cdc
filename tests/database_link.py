"""A network between a metadata store and its PostgreSQL that tests can bend: a proxy on a Unix socket."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.postgres_server import SOCKET


class DatabaseLink:
    """What the proxy does now, to connections old and new."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.rewrite: Callable[[bytes], bytes] = bytes
        """Applied to what clients send."""
        self.lose_answers_after: bytes | None = None
        """Once a client has sent this, the database gets it, but the answer never arrives."""
        self.lost = asyncio.Event()
        """Set once an answer has been lost."""
        self._open = asyncio.Event()
        self._open.set()

    def freeze(self) -> None:
        """Let nothing through, and tell nobody: as a network does that drops packets."""
        self._open.clear()

    def thaw(self) -> None:
        """Let everything through again, what was sent meanwhile too."""
        self._open.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Path) -> None:
        """Serve one client."""
        server_reader, server_writer = await asyncio.open_unix_connection(str(target))
        deaf = asyncio.Event()

        async def up() -> None:
            while piece := await reader.read(1 << 16):
                await self._open.wait()
                if self.lose_answers_after is not None and self.lose_answers_after in piece:
                    deaf.set()
                server_writer.write(self.rewrite(piece))
                await server_writer.drain()

        async def down() -> None:
            while piece := await server_reader.read(1 << 16):
                await self._open.wait()
                if deaf.is_set():
                    self.lost.set()
                    continue
                writer.write(piece)
                await writer.drain()

        tasks = [asyncio.ensure_future(work) for work in (up(), down())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in (writer, server_writer):
            one.close()


@asynccontextmanager
async def database_link(server_directory: Path, database: str) -> AsyncIterator[DatabaseLink]:
    """Run the proxy before one database of the server in `server_directory`."""
    directory = Path(tempfile.mkdtemp(prefix="tidelog-link-"))  # short: the socket's path is limited to 107 bytes
    link = DatabaseLink(f"postgresql://postgres@/{database}?host={directory}")
    clients: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        clients.add(task)
        with suppress(OSError, asyncio.CancelledError):
            await link.carry(reader, writer, server_directory / SOCKET)
        clients.discard(task)

    listener = await asyncio.start_unix_server(accept, str(directory / SOCKET))
    try:
        yield link
    finally:
        listener.close()
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        shutil.rmtree(directory)
