"""The same HTTP requests to gitsmart and to C git's http-backend: status, and every header in its order.

What differs, and is left out of the comparison: Date and Server; framing (Transfer-Encoding, Connection, and
Content-Length where git has none); the zone in dates, which git spells "+0000" where HTTP demands GMT; what
git sends twice (the last one counts); and that our errors have a text, with its type and length, where
git's have none.
"""

import email.utils
import http.client
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Git, MakeRepo, ServeFunction, Server

UPLOAD = {"Content-Type": "application/x-git-upload-pack-request"}
RECEIVE = {"Content-Type": "application/x-git-receive-pack-request"}
FRAMING = {"date", "server", "transfer-encoding", "connection"}

Reply = tuple[int, list[tuple[str, str]], bytes]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def repo(root: Path, make_repo: MakeRepo, git: Git) -> Path:
    path = root / "full.git"
    if not path.exists():
        make_repo(path)
        git("repack", "-adq", cwd=path)
        git("hash-object", "-w", "--stdin", cwd=path, input="loose\n")
        (path / "objects" / "info" / "alternates").write_text("../../empty.git/objects\n")
        git("init", "-q", "--bare", root / "empty.git")
        git("init", "-q", "--bare", root / "off.git")
        for name in ("getanyfile", "uploadpack", "receivepack"):
            git("config", f"http.{name}", "false", cwd=root / "off.git")
    return path


def ask(server: Server, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body=body, headers={"Connection": "close", **headers})
        reply = connection.getresponse()
        return reply.status, reply.getheaders(), reply.read()
    finally:
        connection.close()


