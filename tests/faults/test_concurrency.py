"""Many at once: races on one branch, pushes side by side, and git's own maintenance under them."""

import random
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, commit_file, fsck, refs
from tests.faults import rawpush
from tests.faults.conftest import new_commit
from tests.faults.rawpush import ZERO

CLIENTS = 12
ROUNDS = 30


def push_at_once(hosted: Hosted, pushes: list[tuple[tuple[str, str, str], bytes]]) -> list[rawpush.Response]:
    """Send every push at the same moment, each over a connection of its own."""
    barrier = threading.Barrier(len(pushes))

    def one(command: tuple[str, str, str], pack: bytes) -> rawpush.Response:
        body = rawpush.push_body([command], pack)
        with rawpush.Connection(hosted.server.url, timeout_s=60) as connection:
            barrier.wait()
            return connection.request(
                "POST", f"/{hosted.name}/git-receive-pack", rawpush.post_headers("git-receive-pack"), body
            )

    with ThreadPoolExecutor(len(pushes)) as pool:
        return list(pool.map(one, *zip(*pushes, strict=True)))


@pytest.mark.slow
def test_race_on_one_branch(git: Git, hosted: Hosted) -> None:
    """One ok in every round, and the ref is the winner's; nobody gets a 5xx."""
    for number in range(ROUNDS):
        commits = [new_commit(git, hosted.path, f"{number}-{client}") for client in range(CLIENTS)]
        responses = push_at_once(hosted, [(commit.command, commit.pack) for commit in commits])
        assert {response.status for response in responses} == {200}
        verdicts = [response.report().refs["refs/heads/main"] for response in responses]
        winners = [commit for commit, verdict in zip(commits, verdicts, strict=True) if verdict == "ok"]
        assert len(winners) == 1, verdicts
        assert refs(hosted.path)["refs/heads/main"] == winners[0].oid
        assert all(verdicts)
    fsck(hosted.path)


@pytest.mark.slow
def test_race_of_creations_and_deletions(git: Git, hosted: Hosted) -> None:
    """Creations of one ref race, then deletions; again exactly one is told ok."""
    for number in range(10):
        commits = [new_commit(git, hosted.path, f"{number}-{client}") for client in range(CLIENTS)]
        name = f"refs/heads/race/{number % 2}/x"
        creations = [((ZERO, commit.oid, name), commit.pack) for commit in commits]
        verdicts = [r.report().refs[name] for r in push_at_once(hosted, creations)]
        assert verdicts.count("ok") == 1, verdicts
        winner = commits[verdicts.index("ok")].oid
        assert refs(hosted.path)[name] == winner
        verdicts = [r.report().refs[name] for r in push_at_once(hosted, [((winner, ZERO, name), b"")] * 6)]
        assert verdicts.count("ok") >= 1, verdicts
        assert name not in refs(hosted.path)


@pytest.mark.slow
def test_race_of_git_clients(git: Git, hosted: Hosted, tmp_path: Path) -> None:
    works = []
    for client in range(CLIENTS):
        git("clone", "-q", hosted.path, f"work{client}", cwd=tmp_path)
        works.append(tmp_path / f"work{client}")
        git("remote", "set-url", "origin", hosted.url, cwd=works[-1])
    for number in range(3):
        tips = []
        for client, work in enumerate(works):
            git("fetch", "-q", cwd=work)
            git("reset", "-q", "--hard", "origin/main", cwd=work)
            tips.append(commit_file(git, work, f"{client}.txt", f"{number}\n"))
        running = [git.start("push", "origin", "main", cwd=work) for work in works]
        texts = [process.communicate(timeout=60)[0] for process in running]
        won = [tip for tip, process in zip(tips, running, strict=True) if process.returncode == 0]
        assert len(won) == 1, texts
        assert refs(hosted.path)["refs/heads/main"] == won[0]
        assert not [text for text in texts if "RPC failed" in text or "HTTP 5" in text]


