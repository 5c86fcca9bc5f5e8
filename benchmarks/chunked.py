"""Chunked request bodies: stock Tornado against gitsmart's HTTPServer, over TCP on loopback, in one run.

    python benchmarks/chunked.py [--quick] [--repeats 5] [--json FILE]

Each server is a process of its own; this process is the client, which sends bodies that were encoded before
the clock starts, with blocking `sendall`. The application is the same: a `stream_request_body` handler that
only counts, so that what is measured is the reading. For each chunk size, the median over the repeats of

    MB/s          body bytes by wall clock, client and server sharing the machine
    MB/cpu-s      body bytes by CPU seconds of the server alone: the figure to compare on a busy machine
    stall         the longest time between two ticks of a 1 ms timer in the server, in CPU ms (its own doing)
                  and in wall ms (with the scheduler's). The JSON has the worst of all repeats as well: on a
                  virtual machine that includes what the host took; `machine_jump_ms` is what a process that
                  only looks at its CPU clock sees of that

and the ratios. At the end a million one-byte chunks are sent whole and trickled in random pieces, and checked
byte by byte. The goals are issue 3's: 100 times for 1 B, 10 times for 64 B, no loss at 64 KiB, stalls under
10 ms.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tornado import web
from tornado.httpserver import HTTPServer as TornadoServer
from tornado.netutil import bind_sockets

from gitsmart.httpd.connection import HTTPServer as GitsmartServer

SERVERS = ("tornado", "gitsmart")
LAST = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A way to cut a body, and how much of it makes about a second's work for each server."""

    name: str
    sizes: tuple[int, ...]
    tornado_bytes: int
    gitsmart_bytes: int
    goal: float | None = None


SPREAD = tuple(int(2 ** (i / 4)) for i in range(65))
CASES = (
    Case(name="1 B", sizes=(1,), tornado_bytes=80_000, gitsmart_bytes=16_000_000, goal=100),
    Case(name="64 B", sizes=(64,), tornado_bytes=6_000_000, gitsmart_bytes=150_000_000, goal=10),
    Case(name="4 KiB", sizes=(4096,), tornado_bytes=200_000_000, gitsmart_bytes=400_000_000),
    Case(name="64 KiB", sizes=(65536,), tornado_bytes=600_000_000, gitsmart_bytes=600_000_000, goal=1),
    Case(name="mixed 1-5 B", sizes=(1, 2, 3, 5), tornado_bytes=400_000, gitsmart_bytes=3_000_000),
    Case(name="mixed 1 B-64 KiB", sizes=SPREAD, tornado_bytes=200_000_000, gitsmart_bytes=400_000_000),
)


# The server's process


