"""What is answered on the event loop from what is known (decision 0009): the same answers, never older."""

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import gitsmart
from tests.httpd.conftest import UPLOAD_REQUEST, Harness, Log, Reply, Running, make_bare

INFO_REFS = "/demo.git/info/refs?service=git-upload-pack"
V2 = {"Git-Protocol": "version=2"}
LS_REFS = b"0014command=ls-refs\n0016object-format=sha1" + b"0001" + b"0009peel\n000csymrefs\n0000"
SETTLED_S = 0.03  # a listing is kept when all that it was made of is older than 20 ms


@pytest.fixture
def server_class() -> Any:
    return gitsmart.HTTPServer


@pytest.fixture
def demo(root: Path) -> Path:
    """One commit on main, a tag, packed."""
    path = root / "demo.git"
    git(path, "config", "user.name", "A")
    git(path, "config", "user.email", "a@example.com")
    commit(path, "one")
    git(path, "tag", "-m", "t", "v1", "main")
    git(path, "pack-refs", "--all")
    return path


def git(path: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=path, check=True, capture_output=True, encoding="utf-8")
    return done.stdout.strip()


def commit(path: Path, message: str) -> str:
    tree = git(path, "mktree", "--missing")  # of nothing
    oid = git(path, "commit-tree", "-m", message, tree)
    git(path, "update-ref", "refs/heads/main", oid)
    return oid


