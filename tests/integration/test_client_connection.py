"""How a client finds its brokers, and what it says where it cannot."""

import asyncio
import datetime
import random
import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import tidelog
import trustme
from tidelog.client.connection import Broker, Brokers, Credentials
from tidelog.errors import Draining, InvalidRequest, NotReady, PermissionDenied, RecordTooLarge, TidelogError, Unauthenticated

from tests import virtual_time
from tests.fake_broker import OK, draining, running_cluster
from tests.virtual_time import VirtualClock

T = TypeVar("T")


async def soon(work: Awaitable[T]) -> T:
    """What must come, but not how soon."""
    return await asyncio.wait_for(work, 30)


def nobody() -> str:
    """An address at which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


async def topics(address: str, **how: Any) -> list[str]:
    async with tidelog.connect(address, **how) as log:
        return await log.admin.list_topics()


# ---- addresses


async def test_any_of_several_addresses_is_enough() -> None:
    async with running_cluster() as cluster:
        cluster.topics["t"] = 1
        servers = [nobody(), nobody(), cluster.brokers[0].address]
        assert await soon(topics(", ".join(servers))) == ["t"]
        async with tidelog.connect(servers) as log:
            assert await soon(log.admin.list_topics()) == ["t"]


async def test_brokers_that_were_told_of_are_used_when_the_one_that_was_given_goes() -> None:
    async with running_cluster("", "") as cluster:
        cluster.topics["t"] = 1
        async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
            await soon(producer.send("t", b"a"))
            await cluster.brokers[0].stop()
            await soon(producer.send("t", b"b"))
        assert cluster.values("t") == [b"a", b"b"]


async def test_members_that_have_left_are_forgotten_with_their_connections() -> None:
    async with running_cluster("", "", "") as cluster, tidelog.connect(cluster.brokers[0].address) as log:
        assert len(log._brokers._known) == 3
        gone = cluster.brokers.pop()
        await log.admin.list_topics()
        assert gone.address not in log._brokers._known
        cluster.brokers.append(gone)
        await log.admin.list_topics()
        assert gone.address in log._brokers._known


async def test_a_connection_that_is_left_is_closed_once_its_calls_have_ended() -> None:
    """Else each drained broker costs a client a connection, for as long as it lives."""
    async with running_cluster("", "") as cluster:
        cluster.topics["t"] = 1
        async with tidelog.connect(cluster.brokers[0].address) as log, log.producer() as producer:
            await soon(producer.send("t", b"a"))
            fates = [draining()]
            for broker in cluster.brokers:
                broker.fate = lambda append: fates.pop() if fates else OK
            await soon(producer.send("t", b"b"))
            async with asyncio.timeout(10):
                while any(broker.is_leaving for broker in log._brokers._known.values()):
                    await asyncio.sleep(0.01)
        assert cluster.values("t") == [b"a", b"b"]


async def test_a_connection_that_is_left_by_one_serves_the_others_to_their_end() -> None:
    """The producer is told that the broker drains; the consumer reads on, on the very stream that it had."""
    async with running_cluster() as cluster:
        (broker,) = cluster.brokers
        cluster.topics["t"] = 1
        async with tidelog.connect(broker.address) as log, log.producer(linger_ms=0) as producer:
            reading = log.consume("t").batches()
            for turn in range(5):
                fates = [draining()]
                broker.fate = lambda append, fates=fates: fates.pop() if fates else OK  # type: ignore[misc]
                await soon(producer.send("t", b"%d" % turn))
                assert (await soon(anext(reading))).values == [b"%d" % turn]
            assert (broker.consume_streams, broker.produce_streams) == (1, 6)
            (known,) = log._brokers._known.values()
            assert known.is_leaving, "the consumer is on the first connection"
            await reading.aclose()
            async with asyncio.timeout(10):
                while known.is_leaving:
                    await asyncio.sleep(0.01)


async def test_many_who_look_for_a_broker_at_once_all_find_it_when_it_comes() -> None:
    """They share what there is of connections, and none closes another's."""
    async with running_cluster() as cluster:
        (broker,) = cluster.brokers
        cluster.topics["t"] = 1
        async with tidelog.connect(broker.address) as log:
            port = int(broker.address.rpartition(":")[2])
            await broker.stop()
            waiting = [asyncio.ensure_future(log.admin.list_topics()) for _ in range(20)]
            await asyncio.sleep(0.5)
            await broker.start(port=port)
            assert await soon(asyncio.gather(*waiting)) == [["t"]] * 20


