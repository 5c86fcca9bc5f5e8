r"""Updating refs: all locks, all compares, then the writes.

    lock      refs/x.lock for every ref, made exclusively, as git does; waited for, then given up
    compare   under the lock: the current value is the expected old one, the new tip is there, no D/F conflict
    prepare   every new value is in a file of its own, fsynced; packed-refs without the deleted refs likewise
    commit    reflogs, then renames; deletes: packed-refs once for all, durably, then loose files, lest a
              power failure bring back the value that they hid; directories fsynced
    unlock    only now, so whatever failed before could be undone with nobody in between

The results are values: None, or the words that git receive-pack sends after "ng <ref> " (checked with git's
HEAD of August 2026, builtin/receive-pack.c and refs.c ref_transaction_error_msg(); git 2.39 says "failed to
update ref" for all of the first five):

    incorrect old value provided      the ref is not what the client took it for
    reference already exists          it was to be created and is there
    reference does not exist          it was to be changed and is not
    refname conflict                  refs/a and refs/a/b can't both be: loose, packed, or in the same push
    missing necessary objects         the new tip is not there (any more)
    failed to update ref              not locked in time, or the disk said no (of a held lock git's HEAD says
                                      "reference already exists": it isn't true, so 2.39's words)
    failed to delete                  the same for a delete
    broken symref, inconsistent aliased update     receive-pack.c check_aliased_update()
    atomic transaction failed         another ref of an atomic push failed; that one has its own reason

Deleting what is not there is done with when no old value was named (git: "deleting a non-existent ref" is a
warning). Where git would then delete whatever is there, unlooked at, a ref that exists and is sound is left
alone here: somebody has just made it.

A symref is followed: the ref it comes down to is updated, deleted too, and both have a line in their reflogs.
HEAD's reflog has one when HEAD points at the ref.

Not atomic: the deletes first, then the rest, each ref with a result of its own (git:
execute_commands_non_atomic()). Atomic: all refs or none. Any failure, of the disk too, puts back under the
locks what was done already, byte for byte. A crash between two renames leaves some refs new and others old,
as with git's files backend; each of them is whole.
"""

import contextlib
import errno
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from gitsmart.errors import RepositoryUnusable
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.repo.ownership import OwnedDirectory
from gitsmart.repo.refs import PackedRefs, RefState, RefStore, is_safe_ref

__all__ = ["FAILED_UPDATE", "RefTransaction", "RefUpdate", "ReflogIdentity"]

# git's default for packed-refs, ten times its 100 ms for other refs. A lock is held for a few milliseconds
REF_TIMEOUT_MS = 1_000
PACKED_TIMEOUT_MS = 1_000
_LONGEST_TIMEOUT_MS = 60_000  # for "wait for ever", which git writes as -1
_VANISHED_LIMIT = 100  # times that a directory may go between making it and using it

ALREADY_EXISTS: Final = "reference already exists"
DOES_NOT_EXIST: Final = "reference does not exist"
INCORRECT_OLD: Final = "incorrect old value provided"
NAME_CONFLICT: Final = "refname conflict"
MISSING_OBJECTS: Final = "missing necessary objects"
FAILED_UPDATE: Final = "failed to update ref"
FAILED_DELETE: Final = "failed to delete"
DUPLICATE: Final = "multiple updates for ref not allowed"
BROKEN_SYMREF: Final = "broken symref"
INCONSISTENT: Final = "inconsistent aliased update"
ATOMIC_FAILED: Final = "atomic transaction failed"
HOOK_ABORTED: Final = "ref updates aborted by hook"


@dataclass(frozen=True, slots=True)
class RefUpdate:
    """One ref update command: hex oids, all-zero for a create's old and a delete's new value."""

    name: bytes
    old: bytes
    new: bytes


