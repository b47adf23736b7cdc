"""Checks a segment's bytes as they come, piece by piece, against its footer and against what rows say of it.

Holds one piece and one batch, however large the segment is. Goes on after a defect, so that one damaged chunk does not
hide another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tidelog.errors import CorruptBatch
from tidelog.records.batch import HEADER_BYTES as BATCH_HEADER_BYTES
from tidelog.records.batch import BatchHeader, Buffer, batch_end, scan
from tidelog.records.checksum import crc32c
from tidelog.segments.format import HEADER_BYTES, Chunk, Footer

_LENGTH_ENDS = 12


@dataclass(frozen=True, slots=True)
class Claim:
    """What a row says of some bytes of a segment."""

    position: int
    length: int
    record_count: int
    max_timestamp_ms: int
    base_offset: int
    next_offset: int
    stamped: bool
    """The batches carry their offsets; else none."""

    @property
    def end(self) -> int:
        """Position after the last byte."""
        return self.position + self.length


@dataclass(frozen=True, slots=True)
class Defect:
    """What is wrong, and which bytes it concerns."""

    position: int
    end: int
    problem: str


class BatchWalk:
    """Takes consecutive bytes of whole batches apart, as they come. Positions count from the object's first byte."""

    def __init__(self, position: int, end: int) -> None:
        self._position = position
        self._end = end
        self._rest = b""

    def feed(self, piece: Buffer) -> Iterator[BatchHeader]:
        """Yield the batches that `piece` completes, each checked. Raises CorruptBatch with the batch's position in the object."""
        data = memoryview(self._rest + piece if self._rest else bytes(piece))
        at = 0
        while len(data) - at >= BATCH_HEADER_BYTES:
            end = self._batch_end(data, at)
            if end is None:
                break
            try:
                [header] = scan(data[at:end])
            except CorruptBatch as error:
                raise CorruptBatch(error.problem, position=self._position) from error
            yield replace(header, position=self._position)
            self._position += end - at
            at = end
        self._rest = bytes(data[at:])

    def finish(self) -> None:
        """Say that no more comes. Raises CorruptBatch where a batch is not whole."""
        if self._rest or self._position != self._end:
            raise CorruptBatch(f"{len(self._rest)} bytes are left, which are no whole batch", position=self._position)

    def _batch_end(self, data: memoryview, at: int) -> int | None:
        """Return where a batch ends in `data`; None where its end is yet to come."""
        length = int.from_bytes(data[at + 8 : at + _LENGTH_ENDS], "big", signed=True)
        if not BATCH_HEADER_BYTES - _LENGTH_ENDS <= length <= self._end - self._position - _LENGTH_ENDS:
            raise CorruptBatch(f"its length field says {length}, but {self._end - self._position} bytes are left", position=self._position)
        return batch_end(data, at)


class RowAudit:
    """Compares batches with what rows claim of them, for bytes that one or more rows refer to."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self._claims = sorted(claims, key=lambda claim: claim.position)
        self._place = 0
        self._records = self._largest = self._offset = 0

    def take(self, header: BatchHeader) -> Iterator[Defect]:
        """Take the next batch, ascending; yield what is wrong with it, and with the claim that it completes."""
        end = header.position + header.size
        while self._place < len(self._claims) and header.position >= self._claims[self._place].end:
            yield from self._complete()
        if self._place == len(self._claims) or end <= self._claims[self._place].position:
            return  # bytes of an append that was refused
        claim = self._claims[self._place]
        if header.position < claim.position or end > claim.end:
            yield Defect(
                claim.position, claim.end, f"bytes {claim.position} to {claim.end} cut the batch at {header.position} to {end} in two"
            )
        if claim.stamped:
            least = max(claim.base_offset, self._offset)
            if header.base_offset < least or header.next_offset > claim.next_offset:
                yield Defect(
                    header.position, end,
                    f"a batch is stamped with offsets {header.base_offset} to {header.next_offset}, but they must lie in {least} to"
                    f" {claim.next_offset}",
                )  # fmt: skip
            self._offset = header.next_offset
        elif (header.base_offset, header.leader_epoch, header.last_offset_delta) != (0, -1, header.record_count - 1):
            yield Defect(
                header.position, end,
                f"a batch of an intake segment is stamped with offset {header.base_offset} and leader epoch {header.leader_epoch},"
                " or has gaps",
            )  # fmt: skip
        self._records += header.record_count
        self._largest = max(self._largest, header.max_timestamp_ms)
        if end >= claim.end:
            yield from self._complete()

    def finish(self) -> Iterator[Defect]:
        """Yield what is wrong with claims that no batch has completed."""
        while self._place < len(self._claims):
            yield from self._complete()

    def _complete(self) -> Iterator[Defect]:
        claim = self._claims[self._place]
        found, claimed = (self._records, self._largest), (claim.record_count, claim.max_timestamp_ms)
        if found != claimed:
            yield Defect(claim.position, claim.end, f"its batches hold (records, largest timestamp) {found}, but the row says {claimed}")
        self._place += 1
        self._records = self._largest = self._offset = 0


class ExtentAudit:
    """Checks the bytes that one row refers to, without the footer of their segment."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._walk = BatchWalk(claim.position, claim.end)
        self._rows = RowAudit([claim])

    def feed(self, piece: Buffer) -> str:
        """Take the bytes that follow; say what is wrong with them, or nothing. After a problem nothing more is to be fed."""
        try:
            for header in self._walk.feed(piece):
                for defect in self._rows.take(header):
                    return f"at byte {defect.position}: {defect.problem}"
        except CorruptBatch as error:
            return str(error)
        return ""

    def finish(self) -> str:
        """Say what is wrong once all bytes have been fed, or nothing."""
        try:
            self._walk.finish()
        except CorruptBatch as error:
            return str(error)
        for defect in self._rows.finish():
            return f"at byte {defect.position}: {defect.problem}"
        return ""


