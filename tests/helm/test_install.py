"""What the chart installs, at work: Helm against an API server, and real brokers that are told what the operator would tell them."""

import asyncio
import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import pytest_asyncio
import tidelog
import yaml
from helm_python import Config
from helm_python.errors import HelmError
from tidelog.config import Settings
from tidelog.server.stores import s3_settings

from tests.command_line import environment
from tests.helm.rendering import (
    EXAMPLES,
    NAMESPACE,
    RELEASE,
    Manifest,
    brokers,
    chart,
    cluster,
    content,
    example,
    notes,
    objects,
    of_kind,
    the,
)
from tests.operator.kube.cluster import Kubernetes, kubernetes
from tests.operator.kube.store import BY_KIND
from tests.postgres_server import PostgresServer

# ---- upgrades: what is there is found, and kept


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[Kubernetes]:
    async with kubernetes(tmp_path) as found:
        found.store.create(BY_KIND["Namespace"], "", {"metadata": {"name": NAMESPACE}}, manager="kubectl")
        yield found


async def upgraded(kube: Kubernetes, values: dict[str, Any] | None = None) -> dict[str, Manifest]:
    """The Secrets that an upgrade would apply."""

    def rendered() -> dict[str, str]:
        with Config(kubeconfig_path=kube.kubeconfig(), namespace=NAMESPACE) as config:
            return config.render(chart(), values, name=RELEASE, namespace=NAMESPACE, is_upgrade=True)

    texts = await asyncio.to_thread(rendered)
    return of_kind([each for name, text in texts.items() if name.endswith(".yaml") for each in yaml.safe_load_all(text) if each], "Secret")


async def test_an_upgrade_keeps_every_secret_that_is_there(kube: Kubernetes) -> None:
    first = await upgraded(kube)
    assert len(first) == 4
    for secret in first.values():
        kube.store.create(BY_KIND["Secret"], NAMESPACE, secret, manager="helm")
    again = await upgraded(kube, {"tls": {"validityDays": 7}})
    assert {name: each["data"] for name, each in again.items()} == {name: each["data"] for name, each in first.items()}
    assert {name: each["type"] for name, each in again.items()} == {name: each["type"] for name, each in first.items()}


async def test_an_upgrade_keeps_the_tokens_that_someone_added_and_makes_anew_what_someone_deleted(kube: Kubernetes) -> None:
    first = await upgraded(kube)
    tokens = first["tidelog-tokens"] | {"data": first["tidelog-tokens"]["data"] | {"tokens.yaml": "dG9rZW5zOiBbXQ=="}}
    kube.store.create(BY_KIND["Secret"], NAMESPACE, tokens, manager="helm")
    again = await upgraded(kube)
    assert content(again["tidelog-tokens"])["tokens.yaml"] == b"tokens: []"
    assert content(again["tidelog-tls"])["tls.crt"] != content(first["tidelog-tls"])["tls.crt"]


async def test_an_upgrade_does_not_set_back_silently_what_kubectl_scale_has_set(kube: Kubernetes) -> None:
    with Config(kubeconfig_path=kube.kubeconfig(), namespace=NAMESPACE, storage_driver="memory") as helm:
        await asyncio.to_thread(helm.install, chart(), RELEASE)
        kube.store.merge(BY_KIND["TidelogCluster"], NAMESPACE, RELEASE, {"spec": {"replicas": 5}}, manager="kubectl", subresource="scale")
        with pytest.raises(HelmError, match='conflict with "kubectl": .spec.replicas'):
            await asyncio.to_thread(helm.upgrade, chart(), RELEASE)
        await asyncio.to_thread(helm.upgrade, chart(), RELEASE, {"cluster": {"spec": {"replicas": 5}}})
    found = kube.store.find("TidelogCluster", NAMESPACE, RELEASE)
    assert found is not None
    assert found["spec"]["replicas"] == 5


async def test_a_release_that_is_removed_and_installed_again_opens_the_volumes_that_are_left(kube: Kubernetes) -> None:
    def secrets() -> dict[str, dict[str, bytes]]:
        return {each["metadata"]["name"]: content(each) for each in kube.store.all("Secret", NAMESPACE)}

    with Config(kubeconfig_path=kube.kubeconfig(), namespace=NAMESPACE, storage_driver="memory") as helm:
        await asyncio.to_thread(helm.install, chart(), RELEASE)
        first = secrets()
        await asyncio.to_thread(helm.uninstall, RELEASE)
        left = secrets()
        assert left == {name: first[name] for name in ("tidelog-trial-s3", "tidelog-trial-postgres")}
        await asyncio.to_thread(helm.install, chart(), RELEASE)
        again = secrets()
    assert {name: again[name] for name in left} == left
    assert again["tidelog-tls"] != first["tidelog-tls"]


# ---- brokers as pods


