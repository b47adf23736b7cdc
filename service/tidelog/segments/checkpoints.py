"""Checkpoint objects: rows of the metadata store as they are kept in the bucket. `docs/format.md` is the specification.

Knows bytes and rows only: not what the rows mean, nor where they come from. Rows travel as JSON, compressed: tables and their columns
are named, so that a later release can add some, and a person can read one with nothing but zstd.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any

import orjson

from tidelog.errors import CorruptBatch, CorruptCheckpoint
from tidelog.records.checksum import crc32c
from tidelog.records.compression import DecompressionLimits, compress, decompress

VERSION = 1
PREFIX = "checkpoint/"
MAX_BYTES = 256 * 1024 * 1024
"""Of one object, compressed or not."""

_MAGIC = b"TIDC"
_HEADER = Struct("<4sHHII")
_LIMITS = DecompressionLimits(max_bytes=MAX_BYTES, max_ratio=100_000)
_KEY = re.compile(r"checkpoint/(\d{20})-(\d{10,})/(\d{20})(?:\.head|-(\d{6})\.page)")


class CheckpointKind(IntEnum):
    """What a checkpoint object is."""

    PAGE = 1
    """Rows, named by a head."""
    HEAD = 2
    """The last object of a checkpoint: it names the others, and holds what did not fill a page."""


@dataclass(frozen=True, slots=True, order=True)
class CheckpointKey:
    """Names a checkpoint object. Checkpoints that build on each other lie in one folder, named by the first."""

    base: int
    """Number of the folder's first checkpoint, which holds everything."""
    broker_epoch: int
    number: int
    page: int | None = None
    """None: the head."""

    @property
    def folder(self) -> tuple[int, int]:
        """What all checkpoints that build on each other share."""
        return self.base, self.broker_epoch

    def __str__(self) -> str:
        name = ".head" if self.page is None else f"-{self.page:06}.page"
        return f"{PREFIX}{self.base:020}-{self.broker_epoch:010}/{self.number:020}{name}"


@dataclass(frozen=True, slots=True)
class PageRef:
    """A page or an earlier head, as a head names it."""

    key: str
    length: int
    crc32c: int
    """Of the whole object."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of one table."""

    table: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class CheckpointObject:
    """A page or a head."""

    kind: CheckpointKind
    about: dict[str, Any]
    """What a head says of its checkpoint; empty in a page."""
    blocks: tuple[Block, ...]


def parse_checkpoint_key(key: str) -> CheckpointKey | None:
    """Return what a key names; None where it names no checkpoint object."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    base, epoch, number, page = match.groups()
    return CheckpointKey(int(base), int(epoch), int(number), None if page is None else int(page))


def encode_checkpoint(found: CheckpointObject) -> bytes:
    """Return the bytes of a page or a head."""
    lines = [orjson.dumps(found.about)]
    lines += [orjson.dumps({"table": block.table, "columns": block.columns, "rows": block.rows}) for block in found.blocks]
    body = compress(b"\n".join(lines), "zstd")
    return _HEADER.pack(_MAGIC, VERSION, found.kind, len(body), crc32c(body)) + body


def decode_checkpoint(data: bytes) -> CheckpointObject:
    """Return the checked content of a page or a head. Raises CorruptCheckpoint."""
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise CorruptCheckpoint(f"its {len(data)} bytes do not begin as a checkpoint does")
    _, version, kind, length, expected = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if version > VERSION:
        raise CorruptCheckpoint(f"it is of version {version}, but this release knows versions up to {VERSION}; use a newer release")
    if length != len(body):
        raise CorruptCheckpoint(f"its header says {length} bytes follow, but {len(body)} do")
    if (found := crc32c(body)) != expected:
        raise CorruptCheckpoint(f"its CRC-32C says {expected:#010x}, but its bytes give {found:#010x}")
    if kind not in set(CheckpointKind):
        raise CorruptCheckpoint(f"it is of kind {kind}, which this release does not know")
    try:
        about, *blocks = [orjson.loads(line) for line in decompress(body, "zstd", limits=_LIMITS).split(b"\n")]
        return CheckpointObject(CheckpointKind(kind), dict(about), tuple(_block(block) for block in blocks))
    except (CorruptBatch, ValueError, TypeError, KeyError) as error:
        raise CorruptCheckpoint(f"its rows cannot be read: {error!r}") from error


def _block(block: dict[str, Any]) -> Block:
    columns = tuple(block["columns"])
    rows = block["rows"]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"a row of {block['table']} has not {len(columns)} columns")
    return Block(block["table"], columns, rows)


def page_ref(key: str, data: bytes) -> PageRef:
    """Return how a head names this object."""
    return PageRef(key, len(data), crc32c(data))


def check_page(ref: PageRef, data: bytes) -> None:
    """Raise CorruptCheckpoint unless these are the bytes that a head names."""
    if (len(data), crc32c(data)) != (ref.length, ref.crc32c):
        raise CorruptCheckpoint(
            f"{ref.key} was to have {ref.length} bytes with CRC-32C {ref.crc32c:#010x}, but has {len(data)} with {crc32c(data):#010x}"
        )


def pick(block: Block, names: Iterable[str]) -> list[tuple[Any, ...]]:
    """Return the rows with these columns in this order; one that the writer did not know is None."""
    places = [block.columns.index(name) if name in block.columns else None for name in names]
    return [tuple(None if place is None else row[place] for place in places) for row in block.rows]
