"""The intake's side of the reference protocol: each partition's references, in order, to whoever leads it now.

What is not answered is sent again, to the same leader after a broken link, or to the next one under its leader epoch, until
it is answered or nobody waits for it any more. The rules are those of `references`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidelog.broker.catalog import Catalog
from tidelog.broker.ledger import Ledger
from tidelog.broker.references import Answer, AppendOutcome, AppendReference, Peers, Reference, ReferenceLink
from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.metrics import Metrics
from tidelog.randomness import Random

_CHECK_EVERY = 0.2
"""Of the time-out of a link."""
_RETRY_LEAST_S = 0.02
_RETRY_MOST_S = 0.1


@dataclass(slots=True, eq=False)
class Outstanding:
    """One partition's appends of one uploaded segment, on their way to an answer."""

    partition_id: int
    sequence: int
    appends: tuple[AppendReference, ...]
    answered: Callable[["Outstanding", Sequence[AppendOutcome]], None]
    """Called once, with this reference and an outcome for each append; never after `withdraw`.

    It must not hold the reference itself: the bytes of its appends would stay until the collector came by.
    """
    number: int = -1
    sent: bool = False
    sent_at: float = 0.0
    tried_epoch: int = 0
    earlier_epoch: int = 0


class _Queue:
    """One partition's outstanding references, in order, and the leader epoch that they are numbered for."""

    __slots__ = ("epoch", "next_number", "outstanding", "retry")

    def __init__(self) -> None:
        self.epoch = 0
        self.next_number = 0
        self.outstanding: list[Outstanding] = []
        self.retry: asyncio.TimerHandle | None = None


class _Link:
    """An open link to one leader, and the partitions whose references went over it."""

    def __init__(self, outbox: "Outbox", leader_epoch: int) -> None:
        self._outbox = outbox
        self._leader_broker_epoch = leader_epoch
        self.partitions: set[int] = set()
        self.wire: ReferenceLink | None = None

    def answered(self, answers: Sequence[Answer]) -> None:
        """Take answers."""
        self._outbox.answered(answers)

    def broken(self) -> None:
        """Send again what was not answered."""
        self._outbox.broken(self._leader_broker_epoch, self)


class _OwnLedger:
    """The link to oneself: a call in this process."""

    def __init__(self, ledger: Ledger, writer_epoch: int, link: _Link) -> None:
        self._session = ledger.session(writer_epoch, link)

    def send(self, references: Sequence[Reference]) -> None:
        """Offer the references."""
        self._session.offer(references)

    def close(self) -> None:
        """End the session."""
        self._session.close()


