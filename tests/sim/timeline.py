"""What happened in a run, in order: kept as it happens, put into words only where a run has to be explained."""

from collections.abc import Iterator
from dataclasses import dataclass, field

BEFORE_S = 4.0
AFTER_S = 0.5


@dataclass(frozen=True, slots=True)
class Violation:
    """What may not be, when and where it was seen first."""

    at: float
    name: str
    what: str
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """`who` did `what`; `partition` where it concerns just one."""

    at: float
    kind: str
    who: str
    what: str
    values: tuple[object, ...]
    partition: int | None

    def __str__(self) -> str:
        return f"{self.at:10.3f}  {self.kind:<8} {self.who:<10} {self.what.format(*self.values)}"


@dataclass
class Timeline:
    events: list[Event] = field(default_factory=list)

    def tell(self, at: float, kind: str, who: str, what: str, *values: object, partition: int | None = None) -> None:
        self.events.append(Event(at, kind, who, what, values, partition))

    def around(self, violation: Violation) -> Iterator[str]:
        """Yield the story of a violation: who led at the time, and what happened just before it."""
        leaders: dict[int, str] = {}
        begins = violation.at - BEFORE_S
        for event in self.events:
            if event.at > violation.at + AFTER_S:
                break
            if event.kind == "leads" and event.partition is not None:
                leaders[event.partition] = f"{event.who} {event.what.format(*event.values)}"
            if event.at < begins:
                continue
            if violation.partition is None or event.partition in (None, violation.partition):
                yield str(event)
        yield f"{violation.at:10.3f}  VIOLATION  {violation.name}: {violation.what}"
        yield "Leaders then:"
        for partition, leader in sorted(leaders.items()):
            yield f"  partition {partition}: {leader}"
