"""A spec that cannot be: refused by the API server, or told of in a condition, with a sentence that says what to do. All of them heal."""

from typing import Any

import pytest

from tests.chaos.scenario import free_ports
from tests.operator.kube.store import BY_KIND, Failure, Store
from tests.operator.rig import NAME, NAMESPACE, Rig

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"replcas": 3}, 'unknown field "spec.replcas"'),
        (
            {"autoscaling": {"minReplicas": 4, "maxReplicas": 2}},
            "minReplicas is larger than maxReplicas; lower the first or raise the second",
        ),
        ({"replicas": 0}, "0 is less than the minimum of 1"),
        ({"config": {"bucket": "s3://other"}}, "config sets what other fields of the spec decide; leave these out of it"),
    ],
)
def test_what_can_be_seen_at_once_is_refused(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Failure) as refused:
        made(**spec)
    assert sentence in str(refused.value)


def test_a_bucket_stays_the_first_one() -> None:
    store = made()
    with pytest.raises(Failure) as refused:
        store.merge(BY_KIND["TidelogCluster"], NAMESPACE, NAME, {"spec": {"storage": {"bucket": "another"}}}, manager="kubectl")
    assert "the log is in that bucket; make another TidelogCluster for another bucket" in str(refused.value)


def made(**spec: Any) -> Store:
    """Return a store in which somebody has made a cluster, as kubectl does. Raises Failure."""
    store = Store()
    usual = {"image": "tidelog:1", "storage": {"bucket": "bucket"}, "metadataStore": {"urlSecretRef": {"name": "database"}}}
    body = {"metadata": {"name": NAME}, "spec": usual | spec}
    store.create(BY_KIND["TidelogCluster"], NAMESPACE, body, manager="kubectl", strict=True)
    return store


async def test_what_is_found_out_later_is_told_in_a_condition_and_heals_when_it_is_mended(it: Rig) -> None:
    await it.operator()
    it.create_cluster(replicas=1, metadataStore={"urlSecretRef": {"name": "none-yet"}}, image="tidelog:wrong")

    def topic(name: str) -> dict[str, str]:
        found = it.store.find("TidelogTopic", NAMESPACE, name) or {}
        nothing = {"reason": "", "message": ""}
        return next((each for each in found.get("status", {}).get("conditions", ()) if each["type"] == "Ready"), nothing)

    async def degraded(reason: str, *words: str) -> None:
        await it.until(
            lambda: it.condition("Degraded")["reason"] == reason and all(each in it.condition("Degraded")["message"] for each in words),
            within_s=40,
            what=f"Degraded with {reason} {words}",
        )
        assert it.condition("Degraded")["status"] == "True"

    await degraded("SecretMissing", "Secret none-yet was looked for, but there is none in this namespace; create it with url")
    assert it.store.find("Deployment", NAMESPACE, NAME) is None, "no broker is made that cannot start"

    nobody = f"postgresql://nobody@127.0.0.1:{free_ports(1)[0]}/tidelog"
    it.create_secret("none-yet", {"url": nobody})
    await degraded("PodTrouble", "its image tidelog:wrong cannot be had (ImagePullBackOff", "mend spec.image, or spec.imagePullSecrets")

    it.change_cluster(image="tidelog:1", config={"lease_ms": "a lot"})
    await degraded("PodTrouble", "its broker ended with exit code", "its last words:", "lease_ms")

    it.change_cluster(config={"lease_ms": "3000"})
    await degraded("BrokerNotReady", "is starting, and waits: the database at postgresql://nobody@127.0.0.1", "cannot be reached")
    assert it.condition("Ready")["reason"] == "NoBrokerReady"

    it.create_topic("clicks", partitions=2)
    it.create_topic("astray", clusterRef="none")
    await it.until(lambda: topic("clicks")["reason"] == "ClusterDoesNotAnswer", within_s=20)
    assert topic("clicks")["message"] == f"No broker of {NAME} answers; look at the conditions of that TidelogCluster"
    await it.until(lambda: topic("astray")["reason"] == "ClusterMissing", within_s=20)

    it.change_cluster(metadataStore={"urlSecretRef": {"name": "database"}})
    await it.until(
        lambda: it.settled(1) and it.condition("Degraded")["reason"] == "NothingWrong", within_s=60, what="a cluster that is well"
    )
    await it.until(lambda: it.topic_ready("clicks"), within_s=20)
    it.create_topic("again", topicName="clicks", partitions=3)
    await it.until(lambda: topic("again")["reason"] == "ExistsOtherwise", within_s=20)
    assert "was there before and is not as this object says" in topic("again")["message"]
    assert not it.kube.api.refused
