"""Which branches have work trees checked out: the repository's own, if it has one, and those that are linked.

    HEAD                                  of the repository itself, unless it is bare
    worktrees/*/HEAD                      of linked work trees, of bare repositories too
                                          (with reftables: what the stack beside it has, see reftable_refs.py)
    [worktrees/*/]rebase-{merge,apply}/head-name     a branch that is being rebased there, with HEAD detached

git: worktree.c find_shared_symref(), is_worktree_being_rebased(); gitrepository-layout(5), "worktrees".
"""

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

__all__ = ["checked_out"]

_LIMIT_BYTES = 4096
_MOST = 10_000  # work trees; pulled out of the air


def _head_of(home: Path) -> bytes:
    """The ref that the file HEAD names; b"" for none."""
    head = _read(home / "HEAD")
    return head[4:].strip() if head.startswith(b"ref:") else b""


def checked_out(
    git_dir: Path, *, is_bare: bool, head_of: Callable[[Path], bytes] = _head_of
) -> frozenset[bytes]:
    """Give the refs that HEADs of work trees name, or that are rebased there. What can't be read is left out.

    One listing, and up to three small files for each work tree.

    Args:
        head_of: reads the ref that HEAD names in such a directory, where it is not in a file; b"" for none.
    """
    homes = [] if is_bare else [git_dir]
    try:
        with os.scandir(git_dir / "worktrees") as entries:
            homes += [Path(entry.path) for entry in islice(entries, _MOST)]
    except OSError:
        pass
    found = set()
    for home in homes:
        found.add(head_of(home))
        for folder in ("rebase-merge", "rebase-apply"):
            found.add(_read(home / folder / "head-name"))
    found.discard(b"")
    return frozenset(found)


def _read(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(fd, _LIMIT_BYTES).strip()
    except OSError:
        return b""
    finally:
        os.close(fd)
