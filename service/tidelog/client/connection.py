"""Brokers as a client knows them: addresses, channels, which one to use next.

Every call works on every broker, so one that answers is enough. A broker of one's zone comes first, then the addresses
that were given, then what else the cluster has told of: behind a port-forward or a balancer only the given ones may be
reachable.
"""

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from tidelog.client import wire
from tidelog.client.backoff import pause_s
from tidelog.client.diagnosis import Finding, diagnosed
from tidelog.clock import Clock
from tidelog.errors import Draining, InvalidRequest, NotReady, OutcomeUnknown, TidelogError, Unauthenticated
from tidelog.proto.v1 import log_pb2 as pb
from tidelog.proto.v1.admin_pb2_grpc import AdminStub
from tidelog.proto.v1.log_pb2_grpc import LogStub
from tidelog.randomness import Random

Answer = TypeVar("Answer")

_ATTEMPT_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5.0
_LEFT_FOR_S = 5.0
_TOKEN = re.compile(r"[!-~]+")
_ZONE_NAME = re.compile(r"[!-~]{1,255}")
_ZONE = "tidelog-zone"
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),  # what may be sent again is decided here
    ("grpc.use_local_subchannel_pool", 1),  # a channel made anew connects at once
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


GONE = (asyncio.InvalidStateError, grpc.aio.UsageError)
"""What a call raises beside AioRpcError: it had ended when it was written to; its channel was found dead, and closed, by another call."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """How a client proves who it is, and knows the brokers."""

    tls: bool = False
    ca: bytes | None = None
    """PEM of the authorities that the brokers' certificates are checked against; None: the system's."""
    cert: bytes | None = None
    key: bytes | None = None
    token: str | None = None
    server_name: str | None = None
    """What brokers' certificates must name, where it is not what they are reached by; None: it is."""
    zone: str = ""
    """Where this client is; brokers count what crosses zones."""
    context: ssl.SSLContext | None = None
    """The same for Python's own TLS, by which is found out why a connection does not come about."""

    def channel(self, address: str) -> grpc.aio.Channel:
        """Return a new channel, which connects when it is used."""
        if not self.tls:
            return grpc.aio.insecure_channel(address, options=_OPTIONS)
        options = [*_OPTIONS, ("grpc.ssl_target_name_override", self.server_name)] if self.server_name else _OPTIONS
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(self.ca, self.key, self.cert), options=options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        told = {"authorization": f"Bearer {self.token}" if self.token else "", _ZONE: self.zone}
        return tuple((name, value) for name, value in told.items() if value)


def read_credentials(
    *, tls: bool, ca: str | Path | None, cert: str | Path | None, key: str | Path | None, token: str | None, zone: str | None = None
) -> Credentials:
    """Return credentials from PEM files. Raises InvalidRequest for what does not go together or cannot be read."""
    if (cert is None) != (key is None):
        raise InvalidRequest("of a client certificate only one of cert and key was given; give both files")
    if not tls and (ca or cert):
        raise InvalidRequest("ca, cert or key was given with tls=False; leave tls out, or set it to True")
    if token and not _TOKEN.fullmatch(token):
        raise InvalidRequest("the token has characters that a token cannot have: spaces, a new line at its end? Give it as it was issued")
    if zone and not _ZONE_NAME.fullmatch(zone):
        raise InvalidRequest(f"zone={zone!r} was given; write the zone's name in letters, digits and signs of ASCII, 255 at most")
    try:
        ca_pem, cert_pem, key_pem = (None if path is None else Path(path).read_bytes() for path in (ca, cert, key))
        context = _context(ca_pem, cert, key) if tls else None
    except ssl.SSLError as error:
        raise InvalidRequest(
            f"the files for TLS cannot be used: {error.reason or error}; give PEM files, and the key that belongs to the certificate"
        ) from error
    except OSError as error:
        raise InvalidRequest(f"the file {error.filename} for TLS cannot be read: {error.strerror}; name a readable PEM file") from error
    return Credentials(tls=tls, ca=ca_pem, cert=cert_pem, key=key_pem, token=token, zone=zone or "", context=context)


def _context(ca: bytes | None, cert: str | Path | None, key: str | Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=None if ca is None else ca.decode("ascii"))
    except (UnicodeDecodeError, ValueError) as error:
        raise ssl.SSLError("the authorities are no PEM") from error
    if cert is not None:
        context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2"])
    return context


