"""inflate.c: zlib streams, whole. Used by reach.c; callable for tests."""

from ctypes import c_char_p, c_int32, c_size_t

from gitsmart.native import Function, function, new_bytes

__all__ = ["inflate"]

_inflate: Function = function(
    "gs_inflate_whole", c_int32, c_char_p, c_size_t, c_char_p, c_size_t, c_int32, long=True
)


def inflate(stream: bytes, size: int, *, partial: bool = False) -> bytes | None:
    """Inflate a zlib stream of exactly `size` bytes, or its first `size` bytes; None when it isn't one."""
    out = new_bytes(size)
    return None if _inflate(stream, len(stream), out, size, partial) else out
