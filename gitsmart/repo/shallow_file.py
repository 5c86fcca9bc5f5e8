"""The file `shallow`: commits whose parents a repository need not have.

    read      shallow                             one oid a line
    extend    shallow.lock --> what is there by now and what is new, fsynced --> shallow

git's lock is respected, and ours is one for git (shallow.c setup_alternate_shallow(), commit_shallow_file()).
Entries are only ever added: one too many cuts no history that a ref has, and a concurrent push may rely on it
by now. `git prune` removes those that no ref reaches.
"""

import os
import random
import time
from collections.abc import Collection
from pathlib import Path

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import ObjectFormat, to_hex, to_raw
from gitsmart.repo.ownership import OwnedDirectory

__all__ = ["extend_shallow", "read_shallow"]

_LIMIT_BYTES = 64 << 20
_WAIT_S = 1.0  # for the lock; git doesn't wait at all


def read_shallow(git_dir: Path, fmt: ObjectFormat) -> frozenset[bytes]:
    """Give the raw oids of the shallow commits; empty for a whole repository.

    Raises:
        RepositoryUnusable: the file is malformed or larger than 64 MiB.
    """
    try:
        with open(git_dir / "shallow", "rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise RepositoryUnusable("the list of shallow commits can't be read") from error
    lines = data.split()
    if len(data) > _LIMIT_BYTES or any(len(line) != fmt.hex_len for line in lines):
        raise RepositoryUnusable("the list of shallow commits is malformed")
    return frozenset(to_raw(line) for line in lines)


def extend_shallow(git_dir: Path, fmt: ObjectFormat, raw_oids: Collection[bytes]) -> None:
    """Add shallow commits, durably; nothing is written when all are there. Waits a second for the lock.

    Raises:
        OSError: FileExistsError when someone holds the lock all the time, or the disk says no.
        RepositoryUnusable: what is there is malformed.
    """
    owned = OwnedDirectory(git_dir)
    try:
        lock = os.fsencode(git_dir / "shallow.lock")
        _claim(owned, lock)
        known = read_shallow(git_dir, fmt)
        wanted = known.union(raw_oids)
        if wanted == known:
            return
        staged = owned.path / "shallow"
        with open(staged, "xb") as file:
            file.write(b"".join([to_hex(raw_oid) + b"\n" for raw_oid in sorted(wanted)]))
            file.flush()
            os.fsync(file.fileno())
        os.rename(staged, git_dir / "shallow")
        fd = os.open(git_dir, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    finally:
        owned.close()


def _claim(owned: OwnedDirectory, lock: bytes) -> None:
    deadline = time.monotonic() + _WAIT_S
    delay = 0.002
    while True:
        try:
            owned.claim(lock)
        except FileExistsError:
            if time.monotonic() > deadline:
                raise
            time.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - only spreads out those who wait
            delay = min(delay * 2, 0.1)
        else:
            return
