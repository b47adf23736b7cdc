"""The shell around the plan: election, watches, the queue, the process."""

import asyncio
import datetime
import itertools
import random
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
import trustme
from tidelog.clock import SystemClock
from tidelog_operator.election import Election
from tidelog_operator.kubernetes_api import Conflict, Expired, KubernetesApi, Missing, Refused, Unreachable
from tidelog_operator.metrics import OperatorMetrics
from tidelog_operator.mirror import Mirror
from tidelog_operator.observed import Manifest
from tidelog_operator.process import OperatorSettings, serve
from tidelog_operator.work import Failed, Key, Work

from tests.chaos.scenario import free_ports
from tests.operator.kube.cluster import Kubernetes, kubernetes
from tests.operator.kube.http import ApiServer, Right
from tests.operator.kube.store import BY_KIND, Store

LEASE_S = 1.0
SPEC = {"image": "tidelog:none", "storage": {"bucket": "bucket"}, "metadataStore": {"urlSecretRef": {"name": "database"}}}


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[Kubernetes]:
    async with kubernetes(tmp_path) as found:
        yield found


@asynccontextmanager
async def connected(kube: Kubernetes) -> AsyncIterator[tuple[KubernetesApi, OperatorMetrics]]:
    metrics = OperatorMetrics()
    api = await KubernetesApi.connect(str(kube.kubeconfig()), metrics)
    try:
        yield api, metrics
    finally:
        await api.close()


# ---- election


class Candidate:
    """Stands for election, and notes when it leads."""

    def __init__(self, api: KubernetesApi, identity: str) -> None:
        self.clock = SystemClock()
        self.election = Election(
            api, namespace="default", name="lock", identity=identity, lease_s=LEASE_S, clock=self.clock, chance=random.Random(identity)
        )
        self.leading = asyncio.Event()
        self.stopped_at = 0.0
        self.running = asyncio.create_task(self.election.run(self._lead))

    async def _lead(self) -> None:
        assert self.election.leads()
        self.leading.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.leading.clear()
            self.stopped_at = self.clock.monotonic()

    async def end(self) -> None:
        self.running.cancel()
        with suppress(asyncio.CancelledError):
            await self.running


async def led_by(*candidates: Candidate, within_s: float = 20) -> Candidate:
    async with asyncio.timeout(within_s):
        while not (found := [each for each in candidates if each.leading.is_set()]):
            await asyncio.sleep(0.01)
    assert len(found) == 1
    return found[0]


async def test_one_of_several_leads_and_one_that_ends_gives_the_lease_back(kube: Kubernetes) -> None:
    async with connected(kube) as (api, _):
        candidates = [Candidate(api, f"c{number}") for number in range(3)]
        first = await led_by(*candidates)
        for _ in range(50):
            assert sum(each.election.leads() for each in candidates) == 1
            await asyncio.sleep(0.02)
        await first.end()
        lease = kube.store.find("Lease", "default", "lock")
        assert lease is not None
        assert lease["spec"]["holderIdentity"] in {"", *(f"c{number}" for number in range(3))} - {first.election._identity}
        others = [each for each in candidates if each is not first]
        second = await led_by(*others, within_s=LEASE_S)
        lease = kube.store.find("Lease", "default", "lock")
        assert lease is not None
        assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == (second.election._identity, 1)
        for each in others:
            await each.end()


async def test_a_leader_that_hears_nothing_stops_before_another_may_begin(kube: Kubernetes) -> None:
    async with connected(kube) as (api, _), connected(kube) as (other_api, _):
        first = Candidate(api, "first")
        await led_by(first)
        kube.api.silent = True
        silent_since = first.clock.monotonic()
        async with asyncio.timeout(10):
            while first.leading.is_set():
                await asyncio.sleep(0.01)
        assert first.stopped_at - silent_since < LEASE_S
        assert not first.election.leads()
        kube.api.silent = False
        second = Candidate(other_api, "second")
        await led_by(first, second)
        for each in (first, second):
            await each.end()


