"""What only a server shows that checks for itself what it is sent: LocalStack (`make test-localstack`)."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from aiohttp import web
from tidelog.clock import SystemClock
from tidelog.errors import StoreUnavailable, StoreUnusable
from tidelog.objects.s3 import S3Settings, open_s3, probe

from tests.command_line import invoke
from tests.integration.test_s3 import BODY, Rule, in_turn, misbehaving, without_condition

pytestmark = pytest.mark.localstack


async def flipped(request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
    """Pass the request on with one bit of its body changed."""
    request[BODY] = bytes([request[BODY][0] ^ 1]) + request[BODY][1:]
    return await forward()


async def test_it_keeps_what_tidelog_rests_on(localstack_settings: S3Settings) -> None:
    store = await open_s3(localstack_settings, clock=SystemClock(), chance=random.Random(1))
    await probe(store, chance=random.Random(2))
    assert [found async for found in store.list()] == []
    await store.close()


async def test_certifying_it_finds_what_brokers_need_and_tells_that_completions_at_once_have_more_winners(
    localstack_settings: S3Settings,
) -> None:
    url = f"s3://{localstack_settings.bucket}/{localstack_settings.prefix}"
    asked = (
        "--endpoint-url",
        str(localstack_settings.endpoint_url),
        "--writers",
        "8",
        "--rounds",
        "3",
        "--samples",
        "0",
        "--format",
        "json",
    )
    result = await asyncio.to_thread(invoke, "certify", url, *asked)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    found = {each["name"]: each for each in told["findings"]}
    assert told["passed"]
    assert {name for name, each in found.items() if each["outcome"] != "passed"} <= {"parts at once"}
    assert "one broker alone completes each" in found["parts at once"]["why"]


async def test_a_proxy_that_takes_the_condition_away_is_noticed_at_the_start(localstack_settings: S3Settings) -> None:
    async with misbehaving(localstack_settings, in_turn("PUT", without_condition)) as store:
        with pytest.raises(StoreUnusable, match="accepted a second PUT"):
            await probe(store, chance=random.Random(2))


@pytest.mark.parametrize("sign_bodies", ["always", "never"])
async def test_a_body_that_is_damaged_on_the_way_is_refused_by_the_server_and_sent_again(
    localstack_settings: S3Settings, sign_bodies: str
) -> None:
    """The checksum alone shows it, where no signature covers the body."""
    settings = replace(localstack_settings, sign_bodies=sign_bodies)
    content = random.Random(1).randbytes(100_000)
    once: Rule = in_turn("PUT", flipped, None)
    async with misbehaving(settings, once) as store:
        await store.put_new("k", [content])
        assert await store.get_range("k", 0, 200_000) == content
        assert store.retries == 1
    async with misbehaving(settings, in_turn("PUT", flipped)) as store:
        with pytest.raises(StoreUnavailable, match="it was not done"):
            await store.put_new("never", [content])
        assert [found.key async for found in store.list()] == ["k"]
