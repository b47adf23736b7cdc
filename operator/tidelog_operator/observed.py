"""What there is: a cluster's object, its children in Kubernetes, what its brokers say. All of it as data that someone else gathered."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from tidelog_operator.resource import ClusterSpec, ClusterStatus

Manifest = Mapping[str, Any]
"""An object as the API server has it, or is to have it."""


def timestamp(seconds: float) -> str:
    """Return a Unix time as Kubernetes writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


STATE = "tidelog.io/state"
"""Annotation of the Deployment in which `Notes` are kept."""
CHECKSUM = "tidelog.io/checksum"
"""Annotation of an object with the checksum of what was applied; of a pod, with that of its template."""
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""Annotation of a pod by which a ReplicaSet chooses whom it ends first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A TidelogCluster."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: ClusterSpec
    status: ClusterStatus
    deleted: bool = False
    """Whether it is on its way out: its children follow it by themselves."""


class Phase(StrEnum):
    """How far the drain of a broker is."""

    ASKED = "asked"
    """The broker is to be told, or was told and has not been seen to know it."""
    LEAVING = "leaving"
    """It was seen to drain."""
    REMOVING = "removing"
    """It leads nothing, and there is to be one pod less."""
    UNDOING = "undoing"
    """It is taken back into service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """The one drain that is under way."""

    pod: str
    phase: Phase
    since_s: float
    """When it began."""
    seen_s: float | None = None
    """When the broker was first seen to drain."""
    why: str = ""
    """Why it is undone."""
    blocked: bool = False
    """Whether it is undone because it did not come to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What the operator must not forget. One annotation of the Deployment, changed only together with its resource version:
    so that there is one drain at most, and any leader of the operator goes on where another stopped."""

    drain: Drain | None = None
    scaled_s: float | None = None
    """When the number of brokers was changed last."""
    scaled_why: str = ""
    no_drain_before_s: float | None = None
    """After a drain that did not come to its end, the next one waits for this."""
    blocked_why: str = ""

    def as_text(self) -> str:
        """Return what stands in the annotation."""
        drain = None
        if self.drain is not None:
            d = self.drain
            drain = {"pod": d.pod, "phase": d.phase.value, "since": d.since_s, "seen": d.seen_s, "why": d.why, "blocked": d.blocked}
        values = {
            "drain": drain,
            "scaled": self.scaled_s,
            "scaledWhy": self.scaled_why,
            "noDrainBefore": self.no_drain_before_s,
            "blockedWhy": self.blocked_why,
        }
        return json.dumps({name: value for name, value in values.items() if value not in (None, "")}, sort_keys=True)

    @staticmethod
    def of_text(text: str) -> "Notes":
        """Return what stands in the annotation; what someone spoiled is as if nothing had been noted."""
        try:
            given = json.loads(text or "{}")
            d = given.get("drain")
            drain = None
            if d is not None:
                drain = Drain(
                    pod=d["pod"],
                    phase=Phase(d["phase"]),
                    since_s=float(d["since"]),
                    seen_s=d["seen"],
                    why=d["why"],
                    blocked=d["blocked"],
                )
            return Notes(
                drain=drain,
                scaled_s=given.get("scaled"),
                scaled_why=given.get("scaledWhy", ""),
                no_drain_before_s=given.get("noDrainBefore"),
                blocked_why=given.get("blockedWhy", ""),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return Notes()

    def with_drain(self, drain: Drain | None) -> "Notes":
        """Return these with another drain."""
        return replace(self, drain=drain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The Deployment of a cluster's brokers."""

    resource_version: str
    generation: int
    observed_generation: int
    replicas: int
    checksum: str
    """Of the template, as `resources` makes it."""
    notes: Notes = field(default_factory=Notes)
    stuck: str = ""
    """Why a rollout does not go on, where its progress deadline has passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of the Deployment. Its name is its broker's id."""

    name: str
    ready: bool
    checksum: str
    """Of the template that it was made from."""
    phase: str = "Running"
    terminating: bool = False
    zone: str = ""
    deletion_cost: int = 0
    problem: str = ""
    """What Kubernetes says of a container that does not run: no image, a crash with its last words, no room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A broker in the membership, as any of the brokers tells."""

    draining: bool
    led_partitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a broker's own metrics and probes told last, with rates over the time since the report before."""

    at_s: float
    cpu_cores: float
    produce_bytes_per_second: float
    in_flight_share: float
    """Appends held, as a share of what may be held."""
    store_failures: int = 0
    """Calls of the object store that failed since the report before."""
    store_successes: int = 0
    metadata_failures: int = 0
    metadata_successes: int = 0
    not_ready_why: str = ""
    """The sentence of /readyz; empty: ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSeen:
    """A Secret that exists: its keys, and a checksum of its values."""

    keys: frozenset[str]
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """What belongs to a cluster, as it was seen last."""

    deployment: Deployment | None = None
    pods: Mapping[str, Pod] = field(default_factory=dict)
    objects: Mapping[tuple[str, str], Manifest] = field(default_factory=dict)
    """All objects that the operator applied, by kind and name, the Deployment included."""
    secrets: Mapping[str, SecretSeen] = field(default_factory=dict)
    """Those that the spec names and that exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """How many brokers the load of one moment asked for."""

    at_s: float
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the brokers say."""

    brokers: Mapping[str, Broker] | None = None
    """The membership by broker id; None: nobody could be asked."""
    reports: Mapping[str, Report] = field(default_factory=dict)
    """The latest of each broker that could be asked, by pod."""
    history: tuple[Recommendation, ...] = ()
    """What `plan` returned last. A new leader of the operator begins with none."""
