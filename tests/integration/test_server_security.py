"""Who is let in: tokens, certificates, listeners; and health, reflection and limits, over real sockets."""

import asyncio
import datetime
import hashlib
import logging
import os
import resource
import socket
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tidelog.config import Settings
from tidelog.errors import InvalidSettings, TidelogError
from tidelog.metadata.topics import TopicConfig
from tidelog.proto.v1 import admin_pb2, log_pb2
from tidelog.server.descriptors import connections_that_fit, raise_limit
from tidelog.server.security import check_listener, is_loopback
from tidelog.server.tls import channel_credentials
from tidelog.telemetry import LogLevel, configure

from tests.listed_broker import ListedBroker
from tests.served import Served, batch, error_info, serving

TOKENS = f"""
tokens:
  - name: etl
    sha256: {hashlib.sha256(b"etl-token").hexdigest()}
    read: ["clicks"]
    write: ["clicks.raw"]
  - name: boss
    token: boss-token
    admin: [""]
"""


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def append(topic: str) -> log_pb2.AppendRequest:
    return log_pb2.AppendRequest(topic=topic, partition=0, records=[log_pb2.Record(value=b"v")])


def read(topic: str) -> log_pb2.ReadRequest:
    return log_pb2.ReadRequest(partition=log_pb2.TopicPartition(topic=topic))


