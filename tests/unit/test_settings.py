"""Where settings come from, and what is said of those that cannot be used."""

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from tidelog.config import GROUPS, Settings
from tidelog.errors import InvalidSettings
from tidelog.server.settings import LoadedSettings, groups, load_settings, variable

from docs.reference import FOLDER, pages


def load(environ: Mapping[str, str] | None = None, file: Path | None = None, **flags: object) -> LoadedSettings:
    return load_settings(flags=flags, config_file=file, environ=environ or {})


def refusal(environ: Mapping[str, str] | None = None, file: Path | None = None, **flags: object) -> str:
    with pytest.raises(InvalidSettings) as caught:
        load(environ, file, **flags)
    text = str(caught.value)
    assert "pydantic" not in text
    assert "validation" not in text
    return text


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "tidelog.yaml"


def test_flags_go_before_the_file_and_the_file_before_the_environment(config: Path) -> None:
    config.write_text("zone: from-file\nlog_level: debug\n")
    loaded = load({"TIDELOG_ZONE": "from-environment", "TIDELOG_MAX_UPLOADS": "3", "TIDELOG_LOG_LEVEL": "error"}, config, zone="from-flag")
    assert (loaded.settings.zone, loaded.settings.log_level, loaded.settings.max_uploads) == ("from-flag", "debug", 3)
    assert loaded.sources["zone"] == "flag --zone"
    assert loaded.sources["log_level"] == str(config)
    assert loaded.sources["max_uploads"] == "environment variable TIDELOG_MAX_UPLOADS"
    assert loaded.sources["lease_ms"] == "default"


def test_every_setting_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Settings(broker_id="a")
    texts = {variable(name): str(value) for name, value in defaults.model_dump().items()}
    loaded = load(texts)
    assert loaded.settings == defaults
    assert set(loaded.sources.values()) == {f"environment variable {name}" for name in texts}


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            {"TIDELOG_SEGMENT_BYTE": "1"},
            "environment variable TIDELOG_SEGMENT_BYTE is no setting of Tidelog; did you mean TIDELOG_SEGMENT_BYTES?",
        ),
        ({"TIDELOG_segment_bytes": "1"}, "environment variable TIDELOG_segment_bytes is no setting of Tidelog"),
        ({"TIDELOG_SERVERS": "1"}, "did you mean TIDELOG_SERVER?"),
        ({"TIDELOG_PORT": "9595"}, "environment variable TIDELOG_PORT is no setting"),
    ],
)
def test_a_misspelt_variable_is_refused_by_name(environ: dict[str, str], sentence: str) -> None:
    assert sentence in refusal(environ)


def test_variables_of_other_commands_and_of_kubernetes_services_are_let_be() -> None:
    load(
        {
            "TIDELOG_SERVER": "localhost:9595",
            "TIDELOG_SERVICE_HOST": "10.0.0.1",
            "TIDELOG_SERVICE_PORT_GRPC": "9595",
            "TIDELOG_PORT": "tcp://10.0.0.1:9595",
            "TIDELOG_HEADLESS_PORT_9595_TCP_ADDR": "10.0.0.1",
            "PATH": "/bin",
        }
    )


def test_misspelt_keys_and_flags_are_refused_by_name_all_at_once(config: Path) -> None:
    config.write_text("segment-bytes: 8388608\n")
    text = refusal({}, config, segment_byte=1)
    assert f"{config}: setting segment-bytes is no setting of Tidelog; did you mean segment_bytes?" in text
    assert "flag --segment-byte is no setting of Tidelog; did you mean --segment-bytes?" in text


