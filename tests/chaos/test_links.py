"""The proxies do what they say: else a chaos run would prove less than it tells."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress

import pytest

from tests.chaos.links import Link, open_links, tcp
from tests.chaos.scenario import free_ports

MESSAGE = bytes(range(256)) * 100


class Echo:
    """A server that gives back what it gets."""

    def __init__(self) -> None:
        self.got = b""
        self.heard = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError), closing(writer):
            while piece := await reader.read(1 << 16):
                self.got += piece
                self.heard.set()
                writer.write(piece)


class Drawn(random.Random):
    """Everything breaks off in the middle, and is late by a fifth of a second."""

    def random(self) -> float:
        return 0.0

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return start // 2

    def uniform(self, a: float, b: float) -> float:
        return 0.2


Call = Callable[..., Awaitable["Caller"]]


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[str, Link, Echo]]:
    """An address, the link behind it, and the server at its end."""
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with server, open_links(Drawn()) as links:
        links.know(lambda port: "b1")
        address = await links.listen("S3", tcp(address_of(server)))
        yield address, links.between("b1", "S3"), echo


class Caller:
    """A connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self) -> None:
        self.writer.write(MESSAGE)

    async def whole(self) -> bool:
        """Whether the whole answer comes; the link broke where not."""
        try:
            return await self.reader.readexactly(len(MESSAGE)) == MESSAGE
        except (ConnectionError, asyncio.IncompleteReadError):
            return False

    async def asks(self) -> bool:
        try:
            self.send()
            await self.writer.drain()
        except ConnectionError:
            return False
        return await self.whole()

    def close(self) -> None:
        self.writer.close()


@pytest.fixture
async def call() -> AsyncIterator[Call]:
    """Connect, for as long as the test lasts."""
    callers: list[Caller] = []

    async def call(address: str, local: tuple[str, int] | None = None) -> Caller:
        host, _, port = address.rpartition(":")
        callers.append(Caller(*await asyncio.open_connection(host, int(port), local_addr=local)))
        return callers[-1]

    yield call
    for caller in callers:
        caller.close()
        with suppress(ConnectionError):
            await caller.writer.wait_closed()


async def suffering(link: Link, fault: str) -> "asyncio.Task[None]":
    """Have a fault until the task is cancelled."""
    task = asyncio.create_task(link.suffer(fault, 3600))
    await asyncio.sleep(0)
    return task


async def test_a_sound_link_passes_everything_on_and_is_known_by_who_connects(call: Call) -> None:
    async with linked() as (address, link, _):
        caller = await call(address)
        assert await caller.asks()
        assert await caller.asks()
        assert link.connections == 1
        caller.close()


async def test_cut_breaks_old_connections_and_new_ones(call: Call) -> None:
    async with linked() as (address, link, _):
        caller = await call(address)
        assert await caller.asks()
        fault = await suffering(link, "cut")
        assert not await caller.asks()
        assert not await (await call(address)).asks()
        await undone(fault)
        assert await (await call(address)).asks()


async def test_reset_breaks_old_connections_only(call: Call) -> None:
    async with linked() as (address, link, _):
        caller = await call(address)
        assert await caller.asks()
        await link.suffer("reset", 0)
        assert not await caller.asks()
        assert await (await call(address)).asks()


async def test_silent_holds_everything_back_and_what_was_sent_arrives_late_though_its_sender_is_gone(call: Call) -> None:
    async with linked() as (address, link, echo):
        waiting, gone = await call(address), await call(address)
        fault = await suffering(link, "silent")
        waiting.send()
        gone.send()
        await gone.writer.drain()
        gone.close()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await echo.heard.wait()
        await undone(fault)
        assert await waiting.whole()
        while len(echo.got) < 2 * len(MESSAGE):
            echo.heard.clear()
            await echo.heard.wait()


async def test_deaf_lets_requests_through_and_no_answers(call: Call) -> None:
    async with linked() as (address, link, echo):
        caller = await call(address)
        fault = await suffering(link, "deaf")
        caller.send()
        while len(echo.got) < len(MESSAGE):
            echo.heard.clear()
            await echo.heard.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await caller.reader.read(1)
        await undone(fault)
        assert await caller.whole()


async def test_slow_delays_every_piece(call: Call) -> None:
    async with linked() as (address, link, _):
        caller = await call(address)
        fault = await suffering(link, "slow")
        began = asyncio.get_running_loop().time()
        assert await caller.asks()
        assert asyncio.get_running_loop().time() - began >= 0.4, "there and back"
        await undone(fault)


@pytest.mark.parametrize("fault", ["torn answers", "torn requests"])
async def test_torn_breaks_off_in_the_middle(call: Call, fault: str) -> None:
    async with linked() as (address, link, echo):
        caller = await call(address)
        await suffering(link, fault)
        caller.send()
        answer = await caller.reader.read()
        assert answer == MESSAGE[: len(answer)]
        assert len(answer) < len(MESSAGE)
        assert len(echo.got) > 0
        assert (len(echo.got) < len(MESSAGE)) == (fault == "torn requests")


async def test_links_bend_by_themselves(call: Call) -> None:
    """Who connects decides which link it is."""
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with server, open_links(random.Random(1)) as links:
        address = await links.listen("S3", tcp(address_of(server)))
        await suffering(links.between("b0", "S3"), "cut")
        names: dict[int, str] = {}
        links.know(names.get)
        for name, port in zip(("b0", "b1"), free_ports(2), strict=True):
            names[port] = name
            caller = await call(address, ("127.0.0.1", port))
            assert await caller.asks() == (name == "b1")
        assert links.connections == {("b0", "S3"): 1, ("b1", "S3"): 1}


def address_of(server: asyncio.Server) -> str:
    return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def undone(fault: "asyncio.Task[None]") -> None:
    fault.cancel()
    await asyncio.wait([fault])
