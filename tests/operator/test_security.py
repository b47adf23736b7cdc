"""A cluster with TLS and tokens: the operator knows its brokers by their certificate, and shows them a token."""

from pathlib import Path

import pytest
import tidelog
import trustme
from tidelog.errors import PermissionDenied, Unauthenticated

from tests.operator.kube.balancer import service
from tests.operator.kube.store import BY_KIND
from tests.operator.rig import NAME, NAMESPACE, Rig

pytestmark = pytest.mark.timeout(240)
TOKENS = """
tokens:
  - {name: operator, token: of-the-operator, admin: [""]}
  - {name: app, token: of-the-app, read: ["clicks"], write: ["clicks"]}
"""


async def test_a_cluster_with_tls_and_tokens_is_made_drained_and_used(it: Rig, tmp_path: Path) -> None:
    authority = trustme.CA()
    # Names of the Service, as a chart's certificate has; never the address of a pod.
    certificate = authority.issue_cert(f"{NAME}.{NAMESPACE}.svc", "localhost")
    chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    it.create_secret("tls", {"tls.crt": chain.decode(), "tls.key": certificate.private_key_pem.bytes().decode(), "ca.crt": ca.read_text()})
    it.create_secret("tokens", {"tokens.yaml": TOKENS, "peer-token": "among-brokers"})
    await it.operator()
    it.create_cluster(replicas=2, tls={"secretRef": {"name": "tls"}}, tokens={"secretRef": {"name": "tokens"}})
    await it.until(lambda: it.condition("Degraded")["reason"] == "SecretMissing", within_s=20)
    assert "Secret tokens is there, but has no operator-token; add what is missing" in it.condition("Degraded")["message"]
    it.store.delete(BY_KIND["Secret"], NAMESPACE, "tokens")
    it.create_secret("tokens", {"tokens.yaml": TOKENS, "peer-token": "among-brokers", "operator-token": "of-the-operator"})
    it.create_topic("clicks", partitions=2)
    await it.until(lambda: it.settled(2) and it.topic_ready("clicks"), within_s=90, what="a cluster with TLS")

    async with service(it.store, NAMESPACE, NAME, port=9595) as address:
        reached = address.replace("127.0.0.1", "localhost")
        async with tidelog.connect(reached, ca=ca, token="of-the-app") as log, log.producer() as producer:
            first = await producer.send("clicks", b"before", partition=0)
            it.change_cluster(replicas=1)
            await it.until(lambda: it.settled(1), within_s=90, what="a drain over TLS")
            second = await producer.send("clicks", b"after", partition=0)
            assert (first.offset, second.offset) == (0, 1)
            with pytest.raises(PermissionDenied):
                await log.admin.drain("anybody")
        with pytest.raises(Unauthenticated):
            async with tidelog.connect(reached, ca=ca, token="another", call_timeout_ms=5000):
                pass
    assert {reason for reason, _ in it.events()} == {"DrainBegins", "ScaledDown"}
    assert not it.kube.api.refused
    assert "of-the-operator" not in it.operators[0].log.read_text()
