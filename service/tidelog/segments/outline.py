"""The fields of a protobuf message, one after the other, without parsing it: what is too much is refused before it takes memory.

An empty chunk takes two bytes in a footer, and hundreds once it is parsed.
"""

from collections.abc import Iterator

_VARINT, _EIGHT_BYTES, _SIZED, _FOUR_BYTES = 0, 1, 2, 5
"""Protobuf's wire types, in the low three bits of a field's key."""


def fields(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield each field's number, and the content of those that say their size.

    Bytes that are no message end it; a parser says what is wrong with them.
    """
    position = 0
    while position < len(view):
        key, position = _varint(view, position)
        wire_type = key & 7
        size = 0
        if wire_type == _SIZED:
            size, position = _varint(view, position)
        elif wire_type == _VARINT:
            _, position = _varint(view, position)
        elif wire_type == _EIGHT_BYTES:
            position += 8
        elif wire_type == _FOUR_BYTES:
            position += 4
        else:
            return
        yield key >> 3, view[position : position + size]
        position += size


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """Return the number at `position`, and where it ends."""
    number = shift = 0
    for byte in view[position : position + 10]:
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return number, position
