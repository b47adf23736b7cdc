"""A history of operations, and the checker that finds in it what a log may never do.

Knows nothing of how the history came about: the simulator and real processes write the same one. Values are unique within a
partition. Takes O(n log n). Rules for groups and for compaction come with these.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

RULES = {
    "inconsistent offsets": "one offset, two values",
    "duplicate": "one value, two offsets",
    "phantom": "a value was read that was never sent, or before it was sent",
    "failed write visible": "a value was read although its append was reported as certainly not done",
    "lost write": "an acknowledged value below the highest offset read, and not expired, was never read",
    "unseen": "an acknowledged value is missing from all reads, the final ones included",
    "end not reached": "the final reads did not come to the partition's end",
    "poll skip": "two consecutive reads of one assignment leave offsets out",
    "non-monotonic poll": "two consecutive reads of one assignment go back",
    "non-monotonic send": "acknowledged appends of one session are not in the order in which they were sent",
    "real-time order": "an append was acknowledged before another began, yet has the higher offset",
    "stale latest": "the end of a partition was said to be at or below an offset that had been acknowledged or read before the question",
    "regression": "a partition's end, beginning or high watermark went back",
    "condition not met": "a conditional append was acknowledged at another offset than it asked for",
}
"""Every anomaly, and what it means."""


@dataclass(slots=True)
class Send:
    """One append of one value. `kind`: ok (acknowledged), fail (never happens), info (unknown)."""

    session: tuple[int, int] | None
    """Of an idempotent producer: its values are in the order of `number`."""
    number: int
    partition: int
    value: int
    began: float
    ended: float = float("inf")
    kind: str = "info"
    offset: int | None = None
    expected: int | None = None
    """Of a conditional append: the offset that it may have, and no other."""


@dataclass(slots=True)
class Poll:
    """One read: (offset, value) pairs in the order in which they came."""

    reader: int
    generation: int
    """Goes up when the reader begins at another place."""
    partition: int
    began: float
    ended: float
    pairs: list[tuple[int, int]]
    high_watermark: int | None = None
    """As the answer said; it never goes back on one stream."""
    stream: int = 0


@dataclass(slots=True)
class Asked:
    """A question for the bounds of a partition, and its answer."""

    partition: int
    began: float
    ended: float
    latest: int | None
    earliest: int | None = None


@dataclass(slots=True)
class History:
    sends: list[Send] = field(default_factory=list)
    polls: list[Poll] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What the history shows that may not be."""

    at: float
    """When it could first be seen."""
    partition: int
    what: str


def check(history: History, *, ends: Mapping[int, int], log_starts: Mapping[int, int] | None = None) -> dict[str, list[Anomaly]]:
    """Return the anomalies by name (`RULES`). `ends` are the partitions' final ends, which final polls must have reached."""
    checker = _Checker(history, ends, log_starts or {})
    checker.run()
    return dict(checker.found)


