"""reach.c: what objects of packs lead to, and their names and numbers."""

import ctypes
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, Final

from gitsmart.native import NO_MEMORY, Function, address_of, function, new_bytes

__all__ = ["NONE", "BrokenError", "Pack", "Walk", "find", "names", "of_type", "sorted_names", "types"]

NONE: Final = 0xFFFFFFFF
"""The number of what is in no pack."""

_MORE, _STOPPED = 1, 2


class BrokenError(Exception):
    """Something in the packs can't be read, or not by the C code: ask the Python code what."""


class Pack(ctypes.Structure):
    """gs_pack: where a pack's tables lie in memory. The owner of these holds them."""

    _fields_ = (
        ("data", c_void_p),
        ("names", c_void_p),
        ("offsets", c_void_p),
        ("large", c_void_p),
        ("order", c_void_p),
        ("rank", c_void_p),
        ("types", c_void_p),
        ("fan", c_void_p),
        ("end", c_uint64),
        ("number_large", c_uint64),
        ("count", c_uint32),
        ("first", c_uint32),
        ("is_v2", c_uint32),
        ("unused", c_uint32),
    )


_pack = POINTER(Pack)
_find: Function = function("gs_find_objects", None, _pack, c_uint32, c_char_p, c_uint32, c_uint32, c_void_p)
_names: Function = function(
    "gs_name_objects", c_int64, _pack, c_char_p, c_size_t, c_uint32, c_char_p, c_uint64, long=True
)
_sorted_names: Function = function(
    "gs_sorted_names",
    c_int64,
    _pack,
    c_char_p,
    c_size_t,
    c_uint32,
    c_uint32,
    c_uint32,
    c_char_p,
    c_uint64,
    long=True,
)
_types: Function = function("gs_types", c_int32, _pack, c_uint32, long=True)
_of_type: Function = function("gs_of_type", None, _pack, c_uint32, c_void_p, long=True)
_new: Function = function("gs_walk_new", c_void_p, _pack, c_uint32, c_uint32)
_free: Function = function("gs_walk_free", None, c_void_p)
_reset: Function = function("gs_walk_reset", None, c_void_p)
_add_bits: Function = function("gs_walk_add_bits", None, c_void_p, c_void_p, c_size_t)
_bits: Function = function("gs_walk_bits", None, c_void_p, c_char_p, c_size_t)
_push: Function = function("gs_walk_push", c_int32, c_void_p, c_uint32)
_reach: Function = function("gs_walk_reach", c_int32, c_void_p, c_uint32, c_uint32)
_tree: Function = function("gs_walk_tree", c_int32, c_void_p, c_char_p, c_size_t)
_commits: Function = function(
    "gs_walk_commits",
    c_int32,
    c_void_p,
    c_char_p,
    c_char_p,
    c_uint32,
    c_uint32,
    POINTER(c_uint32),
    long=True,
)
_trees: Function = function("gs_walk_trees", c_int32, c_void_p, c_uint32, long=True)
_missing: Function = function("gs_walk_missing", c_int64, c_void_p, c_char_p, c_size_t)
_missing_size: Function = function("gs_walk_missing_size", c_uint64, c_void_p)
_walk_pack: Function = function("gs_walk_pack", c_int64, c_void_p, c_uint32, c_uint32, long=True)
_trees_match: Function = function("gs_walk_trees_match", c_int32, c_void_p)


def find(packs: Any, number: int, raw_oids: list[bytes], raw_len: int) -> "ctypes.Array[c_uint32]":
    """Return the number of each object, NONE for those in no pack."""
    found = (c_uint32 * len(raw_oids))()
    _find(packs, number, b"".join(raw_oids), len(raw_oids), raw_len, ctypes.addressof(found))
    return found


def names(pack: Pack, bits: bytes, number: int, raw_len: int) -> bytes:
    """Return the raw oids of the `number` objects of a pack that are set in `bits`, one after the other.

    Raises: BrokenError: there are not so many.
    """
    out = new_bytes(number * raw_len)
    if _names(byref(pack), bits, len(bits), raw_len, out, number) != number:
        raise BrokenError
    return out


