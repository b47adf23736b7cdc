"""What a check of the store may find: each kind of fault, what it means and what to do; and the report of a check."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["damage", "danger", "waste", "unclear"]
"""Records are lost or unreadable; they may become so; storage is paid for nothing; it could not be found out."""

MOST_FINDINGS = 1000
"""Kept in a report; more are only counted."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault: what it means, and what to do."""

    severity: Severity
    means: str
    remedy: str


FAULTS = {
    "time-travel": Fault(
        "danger",
        "The metadata store is older than the bucket, or belongs to another one (I11).",
        "Let no broker start, delete nothing; bring back the newer database, or rebuild it from the bucket.",
    ),
    "missing-offsets": Fault(
        "damage",
        "No row says where these offsets are, so nobody can read them, nor what comes after them without skipping them.",
        "The bytes are most likely still in the bucket: stop the cleaner, and bring back the rows from a backup of the database.",
    ),
    "overlapping-offsets": Fault(
        "damage",
        "Two rows claim the same offsets, so readers may see different records under one offset.",
        "Stop those who read this partition; bring back the rows from a backup of the database.",
    ),
    "wrong-row": Fault(
        "damage",
        "A row contradicts itself or the rows beside it, so offsets and bytes do not belong together.",
        "Bring back the rows from a backup of the database.",
    ),
    "wrong-end": Fault(
        "damage",
        "The partition's end is not where its rows end: records beyond it cannot be read, and new ones would take their offsets.",
        "Stop all brokers before anything is appended there; bring back the row from a backup of the database.",
    ),
    "missing-object": Fault(
        "damage",
        "Live rows refer to an object that is not there (I7): its records cannot be read.",
        "Bring it back from a version or a replica of the bucket; find out who deleted it (life-cycle rules, other tools).",
    ),
    "missing-row": Fault(
        "damage",
        "A row is gone that others need, so the objects they refer to cannot be named.",
        "Bring it back from a backup of the database.",
    ),
    "wrong-object": Fault(
        "damage",
        "The object under this name is another one than was written there.",
        "Bring back the right one from a version or a replica of the bucket; give each cluster a prefix of its own.",
    ),
    "cut-object": Fault(
        "damage",
        "The object is shorter than rows say: records at its end cannot be read.",
        "Bring it back from a version or a replica of the bucket.",
    ),
    "damaged-footer": Fault(
        "danger",
        "The object does not say any more what is in it: its records can be read while the rows are there, but not be rebuilt from it.",
        "Bring it back from a version or a replica of the bucket; tidelog segment dump shows what is left.",
    ),
    "damaged-bytes": Fault(
        "damage",
        "The bytes of these records are not those that were written: consumers get an error instead of them.",
        "Bring the object back from a version or a replica of the bucket; tidelog segment dump shows what is left.",
    ),
    "damaged-remains": Fault(
        "waste",
        "The damaged bytes belong to no record: appends that were refused, or what is kept for nobody.",
        "Nothing is lost; look after the store that damaged them.",
    ),
    "wrong-reference": Fault(
        "damage",
        "A row refers to bytes that are not what it says, or that another row refers to as well.",
        "Bring back the rows from a backup of the database.",
    ),
    "wrong-state": Fault(
        "danger",
        "Rows do not fit each other.",
        "Bring them back from a backup of the database; report it, for Tidelog never writes this.",
    ),
    "unnoted-release": Fault(
        "waste",
        "Nobody reads this segment any more, but no note tells the cleaner, so it would lie there for ever.",
        "tidelog fsck --repair adds the note; the cleaner then decides by its own rules.",
    ),
    "stuck-release": Fault(
        "waste",
        "The cleaner has not deleted what was released long ago.",
        "Look whether a cleaner runs, and at what it has put into quarantine: its log and metrics say why.",
    ),
    "orphans": Fault(
        "waste",
        "Objects that no row knows and that nobody can commit any more: of appends that were never ordered, or of a crash.",
        "The cleaner deletes them; where there are ever more, look whether one runs.",
    ),
    "strange-object": Fault(
        "waste",
        "An object lies among the segments that this cluster has not written.",
        "Find out who writes there, and give it a prefix of its own. What is named as a segment of an ended epoch goes as orphans do.",
    ),
    "not-looked-at": Fault(
        "unclear",
        "The store did not answer, so nothing is known.",
        "Look after the store, and check again.",
    ),
}
"""By the code that a report names."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault."""

    code: str
    where: str
    what: str

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return FAULTS[self.code].severity

    @property
    def sentence(self) -> str:
        """What was found, what it means, and what to do."""
        fault = FAULTS[self.code]
        return f"{self.where}: {self.what}. {fault.means} {fault.remedy}"


@dataclass(slots=True)
class Report:
    """What a check has seen."""

    full: bool
    cluster_id: str = ""
    partitions: int = 0
    extents: int = 0
    records: int = 0
    """That rows refer to."""
    segments: int = 0
    """Objects that rows refer to."""
    referenced_bytes: int = 0
    batches_checked: int = 0
    bytes_read: int = 0
    objects: int = 0
    object_bytes: int = 0
    released_objects: int = 0
    """They wait for the cleaner."""
    released_bytes: int = 0
    unsettled_objects: int = 0
    """Their writer may still have them committed."""
    unsettled_bytes: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    looked_at_again: int = 0
    found: Counter[str] = field(default_factory=Counter)
    """How many findings there were, by code."""
    findings: list[Finding] = field(default_factory=list)
    """The first of them."""
    repairable: list[tuple[int, int, str]] = field(default_factory=list)
    """Released segments without a note: broker epoch, sequence, key."""
    repaired: int = 0

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it if there are not too many."""
        self.found[finding.code] += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)

    @property
    def sound(self) -> bool:
        """Whether nothing is lost, in danger, or unknown."""
        return all(FAULTS[code].severity == "waste" for code in self.found)
