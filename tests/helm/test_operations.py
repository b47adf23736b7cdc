"""The commands of docs/operations.md are true: each is held against the chart, against Kubernetes' kinds and against the command line."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

import helm_python
import kubernetes_validate
import pytest
import yaml

from tests.command_line import invoke
from tests.helm.rendering import CHART, NAMESPACE, RELEASE, Manifest, brokers, objects, pod_specs, the
from tests.helm.test_objects import granted

ROOT = CHART.parents[1]
PAGE = ROOT / "docs" / "operations.md"
PAGES = [PAGE, ROOT / "README.md"]
KINDS = {
    "pod": "Pod", "pods": "Pod", "secret": "Secret", "pvc": "PersistentVolumeClaim", "deployment": "Deployment", "service": "Service",
    "lease": "Lease",
    "crd": "CustomResourceDefinition", "events": "Event", "job": "Job",
    "tidelogcluster": "TidelogCluster", "tidelogtopics": "TidelogTopic",
}  # fmt: skip
MADE_BY_HAND = {("Secret", "database"), ("Job", "tidelog-rebuild"), ("Lease", "tidelog-operator")}
FREE = re.compile(r"[A-Z]+")
"""What a reader fills in."""


def fenced(language: str, page: Path = PAGE) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", page.read_text())


def commands(program: str) -> Iterator[list[str]]:
    """The words of every command of a program, in all pages, pipelines taken apart."""
    for page in PAGES:
        for line in (line for block in fenced("sh", page) for line in block.splitlines()):
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("|") if "|" in words else len(words)
                command, words = words[:end], words[end + 1 :]
                command = list(takewhile(lambda word: word not in ("<", ">", "&"), command))
                if command and command[0] == program:
                    yield command


@cache
def everything() -> list[Manifest]:
    values = {"monitoring": {"serviceMonitor": {"enabled": True}}}
    manifests = objects(values)
    return manifests + brokers(manifests)


def test_there_is_nothing_else_in_its_blocks() -> None:
    programs = {
        words[0]
        for page in PAGES
        for block in fenced("sh", page)
        for line in block.splitlines()
        if (words := shlex.split(line, comments=True))
    }
    assert programs <= {"docker", "helm", "kubectl", "tidelog", "python3", "curl"}


# ---- helm


def options(words: list[str], *, flags: set[str], valued: set[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Positional words, and options with their values. An unknown option fails."""
    positional: list[str] = []
    found: dict[str, list[str]] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            positional.append(word)
        elif name in flags:
            found.setdefault(name, [])
        else:
            assert name in valued, f"{word} in {words}"
            found.setdefault(name, []).append(value if equals else next(rest))
    return positional, found


@pytest.mark.parametrize("words", list(commands("helm")), ids=lambda words: " ".join(words)[:60])
def test_helm_takes_the_values_that_it_is_given(words: list[str]) -> None:
    _, subcommand, *rest = words
    flags, valued = {"--create-namespace", "--reset-then-reuse-values", "--logs"}, {"-n", "--set", "--filter"}
    positional, given = options(rest, flags=flags, valued=valued)
    assert given["-n"] == [NAMESPACE]
    assert positional[0] == RELEASE
    if subcommand in ("install", "upgrade"):
        assert (ROOT / positional[1]).samefile(CHART)
        expression = ",".join(given.get("--set", []))
        values = helm_python.parse_set_string(expression) if expression else {}
        manifests = objects(values)
        assert the(manifests, "TidelogCluster")
        if subcommand == "install" and expression:
            account = next(each for each in manifests if each["kind"] == "ServiceAccount" and each["metadata"]["name"] == "tidelog-broker")
            assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/tidelog"}
    else:
        assert subcommand in ("test", "uninstall", "rollback")
    for each in given.get("--filter", []):
        assert each.removeprefix("name=") in {name for name, _, _ in pod_specs(objects())}


# ---- kubectl


