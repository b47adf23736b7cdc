"""Transactions on a real PostgreSQL, statement by statement, in every order that matters (I1, I5, I6, I7).

After each order the invariants hold; and answers and rows are those of one of the serial orders: whoever reasons about
verbs may think of them as run one after the other, as SQLite does.
"""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from tidelog.broker.catalog import Catalog
from tidelog.errors import MetadataOutcomeUnknown, MetadataUnavailable, MetadataUnusable, TidelogError
from tidelog.metadata.cleaning import Verdict
from tidelog.metadata.commits import Committed
from tidelog.metadata.membership import Membership
from tidelog.metadata.postgres import PostgresStore
from tidelog.metadata.store import Transaction
from tidelog.metadata.topics import CatalogChanges, catalog_changes

from tests.metadata_scene import VERBS, Snapshots, State, bound
from tests.stepper import Answer, Deadlock, Interleaving, Stepper, Verb, without_sync

TOGETHER: list[tuple[str, ...]] = [
    ("commit", "commit"),
    ("commit", "commit another segment"),
    ("commit", "commit at the next offset"),
    ("commit to 1 and 2", "commit to 2 and 1"),
    ("commit to 1 and 2", "commit to 3"),
    ("commit", "take over"),
    ("commit", "take over", "commit under the next leader epoch"),
    ("commit", "transfer"),
    ("commit of the expired writer", "end expired epochs"),
    ("commit of the expired writer", "end the expired epoch"),
    ("commit of the expired writer", "register anew"),
    ("commit of the expired writer", "end the expired epoch", "judge segments of the expired writer"),
    ("commit", "judge"),
    ("commit", "resolve"),
    ("commit", "resolve", "judge"),
    ("commit", "resolve", "look up"),
    ("commit", "delete topic"),
    ("commit to deleted topics", "drop deleted topic"),
    ("commit to deleted topics", "drop the topic deleted earlier"),
    ("commit", "advance log start"),
    ("commit", "advance log starts"),
    ("swap", "advance log starts"),
    ("commit", "set fencing token"),
    ("commit", "drain"),
    ("commit", "expire producers"),
    ("swap", "commit"),
    ("swap", "release all"),
    ("swap", "advance log start"),
    ("swap", "advance log start", "release all"),
    ("swap", "advance log start less", "release all"),
    ("swap", "swap"),
    ("swap", "swap to another"),
    ("swap", "swap the first"),
    ("swap", "judge sources"),
    ("swap", "resolve less"),
    ("swap", "resolve less", "judge sources"),
    ("swap", "end own epoch"),
    ("swap", "take over"),
    ("swap", "delete topic"),
    ("swap", "transfer"),
    ("swap", "release"),
    ("swap", "forget"),
    ("swap", "expire producers"),
    ("swap in a deleted topic", "release of a deleted topic", "drop the topic deleted earlier"),
    ("swap in a deleted topic", "drop the topic deleted earlier"),
    ("release of a deleted topic", "drop the topic deleted earlier"),
    ("release of a deleted topic", "condemn released", "forget"),
    ("release of a deleted topic", "release of a deleted topic"),
    ("release", "commit to 1 and 2"),
    ("release", "condemn released"),
    ("drop deleted topic", "drop deleted topic"),
    ("drop deleted topic", "drop the topic deleted earlier"),
    ("drop deleted topic", "expire producers"),
    ("drop deleted topic", "condemn released"),
    ("expire producers", "expire producers"),
    ("expire producers", "take over"),
    ("expire producers", "delete topic"),
    ("condemn released", "condemn expired"),
    ("condemn released", "forget"),
    ("judge segments of the expired writer", "end the expired epoch"),
    ("judge", "resolve"),
    ("forget", "forget"),
    ("resolve", "resolve less"),
    ("resolve", "end own epoch"),
    ("delete topic", "delete topic"),
    ("delete topic", "advance log start"),
    ("delete topic", "set fencing token"),
    ("transfer", "end expired epochs"),
    ("transfer", "end own epoch"),
    ("transfer", "transfer"),
    ("take over", "end own epoch"),
    ("take over", "drain"),
    ("drain", "register"),
    ("drain", "end own epoch"),
    ("renew", "end own epoch"),
    ("renew", "register anew"),
    ("release", "condemn expired"),
    ("release", "forget"),
    ("release", "condemn expired", "forget"),
    ("release", "release in 2"),
    ("advance log start", "advance log start less"),
    ("advance log start", "release all", "forget"),
    ("condemn expired", "condemn expired"),
    ("take over", "take over"),
    ("end expired epochs", "take over what nobody leads"),
    ("take over what nobody leads", "the other takes over what nobody leads"),
    ("take over", "delete topic"),
    ("take over", "register"),
    ("take over", "add partitions"),
    ("take over", "set fencing token"),
    ("transfer", "set fencing token"),
    ("set fencing token", "set fencing token"),
    ("take over of a deleted topic", "drop deleted topic"),
    ("transfer", "take over"),
    ("transfer", "take over as target"),
    ("transfer", "delete topic"),
    ("transfer", "drain"),
    ("create topic", "create topic"),
    ("create topic", "create a topic of that name"),
    ("create topic", "create another topic"),
    ("add partitions", "add partitions"),
    ("add partitions", "delete topic"),
    ("alter topic", "delete topic"),
    ("allocate producer ids", "register"),
    ("allocate producer ids", "allocate producer ids"),
    ("register anew", "register anew"),
    ("register anew", "register anew in another process"),
    ("register anew", "end expired epochs"),
    ("end every epoch", "take over"),
    ("end every epoch", "renew"),
    ("initialise", "register"),
    ("end expired epochs", "renew the expired lease"),
    ("end expired epochs", "end the expired epoch"),
    ("register anew", "renew the expired lease"),
    ("release in 2", "condemn expired"),
    ("release of many", "condemn released"),
    ("release of many", "condemn released", "forget"),
    ("release of many", "release of many"),
    ("release of many", "commit to 1 and 2"),
    ("release of many", "swap"),
    ("release of many", "take over"),
    ("release of many", "drop the topic deleted earlier"),
    ("look for orphans", "release"),
    ("look for orphans", "release in 2"),
    ("look for orphans", "swap"),
    ("look for orphans", "condemn released"),
    ("look for orphans", "commit of the expired writer", "end the expired epoch"),
    ("look for orphans", "commit", "resolve"),
    ("forget writers", "commit of the expired writer", "end the expired epoch"),
    ("forget writers", "end the expired epoch"),
    ("forget writers", "end own epoch", "swap"),
    ("forget writers", "register anew"),
    ("forget writers", "release all"),
    ("forget writers", "resolve", "end own epoch"),
    ("forget writers", "forget writers"),
    ("apply retention", "commit to 1 and 2"),
    ("apply retention", "take over"),
    ("apply retention", "swap"),
    ("apply retention", "release of many"),
    ("apply retention", "delete topic"),
    ("apply retention", "advance log start"),
    ("apply retention by time", "commit to 1 and 2"),
    ("apply retention by time", "take over"),
    ("apply retention by time", "delete topic"),
    ("apply retention to many", "apply retention to many"),
    ("strip the topic deleted earlier", "drop the topic deleted earlier"),
    ("strip the topic deleted earlier", "expire producers"),
    ("look for deleted topics", "drop the topic deleted earlier"),
    ("look for deleted topics", "delete topic"),
    ("acquire cleaner", "the other acquires cleaner"),
    ("create group", "create group"),
    ("create group", "create group otherwise"),
    ("write group", "write group"),
    ("write group", "write group otherwise"),
    ("write group", "take over the coordinator"),
    ("write group", "commit group offsets"),
    ("write group", "delete group"),
    ("commit group offsets", "commit other group offsets"),
    ("commit group offsets", "delete group"),
    ("commit group offsets", "drop deleted topic"),
    ("commit group offsets", "take over the coordinator"),
    ("delete group", "drop deleted topic"),
    ("delete group", "delete group"),
]


