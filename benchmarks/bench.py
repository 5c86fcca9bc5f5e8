"""gitsmart against nginx + fcgiwrap + git-http-backend: every case of the goals, in one run.

    make bench        python -m benchmarks.bench [--repo PATH | --commits N] [--quick] [--case NAME ...]

Both servers have the same repositories (hard links) with the same config (`core.fsync` covers packs, indexes
and refs, as gitsmart does it anyway) and the same packs, bitmap and commit-graph, or none of these: see
CASES. Before each case both are started anew. Then they take turns on loopback, and swap who goes first; the
first round is told apart ("first") and not counted. Figures are medians. The client only counts bytes, so
that its own work is small; it shares the machine, though. CPU seconds are the server's, its children
included. Memory is what was resident and not mapped from files, above what the server had when idle.

A ratio below 1 says that gitsmart needs less than git. Figures go to docs/bench.json and docs/bench.svg.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import latency
from benchmarks.client import ZERO, Address, fetch_body, get, pkt, post, push_head, push_pack
from benchmarks.history import history, incompressible, make, many_refs
from benchmarks.peers import Gitsmart, HttpBackend, Peer, Sampler, Unavailable, environ
from benchmarks.plot import Row, draw

HERD = 48
HERD_BYTES = 12 << 20
MANY_REFS = 50_000
TIMES = 10  # of a request that takes milliseconds, in one sample

UNDETECTED = "gitsmart-undetected"


@dataclass(slots=True)
class Sample:
    """What one server needed, round by round."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Medians of all rounds but the first; of memory the most of all."""
        rest = slice(1, None) if len(self.wall_s) > 1 else slice(None)
        return {
            "wall_s": round(statistics.median(self.wall_s[rest]), 5),
            "cpu_s": round(statistics.median(self.cpu_s[rest]), 5),
            "bytes": round(statistics.median(self.bytes[rest])),
            "memory_mib": round(max(self.memory_mib), 1),
            "first_wall_s": round(self.wall_s[0], 5),
            "first_cpu_s": round(self.cpu_s[0], 5),
        }


