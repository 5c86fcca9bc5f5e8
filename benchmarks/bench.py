"""gitsmart against nginx + fcgiwrap + git-http-backend, in one run over copies of one repository.

    make bench        python -m benchmarks.bench [--repo PATH] [--commits N] [--repeat N] [--case NAME ...]

The two servers take turns, round by round, on loopback. Most cases run the real git client, whose own
work is in the wall seconds; the "raw" ones speak HTTP from this process and show the server alone. CPU
seconds are the server's. Both repositories have the same config (`core.fsync` covers packs, indexes and
refs, as gitsmart does) and the same packs, bitmap and commit-graph. A ratio below 1 says that gitsmart
needs less than git.
"""

import argparse
import functools
import hashlib
import http.client
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from benchmarks.peers import Gitsmart, HttpBackend, Peer, Sampler, Unavailable, environ

ZERO = "0" * 40


@dataclass(slots=True)
class Sample:
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    anonymous_mib: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        return {
            "wall_s": round(statistics.median(self.wall_s), 5),
            "wall_best_s": round(min(self.wall_s), 5),
            "cpu_s": round(statistics.median(self.cpu_s), 5),
            "peak_rss_mib": round(max(self.rss_mib), 1),
            "peak_anonymous_mib": round(max(self.anonymous_mib), 1),
        }


# --- the repository


def history(commits: int) -> Iterator[bytes]:
    """A `git fast-import` stream: text files in folders, small edits, new files, some binaries."""
    dice = random.Random(20261124)
    words = [hashlib.sha1(b"%d" % n).hexdigest()[: 3 + n % 8] for n in range(5000)]

    def line() -> str:
        return "    " * dice.randrange(4) + " ".join(dice.choices(words, k=dice.randrange(3, 11)))

    files: dict[str, list[str]] = {}
    yield b"feature done\n"
    for number in range(commits):
        changes: list[bytes] = []
        if len(files) < 200 or dice.random() < 0.08:
            for _ in range(20 if len(files) < 200 else 1):
                path = f"src/{dice.randrange(30)}/{dice.choice(words)}/{dice.choice(words)}-{len(files)}.txt"
                files[path] = [line() for _ in range(dice.randrange(20, 400))]
                changes.append(_put(path, "\n".join(files[path]).encode()))
        for path in dice.sample(sorted(files), dice.randrange(1, 5)):
            text = files[path]
            at = dice.randrange(len(text))
            text[at : at + dice.randrange(3)] = [line() for _ in range(dice.randrange(1, 6))]
            changes.append(_put(path, "\n".join(text).encode()))
        if number % 97 == 0:
            changes.append(_put(f"assets/{number % 7}.bin", dice.randbytes(30_000)))
        who = b"B <b@example.com> %d +0000" % (1_600_000_000 + number * 300)
        yield b"commit refs/heads/main\nauthor %b\ncommitter %b\n" % (who, who)
        yield _data(f"change {number}\n\n{line()}\n".encode()) + b"".join(changes)
        if number % 200 == 150:
            yield b"reset refs/heads/branch-%d\nfrom refs/heads/main\n\n" % number
    yield b"done\n"


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)


def _put(path: str, content: bytes) -> bytes:
    return b"M 100644 inline %b\n%b" % (path.encode(), _data(content))