class Outbox:
    """Sends the references of one intake."""

    def __init__(
        self, *, broker_epoch: int, catalog: Catalog, ledger: Ledger, peers: Peers, settings: Settings, clock: Clock, chance: Random,
        resolved_sequence: Callable[[], int], lost: Callable[[], None], metrics: Metrics,
    ) -> None:  # fmt: skip
        self._broker_epoch = broker_epoch
        self._catalog = catalog
        self._ledger = ledger
        self._peers = peers
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._resolved_sequence = resolved_sequence
        self._lost = lost
        """Told when a leader did not take a reference: the catalog may be out of date."""
        self._metrics = metrics
        self._queues: dict[int, _Queue] = {}
        self._links: dict[int, _Link] = {}
        self._check_links_at = 0.0
        self._ended = False

    def submit(self, references: Sequence[Outstanding]) -> None:
        """Send the references of a segment; those of one partition must come in the order of their segments."""
        for reference in references:
            self._queues.setdefault(reference.partition_id, _Queue()).outstanding.append(reference)
        self._kick([reference.partition_id for reference in references])

    def withdraw(self, reference: Outstanding) -> None:
        """Stop sending a reference: nobody waits for it any more. It may be committed all the same (I5)."""
        self._remove(reference)

    def leadership_changed(self) -> None:
        """Send what waits to the leaders that the catalog knows now."""
        waiting = []
        for partition_id, queue in self._queues.items():
            leader = self._catalog.leader(partition_id)
            if leader is not None and (leader.leader_epoch > queue.epoch or any(not each.sent for each in queue.outstanding)):
                waiting.append(partition_id)
        self._kick(waiting)
        for broker_epoch in [epoch for epoch in self._links if self._catalog.broker(epoch) is None]:
            self._close(broker_epoch)

    def check_links(self) -> None:
        """Make links anew that have not answered for too long. May be called often: looks a few times per time-out."""
        now = self._clock.monotonic()
        if now < self._check_links_at:
            return
        self._check_links_at = now + self._settings.peer_timeout_ms / 1000 * _CHECK_EVERY
        late = now - self._settings.peer_timeout_ms / 1000
        for broker_epoch, link in list(self._links.items()):
            waiting = (each for partition_id in link.partitions for each in self._outstanding(partition_id))
            if any(each.sent and each.sent_at < late for each in waiting):
                self._close(broker_epoch)

    def end(self) -> None:
        """Send no more: the broker epoch is over. Nothing that is outstanding is answered."""
        self._ended = True
        for queue in self._queues.values():
            if queue.retry is not None:
                queue.retry.cancel()
        for link in self._links.values():
            if link.wire is not None:
                link.wire.close()
        self._links.clear()

    def answered(self, answers: Sequence[Answer]) -> None:
        """Take answers from a leader. Those of an earlier leader epoch are not looked at: the present one is asked, too."""
        not_now = []
        for answer in answers:
            queue = self._queues.get(answer.partition_id)
            if queue is None or answer.leader_epoch != queue.epoch or answer.broker_epoch != self._broker_epoch:
                continue
            reference = next((each for each in queue.outstanding if each.number == answer.number), None)
            if reference is None:
                continue
            self._metrics.references_answered["not_now" if answer.outcomes is None else "decided"].inc()
            if answer.outcomes is None:
                reference.sent = False
                not_now.append(answer.partition_id)
            else:
                self._remove(reference)
                reference.answered(reference, answer.outcomes)
        for partition_id in not_now:
            self._retry_later(partition_id)
        if not_now:
            self._lost()

    def broken(self, leader_broker_epoch: int, link: _Link) -> None:
        """Send again what went over a link that is gone."""
        if self._links.get(leader_broker_epoch) is not link:
            return
        self._close(leader_broker_epoch)
        self._lost()

    def _close(self, leader_broker_epoch: int) -> None:
        link = self._links.pop(leader_broker_epoch)
        if link.wire is not None:
            link.wire.close()
        for partition_id in link.partitions:
            for reference in self._outstanding(partition_id):
                reference.sent = False
            self._retry_later(partition_id)

    def _outstanding(self, partition_id: int) -> Sequence[Outstanding]:
        queue = self._queues.get(partition_id)
        return () if queue is None else queue.outstanding

    def _remove(self, reference: Outstanding) -> None:
        queue = self._queues.get(reference.partition_id)
        if queue is None or reference not in queue.outstanding:
            return
        queue.outstanding.remove(reference)

    def _retry_later(self, partition_id: int) -> None:
        queue = self._queues.get(partition_id)
        if self._ended or queue is None or queue.retry is not None or not queue.outstanding:
            return
        delay_s = self._chance.uniform(_RETRY_LEAST_S, _RETRY_MOST_S)
        queue.retry = asyncio.get_running_loop().call_later(delay_s, self._retry, partition_id)

    def _retry(self, partition_id: int) -> None:
        queue = self._queues.get(partition_id)
        if queue is not None:
            queue.retry = None
            self._kick([partition_id])

    def _kick(self, partition_ids: Sequence[int]) -> None:
        if self._ended:
            return
        now = self._clock.monotonic()
        batches: dict[int, list[Reference]] = {}
        resolved = self._resolved_sequence()
        for partition_id in partition_ids:
            queue = self._queues[partition_id]
            leader = self._catalog.leader(partition_id)
            if leader is None or leader.leader_epoch < queue.epoch or not queue.outstanding:
                if queue.outstanding:
                    self._lost()
                continue
            if leader.leader_epoch > queue.epoch:
                self._renumber(queue, leader.leader_epoch)
            link = self._link(leader.broker.broker_epoch)
            link.partitions.add(partition_id)
            batch = batches.setdefault(leader.broker.broker_epoch, [])
            for each in queue.outstanding:
                if each.number < 0:
                    each.number = queue.next_number
                    queue.next_number += 1
                if not each.sent:
                    self._metrics.references_sent.inc()
                    if each.tried_epoch:
                        self._metrics.references_repeated.inc()
                    batch.append(self._reference(each, queue, resolved))
                    each.sent, each.sent_at, each.tried_epoch = True, now, queue.epoch
        for broker_epoch, references in batches.items():
            link = self._links[broker_epoch]
            if references and link.wire is not None:
                link.wire.send(references)

    def _renumber(self, queue: _Queue, leader_epoch: int) -> None:
        queue.epoch = leader_epoch
        queue.next_number = 0
        for each in queue.outstanding:
            each.number = -1
            each.sent = False
            each.earlier_epoch = each.tried_epoch

    def _reference(self, each: Outstanding, queue: _Queue, resolved: int) -> Reference:
        return Reference(
            partition_id=each.partition_id,
            broker_epoch=self._broker_epoch,
            sequence=each.sequence,
            leader_epoch=queue.epoch,
            number=each.number,
            lowest_wanted=queue.outstanding[0].number,
            tried_epoch=each.earlier_epoch,
            resolved_sequence=resolved,
            appends=each.appends,
        )

    def _link(self, leader_broker_epoch: int) -> _Link:
        link = self._links.get(leader_broker_epoch)
        if link is None:
            link = self._links[leader_broker_epoch] = _Link(self, leader_broker_epoch)
            if leader_broker_epoch == self._broker_epoch:
                link.wire = _OwnLedger(self._ledger, self._broker_epoch, link)
            else:
                broker = self._catalog.broker(leader_broker_epoch)
                assert broker is not None, "the catalog named it a moment ago"
                link.wire = self._peers.references(broker, link)
        return link