@dataclass(frozen=True, slots=True)
class ReflogIdentity:
    """Who is written into reflogs."""

    name: str
    email: str

    def line(self, now_s: float | None = None) -> bytes:
        """`name <email> seconds zone`, without the characters that git leaves out of identities."""
        now = time.time() if now_s is None else now_s
        offset = time.localtime(now).tm_gmtoff // 60
        zone = f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02}{abs(offset) % 60:02}"
        text = f"{_clean(self.name)} <{_clean(self.email)}> {int(now)} {zone}"
        return text.encode("utf-8", "surrogateescape")


def _clean(text: str) -> str:
    # git: ident.c strbuf_addstr_without_crud()
    return re.sub(r"[<>\n\r\x00-\x1f\x7f]", "", text).strip(" .,:;\"\\'")


class _FailedError(Exception):
    """One ref can't be updated; `args[0]` is the result."""


@dataclass(slots=True, eq=False)
class _Item:
    update: RefUpdate
    name: bytes  # what is written, symrefs followed
    via: tuple[bytes, ...] = ()  # the symrefs passed
    result: str | None = None
    locks: list[bytes] = field(default_factory=list)
    is_tried: bool = False  # directories may have been made for it
    current: bytes | None = None  # hex oid under the lock; None when missing
    is_loose: bool = False
    staged: bytes = b""  # the file with the new value; b"" when there is nothing to write
    undo: list[Callable[[], None]] = field(default_factory=list)

    @property
    def failure(self) -> str:
        return FAILED_DELETE if self.is_delete else FAILED_UPDATE

    @property
    def is_delete(self) -> bool:
        return not self.update.new.strip(b"0")


def _hook_lines(items: Sequence[_Item]) -> bytes:
    updates = [item.update for item in items]
    return b"".join([b"%b %b %b\n" % (update.old, update.new, update.name) for update in updates])