class Bench:
    """The scratch folder, both servers, and one copy of the repository for each."""

    def __init__(self, scratch: Path, options: argparse.Namespace) -> None:
        self.scratch = scratch
        self.env = environ(scratch / "home")
        self.source = scratch / "source.git"
        self._prepare(options)
        self.peers: list[Peer] = [
            Gitsmart(scratch / "gitsmart", scratch / "run-gitsmart"),
            HttpBackend(scratch / "git", scratch / "run-git"),
        ]
        for peer in self.peers:
            peer.root.mkdir()
            shutil.copytree(self.source, peer.root / "bench.git")
        self.tips = sorted(
            {line.split()[0] for line in self.git("for-each-ref", cwd=self.source).splitlines()}
        )
        self.branch = self.git("symbolic-ref", "--short", "HEAD", cwd=self.source)

    def git(self, *args: str | Path, cwd: Path | None = None, input: str | None = None) -> str:
        return subprocess.run(
            ["git", *map(str, args)],
            cwd=cwd or self.scratch,
            env=self.env,
            input=input,
            capture_output=True,
            check=True,
            encoding="utf-8",
            errors="surrogateescape",
        ).stdout.rstrip("\n")

    def do(self, *args: str | Path, cwd: Path | None = None) -> None:
        self.git(*args, cwd=cwd)

    def _prepare(self, options: argparse.Namespace) -> None:
        if options.repo:
            self.git("clone", "-q", "--bare", "--no-local", options.repo.resolve(), self.source)
        else:
            self.git("init", "-q", "--bare", self.source)
            importer = subprocess.Popen(
                ["git", "fast-import", "--quiet"], cwd=self.source, env=self.env, stdin=subprocess.PIPE
            )
            assert importer.stdin is not None
            for piece in history(options.commits):
                importer.stdin.write(piece)
            importer.stdin.close()
            if importer.wait():
                raise SystemExit("git fast-import failed")
        self.git("repack", "-adq", "--write-bitmap-index", cwd=self.source)
        self.git("pack-refs", "--all", cwd=self.source)
        self.git("commit-graph", "write", "--reachable", cwd=self.source)
        for name, value in [
            ("core.fsync", "committed,derived-metadata,reference"),
            ("http.receivepack", "true"),
            ("uploadpack.allowFilter", "true"),
            ("receive.denyDeletes", "false"),
        ]:
            self.git("config", name, value, cwd=self.source)
        shutil.rmtree(self.source / "hooks", ignore_errors=True)

    def facts(self) -> dict[str, object]:
        counts = dict(
            line.split(": ") for line in self.git("count-objects", "-v", cwd=self.source).splitlines()
        )
        return {
            "objects": int(counts["in-pack"]),
            "pack_mib": round(int(counts["size-pack"]) / 1024, 1),
            "refs": len(self.git("for-each-ref", cwd=self.source).splitlines()),
            "commits": int(self.git("rev-list", "--all", "--count", cwd=self.source)),
        }


# --- the cases: prepare(bench, peer) -> what is measured


Action = Callable[[], object]


