"""The order of a pack's entries, kept for all processes: to work it out takes 50 ns an object, each time.

    <objects>/info/gitsmart/pack-<name>.order     made at the first fetch, removed when the pack is gone
    "GSORDER\\n" byte-order(4) raw_len(4) count(4) 0(4) pack-checksum, NULs up to 64 | tables

The tables are `native.entries.Entries.tables`, in the machine's byte order, and used where they lie: mapped,
and so in memory once. git's .rev file says the same in half the space, and is not made for packs that others
made; the other half saves looking up each name's entry by its offset.

A file is used if it is just what the index gives: each number is compared, by the first process that opens
it (`mapping.map_checked`). So it can't be stale, nor damaged. Never needed: where it can't be kept, each
process works it out for itself. Only for packs that are large enough, in an objects directory with a folder
`info`.
"""

import contextlib
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gitsmart.pack.mapping import map_checked, map_file

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
        data = map_checked(_place(pack), is_right, b"order" + _head(checksum, count))
    except OSError:
        return None
    return None if data is None else data[_HEAD_BYTES:]


def write_order(pack: Path, checksum: bytes, count: int, tables: memoryview) -> memoryview | None:
    """Keep tables that are right, and drop those of packs that are gone; return them as they are mapped,
    None where they can't be kept."""
    if count < _LEAST:
        return None
    place = _place(pack)
    temporary = place.with_name(f"tmp-{os.getpid()}-{threading.get_ident()}-{place.name}")
    try:
        if not pack.exists():
            return None
        place.parent.mkdir(exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(_head(checksum, count))
            file.write(tables)
            os.fchmod(file.fileno(), 0o444)
        data = map_file(temporary)
        temporary.replace(place)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return None  # read-only, or full
    for other in place.parent.glob("pack-*.order"):
        if not (pack.parent / f"{other.stem}.pack").exists():
            with contextlib.suppress(OSError):
                other.unlink()
    return data[_HEAD_BYTES:] if len(data) == _HEAD_BYTES + len(tables) else None


def _place(pack: Path) -> Path:
    return pack.parent.parent / "info" / "gitsmart" / f"{pack.stem}.order"


def _head(checksum: bytes, count: int) -> bytes:
    head = _HEAD.pack(b"GSORDER\n", _BYTE_ORDER, len(checksum), count, 0) + checksum
    return head.ljust(_HEAD_BYTES, b"\0")
