"""Questions to SQL about extents, those of one moment in one statement; and the names of segments' objects."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

from tidelog.broker.cache import ReadStats
from tidelog.broker.catalog import PartitionRef
from tidelog.broker.flights import shared
from tidelog.errors import MetadataUnusable, UnknownPartition
from tidelog.metadata.extents import Extent, ExtentsRead, PartitionExtents, Writer, read_extents, writers
from tidelog.metadata.store import MetadataStore
from tidelog.segments.keys import IntakeKey, MergedKey

_MOST_ROWS = 4096
"""Extents in one answer."""
_MOST_POSITIONS = 1024
"""Partitions in one question."""
_MOST_WRITERS = 10_000


def object_key(extent: Extent, writer: Writer, *, topic_id: str, partition: int) -> str:
    """Return the name of the extent's object."""
    if extent.level == 0:
        return str(IntakeKey(writer.broker_id, writer.broker_epoch, extent.sequence, writer.incarnation))
    return str(MergedKey(topic_id, partition, extent.base_offset, writer.broker_id, writer.broker_epoch, extent.sequence))


class Lookups:
    """Asks `read_extents` for many cursors at once: what is asked while a statement runs goes into the next one."""

    def __init__(self, metadata: MetadataStore, *, max_extents_each: int, stats: ReadStats) -> None:
        self._metadata = metadata
        self._max_extents_each = max_extents_each
        self._stats = stats
        self._waiting: dict[int, dict[int, asyncio.Future[PartitionExtents]]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._writers: OrderedDict[int, Writer] = OrderedDict()

    async def extents(self, partition_id: int, offset: int) -> PartitionExtents:
        """Return the partition's bounds now, the extent that holds `offset`, and some that follow it.

        Raises UnknownPartition, MetadataUnavailable while SQL is away, and Draining.
        """
        of_partition = self._waiting.setdefault(partition_id, {})
        answer = of_partition.get(offset)
        if answer is None:
            answer = of_partition[offset] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_retrieved)
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask_all())
        return await shared(answer)

    async def poll(self, positions: list[tuple[int, int]]) -> ExtentsRead:
        """Return what follows each (partition id, offset), and all bounds, from one statement."""
        each = max(1, _MOST_ROWS // len(positions))
        read = await self._metadata.run(read_extents, positions=positions, max_extents=_MOST_ROWS, max_extents_each=each)
        self._learn(read.writers)
        return read

    async def learn_writers(self, extents: Iterable[Extent]) -> None:
        """Have the writers of these extents at hand, for `key`."""
        missing = {extent.broker_epoch for extent in extents} - self._writers.keys()
        if missing:
            self._learn(await self._metadata.run(writers, broker_epochs=sorted(missing)))

    def key(self, ref: PartitionRef, extent: Extent) -> str:
        """Return the name of the extent's object. Raises MetadataUnusable where its writer is not known."""
        writer = self._writers.get(extent.broker_epoch)
        if writer is None:
            raise MetadataUnusable(
                f"partition {ref.partition} of topic {ref.topic!r} has an extent of broker epoch {extent.broker_epoch}, but no such writer"
                " is known; the metadata store has lost rows: restore it"
            )
        self._writers.move_to_end(writer.broker_epoch)
        return object_key(extent, writer, topic_id=ref.topic_id, partition=ref.partition)

    async def close(self) -> None:
        """Give up what is being asked."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    def _learn(self, found: Iterable[Writer]) -> None:
        for writer in found:
            self._writers[writer.broker_epoch] = writer
        while len(self._writers) > _MOST_WRITERS:
            self._writers.popitem(last=False)

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                await self._ask_some()
        finally:
            self._asking = None
            for of_partition in self._waiting.values():  # closed meanwhile
                for answer in of_partition.values():
                    answer.cancel()
            self._waiting.clear()

    async def _ask_some(self) -> None:
        """Ask for one offset of each partition: the verb takes no more."""
        asked: list[tuple[int, int, asyncio.Future[PartitionExtents]]] = []
        for partition_id in list(self._waiting)[:_MOST_POSITIONS]:
            of_partition = self._waiting[partition_id]
            offset = next(iter(of_partition))
            asked.append((partition_id, offset, of_partition.pop(offset)))
            if not of_partition:
                del self._waiting[partition_id]
        self._stats.look_ups += 1
        self._stats.looked_up_partitions += len(asked)
        each = min(self._max_extents_each, max(1, _MOST_ROWS // len(asked)))
        try:
            read = await self._metadata.run(
                read_extents,
                positions=[(partition_id, offset) for partition_id, offset, _ in asked],
                max_extents=_MOST_ROWS + len(asked),
                max_extents_each=each,
            )
        except asyncio.CancelledError:
            for *_, answer in asked:
                answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001  # each of those who asked gets it
            for *_, answer in asked:
                answer.set_exception(error)
            return
        self._learn(read.writers)
        found = {partition.partition_id: partition for partition in read.partitions}
        for partition_id, _, answer in asked:
            if partition_id in found:
                answer.set_result(found[partition_id])
            else:
                answer.set_exception(
                    UnknownPartition(f"the partition with id {partition_id} was asked for, but its topic has been deleted; ask for another")
                )


def _retrieved(answer: "asyncio.Future[PartitionExtents]") -> None:
    if not answer.cancelled():
        answer.exception()  # those who asked may have left
