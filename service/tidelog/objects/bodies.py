"""The body of an upload: sent in slices, and once only.

aiohttp would send a PUT again by itself where a kept connection breaks, and tell nobody; then "the server was not reached"
could hide a write that did happen (I5). A body that refuses to be sent twice leaves retries to those who count them.
"""

import io
from typing import Any

from aiohttp import ClientConnectionError
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

_SLICE = 1 << 20


class Upload(io.BytesIO):
    """What the S3 client is given to send. Shares the memory of `content`."""

    sent = False
    """Whether any of it may have left."""


class OncePayload(Payload):
    """What aiohttp is given to send: slices, so that neither its buffers nor threads hold a second copy."""

    def __init__(self, upload: Upload) -> None:
        super().__init__(upload)
        self._upload = upload
        self._size = upload.getbuffer().nbytes

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send all of it."""
        if self._upload.sent:
            raise ClientConnectionError("the connection broke, and the body may have been sent")
        self._upload.sent = True
        content = memoryview(self._upload.getvalue())
        for start in range(0, len(content), _SLICE):
            await writer.write(content[start : start + _SLICE])

    def seek(self, position: int) -> None:
        """Allow another sending: the S3 client asks for it after an answer that redirects, and such an answer means "not done"."""
        self._upload.seek(position)
        self._upload.sent = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content as text; aiohttp's interface wants it."""
        return self._upload.getvalue().decode(encoding, errors)


def send_once(request: Any, **_: Any) -> None:
    """Give a prepared request a body that is sent once.

    Without `Expect: 100-continue`: it costs a round trip for each write, and not every server answers it.
    """
    if isinstance(request.body, Upload):
        request.body = OncePayload(request.body)
        del request.headers["Expect"]
