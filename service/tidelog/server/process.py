"""A broker's process: what is opened, in which order, and how it ends.

SIGTERM and SIGINT drain; a second one ends the process at once, which loses nothing that was acknowledged: a crash is a
tested path. Exit codes: 0 drained, 1 failed, 2 settings that cannot be used.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import fields
from functools import partial
from typing import TypeVar

from prometheus_client import disable_created_metrics

from tidelog.broker.broker import Broker
from tidelog.clock import Clock, SystemClock
from tidelog.config import Settings
from tidelog.costs import Prices
from tidelog.errors import InvalidSettings, TidelogError
from tidelog.executors import ThreadExecutor
from tidelog.metrics import Metrics
from tidelog.randomness import Random, system_random
from tidelog.server.descriptors import raise_limit
from tidelog.server.health import HealthListener
from tidelog.server.peers import GrpcPeers
from tidelog.server.server import Server
from tidelog.server.stores import open_bucket, open_metadata
from tidelog.telemetry import configure, get_logger

T = TypeVar("T")
Greet = Callable[[str, str], None]
"""Told the address and the metrics address once the broker takes appends."""

_SWITCH_EVERY_S = 0.0005
"""The threads of files and SQL need the interpreter often and for moments: at Python's 5 ms they would wait for the event loop longer than
for their disk."""
_COLLECT_AFTER = (10_000, 10, 100)
"""Cycles are few here, and objects of appends on their way may be very many: full collections walked all of these for hundreds of
milliseconds, to free nothing."""
_LAG_EVERY_S = 0.1
_RETRY_BASE_S = 0.2
_RETRY_MOST_S = 5.0
_READY_EVERY_S = 0.01
_log = get_logger(__name__)


def run(settings: Settings, *, greet: Greet | None = None) -> int:
    """Run a broker until it is told to end; return the process's exit code."""
    configure(log_format=settings.log_format, log_level=settings.log_level)
    _set_up_interpreter()
    raise_limit()
    disable_created_metrics()  # type: ignore[no-untyped-call]  # else a second series beside each counter, which nobody asks for
    try:
        asyncio.run(serve(settings, greet=greet))
    except BaseExceptionGroup as group:
        return _failed(list(_leaves(group)), group)
    except TidelogError as error:
        return _failed([error], error)
    return 0


def _set_up_interpreter() -> None:
    """Set what only a process that is a broker and nothing else may set."""
    sys.setswitchinterval(_SWITCH_EVERY_S)
    gc.collect()
    gc.freeze()  # what was imported stays
    gc.set_threshold(*_COLLECT_AFTER)


async def serve(settings: Settings, *, greet: Greet | None = None, stopping: asyncio.Event | None = None) -> None:
    """Open, serve, drain, close. `stopping` tells it to end; None: signals do."""
    stopping = stopping or _stopping()
    async with AsyncExitStack() as stack:
        working = asyncio.create_task(_opened(settings, stack))
        if not await _before(stopping, working):
            return
        broker, server, health = working.result()
        address = server.advertised
        life = asyncio.create_task(broker.run(address=address, peer_address=address))
        try:
            if await _before(stopping, asyncio.create_task(_ready(broker, life))):
                _log.info("broker_ready", broker_id=settings.broker_id, address=address, metrics_address=health.address)
                if greet is not None:
                    greet(address, health.address)
                await _before(stopping, life, cancel=False)
            if stopping.is_set():
                _log.info("broker_draining", timeout_ms=settings.drain_timeout_ms)
                await broker.drain_and_end()
        finally:
            life.cancel()
            with suppress(asyncio.CancelledError):
                await life
    _log.info("broker_ended", broker_id=settings.broker_id)


