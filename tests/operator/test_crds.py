"""The custom resource definitions, the classes they are made of, and what an API server would let through."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tidelog.config import Settings
from tidelog_operator.commands import rendered
from tidelog_operator.reading import Unreadable, amount, fields_of, read, written
from tidelog_operator.resource import RESERVED_SETTINGS, ClusterSpec, ClusterStatus, MetadataStore, Quantity, Storage, TopicSpec
from tidelog_operator.resource import SecretKey as Key
from tidelog_operator.schema import definitions

from tests.operator.admission import CRDS, Refused, admitted, definition, schema_of

KINDS: dict[str, type[Any]] = {"TidelogCluster": ClusterSpec, "TidelogTopic": TopicSpec}


def cluster(name: str = "logs", **spec: Any) -> dict[str, Any]:
    least = {"image": "tidelog:1", "storage": {"bucket": "bucket"}, "metadataStore": {"urlSecretRef": {"name": "database"}}}
    return {"apiVersion": "tidelog.io/v1alpha1", "kind": "TidelogCluster", "metadata": {"name": name}, "spec": least | spec}


def topic(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "tidelog.io/v1alpha1", "kind": "TidelogTopic", "metadata": {"name": "t"}, "spec": {"clusterRef": "logs"} | spec}


def parts(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from parts(each, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from parts(schema[name], f"{path}[]")


# ---- the files


@pytest.mark.parametrize("name", sorted(definitions()))
def test_the_charts_definitions_are_those_of_the_code(name: str) -> None:
    assert (CRDS / name).read_text() == rendered(definitions()[name]), "make crds writes them"
    assert {path.name for path in CRDS.iterdir()} == set(definitions())


def test_the_command_prints_them_for_kubectl() -> None:
    done = subprocess.run([sys.executable, "-m", "tidelog_operator", "crds"], capture_output=True, text=True, check=True)
    assert [each["metadata"]["name"] for each in yaml.safe_load_all(done.stdout)] == [
        "tidelogclusters.tidelog.io",
        "tidelogtopics.tidelog.io",
    ]


def test_the_command_writes_them_into_a_folder(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "tidelog_operator", "crds", "--directory", str(tmp_path)], check=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {path.name: path.read_text() for path in CRDS.iterdir()}


# ---- the definitions


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_is_named_as_the_api_server_wants_it(kind: str) -> None:
    spec = definition(kind)["spec"]
    assert definition(kind)["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"
    (version,) = spec["versions"]
    assert (spec["group"], spec["scope"], version["name"]) == ("tidelog.io", "Namespaced", "v1alpha1")
    assert (version["served"], version["storage"], "status" in version["subresources"]) == (True, True, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_structural_and_keeps_nothing_that_it_does_not_name(kind: str) -> None:
    for path, part in parts(schema_of(kind)):
        assert "x-kubernetes-preserve-unknown-fields" not in part, path
        assert "$ref" not in part, path
        assert ("type" in part) != part.get("x-kubernetes-int-or-string", False), path
        if part.get("type") == "array":
            assert "items" in part, path
            assert "maxItems" in part, f"rules over {path} would cost without a limit"
        if part.get("type") == "object" and path != ".metadata":
            assert ("properties" in part) != ("additionalProperties" in part), path
        jsonschema.Draft202012Validator.check_schema(part)


@pytest.mark.parametrize("kind", KINDS)
def test_kubectl_explains_every_field(kind: str) -> None:
    for name in ("spec", "status"):
        for path, part in parts(schema_of(kind)["properties"][name]):
            if path and not path.endswith("[]"):
                assert re.fullmatch(r"[A-Z].+\.", part.get("description", "")), path


@pytest.mark.parametrize("kind", KINDS)
def test_columns_and_scale_show_fields_that_are_there(kind: str) -> None:
    (version,) = definition(kind)["spec"]["versions"]
    paths = {path for path, _ in parts(schema_of(kind))} | {".metadata.creationTimestamp"}
    shown = [re.sub(r"\[\?.*?\]", "[]", column["jsonPath"]) for column in version["additionalPrinterColumns"]]
    scale = version["subresources"].get("scale", {})
    assert {*shown, *scale.values()} <= paths
    assert bool(scale) == (kind == "TidelogCluster")


def test_settings_that_the_spec_decides_are_settings() -> None:
    assert set(RESERVED_SETTINGS) <= set(Settings.model_fields)


# ---- what is let through


def test_the_api_server_fills_in_what_the_classes_have_by_default() -> None:
    spec = ClusterSpec(
        image="tidelog:1", storage=Storage(bucket="bucket"), metadata_store=MetadataStore(url_secret_ref=Key(name="database"))
    )
    stored = admitted(cluster())["spec"]
    assert read(ClusterSpec, stored) == spec
    assert stored == written(spec)
    stored = admitted(topic())["spec"]
    assert read(TopicSpec, stored) == TopicSpec(cluster_ref="logs")
    assert stored == written(TopicSpec(cluster_ref="logs"))


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no bucket", cluster(storage={}), "'bucket' is a required property"),
    ("an unknown field", cluster(replica=3), 'unknown field "spec.replica"'),
    ("an unknown field below", cluster(drain={"timeout": 3}), 'unknown field "spec.drain.timeout"'),
    ("no broker", cluster(replicas=0), "0 is less than the minimum of 1"),
    ("a number as text", cluster(replicas="3"), "'3' is not of type 'integer'"),
    ("min > max", cluster(autoscaling={"minReplicas": 5, "maxReplicas": 3}), "minReplicas is larger than maxReplicas; lower the first"),
    ("min > the default of max", cluster(autoscaling={"minReplicas": 11}), "minReplicas is larger than maxReplicas"),
    ("a reserved setting", cluster(config={"bucket": "s3://b"}), "config sets what other fields of the spec decide"),
    ("a number as a setting", cluster(config={"lease_ms": 5000}), "5000 is not of type 'string'"),
    ("a strange quantity", cluster(resources={"requests": {"cpu": "many"}}), "'many' does not match"),
    ("another way with stale metrics", cluster(autoscaling={"onStaleMetrics": "Guess"}), "'Guess' is not one of ['Hold']"),
    ("a long name", cluster(name="a" * 41), "the name is too long"),
    ("a name with dots", cluster(name="a.b"), "use small letters, digits and -"),
    ("no cluster", {"kind": "TidelogTopic", "metadata": {"name": "t"}, "spec": {}}, "'clusterRef' is a required property"),
    ("a strange duration", topic(retention="a week"), "'a week' does not match"),
]


@pytest.mark.parametrize(("given", "sentence"), [each[1:] for each in BAD], ids=[each[0] for each in BAD])
def test_a_bad_spec_is_refused_with_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused, match=re.escape(sentence)):
        admitted(given)


BAD_CHANGES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("bucket", cluster(), cluster(storage={"bucket": "other"}), "bucket was to be changed, but keeps its first value"),
    ("prefix", cluster(), cluster(storage={"bucket": "bucket", "prefix": "p"}), "prefix was to be changed, but keeps its first value"),
    ("cluster", topic(), topic(clusterRef="other"), "clusterRef was to be changed, but keeps its first value"),
    ("name", topic(topicName="a"), topic(), "topicName was to be changed, but keeps its first value"),
    ("partitions", topic(partitions=3), topic(partitions=2), "a topic cannot have fewer than before"),
    ("partitions left out", topic(partitions=3), topic(), "a topic cannot have fewer than before"),
]


@pytest.mark.parametrize(("old", "new", "sentence"), [each[1:] for each in BAD_CHANGES], ids=[each[0] for each in BAD_CHANGES])
def test_a_bad_change_is_refused_with_a_sentence(old: dict[str, Any], new: dict[str, Any], sentence: str) -> None:
    stored = admitted(old)
    assert admitted(old, stored) == stored
    with pytest.raises(Refused, match=re.escape(sentence)):
        admitted(new, stored)


@pytest.mark.parametrize(
    ("old", "new"), [(cluster(), cluster(replicas=9, image="tidelog:2")), (topic(partitions=2), topic(partitions=3, retention="7d"))]
)
def test_what_may_change_is_let_through(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert admitted(new, admitted(old))["spec"] == admitted(new)["spec"]


def test_without_strictness_unknown_fields_are_dropped() -> None:
    assert admitted(cluster(replica=3), strict=False) == admitted(cluster())


# ---- schema and classes


def values(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of a class of `resource`, as JSON: most keep to its limits."""
    named = {each.json_name: _value(each.type, each.doc) for each in fields_of(kind)}
    required = {each.json_name for each in fields_of(kind) if each.required}
    return st.fixed_dictionaries({name: named[name] for name in required}, optional={name: named[name] for name in set(named) - required})


