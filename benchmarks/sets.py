"""Hold the object sets of fetches against C git's: random wants and haves on real repositories, over HTTP.

    python -m benchmarks.sets [--pairs 100] [--seed 1] REPOSITORY [REPOSITORY ...]

Of each repository two copies are served, one as it is and one repacked with a bitmap and a commit-graph, by
`gitsmart serve`. A request is some random commits wanted, some had, or none (a clone), with a filter, a depth
or neither. The same bytes go to `git upload-pack --stateless-rpc` on both copies. Packs are not thin; each is
taken apart by `git index-pack` in an empty repository (without --strict: that wants all that objects refer
to, which no fetch with haves, filter or depth has).

git itself gives two answers: with bitmaps what is reached from the wants and not from the haves, without them
now and then an object more. Ours must hold all of the smaller set but what the haves reach, and nothing that
the wants don't reach; an answer with what neither of git's has is counted as "more".
"""

import argparse
import http.client
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.client import fetch_body
from benchmarks.peers import Gitsmart, environ

FILTERS = ("blob:none", "blob:limit=1k", "tree:0", "tree:2", "object:type=tree")


class Sets:
    """One repository, both copies of it, and what git says."""

    def __init__(self, scratch: Path, source: Path) -> None:
        self.env = {**environ(scratch / "home"), "GIT_PROTOCOL": "version=2"}
        self.scratch = scratch
        self.root = scratch / "root"
        self.copies = [self.root / name for name in ("plain.git", "bitmaps.git")]
        for copy in self.copies:
            self.git("clone", "-q", "--mirror", str(source), str(copy))
            self.git("-C", str(copy), "config", "uploadpack.allowFilter", "true")
            self.git("-C", str(copy), "config", "uploadpack.allowAnySHA1InWant", "true")
        for kept in self.copies[1].glob("objects/pack/*.keep"):
            kept.unlink()  # comes from how the source was made; with it there is no bitmap
        self.git("-C", str(self.copies[1]), "repack", "-qadb")
        self.git("-C", str(self.copies[1]), "commit-graph", "write", "--reachable")
        for left in (
            *self.copies[0].glob("objects/**/*.bitmap"),
            self.copies[0] / "objects/info/commit-graph",
        ):
            left.unlink(missing_ok=True)
        self.commits = self.git("-C", str(self.copies[0]), "rev-list", "--all").decode().split()

    def git(self, *args: str, data: bytes = b"", cwd: Path | None = None) -> bytes:
        done = subprocess.run(
            ["git", *args], input=data, stdout=subprocess.PIPE, env=self.env, cwd=cwd, check=True
        )
        return done.stdout

    def gits(self, copy: Path, body: bytes) -> bytes:
        """The answer of C git."""
        return self.git("-c", "safe.directory=*", "upload-pack", "--stateless-rpc", str(copy), data=body)

    def ours(self, port: int, copy: Path, body: bytes) -> bytes:
        """The answer of gitsmart."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        fields = {"Content-Type": "application/x-git-upload-pack-request", "Git-Protocol": "version=2"}
        connection.request("POST", f"/{copy.name}/git-upload-pack", body, fields)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        if response.status != 200:
            raise SystemExit(f"status {response.status}: {answer[:200]!r}")
        return answer

    def objects(self, answer: bytes) -> set[bytes]:
        """The hex oids of what an answer holds."""
        pack = self.scratch / "taken.git"
        if not pack.exists():
            self.git("init", "-q", "--bare", str(pack))
        self.git("-C", str(pack), "index-pack", "--stdin", data=_pack_of(answer))
        found: set[bytes] = set()
        for index in pack.glob("objects/pack/*.idx"):
            found.update(
                line.split()[1] for line in self.git("show-index", data=index.read_bytes()).splitlines()
            )
        for file in pack.glob("objects/pack/*"):
            file.unlink()
        return found

    def reached(self, wants: Sequence[str]) -> set[bytes]:
        """All that the wants reach."""
        lines = self.git("-C", str(self.copies[1]), "rev-list", "--objects", "--use-bitmap-index", *wants)
        return {line.split()[0] for line in lines.splitlines()}


def _pack_of(answer: bytes) -> bytes:
    """What comes on band 1 behind the line `packfile`."""
    pieces = []
    at = 0
    in_pack = False
    while at < len(answer):
        size = int(answer[at : at + 4], 16)
        line = answer[at + 4 : at + max(size, 4)]
        at += max(size, 4)
        if size < 4:
            continue
        if in_pack and line[:1] == b"\1":
            pieces.append(line[1:])
        elif line[:1] == b"\3" or line.startswith(b"ERR "):
            raise SystemExit(f"refused: {line!r}")
        elif line == b"packfile\n":
            in_pack = True
    return b"".join(pieces)


def draw(chance: random.Random, commits: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Draw wants, haves and arguments."""
    wants = chance.sample(commits, chance.choice((1, 1, 1, 2, 5)))
    if chance.random() < 0.3:  # a fetch of what is new: commits lie newest first
        wants = [commits[chance.randrange(20)]]
        return (
            wants,
            chance.sample(commits[: len(commits) // 10 + 20], chance.choice((1, 3))),
            _filtered(chance),
        )
    if chance.random() < 0.3:
        return wants, [], [f"deepen {chance.choice((1, 2, 10, 100))}", *_filtered(chance)]
    return wants, chance.sample(commits, chance.choice((0, 1, 1, 2, 8))), _filtered(chance)


def _filtered(chance: random.Random) -> list[str]:
    return [f"filter {chance.choice(FILTERS)}"] if chance.random() < 0.4 else []


def check(source: Path, pairs: int, seed: int, scratch: Path) -> int:
    """Compare; return how many requests had a wrong answer."""
    sets = Sets(scratch, source)
    server = Gitsmart(sets.root, scratch / "server")
    chance = random.Random(seed)
    wrong = same = fewer = more = total = 0
    server.start()
    try:
        port = int(server.url.rpartition(":")[2])
        for number in range(pairs):
            wants, haves, arguments = draw(chance, sets.commits)
            body = fetch_body(wants, haves, arguments=arguments)
            answers = [sets.objects(sets.gits(copy, body)) for copy in sets.copies]
            least, most = answers[0] & answers[1], answers[0] | answers[1]
            for copy in sets.copies:
                got = sets.objects(sets.ours(port, copy, body))
                total += 1
                same += got in answers
                lacking, extra = least - got, got - most
                if lacking and haves:
                    lacking -= sets.reached(haves)
                if lacking or (extra and not extra <= sets.reached(wants)):
                    wrong += 1
                    print(f"WRONG {copy.name} {number}: {len(lacking)} lacking, {len(extra)} more, {body!r}")
                elif extra:
                    more += 1
                    print(f"{copy.name} {number}: {len(extra)} more than git's {len(most)}, {body[:300]!r}")
                elif got not in answers:
                    fewer += 1
    finally:
        server.stop()
    print(
        f"{source}: {total} answers, {same} the same as one of git's, {fewer} others without what the "
        f"haves reach, {more} with more, {wrong} wrong",
        flush=True,
    )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("repositories", nargs="+", type=Path, metavar="REPOSITORY")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    wrong = 0
    for source in args.repositories:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            wrong += check(source.resolve(), args.pairs, args.seed, Path(folder))
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
