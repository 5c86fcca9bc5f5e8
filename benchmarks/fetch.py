"""Select and write the packs of fetches, against git pack-objects with and without bitmaps, in one run.

    python -m benchmarks.fetch REPOSITORY [--repeat 3] [--commits 1,100,300,1000,5000] [--check] [--json FILE]

For each number of commits (first parents behind HEAD; 0: a clone of HEAD) prints CPU milliseconds and bytes.
REPOSITORY is copied: once as it is repacked with a bitmap, once the same pack without. Ours runs in one
process, as in a server: "first" is the first fetch of its kind in a process that has done another one before,
"later" the median of the following ones, for which deltas made by earlier ones are known. With --check what
is written is fed to git index-pack --fix-thin --strict, in a repository that has the older commit alone.
Memory is what the process holds beside mapped files, over what it held before the first fetch.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gitsmart import native
from gitsmart.pack.objects import SHA1, SHA256
from gitsmart.pack.select import select_objects
from gitsmart.pack.store import ObjectStore
from gitsmart.pack.writer import write_pack


def git(path: Path, *args: str, data: bytes = b"") -> bytes:
    return subprocess.run(["git", "-C", path, *args], input=data, check=True, stdout=subprocess.PIPE).stdout


def git_pack(path: Path, revisions: bytes) -> tuple[float, int]:
    """Let git write the pack; return CPU seconds and bytes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["pack-objects", "--revs", "--stdout", "--thin", "--delta-base-offset", "-q"]
    size = 0
    with subprocess.Popen(
        ["git", "-C", path, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(revisions)
        process.stdin.close()
        # Not kept: it would count for our memory.
        while piece := process.stdout.read(65536):
            size += len(piece)
    if process.returncode:
        raise SystemExit(f"git pack-objects failed in {path}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, size


def anonymous_mib() -> float:
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def our_pack(
    store: ObjectStore, wants: list[bytes], haves: list[bytes], sink: list[bytes] | None
) -> dict[str, float]:
    """Write the pack; return CPU seconds, bytes, and the most memory seen."""
    peak = anonymous_mib()
    size = 0

    def tick(number: int) -> None:
        nonlocal peak
        if not number % 8192:
            peak = max(peak, anonymous_mib())

    def write(piece: bytes | memoryview) -> None:
        nonlocal size
        size += len(piece)
        if sink is not None:
            sink.append(bytes(piece))

    start = time.process_time()
    selection = select_objects(store, wants=wants, haves=haves)
    selected = time.process_time()
    stats = write_pack(store, selection, write, thin=True, ofs_delta=True, tick=tick)
    done = time.process_time()
    return {
        "cpu_s": done - start,
        "select_s": selected - start,
        "bytes": size,
        "objects": stats.objects,
        "mib": max(peak, anonymous_mib()),
    }


def check(path: Path, scratch: Path, have: bytes, pack: bytes, objects: float) -> None:
    """The client, with the older commit alone, takes the pack."""
    client = scratch / "client.git"
    git(path, "update-ref", "refs/heads/benchmark-have", have.hex())
    subprocess.run(
        [
            "git",
            "clone",
            "-q",
            "--bare",
            "--no-local",
            "--single-branch",
            "-b",
            "benchmark-have",
            path,
            client,
        ],
        check=True,
    )
    git(path, "update-ref", "-d", "refs/heads/benchmark-have")
    before = int(git(client, "count-objects", "-v").split(b"in-pack: ")[1].split()[0])
    git(client, "index-pack", "--stdin", "--fix-thin", "--strict", data=pack)
    names = git(client, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split()
    if len(names) < before + objects:
        raise SystemExit(f"{len(names)} objects after {before} and {objects:.0f} more")
    shutil.rmtree(client)


def measure(
    scratch: Path, source: Path, counts: list[int], repeat: int, *, checked: bool
) -> list[dict[str, object]]:
    copies = {name: scratch / f"{name}.git" for name in ("bitmap", "plain")}
    # Linked, not copied: git replaces its files, it doesn't change them.
    git_dir = git(source, "rev-parse", "--absolute-git-dir").decode().strip()
    shutil.copytree(git_dir, copies["bitmap"], copy_function=os.link, symlinks=True)
    git(copies["bitmap"], "-c", "pack.writeReverseIndex=true", "repack", "-adbq")
    git(copies["bitmap"], "commit-graph", "write", "--reachable")
    shutil.copytree(copies["bitmap"], copies["plain"], copy_function=os.link, symlinks=True)
    for path in [
        *copies["plain"].glob("objects/pack/*.bitmap"),
        *copies["plain"].glob("objects/info/commit-graph*"),
    ]:
        path.unlink()
    sha256 = git(source, "rev-parse", "--show-object-format").strip() == b"sha256"
    store = ObjectStore(copies["bitmap"] / "objects", SHA256 if sha256 else SHA1)

    def resolve(name: str) -> bytes:
        return bytes.fromhex(git(copies["bitmap"], "rev-parse", name).decode())

    tip = resolve("HEAD")
    our_pack(store, [tip], [resolve("HEAD~2")], None)
    idle = anonymous_mib()
    rows: list[dict[str, object]] = []
    for commits in counts:
        haves = [resolve(f"HEAD~{commits}")] if commits else []
        revisions = b"\n".join([tip.hex().encode(), *(b"^" + oid.hex().encode() for oid in haves)]) + b"\n"
        sink: list[bytes] = []
        first = our_pack(store, [tip], haves, sink if checked else None)
        if haves and checked:
            check(copies["bitmap"], scratch, haves[0], b"".join(sink), first["objects"])
        sink.clear()
        later: list[dict[str, float]] = []
        theirs: dict[str, list[tuple[float, int]]] = {name: [] for name in copies}
        for _ in range(repeat):
            later.append(our_pack(store, [tip], haves, None))
            for name, path in copies.items():
                theirs[name].append(git_pack(path, revisions))
        row: dict[str, object] = {"commits": commits, "objects": int(first["objects"])}
        row["first_ms"], row["first_bytes"] = first["cpu_s"] * 1e3, int(first["bytes"])
        row["later_ms"] = statistics.median(one["cpu_s"] for one in later) * 1e3
        row["later_bytes"] = int(later[-1]["bytes"])
        for name, runs in theirs.items():
            row[f"git_{name}_ms"] = statistics.median(cpu for cpu, _ in runs) * 1e3
            row[f"git_{name}_bytes"] = runs[-1][1]
        row["mib"] = max(one["mib"] for one in (first, *later)) - idle
        rows.append(row)
        print_row(row)
    return rows


def print_row(row: dict[str, object]) -> None:
    """One line of the table in docs/performance.md."""
    cells = [f"{row['commits']} ({row['objects']})"]
    for name in ("first", "later", "git_bitmap", "git_plain"):
        cpu, size = row[f"{name}_ms"], row[f"{name}_bytes"]
        assert isinstance(cpu, float)
        assert isinstance(size, int)
        cells.append(f"{cpu:.1f} ms, {size / 1e6:.3f} MB")
    ratios = [
        f"{float(str(row[f'{name}_{what}'])) / float(str(row[f'git_bitmap_{what}'])):.2f}"
        for what in ("ms", "bytes")
        for name in ("first", "later")
    ]
    print("| " + " | ".join([*cells, *ratios, f"{row['mib']:.0f}"]) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fetch", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--commits", default="1,10,100,300,1000,5000,0")
    parser.add_argument("--scratch", type=Path, help="a folder with room for three copies (default: TMPDIR)")
    parser.add_argument("--check", action="store_true", help="feed each pack to git")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(native.describe())
    print(
        "| commits (objects) | ours, first | ours, later | git, bitmaps | git, none | CPU first | CPU later "
        "| bytes first | bytes later | MiB |"
    )
    print("|---" * 10 + "|")
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        counts = [int(number) for number in options.commits.split(",")]
        rows = measure(
            Path(scratch), options.repository.absolute(), counts, options.repeat, checked=options.check
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
