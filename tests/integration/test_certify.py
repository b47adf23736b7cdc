"""`tidelog certify` against real stores: a directory, a real S3 server, and that server behind proxies that break it."""

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tidelog.clock import SystemClock
from tidelog.errors import StoreError
from tidelog.objects.certification import certify
from tidelog.objects.memory import MemoryStore
from tidelog.objects.requirements import CHECKS, Bench, Effort, NotKept
from tidelog.objects.s3 import S3Settings, trials
from tidelog.objects.store import Bytes, ObjectStore

from tests.command_line import done, invoke, refused, started
from tests.integration.test_s3 import BODY, Rule, misbehaving, without_condition

QUICK = ("--writers", "8", "--rounds", "3", "--samples", "0", "--format", "json")


def url_of(settings: S3Settings) -> str:
    return f"s3://{settings.bucket}/{settings.prefix}"


async def keys_of(settings: S3Settings) -> list[str]:
    async with misbehaving(settings, lambda _request, forward: forward()) as store:
        return [found.key async for found in store.list()]


def test_a_directory_keeps_what_is_needed_and_is_empty_again(tmp_path: Path) -> None:
    shown = done("certify", f"file://{tmp_path}/objects", "--writers", "8", "--rounds", "3", "--samples", "3")
    assert shown.splitlines()[0].startswith("passed  one winner: of many PUTs of one key")
    assert "why: a key names one segment for ever (I3)" in shown
    assert "seen: 3 rounds of 8 writers: one winner each, 21 refused" in shown
    assert "MiB/s, 16 at once" in shown
    assert shown.endswith(f"file://{tmp_path}/objects keeps what Tidelog needs.\n")
    assert list((tmp_path / "objects").iterdir()) == []


async def test_a_real_s3_server_keeps_what_is_needed(s3_settings: S3Settings) -> None:
    assert s3_settings.endpoint_url
    result = await asyncio.to_thread(invoke, "certify", url_of(s3_settings), "--endpoint-url", s3_settings.endpoint_url, *QUICK)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    outcomes = {finding["name"]: finding["outcome"] for finding in told["findings"]}
    assert told["passed"]
    assert {name for name, outcome in outcomes.items() if outcome != "passed"} <= {"wrong checksum", "parts at once"}
    assert await keys_of(s3_settings) == []


