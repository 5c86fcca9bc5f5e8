"""Select and write packs in one process, against git's rev-list and pack-objects.

    python benchmarks/enumerate.py REPOSITORY [REV ... [--not REV ...]]

Without revisions: all of HEAD, then HEAD without its 1st, 10th, 100th and 1000th first parent. Prints CPU
seconds, sizes and private memory of each, and fails if the sets of objects differ. Each case runs in a fresh
process, since a store keeps commits and bases for the next request. `--no-check` leaves git out.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from gitsmart.pack.objects import SHA1, SHA256, to_hex, to_raw
from gitsmart.pack.select import select_objects
from gitsmart.pack.store import ObjectStore
from gitsmart.pack.writer import write_pack


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


def measure(path: Path, wants: list[bytes], haves: list[bytes], *, check: bool) -> str:
    git_dir = Path(git(path, "rev-parse", "--absolute-git-dir")[0].decode().strip())
    sha256 = git(path, "rev-parse", "--show-object-format")[0].strip() == b"sha256"
    store = ObjectStore(git_dir / "objects", SHA256 if sha256 else SHA1)
    idle = anonymous_mib()
    peak = idle

    def tick(number: int) -> None:
        nonlocal peak
        if not number % 16384:
            peak = max(peak, anonymous_mib())

    start = time.process_time()
    selection = select_objects(store, wants=map(to_raw, wants), haves=map(to_raw, haves), tick=tick)
    selected = time.process_time() - start
    peak = max(peak, anonymous_mib())
    written = 0

    def write(piece: bytes | memoryview) -> None:
        nonlocal written
        written += len(piece)

    start = time.process_time()
    stats = write_pack(store, selection, write, thin=True, ofs_delta=True, tick=tick)
    wrote = time.process_time() - start
    peak = max(peak, anonymous_mib())
    line = (
        f"{stats.objects:>8} objects  select {selected:7.3f} s  write {wrote:7.3f} s  {written / 1e6:8.3f} MB"
        f"  deflated {stats.deflated:>6}  +{peak - idle:5.0f} MiB"
    )
    if not check:
        return line
    revisions = b"\n".join([*wants, *(b"^" + have for have in haves)]) + b"\n"
    listed, list_s = git(path, "rev-list", "--objects", "--no-object-names", "--stdin", data=revisions)
    assert {to_hex(oid) for oid in selection.objects} == set(listed.split()), "other objects than git's"
    packed, pack_s = git(
        path, "pack-objects", "--revs", "--stdout", "--thin", "--delta-base-offset", "-q", data=revisions
    )
    return f"{line}  | git: rev-list {list_s:.3f} s  pack-objects {pack_s:.3f} s  {len(packed) / 1e6:.3f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--no-check", action="store_true")
    options, revisions = parser.parse_known_args()
    if revisions:
        wants, _, haves = " ".join(revisions).partition("--not")
        resolved = [
            git(options.repository, "rev-parse", *revs.split())[0].split() if revs else []
            for revs in (wants, haves)
        ]
        print(measure(options.repository, *resolved, check=not options.no_check))
        return
    for case in (["HEAD"], *(["HEAD", "--not", f"HEAD~{age}"] for age in (1, 10, 100, 1000))):
        command = [sys.executable, __file__, options.repository, *case, *(["--no-check"] * options.no_check)]
        result = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        print(f"{' '.join(case):<22} {result.stdout.strip() or result.stderr.strip()[-200:]}", flush=True)


if __name__ == "__main__":
    main()
