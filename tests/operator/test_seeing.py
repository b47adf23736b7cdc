"""What the API server and brokers say, as the plan looks at it."""

import base64
from typing import Any

import pytest
from prometheus_client import generate_latest
from tidelog.metrics import Metrics
from tidelog_operator.brokers import Counts, counts_of, report_of
from tidelog_operator.observed import CHECKSUM, DELETION_COST, STATE, Drain, Notes, Phase
from tidelog_operator.reading import Unreadable
from tidelog_operator.resource import ClusterStatus
from tidelog_operator.seeing import ZONE, cluster_of, deployment_of, finished, pod_of, reached_at, secret_of, secret_values, topic_of

SPEC = {"image": "i", "storage": {"bucket": "bucket"}, "metadataStore": {"urlSecretRef": {"name": "database"}}}


def pod(
    *containers: dict[str, Any], conditions: tuple[dict[str, str], ...] = (), phase: str = "Running", **metadata: Any
) -> dict[str, Any]:
    status = {"phase": phase, "podIP": "10.0.0.1", "containerStatuses": list(containers), "conditions": list(conditions)}
    return {"metadata": {"name": "p", "namespace": "n", **metadata}, "status": status}


def test_a_pod_that_is_well() -> None:
    ready = ({"type": "Ready", "status": "True"},)
    found = pod_of(pod(conditions=ready, annotations={CHECKSUM: "c", DELETION_COST: "-1000"}, labels={ZONE: "a"}))
    assert (found.ready, found.checksum, found.deletion_cost, found.zone, found.problem, found.terminating) == (
        True,
        "c",
        -1000,
        "a",
        "",
        False,
    )
    assert pod_of(pod(deletionTimestamp="2026-01-01T00:00:00Z")).terminating
    assert pod_of(pod(annotations={DELETION_COST: "cheap"})).deletion_cost == 0, "what somebody wrote there is not ours"
    assert pod_of({"metadata": {"name": "p"}}).phase == "Pending"


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        (
            pod(
                conditions=({"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient cpu."},),
                phase="Pending",
            ),
            "it has no node: 0/3 nodes are available: 3 Insufficient cpu.; add nodes, or lower spec.resources.requests",
        ),
        (
            pod({"image": "x:1", "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}),
            "its image x:1 cannot be had (ErrImagePull: not found); mend spec.image, or spec.imagePullSecrets",
        ),
        (
            pod(
                {
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": 2, "reason": "Error", "message": "one\nError: no bucket\n\n"}},
                }
            ),
            "its broker ended with exit code 2; its last words: Error: no bucket",
        ),
        (
            pod({"ready": False, "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}),
            "its broker ended with exit code 137 (OOMKilled); its last words: none",
        ),
        (
            pod({"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}}}),
            'it waits: CreateContainerConfigError: secret "s" not found',
        ),
        (pod({"state": {"waiting": {"reason": "ContainerCreating"}}}), ""),
        (pod({"ready": True, "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}), ""),
    ],
)
def test_what_is_wrong_with_a_pod_is_a_sentence(manifest: dict[str, Any], sentence: str) -> None:
    assert pod_of(manifest).problem == sentence


def test_only_pods_in_which_something_runs_are_reached() -> None:
    assert reached_at(pod()) == "10.0.0.1"
    assert reached_at(pod(phase="Pending")) == ""
    assert [finished(pod(phase=phase)) for phase in ("Running", "Failed", "Succeeded")] == [False, True, True]


def test_a_deployment_with_its_notes() -> None:
    notes = Notes(drain=Drain(pod="p", phase=Phase.LEAVING, since_s=5.0, seen_s=6.0))
    manifest = {
        "metadata": {"resourceVersion": "7", "generation": 3, "annotations": {STATE: notes.as_text()}},
        "spec": {"replicas": 4, "template": {"metadata": {"annotations": {CHECKSUM: "c"}}}},
        "status": {"observedGeneration": 2, "conditions": [{"type": "Progressing", "status": "False", "message": "has timed out"}]},
    }
    found = deployment_of(manifest)
    assert (found.resource_version, found.generation, found.observed_generation, found.replicas) == ("7", 3, 2, 4)
    assert (found.checksum, found.notes, found.stuck) == ("c", notes, "has timed out")


def test_a_cluster_that_cannot_be_read_says_why_and_a_spoiled_status_is_none() -> None:
    metadata = {"name": "logs", "namespace": "n", "uid": "u", "generation": 2}
    assert cluster_of({"metadata": metadata, "spec": SPEC, "status": {"replicas": "many"}}).status == ClusterStatus()
    with pytest.raises(Unreadable, match="spec.newer is nothing that this operator knows; remove it, or upgrade the operator"):
        cluster_of({"metadata": metadata, "spec": SPEC | {"newer": 1}})
    with pytest.raises(Unreadable):  # its topic's id would be forgotten, and a topic that is gone be made anew
        topic_of({"metadata": metadata, "spec": {"clusterRef": "logs"}, "status": {"topicId": 5}})


def test_a_secrets_checksum_tells_nothing_but_whether_it_changed() -> None:
    def secret(**values: str) -> dict[str, Any]:
        return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}}

    assert secret_of(secret(a="1")).keys == {"a"}
    assert secret_of(secret(a="1")) == secret_of(secret(a="1"))
    assert secret_of(secret(a="1")) != secret_of(secret(a="2"))
    assert secret_values(secret(a="1")) == {"a": b"1"}


def test_load_is_what_was_counted_between_two_looks_at_a_brokers_metrics() -> None:
    metrics = Metrics()
    metrics.intake_budget_bytes.set(1000)
    metrics.intake_bytes.set(250)

    def counted(at_s: float) -> Counts:
        return counts_of(generate_latest(metrics.registry).decode(), at_s)

    before = counted(10.0)
    metrics.append_bytes["accepted"].inc(5000)
    metrics.append_bytes["duplicate"].inc(1000)
    metrics.append_bytes["throttled"].inc(77_000)
    metrics.store_calls["put"]["done"].inc(3)
    metrics.store_calls["get"]["unavailable"].inc(2)
    now = counted(20.0)
    told = report_of(before, now, not_ready_why="", at_s=1.0)
    assert told.produce_bytes_per_second == 600.0
    assert told.in_flight_share == 0.25
    assert (told.store_successes, told.store_failures) == (3, 2)
    assert told.cpu_cores >= 0


def test_a_broker_that_began_anew_has_done_all_that_it_counted() -> None:
    before = Counts(at_s=10.0, cpu_s=50.0, produced_bytes=1e9, store=(5, 100))
    told = report_of(before, Counts(at_s=20.0, cpu_s=1.0, produced_bytes=2000.0, store=(1, 7)), not_ready_why="", at_s=1.0)
    assert (told.cpu_cores, told.produce_bytes_per_second, told.store_failures, told.store_successes) == (0.1, 200.0, 1, 7)
