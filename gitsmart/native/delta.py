"""delta.c: deltas applied, and made."""

from ctypes import c_char_p, c_int32, c_int64, c_size_t
from typing import Final

from gitsmart.native import NO_MEMORY, Function, function, new_bytes

__all__ = ["apply", "make", "total"]

# Results of fewer bytes are copied in less time than it takes to get the interpreter back.
_SHORT: Final = 1 << 17

_TOTAL = ("gs_delta_total", c_int64, c_char_p, c_size_t, c_size_t)
_APPLY = (
    "gs_apply_delta",
    c_int32,
    c_char_p,
    c_size_t,
    c_char_p,
    c_size_t,
    c_size_t,
    c_char_p,
    c_size_t,
)
_total: Function = function(*_TOTAL)
_apply: Function = function(*_APPLY)
_MAKE = ("gs_make_delta", c_int64, c_char_p, c_size_t, c_char_p, c_size_t, c_char_p, c_size_t)
_make: Function = function(*_MAKE)
_make_long: Function = function(*_MAKE, long=True)
_apply_long: Function = function(*_APPLY, long=True)


def total(delta: bytes, pos: int) -> int:
    """Return how many bytes the instructions from `pos` on would make, -1 when they are malformed."""
    return int(_total(delta, len(delta), pos))


def apply(base: bytes, delta: bytes, pos: int, result_size: int) -> bytes | None:
    """Build the `result_size` bytes that the instructions from `pos` on make of `base`; None when they don't.

    The memory for the result is taken at once.
    """
    result = new_bytes(result_size)
    run = _apply if result_size < _SHORT else _apply_long
    if run(base, len(base), delta, len(delta), pos, result, result_size):
        return None
    return result


def make(base: bytes, target: bytes, limit_bytes: int) -> bytes | None:
    """Return a delta that turns `base` into `target`; None when it would have more than `limit_bytes`.

    Takes up to one and a half times the base for a while. A tenth of a millisecond for 50 KB or so.

    Raises: MemoryError.
    """
    room = new_bytes(max(0, limit_bytes))
    run = _make if len(base) + len(target) < _SHORT else _make_long
    size = int(run(base, len(base), target, len(target), room, len(room)))
    if size == NO_MEMORY:
        raise MemoryError
    return room[:size] if size >= 0 else None
