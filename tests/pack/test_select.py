"""Selections equal `git rev-list --objects`; walks stop early; shallow boundaries cut."""

import random
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitsmart import native as native_module
from gitsmart.errors import Disconnected, ObjectMissing, PackError
from gitsmart.pack import select
from gitsmart.pack.objects import BLOB, COMMIT, SHA1, TAG, TREE, Commit, iter_tree
from gitsmart.pack.select import depth_boundary, reaches_common, select_objects, walk_commits
from gitsmart.pack.store import ObjectStore

History = Any  # conftest.py's

KINDS = {b"commit": COMMIT, b"tree": TREE, b"blob": BLOB, b"tag": TAG}


@pytest.fixture(params=["tangled", "tangled256", "packed"])
def history(request: pytest.FixtureRequest) -> History:
    found: History = request.getfixturevalue(request.param)
    return found


def pairs(history: History, number: int, seed: int) -> Iterable[tuple[list[bytes], list[bytes]]]:
    """Random wants and haves: mostly commits, sometimes tags."""
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


def test_equals_rev_list(native: bool, history: History) -> None:
    store = history.store()
    for wants, haves in pairs(history, 40, seed=3):
        selection = select_objects(store, wants=wants, haves=haves)
        assert set(selection.names()) == history.objects(wants, haves), (wants, haves)
        assert not set(selection.client_has_names()) & set(selection.names())


def test_equals_rev_list_when_levels_are_read_in_bulk(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_module, "available", False)
    monkeypatch.setattr(select, "_BULK", 1)
    store = history.store()
    for wants, haves in pairs(history, 20, seed=4):
        selection = select_objects(store, wants=wants, haves=haves)
        assert set(selection.names()) == history.objects(wants, haves), (wants, haves)


@pytest.mark.parametrize("bulk", [1, 10**9])
def test_equals_rev_list_when_hardly_any_tree_is_held(
    history: History, bulk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_module, "available", False)
    monkeypatch.setattr(select, "_BULK", bulk)
    monkeypatch.setattr(select, "_TREES_BYTES", 3000)
    store = history.store()
    for wants, haves in pairs(history, 12, seed=5):
        selection = select_objects(store, wants=wants, haves=haves)
        assert set(selection.names()) == history.objects(wants, haves), (wants, haves)


def test_everything_with_types_and_order(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_module, "available", False)
    wants = history.oids("--all")
    selection = select_objects(history.store(), wants=wants, haves=[])
    out = history.git(
        "cat-file",
        "--batch-check=%(objectname) %(objecttype)",
        input="\n".join(map(bytes.hex, selection.objects)).encode(),
    )
    assert selection.objects == {
        bytes.fromhex(oid.decode()): KINDS[kind] for oid, kind in (line.split() for line in out.splitlines())
    }
    kinds = list(selection.objects.values())
    assert kinds[: kinds.count(TAG)] == [TAG] * kinds.count(TAG)
    assert set(kinds[kinds.count(TAG) :][: kinds.count(COMMIT)]) == {COMMIT}
    assert set(selection.names()) == history.objects(wants)


def test_trees_and_blobs_as_wants(native: bool, history: History) -> None:
    store = history.store()
    tip = f"refs/heads/c{history.marks}"
    tree, tip_oid = history.oids(tip + "^{tree}", tip)
    blob, tag_of_tree = history.oids("of-blob^{}", "of-tree")
    for wants, haves in (
        ([tree], []),
        ([blob], []),
        ([tree, blob, tag_of_tree], []),
        ([tree], [tip_oid]),
        ([tip_oid], [tree]),
        ([tag_of_tree], [tree]),
    ):
        assert set(select_objects(store, wants=wants, haves=haves).names()) == history.objects(wants, haves)


def test_unknown_haves_are_passed_over_and_unknown_wants_raise(packed: History) -> None:
    store = packed.store()
    (tip,) = packed.oids("refs/heads/c9")
    selection = select_objects(store, wants=[tip], haves=[b"\1" * 20, b"short"])
    assert set(selection.names()) == packed.objects([tip])
    with pytest.raises(ObjectMissing, match="01" * 20):
        select_objects(store, wants=[b"\1" * 20], haves=[])


def test_what_was_reverted_is_sent_again_as_git_does(tmp_path: Path, git: Any) -> None:
    # The walk ends at the edge: that the client has the old blob, deep in its history, goes unnoticed.
    work = tmp_path / "work"
    git("init", "-q", work)
    for content in ("one", "two", "one"):
        (work / "file").write_text(content)
        git("add", "file", cwd=work)
        git("commit", "-qm", content, cwd=work)
    store = ObjectStore(work / ".git/objects", SHA1)
    oids = [bytes.fromhex(git("rev-parse", name, cwd=work)) for name in ("HEAD", "HEAD~1", "HEAD:file")]
    selection = select_objects(store, wants=oids[:1], haves=oids[1:2])
    assert oids[2] in selection
    assert len(selection) == 3


