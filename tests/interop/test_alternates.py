"""Repositories that borrow objects: what they may take for granted because of the lender's refs."""

import re
from pathlib import Path

import pytest

from gitsmart.repo.repository import Repository
from gitsmart.service.advertise import advertise
from gitsmart.service.options import ServiceOptions
from tests.conftest import Git, MakeRepo
from tests.service.conftest import BytesChannel


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


@pytest.mark.parametrize(
    "patterns",
    ["refs/heads/", "refs/*/main", "refs/heads/m*", "refs/**", "*", "refs/tags/v* refs/heads/[a-m]*",
     "refs/heads/mai", "refs/tags/v1.0/", "**/main", "refs/heads/main refs/heads/main"],
)  # fmt: skip
def test_prefixes_are_patterns_of_for_each_ref(git: Git, pair: tuple[Path, Path], patterns: str) -> None:
    lender, fork = pair
    git("config", "core.alternateRefsPrefixes", patterns, cwd=fork)
    assert ours(fork) == tips(git, lender, *patterns.split())


def haves(git: Git, fork: Path, environ: dict[str, str]) -> tuple[list[str], list[str]]:
    """The `.have` lines of our advertisement, and of git's."""
    channel = BytesChannel(b"")
    advertise(
        Repository(fork.name, fork),
        channel,
        service="git-receive-pack",
        version=0,
        options=ServiceOptions(hook_environ=environ),
    )
    theirs = git("receive-pack", "--http-backend-info-refs", fork, env=environ)
    mine, other = (re.findall(r"([0-9a-f]{40}) \.have", text) for text in (channel.response.decode(), theirs))
    return sorted(mine), sorted(other)


@pytest.mark.parametrize(
    "command",
    [
        "f() { git --git-dir=\"$1\" for-each-ref --format='%(objectname)' refs/heads; }; f",
        "cat refs-of-lender; false",
        "f() { cat refs-of-lender; echo nonsense; echo 1; }; f",
        "true",
        "/nonexistent",
    ],
)
def test_a_command_instead_of_the_refs(git: Git, pair: tuple[Path, Path], command: str) -> None:
    lender, fork = pair
    (fork / "refs-of-lender").write_text(git("rev-parse", "main~3", "main~5", cwd=lender) + "\n")
    git("config", "core.alternateRefsCommand", command, cwd=fork)
    mine, theirs = haves(git, fork, {"PATH": git.environ["PATH"], "HOME": git.environ["HOME"]})
    assert mine == theirs
    assert bool(mine) == ("refs" in command and command[-9:] != "--git-dir")
    assert ours(fork) == []


def test_what_a_command_says_but_is_not_here(git: Git, pair: tuple[Path, Path]) -> None:
    _, fork = pair
    git("config", "core.alternateRefsCommand", f"echo {'1' * 40}; true", cwd=fork)
    assert haves(git, fork, {})[0] == []


def test_lenders_that_can_tell_nothing(git: Git, pair: tuple[Path, Path], tmp_path: Path) -> None:
    lender, fork = pair
    (tmp_path / "bare/objects").mkdir(parents=True)  # no repository
    git("init", "-q", "--bare", "--object-format=sha256", tmp_path / "sha256.git")
    git("clone", "-q", "--bare", "--depth=1", f"file://{lender}", tmp_path / "shallow.git")
    git("clone", "-q", "--bare", lender, tmp_path / "broken.git")
    (tmp_path / "broken.git/config").write_text("[core\n")
    borrow(fork, *(tmp_path / name for name in ("none", "bare", "sha256.git", "shallow.git", "broken.git")))
    assert ours(fork) == []