class RefTransaction:
    """A set of ref updates, to be run once by one thread."""

    def __init__(
        self,
        refs: RefStore,
        owned: OwnedDirectory,
        config: GitConfig,
        *,
        is_bare: bool,
        identity: ReflogIdentity,
        has_object: Callable[[bytes], bool],
        message: str = "push",
        hook: Callable[[str, bytes], bool] | None = None,
    ) -> None:
        """Prepare nothing yet.

        `owned` holds what is being prepared, on the refs' file system, and marks the locks as ours. `hook` is
        the repository's reference-transaction, if it has one: told "prepared", when all is locked and
        compared, "committed" or "aborted", and the updates; what it returns counts for "prepared" alone.
        Where it is, each update that isn't atomic with others is a transaction of its own, as in git.
        """
        self._hook = hook
        self._refs = refs
        self._git_dir = refs.git_dir
        self._owned = owned
        self._staging = os.fsencode(owned.path)
        self._staged = 0
        self._config = config
        self._is_bare = is_bare
        self._zero = refs.format.zero
        self._has_object = has_object
        self._ident = identity.line()
        self._message = message.encode("utf-8", "surrogateescape")
        self._head_target: bytes | None = None
        self._ref_timeout_ms = REF_TIMEOUT_MS
        self._packed_timeout_ms = PACKED_TIMEOUT_MS
        self._reflogs: str | None = None

    def run(self, updates: Sequence[RefUpdate], *, atomic: bool) -> list[str | None]:
        """Do it; one result for each update, in their order. Leaves no lock behind, whatever happens."""
        items = [_Item(update, update.name) for update in updates]
        try:
            self._read_settings()
            self._refuse_odd(items)
            self._follow_symrefs(items)
        except RepositoryUnusable:
            for item in items:
                item.result = item.result or item.failure
        skipped = [item for item in items if item.result == _SKIP]
        for item in skipped:
            item.result = None
        ids = {id(item) for item in skipped}
        todo = [item for item in items if item.result is None and id(item) not in ids]
        if atomic:
            if all(item.result is None for item in items):
                self._run_batch(todo, atomic=True)
            if any(item.result is not None for item in items):
                for item in items:
                    item.result = item.result or ATOMIC_FAILED
        else:
            batches = [
                [item for item in todo if item.is_delete],
                [item for item in todo if not item.is_delete],
            ]
            if self._hook is not None:
                batches = [[item] for batch in batches for item in batch]
            for batch in batches:
                self._run_batch(batch, atomic=False)
        by_name = {item.update.name: item for item in items}
        for item in skipped:
            item.result = item.result or by_name[item.name].result
        return [item.result for item in items]

    # Before any lock

    def _read_settings(self) -> None:
        head = self._refs.read(b"HEAD")
        self._head_target = head.value if head.state is RefState.SYMREF else None
        self._ref_timeout_ms = _timeout(self._config.get_int("core.filesRefLockTimeout", REF_TIMEOUT_MS))
        self._packed_timeout_ms = _timeout(self._config.get_int("core.packedRefsTimeout", PACKED_TIMEOUT_MS))
        # git: config.c repo_settings_get_log_all_ref_updates(), refs.c should_autocreate_reflog()
        value = self._config.get_str("core.logAllRefUpdates") if self._has_log_value() else "true"
        if value is None:
            self._reflogs = None if self._is_bare else "normal"
        elif value.lower() == "always":
            self._reflogs = "always"
        else:
            self._reflogs = "normal" if self._config.get_bool("core.logAllRefUpdates") else None

    def _has_log_value(self) -> bool:
        values = self._config.get_all("core.logAllRefUpdates")
        return not values or values[-1] is not None

    def _refuse_odd(self, items: Sequence[_Item]) -> None:
        """Names that no service should have let through, and two commands for one ref."""
        seen: dict[bytes, _Item] = {}
        for item in items:
            if not is_safe_ref(item.update.name):
                item.result = "funny refname"
                continue
            first = seen.setdefault(item.update.name, item)
            if first is not item:
                first.result = item.result = DUPLICATE

    def _follow_symrefs(self, items: Sequence[_Item]) -> None:
        """git: builtin/receive-pack.c check_aliased_updates()"""
        by_name = {item.update.name: item for item in items}
        for item in items:
            if item.result is not None:
                continue
            via: list[bytes] = []
            name = item.update.name
            raw = self._refs.read(name)
            while raw.state is RefState.SYMREF and len(via) <= 5:
                via.append(name)
                name = raw.value
                if not is_safe_ref(name):
                    break
                raw = self._refs.read(name)
            if not via:
                continue
            if raw.state is RefState.SYMREF or not is_safe_ref(name):
                item.result = BROKEN_SYMREF
                continue
            item.name, item.via = name, tuple(via)
            target = by_name.get(name)
            if target is None:
                by_name[name] = item  # a second alias of the same ref is judged against the first
            elif (item.update.old, item.update.new) == (target.update.old, target.update.new):
                item.result = item.result or (_SKIP if target.update.name == name else DUPLICATE)
            else:
                item.result = target.result = INCONSISTENT

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
                except (_FailedError, OSError, RepositoryUnusable):
                    for item in live:
                        if item.is_delete:
                            item.result = FAILED_DELETE
                    if atomic:
                        return
            live = [item for item in live if item.result is None]
            if not live or not self._is_let(live):
                return
            self._commit(live, packed_staged, atomic=atomic)
            if self._hook is not None and all(item.result is None for item in live):
                self._hook("committed", _hook_lines(live))
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

    def _is_let(self, live: Sequence[_Item]) -> bool:
        """Ask the hook, while all locks are held; git: refs.c ref_transaction_prepare()."""
        if self._hook is None:
            return True
        lines = _hook_lines(live)
        if self._hook("prepared", lines):
            return True
        for item in live:
            item.result = HOOK_ABORTED
        self._hook("aborted", lines)
        return False

    def _refuse_nested(self, items: Sequence[_Item]) -> None:
        """Names of the batch that can't be together: both are refused, as git does."""
        by_name = {item.name: item for item in items if item.result is None}
        for item in by_name.values():
            for parent in _parents(item.name):
                other = by_name.get(parent)
                if other is not None:
                    item.result = other.result = NAME_CONFLICT

    @staticmethod
    def _attempt(item: _Item, step: Callable[[_Item], None]) -> None:
        if item.result is not None:
            return
        try:
            step(item)
        except _FailedError as failed:
            item.result = str(failed)
        except (OSError, RepositoryUnusable):
            item.result = item.failure

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
                raise _FailedError(item.failure)  # it was pointed elsewhere before it was locked
        raw = self._refs.read(item.name)
        if raw.state in (RefState.SYMREF, RefState.BROKEN):
            raise _FailedError(item.failure)
        item.is_loose = raw.is_loose
        item.current = raw.value if raw.state is RefState.OID else None
        self._compare(item)
        if item.is_delete:
            return
        if not self._has_object(item.update.new):
            raise _FailedError(MISSING_OBJECTS)
        path = self._refs.path(item.name)
        if not raw.is_loose and os.path.isdir(path) and not _remove_empty_tree(path):
            raise _FailedError(NAME_CONFLICT)
        if item.current is None:
            self._refuse_conflict(item.name, self._refs.packed())
        if item.current != item.update.new:
            item.staged = self._stage(item.update.new + b"\n")

    def _compare(self, item: _Item) -> None:
        old = item.update.old
        if old == (item.current or self._zero):
            return
        if old == self._zero:
            if not item.is_delete:
                raise _FailedError(ALREADY_EXISTS)
            # git advertises no ref whose object is missing, so its client can't name the old value
            if item.current is not None and self._has_object(item.current):
                raise _FailedError(INCORRECT_OLD)
        elif item.current is None:
            if not (item.is_delete and not self._has_object(old)):
                raise _FailedError(DOES_NOT_EXIST)
        else:
            raise _FailedError(INCORRECT_OLD)

    @staticmethod
    def _refuse_conflict(name: bytes, packed: PackedRefs) -> None:
        """git: refs.c refs_verify_refname_available(). Loose conflicts show in the file system."""
        if any(parent in packed.oids for parent in _parents(name)):
            raise _FailedError(NAME_CONFLICT)
        if next(packed.below(name + b"/"), None) is not None:
            raise _FailedError(NAME_CONFLICT)

    def _lock_file(self, lock: bytes, timeout_ms: int) -> None:
        """Make a lock file, or wait until whoever has it lets go."""
        deadline = time.monotonic() + timeout_ms / 1000
        delay = 0.001
        vanished = 0
        while True:
            try:
                _make_directories(os.path.dirname(lock))
            except NotADirectoryError:
                raise _FailedError(NAME_CONFLICT) from None  # a ref is where a directory should be
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
                raise _FailedError(NAME_CONFLICT) from None

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
        line = b"%b %b %b\t%b\n" % (old, item.update.new, self._ident, self._message)
        names = list(item.via)
        if not item.is_delete:
            names.append(item.name)
        if self._head_target is not None and self._head_target in (item.name, *item.via):
            names.append(b"HEAD")
        for name in names:
            self._append(item, name, line)

    def _append(self, item: _Item, name: bytes, line: bytes) -> None:
        path = self._git_dir + b"/logs/" + name
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        creates = self._reflogs == "always" or (
            self._reflogs == "normal"
            and (name == b"HEAD" or name.startswith((b"refs/heads/", b"refs/remotes/", b"refs/notes/")))
        )
        existed = os.path.isfile(path)
        if not existed and not creates:
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
            raise _FailedError(item.failure)
        try:
            size = os.fstat(fd).st_size
            item.undo.append(lambda: os.truncate(path, size) if existed else os.unlink(path))
            if os.write(fd, line) != len(line):
                raise _FailedError(item.failure)
        finally:
            os.close(fd)


_SKIP: Final = "(done by the update of its target)"


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


def _timeout(value_ms: int) -> int:
    return min(value_ms, _LONGEST_TIMEOUT_MS) if value_ms >= 0 else _LONGEST_TIMEOUT_MS


def _parents(name: bytes) -> list[bytes]:
    """Every shorter ref name that `name` would lie below: refs/a/b/c gives refs/a and refs/a/b."""
    parts = name.split(b"/")
    return [b"/".join(parts[:count]) for count in range(2, len(parts))]


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
