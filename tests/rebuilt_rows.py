"""Rows of a metadata store, and what a rebuild makes of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from tidelog.broker.rebuild_partition import EPOCH_LEAP
from tidelog.metadata.snapshot import TABLES, read_table
from tidelog.metadata.store import MetadataStore

Rows = Mapping[str, Sequence[tuple[Any, ...]]]


async def all_rows(store: MetadataStore) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows that a checkpoint may hold."""
    return {table: list(await store.run(read_table, table=table, after=None, limit=1_000_000)) for table in TABLES}


def comparable(rows: Rows) -> dict[str, list[tuple[Any, ...]]]:
    """Return what clients' records, offsets, tokens and identities rest on, without what counts changes."""
    found = {table: list(rows[table]) for table in ("topics", "partitions", "extents", "producers", "groups", "group_offsets")}
    for table in ("topics", "partitions"):
        at = list(TABLES[table].columns).index("changed_version")
        found[table] = [(*row[:at], *row[at + 1 :]) for row in found[table]]
    return found


def as_rebuilt(rows: Rows) -> dict[str, list[tuple[Any, ...]]]:
    """Return what of these rows, all of which a checkpoint holds, a rebuilt store has."""
    found = comparable(rows)
    columns = list(TABLES["partitions"].columns)
    at, log_start = columns.index("leader_epoch"), columns.index("log_start_offset")
    log_starts = {row[0]: row[log_start] for row in found["partitions"]}
    found["partitions"] = [(*row[:at], row[at] + EPOCH_LEAP, *row[at + 1 :]) for row in found["partitions"]]
    found["extents"] = [row for row in found["extents"] if row[2] > log_starts[row[0]]]  # none that lies below a log start
    return found