class SegmentAudit:
    """Checks all bytes between a segment's header and its footer."""

    def __init__(self, footer: Footer, claims: Sequence[Claim], *, most_defects: int = 20) -> None:
        """`claims` are what rows refer to, of all chunks; at most `most_defects` are kept."""
        self._footer = footer
        self._claims = claims
        self._most = most_defects
        self._next = iter(footer.chunks)
        self._chunk: _ChunkAudit | None = None
        self._position = HEADER_BYTES
        self.batches = 0
        self.records = 0
        self.defects: list[Defect] = []

    def feed(self, piece: Buffer) -> None:
        """Take the bytes that follow."""
        view = memoryview(piece)
        while view:
            if self._chunk is None:
                chunk = next(self._next)
                within = [claim for claim in self._claims if chunk.position <= claim.position < chunk.end]
                self._chunk = _ChunkAudit(chunk, self._footer, within)
            size = min(len(view), self._chunk.chunk.end - self._position)
            self._keep(self._chunk.feed(view[:size]))
            view = view[size:]
            self._position += size
            if self._position == self._chunk.chunk.end:
                self._keep(self._chunk.finish())
                self.batches += self._chunk.batches
                self.records += self._chunk.records
                self._chunk = None

    def _keep(self, defects: Iterator[Defect]) -> None:
        for defect in defects:
            if len(self.defects) < self._most:
                self.defects.append(defect)


class _ChunkAudit:
    def __init__(self, chunk: Chunk, footer: Footer, claims: Sequence[Claim]) -> None:
        self.chunk = chunk
        self.batches = 0
        self.records = 0
        self._largest = 0
        self._crc = 0
        self._walk: BatchWalk | None = BatchWalk(chunk.position, chunk.end)
        self._rows = RowAudit(claims)
        self._index = list(reversed(footer.merged.index)) if footer.merged is not None else []
        self._entry_crc = 0
        self._position = chunk.position

    def feed(self, piece: memoryview) -> Iterator[Defect]:
        self._crc = crc32c(piece, self._crc)
        yield from self._check_index(piece)
        if self._walk is None:
            return
        try:
            for header in self._walk.feed(piece):
                self.batches += 1
                self.records += header.record_count
                self._largest = max(self._largest, header.max_timestamp_ms)
                yield from self._rows.take(header)
        except CorruptBatch as error:
            yield self._broken(error)

    def finish(self) -> Iterator[Defect]:
        chunk = self.chunk
        if self._walk is not None:
            try:
                self._walk.finish()
            except CorruptBatch as error:
                yield self._broken(error)
        if self._crc != chunk.crc32c:
            yield Defect(
                chunk.position, chunk.end, f"the chunk's bytes have CRC-32C {self._crc:#010x}, but the footer says {chunk.crc32c:#010x}"
            )
        if self._walk is None:
            return  # what was counted is not all: more would be said of it than is known
        yield from self._rows.finish()
        found = (self.batches, self.records, self._largest)
        claimed = (chunk.batch_count, chunk.record_count, chunk.max_timestamp_ms)
        if found != claimed:
            yield Defect(
                chunk.position, chunk.end, f"the chunk holds (batches, records, largest timestamp) {found}, but the footer says {claimed}"
            )

    def _broken(self, error: CorruptBatch) -> Defect:
        self._walk = None
        return Defect(
            error.position, self.chunk.end,
            f"the batch at byte {error.position} is damaged ({error.problem}); what follows it in the chunk, to byte {self.chunk.end},"
            " was not taken apart",
        )  # fmt: skip

    def _check_index(self, piece: memoryview) -> Iterator[Defect]:
        """Compare the checksums of the sparse index: each is of the bytes up to the next entry, or to the chunk's end."""
        while self._index and piece:
            entry = self._index[-1]
            end = self._index[-2].position if len(self._index) > 1 else self.chunk.end
            size = min(len(piece), end - self._position)
            self._entry_crc = crc32c(piece[:size], self._entry_crc)
            self._position += size
            piece = piece[size:]
            if self._position == end:
                if self._entry_crc != entry.crc32c:
                    yield Defect(
                        entry.position, end,
                        f"the sparse index says CRC-32C {entry.crc32c:#010x} of bytes {entry.position} to {end}, but they have"
                        f" {self._entry_crc:#010x}",
                    )  # fmt: skip
                self._entry_crc = 0
                self._index.pop()
