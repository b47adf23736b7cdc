"""A release from its first install to its end: Helm, the operator and brokers as processes, on the Kubernetes for tests."""

import asyncio
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import tidelog
from helm_python import Config
from tidelog.objects.s3 import S3Settings

from tests.chaos.cluster import spawner
from tests.command_line import environment
from tests.helm.rendering import NAMESPACE, RELEASE, chart, content
from tests.helm.test_install import forwarding
from tests.helm.test_operations import commands
from tests.operator.kube.cluster import Kubernetes, kubernetes
from tests.operator.kube.http import Right, is_ready
from tests.operator.kube.store import BY_KIND, Object
from tests.postgres_server import PostgresServer

IMAGE = "tidelog:0.1.0.dev0"
WITHIN_S = 120
VALUES: dict[str, Any] = {
    "trial": {"s3": {"enabled": False}, "postgres": {"enabled": False}},
    "operator": {"replicas": 1, "leaseSeconds": 5, "resyncSeconds": 5},
    "cluster": {
        "spec": {
            "replicas": 1,
            "metadataStore": {"urlSecretRef": {"name": "database"}},
            "drain": {"propagationSeconds": 1, "timeoutSeconds": 20},
            "config": {"lease_ms": "5000", "max_latency_ms": "20", "log_format": "json"},
        }
    },
}


