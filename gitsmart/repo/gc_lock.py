"""Who may take objects away: one maintainer of a repository at a time, and not while a push counts on them.

    objects/pack   flock(2), exclusive: the maintainer of ours
    gc.pid         "PID HOST": git's own, made by way of gc.pid.lock: `git gc` and we exclude each other
    objects        flock(2): shared by pushes from their connectivity check until their refs are written;
                   exclusive for the moment in which objects are dropped

Directories are locked, not files: there is nothing to make, to own or to sweep. Where the file system has no
such locks, nothing is ever dropped. A gc.pid counts as git counts it (git: builtin/gc.c lock_repo_for_gc()):
not when it is older than 12 hours, nor when its process was on this host and is gone.
"""

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ObjectsGate", "locked_for_maintenance"]

_STALE_S = 12 * 3600
_POLL_S = 0.02
_PID = re.compile(rb"(\d{1,10}) (\S+)\s*\Z")


@contextlib.contextmanager
def locked_for_maintenance(git_dir: Path, staging: Path) -> Iterator[bool]:
    """Be the only maintainer; gives False when there is another. `staging`: a directory for a file of ours.

    Raises: OSError: the disk says no.
    """
    (git_dir / "objects" / "pack").mkdir(exist_ok=True)
    fd = os.open(git_dir / "objects" / "pack", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # no such locks here: gc.pid is all there is
        text = b"%d %b" % (os.getpid(), _host())
        if not _take_pid_file(git_dir, staging, text):
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):
                if (git_dir / "gc.pid").read_bytes() == text:
                    os.unlink(git_dir / "gc.pid")
    finally:
        os.close(fd)


def _take_pid_file(git_dir: Path, staging: Path, text: bytes) -> bool:
    lock, path = git_dir / "gc.pid.lock", git_dir / "gc.pid"
    staged = staging / "gc.pid"
    staged.write_bytes(text)
    try:
        for attempt in range(2):
            try:
                # Never without its content, so that one whose maker was killed can be told
                _make(staged, lock, text)
                break
            except FileExistsError:
                if attempt or _is_alive(lock):
                    return False
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(lock)
        if _is_alive(path):
            os.unlink(lock)
            return False
        os.rename(lock, path)
        return True
    finally:
        staged.unlink(missing_ok=True)


def _make(staged: Path, lock: Path, text: bytes) -> None:
    try:
        os.link(staged, lock)
    except FileExistsError:
        raise
    except OSError:  # no hard links here
        with open(lock, "xb") as file:
            file.write(text)


def _is_alive(path: Path) -> bool:
    """Whether such a file speaks of a process that may be at work. One that can't be read does."""
    try:
        with open(path, "rb") as file:
            made_s = os.fstat(file.fileno()).st_mtime
            found = _PID.match(file.read(400))
    except FileNotFoundError:
        return False
    except OSError:
        return True
    if found is None:
        # git reads on as if there were none; a lock may have been made a moment ago
        return path.name == "gc.pid.lock"
    if time.time() - made_s > _STALE_S:
        return False
    if found[2] != _host():
        return True
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _host() -> bytes:
    return os.fsencode(socket.gethostname() or "unknown")


class ObjectsGate:
    """A hold on what is in one objects directory. One thread at a time."""

    def __init__(self, objects_dir: Path) -> None:
        self._objects_dir = objects_dir
        self._fd = -1

    @property
    def is_held(self) -> bool:
        """Whether it is held, as far as the file system has locks."""
        return self._fd >= 0

    def share(self) -> None:
        """Keep objects from being dropped; waits while some are, which takes milliseconds.

        Raises: OSError: the directory can't be opened.
        """
        if self._fd < 0:
            self._fd = os.open(self._objects_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # no locks here: then whoever drops can't have one either
                fcntl.flock(self._fd, fcntl.LOCK_SH)

    def take(self, timeout_s: float) -> bool:
        """Be the only one to hold it; False when that can't be had in time."""
        try:
            fd = os.open(self._objects_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._fd = fd
                return True
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(_POLL_S)
                    continue
            except OSError:
                pass
            os.close(fd)
            return False

    def release(self) -> None:
        """Let go. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