@pytest.mark.parametrize("words", list(commands("kubectl")), ids=lambda words: " ".join(words)[:60])
def test_kubectl_asks_for_what_is_there(words: list[str]) -> None:
    cut = words.index("--") if "--" in words else len(words)
    before, inside = words[1:cut], words[cut + 1 :]
    flags = {
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--server-side",
        "--force-conflicts",
        "--prefix",
        "--all",
        "--dry-run",
        "--follow",
    }
    valued = {
        "-n",
        "-o",
        "-l",
        "-c",
        "-p",
        "-f",
        "--type",
        "--for",
        "--timeout",
        "--tail",
        "--replicas",
        "--from-literal",
        "--field-selector",
    }
    positional, given = options(before, flags=flags, valued=valued)
    verb, *rest = positional
    assert verb in {
        "apply",
        "create",
        "delete",
        "describe",
        "drain",
        "exec",
        "get",
        "logs",
        "patch",
        "port-forward",
        "rollout",
        "scale",
        "wait",
    }
    cluster_wide = verb == "drain" or "crd" in rest or given.get("-f")
    assert given.get("-n") == (None if cluster_wide else [NAMESPACE])
    if verb == "rollout":
        assert rest.pop(0) == "status"
    if verb == "create":
        assert rest[:2] == ["secret", "generic"]
        rest.pop(1)
    for name in given.get("-f", []):
        assert name == "-" or (ROOT / name).is_dir()
    if verb == "drain":
        assert FREE.fullmatch(rest[0])
    elif rest:
        check_objects(verb, rest)
    for selector in given.get("-l", []):
        wanted = dict(pair.split("=") for pair in selector.split(","))
        labelled = [each["metadata"]["labels"] for each in everything()] + [labels for _, labels, _ in pod_specs(everything())]
        assert any(wanted.items() <= labels.items() for labels in labelled), selector
    for selector in given.get("--field-selector", []):
        assert selector == "involvedObject.name=tidelog"
    for container in given.get("-c", []):
        assert container in {each["name"] for _, _, spec in pod_specs(everything()) for each in spec["containers"]}
    for condition in re.findall(r'@\.type=="(\w+)"|--for=condition=(\w+)', " ".join(words)):
        assert "".join(condition) in CONDITIONS
    for patch in given.get("-p", []):
        assert set(json.loads(patch)["spec"]) <= fields_of_cluster()
    if inside:
        check_command_line(inside)


_LISTED = re.findall(r"(?m)^\| `([A-Z]\w+)`(?:, `([A-Z]\w+)`)? \|", (ROOT / "docs" / "kubernetes.md").read_text())
CONDITIONS = {name for names in _LISTED for name in names if name}
"""As docs/kubernetes.md lists them."""


def fields_of_cluster() -> set[str]:
    definition = yaml.safe_load((CHART / "crds" / "tidelogclusters.yaml").read_text())
    return set(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"])


def check_objects(verb: str, words: list[str]) -> None:
    there = {(each["kind"], each["metadata"]["name"]) for each in everything()} | MADE_BY_HAND
    there |= {("CustomResourceDefinition", path["metadata"]["name"]) for path in map(read, (CHART / "crds").iterdir())}
    ports = {"9595", "9596", "8080"}
    if verb == "port-forward":
        own, there_port = words.pop().split(":")
        assert own == there_port
        assert own in ports
    if "/" in words[0]:
        kind, name = words[0].split("/")
        assert (KINDS[kind], name) in there, words
    else:
        kind, *names = words
        for each in kind.split(","):
            assert each in KINDS, words
        for name in names:
            assert (KINDS[kind], name) in there, words


def read(path: Path) -> Manifest:
    found: Manifest = yaml.safe_load(path.read_text())
    return found


# ---- tidelog


def check_command_line(words: list[str]) -> None:
    """Fail where a command or an option does not exist; nothing is run."""
    assert words[0] == "tidelog"
    result = invoke(*words[1:], "--help")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("words", list(commands("tidelog")), ids=lambda words: " ".join(words)[:60])
def test_the_command_line_has_these_commands_and_options(words: list[str]) -> None:
    check_command_line(words)


def test_a_command_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(AssertionError, match="--at-once"):
        check_command_line(["tidelog", "cluster", "drain", "--at-once", "b"])


# ---- what the page says


def test_the_job_that_rebuilds_is_one_that_kubernetes_takes_with_the_brokers_own_settings(tmp_path: Path) -> None:
    (program,) = fenced("py")
    (tmp_path / "rebuild_job.py").write_text(program)
    deployment = the(brokers(objects()), "Deployment")
    done = subprocess.run(
        [sys.executable, "rebuild_job.py", "--dry-run"],
        cwd=tmp_path,
        input=json.dumps(deployment),
        capture_output=True,
        text=True,
        check=True,
    )
    job = json.loads(done.stdout)
    kubernetes_validate.validate(job, "1.37", strict=True)
    assert ("Job", job["metadata"]["name"]) in MADE_BY_HAND
    (broker,) = deployment["spec"]["template"]["spec"]["containers"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["env"] == broker["env"]
    assert container["image"] == broker["image"]
    check_command_line(["tidelog", *container["args"]])


def test_the_rights_that_it_lists_are_those_of_the_chart() -> None:
    listed = set()
    for group, resources, verbs in re.findall(r"(?m)^\| (`[\w.]+`|core) \| (`.*?`) \| ([a-z, ]+) \|$", PAGE.read_text()):
        for resource in re.findall(r"`(.*?)`", resources):
            listed |= {("" if group == "core" else group.strip("`"), resource, verb) for verb in verbs.split(", ")}
    given = set().union(*(granted(each) for each in objects() if each["kind"] == "Role"))
    assert listed == given