def test_a_value_that_cannot_be_used_is_told_with_its_range_and_its_source(config: Path) -> None:
    config.write_text("zone: [1]\nputs_per_second: -1\n")
    lines = refusal({"TIDELOG_SEGMENT_BYTES": "8MiB"}, config, log_format="xml").splitlines()
    assert (
        'segment_bytes is "8MiB" (environment variable TIDELOG_SEGMENT_BYTES), but it must be a whole number from 4096 to 268435456.'
        " A segment is sealed when it holds this much. Change the variable, or unset it; the default is 8388608."
    ) in lines
    assert any(line.startswith(f"zone is [1] ({config}), but it must be text.") for line in lines)
    assert any(line.startswith(f"puts_per_second is -1 ({config}), but it must be a number") for line in lines)
    assert any(line.startswith('log_format is "xml" (flag --log-format), but it must be one of text, json.') for line in lines)
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1, 2]", "not made of names and values"),
        ("lease_ms", "not made of names and values"),
        ("a: [\n", "it is no YAML"),
        (None, "No such file"),
    ],
)
def test_a_file_that_holds_no_settings_is_told(config: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        config.write_text(content)
    assert sentence in refusal({}, config)


def test_an_empty_file_changes_nothing(config: Path) -> None:
    config.write_text("# nothing\n")
    assert load({}, config).settings == load().settings


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"max_append_bytes": 1024}, ("max_batch_bytes is 1048576 (default)", "max_append_bytes is 1024 (flag --max-append-bytes)")),
        ({"max_message_bytes": 8 * 1024**2}, ("max_append_bytes", "max_message_bytes")),
        ({"intake_budget_bytes": 16 * 1024**2}, ("max_append_bytes", "intake_budget_bytes")),
        ({"max_append_timeout_ms": 10}, ("append_timeout_ms", "max_append_timeout_ms")),
        ({"max_latency_ms": 60_000}, ("max_latency_ms", "append_timeout_ms")),
        ({"catalog_poll_ms": 10_000}, ("catalog_poll_ms", "lease_ms")),
        ({"default_partitions": 10, "max_partitions_per_topic": 9}, ("default_partitions", "max_partitions_per_topic")),
        ({"merge_least_extents": 1000}, ("merge_least_extents", "merge_most_extents")),
        ({"tokens_file": "a", "metadata": "postgresql://host/db"}, ("tokens_file", "peer_token")),
        ({"tls_key_file": "a"}, ("tls_certificate_file", "tls_key_file")),
        ({"tls_client_ca_file": "a"}, ("tls_client_ca_file", "tls_certificate_file")),
        ({"bucket": "s3://b", "max_uploads": 40}, ("max_uploads", "max_cold_reads", "max_tail_reads", "s3_max_connections")),
        ({"bucket": "s3://b", "s3_max_connections": 51}, ("52 requests may be under way", "s3_max_connections")),
    ],
)
def test_settings_that_contradict_each_other_are_refused(flags: dict[str, object], names: tuple[str, ...]) -> None:
    text = refusal({}, None, **flags)
    assert all(name in text for name in names)


@pytest.mark.parametrize(("host", "broker_id"), [("Node_1.Example.COM", "node-1-example-com"), ("a" * 80, "a" * 63), ("-b-", "b")])
def test_the_broker_is_named_after_its_host(monkeypatch: pytest.MonkeyPatch, host: str, broker_id: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    loaded = load({"TIDELOG_BROKER_ID": ""})
    assert (loaded.settings.broker_id, loaded.sources["broker_id"]) == (broker_id, "made of the host's name")


def test_a_host_without_a_usable_name_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "___")
    assert "set broker_id" in refusal()


@pytest.mark.parametrize("broker_id", ["A", "a.b", "a" * 64, "a\n"])
def test_a_broker_id_that_could_not_be_a_key_is_refused(broker_id: str) -> None:
    assert "[a-z0-9-]{1,63}" in refusal(broker_id=broker_id)


def test_what_is_printed_can_be_read_again_and_hides_secrets(config: Path) -> None:
    loaded = load({"TIDELOG_ZONE": 'a"b # ö'}, metadata="postgresql://user:hunter2@host/db", puts_per_second=2.5)
    printed = loaded.as_yaml()
    assert "# flag --metadata" in printed
    assert "hunter2" not in printed
    config.write_text(printed)
    assert load({}, config, metadata=loaded.settings.metadata).settings == loaded.settings
    assert "hunter2" not in load(peer_token="hunter2").as_yaml()


def test_secrets_are_not_in_refusals() -> None:
    assert "hunter2" not in refusal(peer_token=["hunter2"])
    assert "hunter2" not in refusal({"TIDELOG_LEASE_MS": "postgresql://user:hunter2@host/db"})


def test_every_setting_has_a_sentence_and_a_heading() -> None:
    assert all(str(field.description).endswith(".") for field in Settings.model_fields.values())
    assert set(GROUPS.values()) <= set(Settings.model_fields)
    assert [name for _, names in groups() for name in names] == list(Settings.model_fields)


def test_the_pages_made_from_the_code_are_fresh() -> None:
    for file, page in pages().items():
        assert (FOLDER / file).read_text() == page, "make docs"
