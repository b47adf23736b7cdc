"""Every error that Tidelog raises on purpose, as one tree.

    TidelogError
    ├── InvalidRequest             what was asked can never work
    │   ├── CorruptBatch           bytes that are not a record batch, or break its rules
    │   │   └── UnreadableBatch    a stored batch whose records are not what its producer said
    │   ├── RecordTooLarge         beyond a limit of the settings
    │   └── InvalidSettings        a configuration value that cannot be used
    ├── CorruptSegment             a segment object that is not what it claims to be
    ├── CorruptCheckpoint          a checkpoint object that is not what it claims to be
    ├── StoreError                 the object store
    │   ├── ObjectNotFound
    │   ├── ObjectExists           the key holds other bytes already
    │   ├── StoreUnavailable       not done, try again
    │   ├── StoreOutcomeUnknown    may have happened, or may happen later
    │   └── StoreUnusable          wrong bucket, credentials or guarantees: a person must act
    ├── MetadataError              the metadata store
    │   ├── MetadataUnavailable    not done, try again
    │   ├── MetadataOutcomeUnknown the transaction may have been committed
    │   ├── MetadataUnusable       wrong settings, schema or database: a person must act
    │   ├── TimeTravel             older than the bucket, or another bucket's (I11)
    │   ├── Fenced                 the caller's epoch, version or generation has passed
    │   ├── UnknownTopic, TopicExists, UnknownPartition
    │   └── BrokerIdTaken          another live process has this broker id
    └── BrokerError                a broker did not do what was asked
        ├── Throttled, Draining, NotReady   not done, try again (here later, or elsewhere)
        ├── TimedOut               not done within the time given
        ├── OutcomeUnknown         the append may be committed, or may become so
        ├── ConditionFailed, OutOfOrderSequence, UnknownProducer, ProducerFenced   the leader's refusals of an append
        ├── OffsetOutOfRange
        ├── Unauthenticated, PermissionDenied
        └── NotServed                  this release has no such thing

Each class knows its stable reason, its gRPC status by name, and whether the same request may be tried again.
Messages say what was asked, what was found, and what to do. "Not done" is only ever said of what can never become
visible (I5).
"""

from typing import ClassVar


class TidelogError(Exception):
    """Root of the tree; by itself, a failure that nobody foresaw, whose text stays in the broker's telemetry."""

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


class UnreadableBatch(CorruptBatch):
    """A stored batch whose records are not what its header says: its producer wrote it so, under a CRC that holds."""

    status = "DATA_LOSS"


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


class CorruptCheckpoint(TidelogError):
    """A checkpoint object that is not what it claims to be."""

    reason = "CORRUPT_CHECKPOINT"
    status = "DATA_LOSS"


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


class BrokerError(TidelogError):
    """A broker did not do what was asked."""


class Throttled(BrokerError):
    """Not done: a limit of the broker is reached. Try again later, or on another broker (I10)."""

    reason = "THROTTLED"
    status = "RESOURCE_EXHAUSTED"
    retriable = True


class Draining(BrokerError):
    """Not done: this broker is about to leave. Try another."""

    reason = "DRAINING"
    status = "UNAVAILABLE"
    retriable = True


class NotReady(BrokerError):
    """Not done: this broker has no lease now, or the partition no leader yet. Try again, here or elsewhere."""

    reason = "NOT_READY"
    status = "UNAVAILABLE"
    retriable = True


class TimedOut(BrokerError):
    """Not done within the time given, and it never will be."""

    reason = "TIMED_OUT"
    status = "DEADLINE_EXCEEDED"
    retriable = True


class OutcomeUnknown(BrokerError):
    """The append may be committed, or may become so (I5). An idempotent producer may send it again as it is."""

    reason = "OUTCOME_UNKNOWN"
    status = "UNAVAILABLE"
    retriable = True


class ConditionFailed(BrokerError):
    """The partition does not end where the append expected, or its fencing token is another."""

    reason = "CONDITION_FAILED"
    status = "FAILED_PRECONDITION"


class OutOfOrderSequence(BrokerError):
    """A sequence number that does not follow the last one of its producer."""

    reason = "OUT_OF_ORDER_SEQUENCE"
    status = "FAILED_PRECONDITION"


class UnknownProducer(BrokerError):
    """The partition knows nothing of this producer, which has appended here before: its state has expired."""

    reason = "UNKNOWN_PRODUCER"
    status = "FAILED_PRECONDITION"


class ProducerFenced(BrokerError):
    """A newer epoch of this producer has appended."""

    reason = "PRODUCER_FENCED"
    status = "FAILED_PRECONDITION"


class OffsetOutOfRange(BrokerError):
    """The offset is below the log start or beyond the high watermark."""

    reason = "OFFSET_OUT_OF_RANGE"
    status = "OUT_OF_RANGE"

    def __init__(self, message: str, *, log_start_offset: int = -1, high_watermark: int = -1) -> None:
        super().__init__(message)
        self.log_start_offset = log_start_offset
        self.high_watermark = high_watermark


class Unauthenticated(BrokerError):
    """No token or certificate, or one that is not known or has expired."""

    reason = "UNAUTHENTICATED"
    status = "UNAUTHENTICATED"


class PermissionDenied(BrokerError):
    """The caller is known, but may not do this. Says nothing about whether what was named exists."""

    reason = "PERMISSION_DENIED"
    status = "PERMISSION_DENIED"


class NotServed(BrokerError):
    """This release has no such thing; a later one may."""

    reason = "NOT_SERVED"
    status = "UNIMPLEMENTED"
