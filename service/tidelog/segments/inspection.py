"""All that is wrong with a segment, and all that can still be read of it: for people who look into a damaged one.

Readers of the log use `format`, which refuses a segment for its first defect.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tidelog.errors import CorruptBatch, CorruptSegment
from tidelog.records.batch import BatchHeader, Buffer, batch_end, scan
from tidelog.segments.format import (
    HEADER_BYTES,
    MAX_SEGMENT_BYTES,
    TRAILER_BYTES,
    Chunk,
    Footer,
    checksum_defects,
    count_defects,
    decode_footer,
    footer_start,
    header_defects,
    index_defects,
    kind_defects,
    stamped_defects,
    unstamped_defects,
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in an object."""

    footer: Footer | None
    """None where it cannot be read."""
    batches: tuple[tuple[BatchHeader, ...], ...]
    """The whole batches of each chunk; without a footer, of all bytes before it. Positions count from the object's first byte."""
    defects: tuple[CorruptSegment, ...]
    """In the order in which they were found; empty for a segment that readers accept."""
    complete: bool
    """False where there were more defects than were asked for."""


class _Enough(Exception):
    """As many defects were found as may be told."""


class _Defects:
    def __init__(self, most: int) -> None:
        self._most = most
        self.found: list[CorruptSegment] = []

    def add(self, defects: Iterable[CorruptSegment]) -> bool:
        """Keep `defects` and say whether there were any."""
        before = len(self.found)
        for defect in defects:
            if len(self.found) == self._most:
                raise _Enough
            self.found.append(defect)
        return len(self.found) > before


def inspect(data: Buffer, *, most_defects: int = 100) -> Inspection:
    """Return all that can be read of an object, and what is wrong with it. Takes time in proportion to its size."""
    defects = _Defects(most_defects)
    batches: list[tuple[BatchHeader, ...]] = []
    footer = None
    try:
        if not HEADER_BYTES + TRAILER_BYTES <= len(data) <= MAX_SEGMENT_BYTES:
            least = HEADER_BYTES + TRAILER_BYTES
            problem = f"the object has {len(data)} bytes, but a segment has {least} to {MAX_SEGMENT_BYTES}"
            defects.add([CorruptSegment(problem, position=0)])
        else:
            defects.add(header_defects(data))
            footer = _footer(data, defects)
            if footer is None:
                batches.append(())
                _walk_without_footer(memoryview(data), batches, defects)
            else:
                defects.add(kind_defects(data, footer))
                for chunk in footer.chunks:
                    batches.append(())
                    _inspect_chunk(memoryview(data), chunk, footer, batches, defects)
    except _Enough:
        return Inspection(footer, tuple(batches), tuple(defects.found), complete=False)
    return Inspection(footer, tuple(batches), tuple(defects.found), complete=True)


def _footer(data: Buffer, defects: _Defects) -> Footer | None:
    try:
        return decode_footer(data, size=len(data))
    except CorruptSegment as error:
        defects.add([error])
        return None


def _walk_without_footer(view: memoryview, batches: list[tuple[BatchHeader, ...]], defects: _Defects) -> None:
    try:
        _walk(view[: footer_start(view, size=len(view))], HEADER_BYTES, batches, defects)
    except CorruptSegment:  # what cannot be told apart may be the footer, and is no defect
        _walk(view, HEADER_BYTES, batches, defects, to_the_end=False)


def _inspect_chunk(view: memoryview, chunk: Chunk, footer: Footer, batches: list[tuple[BatchHeader, ...]], defects: _Defects) -> None:
    content = view[chunk.position : chunk.end]
    defects.add(checksum_defects(content, chunk))
    whole = _walk(view[: chunk.end], chunk.position, batches, defects)
    headers = [replace(header, position=header.position - chunk.position) for header in batches[-1]]
    if whole:
        defects.add(count_defects(headers, chunk))
    if footer.merged is None:
        defects.add(unstamped_defects(headers, chunk))
    else:
        defects.add(stamped_defects(headers, chunk, footer.merged))
        if whole:  # else each entry after the missing batch would be wrong as well
            defects.add(index_defects(content, headers, chunk, footer.merged))


def _walk(view: memoryview, position: int, batches: list[tuple[BatchHeader, ...]], defects: _Defects, *, to_the_end: bool = True) -> bool:
    """Put the whole batches of `view` from `position` on into the last of `batches`; say whether all of them are.

    A damaged batch is passed over by its length field; where that cannot be right, nothing after it can be told apart.
    """
    found: list[BatchHeader] = []
    whole = True
    try:
        while position < len(view):
            end = batch_end(view, position)
            try:
                [header] = scan(view[position : end or len(view)])
                found.append(replace(header, position=position))
            except CorruptBatch as error:
                whole = False
                if end is None and not to_the_end:
                    break
                unread = f"; the {len(view) - position} bytes from here on cannot be told apart" if end is None else ""
                defects.add([CorruptSegment(f"a batch is damaged: {error.problem}{unread}", position=position)])
            if end is None:
                break
            position = end
    finally:
        batches[-1] = tuple(found)
    return whole
