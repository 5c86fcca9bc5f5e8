"""A pack streams in; .pack, .idx and .rev come out. Deltas are resolved as they arrive.

    read(n) --> tmp_pack_* --> inflate each entry once --> whole object ---------> oid, facts --> base cache
                    ^                                  \\-> delta on a known base -^
                    |                                   \\-> delta on a base to come: deferred to the end
                    \\-- what the cache dropped is inflated again from the file

The pack must hold exactly the entries that its header declares, then its checksum, then end
(gitformat-pack; git: builtin/index-pack.c, whose words the errors use). REF_DELTAs on objects of the
repository (thin pack) are completed by appending these, as `git index-pack --fix-thin` does.

Nothing the peer claims is believed before it is there: sizes are compared with the limits before anything is
inflated, and memory is taken for what arrives, never for what is announced. Memory: about 45 bytes an object
besides its place in `PackFacts` (150), the base cache (32 MiB), and a base, a delta and its result, within
`IngestLimits.delta_bytes`. A blob of 1 MiB or more that is no delta goes through in pieces.

Objects are fsck'ed on the way, where that is asked for (pack/fsck.py). Not done here: fsync and moving into
place (repo/quarantine.py).
"""

import contextlib
import os
import struct
import tempfile
import zlib
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gitsmart.errors import LimitExceeded, ObjectMissing, PackError
from gitsmart.pack.delta import apply_delta, delta_sizes
from gitsmart.pack.fsck import Fsck
from gitsmart.pack.inflate import InflateError, crc32, decompressobj, inflate, inflated_pieces
from gitsmart.pack.objectid import ObjectHasher
from gitsmart.pack.objects import (
    BLOB,
    COMMIT,
    TAG,
    TREE,
    TYPE_NAMES,
    ObjectFormat,
    object_header,
    parse_commit,
    parse_tag,
    to_hex,
    tree_references,
)
from gitsmart.pack.oidtypes import OidTypes
from gitsmart.pack.packindex import Bytes, Numbers, index_pieces, order_by_name, reverse_index_pieces
from gitsmart.pack.store import LooseObject, ObjectStore
from gitsmart.pack.treedelta import TreeChanges, delta_references, entry_ends

__all__ = ["IngestLimits", "IngestedPack", "PackFacts", "PackTooLargeError", "ingest_pack"]

_OFS_DELTA: Final = 6
_REF_DELTA: Final = 7
_READ: Final = 1 << 16
_PIECE: Final = 1 << 18
HUGE: Final = 1 << 20  # a blob from here on is hashed in pieces, not held
_CACHE_BYTES: Final = 32 << 20  # 1 % of git/git's bases are missed with 64 MiB, 2 % with 16: packs.md A.5
_TICK_OBJECTS: Final = 256
_TICK_BYTES: Final = 16 << 20
_BATCH_OBJECTS: Final = 256
_SMALL_DELTA: Final = 8  # a delta this many times smaller than its tree is worth following
_ENDS_KEPT: Final = 1 << 20  # 4 bytes each
_ENDS_OVERHEAD: Final = 32
_PATIENCE: Final = (
    8  # deltas; pulled out of the air, between git's usual misses of 1 to 3 and its depth of 50
)
REBUILT_TIMES: Final = 16  # building bases again may cost this much of what the objects themselves cost
REBUILT_BYTES: Final = 1 << 30  # ... and this much besides; git/git needs 0.2 times
_NO_BASE: Final = -1
_THIN: Final = -2  # this and below: the base is self._thin[-2 - parent]


