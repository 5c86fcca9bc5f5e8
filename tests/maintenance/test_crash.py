"""A run that is killed between any two of its changes, on a full disk, or where it may not write."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gitsmart.pack.packjoin import geometric_split
from gitsmart.repo.ownership import sweep_repository
from tests.conftest import Git, leftovers
from tests.maintenance.conftest import PushMany, State, check, loose_of, maintain, make_old, packs_of
from tests.maintenance.test_maintain import has, unreachable

_CHANGES = ("rename", "replace", "unlink", "link", "utime")


def die_at(step: int) -> None:
    """Have this process end as if by SIGKILL in place of its change number `step`."""
    left = step

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def change(*args: object, **named: object) -> object:
            nonlocal left
            left -= 1
            if not left:
                os._exit(9)
            return real(*args, **named)

        return change

    for name in _CHANGES:
        setattr(os, name, counted(getattr(os, name)))


def in_child(path: Path, *, full: bool, step: int) -> int:
    """Maintain in a process that is killed at that step; returns its status, 0 at the end."""
    pid = os.fork()
    if not pid:
        try:
            die_at(step)
            maintain(path, full=full)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("full", [False, True], ids=["join", "full"])
def test_killed_between_any_two_changes(git: Git, pushed: PushMany, tmp_path: Path, full: bool) -> None:
    original = pushed(3, commits=10)
    lost = unreachable(git, original)
    git("multi-pack-index", "write", cwd=original)
    make_old(original, 20)
    before = State(git, original)
    step = 0
    while True:
        step += 1
        path = tmp_path / f"step-{step}"
        shutil.copytree(original, path)
        make_old(path, 20)  # copying makes folders new, not files
        status = in_child(path, full=full, step=step)
        assert status in (0, 9)
        after = State(git, path)
        assert (after.refs, after.objects) == (before.refs, before.objects), f"step {step}"
        subprocess.run(
            ["git", "fsck", "--full", "--strict", "--no-dangling"],
            cwd=path, env=git.environ, check=True, capture_output=True,
        )  # fmt: skip
        for file in path.glob("objects/info/gitsmart/tmp-*"):
            os.utime(file, (0, 0))
        report = maintain(path, full=full)
        assert not report.is_busy, f"step {step}: a dead run locks nobody out"
        assert leftovers(path) == [], f"step {step}"
        assert loose_of(path) == [], f"step {step}"
        assert len(packs_of(path)) == (1 if full else 2), f"step {step}"
        assert not (path / "gc.pid").exists()
        assert has(git, path, lost[0]) != full
        if not step % 8:
            check(git, path, before)
        shutil.rmtree(path)
        if not status:
            break
    assert step > 20


def test_a_servers_start_removes_what_was_left(git: Git, pushed: PushMany) -> None:
    path = pushed(3, commits=10)
    assert in_child(path, full=True, step=12) == 9
    assert leftovers(path)
    assert sweep_repository(path) > 0
    assert [name for name in leftovers(path) if name != "gc.pid.lock"] == []


def test_full_disk(git: Git, pushed: PushMany, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pushed(3, commits=10)
    before = check(git, path)
    names = packs_of(path)
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith((".pack", "tmp_pack_")) or b"PACK" in bytes(data[:4]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    for full in (False, True):
        with pytest.raises(OSError, match="No space left"):
            maintain(path, full=full)
    monkeypatch.undo()
    assert packs_of(path) == names
    check(git, path, before)
    assert maintain(path).packs == 2


def test_a_running_gc_is_left_alone_and_a_dead_one_is_not(git: Git, pushed: PushMany) -> None:
    path = pushed(3, commits=10)
    host = os.uname().nodename
    (path / "gc.pid").write_text(f"{os.getpid()} {host}")
    assert maintain(path).is_busy
    (path / "gc.pid").write_text("1 elsewhere.example")
    assert maintain(path).is_busy
    child = subprocess.Popen(["true"])
    child.wait()
    (path / "gc.pid").write_text(f"{child.pid} {host}")
    (path / "gc.pid.lock").write_text(f"{child.pid} {host}")
    assert not maintain(path).is_busy
    assert not (path / "gc.pid").exists()
    assert not (path / "gc.pid.lock").exists()
    (path / "gc.pid").write_text("1 elsewhere.example")
    os.utime(path / "gc.pid", (0, 0))
    assert not maintain(path).is_busy


def test_git_gc_leaves_our_run_alone(git: Git, pushed: PushMany, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pushed(3, commits=10)
    seen: list[str] = []
    real = geometric_split

    def split(counts: list[int]) -> int:
        result = git.run("gc", cwd=path)
        seen.append(result.stderr)
        assert maintain(path).is_busy, "nor is there a second of ours"
        return real(counts)

    monkeypatch.setattr("gitsmart.repo.maintenance.geometric_split", split)
    assert not maintain(path).is_busy
    assert "gc is already running" in seen[0]


@pytest.mark.skipif(not os.geteuid(), reason="root may write everywhere")
def test_a_read_only_repository(git: Git, pushed: PushMany) -> None:
    path = pushed(1, commits=10)
    (path / "objects").chmod(0o555)
    try:
        with pytest.raises(OSError, match="Permission denied"):
            maintain(path)
    finally:
        (path / "objects").chmod(0o755)
