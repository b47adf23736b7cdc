"""Copies of this store's rows, page by page, for checkpoints in the bucket; and a new store made of such rows.

No transaction is long: each verb reads or writes one page. What pages together say is consistent per partition: bounds and extents of
one come from one statement, producers from a later one, so windows may be ahead of the extents and never behind; `ProducerWindow`s
tell offsets, by which what is ahead is cut off. Writers are read before extents: whatever was committed before its writer ended or its
sequence was resolved is found then (I7). Released extents are read before writers, and again at the end, by the marks that were read:
what a cleaner condemns meanwhile was released before, and what is released meanwhile is still there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tidelog.metadata.extents import ExtentsRead, read_extents
from tidelog.metadata.store import ColumnType, Transaction


@dataclass(frozen=True, slots=True)
class TableRows:
    """How a table's rows travel."""

    columns: dict[str, ColumnType]
    flags: frozenset[str]
    """Columns that are true or false; they travel as 1 or 0."""
    key: tuple[str, ...]
    """By which pages follow on each other."""


def _table(key: str, columns: str, flags: str = "") -> TableRows:
    kinds: dict[str, ColumnType] = {}
    for column in columns.split():
        name, _, kind = column.partition(":")
        kinds[name] = "text" if kind else "bigint"
    return TableRows(kinds, frozenset(flags.split()), tuple(key.split()))


TABLES = {
    "cluster": _table("one", "one cluster_id:text format_version membership_version next_broker_epoch next_producer_id created_at_ms"),
    "changes": _table("one", "one version"),
    "writers": _table("broker_epoch", "broker_epoch broker_id:text incarnation:text ended", "ended"),
    "resolved_marks": _table("broker_epoch", "broker_epoch sequence"),
    "commit_counts": _table("broker_epoch", "broker_epoch commits"),
    "topics": _table(
        "topic_id",
        "topic_id:text name:text partitions retention_ms retention_bytes compact created_at_ms deleted changed_version",
        "compact deleted",
    ),
    "groups": _table("group_id", "group_id:text generation state:text changed_at_ms"),
    "group_offsets": _table("group_id partition_id", "group_id:text partition_id next_offset note:text generation committed_at_ms"),
    "partitions": _table(
        "partition_id",
        "partition_id topic_id:text partition leader_epoch log_start_offset next_offset fencing_token:text changed_version",
    ),
    "extents": _table(
        "partition_id base_offset",
        "partition_id base_offset next_offset broker_epoch sequence position length record_count level max_timestamp_ms commit_time_ms"
        " leader_epoch",
    ),
    "producers": _table("partition_id producer_id", "partition_id producer_id producer_epoch batches:text appended_at_ms"),
    "released_extents": _table(
        "broker_epoch sequence partition_id position", "broker_epoch sequence partition_id position length"
    ),
}  # fmt: skip
"""What a checkpoint holds of each table. Leases and leaders are left out: they end with the store."""

STATE = tuple(name for name in TABLES if name not in ("partitions", "extents", "producers", "released_extents"))
"""Tables that are copied whole, in this order: writers before what they have written."""


@dataclass(frozen=True, slots=True)
class ProgressRead:
    """What partitions have gained since an offset of each."""

    extents: ExtentsRead
    producers: tuple[tuple[Any, ...], ...]
    """Rows of the producers that have appended since, as `TABLES` lists their columns."""


def read_table(tx: Transaction, *, table: str, after: Sequence[object] | None, limit: int) -> tuple[tuple[Any, ...], ...]:
    """Return up to `limit` rows that follow on the row with the key `after` (None: the first ones), in the order of their keys."""
    about = TABLES[table]
    return _page(tx, f"SELECT {', '.join(about.columns)} FROM {table} t WHERE TRUE", about, after, limit)


@dataclass(frozen=True, slots=True)
class LivingMarks:
    """What could still be committed at some moment: the writers that lived then, as they were read."""

    resolved: Sequence[tuple[int, int]]
    """(broker epoch, resolved sequence)."""
    given_below: int
    """Epochs that were not given by then are not among them, and could be committed since."""