class PackTooLargeError(LimitExceeded):
    """The stream is longer than `IngestLimits.pack_bytes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestLimits:
    """What a pushed pack may hold. Beyond any of them: LimitExceeded, as soon as it is claimed."""

    pack_bytes: int | None = None
    """The stream's length, as it arrives (git: receive.maxInputSize)."""
    objects: int = 20_000_000
    """Entries of the pack."""
    object_bytes: int = 4 << 30
    """One object, inflated."""
    delta_bytes: int = 512 << 20
    """An object that is a delta or has one, since these are held in memory: git makes no deltas of files
    above core.bigFileThreshold, 512 MiB."""
    structure_bytes: int = 64 << 20
    """One commit, tree or tag: held whole, to read its references."""
    delta_depth: int = 4095
    """Deltas between an object and its whole base: the most that git pack-objects makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackFacts:
    """What a pack holds and refers to, for the connectivity check; all oids raw."""

    own: OidTypes
    """raw oid -> type of every object the peer sent. Bases that complete a thin pack are not among them. The
    names are the written index's, mapped: a byte of memory for each."""
    outside: OidTypes
    """raw oid -> expected type of what these refer to and the pack does not hold; gitlinks left out."""
    conflicting: OidTypes
    """raw oid -> type it is referred to as, though it has, or is also referred to as, another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestedPack:
    """A pack that was written: `directory/pack-<checksum>.pack`, `.idx` and `.rev`."""

    checksum: bytes  # hex: the pack's trailer, after thin bases were appended
    objects: int  # those the peer sent; 0: there are no files
    pack_bytes: int  # the stream's length
    facts: PackFacts


def ingest_pack(
    read: Callable[[int], bytes],
    directory: Path,
    fmt: ObjectFormat,
    *,
    bases: ObjectStore,
    detect_collisions: bool = True,
    limits: IngestLimits,
    tick: Callable[[int, int], None],
    fsck: Fsck | None = None,
    cache_bytes: int = _CACHE_BYTES,
) -> IngestedPack:
    """Read a pack to its end, check it, and write it into `directory`, mode 0444, not fsynced.

    `read(n)` gives 1 to n bytes, b"" at the end. `bases` are the objects that are there already: a thin
    pack's deltas may build on them, and an object that they hold too must be the same byte by byte.
    `tick(done, total)` is called every few hundred objects or 16 MiB; what it raises ends the ingestion.
    `fsck` is told of every object; without it all are taken that can be parsed.
    Blocking; one thread.

    Whatever is raised, also out of `read` or `tick`, nothing of it is left in `directory`.

    Raises: PackError (FsckFailed is one), LimitExceeded; ConfigError when collisions can't be detected;
    OSError from the disk.
    """
    from gitsmart.pack import indexer_native  # it builds on this module

    kind = (
        indexer_native.NativeIngest if indexer_native.is_possible(fmt, detect_collisions, limits) else Ingest
    )
    ingest = kind(read, directory, fmt, bases, detect_collisions, limits, tick, fsck, cache_bytes)
    try:
        return ingest.run()
    finally:
        ingest.close()


class _BaseCache:
    """Objects that later deltas may build on: those used last, up to a number of bytes.

    The newest stays whatever its size, so that a chain of large objects is not rebuilt for each of its links.
    """

    __slots__ = ("_bytes", "_items", "_limit")

    def __init__(self, limit_bytes: int) -> None:
        self._items: OrderedDict[int, tuple[int, bytes]] = OrderedDict()
        self._bytes = 0
        self._limit = limit_bytes

    def get(self, index: int) -> tuple[int, bytes] | None:
        item = self._items.get(index)
        if item is not None:
            self._items.move_to_end(index)
        return item

    def __contains__(self, index: int) -> bool:
        return index in self._items

    def put(self, index: int, item: tuple[int, bytes]) -> None:
        items = self._items
        if index in items:
            return
        items[index] = item
        self._bytes += len(item[1])
        while self._bytes > self._limit and len(items) > 1:
            self._bytes -= len(items.popitem(last=False)[1][1])

    def clear(self) -> None:
        self._items.clear()
        self._bytes = 0


class Ingest:
    """The state of one ingestion. An object's index is its place in the pack, from 0."""

    def __init__(
        self,
        read: Callable[[int], bytes],
        directory: Path,
        fmt: ObjectFormat,
        bases: ObjectStore,
        detect_collisions: bool,
        limits: IngestLimits,
        tick: Callable[[int, int], None],
        fsck: Fsck | None,
        cache_bytes: int,
    ) -> None:
        self._read = read
        self._directory = directory
        self._format = fmt
        self._raw_len = fmt.raw_len
        self._bases = bases
        self._limits = limits
        self._tick = tick
        self._fsck = fsck
        self._clean = bytearray()  # 1: fsck has nothing to say of this tree; shorter than the list of objects
        self._hasher = ObjectHasher(fmt, detect_collisions=detect_collisions)
        # The stream: `_buffer[_pos:]` is what has not been used; `_start` is the offset of `_buffer[0]`.
        self._buffer = b""
        self._view = memoryview(b"")
        self._pos = 0
        self._start = 0
        self._ended = False
        self._trailer = fmt.new_hash()
        # The objects, in pack order
        self._total = 0
        self._done = 0  # resolved
        self._offsets = array("Q")
        self._crcs = array("I")
        self._types = bytearray()  # 0: a delta that is not resolved yet
        self._names = bytearray()
        self._parents = array("i")  # index of the delta's base, _NO_BASE, or _THIN - k
        self._depths = array("I")
        self._end = 0  # offset after the last entry
        self._cache = _BaseCache(cache_bytes)
        self._tree_ends: OrderedDict[int, array[int]] = OrderedDict()
        self._tree_entries = 0  # in `_tree_ends`
        self._thin: list[bytes] = []  # raw oids of bases in the repository
        self._thin_places: dict[bytes, int] = {}
        self._index_of: dict[bytes, int] | None = None  # raw oid -> index; only for packs with REF_DELTAs
        self._ref_bases: set[bytes] = set()  # raw oids that REF_DELTAs name
        self._repeated: set[bytes] = set()  # raw oids of objects that came more than once
        self._awaiting_object: dict[int, list[int]] = {}
        self._awaiting_name: dict[bytes, list[int]] = {}
        # Facts, a set per type
        self._own: tuple[set[bytes], ...] = (set(), set(), set(), set(), set())
        self._wanted: tuple[set[bytes], ...] = (set(), set(), set(), set(), set())
        self._batch: dict[bytes, int] = {}  # not yet looked up in `bases`
        self._work_bytes = 0
        self._resolved_bytes = 0
        self._rebuilt_bytes = 0
        self._offset = 0  # of the entry that arrives
        self._crc = 0  # of what arrived in pieces of it
        self._huge: set[int] = set()
        # Files
        self._fd = -1
        self._temporary: set[Path] = set()

    # -- the whole

    def run(self) -> IngestedPack:
        self._open()
        self._header()
        self._scan()
        self._trailing()
        self._resolve_deferred()
        self._check_known()
        if self._fsck is not None:
            self._fsck.finish(self._read_for_fsck)
        self._tick(self._done, self._total)
        received = self._end + self._raw_len
        objects = self._total
        outside, conflicting = self._outside()
        if not objects:
            checksum = self._trailer.digest()
            own = OidTypes(b"", b"", self._raw_len)
        else:
            self._check_bases()
            checksum = self._complete()
            own = self._write_files(checksum)
        facts = PackFacts(own=own, outside=outside, conflicting=conflicting)
        return IngestedPack(checksum=to_hex(checksum), objects=objects, pack_bytes=received, facts=facts)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        for path in self._temporary:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        self._temporary.clear()
        self._cache.clear()

    def _open(self) -> None:
        fd, name = tempfile.mkstemp(prefix="tmp_pack_", dir=self._directory)
        self._temporary.add(Path(name))
        self._pack_path = Path(name)
        self._fd = fd

    # -- the stream

    def _fill(self) -> bool:
        """Read once; False at the end of the stream."""
        if self._ended:
            return False
        chunk = self._read(_READ)
        if not chunk:
            self._ended = True
            return False
        limit = self._limits.pack_bytes
        end = self._start + len(self._buffer) + len(chunk)
        if limit is not None and end > limit:
            raise PackTooLargeError(f"pack exceeds maximum allowed size ({_show_bytes(limit)})")
        _write_all(self._fd, chunk)
        # Whatever was used is an entry or the header, never the trailer: that is hashed, and no more.
        used = self._pos
        if used:
            self._trailer.update(self._view[:used])
        self._start += used
        self._buffer = self._buffer[used:] + chunk if used < len(self._buffer) else bytes(chunk)
        self._view = memoryview(self._buffer)
        self._pos = 0
        return True

    def _need(self, count: int) -> None:
        """Have `count` unused bytes in the buffer, or all up to the stream's end."""
        while len(self._buffer) - self._pos < count and self._fill():
            pass

    def _header(self) -> None:
        # The texts are git's: builtin/receive-pack.c parse_pack_header()
        self._need(12)
        header = self._buffer[:12]
        if len(header) < 12:
            raise PackError("eof before pack header was fully read")
        magic, version, total = struct.unpack(">4sII", header)
        if magic != b"PACK":
            raise PackError("protocol error (pack signature mismatch detected)")
        if version not in (2, 3):
            raise PackError("protocol error (pack version unsupported)")
        if total > self._limits.objects:
            raise LimitExceeded(f"pack of {total} objects exceeds the limit of {self._limits.objects}")
        self._pos = 12
        self._total = total

    def _trailing(self) -> None:
        """Check that the checksum follows the last entry, and the end follows it."""
        self._end = self._start + self._pos
        raw_len = self._raw_len
        self._need(raw_len + 1)
        trailer = self._buffer[self._pos :]
        if len(trailer) < raw_len:
            raise PackError("early EOF")
        self._trailer.update(self._view[: self._pos])
        if trailer[:raw_len] != self._trailer.digest():
            raise PackError("pack is corrupted (checksum mismatch)")
        if len(trailer) > raw_len:
            raise PackError("pack has junk at the end")
        self._buffer = b""

    def _scan(self) -> None:
        """Read every entry. The hot loop: benchmarks/ingest.py."""
        limits = self._limits
        small = min(1 << 16, limits.object_bytes, limits.delta_bytes, limits.structure_bytes)
        header_bytes = 32 + self._raw_len
        new_inflater = decompressobj
        offsets_append = self._offsets.append
        crcs_append = self._crcs.append
        for index in range(self._total):
            if len(self._buffer) - self._pos < header_bytes:
                self._need(header_bytes)
            buffer = self._buffer
            first = pos = self._pos
            offset = self._start + first
            # PackFile.entry() inlined, over a stream: once for each object of a push (benchmarks/ingest.py)
            try:
                byte = buffer[pos]
                pos += 1
                kind = (byte >> 4) & 7
                size = byte & 15
                shift = 4
                while byte & 128:
                    byte = buffer[pos]
                    pos += 1
                    size |= (byte & 127) << shift
                    shift += 7
                    if shift > 67:
                        raise PackError(f"object at offset {offset}: size too large")
                base_offset = 0
                base_name = b""
                if kind == _OFS_DELTA:
                    byte = buffer[pos]
                    pos += 1
                    back = byte & 127
                    while byte & 128:
                        byte = buffer[pos]
                        pos += 1
                        back = ((back + 1) << 7) | (byte & 127)
                        if back > offset:
                            break
                    base_offset = offset - back
                    if not 12 <= base_offset < offset:
                        raise PackError(f"object at offset {offset}: delta base offset is out of bound")
                elif kind == _REF_DELTA:
                    base_name = buffer[pos : pos + self._raw_len]
                    if len(base_name) < self._raw_len:
                        raise PackError("early EOF")
                    pos += self._raw_len
                elif not COMMIT <= kind <= TAG:
                    raise PackError(f"object at offset {offset}: unknown object type {kind}")
            except IndexError:
                raise PackError("early EOF") from None
            self._pos = pos
            if size > small:
                self._check_size(kind, size)
            offsets_append(offset)
            self._offset = offset
            if kind == BLOB and size >= HUGE:
                self._crc = crc32(self._view[first:pos], 0)
                self._huge_blob(index, size)
                crcs_append(self._crc)
            else:
                # In the common case the whole entry is in the buffer, and inflates in one call.
                window = self._view[pos : pos + size + (size >> 9) + 64]
                inflater = new_inflater()
                try:
                    data = inflater.decompress(window, size + 1)
                    done = inflater.eof
                except InflateError:
                    raise PackError(f"object at offset {offset}: inflate returned an error") from None
                if done and len(data) == size:
                    end = pos + len(window) - len(inflater.unused_data)
                    crcs_append(crc32(self._view[first:end], 0))
                    self._pos = end
                else:
                    self._crc = crc32(self._view[first:pos], 0)
                    data = b"".join(self._arriving_pieces(size))
                    crcs_append(self._crc)
                if kind < _OFS_DELTA:
                    self._add(index, kind, data, _NO_BASE, 0)
                else:
                    self._add_delta(index, base_offset, base_name, data)
            if not index & (_TICK_OBJECTS - 1):
                self._tick(self._done, self._total)

    def _check_size(self, kind: int, size: int) -> None:
        limits = self._limits
        if kind == BLOB:
            limit = limits.object_bytes
        elif kind >= _OFS_DELTA:
            limit = limits.delta_bytes
        else:
            limit = limits.structure_bytes
        if size > limit:
            raise LimitExceeded(f"object of {size} bytes exceeds the limit of {limit}")

    def _arriving_pieces(self, size: int) -> Iterator[bytes]:
        """Inflate the zlib stream at `_pos` piece by piece, reading on; `_crc` takes in what it uses.

        Gives `size` bytes or raises.
        """
        inflater = decompressobj()
        left = size
        while not inflater.eof:
            window = self._view[self._pos : self._pos + _READ]
            if not window:
                if not self._fill():
                    raise PackError("early EOF")
                continue
            try:
                piece = inflater.decompress(window, min(left + 1, _PIECE))
            except InflateError:
                raise PackError(f"object at offset {self._offset}: inflate returned an error") from None
            rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            used = len(window) - len(rest)
            self._crc = crc32(window[:used], self._crc)
            self._pos += used
            left -= len(piece)
            if left < 0 or not (used or piece or inflater.eof):
                break
            self._work(len(piece))
            yield piece
        if left:
            raise PackError(f"object at offset {self._offset}: inflated size is not what it declares")

    def _huge_blob(self, index: int, size: int) -> None:
        """Hash a large blob while it arrives; the hasher that detects collisions wants a file for it."""
        if self._hasher.detects:
            fd, name = tempfile.mkstemp(prefix="tmp_obj_", dir=self._directory)
            path = Path(name)
            self._temporary.add(path)
            try:
                for piece in self._arriving_pieces(size):
                    _write_all(fd, piece)
            finally:
                os.close(fd)
            raw_oid = self._hasher.file_id(BLOB, path)
            path.unlink()
            self._temporary.discard(path)
        else:
            state = self._format.new_hash()
            state.update(object_header(BLOB, size))
            for piece in self._arriving_pieces(size):
                state.update(piece)
            raw_oid = state.digest()
        self._huge.add(index)
        self._record(index, BLOB, raw_oid, _NO_BASE, 0)

    def _work(self, count: int) -> None:
        self._work_bytes += count
        if self._work_bytes >= _TICK_BYTES:
            self._work_bytes = 0
            self._tick(self._done, self._total)

    # -- objects

    def _add(self, index: int, kind: int, data: bytes, parent: int, depth: int, delta: bytes = b"") -> bytes:
        """Take in an object: its oid, its references. `delta` made it of `parent`."""
        raw_oid = self._hasher.object_id(kind, data)
        self._cache.put(index, (kind, data))
        self._record(index, kind, raw_oid, parent, depth)
        if kind != BLOB:
            if kind == TREE and parent >= 0 and len(delta) * _SMALL_DELTA < len(data):
                self._add_tree_delta(index, raw_oid, data, parent, delta)
            else:
                if self._fsck is not None:
                    self._check(index, kind, raw_oid, data)
                try:
                    self._note_references(kind, data)
                except PackError as error:
                    raise bad_object(raw_oid, error) from error
        self._resolved_bytes += len(data)
        self._work_bytes += len(data)
        if self._work_bytes >= _TICK_BYTES:
            self._work(0)
        return raw_oid

    def _note_references(self, kind: int, data: bytes) -> None:
        own, wanted = self._own, self._wanted
        if kind == TREE:
            trees, blobs = tree_references(data, self._raw_len)
            wanted[TREE].update(trees.difference(own[TREE]))
            wanted[BLOB].update(blobs.difference(own[BLOB]))
        elif kind == COMMIT:
            commit = parse_commit(data, self._format)
            if commit.tree not in own[TREE]:
                wanted[TREE].add(commit.tree)
            wanted[COMMIT].update(parent for parent in commit.parents if parent not in own[COMMIT])
        else:
            target, declared = parse_tag(data, self._format)
            if target not in own[declared]:
                wanted[declared].add(target)

    def _check(self, index: int, kind: int, raw_oid: bytes, data: bytes) -> None:
        assert self._fsck is not None
        if self._fsck.check(kind, raw_oid, data) and kind == TREE:
            self._note_clean(index)

    def _note_clean(self, index: int) -> None:
        clean = self._clean
        if index >= len(clean):
            clean.extend(bytes(index + 1 - len(clean)))
        clean[index] = 1

    def _add_tree_delta(self, index: int, raw_oid: bytes, data: bytes, base: int, delta: bytes) -> None:
        """Note and check a tree by what differs from its base."""
        fsck = self._fsck
        changes = TreeChanges() if fsck is not None and fsck.follows_changes else None
        try:
            self._note_tree_delta(index, data, base, delta, changes)
        except PackError as error:
            if fsck is not None:
                fsck.check(TREE, raw_oid, data)  # it says so in git's words
            raise bad_object(raw_oid, error) from error
        if fsck is None:
            return
        is_base_clean = base < len(self._clean) and self._clean[base]
        if changes is None or not is_base_clean or not changes.is_each_copied_once:
            self._check(index, TREE, raw_oid, data)
        elif fsck.check_changes(raw_oid, data, changes.fresh):
            self._note_clean(index)

    def _read_for_fsck(self, raw_oid: bytes, limit_bytes: int) -> tuple[int, bytes] | None:
        """Give an object of the pack, or else of the repository; see `Fsck.finish`."""
        self._work(0)
        index = self._indexes().get(raw_oid)
        if index is not None:
            kind = self._kind_of(index)
            if kind != BLOB:
                return kind, b""
            if index in self._huge:
                offset, end = self._extent(index)
                size, _ = self._entry_size(os.pread(self._fd, min(end - offset, 64), offset))
                if size > limit_bytes:
                    return None
            data = b"".join(self._all_pieces(index))
            self._work(len(data))
            return (kind, data) if len(data) <= limit_bytes else None
        kind, size = self._bases.size_of(raw_oid)
        if kind != BLOB:
            return kind, b""
        if size > limit_bytes:
            return None
        self._work(size)
        return self._bases.read(raw_oid, limit_bytes=limit_bytes)

    def _note_tree_delta(
        self, index: int, data: bytes, base: int, delta: bytes, changes: TreeChanges | None
    ) -> None:
        """Note what a tree refers to that its base, noted before, does not."""
        cache = self._tree_ends
        base_ends = cache.get(base)
        if base_ends is None:
            base_ends = entry_ends(self._content(base)[1], self._raw_len)
            self._keep_ends(base, base_ends)
        else:
            cache.move_to_end(base)
        trees, blobs, ends = delta_references(base_ends, delta, data, self._raw_len, changes)
        self._wanted[TREE].update(trees.difference(self._own[TREE]))
        self._wanted[BLOB].update(blobs.difference(self._own[BLOB]))
        self._keep_ends(index, ends)

    def _keep_ends(self, index: int, ends: "array[int]") -> None:
        cache = self._tree_ends
        cache[index] = ends
        self._tree_entries += len(ends) + _ENDS_OVERHEAD
        while self._tree_entries > _ENDS_KEPT and len(cache) > 1:
            self._tree_entries -= len(cache.popitem(last=False)[1]) + _ENDS_OVERHEAD

    def _record(self, index: int, kind: int, raw_oid: bytes, parent: int, depth: int) -> None:
        if index == len(self._types):
            self._types.append(kind)
            self._names += raw_oid
            self._parents.append(parent)
            self._depths.append(depth)
        else:  # a deferred delta
            self._types[index] = kind
            self._names[index * self._raw_len : (index + 1) * self._raw_len] = raw_oid
            self._parents[index] = parent
            self._depths[index] = depth
        self._done += 1
        own = self._own[kind]
        if raw_oid in own:
            self._repeated.add(raw_oid)
            self._check_repeated(index, raw_oid)
            return
        own.add(raw_oid)
        self._wanted[kind].discard(raw_oid)
        if self._index_of is not None:
            self._index_of[raw_oid] = index
        batch = self._batch
        batch[raw_oid] = index
        if len(batch) >= _BATCH_OBJECTS:
            self._check_known()

    def _defer(self, index: int) -> None:
        assert index == len(self._types)
        self._types.append(0)
        self._names += bytes(self._raw_len)
        self._parents.append(_NO_BASE)
        self._depths.append(0)

    def _add_delta(self, index: int, base_offset: int, base_name: bytes, delta: bytes) -> None:
        """Resolve a delta that has just arrived, or note what it waits for."""
        if base_name:
            self._ref_bases.add(base_name)
            base = self._find_base(base_name)
            if base is None:
                self._awaiting_name.setdefault(base_name, []).append(index)
                self._defer(index)
                return
        else:
            offsets = self._offsets
            base = bisect_left(offsets, base_offset, 0, index)
            if base == index or offsets[base] != base_offset:
                raise PackError(f"object at offset {offsets[index]}: delta base offset is no object")
        if base >= 0 and not (self._types[base] and self._is_near(base)):
            self._awaiting_object.setdefault(base, []).append(index)
            self._defer(index)
            return
        self._resolve(index, base, delta)

    def _find_base(self, raw_oid: bytes) -> int | None:
        """Find a REF_DELTA's base: its index, `_THIN` and below for one in the repository, or None."""
        index_of = self._indexes()
        base = index_of.get(raw_oid)
        if base is None:
            base = self._thin_places.get(raw_oid)
            if base is None and raw_oid not in self._awaiting_name:
                try:
                    item = self._bases.read(raw_oid, limit_bytes=self._limits.delta_bytes)
                except ObjectMissing:
                    return None
                base = _THIN - len(self._thin)
                self._thin.append(raw_oid)
                self._thin_places[raw_oid] = base
                self._cache.put(base, item)
        return base

    def _indexes(self) -> dict[bytes, int]:
        """Give raw oid -> index of all that is resolved. Built when first needed: most packs never do."""
        index_of = self._index_of
        if index_of is None:
            index_of = self._index_of = {}
            for index, kind in enumerate(self._types):
                if kind:
                    index_of.setdefault(self._name(index), index)
        return index_of

    def _kind_of(self, index: int) -> int:
        """Give the type of a resolved object."""
        return self._types[index]

    def _parent(self, index: int) -> int:
        return self._parents[index]

    def _has(self, raw_oid: bytes) -> bool:
        """Tell whether the peer sent this object."""
        return any(raw_oid in objects for objects in self._own)

    def _name(self, index: int) -> bytes:
        return bytes(self._names[index * self._raw_len : (index + 1) * self._raw_len])

    def _resolve(self, index: int, base: int, delta: bytes) -> bytes:
        depth = 1 if base <= _THIN else self._depths[base] + 1
        limits = self._limits
        if depth > limits.delta_depth:
            raise LimitExceeded(f"delta chain is deeper than {limits.delta_depth}")
        base_size, result_size, _ = delta_sizes(delta)
        self._check_size(_OFS_DELTA, max(base_size, result_size))
        kind, base_data = self._content(base)
        self._check_size(kind, result_size)
        try:
            data = apply_delta(base_data, delta)
        except PackError as error:
            raise PackError(f"object at offset {self._offsets[index]}: {error}") from error
        return self._add(index, kind, data, base, depth, delta)

    def _content(self, index: int) -> tuple[int, bytes]:
        """Give an object's type and data, from the cache or by inflating its chain again from the file.

        `index` may be `_THIN` or below. Holds a base, a delta and a result, each within `limits.delta_bytes`.
        """
        cache = self._cache
        chain = []
        at = index
        while True:
            item = cache.get(at)
            if item is not None:
                break
            if at <= _THIN:
                item = self._bases.read(self._thin[_THIN - at], limit_bytes=self._limits.delta_bytes)
                cache.put(at, item)
                break
            parent = self._parents[at]
            if parent == _NO_BASE:
                item = (self._types[at], self._entry_data(at))
                cache.put(at, item)
                break
            chain.append(at)
            at = parent
        kind, data = item
        while chain:
            at = chain.pop()
            data = apply_delta(data, self._entry_data(at), limit_bytes=self._limits.delta_bytes)
            cache.put(at, (kind, data))
            self._rebuilt_bytes += len(data)
            if self._rebuilt_bytes > REBUILT_TIMES * self._resolved_bytes + REBUILT_BYTES:
                raise LimitExceeded("the pack's delta chains take too long to follow")
            self._work(len(data))
        return kind, data

    def _is_near(self, index: int) -> bool:
        """Tell whether an object is in the cache, or few deltas away from one that is, or from a whole one.

        What is not near is left to the end, where each base is built once for all that wait for it: else a
        pack of interleaved deep chains would have us build each of them again for each of its links.
        """
        cache, parents = self._cache, self._parents
        for _ in range(_PATIENCE):
            if index in cache or index <= _THIN or parents[index] == _NO_BASE:
                return True
            index = parents[index]
        return False

    def _entry_data(self, index: int) -> bytes:
        """Inflate an entry again, out of the file: an object's data, or a delta."""
        offset, end = self._extent(index)
        stored = os.pread(self._fd, min(end - offset, _PIECE), offset)
        size, start = self._entry_size(stored)
        self._check_size(_OFS_DELTA, size)
        if len(stored) == end - offset:
            return inflate(stored, start, size)[0]
        return b"".join(self._stored_pieces(offset + start, end, size))

    def _extent(self, index: int) -> tuple[int, int]:
        offsets = self._offsets
        if index + 1 < len(offsets):
            return offsets[index], offsets[index + 1]
        return offsets[index], self._end or self._start + self._pos

    def _entry_size(self, stored: bytes) -> tuple[int, int]:
        """Read an entry's header, found good before: inflated size, place of the zlib stream in `stored`."""
        byte = stored[0]
        kind = (byte >> 4) & 7
        size = byte & 15
        pos = 1
        shift = 4
        while byte & 128:
            byte = stored[pos]
            size |= (byte & 127) << shift
            shift += 7
            pos += 1
        if kind == _OFS_DELTA:
            while stored[pos] & 128:
                pos += 1
            pos += 1
        elif kind == _REF_DELTA:
            pos += self._raw_len
        return size, pos

    def _stored_pieces(self, start: int, end: int, size: int) -> Iterator[bytes]:
        inflater = decompressobj()
        left = size
        rest = b""
        try:
            while not inflater.eof:
                window = rest or os.pread(self._fd, min(_READ, end - start), start)
                if not rest:
                    start += len(window)
                piece = inflater.decompress(window, _PIECE)
                rest = inflater.unconsumed_tail
                left -= len(piece)
                if left < 0 or not (window or piece):
                    break
                yield piece
        except InflateError as error:
            raise PackError("a stored entry can't be inflated any more") from error
        if left:
            raise PackError("a stored entry can't be inflated any more")

    # -- the end

    def _resolve_deferred(self) -> None:
        """Resolve what waited for bases that came later, depth first: so the cache holds what is needed."""
        if self._done == self._total:
            return
        types, objects, names = self._types, self._awaiting_object, self._awaiting_name
        roots = [index for index in objects if types[index]]
        if names:
            index_of = self._indexes()
            roots += [index_of[raw_oid] for raw_oid in names if raw_oid in index_of]
        roots.sort()  # neighbours have bases in common
        for root in roots:
            stack = [(root, self._take_waiting(root))]
            while stack:
                base, waiting = stack.pop()
                if not waiting:
                    continue
                index = waiting.pop()
                if waiting:
                    stack.append((base, waiting))
                self._resolve(index, base, self._entry_data(index))
                stack.append((index, self._take_waiting(index)))
                if not self._done & (_TICK_OBJECTS - 1):
                    self._tick(self._done, self._total)
        unresolved = self._total - self._done
        if unresolved:
            missing = to_hex(next(iter(self._awaiting_name))).decode()
            raise PackError(f"pack has {unresolved} unresolved deltas: no base {missing}")

    def _take_waiting(self, index: int) -> list[int]:
        """Give what waits for an object, to be taken from the end: first what nothing else waits for.

        So the base is still in the cache for these, and need not be built again after a deep one.
        """
        waiting = self._awaiting_object.pop(index, [])
        if self._awaiting_name:
            waiting += self._awaiting_name.pop(self._name(index), [])
        if len(waiting) > 1:
            waiting.sort(key=self._awaiting_object.__contains__, reverse=True)
        return waiting

    def _check_repeated(self, index: int, raw_oid: bytes) -> None:
        """Compare an object that the pack has twice: git takes such packs, and so do we."""
        first = self._indexes()[raw_oid]
        if first != index and not self._same(index, self._all_pieces(first)):
            raise collision(raw_oid)

    def _check_known(self) -> None:
        """Compare the objects of this batch that the repository has too, byte by byte, as JGit does.

        Hashes are believed to differ when contents do, but what is served to others is never replaced.
        """
        batch, self._batch = self._batch, {}
        for raw_oid in self._bases.present(batch):
            index = batch[raw_oid]
            try:
                kind, pieces = self._known_pieces(raw_oid)
            except ObjectMissing:  # a repack or gc was faster
                continue
            if kind != self._kind_of(index) or not self._same(index, pieces):
                raise collision(raw_oid)

    def _known_pieces(self, raw_oid: bytes) -> tuple[int, Iterable[bytes]]:
        """Give type and data of an object in the repository."""
        kind, size = self._bases.size_of(raw_oid)
        if size >= HUGE and kind == BLOB:
            found = self._bases.locate(raw_oid)
            if found is not None:
                pack, offset = found
                stored, size, _, start = pack.entry(offset)
                if stored == BLOB:
                    return kind, inflated_pieces(pack.data, start, size)
            else:
                loose = self._bases.open_loose(raw_oid)
                if loose is not None:
                    return kind, _closing(loose)
        kind, data = self._bases.read(raw_oid, limit_bytes=self._limits.delta_bytes)
        return kind, (data,)

    def _all_pieces(self, index: int) -> Iterable[bytes]:
        if index in self._huge:
            offset, end = self._extent(index)
            size, start = self._entry_size(os.pread(self._fd, min(end - offset, 64), offset))
            return self._stored_pieces(offset + start, end, size)
        return (self._content(index)[1],)

    def _same(self, index: int, pieces: Iterable[bytes]) -> bool:
        """Tell whether these pieces are the object's data, holding no more than one of each side's."""
        ours = iter(self._all_pieces(index))
        left = b""
        for theirs in pieces:
            pos = 0
            while pos < len(theirs):
                if not left:
                    left = next(ours, b"")
                    if not left:
                        return False
                count = min(len(left), len(theirs) - pos)
                if left[:count] != theirs[pos : pos + count]:
                    return False
                left = left[count:]
                pos += count
        return not left and not any(ours)

    def _outside(self) -> tuple[OidTypes, OidTypes]:
        """Give `PackFacts.outside` and `.conflicting`.

        Raises: PackError when two objects of different types have one id.
        """
        own, wanted = self._own, self._wanted
        seen: set[bytes] = set()
        for objects in own:
            if not seen.isdisjoint(objects):
                raise PackError(
                    "SHA1 COLLISION FOUND: two objects of the pack, of different types, with one id"
                )
            seen |= objects
        outside: dict[bytes, int] = {}
        conflicting: dict[bytes, int] = {}
        for kind in TYPE_NAMES:
            for raw_oid in wanted[kind]:
                if raw_oid in seen or raw_oid in outside:
                    conflicting[raw_oid] = kind
                else:
                    outside[raw_oid] = kind
            wanted[kind].clear()
        return OidTypes.of(outside, self._raw_len), OidTypes.of(conflicting, self._raw_len)

    def _repeated_base(self) -> bytes | None:
        """Give a raw oid that a REF_DELTA names and the pack has more than once."""
        return next(iter(self._repeated & self._ref_bases), None)

    def _deepest(self) -> int:
        return max(self._depths)

    def _check_bases(self) -> None:
        """Make sure that whoever reads the pack later finds the bases that were used here.

        A REF_DELTA names its base, and readers look the name up in the pack. A base taken out of the
        repository may be in the pack as well, further on, as a delta itself: in the end on what builds on it.
        Each of the two can be resolved here, and neither ever again: git itself goes round in that circle for
        ever. Of an object that the pack has twice, readers may take either; git: builtin/index-pack.c
        resolve_delta(), "duplicate base?".
        """
        repeated = self._repeated_base()
        if repeated is not None:
            raise PackError(f"a REF_DELTA's base is in the pack twice: {to_hex(repeated).decode()}")
        inside = [self._has(raw_oid) for raw_oid in self._thin]
        if not any(inside):
            return
        index_of = self._indexes()
        depths: dict[int, int] = {}  # index -> deltas down to a whole object, as they will be stored
        for raw_oid, is_inside in zip(self._thin, inside, strict=True):
            path: dict[int, None] = {}
            at = index_of[raw_oid] if is_inside else _NO_BASE
            while at >= 0 and at not in depths:
                if at in path:
                    raise PackError(f"delta cycle through {to_hex(raw_oid).decode()}")
                path[at] = None
                at = self._parent(at)
                if at <= _THIN and inside[_THIN - at]:
                    at = index_of[self._thin[_THIN - at]]
            depth = depths.get(at, 0 if at <= _THIN else -1)
            for index in reversed(path):
                depth += 1
                depths[index] = depth
        if max(depths.values()) + self._deepest() > self._limits.delta_depth:
            raise LimitExceeded(f"delta chain is deeper than {self._limits.delta_depth}")

    def _complete(self) -> bytes:
        """Append the bases that the pack lacks, and give the pack's checksum.

        As git: builtin/index-pack.c conclude_pack(), fix_unresolved_deltas().
        """
        lacking = [place for place, raw_oid in enumerate(self._thin) if not self._has(raw_oid)]
        if not lacking:
            return self._trailer.digest()
        os.ftruncate(self._fd, self._end)
        os.lseek(self._fd, self._end, os.SEEK_SET)
        for place in lacking:
            kind, data = self._content(_THIN - place)
            # level 1: as git, so that its pack is the same (git: environment.c zlib_compression_level)
            entry = _entry_header(kind, len(data)) + zlib.compress(data, 1)
            _write_all(self._fd, entry)
            self._append(kind, self._thin[place], crc32(entry, 0), self._end, self._end + len(entry))
            self._end += len(entry)
            self._work(len(data))
        os.pwrite(self._fd, struct.pack(">I", self._total + len(lacking)), 8)
        checksum = self._format.new_hash()
        offset = 0
        while piece := os.pread(self._fd, _PIECE, offset):
            checksum.update(piece)
            offset += len(piece)
            self._work(len(piece))
        _write_all(self._fd, checksum.digest())
        return checksum.digest()

    def _append(self, kind: int, raw_oid: bytes, crc: int, offset: int, end: int) -> None:
        """Note an entry, from `offset` to `end`, that completes the pack."""
        self._offsets.append(offset)
        self._crcs.append(crc)
        self._types.append(kind)
        self._names += raw_oid

    def _tables(self) -> tuple[Bytes, Numbers, Numbers]:
        """Give names, crc32s and offsets of all entries, and let go of what is needed no more."""
        self._cache.clear()
        self._tree_ends.clear()
        self._index_of = None
        return self._names, self._crcs, self._offsets

    def _own_types(self, order: "array[int]") -> bytes:
        """Give each object's type in the index's order: 0 for what is no object of the peer's, and for all
        but one of those with the same name."""
        types = self._types
        types[self._total :] = bytes(len(types) - self._total)
        found = bytearray(map(types.__getitem__, order))
        if self._repeated:
            before = b""
            for place, index in enumerate(order):
                name = self._name(index)
                if name == before:
                    found[place] = 0
                before = name
        return bytes(found)

    def _write_files(self, checksum: bytes) -> OidTypes:
        """Write the indexes, give all three files their names: the index last, as it makes a pack visible."""
        names, crcs, offsets = self._tables()
        order = order_by_name(names, self._raw_len)
        index = self._write("tmp_idx_", index_pieces(names, crcs, offsets, order, checksum, self._format))
        reverse = self._write("tmp_rev_", reverse_index_pieces(order, checksum, self._format))
        own = OidTypes.of_index(index, self._own_types(order), self._raw_len)
        os.fchmod(self._fd, 0o444)
        stem = f"pack-{checksum.hex()}"
        placed = []
        try:
            for path, suffix in ((self._pack_path, ".pack"), (reverse, ".rev"), (index, ".idx")):
                final = self._directory / (stem + suffix)
                path.rename(final)
                self._temporary.discard(path)
                placed.append(final)
        except BaseException:
            self._temporary.update(placed)
            raise
        return own

    def _write(self, prefix: str, pieces: Iterable[bytes]) -> Path:
        fd, name = tempfile.mkstemp(prefix=prefix, dir=self._directory)
        path = Path(name)
        self._temporary.add(path)
        try:
            for piece in pieces:
                _write_all(fd, piece)
            os.fchmod(fd, 0o444)
        finally:
            os.close(fd)
        return path


