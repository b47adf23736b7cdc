"""What is printed, and what never is."""

import ast
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import tidelog
from tidelog.telemetry import _SECRET_NAME, HIDDEN, LogFormat, configure, get_logger, without_secrets


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("tidelog")
    before = root.handlers, root.level, own.level
    yield
    root.handlers, level, own_level = before
    root.setLevel(level)
    own.setLevel(own_level)
    logging.captureWarnings(capture=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_its_fields() -> None:
    stream = io.StringIO()
    configure(log_format="json", log_level="info", stream=stream)
    get_logger("tidelog.broker.broker").info("broker_started", broker_id="a", broker_epoch=3)
    (line,) = lines(stream)
    assert line.pop("time")
    assert line == {"level": "info", "logger": "tidelog.broker.broker", "event": "broker_started", "broker_id": "a", "broker_epoch": 3}


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_text_is_coloured_on_a_terminal_only(stream: io.StringIO) -> None:
    configure(log_format="text", log_level="info", stream=stream)
    get_logger("tidelog.x").info("lease_renewed", left_ms=10)
    assert "lease_renewed" in stream.getvalue()
    assert ("\x1b[" in stream.getvalue()) == stream.isatty()


def test_a_new_line_in_a_field_does_not_begin_a_line() -> None:
    stream = io.StringIO()
    configure(log_format="text", log_level="info", stream=stream)
    get_logger("tidelog.x").info("topic_created", name="a\nb")
    assert len(stream.getvalue().splitlines()) == 1


def test_levels_hold_and_dependencies_are_never_asked_for_more_than_warnings() -> None:
    stream = io.StringIO()
    configure(log_format="json", log_level="debug", stream=stream)
    get_logger("tidelog.x").debug("shown")
    logging.getLogger("botocore.auth").debug("a signature")
    logging.getLogger("asyncio").warning("took %d ms", 12)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("out of date", DeprecationWarning, stacklevel=1)
    events = [line["event"] for line in lines(stream)]
    assert events[:2] == ["shown", "took 12 ms"]
    assert "out of date" in str(events[2])
    configure(log_format="json", log_level="error", stream=stream)
    get_logger("tidelog.x").warning("not shown")
    logging.getLogger("asyncio").warning("not shown")
    assert len(lines(stream)) == 3


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_payloads_secrets_and_local_variables_are_not_printed(log_format: LogFormat) -> None:
    stream = io.StringIO()
    configure(log_format=log_format, log_level="info", stream=stream)
    local_variable = "hunter" + "1"
    try:
        raise ValueError("cannot reach postgresql://user:hunter2@host/db?password=hunter3")
    except ValueError as error:
        get_logger("tidelog.x").exception(
            "failed", peer_token="hunter4", value=b"hunter5", url="https://u:hunter6@h/", error=error, nested={"password": "hunter7"}
        )
        logging.getLogger("dependency").exception("failed at %s", "s3://k:hunter8@h")
    assert local_variable == "hunter1"
    assert "ValueError" in stream.getvalue()
    assert "7 bytes" in stream.getvalue()
    assert not [number for number in range(1, 9) if f"hunter{number}" in stream.getvalue()]


def events() -> Iterator[tuple[str, ast.Call]]:
    """Yield where something is printed, and the call that does it."""
    root = Path(tidelog.__path__[0])
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "_log":
                yield f"{file.relative_to(root)}:{node.lineno}", node


def test_every_event_has_a_constant_name_and_fields_that_are_shown() -> None:
    wrong = []
    found = list(events())
    for place, call in found:
        name = call.args[0] if len(call.args) == 1 else None
        constant = isinstance(name, ast.Constant) and isinstance(name.value, str) and re.fullmatch(r"[a-z]+(_[a-z]+)*", name.value)
        fields = [keyword.arg for keyword in call.keywords]
        if not constant or None in fields or any(_SECRET_NAME.search(str(field)) for field in fields):
            wrong.append(f"{place}: {ast.unparse(call)}")
    assert len(found) > 20, "it looks where something is printed"
    assert wrong == []


def test_urls_without_passwords_stay_as_they_are() -> None:
    assert without_secrets("s3://bucket/a:b@c at http://localhost:9000") == "s3://bucket/a:b@c at http://localhost:9000"
    assert without_secrets("postgresql://me:x@[::1]:5432/db") == f"postgresql://me:{HIDDEN}@[::1]:5432/db"