async def _opened(settings: Settings, stack: AsyncExitStack) -> tuple[Broker, Server, HealthListener]:
    """Open everything from the stores upwards; the stack closes it from the server downwards.

    Probes and scrapes are answered before the stores are there: a process that waits for them is alive, and a restart would mend nothing.
    """
    clock, chance = SystemClock(), system_random()
    prices = Prices(**{field.name: getattr(settings, field.name) for field in fields(Prices)})
    metrics = Metrics(prices=prices, most_topics=settings.metrics_most_topics)
    health = HealthListener(metrics.registry)
    stack.push_async_callback(health.stop)
    await health.start(settings.metrics_listen)
    bucket = await _once_there(lambda: open_bucket(settings, metrics=metrics, clock=clock, chance=chance), chance, health)
    stack.push_async_callback(bucket.close)
    store = await _once_there(lambda: open_metadata(settings, metrics=metrics, clock=clock), chance, health)
    stack.push_async_callback(store.close)
    executor = ThreadExecutor("server", threads=2)
    stack.push_async_callback(executor.close)
    peers = GrpcPeers(settings, sender=lambda: broker)
    stack.push_async_callback(peers.close)
    broker = Broker(
        store=store,
        bucket=bucket,
        peers=peers,
        settings=settings,
        clock=clock,
        chance=chance,
        executor=executor,
        metrics=metrics,
        broker_id=settings.broker_id,
    )
    await _once_there(broker.start, chance, health)
    health.problem = broker.ready
    _show(broker, metrics, settings)
    lag = asyncio.create_task(_watch_event_loop(metrics, clock))
    stack.callback(lag.cancel)
    server = Server(broker, settings, clock=clock, executor=executor, metrics=metrics)
    stack.push_async_callback(server.stop)
    await server.start()
    return broker, server, health


async def _once_there(work: Callable[[], Awaitable[T]], chance: Random, health: HealthListener) -> T:
    """Do something as soon as what it needs is there: a dependency that is away for a while is no reason to end."""
    wait_s = _RETRY_BASE_S
    while True:
        try:
            return await work()
        except TidelogError as error:
            if not error.retriable:
                raise
            _log.warning("start_waits", reason=error.reason, problem=str(error))
            problem = f"this broker is starting, and waits: {error}"
            health.problem = partial(str, problem)
            await asyncio.sleep(chance.uniform(wait_s / 2, wait_s))
            wait_s = min(2 * wait_s, _RETRY_MOST_S)


def _show(broker: Broker, metrics: Metrics, settings: Settings) -> None:
    """Let a scrape read what the broker knows of itself."""

    def epoch() -> int:
        return broker.life.identity.broker_epoch if broker.life is not None else 0

    def led() -> int:
        return sum(row.leader_broker_epoch == epoch() for row in broker.catalog.leaderships().values())

    metrics.intake_budget_bytes.set(settings.intake_budget_bytes)
    metrics.intake_bytes.set_function(lambda: broker.intake_bytes)
    metrics.open_sequences.set_function(lambda: broker.life.intake.open_sequences if broker.life is not None else 0)
    metrics.ledger_pending.set_function(lambda: broker.life.ledger.pending if broker.life is not None else 0)
    metrics.count_reading_of(broker.reader.counts)
    metrics.broker_epoch.set_function(epoch)
    metrics.lease_remaining_seconds.set_function(lambda: broker.life.lease.remaining_s if broker.life is not None else 0)
    metrics.members.set_function(lambda: len(broker.catalog.membership.brokers))
    metrics.led_partitions.set_function(led)


async def _watch_event_loop(metrics: Metrics, clock: Clock) -> None:
    while True:
        began = clock.monotonic()
        await asyncio.sleep(_LAG_EVERY_S)
        metrics.event_loop_lag_seconds.observe(max(0.0, clock.monotonic() - began - _LAG_EVERY_S))


async def _ready(broker: Broker, life: "asyncio.Task[None]") -> None:
    """Wait until the broker takes appends. Raises what ended its life."""
    while broker.ready() is not None:
        await asyncio.wait([life], timeout=_READY_EVERY_S)
        if life.done():
            life.result()
            return


async def _before(stopping: asyncio.Event, work: "asyncio.Task[object]", *, cancel: bool = True) -> bool:
    """Wait for `work` and return True; or False where the process is told to stop before. Raises what `work` raises."""
    told = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([told, work], return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
    if work.done():
        work.result()
        return True
    if cancel:
        work.cancel()
        await asyncio.wait([work])
    return False


def _stopping() -> asyncio.Event:
    """Return an event that the first signal sets. The second ends the process."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told(number: signal.Signals) -> None:
        if stopping.is_set():
            _log.warning("ended_at_once", signal=number.name)
            os._exit(1)
        _log.info("told_to_end", signal=number.name, advice="once more ends at once")
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number)
    return stopping


def _failed(errors: list[BaseException], whole: BaseException) -> int:
    """Say why the process ends, in sentences where they are known; return the exit code."""
    if not all(isinstance(error, TidelogError) for error in errors):
        _log.error("broker_failed", exc_info=whole)
        return 1
    for error in errors:
        assert isinstance(error, TidelogError)
        _log.error("broker_failed", reason=error.reason, problem=str(error))
    return 2 if all(isinstance(error, InvalidSettings) for error in errors) else 1


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
