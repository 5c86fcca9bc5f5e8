"""Dumb HTTP: which files, with which headers, whole, in part, or not again."""

import calendar
import email.utils
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Git, MakeRepo
from tests.httpd.conftest import Harness, Log, Running

BESIDE = {"Date", "Server", "Transfer-Encoding", "Connection"}
NO_CACHE = ["Expires", "Pragma", "Cache-Control"]


def names(reply_names: list[str]) -> list[str]:
    return [name for name in reply_names if name not in BESIDE]


@pytest.fixture
def repo(root: Path, make_repo: MakeRepo, git: Git) -> Path:
    """A repository with a pack, a loose object and an alternates file."""
    path = make_repo(root / "full.git")
    git("repack", "-adq", cwd=path)
    git("hash-object", "-w", "--stdin", cwd=path, input="loose\n")
    (path / "objects" / "info" / "alternates").write_text("../../../demo.git/objects\n")
    return path


def pack_of(repo: Path) -> Path:
    (pack,) = (repo / "objects" / "pack").glob("*.pack")
    return pack


def loose_of(repo: Path) -> Path:
    (loose,) = (repo / "objects").glob("??/*")
    return loose


def url_of(repo: Path, file: Path) -> str:
    return f"/{repo.name}/{file.relative_to(repo)}"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("file", "content_type"),
    [
        ("loose", "application/x-git-loose-object"),
        ("pack", "application/x-git-packed-objects"),
        ("idx", "application/x-git-packed-objects-toc"),
    ],
)
def test_objects_may_be_cached_for_ever(
    harness: Harness, repo: Path, file: str, content_type: str, method: str
) -> None:
    path = loose_of(repo) if file == "loose" else pack_of(repo).with_suffix(f".{file}")

    async def test(server: Running) -> None:
        reply = await server.request(method, url_of(repo, path))
        assert reply.status == 200
        assert names(reply.names) == [
            "Expires", "Cache-Control", "Content-Length", "Content-Type", "Last-Modified"
        ]  # fmt: skip
        assert reply.header("Cache-Control") == "public, max-age=31536000"
        assert reply.header("Content-Type") == content_type
        assert reply.header("Content-Length") == str(path.stat().st_size)
        modified = email.utils.parsedate_tz(reply.header("Last-Modified") or "")
        assert modified is not None
        assert email.utils.mktime_tz(modified) == int(path.stat().st_mtime)
        dates = [email.utils.parsedate(reply.header(name) or "") for name in ("Date", "Expires")]
        date, expires = (calendar.timegm(value) for value in dates if value is not None)
        assert 31536000 <= expires - date <= 31536002
        assert reply.body == (path.read_bytes() if method == "GET" else b"")

    harness.run(test)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_texts(harness: Harness, repo: Path, git: Git, method: str) -> None:
    lines = git("show-ref", "--dereference", cwd=repo).splitlines()
    refs = "".join(line.replace(" ", "\t") + "\n" for line in lines)
    texts = {
        "HEAD": ("ref: refs/heads/main\n", "text/plain"),
        "info/refs": (refs, "text/plain"),
        "objects/info/packs": (f"P {pack_of(repo).name}\n\n", "text/plain; charset=utf-8"),
        "objects/info/alternates": ("../../../demo.git/objects\n", "text/plain"),
    }

    async def test(server: Running) -> None:
        for path, (text, content_type) in texts.items():
            reply = await server.request(method, f"/full.git/{path}")
            assert reply.status == 200
            assert reply.body == (text.encode() if method == "GET" else b"")
            assert reply.header("Content-Length") == str(len(text.encode()))
            assert reply.header("Content-Type") == content_type
            expected = [*([] if path == "HEAD" else NO_CACHE), "Content-Length", "Content-Type"]
            assert names(reply.names) == expected + ["Last-Modified"] * path.endswith("alternates")

    harness.run(test)


def test_head_unborn_and_detached(harness: Harness, repo: Path, git: Git) -> None:
    async def test(server: Running) -> None:
        assert (await server.request("GET", "/demo.git/HEAD")).body == b""
        oid = git("rev-parse", "HEAD", cwd=repo)
        git("update-ref", "--no-deref", "HEAD", oid, cwd=repo)
        assert (await server.request("GET", "/full.git/HEAD")).body == f"{oid}\n".encode()
        assert (await server.request("GET", "/demo.git/info/refs")).body == b""
        assert (await server.request("GET", "/demo.git/objects/info/packs")).body == b"\n"

    harness.run(test)


