"""Real repositories in tmp_path, made and judged by the system's git."""

import hashlib
import io
import os
import subprocess
import zlib
from collections.abc import Callable, Mapping
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
            "GIT_AUTHOR_DATE": "1700000000 +0100",
            "GIT_COMMITTER_DATE": "1700000000 +0100",
            "LC_ALL": "C",
        }

    def __call__(self, cwd: Path, *args: str, stdin: bytes = b"", check: bool = True) -> bytes:
        done = subprocess.run(["git", *args], cwd=cwd, input=stdin, capture_output=True, env=self.environ)
        if check and done.returncode:
            raise AssertionError(f"git {args}: {done.stderr!r}")
        return done.stdout.removesuffix(b"\n")

    def write(self, git_dir: Path, kind: str, data: bytes) -> bytes:
        """Write a loose object, without starting a process; returns its oid."""
        new = hashlib.sha256 if "sha256" in (git_dir / "config").read_text() else hashlib.sha1
        whole = b"%b %d\0%b" % (kind.encode(), len(data), data)
        oid = new(whole).hexdigest()
        path = git_dir / "objects" / oid[:2] / oid[2:]
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(zlib.compress(whole))
        return oid.encode()

    def tree(self, git_dir: Path, files: Mapping[str, bytes]) -> bytes:
        """Write a tree of blobs; names with a slash make subtrees. Returns its oid."""
        entries: dict[bytes, bytes] = {}
        below: dict[str, dict[str, bytes]] = {}
        for name, data in files.items():
            folder, slash, rest = name.partition("/")
            if slash:
                below.setdefault(folder, {})[rest] = data
            else:
                oid = self.write(git_dir, "blob", data)
                entries[name.encode()] = b"100644 %b\0" % name.encode() + bytes.fromhex(oid.decode())
        for folder, inner in below.items():
            oid = self.tree(git_dir, inner)
            entries[folder.encode() + b"/"] = b"40000 %b\0" % folder.encode() + bytes.fromhex(oid.decode())
        return self.write(git_dir, "tree", b"".join(entries[name] for name in sorted(entries)))

    def commit(self, git_dir: Path, files: str | Mapping[str, bytes], message: str, *parents: bytes) -> bytes:
        """Write a commit of these files (a str: one file of that name); returns its oid."""
        if isinstance(files, str):
            files = {files: message.encode()}
        lines = [b"tree " + self.tree(git_dir, files), *(b"parent " + parent for parent in parents)]
        who = b"A U Thor <author@example.com> %d +0100" % (1700000000 + len(message))
        lines += [b"author " + who, b"committer " + who, b"", message.encode(), b""]
        return self.write(git_dir, "commit", b"\n".join(lines))

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
