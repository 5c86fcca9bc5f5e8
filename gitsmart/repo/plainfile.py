"""The files of a repository that dumb HTTP serves as they are, and nothing else of it.

    kind                name                  file
    alternates                                objects/info/alternates
    http-alternates                           objects/info/http-alternates
    loose               hex oid               objects/<2 digits>/<38 or 62 digits>
    pack, idx           hex checksum          objects/pack/pack-<checksum>.pack, .idx

git: http-backend.c services[]. A name is hex digits of the repository's format, so no text of a peer's
becomes more of a path than that. Only regular files are opened.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from gitsmart.errors import RepositoryNotFound, RepositoryUnusable
from gitsmart.pack.objects import ObjectFormat

__all__ = ["FileKind", "PlainFile", "list_packs", "open_plain_file"]

FileKind = Literal["alternates", "http-alternates", "loose", "pack", "idx"]

_BLOCK: Final = 65536
_HEX: Final = re.compile(r"[0-9a-f]+")
_PACK_NAME: Final = re.compile(r"pack-([0-9a-f]{40}|[0-9a-f]{64})\.pack")


class PlainFile:
    """One open file: `size` in bytes, `mtime` in whole seconds. Close it."""

    def __init__(self, fd: int) -> None:
        """Take over `fd`."""
        self._fd = fd
        found = os.fstat(fd)
        self.size = found.st_size
        self.mtime = int(found.st_mtime)

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Give the bytes from `start` to before `end`, in pieces of at most 64 KiB.

        Raises:
            RepositoryUnusable: the file became shorter meanwhile; git never does that.
        """
        while start < end:
            piece = os.pread(self._fd, min(_BLOCK, end - start), start)
            if not piece:
                raise RepositoryUnusable("a file of the repository became shorter while it was sent")
            start += len(piece)
            yield piece

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> "PlainFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_plain_file(git_dir: Path, fmt: ObjectFormat, kind: FileKind, name: str) -> PlainFile:
    """Open one of the module's files.

    Raises:
        RepositoryNotFound: there is none, or `name` is not what the kind takes.
        OSError: the disk says no.
    """
    objects = git_dir / "objects"
    if kind in ("alternates", "http-alternates"):
        path = objects / "info" / kind
    elif len(name) != fmt.hex_len or not _HEX.fullmatch(name):
        raise RepositoryNotFound("no such file")
    elif kind == "loose":
        path = objects / name[:2] / name[2:]
    else:
        path = objects / "pack" / f"pack-{name}.{kind}"
    try:
        # Opening a FIFO would wait for its writer
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise RepositoryNotFound("no such file") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RepositoryNotFound("no such file")
    return PlainFile(fd)


def list_packs(git_dir: Path, fmt: ObjectFormat) -> list[str]:
    """Return the names of the packs in this objects directory itself, newest first (git: packfile.c
    sort_pack()).
    """
    found: list[tuple[float, str]] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(git_dir / "objects" / "pack") as entries:
        names = {entry.name for entry in entries}
        for name in names:
            match = _PACK_NAME.fullmatch(name)
            if match is None or len(match[1]) != fmt.hex_len or f"pack-{match[1]}.idx" not in names:
                continue
            with contextlib.suppress(FileNotFoundError):  # a repack took it meanwhile
                found.append((-os.stat(git_dir / "objects" / "pack" / name).st_mtime, name))
    return [name for _, name in sorted(found)]
