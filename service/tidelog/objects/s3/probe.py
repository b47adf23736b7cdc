"""Whether a bucket keeps what Tidelog rests on. Asked before a broker starts."""

from contextlib import suppress

from tidelog.errors import ObjectExists, StoreError, StoreUnusable
from tidelog.objects.s3.store import S3Store
from tidelog.randomness import Random, new_uuid


async def probe(store: S3Store, *, chance: Random) -> None:
    """Prove that the bucket keeps what Tidelog rests on: above all, that a second conditional PUT is refused.

    Raises StoreUnusable where it does not, and brokers must not start then; StoreUnavailable and StoreOutcomeUnknown where that
    cannot be told now.
    """
    key = f"probe/{new_uuid(chance)}"
    await store.put_new(key, [b"first"])
    try:
        await _look(store, key)
    except StoreError:
        with suppress(StoreError):  # what was found is told, whatever becomes of the probe
            await store.delete_many([key])
        raise
    if refused := await store.delete_many([key]):
        raise StoreUnusable(f"{store.place} refused to delete {refused}; grant the right to delete below the prefix")


async def _look(store: S3Store, key: str) -> None:
    with suppress(ObjectExists):
        await store.put_new(key, [b"second"])
        raise StoreUnusable(
            f"{store.place} accepted a second PUT with If-None-Match: * to one key. Tidelog would lose acknowledged"
            " records on such a store; use one that honours conditional writes"
        )
    found = [await store.get_range(key, 0, 9), await store.get_range(key, 1, 3), await store.get_range(key, 5, 1)]
    if found != [b"first", b"irs", b""]:
        raise StoreUnusable(f"{store.place} gave {found} for ranges of b'first'; use a store that honours ranges")
    listed = [found.key async for found in store.list(key)]
    if listed != [key]:
        raise StoreUnusable(f"{store.place} listed {listed} below {key!r}, which was just written; use a store that lists what is there")