def normal(reply: Reply, *, has_length: bool) -> tuple[int, list[tuple[str, str]]]:
    status, headers, _ = reply
    found: dict[str, str] = {}
    for name, value in headers:
        if name.lower() in FRAMING or (name == "Content-Length" and not has_length):
            continue
        found.pop(name, None)
        date = email.utils.parsedate_tz(value) if name in ("Last-Modified", "Expires") else None
        found[name] = value if date is None else str(email.utils.mktime_tz(date) // 60)
    if status >= 400:
        found.pop("Content-Type", None)
        found.pop("Content-Length", None)
    return status, list(found.items())


LS_REFS = b"0014command=ls-refs\n0000"
PATHS = ["HEAD", "info/refs", "objects/info/packs", "objects/info/alternates", "LOOSE", "PACK", "IDX"]

CASES = [
    *[(method, f"/full.git/{path}", {}, None) for path in PATHS for method in ("GET", "HEAD")],
    *[("GET", f"/empty.git/{path}", {}, None) for path in ("HEAD", "info/refs", "objects/info/packs")],
    *[
        (
            "GET",
            f"/{name}.git/info/refs?service=git-{service}",
            {"Git-Protocol": version} if version else {},
            None,
        )
        for name in ("full", "empty", "off", "nothing")
        for service in ("upload-pack", "receive-pack")
        for version in ("", "version=1", "version=2")
    ],
    ("HEAD", "/full.git/info/refs?service=git-upload-pack", {}, None),
    ("GET", "/full.git/info/refs?service=upload-pack", {}, None),
    ("GET", "/full.git/info/refs?service=", {}, None),
    ("GET", "/full.git/info/refs?service=git-nothing", {}, None),
    ("GET", "/full.git/info/refs?service=git-upload-pack&service=git-receive-pack", {}, None),
    *[("GET", f"/off.git/{path}", {}, None) for path in ("HEAD", "info/refs", "objects/info/packs")],
    *[("GET", f"/nothing.git/{path}", {}, None) for path in ("HEAD", "info/refs")],
    *[
        ("GET", f"/full.git/{path}", {}, None)
        for path in (
            "config",
            "refs/heads/main",
            "objects/00/" + "0" * 38,
            "objects/info/http-alternates",
            "",
        )
    ],
    ("GET", "/full.git/objects/pack/pack-" + "0" * 40 + ".idx", {}, None),
    ("POST", "/full.git/git-upload-pack", {**UPLOAD, "Git-Protocol": "version=2"}, LS_REFS),
    ("POST", "/full.git/git-upload-pack", UPLOAD, b"0000"),
    ("POST", "/full.git/git-receive-pack", RECEIVE, b"0000"),
    ("POST", "/off.git/git-upload-pack", UPLOAD, b"0000"),
    ("POST", "/off.git/git-receive-pack", RECEIVE, b"0000"),
    ("POST", "/nothing.git/git-receive-pack", RECEIVE, b"0000"),
    ("POST", "/full.git/git-upload-pack", {}, b"0000"),
    ("POST", "/full.git/git-upload-pack", {"Content-Type": "text/plain"}, b"0000"),
    ("POST", "/full.git/git-upload-pack", RECEIVE, b"0000"),
    ("POST", "/full.git/info/refs", {}, b"x"),
    ("PUT", "/full.git/HEAD", {}, b"x"),
    ("DELETE", "/full.git/objects/info/packs", {}, None),
    ("OPTIONS", "/full.git/info/refs", {"Origin": "https://example.org"}, None),
    ("GET", "/full.git/git-upload-pack", {}, None),
    ("HEAD", "/full.git/git-receive-pack", {}, None),
]


@pytest.fixture
def both(serve: ServeFunction, root: Path, repo: Path) -> tuple[Server, Server]:
    """Both over the same repositories; anonymous users may push."""
    flags = ("--anonymous", "write")
    return serve(root, *flags, kind="gitsmart"), serve(root, *flags, kind="git")


def test_statuses_and_headers_are_gits(both: tuple[Server, Server], repo: Path) -> None:
    ours, gits = both
    (pack,) = (repo / "objects" / "pack").glob("*.pack")
    (loose,) = (repo / "objects").glob("??/*")
    names = {"PACK": pack, "IDX": pack.with_suffix(".idx"), "LOOSE": loose}
    wrong = []
    for method, path, headers, body in CASES:
        for word, file in names.items():
            path = path.replace(word, str(file.relative_to(repo)))
        got, expected = (ask(server, method, path, headers, body) for server in (ours, gits))
        has_length = any(name == "Content-Length" for name, _ in expected[1])
        pair = [normal(reply, has_length=has_length) for reply in (got, expected)]
        if pair[0] != pair[1]:
            wrong.append((method, path, headers, *pair))
        if expected[0] == 200 and "service=" not in path and method == "GET":
            assert got[2] == expected[2], path
        if expected[0] == 415:
            assert got[2] == expected[2]
    assert not wrong, "\n".join(map(str, wrong))


def test_nginx_serves_the_same(tmp_path: Path) -> None:
    """The runner itself is held against a known answer: git's own, without any server."""
    git_dir = tmp_path / "x.git"
    subprocess.run(["git", "init", "-q", "--bare", str(git_dir)], check=True)
    out = subprocess.run(
        ["git", "http-backend"],
        env={
            "PATH": "/usr/bin:/bin",
            "REQUEST_METHOD": "GET",
            "GIT_PROJECT_ROOT": str(tmp_path),
            "PATH_INFO": "/x.git/objects/info/packs",
            "GIT_HTTP_EXPORT_ALL": "1",
        },
        check=True,
        capture_output=True,
    ).stdout
    assert out.split(b"\r\n") == [
        b"Expires: Fri, 01 Jan 1980 00:00:00 GMT",
        b"Pragma: no-cache",
        b"Cache-Control: no-cache, max-age=0, must-revalidate",
        b"Content-Length: 1",
        b"Content-Type: text/plain; charset=utf-8",
        b"",
        b"\n",
    ]


def test_repositories_that_are_not_exported(
    serve: ServeFunction, tmp_path: Path, make_repo: MakeRepo
) -> None:
    """`git-daemon-export-ok`."""
    root = tmp_path / "root"
    for name in ("open", "closed"):
        make_repo(root / f"{name}.git", commits=1)
    (root / "open.git" / "git-daemon-export-ok").touch()
    statuses = []
    for kind in ("gitsmart", "git"):
        server = serve(root, "--require-export-ok", kind=kind)
        paths = [f"/{name}.git/info/refs?service=git-upload-pack" for name in ("open", "closed", "none")]
        statuses.append([ask(server, "GET", path, {}, None)[0] for path in paths])
    assert statuses == [[200, 404, 404]] * 2
