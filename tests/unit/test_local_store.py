"""What only a directory can do wrong: processes that race or die, full disks, lost mounts, folders in the way (I2, I3, I5)."""

import asyncio
import contextlib
import errno
import gc
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tidelog.clock import SystemClock
from tidelog.errors import (
    InvalidRequest,
    ObjectExists,
    ObjectNotFound,
    StoreOutcomeUnknown,
    StoreUnavailable,
    StoreUnusable,
)
from tidelog.executors import InlineExecutor, ThreadExecutor
from tidelog.objects import local
from tidelog.objects.local import DirectoryStore, open_directory
from tidelog.randomness import system_random

from tests.small_disk import small_disk

DAY_SECONDS = 24 * 3600

RACER = """
import asyncio, sys
from pathlib import Path
from tidelog.clock import SystemClock
from tidelog.errors import ObjectExists
from tidelog.executors import InlineExecutor
from tidelog.objects.local import open_directory
from tidelog.randomness import system_random

async def main():
    store = open_directory(Path(sys.argv[1]), clock=SystemClock(), chance=system_random(), executor=InlineExecutor())
    content = sys.argv[2].encode() * 100_000
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(20):
        try:
            await store.put_new(f"raced/{number}", [content])
            print("won", flush=True)
        except ObjectExists:
            print("lost", flush=True)

asyncio.run(main())
"""

WRITER = """
import asyncio, sys
from pathlib import Path
from tidelog.clock import SystemClock
from tidelog.executors import InlineExecutor
from tidelog.objects.local import open_directory
from tidelog.randomness import system_random

async def main():
    store = open_directory(Path(sys.argv[1]), clock=SystemClock(), chance=system_random(), executor=InlineExecutor())
    number = 0
    while True:
        key = f"{sys.argv[2]}/{number % 3}/{number}"
        await store.put_new(key, [bytes([number % 256]) * 1000] * 300)
        print(key, flush=True)
        number += 1

asyncio.run(main())
"""


def opened(root: Path) -> DirectoryStore:
    return open_directory(root, clock=SystemClock(), chance=system_random(), executor=InlineExecutor())


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DirectoryStore]:
    store = opened(tmp_path / "objects")
    yield store
    await store.close()


