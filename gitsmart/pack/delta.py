"""Deltas: an object as copies from a base and inserted bytes (gitformat-pack, "Deltified representation").

    delta   base-size result-size *(copy / insert)          sizes: little-endian base-128
    copy    1xxxxxxx [offset: 0-4 bytes] [size: 0-3 bytes]  size 0 means 0x10000
    insert  0nnnnnnn n bytes                                n = 0 is reserved

What a delta claims is checked before it is believed: both sizes against the base and the limit, and a big
result against the sum of its instructions, before memory is taken for it.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Final

from gitsmart import native
from gitsmart.errors import LimitExceeded, PackError
from gitsmart.native import delta as native_delta

_dulwich: "Callable[[bytes, bytes], list[bytes]] | None" = None
try:
    _dulwich = importlib.import_module("dulwich._pack").apply_delta  # it has no type stubs
except ImportError:  # dulwich without its Rust extension
    pass

__all__ = ["apply_delta", "delta_sizes", "iter_instructions"]

# Below this a claimed result size may cost its memory at once; above it the instructions are added up first.
_BELIEVED: Final = 1 << 20
_SHORTEST: Final = 4  # git: delta.h DELTA_SIZE_MIN: patch_delta() takes no shorter ones


def _size(delta: bytes, pos: int) -> tuple[int, int]:
    size = shift = 0
    try:
        while True:
            byte = delta[pos]
            pos += 1
            size |= (byte & 127) << shift
            if byte < 128:
                return size, pos
            shift += 7
            if shift > 56:
                raise PackError("bad delta: size too large")
    except IndexError:
        raise PackError("bad delta: ends in its header") from None


def delta_sizes(delta: bytes) -> tuple[int, int, int]:
    """Give the size of the base, the size of the result, and where the instructions begin.

    Ten bytes suffice per size, so the first 20 bytes of a delta are enough. Raises: PackError.
    """
    base_size, pos = _size(delta, 0)
    result_size, pos = _size(delta, pos)
    return base_size, result_size, pos


def iter_instructions(delta: bytes, pos: int) -> Iterator[tuple[int, int, int]]:
    """Give each instruction as (from base, offset, size): offset into the base, or into `delta` of an insert.

    Raises: PackError at a reserved instruction or when the delta ends inside one.
    """
    end = len(delta)
    try:
        while pos < end:
            code = delta[pos]
            pos += 1
            if code & 128:
                offset = size = 0
                if code & 1:
                    offset = delta[pos]
                    pos += 1
                if code & 2:
                    offset |= delta[pos] << 8
                    pos += 1
                if code & 4:
                    offset |= delta[pos] << 16
                    pos += 1
                if code & 8:
                    offset |= delta[pos] << 24
                    pos += 1
                if code & 16:
                    size = delta[pos]
                    pos += 1
                if code & 32:
                    size |= delta[pos] << 8
                    pos += 1
                if code & 64:
                    size |= delta[pos] << 16
                    pos += 1
                yield 1, offset, size or 0x10000
            elif code:
                if pos + code > end:
                    raise PackError("bad delta: ends in an insertion")
                yield 0, pos, code
                pos += code
            else:
                raise PackError("bad delta: reserved instruction")
    except IndexError:
        raise PackError("bad delta: ends in a copy instruction") from None


def apply_delta(base: bytes, delta: bytes, *, limit_bytes: int | None = None) -> bytes:
    """Build the object that `delta` makes of `base`.

    Raises: PackError when the delta is malformed, is not for a base of this size, reaches beyond it, or gives
    another size than it says; LimitExceeded when the result would be larger than `limit_bytes`.
    """
    if len(delta) < _SHORTEST:
        raise PackError("bad delta: too short")
    base_size, result_size, pos = delta_sizes(delta)
    if base_size != len(base):
        raise PackError("failed to apply delta: base is of another size")
    if limit_bytes is not None and result_size > limit_bytes:
        raise LimitExceeded(f"delta result of {result_size} bytes exceeds the limit of {limit_bytes}")
    if native.available:
        if result_size > _BELIEVED and native_delta.total(delta, pos) != result_size:
            raise PackError("failed to apply delta: result is of another size")
        made = native_delta.apply(base, delta, pos, result_size)
        if made is None:
            raise PackError("failed to apply delta: malformed, or out of bounds")
        return made
    if _dulwich is not None:
        # Before it takes memory. Besides, dulwich overlooks a last copy from beyond the base, which git
        # refuses: served to git, such an object could not be cloned.
        total = 0
        for _, _, size in iter_instructions(delta, pos):
            total += size
        if total != result_size:
            raise PackError("failed to apply delta: result is of another size")
        try:
            (result,) = _dulwich(base, delta)
        except MemoryError:
            raise
        except Exception as error:
            raise PackError("failed to apply delta") from error
    else:
        result = _apply(base, delta, pos, result_size)
    if len(result) != result_size:
        raise PackError("failed to apply delta: result is of another size")
    return result


def _apply(base: bytes, delta: bytes, pos: int, result_size: int) -> bytes:
    pieces = []
    total = 0
    for from_base, offset, size in iter_instructions(delta, pos):
        total += size
        if total > result_size or (from_base and offset + size > len(base)):
            raise PackError("failed to apply delta: out of bounds")
        pieces.append((base if from_base else delta)[offset : offset + size])
    return b"".join(pieces)
