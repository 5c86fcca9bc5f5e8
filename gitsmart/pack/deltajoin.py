"""Deltas from deltas: an object sent as a delta of another base than the one it is stored with.

    base --first--> middle --second--> result         join_deltas: base --------> result
    base --delta--> result                            invert_delta: result -----> base

A delta search is not needed for that: stored deltas already say which parts two versions share. So an object
whose base is not sent can still go out as a delta, of its base's base, or of an object that is a delta of it.
Cost: one step for each instruction, about a microsecond. Format: gitformat-pack, "Deltified representation".
"""

from bisect import bisect_right
from collections.abc import Iterable

from gitsmart.errors import PackError
from gitsmart.pack.delta import delta_sizes, iter_instructions

__all__ = ["invert_delta", "join_deltas"]

# What every reader takes: git's own writer never copies more at once.
_COPY_MOST = 0x10000
_INSERT_MOST = 127
# Copying so few bytes takes as much room as inserting them.
_COPY_LEAST = 5


def _size(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(0x80 | (number & 0x7F))
        number >>= 7
    out.append(number)
    return bytes(out)


def _encode(base_size: int, result_size: int, parts: Iterable[tuple[int, int] | bytes]) -> bytes:
    """Encode copies, given as (offset, size), and bytes to insert; adjacent ones become one."""
    out = bytearray(_size(base_size) + _size(result_size))
    inserted: list[bytes] = []
    copied_from = copied = 0

    def end_insert() -> None:
        data = b"".join(inserted)
        inserted.clear()
        for start in range(0, len(data), _INSERT_MOST):
            piece = data[start : start + _INSERT_MOST]
            out.append(len(piece))
            out.extend(piece)

    def end_copy() -> None:
        offset, left = copied_from, copied
        while left > 0:
            size = min(left, _COPY_MOST)
            at = len(out)
            code = 0x80
            out.append(code)
            for bit in range(4):
                byte = (offset >> (8 * bit)) & 0xFF
                if byte:
                    code |= 1 << bit
                    out.append(byte)
            # 0x10000 is written as no size at all.
            for bit in range(2):
                byte = (size >> (8 * bit)) & 0xFF
                if byte:
                    code |= 16 << bit
                    out.append(byte)
            out[at] = code
            offset += size
            left -= size

    for part in parts:
        if isinstance(part, bytes):
            if copied:
                end_copy()
                copied = 0
            inserted.append(part)
            continue
        offset, size = part
        if copied and copied_from + copied == offset:
            copied += size
            continue
        if copied:
            end_copy()
        elif inserted:
            end_insert()
        copied_from, copied = offset, size
    if copied:
        end_copy()
    elif inserted:
        end_insert()
    return bytes(out)


def join_deltas(first: bytes, second: bytes) -> bytes:
    """Return the delta that makes `second`'s result from `first`'s base.

    Raises:
        PackError: one of them is malformed, or `second` is not for `first`'s result.
    """
    base_size, middle_size, pos = delta_sizes(first)
    expected, result_size, second_pos = delta_sizes(second)
    if expected != middle_size:
        raise PackError("failed to join deltas: the base is of another size")
    starts: list[int] = []
    instructions: list[tuple[int, int, int]] = []
    total = 0
    for instruction in iter_instructions(first, pos):
        starts.append(total)
        instructions.append(instruction)
        total += instruction[2]
    if total != middle_size:
        raise PackError("failed to join deltas: a result is of another size")
    parts: list[tuple[int, int] | bytes] = []
    total = 0
    for from_middle, offset, size in iter_instructions(second, second_pos):
        total += size
        if not from_middle:
            parts.append(second[offset : offset + size])
            continue
        stop = offset + size
        if stop > middle_size:
            raise PackError("failed to join deltas: out of bounds")
        at = bisect_right(starts, offset) - 1
        while offset < stop:
            from_base, there, length = instructions[at]
            skip = offset - starts[at]
            length = min(length - skip, stop - offset)
            there += skip
            parts.append((there, length) if from_base else first[there : there + length])
            offset += length
            at += 1
    if total != result_size:
        raise PackError("failed to join deltas: a result is of another size")
    return _encode(base_size, result_size, parts)


def invert_delta(delta: bytes, base: bytes) -> bytes:
    """Return the delta that makes `base` from `delta`'s result: what was copied from it is copied back.

    Raises:
        PackError: it is malformed, or not for this base.
    """
    base_size, result_size, pos = delta_sizes(delta)
    if base_size != len(base):
        raise PackError("failed to invert a delta: the base is of another size")
    copies: list[tuple[int, int, int]] = []
    total = 0
    for from_base, offset, size in iter_instructions(delta, pos):
        if from_base:
            if offset + size > base_size:
                raise PackError("failed to invert a delta: out of bounds")
            copies.append((offset, total, size))
        total += size
    if total != result_size:
        raise PackError("failed to invert a delta: the result is of another size")
    copies.sort()
    parts: list[tuple[int, int] | bytes] = []
    here = 0
    for offset, there, size in copies:
        # Copies may overlap in the base: each place is taken from the first that has it.
        skip = here - offset if offset < here else 0
        size -= skip
        if size < _COPY_LEAST:
            continue
        offset += skip
        if offset > here:
            parts.append(base[here:offset])
        parts.append((there + skip, size))
        here = offset + size
    if here < base_size:
        parts.append(base[here:])
    return _encode(result_size, base_size, parts)
