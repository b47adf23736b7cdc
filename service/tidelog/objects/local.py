"""An object store in a directory: one file an object, whole and synced before anyone can see it.

A new object is written beside its place, synced, and linked to its name, which fails where the name is taken: so one
writer wins, also among processes, and nobody ever sees half an object. Folders are made as keys need them, and stay.
"""

import asyncio
import errno
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import Any, ParamSpec, TypeVar

from tidelog.clock import Clock
from tidelog.errors import InvalidRequest, ObjectExists, ObjectNotFound, StoreError, StoreOutcomeUnknown, StoreUnavailable, StoreUnusable
from tidelog.executors import Effects, Executor
from tidelog.objects.store import Bytes, ObjectInfo, check_key, check_range
from tidelog.randomness import Random, new_uuid

P = ParamSpec("P")
T = TypeVar("T")

_TEMPORARY = ".tmp-"
_ABANDONED_MS = 24 * 3600 * 1000
_PAGE = 1000
_MOST_PARTS = 512
"""Buffers in one write call; the system's limit is 1,024."""
_MOST_FOLDERS = 10_000
"""Folders remembered as durable (I10); forgotten ones are only synced once more."""
_COMPARED_AT_ONCE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PASSING = (errno.ENOMEM, errno.EAGAIN, errno.EBUSY)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_ANSWER = (errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.EINTR)
"""What a disk, or a file system on a network, says where it lost its own answer."""