async def test_a_call_that_a_leaving_broker_refuses_is_made_on_another() -> None:
    async with running_cluster("", "") as cluster:
        first, _ = cluster.brokers
        cluster.topics["t"] = 1
        async with tidelog.connect(first.address, call_timeout_ms=10_000) as log:
            first.metadata_fails = Draining("about to leave")
            assert await soon(log.admin.list_topics()) == ["t"]


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_call_has_what_finding_a_broker_left_of_its_time(repeatable: bool) -> None:
    given: list[float] = []

    class Found(Broker):
        async def unary(self, method: object, request: object, *, timeout_s: float) -> Any:
            given.append(timeout_s)

    class SlowToFind(Brokers):
        async def connected(self) -> Broker:
            await asyncio.sleep(0.75)
            return Found("a:1", Credentials(), given=True, order=0)

    async def main() -> None:
        brokers = SlowToFind(["a:1"], credentials=Credentials(), zone=None, call_timeout_s=1, clock=VirtualClock(), chance=random.Random(1))
        await brokers.call(lambda broker: broker.unary, None, repeatable=repeatable)

    virtual_time.run(main)
    assert given == [0.25]


@pytest.mark.parametrize("servers", ["", ",", [], "a:b", "host:0", "host:70000", ":1", "::1:9595"])
def test_what_is_no_address_is_refused(servers: Any) -> None:
    with pytest.raises(InvalidRequest):
        tidelog.connect(servers)


def test_addresses_are_read_as_they_are_written() -> None:
    from tidelog.client.client import addresses

    assert addresses("a, b:1 ,[::1]:2,[::1]") == ["a:9595", "b:1", "[::1]:2", "[::1]:9595"]
    assert addresses(["a", "a:9595", "b"]) == ["a:9595", "b:9595"]


# ---- event loops, and the end


def test_a_cluster_may_be_made_before_any_event_loop_runs(tidelog_service: str) -> None:
    async def use(log: tidelog.Log) -> None:
        async with log:
            await log.admin.list_topics()

    for _ in range(2):
        asyncio.run(use(tidelog.connect(tidelog_service)))


async def test_the_end_of_a_cluster_sends_what_its_producers_hold_and_nothing_works_afterwards(tidelog_service: str) -> None:
    async with tidelog.connect(tidelog_service) as log:
        producer = await log.producer(linger_ms=60_000).__aenter__()
        future = producer.send_nowait("ends", b"v")
    assert (await soon(future)).offset == 0
    with pytest.raises(InvalidRequest, match="not open"):
        await producer.send("ends", b"w")
    with pytest.raises(InvalidRequest, match="connect again"):
        await log.admin.list_topics()


async def test_a_message_that_no_broker_takes_is_too_large_and_not_tried_again(tidelog_service: str) -> None:
    async with tidelog.connect(tidelog_service) as log:
        with pytest.raises(RecordTooLarge, match="send less"):
            await soon(log.admin.describe_topics(["x" * 1000] * 20_000))


# ---- who calls


@pytest.mark.parametrize("token", [" b", "\n", "é"])
def test_a_token_that_cannot_travel_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(InvalidRequest, match="token") as refused:
        tidelog.connect("localhost", token=f"hunter2{token}")
    assert "hunter2" not in str(refused.value)


