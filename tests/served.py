"""A server over a `ListedBroker` on a free port, and a channel to it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from prometheus_client import CollectorRegistry
from tidelog.clock import SystemClock
from tidelog.config import Settings
from tidelog.executors import ThreadExecutor
from tidelog.metadata.topics import TopicConfig
from tidelog.metrics import Metrics
from tidelog.proto.v1 import admin_pb2_grpc, log_pb2_grpc
from tidelog.records.codec import Record, encode
from tidelog.server.health import HealthListener
from tidelog.server.server import Server

from tests.listed_broker import ListedBroker


@dataclass
class Served:
    broker: ListedBroker
    server: Server
    channel: grpc.aio.Channel
    registry: CollectorRegistry
    health: HealthListener

    @property
    def log(self) -> Any:
        return log_pb2_grpc.LogStub(self.channel)

    @property
    def admin(self) -> Any:
        return admin_pb2_grpc.AdminStub(self.channel)


@asynccontextmanager
async def serving(
    broker: ListedBroker | None = None,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, Any]] = (),
    **settings: Any,
) -> AsyncIterator[Served]:
    """Serve while the context is open. The topic "t" has two partitions."""
    if broker is None:
        broker = ListedBroker()
        await broker.create_topic("t", partitions=2, config=TopicConfig())
    chosen = Settings.model_validate({"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "drain_timeout_ms": 2000} | settings)
    registry = CollectorRegistry()
    executor = ThreadExecutor("served", threads=1)
    server = Server(broker, chosen, clock=SystemClock(), executor=executor, metrics=Metrics(registry))
    health = HealthListener(registry)
    health.problem = broker.ready
    try:
        await health.start(chosen.metrics_listen)
        await server.start()
        if credentials is None:
            channel = grpc.aio.insecure_channel(server.address, options=options)
        else:
            port = server.address.rpartition(":")[2]
            channel = grpc.aio.secure_channel(f"localhost:{port}", credentials, options=options)
        async with channel:
            yield Served(broker, server, channel, registry, health)
    finally:
        await server.stop()
        await health.stop()
        await executor.close()


def error_info(error: grpc.aio.AioRpcError) -> ErrorInfo:
    """Return the ErrorInfo that a failed call carries."""
    (details,) = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    assert isinstance(details, bytes)
    (packed,) = Status.FromString(details).details
    info = ErrorInfo()
    assert packed.Unpack(info)
    assert info.domain == "tidelog"
    return info


def batch(*values: bytes, timestamp_ms: int = 1000) -> bytes:
    """Return one batch of these values."""
    return encode([Record(value, timestamp_ms=timestamp_ms) for value in values])


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server with default settings."""
    async with serving() as found:
        yield found
