"""Fixtures for tests with the real git client and a real server process.

    git          a hermetic git: no system or user config, fixed author and dates, no prompt
    make_repo    a small repository with a history like a real one's
    serve        start a server process over a root; stopped and checked when the test ends
    server       one server for all tests of a module (no authentication, anonymous may push)
    native       runs a test with and without the native module
    hosted       a repository of its own below `server`'s root; checked when the test ends

`--server git` runs the same tests against C git's http-backend: that validates the tests, not us.

A server that is stopped must exit with status 0 on SIGTERM, must have logged no traceback and no ERROR, and
must have left nothing behind in any repository (`leftovers`).
"""

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gitsmart import native as native_module

PROJECT = Path(__file__).parents[1]
HTTP_BACKEND = PROJECT / "tests" / "interop" / "http_backend.py"

_URL = re.compile(r"https?://[^\s/]+:\d+")
_CRASH = re.compile(
    r"Traceback \(most recent call last\)|\bERROR\b|\bCRITICAL\b|never awaited|never retrieved"
)
# what a push must not leave behind: temporary packs and objects, quarantines, locks, packs held from repack
_LEFTOVER = re.compile(r"^(\.?tmp[_-].*|.*\.tmp|.*\.lock|.*\.keep|.*quarantine.*|.*incoming.*)$")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server",
        choices=["gitsmart", "git"],
        default="gitsmart",
        help="what tests run against: gitsmart, or C git's http-backend, which puts the tests on trial",
    )
    parser.addoption(
        "--workers", default="1", help="gitsmart's own --workers, where a test doesn't choose (default: 1)"
    )


def pytest_configure(config: pytest.Config) -> None:
    global _workers
    _workers = config.getoption("--workers")


_workers = "1"


# --- git


class GitFailed(Exception):
    """git exited with another status than 0."""

    def __init__(self, result: "subprocess.CompletedProcess[str]") -> None:
        super().__init__(f"{' '.join(result.args)} -> {result.returncode}\n{result.stdout}{result.stderr}")
        self.result = result


@dataclass(frozen=True, slots=True)
class Git:
    """Run git. Calling it gives its stdout without the last newline, or raises `GitFailed`."""

    environ: dict[str, str]
    config: tuple[str, ...] = ()

    def __call__(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        input: str | None = None,
        timeout_s: float = 100,
    ) -> str:
        result = self.run(*args, cwd=cwd, env=env, input=input, timeout_s=timeout_s)
        if result.returncode:
            raise GitFailed(result)
        return result.stdout.removesuffix("\n")

    def run(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        input: str | None = None,
        timeout_s: float = 100,
    ) -> "subprocess.CompletedProcess[str]":
        """Run git and give its result whatever its exit status."""
        return subprocess.run(
            self.argv(*args),
            cwd=cwd,
            env={**self.environ, **(env or {})},
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=timeout_s,
        )

    def argv(self, *args: str | Path) -> list[str]:
        return ["git", *(word for setting in self.config for word in ("-c", setting)), *map(str, args)]

    def start(self, *args: str | Path, cwd: Path | None = None) -> "subprocess.Popen[str]":
        """Start git and return at once; its stderr is a pipe, with stdout in it."""
        return subprocess.Popen(
            self.argv(*args),
            cwd=cwd,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",
        )

    def fails(self, *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
        """Run git, which must fail, and give its stderr."""
        result = self.run(*args, cwd=cwd, env=env)
        assert result.returncode, (
            f"{' '.join(result.args)} was expected to fail\n{result.stdout}{result.stderr}"
        )
        return result.stderr

    def with_config(self, *settings: str) -> "Git":
        """The same git with `-c` settings of its own."""
        return Git(self.environ, (*self.config, *settings))


def hermetic_environ(home: Path) -> dict[str, str]:
    """An environment in which git sees no config but ours and always makes the same commits."""
    home.mkdir(parents=True, exist_ok=True)
    config = home / "gitconfig"
    config.write_text(
        "[user]\n\tname = A U Thor\n\temail = author@example.com\n"
        "[init]\n\tdefaultBranch = main\n"
        "[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n"
        "[core]\n\tfsync = none\n"
        "[advice]\n\tdetachedHead = false\n"
        "[credential]\n\thelper =\n"
    )
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LC_ALL": "C",
        "TZ": "UTC",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": str(config),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_DATE": "1700000000 +0000",
        "GIT_COMMITTER_DATE": "1700000000 +0000",
    }