def _raw(peer: Peer, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> int:
    """One request over a connection of its own; the number of bytes in the answer."""
    connection = http.client.HTTPConnection(peer.url.removeprefix("http://"), timeout=600)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        size = 0
        while data := response.read(1 << 18):
            size += len(data)
        if response.status != 200:
            raise SystemExit(f"{peer.name}: {method} {path}: {response.status}")
        return size
    finally:
        connection.close()


def _pkt(line: str) -> bytes:
    return b"%04x%b" % (len(line.encode()) + 4, line.encode())


def _headers(service: str, version: int) -> dict[str, str]:
    headers = {
        "Content-Type": f"application/x-{service}-request",
        "Accept": f"application/x-{service}-result",
    }
    return headers | ({"Git-Protocol": f"version={version}"} if version else {})


def clone_git(bench: Bench, peer: Peer) -> Iterator[Action]:
    target = bench.scratch / "clone.git"
    while True:
        shutil.rmtree(target, ignore_errors=True)
        yield lambda: bench.do("clone", "-q", "--bare", f"{peer.url}/bench.git", target)


def clone_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    lines = [_pkt("command=fetch"), b"0001", _pkt("ofs-delta"), _pkt("no-progress")]
    body = b"".join([*lines, *(_pkt(f"want {tip}\n") for tip in bench.tips), _pkt("done\n"), b"0000"])

    def action() -> None:
        _raw(peer, "POST", "/bench.git/git-upload-pack", body, _headers("git-upload-pack", 2))

    while True:
        yield action


def _fetch_body(wants: list[str], *arguments: str) -> bytes:
    lines = [_pkt("command=fetch"), b"0001", _pkt("ofs-delta"), _pkt("thin-pack"), _pkt("no-progress")]
    lines += [_pkt(f"want {want}\n") for want in wants] + [_pkt(f"{text}\n") for text in arguments]
    return b"".join([*lines, _pkt("done\n"), b"0000"])


def _fetch(peer: Peer, repo: str, body: bytes) -> int:
    return _raw(peer, "POST", f"/{repo}/git-upload-pack", body, _headers("git-upload-pack", 2))


def _dropped_in(bench: Bench, peer: Peer, *, arguments: tuple[str, ...] = ()) -> Iterator[Action]:
    """Each time another repository, that no server has seen, without bitmap and commit-graph."""
    body = _fetch_body(bench.tips, *arguments)
    for number in count(len(list(peer.root.glob("first-*.git")))):
        target = peer.root / f"first-{number}.git"
        shutil.copytree(bench.source, target, copy_function=os.link)
        for path in (*target.glob("objects/pack/*.bitmap"), *target.glob("objects/info/commit-graph*")):
            path.unlink()
        yield lambda target=target: _fetch(peer, target.name, body)  # type: ignore[misc]


def clone_first_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    return _dropped_in(bench, peer)


def _warm(bench: Bench, peer: Peer, *arguments: str) -> Iterator[Action]:
    tips = [bench.git("rev-parse", bench.branch, cwd=bench.source)]
    body = _fetch_body(tips, *arguments)
    while True:
        yield lambda: _fetch(peer, "bench.git", body)


def shallow_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    return _warm(bench, peer, "deepen 1")


def blobless_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    return _warm(bench, peer, "filter blob:none")


def shallow_first_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    return _dropped_in(bench, peer, arguments=("deepen 1",))


def blobless_first_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    return _dropped_in(bench, peer, arguments=("filter blob:none",))


def clone_after_push_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    """Each time the first clone after one more commit."""
    path = peer.root / "moving.git"
    bench.git("clone", "-q", "--mirror", "--no-local", bench.source, path)
    bench.git("repack", "-adq", "--write-bitmap-index", cwd=path)
    for number in range(1_000_000):
        tree = bench.git("rev-parse", f"{bench.branch}^{{tree}}", cwd=path)
        new = bench.git("commit-tree", "-p", bench.branch, "-m", f"{number}", tree, cwd=path)
        bench.git("update-ref", f"refs/heads/{bench.branch}", new, cwd=path)
        tips = sorted({line.split()[0] for line in bench.git("for-each-ref", cwd=path).splitlines()})
        body = _fetch_body(tips)
        yield lambda body=body: _fetch(peer, "moving.git", body)  # type: ignore[misc]


def herd_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    """48 clients at once, each with a clone of a repository of some 12 MB."""
    path = peer.root / "herd.git"
    keep = min(
        700, int(bench.git("rev-list", "--count", "--first-parent", bench.branch, cwd=bench.source)) - 1
    )
    oldest = bench.git("rev-list", "--first-parent", bench.branch, cwd=bench.source).splitlines()[-keep]
    bench.git("init", "-q", "--bare", path)
    bench.git("fetch", "-q", bench.source, f"{oldest}:refs/heads/main", cwd=path)
    bench.git("repack", "-adq", "--write-bitmap-index", cwd=path)
    body = _fetch_body([oldest])

    def action() -> None:
        with ThreadPoolExecutor(48) as pool:
            sizes = set(pool.map(lambda _: _fetch(peer, "herd.git", body), range(48)))
        assert len(sizes) == 1 or peer.name != Gitsmart.name

    while True:
        yield action


def _many_refs(bench: Bench, peer: Peer) -> None:
    path = peer.root / "refs.git"
    if not path.exists():
        shutil.copytree(bench.source, path)
        packed = path / "packed-refs"  # written here: git takes minutes for so many
        header, *lines = packed.read_text().replace("\n^", "^").splitlines()
        lines += [f"{bench.tips[0]} refs/heads/many/{number:06d}" for number in range(50_000)]
        lines.sort(key=lambda line: line.split()[1].partition("^")[0])
        packed.write_text("\n".join([header, *lines, ""]).replace("^", "\n^"))


def _ls_refs(bench: Bench, peer: Peer, *arguments: str) -> Iterator[Action]:
    _many_refs(bench, peer)
    lines = [_pkt("command=ls-refs"), b"0001", _pkt("peel"), _pkt("symrefs"), *map(_pkt, arguments), b"0000"]
    body = b"".join(lines)

    def action() -> None:
        for _ in range(10):
            _raw(peer, "POST", "/refs.git/git-upload-pack", body, _headers("git-upload-pack", 2))

    while True:
        yield action


def ls_many_refs_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    return _ls_refs(bench, peer)


def ls_one_ref_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    return _ls_refs(bench, peer, "ref-prefix refs/heads/many/000777\n")


def fetch_nothing(bench: Bench, peer: Peer) -> Iterator[Action]:
    work = bench.scratch / f"fetch-{peer.name}.git"
    bench.git("clone", "-q", "--mirror", bench.source, work)
    bench.git("remote", "set-url", "origin", f"{peer.url}/bench.git", cwd=work)
    while True:
        yield lambda: bench.do("fetch", "-q", cwd=work)


def ls_refs_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    body = b"".join([_pkt("command=ls-refs"), b"0001", _pkt("peel"), _pkt("symrefs"), b"0000"])

    def action() -> None:
        for _ in range(10):
            _raw(
                peer,
                "GET",
                "/bench.git/info/refs?service=git-upload-pack",
                None,
                {"Git-Protocol": "version=2"},
            )
            _raw(peer, "POST", "/bench.git/git-upload-pack", body, _headers("git-upload-pack", 2))

    while True:
        yield action


def info_refs_v0_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    def action() -> None:
        for _ in range(10):
            _raw(peer, "GET", "/bench.git/info/refs?service=git-upload-pack", None, {})

    while True:
        yield action


def fetch_some_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    """What a fetch gets that is fifty commits behind."""
    branch = f"refs/heads/{bench.branch}"
    tip = bench.git("rev-parse", branch, cwd=bench.source)
    have = bench.git("rev-parse", f"{branch}~50", cwd=bench.source)
    lines = [_pkt("command=fetch"), b"0001", _pkt("thin-pack"), _pkt("ofs-delta"), _pkt("no-progress")]
    body = b"".join([*lines, _pkt(f"want {tip}\n"), _pkt(f"have {have}\n"), _pkt("done\n"), b"0000"])

    def action() -> None:
        _raw(peer, "POST", "/bench.git/git-upload-pack", body, _headers("git-upload-pack", 2))

    while True:
        yield action


def push_small_git(bench: Bench, peer: Peer) -> Iterator[Action]:
    work = bench.scratch / f"push-{peer.name}"
    bench.git("clone", "-q", "--shared", bench.source, work)
    bench.git("remote", "set-url", "origin", f"{peer.url}/bench.git", cwd=work)
    bench.git("checkout", "-q", "-b", "pushed", cwd=work)
    for number in range(1_000_000):
        (work / "pushed.txt").write_text(f"{number}\n")
        bench.git("add", "pushed.txt", cwd=work)
        bench.git("commit", "-q", "-m", f"{number}", cwd=work)
        yield lambda: bench.do("push", "-q", "origin", "pushed", cwd=work)


def push_small_raw(bench: Bench, peer: Peer) -> Iterator[Action]:
    work = bench.scratch / f"raw-{peer.name}"
    bench.git("clone", "-q", "--shared", bench.source, work)
    old = ZERO
    for number in range(1_000_000):
        (work / "raw.txt").write_text(f"{number}\n")
        bench.git("add", "raw.txt", cwd=work)
        bench.git("commit", "-q", "-m", f"{number}", cwd=work)
        new = bench.git("rev-parse", "HEAD", cwd=work)
        pack = subprocess.run(
            ["git", "pack-objects", "--thin", "--revs", "--stdout", "-q"],
            cwd=work,
            env=bench.env,
            input=f"{new}\n^{new}^\n".encode(),
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        body = _pkt(f"{old} {new} refs/heads/raw\0 report-status ofs-delta") + b"0000" + pack

        def action(body: bytes = body) -> None:
            _raw(peer, "POST", "/bench.git/git-receive-pack", body, _headers("git-receive-pack", 0))

        yield action
        now = bench.git("rev-parse", "refs/heads/raw", cwd=peer.root / "bench.git")
        if now != new:
            raise SystemExit(f"{peer.name}: the push did not arrive")
        old = new


def push_big_git(bench: Bench, peer: Peer) -> Iterator[Action]:
    for number in range(1_000_000):
        target = peer.root / f"big-{number}.git"
        bench.git("init", "-q", "--bare", target)
        shutil.copy(bench.source / "config", target / "config")
        shutil.rmtree(target / "hooks", ignore_errors=True)
        url = f"{peer.url}/{target.name}"
        yield functools.partial(bench.do, "push", "-q", url, "refs/*:refs/*", cwd=bench.source)
        if bench.git("for-each-ref", cwd=target) != bench.git("for-each-ref", cwd=bench.source):
            raise SystemExit(f"{peer.name}: the push did not arrive")
        shutil.rmtree(target)


CASES: dict[str, tuple[Callable[[Bench, Peer], Iterator[Action]], str]] = {
    "clone": (clone_git, "git clone --bare, protocol v2"),
    "clone-raw": (clone_raw, "the same request from a client that only counts bytes"),
    "clone-first-raw": (
        clone_first_raw,
        "of a repository dropped in just now, without bitmap",
    ),
    "clone-push-raw": (clone_after_push_raw, "the first clone after one more commit"),
    "shallow-raw": (shallow_raw, "depth 1, second and later"),
    "shallow-first-raw": (shallow_first_raw, "depth 1 of a repository dropped in just now"),
    "blobless-raw": (blobless_raw, "filter blob:none, second and later"),
    "blobless-first-raw": (blobless_first_raw, "filter blob:none of a repository dropped in just now"),
    "herd-48-raw": (herd_raw, "48 clones at once of a small repository"),
    "ls-50000-raw": (ls_many_refs_raw, "10 times ls-refs of 50,000 refs"),
    "ls-1-of-50000-raw": (ls_one_ref_raw, "10 times ls-refs of one of 50,000 refs"),
    "fetch-noop": (fetch_nothing, "git fetch with nothing new"),
    "fetch-50-raw": (fetch_some_raw, "50 commits behind, from a client that only counts bytes"),
    "ls-refs-raw": (ls_refs_raw, "10 times v2 info/refs and ls-refs"),
    "info-refs-v0-raw": (info_refs_v0_raw, "10 times the v0 advertisement"),
    "push-small": (push_small_git, "git push of one commit (3 objects), fsynced"),
    "push-small-raw": (push_small_raw, "the same from a raw client"),
    "push-big": (push_big_git, "git push of the whole repository in one chunked body"),
}


def measure(peer: Peer, action: Action, sample: Sample) -> None:
    cpu = peer.cpu_s()
    with Sampler(peer.pids()) as memory:
        start = time.perf_counter()
        action()
        sample.wall_s.append(time.perf_counter() - start)
        time.sleep(0.1)  # let the server's children end, and be counted
    sample.cpu_s.append(peer.cpu_s() - cpu)
    sample.rss_mib.append(memory.rss_mib)
    sample.anonymous_mib.append(memory.anonymous_mib)


def run(bench: Bench, names: list[str], repeat: int) -> dict[str, dict[str, Sample]]:
    results: dict[str, dict[str, Sample]] = {}
    for name in names:
        prepare, _ = CASES[name]
        turns = {peer.name: prepare(bench, peer) for peer in bench.peers}
        results[name] = {peer.name: Sample() for peer in bench.peers}
        for number in range(repeat + 1):
            order = bench.peers if number % 2 else bench.peers[::-1]
            for peer in order:
                sample = results[name][peer.name] if number else Sample()  # the first round warms up
                measure(peer, next(turns[peer.name]), sample)
        for turn in turns.values():
            turn.close()  # type: ignore[attr-defined]  # each case is a generator, typed by what measure() needs
        print_case(name, results[name])
    return results


def ratios(result: dict[str, Sample]) -> dict[str, float]:
    ours, theirs = (result[peer].summary() for peer in (Gitsmart.name, HttpBackend.name))
    return {key: round(ours[key] / theirs[key], 3) if theirs[key] else float("nan") for key in ours}


def print_case(name: str, result: dict[str, Sample]) -> None:
    ours, theirs = (result[peer].summary() for peer in (Gitsmart.name, HttpBackend.name))
    ratio = ratios(result)
    print(
        f"{name:<18}{ours['wall_s']:>9.4f}{theirs['wall_s']:>9.4f}{ratio['wall_s']:>7.2f}"
        f"{ours['cpu_s']:>10.3f}{theirs['cpu_s']:>9.3f}{ratio['cpu_s']:>7.2f}"
        f"{ours['peak_rss_mib']:>9.0f}{theirs['peak_rss_mib']:>8.0f}"
        f"{ours['peak_anonymous_mib']:>9.0f}{theirs['peak_anonymous_mib']:>8.0f}",
        flush=True,
    )


HEADING = (
    f"{'':<18}{'wall s':>9}{'':>9}{'':>7}{'CPU s':>10}{'':>9}{'':>7}{'RSS MiB':>9}{'':>8}{'anon MiB':>9}\n"
    f"{'case':<18}{'gitsmart':>9}{'git':>9}{'ratio':>7}{'gitsmart':>10}{'git':>9}{'ratio':>7}"
    f"{'gitsm.':>9}{'git':>8}{'gitsm.':>9}{'git':>8}"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--repo", type=Path, help="a real repository to measure with; else one is made")
    parser.add_argument("--commits", type=int, default=3000, help="size of the one that is made (3000)")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of each case, after one to warm up (5)")
    parser.add_argument(
        "--case", action="append", choices=sorted(CASES), help="only this one; may be repeated"
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks/bench.json"), help="where figures go")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure (default: TMPDIR)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gitsmart-bench-", dir=options.scratch) as folder:
        bench = Bench(Path(folder), options)
        facts = bench.facts()
        load = os.getloadavg()[0]
        print(f"repository: {facts}\nmachine: {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}")
        started: list[Peer] = []
        try:
            for peer in bench.peers:
                started.append(peer.__enter__())
            print(HEADING)
            results = run(bench, options.case or list(CASES), options.repeat)
        except Unavailable as problem:
            print(f"bench: {problem}", file=sys.stderr)
            return 1
        finally:
            for peer in started:
                peer.stop()
    git_version = subprocess.run(["git", "--version"], capture_output=True, encoding="utf-8").stdout.strip()
    report = {
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "load": load,
            "system": platform.platform(),
            "python": platform.python_version(),
            "git": git_version,
        },
        "repository": facts,
        "repeat": options.repeat,
        "cases": {
            name: {
                "what": CASES[name][1],
                **{peer: sample.summary() for peer, sample in result.items()},
                "ratio": ratios(result),
            }
            for name, result in results.items()
        },
    }
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {options.json}")
    return 0


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
