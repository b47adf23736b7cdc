"""Who is let in: by token, by certificate, or by anyone on loopback; and which listeners may be opened at all."""

import hmac
import ipaddress
from pathlib import Path
from typing import Any

import grpc

from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import InvalidSettings, Unauthenticated
from tidelog.server.callers import ANYONE, Caller, Standing
from tidelog.server.reloading import Reloaded
from tidelog.server.tokens import digest, load_tokens
from tidelog.telemetry import get_logger

PEER_TOKEN = "tidelog-peer-token"  # noqa: S105 - the name of a metadata key
PEERS_SERVICE = "/tidelog.v1.Peers/"
_HEALTH_SERVICE = "/grpc.health.v1.Health/"
_PEER = Caller("another broker")
_log = get_logger(__name__)


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_listener(settings: Settings) -> None:
    """Refuse a listener that lets strangers in, unless told to; then say so, at a level that is always printed.

    Raises InvalidSettings.
    """
    if is_loopback(settings.listen):
        return
    missing = []
    if not settings.tls_certificate_file:
        missing.append("TLS (tls_certificate_file, tls_key_file)")
    if not settings.tokens_file and not settings.tls_client_ca_file:
        missing.append("authentication (tokens_file, or tls_client_ca_file)")
    if not missing:
        return
    lacking = " and ".join(missing)
    if not settings.insecure:
        raise InvalidSettings(
            f"{settings.listen} is to be listened on, beyond loopback, but without {lacking};"
            " set them, listen on 127.0.0.1, or allow it with insecure (--insecure)"
        )
    _log.error("insecure_listener", listen=settings.listen, without=lacking, advice="whoever reaches this port can read and write")


class Gate:
    """Says who makes a call, or refuses it. Raises InvalidSettings where the tokens file cannot be used."""

    def __init__(self, settings: Settings, *, clock: Clock) -> None:
        self._peer_token = settings.peer_token.encode()
        # Where clients have tokens, neither their certificates nor being on this machine may open what their scopes do not.
        trusted = bool(settings.tls_client_ca_file) or is_loopback(settings.listen) or settings.insecure
        self._open_to_peers = trusted and not settings.tokens_file
        file = Path(settings.tokens_file)
        self._tokens = Reloaded([file], lambda: load_tokens(file), clock=clock) if settings.tokens_file else None

    def admit(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Standing:
        """Return what says who calls. Raises Unauthenticated."""
        if method.startswith(_HEALTH_SERVICE):
            return _peer  # probes carry no token; a caller without any right
        metadata = dict(context.invocation_metadata() or ())
        if method.startswith(PEERS_SERVICE):
            self._check_peer(metadata.get(PEER_TOKEN, ""))
            return _peer
        tokens = self._tokens
        if tokens is None:
            return _anyone
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("the call came without a token; send the metadata 'authorization: Bearer TOKEN'")
        shown = digest(token.strip())  # what is compared are hashes, whose timing says nothing of the token

        def standing() -> Caller:
            known = tokens.current().get(shown)
            if known is None:
                raise Unauthenticated("the call came with a token that is not known here; ask for a new one")
            return known

        standing()
        return standing

    def _check_peer(self, token: str | bytes) -> None:
        if self._peer_token:
            said = token.encode() if isinstance(token, str) else token
            if not hmac.compare_digest(said, self._peer_token):
                raise Unauthenticated("a broker called with another peer_token; set the same secret on all brokers")
        elif not self._open_to_peers:
            raise Unauthenticated(
                "a broker called, but peer_token is not set here; set the same secret on all brokers (mTLS alone does where clients have"
                " no tokens)"
            )


def _peer() -> Caller:
    return _PEER


def _anyone() -> Caller:
    return ANYONE
