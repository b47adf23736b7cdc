"""Files that are read again when they change: certificates and tokens are renewed under a running broker."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from tidelog.clock import Clock
from tidelog.errors import InvalidSettings
from tidelog.telemetry import get_logger

T = TypeVar("T")

_LOOK_EVERY_S = 1.0
_log = get_logger(__name__)


class Reloaded(Generic[T]):
    """What some files say now. A change that cannot be used is told of once, and the last good state stays."""

    def __init__(self, files: Sequence[Path], load: Callable[[], T], *, clock: Clock) -> None:
        """Load for the first time. Raises InvalidSettings where that fails."""
        self._files = files
        self._load = load
        self._clock = clock
        self._looked_at = clock.monotonic()
        self._seen = self._identity()
        self._value = self._loaded()

    def current(self) -> T:
        """Return what the files say; looks at them once a second at most. Safe to call from any thread."""
        now = self._clock.monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            seen = self._identity()  # before loading: a change during it is seen next time
            if seen != self._seen:
                self._seen = seen
                self._reload()
        return self._value

    def _reload(self) -> None:
        names = [str(file) for file in self._files]
        try:
            self._value = self._loaded()
        except InvalidSettings as error:
            _log.warning("changed_file_not_usable", files=names, problem=str(error), kept="the last good state")
        else:
            _log.info("changed_file_loaded", files=names)

    def _loaded(self) -> T:
        try:
            return self._load()
        except OSError as error:
            raise InvalidSettings(f"{error.filename} was to be read, but {error.strerror}; mend the path or its permissions") from error

    def _identity(self) -> tuple[tuple[int, ...], ...]:
        return tuple(_identity(file) for file in self._files)


def _identity(file: Path) -> tuple[int, ...]:
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
