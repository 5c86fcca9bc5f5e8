r"""Updating refs in files: all locks, all compares, then the writes.

    lock      refs/x.lock for every ref, made exclusively, as git does; waited for, then given up
    compare   under the lock: the current value is the expected old one, the new tip is there, no D/F conflict
    prepare   every new value is in a file of its own, fsynced; packed-refs without the deleted refs likewise
    commit    reflogs, then renames; deletes: packed-refs once for all, durably, then loose files, lest a
              power failure bring back the value that they hid; directories fsynced
    unlock    only now, so whatever failed before could be undone with nobody in between

Atomic: any failure, of the disk too, puts back under the locks what was done already, byte for byte. A crash
between two renames leaves some refs new and others old, as with git's files backend; each of them is whole.
"""

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gitsmart.errors import RepositoryUnusable
from gitsmart.repo.files_refs import FilesRefStore, PackedRefs
from gitsmart.repo.ref_transaction import (
    FAILED_DELETE,
    MISSING_OBJECTS,
    NAME_CONFLICT,
    REFLOG_MESSAGE,
    FailedUpdate,
    RefItem,
    RefTransaction,
    RefUpdate,
    TransactionTerms,
    hook_lines,
    parents,
    timeout_of,
)
from gitsmart.repo.refs import RefState

__all__ = ["FilesTransaction"]

# git's default for packed-refs, ten times its 100 ms for other refs. A lock is held for a few milliseconds
REF_TIMEOUT_MS = 1_000
PACKED_TIMEOUT_MS = 1_000
_VANISHED_LIMIT = 100  # times that a directory may go between making it and using it


@dataclass(slots=True, eq=False)
class _Item(RefItem):
    locks: list[bytes] = field(default_factory=list)
    is_tried: bool = False  # directories may have been made for it
    is_loose: bool = False
    staged: bytes = b""  # the file with the new value; b"" when there is nothing to write
    undo: list[Callable[[], None]] = field(default_factory=list)


