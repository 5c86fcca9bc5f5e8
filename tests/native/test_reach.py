"""Walks in C and in Python reach the same, over packs of trees, commits and deltas of any shape; none
crashes."""

import random
import struct
import tempfile
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitsmart import native
from gitsmart.errors import ObjectMissing, PackError
from gitsmart.native.reach import BrokenError
from gitsmart.pack import closure
from gitsmart.pack.objects import BLOB, COMMIT, SHA1, SHA256, TAG, TREE, ObjectFormat
from gitsmart.pack.packfile import PackFile
from gitsmart.pack.packindex import index_pieces, order_by_name, reverse_index_pieces
from gitsmart.pack.packmap import PackMap
from gitsmart.pack.reach import Reach
from gitsmart.pack.store import ObjectStore

pytestmark = pytest.mark.skipif(not native.available, reason=f"no native module: {native.missing}")

Objects = list[tuple[bytes, int, bytes]]
"""Raw oid (any that one likes), type and data of each."""


def number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def make_delta(base: bytes, target: bytes, rng: random.Random) -> bytes:
    """Cut the target anywhere; what the base has too is copied."""
    out = [number(len(base)), number(len(target))]
    at = 0
    while at < len(target):
        size = min(rng.choice((1, 3, 20, 21, 33, 60, 127, 400)), len(target) - at)
        piece = target[at : at + size]
        start = base.find(piece)
        while size > 127 and start < 0:
            size //= 2
            piece = target[at : at + size]
            start = base.find(piece)
        if start >= 0:
            while (
                at + size < len(target)
                and target[at + size : at + size + 1] == base[start + size : start + size + 1]
            ):
                size += 1
            code, rest = 0x80, b""
            for bit, byte in enumerate((*start.to_bytes(4, "little"), *size.to_bytes(3, "little"))):
                if byte:
                    code |= 1 << bit
                    rest += bytes([byte])
            out.append(bytes([code]) + rest)
        else:
            out.append(bytes([size]) + piece)
        at += size
    return b"".join(out)


def head(kind: int, size: int) -> bytes:
    byte, size, out = kind << 4 | size & 15, size >> 4, bytearray()
    while size:
        out.append(byte | 128)
        byte, size = size & 127, size >> 7
    return bytes([*out, byte])


def distance(back: int) -> bytes:
    out = bytearray((back & 127,))
    back >>= 7
    while back:
        back -= 1
        out.append(128 | back & 127)
        back >>= 7
    return bytes(reversed(out))


