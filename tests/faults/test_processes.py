"""Several processes on one port: whatever of them is killed, no push is lost, nothing is left, others are
served."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Git, MakeRepo, ServeFunction, Server, fsck, leftovers, refs
from tests.faults import rawpush
from tests.faults.conftest import NewCommit, new_commit
from tests.faults.test_disconnects import eventually

BIG = 3 << 20  # more than what is done in a thread of a front
NICE = 16  # of the fields behind the name in /proc/PID/stat, proc(5)


def nice(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[NICE])


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def pool(server: Server) -> list[int]:
    """Those who do long work step back for the others."""
    return [pid for pid in server.processes()[1:] if nice(pid) > nice(server.pid)]


def fronts(server: Server) -> list[int]:
    return [pid for pid in server.processes()[1:] if nice(pid) == nice(server.pid)]


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def several(serve: ServeFunction, make_repo: MakeRepo, tmp_path: Path, server_kind: str) -> Server:
    """A server of two fronts and two pool processes, over one repository."""
    if server_kind == "git":
        pytest.skip("about our own processes")
    make_repo(tmp_path / "root" / "sample.git")
    server = serve(tmp_path / "root", "--anonymous", "write", "--workers", "2")
    assert (len(fronts(server)), len(pool(server))) == (2, 2)
    return server


class HalfAPush:
    """A push whose second half has not been sent yet; its objects are in a quarantine."""

    def __init__(self, git: Git, server: Server, marker: str = "half", size: int = BIG) -> None:
        self.path = server.root / "sample.git"
        self.commit: NewCommit = new_commit(git, self.path, marker, content=random.Random(7).randbytes(size))
        body = rawpush.push_body([self.commit.command], self.commit.pack)
        self.connection = rawpush.Connection(server.url)
        headers = rawpush.post_headers("git-receive-pack") | {"Content-Length": str(len(body))}
        self.connection.socket.sendall(self.connection.head("POST", "/sample.git/git-receive-pack", headers))
        self.connection.socket.sendall(body[: len(body) // 2])
        self.rest = body[len(body) // 2 :]
        eventually(lambda: leftovers(self.path), within_s=10)

    def finish(self) -> rawpush.Response | None:
        """Send the rest; the answer, if any."""
        with contextlib.suppress(OSError, ValueError), self.connection:
            self.connection.socket.sendall(self.rest)
            return self.connection.response()
        return None


def push_works(git: Git, server: Server, marker: str, size: int = 100) -> None:
    path = server.root / "sample.git"
    commit = new_commit(git, path, marker, content=random.Random(8).randbytes(size))
    report = rawpush.push(server.url, "sample.git", [commit.command], commit.pack).report()
    assert report.refs == {"refs/heads/main": "ok"}
    assert refs(path)["refs/heads/main"] == commit.oid
    fsck(path)


def test_big_and_small_requests(git: Git, several: Server, tmp_path: Path) -> None:
    path = several.root / "sample.git"
    before = [cpu_ticks(pid) for pid in pool(several)]
    push_works(git, several, "small")
    push_works(git, several, "big", BIG)
    # a repository that is more than a thread does: 6,000 blobs
    tree = git("mktree", cwd=path, input="".join(_blobs(git, path, 6000)))
    git("update-ref", "refs/heads/wide", git("commit-tree", "-m", "wide", tree, cwd=path), cwd=path)
    git("repack", "-adq", cwd=path)
    for n in range(3):
        git("clone", "-q", "--mirror", several.url_of("sample.git"), f"clone{n}.git", cwd=tmp_path)
        assert refs(tmp_path / f"clone{n}.git") == refs(path)
        fsck(tmp_path / f"clone{n}.git")
    assert sum(cpu_ticks(pid) for pid in pool(several)) > sum(before)
    assert [several.wait_for_line("note=clone(?!,)"), several.wait_for_line("clone, cached")]
    (push,) = [line for line in several.log if re_in(line, 3 << 20)]
    assert " objects=3 " in push
    assert " agent=rawpush/1 " in push


def _blobs(git: Git, path: Path, count: int) -> list[str]:
    stream = "".join(f"blob\nmark :{n + 1}\ndata 6\n{n:06}\n" for n in range(count))
    marks = path.parent / "marks"
    git("fast-import", "--quiet", f"--export-marks={marks}", cwd=path, input=stream)
    lines = marks.read_text().splitlines()
    marks.unlink()
    return [f"100644 blob {line.split()[1]}\tfile-{n}\n" for n, line in enumerate(lines)]


def re_in(line: str, at_least: int) -> bool:
    return any(int(word.removeprefix("in=")) > at_least for word in line.split() if word.startswith("in="))


@pytest.mark.parametrize("when", ["while it is sent", "while it is checked"])
def test_pool_killed_in_the_midst_of_a_push(git: Git, several: Server, when: str) -> None:
    path = several.root / "sample.git"
    before = refs(path)
    if when == "while it is checked":
        hook = path / "hooks" / "pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\ntouch reached\nexec sleep 100\n")
        hook.chmod(0o755)
    push = HalfAPush(git, several)
    dying = pool(several)
    if when == "while it is checked":
        push.connection.socket.sendall(push.rest)
        push.rest = b""
        eventually((path / "reached").exists, within_s=20)
        hook.unlink()
        (path / "reached").unlink()
    kill(dying)
    response = push.finish()
    if response is not None:
        assert response.status == 503 or not response.complete, response
        assert b"unpack ok" not in response.body
    assert refs(path) == before
    eventually(lambda: leftovers(path) == [], within_s=10)
    several.wait_for_line("a server process has died .*role=pool.*signal 9")
    eventually(lambda: len(pool(several)) == 2 and not set(dying) & set(pool(several)), within_s=10)
    push_works(git, several, "after", BIG)


@pytest.mark.parametrize("size", [BIG, 300_000], ids=["big", "small"])
def test_front_killed_in_the_midst_of_a_push(git: Git, several: Server, size: int) -> None:
    path = several.root / "sample.git"
    before = refs(path)
    push = HalfAPush(git, several, size=size)
    dying = fronts(several)
    kill(dying)
    assert push.finish() is None
    assert refs(path) == before
    eventually(lambda: leftovers(path) == [], within_s=10)
    eventually(lambda: len(fronts(several)) == 2 and not set(dying) & set(fronts(several)), within_s=10)
    push_works(git, several, "after", BIG)


def test_supervisor_killed(git: Git, several: Server) -> None:
    """What runs may end, nothing new comes in, and then all are gone."""
    push = HalfAPush(git, several)
    orphans = several.processes()[1:]
    port = several.port
    several.process.kill()
    several.process.wait()
    eventually(lambda: _is_refused(port), within_s=10)
    response = push.finish()
    assert response is not None
    assert response.report().refs == {"refs/heads/main": "ok"}
    eventually(lambda: not any(_is_alive(pid) for pid in orphans), within_s=20)
    several.forget()
    assert not several.crashes(), several.text()
    assert leftovers(several.root) == []
    fsck(push.path)


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_processes_is_one_signal(git: Git, several: Server, number: signal.Signals) -> None:
    """A terminal's ^C, and systemd, reach every process: none may take it for the second one."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("these tests run under nohup, and so does the server")
    push = HalfAPush(git, several)
    for pid in several.processes():
        with contextlib.suppress(ProcessLookupError):  # a front without work has ended by now
            os.kill(pid, number)
    eventually(lambda: _is_refused(several.port), within_s=10)
    response = push.finish()
    assert response is not None
    assert response.report().refs == {"refs/heads/main": "ok"}
    assert several.process.wait(20) == 0
    several.forget()
    assert not several.crashes(), several.text()
    assert leftovers(several.root) == []


