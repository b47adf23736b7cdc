"""A history of operations, and the checker that finds in it what a log may never do."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise


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


@dataclass(slots=True)
class Poll:
    """One read: (offset, value) pairs in the order in which they came."""

    reader: int
    generation: int
    partition: int
    began: float
    ended: float
    pairs: list[tuple[int, int]]


@dataclass(slots=True)
class Asked:
    """A question for the end of a partition, and its answer."""

    partition: int
    began: float
    latest: int


@dataclass(slots=True)
class History:
    sends: list[Send] = field(default_factory=list)
    polls: list[Poll] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)


def check(history: History, *, ends: Mapping[int, int], log_starts: Mapping[int, int] | None = None) -> dict[str, list[object]]:
    """Return the anomalies by name. `ends` are the partitions' final ends, which final polls must have reached."""
    return _Checker(history, ends, log_starts or {}).run()


class _Checker:
    def __init__(self, history: History, ends: Mapping[int, int], log_starts: Mapping[int, int]) -> None:
        self.history = history
        self.ends = ends
        self.log_starts = log_starts
        self.found: dict[str, list[object]] = defaultdict(list)
        self.values: dict[int, dict[int, int]] = defaultdict(dict)
        self.offsets: dict[int, dict[int, int]] = defaultdict(dict)
        self.seen: dict[int, set[int]] = defaultdict(set)
        self.furthest: dict[int, int] = defaultdict(lambda: -1)

    def run(self) -> dict[str, list[object]]:
        self._read()
        self._acknowledged()
        self._sessions()
        self._real_time()
        self._latest()
        for partition, end in self.ends.items():
            if self.furthest[partition] < end - 1:
                self.found["end not reached"].append((partition, self.furthest[partition], end))
        return dict(self.found)

    def _observe(self, partition: int, offset: int, value: int) -> None:
        known = self.values[partition].setdefault(offset, value)
        if known != value:
            self.found["inconsistent offsets"].append((partition, offset, known, value))
        at = self.offsets[partition].setdefault(value, offset)
        if at != offset:
            self.found["duplicate"].append((partition, value, at, offset))

    def _read(self) -> None:
        sent = {(send.partition, send.value): send for send in self.history.sends}
        last: dict[tuple[int, int, int], int] = {}
        for poll in self.history.polls:
            key = (poll.reader, poll.generation, poll.partition)
            before = last.get(key)
            for offset, value in poll.pairs:
                send = sent.get((poll.partition, value))
                if send is None or send.began > poll.ended:
                    self.found["phantom"].append((poll.partition, offset, value))
                elif send.kind == "fail":
                    self.found["failed write visible"].append((poll.partition, offset, value))
                self._observe(poll.partition, offset, value)
                self.seen[poll.partition].add(value)
                if before is not None and offset != before + 1:
                    self.found["poll skip" if offset > before else "non-monotonic poll"].append((poll.partition, before, offset))
                before = offset
            if before is not None:
                last[key] = before
                self.furthest[poll.partition] = max(self.furthest[poll.partition], before)

    def _acknowledged(self) -> None:
        for send in self.history.sends:
            if send.kind != "ok" or send.offset is None:
                continue
            self._observe(send.partition, send.offset, send.value)
            if send.value not in self.seen[send.partition] and send.offset >= self.log_starts.get(send.partition, 0):
                lost = send.offset <= self.furthest[send.partition]
                self.found["lost write" if lost else "unseen"].append((send.partition, send.offset, send.value))

    def _sessions(self) -> None:
        sessions: dict[tuple[tuple[int, int], int], list[tuple[int, int]]] = defaultdict(list)
        for send in self.history.sends:
            if send.session is not None and send.kind == "ok" and send.offset is not None:
                sessions[send.session, send.partition].append((send.number, send.offset))
        for (session, partition), numbered in sessions.items():
            numbered.sort()
            for (_, earlier), (_, later) in pairwise(numbered):
                if later <= earlier:
                    self.found["non-monotonic send"].append((session, partition, earlier, later))

    def _real_time(self) -> None:
        by_partition: dict[int, list[Send]] = defaultdict(list)
        for send in self.history.sends:
            if send.kind == "ok" and send.offset is not None:
                by_partition[send.partition].append(send)
        for partition, sends in by_partition.items():
            ended = sorted(sends, key=lambda send: send.ended)
            done = 0
            highest = -1
            for send in sorted(sends, key=lambda send: send.began):
                while done < len(ended) and ended[done].ended < send.began:
                    highest = max(highest, ended[done].offset or 0)
                    done += 1
                assert send.offset is not None
                if send.offset < highest:
                    self.found["real-time order"].append((partition, highest, send.offset))

    def _latest(self) -> None:
        by_partition: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for send in self.history.sends:
            if send.kind == "ok" and send.offset is not None:
                by_partition[send.partition].append((send.ended, send.offset))
        most: dict[int, tuple[list[float], list[int]]] = {}
        for partition, acknowledged in by_partition.items():
            acknowledged.sort()
            highest, highs = -1, []
            for _, offset in acknowledged:
                highest = max(highest, offset)
                highs.append(highest)
            most[partition] = ([at for at, _ in acknowledged], highs)
        for asked in self.history.asked:
            times, highs = most.get(asked.partition, ([], []))
            before = bisect_left(times, asked.began)
            if before and asked.latest <= highs[before - 1]:
                self.found["stale latest"].append((asked.partition, asked.latest, highs[before - 1]))
