"""Looks at the metadata store, the bucket and the brokers after every transaction: the invariants, as they are kept or broken.

Every verb that a simulated broker runs is wrapped, so this sees the state of each transaction just before it becomes visible to
anyone. It keeps a shadow of each log, value by value, by which acknowledgements and reads are judged on the spot.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from tidelog.broker.feed import Followed
from tidelog.errors import CorruptBatch, TidelogError
from tidelog.metadata.commits import Committed, NotLeader, Refused
from tidelog.metadata.leadership import LedPartition
from tidelog.metadata.store import Transaction
from tidelog.records.batch import scan
from tidelog.records.codec import decode_values
from tidelog.segments.keys import IntakeKey, parse_key

from tests.sim.history import Send
from tests.sim.loop import State
from tests.sim.merged import look_at_swap

if TYPE_CHECKING:
    from tests.sim.world import World

P = ParamSpec("P")
T = TypeVar("T")

CLOCK_MS = 2
"""What times may be off by, being whole milliseconds."""
_LEASES_ONLY = frozenset(("renew_lease", "allocate_producer_ids"))
"""Verbs that touch nothing but leases."""
_WRITERS = (
    "SELECT w.broker_epoch, w.broker_id, w.incarnation, m.sequence, w.ended FROM writers w"
    " JOIN resolved_marks m ON m.broker_epoch = w.broker_epoch"
)
_PARTITIONS = (
    "SELECT partition_id, partition, fencing_token, leader_broker_epoch, leader_epoch, log_start_offset, next_offset,"
    " coalesce((SELECT e.next_offset"
    " FROM extents e WHERE e.partition_id = p.partition_id ORDER BY e.base_offset DESC LIMIT 1), log_start_offset) FROM partitions p"
    " WHERE p.topic_id = '0102030405060708090a0b0c0d0e0f10'"
)
_READABLE = (
    "SELECT p.partition_id, p.log_start_offset, p.next_offset, (SELECT min(e.base_offset) FROM extents e"
    " WHERE e.partition_id = p.partition_id AND e.next_offset > p.log_start_offset) FROM partitions p"
)
_RELEASING = frozenset(("release_expired", "swap"))
"""Verbs that release extents."""
OUTAGE_S = 0.5
"""By so much longer than a lease must an outage be to have let every lease expire."""


@dataclass
class Shadow:
    """One partition as its commits made it."""

    partition: int
    partition_id: int
    leader_broker_epoch: int | None = None
    leader_epoch: int = 0
    fencing_token: str | None = None
    log_start_offset: int = 0
    next_offset: int = 0
    values: list[int] = field(default_factory=list)
    """By offset."""
    epochs: list[int] = field(default_factory=list)
    """By offset, the leader epoch in which it was committed."""
    placed: set[int] = field(default_factory=set)
    sequences: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of each idempotent producer the last sequence, and its offset."""


class Writer(NamedTuple):
    broker_id: str
    incarnation: str
    resolved_sequence: int
    ended: bool