class _Link:
    """A channel, and how many calls are on it.

    Once it is left it is closed with its last call, and no sooner: closing would cancel them, which looks to whoever awaits
    one as if they were cancelled themselves.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.log: Any = LogStub(channel)
        self.admin: Any = AdminStub(channel)
        self.closed: asyncio.Task[None] | None = None
        self._calls = 0
        self._left = False

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep it open while the context is."""
        self._calls += 1
        try:
            yield
        finally:
            self._ended()

    def keep_for(self, call: Any) -> Any:
        """Keep it open as long as a stream is; return the stream."""
        self._calls += 1
        call.add_done_callback(lambda _: self._ended())
        return call

    def leave(self) -> None:
        """Close it when nothing uses it any more."""
        self._left = True
        self._close_if_unused()

    def _ended(self) -> None:
        self._calls -= 1
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._left and not self._calls and self.closed is None:
            self.closed = asyncio.ensure_future(self.channel.close())


class Broker:
    """One address, with its channel."""

    def __init__(self, address: str, *credentials: Credentials, given: bool, order: float) -> None:
        """Several credentials are tried in turn, until there is a connection."""
        self.address = address
        self.metadata = credentials[0].metadata
        self.given = given
        self.order = order
        self.zone = ""
        self.failures = 0
        self.retry_at = 0.0
        """Nothing is tried here before."""
        self.avoid_until = 0.0
        """Until then, others come first."""
        self.finding: Finding | None = None
        """Why it could not be reached, as long as none ever was."""
        self._credentials = credentials
        self._tried = 0
        self._link: _Link | None = None
        self._left: list[_Link] = []

    def _opened(self) -> _Link:
        """Return the link; it is made when it is first used, for it belongs to the event loop that runs then."""
        if self._link is None:
            self._link = _Link(self._credentials[self._tried % len(self._credentials)].channel(self.address))
        return self._link

    @property
    def log(self) -> Any:
        """The calls of the Log service, for `unary`."""
        return self._opened().log

    @property
    def admin(self) -> Any:
        """The calls of the Admin service, for `unary`."""
        return self._opened().admin

    async def connected(self) -> bool:
        """Return whether there is a connection; a channel that could not make one is made anew."""
        link = self._opened()
        with link.used():
            state = link.channel.get_state(try_to_connect=True)
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    while state is not grpc.ChannelConnectivity.READY and state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        await link.channel.wait_for_state_change(state)
                        state = link.channel.get_state(try_to_connect=True)
            except TimeoutError:
                state = grpc.ChannelConnectivity.TRANSIENT_FAILURE
            if state is grpc.ChannelConnectivity.READY:
                return True
            if self._link is link:
                self.leave()
                self._tried += 1
        return False

    async def unary(self, method: Callable[..., Awaitable[Answer]], request: object, *, timeout_s: float) -> Answer:
        """Make a call of `log` or `admin`. Raises AioRpcError."""
        with self._opened().used():
            return await method(request, timeout=timeout_s, metadata=self.metadata)

    def produce(self) -> Any:
        """Open a Produce stream. What is written to it is serialized already."""
        link = self._opened()
        method: Any = link.channel.stream_stream("/tidelog.v1.Log/Produce", response_deserializer=pb.ProduceResponse.FromString)
        return link.keep_for(method(metadata=self.metadata))

    def consume(self) -> Any:
        """Open a Consume stream, which reads what `wire.consume_response` gives."""
        link = self._opened()
        method: Any = link.channel.stream_stream(
            "/tidelog.v1.Log/Consume",
            request_serializer=pb.ConsumeRequest.SerializeToString,
            response_deserializer=wire.consume_response,
        )
        return link.keep_for(method(metadata=self.metadata))

    def leave(self) -> None:
        """Have new calls make a new connection, which behind a balancer leads elsewhere; calls on the old one go on."""
        link, self._link = self._link, None
        self._left = [left for left in self._left if left.closed is None or not left.closed.done()]
        if link is not None:
            self._left.append(link)
            link.leave()

    @property
    def is_leaving(self) -> bool:
        """Whether a connection that was left is still open."""
        return any(left.closed is None or not left.closed.done() for left in self._left)

    async def close(self) -> None:
        """Close all connections, and all calls on them."""
        self.leave()
        for left in self._left:
            await left.channel.close()
            if left.closed is not None:
                await left.closed


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
        self._forgotten: set[Broker] = set()
        self._reached = False
        self._closed = False
        self._told: tuple[Credentials, ...] = (credentials,)
        """With what brokers are reached that the cluster told of."""
        if credentials.tls and credentials.server_name is None:
            # Behind a Service they have addresses that no certificate bears, and certificates for the name that was given.
            hosts = dict.fromkeys(address.rpartition(":")[0].strip("[]") for address in addresses)
            self._told += tuple(replace(credentials, server_name=host) for host in hosts)
        for address in addresses:
            self._add(address, given=True)

    def _add(self, address: str, *, given: bool) -> Broker:
        broker = Broker(address, *((self._credentials,) if given else self._told), given=given, order=self.chance.random())
        self._known[address] = broker
        return broker

    async def close(self) -> None:
        """Close all channels."""
        self._closed = True
        for broker in (*self._known.values(), *self._forgotten):
            await broker.close()

    def _forget(self, broker: Broker) -> None:
        """Keep no connection to a broker that is no member any more; what is still under way there has a while."""
        del self._known[broker.address]
        broker.leave()
        self._forgotten = {gone for gone in self._forgotten if gone.is_leaving} | {broker}

    # ---- which one

    async def connected(self) -> Broker:
        """Return a connected broker, the preferred one of those that have not failed lately; waits as long as there is none.

        Raises Unauthenticated where none was ever reached, and TLS is why.
        """
        while True:
            if self._closed:
                raise InvalidRequest("the cluster was used after its `async with` had ended; connect again")
            now = self.clock.monotonic()
            usable = [broker for broker in self._known.values() if broker.retry_at <= now]
            if not usable:
                await asyncio.sleep(min(broker.retry_at for broker in self._known.values()) - now)
                continue
            broker = min(usable, key=lambda known: self._rank(known, now))
            if await broker.connected():
                self._reached = True
                return broker
            self.failed(broker)
            if not self._reached:
                broker.finding = await diagnosed(broker.address, self._credentials.context)
                if all(known.finding is not None and known.finding.for_good for known in self._known.values()):
                    raise Unauthenticated(self._unreachable(""))

    def _unreachable(self, within: str) -> str:
        """Say that no broker could be reached, and what was found at the addresses."""
        said = f"no broker could be reached at {', '.join(self._known)}{within}"
        found = {known.address: known.finding.sentence for known in self._known.values() if known.finding}
        if len(self._known) == 1:
            return ": ".join((said, *found.values()))
        return "; ".join((said, *(f"{address}: {sentence}" for address, sentence in found.items())))

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
        error: TidelogError | None = None
        while (remaining := deadline - self.clock.monotonic()) > 0:
            try:
                async with asyncio.timeout(remaining):
                    broker = await self.connected()
            except TimeoutError:
                break
            remaining = deadline - self.clock.monotonic()  # finding a broker took some of it
            try:
                answer = await broker.unary(
                    method(broker), request, timeout_s=min(remaining, _ATTEMPT_TIMEOUT_S) if repeatable else remaining
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
            except grpc.aio.UsageError:
                self.failed(broker)  # nothing was sent
            else:
                self.worked(broker)
                return answer
            failures += 1
            await asyncio.sleep(min(pause_s(failures, self.chance), max(0.0, deadline - self.clock.monotonic())))
        raise error or NotReady(f"{self._unreachable(f' within {self.call_timeout_s:g} s')}; start one, or mend the address")

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
            answer = await broker.unary(broker.log.GetMetadata, request, timeout_s=_ATTEMPT_TIMEOUT_S)
        for told in answer.brokers:
            if told.address:
                known = self._known.get(told.address) or self._add(told.address, given=False)
                known.zone = told.zone
                if told.draining:
                    known.avoid_until = max(known.avoid_until, self.clock.monotonic() + _LEFT_FOR_S)
        members = {told.address for told in answer.brokers}
        for known in [known for known in self._known.values() if not known.given and known.address not in members]:
            self._forget(known)
        return answer
