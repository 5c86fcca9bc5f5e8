"""One pack and its index, mapped: find an entry, read its header, unfold its delta chain.

    raw oid --.idx fan-out, names--> position --.idx offsets--> entry: header [base] zlib stream
    offset  --.rev, or sorting-----> position --.idx names----> raw oid

Formats: gitformat-pack (packs of version 2 and 3, .idx of version 1 and 2, .rev of version 1). A pack on disk
is self-contained: a REF_DELTA whose base is in no entry of the same pack is an error here.

Nothing in a pack or an index is trusted: every number is checked against the sizes seen at opening, and
whatever is broken raises `PackError`. Checksums are not computed (that is fsck's work); the index must name
the pack's own one.

Files are mapped and their descriptors closed at once, so that a repository of a thousand packs costs no
descriptors. A mapping lives as long as somebody holds the `PackFile` or a view into it: a pack that `git
repack` deleted stays readable for whoever is reading it.
"""

import re
import struct
import sys
import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Container, Sequence
from itertools import compress, count, islice
from math import isqrt
from operator import lt
from pathlib import Path

from gitsmart import native
from gitsmart.errors import LimitExceeded, PackError
from gitsmart.native import address_of
from gitsmart.native.entries import NOWHERE, Entries, Malformed, place_of
from gitsmart.pack.delta import apply_delta, delta_sizes
from gitsmart.pack.inflate import InflateError, decompressobj, inflate
from gitsmart.pack.mapping import map_file
from gitsmart.pack.objects import ObjectFormat
from gitsmart.pack.packorder import read_order, write_order

__all__ = ["OFS_DELTA", "REF_DELTA", "BaseCache", "PackFile"]

OFS_DELTA, REF_DELTA = 6, 7

# So many offsets are looked up in a mapped .rev, at 20 us each, before the table is built: 0.2 s for git.git.
_RANKS = 2000


