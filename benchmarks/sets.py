"""Hold the object sets of fetches against `git rev-list --objects`: random wants and haves, over HTTP.

    python -m benchmarks.sets [--pairs 100] [--seed 1] [--answer-mib 32] REPOSITORY [REPOSITORY ...]

Each repository is served by `gitsmart serve` in several states, a bare repository each:

    plain         one pack, no bitmap, no commit-graph
    bitmaps       what `git repack -adb` and `git commit-graph write` leave
    scattered     six packs and loose objects
    maintained    the same after `gitsmart maintain --full`
    grown         older history after `gitsmart maintain --full`, then more packs and loose objects
    midx          the packs of `scattered` under a multi-pack-index with bitmaps, and the loose objects

A request wants some commits, now and then an annotated tag or a tree, has some, or none (a clone), with a
filter, a depth, tags to include, or neither; by protocol v2 or v0. Most haves lie some commits behind the
wants, as in real fetches; some lie anywhere, and some nobody knows. It is asked of the states in a random
order, until their answers together have ANSWER_MIB (at least one is asked). Each pack is taken apart by
`git index-pack` in an empty repository, a complete clone with --strict (others refer to what they lack),
and looked at by `git verify-pack`.

An answer is `exact` when it holds what the wants lead to and the haves don't: `git rev-list --objects
--use-bitmap-index`, with the same filter, and with what git says is shallow. Without bitmaps git itself sends
an object more now and then: an answer with just these is counted as `as git`. `less` and `more` are answers
that no rev-list gives, but which are right for the client: nothing that it lacks is missing, and nothing in
them lies beyond the wants (`less`: some of what git sends for nothing). All else is WRONG, printed, and makes
the exit status 1.
"""

import argparse
import collections
import hashlib
import http.client
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.client import pkt
from benchmarks.peers import Gitsmart, environ

STATES = ("plain", "bitmaps", "scattered", "maintained", "grown", "midx")
FILTERS = ("blob:none", "blob:limit=1k", "tree:0", "tree:2", "object:type=tree")
BITMAP_FILTERS = ("blob:none", "blob:limit=1k", "tree:0", "object:type=tree")  # those that git's bitmaps know
CUTS = (0.5, 0.8, 0.93, 0.97, 0.99, 0.997)  # of the commits, oldest first: where a pack of `scattered` ends
GROWN_CUTS = 3  # packs of `grown` that are there when it is maintained


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for."""

    wants: list[str]
    haves: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    """Haves that the server doesn't know."""
    filter: str = ""
    deepen: list[str] = field(default_factory=list)
    shallow: list[str] = field(default_factory=list)
    """Where the client's own history ends."""
    include_tag: bool = False

    def body(self, version: int) -> bytes:
        words = ["ofs-delta", "no-progress", *["include-tag"] * self.include_tag]
        limits = [f"shallow {oid}" for oid in self.shallow] + self.deepen
        limits += [f"filter {self.filter}"] if self.filter else []
        haves = [f"have {oid}" for oid in [*self.strangers, *self.haves]]
        if version == 2:
            lines = [*words, *limits, *[f"want {oid}" for oid in self.wants], *haves, "done"]
            return pkt("command=fetch\n") + b"0001" + b"".join(pkt(f"{line}\n") for line in lines) + b"0000"
        offered = ["multi_ack_detailed", "side-band-64k", *words]
        offered += ["filter"] * bool(self.filter)
        offered += ["deepen-since"] * bool(self.deepen)
        wants = [f"want {oid}" for oid in self.wants]
        wants[0] += " " + " ".join(offered)
        return b"".join(
            [
                *[pkt(f"{line}\n") for line in [*wants, *limits]],
                b"0000",
                *[pkt(f"{line}\n") for line in [*haves, "done"]],
            ]
        )


@dataclass(kw_only=True)
class Answer:
    """What came."""

    pack: Path
    size: int = 0
    digest: bytes = b""
    boundary: set[str] = field(default_factory=set)
    """What is shallow, and was not."""
    unshallowed: set[str] = field(default_factory=set)


