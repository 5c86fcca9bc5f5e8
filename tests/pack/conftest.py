"""Repositories with random histories, and what C git says of them.

tangled          sha1: two packs, loose objects, and more in an alternate, which is packed as well
tangled256       the same in sha256
packed           sha1: all in one pack with deep chains
"""

import random
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gitsmart.pack.objects import SHA1, SHA256, ObjectFormat
from gitsmart.pack.store import ObjectStore


def run_git(path: Path, *args: str, input: bytes = b"", environ: dict[str, str] | None = None) -> bytes:
    """Run git in a repository, on bytes; give its stdout."""
    result = subprocess.run(
        ["git", "-C", str(path), *args], input=input, capture_output=True, env=environ, check=False
    )
    assert result.returncode == 0, f"git {' '.join(args[:9])}: {result.stderr.decode(errors='replace')}"
    return result.stdout


@dataclass(slots=True)
class History:
    """A bare repository that grows by random commits: merges, octopuses, renames, gitlinks, odd tags."""

    path: Path
    format: ObjectFormat
    environ: dict[str, str]
    rng: random.Random
    skewed: bool = False
    marks: int = 0
    commits: list[int] = field(default_factory=list)
    names: dict[int, list[str]] = field(default_factory=dict)
    clock: int = 1_600_000_000
    words: list[bytes] = field(default_factory=list)

    def store(self) -> ObjectStore:
        return ObjectStore(self.path / "objects", self.format)

    def git(self, *args: str, input: bytes = b"") -> bytes:
        return run_git(self.path, *args, input=input, environ=self.environ)

    def oids(self, *args: str) -> list[bytes]:
        """Resolve names to raw oids."""
        return [bytes.fromhex(line) for line in self.git("rev-parse", *args).decode().split()]

    def objects(self, wants: Iterable[bytes], haves: Iterable[bytes] = (), *options: str) -> set[bytes]:
        """Ask git for what it would send: raw oids."""
        lines = [oid.hex() for oid in wants] + ["^" + oid.hex() for oid in haves]
        out = self.git(
            "rev-list", "--objects", "--no-object-names", *options, "--stdin", input="\n".join(lines).encode()
        )
        return {bytes.fromhex(line) for line in out.decode().split()}

    def grow(self, number: int, *, unpack: bool) -> None:
        """Add commits by fast-import: as loose objects, or as a pack of their own."""
        stream = b"".join(self._commit() for _ in range(number))
        marks = self.path / "marks"
        self.git(
            "-c",
            f"fastimport.unpackLimit={100000 if unpack else 1}",
            "fast-import",
            "--quiet",
            f"--import-marks-if-exists={marks}",
            f"--export-marks={marks}",
            input=stream,
        )

    def _commit(self) -> bytes:
        rng = self.rng
        self.marks += 1
        self.clock += rng.choice((0, 1, 60, 3600))
        date = rng.randrange(1_500_000_000, 1_700_000_000) if self.skewed else self.clock
        out = [b"commit refs/heads/c%d\nmark :%d\n" % (self.marks, self.marks)]
        out.append(b"committer C <c@example.com> %d +0000\n" % date + _data(b"commit %d\n" % self.marks))
        recent = self.commits[-12:]
        count = min(len(recent), rng.choice((1, 1, 1, 1, 2, 2, 3, 5)))
        if rng.random() < 0.03:
            count = 0
        parents = rng.sample(recent, count)
        for number, parent in enumerate(parents):
            out.append(b"%b :%d\n" % (b"merge" if number else b"from", parent))
        names = list(self.names[parents[0]]) if parents else []
        for _ in range(rng.choice((1, 1, 2, 5))):
            choice = rng.random()
            if names and choice < 0.1:
                gone = names.pop(rng.randrange(len(names)))
                out.append(b"D %b\n" % gone.encode())
            elif names and choice < 0.2:
                old = names.pop(rng.randrange(len(names)))
                new = self._name()
                out.append(b"C %b %b\nD %b\n" % (old.encode(), new.encode(), old.encode()))
                if new in names:
                    names.remove(new)
                names.append(new)
            elif choice < 0.25:
                name = f"links/{rng.randrange(3)}"
                out.append(
                    b"M 160000 %b %b\n" % (rng.randbytes(self.format.raw_len).hex().encode(), name.encode())
                )
                if name not in names:
                    names.append(name)
            else:
                name = rng.choice(names) if names and choice < 0.8 else self._name()
                mode = rng.choice((b"100644", b"100644", b"100755", b"120000"))
                out.append(b"M %b inline %b\n" % (mode, name.encode()) + _data(self._content()))
                if name not in names:
                    names.append(name)
        self.names[self.marks] = names
        self.commits.append(self.marks)
        return b"".join(out) + b"\n"

    def _name(self) -> str:
        # Never one that is a folder elsewhere: fast-import would drop what is in it.
        folders = [f"d{self.rng.randrange(4)}" for _ in range(self.rng.randrange(4))]
        return "/".join([*folders, f"f{self.rng.randrange(30)}"])

    def _content(self) -> bytes:
        rng = self.rng
        if not self.words or rng.random() < 0.2:
            self.words.append(rng.randbytes(rng.randrange(30, 900)).hex().encode())
        words = list(rng.choices(self.words, k=3))
        return b"\n".join(words) + b"\n%d\n" % rng.randrange(1000)

    def tags(self) -> None:
        """Add annotated tags: of commits, of a tag, of a tree and of a blob."""
        tip = f"refs/heads/c{self.marks}"
        self.git("tag", "-a", "-m", "t", "annotated", tip)
        self.git("tag", "-a", "-m", "t", "old", f"refs/heads/c{self.marks // 2}")
        self.git("tag", "-a", "-m", "t", "nested", "annotated")
        self.git("tag", "-a", "-m", "t", "of-tree", tip + "^{tree}")
        blob = self.git("hash-object", "-w", "--stdin", input=b"tagged alone\n").decode().strip()
        self.git("tag", "-a", "-m", "t", "of-blob", blob)


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)


