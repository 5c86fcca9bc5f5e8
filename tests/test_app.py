"""The life of a server process: start-up line, drain, second signal, log; and the routes in another
application.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import gitsmart
from gitsmart.errors import ConfigError

ROOT = Path(__file__).parents[1]


class Process:
    """`python -m gitsmart serve`, or another server."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self._stderr = (cwd / "stderr").open("w")
        self.child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
            env={"PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1", "GIT_CONFIG_GLOBAL": "/dev/null"},
        )
        self.cwd = cwd

    def line(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline().removesuffix("\n")

    def port(self) -> int:
        match = re.search(r"http://[^/]*:(\d+)/", self.line())
        assert match is not None
        return int(match[1])

    def log(self) -> str:
        return (self.cwd / "stderr").read_text()

    def wait(self) -> int:
        return self.child.wait(20)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        self._stderr.close()
        if self.child.stdout is not None:
            self.child.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator["Start"]:
    made = Start(tmp_path)
    yield made
    for process in made.processes:
        process.close()


class Start:
    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.processes: list[Process] = []
        (cwd / "repos").mkdir()
        subprocess.run(
            ["git", "init", "-q", "-b", "main", "--bare", str(cwd / "repos" / "demo.git")], check=True
        )

    def __call__(self, *arguments: str) -> Process:
        process = Process(*arguments, cwd=self.cwd)
        self.processes.append(process)
        return process

    def serve(self, *flags: str) -> Process:
        return self("-m", "gitsmart", "serve", "--port", "0", *flags)


several = pytest.mark.parametrize("workers", ["1", "2"], ids=["one process", "several"])


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.settimeout(10)
    return connection


def begin_push(port: int) -> socket.socket:
    """Send half of a push's body; its service runs until the rest comes."""
    connection = connect(port)
    connection.sendall(
        b"POST /demo.git/git-receive-pack HTTP/1.1\r\nHost: x\r\n"
        b"Content-Type: application/x-git-receive-pack-request\r\nContent-Length: 4\r\n\r\n00"
    )
    time.sleep(0.3)
    return connection


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "(anonymous users may read and write; loopback only)"),
        (["--anonymous", "read"], "(anonymous users may read, nobody may write; loopback only)"),
        (
            ["--htpasswd", "users"],
            "(anonymous users may read, users in users may read and write; loopback only)",
        ),
        (["--host", "0.0.0.0"], "(anonymous users may read, nobody may write; on every address)"),
        (
            ["--host", "0.0.0.0", "--anonymous", "write"],
            "(anonymous users may read and write; on every address)",
        ),
    ],
)
def test_start_up_line_tells_who_may_do_what(start: Start, flags: list[str], words: str) -> None:
    (start.cwd / "users").write_text("a:{SHA}0DPiKuNIrrVmD8IUCuw1hQxNqZc=\n")
    process = start.serve(*flags)
    line = process.line()
    assert line.startswith(f"serving {start.cwd}/repos at http://")
    assert line.endswith(words)
    clone = process.line()
    assert re.fullmatch(r"git clone http://\S+:\d+/demo\.git", clone)
    url = clone.removeprefix("git clone ")
    subprocess.run(
        ["git", "ls-remote", url], check=True, timeout=20, capture_output=True
    )  # it listens already
    process.child.send_signal(signal.SIGTERM)
    assert process.wait() == 0


def test_start_up_line_names_a_repository_that_can_be_cloned(start: Start) -> None:
    (start.cwd / "repos" / "demo.git").rename(start.cwd / "repos" / "z.git")
    latin_1 = os.fsencode(start.cwd / "repos") + b"/\xe4.git"
    subprocess.run(["git", "init", "-q", "--bare", latin_1], check=True)
    process = start.serve()
    port = process.port()
    assert process.line() == f"git clone http://127.0.0.1:{port}/z.git"


def test_only_exported_repositories(start: Start) -> None:
    subprocess.run(["git", "init", "-q", "--bare", str(start.cwd / "repos" / "shown.git")], check=True)
    (start.cwd / "repos" / "shown.git" / "git-daemon-export-ok").touch()
    process = start("-m", "gitsmart", "serve", "repos", "--port", "0", "--require-export-ok")
    port = process.port()
    assert process.line() == f"git clone http://127.0.0.1:{port}/shown.git"

    def lists(name: str) -> bool:
        command = ["git", "ls-remote", f"http://127.0.0.1:{port}/{name}"]
        return subprocess.run(command, capture_output=True).returncode == 0

    assert (lists("shown.git"), lists("demo.git")) == (True, False)
    (start.cwd / "repos" / "demo.git" / "git-daemon-export-ok").touch()
    (start.cwd / "repos" / "shown.git" / "git-daemon-export-ok").unlink()
    assert (lists("shown.git"), lists("demo.git")) == (False, True)


@several
def test_sigterm_lets_running_requests_end(start: Start, workers: str) -> None:
    process = start.serve("--workers", workers)
    port = process.port()
    idle, push = connect(port), begin_push(port)
    process.child.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.child.poll() is None
    assert idle.recv(100) == b""  # nothing was asked on it: closed at once
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    push.sendall(b"00")
    assert push.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    assert process.wait() == 0
    assert "draining requests=1" in process.log()
    assert "Traceback" not in process.log()
    idle.close()
    push.close()


