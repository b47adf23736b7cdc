"""The chart rendered by Helm itself, as lists of objects."""

import base64
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart
from tidelog_operator.observed import Cluster, SecretSeen
from tidelog_operator.reading import read
from tidelog_operator.resource import ClusterSpec, ClusterStatus
from tidelog_operator.resources import desired, needed_secrets

from tests.operator.admission import admitted

CHART = Path(__file__).parents[2] / "helm" / "tidelog"
EXAMPLES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
RELEASE, NAMESPACE = "tidelog", "logs"

Manifest = dict[str, Any]


@cache
def chart() -> Chart:
    return Chart.load(CHART)


def example(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(EXAMPLES[name].read_text())
    return found


def files(values: Mapping[str, Any] | None = None, *, release: str = RELEASE) -> dict[str, str]:
    rendered = chart().render(dict(values or {}), name=release, namespace=NAMESPACE)
    return {name.removeprefix("tidelog/templates/"): text for name, text in rendered.items()}


def objects(values: Mapping[str, Any] | None = None, *, release: str = RELEASE) -> list[Manifest]:
    texts = [text for name, text in files(values, release=release).items() if name != "NOTES.txt"]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def notes(values: Mapping[str, Any] | None = None) -> str:
    return files(values)["NOTES.txt"]


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def the(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = of_kind(manifests, kind).values()
    return found


def cluster(manifests: list[Manifest]) -> Manifest:
    """The TidelogCluster as the API server has it, with defaults; refused as there."""
    found = admitted(the(manifests, "TidelogCluster"))
    return dict(found)


def content(secret: Manifest) -> dict[str, bytes]:
    return {name: base64.b64decode(value) for name, value in secret["data"].items()}


def pod_specs(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Name, labels and spec of every pod that comes of these."""
    for each in manifests:
        if each["kind"] == "Pod":
            yield each["metadata"]["name"], each["metadata"]["labels"], each["spec"]
        elif "template" in each.get("spec", {}):
            template = each["spec"]["template"]
            yield each["metadata"]["name"], template["metadata"]["labels"], template["spec"]


def brokers(manifests: list[Manifest]) -> list[Manifest]:
    """What the operator makes of the TidelogCluster."""
    found = cluster(manifests)
    of = Cluster(
        name=found["metadata"]["name"],
        namespace=found["metadata"]["namespace"],
        uid="u",
        generation=1,
        spec=read(ClusterSpec, found["spec"]),
        status=ClusterStatus(),
    )
    secrets = {name: SecretSeen(keys=keys, checksum="c") for name, keys in needed_secrets(of.spec).items()}
    return [dict(each) for each in desired(of, secrets, replicas=of.spec.replicas)]
