"""All objects of one objects directory: packs, loose objects, alternates, and a store that this one lies
over.

    locate(raw oid): own packs (the one hit last goes first) -> `over` -> alternates
    miss           : loose objects, then look whether pack directories changed, once more

Safe for any number of reading threads, and beside git: `git repack` may move objects from loose to packs and
from packs to packs at any time. Packs are opened when they are seen, so whatever was located can be read,
deleted or not; a miss looks again, and only then is an object missing. A directory is listed again only when
its modification time changed, however many objects are missed. Commits come from a commit-graph where there
is one; multi-pack-index, .bitmap, .keep, .promisor and .mtimes files are not used here. Never writes; ids of
objects are not recomputed.
"""

import logging
import os
import re
import struct
import threading
import time
from binascii import hexlify
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from gitsmart.errors import LimitExceeded, ObjectMissing, PackError
from gitsmart.pack.commitgraph import CommitGraph, read_commit_graph
from gitsmart.pack.inflate import InflateError, Inflater, decompressobj
from gitsmart.pack.objects import COMMIT, TAG, TYPE_NUMBERS, Commit, ObjectFormat, parse_commit, parse_tag
from gitsmart.pack.packfile import PackFile

__all__ = ["LooseObject", "ObjectStore"]

_logger = logging.getLogger(__name__)

# A directory that changed this shortly before it was listed may have changed again, unseen, within the same
# tick of its file system's clock (4 ms or 10 ms on Linux): it is listed again.
_RACY_NS = 20_000_000
_COARSE_NS = 2_020_000_000
# A repack makes a handful of changes within a few milliseconds, and then none for as long as a pack takes.
_LISTINGS = 50

# git: object-file.c link_alt_odb_entry() allows five as well
_ALTERNATES_DEPTH = 5
_ALTERNATES_COUNT = 64
_ALTERNATES_BYTES = 1 << 20

# Packs of fewer objects are looked up together, in one dict, while that is small: each push leaves a small
# pack.
_SMALL_PACK = 2048
_SMALL_TOTAL = 65536

# So many objects are looked up in a pack at once rather than one after the other.
_MANY = 32

# About 350 bytes each
_COMMITS = 32768

_PACK_NAME = re.compile(r"pack-[0-9A-Za-z_-]+\.idx")
_LOOSE_HEADER = re.compile(rb"(commit|tree|blob|tag) (0|[1-9][0-9]{0,18})\0")
_TAG_DEPTH = 100


class _Watch:
    """Whether a directory has changed since it was listed, by its stat."""

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._seen: tuple[int, int] | None = None
        self.racy = True  # it may have changed since, or while it was listed, within the same tick

    def _state(self) -> tuple[int, int]:
        try:
            stat = os.stat(self._path)
        except OSError:
            return (0, 0)
        return (stat.st_mtime_ns, stat.st_ino)

    def is_at(self, state: tuple[int, int]) -> bool:
        """Whether nothing has changed since `look` gave `state`, as far as times tell."""
        return self._state() == state

    def look(self, *, again: bool = False) -> tuple[int, int] | None:
        """Return the state to list for, or None while the last listing still holds, unless `again`."""
        state = self._state()
        return None if state == self._seen and not self.racy and not again else state

    def listed(self, state: tuple[int, int], before_ns: int) -> None:
        """Note that what `look` gave `state` for was listed; `before_ns` is the wall clock before it."""
        self._seen = state
        # A time in the future is racy too: the clock was set back, and may come to that time again.
        # Where times have whole seconds only, all of that second (on FAT, of two) is.
        self.racy = before_ns - state[0] < (_RACY_NS if state[0] % 1_000_000_000 else _COARSE_NS)


