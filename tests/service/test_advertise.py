from pathlib import Path

import pytest

from gitsmart.repo.root import RepositoryRoot
from gitsmart.service.advertise import ServiceName, advertise
from gitsmart.service.options import ServiceOptions
from gitsmart.wire.pktline import PktLineDecoder, Special
from tests.service.conftest import BytesChannel, Git, Served

OPTIONS = ServiceOptions(agent=b"gitsmart/test")
UPLOAD: ServiceName = "git-upload-pack"
RECEIVE: ServiceName = "git-receive-pack"
FLUSH = Special.FLUSH


def lines_of(path: Path, service: ServiceName, version: int) -> list[bytes | Special]:
    channel = BytesChannel()
    advertise(
        RepositoryRoot(path.parent).open(path.name),
        channel,
        service=service,
        version=version,
        options=OPTIONS,
    )
    return PktLineDecoder().feed(bytes(channel.response))


def backend(git: Git, path: Path, service: ServiceName, version: int) -> list[bytes | Special]:
    """What C git's own service says; http-backend puts its `# service=` line before it."""
    environ, git.environ = git.environ, git.environ | {"GIT_PROTOCOL": f"version={version}"}
    out = git.run(service.removeprefix("git-"), "--advertise-refs", "--stateless-rpc", path)
    git.environ = environ
    return PktLineDecoder().feed(out)


def refs_of(lines: list[bytes | Special]) -> list[bytes]:
    """Oid and name of each line, without the capabilities."""
    return [
        line.split(b"\0")[0].rstrip(b"\n")
        for line in lines
        if isinstance(line, bytes) and line[40:41] == b" "
    ]


def capabilities_of(lines: list[bytes | Special]) -> set[bytes]:
    first = next(line for line in lines if isinstance(line, bytes) and b"\0" in line)
    return set(first.split(b"\0")[1].split())


def test_v2_upload_pack(served: Served) -> None:
    assert lines_of(served.path, UPLOAD, 2) == [
        b"version 2\n",
        b"agent=gitsmart/test\n",
        b"ls-refs=unborn\n",
        b"fetch=shallow wait-for-done filter ref-in-want\n",
        b"server-option\n",
        b"object-format=sha1\n",
        FLUSH,
    ]


@pytest.mark.parametrize("version", [0, 1])
def test_v0_and_v1_upload_pack(served: Served, version: int) -> None:
    lines = lines_of(served.path, UPLOAD, version)
    assert lines[:2] == [b"# service=git-upload-pack\n", FLUSH]
    assert (lines[2] == b"version 1\n") is (version == 1)
    assert lines[-1] is FLUSH
    assert refs_of(lines) == refs_of(backend(served.git, served.path, UPLOAD, version))
    assert refs_of(lines)[0] == served.oid("main") + b" HEAD"
    assert served.oid("v1^{}") + b" refs/tags/v1^{}" in refs_of(lines)
    ours, gits = capabilities_of(lines), capabilities_of(backend(served.git, served.path, UPLOAD, version))
    agents = {word for word in ours | gits if word.startswith(b"agent=")}
    assert b"agent=gitsmart/test" in agents
    assert b"symref=HEAD:refs/heads/main" in ours
    assert gits - ours - agents == set()
    assert ours - gits - agents == {b"filter", b"allow-reachable-sha1-in-want"}


@pytest.mark.parametrize("version", [0, 1, 2])
def test_receive_pack(served: Served, version: int) -> None:
    lines = lines_of(served.path, RECEIVE, version)
    assert lines[:2] == [b"# service=git-receive-pack\n", FLUSH]
    assert (lines[2] == b"version 1\n") is (version == 1)
    assert refs_of(lines) == refs_of(backend(served.git, served.path, RECEIVE, version))
    ours = capabilities_of(lines)
    assert ours == {
        b"report-status",
        b"report-status-v2",
        b"delete-refs",
        b"side-band-64k",
        b"quiet",
        b"atomic",
        b"ofs-delta",
        b"push-options",
        b"object-format=sha1",
        b"agent=gitsmart/test",
    }
    assert capabilities_of(backend(served.git, served.path, RECEIVE, version)) - ours <= {
        word
        for word in capabilities_of(backend(served.git, served.path, RECEIVE, version))
        if b"agent=" in word
    }


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
@pytest.mark.parametrize("service", [UPLOAD, RECEIVE])
def test_an_empty_repository_still_has_capabilities(
    git: Git, tmp_path: Path, service: ServiceName, object_format: str
) -> None:
    path = tmp_path / "root" / "empty.git"
    path.parent.mkdir()
    git("init", "-q", "--bare", f"--object-format={object_format}", path)
    lines = lines_of(path, service, 0)
    zero = b"0" * (40 if object_format == "sha1" else 64)
    assert isinstance(lines[2], bytes)
    assert lines[2].startswith(zero + b" capabilities^{}\0")
    assert lines[3:] == [FLUSH]
    assert b"object-format=" + object_format.encode() in capabilities_of(lines)
    assert not any(word.startswith(b"symref=") for word in capabilities_of(lines))


