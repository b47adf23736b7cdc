"""Links to other brokers over gRPC: the port `broker.references.Peers`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import grpc

from tidelog.broker.references import AnswerReceiver, FeedLink, FeedReceiver, Reference, ReferenceLink
from tidelog.config import Settings
from tidelog.metadata.membership import Broker
from tidelog.proto.v1 import peers_pb2, peers_pb2_grpc
from tidelog.server import peer_wire
from tidelog.server.duplex import Duplex
from tidelog.server.peer_service import CLUSTER, FROM_EPOCH, TO_EPOCH
from tidelog.server.ports import LogBroker
from tidelog.server.security import PEER_TOKEN
from tidelog.server.tls import channel_credentials
from tidelog.telemetry import get_logger

Item = TypeVar("Item")

_log = get_logger(__name__)


class GrpcPeers:
    """Opens links in the name of the broker that `sender` returns; brokers and peers need each other, so it is asked late."""

    def __init__(self, settings: Settings, *, sender: Callable[[], LogBroker]) -> None:
        self._settings = settings
        self._sender = sender
        self._channels: dict[str, tuple[grpc.aio.Channel, int]] = {}
        """Open channels by address, and how many links use each."""
        self._tasks: set[asyncio.Task[None]] = set()

    def references(self, broker: Broker, receiver: AnswerReceiver) -> ReferenceLink:
        """Open a link to a broker; failures arrive as `broken`."""
        duplex: Duplex[Reference] = Duplex(
            most_queued=self._settings.max_pending_references,
            message=peer_wire.references_message,
            weight=lambda reference: len(reference.appends) + 1,
        )

        def take(message: peers_pb2.ReferencesResponse) -> None:
            if not link.closed:
                receiver.answered([peer_wire.answer(each) for each in message.answers])

        link = _Link(duplex, receiver.broken)
        link.runs(self._start(self._run(broker, "References", link, take)))
        return link

    def feed(self, broker: Broker, receiver: FeedReceiver) -> FeedLink:
        """Open a feed from a broker; failures arrive as `broken`."""
        duplex: Duplex[tuple[bool, tuple[int, ...]]] = Duplex(
            most_queued=self._settings.max_pending_references,
            message=peer_wire.change_message,
            weight=lambda change: len(change[1]) + 1,
        )

        def take(message: peers_pb2.FeedResponse) -> None:
            for each in message.news:
                if not link.closed:
                    receiver.committed(peer_wire.news(each))

        link = _Feed(duplex, receiver.broken)
        link.runs(self._start(self._run(broker, "Feed", link, take)))
        return link

    def nudge(self, broker: Broker) -> None:
        """Tell a broker to look at leadership and membership now. May get lost: polls find out, too."""
        self._start(self._nudge(broker))

    async def close(self) -> None:
        """End all links; nobody is told."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, broker: Broker, method: str, link: "_Link[Any]", take: Callable[[Any], None]) -> None:
        try:
            async with self._channel(broker.peer_address) as channel:
                call = getattr(peers_pb2_grpc.PeersStub(channel), method)(metadata=self._metadata(broker))
                try:
                    async with asyncio.timeout(self._settings.peer_timeout_ms / 1000):
                        await call.wait_for_connection()
                    await link.duplex.run(call, take)
                finally:
                    call.cancel()
        except Exception as error:  # noqa: BLE001 - whatever broke the link, the broker asks again on another
            _log.info("peer_link_broken", broker_id=broker.broker_id, method=method, problem=_problem(error))
        except asyncio.CancelledError:
            # gRPC raises this, too, for a call that was cancelled under it; only our own cancelling is silent.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        link.broke()

    async def _nudge(self, broker: Broker) -> None:
        try:
            async with self._channel(broker.peer_address) as channel:
                call = peers_pb2_grpc.PeersStub(channel).Nudge
                await call(peers_pb2.NudgeRequest(), metadata=self._metadata(broker), timeout=self._settings.peer_timeout_ms / 1000)
        except Exception as error:  # noqa: BLE001 - a nudge may get lost
            _log.info("nudge_lost", broker_id=broker.broker_id, problem=_problem(error))

    def _metadata(self, target: Broker) -> tuple[tuple[str, str], ...]:
        sender = self._sender()
        member = sender.member()
        said = [
            (CLUSTER, sender.cluster_id()),
            (FROM_EPOCH, "" if member is None else str(member.broker_epoch)),
            (TO_EPOCH, str(target.broker_epoch)),
        ]
        if self._settings.peer_token:
            said.append((PEER_TOKEN, self._settings.peer_token))
        return tuple(said)

    @asynccontextmanager
    async def _channel(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        """Share one channel per address among the links that are open; the last one closes it."""
        channel, users = self._channels.get(address) or (self._new_channel(address), 0)
        self._channels[address] = (channel, users + 1)
        try:
            yield channel
        finally:
            channel, users = self._channels.pop(address)
            if users > 1:
                self._channels[address] = (channel, users - 1)
            else:
                await channel.close()

    def _new_channel(self, address: str) -> grpc.aio.Channel:
        half_timeout_ms = max(1, self._settings.peer_timeout_ms // 2)
        options: list[tuple[str, int | str]] = [
            ("grpc.keepalive_time_ms", half_timeout_ms),  # a half-open link is broken after peer_timeout_ms
            ("grpc.keepalive_timeout_ms", half_timeout_ms),
            ("grpc.http2.ping_timeout_ms", half_timeout_ms),  # which is what really counts; a minute, by default
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_receive_message_length", self._settings.max_message_bytes),
            ("grpc.use_local_subchannel_pool", 1),  # a new channel means a new connection, never another's broken one
            ("grpc.enable_http_proxy", 0),
        ]
        credentials = channel_credentials(self._settings)
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        if self._settings.tls_peer_name:
            options.append(("grpc.ssl_target_name_override", self._settings.tls_peer_name))
        return grpc.aio.secure_channel(address, credentials, options=options)


class _Link(Generic[Item]):
    """This broker's end of a stream to another one."""

    def __init__(self, duplex: Duplex[Item], broken: Callable[[], None]) -> None:
        self.duplex = duplex
        self._broken = broken
        self._task: asyncio.Task[None] | None = None
        self.closed = False

    def runs(self, task: asyncio.Task[None]) -> None:
        """Say which task serves the link."""
        self._task = task

    def send(self, items: Sequence[Item]) -> None:
        """Send, in order; never blocks."""
        self.duplex.send(items)

    def close(self) -> None:
        """End the link; nobody is told."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()

    def broke(self) -> None:
        """Tell whoever uses the link, once, unless it was they who closed it."""
        if not self.closed:
            self.closed = True
            self.duplex.end()
            self._broken()


class _Feed(_Link[tuple[bool, tuple[int, ...]]]):
    def follow(self, partition_ids: Sequence[int]) -> None:
        """Ask for news of these partitions, too."""
        self.send([(True, tuple(partition_ids))])

    def unfollow(self, partition_ids: Sequence[int]) -> None:
        """Ask for no more news of these partitions."""
        self.send([(False, tuple(partition_ids))])


def _problem(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
