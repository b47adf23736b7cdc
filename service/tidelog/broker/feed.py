"""News of commits: from leaders to those who follow their partitions, and how followers get on without.

A follower keeps, for each partition that somebody follows, the newest extents and the known high watermark, which never
goes back (I6). Where a leader's feed stands, news arrive by themselves; elsewhere one SQL statement asks for all such
partitions every `follower_poll_ms`. Whatever is missing between the two is asked of SQL by whoever reads it.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import pairwise
from typing import Protocol, Self

from tidelog.broker.cache import ReadStats
from tidelog.broker.catalog import Catalog
from tidelog.broker.lookups import Lookups
from tidelog.broker.references import CommittedExtents, FeedLink, Peers
from tidelog.config import Settings
from tidelog.errors import TidelogError
from tidelog.metadata.extents import Extent, PartitionExtents
from tidelog.metadata.membership import Broker
from tidelog.randomness import Random

_SWEEP_POLLS = 25
"""Every so many polls all partitions are asked for, those with a feed too: no news that got lost stays unnoticed."""
_LONGEST_BACKOFF_SECONDS = 10.0
_MOST_DOUBLINGS = 30
"""Of a pause between attempts: an outage may last for days, and the power must stay a number that a float can hold."""
_BOUNDS_ONLY = 2**62
"""An offset that no extent reaches: where nothing is known yet, the past is not asked for."""


class _Trust(Enum):
    """How far a partition's news can be relied on."""

    NONE = 0
    """Nobody is known to send them."""
    HEARD = 1
    """They are being sent; what came before must still be asked for."""
    SURE = 2


class Followed:
    """One partition that somebody follows, as far as this broker knows it."""

    def __init__(self, partition_id: int, *, most: int) -> None:
        self.partition_id = partition_id
        self.followers = 0
        self.high_watermark = 0
        self.log_start_offset = 0
        self.known = False
        """Whether SQL or a leader has told the high watermark."""
        self.tail_from = 0
        """Where the log ended when this was first known: what follows was committed just now, what is below is the past."""
        self.trust = _Trust.NONE
        self.source: _Source | None = None
        self.deleted = False
        """Whether its topic is known to be no more."""
        self._most = most
        self._window: list[Extent] = []
        self._waiting: dict[asyncio.Future[None], int] = {}

    def find(self, offset: int) -> Sequence[Extent]:
        """Return the extent that holds `offset` and those after it, if it is among the newest."""
        place = bisect_right(self._window, offset, key=lambda extent: extent.base_offset) - 1
        if place < 0 or self._window[place].next_offset <= offset:
            return ()
        return self._window[place:]

    def learn(self, end: int) -> None:
        """Note that the high watermark is known, and was `end` at first."""
        if not self.known:
            self.known, self.tail_from = True, end

    def raise_to(self, high_watermark: int, log_start_offset: int = 0) -> None:
        """Note bounds; neither ever goes back (I6)."""
        self.log_start_offset = max(self.log_start_offset, log_start_offset)
        if high_watermark > self.high_watermark:
            self.high_watermark = high_watermark
            self._wake()

    def delete(self) -> None:
        """Note that the topic is no more: nothing will ever come."""
        self.deleted = True
        self._wake()

    def _wake(self) -> None:
        for waiting, offset in list(self._waiting.items()):
            if (offset < self.high_watermark or self.deleted) and not waiting.done():
                waiting.set_result(None)

    def add(self, extents: Sequence[Extent]) -> bool:
        """Add newer extents to the window; return whether they follow on what was there."""
        end = self._window[-1].next_offset if self._window else None
        newer = [extent for extent in extents if end is None or extent.next_offset > end]
        if not newer:
            return True
        for number, (one, next_one) in enumerate(pairwise(newer)):
            if one.next_offset != next_one.base_offset:
                del newer[number + 1 :]  # a reader that gets there asks SQL
                break
        follows = end is None or newer[0].base_offset == end
        self._window = [*self._window, *newer][-self._most :] if follows else newer[-self._most :]
        return follows

    def forget(self) -> None:
        """Drop the extents: their objects may be gone."""
        self._window = []

    async def beyond(self, offset: int) -> None:
        """Wait until the high watermark lies beyond `offset`, or the topic is deleted."""
        if self.high_watermark > offset or self.deleted:
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = offset
        try:
            await waiting
        finally:
            del self._waiting[waiting]


