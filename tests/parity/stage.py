"""One scripted client session, played against gitsmart and against git-http-backend, and compared.

    @session(versions=(0, 2), expected=[Difference(...)])
    def test_something(client: Client) -> None:
        client.git("clone", "URL", "work")
        client.commit("new.txt", "new\\n")
        client.git("push", "origin", "main")

The function runs twice, each time with a `Client` that has a folder and a server of its own; both servers
hold identical copies of one repository. Everything that the client does through the server is recorded:
exit status, stdout, stderr, and what the refs are on either side afterwards; at the end the objects of every
repository. Of the texts only ports, paths of temporary folders, quarantine names and timing are made equal.

Two recordings must be the same, line by line, but for the session's `expected` differences. One that is not
listed fails the session, and so does one that is listed and no longer there. So that a session can't agree by
failing for both, git's exit status must be the one that the script says (`status=`, 0 if it says nothing).
"""

import difflib
import http.client
import itertools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, cast

import pytest

from tests.conftest import Git, Server, commit_file, fsck, git_dir_of, leftovers
from tests.parity import differences

__all__ = [
    "ALL",
    "CONFLICT",
    "NON_COMMIT",
    "REASONS",
    "Client",
    "Difference",
    "Peer",
    "Stage",
    "Web",
    "session",
]

ALL: Final = (0, 1, 2)
FORMATS: Final = ("sha1", "sha256")

WAYS: Final = ((0, "sha1"), (1, "sha256"), (2, "sha1"), (2, "sha256"))
"""Protocol version and object format: every one of both, not each with each."""

EQUAL_SETTINGS: Final = {
    "uploadpack.allowFilter": "true",
    "uploadpack.allowRefInWant": "true",
    "uploadpack.allowReachableSHA1InWant": "true",
    "receive.advertisePushOptions": "true",
    "receive.fsckObjects": "true",
    "receive.unpackLimit": "1",
}
"""Where our defaults aren't git's, both get these; `session(defaults=True)` leaves them out."""

_NOISE: Final = [
    (re.compile(r"(127\.0\.0\.1|localhost):\d+"), "HOST"),
    (re.compile(r"(quarantine|incoming|tmp_objdir)[-.\w]*"), "QUARANTINE"),
    (re.compile(r"(?m)^(remote: )?.*\d+% \(\d+/\d+\).*\n"), ""),  # progress
    (re.compile(r"(?m)^(GIT_PUSH_CERT(_NONCE|_KEY)?)=.*$"), r"\1=..."),  # a signature has a time
    (re.compile(r"(?m)^(pusher .*) \d+ "), r"\1 TIME "),
    (re.compile(r"(?m)^REMOTE_USER=anonymous\n"), ""),  # the runner's own, so that http-backend takes pushes
    (re.compile(r"/\./objects"), "/objects"),
    (re.compile(r"(?m)^(remote: )?Total \d+ .*$"), r"\1Total"),
    (re.compile(r"(?m) +$"), ""),  # sideband.c fills lines up for terminals
]


@dataclass(frozen=True, slots=True)
class Difference:
    """What gitsmart is known to do in another way: lines that match `gits` are such that match `ours`."""

    reason: differences.Known
    gits: str
    ours: str
    at: str = ""  # a pattern: the steps where it shows; "": any
    versions: tuple[int, ...] = ALL
    formats: tuple[str, ...] = FORMATS
    until: tuple[int, ...] | None = None  # the first version of git that has it no more
    since: tuple[int, ...] = (0,)

    def applies(self, stage: "Stage") -> bool:
        release = stage.peer.version
        return (
            stage.protocol in self.versions
            and stage.object_format in self.formats
            and self.since <= release
            and (self.until is None or release < self.until)
        )

    def explains(self, step: str, gits: str, ours: str) -> bool:
        return (
            re.search(self.at, step) is not None
            and re.fullmatch(self.gits, gits, re.DOTALL) is not None
            and re.fullmatch(self.ours, ours, re.DOTALL) is not None
        )


NON_COMMIT: Final = Difference(
    differences.NON_COMMIT,
    at="^git push",
    gits="remote: error: trying to write non-commit object .*",
    ours="remote: error: cannot update ref '.*': trying to write non-commit object .*",
    since=(2, 55),
)