@pytest.mark.parametrize(
    ("setting", "capability"),
    [("receive.advertiseAtomic", b"atomic"), ("receive.advertisePushOptions", b"push-options")],
)
def test_capabilities_that_config_can_switch_off(
    git: Git, served: Served, setting: str, capability: bytes
) -> None:
    assert capability in capabilities_of(lines_of(served.path, RECEIVE, 0))
    git("config", setting, "false", cwd=served.path)
    assert capability not in capabilities_of(lines_of(served.path, RECEIVE, 0))
    assert capability not in capabilities_of(backend(git, served.path, RECEIVE, 0))


def test_detached_head_has_no_symref(served: Served) -> None:
    served.git("update-ref", "--no-deref", "HEAD", "main~1", cwd=served.path)
    lines = lines_of(served.path, UPLOAD, 0)
    assert refs_of(lines)[0] == served.oid("main~1") + b" HEAD"
    assert not any(word.startswith(b"symref=") for word in capabilities_of(lines))


def test_a_shallow_repository_names_its_shallow_commits(git: Git, served: Served) -> None:
    path = served.path.parent / "shallow.git"
    git("clone", "-q", "--bare", "--depth=2", f"file://{served.path}", path)
    shallow = (path / "shallow").read_bytes().split()
    for service in (UPLOAD, RECEIVE):
        lines = lines_of(path, service, 0)
        assert [line for line in lines if isinstance(line, bytes) and line.startswith(b"shallow ")] == [
            b"shallow " + oid + b"\n" for oid in sorted(shallow)
        ]
        assert lines[-1] is FLUSH


@pytest.mark.parametrize("prefixes", ["", "refs/tags refs/heads/main", "refs/heads/ma"])
def test_have_lines_of_alternates(git: Git, served: Served, prefixes: str) -> None:
    """What the repositories have that objects are borrowed from, theirs in turn included."""
    middle, fork = served.path.parent / "middle.git", served.path.parent / "fork.git"
    for path, lender in ((middle, served.path), (fork, middle)):
        git("init", "-q", "--bare", path)
        (path / "objects/info/alternates").write_text(f"{lender}/objects\n")
    tree = git("rev-parse", "main^{tree}", cwd=served.path)
    git("update-ref", "refs/heads/own", git("commit-tree", "-m", "own", tree, cwd=middle), cwd=middle)
    git("update-ref", "refs/heads/main", served.oid("main").decode(), cwd=fork)
    if prefixes:
        git("config", "core.alternateRefsPrefixes", prefixes, cwd=fork)
    ours = refs_of(lines_of(fork, RECEIVE, 0))
    assert ours == refs_of(backend(git, fork, RECEIVE, 0))
    assert ours[0] == served.oid("main") + b" refs/heads/main"
    assert {line[41:] for line in ours[1:]} == ({b".have"} if prefixes != "refs/heads/ma" else set())
    assert not any(b".have" in line for line in refs_of(lines_of(fork, UPLOAD, 0)))


def test_have_lines_of_an_empty_repository_carry_the_capabilities(git: Git, served: Served) -> None:
    fork = served.path.parent / "fork.git"
    git("init", "-q", "--bare", fork)
    (fork / "objects/info/alternates").write_text("../../repo.git/objects\n")
    lines = lines_of(fork, RECEIVE, 0)
    assert refs_of(lines) == refs_of(backend(git, fork, RECEIVE, 0))
    assert b"report-status" in capabilities_of(lines)
    assert isinstance(lines[2], bytes)
    assert lines[2][41:47] == b".have\0"


def test_many_refs_are_joined_into_few_writes(served: Served) -> None:
    served.add_packed_refs(5000)
    channel = BytesChannel()
    report = advertise(served.open(), channel, service=UPLOAD, version=0, options=OPTIONS)
    assert report.refs == 5000 + 4
    assert len(channel.writes) < 20
