"""What the operator relies on in an API server. Runs against the one for tests, and against a real one where E2E_KUBECONFIG names it:
both must behave the same."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from tests.operator.admission import CRDS
from tests.operator.kube.cluster import PAUSE, Kubernetes, kubernetes

REAL = os.environ.get("E2E_KUBECONFIG", "")
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
CLUSTER_SPEC = {"image": "tidelog:1", "storage": {"bucket": "bucket"}, "metadataStore": {"urlSecretRef": {"name": "database"}}}


class Answer(NamedTuple):
    code: int
    body: Any


class Api:
    """Requests by the Kubernetes client's own connection, in one namespace."""

    def __init__(self, client: Any, compact: Callable[[], None] | None) -> None:
        self._client = client
        self.compact = compact
        self.namespace = ""

    async def call(
        self, method: str, path: str, body: Any = None, *, content: str = "application/json", **query: str
    ) -> Answer:  # fmt: skip
        response = await self._send(method, path, body, content, query)
        return Answer(response.status, json.loads(await response.read()))

    async def _send(self, method: str, path: str, body: Any, kind: str, query: dict[str, str]) -> Any:
        group, _, rest = path.partition(":")
        root = f"/apis/{group}" if group else "/api/v1"
        where = (
            f"{root}/namespaces/{self.namespace}/{rest}"
            if rest != "namespaces" and not rest.startswith("namespaces/")
            else f"{root}/{rest}"
        )
        request = await self._client.param_serialize(
            method, where, query_params=list(query.items()), header_params={"Accept": "application/json", "Content-Type": kind},
            body=body, auth_settings=["BearerToken"],
        )  # fmt: skip
        return (await self._client.call_api(*request, _request_timeout=aiohttp.ClientTimeout(total=30))).response

    async def watch(self, path: str, **query: str) -> AsyncGenerator[tuple[str, Any], None]:
        response = await self._send("GET", path, None, "application/json", {"watch": "true", "timeoutSeconds": "20", **query})
        try:
            if response.status != 200:
                yield "ERROR", json.loads(await response.read())
                return
            async for line in response.content:
                event = json.loads(line)
                yield event["type"], event["object"]
        finally:
            response.close()

    async def done(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        code, answer = await self.call(method, path, body, **more)
        assert code < 300, answer
        return answer

    async def until(self, path: str, holds: Callable[[Any], bool], within_s: float = 60) -> Any:
        async with asyncio.timeout(within_s):
            while not holds(found := (await self.call("GET", path)).body):
                await asyncio.sleep(0.1)
            return found


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    from kubernetes.aio import client, config

    settings = client.Configuration()
    if REAL:
        await config.load_kube_config(config_file=REAL, client_configuration=settings)  # type: ignore[no-untyped-call]
        async with client.ApiClient(configuration=settings) as connection:
            api = Api(connection, None)
            await _install_definitions(api)
            async with _namespace(api):
                yield api
        return
    async with kubernetes(tmp_path) as cluster:
        await config.load_kube_config(config_file=str(cluster.kubeconfig()), client_configuration=settings)  # type: ignore[no-untyped-call]
        async with client.ApiClient(configuration=settings) as connection:
            api = Api(connection, cluster.store.compact)
            async with _namespace(api):
                yield api


class _namespace:  # noqa: N801  # read as a verb
    def __init__(self, api: Api) -> None:
        self.api = api

    async def __aenter__(self) -> None:
        made = await self.api.done("POST", ":namespaces", {"metadata": {"generateName": "tidelog-test-"}})
        self.api.namespace = made["metadata"]["name"]

    async def __aexit__(self, *_: object) -> None:
        await self.api.done("DELETE", f":namespaces/{self.api.namespace}")


async def _install_definitions(api: Api) -> None:
    import yaml

    for file in CRDS.glob("*.yaml"):
        definition = yaml.safe_load(file.read_text())
        name = definition["metadata"]["name"]
        path = f"apiextensions.k8s.io/v1:namespaces/../customresourcedefinitions/{name}"
        await api.done("PATCH", path, definition, content=APPLY, fieldManager="tests", force="true")


def secret(name: str = "", *, generate: str = "", labels: dict[str, str] | None = None, **data: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"labels": labels or {}} | ({"name": name} if name else {"generateName": generate})
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData" if REAL else "data": data}


def lease(holder: str, **metadata: Any) -> dict[str, Any]:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 15}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "lock", **metadata}, "spec": spec}


