"""What readers find in memory: recent batches, and blocks of segments.

Both are bounded by bytes, and neither lets a scan of the past push out what the tail needs. Neither answers where a log
begins or ends: that is never taken from a cache.
"""

import asyncio
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import islice

from tidelog.broker.flights import shared
from tidelog.broker.pace import Slots
from tidelog.broker.runs import StampedBatches, stamp_parts
from tidelog.errors import CorruptBatch, CorruptSegment
from tidelog.objects.store import ObjectStore
from tidelog.records.batch import BatchHeader, Buffer

_SCAN_SHARE = 4
"""One of so many parts of the record cache is for those who read the past."""
_NEW_SHARE = 4
"""One of so many parts of the block cache is for new blocks, and for those that are fetched ahead."""
_REMEMBERED = 4
"""The names of so many times as many blocks as fit are remembered after they went."""
_SMALL_SHARE = 8
"""One of so many parts of a block, or less, is small."""
_PIECE_BYTES = 400
"""What the objects of one piece take beside its bytes."""


@dataclass(slots=True)
class ReadStats:
    """Counts of what reading did, since the start."""

    memory_hits: int = 0
    memory_misses: int = 0
    memory_bytes: int = 0
    bucket_bytes: int = 0
    """Given to readers, from memory and from the bucket."""
    bucket_seconds: float = 0.0
    """That reads of the bucket took, queueing included."""
    block_hits: int = 0
    block_misses: int = 0
    blocks_ahead: int = 0
    bytes_fetched: int = 0
    look_ups: int = 0
    looked_up_partitions: int = 0
    polls: int = 0
    failed_polls: int = 0
    feeds_opened: int = 0
    feeds_broken: int = 0
    news_gaps: int = 0
    missing_objects: int = 0
    corrupt_reads: int = 0

    def as_dict(self) -> dict[str, float]:
        """Return the counts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class _Piece:
    """Batches [base_offset, next_offset) of a partition: as intake took them in, stamped when first read."""

    __slots__ = ("_leader_epoch", "_parts", "_stamped", "base_offset", "cost", "next_offset")

    def __init__(self, base_offset: int, next_offset: int, *, leader_epoch: int, parts: Sequence[Buffer]) -> None:
        self.base_offset = base_offset
        self.next_offset = next_offset
        self._leader_epoch = leader_epoch
        self._parts = [_held(part) for part in parts]
        self._stamped: StampedBatches | None = None
        # A part is as large as the memory that it keeps alive.
        held = dict(map(_owner, self._parts))
        self.cost = sum(held.values()) + _PIECE_BYTES

    @classmethod
    def of(cls, stamped: StampedBatches) -> "_Piece":
        piece = cls(stamped.base_offset, stamped.next_offset, leader_epoch=-1, parts=())
        piece._stamped = stamped
        piece.cost = stamped.size
        return piece

    def stamped(self) -> StampedBatches:
        if self._stamped is None:
            self._stamped = stamp_parts(self._parts, base_offset=self.base_offset, leader_epoch=self._leader_epoch)
            self._parts = []
            self.cost = self._stamped.size
        return self._stamped


def _held(part: Buffer) -> Buffer:
    """Return `part`, or a copy where it would keep more than twice as much memory alive."""
    return bytes(part) if _owner(part)[1] > 2 * len(part) else part


def _owner(part: Buffer) -> tuple[int, int]:
    """Return which object holds the bytes of `part`, and how large that is."""
    owner = part.obj if isinstance(part, memoryview) else part
    return id(owner), memoryview(owner).nbytes


class RecordCache:
    """Recent batches by partition and offset. Least recently used goes first; the past has a share of its own."""

    def __init__(self, *, max_bytes: int) -> None:
        self._limits = {True: max_bytes - max_bytes // _SCAN_SHARE, False: max_bytes // _SCAN_SHARE}
        self._used = {True: 0, False: 0}
        self._recency: dict[bool, OrderedDict[tuple[int, int], _Piece]] = {True: OrderedDict(), False: OrderedDict()}
        self._bases: dict[int, list[int]] = {}

    @property
    def used_bytes(self) -> int:
        """Memory held now."""
        return self._used[True] + self._used[False]

    def took_in(
        self, partition_id: int, base_offset: int, leader_epoch: int, parts: Sequence[Buffer], headers: Sequence[BatchHeader]
    ) -> int:
        """Keep what intake took in and has seen committed at `base_offset` (I2), as it is: it is stamped if anyone reads it.

        Returns the offset that follows.
        """
        next_offset = base_offset + sum(header.record_count for header in headers)
        self._keep(partition_id, _Piece(base_offset, next_offset, leader_epoch=leader_epoch, parts=parts), tail=True)
        return next_offset

    def keep(self, partition_id: int, batches: StampedBatches, *, tail: bool) -> None:
        """Keep what was read from the bucket; `tail`: it was committed just now, others will want it."""
        self._keep(partition_id, _Piece.of(batches), tail=tail)

    def find(self, partition_id: int, offset: int) -> StampedBatches | None:
        """Return batches that cover `offset`."""
        bases = self._bases.get(partition_id)
        if not bases:
            return None
        place = bisect_right(bases, offset)
        for base in reversed(bases[max(0, place - 2) : place]):  # what was read twice at once may overlap
            key = (partition_id, base)
            tail = key in self._recency[True]
            piece = self._recency[tail][key]
            if offset < piece.next_offset:
                self._recency[tail].move_to_end(key)
                self._used[tail] -= piece.cost
                try:
                    stamped = piece.stamped()
                except CorruptBatch:  # what intake had checked was changed since: the bucket has it as it was
                    self._used[tail] += piece.cost
                    self._drop(tail, key)
                    return None
                self._used[tail] += piece.cost
                self._shrink(tail)
                return stamped
        return None

    def _keep(self, partition_id: int, piece: _Piece, *, tail: bool) -> None:
        key = (partition_id, piece.base_offset)
        if piece.cost > self._limits[tail]:
            return
        for part, pieces in self._recency.items():
            if key in pieces:
                if pieces[key].next_offset >= piece.next_offset:
                    return
                self._drop(part, key)
        self._recency[tail][key] = piece
        self._used[tail] += piece.cost
        insort(self._bases.setdefault(partition_id, []), piece.base_offset)
        self._shrink(tail)

    def _shrink(self, tail: bool) -> None:
        while self._used[tail] > self._limits[tail]:
            self._drop(tail, next(iter(self._recency[tail])))

    def _drop(self, tail: bool, key: tuple[int, int]) -> None:
        self._used[tail] -= self._recency[tail].pop(key).cost
        partition_id, base_offset = key
        bases = self._bases[partition_id]
        del bases[bisect_right(bases, base_offset) - 1]
        if not bases:
            del self._bases[partition_id]


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [position, position + length) of an object."""

    key: str
    position: int
    length: int


