"""What an object store charges, and what a load therefore costs: the formulas behind the metrics, `tidelog cluster cost` and docs/cost.md.

Numbers only: knows neither settings nor brokers. Defaults are Amazon's list prices of S3 Standard in us-east-1, in US dollars.
"""

from collections.abc import Mapping
from dataclasses import dataclass

GIB = 1 << 30
MONTH_HOURS = 730
MONTH_SECONDS = MONTH_HOURS * 3600


@dataclass(frozen=True, slots=True)
class Prices:
    """In US dollars."""

    put_dollars_per_1000: float = 0.005
    """PUT and LIST."""
    get_dollars_per_1000: float = 0.0004
    """GET and HEAD."""
    storage_dollars_per_gib_month: float = 0.023
    transfer_dollars_per_gb: float = 0.01
    """Between zones, paid at each end."""

    def of_request(self, operation: str) -> float:
        """Return what one request costs; deleting is free."""
        per_1000 = {"put": self.put_dollars_per_1000, "list": self.put_dollars_per_1000, "delete": 0.0}
        return per_1000.get(operation, self.get_dollars_per_1000) / 1000

    def of_requests(self, counts: Mapping[str, float]) -> float:
        """Return what so many requests, by operation, cost."""
        return sum(self.of_request(operation) * count for operation, count in counts.items())

    def of_month_stored(self, stored_bytes: float) -> float:
        """Return what keeping so many bytes costs for a month."""
        return stored_bytes / GIB * self.storage_dollars_per_gib_month

    def of_bytes_between_zones(self, carried_bytes: float) -> float:
        """Return what carrying so many bytes from one zone to another costs."""
        return carried_bytes / 1e9 * 2 * self.transfer_dollars_per_gb

    def cap_per_hour(self, puts_per_second: float, max_latency_seconds: float) -> float:
        """Return the most that one broker's segment uploads can cost in an hour while segments do not fill, retries and hedges aside.

        The budget, or where that is less a segment each time that an append has waited as long as it may.
        """
        return max(puts_per_second, 1 / max_latency_seconds) * 3600 * self.of_request("put")


@dataclass(frozen=True, slots=True)
class Load:
    """What is appended, kept and read."""

    bytes_per_second: float
    """Appended, as stored: after the clients' compression."""
    brokers: int
    puts_per_second: float = 50.0
    """Budget of each broker (`puts_per_second`)."""
    max_latency_seconds: float = 0.25
    """How long an append waits for company at most (`max_latency_ms`), whatever the budget is."""
    upload_seconds: float = 0.1
    """How long a PUT takes: an idle uploader begins the next segment when it is done."""
    segment_bytes: int = 8 << 20
    retention_days: float = 7
    merges: float = 2.0
    """How often merging writes each byte."""
    merge_part_bytes: int = 8 << 20
    reading_zones: int = 2
    """Zones that read what another zone's broker took in: each fetches it once."""
    read_block_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Bill:
    """What a load costs."""

    puts_per_second: float
    """Of intake."""
    intake_dollars: float
    """A month, as are all that follow."""
    merge_dollars: float
    read_dollars: float
    storage_dollars: float

    @property
    def dollars(self) -> float:
        """Everything that the bucket charges in a month."""
        return self.intake_dollars + self.merge_dollars + self.read_dollars + self.storage_dollars


def bill(load: Load, prices: Prices) -> Bill:
    """Return a month's bill of the bucket; `docs/cost.md` derives it."""
    each = load.bytes_per_second / load.brokers
    wished = 1 / load.upload_seconds + each / (load.segment_bytes / 8)
    allowed = max(load.puts_per_second, 1 / load.max_latency_seconds)
    puts = load.brokers * max(min(wished, allowed), each / load.segment_bytes)
    merged = load.bytes_per_second * load.merges / load.merge_part_bytes
    fetched = load.bytes_per_second * load.reading_zones / load.read_block_bytes
    put, get = prices.of_request("put"), prices.of_request("get")
    return Bill(
        puts_per_second=puts,
        intake_dollars=puts * put * MONTH_SECONDS,
        merge_dollars=merged * (put + get) * MONTH_SECONDS,
        read_dollars=fetched * get * MONTH_SECONDS,
        storage_dollars=prices.of_month_stored(load.bytes_per_second * load.retention_days * 24 * 3600),
    )


def replication_dollars(bytes_per_second: float, prices: Prices) -> float:
    """Return what a month of carrying the bytes between zones costs a log with leaders: producers to the leader in two thirds of the cases,
    leaders to two followers, each byte paid at both ends."""
    return prices.of_bytes_between_zones(bytes_per_second * (2 / 3 + 2)) * MONTH_SECONDS
