"""Ingest one pack with ours and with `git index-pack --stdin --fix-thin`, in turn, in one run.

    python benchmarks/ingest.py PACK [--runs N] [--object-format sha256] [--tip OID] [--only WAY]

Each run is a process of its own that reads the pack from a pipe. Printed: medians of wall and CPU seconds
(user and system, children too), the highest peak resident memory, and how much of it no file backs (of the
process itself, sampled each 20 ms); ratios to the first way. With `--tip`, git's connectivity check of that
commit is a way of its own: ours gathers what it needs on the way, so that this is what to compare with.
Both write and fsync: git fsyncs by its default, ours here as the quarantine does. Objects go to an empty
repository. The page cache is warm from the first run on.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

OURS = """
import os, sys
from pathlib import Path
from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.fsck import Fsck, FsckRules, severities
from gitsmart.pack.indexer import IngestLimits, ingest_pack
from gitsmart.pack.objects import SHA1, SHA256
from gitsmart.pack.store import ObjectStore
from gitsmart.repo.gitconfig import iter_entries
from gitsmart.wire.refname import is_valid_refname
repo, fmt, detect = Path(sys.argv[1]), {"sha1": SHA1, "sha256": SHA256}[sys.argv[2]], sys.argv[3] == "on"
directory = repo / "objects" / "incoming"
directory.mkdir()
fsck = None
if sys.argv[4] != "off":
    strict = sys.argv[4] == "strict"
    rules = FsckRules(severities=severities([], strict=strict, warn=print)[0],
                      parse_config=iter_entries,
                      parse_error=RepositoryUnusable, is_refname=is_valid_refname, tolerate_0664=not strict)
    fsck = Fsck(rules, fmt, lambda line: None)
result = ingest_pack(lambda n: os.read(0, n), directory, fmt, bases=ObjectStore(repo / "objects", fmt),
                     detect_collisions=detect, limits=IngestLimits(), fsck=fsck,
                     tick=lambda done, total: None)
for path in directory.iterdir():
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
print(result.objects, len(result.facts.outside))
"""


@dataclass
class Run:
    wall_s: float
    cpu_s: float
    peak_mb: float
    anonymous_mb: float


def anonymous_kb(pid: int) -> int:
    """Resident memory that no file backs, of one process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"^RssAnon:\s+(\d+)", status, re.MULTILINE)
    return int(match[1]) if match else 0


def measure(argv: list[str], pack: Path, cwd: Path) -> Run:
    """Run a command with the pack piped into it."""
    start = time.perf_counter()
    with pack.open("rb") as source:
        feeder = subprocess.Popen(["cat"], stdin=source, stdout=subprocess.PIPE)
        process = subprocess.Popen(
            argv, stdin=feeder.stdout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=cwd
        )
        assert feeder.stdout is not None
        feeder.stdout.close()
        anonymous = 0
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            anonymous = max(anonymous, anonymous_kb(process.pid))
            time.sleep(0.02)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        feeder.wait()
    if process.returncode:
        raise SystemExit(f"{argv[0]} failed: {process.returncode}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, anonymous / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--object-format", choices=["sha1", "sha256"], default="sha1")
    parser.add_argument("--tip", help="a commit of the pack, for git's connectivity check")
    parser.add_argument(
        "--only", action="append", help="measure only ways whose name is this; repeat for more"
    )
    arguments = parser.parse_args()
    pack = arguments.pack.resolve()
    ours = [sys.executable, "-c", OURS, "REPO", arguments.object_format]
    ways = {
        "git index-pack": ["git", "index-pack", "--stdin", "--fix-thin"],
        "git index-pack, 1 thread": ["git", "index-pack", "--stdin", "--fix-thin", "--threads=1"],
        "git index-pack --strict": ["git", "index-pack", "--stdin", "--fix-thin", "--strict"],
        "gitsmart": [*ours, "on", "dangerous"],
        "gitsmart, strict fsck": [*ours, "on", "strict"],
        "gitsmart, no fsck": [*ours, "on", "off"],
        "gitsmart, no fsck, no detection": [*ours, "off", "off"],
    }
    if arguments.tip:
        both = (
            f"git index-pack --stdin --fix-thin && git rev-list --objects --quiet {arguments.tip} --not --all"
        )
        ways = {"git, connectivity check too": ["sh", "-c", both], **ways}
    if arguments.only:
        ways = {name: argv for name, argv in ways.items() if name in arguments.only}
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="ingest-") as scratch:
        for turn in range(arguments.runs):
            for place, (name, argv) in enumerate(ways.items()):
                repo = Path(scratch) / f"{turn}-{place}.git"
                subprocess.run(
                    ["git", "init", "-q", "--bare", f"--object-format={arguments.object_format}", repo],
                    check=True,
                )
                command = [str(repo) if word == "REPO" else word for word in argv]
                runs[name].append(measure(command, pack, repo))
                subprocess.run(["rm", "-rf", repo], check=True)
    megabytes = pack.stat().st_size / 1e6
    print(f"{pack.name}: {megabytes:.0f} MB, {arguments.runs} runs each, load {os.getloadavg()[0]:.1f}")
    print(f"{'':32}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'no file':>9}{'wall':>8}{'CPU':>8}")
    first = next(iter(runs.values()))
    base_wall = statistics.median(run.wall_s for run in first)
    base_cpu = statistics.median(run.cpu_s for run in first)
    for name, done in runs.items():
        wall = statistics.median(run.wall_s for run in done)
        cpu = statistics.median(run.cpu_s for run in done)
        peak = max(run.peak_mb for run in done)
        anonymous = max(run.anonymous_mb for run in done)
        ratios = f"{wall / base_wall:8.2f}{cpu / base_cpu:8.2f}"
        print(f"{name:32}{wall:9.2f}{cpu:9.2f}{peak:9.0f}{anonymous:9.0f}{ratios}")


if __name__ == "__main__":
    main()
