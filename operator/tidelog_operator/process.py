"""The operator's process: what is opened, in which order, and how it ends. SIGTERM gives the Lease back, so that another leads at once."""

import asyncio
import signal
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest
from tidelog.clock import Clock, SystemClock
from tidelog.randomness import system_random
from tidelog.telemetry import LogFormat, LogLevel, configure, get_logger

from tidelog_operator.controller import Controller
from tidelog_operator.election import Election
from tidelog_operator.kubernetes_api import KubernetesApi
from tidelog_operator.metrics import OperatorMetrics

_FORGOTTEN_AFTER_LEASES = 4.0
"""An operator whom the API server has not answered for so long is not ready."""
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """How an operator runs. `tidelog-operator run --help` says what each is."""

    namespaces: tuple[str, ...]
    kubeconfig: str
    lease_namespace: str
    lease_name: str
    identity: str
    lease_s: float
    resync_s: float
    listen: str
    log_format: LogFormat
    log_level: LogLevel


def run(settings: OperatorSettings) -> int:
    """Run until told to end; return the process's exit code."""
    configure(log_format=settings.log_format, log_level=settings.log_level)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # else a second series beside each counter, which nobody asks for
    try:
        asyncio.run(serve(settings))
    except (RuntimeError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


async def serve(settings: OperatorSettings, *, stopping: asyncio.Event | None = None) -> None:
    """Connect, listen, stand for election, and lead whenever elected. `stopping` tells it to end; None: signals do."""
    stopping = stopping or _stopping()
    clock, chance, metrics = SystemClock(), system_random(), OperatorMetrics()
    async with AsyncExitStack() as stack:
        api = await KubernetesApi.connect(settings.kubeconfig, metrics)
        stack.push_async_callback(api.close)
        election = Election(
            api,
            namespace=settings.lease_namespace,
            name=settings.lease_name,
            identity=settings.identity,
            lease_s=settings.lease_s,
            clock=clock,
            chance=chance,
        )
        listener = _listener(election, metrics, clock, forgotten_after_s=_FORGOTTEN_AFTER_LEASES * settings.lease_s)
        stack.push_async_callback(listener.cleanup)
        await _listen(listener, settings.listen)

        async def lead() -> None:
            controller = Controller(
                api,
                namespaces=settings.namespaces,
                resync_s=settings.resync_s,
                leads=election.leads,
                clock=clock,
                chance=chance,
                metrics=metrics,
            )
            await controller.run()

        _log.info("operator_started", identity=settings.identity, namespaces=list(settings.namespaces) or "all", listen=settings.listen)
        standing = asyncio.create_task(election.run(lead))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait([standing, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in (standing, stopped):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await standing
    _log.info("operator_ended", identity=settings.identity)


def _stopping() -> asyncio.Event:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        stopping.set()
        loop.remove_signal_handler(number)  # a second one ends the process at once

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return stopping


def _listener(election: Election, metrics: OperatorMetrics, clock: Clock, *, forgotten_after_s: float) -> web.AppRunner:
    async def live(_request: web.Request) -> web.Response:
        return web.Response(text="alive\n")  # the event loop turns: a restart would mend nothing else

    async def ready(_request: web.Request) -> web.Response:
        silent_s = clock.monotonic() - election.answered_at
        if silent_s > forgotten_after_s:
            since = f"for {silent_s:.0f} s" if silent_s != float("inf") else "yet"
            return web.Response(
                status=503, text=f"the API server has not answered {since}; look at the network and at this account's rights\n"
            )
        return web.Response(text="leads\n" if election.leads() else "waits for its turn to lead\n")

    async def figures(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes([web.get("/livez", live), web.get("/readyz", ready), web.get("/metrics", figures)])
    return web.AppRunner(application, access_log=None)


async def _listen(runner: web.AppRunner, address: str) -> None:
    host, _, port = address.rpartition(":")
    await runner.setup()
    try:
        await web.TCPSite(runner, host.strip("[]"), int(port), reuse_port=False).start()
    except OSError as error:
        raise OSError(f"{address} was to be listened on for metrics and health, but cannot be: {error.strerror or error}") from error