LESS = {"resolve": "resolve nothing", "resolve less": "resolve nothing"}
"""What a verb may do instead that does not wait for others."""


TOGETHER += [
    (read, write)
    for read in ("read", "read little", "look for a time", "look for what retention asks", "look for what has expired", "look up")
    for write in ("commit", "swap", "release all", "advance log start", "delete topic")
]


@pytest.mark.parametrize("names", TOGETHER, ids=" with ".join)
async def test_every_order_keeps_the_invariants_and_equals_a_serial_one(
    scene: tuple[PostgresStore, Snapshots], names: tuple[str, ...], record_property: Callable[[str, object], None]
) -> None:
    store, snapshots = scene
    verbs = [VERBS[name] for name in names]
    await snapshots.restore()
    before = await snapshots.state()
    serial = [
        await _one_after_the_other(store, snapshots, alternative, order)
        for alternative in itertools.product(*([VERBS[name], VERBS[LESS[name]]] if name in LESS else [VERBS[name]] for name in names))
        for order in itertools.permutations(range(len(verbs)))
    ]
    count = 0
    stepper = Stepper(store, snapshots.connection, restore=snapshots.restore)
    orders = stepper.interleavings(verbs) if len(verbs) == 2 else stepper.walks(verbs, count=25, chance=Random(len(" ".join(names))))
    async for found in orders:
        count += 1
        after = await snapshots.state()
        assert_invariants(before, after, found)
        assert digest(found.answers, after) in serial, f"{found.order}: {found.answers}"
    record_property("interleavings", count)