class Stalls:
    """The longest time between two ticks of a 1 ms timer."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reset()
        self._tick()

    def reset(self) -> None:
        self.cpu_s = self.wall_s = 0.0
        self._cpu, self._wall = time.thread_time(), time.perf_counter()

    def _tick(self) -> None:
        cpu, wall = time.thread_time(), time.perf_counter()
        self.cpu_s = max(self.cpu_s, cpu - self._cpu)
        self.wall_s = max(self.wall_s, wall - self._wall)
        self._cpu, self._wall = cpu, wall
        self._loop.call_later(0.001, self._tick)


@web.stream_request_body
class Count(web.RequestHandler):
    def initialize(self) -> None:
        self.count = 0

    def data_received(self, chunk: bytes) -> None:
        self.count += len(chunk)

    def post(self) -> None:
        self.write(str(self.count))


@web.stream_request_body
class Digest(web.RequestHandler):
    def initialize(self) -> None:
        self.digest = hashlib.sha256()

    def data_received(self, chunk: bytes) -> None:
        self.digest.update(chunk)

    def post(self) -> None:
        self.write(self.digest.hexdigest())


class Stats(web.RequestHandler):
    def initialize(self, stalls: Stalls) -> None:
        self.stalls = stalls

    def get(self) -> None:
        stalls = self.stalls
        self.write({"cpu_s": time.process_time(), "stall_cpu_s": stalls.cpu_s, "stall_wall_s": stalls.wall_s})
        stalls.reset()


async def serve(kind: str) -> None:
    stalls = Stalls()
    routes: list[Any] = [("/count", Count), ("/digest", Digest), ("/stats", Stats, {"stalls": stalls})]
    application = web.Application(routes, log_function=lambda handler: None)
    if kind == "tornado":
        server = TornadoServer(application, max_body_size=1 << 40)
    else:
        server = GitsmartServer(application, max_body_size=1 << 40)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


# The client's


class Server:
    def __init__(self, kind: str) -> None:
        command = [sys.executable, __file__, "--serve", kind]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def response(self) -> bytes:
        status = self.file.readline()
        length = 0
        while (line := self.file.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = self.file.read(length)
        assert b" 200 " in status, (status, body)
        return body

    def start(self, path: str) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.socket.sendall(head.encode())

    def stats(self) -> dict[str, float]:
        self.socket.sendall(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stats: dict[str, float] = json.loads(self.response())
        return stats

    def stop(self) -> None:
        self.file.close()
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def encode(sizes: tuple[int, ...], total: int) -> tuple[bytes, int]:
    """A chunked body without its last chunk, of about `total` bytes; and its true length."""
    rng = random.Random(1)
    data = os.urandom(65536)
    pieces, length = [], 0
    while length < total:
        size = rng.choice(sizes)
        pieces.append(b"%x\r\n%b\r\n" % (size, data[:size]))
        length += size
    return b"".join(pieces), length


def measure(server: Server, case: Case, total: int) -> dict[str, float]:
    # At most about 30 MB are encoded at once, and sent as often as it takes.
    part, length = encode(case.sizes, min(total, 30_000_000 if max(case.sizes) > 64 else 6_000_000))
    times = max(1, round(total / length))
    before = server.stats()
    start = time.perf_counter()
    server.start("/count")
    for _ in range(times):
        server.socket.sendall(part)
    server.socket.sendall(LAST)
    answer = server.response()
    wall_s = time.perf_counter() - start
    after = server.stats()
    assert int(answer) == length * times
    return {
        "mb_s": length * times / wall_s / 1e6,
        "mb_cpu_s": length * times / (after["cpu_s"] - before["cpu_s"]) / 1e6,
        "stall_cpu_ms": after["stall_cpu_s"] * 1e3,
        "stall_wall_ms": after["stall_wall_s"] * 1e3,
    }


def trickles(data: bytes) -> Iterator[bytes]:
    rng = random.Random(2)
    position = 0
    while position < len(data):
        step = rng.choice((1, 2, 3, 5, 6, 7, 100, 1460, 4096, 65537))
        yield data[position : position + step]
        position += step


def check_million(server: Server) -> dict[str, float]:
    """Send a million one-byte chunks whole, and in random pieces; return the seconds each took."""
    body = random.Random(3).randbytes(1_000_000)
    whole = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + LAST
    expected = hashlib.sha256(body).hexdigest().encode()
    took = {}
    for name, pieces in (("whole", [whole]), ("trickled", list(trickles(whole)))):
        start = time.perf_counter()
        server.start("/digest")
        for piece in pieces:
            server.socket.sendall(piece)
        assert server.response() == expected, name
        took[f"{name}_s"] = time.perf_counter() - start
    return took


def machine_jump_ms(seconds: float) -> float:
    """The longest step of this thread's CPU clock while it does nothing but look at it."""
    longest, last, end = 0.0, time.thread_time(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        now = time.thread_time()
        longest, last = max(longest, now - last), now
    return longest * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a tenth of the bytes and one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    if options.serve:
        try:
            asyncio.run(serve(options.serve))
        except KeyboardInterrupt:
            pass
        return
    repeats = 1 if options.quick else options.repeats
    share = 0.1 if options.quick else 1.0
    servers = {kind: Server(kind) for kind in SERVERS}
    results: dict[str, Any] = {"python": sys.version.split()[0], "cores": os.cpu_count(), "repeats": repeats}
    results["cases"] = {}
    try:
        for case in CASES:
            runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in SERVERS}
            for _ in range(repeats):  # alternately, so that a busy minute hits both
                runs["tornado"].append(measure(servers["tornado"], case, int(case.tornado_bytes * share)))
                runs["gitsmart"].append(measure(servers["gitsmart"], case, int(case.gitsmart_bytes * share)))
            figures: dict[str, Any] = {
                kind: {key: statistics.median(run[key] for run in runs[kind]) for key in runs[kind][0]}
                for kind in SERVERS
            }
            for kind in SERVERS:
                figures[kind]["worst_stall_cpu_ms"] = max(run["stall_cpu_ms"] for run in runs[kind])
            for key in ("mb_s", "mb_cpu_s"):
                figures[f"ratio_{key}"] = figures["gitsmart"][key] / figures["tornado"][key]
            figures["goal"] = case.goal
            results["cases"][case.name] = figures
        results["million_one_byte_chunks"] = check_million(servers["gitsmart"])
        results["machine_jump_ms"] = machine_jump_ms(1 if options.quick else 5)
    finally:
        for server in servers.values():
            server.stop()
    report(results)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


def report(results: dict[str, Any]) -> None:
    print(json.dumps(results))
    print(f"\n{'chunks of':18}{'MB/s':>20}{'MB per CPU-second':>29}{'stall, CPU ms':>25}{'wall ms':>16}")
    columns = f"{'tornado':>10}{'ours':>10}{'ratio':>9}"
    print(f"{'':18}{columns}{columns}{'tornado':>9}{'ours':>7}{'tornado':>9}{'ours':>7}   goal")
    for name, figures in results["cases"].items():
        theirs, ours = figures["tornado"], figures["gitsmart"]
        line = f"{name:18}"
        for key in ("mb_s", "mb_cpu_s"):
            line += f"{theirs[key]:10.2f}{ours[key]:10.1f}{figures['ratio_' + key]:9.1f}"
        for key in ("stall_cpu_ms", "stall_wall_ms"):
            line += f"{theirs[key]:9.1f}{ours[key]:7.1f}"
        goal = figures["goal"]
        met = (
            "" if goal is None else f"   {goal:g}x {'met' if figures['ratio_mb_cpu_s'] >= goal else 'MISSED'}"
        )
        print(line + met)
    print(f"longest step of an idle CPU clock: {results['machine_jump_ms']:.1f} ms")
    million = results["million_one_byte_chunks"]
    print("a million one-byte chunks:", ", ".join(f"{key} {value:.2f}" for key, value in million.items()))


if __name__ == "__main__":
    main()