class Feed:
    """What this broker follows, of whichever leaders."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        peers: Peers,
        lookups: Lookups,
        own_epoch: Callable[[], int | None],
        settings: Settings,
        chance: Random,
        stats: ReadStats,
    ) -> None:
        self._catalog = catalog
        self._peers = peers
        self._lookups = lookups
        self._own_epoch = own_epoch
        self._settings = settings
        self._chance = chance
        self._stats = stats
        self._followed: dict[int, Followed] = {}
        self._feeds: dict[int, _LeaderFeed] = {}
        self._here = _Here()
        self._wanted = asyncio.Event()
        """Set when somebody follows something."""
        self._polling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._catalog.on_change(self._route)
        self._polling = asyncio.ensure_future(self._poll_for_ever())
        return self

    async def __aexit__(self, *_: object) -> None:
        polling, self._polling = self._polling, None
        assert polling is not None
        polling.cancel()
        await asyncio.wait([polling])
        for feed in list(self._feeds.values()):
            feed.close()
        self._feeds.clear()

    @contextmanager
    def follow(self, partition_id: int) -> Iterator[Followed]:
        """Follow a partition while the context is open. One that nobody follows costs nothing."""
        followed = self._followed.get(partition_id)
        if followed is None:
            followed = self._followed[partition_id] = Followed(partition_id, most=self._settings.window_extents)
            self._place([followed])
        followed.followers += 1
        try:
            yield followed
        finally:
            followed.followers -= 1
            if not followed.followers:
                del self._followed[partition_id]
                self._leave([followed])

    def committed(self, news: CommittedExtents) -> None:
        """Take news of a commit, from a feed or from this broker's own leadership."""
        followed = self._followed.get(news.partition_id)
        if followed is None:
            return
        follows = followed.add(news.extents)
        if not follows or (not news.extents and news.high_watermark > followed.high_watermark):
            self._stats.news_gaps += 1
        if news.high_watermark:
            followed.learn(news.extents[0].base_offset if news.extents else news.high_watermark)
        followed.raise_to(news.high_watermark, news.log_start_offset)

    def reached(self, partition_id: int, next_offset: int) -> None:
        """Note that a partition is committed up to `next_offset` at least."""
        if (followed := self._followed.get(partition_id)) is not None:
            followed.raise_to(next_offset)

    async def exists(self, partition_id: int) -> bool:
        """Return whether the partition's topic is still there; SQL is asked."""
        await self._catalog.refresh()
        return self._catalog.partition_by_id(partition_id) is not None

    def looked_up(self, found: PartitionExtents) -> None:
        """Take what SQL says of a partition."""
        followed = self._followed.get(found.partition_id)
        if followed is None:
            return
        followed.learn(found.high_watermark)
        if found.extents and found.extents[-1].next_offset >= followed.high_watermark:
            followed.add(found.extents)
        followed.raise_to(found.high_watermark, found.log_start_offset)

    # ---- whom to hear

    def _route(self) -> None:
        if self._polling is not None:
            for followed in self._followed.values():
                if not followed.deleted and self._catalog.partition_by_id(followed.partition_id) is None:
                    followed.delete()
            self._place(self._followed.values())
            for epoch in [epoch for epoch, feed in self._feeds.items() if not feed.followed or self._catalog.broker(epoch) is None]:
                feed = self._feeds.pop(epoch)
                self._leave([self._followed[partition_id] for partition_id in feed.followed])
                feed.close()

    def _place(self, some: Iterable[Followed]) -> None:
        """Let each partition be followed at whoever leads it."""
        moving = [(followed, source) for followed in some if (source := self._source(followed.partition_id)) is not followed.source]
        self._leave([followed for followed, _ in moving])
        joining: dict[_Source, list[Followed]] = {}
        for followed, source in moving:
            followed.source = source
            if source is not None:
                joining.setdefault(source, []).append(followed)
        for source, these in joining.items():
            source.follow(these)
        self._wanted.set()

    def _source(self, partition_id: int) -> "_Source | None":
        leader = self._catalog.leader(partition_id)
        if leader is None:
            return None
        epoch = leader.broker.broker_epoch
        if epoch == self._own_epoch():
            return self._here
        if epoch not in self._feeds:
            self._feeds[epoch] = _LeaderFeed(self, leader.broker)
        return self._feeds[epoch]

    def _leave(self, some: Iterable[Followed]) -> None:
        sources: dict[_Source, list[Followed]] = {}
        for followed in some:
            if followed.source is not None:
                sources.setdefault(followed.source, []).append(followed)
            followed.source = None
            followed.trust = _Trust.NONE
        for source, these in sources.items():
            source.unfollow(these)

    def _heard(self, source: "_LeaderFeed", news: CommittedExtents) -> None:
        followed = self._followed.get(news.partition_id)
        if followed is not None and followed.source is source and followed.trust is _Trust.NONE:
            followed.trust = _Trust.HEARD
        self.committed(news)

    def _lost(self, source: "_LeaderFeed") -> None:
        for partition_id in source.followed:
            self._followed[partition_id].trust = _Trust.NONE

    # ---- polling

    async def _poll_for_ever(self) -> None:
        interval = self._settings.follower_poll_ms / 1000
        failures = 0
        for number in range(1, 2**63):
            while not self._followed:
                self._wanted.clear()
                await self._wanted.wait()
            swept = number % _SWEEP_POLLS == 0
            asked = [followed for followed in self._followed.values() if swept or followed.trust is not _Trust.SURE]
            if asked:
                failures = 0 if await self._poll(asked) else failures + 1
            pause = min(interval * 2 ** min(failures, _MOST_DOUBLINGS), max(interval, _LONGEST_BACKOFF_SECONDS))
            await asyncio.sleep(pause if not failures else self._chance.uniform(pause / 2, pause))

    async def _poll(self, asked: Sequence[Followed]) -> bool:
        """Ask for all of these partitions at once; return whether there was an answer."""
        heard = [(followed, followed.source) for followed in asked if followed.trust is _Trust.HEARD]
        self._stats.polls += 1
        try:
            read = await self._lookups.poll([(f.partition_id, f.high_watermark if f.known else _BOUNDS_ONLY) for f in asked])
        except TidelogError:  # asked again soon; whoever reads beyond what is known asks SQL, and hears why it does not answer
            self._stats.failed_polls += 1
            return False
        for found in read.partitions:
            self.looked_up(found)
        for followed, source in heard:
            if followed.trust is _Trust.HEARD and followed.source is source:
                followed.trust = _Trust.SURE
        return True

    # ---- feeds

    def _open(self, feed: "_LeaderFeed") -> FeedLink:
        self._stats.feeds_opened += 1
        return self._peers.feed(feed.broker, feed.receiver())

    def _broken(self, feed: "_LeaderFeed") -> float:
        """Note that a feed is gone; return after how many seconds to open it again."""
        self._stats.feeds_broken += 1
        self._lost(feed)
        longest = min(self._settings.follower_poll_ms / 1000 * 2 ** min(feed.failures, _MOST_DOUBLINGS), _LONGEST_BACKOFF_SECONDS)
        return self._chance.uniform(longest / 2, longest)


