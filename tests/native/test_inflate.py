"""Streams inflate as zlib inflates them, whole or broken."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart import native
from gitsmart.native.inflate import inflate

pytestmark = pytest.mark.skipif(not native.available, reason=f"no native module: {native.missing}")

texts = (
    st.binary(max_size=300)
    | st.text("ab \n", max_size=400).map(str.encode)
    | st.binary(min_size=1, max_size=9).map(lambda piece: piece * 4000)
)


@given(texts, st.sampled_from((0, 1, 6, 9)), st.binary(max_size=9))
def test_whole_and_first_bytes(data: bytes, level: int, behind: bytes) -> None:
    stream = zlib.compress(data, level)
    assert inflate(stream + behind, len(data)) == data
    assert inflate(stream, len(data) + 1) is None
    if data:
        assert inflate(stream, len(data) - 1) is None
    assert inflate(stream, len(data) // 2, partial=True) == data[: len(data) // 2]


@given(texts, st.sampled_from((1, 9)), st.data())
def test_broken_streams_are_refused_as_zlib_refuses_them(
    data: bytes, level: int, draw: st.DataObject
) -> None:
    broken = bytearray(zlib.compress(data, level))
    for _ in range(draw.draw(st.integers(1, 3))):
        broken[draw.draw(st.integers(0, len(broken) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    inflater = zlib.decompressobj()
    try:
        expected: bytes | None = inflater.decompress(broken)
    except zlib.error:
        expected = None
    if not inflater.eof or len(expected or b"") != len(data):
        expected = None
    assert inflate(bytes(broken), len(data)) == expected
    cut = draw.draw(st.integers(0, len(broken) - 1))
    assert inflate(zlib.compress(data, level)[:cut], len(data)) is None


@given(st.binary(max_size=200), st.integers(0, 1000))
def test_garbage_is_refused(data: bytes, size: int) -> None:
    for stream in (data, b"\x78\x9c" + data, b"\x78\x9c\x05" + data):
        try:
            expected = zlib.decompressobj().decompress(stream)
        except zlib.error:
            assert inflate(stream, size) is None
        else:
            assert inflate(stream, size) in (None, expected)
