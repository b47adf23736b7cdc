"""Every limit, interval and budget of a broker, in one place: name with its unit, default, range, and a sentence.

Parts of a broker are given these settings and read what they need. Nothing is read from the environment or a file
here: that is `server.settings.load_settings`' business, which only the command line calls.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


def _milliseconds(default: int, *, ge: int = 0, le: int = 365 * 24 * 3600 * 1000, description: str) -> Any:
    return Field(default, ge=ge, le=le, description=description)


def _bytes(default: int, *, ge: int = 0, le: int = 1024**4, description: str) -> Any:
    return Field(default, ge=ge, le=le, description=description)


def _count(default: int, *, ge: int = 1, le: int = 10_000_000, description: str) -> Any:
    return Field(default, ge=ge, le=le, description=description)


class Settings(BaseModel):
    """The settings of one broker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # ---- who and where
    broker_id: str = Field(
        "", pattern=r"^([a-z0-9-]{1,63})?$", description="Name of this broker, [a-z0-9-]{1,63}; empty: made of the host's name."
    )
    zone: str = Field("", description="Availability zone; clients prefer brokers of their own.")
    listen: str = Field("127.0.0.1:9595", description="Where clients connect, HOST:PORT; port 0 takes any free one.")
    advertise: str = Field(
        "", description="HOST:PORT that others are told; empty: what is listened on, by the host's name where that is every address."
    )
    metrics_listen: str = Field("127.0.0.1:9596", description="Where /metrics, /livez and /readyz answer, HOST:PORT; empty: nowhere.")
    bucket: str = Field("", description="Where segments are kept: s3://bucket/prefix, file:///directory or memory://.")
    metadata: str = Field("", description="Metadata store: postgresql://…, sqlite:///path, or sqlite:// for one in memory.")

    # ---- object store
    s3_endpoint_url: str = Field("", description="Where S3 answers, http:// or https://; empty: AWS. `?endpoint=` in the URL goes before.")
    s3_region: str = Field("us-east-1", min_length=1, description="Region of the bucket. `?region=` in the URL goes before.")
    s3_addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto", description="Whether the bucket is named in the path or in the host. `?path_style=true` in the URL goes before."
    )
    s3_sign_bodies: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether a write's signature covers its body; auto: where the connection is not TLS."
        " A checksum that the server verifies is sent in any case.",
    )
    s3_connect_timeout_ms: int = _milliseconds(2000, ge=1, description="Making one connection to S3 is given up after this.")
    s3_read_timeout_ms: int = _milliseconds(15_000, ge=1, description="A request to S3 is given up when nothing comes for this long.")
    s3_attempt_timeout_ms: int = _milliseconds(30_000, ge=1, description="One request to S3, its body included, is given up after this.")
    s3_max_attempts: int = _count(5, le=100, description="How often a request to S3 is tried.")
    s3_deadline_ms: int = _milliseconds(60_000, ge=1, description="All attempts at a request to S3 together, with the waits between.")
    s3_backoff_base_ms: int = _milliseconds(50, description="Waits between attempts are drawn from 0 up to this, doubled each time.")
    s3_backoff_most_ms: int = _milliseconds(5000, description="Waits between attempts are never longer.")
    s3_max_connections: int = _count(64, le=10_000, description="Connections to S3.")
    s3_hedge_after_samples: int = Field(
        20, ge=0, le=500, description="Requests that are measured before slow ones are sent a second time; 0 switches that off."
    )
    s3_hedge_percentile: float = Field(
        0.99, ge=0, le=1, description="A request is slow when it takes longer than this share of the recent ones."
    )
    s3_hedge_most_share: float = Field(0.05, ge=0, le=1, description="Largest share of requests that may be sent a second time.")
    file_threads: int = _count(8, le=256, description="Threads that read and write the files of a file:// bucket.")

    # ---- metadata store
    metadata_connections: int = _count(4, le=100, description="Connections to PostgreSQL; one more is kept for the lease.")
    metadata_connect_timeout_ms: int = _milliseconds(
        5000, ge=1, description="Connecting to PostgreSQL, and waiting for a free connection, is given up after this."
    )

    # ---- membership and leadership
    lease_ms: int = _milliseconds(10_000, ge=500, description="How long a broker is a member without renewing its lease.")
    catalog_poll_ms: int = _milliseconds(500, ge=10, description="How often changes of topics, leaders and members are asked for.")
    take_over_batch_partitions: int = _count(1000, description="How many partitions are taken over in one transaction.")

    # ---- produce
    segment_bytes: int = _bytes(8 * MIB, ge=4096, le=256 * MIB, description="A segment is sealed when it holds this much.")
    max_latency_ms: int = _milliseconds(250, ge=0, le=60_000, description="How long an append waits for company at most.")
    append_timeout_ms: int = _milliseconds(30_000, ge=10, description="After this an append's outcome is reported, whatever it is.")
    max_append_timeout_ms: int = _milliseconds(300_000, ge=10, description="The longest time-out that a client may ask for.")
    max_append_bytes: int = _bytes(8 * MIB, ge=1024, le=64 * MIB, description="All batches of one append together.")
    max_batch_bytes: int = _bytes(1 * MIB, ge=1024, le=64 * MIB, description="One batch as it travels, header included.")
    max_batch_records: int = _count(1_000_000, description="Records of one batch.")
    max_timestamp_skew_ms: int = _milliseconds(24 * 3600 * 1000, description="How far a timestamp may lie ahead of the broker's clock.")
    intake_budget_bytes: int = _bytes(
        128 * MIB, ge=1 * MIB, description="Appends held at once, every copy counted; beyond it they are pushed back."
    )
    max_uploads: int = _count(8, le=256, description="Segments uploaded at the same time.")
    puts_per_second: float = Field(
        0,
        ge=0,
        le=100_000,
        description="Budget of segment uploads; beyond it segments wait for size or latency. 0: 50 for s3://, else no limit.",
    )
    max_stream_appends: int = _count(10_000, description="Unanswered appends of one Produce stream; beyond it the stream is not read.")
    max_stream_append_bytes: int = _bytes(16 * MIB, ge=1, description="Their bytes; beyond it the stream is not read.")
    max_open_sequences: int = _count(256, description="Segments whose appends are not all answered; beyond it nothing is sealed.")
    max_pending_references: int = _count(100_000, description="References that wait for a commit at one leader.")
    commit_max_partitions: int = _count(2000, description="Partitions committed in one transaction.")
    commit_max_extents: int = _count(20_000, description="With so many extents no more partitions are added to a transaction.")
    producer_expiry_ms: int = _milliseconds(7 * 24 * 3600 * 1000, description="A producer's state is forgotten when unused this long.")
    max_producers_per_partition: int = _count(10_000, description="Idempotent producers that a partition remembers.")
    peer_timeout_ms: int = _milliseconds(10_000, ge=100, description="A link to another broker without an answer is made anew after this.")

    # ---- consume
    cache_bytes: int = _bytes(64 * MIB, ge=0, description="Memory for recent and recently read batches.")
    block_cache_bytes: int = _bytes(32 * MIB, ge=0, description="Memory for blocks of segments.")
    read_block_bytes: int = _bytes(1 * MIB, ge=4096, le=64 * MIB, description="Cold reads ask the bucket for aligned blocks of this size.")
    read_ahead_blocks: int = Field(4, ge=0, le=64, description="Blocks fetched ahead of a sequential reader.")
    read_ahead_extents: int = _count(64, le=4096, description="Extents of a partition that are looked up at once.")
    max_cold_reads: int = _count(8, le=1024, description="Ranged GETs at the same time for those who read the past.")
    max_tail_reads: int = _count(32, le=1024, description="Ranged GETs at the same time for what was committed just now.")
    max_loop_lag_ms: int = _milliseconds(20, ge=1, description="When the event loop lags by more, fewer cold reads run at once.")
    window_extents: int = _count(64, le=4096, description="Newest extents kept of each followed partition.")
    response_bytes: int = _bytes(256 * 1024, ge=1024, le=16 * MIB, description="A response aims at this size.")
    follower_poll_ms: int = _milliseconds(200, ge=5, description="Where a leader's feed is missing, its partitions are polled this often.")
    max_subscriptions_per_stream: int = _count(10_000, description="Partitions followed by one Consume stream.")
    max_credit_bytes: int = _bytes(64 * MIB, ge=1024, description="Credit that one Consume stream may hold.")
    max_unsent_bytes: int = _bytes(
        64 * MIB, ge=1024, description="Read for Consume streams and not sent yet; beyond it each stream has one response at a time."
    )
    max_read_bytes: int = _bytes(3 * MIB, ge=1024, le=64 * MIB, description="Plain records in the answer to one Read.")
    max_reads: int = _count(64, le=10_000, description="Reads (the unary call) that are read and decoded at once; others wait their turn.")
    max_read_wait_ms: int = _milliseconds(60_000, description="How long a Read waits for a first record at most.")
    max_decompressed_bytes: int = _bytes(64 * MIB, ge=65536, description="Records of one batch that are decompressed for a Read.")

    # ---- merging
    merging: bool = Field(True, description="Merge small segments of the partitions that are led here into large ones.")
    merge_target_bytes: int = _bytes(
        128 * MIB,
        ge=4096,
        le=512 * MIB,
        description="Size of a merged segment; one of half of it or more is not merged again. Less where a topic's size limit is small.",
    )
    merge_least_extents: int = _count(32, le=4096, description="So many extents at least are merged into a first merged segment.")
    merge_most_extents: int = _count(
        512, le=4096, description="So many extents at most are merged at once, and wait for being merged again."
    )
    merge_max_age_ms: int = _milliseconds(
        15 * 60_000, ge=1, description="What intake wrote is merged after this at the latest, however little it is."
    )
    merge_settle_ms: int = _milliseconds(
        3600_000, ge=1, description="Where nothing has been appended for this long, what small segments are left are merged."
    )
    merge_bytes_per_second: int = _bytes(64 * MIB, ge=4096, description="Budget of what merging reads; it writes as much.")
    merge_buffer_bytes: int = _bytes(
        64 * MIB,
        ge=65536,
        description="Memory for merging: a quarter for what it reads, as much for what it makes of it, the rest for a stream;"
        " one to S3 takes 16 MiB.",
    )
    max_merges: int = _count(4, le=256, description="Merges and their reads at the same time; fewer while the event loop lags.")

    # ---- topics
    default_partitions: int = _count(1, le=10_000, description="Partitions of a topic that does not say.")
    max_partitions_per_topic: int = _count(10_000, le=100_000, description="Partitions that a topic may be given.")
    auto_create_topics: bool = Field(False, description="Make a topic when it is first appended to.")
    default_retention_ms: int = Field(7 * 24 * 3600 * 1000, ge=-1, description="How long records are kept; -1: for ever.")
    default_retention_bytes: int = Field(-1, ge=-1, description="Bytes kept per partition; -1: no limit.")

    # ---- scrub
    scrub_interval_ms: int = _milliseconds(
        7 * 24 * 3600 * 1000,
        description="How often the stored bytes of the partitions that are led here are read and checked, beside all else. 0: never.",
    )
    scrub_bytes_per_second: int = _bytes(256 * 1024, ge=1024, description="Budget of what a scrub reads.")
    scrub_reads_per_second: float = Field(
        1, gt=0, le=10_000, description="Budget of a scrub's ranged GETs, which are paid for; each reads one extent, or 1 MiB of it."
    )

    # ---- checkpoints
    checkpoint_interval_ms: int = _milliseconds(
        30_000,
        description="How often changes of the metadata are copied into the bucket, which is how much a rebuild may have to guess;"
        " 0: never.",
    )
    checkpoints_kept: int = _count(2, le=1000, description="Whole copies of the metadata that are kept, with the changes since each.")
    checkpoint_page_rows: int = _count(5000, ge=10, le=100_000, description="Rows read at once, and written as one object.")

    # ---- retention and cleaning
    retention: bool = Field(True, description="Apply what topics keep to the partitions that this broker leads.")
    retention_interval_ms: int = _milliseconds(10_000, ge=10, description="How often a leader looks for what is not kept any more.")
    release_extents: int = _count(2000, le=20_000, description="Extents released in one transaction at most; slow ones take fewer.")
    cleaning: bool = Field(True, description="Delete objects that nobody needs any more; one broker at a time does.")
    cleaner_interval_ms: int = _milliseconds(10_000, ge=10, description="How often the cleaner looks for what it may delete.")
    cleaner_round_segments: int = _count(10_000, le=100_000, description="Released segments looked at in one round of the cleaner.")
    reader_grace_ms: int = _milliseconds(
        300_000, ge=1, description="An object is deleted so long after its last extent was merged or expired: readers may still be at it."
    )
    orphan_cleaning: bool = Field(True, description="Look in the bucket for segments that no row knows, and delete them.")
    orphan_age_seconds: int = Field(
        3600, ge=0, le=365 * 24 * 3600, description="No orphan younger than this is deleted, by the object store's clock."
    )
    orphan_scan_interval_ms: int = _milliseconds(3_600_000, ge=10, description="How often one looks for orphans.")
    cleaner_listed_objects: int = _count(10_000, le=1_000_000, description="Objects listed in one round of the cleaner.")
    cleaner_retry_ms: int = _milliseconds(3_600_000, ge=10, description="What failed again and again is tried no more often than this.")

    # ---- cost
    put_dollars_per_1000: float = Field(0.005, ge=0, le=1000, description="Price of 1,000 PUT or LIST requests, in US dollars.")
    get_dollars_per_1000: float = Field(0.0004, ge=0, le=1000, description="Price of 1,000 GET or HEAD requests, in US dollars.")
    storage_dollars_per_gib_month: float = Field(0.023, ge=0, le=1000, description="Price of keeping a GiB for a month, in US dollars.")
    transfer_dollars_per_gb: float = Field(
        0.01, ge=0, le=1000, description="Price of carrying a GB (10⁹ bytes) between zones, at each end, in US dollars."
    )
    storage_count_interval_ms: int = _milliseconds(
        600_000, description="How often what is kept is added up, by one broker, for the bill; 0: never."
    )
    metrics_most_topics: int = _count(
        100, ge=0, le=10_000, description="Topics whose bytes are counted one by one, the first that come; the others are counted together."
    )

    # ---- server
    max_connections: int = _count(10_000, description="Connections at once.")
    max_streams_per_connection: int = _count(1000, description="Calls at once on one connection.")
    max_streams: int = _count(10_000, description="Long-lived streams of clients (Produce, Consume) at once on all connections.")
    max_message_bytes: int = _bytes(16 * MIB, ge=64 * 1024, le=256 * MIB, description="One gRPC message.")
    max_queries_per_call: int = _count(10_000, description="Topics or offsets that one call may ask for by name.")
    handshake_timeout_ms: int = _milliseconds(20_000, ge=100, description="A connection that is not set up after this is closed.")
    keepalive_ms: int = _milliseconds(30_000, ge=100, description="A connection is asked for a sign of life when silent for this long.")
    keepalive_timeout_ms: int = _milliseconds(20_000, ge=100, description="A connection that gives none for this long is closed.")
    drain_timeout_ms: int = _milliseconds(30_000, description="How long a leaving broker waits for what it has accepted.")
    drain_propagation_ms: int = _milliseconds(
        1000, description="How long a draining broker goes on accepting, until balancers have noticed."
    )
    reflection: bool = Field(True, description="Answer gRPC server reflection.")
    insecure: bool = Field(False, description="Allow plaintext beyond loopback.")
    tls_certificate_file: str = Field("", description="PEM file of the server's certificate chain; read again when it changes.")
    tls_key_file: str = Field("", description="PEM file of its private key.")
    tls_client_ca_file: str = Field("", description="PEM file of the authorities whose client certificates are asked for (mTLS).")
    tls_ca_file: str = Field(
        "", description="PEM file of the authorities of other brokers' certificates; empty: tls_client_ca_file, else the system's."
    )
    tls_peer_name: str = Field(
        "", description="Name that other brokers' certificates are checked for; empty: that of the address which they advertise."
    )
    tokens_file: str = Field("", description="YAML file of bearer tokens and their scopes; read again when it changes.")
    peer_token: str = Field(
        "", repr=False, description="Secret by which brokers know each other; needed with tokens_file. Empty: mTLS, or loopback only."
    )

    # ---- telemetry
    log_format: Literal["text", "json"] = Field("text", description="How telemetry is printed.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least level that is printed.")

    @property
    def segment_puts_per_second(self) -> float:
        """The budget of segment uploads that is in force."""
        return self.puts_per_second or (50.0 if self.bucket.startswith("s3:") else 100_000.0)


