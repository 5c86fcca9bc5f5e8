"""Indexes hold what they should, 64-bit offsets too; that they are git's byte for byte: test_indexer.py."""

import hashlib
import struct
import subprocess
import zlib
from array import array

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gitsmart.pack.objects import SHA1, SHA256, ObjectFormat
from gitsmart.pack.packindex import index_pieces, order_by_name, reverse_index_pieces

pytestmark = pytest.mark.usefixtures("native")

FORMATS = [pytest.param(SHA1, id="sha1"), pytest.param(SHA256, id="sha256")]


def build(
    names: list[bytes], crcs: list[int], offsets: list[int], checksum: bytes, fmt: ObjectFormat
) -> tuple[bytes, bytes]:
    joined = b"".join(names)
    order = order_by_name(joined, fmt.raw_len)
    return (
        b"".join(index_pieces(joined, array("I", crcs), array("Q", offsets), order, checksum, fmt)),
        b"".join(reverse_index_pieces(order, checksum, fmt)),
    )


def parse(index: bytes, fmt: ObjectFormat) -> list[tuple[bytes, int, int]]:
    """Read a version 2 .idx as gitformat-pack describes it: name, crc, offset."""
    assert index[:8] == b"\xfftOc\0\0\0\2"
    fan = struct.unpack(">256I", index[8:1032])
    count = fan[255]
    raw_len = fmt.raw_len
    names = [index[1032 + k * raw_len : 1032 + (k + 1) * raw_len] for k in range(count)]
    assert names == sorted(names)
    assert [sum(name[0] <= first for name in names) for first in range(256)] == list(fan)
    pos = 1032 + count * raw_len
    crcs = struct.unpack(f">{count}I", index[pos : pos + 4 * count])
    pos += 4 * count
    small = struct.unpack(f">{count}I", index[pos : pos + 4 * count])
    pos += 4 * count
    large_count = sum(offset >> 31 for offset in small)
    large = struct.unpack(f">{large_count}Q", index[pos : pos + 8 * large_count])
    pos += 8 * large_count
    assert len(index) == pos + 2 * raw_len
    assert index[-raw_len:] == hashlib.new(fmt.name.decode(), index[:-raw_len]).digest()
    offsets = [large[offset & 0x7FFFFFFF] if offset >> 31 else offset for offset in small]
    return list(zip(names, crcs, offsets, strict=True))


@pytest.mark.parametrize("fmt", FORMATS)
def test_offsets_above_2_gib_go_to_the_64_bit_table(fmt: ObjectFormat) -> None:
    offsets = [12, 0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0x100000000, 1 << 62]
    names = [hashlib.new(fmt.name.decode(), b"%d" % offset).digest() for offset in offsets]
    crcs = [zlib.crc32(name) for name in names]
    checksum = b"\x55" * fmt.raw_len
    index, reverse = build(names, crcs, offsets, checksum, fmt)
    found = parse(index, fmt)
    assert sorted(found) == sorted(zip(names, crcs, offsets, strict=True))
    assert index[-2 * fmt.raw_len : -fmt.raw_len] == checksum
    assert len(index) == 1032 + 8 * (fmt.raw_len + 8) + 5 * 8 + 2 * fmt.raw_len
    positions = struct.unpack(">8I", reverse[12:44])
    assert [found[position][2] for position in positions] == offsets


@pytest.mark.parametrize("fmt", FORMATS)
def test_reverse_index_header_and_checksums(fmt: ObjectFormat) -> None:
    names = [bytes([digit]) * fmt.raw_len for digit in (9, 3, 7)]
    _, reverse = build(names, [0, 0, 0], [12, 50, 80], b"\x11" * fmt.raw_len, fmt)
    hash_id = 1 if fmt is SHA1 else 2
    assert reverse[:12] == b"RIDX" + struct.pack(">II", 1, hash_id)
    assert struct.unpack(">3I", reverse[12:24]) == (2, 0, 1)
    assert reverse[24 : 24 + fmt.raw_len] == b"\x11" * fmt.raw_len
    assert reverse[-fmt.raw_len :] == hashlib.new(fmt.name.decode(), reverse[: -fmt.raw_len]).digest()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=20, max_size=20), max_size=60))
def test_any_names(names: list[bytes]) -> None:
    names = [*names, *names[:3]]  # git takes packs with an object twice
    offsets = [12 + 40 * k for k in range(len(names))]
    crcs = [k * 77 for k in range(len(names))]
    index, _ = build(names, crcs, offsets, bytes(20), SHA1)
    assert parse(index, SHA1) == sorted(zip(names, crcs, offsets, strict=True))


def test_more_objects_than_a_slice() -> None:
    names = [hashlib.sha1(b"%d" % k).digest() for k in range(70_000)]
    offsets = [12 + 30 * k for k in range(70_000)]
    index, reverse = build(names, [7] * 70_000, offsets, bytes(20), SHA1)
    assert [offset for _, _, offset in parse(index, SHA1)] == [
        offset for _, offset in sorted(zip(names, offsets, strict=True))
    ]
    assert len(set(struct.unpack(">70000I", reverse[12 : 12 + 280_000]))) == 70_000


def test_git_reads_64_bit_offsets() -> None:
    names = [hashlib.sha1(b"%d" % k).digest() for k in range(3)]
    index, _ = build(names, [1, 2, 3], [12, 5 << 30, 6 << 30], bytes(20), SHA1)
    out = subprocess.run(["git", "show-index"], input=index, capture_output=True, check=True).stdout
    lines = sorted(line.split() for line in out.decode().splitlines())
    assert lines == sorted(
        [str(offset), name.hex(), f"({crc:08x})"]
        for name, crc, offset in zip(names, [1, 2, 3], [12, 5 << 30, 6 << 30], strict=True)
    )