def cluster(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tidelog.io/v1alpha1", "kind": "TidelogCluster", "metadata": {"name": "logs"}, "spec": CLUSTER_SPEC | spec,
    }  # fmt: skip


def deployment(replicas: int, **annotations: str) -> dict[str, Any]:
    labels = {"app": "pause"}
    container = {"name": "pause", "image": PAUSE}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 1}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "pause", "annotations": annotations}, "spec": spec}


CLUSTERS = "tidelog.io/v1alpha1:tidelogclusters"
LEASES = "coordination.k8s.io/v1:leases"
DEPLOYMENTS = "apps/v1:deployments"


async def test_a_name_is_given_once(api: Api) -> None:
    await api.done("POST", ":secrets", secret("one"))
    again = await api.call("POST", ":secrets", secret("one"))
    assert (again.code, again.body["reason"], again.body["kind"]) == (409, "AlreadyExists", "Status")
    names = {(await api.done("POST", ":secrets", secret(generate="many-")))["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("many-") and len(name) == 10 for name in names)
    missing = await api.call("GET", ":secrets/none")
    assert (missing.code, missing.body["reason"]) == (404, "NotFound")


async def test_a_put_of_an_older_version_conflicts_and_one_without_a_version_is_invalid(api: Api) -> None:
    first = await api.done("POST", LEASES, lease("a"))
    version = first["metadata"]["resourceVersion"]
    second = await api.done("PUT", f"{LEASES}/lock", lease("b", resourceVersion=version))
    assert second["metadata"]["resourceVersion"] != version
    stale = await api.call("PUT", f"{LEASES}/lock", lease("c", resourceVersion=version))
    assert (stale.code, stale.body["reason"]) == (409, "Conflict")
    assert "the object has been modified" in stale.body["message"]
    without = await api.call("PUT", f"{LEASES}/lock", lease("c"))
    assert (without.code, without.body["reason"]) == (422, "Invalid")
    assert "must be specified for an update" in without.body["message"]
    assert (await api.done("GET", f"{LEASES}/lock"))["spec"]["holderIdentity"] == "b"


async def test_a_write_that_changes_nothing_makes_no_version(api: Api) -> None:
    first = await api.done("POST", LEASES, lease("a"))
    again = await api.done("PUT", f"{LEASES}/lock", first)
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_a_merge_patch_asks_for_the_version_that_it_names_and_null_takes_away(api: Api) -> None:
    made = await api.done("POST", ":secrets", secret("one", labels={"a": "1", "b": "2"}))
    version = made["metadata"]["resourceVersion"]
    change = {"metadata": {"resourceVersion": version, "labels": {"a": None, "c": "3"}}}
    patched = await api.done("PATCH", ":secrets/one", change, content=MERGE)
    assert patched["metadata"]["labels"] == {"b": "2", "c": "3"}
    assert (await api.call("PATCH", ":secrets/one", change, content=MERGE)).code == 409


async def test_applying_owns_what_it_names_and_takes_away_what_it_named_before(api: Api) -> None:
    async def applied(manager: str, labels: dict[str, str], *, force: str = "false") -> Answer:
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "one", "labels": labels}}
        return await api.call("PATCH", ":secrets/one", body, content=APPLY, fieldManager=manager, force=force)

    assert (await applied("first", {"a": "1", "b": "1"})).code == 201
    assert (await applied("second", {"c": "2", "b": "1"})).code == 200, "the same value is shared"
    conflict = await applied("second", {"b": "2"})
    assert (conflict.code, conflict.body["reason"]) == (409, "Conflict")
    assert 'conflict with "first"' in conflict.body["message"]
    assert ".metadata.labels.b" in conflict.body["message"]
    assert (await applied("second", {"b": "2"}, force="true")).body["metadata"]["labels"] == {"a": "1", "b": "2"}
    assert (await applied("first", {})).body["metadata"].get("labels") == {"b": "2"}
    managers = [(each["manager"], each["operation"]) for each in (await api.done("GET", ":secrets/one"))["metadata"]["managedFields"]]
    assert ("second", "Apply") in managers