def test_second_signal_cuts_off_the_pool_too(git: Git, several: Server) -> None:
    push = HalfAPush(git, several)
    before = refs(push.path)
    several.process.terminate()
    eventually(lambda: _is_refused(several.port), within_s=10)
    began = time.monotonic()
    several.process.terminate()
    assert several.process.wait(20) == 0
    assert time.monotonic() - began < 10
    push.connection.close()
    several.forget()
    assert not several.crashes(), several.text()
    assert refs(push.path) == before
    assert leftovers(several.root) == []


def test_client_that_leaves_ends_its_job(git: Git, several: Server) -> None:
    push = HalfAPush(git, several)
    push.connection.cut()
    eventually(lambda: leftovers(push.path) == [])
    several.wait_for_line("status=499 .*error=")


def test_those_who_die_again_and_again_are_replaced_slowly(git: Git, several: Server) -> None:
    for _ in range(8):
        kill(fronts(several))
        time.sleep(0.1)
    eventually(lambda: len(fronts(several)) == 2, within_s=40)
    deaths = several.text().count("a server process has died")
    assert deaths < 16
    push_works(git, several, "after")


def test_a_process_that_does_not_start(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from gitsmart.supervisor import Role, StartFailed, Supervisor\n"
        "role = Role('front', 2, lambda control: 3, is_front=True)\n"
        "supervisor = Supervisor([role], sweep=lambda: None, on_last_front=lambda: None)\n"
        "try:\n"
        "    supervisor.run(lambda: sys.exit('ready'))\n"
        "except StartFailed as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=60
    )
    assert result.stdout == "a server process ended before it served\n", result.stderr
