"""Writing pack indexes as git writes them: .idx version 2 and .rev version 1 (gitformat-pack).

    .idx   \\377tOc 00000002, fan-out 256 x 4, names sorted, crc32s, 31-bit offsets, 64-bit offsets, checksums
    .rev   RIDX 00000001 hash-id, the index position of each entry in pack order, checksums

Memory: what `order_by_name` gives (4 bytes an object), plus one 256th of the names at a time.
Reading is packfile.py's.
"""

import sys
from array import array
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from gitsmart import native
from gitsmart.native import ingest as native_ingest
from gitsmart.pack.objects import ObjectFormat

__all__ = ["Bytes", "Numbers", "index_pieces", "order_by_name", "reverse_index_pieces"]

Bytes = bytes | bytearray | memoryview
Numbers: TypeAlias = "array[int] | memoryview"
"""Of 4 or 8 bytes each, in the machine's order."""

_LARGE: Final = 0x80000000  # says that the other bits are a place in the 64-bit table
_LARGE_FROM: Final = 0x80000000  # offsets from here on go there
_HASH_IDS: Final = {20: 1, 32: 2}
_SLICE: Final = 1 << 16  # objects handled at a time when tables are gathered


def order_by_name(names: Bytes, raw_len: int) -> "array[int]":
    """Give pack positions in the order of their raw oids; `names` holds these joined, in pack order.

    Equal names (the same object twice) keep pack order.
    """
    if native.available:
        order = array("I", bytes(len(names) // raw_len * 4))
        native_ingest.order_by_name(names, raw_len, order)
        return order
    buckets = [array("I") for _ in range(256)]
    for position, first in enumerate(names[::raw_len]):
        buckets[first].append(position)
    order = array("I")
    for bucket in buckets:
        keyed = [(names[i * raw_len : i * raw_len + raw_len], i) for i in bucket]
        keyed.sort()
        order.extend([i for _, i in keyed])
    return order


def _big_endian(typecode: str, values: Iterable[int]) -> bytes:
    table = array(typecode, values)
    if sys.byteorder == "little":
        table.byteswap()
    return table.tobytes()


def index_pieces(
    names: Bytes,
    crcs: Numbers,
    offsets: Numbers,
    order: "array[int]",
    pack_checksum: bytes,
    fmt: ObjectFormat,
) -> Iterable[bytes]:
    """Give the bytes of the .idx, in pieces. All tables are in pack order; `order` is `order_by_name`'s.

    `pack_checksum` is raw: the pack's trailer.
    """
    return _with_checksum(_index(names, crcs, offsets, order, pack_checksum, fmt.raw_len), fmt)


def _index(
    names: Bytes,
    crcs: Numbers,
    offsets: Numbers,
    order: "array[int]",
    pack_checksum: bytes,
    raw_len: int,
) -> Iterable[bytes]:
    yield b"\377tOc\0\0\0\2"
    counts = [0] * 256
    for first in names[::raw_len]:
        counts[first] += 1
    total = 0
    for first, count in enumerate(counts):
        total += count
        counts[first] = total
    yield _big_endian("I", counts)
    for part in _slices(order):
        if native.available:
            yield native_ingest.gather(names, raw_len, part)
        else:
            yield b"".join([names[i * raw_len : i * raw_len + raw_len] for i in part])
    for part in _slices(order):
        if native.available:
            yield native_ingest.gather_big_endian(crcs, part)
        else:
            yield _big_endian("I", [crcs[i] for i in part])
    large = array("Q")
    for part in _slices(order):
        table = [offsets[i] for i in part]
        if max(table) >= _LARGE_FROM:
            for k, offset in enumerate(table):
                if offset >= _LARGE_FROM:
                    table[k] = _LARGE | len(large)
                    large.append(offset)
        yield _big_endian("I", table)
    for part in _slices(large):
        yield _big_endian("Q", part)
    yield pack_checksum


def reverse_index_pieces(order: "array[int]", pack_checksum: bytes, fmt: ObjectFormat) -> Iterable[bytes]:
    """Give the bytes of the .rev, in pieces; the arguments are `index_pieces`'s."""
    return _with_checksum(_reverse_index(order, pack_checksum, fmt.raw_len), fmt)


def _reverse_index(order: "array[int]", pack_checksum: bytes, raw_len: int) -> Iterable[bytes]:
    yield b"RIDX\0\0\0\1\0\0\0" + bytes([_HASH_IDS[raw_len]])
    positions = array("I", bytes(4 * len(order)))
    for index_position, pack_position in enumerate(order):
        positions[pack_position] = index_position
    for part in _slices(positions):
        yield _big_endian("I", part)
    yield pack_checksum


def _slices(table: "array[int]") -> Iterable["array[int]"]:
    for start in range(0, len(table), _SLICE):
        yield table[start : start + _SLICE]


def _with_checksum(pieces: Iterable[bytes], fmt: ObjectFormat) -> Iterable[bytes]:
    checksum = fmt.new_hash()
    update: Callable[[bytes], None] = checksum.update
    for piece in pieces:
        update(piece)
        yield piece
    yield checksum.digest()
