"""The directory store on a file system that fails it."""

import os
import random
import shutil
from pathlib import Path

import pytest
from tidelog.clock import SystemClock
from tidelog.errors import StoreOutcomeUnknown
from tidelog.executors import InlineExecutor
from tidelog.objects.local import DirectoryStore, open_directory


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return open_directory(tmp_path / "root", clock=SystemClock(), chance=random.Random(1), executor=InlineExecutor())


async def test_a_lost_mount_does_not_pass_for_a_deletion(store: DirectoryStore, tmp_path: Path) -> None:
    await store.put_new("a/b", [b"x"])
    shutil.rmtree(tmp_path / "root")
    refused = await store.delete_many(["a/b"])
    assert "cannot be used" in refused["a/b"]


async def test_a_write_that_can_be_seen_but_was_not_synced_is_unknown(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.put_new("a/first", [b"x"])
    real = os.fsync
    synced = 0

    def failing(handle: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 1:  # the new file itself is synced, its name is not
            raise OSError(5, "Input/output error")
        real(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreOutcomeUnknown, match="write the same again"):
        await store.put_new("a/second", [b"y"])
    monkeypatch.setattr(os, "fsync", real)
    await store.put_new("a/second", [b"y"])