def _value(kind: Any, doc: Any) -> st.SearchStrategy[Any]:
    if is_dataclass(kind):
        return values(kind)
    origin = get_origin(kind)
    if origin is tuple:
        return st.lists(_value(get_args(kind)[0], doc), max_size=2)
    if origin is dict:
        return st.dictionaries(st.sampled_from(["lease_ms", "segment_bytes", "bucket"]), st.text(max_size=5), max_size=2)
    if origin is Literal:
        return st.sampled_from([*get_args(kind), "Other"])
    strange: st.SearchStrategy[Any] = st.sampled_from([None, 0, "", True, 1.5, "x", [], {}])
    usual: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(doc.minimum, doc.maximum),
        float: st.floats(doc.minimum or 0, doc.maximum or 1),
        Quantity: st.sampled_from(["500m", 2, "1.5", "1Gi", "-1"]),
        str: st.from_regex(doc.pattern, fullmatch=True) if doc.pattern else st.text(max_size=5),
    }
    return st.integers(0, 40).flatmap(lambda dice: strange if dice == 0 else usual[kind])


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # many patterns, on a machine that may be busy
@given(data=st.data())
def test_what_the_api_server_stores_the_operator_reads_and_writes_back(kind: str, data: st.DataObject) -> None:
    spec = data.draw(values(KINDS[kind]))
    try:
        stored = admitted({"kind": kind, "metadata": {"name": "a"}, "spec": spec})["spec"]
    except Refused:
        event("refused")
        return
    event("stored")
    once: Any = read(KINDS[kind], stored)
    again = admitted({"kind": kind, "metadata": {"name": "a"}, "spec": written(once)})["spec"]
    assert read(KINDS[kind], again) == once