@dataclass
class Pods:
    """Two brokers of the chart's cluster, and one port that is forwarded to one of them."""

    manifests: list[Manifest]
    folder: Path
    forwarded: int
    advertised: list[str]

    @property
    def variables(self) -> dict[str, str]:
        """What a client is told."""
        secrets = {name: content(each) for name, each in of_kind(self.manifests, "Secret").items()}
        (self.folder / "ca.crt").write_bytes(secrets["tidelog-tls"]["ca.crt"])
        return {"TIDELOG_CA": str(self.folder / "ca.crt"), "TIDELOG_TOKEN": secrets["tidelog-tokens"]["client-token"].decode()}


def on_pods(test: Any) -> Any:
    """Tests that share two brokers, one event loop and one worker."""
    return pytest.mark.xdist_group("helm pods")(pytest.mark.asyncio(loop_scope="module")(test))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def environment_of(container: Manifest, secrets: Mapping[str, Mapping[str, bytes]], pod: Mapping[str, str]) -> dict[str, str]:
    """The variables of a container, as a kubelet resolves them."""
    found: dict[str, str] = {}
    for each in container["env"]:
        source = each.get("valueFrom", {})
        if "fieldRef" in source:
            value = pod[source["fieldRef"]["fieldPath"]]
        elif "secretKeyRef" in source:
            value = secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]].decode()
        else:
            value = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], each["value"])
        found[each["name"]] = value
    return found


@asynccontextmanager
async def forwarding(to: tuple[str, int]) -> AsyncIterator[int]:
    """What `kubectl port-forward` does: a port of this machine leads to one pod."""

    open_ones: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return  # one end went away; the other is closed below
        finally:
            open_ones.discard(writer)
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*to)
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in list(open_ones):
            writer.transport.abort()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, moto_endpoint: str) -> AsyncIterator[Pods]:
    tmp_path = tmp_path_factory.mktemp("pods")
    manifests = objects()
    secrets = {name: content(each) for name, each in of_kind(manifests, "Secret").items()}
    for name in ("tls", "tokens"):
        (tmp_path / name).mkdir()
        for key, value in secrets[f"tidelog-{name}"].items():
            (tmp_path / name / key).write_bytes(value)
    (container,) = the(brokers(manifests), "Deployment")["spec"]["template"]["spec"]["containers"]
    keys = secrets["tidelog-trial-s3"]
    access = {name.lower(): keys[name].decode() for name in keys}
    s3: Any = boto3.client("s3", endpoint_url=moto_endpoint, region_name="us-east-1", **access)
    s3.create_bucket(Bucket="tidelog")
    async with AsyncExitStack() as stack:
        postgres_url = await stack.enter_async_context(postgres_server.database())
        addresses = []
        for number in (2, 3):
            # Addresses that the certificate does not bear, as pods have them.
            ip, port, name = f"127.0.0.{number}", free_port(), f"tidelog-5d9f-{number}"
            pod = {"status.podIP": ip, "metadata.name": name, "metadata.labels['topology.kubernetes.io/zone']": "a"}
            told = environment_of(container, secrets, pod)
            told = {variable: value.replace("/etc/tidelog/", f"{tmp_path}/") for variable, value in told.items()}
            told |= {
                "TIDELOG_LISTEN": f"{ip}:{port}",
                "TIDELOG_ADVERTISE": f"{ip}:{port}",
                "TIDELOG_METRICS_LISTEN": f"{ip}:0",
                "TIDELOG_METADATA": postgres_url,
                "TIDELOG_S3_ENDPOINT_URL": moto_endpoint,
            }
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tidelog", *container["args"],
                env=environment(**told, TIDELOG_LOG_FORMAT="json"), stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            stack.push_async_callback(ended, process)
            await ready(process)
            addresses.append(f"{ip}:{port}")
        host, _, port_text = addresses[0].rpartition(":")
        forwarded = await stack.enter_async_context(forwarding((host, int(port_text))))
        yield Pods(manifests, tmp_path, forwarded, addresses)


