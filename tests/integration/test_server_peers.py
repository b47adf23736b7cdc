"""Links between brokers, over real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trustme
from tidelog.broker.references import (
    Accepted,
    Answer,
    AppendReference,
    CommittedExtents,
    ProducerSequence,
    Reference,
    RefusedAppend,
    Unknown,
)
from tidelog.config import Settings
from tidelog.metadata.extents import Extent
from tidelog.metadata.membership import Broker
from tidelog.server.peers import GrpcPeers

from tests.listed_broker import ListedBroker
from tests.served import Served, serving

APPENDS = (
    AppendReference(64, 100, 3, 1000, ProducerSequence(42, 1, 2**31 - 1, 1), 17, "token"),
    AppendReference(164, 1, 1, 5),
)
EXTENT = Extent(9, 0, 10, 3, 4, 64, 100, 10, 0, 1000, 2000, 5)


def reference(number: int) -> Reference:
    return Reference(9, 3, number, 5, number, 0, 4, number - 1, APPENDS)


class Receiver:
    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.news: list[CommittedExtents] = []
        self.breaks = 0
        self.told = asyncio.Event()
        self.is_broken = asyncio.Event()

    def answered(self, answers: Sequence[Answer]) -> None:
        self.answers += answers
        self.told.set()

    def committed(self, news: CommittedExtents) -> None:
        self.news.append(news)
        self.told.set()

    def broken(self) -> None:
        self.breaks += 1
        self.is_broken.set()


@asynccontextmanager
async def peers(**settings: Any) -> AsyncIterator[GrpcPeers]:
    sender = ListedBroker(broker_epoch=3)
    found = GrpcPeers(Settings.model_validate({"peer_timeout_ms": 1000} | settings), sender=lambda: sender)
    try:
        yield found
    finally:
        await found.close()


def target(served: Served) -> Broker:
    return replace(served.broker.member(), peer_address=served.server.address)


async def wait_for(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_references_arrive_in_order_and_unchanged_and_answers_come_back(served: Served) -> None:
    async with peers() as links:
        receiver = Receiver()
        link = links.references(target(served), receiver)
        for first in range(0, 5000, 10):
            link.send([reference(number) for number in range(first, first + 10)])
        await wait_for(lambda: served.broker.sessions and len(served.broker.sessions[0].references) == 5000)
        (session,) = served.broker.sessions
        assert session.references == [reference(number) for number in range(5000)]
        assert session.writer_epoch == 3
        answers = [
            Answer(9, 3, 5, 0, (Accepted(5, 8, 5, duplicate=True), RefusedAppend("CONDITION_FAILED", "no"), Unknown("who knows"))),
            Answer(9, 3, 5, 1, None),
            Answer(9, 3, 5, 2, ()),
        ]
        session.receiver.answered(answers)  # type: ignore[union-attr]
        await wait_for(lambda: len(receiver.answers) == 3)
        assert receiver.answers == answers
        link.close()
        await session.closed.wait()
        assert receiver.breaks == 0


async def test_news_of_followed_partitions_come_back(served: Served) -> None:
    async with peers() as links:
        receiver = Receiver()
        feed = links.feed(target(served), receiver)
        feed.follow([1, 2, 3])
        feed.unfollow([2])
        await wait_for(lambda: served.broker.sessions and served.broker.sessions[0].followed == {1, 3})
        news = CommittedExtents(9, (EXTENT, replace(EXTENT, base_offset=10)), 20, 0)
        served.broker.sessions[0].receiver.committed(news)  # type: ignore[union-attr]
        await receiver.told.wait()
        assert receiver.news == [news]
        feed.close()


async def test_a_nudge_arrives(served: Served) -> None:
    async with peers() as links:
        links.nudge(target(served))
        await asyncio.wait_for(served.broker.nudged.wait(), 10)


async def test_a_link_breaks_once_when_the_leader_goes(served: Served) -> None:
    async with peers() as links:
        receiver = Receiver()
        links.references(target(served), receiver)
        await wait_for(lambda: served.broker.sessions)
        await served.server.stop()
        await asyncio.wait_for(receiver.is_broken.wait(), 10)
        assert receiver.breaks == 1
        await served.broker.sessions[0].closed.wait()


async def test_a_link_to_nobody_breaks() -> None:
    async with serving() as gone:
        there = target(gone)
    async with peers() as links:
        receiver = Receiver()
        links.references(there, receiver).send([reference(0)])
        await asyncio.wait_for(receiver.is_broken.wait(), 10)
        assert receiver.breaks == 1


async def test_a_link_to_a_process_that_never_answers_breaks_in_time() -> None:
    with socket.socket() as silent:  # connections are made, and nothing is ever said on them
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with peers(peer_timeout_ms=300) as links:
            receiver = Receiver()
            links.feed(replace(ListedBroker().member(), peer_address=f"127.0.0.1:{silent.getsockname()[1]}"), receiver)
            await asyncio.wait_for(receiver.is_broken.wait(), 5)


async def test_a_broker_that_restarted_refuses_links_to_its_past(served: Served) -> None:
    async with peers() as links:
        receiver = Receiver()
        links.references(replace(target(served), broker_epoch=6), receiver).send([reference(0)])
        await asyncio.wait_for(receiver.is_broken.wait(), 10)
        assert not served.broker.sessions


async def test_a_wrong_peer_token_is_refused_and_the_right_one_is_let_in() -> None:
    async with serving(peer_token="right") as served:
        for token in ("wrong", ""):
            async with peers(peer_token=token) as links:
                receiver = Receiver()
                links.references(target(served), receiver)
                await asyncio.wait_for(receiver.is_broken.wait(), 10)
        assert not served.broker.sessions
        async with peers(peer_token="right") as links:
            links.references(target(served), Receiver())
            await wait_for(lambda: served.broker.sessions)


async def test_beyond_its_limit_a_link_is_broken_on_purpose(served: Served) -> None:
    async with peers(max_pending_references=100) as links:
        receiver = Receiver()
        link = links.references(target(served), receiver)
        link.send([reference(number) for number in range(101)])
        await asyncio.wait_for(receiver.is_broken.wait(), 10)
        link.send([reference(0)])
        assert receiver.breaks == 1


async def test_a_broker_may_be_known_by_another_name_than_its_address(tmp_path: Path) -> None:
    """On Kubernetes brokers call each other by pods' addresses, which no certificate bears."""
    authority = trustme.CA()
    issued = authority.issue_cert("logs.default.svc")
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    settings: dict[str, Any] = {"tls_certificate_file": cert, "tls_key_file": key, "tls_ca_file": ca}
    async with serving(**settings) as served:
        for name, known in (("logs.default.svc", True), ("", False), ("other.default.svc", False)):
            async with peers(tls_peer_name=name, **settings) as links:
                receiver = Receiver()
                link = links.references(target(served), receiver)
                link.send([reference(0)])
                if known:
                    await wait_for(lambda: served.broker.sessions and served.broker.sessions[0].references)
                    link.close()
                else:
                    await asyncio.wait_for(receiver.is_broken.wait(), 10)
