"""What stock Tornado does that httpd/connection.py is for. A failure here is good news: docs/decisions/0001.

Also runs the code of docs/chunked.md, which shows two loops over IOStream that fail and the one that doesn't.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado import web
from tornado.httpserver import HTTPServer as TornadoServer
from tornado.netutil import bind_sockets

from gitsmart.httpd.connection import HTTPServer as GitsmartServer

PAGE = Path(__file__).parents[2] / "docs" / "chunked.md"
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


class Echo(web.RequestHandler):
    def post(self) -> None:
        self.write(self.request.body)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def ask(kind: type[TornadoServer], data: bytes, *, wait_s: float = 5) -> bytes:
    """Send `data` to a server; return all that it answers."""

    async def scenario() -> bytes:
        server = kind(web.Application([("/", Echo)]))
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        reader, writer = await asyncio.open_connection(*sockets[0].getsockname()[:2])
        writer.write(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            async with asyncio.timeout(wait_s):
                while piece := await reader.read(65536):
                    answer += piece
        writer.transport.abort()
        server.stop()
        await server.close_all_connections()
        return answer

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"3;name=value\r\nabc\r\n0\r\n\r\n", id="extension"),
        pytest.param(b'3 ; a="b;\\"c"\r\nabc\r\n0\r\n\r\n', id="quoted-extension"),
        pytest.param(b"3;" + b"a" * 100 + b"\r\nabc\r\n0\r\n\r\n", id="long-extension"),
        pytest.param(b"3\r\nabc\r\n0;last\r\n\r\n", id="extension-on-last"),
        pytest.param(b"3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n", id="trailer"),
    ],
)
def test_tornado_refuses_bodies_that_the_rfc_allows(body: bytes) -> None:
    """RFC 9112 sections 7.1.1 and 7.1.2; tornado/http1connection.py _read_chunked_body."""
    assert b" 200 OK" not in ask(TornadoServer, HEAD + body)
    answer = ask(GitsmartServer, HEAD + body)
    assert b" 200 OK" in answer
    assert answer.endswith(b"abc")


def test_tornado_says_nothing_to_a_long_size_line() -> None:
    data = HEAD + b"3;" + b"a" * 5000 + b"\r\n"
    assert ask(TornadoServer, data) == b""
    assert ask(GitsmartServer, data).startswith(b"HTTP/1.1 413 ")


def test_tornado_answers_errors_without_a_length() -> None:
    data = HEAD + b"0x3\r\nabc\r\n"
    assert ask(TornadoServer, data) == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    assert b"\r\nContent-Length: " in ask(GitsmartServer, data)


def test_tornado_knows_one_spelling_of_expect_and_answers_http_1_0() -> None:
    fields = b"Host: a\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n"
    assert ask(TornadoServer, b"POST / HTTP/1.1\r\n" + fields, wait_s=0.1) == b""
    assert (
        ask(GitsmartServer, b"POST / HTTP/1.1\r\n" + fields, wait_s=0.1) == b"HTTP/1.1 100 Continue\r\n\r\n"
    )
    fields = fields.lower()
    assert ask(TornadoServer, b"POST / HTTP/1.0\r\n" + fields, wait_s=0.1).startswith(b"HTTP/1.1 100 ")
    assert ask(GitsmartServer, b"POST / HTTP/1.0\r\n" + fields, wait_s=0.1) == b""


def test_tornado_takes_connection_for_one_word() -> None:
    data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: TE, close\r\n\r\n"
    assert b"Connection: close" not in ask(TornadoServer, data, wait_s=0.1)
    assert b"Connection: close" in ask(GitsmartServer, data)


def test_tornado_does_not_answer_a_client_that_half_closes() -> None:
    """IOStream closes both ways at FIN."""

    class Late(web.RequestHandler):
        async def get(self) -> None:
            await asyncio.sleep(0.05)
            self.write("late")

    async def scenario(kind: type[TornadoServer]) -> bytes:
        server = kind(web.Application([("/", Late)]))
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        reader, writer = await asyncio.open_connection(*sockets[0].getsockname()[:2])
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        server.stop()
        await server.close_all_connections()
        return answer

    assert asyncio.run(scenario(TornadoServer)) == b""
    assert asyncio.run(scenario(GitsmartServer)).endswith(b"late")


def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 5
    namespace: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{PAGE.name} block {number}", "exec"), namespace)