@pytest.fixture(scope="session")
def git(tmp_path_factory: pytest.TempPathFactory) -> Git:
    return Git(hermetic_environ(tmp_path_factory.mktemp("home")))


# --- looking at repositories


def git_dir_of(path: Path) -> Path:
    return path / ".git" if (path / ".git").is_dir() else path


def refs(path: Path) -> dict[str, str]:
    """Every ref of the repository at `path` and its oid, without HEAD; read by C git."""
    out = subprocess.run(
        ["git", "--git-dir", str(git_dir_of(path)), "for-each-ref", "--format=%(refname) %(objectname)"],
        env={**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"},
        check=True,
        capture_output=True,
        encoding="utf-8",
    ).stdout
    return dict(line.split(" ") for line in out.splitlines())


def heads_and_tags(path: Path) -> dict[str, str]:
    return {name: oid for name, oid in refs(path).items() if name.startswith(("refs/heads/", "refs/tags/"))}


def fsck(path: Path, *flags: str) -> None:
    """Assert that `git fsck --full --strict` finds nothing wrong, missing or dangling refs included."""
    result = subprocess.run(
        [
            "git",
            "--git-dir",
            str(git_dir_of(path)),
            "fsck",
            "--full",
            "--no-dangling",
            "--no-progress",
            *flags,
        ],
        env={**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"},
        capture_output=True,
        encoding="utf-8",
    )
    notices = [line for line in result.stderr.splitlines() if not line.startswith("notice: ")]
    assert (result.returncode, result.stdout, notices) == (0, "", []), f"fsck of {path}: {notices}"


def repository_files(path: Path) -> dict[str, str]:
    """Every file below `path`, by its relative name, with its content's hash; empty folders count too."""
    found: dict[str, str] = {}
    for folder, subfolders, files in os.walk(path):
        for name in files:
            file = Path(folder, name)
            content = os.readlink(file).encode() if file.is_symlink() else file.read_bytes()
            found[str(file.relative_to(path))] = hashlib.sha256(content).hexdigest()
        if not subfolders and not files:
            found[str(Path(folder).relative_to(path)) + "/"] = ""
    return found


def leftovers(root: Path) -> list[str]:
    """What no finished push may leave below `root`: temporary packs, quarantines, locks, .keep files."""
    return [
        str(Path(folder, name).relative_to(root))
        for folder, subfolders, files in os.walk(root)
        for name in (*subfolders, *files)
        if _LEFTOVER.match(name) and Path(folder).name != "hooks" and "refs" not in Path(folder).parts[-3:-1]
    ] + [str(path.relative_to(root)) for path in root.rglob("refs/**/*.lock")]


# --- a history like a real one's


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)


def sample_history(commits: int) -> bytes:
    """A `git fast-import` stream: merges, renames, modes, binary files, deep folders, all kinds of tags."""
    out: list[bytes] = []
    marks = itertools.count(1)
    clock = itertools.count(1_600_000_000, 60)

    def commit(branch: str, message: str, parents: Sequence[int], changes: Sequence[bytes]) -> int:
        mark = next(marks)
        who = b"A U Thor <author@example.com> %d +0200" % next(clock)
        out.append(b"commit refs/heads/%b\nmark :%d\n" % (branch.encode(), mark))
        out.append(b"author %b\ncommitter %b\n" % (who, who) + _data(message.encode()))
        for keyword, parent in zip(
            itertools.chain([b"from"], itertools.repeat(b"merge")), parents, strict=False
        ):
            out.append(b"%b :%d\n" % (keyword, parent))
        out.extend(changes)
        return mark

    def text(seed: int, lines: int) -> bytes:
        words = [hashlib.sha1(b"%d" % (seed // 7 * 7 + n)).hexdigest() for n in range(lines)]
        words[seed % lines] = f"line of {seed}: grüße"
        return "\n".join(words).encode() + b"\n"

    def put(path: str, content: bytes, mode: str = "100644") -> bytes:
        return b"M %b inline %b\n" % (mode.encode(), path.encode()) + _data(content)

    binary = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(600))
    tip = commit(
        "main", "start\n", [], [put("README", b"a sample\n"), put("bin/tool", b"#!/bin/sh\n", "100755")]
    )
    root = tip
    for n in range(commits):
        changes = [put(f"src/part{n % 5}/module{n % 11}.txt", text(n, 40))]
        if n % 4 == 0:
            changes.append(put(f"a/b/c/d/e/f/g/{n}/leaf", b"%d\n" % n))
        if n % 9 == 0:
            changes.append(put("data/blob.bin", binary[n:] + binary[:n]))
        if n == 8:
            changes.append(b"R README docs/README\n")
        if n == 12:
            changes.append(put("link", b"docs/README", "120000"))
        if n == 20:
            changes.append(b"D a/b/c/d/e/f/g/0\n")
        if n % 10 == 7:
            side = commit("topic", f"side {n}\n", [tip], [put(f"topic/{n}.txt", text(n + 3, 12))])
            mine = commit("main", f"main {n}\n", [tip], changes)
            tip = commit("main", f"merge {n}\n", [mine, side], [put(f"topic/{n}.txt", text(n + 3, 12))])
        else:
            tip = commit("main", f"commit {n}\n\nWith a body.\n", [tip], changes)
    commit("other/deep/branch", "ahead\n", [tip], [put("ahead", b"of main\n")])
    commit("unrelated", "another root\n", [], [put("alone", b"no parents\n")])

    def tag(name: str, target: int) -> int:
        mark = next(marks)
        out.append(b"tag %b\nmark :%d\nfrom :%d\n" % (name.encode(), mark, target))
        out.append(
            b"tagger T Agger <tagger@example.com> %d +0000\n" % next(clock) + _data(name.encode() + b"\n")
        )
        return mark

    tag("nested", tag("v1.0", root))
    tag("v2.0", tip)
    out.append(b"reset refs/tags/light\nfrom :%d\n\n" % tip)
    return b"".join(out)


MakeRepo = Callable[..., Path]


@pytest.fixture(scope="session")
def make_repo(git: Git, tmp_path_factory: pytest.TempPathFactory) -> MakeRepo:
    """Return a function: make_repo(path, *, commits=40, object_format="sha1", bare=True) -> path.

    All but the newest objects are in a pack with deltas; all refs but one are packed. Histories are made
    once a session and copied, so that a repository costs a few milliseconds.
    """
    templates: dict[tuple[int, str], Path] = {}

    def template(commits: int, object_format: str) -> Path:
        key = commits, object_format
        if key not in templates:
            path = tmp_path_factory.mktemp("sample") / "sample.git"
            git("init", "-q", "--bare", f"--object-format={object_format}", path)
            subprocess.run(
                ["git", "fast-import", "--quiet"],
                cwd=path,
                env=git.environ,
                input=sample_history(commits),
                check=True,
            )
            git("repack", "-adfq", "--depth=20", cwd=path)
            git("pack-refs", "--all", cwd=path)
            # one more commit, loose, on top: a repository is never in one pack only
            tree = git("rev-parse", "main^{tree}", cwd=path)
            new = git("commit-tree", "-p", "main", "-m", "loose", tree, cwd=path)
            git("update-ref", "refs/heads/main", new, cwd=path)
            shutil.rmtree(path / "hooks")
            templates[key] = path
        return templates[key]

    def make(path: Path, *, commits: int = 40, object_format: str = "sha1", bare: bool = True) -> Path:
        if bare:
            shutil.copytree(template(commits, object_format), path)
            return path
        git("clone", "-q", "--no-local", template(commits, object_format), path)
        return path

    return make


def commit_file(git: Git, work: Path, name: str, content: str | bytes, message: str = "change") -> str:
    """Commit one file in the working tree `work`; return the commit's oid."""
    file = work / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    git("add", "--", name, cwd=work)
    git("commit", "-q", "-m", message, cwd=work)
    return git("rev-parse", "HEAD", cwd=work)


# --- the server process


@dataclass(slots=True)
class Server:
    """A server process over `root`: gitsmart, or git's http-backend."""

    kind: str
    root: Path
    process: "subprocess.Popen[str]"
    log: list[str] = field(default_factory=list)
    url: str = ""
    expected_errors: str = ""  # a pattern: log lines that a test provokes on purpose
    _reader: threading.Thread | None = None
    _news: threading.Condition = field(default_factory=threading.Condition)
    _stopped: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def url_of(self, name: str, *, user: str = "") -> str:
        """The clone URL of the repository `name`; `user` is "name:password"."""
        base = self.url.replace("://", f"://{user}@") if user else self.url
        return f"{base}/{name}"

    def wait_for_line(self, pattern: str, *, timeout_s: float = 20, start: int = 0) -> str:
        """Wait until a log line from number `start` on matches, and return it."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while True:
                for line in self.log[start:]:
                    if re.search(pattern, line):
                        return line
                left = deadline - time.monotonic()
                alive = self._reader is not None and self._reader.is_alive()
                if left <= 0 or not alive or not self._news.wait(left):
                    text = "".join(self.log[start:])
                    raise AssertionError(f"{self.kind} logged nothing like {pattern!r}:\n{text}")

    def crashes(self, start: int = 0) -> list[str]:
        """Log lines that speak of a bug."""
        known = re.compile(self.expected_errors) if self.expected_errors else None
        lines = [line for line in self.log[start:] if not (known and known.search(line))]
        return [line for line in lines if _CRASH.search(line)]

    def server_errors(self, start: int = 0) -> list[str]:
        """Lines of requests that ended with a 5xx."""
        return [
            line for line in self.log[start:] if re.search(r"(status[=:\" ]+|HTTP/1\.[01]\" )5\d\d\b", line)
        ]

    def processes(self) -> list[int]:
        """The server's processes: one; or the supervisor, then its pool and its fronts."""
        pids = [self.pid]
        command = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        for child in self.children():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/cmdline").read_bytes() == command:
                    pids.append(child)
        return pids

    def high_water_mib(self) -> float:
        """The processes' peaks of resident memory, added up."""
        return sum(self._status("VmHWM")) / 1024

    def reset_high_water(self) -> None:
        for pid in self.processes():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def fds(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.processes())

    def threads(self) -> int:
        return max(self._status("Threads"))

    def children(self) -> list[int]:
        found: list[int] = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
        return sorted(found)

    def _status(self, name: str) -> list[int]:
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in self.processes()]
        return [int(n) for text in texts for n in re.findall(rf"^{name}:\s+(\d+)", text, re.MULTILINE)]

    def kill(self) -> None:
        """SIGKILL to all of its processes: no chance to clean up."""
        pids = self.processes() if self.process.poll() is None else []
        for pid in pids:  # the supervisor first: it would replace the others
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._end()

    def stop(self, *, timeout_s: float = 20) -> None:
        """SIGTERM, and everything that must hold after it."""
        if self._stopped:
            return
        assert self.process.poll() is None, f"the server died by itself:\n{self.text()}"
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not stop on SIGTERM:\n{self.text()}") from None
        self._end()
        assert self.process.returncode == 0, f"exit status {self.process.returncode}:\n{self.text()}"
        assert not self.crashes(), self.text()
        assert leftovers(self.root) == []

    def forget(self) -> None:
        """The process has ended by itself, as it should: nothing is left to stop."""
        self._end()

    def text(self, start: int = 0) -> str:
        return "".join(self.log[start:])

    def _end(self) -> None:
        self._stopped = True
        self.process.wait(20)
        if self._reader is not None:
            self._reader.join(20)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.log.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()


def _without_maintenance(root: Path) -> Path:
    """Write a config that starts no maintenance: tests compare files, and look for what was left behind."""
    path = root.parent / f"{root.name}.no-maintenance.toml"
    path.write_text("[maintenance]\nauto = false\n")
    return path


def start_server(
    root: Path, *flags: str, kind: str, environ: dict[str, str], port: int = 0, prefix: Sequence[str] = ()
) -> Server:
    """Start a server process over `root` and wait for its start-up line. `prefix`: a wrapping command."""
    command = ["-m", "gitsmart", "serve"] if kind == "gitsmart" else [str(HTTP_BACKEND)]
    if kind == "gitsmart" and "--workers" not in flags:
        flags = (*flags, "--workers", _workers)
    if kind == "gitsmart" and "--config" not in flags:
        flags = (*flags, "--config", str(_without_maintenance(root)))
    process = subprocess.Popen(
        [*prefix, sys.executable, *command, str(root), "--port", str(port), *flags],
        cwd=root,
        env={**environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="backslashreplace",
    )
    server = Server(kind=kind, root=root, process=process)
    server._reader = threading.Thread(target=server._read_log, daemon=True)
    server._reader.start()
    try:
        match = _URL.search(server.wait_for_line(_URL.pattern))
    except AssertionError:
        server.kill()
        raise
    assert match is not None
    server.url = match[0]
    return server


ServeFunction = Callable[..., Server]


@contextlib.contextmanager
def _stopping(servers: list[Server]) -> Iterator[list[Server]]:
    try:
        yield servers
    finally:
        problems: list[AssertionError] = []
        for server in servers:
            try:
                server.stop()
            except AssertionError as problem:
                problems.append(problem)
        if problems:
            raise problems[0]


@pytest.fixture(scope="session")
def server_kind(request: pytest.FixtureRequest) -> str:
    """ "gitsmart", or "git" when the tests themselves are on trial."""
    return str(request.config.getoption("--server"))


@pytest.fixture
def serve(git: Git, server_kind: str) -> Iterator[ServeFunction]:
    """Return a function: serve(root, *flags, kind=...) -> Server. Each is stopped and checked at the end."""
    with _stopping([]) as servers:

        def start(
            root: Path, *flags: str, kind: str = server_kind, port: int = 0, prefix: Sequence[str] = ()
        ) -> Server:
            root.mkdir(parents=True, exist_ok=True)
            server = start_server(root, *flags, kind=kind, environ=git.environ, port=port, prefix=prefix)
            servers.append(server)
            return server

        yield start


@pytest.fixture(scope="module")
def server(git: Git, server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for a module's tests; anonymous users may push."""
    root = tmp_path_factory.mktemp("root")
    with _stopping(
        [start_server(root, "--anonymous", "write", kind=server_kind, environ=git.environ)]
    ) as servers:
        yield servers[0]


@dataclass(frozen=True, slots=True)
class Hosted:
    """A repository below a server's root."""

    server: Server
    name: str

    @property
    def path(self) -> Path:
        return self.server.root / self.name

    @property
    def url(self) -> str:
        return self.server.url_of(self.name)


HostFunction = Callable[..., Hosted]
_numbers = itertools.count(1)


@pytest.fixture
def host(server: Server, git: Git, make_repo: MakeRepo) -> Iterator[HostFunction]:
    """Return a function: host(name=None, *, commits=40, object_format="sha1", empty=False) -> Hosted.

    When the test ends each must pass `git fsck` and hold no leftovers, and the log nothing bad.
    """
    made: list[Hosted] = []
    start = len(server.log)

    def make(
        name: str | None = None, *, commits: int = 40, object_format: str = "sha1", empty: bool = False
    ) -> Hosted:
        hosted = Hosted(server, name or f"sample-{next(_numbers)}.git")
        hosted.path.parent.mkdir(parents=True, exist_ok=True)
        if empty:
            git("init", "-q", "--bare", f"--object-format={object_format}", hosted.path)
            shutil.rmtree(hosted.path / "hooks", ignore_errors=True)
        else:
            make_repo(hosted.path, commits=commits, object_format=object_format)
        made.append(hosted)
        return hosted

    yield make
    try:
        for hosted in made:
            if hosted.path.exists():
                fsck(hosted.path)
                assert leftovers(hosted.path) == []
        assert not server.crashes(start), server.text(start)
        assert not server.server_errors(start), server.text(start)
    finally:
        for hosted in made:
            shutil.rmtree(hosted.path, ignore_errors=True)


@pytest.fixture
def hosted(host: HostFunction) -> Hosted:
    return host()


_SLOW_FOLDERS = frozenset(
    Path(__file__).with_name(name)
    for name in (
        "conformance",
        "faults",
        "httpd",
        "interop",
        "maintenance",
        "parity",
        "native",
        "repo",
        "service",
    )
)


@pytest.fixture(params=[True, False], ids=["native", "python"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run a test twice: with the native module, where there is one, and without. Tells which."""
    if request.param and not native_module.available:
        pytest.skip(f"no native module: {native_module.missing}")
    monkeypatch.setattr(native_module, "available", request.param)
    return bool(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever runs servers, or git beside each case, is left out of `make test-fast`, by its folder."""
    for item in items:
        if not _SLOW_FOLDERS.isdisjoint(item.path.parents):
            item.add_marker(pytest.mark.slow)
