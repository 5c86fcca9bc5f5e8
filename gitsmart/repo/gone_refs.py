"""Which refs pushes have rewound or deleted a moment ago: for all processes that serve a repository.

    push: locks, compares -> note -> the ref moves        fetch: listing of refs -> read

    <git_dir>/info/gitsmart/gone     *record LF, appended; broken lines are none, empty ones too
    record  =  crc32(8 hex) SP milliseconds-since-1970 SP rules(16 hex) SP ("d" / "r") SP oid SP refname

A record is there before its ref moves, so that whoever doesn't find the ref any more finds the record. `d` is
a deletion, `r` any other update that may not lead to the old value. `rules` says by which hideRefs, in which
repository: what is noted counts only where these are the same still. Which records a client may profit by is
judged as refs are, by the caller.

It is a help to clients and no more: it isn't fsynced, and where it can't be written pushes go on without.
Writers take turns by flock; readers need no lock, since what is rewritten is renamed into place.
"""

import contextlib
import fcntl
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gitsmart.repo.refs import is_safe_ref
from gitsmart.repo.shown_tips import GRACE_S

__all__ = ["GoneRef", "GoneRefs"]

_AHEAD_S = 1.0  # what clocks that are set by small steps may be apart
_LIMIT_BYTES = 1 << 20  # some 9,000 refs; the oldest go first
_STEP_BYTES = 1 << 16  # each time that the file grows past a multiple of it, what is too old is dropped
_LOCK_WAIT_S = 0.1  # it is held for less than a millisecond, mostly
_DIGITS = frozenset(b"0123456789abcdef")


@dataclass(frozen=True, slots=True)
class GoneRef:
    """What a ref was, under the name by which it is stored."""

    name: bytes
    oid: bytes
    """Hex."""
    is_delete: bool


class GoneRefs:
    """The file of one repository. Thread-safe.

    Memory: what is in the file, at most 1 MiB of it, parsed.
    """

    def __init__(self, git_dir: Path, *, hex_len: int, clock: Callable[[], float] = time.time) -> None:
        """Touch nothing yet. `clock`: seconds since 1970, as all processes have it."""
        self._path = git_dir / "info" / "gitsmart" / "gone"
        self._hex_len = hex_len
        self._clock = clock
        # what the file was, by its stat and these rules; from when until when that holds; what was found
        self._known: tuple[object, float, float, tuple[GoneRef, ...]] | None = None

    # -- writing

    def note(self, rules: bytes, refs: Sequence[GoneRef]) -> None:
        """Write down what is about to go, of refs that are locked. Never raises for what the disk says.

        Args:
            rules: 16 hex digits; `read` wants the same.
        """
        if not refs:
            return
        now = self._clock()
        lines = [_format(now, rules, ref) for ref in refs]
        with contextlib.suppress(OSError):
            fd = self._open_locked()
            if fd is None:
                return
            try:
                self._append(fd, lines, now)
            finally:
                os.close(fd)

    def _open_locked(self) -> int | None:
        """Open the file, under its lock; None when somebody has it for long, or it is no file."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fd = os.open(self._path, flags, 0o666)
            except FileNotFoundError:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(self._path, flags, 0o666)
            is_ours = False
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return None
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # another one has rewritten it, perhaps, before the lock was ours
                    is_ours = os.path.samestat(os.fstat(fd), os.stat(self._path, follow_symlinks=False))
                if is_ours:
                    return fd
            finally:
                if not is_ours:
                    os.close(fd)
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.001)

    def _append(self, fd: int, lines: list[bytes], now: float) -> None:
        data = b"\n".join([b"", *lines, b""])  # the first LF ends what a killed process began
        found = os.fstat(fd)
        size = found.st_size
        if size and now - found.st_mtime > GRACE_S:
            os.ftruncate(fd, 0)
            size = 0
        if size // _STEP_BYTES != (size + len(data)) // _STEP_BYTES or size > _LIMIT_BYTES:
            self._rewrite(fd, lines, now)
        else:
            os.write(fd, data)

    def _rewrite(self, fd: int, lines: list[bytes], now: float) -> None:
        """Put a new file in its place: what isn't too old, and the new lines, the last of them at least."""
        kept = [line for line in _read(fd).split(b"\n") if _is_young(self._parse(line), now)]
        kept += lines
        room = _LIMIT_BYTES
        first = len(kept)
        while first and len(kept[first - 1]) < room:
            first -= 1
            room -= len(kept[first]) + 1
        temporary = self._path.with_name("gone.tmp")  # one name: only who has the lock writes it
        try:
            temporary.unlink(missing_ok=True)
            temporary.write_bytes(b"".join([line + b"\n" for line in kept[first:]]))
            temporary.rename(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    # -- reading

    def read(self, rules: bytes) -> tuple[GoneRef, ...]:
        """Return what went within the grace, the latest last: the same object while nothing changes.

        One stat when the file isn't there, or is as it was before.
        """
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return ()
        now = self._clock()
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, rules)
        known = self._known
        if known is None or known[0] != key or not known[1] <= now <= known[2]:
            known = self._known = (key, now, *self._load(rules, now))
        return known[3]

    def _load(self, rules: bytes, now: float) -> tuple[float, tuple[GoneRef, ...]]:
        """What is in the file, and until when that stays so."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return now, ()
        try:
            data = _read(fd)
        except OSError:
            return now, ()
        finally:
            os.close(fd)
        refs: list[GoneRef] = []
        until = now + GRACE_S
        for line in data.split(b"\n"):
            record = self._parse(line)
            if record is None or record[1] != rules or not _is_young(record, now):
                continue
            until = min(until, record[0] + GRACE_S)
            refs.append(record[2])
        return until, tuple(refs)

    def _parse(self, line: bytes) -> tuple[float, bytes, GoneRef] | None:
        """Time, rules and ref of a line; None for what is no record."""
        if len(line) < 9 or line[:8] != b"%08x" % zlib.crc32(line[9:]):
            return None
        fields = line[9:].split(b" ")
        if len(fields) != 5:
            return None
        when, rules, kind, oid, name = fields
        if not when.isdigit() or len(when) > 15 or kind not in (b"d", b"r"):
            return None
        if len(oid) != self._hex_len or not _DIGITS.issuperset(oid) or not is_safe_ref(name):
            return None
        return int(when) / 1000, rules, GoneRef(name, oid, kind == b"d")


def _format(now: float, rules: bytes, ref: GoneRef) -> bytes:
    kind = b"d" if ref.is_delete else b"r"
    text = b"%d %b %b %b %b" % (max(now, 0) * 1000, rules, kind, ref.oid, ref.name)
    return b"%08x %b" % (zlib.crc32(text), text)


def _is_young(record: tuple[float, bytes, GoneRef] | None, now: float) -> bool:
    return record is not None and -_AHEAD_S <= now - record[0] <= GRACE_S


def _read(fd: int) -> bytes:
    """Read the file; b"" when it is none, or larger than any of ours."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size > _LIMIT_BYTES + 2 * _STEP_BYTES:
        return b""
    return b"".join(_pieces(fd, found.st_size))


def _pieces(fd: int, size: int) -> Iterator[bytes]:
    at = 0
    while at < size and (piece := os.pread(fd, size - at, at)):
        at += len(piece)
        yield piece