@several
def test_drain_has_a_limit(start: Start, workers: str) -> None:
    (start.cwd / "c.toml").write_text("[server]\ndrain_s = 0.5\n")
    process = start.serve("--workers", workers, "--config", "c.toml")
    push = begin_push(process.port())
    process.child.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait() == 0
    assert time.monotonic() - began < 5
    assert "connections were cut off connections=1" in process.log()
    assert "Traceback" not in process.log()
    push.close()


@several
def test_second_signal_stops_at_once(start: Start, workers: str) -> None:
    process = start.serve("--workers", workers)
    push = begin_push(process.port())
    process.child.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.child.poll() is None
    process.child.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait() == 0
    assert time.monotonic() - began < 5
    assert "Traceback" not in process.log()
    assert "ERROR" not in process.log()
    push.close()


@several
def test_log_is_json_on_demand(start: Start, workers: str) -> None:
    process = start.serve("--workers", workers, "--log-format", "json")
    with connect(process.port()) as connection:
        connection.sendall(
            b"GET /demo.git/info/refs?service=git-upload-pack&token=x HTTP/1.1\r\n"
            b"Host: x\r\nConnection: close\r\n\r\n"
        )
        while connection.recv(4096):
            pass
    process.child.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    (line,) = process.log().splitlines()
    entry = json.loads(line)
    assert {key: entry[key] for key in ("level", "logger", "user", "repo", "service", "status")} == {
        "level": "INFO",
        "logger": "gitsmart.request",
        "user": None,
        "repo": "demo.git",
        "service": "git-upload-pack",
        "status": 200,
    }
    assert "token" not in line


def code_block() -> str:
    match = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "embedding.md").read_text(), re.DOTALL)
    assert match is not None
    return match[1]


@pytest.mark.parametrize("method", ["GET", "POST", "PROPFIND", "X" * 1000])
def test_where_there_is_nothing_no_method_is_known(start: Start, method: str) -> None:
    process = start.serve()
    with connect(process.port()) as client:
        client.sendall(f"{method} /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        with client.makefile("rb") as reply:
            head = reply.read().partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"Allow" not in head
    process.child.terminate()
    assert process.wait() == 0
    (line,) = [line for line in process.log().splitlines() if "gitsmart.request" in line]
    assert f" method={method[:200]}" in line
    assert len(line) < 600


@pytest.mark.parametrize("server", ["gitsmart.HTTPServer", "tornado.httpserver.HTTPServer"])
def test_routes_in_an_application_of_somebody_elses(start: Start, server: str) -> None:
    """The page's program, as it stands; and under Tornado's own server."""
    code = code_block()
    assert len([line for line in code.splitlines() if line]) <= 12
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert "8080" in code
    assert "gitsmart.HTTPServer" in code
    code = code.replace("8080", str(port)).replace("gitsmart.HTTPServer", server)
    (start.cwd / "program.py").write_text(f"import tornado.httpserver\n{code}")
    process = start("program.py")
    for _ in range(200):
        try:
            connection = connect(port)
            break
        except ConnectionRefusedError:
            assert process.child.poll() is None, process.log()
            time.sleep(0.05)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"hello" in connection.recv(4096)
    connection.close()
    url = f"http://127.0.0.1:{port}/git/demo.git"
    work = start.cwd / "work"

    def git(*arguments: str) -> None:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", *arguments]
        subprocess.run(command, check=True, timeout=60, capture_output=True)

    git("init", "-q", "-b", "main", str(work))
    (work / "big").write_bytes(bytes(n * n % 251 for n in range(70_000)) * 1)
    git("-C", str(work), "add", ".")
    git("-C", str(work), "commit", "-qm", "first")
    git("-c", "http.postBuffer=65536", "-C", str(work), "push", "-q", url, "main")
    git("clone", "-q", url, str(start.cwd / "clone"))
    assert (start.cwd / "clone" / "big").read_bytes() == (work / "big").read_bytes()
    git("-C", str(start.cwd / "repos" / "demo.git"), "fsck", "--strict")


def test_readme_shows_the_same_program() -> None:
    assert code_block() in (ROOT / "README.md").read_text()


def test_arguments_of_the_api_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a directory"):
        gitsmart.create_app(tmp_path / "none")
    with pytest.raises(ConfigError, match="anonymous is 'all'; allowed"):
        gitsmart.git_routes(tmp_path, anonymous="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="prefix is 'git'; allowed"):
        gitsmart.git_routes(tmp_path, prefix="git")
    routes = gitsmart.git_routes(str(tmp_path), prefix="/git/")
    assert routes
    assert all(route.regex.pattern.startswith("/git/(?P<name>") for route in routes)
    assert set(gitsmart.__all__) <= set(dir(gitsmart)) | {"Config", "HTTPServer", "create_app", "git_routes"}
    with pytest.raises(AttributeError):
        gitsmart.nothing  # noqa: B018
