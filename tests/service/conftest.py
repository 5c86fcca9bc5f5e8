"""A Channel out of two byte strings, and repositories made by git."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


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

    def flush(self) -> None:
        self.flushes += 1

    def check(self) -> None:
        self.checks += 1

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