class Bench:
    """The scratch folder, the repositories, and what of them the cases ask for."""

    def __init__(self, scratch: Path, options: argparse.Namespace) -> None:
        self.scratch = scratch
        self.quick = bool(options.quick)
        self.env = environ(scratch / "home")
        self.masters = scratch / "masters"
        self.masters.mkdir()
        self.source = self.masters / "bench.git"
        self.plain = self.masters / "plain.git"
        commits = options.commits or (1500 if self.quick else 10_000)
        self._make_source(options.repo, commits)
        make(self.masters / "herd.git", incompressible(HERD_BYTES), self.env)
        make(self.masters / "refs.git", many_refs(MANY_REFS), self.env)
        make(self.masters / "small.git", many_refs(20), self.env)
        for name in ("herd.git", "refs.git", "small.git"):
            self.finish(self.masters / name)
        refs = [line.split() for line in self.git("for-each-ref", cwd=self.source).splitlines()]
        self.refs = [(name, oid) for oid, _, name in refs if name.startswith(("refs/heads/", "refs/tags/"))]
        self.tips = sorted({oid for _, oid in self.refs})
        self.line = self.git("rev-list", "--first-parent", "HEAD", cwd=self.source).splitlines()
        self.pack = scratch / "all.pack"
        self._make_pack()
        self._pairs: dict[int, list[tuple[str, str]]] = {}

    def git(self, *args: str | Path, cwd: Path | None = None) -> str:
        result = subprocess.run(
            ["git", *map(str, args)],
            cwd=cwd or self.scratch,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
        if result.returncode:
            raise SystemExit(f"git {' '.join(map(str, args))}: {result.stderr}")
        return result.stdout.rstrip("\n")

    def _make_source(self, repo: Path | None, commits: int) -> None:
        if repo is not None:
            self.git("clone", "-q", "--bare", "--no-local", repo.resolve(), self.source)
        else:
            make(self.source, history(commits), self.env)
            self.git("repack", "-adfq", "--depth=50", "--window=10", cwd=self.source)
        self.finish(self.source)
        shutil.copytree(self.source, self.plain)
        for path in (self.plain / "objects").rglob("*"):
            if path.suffix in (".bitmap", ".graph", ".rev") or path.name == "commit-graph":
                path.unlink()

    def finish(self, path: Path) -> None:
        """One pack with a bitmap, a commit-graph, packed refs, and the config that both servers go by."""
        self.git("repack", "-adq", "--write-bitmap-index", cwd=path)
        self.git("pack-refs", "--all", cwd=path)
        self.git("commit-graph", "write", "--reachable", cwd=path)
        for name, value in [
            ("core.fsync", "committed,derived-metadata,reference"),
            ("http.receivepack", "true"),
            ("receive.denyDeletes", "false"),
            ("uploadpack.allowFilter", "true"),
        ]:
            self.git("config", name, value, cwd=path)
        shutil.rmtree(path / "hooks", ignore_errors=True)

    def _make_pack(self) -> None:
        with self.pack.open("wb") as pack:
            subprocess.run(
                ["git", "pack-objects", "--revs", "--all", "--stdout", "-q", "--delta-base-offset"],
                cwd=self.source,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=pack,
                check=True,
            )

    def facts(self) -> dict[str, object]:
        counts = dict(
            line.split(": ") for line in self.git("count-objects", "-v", cwd=self.source).splitlines()
        )
        return {
            "objects": int(counts["in-pack"]),
            "pack_mib": round(int(counts["size-pack"]) / 1024, 1),
            "refs": len(self.refs),
            "commits": int(self.git("rev-list", "--all", "--count", cwd=self.source)),
        }

    def behind(self, count: int, rounds: int) -> list[tuple[str, str]]:
        """For each round another tip, and a commit that is `count` commits behind it, or nearly so."""
        if count not in self._pairs:
            pairs = []
            for tip in self.line[:rounds]:
                low, high = 1, len(self.line) - 1 - self.line.index(tip)
                start = self.line.index(tip)
                while low < high:
                    middle = (low + high) // 2
                    span = f"{self.line[start + middle]}..{tip}"
                    found = int(self.git("rev-list", "--count", span, cwd=self.source))
                    low, high = (middle + 1, high) if found < count else (low, middle)
                if low + start < len(self.line):
                    pairs.append((tip, self.line[start + low]))
            self._pairs[count] = pairs
        return self._pairs[count]


# --- the cases: prepare(bench, peer, rounds) -> an action for each round, which returns the bytes it moved

Action = Callable[[], int]
Prepare = Callable[[Bench, Peer, int], Iterator[Action]]


@dataclass(frozen=True, slots=True)
class Case:
    """A row. `goals`: ratios by measure; `memory_mib`: the most above idle; `rounds`: as a share of all."""

    what: str
    prepare: Prepare
    goals: dict[str, float]
    memory_mib: float | None = None
    ours: str = Gitsmart.name
    is_long: bool = False


def address_of(peer: Peer) -> Address:
    host, _, port = peer.url.removeprefix("http://").partition(":")
    return host, int(port)


def link(master: Path, target: Path) -> Path:
    """A repository of its own whose objects are hard links."""
    shutil.copytree(master, target, copy_function=os.link)
    for name in ("config", "HEAD", "packed-refs"):
        if (target / name).exists():
            (target / name).unlink()
            shutil.copy(master / name, target / name)
    return target


def _upload(name: str) -> str:
    return f"/{name}/git-upload-pack"


def clone_warm(bench: Bench, peer: Peer, rounds: int) -> Iterator[Action]:
    body = fetch_body(bench.tips)
    for _ in range(rounds):
        yield lambda: post(address_of(peer), _upload("bench.git"), body)


def clone_first(*arguments: str, tip_only: bool = False) -> Prepare:
    """Each time a repository that the server has never seen."""

    def prepare(bench: Bench, peer: Peer, rounds: int) -> Iterator[Action]:
        wants = [bench.line[0]] if tip_only else bench.tips
        body = fetch_body(wants, arguments=["thin-pack", *arguments])
        for number in range(rounds):
            target = link(bench.plain, peer.root / f"dropped-{number}.git")
            yield partial(post, address_of(peer), _upload(target.name), body)
            shutil.rmtree(target)

    return prepare


def clone_after_push(bench: Bench, peer: Peer, rounds: int) -> Iterator[Action]:
    """Each time the first clone after one more commit."""
    path = peer.root / "bench.git"
    for number in range(rounds):
        tree = bench.git("rev-parse", "HEAD^{tree}", cwd=path)
        new = bench.git("commit-tree", "-p", "HEAD", "-m", f"{number}", tree, cwd=path)
        bench.git("update-ref", "HEAD", new, cwd=path)
        refs = bench.git("for-each-ref", "--format=%(objectname)", "refs/heads", "refs/tags", cwd=path)
        body = fetch_body(sorted(set(refs.split())))
        yield partial(post, address_of(peer), _upload("bench.git"), body)


def clone_with(*arguments: str, tip_only: bool) -> Prepare:
    def prepare(bench: Bench, peer: Peer, rounds: int) -> Iterator[Action]:
        wants = [bench.line[0]] if tip_only else bench.tips
        body = fetch_body(wants, arguments=["thin-pack", *arguments])
        for _ in range(rounds):
            yield lambda: post(address_of(peer), _upload("bench.git"), body)

    return prepare


def fetch_behind(count: int) -> Prepare:
    def prepare(bench: Bench, peer: Peer, rounds: int) -> Iterator[Action]:
        for tip, have in bench.behind(count, rounds):
            body = fetch_body([tip], [have])
            yield partial(post, address_of(peer), _upload("bench.git"), body)

    return prepare


def herd(bench: Bench, peer: Peer, rounds: int) -> Iterator[Action]:
    tips = bench.git("for-each-ref", "--format=%(objectname)", cwd=bench.masters / "herd.git").split()
    body = fetch_body(sorted(set(tips)))
    context = multiprocessing.get_context("fork")
    with context.Pool(HERD) as pool:
        arguments = [(address_of(peer), _upload("herd.git"), body)] * HERD
        for _ in range(rounds):
            yield lambda: sum(pool.starmap(post, arguments, chunksize=1))


def ls_refs(*prefixes: str) -> Prepare:
    lines = [pkt("command=ls-refs"), b"0001", pkt("peel"), pkt("symrefs")]
    body = b"".join([*lines, *(pkt(f"ref-prefix {prefix}") for prefix in prefixes), b"0000"])

    def prepare(bench: Bench, peer: Peer, rounds: int) -> Iterator[Action]:
        for _ in range(rounds):
            yield lambda: sum(post(address_of(peer), _upload("refs.git"), body) for _ in range(TIMES))

    return prepare


INFO_REFS = "/bench.git/info/refs?service=git-upload-pack"


def info_refs(bench: Bench, peer: Peer, rounds: int) -> Iterator[Action]:
    for _ in range(rounds):
        yield lambda: sum(get(address_of(peer), INFO_REFS, version=2) for _ in range(TIMES))


def fetch_nothing(bench: Bench, peer: Peer, rounds: int) -> Iterator[Action]:
    """What git sends when there is nothing new."""
    lines = [pkt("command=ls-refs"), b"0001", pkt("peel"), pkt("symrefs")]
    prefixes = ("refs/heads/", "refs/tags/")
    body = b"".join([*lines, *(pkt(f"ref-prefix {prefix}") for prefix in prefixes), b"0000"])

    def once() -> int:
        address = address_of(peer)
        return get(address, INFO_REFS, version=2) + post(address, _upload("bench.git"), body)

    for _ in range(rounds):
        yield lambda: sum(once() for _ in range(TIMES))


def push_small(bench: Bench, peer: Peer, rounds: int) -> Iterator[Action]:
    """One commit with one new file, each on top of the last."""
    work = bench.scratch / f"push-{peer.name}"
    shutil.rmtree(work, ignore_errors=True)
    bench.git("clone", "-q", "--shared", bench.source, work)
    old, pack = ZERO, bench.scratch / f"{peer.name}.pack"
    for number in range(rounds):
        sent = []
        for turn in range(TIMES):
            (work / "pushed.txt").write_text(f"{number} {turn}\n")
            bench.git("add", "pushed.txt", cwd=work)
            bench.git("commit", "-q", "-m", f"{number} {turn}", cwd=work)
            new = bench.git("rev-parse", "HEAD", cwd=work)
            data = subprocess.run(
                ["git", "pack-objects", "--thin", "--revs", "--stdout", "-q"],
                cwd=work,
                env=bench.env,
                input=f"{new}\n^{new}^\n".encode(),
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
            file = pack.with_name(f"{pack.name}-{turn}")
            file.write_bytes(data)
            sent.append((push_head([("refs/heads/small", new)], old), file))
            old = new
        yield partial(push_each, address_of(peer), sent)
        if bench.git("rev-parse", "refs/heads/small", cwd=peer.root / "bench.git") != old:
            raise SystemExit(f"{peer.name}: the push did not arrive")


def push_each(address: Address, sent: Sequence[tuple[bytes, Path]]) -> int:
    return sum(push_pack(address, "bench.git", head, pack) for head, pack in sent)


def push_all(bench: Bench, peer: Peer, rounds: int) -> Iterator[Action]:
    head = push_head(bench.refs)
    for number in range(rounds):
        target = peer.root / f"pushed-{number}.git"
        bench.git("init", "-q", "--bare", target)
        shutil.copy(bench.source / "config", target / "config")
        shutil.rmtree(target / "hooks", ignore_errors=True)
        yield partial(push_pack, address_of(peer), target.name, head, bench.pack)
        if len(bench.git("for-each-ref", cwd=target).splitlines()) != len(bench.refs):
            raise SystemExit(f"{peer.name}: the push did not arrive")
        shutil.rmtree(target)


DEPTHS = (1, 100, 300, 1000, 5000)

CASES: dict[str, Case] = {
    "clone-warm": Case("clone, second and later", clone_warm, {"wall": 0.3, "CPU": 0.1}, 64),
    "clone-first": Case(
        "clone, first after drop-in, no bitmaps",
        clone_first(),
        {"wall": 1.0, "CPU": 1.0, "bytes": 1.0},
        64,
        is_long=True,
    ),
    "clone-after-push": Case("clone, first after a push of one commit", clone_after_push, {}, 64),
    **{
        f"fetch-{depth}": Case(
            f"fetch of the last {depth} commit{'s' if depth > 1 else ''}",
            fetch_behind(depth),
            {"CPU": 0.3 if depth == 1 else 1.0, "bytes": 1.1},
            64,
        )
        for depth in DEPTHS
    },
    "shallow": Case("shallow clone, depth 1", clone_with("deepen 1", tip_only=True), {"wall": 0.5}, 64),
    "blobless": Case("blobless clone", clone_with("filter blob:none", tip_only=False), {"wall": 0.5}, 64),
    "shallow-first": Case(
        "shallow clone, first after drop-in", clone_first("deepen 1", tip_only=True), {}, 64, is_long=True
    ),
    "blobless-first": Case(
        "blobless clone, first after drop-in", clone_first("filter blob:none"), {}, 64, is_long=True
    ),
    "herd": Case(f"{HERD} clones at once of 12 MB", herd, {"wall": 0.2}, 64),
    "ls-refs": Case(f"ls-refs of {MANY_REFS:,}, {TIMES} times", ls_refs(), {"wall": 0.3}),
    "ls-refs-one": Case(
        f"ls-refs of one of {MANY_REFS:,}, {TIMES} times", ls_refs("refs/heads/main"), {"wall": 0.3}
    ),
    "info-refs": Case(f"info/refs, {TIMES} times", info_refs, {"wall": 0.2}),
    "fetch-nothing": Case(f"fetch of nothing new, {TIMES} times", fetch_nothing, {"wall": 0.2}),
    "push-small": Case(f"push of one commit, fsynced, {TIMES} times", push_small, {"wall": 0.5}, 128),
    "push-all": Case("push of everything", push_all, {"wall": 0.8}, 128, is_long=True),
    "push-all-undetected": Case(
        "the same without collision detection", push_all, {"wall": 0.5}, 128, ours=UNDETECTED, is_long=True
    ),
}

LATENCY = "latency"
LATENCY_GOAL_MS = 50.0


class Undetected(Gitsmart):
    """gitsmart that does not look for collisions."""

    name = UNDETECTED


def anonymous_mib(peer: Peer) -> float:
    with Sampler(peer.pids()) as memory:
        time.sleep(0.1)
    return memory.anonymous_mib


def measure(peer: Peer, action: Action, sample: Sample, idle_mib: float) -> None:
    cpu = peer.cpu_s()
    with Sampler(peer.pids()) as memory:
        start = time.perf_counter()
        size = action()
        sample.wall_s.append(time.perf_counter() - start)
        time.sleep(0.15)  # let the server's children end, and be counted
    sample.bytes.append(size)
    sample.cpu_s.append(peer.cpu_s() - cpu)
    sample.memory_mib.append(max(0.0, memory.anonymous_mib - idle_mib))


def make_peers(bench: Bench, case: Case) -> list[Peer]:
    """Fresh servers over fresh roots."""
    run = bench.scratch / "run"
    shutil.rmtree(run, ignore_errors=True)
    peers: list[Peer] = []
    if case.ours == UNDETECTED:
        config = bench.scratch / "undetected.toml"
        config.write_text("[push]\ndetect_collisions = false\n")
        peers.append(Undetected(run / "ours", run / "ours-run", flags=["--config", str(config)]))
    else:
        peers.append(Gitsmart(run / "ours", run / "ours-run"))
    peers.append(HttpBackend(run / "git", run / "git-run"))
    for peer in peers:
        peer.root.mkdir()
        for master in bench.masters.iterdir():
            link(master, peer.root / master.name)
    return peers


def run_case(bench: Bench, case: Case, rounds: int) -> dict[str, Sample] | None:
    """Both servers, round by round; None when the repository has no such history."""
    peers = make_peers(bench, case)
    samples = {"gitsmart": Sample(), "git": Sample()}
    started: list[Peer] = []
    try:
        for peer in peers:
            started.append(peer.__enter__())
        idle = [anonymous_mib(peer) for peer in peers]
        turns = [case.prepare(bench, peer, rounds) for peer in peers]
        done = 0
        for number in range(rounds):
            order = (0, 1) if number % 2 else (1, 0)
            actions = {at: next(turns[at], None) for at in order}
            for at in order:
                action = actions[at]
                if action is not None:
                    measure(peers[at], action, samples[("gitsmart", "git")[at]], idle[at])
            done += None not in actions.values()
        for turn in turns:
            next(turn, None)  # the checks behind the last round
        return samples if done else None
    finally:
        for peer in started:
            peer.stop()


def ratios(result: dict[str, dict[str, float]]) -> dict[str, float]:
    ours, theirs = result["gitsmart"], result["git"]
    measures = {"wall": "wall_s", "CPU": "cpu_s", "bytes": "bytes", "memory": "memory_mib"}
    return {name: round(ours[key] / theirs[key], 3) if theirs[key] else 0.0 for name, key in measures.items()}


def is_met(case: Case, result: dict[str, dict[str, float]]) -> bool:
    found = ratios(result)
    # bytes: to be equal is to be no more than a hundredth apart
    met = all(found[name] <= goal * (1.01 if name == "bytes" else 1) for name, goal in case.goals.items())
    return met and (case.memory_mib is None or result["gitsmart"]["memory_mib"] <= case.memory_mib)


HEADING = (
    f"{'':<44}{'wall s':>10}{'':>10}{'':>7}{'CPU s':>10}{'':>10}{'':>7}{'bytes':>7}{'MiB':>7}{'':>7}\n"
    f"{'case':<44}{'gitsmart':>10}{'git':>10}{'ratio':>7}{'gitsmart':>10}{'git':>10}{'ratio':>7}"
    f"{'ratio':>7}{'ours':>7}{'git':>7}  goal"
)


def print_case(case: Case, result: dict[str, dict[str, float]]) -> None:
    ours, theirs, found = result["gitsmart"], result["git"], ratios(result)
    goals = ", ".join(f"{name} {goal:g}" for name, goal in case.goals.items())
    if case.memory_mib is not None:
        goals += f", {case.memory_mib:g} MiB"
    print(
        f"{case.what:<44}{ours['wall_s']:>10.4f}{theirs['wall_s']:>10.4f}{found['wall']:>7.2f}"
        f"{ours['cpu_s']:>10.3f}{theirs['cpu_s']:>10.3f}{found['CPU']:>7.2f}{found['bytes']:>7.2f}"
        f"{ours['memory_mib']:>7.0f}{theirs['memory_mib']:>7.0f}"
        f"  {goals}: {'met' if is_met(case, result) else 'NOT met'}",
        flush=True,
    )


def run_latency(bench: Bench, seconds: float) -> dict[str, dict[str, object]]:
    """See latency.py; each server has the machine to itself."""
    results: dict[str, dict[str, object]] = {}
    for number in range(2):
        peers = make_peers(bench, CASES["push-all"])
        load = latency.Load(bench.env, bench.tips, push_head(bench.refs), bench.pack, "plain.git")
        with peers[number] as peer:
            results[("gitsmart", "git")[number]] = latency.measure(load, peer, seconds)
    for name, result in results.items():
        print(f"info/refs of another repository under load, ms: {name} {result['loaded_ms']}", flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--repo", type=Path, help="a real repository to measure with; else one is made")
    parser.add_argument("--commits", type=int, help="size of the one that is made (10,000; quick: 1,500)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds on a small repository: a look")
    parser.add_argument("--rounds", type=int, help="of each case, besides the first (5; quick: 2)")
    parser.add_argument("--seconds", type=float, help="of the load for latency (30; quick: 8)")
    parser.add_argument(
        "--case", action="append", choices=[*CASES, LATENCY], help="only this one; may be repeated"
    )
    parser.add_argument("--json", type=Path, default=Path("docs/bench.json"), help="where figures go")
    parser.add_argument("--svg", type=Path, default=Path("docs/bench.svg"), help="where the plot goes")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure (default: TMPDIR)")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 5)
    results: dict[str, dict[str, dict[str, float]]] = {}
    others: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="gitsmart-bench-", dir=options.scratch) as folder:
        began = time.monotonic()
        bench = Bench(Path(folder), options)
        report: dict[str, object] = {"machine": machine(), "repository": bench.facts(), "rounds": rounds}
        print(f"machine: {report['machine']}\nrepository: {report['repository']}\n\n{HEADING}", flush=True)
        try:
            for name in options.case or [*CASES, LATENCY]:
                if name == LATENCY:
                    others = run_latency(bench, options.seconds or (8 if options.quick else 30))
                    continue
                case = CASES[name]
                found = run_case(bench, case, 1 + (min(rounds, 3) if case.is_long else rounds))
                if found is None:
                    print(f"{case.what:<44} the repository has no such history")
                    continue
                results[name] = {server: sample.summary() for server, sample in found.items()}
                print_case(case, results[name])
        except Unavailable as problem:
            print(f"bench: {problem}", file=sys.stderr)
            return 1
        print(f"\n{time.monotonic() - began:.0f} seconds in all")
    report["cases"] = {
        name: {
            "what": CASES[name].what,
            **result,
            "ratio": ratios(result),
            "goal": CASES[name].goals,
            "goal_memory_mib": CASES[name].memory_mib,
            "met": is_met(CASES[name], result),
        }
        for name, result in results.items()
    }
    if others:
        report[LATENCY] = {**others, "goal_p99_ms": LATENCY_GOAL_MS}
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    options.svg.write_text(plot(report, results, others))
    print(f"written: {options.json}, {options.svg}")
    return 0


def plot(
    report: dict[str, object],
    results: dict[str, dict[str, dict[str, float]]],
    others: dict[str, dict[str, object]],
) -> str:
    rows = [Row(CASES[name].what, ratios(result), CASES[name].goals) for name, result in results.items()]
    if others:
        loaded = [others[name]["loaded_ms"] for name in ("gitsmart", "git")]
        ours, theirs = (float(times["p99"]) for times in loaded if isinstance(times, dict))
        rows.append(Row("info/refs under load, 99th percentile", {"wall": ours / theirs}, {}))
    about, repo = report["machine"], report["repository"]
    assert isinstance(about, dict)
    assert isinstance(repo, dict)
    subtitle = (
        f"{about['date']}, {about['cores']} cores, {about['cpu']}, {about['git']}, Python {about['python']}; "
        f"{repo['objects']:,} objects, {repo['pack_mib']} MiB"
    )
    return draw("gitsmart : git-http-backend", subtitle, rows)


def machine() -> dict[str, object]:
    git = subprocess.run(["git", "--version"], capture_output=True, encoding="utf-8").stdout.strip()
    cpu = next(
        (
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "git": git,
    }


if __name__ == "__main__":
    sys.exit(main())