def _show_bytes(count: int) -> str:
    """git: strbuf.c humanise_bytes()."""
    if count > 1 << 30:
        return f"{count >> 30}.{(count & (1 << 30) - 1) // 10737419:02} GiB"
    for shift, rounding, unit in ((20, 5243, "MiB"), (10, 5, "KiB")):
        if count > 1 << shift:
            rounded = count + rounding
            return f"{rounded >> shift}.{((rounded & (1 << shift) - 1) * 100) >> shift:02} {unit}"
    return f"{count} byte" if count == 1 else f"{count} bytes"


def bad_object(raw_oid: bytes, error: PackError) -> PackError:
    return PackError(f"bad object {to_hex(raw_oid).decode()}: {error}")


def collision(raw_oid: bytes) -> PackError:
    # git: builtin/index-pack.c check_collison()
    return PackError(f"SHA1 COLLISION FOUND WITH {to_hex(raw_oid).decode()} !")


def _closing(loose: LooseObject) -> Iterator[bytes]:
    with loose:
        yield from loose.pieces()


def _entry_header(kind: int, size: int) -> bytes:
    """Encode a pack entry's type and size (gitformat-pack, "Size encoding")."""
    byte = kind << 4 | size & 15
    size >>= 4
    header = bytearray()
    while size:
        header.append(byte | 128)
        byte = size & 127
        size >>= 7
    header.append(byte)
    return bytes(header)


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])
