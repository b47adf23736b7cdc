"""File descriptors: what a process may open at once, connections included. A shell's usual limit is 1,024."""

import resource

from tidelog.telemetry import get_logger

_RESERVED = 256
"""For files, the stores and links to other brokers: idle clients must not be able to take these."""
_log = get_logger(__name__)


def raise_limit() -> None:
    """Let this process open as many as the system allows it; for whoever owns the process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_that_fit(most: int) -> int:
    """Return how many connections may be let in: `most`, or fewer where the system does not allow for so many; then says so."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    fit = most if soft == resource.RLIM_INFINITY else max(1, min(most, soft - _RESERVED))
    if fit < most:
        _log.warning(
            "fewer_connections", max_connections=most, allowed=fit, advice=f"raise this process's limit of open files above {soft}"
        )
    return fit
