"""What a producer answers: where records are now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Ack(NamedTuple):
    """Where a record is now."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class AckRange:
    """Records of one `send_many` that stand next to each other in one partition."""

    topic: str
    partition: int
    base_offset: int
    next_offset: int
    indices: Sequence[int]
    """Which values they were, in the order of their offsets."""


class Acks(Sequence[Ack]):
    """The acknowledgements of one `send_many`: `ranges`, and one `Ack` per value for whoever asks."""

    def __init__(self, ranges: Sequence[AckRange], count: int, first_acks: Sequence[Ack], timestamps: Sequence[int] | None) -> None:
        self.ranges = ranges
        self._count = count
        self._first_acks = first_acks
        self._timestamps = timestamps
        self._places: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._count))]
        if self._places is None:
            self._places = [(0, 0)] * self._count
            for number, found in enumerate(self.ranges):
                for step, place in enumerate(found.indices):
                    self._places[place] = (number, step)
        number, step = self._places[index]
        found = self.ranges[number]
        timestamp = self._timestamps[index] if self._timestamps is not None else self._first_acks[number].timestamp_ms
        return Ack(found.topic, found.partition, found.base_offset + step, timestamp)
