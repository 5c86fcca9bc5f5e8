"""The order of a pack's entries, kept for all processes: to work it out takes 50 ns an object, each time.

    <objects>/info/gitsmart/pack-<name>.order     made at the first fetch, removed when the pack is gone
    "GSORDER\\n" byte-order(4) raw_len(4) count(4) 0(4) pack-checksum, NULs up to 64 | tables

The tables are `native.entries.Entries.tables`, in the machine's byte order, and used where they lie: mapped,
and so in memory once. git's .rev file says the same in half the space, and is not made for packs that others
made; the other half saves looking up each name's entry by its offset.

A file is used if it is just what the index gives: each number is compared, by the first process that opens
it (`mapping.map_checked`). So it can't be stale, nor damaged. Only for packs that are large enough.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gitsmart.pack.mapping import map_checked
from gitsmart.pack.packnote import note_path, write_note

__all__ = ["read_order", "write_order"]

# Fewer objects are brought in order in 1 ms.
_LEAST = 20_000
_HEAD = struct.Struct("=8sIIII")
_HEAD_BYTES: Final = 64
_BYTE_ORDER: Final = 0x01020304


def read_order(
    pack: Path, checksum: bytes, count: int, size: int, check: Callable[[memoryview], bool]
) -> memoryview | None:
    """Return the tables of the pack at `pack`, `size` bytes, which `check` has found right; None when there
    are none."""
    if count < _LEAST:
        return None

    def is_right(data: memoryview) -> bool:
        is_it = len(data) == _HEAD_BYTES + size and data[:_HEAD_BYTES] == _head(checksum, count)
        return is_it and check(data[_HEAD_BYTES:])

    try:
        data = map_checked(note_path(pack, "order"), is_right, b"order" + _head(checksum, count))
    except OSError:
        return None
    return None if data is None else data[_HEAD_BYTES:]


def write_order(pack: Path, checksum: bytes, count: int, tables: memoryview) -> bool:
    """Keep tables that are right. False: they are not kept."""
    return count >= _LEAST and write_note(pack, "order", (_head(checksum, count), tables))


def _head(checksum: bytes, count: int) -> bytes:
    head = _HEAD.pack(b"GSORDER\n", _BYTE_ORDER, len(checksum), count, 0) + checksum
    return head.ljust(_HEAD_BYTES, b"\0")
