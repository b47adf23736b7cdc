"""What users hand to a producer, checked before it is taken."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from operator import index
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


def checked_column(name: str, column: Sequence[bytes | None]) -> list[bytes | None]:
    """Return a column of bytes and None as a list. Raises InvalidRequest."""
    if not set(map(type, column)) - _COLUMN_TYPES:
        return column if isinstance(column, list) else list(column)
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


def checked_name(what: str, name: str) -> None:
    """Raise InvalidRequest for what cannot be a name. Whether it is one, brokers say."""
    try:
        if name.encode():
            return
    except (AttributeError, UnicodeEncodeError):
        raise InvalidRequest(f"a {what} {name!r} was named; give a str that UTF-8 can encode") from None
    raise InvalidRequest(f"a {what} without a name was asked for; name one")


def checked_offset(what: str, offset: int) -> int:
    """Return an offset. Raises InvalidRequest for what can be none."""
    try:
        if 0 <= (number := index(offset)) < 1 << 63:
            return number
    except TypeError:
        pass
    raise InvalidRequest(f"{what}={offset!r} was given; give an offset, a whole number from 0")


def checked_timestamps(timestamps: Sequence[int]) -> Sequence[int]:
    """Return times in Unix milliseconds. Raises InvalidRequest for those that no record can have."""
    if set(map(type, timestamps)) - {int}:
        try:
            timestamps = list(map(index, timestamps))  # integers of other kinds, numpy's for example
        except TypeError as error:
            raise InvalidRequest(f"a timestamp was sent that is no whole number: {error}; give Unix milliseconds") from error
    for edge in (min(timestamps), max(timestamps)):
        if not 0 <= edge < 1 << 62:
            raise InvalidRequest(f"a timestamp of {edge!r} was sent; give Unix milliseconds, not before 1970")
    return timestamps


def sizes(values: Sequence[bytes | None], keys: Sequence[bytes | None] | None) -> list[int]:
    """Return how many bytes each record has, beside its overhead."""
    found = _lengths(values)
    return found if keys is None else list(map(int.__add__, found, _lengths(keys)))


def largest(values: Sequence[bytes | None], keys: Sequence[bytes | None] | None) -> int:
    """Return how many bytes the largest record has, beside its overhead."""
    if keys is None:
        with suppress(TypeError):  # a None among them
            return max(map(len, values), default=0)  # type: ignore[arg-type]
    return max(sizes(values, keys), default=0)


def runs(
    values: list[bytes | None], keys: list[bytes | None] | None, *, aim_bytes: int
) -> Iterator[tuple[list[bytes | None], list[bytes | None] | None, int]]:
    """Cut columns into runs of at least one record and about `aim_bytes`; yield the values, keys and bytes of each.

    How many records that is, is guessed from the run before; only where the guess was too high are lengths added up one by one.
    """
    start = 0
    count = max(1, aim_bytes // (RECORD_OVERHEAD_BYTES + sum(sizes(values[:1], keys and keys[:1]))))
    while start < len(values):
        run, run_keys = values[start : start + count], keys and keys[start : start + count]
        lengths = sizes(run, run_keys)
        size = sum(lengths) + RECORD_OVERHEAD_BYTES * len(run)
        if size > aim_bytes and len(run) > 1:
            ends = list(accumulate(RECORD_OVERHEAD_BYTES + length for length in lengths))
            end = max(1, bisect_right(ends, aim_bytes))
            run, run_keys, size = run[:end], run_keys and run_keys[:end], ends[end - 1]
        yield run, run_keys, size
        start += len(run)
        count = max(1, len(run) * aim_bytes // size)


def _lengths(column: Sequence[bytes | None]) -> list[int]:
    try:
        return list(map(len, column))  # type: ignore[arg-type]
    except TypeError:  # a None among them
        return [0 if value is None else len(value) for value in column]