CHANGING = ("take over", "create topic", "add partitions", "delete topic", "drop deleted topic", "end expired epochs")


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize("known_up_to", ["nothing", "before the deletion", "everything"])
async def test_no_change_is_missed_by_a_poll_beside_it(scene: tuple[PostgresStore, Snapshots], known_up_to: str, name: str) -> None:
    """A catalog polls while something changes, and once more: then it knows what one knows that begins now."""
    store, snapshots = scene
    await snapshots.restore()
    known = await store.run(catalog_changes, since=0, membership_since=0)
    if known_up_to == "nothing":
        known = CatalogChanges(0, (), (), None, complete=True)
    elif known_up_to == "before the deletion":
        ((first,),) = await store.run(lambda tx: tx.rows("SELECT min(changed_version) FROM topics WHERE deleted"))
        known = replace(known, version=first - 1, topics=tuple(replace(topic, deleted=False) for topic in known.topics))
    poll = bound(catalog_changes, since=known.version, membership_since=known.membership.version if known.membership else 0)
    async for found in Stepper(store, snapshots.connection, restore=snapshots.restore).interleavings([poll, VERBS[name]]):
        first = found.answers[0].value
        assert isinstance(first, CatalogChanges)
        membership_since = (first.membership or known.membership or Membership(0, 0, ())).version
        second = await store.run(catalog_changes, since=first.version, membership_since=membership_since)
        anew = await store.run(catalog_changes, since=0, membership_since=0)
        assert await learnt(known, first, second) == await learnt(anew), found.order


async def learnt(*told: CatalogChanges) -> tuple[object, ...]:
    """Return what a catalog knows that was told these, one after the other."""
    catalog = Catalog(_Telling(list(told)))
    for _ in told:
        await catalog.refresh()
        assert all(len(catalog._partitions.get(topic.topic_id, ())) >= 1 for topic in catalog.topics()), "a topic without partitions"
    return catalog.topics(), catalog.leaderships(), [member.broker_epoch for member in catalog.membership.brokers]


@dataclass
class _Telling:
    """A metadata store that answers as it is told."""

    answers: list[Any]
    exclusive: bool = False

    async def run(self, *_: object, **__: object) -> Any:
        return self.answers.pop(0)

    run_reserved = run

    async def close(self) -> None: ...


async def test_locks_taken_in_opposite_orders_are_found(scene: tuple[PostgresStore, Snapshots]) -> None:
    def one(tx: Transaction) -> None:
        tx.execute("UPDATE changes SET version = version + 1")
        tx.execute("UPDATE cleaner SET lease_expires_at_ms = 1")

    def other(tx: Transaction) -> None:
        tx.execute("UPDATE cleaner SET lease_expires_at_ms = 2")
        tx.execute("UPDATE changes SET version = version + 1")

    store, snapshots = scene
    with pytest.raises(Deadlock):
        async for _ in Stepper(store, snapshots.connection, restore=snapshots.restore).interleavings([one, other]):
            pass


async def test_a_lost_update_is_found(scene: tuple[PostgresStore, Snapshots]) -> None:
    def read_then_write(tx: Transaction) -> int:
        (row,) = tx.rows("SELECT version FROM changes")
        tx.execute("UPDATE changes SET version = :version", version=row.version + 1)
        return int(row.version)

    store, snapshots = scene
    seen = set()
    async for found in Stepper(store, snapshots.connection, restore=snapshots.restore).interleavings([read_then_write] * 2):
        versions = [answer.value for answer in found.answers]
        seen.add(versions[0] == versions[1])
    assert seen == {True, False}


# ---- what holds after every order


def assert_invariants(before: State, after: State, found: Interleaving) -> None:
    _assert_dense(after)
    _assert_no_bytes_twice(after)
    _assert_never_back(before, after)
    _assert_never_dangling(after, found)
    _assert_committed_is_there(after, found)
    _assert_answered(found)


def _assert_dense(after: State) -> None:
    """I1: the extents of a partition are disjoint, and without a gap from the log start to the end."""
    for partition in after["partitions"]:
        mine = sorted((e["base_offset"], e["next_offset"]) for e in after["extents"] if e["partition_id"] == partition["partition_id"])
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(mine)), mine
        readable = [piece for piece in mine if piece[1] > partition["log_start_offset"]]
        ends = [partition["log_start_offset"], *(end for _, end in readable)]
        assert all(base <= end for (base, _), end in zip(readable[:1], ends, strict=False)), mine
        assert all(one[1] == other[0] for one, other in itertools.pairwise(readable)), mine
        assert ends[-1] == partition["next_offset"], mine


