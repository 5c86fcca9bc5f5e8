"""Bitmaps in git's EWAH form, from and to plain bits; and operations on plain bits.

Plain bits are bytes, the lowest bit of each byte first. In C where there is a native module (ewah.c), else by
Python's big integers. Format: bitmap-format, Appendix A.
"""

import struct
from array import array
from collections.abc import Sequence
from itertools import groupby

from gitsmart import native
from gitsmart.native import ewah as native_ewah

__all__ = [
    "combine",
    "count",
    "ewah_size",
    "positions",
    "read_entries",
    "spread",
    "write_ewah",
    "xor_ewah",
]

_ONES = (1 << 64) - 1


def ewah_size(data: memoryview | bytes, at: int) -> int | None:
    """Return the size in bytes of the bitmap at `at`, by its header; None when there isn't so much."""
    if len(data) - at < 12:
        return None
    (words,) = struct.unpack_from(">I", data, at + 4)
    size = 12 + 8 * int(words)
    return size if size <= len(data) - at else None


def read_entries(
    data: memoryview, at: int, entries: int, number: int, most: int
) -> tuple[Sequence[int], Sequence[int], Sequence[int]] | None:
    """Find the entries of a .bitmap file from `at` on: position(4) xor(1) flags(1) bitmap.

    Returns for each its position, below `number`; where its bitmap begins; and how many entries before is the
    one that it is xor-ed with, `most` at most, 0 if none. None when they are not so, or cut short.
    """
    if native.available:
        return native_ewah.entries(data, at, entries, number, most)
    if entries > len(data):
        return None
    positions, places, bases = array("I"), array("Q"), bytearray()
    for row in range(entries):
        if at + 6 > len(data):
            return None
        position, base, _ = struct.unpack_from(">IBB", data, at)
        size = ewah_size(data, at + 6)
        if position >= number or base > min(row, most) or size is None:
            return None
        positions.append(position)
        places.append(at + 6)
        bases.append(base)
        at += 6 + size
    return positions, places, bases


def xor_ewah(out: bytearray, data: memoryview | bytes) -> bool:
    """Flip the bits of `out`, of a multiple of 8 bytes, that the bitmap at the start of `data` sets.

    Returns False, with anything in `out`, when it is malformed or has more bits.
    """
    if native.available:
        return native_ewah.xor_into(out, data) is not None
    size = ewah_size(data, 0)
    if size is None:
        return False
    bits, words = struct.unpack_from(">II", data)
    room = len(out) // 8
    if bits > 64 * room:
        return False
    pieces: list[bytes] = []
    place = at = 0
    while at < words:
        (head,) = struct.unpack_from(">Q", data, 8 + 8 * at)
        at += 1
        run, literals = head >> 1 & 0xFFFFFFFF, head >> 33
        if run + literals > room - place or literals > words - at:
            return False
        pieces.append((b"\xff" if head & 1 else b"\0") * (8 * run))
        numbers = struct.unpack_from(f">{literals}Q", data, 8 + 8 * at)
        pieces.append(struct.pack(f"<{literals}Q", *numbers))
        place += run + literals
        at += literals
    flip = b"".join(pieces)
    found = int.from_bytes(flip, "little") ^ int.from_bytes(out, "little")
    out[:] = found.to_bytes(len(out), "little")
    return True


def write_ewah(bits: bytes | bytearray) -> bytes:
    """Write plain bits, of a multiple of 8 bytes."""
    if native.available:
        return native_ewah.write(bytes(bits))
    words = struct.unpack(f"<{len(bits) // 8}Q", bits)
    heads: list[tuple[int, int, list[int]]] = []
    for value, group in groupby(words, key=lambda word: word if word in (0, _ONES) else None):
        members = list(group)
        if value is not None:
            heads.append((value & 1, len(members), []))
        elif heads and not heads[-1][2]:
            heads[-1][2].extend(members)
        else:
            heads.append((0, 0, members))
    out: list[int] = []
    last = 0
    for bit, run, literals in heads or [(0, 0, [])]:
        last = len(out)
        out.append(bit | run << 1 | len(literals) << 33)
        out.extend(literals)
    return struct.pack(f">II{len(out)}QI", 64 * len(words), len(out), *out, last)


def combine(operation: str, to: bytearray, other: bytes | bytearray) -> None:
    """Put "or", "and", "and_not" or "xor" of both, of the same size, into `to`."""
    if native.available:
        native_ewah.combine(operation, to, other)
        return
    one, two = int.from_bytes(to, "little"), int.from_bytes(other, "little")
    found = (
        one | two
        if operation == "or"
        else one & two
        if operation == "and"
        else one & ~two
        if operation == "and_not"
        else one ^ two
    )
    to[:] = found.to_bytes(len(to), "little")


def count(bits: bytes | bytearray) -> int:
    """Return how many bits are set."""
    return int.from_bytes(bits, "little").bit_count()


def positions(bits: bytes | bytearray) -> "list[int]":
    """Return the places of the bits that are set; for few of them."""
    found = []
    for at, byte in enumerate(bits):
        while byte:
            low = byte & -byte
            byte ^= low
            found.append(8 * at + low.bit_length() - 1)
    return found


def spread(bits: bytes, places: memoryview, out: bytearray) -> bool:
    """Set bit `places[i]` of `out` for each bit i of `bits`; False: one is outside. `places` is of format
    I."""
    if native.available:
        return native_ewah.spread(bits, places, len(places), out)
    try:
        for at in positions(bits):
            place = places[at]
            out[place >> 3] |= 1 << (place & 7)
    except IndexError:
        return False
    return True