class DirectoryStore:
    """Keeps objects below `root`. File work is done by `executor`, which `close` closes.

    One thing differs from a bucket: where `a/b` is an object, `a` cannot be one (InvalidRequest).
    """

    def __init__(self, root: Path, *, clock: Clock, chance: Random, executor: Executor) -> None:
        self._root = root
        self._clock = clock
        self._chance = chance
        self._executor = executor
        self._writes = Effects()
        self._synced: set[Path] = set()
        """Folders that this process knows to be durable."""

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write an object once, synced with its folders. See `ObjectStore.put_new`."""
        path = self._path(key)
        written, holds = (lambda temporary: _write(temporary, parts)), (lambda path, _: _holds(path, parts))
        await self._writes.run(self._run(key, self._put, key, path, self._temporary(path), written, holds))

    async def put_stream(self, key: str, parts: AsyncIterable[Bytes]) -> None:
        """Write an object once, part by part into a file that nobody sees until it is whole. See `ObjectStore.put_stream`."""
        path = self._path(key)
        temporary = self._temporary(path)
        try:
            await self._to_its_end(self._run(key, self._begin, key, temporary))
            async for part in parts:
                await self._to_its_end(self._run(key, self._append, key, temporary, part))
        except BaseException:
            await self._executor.run(_remove, temporary)
            raise
        await self._writes.run(self._run(key, self._put, key, path, temporary, _sync, _same))

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for file work that has begun even where the caller is cancelled: its file is about to be removed."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
            raise

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        """Return part of an object. See `ObjectStore.get_range`."""
        check_range(position, length)
        return await self._run(key, _read, self._path(key), position, length)

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object; a file keeps no checksum. See `ObjectStore.head`."""
        return await self._run(key, _info, key, self._path(key))

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate over objects in order, a page at a time; each folder is read once, when it is reached. See `ObjectStore.list`."""
        walk = self._walk("", prefix, start_after)
        while page := await self._run(prefix, _page, walk):
            for found in page:
                yield found

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects. See `ObjectStore.delete_many`.

        Folders are not synced: an object that comes back after a power cut is one that nothing refers to (I7), which the
        cleaner lists and deletes again, while a sync would cost every deletion a write to the disk.
        """
        return await self._run(f"{len(keys)} keys", self._delete, {key: self._path(key) for key in keys})

    async def close(self) -> None:
        """Wait for file work that has begun."""
        await self._writes.settled()
        await self._executor.close()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _temporary(self, path: Path) -> Path:
        return path.parent / f"{_TEMPORARY}{new_uuid(self._chance)}"

    async def _run(self, asked: str, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._executor.run(work, *args, **kwargs)
        except OSError as error:
            raise _explained(error, asked, self._root) from error

    def _put(self, key: str, path: Path, temporary: Path, write: Callable[[Path], None], holds: Callable[[Path, Path], bool]) -> None:
        """Have `write` fill a temporary file, and give it its name; where that is taken, `holds` says whether by the same bytes."""
        try:
            with self._writing(key):
                self._prepare(path.parent)
                write(temporary)
                taken = not _link(temporary, path)
            if taken:
                self._check_that_it_is_ours(key, path, temporary, holds)
        finally:
            _remove(temporary)
        try:
            if taken:
                _sync(path)  # whoever wrote it may have died before it was durable
            _sync(path.parent)
        except OSError as error:
            raise _unsynced(key, error) from error

    def _check_that_it_is_ours(self, key: str, path: Path, temporary: Path, holds: Callable[[Path, Path], bool]) -> None:
        try:
            same = holds(path, temporary)
        except IsADirectoryError as error:
            raise _in_the_way(key) from error
        except OSError as error:
            raise _unsynced(key, error) from error
        if not same:
            raise ObjectExists(f"object {key!r} was to be written, but it holds other bytes already; choose another key")

    def _begin(self, key: str, temporary: Path) -> None:
        with self._writing(key):
            self._prepare(temporary.parent)
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    def _append(self, key: str, temporary: Path, part: Bytes) -> None:
        with self._writing(key):
            handle = os.open(temporary, os.O_WRONLY | os.O_APPEND)
            try:
                _write_all(handle, [memoryview(part).cast("B")] if len(part) else [])
            finally:
                os.close(handle)

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        """Say what it means where a folder or a temporary file is not as this process made it."""
        try:
            yield
        except (FileExistsError, NotADirectoryError) as error:
            raise _in_the_way(key) from error
        except FileNotFoundError as error:
            if not self._root.is_dir():
                raise
            raise StoreUnavailable(
                f"object {key!r} was to be written, but its file was taken away meanwhile; it was not done: try again"
            ) from error

    def _prepare(self, folder: Path) -> None:
        """Make folders down to `folder`, each synced into its parent, whoever made it.

        `root` is never made: a lost mount must be noticed.
        """
        if folder.is_dir() and (folder == self._root or folder in self._synced):
            return
        if folder == self._root:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        self._prepare(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)
        if len(self._synced) >= _MOST_FOLDERS:
            self._synced.clear()
        self._synced.add(folder)

    def _delete(self, paths: dict[str, Path]) -> dict[str, str]:
        refused = {}
        for key, path in paths.items():
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue  # no such object, for a folder is none: it counts as deleted
            except OSError as error:
                refused[key] = str(_explained(error, key, self._root))
        if not self._root.is_dir():  # a lost mount must not pass for a deletion
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._root))
        return refused

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """Yield objects in the order of their keys' bytes: a folder sorts as its name with a slash."""
        try:
            with os.scandir(self._root / folder) as entries:
                found = sorted((folder + entry.name + ("/" if entry.is_dir() else ""), entry) for entry in entries)
        except FileNotFoundError:
            if not folder:
                raise
            return
        for name, entry in found:
            if entry.name.startswith(_TEMPORARY):
                self._remove_abandoned(entry)
            elif entry.is_dir():
                if (name.startswith(prefix) or prefix.startswith(name)) and (name > start_after or start_after.startswith(name)):
                    yield from self._walk(name, prefix, start_after)
            elif name.startswith(prefix) and name > start_after:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    yield _info(name, Path(entry.path))

    def _remove_abandoned(self, entry: "os.DirEntry[str]") -> None:
        """Remove what a process that died while writing left behind; a day is longer than any write takes."""
        with suppress(FileNotFoundError):
            if self._clock.wall_ms() - entry.stat().st_mtime_ns // 1_000_000 > _ABANDONED_MS:
                os.unlink(entry.path)