def make_history(path: Path, environ: dict[str, str], fmt: ObjectFormat, **more: Any) -> History:
    """Start an empty one."""
    subprocess.run(
        ["git", "init", "-q", "--bare", f"--object-format={fmt.name.decode()}", str(path)],
        env=environ,
        check=True,
    )
    # Selections are compared with what git gives without bitmaps, unless a test writes some.
    run_git(path, "config", "repack.writeBitmaps", "false", environ=environ)
    return History(path, fmt, environ, random.Random(more.pop("seed", 1)), **more)


NewHistory = Callable[..., History]


@pytest.fixture(scope="session")
def new_history(git: Any, tmp_path_factory: pytest.TempPathFactory) -> NewHistory:
    """Return a function: new_history(fmt=SHA1, *, seed=1, skewed=False) -> History, an empty one."""

    def new(fmt: ObjectFormat = SHA1, **more: Any) -> History:
        return make_history(tmp_path_factory.mktemp("history") / "new.git", git.environ, fmt, **more)

    return new


def _tangled(path: Path, environ: dict[str, str], fmt: ObjectFormat) -> History:
    lender = make_history(path / "lender.git", environ, fmt)
    lender.grow(40, unpack=False)
    lender.git("repack", "-adfq")
    history = make_history(path / "tangled.git", environ, fmt)
    history.rng, history.commits, history.names = lender.rng, lender.commits, lender.names
    history.marks, history.clock, history.words = lender.marks, lender.clock, lender.words
    (history.path / "objects/info/alternates").write_text("../../lender.git/objects\n")
    (history.path / "marks").write_bytes((lender.path / "marks").read_bytes())
    for number in range(1, history.marks + 1):
        oid = run_git(lender.path, "rev-parse", f"refs/heads/c{number}", environ=environ).decode().strip()
        history.git("update-ref", f"refs/heads/c{number}", oid)
    history.grow(30, unpack=False)
    history.git("repack", "-dflq", "--depth=50")
    history.grow(30, unpack=False)
    history.git("repack", "-dflq")
    history.grow(20, unpack=True)
    history.tags()
    return history


@pytest.fixture(scope="session")
def tangled(git: Any, tmp_path_factory: pytest.TempPathFactory) -> History:
    return _tangled(tmp_path_factory.mktemp("tangled"), git.environ, SHA1)


@pytest.fixture(scope="session")
def tangled256(git: Any, tmp_path_factory: pytest.TempPathFactory) -> History:
    return _tangled(tmp_path_factory.mktemp("tangled256"), git.environ, SHA256)


@pytest.fixture(scope="session")
def packed(git: Any, tmp_path_factory: pytest.TempPathFactory) -> History:
    history = make_history(tmp_path_factory.mktemp("packed") / "packed.git", git.environ, SHA1, seed=2)
    history.grow(200, unpack=False)
    history.tags()
    history.git("repack", "-adfq", "--depth=250", "--window=20")
    return history
