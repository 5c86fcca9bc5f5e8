"""A real repository, hundreds of MB large: cloned, fetched, and pushed in one chunked body, with v0 and
v2.

    python -m benchmarks.big --repo PATH [--scratch FOLDER] [--json FILE]

Every result must have the same refs and pass `git fsck --full`. For each step: seconds, CPU seconds of
the server, its peak memory (VmHWM, reset before the step), and the most that it queued for one request
(`buffered` in its log).
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import Gitsmart, environ, tree


class Big:
    """The source, the server, and the steps that were measured."""

    def __init__(self, scratch: Path, repo: Path) -> None:
        self.scratch = scratch
        self.env = environ(scratch / "home")
        self.root = scratch / "root"
        self.root.mkdir()
        self.source = self.root / "source.git"
        self.git("clone", "-q", "--bare", "--no-local", repo, self.source)
        self.steps: list[dict[str, object]] = []

    def git(self, *args: str | Path, cwd: Path | None = None) -> str:
        result = subprocess.run(
            ["git", *map(str, args)],
            cwd=cwd or self.scratch,
            env=self.env,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
        if result.returncode:
            raise SystemExit(f"git {args[0]} failed: {result.stderr[-2000:]}")
        return result.stdout.rstrip("\n")

    def refs(self, path: Path) -> str:
        return self.git("for-each-ref", "--format=%(refname) %(objectname)", cwd=path)

    def check(self, path: Path) -> None:
        """The same refs as the source, and nothing wrong, missing or left over."""
        if self.refs(path) != self.refs(self.source):
            raise SystemExit(f"{path.name}: other refs than the source")
        self.git("fsck", "--full", "--no-dangling", cwd=path)

    def step(self, server: Gitsmart, name: str, *args: str | Path, cwd: Path | None = None) -> None:
        log_size = server.log.stat().st_size
        server.reset_high_water()
        cpu, start = server.cpu_s(), time.perf_counter()
        self.git(*args, cwd=cwd)
        wall = time.perf_counter() - start
        time.sleep(0.2)  # its log line comes after the client has left
        with server.log.open(encoding="utf-8") as log:
            log.seek(log_size)
            buffered = [int(n) for n in re.findall(r"buffered=(\d+)", log.read())]
        step: dict[str, object] = {
            "step": name,
            "wall_s": round(wall, 2),
            "server_cpu_s": round(server.cpu_s() - cpu, 2),
            "server_peak_mib": round(server.high_water_mib(), 1),
            "server_anonymous_mib": round(sum(map(anonymous_mib, tree(server.pids()[0]))), 1),
            "most_buffered_kib": round(max(buffered, default=0) / 1024, 1),
        }
        self.steps.append(step)
        print("  ".join(f"{key}={value}" for key, value in step.items()), flush=True)

    def run(self, server: Gitsmart, version: int) -> None:
        speak = ("-c", f"protocol.version={version}")
        url = f"{server.url}/source.git"
        copy = self.scratch / f"clone-v{version}.git"
        self.step(server, f"clone v{version}", *speak, "clone", "-q", "--mirror", url, copy)
        self.check(copy)
        shutil.rmtree(copy)
        # an older clone: the default branch, a thousand first parents ago
        old = self.scratch / f"old-v{version}.git"
        self.git("init", "-q", "--bare", old)
        tip = self.git("rev-list", "--first-parent", "--skip=1000", "--max-count=1", "HEAD", cwd=self.source)
        self.git("fetch", "-q", "--no-tags", f"file://{self.source}", f"{tip}:refs/heads/old", cwd=old)
        self.step(server, f"fetch v{version}", *speak, "fetch", "-q", url, "refs/*:refs/*", cwd=old)
        self.git("update-ref", "-d", "refs/heads/old", cwd=old)
        self.check(old)
        self.step(server, f"fetch v{version} nothing", *speak, "fetch", "-q", url, "refs/*:refs/*", cwd=old)
        shutil.rmtree(old)
        target = self.root / f"pushed-v{version}.git"
        self.git("init", "-q", "--bare", target)
        self.step(
            server,
            f"push v{version} chunked",
            *speak,
            "push",
            "-q",
            f"{server.url}/{target.name}",
            "refs/*:refs/*",
            cwd=self.source,
        )
        self.check(target)
        shutil.rmtree(target)


def anonymous_mib(pid: int) -> float:
    """Resident memory that no file backs, now."""
    match = re.search(r"^RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.big")
    parser.add_argument("--repo", type=Path, required=True, help="a repository of 300 MB or more")
    parser.add_argument("--scratch", type=Path, help="a folder with room for four copies (default: TMPDIR)")
    parser.add_argument("--protocol", type=int, action="append", choices=[0, 1, 2], help="default: 0 and 2")
    parser.add_argument("--json", type=Path, help="where figures go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gitsmart-big-", dir=options.scratch) as folder:
        big = Big(Path(folder), options.repo.resolve())
        counts = big.git("count-objects", "-v", cwd=big.source).splitlines()
        print("source: " + ", ".join(line for line in counts if line.startswith(("in-pack", "size-pack"))))
        with Gitsmart(big.root, big.scratch / "run") as server:
            for version in options.protocol or [0, 2]:
                big.run(server, version)
            log = server.log.read_text(encoding="utf-8")
        if "Traceback" in log or " ERROR " in log:
            print(log[-4000:], file=sys.stderr)
            return 1
    if options.json:
        options.json.write_text(json.dumps(big.steps, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