class _Here:
    """This broker's own leadership, whose news `Feed.committed` is told."""

    def follow(self, some: Sequence[Followed]) -> None:
        for followed in some:
            followed.trust = _Trust.HEARD

    def unfollow(self, some: Sequence[Followed]) -> None:
        """Do nothing: news of what nobody follows are not looked at."""


class _LeaderFeed:
    """The feed of one leader, opened again whenever it breaks."""

    def __init__(self, feed: Feed, broker: Broker) -> None:
        self.broker = broker
        self.followed: set[int] = set()
        self.failures = 0
        self._feed = feed
        self._link: FeedLink | None = None
        self._receiver: _Receiver | None = None
        self._again: asyncio.TimerHandle | None = None
        self._open()

    def receiver(self) -> "_Receiver":
        self._receiver = _Receiver(self)
        return self._receiver

    def follow(self, some: Sequence[Followed]) -> None:
        partition_ids = [followed.partition_id for followed in some]
        self.followed.update(partition_ids)
        if self._link is not None:
            self._link.follow(partition_ids)

    def unfollow(self, some: Sequence[Followed]) -> None:
        partition_ids = [followed.partition_id for followed in some]
        self.followed.difference_update(partition_ids)
        if self._link is not None:
            self._link.unfollow(partition_ids)

    def close(self) -> None:
        self._receiver = None
        if self._again is not None:
            self._again.cancel()
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def committed(self, receiver: "_Receiver", news: CommittedExtents) -> None:
        if receiver is self._receiver:
            self.failures = 0
            self._feed._heard(self, news)

    def broken(self, receiver: "_Receiver") -> None:
        if receiver is self._receiver:
            self._link = self._receiver = None
            pause = self._feed._broken(self)
            self.failures += 1
            self._again = asyncio.get_running_loop().call_later(pause, self._open)

    def _open(self) -> None:
        self._again = None
        link = self._feed._open(self)
        if self._receiver is not None:  # not broken already
            self._link = link
            if self.followed:
                link.follow(sorted(self.followed))


