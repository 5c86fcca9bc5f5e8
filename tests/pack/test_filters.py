"""Filters leave out what git leaves out, and patterns match as git's do."""

import os
import random
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gitsmart.errors import LimitExceeded
from gitsmart.pack import filters
from gitsmart.pack.filters import ALL_TYPES, ObjectFilter, SparsePatterns
from gitsmart.pack.objects import BLOB, COMMIT, SHA1, TAG, TREE
from gitsmart.pack.select import select_objects
from gitsmart.pack.store import ObjectStore

History = Any  # conftest.py's

PATTERNS = {
    "cone": b"/*\n!/*/\n/d1/\n!/d1/*/\n/d1/d2/\n",
    "names": b"f1*\n!f11\n# no\nlinks/\n",
    "paths": b"d0/**\n!d0/d1/f*\n**/d2/f[0-9]\nd3/*/f?\n",
    "all-but": b"*\n!d2/\n!*3\n",
    "none": b"",
}


@pytest.fixture(params=["tangled", "tangled256", "packed"])
def history(request: pytest.FixtureRequest) -> History:
    found: History = request.getfixturevalue(request.param)
    return found


def pairs(history: History, number: int, seed: int) -> Iterable[tuple[list[bytes], list[bytes]]]:
    rng = random.Random(seed)
    commits = history.oids(*[f"refs/heads/c{n}" for n in range(1, history.marks + 1)])
    tags = history.oids("annotated", "old", "nested", "of-tree", "of-blob")
    for _ in range(number):
        wants = rng.sample(commits, rng.choice((1, 1, 2, 6)))
        haves = rng.sample(commits, rng.choice((0, 0, 1, 2)))
        if rng.random() < 0.3:
            wants += rng.sample(tags, 2)
        yield wants, haves


def write_patterns(history: History) -> dict[str, bytes]:
    return {
        name: history.git("hash-object", "-w", "--stdin", input=data).strip()
        for name, data in PATTERNS.items()
    }


def given_by(history: History, wants: list[bytes], haves: list[bytes]) -> set[bytes]:
    """What is sent because it was asked for: wants, and what their tags point at, unless it is known."""
    asked = set(wants)
    store = history.store()
    for want in wants:
        tags, target, _ = store.peel(want)
        asked |= {*tags, target}
    reached: set[bytes] = history.objects(wants, haves)
    return asked & reached


def check(history: History, spec: str, keep: ObjectFilter, number: int = 14) -> None:
    store = history.store()
    for wants, haves in pairs(history, number, seed=len(spec)):
        selection = select_objects(store, wants=wants, haves=haves, keep=keep)
        expected = history.objects(wants, haves, f"--filter={spec}") | given_by(history, wants, haves)
        assert set(selection.names()) == expected, (spec, wants, haves)
        assert not set(selection.client_has_names()) & set(selection.names())
        assert all(store.type_of(raw_oid) == kind for raw_oid, kind in selection.objects.items())


@pytest.mark.parametrize("limit", [0, 1, 500, 1200, 10**9])
def test_blob_limit_equals_rev_list(history: History, limit: int) -> None:
    check(history, f"blob:limit={limit}", ObjectFilter(blob_limit=limit))


def test_blob_none_equals_rev_list(history: History) -> None:
    check(history, "blob:none", ObjectFilter(blob_limit=0), 30)


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4, 9])
def test_tree_depth_equals_rev_list(history: History, depth: int) -> None:
    check(history, f"tree:{depth}", ObjectFilter(tree_depth=depth), 20)


@pytest.mark.parametrize("kind", [COMMIT, TREE, BLOB, TAG])
def test_object_type_equals_rev_list(history: History, kind: int) -> None:
    name = {COMMIT: "commit", TREE: "tree", BLOB: "blob", TAG: "tag"}[kind]
    check(history, f"object:type={name}", ObjectFilter(types=frozenset({kind})))


