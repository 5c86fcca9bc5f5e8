"""A stack of reftables in a directory, as git reads and writes it, while git reads and writes it.

    tables.list              the tables' names, oldest first; only ever replaced, under tables.list.lock
    0x...-0x...-....ref      a table; never changed; a newer one counts before an older one
    <table>.lock             somebody is compacting this table

    read     tables.list, then each table that it names; one that is gone: compacted meanwhile, read again
    add      lock the list; write a table beside it, fsync; link it in, fsync; new list, fsync; rename; fsync
    compact  lock the list, then the tables, let go of the list; merge them; lock the list, put one for many

The order in `add` is meaning: no moment at which power fails leaves a list that names a table which isn't
there. A transaction is one table, so it is there or not.

Tables are compacted so that each is at least twice (`reftable.geometricFactor`) as large as what is newer:
a few tables, whatever number of pushes (git: reftable/stack.c suggest_compaction_segment(), whose
arithmetic this is; gitformat-reftable, "Compaction").

What a killed server leaves here is found by `ownership.sweep_repository`: its locks are links to its owner
file, and a table that it had not got into the list yet has a second name, `table-<name>`, in its staging
directory.
"""

import contextlib
import heapq
import itertools
import logging
import os
import random
import re
import secrets
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import ObjectFormat
from gitsmart.repo.ownership import NO_LINKS, OwnedDirectory
from gitsmart.repo.reftable import (
    BLOCK_SIZE,
    RESTART_INTERVAL,
    LogRecord,
    RefRecord,
    Reftable,
    ReftableError,
    ReftableWriter,
    header_size,
    log_key,
    split_log_key,
)

__all__ = ["Addition", "ReftableStack", "StackView", "WriteOptions"]

log = logging.getLogger(__name__)

LIST: Final = b"tables.list"
STAGED: Final = b"table-"
_NAME = re.compile(rb"[0-9A-Za-z_-][0-9A-Za-z._-]{0,200}\.(?:ref|log)")
_LIST_LIMIT_BYTES = 1 << 20
_REFS_LIMIT_BYTES = 1 << 30  # of one table's refs, which are held in memory; pulled out of the air
_SMALL_BYTES = 64 << 10
_LOOKUPS = 50  # of single refs in a table, after which it is parsed as a whole
_RELOAD_S = 3.0  # git: reftable/stack.c reftable_stack_reload_maybe_reuse()
_QUEUE_S = 60.0  # for other threads of this process, each of which has limits of its own

