"""What every object store keeps (I2, I3, I5)."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from tidelog.errors import InvalidRequest, ObjectExists, ObjectNotFound
from tidelog.objects.store import ObjectStore


async def keys_of(store: ObjectStore, prefix: str = "", *, start_after: str = "") -> list[str]:
    return [found.key async for found in store.list(prefix, start_after=start_after)]


async def test_what_was_written_is_read_whole_and_in_ranges(object_store: ObjectStore) -> None:
    await object_store.put_new("a/b", [b"0123", bytearray(b"456"), memoryview(b"789")])
    assert await object_store.get_range("a/b", 0, 10) == b"0123456789"
    assert await object_store.get_range("a/b", 3, 4) == b"3456"
    assert await object_store.get_range("a/b", 8, 100) == b"89"
    assert await object_store.get_range("a/b", 10, 1) == b""
    assert await object_store.get_range("a/b", 11, 1) == b""
    assert await object_store.get_range("a/b", 4, 1 << 40) == b"456789"


async def test_an_empty_object_is_an_object(object_store: ObjectStore) -> None:
    await object_store.put_new("empty", [])
    assert (await object_store.head("empty")).size == 0
    assert [found.size async for found in object_store.list()] == [0]
    assert await object_store.get_range("empty", 0, 10) == b""


async def test_a_large_object_of_many_parts_is_kept(object_store: ObjectStore) -> None:
    parts = [bytes([n % 251]) * 1500 for n in range(6000)]
    await object_store.put_new("large", parts)
    whole = b"".join(parts)
    assert (await object_store.head("large")).size == len(whole)
    assert await object_store.get_range("large", 0, len(whole)) == whole
    assert await object_store.get_range("large", 4_000_001, 3000) == whole[4_000_001:4_003_001]


async def test_a_key_is_written_once(object_store: ObjectStore) -> None:
    await object_store.put_new("k", [b"first"])
    with pytest.raises(ObjectExists, match="other bytes"):
        await object_store.put_new("k", [b"other"])
    with pytest.raises(ObjectExists):
        await object_store.put_new("k", [b"FIRST"])
    assert await object_store.get_range("k", 0, 10) == b"first"


async def test_writing_the_same_bytes_again_is_success(object_store: ObjectStore) -> None:
    await object_store.put_new("k", [b"same ", b"bytes"])
    before = await object_store.head("k")
    await object_store.put_new("k", [b"same", b" bytes"])
    assert await object_store.head("k") == before


async def test_of_many_writers_of_one_key_exactly_one_wins(object_store: ObjectStore) -> None:
    contents = [b"content %d" % n for n in range(20)]
    results = await asyncio.gather(*(object_store.put_new("raced", [c]) for c in contents), return_exceptions=True)
    winners = [c for c, result in zip(contents, results, strict=True) if result is None]
    assert all(result is None or isinstance(result, ObjectExists) for result in results)
    assert [await object_store.get_range("raced", 0, 100)] == winners


async def test_what_is_not_there_is_said_to_be_missing(object_store: ObjectStore) -> None:
    with pytest.raises(ObjectNotFound, match="nothing-here"):
        await object_store.get_range("nothing-here", 0, 1)
    with pytest.raises(ObjectNotFound):
        await object_store.head("nothing-here")
    await object_store.put_new("folder/object", [b"x"])
    with pytest.raises(ObjectNotFound):
        await object_store.head("folder")
    assert await object_store.delete_many(["folder"]) == {}
    assert (await object_store.head("folder/object")).size == 1
    with pytest.raises(ObjectNotFound):
        await object_store.get_range("folder", 0, 1)


async def test_objects_are_listed_in_the_order_of_their_keys(object_store: ObjectStore) -> None:
    keys = ["a", "a-b", "a.b", "a/b", "a/b/c", "a0", "b/c", "ab/c/d", "a/b-c"]
    keys.remove("a")  # a file system cannot hold both a and a/b
    keys.remove("a/b")
    for key in keys:
        await object_store.put_new(key, [key.encode()])
    assert await keys_of(object_store) == sorted(keys)
    assert await keys_of(object_store, "a") == sorted(k for k in keys if k.startswith("a"))
    assert await keys_of(object_store, "a/") == ["a/b-c", "a/b/c"]
    assert await keys_of(object_store, "a/b/") == ["a/b/c"]
    assert await keys_of(object_store, start_after="a/b-c") == [k for k in sorted(keys) if k > "a/b-c"]
    assert await keys_of(object_store, "a", start_after="a/b/c") == [k for k in sorted(keys) if k > "a/b/c" and k.startswith("a")]
    assert await keys_of(object_store, "none") == []


async def test_sizes_are_listed_and_more_than_a_page_of_them(object_store: ObjectStore) -> None:
    keys = [f"many/{number:05}" for number in range(1050)]
    for start in range(0, len(keys), 50):
        await asyncio.gather(*(object_store.put_new(key, [b"12345"]) for key in keys[start : start + 50]))
    found = [info async for info in object_store.list("many/")]
    assert [info.key for info in found] == keys
    assert {info.size for info in found} == {5}
    assert await object_store.delete_many(keys) == {}
    assert await keys_of(object_store) == []


async def test_what_was_deleted_is_neither_listed_nor_read_and_its_neighbours_are(object_store: ObjectStore) -> None:
    for key in ("a/1", "a/2", "b/1"):
        await object_store.put_new(key, [key.encode()])
    assert await object_store.delete_many(["a/1", "b/1"]) == {}
    assert await keys_of(object_store) == ["a/2"]
    with pytest.raises(ObjectNotFound):
        await object_store.get_range("a/1", 0, 1)
    assert await object_store.get_range("a/2", 0, 10) == b"a/2"


async def test_a_prefix_may_end_within_a_name(object_store: ObjectStore) -> None:
    for key in ("intake/broker-1/x", "intake/broker-10/x", "intake/broker-2/x", "merged/x"):
        await object_store.put_new(key, [b""])
    assert await keys_of(object_store, "intake/broker-1") == ["intake/broker-1/x", "intake/broker-10/x"]
    assert await keys_of(object_store, "intake/broker-1/") == ["intake/broker-1/x"]
    assert await keys_of(object_store, "int", start_after="intake/broker-10") == ["intake/broker-10/x", "intake/broker-2/x"]
    assert await keys_of(object_store, "intake", start_after="merged") == []


async def test_deleting_what_is_not_there_is_success(object_store: ObjectStore) -> None:
    await object_store.put_new("x/there", [b"1"])
    assert await object_store.delete_many(["x/there", "x/not-there", "x/there/below"]) == {}
    assert await object_store.delete_many([]) == {}
    with pytest.raises(ObjectNotFound):
        await object_store.head("x/there")


@pytest.mark.parametrize("key", ["", "/a", "a//b", "a/", "..", "a/../b", ".", "ä", "a\nb", "x/" * 512 + "x", "x" * 256, ".tmp-1"])
async def test_keys_that_some_store_cannot_hold_are_refused_by_all(object_store: ObjectStore, key: str) -> None:
    for asked in (
        object_store.put_new(key, [b"x"]),
        object_store.get_range(key, 0, 1),
        object_store.head(key),
        object_store.delete_many([key]),
    ):
        with pytest.raises(InvalidRequest, match="cannot be used"):
            await asked


@pytest.mark.parametrize(("position", "length"), [(-1, 1), (0, 0), (5, -1), (-3, 0)])
async def test_what_is_no_range_of_bytes_is_refused(object_store: ObjectStore, position: int, length: int) -> None:
    await object_store.put_new("k", [b"0123456789"])
    with pytest.raises(InvalidRequest, match=f"{length} bytes from position {position} were asked for; ask for at least 1"):
        await object_store.get_range("k", position, length)


async def test_a_cancelled_write_leaves_a_whole_object_or_none(object_store: ObjectStore) -> None:
    content = b"x" * 3_000_000
    for number in range(5):
        task = asyncio.ensure_future(object_store.put_new(f"cancelled/{number}", [content]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await object_store.put_new(f"cancelled/{number}", [content])
        assert await object_store.get_range(f"cancelled/{number}", 0, len(content) + 1) == content


# ---- streams


async def stream(parts: Iterable[bytes]) -> AsyncIterator[bytearray]:
    """Give parts one after another; each is overwritten once the next one is asked for."""
    for part in parts:
        buffer = bytearray(part)
        yield buffer
        buffer[:] = bytes(len(buffer))


LARGE = [bytes([number % 251]) * 700_001 for number in range(30)]
"""More than two of the parts that a stream is sent in."""


async def test_a_stream_is_kept_whole(object_store: ObjectStore) -> None:
    await object_store.put_stream("large", stream(LARGE))
    whole = b"".join(LARGE)
    assert (await object_store.head("large")).size == len(whole)
    assert await object_store.get_range("large", 0, len(whole) + 1) == whole
    assert await object_store.get_range("large", 9_000_001, 3000) == whole[9_000_001:9_003_001]


@pytest.mark.parametrize("parts", [[b"one"], [b"one", b"", b"two"], [], [b""]], ids=["one", "two", "none", "empty"])
async def test_a_small_stream_is_kept_too(object_store: ObjectStore, parts: list[bytes]) -> None:
    await object_store.put_stream("small", stream(parts))
    assert (await object_store.head("small")).size == len(b"".join(parts))
    assert await object_store.get_range("small", 0, 10) == b"".join(parts)


async def test_a_stream_writes_a_key_once_whoever_was_first(object_store: ObjectStore) -> None:
    await object_store.put_new("whole", [b"first"])
    with pytest.raises(ObjectExists, match="other bytes"):
        await object_store.put_stream("whole", stream([b"other"]))
    await object_store.put_stream("streamed", stream([b"first"]))
    for again in (object_store.put_new("streamed", [b"FIRST"]), object_store.put_stream("streamed", stream([b"longer ", b"ones"]))):
        with pytest.raises(ObjectExists):
            await again
    assert await object_store.get_range("whole", 0, 10) == await object_store.get_range("streamed", 0, 10) == b"first"


async def test_streaming_the_same_bytes_again_is_success(object_store: ObjectStore) -> None:
    await object_store.put_stream("k", stream([b"same ", b"bytes"]))
    before = await object_store.head("k")
    await object_store.put_stream("k", stream([b"same", b" bytes"]))
    await object_store.put_new("k", [b"same bytes"])
    assert await object_store.head("k") == before
    await object_store.put_stream("large", stream(LARGE))
    await object_store.put_stream("large", stream(LARGE))


async def test_of_many_streams_to_one_key_exactly_one_wins(object_store: ObjectStore, request: pytest.FixtureRequest) -> None:
    if "localstack" in request.node.name:
        pytest.skip("LocalStack looks whether a key is free and completes an upload without a lock between")
    contents = [b"content %d" % n for n in range(8)]
    results = await asyncio.gather(*(object_store.put_stream("raced", stream([c])) for c in contents), return_exceptions=True)
    winners = [c for c, result in zip(contents, results, strict=True) if result is None]
    assert all(result is None or isinstance(result, ObjectExists) for result in results)
    assert [await object_store.get_range("raced", 0, 100)] == winners


async def test_a_stream_that_breaks_writes_nothing_and_what_broke_it_is_told(object_store: ObjectStore) -> None:
    class Broken(Exception): ...

    async def breaking() -> AsyncIterator[bytes]:
        for part in LARGE:
            yield part
        raise Broken

    with pytest.raises(Broken):
        await object_store.put_stream("folder/k", breaking())
    with pytest.raises(ObjectNotFound):
        await object_store.head("folder/k")
    assert await keys_of(object_store) == []
    await object_store.put_stream("folder/k", stream([b"whole"]))
    assert await object_store.get_range("folder/k", 0, 10) == b"whole"


async def test_a_cancelled_stream_leaves_a_whole_object_or_none(object_store: ObjectStore) -> None:
    for turns in (0, 1, 5, 30):
        task = asyncio.ensure_future(object_store.put_stream(f"cancelled/{turns}", stream(LARGE)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await object_store.put_stream(f"cancelled/{turns}", stream(LARGE))
        assert (await object_store.head(f"cancelled/{turns}")).size == sum(map(len, LARGE))


async def test_a_stream_to_a_key_that_some_store_cannot_hold_is_refused(object_store: ObjectStore) -> None:
    with pytest.raises(InvalidRequest, match="cannot be used"):
        await object_store.put_stream("a//b", stream([b"x"]))
