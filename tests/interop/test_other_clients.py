"""dulwich's client and libgit2's, each in a process of its own with a hermetic environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, HostFunction, MakeRepo, fsck, heads_and_tags, refs

DULWICH = """
import sys
from dulwich import porcelain
url, target, size = sys.argv[1:]
porcelain.clone(url, target, errstream=sys.stderr.buffer)
import os, pathlib, random
pathlib.Path(target, "new.bin").write_bytes(random.Random(1).randbytes(int(size)))
porcelain.add(target, [os.path.join(target, "new.bin")])
porcelain.commit(target, message=b"by dulwich", author=b"D <d@example.com>", committer=b"D <d@example.com>")
porcelain.push(target, "origin", ["refs/heads/main:refs/heads/main", "refs/heads/main:refs/heads/new"])
porcelain.fetch(target, "origin")
"""

LIBGIT2 = """
import pathlib, random, sys
import pygit2
for level in (pygit2.enums.ConfigLevel.SYSTEM, pygit2.enums.ConfigLevel.GLOBAL, pygit2.enums.ConfigLevel.XDG):
    pygit2.settings.search_path[level] = "/nonexistent"
url, target, size = sys.argv[1:]
repo = pygit2.clone_repository(url, target)
pathlib.Path(target, "new.bin").write_bytes(random.Random(1).randbytes(int(size)))
repo.index.add("new.bin")
repo.index.write()
who = pygit2.Signature("L", "l@example.com", 1700000000, 0)
tree = repo.index.write_tree()
repo.create_commit("refs/heads/main", who, who, "by libgit2", tree, [repo.head.target])
class Callbacks(pygit2.RemoteCallbacks):
    def push_update_reference(self, refname, message):
        if message is not None:
            raise SystemExit(f"{refname}: {message}")
origin = repo.remotes["origin"]
origin.push(["refs/heads/main:refs/heads/main", "refs/heads/main:refs/heads/new"], callbacks=Callbacks())
origin.push([":refs/heads/topic"], callbacks=Callbacks())
origin.fetch()
"""


def run(git: Git, script: str, *args: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", script, *args],
        env=git.environ,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("size", [100, 3_000_000])
@pytest.mark.parametrize("script", [DULWICH, LIBGIT2], ids=["dulwich", "libgit2"])
def test_clone_and_push(git: Git, hosted: Hosted, tmp_path: Path, script: str, size: int) -> None:
    before = refs(hosted.path)
    work = tmp_path / "work"
    run(git, script, hosted.url, str(work), str(size))
    fsck(work)
    after = refs(hosted.path)
    assert after["refs/heads/main"] == after["refs/heads/new"] == git("rev-parse", "main", cwd=work)
    assert git("rev-parse", "main~1", cwd=work) == before["refs/heads/main"]
    assert git("cat-file", "-s", "main:new.bin", cwd=hosted.path) == str(size)
    assert ("refs/heads/topic" in after) == (script is DULWICH)


def test_libgit2_pushes_a_whole_repository(
    git: Git, host: HostFunction, make_repo: MakeRepo, tmp_path: Path
) -> None:
    source = make_repo(tmp_path / "source.git", commits=100)
    target = host(empty=True)
    script = """
import sys
import pygit2
repo = pygit2.Repository(sys.argv[1])
repo.remotes.create("target", sys.argv[2])
repo.remotes["target"].push([f"{name}:{name}" for name in repo.references if name != "HEAD"])
"""
    run(git, script, str(source), target.url)
    assert heads_and_tags(target.path) == heads_and_tags(source)