class Cluster:
    """What Helm's release has become."""

    def __init__(self, kube: Kubernetes) -> None:
        self.kube = kube
        self.of_a_broker: dict[str, str] = {}
        """The variables of a broker's container."""

    def find(self, kind: str, name: str) -> Object | None:
        return self.kube.store.find(kind, NAMESPACE, name)

    def secrets(self) -> dict[str, dict[str, bytes]]:
        return {each["metadata"]["name"]: content(each) for each in self.kube.store.all("Secret", NAMESPACE)}

    def pods(self, name: str) -> list[Object]:
        """Those that are ready."""
        found = self.kube.store.all("Pod", NAMESPACE, lambda each: each["metadata"]["labels"]["app.kubernetes.io/name"] == name)
        return [pod for pod in found if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]

    def condition(self, of: str, what: str = "status") -> str:
        status = (self.find("TidelogCluster", RELEASE) or {}).get("status", {})
        return next((each[what] for each in status.get("conditions", ()) if each["type"] == of), "")

    async def until(self, holds: Callable[[], Any]) -> None:
        try:
            async with asyncio.timeout(WITHIN_S):
                while not holds():
                    await self.kube.store.changed.wait()
        except TimeoutError:
            logs = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in self.kube.kubelet.logs)
            status = (self.find("TidelogCluster", RELEASE) or {}).get("status")
            left = [
                (each["metadata"]["name"], each["metadata"].get("deletionTimestamp"), each.get("status"))
                for each in self.kube.store.all("Pod", NAMESPACE)
            ]
            raise AssertionError(f"{left}\n{status}\nrefused: {self.kube.api.refused}\n{logs}") from None

    async def in_a_broker(self, *command: str) -> str:
        """What `kubectl exec` into a broker's container, or a job made of it, prints."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command, env=environment(**self.of_a_broker), stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        assert process.returncode == 0, printed.decode()
        return printed.decode()

    def change(self, kind: str, *, subresource: str = "", **spec: Any) -> None:
        self.kube.store.merge(BY_KIND[kind], NAMESPACE, RELEASE, {"spec": spec}, manager="kubectl", subresource=subresource)

    def let_the_operator_do_what_its_roles_say(self) -> None:
        rules = [rule for each in self.kube.store.all("Role", NAMESPACE) for rule in each["rules"]]
        assert rules
        self.kube.api.rights["operator"] = [
            Right(group, tuple(rule["resources"]), tuple(rule["verbs"])) for rule in rules for group in rule["apiGroups"]
        ]


@pytest.mark.alone
@pytest.mark.timeout(600)
async def test_a_release_is_installed_used_upgraded_rebuilt_and_removed(
    tmp_path: Path, postgres_server: PostgresServer, s3_settings: S3Settings
) -> None:
    async def start(variables: Mapping[str, str], log: Path) -> tuple[int, "asyncio.Future[int]"]:
        """The image: brokers, and the operator, whose token the API server knows."""
        if "TIDELOG_OPERATOR_LISTEN" not in variables:
            it.of_a_broker = dict(variables)
            settings = {name.removeprefix("TIDELOG_").lower(): value for name, value in variables.items() if name.startswith("TIDELOG_")}
            return await spawns.spawn(settings, log)
        command, more = ["tidelog_operator", "run"], {"KUBECONFIG": str(kube.kubeconfig("operator"))}
        with log.open("ab") as told:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *command, env=environment(**variables, **more), stdout=told, stderr=told
            )
        return process.pid, asyncio.ensure_future(process.wait())

    async with AsyncExitStack() as stack:
        spawns = await stack.enter_async_context(spawner("tests.operator.spawner"))
        url = await stack.enter_async_context(postgres_server.database())
        kube = await stack.enter_async_context(kubernetes(tmp_path, {IMAGE: start}))
        it = Cluster(kube)
        kube.store.create(BY_KIND["Namespace"], "", {"metadata": {"name": NAMESPACE}}, manager="kubectl")
        for name, words in (("database", {"url": url}), ("bucket", {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"})):
            data = {key: b64encode(value.encode()).decode() for key, value in words.items()}
            kube.store.create(BY_KIND["Secret"], NAMESPACE, {"metadata": {"name": name}, "data": data}, manager="kubectl")
        storage = {"bucket": s3_settings.bucket, "endpoint": s3_settings.endpoint_url, "credentialsSecretRef": {"name": "bucket"}}
        VALUES["cluster"]["spec"]["storage"] = storage
        helm = stack.enter_context(Config(kubeconfig_path=kube.kubeconfig(), namespace=NAMESPACE, storage_driver="memory"))

        installed = await asyncio.to_thread(helm.install, chart(), RELEASE, VALUES)
        assert installed["status"] == "deployed"
        it.let_the_operator_do_what_its_roles_say()
        await it.until(lambda: it.condition("Ready") == "True" and len(it.pods("tidelog-broker")) == 1)
        assert len(it.pods("tidelog-operator")) == 1
        secrets = it.secrets()
        (tmp_path / "ca.crt").write_bytes(secrets["tidelog-tls"]["ca.crt"])
        address = it.pods("tidelog-broker")[0]["status"]["podIP"]
        forwarded = await stack.enter_async_context(forwarding((address, 9595)))
        reach: dict[str, Any] = {"ca": str(tmp_path / "ca.crt"), "token": secrets["tidelog-tokens"]["client-token"].decode()}
        values: list[bytes | None] = [b"%d" % number for number in range(1000)]
        async with tidelog.connect(f"localhost:{forwarded}", **reach) as log:
            await log.admin.create_topic("clicks", partitions=6)
            async with log.producer() as producer:
                await producer.send_many("clicks", values)

            VALUES["cluster"]["spec"]["replicas"] = 2
            upgraded = await asyncio.to_thread(helm.upgrade, chart(), RELEASE, VALUES)
            assert upgraded["revision"] == 2
            assert it.secrets() == secrets, "they were found, and kept"
            await it.until(lambda: len(it.pods("tidelog-broker")) == 2 and it.condition("Progressing") == "False")
            described = await log.admin.describe_cluster()
            assert len(described.brokers) == 2
            got = [record.value async for record in log.consume("clicks", start="earliest", max_records=len(values))]
        assert sorted(got, key=lambda value: int(value or b"")) == values
        await rehearse(it)
        await lose_the_database(it, postgres_server, url)
        await it.until(lambda: len(it.pods("tidelog-broker")) == 2 and it.condition("Ready") == "True")
        address = it.pods("tidelog-broker")[0]["status"]["podIP"]
        forwarded = await stack.enter_async_context(forwarding((address, 9595)))
        async with tidelog.connect(f"localhost:{forwarded}", **reach) as log:
            got = [record.value async for record in log.consume("clicks", start="earliest", max_records=len(values))]
        assert sorted(got, key=lambda value: int(value or b"")) == values
        assert kube.api.refused == [], "its roles are enough"

        await asyncio.to_thread(helm.uninstall, RELEASE)
        await it.until(lambda: not it.kube.store.all("Pod", NAMESPACE))
        assert it.find("TidelogCluster", RELEASE) is None
        assert set(it.secrets()) == {"database", "bucket"}
        assert len(kube.store.all("CustomResourceDefinition")) == 2, "and all that was made of them"


async def rehearse(it: Cluster) -> None:
    """Run what docs/operations.md says to run in a broker's container."""
    rehearsed = [words[words.index("--") + 1 :] for words in commands("kubectl") if "exec" in words]
    assert ["tidelog", "rebuild", "--dry-run"] in rehearsed
    printed = [await it.in_a_broker(*words) for words in rehearsed]
    assert any("nothing is lost, and nothing is in danger" in each for each in printed)
    assert any("1,000 records" in each for each in printed)


async def lose_the_database(it: Cluster, server: PostgresServer, url: str) -> None:
    """Follow docs/operations.md, "A lost database", step by step."""
    name = url.partition("?")[0].rpartition("/")[2]
    it.change("TidelogCluster", paused=True)
    await it.until(lambda: it.condition("Progressing", "reason") == "Paused")  # else what is under way sets the number back
    it.change("Deployment", subresource="scale", replicas=0)
    await it.until(lambda: len(it.kube.store.all("Pod", NAMESPACE)) == 1)
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.execute(f"CREATE DATABASE {name}")
    assert "Would come back: 1 topic, 6 partitions, 1,000 records" in await it.in_a_broker("tidelog", "rebuild", "--dry-run")
    assert "Back: 1 topic, 6 partitions, 1,000 records" in await it.in_a_broker("tidelog", "rebuild")
    it.change("Deployment", subresource="scale", replicas=2)
    it.change("TidelogCluster", paused=False)
