"""Brokers as a client knows them: addresses, channels, which one to use next.

Every call works on every broker, so one that answers is enough. A broker of one's zone comes first, then the addresses
that were given, then what else the cluster has told of: behind a port-forward or a balancer only the given ones may be
reachable.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from tidelog.client import wire
from tidelog.client.backoff import pause_s
from tidelog.clock import Clock
from tidelog.errors import Draining, InvalidRequest, NotReady, OutcomeUnknown, TidelogError
from tidelog.proto.v1 import log_pb2 as pb
from tidelog.proto.v1.admin_pb2_grpc import AdminStub
from tidelog.proto.v1.log_pb2_grpc import LogStub
from tidelog.randomness import Random

Answer = TypeVar("Answer")

_ATTEMPT_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5.0
_LEFT_FOR_S = 5.0
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),  # what may be sent again is decided here
    ("grpc.use_local_subchannel_pool", 1),  # a channel made anew connects at once
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


@dataclass(frozen=True, slots=True)
class Credentials:
    """How a client proves who it is, and knows the brokers."""

    tls: bool = False
    ca: bytes | None = None
    """PEM of the authorities that the brokers' certificates are checked against; None: the system's."""
    cert: bytes | None = None
    key: bytes | None = None
    token: str | None = None

    def channel(self, address: str) -> grpc.aio.Channel:
        """Return a new channel, which connects when it is used."""
        if not self.tls:
            return grpc.aio.insecure_channel(address, options=_OPTIONS)
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(self.ca, self.key, self.cert), options=_OPTIONS)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def read_credentials(
    *, tls: bool, ca: str | Path | None, cert: str | Path | None, key: str | Path | None, token: str | None
) -> Credentials:
    """Return credentials from PEM files. Raises InvalidRequest for what does not go together or cannot be read."""
    if (cert is None) != (key is None):
        raise InvalidRequest("of a client certificate only one of cert and key was given; give both files")
    if not tls and (ca or cert):
        raise InvalidRequest("ca, cert or key was given with tls=False; leave tls out, or set it to True")
    try:
        ca_pem, cert_pem, key_pem = (None if path is None else Path(path).read_bytes() for path in (ca, cert, key))
    except OSError as error:
        raise InvalidRequest(f"the file {error.filename} for TLS cannot be read: {error.strerror}; name a readable PEM file") from error
    return Credentials(tls=tls, ca=ca_pem, cert=cert_pem, key=key_pem, token=token)


class Broker:
    """One address, with its channel."""

    def __init__(self, address: str, credentials: Credentials, *, given: bool, order: float) -> None:
        self.address = address
        self.metadata = credentials.metadata
        self.given = given
        self.order = order
        self.zone = ""
        self.failures = 0
        self.retry_at = 0.0
        """Nothing is tried here before."""
        self.avoid_until = 0.0
        """Until then, others come first."""
        self._credentials = credentials
        self._left: list[grpc.aio.Channel] = []
        self._open()

    def _open(self) -> None:
        self._channel = self._credentials.channel(self.address)
        self.log: Any = LogStub(self._channel)
        self.admin: Any = AdminStub(self._channel)

    async def connected(self) -> bool:
        """Return whether there is a connection; a channel that could not make one is made anew."""
        state = self._channel.get_state(try_to_connect=True)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                while state is not grpc.ChannelConnectivity.READY and state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            state = grpc.ChannelConnectivity.TRANSIENT_FAILURE
        if state is grpc.ChannelConnectivity.READY:
            return True
        await self._channel.close()
        self._open()
        return False

    def produce(self) -> Any:
        """Open a Produce stream. What is written to it is serialized already."""
        method: Any = self._channel.stream_stream("/tidelog.v1.Log/Produce", response_deserializer=pb.ProduceResponse.FromString)
        return method(metadata=self.metadata)

    def consume(self) -> Any:
        """Open a Consume stream, which reads what `wire.consume_response` gives."""
        method: Any = self._channel.stream_stream(
            "/tidelog.v1.Log/Consume",
            request_serializer=pb.ConsumeRequest.SerializeToString,
            response_deserializer=wire.consume_response,
        )
        return method(metadata=self.metadata)

    def leave(self) -> None:
        """Have new calls make a new connection, which behind a balancer leads elsewhere; calls on the old one go on."""
        self._left.append(self._channel)
        self._open()

    async def close(self) -> None:
        """Close all connections, and all calls on them."""
        for channel in (*self._left, self._channel):
            await channel.close()


class Brokers:
    """All brokers that are known, and which one to use."""

    def __init__(
        self, addresses: Sequence[str], *, credentials: Credentials, zone: str | None, call_timeout_s: float, clock: Clock, chance: Random
    ) -> None:
        self.clock = clock
        self.chance = chance
        self.call_timeout_s = call_timeout_s
        self._credentials = credentials
        self._zone = zone
        self._known: dict[str, Broker] = {}
        for address in addresses:
            self._add(address, given=True)

    def _add(self, address: str, *, given: bool) -> Broker:
        broker = Broker(address, self._credentials, given=given, order=self.chance.random())
        self._known[address] = broker
        return broker

    async def close(self) -> None:
        """Close all channels."""
        for broker in self._known.values():
            await broker.close()

    # ---- which one

    async def connected(self) -> Broker:
        """Return a connected broker, the preferred one of those that have not failed lately; waits as long as there is none."""
        while True:
            now = self.clock.monotonic()
            usable = [broker for broker in self._known.values() if broker.retry_at <= now]
            if not usable:
                await asyncio.sleep(min(broker.retry_at for broker in self._known.values()) - now)
                continue
            broker = min(usable, key=lambda known: self._rank(known, now))
            if await broker.connected():
                return broker
            self.failed(broker)

    def _rank(self, broker: Broker, now: float) -> tuple[bool, int, float]:
        of_the_zone = bool(self._zone) and broker.zone == self._zone
        place = 0 if of_the_zone else 1 if broker.given else 2
        return broker.avoid_until > now, place, broker.order

    def failed(self, broker: Broker) -> None:
        """Leave a broker alone for a moment, longer with each failure in a row."""
        broker.failures += 1
        broker.retry_at = self.clock.monotonic() + pause_s(broker.failures, self.chance)

    def leave(self, broker: Broker) -> None:
        """Let others come first for a while, as this one is about to go or cannot do what is asked; it is better than none."""
        self.failed(broker)
        broker.avoid_until = self.clock.monotonic() + _LEFT_FOR_S * (0.5 + self.chance.random())
        broker.leave()

    def worked(self, broker: Broker) -> None:
        """Forget a broker's failures."""
        broker.failures = 0

    # ---- unary calls

    async def call(
        self, method: Callable[[Broker], Callable[..., Awaitable[Answer]]], request: object, *, repeatable: bool = True
    ) -> Answer:
        """Make a unary call on any broker; what can be tried again is, until the time is over.

        A call that is not `repeatable` is not made again once it may have been done: it raises OutcomeUnknown.
        """
        deadline = self.clock.monotonic() + self.call_timeout_s
        failures = 0
        error: TidelogError = NotReady(
            f"no broker could be reached at {', '.join(self._known)} within {self.call_timeout_s:g} s; start one, or mend the address"
        )
        while (remaining := deadline - self.clock.monotonic()) > 0:
            try:
                async with asyncio.timeout(remaining):
                    broker = await self.connected()
            except TimeoutError:
                break
            try:
                answer = await method(broker)(
                    request, timeout=min(remaining, _ATTEMPT_TIMEOUT_S) if repeatable else remaining, metadata=broker.metadata
                )
            except grpc.aio.AioRpcError as failure:
                error = wire.error_of_call(failure, address=broker.address)
                if not wire.has_spoken(failure):
                    self.failed(broker)
                    if not repeatable and error.retriable:
                        raise OutcomeUnknown(f"{error}; it may have been done: look before you try again") from failure
                elif isinstance(error, Draining):
                    self.leave(broker)
                if not error.retriable or (isinstance(error, OutcomeUnknown) and not repeatable):
                    raise error from failure
            else:
                self.worked(broker)
                return answer
            failures += 1
            await asyncio.sleep(min(pause_s(failures, self.chance), max(0.0, deadline - self.clock.monotonic())))
        raise error

    async def metadata(
        self, topics: Sequence[str], *, create_missing: bool = False, broker: Broker | None = None
    ) -> pb.GetMetadataResponse:
        """Return what the cluster says of these topics (none named: all) and of its brokers, which are learned.

        `create_missing` makes those that are missing, where the cluster makes topics on first use. With `broker`, that one
        alone is asked, once: also to find out whether its connection is alive.
        """
        request = pb.GetMetadataRequest(topics=topics, create_missing=create_missing)
        answer: pb.GetMetadataResponse
        if broker is None:
            answer = await self.call(lambda any_broker: any_broker.log.GetMetadata, request)
        else:
            answer = await broker.log.GetMetadata(request, timeout=_ATTEMPT_TIMEOUT_S, metadata=broker.metadata)
        for told in answer.brokers:
            if told.address:
                known = self._known.get(told.address) or self._add(told.address, given=False)
                known.zone = told.zone
                if told.draining:
                    known.avoid_until = max(known.avoid_until, self.clock.monotonic() + _LEFT_FOR_S)
        return answer
