"""The bill that docs/cost.md shows is the formula's, and the command's figures are what brokers counted."""

import re
from pathlib import Path

import pytest
from tidelog.cli.cost import bill as bill_of
from tidelog.config import Settings
from tidelog.costs import GIB, Load, Prices, bill, replication_dollars

PAGE = Path(__file__).parents[2] / "docs" / "cost.md"
LOADS = (
    ("1 MB/s", Load(1e6, 3)),
    ("1 MB/s", Load(1e6, 3, puts_per_second=1, max_latency_seconds=1)),
    ("10 MB/s", Load(1e7, 3)),
    ("10 MB/s", Load(1e7, 3, puts_per_second=4)),
    ("1 GiB/s", Load(GIB, 6)),
    ("1 GiB/s", Load(GIB, 6, puts_per_second=22)),
)


def row(name: str, load: Load) -> str:
    found = bill(load, Prices())
    parts = (found.intake_dollars, found.merge_dollars, found.read_dollars, found.storage_dollars, found.dollars)
    shown = [f"${dollars:,.0f}" for dollars in (*parts, replication_dollars(load.bytes_per_second, Prices()))]
    dials = f"{load.puts_per_second:g} | {load.max_latency_seconds * 1000:g}"
    return f"| {name} | {load.brokers} | {dials} | {found.puts_per_second:,.0f} | {' | '.join(shown)} |"


def test_the_page_shows_what_the_formula_gives() -> None:
    shown = re.search(r"<!-- bill -->\n.*\n.*\n((?:.*\n)*)<!-- /bill -->", PAGE.read_text())
    assert shown
    assert shown[1].splitlines() == [row(name, load) for name, load in LOADS]


def test_sentences_of_the_page_are_right() -> None:
    text = PAGE.read_text()
    cap = Prices().cap_per_hour(1, 1)
    assert f"${cap:.3f} an hour, ${cap * 730:.2f} a month, for each PUT a second" in text
    day, week = (bill(Load(GIB, 6, retention_days=days), Prices()).storage_dollars for days in (1, 7))
    assert f"${day:,.2f} instead of ${week:,.2f}" in text
    assert f"${Prices().of_request('put') * 730 * 3600 / 30:.2f} a month at 30 s" in text
    settings = Settings(bucket="s3://b")
    assert (settings.segment_puts_per_second, settings.segment_bytes) == (Load(1, 1).puts_per_second, Load(1, 1).segment_bytes)
    assert settings.max_latency_ms == Load(1, 1).max_latency_seconds * 1000
    assert settings.read_block_bytes == Load(1, 1).read_block_bytes
    prices = Prices()
    assert (settings.put_dollars_per_1000, settings.get_dollars_per_1000) == (prices.put_dollars_per_1000, prices.get_dollars_per_1000)
    assert settings.storage_dollars_per_gib_month == prices.storage_dollars_per_gib_month


@pytest.mark.parametrize("rate", [1, 1e6, 1e9])
def test_the_budget_caps_what_intake_costs_until_segments_are_whole(rate: float) -> None:
    load = Load(rate, 2, puts_per_second=3, max_latency_seconds=0.5)
    capped = max(Prices().cap_per_hour(3, 0.5) * 730 * 2, rate / load.segment_bytes * 730 * 3600 * Prices().of_request("put"))
    assert bill(load, Prices()).intake_dollars == pytest.approx(capped)


def test_a_bill_adds_up_brokers_and_tells_of_those_that_are_silent() -> None:
    def series(puts: float, appended: float) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            ("tidelog_store_requests_total", frozenset({("operation", "put")})): puts,
            ("tidelog_store_dollars_total", frozenset({("operation", "put")})): puts * 0.005 / 1000,
            ("tidelog_append_bytes_total", frozenset({("result", "accepted")})): appended,
            ("tidelog_stored_bytes", frozenset()): 5.0 * GIB,
            ("tidelog_price_dollars", frozenset({("of", "gib_month")})): 0.023,
            ("tidelog_topic_taken_bytes_total", frozenset({("topic", "t")})): 30,
            ("tidelog_topic_taken_bytes_total", frozenset({("topic", "")})): 10,
        }

    before = {"a": series(100, 0), "b": series(500, 7), "c": None}
    found = bill_of(before, {"a": series(110, GIB), "b": series(20, 0), "c": series(9, 9)}, seconds=10)
    assert (found.brokers, found.silent) == (2, ["c"])
    assert found.requests["put"] == 10 + 20, "one began anew"
    assert found.dollars_per_hour["put"] == pytest.approx(30 * 360 * 0.005 / 1000)
    assert found.request_dollars_per_gib == pytest.approx(30 * 0.005 / 1000)
    assert found.storage_dollars_per_month == pytest.approx(10 * 0.023)
    assert found.dollars_per_month == pytest.approx(30 * 360 * 0.005 / 1000 * 730 + 0.23)
    assert found.topic_shares == {"t": 0.75, "": 0.25}
