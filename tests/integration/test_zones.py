"""Bytes that cross zones: counted by brokers from what clients say, and priced by `tidelog cluster cost`."""

import pytest
import tidelog
from tidelog.cli.cost import bill
from tidelog.cli.scrape import Series
from tidelog.errors import InvalidRequest
from tidelog.proto.v1 import log_pb2

from tests.served import Served, serving


def counted(served: Served) -> dict[str, tuple[float, float]]:
    """Return the bytes from and to clients, by where these are."""

    def value(direction: str, zone: str) -> float:
        return served.registry.get_sample_value("tidelog_client_bytes_total", {"direction": direction, "zone": zone}) or 0.0

    return {zone: (value("in", zone), value("out", zone)) for zone in ("same", "other", "unknown")}


async def exchange(served: Served, zone: str | None) -> None:
    """Append some bytes by a stream, and read them all by another."""
    async with tidelog.connect(served.server.address, zone=zone) as log:
        async with log.producer() as producer:
            await producer.send("t", bytes(1000), partition=0)
        assert [len(record.value or b"") async for record in log.consume("t", follow=False)][-1] == 1000


async def test_bytes_are_counted_by_whether_the_client_is_in_the_brokers_zone() -> None:
    async with serving(zone="zone-a") as served:
        assert counted(served) == {"same": (0, 0), "other": (0, 0), "unknown": (0, 0)}
        for zone, relation in (("zone-a", "same"), ("zone-b", "other"), (None, "unknown")):
            before = counted(served)
            await exchange(served, zone)
            after = counted(served)
            assert {name for name in after if after[name] != before[name]} == {relation}
            took, gave = after[relation]
            assert 1000 < took < 1200
            assert gave >= took, "all that is there"


async def test_plain_calls_are_counted_too() -> None:
    async with serving(zone="zone-a") as served:
        told = (("tidelog-zone", "zone-b"),)
        await served.log.Append(log_pb2.AppendRequest(topic="t", partition=0, records=[log_pb2.Record(value=bytes(500))]), metadata=told)
        where = log_pb2.TopicPartition(topic="t", partition=0)
        await served.log.Read(log_pb2.ReadRequest(partition=where, start=log_pb2.Position(earliest=True)), metadata=told)
        took, gave = counted(served)["other"]
        assert 500 < took < 600
        assert 500 < gave < 600


async def test_a_broker_that_does_not_know_its_zone_knows_of_no_crossing() -> None:
    async with serving() as served:
        await exchange(served, "zone-b")
        found = counted(served)
    assert (found["same"], found["other"]) == ((0, 0), (0, 0))
    assert found["unknown"][0] > 1000


@pytest.mark.parametrize("zone", ["zürich", "a b", "x" * 256])
def test_a_zone_that_cannot_travel_is_refused(zone: str) -> None:
    with pytest.raises(InvalidRequest, match="write the zone's name"):
        tidelog.connect("localhost:1", zone=zone)


def test_the_bill_tells_what_crossing_costs() -> None:
    """$0.01 a GB at each end: 1 MB/s for a month of 730 hours, as in docs/cost.md."""

    def series(seconds: float) -> Series:
        def bytes_of(direction: str, zone: str) -> tuple[str, frozenset[tuple[str, str]]]:
            return "tidelog_client_bytes_total", frozenset({("direction", direction), ("zone", zone)})

        price = ("tidelog_price_dollars", frozenset({("of", "gb_between_zones")}))
        return {
            bytes_of("in", "other"): 1e6 * seconds * 0.75,
            bytes_of("out", "other"): 1e6 * seconds * 0.25,
            bytes_of("in", "same"): 5e6 * seconds,
            price: 0.01,
        }

    found = bill({"a": series(0)}, {"a": series(10)}, seconds=10)
    assert found.client_bytes == {"same": 5e7, "other": 1e7, "unknown": 0}
    assert found.transfer_dollars_per_month == pytest.approx(1e6 * 730 * 3600 / 1e9 * 0.02)
    assert found.dollars_per_month == pytest.approx(found.transfer_dollars_per_month)