class Repositories:
    """One repository in all states, and what git says of it."""

    def __init__(self, scratch: Path, source: Path) -> None:
        self.env = environ(scratch / "home")
        self.scratch = scratch
        self.root = scratch / "root"
        self.root.mkdir()
        self.names: dict[bytes, set[bytes]] = {}  # digest of a pack -> its oids, of the request at hand
        self._clean: bool | None = None
        plain, bitmaps = self.state("plain"), self.state("bitmaps")
        self.git("clone", "-q", "--mirror", str(source), str(plain))
        self.git("-C", str(plain), "-c", "repack.writeBitmaps=false", "repack", "-qad")
        self.git("clone", "-q", "--mirror", str(plain), str(bitmaps))
        self.git("-C", str(bitmaps), "repack", "-qadb")
        self.git("-C", str(bitmaps), "commit-graph", "write", "--reachable")
        graph = self.git("-C", str(plain), "rev-list", "--all", "--topo-order", "--reverse", "--parents")
        parents = [line.split() for line in graph.decode().splitlines()]
        self.commits = [line[0] for line in parents]  # oldest first
        self.parents = {line[0]: line[1:] for line in parents}
        refs = self.git("-C", str(plain), "for-each-ref", "--format=%(objectname) %(*objectname) %(refname)")
        self.tips: list[str] = []
        self.tags: list[
            tuple[list[str], str]
        ] = []  # annotated ones: a tag, the tag it names, ...; and what it all is
        for line in refs.decode().splitlines():
            oid, peeled, name = line.split(" ", 2)
            self.tips.append(oid)
            if peeled and name.startswith("refs/tags/"):
                chain = [oid]
                while True:
                    content = self.git("-C", str(plain), "cat-file", "tag", chain[-1]).decode(
                        errors="replace"
                    )
                    target, kind = (line.split(" ")[1] for line in content.split("\n")[:2])
                    if kind != "tag":
                        break
                    chain.append(target)
                self.tags.append((chain, target))
        self._scatter()
        for state in STATES:
            self.git("-C", str(self.state(state)), "config", "uploadpack.allowFilter", "true")
            self.git("-C", str(self.state(state)), "config", "uploadpack.allowAnySHA1InWant", "true")

    def state(self, name: str) -> Path:
        return self.root / f"{name}.git"

    def git(self, *args: str, data: bytes = b"", cwd: Path | None = None) -> bytes:
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", *args],
            input=data,
            stdout=subprocess.PIPE,
            env=self.env,
            cwd=cwd,
            check=True,
        )
        return done.stdout

    def _scatter(self) -> None:
        """Make the states that have more than one pack."""
        plain = self.state("plain")
        scattered, grown = self.state("scattered"), self.state("grown")
        for path in (scattered, grown):
            self.git("init", "-q", "--bare", str(path))
        ends = [int(cut * len(self.commits)) for cut in CUTS]
        before: list[str] = []
        for number, end in enumerate(ends):
            heads = self._heads(self.commits[:end])
            self._pack(scattered, heads, before)
            if number == GROWN_CUTS - 1:
                for file in (scattered / "objects/pack").iterdir():
                    os.link(file, grown / "objects/pack" / file.name)
                lines = [f"create refs/heads/{place} {oid}\n" for place, oid in enumerate(heads)]
                self.git("-C", str(grown), "update-ref", "--stdin", data="".join(lines).encode())
                self._maintain("grown")
            before = heads
        loose = self.scratch / "loose"
        loose.mkdir()
        self._pack(scattered, self.tips, before, to=loose)
        for pack in loose.glob("*.pack"):
            self.git("-C", str(scattered), "unpack-objects", "-q", data=pack.read_bytes())
        shutil.rmtree(loose)
        for name in ("packed-refs", "HEAD"):
            shutil.copy(plain / name, scattered)
        for name in ("maintained", "midx"):
            shutil.copytree(scattered, self.state(name), copy_function=os.link)
            for shared in ("packed-refs", "HEAD", "config"):
                (self.state(name) / shared).unlink()
                shutil.copy(scattered / shared, self.state(name))
        for file in (scattered / "objects").rglob("*"):
            to = grown / file.relative_to(scattered)
            if file.is_dir():
                to.mkdir(exist_ok=True)
            elif not to.exists():
                os.link(file, to)
        shutil.rmtree(grown / "refs/heads")
        (grown / "refs/heads").mkdir()
        for name in ("packed-refs", "HEAD"):
            shutil.copy(scattered / name, grown)
        self._maintain("maintained")
        self.git("-C", str(self.state("midx")), "multi-pack-index", "write", "--bitmap")
        for state in STATES:
            kinds = collections.Counter(
                "loose" if len(file.parent.name) == 2 else file.name.partition(".")[2] or file.name
                for file in (self.state(state) / "objects").rglob("*")
                if file.is_file()
            )
            print(f"  {state}: {', '.join(f'{kinds[kind]} {kind}' for kind in sorted(kinds))}")

    def _heads(self, commits: Sequence[str]) -> list[str]:
        """Those that are no parent of another."""
        rest = set(commits)
        for commit in commits:
            rest.difference_update(self.parents[commit])
        return sorted(rest)

    def _pack(
        self, path: Path, wants: Sequence[str], haves: Sequence[str], *, to: Path | None = None
    ) -> None:
        lines = [*wants, "--not", *haves]
        base = str((to or path / "objects/pack") / "pack")
        self.git(
            *("-C", str(self.state("plain")), "pack-objects", "-q", "--revs", "--window=4", base),
            data="".join(f"{line}\n" for line in lines).encode(),
        )

    def _maintain(self, state: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "gitsmart", "maintain", state, "--full", "--root", str(self.root)],
            capture_output=True,
            env=self.env,
            check=True,
        )

    # What git says

    def rev_list(
        self,
        wants: Sequence[str],
        haves: Sequence[str] = (),
        *,
        object_filter: str = "",
        boundary: Sequence[str] = (),
        bitmaps: bool = True,
    ) -> set[bytes]:
        """The hex oids of what is between."""
        args = ["-C", str(self.state("bitmaps" if bitmaps else "plain"))]
        if boundary:
            file = self.scratch / "boundary"
            file.write_text("".join(f"{oid}\n" for oid in boundary))
            args = ["--shallow-file", str(file), *args]
        args += ["rev-list", "--objects", "--stdin"]
        if bitmaps and not boundary and object_filter in ("", *BITMAP_FILTERS):
            args.append("--use-bitmap-index")
        if object_filter:
            args.append(f"--filter={object_filter}")
        lines = [*wants, *[f"^{oid}" for oid in haves]]
        found = self.git(*args, data="".join(f"{line}\n" for line in lines).encode())
        return {line.split()[0] for line in found.splitlines()}

    def git_answer(self, request: Request) -> Answer:
        """The answer of git upload-pack, without bitmaps."""
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", "upload-pack", "--stateless-rpc", str(self.state("plain"))],
            input=request.body(2),
            stdout=subprocess.PIPE,
            env={**self.env, "GIT_PROTOCOL": "version=2"},
            check=True,
        )
        return self._taken(iter([done.stdout]))

    # What we say

    def our_answer(self, port: int, state: str, request: Request, version: int) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        fields = {"Content-Type": "application/x-git-upload-pack-request"}
        if version:
            fields["Git-Protocol"] = f"version={version}"
        connection.request("POST", f"/{state}.git/git-upload-pack", request.body(version), fields)
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"status {response.status}: {response.read()[:200]!r}")
        try:
            return self._taken(iter(lambda: response.read(1 << 18), b""))
        finally:
            connection.close()

    def _taken(self, pieces: Iterator[bytes]) -> Answer:
        """Put what comes on band 1 into a file."""
        answer = Answer(pack=self.scratch / "answer.pack")
        hashed = hashlib.sha1()
        with answer.pack.open("wb") as file:
            for line in _lines(pieces):
                if line[:1] == b"\1":
                    file.write(line[1:])
                    hashed.update(line[1:])
                elif line[:1] == b"\3" or line.startswith(b"ERR "):
                    raise SystemExit(f"refused: {line!r}")
                elif line.startswith(b"shallow "):
                    answer.boundary.add(line.split()[1].decode())
                elif line.startswith(b"unshallow "):
                    answer.unshallowed.add(line.split()[1].decode())
        answer.size = answer.pack.stat().st_size
        answer.digest = hashed.digest()
        return answer

    def objects(self, answer: Answer, *, is_whole: bool) -> set[bytes]:
        """The hex oids of what an answer holds, as git takes it apart."""
        known = self.names.get(answer.digest)
        if known is not None:
            return known
        taken = self.scratch / "taken.git"
        if not taken.exists():
            self.git("init", "-q", "--bare", str(taken))
        args = (
            ["--strict" if self._is_clean() else "--check-self-contained-and-connected"] if is_whole else []
        )
        if self._index_pack(taken, answer.pack, *args):
            raise SystemExit(f"git index-pack refuses {answer.pack}")
        found: set[bytes] = set()
        for index in taken.glob("objects/pack/*.idx"):
            if answer.size < 1 << 20:  # it does once more what index-pack did
                self.git("verify-pack", str(index))
            found.update(
                line.split()[1] for line in self.git("show-index", data=index.read_bytes()).splitlines()
            )
        for file in taken.glob("objects/pack/*"):
            file.unlink()
        self.names[answer.digest] = found
        return found

    def _is_clean(self) -> bool:
        """Whether git finds no fault with the repository's own objects."""
        if self._clean is None:
            whole = next(self.state("plain").glob("objects/pack/*.pack"))
            other = self.scratch / "other.git"
            self.git("init", "-q", "--bare", str(other))
            self._clean = not self._index_pack(other, whole, "--strict")
            shutil.rmtree(other)
            if not self._clean:
                print("  git fsck finds fault with its objects: connectivity alone is checked")
        return self._clean

    def _index_pack(self, path: Path, pack: Path, *args: str) -> int:
        with pack.open("rb") as stdin:
            command = ["git", "index-pack", "--stdin", *args]
            done = subprocess.run(command, stdin=stdin, capture_output=True, env=self.env, cwd=path)
        return done.returncode


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The content of each pkt-line."""
    buffer = b""
    for piece in pieces:
        buffer += piece
        at = 0
        while len(buffer) - at >= 4:
            size = max(int(buffer[at : at + 4], 16), 4)
            if len(buffer) - at < size:
                break
            yield buffer[at + 4 : at + size]
            at += size
        buffer = buffer[at:]
    if buffer:
        raise SystemExit(f"cut short: {buffer[:100]!r}")


def draw(chance: random.Random, repositories: Repositories) -> Request:
    """Draw a request."""
    commits, parents = repositories.commits, repositories.parents

    def some_commit() -> str:
        if chance.random() < 0.4:  # a fetch of what is new
            return commits[-1 - chance.randrange(min(200, len(commits)))]
        return chance.choice(commits)

    def before(commit: str, steps: int) -> str:
        """An ancestor, some steps back along any of the parents."""
        while steps and parents[commit]:
            commit = chance.choice(parents[commit]) if chance.random() < 0.2 else parents[commit][0]
            steps -= 1
        return commit

    wants = [some_commit()]
    wants += [before(wants[0], chance.randrange(50)) for _ in range(chance.choice((0, 0, 0, 1, 4)))]
    haves = []
    if chance.random() < 0.85:
        haves += [before(wants[0], int(1000 ** chance.random())) for _ in range(chance.choice((1, 1, 2, 5)))]
    if chance.random() < 0.1:
        wants.append(chance.choice(commits))
    if chance.random() < 0.3:  # mostly older, now and then newer than what is wanted
        haves += chance.sample(commits, min(len(commits), chance.choice((1, 3, 10))))
    request: dict[str, object] = {}
    if chance.random() < 0.15 and repositories.tags:
        wants.append(chance.choice(repositories.tags)[0][0])
    if chance.random() < 0.05:
        tree = repositories.git("-C", str(repositories.state("plain")), "rev-parse", f"{wants[0]}^{{tree}}")
        wants.append(tree.decode().strip())
    if chance.random() < 0.4:
        request["filter"] = chance.choice(FILTERS)
    if chance.random() < 0.2:
        deepen = f"deepen {chance.choice((1, 2, 3, 10, 40))}"
        if chance.random() < 0.3:
            oldest = before(wants[0], chance.randrange(60))
            plain = str(repositories.state("plain"))
            date = repositories.git("-C", plain, "show", "-s", "--format=%ct", oldest).decode().strip()
            deepen = f"deepen-since {date}"
        request["deepen"] = [deepen]
        if chance.random() < 0.5:
            # a client that is shallow itself, with the same history or an older one
            end = before(wants[0], chance.choice((0, 1, 5, 30)))
            haves, request["shallow"] = [end], [end]
        else:
            haves = []
    if chance.random() < 0.2:
        request["strangers"] = [chance.randbytes(20).hex() for _ in range(3)]
    wants = list(dict.fromkeys(wants))
    chance.shuffle(wants)
    return Request(
        wants=wants,
        haves=list(dict.fromkeys(haves)),
        include_tag=chance.random() < 0.3,
        **request,  # type: ignore[arg-type]  # fields of Request, by name, each set above
    )


class Judge:
    """What is right for one request."""

    def __init__(self, repositories: Repositories, request: Request) -> None:
        self.repositories = repositories
        self.request = request
        self.boundary: list[str] = []
        self.theirs: Answer | None = None
        self.their_objects: set[bytes] = set()
        if request.deepen:
            self.theirs = repositories.git_answer(request)
            self.boundary = sorted({*request.shallow, *self.theirs.boundary} - self.theirs.unshallowed)
        self.exact = self._between(bitmaps=True)
        self.tags: set[bytes] = set()
        if request.include_tag:
            for chain, target in repositories.tags:
                if target.encode() in self.exact:
                    self.tags.update(oid.encode() for oid in chain)

    def _between(self, *, bitmaps: bool) -> set[bytes]:
        request = self.request
        if request.shallow:
            return self._reached() - self._had()
        return self.repositories.rev_list(
            request.wants,
            request.haves,
            object_filter=request.filter,
            boundary=self.boundary,
            bitmaps=bitmaps,
        )

    def _reached(self) -> set[bytes]:
        return self.repositories.rev_list(
            self.request.wants, object_filter=self.request.filter, boundary=self.boundary
        )

    def _had(self) -> set[bytes]:
        if not self.request.haves:
            return set()
        return self.repositories.rev_list(self.request.haves, boundary=self.request.shallow)

    def verdict(self, answer: Answer, got: set[bytes]) -> str:
        """How an answer is counted; see the module's head."""
        if self.theirs is not None and (answer.boundary, answer.unshallowed) != (
            self.theirs.boundary,
            self.theirs.unshallowed,
        ):
            return f"WRONG: shallow {sorted(answer.boundary ^ self.theirs.boundary)}"
        if self.tags - got:
            return f"WRONG: {len(self.tags - got)} tags lacking"
        if got == self.exact | self.tags:
            return "exact"
        # git leaves a tree out that was asked for by name if a wanted commit has it and the filter says no
        reached, had = self._reached() | {oid.encode() for oid in self.request.wants}, self._had()
        got = got - (self.tags - reached)
        lacking = self._reached() - had - got
        if lacking:
            return f"WRONG: {len(lacking)} lacking: {sorted(lacking)[:3]}"
        allowed = self._between(bitmaps=False)
        extra = got - reached
        if extra or self.request.deepen:
            # what git sends of commits that are no longer shallow, and of the whole way to odd wants
            theirs = self.repositories.git_answer(self.request)
            allowed |= self.repositories.objects(theirs, is_whole=False)
            extra -= allowed
        if extra:
            return f"WRONG: {len(extra)} beyond the wants: {sorted(extra)[:3]}"
        if got == allowed:
            return "as git"
        return "less" if got <= allowed | self.exact else "more"


