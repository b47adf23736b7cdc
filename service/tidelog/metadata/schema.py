"""The tables. Migrations build exactly these (a test compares them); verbs read and write them by name.

A *partition id* and a *broker epoch* are small integers of this store, so that the rows that are many (extents) stay
narrow. A broker epoch is never given twice, so (broker epoch, sequence) names a segment.

Locks are taken in this order, and within a table ascending by primary key, by every transaction:

    cluster → brokers → writers → resolved_marks → topics → partitions → groups → extents → released_extents
    → released_segments → producers → group_offsets → commit_counts → changes → cleaner

Locks that are not of rows (`tidelog.metadata.marks`) are never waited for by whoever takes them alone.

Times are Unix milliseconds of the metadata store's own clock.
"""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, MetaData, Table, Text, text

tables_metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _bigint(name: str, *, primary_key: bool = False, nullable: bool = False, default: int | None = None) -> Column[int]:
    server_default = None if default is None else text(str(default))
    return Column(name, BigInteger, primary_key=primary_key, nullable=nullable, autoincrement=False, server_default=server_default)


def _text(name: str, *, primary_key: bool = False, nullable: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=primary_key, nullable=nullable)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=text("FALSE"))


cluster = Table(
    "cluster",
    tables_metadata,
    _bigint("one", primary_key=True),  # always 1: the table has one row
    _text("cluster_id"),
    _bigint("format_version"),
    _bigint("membership_version"),
    _bigint("next_broker_epoch"),
    _bigint("next_producer_id"),
    _bigint("created_at_ms"),
)

changes = Table(  # counts every change of topics and leadership; polled, so kept apart from `cluster`
    "changes",
    tables_metadata,
    _bigint("one", primary_key=True),
    _bigint("version"),
    _bigint("forgotten_version", default=0),  # rows of topics deleted up to here are gone: whoever knows less has to read everything
)

cleaner = Table(
    "cleaner",
    tables_metadata,
    _bigint("one", primary_key=True),
    _bigint("broker_epoch", nullable=True),
    _bigint("lease_expires_at_ms"),
    _bigint("checkpoint_at_ms", default=0),  # when the newest copy of this store in the bucket was begun: what it names is not deleted
)

brokers = Table(
    "brokers",
    tables_metadata,
    _text("broker_id", primary_key=True),
    _bigint("broker_epoch"),
    _text("incarnation"),  # 32 hex digits, chosen once per process start
    _text("zone"),
    _text("address"),  # for clients, host:port
    _text("peer_address"),  # for brokers, host:port
    _bigint("lease_expires_at_ms"),
    _bigint("unbroken_since_ms"),  # the lease has been renewed in time ever since
    _flag("draining"),
)

writers = Table(  # apart from the lease, because commits share-lock these rows and renewals must not wait for them
    "writers",
    tables_metadata,
    _bigint("broker_epoch", primary_key=True),
    _text("broker_id"),
    _text("incarnation"),
    _flag("ended"),
)

resolved_marks = Table(  # apart from the writer, whose row commits hold
    "resolved_marks",
    tables_metadata,
    _bigint("broker_epoch", primary_key=True),
    _bigint("sequence"),  # no reference of this or a lower sequence will be sent again
)

commit_counts = Table(  # commits, swaps and releases: one row per broker, so that counting does not make brokers wait for each other (I11)
    "commit_counts",
    tables_metadata,
    _bigint("broker_epoch", primary_key=True),
    _bigint("commits"),
)

topics = Table(
    "topics",
    tables_metadata,
    _text("topic_id", primary_key=True),  # 32 hex digits
    _text("name"),
    _bigint("partitions"),
    _bigint("retention_ms"),  # -1: for ever
    _bigint("retention_bytes"),  # per partition; -1: no limit
    _flag("compact"),
    _bigint("created_at_ms"),
    _flag("deleted"),
    _bigint("changed_version"),
)
Index(
    "uq_topics_name",
    topics.c.name,
    unique=True,
    postgresql_where=topics.c.deleted.is_(False),
    sqlite_where=topics.c.deleted.is_(False),
)

partitions = Table(
    "partitions",
    tables_metadata,
    Column("partition_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("topic_id", Text, ForeignKey("topics.topic_id"), nullable=False),
    _bigint("partition"),
    _bigint("leader_broker_epoch", nullable=True),
    _bigint("leader_epoch", default=0),
    _bigint("log_start_offset", default=0),
    _bigint("next_offset", default=0),
    _text("fencing_token", nullable=True),
    _bigint("changed_version"),
    sqlite_autoincrement=True,  # never gives an id again, as PostgreSQL does not: rows of groups and brokers' memory go by it
)
Index("uq_partitions_topic_id_partition", partitions.c.topic_id, partitions.c.partition, unique=True)
Index("ix_partitions_changed_version", partitions.c.changed_version)


def _extent_columns() -> list[Column[int]]:
    return [
        _bigint("next_offset"),
        _bigint("record_count"),
        _bigint("length"),  # bytes
        _bigint("level"),  # 0: intake segment; n: merged n times
        _bigint("max_timestamp_ms"),
        _bigint("commit_time_ms"),
        _bigint("leader_epoch"),
    ]


extents = Table(
    "extents",
    tables_metadata,
    _bigint("partition_id", primary_key=True),
    _bigint("base_offset", primary_key=True),
    _bigint("broker_epoch"),
    _bigint("sequence"),
    _bigint("position"),  # from the object's first byte
    *_extent_columns(),
)
Index("ix_extents_segment", extents.c.broker_epoch, extents.c.sequence, extents.c.partition_id)

released_extents = Table(  # no longer read; kept until the object goes, so that a late retry still finds its answer (I5)
    "released_extents",
    tables_metadata,
    _bigint("broker_epoch", primary_key=True),
    _bigint("sequence", primary_key=True),
    _bigint("partition_id", primary_key=True),
    _bigint("position", primary_key=True),
    _bigint("base_offset"),
    *_extent_columns(),
)

released_segments = Table(  # segments that lost an extent: what a cleaner looks at
    "released_segments",
    tables_metadata,
    _bigint("broker_epoch", primary_key=True),
    _bigint("sequence", primary_key=True),
    _text("key"),  # below the cluster's prefix
    _bigint("released_at_ms"),
)
Index("ix_released_segments_released_at_ms", released_segments.c.released_at_ms)

producers = Table(
    "producers",
    tables_metadata,
    _bigint("partition_id", primary_key=True),
    _bigint("producer_id", primary_key=True),
    _bigint("producer_epoch"),
    _text("batches"),  # JSON: up to five [first sequence, last sequence, base offset], oldest first
    _bigint("appended_at_ms"),
)

groups = Table(
    "groups",
    tables_metadata,
    _text("group_id", primary_key=True),
    _bigint("generation"),
    _text("state"),  # JSON: members, assignment, session time-outs
    _bigint("changed_at_ms"),
)

group_offsets = Table(
    "group_offsets",
    tables_metadata,
    _text("group_id", primary_key=True),
    _bigint("partition_id", primary_key=True),
    _bigint("next_offset"),
    _text("note"),
    _bigint("generation"),
    _bigint("committed_at_ms"),
)
