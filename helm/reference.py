"""Makes the chart's values.schema.json and README.md, of its values.yaml and of the custom resource definitions, and its dashboards.

`make chart` runs it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tidelog_operator.schema import definitions

from helm.dashboards import DASHBOARDS, rendered

CHART = Path(__file__).parent / "tidelog"
_LINE = re.compile(r"( *)(?:# ?(.*)|([A-Za-z]\w*):.*)")
_SCHEMA = "@schema "
_DECIDED_ELSEWHERE = {"image", "imagePullSecrets", "serviceAccountName", "tls", "tokens"}
"""Fields of a TidelogCluster that other values decide."""

INTRODUCTION = """\
# Chart of Tidelog

Made from `values.yaml` by `make chart`. [docs/operations.md](../../docs/operations.md) says how to install, size, upgrade, back up and
secure it.

`helm install tidelog helm/tidelog` brings, by default, the operator, one cluster of three brokers with TLS and tokens, and an S3 store and
a PostgreSQL *for trial*: one pod each, on a volume, without a backup. Each is switched off with one value (`trial.s3.enabled`,
`trial.postgres.enabled`), and then `cluster.spec` names what takes its place. Unknown values are refused, as are those that contradict each
other. `ci/` has an example for each feature.

| value | default | |
|---|---|---|"""


@dataclass(frozen=True, slots=True)
class Value:
    """One value: its path, what is said of it, and what its schema has beyond its default's type."""

    path: tuple[str, ...]
    text: str
    schema: Mapping[str, Any]


def described(source: str) -> Iterator[Value]:
    """Yield every value that has a comment, in the file's order."""
    path: list[tuple[int, str]] = []
    said: list[str] = []
    for line in source.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            said = []
            continue
        indent, comment, key = len(found[1]), found[2], found[3]
        if comment is not None:
            said.append(comment)
            continue
        path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key)]
        text = " ".join(each for each in said if not each.startswith(_SCHEMA))
        schema: dict[str, Any] = {}
        for each in said:
            if each.startswith(_SCHEMA):
                schema |= json.loads(each.removeprefix(_SCHEMA))
        if said:
            yield Value(tuple(name for _, name in path), text, schema)
        said = []


def schema(source: str) -> dict[str, Any]:
    """Return what values must keep to. Whatever is not listed is refused."""
    values = {value.path: value for value in described(source)}
    root = _schema_of(yaml.safe_load(source), (), values)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of the chart of Tidelog", "$defs": _shared()} | root


def _schema_of(default: Any, path: tuple[str, ...], values: Mapping[tuple[str, ...], Value]) -> dict[str, Any]:
    value = values.get(path)
    more = dict(value.schema) if value else {}
    said = {"description": value.text} if value else {}
    if "$ref" in more:
        return said | more
    if isinstance(default, dict):
        inner = (
            {name: _schema_of(each, (*path, name), values) for name, each in default.items()} if "additionalProperties" not in more else {}
        )
        return said | {"type": "object", "additionalProperties": False} | ({"properties": inner} if inner else {}) | more
    if isinstance(default, list):
        return said | {"type": "array", "items": {"type": "string"}} | more
    return said | {"type": {bool: "boolean", int: "integer", str: "string"}[type(default)]} | more


def _shared() -> dict[str, Any]:
    quantity = {"type": ["string", "integer", "number"]}
    amounts = {"type": "object", "additionalProperties": False, "properties": {"cpu": quantity, "memory": quantity}}
    resources = {"type": "object", "additionalProperties": False, "properties": {"requests": amounts, "limits": amounts}}
    versions = definitions()["tidelogclusters.yaml"]["spec"]["versions"]
    spec = _closed(versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"])
    spec["properties"] = {name: field for name, field in spec["properties"].items() if name not in _DECIDED_ELSEWHERE}
    return {"resources": resources, "clusterSpec": spec}


def _closed(node: Any) -> Any:
    """Return a definition's schema as JSON Schema that refuses unknown fields; what is missing the API server fills in, or the chart."""
    if not isinstance(node, dict):
        return node
    if "properties" in node:
        fields = {name: _closed(each) for name, each in node["properties"].items()}
        rest = {name: node[name] for name in ("type", "description") if name in node}
        return rest | {"additionalProperties": False, "properties": fields}
    return {name: _closed(each) for name, each in node.items() if name != "default" and not name.startswith("x-kubernetes-")}


def readme(source: str) -> Iterator[str]:
    """Yield the lines of README.md."""
    yield INTRODUCTION
    defaults = yaml.safe_load(source)
    for value in described(source):
        default: Any = defaults
        for name in value.path:
            default = default[name]
        shown = json.dumps(default) if not isinstance(default, dict) or not default or "$ref" not in value.schema else "see values.yaml"
        yield f"| `{'.'.join(value.path)}` | `{shown}` | {value.text} |".replace("`see values.yaml`", "see values.yaml")


def files() -> dict[str, str]:
    """Return what is made, by name."""
    source = (CHART / "values.yaml").read_text(encoding="utf-8")
    dashboards = {f"dashboards/{name}.json": rendered(dashboard) for name, dashboard in DASHBOARDS.items()}
    return dashboards | {
        "values.schema.json": json.dumps(schema(source), indent=1, ensure_ascii=False) + "\n",
        "README.md": "\n".join(readme(source)) + "\n",
    }


if __name__ == "__main__":
    for name, text in files().items():
        (CHART / name).write_text(text, encoding="utf-8")
