"""The first schema. `tidelog.metadata.schema` says what each column means."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _bigint(name: str, *, nullable: bool = False, default: int | None = None) -> sa.Column[int]:
    return sa.Column(
        name, sa.BigInteger, nullable=nullable, autoincrement=False, server_default=None if default is None else sa.text(str(default))
    )


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.text("FALSE"))


def _create(name: str, *columns: sa.Column[Any], key: tuple[str, ...], **options: Any) -> None:
    op.create_table(name, *columns, sa.PrimaryKeyConstraint(*key, name=f"pk_{name}"), **options)


def upgrade() -> None:
    """Create all tables and indexes."""
    _create(
        "cluster",
        _bigint("one"), _text("cluster_id"), _bigint("format_version"), _bigint("membership_version"), _bigint("next_broker_epoch"),
        _bigint("next_producer_id"), _bigint("created_at_ms"),
        key=("one",),
    )  # fmt: skip
    _create("changes", _bigint("one"), _bigint("version"), _bigint("forgotten_version", default=0), key=("one",))
    _create("cleaner", _bigint("one"), _bigint("broker_epoch", nullable=True), _bigint("lease_expires_at_ms"), key=("one",))
    _create(
        "brokers",
        _text("broker_id"), _bigint("broker_epoch"), _text("incarnation"), _text("zone"), _text("address"), _text("peer_address"),
        _bigint("lease_expires_at_ms"), _bigint("unbroken_since_ms"), _flag("draining"),
        key=("broker_id",),
    )  # fmt: skip
    _create(
        "writers",
        _bigint("broker_epoch"), _text("broker_id"), _text("incarnation"), _flag("ended"),
        key=("broker_epoch",),
    )  # fmt: skip
    _create("resolved_marks", _bigint("broker_epoch"), _bigint("sequence"), key=("broker_epoch",))
    _create("commit_counts", _bigint("broker_epoch"), _bigint("commits"), key=("broker_epoch",))
    _create(
        "topics",
        _text("topic_id"), _text("name"), _bigint("partitions"), _bigint("retention_ms"), _bigint("retention_bytes"), _flag("compact"),
        _bigint("created_at_ms"), _flag("deleted"), _bigint("changed_version"),
        key=("topic_id",),
    )  # fmt: skip
    living = sa.text("deleted IS FALSE")
    op.create_index("uq_topics_name", "topics", ["name"], unique=True, postgresql_where=living, sqlite_where=living)
    _create(
        "partitions",
        sa.Column("partition_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=True),
        sa.Column("topic_id", sa.Text, sa.ForeignKey("topics.topic_id", name="fk_partitions_topic_id"), nullable=False),
        _bigint("partition"), _bigint("leader_broker_epoch", nullable=True), _bigint("leader_epoch", default=0),
        _bigint("log_start_offset", default=0), _bigint("next_offset", default=0), _text("fencing_token", nullable=True),
        _bigint("changed_version"),
        key=("partition_id",),
        sqlite_autoincrement=True,
    )  # fmt: skip
    op.create_index("uq_partitions_topic_id_partition", "partitions", ["topic_id", "partition"], unique=True)
    op.create_index("ix_partitions_changed_version", "partitions", ["changed_version"])
    rest = ("next_offset", "record_count", "length", "level", "max_timestamp_ms", "commit_time_ms", "leader_epoch")
    _create(
        "extents",
        _bigint("partition_id"), _bigint("base_offset"), _bigint("broker_epoch"), _bigint("sequence"), _bigint("position"),
        *map(_bigint, rest),
        key=("partition_id", "base_offset"),
    )  # fmt: skip
    op.create_index("ix_extents_segment", "extents", ["broker_epoch", "sequence", "partition_id"])
    _create(
        "released_extents",
        _bigint("broker_epoch"), _bigint("sequence"), _bigint("partition_id"), _bigint("position"), _bigint("base_offset"),
        *map(_bigint, rest),
        key=("broker_epoch", "sequence", "partition_id", "position"),
    )  # fmt: skip
    _create(
        "released_segments", _bigint("broker_epoch"), _bigint("sequence"), _text("key"), _bigint("released_at_ms"),
        key=("broker_epoch", "sequence"),
    )  # fmt: skip
    op.create_index("ix_released_segments_released_at_ms", "released_segments", ["released_at_ms"])
    _create(
        "producers",
        _bigint("partition_id"), _bigint("producer_id"), _bigint("producer_epoch"), _text("batches"), _bigint("appended_at_ms"),
        key=("partition_id", "producer_id"),
    )  # fmt: skip
    _create("groups", _text("group_id"), _bigint("generation"), _text("state"), _bigint("changed_at_ms"), key=("group_id",))
    _create(
        "group_offsets",
        _text("group_id"), _bigint("partition_id"), _bigint("next_offset"), _text("note"), _bigint("generation"),
        _bigint("committed_at_ms"),
        key=("group_id", "partition_id"),
    )  # fmt: skip
    if op.get_bind().dialect.name == "postgresql":
        for table in ("partitions", "producers"):
            # Every commit updates rows of these. Where a page has room for them, no index changes (a "HOT" update).
            op.execute(f"ALTER TABLE {table} SET (fillfactor = 50)")
