"""Serves a `Store` as an API server does: paths, verbs, selectors, watches, subresources, rights."""

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from aiohttp import web

from tests.operator.kube.store import BY_PATH, RESOURCES, Event, Failure, Object, Resource, Store, owned_by

_BOOKMARK_EVERY_S = 0.5
_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)
_NAMESPACES = re.compile(r"/api/v1/namespaces(?:/(?P<name>[^/]+))?")


@dataclass(frozen=True, slots=True)
class Right:
    """One line of a Role."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    resource: Resource
    namespace: str
    name: str
    sub: str


class ApiServer:
    """Answers for a store. Whoever shows a token of `rights` may do what these say; whoever shows none may do everything."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.rights: dict[str, Sequence[Right]] = {}
        self.refused: list[str] = []
        """What somebody asked for without the right to."""
        self.asked: list[tuple[str, str]] = []
        """Method and path of all requests."""
        self.silent = False
        """Whether it answers nobody, as if its network were gone."""
        self.hooks: list[Callable[[str, str, str, Any], None]] = []
        """Told "before" or "after", the method, the path and the body of each request of somebody with a token; a ConnectionError that they
        raise has it end without an answer: if before, then undone."""
        self._cut = asyncio.Event()

    @asynccontextmanager
    async def listening(self, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """Listen; yields the URL."""
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, host, 0, ssl_context=tls).start()
        try:
            yield f"http{'s' if tls else ''}://{host}:{runner.addresses[0][1]}"
        finally:
            self.cut_watches()
            await runner.cleanup()

    def cut_watches(self) -> None:
        """Break all watches, as a server that restarts does."""
        self._cut.set()
        self._cut = asyncio.Event()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path))
        while self.silent:
            await asyncio.sleep(0.05)
        if (told := discovery(request.path)) is not None:
            return web.json_response(told)
        try:
            asked = self._what(request.path)
            self._check_right(request, asked)
            if request.method == "GET" and not asked.name and request.query.get("watch") in ("true", "True", "1"):
                return await self._watch(request, asked)
            body = yaml.safe_load(await request.read() or b"null") if request.method != "GET" else None
            for hook in self.hooks if "Authorization" in request.headers else ():
                hook("before", request.method, request.path, body)
            code, answer, headers = self._do(request, asked, body)
            for hook in self.hooks if "Authorization" in request.headers else ():
                hook("after", request.method, request.path, body)
            return web.json_response(answer, status=code, headers=headers)
        except Failure as failure:
            return web.json_response(failure.status(), status=failure.code)
        except ConnectionError:  # whoever watched is gone
            return web.Response()

    @staticmethod
    def _what(path: str) -> _Asked:
        if found := _NAMESPACES.fullmatch(path):
            return _Asked(BY_PATH["", "v1", "namespaces"], "", found["name"] or "", "")
        found = _PATH.fullmatch(path)
        resource = BY_PATH.get((found["group"] or "", found["version"] or found["core"], found["plural"])) if found else None
        if found is None or resource is None:
            raise Failure(404, "NotFound", "the server could not find the requested resource")
        return _Asked(resource, found["namespace"] or "", found["name"] or "", found["sub"] or "")

    def _check_right(self, request: web.Request, asked: _Asked) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ").removeprefix("bearer ")
        if not token:
            return
        if token not in self.rights:
            raise Failure(401, "Unauthorized", "Unauthorized")
        reading = {"GET": "get" if asked.name else "watch" if "watch" in request.query else "list"}
        verb = (reading | {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"})[request.method]
        what = asked.resource.plural + (f"/{asked.sub}" if asked.sub else "")
        if not any(right.group == asked.resource.group and what in right.resources and verb in right.verbs for right in self.rights[token]):
            self.refused.append(f"{verb} {what}")
            raise Failure(
                403, "Forbidden", f'{what} is forbidden: User cannot {verb} resource "{what}" in API group "{asked.resource.group}"'
            )

    # ---- one answer

    def _do(self, request: web.Request, asked: _Asked, body: Any) -> tuple[int, Object, Mapping[str, str]]:
        store, resource, namespace, name = self.store, asked.resource, asked.namespace, asked.name
        query = request.query
        manager = query.get("fieldManager") or request.headers.get("User-Agent", "").partition("/")[0]
        strict = query.get("fieldValidation") == "Strict"
        if asked.sub == "eviction":
            return self._evict(namespace, name, body)
        if asked.sub == "scale":
            return self._scale(request.method, asked, body, manager)
        if asked.sub and not (asked.sub == "status" and resource.status):
            raise Failure(404, "NotFound", "the server could not find the requested resource")
        match request.method:
            case "GET" if name:
                return 200, store.get(resource, namespace, name), {}
            case "GET":
                where = selected(query)
                return 200, store.listed(resource, namespace, where, limit=int(query.get("limit", 0)), token=query.get("continue", "")), {}
            case "POST":
                return 201, store.create(resource, namespace, body, manager=manager, strict=strict), {}
            case "PUT":
                return 200, store.update(resource, namespace, name, body, manager=manager, subresource=asked.sub, strict=strict), {}
            case "PATCH":
                kind = request.headers.get("Content-Type", "").partition(";")[0]
                if kind == "application/apply-patch+yaml":
                    force = query.get("force") in ("true", "True", "1")
                    made, created = store.apply(
                        resource,
                        namespace,
                        name,
                        body,
                        manager=query.get("fieldManager", ""),
                        force=force,
                        subresource=asked.sub,
                        strict=strict,
                    )
                    return 201 if created else 200, made, {}
                if kind != "application/merge-patch+json":
                    raise Failure(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {kind}")
                return 200, store.merge(resource, namespace, name, body, manager=manager, subresource=asked.sub, strict=strict), {}
            case "DELETE" if name:
                return 200, store.delete(resource, namespace, name, options=body), {}
        raise Failure(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")

    def _scale(self, method: str, asked: _Asked, body: Any, manager: str) -> tuple[int, Object, Mapping[str, str]]:
        if not asked.resource.scale:
            raise Failure(404, "NotFound", "the server could not find the requested resource")
        found = self.store.get(asked.resource, asked.namespace, asked.name)
        if method in ("PUT", "PATCH"):
            change: Object = {"spec": {"replicas": body["spec"]["replicas"]}}
            if version := body.get("metadata", {}).get("resourceVersion"):
                change["metadata"] = {"resourceVersion": version}
            found = self.store.merge(asked.resource, asked.namespace, asked.name, change, manager=manager, subresource="scale")
        status = found.get("status", {})
        metadata = {key: found["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")}
        return 200, {
            "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": {"replicas": found["spec"].get("replicas", 0)},
            "status": {"replicas": status.get("replicas", 0), "selector": status.get("selector", "")},
        }, {}  # fmt: skip

    def _evict(self, namespace: str, name: str, body: Any) -> tuple[int, Object, Mapping[str, str]]:
        """End a pod, if the disruption budgets that cover it allow that."""
        pod = self.store.get(BY_PATH["", "v1", "pods"], namespace, name)
        ready = is_ready(pod)
        for budget in self.store.all("PodDisruptionBudget", namespace):
            covered = selected({"labelSelector": _as_text(budget["spec"]["selector"])})
            if not covered(pod):
                continue
            if not ready and budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
                continue
            pods = [each for each in self.store.all("Pod", namespace) if covered(each)]
            healthy = sum(is_ready(each) and "deletionTimestamp" not in each["metadata"] for each in pods)
            sets = [each for each in self.store.all("ReplicaSet", namespace) if owned_by(each["metadata"]["uid"], pods)]
            expected = sum(each["spec"]["replicas"] for each in sets)
            if healthy - (expected - budget["spec"]["maxUnavailable"]) <= 0:
                raise Failure(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.")
        self.store.delete(BY_PATH["", "v1", "pods"], namespace, name, options=(body or {}).get("deleteOptions"))
        return 201, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}, {}

    # ---- watches

    async def _watch(self, request: web.Request, asked: _Asked) -> web.StreamResponse:
        store, query, cut = self.store, request.query, self._cut
        where = selected(query)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)

        async def send(kind: str, body: Object) -> None:
            await response.write(json.dumps({"type": kind, "object": body}).encode() + b"\n")

        version = int(query.get("resourceVersion") or 0)
        if version == 0:
            version = store.version
            for each in store.all(asked.resource.kind, asked.namespace, where):
                await send("ADDED", each)
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + float(query.get("timeoutSeconds", 1800))
        bookmark_at = loop.time() + _BOOKMARK_EVERY_S
        while loop.time() < ends_at and not cut.is_set():
            changed = store.changed
            try:
                events = list(store.since(version, asked.resource))
            except Failure as failure:
                await send("ERROR", failure.status())
                break
            version = store.version
            for event in events:
                if (shown := _shown(event, asked.namespace, where)) is not None:
                    await send(*shown)
            if query.get("allowWatchBookmarks") in ("true", "True", "1") and loop.time() >= bookmark_at:
                metadata = {"resourceVersion": str(version)}
                await send("BOOKMARK", {"kind": asked.resource.kind, "apiVersion": asked.resource.api_version, "metadata": metadata})
                bookmark_at = loop.time() + _BOOKMARK_EVERY_S
            waits = [asyncio.ensure_future(changed.wait()), asyncio.ensure_future(cut.wait())]
            await asyncio.wait(waits, timeout=max(0.0, min(ends_at, bookmark_at) - loop.time()), return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        return response


def discovery(path: str) -> Object | None:
    """Return what there is to be asked for, where a client asks that."""
    groups = sorted({(each.group, each.version) for each in RESOURCES if each.group})
    if path == "/version":
        return {"major": "1", "minor": "35", "gitVersion": "v1.35.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [{"groupVersion": f"{group}/{version}", "version": version} for group, version in groups]
        listed = [{"name": group, "versions": [told], "preferredVersion": told} for (group, _), told in zip(groups, versions, strict=True)]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    for group, version in [("", "v1"), *groups]:
        if path == (f"/apis/{group}/{version}" if group else "/api/v1"):
            of = [each for each in RESOURCES if (each.group, each.version) == (group, version)]
            verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{group}/{version}" if group else version,
                "resources": [
                    {
                        "name": each.plural,
                        "singularName": each.kind.lower(),
                        "namespaced": each.namespaced,
                        "kind": each.kind,
                        "verbs": verbs,
                    }
                    for each in of
                ],
            }
    return _openapi(path)


def _openapi(path: str) -> Object | None:
    """Return as much of the API's description as says that fields are validated here, and need not be by the client."""
    prefixes = {(f"apis/{each.group}/{each.version}" if each.group else "api/v1") for each in RESOURCES}
    if path == "/openapi/v3":
        return {"paths": {prefix: {"serverRelativeURL": f"/openapi/v3/{prefix}"} for prefix in sorted(prefixes)}}
    prefix = path.removeprefix("/openapi/v3/")
    if prefix == path or prefix not in prefixes:
        return None
    paths = {}
    for each in RESOURCES:
        if prefix == (f"apis/{each.group}/{each.version}" if each.group else "api/v1"):
            kind = {"group": each.group, "version": each.version, "kind": each.kind}
            patch = {"parameters": [{"name": "fieldValidation", "in": "query"}], "x-kubernetes-group-version-kind": kind, "responses": {}}
            paths[f"/{prefix}/{each.plural}/{{name}}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "tests", "version": "1"}, "paths": paths}


def _shown(event: Event, namespace: str, where: Callable[[Object], bool]) -> tuple[str, Object] | None:
    def within(body: Object | None) -> bool:
        return body is not None and namespace in ("", body["metadata"].get("namespace", "")) and where(body)

    before, after = within(event.old), within(event.new)
    if after:
        assert event.new is not None
        return ("MODIFIED" if before else "ADDED"), event.new
    if before:  # gone, or not selected any more
        assert event.old is not None
        metadata = {**event.old["metadata"], "resourceVersion": str(event.version)}
        return "DELETED", {**event.old, "metadata": metadata}
    return None


def selected(query: Mapping[str, str]) -> Callable[[Object], bool]:
    """Return a test of labels and fields, as `labelSelector` and `fieldSelector` say."""
    labels = [each for each in re.split(r",(?![^()]*\))", query.get("labelSelector", "")) if each]
    names = [each.split("=") for each in query.get("fieldSelector", "").replace("==", "=").split(",") if each]

    def test(body: Object) -> bool:
        there = body["metadata"].get("labels") or {}
        return all(_has(there, each.strip()) for each in labels) and all(
            body["metadata"].get(field.removeprefix("metadata.")) == value for field, value in names
        )

    return test


def _has(labels: Mapping[str, str], wanted: str) -> bool:
    if found := re.fullmatch(r"(\S+) (in|notin) \((.*)\)", wanted):
        return (labels.get(found[1]) in [each.strip() for each in found[3].split(",")]) == (found[2] == "in")
    if "!=" in wanted:
        name, _, value = wanted.partition("!=")
        return labels.get(name) != value
    if "=" in wanted:
        name, _, value = wanted.replace("==", "=").partition("=")
        return labels.get(name) == value
    return wanted.removeprefix("!") not in labels if wanted.startswith("!") else wanted in labels


def _as_text(selector: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in selector.get("matchLabels", {}).items())


def is_ready(pod: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod.get("status", {}).get("conditions", ()))