def test_fifty_pushes_to_fifty_branches(git: Git, hosted: Hosted) -> None:
    commits = [new_commit(git, hosted.path, f"branch-{n}") for n in range(50)]
    names = [f"refs/heads/{'a/b' if n % 2 else 'c'}/{n}" for n in range(50)]
    pushes = [((ZERO, c.oid, name), c.pack) for c, name in zip(commits, names, strict=True)]
    reports = [response.report() for response in push_at_once(hosted, pushes)]
    assert [report.refs for report in reports] == [{name: "ok"} for name in names]
    found = refs(hosted.path)
    assert [found[name] for name in names] == [commit.oid for commit in commits]


@pytest.mark.slow
def test_fifty_git_clients_to_fifty_branches(git: Git, hosted: Hosted, tmp_path: Path) -> None:
    git("clone", "-q", hosted.path, "work", cwd=tmp_path)
    tips = {}
    for n in range(50):
        git("checkout", "-q", "-b", f"branch-{n}", "origin/main", cwd=tmp_path / "work")
        tips[f"refs/heads/branch-{n}"] = commit_file(git, tmp_path / "work", f"{n}.txt", f"{n}\n")
    running = [git.start("push", hosted.url, f"branch-{n}", cwd=tmp_path / "work") for n in range(50)]
    texts = [process.communicate(timeout=100)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 50, texts
    assert refs(hosted.path).items() >= tips.items()


class Maintenance:
    """Run git's own maintenance in the server's repository, again and again, until told to stop."""

    def __init__(self, git: Git, path: Path, *commands: tuple[str, ...]) -> None:
        self.rounds = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(git, path, commands))

    def _run(self, git: Git, path: Path, commands: tuple[tuple[str, ...], ...]) -> None:
        while not self._stop.is_set():
            for command in commands:
                git.run(*command, cwd=path)  # it may itself lose a race for a lock
            self.rounds += 1

    def __enter__(self) -> "Maintenance":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("commands", "always"),
    [
        pytest.param([("repack", "-adq")], True, id="repack"),
        pytest.param([("pack-refs", "--all")], True, id="pack-refs"),
        pytest.param([("repack", "-adq"), ("pack-refs", "--all", "--prune")], True, id="repack+pack-refs"),
        # C git's gc takes away what it finds unreferenced, at once: a push may fail, but then it must say so
        pytest.param([("gc", "--prune=now", "-q")], False, id="gc-prune-now"),
    ],
)
def test_maintenance_loses_nothing(
    git: Git, hosted: Hosted, tmp_path: Path, commands: list[tuple[str, ...]], always: bool
) -> None:
    """Three pushers, each on a branch of its own, and a cloner, while git rewrites packs and refs."""
    if hosted.server.kind == "git" and not always:
        pytest.skip("C git loses what gc --prune=now finds before its ref has moved")
    acknowledged: dict[str, str] = {}
    refused: list[str] = []
    failed_clones: list[str] = []
    pushes = 0
    main = refs(hosted.path)["refs/heads/topic"]
    deadline = time.monotonic() + 8

    def pusher(number: int) -> None:
        nonlocal pushes
        name = f"refs/heads/pusher/{number}"
        old, n = ZERO, 0
        while time.monotonic() < deadline:
            n += 1
            # On the one before: a repack drops what no ref reaches, and a clone that has seen it then fails
            parent = None if old == ZERO else old
            marker = f"{number}-{n}"
            commit = new_commit(git, hosted.path, marker, content=random.randbytes(3000), parent=parent)
            commands = [(old, commit.oid, name)]
            # and one that comes and goes, so that packed refs are rewritten; its objects never go
            commands.append((ZERO, main, f"{name}-extra") if n % 2 else (main, ZERO, f"{name}-extra"))
            response = rawpush.push(hosted.server.url, hosted.name, commands, commit.pack)
            assert response.status == 200, response
            report = response.report()
            pushes += 1
            if set(report.refs.values()) != {"ok"}:
                refused.append(f"{report}")
            if report.refs.get(name) == "ok":
                acknowledged[name] = old = commit.oid

    def cloner() -> int:
        count = 0
        while time.monotonic() < deadline:
            target = tmp_path / "clone.git"
            result = git.run("clone", "-q", "--mirror", hosted.url, target)
            if result.returncode == 0:
                fsck(target)
                shutil.rmtree(target)
                count += 1
            else:
                failed_clones.append(result.stderr)
        return count

    with Maintenance(git, hosted.path, *commands) as maintenance, ThreadPoolExecutor(4) as pool:
        pushing = [pool.submit(pusher, number) for number in range(3)]
        cloning = pool.submit(cloner)
        for future in pushing:
            future.result()
        clones = cloning.result()
    assert maintenance.rounds > 2
    assert clones > 2
    assert pushes > 20
    if always and hosted.server.kind != "git":
        assert refused == []
        assert failed_clones == []
    found = refs(hosted.path)
    for name, oid in acknowledged.items():
        assert found.get(name, ZERO) == oid
    fsck(hosted.path)
    git("repack", "-adq", cwd=hosted.path)
    fsck(hosted.path)


