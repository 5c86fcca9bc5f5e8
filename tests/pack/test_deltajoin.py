"""Joined and inverted deltas make what the originals make, for git's reader too."""

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitsmart.errors import PackError
from gitsmart.pack.delta import apply_delta
from gitsmart.pack.deltajoin import invert_delta, join_deltas

LIMIT = 1 << 30


def size(number: int) -> bytes:
    return bytes((number | 0x80, number >> 7)) if number > 127 else bytes((number,))


@st.composite
def deltas(draw: st.DrawFn, base: bytes) -> tuple[bytes, bytes]:
    """A delta of `base`, and its result."""
    out, result = b"", b""
    for _ in range(draw(st.integers(1, 6))):
        if base and draw(st.booleans()):
            start = draw(st.integers(0, len(base) - 1))
            length = draw(st.integers(1, len(base) - start))
            out += bytes((0xB3, start & 255, start >> 8, length & 255, length >> 8))
            result += base[start : start + length]
        else:
            piece = draw(st.binary(min_size=1, max_size=127))
            out += bytes((len(piece),)) + piece
            result += piece
    return size(len(base)) + size(len(result)) + out, result


@given(st.data())
@settings(deadline=None)
def test_joined(data: st.DataObject) -> None:
    base = data.draw(st.binary(min_size=1, max_size=300))
    first, middle = data.draw(deltas(base))
    second, result = data.draw(deltas(middle))
    joined = join_deltas(first, second)
    assert apply_delta(base, joined, limit_bytes=LIMIT) == result


@given(st.data())
@settings(deadline=None)
def test_inverted(data: st.DataObject) -> None:
    base = data.draw(st.binary(min_size=1, max_size=300))
    delta, result = data.draw(deltas(base))
    assert apply_delta(result, invert_delta(delta, base), limit_bytes=LIMIT) == base


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 30))
def test_garbage_raises_packerror_only(first: bytes, second: bytes, number: int) -> None:
    with contextlib.suppress(PackError):
        join_deltas(size(number) + first, second)
    with contextlib.suppress(PackError):
        invert_delta(size(number) + first, bytes(number))


def test_long_copies_are_cut_and_adjacent_ones_joined() -> None:
    base = bytes(range(256)) * 1200
    total = len(base)
    encoded = bytes((total & 127 | 128, total >> 7 & 127 | 128, total >> 14))
    cuts = [*range(0, total, 0x10000), total]
    copies = b"".join(
        bytes((0xFF, *start.to_bytes(4, "little"), *(stop - start).to_bytes(3, "little")))
        for start, stop in pairwise(cuts)
    )
    whole = encoded + encoded + copies
    joined = join_deltas(whole, whole)
    assert apply_delta(base, joined, limit_bytes=LIMIT) == base
    assert len(joined) < len(whole)
    assert join_deltas(whole, joined) == joined


def test_deltas_that_do_not_belong_together() -> None:
    with pytest.raises(PackError, match="another size"):
        join_deltas(b"\1\1\1a", b"\2\1\1a")
    with pytest.raises(PackError, match="another size"):
        invert_delta(b"\1\1\1a", b"ab")
