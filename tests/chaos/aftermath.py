"""What is left after a run: what nobody needs goes, `tidelog fsck` finds nothing, and a lost database comes back from the bucket."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import tidelog
from tidelog.clock import SystemClock
from tidelog.config import Settings
from tidelog.metrics import Metrics
from tidelog.objects.store import ObjectStore
from tidelog.randomness import system_random
from tidelog.segments.keys import IntakeKey, MergedKey, parse_key
from tidelog.server.stores import open_bucket, open_metadata

from tests.chaos.cluster import tail
from tests.chaos.scenario import Chaos, Contents, wait_until_served
from tests.command_line import COMMAND, environment
from tests.rebuilt_rows import all_rows, as_rebuilt, comparable

SETTLED_WITHIN_S = 60
_LOOK_EVERY_S = 1.0
"""A look at a bucket with many objects takes a while, in which no link carries anything."""
FAILURES = frozenset({"error", "critical"})


@dataclass(frozen=True)
class Stores:
    """Bucket and database, by ways that nothing bends."""

    bucket: str
    metadata: str


@dataclass(frozen=True)
class Database:
    """A database, as tests reach it and as brokers do."""

    direct: str
    for_brokers: str


class Watched:
    """The segments that were ever seen in a bucket."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._seen: dict[str, bool] = {}
        """Keys, and whether they are there now."""

    async def look(self) -> set[tuple[int, int]]:
        """Return which segments are there: (broker epoch, sequence)."""
        there = {found.key for prefix in ("intake/", "merged/") for found in [each async for each in self._store.list(prefix)]}
        self._seen = dict.fromkeys(self._seen, False) | dict.fromkeys(there, True)
        return {(key.broker_epoch, key.sequence) for name in there if (key := parse_key(name)) is not None}

    async def watch(self) -> None:
        """Look again and again. What is deleted sooner than one looks is not counted."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    def told(self) -> Counter[str]:
        """Count segments by what they are, and by whether they are gone."""
        found: Counter[str] = Counter()
        for name, there in self._seen.items():
            kind = {IntakeKey: "intake", MergedKey: "merged"}[type(parse_key(name))]
            found[f"{kind} segments written"] += 1
            found[f"{kind} segments deleted"] += not there
        return found


@asynccontextmanager
async def watched(bucket: str) -> AsyncIterator[Watched]:
    """Watch a bucket while the context is open."""
    store = await open_bucket(Settings(bucket=bucket), metrics=Metrics(), clock=SystemClock(), chance=system_random(), reading=True)
    found = Watched(store)
    watching = asyncio.create_task(found.watch())
    try:
        yield found
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await store.close()


async def settled(chaos: Chaos, stores: Stores, bucket: Watched) -> None:
    """Wait until all that nobody needs is gone: objects, rows that speak of them, deleted topics."""
    until = time.monotonic() + SETTLED_WITHIN_S
    connection = await asyncpg.connect(stores.metadata)
    try:
        while True:
            stored = await bucket.look()
            live = {tuple(row) for row in await connection.fetch("SELECT DISTINCT broker_epoch, sequence FROM extents")}
            released = await connection.fetch("SELECT broker_epoch, sequence FROM released_segments")
            topics = await connection.fetchval("SELECT count(*) FROM topics WHERE deleted")
            notes = sum(tuple(row) not in live for row in released)
            if not (stored - live or notes or topics):
                return
            if time.monotonic() > until:
                what = f"{len(stored - live)} segments, {notes} notes, {topics} deleted topics"
                chaos.anomaly("what nobody needs stays", (what, *map(tail, chaos.brokers)))
                return
            await asyncio.sleep(_LOOK_EVERY_S)
    finally:
        await connection.close()


async def command(*arguments: str) -> tuple[int, str, str]:
    """Run a command of Tidelog as a process; return its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment()
    )
    printed, problems = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode(), problems.decode()


async def checked(chaos: Chaos, stores: Stores) -> None:
    """`tidelog fsck` reads everything, and finds nothing."""
    code, printed, problems = await command("fsck", "--bucket", stores.bucket, "--metadata", stores.metadata, "--format", "json")
    report = json.loads(printed) if printed else {}
    if code or report["found"] or report["orphans"]:
        chaos.anomaly("fsck", (code, report, problems))
    else:
        chaos.report.lives["records checked by fsck"] += report["records"]


def judge_logs(chaos: Chaos) -> None:
    """No broker has met anything that its operator has to look after; what drivers say of connections that broke is none of it."""
    for broker in chaos.brokers:
        for line in broker.log.read_text(errors="replace").splitlines():
            told = json.loads(line) if line.startswith("{") else {}
            if told.get("level") in FAILURES and told["logger"].startswith("tidelog"):
                chaos.anomaly(f"logged: {told['event']}", (broker.name, line[:500]))


# ---- the database is lost


async def rebuild(chaos: Chaos, stores: Stores) -> dict[str, Any]:
    """Make a new database from the bucket, by the command; return its report."""
    code, printed, problems = await command("rebuild", "--bucket", stores.bucket, "--metadata", stores.metadata, "--format", "json")
    assert code in (0, 1), problems
    report: dict[str, Any] = json.loads(printed)
    assert code == (0 if report["whole"] else 1), (code, report)
    chaos.report.lives["rebuilt databases"] += 1
    for what in ("damaged", "missing"):
        if report[what]:
            chaos.anomaly(f"rebuild: {what}", report[what])
    return report


