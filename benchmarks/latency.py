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
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from benchmarks.client import Address, fetch_body, get, post, push_head, push_pack
from benchmarks.history import make, many_refs
from benchmarks.peers import Gitsmart, HttpBackend, Peer, Unavailable, environ

INTERVAL_S = 0.02
SMALL = "/small.git/info/refs?service=git-upload-pack"


@dataclass(frozen=True, slots=True)
class Load:
    """What is pushed into empty repositories, and what is cloned meanwhile."""

    env: dict[str, str]
    tips: list[str]
    head: bytes
    pack: Path
    name: str
    """The repository that is cloned. Beside it there must be small.git."""

    def clone_body(self, turn: int) -> bytes:
        """Other wants each time, so that no cache has the answer."""
        wants = [tip for number, tip in enumerate(self.tips) if number != turn % len(self.tips)]
        return fetch_body(wants or self.tips)


def _pushing(load: Load, address: Address, root: Path, stop: Event, done: Any) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        target = root / f"pushed-{number}.git"
        subprocess.run(["git", "init", "-q", "--bare", str(target)], env=load.env, check=True)
        command = ["git", "-C", str(target), "config", "http.receivepack", "true"]
        subprocess.run(command, env=load.env, check=True)
        with contextlib.suppress(OSError):
            began = time.perf_counter()
            push_pack(address, target.name, load.head, load.pack)
            done.put(("push", time.perf_counter() - began))
        shutil.rmtree(target, ignore_errors=True)


def _cloning(load: Load, address: Address, stop: Event, done: Any) -> None:
    turn = 0
    while not stop.is_set():
        with contextlib.suppress(OSError):
            began = time.perf_counter()
            post(address, f"/{load.name}/git-upload-pack", load.clone_body(turn))
            done.put(("clone", time.perf_counter() - began))
        turn += 1


def sample(address: Address, seconds: float) -> list[float]:
    """How many milliseconds info/refs of the small repository takes, asked every 20 ms."""
    times = []
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        began = time.perf_counter()
        get(address, SMALL)
        times.append((time.perf_counter() - began) * 1000)
        time.sleep(max(0.0, INTERVAL_S - (time.monotonic() - now)))
    return times


def percentiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {name: round(ordered[min(int(len(ordered) * q), len(ordered) - 1)], 2) for name, q in at.items()}
    return {**found, "max": round(ordered[-1], 2), "requests": len(ordered)}


@contextlib.contextmanager
def under(load: Load, address: Address, root: Path) -> Iterator[Any]:
    """A push and a clone under way, one after the other, for as long as the block runs."""
    context = multiprocessing.get_context("fork")
    stop, done = context.Event(), context.Queue()
    jobs = [
        context.Process(target=_pushing, args=(load, address, root, stop, done), daemon=True),
        context.Process(target=_cloning, args=(load, address, stop, done), daemon=True),
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


def measure(load: Load, peer: Peer, seconds: float) -> dict[str, object]:
    """Percentiles, idle and under load, and how much of the load was done meanwhile."""
    host, _, port = peer.url.removeprefix("http://").partition(":")
    address = (host, int(port))
    sample(address, 0.5)
    idle = percentiles(sample(address, min(seconds, 5.0)))
    cpu = peer.cpu_s()
    with under(load, address, peer.root) as done:
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
        env = environ(scratch / "home")

        def git(*args: str | Path) -> str:
            command = ["git", *map(str, args)]
            return subprocess.run(command, env=env, capture_output=True, check=True, encoding="utf-8").stdout

        big, small, pack = scratch / "big.git", scratch / "small.git", scratch / "all.pack"
        git("clone", "-q", "--bare", "--no-local", options.repo.resolve(), big)
        make(small, many_refs(20), env)
        refs = [line.split() for line in git("-C", big, "for-each-ref").splitlines()]
        command = ["git", "pack-objects", "--revs", "--all", "--stdout", "-q", "--delta-base-offset"]
        with pack.open("wb") as file:
            subprocess.run(command, cwd=big, env=env, stdin=subprocess.DEVNULL, stdout=file, check=True)
        load = Load(
            env,
            sorted({oid for oid, _, _ in refs}),
            push_head([(name, oid) for oid, _, name in refs]),
            pack,
            big.name,
        )
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
                peer.root.mkdir()
                for repo in (big, small):
                    shutil.copytree(repo, peer.root / repo.name)
                with peer:
                    results[name] = measure(load, peer, options.seconds)
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
