"""Reachability bitmaps: for chosen commits, all objects that they reach. Read, and written.

    .bitmap  header, four bitmaps by type, one bitmap for each chosen commit (xor-ed with an earlier one's),
    trailer bits     of one pack, by offset; or of a multi-pack-index, in its order: spread to numbers of a
    PackMap

Read from objects/pack: a multi-pack-index's, else that of the largest pack which has one, as git uses one
too. A bitmap's checksum is computed once, by the first process that opens it: bits that flipped, a file cut
short, a pack that was replaced meanwhile all mean that there is none. Every number in it is checked besides.
The lookup table and the cache of name hashes are passed over: going through the entries costs next to
nothing. What was found for a commit between bitmaps is kept as a bitmap in memory, for whoever comes next.

Written: more densely the nearer to the tips, so that who lacks a few hundred commits is served with hardly
any history read. Memory while writing: two sets of bits for each commit that is chosen, packed.

Format: bitmap-format. git: pack-bitmap.c, pack-bitmap-write.c.
"""

import logging
import os
import struct
import threading
import weakref
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from gitsmart.errors import ObjectMissing, PackError
from gitsmart.pack.chunkfile import is_intact
from gitsmart.pack.ewah import combine, ewah_size, read_entries, spread, write_ewah, xor_ewah
from gitsmart.pack.mapping import map_checked
from gitsmart.pack.midx import pack_order, read_midx, write_midx
from gitsmart.pack.objects import BLOB, COMMIT, TAG, TREE, ObjectFormat
from gitsmart.pack.packfile import PackFile
from gitsmart.pack.packmap import PackMap, pack_map
from gitsmart.pack.reach import BrokenError, Reach
from gitsmart.pack.store import ObjectStore
from gitsmart.pack.writefile import write_file

__all__ = [
    "BitmapFile",
    "Bitmaps",
    "bitmaps_of",
    "format_bitmap",
    "select_commits",
    "write_bitmap",
    "write_multi_pack_index",
]

Tick = Callable[[int], None]


def _no_tick(number: int) -> None:
    """Nobody waits."""


_logger = logging.getLogger(__name__)

_FULL_DAG, _NAME_HASHES, _LOOKUP_TABLE = 1, 4, 16
_XOR_MOST = 160
# Filled-in bitmaps held for a store
_FILLED_BYTES = 8 << 20


class BitmapFile:
    """One .bitmap file, as it is: bits in its own order, commits by their places in the index."""

    def __init__(
        self, data: memoryview, number: int, checksum: bytes, fmt: ObjectFormat, *, is_checked: bool = False
    ) -> None:
        """Take in `data`, for `number` objects of the pack or multi-pack-index with that checksum.

        Args:
            is_checked: it is known to end in its own checksum.

        Raises:
            PackError: it is broken, of another version, or of something else.
        """
        raw_len = fmt.raw_len
        start = 12 + raw_len
        if len(data) < start + raw_len or bytes(data[:4]) != b"BITM":
            raise PackError("a file is no bitmap")
        version, flags, entries = struct.unpack_from(">HHI", data, 4)
        if version != 1 or not flags & _FULL_DAG:
            raise PackError("a bitmap is of another kind")
        if bytes(data[12:start]) != checksum:
            raise PackError("a bitmap belongs to another pack")
        if not is_checked and not is_intact(data, fmt):
            raise PackError("a bitmap has a wrong checksum")
        self._data = data[: len(data) - raw_len]
        self.number = number
        self._size = (number + 63) // 64 * 8
        at = start
        self._types: list[int] = []
        for _ in range(4):
            self._types.append(at)
            at = self._behind(at)
        self.commits: Sequence[int] = []
        """For each entry, where its commit is in the index."""
        # For each entry: where its bits are; how many entries before is the one that it is xor-ed with, or 0.
        self._places: Sequence[int] = []
        self._bases: Sequence[int] = []
        found = read_entries(self._data, at, entries, number, _XOR_MOST)
        if found is None:
            raise PackError("a bitmap is cut short, or points outside of it")
        self.commits, self._places, self._bases = found

    def _behind(self, at: int) -> int:
        size = ewah_size(self._data, at)
        if size is None:
            raise PackError("a bitmap is cut short")
        return at + size

    def bits(self, row: int) -> bytearray:
        """Return the bits of an entry.

        Raises:
            PackError: it is broken.
        """
        out = bytearray(self._size)
        while True:
            if not xor_ewah(out, self._data[self._places[row] :]):
                raise PackError("a bitmap is broken")
            if not self._bases[row]:
                return out
            row -= self._bases[row]

    def of_type(self, kind: int) -> bytearray:
        """Return the bits of all objects of a type.

        Raises:
            PackError: they are broken.
        """
        out = bytearray(self._size)
        at = self._types[(COMMIT, TREE, BLOB, TAG).index(kind)]
        if not xor_ewah(out, self._data[at:]):
            raise PackError("a bitmap is broken")
        return out