async def test_applying_leaves_what_another_manager_patched_in(api: Api) -> None:
    body = deployment(1, own="1")
    made = await api.done("PATCH", f"{DEPLOYMENTS}/pause", body, content=APPLY, fieldManager="operator", force="true")
    async with asyncio.timeout(20):
        while True:  # the Deployment's controller writes its status meanwhile, which makes versions, too
            version = (await api.done("GET", f"{DEPLOYMENTS}/pause"))["metadata"]["resourceVersion"]
            change = {"metadata": {"resourceVersion": version, "annotations": {"notes": "x"}}, "spec": {"replicas": 2}}
            if (await api.call("PATCH", f"{DEPLOYMENTS}/pause", change, content=MERGE, fieldManager="notes")).code == 200:
                break
    body["spec"]["replicas"] = 2
    again = await api.done("PATCH", f"{DEPLOYMENTS}/pause", body, content=APPLY, fieldManager="operator", force="true")
    assert {"own": "1", "notes": "x"}.items() <= again["metadata"]["annotations"].items()
    stale = {**body, "metadata": {**body["metadata"], "resourceVersion": made["metadata"]["resourceVersion"]}}
    refused = await api.call("PATCH", f"{DEPLOYMENTS}/pause", stale, content=APPLY, fieldManager="operator", force="true")
    assert refused.code == 409


async def test_status_is_written_apart_from_the_rest(api: Api) -> None:
    given = cluster() | {"status": {"replicas": 7}}
    made = await api.done("POST", CLUSTERS, given)
    assert "replicas" not in made.get("status", {})
    assert made["metadata"]["generation"] == 1
    assert made["spec"]["replicas"] == 3, "defaults are filled in"
    status = {"apiVersion": given["apiVersion"], "kind": given["kind"], "metadata": {"name": "logs"}, "status": {"replicas": 5}}
    written = await api.done(
        "PATCH", f"{CLUSTERS}/logs/status", status | {"spec": {"replicas": 9}}, content=APPLY, fieldManager="o", force="true"
    )
    assert (written["status"]["replicas"], written["spec"]["replicas"], written["metadata"]["generation"]) == (5, 3, 1)
    put = await api.done("PUT", f"{CLUSTERS}/logs", {**written, "spec": {**written["spec"], "replicas": 4}, "status": {"replicas": 1}})
    assert (put["status"]["replicas"], put["spec"]["replicas"], put["metadata"]["generation"]) == (5, 4, 2)


async def test_rules_and_schemas_are_asserted_with_their_sentences(api: Api) -> None:
    refused = await api.call("POST", CLUSTERS, cluster(autoscaling={"minReplicas": 5, "maxReplicas": 2}))
    assert (refused.code, refused.body["reason"]) == (422, "Invalid")
    assert "minReplicas is larger than maxReplicas; lower the first or raise the second" in refused.body["message"]
    assert (await api.call("POST", CLUSTERS, cluster(replicas="three"))).code == 422
    unknown = await api.call("POST", CLUSTERS, cluster(replcas=3), fieldValidation="Strict")
    assert (unknown.code, unknown.body["reason"]) == (400, "BadRequest")
    assert 'unknown field "spec.replcas"' in unknown.body["message"]
    made = await api.done("POST", CLUSTERS, cluster(replcas=3))
    assert "replcas" not in made["spec"], "who does not ask to be told has it dropped"
    other = await api.call("PATCH", f"{CLUSTERS}/logs", {"spec": {"storage": {"bucket": "another"}}}, content=MERGE)
    assert other.code == 422
    assert "make another TidelogCluster for another bucket" in other.body["message"]