async def test_a_wrong_token_is_told_at_once_and_a_right_one_opens_its_scope(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text("tokens: [{name: a, token: right, read: [open], write: [open]}]")
    with tidelog.embedded(tokens_file=str(file)) as address:
        for token in (None, "wrong"):
            with pytest.raises(Unauthenticated, match="token"):
                await soon(topics(address, token=token))
        async with tidelog.connect(address, token="right") as log, log.producer() as producer:
            await soon(producer.send("open", b"v"))
            for secret in ("secret", "absent"):
                with pytest.raises(PermissionDenied, match=secret):
                    await soon(producer.send(secret, b"v"))
                with pytest.raises(PermissionDenied, match=secret):
                    _ = [record async for record in log.consume(secret, follow=False)]
            assert [record.value async for record in log.consume("open", follow=False)] == [b"v"]


# ---- TLS


class Authority:
    """An authority, its certificates as files, and a service with one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = self.folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.issue("good")
        long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        self.issue("expired", not_before=long_ago - datetime.timedelta(days=300), not_after=long_ago)

    def issue(self, name: str, **more: Any) -> None:
        issued = self.authority.issue_cert("localhost", "127.0.0.1", **more)
        (self.folder / f"{name}.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(self.folder / f"{name}.key")

    def listener(self, name: str = "good") -> dict[str, Any]:
        return {"tls_certificate_file": str(self.folder / f"{name}.pem"), "tls_key_file": str(self.folder / f"{name}.key")}

    def client(self, name: str) -> dict[str, Any]:
        return {"cert": self.folder / f"{name}.pem", "key": self.folder / f"{name}.key"}


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(_made(tmp_path / "ours"))


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(_made(tmp_path / "theirs"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def refusal(address: str, **how: Any) -> str:
    with pytest.raises(TidelogError) as refused:
        async with asyncio.timeout(20):
            await topics(address, **how)
    assert isinstance(refused.value, Unauthenticated), "no waiting helps, so there is none"
    assert address in str(refused.value)
    return str(refused.value)


async def test_plaintext_on_a_port_that_speaks_tls_is_told_so(ours: Authority) -> None:
    with tidelog.embedded(**ours.listener()) as address:
        assert "it speaks TLS, but was called in plaintext: give `ca`" in await refusal(address)
        assert await topics(address, ca=ours.ca) == []


async def test_tls_on_a_port_that_speaks_plaintext_is_told_so(ours: Authority, tidelog_service: str) -> None:
    assert "it speaks plaintext, but was called with TLS" in await refusal(tidelog_service, ca=ours.ca)


async def test_a_certificate_that_is_not_accepted_is_told_with_what_is_wrong_with_it(ours: Authority, theirs: Authority) -> None:
    with tidelog.embedded(**ours.listener()) as address:
        for how in ({"ca": theirs.ca}, {"tls": True}):
            assert "unable to get local issuer certificate: name its authority" in await refusal(address, **how)
    with tidelog.embedded(**ours.listener("expired")) as address:
        assert "certificate has expired" in await refusal(address, ca=ours.ca)


async def test_a_client_without_the_certificate_that_is_asked_for_is_told_so(ours: Authority, theirs: Authority) -> None:
    with tidelog.embedded(**ours.listener(), tls_client_ca_file=str(ours.ca)) as address:
        for how in ({}, theirs.client("good"), ours.client("expired")):
            assert "it asks for a client certificate" in await refusal(address, ca=ours.ca, **how)
        assert await topics(address, ca=ours.ca, **ours.client("good")) == []


async def test_what_is_no_broker_is_told_when_the_time_is_over(ours: Authority) -> None:
    async def shrug(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(shrug, "127.0.0.1", 0) as other:
        address = f"127.0.0.1:{other.sockets[0].getsockname()[1]}"
        with pytest.raises(NotReady, match="what answers there is no broker"):
            await topics(address, call_timeout_ms=1000)


async def test_a_broker_whose_certificate_expires_later_is_waited_for(ours: Authority) -> None:
    """It was reached before: somebody renews the certificate, and nothing that runs has to be started anew."""
    with tidelog.embedded(**ours.listener()) as address:
        async with tidelog.connect(address, ca=ours.ca, call_timeout_ms=20_000) as log:
            ours.issue("kept")
            for name in ("pem", "key"):
                (ours.folder / f"good.{name}").write_bytes((ours.folder / f"expired.{name}").read_bytes())
            await asyncio.sleep(1.2)  # longer than files are not looked at
            for broker in log._brokers._known.values():
                broker.leave()
            waiting = asyncio.ensure_future(log.admin.list_topics())
            await asyncio.sleep(1)
            assert not waiting.done()
            for name in ("pem", "key"):
                (ours.folder / f"good.{name}").write_bytes((ours.folder / f"kept.{name}").read_bytes())
            assert await soon(waiting) == []


@pytest.mark.parametrize("wrong", ["ca", "cert", "key"])
def test_files_that_are_not_what_they_should_be_are_refused_before_anything_is_called(ours: Authority, wrong: str) -> None:
    files: dict[str, Any] = {"ca": ours.ca, **ours.client("good")}
    files[wrong] = ours.folder / "nonsense"
    files[wrong].write_text("nonsense")
    with pytest.raises(InvalidRequest, match="TLS"):
        tidelog.connect("localhost", **files)


def test_a_certificate_with_another_ones_key_is_refused_before_anything_is_called(ours: Authority, theirs: Authority) -> None:
    with pytest.raises(InvalidRequest, match="the key that belongs to the certificate"):
        tidelog.connect("localhost", ca=ours.ca, cert=ours.client("good")["cert"], key=theirs.client("good")["key"])
