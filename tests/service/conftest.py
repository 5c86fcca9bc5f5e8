"""A Channel out of two byte strings, repositories made by git, and a client's reading of an answer."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gitsmart.repo.repository import Repository
from gitsmart.repo.root import RepositoryRoot
from gitsmart.wire.pktline import PktLine, PktLineDecoder, Special, chomp


class BytesChannel:
    """A Channel whose request is a byte string (or pieces of one) and whose response is collected.

    Args:
        request: the body, in the pieces in which `read` gives it.
        fail_read: raised instead of the body's end.
        fail_write: called with the number of bytes written so far before every write; may raise.
    """

    def __init__(
        self,
        request: bytes | list[bytes] = b"",
        *,
        fail_read: Exception | None = None,
        fail_write: Callable[[int], None] | None = None,
    ) -> None:
        self._pieces: Iterator[bytes] = iter([request] if isinstance(request, bytes) else request)
        self._piece = b""
        self._fail_read = fail_read
        self._fail_write = fail_write
        self.response = bytearray()
        self.writes: list[bytes] = []
        self.flushes = 0
        self.checks = 0
        self.keepalives: list[tuple[bytes, float]] = []
        self.promises: list[int] = []

    def read(self, n: int) -> bytes:
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                if self._fail_read is not None:
                    raise self._fail_read
                return b""
            self._piece = piece
        data, self._piece = self._piece[:n], self._piece[n:]
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._fail_write is not None:
            self._fail_write(len(self.response))
        self.writes.append(bytes(data))
        self.response += data

    def write_all(self, parts: Sequence[bytes | memoryview]) -> None:
        self.write(b"".join(parts))

    def flush(self) -> None:
        self.flushes += 1

    def check(self) -> None:
        self.checks += 1

    def promise(self, size: int) -> None:
        self.promises.append(len(self.response) + size)

    def keepalive(self, packet: bytes, interval_s: float) -> None:
        self.keepalives.append((packet, interval_s))


class Git:
    """Runs git with no configuration but ours, at a fixed time that moves a minute with every commit."""

    def __init__(self, home: Path) -> None:
        self._clock = 1_700_000_000
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "init.defaultBranch",
            "GIT_CONFIG_VALUE_0": "main",
            "GIT_CONFIG_KEY_1": "gc.auto",
            "GIT_CONFIG_VALUE_1": "0",
            "GIT_AUTHOR_NAME": "A U Thor",
            "GIT_AUTHOR_EMAIL": "author@example.com",
            "GIT_COMMITTER_NAME": "C O Mitter",
            "GIT_COMMITTER_EMAIL": "committer@example.com",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }

    def __call__(self, *args: str | Path, cwd: Path | None = None, data: bytes = b"") -> str:
        """Run git, check its exit status, return its output without the last newline."""
        return self.run(*args, cwd=cwd, data=data).decode().rstrip("\n")

    def output(self, *args: str | Path, data: bytes = b"") -> bytes:
        """Run git and return its output, whatever its exit status."""
        return subprocess.run(["git", *args], input=data, env=self.environ, capture_output=True).stdout

    def run(self, *args: str | Path, cwd: Path | None = None, data: bytes = b"") -> bytes:
        self._clock += 60
        environ = self.environ | {
            "GIT_AUTHOR_DATE": f"{self._clock} +0000",
            "GIT_COMMITTER_DATE": f"{self._clock} +0000",
        }
        done = subprocess.run(
            ["git", *args], cwd=cwd, input=data, env=environ, capture_output=True, check=False
        )
        assert done.returncode == 0, f"git {' '.join(map(str, args))}: {done.stderr.decode()}"
        return done.stdout


@pytest.fixture(name="git")
def fixture_git(tmp_path: Path) -> Git:
    return Git(tmp_path)


@dataclass(slots=True)
class Served:
    """A bare repository that is served, and the work tree that its history came from."""

    git: Git
    path: Path
    work: Path

    def open(self) -> Repository:
        return RepositoryRoot(self.path.parent).open(self.path.name)

    def oid(self, rev: str) -> bytes:
        return self.git("rev-parse", rev, cwd=self.path).encode()

    def objects(self, *revs: str) -> set[str]:
        """What `git rev-list --objects` gives."""
        return {
            line.split()[0] for line in self.git("rev-list", "--objects", *revs, cwd=self.path).splitlines()
        }

    def add_packed_refs(self, count: int) -> None:
        """Put `count` branches into packed-refs, all at main: quicker than git can."""
        oid = self.oid("main")
        self.git("pack-refs", "--all", cwd=self.path)
        path = self.path / "packed-refs"
        header, *lines = path.read_bytes().splitlines(keepends=True)
        heads = [line for line in lines if b" refs/heads/m" in line]
        assert heads == lines[: len(heads)]
        new = [b"%b refs/heads/many/%06d\n" % (oid, number) for number in range(count)]
        path.write_bytes(b"".join([header, *heads, *new, *lines[len(heads) :]]))

    def commit(self, name: str, text: str) -> bytes:
        """Commit a file in the work tree, push what is checked out, return the commit's oid."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.git("add", ".", cwd=self.work)
        self.git("commit", "-qm", f"change {name}", cwd=self.work)
        self.git("push", "-q", self.path, "HEAD", "--tags", cwd=self.work)
        return self.git("rev-parse", "HEAD", cwd=self.work).encode()


