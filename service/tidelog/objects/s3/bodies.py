"""The body of an upload: never copied as a whole, hashed as it is sent, and sent once only.

aiohttp would send a PUT again by itself where a kept connection breaks, and tell nobody; then "the server was not reached"
could hide a write that did happen (I5). A body that refuses to be sent twice leaves retries to those who count them.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from aiohttp import ClientConnectionError
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from crc32c import crc32c

from tidelog.objects.store import Bytes

SLICE_BYTES = 256 * 1024
"""Bytes handed over at once. asyncio may copy what the socket does not take at once, so a slice bounds that copy, too."""


class Content:
    """The bytes of an object, as slices. Shares the memory of large parts, joins small ones."""

    def __init__(self, parts: Sequence[Bytes]) -> None:
        self.slices = list(_sliced(parts))
        self.size = sum(map(len, self.slices))
        self.crc32c = 0
        for piece in self.slices:
            self.crc32c = crc32c(piece, self.crc32c)

    def let_go(self) -> None:
        """Hold the bytes no longer: errors and frames of libraries may hold this in cycles, until the collector comes."""
        self.slices = []

    def equals(self, stored: bytes) -> bool:
        """Say whether these are the same bytes."""
        if len(stored) != self.size:
            return False
        view, start = memoryview(stored), 0
        for piece in self.slices:
            if view[start : start + len(piece)] != piece:
                return False
            start += len(piece)
        return True


def _sliced(parts: Sequence[Bytes]) -> Iterator["bytes | memoryview"]:
    small: list[memoryview] = []
    size = 0
    for view in chain.from_iterable(map(_views, parts)):
        if small and size + len(view) > SLICE_BYTES:
            yield small[0] if len(small) == 1 else b"".join(small)
            small, size = [], 0
        small.append(view)
        size += len(view)
    if small:
        yield small[0] if len(small) == 1 else b"".join(small)


def _views(part: Bytes) -> "Iterator[memoryview]":
    view = memoryview(part).cast("B")
    return (view[start : start + SLICE_BYTES] for start in range(0, len(view), SLICE_BYTES))


class Upload:
    """What one attempt gives the S3 client to send: as much of a file as the client looks for, to hash and to measure it."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.sent = False
        """Whether any of it may have left."""
        self._next = 0

    def __len__(self) -> int:
        return self.content.size

    def __bool__(self) -> bool:
        return True

    def read(self, most: int = SLICE_BYTES) -> "bytes | memoryview":
        """Return the next slice; nothing after the last."""
        assert most >= SLICE_BYTES
        self._next += 1
        return self.content.slices[self._next - 1] if self._next <= len(self.content.slices) else b""

    def tell(self) -> int:
        """Return where a reader begins."""
        return 0

    def seek(self, position: int) -> None:
        """Begin again."""
        assert position == 0
        self._next = 0


class OncePayload(Payload):
    """What aiohttp is given to send: slices, so that neither its buffers nor threads hold a second copy."""

    def __init__(self, upload: Upload) -> None:
        super().__init__(upload)
        self._upload = upload
        self._size = len(upload)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send all of it."""
        if self._upload.sent:
            raise ClientConnectionError("the connection broke, and the body may have been sent")
        self._upload.sent = True
        for piece in self._upload.content.slices:
            await writer.write(piece)

    def seek(self, position: int) -> None:
        """Allow another sending: the S3 client asks for it after an answer that redirects, and such an answer means "not done"."""
        self._upload.seek(position)
        self._upload.sent = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content as text; aiohttp's interface wants it."""
        return b"".join(self._upload.content.slices).decode(encoding, errors)


def send_once(request: Any, **_: Any) -> None:
    """Give a prepared request a body that is sent once.

    Without `Expect: 100-continue`: it costs a round trip for each write, and not every server answers it.
    """
    if isinstance(request.body, Upload):
        request.body = OncePayload(request.body)
        del request.headers["Expect"]
