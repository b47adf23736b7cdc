"""What a set of runs must have reached at least once, or it proves less than it seems to.

Counted from outside: by the simulated ports, by the verbs that brokers ran, and by the metrics and counts that brokers keep anyway.
"""

from collections import Counter

from tests.sim.world import FAULTS, World

_METRICS = {
    "tidelog_appends_total": ("accepted", "duplicate", "refused", "throttled", "not_ready", "timed_out", "unknown"),
    "tidelog_segments_sealed_total": ("size", "deadline", "idle"),
    "tidelog_uploads_total": ("done", "given_up"),
    "tidelog_references_answered_total": ("decided", "not_now"),
    "tidelog_commit_outcomes_total": ("committed", "not_leader", "refused", "not_done", "unknown"),
    "tidelog_references_repeated_total": ("",),
    "tidelog_transfers_total": ("",),
    "tidelog_merges_total": ("merged", "refused", "corrupt", "failed"),
    "tidelog_fenced_total": ("",),
    "tidelog_retention_passes_total": ("done", "failed"),
    "tidelog_log_starts_moved_total": ("",),
    "tidelog_extents_released_total": ("",),
    "tidelog_cleaner_rounds_total": ("cleaned", "nothing", "failed"),
    "tidelog_deletions_refused_total": ("",),
    "tidelog_orphan_scans_total": ("",),
    "tidelog_checkpoints_total": ("written", "unchanged", "failed"),
    "tidelog_scrub_extents_total": (),
    "tidelog_scrub_passes_total": (),
}
_READS = ("memory_hits", "memory_misses", "block_hits", "block_misses", "blocks_ahead", "look_ups", "failed_polls", "feeds_broken",
          "news_gaps", "corrupt_reads")  # fmt: skip

SOMETIMES = (
    *(f"fault: {fault}" for fault in FAULTS),
    *(f"{port} {outcome}" for port in ("metadata", "store") for outcome in ("before", "after", "late")),
    *("network slow", "network broken", "network cut", "client cut off", "body cut", "body damaged", "process restarted"),
    *("send ok", "send fail", "send info", "fencing token set", "append fenced off"),
    *(f"append {reason}" for reason in ("NOT_READY", "DRAINING", "TIMED_OUT", "THROTTLED", "OUTCOME_UNKNOWN", "UNKNOWN_TOPIC")),
    *("register: new", "register: again", "register: BrokerIdTaken", "renew_lease: Fenced", "report_resolved: Fenced"),
    *("end_expired_epochs: some", "end_expired_epochs: none", "take_over: taken", "take_over: Fenced", "transfer: some", "transfer: none",
      "transfer: Fenced", "expire_producers: some", "advance_log_start: Fenced"),
    *("acquire_cleaner: held", "acquire_cleaner: not held", "condemn: some", "condemn: none", "orphans: some", "orphans: none",
      "forget_writers: some", "forget_writers: none", "drop_deleted_topic: some"),
    *("object deleted: released", "object deleted: orphan", "read out of range", "doomed topic deleted", "all drained"),
    *("commit: committed", "commit: committed before", "commit: not leader", "commit: writer ended", "commit: sequence resolved"),
    *("swap: done", "swap: done before", "swap: Fenced", "swap: step 1", "swap: step 2", "swap: step 3"),
    *("find_references: found", "find_references: over", "find_references: open"),
    *(f"{metric} {value}".strip() for metric, values in _METRICS.items() for value in values),
    *(f"read: {name}" for name in _READS),
    *("rebuild: done", "rebuild: newer records", "rebuild: duplicates left out", "rebuild: producers forgotten",
      "rebuild: producers kept", "rebuild: lost twice", "rebuild: late writes"),
    *("fsck: segments", "scrub: damage found", "tidelog_scrub_extents_total sound", "tidelog_scrub_passes_total"),
)  # fmt: skip
"""Faults, and the branches that brokers take because of them."""


def reached(world: World) -> Counter[str]:
    """Return how often a run came by each place."""
    counts = Counter(world.counts)
    for process in world.lives:
        for family in process.metrics.registry.collect():
            for sample in family.samples:
                if sample.name in _METRICS:
                    counts[f"{sample.name} {''.join(sample.labels.values())}".strip()] += int(sample.value)
        for name, count in process.broker.reader.stats.as_dict().items():
            counts[f"read: {name}"] += int(count)
    counts["process restarted"] += len(world.lives) - len(world.brokers)
    return +counts


def never(counts: Counter[str]) -> list[str]:
    """Return what was never reached."""
    return [place for place in SOMETIMES if not counts[place]]
