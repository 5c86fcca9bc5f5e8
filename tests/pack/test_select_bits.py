"""Selections by bitmaps: exactly what the wants reach and the haves do not."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gitsmart import native as native_module
from gitsmart.errors import ObjectMissing
from gitsmart.pack import select as module
from gitsmart.pack.bitmap import Bitmaps, bitmaps_of
from gitsmart.pack.closure import Roots, pack_roots
from gitsmart.pack.filters import ObjectFilter
from gitsmart.pack.objects import BLOB, COMMIT, TAG, TREE
from gitsmart.pack.packfile import PackFile
from gitsmart.pack.reach import Reach
from gitsmart.pack.select import select_objects

History = Any  # conftest.py's


@pytest.fixture(scope="module", params=["one pack", "several", "grown since"])
def marked(request: pytest.FixtureRequest, new_history: Any) -> History:
    """Histories with bitmaps: of one pack, of several, and of one that others and loose objects came
    after."""
    history = new_history(seed=21)
    history.grow(70, unpack=False)
    if request.param == "several":
        history.git("repack", "-dq")
        history.grow(50, unpack=False)
        history.git("repack", "-dq")
        history.grow(10, unpack=False)
        history.tags()
        history.git("repack", "-dq")
        history.git("multi-pack-index", "write", "--bitmap")
    else:
        history.tags()
        history.git("repack", "-adbq")
    if request.param == "grown since":
        history.grow(20, unpack=False)
        history.git("repack", "-dlq")
        history.grow(9, unpack=True)
    assert bitmaps_of(history.store()) is not None
    return history


def pairs(history: History, number: int, seed: int) -> Any:
    rng = random.Random(seed)
    commits = history.oids(*[f"refs/heads/c{n}" for n in range(1, history.marks + 1)])
    tags = history.oids("annotated", "old", "nested", "of-tree", "of-blob")
    for _ in range(number):
        wants = rng.sample(commits, rng.choice((1, 1, 2, 6)))
        haves = rng.sample(commits, rng.choice((0, 1, 1, 2, 20)))
        if rng.random() < 0.3:
            wants += rng.sample(tags, 2)
        if rng.random() < 0.3:
            haves += rng.sample(tags, 1)
        yield wants, haves


def test_equals_what_git_gives(native: bool, marked: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_select_names", None)
    store = marked.store()
    for wants, haves in pairs(marked, 8, seed=5):
        whole, known = marked.objects(wants), marked.objects(haves)
        for _ in range(2):  # what was filled in the first time is known the second time
            selection = select_objects(store, wants=wants, haves=haves)
            names = list(selection.names())
            assert len(names) == len(selection)
            assert set(names) == whole - known, (wants, haves)
            assert set(selection.client_has_names()) == known
            assert selection.among(whole) == whole - known


FILTERS = {
    "blob:none": ObjectFilter(blob_limit=0),
    "tree:0": ObjectFilter(tree_depth=0),
    "object:type=commit": ObjectFilter(types=frozenset({COMMIT})),
    "object:type=tree": ObjectFilter(types=frozenset({TREE})),
    "object:type=blob": ObjectFilter(types=frozenset({BLOB})),
    "object:type=tag": ObjectFilter(types=frozenset({TAG})),
}


def test_names_come_sorted(native: bool, marked: History) -> None:
    store = marked.store()
    wants = marked.oids(f"refs/heads/c{marked.marks}", "annotated")
    selection = select_objects(store, wants=wants, haves=())
    names = b"".join(sorted(selection.names()))
    assert len(names) == 20 * len(selection)
    pieces = list(selection.sorted_names())
    assert b"".join(pieces) == names
    assert len(pieces) == 256
    # some of them by name
    few = set(list(selection.names())[::7])
    for raw_oid in few:
        kind = store.type_of(raw_oid)
        assert selection.discard(raw_oid)
        selection.objects[raw_oid] = kind
    assert b"".join(selection.sorted_names()) == names


@pytest.mark.parametrize("spec", FILTERS)
def test_filters(native: bool, marked: History, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = marked.store()
    keep = FILTERS[spec]
    for wants, haves in pairs(marked, 3, seed=6):
        noted: list[bytes] = []
        selection = select_objects(store, wants=wants, haves=haves, keep=keep, note=noted.extend)
        peeled = [store.peel(want) for want in wants]
        given = {
            oid
            for want, (tags, target, _) in zip(wants, peeled, strict=True)
            for oid in (want, *tags, target)
        }
        filtered = marked.objects(wants, (), f"--filter={spec}") | given
        known = marked.objects(haves)
        if any(kind == TREE for _, _, kind in peeled):
            # Done without bitmaps: some that the client has may be sent.
            assert filtered - known <= set(selection.names()) <= filtered
        else:
            assert set(selection.names()) == filtered - known
            tags = {raw_oid for raw_oid in marked.objects(wants) if store.type_of(raw_oid) == TAG}
            assert set(noted) == marked.objects(wants) - known - tags
        kinds = {store.type_of(raw_oid) for raw_oid in selection.client_has_names()}
        if keep.drops_trees:
            assert kinds <= {COMMIT}
        elif keep.drops_blobs:
            assert BLOB not in kinds


def test_what_was_filled_in_is_kept_within_bounds(marked: History, monkeypatch: pytest.MonkeyPatch) -> None:
    store = marked.store()
    bitmaps = bitmaps_of(store)
    assert bitmaps is not None
    monkeypatch.setattr("gitsmart.pack.bitmap._FILLED_BYTES", 3 * (bitmaps.map.total // 8 + 1))
    before = bitmaps.stops()
    for raw_oid in marked.oids(*[f"refs/heads/c{n}" for n in range(20, 28)]):
        reach = Reach(store, bitmaps.map, bitmaps)
        reach.add_and_keep(raw_oid)
        assert set(bitmaps.map.names(reach.bits())) == marked.objects([raw_oid])
    assert len(bitmaps._filled) <= 3
    assert sum(map(int.bit_count, bitmaps.stops())) <= sum(map(int.bit_count, before)) + 3


def test_a_bitmap_that_turns_out_broken_is_done_without(
    native: bool, marked: History, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = marked.store()
    bitmaps = bitmaps_of(store)
    assert bitmaps is not None
    monkeypatch.setattr("gitsmart.pack.bitmap.xor_ewah", lambda out, data: False)
    for wants, haves in pairs(marked, 2, seed=7):
        selection = select_objects(store, wants=wants, haves=haves)
        assert set(selection.names()) == marked.objects(wants) - marked.objects(haves)
    assert not len(bitmaps)
    caplog.clear()


def test_bitmaps_of_packs_that_went_are_not_used(marked: History, tmp_path: Path) -> None:
    path = tmp_path / "copy.git"
    shutil.copytree(marked.path, path)
    history = type(marked)(path, marked.format, marked.environ, marked.rng, marks=marked.marks)
    store = history.store()
    first = bitmaps_of(store)
    assert isinstance(first, Bitmaps)
    assert bitmaps_of(store) is first
    history.git("repack", "-adq")
    store.refresh()
    second = bitmaps_of(store)
    assert second is not first
    for wants, haves in pairs(history, 5, seed=8):
        sent = set(select_objects(store, wants=wants, haves=haves).names())
        whole, known = history.objects(wants), history.objects(haves)
        assert whole - known <= sent <= whole


def test_missing_objects(native: bool, marked: History) -> None:
    with pytest.raises(ObjectMissing):
        select_objects(marked.store(), wants=[b"\1" * 20], haves=[])
    (tip,) = marked.oids("refs/heads/c30")
    selection = select_objects(marked.store(), wants=[tip], haves=[b"\1" * 20])
    assert set(selection.names()) == marked.objects([tip])


@pytest.mark.parametrize("few", [0, 100])
def test_clones_of_a_pack_that_is_closed(
    packed: History, tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native_module.available:
        pytest.skip("without native module all is walked")
    monkeypatch.setattr(module, "_CLOSURE_LEAST", 1)
    monkeypatch.setattr(module, "_FEW_ROOTS", few)
    path = tmp_path / "copy.git"
    shutil.copytree(packed.path, path)
    history = type(packed)(path, packed.format, packed.environ, packed.rng, marks=packed.marks)
    read: list[object] = []

    def counting(pack: PackFile, *, tick: Callable[[int], None]) -> Roots:
        read.append(pack)
        return pack_roots(pack, tick=tick)

    monkeypatch.setattr(module, "pack_roots", counting)
    everything = [*history.oids("--all")]
    tags = history.oids("annotated", "old", "nested", "of-tree", "of-blob")
    branches = [oid for oid in everything if oid not in tags]
    rng = random.Random(1)
    cases = [everything, branches, [*branches, tags[2]], branches[-1:], [*branches, *tags[3:]]]
    cases += [rng.sample(branches, 3) for _ in range(2)]
    for wants in cases:
        for keep in (None, ObjectFilter(blob_limit=0)):
            selection = select_objects(history.store(), wants=wants, haves=[], keep=keep)
            options = () if keep is None else ("--filter=blob:none",)
            given = {tags[4], *history.oids("of-blob^{}")} & set(history.objects(wants)) if keep else set()
            assert set(selection.names()) == history.objects(wants, (), *options) | given
    assert read
    # More objects came: the pack is still taken whole, and nothing twice.
    history.marks, history.commits, history.names = packed.marks, list(packed.commits), dict(packed.names)
    history.clock = packed.clock
    history.grow(10, unpack=False)
    history.grow(10, unpack=True)
    wants = history.oids("--all")
    selection = select_objects(history.store(), wants=wants, haves=[])
    names = list(selection.names())
    assert len(names) == len(set(names))
    assert set(names) == history.objects(wants)
