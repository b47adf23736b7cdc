"""TCP proxies on every link of a cluster of processes: who connects is found out, so each pair (from, to) can be bent by itself.

What a link holds back while it is silent arrives when it is not any more, also where the sender has given up or died
meanwhile: as packets do that were sent again and again. So requests take effect late.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]

FAULTS = {
    "cut": "connections break, and new ones do too",
    "reset": "connections break, and new ones do not",
    "silent": "nothing comes through, and nobody is told",
    "deaf": "requests come through, answers do not",
    "slow": "every piece comes late",
    "torn answers": "connections break in the middle of an answer",
    "torn requests": "connections break in the middle of a request",
}
"""What can be wrong with a link."""
_SLOW_BY_S = 0.25
_TORN = 0.3
"""Share of pieces that break off."""
_PIECE = 1 << 16


class Link:
    """From one process to another: what is wrong with it now, and its open connections."""

    def __init__(self, chance: random.Random) -> None:
        self.connections = 0
        self._chance = chance
        self._faults: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._open: set[asyncio.Task[object]] = set()

    async def suffer(self, fault: str, seconds: float) -> None:
        """Have this fault for a while. Faults may overlap."""
        self._change(fault, +1)
        try:
            if fault in ("cut", "reset"):
                for connection in self._open:
                    connection.cancel()
            if fault != "reset":
                await asyncio.sleep(seconds)
        finally:
            self._change(fault, -1)

    def _change(self, fault: str, by: int) -> None:
        self._faults[fault] += by
        self._changed.set()
        self._changed = asyncio.Event()

    async def carry(self, client: Streams, connect: Connect) -> None:
        """Serve one connection to its end."""
        task = asyncio.current_task()
        assert task is not None
        ends = [client[1]]
        self._open.add(task)
        self.connections += 1
        try:
            if self._faults["cut"]:
                return
            server = await connect()
            ends.append(server[1])
            ways = [
                asyncio.ensure_future(self._pass(client[0], server[1], ("silent",), "torn requests")),
                asyncio.ensure_future(self._pass(server[0], client[1], ("silent", "deaf"), "torn answers")),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            for end in ends:
                end.close()  # what was passed on is still sent
            ends.clear()
        finally:
            self._open.discard(task)
            for end in ends:
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held_by: tuple[str, ...], torn: str) -> None:
        while piece := await reader.read(_PIECE):
            if self._faults["slow"]:
                await asyncio.sleep(self._chance.uniform(0, _SLOW_BY_S))
            while any(self._faults[fault] for fault in held_by):
                await self._changed.wait()
            broken = bool(self._faults[torn]) and self._chance.random() < _TORN
            writer.write(piece[: self._chance.randrange(len(piece))] if broken else piece)
            await writer.drain()
            if broken:
                return


CLIENT = "client"
"""Whoever is no broker."""


class Links:
    """All links."""

    def __init__(self, chance: random.Random) -> None:
        self._owner: Callable[[int], str | None] = lambda _: None
        self._chance = chance
        self._links: dict[tuple[str, str], Link] = {}
        self._servers: list[asyncio.Server] = []
        self._serving: set[asyncio.Task[object]] = set()

    def between(self, source: str, target: str) -> Link:
        """Return the link from one to another."""
        return self._links.setdefault((source, target), Link(self._chance))

    def know(self, owner: Callable[[int], str | None]) -> None:
        """Ask `owner` from now on which broker has a local TCP port."""
        self._owner = owner

    async def listen(self, target: str, connect: Connect) -> str:
        """Serve everyone's links to one process; return the address that stands for it."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._serving.add(task)
            with suppress(OSError, asyncio.CancelledError):
                source = self._owner(writer.get_extra_info("peername")[1]) or CLIENT
                await self.between(source, target).carry((reader, writer), connect)
            self._serving.discard(task)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._servers.append(server)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    @property
    def connections(self) -> dict[tuple[str, str], int]:
        """How many connections each link has had."""
        return {pair: link.connections for pair, link in sorted(self._links.items())}

    async def close(self) -> None:
        """Stop listening, and end all connections."""
        for server in self._servers:
            server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


@asynccontextmanager
async def open_links(chance: random.Random) -> AsyncIterator[Links]:
    """Have links while the context is open."""
    links = Links(chance)
    try:
        yield links
    finally:
        await links.close()


def tcp(address: str) -> Connect:
    """Connect to HOST:PORT."""
    host, _, port = address.rpartition(":")
    return lambda: asyncio.open_connection(host, int(port))


def unix(path: Path) -> Connect:
    """Connect to a Unix socket."""
    return lambda: asyncio.open_unix_connection(str(path))
