"""Lists of refs are gzip'd where the client accepts it; nothing else is."""

import subprocess
import zlib
from pathlib import Path

import pytest

from gitsmart.service.channel import Channel
from tests.conftest import Git, MakeRepo
from tests.httpd.conftest import RECEIVE_REQUEST, UPLOAD_REQUEST, Harness, Running, Services

GIT = {"Accept-Encoding": "deflate, gzip, br, zstd"}
LS_REFS = b"0014command=ls-refs\n00010009peel\n0000"


@pytest.fixture
def many(root: Path, make_repo: MakeRepo, git: Git) -> Path:
    """A repository with 2000 refs."""
    path = make_repo(root / "many.git", commits=2)
    oid = git("rev-parse", "main", cwd=path)
    lines = "".join(f"create refs/heads/many/{number:05d} {oid}\n" for number in range(2000))
    git("update-ref", "--stdin", cwd=path, input=lines)
    git("pack-refs", "--all", cwd=path)
    return path


@pytest.mark.parametrize("service", ["git-upload-pack", "git-receive-pack"])
def test_advertisement(harness: Harness, many: Path, service: str) -> None:
    async def test(server: Running) -> None:
        path = f"/many.git/info/refs?service={service}"
        plain = await server.request("GET", path)
        assert plain.header("Content-Encoding") is None
        coded = await server.request("GET", path, GIT)
        assert coded.header("Content-Encoding") == "gzip"
        assert zlib.decompress(coded.body, 31) == plain.body
        assert len(coded.body) < len(plain.body) / 4
        assert coded.complete
        names = [name for name in coded.names if name not in ("Content-Length", "Transfer-Encoding", "Vary")]
        assert [name for name in names if name != "Content-Encoding"] == [
            name for name in plain.names if name not in ("Content-Length", "Transfer-Encoding")
        ]
        small = await server.request("GET", f"/demo.git/info/refs?service={service}", GIT)
        assert small.header("Content-Encoding") is None
        assert small.body.endswith(b"0000")

    harness.run(test)


@pytest.mark.parametrize("coding", ["", "gzip"])
def test_ls_refs(harness: Harness, many: Path, coding: str) -> None:
    async def test(server: Running) -> None:
        fields = {"Content-Type": UPLOAD_REQUEST, "Git-Protocol": "version=2"}
        body = LS_REFS
        if coding:
            fields["Content-Encoding"] = "gzip"
            deflater = zlib.compressobj(wbits=31)
            body = deflater.compress(LS_REFS) + deflater.flush()
        plain = await server.request("POST", "/many.git/git-upload-pack", fields, body)
        coded = await server.request("POST", "/many.git/git-upload-pack", fields | GIT, body)
        assert (plain.header("Content-Encoding"), coded.header("Content-Encoding")) == (None, "gzip")
        assert zlib.decompress(coded.body, 31) == plain.body
        assert plain.body.count(b"refs/heads/many/") == 2000

    harness.run(test)


@pytest.mark.parametrize(
    "value",
    ["", "identity", "deflate, br", "gzip;q=0", "gzip;q=0.000, *", "*", "gzipped", "gzip;x=1", "x-gzip;q=0"],
)
def test_only_where_it_is_accepted(harness: Harness, many: Path, value: str) -> None:
    async def test(server: Running) -> None:
        path = "/many.git/info/refs?service=git-upload-pack"
        reply = await server.request("GET", path, {"Accept-Encoding": value})
        assert reply.header("Content-Encoding") is None
        assert reply.body.endswith(b"0000")

    harness.run(test)


@pytest.mark.parametrize(
    "value", ["gzip", "x-gzip", "GZIP", "br;q=1.0, gzip;q=0.8, *;q=0.1", "deflate,gzip;q=1"]
)
def test_ways_to_accept_it(harness: Harness, many: Path, value: str) -> None:
    async def test(server: Running) -> None:
        path = "/many.git/info/refs?service=git-upload-pack"
        reply = await server.request("GET", path, {"Accept-Encoding": value})
        assert reply.header("Content-Encoding") == "gzip"

    harness.run(test)


def test_it_can_be_switched_off(harness: Harness, many: Path) -> None:
    harness.configure(http_gzip=False)

    async def test(server: Running) -> None:
        reply = await server.request("GET", "/many.git/info/refs?service=git-upload-pack", GIT)
        assert reply.header("Content-Encoding") is None

    harness.run(test)


def test_packs_and_reports_are_not(harness: Harness, services: Services) -> None:
    def big(channel: Channel) -> None:
        while channel.read(65536):
            pass
        channel.write(b"x" * 100_000)

    services.replace(big)

    async def test(server: Running) -> None:
        for path, fields, body in (
            (
                "git-upload-pack",
                {"Content-Type": UPLOAD_REQUEST, "Git-Protocol": "version=2"},
                b"0012command=fetch0000",
            ),
            ("git-upload-pack", {"Content-Type": UPLOAD_REQUEST}, b"0014command=ls-refs\n0000"),
            ("git-upload-pack", {"Content-Type": UPLOAD_REQUEST, "Git-Protocol": "version=2"}, b"0000"),
            ("git-receive-pack", {"Content-Type": RECEIVE_REQUEST}, b"0000"),
        ):
            reply = await server.request("POST", f"/demo.git/{path}", fields | GIT, body)
            assert (reply.status, reply.header("Content-Encoding")) == (200, None)
            assert len(reply.body) == 100_000

    harness.run(test)


def test_an_error_is_plain(harness: Harness, many: Path) -> None:
    (many / "packed-refs").write_text("garbage\n")

    async def test(server: Running) -> None:
        reply = await server.request("GET", "/many.git/info/refs?service=git-upload-pack", GIT)
        assert (reply.status, reply.header("Content-Encoding")) == (500, None)

    harness.run(test)


def test_a_real_client_reads_it(harness: Harness, many: Path, git: Git) -> None:
    import asyncio

    async def test(server: Running) -> None:
        for version in ("0", "1", "2"):
            process = await asyncio.create_subprocess_exec(
                *git.argv(
                    "-c",
                    f"protocol.version={version}",
                    "ls-remote",
                    f"http://127.0.0.1:{server.port}/many.git",
                ),
                env=git.environ,
                stdout=subprocess.PIPE,
            )
            out, _ = await process.communicate()
            assert process.returncode == 0
            assert out.count(b"refs/heads/many/") == 2000

    harness.run(test)