def test_hidden_refs_are_not_listed(harness: Harness, repo: Path, git: Git) -> None:
    """git-http-backend lists them: its dumb half knows no hideRefs."""
    git("update-ref", "refs/secret/one", git("rev-parse", "HEAD", cwd=repo), cwd=repo)
    git("config", "transfer.hideRefs", "refs/secret", cwd=repo)

    async def test(server: Running) -> None:
        body = (await server.request("GET", "/full.git/info/refs")).body
        assert b"refs/heads/main" in body
        assert b"secret" not in body

    harness.run(test)


@pytest.mark.parametrize(
    ("value", "start", "end"),
    [
        ("bytes=0-0", 0, 1), ("bytes=10-", 10, None), ("bytes=5-9", 5, 10), ("bytes=-7", -7, None),
        ("bytes=3-99999999", 3, None), ("bytes=-99999999", 0, None), ("bytes = 1 - 2 ", 1, 3),
    ],
)  # fmt: skip
def test_one_range(harness: Harness, repo: Path, value: str, start: int, end: int | None) -> None:
    data = pack_of(repo).read_bytes()

    async def test(server: Running) -> None:
        reply = await server.request("GET", url_of(repo, pack_of(repo)), {"Range": value})
        whole = data[start:end] == data
        assert reply.status == (200 if whole else 206)
        assert reply.body == data[start:end]
        first = start % len(data)
        if not whole:
            assert reply.header("Content-Range") == f"bytes {first}-{first + len(reply.body) - 1}/{len(data)}"
        head = await server.request("HEAD", url_of(repo, pack_of(repo)), {"Range": value})
        assert (head.status, head.header("Content-Length")) == (200, str(len(data)))

    harness.run(test)


@pytest.mark.parametrize(
    "value", ["bytes=0-1,4-5", "bytes=", "bytes=-", "bytes=9-3", "lines=1-2", "bytes=x-", "bytes=1", "1-2"]
)
def test_what_is_no_range_is_ignored(harness: Harness, repo: Path, value: str) -> None:
    async def test(server: Running) -> None:
        reply = await server.request("GET", url_of(repo, pack_of(repo)), {"Range": value})
        assert (reply.status, reply.body) == (200, pack_of(repo).read_bytes())

    harness.run(test)


@pytest.mark.parametrize("value", ["bytes=99999999-", "bytes=-0"])
def test_a_range_behind_the_end(harness: Harness, repo: Path, value: str) -> None:
    async def test(server: Running) -> None:
        reply = await server.request("GET", url_of(repo, pack_of(repo)), {"Range": value})
        assert reply.status == 416
        assert reply.header("Content-Range") == f"bytes */{pack_of(repo).stat().st_size}"
        assert "no-cache" in (reply.header("Cache-Control") or "")

    harness.run(test)


def test_not_modified_and_if_range(harness: Harness, repo: Path) -> None:
    pack = pack_of(repo)
    os.utime(pack, (1_700_000_000, 1_700_000_000.5))
    at, before = "Tue, 14 Nov 2023 22:13:20 GMT", "Tue, 14 Nov 2023 22:13:19 GMT"

    async def test(server: Running) -> None:
        for fields, status in (
            ({"If-Modified-Since": at}, 304),
            ({"If-Modified-Since": "Tuesday, 14-Nov-23 22:13:20 GMT"}, 304),
            ({"If-Modified-Since": before}, 200),
            ({"If-Modified-Since": "yesterday"}, 200),
            ({"If-Modified-Since": at, "If-None-Match": '"x"'}, 200),
            ({"If-None-Match": "*"}, 304),
            ({"Range": "bytes=1-", "If-Range": at}, 206),
            ({"Range": "bytes=1-", "If-Range": before}, 200),
            ({"Range": "bytes=1-", "If-Range": '"etag"'}, 200),
        ):
            for method in ("GET", "HEAD"):
                reply = await server.request(method, url_of(repo, pack), fields)
                expected = 200 if status == 206 and method == "HEAD" else status
                assert (fields, reply.status) == (fields, expected)
                assert reply.header("Last-Modified") == at
                if status == 304:
                    assert (reply.body, reply.header("Content-Length")) == (b"", None)
                    assert reply.header("Cache-Control") == "public, max-age=31536000"

    harness.run(test)