async def without_range(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    """Answer with a piece that begins a byte too late, and says otherwise."""
    whole = await forward()
    if request.method != "GET" or whole.status != 206:
        return whole
    assert isinstance(whole.body, bytes)
    headers = {name: value for name, value in whole.headers.items() if not name.lower().startswith("x-amz-checksum")}
    return web.Response(status=206, body=whole.body[1:] + b"\0", headers=headers)


async def unconditional(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    return await without_condition(request, forward)


async def unconditional_completion(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    """Forget the condition of what completes an upload in parts, alone."""
    return await (without_condition(request, forward) if request.method == "POST" else forward())


async def no_parts(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    """What a server says that knows no uploads in parts."""
    if request.method == "POST" and "uploads" in request.query:
        return web.Response(status=501, text="<Error><Code>NotImplemented</Code></Error>", content_type="application/xml")
    return await forward()


async def damaged_part(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    """Store a second part that holds other bytes than were sent."""
    if request.method == "PUT" and request.query.get("partNumber") == "2":
        request[BODY] = request[BODY][::-1]
    return await forward()


def stale_lists() -> Rule:
    """Answer each listing with what the one before it would have said."""
    before: dict[str, web.Response] = {}

    async def rule(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        answer = await forward()
        if "list-type" not in request.query_string or "fresh" not in request.query_string:
            return answer
        stale, before[request.query_string] = before.get(request.query_string), answer
        answer = stale or answer
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    return rule


@pytest.mark.parametrize(
    ("rule", "failed"),
    [
        (lambda: unconditional, {"one winner", "refused overwrite", "streams", "parts"}),
        (lambda: without_range, {"one winner", "refused overwrite", "read after write", "streams", "ranges", "parts"}),
        (stale_lists, {"list after write"}),
    ],
    ids=["no condition", "lost range", "stale list"],
)
async def test_a_broken_s3_fails_by_name_and_is_left_clean(s3_settings: S3Settings, rule: Callable[[], Rule], failed: set[str]) -> None:
    async with misbehaving(s3_settings, rule()) as store:
        endpoint = store.client.meta.endpoint_url
        result = await asyncio.to_thread(invoke, "certify", url_of(s3_settings), "--endpoint-url", endpoint, *QUICK)
    assert result.exit_code == 1, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    assert not told["passed"]
    assert {finding["name"] for finding in told["findings"] if finding["outcome"] == "failed"} == failed
    assert await keys_of(s3_settings) == []


@pytest.mark.parametrize(
    ("rule", "streams", "parts"),
    [
        (
            unconditional_completion,
            "completed with If-None-Match: \\* though its key was taken",
            "a later completion .* replaced the object",
        ),
        (no_parts, "NotImplemented", "writing in parts was answered with: .*NotImplemented"),
        (damaged_part, "holds other bytes than were sent|other ones than were written", "across the border of two parts"),
    ],
)
async def test_a_store_that_cannot_be_trusted_with_parts_fails(s3_settings: S3Settings, rule: Rule, streams: str, parts: str) -> None:
    """Brokers write merged segments so."""
    async with misbehaving(s3_settings, rule, deadline_ms=2000) as store:
        bench = Bench((store, store), "certify/here/", Effort(), SystemClock(), random.Random(1))
        checks = {requirement.name: (requirement, check) for requirement, check in (*CHECKS, *trials(store))}
        for name, sentence in (("streams", streams), ("parts", parts)):
            requirement, check = checks[name]
            assert not requirement.advised
            with pytest.raises((NotKept, StoreError), match=sentence):
                await check(bench)


async def checking(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    """What a server does that compares checksums."""
    from base64 import b64encode

    from crc32c import crc32c

    claimed = request.headers.get("x-amz-checksum-crc32c")
    if request.method == "PUT" and claimed and claimed != b64encode(crc32c(request[BODY]).to_bytes(4, "big")).decode():
        return web.Response(status=400, text="<Error><Code>BadDigest</Code><Message>no</Message></Error>", content_type="application/xml")
    return await forward()


async def test_what_is_advised_is_told_apart(s3_settings: S3Settings) -> None:
    turn = asyncio.Lock()

    async def sound(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        async with turn:  # one after the other: the server by itself completes two uploads of one key that come at once
            return await checking(request, forward)

    async with misbehaving(s3_settings, sound) as store:
        endpoint = store.client.meta.endpoint_url
        result = await asyncio.to_thread(invoke, "certify", url_of(s3_settings), "--endpoint-url", endpoint, *QUICK)
    seen = {finding["name"]: (finding["outcome"], finding["seen"]) for finding in json.loads(result.stdout)["findings"]}
    assert seen["wrong checksum"] == ("passed", "refused with BadDigest (HTTP 400), and nothing is stored")
    assert (seen["parts"][0], seen["parts at once"][0]) == ("passed", "passed"), seen

    async with misbehaving(s3_settings, unconditional) as store:
        endpoint = store.client.meta.endpoint_url
        result = await asyncio.to_thread(invoke, "certify", url_of(s3_settings), "--endpoint-url", endpoint, *QUICK)
    seen = {finding["name"]: (finding["outcome"], finding["seen"]) for finding in json.loads(result.stdout)["findings"]}
    assert seen["wrong checksum"] == ("weak", "it was accepted: the store does not compare the checksum with the bytes")
    assert seen["parts at once"] == ("weak", "of 4 completions of one key at the same time, 4 succeeded")


def test_ctrl_c_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    with started("certify", f"file://{tmp_path}/objects", "--rounds", "10000", "--writers", "8") as process:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "objects").rglob("contended/1")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert os.listdir(tmp_path / "objects") == []


def test_what_cannot_be_certified_is_told(tmp_path: Path) -> None:
    for url in ("memory://", "nothing", "file://host/directory"):
        assert f"BUCKET-URL is {url!r}; write s3://BUCKET/PREFIX or file:///DIRECTORY" in refused("certify", url, code=2)
    assert "--addressing-style" in refused("certify", "s3://bucket", "--addressing-style", "upside-down", code=2)
    told = refused("certify", "s3://bucket", "--endpoint-url", "http://127.0.0.1:9", "--config", str(_config(tmp_path)))
    assert "PUT of 'certify/" in told


def _config(tmp_path: Path) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text("s3_max_attempts: 1\ns3_deadline_ms: 500\n")
    return file


class ForgetsConditionsOfLargeBodies(MemoryStore):
    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        if sum(map(len, parts)) > 1 << 20:
            self._objects.pop(key, None)
        await super().put_new(key, parts)


class ChecksUploadsInPartsAtTheirBeginning(MemoryStore):
    async def put_stream(self, key: str, parts: AsyncIterable[Bytes]) -> None:
        free = key not in self._objects
        content = [bytes(part) async for part in parts]
        if free:
            self._objects.pop(key, None)
        await self.put_new(key, content)


@pytest.mark.parametrize(
    ("kind", "failed"),
    [
        (ForgetsConditionsOfLargeBodies, {"refused overwrite", "streams"}),
        (ChecksUploadsInPartsAtTheirBeginning, {"streams"}),
    ],
)
async def test_what_only_shows_with_large_bodies_is_found(kind: type[MemoryStore], failed: set[str]) -> None:
    clock = SystemClock()
    store = kind(clock=clock)

    async def connected() -> ObjectStore:
        return store

    found = await certify(connected, effort=Effort(writers=4, rounds=3, samples=0), clock=clock, chance=random.Random(1))
    assert not found.passed
    assert {each.requirement.name for each in found.findings if each.outcome == "failed"} == failed
