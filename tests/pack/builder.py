"""Packs made by hand, entry by entry, as wrong as a test wants them."""

import hashlib
import struct
import zlib
from dataclasses import dataclass, field

from gitsmart.pack.objects import SHA1, ObjectFormat, object_header

__all__ = [
    "OFS",
    "REF",
    "Builder",
    "append_delta",
    "back",
    "copy",
    "delta",
    "entry_header",
    "insert",
    "name_of",
    "number",
]

OFS, REF = 6, 7


def name_of(kind: int, data: bytes, fmt: ObjectFormat = SHA1) -> bytes:
    return hashlib.new(fmt.name.decode(), object_header(kind, len(data)) + data).digest()


def number(value: int) -> bytes:
    """A size as deltas write it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def copy(offset: int, size: int) -> bytes:
    return b"\xff" + struct.pack("<I", offset) + struct.pack("<I", size)[:3]


def insert(data: bytes) -> bytes:
    return b"".join(bytes([len(data[k : k + 127])]) + data[k : k + 127] for k in range(0, len(data), 127))


def delta(base_size: int, result_size: int, *instructions: bytes) -> bytes:
    return number(base_size) + number(result_size) + b"".join(instructions)


def append_delta(base: bytes, more: bytes) -> bytes:
    return delta(len(base), len(base) + len(more), copy(0, len(base)), insert(more))


def entry_header(kind: int, size: int) -> bytes:
    byte = kind << 4 | size & 15
    size >>= 4
    out = bytearray()
    while size:
        out.append(byte | 128)
        byte = size & 127
        size >>= 7
    return bytes([*out, byte])


def back(distance: int) -> bytes:
    """An OFS_DELTA's distance to its base."""
    out = [distance & 127]
    while distance := distance >> 7:
        distance -= 1
        out.insert(0, distance & 127 | 128)
    return bytes(out)


@dataclass
class Builder:
    """A pack, entry by entry; lies as told."""

    fmt: ObjectFormat = SHA1
    body: bytearray = field(default_factory=bytearray)
    offsets: list[int] = field(default_factory=list)

    def _start(self) -> int:
        self.offsets.append(12 + len(self.body))
        return self.offsets[-1]

    def whole(self, kind: int, data: bytes, *, size: int | None = None, stream: bytes | None = None) -> int:
        offset = self._start()
        self.body += entry_header(kind, len(data) if size is None else size)
        self.body += zlib.compress(data) if stream is None else stream
        return offset

    def ofs(self, base_offset: int, data: bytes, *, size: int | None = None) -> int:
        offset = self._start()
        self.body += entry_header(OFS, len(data) if size is None else size)
        self.body += back(offset - base_offset) + zlib.compress(data)
        return offset

    def ref(self, base: bytes, data: bytes) -> int:
        offset = self._start()
        self.body += entry_header(REF, len(data)) + base + zlib.compress(data)
        return offset

    def raw(self, data: bytes) -> None:
        self._start()
        self.body += data

    def pack(
        self, *, count: int | None = None, magic: bytes = b"PACK", version: int = 2, more: bytes = b""
    ) -> bytes:
        count = len(self.offsets) if count is None else count
        data = magic + struct.pack(">II", version, count) + self.body + more
        return data + hashlib.new(self.fmt.name.decode(), data).digest()