_Source = _Here | _LeaderFeed


class _Receiver:
    """The end of one opening of a feed: what an earlier one still says is not heard."""

    def __init__(self, leader: _LeaderFeed) -> None:
        self._leader = leader

    def committed(self, news: CommittedExtents) -> None:
        self._leader.committed(self, news)

    def broken(self) -> None:
        self._leader.broken(self)


# ---- the leader's side


class NewsReceiver(Protocol):
    """Where a feed's news goes. `server.ports` has the same: this package may not know the server."""

    def committed(self, news: CommittedExtents) -> None:
        """Take news of one partition."""
        ...


class FeedHub:
    """Where a leader's commits are told to those who follow them."""

    def __init__(self) -> None:
        self._sessions: dict[int, dict[HubSession, None]] = {}

    def open(self, receiver: NewsReceiver) -> "HubSession":
        """Open a leader's end of a feed."""
        return HubSession(self._sessions, receiver)

    def publish(self, news: CommittedExtents) -> None:
        """Tell of a commit, which is durable by now (I2)."""
        for session in tuple(self._sessions.get(news.partition_id, ())):
            session.receiver.committed(news)


class HubSession:
    """A follower at its leader. See `server.ports.FeedSession`."""

    def __init__(self, sessions: "dict[int, dict[HubSession, None]]", receiver: NewsReceiver) -> None:
        self.receiver = receiver
        self._sessions = sessions
        self._followed: set[int] = set()

    def follow(self, partition_ids: Sequence[int]) -> None:
        """Send news of these partitions from now on, and say so by news of nothing: the follower then asks SQL for what was before."""
        for partition_id in partition_ids:
            self._followed.add(partition_id)
            self._sessions.setdefault(partition_id, {})[self] = None
            self.receiver.committed(CommittedExtents(partition_id, (), 0, 0))

    def unfollow(self, partition_ids: Sequence[int]) -> None:
        """Send no more news of these partitions."""
        for partition_id in self._followed.intersection(partition_ids):
            self._followed.discard(partition_id)
            self._sessions[partition_id].pop(self, None)
            if not self._sessions[partition_id]:
                del self._sessions[partition_id]

    def close(self) -> None:
        """The feed is gone."""
        self.unfollow(tuple(self._followed))
