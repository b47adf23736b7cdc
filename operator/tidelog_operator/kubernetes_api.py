"""The API server, as the operator uses it: objects as plain data, and the errors that matter.

The one module that knows the Kubernetes client. It takes that one's connections, credentials and TLS, and speaks of objects as they are
in JSON: the client's classes are of one version, and know nothing of fields that are newer.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tidelog_operator.metrics import OperatorMetrics, Verb
from tidelog_operator.observed import Manifest
from tidelog_operator.resource import GROUP, VERSION

MANAGER = "tidelog-operator"
"""The field manager by whose name the operator applies: it owns exactly the fields that it named last."""
_ANSWER_WITHIN_S = 10.0
_WATCH_S = 240
_SILENT_S = 60
"""A watch that is over this much later than it should be has a dead connection under it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Where objects of a kind are found."""

    api_version: str
    plural: str


KINDS = {
    "TidelogCluster": Kind(f"{GROUP}/{VERSION}", "tidelogclusters"),
    "TidelogTopic": Kind(f"{GROUP}/{VERSION}", "tidelogtopics"),
    "Deployment": Kind("apps/v1", "deployments"),
    "Service": Kind("v1", "services"),
    "Pod": Kind("v1", "pods"),
    "Secret": Kind("v1", "secrets"),
    "Event": Kind("v1", "events"),
    "PodDisruptionBudget": Kind("policy/v1", "poddisruptionbudgets"),
    "Lease": Kind("coordination.k8s.io/v1", "leases"),
}


class Unreachable(Exception):
    """The API server did not answer; what was asked may have been done."""


class Refused(Exception):
    """The API server said no; its text is its own."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason


class Missing(Refused):
    """There is no such object."""


class Conflict(Refused):
    """The object is not as it was looked at any more, or exists already."""


class Expired(Refused):
    """What is asked from there on is not kept any more: list again."""


_BY_STATUS: dict[int, type[Refused]] = {404: Missing, 409: Conflict, 410: Expired}