@pytest.mark.parametrize("name", PATTERNS)
def test_sparse_equals_rev_list(history: History, name: str) -> None:
    oid = write_patterns(history)[name].decode()
    check(history, f"sparse:oid={oid}", ObjectFilter(sparse=(SparsePatterns(PATTERNS[name]),)), 8)


def test_combined_filters_send_what_every_part_sends(history: History) -> None:
    """git sends no more than that, and less when a part has let an object pass before another did."""
    store = history.store()
    oid = write_patterns(history)["cone"].decode()
    parts = {
        "blob:limit=700": ObjectFilter(blob_limit=700),
        "tree:3": ObjectFilter(tree_depth=3),
        f"sparse:oid={oid}": ObjectFilter(sparse=(SparsePatterns(PATTERNS["cone"]),)),
        "object:type=blob": ObjectFilter(types=frozenset({BLOB})),
    }
    for names in (
        ["blob:limit=700", "tree:3"],
        ["tree:3", f"sparse:oid={oid}"],
        ["blob:limit=700", f"sparse:oid={oid}", "tree:3"],
        ["object:type=blob", "blob:limit=700"],
    ):
        keep = ObjectFilter()
        for name in names:
            keep = keep.also(parts[name])
        for wants, haves in pairs(history, 6, seed=11):
            sent = set(select_objects(store, wants=wants, haves=haves, keep=keep).names())
            each = [history.objects(wants, haves, f"--filter={name}") for name in names]
            asked = given_by(history, wants, haves)
            assert sent == set.intersection(*each) | asked, (names, wants, haves)
            spec = "combine:" + "+".join(names)
            assert history.objects(wants, haves, f"--filter={spec}") <= sent


def test_what_is_asked_for_is_sent_whatever_the_filter(packed: History) -> None:
    store = packed.store()
    tip = f"refs/heads/c{packed.marks}"
    tree, tip_oid, blob, tag = packed.oids(tip + "^{tree}", tip, "of-blob^{}", "of-blob")
    for spec, keep in (
        ("blob:none", ObjectFilter(blob_limit=0)),
        ("tree:0", ObjectFilter(tree_depth=0)),
        ("tree:1", ObjectFilter(tree_depth=1)),
        ("tree:2", ObjectFilter(tree_depth=2)),
        ("object:type=commit", ObjectFilter(types=frozenset({COMMIT}))),
        ("object:type=tag", ObjectFilter(types=frozenset({TAG}))),
    ):
        for wants in ([tree], [blob], [tree, blob], [tag], [tip_oid]):
            sent = set(select_objects(store, wants=wants, haves=[], keep=keep).names())
            assert sent == packed.objects(wants, [], f"--filter={spec}"), (spec, wants)
        # git forgets that the tree was asked for when it is a wanted commit's, too.
        sent = set(select_objects(store, wants=[tip_oid, tree], haves=[], keep=keep).names())
        assert sent == packed.objects([tip_oid, tree], [], f"--filter={spec}") | {tree}


def test_what_the_client_has_is_not_sent_again_as_a_want(packed: History) -> None:
    store = packed.store()
    old, new = packed.oids("annotated^{}", "annotated^{}~1")
    assert new in packed.objects([old])
    selection = select_objects(store, wants=[new], haves=[old], keep=ObjectFilter(blob_limit=0))
    assert not len(selection)


def test_thin_packs_build_on_nothing_that_the_filter_keeps_from_the_client(packed: History) -> None:
    store = packed.store()
    want, have = packed.oids("annotated^{}", "annotated^{}~3")
    kinds = {
        depth: {
            store.type_of(raw_oid)
            for raw_oid in select_objects(store, wants=[want], haves=[have], keep=keep).client_has_names()
        }
        for depth, keep in ((0, ObjectFilter(tree_depth=0)), (1, ObjectFilter(blob_limit=0)))
    }
    assert kinds == {0: {COMMIT}, 1: {COMMIT, TREE}}


def test_all_that_was_reached_is_noted(packed: History) -> None:
    store = packed.store()
    (want,) = packed.oids("refs/heads/c100")
    noted: list[bytes] = []
    selection = select_objects(
        store, wants=[want], haves=[], keep=ObjectFilter(blob_limit=0), note=noted.extend
    )
    assert set(noted) == packed.objects([want])
    assert set(selection.names()) < set(noted)


