"""Whose is this file? So that what a killed server left can be removed, and nothing else.

A push owns a directory, `objects/incoming-gitsmart-<random>`, and while its refs are written another of that
name in the repository's own directory. (Not `tmp_objdir-incoming-...` as git's: whatever begins with `tmp_` a
`git prune --expire=now` removes, from under a push that is under way.) In each lies the file `owner`: it
begins with a magic line and is locked with flock(2) from its creation to the push's end. Every other file
that a push puts into the repository for the time being, `x.lock` beside a ref and `pack-x.keep` beside a
pack, is a hard link to that file. So each of them tells on its own

    that it is ours          by its first line, or by being the same inode as the owner file
    that its server lives    by the lock, which the kernel drops with the process, however it ended

with no window between making the file and claiming it, and nothing to guess from process ids (which say
nothing across containers that share a volume) or from ages. A link is as exclusive as O_CREAT|O_EXCL, so git
and we respect each other's `.lock` files. Where the file system has no hard links, the file is made with
O_EXCL, marked and locked itself, and its descriptor stays open.

The one exception are reftables: git would not take a link that is ours for one of its own kind, so a table
has the name `table-<name>` in the directory until the push is over. If the list of tables doesn't have it,
no one does.

    sweep:  owner file's lock taken?  no  -> a living push, perhaps another server's: nothing is touched
                                      yes -> its keeps (and packs that got no .idx), its ref locks, the
                                      directory

The order of a push's own end is the sweep's: keeps, locks, the directory's contents, `owner` last.
"""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["OwnedDirectory", "sweep_repository"]

log = logging.getLogger(__name__)

PREFIX = "incoming-gitsmart-"
MAGIC = b"gitsmart owns this file while it is locked with flock(2)\n"
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EACCES}