async def reason_of(call: Awaitable[Any]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        reason: str = error_info(error).reason
        return reason
    return "OK"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.yaml"
    file.write_text(TOKENS)
    return file


async def cluster() -> ListedBroker:
    broker = ListedBroker()
    for name in ("clicks", "clicks.raw", "secret"):
        await broker.create_topic(name, partitions=1, config=TopicConfig())
    return broker


# ---- tokens


async def test_without_a_known_token_nobody_is_let_in(tokens: Path) -> None:
    async with serving(await cluster(), tokens_file=str(tokens)) as served:
        for metadata in ((), bearer("wrong"), bearer(""), (("authorization", "Basic etl-token"),)):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await served.log.Read(read("clicks"), metadata=metadata)
            assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert error_info(failed.value).reason == "UNAUTHENTICATED"


async def test_a_token_opens_what_its_prefixes_say(tokens: Path) -> None:
    async with serving(await cluster(), tokens_file=str(tokens)) as served:
        etl = bearer("etl-token")
        assert await reason_of(served.log.Read(read("clicks"), metadata=etl)) == "OK"
        assert await reason_of(served.log.Read(read("clicks.raw"), metadata=etl)) == "OK"
        assert await reason_of(served.log.Append(append("clicks.raw"), metadata=etl)) == "OK"
        assert await reason_of(served.log.Append(append("clicks"), metadata=etl)) == "PERMISSION_DENIED"
        assert await reason_of(served.admin.DeleteTopic(admin_pb2.DeleteTopicRequest(name="clicks"), metadata=etl)) == "PERMISSION_DENIED"
        assert await reason_of(served.admin.DrainBroker(admin_pb2.DrainBrokerRequest(), metadata=etl)) == "PERMISSION_DENIED"
        assert await reason_of(served.admin.DrainBroker(admin_pb2.DrainBrokerRequest(), metadata=bearer("boss-token"))) == "OK"
        shown = await served.log.GetMetadata(log_pb2.GetMetadataRequest(), metadata=etl)
        assert [topic.name for topic in shown.topics] == ["clicks", "clicks.raw"]


async def test_a_refusal_says_nothing_of_what_exists(tokens: Path) -> None:
    async with serving(await cluster(), tokens_file=str(tokens)) as served:
        etl = bearer("etl-token")
        texts = []
        for topic in ("secret", "absent"):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await served.log.Read(read(topic), metadata=etl)
            texts.append((failed.value.details() or "").replace(topic, "TOPIC"))
            assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED
        names = ["secret", "absent"]
        metadata = await served.log.GetMetadata(log_pb2.GetMetadataRequest(topics=names), metadata=etl)
        described = await served.admin.DescribeTopics(admin_pb2.DescribeTopicsRequest(names=names), metadata=etl)
        assert [topic.error.reason for topic in (*metadata.topics, *described.topics)] == ["PERMISSION_DENIED"] * 4
        assert texts[0] == texts[1]


async def test_streams_refuse_what_the_token_does_not_open_and_go_on(tokens: Path) -> None:
    async with serving(await cluster(), tokens_file=str(tokens)) as served:
        call = served.log.Produce(metadata=bearer("etl-token"))
        appends = [log_pb2.ProduceAppend(request_id=n, topic=t, batches=batch(b"v")) for n, t in enumerate(("secret", "clicks.raw"))]
        await call.write(log_pb2.ProduceRequest(appends=appends))
        await call.done_writing()
        results = {result.request_id: result.error.reason async for response in call for result in response.results}
        assert results == {0: "PERMISSION_DENIED", 1: ""}


async def test_changed_tokens_are_taken_and_a_malformed_file_keeps_the_last_good_ones(tokens: Path) -> None:
    async with serving(await cluster(), tokens_file=str(tokens)) as served:

        async def until(token: str, reason: str) -> None:
            async with asyncio.timeout(10):
                while await reason_of(served.log.Read(read("clicks"), metadata=bearer(token))) != reason:
                    await asyncio.sleep(0.05)

        await until("etl-token", "OK")
        tokens.write_text("tokens: [{name: new, token: new-token, read: ['']}]")
        await until("new-token", "OK")
        await until("etl-token", "UNAUTHENTICATED")
        tokens.write_text("tokens: [{name: new, tokn: oops}]")
        await asyncio.sleep(1.2)  # longer than files are not looked at
        assert await reason_of(served.log.Read(read("clicks"), metadata=bearer("new-token"))) == "OK"


@pytest.mark.parametrize(
    "text",
    ["", "tokens: 3", "tokens: [{name: a}]", "tokens: [{name: a, token: b, sha256: c}]", "]", "tokens: [{name: a, token: s3cret, x: 1}]"],
)
async def test_a_tokens_file_that_cannot_be_used_at_the_start_is_refused_without_showing_tokens(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text(text)
    with pytest.raises(InvalidSettings) as refused:
        async with serving(tokens_file=str(file)):
            pass
    assert "s3cret" not in str(refused.value)


# ---- TLS


class Certificates:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(directory / "ca.pem")
        self.renew()

    def renew(self, authority: trustme.CA | None = None, **more: Any) -> None:
        issued = (authority or self.authority).issue_cert("localhost", "127.0.0.1", **more)
        for name, text in (
            ("cert.pem", b"".join(part.bytes() for part in issued.cert_chain_pems)),
            ("key.pem", issued.private_key_pem.bytes()),
        ):
            new = self.directory / f"{name}.new"
            new.write_bytes(text)
            os.replace(new, self.directory / name)

    @property
    def settings(self) -> dict[str, Any]:
        return {"tls_certificate_file": str(self.directory / "cert.pem"), "tls_key_file": str(self.directory / "key.pem")}

    def trusting(self, authority: trustme.CA | None = None) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials((authority or self.authority).cert_pem.bytes())


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def answers(served: Served) -> bool:
    try:
        await served.log.InitProducer(log_pb2.InitProducerRequest(), timeout=2)
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise
        return False
    return True


async def test_tls_serves_who_trusts_the_authority_and_no_one_in_plaintext(certificates: Certificates) -> None:
    async with serving(credentials=certificates.trusting(), **certificates.settings) as served:
        assert await answers(served)
        async with grpc.aio.insecure_channel(served.server.address) as plaintext:
            assert not await answers(Served(served.broker, served.server, plaintext, served.registry, served.health))
    async with serving(credentials=certificates.trusting(trustme.CA()), **certificates.settings) as served:
        assert not await answers(served)


async def test_an_expired_certificate_is_not_accepted(certificates: Certificates) -> None:
    then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificates.renew(not_before=then - datetime.timedelta(days=365), not_after=then)
    async with serving(credentials=certificates.trusting(), **certificates.settings) as served:
        assert not await answers(served)


async def test_mutual_tls_wants_a_certificate_of_the_clients_authority(certificates: Certificates) -> None:
    settings = certificates.settings | {"tls_client_ca_file": str(certificates.directory / "ca.pem")}
    async with serving(credentials=certificates.trusting(), **settings) as served:
        assert not await answers(served)
    for authority, welcome in ((certificates.authority, True), (trustme.CA(), False)):
        issued = authority.issue_cert("client")
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        mutual = grpc.ssl_channel_credentials(certificates.authority.cert_pem.bytes(), issued.private_key_pem.bytes(), chain)
        async with serving(credentials=mutual, **settings) as served:
            assert await answers(served) is welcome


async def test_a_renewed_certificate_is_shown_and_a_broken_one_is_not(certificates: Certificates) -> None:
    async with serving(credentials=certificates.trusting(), **certificates.settings) as served:
        assert await answers(served)
        other = trustme.CA()

        async def shows(authority: trustme.CA) -> bool:
            port = served.server.address.rpartition(":")[2]
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.secure_channel(f"localhost:{port}", certificates.trusting(authority), options=options) as channel:
                return await answers(Served(served.broker, served.server, channel, served.registry, served.health))

        certificates.renew(other)
        async with asyncio.timeout(20):
            while not await shows(other):
                await asyncio.sleep(0.1)
        (certificates.directory / "key.pem").write_text("nonsense")
        await asyncio.sleep(1.2)  # longer than files are not looked at
        assert await shows(other)


async def test_a_renewed_authority_of_clients_lets_in_its_own_and_no_others(certificates: Certificates) -> None:
    settings = certificates.settings | {"tls_client_ca_file": str(certificates.directory / "ca.pem")}
    old, new = certificates.authority, trustme.CA()

    async def welcome(served: Served, authority: trustme.CA) -> bool:
        issued = authority.issue_cert("client")
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        mutual = grpc.ssl_channel_credentials(old.cert_pem.bytes(), issued.private_key_pem.bytes(), chain)
        port = served.server.address.rpartition(":")[2]
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(f"localhost:{port}", mutual, options=options) as channel:
            return await answers(Served(served.broker, served.server, channel, served.registry, served.health))

    async with serving(credentials=certificates.trusting(), **settings) as served:
        assert (await welcome(served, old), await welcome(served, new)) == (True, False)
        new.cert_pem.write_to_path(certificates.directory / "ca.pem")
        async with asyncio.timeout(30):
            while not await welcome(served, new):
                await asyncio.sleep(0.1)
        assert not await welcome(served, old)


@pytest.mark.parametrize("asks_for_certificates", [False, True])
async def test_brokers_reach_each_other_by_an_authority_of_their_own(certificates: Certificates, asks_for_certificates: bool) -> None:
    """Clients with tokens need no certificate, and the brokers' own may be of an authority that no system knows."""
    authority = str(certificates.directory / "ca.pem")
    settings = certificates.settings | ({"tls_client_ca_file": authority} if asks_for_certificates else {"tls_ca_file": authority})
    async with serving(credentials=channel_credentials(Settings.model_validate(settings)), **settings) as served:
        assert await answers(served)
    if not asks_for_certificates:
        async with serving(credentials=channel_credentials(Settings.model_validate(certificates.settings)), **settings) as served:
            assert not await answers(served), "the system does not know it"


@pytest.mark.parametrize("setting", ["tls_client_ca_file", "tls_ca_file"])
@pytest.mark.parametrize("content", [None, "nonsense"])
async def test_authorities_that_cannot_be_used_are_refused_at_the_start(
    certificates: Certificates, setting: str, content: str | None
) -> None:
    file = certificates.directory / "authorities.pem"
    if content is not None:
        file.write_text(content)
    settings: dict[str, Any] = certificates.settings | {setting: str(file)}
    with pytest.raises(InvalidSettings, match=r"authorities\.pem"):
        async with serving(**settings):
            pass


async def test_a_certificate_with_another_ones_key_is_refused_at_the_start(certificates: Certificates) -> None:
    key = certificates.authority.issue_cert("other").private_key_pem
    key.write_to_path(certificates.directory / "key.pem")
    with pytest.raises(InvalidSettings, match="private key"):
        async with serving(**certificates.settings):
            pass


# ---- listeners


@contextmanager
def printed(log_level: LogLevel) -> Iterator[None]:
    """Have telemetry printed as a process does it."""
    root, own = logging.getLogger(), logging.getLogger("tidelog")
    before = root.handlers, root.level, own.level
    configure(log_format="json", log_level=log_level)
    try:
        yield
    finally:
        root.handlers, level, own_level = before
        root.setLevel(level)
        own.setLevel(own_level)
        logging.captureWarnings(capture=False)


def test_loopback_is_told_from_the_rest() -> None:
    assert all(map(is_loopback, ("127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1")))
    assert not any(map(is_loopback, ("0.0.0.0:1", "[::]:1", "host:1", "10.0.0.1:1", ":1")))


def test_a_listener_beyond_loopback_needs_tls_and_authentication_unless_told_otherwise() -> None:
    beyond = Settings(listen="0.0.0.0:0")
    for missing in (beyond, beyond.model_copy(update={"tokens_file": "t"}), beyond.model_copy(update={"tls_certificate_file": "c"})):
        with pytest.raises(InvalidSettings, match="insecure"):
            check_listener(missing)
        check_listener(missing.model_copy(update={"insecure": True}))
    check_listener(beyond.model_copy(update={"tokens_file": "t", "tls_certificate_file": "c"}))
    check_listener(Settings(listen="127.0.0.1:0"))


@pytest.mark.parametrize("log_level", ["info", "error"])
async def test_an_insecure_listener_is_told_of_at_every_start_however_little_is_printed(
    log_level: LogLevel, capsys: pytest.CaptureFixture[str]
) -> None:
    with printed(log_level):
        for _ in range(2):
            async with serving(listen="0.0.0.0:0", insecure=True):
                pass
    told = [line for line in capsys.readouterr().err.splitlines() if "insecure_listener" in line]
    assert len(told) == 2
    assert "TLS" in told[0]
    assert "authentication" in told[0]


async def test_clients_are_never_sent_to_every_address() -> None:
    async with serving(listen="0.0.0.0:0", insecure=True) as served:
        port = served.server.address.rpartition(":")[2]
        assert served.server.advertised == f"{socket.gethostname()}:{port}"
    async with serving(listen="0.0.0.0:0", insecure=True, advertise="balancer:1") as served:
        assert served.server.advertised == "balancer:1"
    async with serving() as served:
        assert served.server.advertised == served.server.address


@pytest.mark.parametrize("setting", ["listen", "metrics_listen"])
async def test_two_servers_do_not_share_a_port(served: Served, setting: str) -> None:
    taken: dict[str, Any] = {setting: served.server.address if setting == "listen" else served.health.address}
    with pytest.raises(InvalidSettings, match="taken"):
        async with serving(**taken):
            pass


# ---- health, reflection, limits, figures


async def test_health_follows_the_broker(served: Served) -> None:
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    states = health_pb2.HealthCheckResponse
    request = health_pb2.HealthCheckRequest(service="tidelog.v1.Log")
    assert (await stub.Check(request)).status == states.SERVING
    messages: Any = health_pb2  # its type information is older than it
    listed = (await stub.List(messages.HealthListRequest())).statuses
    assert {name: state.status for name, state in listed.items()} == dict.fromkeys(
        ("", "tidelog.v1.Log", "tidelog.v1.Admin"), states.SERVING
    )
    watch = stub.Watch(request)
    assert (await watch.read()).status == states.SERVING
    served.broker.problem = "this broker has no lease"
    assert (await watch.read()).status == states.NOT_SERVING
    assert (await stub.Check(request)).status == states.NOT_SERVING
    served.broker.problem = None
    assert (await watch.read()).status == states.SERVING
    watch.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Check(health_pb2.HealthCheckRequest(service="none"))
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_probes_and_metrics_answer_over_http(served: Served) -> None:
    await served.log.InitProducer(log_pb2.InitProducerRequest())
    async with aiohttp.ClientSession(f"http://{served.health.address}") as http:

        async def get(path: str) -> tuple[int, str]:
            async with http.get(path) as response:
                return response.status, await response.text()

        assert (await get("/livez"))[0] == (await get("/readyz"))[0] == 200
        served.broker.problem = "this broker has no lease"
        assert await get("/readyz") == (503, "this broker has no lease\n")
        assert (await get("/livez"))[0] == 200
        status, text = await get("/metrics")
        assert status == 200
        assert 'tidelog_grpc_calls_total{code="OK",method="/tidelog.v1.Log/InitProducer"} 1.0' in text


async def services(served: Served) -> set[str]:
    channel: Any = served.channel  # the stubs know no asyncio
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await call.done_writing()
    return {service.name async for response in call for service in response.list_services_response.service}


async def test_reflection_lists_the_public_services_unless_switched_off(served: Served) -> None:
    assert {"tidelog.v1.Log", "tidelog.v1.Admin", "grpc.health.v1.Health"} <= await services(served)
    assert "tidelog.v1.Peers" not in await services(served)
    async with serving(reflection=False) as other:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await services(other)
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_connections_beyond_the_limit_are_not_served() -> None:
    async with serving(max_connections=2) as served:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(served.server.address, options=options) for _ in range(3)]
        try:
            found = [await answers(Served(served.broker, served.server, channel, served.registry, served.health)) for channel in channels]
            assert found == [True, True, False]
        finally:
            for channel in channels:
                await channel.close()


async def test_calls_beyond_the_limit_of_one_connection_wait_for_those_before_them() -> None:
    async with serving(max_streams_per_connection=2) as served:
        append = log_pb2.ProduceRequest(appends=[log_pb2.ProduceAppend(topic="t", batches=batch(b"v"))])
        open_streams = [served.log.Produce() for _ in range(2)]
        for stream in open_streams:
            await stream.write(append)
            await stream.read()
        third = asyncio.ensure_future(served.log.InitProducer(log_pb2.InitProducerRequest()))
        _, waiting = await asyncio.wait([third], timeout=0.3)
        assert waiting
        open_streams[0].cancel()
        assert (await third).producer_id == 42
        open_streams[1].cancel()


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with serving(handshake_timeout_ms=300) as served:
        host, _, port = served.server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(10):
            while await reader.read(1000):
                pass
        writer.close()


async def test_streams_beyond_the_limit_are_refused_wherever_they_come_from() -> None:
    async with serving(max_streams=2) as served:
        first, second = served.log.Consume(), served.log.Produce()
        while len(served.server.streams) < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await served.log.Produce().read()
        info = error_info(failed.value)
        assert (info.reason, info.metadata["retriable"]) == ("THROTTLED", "true")
        health: Any = health_pb2_grpc.HealthStub(served.channel)
        probes = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for probe in probes:
            assert (await probe.read()).status == health_pb2.HealthCheckResponse.SERVING, "a probe has a place of its own"
        with pytest.raises(grpc.aio.AioRpcError, match="THROTTLED|max_streams"):
            await health.Watch(health_pb2.HealthCheckRequest()).read()
        first.cancel()
        while len(served.server.streams) == 2:
            await asyncio.sleep(0.001)
        again = served.log.Produce()
        await again.write(log_pb2.ProduceRequest(appends=[log_pb2.ProduceAppend(topic="t", batches=batch(b"v"))]))
        assert not (await again.read()).results[0].HasField("error")
        again.cancel()
        second.cancel()


def test_fewer_connections_are_let_in_than_files_may_be_opened() -> None:
    """Else idle clients would take what the stores need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
        assert connections_that_fit(10_000) == 344
        assert connections_that_fit(100) == 100
        raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_call_that_takes_too_long_ends_as_unknown() -> None:
    async with serving(max_append_timeout_ms=50) as served:
        served.broker.hold = True
        assert await reason_of(served.log.Append(append("t"))) == "OUTCOME_UNKNOWN"
        assert not served.broker.held[0][0].cancelled()


def every_error(kind: type[TidelogError] = TidelogError) -> list[type[TidelogError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in every_error(below))]


@pytest.mark.parametrize("kind", every_error())
async def test_every_error_travels_as_its_status_and_error_info(served: Served, kind: type[TidelogError]) -> None:
    extras: dict[str, dict[str, int]] = {
        "CorruptBatch": {"position": 3},
        "UnreadableBatch": {"position": 3},
        "CorruptSegment": {"position": 3},
        "BrokerIdTaken": {"expires_in_ms": 1},
        "OffsetOutOfRange": {"log_start_offset": 4, "high_watermark": 9},
    }
    served.broker.fails = kind("what went wrong", **extras.get(kind.__name__, {}))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await served.log.Append(append("t"))
    assert failed.value.code() is grpc.StatusCode[kind.status]
    info = error_info(failed.value)
    assert info.reason == kind.reason
    assert info.metadata["retriable"] == str(kind.retriable).lower()
    assert "what went wrong" in (failed.value.details() or "")


async def test_a_failure_that_nobody_foresaw_keeps_its_text_to_itself(served: Served) -> None:
    served.broker.fails = RuntimeError("secret of the house")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await served.log.Append(append("t"))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(failed.value.debug_error_string()) + str(failed.value.details())


async def test_topics_are_administered(served: Served) -> None:
    config = admin_pb2.TopicConfig(retention_ms=1000)
    created = await served.admin.CreateTopic(admin_pb2.CreateTopicRequest(name="new", partitions=3, config=config))
    assert ([p.leader for p in created.topic.partitions], created.topic.config.retention_ms) == (["listed"] * 3, 1000)
    altered = await served.admin.AlterTopic(admin_pb2.AlterTopicRequest(name="new", config=admin_pb2.TopicConfig(compact=True)))
    assert (altered.topic.config.retention_ms, altered.topic.config.compact) == (1000, True)
    grown = await served.admin.CreatePartitions(admin_pb2.CreatePartitionsRequest(name="new", partitions=5))
    assert len(grown.topic.partitions) == 5
    served.broker.logs["new"][0].append(batch(b"v"))
    where = log_pb2.TopicPartition(topic="new")
    deleted = await served.admin.DeleteRecords(admin_pb2.DeleteRecordsRequest(partition=where, before_offset=-1))
    assert deleted.log_start_offset == 1
    described = await served.admin.DescribeTopics(admin_pb2.DescribeTopicsRequest(names=["none", "new"]))
    assert [(topic.name, topic.error.reason) for topic in described.topics] == [("none", "UNKNOWN_TOPIC"), ("new", "")]
    assert [topic.name for topic in (await served.admin.DescribeTopics(admin_pb2.DescribeTopicsRequest())).topics] == ["new", "t"]
    found = await served.admin.DescribeCluster(admin_pb2.DescribeClusterRequest())
    assert [(b.broker_id, b.broker_epoch, b.lease_remaining_ms, b.led_partitions) for b in found.brokers] == [("listed", 7, 10_000, 7)]
    await served.admin.DeleteTopic(admin_pb2.DeleteTopicRequest(name="new"))
    assert await reason_of(served.admin.DeleteTopic(admin_pb2.DeleteTopicRequest(name="new"))) == "UNKNOWN_TOPIC"
