"""A real server on a free port in the test's own event loop, a raw client, and services that a test can
replace.
"""

import asyncio
import contextlib
import logging
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer as TornadoServer
from tornado.netutil import bind_sockets
from tornado.web import Application

import gitsmart
from gitsmart.config import Config, load
from gitsmart.httpd import smart
from gitsmart.httpd.handler import Site
from gitsmart.httpd.routes import GIT_ROUTES, SERVER_ROUTES, rules
from gitsmart.jobs import JobQueue, take_jobs
from gitsmart.service.channel import Channel
from gitsmart.service.options import ServiceReport

UPLOAD_REQUEST = "application/x-git-upload-pack-request"
RECEIVE_REQUEST = "application/x-git-receive-pack-request"

Service = Callable[[Channel], ServiceReport | None]


@dataclass(slots=True)
class Reply:
    """A response as it came over the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    complete: bool
    """Content-Length was met, or the last chunk has come."""

    def header(self, name: str) -> str | None:
        return {key.lower(): value for key, value in self.headers}.get(name.lower())

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.headers]


@dataclass(slots=True)
class Client:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, list[tuple[str, str]]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:-2])]
        return int(lines[0].split()[1]), headers

    async def reply(self, *, method: str = "GET") -> Reply:
        status, headers = await self.head()
        reply = Reply(status, headers, b"", complete=True)
        if method == "HEAD":
            return reply
        length = reply.header("Content-Length")
        body = bytearray()
        try:
            if length is not None:
                body += await self.reader.readexactly(int(length))
            elif reply.header("Transfer-Encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
            else:
                body += await self.reader.read()
        except (asyncio.IncompleteReadError, ConnectionResetError) as error:
            reply.complete = False
            if length is not None and isinstance(error, asyncio.IncompleteReadError):
                body += error.partial
        reply.body = bytes(body)
        return reply

    def close(self) -> None:
        self.writer.transport.abort()


@dataclass(slots=True)
class Running:
    """A server under test."""

    site: Site
    port: int
    root: Path
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Reply:
        client = await self.connect()
        fields = {"Host": "localhost", "Connection": "close", **(headers or {})}
        if body is not None:
            fields["Content-Length"] = str(len(body))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        await client.send("\r\n".join(lines).encode("latin-1") + (body or b""))
        reply = await asyncio.wait_for(client.reply(method=method), 10)
        client.close()
        return reply

    async def idle(self) -> None:
        """Wait until no request is active and no worker is busy."""
        async with asyncio.timeout(5):
            while self.site.active or self.site.workers.running:  # noqa: ASYNC110  (threads are the other side)
                await asyncio.sleep(0.005)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    for name in ("demo.git", "group/deep/nested.git", "grün.git"):
        make_bare(path / name)
    return path


def make_bare(path: Path, *settings: str) -> None:
    subprocess.run(["git", "init", "-q", "--bare", str(path)], check=True)
    for setting in settings:
        name, _, value = setting.partition("=")
        subprocess.run(["git", "-C", str(path), "config", name, value], check=True)


@pytest.fixture(params=["gitsmart", "tornado", "pool"])
def server_class(request: pytest.FixtureRequest) -> Any:
    """The routes work under either server, and where long work is done at the other end of a job queue."""
    return {"gitsmart": gitsmart.HTTPServer, "tornado": TornadoServer, "pool": PoolServer}[request.param]


class PoolServer(gitsmart.HTTPServer):
    """A server whose site has a pool: here threads of the same process."""


class Harness:
    """Runs one coroutine against one server."""

    def __init__(self, root: Path, server_class: Any) -> None:
        self.root = root
        self.server_class = server_class
        self.flags: dict[str, tuple[str, object]] = {"server.root": ("ROOT", str(root))}

    def configure(self, **values: object) -> "Harness":
        """Set options: access_anonymous="none" and so on."""
        for name, value in values.items():
            section, _, key = name.partition("_")
            self.flags[f"{section}.{key}"] = (name, value)
        return self

    def run(self, test: Callable[[Running], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with self.serving(load(flags=self.flags)) as running:
                await asyncio.wait_for(test(running), 30)
                for client in running.clients:
                    client.close()
                await running.idle()

        asyncio.run(main())

    @contextlib.asynccontextmanager
    async def serving(self, config: Config) -> AsyncIterator[Running]:
        from gitsmart.app import _make_site

        site = _make_site(config, loopback=True)
        pool = None
        if self.server_class is PoolServer:
            site.jobs = JobQueue()
            perform = partial(smart.perform, site)
            pool = threading.Thread(target=take_jobs, args=(site.jobs, perform), kwargs={"stop_after_s": 5})
            pool.start()
        application = Application(
            [*rules(SERVER_ROUTES, site), *rules(GIT_ROUTES, site)], log_function=lambda handler: None
        )
        server = self.server_class(application)
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        try:
            yield Running(site, sockets[0].getsockname()[1], self.root)
        finally:
            server.stop()
            await server.close_all_connections()
            site.workers.close()
            assert site.workers.join(2)
            if site.jobs is not None and pool is not None:
                site.jobs.close_giver()
                pool.join(10)
                assert not pool.is_alive()
                site.jobs.close_taker()


@pytest.fixture
def harness(root: Path, server_class: Any) -> Harness:
    return Harness(root, server_class)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> "Log":
    caplog.set_level(logging.INFO, "gitsmart")
    return Log(caplog)


class Log:
    """The request lines that were logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def lines(self) -> list[dict[str, Any]]:
        return [
            record.__dict__["fields"]
            for record in self._caplog.records
            if record.name == "gitsmart.request" and "status" in record.__dict__.get("fields", {})
        ]

    def take_errors(self) -> list[logging.LogRecord]:
        """Return the ERROR records; afterwards they don't fail the test any more."""
        errors = [record for record in self._caplog.records if record.levelno >= logging.ERROR]
        for record in errors:
            record.levelno = logging.INFO
        return errors

    def text(self) -> str:
        return "\n".join(
            f"{record.getMessage()} {record.__dict__.get('fields')}" for record in self._caplog.records
        )


@pytest.fixture(autouse=True)
def _no_unexpected_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    bad = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert not bad, bad


class Services:
    """Replaces what the routes run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.calls: list[dict[str, Any]] = []

    def replace(self, service: Service) -> None:
        """Let all three services be `service`; what they were called with is in `calls`."""

        def replaced(repo: object, channel: Channel, **arguments: Any) -> ServiceReport:
            self.calls.append({"repo": repo, **arguments})
            return service(channel) or ServiceReport()

        for name in ("advertise", "upload_pack", "receive_pack"):
            self._monkeypatch.setattr(smart, name, replaced)


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    return Services(monkeypatch)
