"""One pack in the clone cache, as it lies on the disk: while it grows, and afterwards.

    0     head    4 KiB   magic, state, progress, the pack's own head, what it is built on
    4096  data            the pack behind its 12 bytes of head, or behind the pack that it is built on
          footer          counts, raw oids of the objects in data (sorted), roots; SHA-256 of head and footer

    growing    name.part    flock'd by whoever makes it; what is behind the head is data
    complete   name.pack    renamed when the footer is written

A pack that is built on another one (`Base`: a complete pack of the cache, or one of the repository) has only
the rest as data: it is the head, the base's entries, then data. So what one push changed costs a small file.

Nothing in a file is trusted: a file is opened only when its footer has the right digest and the whole pack
has its own right checksum at its end; `open_complete` computes that once a process for each file. A file is
never changed once it is complete, and unlinking it disturbs nobody who reads it.
"""

import contextlib
import fcntl
import hashlib
import os
import struct
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Final, Protocol

from gitsmart.errors import PackError
from gitsmart.pack.mapping import map_fd
from gitsmart.pack.objects import ObjectFormat
from gitsmart.pack.packfile import PackFile

__all__ = [
    "BASE_CACHED",
    "BASE_NONE",
    "BASE_PACK",
    "HEAD_BYTES",
    "PACK_HEAD_BYTES",
    "Base",
    "Body",
    "CacheFile",
    "Facts",
    "PackBody",
    "State",
]

HEAD_BYTES: Final = 4096
PACK_HEAD_BYTES: Final = 12
"""A pack's own head: "PACK", version, number of objects (gitformat-pack)."""

BASE_NONE, BASE_CACHED, BASE_PACK = 0, 1, 2

_MAGIC = b"gspack1\n"
# magic, state, raw_len, progress, data bytes, key, pack head, kind of base, id of base, bytes of base
_HEAD = struct.Struct(">8sIIQQ32s12sI32sQ")
_STATE_AT, _PROGRESS_AT, _STATIC_AT = 8, 16, 32
_FOOTER = struct.Struct(">QQ8Q")
_HASH_BYTES = 1 << 20
_TOUCHED_NS = 1_000_000_000
"""Times of use are noted to the second."""


class State:
    """What a file that grows says of itself."""

    SELECTING, SENDING, COMPLETE, GIVEN_UP = range(4)


class Body(Protocol):
    """Bytes of a pack that are there already."""

    size: int

    def view(self, start: int, n: int) -> memoryview:
        """Return 1 to `n` bytes from `start` on; mapped, where that is possible."""
        ...