def read_released(tx: Transaction, *, marks: LivingMarks | None, after: Sequence[object] | None, limit: int) -> tuple[tuple[Any, ...], ...]:
    """Return released extents of segments that could be committed by these marks (None: those of now).

    A reader of the bucket who goes by the same marks would take them for new ones.
    """
    about = TABLES["released_extents"]
    select = f"SELECT {', '.join(f't.{column}' for column in about.columns)} FROM released_extents t"
    if marks is None:
        living = "JOIN writers w ON w.broker_epoch = t.broker_epoch JOIN resolved_marks m ON m.broker_epoch = t.broker_epoch"
        return _page(tx, f"{select} {living} WHERE NOT w.ended AND t.sequence > m.sequence", about, after, limit)
    living = tx.recordset("living", "m", broker_epoch="bigint", sequence="bigint")
    where = "t.sequence > m.sequence OR (m.broker_epoch IS NULL AND t.broker_epoch >= :given_below)"
    asked: dict[str, object] = {"living": list(marks.resolved), "given_below": marks.given_below}
    return _page(tx, f"{select} LEFT JOIN {living} ON m.broker_epoch = t.broker_epoch WHERE ({where})", about, after, limit, **asked)


def read_progress(
    tx: Transaction, *, positions: Sequence[tuple[int, int]], producers_from: Sequence[tuple[int, int]], max_extents: int
) -> ProgressRead:
    """Return extents from (partition id, offset) pairs on, and the producers whose last append lies at such an offset or later."""
    extents = read_extents(tx, positions=positions, max_extents=max_extents)
    last = "json_extract(s.batches, '$[#-1][2]')" if tx.dialect == "sqlite" else "CAST(CAST(s.batches AS jsonb) -> -1 ->> 2 AS bigint)"
    rows = tx.rows(
        f"SELECT {', '.join('s.' + column for column in TABLES['producers'].columns)} FROM "
        + tx.recordset("since", "r", partition_id="bigint", at="bigint")
        + f" JOIN producers s ON s.partition_id = r.partition_id AND (r.at <= 0 OR {last} >= r.at) ORDER BY s.partition_id, s.producer_id",
        since=list(producers_from),
    )
    return ProgressRead(extents, tuple(tuple(row) for row in rows))


def is_unused(tx: Transaction) -> bool:
    """Say whether nothing was ever done with this store: no broker has begun, no topic was made. A name alone does not count."""
    return not tx.rows("SELECT 1 AS one FROM writers LIMIT 1") and not tx.rows("SELECT 1 AS one FROM topics LIMIT 1")


def write_table(tx: Transaction, *, table: str, rows: Sequence[Sequence[object]]) -> None:
    """Put rows into a new store, under the ids that they bring."""
    about = TABLES[table]
    names = ", ".join(about.columns)
    values = ", ".join(f"r.{column} <> 0" if column in about.flags else f"r.{column}" for column in about.columns)
    tx.execute(f"INSERT INTO {table} ({names}) SELECT {values} FROM " + tx.recordset("rows", "r", **about.columns), rows=list(rows))


def finish_rebuild(tx: Transaction, *, cluster: Sequence[object], version: int) -> None:
    """Name the cluster, last of all: a store without its name is no whole one. All earlier versions are to be read anew."""
    tx.execute("DELETE FROM cluster")
    tx.execute("DELETE FROM changes")
    write_table(tx, table="cluster", rows=[cluster])
    tx.execute("INSERT INTO changes (one, version, forgotten_version) VALUES (1, :version, :version)", version=version)
    tx.execute("INSERT INTO cleaner (one, lease_expires_at_ms) VALUES (1, 0) ON CONFLICT DO NOTHING")
    if tx.dialect == "postgresql":
        tx.rows(
            "SELECT setval(pg_get_serial_sequence('partitions', 'partition_id'),"
            " greatest((SELECT coalesce(max(partition_id), 0) FROM partitions), 1))"
        )


def _page(
    tx: Transaction, select: str, about: TableRows, after: Sequence[object] | None, limit: int, **asked: object
) -> tuple[tuple[Any, ...], ...]:
    keys = [f"t.{column}" for column in about.key]
    bounds = {} if after is None else {f"after_{number}": value for number, value in enumerate(after)}
    beyond = "" if after is None else f" AND ({', '.join(keys)}) > ({', '.join(f':{name}' for name in bounds)})"
    rows = tx.rows(f"{select}{beyond} ORDER BY {', '.join(keys)} LIMIT :most", most=limit, **bounds, **asked)
    places = [place for place, column in enumerate(about.columns) if column in about.flags]
    if not places:
        return tuple(tuple(row) for row in rows)
    return tuple(tuple(int(value) if place in places else value for place, value in enumerate(row)) for row in rows)
