"""What the bucket knows of its metadata store, by which an older or foreign one is noticed (I11).

The marker is cluster id and commit count. Checked before anything leads, appends or cleans; renewed before every cleaning
round. Each marker is an object of its own (I3); the highest count is the one that counts. The names of segments tell of
epochs.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass

from tidelog.errors import ObjectExists, ObjectNotFound, TimeTravel
from tidelog.metadata.membership import ClusterState
from tidelog.objects.store import ObjectStore
from tidelog.segments.keys import IntakeKey, parse_key

FORMAT_VERSION = 1
_PREFIX = "cluster/"
_MOST_BYTES = 4096
"""A marker is far smaller; whatever else lies there is not read as a whole."""
_KEPT = 3
"""Older markers are deleted when a new one is written, but for these."""
_LISTED_AT_ONCE = 16
"""Requests that a starting broker has on their way at the same time."""
_LOOKS = 5
"""How often a marker may be deleted under whoever reads it."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What a metadata store was known to have reached."""

    cluster_id: str
    commit_count: int
    format_version: int


Ask = Callable[[], Awaitable[ClusterState]]
"""Asks the metadata store for the cluster's state as it is at the call."""


async def newest_marker(bucket: ObjectStore) -> Marker | None:
    """Return the marker with the highest count; None in a bucket that no cluster has used."""
    for look in range(_LOOKS):
        newest = None
        async for found in bucket.list(_PREFIX):
            newest = found
        if newest is None:
            return None
        try:
            return _read(newest.key, await bucket.get_range(newest.key, 0, _MOST_BYTES))
        except ObjectNotFound:  # deleted meanwhile, because newer ones have come
            if look == _LOOKS - 1:
                raise
    return None


def verify(marker: Marker | None, cluster: ClusterState) -> None:
    """Raise TimeTravel unless the metadata store belongs to this bucket and has seen at least what the marker says."""
    if marker is None:
        return
    if marker.cluster_id != cluster.cluster_id:
        raise TimeTravel(
            f"this metadata store is cluster {cluster.cluster_id}'s, but the bucket belongs to cluster {marker.cluster_id};"
            " point the brokers at the right database, or at another bucket or prefix"
        )
    if marker.format_version > FORMAT_VERSION:
        raise TimeTravel(
            f"the bucket is written in format {marker.format_version}, but this release knows formats up to {FORMAT_VERSION};"
            " run a newer release"
        )
    if marker.commit_count > cluster.commit_count:
        raise TimeTravel(
            f"this metadata store has seen {cluster.commit_count} commits, but the bucket knows of {marker.commit_count}: it was"
            " restored from an older copy. Nothing will lead, append or clean; bring back the newer database, or rebuild it from the bucket"
        )


async def renew(bucket: ObjectStore, ask: Ask) -> Marker:
    """Verify, then put down how far the metadata store has come. Raises TimeTravel.

    The store is asked after the bucket was looked at: else the marker of another broker, which asked a moment later, would
    seem to be ahead of it.
    """
    newest = await newest_marker(bucket)
    cluster = await ask()
    verify(newest, cluster)
    marker = Marker(cluster.cluster_id, cluster.commit_count, FORMAT_VERSION)
    key = f"{_PREFIX}{marker.commit_count:020}.json"
    try:
        await bucket.put_new(key, [json.dumps(asdict(marker), sort_keys=True, separators=(",", ":")).encode()])
    except ObjectExists:  # somebody else's: another cluster that began on this bucket at the same moment
        verify(await newest_marker(bucket), await ask())
        raise
    older = [found.key async for found in bucket.list(_PREFIX) if found.key < key]
    await bucket.delete_many(older[: -_KEPT + 1])
    return marker


async def check_epochs(bucket: ObjectStore, ask: Ask, known_ids: Iterable[str] = ()) -> None:
    """Raise TimeTravel where the bucket holds an intake segment of an epoch that the metadata store has not given out.

    Costs one request for each broker id that the store knows, several of which go at the same time, and two or three for
    each other one that has segments. Epochs that are given out meanwhile are none of these: the store is asked again before
    anything is said.
    """
    given_below = (await ask()).next_broker_epoch
    known = [f"intake/{broker_id}/" for broker_id in sorted(set(known_ids))]
    turns = asyncio.Semaphore(_LISTED_AT_ONCE)

    def newer(folder: str) -> str:
        return f"{folder}{given_below:010}"

    async def look(start: str) -> None:
        """Look at what follows the epochs of a known folder that were given out, up to the next known one."""
        after = newer(start) if start else ""
        while (found := await _first(bucket, "intake/", after)) is not None:
            folder = found[: found.find("/", len("intake/")) + 1]
            if not folder:  # no broker's
                after = found
                continue
            if folder != start and folder in known:
                return  # what lies there, another look finds
            key = parse_key(found)
            if isinstance(key, IntakeKey) and key.broker_epoch >= given_below and key.broker_epoch >= (await ask()).next_broker_epoch:
                raise TimeTravel(
                    f"this metadata store has given out broker epochs below {given_below}, but the bucket holds {found!r}: it was restored"
                    " from an older copy, or is another bucket's. Nothing was written; bring back the newer database, or rebuild it"
                    " from the bucket"
                )
            after = f"{folder}~" if after.startswith(folder) else newer(folder)  # "~" sorts after all keys of a folder

    async def take_turn(start: str) -> None:
        async with turns:
            await look(start)

    for outcome in await asyncio.gather(*(take_turn(start) for start in ("", *known)), return_exceptions=True):
        if outcome is not None:
            raise outcome


async def _first(bucket: ObjectStore, prefix: str, start_after: str) -> str | None:
    async for found in bucket.list(prefix, start_after=start_after):
        return found.key
    return None


def _read(key: str, content: bytes) -> Marker:
    try:
        fields = json.loads(content)
        return Marker(str(fields["cluster_id"]), int(fields["commit_count"]), int(fields["format_version"]))
    except (ValueError, KeyError, TypeError) as error:
        raise TimeTravel(
            f"the bucket's marker {key!r} was to name the cluster that owns the bucket, but it cannot be read ({error!r});"
            " is this prefix used by something else?"
        ) from error
