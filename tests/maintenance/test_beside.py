"""Maintenance while clients clone and push, and while git's own gc runs: nobody loses, nobody fails."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gitsmart.repo.gc_lock import ObjectsGate
from gitsmart.repo.ref_transaction import ReflogIdentity, RefUpdate
from gitsmart.repo.repository import Repository
from tests.conftest import Git, HostFunction, MakeRepo, ServeFunction, commit_file, refs
from tests.maintenance.conftest import PushMany, check, maintain, make_old, packs_of
from tests.maintenance.test_maintain import has, unreachable

IDENTITY = ReflogIdentity("anonymous", "anonymous@127.0.0.1")


def loop(stop: threading.Event, failures: list[str], step: Callable[[], str]) -> threading.Thread:
    def run() -> None:
        while not stop.is_set():
            failed = step()
            if failed:
                failures.append(failed)
                return

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_clones_and_pushes_and_git_gc_meanwhile(git: Git, host: HostFunction, tmp_path: Path) -> None:
    hosted = host("busy.git", commits=20)
    path = hosted.path
    git("config", "gc.pruneExpire", "now", cwd=path)
    stop, failures = threading.Event(), list[str]()
    number = iter(range(1_000_000))

    def clone() -> str:
        result = git.run("clone", "-q", "--bare", hosted.url, tmp_path / f"clone-{next(number)}.git")
        return result.stderr if result.returncode else ""

    def tend() -> str:
        report = subprocess.run(
            [sys.executable, "-m", "gitsmart", "maintain", "--full", path.name, "--root", path.parent],
            capture_output=True, encoding="utf-8",
        )  # fmt: skip
        return (
            ""
            if not report.returncode and not re.search("Traceback|WARNING", report.stderr)
            else report.stderr
        )

    def collect() -> str:
        result = git.run("gc", "-q", "--prune=2.weeks.ago", cwd=path)
        time.sleep(0.3)
        return "" if not result.returncode or "already running" in result.stderr else result.stderr

    work = tmp_path / "work"
    git("clone", "-q", hosted.url, work)
    threads = [loop(stop, failures, step) for step in (clone, tend, collect)]
    try:
        for n in range(15):
            commit_file(git, work, f"file-{n % 3}", f"{n}\n" * 50)
            forced = ("--force",) if n % 5 == 4 else ()
            if forced:
                git("commit", "-q", "--amend", "-m", "anew", cwd=work)
            git(
                "push",
                "-q",
                *forced,
                "origin",
                "HEAD:main",
                f"HEAD:refs/heads/side-{n % 4}",
                "--force",
                cwd=work,
            )
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert refs(path)["refs/heads/main"] == git("rev-parse", "HEAD", cwd=work)
    maintain(path, full=True)
    check(git, path)
    assert len(packs_of(path)) == 1


def test_a_push_under_way_keeps_what_it_counts_on(
    git: Git, pushed: PushMany, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gitsmart.repo.maintenance._GATE_S", 0.2)
    path = pushed(1)
    lost = unreachable(git, path)
    git("config", "gc.pruneExpire", "now", cwd=path)
    make_old(path, 30)
    repo = Repository("pushed.git", path)
    with repo.begin_push() as push:
        tip = lost[2].encode()
        assert push.unconnected([tip]) == {}
        report = maintain(path, full=True)  # waits for a while, and gives up
        assert report.dropped == 0
        assert "under way" in report.note
        update = RefUpdate(b"refs/heads/found", b"0" * 40, tip)
        assert push.commit([update], atomic=False, identity=IDENTITY) == [None]
    assert maintain(path, full=True).dropped == 0
    assert all(has(git, path, oid) for oid in lost)
    check(git, path)


def test_a_push_that_comes_later_sees_what_is_gone(git: Git, pushed: PushMany) -> None:
    path = pushed(1)
    lost = unreachable(git, path)
    git("config", "gc.pruneExpire", "now", cwd=path)
    make_old(path, 30)
    repo = Repository("pushed.git", path)
    assert all(bytes.fromhex(oid) in repo.objects for oid in lost)
    repo.objects.commit(bytes.fromhex(lost[2]))  # in a cache
    assert maintain(path, full=True).dropped == 3
    with repo.begin_push() as push:
        assert list(push.unconnected([lost[2].encode()])) == [lost[2].encode()]


def test_a_ref_that_came_during_the_run_keeps_its_objects(
    git: Git, pushed: PushMany, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pushed(1)
    lost = unreachable(git, path)
    git("config", "gc.pruneExpire", "now", cwd=path)
    make_old(path, 30)
    child = git("commit-tree", "-p", lost[2], "-m", "on it", f"{lost[2]}^{{tree}}", cwd=path)
    (path / "objects" / child[:2] / child[2:]).rename(path / "aside")
    real = ObjectsGate.take

    def take(gate: ObjectsGate, timeout_s: float) -> bool:
        (path / "objects" / child[:2]).mkdir(exist_ok=True)
        (path / "aside").rename(path / "objects" / child[:2] / child[2:])
        git("update-ref", "refs/heads/late", child, cwd=path)
        return real(gate, timeout_s)

    monkeypatch.setattr(ObjectsGate, "take", take)
    report = maintain(path, full=True)
    assert report.dropped == 0
    assert "came to need" in report.note
    check(git, path)


def test_two_at_once(git: Git, pushed: PushMany) -> None:
    path = pushed(12)
    before = check(git, path)
    command = [sys.executable, "-m", "gitsmart", "maintain", path.name, "--root", str(path.parent)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") for _ in range(3)]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert any("now 2" in text for text in said)
    check(git, path, before)


def test_command_line(git: Git, make_repo: MakeRepo, tmp_path: Path, serve: ServeFunction) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a.git", "b.git"):
        make_repo(root / name)

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "gitsmart", "maintain", *arguments, "--root", str(root)]
        return subprocess.run(command, capture_output=True, encoding="utf-8")

    done = run("--all", "--full")
    assert (done.returncode, done.stdout) == (
        0,
        "a.git: 1 packs, now 1; 0 objects dropped\nb.git: 1 packs, now 1; 0 objects dropped\n",
    )
    assert len(re.findall("INFO gitsmart.app maintained repo=[ab].git", done.stderr)) == 2
    assert run("missing").returncode == 1
    assert run().returncode == 2
    assert run("a", "--all").returncode == 2
