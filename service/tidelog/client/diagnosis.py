"""Why no connection to an address comes about, in words: gRPC says no more than that it is unavailable.

The port is looked at beside gRPC, by a connection or two of one's own, and only while nothing has been reached yet.
"""

import asyncio
import socket
import ssl
from dataclasses import dataclass

_LOOK_S = 2.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client of HTTP/2 says first: the preface, and a SETTINGS frame without settings."""
_FRAME_HEADER_BYTES = 9
_SETTINGS = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found at an address."""

    sentence: str
    for_good: bool
    """It is a mistake of whoever calls, or of the broker's settings, that no waiting mends."""


async def diagnosed(address: str, context: ssl.SSLContext | None) -> Finding | None:
    """Return why a broker cannot be reached with this TLS context (None: in plaintext); None where nothing is to be seen."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        async with asyncio.timeout(_LOOK_S):
            if context is None:
                return await _in_plaintext(host, int(port))
            return await _with_tls(host, int(port), context)
    except ConnectionRefusedError:
        return Finding("nothing listens there", for_good=False)
    except socket.gaierror as error:
        return Finding(f"the name {host!r} is not known here: {error.strerror}", for_good=False)
    except TimeoutError:
        return Finding("it does not answer", for_good=False)
    except OSError as error:
        return Finding(f"it cannot be reached: {error.strerror or error}", for_good=False)


async def _in_plaintext(host: str, port: int) -> Finding | None:
    if await _greets(host, port, None):
        return None
    try:
        await _greets(host, port, _unchecked())
    except (ssl.SSLError, OSError):
        return Finding("what answers there is no broker (is that its port for metrics?)", for_good=False)
    return Finding("it speaks TLS, but was called in plaintext: give `ca`, or `tls` for authorities that this system trusts", for_good=True)


async def _with_tls(host: str, port: int, context: ssl.SSLContext) -> Finding | None:
    try:
        if await _greets(host, port, context):
            return None
    except ssl.SSLCertVerificationError as error:
        return Finding(f"its certificate is not accepted: {error.verify_message}: name its authority by `ca`, or renew it", for_good=True)
    except ConnectionRefusedError:
        raise
    except (ssl.SSLError, OSError):
        if await _greets(host, port, None):
            return Finding("it speaks plaintext, but was called with TLS: leave `ca` and `tls` out", for_good=True)
    return Finding(
        "it ends the connection once it has seen who calls: it asks for a client certificate (`cert`, `key`) that has not expired, of an"
        " authority that it trusts",
        for_good=True,
    )


async def _greets(host: str, port: int, context: ssl.SSLContext | None) -> bool:
    """Return whether a server of HTTP/2 answers. Raises OSError, ssl.SSLError among them."""
    reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host if context else None)
    try:
        writer.write(_PREFACE)
        header = await reader.readexactly(_FRAME_HEADER_BYTES)
    except (asyncio.IncompleteReadError, ConnectionError):
        return False
    finally:
        writer.close()
    return header[3] == _SETTINGS


def _unchecked() -> ssl.SSLContext:
    """Return a context that accepts any certificate: nothing is sent over it but a greeting."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context
