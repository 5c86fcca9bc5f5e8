"""The git routes: what is answered, with which headers, when, and what a stream that goes wrong looks
like.
"""

import asyncio
import gzip
import socket
import struct
import subprocess
import threading
import time
import zlib
from typing import Any

import pytest
from tornado.httpserver import HTTPServer as TornadoServer

from gitsmart.errors import Disconnected, ProtocolError
from gitsmart.httpd.smart import requested_version
from gitsmart.service.channel import Channel
from gitsmart.service.options import ServiceReport
from tests.httpd.conftest import RECEIVE_REQUEST, UPLOAD_REQUEST, Harness, Log, Running, Services

NO_CACHE = ["Expires", "Pragma", "Cache-Control", "Content-Type"]
ALLOWED_BESIDE = {"Date", "Server", "Content-Length", "Transfer-Encoding", "Connection"}


def echo(channel: Channel) -> None:
    while data := channel.read(65536):
        channel.write(data)


def hello(channel: Channel) -> ServiceReport:
    while channel.read(65536):
        pass
    channel.write(b"hello")
    return ServiceReport(objects=3, refs=2, note="a note")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("service", ["git-upload-pack", "git-receive-pack"])
def test_advertisement_has_the_headers_of_git_http_backend(
    harness: Harness, service: str, method: str
) -> None:
    async def test(server: Running) -> None:
        reply = await server.request(method, f"/demo.git/info/refs?service={service}")
        assert reply.status == 200
        assert [name for name in reply.names if name not in ALLOWED_BESIDE] == NO_CACHE
        assert reply.header("Expires") == "Fri, 01 Jan 1980 00:00:00 GMT"
        assert reply.header("Pragma") == "no-cache"
        assert reply.header("Cache-Control") == "no-cache, max-age=0, must-revalidate"
        assert reply.header("Content-Type") == f"application/x-{service}-advertisement"
        assert reply.body[4:].startswith(f"# service={service}\n".encode()) or method == "HEAD"

    harness.run(test)


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("git-upload-pack", UPLOAD_REQUEST), ("git-receive-pack", RECEIVE_REQUEST)],
)
def test_result_has_the_headers_of_git_http_backend(
    harness: Harness, services: Services, path: str, content_type: str
) -> None:
    services.replace(hello)

    async def test(server: Running) -> None:
        reply = await server.request("POST", f"/demo.git/{path}", {"Content-Type": content_type}, b"0000")
        assert (reply.status, reply.body) == (200, b"hello")
        assert [name for name in reply.names if name not in ALLOWED_BESIDE] == NO_CACHE
        assert reply.header("Content-Type") == f"application/x-{path}-result"

    harness.run(test)


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("git-upload-pack", UPLOAD_REQUEST), ("git-receive-pack", RECEIVE_REQUEST)],
)
@pytest.mark.parametrize("protocol", ["", "version=2"])
def test_probe_is_answered_with_nothing(
    harness: Harness, path: str, content_type: str, protocol: str
) -> None:
    async def test(server: Running) -> None:
        headers = {"Content-Type": content_type, **({"Git-Protocol": protocol} if protocol else {})}
        reply = await server.request("POST", f"/demo.git/{path}", headers, b"0000")
        assert (reply.status, reply.body) == (200, b"")
        assert reply.header("Content-Type") == f"application/x-{path}-result"

    harness.run(test)


@pytest.mark.parametrize(
    "path",
    [
        "/demo.git", "/demo", "/group/deep/nested.git", "/group/deep/nested", "/gr%C3%BCn.git",
        "/group%2Fdeep/nested",
        "/d%65mo",
    ],
)  # fmt: skip
def test_repository_is_found_below_any_path(harness: Harness, path: str) -> None:
    async def test(server: Running) -> None:
        reply = await server.request("GET", f"{path}/info/refs?service=git-upload-pack")
        assert reply.status == 200

    harness.run(test)


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/group", "/../demo.git", "/demo.git/../demo.git", "/%2e%2e/root/demo.git", "/d%2565mo",
        "/gr%FCn.git", "/demo%00.git", "/demo.git/objects", "/demo%5c.git", "/-/healthz",
    ],
)  # fmt: skip
def test_what_is_no_repository_is_not_found(harness: Harness, path: str) -> None:
    async def test(server: Running) -> None:
        for request in (
            server.request("GET", f"{path}/info/refs?service=git-upload-pack"),
            server.request("POST", f"{path}/git-receive-pack", {"Content-Type": RECEIVE_REQUEST}, b"0000"),
        ):
            reply = await request
            assert (reply.status, reply.body) == (404, b"repository not found\n")
            assert reply.header("Content-Type") == "text/plain; charset=utf-8"

    harness.run(test)


