"""Repositories that borrow objects: what they may take for granted because of the lender's refs."""

from pathlib import Path

import pytest

from gitsmart.repo.repository import Repository
from tests.conftest import Git, MakeRepo


@pytest.fixture
def pair(git: Git, make_repo: MakeRepo, tmp_path: Path) -> tuple[Path, Path]:
    """A repository that has refs of its own, and one that borrows from it and has none."""
    lender = make_repo(tmp_path / "lender.git")
    git("init", "-q", "--bare", tmp_path / "fork.git")
    borrow(tmp_path / "fork.git", lender)
    return lender, tmp_path / "fork.git"


def borrow(fork: Path, *lenders: Path) -> None:
    lines = "".join(f"{lender}/objects\n" for lender in lenders)
    (fork / "objects/info/alternates").write_text(lines)


def tips(git: Git, path: Path, *patterns: str) -> list[str]:
    """Each oid once, in the order of the refs' names."""
    return list(dict.fromkeys(git("for-each-ref", "--format=%(objectname)", *patterns, cwd=path).split()))


def ours(path: Path) -> list[str]:
    return [oid.decode() for oid in Repository(path.name, path).alternate_tips()]


def test_without_alternates(pair: tuple[Path, Path]) -> None:
    assert ours(pair[0]) == []


def test_tips_of_the_lender(git: Git, pair: tuple[Path, Path]) -> None:
    lender, fork = pair
    assert ours(fork) == tips(git, lender) != []


def test_tips_of_all_lenders_and_of_theirs(git: Git, pair: tuple[Path, Path], tmp_path: Path) -> None:
    lender, fork = pair
    other = tmp_path / "other.git"
    git("init", "-q", "--bare", other)
    tree = git("hash-object", "-t", "tree", "-w", "/dev/null", cwd=other)
    new = git("commit-tree", "-m", "other", tree, cwd=other)
    git("update-ref", "refs/heads/other", new, cwd=other)
    borrow(other, lender)
    borrow(fork, other)
    assert ours(fork) == [new, *tips(git, lender)]


def test_changes_are_noticed(git: Git, pair: tuple[Path, Path]) -> None:
    lender, fork = pair
    repo = Repository("fork.git", fork)
    assert len(repo.alternate_tips()) == len(tips(git, lender))
    git("update-ref", "refs/heads/new", "main~1", cwd=lender)
    assert [oid.decode() for oid in repo.alternate_tips()] == tips(git, lender)
    (fork / "objects/info/alternates").unlink()
    assert repo.alternate_tips() == []


def test_prefixes(git: Git, pair: tuple[Path, Path]) -> None:
    lender, fork = pair
    git("config", "core.alternateRefsPrefixes", "refs/tags refs/heads/main refs/heads/oth", cwd=fork)
    assert ours(fork) == tips(git, lender, "refs/tags", "refs/heads/main", "refs/heads/oth")


def test_a_command_is_not_run(git: Git, pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, fork = pair
    git("config", "core.alternateRefsCommand", f"touch {tmp_path}/ran; true", cwd=fork)
    assert ours(fork) == []
    assert not (tmp_path / "ran").exists()


def test_lenders_that_can_tell_nothing(git: Git, pair: tuple[Path, Path], tmp_path: Path) -> None:
    lender, fork = pair
    (tmp_path / "bare/objects").mkdir(parents=True)  # no repository
    git("init", "-q", "--bare", "--object-format=sha256", tmp_path / "sha256.git")
    git("clone", "-q", "--bare", "--depth=1", f"file://{lender}", tmp_path / "shallow.git")
    git("clone", "-q", "--bare", lender, tmp_path / "broken.git")
    (tmp_path / "broken.git/config").write_text("[core\n")
    borrow(fork, *(tmp_path / name for name in ("none", "bare", "sha256.git", "shallow.git", "broken.git")))
    assert ours(fork) == []