async def ready(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    printed = []
    async with asyncio.timeout(120):
        async for line in process.stderr:
            printed.append(line.decode())
            if b'"broker_ready"' in line:
                return
    pytest.fail("".join(printed))


async def ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def shell(script: str, folder: Path, **variables: str) -> str:
    environ = environment(**variables, PATH=f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}")
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-euc", script], cwd=folder, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


KUBECTL = """\
#!{python}
import json, re, sys
secrets = json.load(open({secrets!r}))
words = " ".join(sys.argv[1:])
found = re.fullmatch(r"-n logs get secret (\\S+) -o jsonpath={{.data.(\\S+)}}", words)
if found:
    print(secrets[found[1]][found[2].replace("\\\\.", ".")], end="")
elif words not in {known!r}:
    sys.exit("kubectl was asked for " + words)
"""
KNOWN = [
    "-n logs wait --for=condition=Ready tidelogcluster/tidelog --timeout=10m",
    "-n logs get tidelogcluster tidelog",
    "-n logs port-forward service/tidelog 9595:9595",
]


@on_pods
async def test_what_the_notes_say_works_through_one_forwarded_port(pods: Pods) -> None:
    (pods.folder / "bin").mkdir()
    (pods.folder / "secrets.json").write_text(json.dumps({name: each["data"] for name, each in of_kind(pods.manifests, "Secret").items()}))
    kubectl = pods.folder / "bin" / "kubectl"
    kubectl.write_text(KUBECTL.format(python=sys.executable, secrets=str(pods.folder / "secrets.json"), known=KNOWN))
    kubectl.chmod(stat.S_IRWXU)
    commands = [line.strip() for line in notes().splitlines() if re.match(r"  (kubectl|export|tidelog|echo) ", line)]
    assert len(commands) == 10
    script = "\n".join(commands).replace("localhost:9595", f"localhost:{pods.forwarded}")
    printed = await shell(script, pods.folder)
    assert "Created topic hello" in printed
    assert printed.endswith("hello/0:0\thello, world\n"), printed


@on_pods
async def test_one_forwarded_port_is_enough_for_partitions_of_all_brokers(pods: Pods) -> None:
    variables = pods.variables
    server = f"localhost:{pods.forwarded}"
    values: list[bytes | None] = [b"%d" % number for number in range(2000)]
    async with tidelog.connect(server, ca=variables["TIDELOG_CA"], token=variables["TIDELOG_TOKEN"]) as log:
        await log.admin.create_topic("wide", partitions=12)
        described = await log.admin.describe_cluster()
        assert sorted(broker.address for broker in described.brokers) == sorted(pods.advertised)
        async with log.producer() as producer:
            await producer.send_many("wide", values)
        got = [record.value async for record in log.consume("wide", start="earliest", max_records=len(values))]
    assert sorted(got, key=lambda value: int(value or b"")) == values


@on_pods
async def test_a_client_goes_on_with_brokers_that_it_was_told_of_when_the_address_that_it_was_given_is_gone(pods: Pods) -> None:
    """Their certificates bear the name that was given, and not their addresses."""
    variables = pods.variables
    host, _, port = pods.advertised[0].rpartition(":")
    async with AsyncExitStack() as way:
        server = f"localhost:{await way.enter_async_context(forwarding((host, int(port))))}"
        async with tidelog.connect(server, ca=variables["TIDELOG_CA"], token=variables["TIDELOG_TOKEN"]) as log, log.producer() as producer:
            await log.admin.create_topic("told")
            await producer.send("told", b"first")
            await way.aclose()
            for number in range(10):
                await asyncio.wait_for(producer.send("told", b"%d" % number), 30)


@on_pods
async def test_helm_test_does_a_round_trip(pods: Pods) -> None:
    (container,) = of_kind(pods.manifests, "Pod")["tidelog-test-round-trip"]["spec"]["containers"]
    assert container["command"] == ["sh", "-euc"]
    secrets = {name: content(each) for name, each in of_kind(pods.manifests, "Secret").items()}
    told = environment_of(container, secrets, {})
    assert told["TIDELOG_SERVER"] == "tidelog.logs.svc:9595"
    told |= {"TIDELOG_SERVER": f"localhost:{pods.forwarded}", "TIDELOG_CA": pods.variables["TIDELOG_CA"]}
    script = container["args"][0].replace("cd /tmp", f"cd {pods.folder}")
    printed = await shell(script, pods.folder, **told)
    assert "1,000 records went in and came out, byte for byte" in printed
    async with tidelog.connect(told["TIDELOG_SERVER"], ca=told["TIDELOG_CA"], token=told["TIDELOG_TOKEN"]) as log:
        assert not [each for each in await log.admin.describe_topics() if each.name.startswith("helm-test-")], "its topic is gone again"


@pytest.mark.parametrize("name", [name for name in EXAMPLES if "certify" in "".join(of_kind(objects(example(name)), "Pod"))])
def test_helm_test_certifies_the_bucket_that_brokers_use(name: str) -> None:
    manifests = objects(example(name))
    (container,) = of_kind(manifests, "Pod")[f"{cluster(manifests)['metadata']['name']}-test-certify"]["spec"]["containers"]
    _, url = container["args"]
    (broker,) = the(brokers(manifests), "Deployment")["spec"]["template"]["spec"]["containers"]
    told = {each["name"]: each["value"] for each in broker["env"] if "value" in each}
    fields = ("bucket", "s3_region", "s3_endpoint_url", "s3_addressing_style")
    of_broker = Settings.model_validate({field: told[f"TIDELOG_{field.upper()}"] for field in fields if f"TIDELOG_{field.upper()}" in told})
    assert s3_settings(Settings(bucket=url)) == s3_settings(of_broker)
    keys = [each["valueFrom"]["secretKeyRef"] for each in broker["env"] if each["name"].startswith("AWS_")]
    assert [each["valueFrom"]["secretKeyRef"] for each in container.get("env", [])] == keys
