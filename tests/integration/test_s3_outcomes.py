"""I5 at the S3 store: "not done" is said only of what can never become visible. A server that breaks off at every point."""

import asyncio
import gc
import random
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web
from tidelog.clock import SystemClock
from tidelog.errors import StoreOutcomeUnknown, StoreUnavailable, StoreUnusable
from tidelog.objects.s3 import S3Settings, S3Store, open_s3

from tests.integration.test_s3 import done_but_cut_off, in_turn, misbehaving, refusing

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
DONE = b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 0\r\n\r\n"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>told so</Message></Error>"


@asynccontextmanager
async def raw_server(
    monkeypatch: pytest.MonkeyPatch, handle: Callable[[asyncio.Server], Handler], **changes: object
) -> AsyncIterator[S3Store]:
    """A store whose server is a bare socket. `handle` is given the server, to end it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    begun: list[asyncio.Server] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(begun[0])(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client has gone
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    begun.append(server)
    port = server.sockets[0].getsockname()[1]
    settings = S3Settings(bucket="b", endpoint_url=f"http://127.0.0.1:{port}", **{"max_attempts": 1, "hedge_after_samples": 0, **changes})  # type: ignore[arg-type]
    store = await open_s3(settings, clock=SystemClock(), chance=random.Random(1))
    try:
        yield store
    finally:
        await store.close()
        server.close()


async def whole_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + await reader.readexactly(int(lengths[0]) if lengths else 0)


@pytest.mark.parametrize("body", [b"", b"x"], ids=["empty", "one byte"])
async def test_a_server_that_goes_after_it_was_asked_on_a_kept_connection_may_have_done_it(
    monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    """The HTTP client would ask again by itself, and then hear only that nobody listens any more."""
    asked = 0

    def handle(server: asyncio.Server) -> Handler:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            await whole_request(reader)
            asked += 1
            writer.write(DONE)
            await whole_request(reader)
            asked += 1
            server.close()

        return serve

    async with raw_server(monkeypatch, handle) as store:
        await store.put_new("first", [b"x"])
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("second", [body])
    assert asked == 2


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"no HTTP at all\r\n\r\n", b"HTTP/1.1 503 Slow Down\r\nContent-Length: 99\r\n\r\n<Error>"],
    ids=["nothing", "half of a head", "garbage", "half of a refusal"],
)
async def test_an_answer_that_is_cut_off_says_nothing(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    def handle(_server: asyncio.Server) -> Handler:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await whole_request(reader)
            writer.write(answer)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        return serve

    async with raw_server(monkeypatch, handle) as store:
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("k", [b"x"])


async def test_a_connection_that_breaks_within_the_body_leaves_the_write_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(_server: asyncio.Server) -> Handler:
        async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(10_000)

        return serve

    async with raw_server(monkeypatch, handle) as store:
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("k", [b"x" * 5_000_000])


async def test_a_whole_refusal_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(_server: asyncio.Server) -> Handler:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await whole_request(reader)
            writer.write(b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(SLOW_DOWN), SLOW_DOWN))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        return serve

    async with raw_server(monkeypatch, handle) as store:
        with pytest.raises(StoreUnavailable):
            await store.put_new("k", [b"x"])


async def bare(status: int) -> web.Response:
    return web.Response(status=status, text="<html>a gateway</html>", content_type="text/html")


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504])
async def test_what_a_gateway_says_by_itself_leaves_a_write_unknown(s3_settings: S3Settings, status: int) -> None:
    """It may say so after the request was passed on, and done."""

    async def forwarded(_request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        await forward()
        return await bare(status)

    async with misbehaving(s3_settings, in_turn("PUT", forwarded), max_attempts=1) as store:
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("k", [b"x"])
        assert await store.get_range("k", 0, 1) == b"x"


@pytest.mark.parametrize("status", [404, 405, 403])
async def test_a_refusal_does_not_hide_a_write_whose_answer_was_lost(s3_settings: S3Settings, status: int) -> None:
    async with misbehaving(s3_settings, in_turn("PUT", done_but_cut_off, refusing(status, "Refused"))) as store:
        with pytest.raises(StoreOutcomeUnknown, match="an attempt before may have happened"):
            await store.put_new("k", [b"x"])


async def test_a_server_that_knows_no_such_place_for_a_write_needs_a_person(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, in_turn("PUT", refusing(404, "NoSuchKey"))) as store:
        with pytest.raises(StoreUnusable, match="PUT of 'k'.*was refused"):
            await store.put_new("k", [b"x"])


async def test_a_refused_hedge_does_not_hide_the_request_that_is_still_under_way(s3_settings: S3Settings) -> None:
    async def silent(_request: web.Request, _forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    rule = in_turn("PUT", *[None] * 10, silent, refusing(403, "AccessDenied"))
    async with misbehaving(s3_settings, rule, hedge_after_samples=10, max_attempts=1, attempt_timeout_ms=1500) as store:
        for number in range(10):
            await store.put_new(f"k{number}", [b"x"])
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("k", [b"x"])
        assert store.hedges == 1


async def test_a_write_that_its_caller_gave_up_may_happen_later(s3_settings: S3Settings) -> None:
    released, happened = asyncio.Event(), asyncio.Event()
    late: list[asyncio.Task[None]] = []

    async def held(_request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        async def later() -> None:
            await released.wait()
            await forward()
            happened.set()

        late.append(asyncio.ensure_future(later()))  # the server goes on with what it has, though the client has gone
        await asyncio.shield(late[-1])
        return web.Response()

    rule = in_turn("PUT", held, None)
    async with misbehaving(s3_settings, rule, attempt_timeout_ms=2000, max_attempts=1) as store:
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("k", [b"x"])
        assert [found async for found in store.list()] == []
        released.set()
        await happened.wait()
        assert await store.get_range("k", 0, 1) == b"x"
        await store.put_new("k", [b"x"])


class Body(bytearray):
    """Bytes whose end can be noticed."""


@pytest.mark.parametrize("fate", ["breaks off", "is silent", "answers 503"])
async def test_a_failed_write_holds_its_bytes_no_longer(monkeypatch: pytest.MonkeyPatch, fate: str) -> None:
    """Not in cycles of errors and frames either, until the collector comes: it comes seldom, and such writes may be many."""

    def handle(_: asyncio.Server) -> Handler:
        async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await whole_request(reader)
            if fate == "is silent":
                await reader.read()  # until the client has gone
            elif fate == "answers 503":
                writer.write(b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(SLOW_DOWN), SLOW_DOWN))
                await writer.drain()
                writer.close()
                await writer.wait_closed()

        return fail

    async with raw_server(monkeypatch, handle, max_attempts=3, attempt_timeout_ms=200, hedge_after_samples=1, backoff_most_ms=1) as store:
        gc.collect()
        gc.disable()
        try:
            body = Body(100_000)
            held = weakref.ref(body)
            with suppress(StoreOutcomeUnknown, StoreUnavailable):
                await store.put_new("key", [body])
                raise AssertionError("it was done")
            await asyncio.sleep(0)
            del body
            assert held() is None, [type(holder) for holder in gc.get_referrers(held())]
        finally:
            gc.enable()