# -- commits


@pytest.fixture(scope="session")
def skewed(new_history: Any) -> History:
    history = new_history(seed=6, skewed=True)
    history.grow(120, unpack=False)
    return history


def test_no_commit_is_lost_by_skewed_clocks(skewed: History) -> None:
    rng = random.Random(7)
    commits = skewed.oids(*[f"refs/heads/c{n}" for n in range(1, skewed.marks + 1)])
    store = skewed.store()
    for _ in range(40):
        wants, haves = rng.sample(commits, 2), rng.sample(commits, rng.choice((1, 3)))
        sent = set(select_objects(store, wants=wants, haves=haves).names())
        whole, known = skewed.objects(wants), skewed.objects(haves)
        assert whole - known <= sent <= whole
        new, _ = walk_commits(store, wants, haves)
        assert set(new) >= {
            bytes.fromhex(line)
            for line in skewed.git(
                "rev-list", *[oid.hex() for oid in wants], "--not", *[oid.hex() for oid in haves]
            )
            .decode()
            .split()
        }


Commits = dict[bytes, tuple[int, tuple[bytes, ...]]]


class FakeStore:
    """Commits by name, with parents and dates; counts how many are looked at."""

    def __init__(self, commits: Commits) -> None:
        self.commits = commits
        self.read: set[bytes] = set()

    def commit(self, raw_oid: bytes) -> Commit:
        self.read.add(raw_oid)
        if raw_oid not in self.commits:
            raise ObjectMissing(raw_oid.hex())
        date, parents = self.commits[raw_oid]
        return Commit(b"t" + raw_oid, parents, date)


def walk(
    store: FakeStore, wants: list[bytes], haves: list[bytes], **more: Any
) -> tuple[list[bytes], set[bytes]]:
    return walk_commits(store, wants, haves, **more)  # type: ignore[arg-type]


def test_a_queued_commit_that_turns_out_known_does_not_end_the_walk() -> None:
    # w -> p and w -> n -> m; have -> p. p is queued as new, then becomes known: counted down once, not again
    # when it leaves the queue, or the walk would end before m.
    store = FakeStore(
        {
            b"w": (100, (b"p", b"n")),
            b"have": (99, (b"p",)),
            b"p": (98, ()),
            b"n": (50, (b"m",)),
            **{b"x%d" % n: (90 - n, (b"x%d" % (n + 1),)) for n in range(20)},
            b"x20": (60, ()),
            b"m": (40, ()),
        }
    )
    new, edges = walk(store, [b"w"], [b"have", b"x0"])
    assert new == [b"w", b"n", b"m"]
    assert edges == {b"p"}


def test_the_walk_ends_where_all_is_known() -> None:
    commits: Commits = {b"%d" % n: (n, (b"%d" % (n - 1),)) for n in range(1, 5000)}
    commits[b"0"] = (0, ())
    store = FakeStore(commits)
    new, edges = walk(store, [b"4999"], [b"4990"])
    assert new == [b"%d" % n for n in range(4999, 4990, -1)]
    assert edges == {b"4990"}
    assert len(store.read) < 30


def test_what_is_known_later_takes_its_ancestors_along() -> None:
    # The clock of `have` is far behind: `a` and `b` were taken for new when it is met.
    store = FakeStore(
        {
            b"w": (100, (b"a",)),
            b"a": (90, (b"b",)),
            b"b": (80, (b"c",)),
            b"c": (10, ()),
            b"have": (20, (b"a",)),
        }
    )
    new, edges = walk(store, [b"w"], [b"have"])
    assert new == [b"w"]
    assert edges == {b"a"}


def test_wants_that_are_had_give_nothing() -> None:
    store = FakeStore({b"b": (2, (b"a",)), b"a": (1, ())})
    assert walk(store, [b"b", b"a"], [b"b"]) == ([], set())


def test_boundary_and_client_shallow_cut() -> None:
    commits: Commits = {b"%d" % n: (n, (b"%d" % (n - 1),)) for n in range(1, 10)}
    commits[b"0"] = (0, ())
    assert walk(FakeStore(commits), [b"9"], [], boundary={b"7"}) == ([b"9", b"8", b"7"], set())
    # The client has 5, shallow: it lacks 4 and below, and now wants 3.
    new, _ = walk(FakeStore(commits), [b"3", b"6"], [b"5"], client_shallow={b"5"})
    assert new == [b"6", b"3", b"2", b"1", b"0"]