class FilesTransaction(RefTransaction[_Item, FilesRefStore]):
    """A set of updates of refs in files, to be run once by one thread."""

    def __init__(self, refs: FilesRefStore, terms: TransactionTerms) -> None:
        super().__init__(refs, terms)
        self._git_dir = refs.git_dir
        self._staging = os.fsencode(terms.owned.path)
        self._staged = 0
        self._ident = terms.identity.line()
        self._ref_timeout_ms = REF_TIMEOUT_MS
        self._packed_timeout_ms = PACKED_TIMEOUT_MS

    def _make_item(self, update: RefUpdate) -> _Item:
        return _Item(update, update.name)

    def _read_settings(self) -> None:
        super()._read_settings()
        self._ref_timeout_ms = timeout_of(self._config.get_int("core.filesRefLockTimeout", REF_TIMEOUT_MS))
        self._packed_timeout_ms = timeout_of(
            self._config.get_int("core.packedRefsTimeout", PACKED_TIMEOUT_MS)
        )

    # One batch: locked, compared and written together

    def _run_batch(self, items: list[_Item], *, atomic: bool) -> None:
        if not items:
            return
        packed_lock = self._git_dir + b"/packed-refs.lock"
        has_packed_lock = False
        try:
            self._refuse_nested(items)
            # In one order for everybody, so that two pushes never wait for each other
            if atomic and any(item.result is not None for item in items):
                return
            for item in sorted(items, key=lambda item: item.name):
                self._attempt(item, self._prepare)
                if atomic and item.result is not None:
                    return
            live = [item for item in items if item.result is None]
            if not live or (atomic and len(live) < len(items)):
                return
            packed_staged = b""
            if any(item.is_delete for item in live):
                try:
                    self._lock_file(packed_lock, self._packed_timeout_ms)
                    has_packed_lock = True
                    packed_staged = self._stage_packed(live)
                except (FailedUpdate, OSError, RepositoryUnusable):
                    for item in live:
                        if item.is_delete:
                            item.result = FAILED_DELETE
                    if atomic:
                        return
            live = [item for item in live if item.result is None]
            if not live or not self._is_let(live):
                return
            self._note_gone(live)
            self._commit(live, packed_staged, atomic=atomic)
            if self._hook is not None and all(item.result is None for item in live):
                self._hook("committed", hook_lines(live))
        finally:
            if has_packed_lock:
                self._owned.release(packed_lock)
            for item in items:
                for lock in item.locks:
                    self._owned.release(lock)
            for item in items:
                if item.is_tried:
                    for name in (*item.via, item.name):
                        self._remove_empty_parents(b"refs", name)
                    if item.result is not None or item.is_delete:
                        self._remove_empty_parents(b"logs/refs", item.name)

    def _prepare(self, item: _Item) -> None:
        """Lock one ref, compare it, and write its new value aside."""
        item.is_tried = True
        for name in (*item.via, item.name):
            lock = self._refs.path(name) + b".lock"
            self._lock_file(lock, self._ref_timeout_ms)
            item.locks.append(lock)
        for name, target in pairwise((*item.via, item.name)):
            raw = self._refs.read(name)
            if raw.state is not RefState.SYMREF or raw.value != target:
                raise FailedUpdate(item.failure)  # it was pointed elsewhere before it was locked
        raw = self._refs.read(item.name)
        if raw.state in (RefState.SYMREF, RefState.BROKEN):
            raise FailedUpdate(item.failure)
        item.is_loose = raw.is_loose
        item.current = raw.value if raw.state is RefState.OID else None
        self._compare(item)
        if item.is_delete:
            return
        if not self._has_object(item.update.new):
            raise FailedUpdate(MISSING_OBJECTS)
        path = self._refs.path(item.name)
        if not raw.is_loose and os.path.isdir(path) and not _remove_empty_tree(path):
            raise FailedUpdate(NAME_CONFLICT)
        if item.current is None:
            self._refuse_conflict(item.name, self._refs.packed())
        if item.current != item.update.new:
            item.staged = self._stage(item.update.new + b"\n")

    @staticmethod
    def _refuse_conflict(name: bytes, packed: PackedRefs) -> None:
        """git: refs.c refs_verify_refname_available(). Loose conflicts show in the file system."""
        if any(parent in packed.oids for parent in parents(name)):
            raise FailedUpdate(NAME_CONFLICT)
        if next(packed.below(name + b"/"), None) is not None:
            raise FailedUpdate(NAME_CONFLICT)

    def _lock_file(self, lock: bytes, timeout_ms: int) -> None:
        """Make a lock file, or wait until whoever has it lets go."""
        deadline = time.monotonic() + timeout_ms / 1000
        delay = 0.001
        vanished = 0
        while True:
            try:
                _make_directories(os.path.dirname(lock))
            except NotADirectoryError:
                raise FailedUpdate(NAME_CONFLICT) from None  # a ref is where a directory should be
            try:
                self._owned.claim(lock)
                return
            except FileExistsError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - only spreads out those who wait
                delay = min(delay * 2, 0.05)
            except FileNotFoundError:  # somebody removed the empty directory
                vanished += 1
                if vanished > _VANISHED_LIMIT:
                    raise
            except NotADirectoryError:
                raise FailedUpdate(NAME_CONFLICT) from None

    def _stage(self, data: bytes) -> bytes:
        path = self._staging_path()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        return path

    def _staging_path(self) -> bytes:
        self._staged += 1
        return b"%b/ref-%d-%x" % (self._staging, self._staged, id(self))

    def _stage_packed(self, items: Sequence[_Item]) -> bytes:
        """Write packed-refs anew without the deleted refs; b"" when none of them is packed."""
        packed = self._refs.packed()
        gone = {item.name for item in items if item.is_delete and item.name in packed.oids}
        return self._stage(packed.without(gone)) if gone else b""

    # The writes

    def _commit(self, items: Sequence[_Item], packed_staged: bytes, *, atomic: bool) -> None:
        steps: list[Callable[[], None]] = []  # to put packed-refs back
        changed: set[bytes] = set()

        def done(item: _Item) -> bool:
            return item.result is None

        def fail_all() -> None:
            for undo in reversed(steps):
                undo()
            for item in reversed(items):
                _undo(item)
                item.result = item.result or item.failure

        # New values first, so that whatever a deleted ref held stays referred to, if it does at all
        for item in items:
            self._attempt(item, self._log)
            if not item.is_delete and item.staged:
                self._attempt(item, self._write)
            if done(item):
                changed.add(os.path.dirname(self._refs.path(item.name)))
            else:
                _undo(item)
                if atomic:
                    return fail_all()
        planned = [item for item in items if item.is_delete]
        for item in planned:
            self._attempt(item, self._remove_log)
            if not done(item):
                _undo(item)
                if atomic:
                    return fail_all()
        deletes = [item for item in planned if done(item)]
        if packed_staged and deletes:
            try:
                if len(deletes) < len(planned):  # what can't be deleted after all stays in packed-refs
                    packed_staged = self._stage_packed(deletes)
                if packed_staged:
                    self._replace_packed(packed_staged, steps)
            except OSError:
                for undo in reversed(steps):
                    undo()
                steps.clear()
                for item in deletes:
                    _undo(item)
                    item.result = FAILED_DELETE
                if atomic:
                    return fail_all()
                deletes = []
        for item in deletes:
            self._attempt(item, self._remove_loose)
            if not done(item):
                # Its packed value is gone, so the loose one is all there is; the log comes back
                _undo(item)
                if atomic:
                    return fail_all()
        try:
            for folder in sorted(self._with_parents(changed), reverse=True):
                _fsync_directory(folder)
        except OSError:
            fail_all()
            return None
        return None

    def _write(self, item: _Item) -> None:
        path = self._refs.path(item.name)
        before = self._keep(path) if item.is_loose else b""
        try:
            os.rename(item.staged, path)
        except IsADirectoryError:  # made for the lock of a ref below it, and empty again by now
            if not _remove_empty_tree(path):
                raise
            os.rename(item.staged, path)
        item.undo.append(lambda: os.rename(before, path) if before else os.unlink(path))

    def _keep(self, path: bytes) -> bytes:
        """Give a file a second name in the staging directory: putting it back must not need space."""
        aside = self._staging_path()
        try:
            os.link(path, aside, follow_symlinks=False)
        except OSError:  # no hard links here
            return self._stage(_read_or_none(path) or b"")
        return aside

    def _remove_loose(self, item: _Item) -> None:
        if not item.is_loose:  # and under its lock nobody has made it so since
            return
        self._set_aside(item, self._refs.path(item.name))

    def _remove_log(self, item: _Item) -> None:
        self._set_aside(item, self._git_dir + b"/logs/" + item.name)

    def _set_aside(self, item: _Item, path: bytes) -> None:
        """Remove a file by moving it into the staging directory, from where it can come back."""
        aside = self._staging_path()
        try:
            if os.path.isdir(path):  # of refs below it
                return
            os.rename(path, aside)
        except (FileNotFoundError, NotADirectoryError):
            return
        item.undo.append(lambda: _rename_back(aside, path))

    def _replace_packed(self, staged: bytes, steps: list[Callable[[], None]]) -> None:
        path = self._git_dir + b"/packed-refs"
        before = self._stage(_read_or_none(path) or b"")
        os.chmod(staged, os.stat(path).st_mode & 0o7777)
        os.rename(staged, path)
        steps.append(lambda: os.rename(before, path))
        # Before a loose file goes: else a power failure could bring back the older value that it hid here
        _fsync_directory(self._git_dir)

    def _with_parents(self, folders: set[bytes]) -> set[bytes]:
        """The directories, and those above them up to `refs/`, that exist."""
        top = self._git_dir + b"/refs"
        found = set()
        for folder in folders:
            while len(folder) >= len(top) and folder not in found:
                if os.path.isdir(folder):
                    found.add(folder)
                folder = os.path.dirname(folder)
        return found

    def _remove_empty_parents(self, top: bytes, name: bytes) -> None:
        """Remove directories that are empty now, but for `refs/` and what is directly in it."""
        parts = name.split(b"/")[1:-1]
        prefix = self._git_dir + b"/" + top
        while len(parts) > 1:
            try:
                os.rmdir(b"/".join([prefix, *parts]))
            except OSError as error:
                # What a name is too long for was made down to there
                if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                    return
            parts.pop()

    # Reflogs

    def _log(self, item: _Item) -> None:
        """Append to every reflog that this update concerns."""
        if not item.is_delete and not item.staged:
            return
        if item.is_delete and item.current is None:
            return
        old = item.current or self._zero
        line = b"%b %b %b\t%b\n" % (old, item.update.new, self._ident, REFLOG_MESSAGE)
        for name in self._logged_names(item):
            self._append(item, name, line)

    def _append(self, item: _Item, name: bytes, line: bytes) -> None:
        path = self._git_dir + b"/logs/" + name
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        existed = os.path.isfile(path)
        if not existed and not self._creates_reflog(name):
            return
        for attempt in range(5):
            try:
                fd = os.open(path, flags | os.O_CREAT, 0o666)
                break
            except FileNotFoundError:
                _make_directories(os.path.dirname(path))
            except IsADirectoryError:
                if not _remove_empty_tree(path) or attempt == 4:
                    raise
        else:
            raise FailedUpdate(item.failure)
        try:
            size = os.fstat(fd).st_size
            item.undo.append(lambda: os.truncate(path, size) if existed else os.unlink(path))
            if os.write(fd, line) != len(line):
                raise FailedUpdate(item.failure)
        finally:
            os.close(fd)