@pytest.fixture(scope="session", name="served_template")
def fixture_served_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    git = Git(path)
    served = Served(git, path / "root" / "repo.git", path / "work")
    served.path.parent.mkdir()
    git("init", "-q", "--bare", served.path)
    git("init", "-q", served.work)
    body = "".join(f"line {i}\n" for i in range(200))
    for number in range(1, 6):
        served.commit("big.txt", body.replace("line 7\n", f"line seven, version {number}\n"))
        if number == 3:
            git("tag", "-a", "-m", "one", "v1", cwd=served.work)
        if number == 4:
            git("checkout", "-q", "-b", "topic", cwd=served.work)
            served.commit("dir/topic.txt", "topic\n")
            served.commit("dir/topic.txt", "topic, better\n")
            git("checkout", "-q", "main", cwd=served.work)
    git("repack", "-adq", cwd=served.path)
    served.commit("dir/last.txt", "last\n")
    return path


@pytest.fixture(name="served")
def fixture_served(git: Git, served_template: Path, tmp_path: Path) -> Served:
    """Six commits on main, the third tagged v1; two more on topic, behind the fourth. The last is loose."""
    for name in ("root", "work"):
        shutil.copytree(served_template / name, tmp_path / name)
    return Served(git, tmp_path / "root" / "repo.git", tmp_path / "work")


@dataclass(slots=True)
class Answer:
    """What a client makes of an answer: text lines up to the pack, then the bands."""

    lines: list[bytes | Special] = field(default_factory=list)
    pack: bytes = b""
    progress: bytes = b""
    error: bytes = b""
    is_finished: bool = False


def read_answer(response: bytes | bytearray, *, is_banded_from: int | None = None) -> Answer:
    """Read a v2 answer (bands begin behind `packfile`), or one whose bands begin at line `is_banded_from`."""
    decoder = PktLineDecoder()
    events: list[PktLine] = decoder.feed(response)
    assert decoder.is_between_packets
    answer = Answer()
    is_banded = False
    for number, line in enumerate(events):
        is_banded = is_banded or number == is_banded_from
        if is_banded and isinstance(line, bytes):
            assert not answer.is_finished
            match line[:1]:
                case b"\x01":
                    answer.pack += line[1:]
                case b"\x02":
                    answer.progress += line[1:]
                case b"\x03":
                    answer.error += line[1:]
                case _:
                    raise AssertionError(line)
        elif is_banded:
            assert line is Special.FLUSH
            answer.is_finished = True
        else:
            answer.lines.append(chomp(line) if isinstance(line, bytes) else line)
            is_banded = is_banded_from is None and line == b"packfile\n"
    return answer
