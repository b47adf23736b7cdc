"""Compression of a batch's records: gzip, snappy, lz4, zstd. What comes out is limited before it is allocated."""

from dataclasses import dataclass
from struct import Struct

from tidelog.errors import CorruptBatch, InvalidRequest
from tidelog.records.batch import COMPRESSIONS, HEADER_BYTES

_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEADER = _XERIAL + bytes([0, 0, 0, 1, 0, 0, 0, 1])
_XERIAL_BLOCK_BYTES = 32 * 1024
_SNAPPY_MOST_RATIO = 22
"""A copy of at most 64 bytes takes three, so nothing grows more than 64/3 times."""
_U32 = Struct(">I")
_UNTOUCHED = bytes.fromhex("9d1f3b7746c2e85a")  # eight bytes that data does not happen to have just there


@dataclass(frozen=True, slots=True)
class DecompressionLimits:
    """How much a compressed batch may grow."""

    max_bytes: int = 64 * 1024 * 1024
    """Decompressed size of one batch's records."""
    max_ratio: int = 1000
    """Decompressed over compressed size; 64 KiB are always allowed."""

    def most(self, compressed_bytes: int) -> int:
        """Return how many bytes may come out of so many."""
        return min(self.max_bytes, max(65536, compressed_bytes * self.max_ratio))


def compress(data: bytes, compression: str) -> bytes:
    """Return `data` compressed. Raises InvalidRequest for a name that is not one of `COMPRESSIONS`."""
    if compression == "none":
        return data
    if compression not in COMPRESSIONS:
        raise InvalidRequest(f"compression {compression!r} was asked for; choose one of {', '.join(COMPRESSIONS)}")
    import cramjam

    if compression != "snappy":
        return bytes(getattr(cramjam, compression).compress(data))
    blocks = [_XERIAL_HEADER]
    for at in range(0, len(data), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(data[at : at + _XERIAL_BLOCK_BYTES]))
        blocks += (_U32.pack(len(block)), block)
    return b"".join(blocks)


def decompress(data: bytes, compression: str, *, limits: DecompressionLimits) -> bytes:
    """Return the records of a batch. Raises CorruptBatch where they cannot be had within the limits.

    Concatenated frames are one text. The output buffer starts small and doubles only while real output fills it: a claimed
    size allocates nothing.
    """
    if compression == "none":
        return data
    import cramjam

    most = limits.most(len(data))
    if compression == "snappy":
        return _snappy(data, most, cramjam)
    codec = getattr(cramjam, compression)
    room = min(most, max(4096, len(data) * 4))
    while True:
        # cramjam's error does not tell whether the data stopped making sense or the room was too small; the buffer's end does.
        buffer = bytearray(room + len(_UNTOUCHED))
        buffer[room:] = _UNTOUCHED
        try:
            size: int = codec.decompress_into(data, buffer)
        except cramjam.DecompressionError as error:
            if buffer.endswith(_UNTOUCHED):
                raise CorruptBatch(f"its {compression} records cannot be decompressed: {error}", position=HEADER_BYTES) from error
        else:
            if size <= most:
                return bytes(memoryview(buffer)[:size])
        if room == most:
            raise _too_much(len(data), most, compression)
        room = min(most, room * 2)


def _snappy(data: bytes, most: int, cramjam: object) -> bytes:
    """Undo xerial's framing, or one raw block. A block says its size, which is believed where so many bytes can come of it."""
    blocks = _xerial_blocks(data) if data.startswith(_XERIAL) else [data]
    total = 0
    parts = []
    for block in blocks:
        try:
            claimed = cramjam.snappy.decompress_raw_len(block)  # type: ignore[attr-defined]
            if claimed > len(block) * _SNAPPY_MOST_RATIO:
                raise CorruptBatch(f"a snappy block of {len(block)} bytes claims to become {claimed}", position=HEADER_BYTES)
            total += claimed
            if total > most:
                raise _too_much(len(data), most, "snappy")
            parts.append(bytes(cramjam.snappy.decompress_raw(block)))  # type: ignore[attr-defined]
        except cramjam.DecompressionError as error:  # type: ignore[attr-defined]
            raise CorruptBatch(f"its snappy records cannot be decompressed: {error}", position=HEADER_BYTES) from error
    return b"".join(parts)


def _xerial_blocks(data: bytes) -> list[bytes]:
    blocks = []
    at = len(_XERIAL_HEADER)
    while at < len(data):
        size = _U32.unpack_from(data, at)[0] if len(data) - at >= _U32.size else 0
        at += _U32.size
        if not 0 < size <= len(data) - at:
            raise CorruptBatch(f"its snappy block at byte {at} claims {size} bytes of {len(data) - at} that remain", position=HEADER_BYTES)
        blocks.append(data[at : at + size])
        at += size
    return blocks


def _too_much(compressed: int, most: int, compression: str) -> CorruptBatch:
    return CorruptBatch(
        f"its {compressed} bytes of {compression} records grow beyond {most}, the limit set by max_bytes and max_ratio",
        position=HEADER_BYTES,
    )
