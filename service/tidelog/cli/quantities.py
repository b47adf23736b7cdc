"""Durations, sizes and positions as people write them; numbers as people read them."""

import re
from datetime import datetime, timedelta
from typing import Any

import typer

# Amazon S3 Standard, us-east-1, list price in US dollars.
PUT_DOLLARS = 0.005 / 1000
GET_DOLLARS = 0.0004 / 1000
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_UNITS_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PART = re.compile(r"(\d+)(ms|[smhdw])")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_WITHOUT_END = {"forever", "-1"}
_WITHOUT_LIMIT = {"unlimited", "-1"}


def duration_ms(text: Any) -> int:
    """Read `7d`, `1h30m`, `500ms`; "forever" is -1. Raises typer.BadParameter."""
    if isinstance(text, int):
        return text
    if text.lower() in _WITHOUT_END:
        return -1
    if not _DURATION.fullmatch(text.lower()):
        raise typer.BadParameter(f"{text!r} is no duration; write numbers with units ms, s, m, h, d, w, as in 7d or 1h30m, or forever")
    return sum(int(number) * _UNITS_MS[unit] for number, unit in _PART.findall(text.lower()))


def size_bytes(text: Any) -> int:
    """Read `64KiB`, `10g`, `1048576`; units are powers of 1024, "unlimited" is -1. Raises typer.BadParameter."""
    if isinstance(text, int):
        return text
    if text.lower() in _WITHOUT_LIMIT:
        return -1
    found = re.fullmatch(r"(\d+)\s*([kmgt]?)(?:i?b)?", text.lower())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size; write a number of bytes, or one with KiB, MiB, GiB or TiB, or unlimited")
    return int(found[1]) * _UNITS_BYTES[found[2]]


def where(text: Any) -> "str | int | datetime":
    """Read a position: earliest, latest, an offset, a time in ISO 8601 (local where it names no zone), or how long ago it was, as 15m.

    Raises typer.BadParameter.
    """
    if text in ("earliest", "latest"):
        return str(text)
    if text.isdecimal():
        return int(text)
    try:
        if _DURATION.fullmatch(text.lower()):
            return datetime.now().astimezone() - timedelta(milliseconds=duration_ms(text))
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no position; write earliest, latest, an offset, a time as in 2030-01-31T12:00:00Z, or how long ago as in 15m"
        ) from None


def shown_ms(milliseconds: int | None) -> str:
    """Return a duration as `duration_ms` reads it."""
    if milliseconds is None:
        return "default"
    if milliseconds < 0:
        return "forever"
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        count, milliseconds = divmod(milliseconds, _UNITS_MS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def shown_limit(count: int | None) -> str:
    """Return a limit of bytes."""
    return "default" if count is None else "unlimited" if count < 0 else shown_bytes(count)


def shown_bytes(count: float) -> str:
    """Return bytes with a unit and three digits or so."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def counted(count: int, noun: str) -> str:
    """Return `1 record`, `2,000 records`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
