"""Inflating: isal's decompressobj when it is installed (1.5 times zlib's speed), zlib's otherwise.

Both have the same interface (`decompress(data, max_length)`, `eof`, `unused_data`, `unconsumed_tail`); the
errors are two classes, so catch `InflateError`. Deflating stays with zlib.
"""

import zlib
from typing import TYPE_CHECKING, Final, Protocol

from gitsmart.errors import PackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BACKEND", "InflateError", "Inflater", "crc32", "decompressobj", "inflate", "inflated_pieces"]


class Inflater(Protocol):
    """What zlib's and isal's decompression objects have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: "bytes | memoryview", max_length: int = 0, /) -> bytes: ...


InflateError: tuple[type[Exception], ...] = (zlib.error,)
decompressobj: "Callable[[], Inflater]" = zlib.decompressobj
crc32: "Callable[[bytes | memoryview, int], int]" = zlib.crc32
BACKEND: str = "zlib"
try:
    from isal import isal_zlib
except ImportError:
    pass
else:
    InflateError = (zlib.error, isal_zlib.error)  # type: ignore[assignment]
    decompressobj = isal_zlib.decompressobj
    crc32 = isal_zlib.crc32
    BACKEND = "isal"

# Never hand inflate more than this at once: what it does not use it copies.
_WINDOW: Final = 1 << 16


def inflate(buffer: "bytes | memoryview", start: int, size: int) -> tuple[bytes, int]:
    """Inflate the zlib stream at `buffer[start:]`, which must give exactly `size` bytes.

    Returns the bytes and the offset after the stream. The memory taken grows with what is really there, not
    with `size`; the caller has bounded `size`.

    Raises: PackError when the stream is corrupt, cut short, or of another size.
    """
    inflater = decompressobj()
    view = memoryview(buffer)
    pos = start
    # A deflated stream is rarely longer than this: stored blocks cost 5 bytes each 16 KiB, and 6 once.
    window = view[pos : pos + size + (size >> 9) + 64]
    try:
        data = inflater.decompress(window, size + 1)
        if inflater.eof and len(data) == size:
            return data, pos + len(window) - len(inflater.unused_data)
        pieces = [data]
        got = len(data)
        while not inflater.eof and got <= size:
            pos += len(window) - len(inflater.unconsumed_tail)
            window = view[pos : pos + _WINDOW]
            if not window:
                break
            data = inflater.decompress(window, size + 1 - got)
            pieces.append(data)
            got += len(data)
    except InflateError as error:
        raise PackError("inflate returned an error: corrupt zlib stream") from error
    if not inflater.eof or got != size:
        raise PackError("corrupt zlib stream: not of the size that was declared")
    return b"".join(pieces), pos + len(window) - len(inflater.unused_data)


def inflated_pieces(buffer: "bytes | memoryview", start: int, size: int) -> "Iterator[bytes]":
    """Inflate as `inflate` does, in pieces of at most 256 KiB."""
    inflater = decompressobj()
    view = memoryview(buffer)
    pos = start
    left = size
    try:
        while not inflater.eof:
            window = view[pos : pos + _WINDOW]
            piece = inflater.decompress(window, min(left + 1, 1 << 18))
            pos += len(window) - len(inflater.unconsumed_tail)
            left -= len(piece)
            if left < 0 or not (window or piece):
                break
            yield piece
    except InflateError as error:
        raise PackError("inflate returned an error: corrupt zlib stream") from error
    if left or not inflater.eof:
        raise PackError("corrupt zlib stream: not of the size that was declared")
