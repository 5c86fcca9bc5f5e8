import time
from pathlib import Path

import pytest

from gitsmart.repo.root import RepositoryRoot
from gitsmart.service.options import ServiceOptions
from gitsmart.service.upload_pack import upload_pack
from gitsmart.wire.pktline import DELIM_PKT, FLUSH_PKT, PktLineDecoder, Special, pkt
from tests.service.conftest import BytesChannel, Git, Served


def body(*arguments: bytes, object_format: bytes = b"sha1") -> bytes:
    head = [b"command=ls-refs\n", b"agent=git/test", b"object-format=" + object_format]
    return b"".join(map(pkt, head)) + DELIM_PKT + b"".join(map(pkt, arguments)) + FLUSH_PKT


def ask(path: Path, request: bytes) -> list[bytes | Special]:
    channel = BytesChannel(request)
    upload_pack(RepositoryRoot(path.parent).open(path.name), channel, version=2, options=ServiceOptions())
    return PktLineDecoder().feed(bytes(channel.response))


def ask_git(git: Git, path: Path, request: bytes) -> list[bytes | Special]:
    environ, git.environ = git.environ, git.environ | {"GIT_PROTOCOL": "version=2"}
    out = git.run("upload-pack", "--stateless-rpc", path, data=request)
    git.environ = environ
    return PktLineDecoder().feed(out)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="all"),
        pytest.param([b"peel\n", b"symrefs\n", b"unborn\n"], id="everything-about-all"),
        pytest.param([b"peel", b"ref-prefix refs/tags/\n"], id="tags-peeled"),
        pytest.param([b"symrefs", b"ref-prefix HEAD"], id="head"),
        pytest.param([b"ref-prefix H", b"ref-prefix refs/heads/t"], id="prefixes-are-no-components"),
        pytest.param(
            [b"ref-prefix refs/heads/main", b"ref-prefix refs/heads/", b"ref-prefix refs/h"], id="nested"
        ),
        pytest.param([b"ref-prefix refs/tags/", b"ref-prefix refs/heads/", b"ref-prefix zz"], id="unsorted"),
        pytest.param([b"ref-prefix nothing"], id="none"),
        pytest.param([b"ref-prefix "], id="empty-prefix"),
        pytest.param([b"symrefs", b"ref-prefix refs/remotes/"], id="symref"),
    ],
)
def test_same_as_git(served: Served, arguments: list[bytes]) -> None:
    served.git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/heads/topic", cwd=served.path)
    served.git("tag", "-a", "-m", "a tag of a tag", "v1.1", "v1", cwd=served.path)
    ours = ask(served.path, body(*arguments))
    assert ours == ask_git(served.git, served.path, body(*arguments))
    assert ours[-1] is Special.FLUSH


@pytest.mark.parametrize("arguments", [[b"unborn", b"symrefs"], [b"unborn"], [b"symrefs"]])
def test_unborn_head(git: Git, tmp_path: Path, arguments: list[bytes]) -> None:
    path = tmp_path / "root" / "empty.git"
    path.parent.mkdir()
    git("init", "-q", "--bare", "--object-format=sha256", path)
    request = body(*arguments, object_format=b"sha256")
    assert ask(path, request) == ask_git(git, path, request)
    if len(arguments) == 2:
        assert ask(path, request) == [b"unborn HEAD symref-target:refs/heads/main\n", Special.FLUSH]


def test_unknown_arguments_are_refused_by_name(served: Served) -> None:
    assert ask(served.path, body(b"peel", b"hello")) == [b"ERR unexpected line: 'hello'\n"]


def test_50000_refs_take_tens_of_milliseconds(served: Served) -> None:
    served.add_packed_refs(50_000)
    repo = served.open()
    repo.refs()
    took = []
    prefixes = [b"ref-prefix refs/heads/many/%06d\n" % i for i in range(0, 50_000, 10)]
    for arguments in ([b"peel", b"symrefs"], prefixes):
        channel = BytesChannel(body(*arguments))
        start = time.perf_counter()
        report = upload_pack(repo, channel, version=2, options=ServiceOptions())
        took.append(time.perf_counter() - start)
        assert report.refs >= 5000
    # Measured: 0.06 s and 0.04 s; the bounds only tell linear from quadratic.
    assert took[0] < 1.5
    assert took[1] < 1.5
