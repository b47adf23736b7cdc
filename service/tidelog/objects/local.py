"""An object store in a directory: one file an object, whole and synced before anyone can see it.

A new object is written beside its place, synced, and linked to its name, which fails where the name is taken: so one
writer wins, also among processes, and nobody ever sees half an object.
"""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import ParamSpec, TypeVar

from tidelog.clock import Clock
from tidelog.errors import ObjectExists, ObjectNotFound, StoreError, StoreOutcomeUnknown, StoreUnavailable, StoreUnusable
from tidelog.executors import Executor
from tidelog.objects.store import Bytes, ObjectInfo, check_key
from tidelog.randomness import Random, new_uuid

P = ParamSpec("P")
T = TypeVar("T")

_TEMPORARY = ".tmp-"
_ABANDONED_MS = 24 * 3600 * 1000
_PAGE = 1000
_MOST_PARTS = 512
"""Buffers in one write call; the system's limit is 1,024."""


class DirectoryStore:
    """Keeps objects below `root`. File work is done by `executor`."""

    def __init__(self, root: Path, *, clock: Clock, chance: Random, executor: Executor) -> None:
        self._root = root
        self._clock = clock
        self._chance = chance
        self._executor = executor
        self._writes: set[asyncio.Task[None]] = set()
        self._synced: set[Path] = set()
        """Folders that this process knows to be durable."""

    async def put_new(self, key: str, parts: Sequence[Bytes]) -> None:
        """Write an object once, synced with its folders. See `ObjectStore.put_new`."""
        task = asyncio.ensure_future(self._run(key, self._put, key, self._path(key), parts, new_uuid(self._chance)))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        await asyncio.shield(task)  # I5: a cancelled caller does not stop the write

    async def get_range(self, key: str, position: int, length: int) -> bytes:
        """Return part of an object. See `ObjectStore.get_range`."""
        return await self._run(key, _read, self._path(key), position, length)

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object; a file keeps no checksum. See `ObjectStore.head`."""
        return await self._run(key, self._head, key, self._path(key))

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate over objects in order, a page at a time. See `ObjectStore.list`."""
        while page := await self._run(prefix, self._page, prefix, start_after):
            for found in page:
                yield found
            if len(page) < _PAGE:
                return
            start_after = page[-1].key

    async def delete_many(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects. See `ObjectStore.delete_many`."""
        refused = {}
        for key in keys:
            try:
                await self._run(key, _delete, self._path(key), self._root)
            except StoreError as error:
                refused[key] = str(error)
        return refused

    async def close(self) -> None:
        """Wait for file work that has begun."""
        if self._writes:
            await asyncio.wait(self._writes)
        await self._executor.close()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    async def _run(self, asked: str, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._executor.run(work, *args, **kwargs)
        except OSError as error:
            raise _explained(error, asked, self._root) from error

    def _put(self, key: str, path: Path, parts: Sequence[Bytes], unique: str) -> None:
        self._prepare(path.parent)
        temporary = path.parent / f"{_TEMPORARY}{unique}"
        linked = False
        try:
            _write(temporary, parts)
            try:
                os.link(temporary, path)
            except FileExistsError:
                if path.is_dir() or not _same(path, temporary):
                    raise ObjectExists(f"object {key!r} was to be written, but it holds other bytes already; choose another key") from None
            linked = True
            _sync(path)  # also where an earlier attempt may have died before it was durable
            _sync(path.parent)
        except FileNotFoundError as error:
            raise StoreUnavailable(
                f"object {key!r} was to be written, but its file was taken away meanwhile; it was not done: try again"
            ) from error
        except OSError as error:
            if linked:  # I5: it can be seen already, and may be durable
                raise StoreOutcomeUnknown(
                    f"object {key!r} is written, but could not be synced ({error.strerror}); write the same again"
                ) from error
            raise
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()

    def _prepare(self, folder: Path) -> None:
        """Make folders down to `folder`, each synced into its parent, whoever made it.

        `root` is never made: a lost mount must be noticed.
        """
        if folder in self._synced and folder.is_dir():
            return
        if folder == self._root:
            if not folder.is_dir():
                raise StoreUnusable(f"the directory {str(self._root)!r} holds the objects, but it is gone; mount or make it again")
        else:
            self._prepare(folder.parent)
            try:
                folder.mkdir(exist_ok=True)
            except FileExistsError:
                raise StoreUnusable(
                    f"an object was to be written below {str(folder)!r}, but that is an object itself; choose another key"
                ) from None
            _sync(folder.parent)
        self._synced.add(folder)

    def _head(self, key: str, path: Path) -> ObjectInfo:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return ObjectInfo(key, stat.st_size, stat.st_mtime_ns // 1_000_000)

    def _page(self, prefix: str, start_after: str) -> Sequence[ObjectInfo]:
        found: list[ObjectInfo] = []
        for key, path in self._walk("", prefix, start_after):
            with suppress(FileNotFoundError):  # deleted meanwhile
                found.append(self._head(key, path))
            if len(found) == _PAGE:
                break
        return found

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[tuple[str, Path]]:
        """Yield keys in the order of their bytes: a folder sorts as its name with a slash."""
        try:
            entries = list(os.scandir(self._root / folder))
        except FileNotFoundError:
            if not folder:
                raise
            return
        for name, entry in sorted((folder + entry.name + ("/" if entry.is_dir() else ""), entry) for entry in entries):
            if entry.name.startswith(_TEMPORARY):
                self._remove_abandoned(entry)
            elif entry.is_dir():
                if (name.startswith(prefix) or prefix.startswith(name)) and (name > start_after or start_after.startswith(name)):
                    yield from self._walk(name, prefix, start_after)
            elif name.startswith(prefix) and name > start_after:
                yield name, Path(entry.path)

    def _remove_abandoned(self, entry: "os.DirEntry[str]") -> None:
        """Remove what a process that died while writing left behind; a day is longer than any write takes."""
        with suppress(FileNotFoundError):
            if self._clock.wall_ms() - entry.stat().st_mtime_ns // 1_000_000 > _ABANDONED_MS:
                os.unlink(entry.path)


def open_directory(root: Path, *, clock: Clock, chance: Random, executor: Executor) -> DirectoryStore:
    """Return a store in `root`, made if need be. Raises StoreUnusable where it cannot be used."""
    try:
        root.mkdir(parents=True, exist_ok=True)
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
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        while views:
            written = os.writev(handle, views[:_MOST_PARTS])
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path, position: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(position)
        return file.read(max(0, min(length, os.fstat(file.fileno()).st_size - position)))


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _delete(path: Path, root: Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):  # a folder is no object
        path.unlink()
    if not root.is_dir():  # a lost mount must not pass for a deletion
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))


def _explained(error: OSError, asked: str, root: Path) -> StoreError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR) and root.is_dir():
        return ObjectNotFound(f"object {asked!r} was asked for, but there is none of that key in {str(root)!r}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreUnavailable(
            f"object {asked!r} was to be written, but the disk of {str(root)!r} is full ({error.strerror}); free some space"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StoreUnavailable(f"object {asked!r}: this process has too many files open; raise its limit (ulimit -n)")
    if error.errno == errno.EIO:
        return StoreUnavailable(f"object {asked!r}: the disk of {str(root)!r} failed ({error.strerror}); look at the disk")
    return StoreUnusable(
        f"object {asked!r}: the directory {str(root)!r} cannot be used ({error.strerror}); make it, and let this process write to it"
    )