def sorted_names(pack: Pack, bits: bytes, low: int, high: int, raw_len: int) -> bytes:
    """Return the raw oids, sorted and joined, of the objects that are set in `bits` and lie from the `low`th
    up to the `high`th in the index.

    Raises: BrokenError: there are no such places.
    """
    out = new_bytes((high - low) * raw_len)
    number = _sorted_names(byref(pack), bits, len(bits), raw_len, low, high, out, high - low)
    if number < 0:
        raise BrokenError
    return out[: number * raw_len]


def types(pack: Pack, raw_len: int) -> bool:
    """Fill the table of types; False: entries are broken."""
    return bool(_types(byref(pack), raw_len) >= 0)


def of_type(pack: Pack, kind: int) -> bytearray:
    """Return the bits of a pack's objects of one type; the table of types must be filled."""
    out = bytearray((pack.count + 7) // 8)
    if out:
        _of_type(byref(pack), kind, address_of(out))
    return out


class Walk:
    """gs_walk. Not thread-safe. Every method but `bits` may raise BrokenError, after which it is of no
    use."""

    def __init__(self, packs: tuple[Any, object], number: int, total: int, raw_len: int) -> None:
        """Start over `number` packs: an array of Pack, and what holds the memory that they point at."""
        self._total = total
        self._raw_len = raw_len
        self._packs = packs
        self._walk = _new(packs[0], number, raw_len)
        if not self._walk:
            raise MemoryError

    def __del__(self) -> None:
        if getattr(self, "_walk", None):
            _free(self._walk)

    def _check(self, code: int) -> int:
        if code < 0:
            if code == NO_MEMORY:
                raise MemoryError
            raise BrokenError
        return code

    def reset(self) -> None:
        """Begin anew; objects that are held stay so."""
        _reset(self._walk)

    def add_bits(self, bits: bytes | bytearray) -> None:
        """Take these objects for reached, with all that they refer to."""
        _add_bits(self._walk, address_of(bits), len(bits))

    def bits(self) -> bytes:
        """Return what is reached."""
        out = new_bytes((self._total + 7) // 8)
        _bits(self._walk, out, len(out))
        return out

    def push(self, number: int) -> None:
        """Let a commit be among those that `commits` begins with."""
        self._check(_push(self._walk, number))

    def reach(self, number: int, *, is_tree: bool) -> None:
        """Reach an object; a tree is gone through by `trees`, anything else just counted."""
        self._check(_reach(self._walk, number, is_tree))

    def tree(self, data: bytes) -> None:
        """Reach what a tree refers to that is in no pack."""
        self._check(_tree(self._walk, data, len(data)))

    def commits(
        self, most: int, *, stops: bytes | None = None, ends: bytes | None = None, no_trees: bool = False
    ) -> int | None:
        """Go through commits: True-like numbers of what came to a stop.

        Returns -1 when there are none left, the number of a commit in `stops` that was met and not reached,
        None after `most` commits.
        """
        stopped = c_uint32()
        code = self._check(_commits(self._walk, stops, ends, no_trees, most, byref(stopped)))
        return -1 if not code else stopped.value if code == _STOPPED else None

    def trees(self, most: int) -> bool:
        """Go through trees; whether there are none left."""
        return not self._check(_trees(self._walk, most))

    def missing(self) -> list[tuple[int, bytes]]:
        """Return type and raw oid of what was referred to and is in no pack, since this was asked last. May
        name an object more than once."""
        size = int(_missing_size(self._walk))
        if not size:
            return []
        out = new_bytes(size)
        _missing(self._walk, out, size)
        step = self._raw_len + 1
        return [(out[at], out[at + 1 : at + step]) for at in range(0, size, step)]

    def pack(self, rank: int, most: int) -> int:
        """Go through the only pack from `rank` on, of which all types are known; return where to go on."""
        code = int(_walk_pack(self._walk, rank, most))
        return self._check(code)

    def trees_match(self) -> bool:
        """Whether what was referred to as a tree is one, and nothing else is."""
        return bool(_trees_match(self._walk))
