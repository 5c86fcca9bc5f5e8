"""Loose refs go into packed-refs, as `git pack-refs --all --prune` does it.

    packed-refs.lock -> all loose refs read -> packed-refs written anew, synced, renamed -> unlocked
    then each loose file: its lock -> does it still hold what was packed? -> removed -> unlocked

A reader looks at the loose file first and at packed-refs after it, so no ref is ever in neither; and a loose
file that changed meanwhile stays, hiding the packed value. The directory is synced before the first loose
file goes, lest a power failure take both. Symrefs, broken refs, and those of work trees stay loose (git:
refs/files-backend.c should_pack_ref()). git's `reference-transaction` hook is not run, as no ref changes.
"""

import contextlib
import os
from pathlib import Path

from gitsmart.repo.files_refs import FilesRefStore
from gitsmart.repo.ownership import OwnedDirectory
from gitsmart.repo.refs import RefState, is_safe_ref

__all__ = ["pack_refs"]

_OF_WORKTREES = (b"refs/bisect/", b"refs/worktree/", b"refs/rewritten/")


def pack_refs(git_dir: Path, refs: FilesRefStore, owned: OwnedDirectory) -> int:
    """Do it; returns how many refs were packed. Nothing, when somebody else has the lock.

    Raises:
        OSError: the disk says no; no ref has another value for that.
        RepositoryUnusable: packed-refs is malformed.
    """
    lock = os.fsencode(git_dir / "packed-refs.lock")
    try:
        owned.claim(lock)
    except FileExistsError:
        return 0
    try:
        packed = refs.packed()
        found: dict[bytes, bytes] = {}
        for name in refs.loose_names():
            if name.startswith(_OF_WORKTREES) or not is_safe_ref(name):
                continue
            raw = refs.read(name)
            if raw.state is RefState.OID and raw.is_loose and refs.is_there(raw.value):
                found[name] = raw.value
        if not found:
            return 0
        _replace(git_dir, refs, owned, {**packed.oids, **found}, found)
    finally:
        owned.release(lock)
    for name, oid in found.items():
        _prune(refs, owned, name, oid)
    return len(found)


def _replace(
    git_dir: Path,
    refs: FilesRefStore,
    owned: OwnedDirectory,
    oids: dict[bytes, bytes],
    loose: dict[bytes, bytes],
) -> None:
    packed = refs.packed()
    lines = [b"# pack-refs with: peeled fully-peeled sorted \n"]
    for name in sorted(oids):
        oid = oids[name]
        lines.append(b"%b %b\n" % (oid, name))
        if name not in loose and (name in packed.peeled or packed.is_fully_peeled):
            peeled = packed.peeled.get(name)
        else:
            peeled = refs.peel(oid)
        if peeled:
            lines.append(b"^%b\n" % peeled)
    path = git_dir / "packed-refs"
    staged = owned.path / "packed-refs"
    with open(staged, "xb") as file:
        file.writelines(lines)
        file.flush()
        with contextlib.suppress(OSError):
            os.fchmod(file.fileno(), os.stat(path).st_mode & 0o7777)
        os.fsync(file.fileno())
    os.rename(staged, path)
    fsync(git_dir)


def _prune(refs: FilesRefStore, owned: OwnedDirectory, name: bytes, oid: bytes) -> None:
    path = refs.path(name)
    lock = path + b".lock"
    try:
        owned.claim(lock)
    except (FileExistsError, FileNotFoundError, NotADirectoryError):
        return  # somebody is at it, or removed it: next time
    try:
        raw = refs.read(name)
        if raw.state is RefState.OID and raw.is_loose and raw.value == oid:
            os.unlink(path)
    finally:
        owned.release(lock)
    parts = name.split(b"/")[:-1]
    while len(parts) > 2:  # refs/ and what is directly in it stay
        try:
            os.rmdir(refs.git_dir + b"/" + b"/".join(parts))
        except OSError:
            break
        parts.pop()


def fsync(path: Path) -> None:
    """Sync a file or directory. Raises: OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
