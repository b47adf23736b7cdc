"""Checkpoint objects as bytes, and which extents a rebuild chooses: no store, no bucket."""

import json
from typing import Any

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidelog.broker.cover import Candidate, cover
from tidelog.errors import CorruptCheckpoint
from tidelog.metadata.extents import Extent
from tidelog.segments.checkpoints import (
    Block,
    CheckpointKey,
    CheckpointKind,
    CheckpointObject,
    check_page,
    decode_checkpoint,
    encode_checkpoint,
    page_ref,
    parse_checkpoint_key,
    pick,
)

HEAD = CheckpointObject(CheckpointKind.HEAD, {"number": 3}, (Block("topics", ("topic_id", "name"), [["a", "é"], ["b", None]]),))


def test_what_was_written_is_read_and_a_person_can_read_it_too() -> None:
    data = encode_checkpoint(HEAD)
    assert decode_checkpoint(data) == HEAD
    lines = bytes(cramjam.zstd.decompress(data[16:])).decode().split("\n")
    assert [json.loads(line) for line in lines] == [
        {"number": 3},
        {"table": "topics", "columns": ["topic_id", "name"], "rows": [["a", "é"], ["b", None]]},
    ]


@given(st.data())
def test_a_changed_or_cut_object_is_refused(data: st.DataObject) -> None:
    content = bytearray(encode_checkpoint(HEAD))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        at = data.draw(st.integers(0, len(content) - 1).filter(lambda at: at not in (6, 7)))  # its kind, which the name says, too
        content[at] ^= data.draw(st.integers(1, 255))
    if content[4:6] == b"\x00\x00":
        return  # a version that never was
    with pytest.raises(CorruptCheckpoint):
        decode_checkpoint(bytes(content))


def test_another_page_than_the_head_names_is_refused() -> None:
    data = encode_checkpoint(HEAD)
    check_page(page_ref("k", data), data)
    with pytest.raises(CorruptCheckpoint, match="was to have"):
        check_page(page_ref("k", data), data + b"x")


def test_columns_are_picked_by_name_and_those_not_known_are_null() -> None:
    assert pick(HEAD.blocks[0], ("name", "later", "topic_id")) == [("é", None, "a"), (None, None, "b")]


@pytest.mark.parametrize("page", [None, 0, 7])
def test_a_key_says_what_it_names(page: int | None) -> None:
    key = CheckpointKey(2, 9, 17, page)
    assert parse_checkpoint_key(str(key)) == key
    assert parse_checkpoint_key(f"{key}x") is None


# ---- the choice of extents


def candidate(base: int, end: int, *, present: bool = True) -> Candidate:
    return Candidate(Extent(1, base, end, 1, base * 1000 + end, 8, 10, end - base, 0, 0, 0, 1), present)


def chosen(*candidates: Candidate, log_start: int = 0, end: int) -> list[tuple[int, int]]:
    return [(c.extent.base_offset, c.extent.next_offset) for c in cover(candidates, log_start=log_start, end=end).chosen]


@pytest.mark.parametrize(("candidates", "bounds", "expected"), [
    ([candidate(0, 2), candidate(2, 4), candidate(0, 4)], (0, 4), [(0, 4)]),
    ([candidate(0, 2), candidate(2, 4), candidate(0, 4, present=False)], (0, 4), [(0, 2), (2, 4)]),
    ([candidate(0, 2, present=False), candidate(2, 4, present=False), candidate(0, 4)], (0, 4), [(0, 4)]),
    ([candidate(0, 2), candidate(2, 3, present=False), candidate(3, 4)], (0, 4), [(0, 2), (2, 3), (3, 4)]),
    ([candidate(0, 2), candidate(2, 4), candidate(2, 7)], (0, 4), [(0, 2), (2, 7)]),  # beyond the end, as far as they follow
    ([candidate(0, 2), candidate(2, 4), candidate(5, 7)], (0, 4), [(0, 2), (2, 4)]),
    ([candidate(0, 3), candidate(3, 4)], (1, 4), [(0, 3), (3, 4)]),
    ([candidate(0, 2), candidate(1, 3), candidate(2, 4)], (0, 4), [(0, 2), (2, 4)]),  # what is put across leads nowhere
    ([], (4, 4), []),
])  # fmt: skip
def test_the_fewest_that_are_there_and_follow_on_each_other_are_taken(
    candidates: Any, bounds: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    log_start, end = bounds
    assert chosen(*candidates, log_start=log_start, end=end) == expected
    assert cover(candidates, log_start=log_start, end=end).complete


def test_a_beginning_that_nobody_tells_of_is_said_to_be_missing() -> None:
    found = cover([candidate(2, 4)], log_start=0, end=4)
    assert not found.complete
    assert [c.extent.base_offset for c in found.chosen] == [2]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_whatever_was_merged_and_deleted_every_offset_is_covered_while_one_copy_is_there(sizes: list[int], data: st.DataObject) -> None:
    starts = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
    small = [(starts[place], starts[place + 1]) for place in range(len(sizes))]
    cut = data.draw(st.integers(0, len(sizes)))
    merged = [(starts[0], starts[cut])] if cut else []
    keep_small = data.draw(st.booleans()) or not cut
    candidates = [candidate(base, end, present=keep_small or end > starts[cut]) for base, end in small]
    candidates += [candidate(base, end) for base, end in merged]
    found = cover(candidates, log_start=0, end=starts[-1])
    assert found.complete
    assert all(each.present for each in found.chosen)
    at = 0
    for each in found.chosen:
        assert each.extent.base_offset == at
        at = each.extent.next_offset
    assert at == starts[-1]
