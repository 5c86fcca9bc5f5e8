"""Repositories as pushes leave them, and what must hold of them after maintenance, by git's word."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gitsmart.repo.maintenance import MaintenanceReport
from gitsmart.repo.repository import Repository
from tests.conftest import Git, MakeRepo, fsck, leftovers, refs


class State:
    """What maintenance must not change."""

    def __init__(self, git: Git, path: Path) -> None:
        self.refs = refs(path)
        self.objects = set(git("rev-list", "--all", "--objects", "--no-object-names", cwd=path).split())


def check(git: Git, path: Path, before: State | None = None) -> State:
    """Assert that git finds all of it whole, and as it was."""
    fsck(path, "--strict")
    after = State(git, path)
    if before is not None:
        assert after.refs == before.refs
        assert after.objects == before.objects
    packs = sorted((path / "objects" / "pack").glob("*.idx"))
    if packs:
        git("verify-pack", *packs, cwd=path)
    for pack in packs:
        if pack.with_suffix(".bitmap").exists():
            tested = git.run("rev-list", "--test-bitmap", "refs/heads/main", cwd=path)
            one_is_missing = "doesn't have an indexed bitmap" in tested.stderr and len(packs) > 1
            assert "OK!" in tested.stderr or one_is_missing, tested.stderr
    if (path / "objects" / "info" / "commit-graph").exists():
        git("commit-graph", "verify", cwd=path)
    counted = dict(line.split(": ") for line in git("count-objects", "-v", cwd=path).splitlines())
    assert counted["garbage"] == "0"
    assert leftovers(path) == []
    return after


def maintain(path: Path, *, full: bool | None = None) -> MaintenanceReport:
    """Maintain the repository at `path`, in this process."""
    return Repository(path.name, path).maintain(full=full)


def packs_of(path: Path) -> list[str]:
    return sorted(file.stem for file in (path / "objects" / "pack").glob("*.pack"))


def loose_of(path: Path) -> list[Path]:
    return [file for file in (path / "objects").glob("??/*") if len(file.parent.name) == 2]


def make_old(path: Path, days: float) -> None:
    """Have all objects been written so long ago."""
    then = time.time() - days * 86400
    for folder in ("objects/pack", *(f"objects/{n:02x}" for n in range(256))):
        for file in (path / folder).glob("*"):
            os.utime(file, (then, then))


PushMany = Callable[..., Path]


@pytest.fixture
def pushed(git: Git, make_repo: MakeRepo, tmp_path: Path) -> PushMany:
    """Return a function: pushed(number, **of make_repo) -> a repository that so many pushes left packs in."""

    def make(number: int, **options: object) -> Path:
        path = make_repo(tmp_path / "pushed.git", **options)
        add_pushes(git, path, number)
        return path

    return make


def add_pushes(git: Git, path: Path, number: int, *, first: int = 0) -> None:
    """Leave a pack for each of so many commits on top of main, 5 objects each; in one process."""
    stream = ["reset refs/heads/main\nfrom refs/heads/main^0\n\n"]
    for n in range(first, first + number):
        lines = "".join(f"line {k} of {n if k == n % 40 else 'all'} {k * 7919:x}\n" for k in range(60))
        stream.append(
            f"commit refs/heads/main\ncommitter A <a@b> {1_700_100_000 + n} +0000\ndata 5\npush\n"
            f"M 644 inline src/part1/module1.txt\ndata {len(lines)}\n{lines}\ncheckpoint\n\n"
        )
    subprocess.run(
        ["git", "-c", "fastimport.unpackLimit=1", "fast-import", "--quiet"],
        cwd=path,
        env=git.environ,
        input="".join(stream).encode(),
        check=True,
    )
