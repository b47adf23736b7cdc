"""What the chart makes of every example: valid for Kubernetes, tight, and complete."""

import itertools
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cryptography import x509
from tidelog_operator.reading import read
from tidelog_operator.resource import ClusterSpec
from tidelog_operator.resources import LOG_PORT, grace_s, needed_secrets

from tests.helm.rendering import EXAMPLES, NAMESPACE, Manifest, brokers, cluster, content, example, notes, objects, of_kind, pod_specs, the

VERSIONS = ("1.31", "1.37")
OWN_KINDS = {"TidelogCluster", "ServiceMonitor", "PrometheusRule"}
"""Not Kubernetes' own, so that it has no schema of them."""
BROUGHT_ALONG = {"default"}
"""The service account that every namespace has."""


@cache
def all_objects(name: str) -> list[Manifest]:
    """What the chart makes, and what the operator makes of its cluster."""
    manifests = objects(example(name))
    return manifests + (brokers(manifests) if of_kind(manifests, "TidelogCluster") else [])


@pytest.fixture(autouse=True, scope="module")
def schemas_read_once() -> Iterator[None]:
    """The validator reads megabytes of them for each object."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))
        yield


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec["containers"], *spec.get("initContainers", [])]


each_example = pytest.mark.parametrize("name", EXAMPLES)


@each_example
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_would_take_every_object(name: str, version: str) -> None:
    for each in all_objects(name):
        if each["kind"] not in OWN_KINDS:
            assert kubernetes_validate.validate(each, version, strict=True) == version


def test_the_validator_would_refuse() -> None:
    (deployment,) = of_kind(objects(), "Deployment").values()
    deployment["spec"]["template"]["spec"]["unheardOf"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


@each_example
def test_the_cluster_is_one_that_the_api_server_takes(name: str) -> None:
    manifests = objects(example(name))
    if of_kind(manifests, "TidelogCluster"):
        read(ClusterSpec, cluster(manifests)["spec"])
    else:
        assert name == "operator-only"


@each_example
def test_names_are_unique_and_every_object_says_where_it_belongs(name: str) -> None:
    manifests = all_objects(name)
    keys = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in manifests]
    assert len(keys) == len(set(keys))
    for each in manifests:
        assert each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "tidelog"
        assert ("namespace" in each["metadata"]) == (not each["kind"].startswith("Cluster"))
        assert len(each["metadata"]["name"]) <= 63
    given = example(name).get("commonLabels", {})
    assert all(given.items() <= each["metadata"]["labels"].items() for each in objects(example(name)))


@each_example
def test_selectors_find_the_pods_that_they_are_meant_for(name: str) -> None:
    manifests = all_objects(name)
    pods = {labels["app.kubernetes.io/name"]: labels for _, labels, _ in pod_specs(manifests)}

    def finds(selector: dict[str, str]) -> set[str]:
        return {found for found, labels in pods.items() if selector.items() <= labels.items()}

    for each in manifests:
        spec, kind = each.get("spec", {}), each["kind"]
        if kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            assert len(finds(spec["selector"]["matchLabels"])) == 1, each["metadata"]["name"]
        if kind in ("Deployment", "StatefulSet"):
            assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
            for constraint in spec["template"]["spec"].get("topologySpreadConstraints", []):
                assert constraint["labelSelector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
        if kind == "Service":
            assert len(finds(spec["selector"])) == 1, each["metadata"]["name"]
        if kind == "StatefulSet":
            assert spec["serviceName"] in of_kind(manifests, "Service")
    assert len(pods) == len({frozenset(labels.items()) for labels in pods.values()})


def test_clients_from_outside_get_a_balancer_before_all_brokers_that_are_ready() -> None:
    manifests = objects(example("external-service"))
    service = of_kind(manifests, "Service")["tidelog-external"]
    own = of_kind(brokers(manifests), "Service")["tidelog"]
    assert service["spec"]["selector"] == own["spec"]["selector"]
    assert service["spec"]["ports"][0]["targetPort"] == own["spec"]["ports"][0]["targetPort"]
    assert (service["spec"]["type"], service["spec"]["loadBalancerSourceRanges"]) == ("LoadBalancer", ["203.0.113.0/24"])
    assert "publishNotReadyAddresses" not in service["spec"]
    certificate = x509.load_pem_x509_certificate(content(of_kind(manifests, "Secret")["tidelog-tls"])["tls.crt"])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert "logs.example.com" in names


@each_example
def test_ports_that_are_named_are_there(name: str) -> None:
    manifests = all_objects(name)
    for each in of_kind(manifests, "Service").values():
        (ports,) = [
            {port["name"] for container in spec["containers"] for port in container.get("ports", [])}
            for _, labels, spec in pod_specs(manifests)
            if each["spec"]["selector"].items() <= labels.items()
        ]
        assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
    for monitor in of_kind(manifests, "ServiceMonitor").values():
        services = [
            each
            for each in of_kind(manifests, "Service").values()
            if monitor["spec"]["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
        ]
        (service,) = services
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}
        assert monitor["spec"]["namespaceSelector"]["matchNames"] == [service["metadata"]["namespace"]]
    for _, _, spec in pod_specs(manifests):
        for container in spec["containers"]:
            named = {port["name"] for port in container.get("ports", [])}
            probes = [container[probe] for probe in ("startupProbe", "livenessProbe", "readinessProbe") if probe in container]
            assert {probe["httpGet"]["port"] for probe in probes if "httpGet" in probe} <= named


@each_example
def test_no_container_may_do_more_than_it_must(name: str) -> None:
    found = list(pod_specs(all_objects(name)))
    assert found
    for pod, _, spec in found:
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, pod
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any(spec.get(shared) for shared in ("hostNetwork", "hostPID", "hostIPC"))
        assert spec["automountServiceAccountToken"] is ("operator" in pod)
        assert not any("hostPath" in volume for volume in spec.get("volumes", []))
        for container in containers(spec):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert re.search(r"[@:][^/]+$", container["image"]), "a tag or a digest"
            assert not container["image"].endswith(":latest")
            assert not [port for port in container.get("ports", []) if "hostPort" in port]


@each_example
def test_a_restart_is_asked_for_only_by_the_process_itself(name: str) -> None:
    """Liveness must not depend on the bucket or on SQL: a restart would mend neither. /livez says that the event loop turns."""
    for pod, _, spec in pod_specs(all_objects(name)):
        for container in spec["containers"]:
            liveness = [container[probe] for probe in ("livenessProbe", "startupProbe") if probe in container]
            assert all(probe["httpGet"]["path"] == "/livez" for probe in liveness), pod
            if "livenessProbe" in container:
                assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"operator-only"}))
def test_a_broker_has_the_time_that_it_needs_to_leave(name: str) -> None:
    manifests = objects(example(name))
    spec = read(ClusterSpec, cluster(manifests)["spec"])
    (pod,) = [each["spec"]["template"]["spec"] for each in brokers(manifests) if each["kind"] == "Deployment"]
    least = spec.drain.propagation_seconds + spec.drain.timeout_seconds + 30
    assert pod["terminationGracePeriodSeconds"] == grace_s(spec) >= least


def references(spec: Manifest) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Kind, name and keys of what a pod needs."""
    yield "ServiceAccount", spec.get("serviceAccountName", "default"), frozenset()
    for pull in spec.get("imagePullSecrets", []):
        yield "PullSecret", pull["name"], frozenset()
    for volume in spec.get("volumes", []):
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], frozenset(item["key"] for item in volume["secret"].get("items", []))
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], frozenset()
    for container in containers(spec):
        for variable in container.get("env", []):
            ref = variable.get("valueFrom", {}).get("secretKeyRef")
            if ref:
                yield "Secret", ref["name"], frozenset([ref["key"]])
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        there = {volume["name"] for volume in spec.get("volumes", [])}
        for name in mounted - there:
            yield "Claim", name, frozenset()