@pytest.mark.parametrize(
    "path",
    [
        "objects/info/http-alternates",
        "objects/pack/pack-" + "0" * 40 + ".pack",
        "objects/pack/pack-" + "0" * 40 + ".rev",
        "objects/pack/pack-" + "0" * 64 + ".idx",
        "objects/pack/pack-" + "A" * 40 + ".idx",
        "objects/pack/pack-..%2f..%2f..%2fconfig.pack",
        "objects/00/" + "0" * 38,
        "objects/00/" + "0" * 62,
        "objects/00/" + "0" * 39,
        "objects/info/../../config",
        "objects/info/%2e%2e/%2e%2e/config",
        "config", "description", "packed-refs", "hooks/pre-receive", "refs/heads/main", "HEAD/", "shallow",
        "objects/info/commit-graph", "objects/info/", "objects/pack/", "ORIG_HEAD", "logs/HEAD",
        "info/exclude",
    ],
)  # fmt: skip
def test_nothing_else_is_served(harness: Harness, repo: Path, path: str) -> None:
    async def test(server: Running) -> None:
        for method in ("GET", "HEAD"):
            assert (await server.request(method, f"/full.git/{path}")).status == 404

    harness.run(test)


def test_only_regular_files(harness: Harness, repo: Path) -> None:
    name = "0" * 40
    os.mkfifo(repo / "objects" / "pack" / f"pack-{name}.pack")
    (repo / "objects" / "pack" / f"pack-{name}.idx").mkdir()

    async def test(server: Running) -> None:
        for suffix in ("pack", "idx"):
            reply = await server.request("GET", f"/full.git/objects/pack/pack-{name}.{suffix}")
            assert reply.status == 404

    harness.run(test)


PATHS = [
    "HEAD", "info/refs", "objects/info/packs", "objects/info/alternates", "objects/00/" + "0" * 38,
    "objects/pack/pack-" + "0" * 40 + ".pack",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_getanyfile_switches_all_of_it_off(harness: Harness, repo: Path, path: str, log: Log) -> None:
    subprocess.run(["git", "-C", str(repo), "config", "http.getanyfile", "false"], check=True)

    async def test(server: Running) -> None:
        reply = await server.request("GET", f"/full.git/{path}")
        assert (reply.status, reply.body) == (403, b"Unsupported service: 'getanyfile'\n")
        smart = await server.request("GET", "/full.git/info/refs?service=git-upload-pack")
        assert smart.status == 200

    harness.run(test)
    assert log.lines()[0]["service"] == "getanyfile"


@pytest.mark.parametrize("path", PATHS)
def test_strangers_learn_nothing(harness: Harness, repo: Path, path: str) -> None:
    harness.configure(access_anonymous="none")

    async def test(server: Running) -> None:
        for name in ("full.git", "nothing.git"):
            assert (await server.request("GET", f"/{name}/{path}")).status == 403

    harness.run(test)


@pytest.mark.parametrize("path", PATHS)
def test_only_get_and_head(harness: Harness, repo: Path, path: str) -> None:
    async def test(server: Running) -> None:
        for method in ("POST", "PUT", "DELETE"):
            reply = await server.request(method, f"/full.git/{path}", body=b"x" * 100)
            assert (reply.status, reply.header("Allow")) == (405, "GET, HEAD")

    harness.run(test)


def test_a_client_that_leaves_frees_the_worker_and_the_file(
    harness: Harness, root: Path, tmp_path: Path
) -> None:
    pack = root / "demo.git" / "objects" / "pack" / f"pack-{'1' * 40}.pack"
    with open(pack, "wb") as file:
        file.truncate(1 << 30)  # sparse
    before = len(os.listdir("/proc/self/fd"))

    async def test(server: Running) -> None:
        client = await server.connect()
        await client.send(b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % str(pack.relative_to(root)).encode())
        status, _ = await client.head()
        assert status == 200
        await client.reader.readexactly(1 << 20)
        client.close()
        await server.idle()
        assert server.site.workers.high_bytes <= 2 << 20

    harness.run(test)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