def write_pack(
    path: Path, objects: Objects, fmt: ObjectFormat, rng: random.Random, *, with_rev: bool
) -> None:
    """Write a pack and its index; some objects as deltas of earlier ones, REF_DELTAs of later ones as
    well."""
    out = bytearray(struct.pack(">4sII", b"PACK", 2, len(objects)))
    offsets: list[int] = []
    late = set(rng.sample(range(len(objects)), len(objects) // 2))
    for at, (_, kind, data) in enumerate(objects):
        offsets.append(len(out))
        earlier = [n for n in range(at) if objects[n][1] == kind]
        later = [n for n in range(at + 1, len(objects)) if objects[n][1] == kind and n not in late]
        delta = b""
        if at in late and later and rng.random() < 0.5:
            # Those later ones are whole: no circles.
            base = rng.choice(later)
            delta = make_delta(objects[base][2], data, rng)
        elif at in late and earlier:
            base = rng.choice(earlier[-4:])
            delta = make_delta(objects[base][2], data, rng)
        # git takes none of fewer than four bytes.
        if len(delta) > 3 and base > at:
            out += head(7, len(delta)) + objects[base][0] + zlib.compress(delta)
        elif len(delta) > 3:
            out += head(6, len(delta)) + distance(offsets[at] - offsets[base]) + zlib.compress(delta)
        else:
            out += head(kind, len(data)) + zlib.compress(data, rng.choice((0, 1, 9)))
    checksum = fmt.new_hash()
    checksum.update(out)
    trailer = checksum.digest()
    path.write_bytes(out + trailer)
    names = b"".join(raw_oid for raw_oid, _, _ in objects)
    order = order_by_name(names, fmt.raw_len)
    crcs = array("I", [0] * len(objects))
    path.with_suffix(".idx").write_bytes(
        b"".join(index_pieces(names, crcs, array("Q", offsets), order, trailer, fmt))
    )
    if with_rev:
        path.with_suffix(".rev").write_bytes(b"".join(reverse_index_pieces(order, trailer, fmt)))


@dataclass
class World:
    format: ObjectFormat
    packs: list[Objects]
    tips: list[tuple[bytes, int]]


NAMES = (b"a", b"file", b"x 100644 y", b"100644 z", b"\xff\xfe", b"long" * 20, b"40000 d")


def make_world(seed: int) -> World:
    rng = random.Random(seed)
    fmt = rng.choice((SHA1, SHA256))
    raw_len = fmt.raw_len
    # Names that look like entries, and that share their first bytes
    stock = [b"100644 a\0".ljust(raw_len, b"\1"), b"\0" * (raw_len - 1) + b"\1", b"\xff" * raw_len]

    def new_name() -> bytes:
        return (
            stock.pop()
            if stock and rng.random() < 0.1
            else rng.choice((b"", b"\7\7")) + rng.randbytes(raw_len)
        )

    objects: Objects = []
    trees: list[tuple[bytes, list[bytes]]] = []
    blobs: list[bytes] = []
    commits: list[bytes] = []
    for _ in range(rng.choice((3, 20, 60))):
        name = new_name()[:raw_len]
        kind = rng.choice((TREE, TREE, TREE, COMMIT, BLOB, TAG))
        if kind == BLOB:
            blobs.append(name)
            data = rng.randbytes(rng.choice((0, 5, 50)))
        elif kind == TREE:
            entries = list(rng.choice(trees)[1]) if trees and rng.random() < 0.8 else []
            for _ in range(rng.choice((0, 1, 3, 12))):
                choice = rng.random()
                if entries and choice < 0.3:
                    entries.pop(rng.randrange(len(entries)))
                    continue
                target, mode = rng.randbytes(raw_len), rng.choice((b"160000", b"100644", b"40000"))
                if trees and choice < 0.5:
                    target, mode = rng.choice(trees)[0], rng.choice((b"40000", b"040000"))
                elif blobs:
                    target, mode = rng.choice(blobs), rng.choice((b"100644", b"100755", b"120000", b"664"))
                elif mode != b"160000":
                    continue
                entries.insert(
                    rng.randrange(len(entries) + 1), mode + b" " + rng.choice(NAMES) + b"\0" + target
                )
            data = b"".join(entries)
            trees.append((name, entries))
        elif kind == COMMIT and trees:
            parents = rng.sample(commits, min(len(commits), rng.choice((0, 1, 1, 2, 3))))
            lines = [b"tree " + rng.choice(trees)[0].hex().encode()]
            lines += [b"parent " + parent.hex().encode() for parent in parents]
            data = b"\n".join([*lines, b"author A <a> 1 +0\ncommitter A <a> 2 +0\n\nx"])
            commits.append(name)
        else:
            target, word = (rng.choice(commits), b"commit") if commits else (new_name()[:raw_len], b"blob")
            kind, data = TAG, b"object " + target.hex().encode() + b"\ntype " + word + b"\ntag t\n"
        objects.append((name, kind, data))
    packs: list[Objects] = [[] for _ in range(rng.choice((1, 1, 2, 3)))]
    for found in objects:
        if rng.random() < 0.98:
            rng.choice(packs).append(found)
        if rng.random() < 0.05:
            rng.choice(packs).append(found)
    unique = [list({entry[0]: entry for entry in pack}.values()) for pack in packs]
    for pack in unique:
        rng.shuffle(pack)
    tips = [(name, kind) for name, kind, _ in objects if kind != TAG]
    return World(fmt, unique, rng.sample(tips, min(len(tips), 5)))


def open_world(world: World, folder: Path, rng: random.Random) -> tuple[ObjectStore, PackMap]:
    (folder / "pack").mkdir()
    opened = []
    for at, pack in enumerate(world.packs):
        path = folder / "pack" / f"pack-{at:02x}.pack"
        write_pack(path, pack, world.format, rng, with_rev=rng.random() < 0.5)
        opened.append(PackFile(path, world.format))
    return ObjectStore(folder, world.format), PackMap(opened, world.format.raw_len)


def outcome(store: ObjectStore, whole: PackMap, tips: list[tuple[bytes, int]], *, missing_ok: bool) -> object:
    reach = Reach(store, whole)
    steps: list[object] = []
    try:
        for tip in tips:
            reach.add([tip], missing_ok=missing_ok)
            steps.append((reach.bits(), dict(reach.loose)))
    except (PackError, BrokenError):
        return steps, "broken"
    except ObjectMissing:
        return len(steps), "missing"
    return steps


def both(run: "object") -> tuple[object, object]:
    assert callable(run)
    found = []
    for available in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "available", available)
            found.append(run())
    return found[0], found[1]


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.booleans())
def test_the_same_is_reached(seed: int, missing_ok: bool) -> None:
    world, rng = make_world(seed), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        store, whole = open_world(world, Path(folder), rng)
        for pack, first in zip(whole.packs, whole.firsts, strict=True):
            for at in range(pack.count):
                names = both(
                    lambda at=at, pack=pack: PackMap((pack,), whole.raw_len).number_of(pack.name_at(at))
                )
                assert names[0] == names[1]
            assert first <= whole.total
        fast, slow = both(lambda: outcome(store, whole, world.tips, missing_ok=missing_ok))
        assert fast == slow
        for kind in (COMMIT, TREE, BLOB, TAG):
            types = both(lambda kind=kind: whole.of_type(kind))
            assert types[0] == types[1]
        bits = whole.bits_of(rng.sample(range(whole.total), whole.total // 2))
        listed = both(lambda: list(whole.names(bits)))
        assert listed[0] == listed[1]
        for pack in whole.packs:
            verdicts = both(lambda pack=pack: closure._find(pack, lambda number: None))
            assert verdicts[0] == verdicts[1]


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.data())
def test_broken_packs_are_survived(seed: int, draw: st.DataObject) -> None:
    world, rng = make_world(seed), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        open_world(world, Path(folder), rng)
        for path in (Path(folder) / "pack").iterdir():
            data = bytearray(path.read_bytes())
            for _ in range(draw.draw(st.integers(0, 4))):
                data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
            path.write_bytes(data)
        store = ObjectStore(Path(folder), world.format)
        packs = []
        for path in (Path(folder) / "pack").glob("*.pack"):
            try:
                packs.append(PackFile(path, world.format))
            except PackError:
                continue
        whole = PackMap(packs, world.format.raw_len)
        if whole.total:
            try:
                outcome(store, whole, world.tips, missing_ok=True)
                whole.of_type(TREE)
                list(whole.names(whole.bits_of(range(whole.total))))
            except PackError:
                pass
            for pack in packs:
                try:
                    closure._find(pack, lambda number: None)
                except (PackError, BrokenError):
                    continue


@pytest.mark.parametrize("is_circle", [False, True])
def test_types_of_a_chain_that_lies_backwards(tmp_path: Path, is_circle: bool) -> None:
    """Each delta before its base. (It took as many passes as it is long.)"""
    count = 3000
    names = [index.to_bytes(20, "big") for index in range(count)]
    body = zlib.compress(number(1) * 2 + b"\x01x")
    out, offsets = bytearray(struct.pack(">4sII", b"PACK", 2, count)), array("Q")
    for index in range(count):
        offsets.append(len(out))
        if index < count - 1 or is_circle:
            out += head(7, 4) + names[(index + 1) % count] + body
        else:
            out += head(COMMIT, 1) + zlib.compress(b"x")
    offsets.append(len(out))
    checksum = SHA1.new_hash()
    checksum.update(out)
    (tmp_path / "pack-x.pack").write_bytes(bytes(out) + checksum.digest())
    crcs = array("I", bytes(4 * count))
    pieces = index_pieces(
        b"".join(names), crcs, offsets[:-1], order_by_name(b"".join(names), 20), checksum.digest(), SHA1
    )
    (tmp_path / "pack-x.idx").write_bytes(b"".join(pieces))
    whole = PackMap((PackFile(tmp_path / "pack-x.pack", SHA1),), 20)
    if is_circle:
        with pytest.raises(PackError):
            whole.know_types()
    else:
        assert int.from_bytes(whole.of_type(COMMIT), "little").bit_count() == count
