"""The S3 store against a real server behind a proxy that misbehaves: each fault, and the sentence it leads to."""

import asyncio
import gc
import io
import random
import socket
import ssl
import struct
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import trustme
from aiohttp import ClientSession, web
from crc32c import crc32c
from tidelog.clock import SystemClock
from tidelog.errors import InvalidSettings, ObjectExists, StoreOutcomeUnknown, StoreUnavailable, StoreUnusable
from tidelog.objects.s3 import S3Settings, S3Store, open_s3, probe
from tidelog.objects.store import STREAM_PART_BYTES

BODY = web.RequestKey("BODY", bytes)
DROP = web.RequestKey("DROP", tuple)
"""Headers that are not forwarded."""
Rule = Callable[[web.Request, Callable[[], Awaitable[web.Response]]], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def misbehaving(settings: S3Settings, rule: Rule, *, tls: ssl.SSLContext | None = None, **changes: object) -> AsyncIterator[S3Store]:
    """A store whose every request passes `rule`, which may forward it, answer by itself, or break off."""

    async def handle(request: web.Request) -> web.StreamResponse:
        request[BODY] = await request.read()

        async def forward() -> web.Response:
            dropped = request.get(DROP, ())
            passed = {k: v for k, v in request.headers.items() if k.lower() not in dropped}
            url = f"{settings.endpoint_url}{request.raw_path}"
            body = io.BytesIO(request[BODY]) if len(request[BODY]) > 1 << 20 else request[BODY]  # aiohttp warns of large bytes
            async with upstream.request(request.method, url, data=body, headers=passed, skip_auto_headers=["Content-Type"]) as answer:
                content = await answer.read()
                kept = {k: v for k, v in answer.headers.items() if k.lower() not in ("content-length", "transfer-encoding", "connection")}
                if request.method == "HEAD":
                    kept["Content-Length"] = answer.headers.get("Content-Length", "0")
                return web.Response(status=answer.status, body=content, headers=kept)

        return await rule(request, forward)

    async with ClientSession(auto_decompress=False) as upstream:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        port = runner.addresses[0][1]
        patient: dict[str, object] = {"backoff_base_ms": 1, "max_attempts": 3, **changes}
        store = await open_s3(
            replace(settings, endpoint_url=f"{'https' if tls else 'http'}://127.0.0.1:{port}", **patient),  # type: ignore[arg-type]
            clock=SystemClock(),
            chance=random.Random(1),
        )
        try:
            yield store
        finally:
            await store.close()
            await runner.cleanup()


def times(count: int, method: str, fault: Rule) -> Rule:
    """Apply `fault` to the first `count` requests of a method, and forward all others."""
    left = count

    async def rule(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        nonlocal left
        if request.method == method and left > 0:
            left -= 1
            return await fault(request, forward)
        return await forward()

    return rule


def refusing(status: int, code: str) -> Rule:
    async def rule(_request: web.Request, _forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        return web.Response(
            status=status, text=f"<Error><Code>{code}</Code><Message>told so</Message></Error>", content_type="application/xml"
        )

    return rule


async def done_but_cut_off(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    await forward()
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def truncated(_request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    whole = await forward()
    assert isinstance(whole.body, bytes)
    return web.Response(status=whole.status, body=whole.body[:-3], headers=whole.headers)


async def altered(_request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    whole = await forward()
    assert isinstance(whole.body, bytes)
    checksum = b64encode(crc32c(whole.body).to_bytes(4, "big")).decode()
    return web.Response(status=whole.status, body=b"#" + whole.body[1:], headers={**whole.headers, "x-amz-checksum-crc32c": checksum})


async def without_condition(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    request[DROP] = ("if-none-match",)
    return await forward()


async def test_a_storm_of_503_passes(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, times(2, "PUT", refusing(503, "SlowDown"))) as store:
        await store.put_new("k", [b"x"])
        assert await store.get_range("k", 0, 1) == b"x"


async def test_a_storm_that_does_not_pass_leaves_the_write_undone_and_says_so(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, times(99, "PUT", refusing(503, "SlowDown"))) as store:
        with pytest.raises(StoreUnavailable, match=r"PUT of 'k' in s3://.* failed 3 times.*SlowDown.*it was not done: try again later"):
            await store.put_new("k", [b"x"])


async def test_a_write_whose_answer_was_lost_is_found_to_be_done(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, times(1, "PUT", done_but_cut_off)) as store:
        await store.put_new("k", [b"x"])


async def test_a_write_whose_every_answer_is_lost_is_unknown_not_failed(s3_settings: S3Settings) -> None:
    rule = times(99, "PUT", done_but_cut_off)
    async with misbehaving(s3_settings, lambda request, forward: rule(request, forward)) as store:
        with pytest.raises(StoreOutcomeUnknown, match="may have happened, or may happen later: send the same again"):
            await store.put_new("k", [b"x"])
        rule = times(0, "PUT", done_but_cut_off)
        await store.put_new("k", [b"x"])
        with pytest.raises(ObjectExists):
            await store.put_new("k", [b"y"])


async def test_an_internal_error_leaves_a_write_unknown(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, times(3, "PUT", refusing(500, "InternalError"))) as store:
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("k", [b"x"])


@pytest.mark.parametrize("damage", [truncated, altered])
async def test_a_damaged_body_is_read_again_and_then_refused(s3_settings: S3Settings, damage: Rule) -> None:
    async with misbehaving(s3_settings, times(1, "GET", damage)) as store:
        await store.put_new("k", [b"content"])
        assert await store.get_range("k", 0, 100) == b"content"
    async with misbehaving(s3_settings, times(99, "GET", damage)) as store:
        with pytest.raises(StoreUnavailable, match="GET of 'k'"):
            await store.get_range("k", 0, 100)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "BadDigest"),
        (400, "XAmzContentSHA256Mismatch"),
        (400, "IncompleteBody"),
        (400, "RequestTimeout"),
        (503, "SlowDownWrite"),
        (429, "TooManyRequests"),
    ],
)
async def test_what_a_server_says_it_did_not_do_is_tried_again_and_then_undone(s3_settings: S3Settings, status: int, code: str) -> None:
    async with misbehaving(s3_settings, times(2, "PUT", refusing(status, code))) as store:
        await store.put_new("damaged at first", [b"x"])
    async with misbehaving(s3_settings, times(99, "PUT", refusing(status, code))) as store:
        with pytest.raises(StoreUnavailable, match=f"{code}.*it was not done"):
            await store.put_new("k", [b"x"])


async def test_a_bucket_that_keeps_its_promises_passes_the_probe(s3_settings: S3Settings) -> None:
    store = await open_s3(s3_settings, clock=SystemClock(), chance=random.Random(1))
    await probe(store, chance=random.Random(2))
    assert [found async for found in store.list()] == []
    await store.close()


async def test_a_store_that_ignores_conditions_is_refused_at_the_start(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, times(99, "PUT", without_condition)) as store:
        with pytest.raises(StoreUnusable, match=r"accepted a second PUT with If-None-Match.*would lose acknowledged records"):
            await probe(store, chance=random.Random(2))


async def empty_listing(_request: web.Request, _forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    nothing = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    return web.Response(text=nothing, content_type="application/xml")


@pytest.mark.parametrize(
    ("method", "query", "fault", "sentence"),
    [
        ("GET", "list-type", empty_listing, r"listed \[\] below 'probe/.*use a store that lists what is there"),
        ("GET", "list-type", refusing(403, "AccessDenied"), r"LIST of .* was denied \(AccessDenied\)"),
        ("POST", "delete", refusing(403, "AccessDenied"), r"DELETE of .* was denied \(AccessDenied\)"),
        ("GET", "", refusing(416, "InvalidRange"), r"gave \[b'', b'', b''\] for ranges of b'first'; use a store that honours ranges"),
    ],
)
async def test_a_bucket_that_does_not_keep_a_promise_is_refused_at_the_start(
    s3_settings: S3Settings, method: str, query: str, fault: Rule, sentence: str
) -> None:
    async def rule(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        asked = request.method == method and (query in request.query if query else not request.query)
        return await (fault(request, forward) if asked else forward())

    async with misbehaving(s3_settings, rule) as store:
        with pytest.raises(StoreUnusable, match=sentence):
            await probe(store, chance=random.Random(2))


async def test_a_second_write_that_was_accepted_is_told_though_the_probe_cannot_be_removed(s3_settings: S3Settings) -> None:
    async def rule(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        fault = {"PUT": without_condition, "POST": refusing(503, "SlowDown")}.get(request.method)
        return await (fault(request, forward) if fault else forward())

    async with misbehaving(s3_settings, rule) as store:
        with pytest.raises(StoreUnusable, match="accepted a second PUT"):
            await probe(store, chance=random.Random(2))


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (404, "NoSuchBucket", "there is no such bucket; make it, or name another"),
        (403, "AccessDenied", r"denied \(AccessDenied\); check the credentials and their rights"),
        (301, "PermanentRedirect", "the bucket is in another region; set the region"),
        (400, "InvalidArgument", r"refused: InvalidArgument told so \(HTTP 400\)"),
    ],
)
async def test_what_a_person_must_mend_is_said_at_once(s3_settings: S3Settings, status: int, code: str, sentence: str) -> None:
    async with misbehaving(s3_settings, times(99, "PUT", refusing(status, code))) as store:
        with pytest.raises(StoreUnusable, match=sentence):
            await store.put_new("k", [b"x"])


async def test_a_bucket_that_is_missing_is_named(s3_settings: S3Settings) -> None:
    store = await open_s3(replace(s3_settings, bucket="not-made-yet"), clock=SystemClock(), chance=random.Random(1))
    with pytest.raises(StoreUnusable, match=r"s3://not-made-yet/.* there is no such bucket"):
        await store.put_new("k", [b"x"])
    await store.close()


async def test_missing_credentials_are_named(s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    store = await open_s3(s3_settings, clock=SystemClock(), chance=random.Random(1))
    with pytest.raises(StoreUnusable, match="set AWS_ACCESS_KEY_ID"):
        await store.put_new("k", [b"x"])
    await store.close()


async def test_an_endpoint_that_is_down_leaves_writes_undone(s3_settings: S3Settings) -> None:
    settings = replace(s3_settings, endpoint_url="http://127.0.0.1:1", max_attempts=2, backoff_base_ms=1)
    store = await open_s3(settings, clock=SystemClock(), chance=random.Random(1))
    with pytest.raises(StoreUnavailable, match=r"at http://127.0.0.1:1 failed 2 times.*it was not done"):
        await store.put_new("k", [b"x"])
    await store.close()


async def test_a_slow_read_is_hedged_and_the_faster_answer_taken(s3_settings: S3Settings) -> None:
    released = asyncio.Event()

    async def stuck(_request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        await released.wait()
        return await forward()

    slow = times(0, "GET", stuck)

    async def rule(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        return await slow(request, forward)

    async with misbehaving(s3_settings, rule, hedge_after_samples=10) as store:
        await store.put_new("k", [b"x"])
        for _ in range(10):
            await store.get_range("k", 0, 1)
        slow = times(1, "GET", stuck)
        before = store.hedges
        assert await store.get_range("k", 0, 1) == b"x"
        assert store.hedges == before + 1
        released.set()


async def done_but_reset(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    await forward()
    assert request.transport is not None
    # Lingering for no time makes close() send RST: the client sees "connection reset", not an orderly end.
    request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    return web.Response()


def in_turn(method: str, *faults: Rule | None) -> Rule:
    """Apply one fault after the other to the requests of a method, the last one for ever; None forwards."""
    left = list(faults)

    async def rule(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        if request.method != method:
            return await forward()
        fault = left.pop(0) if len(left) > 1 else left[0]
        return await (fault(request, forward) if fault else forward())

    return rule


async def test_a_write_whose_connection_is_reset_after_it_was_sent_is_unknown(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, in_turn("PUT", done_but_reset)) as store:
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("k", [b"x"])
        assert await store.get_range("k", 0, 1) == b"x"


async def test_a_lost_answer_is_not_forgotten_when_the_next_one_says_slow_down(s3_settings: S3Settings) -> None:
    """One attempt of ours must be one request: a resend below us would hide the first one's outcome (I5)."""
    rule = in_turn("PUT", done_but_cut_off, refusing(503, "SlowDown"))
    async with misbehaving(s3_settings, rule, max_attempts=1) as store:
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("k", [b"x"])


async def test_a_lost_answer_is_not_forgotten_when_rights_are_withdrawn(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, in_turn("PUT", done_but_cut_off, refusing(403, "AccessDenied"))) as store:
        with pytest.raises(StoreOutcomeUnknown, match=r"denied \(AccessDenied\).*an attempt before may have happened"):
            await store.put_new("k", [b"x"])


@pytest.mark.parametrize("hindrance", [refusing(503, "SlowDown"), refusing(403, "AccessDenied"), refusing(404, "NoSuchKey")])
async def test_a_taken_key_that_cannot_be_looked_at_leaves_the_write_unknown(s3_settings: S3Settings, hindrance: Rule) -> None:
    async with misbehaving(s3_settings, in_turn("HEAD", hindrance)) as store:
        await store.put_new("k", [b"x"])
        with pytest.raises(StoreOutcomeUnknown, match="the key is taken, and looking at what it holds failed"):
            await store.put_new("k", [b"x"])


async def test_a_conflict_between_two_writers_is_tried_again(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, in_turn("PUT", refusing(409, "ConditionalRequestConflict"), None)) as store:
        await store.put_new("k", [b"x"])
        assert await store.get_range("k", 0, 1) == b"x"


async def test_a_server_that_never_answers_leaves_a_write_unknown(s3_settings: S3Settings) -> None:
    async def silent(_request: web.Request, _forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    async with misbehaving(s3_settings, in_turn("PUT", silent), attempt_timeout_ms=100, max_attempts=2) as store:
        with pytest.raises(StoreOutcomeUnknown, match=r"failed 2 times, at last with no answer within 0\.1 s"):
            await store.put_new("k", [b"x"])


async def test_a_cancelled_caller_does_not_stop_the_write(s3_settings: S3Settings) -> None:
    arrived, released = asyncio.Event(), asyncio.Event()

    async def held(_request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        arrived.set()
        await released.wait()
        return await forward()

    async with misbehaving(s3_settings, in_turn("PUT", held)) as store:
        caller = asyncio.ensure_future(store.put_new("k", [b"x"]))
        await arrived.wait()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        released.set()
    reader = await open_s3(s3_settings, clock=SystemClock(), chance=random.Random(1))
    assert caller.cancelled()
    assert await reader.get_range("k", 0, 1) == b"x"
    await reader.close()


async def test_a_slow_write_is_hedged_with_the_same_key(s3_settings: S3Settings) -> None:
    released = asyncio.Event()

    async def late(_request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        await released.wait()
        return await forward()

    measured = [None] * 10
    async with misbehaving(s3_settings, in_turn("PUT", *measured, late, None), hedge_after_samples=10) as store:
        for number in range(10):
            await store.put_new(f"k{number}", [b"x"])
        await store.put_new("slow", [b"y"])
        assert store.hedges == 1
        assert await store.get_range("slow", 0, 1) == b"y"
        released.set()


async def test_of_a_hedged_write_whose_two_requests_fail_the_worse_outcome_counts(s3_settings: S3Settings) -> None:
    hedged = asyncio.Event()

    async def cut_off_after_the_hedge(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        await hedged.wait()
        return await done_but_cut_off(request, forward)

    async def slow_down(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        hedged.set()
        return await refusing(503, "SlowDown")(request, forward)

    rule = in_turn("PUT", *[None] * 10, cut_off_after_the_hedge, slow_down)
    async with misbehaving(s3_settings, rule, hedge_after_samples=10, max_attempts=1) as store:
        for number in range(10):
            await store.put_new(f"k{number}", [b"x"])
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_new("k", [b"x"])
        assert store.hedges == 1


async def test_a_store_that_answers_a_range_with_everything_is_refused(s3_settings: S3Settings) -> None:
    async def everything(_request: web.Request, _forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        return web.Response(status=200, body=b"the whole object")

    async with misbehaving(s3_settings, in_turn("GET", everything)) as store:
        with pytest.raises(StoreUnusable, match="asked for a range, but all came; use a store that honours ranges"):
            await store.get_range("k", 0, 3)


async def test_keys_that_are_not_deleted_come_back_with_the_reason(s3_settings: S3Settings) -> None:
    async def partly(_request: web.Request, _forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        error = f"<Error><Key>{s3_settings.prefix}/b</Key><Code>AccessDenied</Code><Message>locked</Message></Error>"
        return web.Response(status=200, text=f"<DeleteResult>{error}</DeleteResult>", content_type="application/xml")

    async with misbehaving(s3_settings, in_turn("POST", partly)) as store:
        assert await store.delete_many(["a", "b"]) == {"b": "AccessDenied: locked"}


async def test_a_lost_answer_to_a_delete_is_unknown(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, in_turn("POST", done_but_reset)) as store:
        with pytest.raises(StoreOutcomeUnknown, match="DELETE of 'a and 1 more'"):
            await store.delete_many(["a", "b"])


async def test_the_server_keeps_our_checksum(s3_settings: S3Settings) -> None:
    store = await open_s3(s3_settings, clock=SystemClock(), chance=random.Random(1))
    await store.put_new("k", [b"123456789"])
    assert (await store.head("k")).crc32c == 0xE3069283
    await store.close()


async def test_reads_ask_for_the_checksum_that_the_server_keeps(s3_settings: S3Settings) -> None:
    """AWS tells it to nobody who does not ask."""
    asked: list[tuple[str, str | None]] = []

    async def rule(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        asked.append((request.method, request.headers.get("x-amz-checksum-mode")))
        return await forward()

    async with misbehaving(s3_settings, rule) as store:
        await store.put_new("k", [b"123456789"])
        await store.get_range("k", 0, 9)
        await store.head("k")
    assert asked == [("PUT", None), ("GET", "ENABLED"), ("HEAD", "ENABLED")]


def noting(puts: list[web.Request]) -> Rule:
    async def rule(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        if request.method == "PUT":
            puts.append(request)
        return await forward()

    return rule


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's certificate, whose authority clients trust."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_over_tls_a_body_is_not_hashed_for_the_signature_but_keeps_its_checksum(s3_settings: S3Settings, tls: ssl.SSLContext) -> None:
    puts: list[web.Request] = []
    content = bytes(range(256)) * 4096
    async with misbehaving(s3_settings, noting(puts), tls=tls) as store:
        await store.put_new("k", [content])
        assert await store.get_range("k", 0, 2 << 20) == content
        assert (await store.head("k")).crc32c == crc32c(content)
    [put] = puts
    assert put.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert put.headers["x-amz-checksum-crc32c"] == b64encode(crc32c(content).to_bytes(4, "big")).decode()
    assert put.headers["if-none-match"] == "*"
    assert put.headers["content-length"] == str(len(content))
    assert "Expect" not in put.headers
    assert "x-amz-checksum-crc32c" in put.headers["authorization"]


async def test_over_plain_http_the_signature_covers_the_body(s3_settings: S3Settings) -> None:
    puts: list[web.Request] = []
    parts = [b"x" * 300_000, b"y", b"", b"z" * 600_000, *[b"%d" % n for n in range(1000)]]
    async with misbehaving(s3_settings, noting(puts)) as store:
        await store.put_new("k", parts)
        assert await store.get_range("k", 0, 2 << 20) == b"".join(parts)
    [put] = puts
    assert put.headers["x-amz-content-sha256"] == sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize(("choice", "secure", "signed"), [("always", True, True), ("never", False, False), ("never", True, False)])
async def test_whether_a_signature_covers_the_body_can_be_chosen(
    s3_settings: S3Settings, tls: ssl.SSLContext, choice: str, secure: bool, signed: bool
) -> None:
    puts: list[web.Request] = []
    async with misbehaving(s3_settings, noting(puts), tls=tls if secure else None, sign_bodies=choice) as store:
        await store.put_new("k", [b"x" * 300_000])
        assert await store.get_range("k", 0, 1 << 20) == b"x" * 300_000
    [put] = puts
    assert put.headers["x-amz-content-sha256"] == (sha256(b"x" * 300_000).hexdigest() if signed else "UNSIGNED-PAYLOAD")
    assert put.headers["x-amz-checksum-crc32c"] == b64encode(crc32c(b"x" * 300_000).to_bytes(4, "big")).decode()


async def test_an_endpoint_of_the_environment_is_used_named_and_signed_for_as_its_connection_needs(
    s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts: list[web.Request] = []
    async with misbehaving(s3_settings, noting(puts)) as proxied:
        endpoint = proxied.place.rpartition(" ")[2]
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = await open_s3(replace(s3_settings, endpoint_url=None), clock=SystemClock(), chance=random.Random(1))
        await store.put_new("k", [b"body"])
        assert store.place == f"s3://{s3_settings.bucket}/pre/fix at {endpoint}"
        await store.close()
    assert [put.headers["x-amz-content-sha256"] for put in puts] == [sha256(b"body").hexdigest()]


async def test_a_write_that_fails_after_its_caller_was_cancelled_is_nobodys_complaint(s3_settings: S3Settings) -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    arrived, released = asyncio.Event(), asyncio.Event()

    async def held(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        arrived.set()
        await released.wait()
        return await refusing(403, "AccessDenied")(request, forward)

    async with misbehaving(s3_settings, in_turn("PUT", held)) as store:
        caller = asyncio.ensure_future(store.put_new("k", [b"x"]))
        await arrived.wait()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        released.set()
    del caller
    gc.collect()
    assert complaints == []


async def test_a_server_whose_authority_is_unknown_is_named(
    s3_settings: S3Settings, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE")
    async with misbehaving(s3_settings, noting([]), tls=tls) as store:
        with pytest.raises(StoreUnusable, match="name its authority in AWS_CA_BUNDLE"):
            await store.put_new("k", [b"x"])


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (403, "RequestTimeTooSkewed", "this machine's clock differs from the store's; set it right"),
        (501, "NotImplemented", "use a store that has conditional writes"),
        (400, "AuthorizationHeaderMalformed", "the bucket is in another region; set the region"),
    ],
)
async def test_surroundings_that_must_be_mended_are_named(s3_settings: S3Settings, status: int, code: str, sentence: str) -> None:
    async with misbehaving(s3_settings, in_turn("PUT", refusing(status, code))) as store:
        with pytest.raises(StoreUnusable, match=sentence):
            await store.put_new("k", [b"x"])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"bucket": ""}, "its name is empty; set the bucket"),
        ({"endpoint_url": "localhost:9000"}, "is no URL; write it with http:// or https:// in front"),
        ({"addressing_style": "dns"}, "use path, virtual or auto"),
        ({"sign_bodies": "sometimes"}, "sign_bodies is 'sometimes'; use auto, always or never"),
        ({"max_attempts": 0}, "max_attempts is 0; it must be at least 1"),
        ({"hedge_most_share": 5}, "hedge_most_share is 5; it is a share from 0 to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidSettings, match=sentence):
        S3Settings(**{"bucket": "b", **wrong})  # type: ignore[arg-type]


# ---- streams


async def two_parts() -> AsyncIterator[bytes]:
    yield bytes(STREAM_PART_BYTES)
    yield b"the second part"


def uploads_under_way(settings: S3Settings) -> int:
    import boto3

    client = boto3.client("s3", endpoint_url=settings.endpoint_url, region_name="us-east-1")
    return len(client.list_multipart_uploads(Bucket=settings.bucket).get("Uploads", ()))


async def test_a_stream_whose_last_answer_was_lost_is_found_done(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, in_turn("POST", None, done_but_cut_off, None)) as store:
        await store.put_stream("k", two_parts())
        assert (await store.head("k")).size == STREAM_PART_BYTES + 15


async def test_parts_that_fail_are_sent_again(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, in_turn("PUT", refusing(503, "SlowDown"), done_but_cut_off, None)) as store:
        await store.put_stream("k", two_parts())
        assert (await store.head("k")).size == STREAM_PART_BYTES + 15
        assert store.requests["put"] == 1 + 2 + 2 + 1


async def test_a_stream_that_cannot_be_completed_is_unknown_and_leaves_no_parts(s3_settings: S3Settings) -> None:
    gone = [None, *[refusing(500, "InternalError")] * 3]
    async with misbehaving(s3_settings, in_turn("POST", *gone)) as store:
        with pytest.raises(StoreOutcomeUnknown):
            await store.put_stream("k", two_parts())
    assert uploads_under_way(s3_settings) == 0


async def test_a_stream_whose_parts_are_refused_is_not_done_and_leaves_no_parts(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, in_turn("PUT", *[refusing(500, "InternalError")] * 3)) as store:
        with pytest.raises(StoreUnavailable):
            await store.put_stream("k", two_parts())
    assert uploads_under_way(s3_settings) == 0


async def test_parts_that_cannot_be_removed_are_told_of_to_whoever_wants_to_know_everything(
    s3_settings: S3Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def rule(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        refused = request.method == "DELETE" or request.query.get("partNumber") == "2"
        return await (refusing(500, "InternalError")(request, forward) if refused else forward())

    caplog.set_level("DEBUG", logger="tidelog.objects.s3.multipart")
    async with misbehaving(s3_settings, rule) as store:
        with pytest.raises(StoreUnavailable):
            await store.put_stream("k", two_parts())
    [told] = [record.msg for record in caplog.records]
    assert (told["event"], told["key"]) == ("upload_not_aborted", f"{s3_settings.prefix}/k")  # type: ignore[index]  # a dict, here
    assert "InternalError" in told["problem"]  # type: ignore[index]
    assert uploads_under_way(s3_settings) == 1


async def test_parts_that_a_dead_process_left_behind_are_removed(s3_settings: S3Settings) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3_settings.endpoint_url, region_name="us-east-1")
    client.create_multipart_upload(Bucket=s3_settings.bucket, Key=f"{s3_settings.prefix}/left")  # this server says: years ago

    class Later(SystemClock):
        ahead_s = 0.0

        def monotonic(self) -> float:
            return super().monotonic() + self.ahead_s

    clock = Later()
    store = await open_s3(s3_settings, clock=clock, chance=random.Random(1))
    for clock.ahead_s, left in ((0.0, 1), (3601.0, 0)):
        assert [found async for found in store.list()] == []
        assert uploads_under_way(s3_settings) == left
    await store.close()