async def test_finalizers_keep_an_object_until_they_are_gone(api: Api) -> None:
    made = await api.done("POST", ":secrets", secret("one") | {"metadata": {"name": "one", "finalizers": ["tidelog.io/test"]}})
    watched = api.watch(":secrets", resourceVersion=made["metadata"]["resourceVersion"])
    await api.done("DELETE", ":secrets/one")
    left = await api.done("GET", ":secrets/one")
    assert left["metadata"]["deletionTimestamp"]
    await api.done("PATCH", ":secrets/one", {"metadata": {"finalizers": None}}, content=MERGE)
    assert (await api.call("GET", ":secrets/one")).code == 404
    async with asyncio.timeout(20), aclosing(watched) as events:
        seen = []
        async for kind, body in events:
            if body["metadata"]["name"] == "one":
                seen.append((kind, "deletionTimestamp" in body["metadata"]))
            if kind == "DELETED":
                break
    assert seen[0] == ("MODIFIED", True)
    assert seen[-1] == ("DELETED", True)


@pytest.mark.parametrize("yes", ["true", "True", "1"])
async def test_a_watch_tells_what_happens_after_a_version(api: Api, yes: str) -> None:
    version = (await api.done("GET", ":secrets"))["metadata"]["resourceVersion"]
    await api.done("POST", ":secrets", secret("one", labels={"team": "a"}))
    await api.done("PATCH", ":secrets/one", {"metadata": {"labels": {"seen": "1"}}}, content=MERGE)
    await api.done("PATCH", ":secrets/one", {"metadata": {"labels": {"team": "b"}}}, content=MERGE)
    await api.done("POST", ":secrets", secret("other", labels={"team": "b"}))
    await api.done("PATCH", ":secrets/one", {"metadata": {"labels": {"team": "a"}}}, content=MERGE)
    await api.done("DELETE", ":secrets/one")
    seen = []
    async with asyncio.timeout(20), aclosing(api.watch(":secrets", watch=yes, resourceVersion=version, labelSelector="team=a")) as events:
        async for kind, body in events:
            seen.append((kind, body["metadata"]["name"]))
            if len(seen) == 5:
                break
    assert seen == [("ADDED", "one"), ("MODIFIED", "one"), ("DELETED", "one"), ("ADDED", "one"), ("DELETED", "one")]


async def test_a_watch_without_a_version_begins_with_what_there_is_and_ends_after_its_time(api: Api) -> None:
    await api.done("POST", ":secrets", secret("one"))
    seen = [each async for each in api.watch(":secrets", timeoutSeconds="1", labelSelector="!kubernetes.io/none")]
    assert [(kind, body["metadata"]["name"]) for kind, body in seen if body["metadata"]["name"] == "one"] == [("ADDED", "one")]


@pytest.mark.skipif(bool(REAL), reason="a real one sends them about once a minute")
async def test_bookmarks_come_where_they_are_asked_for(api: Api) -> None:
    version = (await api.done("GET", ":secrets"))["metadata"]["resourceVersion"]
    await api.done("POST", LEASES, lease("a"))
    async with asyncio.timeout(20), aclosing(api.watch(":secrets", resourceVersion=version, allowWatchBookmarks="true")) as events:
        kind, body = await anext(aiter(events))
    assert kind == "BOOKMARK"
    assert int(body["metadata"]["resourceVersion"]) > int(version)


async def test_a_watch_from_a_version_that_is_not_kept_is_told_so(api: Api) -> None:
    await api.done("POST", ":secrets", secret("one"))
    if api.compact is not None:
        api.compact()
    async with asyncio.timeout(20), aclosing(api.watch(":secrets", resourceVersion="1")) as events:
        kind, body = await anext(aiter(events))
    assert (kind, body["code"], body["reason"]) == ("ERROR", 410, "Expired")


async def test_a_long_list_comes_in_pages(api: Api) -> None:
    for number in range(5):
        await api.done(
            "POST", ":configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{number}", "labels": {"t": "1"}}}
        )
    names, token = [], ""
    while True:
        page = await api.done("GET", ":configmaps", limit="2", labelSelector="t=1", **({"continue": token} if token else {}))
        names += [each["metadata"]["name"] for each in page["items"]]
        token = page["metadata"].get("continue", "")
        if not token:
            break
    assert names == [f"c{number}" for number in range(5)]


