"""The kinds TidelogCluster and TidelogTopic (tidelog.io/v1alpha1) as a person writes them: the one place where their fields are.

`schema` makes the custom resource definitions of these classes, `reading` makes objects of these classes from what the API server
gives. A field's name here is snake_case, there camelCase. What a field is worth by default, the API server fills in by the
same definition.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NewType

GROUP = "tidelog.io"
VERSION = "v1alpha1"

Quantity = NewType("Quantity", str)
"""A quantity as Kubernetes writes it: 500m, 2, 1.5Gi."""


@dataclass(frozen=True, slots=True)
class Doc:
    """What `kubectl explain` says of a field, and what its values must keep to."""

    text: str
    minimum: int | float | None = None
    maximum: int | float | None = None
    pattern: str | None = None
    max_length: int | None = None
    max_items: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule in CEL, which the API server asserts, and the sentence that it says where it does not hold."""

    rule: str
    message: str


_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_KEY = r"^[-._a-zA-Z0-9]+$"


def immutable(name: str, advice: str) -> Rule:
    """Return the rule that a field keeps its first value, absence included."""
    rule = f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})"
    return Rule(rule, f"{name} was to be changed, but keeps its first value: {advice}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKey:
    """A value in a Secret of the same namespace."""

    name: Annotated[str, Doc("Name of the Secret.", pattern=_NAME, max_length=253)]
    key: Annotated[str, Doc("Key of the value in it.", pattern=_KEY, max_length=253)] = "url"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A Secret of the same namespace."""

    name: Annotated[str, Doc("Name of the Secret.", pattern=_NAME, max_length=253)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Where segments are kept."""

    rules: ClassVar = (
        immutable("bucket", "the log is in that bucket; make another TidelogCluster for another bucket"),
        immutable("prefix", "the log is below that prefix; make another TidelogCluster for another prefix"),
    )

    bucket: Annotated[str, Doc("Name of the bucket. It cannot be changed.", pattern=r"^[a-z0-9][-a-z0-9.]{1,61}[a-z0-9]$", max_length=63)]
    prefix: Annotated[
        str, Doc("What all keys begin with. It cannot be changed.", pattern=r"^([-._a-zA-Z0-9]+(/[-._a-zA-Z0-9]+)*)?$", max_length=200)
    ] = ""
    region: Annotated[str, Doc("Region of the bucket.", pattern=r"^[-a-z0-9]+$", max_length=63)] = "us-east-1"
    endpoint: Annotated[str, Doc("Where S3 answers, http:// or https://; empty: AWS.", pattern=r"^(https?://\S+)?$", max_length=500)] = ""
    credentials_secret_ref: Annotated[
        Secret | None,
        Doc("Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Without it brokers use the identity of their service account."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataStore:
    """The database that orders the log."""

    url_secret_ref: Annotated[SecretKey, Doc("Where the database's URL is, postgresql://user:password@host/database.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """How busy a broker should be. As many brokers are wanted as the busiest of these says."""

    cpu: Annotated[float, Doc("Cores used, as a share of the cores that `resources` requests.", minimum=0.05, maximum=1)] = 0.6
    produce_bytes_per_broker: Annotated[
        int, Doc("Bytes appended per second that one broker takes with ease; measure it with `tidelog bench produce`.", minimum=1024)
    ] = 50 * 1024 * 1024
    in_flight_utilization: Annotated[float, Doc("Appends held, as a share of `intake_budget_bytes`.", minimum=0.05, maximum=1)] = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleUp:
    """How fast brokers are added."""

    stabilization_seconds: Annotated[int, Doc("More are needed for this long before one is added.", minimum=0, maximum=3600)] = 30
    pods: Annotated[int, Doc("Brokers added at once.", minimum=1, maximum=100)] = 2
    period_seconds: Annotated[int, Doc("Time between two additions.", minimum=1, maximum=3600)] = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleDown:
    """How fast brokers are taken away: always one at a time, each drained first."""

    stabilization_seconds: Annotated[int, Doc("Fewer are enough for this long before one is taken.", minimum=0, maximum=86400)] = 1800
    period_seconds: Annotated[int, Doc("Time between two.", minimum=1, maximum=86400)] = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """Brokers by load. An HPA on the same cluster would quarrel with it."""

    rules: ClassVar = (
        Rule(
            "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "minReplicas is larger than maxReplicas; lower the first or raise the second",
        ),
    )

    enabled: Annotated[bool, Doc("Whether load decides; else `replicas` does.")] = False
    min_replicas: Annotated[int, Doc("Never fewer brokers.", minimum=1, maximum=1000)] = 2
    max_replicas: Annotated[int, Doc("Never more brokers.", minimum=1, maximum=1000)] = 10
    targets: Annotated[Targets, Doc("How busy a broker should be.")] = field(default_factory=Targets)
    scale_up: Annotated[ScaleUp, Doc("How fast brokers are added.")] = field(default_factory=ScaleUp)
    scale_down: Annotated[ScaleDown, Doc("How fast brokers are taken away.")] = field(default_factory=ScaleDown)
    on_stale_metrics: Annotated[Literal["Hold"], Doc("While a broker's load is not known, nothing is scaled.")] = "Hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """How a broker is taken out of service."""

    timeout_seconds: Annotated[
        int, Doc("A broker that has not handed over by then is taken back into service.", minimum=5, maximum=3600)
    ] = 120
    propagation_seconds: Annotated[
        int, Doc("How long a draining broker goes on accepting, until balancers have noticed.", minimum=0, maximum=600)
    ] = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """CPU and memory."""

    cpu: Annotated[Quantity | None, Doc("Cores, as in 500m or 2.")] = None
    memory: Annotated[Quantity | None, Doc("Bytes, as in 1Gi.")] = None


def _requests() -> Amounts:
    return Amounts(cpu=Quantity("1"), memory=Quantity("1Gi"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a broker's container asks for, and what it may use."""

    requests: Annotated[Amounts, Doc("What the scheduler keeps free for a broker.")] = field(default_factory=_requests)
    limits: Annotated[Amounts, Doc("What a broker may use at most.")] = field(default_factory=Amounts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologySpread:
    """How brokers are spread over zones and nodes."""

    max_skew: Annotated[int, Doc("By how many brokers two zones, or two nodes, may differ.", minimum=1, maximum=100)] = 1
    when_unsatisfiable: Annotated[Literal["ScheduleAnyway", "DoNotSchedule"], Doc("Whether a broker starts where that cannot be kept.")] = (
        "ScheduleAnyway"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PodDisruptionBudget:
    """How many brokers may be away on purpose, as when nodes are emptied."""

    enabled: Annotated[bool, Doc("Whether there is such a budget.")] = True
    max_unavailable: Annotated[int, Doc("Brokers that may be away at once.", minimum=1, maximum=100)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Encryption between clients and brokers, and among brokers."""

    secret_ref: Annotated[
        Secret,
        Doc(
            "Secret of type kubernetes.io/tls: tls.crt, which must be valid for NAME.NAMESPACE.svc, and tls.key; ca.crt, the authorities"
            " by which brokers know each other, and clients where these have certificates."
        ),
    ]
    client_certificates: Annotated[bool, Doc("Ask clients for certificates of the authorities in ca.crt (mTLS).")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Bearer tokens of clients, and the secret by which brokers know each other."""

    secret_ref: Annotated[
        Secret,
        Doc(
            "Secret with tokens.yaml (see docs/security.md), peer-token, and operator-token, which tokens.yaml gives admin for all topics."
        ),
    ]


RESERVED_SETTINGS = (
    "broker_id", "zone", "listen", "advertise", "metrics_listen", "bucket",
    "metadata", "s3_endpoint_url", "s3_region", "drain_timeout_ms", "drain_propagation_ms", "insecure",
    "tls_certificate_file", "tls_key_file", "tls_client_ca_file", "tls_ca_file", "tls_peer_name", "tokens_file", "peer_token",
)  # fmt: skip
"""Settings of a broker that other fields of the spec decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """What a cluster should be."""

    rules: ClassVar = (
        Rule(
            f"!has(self.config) || self.config.all(name, !(name in [{', '.join(repr(name) for name in RESERVED_SETTINGS)}]))",
            f"config sets what other fields of the spec decide; leave these out of it: {', '.join(RESERVED_SETTINGS)}",
        ),
    )

    image: Annotated[str, Doc("Image of brokers.", pattern=r"^\S+$", max_length=500)]
    storage: Annotated[Storage, Doc("Where segments are kept.")]
    metadata_store: Annotated[MetadataStore, Doc("The database that orders the log.")]
    replicas: Annotated[int, Doc("Brokers, where load does not decide.", minimum=1, maximum=1000)] = 3
    paused: Annotated[bool, Doc("Leave everything as it is, whatever else is changed here.")] = False
    image_pull_secrets: Annotated[tuple[Secret, ...], Doc("Secrets to pull the image with.", max_items=10)] = ()
    service_account_name: Annotated[
        str,
        Doc(
            "Service account of brokers, as for workload identity; empty: the namespace's default.",
            pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$",
        ),
    ] = ""
    autoscaling: Annotated[Autoscaling, Doc("Brokers by load.")] = field(default_factory=Autoscaling)
    drain: Annotated[Drain, Doc("How a broker is taken out of service.")] = field(default_factory=Drain)
    resources: Annotated[Resources, Doc("What a broker asks for, and what it may use.")] = field(default_factory=Resources)
    topology_spread: Annotated[TopologySpread, Doc("How brokers are spread.")] = field(default_factory=TopologySpread)
    pod_disruption_budget: Annotated[PodDisruptionBudget, Doc("How many may be away on purpose.")] = field(
        default_factory=PodDisruptionBudget
    )
    config: Annotated[
        dict[str, str],
        Doc("Settings of brokers by name, as in docs/settings.md, each value in quotes: segment_bytes: '8388608'.", max_items=200),
    ] = field(default_factory=dict)
    tls: Annotated[Tls | None, Doc("Encryption; without it brokers speak plaintext.")] = None
    tokens: Annotated[Tokens | None, Doc("Who may do what; without it everyone may do everything.")] = None


ConditionStatus = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something that holds of an object, does not, or is not known."""

    type: Annotated[str, Doc("What is spoken of.", max_length=100)]
    status: Annotated[ConditionStatus, Doc("Whether it holds.")]
    reason: Annotated[str, Doc("Why, in one word.", max_length=100)]
    message: Annotated[str, Doc("Why, and what to do, in sentences.", max_length=4000)]
    last_transition_time: Annotated[str, Doc("When the status became this one.", max_length=40)]
    observed_generation: Annotated[int, Doc("Generation of the object that was looked at.", minimum=0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """What a cluster is."""

    observed_generation: Annotated[int, Doc("Generation of the object that was looked at.", minimum=0)] = 0
    replicas: Annotated[int, Doc("Brokers that there are.", minimum=0)] = 0
    ready_replicas: Annotated[int, Doc("Brokers that take appends.", minimum=0)] = 0
    updated_replicas: Annotated[int, Doc("Brokers that run with the latest configuration.", minimum=0)] = 0
    selector: Annotated[str, Doc("Finds the brokers' pods, for the scale subresource.", max_length=500)] = ""
    draining_brokers: Annotated[tuple[str, ...], Doc("Brokers that hand over what they lead.", max_items=1000)] = ()
    last_scale_time: Annotated[str, Doc("When the number of brokers was changed last.", max_length=40)] = ""
    last_scale_reason: Annotated[str, Doc("Why it was.", max_length=1000)] = ""
    conditions: Annotated[tuple[Condition, ...], Doc("What holds of this cluster.", max_items=50)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """What a topic should be."""

    rules: ClassVar = (
        immutable("clusterRef", "make another TidelogTopic in the other cluster"),
        immutable("topicName", "make another TidelogTopic for another topic"),
        Rule(
            "!has(self.partitions) || !has(oldSelf.partitions) || self.partitions >= oldSelf.partitions",
            "partitions was lowered, but a topic cannot have fewer than before; keep the old number, or make another topic",
        ),
    )

    cluster_ref: Annotated[str, Doc("Name of a TidelogCluster of the same namespace. It cannot be changed.", pattern=_NAME, max_length=63)]
    topic_name: Annotated[
        str, Doc("Name of the topic; empty: that of this object. It cannot be changed.", pattern=r"^[-._a-zA-Z0-9]*$", max_length=249)
    ] = ""
    partitions: Annotated[int, Doc("Partitions; more may be added, never fewer.", minimum=1, maximum=100_000)] = 1
    retention: Annotated[
        str,
        Doc(
            "How long records are kept, as in 7d or 1h30m; forever; empty: what it has, at first the cluster's default.",
            pattern=r"^(([0-9]{1,9}(ms|s|m|h|d|w)){1,6}|forever)?$",
            max_length=60,
        ),
    ] = ""
    retention_bytes: Annotated[
        int | None, Doc("Bytes kept per partition; -1: no limit; absent: what it has, at first the cluster's default.", minimum=-1)
    ] = None
    compaction: Annotated[bool, Doc("Keep the newest record of each key only.")] = False
    deletion_policy: Annotated[
        Literal["Retain", "Delete"], Doc("What becomes of the topic and its records when this object is deleted.")
    ] = "Retain"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicStatus:
    """What a topic is."""

    observed_generation: Annotated[int, Doc("Generation of the object that was looked at.", minimum=0)] = 0
    topic_id: Annotated[str, Doc("Id of the topic that belongs to this object.", max_length=40)] = ""
    partitions: Annotated[int, Doc("Partitions that it has.", minimum=0)] = 0
    conditions: Annotated[tuple[Condition, ...], Doc("What holds of this topic.", max_items=50)] = ()