class PackBody:
    """The entries of one of a repository's packs."""

    def __init__(self, pack: PackFile) -> None:
        self.pack = pack
        self.head = bytes(pack.data[:PACK_HEAD_BYTES])
        self.size = pack.end - PACK_HEAD_BYTES

    def view(self, start: int, n: int) -> memoryview:
        """See `Body.view`."""
        start += PACK_HEAD_BYTES
        return self.pack.data[start : min(start + n, self.pack.end)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A pack that others can be built on: exactly what its roots reach."""

    kind: int
    id: bytes
    """32 bytes: the key of a cached pack, or the checksum of one of the repository's, filled up with NULs."""
    body: Body
    count: int
    roots: frozenset[bytes]
    contains: Callable[[bytes], bool]
    """Whether a raw oid is in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a complete pack. `stats`: 8 numbers, see `writer.PackStats`."""

    count: int
    """Objects in the whole pack."""
    new: int
    """Objects in data."""
    names: Iterable[bytes]
    """Their raw oids, sorted and joined, in pieces; gone through once, while the file is completed."""
    roots: Collection[bytes]
    """Raw oids that reach all that is in the pack, and nothing else."""
    stats: tuple[int, ...]


class CacheFile:
    """An open file of the cache. Owns its descriptor; closed when nobody holds it any more."""

    def __init__(self, fd: int, path: str, fmt: ObjectFormat) -> None:
        self.fd = fd
        self.path = path
        self.format = fmt
        self.data_bytes = 0
        self.size = 0
        self.count = 0
        self.pack_head = b""
        self.base_kind = BASE_NONE
        self.base_id = b""
        self.base_bytes = 0
        self.roots: frozenset[bytes] = frozenset()
        self.stats: tuple[int, ...] = (0,) * 8
        self._oids = memoryview(b"")
        self._map: memoryview | None = None

    def __del__(self) -> None:
        os.close(self.fd)

    # -- making one

    @classmethod
    def create(cls, path: str, key: bytes, fmt: ObjectFormat) -> "CacheFile | None":
        """Make and lock the growing file at `path`; None when another process is at it.

        What a process left that died is removed.

        Raises:
            OSError: it can't be made.
        """
        for _ in range(100):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return None
                if not _is_at(fd, path):
                    continue  # another process has removed it, or completed it
                if os.fstat(fd).st_size:
                    os.unlink(path)  # only ever while it is locked: so nobody removes a new one by mistake
                    continue
                head = _HEAD.pack(_MAGIC, 0, fmt.raw_len, 0, 0, key, b"", 0, b"", 0)
                _write_all(fd, head.ljust(HEAD_BYTES, b"\0"))
                made, fd = cls(fd, path, fmt), -1
                return made
            finally:
                if fd >= 0:
                    os.close(fd)
        raise BlockingIOError("a cache file keeps changing")

    def note_progress(self, number: int) -> None:
        """Tell other processes how many objects were found."""
        with contextlib.suppress(OSError):
            os.pwrite(self.fd, struct.pack(">Q", number), _PROGRESS_AT)

    def begin(self, pack_head: bytes, base: Base | None) -> None:
        """Tell what the pack begins with: data follows. Raises: OSError."""
        self.pack_head = pack_head
        static = struct.pack(">12s", pack_head)
        if base is not None:
            self.base_kind, self.base_id, self.base_bytes = base.kind, base.id, base.body.size
        static += struct.pack(">I32sQ", self.base_kind, self.base_id, self.base_bytes)
        os.pwrite(self.fd, static, _STATIC_AT + 32)
        os.pwrite(self.fd, struct.pack(">I", State.SENDING), _STATE_AT)

    def append(self, data: bytes | memoryview) -> None:
        """Add to data. Raises: OSError (what was written of it counts for nothing)."""
        _write_all(self.fd, data)
        self.size += len(data)

    def complete(self, facts: Facts, path: str) -> None:
        """Write the footer, and rename to `path`. Raises: OSError."""
        os.pwrite(self.fd, struct.pack(">IIQQ", State.COMPLETE, self.format.raw_len, 0, self.size), _STATE_AT)
        roots = b"".join(sorted(facts.roots))
        raw_len = self.format.raw_len
        counts = _FOOTER.pack(facts.new, len(roots) // raw_len, *facts.stats)
        digest = hashlib.sha256(os.pread(self.fd, HEAD_BYTES, 0))
        written = 0
        for part in chain((counts,), facts.names, (roots,)):
            digest.update(part)
            _write_all(self.fd, part)
            written += len(part)
        assert written == len(counts) + facts.new * raw_len + len(roots)
        _write_all(self.fd, digest.digest())
        names_at = HEAD_BYTES + self.size + len(counts)
        mapped = map_fd(self.fd, names_at + facts.new * raw_len)
        os.rename(self.path, path)
        self.path = path
        self.roots = frozenset(facts.roots)
        self.stats = facts.stats
        self._map = mapped
        self._take_footer(mapped[names_at:], facts.count)
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def give_up(self) -> None:
        """Remove the file: it will not be completed."""
        with contextlib.suppress(OSError):
            os.pwrite(self.fd, struct.pack(">I", State.GIVEN_UP), _STATE_AT)
            if _is_at(self.fd, self.path):
                os.unlink(self.path)
        with contextlib.suppress(OSError):
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    # -- following one that another process makes

    @classmethod
    def follow(cls, path: str, fmt: ObjectFormat) -> "CacheFile":
        """Open a growing file. Raises: OSError (FileNotFoundError: it is complete, or was given up)."""
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path, fmt)

    def look(self) -> tuple[int, int]:
        """Return its state and how many objects were found; `size` is what there is of data.

        Raises:
            OSError: it can't be read.
            PackError: it is malformed.
        """
        end = os.fstat(self.fd).st_size  # before the state: while that is SENDING, all of it is data
        head = os.pread(self.fd, _HEAD.size, 0)
        if len(head) < _HEAD.size:
            return State.SELECTING, 0
        magic, state, raw_len, number, size, _, pack_head, kind, base_id, base_bytes = _HEAD.unpack(head)
        if magic != _MAGIC or raw_len != self.format.raw_len or state > State.GIVEN_UP:
            raise PackError("a file of the clone cache is malformed")
        if state in (State.SENDING, State.COMPLETE):
            self.pack_head, self.base_kind, self.base_id, self.base_bytes = (
                pack_head,
                kind,
                base_id,
                base_bytes,
            )
            self.size = max(self.size, end - HEAD_BYTES) if state == State.SENDING else size
            self.data_bytes = size
        return state, number

    def is_abandoned(self) -> bool:
        """Whether nobody makes it any more: its process has ended."""
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    # -- a complete one

    @classmethod
    def open_complete(cls, path: str, key: bytes, fmt: ObjectFormat) -> "CacheFile":
        """Open a complete file and check its footer; the pack itself is `check_pack`'s.

        Raises:
            OSError: FileNotFoundError when there is none.
            PackError: it is not what it should be.
        """
        file = cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path, fmt)
        end = os.fstat(file.fd).st_size
        head = os.pread(file.fd, HEAD_BYTES, 0)
        if len(head) < HEAD_BYTES:
            raise PackError("a file of the clone cache is cut short")
        magic, state, raw_len, _, size, named, pack_head, kind, base_id, base_bytes = _HEAD.unpack_from(head)
        if magic != _MAGIC or state != State.COMPLETE or raw_len != fmt.raw_len or named != key:
            raise PackError("a file of the clone cache is malformed")
        footer_at = HEAD_BYTES + size
        if end < footer_at + _FOOTER.size + 32:
            raise PackError("a file of the clone cache is cut short")
        mapped = map_fd(file.fd, end)
        oids, roots, *stats = _FOOTER.unpack_from(mapped, footer_at)
        oids_at = footer_at + _FOOTER.size
        if end != oids_at + (oids + roots) * raw_len + 32:
            raise PackError("a file of the clone cache has the wrong size")
        digest = hashlib.sha256(head)
        digest.update(mapped[footer_at:-32])
        if digest.digest() != mapped[-32:]:
            raise PackError("a file of the clone cache is damaged")
        file.size = file.data_bytes = size
        file.pack_head, file.base_kind, file.base_id, file.base_bytes = pack_head, kind, base_id, base_bytes
        roots_at = oids_at + oids * raw_len
        named_roots = bytes(mapped[roots_at:-32])
        file.roots = frozenset(named_roots[at : at + raw_len] for at in range(0, len(named_roots), raw_len))
        file.stats = tuple(stats)
        file._map = mapped
        file._take_footer(mapped[oids_at:roots_at], struct.unpack_from(">I", pack_head, 8)[0])
        return file

    def _take_footer(self, oids: memoryview, count: int) -> None:
        self._oids, self.count = oids, count
        self.data_bytes = self.size

    def identity(self) -> tuple[int, int, int, int]:
        """What tells this file from any other that may get its name: it is never changed in place."""
        stat = os.fstat(self.fd)
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

    def check_pack(self, base: Body | None) -> bool:
        """Compute the whole pack's checksum: whether it is the one at its end."""
        raw_len = self.format.raw_len
        digest = self.format.new_hash()
        digest.update(self.pack_head)
        for body, end in ((base, base.size if base else 0), (self, self.data_bytes - raw_len)):
            at = 0
            while body is not None and at < end:
                piece = body.view(at, min(_HASH_BYTES, end - at))
                digest.update(piece)
                at += len(piece)
        return self.data_bytes >= raw_len and digest.digest() == bytes(
            self.view(self.data_bytes - raw_len, raw_len)
        )

    def is_all_of(self, base: Body | None) -> bool:
        """Whether the pack is one of the repository's, just as it lies there."""
        return (
            isinstance(base, PackBody)
            and base.head == self.pack_head
            and self.view(0, self.size) == base.pack.checksum
        )

    def contains(self, raw_oid: bytes) -> bool:
        """Whether an object is in data."""
        raw_len, oids = self.format.raw_len, self._oids
        number = len(oids) // raw_len
        at = bisect_left(range(number), raw_oid, key=lambda i: bytes(oids[i * raw_len : (i + 1) * raw_len]))
        return at < number and oids[at * raw_len : (at + 1) * raw_len] == raw_oid

    def touch(self) -> None:
        """Note that it was used just now: by the time of access, for eviction."""
        with contextlib.suppress(OSError):
            stat = os.fstat(self.fd)
            now = time.time_ns()
            if stat.st_atime_ns < now - _TOUCHED_NS:
                os.utime(self.fd, ns=(now, stat.st_mtime_ns))

    # -- data

    def view(self, start: int, n: int) -> memoryview:
        """Return 1 to `n` bytes of data from `start` on, of what there is. Mapped once it is complete.

        Raises:
            OSError: it can't be read.
            PackError: it is shorter than it was.
        """
        stop = min(start + n, self.size)
        if self._map is None and self.data_bytes:
            self._map = map_fd(self.fd, HEAD_BYTES + self.data_bytes)
        if self._map is not None:
            return self._map[HEAD_BYTES + start : HEAD_BYTES + stop]
        data = os.pread(self.fd, stop - start, HEAD_BYTES + start)
        if not data:
            raise PackError("a file of the clone cache is cut short")
        return memoryview(data)


def _is_at(fd: int, path: str) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    stat = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (stat.st_dev, stat.st_ino)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
