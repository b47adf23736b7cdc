"""Every error that Tidelog raises on purpose, as one tree.

    TidelogError
    ├── InvalidRequest             what was asked can never work
    │   ├── CorruptBatch           bytes that are not a record batch, or break its rules
    │   ├── RecordTooLarge         beyond a limit of the settings
    │   └── InvalidSettings        a configuration value that cannot be used
    ├── CorruptSegment             a segment object that is not what it claims to be
    ├── StoreError                 the object store
    │   ├── ObjectNotFound
    │   ├── ObjectExists           the key holds other bytes already
    │   ├── StoreUnavailable       not done, try again
    │   ├── StoreOutcomeUnknown    may have happened, or may happen later
    │   └── StoreUnusable          wrong bucket, credentials or guarantees: a person must act
    └── MetadataError              the metadata store
        ├── MetadataUnavailable    not done, try again
        ├── MetadataOutcomeUnknown the transaction may have been committed
        ├── MetadataUnusable       wrong settings, schema or database: a person must act
        ├── TimeTravel             older than the bucket, or another bucket's (I11)
        ├── Fenced                 the caller's epoch, version or generation has passed
        ├── UnknownTopic, TopicExists, UnknownPartition
        └── BrokerIdTaken          another live process has this broker id

Each class knows its stable reason, its gRPC status by name, and whether the same request may be tried again.
Messages say what was asked, what was found, and what to do. "Not done" is only ever said of what can never become
visible (I5).
"""

from typing import ClassVar


class TidelogError(Exception):
    """Root of the tree."""

    reason: ClassVar[str] = "INTERNAL"
    status: ClassVar[str] = "INTERNAL"
    retriable: ClassVar[bool] = False


class InvalidRequest(TidelogError):
    """What was asked can never work, however often it is tried."""

    reason = "INVALID_REQUEST"
    status = "INVALID_ARGUMENT"


class CorruptBatch(InvalidRequest):
    """Bytes that are not a record batch, or break a rule of `docs/format.md`.

    `position` counts bytes from the start of what was given.
    """

    reason = "CORRUPT_BATCH"

    def __init__(self, problem: str, *, position: int) -> None:
        super().__init__(f"record batch at byte {position}: {problem}")
        self.problem = problem
        self.position = position


class RecordTooLarge(InvalidRequest):
    """A record, batch or append beyond a limit of the settings."""

    reason = "RECORD_TOO_LARGE"


class InvalidSettings(InvalidRequest):
    """A configuration value that cannot be used."""

    reason = "INVALID_SETTINGS"
    status = "FAILED_PRECONDITION"


class CorruptSegment(TidelogError):
    """A segment object that is not what it claims to be. `position` counts bytes from the object's first byte."""

    reason = "CORRUPT_SEGMENT"
    status = "DATA_LOSS"

    def __init__(self, problem: str, *, position: int) -> None:
        super().__init__(f"segment at byte {position}: {problem}")
        self.problem = problem
        self.position = position


class StoreError(TidelogError):
    """The object store did not do what was asked."""


class ObjectNotFound(StoreError):
    """No object has this key."""

    reason = "OBJECT_NOT_FOUND"
    status = "NOT_FOUND"


class ObjectExists(StoreError):
    """The key holds an object with other bytes. Keys are written once (I3)."""

    reason = "OBJECT_EXISTS"
    status = "ALREADY_EXISTS"


class StoreUnavailable(StoreError):
    """The store did not do it and will not; the same request may succeed later."""

    reason = "STORE_UNAVAILABLE"
    status = "UNAVAILABLE"
    retriable = True


class StoreOutcomeUnknown(StoreError):
    """A write or delete was sent and no answer came: it may have happened, or may happen later (I5)."""

    reason = "OUTCOME_UNKNOWN"
    status = "UNAVAILABLE"
    retriable = True


class StoreUnusable(StoreError):
    """Wrong bucket, endpoint, credentials or guarantees. Trying again does not help: a person must act."""

    reason = "STORE_UNUSABLE"
    status = "FAILED_PRECONDITION"


class MetadataError(TidelogError):
    """The metadata store did not do what was asked."""


class MetadataUnavailable(MetadataError):
    """The transaction was not committed and will not be; the same request may succeed later."""

    reason = "METADATA_UNAVAILABLE"
    status = "UNAVAILABLE"
    retriable = True


class MetadataOutcomeUnknown(MetadataError):
    """COMMIT was sent and no answer came: the transaction may have been committed, or may be (I5)."""

    reason = "OUTCOME_UNKNOWN"
    status = "UNAVAILABLE"
    retriable = True


class MetadataUnusable(MetadataError):
    """Wrong settings, schema, rights or database. Trying again does not help: a person must act."""

    reason = "METADATA_UNUSABLE"
    status = "FAILED_PRECONDITION"


class TimeTravel(MetadataError):
    """The metadata store is older than the bucket, or is not this bucket's (I11). Nothing may lead, append or clean."""

    reason = "TIME_TRAVEL"
    status = "FAILED_PRECONDITION"


class Fenced(MetadataError):
    """The caller's broker epoch, leader epoch, membership version or group generation has passed (I1, I6, I9)."""

    reason = "FENCED"
    status = "FAILED_PRECONDITION"


class UnknownTopic(MetadataError):
    """No topic has this name or id."""

    reason = "UNKNOWN_TOPIC"
    status = "NOT_FOUND"


class UnknownPartition(MetadataError):
    """The topic has no such partition."""

    reason = "UNKNOWN_PARTITION"
    status = "NOT_FOUND"


class TopicExists(MetadataError):
    """The name is taken."""

    reason = "TOPIC_EXISTS"
    status = "ALREADY_EXISTS"


class BrokerIdTaken(MetadataError):
    """Another process holds this broker id by a lease that has not expired."""

    reason = "BROKER_ID_TAKEN"
    status = "ALREADY_EXISTS"
    retriable = True

    def __init__(self, message: str, *, expires_in_ms: int) -> None:
        super().__init__(message)
        self.expires_in_ms = expires_in_ms
