"""Who is let in where: the challenge comes before any body, and a stranger learns nothing."""

import base64
import hashlib
from pathlib import Path

import pytest

from gitsmart.service.channel import Channel
from tests.httpd.conftest import RECEIVE_REQUEST, UPLOAD_REQUEST, Harness, Log, Reply, Running, Services

PASSWORD = "s3cret:ü"


@pytest.fixture
def htpasswd(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    digest = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
    path.write_text(f"alice:{{SHA}}{digest}\n")
    return path


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def refs(service: str, repo: str = "demo.git") -> str:
    return f"/{repo}/info/refs?service={service}"


def is_challenge(reply: Reply) -> bool:
    return reply.status == 401 and reply.header("WWW-Authenticate") == 'Basic realm="git", charset="UTF-8"'


def test_push_takes_a_name(harness: Harness, htpasswd: Path) -> None:
    harness.configure(access_htpasswd=str(htpasswd))

    async def test(server: Running) -> None:
        assert (await server.request("GET", refs("git-upload-pack"))).status == 200
        assert is_challenge(await server.request("GET", refs("git-receive-pack")))
        headers = basic("alice", PASSWORD)
        assert (await server.request("GET", refs("git-receive-pack"), headers)).status == 200

    harness.run(test)


def test_challenge_comes_at_the_probe_and_before_100_continue(harness: Harness, htpasswd: Path) -> None:
    harness.configure(access_htpasswd=str(htpasswd))

    async def test(server: Running) -> None:
        probe = {"Content-Type": RECEIVE_REQUEST}
        assert is_challenge(await server.request("POST", "/demo.git/git-receive-pack", probe, b"0000"))
        headers = {**probe, **basic("alice", PASSWORD)}
        reply = await server.request("POST", "/demo.git/git-receive-pack", headers, b"0000")
        assert (reply.status, reply.body) == (200, b"")
        client = await server.connect()
        lines = ["POST /demo.git/git-receive-pack HTTP/1.1", "Host: x", f"Content-Type: {RECEIVE_REQUEST}"]
        lines += ["Transfer-Encoding: chunked", "Expect: 100-continue", "", ""]
        await client.send("\r\n".join(lines).encode())
        assert (await client.head())[0] == 401

    harness.run(test)


def test_unknown_users_and_wrong_passwords_look_the_same(harness: Harness, htpasswd: Path) -> None:
    harness.configure(access_htpasswd=str(htpasswd))

    async def test(server: Running) -> None:
        replies = [
            await server.request("GET", refs("git-upload-pack"), headers)
            for headers in (
                basic("alice", "wrong"),
                basic("mallory", PASSWORD),
                {"Authorization": "Basic %%%"},
                {"Authorization": "Bearer x"},
            )
        ]
        assert all(is_challenge(reply) for reply in replies)
        assert {reply.body for reply in replies} == {b"wrong user or password\n"}

    harness.run(test)


def test_with_nobody_let_in_anonymously_repositories_are_hidden(harness: Harness, htpasswd: Path) -> None:
    harness.configure(access_htpasswd=str(htpasswd), access_anonymous="none", access_realm="my git")

    async def test(server: Running) -> None:
        there = await server.request("GET", refs("git-upload-pack"))
        missing = await server.request("GET", refs("git-upload-pack", "nothing.git"))
        assert there.status == missing.status == 401
        assert there.body == missing.body
        assert there.header("WWW-Authenticate") == 'Basic realm="my git", charset="UTF-8"'
        headers = basic("alice", PASSWORD)
        assert (await server.request("GET", refs("git-upload-pack"), headers)).status == 200
        assert (await server.request("GET", refs("git-upload-pack", "nothing.git"), headers)).status == 404

    harness.run(test)


@pytest.mark.parametrize("anonymous", ["none", "read"])
def test_where_nobody_can_sign_in_there_is_no_challenge(harness: Harness, anonymous: str) -> None:
    harness.configure(access_anonymous=anonymous)

    async def test(server: Running) -> None:
        reply = await server.request("GET", refs("git-receive-pack"), basic("alice", PASSWORD))
        assert (reply.status, reply.header("WWW-Authenticate")) == (403, None)

    harness.run(test)


def test_credentials_are_ignored_where_there_are_no_users(harness: Harness) -> None:
    async def test(server: Running) -> None:
        reply = await server.request("GET", refs("git-upload-pack"), basic("alice", "whatever"))
        assert reply.status == 200

    harness.run(test)


@pytest.mark.parametrize(
    ("proxies", "header", "user"),
    [
        (["127.0.0.1"], "bob", "bob"),
        (["10.0.0.0/8", "127.0.0.0/8"], "bob", "bob"),
        (["127.0.0.1"], "gr\u00fcn".encode().decode("latin-1"), "grün"),
        (["127.0.0.1"], "", None),
        (["127.0.0.1"], "a\tb", None),
        (["127.0.0.1"], None, None),
        (["10.0.0.1"], "bob", None),
        ([], "bob", None),
    ],
)
def test_trusted_proxy_names_the_user(
    harness: Harness, services: Services, log: Log, proxies: list[str], header: str | None, user: str | None
) -> None:
    def nothing(channel: Channel) -> None:
        channel.read(4)

    services.replace(nothing)
    harness.configure(access_trusted_proxies=proxies, access_anonymous="write")

    async def test(server: Running) -> None:
        headers = {"Content-Type": RECEIVE_REQUEST, **({} if header is None else {"X-Remote-User": header})}
        reply = await server.request("POST", "/demo.git/git-receive-pack", headers, b"0000")
        assert reply.status == 200

    harness.run(test)
    assert [call["actor"].user for call in services.calls] == [user]
    assert [line["user"] for line in log.lines()] == [user]


def test_two_names_are_no_name(harness: Harness, services: Services) -> None:
    services.replace(lambda channel: None)
    harness.configure(access_trusted_proxies=["127.0.0.1"], access_anonymous="write")

    async def test(server: Running) -> None:
        client = await server.connect()
        await client.send(
            f"POST /demo.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Type: {RECEIVE_REQUEST}\r\n"
            "X-Remote-User: admin\r\nX-Remote-User: bob\r\nContent-Length: 4\r\n\r\n0000".encode()
        )
        assert (await client.reply()).status == 200

    harness.run(test)
    assert [call["actor"].user for call in services.calls] == [None]


def test_credentials_and_queries_are_never_logged(
    harness: Harness, htpasswd: Path, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    harness.configure(access_htpasswd=str(htpasswd))
    caplog.set_level(0)

    async def test(server: Running) -> None:
        path = refs("git-receive-pack") + "&token=hunter2"
        for headers in (basic("alice", PASSWORD), basic("alice", "tr0ub4dor")):
            await server.request("GET", path, headers)
        headers = {"Content-Type": UPLOAD_REQUEST, **basic("alice", PASSWORD)}
        await server.request("POST", "/demo.git/git-upload-pack?token=hunter2", headers, b"00010bodybody")

    harness.run(test)
    text = log.text() + caplog.text
    assert [line["user"] for line in log.lines()] == ["alice", None, "alice"]
    for secret in (
        "hunter2",
        "tr0ub4dor",
        PASSWORD,
        basic("alice", PASSWORD)["Authorization"][6:],
        "bodybody",
    ):
        assert secret not in text