class LooseObject:
    """One loose object, open: its type, its size, and its data in pieces."""

    def __init__(self, fd: int) -> None:
        """Take over `fd` and read the header; closes it when that fails.

        Raises:
            PackError: it is malformed.
        """
        self._file = open(fd, "rb", buffering=0)  # noqa: SIM115 - close() is ours
        self._inflater: Inflater = decompressobj()
        try:
            head = self._inflate(self._file.read(4096), 64)
            found = _LOOSE_HEADER.match(head)
            if found is None:
                raise PackError("a loose object's header is malformed")
            self.type = TYPE_NUMBERS[found[1]]
            self.size = int(found[2])
            self._first = head[found.end() :]
        except BaseException:
            self.close()
            raise

    def _inflate(self, data: bytes, most: int) -> bytes:
        try:
            return self._inflater.decompress(data, most)
        except InflateError as error:
            raise PackError("a loose object's zlib stream is broken") from error

    def pieces(self) -> Iterator[bytes]:
        """Give the data, once, in pieces of at most 64 KiB.

        Raises:
            PackError: the stream is broken, or not as long as the header says.
        """
        left = self.size - len(self._first)
        if self._first:
            yield self._first
        inflater = self._inflater
        while left >= 0 and not inflater.eof:
            data = inflater.unconsumed_tail or self._file.read(65536)
            piece = self._inflate(data, 65536)
            if not data and not piece and not inflater.eof:
                break
            left -= len(piece)
            if piece and left >= 0:
                yield piece
        if left or not inflater.eof:
            raise PackError("a loose object is not as long as its header says")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "LooseObject":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Directory:
    """One objects directory by itself: its packs and its loose objects."""

    def __init__(self, path: Path, fmt: ObjectFormat) -> None:
        self.path = path
        self.format = fmt
        self.packs: tuple[PackFile, ...] = ()
        self._large: tuple[PackFile, ...] = ()
        self._small: dict[bytes, PackFile] = {}
        self._known: dict[tuple[str, int, int, int], PackFile | None] = {}
        self._pack_dir = os.fspath(path / "pack")
        self._pack_watch = _Watch(path / "pack")
        self._loose_watch = _Watch(path)
        self._fan: frozenset[int] = frozenset()
        self._lock = threading.Lock()
        self._prefix = os.fspath(path) + "/"
        self._graph: CommitGraph | None = None
        self._graph_is_known = False
        self._graph_key: tuple[object, object] = (None, None)

    # -- packs

    def locate(self, raw_oid: bytes) -> tuple[PackFile, int] | None:
        """Return the pack that holds an object, and where; looks at no disk but the mapped packs."""
        large = self._large
        for at, pack in enumerate(large):
            offset = pack.offset_of(raw_oid)
            if offset is not None:
                if at:
                    # Objects asked for together lie together: git: packfile.c find_pack_entry() does the
                    # same.
                    self._promote(large, pack)
                return pack, offset
        small = self._small.get(raw_oid)
        if small is not None:
            offset = small.offset_of(raw_oid)
            if offset is not None:
                return small, offset
        return None

    def _promote(self, large: tuple[PackFile, ...], pack: PackFile) -> None:
        with self._lock:
            if self._large is large:
                self._large = (pack, *(other for other in large if other is not pack))

    def rescan(self, *, surely: bool) -> None:
        """List the pack directory again if it changed since it was listed, by whatever thread.

        Every pack is known afterwards that was there before the call and still is. With `surely` so is every
        object that was there all the time, whichever packs it was in.
        """
        if self._pack_watch.look() is None:
            return
        with self._lock:
            state = self._pack_watch.look()
            # A listing during which the directory changed may lack both a pack that went and the one that
            # took its place: it was read before the one came, and after the other had gone. Where times
            # can't tell that nothing changed, a second listing with the same packs does: it began when that
            # pack had come, and packs don't go again within two listings.
            before: frozenset[object] | None = None
            for _ in range(_LISTINGS):
                if state is None:
                    return
                before_ns = time.time_ns()
                complete = self._list_packs()
                self._pack_watch.listed(state, before_ns)
                if complete:
                    if not surely or (self._pack_watch.is_at(state) and not self._pack_watch.racy):
                        return
                    after = frozenset(self._known)
                    if after == before:
                        return
                    before = after
                state = self._pack_watch.look(again=True)
            _logger.warning("%s keeps changing while it is listed", self._pack_dir)

    def _list_packs(self) -> bool:
        known: dict[tuple[str, int, int, int], PackFile | None] = {}
        complete = True
        try:
            with os.scandir(self._pack_dir) as entries:
                names = sorted(entry.name for entry in entries if _PACK_NAME.fullmatch(entry.name))
        except (FileNotFoundError, NotADirectoryError):
            names = []
        except OSError as error:
            _logger.warning("can't list %s: %s", self._pack_dir, error.strerror)
            return True
        for name in names:
            path = Path(self._pack_dir, name).with_suffix(".pack")
            try:
                stat = path.stat()
                key = (name, stat.st_ino, stat.st_size, stat.st_mtime_ns)
                if key in self._known:
                    known[key] = self._known[key]
                else:
                    known[key] = PackFile(path, self.format)
            except FileNotFoundError:
                complete = False
            except PackError as error:
                # As git does: objects of a broken pack are missing, the others are served.
                _logger.warning("ignored %s: %s", path, error)
                known[key] = None
            except OSError as error:
                # Not known, so tried again at the next change.
                _logger.warning("can't open %s: %s", path, error.strerror)
        if known.keys() != self._known.keys():
            for key, gone in self._known.items():
                if key not in known and gone is not None:
                    gone.forget()
            self._known = known
            self._arrange([pack for pack in known.values() if pack is not None])
        return complete

    def _arrange(self, packs: list[PackFile]) -> None:
        packs.sort(key=lambda pack: pack.count, reverse=True)
        small: dict[bytes, PackFile] = {}
        large = []
        for pack in packs:
            if pack.count < _SMALL_PACK and len(small) + pack.count <= _SMALL_TOTAL and len(packs) > 2:
                for position in range(pack.count):
                    small[pack.name_at(position)] = pack
            else:
                large.append(pack)
        # Readers without the lock must find an object that stays in one or the other.
        self._small = {**self._small, **small}
        self._large = tuple(large)
        self._small = small
        self.packs = tuple(packs)

    # -- loose objects

    def open_loose(self, raw_oid: bytes) -> LooseObject | None:
        """Open a loose object; None when there is none of that name."""
        if not self._has_fan(raw_oid[0]):
            return None
        name = hexlify(raw_oid).decode()
        try:
            fd = os.open(f"{self._prefix}{name[:2]}/{name[2:]}", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return LooseObject(fd)

    def has_loose(self, raw_oid: bytes) -> bool:
        """Tell whether there is a loose object of that name."""
        if not self._has_fan(raw_oid[0]):
            return False
        name = hexlify(raw_oid).decode()
        return os.path.exists(f"{self._prefix}{name[:2]}/{name[2:]}")

    def is_empty(self) -> bool:
        """Tell whether there is neither a pack, of those known now, nor a directory for loose objects."""
        self._has_fan(0)
        return not self._fan and not self.packs

    def _has_fan(self, first: int) -> bool:
        """Tell whether there is a directory for loose objects with that first byte; most repositories have
        few."""
        if self._loose_watch.look() is not None:
            with self._lock:
                state = self._loose_watch.look()
                if state is not None:
                    before_ns = time.time_ns()
                    try:
                        names = os.listdir(self.path)
                    except OSError:
                        names = []
                    self._fan = frozenset(
                        int(name, 16)
                        for name in names
                        if len(name) == 2 and re.fullmatch("[0-9a-f]{2}", name)
                    )
                    self._loose_watch.listed(state, before_ns)
        return first in self._fan

    # -- the commit-graph

    def graph(self) -> CommitGraph | None:
        """Return the commit-graph, as it was when `look_for_graph` was called last."""
        if not self._graph_is_known:
            with self._lock:
                if not self._graph_is_known:
                    self._graph = self._read_graph()
                    self._graph_is_known = True
        return self._graph

    def _read_graph(self) -> CommitGraph | None:
        key = self._graph_key_now()
        self._graph_key = key
        if key == (None, None):
            return None
        try:
            return read_commit_graph(self.path, self.format)
        except FileNotFoundError:
            pass
        except (OSError, PackError) as error:
            _logger.warning("ignored the commit-graph in %s: %s", self.path, error)
        return None

    def _graph_key_now(self) -> tuple[object, object]:
        keys: list[object] = []
        for name in ("commit-graph", "commit-graphs/commit-graph-chain"):
            try:
                stat = os.stat(f"{self._prefix}info/{name}")
                keys.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
            except OSError:
                keys.append(None)
        return keys[0], keys[1]

    def look_for_graph(self) -> None:
        """See a commit-graph that came or changed."""
        if self._graph_is_known and self._graph_key_now() != self._graph_key:
            self._graph_is_known = False

    def close(self) -> None:
        """Let go of all packs."""
        with self._lock:
            for pack in self.packs:
                pack.forget()
            self._known, self._small, self._large, self.packs = {}, {}, (), ()
            self._pack_watch = _Watch(Path(self._pack_dir))


class ObjectStore:
    """The objects of one objects directory, of its alternates, and of the store that it lies over.

    Memory: mapped packs, 350 bytes a cached commit (32,768 at most), 8 bytes an object of the packs that were
    written from. Descriptors: none.
    """

    def __init__(self, objects_dir: Path, fmt: ObjectFormat, *, over: "ObjectStore | None" = None) -> None:
        """See what is there. A directory that is not there is an empty one.

        Args:
            over: a store whose objects are to be found here as well, as a repository's from its quarantine.
        """
        self.format = fmt
        self._own = _Directory(objects_dir, fmt)
        self._over = over
        self._alternates: tuple[_Directory, ...] = ()
        self._alternates_key: object = None
        self._commits: dict[bytes, Commit] = {}
        self._lock = threading.Lock()
        self.refresh()

    # -- directories

    def _directories(self) -> tuple[_Directory, ...]:
        own = (self._own, *self._alternates)
        return own if self._over is None else own + self._over._directories()

    def refresh(self) -> None:
        """See packs that came, and let go of packs that went. Costs a stat for each directory if none did."""
        self._read_alternates()
        for directory in self._directories():
            directory.rescan(surely=False)
            directory.look_for_graph()

    def _read_alternates(self) -> None:
        """Follow info/alternates (gitrepository-layout), as deep as git does; unreadable ones hold
        nothing."""
        path = os.path.join(self._own.path, "info", "alternates")
        try:
            stat = os.stat(path)
        except OSError:
            if self._alternates:
                self._alternates = ()
            self._alternates_key = None
            return
        key = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if key == self._alternates_key:
            return
        with self._lock:
            had = {os.fspath(directory.path): directory for directory in self._alternates}
            found: dict[str, _Directory] = {}
            seen = {os.path.realpath(self._own.path)}
            level = [os.fspath(self._own.path)]
            for depth in range(_ALTERNATES_DEPTH + 1):
                following: list[str] = []
                for base in level:
                    for real in _alternates_of(base, relative=depth == 0):
                        if real not in seen and len(found) < _ALTERNATES_COUNT:
                            seen.add(real)
                            following.append(real)
                            found[real] = had.get(real) or _Directory(Path(real), self.format)
                level = following
            self._alternates = tuple(found.values())
            self._alternates_key = key

    def alternates(self) -> tuple[Path, ...]:
        """Return the objects directories that objects are borrowed from (not `over`'s), as real paths."""
        self._read_alternates()
        return tuple(directory.path for directory in self._alternates)

    def close(self) -> None:
        """Let go of the packs. Whoever still reads from one may finish; `over` is not closed."""
        for directory in (self._own, *self._alternates):
            directory.close()
        self._commits = {}

    # -- finding

    def locate(self, raw_oid: bytes) -> tuple[PackFile, int] | None:
        """Return the pack that holds an object and the offset of its entry; None when it is in no pack.

        Looks for new packs if the object is not there. An object that is only loose gives None.
        """
        found = self._find(raw_oid)
        if found is None:
            self._rescan()
            found = self._find(raw_oid)
        return found

    def locate_all(self, raw_oids: Collection[bytes]) -> tuple[list[tuple[PackFile, bytearray]], list[bytes]]:
        """Return the packs that objects are in, with bits by rank (see select.PackedObjects), each object in
        one of them; and those that are in no pack. For where there is a native module.
        """
        found: dict[int, tuple[PackFile, bytearray]] = {}
        left: Collection[bytes] = raw_oids
        if len(left) >= _MANY:
            for pack in sorted(self.packs(), key=lambda pack: pack.count, reverse=True):
                if pack.count < _SMALL_PACK or len(left) < _MANY:
                    break
                bits = bytearray((pack.count + 7) // 8)
                ordered = list(left)
                missing = pack.entries().mark(b"".join(ordered), bits)
                if len(missing) < len(ordered):
                    found[pack.serial] = (pack, bits)
                    left = [ordered[at] for at in missing]
        missed: list[bytes] = []
        for raw_oid in left:
            place = self.locate(raw_oid)
            if place is None:
                missed.append(raw_oid)
                continue
            pack, offset = place
            if pack.serial not in found:
                found[pack.serial] = (pack, bytearray((pack.count + 7) // 8))
            rank = pack.entries().rank_of(offset)
            found[pack.serial][1][rank >> 3] |= 1 << (rank & 7)
        return list(found.values()), missed

    def _find(self, raw_oid: bytes) -> tuple[PackFile, int] | None:
        found = self._own.locate(raw_oid)
        if found is None and (self._over is not None or self._alternates):
            for directory in self._directories()[1:]:
                found = directory.locate(raw_oid)
                if found is not None:
                    break
        return found

    def _rescan(self) -> None:
        """Look for packs that came. Whoever missed an object looks for it again afterwards, changes or not:
        another thread may have seen them between the miss and now.
        """
        self._read_alternates()
        for directory in self._directories():
            directory.rescan(surely=True)

    def open_loose(self, raw_oid: bytes) -> LooseObject | None:
        """Open an object that is loose, for reading it in pieces; close it. None when there is none.

        Raises:
            PackError: its header is malformed.
        """
        for directory in self._directories():
            loose = directory.open_loose(raw_oid)
            if loose is not None:
                return loose
        return None

    def __contains__(self, raw_oid: bytes) -> bool:
        if len(raw_oid) != self.format.raw_len:
            return False
        if self._find(raw_oid) is not None:
            return True
        directories = self._directories()
        if any(directory.has_loose(raw_oid) for directory in directories):
            return True
        self._rescan()
        return self._find(raw_oid) is not None

    def contains_own(self, raw_oid: bytes) -> bool:
        """Tell whether an object is in this objects directory itself, not in an alternate nor in `over`."""
        own = self._own
        if own.locate(raw_oid) is not None or own.has_loose(raw_oid):
            return True
        own.rescan(surely=True)
        return own.locate(raw_oid) is not None

    def present(self, raw_oids: Iterable[bytes]) -> set[bytes]:
        """Return those of `raw_oids` that are here. Looks for new packs once at most, whatever is missing."""
        raw_len = self.format.raw_len
        wanted = {raw_oid for raw_oid in raw_oids if len(raw_oid) == raw_len}
        found = {raw_oid for raw_oid in wanted if self._find(raw_oid) is not None}
        if len(found) < len(wanted):
            directories = self._directories()
            for raw_oid in wanted - found:
                if any(directory.has_loose(raw_oid) for directory in directories):
                    found.add(raw_oid)
            if len(found) < len(wanted):
                self._rescan()
                found.update(raw_oid for raw_oid in wanted - found if self._find(raw_oid) is not None)
        return found

    def is_empty(self) -> bool:
        """Tell whether there is no object at all, as in a repository that was just made."""
        self._rescan()
        return all(directory.is_empty() for directory in self._directories())

    def packs(self) -> tuple[PackFile, ...]:
        """Return all packs that are known now, of all directories; those of `over` last."""
        return tuple(pack for directory in self._directories() for pack in directory.packs)

    def own_packs(self) -> tuple[PackFile, ...]:
        """Return the packs of this objects directory itself that are known now."""
        return self._own.packs

    def own_loose(self) -> dict[bytes, Path]:
        """List the loose objects of this objects directory itself, by raw oid. One listing a folder."""
        found: dict[bytes, Path] = {}
        rest = re.compile(f"[0-9a-f]{{{self.format.hex_len - 2}}}")
        for first in range(256):
            folder = self._own.path / f"{first:02x}"
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            for name in names:
                if rest.fullmatch(name):
                    found[bytes.fromhex(folder.name + name)] = folder / name
        return found

    # -- reading

    def type_of(self, raw_oid: bytes) -> int:
        """Return an object's type: COMMIT, TREE, BLOB or TAG. Inflates nothing but a loose object's header.

        Raises:
            ObjectMissing, PackError
        """
        return self._look(raw_oid)[0]

    def size_of(self, raw_oid: bytes) -> tuple[int, int]:
        """Return an object's type and inflated size. Inflates no more than a header, or a delta's.

        Raises:
            ObjectMissing, PackError
        """
        return self._look(raw_oid, sized=True)

    def _look(self, raw_oid: bytes, *, sized: bool = False) -> tuple[int, int]:
        self._check(raw_oid)
        found = self._find(raw_oid)
        if found is None:
            loose = self.open_loose(raw_oid)
            if loose is not None:
                loose.close()
                return loose.type, loose.size
            self._rescan()
            found = self._find(raw_oid)
            if found is None:
                raise ObjectMissing(hexlify(raw_oid).decode())
        pack, offset = found
        return pack.size_at(offset) if sized else (pack.type_at(offset), 0)

    def read(self, raw_oid: bytes, *, limit_bytes: int | None = None) -> tuple[int, bytes]:
        """Return an object's type and data, whole.

        Args:
            limit_bytes: the most that this object, and each that it is a delta of, may take.

        Raises:
            ObjectMissing, PackError
            LimitExceeded: it is larger than `limit_bytes`; found out before it is inflated.
        """
        self._check(raw_oid)
        found = self._find(raw_oid)
        if found is None:
            loose = self.open_loose(raw_oid)
            if loose is not None:
                with loose:
                    if limit_bytes is not None and loose.size > limit_bytes:
                        raise LimitExceeded(
                            f"an object has {loose.size} bytes, more than the {limit_bytes} allowed"
                        )
                    return loose.type, b"".join(loose.pieces())
            self._rescan()
            found = self._find(raw_oid)
            if found is None:
                raise ObjectMissing(hexlify(raw_oid).decode())
        pack, offset = found
        return pack.read_at(offset, limit_bytes=limit_bytes)

    def _check(self, raw_oid: bytes) -> None:
        if len(raw_oid) != self.format.raw_len:
            raise ObjectMissing(hexlify(raw_oid).decode())

    def commit(self, raw_oid: bytes) -> Commit:
        """Return a commit's tree, parents and date, from a bounded cache if it was read before.

        Raises:
            ObjectMissing
            PackError: it is no commit, or malformed.
        """
        commit = self._commits.get(raw_oid)
        if commit is None:
            commit = self._commit_in_graph(raw_oid)
            if commit is None:
                kind, data = self.read(raw_oid)
                if kind != COMMIT:
                    raise PackError(f"{hexlify(raw_oid).decode()} is no commit")
                commit = parse_commit(data, self.format)
            commits = self._commits
            if len(commits) >= _COMMITS:
                # All at once: cheaper than any order, and a walk that comes here doesn't come back soon.
                commits = self._commits = {}
            commits[raw_oid] = commit
        return commit

    def _commit_in_graph(self, raw_oid: bytes) -> Commit | None:
        """Look a commit up in the commit-graphs. They may name what is gone, so it must be in a pack."""
        for directory in self._directories():
            graph = directory.graph()
            if graph is not None:
                commit = graph.commit(raw_oid)
                if commit is not None:
                    return commit if self._find(raw_oid) is not None else None
        return None

    def peel(self, raw_oid: bytes) -> tuple[tuple[bytes, ...], bytes, int]:
        """Follow annotated tags: return the tags passed, outermost first, the object behind them, and its
        type.

        Raises:
            ObjectMissing: one of them.
            PackError: a tag is malformed, or there are more than 100 in a row.
        """
        tags: list[bytes] = []
        for _ in range(_TAG_DEPTH):
            kind = self.type_of(raw_oid) if raw_oid not in self._commits else COMMIT
            if kind != TAG:
                return tuple(tags), raw_oid, kind
            tags.append(raw_oid)
            raw_oid, _ = parse_tag(self.read(raw_oid)[1], self.format)
        raise PackError(f"more than {_TAG_DEPTH} tags point at each other")


def _alternates_of(objects_dir: str, *, relative: bool) -> Iterator[str]:
    """Read one info/alternates: a path a line, relative to the objects directory; "#" starts a comment.

    Relative paths count in the first file only, as in git: object-file.c link_alt_odb_entry().
    """
    try:
        with open(os.path.join(objects_dir, "info", "alternates"), "rb") as file:
            lines = file.read(_ALTERNATES_BYTES).split(b"\n")
    except OSError:
        return
    for line in lines:
        if not line or line.startswith(b"#") or b"\0" in line:
            continue
        if line.startswith(b'"') and line.endswith(b'"') and len(line) > 1:
            line = re.sub(rb"\\([0-7]{3}|.)", _unquote, line[1:-1])
        path = os.fsdecode(line)
        if not os.path.isabs(path):
            if not relative:
                continue
            path = os.path.join(objects_dir, path)
        yield os.path.realpath(path)


def _unquote(found: "re.Match[bytes]") -> bytes:
    code = found[1]
    if len(code) == 3:
        return struct.pack("B", int(code, 8) & 0xFF)
    plain = b'abtnvfr"\\'
    return b'\a\b\t\n\v\f\r"\\'[plain.index(code)].to_bytes(1, "big") if code in plain else code