def test_repositories_may_come_and_go(harness: Harness) -> None:
    async def test(server: Running) -> None:
        (server.root / "demo.git").rename(server.root / "moved.git")
        assert (await server.request("GET", "/demo.git/info/refs?service=git-upload-pack")).status == 404
        assert (await server.request("GET", "/moved.git/info/refs?service=git-upload-pack")).status == 200

    harness.run(test)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/demo.git/info/refs", "GET, HEAD"),
        ("PUT", "/demo.git/info/refs", "GET, HEAD"),
        ("GET", "/demo.git/git-upload-pack", "POST"),
        ("HEAD", "/demo.git/git-receive-pack", "POST"),
        ("PROPFIND", "/demo.git/git-receive-pack", "POST"),
        ("OPTIONS", "/demo.git/git-receive-pack", "POST"),
        ("DELETE", "/-/healthz", "GET, HEAD"),
    ],
)
def test_other_methods_are_told_which_ones_there_are(
    harness: Harness, method: str, path: str, allow: str
) -> None:
    async def test(server: Running) -> None:
        reply = await server.request(method, path)
        assert (reply.status, reply.header("Allow")) == (405, allow)

    harness.run(test)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("?service=", ""),
        ("?service=git-upload-archive", "git-upload-archive"),
        ("?service=upload-pack", "upload-pack"),
        ("?service=git-upload-pack&service=x", "x"),
    ],
)
def test_unknown_services_are_off(harness: Harness, query: str, named: str) -> None:
    async def test(server: Running) -> None:
        reply = await server.request("GET", f"/demo.git/info/refs{query}")
        assert (reply.status, reply.body) == (403, f"Unsupported service: '{named}'\n".encode())

    harness.run(test)


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", UPLOAD_REQUEST + "; charset=utf-8", RECEIVE_REQUEST, UPLOAD_REQUEST.upper()],
)
def test_other_content_types_are_refused(harness: Harness, content_type: str | None) -> None:
    async def test(server: Running) -> None:
        headers = {} if content_type is None else {"Content-Type": content_type}
        reply = await server.request("POST", "/demo.git/git-upload-pack", headers, b"0000")
        assert reply.status == 415
        expected = f"Expected POST with Content-Type '{UPLOAD_REQUEST}', "
        expected += f"but received '{content_type or ''}' instead.\n"
        assert reply.body == expected.encode()

    harness.run(test)


@pytest.mark.parametrize("setting", ["http.uploadpack=false", "http.receivepack=false"])
def test_service_that_is_off(harness: Harness, setting: str) -> None:
    name, _, value = setting.partition("=")
    subprocess.run(["git", "-C", str(harness.root / "demo.git"), "config", name, value], check=True)
    service = "git-upload-pack" if "upload" in name else "git-receive-pack"
    other = "git-receive-pack" if "upload" in name else "git-upload-pack"

    async def test(server: Running) -> None:
        assert (await server.request("GET", f"/demo.git/info/refs?service={service}")).status == 403
        assert (await server.request("GET", f"/demo.git/info/refs?service={other}")).status == 200

    harness.run(test)


@pytest.mark.parametrize(
    ("fields", "service", "version"),
    [
        ([], "git-upload-pack", 0),
        (["version=1"], "git-upload-pack", 1),
        (["version=2"], "git-upload-pack", 2),
        (["version=2:version=1"], "git-upload-pack", 2),
        (["version=1:version=2:key=value:flag"], "git-upload-pack", 2),
        (["version=3"], "git-upload-pack", 0),
        (["version=3:version=1"], "git-upload-pack", 1),
        (["version=02", "version=", "2", "Version=2", "version=-1"], "git-upload-pack", 0),
        (["version=1", "version=2"], "git-upload-pack", 2),
        (["x" * 9000], "git-upload-pack", 0),
        (["version=1"], "git-receive-pack", 1),
        (["version=2"], "git-receive-pack", 0),
    ],
)
def test_version_of_the_protocol(fields: list[str], service: str, version: int) -> None:
    assert requested_version(fields, service) == version


