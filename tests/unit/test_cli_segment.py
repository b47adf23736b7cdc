"""`tidelog segment dump`."""

import json
from pathlib import Path

from tidelog.cli.app import app
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
