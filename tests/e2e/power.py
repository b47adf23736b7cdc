"""A disk that loses at a power cut what was not synced. kill -9 cannot show that: the system keeps what a dead process wrote.

`watch` is for the process that writes: it sees every sync of a file or a folder, Python's and SQLite's, and keeps aside what
is durable from then on. `cut` is for whoever killed that process: it leaves what was synced, and of the rest what chance
lets survive, each file and each name by itself.
"""

import ctypes
import json
import os
import random
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Missing = Callable[[int], bool]
"""Says of the mode of what is to be synced that the sync is not there: a planted bug."""


def nothing_missing(_: int) -> bool:
    return False


class _Memory:
    """What is durable: the bytes of files and the names in folders, both by inode, for links share their file."""

    def __init__(self, folder: Path) -> None:
        self._files = folder / "files"
        self._folders = folder / "folders"
        self._fresh = folder / "fresh"
        self._one_at_a_time = threading.Lock()
        self._held: dict[int, int] = {}
        for each in (self._files, self._folders):
            each.mkdir(parents=True, exist_ok=True)

    def synced(self, handle: int) -> None:
        """Keep what an open file or folder holds now: whole, whenever this process dies."""
        with self._one_at_a_time:
            found = os.fstat(handle)
            if found.st_ino not in self._held:
                # Held, else the inode might be another file's soon; and closing it would drop SQLite's locks.
                self._held[found.st_ino] = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY)
            if stat.S_ISDIR(found.st_mode):
                self._keep(
                    self._folders / str(found.st_ino), json.dumps({entry.name: entry.inode() for entry in os.scandir(handle)}).encode()
                )
            else:
                self._keep(self._files / str(found.st_ino), os.pread(self._held[found.st_ino], found.st_size, 0))

    def let_go(self) -> None:
        """Free the handles that were kept."""
        for handle in self._held.values():
            os.close(handle)
        self._held.clear()

    def _keep(self, path: Path, content: bytes) -> None:
        self._fresh.write_bytes(content)
        self._fresh.replace(path)

    def names(self, inode: int) -> dict[str, int]:
        path = self._folders / str(inode)
        return json.loads(path.read_bytes()) if path.exists() else {}

    def content(self, inode: int) -> bytes:
        path = self._files / str(inode)
        return path.read_bytes() if path.exists() else b""


def watch(disk: Path, memory: Path, *, missing: Missing = nothing_missing) -> None:
    """See every sync below `disk` from now on, for the rest of this process's life."""
    durable = _Memory(memory)
    sync = os.fsync

    def on_disk(handle: int) -> bool:
        return Path(os.readlink(f"/proc/self/fd/{handle}")).is_relative_to(disk)

    def watched(fd: Any) -> None:
        number = fd if isinstance(fd, int) else fd.fileno()
        if on_disk(number) and missing(os.fstat(number).st_mode):
            return
        sync(number)
        if on_disk(number):
            durable.synced(number)

    os.fsync = watched
    _watch_sqlite(durable)


def cut(disk: Path, memory: Path, chance: random.Random, *, survives: float) -> None:
    """Have a power cut, after the process has died. What was not synced survives with this probability."""
    durable = _Memory(memory)
    rebuilt = disk.with_name(f"{disk.name}.rebuilt")
    rebuilt.mkdir()
    there = {path.stat().st_ino: path for path in disk.rglob("*")}
    contents: dict[int, bytes] = {}

    def content(inode: int) -> bytes:
        if inode not in contents:
            survived = inode in there and chance.random() < survives
            contents[inode] = there[inode].read_bytes() if survived else durable.content(inode)
        return contents[inode]

    def rebuild(source: Path | None, inode: int, target: Path) -> None:
        names = durable.names(inode)
        written = {} if source is None else {entry.name: entry.inode() for entry in os.scandir(source)}
        for name in sorted(names.keys() | written.keys()):
            found = (written if chance.random() < survives else names).get(name)
            if found is None:
                continue
            place = there.get(found)
            if (place is not None and place.is_dir()) or durable.names(found):
                (target / name).mkdir()
                rebuild(place, found, target / name)
            else:
                (target / name).write_bytes(content(found))

    rebuild(disk, disk.stat().st_ino, rebuilt)
    shutil.rmtree(disk)
    rebuilt.rename(disk)
    shutil.rmtree(memory)
    begin(disk, memory)