def test_services_get_version_actor_and_options(harness: Harness, services: Services, log: Log) -> None:
    services.replace(hello)

    async def test(server: Running) -> None:
        headers = {"Git-Protocol": "version=2", "Content-Type": UPLOAD_REQUEST}
        await server.request("POST", "/demo.git/git-upload-pack", headers, b"0000")
        await server.request("POST", "/demo.git/git-receive-pack", {"Content-Type": RECEIVE_REQUEST}, b"0000")
        fetch, push = services.calls
        assert fetch["version"] == 2
        assert fetch["options"].session_id == server.site.options.session_id
        assert push["options"] is server.site.options
        assert push["version"] == 0
        assert (push["actor"].user, push["actor"].address) == (None, "127.0.0.1")

    harness.run(test)
    first, second = log.lines()
    assert list(first) == [
        "id", "address", "user", "method", "repo", "service", "version", "status", "in", "out", "objects",
        "refs", "buffered", "note", "seconds",
    ]  # fmt: skip
    assert {key: first[key] for key in ("repo", "service", "version", "status", "in", "out", "objects")} == {
        "repo": "demo.git",
        "service": "git-upload-pack",
        "version": 2,
        "status": 200,
        "in": 4,
        "out": 5,
        "objects": 3,
    }
    assert first["id"] != second["id"]


def test_the_log_line_of_head_has_no_body(harness: Harness, log: Log) -> None:
    async def test(server: Running) -> None:
        await server.request("HEAD", "/demo.git/info/refs?service=git-upload-pack")
        await server.request("HEAD", "/none.git/info/refs?service=git-upload-pack")

    harness.run(test)
    assert [(line["status"], line["out"]) for line in log.lines()] == [(200, 0), (404, 0)]


@pytest.mark.parametrize(
    ("coding", "encode"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress),
     ("", bytes), ("identity", bytes)],
)  # fmt: skip
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_content_codings(
    harness: Harness, services: Services, coding: str, encode: Any, *, chunked: bool
) -> None:
    services.replace(echo)
    text = b"".join(b"%d want\n" % n for n in range(50_000))
    body = encode(text)

    async def test(server: Running) -> None:
        headers = {"Content-Type": UPLOAD_REQUEST, **({"Content-Encoding": coding} if coding else {})}
        if chunked:
            pieces = [body[at : at + 5000] for at in range(0, len(body), 5000)]
            body_sent = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            client = await server.connect()
            lines = ["POST /demo.git/git-upload-pack HTTP/1.1", "Host: x", "Transfer-Encoding: chunked"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            await client.send("\r\n".join([*lines, "", ""]).encode() + body_sent)
            reply = await client.reply()
        else:
            reply = await server.request("POST", "/demo.git/git-upload-pack", headers, body)
        assert reply.status == 200
        assert reply.body == text

    harness.run(test)


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "compress", "gzip;q=1"])
def test_other_codings_are_refused(harness: Harness, coding: str) -> None:
    async def test(server: Running) -> None:
        headers = {"Content-Type": UPLOAD_REQUEST, "Content-Encoding": coding}
        assert (await server.request("POST", "/demo.git/git-upload-pack", headers, b"0000")).status == 415

    harness.run(test)


def test_bombs_are_refused(harness: Harness, services: Services) -> None:
    services.replace(echo)

    async def test(server: Running) -> None:
        headers = {"Content-Type": UPLOAD_REQUEST, "Content-Encoding": "gzip"}
        bomb = gzip.compress(b"\0" * (20 << 20))

        def swallow(channel: Channel) -> None:
            while channel.read(65536):
                pass

        services.replace(swallow)
        assert (await server.request("POST", "/demo.git/git-upload-pack", headers, bomb)).status == 413
        broken = gzip.compress(b"x" * 1000)[:-9]
        assert (await server.request("POST", "/demo.git/git-upload-pack", headers, broken)).status == 400

    harness.run(test)


