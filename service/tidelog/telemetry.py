"""What a process prints about itself: events with constant names and fields, as text for people or JSON lines for programs.

`get_logger` may be used anywhere on the service's side; nothing is set up globally until `configure` is called, which
only the process's entry does. What dependencies say through `logging` comes out the same way, never below WARNING:
some of them print requests with their signatures when asked for more.

INFO is for the life cycle, nothing is printed per record, payloads and secrets never: bytes are shown by their number,
fields whose name tells of a secret are hidden, passwords are taken out of URLs.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.typing import EventDict, Processor

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

HIDDEN = "********"
_SECRET_NAME = re.compile(r"secret|token|passw|credential|authorization|private_key", re.IGNORECASE)
_SECRET_IN_URL = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s/@:]*:)[^\s/@]+(?=@)|(?P<query>[?&]password=)[^\s&]+", re.IGNORECASE)


def get_logger(name: str) -> BoundLogger:
    """Return the logger of a module; `name` is its `__name__`."""
    logger: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, structlog.contextvars.merge_contextvars, ProcessorFormatter.wrap_for_formatter],
        wrapper_class=BoundLogger,
        cache_logger_on_first_use=True,
    )
    return logger


def configure(*, log_format: LogFormat, log_level: LogLevel, stream: TextIO | None = None) -> None:
    """Print events to `stream` (None: standard error) from now on. Text is coloured only on a terminal."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[log_level.upper()]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(log_format, coloured=stream.isatty()))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))
    for own in ("tidelog", "tidelog_operator"):
        logging.getLogger(own).setLevel(level)
    logging.captureWarnings(capture=True)


def without_secrets(text: str) -> str:
    """Return `text` with the passwords in its URLs hidden."""
    return _SECRET_IN_URL.sub(lambda found: f"{found['before'] or found['query']}{HIDDEN}", text)


def _formatter(log_format: LogFormat, *, coloured: bool) -> ProcessorFormatter:
    ending: Processor
    if log_format == "json":
        ending = structlog.processors.JSONRenderer(default=str)
    else:
        # Not its default for exceptions, which prints the values of local variables: payloads and secrets.
        ending = structlog.dev.ConsoleRenderer(
            colors=coloured, pad_event_to=0, timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
        )
    processors: list[Processor] = [
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _from_record,
        structlog.processors.format_exc_info,
        _hide_secrets,
        ending,
    ]
    return ProcessorFormatter(processors=processors, use_get_message=True)


def _from_record(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Bring events of this module's loggers and those of dependencies into one form."""
    record: logging.LogRecord = event.pop("_record")
    event.pop("_from_structlog")
    exc_info = event.pop("exc_info", None) or record.exc_info
    return {
        "time": event.pop("time"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event.pop("event"),
        **event,
        **({"exc_info": exc_info} if exc_info else {}),
    }


def _hide_secrets(_logger: object, _method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        event[name] = HIDDEN if _SECRET_NAME.search(name) else _shown(value)
    return event


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, Mapping):
        return {name: HIDDEN if _SECRET_NAME.search(str(name)) else _shown(inner) for name, inner in value.items()}
    if isinstance(value, BaseException):
        return without_secrets(f"{type(value).__name__}: {value}")
    return value
