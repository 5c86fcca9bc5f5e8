"""The real git client without smart HTTP (GIT_SMART_HTTP=0): it reads files, and gets the same objects."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import Git, HostFunction, commit_file, fsck, heads_and_tags, refs

DUMB = {"GIT_SMART_HTTP": "0"}


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "loose"])
def test_clone_and_fetch(
    git: Git, host: HostFunction, tmp_path: Path, object_format: str, *, packed: bool
) -> None:
    hosted = host(object_format=object_format)
    if packed:
        git("repack", "-adq", cwd=hosted.path)
    else:
        (pack,) = (hosted.path / "objects" / "pack").glob("*.pack")
        data = pack.read_bytes()
        for file in (hosted.path / "objects" / "pack").iterdir():
            file.unlink()
        unpack = git.argv("unpack-objects", "-q")
        subprocess.run(unpack, cwd=hosted.path, env=git.environ, input=data, check=True)
    start = len(hosted.server.log)
    clone = tmp_path / "clone"
    git("clone", "-q", hosted.url, clone, env=DUMB | {"GIT_DEFAULT_HASH": object_format})
    fsck(clone)
    assert git("rev-parse", "HEAD", cwd=clone) == refs(hosted.path)["refs/heads/main"]
    assert not any("git-upload-pack" in line for line in hosted.server.log[start:])

    # a push makes it newer; the next fetch takes what is new
    work = tmp_path / "work"
    git("clone", "-q", hosted.url, work)
    oid = commit_file(git, work, "new.txt", "new\n")
    git("push", "-q", "origin", "HEAD:main", cwd=work)
    git("fetch", "-q", "--tags", "origin", cwd=clone, env=DUMB)
    assert git("rev-parse", "origin/main", cwd=clone) == oid
    fsck(clone)


def test_clone_through_alternates(git: Git, host: HostFunction, tmp_path: Path) -> None:
    """objects/info/alternates with a relative path leads the client to the other repository."""
    lender, borrower = host("lender.git"), host("borrower.git", empty=True)
    (borrower.path / "objects" / "info").mkdir(exist_ok=True)
    (borrower.path / "objects" / "info" / "alternates").write_text("../../lender.git/objects\n")
    git("update-ref", "refs/heads/main", refs(lender.path)["refs/heads/main"], cwd=borrower.path)
    clone = tmp_path / "clone"
    follows = git.with_config("http.followRedirects=true")
    follows("clone", "-q", borrower.url, clone, env=DUMB)
    fsck(clone)
    assert heads_and_tags(borrower.path)["refs/heads/main"] == git("rev-parse", "HEAD", cwd=clone)


def test_switched_off(git: Git, host: HostFunction, tmp_path: Path) -> None:
    hosted = host()
    git("config", "http.getanyfile", "false", cwd=hosted.path)
    error = git.fails("clone", "-q", hosted.url, tmp_path / "clone", env=DUMB)
    assert "403" in error
