"""Packs with entries beyond 4 GiB, as sparse files: read, sent and indexed as C git does.

    12        commit, trees and blobs, whole
    4 GiB     a blob that nothing refers to: the head of its entry, and a hole where its content should be
    beyond    deltas whose bases lie before the hole, by offset and by name, and whole objects

Nobody reads the hole: that it is not a zlib stream is never noticed. A real one, of 4 GiB and a quarter of an
hour's patience with both indexers, is in the last test, for GITSMART_HUGE=1.
"""

import hashlib
import os
import subprocess
import zlib
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gitsmart.pack.bitmap import write_bitmap, write_multi_pack_index
from gitsmart.pack.indexer import IngestLimits, ingest_pack
from gitsmart.pack.objects import BLOB, COMMIT, SHA1, TREE
from gitsmart.pack.packindex import index_pieces, order_by_name, reverse_index_pieces
from gitsmart.pack.select import select_objects
from gitsmart.pack.store import ObjectStore
from gitsmart.pack.writer import write_pack
from tests.conftest import Git
from tests.pack.builder import OFS, REF, append_delta, back, entry_header, name_of

GIB = 1 << 30
TEXT = b"a line of text that is long enough for a delta\n" * 4


@dataclass
class SparsePack:
    """A pack file that is written entry by entry; entries may lie anywhere."""

    path: Path
    at: int = 12
    entries: list[tuple[bytes, int, int]] = field(default_factory=list)  # name, crc, offset

    def add(self, name: bytes, data: bytes) -> int:
        with self.path.open("r+b") as file:
            file.seek(self.at)
            file.write(data)
        self.entries.append((name, zlib.crc32(data), self.at))
        self.at += len(data)
        return self.entries[-1][2]

    def whole(self, kind: int, data: bytes) -> int:
        return self.add(name_of(kind, data), entry_header(kind, len(data)) + zlib.compress(data))

    def ofs(self, kind: int, base: int, data: bytes, delta: bytes) -> int:
        distance = back(self.at - base)
        return self.add(name_of(kind, data), entry_header(OFS, len(delta)) + distance + zlib.compress(delta))

    def ref(self, kind: int, base: bytes, data: bytes, delta: bytes) -> int:
        return self.add(name_of(kind, data), entry_header(REF, len(delta)) + base + zlib.compress(delta))

    def finish(self) -> None:
        """Write its head and an end that is no checksum, and its index."""
        checksum = bytes(range(20))
        with self.path.open("r+b") as file:
            file.write(b"PACK\0\0\0\2" + len(self.entries).to_bytes(4, "big"))
            file.seek(self.at)
            file.write(checksum)
        names = b"".join(name for name, _, _ in self.entries)
        order = order_by_name(names, 20)
        crcs = array("I", [crc for _, crc, _ in self.entries])
        offsets = array("Q", [offset for _, _, offset in self.entries])
        index = b"".join(index_pieces(names, crcs, offsets, order, checksum, SHA1))
        self.path.with_suffix(".idx").write_bytes(index)
        reverse = b"".join(reverse_index_pieces(order, checksum, SHA1))
        self.path.with_suffix(".rev").write_bytes(reverse)


@dataclass
class Far:
    path: Path
    tip: bytes
    wanted: dict[bytes, bytes]  # all that the tip leads to: name -> content
    hidden: bytes


@pytest.fixture
def far(tmp_path: Path, git: Git) -> Far:
    path = tmp_path / "far.git"
    git("init", "-q", "--bare", path)
    pack = SparsePack(path / f"objects/pack/pack-{bytes(range(20)).hex()}.pack")
    pack.path.touch()
    wanted: dict[bytes, bytes] = {}

    def known(kind: int, data: bytes) -> bytes:
        name = name_of(kind, data)
        wanted[name] = data
        return name

    first = known(BLOB, TEXT)
    first_at = pack.whole(BLOB, TEXT)
    old_tree = b"100644 a\0" + first
    old_tree_at = pack.whole(TREE, old_tree)
    old = (
        b"tree %b\nauthor A <a> 1 +0000\ncommitter C <c> 1 +0000\n\none\n"
        % name_of(TREE, old_tree).hex().encode()
    )
    old_at = pack.whole(COMMIT, old)
    known(TREE, old_tree)
    known(COMMIT, old)
    hidden = bytes(range(100, 120))
    pack.add(hidden, entry_header(BLOB, 1 << 33) + b"\x78\x9c")
    pack.at = 4 * GIB + 4711
    second = known(BLOB, TEXT + b"second")
    pack.ofs(BLOB, first_at, TEXT + b"second", append_delta(TEXT, b"second"))
    third = known(BLOB, TEXT + b"third")
    pack.ref(BLOB, first, TEXT + b"third", append_delta(TEXT, b"third"))
    more = b"100644 b\0" + second + b"100644 c\0" + third
    known(TREE, old_tree + more)
    pack.ofs(TREE, old_tree_at, old_tree + more, append_delta(old_tree, more))
    new = b"tree %b\nparent %b\nauthor A <a> 2 +0000\ncommitter C <c> 2 +0000\n\ntwo\n" % (
        name_of(TREE, old_tree + more).hex().encode(),
        name_of(COMMIT, old).hex().encode(),
    )
    tip = known(COMMIT, new)
    pack.whole(COMMIT, new)
    pack.finish()
    assert old_at < 4 * GIB < pack.entries[-1][2]
    assert pack.path.stat().st_blocks < 1000  # in units of 512 bytes
    git("update-ref", "HEAD", tip.hex(), cwd=path)
    return Far(path, tip, wanted, hidden)


