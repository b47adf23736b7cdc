"""Objects of the API server as objects of `resource`, and back."""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from tidelog_operator.resource import Doc, Quantity

T = TypeVar("T")


class Unreadable(Exception):
    """An object that is not what this operator's definitions say; its text is a sentence for a condition."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a class of `resource`."""

    name: str
    json_name: str
    type: Any
    """Without its Doc, and without None where that only says that it may be absent."""
    doc: Doc
    required: bool
    optional: bool
    default: Any
    """MISSING where there is none."""


def camel(name: str) -> str:
    """Return retention_bytes as retentionBytes."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _fields_of(kind: Any) -> tuple[Field, ...]:
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for each in fields(kind):
        declared, doc = get_args(hints[each.name])
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        inner = [one for one in get_args(declared) if one is not NoneType] if NoneType in get_args(declared) else [declared]
        assert len(inner) == 1, f"{kind.__name__}.{each.name} may be several things"
        found.append(Field(each.name, camel(each.name), inner[0], doc, default is MISSING, inner[0] is not declared, default))
    return tuple(found)


fields_of: Callable[[Any], tuple[Field, ...]] = cache(_fields_of)
"""Returns the fields of a class of `resource`."""


def read(kind: type[T], given: Any, path: str = "spec") -> T:
    """Return an object of the API server as one of `kind`. Raises Unreadable."""
    if not isinstance(given, Mapping):
        raise Unreadable(f"{path} is {given!r}, but should be an object")
    known = {each.json_name: each for each in fields_of(kind)}
    for name in given:
        if name not in known:
            raise Unreadable(f"{path}.{name} is nothing that this operator knows; remove it, or upgrade the operator")
    values = {}
    for each in known.values():
        value = given.get(each.json_name)
        if value is not None:
            values[each.name] = _value(each.type, value, f"{path}.{each.json_name}")
        elif each.required:
            raise Unreadable(f"{path}.{each.json_name} is missing; it is {each.doc.text[0].lower()}{each.doc.text[1:]}")
    return kind(**values)


def _value(kind: Any, given: Any, path: str) -> Any:
    origin = get_origin(kind)
    if is_dataclass(kind):
        return read(kind, given, path)  # type: ignore[arg-type]  # a class, never an object of it
    if origin is tuple and isinstance(given, list):
        return tuple(_value(get_args(kind)[0], each, f"{path}[{index}]") for index, each in enumerate(given))
    if origin is dict and isinstance(given, Mapping):
        return {str(name): _value(get_args(kind)[1], each, f"{path}.{name}") for name, each in given.items()}
    if origin is Literal and given in get_args(kind):
        return given
    if kind is Quantity and isinstance(given, str | int) and not isinstance(given, bool) and QUANTITY.fullmatch(str(given)):
        return Quantity(str(given))
    if kind is float and isinstance(given, int | float) and not isinstance(given, bool):
        return float(given)
    if kind in (str, bool, int) and type(given) is kind:
        return given
    raise Unreadable(f"{path} is {given!r}, but should be {_said(kind)}")


def _said(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", Quantity: "a quantity as in 500m or 1Gi"}
    return names.get(kind, "a list" if get_origin(kind) is tuple else "an object")


def written(value: Any) -> Any:
    """Return an object of a class of `resource` as the API server has it; what is absent is left out."""
    if is_dataclass(value):
        named = {each.json_name: getattr(value, each.name) for each in fields_of(type(value))}
        return {name: written(each) for name, each in named.items() if each is not None}
    if isinstance(value, tuple):
        return [written(each) for each in value]
    return dict(value) if isinstance(value, dict) else value


QUANTITY = re.compile(r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")
_FACTORS = {
    "": 1.0, "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip


def amount(quantity: Quantity) -> float:
    """Return a quantity as a number: 500m is 0.5, 1Ki is 1024."""
    found = QUANTITY.fullmatch(quantity)
    assert found, "what was read is a quantity"
    return float(found[1]) * _FACTORS[found[3] or ""]
