"""`tidelog topics` and `tidelog cluster` against a real service, and the topics' names in the shell's completion."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import tidelog

from tests.command_line import COMMAND, Service, columns_of, done, environment, invoke, on_terminal, refused


def test_a_topics_life(server: str, topic: str) -> None:
    made = done("topics", "create", topic, "--partitions", "3", "--retention", "1h30m", "--retention-bytes", "10MiB", server=server)
    assert made == f"Created topic {topic}: 3 partitions, retention 1h30m, 10.0 MiB per partition.\n"
    row = next(row for row in columns_of(done("topics", "list", server=server)) if row[0] == topic)
    assert row == [topic, "3", "0", "1h30m", "no"]
    changed = done("topics", "alter", topic, "--partitions", "5", "--retention", "forever", "--retention-bytes", "unlimited", server=server)
    assert changed == f"Changed topic {topic}: 5 partitions, retention forever, unlimited per partition.\n"
    first, heading, *rows = columns_of(done("topics", "describe", topic, server=server))
    assert " ".join(first).startswith(f"topic {topic}: 5 partitions, retention forever, unlimited per partition; id ")
    assert heading == ["partition", "leader", "epoch", "from", "offset", "to", "records"]
    assert [(row[0], *row[3:]) for row in rows] == [(str(number), "0", "0", "0") for number in range(5)]
    assert done("topics", "delete", topic, "--yes", server=server) == f"Deleted topic {topic}.\n"
    assert topic not in done("topics", "list", server=server)


def test_programs_are_told_the_same_as_json(server: str, topic: str) -> None:
    made = json.loads(done("topics", "create", topic, "--compact", "--format", "json", server=server))
    assert (made["name"], made["config"]["compact"], len(made["topic_id"])) == (topic, True, 32)
    altered = json.loads(done("topics", "alter", topic, "--no-compact", "--retention", "7d", "--format", "json", server=server))
    assert altered["config"] == made["config"] | {"compact": False, "retention_ms": 604_800_000}
    listed = json.loads(done("topics", "list", "--format", "json", server=server))
    described = json.loads(done("topics", "describe", topic, "--format", "json", server=server))
    assert described == next(found for found in listed if found["name"] == topic)
    assert [part["next_offset"] for part in described["partitions"]] == [0]
    assert json.loads(done("topics", "delete", topic, "--format", "json", server=server)) == {"deleted": topic}


def test_what_topics_refuse(server: str, topic: str) -> None:
    done("topics", "create", topic, "--partitions", "2", server=server)
    for arguments, code, sentence in (
        (("create", topic), 1, f"topic '{topic}' was to be created, but there is one of that name; choose another"),
        (("create", "bad name"), 1, "a name has 1 to 249 of the characters"),
        (("create", "x", "--partitions", "1000000"), 1, "ask for fewer"),
        (("create", "x", "--partitions", "-1"), 2, "--partitions"),
        (("create", "x", "--retention", "7"), 2, "'7' is no duration; write numbers with units"),
        (("create", "x", "--retention-bytes", "much"), 2, "'much' is no size"),
        (("describe", "nowhere"), 1, "there is no such topic; list topics to see what there is"),
        (("delete", "nowhere", "--yes"), 1, "there is no such topic"),
        (("alter", "nowhere", "--retention", "1d"), 1, "there is no such topic"),
        (("alter", topic), 2, "nothing was to be changed; give --partitions"),
        (("alter", topic, "--partitions", "1"), 1, "partitions"),
    ):
        told = refused("topics", *arguments, server=server, code=code)
        assert sentence in " ".join(told.split()), (arguments, told)
    assert "x" not in [row[0] for row in columns_of(done("topics", "list", server=server))]


def test_an_empty_cluster_says_how_to_go_on() -> None:
    with tidelog.embedded() as address:
        assert done("topics", "list", server=address) == "No topics yet. Create one: tidelog topics create NAME --partitions 12\n"
        assert json.loads(done("topics", "list", "--format", "json", server=address)) == []


def test_tables_are_ruled_and_dimmed_on_a_terminal_alone(server: str, topic: str) -> None:
    done("topics", "create", topic, server=server)
    code, shown = on_terminal("topics", "list", server=server)
    assert code == 0
    assert "─" in shown
    assert "\x1b[2m" in shown
    piped = done("topics", "list", server=server)
    assert "─" not in piped
    assert "\x1b" not in piped


def test_on_a_terminal_it_is_asked_before_a_topic_is_deleted(server: str, topic: str) -> None:
    done("topics", "create", topic, server=server)
    code, shown = on_terminal("topics", "delete", topic, server=server, typed="n\n")
    assert code == 1
    assert f"Delete topic '{topic}' and all its records? [y/N]:" in shown
    assert topic in done("topics", "list", server=server)
    code, shown = on_terminal("topics", "delete", topic, server=server, typed="y\n")
    assert code == 0
    assert topic not in done("topics", "list", server=server)


def test_the_brokers_are_shown_and_one_is_drained_and_taken_back() -> None:
    with tidelog.embedded(broker_id="solo", zone="here") as address:
        done("topics", "create", "t", "--partitions", "4", server=address)
        first, heading, row = columns_of(done("cluster", "describe", server=address))
        assert first[0] == "cluster"
        assert heading == ["broker", "address", "zone", "epoch", "lease", "leads", "state"]
        assert [row[0], row[1], row[2], row[3], row[-1]] == ["solo", address, "here", "1", "serving"]
        facts = json.loads(done("cluster", "describe", "--format", "json", server=address))
        assert [broker["address"] for broker in facts["brokers"]] == [address]
        told = json.loads(done("cluster", "drain", "solo", "--format", "json", server=address))
        assert (told["broker"], told["undo"]) == ("solo", False)
        assert done("cluster", "drain", "solo", server=address).startswith("Broker solo is drain")
        assert columns_of(done("cluster", "describe", server=address))[2][-1] == "draining"
        assert done("cluster", "drain", "solo", "--undo", server=address) == "Broker solo serves again.\n"
        assert columns_of(done("cluster", "describe", server=address))[2][-1] == "serving"
        assert "broker 'nobody' was asked to drain, but it is not a member" in refused("cluster", "drain", "nobody", server=address)


def test_what_would_be_deleted_is_shown_and_why(tmp_path: Path) -> None:
    with tidelog.embedded(cleaner_interval_ms=600_000, retention_interval_ms=50) as address:
        done("topics", "create", "t", server=address)
        file = tmp_path / "records"
        file.write_text("a\n")
        done("produce", "t", "--file", str(file), server=address)
        assert done("cluster", "clean", "--dry-run", server=address) == "0 objects would be deleted (0 B), 0 wait, of 1 listed.\n"
        done("topics", "delete", "t", "--yes", server=address)
        first, *_ = columns_of(done("cluster", "clean", "--dry-run", server=address))
        assert first[:5] == ["0", "objects", "would", "be", "deleted"], "nobody has released it yet"
        assert "brokers clean by themselves; with --dry-run" in refused("cluster", "clean", server=address, code=2)


def test_a_token_goes_with_every_call_and_a_wrong_one_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("tokens") / "tokens.yaml"
    file.write_text('tokens: [{name: me, token: sesame, read: [""], write: [""], admin: [""]}]')
    with tidelog.embedded(tokens_file=str(file)) as address:
        assert "Created topic t" in done("topics", "create", "t", "--token", "sesame", server=address)
        for arguments in ((), ("--token", "wrong")):
            result = invoke("topics", "list", *arguments, server=address)
            assert result.exit_code == 1
            assert "token" in result.stderr


@pytest.mark.parametrize("words", ["tidelog consume {}", "tidelog topics delete {}"])
def test_the_shell_completes_the_names_of_topics(server: str, topic: str, words: str) -> None:
    done("topics", "create", topic, server=server)
    prefix = topic[:-3]
    assert complete(words.format(prefix), server) == [topic]
    assert complete(words.format("no-such-"), server) == []


def test_completion_is_silent_where_nobody_answers() -> None:
    assert complete("tidelog consume a", "127.0.0.1:1") == []


def complete(words: str, server: str) -> list[str]:
    variables = {"_TIDELOG_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    asked = subprocess.run(COMMAND, capture_output=True, text=True, env=environment(server, **variables), timeout=60)
    assert asked.stderr == ""
    return asked.stdout.split()


def test_what_the_bucket_charges(dev_service: Service, topic: str) -> None:
    """The interval's appends are those of a producer beside it."""
    server, metrics = dev_service.server, dev_service.metrics
    done("topics", "create", topic, server=server)
    with subprocess.Popen(
        [*COMMAND, "cluster", "cost", "--interval", "4", "--metrics", metrics, "--format", "json"],
        stdout=subprocess.PIPE,
        env=environment(server),
        text=True,
    ) as looking:
        until = time.monotonic() + 5
        while looking.poll() is None and time.monotonic() < until:
            produced = subprocess.run([*COMMAND, "produce", topic], input=b"x" * 1000 + b"\n", env=environment(server), capture_output=True)
            assert produced.returncode == 0
        assert looking.stdout
        cost = json.loads(looking.stdout.read())
    assert looking.returncode == 0
    assert (cost["brokers"], cost["silent"]) == (1, [])
    assert cost["requests"]["put"] >= 1
    assert cost["appended_bytes"] >= 1000
    assert cost["dollars_per_hour"]["put"] == pytest.approx(cost["requests"]["put"] / 4 * 3600 * 0.005 / 1000)
    assert cost["client_bytes"]["unknown"] >= 1000, "nobody says where it is"
    assert (cost["client_bytes"]["other"], cost["transfer_dollars_per_month"]) == (0, 0)
    month = sum(cost["dollars_per_hour"].values()) * 730 + cost["storage_dollars_per_month"]
    assert cost["dollars_per_month"] == pytest.approx(month)
    assert topic in cost["topic_shares"] or len(cost["topic_shares"]) > 100
    shown = done("cluster", "cost", "--interval", "0.1", "--metrics", metrics, server=server)
    assert shown.startswith("1 of 1 brokers, over 0.1 s\n")
    assert "a month, were all hours like this" in shown
    assert "between zones: 0 B/s, $0.00 a month" in shown


def test_a_bill_without_metrics_says_so(server: str) -> None:
    told = refused("cluster", "cost", "--interval", "0.1", "--metrics", "127.0.0.1:1", server=server)
    assert "none answers; name them with --metrics" in told
