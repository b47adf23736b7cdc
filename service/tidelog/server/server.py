"""The server: listeners in front of a broker. Start-up and shutdown read as two lists."""

import socket
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import InvalidSettings
from tidelog.executors import Executor
from tidelog.metrics import Metrics
from tidelog.proto.v1 import admin_pb2, admin_pb2_grpc, log_pb2, log_pb2_grpc, peers_pb2_grpc
from tidelog.server.addresses import host_and_port
from tidelog.server.admin import AdminServicer
from tidelog.server.descriptors import connections_that_fit
from tidelog.server.health import HealthServicer
from tidelog.server.interceptors import Calls
from tidelog.server.log import LogServicer
from tidelog.server.peer_service import PeersServicer
from tidelog.server.ports import LogBroker
from tidelog.server.security import Gate, check_listener
from tidelog.server.streams import OpenStreams
from tidelog.server.tls import server_credentials
from tidelog.telemetry import get_logger

SERVICES = ("tidelog.v1.Log", "tidelog.v1.Admin")
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - where nobody can be sent to
_LAST_WORDS_S = 3.0
"""How long clients may take to hear how their calls end. What was accepted has been answered before, by the drain; so only those are
waited for who do not read what they asked for."""
_AHEAD_BYTES = 512 * 1024
"""What a stream may send before it is read (I10): enough for half a gigabyte a second at a round trip of a millisecond."""
_log = get_logger(__name__)


class Server:
    """Serves one broker. `start` and `stop` are called once each, in one event loop."""

    def __init__(self, broker: LogBroker, settings: Settings, *, clock: Clock, executor: Executor, metrics: Metrics) -> None:
        self._broker = broker
        self._settings = settings
        self._clock = clock
        self._executor = executor
        self._metrics = metrics
        metrics.ready.set_function(lambda: broker.ready() is None)
        for service in (log_pb2.DESCRIPTOR.services_by_name["Log"], admin_pb2.DESCRIPTOR.services_by_name["Admin"]):
            for method in service.methods:
                metrics.grpc_calls.labels(f"/{service.full_name}/{method.name}", grpc.StatusCode.OK.name)
        self.streams = OpenStreams(most=settings.max_streams)
        self._grpc: grpc.aio.Server | None = None
        self.address = ""
        """HOST:PORT that is listened on, once started."""

    async def start(self) -> None:
        """Listen and serve. Raises InvalidSettings."""
        check_listener(self._settings)
        gate = Gate(self._settings, clock=self._clock)
        calls = Calls(gate, self._metrics, unary_timeout_ms=self._settings.max_append_timeout_ms)
        self._grpc = grpc.aio.server(interceptors=(calls,), options=_options(self._settings))
        self._add_services(self._grpc)
        self.address = self._listen(self._grpc)
        await self._grpc.start()
        _log.info("server_started", address=self.address)

    @property
    def advertised(self) -> str:
        """HOST:PORT that clients and other brokers are told."""
        host, port = host_and_port(self.address)
        if self._settings.advertise:
            return self._settings.advertise
        return f"{socket.gethostname()}:{port}" if host in _EVERY_ADDRESS else self.address

    async def stop(self) -> None:
        """End streams, answer what was taken, refuse the rest, stop listening."""
        if self._grpc is not None:
            self.streams.end_all()
            await self._grpc.stop(min(_LAST_WORDS_S, self._settings.drain_timeout_ms / 1000))
        _log.info("server_stopped", address=self.address)

    def _add_services(self, server: grpc.aio.Server) -> None:
        log = LogServicer(
            self._broker, self._settings, streams=self.streams, clock=self._clock, executor=self._executor, metrics=self._metrics
        )
        log_pb2_grpc.add_LogServicer_to_server(log, server)
        admin_pb2_grpc.add_AdminServicer_to_server(AdminServicer(self._broker, self._settings), server)
        peers_pb2_grpc.add_PeersServicer_to_server(PeersServicer(self._broker, self._settings, streams=self.streams), server)
        health = HealthServicer(self._broker, services=SERVICES, streams=self.streams)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        if self._settings.reflection:
            reflection.enable_server_reflection((*SERVICES, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)

    def _listen(self, server: grpc.aio.Server) -> str:
        address = self._settings.listen
        host, _ = host_and_port(address)
        credentials = server_credentials(self._settings, clock=self._clock)
        try:
            port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise InvalidSettings(f"{address} was to be listened on, but cannot be: {error}; is the port taken?") from error
        return f"{f'[{host}]' if ':' in host else host}:{port}"


def _options(settings: Settings) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),  # two brokers on one port would share its connections, silently
        ("grpc.http2.bdp_probe", 0),  # it lets each connection that pushes send megabytes ahead
        ("grpc.http2.lookahead_bytes", _AHEAD_BYTES),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # what is sent is bounded where it is made
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        ("grpc.max_allowed_incoming_connections", connections_that_fit(settings.max_connections)),
        ("grpc.keepalive_time_ms", settings.keepalive_ms),  # finds clients that vanished without a word
        ("grpc.keepalive_timeout_ms", settings.keepalive_timeout_ms),
        ("grpc.http2.ping_timeout_ms", settings.keepalive_timeout_ms),  # which is what really counts; a minute, by default
        ("grpc.server_handshake_timeout_ms", settings.handshake_timeout_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # else it stops to ask after two, and who vanishes later is never missed
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),  # brokers and clients look after their links, too
        ("grpc.http2.max_ping_strikes", 0),
    ]
