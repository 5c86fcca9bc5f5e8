"""Tar archives, byte for byte as `git archive` writes them: ustar, with pax headers where that is too small.

    archive  =  [ header "g" comment=<commit> ] *( [ header "x" path= linkpath= size= ] header content ) zeros
    header   =  512 octets; content is padded to 512, the whole to 10240, with at least 1024 octets of zeros

Everything belongs to root, and has one time: the commit's. POSIX pax; git: archive-tar.c. Memory: one header.
"""

from collections.abc import Callable

__all__ = ["TarWriter"]

# of a mode as in a tree
_TYPE, _DIRECTORY, _SYMLINK, _GITLINK = 0o170000, 0o040000, 0o120000, 0o160000
_RECORD = 512
_BLOCK = 20 * _RECORD
# 11 octal digits (git: archive-tar.c USTAR_MAX_SIZE, USTAR_MAX_MTIME)
_MAX_OCTAL = 0o77777777777


class TarWriter:
    """Writes one archive: `begin`, then for each entry `entry` and `content`, then `finish`.

    Args:
        write: called with pieces of any size.
        umask: taken off all modes but those of symlinks (git-config, tar.umask).
        mtime: of all entries, seconds since 1970.
    """

    def __init__(self, write: Callable[[bytes], None], *, umask: int, mtime: int) -> None:
        self._write = write
        self._umask = umask
        self._mtime = mtime
        self._size = 0

    def begin(self, commit: bytes | None) -> None:
        """Write the global header: which commit (hex) this is, if it is one."""
        records = _pax(b"comment", commit) if commit else b""
        if self._mtime > _MAX_OCTAL:
            records += _pax(b"mtime", b"%d" % self._mtime)
            self._mtime = _MAX_OCTAL
        if records:
            self._put(self._header(b"pax_global_header", 0o100666, len(records), b"g"))
            self._put(records)
            self._pad()

    def entry(self, path: bytes, mode: int, oid: bytes, size: int, link: bytes = b"") -> None:
        """Write an entry's header; the `size` bytes of a regular file come next, by `content`.

        Args:
            path: with a slash at its end for a directory or a gitlink.
            mode: as in a tree.
            oid: hex; names what does not fit into a header.
            link: a symlink's target.
        """
        kind, prefix, extended = b"0", b"", b""
        name = path
        if mode & _TYPE in (_DIRECTORY, _GITLINK):
            kind, size = b"5", 0
            mode = (mode | 0o777) & ~self._umask
        elif mode & _TYPE == _SYMLINK:
            kind, size = b"2", 0
            mode |= 0o777
        else:
            mode = (mode | (0o777 if mode & 0o100 else 0o666)) & ~self._umask
        if len(path) > 100:
            cut = _prefix_length(path)
            if cut > 0 and len(path) - cut - 1 <= 100:
                prefix, name = path[:cut], path[cut + 1 :]
            else:
                name = oid + b".data"
                extended += _pax(b"path", path)
        if len(link) > 100:
            extended += _pax(b"linkpath", link)
            link = b"see %b.paxheader" % oid
        if size > _MAX_OCTAL:
            extended += _pax(b"size", b"%d" % size)
            size = 0
        if extended:
            self._put(self._header(oid + b".paxheader", 0o100666, len(extended), b"x"))
            self._put(extended)
            self._pad()
        self._put(self._header(name, mode, size, kind, link, prefix))

    def content(self, data: bytes) -> None:
        """Write a piece of a regular file; `end_content` after the last."""
        self._put(data)

    def end_content(self) -> None:
        """Pad what was written by `content`."""
        self._pad()

    def finish(self) -> None:
        """Write the archive's end (git: archive-tar.c write_trailer())."""
        tail = _BLOCK - self._size % _BLOCK
        self._put(bytes(tail if tail >= 2 * _RECORD else tail + _BLOCK))

    def _put(self, data: bytes) -> None:
        if data:
            self._size += len(data)
            self._write(data)

    def _pad(self) -> None:
        self._put(bytes(-self._size % _RECORD))

    def _header(
        self, name: bytes, mode: int, size: int, kind: bytes, link: bytes = b"", prefix: bytes = b""
    ) -> bytes:
        header = bytearray(
            b"%b%07o\0%07o\0%07o\0%011o\0%011o\0        %b%bustar\00000%b%b%07o\0%07o\0%b"
            % (
                name.ljust(100, b"\0"),
                mode & 0o7777,
                0,
                0,
                size,
                self._mtime,
                kind,
                link.ljust(100, b"\0"),
                b"root".ljust(32, b"\0"),
                b"root".ljust(32, b"\0"),
                0,
                0,
                prefix.ljust(155, b"\0"),
            )
        ).ljust(_RECORD, b"\0")
        header[148:156] = b"%07o\0" % sum(header)
        return bytes(header)


def _prefix_length(path: bytes) -> int:
    """Return how much of `path` goes into the prefix field (git: archive-tar.c get_path_prefix())."""
    at = len(path)
    if at > 1 and path.endswith(b"/"):
        at -= 1
    return max(path.rfind(b"/", 0, min(at, 155)), 0)


def _pax(keyword: bytes, value: bytes) -> bytes:
    """Return a pax record: its own length counts.

    >>> _pax(b"path", b"x" * 90)[:8]
    b'99 path='
    """
    rest = len(keyword) + len(value) + 3
    size = rest + 1
    while size != rest + len(b"%d" % size):
        size = rest + len(b"%d" % size)
    return b"%d %b=%b\n" % (size, keyword, value)
