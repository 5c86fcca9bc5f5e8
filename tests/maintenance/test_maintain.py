"""What a run does to a repository, held against git."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from gitsmart.pack.packjoin import geometric_split
from gitsmart.repo.maintenance import parse_expiry
from tests.conftest import Git, MakeRepo
from tests.maintenance.conftest import (
    PushMany,
    State,
    add_pushes,
    check,
    loose_of,
    maintain,
    make_old,
    packs_of,
)


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_small_packs_and_loose_objects_are_joined(
    git: Git, pushed: PushMany, native: bool, object_format: str
) -> None:
    path = pushed(12, object_format=object_format)
    large = max((path / "objects/pack").glob("*.pack"), key=lambda file: file.stat().st_size)
    before = check(git, path)
    report = maintain(path)
    assert (report.packs_before, report.packs, report.dropped, report.is_full) == (13, 2, 0, False)
    assert large.exists()
    assert loose_of(path) == []
    assert report.has_commit_graph
    check(git, path, before)
    again = maintain(path)
    assert (again.packs_before, again.packs, again.joined) == (2, 2, 0)
    check(git, path, before)


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_a_full_run_makes_one_pack_with_bitmap(
    git: Git, pushed: PushMany, native: bool, object_format: str
) -> None:
    path = pushed(5, object_format=object_format)
    before = check(git, path)
    report = maintain(path, full=True)
    assert (report.is_full, report.packs, report.has_bitmap) == (True, 1, True)
    after = check(git, path, before)
    assert after.objects == before.objects
    assert git("count-objects", "-v", cwd=path).splitlines()[:1] == ["count: 0"]
    names = packs_of(path)
    again = maintain(path, full=True)
    assert (again.joined, packs_of(path)) == (0, names), "nothing to do, nothing done"
    git("gc", "-q", cwd=path)
    check(git, path, before)


def test_a_pack_that_stays_gets_its_bitmap(git: Git, make_repo: MakeRepo, tmp_path: Path) -> None:
    path = make_repo(tmp_path / "one.git")
    git("repack", "-adq", "--no-write-bitmap-index", cwd=path)
    names = packs_of(path)
    before = check(git, path)
    assert maintain(path, full=True).has_bitmap
    assert packs_of(path) == names
    assert (path / "objects/pack" / f"{names[0]}.bitmap").exists()
    check(git, path, before)


def test_packs_stay_few_over_many_pushes_and_work_is_amortised(git: Git, pushed: PushMany) -> None:
    path = pushed(0)
    written = 0
    for batch in range(20):
        add_pushes(git, path, 5, first=5 * batch)
        written += maintain(path).joined
        assert len(packs_of(path)) <= 8
    assert written < 8 * 100 * 5, "each object is written again about as often as the number doubles"
    check(git, path)


def test_kept_and_promisor_packs_are_left_alone(git: Git, pushed: PushMany) -> None:
    path = pushed(6)
    kept = packs_of(path)[:3]
    for name in kept:
        (path / "objects/pack" / f"{name}.keep").write_text("mine\n")
    maintain(path)
    maintain(path, full=True)
    assert set(kept) <= set(packs_of(path))
    for name in kept:
        (path / "objects/pack" / f"{name}.keep").unlink()
    before = check(git, path)
    maintain(path, full=True)
    assert len(packs_of(path)) == 1
    check(git, path, before)


def test_a_multi_pack_index_goes_with_its_packs(git: Git, pushed: PushMany) -> None:
    path = pushed(6)
    git("repack", "-q", cwd=path)  # what is loose
    git("multi-pack-index", "write", "--bitmap", cwd=path)
    before = check(git, path)
    maintain(path)
    assert not list((path / "objects/pack").glob("multi-pack-index*"))
    check(git, path, before)


def test_borrowed_objects_are_not_copied(git: Git, make_repo: MakeRepo, tmp_path: Path) -> None:
    lender = make_repo(tmp_path / "lender.git")
    path = tmp_path / "borrower.git"
    git("clone", "-q", "--bare", "--shared", lender, path)
    add_pushes(git, path, 4)
    before = State(git, path)
    report = maintain(path, full=True)
    assert report.is_full
    assert 0 < report.joined < 60
    after = State(git, path)
    assert (after.refs, after.objects) == (before.refs, before.objects)
    git("fsck", "--full", cwd=path)


# -- unreachable objects


def unreachable(git: Git, path: Path) -> list[str]:
    """Make a commit with a tree and a blob that no ref reaches; a loose tag that points at it."""
    blob = subprocess.run(
        ["git", "hash-object", "-w", "--stdin"],
        cwd=path, env=git.environ, input=b"unreached\n", capture_output=True, check=True,
    ).stdout.decode().strip()  # fmt: skip
    tree = subprocess.run(
        ["git", "mktree"],
        cwd=path, env=git.environ, input=f"100644 blob {blob}\tx\n".encode(), capture_output=True, check=True,
    ).stdout.decode().strip()  # fmt: skip
    return [blob, tree, git("commit-tree", "-m", "lost", "-p", "main", tree, cwd=path)]


def has(git: Git, path: Path, oid: str) -> bool:
    return git.run("cat-file", "-e", oid, cwd=path).returncode == 0


def test_unreachable_objects_are_kept_then_dropped(git: Git, pushed: PushMany, native: bool) -> None:
    path = pushed(2)
    lost = unreachable(git, path)
    before = check(git, path)
    make_old(path, 10)
    report = maintain(path, full=True)
    assert (report.unreachable, report.dropped) == (3, 0)
    assert len(list((path / "objects/pack").glob("*.mtimes"))) == 1
    assert all(has(git, path, oid) for oid in lost)
    check(git, path, before)
    names = packs_of(path)
    assert maintain(path, full=True).joined == 0, "the same objects, as old as before"
    assert packs_of(path) == names
    git("config", "gc.pruneExpire", "9.days.ago", cwd=path)
    report = maintain(path, full=True)
    assert (report.unreachable, report.dropped, report.packs) == (0, 3, 1)
    assert not any(has(git, path, oid) for oid in lost)
    check(git, path, before)


def test_git_reads_our_cruft_packs(git: Git, pushed: PushMany) -> None:
    path = pushed(2)
    lost = unreachable(git, path)
    before = check(git, path)
    make_old(path, 10)
    maintain(path, full=True)
    git("repack", "-q", "--cruft", "-d", "--cruft-expiration=20.days.ago", cwd=path)
    assert all(has(git, path, oid) for oid in lost)
    check(git, path, before)
    git("gc", "-q", "--cruft", "--prune=9.days.ago", cwd=path)
    assert not any(has(git, path, oid) for oid in lost), "the ages are those of the objects, for git too"
    check(git, path, before)


def test_we_read_cruft_packs_of_git(git: Git, pushed: PushMany) -> None:
    path = pushed(2)
    lost = unreachable(git, path)
    make_old(path, 10)
    git("gc", "-q", "--cruft", "--prune=20.days.ago", cwd=path)
    before = check(git, path)
    assert maintain(path, full=True).dropped == 0
    assert all(has(git, path, oid) for oid in lost)
    git("config", "gc.pruneExpire", "9.days.ago", cwd=path)
    assert maintain(path, full=True).dropped == 3
    check(git, path, before)


def test_what_something_young_refers_to_stays(git: Git, pushed: PushMany) -> None:
    path = pushed(1)
    blob, tree, commit = unreachable(git, path)
    make_old(path, 30)
    young = path / "objects" / commit[:2] / commit[2:]
    os.utime(young)
    report = maintain(path, full=True)
    assert (report.unreachable, report.dropped) == (3, 0)
    assert all(has(git, path, oid) for oid in (blob, tree, commit))


def test_what_was_written_anew_is_young_again(git: Git, pushed: PushMany) -> None:
    path = pushed(1)
    lost = unreachable(git, path)
    make_old(path, 30)
    git("config", "gc.pruneExpire", "60.days.ago", cwd=path)
    maintain(path, full=True)
    assert unreachable(git, path) == lost
    assert len(loose_of(path)) == 3, "git does so, rather than to touch a cruft pack"
    maintain(path)
    assert loose_of(path) == []
    git("config", "gc.pruneExpire", "9.days.ago", cwd=path)
    assert maintain(path, full=True).dropped == 0
    assert all(has(git, path, oid) for oid in lost)


@pytest.mark.parametrize("where", ["ref", "reflog", "FETCH_HEAD", "worktree", "index", "tag"])
def test_whatever_names_an_object_keeps_it(git: Git, pushed: PushMany, where: str) -> None:
    path = pushed(1)
    blob, tree, commit = unreachable(git, path)
    if where == "ref":
        git("update-ref", "refs/hidden/x", commit, cwd=path)
        git("config", "transfer.hideRefs", "refs/hidden", cwd=path)
    elif where == "tag":
        git("tag", "-a", "-m", "t", "kept", commit, cwd=path)
    elif where == "reflog":
        (path / "logs/refs/heads").mkdir(parents=True)
        (path / "logs/refs/heads/main").write_text(
            f"{commit} {git('rev-parse', 'main', cwd=path)} A <a@b> {int(time.time())} +0000\tx\n"
        )
    elif where == "FETCH_HEAD":
        (path / "FETCH_HEAD").write_text(f"{commit}\t\tbranch 'x' of y\n")
    elif where == "worktree":
        git("worktree", "add", "-q", "--detach", path.parent / "tree", commit, cwd=path)
    else:
        git("worktree", "add", "-q", "--detach", path.parent / "tree", "main", cwd=path)
        git("update-index", "--add", "--cacheinfo", f"100644,{blob},new", cwd=path.parent / "tree")
    git("config", "gc.pruneExpire", "now", cwd=path)
    make_old(path, 30)
    maintain(path, full=True)
    assert has(git, path, blob)
    if where != "index":
        assert has(git, path, commit)
        assert has(git, path, tree)


@pytest.mark.parametrize(
    "setting", ["gc.pruneExpire=never", "gc.pruneExpire=whenever", "extensions.preciousObjects=true"]
)
def test_objects_that_are_precious_stay(git: Git, pushed: PushMany, setting: str) -> None:
    path = pushed(1)
    lost = unreachable(git, path)
    make_old(path, 1000)
    git("config", *setting.split("="), cwd=path)
    assert maintain(path, full=True).dropped == 0
    assert all(has(git, path, oid) for oid in lost)


def test_a_damaged_repository_loses_nothing(git: Git, pushed: PushMany) -> None:
    path = pushed(3)
    lost = unreachable(git, path)
    (path / "refs/heads/bad").write_text("1" * 40 + "\n")
    git("config", "gc.pruneExpire", "now", cwd=path)
    make_old(path, 30)
    report = maintain(path, full=True)
    assert not report.is_full
    assert "no full run" in report.note
    assert all(has(git, path, oid) for oid in lost)
    (path / "refs/heads/bad").write_text("")
    report = maintain(path, full=True)
    assert report.dropped == 0
    assert all(has(git, path, oid) for oid in lost)


# -- refs


def test_refs_are_packed(git: Git, pushed: PushMany) -> None:
    path = pushed(1)
    for n in range(30):
        git("update-ref", f"refs/heads/many/deep/{n}", "main", cwd=path)
    git("tag", "-a", "-m", "x", "v9", cwd=path)
    git("symbolic-ref", "refs/heads/sym", "refs/heads/main", cwd=path)
    before = check(git, path)
    shown = git("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", cwd=path)
    report = maintain(path)
    assert report.refs >= 31
    assert [str(file.relative_to(path)) for file in (path / "refs").rglob("*") if file.is_file()] == [
        "refs/heads/sym"
    ]
    check(git, path, before)
    assert git("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", cwd=path) == shown
    text = (path / "packed-refs").read_text()
    git("pack-refs", "--all", cwd=path)
    git("update-ref", "refs/heads/y", "main", cwd=path)
    git("pack-refs", "--all", cwd=path)
    git("update-ref", "-d", "refs/heads/y", cwd=path)
    assert sorted((path / "packed-refs").read_text().split("\n")) == sorted(text.split("\n"))


def test_gc_pack_refs_can_be_off(git: Git, pushed: PushMany) -> None:
    path = pushed(1)
    git("config", "gc.packRefs", "false", cwd=path)
    assert maintain(path).refs == 0
    assert (path / "refs/heads/main").exists()


# -- numbers


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([], 0),
        ([5], 0),
        ([5, 5], 2),
        ([1, 2, 4], 0),
        ([1, 1, 1, 100], 3),
        ([3, 3, 5, 100], 3),
        ([1] * 40, 40),
    ],
)
def test_geometric_split(counts: list[int], expected: int) -> None:
    assert geometric_split(counts) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", 1_000_001.0),
        ("never", None),
        ("false", None),
        ("2.weeks.ago", 1_000_000.0 - 14 * 86400),
        ("3 days ago", 1_000_000.0 - 3 * 86400),
        ("1.hour.ago", 1_000_000.0 - 3600),
        ("yesterday", 1_000_000.0 - 86400),
        ("1700000000", 1_700_000_000.0),
        ("2024-01-01T00:00:00+00:00", 1_704_067_200.0),
        ("soon", None),
        ("", None),
    ],
)
def test_parse_expiry(text: str, expected: float | None) -> None:
    assert parse_expiry(text, 1_000_000.0) == expected