# -- shallow


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_depth_boundary_as_git_clone(packed: History, depth: int, tmp_path: Path, git: Any) -> None:
    tip = f"refs/heads/c{packed.marks}"
    clone = tmp_path / "clone"
    git(
        "clone", "-q", "--bare", f"--depth={depth}", "--single-branch", f"--branch=c{packed.marks}",
        f"file://{packed.path}", clone,
    )  # fmt: skip
    shallow = {bytes.fromhex(line) for line in (clone / "shallow").read_text().split()}
    store = packed.store()
    tips = packed.oids(tip)
    boundary, nearer = depth_boundary(store, tips, depth, frozenset())
    assert boundary == shallow
    commits = {bytes.fromhex(line) for line in git("rev-list", "--all", cwd=clone).split()}
    assert boundary | nearer == commits
    selection = select_objects(store, wants=tips, haves=[], boundary=boundary)
    assert set(selection.names()) == packed.objects(commits, (), "--no-walk")


def test_depth_boundary_stops_at_the_servers_own(packed: History) -> None:
    store = packed.store()
    tips = packed.oids("nested", "of-tree")
    nearest, _ = depth_boundary(store, tips, 2, frozenset())
    boundary, nearer = depth_boundary(store, tips, 10**9, nearest)
    assert boundary == nearest
    assert nearer == set(store.peel(tips[0])[1:2])


def test_deepening_sends_all_that_a_shallow_client_lacks(packed: History) -> None:
    store = packed.store()
    tips = packed.oids(f"refs/heads/c{packed.marks}")
    old, nearer = depth_boundary(store, tips, 3, frozenset())
    has = packed.objects(old | nearer, (), "--no-walk")
    new, deeper = depth_boundary(store, tips, 6, frozenset())
    parents = {parent for oid in old - new for parent in store.commit(oid).parents}
    selection = select_objects(
        store,
        wants=tips + list(parents),
        haves=tips,
        boundary=new,
        client_shallow=old,
        extra_uninteresting=old,
    )
    whole = packed.objects(new | deeper, (), "--no-walk")
    assert whole - has <= set(selection.names()) <= whole
    # What is at the old boundary is not sent again.
    assert not set(selection.names()) & packed.objects(old, (), "--no-walk")


# -- ready?


def test_reaches_common_as_merge_base_says(packed: History) -> None:
    store = packed.store()
    rng = random.Random(8)
    commits = packed.oids(*[f"refs/heads/c{n}" for n in range(1, packed.marks + 1)])
    outcomes = set()
    for _ in range(60):
        wants, common = rng.sample(commits, rng.choice((1, 2, 4))), set(rng.sample(commits, 3))
        ancestors = [
            {bytes.fromhex(line) for line in packed.git("rev-list", want.hex()).decode().split()}
            for want in wants
        ]
        expected = all(below & common for below in ancestors)
        assert reaches_common(store, wants, common, frozenset()) == expected
        outcomes.add(expected)
    assert outcomes == {True, False}


def test_reaches_common_of_odd_wants(packed: History) -> None:
    store = packed.store()
    nested, of_tree, tip = packed.oids("nested", "of-tree", "nested^{}")
    assert reaches_common(store, [nested, of_tree], {tip}, frozenset())
    assert not reaches_common(store, [nested], set(), frozenset())
    assert not reaches_common(store, [nested], {b"\1" * 20}, frozenset())
    (parent,) = store.commit(tip).parents[:1]
    assert reaches_common(store, [tip], {parent}, frozenset())
    assert not reaches_common(store, [tip], {parent}, {tip})


