"""`tidelog segment dump`."""

import asyncio
import json
import os
import resource
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidelog.cli.app import app
from tidelog.clock import SystemClock
from tidelog.errors import CorruptSegment
from tidelog.objects.s3 import S3Settings, open_s3
from tidelog.randomness import system_random
from tidelog.segments.format import MAX_SEGMENT_BYTES, decode
from tidelog.segments.inspection import inspect
from typer.testing import CliRunner

GOLDEN = Path(__file__).parent.parent / "golden"


def test_a_segment_is_shown_to_people_and_to_programs() -> None:
    shown = CliRunner().invoke(app, ["segment", "dump", str(GOLDEN / "segment-v1-merged.seg")])
    assert shown.exit_code == 0
    assert "merged segment, version 1" in shown.output
    assert "offsets 1000 to 2300" in shown.output
    told = CliRunner().invoke(app, ["segment", "dump", f"file://{GOLDEN / 'segment-v1-intake.seg'}", "--format", "json"])
    facts = json.loads(told.output)
    assert [chunk["record_count"] for chunk in facts["chunks"]] == [3, 203, 1]
    assert [len(chunk["batches"]) for chunk in facts["chunks"]] == [1, 2, 1]


def test_a_damaged_or_missing_file_is_named_and_fails(tmp_path: Path) -> None:
    damaged = bytearray((GOLDEN / "segment-v1-intake.seg").read_bytes())
    damaged[20] ^= 1
    (tmp_path / "damaged.seg").write_bytes(damaged)
    for name, sentence in (("damaged.seg", "segment at byte 8: the chunk of partition 0"), ("none.seg", "No such file")):
        done = CliRunner().invoke(app, ["segment", "dump", str(tmp_path / name)])
        assert done.exit_code == 1
        assert sentence in done.output
    assert CliRunner().invoke(app, ["segment", "dump"]).exit_code == 2


def test_of_a_damaged_segment_all_defects_are_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    damaged = bytearray((GOLDEN / "segment-v1-intake.seg").read_bytes())
    damaged[6] ^= 3  # the header's kind
    damaged[100] ^= 1  # the only batch of the first chunk
    damaged[300] ^= 1  # the second batch of the second chunk
    (tmp_path / "damaged.seg").write_bytes(damaged)
    told = CliRunner().invoke(app, ["segment", "dump", str(tmp_path / "damaged.seg"), "--format", "json"])
    assert told.exit_code == 1
    facts = json.loads(told.stdout)
    assert facts["whole"] is False
    assert facts["all_defects_told"] is True
    assert [defect["position"] for defect in facts["defects"]] == [6, 8, 8, 114, 240]
    assert [len(chunk["batches"]) for chunk in facts["chunks"]] == [0, 1, 1]
    shown = CliRunner().invoke(app, ["segment", "dump", str(tmp_path / "damaged.seg")])
    assert "intake segment, version 1, 22509 bytes: damaged" in shown.stdout
    assert "batch at 114" in shown.stdout
    assert "batch at 240:" not in shown.stdout
    assert shown.stderr.count("segment at byte") == 5


def test_a_segment_whose_footer_is_lost_shows_its_whole_batches(tmp_path: Path) -> None:
    whole = (GOLDEN / "segment-v1-intake.seg").read_bytes()
    (tmp_path / "cut.seg").write_bytes(whole[:-5])
    told = CliRunner().invoke(app, ["segment", "dump", str(tmp_path / "cut.seg"), "--format", "json"])
    assert told.exit_code == 1
    facts = json.loads(told.stdout)
    assert facts["kind"] is None
    assert [batch["position"] for batch in facts["batches"]] == [8, 114, 240, 22237]
    assert len(facts["defects"]) == 1
    shown = CliRunner().invoke(app, ["segment", "dump", str(tmp_path / "cut.seg")])
    assert "whose footer cannot be read; 4 batches before it are whole" in shown.stdout