class Bitmaps:
    """The bitmaps that a store has, by numbers of a PackMap. Thread-safe."""

    def __init__(
        self, whole: PackMap, file: BitmapFile, places: "array[int] | None", numbers: Sequence[int]
    ) -> None:
        """Join a file with a map.

        Args:
            places: for each bit of the file, the object's number; None when they are the same.
            numbers: of the commits of the file's entries.
        """
        self.map = whole
        self._file = file
        self._places = places
        self._rows = {number: row for row, number in enumerate(numbers)}
        self._filled: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._stops = bytes(whole.bits_of(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def stops(self) -> bytes:
        """Return the bits of all commits that `bits` knows."""
        return self._stops

    def bits(self, number: int) -> bytes | bytearray | None:
        """Return what the commit of that number reaches, as bits of the map; None when that isn't known (any
        more: after one that is broken, all are forgotten)."""
        with self._lock:
            filled = self._filled.get(number)
            if filled is not None:
                self._filled.move_to_end(number)
                return filled
            row = self._rows.get(number)
        if row is None:
            return None
        try:
            found = self._file.bits(row)
            if self._places is None:
                if self._file.number % 64 and int.from_bytes(found[-8:], "little") >> self._file.number % 64:
                    # They would be taken for the next pack's objects
                    raise PackError("a bitmap has bits that stand for nothing")
                found.extend(bytes(max(0, (self.map.total + 63) // 64 * 8 - len(found))))
                return found
            out = self.map.empty()
            if not spread(bytes(found), memoryview(self._places), out):
                raise PackError("a bitmap has bits that stand for nothing")
            return out
        except PackError as error:
            _logger.warning("ignored a bitmap: %s", error)
            with self._lock:
                # None of them is to be trusted then.
                self._rows = {}
                self._stops = bytes(self.map.bits_of(self._filled))
            return None

    def keep(self, number: int, bits: bytes) -> None:
        """Note what a commit without bitmap reaches."""
        with self._lock:
            self._filled[number] = bits
            size = len(bits)
            dropped = False
            while self._filled and len(self._filled) * size > _FILLED_BYTES:
                self._filled.popitem(last=False)
                dropped = True
            if dropped:
                self._stops = bytes(self.map.bits_of([*self._rows, *self._filled]))
            else:
                stops = bytearray(self._stops)
                stops[number >> 3] |= 1 << (number & 7)
                self._stops = bytes(stops)


class _Found:
    """What a store's last look for bitmaps found."""

    def __init__(self, key: object, packs: tuple[PackFile, ...]) -> None:
        self.key = key
        self.packs = packs
        self.bitmaps: Bitmaps | None = None


_found: "weakref.WeakKeyDictionary[ObjectStore, _Found]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def bitmaps_of(store: ObjectStore) -> Bitmaps | None:
    """Return the bitmaps of the packs that a store knows now; None when there are none of use.

    Costs a stat for each pack directory while nothing changes there.
    """
    packs = store.packs()
    directories = list(dict.fromkeys(pack.path.parent for pack in packs))
    key = []
    for directory in directories:
        try:
            stat = os.stat(directory)
        except OSError:
            return None
        key.append((stat.st_mtime_ns, stat.st_ino))
    with _lock:
        found = _found.get(store)
    if found is not None and found.key == key and found.packs == packs:
        return found.bitmaps
    found = _Found(key, packs)
    found.bitmaps = _look(store, packs, directories)
    with _lock:
        _found[store] = found
    return found.bitmaps


def _look(store: ObjectStore, packs: Sequence[PackFile], directories: Iterable[Path]) -> Bitmaps | None:
    for directory in directories:
        try:
            return _of_midx(store, packs, directory)
        except FileNotFoundError:
            pass
        except (OSError, PackError) as error:
            _logger.warning("ignored the multi-pack-index in %s: %s", directory, error)
    for pack in sorted(packs, key=lambda pack: pack.count, reverse=True):
        path = pack.path.with_suffix(".bitmap")
        try:
            return _of_pack(store, pack, path)
        except FileNotFoundError:
            pass
        except (OSError, PackError) as error:
            _logger.warning("ignored %s: %s", path, error)
    return None


def _open(path: Path, number: int, checksum: bytes, fmt: ObjectFormat) -> BitmapFile:
    data = map_checked(path, partial(is_intact, fmt=fmt), b"sum" + fmt.name)
    if data is None:
        raise PackError("a bitmap has a wrong checksum")
    return BitmapFile(data, number, checksum, fmt, is_checked=True)


def _of_pack(store: ObjectStore, pack: PackFile, path: Path) -> Bitmaps:
    file = _open(path, pack.count, pack.checksum, store.format)
    whole = pack_map(store, first=(pack,))
    if not whole.packs or whole.packs[0] is not pack:
        raise FileNotFoundError
    numbers = [whole.number_at(0, position) for position in file.commits]
    return Bitmaps(whole, file, None, numbers)


def _of_midx(store: ObjectStore, packs: Sequence[PackFile], directory: Path) -> Bitmaps:
    # Without a bitmap there is no need to look at the index.
    if not any(
        name.startswith("multi-pack-index-") and name.endswith(".bitmap") for name in os.listdir(directory)
    ):
        raise FileNotFoundError
    index = read_midx(directory, store.format)
    path = directory / f"multi-pack-index-{index.checksum.hex()}.bitmap"
    file = _open(path, index.count, index.checksum, store.format)
    here = {pack.path.stem + ".idx": pack for pack in packs if pack.path.parent == directory}
    if not all(name in here for name in index.pack_names):
        raise PackError("it spans packs that are gone")
    whole = pack_map(store, first=[here[name] for name in index.pack_names])
    raw_len = store.format.raw_len
    in_order = index.in_order(raw_len)
    numbers = whole.numbers_of(in_order)
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers) or len(set(known)) < len(known):
        raise PackError("it names objects that its packs don't hold, or some twice")
    names = index.names
    commits = [bytes(names[at * raw_len : (at + 1) * raw_len]) for at in file.commits]
    rows = whole.numbers_of(commits)
    places = array("I", known)
    return Bitmaps(whole, file, places, [number for number in rows if number is not None])


# -- writing


def select_commits(
    store: ObjectStore, tips: Iterable[bytes], *, dense: int = 8, most: int = 2000
) -> list[bytes]:
    """Choose which commits get a bitmap, newest first: raw oids.

    Every tip; and along each tip's first parents, as far as no other tip's line has been met, one in each
    tenth of the way that lies behind, but no closer than `dense` commits.

    Raises:
        ObjectMissing, PackError: history is broken.
    """
    chosen: dict[bytes, int] = {}
    heads = []
    for tip in tips:
        try:
            _, raw_oid, kind = store.peel(tip)
        except ObjectMissing:
            continue
        if kind == COMMIT:
            heads.append((store.commit(raw_oid).date, raw_oid))
    heads.sort(reverse=True)
    passed: set[bytes] = set()
    for date, raw_oid in heads:
        if len(chosen) >= most:
            break
        chosen[raw_oid] = date
        behind = last = 0
        while raw_oid not in passed:
            passed.add(raw_oid)
            commit = store.commit(raw_oid)
            if behind - last >= max(dense, behind // 10) and len(chosen) < most:
                last = behind
                chosen.setdefault(raw_oid, commit.date)
            if not commit.parents:
                break
            raw_oid = commit.parents[0]
            behind += 1
    return sorted(chosen, key=lambda raw_oid: chosen[raw_oid], reverse=True)


def format_bitmap(
    rows: Sequence[tuple[int, Callable[[], bytearray]]],
    types: Sequence[bytes | bytearray],
    checksum: bytes,
    fmt: ObjectFormat,
) -> bytes:
    """Make a .bitmap file.

    Args:
        rows: for each commit its place in the index, and its bits in the file's order (a multiple of 8
        bytes). types: the bits of all commits, trees, blobs, tags. checksum: of the pack or multi-pack-index.
    """
    head = struct.pack(">4sHHI", b"BITM", 1, _FULL_DAG | _LOOKUP_TABLE, len(rows)) + checksum
    out = [head, *map(write_ewah, types)]
    at = sum(map(len, out))
    table: list[tuple[int, int, int]] = []
    before: list[bytearray] = []
    for row, (position, make) in enumerate(rows):
        bits = make()
        best, xor = write_ewah(bits), 0
        for back in range(1, min(len(before), 3) + 1):
            mixed = bytearray(bits)
            combine("xor", mixed, before[-back])
            packed = write_ewah(mixed)
            if len(packed) < len(best):
                best, xor = packed, back
        before = [*before[-2:], bits]
        table.append((position, at, row - xor if xor else -1))
        out.append(struct.pack(">IBB", position, xor, 0))
        out.append(best)
        at += 6 + len(best)
    by_place = sorted(range(len(table)), key=lambda row: table[row][0])
    place_of = {row: place for place, row in enumerate(by_place)}
    for row in by_place:
        position, offset, base = table[row]
        out.append(struct.pack(">IQI", position, offset, 0xFFFFFFFF if base < 0 else place_of[base]))
    data = b"".join(out)
    trailer = fmt.new_hash()
    trailer.update(data)
    return data + trailer.digest()


class _Growing:
    """What the commits reach that were done so far, packed."""

    def __init__(self, whole: PackMap) -> None:
        self.map = whole
        self._packed: dict[int, bytes] = {}
        self._stops = whole.empty()

    def stops(self) -> bytes:
        return bytes(self._stops)

    def bits(self, number: int) -> bytearray:
        out = self.map.empty()
        xor_ewah(out, self._packed[number])
        return out

    def keep(self, number: int, bits: bytes) -> None:
        self._packed[number] = write_ewah(bits + bytes(-len(bits) % 8))
        self._stops[number >> 3] |= 1 << (number & 7)


def write_bitmap(
    store: ObjectStore, pack: PackFile, tips: Iterable[bytes], *, tick: Tick = _no_tick
) -> Path | None:
    """Write the .bitmap of a pack, beside it. Returns its path; None when no tip has all that it reaches in
    it.

    Durable, and in place at once or not at all; one that was there is replaced. `tips` are raw oids, of tags
    or whatever refs hold. Takes some 5 us an object of the pack with a native module.

    Raises:
        OSError: it can't be written.
        PackError: an object is broken.
    """
    whole = PackMap((pack,), store.format.raw_len)
    found = _reach_all(store, whole, select_commits(store, (tip for tip in tips if tip in pack)), tick)
    if found is None:
        return None
    commits, growing = found
    rows = []
    for raw_oid, number in commits:
        position = pack.position_of(raw_oid)
        assert position is not None
        rows.append((position, number))
    data = format_bitmap(
        [(position, partial(growing.bits, number)) for position, number in rows],
        [whole.of_type(kind) for kind in (COMMIT, TREE, BLOB, TAG)],
        pack.checksum,
        store.format,
    )
    path = pack.path.with_suffix(".bitmap")
    write_file(path, data)
    return path


def write_multi_pack_index(
    store: ObjectStore,
    packs: Sequence[PackFile],
    tips: Iterable[bytes],
    *,
    preferred: PackFile | None = None,
    tick: Tick = _no_tick,
) -> Path:
    """Write the multi-pack-index of packs of one directory, and its bitmap, if any tip has all that it
    reaches in them. Returns the path of the index.

    Each is in place at once or not at all, the bitmap first; bitmaps of other indexes are removed.
    `preferred` is the largest pack, if none is given.

    Raises:
        FileExistsError: somebody else is at it (multi-pack-index.lock).
        OSError: they can't be written.
        PackError: there are no packs, or an object is broken.
    """
    fmt = store.format
    if not packs:
        raise PackError("a multi-pack-index needs packs")
    preferred = preferred or max(packs, key=lambda pack: pack.count)
    index = write_midx(packs, fmt, preferred=preferred)
    checksum = index[-fmt.raw_len :]
    directory = packs[0].path.parent
    whole = PackMap(pack_order(packs, preferred), fmt.raw_len)
    names = sorted({pack.name_at(position) for pack in whole.packs for position in range(pack.count)})
    # A number becomes a bit when it is its object's: of objects that are in several packs only one is.
    numbers = array("I", sorted(number for number in whole.numbers_of(names) if number is not None))
    places = array("I", bytes(4 * whole.total))
    for bit, number in enumerate(numbers):
        places[number] = bit

    def in_order(bits: bytes | bytearray) -> bytearray:
        out = bytearray((len(numbers) + 63) // 64 * 8)
        spread(bytes(bits), memoryview(places), out)
        return out

    found = _reach_all(store, whole, select_commits(store, tips), tick)
    path = directory / f"multi-pack-index-{checksum.hex()}.bitmap"
    if found is not None:
        commits, growing = found
        own = whole.bits_of(numbers)
        types = []
        for kind in (COMMIT, TREE, BLOB, TAG):
            bits = whole.of_type(kind)
            combine("and", bits, own)
            types.append(in_order(bits))
        rows = [
            (bisect_left(names, raw_oid), partial(_ordered, in_order, growing, number))
            for raw_oid, number in commits
        ]
        write_file(path, format_bitmap(rows, types, checksum, fmt))
    target = directory / "multi-pack-index"
    write_file(target, index, temporary=directory / "multi-pack-index.lock")
    for old in directory.glob("multi-pack-index-*"):
        if old.suffix in (".bitmap", ".rev") and old != path:
            old.unlink(missing_ok=True)
    return target


def _ordered(in_order: Callable[[bytearray], bytearray], growing: "_Growing", number: int) -> bytearray:
    return in_order(growing.bits(number))


def _reach_all(
    store: ObjectStore, whole: PackMap, commits: Sequence[bytes], tick: Tick
) -> tuple[list[tuple[bytes, int]], _Growing] | None:
    """Find what commits reach, the oldest first; those that reach something in no pack are left out."""
    growing = _Growing(whole)
    reach = Reach(store, whole, growing, tick=tick)
    done: list[tuple[bytes, int]] = []
    try:
        for raw_oid in reversed(commits):
            number = whole.number_of(raw_oid)
            if number is None:
                continue
            reach.reset()
            try:
                reach.add([(raw_oid, COMMIT)])
            except ObjectMissing:
                continue
            if not reach.loose:
                growing.keep(number, reach.bits())
                done.append((raw_oid, number))
    except BrokenError:
        raise PackError("an object is broken") from None
    done.reverse()
    return (done, growing) if done else None
