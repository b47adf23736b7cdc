"""Whether this broker can be used: `grpc.health.v1` for clients and balancers, and /livez, /readyz, /metrics over HTTP."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from tidelog.errors import InvalidSettings
from tidelog.server.addresses import host_and_port
from tidelog.server.ports import LogBroker
from tidelog.server.streams import OpenStreams

_MESSAGES: Any = health_pb2  # its type information is older than it
_WATCH_EVERY_S = 0.25
_Context = grpc.aio.ServicerContext[Any, Any]


class HealthServicer(health_pb2_grpc.HealthServicer):
    """SERVING while the broker takes appends. The empty name stands for the whole server."""

    def __init__(self, broker: LogBroker, *, services: tuple[str, ...], streams: OpenStreams) -> None:
        self._broker = broker
        self._services = ("", *services)
        self._streams = streams

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:  # noqa: N802
        """Return the state of a service now."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"service {request.service[:100]!r} is not served here")
        return self._state(request.service)

    async def List(self, _request: object, _context: _Context) -> Any:  # noqa: N802
        """Return the states of all services now."""
        return _MESSAGES.HealthListResponse(statuses={name: self._state(name) for name in self._services})

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:  # noqa: N802
        """Send the state of a service, and again whenever it changes."""
        over = asyncio.Event()
        with self._streams.opened(over.set, by="probe"):
            told: health_pb2.HealthCheckResponse | None = None
            while not over.is_set():
                state = self._state(request.service)
                if state != told:
                    told = state
                    await context.write(state)
                try:
                    async with asyncio.timeout(_WATCH_EVERY_S):
                        await over.wait()
                except TimeoutError:
                    continue

    def _state(self, service: str) -> health_pb2.HealthCheckResponse:
        states = health_pb2.HealthCheckResponse
        if service not in self._services:
            return states(status=states.SERVICE_UNKNOWN)
        return states(status=states.SERVING if self._broker.ready() is None else states.NOT_SERVING)


class HealthListener:
    """The HTTP listener for Prometheus and for Kubernetes' probes. It is there before anything else, and after it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.problem: Callable[[], str | None] = lambda: "this broker is starting"
        """Why no appends are taken now; None: they are."""
        self.address = ""
        """HOST:PORT bound; empty where nothing is listened on."""
        self._registry = registry
        application = web.Application()
        application.add_routes(
            [web.get("/livez", self._live), web.get("/readyz", self._ready), web.get("/metrics", self._metrics)],
        )
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self, address: str) -> None:
        """Listen, unless `address` is empty. Raises InvalidSettings."""
        if not address:
            return
        host, port = host_and_port(address)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, reuse_port=False).start()
        except OSError as error:
            await self._runner.cleanup()
            raise InvalidSettings(
                f"{address} was to be listened on for metrics and health, but cannot be: {error.strerror or error}; is the port taken?"
                " Set metrics_listen, or set it to nothing"
            ) from error
        bound = self._runner.addresses[0]
        self.address = f"{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Close the listener."""
        await self._runner.cleanup()

    async def _live(self, _request: web.Request) -> web.Response:
        """The event loop turns: no more is asked, for a restart would mend nothing else."""
        return web.Response(text="alive\n")

    async def _ready(self, _request: web.Request) -> web.Response:
        problem = self.problem()
        return web.Response(text="ready\n") if problem is None else web.Response(status=503, text=f"{problem}\n")

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
