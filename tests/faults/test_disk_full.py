"""A disk that is full: a clear answer, nothing left behind, and all is well when there is space again."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import (
    Git,
    MakeRepo,
    ServeFunction,
    Server,
    commit_file,
    fsck,
    leftovers,
    refs,
    repository_files,
)
from tests.faults import rawpush
from tests.faults.conftest import new_commit

SIZE_MIB = 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, encoding="utf-8")
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def tight(small_disk: Path, serve: ServeFunction, make_repo: MakeRepo) -> Iterator[Server]:
    """A server whose repositories lie on a disk of 12 MiB."""
    make_repo(small_disk / "root" / "sample.git")
    server = serve(small_disk / "root", "--anonymous", "write")
    server.expected_errors = r"ERROR gitsmart\.service\.receive_pack|Traceback"  # the operator may act
    yield server
    server.stop()  # before the disk goes


def fill(disk: Path, leave: int) -> Path:
    """Fill the disk up to `leave` bytes with one file."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(65536))
                file.flush()
        except OSError:
            pass
    size = filler.stat().st_size
    with filler.open("r+b") as file:
        file.truncate(max(size - leave, 0))
    return filler


def test_push_larger_than_the_disk(git: Git, tight: Server, tmp_path: Path) -> None:
    path = tight.root / "sample.git"
    git("clone", "-q", path, "work", cwd=tmp_path)
    work = tmp_path / "work"
    git("remote", "set-url", "origin", tight.url_of("sample.git"), cwd=work)
    before = repository_files(path)
    for _ in range(3):  # leftovers would fill the disk for good
        commit_file(git, work, "noise.bin", random.randbytes(20 << 20))
        message = git.fails("push", "origin", "main", cwd=work)
        git("reset", "-q", "--hard", "origin/main", cwd=work)
        if tight.kind == "git":
            return
        assert "space" in message or "disk" in message or "507" in message, message
        assert str(path) not in message
        assert leftovers(path) == []
        assert repository_files(path) == before
    new = commit_file(git, work, "small.txt", "fits\n")
    git("push", "origin", "main", cwd=work)
    assert refs(path)["refs/heads/main"] == new
    fsck(path)


@pytest.mark.parametrize("leave", [0, 4096, 8192, 16384, 65536])
def test_nearly_full(git: Git, tight: Server, small_disk: Path, leave: int) -> None:
    """Wherever the space runs out, in the pack, its index, the reflog or the ref: the report is the truth."""
    path = tight.root / "sample.git"
    git("config", "core.logAllRefUpdates", "true", cwd=path)
    filler = fill(small_disk, leave)
    before = refs(path)
    commit = new_commit(git, path, "tight", content=random.randbytes(6000))
    response = rawpush.push(tight.url, "sample.git", [commit.command], commit.pack)
    if response.status == 200:
        report = response.report()
        told_ok = report.refs.get("refs/heads/main") == "ok"
        assert told_ok or report.refs or report.unpack or report.fatal
    else:
        assert response.status in {413, 500, 503, 507}
        told_ok = False
    assert tight.kind == "git" or str(path) not in response.body.decode(errors="replace")
    after = refs(path)
    assert after == (before | {"refs/heads/main": commit.oid} if told_ok else before)
    if tight.kind != "git":
        assert leftovers(path) == []
    with rawpush.Connection(tight.url) as connection:  # reading needs no space
        listing = connection.request("GET", "/sample.git/info/refs?service=git-upload-pack")
    assert listing.status == 200
    filler.unlink()
    again = new_commit(git, path, "again")
    report = rawpush.push(tight.url, "sample.git", [again.command], again.pack).report()
    assert report.refs == {"refs/heads/main": "ok"}
    fsck(path)


def test_ref_only_push_on_a_full_disk(git: Git, tight: Server, small_disk: Path) -> None:
    path = tight.root / "sample.git"
    oid = refs(path)["refs/heads/main"]
    filler = fill(small_disk, 0)
    commands = [("0" * 40, oid, f"refs/heads/full/{n}") for n in range(5)]
    response = rawpush.push(tight.url, "sample.git", commands, rawpush.pack_from([]))
    verdicts = response.report().refs if response.status == 200 else {}
    found = refs(path)
    for _, _, name in commands:
        assert (verdicts.get(name) == "ok") == (name in found)
    if tight.kind != "git":
        assert leftovers(path) == []
    filler.unlink()
    assert rawpush.push(
        tight.url, "sample.git", [("0" * 40, oid, "refs/heads/now")], rawpush.pack_from([])
    ).report().refs == {"refs/heads/now": "ok"}
    fsck(path)
