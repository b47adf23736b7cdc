"""Real text of this machine, in pieces under keys: the largest of a few places that most machines have."""

import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PART_LINES = 5_000
"""A longer file is several pieces."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A file, or a part of a long one; its lines are without their newlines."""

    key: bytes
    lines: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Text:
    """What goes in: its pieces, one after the other, are the text, each line with a newline."""

    places: Sequence[str]
    files: int
    pieces: Sequence[Piece]

    @property
    def lines(self) -> int:
        """How many lines there are."""
        return sum(len(piece.lines) for piece in self.pieces)

    @property
    def size(self) -> int:
        """How many bytes, newlines included."""
        return sum(len(line) + 1 for piece in self.pieces for line in piece.lines)


def places() -> dict[str, list[Path]]:
    """Return the files of each place, by the place's name."""
    found = {
        "package lists": [
            path for root in ("/var/lib/apt/lists", "/var/lib/dpkg", "/lib/apk/db") for path in _files(root, _is_package_list)
        ],
        "Python's standard library": list(_files(sysconfig.get_path("stdlib"), _is_python)),
        "installed Python packages": list(_files(sysconfig.get_path("purelib"), _is_python)),
        "C headers": list(_files("/usr/include", lambda name: name.endswith((".h", ".hpp")))),
    }
    return {name: paths for name, paths in found.items() if paths}


def gather(least_lines: int, found: dict[str, list[Path]] | None = None) -> Text:
    """Return so many lines or a few more, from the largest place, and where it has too few from the next ones, too.

    Fewer where the machine has fewer. What cannot be read is left out.
    """
    found = places() if found is None else found
    by_size = sorted(found, key=lambda name: sum(map(_size, found[name])), reverse=True)
    used, pieces, files, lines = list[str](), list[Piece](), 0, 0
    for name in by_size:
        for path in found[name]:
            if lines >= least_lines:
                break
            more = _pieces(path)
            if more and used[-1:] != [name]:
                used.append(name)
            pieces += more
            files += bool(more)
            lines += sum(len(piece.lines) for piece in more)
    return Text(used, files, pieces)


def _pieces(path: Path) -> list[Piece]:
    try:
        content = path.read_bytes()
    except OSError:  # it has gone, or is not for us
        return []
    lines = content.removesuffix(b"\n").split(b"\n")
    parts = [lines[at : at + PART_LINES] for at in range(0, len(lines) if content else 0, PART_LINES)]
    name = os.fsencode(path)
    return [Piece(name if len(parts) == 1 else b"%s#%d" % (name, number), part) for number, part in enumerate(parts)]


def _files(root: str, wanted: Callable[[str], bool]) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        if "site-packages" in folders and folder == root:
            folders.remove("site-packages")  # a place of its own
        yield from (Path(folder, name) for name in sorted(names) if wanted(name))


def _is_python(name: str) -> bool:
    return name.endswith(".py")


def _is_package_list(name: str) -> bool:
    return name.endswith("_Packages") or name in ("status", "available", "installed")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
