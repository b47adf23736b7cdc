"""Leases, epochs and leaving, of whole brokers on virtual time and a metadata store that can be away, or slow."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import pytest
from tidelog.broker.broker import Broker
from tidelog.broker.rebuild import rebuild
from tidelog.errors import Draining, MetadataUnavailable, NotReady
from tidelog.metadata.marks import report_resolved
from tidelog.metadata.membership import end_expired_epochs, register, set_draining
from tidelog.metadata.store import MetadataStore
from tidelog.metadata.topics import TopicConfig

from tests.cluster import QUICK, Cluster, append, on_virtual_time, until

T = TypeVar("T")
LEASE_S = 10.0
SETTINGS = QUICK.model_copy(update={"lease_ms": int(LEASE_S * 1000), "append_timeout_ms": 60_000, "catalog_poll_ms": 500})


class Weather:
    """A metadata store behind whatever a test makes of it."""

    exclusive = False

    def __init__(self, store: MetadataStore) -> None:
        self._store = store
        self.away = False
        self.busy: set[Callable[..., object]] = set()
        """Verbs that take very long, because others hold the rows they need."""
        self.late_s = 0.0
        """How long answers take to come back."""
        self.close = store.close

    async def run(self, verb: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        await asyncio.sleep(0.002)
        if self.away:
            await asyncio.sleep(0.1)
            raise MetadataUnavailable("the store is away")
        if verb in self.busy:
            await asyncio.sleep(0.9 * LEASE_S)
        answer = await self._store.run(verb, *args, **kwargs)
        await asyncio.sleep(self.late_s)
        return answer

    run_reserved = run


def weather(broker: Broker) -> Weather:
    """A broker's way to the store."""
    assert isinstance(broker._store, Weather)
    return broker._store


def away(brokers: Iterable[Broker], *, away: bool) -> None:
    for broker in brokers:
        weather(broker).away = away


async def three(cluster: Cluster) -> list[Broker]:
    brokers = []
    for name in ("one", "two", "three"):
        brokers.append(await cluster.start(name, SETTINGS, Weather))
        await asyncio.sleep(LEASE_S / 8)  # so that they do not all renew at the same moment
    await brokers[0].create_topic("clicks", partitions=6, config=TopicConfig())
    await until(lambda: all(broker.catalog.topic("clicks") is not None for broker in brokers))
    await asyncio.sleep(2 * LEASE_S)  # so that everyone may end expired epochs
    return brokers


def epochs(brokers: Iterable[Broker]) -> list[int | None]:
    return [None if broker.life is None else broker.life.identity.broker_epoch for broker in brokers]


def test_an_outage_of_the_store_ends_nobodys_epoch_and_is_a_pause_for_appends() -> None:
    """However long it is, whoever renewed last before it, and whoever is back first."""

    async def outage(cluster: Cluster, leases: float, phase: float) -> None:
        brokers = await three(cluster)
        before = epochs(brokers)
        await asyncio.sleep(phase * LEASE_S)
        away(brokers, away=True)
        waiting = [asyncio.ensure_future(append(broker, "clicks", b"v", partition=p)) for broker in brokers for p in range(6)]
        await asyncio.sleep(leases * LEASE_S)
        for back in sorted(brokers, key=deadline, reverse=True):
            weather(back).away = False
            await asyncio.sleep(LEASE_S / 20)
        await asyncio.gather(*waiting)
        await asyncio.sleep(2.1 * LEASE_S)
        assert epochs(brokers) == before, (leases, phase)

    for leases in (0.75, 0.9, 3.0):
        for phase in (0.0, 0.1, 0.2):
            on_virtual_time(partial(outage, leases=leases, phase=phase))()


@on_virtual_time
async def test_a_broker_whose_lease_has_lapsed_takes_nothing_until_it_is_renewed(cluster: Cluster) -> None:
    """Its epoch may have been ended: what it took would be of no writer any more."""
    brokers = await three(cluster)
    away(brokers, away=True)
    await asyncio.sleep(LEASE_S)
    with pytest.raises(NotReady, match="lease could not be renewed, so it may not take appends; nothing was done"):
        await append(brokers[0], "clicks", b"v")
    assert "lease could not be renewed" in (brokers[0].ready() or "")
    away(brokers, away=False)
    await until(lambda: brokers[0].ready() is None)
    assert (await append(brokers[0], "clicks", b"v")).base_offset == 0


def deadline(broker: Broker) -> float:
    assert broker.life is not None
    return broker.life.lease._deadline


@on_virtual_time
async def test_a_broker_that_died_in_an_outage_is_found_out_one_lease_after_it(cluster: Cluster) -> None:
    brokers = await three(cluster)
    away(brokers, away=True)
    await cluster.kill("two")
    await asyncio.sleep(3 * LEASE_S)
    away(brokers, away=False)
    await until(lambda: len(brokers[0].catalog.membership.brokers) == 2, seconds=1.5 * LEASE_S)


@on_virtual_time
async def test_a_lease_is_counted_from_before_its_renewal_was_sent(cluster: Cluster) -> None:
    """The store counts from when it was asked; the answer may have been under way for long."""
    one, *_ = await three(cluster)
    weather(one).late_s = 3.0
    await asyncio.sleep(LEASE_S)
    before = deadline(one)
    await until(lambda: deadline(one) > before, seconds=LEASE_S)
    assert deadline(one) - asyncio.get_running_loop().time() < 0.8 * LEASE_S - 2.9