def test_objects_are_read(native: bool, far: Far, git: Git) -> None:
    store = ObjectStore(far.path / "objects", SHA1)
    for name, data in far.wanted.items():
        kind, read = store.read(name)
        assert (name_of(kind, read), read) == (name, data)
        assert store.size_of(name) == (kind, len(data))
    assert store.size_of(far.hidden) == (BLOB, 1 << 33)
    assert git("cat-file", "-p", "HEAD:c", cwd=far.path) == (TEXT + b"third").decode()
    (pack,) = store.packs()
    for name in far.wanted:
        place = store.locate(name)
        assert place is not None
        assert pack.oid_at(place[1]) == name


@pytest.mark.parametrize("has_rev", [True, False])
def test_a_clone_and_a_fetch(native: bool, has_rev: bool, far: Far, git: Git, tmp_path: Path) -> None:
    if not has_rev:
        next(far.path.glob("objects/pack/*.rev")).unlink()
    store = ObjectStore(far.path / "objects", SHA1)
    client = tmp_path / "client.git"
    git("init", "-q", "--bare", client)
    (parent,) = store.commit(far.tip).parents
    for wants, haves in (([parent], []), ([far.tip], [parent])):
        selection = select_objects(store, wants=wants, haves=haves)
        pieces: list[bytes | memoryview] = []
        write_pack(store, selection, pieces.append, thin=True, ofs_delta=True, tick=lambda number: None)
        subprocess.run(
            ["git", "index-pack", "--stdin", "--strict", "--fix-thin"],
            cwd=client, env=git.environ, input=b"".join(pieces), check=True, capture_output=True,
        )  # fmt: skip
    found = git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)", cwd=client)
    assert {bytes.fromhex(line) for line in found.split()} == set(far.wanted)


def test_what_is_written_beside_it(native: bool, far: Far, git: Git) -> None:
    store = ObjectStore(far.path / "objects", SHA1)
    (pack,) = store.packs()
    assert write_bitmap(store, pack, [far.tip]) is not None
    git("rev-list", "--test-bitmap", "HEAD", cwd=far.path)
    listed = git("rev-list", "--objects", "--no-object-names", "--use-bitmap-index", "HEAD", cwd=far.path)
    assert {bytes.fromhex(line) for line in listed.split()} == set(far.wanted)
    pack.path.with_suffix(".bitmap").unlink()
    store.refresh()
    write_multi_pack_index(store, store.packs(), [far.tip])
    git("multi-pack-index", "verify", cwd=far.path)
    git("rev-list", "--test-bitmap", "HEAD", cwd=far.path)


@pytest.mark.skipif("GITSMART_HUGE" not in os.environ, reason="takes 5 GB of disk and minutes")
def test_offsets_beyond_four_gigabytes_are_indexed_as_by_git(native: bool, tmp_path: Path, git: Git) -> None:
    pack = SparsePack(tmp_path / "huge.pack")
    pack.path.touch()
    first = pack.whole(BLOB, TEXT)
    # 4 GiB of zeros in stored blocks, RFC 1951 section 3.2.4: five bytes each, then a hole
    size = 4 * GIB + 4711
    pack.add(bytes(20), entry_header(BLOB, size) + b"\x78\x01")
    with pack.path.open("r+b") as file:
        left = size
        while left:
            block = min(left, 65535)
            left -= block
            file.seek(pack.at)
            file.write(
                bytes([not left]) + block.to_bytes(2, "little") + (block ^ 0xFFFF).to_bytes(2, "little")
            )
            pack.at += 5 + block
        # RFC 1950 section 8.2, of zeros alone
        file.seek(pack.at)
        file.write((size % 65521 << 16 | 1).to_bytes(4, "big"))
        pack.at += 4
    pack.ofs(BLOB, first, TEXT + b"1", append_delta(TEXT, b"1"))
    pack.ref(BLOB, name_of(BLOB, TEXT), TEXT + b"2", append_delta(TEXT, b"2"))
    far_away = pack.whole(BLOB, TEXT + b"3")
    pack.ofs(BLOB, far_away, TEXT + b"34", append_delta(TEXT + b"3", b"4"))
    with pack.path.open("r+b") as file:
        file.write(b"PACK\0\0\0\2" + len(pack.entries).to_bytes(4, "big"))
        file.seek(0)
        checksum = hashlib.sha1()
        while piece := file.read(1 << 20):
            checksum.update(piece)
        file.write(checksum.digest())
    git("index-pack", "--rev-index", pack.path, timeout_s=3600)
    directory = tmp_path / "quarantine"
    directory.mkdir()
    with pack.path.open("rb") as file:
        result = ingest_pack(
            file.read,
            directory,
            SHA1,
            bases=ObjectStore(tmp_path / "none", SHA1),
            limits=IngestLimits(object_bytes=8 * GIB),
            tick=lambda done, total: None,
        )
    assert result.objects == len(pack.entries)
    for suffix in (".idx", ".rev"):
        (ours,) = directory.glob(f"*{suffix}")
        assert ours.read_bytes() == pack.path.with_suffix(suffix).read_bytes()
    git("verify-pack", *directory.glob("*.idx"), timeout_s=3600)
