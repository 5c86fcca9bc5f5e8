"""entries.c, copy.c: entries of packs, in order and by name; copied into a stream.

The structures are those of entries.h and copy.c, field by field. Each object here keeps what it points at.
"""

import mmap
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
    pointer,
)
from typing import Final

from gitsmart.native import Function, address_of, function, new_bytes

__all__ = [
    "ASK",
    "DONE",
    "FULL",
    "NOWHERE",
    "ORPHAN",
    "RUN",
    "Copier",
    "Entries",
    "Malformed",
    "Part",
    "place_of",
]

DONE, FULL, RUN, ORPHAN, ASK, _ROOM = 0, 1, 2, 3, 4, 5
NOWHERE: Final = 0xFFFFFFFF


class Malformed(ValueError):
    """A pack, its index or its reverse index is not as it should be."""


class _Entries(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("names", c_void_p),
        ("positions", c_void_p),
        ("large", c_void_p),
        ("fan", c_void_p),
        ("offsets", c_void_p),
        ("sizes", c_void_p),
        ("order", c_void_p),
        ("ranks", c_void_p),
        ("end", c_uint64),
        ("large_count", c_uint64),
        ("count", c_uint32),
        ("raw_len", c_uint32),
        ("is_v2", c_uint32),
        ("wide", c_uint32),
    )


class _Part(Structure):
    _fields_ = (("pack", POINTER(_Entries)), ("send", c_void_p), ("has", c_void_p))


class _Copier(Structure):
    _fields_ = (
        ("parts", c_void_p),
        ("moved", c_void_p),
        ("moved_count", c_uint64),
        ("moved_room", c_uint64),
        ("here", c_uint64),
        ("run_start", c_uint64),
        ("run_stop", c_uint64),
        ("copied", c_uint64),
        ("deltas", c_uint64),
        ("part_count", c_uint32),
        ("part", c_uint32),
        ("rank", c_uint32),
        ("ofs_delta", c_uint32),
        ("answered", c_uint32),
        ("forward", c_uint32),
        ("ask", c_void_p),
    )


_sort: Function = function(
    "gs_sort_entries", c_int32, POINTER(_Entries), c_void_p, c_void_p, c_void_p, c_void_p, long=True
)
_check_order: Function = function("gs_check_order", c_int32, POINTER(_Entries), long=True)
_mark: Function = function(
    "gs_mark_names", c_int64, POINTER(_Entries), c_char_p, c_size_t, c_void_p, c_void_p, long=True
)
place_of: Function = function("gs_find_place", c_uint32, c_void_p, c_void_p, c_uint32, c_char_p)
"""Takes the addresses of an index's names and of its fan-out (257 numbers of 4 bytes), the length of a name,
and a name; gives its place, or NOWHERE."""
_names: Function = function(
    "gs_names_of", c_int64, POINTER(_Entries), c_char_p, c_char_p, c_size_t, long=True
)
_copy: Function = function(
    "gs_copy", c_int32, POINTER(_Copier), c_char_p, c_size_t, POINTER(c_size_t), long=True
)
_relatives: Function = function(
    "gs_relatives", c_int32, POINTER(_Copier), c_uint32, POINTER(c_uint32), c_int32, long=True
)
_may_refer_to: Function = function("gs_may_refer_to", c_int32, POINTER(_Copier), c_uint32, c_uint32)
_large: Function = function(
    "gs_large_entries",
    c_int64,
    POINTER(_Copier),
    c_uint64,
    POINTER(c_uint32),
    POINTER(c_uint64),
    c_size_t,
    long=True,
)
_wrote: Function = function("gs_wrote", c_int32, POINTER(_Copier), c_uint64)

# From here on memory comes from the system: pages that nobody writes to cost nothing, and all goes back.
_SYSTEM_BYTES: Final = 256 << 10

# Copying the head of an entry takes so much room at most, and runs below 64 KiB go into the buffer too.
_PIECE_LEAST: Final = 128 << 10
# As many moves as fit in 64 KiB, at first.
_MOVES: Final = 4096


def _zeros(size: int) -> "bytearray | mmap.mmap":
    return (
        bytearray(size)
        if size < _SYSTEM_BYTES
        else mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    )