class KubernetesApi:
    """A connection to one API server."""

    def __init__(self, client: Any, metrics: OperatorMetrics) -> None:
        self._client = client
        self._metrics = metrics

    @staticmethod
    async def connect(kubeconfig: str, metrics: OperatorMetrics) -> "KubernetesApi":
        """Return a connection by a kubeconfig file, or (empty) by the service account of this pod. Raises RuntimeError with a sentence."""
        from kubernetes.aio import client, config

        settings = client.Configuration()
        try:
            if kubeconfig:
                await config.load_kube_config(config_file=kubeconfig, client_configuration=settings)  # type: ignore[no-untyped-call]
            else:
                config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            where = f"the kubeconfig {kubeconfig}" if kubeconfig else "this pod's service account"
            hint = "mend the file" if kubeconfig else "run it in a pod, or name a file with --kubeconfig"
            raise RuntimeError(f"the API server was to be found by {where}, but: {error}; {hint}") from error
        return KubernetesApi(client.ApiClient(configuration=settings), metrics)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    # ---- reading

    async def get(self, kind: str, namespace: str, name: str) -> Manifest:
        """Return an object. Raises Missing."""
        return await self._call("get", "GET", _path(kind, namespace, name))

    async def listed(self, kind: str, namespace: str, labels: str = "") -> tuple[list[Manifest], str]:
        """Return all objects (of all namespaces, if empty), and the version as of which they are all."""
        found = await self._call("list", "GET", _path(kind, namespace), query={"labelSelector": labels} if labels else {})
        api_version = KINDS[kind].api_version
        return [{"apiVersion": api_version, "kind": kind, **each} for each in found["items"]], str(found["metadata"]["resourceVersion"])

    async def watch(self, kind: str, namespace: str, version: str, labels: str = "") -> AsyncGenerator[tuple[str, Manifest], None]:
        """Yield (ADDED, MODIFIED, DELETED or BOOKMARK, object) for what changes after a version, for some minutes. Raises Expired."""
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version, "timeoutSeconds": str(_WATCH_S)}
        if labels:
            query["labelSelector"] = labels
        timeout = aiohttp.ClientTimeout(total=None, connect=_ANSWER_WITHIN_S, sock_read=_WATCH_S + _SILENT_S)
        response = await self._send("watch", "GET", _path(kind, namespace), query=query, timeout=timeout)
        try:
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _refusal(event["object"])
                yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unreachable(f"the watch of {KINDS[kind].plural} broke: {error!r}") from error
        finally:
            response.close()

    # ---- writing

    async def apply(self, manifest: Manifest, *, resource_version: str | None = None, status: bool = False) -> Manifest:
        """Have the object hold these fields, and no others of the operator's. Raises Conflict if it has another version by now."""
        metadata = manifest["metadata"]
        if resource_version is not None:
            manifest = {**manifest, "metadata": {**metadata, "resourceVersion": resource_version}}
        path = _path(manifest["kind"], metadata["namespace"], metadata["name"]) + ("/status" if status else "")
        query = {"fieldManager": MANAGER, "force": "true"}
        return await self._call("patch", "PATCH", path, query=query, body=manifest, content_type="application/apply-patch+yaml")

    async def merge(self, kind: str, namespace: str, name: str, change: Manifest, *, by: str = MANAGER) -> Manifest:
        """Change these fields, whoever set them; a resourceVersion among them is asked for. Raises Conflict, Missing."""
        content_type = "application/merge-patch+json"
        return await self._call(
            "patch", "PATCH", _path(kind, namespace, name), query={"fieldManager": by}, body=change, content_type=content_type
        )

    async def create(self, manifest: Manifest) -> Manifest:
        """Create an object. Raises Conflict where there is one."""
        path = _path(manifest["kind"], manifest["metadata"]["namespace"])
        return await self._call("create", "POST", path, query={"fieldManager": MANAGER}, body=manifest)

    async def replace(self, manifest: Manifest) -> Manifest:
        """Replace an object of the resourceVersion that it bears. Raises Conflict, Missing."""
        metadata = manifest["metadata"]
        path = _path(manifest["kind"], metadata["namespace"], metadata["name"])
        return await self._call("replace", "PUT", path, query={"fieldManager": MANAGER}, body=manifest)

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object, if it is there."""
        try:
            await self._call("delete", "DELETE", _path(kind, namespace, name))
        except Missing:
            return

    # ---- requests

    async def _call(
        self,
        verb: Verb,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_WITHIN_S)
        response = await self._send(verb, method, path, query=query, body=body, content_type=content_type, timeout=timeout)
        try:
            found: Manifest = json.loads(await response.read())
            return found
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unreachable(f"{method} {path} got half an answer: {error!r}") from error

    async def _send(
        self,
        verb: Verb,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # the client's own kind of it
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        counts = self._metrics.api_requests[verb]
        try:
            request = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=dict(body) if body is not None else None,
                auth_settings=["BearerToken"],
            )
            response: aiohttp.ClientResponse = (await self._client.call_api(*request, _request_timeout=timeout)).response
            if response.status < 300:
                counts["done"].inc()
                return response
            answer = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            counts["unreachable"].inc()
            raise Unreachable(f"{method} {path} got no answer: {error!r}") from error
        counts["refused"].inc()
        try:
            status = json.loads(answer)
        except ValueError:  # a proxy before it, or a server that is going
            raise Unreachable(f"{method} {path} was answered with {response.status}: {answer[:200]!r}") from None
        if response.status >= 500 or response.status == 429:
            raise Unreachable(f"{method} {path} was answered with {response.status}: {status.get('message')}")
        raise _refusal({"code": response.status, **status})


def _refusal(status: Mapping[str, Any]) -> Refused:
    code = int(status["code"])
    return _BY_STATUS.get(code, Refused)(code, str(status.get("reason", "")), str(status.get("message", "")))


def _path(kind: str, namespace: str, name: str = "") -> str:
    where = KINDS[kind]
    root = f"/apis/{where.api_version}" if "/" in where.api_version else f"/api/{where.api_version}"
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{within}/{where.plural}" + (f"/{name}" if name else "")
