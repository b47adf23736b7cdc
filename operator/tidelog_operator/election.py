"""Who of several operators acts: the holder of a Lease, as long as it can be sure to be.

The holder renews the Lease every third of its length. It counts from before it sent the last renewal that was granted, and stops to act a
fifth of the length before another may take over; so it stops in time even while the API server does not answer. Another takes
the Lease over once it has not seen it change for its whole length, by its own clock: no two machines' clocks are compared.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from tidelog.clock import Clock
from tidelog.randomness import Random
from tidelog.telemetry import get_logger

from tidelog_operator.kubernetes_api import Conflict, KubernetesApi, Missing, Refused, Unreachable
from tidelog_operator.observed import Manifest

_SAFE_SHARE = 0.8
_log = get_logger(__name__)


class Election:
    """One candidate."""

    def __init__(
        self, api: KubernetesApi, *, namespace: str, name: str, identity: str, lease_s: float, clock: Clock, chance: Random
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._lease_s = lease_s
        self._clock = clock
        self._chance = chance
        self._sure_until = 0.0
        self._seen: tuple[str, float] = "", 0.0
        """The Lease's version, and when it was first seen."""
        self.answered_at = float("-inf")
        """When the API server answered last."""

    def leads(self) -> bool:
        """Say whether this one may act now. Looked at right before everything that is written."""
        return self._clock.monotonic() < self._sure_until

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Stand for election, and `lead` while elected; until cancelled. The Lease is given back in the end.

        When the Lease is lost, `lead` is cancelled and has ended before anything else is done.
        """
        try:
            while True:
                await self._elected()
                _log.info("leading", identity=self._identity)
                await self._led(lead)
                _log.warning("not_leading_any_more", identity=self._identity)
        finally:
            await self._give_back()

    async def _elected(self) -> None:
        while True:
            await self._try()
            if self.leads():
                return
            await asyncio.sleep(self._chance.uniform(0.8, 1.2) * self._lease_s / 6)

    async def _led(self, lead: Callable[[], Awaitable[None]]) -> None:
        leading = asyncio.ensure_future(lead())
        renewing = asyncio.create_task(self._renew())
        try:
            await asyncio.wait([leading, renewing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._sure_until = 0.0  # nothing is begun any more, by whatever takes a moment to end
            for task in (leading, renewing):
                task.cancel()
            await asyncio.wait([leading, renewing])
        if not leading.cancelled():
            leading.result()  # what it failed with ends the process

    async def _renew(self) -> None:
        """Renew until it is not sure any more that the Lease is held."""
        while True:
            sure_s = self._sure_until - self._clock.monotonic()
            if sure_s <= 0:
                return
            await asyncio.sleep(min(self._lease_s / 3 * self._chance.uniform(0.8, 1.0), sure_s))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._sure_until - self._clock.monotonic())):
                    await self._try()

    async def _try(self) -> None:
        """Take or renew the Lease, if it can be had."""
        asked_at = self._clock.monotonic()
        try:
            try:
                lease = await self._api.get("Lease", self._namespace, self._name)
            except Missing:
                lease = await self._api.create(self._lease({}, None))
            else:
                self.answered_at = self._clock.monotonic()
                if not self._may_take(lease):
                    self._sure_until = 0.0 if self._holder(lease) != self._identity else self._sure_until
                    return
                lease = await self._api.replace(self._lease(lease, lease["metadata"]["resourceVersion"]))
        except Conflict:
            return  # somebody else was first; the next look tells who
        except (Refused, Unreachable) as error:
            _log.warning("lease_not_renewed", lease=self._name, problem=str(error))
            return
        self.answered_at = self._clock.monotonic()
        self._sure_until = asked_at + _SAFE_SHARE * self._lease_s

    def _may_take(self, lease: Manifest) -> bool:
        holder, version = self._holder(lease), lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = version, self._clock.monotonic()
        length_s = float((lease.get("spec") or {}).get("leaseDurationSeconds") or self._lease_s)
        return not holder or holder == self._identity or self._clock.monotonic() - self._seen[1] > length_s

    @staticmethod
    def _holder(lease: Manifest) -> str:
        return str((lease.get("spec") or {}).get("holderIdentity") or "")

    def _lease(self, before: Manifest, version: str | None, *, holder: str | None = None) -> Manifest:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # for people: nobody compares it
        spec: dict[str, Any] = dict(before.get("spec") or {})
        if spec.get("holderIdentity") != self._identity:
            spec |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + bool(before)}
        whose = self._identity if holder is None else holder
        # A whole number of seconds, as the API server wants it: never less than what this one counts with.
        spec |= {"holderIdentity": whose, "leaseDurationSeconds": max(1, -int(-self._lease_s // 1)), "renewTime": now}
        metadata = {"name": self._name, "namespace": self._namespace}
        if version is not None:
            metadata["resourceVersion"] = version
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}

    async def _give_back(self) -> None:
        """Let another one lead at once, if the Lease is held still. Nothing acts any more."""
        self._sure_until = 0.0
        try:
            async with asyncio.timeout(self._lease_s / 3):
                lease = await self._api.get("Lease", self._namespace, self._name)
                if self._holder(lease) == self._identity:
                    await self._api.replace(self._lease(lease, lease["metadata"]["resourceVersion"], holder=""))
        except (Refused, Unreachable, TimeoutError) as error:
            _log.warning("lease_not_given_back", lease=self._name, problem=str(error))