async def rows_of(metadata: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows that a checkpoint may hold of a database."""
    store = await open_metadata(Settings(metadata=metadata), metrics=Metrics(), clock=SystemClock(), reading=True)
    try:
        return await all_rows(store)
    finally:
        await store.close()


async def begin_on(chaos: Chaos, database: Database) -> None:
    """Start all brokers on another database, and wait until they serve."""
    for broker in chaos.brokers:
        broker.change(metadata=database.for_brokers)
        await broker.start()
    await wait_until_served(chaos.brokers)


async def lost_when_drained(chaos: Chaos, stores: Stores, database: Database) -> None:
    """All brokers leave in order, the database is lost: everything comes back as it was, and clients go on."""
    async with tidelog.connect(chaos.address()) as log, log.producer() as producer:
        topic, partition = chaos.places[0]
        first = await producer.send(topic, b"%d" % chaos.begin(None, 0, 0).value, partition=partition)
        before = await chaos.read_all(chaos.brokers[0])
        codes = await asyncio.gather(*(broker.drain() for broker in chaos.brokers))
        if any(codes):
            chaos.anomaly("drain", (codes, *map(tail, chaos.brokers)))
        rows = await rows_of(stores.metadata)
        report = await rebuild(chaos, Stores(stores.bucket, database.direct))
        were, are = as_rebuilt(rows), comparable(await rows_of(database.direct))
        for table in were.keys() - {"extents"}:  # of a merge since the checkpoint the footer tells, which knows less than the row
            if are[table] != were[table]:
                gone, new = set(were[table]) - set(are[table]), set(are[table]) - set(were[table])
                chaos.anomaly(f"rebuild: rows of {table}", {"gone": sorted(gone), "new": sorted(new)})
        kept = sum(len(each.pairs) for each in before.values())
        certain = sum(each.next_offset - each.log_start_offset for each in before.values())
        if not report["certain"] or report["exact_records"] < certain:
            chaos.anomaly("rebuild: in doubt after a drain", report)
        await begin_on(chaos, database)
        after = await chaos.read_all(chaos.chance.choice(chaos.brokers))
        for place, contents in before.items():
            if after[place] != contents:
                chaos.anomaly("rebuild: not what it was", (chaos.places[place], contents, after[place]))
        second = await producer.send(topic, b"%d" % chaos.begin(None, 0, 0).value, partition=partition)
        if second.offset != first.offset + 1:
            chaos.anomaly("rebuild: a producer that went on", (first, second))
    chaos.report.lives["records compared with those of the lost database"] += kept


async def lost_under_load(chaos: Chaos, bucket: str, database: Database, *, seconds: float) -> None:
    """All brokers and the database are lost at once, while clients append; they go on when both are there again."""
    killed, work = await _killed_under_load(chaos, seconds)
    report = await rebuild(chaos, Stores(bucket, database.direct))
    certain_to = {(each["topic"], each["partition"]): each["base_offset"] for each in report["unknown_order"]}
    begun = time.monotonic()
    await begin_on(chaos, database)
    await asyncio.sleep(1)
    chaos.stopping.set()
    await asyncio.gather(*work)
    after = await chaos.read_all(chaos.chance.choice(chaos.brokers))
    for place, contents in after.items():
        _judge(chaos, place, killed, contents, certain_to.get(chaos.places[place], contents.next_offset), begun)
    chaos.history.polls.clear()  # what was newer than the checkpoint may lie elsewhere now
    chaos.report.lives["records newer than the checkpoint"] += sum(each["records"] for each in report["unknown_order"])
    chaos.report.lives["records compared with those of the lost database"] += sum(len(each.pairs) for each in after.values())


async def _killed_under_load(chaos: Chaos, seconds: float) -> tuple[float, list["asyncio.Task[None]"]]:
    """Let producers append, then kill all brokers at once; return when, and the producers, which try on."""
    chaos.stopping.clear()
    work = [asyncio.create_task(chaos.produce(300 + number)) for number in range(3)]
    await asyncio.sleep(seconds)
    await asyncio.gather(*(broker.kill() for broker in chaos.brokers))
    return time.monotonic(), work


def _judge(chaos: Chaos, place: int, killed: float, contents: Contents, certain_to: int, begun: float) -> None:
    """Hold what a rebuilt partition has against what its clients were told."""
    offsets = {value: offset for offset, value in contents.pairs}

    def wrong(name: str, what: object) -> None:
        chaos.anomaly(f"rebuild: {name}", (chaos.places[place], what))

    if len(offsets) != len(contents.pairs):
        wrong("records twice", [value for value, count in Counter(value for _, value in contents.pairs).items() if count > 1])
    if [offset for offset, _ in contents.pairs] != list(range(contents.log_start_offset, contents.next_offset)):
        wrong("not dense", (contents.log_start_offset, contents.next_offset, len(contents.pairs)))
    known = {
        value: offset for poll in chaos.history.polls if poll.partition == place and poll.ended < killed for offset, value in poll.pairs
    }
    sends = [send for send in chaos.history.sends if send.partition == place]
    known |= {send.value: send.offset for send in sends if send.offset is not None}
    for value, offset in known.items():
        if offset >= contents.log_start_offset and value not in offsets:
            wrong("acknowledged or read, and lost", (value, offset))
        elif contents.log_start_offset <= offset < certain_to and offsets[value] != offset:
            wrong("not where it was", (value, offset, offsets[value]))
    for send in sends:
        if send.kind == "fail" and send.ended > begun and send.value in offsets:
            wrong("failed write visible", send)
        if send.kind == "ok" and send.ended > begun and offsets.get(send.value) != send.offset:
            wrong("acknowledged afterwards, and elsewhere", (send, offsets.get(send.value)))
        if send.offset is not None:
            send.offset = offsets.get(send.value, send.offset)
