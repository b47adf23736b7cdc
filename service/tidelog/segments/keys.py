"""Names of segment objects, below a cluster's prefix. `docs/format.md` is the specification."""

import re
from dataclasses import dataclass

from tidelog.errors import InvalidRequest

_BROKER_ID = re.compile(r"[a-z0-9-]{1,63}")
_INTAKE = re.compile(r"intake/([a-z0-9-]{1,63})/(\d{10,})/(\d{20})-([0-9a-f]{32})\.seg")
_MERGED = re.compile(r"merged/([0-9a-f]{32})/(\d+)/(\d{20})-([a-z0-9-]{1,63})-(\d{10,})-(\d{20})\.seg")

ASIDE = "aside/"
"""Below it lie copies of segments that a rebuild has left aside, under their own keys. Nothing lists or deletes them."""


@dataclass(frozen=True, slots=True)
class IntakeKey:
    """Names an intake segment."""

    broker_id: str
    broker_epoch: int
    sequence: int
    incarnation: str

    def __str__(self) -> str:
        _check_broker_id(self.broker_id)
        return f"intake/{self.broker_id}/{self.broker_epoch:010}/{self.sequence:020}-{self.incarnation}.seg"


@dataclass(frozen=True, slots=True)
class MergedKey:
    """Names a merged segment."""

    topic_id: str
    partition: int
    base_offset: int
    broker_id: str
    broker_epoch: int
    sequence: int

    def __str__(self) -> str:
        _check_broker_id(self.broker_id)
        name = f"{self.base_offset:020}-{self.broker_id}-{self.broker_epoch:010}-{self.sequence:020}.seg"
        return f"merged/{self.topic_id}/{self.partition}/{name}"


def parse_key(key: str) -> IntakeKey | MergedKey | None:
    """Return what a key names; None where it names no segment."""
    if match := _INTAKE.fullmatch(key):
        broker_id, epoch, sequence, incarnation = match.groups()
        return IntakeKey(broker_id, int(epoch), int(sequence), incarnation)
    if match := _MERGED.fullmatch(key):
        topic_id, partition, base_offset, broker_id, epoch, sequence = match.groups()
        return MergedKey(topic_id, int(partition), int(base_offset), broker_id, int(epoch), int(sequence))
    return None


def _check_broker_id(broker_id: str) -> None:
    if not _BROKER_ID.fullmatch(broker_id):
        raise InvalidRequest(f"broker id {broker_id!r} cannot be part of a key; use 1 to 63 of the characters a-z, 0-9 and -")