class OwnedDirectory:
    """A new directory of ours, mode 0700, and the files claimed for it elsewhere. One thread at a time."""

    def __init__(self, parent: Path) -> None:
        """Make it. Raises: OSError."""
        for attempt in range(10):
            path = parent / f"{PREFIX}{secrets.token_hex(8)}"
            path.mkdir(mode=0o700)
            try:
                fd = _create_locked(path / "owner")
            except (FileNotFoundError, BlockingIOError):  # a sweeper saw it before it was anyone's
                shutil.rmtree(path, ignore_errors=True)
                if attempt == 9:
                    raise
                continue
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
            break
        self.path = path
        self._fds = [fd]
        self._source = os.fsencode(path / "owner")
        self._source_fd = fd
        self._sources = 1
        self._claimed: dict[bytes, tuple[int, int]] = {}

    def claim(self, target: bytes) -> None:
        """Make the file `target`, marked as ours.

        Raises:
            FileExistsError: it exists.
            OSError: it can't be made; FileNotFoundError and NotADirectoryError tell of its directory.
        """
        fd = self._source_fd
        try:
            os.link(self._source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.EMLINK:
                self._sources += 1
                self._source = os.fsencode(self.path / f"owner-{self._sources}")
                fd = self._source_fd = _create_locked(Path(os.fsdecode(self._source)))
                self._fds.append(fd)
                os.link(self._source, target, follow_symlinks=False)
            elif error.errno in NO_LINKS:
                fd = _create_locked(Path(os.fsdecode(target)))
                self._fds.append(fd)
            else:
                raise
        self._claimed[target] = _inode(os.fstat(fd))

    def release(self, target: bytes) -> None:
        """Remove a claimed file, if it is still the one that was made here."""
        inode = self._claimed.pop(target, None)
        with contextlib.suppress(OSError):
            if inode == _inode(os.stat(target, follow_symlinks=False)):
                os.unlink(target)

    def close(self) -> None:
        """Remove every claimed file, then the directory. Never raises; what can't be removed is logged."""
        for target in list(self._claimed):
            self.release(target)
        _remove_directory(self.path)
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def sweep_repository(git_dir: Path) -> int:
    """Remove what dead pushes of ours left in one repository; returns the number of files and directories.

    Costs three listings when there is nothing to do: the repository's, that of `objects/` and of
    `objects/pack/`. Never raises.
    """
    count = 0
    dead: dict[tuple[int, int], int] = {}
    directories = []
    try:
        for path in [*_directories_of_ours(git_dir / "objects"), *_directories_of_ours(git_dir)]:
            owners = _lock_dead_owners(path)
            if owners is not None:
                dead |= owners
                directories.append(path)
        # A keep's directory may have gone to `git prune`
        count += _sweep_packs(git_dir / "objects" / "pack", dead)
        if directories:
            count += _sweep_locks(git_dir, dead)
        for path in directories:
            count += _sweep_tables(git_dir / "reftable", path)
            if _remove_directory(path):
                count += 1
    finally:
        for fd in dead.values():
            os.close(fd)
    return count


def _directories_of_ours(parent: Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        return [
            parent / entry.name
            for entry in entries
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False)
        ]
    return []


def _lock_dead_owners(path: Path) -> dict[tuple[int, int], int] | None:
    """The inodes and locked descriptors of a directory's owner files; None when one of them is alive."""
    dead: dict[tuple[int, int], int] = {}
    try:
        names = sorted(name for name in os.listdir(path) if name == "owner" or name.startswith("owner-"))
        if "owner" not in names:
            # Made a moment ago, or its maker was killed in that moment. It can hold nothing yet
            with contextlib.suppress(OSError):
                path.rmdir()
            return None
        for name in names:
            fd = _lock_if_dead(path / name, or_empty=True)
            if fd is None:
                raise BlockingIOError
            dead[_inode(os.fstat(fd))] = fd
    except OSError:
        for fd in dead.values():
            os.close(fd)
        return None
    return dead


def _lock_if_dead(path: Path, *, or_empty: bool = False) -> int | None:
    """A locked descriptor of a file that is ours and whose owner is gone, else None.

    With `or_empty` also of one whose maker was killed before it had written that, or will find it taken.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        said = os.read(fd, len(MAGIC))
        if said == MAGIC or (or_empty and MAGIC.startswith(said)):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def _is_dead(path: Path, dead: dict[tuple[int, int], int]) -> bool:
    try:
        if _inode(os.stat(path, follow_symlinks=False)) in dead:
            return True
    except OSError:
        return False
    fd = _lock_if_dead(path)  # made without a hard link
    if fd is None:
        return False
    os.close(fd)
    return True


def _sweep_packs(pack_dir: Path, dead: dict[tuple[int, int], int]) -> int:
    count = 0
    for keep in _files(pack_dir, ".keep"):
        if not _is_dead(keep, dead):
            continue
        if not os.path.lexists(keep.with_suffix(".idx")):
            # Killed between .pack and .idx: nobody ever saw this pack, and nobody else would remove it
            for suffix in (".pack", ".rev", ".bitmap", ".mtimes"):
                count += _unlink(keep.with_suffix(suffix))
        count += _unlink(keep)
    return count


def _sweep_locks(git_dir: Path, dead: dict[tuple[int, int], int]) -> int:
    count = 0
    for name in ("packed-refs.lock", "HEAD.lock", "shallow.lock"):
        if _is_dead(git_dir / name, dead):
            count += _unlink(git_dir / name)
    graph_lock = git_dir / "objects" / "info" / "commit-graph.lock"
    if _is_dead(graph_lock, dead):
        count += _unlink(graph_lock)
    for lock in _files(git_dir / "reftable", ".lock"):  # of the list, and of tables that were being compacted
        if _is_dead(lock, dead):
            count += _unlink(lock)
    for base, _, names in os.walk(git_dir / "refs"):
        for name in names:
            if name.endswith(".lock") and _is_dead(Path(base, name), dead):
                count += _unlink(Path(base, name))
    return count


def _sweep_tables(stack: Path, staging: Path) -> int:
    """Remove the reftables that a dead push linked in, and that the stack's list does not have."""
    staged = [path.name.removeprefix("table-") for path in _files(staging, ".ref")]
    if not staged:
        return 0
    try:
        listed = (stack / "tables.list").read_text("ascii").split("\n")
    except (OSError, ValueError):
        return 0
    return sum(_unlink(stack / name) for name in staged if name not in listed)


def _files(directory: Path, suffix: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from [directory / name for name in os.listdir(directory) if name.endswith(suffix)]


def _unlink(path: Path) -> int:
    try:
        path.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        log.warning("can't remove %s: %s", path, error.strerror)
        return 0
    return 1


def _remove_directory(path: Path) -> bool:
    """Remove one of our directories, the owner file last: a sweep cut short can be taken up again."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                elif entry.name != "owner":
                    os.unlink(entry.path)
        (path / "owner").unlink(missing_ok=True)
        path.rmdir()
    except FileNotFoundError:
        return False
    except OSError as error:
        log.warning("can't remove %s: %s", path, error.strerror)
        return False
    return True


def _create_locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(fd).st_nlink:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))  # swept meanwhile
        os.write(fd, MAGIC + b"process %d\n" % os.getpid())
    except BaseException:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return fd


def _inode(st: os.stat_result) -> tuple[int, int]:
    return st.st_dev, st.st_ino
