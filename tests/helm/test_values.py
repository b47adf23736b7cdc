"""What values the chart takes, and what it says of others."""

import copy
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from helm_python import lint
from helm_python.errors import HelmRenderError, HelmValuesError

from helm.reference import described
from helm.reference import files as made
from tests.helm.rendering import CHART, EXAMPLES, chart, cluster, example, objects

DATABASE = {"metadataStore": {"urlSecretRef": {"name": "database"}}}
OUTSIDE = {"trial": {"s3": {"enabled": False}, "postgres": {"enabled": False}}}


def test_readme_and_schema_are_made_of_values_yaml() -> None:
    for name, text in made().items():
        assert (CHART / name).read_text() == text, f"{name} is out of date: make chart"


def test_every_value_says_what_it_means() -> None:
    said = {value.path: value.text for value in described((CHART / "values.yaml").read_text())}

    def leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if path in said or not isinstance(value, dict):
            yield path
        else:
            for name, each in value.items():
                yield from leaves(each, (*path, name))

    assert set(leaves(yaml.safe_load((CHART / "values.yaml").read_text()), ())) == set(said)
    assert all(text.endswith(".") for text in said.values())


def test_the_chart_is_of_this_version() -> None:
    assert chart().metadata["appVersion"] == version("tidelog")


@pytest.mark.parametrize("name", EXAMPLES)
def test_helm_finds_nothing_to_complain_of(name: str) -> None:
    report = lint(CHART, example(name), strict=True, kube_version="v1.30.0")
    assert [each for each in report["messages"] if each["error"] != "icon is recommended"] == []
    assert report["errors"] == []
    assert report["total_charts_linted"] == 1


def test_the_linter_would_say_so() -> None:
    assert "unheardOf" in str(lint(CHART, {"unheardOf": 1}, strict=True)["errors"])


def closed_objects(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every object whose fields are fixed."""
    root = chart().schema or {}
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if schema.get("additionalProperties") is False:
        yield path
    for name, each in schema.get("properties", {}).items():
        yield from closed_objects(each, (*path, name))


def test_unknown_values_are_refused_at_every_level() -> None:
    paths = list(closed_objects(chart().schema or {}))
    assert ("cluster", "spec", "autoscaling", "targets") in paths
    assert ("trial", "s3", "storage") in paths
    assert len(paths) > 40
    for path in paths:
        values: dict[str, Any] = {}
        inner = values
        for name in path:
            inner = inner.setdefault(name, {})
        inner["unheardOf"] = 1
        with pytest.raises(HelmValuesError, match="unheardOf"):
            chart().validate_schema(values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"operator": {"replicas": 0}}, "replicas"),
        ({"operator": {"replicas": "2"}}, "replicas"),
        ({"operator": {"logLevel": "verbose"}}, "logLevel"),
        ({"image": {"digest": "sha256:1"}}, "digest"),
        ({"cluster": {"name": "Logs"}}, "name"),
        ({"cluster": {"spec": {"image": "other"}}}, "image"),
        ({"cluster": {"spec": {"tls": {}}}}, "tls"),
        ({"cluster": {"spec": {"replicas": 0}}}, "replicas"),
        ({"cluster": {"spec": {"config": {"segment_bytes": 5}}}}, "segment_bytes"),
        ({"cluster": {"spec": {"storage": {"bucket": "NoBucket"}}}}, "bucket"),
        ({"monitoring": {"serviceMonitor": {"interval": "often"}}}, "interval"),
        ({"commonLabels": {"a": 1}}, "commonLabels"),
    ],
)
def test_values_of_a_wrong_kind_are_refused_by_name(values: dict[str, Any], told: str) -> None:
    with pytest.raises(HelmValuesError, match=told):
        objects(values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"cluster": {"spec": {"storage": {"bucket": "mine"}}}}, 'bucket is "mine", but trial.s3.enabled is true'),
        ({"trial": {"s3": {"enabled": False}}}, "cluster.spec.storage.bucket names no bucket"),
        ({"cluster": {"spec": DATABASE}}, 'urlSecretRef.name is "database", but trial.postgres.enabled is true'),
        ({"trial": {"postgres": {"enabled": False}}}, "names no Secret with a database's URL"),
        ({"tls": {"clientCertificates": True}}, "issues no certificates for clients"),
        ({"tls": {"clientCertificates": True, "enabled": False, "secretName": "a"}}, "issues no certificates for clients"),
        ({"hpa": {"enabled": True}, "cluster": {"spec": {"autoscaling": {"enabled": True}}}}, "two may not decide how many brokers"),
        ({"hpa": {"minReplicas": 11}}, "hpa.minReplicas is 11, which is more than hpa.maxReplicas, 10"),
        ({"cluster": {"spec": {"autoscaling": {"minReplicas": 12}}}}, "minReplicas is 12, which is more than maxReplicas, 10"),
        ({"cluster": {"create": False}}, "there is nothing that hpa, externalService, trial.s3 and trial.postgres could be for"),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_a_sentence_that_says_what_to_do(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmRenderError, match=re.escape(sentence)) as refused:
        objects(values)
    assert re.search(r"\b(Set|Make|Name|Lower)\b", str(refused.value))


def test_what_values_say_of_the_cluster_is_what_its_spec_says() -> None:
    spec = cluster(objects(example("external")))["spec"]
    assert spec["image"].startswith("registry.example.com/tidelog@sha256:")
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["storage"] == {"bucket": "example-logs", "prefix": "production", "region": "eu-central-1", "endpoint": ""}
    assert spec["metadataStore"]["urlSecretRef"] == {"name": "database", "key": "uri"}
    assert (spec["replicas"], spec["resources"]["requests"]) == (6, {"cpu": 2, "memory": "2Gi"})
    assert (spec["tls"]["secretRef"]["name"], spec["tokens"]["secretRef"]["name"]) == ("logs-certificate", "logs-tokens")
    assert spec["serviceAccountName"] == "tidelog-broker"
    assert spec["config"] == {"segment_bytes": "16777216"}, "nothing of the trial's store"


def test_who_scales_decides_alone_how_many_brokers_there_are() -> None:
    """An upgrade must not set back what an autoscaler has set."""
    hpa = objects(example("hpa"))
    given = next(each for each in hpa if each["kind"] == "TidelogCluster")
    assert "replicas" not in given["spec"]
    assert cluster(hpa)["spec"]["autoscaling"]["enabled"] is False
    assert cluster(objects(example("autoscaling")))["spec"]["autoscaling"]["enabled"] is True


def test_values_are_not_changed_by_being_rendered() -> None:
    values = example("external")
    before = copy.deepcopy(values)
    objects(values)
    assert values == before
