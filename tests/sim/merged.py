"""Looks at each merged segment at the moment of its swap: it must be stored, hold what it replaces, stamped as it was committed."""

from sqlite3 import Connection
from typing import TYPE_CHECKING, Any

from tidelog.errors import CorruptBatch, CorruptSegment
from tidelog.records.batch import scan
from tidelog.records.codec import decode_values
from tidelog.segments.format import decode
from tidelog.segments.keys import MergedKey

if TYPE_CHECKING:
    from tests.sim.watcher import Shadow, Watcher
    from tests.sim.world import World


def look_at_swap(watcher: "Watcher", world: "World", db: Connection, who: str, asked: dict[str, Any]) -> None:
    """Look at what a swap that was done for the first time has put in place."""
    merged = asked["merged"]
    key = (merged.broker_epoch, merged.sequence)
    if key in watcher.merged:
        world.counts["swap: done before"] += 1
        return
    watcher.merged.add(key)
    shadow = watcher.shadows.get(merged.partition_id)
    if shadow is None:  # of a topic that is made to be deleted, of which nobody keeps what it held
        world.counts["swap: done"] += 1
        return
    what = f"offsets {merged.base_offset} to {merged.next_offset} in segment {merged.sequence} of broker epoch {merged.broker_epoch}"
    world.counts["swap: done"] += 1
    world.counts[f"swap: step {min(merged.level, 3)}"] += 1
    world.tell("commit", who, "merged {} extents: {}", len(asked["sources"]), what, partition=shadow.partition)
    if asked["leader_epoch"] != shadow.leader_epoch:
        watcher._violation("swapped in a past epoch", shadow.partition_id, f"{what} in {asked['leader_epoch']} of {shadow.leader_epoch}")
    writer = watcher.writers.get(merged.broker_epoch)
    if writer is None or writer.ended or merged.sequence <= writer.resolved_sequence:
        watcher._violation("swapped, though it may be deleted", shadow.partition_id, f"{what}, whose writer is {writer}")
        return
    at = None
    rows = "SELECT base_offset, next_offset FROM extents WHERE partition_id = ? AND next_offset > ? ORDER BY base_offset"
    for base, end in db.execute(rows, [merged.partition_id, shadow.log_start_offset]).fetchall():
        if at is not None and base != at:
            watcher._violation("extents not dense", shadow.partition_id, f"{base} follows {at} after {what}")
        at = end
    [(topic_id,)] = db.execute("SELECT topic_id FROM partitions WHERE partition_id = ?", [merged.partition_id])
    name = MergedKey(topic_id, shadow.partition, merged.base_offset, writer.broker_id, merged.broker_epoch, merged.sequence)
    content = world.bucket.content(str(name))
    if content is None:
        watcher._violation("dangling", shadow.partition_id, f"{what}, which is not stored")
        return
    _look_at_content(watcher, shadow, merged, content, what)


def _look_at_content(watcher: "Watcher", shadow: "Shadow", merged: Any, content: bytes, what: str) -> None:
    try:
        footer = decode(content)
        [chunk] = footer.chunks
        data = content[chunk.position : chunk.end]
        headers = scan(data)
    except (CorruptSegment, CorruptBatch) as error:
        watcher._violation("corrupt", shadow.partition_id, f"{what}: {error}")
        return
    assert footer.merged is not None
    told = (chunk.position, chunk.length, footer.merged.base_offset, footer.merged.next_offset)
    if told != (merged.position, merged.length, merged.base_offset, merged.next_offset):
        watcher._violation("merged wrongly", shadow.partition_id, f"{what}: its footer says {told}")
    at = merged.base_offset
    for header in headers:
        values = [int(value or b"-1") for value in decode_values(data[header.position : header.position + header.size])]
        end = header.base_offset + len(values)
        epochs = set(shadow.epochs[header.base_offset : end])
        if header.base_offset != at or shadow.values[at:end] != values or epochs != {header.leader_epoch}:
            watcher._violation(
                "merged wrongly",
                shadow.partition_id,
                f"{what}: at offset {header.base_offset} of epoch {header.leader_epoch} are {values}, but {shadow.values[at:end]} were"
                f" committed at {at} in {epochs}",
            )
        at = end
    if at != merged.next_offset:
        watcher._violation("merged wrongly", shadow.partition_id, f"{what}: batches end at {at}")
