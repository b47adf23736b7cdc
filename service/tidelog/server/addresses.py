"""HOST:PORT, as the settings write it."""

from tidelog.errors import InvalidSettings


def host_and_port(address: str) -> tuple[str, int]:
    """Return host and port; IPv6 hosts stand in brackets. Raises InvalidSettings."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or not int(port) < 1 << 16:
        raise InvalidSettings(f"{address!r} was to be listened on, but is not HOST:PORT; write for example 127.0.0.1:9595 or [::1]:9595")
    return host.strip("[]"), int(port)
