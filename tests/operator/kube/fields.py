"""Server-side apply: which manager owns which fields of an object, and what applying does to them.

Written after the documentation of Kubernetes' server-side apply. A field is a path of names; an item of a list that is a map is
named by its key; any other list is one value. A path's value is a leaf: a number, a text, a whole list, an empty object.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[Any, ...]
Owned = dict[Path, Any]

LIST_KEYS: dict[str, tuple[tuple[str, Any], ...]] = {
    "containers": (("name", None),),
    "env": (("name", None),),
    "volumes": (("name", None),),
    "volumeMounts": (("mountPath", None),),
    "imagePullSecrets": (("name", None),),
    "conditions": (("type", None),),
    "ownerReferences": (("uid", None),),
    "topologySpreadConstraints": (("topologyKey", None), ("whenUnsatisfiable", None)),
    "ports": (("containerPort", None), ("port", None), ("protocol", "TCP")),
}
"""Lists that are maps by these fields; a field that is absent stands for the default beside it."""
_NOT_OWNED = (
    ("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace"), ("metadata", "uid"), ("metadata", "resourceVersion"),
    ("metadata", "generation"), ("metadata", "creationTimestamp"), ("metadata", "deletionTimestamp"), ("metadata", "managedFields"),
    ("metadata", "generateName"), ("metadata", "deletionGracePeriodSeconds"),
)  # fmt: skip


class Key(tuple[tuple[str, Any], ...]):
    """Names an item of a list."""


def key_of(name: str, item: Any) -> Key | None:
    fields = LIST_KEYS.get(name)
    if fields is None or not isinstance(item, Mapping):
        return None
    found = tuple((field, item.get(field, default)) for field, default in fields if field in item or default is not None)
    return Key(found) if found else None


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every leaf of an object, those that nobody owns apart."""
    if path in _NOT_OWNED:
        return
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from leaves(each, (*path, name))
    elif isinstance(value, list) and value and path and all(key_of(str(path[-1]), item) is not None for item in value):
        for item in value:
            yield from leaves(item, (*path, key_of(str(path[-1]), item)))
    else:
        yield path, value


def put(target: dict[str, Any], path: Path, value: Any) -> None:
    """Set a leaf."""
    where: Any = target
    for step, then in zip(path, (*path[1:], None), strict=True):
        if then is None:
            if value == {} and isinstance(where.get(step), dict):
                return  # that there is such a thing is all that was said
            where[step] = copy.deepcopy(value)
        elif isinstance(step, Key):
            where = _item(where, step)
        elif isinstance(then, Key):
            if not isinstance(where.get(step), list):
                where[step] = []
            items = where[step]
            if not any(key_of(step, item) == then for item in items):
                items.append({field: given for field, given in then if given is not None})
            where = _Items(step, items)
        else:
            if not isinstance(where.get(step), dict):
                where[step] = {}
            where = where[step]


class _Items:
    """A list that is a map, on the way to one of its items."""

    def __init__(self, name: str, items: list[Any]) -> None:
        self.name = name
        self.items = items


def _item(where: _Items, key: Key) -> Any:
    return next(item for item in where.items if key_of(where.name, item) == key)


def take(target: dict[str, Any], path: Path) -> None:
    """Take a leaf away, and what is empty without it."""
    if len(path) == 1:
        target.pop(path[0], None)
        return
    step, then = path[0], path[1]
    inner = target.get(step)
    if isinstance(then, Key):
        if not isinstance(inner, list):
            return
        found = next((item for item in inner if key_of(step, item) == then), None)
        if found is None:
            return
        if len(path) > 2:
            take(found, path[2:])
        if all(field in dict(then) for field in found):
            inner.remove(found)
        if not inner:
            del target[step]
    elif isinstance(inner, dict):
        take(inner, path[1:])
        if not inner:
            del target[step]


def said(path: Path) -> str:
    """Return a path as an API server says it: .spec.containers[name="broker"].image."""
    return "".join(
        f"[{','.join(f'{name}={value!r}' for name, value in step)}]".replace("'", '"') if isinstance(step, Key) else f".{step}"
        for step in path
    )


class Managers:
    """Who owns which fields of one object."""

    def __init__(self) -> None:
        self.owned: dict[tuple[str, str, str], set[Path]] = {}
        """By manager, operation (Apply or Update) and subresource."""

    def updated(self, manager: str, before: Mapping[str, Any], after: Mapping[str, Any], subresource: str = "") -> None:
        """Note that a manager wrote an object: what it changed is its own."""
        old, new = dict(leaves(before)), dict(leaves(after))
        changed = {path for path, value in new.items() if path not in old or old[path] != value}
        for paths in self.owned.values():
            paths -= changed
            paths -= old.keys() - new.keys()
        if changed:
            self.owned.setdefault((manager, "Update", subresource), set()).update(changed)
        self.owned = {key: paths for key, paths in self.owned.items() if paths}

    def apply(
        self, manager: str, live: Mapping[str, Any], given: Mapping[str, Any], *, force: bool, subresource: str = ""
    ) -> tuple[dict[str, Any], list[tuple[str, Path]]]:
        """Return the object with what is applied, and the conflicts: other managers' fields that would get another value."""
        own = (manager, "Apply", subresource)
        wanted, there = dict(leaves(given)), dict(leaves(live))
        differ = {path for path, value in wanted.items() if path in there and there[path] != value}
        conflicts = [(other[0], path) for other, paths in self.owned.items() if other != own for path in sorted(paths & differ, key=str)]
        if conflicts and not force:
            return dict(live), conflicts
        result = copy.deepcopy(dict(live))
        for paths in (paths for other, paths in self.owned.items() if other != own):
            paths -= differ
        owned_by_others = set().union(*(paths for other, paths in self.owned.items() if other != own))
        for path in self.owned.get(own, set()) - wanted.keys() - owned_by_others:
            take(result, path)
        for path, value in wanted.items():
            put(result, path, value)
        self.owned[own] = set(wanted)
        self.owned = {key: paths for key, paths in self.owned.items() if paths}
        return result, []

    def shown(self) -> list[dict[str, Any]]:
        """Return metadata.managedFields; the fields themselves nobody looks at."""
        return [
            {"manager": manager, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": {}}
            | ({"subresource": subresource} if subresource else {})
            for manager, operation, subresource in sorted(self.owned)
        ]
