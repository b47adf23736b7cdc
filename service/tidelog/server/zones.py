"""Whether clients are in this broker's zone, as far as both say: records that cross zones are paid for where others carry them."""

from typing import Any

import grpc
from prometheus_client import Counter

from tidelog.config import Settings
from tidelog.metrics import Metrics, ZoneRelation

ZONE = "tidelog-zone"
"""The metadata by which a client says where it is."""


class Traffic:
    """Counts the bytes of records that one client sends and is sent."""

    __slots__ = ("sent", "taken")

    def __init__(self, taken: Counter, sent: Counter) -> None:
        self.taken = taken.inc
        self.sent = sent.inc


class Zones:
    """Says which traffic a call is."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._own = settings.zone
        counted = metrics.client_bytes
        self._traffic = {relation: Traffic(counted["in"][relation], counted["out"][relation]) for relation in counted["in"]}

    def of(self, context: "grpc.aio.ServicerContext[Any, Any]") -> Traffic:
        """Return where to count what a call carries."""
        return self._traffic[self._relation(dict(context.invocation_metadata() or ()).get(ZONE, ""))]

    def _relation(self, zone: str | bytes) -> ZoneRelation:
        if not zone or not self._own:
            return "unknown"
        return "same" if zone == self._own else "other"
