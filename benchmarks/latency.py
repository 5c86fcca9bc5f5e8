"""What others feel while the server works hard: info/refs of a small repository, during a push and a
clone.

    python -m benchmarks.latency --repo PATH [--seconds N] [--server NAME ...] [--flags="..." ...]

Three processes besides the server: one pushes all of the big repository into an empty one, again and again;
one clones it, each time with another set of wants, so that no cache can help; and one asks for the small
repository's refs over a new connection, fifty times a second. It prints percentiles in milliseconds, idle and
under load, and how much of the load was done meanwhile.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from benchmarks.peers import Gitsmart, HttpBackend, Peer, Unavailable, environ

ZERO = "0" * 40
INTERVAL_S = 0.02


def pkt(line: str) -> bytes:
    return b"%04x%b" % (len(line.encode()) + 4, line.encode())


class Repositories:
    """The big one, the small one, and what is pushed."""

    def __init__(self, scratch: Path, repo: Path) -> None:
        self.scratch = scratch
        self.env = environ(scratch / "home")
        self.big = scratch / "big.git"
        self.git("clone", "-q", "--bare", "--no-local", repo.resolve(), self.big)
        self.git("config", "http.receivepack", "true", cwd=self.big)
        self.small = scratch / "small.git"
        self.git("init", "-q", "--bare", self.small)
        tree = self.git("mktree", cwd=self.small)
        commit = self.git("commit-tree", "-m", "small", tree, cwd=self.small)
        for number in range(20):
            self.git("update-ref", f"refs/heads/branch-{number}", commit, cwd=self.small)
        self.tips = sorted({line.split()[0] for line in self.git("for-each-ref", cwd=self.big).splitlines()})
        self.pack = scratch / "all.pack"
        with self.pack.open("wb") as pack:
            subprocess.run(
                ["git", "pack-objects", "--revs", "--all", "--stdout", "-q", "--delta-base-offset"],
                cwd=self.big,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=pack,
                check=True,
            )
        self.refs = [line.split() for line in self.git("for-each-ref", cwd=self.big).splitlines()]

    def git(self, *args: str | Path, cwd: Path | None = None) -> str:
        command = ["git", *map(str, args)]
        return subprocess.run(
            command,
            cwd=cwd or self.scratch,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            encoding="utf-8",
        ).stdout.rstrip("\n")

    def copy_to(self, root: Path) -> None:
        root.mkdir()
        shutil.copytree(self.big, root / "big.git")
        shutil.copytree(self.small, root / "small.git")

    def push_head(self) -> bytes:
        """Commands that make every branch and tag, up to the pack."""
        lines = [f"{ZERO} {oid} {name}" for oid, _, name in self.refs]
        lines[0] += "\0 report-status ofs-delta"
        return b"".join(map(pkt, lines)) + b"0000"

    def clone_body(self, turn: int) -> bytes:
        wants = [tip for number, tip in enumerate(self.tips) if number != turn % len(self.tips)] or self.tips
        lines = [pkt("command=fetch"), b"0001", pkt("ofs-delta"), pkt("no-progress")]
        return b"".join([*lines, *(pkt(f"want {tip}\n") for tip in wants), pkt("done\n"), b"0000"])


def push(address: tuple[str, int], name: str, head: bytes, pack: Path) -> float:
    """Push the pack over a socket of our own; the seconds that it took."""
    began = time.perf_counter()
    with socket.create_connection(address) as connection, pack.open("rb") as file:
        size = len(head) + pack.stat().st_size
        connection.sendall(
            f"POST /{name}/git-receive-pack HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Content-Length: {size}\r\n"
            "Content-Type: application/x-git-receive-pack-request\r\n\r\n".encode()
            + head
        )
        connection.sendfile(file)
        answer = b""
        while data := connection.recv(1 << 16):
            answer += data
    if b" 200 OK" not in answer[:30] or b"unpack ok" not in answer:
        raise SystemExit(f"the push failed: {answer[-2000:]!r}")
    return time.perf_counter() - began


def post(address: tuple[str, int], path: str, body: bytes) -> int:
    """One request of upload-pack; the bytes of the answer."""
    connection = http.client.HTTPConnection(*address, timeout=600)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/x-git-upload-pack-request", "Git-Protocol": "version=2"}
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        size = 0
        while data := response.read(1 << 18):
            size += len(data)
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status}")
    return size


def _pushing(repos: Repositories, address: tuple[str, int], root: Path, stop: Event, done: Any) -> None:
    head, number = repos.push_head(), 0
    while not stop.is_set():
        number += 1
        target = root / f"pushed-{number}.git"
        repos.git("init", "-q", "--bare", target)
        repos.git("config", "http.receivepack", "true", cwd=target)
        with contextlib.suppress(OSError):
            done.put(("push", push(address, target.name, head, repos.pack)))
        shutil.rmtree(target)


def _cloning(repos: Repositories, address: tuple[str, int], stop: Event, done: Any) -> None:
    turn = 0
    while not stop.is_set():
        began = time.perf_counter()
        with contextlib.suppress(OSError, http.client.HTTPException):
            post(address, "/big.git/git-upload-pack", repos.clone_body(turn))
            done.put(("clone", time.perf_counter() - began))
        turn += 1


def ask(address: tuple[str, int], path: str) -> float:
    """Milliseconds of one GET over a new connection."""
    began = time.perf_counter()
    with socket.create_connection(address) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while data := connection.recv(1 << 16):
            answer += data
    if b" 200 OK" not in answer[:30]:
        raise SystemExit(f"{path}: {answer[:100]!r}")
    return (time.perf_counter() - began) * 1000


def sample(address: tuple[str, int], seconds: float) -> list[float]:
    """How long info/refs of the small repository takes, asked every 20 ms."""
    times = []
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        times.append(ask(address, "/small.git/info/refs?service=git-upload-pack"))
        time.sleep(max(0.0, INTERVAL_S - (time.monotonic() - now)))
    return times


def percentiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {name: round(ordered[min(int(len(ordered) * q), len(ordered) - 1)], 2) for name, q in at.items()}
    return {**found, "max": round(ordered[-1], 2), "requests": len(ordered)}


@contextlib.contextmanager
def load(repos: Repositories, address: tuple[str, int], root: Path) -> Iterator[Any]:
    """A push and a clone under way, one after the other, for as long as the block runs."""
    context = multiprocessing.get_context("fork")
    stop, done = context.Event(), context.Queue()
    jobs = [
        context.Process(target=_pushing, args=(repos, address, root, stop, done), daemon=True),
        context.Process(target=_cloning, args=(repos, address, stop, done), daemon=True),
    ]
    for job in jobs:
        job.start()
    try:
        yield done
    finally:
        stop.set()
        for job in jobs:
            job.terminate()
        for job in jobs:
            job.join()


def measure(repos: Repositories, peer: Peer, seconds: float) -> dict[str, object]:
    host, _, port = peer.url.removeprefix("http://").partition(":")
    address = (host, int(port))
    sample(address, 0.5)
    idle = percentiles(sample(address, min(seconds, 5.0)))
    cpu = peer.cpu_s()
    with load(repos, address, peer.root) as done:
        time.sleep(1.0)
        with contextlib.suppress(PermissionError):
            os.nice(-5)  # it is the server's turn that is measured, not the client's
        busy = percentiles(sample(address, seconds))
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        finished: dict[str, list[float]] = {"push": [], "clone": []}
        while not done.empty():
            kind, took = done.get()
            finished[kind].append(round(took, 2))
    return {"idle_ms": idle, "loaded_ms": busy, "finished_s": finished, "cpu_s": round(peer.cpu_s() - cpu, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency")
    parser.add_argument("--repo", type=Path, required=True, help="the repository that is pushed and cloned")
    parser.add_argument("--seconds", type=float, default=30.0, help="of load for each server (30)")
    parser.add_argument("--server", action="append", help="gitsmart, git-http-backend (default: both)")
    parser.add_argument("--flags", action="append", help="of gitsmart; once for each variant to compare")
    parser.add_argument("--scratch", type=Path, help="a folder with room for six copies (default: TMPDIR)")
    parser.add_argument("--json", type=Path, help="where figures go")
    options = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="gitsmart-latency-", dir=options.scratch) as folder:
        scratch = Path(folder)
        repos = Repositories(scratch, options.repo)
        peers: list[tuple[str, Peer]] = []
        servers = options.server or [Gitsmart.name, HttpBackend.name]
        if Gitsmart.name in servers:
            for number, flags in enumerate(options.flags or [""]):
                root, run = scratch / f"gitsmart-{number}", scratch / f"run-{number}"
                peers.append((f"gitsmart {flags}".strip(), Gitsmart(root, run, flags=flags.split())))
        if HttpBackend.name in servers:
            peers.append((HttpBackend.name, HttpBackend(scratch / "git", scratch / "run-git")))
        try:
            for name, peer in peers:
                repos.copy_to(peer.root)
                with peer:
                    results[name] = measure(repos, peer, options.seconds)
                print(f"{name}: {json.dumps(results[name])}", flush=True)
                shutil.rmtree(peer.root)
        except Unavailable as problem:
            print(f"latency: {problem}", file=sys.stderr)
            return 1
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