Record = TypeVar("Record", RefRecord, LogRecord, tuple[bytes, bool])


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How tables are written: git-config(1), reftable.*."""

    block_size: int = BLOCK_SIZE
    restart_interval: int = RESTART_INTERVAL
    index_objects: bool = True
    geometric_factor: int = 2
    lock_timeout_ms: int = 1_000


class _TableFile:
    """One table of a directory. Its refs are read at once, so that it may go; its logs when asked for."""

    def __init__(self, directory: bytes, name: bytes, fmt: ObjectFormat) -> None:
        """Open it. Raises: FileNotFoundError, ReftableError, OSError."""
        self.name = name
        self._path = directory + b"/" + name
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            size = os.fstat(fd).st_size
            self._head = b""
            self._fd = fd
            table = Reftable(self._read_at, size, fmt)
            needed = size if size <= _SMALL_BYTES else table.refs_end
            if needed > _REFS_LIMIT_BYTES:
                raise ReftableError("reftable is too large")
            self._head = _pread(fd, 0, needed)
        finally:
            self._fd = -1
            os.close(fd)
        self.table = table
        self.size = size
        self._refs: list[RefRecord] | None = None
        self._by_name: dict[bytes, RefRecord] | None = None
        self._lookups = 0

    def _read_at(self, offset: int, count: int) -> bytes:
        if offset + count <= len(self._head):
            return self._head[offset : offset + count]
        if self._fd >= 0:
            return _pread(self._fd, offset, count)
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise RepositoryUnusable("a reftable can't be read") from error
        try:
            return _pread(fd, offset, count)
        except OSError as error:
            raise RepositoryUnusable("a reftable can't be read") from error
        finally:
            os.close(fd)

    def refs(self) -> list[RefRecord]:
        """All of its refs; parsed once. Raises: ReftableError."""
        if self._refs is None:
            self._refs = list(self.table.refs())
        return self._refs

    def by_name(self) -> dict[bytes, RefRecord]:
        """The same; not to be changed."""
        if self._by_name is None:
            self._by_name = {record.name: record for record in self.refs()}
        return self._by_name

    def ref(self, name: bytes) -> RefRecord | None:
        """One of its refs, be it a deletion: from the block that holds it, or from all if that is cheaper."""
        return self.by_name().get(name) if self._is_parsed() else self.table.ref(name)

    def below(self, prefix: bytes) -> Iterator[RefRecord]:
        """Its refs, deletions too, whose names begin with `prefix`."""
        records = self.table.refs(prefix)
        if self._is_parsed():
            refs = self.refs()
            records = (refs[place] for place in range(bisect_left(refs, (prefix,)), len(refs)))
        return itertools.takewhile(lambda record: record.name.startswith(prefix), records)

    def _is_parsed(self) -> bool:
        self._lookups += 1
        # a block takes as long as a hundred records
        return self._refs is not None or len(self._head) <= _SMALL_BYTES or self._lookups > _LOOKUPS


def _pread(fd: int, offset: int, count: int) -> bytes:
    pieces = []
    while count > 0:
        piece = os.pread(fd, min(count, 1 << 26), offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        count -= len(piece)
    return b"".join(pieces)


class StackView:
    """A stack as it was at one moment. Immutable."""

    def __init__(self, tables: Sequence[_TableFile], identity: object, fd: int) -> None:
        self.tables = tuple(tables)
        self.identity = identity
        self._fd = fd  # of the list: its inode is not used again as long as it is open

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def next_update_index(self) -> int:
        """What the next transaction is numbered."""
        return self.tables[-1].table.max_update_index + 1 if self.tables else 1

    @property
    def log_bytes(self) -> int:
        """How large all reflogs are, deflated."""
        return sum(table.size - table.table.refs_end for table in self.tables)

    def ref(self, name: bytes) -> RefRecord | None:
        """One ref; None when there is none. Raises: ReftableError."""
        for table in reversed(self.tables):
            found = table.ref(name)
            if found is not None:
                return None if found.is_deletion else found
        return None

    def has_below(self, prefix: bytes) -> bool:
        """Whether there is a ref whose name begins with `prefix`. Raises: ReftableError."""
        found = merge_refs([table.below(prefix) for table in self.tables])
        return any(not record.is_deletion for record in found)

    def log_lines(self, name: bytes) -> Iterator[int]:
        """The update indexes of one ref's reflog, newest first. Raises: RepositoryUnusable."""
        start = log_key(name)
        for key, is_deletion in _merge([table.table.log_keys(start) for table in self.tables], _key_of):
            found, update_index = split_log_key(key)
            if found != name:
                return
            if not is_deletion:
                yield update_index

    def all_log_lines(self) -> dict[bytes, list[int]]:
        """The same for all refs that have a reflog. Raises: RepositoryUnusable."""
        lines: dict[bytes, list[int]] = {}
        for key, is_deletion in _merge([table.table.log_keys() for table in self.tables], _key_of):
            if not is_deletion:
                name, update_index = split_log_key(key)
                lines.setdefault(name, []).append(update_index)
        return lines

    def logs(self, name: bytes) -> Iterator[LogRecord]:
        """The reflog of one ref, newest line first. Raises: RepositoryUnusable."""
        for record in merge_logs([table.table.logs(log_key(name)) for table in self.tables]):
            if record.name != name:
                return
            if not record.is_deletion:
                yield record


def merge_refs(tables: Sequence[Iterator[RefRecord]]) -> Iterator[RefRecord]:
    """The refs of tables, oldest first, in order; of several for one name the newest. Deletions stay."""
    yield from _merge(tables, lambda record: record.name)


def merge_logs(tables: Sequence[Iterator[LogRecord]]) -> Iterator[LogRecord]:
    """The same for logs."""
    yield from _merge(tables, lambda record: record.key)


def _key_of(item: tuple[bytes, bool]) -> bytes:
    return item[0]