class Counted:
    """Counts what goes to workers."""

    def __init__(self, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        exchange = server.site.workers.exchange

        def counted() -> Any:
            self.count += 1
            return exchange()

        monkeypatch.setattr(server.site.workers, "exchange", counted)


async def ask(server: Running, what: str, headers: dict[str, str] | None = None) -> Reply:
    headers = headers or {}
    if what == "ls-refs":
        fields = {**V2, "Content-Type": UPLOAD_REQUEST, **headers}
        return await server.request("POST", "/demo.git/git-upload-pack", fields, LS_REFS)
    service = "git-receive-pack" if what == "push" else "git-upload-pack"
    path = f"/demo.git/info/refs?service={service}"
    return await server.request("GET", path, {**(V2 if what == "v2" else {}), **headers})


KINDS = ("v0", "v2", "push", "ls-refs")


async def warm(server: Running, what: str, headers: dict[str, str] | None = None) -> Reply:
    await asyncio.sleep(SETTLED_S)
    return await ask(server, what, headers)


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("headers", [{}, {"Accept-Encoding": "gzip"}, {"Origin": "https://a.example"}])
def test_the_same_is_answered_without_a_worker(
    harness: Harness,
    demo: Path,
    what: str,
    headers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    log: Log,
) -> None:
    for number in range(20):  # enough to be gzip'd
        git(demo, "update-ref", f"refs/heads/more/branch-{number}", "refs/heads/main")
    git(demo, "pack-refs", "--all")
    harness.configure(access_anonymous="write", http_cors_origins=["https://a.example"])

    async def test(server: Running) -> None:
        first = await warm(server, what, headers)
        counted = Counted(server, monkeypatch)
        second = await ask(server, what, headers)
        assert counted.count == 0
        assert (first.status, second.status) == (200, 200)
        assert second.body == first.body
        assert second.header("Content-Length") == str(len(second.body))
        others = ("Date", "Content-Length", "Transfer-Encoding")  # a worker may have begun before it was done
        fields = [[item for item in reply.headers if item[0] not in others] for reply in (first, second)]
        assert fields[0] == fields[1]
        if headers.get("Accept-Encoding") and what != "v2":
            assert second.header("Content-Encoding") == "gzip"
        await server.idle()
        lines = [dict(line) for line in log.lines()]
        for line in lines:
            for name in ("id", "seconds", "buffered"):
                assert name in line
                del line[name]
        assert lines[0] == lines[1]

    harness.run(test)


def test_what_another_program_changed_just_now_is_seen(harness: Harness, demo: Path) -> None:
    async def test(server: Running) -> None:
        for number in range(15):
            for _ in range(2):
                await warm(server, "ls-refs")
            if number % 5 == 0:
                oid = commit(demo, f"{number}")
            elif number % 5 == 1:  # in place, which changes no folder
                oid = git(demo, "commit-tree", "-m", f"{number}", git(demo, "mktree", "--missing"))
                (demo / "refs/heads/main").write_text(oid + "\n")
            elif number % 5 == 2:
                git(demo, "pack-refs", "--all")
                oid = git(demo, "rev-parse", "main")
            elif number % 5 == 3:
                git(demo, "update-ref", f"refs/heads/new-{number}", "main")
                assert f"refs/heads/new-{number} ".encode()[:-1] in (await ask(server, "ls-refs")).body
            else:
                git(demo, "symbolic-ref", "HEAD", f"refs/heads/new-{number - 1}")
                assert (
                    f"HEAD symref-target:refs/heads/new-{number - 1}\n".encode()
                    in (await ask(server, "ls-refs")).body
                )
            for what in ("v0", "ls-refs", "push"):
                assert oid.encode() + b" refs/heads/main" in (await ask(server, what)).body or what == "push"

    harness.run(test)


@pytest.mark.parametrize("what", ["v0", "v2", "ls-refs"])
def test_who_may_what_is_decided_anew_each_time(harness: Harness, demo: Path, what: str) -> None:
    async def test(server: Running) -> None:
        for _ in range(2):
            assert (await warm(server, what)).status == 200
        git(demo, "config", "http.uploadpack", "false")
        assert (await ask(server, what)).status == 403
        git(demo, "config", "http.uploadpack", "true")
        for _ in range(2):
            assert (await warm(server, what)).status == 200
        git(demo, "config", "transfer.hideRefs", "refs/tags")
        git(demo, "config", "uploadpack.allowFilter", "false")
        reply = await ask(server, what)
        assert b"refs/tags" not in reply.body
        assert b"filter" not in reply.body
        for _ in range(2):
            assert (await warm(server, what)).status == 200
        os.rename(demo, demo.with_name("gone.git"))
        assert (await ask(server, what)).status == 404
        make_bare(demo)
        reply = await ask(server, what)
        assert reply.status == 200
        assert b"refs/heads/main" not in reply.body

    harness.run(test)


@pytest.mark.parametrize("what", KINDS)
def test_strangers_are_asked_who_they_are(harness: Harness, demo: Path, tmp_path: Path, what: str) -> None:
    htpasswd = tmp_path / "htpasswd"
    htpasswd.write_text("alice:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n")  # password
    harness.configure(access_anonymous="none", access_htpasswd=str(htpasswd))
    known = {"Authorization": "Basic YWxpY2U6cGFzc3dvcmQ="}

    async def test(server: Running) -> None:
        for _ in range(3):
            assert (await warm(server, what, known)).status == 200
            assert (await ask(server, what)).status == 401
            assert (await ask(server, what, {"Authorization": "Basic YWxpY2U6d3Jvbmc="})).status == 401

    harness.run(test)


def test_what_would_take_long_is_left_to_workers(
    harness: Harness, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(server: Running) -> None:
        await warm(server, "v0")
        counted = Counted(server, monkeypatch)
        server.site.at_once_from = float("inf")  # the disk was slow
        await ask(server, "v0")
        assert counted.count == 1
        server.site.at_once_from = 0.0
        await ask(server, "v0")
        assert counted.count == 1
        for number in range(70):
            (demo / f"refs/heads/loose-{number}").write_text(git(demo, "rev-parse", "main") + "\n")
        for _ in range(2):  # each is looked at by stat
            assert (await warm(server, "v0")).body.count(b"refs/heads/loose-") == 70
        assert counted.count == 3
        (demo / "shallow").write_text(git(demo, "rev-parse", "main") + "\n")
        git(demo, "pack-refs", "--all")
        for _ in range(2):
            assert b"shallow " in (await warm(server, "v0")).body
        assert counted.count == 5

    harness.run(test)


def test_a_body_that_comes_late_is_waited_for(harness: Harness, demo: Path) -> None:
    async def test(server: Running) -> None:
        expected = await warm(server, "ls-refs")
        for cut in (0, 1, len(LS_REFS) - 1):
            client = await server.connect()
            head = (
                "POST /demo.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
                f"Content-Type: {UPLOAD_REQUEST}\r\nContent-Length: {len(LS_REFS)}\r\n\r\n"
            )
            await client.send(head.encode() + LS_REFS[:cut])
            await asyncio.sleep(0.01)
            await client.send(LS_REFS[cut:])
            assert (await client.reply()).body == expected.body
            # the same connection, and two at once
            await client.send(2 * (head.encode() + LS_REFS))
            for _ in range(2):
                assert (await client.reply()).body == expected.body

    harness.run(test)
