"""Who calls, and what they may do. The interceptor says who; the servicers ask before they touch a topic.

Long-lived streams ask again and again: a token that is taken back ends what was opened with it.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from tidelog.errors import PermissionDenied

Prefixes = tuple[str, ...]
_EVERYTHING: Prefixes = ("",)


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller and the prefixes of the topics that it may read, write and administer; the empty prefix is every topic."""

    name: str
    read: Prefixes = ()
    write: Prefixes = ()
    admin: Prefixes = ()

    def may_read(self, topic: str) -> bool:
        """Return whether the caller may read a topic of this name."""
        return topic.startswith(self.read)

    def may_write(self, topic: str) -> bool:
        """Return whether the caller may append to a topic of this name."""
        return topic.startswith(self.write)

    def may_see(self, topic: str) -> bool:
        """Return whether the caller may know of a topic of this name."""
        return topic.startswith(self.read + self.write + self.admin)

    def check_read(self, topic: str) -> None:
        """Raise PermissionDenied unless the caller may read the topic. Asked first, so that it tells nothing of what exists."""
        if not self.may_read(topic):
            raise self._denied("read", topic)

    def check_write(self, topic: str) -> None:
        """Raise PermissionDenied unless the caller may append to the topic."""
        if not self.may_write(topic):
            raise self._denied("write to", topic)

    def check_see(self, topic: str) -> None:
        """Raise PermissionDenied unless the caller may know of the topic."""
        if not self.may_see(topic):
            raise self._denied("look at", topic)

    def check_admin(self, topic: str) -> None:
        """Raise PermissionDenied unless the caller may administer the topic."""
        if not topic.startswith(self.admin):
            raise self._denied("administer", topic)

    def check_see_all(self) -> None:
        """Raise PermissionDenied unless the caller may know of every topic: how much there is says what there is."""
        if "" not in self.read + self.write + self.admin:
            raise PermissionDenied(f"{self.name} may not look at the cluster; that takes a scope on all topics")

    def check_operator(self) -> None:
        """Raise PermissionDenied unless the caller may administer the whole cluster: every topic."""
        if "" not in self.admin:
            raise PermissionDenied(f"{self.name} may not administer the cluster; that takes the admin scope for all topics")

    def _denied(self, verb: str, topic: str) -> PermissionDenied:
        return PermissionDenied(f"{self.name} may not {verb} topic {topic!r}, whether or not it exists; ask for a token with that scope")


ANYONE = Caller("anyone", read=_EVERYTHING, write=_EVERYTHING, admin=_EVERYTHING)
"""Who calls where nobody is asked for a token."""

Standing = Callable[[], Caller]
"""Says who makes a call, and what they may do by now. Raises Unauthenticated where they are not let in any more."""

_standing: ContextVar[Standing] = ContextVar("tidelog_standing")


def caller() -> Caller:
    """Return who makes the call that is being answered. Raises LookupError outside of calls: nobody is let in by accident."""
    return _standing.get()()


def standing() -> Standing:
    """Return what streams ask for as long as they are open."""
    return _standing.get()


def called_by(who: Standing) -> None:
    """Say who makes the call that this task answers."""
    _standing.set(who)
