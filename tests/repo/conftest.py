"""Real repositories in tmp_path, made and judged by the system's git."""

import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gitsmart.pack.indexer import IngestLimits
from gitsmart.repo.quarantine import Push
from gitsmart.repo.root import RepositoryRoot


class Git:
    """The real git, with no configuration but the test's own."""

    def __init__(self, home: Path) -> None:
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "A U Thor",
            "GIT_AUTHOR_EMAIL": "author@example.com",
            "GIT_COMMITTER_NAME": "C O Mitter",
            "GIT_COMMITTER_EMAIL": "committer@example.com",
            "LC_ALL": "C",
        }

    def __call__(self, cwd: Path, *args: str, stdin: bytes = b"", check: bool = True) -> bytes:
        done = subprocess.run(["git", *args], cwd=cwd, input=stdin, capture_output=True, env=self.environ)
        if check and done.returncode:
            raise AssertionError(f"git {args}: {done.stderr!r}")
        return done.stdout.removesuffix(b"\n")

    def commit(self, cwd: Path, path: str, text: str, *parents: bytes, tree_of: bytes = b"") -> bytes:
        """Make a commit out of thin air; the tree is `tree_of`'s with `path` set to `text`. Returns its oid."""
        index = {"GIT_INDEX_FILE": str(cwd / "test-index")}
        self.environ.update(index)
        try:
            self(cwd, "read-tree", "--empty")
            if tree_of:
                self(cwd, "read-tree", tree_of.decode())
            blob = self(cwd, "hash-object", "-w", "--stdin", stdin=text.encode())
            self(cwd, "update-index", "--add", "--cacheinfo", f"100644,{blob.decode()},{path}")
            tree = self(cwd, "write-tree").decode()
        finally:
            del self.environ["GIT_INDEX_FILE"]
            (cwd / "test-index").unlink(missing_ok=True)
        flags = [flag for parent in parents for flag in ("-p", parent.decode())]
        return self(cwd, "commit-tree", tree, *flags, "-m", text)

    def pack(self, cwd: Path, revisions: str, *flags: str) -> bytes:
        """A pack of `git rev-list --objects` of these revisions, one a line."""
        done = subprocess.run(
            ["git", "pack-objects", "--revs", "--stdout", "-q", *flags],
            cwd=cwd,
            input=revisions.encode(),
            capture_output=True,
            check=True,
            env=self.environ,
        )
        return done.stdout


@pytest.fixture
def git(tmp_path: Path) -> Git:
    home = tmp_path / "home"
    home.mkdir()
    return Git(home)


@pytest.fixture
def root(tmp_path: Path) -> RepositoryRoot:
    path = tmp_path / "root"
    path.mkdir()
    return RepositoryRoot(path)


@pytest.fixture(params=["sha1", "sha256"])
def object_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ingest() -> Callable[[Push, bytes], None]:
    def feed(push: Push, pack: bytes) -> None:
        push.ingest(io.BytesIO(pack).read, limits=IngestLimits())

    return feed


@pytest.fixture
def listing() -> Callable[[Path], dict[str, bytes]]:
    """Every file and directory below a path: its name and contents."""

    def take(path: Path) -> dict[str, bytes]:
        return {
            str(found.relative_to(path)): found.read_bytes() if found.is_file() else b"/"
            for found in sorted(path.rglob("*"))
        }

    return take
