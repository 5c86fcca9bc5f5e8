"""Locks that somebody else left: waited for briefly, then reported; and never taken away."""

import threading
import time
from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, refs
from tests.faults import rawpush
from tests.faults.conftest import NewCommit, new_commit
from tests.faults.rawpush import ZERO

LONGEST_WAIT_S = 12  # git waits 100 ms for a ref's lock and 1 s for packed-refs'


def push(hosted: Hosted, *commands: tuple[str, str, str], pack: bytes = b"") -> dict[str, str]:
    start = time.monotonic()
    response = rawpush.push(hosted.server.url, hosted.name, commands, pack)
    assert response.status == 200
    assert time.monotonic() - start < LONGEST_WAIT_S
    if hosted.server.kind != "git":  # which shows its paths
        assert str(hosted.server.root) not in response.body.decode(errors="replace")
    return response.report().refs


def test_lock_of_a_ref(git: Git, hosted: Hosted, fresh: NewCommit) -> None:
    lock = hosted.path / "refs/heads/main.lock"
    lock.touch()
    verdicts = push(hosted, fresh.command, (ZERO, fresh.oid, "refs/heads/other-ref"), pack=fresh.pack)
    assert verdicts["refs/heads/main"] != "ok"
    assert verdicts["refs/heads/other-ref"] == "ok"
    assert lock.exists()
    assert refs(hosted.path)["refs/heads/main"] == fresh.old
    lock.unlink()
    assert push(hosted, fresh.command, pack=fresh.pack) == {"refs/heads/main": "ok"}


def test_lock_of_packed_refs(git: Git, hosted: Hosted) -> None:
    lock = hosted.path / "packed-refs.lock"
    lock.touch()
    topic = refs(hosted.path)["refs/heads/topic"]
    command = (topic, ZERO, "refs/heads/topic")
    assert push(hosted, command)["refs/heads/topic"] != "ok"
    assert refs(hosted.path)["refs/heads/topic"] == topic
    lock.unlink()
    assert push(hosted, command) == {"refs/heads/topic": "ok"}
    assert "refs/heads/topic" not in refs(hosted.path)


def test_atomic_push_with_one_locked_ref(git: Git, hosted: Hosted, fresh: NewCommit) -> None:
    lock = hosted.path / "refs/heads/main.lock"
    lock.touch()
    before = refs(hosted.path)
    response = rawpush.push(
        hosted.server.url,
        hosted.name,
        [(ZERO, fresh.oid, "refs/heads/one"), fresh.command, (ZERO, fresh.oid, "refs/heads/two")],
        fresh.pack,
        capabilities=rawpush.CAPABILITIES + " atomic",
    )
    assert "ok" not in response.report().refs.values()
    assert refs(hosted.path) == before
    lock.unlink()


def test_lock_that_is_let_go_soon(git: Git, hosted: Hosted, fresh: NewCommit) -> None:
    """A lock held for a moment, as by a git process at work, fails nobody's push."""
    lock = hosted.path / "refs/heads/main.lock"
    lock.touch()
    timer = threading.Timer(0.05, lock.unlink)
    timer.start()
    try:
        assert push(hosted, fresh.command, pack=fresh.pack) == {"refs/heads/main": "ok"}
    finally:
        timer.join()


@pytest.mark.parametrize("name", ["refs/heads/topic", "refs/heads/gone", "refs/heads/deep/er/branch"])
def test_empty_folder_in_the_place_of_a_ref(git: Git, hosted: Hosted, name: str) -> None:
    """Empty folders, as deletions leave them, block no ref."""
    (hosted.path / name / "left" / "over").mkdir(parents=True)
    commit = new_commit(git, hosted.path, "fresh")
    old = refs(hosted.path).get(name, ZERO)
    assert push(hosted, (old, commit.oid, name), pack=commit.pack) == {name: "ok"}
    assert refs(hosted.path)[name] == commit.oid


def test_stale_old_oid(git: Git, hosted: Hosted, fresh: NewCommit, tmp_path: Path) -> None:
    """The lost race in its plainest form: what the client believes is there has been replaced."""
    wrong = git("rev-parse", "main~2", cwd=hosted.path)
    before = refs(hosted.path)
    assert push(hosted, (wrong, fresh.oid, "refs/heads/main"), pack=fresh.pack)["refs/heads/main"] != "ok"
    assert push(hosted, (ZERO, fresh.oid, "refs/heads/main"), pack=fresh.pack)["refs/heads/main"] != "ok"
    assert push(hosted, (wrong, ZERO, "refs/heads/topic"))["refs/heads/topic"] != "ok"
    assert push(hosted, (wrong, fresh.oid, "refs/heads/nosuch"), pack=fresh.pack)["refs/heads/nosuch"] != "ok"
    assert refs(hosted.path) == before