def open_directory(root: Path, *, clock: Clock, chance: Random, executor: Executor) -> DirectoryStore:
    """Return a store in `root`, made if need be. Raises StoreUnusable where it cannot be used."""
    try:
        missing = [folder for folder in (root, *root.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            _sync(folder.parent)  # I2: what is written below must not be lost with its folder
        if not root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise StoreUnusable(
            f"the directory {str(root)!r} was to hold the objects, but it cannot be used: {error.strerror};"
            " name a directory that this process may write to"
        ) from error
    return DirectoryStore(root, clock=clock, chance=chance, executor=executor)


def _write(path: Path, parts: Sequence[Bytes]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for first in range(0, len(parts), _MOST_PARTS):
            _write_all(handle, [memoryview(part).cast("B") for part in parts[first : first + _MOST_PARTS] if len(part)])
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(temporary: Path) -> None:
    with suppress(OSError):  # what stays behind is never listed, and removed once it counts as abandoned
        temporary.unlink()


def _write_all(handle: int, views: "list[memoryview]") -> None:
    done = 0
    while done < len(views):
        written = os.writev(handle, views[done:] if done else views)
        while done < len(views) and written >= len(views[done]):
            written -= len(views[done])
            done += 1
        if written:
            views[done] = views[done][written:]


def _link(temporary: Path, path: Path) -> bool:
    """Give a finished file its name; return False where the name is taken: the conditional PUT between processes (I3)."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise StoreUnusable(
                f"{str(path.parent)!r} lies on a file system without hard links ({error.strerror}), by which a key is written once;"
                " name a directory on another"
            ) from error
        if error.errno in _NO_ANSWER:  # I5
            raise StoreOutcomeUnknown(f"{str(path)!r} may be written, or not ({error.strerror}); write the same again") from error
        raise
    return True


def _holds(path: Path, parts: Sequence[Bytes]) -> bool:
    """Say whether the file holds exactly these bytes."""
    with path.open("rb") as file:
        for part in parts:
            view = memoryview(part).cast("B")
            for start in range(0, len(view), _COMPARED_AT_ONCE):
                some = view[start : start + _COMPARED_AT_ONCE]
                if file.read(len(some)) != some:
                    return False
        return not file.read(1)


def _same(path: Path, other: Path) -> bool:
    """Say whether two files hold the same bytes."""
    with path.open("rb") as one, other.open("rb") as two:
        while some := one.read(_COMPARED_AT_ONCE):
            if two.read(_COMPARED_AT_ONCE) != some:
                return False
        return not two.read(1)


def _read(path: Path, position: int, length: int) -> bytes:
    with path.open("rb") as file:
        wanted = max(0, min(length, os.fstat(file.fileno()).st_size - position))
        file.seek(position)
        content = file.read(wanted)
    if len(content) != wanted:
        raise OSError(errno.EIO, f"{wanted} bytes were promised, but {len(content)} came")
    return content


def _info(key: str, path: Path) -> ObjectInfo:
    stat = path.stat()
    if not S_ISREG(stat.st_mode):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return ObjectInfo(key, stat.st_size, stat.st_mtime_ns // 1_000_000)


def _page(walk: Iterator[ObjectInfo]) -> Sequence[ObjectInfo]:
    return list(islice(walk, _PAGE))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unsynced(key: str, error: OSError) -> StoreOutcomeUnknown:
    """I5: the object can be seen already, or could be a moment ago, and may be durable."""
    return StoreOutcomeUnknown(f"object {key!r} is written, but could not be synced ({error.strerror}); write the same again")


def _in_the_way(key: str) -> InvalidRequest:
    return InvalidRequest(
        f"object {key!r} was to be written, but a name in a directory cannot be both an object and a folder; choose another key"
    )


def _explained(error: OSError, asked: str, root: Path) -> StoreError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR) and root.is_dir():
        return ObjectNotFound(f"object {asked!r} was asked for, but there is none of that key in {str(root)!r}")
    if error.errno in _FULL:
        return StoreUnavailable(
            f"object {asked!r} was to be written, but the disk of {str(root)!r} is full ({error.strerror}); free some space"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StoreUnavailable(f"object {asked!r}: this process has too many files open; raise its limit (ulimit -n)")
    if error.errno in _PASSING:
        return StoreUnavailable(f"object {asked!r}: the directory {str(root)!r} is busy ({error.strerror}); it was not done: try again")
    if error.errno in _NO_ANSWER:
        return StoreUnavailable(f"object {asked!r}: the disk of {str(root)!r} failed ({error.strerror}); look at the disk")
    return StoreUnusable(
        f"object {asked!r}: the directory {str(root)!r} cannot be used ({error.strerror}); make it, and let this process write to it"
    )