def given_by_hand(value: Any) -> set[str]:
    """Every text in an example's values: what it names exists."""
    if isinstance(value, dict):
        return set().union(*map(given_by_hand, value.values()))
    if isinstance(value, list):
        return set().union(*map(given_by_hand, value))
    return {value} if isinstance(value, str) else set()


@each_example
def test_what_pods_refer_to_exists_or_is_named_in_the_values(name: str) -> None:
    manifests = all_objects(name)
    by_hand = given_by_hand(example(name))
    secrets = {secret: frozenset(each["data"]) for secret, each in of_kind(manifests, "Secret").items()}
    claims = {template["metadata"]["name"] for each in manifests for template in each.get("spec", {}).get("volumeClaimTemplates", [])}
    for pod, _, spec in pod_specs(manifests):
        for kind, wanted, keys in references(spec):
            if kind == "Secret" and wanted in secrets:
                assert keys <= secrets[wanted], (pod, wanted)
            elif kind == "Claim":
                assert wanted in claims, (pod, wanted)
            else:
                assert wanted in {*of_kind(manifests, kind), *by_hand, *BROUGHT_ALONG}, (pod, kind, wanted)
    if of_kind(manifests, "TidelogCluster"):
        for wanted, keys in needed_secrets(read(ClusterSpec, cluster(manifests)["spec"])).items():
            assert keys <= secrets[wanted] if wanted in secrets else wanted in by_hand


