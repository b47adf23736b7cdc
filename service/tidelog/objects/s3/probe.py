"""Whether a bucket keeps what Tidelog rests on. Asked before a broker starts."""

from tidelog.errors import ObjectExists, StoreUnusable
from tidelog.objects.s3.store import S3Store
from tidelog.randomness import Random, new_uuid


async def probe(store: S3Store, *, chance: Random) -> None:
    """Prove that the bucket keeps what Tidelog rests on: above all, that a second conditional PUT is refused.

    Raises StoreUnusable where it does not; brokers must not start then.
    """
    key = f"probe/{new_uuid(chance)}"
    await store.put_new(key, [b"first"])
    try:
        await store.put_new(key, [b"second"])
    except ObjectExists:
        found = [await store.get_range(key, 0, 9), await store.get_range(key, 1, 3), await store.get_range(key, 5, 1)]
        if found != [b"first", b"irs", b""]:
            raise StoreUnusable(f"{store.place} gave {found} for ranges of b'first'; use a store that honours ranges") from None
    else:
        raise StoreUnusable(
            f"{store.place} accepted a second PUT with If-None-Match: * to one key. Tidelog would lose acknowledged"
            " records on such a store; use one that honours conditional writes"
        )
    finally:
        refused = await store.delete_many([key])
    if refused:
        raise StoreUnusable(f"{store.place} refused to delete {refused}; grant the right to delete below the prefix")
