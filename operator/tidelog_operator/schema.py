"""The custom resource definitions, made of the classes of `resource`."""

from dataclasses import MISSING, is_dataclass
from typing import Any, Literal, get_args, get_origin

from tidelog_operator.reading import QUANTITY, Field, fields_of, written
from tidelog_operator.resource import GROUP, VERSION, ClusterSpec, ClusterStatus, Condition, Quantity, Rule, TopicSpec, TopicStatus

_CLUSTER_NAME = (
    Rule(
        "self.metadata.name.size() <= 40",
        "the name is too long: those of its pods are made of it, and are brokers' ids; use at most 40 characters",
    ),
    Rule(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "the name becomes that of a Service and part of brokers' ids; use small letters, digits and -, a letter first",
    ),
)


def definitions() -> dict[str, dict[str, Any]]:
    """Return each definition by the name of its file."""
    cluster = _definition(
        "TidelogCluster",
        short_name="tlc",
        schema=_root("A commit log on object storage.", ClusterSpec, ClusterStatus, _CLUSTER_NAME),
        scale={"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"},
        columns=(
            ("Wanted", "integer", ".spec.replicas", 0),
            ("Ready", "integer", ".status.readyReplicas", 0),
            ("Status", "string", ".status.conditions[?(@.type=='Ready')].reason", 0),
            ("Draining", "string", ".status.drainingBrokers", 1),
            ("Image", "string", ".spec.image", 1),
        ),
    )
    topic = _definition(
        "TidelogTopic",
        short_name="tlt",
        schema=_root("A topic of a TidelogCluster.", TopicSpec, TopicStatus, ()),
        scale=None,
        columns=(
            ("Cluster", "string", ".spec.clusterRef", 0),
            ("Partitions", "integer", ".status.partitions", 0),
            ("Ready", "string", ".status.conditions[?(@.type=='Ready')].status", 0),
            ("Id", "string", ".status.topicId", 1),
        ),
    )
    return {"tidelogclusters.yaml": cluster, "tidelogtopics.yaml": topic}


def _definition(
    kind: str,
    *,
    short_name: str,
    schema: dict[str, Any],
    scale: dict[str, str] | None,
    columns: tuple[tuple[str, str, str, int], ...],
) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    shown = [{"name": name, "type": of, "jsonPath": path, "priority": priority} for name, of, path, priority in columns]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower(), "shortNames": [short_name]},
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}} | ({"scale": scale} if scale else {}),
                    "additionalPrinterColumns": [
                        *shown,
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp", "priority": 0},
                    ],
                }
            ],
        },
    }


def _root(text: str, spec: type, status: type, rules: tuple[Rule, ...]) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "description": text,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _object(spec),
            "status": _object(status, defaults=False),
        },
    }
    return schema | _validations(rules)


def _validations(rules: tuple[Rule, ...]) -> dict[str, Any]:
    return {"x-kubernetes-validations": [{"rule": each.rule, "message": each.message} for each in rules]} if rules else {}


def _object(kind: Any, *, defaults: bool = True) -> dict[str, Any]:
    of = fields_of(kind)
    schema: dict[str, Any] = {"type": "object", "properties": {each.json_name: _field(each, defaults=defaults) for each in of}}
    required = [each.json_name for each in of if each.required]
    return schema | ({"required": required} if required else {}) | _validations(getattr(kind, "rules", ()))


def _field(field: Field, *, defaults: bool) -> dict[str, Any]:
    doc = field.doc
    schema = {"description": doc.text} | _type(field.type, defaults=defaults)
    most = "maxProperties" if schema.get("type") == "object" else "maxItems"
    limits = {"minimum": doc.minimum, "maximum": doc.maximum, "pattern": doc.pattern, "maxLength": doc.max_length, most: doc.max_items}
    schema |= {name: limit for name, limit in limits.items() if limit is not None}
    if defaults and field.default is not MISSING and field.default is not None:
        # What an object's own fields have by default need not be said twice.
        schema["default"] = {} if is_dataclass(field.type) and field.default == type(field.default)() else written(field.default)
    return schema


def _type(kind: Any, *, defaults: bool) -> dict[str, Any]:
    origin = get_origin(kind)
    if is_dataclass(kind):
        return _object(kind, defaults=defaults)
    if origin is Literal:
        return {"type": "string", "enum": list(get_args(kind))}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(get_args(kind)[1], defaults=defaults) | {"maxLength": 1000}}
    if origin is tuple:
        (item, _) = get_args(kind)
        keyed = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]} if item is Condition else {}
        return {"type": "array", "items": _type(item, defaults=defaults)} | keyed
    if kind is Quantity:
        return {"anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": QUANTITY.pattern, "x-kubernetes-int-or-string": True}
    return {"type": {str: "string", bool: "boolean", int: "integer", float: "number"}[kind]}
