"""TLS for listeners and for links to other brokers; certificates are read again when their files change."""

import ssl
from collections.abc import Callable
from pathlib import Path

import grpc

from tidelog.clock import Clock
from tidelog.config import Settings
from tidelog.errors import InvalidSettings
from tidelog.server.reloading import Reloaded


def server_credentials(settings: Settings, *, clock: Clock) -> grpc.ServerCredentials | None:
    """Return what a listener shows and asks for; None where no certificate is set. Raises InvalidSettings."""
    if bool(settings.tls_certificate_file) != bool(settings.tls_key_file):
        raise InvalidSettings("TLS needs both tls_certificate_file and tls_key_file, but only one is set; set the other, too")
    if not settings.tls_certificate_file:
        if settings.tls_client_ca_file:
            raise InvalidSettings("tls_client_ca_file is set without tls_certificate_file; client certificates need a TLS listener")
        return None
    certificate = Reloaded([Path(name) for name in _files(settings)], lambda: _load(settings), clock=clock)
    return grpc.dynamic_ssl_server_credentials(
        certificate.current(),
        _fetcher(certificate),  # type: ignore[arg-type]  # None is documented to mean: unchanged
        require_client_authentication=bool(settings.tls_client_ca_file),
    )


def channel_credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """Return what this broker shows to others and checks theirs against, read anew for each link; None without TLS."""
    if not settings.tls_certificate_file:
        return None
    authorities_file = settings.tls_ca_file or settings.tls_client_ca_file
    authorities = Path(authorities_file).read_bytes() if authorities_file else None
    if not settings.tls_client_ca_file:
        return grpc.ssl_channel_credentials(authorities)
    return grpc.ssl_channel_credentials(
        authorities, Path(settings.tls_key_file).read_bytes(), Path(settings.tls_certificate_file).read_bytes()
    )


def _files(settings: Settings) -> list[str]:
    names = (settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file, settings.tls_ca_file)
    return [name for name in names if name]


def _load(settings: Settings) -> grpc.ServerCertificateConfiguration:
    content = {name: Path(name).read_bytes() for name in _files(settings)}  # Python's TLS does not say which it cannot read
    certificate, key = content[settings.tls_certificate_file], content[settings.tls_key_file]
    authorities = content[settings.tls_client_ca_file] if settings.tls_client_ca_file else None
    try:
        # In the middle of a renewal the two files may not belong together: gRPC would fail every handshake.
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trial.load_cert_chain(settings.tls_certificate_file, settings.tls_key_file)
        for authorities_file in filter(None, (settings.tls_client_ca_file, settings.tls_ca_file)):
            trial.load_verify_locations(authorities_file)
    except ssl.SSLError as error:
        raise InvalidSettings(
            f"{' and '.join(_files(settings))} were to be used for TLS, but {error.reason or error};"
            " give PEM files: a certificate chain, the private key that belongs to it, and authorities"
        ) from None
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)


def _fetcher(certificate: Reloaded[grpc.ServerCertificateConfiguration]) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
    """Return what gRPC calls before each handshake; None means that nothing has changed."""
    shown = certificate.current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        current = certificate.current()
        if current is shown:
            return None
        shown = current
        return current

    return fetch
