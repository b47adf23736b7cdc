"""`tidelog ping`, `top` and `bench` against a real service: what they say is what happened."""

import json
import signal

import pytest

from tests.command_line import Service, done, invoke, on_terminal, refused, started

SMALL = ("--seconds", "0.5", "--record-bytes", "100")


def topics(server: str) -> dict[str, int]:
    """What each topic holds."""
    listed = json.loads(done("topics", "list", "--format", "json", server=server))
    return {topic["name"]: sum(part["next_offset"] for part in topic["partitions"]) for topic in listed}


def test_ping_goes_through_the_log_and_shows_the_brokers_stages(dev_service: Service, topic: str) -> None:
    asked = ("ping", "--topic", topic, "-n", "3", "--interval-ms", "1", "--metrics", dev_service.metrics)
    facts = json.loads(done(*asked, "--format", "json", server=dev_service.server))
    assert topics(dev_service.server)[topic] == 4, "one to warm up, and three"
    assert len(facts["rounds"]) == 3
    for found in facts["rounds"]:
        assert 0 < found["append_ms"] <= found["round_trip_ms"] >= found["delivery_ms"] > 0
    times = sorted(found["round_trip_ms"] for found in facts["rounds"])
    assert facts["round_trip_ms"] == {"min": times[0], "median": times[1], "max": times[2]}
    assert set(facts["broker_stages_ms"]) == {"wait", "upload", "order"}
    lines = done(*asked, server=dev_service.server).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"{topic}/0 round 1", f"{topic}/0 round 2", f"{topic}/0 round 3", "round trip", "a call that only asks (GetMetadata)",
        "inside the broker, mean",
    ]  # fmt: skip


def test_where_metrics_cannot_be_reached_ping_does_without(server: str, topic: str) -> None:
    facts = json.loads(done("ping", "--topic", topic, "-n", "1", "--metrics", "127.0.0.1:1", "--format", "json", server=server))
    assert facts["broker_stages_ms"] == {}


def test_top_shows_brokers_topics_and_rates_once_into_a_pipe(dev_service: Service, topic: str) -> None:
    asked = ("top", "--interval", "0.2", "--metrics", dev_service.metrics)
    done("topics", "create", topic, "--partitions", "2", server=dev_service.server)
    facts = json.loads(done(*asked, "--format", "json", server=dev_service.server))
    assert {"topic": topic, "partitions": 2, "records": 0, "records_per_s": 0.0} in facts["topics"]
    assert [broker["address"] for broker in facts["cluster"]["brokers"]] == [dev_service.server]
    assert facts["broker"]["rss_bytes"] > 1 << 20
    shown = done(*asked, server=dev_service.server)
    assert dev_service.server in shown
    assert "this broker: CPU" in shown
    assert "\x1b" not in shown
    assert "no metrics to be reached" in done("top", "--interval", "0.1", "--metrics", "127.0.0.1:1", server=dev_service.server)


def test_top_takes_the_terminal_and_gives_it_back_at_ctrl_c(server: str, topic: str) -> None:
    done("topics", "create", topic, server=server)
    code, shown = on_terminal("top", "--interval", "0.1", server=server, interrupted_after="leads")
    assert code == 130
    assert shown.count("\x1b[?1049h") == shown.count("\x1b[?1049l") == 1, "the other screen, and back"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is shown again"
    assert "Traceback" not in shown


def test_top_sees_what_is_appended(dev_service: Service, topic: str) -> None:
    with started("bench", "latency", "--topic", topic, "--seconds", "60", "--rate", "200", server=dev_service.server) as load:
        done("topics", "create", topic, server=dev_service.server)
        while topics(dev_service.server)[topic] == 0:
            assert load.poll() is None
        facts = json.loads(done("top", "--interval", "1", "--metrics", dev_service.metrics, "--format", "json", server=dev_service.server))
        rates = {found["topic"]: found["records_per_s"] for found in facts["topics"]}
        assert rates[topic] > 0
        assert facts["broker"]["puts_per_s"] > 0
        load.send_signal(signal.SIGINT)
        out, told = load.communicate(timeout=60)
    assert (load.returncode, told) == (130, "")
    assert "delivery: p50 " in out, "what was measured before Ctrl-C is shown"


