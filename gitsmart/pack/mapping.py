"""Files as memory; and which of them need no second look.

    map_file(path) -> memory                        map_checked(path, check) -> memory, checked once

A file beside a pack (bitmap, commit-graph, order) is checked as a whole before it is used. That takes some
milliseconds, more than a small fetch does. So it is noted, in memory which all processes share that were
forked after this module was imported, which file was found fine: by device, inode, size and times, as git
tells its index files apart. Such files are replaced, never changed: one that changed has other times.
"""

import ctypes
import hashlib
import mmap
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["map_checked", "map_fd", "map_file"]

# Smaller files are read instead of mapped: a mapping costs a page at least, and a system call at each end.
_READ_BELOW_BYTES = 16 * 1024

# Not mmap.mmap, which in Python 3.11 keeps a duplicate of its descriptor
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.restype = ctypes.c_int
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value

# A row of 16-byte digests; where a digest goes is told by its first bytes, and a newer one takes its place.
_ROWS: Final = 4096
_checked = mmap.mmap(-1, 16 * _ROWS)
# A file that changed this shortly ago may change again without its times telling (store.py says the same of
# directories).
_RACY_NS, _COARSE_NS = 20_000_000, 2_020_000_000


def map_file(path: str | Path) -> memoryview:
    """Return the whole of a file as read-only memory that goes when the last view of it goes.

    The file must not be truncated while it is mapped (reading then kills the process by SIGBUS): git never
    does that to packs and indexes, it replaces or deletes them.

    Raises:
        OSError: as from opening it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return map_fd(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def map_fd(fd: int, size: int) -> memoryview:
    """Return the first `size` bytes of an open file, as `map_file` does; `fd` isn't needed any more.

    Raises:
        OSError: it can't be read.
    """
    if size < _READ_BELOW_BYTES:
        return memoryview(os.pread(fd, size, 0))
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0)
    if address is None or address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    memory = (ctypes.c_ubyte * size).from_address(address)
    # At exit the mapping is left to the kernel: another thread may still be reading it.
    weakref.finalize(memory, _libc.munmap, address, size).atexit = False
    return memoryview(memory).cast("B").toreadonly()


def map_checked(path: str | Path, check: Callable[[memoryview], bool], what: bytes) -> memoryview | None:
    """Map a file that `check` finds fine, now or before, here or in a process that was forked with this one.

    Args:
        what: what it is checked for, and against.

    Returns None when it is not fine.

    Raises:
        OSError: as from opening it; and what `check` raises.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stat = os.fstat(fd)
        data = map_fd(fd, stat.st_size)
    finally:
        os.close(fd)
    identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    mark = hashlib.blake2b(what + repr(identity).encode(), digest_size=16).digest()
    at = 16 * (int.from_bytes(mark[:4], "little") % _ROWS)
    # Another process may write here at this moment. Then the two halves don't match, and it is checked again.
    if _checked[at : at + 16] == mark:
        return data
    racy_ns = _RACY_NS if stat.st_ctime_ns % 1_000_000_000 else _COARSE_NS
    is_racy = time.time_ns() - stat.st_ctime_ns < racy_ns
    if not check(data):
        return None
    if not is_racy:
        _checked[at : at + 16] = mark
    return data
