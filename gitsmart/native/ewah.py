"""ewah.c: EWAH bitmaps, and operations on plain bits: bytes, the lowest bit first."""

from array import array
from ctypes import c_char_p, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from typing import Final

from gitsmart.native import MALFORMED, Function, address_of, function, new_bytes

__all__ = ["combine", "entries", "spread", "write", "xor_into"]

_BITS = (None, c_void_p, c_void_p, c_size_t)
_COMBINE: Final[dict[str, Function]] = {
    name: function(f"gs_bits_{name}", *_BITS) for name in ("or", "and", "and_not", "xor")
}
_xor: Function = function("gs_ewah_xor", c_int64, c_void_p, c_size_t, c_void_p, c_size_t)
_write: Function = function("gs_ewah_write", c_int64, c_char_p, c_size_t, c_char_p, c_size_t, long=True)
_spread: Function = function(
    "gs_bits_spread", c_int32, c_char_p, c_size_t, c_void_p, c_uint32, c_void_p, c_size_t
)
_entries: Function = function(
    "gs_bitmap_entries",
    c_int32,
    c_void_p,
    c_size_t,
    c_size_t,
    c_uint32,
    c_uint32,
    c_uint32,
    c_void_p,
    c_void_p,
    c_void_p,
)


def entries(
    data: memoryview, at: int, number: int, limit: int, most: int
) -> "tuple[array[int], array[int], bytearray] | None":
    """Find `number` entries of a .bitmap file from `at` on: positions below `limit`, where bitmaps begin, and
    what they are xor-ed with; None when they are not so."""
    if not number:
        return array("I"), array("Q"), bytearray()
    if number > len(data) // 18:
        return None
    positions, places, bases = array("I", bytes(4 * number)), array("Q", bytes(8 * number)), bytearray(number)
    code = _entries(
        address_of(data),
        len(data),
        at,
        number,
        limit,
        most,
        positions.buffer_info()[0],
        places.buffer_info()[0],
        address_of(bases),
    )
    return None if code else (positions, places, bases)


def xor_into(out: bytearray, data: memoryview | bytes) -> int | None:
    """Flip the bits of `out`, of a multiple of 8 bytes, that the bitmap at the start of `data` sets; return
    the bitmap's size in bytes, None when it is malformed or longer."""
    size = int(_xor(address_of(data), len(data), address_of(out), len(out)))
    return None if size < 0 else size


def write(bits: bytes) -> bytes:
    """Write plain bits, of a multiple of 8 bytes, as a bitmap."""
    room = len(bits) + len(bits) // 16 + 64
    out = new_bytes(room)
    size = int(_write(bits, len(bits), out, room))
    assert size > 0
    return out[:size]


def combine(operation: str, to: bytearray, other: bytes | bytearray) -> None:
    """Put "or", "and", "and_not" or "xor" of both into `to`; `other` has at least as many bytes."""
    assert len(other) >= len(to)
    _COMBINE[operation](address_of(to), address_of(other), len(to))


def spread(bits: bytes, places: "memoryview", number: int, out: bytearray) -> bool:
    """Set bit `places[i]`, native 32-bit numbers, of `out` for each bit i of `bits`; False: one is
    outside."""
    code = _spread(bits, len(bits), address_of(places), number, address_of(out), len(out))
    return bool(code != MALFORMED)