def test_repack_between_two_pushes_and_a_stale_listing(git: Git, hosted: Hosted) -> None:
    """The server has packs open that are gone, and must find the new ones by itself."""
    for n in range(5):
        commit = new_commit(git, hosted.path, f"n{n}")
        response = rawpush.push(hosted.server.url, hosted.name, [commit.command], commit.pack)
        assert response.report().refs == {"refs/heads/main": "ok"}
        git("repack", "-adfq", f"--depth={n + 1}", cwd=hosted.path)
        listing = git("rev-list", "--objects", "--all", "--no-object-names", cwd=hosted.path).split()
        with rawpush.Connection(hosted.server.url) as connection:
            fetched = connection.request(
                "POST",
                f"/{hosted.name}/git-upload-pack",
                rawpush.post_headers("git-upload-pack", 2),
                rawpush.fetch_body(sorted(set(refs(hosted.path).values()))),
            )
        assert fetched.status == 200
        _, _, packets = fetched.body.partition(b"packfile\n")
        pack = rawpush.demultiplex(packets)[1]
        assert int.from_bytes(pack[8:12]) == len(listing)


@pytest.mark.parametrize("script", ["git repack -adq", "git repack -adq && git prune --expire=now"])
def test_update_hook_that_repacks(git: Git, hosted: Hosted, script: str) -> None:
    """Between the objects' move and the refs' the new pack is held from a repack."""
    if hosted.server.kind == "git" and "prune" in script:
        pytest.skip("C git loses loose objects that have no ref yet")
    hook = hosted.path / "hooks/update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{script}\n")
    hook.chmod(0o755)
    commit = new_commit(git, hosted.path, "held")
    report = rawpush.push(hosted.server.url, hosted.name, [commit.command], commit.pack).report()
    assert report.refs == {"refs/heads/main": "ok"}
    fsck(hosted.path)


def test_reads_during_pushes(git: Git, hosted: Hosted) -> None:
    """ls-remote never sees a ref missing while others push."""
    stop = threading.Event()
    problems: list[str] = []

    def reader() -> None:
        while not stop.is_set():
            listing = git("ls-remote", hosted.url)
            if "refs/heads/main" not in listing or "refs/heads/topic" not in listing:
                problems.append(listing)

    thread = threading.Thread(target=reader)
    thread.start()
    try:
        for n in range(15):
            commit = new_commit(git, hosted.path, f"n{n}")
            rawpush.push(hosted.server.url, hosted.name, [commit.command], commit.pack)
            subprocess.run(["git", "pack-refs", "--all"], cwd=hosted.path, check=True, env=git.environ)
    finally:
        stop.set()
        thread.join()
    assert problems == []
