"""Packs are sent whole only when they hold just what the tips reach."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gitsmart.errors import Disconnected
from gitsmart.pack import closure
from gitsmart.pack.objects import SHA1
from gitsmart.pack.packfile import PackFile
from gitsmart.pack.store import ObjectStore

History = Any  # conftest.py's


@pytest.fixture
def apart(packed: History, tmp_path: Path) -> Iterator[ObjectStore]:
    """The packed history, in a place of its own."""
    shutil.copytree(packed.path / "objects", tmp_path / "objects")
    store = ObjectStore(tmp_path / "objects", SHA1)
    yield store
    store.close()


def whole_pack(store: ObjectStore) -> PackFile:
    (pack,) = store.packs()
    return pack


def tips_of(history: History) -> list[bytes]:
    return [
        bytes.fromhex(line) for line in history.git("for-each-ref", "--format=%(objectname)").decode().split()
    ]


def test_all_tips_are_needed_and_they_must_be_in_the_pack(
    native: bool, packed: History, apart: ObjectStore
) -> None:
    pack, tips = whole_pack(apart), tips_of(packed)
    found = closure.pack_roots(pack)
    assert found.is_closed
    # What git finds unreferenced are the roots.
    out = packed.git("rev-list", "--objects", "--no-object-names", "--all").decode().split()
    assert pack.count == len(out)
    assert closure.verdict(pack, tips)
    assert found.roots <= set(tips)
    root = next(iter(found.roots))
    assert not closure.verdict(pack, set(tips) - {root})
    assert not closure.verdict(pack, [*tips, b"\1" * 20])
    assert closure.verdict(pack, found.roots)


def test_the_verdict_is_kept_beside_the_pack(
    native: bool, packed: History, apart: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = closure.pack_roots(whole_pack(apart))
    (kept,) = (whole_pack(apart).path.parent.parent / "info/gitsmart").iterdir()
    gone = kept.with_name("pack-00.roots")
    gone.write_bytes(b"")

    def never(*_: object) -> None:
        raise AssertionError("read through again")

    again = PackFile(whole_pack(apart).path, SHA1)
    with monkeypatch.context() as patch:
        patch.setattr(closure, "_find", never)
        assert closure.pack_roots(again) == found
    data = kept.read_bytes()
    for broken in (
        data[:-1],
        data + b"x",
        b"",
        data[:30],
        data[:9] + b"\1" + data[10:],
        data[:40] + b"x" + data[41:],
    ):
        kept.write_bytes(broken)
        other = PackFile(whole_pack(apart).path, SHA1)
        assert closure.stored_roots(other) is None
        assert closure.pack_roots(other) == found
        assert kept.read_bytes() == data
    assert not gone.exists()


def test_a_file_of_another_pack_counts_for_nothing(packed: History, apart: ObjectStore) -> None:
    pack = whole_pack(apart)
    closure.pack_roots(pack)
    (kept,) = (pack.path.parent.parent / "info/gitsmart").iterdir()
    other = PackFile(pack.path, SHA1)
    other.checksum = b"\0" * 20
    assert closure._parse(kept.read_bytes(), pack) is not None
    assert closure._parse(kept.read_bytes(), other) is None


def test_packs_that_lack_something_are_not_closed(
    native: bool, tangled: History, tangled256: History
) -> None:
    for history in (tangled, tangled256):
        packs = history.store().packs()
        verdicts = [closure._find(pack, lambda number: None).is_closed for pack in packs]
        # The lender's own pack is whole, those that build on it are not.
        assert sorted(verdicts) == [False] * (len(packs) - 1) + [True]


def test_what_a_pack_holds_beside_is_a_root(native: bool, git: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.git"
    git("init", "-q", "--bare", path)
    tree = git("mktree", cwd=path, input="").strip()
    old = git("commit-tree", "-m", "old", tree, cwd=path).strip()
    new = git("commit-tree", "-m", "new", "-p", old, tree, cwd=path).strip()
    gone = git("commit-tree", "-m", "gone", "-p", old, tree, cwd=path).strip()
    tag = git("mktag", cwd=path, input=f"object {tree}\ntype tree\ntag t\ntagger a <a> 1 +0000\n\n\n").strip()
    git(
        "pack-objects", path / "objects/pack/pack", cwd=path, input="\n".join((tree, old, new, gone, tag, ""))
    )
    pack = whole_pack(ObjectStore(path / "objects", SHA1))
    tips = [bytes.fromhex(oid) for oid in (new, gone, tag)]
    assert closure.pack_roots(pack).roots == set(tips)
    assert closure.verdict(pack, tips)
    for tip in tips:
        assert not closure.verdict(pack, set(tips) - {tip})


def test_whoever_asks_may_go_away(native: bool, apart: ObjectStore) -> None:
    def gone(number: int) -> None:
        raise Disconnected

    pack = whole_pack(apart)
    with pytest.raises(Disconnected):
        closure.pack_roots(pack, tick=gone)
    assert closure.pack_roots(pack).is_closed


def test_a_directory_that_cant_be_written_to_is_no_error(apart: ObjectStore) -> None:
    pack = whole_pack(apart)
    info = pack.path.parent.parent / "info"
    shutil.rmtree(info, ignore_errors=True)
    info.write_bytes(b"")
    assert closure.pack_roots(pack).is_closed
