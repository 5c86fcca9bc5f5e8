"""Bitmaps: git's are read, ours are accepted by git, broken ones count for nothing."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gitsmart.errors import PackError
from gitsmart.pack import bitmap as module
from gitsmart.pack.bitmap import (
    BitmapFile,
    bitmaps_of,
    format_bitmap,
    select_commits,
    write_bitmap,
    write_multi_pack_index,
)
from gitsmart.pack.ewah import positions
from gitsmart.pack.mapping import map_file
from gitsmart.pack.midx import read_midx, write_midx
from gitsmart.pack.objects import BLOB, COMMIT, SHA1, SHA256, TAG, TREE, ObjectFormat
from gitsmart.pack.store import ObjectStore

History = Any  # conftest.py's
Copy = Callable[..., tuple[History, ObjectStore]]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Return a function that copies a history, and opens its store."""

    def make(history: History) -> tuple[History, ObjectStore]:
        path = tmp_path / f"copy{len(list(tmp_path.iterdir()))}.git"
        shutil.copytree(history.path, path, symlinks=True)
        copied = type(history)(path, history.format, history.environ, history.rng, marks=history.marks)
        return copied, copied.store()

    return make


@pytest.fixture(scope="session")
def several(new_history: Any) -> dict[ObjectFormat, History]:
    """Histories in three packs each, which share objects, and more that is loose."""
    found = {}
    for fmt in (SHA1, SHA256):
        history = new_history(fmt, seed=11)
        history.grow(60, unpack=False)
        history.grow(40, unpack=False)
        history.git("repack", "-dq")
        history.grow(30, unpack=False)
        history.tags()
        history.git("repack", "-dq")
        found[fmt] = history
    return found


