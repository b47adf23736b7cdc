"""Uploads: sealed segments to the bucket, several at a time, each until it is durable or nobody waits for it any more.

Uploads run concurrently, but are reported in the order of their sequences: references leave in that order (I2).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import BrokerError, NotReady, StoreError, StoreOutcomeUnknown, StoreUnavailable, TimedOut
from tidelog.metrics import Metrics
from tidelog.objects.store import ObjectStore
from tidelog.randomness import Random
from tidelog.segments.format import ChunkSource, Footer, Origin, encode_intake
from tidelog.segments.keys import IntakeKey
from tidelog.telemetry import get_logger

_log = get_logger(__name__)
_BACKOFF_BASE_S = 0.05
_BACKOFF_MOST_S = 2.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who writes: one life of one broker."""

    cluster_id: str
    broker_id: str
    broker_epoch: int
    incarnation: str


@dataclass(frozen=True, slots=True)
class UploadFailed:
    """The upload was given up, and why. Whether the object exists does not matter: no reference to it was ever sent."""

    error: BrokerError


Report = Callable[[Footer | UploadFailed], None]


class Uploads:
    """Carries the segments of one broker epoch to the bucket."""

    def __init__(
        self, *, identity: Identity, bucket: ObjectStore, settings: Settings, clock: Clock, chance: Random, spawn: Callable[..., object],
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self._identity = identity
        self._bucket = bucket
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._spawn = spawn
        """Starts a task that is seen to its end."""
        self._order: dict[int, tuple[Report, Footer | UploadFailed | None]] = {}
        self._metrics = metrics
        self.in_flight = 0

    @property
    def full(self) -> bool:
        """Whether as many uploads are under way as may be."""
        return self.in_flight >= self._settings.max_uploads

    def begin(
        self, sequence: int, sources: Sequence[ChunkSource], give_up_at: Callable[[], float], *, report: Report, ended: Callable[[], None]
    ) -> None:
        """Upload a segment.

        `ended` is called once its bytes are needed no more, in any order; then `report`, once it is durable or given up,
        after those of all lower sequences.
        """
        self.in_flight += 1
        self._order[sequence] = (report, None)
        self._spawn(self._run(sequence, sources, give_up_at, ended))

    def pass_over(self, sequence: int) -> None:
        """Report on those that follow without waiting for this one: nobody wants it any more, and `report` is not called for it."""
        self._order.pop(sequence, None)
        self._report_in_order()

    async def _run(self, sequence: int, sources: Sequence[ChunkSource], give_up_at: Callable[[], float], ended: Callable[[], None]) -> None:
        began = self._clock.monotonic()
        self._metrics.uploads_in_flight.inc()
        try:
            result = await self._upload(sequence, sources, give_up_at)
        except Exception as error:  # noqa: BLE001 - a defect that one segment meets must not hold back those that follow it
            _log.error("upload_failed_unexpectedly", sequence=sequence, exc_info=error)
            result = UploadFailed(NotReady(f"this broker could not upload the append's segment, so it was not done: {error!r}"))
        finally:
            self.in_flight -= 1
            self._metrics.uploads_in_flight.dec()
            ended()
        self._metrics.upload_seconds.observe(self._clock.monotonic() - began)
        self._metrics.uploads["done" if isinstance(result, Footer) else "given_up"].inc()
        if sequence in self._order:
            self._order[sequence] = (self._order[sequence][0], result)
            self._report_in_order()

    def _report_in_order(self) -> None:
        while self._order:
            sequence = next(iter(self._order))
            report, result = self._order[sequence]
            if result is None:
                return
            del self._order[sequence]
            report(result)

    async def _upload(self, sequence: int, sources: Sequence[ChunkSource], give_up_at: Callable[[], float]) -> Footer | UploadFailed:
        identity = self._identity
        origin = Origin(identity.cluster_id, identity.broker_id, identity.broker_epoch, sequence, self._clock.wall_ms())
        parts, footer = encode_intake(sources, origin)
        key = str(IntakeKey(identity.broker_id, identity.broker_epoch, sequence, identity.incarnation))
        backoff_s = _BACKOFF_BASE_S
        while True:
            try:
                await self._bucket.put_new(key, parts)
            except (StoreUnavailable, StoreOutcomeUnknown) as error:  # weather: the same key and bytes again (I5)
                left_s = give_up_at() - self._clock.monotonic()
                if left_s <= 0:
                    return UploadFailed(TimedOut(f"the append's segment could not be uploaded in time, so it was not done: {error}"))
                await asyncio.sleep(min(self._chance.uniform(0, backoff_s), left_s))
                backoff_s = min(backoff_s * 2, _BACKOFF_MOST_S)
            except StoreError as error:  # a person must act; meanwhile this broker goes on trying with what comes
                _log.warning("upload_given_up", sequence=sequence, reason=error.reason, problem=str(error))
                return UploadFailed(NotReady(f"this broker cannot write to its bucket, so the append was not done: {error}"))
            else:
                return footer