def test_nothing_else_is_made_than_what_pods_refer_to() -> None:
    manifests = all_objects("default")
    used = {wanted for _, _, spec in pod_specs(manifests) for kind, wanted, _ in references(spec) if kind == "Secret"}
    assert used == set(of_kind(manifests, "Secret"))
    accounts = {wanted for _, _, spec in pod_specs(manifests) for kind, wanted, _ in references(spec) if kind == "ServiceAccount"}
    assert accounts - BROUGHT_ALONG == set(of_kind(manifests, "ServiceAccount"))


# ---- rights


def granted(role: Manifest) -> set[tuple[str, str, str]]:
    return {right for rule in role["rules"] for right in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])}


def rights(table: str) -> set[tuple[str, str, str]]:
    found = set()
    for line in table.strip().splitlines():
        group, resources, verbs = (cell.split() for cell in line.split("|"))
        found |= set(itertools.product(["" if each == "core" else each for each in group], resources, verbs))
    return found


NEEDED = rights("""
    tidelog.io | tidelogclusters                               | get list watch
    tidelog.io | tidelogtopics                                 | get list watch patch
    tidelog.io | tidelogclusters/status tidelogtopics/status   | patch
    tidelog.io | tidelogclusters/finalizers                    | update
    apps       | deployments                                   | get list watch create patch
    core       | services                                      | get list watch create patch delete
    policy     | poddisruptionbudgets                          | get list watch create patch delete
    core       | pods                                          | get list watch patch
    core       | secrets                                       | get
    core       | events                                        | create
""")
LEADING = rights("coordination.k8s.io | leases | get create update")


