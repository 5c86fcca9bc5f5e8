"""`git archive --remote` over HTTP. git speaks it since 2.44; an older one is led there by a bridge of ours.

The bridge does what remote-curl.c stateless_connect() does: it asks whether the server speaks v2, then takes
the request to git-upload-archive and the answer back; reading the answer is the real client's part.
"""

import base64
import contextlib
import hashlib
import http.client
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, HostFunction, MakeRepo, ServeFunction

BRIDGE = """\
import http.client, sys
port, name = {port}, {name!r}
connection = http.client.HTTPConnection("127.0.0.1", port)
headers = {{"Git-Protocol": "version=2"}}
connection.request("GET", f"/{{name}}/info/refs?service=git-upload-pack", headers=headers)
assert connection.getresponse().read().startswith(b"000eversion 2\\n")
body = b""
while not body.endswith(b"0000"):
    body += sys.stdin.buffer.read1(65536)
headers["Content-Type"] = "application/x-git-upload-archive-request"
headers["Accept"] = "application/x-git-upload-archive-result"
connection.request("POST", f"/{{name}}/git-upload-archive", body=body, headers=headers)
reply = connection.getresponse()
assert reply.status == 200, reply.status
assert reply.getheader("Content-Type") == "application/x-git-upload-archive-result"
while data := reply.read1(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
"""


def archive(
    git: Git, hosted: Hosted, tmp_path: Path, *arguments: str
) -> "subprocess.CompletedProcess[bytes]":
    script = tmp_path / "bridge"
    body = BRIDGE.format(port=hosted.server.port, name=hosted.name)
    script.write_text(f"#!{sys.executable}\n{body}")
    script.chmod(0o755)
    return subprocess.run(
        git.argv("archive", f"--remote={hosted.path}", f"--exec={script}", *arguments),
        env=git.environ,
        cwd=tmp_path,
        capture_output=True,
    )


@pytest.mark.parametrize("format_", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_a_real_client_gets_what_git_gives(
    git: Git, host: HostFunction, tmp_path: Path, format_: str, object_format: str
) -> None:
    hosted = host(object_format=object_format)
    result = archive(git, hosted, tmp_path, f"--format={format_}", "--prefix=p/", "main")
    assert (result.returncode, result.stderr) == (0, b"")
    local = subprocess.run(
        git.argv("archive", f"--format={format_}", "--prefix=p/", "main"),
        env=git.environ,
        cwd=hosted.path,
        check=True,
        capture_output=True,
    )
    assert result.stdout == local.stdout
    if format_ == "zip":
        with zipfile.ZipFile(io.BytesIO(result.stdout)) as unzipped:
            assert unzipped.testzip() is None
    else:
        with tarfile.open(fileobj=io.BytesIO(result.stdout)) as untarred:
            assert "p/README" in untarred.getnames() or "p/docs/README" in untarred.getnames()


def test_an_error_is_shown(git: Git, hosted: Hosted, tmp_path: Path) -> None:
    result = archive(git, hosted, tmp_path, "nothing")
    assert result.returncode != 0
    assert b"remote: fatal: no such ref: nothing" in result.stderr
    assert b"archiver died with error" in result.stderr


def test_output_names_the_format(git: Git, hosted: Hosted, tmp_path: Path) -> None:
    result = archive(git, hosted, tmp_path, "-o", "out.zip", "main")
    assert result.returncode == 0
    assert zipfile.is_zipfile(tmp_path / "out.zip")


def post(port: int, name: str, user: str = "") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Content-Type": "application/x-git-upload-archive-request"}
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    connection.request(
        "POST", f"/{name}/git-upload-archive", body=b"0012argument main\n0000", headers=headers
    )
    with contextlib.closing(connection), connection.getresponse() as reply:
        reply.read()
        return reply.status


def test_who_may(git: Git, serve: ServeFunction, make_repo: MakeRepo, tmp_path: Path) -> None:
    """Off for strangers unless the repository says so; http-backend: enabled for whoever has a name."""
    root = tmp_path / "root"
    root.mkdir()
    for name in ("unset", "true", "false"):
        make_repo(root / f"{name}.git", commits=1)
        if name != "unset":
            git("config", "http.uploadarchive", name, cwd=root / f"{name}.git")
    users = tmp_path / "users"
    digest = base64.b64encode(hashlib.sha1(b"secret").digest()).decode()
    users.write_text(f"alice:{{SHA}}{digest}\n")
    server = serve(root, "--htpasswd", str(users), "--anonymous", "read", kind="gitsmart")
    assert [post(server.port, f"{name}.git") for name in ("unset", "true", "false")] == [401, 200, 403]
    named = [post(server.port, f"{name}.git", "alice:secret") for name in ("unset", "true", "false")]
    assert named == [200, 200, 403]
