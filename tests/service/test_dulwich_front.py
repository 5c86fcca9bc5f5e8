"""Our services under dulwich's own servers, with the real git client."""

import io
import random
import subprocess
import threading
import wsgiref.simple_server
from collections.abc import Iterator
from pathlib import Path

import pytest
from dulwich.protocol import ReceivableProtocol
from dulwich.repo import Repo
from dulwich.server import BackendRepo, DictBackend, TCPGitServer
from dulwich.web import make_wsgi_chain

from gitsmart.errors import Disconnected
from gitsmart.repo.root import RepositoryRoot
from gitsmart.service.dulwich_front import (
    HANDLERS,
    READ_ONLY_HANDLERS,
    ProtocolChannel,
    RootBackend,
    UploadPack,
    _PackEnd,
)
from gitsmart.wire.pktline import pkt
from tests.service.conftest import Git, Served


def start(server: TCPGitServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"git://127.0.0.1:{server.server_address[1]}/repo.git"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def url(served: Served) -> Iterator[str]:
    backend = RootBackend(RepositoryRoot(served.path.parent))
    yield from start(TCPGitServer(backend, "127.0.0.1", 0, handlers=dict(HANDLERS)))


def git_fails(git: Git, *args: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(["git", *args], cwd=cwd, env=git.environ, capture_output=True, check=False)
    assert done.returncode != 0
    return done.stderr.decode()


@pytest.mark.parametrize("version", [0, 1, 2])
def test_clone_fetch_push_over_one_connection(
    git: Git, served: Served, url: str, tmp_path: Path, version: int
) -> None:
    protocol = ("-c", f"protocol.version={version}")
    clone = tmp_path / "clone"
    git(*protocol, "clone", "-q", url, clone)
    assert git("rev-parse", "HEAD", "origin/topic", "v1", cwd=clone) == git(
        "rev-parse", "main", "topic", "v1", cwd=served.path
    )
    new = served.commit("dir/new.txt", "new\n").decode()
    git(*protocol, "fetch", "-q", cwd=clone)
    assert git("rev-parse", "origin/main", cwd=clone) == new
    git("merge", "-q", "--ff-only", "origin/main", cwd=clone)
    (clone / "pushed.txt").write_bytes(random.Random(1).randbytes(300_000))
    git("add", ".", cwd=clone)
    git("commit", "-qm", "pushed", cwd=clone)
    git(*protocol, "push", "-q", "origin", "HEAD:main", "HEAD:refs/heads/other", cwd=clone)
    assert (
        git("rev-parse", "main", "other", cwd=served.path).split()
        == [git("rev-parse", "HEAD", cwd=clone)] * 2
    )
    git(*protocol, "push", "-q", "origin", ":other", cwd=clone)
    assert "other" not in git("for-each-ref", cwd=served.path)
    git("fsck", "--full", "--strict", cwd=clone)
    git("fsck", "--full", "--strict", cwd=served.path)


def test_shallow_over_one_connection(git: Git, served: Served, url: str, tmp_path: Path) -> None:
    for version in (0, 2):
        clone = tmp_path / f"clone{version}"
        git("-c", f"protocol.version={version}", "clone", "-q", "--depth=2", url, clone)
        assert git("rev-list", "--count", "HEAD", cwd=clone) == "2"
        git("-c", f"protocol.version={version}", "fetch", "-q", "--unshallow", cwd=clone)
        assert git("rev-list", "--count", "HEAD", cwd=clone) == git(
            "rev-list", "--count", "main", cwd=served.path
        )
        git("fsck", "--full", "--strict", cwd=clone)


def test_what_is_not_there_is_told(git: Git, url: str, tmp_path: Path) -> None:
    missing = url.replace("repo.git", "nothing.git")
    assert "remote error: repository not found" in git_fails(git, "clone", missing, tmp_path / "x")


def test_read_only(git: Git, served: Served, tmp_path: Path) -> None:
    backend = RootBackend(RepositoryRoot(served.path.parent))
    for url in start(TCPGitServer(backend, "127.0.0.1", 0, handlers=dict(READ_ONLY_HANDLERS))):
        clone = tmp_path / "clone"
        git("clone", "-q", url, clone)
        git("commit", "-q", "--allow-empty", "-m", "x", cwd=clone)
        assert "remote error: access denied" in git_fails(git, "push", "origin", "HEAD:x", cwd=clone)
        assert "access denied" in git_fails(git, "archive", f"--remote={url}", "HEAD")


def test_a_stock_backend(git: Git, served: Served, tmp_path: Path) -> None:
    with Repo(str(served.path)) as repo:
        repos: dict[str, BackendRepo] = {"/repo.git": repo}
        backend = DictBackend(repos)
        for url in start(TCPGitServer(backend, "127.0.0.1", 0, handlers=dict(HANDLERS))):
            git("clone", "-q", url, tmp_path / "clone")
    assert git("rev-parse", "HEAD", cwd=tmp_path / "clone").encode() == served.oid("main")


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_wsgi(git: Git, served: Served, tmp_path: Path) -> None:
    app = make_wsgi_chain(RootBackend(RepositoryRoot(served.path.parent)), handlers=dict(HANDLERS))
    server = wsgiref.simple_server.make_server("127.0.0.1", 0, app, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        clone = tmp_path / "clone"
        git("clone", "-q", f"http://127.0.0.1:{server.server_port}/repo.git", clone)
        git("commit", "-q", "--allow-empty", "-m", "x", cwd=clone)
        git("push", "-q", "origin", "HEAD:main", cwd=clone)
        assert git("rev-parse", "HEAD", cwd=clone).encode() == served.oid("main")
        git("push", "-q", "origin", "HEAD~2:refs/heads/older", cwd=clone)
        git("fetch", "-q", cwd=clone)
        assert git("rev-parse", "origin/older", cwd=clone).encode() == served.oid("main~2")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    git("fsck", "--full", "--strict", cwd=served.path)


def test_errors_end_in_err_and_a_client_that_left_in_silence(served: Served) -> None:
    sent = bytearray()

    def write(data: bytes) -> int:
        sent.extend(data)
        return len(data)

    backend = RootBackend(RepositoryRoot(served.path.parent))
    proto = ReceivableProtocol(io.BytesIO(pkt(b"hello")).read, write)
    UploadPack(backend, [b"/repo.git"], proto, stateless_rpc=True).handle()
    assert bytes(sent[4:]).startswith(b"ERR git upload-pack: protocol error")

    def reset(n: int) -> bytes:
        raise ConnectionResetError

    UploadPack(backend, [b"/repo.git"], ReceivableProtocol(reset, write), stateless_rpc=True).handle()


def test_keepalives_go_out_with_checks() -> None:
    sent: list[bytes] = []

    def write(data: bytes) -> int:
        sent.append(data)
        return len(data)

    channel = ProtocolChannel(ReceivableProtocol(io.BytesIO().read, write))
    channel.keepalive(b"0005\x01", 0)
    channel.check()
    assert sent == [b"0005\x01"]
    channel.keepalive(b"", 0)
    channel.check()
    assert len(sent) == 1

    def broken(data: bytes) -> int:
        raise BrokenPipeError

    channel = ProtocolChannel(ReceivableProtocol(io.BytesIO().read, broken))
    channel.write(b"x")
    with pytest.raises(Disconnected):
        channel.flush()


@pytest.mark.parametrize("delta", ["--delta-base-offset", "--no-reuse-delta"])
def test_the_end_of_a_pack_is_found_however_it_is_cut(served: Served, delta: str) -> None:
    revs = served.git("rev-list", "--objects", "main", cwd=served.path).encode()
    pack = served.git.run("pack-objects", "--stdout", "--window=50", delta, cwd=served.path, data=revs)
    assert _PackEnd(20).feed(pack)
    end = _PackEnd(20)
    assert [end.feed(pack[i : i + 1]) for i in range(len(pack))] == [False] * (len(pack) - 1) + [True]
    for seed in range(5):
        rng = random.Random(seed)
        end = _PackEnd(20)
        pos = 0
        while pos < len(pack):
            size = rng.randrange(1, 400)
            assert end.feed(pack[pos : pos + size]) is (pos + size >= len(pack))
            pos += size