class Entries:
    """One pack and its index, as C sees them."""

    def __init__(
        self,
        *,
        data: memoryview,
        end: int,
        names: memoryview,
        positions: memoryview,
        large: memoryview,
        fan: Sequence[int],
        raw_len: int,
        is_v2: bool,
        reverse: memoryview | None,
        tables: memoryview | None = None,
    ) -> None:
        """Bring the entries in order. `fan` has 257 numbers, which don't fall and end with the count.

        Args:
            reverse: the table of the reverse index, 4 bytes for each entry.
            tables: what `tables` was of such a pack before: nothing is brought in order then. May be
            anything (see `is_in_order`) of that size.

        Raises:
            Malformed: an offset is out of bounds, or two entries share one, or `reverse` is wrong.
            MemoryError
        """
        count = fan[-1]
        wide = end > 0xFFFFFFFF
        width = 8 if wide else 4
        is_new = tables is None
        if tables is None:
            tables = memoryview(_zeros((width + 8) * count))
        assert len(tables) == (width + 8) * count
        self.tables = tables
        """Offsets, order and ranks, one behind the other."""
        parts = (
            tables[: width * count],
            tables[width * count : (width + 4) * count],
            tables[(width + 4) * count :],
        )
        self.offsets: Sequence[int] = parts[0].cast("Q" if wide else "I") if count else ()
        """Where each entry starts, rising."""
        self.order: Sequence[int] = parts[1].cast("I") if count else ()
        """For each entry, by offset, its place among the names."""
        self.ranks: Sequence[int] = parts[2].cast("I") if count else ()
        """For each name, how many entries come before its entry."""
        self._sizes = _zeros(4 * count)
        self.count = count
        self.raw_len = raw_len
        self._fan = array("I", fan)
        self._held = (data, names, positions, large)
        offsets_at, order_at, ranks_at = map(address_of, parts)
        self.structure = _Entries(
            address_of(data),
            address_of(names),
            address_of(positions),
            address_of(large),
            self._fan.buffer_info()[0],
            offsets_at,
            address_of(memoryview(self._sizes)),
            order_at,
            ranks_at,
            end,
            len(large) // 8,
            count,
            raw_len,
            is_v2,
            wide,
        )
        if not is_new:
            return
        table = None if reverse is None else address_of(reverse)
        result = _sort(self.structure, table, offsets_at, order_at, ranks_at)
        if result == -3:
            raise MemoryError
        if result:
            raise Malformed("the entries of a pack are out of order")

    def is_in_order(self) -> bool:
        """Tell whether `tables` is what the pack's index gives: 5 ns an object."""
        return not _check_order(self.structure)

    def rank_of(self, offset: int) -> int:
        """Return how many entries come before the one at `offset`.

        Raises:
            Malformed: none starts there.
        """
        rank = bisect_left(self.offsets, offset)
        if rank == self.count or self.offsets[rank] != offset:
            raise Malformed("a pack has no entry where one is expected")
        return rank

    def mark(self, raw_oids: bytes, bits: bytearray) -> "array[int]":
        """Set the bits, by rank, of those of the concatenated names that are here; return which are not.

        `bits` must hold (count + 7) / 8 bytes.
        """
        number = len(raw_oids) // self.raw_len
        assert len(bits) * 8 >= self.count
        missing = array("I", bytes(4 * number))
        left = _mark(self.structure, raw_oids, number, address_of(bits), missing.buffer_info()[0])
        del missing[left:]
        return missing

    def names(self, bits: bytes) -> bytes:
        """Return the names of the entries whose bits are set, by rank, one behind the other."""
        bits = bits.ljust((self.count + 7) // 8, b"\0")
        number = int.from_bytes(bits, "little").bit_count()
        names = new_bytes(number * self.raw_len)
        found = _names(self.structure, bits, names, number)
        # More bits than objects: as many as there are.
        return names if found == number else names[: max(found, 0) * self.raw_len]


class Part:
    """A pack of which something is sent, or is a base; `send` and `has` are bits by rank."""

    def __init__(self, entries: Entries, send: "bytes | bytearray", has: "bytes | bytearray") -> None:
        size = (entries.count + 7) // 8
        self.entries = entries
        self.send = bytes(send[:size]).ljust(size, b"\0")
        self.has = bytes(has[:size]).ljust(size, b"\0") if has else b""


class Copier:
    """Copies the entries of parts, one part after the other."""

    def __init__(self, parts: Sequence[Part], here: int, *, ofs_delta: bool) -> None:
        """`here` is where in the stream the first entry comes."""
        self._parts = parts
        self._array = (_Part * len(parts))()
        for place, part in zip(self._array, parts, strict=True):
            place.pack = pointer(part.entries.structure)
            place.send = address_of(part.send)
            place.has = address_of(part.has) if part.has else None
        self._spare = b""
        self._moved = array("Q", bytes(16 * _MOVES))
        self.state = _Copier(
            address_of(memoryview(self._array).cast("B")),
            self._moved.buffer_info()[0],
            0,
            _MOVES,
            here,
            part_count=len(parts),
            ofs_delta=ofs_delta,
        )

    def begin(self, part: int) -> None:
        """Start with a part; those before it have been written, the others have not."""
        state = self.state
        state.part, state.rank, state.answered, state.forward, state.moved_count = part, 0, 0, 0, 0
        state.ask = None

    def fill(self, size: int) -> tuple[int, memoryview]:
        """Give what comes next, up to `size` bytes, and why it ends: DONE, FULL, RUN, ORPHAN or ASK.

        After RUN, `run` is to be written; after ORPHAN or ASK the entry at `state.rank`: tell by `wrote`,
        or `keep` it after ASK.

        Raises:
            Malformed: the pack is malformed.
        """
        assert size >= _PIECE_LEAST
        out = self._spare if len(self._spare) == size else new_bytes(size)
        self._spare = b""
        used = c_size_t()
        result = _copy(self.state, out, size, byref(used))
        if result < 0:
            raise Malformed("a pack is malformed")
        if result == _ROOM:
            self._grow()
            result = FULL
        if used.value < size >> 2:
            # Whoever is given a little should not hold on to much.
            self._spare = out
            return result, memoryview(out[: used.value])
        return result, memoryview(out)[: used.value]

    def _grow(self) -> None:
        self._moved.frombytes(bytes(16 * self.state.moved_room))
        self.state.moved = self._moved.buffer_info()[0]
        self.state.moved_room *= 2

    def run(self) -> tuple[int, int]:
        """Take the run that the caller is to write now: from where to where in the pack."""
        state = self.state
        start, stop = state.run_start, state.run_stop
        state.run_start = state.run_stop = 0
        return start, stop

    def wrote(self, size: int) -> None:
        """Note that the caller has written the entry at `state.rank` in a way of its own."""
        if self.state.moved_count + 1 > self.state.moved_room:
            self._grow()
        result = _wrote(self.state, size)
        assert not result, result

    def keep(self) -> None:
        """Let the entry at `state.rank`, which was asked about, be copied as it is."""
        self.state.answered = self.state.rank + 1

    def ask(self, ranks: Iterable[int]) -> None:
        """Have `fill` ask about some entries of the current part."""
        bits = bytearray((self._parts[self.state.part].entries.count + 7) // 8)
        for rank in ranks:
            bits[rank >> 3] |= 1 << (rank & 7)
        self._asks = bytes(bits)
        self.state.ask = address_of(self._asks)

    def large_entries(self, least: int, most: int) -> list[tuple[int, int]]:
        """Return size and rank of the largest trees and blobs of the current part that are deltas of nothing
        that is sent: `most` of them, of `least` bytes or more. Of deltas, a fourth of the size counts.

        Raises:
            Malformed: the pack is malformed.
        """
        ranks, sizes = (c_uint32 * most)(), (c_uint64 * most)()
        number = _large(self.state, least, ranks, sizes, most)
        if number < 0:
            raise Malformed("a pack is malformed")
        return list(zip(sizes[:number], ranks[:number], strict=True))

    def may_refer_to(self, base_rank: int) -> bool:
        """Tell whether an entry of the same pack may be the base of the one at `state.rank`."""
        return bool(_may_refer_to(self.state, self.state.rank, base_rank))

    def relatives(self, most: int) -> list[int]:
        """Return the ranks of entries that may be a base of the one at `state.rank`, most promising first.

        Raises:
            Malformed: the pack is malformed.
        """
        found = (c_uint32 * most)()
        number = _relatives(self.state, self.state.rank, found, most)
        if number < 0:
            raise Malformed("a pack is malformed")
        return found[:number]