def check(source: Path, pairs: int, seed: int, scratch: Path, answer_bytes: int) -> int:
    """Compare; return how many requests had a wrong answer."""
    began = time.monotonic()
    print(f"{source}: making its states", flush=True)
    repositories = Repositories(scratch, source)
    server = Gitsmart(repositories.root, scratch / "server")
    chance = random.Random(seed)
    counts: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    sent = 0
    server.start()
    try:
        port = int(server.url.rpartition(":")[2])
        for number in range(pairs):
            request = draw(chance, repositories)
            judge = Judge(repositories, request)
            repositories.names.clear()
            size = 0
            for state in chance.sample(STATES, len(STATES)):
                version = chance.choice((0, 2, 2))
                answer = repositories.our_answer(port, state, request, version)
                is_whole = not (request.haves or request.filter or request.deepen)
                got = repositories.objects(answer, is_whole=is_whole)
                word, _, reason = judge.verdict(answer, got).partition(":")
                counts[word] += 1
                kinds[f"{state} v{version}"] += 1
                if word not in ("exact", "as git"):
                    print(f"{word} {state} v{version} {number}:{reason} {request}", flush=True)
                size += answer.size
                if size >= answer_bytes:
                    break
            sent += size
            if number % 20 == 19:
                done = ", ".join(f"{counts[word]} {word}" for word in sorted(counts))
                print(
                    f"  {number + 1} pairs, {sent >> 20} MiB, {time.monotonic() - began:.0f} s: {done}",
                    flush=True,
                )
    finally:
        server.stop()
    done = ", ".join(f"{counts[word]} {word}" for word in sorted(counts))
    print(f"{source}: {pairs} pairs, {counts.total()} answers, {sent >> 20} MiB: {done}")
    print(f"  asked: {', '.join(f'{kinds[kind]} {kind}' for kind in sorted(kinds))}", flush=True)
    return counts["WRONG"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("repositories", nargs="+", type=Path, metavar="REPOSITORY")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--answer-mib", type=int, default=32, help="of all states together, per request")
    args = parser.parse_args()
    wrong = 0
    for source in args.repositories:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            wrong += check(source.resolve(), args.pairs, args.seed, Path(folder), args.answer_mib << 20)
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
