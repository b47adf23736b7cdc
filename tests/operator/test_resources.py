"""The objects of a cluster: what must hold of them whatever the spec says, and that a broker understands its part."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trying
from tidelog.config import contradictions
from tidelog.server.security import check_listener
from tidelog.server.settings import load_settings
from tidelog_operator.observed import CHECKSUM, Cluster, SecretSeen
from tidelog_operator.reading import read
from tidelog_operator.resource import ClusterSpec, ClusterStatus, Secret, Tls, Tokens
from tidelog_operator.resources import deployment, desired, may_exist, needed_secrets, selector

from tests.operator.admission import Refused, admitted
from tests.operator.model import SPEC
from tests.operator.test_crds import cluster as written_cluster
from tests.operator.test_crds import values

SECURE = replace(
    SPEC,
    tls=Tls(secret_ref=Secret(name="certificate"), client_certificates=True),
    tokens=Tokens(secret_ref=Secret(name="tokens")),
    storage=replace(SPEC.storage, prefix="p/q", credentials_secret_ref=Secret(name="keys")),
    config={"lease_ms": "5000"},
)


def cluster(spec: ClusterSpec = SPEC, name: str = "logs") -> Cluster:
    return Cluster(name=name, namespace="n", uid="u", generation=1, spec=spec, status=ClusterStatus())


def seen(spec: ClusterSpec, checksum: str = "1") -> dict[str, SecretSeen]:
    return {name: SecretSeen(keys=keys, checksum=checksum) for name, keys in needed_secrets(spec).items()}


def container(spec: ClusterSpec) -> Mapping[str, Any]:
    (found,) = deployment(cluster(spec), seen(spec), replicas=3)["spec"]["template"]["spec"]["containers"]
    return found  # type: ignore[no-any-return]  # a manifest's parts are of any type


def environment(spec: ClusterSpec) -> dict[str, str]:
    """What a broker would find, with values in the place of references."""
    given = {
        "POD_IP": "10.0.0.7", "TIDELOG_BROKER_ID": "logs-5d9f-abc", "TIDELOG_ZONE": "a", "TIDELOG_METADATA": "postgresql://u:p@db/logs",
        "TIDELOG_PEER_TOKEN": "secret", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
    }  # fmt: skip
    found = {each["name"]: each.get("value", given.get(each["name"])) for each in container(spec)["env"]}
    return {name: re.sub(r"\$\((\w+)\)", lambda named: given[named[1]], value) for name, value in found.items()}


def everything(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, value
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from everything(each, f"{path}.{name}")
    elif isinstance(value, list):
        for each in value:
            yield from everything(each, f"{path}[]")


@pytest.mark.parametrize("spec", [SPEC, SECURE], ids=["plain", "secure"])
def test_a_broker_understands_what_it_is_told(spec: ClusterSpec) -> None:
    settings = load_settings(flags={}, config_file=None, environ=environment(spec)).settings
    assert list(contradictions(settings)) == []
    check_listener(settings)
    assert settings.bucket == "s3://" + "/".join(each for each in (spec.storage.bucket, spec.storage.prefix) if each)
    assert (settings.broker_id, settings.zone, settings.advertise) == ("logs-5d9f-abc", "a", "10.0.0.7:9595")
    assert settings.insecure == (spec is SPEC)
    assert settings.lease_ms == (5000 if spec is SECURE else 10_000)


def test_files_that_settings_name_are_mounted() -> None:
    settings = load_settings(flags={}, config_file=None, environ=environment(SECURE)).settings
    mounted = {Path(each["mountPath"]) for each in container(SECURE)["volumeMounts"]}
    files = (settings.tls_certificate_file, settings.tls_key_file, settings.tls_ca_file, settings.tls_client_ca_file, settings.tokens_file)
    for file in files:
        assert Path(file).parent in mounted
        assert Path(file).name in needed_secrets(SECURE)["certificate"] | needed_secrets(SECURE)["tokens"]
    volumes = deployment(cluster(SECURE), seen(SECURE), replicas=3)["spec"]["template"]["spec"]["volumes"]
    assert {each["name"] for each in volumes} == {each["name"] for each in container(SECURE)["volumeMounts"]}
    assert {each["secret"]["secretName"] for each in volumes if "secret" in each} == {"certificate", "tokens"}


def test_a_pod_may_take_longer_to_end_than_a_drain_takes() -> None:
    settings = load_settings(flags={}, config_file=None, environ=environment(SPEC)).settings
    grace_s = deployment(cluster(), seen(SPEC), replicas=3)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert settings.drain_timeout_ms == settings.drain_propagation_ms + SPEC.drain.timeout_seconds * 1000
    assert grace_s * 1000 >= settings.drain_timeout_ms + 30_000


def test_a_new_broker_is_ready_before_an_old_one_goes() -> None:
    spec = deployment(cluster(), seen(SPEC), replicas=3)["spec"]
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert spec["minReadySeconds"] > 0


def test_liveness_never_asks_what_only_a_dependency_can_answer() -> None:
    found = container(SPEC)
    assert found["livenessProbe"]["httpGet"]["path"] == found["startupProbe"]["httpGet"]["path"] == "/livez"
    assert found["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_broker_may_do_little_on_its_node() -> None:
    pod = deployment(cluster(), seen(SPEC), replicas=3)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container(SPEC)["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip


def test_what_brokers_read_at_their_start_changes_the_template_and_nothing_else_does() -> None:
    def checksum(spec: ClusterSpec, **secrets: str) -> str:
        known = {name: replace(each, checksum=secrets.get(name, "1")) for name, each in seen(spec).items()}
        found = deployment(cluster(spec), known, replicas=3)
        assert found["metadata"]["annotations"] == found["spec"]["template"]["metadata"]["annotations"]
        return str(found["metadata"]["annotations"][CHECKSUM])

    first = checksum(SECURE)
    assert first == checksum(replace(SECURE, replicas=9, paused=True))
    assert first == checksum(SECURE, certificate="2"), "TLS files are read again when they change"
    others = [
        checksum(replace(SECURE, image="other")),
        checksum(replace(SECURE, config={"lease_ms": "6000"})),
        checksum(SECURE, database="2"),
        checksum(SECURE, keys="2"),
        checksum(SECURE, tokens="2"),
    ]
    assert len({first, *others}) == 6


@trying(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # many patterns, on a machine that may be busy
@given(spec=values(ClusterSpec))
def test_whatever_the_spec_objects_are_found_owned_and_hold_no_secret(spec: dict[str, Any]) -> None:
    try:
        stored = admitted(written_cluster() | {"spec": written_cluster()["spec"] | spec})["spec"]
    except Refused:
        stored = admitted(written_cluster())["spec"]
    of = cluster(read(ClusterSpec, stored))
    made = desired(of, seen(of.spec), replicas=4)
    assert {(each["kind"], each["metadata"]["name"]) for each in made} <= set(may_exist(of))
    assert made[-1]["kind"] == "Deployment"
    for each in made:
        assert each["metadata"]["namespace"] == "n"
        assert [(owner["uid"], owner["controller"]) for owner in each["metadata"]["ownerReferences"]] == [("u", True)]
        assert each["metadata"]["annotations"][CHECKSUM]
        labels = made[-1]["spec"]["template"]["metadata"]["labels"]
        for path, value in everything(each["spec"]):
            if path.endswith((".matchLabels", ".selector")) and not isinstance(value.get("matchLabels"), Mapping):
                assert value == selector(of)
                assert value.items() <= labels.items()
    ports = {each["name"] for each in made[-1]["spec"]["template"]["spec"]["containers"][0]["ports"]}
    services = [each for each in made if each["kind"] == "Service"]
    assert {port["targetPort"] for each in services for port in each["spec"]["ports"]} <= ports
    names = [each["name"] for each in made[-1]["spec"]["template"]["spec"]["containers"][0]["env"]]
    assert len(names) == len(set(names)), "no variable is said twice"
    assert desired(of, seen(of.spec), replicas=4) == made
