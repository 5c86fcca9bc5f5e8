"""Select and write packs in one process, against git's pack-objects, with and without bitmaps.

    python benchmarks/enumerate.py REPOSITORY [--write-bitmap] [--no-check] [REV ... [--not REV ...]]

Without revisions: HEAD without its 1st, 100th, 300th, 1000th and 5000th first parent, then all of HEAD. Each
case runs in a fresh process, which opens packs, indexes and bitmaps anew ("first"), and then once more
("again"), as a server does for all requests but the first. Prints CPU seconds, sizes, what memory came in use
beside mapped files, and our CPU divided by git's, which starts its process each time. Sets of objects must be
git's, with bitmaps exactly what is reached from the one side and not from the other: `--no-check` leaves that
out.

`--write-bitmap` writes a bitmap of the largest pack and a commit-graph first, in place of those that are
there.
"""

import argparse
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from gitsmart import native
from gitsmart.pack.bitmap import bitmaps_of, write_bitmap
from gitsmart.pack.commitgraph import write_commit_graph
from gitsmart.pack.objects import COMMIT, SHA1, SHA256, to_hex, to_raw
from gitsmart.pack.select import select_objects
from gitsmart.pack.store import ObjectStore
from gitsmart.pack.writer import write_pack

AGES = (1, 100, 300, 1000, 5000)


def git(path: Path, *args: str, data: bytes = b"") -> tuple[bytes, float]:
    """Run git; return its stdout and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(["git", "-C", path, *args], input=data, check=True, stdout=subprocess.PIPE).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return out, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def anonymous_mib() -> float:
    """Return what this process holds beside mapped files."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def open_store(path: Path) -> ObjectStore:
    git_dir = Path(git(path, "rev-parse", "--absolute-git-dir")[0].decode().strip())
    sha256 = git(path, "rev-parse", "--show-object-format")[0].strip() == b"sha256"
    return ObjectStore(git_dir / "objects", SHA256 if sha256 else SHA1)


def measure(path: Path, wants: list[bytes], haves: list[bytes], *, check: bool) -> str:
    store = open_store(path)
    idle = anonymous_mib()
    peak = idle

    def tick(number: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous_mib())

    def run() -> tuple[float, float, int]:
        written = 0

        def write(piece: bytes | memoryview) -> None:
            nonlocal written
            written += len(piece)

        start = time.process_time()
        selection = select_objects(store, wants=map(to_raw, wants), haves=map(to_raw, haves), tick=tick)
        selected = time.process_time() - start
        tick(0)
        start = time.process_time()
        write_pack(store, selection, write, thin=True, ofs_delta=True, tick=tick)
        wrote = time.process_time() - start
        tick(0)
        return selected, wrote, written

    first, again = run(), run()
    memory = peak - idle
    selection = select_objects(store, wants=map(to_raw, wants), haves=map(to_raw, haves))
    revisions = b"\n".join([*wants, *(b"^" + have for have in haves)]) + b"\n"
    has_bitmaps = bool(bitmaps_of(store))
    if check:
        found = {to_hex(raw_oid) for raw_oid in selection.names()}
        if has_bitmaps:
            expected = listed(path, wants) - listed(path, haves)
        else:
            expected = set(
                git(path, "rev-list", "--objects", "--no-object-names", "--stdin", data=revisions)[0].split()
            )
        assert found == expected, "other objects than git's"
    line = (
        f"{len(selection):>7} objects  first {first[0]:6.3f} + {first[1]:6.3f} s  again {again[0]:6.3f} +"
        f" {again[1]:6.3f} s  {again[2] / 1e6:7.2f} MB  +{memory:3.0f} MiB | git"
    )
    for use in ("true", "false") if has_bitmaps else ("false",):
        command = ["pack-objects", "--revs", "--stdout", "--thin", "--delta-base-offset", "-q"]
        packed, git_s = git(path, "-c", f"pack.useBitmaps={use}", *command, data=revisions)
        name = "with bitmaps" if use == "true" else "without"
        line += (
            f" {name} {git_s:6.3f} s {len(packed) / 1e6:7.2f} MB: {sum(first[:2]) / git_s:.2f}x first,"
            f" {sum(again[:2]) / git_s:.2f}x again;"
        )
    return line


def listed(path: Path, wants: list[bytes]) -> set[bytes]:
    """Return all that git says is reached."""
    if not wants:
        return set()
    revisions = b"\n".join(wants) + b"\n"
    out, _ = git(path, "rev-list", "--objects", "--no-object-names", "--stdin", data=revisions)
    return set(out.split())


def write_bitmaps(path: Path) -> None:
    store = open_store(path)
    tips = [to_raw(oid) for oid in git(path, "for-each-ref", "--format=%(objectname)")[0].split()]
    pack = max(store.packs(), key=lambda pack: pack.count)
    for name in (pack.path.with_suffix(".bitmap"), pack.path.parent.parent / "info" / "commit-graph"):
        name.unlink(missing_ok=True)
    start = time.process_time()
    made = write_bitmap(store, pack, tips)
    size = made.stat().st_size / 1e6 if made else 0
    print(f"bitmap: {time.process_time() - start:.2f} s CPU, {size:.1f} MB")
    start = time.process_time()
    commits = [store.peel(tip) for tip in tips]
    write_commit_graph(
        pack.path.parent.parent,
        store.format,
        store.commit,
        [raw_oid for _, raw_oid, kind in commits if kind == COMMIT],
    )
    print(f"commit-graph: {time.process_time() - start:.2f} s CPU", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--write-bitmap", action="store_true")
    options, revisions = parser.parse_known_args()
    if revisions:
        wants, _, haves = " ".join(revisions).partition("--not")
        resolved = [
            git(options.repository, "rev-parse", *revs.split())[0].split() if revs else []
            for revs in (wants, haves)
        ]
        print(measure(options.repository, *resolved, check=not options.no_check))
        return
    print(native.describe())
    if options.write_bitmap:
        write_bitmaps(options.repository)
    for case in (*(["HEAD", "--not", f"HEAD~{age}"] for age in AGES), ["HEAD"]):
        command = [sys.executable, __file__, options.repository, *case, *(["--no-check"] * options.no_check)]
        result = subprocess.run(command, capture_output=True, text=True)
        print(f"{' '.join(case):<22} {result.stdout.strip() or result.stderr.strip()[-200:]}", flush=True)


if __name__ == "__main__":
    main()
