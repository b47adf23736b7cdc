"""Histories of a sound log, as long as one likes: `python -m tests.sim.sound 1000000` tells how long the checker takes for one."""

import random
import sys
import time

from tests.sim.history import Asked, History, Poll, Send, check

READERS = 8


def sound_history(operations: int, *, reads_each: int, seed: int = 1) -> tuple[History, dict[int, int]]:
    """Return what a sound log would have shown: appends in order, read by several readers."""
    chance = random.Random(seed)
    made = History()
    ends = dict.fromkeys(range(8), 0)
    logs: dict[int, list[int]] = {partition: [] for partition in ends}
    now = 0.0
    for value in range(operations):
        now += 0.001
        partition = chance.randrange(len(ends))
        session = value % 16
        made.sends.append(Send((session, 0), value, partition, value, now, now + 0.0005, "ok", ends[partition]))
        ends[partition] += 1
        logs[partition].append(value)
        if value % 100 == 0:
            made.asked.append(Asked(partition, now + 0.0005, now + 0.0006, ends[partition], 0))
    for reader in range(reads_each):
        for partition, log in logs.items():
            for start in range(0, len(log), 50):
                pairs = list(enumerate(log[start : start + 50], start))
                made.polls.append(Poll(reader, 0, partition, now + start, now + start, pairs, ends[partition]))
    return made, ends


def main() -> int:
    operations = int(sys.argv[1])
    made, ends = sound_history(operations, reads_each=READERS)
    began, began_cpu = time.monotonic(), time.process_time()
    found = check(made, ends=ends)
    took_s, cpu_s = time.monotonic() - began, time.process_time() - began_cpu
    read = sum(len(poll.pairs) for poll in made.polls)
    print(f"{operations:,} appends, {read:,} records read in {len(made.polls):,} polls, {len(made.asked):,} questions:")
    print(f"checked in {took_s:.1f} s, {cpu_s:.1f} s of CPU; {len(found)} kinds of anomalies")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
