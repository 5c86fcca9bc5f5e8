"""Clones by git through the clone cache: of two servers over one directory, many at once, between pushes."""

import random
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Git, MakeRepo, ServeFunction, fsck, refs


@pytest.mark.slow
def test_two_servers_share_what_they_send(
    git: Git, serve: ServeFunction, make_repo: MakeRepo, tmp_path: Path, server_kind: str
) -> None:
    if server_kind == "git":
        pytest.skip("git-http-backend has no cache")
    root = tmp_path / "root"
    path = make_repo(root / "big.git")
    first, second = (serve(root, "--anonymous", "write") for _ in range(2))
    work = tmp_path / "work"
    git("clone", "-q", first.url_of("big.git"), work)
    # large enough to go from the file straight to the socket
    (work / "noise").write_bytes(random.Random(1).randbytes(3_000_000))
    git("add", "noise", cwd=work)
    git("commit", "-qm", "noise", cwd=work)
    git("push", "-q", "origin", "HEAD", cwd=work)

    def clone(server_url: str, name: str, *flags: str) -> Path:
        target = tmp_path / name
        git("clone", "-q", "--mirror", *flags, server_url, target)
        fsck(target)
        return target

    for number, server in enumerate([first, second, first]):
        start = len(server.log)
        assert refs(clone(server.url_of("big.git"), f"clone{number}")) == refs(path)
        assert ('note="clone, cached"' in server.text(start)) == bool(number)
    many = [
        subprocess.Popen(
            git.argv("clone", "-q", "--mirror", server.url_of("big.git"), tmp_path / f"many{n}-{m}")
        )
        for n, server in enumerate([first, second])
        for m in range(4)
    ]
    assert [process.wait(60) for process in many] == [0] * len(many)
    for target in tmp_path.glob("many*"):
        assert refs(target) == refs(path)
    (work / "more").write_text("more\n")
    git("add", "more", cwd=work)
    git("commit", "-qm", "more", cwd=work)
    git("push", "-q", "origin", "HEAD", cwd=work)
    assert refs(clone(second.url_of("big.git"), "pushed")) == refs(path)
    start = len(first.log)
    assert refs(clone(first.url_of("big.git"), "pushed-again")) == refs(path)
    assert 'note="clone, cached"' in first.text(start)
    for flags in (["--depth=1"], ["--filter=blob:none"]):
        for server in (first, second):
            target = tmp_path / f"partial{flags[0]}{server.port}"
            git("clone", "-q", *flags, server.url_of("big.git"), target)
            assert git("rev-parse", "HEAD", cwd=target) == git("rev-parse", "HEAD", cwd=work)
            assert (target / "more").read_text() == "more\n"
