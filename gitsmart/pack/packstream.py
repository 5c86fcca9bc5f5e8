"""A pack stream in the making: pieces gathered, hashed, counted; heads of entries (gitformat-pack)."""

from collections.abc import Callable

from gitsmart.pack.objects import ObjectFormat
from gitsmart.pack.packfile import REF_DELTA

__all__ = ["PIECE_BYTES", "Output", "entry_head", "ofs_distance", "ref_delta_head"]

PIECE_BYTES = 1 << 20
"""No piece that is handed on is larger."""

_GATHER_BYTES = 64 * 1024


class Output:
    """The stream: gathers small pieces, hashes, counts."""

    def __init__(self, fmt: ObjectFormat, write: Callable[[bytes | memoryview], None]) -> None:
        self._write = write
        self._hash = fmt.new_hash()
        self._gathered: list[bytes | memoryview] = []
        self._gathered_bytes = 0
        self.position = 0

    def add(self, data: bytes | memoryview) -> None:
        """Send `data`; it is used before the next call returns, or copied."""
        size = len(data)
        self.position += size
        if size < _GATHER_BYTES:
            self._gathered.append(data)
            self._gathered_bytes += size
            if self._gathered_bytes >= _GATHER_BYTES:
                self.flush()
            return
        self.flush()
        for start in range(0, size, PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            self._hash.update(piece)
            self._write(piece)

    def flush(self) -> None:
        """Hand on what was gathered."""
        if self._gathered:
            piece = b"".join(self._gathered)
            self._gathered = []
            self._gathered_bytes = 0
            self._hash.update(piece)
            self._write(piece)

    def finish(self) -> None:
        """Send the trailer."""
        self.flush()
        trailer = self._hash.digest()
        self.position += len(trailer)
        self._write(trailer)


def entry_head(kind: int, size: int) -> bytes:
    """Encode an entry's type and size (gitformat-pack, "pack entries")."""
    byte = (kind << 4) | (size & 15)
    size >>= 4
    head = bytearray()
    while size:
        head.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    head.append(byte)
    return bytes(head)


def ref_delta_head(size: int, base_oid: bytes) -> bytes:
    return entry_head(REF_DELTA, size) + base_oid


def ofs_distance(back: int) -> bytes:
    """Encode how far back an OFS_DELTA's base lies (gitformat-pack, "offset encoding")."""
    head = bytearray((back & 0x7F,))
    back >>= 7
    while back:
        back -= 1
        head.append(0x80 | (back & 0x7F))
        back >>= 7
    head.reverse()
    return bytes(head)
