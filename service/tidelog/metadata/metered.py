"""A metadata store whose transactions are counted and timed by verb: a wrapper."""

from collections.abc import Awaitable, Callable
from typing import Concatenate

from tidelog.clock import Clock
from tidelog.errors import MetadataOutcomeUnknown, MetadataUnavailable, MetadataUnusable, TidelogError
from tidelog.metadata.store import MetadataStore, P, T, Transaction
from tidelog.metrics import Metrics, TransactionOutcome


class MeteredMetadataStore:
    """Wraps a store. A verb goes by its function's name; transactions whose caller is cancelled are not counted."""

    def __init__(self, store: MetadataStore, *, metrics: Metrics, clock: Clock) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self.exclusive = store.exclusive

    async def run(self, verb: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one verb as one transaction. See `MetadataStore.run`."""
        return await self._counted(verb, self._store.run(verb, *args, **kwargs))

    async def run_reserved(self, verb: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one verb on the reserved connection. See `MetadataStore.run_reserved`."""
        return await self._counted(verb, self._store.run_reserved(verb, *args, **kwargs))

    async def close(self) -> None:
        """Close the wrapped store."""
        await self._store.close()

    async def _counted(self, verb: Callable[..., T], transaction: Awaitable[T]) -> T:
        outcomes, seconds = self._metrics.transaction(getattr(verb, "__name__", "other"))
        began = self._clock.monotonic()
        try:
            answer = await transaction
        except TidelogError as error:
            outcomes[_outcome(error)].inc()
            raise
        finally:
            seconds.observe(self._clock.monotonic() - began)
        outcomes["done"].inc()
        return answer


def _outcome(error: TidelogError) -> TransactionOutcome:
    if isinstance(error, MetadataUnavailable):
        return "unavailable"
    if isinstance(error, MetadataOutcomeUnknown):
        return "unknown"
    return "unusable" if isinstance(error, MetadataUnusable) else "refused"
