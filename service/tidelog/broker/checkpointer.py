"""Checkpoints: the rows that segments alone cannot tell, copied into the bucket every few seconds, so that a lost database can be rebuilt.

The member that has lived longest writes them; were there two for a moment, each would write whole checkpoints under keys of its own.
The first of a writer holds everything. Those after it build on it: small tables whole, of extents and producers only what came since,
which is why the exposure is one interval, and not what a copy of everything costs. No transaction and no memory grows with the extents:
they pass through a page at a time. When nothing has changed, nothing is written.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from tidelog.broker.marker import newest_marker
from tidelog.broker.uploads import Identity
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import TidelogError, TimeTravel
from tidelog.executors import Executor
from tidelog.metadata.cleaning import note_checkpoint
from tidelog.metadata.membership import ClusterState, cluster_state, membership
from tidelog.metadata.snapshot import STATE, TABLES, LivingMarks, read_progress, read_released, read_table
from tidelog.metadata.store import MetadataStore, Transaction
from tidelog.metrics import Metrics
from tidelog.objects.store import ObjectStore
from tidelog.records.checksum import crc32c
from tidelog.segments.checkpoints import (
    PREFIX,
    Block,
    CheckpointKey,
    CheckpointKind,
    CheckpointObject,
    PageRef,
    encode_checkpoint,
    page_ref,
    parse_checkpoint_key,
)
from tidelog.telemetry import get_logger

_log = get_logger(__name__)
_MOST_IN_A_FOLDER = 200
"""Checkpoints that build on each other; then one holds everything again, so that none needs many objects."""
_LEAST_ROWS_BEFORE_ALL_AGAIN = 20_000
"""So many extents may come one by one before everything is copied again, or as many as that was."""
_DELETED_AT_ONCE = 500
_LEAST_BETWEEN_S = 0.5
"""However often topics change."""


@dataclass
class _Chain:
    """Checkpoints that build on each other."""

    base: int
    earlier: list[PageRef] = field(default_factory=list)
    """Whose extents and producers a next checkpoint builds on, in the order in which they apply."""
    ends: dict[int, int] = field(default_factory=dict)
    """Up to which offset the extents of each partition are there."""
    marks: list[Sequence[Any]] = field(default_factory=list)
    """(broker epoch, resolved sequence, ended) when the first of them began: a merged segment that was final by then and that it does
    not name was never put in anything's place."""
    given_below: int = 0
    """All broker epochs below were given before that; one without a mark was forgotten by then."""
    checkpoints: int = 0
    base_rows: int = 0
    later_rows: int = 0
    state: int | None = None
    """Checksum of the small tables as they were last written."""
    commit_count: int | None = None
    """Of the store, when it was last read."""

    @property
    def full(self) -> bool:
        """Whether everything is to be copied again."""
        return self.checkpoints >= _MOST_IN_A_FOLDER or self.later_rows > max(self.base_rows, _LEAST_ROWS_BEFORE_ALL_AGAIN)


