"""Answers of servers and gateways that leave things out, or say what cannot be: none passes for data, success, or an end."""

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping

import pytest
from aiohttp import web
from crc32c import crc32c
from tidelog.errors import StoreOutcomeUnknown, StoreUnavailable, StoreUnusable
from tidelog.objects.s3 import S3Settings, S3Store

from tests.integration.test_s3 import Rule, in_turn, misbehaving

DATE = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
PORTAL = "<html><body>Please log in.</body></html>"


def saying(status: int, body: bytes | str, headers: Mapping[str, str] | None = None, *, sized: bool = True) -> Rule:
    """Answer like that."""
    content = body.encode() if isinstance(body, str) else body

    async def rule(request: web.Request, _forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        if sized:
            return web.Response(status=status, body=content, headers=headers)
        answer = web.StreamResponse(status=status, headers=headers)
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        await answer.write(content)
        return answer

    return rule


def encoded(checksum: int) -> str:
    return b64encode(checksum.to_bytes(4, "big")).decode()


async def keys(store: S3Store, prefix: str = "", *, start_after: str = "") -> list[str]:
    return [found.key async for found in store.list(prefix, start_after=start_after)]


# ---- GET


@pytest.mark.parametrize(
    ("came", "sentence"),
    [
        ("bytes 1-3/10", "bytes 0 to 3 were asked for, but 'bytes 1-3/10' came"),
        ("bytes 0-9/10", "bytes 0 to 3 were asked for"),
        ("bytes 0-1/10", "bytes 0 to 3 were asked for"),
        ("bytes 0-2/*", r"the range that came is 'bytes 0-2/\*'"),
        ("lines 0-2/10", "the range that came is 'lines 0-2/10'"),
        ("bytes 0-2/2", "bytes 0 to 3 were asked for"),
    ],
)
async def test_another_range_than_was_asked_for_is_not_taken_for_it(s3_settings: S3Settings, came: str, sentence: str) -> None:
    async with misbehaving(s3_settings, in_turn("GET", saying(206, b"abc", {"Content-Range": came, **DATE}))) as store:
        with pytest.raises(StoreUnavailable, match=sentence):
            await store.get_range("k", 0, 3)


async def test_a_body_of_unknown_or_other_length_than_its_range_is_refused(s3_settings: S3Settings) -> None:
    claims = {"Content-Range": "bytes 0-2/10", **DATE}
    for rule, sentence in (
        (saying(206, b"abc", claims, sized=False), "has no ContentLength"),
        (saying(206, b"abcd", claims), "4 bytes came"),
    ):
        async with misbehaving(s3_settings, in_turn("GET", rule)) as store:
            with pytest.raises(StoreUnavailable, match=sentence):
                await store.get_range("k", 0, 3)


@pytest.mark.parametrize("checksum", ["?", "AAAA", "AAAAAAAAAA=="])
async def test_a_checksum_that_is_none_is_refused(s3_settings: S3Settings, checksum: str) -> None:
    claims = {"Content-Range": "bytes 0-2/3", "x-amz-checksum-crc32c": checksum, **DATE}
    async with misbehaving(s3_settings, in_turn("GET", saying(206, b"abc", claims))) as store:
        with pytest.raises(StoreUnavailable, match="its checksum is"):
            await store.get_range("k", 0, 3)


async def test_a_checksum_of_parts_is_not_taken_for_one_of_the_whole(s3_settings: S3Settings) -> None:
    for checksum in ({"x-amz-checksum-crc32c": "AAAAAA==-2"}, {"x-amz-checksum-crc32c": "AAAAAA==", "x-amz-checksum-type": "COMPOSITE"}):
        claims = {"Content-Range": "bytes 0-2/3", **checksum, **DATE}
        async with misbehaving(s3_settings, in_turn("GET", saying(206, b"abc", claims))) as store:
            assert await store.get_range("k", 0, 3) == b"abc"


# ---- HEAD


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"Content-Length": "3"}, "it has no LastModified"),
        ({"Content-Length": "3", "Last-Modified": "yesterday"}, "the answer cannot be read"),
        ({"Content-Length": "3", "x-amz-checksum-crc32c": "none", **DATE}, "its checksum is 'none'"),
    ],
)
async def test_a_description_that_cannot_be_read_is_weather(s3_settings: S3Settings, headers: dict[str, str], sentence: str) -> None:
    async with misbehaving(s3_settings, in_turn("HEAD", saying(200, b"", headers))) as store:
        with pytest.raises(StoreUnavailable, match=f"HEAD of 'k'.*{sentence}"):
            await store.head("k")


# ---- LIST


def listing(*found: str, truncated: bool = False, token: str = "") -> str:
    entries = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2015-10-21T07:28:00Z</LastModified></Contents>" for key in found
    )
    following = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return f"<ListBucketResult><IsTruncated>{str(truncated).lower()}</IsTruncated>{following}{entries}</ListBucketResult>"


def pages(*bodies: str) -> Rule:
    return in_turn("GET", *(saying(200, body, {"Content-Type": "application/xml"}) for body in bodies))