async def test_a_leader_whose_lease_somebody_took_stops_with_its_next_look(kube: Kubernetes) -> None:
    async with connected(kube) as (api, _):
        first = Candidate(api, "first")
        await led_by(first)
        taken = {"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 600}}
        kube.store.merge(BY_KIND["Lease"], "default", "lock", taken, manager="somebody")
        async with asyncio.timeout(LEASE_S):
            while first.leading.is_set():
                await asyncio.sleep(0.01)
        await first.end()
        lease = kube.store.find("Lease", "default", "lock")
        assert lease is not None
        assert lease["spec"]["holderIdentity"] == "somebody", "what is another's is not given back"


# ---- watches


async def test_a_mirror_holds_what_there_is_across_broken_watches_and_compaction(kube: Kubernetes) -> None:
    def secret(name: str, value: str) -> dict[str, object]:
        return {"metadata": {"name": name, "labels": {"app": "x"}}, "data": {"value": value}}

    def names() -> dict[str, str]:
        return {name: each["data"]["value"] for (_, name), each in mirror.objects.items()}

    async def until(wanted: dict[str, str]) -> None:
        async with asyncio.timeout(20):
            while names() != wanted:
                await asyncio.sleep(0.01)

    resource = BY_KIND["Pod"]
    told: list[str] = []
    async with connected(kube) as (api, metrics):
        mirror = Mirror(
            api, "Pod", "default", labels="app=x", changed=lambda each: told.append(each["metadata"]["name"]), metrics=metrics,
            chance=random.Random(1),
        )  # fmt: skip
        kube.workloads.nodes.clear()  # nobody starts these
        kube.store.create(resource, "default", secret("a", "1") | {"spec": {}}, manager="kubectl")
        running = asyncio.create_task(mirror.run())
        await mirror.listed.wait()
        await until({"a": "1"})
        kube.store.create(resource, "default", secret("b", "1") | {"spec": {}}, manager="kubectl")
        kube.store.merge(resource, "default", "a", {"data": {"value": "2"}}, manager="kubectl")
        await until({"a": "2", "b": "1"})
        kube.api.cut_watches()
        kube.store.delete(resource, "default", "b")
        await until({"a": "2"})
        told.clear()
        # While nobody watches, one goes, one comes, and the history is forgotten.
        kube.api.silent = True
        kube.api.cut_watches()
        kube.store.delete(resource, "default", "a")
        kube.store.create(resource, "default", secret("c", "1") | {"spec": {}}, manager="kubectl")
        kube.store.compact()
        kube.api.silent = False
        await until({"c": "1"})
        assert set(told) == {"a", "c"}, "what went meanwhile is told of, too"
        assert metrics.watches_ended["Pod"]["expired"]._value.get() >= 1
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_answers_that_are_no_success_say_what_they_are(kube: Kubernetes) -> None:
    async with connected(kube) as (api, metrics):
        with pytest.raises(Missing):
            await api.get("Secret", "default", "none")
        lease: Manifest = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "l", "namespace": "default"},
            "spec": {},
        }
        made = await api.create(lease)
        with pytest.raises(Conflict):
            await api.create(lease)
        await api.replace({**made} | {"spec": {"holderIdentity": "x"}})
        with pytest.raises(Conflict, match="has been modified"):
            await api.replace({**made} | {"spec": {"holderIdentity": "y"}})
        kube.store.compact()
        with pytest.raises(Expired):
            async for _ in api.watch("Secret", "default", "1"):
                pass
        kube.api.rights["nobody"] = ()
        async with asyncio.timeout(20):
            nobody = await KubernetesApi.connect(str(kube.kubeconfig("nobody")), metrics)
            with pytest.raises(Refused, match="403 Forbidden"):
                await nobody.get("Secret", "default", "none")
            await nobody.close()
    gone = await KubernetesApi.connect(str(kubeconfig_of_nobody(kube)), OperatorMetrics())
    with pytest.raises(Unreachable):
        await gone.get("Secret", "default", "none")
    await gone.close()