def test_boundaries_and_filters_together(packed: History) -> None:
    store = packed.store()
    (want,) = packed.oids("refs/heads/c150")
    tree = store.commit(want).tree
    sent = select_objects(store, wants=[want], haves=[], boundary={want}, keep=ObjectFilter(blob_limit=0))
    assert set(sent.names()) == {want} | packed.objects([tree], [], "--filter=object:type=tree")


def test_paths_that_multiply_are_given_up(tmp_path: Path, git: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty levels of two equal folders each: a handful of objects with a thousand million paths."""
    git("init", "-q", "--bare", tmp_path)
    oid = git("hash-object", "-w", "--stdin", cwd=tmp_path, input="x")
    tree = git("mktree", cwd=tmp_path, input=f"100644 blob {oid}\tf\n")
    for _ in range(30):
        tree = git("mktree", cwd=tmp_path, input=f"040000 tree {tree}\ta\n040000 tree {tree}\tb\n")
    commit = bytes.fromhex(git("commit-tree", "-m", "bomb", tree, cwd=tmp_path))
    store = ObjectStore(tmp_path / "objects", SHA1)
    monkeypatch.setattr(filters, "_VISITS_AT_LEAST", 5000)
    keep = ObjectFilter(sparse=(SparsePatterns(b"/a/\n"),))
    with pytest.raises(LimitExceeded, match="too many paths"):
        select_objects(store, wants=[commit], haves=[], keep=keep)


def test_filters_that_hold_together() -> None:
    one = ObjectFilter(blob_limit=5, types=frozenset({BLOB, TREE}))
    two = ObjectFilter(blob_limit=3, tree_depth=2, types=frozenset({BLOB, COMMIT}))
    assert one.also(two) == two.also(one) == ObjectFilter(blob_limit=3, tree_depth=2, types=frozenset({BLOB}))
    assert ObjectFilter().also(one) == one
    assert not ObjectFilter().drops_blobs
    assert ObjectFilter(types=ALL_TYPES).keeps_trees


# -- patterns


@pytest.fixture(scope="module")
def worktrees(git: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A work tree that is empty, so that git takes paths for files, and one in which they all are folders."""
    paths: tuple[Path, Path] = (tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("folders"))
    for path in paths:
        git("init", "-q", path)
    for name in PATHS:
        os.makedirs(os.path.join(os.fsencode(paths[1]), name), exist_ok=True)
    return paths


Verdicts = dict[tuple[bytes, bool], bool]


def gits(worktrees: tuple[Path, Path], environ: dict[str, str], data: bytes) -> Verdicts:
    """What `git check-ignore` makes of each path, as a file and as a folder."""
    verdicts: Verdicts = {}
    for is_dir in (False, True):
        (worktrees[is_dir] / ".git/info/exclude").write_bytes(data)
        out = subprocess.run(
            ["git", "check-ignore", "--no-index", "-v", "-n", "-z", "--stdin"],
            cwd=worktrees[is_dir],
            env=environ,
            input=b"".join(path + b"\0" for path in PATHS),
            capture_output=True,
        ).stdout.split(b"\0")
        for n in range(0, len(out) - 1, 4):
            _, _, pattern, path = out[n : n + 4]
            verdicts[path, is_dir] = bool(pattern) and not pattern.startswith(b"!")
    assert len(verdicts) == 2 * len(PATHS)
    return verdicts


def ours(data: bytes) -> Verdicts:
    """The same by our patterns: a path's own match, or that of the nearest folder above that is matched."""
    patterns = SparsePatterns(data)

    def verdict(path: bytes, is_dir: bool) -> bool:
        steps = path.split(b"/")
        for count in range(1, len(steps)):
            if patterns.match(b"/".join(steps[:count]), is_dir=True):
                return True  # what is in an ignored folder can't be un-ignored
        return patterns.match(path, is_dir=is_dir) or False

    return {(path, is_dir): verdict(path, is_dir) for path in PATHS for is_dir in (False, True)}


PATHS = [
    b"a", b"b", b"ab", b"abc", b"foo", b"foo.c", b"a/b", b"a/foo", b"a/b/c", b"a/b/c/d", b"foo/bar",
    b"x/foo/bar", b"x/y/foo/bar", b"a/x/b", b"a/x/y/b", b"-", b"a-b", b"a]b", b"a[b", b"a\\b", b"a*b",
    b"#x", b"!x", b"9",
    b"a b", b"a ", b"\xff\xfe",
]  # fmt: skip

CASES = [
    b"a", b"/a", b"a/", b"a*", b"*a", b"*", b"**", b"/*", b"/**", b"a/**", b"**/b", b"a/**/b", b"a**b",
    b"a/**b",
    b"**b/c", b"*/b", b"a/*", b"a/*/c", b"f?o", b"???", b"[a-c]", b"[!a-c]", b"[^a]*", b"a[]]b", b"a[[]b",
    b"[]-a]", b"[a-]", b"[[:digit:]]", b"[[:alpha:][:digit:]]b", b"[[:nope:]]", b"[", b"[a", b"a\\", b"\\a",
    b"a\\*b", b"a\\\\b", b"\\#x", b"\\!x", b"a\\ ", b"foo*.c", b"*o*o*", b"*.*", b"x/**/bar", b"/foo/bar",
    b"foo/bar", b"**/foo/**", b"a/[b/]c", b"a[!b]b", b"?/b", b"[[:punct:]]", b"*\xff*", b"a  ", b"**/**/c",
]  # fmt: skip


@pytest.mark.parametrize("pattern", CASES)
def test_a_pattern_matches_as_gits(worktrees: tuple[Path, Path], git: Any, pattern: bytes) -> None:
    assert ours(pattern + b"\n") == gits(worktrees, git.environ, pattern + b"\n")


PIECES = st.sampled_from([b"a", b"b", b"*", b"**", b"/", b"?", b"[ab]", b"!", b"\\", b" "])
# `**` right behind a name: git before 2.52 matches ab with a**/b (tests/test_wildmatch.py)
BEHIND_A_NAME = re.compile(rb"!?[^*?\[\\]*[^*?\[\\/]\*\*+(/|\\/|\s*$)")
LINES = st.lists(st.lists(PIECES, max_size=7).map(b"".join), max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES)
def test_random_patterns_match_as_gits(worktrees: tuple[Path, Path], git: Any, lines: list[bytes]) -> None:
    assume(not any(BEHIND_A_NAME.match(line) for line in lines))
    data = b"\n".join(lines) + b"\n"
    assert ours(data) == gits(worktrees, git.environ, data)


def test_files_of_patterns() -> None:
    patterns = SparsePatterns(b"\xef\xbb\xbf# a comment\r\n/docs/\r\nb\\ \0 cut\n\n!docs")
    assert patterns.match(b"docs", is_dir=True) is False
    assert patterns.match(b"b ", is_dir=False) is True
    assert patterns.match(b"# a comment", is_dir=False) is None
    assert SparsePatterns(b"/docs/").match(b"docs", is_dir=True) is True
    assert SparsePatterns(b"/docs/").match(b"docs", is_dir=False) is None
    assert SparsePatterns(b"/").match(b"", is_dir=True) is True
    assert SparsePatterns(b"/*").match(b"", is_dir=True) is None


@pytest.mark.parametrize(
    "pattern", [b"*a" * 30 + b"b", b"**/*a" * 12 + b"/b", b"/" + b"*[ab]" * 25 + b"c", b"**/" * 40 + b"x"]
)
def test_no_pattern_takes_exponential_time(pattern: bytes) -> None:
    patterns = SparsePatterns(pattern)
    path = b"/".join([b"a" * 60] * 30)
    started = time.monotonic()
    assert patterns.match(path, is_dir=False) is None
    assert time.monotonic() - started < 1