@each_example
def test_the_operator_may_do_what_it_does_and_nothing_else(name: str) -> None:
    manifests = objects(example(name))
    operator = [each for each in manifests if each["kind"] == "Deployment"]
    roles = {kind: of_kind(manifests, kind) for kind in ("Role", "ClusterRole")}
    if not operator:
        assert roles == {"Role": {}, "ClusterRole": {}}
        return
    account = operator[0]["spec"]["template"]["spec"]["serviceAccountName"]
    found: dict[str, set[tuple[str, str, str]]] = {}
    for kind in roles:
        for each in [each for each in manifests if each["kind"] == f"{kind}Binding"]:
            assert each["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]
            where = each["metadata"].get("namespace", "*")
            (role,) = [
                role
                for role in manifests
                if role["kind"] == kind == each["roleRef"]["kind"]
                and (role["metadata"]["name"], role["metadata"].get("namespace", "*")) == (each["roleRef"]["name"], where)
            ]
            found[where] = found.get(where, set()) | granted(role)
    wanted: dict[str, set[tuple[str, str, str]]] = {
        where: set(NEEDED) for where in example(name).get("operator", {}).get("namespaces", [NAMESPACE])
    }
    wanted[NAMESPACE] = wanted.get(NAMESPACE, set()) | LEADING
    assert found == wanted
    assert not any("*" in right for where in found for right in found[where])
    told = {each["name"]: each.get("value") for each in operator[0]["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert told["TIDELOG_OPERATOR_NAMESPACES"] == ("" if "*" in wanted else ",".join(where for where in wanted if wanted[where] >= NEEDED))


# ---- secrets


def test_the_certificate_is_valid_for_every_name_by_which_brokers_are_reached() -> None:
    manifests = objects({"tls": {"names": ["logs.example.com"], "validityDays": 30}})
    secret = content(of_kind(manifests, "Secret")["tidelog-tls"])
    authority = x509.load_pem_x509_certificate(secret["ca.crt"])
    certificate = x509.load_pem_x509_certificate(secret["tls.crt"])
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    listed = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    told = {
        each["name"]: each.get("value")
        for each in the(brokers(manifests), "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert {"tidelog.logs.svc", "localhost", "127.0.0.1", "logs.example.com", told["TIDELOG_TLS_PEER_NAME"]} <= listed
    assert 29 <= (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days <= 30


def test_secrets_are_other_ones_for_every_release() -> None:
    one, other = (of_kind(objects(), "Secret") for _ in range(2))
    assert set(one) == set(other) == {"tidelog-tls", "tidelog-tokens", "tidelog-trial-s3", "tidelog-trial-postgres"}
    for name in one:
        for key, value in content(one[name]).items():
            assert len(value) >= 20
            assert value != content(other[name])[key], (name, key)


def test_what_opens_a_volume_outlives_the_release_as_the_volume_does() -> None:
    manifests = objects()
    kept = {
        name
        for name, each in of_kind(manifests, "Secret").items()
        if each["metadata"].get("annotations") == {"helm.sh/resource-policy": "keep"}
    }
    assert kept == set(of_kind(manifests, "StatefulSet")) == {"tidelog-trial-s3", "tidelog-trial-postgres"}
    for each in of_kind(manifests, "StatefulSet").values():
        assert "persistentVolumeClaimRetentionPolicy" not in each["spec"], "by default claims are kept"
        (claim,) = each["spec"]["volumeClaimTemplates"]
        assert claim["metadata"]["name"] in {mount["name"] for mount in each["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]}


def test_no_pod_of_the_chart_shows_a_secret() -> None:
    manifests = objects()
    secrets = {
        value.decode() for each in of_kind(manifests, "Secret").values() for key, value in content(each).items() if key != "tokens.yaml"
    }
    shown = yaml.safe_dump([each for each in manifests if each["kind"] != "Secret"]) + notes()
    assert secrets
    assert not [secret for secret in secrets if secret in shown]


# ---- network


@pytest.mark.parametrize("name", ["network-policy", "network-policy-trial"])
def test_network_policies_let_through_what_is_needed_and_nothing_else(name: str) -> None:
    manifests = all_objects(name)
    policies = of_kind(manifests, "NetworkPolicy")
    pods = {labels["app.kubernetes.io/name"]: labels for _, labels, _ in pod_specs(manifests)}
    selected = {
        found
        for each in policies.values()
        for found, labels in pods.items()
        if each["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    }
    assert selected == set(pods) - {"tidelog-test"}, "every pod that stays"
    assert all(each["spec"]["policyTypes"] == ["Ingress", "Egress"] for each in policies.values())
    broker = policies["tidelog-broker"]["spec"]
    assert [rule["ports"][0]["port"] for rule in broker["ingress"]] == [LOG_PORT, 9596]
    out = {port["port"] for rule in broker["egress"] for port in rule["ports"]}
    assert out == ({53, 9595, 443, 5432} if name == "network-policy" else {53, 9595, 7070, 5432})
    for store, port in (("s3", 7070), ("postgres", 5432)):
        if name == "network-policy-trial":
            assert policies[f"tidelog-trial-{store}"]["spec"]["ingress"][0]["ports"] == [{"port": port}]
            assert "egress" not in policies[f"tidelog-trial-{store}"]["spec"], "stores call nobody"
    if name == "network-policy":
        first = broker["ingress"][0]["from"][0]
        assert first == {"namespaceSelector": {"matchLabels": {"tidelog.io/client": "true"}}}
        metrics = broker["ingress"][1]["from"][0]
        assert metrics == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


# ---- words


def test_notes_warn_of_what_is_not_for_production() -> None:
    assert "for trial only: tidelog-trial-s3 and tidelog-trial-postgres." in notes()
    assert "for trial only: tidelog-trial-postgres." in notes(example("keys"))
    assert "WARNING" not in notes(example("external"))
    plaintext = notes(example("plaintext"))
    assert "tls.enabled is false: what is sent can be read on its way. tokens.enabled is false: whoever reaches port 9595" in plaintext
    assert "tls.enabled is false" not in notes(example("mutual-tls"))
    assert "add --cert and --key" in notes(example("mutual-tls"))
    assert "looks after TidelogClusters in: *" in notes(example("operator-only"))
    assert "port-forward" not in notes(example("operator-only"))