def _merge(tables: Sequence[Iterator[Record]], key: Callable[[Record], bytes]) -> Iterator[Record]:
    if len(tables) == 1:
        yield from tables[0]
        return
    last: bytes | None = None
    for record in heapq.merge(*reversed(tables), key=key):  # stable: the newest of equals comes first
        name = key(record)
        if name != last:
            last = name
            yield record


class ReftableStack:
    """The stack in one directory. Thread-safe."""

    def __init__(self, directory: bytes, fmt: ObjectFormat) -> None:
        self.directory = directory
        self.format = fmt
        self._view: StackView | None = None
        self._writers = threading.Lock()

    # Reading

    def view(self) -> StackView:
        """The stack as it is now: one stat when nothing changed.

        Raises:
            RepositoryUnusable: a table is malformed, missing or can't be read.
        """
        known = self._view
        if known is not None and self.is_current(known):
            return known
        view = self._load(() if known is None else known.tables)
        self._view = view
        return view

    def is_current(self, view: StackView) -> bool:
        """Whether the stack still is what `view` shows: one stat."""
        try:
            return view.identity == _identity(os.stat(self.directory + b"/" + LIST))
        except OSError:
            return False

    def _load(self, known: Sequence[_TableFile]) -> StackView:
        have = {table.name: table for table in known}
        deadline = time.monotonic() + _RELOAD_S
        delay = 0.001
        before: list[bytes] | None = None
        while True:
            names, identity, fd = self._read_list()
            try:
                missing = None
                tables = []
                for name in names:
                    table = have.get(name)
                    if table is None:
                        try:
                            table = have[name] = _TableFile(self.directory, name, self.format)
                        except FileNotFoundError as error:
                            missing = error
                            break
                        except OSError as error:
                            raise RepositoryUnusable("a reftable can't be read") from error
                    tables.append(table)
                if missing is None:
                    view = StackView(tables, identity, fd)
                    fd = -1
                    return view
            finally:
                if fd >= 0:
                    os.close(fd)
            # Compacted between our two looks, if the list has changed; else it is really gone
            if names == before or time.monotonic() > deadline:
                raise RepositoryUnusable("a reftable is missing") from missing
            before = names
            time.sleep(delay)
            delay *= 2

    def _read_list(self) -> tuple[list[bytes], object, int]:
        """The names, what tells this list from a later one, and an open descriptor of it (-1: none)."""
        try:
            fd = os.open(self.directory + b"/" + LIST, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            if self._has_tables():
                raise RepositoryUnusable("the list of reftables is missing") from None
            return [], None, -1
        except OSError as error:
            raise RepositoryUnusable("the list of reftables can't be read") from error
        try:
            data = _pread(fd, 0, _LIST_LIMIT_BYTES + 1)
            names = data.split(b"\n")
            if names.pop() or len(data) > _LIST_LIMIT_BYTES or len(set(names)) != len(names):
                raise RepositoryUnusable("the list of reftables is malformed")
            if not all(map(_NAME.fullmatch, names)):
                raise RepositoryUnusable("the list of reftables is malformed")
            return names, _identity(os.fstat(fd)), fd
        except OSError as error:
            os.close(fd)
            raise RepositoryUnusable("the list of reftables can't be read") from error
        except BaseException:
            os.close(fd)
            raise

    def _has_tables(self) -> bool:
        try:
            return any(name.endswith(b".ref") for name in os.listdir(self.directory))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise RepositoryUnusable("the repository's refs can't be read") from error

    # Writing

    @contextlib.contextmanager
    def locked(self, owned: OwnedDirectory, options: WriteOptions) -> Iterator["Addition"]:
        """Hold the lock of the list, and have the stack as it is under it.

        Raises:
            FileExistsError: somebody else held it all the time.
            OSError: it can't be made.
            RepositoryUnusable: see `view`.
        """
        # One file for all: threads wait in turn, not by luck
        if not self._writers.acquire(timeout=_QUEUE_S):
            raise FileExistsError
        try:
            lock = self.directory + b"/" + LIST + b".lock"
            _claim(owned, lock, options.lock_timeout_ms)
            try:
                yield Addition(self, owned, self.view(), options)
            finally:
                owned.release(lock)
        finally:
            self._writers.release()

    def compact(self, owned: OwnedDirectory, options: WriteOptions) -> bool:
        """Merge tables until they are few again; False when there was nothing to do, or somebody is at it.

        Raises:
            OSError: the disk says no; the stack is as it was.
            RepositoryUnusable: a table is malformed.
        """
        sizes = [table.size for table in self.view().tables]
        if _segment(sizes, self.format, options.geometric_factor) is None:
            return False
        locks: list[bytes] = []
        try:
            with self.locked(owned, options) as addition:
                tables = addition.view.tables
                segment = _segment([table.size for table in tables], self.format, options.geometric_factor)
                if segment is None:
                    return False
                start, end = segment
                # From the newest: if another process is at the older ones, ours are what it doesn't have
                first = end
                while first > start:
                    lock = self.directory + b"/" + tables[first - 1].name + b".lock"
                    try:
                        owned.claim(lock)
                    except FileExistsError:
                        break
                    locks.append(lock)
                    first -= 1
                if end - first < 2:
                    return False
            merged = tables[first:end]
            with (
                self._staged(owned, merged, options, is_oldest=first == 0) as staged,
                self.locked(owned, options) as addition,
            ):
                addition.replace(merged, staged)
            for table in merged:
                with contextlib.suppress(OSError):
                    os.unlink(self.directory + b"/" + table.name)
            return True
        finally:
            for lock in locks:
                owned.release(lock)

    @contextlib.contextmanager
    def _staged(
        self, owned: OwnedDirectory, tables: Sequence[_TableFile], options: WriteOptions, *, is_oldest: bool
    ) -> Iterator[bytes]:
        """Merge tables into one in the staging directory: its path; b"" when nothing is left of them."""

        def refs() -> Iterator[RefRecord]:
            for record in merge_refs([table.table.refs() for table in tables]):
                if not (is_oldest and record.is_deletion):
                    yield record

        def logs() -> Iterator[LogRecord]:
            for record in merge_logs([table.table.logs() for table in tables]):
                if not (is_oldest and record.is_deletion):
                    yield record

        lowest = tables[0].table.min_update_index
        highest = tables[-1].table.max_update_index
        staged = write_table(owned, self.format, lowest, highest, refs(), logs(), options)
        try:
            yield staged
        finally:
            if staged:
                with contextlib.suppress(OSError):
                    os.unlink(staged)


class Addition:
    """What may be done to a stack while its lock is held."""

    def __init__(
        self, stack: ReftableStack, owned: OwnedDirectory, view: StackView, options: WriteOptions
    ) -> None:
        self.view = view
        self._stack = stack
        self._owned = owned
        self._options = options

    def add(self, refs: Iterable[RefRecord], logs: Iterable[LogRecord]) -> None:
        """Append one table with these records, sorted by name and by key, durably.

        Raises:
            OSError: the disk says no: nothing was added.
            ReftableError: a record is larger than a block.
        """
        index = self.view.next_update_index
        staged = write_table(self._owned, self._stack.format, index, index, refs, logs, self._options)
        if not staged:
            return
        try:
            self._commit(staged, lambda name: [*(table.name for table in self.view.tables), name])
        finally:
            with contextlib.suppress(OSError):
                os.unlink(staged)

    def replace(self, old: Sequence[_TableFile], staged: bytes) -> None:
        """Put one table, or none (b""), for these, which must follow each other in the stack.

        Raises:
            OSError: the disk says no, or the stack has changed there.
        """
        names = [table.name for table in self.view.tables]
        gone = [table.name for table in old]
        start = names.index(gone[0]) if gone[0] in names else -1
        if start < 0 or names[start : start + len(gone)] != gone:
            raise FileExistsError  # somebody did not look at our locks

        def renewed(name: bytes) -> list[bytes]:
            return [*names[:start], *([name] if name else []), *names[start + len(gone) :]]

        self._commit(staged, renewed)

    def _commit(self, staged: bytes, renewed: Callable[[bytes], list[bytes]]) -> None:
        directory = self._stack.directory
        name = os.path.basename(staged)[len(STAGED) :]
        target = directory + b"/" + name
        is_listed = False
        try:
            if staged:
                _link(staged, target)
                _fsync_directory(directory)
            self._write_list(renewed(name))
            is_listed = True
            _fsync_directory(directory)
        except BaseException:
            # Nobody else writes the list while we hold its lock. If it can't be put back, the table stays
            if is_listed:
                self._write_list([table.name for table in self.view.tables])
            if staged:
                with contextlib.suppress(OSError):
                    os.unlink(target)
            raise

    def _write_list(self, names: Sequence[bytes]) -> None:
        listed = os.fsencode(self._owned.path) + b"/" + LIST
        _write(listed, b"".join([name + b"\n" for name in names]))
        os.rename(listed, self._stack.directory + b"/" + LIST)


def write_table(
    owned: OwnedDirectory,
    fmt: ObjectFormat,
    min_update_index: int,
    max_update_index: int,
    refs: Iterable[RefRecord],
    logs: Iterable[LogRecord],
    options: WriteOptions,
) -> bytes:
    """Write a table into the staging directory, durably; its path, or b"" when it would be empty.

    Raises: see `Addition.add`.
    """
    name = b"%b0x%012x-0x%012x-%b.ref" % (
        STAGED,
        min_update_index,
        max_update_index,
        secrets.token_hex(4).encode(),
    )
    path = os.fsencode(owned.path) + b"/" + name
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            writer = ReftableWriter(
                file.write,
                fmt,
                min_update_index,
                max_update_index,
                block_size=options.block_size,
                restart_interval=options.restart_interval,
                index_objects=options.index_objects,
            )
            for ref in refs:
                writer.add_ref(ref)
            for line in logs:
                writer.add_log(line)
            is_filled = writer.finish()
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    if not is_filled:
        os.unlink(path)
        return b""
    return path


def create_stack(directory: bytes, fmt: ObjectFormat, refs: Iterable[RefRecord]) -> None:
    """Make a new stack with one table, durably, in a directory that nobody knows of yet. Raises: OSError."""
    os.mkdir(directory)
    name = b"0x%012x-0x%012x-%b.ref" % (1, 1, secrets.token_hex(4).encode())
    pieces: list[bytes] = []
    writer = ReftableWriter(pieces.append, fmt, 1, 1)
    for ref in refs:
        writer.add_ref(ref)
    writer.finish()
    _write(directory + b"/" + name, b"".join(pieces))
    _write(directory + b"/" + LIST, name + b"\n")
    _fsync_directory(directory)


def _segment(sizes: Sequence[int], fmt: ObjectFormat, factor: int) -> tuple[int, int] | None:
    """Which tables to merge so that each is `factor` times as large as all newer ones: start and end.

    >>> from gitsmart.pack.objects import SHA1
    >>> _segment([128 + 23, 32 + 23, 16 + 23, 8 + 23, 4 + 23, 3 + 23, 1 + 23], SHA1, 2)
    (1, 6)
    >>> _segment([64 + 23, 32 + 23, 16 + 23, 8 + 23, 4 + 23, 2 + 23, 1 + 23], SHA1, 2)
    """
    weights = [size - header_size(fmt) + 1 for size in sizes]
    end = next((at for at in range(len(weights) - 1, 0, -1) if weights[at - 1] < weights[at] * factor), 0)
    if not end:
        return None
    start = end
    total = weights[end]
    for at in range(end, 0, -1):
        if weights[at - 1] < total * factor:
            start = at - 1
        total += weights[at - 1]
    return start, end + 1


def _claim(owned: OwnedDirectory, lock: bytes, timeout_ms: int) -> None:
    deadline = time.monotonic() + timeout_ms / 1000
    delay = 0.001
    while True:
        try:
            owned.claim(lock)
        except FileExistsError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - only spreads out those who wait
            delay = min(delay * 2, 0.05)
        else:
            return


def _link(source: bytes, target: bytes) -> None:
    """Give a file another name that must be free. It keeps the first one, if the file system can do that."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.rename(source, target)
        _write(source, b"")  # what tells whose it is


def _write(path: bytes, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _fsync_directory(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _identity(st: os.stat_result) -> object:
    return (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns)
