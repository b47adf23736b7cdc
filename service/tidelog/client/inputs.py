"""What users hand to a producer, checked before it is taken."""

from collections.abc import Sequence
from types import NoneType

from tidelog.errors import InvalidRequest

Headers = Sequence[tuple[str, bytes | None]]

RECORD_OVERHEAD_BYTES = 12
_COLUMN_TYPES = {bytes, NoneType}


def as_bytes(name: str, value: object) -> bytes:
    """Return a value, key or header as bytes. Raises InvalidRequest."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise InvalidRequest(f"a {name} of type {type(value).__name__} was sent; give bytes, as in text.encode()")


def checked_column(name: str, column: Sequence[bytes | None]) -> Sequence[bytes | None]:
    """Return a column of bytes and None. Raises InvalidRequest."""
    if not set(map(type, column)) - _COLUMN_TYPES and isinstance(column, list | tuple):
        return column
    return [None if value is None else as_bytes(name, value) for value in column]


def checked_headers(headers: Headers) -> tuple[Headers, int]:
    """Return headers, and about how many bytes they take. Raises InvalidRequest."""
    checked = []
    size = 0
    for item in headers:
        try:
            name, given = item
            size += len(name.encode())
        except (TypeError, ValueError, AttributeError):
            raise InvalidRequest(f"a header {item!r} was sent; give pairs of a name (str) and a value (bytes or None)") from None
        value = None if given is None else as_bytes("header value", given)
        checked.append((name, value))
        size += len(value or b"") + RECORD_OVERHEAD_BYTES
    return checked, size


def check_timestamps(timestamps: Sequence[int]) -> None:
    """Raise InvalidRequest for times that no record can have."""
    for edge in (min(timestamps), max(timestamps)):
        if not 0 <= edge < 1 << 62:
            raise InvalidRequest(f"a timestamp of {edge!r} was sent; give Unix milliseconds, not before 1970")


def sizes(column: Sequence[bytes | None]) -> list[int]:
    """Return about how many bytes a record of each takes."""
    try:
        return list(map(RECORD_OVERHEAD_BYTES.__add__, map(len, column)))  # type: ignore[arg-type]
    except TypeError:  # a None among them
        return [RECORD_OVERHEAD_BYTES + (0 if value is None else len(value)) for value in column]