class Checkpointer:
    """Writes the checkpoints of one broker epoch, while it is this broker's turn."""

    def __init__(
        self, *, identity: Identity, store: MetadataStore, bucket: ObjectStore, settings: Settings, clock: Clock, executor: Executor,
        metrics: Metrics, is_mine: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._identity = identity
        self._store = store
        self._bucket = bucket
        self._settings = settings
        self._clock = clock
        self._executor = executor
        self._metrics = metrics
        self._is_mine = is_mine
        self._chain: _Chain | None = None
        self._number = 0
        self._busy = asyncio.Lock()
        self._topics_version = 0
        self._at_once = asyncio.Event()

    async def run(self) -> None:
        """Write a checkpoint every `checkpoint_interval_ms`, for ever; what fails is tried again with the next."""
        interval_s = self._settings.checkpoint_interval_ms / 1000
        while True:
            await self.write()
            if not self._is_mine():
                await asyncio.sleep(min(interval_s, self._settings.catalog_poll_ms / 5000))  # it may be soon
                continue
            await asyncio.sleep(min(interval_s, _LEAST_BETWEEN_S))
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._at_once.wait()
            self._at_once.clear()

    def topics_changed(self, version: int) -> None:
        """Do not wait for the interval when topics have changed: of a topic that no checkpoint names, segments tell not even the name."""
        if version != self._topics_version:
            self._topics_version = version
            self._at_once.set()

    async def write(self, *, last: bool = False) -> None:
        """Write a checkpoint, where it is this broker's turn and something has changed; a failure is counted and told.

        `last`: this broker has drained. Where it is the only member, the checkpoint says so, and is written in any case.
        """
        if not self._settings.checkpoint_interval_ms:
            return
        if not self._is_mine():
            self._chain = None
            return
        async with self._busy:
            began = self._clock.monotonic()
            try:
                written = await self._write(last=last)
            except TimeTravel:
                raise
            except TidelogError as error:
                # Whether its objects are there is not known; none of them is named by a later one, which copies again what they hold.
                if self._chain is not None and not self._chain.checkpoints:
                    self._chain = None
                self._metrics.checkpoints["failed"].inc()
                _log.warning("checkpoint_failed", broker_epoch=self._identity.broker_epoch, problem=str(error))
                return
            self._metrics.checkpoints["written" if written else "unchanged"].inc()
            self._metrics.checkpoint_seconds.observe(self._clock.monotonic() - began)
            self._metrics.checkpoint_time.set(self._clock.wall_ms() / 1000)

    async def _write(self, *, last: bool) -> bool:
        """Write a checkpoint and return True; False where nothing has changed."""
        if self._chain is None or self._chain.full:
            self._number = max(self._number, await self._newest_number()) + 1
            self._chain = _Chain(self._number)
            whole = True
        else:
            self._number += 1
            whole = False
        chain = self._chain
        copy = _Copy(self, chain, self._number)
        begun_at_ms = await self._store.run(Transaction.now_ms)
        drained = last and await self._is_alone()
        about = await copy.take() | {"drained": drained}
        if not whole and not drained and not copy.rows and copy.state_crc == chain.state:
            await self._store.run(note_checkpoint, begun_at_ms=begun_at_ms)
            return False
        await copy.close(about)
        await self._store.run(note_checkpoint, begun_at_ms=begun_at_ms)
        if whole:
            await self._remove_old()
        return True

    async def _is_alone(self) -> bool:
        members = (await self._store.run(membership)).brokers
        return [broker.broker_epoch for broker in members] == [self._identity.broker_epoch]

    async def _newest_number(self) -> int:
        newest = 0
        async for found in self._bucket.list(PREFIX):
            key = parse_checkpoint_key(found.key)
            newest = max(newest, 0 if key is None else key.number)
        return newest

    async def _remove_old(self) -> None:
        """Delete folders beyond `checkpoints_kept`, the oldest first; one that is newer than those may be another broker's work."""
        folders: dict[tuple[int, int], list[str]] = defaultdict(list)
        whole: set[tuple[int, int]] = set()
        async for found in self._bucket.list(PREFIX):
            key = parse_checkpoint_key(found.key)
            if key is not None:
                folders[key.folder].append(found.key)
                if key.page is None:
                    whole.add(key.folder)
        kept = sorted(whole)[-self._settings.checkpoints_kept :]
        old = [key for folder, keys in sorted(folders.items()) if folder < kept[0] for key in keys]
        for at in range(0, len(old), _DELETED_AT_ONCE):
            refused = await self._bucket.delete_many(old[at : at + _DELETED_AT_ONCE])
            if refused:
                _log.warning("checkpoints_not_removed", objects=len(refused), problem=next(iter(refused.values())))

    async def _newest_state(self) -> ClusterState:
        """Return the state of the store. Raises TimeTravel where it is older than the bucket, or than it was: it is not copied (I11)."""
        assert self._chain is not None
        seen = self._chain.commit_count
        if seen is None:  # read before the store, which goes on: its state is never older than a marker that was there before
            marker = await newest_marker(self._bucket)
            seen = 0 if marker is None else marker.commit_count
        cluster = await self._store.run(cluster_state)
        if cluster.commit_count < seen:
            raise TimeTravel(
                f"a copy of the metadata store was to be made, but it counts {cluster.commit_count} commits, and {seen} were seen before:"
                " it was replaced by an older copy. Nothing was written; bring back the newer database, or rebuild it from the bucket"
            )
        self._chain.commit_count = cluster.commit_count
        return cluster

    # ---- what a copy needs

    async def _page(self, verb: Callable[..., Any], **asked: Any) -> Any:
        """Run one verb, and leave the store as much time for others as it took."""
        began = self._clock.monotonic()
        answer = await self._store.run(verb, **asked)
        await asyncio.sleep(self._clock.monotonic() - began)
        return answer

    async def _put(self, key: str, data: bytes) -> None:
        await self._bucket.put_new(key, [data])
        self._metrics.checkpoint_bytes.inc(len(data))


class _Copy:
    """One checkpoint as it is made: rows in, objects out."""

    def __init__(self, owner: Checkpointer, chain: _Chain, number: int) -> None:
        self._owner = owner
        self._chain = chain
        self._number = number
        self._pages = 0
        self._waiting: list[Block] = []
        self._waiting_rows = 0
        self._row_pages: list[PageRef] = []
        self._state_pages: list[tuple[str, bytes]] = []
        """Not written before it is known that something has changed."""
        self._state: list[Block] = []
        self._state_rows = 0
        self._ends: dict[int, int] = {}
        self.rows = 0
        """Extents and producers that the checkpoints before it do not have."""
        self.state_crc = 0

    async def take(self) -> dict[str, Any]:
        """Read everything; pages of extents are written as they fill. Returns what the head says."""
        owner, chain = self._owner, self._chain
        taken_at_ms = owner._clock.wall_ms()
        cluster = await owner._newest_state()
        await self._released(None)  # before the marks: a cleaner may condemn some, once they are final
        living: dict[int, int] = {}
        ended: set[int] = set()
        for table in STATE:
            async for rows in self._table(table):
                await self._add_state(table, rows)
                if table == "writers":
                    ended |= {row[0] for row in rows if row[3]}
                elif table == "resolved_marks":
                    living |= {epoch: sequence for epoch, sequence in rows if epoch not in ended}
        if not chain.marks:
            chain.marks, chain.given_below = await self._marks(), cluster.next_broker_epoch
        async for rows in self._table("partitions"):
            await self._add_state("partitions", await self._partitions(rows))
        await self._released(LivingMarks(sorted(living.items()), cluster.next_broker_epoch))
        return {
            "cluster_id": cluster.cluster_id,
            "commit_count": cluster.commit_count,
            "given_below": chain.given_below,
            "number": self._number,
            "broker_id": owner._identity.broker_id,
            "broker_epoch": owner._identity.broker_epoch,
            "taken_at_ms": taken_at_ms,
        }

    async def close(self, about: dict[str, Any]) -> None:
        """Write what is left, the head last: with it the checkpoint is there."""
        owner, chain = self._owner, self._chain
        state_pages = []
        for key, data in self._state_pages:
            await owner._put(key, data)
            state_pages.append(page_ref(key, data))
        about |= {"pages": [asdict(ref) for ref in (*chain.earlier, *self._row_pages)], "state": [asdict(ref) for ref in state_pages]}
        marks = Block("marks", ("broker_epoch", "sequence", "ended"), chain.marks)
        blocks = (*self._state, marks, *self._waiting)
        key = str(CheckpointKey(chain.base, owner._identity.broker_epoch, self._number))
        data = await owner._executor.run(encode_checkpoint, CheckpointObject(CheckpointKind.HEAD, about, blocks))
        await owner._put(key, data)
        chain.earlier += self._row_pages
        if self._waiting:
            chain.earlier.append(page_ref(key, data))
        chain.ends = self._ends
        chain.state = self.state_crc
        if chain.checkpoints:
            chain.later_rows += self.rows
        else:
            chain.base_rows = self.rows
        chain.checkpoints += 1

    async def _table(self, table: str) -> Any:
        key = [list(TABLES[table].columns).index(column) for column in TABLES[table].key]
        after = None
        limit = self._owner._settings.checkpoint_page_rows
        while rows := await self._owner._page(read_table, table=table, after=after, limit=limit):
            yield rows
            if len(rows) < limit:
                return
            after = [rows[-1][place] for place in key]

    async def _released(self, marks: LivingMarks | None) -> None:
        after = None
        limit = self._owner._settings.checkpoint_page_rows
        while rows := await self._owner._page(read_released, marks=marks, after=after, limit=limit):
            await self._add_state("released_extents", rows)
            after = rows[-1][:4]

    async def _marks(self) -> list[Sequence[Any]]:
        """Return what is final now; before any extent is read."""
        ended = {row[0]: row[3] async for rows in self._table("writers") for row in rows}
        return [
            (epoch, sequence, ended[epoch]) async for rows in self._table("resolved_marks") for epoch, sequence in rows if epoch in ended
        ]

    async def _partitions(self, rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """Add what these partitions have gained since the checkpoint before; return their rows as they are then."""
        columns = list(TABLES["partitions"].columns)
        start_at, end_at = columns.index("log_start_offset"), columns.index("next_offset")
        begins = {row[0]: self._chain.ends.get(row[0], 0) for row in rows}
        gained = {row[0]: begins[row[0]] for row in rows if row[end_at] > begins[row[0]]}
        bounds = {row[0]: (row[start_at], row[end_at]) for row in rows}
        gone: set[int] = set()
        limit = self._owner._settings.checkpoint_page_rows
        producers_from = sorted(gained.items())
        while gained:
            read = await self._owner._page(
                read_progress, positions=sorted(gained.items()), producers_from=producers_from, max_extents=limit
            )
            await self._add("extents", [_row(extent) for found in read.extents.partitions for extent in found.extents])
            await self._add("producers", read.producers)
            told = {found.partition_id: found for found in read.extents.partitions}
            cut = sum(len(found.extents) for found in told.values()) >= limit
            gone |= gained.keys() - told.keys()
            bounds |= {partition_id: (found.log_start_offset, found.high_watermark) for partition_id, found in told.items()}
            ends = {partition_id: found.extents[-1].next_offset for partition_id, found in told.items() if found.extents}
            gained = {
                partition_id: ends.get(partition_id, at)
                for partition_id, at in gained.items()
                if cut and partition_id in told and ends.get(partition_id, at) < told[partition_id].high_watermark
            }
            # Their producers may have gone on meanwhile: those are read again, from the same offset, with the bounds that stand.
            producers_from = [(partition_id, begins[partition_id]) for partition_id in sorted(gained)]
        left = [row for row in rows if row[0] not in gone]
        self._ends |= {row[0]: bounds[row[0]][1] for row in left}
        return [(*row[:start_at], *bounds[row[0]], *row[end_at + 1 :]) for row in left]

    async def _add(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        if not rows:
            return
        self.rows += len(rows)
        self._waiting.append(Block(table, tuple(TABLES[table].columns), rows))
        self._waiting_rows += len(rows)
        if self._waiting_rows >= self._owner._settings.checkpoint_page_rows:
            key, data = await self._encoded(self._waiting)
            await self._owner._put(key, data)
            self._row_pages.append(page_ref(key, data))
            self._waiting, self._waiting_rows = [], 0

    async def _add_state(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        rows = list(rows)
        self.state_crc = crc32c(orjson.dumps([table, rows]), self.state_crc)
        self._state.append(Block(table, tuple(TABLES[table].columns), rows))
        self._state_rows += len(rows)
        if self._state_rows >= self._owner._settings.checkpoint_page_rows:
            self._state_pages.append(await self._encoded(self._state))
            self._state, self._state_rows = [], 0

    async def _encoded(self, blocks: list[Block]) -> tuple[str, bytes]:
        key = str(CheckpointKey(self._chain.base, self._owner._identity.broker_epoch, self._number, self._pages))
        self._pages += 1
        return key, await self._owner._executor.run(encode_checkpoint, CheckpointObject(CheckpointKind.PAGE, {}, tuple(blocks)))


def _row(extent: Any) -> tuple[Any, ...]:
    return tuple(getattr(extent, column) for column in TABLES["extents"].columns)
