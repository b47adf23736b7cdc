"""Who calls, and what they may do. The interceptor says who; the servicers ask before they touch a topic."""

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

    def check_operator(self) -> None:
        """Raise PermissionDenied unless the caller may administer the whole cluster: every topic."""
        if "" not in self.admin:
            raise PermissionDenied(f"{self.name} may not administer the cluster; that takes the admin scope for all topics")

    def _denied(self, verb: str, topic: str) -> PermissionDenied:
        return PermissionDenied(f"{self.name} may not {verb} topic {topic!r}, whether or not it exists; ask for a token with that scope")


ANYONE = Caller("anyone", read=_EVERYTHING, write=_EVERYTHING, admin=_EVERYTHING)
"""Who calls where nobody is asked for a token."""

_caller: ContextVar[Caller] = ContextVar("tidelog_caller")


def caller() -> Caller:
    """Return who makes the call that is being answered. Raises LookupError outside of calls: nobody is let in by accident."""
    return _caller.get()


def called_by(who: Caller) -> None:
    """Say who makes the call that this task answers."""
    _caller.set(who)
