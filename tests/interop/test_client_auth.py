"""Who may read and write: Basic credentials with the real git client."""

import base64
import hashlib
import random
from pathlib import Path

import pytest

from tests.conftest import Git, MakeRepo, ServeFunction, Server, commit_file, fsck, refs


def sha_line(user: str, password: str) -> str:
    digest = base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()
    return f"{user}:{{SHA}}{digest}\n"


@pytest.fixture
def htpasswd(tmp_path: Path) -> Path:
    path = tmp_path / "htpasswd"
    path.write_text(sha_line("alice", "s3cret") + sha_line("bob", "p@ss:word"))
    return path


@pytest.fixture
def root(make_repo: MakeRepo, tmp_path: Path) -> Path:
    make_repo(tmp_path / "root" / "sample.git")
    return tmp_path / "root"


@pytest.fixture
def readable(serve: ServeFunction, root: Path, htpasswd: Path) -> Server:
    """Anonymous users read, users of the file write."""
    return serve(root, "--anonymous", "read", "--htpasswd", str(htpasswd))


@pytest.fixture
def private(serve: ServeFunction, root: Path, htpasswd: Path) -> Server:
    """Nobody without a name."""
    return serve(root, "--anonymous", "none", "--htpasswd", str(htpasswd))


def test_anonymous_reads_and_cannot_push(client: Git, readable: Server, tmp_path: Path) -> None:
    client("clone", readable.url_of("sample.git"), "work", cwd=tmp_path)
    before = refs(readable.root / "sample.git")
    commit_file(client, tmp_path / "work", "new.txt", "new\n")
    message = client.fails("push", "origin", "main", cwd=tmp_path / "work")
    assert "could not read Username" in message  # it was asked for one
    assert refs(readable.root / "sample.git") == before


def test_credentials_in_the_url(client: Git, readable: Server, tmp_path: Path) -> None:
    client("clone", readable.url_of("sample.git", user="alice:s3cret"), "work", cwd=tmp_path)
    new = commit_file(client, tmp_path / "work", "new.txt", "new\n")
    client("push", "origin", "main", cwd=tmp_path / "work")
    assert refs(readable.root / "sample.git")["refs/heads/main"] == new
    fsck(readable.root / "sample.git")


def test_password_with_a_colon(client: Git, private: Server, tmp_path: Path) -> None:
    client("clone", private.url_of("sample.git", user="bob:p%40ss%3Aword"), "work", cwd=tmp_path)
    fsck(tmp_path / "work")


def test_chunked_push_with_credentials(client: Git, private: Server, tmp_path: Path) -> None:
    """The challenge comes at info/refs, never first on the big POST, which git could not send again."""
    client("clone", private.url_of("sample.git", user="alice:s3cret"), "work", cwd=tmp_path)
    new = commit_file(client, tmp_path / "work", "noise.bin", random.Random(1).randbytes(3_000_000))
    client("push", "origin", "main", cwd=tmp_path / "work")
    assert refs(private.root / "sample.git")["refs/heads/main"] == new
    fsck(private.root / "sample.git")


def test_private_needs_a_name(client: Git, private: Server, tmp_path: Path) -> None:
    message = client.fails("clone", private.url_of("sample.git"), "work", cwd=tmp_path)
    assert "could not read Username" in message


@pytest.mark.parametrize("user", ["alice:wrong", "nobody:s3cret", "alice:", "bob:s3cret"])
def test_wrong_credentials(client: Git, private: Server, tmp_path: Path, user: str) -> None:
    message = client.fails("clone", private.url_of("sample.git", user=user), "work", cwd=tmp_path)
    assert "Authentication failed" in message


def test_file_is_read_again_when_it_changes(
    client: Git, private: Server, htpasswd: Path, tmp_path: Path, server_kind: str
) -> None:
    if server_kind == "git":
        pytest.skip("the runner reads the file once")
    url = private.url_of("sample.git", user="carol:new")
    client.fails("ls-remote", url)
    htpasswd.write_text(sha_line("carol", "new"))
    client("ls-remote", url)
    client.fails("ls-remote", private.url_of("sample.git", user="alice:s3cret"))


def test_secrets_are_not_logged(client: Git, private: Server, tmp_path: Path, server_kind: str) -> None:
    client("ls-remote", private.url_of("sample.git", user="alice:s3cret"))
    client.fails("ls-remote", private.url_of("sample.git", user="alice:wr0ng"))
    token = base64.b64encode(b"alice:s3cret").decode()
    assert not [line for line in private.log if "s3cret" in line or "wr0ng" in line or token in line]
    if server_kind == "gitsmart":
        private.wait_for_line("alice")


def test_reflog_names_the_pusher(client: Git, private: Server, tmp_path: Path) -> None:
    path = private.root / "sample.git"
    client("config", "core.logAllRefUpdates", "always", cwd=path)
    client("clone", private.url_of("sample.git", user="alice:s3cret"), "work", cwd=tmp_path)
    new = commit_file(client, tmp_path / "work", "new.txt", "new\n")
    client("push", "origin", "main", cwd=tmp_path / "work")
    line = (path / "logs/refs/heads/main").read_text().splitlines()[-1]
    assert f" {new} alice <" in line