def check_bitmaps(history: History, store: ObjectStore) -> None:
    """Whatever commits have bitmaps, these hold what git says that they reach."""
    bitmaps = bitmaps_of(store)
    assert bitmaps is not None
    assert len(bitmaps)
    whole = bitmaps.map
    for number in positions(bitmaps.stops())[:: max(1, len(bitmaps) // 10)]:
        bits = bitmaps.bits(number)
        assert bits is not None
        pack, rank = whole.place_of(number)
        raw_oid = pack.oid_at(pack.by_offset()[0][rank])
        assert set(whole.names(bits)) == history.objects([raw_oid]), raw_oid.hex()


def test_git_s_own(native: bool, packed: History, copy: Copy) -> None:
    history, store = copy(packed)
    assert bitmaps_of(store) is None
    for options in (["pack.writeBitmapLookupTable=true"], ["pack.writeBitmapHashCache=false"]):
        for old in (history.path / "objects/pack").glob("*.bitmap"):
            old.unlink()
        flags = [flag for option in options for flag in ("-c", option)]
        history.git(*flags, "repack", "-adbq")
        store.refresh()
        check_bitmaps(history, store)


def test_of_several_packs(native: bool, several: dict[ObjectFormat, History], copy: Copy) -> None:
    for history in several.values():
        history, store = copy(history)
        history.git("multi-pack-index", "write", "--bitmap")
        check_bitmaps(history, store)


def test_ours_are_accepted_by_git(native: bool, packed: History, copy: Copy) -> None:
    history, store = copy(packed)
    (pack,) = store.packs()
    tips = history.oids("--all")
    path = write_bitmap(store, pack, tips)
    assert path is not None
    check_bitmaps(history, store)
    for tip in history.oids(*[f"refs/heads/c{n}" for n in (history.marks, history.marks // 2)]):
        history.git("rev-list", "--test-bitmap", tip.hex())
    history.git("fsck", "--strict")
    rng = random.Random(4)
    for _ in range(5):
        want, have = rng.sample(history.oids(*[f"refs/heads/c{n}" for n in range(1, history.marks)]), 2)
        by_bitmap = history.objects([want], [have], "--use-bitmap-index")
        assert by_bitmap == history.objects([want]) - history.objects([have])


def test_none_for_what_a_pack_lacks(native: bool, tangled: History) -> None:
    store = tangled.store()
    pack = next(pack for pack in store.packs() if pack.path.is_relative_to(tangled.path))
    assert write_bitmap(store, pack, tangled.oids("--all")) is None
    assert not pack.path.with_suffix(".bitmap").exists()


def test_chosen_commits_lie_denser_near_the_tips(packed: History) -> None:
    tips = packed.oids("--all")
    store = packed.store()
    chosen = select_commits(store, tips[-1:], dense=3)
    assert store.peel(tips[-1])[1] == chosen[0]
    assert len(chosen) < packed.marks / 3
    dates = [store.commit(raw_oid).date for raw_oid in chosen]
    assert dates == sorted(dates, reverse=True)
    assert len(select_commits(store, tips, most=5)) == 5


def test_types(packed: History, copy: Copy) -> None:
    history, store = copy(packed)
    history.git("repack", "-adbq")
    store.refresh()
    (pack,) = store.packs()
    file = BitmapFile(map_file(pack.path.with_suffix(".bitmap")), pack.count, pack.checksum, SHA1)
    bitmaps = bitmaps_of(store)
    assert bitmaps is not None
    for kind in (COMMIT, TREE, BLOB, TAG):
        assert file.of_type(kind) == bitmaps.map.of_type(kind)


def test_broken_files_count_for_nothing(
    packed: History, copy: Copy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, store = copy(packed)
    history.git("repack", "-adbq")
    store.refresh()
    (pack,) = store.packs()
    path = pack.path.with_suffix(".bitmap")
    data = path.read_bytes()
    rng = random.Random(8)
    for _ in range(25):
        broken = bytearray(data)
        if rng.random() < 0.5:
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        else:
            del broken[rng.randrange(len(broken)) :]
        with pytest.raises(PackError):
            BitmapFile(memoryview(bytes(broken)), pack.count, pack.checksum, SHA1)
    # With checksums that are right, whatever is in them
    monkeypatch.setattr(module, "is_intact", lambda data, fmt: True)
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 3))):
            broken[rng.randrange(len(broken))] = rng.choice((0, 255, rng.randrange(256)))
        try:
            file = BitmapFile(memoryview(bytes(broken)), pack.count, pack.checksum, SHA1)
            for row in range(len(file.commits)):
                file.bits(row)
        except PackError:
            continue
    monkeypatch.undo()
    path.chmod(0o644)
    path.write_bytes(data[:-30])
    assert bitmaps_of(history.store()) is None
    assert "ignored" in caplog.text
    caplog.clear()


def test_of_another_pack(packed: History, copy: Copy, caplog: pytest.LogCaptureFixture) -> None:
    history, store = copy(packed)
    history.git("repack", "-adbq")
    store.refresh()
    (pack,) = store.packs()
    with pytest.raises(PackError, match="another pack"):
        BitmapFile(map_file(pack.path.with_suffix(".bitmap")), pack.count, b"\0" * 20, SHA1)
    old = pack.path.with_suffix(".bitmap").read_bytes()
    history.grow(3, unpack=False)
    history.git("repack", "-adq", "--no-write-bitmap-index")
    store.refresh()
    (pack,) = store.packs()
    pack.path.with_suffix(".bitmap").write_bytes(old)
    assert bitmaps_of(store) is None
    assert "belongs to another pack" in caplog.text
    caplog.clear()


def test_our_multi_pack_index_is_accepted_by_git(several: dict[ObjectFormat, History], copy: Copy) -> None:
    for fmt, history in several.items():
        history, store = copy(history)
        packs = store.packs()
        directory = history.path / "objects/pack"
        for preferred in (None, packs[-1]):
            data = write_midx(packs, fmt, preferred=preferred)
            (directory / "multi-pack-index").unlink(missing_ok=True)
            (directory / "multi-pack-index").write_bytes(data)
            history.git("multi-pack-index", "verify")
            index = read_midx(directory, fmt)
            assert sorted(index.in_order(fmt.raw_len)) == sorted(
                {
                    name
                    for pack in packs
                    for name in (pack.name_at(position) for position in range(pack.count))
                }
            )
            rng = random.Random(3)
            for _ in range(20):
                broken = bytearray(data)
                broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
                (directory / "multi-pack-index").write_bytes(broken[: rng.choice((len(broken), 900, 20))])
                with pytest.raises(PackError):
                    read_midx(directory, fmt)
    with pytest.raises(PackError, match="needs packs"):
        write_midx([], SHA1)


def test_our_multi_pack_bitmap_is_accepted_by_git(
    native: bool, several: dict[ObjectFormat, History], copy: Copy
) -> None:
    for history in several.values():
        history, store = copy(history)
        tips = history.oids("--all")
        old = history.path / "objects/pack/multi-pack-index-00.bitmap"
        old.write_bytes(b"")
        write_multi_pack_index(store, store.packs(), tips)
        assert not old.exists()
        history.git("multi-pack-index", "verify")
        for tip in history.oids(f"refs/heads/c{history.marks}", "refs/heads/c70"):
            history.git("rev-list", "--test-bitmap", tip.hex())
        history.git("fsck")
        store.refresh()
        check_bitmaps(history, store)
        lock = history.path / "objects/pack/multi-pack-index.lock"
        lock.write_bytes(b"")
        with pytest.raises(FileExistsError):
            write_multi_pack_index(store, store.packs(), tips)
    with pytest.raises(PackError, match="needs packs"):
        write_multi_pack_index(store, [], tips)


def test_bits_behind_the_last_object(new_history: "Callable[..., Any]") -> None:
    """They don't become the first objects of another pack."""
    history = new_history()
    history.grow(20, unpack=False)
    history.git("repack", "-adq")
    history.grow(3, unpack=False)
    store = history.store()
    pack = max(store.packs(), key=lambda pack: pack.count)
    assert pack.count % 64
    (tip,) = history.oids("refs/heads/c20")
    position = pack.position_of(tip)
    assert position is not None
    bits = bytearray((pack.count + 63) // 64 * 8)
    none = bytes(bits)
    bits[pack.count >> 3] |= 1 << (pack.count & 7)
    data = format_bitmap([(position, lambda: bits)], [none] * 4, pack.checksum, store.format)
    pack.path.with_suffix(".bitmap").write_bytes(data)
    bitmaps = bitmaps_of(history.store())
    assert bitmaps is not None
    number = bitmaps.map.number_of(tip)
    assert number is not None
    assert bitmaps.bits(number) is None
    assert len(bitmaps) == 0
