"""A proxy before an S3 server that lets storms of 503 and black-outs pass over it."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, web

_LASTS_S = 3.0


class Weather:
    """What the proxy does now."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.refused = 0
        self._storms = 0
        self._blackouts = 0
        self._requests = 0

    async def storm(self) -> None:
        """Fail three of four requests for a while: 500, 503, or a broken connection to what has been done all the same."""
        self._storms += 1
        await asyncio.sleep(_LASTS_S)
        self._storms -= 1

    async def blackout(self, *, seconds: float = _LASTS_S) -> None:
        """Break off every request for a while."""
        self._blackouts += 1
        await asyncio.sleep(seconds)
        self._blackouts -= 1

    async def pass_on(self, request: web.Request, session: ClientSession, target: str) -> web.StreamResponse:
        """Handle one request."""
        body = await request.read()
        self._requests += 1
        if self._blackouts:
            self.refused += 1
            return _broken_off(request)
        refused = self._storms and self._requests % 4
        if refused and self._requests % 2:
            self.refused += 1
            return web.Response(status=503 if refused == 1 else 500)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        url = target + str(request.rel_url)
        async with session.request(request.method, url, headers=headers, data=io.BytesIO(body), allow_redirects=False) as answer:
            content = await answer.read()
            if refused:
                self.refused += 1
                return _broken_off(request)
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in ("content-length", "transfer-encoding")}
            if request.method == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, headers=kept, body=None if request.method == "HEAD" else content)


def _broken_off(request: web.Request) -> web.Response:
    if request.transport is not None:  # else the other side has gone already
        request.transport.abort()
    return web.Response()


@asynccontextmanager
async def weather(target: str) -> AsyncIterator[Weather]:
    """Run the proxy before `target`."""
    sky = Weather()
    async with ClientSession(auto_decompress=False, cookie_jar=DummyCookieJar(), timeout=ClientTimeout(total=30)) as session:

        async def handle(request: web.Request) -> web.StreamResponse:
            return await sky.pass_on(request, session, target)

        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        sky.endpoint = f"http://{host}:{port}"
        try:
            yield sky
        finally:
            await runner.cleanup()