def test_ticks_may_cancel(packed: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_TICK_EVERY", 10)

    def gone(number: int) -> None:
        raise Disconnected("gone")

    with pytest.raises(Disconnected):
        select_objects(packed.store(), wants=packed.oids("--all"), haves=[], tick=gone)


# -- trees


def test_odd_modes_are_read_as_git_reads_them(new_history: Any) -> None:
    history = new_history()
    blob = bytes.fromhex(history.git("hash-object", "-w", "--stdin", input=b"b").decode())
    empty = bytes.fromhex(history.git("hash-object", "-w", "-t", "tree", "--stdin").decode())
    entries = [
        (b"100664", b"a", blob),
        (b"0100644", b"b", blob),
        (b"040000", b"c", empty),
        (b"160000", b"d", b"\7" * 20),
    ]
    data = b"".join(b"%b %b\0%b" % entry for entry in entries)
    tree = history.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", input=data).decode()
    selection = select_objects(history.store(), wants=[bytes.fromhex(tree)], haves=[])
    assert set(selection.names()) == {bytes.fromhex(tree), blob, empty}


@pytest.mark.parametrize(
    "data", [b"100644 a", b"100644 a\0" + b"x" * 19, b"x" * 40], ids=["name", "oid", "mode"]
)
def test_malformed_trees_raise(new_history: Any, data: bytes) -> None:
    history = new_history()
    tree = history.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", input=data).decode()
    with pytest.raises(PackError):
        select_objects(history.store(), wants=[bytes.fromhex(tree)], haves=[])


names = st.binary(min_size=1, max_size=8).map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"1"))
# Few oids, some of which look like entries: so that they recur, and could be taken for what they are not.
raw_oids = st.sampled_from(
    [
        b"\0" * 20,
        b"40000 a\0" + b"b" * 12,
        b"100644 a\0" * 2 + b"xy",
        *(bytes([n]) * 20 for n in (1, 2, 3, 120)),
    ]
)
trees = st.lists(
    st.tuples(st.sampled_from([b"100644", b"40000", b"160000", b"040000", b"120000"]), names, raw_oids),
    max_size=9,
)


def encode_size(size: int) -> bytes:
    out = bytearray()
    while size > 127:
        out.append(128 | (size & 127))
        size >>= 7
    return bytes((*out, size))


def any_delta(base: bytes, result: bytes, cuts: list[int]) -> bytes:
    """Make a delta that cuts the result anywhere, and copies whatever pieces the base happens to have."""
    out = [encode_size(len(base)), encode_size(len(result))]
    places = sorted({0, len(result), *(cut % (len(result) + 1) for cut in cuts)})
    for start, stop in pairwise(places):
        piece = result[start:stop]
        at = base.find(piece)
        if at >= 0:
            out.append(bytes((0x80 | 0x03 | 0x30, at & 255, at >> 8, len(piece) & 255, len(piece) >> 8)))
        else:
            out.extend(
                bytes((len(part),)) + part for part in (piece[n : n + 100] for n in range(0, len(piece), 100))
            )
    return b"".join(out)


def references(data: bytes) -> set[tuple[bytes, int]]:
    kinds = {0o040000: TREE, 0o160000: 0}
    found = {(oid, kinds.get(mode & 0o170000, BLOB)) for mode, _, oid in iter_tree(data, 20)}
    return {(oid, kind) for oid, kind in found if kind}


@given(
    base=trees,
    result=trees,
    keep=st.lists(st.booleans(), max_size=9),
    cuts=st.lists(st.integers(0, 400), max_size=14),
)
@settings(deadline=None)
def test_a_tree_from_a_delta_is_what_it_is_when_parsed(
    base: list[tuple[bytes, bytes, bytes]],
    result: list[tuple[bytes, bytes, bytes]],
    keep: list[bool],
    cuts: list[int],
) -> None:
    # Mostly entries of the base, some replaced.
    result = [old if kept else new for old, new, kept in zip(base, result, keep, strict=False)] + result[
        len(keep) :
    ]
    old, new = (b"".join(b"%b %b\0%b" % entry for entry in entries) for entries in (base, result))
    delta = any_delta(old, new, cuts)

    class Store:
        format = SHA1

    for pending in (True, False):
        reader = select._Trees(Store(), {}, set(), lambda number: None)  # type: ignore[arg-type]
        tree = select._Tree(old, None, list(references(old)) if pending else [])
        derived = reader._derived(tree, delta)
        assert derived.data == new
        assert derived.skeleton == reader._skeleton(select._Tree(new, None, []))
        if pending:
            # All; an oid that serves as two types (no repository has one) is given as one of them.
            assert {oid for oid, _ in derived.pending} == {oid for oid, _ in references(new)}
            assert set(derived.pending) <= references(new)
        else:
            assert set(derived.pending) <= references(new)
            seen = {oid for oid, _ in references(old)}
            assert {oid for oid, _ in references(new)} - seen <= {oid for oid, _ in derived.pending}


@given(base=trees, delta=st.binary(max_size=60))
@settings(deadline=None)
def test_garbage_for_a_delta_raises_packerror_only(
    base: list[tuple[bytes, bytes, bytes]], delta: bytes
) -> None:
    class Store:
        format = SHA1

    old = b"".join(b"%b %b\0%b" % entry for entry in base)
    reader = select._Trees(Store(), {}, set(), lambda number: None)  # type: ignore[arg-type]
    for claim in (1, 20, 90):
        try:
            derived = reader._derived(
                select._Tree(old, None, []), encode_size(len(old)) + encode_size(claim) + delta
            )
        except PackError:
            continue
        assert len(derived.data) == claim == len(derived.skeleton or b"")
