"""All packs of a store as one row of objects: each has a number, sets of them are bits.

    number = first of its pack + rank in it (how many of the pack's entries lie before, by offset)

An object that is in several packs has the number of the first one. Bits are bytes, the lowest bit of the
first byte is object 0, as `select.PackedObjects` has them. A map is of the packs as they were when it was
made; `pack_map` gives the one of now.

With the native module: a byte an object beside `PackFile.entries`, held as long as the store knows the pack.
"""

import threading
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from gitsmart import native
from gitsmart.errors import PackError
from gitsmart.native import address_of, reach
from gitsmart.pack.packfile import PackFile
from gitsmart.pack.store import ObjectStore

__all__ = ["PackMap", "merged_names", "pack_map"]


class _Table:
    """One pack's tables, as C wants them."""

    def __init__(self, pack: PackFile) -> None:
        names, offsets, large, fan, is_v2 = pack.index_tables()
        entries = pack.entries()
        count = pack.count
        self.types = bytearray(max(count, 1))
        self.ranks = entries.ranks
        self._fan = array("I", fan)
        self._held: list[Any] = [pack.data, names, offsets, large, entries]
        self.struct = reach.Pack()
        into = self.struct
        into.data, into.names, into.offsets = map(address_of, (pack.data, names, offsets))
        into.large = address_of(large)
        into.types = address_of(self.types)
        into.order, into.rank = entries.structure.order, entries.structure.ranks
        into.fan = self._fan.buffer_info()[0]
        into.end, into.number_large, into.count, into.is_v2 = pack.end, len(large) // 8, count, is_v2
        self._typed = False
        self._lock = threading.Lock()

    def know_types(self, raw_len: int) -> None:
        with self._lock:
            if not self._typed:
                if not reach.types(self.struct, raw_len):
                    raise PackError("a pack's entries are broken")
                self._typed = True


_tables: "weakref.WeakKeyDictionary[PackFile, _Table]" = weakref.WeakKeyDictionary()
_tables_lock = threading.Lock()


def _table_of(pack: PackFile) -> _Table:
    with _tables_lock:
        table = _tables.get(pack)
    if table is None:
        table = _Table(pack)
        with _tables_lock:
            table = _tables.setdefault(pack, table)
    return table