GROUPS = {
    "Who and where": "broker_id",
    "Object store": "s3_endpoint_url",
    "Metadata store": "metadata_connections",
    "Membership and leadership": "lease_ms",
    "Produce": "segment_bytes",
    "Consume": "cache_bytes",
    "Merging": "merging",
    "Topics": "default_partitions",
    "Scrub": "scrub_interval_ms",
    "Checkpoints": "checkpoint_interval_ms",
    "Retention and cleaning": "retention",
    "Cost": "put_dollars_per_1000",
    "Server": "max_connections",
    "Telemetry": "log_format",
}
"""The headings under which settings are listed, each with the first setting below it."""

SECRETS = frozenset(name for name, field in Settings.model_fields.items() if not field.repr)
"""Settings whose values are never shown."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Settings that are right by themselves, but not together."""

    names: tuple[str, ...]
    sentence: str
    """What must hold, and what to do."""


_MESSAGE_FRAME_BYTES = 64 * 1024
"""What a message has beside its batches, generously."""
INTAKE_COPIES = 3
"""Of an append's bytes that are in memory at once, as intake counts them."""


def contradictions(settings: Settings) -> Iterator[Contradiction]:
    """Yield what does not fit together. Only a whole configuration is looked at so, not one made for a test of a part."""
    s = settings
    rules = (
        (s.max_batch_bytes <= s.max_append_bytes, ("max_batch_bytes", "max_append_bytes"), "a batch must fit into an append"),
        (
            s.max_append_bytes + _MESSAGE_FRAME_BYTES <= s.max_message_bytes,
            ("max_append_bytes", "max_message_bytes"),
            f"an append must fit into a message, with {_MESSAGE_FRAME_BYTES} bytes to spare",
        ),
        (
            s.response_bytes + s.max_batch_bytes <= s.max_message_bytes,
            ("response_bytes", "max_message_bytes"),
            "a response, which may pass its aim by one batch (max_batch_bytes), must fit into a message",
        ),
        (
            s.max_append_bytes * INTAKE_COPIES <= s.intake_budget_bytes,
            ("max_append_bytes", "intake_budget_bytes"),
            f"the budget must hold the {INTAKE_COPIES} copies of the largest append, or it would be pushed back for ever",
        ),
        (
            s.merge_least_extents <= s.merge_most_extents,
            ("merge_least_extents", "merge_most_extents"),
            "what is waited for must be allowed to be merged",
        ),
        (
            s.append_timeout_ms <= s.max_append_timeout_ms,
            ("append_timeout_ms", "max_append_timeout_ms"),
            "the default time-out must not be longer than the longest that clients may ask for",
        ),
        (
            s.max_latency_ms < s.append_timeout_ms,
            ("max_latency_ms", "append_timeout_ms"),
            "an append must not wait for company until its time is over",
        ),
        (s.catalog_poll_ms < s.lease_ms, ("catalog_poll_ms", "lease_ms"), "changes must be asked for more often than leases end"),
        (
            s.default_partitions <= s.max_partitions_per_topic,
            ("default_partitions", "max_partitions_per_topic"),
            "a topic that does not say must get no more partitions than a topic may have",
        ),
        (s.s3_backoff_base_ms <= s.s3_backoff_most_ms, ("s3_backoff_base_ms", "s3_backoff_most_ms"), "the first wait is the shortest"),
    )
    requests = s.max_uploads + s.max_cold_reads + s.max_tail_reads + s.max_merges
    if s.bucket.startswith("s3:") and requests > s.s3_max_connections:
        yield Contradiction(
            ("max_uploads", "max_cold_reads", "max_tail_reads", "max_merges", "s3_max_connections"),
            f"{requests} requests may be under way at once, and one that waits for a connection cannot be told from one without an answer;"
            " lower one of the others or raise the last",
        )
    for holds, names, sentence in rules:
        if not holds:
            yield Contradiction(names, f"{sentence}; lower the first or raise the second")
    if bool(s.tls_certificate_file) != bool(s.tls_key_file):
        yield Contradiction(("tls_certificate_file", "tls_key_file"), "TLS needs both; set both or none")
    if s.tokens_file and not s.peer_token and s.metadata.startswith("postgresql:"):
        yield Contradiction(
            ("tokens_file", "peer_token"), "brokers of one database must know each other by more than clients have; set the second, too"
        )
    if s.tls_client_ca_file and not s.tls_certificate_file:
        yield Contradiction(("tls_client_ca_file", "tls_certificate_file"), "client certificates need TLS; set the second, too")