class Watcher:
    def __init__(self, world: "World") -> None:
        self._world = world
        self.shadows: dict[int, Shadow] = {}
        self.numbers: dict[int, int] = {}
        """Partition ids by number."""
        self.writers: dict[int, Writer] = {}
        self._committed_bytes: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        self._members: dict[int, tuple[str, int]] = {}
        """Of each broker epoch its id, and when its lease expires."""
        self._held: dict[tuple[int, int], object] = {}
        self._marks: dict[Followed, int] = {}
        """The high watermark that a broker knew of each partition that it follows (I6)."""
        self._taken: set[tuple[int, int]] = set()
        self.merged: set[tuple[int, int]] = set()
        """Segments, as (broker epoch, sequence), that took the place of others."""
        self._refused: set[int] = set()
        self._next_broker_epoch = 0
        self._changes = 0
        self._db: Connection | None = None
        self._released: dict[tuple[int, int], tuple[int, int]] = {}
        """Of each segment when its last extent was released, and the count of commits then."""

    # ---- transactions

    def wrap(self, verb: Callable[Concatenate[Transaction, P], T], who: str) -> Callable[Concatenate[Transaction, P], T]:
        """Return the verb, watched."""

        def watched(tx: Transaction, /, *args: P.args, **kwargs: P.kwargs) -> T:
            name = verb.__name__
            try:
                answer = verb(tx, *args, **kwargs)
            except TidelogError as error:
                self._world.counts[f"{name}: {type(error).__name__}"] += 1
                raise
            db: Connection = tx.connection
            self._db = db
            self._hear(name, who, answer)
            if db.total_changes != self._changes:
                self._changes = db.total_changes
                self._look(db, name, who)
            if name == "swap":
                if answer:
                    look_at_swap(self, self._world, db, who, kwargs)
                else:
                    self._world.counts["swap: refused"] += 1
            return answer

        return watched

    def _hear(self, name: str, who: str, answer: Any) -> None:
        """Note what a verb answered."""
        world = self._world
        if name == "commit":
            for partition_id, outcome in answer.items():
                shadow = self.shadows.get(partition_id)
                if shadow is None:  # of a topic that nobody reads
                    continue
                if isinstance(outcome, Committed):
                    world.counts["commit: committed" if outcome.next_offset > shadow.next_offset else "commit: committed before"] += 1
                elif isinstance(outcome, NotLeader):
                    world.counts["commit: not leader"] += 1
                    world.tell("commit", who, "refused: not leader any more", partition=shadow.partition)
                elif isinstance(outcome, Refused):
                    for each in outcome.extents:
                        world.counts[f"commit: {each.refusal}"] += 1
                        world.tell("commit", who, "refused segment {} of epoch {}: {}", each.extent.sequence, each.extent.broker_epoch,
                                   each.refusal, partition=shadow.partition)  # fmt: skip
        elif name == "take_over":
            self._taken_over(answer)
        elif name == "find_references":
            world.counts["find_references: found" if answer[0] else "find_references: over" if answer[1] else "find_references: open"] += 1
        elif name in ("condemn", "orphans", "forget_writers", "drop_deleted_topic", "strip_deleted_topic"):
            some = answer.condemned if name == "condemn" else answer
            world.counts[f"{name}: {'some' if some else 'none'}"] += 1
        elif name == "acquire_cleaner":
            world.counts[f"acquire_cleaner: {'held' if answer else 'not held'}"] += 1
        elif name in ("end_expired_epochs", "transfer", "expire_producers"):
            world.counts[f"{name}: {'some' if answer else 'none'}"] += 1
            if answer:
                world.tell("members" if name == "end_expired_epochs" else "leads", who, "{} {}", name.replace("_", " "), answer)
        elif name == "register":
            again = answer.broker_epoch in self.writers
            world.counts["register: again" if again else "register: new"] += 1
            world.tell("members", who, "registered, with broker epoch {}", answer.broker_epoch)

    def _taken_over(self, taken: Sequence[LedPartition]) -> None:
        """I1: whoever loads a partition begins a leader epoch that nobody had."""
        for led in taken:
            self._world.counts["take_over: taken"] += 1
            if (led.partition_id, led.leader_epoch) in self._taken:
                self._violation("leader epoch reused", led.partition_id, f"leader epoch {led.leader_epoch} was loaded before")
            self._taken.add((led.partition_id, led.leader_epoch))

    # ---- what SQL holds

    def _look(self, db: Connection, verb: str, who: str) -> None:
        if verb not in _LEASES_ONLY:
            self._look_at_order(db, verb, who)
        if verb in _RELEASING:
            self._look_at_releases(db)
        self._members = {row[0]: (row[1], row[2]) for row in db.execute("SELECT broker_epoch, broker_id, lease_expires_at_ms FROM brokers")}
        for epoch in self._members:
            if self.writers[epoch].ended:
                self._violation("epoch ended, yet a member", None, f"broker epoch {epoch}")
        self.look_at_brokers()

    def _look_at_order(self, db: Connection, verb: str, who: str) -> None:
        now = {row[0]: Writer(*row[1:]) for row in db.execute(_WRITERS)}
        self._look_at_writers(now, verb)
        for partition_id, number, token, *row in db.execute(_PARTITIONS).fetchall():
            shadow = self.shadows.get(partition_id)
            if shadow is None:
                shadow = self.shadows[partition_id] = Shadow(number, partition_id)
                self.numbers[number] = partition_id
            shadow.fencing_token = token
            self._look_at_partition(db, shadow, who, *row)
        self.writers |= now  # who has been forgotten has ended
        [(next_epoch,)] = db.execute("SELECT next_broker_epoch FROM cluster")
        if next_epoch < self._next_broker_epoch or any(epoch >= next_epoch for epoch in now):
            self._violation("broker epoch goes back", None, f"{next_epoch} comes next after {self._next_broker_epoch}")
        self._next_broker_epoch = next_epoch

    def _look_at_releases(self, db: Connection) -> None:
        """What is released lies below the log start, or another extent has taken its place."""
        for partition_id, log_start, end, first in db.execute(_READABLE).fetchall():
            if log_start < end and (first is None or first > log_start):
                self._violation("released, though kept", partition_id, f"offsets {log_start} to {end} begin at {first}")
        [(commits,)] = db.execute("SELECT sum(commits) FROM commit_counts")
        for epoch, sequence, at_ms in db.execute("SELECT broker_epoch, sequence, released_at_ms FROM released_segments"):
            if self._released.get((epoch, sequence), (-1, 0))[0] != at_ms:
                self._released[epoch, sequence] = at_ms, commits

    def _look_at_writers(self, now: dict[int, Writer], verb: str) -> None:
        for epoch, writer in now.items():
            before = self.writers.get(epoch)
            if before is None:
                continue
            if (before.broker_id, before.incarnation) != (writer.broker_id, writer.incarnation):
                self._violation("broker epoch reused", None, f"{epoch} was given to {before}, and to {writer}")
            if writer.resolved_sequence < before.resolved_sequence or writer.ended < before.ended:
                self._violation("resolved mark goes back", None, f"writer {epoch} was {before}, and is {writer}")
            if writer.ended and not before.ended and verb == "end_expired_epochs":
                self._ended_by_another(epoch)

    def _ended_by_another(self, epoch: int) -> None:
        """After an outage of the store everyone gets the time to renew: nobody ends others for one lease."""
        lease_s = self._world.draw.settings.lease_ms / 1000
        now = self._world.loop.now
        for began, ended in self._world.outages["metadata"]:
            if ended - began > lease_s + OUTAGE_S and ended <= now < ended + lease_s - 0.01:
                self._violation("epoch ended because of an outage", None, f"broker epoch {epoch}, {now - ended:.3f} s after it")

    def _look_at_partition(
        self, db: Connection, shadow: Shadow, who: str, leader: int | None, leader_epoch: int, log_start: int, next_offset: int, newest: int
    ) -> None:
        if (leader, leader_epoch) != (shadow.leader_broker_epoch, shadow.leader_epoch):
            if leader_epoch <= shadow.leader_epoch:
                what = f"leader {leader} in epoch {leader_epoch} follows {shadow.leader_broker_epoch} in {shadow.leader_epoch}"
                self._violation("leader epoch does not grow", shadow.partition_id, what)
            self._world.tell("leads", who, "made broker epoch {} leader in epoch {}", leader, leader_epoch, partition=shadow.partition)
        if next_offset < shadow.next_offset or log_start < shadow.log_start_offset or log_start > next_offset:
            self._violation("bounds go back", shadow.partition_id, f"{log_start} to {next_offset} follows {shadow}")
        shadow.leader_broker_epoch, shadow.leader_epoch, shadow.log_start_offset = leader, leader_epoch, log_start
        if not next_offset == newest == shadow.next_offset:
            self._look_at_commit(db, shadow, who, next_offset)

    def _look_at_commit(self, db: Connection, shadow: Shadow, who: str, next_offset: int) -> None:
        """I1, I2, I7, I8: what a commit has added."""
        begins, producers = shadow.next_offset, set()
        rows = db.execute(
            "SELECT base_offset, next_offset, broker_epoch, sequence, position, length, record_count, leader_epoch FROM extents"
            " WHERE partition_id = ? AND next_offset > ? ORDER BY base_offset",
            [shadow.partition_id, shadow.next_offset],
        )
        for base, end, epoch, sequence, position, length, count, leader_epoch in rows.fetchall():
            what = f"offsets {base} to {end}: {length} bytes at {position} of segment {sequence} of broker epoch {epoch}"
            if base != shadow.next_offset or end - base != count:
                self._violation("extents not dense", shadow.partition_id, f"{what} follow on {shadow.next_offset}")
            if leader_epoch != shadow.leader_epoch:
                self._violation(
                    "committed in a past epoch", shadow.partition_id, f"{what} in epoch {leader_epoch} of {shadow.leader_epoch}"
                )
            writer = self.writers.get(epoch)
            if writer is None or writer.ended or sequence <= writer.resolved_sequence:
                self._violation("committed, though it may be deleted", shadow.partition_id, f"{what}, whose writer is {writer}")
            of_segment = self._committed_bytes[shadow.partition_id, epoch]
            if any(start < position + length and position < stop for at, start, stop in of_segment if at == sequence):
                self._violation("bytes committed twice", shadow.partition_id, what)
            of_segment.append((sequence, position, position + length))
            producers |= self._look_at_bytes(shadow, base, count, what, key=(epoch, sequence), part=(position, length))
            del shadow.epochs[base:]
            shadow.epochs += [leader_epoch] * count
            shadow.next_offset = end
        self._world.tell(
            "commit", who, "offsets {} to {}: values {}", begins, next_offset, shadow.values[begins:], partition=shadow.partition
        )
        if next_offset != shadow.next_offset:
            self._violation("end beside the extents", shadow.partition_id, f"{next_offset}, but extents end at {shadow.next_offset}")
            shadow.next_offset = next_offset
        self._look_at_producers(db, shadow, producers)

    def _look_at_bytes(self, shadow: Shadow, base: int, count: int, what: str, *, key: tuple[int, int], part: tuple[int, int]) -> set[int]:
        """Read the committed bytes; return the producers whose they are."""
        epoch, sequence = key
        writer = self.writers.get(epoch)
        content = (
            None if writer is None else self._world.bucket.content(str(IntakeKey(writer.broker_id, epoch, sequence, writer.incarnation)))
        )
        producers: set[int] = set()
        values: list[int] = []
        if content is None:
            self._violation("dangling", shadow.partition_id, f"{what}, which is not stored")
        else:
            data = memoryview(content)[part[0] : part[0] + part[1]]
            try:
                headers = scan(data)
            except CorruptBatch as error:
                self._violation("corrupt", shadow.partition_id, f"{what}: {error}")
                headers = []
            for header in headers:
                if header.producer_id >= 0:
                    producers.add(header.producer_id)
                    self._follow_sequence(shadow, header.producer_id, header.base_sequence, header.record_count, base + len(values), what)
                values += [int(value or b"-1") for value in decode_values(data[header.position : header.position + header.size])]
        for value in values:
            if value in shadow.placed:
                self._violation("committed twice", shadow.partition_id, f"value {value} in {what}")
            if value in self._refused:
                self._violation("refused, but committed", shadow.partition_id, f"value {value} in {what}")
            token = self._world.tokens.get(value)
            if token is not None and token != shadow.fencing_token:
                self._violation("fenced off, but committed", shadow.partition_id, f"value {value} of {token} under {shadow.fencing_token}")
            shadow.placed.add(value)
        del shadow.values[base:]
        shadow.values += (values + [-1] * count)[:count]
        return producers

    def _follow_sequence(self, shadow: Shadow, producer_id: int, first: int, count: int, offset: int, what: str) -> None:
        before = shadow.sequences.get(producer_id, (-1, -1))[0]
        if first != before + 1:
            name = "duplicate committed" if first <= before else "gap committed"
            self._violation(name, shadow.partition_id, f"producer {producer_id}, sequence {first} after {before}: {what}")
        shadow.sequences[producer_id] = (first + count - 1, offset + count - 1)

    def _look_at_producers(self, db: Connection, shadow: Shadow, producers: set[int]) -> None:
        """I8: the producers' state is committed with their records."""
        for producer_id in sorted(producers):
            row = db.execute(
                "SELECT json_extract(batches, '$[#-1]') FROM producers WHERE partition_id = ? AND producer_id = ?",
                [shadow.partition_id, producer_id],
            ).fetchone()
            first, last, base = (-1, -1, -1) if row is None else map(int, row[0].strip("[]").split(","))
            if (last, base + last - first) != shadow.sequences[producer_id]:
                what = f"producer {producer_id} is remembered up to sequence {last} at {base}, but it is at {shadow.sequences[producer_id]}"
                self._violation("producer not remembered", shadow.partition_id, what)

    # ---- what brokers believe

    def look_at_brokers(self) -> None:
        """No lease is trusted longer than it lasts, nobody leads in another's epoch, nothing is beyond its limit (I10)."""
        world = self._world
        now_ms = world.clock.wall_ms()
        for process in world.brokers.values():
            life, budget = process.broker.life, process.broker._budget
            if not 0 <= budget.used_bytes <= budget.limit_bytes:
                self._violation("budget", None, f"{process.label} holds {budget.used_bytes} of {budget.limit_bytes} bytes")
            for followed in process.broker._feed._followed.values():
                if followed.high_watermark < self._marks.get(followed, 0):
                    what = f"{process.label} knew {self._marks[followed]}, and says {followed.high_watermark}"
                    self._violation("high watermark goes back", followed.partition_id, what)
                self._marks[followed] = followed.high_watermark
            if life is None or process.node.state is State.DEAD:
                continue
            epoch = life.identity.broker_epoch
            expires_ms = self._members.get(epoch, ("", 0))[1]
            if life.lease.stands() and expires_ms + CLOCK_MS < now_ms and not process.leaving:
                self._violation(
                    "lease trusted too long", None, f"{process.label} believes in epoch {epoch}, {now_ms - expires_ms} ms too long"
                )
            for led in life.ledger.led().items():
                if self._held.setdefault(led, life) is not life:
                    self._violation("two leaders", led[0], f"{process.label} leads in epoch {led[1]}, as another does or did")

    # ---- what clients are told

    def acknowledged(self, send: Send) -> None:
        """I2: what is acknowledged is committed, there and nowhere else."""
        shadow = self._shadow(send.partition)
        if send.offset is None or send.offset >= len(shadow.values) or shadow.values[send.offset] != send.value:
            self._violation("acknowledged, not committed", shadow.partition_id, f"value {send.value} at offset {send.offset}")

    def refused(self, send: Send) -> None:
        """I5: what is refused is not there."""
        shadow = self._shadow(send.partition)
        self._refused.add(send.value)
        if send.value in shadow.placed:
            self._violation("refused, but committed", shadow.partition_id, f"value {send.value}")

    def read(self, partition: int, pairs: Sequence[tuple[int, int]], high_watermark: int) -> None:
        """I2: what is read is committed."""
        shadow = self._shadow(partition)
        for offset, value in pairs:
            if offset >= len(shadow.values) or shadow.values[offset] != value:
                self._violation("read, not committed", shadow.partition_id, f"value {value} at offset {offset}")
        if high_watermark > shadow.next_offset:
            self._violation("high watermark beyond the end", shadow.partition_id, f"{high_watermark}, but it is {shadow.next_offset}")

    def sent(self, broker_epoch: int, sequence: int) -> None:
        """I7: no reference is sent once its sequence was reported as resolved."""
        writer = self.writers[broker_epoch]
        if sequence <= writer.resolved_sequence:
            self._violation("sent after it was resolved", None, f"segment {sequence} of broker epoch {broker_epoch}")

    def deleting(self, keys: Sequence[str]) -> None:
        """I7, I11: nobody refers to what is deleted, now and for ever; readers had their time, and the bucket knows of the release."""
        world = self._world
        assert self._db is not None
        markers = [key for key in world.bucket.names() if key.startswith("cluster/")]
        marked = max((int(key.removeprefix("cluster/").removesuffix(".json")) for key in markers), default=-1)
        for name in keys:
            key = parse_key(name)
            if key is None:
                continue
            segment = (key.broker_epoch, key.sequence)
            if self._db.execute("SELECT 1 FROM extents WHERE broker_epoch = ? AND sequence = ?", segment).fetchone():
                self._violation("deleted, though referenced", None, name)
            writer = self.writers[key.broker_epoch]
            if not writer.ended and key.sequence > writer.resolved_sequence:
                self._violation("deleted, though it may be committed", None, f"{name}, whose writer is {writer}")
            if segment in self._released:
                at_ms, commits = self._released[segment]
                if world.clock.wall_ms() + CLOCK_MS < at_ms + world.draw.settings.reader_grace_ms:
                    self._violation("deleted under its readers", None, f"{name} at {world.clock.wall_ms()}, released at {at_ms}")
                if marked < commits:
                    self._violation("deleted before the marker tells", None, f"{name}, released by commit {commits}; it says {marked}")
            world.counts["object deleted: " + ("released" if segment in self._released else "orphan")] += 1
            world.tell("clean", "bucket", "{} is deleted", name)

    def out_of_range(self, partition: int, offset: int, log_start: int, high_watermark: int) -> None:
        """Both bounds are told, and neither is beyond what is."""
        shadow = self._shadow(partition)
        self._world.counts["read out of range"] += 1
        if not (offset < log_start <= shadow.log_start_offset and log_start <= high_watermark <= shadow.next_offset):
            what = f"offset {offset} is said to be out of {log_start} to {high_watermark}, which are {shadow.log_start_offset} to"
            self._violation("wrong bounds", shadow.partition_id, f"{what} {shadow.next_offset}")

    def _shadow(self, partition: int) -> Shadow:
        return self.shadows[self.numbers[partition]]

    def _violation(self, name: str, partition_id: int | None, what: str) -> None:
        shadow = None if partition_id is None else self.shadows.get(partition_id)
        self._world.violation(name, what, partition=None if shadow is None else shadow.partition)