async def test_scale_sets_replicas_and_nothing_else(api: Api) -> None:
    await api.done("POST", CLUSTERS, cluster())
    scale = await api.done("GET", f"{CLUSTERS}/logs/scale")
    assert (scale["kind"], scale["spec"]["replicas"]) == ("Scale", 3)
    await api.done("PATCH", f"{CLUSTERS}/logs/scale", {"spec": {"replicas": 5}}, content=MERGE)
    after = await api.done("GET", f"{CLUSTERS}/logs")
    assert (after["spec"]["replicas"], after["metadata"]["generation"]) == (5, 2)
    assert (await api.call("PATCH", f"{CLUSTERS}/logs/scale", {"spec": {"replicas": 0}}, content=MERGE)).code == 422


async def test_what_an_object_owns_goes_with_it(api: Api) -> None:
    owner = await api.done("POST", CLUSTERS, cluster())
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": "logs", "uid": owner["metadata"]["uid"]}
    body = secret("child")
    body["metadata"]["ownerReferences"] = [reference]
    await api.done("POST", ":secrets", body)
    await api.done("DELETE", f"{CLUSTERS}/logs")
    await api.until(":secrets/child", lambda found: found.get("code") == 404)
    body["metadata"]["name"] = "late"
    await api.call("POST", ":secrets", body)  # by somebody who does not know yet
    await api.until(":secrets/late", lambda found: found.get("code") == 404)


def names_of(found: Any) -> set[str]:
    return {
        each["metadata"]["name"]
        for each in found["items"]
        if "deletionTimestamp" not in each["metadata"]
        and any(of["type"] == "Ready" and of["status"] == "True" for of in each.get("status", {}).get("conditions", ()))
    }


async def test_a_replica_set_ends_the_pod_of_the_lowest_deletion_cost(api: Api) -> None:
    await api.done("POST", DEPLOYMENTS, deployment(3))
    names = names_of(await api.until(":pods", lambda found: len(names_of(found)) == 3))
    chosen = sorted(names)[1]
    cost = {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1000"}}}
    await api.done("PATCH", f":pods/{chosen}", cost, content=MERGE)
    await api.done("PATCH", f"{DEPLOYMENTS}/pause", {"spec": {"replicas": 2}}, content=MERGE)
    assert names_of(await api.until(":pods", lambda found: len(found["items"]) == 2)) == names - {chosen}


async def test_a_rolling_update_has_a_new_pod_ready_before_an_old_one_goes(api: Api) -> None:
    body = deployment(2)
    body["spec"]["strategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    await api.done("POST", DEPLOYMENTS, body)
    before = names_of(await api.until(":pods", lambda found: len(names_of(found)) == 2))
    change = {"spec": {"template": {"metadata": {"annotations": {"checksum": "2"}}}}}
    changed = await api.done("PATCH", f"{DEPLOYMENTS}/pause", change, content=MERGE)
    least = 2
    async with asyncio.timeout(60):
        while True:
            found = await api.done("GET", ":pods")
            least = min(least, len(names_of(found)))
            now = {each["metadata"]["name"] for each in found["items"]}
            if len(now) == 2 and not now & before and len(names_of(found)) == 2:
                break
            await asyncio.sleep(0.05)
    assert least == 2
    done = await api.until(f"{DEPLOYMENTS}/pause", lambda found: found["status"].get("updatedReplicas") == 2)
    assert done["status"]["observedGeneration"] >= changed["metadata"]["generation"]


async def test_an_eviction_keeps_to_the_disruption_budget(api: Api) -> None:
    budget = {
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "pause"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "pause"}}, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    }  # fmt: skip
    await api.done("POST", "policy/v1:poddisruptionbudgets", budget)
    await api.done("POST", DEPLOYMENTS, deployment(2))
    names = sorted(names_of(await api.until(":pods", lambda found: len(names_of(found)) == 2)))
    if REAL:
        await api.until("policy/v1:poddisruptionbudgets/pause", lambda found: found["status"].get("disruptionsAllowed") == 1)

    async def evicted(name: str) -> Answer:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        return await api.call("POST", f":pods/{name}/eviction", body)

    assert (await evicted(names[0])).code == 201
    second = await evicted(names[1])
    assert (second.code, second.body["reason"]) == (429, "TooManyRequests")
    await api.until(":pods", lambda found: len(names_of(found)) == 2 and names[0] not in names_of(found))


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Kubernetes]:
    async with kubernetes(tmp_path) as found:
        yield found
