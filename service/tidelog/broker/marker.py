"""The marker in the bucket: cluster id and commit count, by which an older or foreign metadata store is noticed (I11).

Checked before anything leads, appends or cleans; renewed before every cleaning round. Each marker is an object of its
own (I3); the highest count is the one that counts.
"""

import json
from dataclasses import asdict, dataclass

from tidelog.errors import ObjectExists, TimeTravel
from tidelog.metadata.membership import ClusterState
from tidelog.objects.store import ObjectStore

FORMAT_VERSION = 1
_PREFIX = "cluster/"
_KEPT = 3
"""Older markers are deleted when a new one is written, but for these."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What a metadata store was known to have reached."""

    cluster_id: str
    commit_count: int
    format_version: int


async def newest_marker(bucket: ObjectStore) -> Marker | None:
    """Return the marker with the highest count; None in a bucket that no cluster has used."""
    newest = None
    async for found in bucket.list(_PREFIX):
        newest = found
    if newest is None:
        return None
    content = await bucket.get_range(newest.key, 0, newest.size)
    try:
        fields = json.loads(content)
        return Marker(str(fields["cluster_id"]), int(fields["commit_count"]), int(fields["format_version"]))
    except (ValueError, KeyError, TypeError) as error:
        raise TimeTravel(
            f"the bucket's marker {newest.key!r} was to name the cluster that owns the bucket, but it cannot be read ({error!r});"
            " is this prefix used by something else?"
        ) from error


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


async def renew(bucket: ObjectStore, cluster: ClusterState) -> Marker:
    """Verify, then put down how far the metadata store has come. `cluster` must have been read after all that it is to cover."""
    verify(await newest_marker(bucket), cluster)
    marker = Marker(cluster.cluster_id, cluster.commit_count, FORMAT_VERSION)
    key = f"{_PREFIX}{marker.commit_count:020}.json"
    try:
        await bucket.put_new(key, [json.dumps(asdict(marker), sort_keys=True, separators=(",", ":")).encode()])
    except ObjectExists:  # somebody else's: another cluster that began on this bucket at the same moment
        verify(await newest_marker(bucket), cluster)
        raise
    older = [found.key async for found in bucket.list(_PREFIX) if found.key < key]
    await bucket.delete_many(older[: -_KEPT + 1])
    return marker