class PackMap:
    """See the module. Immutable; thread-safe.

    Raises: PackError from whatever reads an index or an entry that is broken.
    """

    def __init__(self, packs: Sequence[PackFile], raw_len: int) -> None:
        """Number the objects of `packs`, in that order. Cheap: tables are made when first needed."""
        self.packs = tuple(packs)
        self.raw_len = raw_len
        firsts: list[int] = []
        total = 0
        for pack in self.packs:
            firsts.append(total)
            total += pack.count
        self.firsts = tuple(firsts)
        self.total = total

    @cached_property
    def _native(self) -> tuple[Any, list[_Table]]:
        tables = [_table_of(pack) for pack in self.packs]
        structs = (reach.Pack * max(len(tables), 1))()
        for number, (table, first) in enumerate(zip(tables, self.firsts, strict=True)):
            structs[number] = table.struct
            structs[number].first = first
        return structs, tables

    def walk(self) -> reach.Walk:
        """Start a walk in C. Only with a native module."""
        # The walk holds the tables, and through them what they point at.
        return reach.Walk(self._native, len(self.packs), self.total, self.raw_len)

    def number_of(self, raw_oid: bytes) -> int | None:
        """Return an object's number; None when it is in none of the packs."""
        if len(raw_oid) != self.raw_len:
            return None
        for at, pack in enumerate(self.packs):
            position = pack.position_of(raw_oid)
            if position is not None:
                return self.number_at(at, position)
        return None

    def number_at(self, pack: int, position: int) -> int:
        """Return the number of the `position`th object in the index of the `pack`th pack."""
        if native.available:
            rank = self._native[1][pack].ranks[position]
        else:
            rank = self.packs[pack].rank_of(self.packs[pack].offset_at(position))
        return self.firsts[pack] + int(rank)

    def numbers_of(self, raw_oids: Iterable[bytes]) -> list[int | None]:
        """As `number_of`, for many: 0.2 us each with a native module."""
        wanted = list(raw_oids)
        if len(wanted) < 4 or not native.available or any(len(oid) != self.raw_len for oid in wanted):
            return [self.number_of(raw_oid) for raw_oid in wanted]
        found = reach.find(self._native[0], len(self.packs), wanted, self.raw_len)
        return [None if number == reach.NONE else number for number in found]

    def place_of(self, number: int) -> tuple[PackFile, int]:
        """Return the pack that holds an object, and its rank in it."""
        at = bisect_right(self.firsts, number) - 1
        # Packs without objects share their number with the next.
        return self.packs[at], number - self.firsts[at]

    def empty(self) -> bytearray:
        """Return bits, none of them set, of a multiple of 8 bytes."""
        return bytearray((self.total + 63) // 64 * 8)

    def bits_of(self, numbers: Iterable[int]) -> bytearray:
        """Return bits of some objects."""
        bits = self.empty()
        for number in numbers:
            bits[number >> 3] |= 1 << (number & 7)
        return bits

    def parts(self, bits: bytes | bytearray) -> Iterator[tuple[PackFile, bytes]]:
        """Give the bits of each pack of which any are set, by rank."""
        whole: int | None = None
        for pack, first in zip(self.packs, self.firsts, strict=True):
            size = (pack.count + 7) // 8
            if not first % 8:
                part = bytes(bits[first >> 3 : (first >> 3) + size])
                if pack.count % 8 and len(part) == size:
                    part = part[:-1] + bytes((part[-1] & ((1 << pack.count % 8) - 1),))
            else:
                whole = int.from_bytes(bits, "little") if whole is None else whole
                part = (whole >> first & ((1 << pack.count) - 1)).to_bytes(size, "little")
            if part.strip(b"\0"):
                yield pack, part

    def names(self, bits: bytes | bytearray) -> Iterator[bytes]:
        """Give the raw oids of the objects whose bits are set."""
        raw_len = self.raw_len
        for pack, part in self.parts(bits):
            number = int.from_bytes(part, "little").bit_count()
            if native.available:
                struct = _table_of(pack).struct
                found = reach.names(struct, part, number, raw_len)
                for at in range(0, len(found), raw_len):
                    yield found[at : at + raw_len]
                continue
            positions = pack.by_offset()[1]
            for at, byte in enumerate(part):
                while byte:
                    low = byte & -byte
                    byte ^= low
                    yield pack.name_at(positions[8 * at + low.bit_length() - 1])

    def sorted_names(self, bits: bytes | bytearray) -> Iterator[bytes]:
        """Give the raw oids of the objects whose bits are set, sorted and joined, in 256 pieces by their
        first bytes.

        Memory: a piece. (Without the native module: all.)
        """
        raw_len = self.raw_len
        parts = list(self.parts(bits))
        if not native.available:
            names: list[list[bytes]] = [[] for _ in range(256)]
            for raw_oid in self.names(bits):
                names[raw_oid[0]].append(raw_oid)
            for some in names:
                yield b"".join(sorted(some))
            return
        for first in range(256):
            found = []
            for pack, part in parts:
                fan = pack.index_tables()[3]
                low, high = fan[first], fan[first + 1]
                piece = reach.sorted_names(_table_of(pack).struct, part, low, high, raw_len)
                if piece:
                    found.append(piece)
            yield merged_names(found, raw_len)

    def know_types(self) -> None:
        """Find out the types of all objects, for C. Only with a native module."""
        for table in self._native[1]:
            table.know_types(self.raw_len)

    def of_type(self, kind: int) -> bytearray:
        """Return the bits of all objects of one type. Looks at every entry's header the first time."""
        found = self.empty()
        if not native.available:
            for pack, first in zip(self.packs, self.firsts, strict=True):
                for rank, offset in enumerate(pack.by_offset()[0]):
                    if pack.type_at(offset) == kind:
                        at = first + rank
                        found[at >> 3] |= 1 << (at & 7)
            return found
        whole = 0
        self.know_types()
        for table, first in zip(self._native[1], self.firsts, strict=True):
            whole |= int.from_bytes(reach.of_type(table.struct, kind), "little") << first
        return bytearray(whole.to_bytes(len(found), "little"))


def merged_names(pieces: Sequence[bytes], raw_len: int) -> bytes:
    """Merge sorted and joined raw oids."""
    if len(pieces) < 2:
        return pieces[0] if pieces else b""
    return b"".join(
        sorted(piece[at : at + raw_len] for piece in pieces for at in range(0, len(piece), raw_len))
    )


_maps: "weakref.WeakKeyDictionary[ObjectStore, PackMap]" = weakref.WeakKeyDictionary()
_maps_lock = threading.Lock()


def pack_map(store: ObjectStore, *, first: Sequence[PackFile] = ()) -> PackMap:
    """Return the map of the packs that a store knows now; `first` are those to begin with, if they are among
    them. The last one is kept."""
    known = store.packs()
    unique = {pack.serial: pack for pack in known}
    leading = [pack for pack in first if pack.serial in unique]
    serials = {pack.serial for pack in leading}
    rest = [pack for serial, pack in unique.items() if serial not in serials]
    rest.sort(key=lambda pack: pack.count, reverse=True)
    packs = (*leading, *rest)
    with _maps_lock:
        found = _maps.get(store)
        if found is None or found.packs != packs:
            found = _maps[store] = PackMap(packs, store.format.raw_len)
        return found