class BlockCache:
    """Aligned blocks of immutable objects (I3), each fetched once however many want it.

    2Q: a new block goes in the order of coming, however often it is asked for meanwhile, since those who read the past side by
    side all ask for it within moments and then no more. One that is asked for again after it went has proved itself, and goes
    least recently used first. New ones take all the memory that the proven do not use, and always a share.
    """

    def __init__(self, objects: ObjectStore, *, block_bytes: int, max_bytes: int, stats: ReadStats) -> None:
        self._objects = objects
        self._block_bytes = block_bytes
        self._max_bytes = max_bytes
        self._stats = stats
        self._new: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._proven: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._new_bytes = self._proven_bytes = 0
        self._gone: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._ahead: set[tuple[str, int]] = set()
        """Those fetched ahead, or on their way so, that nobody has asked for yet."""
        self._flights: dict[tuple[str, int], asyncio.Task[bytes]] = {}

    @property
    def used_bytes(self) -> int:
        """Memory held now, without blocks on their way."""
        return self._new_bytes + self._proven_bytes

    def has(self, spans: Sequence[Span]) -> bool:
        """Return whether all blocks of these spans are in memory."""
        return all(self._cached((span.key, number)) is not None for span in spans for number in self._numbers(span))

    async def read(self, spans: Sequence[Span], *, slots: Slots) -> list[list[Buffer]]:
        """Return the bytes of each span, in pieces.

        Raises StoreError, ObjectNotFound among them, and CorruptSegment for objects that are too short.
        """
        wanted = [(span, number) for span in spans for number in self._numbers(span)]
        pieces = []
        for place, (span, number) in enumerate(wanted):
            # As many as may come at once are on their way. More would be pushed out of memory before they are looked at.
            for coming, coming_number in wanted[place : place + slots.most]:
                if self._cached((coming.key, coming_number)) is None:
                    self._flight((coming.key, coming_number), slots)
            pieces.append(await self._piece(span, number, slots))
        found = iter(pieces)
        return [list(islice(found, len(self._numbers(span)))) for span in spans]

    def fetch_ahead(self, spans: Sequence[Span], *, slots: Slots) -> None:
        """Begin to fetch blocks that will be asked for soon, as far as slots are free, and memory for what nobody has asked for yet."""
        for span in spans:
            for number in self._numbers(span):
                key = (span.key, number)
                if key in self._flights or self._cached(key) is not None:
                    continue
                room = (len(self._ahead) + 1) * self._block_bytes <= self._max_bytes // _NEW_SHARE
                if len(self._flights) >= slots.allowed or not room:
                    return
                self._stats.blocks_ahead += 1
                self._ahead.add(key)
                self._flight(key, slots)

    def forget(self, spans: Sequence[Span]) -> None:
        """Drop the blocks of spans whose content was not what it should be."""
        for span in spans:
            for number in self._numbers(span):
                self._drop((span.key, number))

    async def close(self) -> None:
        """Give up all that is on its way."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        if flights:
            await asyncio.wait(flights)

    def _numbers(self, span: Span) -> range:
        return range(span.position // self._block_bytes, (span.position + span.length - 1) // self._block_bytes + 1)

    async def _piece(self, span: Span, number: int, slots: Slots) -> Buffer:
        key = (span.key, number)
        start = number * self._block_bytes
        lower = max(span.position - start, 0)
        upper = min(span.position + span.length - start, self._block_bytes)
        self._ahead.discard(key)
        block = self._cached(key)
        if block is not None and len(block) >= upper:
            self._stats.block_hits += 1
            if key in self._proven:
                self._proven.move_to_end(key)
            return _part(block, lower, upper)
        if block is not None:  # cut short when it was fetched: perhaps on its way here
            self._drop(key)
        content = await shared(self._flight(key, slots))
        if len(content) < upper:
            self._drop(key)
            raise CorruptSegment(
                f"{span.key}: {span.length} bytes from {span.position} on were asked for, but only {start + len(content)} came",
                position=start + len(content),
            )
        return _part(content, lower, upper)

    def _cached(self, key: tuple[str, int]) -> bytes | None:
        return self._new.get(key, self._proven.get(key))

    def _flight(self, key: tuple[str, int], slots: Slots) -> asyncio.Task[bytes]:
        flight = self._flights.get(key)
        if flight is None:
            self._stats.block_misses += 1
            flight = self._flights[key] = asyncio.ensure_future(self._fetch(key, slots))
            flight.add_done_callback(lambda done: self._landed(key, done))
        return flight

    async def _fetch(self, key: tuple[str, int], slots: Slots) -> bytes:
        name, number = key
        async with slots.slot():
            content = await self._objects.get_range(name, number * self._block_bytes, self._block_bytes)
        self._stats.bytes_fetched += len(content)
        self._drop(key)
        if key in self._gone:
            del self._gone[key]
            self._proven[key] = content
            self._proven_bytes += len(content)
        else:
            self._new[key] = content
            self._new_bytes += len(content)
        self._shrink()
        return content

    def _landed(self, key: tuple[str, int], flight: asyncio.Task[bytes]) -> None:
        del self._flights[key]
        if flight.cancelled() or flight.exception():
            self._ahead.discard(key)  # whoever waited has the error; a block fetched ahead is asked for again when it is wanted

    def _shrink(self) -> None:
        while self.used_bytes > self._max_bytes:
            if not self._proven or self._new_bytes > self._max_bytes // _NEW_SHARE:
                key, block = self._new.popitem(last=False)
                self._new_bytes -= len(block)
            else:
                key, block = self._proven.popitem(last=False)
                self._proven_bytes -= len(block)
            self._gone[key] = None
            self._ahead.discard(key)
        while len(self._gone) > _REMEMBERED * self._max_bytes // self._block_bytes:
            self._gone.popitem(last=False)

    def _drop(self, key: tuple[str, int]) -> None:
        if (block := self._new.pop(key, None)) is not None:
            self._new_bytes -= len(block)
        elif (block := self._proven.pop(key, None)) is not None:
            self._proven_bytes -= len(block)


def _part(content: bytes, lower: int, upper: int) -> Buffer:
    """Return part of a block: a small one in a copy, which does not keep the whole block in memory while others are waited for."""
    part = memoryview(content)[lower:upper]
    return part if len(part) * _SMALL_SHARE >= len(content) else bytes(part)
