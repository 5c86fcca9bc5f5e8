"""Which error becomes which answer; nothing of a bug's text leaves the server."""

import errno

import pytest
from tornado.web import HTTPError

from gitsmart import errors
from gitsmart.httpd.errors import MethodNotAllowed, UnsupportedMediaType, answer_to
from gitsmart.service.channel import Channel
from tests.httpd.conftest import UPLOAD_REQUEST, Harness, Log, Running, Services


def subclasses(kind: type[BaseException]) -> set[type[BaseException]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        pytest.param(errors.ProtocolError("bad line"), 400, "bad line", id="protocol"),
        pytest.param(errors.LimitExceeded("too much"), 413, "too much", id="limit"),
        pytest.param(errors.PackError("bad pack"), 400, "bad pack", id="pack"),
        pytest.param(errors.AuthenticationRequired("sign in"), 401, "sign in", id="authentication"),
        pytest.param(errors.Forbidden("no"), 403, "no", id="forbidden"),
        pytest.param(errors.ServiceDisabled("off"), 403, "off", id="disabled"),
        pytest.param(errors.RepositoryNotFound("/srv/x"), 404, "repository not found", id="not found"),
        pytest.param(errors.RepositoryUnusable("odd"), 500, "odd", id="unusable"),
        pytest.param(errors.TimedOut("silent"), 408, "silent", id="timed out"),
        pytest.param(errors.Disconnected("gone"), 499, "gone", id="gone"),
        pytest.param(errors.Unavailable("later"), 503, "later", id="unavailable"),
        pytest.param(MethodNotAllowed("POST"), 405, "method not allowed", id="method"),
        pytest.param(UnsupportedMediaType("odd type"), 415, "odd type", id="media type"),
        pytest.param(HTTPError(404, "secret"), 404, "not found", id="tornado"),
        pytest.param(errors.ConfigError("/etc/x: bad"), 500, "internal server error", id="config"),
        pytest.param(ValueError("/srv/secret"), 500, "internal server error", id="bug"),
        pytest.param(OSError(errno.EIO, "io", "/srv/secret"), 500, "internal server error", id="disk"),
    ],
)
def test_status_and_text(error: Exception, status: int, text: str) -> None:
    answer = answer_to(error)
    assert (answer.status, answer.text) == (status, text)


def test_every_class_of_the_tree_has_an_answer() -> None:
    expected = {errors.GitsmartError, errors.ConfigError, errors.RepositoryError, errors.AccessError}
    unmapped = {
        kind
        for kind in subclasses(errors.GitsmartError)
        if kind.__module__ == "gitsmart.errors" and answer_to(kind("text")).unexpected
    }
    assert unmapped == expected


def test_full_disk_is_for_later() -> None:
    answer = answer_to(OSError(errno.ENOSPC, "No space left on device", "/srv/secret"))
    assert (answer.status, answer.unexpected) == (503, True)
    assert "secret" not in answer.text
    assert dict(answer.headers).keys() == {"Retry-After"}


def test_bug_is_logged_once_and_not_told(harness: Harness, services: Services, log: Log) -> None:
    def bug(channel: Channel) -> None:
        raise ValueError("/srv/secret/path")

    services.replace(bug)

    async def test(server: Running) -> None:
        reply = await server.request(
            "POST", "/demo.git/git-upload-pack", {"Content-Type": UPLOAD_REQUEST}, b"0000"
        )
        assert (reply.status, reply.body) == (500, b"internal server error\n")
        assert reply.header("Content-Type") == "text/plain; charset=utf-8"

    harness.run(test)
    (record,) = log.take_errors()
    assert record.exc_info is not None
    (line,) = log.lines()
    assert record.__dict__["fields"]["id"] == line["id"]
    assert (line["status"], line["error"]) == (500, "internal server error")


def test_bug_before_the_service_is_logged_once_and_not_told(
    harness: Harness, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(server: Running) -> None:
        def broken(name: str) -> None:
            raise OSError(errno.EIO, "Input/output error", "/srv/secret")

        monkeypatch.setattr(server.site.root, "open", broken)
        reply = await server.request("GET", "/demo.git/info/refs?service=git-upload-pack")
        assert (reply.status, reply.body) == (500, b"internal server error\n")

    harness.run(test)
    assert len(log.take_errors()) == 1


def test_peers_mistakes_are_no_warnings(harness: Harness, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: Running) -> None:
        await server.request("GET", "/nothing/info/refs?service=git-upload-pack")
        await server.request("POST", "/demo.git/info/refs")
        await server.request("POST", "/demo.git/git-upload-pack", {"Content-Type": "x"}, b"0000")

    harness.run(test)
    assert [line["status"] for line in log.lines()] == [404, 405, 415]
    assert {record.levelname for record in caplog.records if record.name.startswith("gitsmart")} == {"INFO"}


def test_names_cannot_forge_log_lines(harness: Harness, log: Log) -> None:
    async def test(server: Running) -> None:
        name = "x%0A2026-11-24T00:00:00.000Z%20INFO%20gitsmart.request%20status=200" + "y" * 1000
        await server.request("GET", f"/{name}/info/refs?service=git-upload-pack")

    harness.run(test)
    (line,) = log.lines()
    assert len(line["repo"]) < 300
