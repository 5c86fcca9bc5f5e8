"""The namespace of a request: the server's, or a trusted proxy's."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from gitsmart.app import create_app
from gitsmart.config import Config, load
from gitsmart.errors import ConfigError
from tests.httpd.conftest import Harness, Log, Reply, Running


@pytest.fixture
def refs(root: Path) -> None:
    """One ref in the whole repository, two namespaces with one each."""
    path = root / "demo.git"
    tree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
    subprocess.run(["git", "mktree"], cwd=path, input=b"", check=True, capture_output=True)
    for name in (
        "refs/heads/whole",
        "refs/namespaces/one/refs/heads/one",
        "refs/namespaces/zwö/refs/heads/two",
    ):
        subprocess.run(["git", "update-ref", name.replace("heads", "x"), tree], cwd=path, check=True)


ADVERTISE = "/demo.git/info/refs?service=git-upload-pack"


def names(reply: Reply) -> set[bytes]:
    assert reply.status == 200, reply.body
    return {name for name in (b"whole", b"one", b"two") if b"refs/x/" + name in reply.body}


def header(value: str) -> dict[str, str]:
    return {"X-Git-Namespace": value.encode().decode("latin-1")}


def test_a_trusted_proxy_names_it_where_it_may(harness: Harness, refs: None, log: Log) -> None:
    harness.configure(access_trusted_proxies=["127.0.0.1"], access_proxy_namespace=True)

    async def test(server: Running) -> None:
        assert names(await server.request("GET", ADVERTISE)) == {b"whole", b"one", b"two"}
        reply = await server.request("GET", ADVERTISE, header("one"))
        assert names(reply) == {b"one"}
        assert b"namespaces" not in reply.body
        assert names(await server.request("GET", ADVERTISE, header("zwö"))) == {b"two"}
        assert names(await server.request("GET", ADVERTISE, header("none"))) == set()
        for bad in ("..", "a.lock", "a b", "\xff"):
            value: dict[str, str] = header(bad) if bad != "\xff" else {"X-Git-Namespace": bad}
            reply = await server.request("GET", ADVERTISE, value)
            assert (reply.status, reply.body[:9]) == (400, b"bad git n")
        client = await server.connect()
        lines = [
            f"GET {ADVERTISE} HTTP/1.1",
            "Host: x",
            "X-Git-Namespace: one",
            "X-Git-Namespace: two",
            "",
            "",
        ]
        await client.send("\r\n".join(lines).encode())
        assert (await client.head())[0] == 400

    harness.run(test)
    assert [line.get("namespace") for line in log.lines()][:3] == [None, "one", "zwö"]


@pytest.mark.parametrize(
    "options",
    [
        {"access_trusted_proxies": ["127.0.0.1"]},
        {"access_trusted_proxies": ["192.0.2.1"], "access_proxy_namespace": True},
        {"access_proxy_namespace": True},
    ],
)
def test_nobody_else_does(harness: Harness, refs: None, options: dict[str, object]) -> None:
    harness.configure(server_namespace="one", **options)

    async def test(server: Running) -> None:
        assert names(await server.request("GET", ADVERTISE, header("zwö"))) == {b"one"}
        assert names(await server.request("GET", ADVERTISE, header(".."))) == {b"one"}

    harness.run(test)


def test_the_server_s_holds_where_the_proxy_says_nothing(harness: Harness, refs: None) -> None:
    harness.configure(
        server_namespace="one", access_trusted_proxies=["127.0.0.1"], access_proxy_namespace=True
    )

    async def test(server: Running) -> None:
        assert names(await server.request("GET", ADVERTISE)) == {b"one"}
        assert names(await server.request("GET", ADVERTISE, header(""))) == {b"one"}
        assert names(await server.request("GET", ADVERTISE, header("zwö"))) == {b"two"}

    harness.run(test)


def test_a_bad_name_ends_the_start(root: Path) -> None:
    config = load(flags={"server.root": ("ROOT", str(root)), "server.namespace": ("x", "a..b")})
    with pytest.raises(ConfigError, match=r"server\.namespace: bad git namespace path 'a\.\.b'"):
        create_app(config)


def test_git_config_of_the_server_reaches_every_repository(
    root: Path, tmp_path: Path, harness: Harness
) -> None:
    path = tmp_path / "gitsmart.toml"
    path.write_text(
        '[git]\n"http.uploadpack" = false\n"http.receivepack" = false\nlocked = ["http.receivepack"]\n'
    )
    config = load(path, {"server.root": ("ROOT", str(root)), "access.anonymous": ("f", "write")})
    assert isinstance(config, Config)
    subprocess.run(["git", "config", "http.uploadpack", "true"], cwd=root / "demo.git", check=True)
    subprocess.run(["git", "config", "http.receivepack", "true"], cwd=root / "demo.git", check=True)

    async def test() -> None:
        async with harness.serving(config) as server:
            assert (await server.request("GET", ADVERTISE)).status == 200
            assert (
                await server.request("GET", ADVERTISE.replace("demo", "grün").replace("ü", "%C3%BC"))
            ).status == 403
            push = ADVERTISE.replace("upload", "receive")
            assert (await server.request("GET", push)).status == 403
            await server.idle()

    asyncio.run(test())