def test_defects_that_are_told_are_bounded(tmp_path: Path) -> None:
    batch = (GOLDEN / "batch-plain.bin").read_bytes()
    damaged = batch[:-1] + bytes([batch[-1] ^ 1])
    found = inspect(b"TIDE\x01\x00\x01\x00" + damaged * 500 + bytes(12))
    assert len(found.defects) == 100
    assert not found.complete
    (tmp_path / "many.seg").write_bytes(b"TIDE\x01\x00\x01\x00" + damaged * 500 + bytes(12))
    shown = CliRunner().invoke(app, ["segment", "dump", str(tmp_path / "many.seg")])
    assert "and more; only the first 100 defects are told" in shown.stderr


@pytest.mark.parametrize("name", ["intake", "merged"])
@given(data=st.data())
def test_an_inspection_finds_a_defect_exactly_where_readers_refuse(name: str, data: st.DataObject) -> None:
    segment = bytearray((GOLDEN / f"segment-v1-{name}.seg").read_bytes())
    # Mostly at the ends: what lies between is payload, and a change there is always the same defect.
    places = st.one_of(st.integers(0, 130), st.integers(len(segment) - 300, len(segment) - 1), st.integers(0, len(segment) - 1))
    for place in data.draw(st.lists(places, max_size=4)):
        segment[place] ^= data.draw(st.integers(0, 255))
    del segment[data.draw(st.one_of(st.just(len(segment)), st.integers(0, len(segment)))) :]
    refused_at = None
    try:
        footer = decode(segment)
    except CorruptSegment as refusal:
        refused_at = refusal.position
    found = inspect(segment)
    if refused_at is None:
        assert (found.footer, found.defects, found.complete) == (footer, (), True)
    else:
        assert refused_at in {defect.position for defect in found.defects}


def test_what_is_larger_than_any_segment_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large.seg").open("wb") as file:
        file.truncate(MAX_SEGMENT_BYTES + 1)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = CliRunner().invoke(app, ["segment", "dump", str(tmp_path / "large.seg")])
    assert refused.exit_code == 1
    assert "more than 1073741824 bytes, which no segment has" in refused.stderr
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 64 * 1024  # KiB


def test_a_pipe_and_a_name_with_a_space_are_read(tmp_path: Path) -> None:
    segment = (GOLDEN / "segment-v1-intake.seg").read_bytes()
    (tmp_path / "with space.seg").write_bytes(segment)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(segment,))
    writer.start()
    for source in (f"file://{tmp_path}/with%20space.seg", str(tmp_path / "with space.seg"), str(tmp_path / "pipe")):
        shown = CliRunner().invoke(app, ["segment", "dump", source])
        assert (shown.exit_code, "every checksum is right" in shown.output) == (0, True)
    writer.join()


def test_a_segment_in_a_bucket_is_read_from_there(s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = (GOLDEN / "segment-v1-intake.seg").read_bytes()

    async def upload() -> None:
        store = await open_s3(s3_settings, clock=SystemClock(), chance=system_random())
        await store.put_new("intake/x.seg", [segment])
        await store.close()

    asyncio.run(upload())
    assert s3_settings.endpoint_url
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_settings.endpoint_url)
    url = f"s3://{s3_settings.bucket}/{s3_settings.prefix}/intake/x.seg"
    shown = CliRunner().invoke(app, ["segment", "dump", url])
    assert shown.exit_code == 0
    assert "intake segment, version 1, 22509 bytes: every checksum is right" in shown.output
    missing = CliRunner().invoke(app, ["segment", "dump", f"{url}.none"])
    assert missing.exit_code == 1
    assert "there is no object of that key" in missing.stderr
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    named = CliRunner().invoke(app, ["segment", "dump", f"{url}?endpoint={s3_settings.endpoint_url}&path_style=true"])
    assert named.stdout == shown.stdout
    mistyped = CliRunner().invoke(app, ["segment", "dump", f"{url}?end_point=http://127.0.0.1"])
    assert (mistyped.exit_code, "did you mean endpoint?" in mistyped.stderr) == (1, True)
