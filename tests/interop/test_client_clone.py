"""Clones with the real git client, over protocol v0, v1 and v2."""

from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, HostFunction, MakeRepo, Server, fsck, heads_and_tags, refs


def remote_heads(work: Path) -> dict[str, str]:
    """The remote-tracking branches of a clone, named as they are at the remote."""
    found = refs(work)
    return {
        name.replace("refs/remotes/origin/", "refs/heads/"): oid
        for name, oid in found.items()
        if name.startswith("refs/remotes/origin/") and not name.endswith("/HEAD")
    }


def heads(path: Path) -> dict[str, str]:
    return {name: oid for name, oid in refs(path).items() if name.startswith("refs/heads/")}


def tags(path: Path) -> dict[str, str]:
    return {name: oid for name, oid in refs(path).items() if name.startswith("refs/tags/")}


def test_plain_clone_has_every_branch_and_tag(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    fsck(work)
    assert client("rev-parse", "HEAD", cwd=work) == refs(hosted.path)["refs/heads/main"]
    assert client("symbolic-ref", "HEAD", cwd=work) == "refs/heads/main"
    assert remote_heads(work) == heads(hosted.path)
    assert tags(work) == tags(hosted.path)
    assert (work / "docs/README").read_text() == "a sample\n"
    assert (work / "link").readlink() == Path("docs/README")
    assert client("status", "--porcelain", cwd=work) == ""


def test_the_protocol_version_that_was_asked_for_is_spoken(
    client: Git, protocol: int, hosted: Hosted
) -> None:
    result = client.run("ls-remote", hosted.url, env={"GIT_TRACE_PACKET": "1"})
    assert result.returncode == 0
    spoken = {f"version {n}" for n in (1, 2) if f"git< version {n}" in result.stderr}
    assert spoken == ({f"version {protocol}"} if protocol else set())


def test_bare_clone(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "--bare", hosted.url, "copy.git", cwd=tmp_path)
    fsck(tmp_path / "copy.git")
    assert heads_and_tags(tmp_path / "copy.git") == heads_and_tags(hosted.path)


def test_mirror_clone_has_refs_of_every_kind(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    main = client("rev-parse", "main", cwd=hosted.path)
    for name in ("refs/notes/commits", "refs/changes/01/1/1", "refs/pull/7/head"):
        client("update-ref", name, main, cwd=hosted.path)
    client("clone", "--mirror", hosted.url, "copy.git", cwd=tmp_path)
    fsck(tmp_path / "copy.git")
    assert refs(tmp_path / "copy.git") == refs(hosted.path)


def test_all_objects_arrive_and_no_more(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "--mirror", hosted.url, "copy.git", cwd=tmp_path)

    def objects(path: Path) -> list[str]:
        listing = client("cat-file", "--batch-all-objects", "--batch-check", "--unordered", cwd=path)
        return sorted(listing.splitlines())

    reachable = client("rev-list", "--objects", "--all", "--no-object-names", cwd=hosted.path).splitlines()
    assert [line.split()[0] for line in objects(tmp_path / "copy.git")] == sorted(reachable)


def test_tags_point_at_the_same_objects(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "--bare", hosted.url, "copy.git", cwd=tmp_path)
    form = "--format=%(refname) %(objecttype) %(objectname) %(*objecttype) %(*objectname)"
    assert client("for-each-ref", form, cwd=tmp_path / "copy.git") == client(
        "for-each-ref", form, cwd=hosted.path
    )


def test_tags_on_blobs_and_trees(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("tag", "on-blob", "main:docs/README", cwd=hosted.path)
    client("tag", "-a", "-m", "x", "on-tree", "main:src", cwd=hosted.path)
    client("clone", "--bare", hosted.url, "copy.git", cwd=tmp_path)
    fsck(tmp_path / "copy.git")
    assert heads_and_tags(tmp_path / "copy.git") == heads_and_tags(hosted.path)


@pytest.mark.parametrize("depth", [1, 2, 5, 1000])
def test_shallow_clone(client: Git, hosted: Hosted, tmp_path: Path, depth: int) -> None:
    client("clone", "--depth", str(depth), hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    fsck(work)
    local = client("clone", "--depth", str(depth), f"file://{hosted.path}", "local", cwd=tmp_path)
    assert local == ""
    assert client("rev-list", "HEAD", cwd=work) == client("rev-list", "HEAD", cwd=tmp_path / "local")
    assert client("rev-parse", "--is-shallow-repository", cwd=work) == ("false" if depth == 1000 else "true")
    assert remote_heads(work) == {"refs/heads/main": refs(hosted.path)["refs/heads/main"]}


def test_shallow_clone_of_all_branches(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "--depth", "3", "--no-single-branch", hosted.url, "work", cwd=tmp_path)
    fsck(tmp_path / "work")
    assert remote_heads(tmp_path / "work") == heads(hosted.path)


def test_shallow_since_and_exclude(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    for number, flag in enumerate(("--shallow-since=1600001800", "--shallow-exclude=v1.0")):
        client("clone", flag, hosted.url, f"work{number}", cwd=tmp_path)
        client("clone", flag, f"file://{hosted.path}", f"local{number}", cwd=tmp_path)
        fsck(tmp_path / f"work{number}")
        assert client("rev-list", "HEAD", cwd=tmp_path / f"work{number}") == client(
            "rev-list", "HEAD", cwd=tmp_path / f"local{number}"
        )


@pytest.mark.parametrize("branch", ["topic", "other/deep/branch", "unrelated"])
def test_single_branch(client: Git, hosted: Hosted, tmp_path: Path, branch: str) -> None:
    client("clone", "--single-branch", "-b", branch, hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    fsck(work)
    assert remote_heads(work) == {f"refs/heads/{branch}": refs(hosted.path)[f"refs/heads/{branch}"]}
    assert client("symbolic-ref", "--short", "HEAD", cwd=work) == branch


def test_clone_of_a_tag_is_detached(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "-b", "v2.0", hosted.url, "work", cwd=tmp_path)
    fsck(tmp_path / "work")
    assert client("rev-parse", "HEAD", cwd=tmp_path / "work") == client(
        "rev-parse", "v2.0^{commit}", cwd=hosted.path
    )


def test_no_tags(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "--no-tags", hosted.url, "work", cwd=tmp_path)
    fsck(tmp_path / "work")
    assert tags(tmp_path / "work") == {}


def test_empty_repository(client: Git, host: HostFunction, tmp_path: Path) -> None:
    hosted = host(empty=True)
    result = client.run("clone", hosted.url, "work", cwd=tmp_path)
    assert result.returncode == 0
    assert "cloned an empty repository" in result.stderr
    work = tmp_path / "work"
    (work / "first").write_text("first\n")
    client("add", "first", cwd=work)
    client("commit", "-q", "-m", "first", cwd=work)
    client("push", "origin", "HEAD:refs/heads/main", cwd=work)
    assert refs(hosted.path) == {"refs/heads/main": client("rev-parse", "HEAD", cwd=work)}
    client("clone", hosted.url, "again", cwd=tmp_path)
    fsck(tmp_path / "again")


def test_unborn_head_names_the_branch(client: Git, protocol: int, host: HostFunction, tmp_path: Path) -> None:
    hosted = host(empty=True)
    client("symbolic-ref", "HEAD", "refs/heads/trunk", cwd=hosted.path)
    client("clone", hosted.url, "work", cwd=tmp_path)
    # only v2's ls-refs can say what an unborn HEAD points at
    expected = "refs/heads/trunk" if protocol == 2 else "refs/heads/main"
    assert client("symbolic-ref", "HEAD", cwd=tmp_path / "work") == expected


def test_head_that_points_nowhere(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("symbolic-ref", "HEAD", "refs/heads/gone", cwd=hosted.path)
    client("clone", hosted.url, "work", cwd=tmp_path)
    fsck(tmp_path / "work", "--no-reflogs")
    assert remote_heads(tmp_path / "work") == heads(hosted.path)


def test_detached_head(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    commit = client("rev-parse", "main~3", cwd=hosted.path)
    (hosted.path / "HEAD").write_text(commit + "\n")
    client("clone", hosted.url, "work", cwd=tmp_path)
    fsck(tmp_path / "work")
    assert client("rev-parse", "HEAD", cwd=tmp_path / "work") == commit
    assert client.run("symbolic-ref", "-q", "HEAD", cwd=tmp_path / "work").returncode == 1


def test_sha256_repository(client: Git, host: HostFunction, tmp_path: Path) -> None:
    hosted = host(object_format="sha256")
    client("clone", "--mirror", hosted.url, "copy.git", cwd=tmp_path)
    fsck(tmp_path / "copy.git")
    assert refs(tmp_path / "copy.git") == refs(hosted.path)
    assert len(client("rev-parse", "main", cwd=tmp_path / "copy.git")) == 64


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        pytest.param("plain.git", "plain.git", id="as-it-is"),
        pytest.param("short.git", "short", id="without-git"),
        pytest.param("slash.git", "slash.git/", id="trailing-slash"),
        pytest.param("noslash.git", "noslash/", id="without-git-and-trailing-slash"),
        pytest.param("team/group/deep.git", "team/group/deep.git", id="nested"),
        pytest.param("team/short.git", "team/short", id="nested-without-git"),
        pytest.param("no-suffix", "no-suffix", id="folder-without-git"),
        pytest.param("grüße ü.git", "gr%C3%BC%C3%9Fe%20%C3%BC.git", id="percent-encoded-utf8"),
    ],
)
def test_names(client: Git, host: HostFunction, tmp_path: Path, name: str, asked: str) -> None:
    hosted = host(name)
    client("clone", hosted.server.url_of(asked), "work", cwd=tmp_path)
    fsck(tmp_path / "work")
    assert remote_heads(tmp_path / "work") == heads(hosted.path)


def test_non_bare_repository(client: Git, server: Server, make_repo: MakeRepo, tmp_path: Path) -> None:
    path = make_repo(server.root / f"worktree-{tmp_path.name}", bare=False)
    client("clone", server.url_of(path.name), "work", cwd=tmp_path)
    fsck(tmp_path / "work")
    assert client("rev-parse", "HEAD", cwd=tmp_path / "work") == client("rev-parse", "HEAD", cwd=path)


def test_a_repository_that_comes_and_goes_is_noticed(client: Git, host: HostFunction, tmp_path: Path) -> None:
    hosted = host()
    client("ls-remote", hosted.url)
    away = hosted.path.rename(tmp_path / "away.git")
    assert "not found" in client.fails("ls-remote", hosted.url)
    away.rename(hosted.path)
    client("clone", hosted.url, "work", cwd=tmp_path)
    fsck(tmp_path / "work")


@pytest.mark.parametrize("name", ["nosuch.git", "a/b/nosuch", "../etc", ".git", "%2e%2e/x", "x%00y", "refs"])
def test_what_is_no_repository_is_not_found(client: Git, hosted: Hosted, name: str) -> None:
    if hosted.server.kind == "git" and "%" in name:
        pytest.skip("http-backend answers 500")
    message = client.fails("ls-remote", hosted.server.url_of(name))
    assert "not found" in message or "returned error: 400" in message or "returned error: 403" in message
    assert str(hosted.server.root) not in message


def test_five_thousand_refs(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    commits = client("rev-list", "--all", cwd=hosted.path).splitlines()
    lines = [f"create refs/heads/many/{n} {commits[n % len(commits)]}" for n in range(5000)]
    client("update-ref", "--stdin", cwd=hosted.path, input="\n".join(lines) + "\n")
    client("clone", "--bare", hosted.url, "copy.git", cwd=tmp_path)
    fsck(tmp_path / "copy.git")
    assert heads_and_tags(tmp_path / "copy.git") == heads_and_tags(hosted.path)


def test_partial_clone_of_blobs(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    """A server without filters is cloned in full, with a warning; one with them leaves the blobs out."""
    result = client.run("clone", "--filter=blob:none", "--no-checkout", hosted.url, "work", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    client("checkout", "-q", "main", cwd=tmp_path / "work")
    assert client("status", "--porcelain", cwd=tmp_path / "work") == ""
    assert remote_heads(tmp_path / "work") == heads(hosted.path)
