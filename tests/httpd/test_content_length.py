"""Responses of known size say so: packs out of the clone cache, whole packs, lists of refs."""

import random
import subprocess
from pathlib import Path

import pytest

from gitsmart.errors import PackError
from gitsmart.httpd import smart
from gitsmart.pack.packcache import PackStream
from tests.httpd.conftest import UPLOAD_REQUEST, Harness, Log, Reply, Running
from tests.service.conftest import read_answer

REFS = 2000
FORMS = [
    (0, "HTTP/1.1", b"side-band-64k"),
    (0, "HTTP/1.1", b"side-band-64k no-progress"),
    (0, "HTTP/1.1", b"side-band"),
    (0, "HTTP/1.1", b""),
    (1, "HTTP/1.1", b"side-band-64k"),
    (2, "HTTP/1.1", b""),
    (2, "HTTP/1.1", b"no-progress"),
    (0, "HTTP/1.0", b"side-band-64k"),
    (0, "HTTP/1.0", b""),
    (2, "HTTP/1.0", b""),
]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pack of 1.2 MB, a commit outside of it, and refs."""
    path = tmp_path_factory.mktemp("big") / "big.git"
    noise = random.Random(3).randbytes(1_200_000)

    def run(*args: str, data: bytes = b"") -> str:
        done = subprocess.run(["git", "-C", str(path), *args], input=data, capture_output=True, check=True)
        return done.stdout.decode().strip()

    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True)
    who = b"committer A <a@example.com> 1700000000 +0000\n"
    commit = b"commit refs/heads/main\n" + who + b"data 2\nm\nM 644 inline noise\ndata %d\n%b\n"
    run("fast-import", "--quiet", data=commit % (len(noise), noise))
    oid = run("rev-parse", "main")
    run(
        "update-ref",
        "--stdin",
        data=b"".join(b"create refs/heads/b%d %b\n" % (n, oid.encode()) for n in range(REFS)),
    )
    run("pack-refs", "--all")
    run("repack", "-adq")
    return path


@pytest.fixture
def oid(big: Path, root: Path) -> bytes:
    subprocess.run(["cp", "-r", str(big), str(root / "big.git")], check=True)
    return subprocess.check_output(["git", "-C", str(big), "rev-parse", "main"]).strip()


def pkts(*lines: bytes) -> bytes:
    return b"".join(b"%04x%b\n" % (len(line) + 5, line) for line in lines)


def body_of(version: int, oid: bytes, *capabilities: bytes) -> bytes:
    if version == 2:
        return pkts(b"command=fetch") + b"0001" + pkts(*capabilities, b"want " + oid, b"done") + b"0000"
    return pkts(b" ".join([b"want " + oid, *capabilities])) + b"0000" + pkts(b"done")


async def ask(
    server: Running, body: bytes, version: int = 2, http: str = "HTTP/1.1", *, again: bool = False
) -> Reply:
    """Fetch; `again`: twice on one connection."""
    client = await server.connect()
    for _ in range(1 + again):
        head = f"POST /big.git/git-upload-pack {http}\r\nHost: x\r\nContent-Type: {UPLOAD_REQUEST}\r\n"
        head += f"Git-Protocol: version={version}\r\nContent-Length: {len(body)}\r\n"
        head += "Connection: keep-alive\r\n" if http == "HTTP/1.0" else ""
        await client.send(head.encode() + b"\r\n" + body)
        reply = await client.reply()
    client.close()
    return reply


@pytest.mark.parametrize(("version", "http", "words"), FORMS)
def test_packs_of_known_size(
    harness: Harness, oid: bytes, version: int, http: str, words: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smart, "SHORT_OBJECTS", 0)  # where there is a pool, the first one is made there
    body = body_of(version, oid, b"ofs-delta", *words.split())

    async def test(server: Running) -> None:
        packs = set()
        for turn in range(3):  # a whole pack, out of the cache, and twice on one connection
            reply = await ask(server, body, version, http, again=turn == 2)
            assert reply.complete
            assert reply.header("Content-Length") == str(len(reply.body))
            assert reply.header("Transfer-Encoding") is None
            if version == 2 or words:
                answer = read_answer(reply.body, is_banded_from=1)  # behind packfile, or NAK
                assert answer.is_finished
                assert (b"Total 3 (" in answer.progress) == (b"no-progress" not in words)
                packs.add(answer.pack)
            else:
                packs.add(reply.body[8:])
        (path,) = (harness.root / "big.git/objects/pack").glob("*.pack")
        assert packs == {path.read_bytes()}

    harness.run(test)


@pytest.mark.parametrize(
    "error", [PackError("broken"), OSError("no disk")], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("after", [0, 70_000, 1_200_000])
def test_a_failure_in_the_middle_is_no_end(
    harness: Harness,
    oid: bytes,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    after: int,
) -> None:
    body = body_of(2, oid, b"ofs-delta")
    read = PackStream.read

    def failing(self: PackStream, n: int, timeout_s: float) -> memoryview | None:
        if self.at >= after:
            raise error
        return read(self, min(n, max(1, after - self.at)), timeout_s)

    async def test(server: Running) -> None:
        whole = await ask(server, body)
        monkeypatch.setattr(PackStream, "read", failing)
        for http in ("HTTP/1.1", "HTTP/1.0"):
            reply = await ask(server, body, 2, http)
            told = b"possible repository corruption" in reply.body
            if reply.complete:  # it came before anything was sent
                assert (after, told) == (0, True)
                assert b"\x03upload-pack" in reply.body
            else:
                assert reply.header("Content-Length") == str(len(whole.body))
                assert len(reply.body) < len(whole.body)
                # told where it doesn't reach the end
                assert told == (after < 1_200_000)

    harness.run(test)
    assert log.take_errors()


def test_lists_of_refs(harness: Harness, oid: bytes) -> None:
    path = "/big.git/info/refs?service="

    async def test(server: Running) -> None:
        for service, protocol in (("upload", "0"), ("upload", "1"), ("receive", "0"), ("upload", "2")):
            asked = {"Git-Protocol": f"version={protocol}"}
            reply = await server.request("GET", f"{path}git-{service}-pack", asked)
            assert reply.header("Content-Length") == str(len(reply.body))
            assert (len(reply.body) > 80_000) == (protocol != "2")
            head = await server.request("HEAD", f"{path}git-{service}-pack", asked)
            assert head.header("Content-Length") == reply.header("Content-Length")
        body = pkts(b"command=ls-refs") + b"0000"
        reply = await ask(server, body)
        assert reply.header("Content-Length") == str(len(reply.body))
        assert reply.body.count(b"refs/heads/b") == REFS

    harness.run(test)