CONFLICT: Final = Difference(
    differences.CONFLICT,
    at="^git push",
    gits="remote: error: '.*' exists; cannot create .*",
    ours="remote: error: cannot lock ref '.*': '.*' exists; cannot create .*",
    since=(2, 50),
)

REASONS: Final = Difference(
    differences.REASONS,
    at="^git push",
    gits=r"( ! \[remote rejected\] .* \(failed to update ref\)\n?)+",
    ours=r"( ! \[remote rejected\] .* \((refname conflict|invalid new value provided)\)\n?)+",
    until=(2, 50),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """One git: the client, and whose http-backend is the peer."""

    name: str
    git: Git
    version: tuple[int, ...]
    backend: Server


@dataclass(slots=True)
class Client:
    """What a session may do. `URL` in arguments is the repository's."""

    side: str  # "gitsmart" or "git"
    stage: "Stage"
    server: Server
    folder: Path
    git_: Git
    steps: list[tuple[str, str]] = field(default_factory=list)
    untidy: bool = False  # the session leaves what fsck complains of
    is_broken: bool = False  # the session has the server fail, with a 5xx
    has_times: bool = False  # there are objects that hold the time of day

    @property
    def protocol(self) -> int:
        return self.stage.protocol

    @property
    def repo(self) -> Path:
        """The server's repository."""
        return self.stage.repo_of(self.server)

    @property
    def url(self) -> str:
        return self.url_of("r.git")

    def url_of(self, name: str) -> str:
        return self.server.url_of(f"{self.stage.name}/{name}")

    @property
    def web(self) -> "Web":
        """Another web server, for what doesn't come from this one."""
        return self.stage.web

    @property
    def oid_len(self) -> int:
        return 40 if self.stage.object_format == "sha1" else 64

    # --- prepared on the quiet

    def config(self, name: str, *values: str) -> None:
        """Set the server's repository's config; several values are added one by one."""
        for number, value in enumerate(values):
            self.on_server("config", *(["--add"] if number else []), name, value)

    def on_server(self, *args: str | Path, input: str | None = None) -> str:
        """Run git in the server's repository."""
        return self.stage.peer.git(*args, cwd=self.repo, input=input)

    def local(self, *args: str | Path, cwd: str = "work", input: str | None = None) -> str:
        """Run git at the client's, without the server."""
        return self.git_(*args, cwd=self.folder / cwd, input=input)

    def init(self, name: str = "work", *flags: str) -> None:
        """Make an empty repository for the client."""
        self.local("init", "-q", *flags, name, cwd=".")

    def commit(self, name: str, content: str, *, cwd: str = "work") -> str:
        return commit_file(self.git_, self.folder / cwd, name, content, message=f"change {name}")

    def second(self, name: str) -> Path:
        """Make an empty repository beside the server's."""
        path = self.repo.parent / name
        self.on_server("init", "-q", "--bare", f"--object-format={self.stage.object_format}", path)
        return path

    def hook(self, name: str, text: str, *, folder: str = "hooks") -> None:
        path = self.repo / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    # --- recorded

    def git(
        self,
        *args: str,
        cwd: str = "",
        status: int | None = 0,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        settings: Sequence[str] = (),
        label: str = "",
    ) -> str:
        """Run git, which is to end with `status` (None: any); return what it said on stdout and stderr.

        It runs in `work`; what makes a repository, or needs none, runs in the folder above.
        """
        cwd = cwd or ("." if args[0] in ("clone", "init", "ls-remote", "archive") else "work")
        git = self.git_.with_config(*settings)
        words = [word.replace("URL", self.url) for word in args]
        result = git.run(*words, cwd=self.folder / cwd, env=dict(env or {}), input=input)
        step = label or "git " + " ".join(args)
        self._end(step, status, result)
        self.tell(f"refs after {step}", self._refs())
        return result.stdout + result.stderr

    def python(self, script: str, *args: str, status: int = 0) -> str:
        """Run a Python script (dulwich's or libgit2's client) with the URL and `args` as its arguments."""
        result = subprocess.run(
            [sys.executable, "-c", script, self.url, *args],
            cwd=self.folder,
            env=self.git_.environ,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=100,
        )
        step = f"python {args}"
        self._end(step, status, result)
        self.tell(f"refs after {step}", self._refs())
        return result.stdout + result.stderr

    def _end(self, step: str, status: int | None, result: "subprocess.CompletedProcess[str]") -> None:
        # what the server says is printed while the client goes on: only the order of each is certain
        lines = sorted(result.stderr.splitlines(), key=_speaker)
        if self.side == "git":
            # git 2.55 leaves the lock of every pack behind where it is started on ".", as by http-backend,
            # and then it refuses the same pack.
            for keep in (git_dir_of(self.repo) / "objects/pack").glob("*.keep"):
                keep.unlink()
        said = "\n".join([f"exit {result.returncode}", *result.stdout.splitlines(), *lines])
        assert status in (None, result.returncode) or self.side != "git", f"{step}: {said}"
        self.tell(step, said)

    def http(
        self, method: str, path: str, body: bytes | None = None, *, label: str = "", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request and give its answer; nothing is recorded. Headers are written Content_Type=..."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body=body, headers={"Connection": "close", **fields})
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def tell(self, step: str, text: str) -> None:
        """Record `text`, with what differs between any two runs made equal."""
        text = text.replace(self.server.url, "HOST").replace(str(self.server.root), "ROOT")
        text = text.replace(str(self.folder), "HERE")
        for pattern, word in _NOISE:
            text = pattern.sub(word, text)
        self.steps.append((step.replace(self.server.url, "HOST"), text))

    def look(self, *, objects: bool = True) -> None:
        """Record the objects of the server's repository and of all the client's."""
        for path in (self.repo, *self.repositories()) if objects else ():
            name = "the server" if path == self.repo else path.name
            self.tell(f"objects of {name}", self._objects(path))

    def repositories(self) -> Iterator[Path]:
        for path in sorted(self.folder.iterdir()):
            if (path / "HEAD").is_file() or (path / ".git" / "HEAD").is_file():
                yield path

    def _objects(self, path: Path) -> str:
        listed = self.stage.peer.git(
            "--git-dir", git_dir_of(path), "cat-file", "--batch-all-objects",
            "--batch-check=%(objectname) %(objecttype)",
        )  # fmt: skip
        shallow = git_dir_of(path) / "shallow"
        ends = sorted(set(shallow.read_text().split())) if shallow.exists() else []
        return listed + "".join(f"\nshallow {oid}" for oid in ends)

    def _refs(self) -> str:
        found = []
        for path in (self.repo, *self.repositories()):
            found.append(f"[{path.name}]")
            git_dir = git_dir_of(path)
            listed = self.stage.peer.git.run(
                "--git-dir", git_dir, "for-each-ref", "--format=%(objectname) %(refname) %(symref)"
            )
            found += [listed.stdout.rstrip(), (git_dir / "HEAD").read_text().rstrip()]
            if (git_dir / "FETCH_HEAD").exists():
                found.append((git_dir / "FETCH_HEAD").read_text().rstrip())
        return "\n".join(found)


class _QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class Web:
    """A folder that a web server of its own serves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        if self._server is None:
            files = partial(_QuietFiles, directory=str(self.folder))
            self._server = ThreadingHTTPServer(("127.0.0.1", 0), files)
            threading.Thread(target=self._server.serve_forever).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def _speaker(line: str) -> int:
    """Who says a line on the client's stderr: git's helper, the server, or git itself in the end."""
    return 2 if line.startswith("error: failed to push") else int(line.startswith("remote:"))


Script = Callable[[Client], None]


@dataclass(slots=True)
class Stage:
    """Where one session is played: a name that both servers know it by, and who plays."""

    name: str
    peer: Peer
    ours: Server
    protocol: int
    object_format: str
    prepare: Callable[[Path], None]
    folder: Path
    web: Web

    def repo_of(self, server: Server) -> Path:
        return server.root / self.name / "r.git"

    def play(self, script: Script, expected: Sequence[Difference], settings: Mapping[str, str]) -> None:
        clients: list[Client] = []
        expected = [item for item in expected if item.applies(self)]
        for server in (self.peer.backend, self.ours):
            repo = self.repo_of(server)
            repo.parent.mkdir()
            self.prepare(repo)
            if settings:
                lines = (
                    "[{}]\n\t{} = {}\n".format(*name.split("."), value) for name, value in settings.items()
                )
                with (repo / "config").open("a") as file:
                    file.writelines(lines)
            folder = self.folder / server.kind
            folder.mkdir()
            client = Client(
                side=server.kind,
                stage=self,
                server=server,
                folder=folder,
                git_=Git(
                    {**self.peer.git.environ, "GIT_DEFAULT_HASH": self.object_format},
                    (f"protocol.version={self.protocol}",),
                ),
            )
            clients.append(client)
            start = len(server.log)
            try:
                script(client)
            except Exception:
                if server is self.ours:  # what went another way before?
                    compare(clients[0].steps[: len(client.steps)], client.steps, expected)
                raise
            client.look(objects=not client.has_times)
            if not client.untidy:
                fsck(repo)
            if server is self.ours:  # git 2.55 leaves a .keep behind a refused push
                found = leftovers(repo)
                assert not found, f"left behind: {found}"
                assert not server.crashes(start), server.text(start)
                assert client.is_broken or not server.server_errors(start), server.text(start)
                for path in () if client.untidy else client.repositories():
                    fsck(path)
        gits, ours = clients
        compare(gits.steps, ours.steps, expected)


def changes(gits: str, ours: str) -> Iterator[tuple[str, str]]:
    """Where two texts differ: the lines of each, without the last newline."""
    left, right = gits.splitlines(), ours.splitlines()
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            yield "\n".join(left[a:b]), "\n".join(right[c:d])


def compare(
    gits: Sequence[tuple[str, str]], ours: Sequence[tuple[str, str]], expected: Sequence[Difference]
) -> None:
    """Assert that two recordings are the same but for what is expected, and that all of that is there."""
    unseen = list(expected)
    wrong = []
    for theirs, own in itertools.zip_longest(gits, ours, fillvalue=("", "")):
        step = theirs[0]
        assert step == own[0], "the script did not do the same for both"
        if theirs[1] == own[1]:
            continue
        for pair in changes(theirs[1], own[1]):
            reasons = [item for item in expected if item.explains(step, *pair)]
            unseen = [item for item in unseen if item not in reasons]
            if not reasons:
                wrong.append(f"== {step}\n-- git:\n{pair[0]}\n-- gitsmart:\n{pair[1]}\n")
    assert not wrong, "\n".join(wrong)
    assert not unseen, f"these differences are gone: {unseen}"


def session(
    *,
    versions: Sequence[int] = ALL,
    formats: Sequence[str] = FORMATS,
    expected: Sequence[Difference] = (),
    empty: bool = False,
    commits: int = 40,
    defaults: bool = False,
    since: tuple[int, int] = (0, 0),
) -> Callable[[Script], Callable[..., None]]:
    """Make a test of a session: once for each protocol version, object format and git.

    Args:
        empty: the repository has no refs; otherwise it is `make_repo`'s.
        defaults: leave both servers their own defaults, see `EQUAL_SETTINGS`.
        since: the first version of git that can play it.
    """

    ways = [(version, name) for version, name in WAYS if version in versions and name in formats]

    def decorate(script: Script) -> Callable[..., None]:
        parameters = getattr(script, "pytestmark", [])

        @pytest.mark.parametrize(("protocol", "object_format"), ways)
        def play(set_stage: Callable[..., Stage], object_format: str, protocol: int) -> None:
            stage = set_stage(protocol=protocol, object_format=object_format, empty=empty, commits=commits)
            if stage.peer.version[:2] < since:
                pytest.skip(f"git {stage.peer.name} can't do that")
            stage.play(script, expected, {} if defaults else EQUAL_SETTINGS)

        play.__name__ = script.__name__
        play.__doc__ = script.__doc__
        play.__module__ = script.__module__
        marks: list[pytest.Mark] = [*getattr(play, "pytestmark", []), *parameters]
        vars(play)["pytestmark"] = marks
        return cast("Callable[..., None]", play)

    return decorate


def environ_with(git: Git, binary: Path) -> dict[str, str]:
    """`git`'s environment with another git in front."""
    return {**git.environ, "PATH": f"{binary.parent}{os.pathsep}{git.environ['PATH']}"}
