"""A broker's membership: it registers, renews its lease, ends the epochs of those who do not, and knows when its own may have lapsed.

The lease decides nothing that SQL does not decide again (I1); it saves a broker that was paused from answering for long.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from tidelog.broker.uploads import Identity
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import BrokerIdTaken, Fenced, MetadataOutcomeUnknown, MetadataUnavailable, MetadataUnusable, TidelogError
from tidelog.metadata.marks import report_resolved
from tidelog.metadata.membership import end_every_epoch, end_expired_epochs, register, renew_lease
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import Metrics
from tidelog.randomness import Random
from tidelog.telemetry import get_logger

_WEATHER = (MetadataUnavailable, MetadataOutcomeUnknown, MetadataUnusable)
_log = get_logger(__name__)
_SAFE_SHARE = 0.8
"""Of a lease, counted from before its renewal was sent: what a broker trusts."""


class Lease:
    """One broker epoch's lease. Made by `begin`."""

    def __init__(
        self, *, store: MetadataStore, identity: Identity, settings: Settings, clock: Clock, chance: Random, deadline: float,
        membership_changed: Callable[[], None], metrics: Metrics,
    ) -> None:  # fmt: skip
        self._store = store
        self._identity = identity
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._deadline = deadline
        self._membership_changed = membership_changed
        self._metrics = metrics
        self._membership_version = 0
        self._reported = 0
        self._renewed = asyncio.Event()
        self._others_expired = False
        self._has_lapsed = False

    def stands(self) -> bool:
        """Say whether the lease certainly stands: looked at before every answer that only a member may give."""
        return self._clock.monotonic() < self._deadline

    @property
    def remaining_s(self) -> float:
        """Seconds for which the lease certainly stands."""
        return max(0.0, self._deadline - self._clock.monotonic())

    async def keep(self) -> None:
        """Renew the lease every third of its length, until cancelled. Raises Fenced once the epoch has ended.

        Nothing else is done here that could wait: what comes with a renewal is `tend`'s.
        """
        every_s = self._settings.lease_ms / 3000
        while True:
            try:
                await self._renew()
            except _WEATHER as error:
                self._metrics.lease_renewals["failed"].inc()
                if not self.stands():
                    self._lapsed(error)
                await asyncio.sleep(self._chance.uniform(0.05, 0.15) * every_s)
            else:
                await asyncio.sleep(every_s)

    async def tend(self, resolved_sequence: Callable[[], int]) -> None:
        """After each renewal end the epochs of others whose leases have expired, and report the resolved mark; until cancelled.

        Both wait for transactions that hold the rows they need, so a renewal must not wait for them. Raises Fenced once
        the epoch has ended.
        """
        while True:
            await self._renewed.wait()
            self._renewed.clear()
            with suppress(*_WEATHER):  # the next renewal comes soon
                if self._others_expired:
                    await self._end_expired()
            with suppress(*_WEATHER):
                await self._report(resolved_sequence())

    async def _renew(self) -> None:
        sent_at = self._clock.monotonic()
        try:
            lease = await self._store.run_reserved(
                renew_lease,
                broker_id=self._identity.broker_id,
                broker_epoch=self._identity.broker_epoch,
                ttl_ms=self._settings.lease_ms,
            )
        except Fenced:
            self._metrics.lease_renewals["fenced"].inc()
            raise
        self._metrics.lease_renewals["done"].inc()
        self._deadline = sent_at + _SAFE_SHARE * self._settings.lease_ms / 1000
        self._has_lapsed = False
        self._others_expired = lease.expired > 0
        self._renewed.set()
        if lease.membership_version != self._membership_version:
            self._membership_version = lease.membership_version
            self._membership_changed()

    def _lapsed(self, error: TidelogError) -> None:
        """Tell, once, that this broker leads nothing until it hears from the store again."""
        if not self._has_lapsed:
            self._has_lapsed = True
            _log.warning("lease_lapsed", broker_epoch=self._identity.broker_epoch, problem=str(error))

    async def _report(self, resolved: int) -> None:
        if resolved > self._reported:
            self._reported = await self._store.run(report_resolved, broker_epoch=self._identity.broker_epoch, sequence=resolved)

    async def _end_expired(self) -> None:
        ended = await self._store.run(
            end_expired_epochs,
            broker_id=self._identity.broker_id,
            broker_epoch=self._identity.broker_epoch,
            ttl_ms=self._settings.lease_ms,
        )
        if ended:
            _log.info("epochs_ended", broker_epochs=list(ended), by_broker_epoch=self._identity.broker_epoch)
            self._membership_changed()


async def begin(
    *, store: MetadataStore, cluster_id: str, broker_id: str, incarnation: str, addresses: tuple[str, str], settings: Settings,
    clock: Clock, chance: Random, membership_changed: Callable[[], None], metrics: Metrics,
) -> tuple[Identity, Lease]:  # fmt: skip
    """Register, and go on trying until the metadata store answers; `addresses` are the clients' and the brokers'.

    A live id is never taken from another process: its lease is waited for, once; then BrokerIdTaken is raised.
    """
    wait_until: float | None = None
    if store.exclusive:
        await _patiently(store, chance, settings)
    while True:
        sent_at = clock.monotonic()
        try:
            registration = await store.run(
                register,
                broker_id=broker_id,
                incarnation=incarnation,
                zone=settings.zone,
                address=addresses[0],
                peer_address=addresses[1],
                ttl_ms=settings.lease_ms,
            )
        except BrokerIdTaken as taken:
            now = clock.monotonic()
            if wait_until is None:
                wait_until = now + max(taken.expires_in_ms / 1000, settings.lease_ms / 1000) * 1.5
            if now >= wait_until:
                raise
            await asyncio.sleep(min(taken.expires_in_ms / 1000 + 0.01, settings.lease_ms / 4000))
        except _WEATHER:
            await asyncio.sleep(chance.uniform(0.2, 1) * settings.lease_ms / 10_000)
        else:
            identity = Identity(cluster_id, broker_id, registration.broker_epoch, incarnation)
            deadline = sent_at + _SAFE_SHARE * settings.lease_ms / 1000
            lease = Lease(
                store=store,
                identity=identity,
                settings=settings,
                clock=clock,
                chance=chance,
                deadline=deadline,
                membership_changed=membership_changed,
                metrics=metrics,
            )
            _log.info("registered", broker_id=broker_id, broker_epoch=identity.broker_epoch)
            return identity, lease


async def _patiently(store: MetadataStore, chance: Random, settings: Settings) -> None:
    """End all earlier epochs where the store's process lock proves their processes dead."""
    while True:
        try:
            await store.run(end_every_epoch)
        except _WEATHER:
            await asyncio.sleep(chance.uniform(0.2, 1) * settings.lease_ms / 10_000)
        else:
            return
