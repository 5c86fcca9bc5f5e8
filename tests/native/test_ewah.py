"""Bitmaps in EWAH form: C and Python read and write the same, and refuse the same."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart import native as native_module
from gitsmart.native import ewah as native_ewah
from gitsmart.pack import ewah

WORDS = st.lists(
    st.sampled_from((b"\0" * 8, b"\xff" * 8)) | st.binary(min_size=8, max_size=8), max_size=12
).map(b"".join) | st.builds(
    lambda zeros, some, ones: b"\0" * 8 * zeros + some + b"\xff" * 8 * ones,
    st.integers(0, 900),
    st.binary(min_size=8, max_size=8),
    st.integers(0, 900),
)


def in_python(call: "str", *arguments: object) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_module, "available", False)
        return getattr(ewah, call)(*arguments)


@given(WORDS, WORDS)
def test_what_is_written_is_read_again(bits: bytes, before: bytes) -> None:
    packed = in_python("write_ewah", bits)
    assert isinstance(packed, bytes)
    assert ewah.ewah_size(packed, 0) == len(packed)
    size = max(len(bits), len(before))
    flipped = int.from_bytes(bits, "little") ^ int.from_bytes(before, "little")
    out = bytearray(before.ljust(size, b"\0"))
    assert in_python("xor_ewah", out, packed + b"more")
    assert int.from_bytes(out, "little") == flipped
    if native_module.available:
        assert native_ewah.write(bits) == packed
        out = bytearray(before.ljust(size, b"\0"))
        assert native_ewah.xor_into(out, packed + b"more") == len(packed)
        assert int.from_bytes(out, "little") == flipped


@given(WORDS, st.data())
def test_broken_ones_are_refused_by_both(bits: bytes, draw: st.DataObject) -> None:
    packed = bytearray(ewah.write_ewah(bits))
    for _ in range(draw.draw(st.integers(0, 3))):
        packed[draw.draw(st.integers(0, len(packed) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    data = bytes(packed[: draw.draw(st.integers(0, len(packed)))])
    size = draw.draw(st.sampled_from((len(bits), 8, 64, 0)))
    slow, fast = bytearray(size), bytearray(size)
    accepted = in_python("xor_ewah", slow, data)
    if native_module.available:
        assert (native_ewah.xor_into(fast, data) is not None) == accepted
        if accepted:
            assert slow == fast


@given(st.lists(st.integers(0, 99), unique=True, max_size=40), st.data())
def test_bits_spread_to_their_places(places: list[int], draw: st.DataObject) -> None:
    chosen = draw.draw(st.sets(st.integers(0, 47)))
    bits = sum(1 << at for at in chosen).to_bytes(6, "little")
    table = memoryview(bytearray(struct.pack(f"{len(places)}I", *places))).cast("I")
    fits = all(at < len(places) for at in chosen)
    for native in {False, native_module.available}:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native_module, "available", native)
            out = bytearray(16)
            assert ewah.spread(bits, table, out) == fits
            if fits:
                assert ewah.positions(out) == sorted(places[at] for at in chosen)


@given(st.binary(max_size=40), st.data())
def test_operations(one: bytes, draw: st.DataObject) -> None:
    two = draw.draw(st.binary(min_size=len(one), max_size=len(one)))
    expected = {
        "or": bytes(a | b for a, b in zip(one, two, strict=True)),
        "and": bytes(a & b for a, b in zip(one, two, strict=True)),
        "and_not": bytes(a & ~b for a, b in zip(one, two, strict=True)),
        "xor": bytes(a ^ b for a, b in zip(one, two, strict=True)),
    }
    for native in {False, native_module.available}:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native_module, "available", native)
            for operation, result in expected.items():
                out = bytearray(one)
                ewah.combine(operation, out, two)
                assert out == result
    assert ewah.count(one) == sum(byte.bit_count() for byte in one)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3), WORDS), max_size=6),
    st.integers(0, 2),
    st.data(),
)
def test_entries_of_files_are_found_by_both(
    rows: list[tuple[int, int, bytes]], spare: int, draw: st.DataObject
) -> None:
    if not native_module.available:
        pytest.skip(native_module.missing)
    data = bytearray(b"head")
    for position, base, bits in rows:
        data += struct.pack(">IBB", position, base, 0) + ewah.write_ewah(bits)
    if draw.draw(st.booleans()):
        data[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
        del data[draw.draw(st.integers(0, len(data))) :]
    arguments = (memoryview(bytes(data)), 4, len(rows) + spare, 12, 2)
    slow, fast = in_python("read_entries", *arguments), ewah.read_entries(*arguments)
    assert slow == fast
