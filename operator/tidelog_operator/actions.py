"""What is to be done, as data. The shell does them in their order, and stops at the first that fails: the next plan begins anew."""

from dataclasses import dataclass

from tidelog_operator.observed import Manifest, Notes
from tidelog_operator.resource import ClusterStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Server-side apply, with the operator's own field manager."""

    manifest: Manifest
    resource_version: str | None = None
    """If set, only while the object still has this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete an object that is not wanted any more."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotate:
    """Set the Deployment's number of replicas and the operator's notes at once, only while it has this resource version."""

    replicas: int
    notes: Notes
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDeletionCost:
    """Tell ReplicaSets whom to end first; 0 takes it back. Only while the Deployment has this resource version."""

    pod: str
    cost: int
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainBroker:
    """Tell the cluster that a broker is to drain, or not any more.

    Only while the Deployment, which is asked right before, still has this resource version: what was noted there may be over.
    """

    broker_id: str
    resource_version: str
    undo: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteStatus:
    """Write the status subresource."""

    status: ClusterStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something to be told once, as a Kubernetes event of the cluster's object."""

    reason: str
    message: str
    warning: bool = False


Action = Apply | Delete | Annotate | SetDeletionCost | DrainBroker | WriteStatus