class BaseCache:
    """Inflated objects that deltas may need again: least recently used ones go first. Thread-safe.

    Holds at most `limit_bytes` of object data, and no object above an eighth of that.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[tuple[int, int], tuple[int, bytes]] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> tuple[int, bytes] | None:
        """Return type and data under (serial of the pack, offset)."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: tuple[int, int], kind: int, data: bytes) -> None:
        """Keep an object, dropping the least recently used ones for it."""
        size = len(data)
        if size > self._limit_bytes >> 3:
            return
        with self._lock:
            entries = self._entries
            if key in entries:
                return
            entries[key] = (kind, data)
            self._held_bytes += size
            while self._held_bytes > self._limit_bytes:
                _, (_, dropped) = entries.popitem(last=False)
                self._held_bytes -= len(dropped)

    def forget(self, serial: int) -> None:
        """Drop what came from one pack."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == serial]:
                self._held_bytes -= len(self._entries.pop(key)[1])


# One for the process, whatever number of repositories it serves. 24 MiB: git's own default for this is 96
# MiB.
_BASES = BaseCache(24 << 20)
_SERIALS = count(1)


def _be32(data: memoryview) -> "array[int]":
    """Decode a table of big-endian 32-bit numbers."""
    table = array("I")
    assert table.itemsize == 4
    table.frombytes(data)
    if sys.byteorder == "little":
        table.byteswap()
    return table


class PackFile:
    """One pack with its index, read-only. Thread-safe; nothing to close.

    Offsets count bytes from the pack's start. An offset given to a method must come from this pack:
    `PackError` when it is out of bounds or does not start an entry (as far as that can be seen).
    """

    def __init__(self, path: Path, fmt: ObjectFormat, *, bases: BaseCache = _BASES) -> None:
        """Open `path`, which ends in `.pack`, and the `.idx` beside it.

        Raises:
            OSError: one of them can't be opened (FileNotFoundError: it went meanwhile).
            PackError: they are malformed, or do not belong together.
        """
        self.path = path
        self.format = fmt
        self.serial = next(_SERIALS)
        self._bases = bases
        index = map_file(path.with_suffix(".idx"))
        self.data = map_file(path)
        raw_len = fmt.raw_len
        if len(self.data) < 12 + raw_len or bytes(self.data[:4]) != b"PACK":
            raise PackError("a file is no pack")
        version, self.count = struct.unpack_from(">II", self.data, 4)
        if version not in (2, 3):
            raise PackError(f"a pack has version {version}")
        self.end = len(self.data) - raw_len
        """Where the trailing checksum starts."""
        self.checksum = bytes(self.data[self.end :])
        """The trailing checksum: of all entries, and names the file."""
        self._read_index(index)
        self._lock = threading.Lock()
        self._by_offset: tuple[Sequence[int], Sequence[int]] | None = None
        self._entries: Entries | None = None
        self._rev: memoryview | None = None
        self._rev_looked_for = False
        self._ranked = 0

    def _read_index(self, index: memoryview) -> None:
        raw_len = self.format.raw_len
        v2 = bytes(index[:4]) == b"\xfftOc"
        fan_start = 8 if v2 else 0
        if len(index) < fan_start + 1024 + 2 * raw_len:
            raise PackError("a pack index is cut short")
        if v2 and struct.unpack_from(">I", index, 4) != (2,):
            raise PackError("a pack index has an unknown version")
        fan = (0, *struct.unpack_from(">256I", index, fan_start))
        number = fan[256]
        if any(map(lt, islice(fan, 1, None), fan)):
            raise PackError("a pack index's fan-out table is not sorted")
        if number != self.count:
            raise PackError(f"a pack of {self.count} objects has an index of {number}")
        if index[-2 * raw_len : -raw_len] != self.data[self.end :]:
            raise PackError("a pack index belongs to another pack")
        names_start = fan_start + 1024
        if v2:
            offsets_start = names_start + number * (raw_len + 4)
            large_start = offsets_start + 4 * number
            large_bytes = len(index) - 2 * raw_len - large_start
            if large_bytes < 0 or large_bytes % 8:
                raise PackError("a pack index has the wrong size")
            self._names = index[names_start : names_start + number * raw_len]
            self._offsets = index[offsets_start:large_start]
            self._large = index[large_start : large_start + large_bytes]
        else:
            if len(index) != names_start + number * (4 + raw_len) + 2 * raw_len:
                raise PackError("a pack index has the wrong size")
            rows = re.findall(b"(?s)(.{4})(.{%d})" % raw_len, index[names_start : -2 * raw_len])
            self._names = memoryview(b"".join(name for _, name in rows))
            self._offsets = memoryview(b"".join(offset for offset, _ in rows))
            self._large = memoryview(b"")
        self._v2 = v2
        self._fan: tuple[int, ...] = fan
        self._fan_table = array("I", fan)
        self._names_at, self._fan_at = address_of(self._names), self._fan_table.buffer_info()[0]
        # Names are hashes, so their places are known by proportion. A bucket of n strays by sqrt(n)/2 at
        # most.
        self._stray = 8 + 2 * isqrt(max(map(int.__sub__, islice(fan, 1, None), fan)))

    def index_tables(self) -> tuple[memoryview, memoryview, memoryview, tuple[int, ...], bool]:
        """Return the index as it is stored: names, 4-byte offsets, 8-byte offsets, the fan-out with a 0 in
        front, and whether it is of version 2."""
        return self._names, self._offsets, self._large, self._fan, self._v2

    def reverse_index(self) -> memoryview | None:
        """Return the .rev file's table, nothing in it checked; None when there is none that fits."""
        with self._lock:
            return self._reverse()

    # -- raw oid -> offset

    def _position(self, raw_oid: bytes) -> int | None:
        """Return the place of a name in the index."""
        raw_len = self.format.raw_len
        if len(raw_oid) != raw_len:
            return None
        if native.available:
            place: int = place_of(self._names_at, self._fan_at, raw_len, raw_oid)
            return None if place == NOWHERE else place
        first = raw_oid[0]
        low, high = self._fan[first], self._fan[first + 1]
        stray = self._stray
        if high - low > 3 * stray:
            guess = low + ((high - low) * int.from_bytes(raw_oid[1:4], "big") >> 24)
            start, stop = max(low, guess - stray), min(high, guess + stray)
        else:
            start, stop = low, high
        names = self._names
        window = bytes(names[start * raw_len : stop * raw_len])
        at = window.find(raw_oid)
        while at > 0 and at % raw_len:
            at = window.find(raw_oid, at + 1)
        if at >= 0:
            return start + at // raw_len
        if stop - start == high - low:
            return None
        # Not where it should be: absent, if the window's ends enclose it; else the names are unlike hashes.
        if window[:raw_len] > raw_oid:
            high = start
        elif window[-raw_len:] < raw_oid:
            low = stop
        else:
            return None
        while low < high:
            middle = (low + high) >> 1
            name = bytes(names[middle * raw_len : (middle + 1) * raw_len])
            if name < raw_oid:
                low = middle + 1
            elif name > raw_oid:
                high = middle
            else:
                return middle
        return None

    def position_of(self, raw_oid: bytes) -> int | None:
        """Return the place of an object in the index; None when it is not in this pack."""
        return self._position(raw_oid)

    def offset_of(self, raw_oid: bytes) -> int | None:
        """Return where the object's entry starts; None when it is not in this pack. About a microsecond."""
        position = self._position(raw_oid)
        return None if position is None else self.offset_at(position)

    def offset_at(self, position: int) -> int:
        """Return where the entry of the index's `position`th name starts."""
        (offset,) = struct.unpack_from(">I", self._offsets, 4 * position)
        if offset & 0x80000000 and self._v2:
            at = 8 * (offset & 0x7FFFFFFF)
            if at + 8 > len(self._large):
                raise PackError("a pack index points outside of itself")
            (offset,) = struct.unpack_from(">Q", self._large, at)
        if not 12 <= offset < self.end:
            raise PackError("a pack index points outside of its pack")
        return int(offset)

    def __contains__(self, raw_oid: bytes) -> bool:
        return self._position(raw_oid) is not None

    def name_at(self, position: int) -> bytes:
        """Return the index's `position`th raw oid."""
        raw_len = self.format.raw_len
        return bytes(self._names[position * raw_len : (position + 1) * raw_len])

    def positions_in(self, wanted: Container[bytes]) -> list[int]:
        """Return the index positions of all objects that are in `wanted`, which is asked once for every
        object.

        Cheaper than `offset_of` for each when more than about a tenth of the pack is wanted.
        """
        find_names = re.compile(b"(?s).{%d}" % self.format.raw_len).findall
        raw_len = self.format.raw_len
        found: list[int] = []
        contains = wanted.__contains__
        for first in range(256):
            low, high = self._fan[first], self._fan[first + 1]
            names = find_names(self._names[low * raw_len : high * raw_len])
            found.extend(compress(range(low, high), map(contains, names)))
        return found

    # -- offset -> raw oid, next offset

    def entries(self) -> Entries:
        """Return the pack as the native module sees it; only where there is one. Made once, at first use: 12
        bytes an object (16 for packs above 4 GiB), some 50 ns each; of large packs by the first process
        alone, since a file keeps it (packorder.py).

        Raises:
            PackError: as `by_offset`.
        """
        entries = self._entries
        if entries is None:
            with self._lock:
                entries = self._entries
                if entries is None:
                    entries = self._entries = self._make_entries()
        return entries

    def _make_entries(self) -> Entries:
        size = (16 if self.end > 0xFFFFFFFF else 12) * self.count

        def is_right(tables: memoryview) -> bool:
            return self._entries_in(tables).is_in_order()

        stored = read_order(self.path, self.checksum, self.count, size, is_right)
        if stored is None:
            entries = self._entries_in(None)
            if write_order(self.path, self.checksum, self.count, entries.tables):
                stored = read_order(self.path, self.checksum, self.count, size, is_right)
            if stored is None:
                return entries
        return self._entries_in(stored)

    def _entries_in(self, tables: memoryview | None) -> Entries:
        try:
            return Entries(
                data=self.data,
                end=self.end,
                names=self._names,
                positions=self._offsets,
                large=self._large,
                fan=self._fan,
                raw_len=self.format.raw_len,
                is_v2=self._v2,
                reverse=self._reverse() if tables is None else None,
                tables=tables,
            )
        except Malformed:
            raise PackError("a pack's index or reverse index is not sorted") from None

    def by_offset(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return all offsets in ascending order, and for each its index position. Built once, at first use.

        8 bytes an object (12 for packs above 2 GiB). They are shared: do not change them.

        Raises:
            PackError: two objects share an offset, or one is out of bounds.
        """
        table = self._by_offset
        if table is None:
            if native.available:
                entries = self.entries()
                table = self._by_offset = (entries.offsets, entries.order)
                return table
            with self._lock:
                table = self._by_offset
                if table is None:
                    table = self._by_offset = self._sort_offsets()
        return table

    def _sort_offsets(self) -> tuple["array[int]", "array[int]"]:
        offsets = _be32(self._offsets)
        if self._v2 and self.count and max(offsets) & 0x80000000:
            offsets = array("Q", map(self.offset_at, range(self.count)))
        rev = self._reverse()
        if rev is None:
            order = array("I", sorted(range(self.count), key=offsets.__getitem__))
        else:
            order = _be32(rev)
            if self.count and max(order) >= self.count:
                raise PackError("a pack's reverse index points outside of the index")
        ascending = array(offsets.typecode, map(offsets.__getitem__, order))
        # Rising all the way: so `order`, if it came from a file, is a permutation indeed.
        if not all(map(lt, ascending, islice(ascending, 1, None))):
            raise PackError("a pack's index or reverse index is not sorted")
        if self.count and not 12 <= ascending[0] <= ascending[-1] < self.end:
            raise PackError("a pack index points outside of its pack")
        return ascending, order

    def _reverse(self) -> memoryview | None:
        """Map the reverse index: its table of index positions, in pack order. None when there is none of
        use."""
        if not self._rev_looked_for:
            self._rev = self._map_rev()
            self._rev_looked_for = True
        return self._rev

    def _map_rev(self) -> memoryview | None:
        try:
            rev = map_file(self.path.with_suffix(".rev"))
        except OSError:
            return None
        raw_len = self.format.raw_len
        hash_id = 1 if raw_len == 20 else 2
        if len(rev) != 12 + 4 * self.count + 2 * raw_len or bytes(rev[:4]) != b"RIDX":
            return None
        if struct.unpack_from(">II", rev, 4) != (1, hash_id):
            return None
        if rev[-2 * raw_len : -raw_len] != self.data[self.end :]:
            return None
        return rev[12 : 12 + 4 * self.count]

    def _rank(self, offset: int) -> tuple[int, int, int]:
        """Return how many entries start before `offset`, the index position of the one there, and the next
        offset.

        The position is -1 if none starts there. The first few are looked up in the mapped reverse index, if
        there is one: building the table takes 0.2 us an object, too much for a fetch of five.
        """
        if self._by_offset is None and self._ranked < _RANKS:
            rev = self._reverse()
            if rev is not None:
                self._ranked += 1
                return self._rank_in(rev, offset)
        offsets, positions = self.by_offset()
        at = bisect_left(offsets, offset)
        number = len(offsets)
        if at == number or offsets[at] != offset:
            return at, -1, offsets[at] if at < number else self.end
        return at, positions[at], offsets[at + 1] if at + 1 < number else self.end

    def _rank_in(self, rev: memoryview, offset: int) -> tuple[int, int, int]:
        low, high, following = 0, self.count, self.end
        unpack = struct.unpack_from
        while low < high:
            middle = (low + high) >> 1
            (position,) = unpack(">I", rev, 4 * middle)
            if position >= self.count:
                raise PackError("a pack's reverse index points outside of the index")
            found = self.offset_at(position)
            if found < offset:
                low = middle + 1
            elif found > offset:
                high, following = middle, found
            else:
                if middle + 1 < self.count:
                    (after,) = unpack(">I", rev, 4 * middle + 4)
                    following = self.offset_at(after) if after < self.count else 0
                    if following <= offset:
                        raise PackError("a pack's index or reverse index is not sorted")
                else:
                    following = self.end
                return middle, position, following
        return low, -1, following

    def rank_of(self, offset: int) -> int:
        """Return how many entries come before the one at `offset`: its bit in a bitmap."""
        rank, position, _ = self._rank(offset)
        if position < 0:
            raise PackError("a pack has no entry where one is expected")
        return rank

    def next_offset(self, offset: int) -> int:
        """Return where the entry after the one at `offset` starts; `end` after the last."""
        return self._rank(offset)[2]

    def oid_at(self, offset: int) -> bytes:
        """Return the raw oid of the entry at `offset`."""
        position = self._rank(offset)[1]
        if position < 0:
            raise PackError("a pack has no entry where one is expected")
        return self.name_at(position)

    # -- entries

    def entry(self, offset: int) -> tuple[int, int, int, int]:
        """Read an entry's header: stored type, inflated size, offset of the base, start of the zlib stream.

        The type may be OFS_DELTA or REF_DELTA; the size is then that of the delta. The base's offset is 0 for
        all but OFS_DELTA; a REF_DELTA's base is named by the `raw_len` bytes before the zlib stream.
        """
        data = self.data
        if not 12 <= offset < self.end:
            raise PackError("an entry is outside of its pack")
        try:
            byte = data[offset]
            start = offset + 1
            kind = (byte >> 4) & 7
            size = byte & 15
            shift = 4
            while byte & 0x80:
                byte = data[start]
                start += 1
                size |= (byte & 0x7F) << shift
                shift += 7
                if shift > 67:
                    raise PackError("an entry's size is too long")
            base = 0
            if kind == OFS_DELTA:
                byte = data[start]
                start += 1
                back = byte & 0x7F
                while byte & 0x80:
                    byte = data[start]
                    start += 1
                    back = ((back + 1) << 7) | (byte & 0x7F)
                base = offset - back
                if not 12 <= base < offset:
                    raise PackError("a delta's base is outside of its pack")
            elif kind == REF_DELTA:
                start += self.format.raw_len
            elif not 1 <= kind <= 4:
                raise PackError(f"an entry has type {kind}")
        except IndexError:
            raise PackError("an entry is cut short") from None
        if start >= self.end:
            raise PackError("an entry is cut short")
        return kind, size, base, start

    def base_oid(self, start: int) -> bytes:
        """Return the base's raw oid of a REF_DELTA whose zlib stream is at `start`."""
        return bytes(self.data[start - self.format.raw_len : start])

    def base_offset(self, kind: int, base: int, start: int) -> int:
        """Return where a delta's base starts, from what `entry` gave for the delta."""
        if kind == OFS_DELTA:
            return base
        found = self.offset_of(self.base_oid(start))
        if found is None:
            raise PackError("a delta's base is not in its pack")
        return found

    def type_at(self, offset: int) -> int:
        """Return an object's type (COMMIT, TREE, BLOB or TAG). Inflates nothing."""
        for _ in range(self.count):
            kind, _, base, start = self.entry(offset)
            if kind < OFS_DELTA:
                return kind
            offset = self.base_offset(kind, base, start)
        raise PackError("a delta chain runs in a circle")

    def size_at(self, offset: int) -> tuple[int, int]:
        """Return an object's type and inflated size. Inflates a delta's first bytes at most."""
        kind, size, base, start = self.entry(offset)
        if kind < OFS_DELTA:
            return kind, size
        head = self._delta_head(start)
        return self.type_at(self.base_offset(kind, base, start)), delta_sizes(head)[1]

    def _delta_head(self, start: int) -> bytes:
        """Inflate the first bytes of a delta: enough for its two sizes, if it has them."""
        inflater = decompressobj()
        # A block's Huffman tables come first, and may fill some 300 bytes.
        cuts = (start, min(start + 96, self.end), min(start + 512, self.end))
        try:
            head = inflater.decompress(self.data[start : cuts[1]], 32)
            if len(head) < 20 and not inflater.eof:
                rest = inflater.unconsumed_tail + bytes(self.data[cuts[1] : cuts[2]])
                head += inflater.decompress(rest, 32)
        except InflateError as error:
            raise PackError("an entry's zlib stream is broken") from error
        return head

    def read_at(self, offset: int, *, limit_bytes: int | None = None) -> tuple[int, bytes]:
        """Return an object's type and data. Iterative, whatever the chain's depth.

        Holds two objects and a delta at a time, each below `limit_bytes` if that is given, and shares bases
        with other readers through the cache.

        Raises:
            LimitExceeded: the object, or one that it is a delta of, is larger than `limit_bytes`.
        """
        bases, serial = self._bases, self.serial
        most = sys.maxsize if limit_bytes is None else limit_bytes
        chain: list[tuple[int, int, int]] = []
        while True:
            found = bases.get((serial, offset))
            if found is not None:
                kind, data = found
                if len(data) > most:
                    raise LimitExceeded(f"an object needs {len(data)} bytes, more than the {most} allowed")
                break
            kind, size, base, start = self.entry(offset)
            if size > most:
                raise LimitExceeded(f"an object needs {size} bytes, more than the {most} allowed")
            if kind < OFS_DELTA:
                data, _ = inflate(self.data, start, size)
                if chain:
                    bases.put((serial, offset), kind, data)
                break
            chain.append((offset, start, size))
            if len(chain) >= self.count:
                raise PackError("a delta chain runs in a circle")
            offset = self.base_offset(kind, base, start)
        while chain:
            offset, start, size = chain.pop()
            delta, _ = inflate(self.data, start, size)
            data = apply_delta(data, delta, limit_bytes=most)
            if kind != 3 or chain:
                bases.put((serial, offset), kind, data)
        return kind, data

    def forget(self) -> None:
        """Give back what the shared cache holds of this pack: it has been deleted, or its store is closed."""
        self._bases.forget(self.serial)
