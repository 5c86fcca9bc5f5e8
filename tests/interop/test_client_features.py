"""The optional features of protocol v2 with the real git client."""

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, HostFunction, commit_file, fsck, heads_and_tags, refs

TRACE = {"GIT_TRACE_PACKET": "1"}


def git_version(git: Git) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", git("version"))[:2])


def sent(stderr: str) -> list[str]:
    """The pkt-lines that the client sent, by GIT_TRACE_PACKET."""
    return re.findall(r"packet: +\w+> (.*)", stderr)


def received(stderr: str) -> list[str]:
    return re.findall(r"packet: +\w+< (.*)", stderr)


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def cdn(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory that another web server serves, and its URL."""
    directory = tmp_path / "cdn"
    directory.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield directory, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


# --------------------------------------------------------------------------------------------- ref-in-want


@pytest.fixture
def copy(git: Git, hosted: Hosted, tmp_path: Path) -> Path:
    """An empty repository with `hosted` as its origin."""
    git("init", "-q", "--bare", "copy.git", cwd=tmp_path)
    git("remote", "add", "--mirror=fetch", "origin", hosted.url, cwd=tmp_path / "copy.git")
    return tmp_path / "copy.git"


def test_refs_are_wanted_by_name(git: Git, hosted: Hosted, copy: Path) -> None:
    result = git.run("fetch", "origin", cwd=copy, env=TRACE)
    assert result.returncode == 0, result.stderr
    assert "want-ref refs/heads/main" in sent(result.stderr)
    assert "wanted-refs" in received(result.stderr)
    assert refs(copy) == refs(hosted.path)
    fsck(copy)


def test_refs_are_wanted_by_value_where_it_is_switched_off(git: Git, hosted: Hosted, copy: Path) -> None:
    git("config", "uploadpack.allowRefInWant", "false", cwd=hosted.path)
    result = git.run("fetch", "origin", cwd=copy, env=TRACE)
    assert not any(line.startswith("want-ref") for line in sent(result.stderr))
    assert refs(copy) == refs(hosted.path)


def test_50000_refs_wanted_by_name(git: Git, hosted: Hosted, copy: Path) -> None:
    main = git("rev-parse", "main", cwd=hosted.path)
    with (hosted.path / "packed-refs").open("a") as file:
        file.writelines(f"{main} refs/zz/{number:06d}\n" for number in range(50_000))
    git("fetch", "-q", "origin", cwd=copy)
    assert refs(copy) == refs(hosted.path)
    assert len(refs(copy)) > 50_000
    line = hosted.server.wait_for_line(r"service=git-upload-pack version=2 .*note=clone")
    seconds = re.search(r" seconds=([\d.]+)", line)
    assert seconds is not None
    assert float(seconds[1]) < 10


def test_rounds_of_negotiation_with_refs_by_name(git: Git, hosted: Hosted, tmp_path: Path) -> None:
    git("clone", "-q", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    later = {"GIT_COMMITTER_DATE": "1800000000 +0000"}  # newest first: none of these is known to the server
    for n in range(100):
        git("commit", "--allow-empty", "-q", "-m", f"mine {n}", cwd=work, env=later)
    git("clone", "-q", hosted.path, "other", cwd=tmp_path)
    new = commit_file(git, tmp_path / "other", "new.txt", "new\n")
    git("push", "-q", "origin", "HEAD:main", cwd=tmp_path / "other")
    result = git.run("fetch", "origin", "main", cwd=work, env=TRACE)
    assert received(result.stderr).count("acknowledgments") > 1
    assert "want-ref refs/heads/main" in sent(result.stderr)
    assert git("rev-parse", "FETCH_HEAD", cwd=work) == new
    fsck(work)


def test_negotiate_only(git: Git, hosted: Hosted, tmp_path: Path) -> None:
    """wait-for-done: the client asks what it has in common with the server, and wants nothing."""
    git("clone", "-q", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    base = git("rev-parse", "HEAD", cwd=work)
    commit_file(git, work, "mine.txt", "mine\n")
    result = git.run("fetch", "--negotiate-only", "--negotiation-tip=HEAD", "origin", cwd=work)
    assert result.returncode == 0, result.stderr
    known = set(git("rev-list", "main", cwd=hosted.path).split())
    assert base in result.stdout.split()
    assert set(result.stdout.split()) <= known


def test_push_that_negotiates(git: Git, hosted: Hosted, tmp_path: Path) -> None:
    """push.negotiate asks with wait-for-done before it pushes."""
    git("clone", "-q", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    new = commit_file(git, work, "mine.txt", "mine\n")
    result = git.with_config("push.negotiate=true").run("push", "origin", "HEAD:main", cwd=work, env=TRACE)
    assert result.returncode == 0, result.stderr
    assert "wait-for-done" in result.stderr
    assert "warning" not in result.stderr
    assert refs(hosted.path)["refs/heads/main"] == new
    fsck(hosted.path)


# ----------------------------------------------------------------------------- sideband-all, packfile-uris


@pytest.mark.parametrize("depth", [(), ("--depth=2",)])
def test_sideband_all(git: Git, hosted: Hosted, tmp_path: Path, depth: tuple[str, ...]) -> None:
    git("config", "uploadpack.allowSidebandAll", "true", cwd=hosted.path)
    result = git.run("clone", "--progress", *depth, hosted.url, "work", cwd=tmp_path, env=TRACE)
    assert result.returncode == 0, result.stderr
    assert "sideband-all" in sent(result.stderr)
    assert "remote: Enumerating objects" in result.stderr
    commit = commit_file(git, tmp_path / "work", "x", "x\n")
    git("push", "-q", "origin", "HEAD:refs/heads/new", cwd=tmp_path / "work")
    git("clone", "-q", *depth, "-b", "new", hosted.url, "again", cwd=tmp_path)
    assert git("rev-parse", "HEAD", cwd=tmp_path / "again") == commit
    fsck(tmp_path / "work")
    fsck(tmp_path / "again")


@pytest.mark.parametrize("sideband_all", ["true", "false"])
def test_shallow_fetch_of_refs_by_name(git: Git, hosted: Hosted, tmp_path: Path, sideband_all: str) -> None:
    """shallow-info and wanted-refs in one answer: C git's own server gets their order wrong."""
    git("config", "uploadpack.allowSidebandAll", sideband_all, cwd=hosted.path)
    result = git.run("clone", "--depth=2", "--no-single-branch", hosted.url, "work", cwd=tmp_path, env=TRACE)
    assert result.returncode == 0, result.stderr
    assert any(line.endswith("wanted-refs") for line in received(result.stderr))
    assert any(line.endswith("shallow-info") for line in received(result.stderr))
    work = tmp_path / "work"
    fsck(work)
    git("fetch", "-q", "--deepen=1", "origin", cwd=work)
    fsck(work)
    git("fetch", "-q", "--unshallow", "origin", cwd=work)
    assert not (work / ".git/shallow").exists()
    assert refs(work)["refs/remotes/origin/main"] == refs(hosted.path)["refs/heads/main"]
    fsck(work)


def test_error_in_sideband_all(git: Git, hosted: Hosted, tmp_path: Path) -> None:
    git("config", "uploadpack.allowSidebandAll", "true", cwd=hosted.path)
    git("clone", "-q", hosted.url, "work", cwd=tmp_path)
    stderr = git.fails("fetch", "origin", "1" * 40, cwd=tmp_path / "work")
    assert f"remote error: upload-pack: not our ref {'1' * 40}" in stderr


def test_packfile_uris(git: Git, hosted: Hosted, cdn: tuple[Path, str], tmp_path: Path) -> None:
    """The blob comes from the other server, all the rest from here."""
    directory, url = cdn
    blob = git("rev-parse", "main:data/blob.bin", cwd=hosted.path)
    pack_hash = git("pack-objects", "-q", directory / "pack", cwd=hosted.path, input=blob + "\n")
    uri = f"{url}/pack-{pack_hash}.pack"
    git("config", "uploadpack.allowSidebandAll", "true", cwd=hosted.path)
    git("config", "uploadpack.blobPackfileUri", f"{blob} {pack_hash} {uri}", cwd=hosted.path)
    client = git.with_config("fetch.uriprotocols=http,https")
    result = client.run("clone", "--mirror", hosted.url, "copy.git", cwd=tmp_path, env=TRACE)
    assert result.returncode == 0, result.stderr
    assert any(line.endswith("packfile-uris") for line in received(result.stderr))
    copy = tmp_path / "copy.git"
    assert (copy / f"objects/pack/pack-{pack_hash}.pack").exists()
    assert refs(copy) == refs(hosted.path)
    fsck(copy)
    # a client that wants no URIs gets it all from here
    git("clone", "-q", "--mirror", hosted.url, "other.git", cwd=tmp_path)
    assert git("cat-file", "-t", blob, cwd=tmp_path / "other.git") == "blob"
    fsck(tmp_path / "other.git")


# ---------------------------------------------------------------------------------------------- bundle-uri


@pytest.mark.parametrize("accepts", ["knownUrl", "none"])
def test_promisor_remote(git: Git, host: HostFunction, tmp_path: Path, accepts: str) -> None:
    """A server that lacks the large blobs: clients get them from the one that it names."""
    if git_version(git) < (2, 50):
        pytest.skip("this git knows of no promisor remotes of servers")
    lop, lacking = host(), host(empty=True)
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=lop.path)
    for name, value in (
        ("core.repositoryFormatVersion", "1"),
        ("remote.lop.url", lop.url),
        ("remote.lop.fetch", "+refs/*:refs/*"),
        ("remote.lop.promisor", "true"),
        ("remote.lop.partialCloneFilter", "blob:limit=200"),
        ("promisor.advertise", "true"),
    ):
        git("config", name, value, cwd=lacking.path)
    git("fetch", "-q", "--filter=blob:limit=200", "lop", cwd=lacking.path)
    missing = git("rev-list", "--objects", "--all", "--missing=print", cwd=lacking.path).count("?")
    assert missing
    known = git.with_config(
        "remote.lop.promisor=true", f"remote.lop.url={lop.url}", f"promisor.acceptFromServer={accepts}"
    )
    known("clone", "-q", "--no-checkout", "--filter=blob:limit=200", lacking.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    assert git("rev-list", "--objects", "--all", "--missing=print", cwd=work).count("?") == missing
    known("checkout", "-q", "main", cwd=work)
    assert git("status", "--porcelain", cwd=work) == ""


def test_bundle_uri(git: Git, hosted: Hosted, cdn: tuple[Path, str], tmp_path: Path) -> None:
    """Most of a clone comes from a bundle on the other server."""
    if git_version(git) < (2, 40):
        pytest.skip("this git asks for no bundle URIs")
    directory, url = cdn
    git("bundle", "create", directory / "base.bundle", "--all", cwd=hosted.path)
    git("clone", "-q", hosted.path, "other", cwd=tmp_path)
    new = commit_file(git, tmp_path / "other", "new.txt", "newer than the bundle\n")
    git("push", "-q", "origin", "HEAD:main", cwd=tmp_path / "other")
    for name, value in {
        "uploadpack.advertiseBundleURIs": "true",
        "bundle.version": "1",
        "bundle.mode": "all",
        "bundle.base.uri": f"{url}/base.bundle",
    }.items():
        git("config", name, value, cwd=hosted.path)
    client = git.with_config("transfer.bundleURI=true")
    result = client.run("clone", "--progress", hosted.url, "work", cwd=tmp_path, env=TRACE)
    assert result.returncode == 0, result.stderr
    assert "command=bundle-uri" in sent(result.stderr)
    assert f"bundle.base.uri={url}/base.bundle" in received(result.stderr)
    work = tmp_path / "work"
    assert git("rev-parse", "HEAD", cwd=work) == new
    assert any(name.startswith("refs/bundles/") for name in refs(work))
    line = hosted.server.wait_for_line(r"service=git-upload-pack version=2 .*note=fetch")
    assert " objects=3 " in line
    fsck(work)


# --------------------------------------------------------------------------------------- what the log says


def test_the_log_names_the_client_and_its_options(git: Git, hosted: Hosted, tmp_path: Path) -> None:
    start = len(hosted.server.log)
    git("ls-remote", "-o", "colour=red", "-o", 'quoted "x"\n', hosted.url)
    line = hosted.server.wait_for_line(r"note=ls-refs", start=start)
    assert re.search(r" agent=git/\d", line)
    assert r'server_options="colour=red, quoted \"x\"' in line
    assert " session=" not in line


def test_the_log_has_the_clients_session(git: Git, hosted: Hosted, tmp_path: Path) -> None:
    git("config", "transfer.advertiseSID", "true", cwd=hosted.path)
    client = git.with_config("transfer.advertiseSID=true")
    start = len(hosted.server.log)
    for version in (0, 2):
        work = tmp_path / f"work-{version}"
        client.with_config(f"protocol.version={version}")("clone", "-q", hosted.url, work)
        session = r"\d{8}T\d{6}\.\d+Z-H[0-9a-f]{8}-P[0-9a-f]{8}"
        pattern = rf"version={version} .* session={session}.* note=\"?clone"
        hosted.server.wait_for_line(pattern, start=start)
    commit_file(git, tmp_path / "work-2", "x", "x\n")
    client("push", "-q", "origin", "HEAD:main", cwd=tmp_path / "work-2")
    line = hosted.server.wait_for_line(r"service=git-receive-pack .*objects=3 ", start=start)
    assert re.search(r" agent=git/\S+ session=\d{8}T", line)


# ---------------------------------------------------------------------------------------------- alternates


@pytest.fixture
def fork(git: Git, hosted: Hosted, host: HostFunction) -> Hosted:
    """An empty repository that borrows all objects of `hosted`."""
    fork = host(empty=True)
    (fork.path / "objects/info/alternates").write_text(f"../../{hosted.name}/objects\n")
    return fork


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_push_sends_nothing_that_an_alternate_has(
    git: Git, hosted: Hosted, fork: Hosted, tmp_path: Path, version: int
) -> None:
    git("clone", "-q", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    new = commit_file(git, work, "new.txt", "new\n")
    client = git.with_config(f"protocol.version={version}")
    start = len(fork.server.log)
    result = client.run("push", fork.url, "HEAD:refs/heads/main", cwd=work, env=TRACE)
    assert result.returncode == 0, result.stderr
    assert any(line.endswith(" .have") for line in received(result.stderr))
    assert refs(fork.path) == {"refs/heads/main": new}
    line = fork.server.wait_for_line(
        rf"repo={re.escape(fork.name)} service=git-receive-pack .*refs=1", start=start
    )
    assert " objects=3 " in line
    fsck(fork.path)
    # a second push, of a branch whose commits are all borrowed
    git("fetch", "-q", "origin", "topic:topic", cwd=work)
    client("push", "-q", fork.url, "topic", cwd=work)
    assert refs(fork.path)["refs/heads/topic"] == refs(hosted.path)["refs/heads/topic"]
    fsck(fork.path)


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("depth", [(), ("--depth=3", "--no-single-branch")])
def test_a_clone_of_a_repository_that_borrows_its_objects(
    git: Git, hosted: Hosted, fork: Hosted, tmp_path: Path, version: int, depth: tuple[str, ...]
) -> None:
    for name, oid in heads_and_tags(hosted.path).items():
        git("update-ref", name, oid, cwd=fork.path)
    tree = git("rev-parse", "main^{tree}", cwd=fork.path)
    own = git("commit-tree", "-p", "main", "-m", "of its own", tree, cwd=fork.path)
    git("update-ref", "refs/heads/main", own, cwd=fork.path)
    client = git.with_config(f"protocol.version={version}")
    client("clone", "-q", "--mirror", *depth, fork.url, "copy.git", cwd=tmp_path)
    assert heads_and_tags(tmp_path / "copy.git") == heads_and_tags(fork.path)
    fsck(tmp_path / "copy.git")