def _undo(item: _Item) -> None:
    while item.undo:
        with contextlib.suppress(OSError):
            item.undo.pop()()


def _rename_back(aside: bytes, path: bytes) -> None:
    _make_directories(os.path.dirname(path))
    os.rename(aside, path)


def _make_directories(path: bytes) -> None:
    """Make a directory and those above it, while others remove empty ones.

    Raises:
        NotADirectoryError: a file is where one of them should be.
        FileNotFoundError: it was removed as often as it was made.
    """
    for _ in range(_VANISHED_LIMIT):
        try:
            os.makedirs(path, exist_ok=True)
            return
        except FileNotFoundError:
            pass  # one above it went between two steps of ours
        except FileExistsError:
            # Something is there and is no directory; or it was one, and is gone by now: `git pack-refs` and
            # other pushes remove directories that they leave empty. Only a look at what is there now tells.
            above = path
            while above and not os.path.lexists(above):
                above = os.path.dirname(above)
            if not os.path.isdir(above):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _read_or_none(path: bytes) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _remove_empty_tree(path: bytes) -> bool:
    """Remove a directory that holds nothing but empty directories; False when a file is in it."""
    for base, folders, files in os.walk(path, topdown=False):
        del folders
        if files:
            return False
        try:
            os.rmdir(base)
        except FileNotFoundError:
            pass
        except OSError:
            return False
    return not os.path.isdir(path)


def _fsync_directory(path: bytes) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # emptied and removed meanwhile: nothing of ours is in it
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