class _Checker:
    def __init__(self, history: History, ends: Mapping[int, int], log_starts: Mapping[int, int]) -> None:
        self.history = history
        self.ends = ends
        self.log_starts = log_starts
        self.found: dict[str, list[Anomaly]] = defaultdict(list)
        self.values: dict[int, dict[int, int]] = defaultdict(dict)
        self.offsets: dict[int, dict[int, int]] = defaultdict(dict)
        self.seen: dict[int, set[int]] = defaultdict(set)
        self.furthest: dict[int, int] = defaultdict(lambda: -1)

    def run(self) -> None:
        self._read()
        self._acknowledged()
        self._sessions()
        self._real_time()
        self._latest()
        self._never_back()
        last = max((poll.ended for poll in self.history.polls), default=0.0)
        for partition, end in self.ends.items():
            if self.furthest[partition] < end - 1 and self.log_starts.get(partition, 0) < end:
                self._note("end not reached", last, partition, f"it ends at {end}, and {self.furthest[partition]} was the last offset read")

    def _note(self, name: str, at: float, partition: int, what: str) -> None:
        self.found[name].append(Anomaly(at, partition, what))

    def _observe(self, at: float, partition: int, offset: int, value: int) -> None:
        known = self.values[partition].setdefault(offset, value)
        if known != value:
            self._note("inconsistent offsets", at, partition, f"offset {offset} holds value {known}, and value {value}")
        place = self.offsets[partition].setdefault(value, offset)
        if place != offset:
            self._note("duplicate", at, partition, f"value {value} is at offset {place}, and at {offset}")

    def _read(self) -> None:
        sent: dict[int, dict[int, Send]] = defaultdict(dict)
        for send in self.history.sends:
            sent[send.partition][send.value] = send
        last: dict[tuple[int, int, int], int] = {}
        for poll in self.history.polls:
            partition = poll.partition
            of_partition, seen = sent[partition], self.seen[partition]
            values, offsets = self.values[partition], self.offsets[partition]
            key = (poll.reader, poll.generation, partition)
            before = last.get(key)
            for offset, value in poll.pairs:
                found = of_partition.get(value)
                if found is None or found.began > poll.ended:
                    self._note("phantom", poll.ended, partition, f"value {value} was read at offset {offset}, but had not been sent")
                elif found.kind == "fail":
                    self._note(
                        "failed write visible", poll.ended, partition, f"value {value} was refused at {found.ended:.3f}, but is at {offset}"
                    )
                if values.get(offset) != value or offsets.get(value) != offset:
                    self._observe(poll.ended, partition, offset, value)
                seen.add(value)
                if before is not None and offset != before + 1:
                    name = "poll skip" if offset > before else "non-monotonic poll"
                    self._note(name, poll.ended, partition, f"reader {poll.reader} read offset {offset} next after {before}")
                before = offset
            if before is not None:
                last[key] = before
                self.furthest[partition] = max(self.furthest[partition], before)

    def _acknowledged(self) -> None:
        for send in self.history.sends:
            if send.kind != "ok" or send.offset is None:
                continue
            self._observe(send.ended, send.partition, send.offset, send.value)
            if send.expected is not None and send.expected != send.offset:
                what = f"value {send.value} was to be at {send.expected}, and is at {send.offset}"
                self._note("condition not met", send.ended, send.partition, what)
            if send.value not in self.seen[send.partition] and send.offset >= self.log_starts.get(send.partition, 0):
                lost = send.offset <= self.furthest[send.partition]
                what = f"value {send.value} was acknowledged at offset {send.offset}, but never read"
                self._note("lost write" if lost else "unseen", send.ended, send.partition, what)

    def _sessions(self) -> None:
        sessions: dict[tuple[tuple[int, int], int], list[tuple[int, int, float]]] = defaultdict(list)
        for send in self.history.sends:
            if send.session is not None and send.kind == "ok" and send.offset is not None:
                sessions[send.session, send.partition].append((send.number, send.offset, send.ended))
        for (session, partition), numbered in sessions.items():
            numbered.sort()
            for (first, earlier, _), (second, later, at) in pairwise(numbered):
                if later <= earlier:
                    what = f"session {session}: its append {first} is at offset {earlier}, but {second} is at {later}"
                    self._note("non-monotonic send", at, partition, what)

    def _real_time(self) -> None:
        by_partition: dict[int, list[Send]] = defaultdict(list)
        for send in self.history.sends:
            if send.kind == "ok" and send.offset is not None:
                by_partition[send.partition].append(send)
        for partition, sends in by_partition.items():
            offsets = ((send.began, send.ended, send.offset or 0) for send in sends)
            for at, offset, highest in _behind(offsets):
                self._note("real-time order", at, partition, f"an append got offset {offset} after one at {highest} had been acknowledged")

    def _latest(self) -> None:
        known: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for send in self.history.sends:
            if send.kind == "ok" and send.offset is not None:
                known[send.partition].append((send.ended, send.offset))
        for poll in self.history.polls:
            if poll.pairs:
                known[poll.partition].append((poll.ended, poll.pairs[-1][0]))
        most: dict[int, tuple[list[float], list[int]]] = {}
        for partition, heard in known.items():
            heard.sort()
            highest, highs = -1, []
            for _, offset in heard:
                highest = max(highest, offset)
                highs.append(highest)
            most[partition] = ([at for at, _ in heard], highs)
        for asked in self.history.asked:
            times, highs = most.get(asked.partition, ([], []))
            before = bisect_left(times, asked.began)
            if asked.latest is not None and before and asked.latest <= highs[before - 1]:
                what = f"the end was said to be {asked.latest} when offset {highs[before - 1]} was known already"
                self._note("stale latest", asked.ended, asked.partition, what)

    def _never_back(self) -> None:
        """I6: bounds that were told go back nowhere, nor are they beyond what the partition came to."""
        by_partition: dict[int, list[Asked]] = defaultdict(list)
        for asked in self.history.asked:
            by_partition[asked.partition].append(asked)
            if asked.latest is not None and asked.latest > self.ends.get(asked.partition, asked.latest):
                what = f"the end was said to be {asked.latest}, but in the end it is {self.ends[asked.partition]}"
                self._note("regression", asked.ended, asked.partition, what)
        for partition, questions in by_partition.items():
            for at, latest, highest in _behind((a.began, a.ended, a.latest) for a in questions if a.latest is not None):
                self._note("regression", at, partition, f"the end was said to be {latest} after it had been {highest}")
            for at, earliest, highest in _behind((a.began, a.ended, a.earliest) for a in questions if a.earliest is not None):
                self._note("regression", at, partition, f"the beginning was said to be {earliest} after it had been {highest}")
        marks: dict[tuple[int, int, int], int] = {}
        for poll in self.history.polls:
            if poll.high_watermark is None:
                continue
            key = (poll.reader, poll.stream, poll.partition)
            reached = poll.pairs[-1][0] + 1 if poll.pairs else 0
            if poll.high_watermark < max(marks.get(key, 0), reached):
                what = f"reader {poll.reader} heard of high watermark {poll.high_watermark} after {max(marks.get(key, 0), reached)}"
                self._note("regression", poll.ended, poll.partition, what)
            marks[key] = max(marks.get(key, 0), poll.high_watermark)


def _behind(operations: Iterable[tuple[float, float, int]]) -> Iterable[tuple[float, int, int]]:
    """Of (began, ended, number) yield (ended, number, highest): those behind the highest number of what ended before they began."""
    by_begin = sorted(operations)
    by_end = sorted((ended, number) for _, ended, number in by_begin)
    done = 0
    highest = -1
    for began, ended, number in by_begin:
        while done < len(by_end) and by_end[done][0] < began:
            highest = max(highest, by_end[done][1])
            done += 1
        if number < highest:
            yield ended, number, highest
