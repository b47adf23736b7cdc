"""Protobuf messages with large fields, put together and taken apart without copying those.

Whoever reads what was put together cannot tell: fields may come in any order.
"""

from collections.abc import Iterator, Sequence

from google.protobuf.message import DecodeError, Message

Buffer = bytes | bytearray | memoryview

_MOST_VARINT_BYTES = 10
_MOST_TAG_BYTES = 5


def field_tag(message: type[Message], name: str) -> int:
    """Return what a field of bytes, text or a message begins with: its number, and that a length follows."""
    return message.DESCRIPTOR.fields_by_name[name].number << 3 | 2


def nested(tag: int, message: Message, inner_tag: int, content: Buffer) -> Sequence[Buffer]:
    """Return the parts of a field that holds `message` with one more field, which holds `content`."""
    before = b"".join((message.SerializeToString(), _varint(inner_tag), _varint(len(content))))
    return _varint(tag), _varint(len(before) + len(content)), before, content


def fields(message: memoryview, tag: int) -> Iterator[memoryview]:
    """Yield what each field of this tag holds. Raises DecodeError for what is no message."""
    return (message[content:end] for found, _, content, end in _fields(message) if found == tag)


def split(message: memoryview, tag: int) -> tuple[bytes, memoryview]:
    """Return a message without a field, and what that field holds. Raises DecodeError for what is no message."""
    held = message[:0]
    others = []
    kept = 0
    for found, begin, content, end in _fields(message):
        if found == tag:  # of several the last one counts
            held = message[content:end]
            others.append(message[kept:begin])
            kept = end
    return b"".join((*others, message[kept:])), held


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field's tag, where it begins, where its content begins, and where it ends."""
    position, size = 0, len(message)
    while position < size:
        tag, content = _read_varint(message, position)
        kind = tag & 7
        if not 8 <= tag < 1 << 32 or content - position > _MOST_TAG_BYTES:
            raise DecodeError(f"the field at byte {position} has number {tag >> 3} in {content - position} bytes")
        if kind == 0:
            _, end = _read_varint(message, content)
        elif kind == 1:
            end = content + 8
        elif kind == 2:
            length, content = _read_varint(message, content)
            end = content + length
        elif kind == 5:
            end = content + 4
        else:
            raise DecodeError(f"the field at byte {position} has wire type {kind}, which no message here uses")
        if end > size:
            raise DecodeError(f"the field at byte {position} ends at {end}, but the message has {size} bytes")
        yield tag, position, content, end
        position = end


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[position : position + _MOST_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise DecodeError(f"the number at byte {position} does not end")
