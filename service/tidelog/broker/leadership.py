"""Who should lead what, and bringing it about: take-over of what nobody leads, hand-over of what another should.

Everyone computes the same desired leaders from the same membership (`placement`); SQL lets a change through only under that
membership's version.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from tidelog.broker.catalog import Catalog
from tidelog.broker.ledger import Ledger
from tidelog.broker.placement import desired_leader
from tidelog.broker.references import Peers
from tidelog.config import Settings
from tidelog.errors import Fenced, MetadataOutcomeUnknown, MetadataUnavailable, MetadataUnusable
from tidelog.metadata.leadership import Leadership as LeadershipRow
from tidelog.metadata.leadership import take_over
from tidelog.metadata.store import MetadataStore
from tidelog.metrics import Metrics

_SLICE = 500
"""Partitions looked at before others on the event loop get their turn."""


class Leadership:
    """Keeps what this broker epoch leads as it should be."""

    def __init__(
        self, *, broker_epoch: int, store: MetadataStore, catalog: Catalog, ledger: Ledger, peers: Peers, settings: Settings,
        look_again: Callable[[], None], metrics: Metrics,
    ) -> None:  # fmt: skip
        self._broker_epoch = broker_epoch
        self._store = store
        self._catalog = catalog
        self._ledger = ledger
        self._peers = peers
        self._settings = settings
        self._look_again = look_again
        """Called where the catalog proved out of date: it is to be refreshed, and `reconcile` called again."""
        self._metrics = metrics
        self._desired: dict[int, str | None] = {}
        self._desired_for: tuple[str, ...] = ()
        self._settled: tuple[int, dict[int, int]] | None = None
        """The catalog's revision, and what was led, when there was nothing to do."""

    async def reconcile(self) -> None:
        """Step down from what is led elsewhere, take over what nobody leads, hand over what another should lead."""
        membership = self._catalog.membership
        if self._catalog.broker(self._broker_epoch) is None:
            return  # a poll from before the registration
        self._ledger.forget_writers(frozenset(broker.broker_epoch for broker in membership.brokers))
        active = tuple(broker.broker_id for broker in membership.brokers if not broker.draining)
        by_id = {broker.broker_id: broker.broker_epoch for broker in membership.brokers}
        if active != self._desired_for:
            self._desired.clear()
            self._desired_for = active
        own_id = self._own_id()
        orphans: list[int] = []
        elsewhere: dict[int, list[int]] = {}
        led = self._ledger.led()
        state = self._catalog.revision, dict(led)
        if state == self._settled:
            return
        rows = iter(list(self._catalog.leaderships().values()))
        while part := list(islice(rows, _SLICE)):
            for row in part:
                self._step_down_if_passed(row, led)
                mine = row.leader_broker_epoch == self._broker_epoch
                if not mine and row.leader_broker_epoch is not None and self._catalog.broker(row.leader_broker_epoch) is not None:
                    continue
                desired = self._desired_leader(row, active)
                if mine and row.partition_id not in led:
                    orphans.append(row.partition_id)  # led on paper only: it comes back under a new epoch
                elif not mine and desired == own_id:
                    orphans.append(row.partition_id)
                elif mine and desired is not None and desired != own_id:
                    elsewhere.setdefault(by_id[desired], []).append(row.partition_id)
            await asyncio.sleep(0)
        for gone in led.keys() - self._catalog.leaderships().keys():  # of a deleted topic
            self._ledger.step_down(gone)
        if not orphans and not elsewhere and len(led) == len(state[1]):
            self._settled = state
        await self._take_over(orphans, membership.version)
        for to_broker_epoch, partition_ids in elsewhere.items():
            self._ledger.hand_over(partition_ids, to_broker_epoch=to_broker_epoch, membership_version=membership.version)

    def handed_over(self, to_broker_epoch: int) -> None:
        """Tell a broker to whom something was handed over that it should look."""
        broker = self._catalog.broker(to_broker_epoch)
        if broker is not None:
            self._peers.nudge(broker)

    def _own_id(self) -> str:
        own = self._catalog.broker(self._broker_epoch)
        assert own is not None
        return own.broker_id

    def _step_down_if_passed(self, row: LeadershipRow, led: dict[int, int]) -> None:
        epoch = led.get(row.partition_id)
        if epoch is not None and row.leader_epoch > epoch:
            self._ledger.step_down(row.partition_id)
            del led[row.partition_id]

    def _desired_leader(self, row: LeadershipRow, active: Sequence[str]) -> str | None:
        if row.partition_id not in self._desired:
            self._desired[row.partition_id] = desired_leader(row.topic_id, row.partition, active)
        return self._desired[row.partition_id]

    async def _take_over(self, partition_ids: Iterable[int], membership_version: int) -> None:
        ids = iter(partition_ids)
        while batch := list(islice(ids, self._settings.take_over_batch_partitions)):
            try:
                taken = await self._store.run(
                    take_over, broker_epoch=self._broker_epoch, membership_version=membership_version, partition_ids=batch
                )
            except (Fenced, MetadataUnavailable, MetadataOutcomeUnknown, MetadataUnusable):
                self._look_again()
                return
            for led in taken:
                self._ledger.lead(led)
            self._metrics.take_overs.inc(len(taken))
            self._catalog.led_by(
                LeadershipRow(led.partition_id, led.topic_id, led.partition, self._broker_epoch, led.leader_epoch) for led in taken
            )
            if len(taken) < len(batch):
                self._look_again()
