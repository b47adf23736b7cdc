"""The objects of an API server for tests: every write as a real one was seen to do it, each with a version, all of them in one history.

Everything here is synchronous, so each call is a transaction. An object that was given out is never changed, but replaced; who is given
one changes nothing of it. `http` serves it, `workloads` and `kubelet` are its controllers.
"""

import asyncio
import copy
import json
import random
import string
import uuid
from base64 import b64decode, b64encode
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.operator import admission
from tests.operator.kube.fields import Managers, said

Object = dict[str, Any]


class Failure(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason

    def status(self) -> Object:
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": str(self), "reason": self.reason, "code": self.code,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of objects."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False
    """Whether its status is written apart from the rest."""
    scale: bool = False
    custom: bool = False
    unconditional: bool = True
    """Whether a PUT may leave the version out."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def called(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


RESOURCES = (
    Resource("", "v1", "namespaces", "Namespace", namespaced=False),
    Resource("", "v1", "nodes", "Node", namespaced=False, status=True),
    Resource("", "v1", "pods", "Pod", status=True),
    Resource("", "v1", "services", "Service", status=True),
    Resource("", "v1", "secrets", "Secret"),
    Resource("", "v1", "configmaps", "ConfigMap"),
    Resource("", "v1", "events", "Event"),
    Resource("apps", "v1", "deployments", "Deployment", status=True, scale=True),
    Resource("apps", "v1", "replicasets", "ReplicaSet", status=True, scale=True),
    Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", status=True, unconditional=False),
    Resource("coordination.k8s.io", "v1", "leases", "Lease", unconditional=False),
    # What Helm installs, and nothing here acts on.
    Resource("", "v1", "serviceaccounts", "ServiceAccount"),
    Resource("apps", "v1", "statefulsets", "StatefulSet", status=True, scale=True),
    Resource("rbac.authorization.k8s.io", "v1", "roles", "Role"),
    Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
    Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False),
    Resource("tidelog.io", "v1alpha1", "tidelogclusters", "TidelogCluster", status=True, scale=True, custom=True, unconditional=False),
    Resource("tidelog.io", "v1alpha1", "tidelogtopics", "TidelogTopic", status=True, custom=True, unconditional=False),
)
BY_PATH = {(each.group, each.version, each.plural): each for each in RESOURCES}
BY_KIND = {each.kind: each for each in RESOURCES}
_GRACE_S = 30


@dataclass(slots=True)
class Stored:
    """An object, and who owns what of it."""

    body: Object
    managers: Managers


@dataclass(frozen=True, slots=True)
class Event:
    """A change."""

    version: int
    resource: Resource
    old: Object | None
    new: Object | None


class Store:
    """All objects."""

    def __init__(self) -> None:
        self.version = 1
        self.history: list[Event] = []
        self.compacted = 0
        """Changes up to this are not kept any more."""
        self.changed = asyncio.Event()
        """Set, and replaced, at each change."""
        self._objects: dict[tuple[Resource, str, str], Stored] = {}
        self._chance = random.Random()
        self.create(BY_KIND["Namespace"], "", {"metadata": {"name": "default"}}, manager="kube")

    # ---- reading

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        return self._stored(resource, namespace, name).body

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        found = self._objects.get((BY_KIND[kind], namespace, name))
        return found.body if found else None

    def all(self, kind: str, namespace: str = "", where: Callable[[Object], bool] = lambda _: True) -> list[Object]:
        resource = BY_KIND[kind]
        return [
            stored.body
            for (of, within, _), stored in sorted(self._objects.items(), key=lambda item: item[0][1:])
            if of is resource and namespace in ("", within) and where(stored.body)
        ]

    def listed(self, resource: Resource, namespace: str, where: Callable[[Object], bool], *, limit: int = 0, token: str = "") -> Object:
        """Return a list, or a page of one. Raises Failure 410 where a page is asked for that was compacted away."""
        version, after = self.version, ""
        if token:
            version, after = json.loads(b64decode(token))
            if version < self.compacted:
                raise Failure(410, "Expired", "The provided continue parameter is too old to display a consistent list result.")
        found = [each for each in self.all(resource.kind, namespace, where) if _place(each) > after]
        metadata: Object = {"resourceVersion": str(version)}
        if limit and len(found) > limit:
            metadata["remainingItemCount"] = len(found) - limit
            found = found[:limit]
            metadata["continue"] = b64encode(json.dumps([version, _place(found[-1])]).encode()).decode()
        items = [{name: value for name, value in each.items() if name not in ("apiVersion", "kind")} for each in found]
        shown = items if not resource.custom else found
        return {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata, "items": shown}

    def since(self, version: int, resource: Resource) -> Iterator[Event]:
        """Yield what changed after a version. Raises Failure 410."""
        if version < self.compacted:
            raise Failure(410, "Expired", f"too old resource version: {version} ({self.version})")
        first = bisect_right(self.history, version, key=lambda event: event.version)
        yield from (event for event in self.history[first:] if event.resource is resource)

    def compact(self) -> None:
        """Forget all changes up to now, as etcd does every five minutes."""
        self.compacted = self.version
        self.history.clear()

    def _stored(self, resource: Resource, namespace: str, name: str) -> Stored:
        try:
            return self._objects[resource, namespace, name]
        except KeyError:
            raise Failure(404, "NotFound", f'{resource.called} "{name}" not found') from None

    # ---- writing

    def create(self, resource: Resource, namespace: str, given: Mapping[str, Any], *, manager: str, strict: bool = False) -> Object:
        body = copy.deepcopy(dict(given))
        metadata = body.setdefault("metadata", {})
        if metadata.get("resourceVersion"):
            raise Failure(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                raise Failure(
                    422, "Invalid", f"{resource.kind} is invalid: metadata.name: Required value: name or generateName is required"
                )
            metadata["name"] = metadata["generateName"] + "".join(self._chance.choices(string.ascii_lowercase + string.digits, k=5))
        name = metadata["name"]
        self._check_place(resource, namespace, metadata)
        if (resource, namespace, name) in self._objects:
            raise Failure(409, "AlreadyExists", f'{resource.called} "{name}" already exists')
        if resource.status:
            body.pop("status", None)
        body = self._admitted(resource, body, None, strict=strict)
        managers = Managers()
        managers.updated(manager, {}, body)
        return self._insert(resource, namespace, body, managers)

    def _insert(self, resource: Resource, namespace: str, body: Object, managers: Managers) -> Object:
        metadata = body["metadata"]
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
        if resource.namespaced:
            metadata["namespace"] = namespace
        self._defaults(resource, body)
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        made = self._write(resource, None, Stored(body, managers))
        owners = {owner["uid"] for owner in metadata.get("ownerReferences") or ()}
        if owners and owners.isdisjoint(stored.body["metadata"]["uid"] for stored in self._objects.values()):
            self.delete(resource, namespace, metadata["name"])  # whoever made it did not know yet that its owners are gone
        return made

    def update(
        self, resource: Resource, namespace: str, name: str, given: Mapping[str, Any], *, manager: str, subresource: str = "",
        strict: bool = False,
    ) -> Object:  # fmt: skip
        """PUT. Raises Failure 409 for another version than there is, 422 without one where that must be said."""
        stored = self._stored(resource, namespace, name)
        version = given.get("metadata", {}).get("resourceVersion")
        if not version and not resource.unconditional:
            message = (
                f'{resource.called} "{name}" is invalid: metadata.resourceVersion: Invalid value: 0x0: must be specified for an update'
            )
            raise Failure(422, "Invalid", message)
        self._check_version(resource, stored, version)
        given_uid = given.get("metadata", {}).get("uid")
        if given_uid and given_uid != stored.body["metadata"]["uid"]:
            raise self._changed(resource, name)
        return self._changed_to(resource, stored, copy.deepcopy(dict(given)), manager, subresource, strict=strict)

    def merge(
        self, resource: Resource, namespace: str, name: str, patch: Mapping[str, Any], *, manager: str, subresource: str = "",
        strict: bool = False,
    ) -> Object:  # fmt: skip
        """PATCH with a JSON merge patch; a version in it is asked for."""
        stored = self._stored(resource, namespace, name)
        self._check_version(resource, stored, patch.get("metadata", {}).get("resourceVersion"))
        return self._changed_to(resource, stored, _merged(stored.body, patch), manager, subresource, strict=strict)

    def apply(
        self, resource: Resource, namespace: str, name: str, given: Mapping[str, Any], *, manager: str, force: bool, subresource: str = "",
        strict: bool = False,
    ) -> tuple[Object, bool]:  # fmt: skip
        """PATCH by server-side apply; return the object, and whether it was created."""
        if not manager:
            raise Failure(422, "Invalid", "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: is required for apply patch")
        if given.get("kind") != resource.kind or given.get("apiVersion") != resource.api_version:
            raise Failure(400, "BadRequest", "apiVersion and kind must be set to those of the object that is applied")
        metadata = given.get("metadata", {})
        key = (resource, namespace, name)
        if key not in self._objects:
            if subresource:
                raise Failure(404, "NotFound", f'{resource.called} "{name}" not found')
            if metadata.get("resourceVersion"):
                raise self._changed(resource, name)
            self._check_place(resource, namespace, metadata)
            managers = Managers()
            made, _ = managers.apply(manager, {}, {part: value for part, value in given.items() if part != "status"}, force=True)
            made = {"apiVersion": resource.api_version, "kind": resource.kind, **made}
            made.setdefault("metadata", {})["name"] = name
            return self._insert(resource, namespace, self._admitted(resource, made, None, strict=strict), managers), True
        stored = self._stored(resource, namespace, name)
        self._check_version(resource, stored, metadata.get("resourceVersion"))
        before = stored.body
        if resource.status:
            kept = ("status",) if subresource == "status" else tuple(part for part in given if part != "status")
            given = {part: value for part, value in given.items() if part in kept}
        managers = copy.deepcopy(stored.managers)
        after, conflicts = managers.apply(manager, before, given, force=force, subresource=subresource)
        if conflicts:
            each = "; ".join(f'conflict with "{other}": {said(path)}' for other, path in conflicts)
            raise Failure(409, "Conflict", f"Apply failed with {len(conflicts)} conflict{'s' * (len(conflicts) > 1)}: {each}")
        after = self._admitted(resource, after, before, strict=strict)
        return self._put(resource, stored, after, managers), False

    def delete(
        self, resource: Resource, namespace: str, name: str, *, options: Mapping[str, Any] | None = None, grace_s: int | None = None
    ) -> Object:
        """DELETE. A pod gets its grace, what has finalizers stays until these are gone, dependents follow."""
        stored = self._stored(resource, namespace, name)
        asked = (options or {}).get("preconditions") or {}
        metadata = stored.body["metadata"]
        if any(metadata[field] != asked[field] for field in ("uid", "resourceVersion") if field in asked):
            raise self._changed(resource, name)
        grace = (options or {}).get("gracePeriodSeconds", grace_s)
        body = copy.deepcopy(stored.body)
        if resource.kind == "Pod" and grace != 0 and body.get("spec", {}).get("nodeName"):
            if "deletionTimestamp" not in metadata:
                seconds = grace if grace is not None else body["spec"].get("terminationGracePeriodSeconds", _GRACE_S)
                body["metadata"] |= {"deletionTimestamp": now(), "deletionGracePeriodSeconds": seconds}
                return self._put(resource, stored, body, stored.managers)
            return body
        if metadata.get("finalizers"):
            if "deletionTimestamp" not in metadata:
                body["metadata"] |= {"deletionTimestamp": now(), "deletionGracePeriodSeconds": 0}
                body["metadata"]["generation"] = metadata["generation"] + 1
                return self._put(resource, stored, body, stored.managers)
            return body
        return self._remove(resource, stored, orphan=(options or {}).get("propagationPolicy") == "Orphan")

    def _remove(self, resource: Resource, stored: Stored, *, orphan: bool = False) -> Object:
        self._write(resource, stored, None)
        uid = stored.body["metadata"]["uid"]
        for (of, namespace, name), child in list(self._objects.items()):
            owners = child.body["metadata"].get("ownerReferences") or []
            if any(owner["uid"] == uid for owner in owners):
                left = [owner for owner in owners if owner["uid"] != uid]
                if orphan or left:
                    body = copy.deepcopy(child.body)
                    body["metadata"]["ownerReferences"] = left
                    self._put(of, child, body, child.managers)
                else:
                    self.delete(of, namespace, name)
        return stored.body

    # ---- what every write goes through

    def _changed_to(self, resource: Resource, stored: Stored, given: Object, manager: str, subresource: str, *, strict: bool) -> Object:
        before = stored.body
        if subresource == "status":
            after = {**copy.deepcopy(before), "status": given.get("status", {})}
        else:
            after = {"apiVersion": resource.api_version, "kind": resource.kind, **given}
            if resource.status:
                after.pop("status", None)
                if "status" in before:
                    after["status"] = copy.deepcopy(before["status"])
        kept = {name: before["metadata"][name] for name in ("name", "uid", "creationTimestamp", "generation", "resourceVersion")}
        for name in ("namespace", "deletionTimestamp", "deletionGracePeriodSeconds"):
            if name in before["metadata"]:
                kept[name] = before["metadata"][name]
            else:
                after["metadata"].pop(name, None)
        after["metadata"] = {**after.get("metadata", {}), **kept}
        after = self._admitted(resource, after, before, strict=strict)
        managers = copy.deepcopy(stored.managers)
        managers.updated(manager, before, after, subresource)
        return self._put(resource, stored, after, managers)

    def _put(self, resource: Resource, stored: Stored, after: Object, managers: Managers) -> Object:
        before = stored.body
        self._defaults(resource, after)
        old = {part: value for part, value in before.items() if part not in ("metadata", "status")}
        new = {part: value for part, value in after.items() if part not in ("metadata", "status")}
        if old != new:
            after["metadata"]["generation"] = before["metadata"]["generation"] + 1
        if after == before:
            stored.managers = managers
            return before
        if "deletionTimestamp" in after["metadata"] and not after["metadata"].get("finalizers") and resource.kind != "Pod":
            return self._remove(resource, stored)
        return self._write(resource, stored, Stored(after, managers))

    def _write(self, resource: Resource, before: Stored | None, after: Stored | None) -> Object:
        self.version += 1
        old = before.body if before else None
        body = (after or before).body  # type: ignore[union-attr]  # one of them there is
        key = (resource, body["metadata"].get("namespace", ""), body["metadata"]["name"])
        if after is None:
            del self._objects[key]
            gone = copy.deepcopy(body)
            gone["metadata"]["resourceVersion"] = str(self.version)
            self.history.append(Event(self.version, resource, gone, None))
        else:
            after.body["metadata"]["resourceVersion"] = str(self.version)
            after.body["metadata"]["managedFields"] = after.managers.shown()
            self._objects[key] = after
            self.history.append(Event(self.version, resource, old, after.body))
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
        return body

    def _check_place(self, resource: Resource, namespace: str, metadata: Mapping[str, Any]) -> None:
        if not resource.namespaced:
            return
        if metadata.get("namespace", namespace) != namespace:
            raise Failure(400, "BadRequest", "the namespace of the provided object does not match the namespace sent on the request")
        if (BY_KIND["Namespace"], "", namespace) not in self._objects:
            raise Failure(404, "NotFound", f'namespaces "{namespace}" not found')

    def _check_version(self, resource: Resource, stored: Stored, version: str | None) -> None:
        if version and version != stored.body["metadata"]["resourceVersion"]:
            raise self._changed(resource, stored.body["metadata"]["name"])

    @staticmethod
    def _changed(resource: Resource, name: str) -> Failure:
        again = "the object has been modified; please apply your changes to the latest version and try again"
        return Failure(409, "Conflict", f'Operation cannot be fulfilled on {resource.called} "{name}": {again}')

    @staticmethod
    def _admitted(resource: Resource, body: Object, before: Object | None, *, strict: bool) -> Object:
        if not resource.custom:
            return body
        whole = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        try:
            return admission.admitted(whole, before, strict=strict)
        except admission.Refused as refused:
            if strict and "unknown field" in str(refused):
                raise Failure(400, "BadRequest", f"strict decoding error: {refused}") from refused
            name = body.get("metadata", {}).get("name", "")
            raise Failure(422, "Invalid", f'{resource.kind}.{resource.group} "{name}" is invalid: {refused}') from refused

    @staticmethod
    def _defaults(resource: Resource, body: Object) -> None:
        """What a real server fills in, as far as anybody here looks at it."""
        spec = body.get("spec", {})
        if resource.kind == "Deployment":
            spec.setdefault("replicas", 1)
            spec.setdefault("minReadySeconds", 0)
            spec.setdefault("progressDeadlineSeconds", 600)
            for container in spec["template"]["spec"]["containers"]:
                container.setdefault("imagePullPolicy", "IfNotPresent")
                container.setdefault("terminationMessagePath", "/dev/termination-log")
                for port in container.get("ports", ()):
                    port.setdefault("protocol", "TCP")
        if resource.kind == "CustomResourceDefinition":
            body["status"] = {"conditions": [{"type": "NamesAccepted", "status": "True"}, {"type": "Established", "status": "True"}]}
        if resource.kind == "Service":
            for port in spec.get("ports", ()):
                port.setdefault("protocol", "TCP")
            spec.setdefault("sessionAffinity", "None")


def _merged(value: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    result = copy.deepcopy(value) if isinstance(value, dict) else {}
    for name, each in patch.items():
        if each is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), each)
    return result


def _place(body: Object) -> str:
    return f"{body['metadata'].get('namespace', '')}/{body['metadata']['name']}"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def owned_by(uid: str, objects: Iterable[Object]) -> list[Object]:
    """Return those whose controller this is."""
    return [
        each
        for each in objects
        if any(owner["uid"] == uid and owner.get("controller") for owner in each["metadata"].get("ownerReferences") or ())
    ]


def labelled(wanted: Mapping[str, str]) -> Callable[[Object], bool]:
    """Return a test for labels."""
    return lambda body: wanted.items() <= (body["metadata"].get("labels") or {}).items()