def begin(disk: Path, memory: Path) -> None:
    """Whatever is on the disk now is durable."""
    durable = _Memory(memory)
    for path in (disk, *disk.rglob("*")):
        handle = os.open(path, os.O_RDONLY)
        durable.synced(handle)
        os.close(handle)
    durable.let_go()


# ---- SQLite, whose system calls no Python code sees: a VFS of its own, which is the default one but for the syncs

_POINTER = ctypes.c_void_p
_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, _POINTER, ctypes.c_int, _POINTER)  # the path as it is: SQLite keeps it
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_int)
_OPEN_FOLDER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int))
_GET_CALL = ctypes.CFUNCTYPE(_POINTER, _POINTER, ctypes.c_char_p)
_SET_CALL = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_char_p, _POINTER)


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs`, version 3, as https://www.sqlite.org/c3ref/vfs.html has it."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("version", "file_size", "most_path")),
        ("next", _POINTER), ("name", ctypes.c_char_p), ("data", _POINTER), ("open", _POINTER),
        *((name, _POINTER) for name in ("delete", "access", "full_path", "dl_open", "dl_error", "dl_sym", "dl_close", "randomness")),
        *((name, _POINTER) for name in ("sleep", "time", "last_error", "time_64", "set_call", "get_call", "next_call")),
    ]  # fmt: skip


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`, version 3, as https://www.sqlite.org/c3ref/io_methods.html has it."""

    _fields_ = [
        ("version", ctypes.c_int), ("close", _POINTER), ("read", _POINTER), ("write", _POINTER), ("truncate", _POINTER), ("sync", _POINTER),
        *((f"other_{number}", _POINTER) for number in range(13)),
    ]  # fmt: skip


class _File(ctypes.Structure):
    """`sqlite3_file`."""

    _fields_ = [("methods", ctypes.POINTER(_Methods))]


_kept: list[object] = []
"""What C code points to."""


def _watch_sqlite(durable: _Memory) -> None:
    import _sqlite3

    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    default = library.sqlite3_vfs_find(None).contents
    assert default.version >= 3, sqlite3.sqlite_version
    vfs = _Vfs.from_buffer_copy(default)
    real_open, real_folder = _OPEN(default.open), _OPEN_FOLDER(_GET_CALL(default.get_call)(ctypes.addressof(default), b"openDirectory"))
    handles: dict[int, int] = {}
    methods: dict[int, _Methods] = {}

    def opened(_: int, path: int | None, file: int, flags: int, out_flags: int) -> int:
        code: int = real_open(ctypes.addressof(default), path, file, flags, out_flags)
        if code == 0 and path is not None:
            handles[file] = os.open(ctypes.string_at(path), os.O_RDONLY)  # kept, as closing it would drop the locks
            found = _File.from_address(file)
            address = ctypes.addressof(found.methods.contents)
            if address not in methods:
                methods[address] = _Methods.from_buffer_copy(found.methods.contents)
                real_sync = _SYNC(methods[address].sync)
                methods[address].sync = ctypes.cast(kept(_SYNC(lambda file, flags: synced(real_sync, file, flags))), _POINTER)
            found.methods = ctypes.pointer(methods[address])
        return code

    def synced(real_sync: Any, file: int, flags: int) -> int:
        code: int = real_sync(file, flags)
        if code == 0 and file in handles:
            durable.synced(handles[file])
        return code

    def folder_opened(path: bytes, handle: Any) -> int:
        """SQLite opens a folder for nothing else than to sync it."""
        code: int = real_folder(path, handle)
        if code == 0:
            durable.synced(handle[0])
        return code

    def kept(function: Any) -> Any:
        _kept.append(function)
        return function

    vfs.name = b"watched"
    vfs.open = ctypes.cast(kept(_OPEN(opened)), _POINTER)
    _kept.extend((vfs, methods, default))
    _SET_CALL(default.set_call)(ctypes.addressof(default), b"openDirectory", ctypes.cast(kept(_OPEN_FOLDER(folder_opened)), _POINTER))
    code = library.sqlite3_vfs_register(ctypes.byref(vfs), 1)
    assert code == 0, code