async def test_in_a_pod_it_goes_by_the_service_account_and_by_a_token_that_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.aio.config import incluster_config

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    token, ca = tmp_path / "token", tmp_path / "ca.crt"
    authority.cert_pem.write_to_path(ca)
    token.write_text("first")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(ca))
    server = ApiServer(Store())
    may = Right("", ("secrets",), ("list",))
    server.rights = {"first": (may,), "second": (may,)}
    async with server.listening(tls=context) as url:
        host, _, port = url.removeprefix("https://").partition(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        api = await KubernetesApi.connect("", OperatorMetrics())
        assert (await api.listed("Secret", "default"))[0] == []
        with pytest.raises(Refused, match="403 Forbidden"):
            await api.get("Secret", "default", "one")
        token.write_text("second")
        del server.rights["first"]
        with pytest.raises(Refused, match="401 Unauthorized"):  # it is read again once a minute
            await api.listed("Secret", "default")
        monkeypatch.setattr(incluster_config, "datetime", InAMinute)
        assert (await api.listed("Secret", "default"))[0] == []
        await api.close()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(RuntimeError, match="run it in a pod, or name a file with --kubeconfig"):
        await KubernetesApi.connect("", OperatorMetrics())


class InAMinute:
    """The clock of the Kubernetes client, a while later."""

    timedelta = datetime.timedelta

    class datetime:  # noqa: N801  # as the module has it
        @staticmethod
        def now() -> datetime.datetime:
            return datetime.datetime.now() + datetime.timedelta(minutes=2)  # noqa: DTZ005  # as the client does


def kubeconfig_of_nobody(kube: Kubernetes) -> Path:
    path = kube.folder / "gone"
    path.write_text(kube.kubeconfig().read_text().replace(kube.url, f"http://127.0.0.1:{free_ports(1)[0]}"))
    return path


# ---- the queue


@pytest.fixture
def work() -> Work:
    return Work(clock=SystemClock(), chance=random.Random(1))


async def handled(work: Work, handle: object, until: asyncio.Event) -> None:
    running = asyncio.create_task(work.run(3, handle))  # type: ignore[arg-type]  # each test gives one that fits
    async with asyncio.timeout(20):
        await until.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_key_is_looked_at_once_at_a_time_and_again_if_it_changes_meanwhile(work: Work) -> None:
    key, other = Key("cluster", "n", "a"), Key("cluster", "n", "b")
    now, most, looks, done = 0, 0, 0, asyncio.Event()

    async def handle(which: Key) -> float | None:
        nonlocal now, most, looks
        if which == other:
            return None
        now, looks = now + 1, looks + 1
        most = max(most, now)
        for _ in range(5):
            work.add(key)
            await asyncio.sleep(0.001)
        now -= 1
        if looks == 5:
            done.set()
        return None

    work.add(key)
    work.add(other)
    await handled(work, handle, done)
    assert most == 1


async def test_a_key_that_fails_waits_longer_each_time_and_others_do_not(work: Work) -> None:
    bad, good = Key("cluster", "n", "bad"), Key("cluster", "n", "good")
    failed_at: list[float] = []
    looks, done, clock = 0, asyncio.Event(), SystemClock()

    async def handle(which: Key) -> float | None:
        nonlocal looks
        if which == good:
            looks += 1
            return 0.01
        failed_at.append(clock.monotonic())
        work.add(bad)  # an event in between hurries nothing
        if len(failed_at) == 4:
            done.set()
        raise Failed

    work.add(bad)
    work.add(good)
    await handled(work, handle, done)
    waits = [later - earlier for earlier, later in itertools.pairwise(failed_at)]
    assert waits[0] >= 0.2
    assert waits[1] >= 0.4
    assert waits[2] >= 0.8
    assert looks > 20


# ---- the process


async def test_the_process_serves_probes_and_metrics_and_ends_in_order(kube: Kubernetes) -> None:
    [port] = free_ports(1)
    stopping = asyncio.Event()
    settings = OperatorSettings(
        namespaces=("default",), kubeconfig=str(kube.kubeconfig()), lease_namespace="default", lease_name="lock", identity="one",
        lease_s=LEASE_S, resync_s=1.0, listen=f"127.0.0.1:{port}", log_format="text", log_level="info",
    )  # fmt: skip
    kube.api.silent = True
    running = asyncio.create_task(serve(settings, stopping=stopping))
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def page(path: str) -> tuple[int, str]:
            async with session.get(path) as answer:
                return answer.status, await answer.text()

        async def until(path: str, wanted: str) -> str:
            async with asyncio.timeout(20):
                while True:
                    with suppress(aiohttp.ClientError):
                        _, text = await page(path)
                        if re.search(wanted, text):
                            return text
                    await asyncio.sleep(0.05)

        await until("/livez", "alive")
        assert await page("/readyz") == (503, "the API server has not answered yet; look at the network and at this account's rights\n")
        kube.api.silent = False
        await until("/readyz", "^leads$")
        kube.store.create(BY_KIND["TidelogCluster"], "default", {"metadata": {"name": "logs"}, "spec": SPEC}, manager="kubectl")
        text = await until("/metrics", 'condition{cluster="logs",namespace="default",type="Degraded"} 1.0')
        assert "tidelog_operator_leader 1.0" in text
        assert 'tidelog_operator_actions_total{action="drain"} 0.0' in text, "all series exist from the start"
        assert 'tidelog_operator_brokers{cluster="logs",namespace="default",state="ready"} 0.0' in text
        kube.store.delete(BY_KIND["TidelogCluster"], "default", "logs")
        async with asyncio.timeout(20):
            while 'cluster="logs"' in (await page("/metrics"))[1]:
                await asyncio.sleep(0.05)
        stopping.set()
        async with asyncio.timeout(10):
            await running
    lease = kube.store.find("Lease", "default", "lock")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == ""
    assert kube.store.find("Service", "default", "logs") is None, "what a cluster owned went with it"
