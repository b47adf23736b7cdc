"""What an API server does with an object of a custom resource before it is stored: defaults, unknown fields, schema, rules in CEL.

Written after the documentation of Kubernetes' structural schemas; CEL is run by an implementation of it.
"""

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import cel
import jsonschema
import yaml

CRDS = Path(__file__).parents[2] / "helm/tidelog/crds"


class Refused(Exception):
    """What kubectl would print."""


@cache
def definition(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CRDS / f"{kind.lower()}s.yaml").read_text())
    return found


def schema_of(kind: str) -> dict[str, Any]:
    (version,) = definition(kind)["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def admitted(given: Mapping[str, Any], old: Mapping[str, Any] | None = None, *, strict: bool = True) -> dict[str, Any]:
    """Return an object as it would be stored. `strict` refuses unknown fields, as kubectl asks for; else they are dropped."""
    schema = schema_of(given["kind"])
    new: dict[str, Any] = copy.deepcopy(dict(given))
    unknown = list(_prune(new, schema, ""))
    if unknown and strict:
        raise Refused(", ".join(f'unknown field "{path}"' for path in unknown))
    _default(new, schema)
    problems = [f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(new)]
    if not problems:  # rules are asked only of what fits the schema
        problems += _broken_rules(schema, new, old)
    if problems:
        raise Refused("; ".join(problems))
    return new


def _prune(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if isinstance(value, dict) and path == "metadata":
        return  # the API server's own
    if isinstance(value, dict) and "properties" in schema:
        for name in list(value):
            where = f"{path}.{name}".lstrip(".")
            if name in schema["properties"]:
                yield from _prune(value[name], schema["properties"][name], where)
            else:
                del value[name]
                yield where
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _prune(each, schema.get("additionalProperties", {}), f"{path}.{name}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _prune(each, schema.get("items", {}), f"{path}[{index}]")


def _default(value: Any, schema: Mapping[str, Any]) -> None:
    if isinstance(value, dict):
        for name, each in schema.get("properties", {}).items():
            if value.get(name) is None:
                value.pop(name, None)
                if "default" in each:
                    value[name] = copy.deepcopy(each["default"])
            if name in value:
                _default(value[name], each)
    elif isinstance(value, list):
        for item in value:
            _default(item, schema.get("items", {}))


def _broken_rules(schema: Mapping[str, Any], value: Any, old: Any) -> Iterator[str]:
    for each in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in each["rule"] and old is None:
            continue  # only asked where there was one before
        if not cel.evaluate(each["rule"], {"self": value, "oldSelf": old}):
            yield each["message"]
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield from _broken_rules(inner, value[name], old.get(name) if isinstance(old, Mapping) else None)
