"""Where the settings of a process come from: environment, a YAML file and flags, in rising priority.

pydantic-settings reads them. What it does not see is seen here: a misspelt `TIDELOG_` variable, key or flag is refused by
name; where each value came from stays known; and all that is wrong is said at once, in sentences.
"""

import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, YamlConfigSettingsSource
from yaml import YAMLError

from tidelog.config import GROUPS, SECRETS, Settings, contradictions
from tidelog.errors import InvalidSettings
from tidelog.telemetry import HIDDEN, without_secrets

PREFIX = "TIDELOG_"

OTHERS = frozenset({"TIDELOG_SERVER", "TIDELOG_TOKEN", "TIDELOG_CA"})
"""Variables with the prefix that other commands read."""

_FROM_KUBERNETES = re.compile(
    r"TIDELOG_(\w+_)?(SERVICE_HOST=|SERVICE_PORT(_\w+)?=|PORT=\w+://|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?=)"
)
"""Kubernetes tells every pod of the services of its namespace so; one may be called tidelog."""


class _Schema(BaseSettings, Settings):
    """The settings, as pydantic-settings' sources want them."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class _Source:
    """One place that settings come from."""

    values: Mapping[str, Any]
    called: Callable[[str], str]
    """Gives what a person calls it, for one setting's name."""
    remedy: str


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and where each came from."""

    settings: Settings
    sources: Mapping[str, str]
    """By the setting's name, in words."""

    def as_yaml(self) -> str:
        """Return all settings as a configuration file, each with its source as a comment, secrets hidden."""
        lines: list[str] = []
        headings = {first: heading for heading, first in GROUPS.items()}
        for name in Settings.model_fields:
            if name in headings:
                lines.append(f"{chr(10) if lines else ''}# {headings[name]}")
            lines.append(f"{name}: {shown(name, getattr(self.settings, name))}  # {self.sources[name]}")
        return "\n".join(lines) + "\n"


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def load_settings(
    *,
    flags: Mapping[str, Any],
    config_file: Path | None,
    environ: Mapping[str, str],
    flags_are: str = "flag",
    called: Callable[[str], str] = flag,
) -> LoadedSettings:
    """Gather the settings of a process. `flags` go by the settings' names; the last two parameters say what people know them as.

    Raises InvalidSettings, which names every setting that cannot be used, the value found, where, and what to do.
    """
    problems = [*_unknown_variables(environ), *_unknown(flags_are, flags, called)]
    sources = [_environment(environ)]
    if config_file is not None:
        file = _file(config_file)
        problems += _unknown(f"{config_file}: setting", file.values, str)
        sources.append(file)
    sources.append(_Source(flags, lambda name: f"{flags_are} {called(name)}", "give another, or leave it out"))
    if problems:
        raise InvalidSettings("\n".join(problems))

    origin = {name: source for source in sources for name in source.values}
    values = {name: source.values[name] for name, source in origin.items()}
    told = dict.fromkeys(Settings.model_fields, "default") | {name: source.called(name) for name, source in origin.items()}
    if not values.get("broker_id"):
        values["broker_id"], told["broker_id"] = _host_name(), "made of the host's name"
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        names = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors())
        raise InvalidSettings("\n".join(_unfit(name, values[name], told[name], origin.get(name)) for name in names)) from None
    if unfit := [
        f"{' and '.join(f'{n} is {shown(n, getattr(settings, n))} ({told[n]})' for n in found.names)}, but {found.sentence}"
        for found in contradictions(settings)
    ]:
        raise InvalidSettings("\n".join(unfit))
    return LoadedSettings(settings, told)


def shown(name: str, value: object) -> str:
    """Return a setting's value for people, and for YAML; secrets and the passwords of URLs are hidden."""
    if name in SECRETS and value:
        return json.dumps(HIDDEN)
    return json.dumps(without_secrets(value) if isinstance(value, str) else value, default=str, ensure_ascii=False)


def range_of(name: str) -> str:
    """Say what a setting may be."""
    field = Settings.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    if field.annotation is bool:
        return "true or false"
    if field.annotation is str:
        pattern = _bound(field, "pattern", max)
        if pattern:
            return f"text of the form {str(pattern).strip('^()?$')}"
        return "text" if _bound(field, "min_length", max) is None else "text that is not empty"
    kind = "a whole number" if field.annotation is int else "a number"
    least, most, above = _bound(field, "ge", max), _bound(field, "le", min), _bound(field, "gt", max)
    low = f" above {above}" if above is not None else f" from {least}" if least is not None else ""
    return f"{kind}{low}" + (f" to {most}" if most is not None else "")


def default_of(name: str) -> str:
    """Return a setting's default for people."""
    return json.dumps(Settings.model_fields[name].default)


def groups() -> Iterator[tuple[str, list[str]]]:
    """Yield the headings with the settings below them."""
    names = list(Settings.model_fields)
    begins = [names.index(first) for first in GROUPS.values()]
    for heading, begin, end in zip(GROUPS, begins, [*begins[1:], len(names)], strict=True):
        yield heading, names[begin:end]


def _environment(environ: Mapping[str, str]) -> _Source:
    source = EnvSettingsSource(_Schema, env_prefix=PREFIX)
    source.env_vars = {name.lower(): value for name, value in environ.items()}
    return _Source(source(), lambda name: f"environment variable {variable(name)}", "change the variable, or unset it")


def _file(path: Path) -> _Source:
    asked = f"the settings were to be read from {str(path)!r}, but"
    try:
        path.open("rb").close()  # a file that is not there would count as an empty one
        values = YamlConfigSettingsSource(_Schema, yaml_file=path)()
    except OSError as error:
        raise InvalidSettings(f"{asked} it cannot be read: {error.strerror}; name another, or let this process read it") from error
    except YAMLError as error:
        raise InvalidSettings(f"{asked} it is no YAML: {' '.join(str(error).split())}; correct it") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidSettings(
            f"{asked} it is not made of names and values; write one setting a line, as in: segment_bytes: 8388608"
        ) from error
    return _Source(values, lambda _name: str(path), "change it in the file, or leave it out")


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    known = {variable(name) for name in Settings.model_fields} | OTHERS
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and not _FROM_KUBERNETES.match(f"{name}={environ[name]}"):
            yield _no_such("environment variable", name, known)


def _unknown(kind: str, values: Iterable[str], called: Callable[[str], str]) -> Iterator[str]:
    known = {called(name) for name in Settings.model_fields}
    for name in values:
        if called(str(name)) not in known:
            yield _no_such(kind, called(str(name)), known)


def _no_such(kind: str, name: str, known: Iterable[str]) -> str:
    nearest = get_close_matches(name, sorted(known), n=1)
    ending = f"did you mean {nearest[0]}?" if nearest else "docs/settings.md lists all there are"
    return f"{kind} {name} is no setting of Tidelog; {ending}"


def _unfit(name: str, value: object, called: str, origin: _Source | None) -> str:
    remedy = origin.remedy if origin else "set it"
    return (
        f"{name} is {shown(name, value)} ({called}), but it must be {range_of(name)}. {Settings.model_fields[name].description}"
        f" {remedy[0].upper()}{remedy[1:]}; the default is {default_of(name)}."
    )


def _bound(field: FieldInfo, name: str, narrower: Callable[[Any], Any]) -> Any:
    found = [bound for rule in field.metadata if (bound := getattr(rule, name, None)) is not None]
    return narrower(found) if found else None


def _host_name() -> str:
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower())[:63].strip("-")
    if not name:
        raise InvalidSettings(f"broker_id is not set, and none can be made of the host's name {socket.gethostname()!r}; set broker_id")
    return name