def test_connection_is_kept_alive_across_a_fetch(harness: Harness, services: Services) -> None:
    services.replace(hello)

    async def test(server: Running) -> None:
        client = await server.connect()
        for _ in range(3):
            await client.send(b"GET /demo.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await client.reply()).body == b"hello"
            post = f"POST /demo.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Type: {UPLOAD_REQUEST}\r\n"
            await client.send(post.encode() + b"Transfer-Encoding: chunked\r\n\r\n4\r\n0000\r\n0\r\n\r\n")
            assert (await client.reply()).body == b"hello"

    harness.run(test)


def test_http_1_0_client_gets_a_body_that_ends_with_the_connection(
    harness: Harness, services: Services
) -> None:
    def long(channel: Channel) -> None:
        for _ in range(10):
            channel.write(b"x" * 50_000)

    services.replace(long)

    async def test(server: Running) -> None:
        client = await server.connect()
        await client.send(b"GET /demo.git/info/refs?service=git-upload-pack HTTP/1.0\r\n\r\n")
        reply = await client.reply()
        assert reply.status == 200
        assert "Transfer-Encoding" not in reply.names
        assert reply.body == b"x" * 500_000

    harness.run(test)


def test_100_continue_comes_after_admission(harness: Harness, services: Services) -> None:
    services.replace(echo)

    async def test(server: Running) -> None:
        head = (
            f"Host: x\r\nContent-Type: {RECEIVE_REQUEST}\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
        client = await server.connect()
        await client.send(b"POST /nothing/git-receive-pack HTTP/1.1\r\n" + head.encode())
        assert (await client.head())[0] == 404
        client = await server.connect()
        await client.send(b"POST /demo.git/git-receive-pack HTTP/1.1\r\n" + head.encode())
        assert (await client.head())[0] == 100
        await client.send(b"0000")
        assert (await client.reply()).body == b"0000"

    harness.run(test)


def post_head(length: int | None = None) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST /demo.git/git-receive-pack HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: {RECEIVE_REQUEST}\r\n{framing}\r\n\r\n"
    ).encode()


def test_error_is_told_while_the_client_still_sends(harness: Harness, services: Services, log: Log) -> None:
    def refuse(channel: Channel) -> None:
        channel.read(10)
        raise ProtocolError("no such command: b'x'")

    services.replace(refuse)

    async def test(server: Running) -> None:
        client = await server.connect()
        await client.send(post_head(1 << 30) + b"x" * 1000)
        reply = await asyncio.wait_for(client.reply(), 5)
        assert (reply.status, reply.body) == (400, b"no such command: b'x'\n")

    harness.run(test)
    assert [line["status"] for line in log.lines()] == [400]


@pytest.mark.parametrize("error", [ProtocolError("bad"), RuntimeError("bug")])
def test_failure_after_the_first_byte_cuts_the_connection(
    harness: Harness, services: Services, log: Log, error: Exception
) -> None:
    go = threading.Event()

    def crash(channel: Channel) -> None:
        channel.write(b"begun")
        channel.flush()
        assert go.wait(5)
        raise error

    services.replace(crash)

    async def test(server: Running) -> None:
        client = await server.connect()
        await client.send(b"GET /demo.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers = await client.head()
        assert (status, dict(headers)["Transfer-Encoding"]) == (200, "chunked")
        assert await client.reader.readexactly(10) == b"5\r\nbegun\r\n"
        go.set()
        rest = b""
        try:
            rest = await asyncio.wait_for(client.reader.read(), 5)
        except ConnectionResetError:
            pass
        assert rest == b""

    harness.run(test)
    (line,) = log.lines()
    assert (line["status"], line["out"]) == (200, 5)
    assert len(log.take_errors()) == (1 if isinstance(error, RuntimeError) else 0)


def test_body_paces_the_client(harness: Harness, services: Services) -> None:
    go = threading.Event()

    def slow(channel: Channel) -> None:
        assert go.wait(10)
        while channel.read(65536):
            pass

    services.replace(slow)
    size = 40 << 20

    async def test(server: Running) -> None:
        client = await server.connect()
        client.writer.write(post_head(size))
        sent = 0

        async def push() -> None:
            nonlocal sent
            for _ in range(size >> 16):
                client.writer.write(b"x" * 65536)
                await client.writer.drain()
                sent += 65536

        pushing = asyncio.create_task(push())
        seen = -1
        while seen != sent:
            seen = sent
            await asyncio.sleep(0.1)
        assert sent < size // 2  # what is not with us is in the kernel's socket buffers
        (handler,) = server.site.active
        assert handler.bytes_in < 2 << 20
        go.set()
        await pushing
        assert (await client.reply()).status == 200
        assert server.site.workers.high_bytes < 1 << 20

    harness.run(test)


def test_slow_reader_paces_the_worker(harness: Harness, services: Services) -> None:
    written = 0

    def flood(channel: Channel) -> None:
        nonlocal written
        for _ in range(600):
            channel.write(b"x" * 65536)
            written += 65536

    services.replace(flood)

    async def test(server: Running) -> None:
        client = await server.connect()
        await client.send(b"GET /demo.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\r\n")
        seen = -1
        while seen != written:
            seen = written
            await asyncio.sleep(0.1)
        assert written < 30 << 20
        assert (await client.reply()).body == b"x" * 65536 * 600

    harness.run(test)


@pytest.mark.parametrize("where", ["reading", "writing", "thinking"])
def test_client_that_leaves_frees_everything_within_a_second(
    harness: Harness, services: Services, log: Log, where: str
) -> None:
    ended = threading.Event()
    begun = threading.Event()

    def stuck(channel: Channel) -> None:
        try:
            channel.read(4)
            begun.set()
            while True:
                if where == "reading":
                    channel.read(1000)
                elif where == "writing":
                    channel.write(b"x" * 100_000)
                else:
                    channel.check()
        finally:
            ended.set()

    services.replace(stuck)

    async def test(server: Running) -> None:
        client = await server.connect()
        body = b"0000" if where != "reading" else b"00000000"
        await client.send(post_head(len(body)) + body[:4])
        await asyncio.to_thread(begun.wait, 5)
        await asyncio.sleep(0.1)
        left_at = time.monotonic()
        client.close()
        assert await asyncio.to_thread(ended.wait, 1)
        await server.idle()
        assert time.monotonic() - left_at < 1

    harness.run(test)
    (line,) = log.lines()
    assert line["error"] == "the client has gone"
    assert line["status"] == (200 if where == "writing" else 499)


def test_client_that_resets_while_the_pipe_is_full(harness: Harness, services: Services) -> None:
    """A FIN would lie behind data that the full pipe keeps us from reading: nobody could see it."""
    if harness.server_class is TornadoServer:
        pytest.skip("Tornado's server does not look at a connection that it does not read")
    ended = threading.Event()

    def never_reads(channel: Channel) -> None:
        try:
            while True:
                channel.check()
                time.sleep(0.001)
        except Disconnected:
            ended.set()
            raise

    services.replace(never_reads)

    async def test(server: Running) -> None:
        client = await server.connect()
        client.writer.write(post_head(50 << 20) + b"x" * (20 << 20))
        while not any(handler.bytes_in >= 512 << 10 for handler in server.site.active):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert await asyncio.to_thread(ended.wait, 1)

    harness.run(test)


def test_head_of_a_long_advertisement_has_no_body(harness: Harness, services: Services) -> None:
    def long(channel: Channel) -> None:
        for _ in range(30):
            channel.write(b"x" * 65536)

    services.replace(long)

    async def test(server: Running) -> None:
        client = await server.connect()
        await client.send(b"HEAD /demo.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.reply(method="HEAD")).status == 200
        await client.send(b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.reply()).body == b"ok\n"

    harness.run(test)


def test_health_follows_draining(harness: Harness) -> None:
    async def test(server: Running) -> None:
        assert (await server.request("GET", "/-/healthz")).status == 200
        assert (await server.request("HEAD", "/-/healthz")).status == 200
        server.site.draining = True
        reply = await server.request("GET", "/-/healthz")
        assert (reply.status, reply.body) == (503, b"draining\n")
        assert reply.header("Retry-After") is not None

    harness.run(test)
