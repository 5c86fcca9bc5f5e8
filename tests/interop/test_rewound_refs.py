"""A push rewinds or deletes a branch between a client's listing of refs and its fetch, served by others."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import Git, MakeRepo, ServeFunction, Server, commit_file, fsck, refs
from tests.faults import rawpush

TOPIC = "refs/heads/topic"


def ask(server: Server, *lines: str, command: str = "fetch") -> rawpush.Response:
    """Send a v2 request over a connection of its own."""
    head = [f"command={command}", "object-format=sha1"]
    body = b"".join(map(rawpush.pkt, head)) + b"0001" + b"".join(map(rawpush.pkt, lines)) + b"0000"
    with rawpush.Connection(server.url) as connection:
        headers = rawpush.post_headers("git-upload-pack", 2)
        return connection.request("POST", "/app.git/git-upload-pack", headers, body)


def is_served(server: Server, *lines: str) -> bool:
    body = ask(server, *lines, "no-progress", "done").body
    assert b"packfile\n" in body or re.search(rb"^.{4}ERR (upload-pack: not our ref|unknown ref) ", body), (
        body
    )
    return b"packfile\n" in body


def set_back(path: Path, seconds: int) -> None:
    """Make what was noted that much older."""
    file = path / "info" / "gitsmart" / "gone"
    lines = []
    for line in filter(None, file.read_bytes().split(b"\n")):
        when, rest = line[9:].split(b" ", 1)
        text = b"%d %b" % (int(when) - seconds * 1000, rest)
        lines.append(b"%08x %b\n" % (zlib.crc32(text), text))
    assert lines
    file.write_bytes(b"".join(lines))


@pytest.fixture(params=[("1", 2), ("2", 1)], ids=["two servers", "several processes"])
def servers(
    request: pytest.FixtureRequest,
    serve: ServeFunction,
    make_repo: MakeRepo,
    tmp_path: Path,
    server_kind: str,
) -> Sequence[Server]:
    """The one that clients list at and push to, and the one that they fetch from."""
    if server_kind == "git":
        pytest.skip("with v2, git serves any object that exists")
    workers, number = request.param
    make_repo(tmp_path / "root" / "app.git", commits=12)
    started = [serve(tmp_path / "root", "--anonymous", "write", "--workers", workers) for _ in range(number)]
    return started[0], started[-1]


def test_fetch_of_what_was_rewound_or_deleted_meanwhile(
    servers: Sequence[Server], serve: ServeFunction, git: Git, tmp_path: Path
) -> None:
    first, second = servers
    path, work = first.root / "app.git", tmp_path / "work"
    git("clone", "-q", first.url_of("app.git"), work)
    base = git("rev-parse", "HEAD", cwd=work)
    git("checkout", "-q", "-b", "mine", cwd=work)
    old = commit_file(git, work, "f", "old")
    git("push", "-q", "origin", f"HEAD:{TOPIC}", "HEAD:refs/heads/mine", cwd=work)
    assert not (path / "info" / "gitsmart").exists()  # it only moved forward
    listed = ask(first, command="ls-refs").body
    assert f"{old} {TOPIC}".encode() in listed
    git("reset", "-q", "--hard", base, cwd=work)
    new = commit_file(git, work, "f", "new")
    git("push", "-q", "--force", "origin", f"HEAD:{TOPIC}", ":refs/heads/mine", cwd=work)
    assert refs(path)[TOPIC] == new
    # each over a connection of its own: with several processes, they come to any of them
    for _ in range(6):
        assert is_served(second, f"want {old}")
    assert is_served(second, f"want {old}", f"have {base}")
    assert is_served(second, "want-ref refs/heads/mine")
    assert is_served(second, f"want-ref {TOPIC}")
    clone = tmp_path / "clone"
    git("init", "-q", clone)
    git("fetch", "-q", second.url_of("app.git"), old, cwd=clone)
    assert git("show", f"{old}:f", cwd=clone) == "old"
    # what was never shown is here as well
    never = git("commit-tree", "-m", "never shown", f"{old}^{{tree}}", cwd=path)
    assert not is_served(second, f"want {never}")
    # some process of theirs listed it, and has its own memory: the rest is asked of one that never did
    third = serve(first.root)
    set_back(path, 200)
    assert is_served(third, f"want {old}")
    assert is_served(third, "want-ref refs/heads/mine")
    assert not is_served(third, f"want {never}")
    set_back(path, 101)
    assert not is_served(third, f"want {old}")
    assert not is_served(third, "want-ref refs/heads/mine")
    assert is_served(third, f"want {new}")
    fsck(path)