def files_in(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def started(source: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", source, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def ended(processes: "list[subprocess.Popen[str]]") -> Iterator[None]:
    """Leave no process behind, however the test ends."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


async def test_of_racing_processes_exactly_one_wins_each_key(tmp_path: Path) -> None:
    racers = [started(RACER, str(tmp_path), letter) for letter in "abcd"]
    with ended(racers):
        for racer in racers:
            assert racer.stdout
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin
            racer.stdin.write("go\n")
            racer.stdin.flush()
        results = [racer.communicate(timeout=60)[0].split() for racer in racers]
    store = opened(tmp_path)
    for number in range(20):
        winners = [letter for letter, result in zip("abcd", results, strict=True) if result[number] == "won"]
        assert len(winners) == 1
        assert await store.get_range(f"raced/{number}", 0, 200_000) == winners[0].encode() * 100_000


async def test_a_killed_writer_leaves_whole_objects_only_and_all_it_was_told_of(tmp_path: Path) -> None:
    chance = random.Random(5)
    told = []
    for round_number in range(6):
        writer = started(WRITER, str(tmp_path), f"round-{round_number}")
        with ended([writer]):
            assert writer.stdout
            told += [writer.stdout.readline().strip() for _ in range(chance.randrange(1, 12))]
            os.kill(writer.pid, signal.SIGKILL)
            told += writer.stdout.read().split()
    store = opened(tmp_path)
    listed = [found.key async for found in store.list()]
    assert set(told) <= set(listed)
    assert len(told) >= 6
    for key in listed:
        number = int(key.rpartition("/")[2])
        assert await store.get_range(key, 0, 1 << 20) == bytes([number % 256]) * 300_000


async def test_what_a_dead_writer_left_is_never_listed_and_removed_after_a_day(store: DirectoryStore, tmp_path: Path) -> None:
    root = tmp_path / "objects"
    await store.put_new("a/object", [b"x"])
    old, fresh = root / "a" / ".tmp-old", root / "a" / ".tmp-fresh"
    old.write_bytes(b"half")
    fresh.write_bytes(b"half")
    then = time.time() - DAY_SECONDS - 60
    os.utime(old, (then, then))
    assert [found.key async for found in store.list()] == ["a/object"]
    assert files_in(root) == ["a/.tmp-fresh", "a/object"]


async def test_a_writer_whose_file_is_taken_for_abandoned_fails_and_may_try_again(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = local._write

    def written_and_lost(path: Path, parts: list[bytes]) -> None:
        write(path, parts)
        path.unlink()

    with monkeypatch.context() as patched:
        patched.setattr(local, "_write", written_and_lost)
        with pytest.raises(StoreUnavailable, match="it was not done: try again"):
            await store.put_new("a/b", [b"x"])
    assert files_in(tmp_path) == []
    await store.put_new("a/b", [b"x"])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mib=1) as disk:
        yield disk


async def test_a_full_disk_is_told_in_a_sentence_and_nothing_is_left_behind(disk: Path) -> None:
    store = opened(disk / "objects")
    await store.put_new("small", [b"x" * 1000])
    with pytest.raises(StoreUnavailable, match=r"'big' was to be written, but the disk of .* is full .*free some space"):
        await store.put_new("big", [b"x" * (2 << 20)])
    assert files_in(disk) == ["objects/small"]
    await store.put_new("big", [b"x" * 1000])
    assert await store.get_range("big", 0, 2000) == b"x" * 1000


async def test_a_disk_that_became_read_only_needs_a_person(disk: Path) -> None:
    store = opened(disk / "objects")
    await store.put_new("k", [b"x"])
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StoreUnusable, match="Read-only file system"):
        await store.put_new("other", [b"x"])
    assert list(await store.delete_many(["k"])) == ["k"]
    assert await store.get_range("k", 0, 1) == b"x"


async def test_a_file_size_limit_is_told_like_a_full_disk(tmp_path: Path) -> None:
    """As the small disk, from any account: the kernel refuses the write (EFBIG) in a child whose files are limited."""
    source = (
        "import asyncio, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tidelog.clock import SystemClock\n"
        "from tidelog.errors import StoreUnavailable\n"
        "from tidelog.executors import InlineExecutor\n"
        "from tidelog.objects.local import open_directory\n"
        "from tidelog.randomness import system_random\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "store = open_directory(Path(sys.argv[1]), clock=SystemClock(), chance=system_random(), executor=InlineExecutor())\n"
        "try:\n"
        "    asyncio.run(store.put_new('big', [b'x' * 60_000, b'y' * 60_000]))\n"
        "except StoreUnavailable as error:\n"
        "    print(error)\n"
    )
    child = started(source, str(tmp_path))
    with ended([child]):
        answer, _ = child.communicate(timeout=60)
    assert "is full" in answer
    assert files_in(tmp_path) == []


async def test_a_write_that_became_visible_but_was_not_synced_is_unknown_not_failed(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put_new("a/first", [b"x"])

    def failing(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(local, "_sync", failing)
        with pytest.raises(StoreOutcomeUnknown, match="write the same again"):
            await store.put_new("a/second", [b"y"])
    await store.put_new("a/second", [b"y"])


async def test_an_object_is_synced_before_it_has_its_name_and_its_name_before_success_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed does not show this; a machine that loses power does."""
    root = tmp_path / "objects"
    store = opened(root)
    await store.put_new("a/before", [b"x"])
    synced: list[tuple[int, int, bool]] = []
    sync = os.fsync

    def noted(handle: int) -> None:
        found = os.fstat(handle)
        synced.append((found.st_ino, found.st_size if stat.S_ISREG(found.st_mode) else -1, (root / "a" / "k").exists()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    await store.put_new("a/k", [b"123", b"45"])
    assert synced == [((root / "a" / "k").stat().st_ino, 5, False), ((root / "a").stat().st_ino, -1, True)]


async def test_folders_that_another_writer_just_made_are_synced_before_success_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "objects"
    store = opened(root)
    (root / "a" / "b").mkdir(parents=True)  # as by a writer that died, or has not yet synced them
    synced: list[Path] = []
    sync = local._sync

    def noted(path: Path) -> None:
        synced.append(path)
        sync(path)

    monkeypatch.setattr(local, "_sync", noted)
    await store.put_new("a/b/c", [b"x"])
    assert synced == [root, root / "a", root / "a" / "b"]
    synced.clear()
    await store.put_new("a/b/d", [b"x"])
    assert synced == [root / "a" / "b"]


async def test_a_key_below_an_object_or_above_others_is_refused(store: DirectoryStore) -> None:
    await store.put_new("a", [b"x"])
    await store.put_new("folder/object", [b"x"])
    for key in ("a/b", "a/b/c", "folder"):
        with pytest.raises(InvalidRequest, match="both an object and a folder"):
            await store.put_new(key, [b"x" * 4096])
    assert [found.key async for found in store.list()] == ["a", "folder/object"]


async def test_a_folder_is_no_object(store: DirectoryStore) -> None:
    await store.put_new("folder/object", [b"x"])
    with pytest.raises(ObjectNotFound):
        await store.head("folder")
    with pytest.raises(ObjectNotFound):
        await store.get_range("folder", 0, 1)
    assert await store.delete_many(["folder"]) == {}
    assert [found.key async for found in store.list()] == ["folder/object"]


async def test_a_folder_that_was_removed_is_made_again(store: DirectoryStore, tmp_path: Path) -> None:
    await store.put_new("a/b/c", [b"x"])
    assert await store.delete_many(["a/b/c"]) == {}
    (tmp_path / "objects/a/b").rmdir()
    (tmp_path / "objects/a").rmdir()
    await store.put_new("a/b/c", [b"y"])
    assert await store.get_range("a/b/c", 0, 1) == b"y"


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.put_new("k", [b"x"]),
        lambda store: store.get_range("k", 0, 1),
        lambda store: store.head("k"),
        lambda store: store.delete_many(["k"]),
        lambda store: anext(store.list()),
    ],
    ids=["put", "get", "head", "delete", "list"],
)
async def test_a_lost_mount_is_noticed_by_every_verb(ask: Callable[[DirectoryStore], "asyncio.Future[object]"], tmp_path: Path) -> None:
    store = opened(tmp_path / "objects")
    (tmp_path / "objects").rmdir()
    with pytest.raises(StoreUnusable, match="cannot be used"):
        await ask(store)
    assert files_in(tmp_path) == []


async def test_a_file_in_place_of_the_directory_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreUnusable, match="name a directory that this process may write to"):
            opened(root)


async def test_a_directory_without_rights_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(StoreUnusable, match="may write to"):
            opened(tmp_path)
    finally:
        tmp_path.chmod(stat.S_IRWXU)


async def test_too_many_open_files_is_passing_weather(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(_path: Path, _parts: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(local, "_write", refusing)
    with pytest.raises(StoreUnavailable, match=r"too many files open; raise its limit"):
        await store.put_new("k", [b"x"])


async def test_a_cancelled_write_still_happens_though_the_pool_was_busy(tmp_path: Path) -> None:
    """I5: it had not begun when its caller was cancelled, but it was asked for."""
    store = open_directory(tmp_path, clock=SystemClock(), chance=system_random(), executor=ThreadExecutor("objects", threads=1))
    before = asyncio.ensure_future(store.put_new("before", [b"b" * 5_000_000]))
    task = asyncio.ensure_future(store.put_new("cancelled", [b"x" * 1000]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await before
    await store.close()
    assert (tmp_path / "cancelled").read_bytes() == b"x" * 1000


async def test_a_listing_reads_each_folder_once_however_many_pages_it_has(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PAGE", 10)
    for number in range(35):
        await store.put_new(f"a/{number:02}", [b""])
    scanned: list[str] = []
    scandir = os.scandir

    def noted(path: Path) -> object:
        scanned.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    assert len([found async for found in store.list()]) == 35
    assert len(scanned) == 2


async def test_objects_that_vanish_during_a_listing_are_left_out(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PAGE", 2)
    for key in ("a", "b", "c", "d", "e/f"):
        await store.put_new(key, [b""])
    listing = store.list()
    first = await anext(listing)
    await store.delete_many(["c", "d", "e/f"])
    assert [first.key, *[found.key async for found in listing]] == ["a", "b"]


async def test_a_name_taken_by_other_bytes_keeps_no_trace_of_the_loser(store: DirectoryStore, tmp_path: Path) -> None:
    await store.put_new("k", [b"first"])
    for other in (b"other", b"firs", b"firstly", b""):
        with pytest.raises(ObjectExists):
            await store.put_new("k", [other])
    assert files_in(tmp_path / "objects") == ["k"]


async def test_a_listing_that_fails_ends_with_an_error_not_with_fewer_objects(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_PAGE", 2)
    for key in ("a", "b", "c", "d"):
        await store.put_new(f"folder-{key}/k", [b""])
    listing = store.list()
    assert [(await anext(listing)).key for _ in range(2)] == ["folder-a/k", "folder-b/k"]

    def failing(_path: Path) -> object:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(StoreUnavailable, match="look at the disk"):
        await anext(listing)


async def test_a_name_whose_object_vanishes_before_it_is_compared_is_unknown_not_undone(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I5: what was there may have been an earlier attempt of this very write."""
    await store.put_new("a/b", [b"x"])
    link = local._link

    def taken_and_lost(temporary: Path, path: Path) -> bool:
        done = link(temporary, path)
        path.unlink()
        return done

    monkeypatch.setattr(local, "_link", taken_and_lost)
    with pytest.raises(StoreOutcomeUnknown):
        await store.put_new("a/b", [b"x"])


async def test_a_name_that_may_have_been_given_is_unknown_not_undone(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on a network may link, and lose the answer."""
    link = os.link

    def answerless(source: Path, target: Path) -> None:
        link(source, target)
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", answerless)
        with pytest.raises(StoreOutcomeUnknown, match="may be written, or not"):
            await store.put_new("a/b", [b"x"])
    await store.put_new("a/b", [b"x"])


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
async def test_a_file_system_without_hard_links_is_named(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Without them no key is written once: I3."""

    def unsupported(_source: Path, _target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(StoreUnusable, match="without hard links .*, by which a key is written once; name a directory on another"):
        await store.put_new("k", [b"x"])
    assert [found async for found in store.list()] == []


async def test_a_write_that_fails_after_its_caller_was_cancelled_is_nobodys_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

    def full(_path: Path, _parts: object) -> None:
        time.sleep(0.05)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local, "_write", full)
    store = open_directory(tmp_path, clock=SystemClock(), chance=system_random(), executor=ThreadExecutor("objects", threads=1))
    task = asyncio.ensure_future(store.put_new("k", [b"x"]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await store.close()
    del task
    gc.collect()
    assert complaints == []


async def test_writes_that_the_system_cuts_short_are_completed(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writev = os.writev
    parts = [bytes([n % 251]) * (n % 7) for n in range(1500)]

    def short(handle: int, views: list[memoryview]) -> int:
        return writev(handle, [view[: 1 + len(view) // 2] for view in views[:1]])

    monkeypatch.setattr(os, "writev", short)
    await store.put_new("k", parts)
    assert await store.get_range("k", 0, 1 << 20) == b"".join(parts)


async def test_folders_remembered_as_durable_are_bounded(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_MOST_FOLDERS", 3)
    for number in range(10):
        await store.put_new(f"{number}/k", [b""])
        assert len(store._synced) <= 3


def test_a_new_root_is_synced_into_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(local, "_sync", synced.append)
    opened(tmp_path / "new" / "objects")
    assert synced == [tmp_path, tmp_path / "new"]
    opened(tmp_path / "new" / "objects")
    assert synced == [tmp_path, tmp_path / "new"]