def test_a_status_is_written_as_its_schema_says() -> None:
    validator = jsonschema.Draft202012Validator(schema_of("TidelogCluster")["properties"]["status"])
    validator.validate(written(ClusterStatus()))
    assert read(ClusterStatus, written(ClusterStatus(draining_brokers=("a",))), "status").draining_brokers == ("a",)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"clusterRef": "a", "replicas": 3}, "spec.replicas is nothing that this operator knows; remove it, or upgrade the operator"),
        ({}, "spec.clusterRef is missing; it is name of a TidelogCluster"),
        ({"clusterRef": "a", "partitions": True}, "spec.partitions is True, but should be a whole number"),
        ({"clusterRef": "a", "deletionPolicy": "Keep"}, "spec.deletionPolicy is 'Keep', but should be Retain or Delete"),
        ([], "spec is [], but should be an object"),
    ],
)
def test_an_object_of_another_definition_is_unreadable_and_says_why(spec: Any, sentence: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(sentence)):
        read(TopicSpec, spec)


@pytest.mark.parametrize(("text", "number"), [("500m", 0.5), ("2", 2), ("1Ki", 1024), ("1.5Gi", 1.5 * 2**30), ("1k", 1000)])
def test_quantities_are_numbers(text: str, number: float) -> None:
    assert amount(Quantity(text)) == number