def test_bench_produce_counts_what_was_committed(dev_service: Service, topic: str) -> None:
    done("topics", "create", topic, "--partitions", "3", server=dev_service.server)
    asked = ("bench", "produce", *SMALL, "--metrics", dev_service.metrics, "--batch", "100", "--compression", "zstd")
    facts = json.loads(done(*asked, "--topic", topic, "--format", "json", server=dev_service.server))
    assert facts["records"] == topics(dev_service.server)[topic] > 0
    assert facts["load"]["partitions"] == 3
    assert facts["records_per_s"] == pytest.approx(facts["records"] / facts["seconds"], rel=0.01)
    assert facts["mib_per_s"] == pytest.approx(facts["records"] * 100 / facts["seconds"] / (1 << 20), rel=0.01)
    latency = facts["latency_ms"]["append"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
    assert facts["server"]["puts"] > 0
    assert facts["client"]["cpu_s"] > 0


def test_bench_keeps_to_its_rate(server: str) -> None:
    facts = json.loads(
        done("bench", "produce", "--seconds", "1", "--rate", "2000", "--batch", "10", "--senders", "1", "--format", "json", server=server)
    )
    assert facts["records"] == 2000


def test_bench_makes_a_topic_for_itself_and_takes_it_away_again(server: str) -> None:
    before = topics(server)
    shown = done("bench", "latency", "--seconds", "0.5", "--rate", "50", server=server).splitlines()
    assert shown[0].startswith("25 records of 100 bytes in ")
    assert {line.partition(":")[0] for line in shown[1:3]} == {"append", "delivery"}
    facts = json.loads(
        done("bench", "consume", "--records", "20000", "--partitions", "4", "--readers", "2", "--format", "json", server=server)
    )
    assert facts["records"] == 20_000
    assert facts["mib_per_s"] > 0
    assert topics(server).keys() == before.keys()


def test_bench_shows_on_a_terminal_how_it_goes(server: str) -> None:
    code, shown = on_terminal("bench", "produce", "--seconds", "1", "--rate", "1000", "--batch", "100", server=server)
    assert code == 0
    assert "bench produce on bench-produce-" in shown
    assert "records/s" in shown.rpartition("\x1b")[2] or "records of 100 bytes in" in shown


def test_what_bench_refuses(server: str) -> None:
    before = topics(server)
    assert "choose one of none, gzip" in refused("bench", "produce", "--seconds", "0.1", "--compression", "rar", server=server)
    assert "there is no such topic" in refused("bench", "consume", "--topic", "nowhere", server=server)
    assert invoke("bench", "produce", "--senders", "0", server=server).exit_code == 2
    assert topics(server).keys() == before.keys(), "also a run that fails takes its topic away"


def test_bench_mixed_reads_all_that_it_appends(dev_service: Service, topic: str) -> None:
    asked = ("bench", "mixed", *SMALL, "--partitions", "3", "--readers", "2", "--rate", "20000", "--batch", "100", "--deadline", "30")
    facts = json.loads(done(*asked, "--metrics", dev_service.metrics, "--format", "json", server=dev_service.server))
    assert facts["delivered"] == facts["records"] > 0
    assert facts["load"]["deadline_s"] == 30
    assert facts["server"]["s3_dollars"] == pytest.approx(facts["server"]["puts"] * 5e-6 + facts["server"]["gets"] * 4e-7)
    said = done(*asked, "--metrics", dev_service.metrics, server=dev_service.server)
    assert "delivered meanwhile: " in said
    assert ": on S3 $0.0" in said