@on_virtual_time
async def test_a_broker_that_is_to_drain_goes_on_accepting_until_balancers_have_noticed(cluster: Cluster) -> None:
    settings = SETTINGS.model_copy(update={"drain_propagation_ms": 5000})
    one, two = [await cluster.start(name, settings) for name in ("one", "two")]
    await one.create_topic("clicks", partitions=2, config=TopicConfig())
    await one.drain("two", undo=False)
    await until(lambda: two.ready() == "this broker was asked to drain")
    assert (await append(two, "clicks", b"a")).base_offset == 0
    await asyncio.sleep(6)
    with pytest.raises(Draining, match="the append was not done: send it to another broker"):
        await append(two, "clicks", b"b")
    await one.drain("two", undo=True)
    await until(lambda: two.ready() is None)
    assert (await append(two, "clicks", b"c")).base_offset == 1


@on_virtual_time
async def test_renewals_wait_for_nothing_else(cluster: Cluster) -> None:
    """What comes with a renewal waits for rows that commits hold; the lease must not lapse meanwhile."""
    brokers = await three(cluster)
    for broker in brokers:
        weather(broker).busy = {report_resolved, end_expired_epochs}
    await cluster.kill("two")  # something to end
    appending = asyncio.ensure_future(append_until_cancelled(brokers[0]))  # something to report
    for _ in range(500):
        await asyncio.sleep(LEASE_S / 100)
        assert brokers[0].ready() is None
    appending.cancel()
    await until(lambda: len(brokers[0].catalog.membership.brokers) == 2, seconds=3 * LEASE_S)


async def append_until_cancelled(broker: Broker) -> None:
    while True:
        await asyncio.gather(*(append(broker, "clicks", b"v", partition=p) for p in range(6)))
        await asyncio.sleep(LEASE_S / 10)


@on_virtual_time
async def test_a_drain_waits_for_a_store_that_is_away_and_loses_nothing(cluster: Cluster) -> None:
    brokers = await three(cluster)
    away(brokers, away=True)
    taken = [asyncio.ensure_future(append(brokers[0], "clicks", b"v", partition=p)) for p in range(6)]
    await asyncio.sleep(1)
    leaving = asyncio.ensure_future(brokers[0].drain_and_end())
    await asyncio.sleep(1)
    assert not leaving.done()
    away(brokers, away=False)
    await leaving
    assert [each.base_offset for each in await asyncio.gather(*taken)] == [0] * 6
    with pytest.raises(Draining, match="send it to another broker"):
        await append(brokers[0], "clicks", b"v")
    await append(brokers[1], "clicks", b"v")


@on_virtual_time
async def test_a_drain_gives_up_when_the_store_stays_away(cluster: Cluster) -> None:
    brokers = await three(cluster)
    away(brokers, away=True)
    began = asyncio.get_running_loop().time()
    await brokers[0].drain_and_end()
    waited_s = asyncio.get_running_loop().time() - began
    assert SETTINGS.drain_timeout_ms / 1000 <= waited_s < SETTINGS.drain_timeout_ms / 1000 + 1


@on_virtual_time
async def test_brokers_that_all_leave_do_not_wait_for_each_other_and_leave_everything_in_the_bucket(cluster: Cluster) -> None:
    """One that wants to hand over to another finds that this one leaves, too: then there is nobody to wait for."""
    brokers = await three(cluster)
    await asyncio.gather(*(append(brokers[0], "clicks", b"v", partition=p) for p in range(6)))
    began = asyncio.get_running_loop().time()
    await asyncio.gather(*(broker.drain_and_end() for broker in brokers))
    assert asyncio.get_running_loop().time() - began < 5, "which is far less than drain_timeout_ms"
    report = await rebuild(bucket=cluster.bucket, into=None, newer="append")
    assert report.certain
    assert report.exact_records == 6


@on_virtual_time
async def test_the_last_broker_waits_for_those_that_died_while_they_left_but_not_with_its_checkpoint(cluster: Cluster) -> None:
    """It cannot know that they are dead; its own time to leave may be up before their leases are."""
    brokers = [await cluster.start(name, SETTINGS.model_copy(update={"drain_timeout_ms": 300})) for name in ("one", "two")]
    await brokers[0].create_topic("clicks", partitions=1, config=TopicConfig())
    await cluster.store.run(set_draining, broker_id="two", draining=True)
    await until(lambda: (life := brokers[0].life) is not None and len(life.ledger.led()) == 1)
    await asyncio.sleep(5)  # there is a checkpoint with the topic
    await append(brokers[0], "clicks", b"v")
    await cluster.kill("two")
    await brokers[0].drain_and_end()
    report = await rebuild(bucket=cluster.bucket, into=None, newer="append")
    assert (report.exact, report.exact_records, report.certain) == (True, 1, False)


@on_virtual_time
async def test_a_broker_that_was_replaced_under_its_id_leaves_without_sending_its_successor_away(cluster: Cluster) -> None:
    (one, two, _) = await three(cluster)
    assert one.life is not None
    await cluster.store.run(lambda tx: tx.execute("UPDATE brokers SET lease_expires_at_ms = 0 WHERE broker_id = 'one'"))
    await cluster.store.run(
        register, broker_id="one", incarnation="successor", zone="", address="x:1", peer_address="x:1", ttl_ms=1_000_000
    )
    await one.drain_and_end()
    await two.catalog.refresh()
    (successor,) = (broker for broker in two.catalog.membership.brokers if broker.broker_id == "one")
    assert successor.address == "x:1"
    assert not successor.draining