def _assert_no_bytes_twice(after: State) -> None:
    """I5: no byte of a segment has offsets twice, released extents included."""
    pieces = sorted(
        (e["partition_id"], e["broker_epoch"], e["sequence"], e["position"], e["position"] + e["length"])
        for e in after["extents"] + after["released_extents"]
    )
    for one, other in itertools.pairwise(pieces):
        assert one[:3] != other[:3] or one[4] <= other[3], pieces
    assert all(e["record_count"] == e["next_offset"] - e["base_offset"] for e in after["extents"])


_NEVER_BACK = {  # I6
    "cluster": ("one", ("membership_version", "next_broker_epoch", "next_producer_id")),
    "changes": ("one", ("version",)),
    "writers": ("broker_epoch", ("ended",)),
    "resolved_marks": ("broker_epoch", ("sequence",)),
    "commit_counts": ("broker_epoch", ("commits",)),
    "partitions": ("partition_id", ("leader_epoch", "log_start_offset", "next_offset", "changed_version")),
    "topics": ("topic_id", ("deleted", "changed_version")),
    "groups": ("group_id", ("generation",)),
}


def _assert_never_back(before: State, after: State) -> None:
    for table, (key, columns) in _NEVER_BACK.items():
        now = {row[key]: row for row in after[table]}
        for row in before[table]:
            if row[key] in now:  # deleted topics and groups go altogether
                assert all(now[row[key]][column] >= row[column] for column in columns), (row, now[row[key]])
    assert len({row["broker_epoch"] for row in after["writers"]}) == len(after["writers"])
    assert all(row["version"] >= max(p["changed_version"] for p in after["partitions"]) for row in after["changes"])


def _assert_never_dangling(after: State, found: Interleaving) -> None:
    """I7: what was condemned has no extent, and can never get one."""
    ended = {row["broker_epoch"]: row["ended"] for row in after["writers"]}
    marks = {row["broker_epoch"]: row["sequence"] for row in after["resolved_marks"]}
    live = {(e["broker_epoch"], e["sequence"]) for e in after["extents"]}
    for answer in found.answers:
        doomed = answer.value.condemned if isinstance(answer.value, Verdict) else answer.value
        if isinstance(doomed, frozenset):  # a verdict's, or orphans
            assert not doomed & live
            for epoch, sequence in doomed:
                assert ended.get(epoch, True) or marks[epoch] >= sequence


def _assert_committed_is_there(after: State, found: Interleaving) -> None:
    """I2: whoever was told that a commit stands finds the end of the log at or beyond it."""
    ends = {row["partition_id"]: row["next_offset"] for row in after["partitions"]}
    for answer in found.answers:
        if isinstance(answer.value, dict):
            for partition, outcome in answer.value.items():
                assert not isinstance(outcome, Committed) or ends[partition] >= outcome.next_offset


def _assert_answered(found: Interleaving) -> None:
    """A verb may refuse; but that another runs beside it is no reason to fail."""
    for answer in found.answers:
        if answer.error is not None:
            assert isinstance(answer.error, TidelogError), answer.error
            assert not isinstance(answer.error, MetadataUnavailable | MetadataOutcomeUnknown | MetadataUnusable), answer.error


async def _one_after_the_other(store: PostgresStore, snapshots: Snapshots, verbs: Sequence[Verb], order: Sequence[int]) -> str:
    await snapshots.restore()
    answers = [Answer()] * len(verbs)
    for number in order:
        try:
            answers[number] = Answer(await store.run(_quickly, verbs[number]))
        except TidelogError as error:
            answers[number] = Answer(error=error)
    return digest(answers, await snapshots.state())


def _quickly(tx: Transaction, verb: Verb) -> object:
    without_sync(tx)
    return verb(tx)


def digest(answers: Sequence[Answer], state: State) -> str:
    """Return answers and rows as text, without times: those are different every time."""
    rows = {
        table: sorted(json.dumps({column: value for column, value in row.items() if not column.endswith("_ms")}) for row in found)
        for table, found in state.items()
    }
    said = [type(answer.error).__name__ if answer.error else re.sub(r"\w+_ms=\d+", "", str(_ordered(answer.value))) for answer in answers]
    return f"{said} {rows}"


def _ordered(value: object) -> object:
    if isinstance(value, Verdict):
        return sorted(value.condemned), sorted(value.referenced), sorted(value.bytes.items())
    if isinstance(value, frozenset):
        return sorted(value)
    return value
