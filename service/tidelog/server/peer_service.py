"""The Peers service: a leader's end of the links and feeds that other brokers open."""

from collections.abc import Sequence
from typing import Any

import grpc

from tidelog.broker.references import Answer, CommittedExtents
from tidelog.config import Settings
from tidelog.errors import Fenced
from tidelog.proto.v1 import peers_pb2, peers_pb2_grpc
from tidelog.server import peer_wire
from tidelog.server.duplex import Duplex
from tidelog.server.ports import LogBroker
from tidelog.server.streams import OpenStreams

CLUSTER = "tidelog-cluster"
FROM_EPOCH = "tidelog-from-epoch"
TO_EPOCH = "tidelog-to-epoch"
_Context = grpc.aio.ServicerContext[Any, Any]


class PeersServicer(peers_pb2_grpc.PeersServicer):
    """Answers other brokers. Who calls was checked by the gate; here, whether they mean this broker as it is now."""

    def __init__(self, broker: LogBroker, settings: Settings, *, streams: OpenStreams) -> None:
        self._broker = broker
        self._most_queued = settings.max_pending_references
        self._streams = streams

    async def References(self, _requests: object, context: _Context) -> None:  # noqa: N802 - the contract's names
        """Take references in order, answer as the broker decides."""
        writer_epoch = self._check(context)
        link = _LinkEnd(self._most_queued)
        session = self._broker.references_from(writer_epoch, link)
        try:
            with self._streams.opened(link.duplex.end, by="broker"):
                await link.duplex.run(context, lambda message: session.offer([peer_wire.reference(each) for each in message.references]))
        finally:
            session.close()

    async def Feed(self, _requests: object, context: _Context) -> None:  # noqa: N802
        """Send news of the partitions that the caller follows."""
        self._check(context)
        feed = _FeedEnd(self._most_queued)
        session = self._broker.feed_to(feed)

        def change(message: peers_pb2.FeedRequest) -> None:
            for each in message.changes:
                (session.follow if each.follow else session.unfollow)(list(each.partition_ids))

        try:
            with self._streams.opened(feed.duplex.end, by="broker"):
                await feed.duplex.run(context, change)
        finally:
            session.close()

    async def Nudge(self, _request: object, context: _Context) -> peers_pb2.NudgeResponse:  # noqa: N802
        """Have the broker look at leadership and membership now."""
        self._check(context)
        self._broker.nudge()
        return peers_pb2.NudgeResponse()

    def _check(self, context: _Context) -> int:
        """Return the caller's broker epoch. Raises Fenced where the caller means another cluster, or this broker's past."""
        said = dict(context.invocation_metadata() or ())
        member = self._broker.member()
        here = (self._broker.cluster_id(), "" if member is None else str(member.broker_epoch))
        meant = (str(said.get(CLUSTER, "")), str(said.get(TO_EPOCH, "")))
        epoch = str(said.get(FROM_EPOCH, ""))
        if member is None or meant != here or not (epoch.isdecimal() and epoch.isascii()):
            raise Fenced(
                f"a broker meant epoch {meant[1]} of cluster {meant[0]!r}, but this is epoch {here[1] or 'none'} of {here[0]!r};"
                " it will find the new one among the members"
            )
        return int(epoch)


class _LinkEnd:
    """Where the broker's answers go."""

    def __init__(self, most_queued: int) -> None:
        self.duplex: Duplex[Answer] = Duplex(
            most_queued=most_queued, message=peer_wire.answers_message, weight=lambda answer: len(answer.outcomes or ()) + 1
        )

    def answered(self, answers: Sequence[Answer]) -> None:
        """Take answers."""
        self.duplex.send(answers)

    def broken(self) -> None:
        """End the link from this side."""
        self.duplex.end()


class _FeedEnd:
    """Where the broker's news go."""

    def __init__(self, most_queued: int) -> None:
        self.duplex: Duplex[CommittedExtents] = Duplex(
            most_queued=most_queued, message=peer_wire.all_news_message, weight=lambda news: len(news.extents) + 1
        )

    def committed(self, news: CommittedExtents) -> None:
        """Take news."""
        self.duplex.send([news])