@pytest.mark.parametrize(
    "bodies",
    [
        [listing("pre/fix/b", "pre/fix/a")],
        [listing("pre/fix/a", "pre/fix/a")],
        [listing("pre/fix/a", truncated=True, token="t"), listing("pre/fix/a")],
        [listing("elsewhere/a")],
        [listing("pre/fix/a", "pre/fixed")],
    ],
    ids=["descending", "twice", "the same page again", "outside the prefix", "beside the prefix"],
)
async def test_a_listing_that_is_out_of_order_or_out_of_place_is_refused(s3_settings: S3Settings, bodies: list[str]) -> None:
    async with misbehaving(s3_settings, pages(*bodies)) as store:
        with pytest.raises(StoreUnusable, match="use a store that lists the keys of a prefix, in ascending order, and once each"):
            await keys(store)


async def test_a_listing_that_ignores_where_to_begin_is_refused(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, pages(listing("pre/fix/a", "pre/fix/b"))) as store:
        with pytest.raises(StoreUnusable, match="gave 'a' after 'a'"):
            await keys(store, start_after="a")


async def test_a_listing_that_never_ends_is_refused(s3_settings: S3Settings) -> None:
    async with misbehaving(s3_settings, pages(listing(truncated=True, token="t"))) as store:
        with pytest.raises(StoreUnavailable, match="the page that follows is the page that came"):
            await asyncio.wait_for(keys(store), 30)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (PORTAL, "it has no IsTruncated"),
        ("<ListBucketResult></ListBucketResult>", "it has no IsTruncated"),
        ("no XML", "HTTP 500"),  # so the S3 client calls it
        (listing(truncated=True), "it has no NextContinuationToken"),
        ("<ListBucketResult><IsTruncated>false</IsTruncated><Contents></Contents></ListBucketResult>", "it has no Key"),
        (listing("pre/fix/a").replace("2015-10-21T07:28:00Z", "soon"), "cannot be read"),
    ],
)
async def test_what_is_no_listing_does_not_pass_for_an_empty_one(s3_settings: S3Settings, body: str, sentence: str) -> None:
    """I11: a bucket that looks empty would be taken for a new one."""
    async with misbehaving(s3_settings, pages(body)) as store:
        with pytest.raises(StoreUnavailable, match=sentence):
            await keys(store)


async def test_an_empty_page_is_not_the_end_and_the_mark_of_a_folder_no_object(s3_settings: S3Settings) -> None:
    bodies = [listing("pre/fix/", "pre/fix/a", truncated=True, token="1"), listing(truncated=True, token="2"), listing("pre/fix/b")]
    async with misbehaving(s3_settings, pages(*bodies)) as store:
        assert await keys(store) == ["a", "b"]


# ---- PUT and DELETE


async def test_a_success_that_no_store_speaks_of_leaves_the_write_unknown(s3_settings: S3Settings) -> None:
    """I2: a gateway that answers everything with its own page has stored nothing."""
    async with misbehaving(s3_settings, in_turn("PUT", saying(200, PORTAL, {"Content-Type": "text/html"}))) as store:
        with pytest.raises(StoreOutcomeUnknown, match="it has no ETag"):
            await store.put_new("k", [b"x"])


async def test_a_success_for_other_bytes_is_looked_into(s3_settings: S3Settings) -> None:
    async def stored_as_told(_request: web.Request, forward: Callable[[], Awaitable[web.Response]]) -> web.StreamResponse:
        done = await forward()
        return web.Response(status=done.status, headers={**done.headers, "x-amz-checksum-crc32c": encoded(crc32c(b"other"))})

    async with misbehaving(s3_settings, in_turn("PUT", stored_as_told)) as store:
        await store.put_new("k", [b"bytes"])  # what is there is what was sent: only the answer was wrong
    lost = in_turn("PUT", saying(200, b"", {"ETag": '"x"', "x-amz-checksum-crc32c": encoded(crc32c(b"other"))}))
    async with misbehaving(s3_settings, lost) as store:
        with pytest.raises(StoreOutcomeUnknown, match="looking at what it holds failed"):
            await store.put_new("lost", [b"bytes"])


async def test_a_key_that_a_server_does_not_find_counts_as_deleted(s3_settings: S3Settings) -> None:
    errors = "".join(
        f"<Error><Key>pre/fix/{key}</Key><Code>{code}</Code></Error>" for key, code in (("a", "NoSuchKey"), ("b", "AccessDenied"))
    )
    answer = saying(200, f"<DeleteResult>{errors}</DeleteResult>", {"Content-Type": "application/xml"})
    async with misbehaving(s3_settings, in_turn("POST", answer)) as store:
        assert list(await store.delete_many(["a", "b"])) == ["b"]


async def test_a_refusal_that_names_no_key_leaves_a_deletion_unknown(s3_settings: S3Settings) -> None:
    answer = saying(200, "<DeleteResult><Error><Code>AccessDenied</Code></Error></DeleteResult>", {"Content-Type": "application/xml"})
    async with misbehaving(s3_settings, in_turn("POST", answer)) as store:
        with pytest.raises(StoreOutcomeUnknown, match="it has no Key"):
            await store.delete_many(["a"])
