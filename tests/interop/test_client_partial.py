"""Partial clones with the real git client: what comes is what C git sends, and the rest comes when needed."""

from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, commit_file, fsck, refs

SPECS = [
    "blob:none",
    "blob:limit=100",
    "blob:limit=1k",
    "tree:0",
    "tree:1",
    "tree:3",
    "object:type=commit",
    "object:type=tree",
    "sparse:oid=patterns:patterns",
]


@pytest.fixture
def reference(git: Git, tmp_path: Path) -> Git:
    """git whose own upload-pack, which a file:// URL starts, serves partial clones."""
    config = tmp_path / "reference-config"
    config.write_text(
        f"[include]\n\tpath = {git.environ['GIT_CONFIG_GLOBAL']}\n"
        "[uploadpack]\n\tallowFilter = true\n\tallowAnySHA1InWant = true\n"
    )
    return Git({**git.environ, "GIT_CONFIG_GLOBAL": str(config)})


@pytest.fixture
def patterns(git: Git, hosted: Hosted) -> None:
    """A branch with a file of sparse patterns."""
    blob = git("hash-object", "-w", "--stdin", cwd=hosted.path, input="/src/\n!/src/part1/\n*.bin\n")
    tree = git("mktree", cwd=hosted.path, input=f"100644 blob {blob}\tpatterns\n")
    commit = git("commit-tree", "-m", "patterns", tree, cwd=hosted.path)
    git("update-ref", "refs/heads/patterns", commit, cwd=hosted.path)


def objects(git: Git, path: Path) -> set[str]:
    """What is there, asking nobody for more."""
    out = git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)", "--unordered", cwd=path)
    return set(out.split())


@pytest.mark.usefixtures("patterns")
@pytest.mark.parametrize("spec", [*SPECS, "blob:limit=500 tree:4", "tree:2 sparse:oid=patterns:patterns"])
def test_a_clone_has_what_git_sends(
    client: Git, reference: Git, hosted: Hosted, tmp_path: Path, spec: str
) -> None:
    flags = [f"--filter={part}" for part in spec.split()]
    client("clone", "-q", "--bare", *flags, hosted.url, "ours.git", cwd=tmp_path)
    reference("clone", "-q", "--bare", *flags, f"file://{hosted.path}", "gits.git", cwd=tmp_path)
    ours, gits = objects(client, tmp_path / "ours.git"), objects(client, tmp_path / "gits.git")
    if " " in spec:
        assert ours >= gits  # see pack/filters.py
    else:
        assert ours == gits
    assert refs(tmp_path / "ours.git") == refs(hosted.path)
    fsck(tmp_path / "ours.git")


@pytest.mark.parametrize("spec", ["blob:none", "tree:0", "tree:2", "blob:limit=200"])
def test_a_checkout_fetches_what_it_needs(client: Git, hosted: Hosted, tmp_path: Path, spec: str) -> None:
    client("clone", "-q", "--no-checkout", f"--filter={spec}", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    before = objects(client, work)
    client("checkout", "-q", "main", cwd=work)
    assert client("status", "--porcelain", cwd=work) == ""
    assert (work / "docs/README").read_text() == "a sample\n"
    fetched = objects(client, work) - before
    here = client("rev-list", "--objects", "--no-object-names", "main^{tree}", cwd=hosted.path).split()
    assert fetched
    assert fetched <= set(here)
    fsck(work)


def test_history_can_be_read_in_a_clone_without_blobs(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "-q", "--filter=blob:none", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    expected = client("log", "-p", "--all", "--format=%H", cwd=hosted.path)
    assert (
        client("log", "-p", "--format=%H", "--branches", "--remotes=origin", "--tags", cwd=work) == expected
    )
    fsck(work)


def test_old_commits_can_be_checked_out(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "-q", "--filter=tree:0", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    for rev in ("main~20", "main~7", "main"):
        oid = client("rev-parse", rev, cwd=hosted.path)
        client("checkout", "-q", oid, cwd=work)
        assert client("status", "--porcelain", cwd=work) == ""
    fsck(work)


@pytest.mark.parametrize("spec", ["blob:none", "tree:1", "blob:limit=30"])
def test_fetching_into_a_partial_clone(
    client: Git, reference: Git, hosted: Hosted, tmp_path: Path, spec: str
) -> None:
    client("clone", "-q", "--bare", f"--filter={spec}", hosted.url, "ours.git", cwd=tmp_path)
    reference("clone", "-q", "--bare", f"--filter={spec}", f"file://{hosted.path}", "gits.git", cwd=tmp_path)
    client("clone", "-q", hosted.path, "other", cwd=tmp_path)
    for n in range(3):
        commit_file(client, tmp_path / "other", f"new/{n}/file", f"{n}\n" * 10 * (n + 1))
    client("push", "-q", "origin", "HEAD:main", cwd=tmp_path / "other")
    client("fetch", "-q", "origin", "main:main", cwd=tmp_path / "ours.git")
    reference("fetch", "-q", "origin", "main:main", cwd=tmp_path / "gits.git")
    # git's server may send deltas of what the client has not got, which it then asks for
    ours, gits = objects(client, tmp_path / "ours.git"), objects(client, tmp_path / "gits.git")
    assert ours <= gits
    new = client(
        "rev-list", "--objects", "--no-object-names", f"--filter={spec}", "main~3..main", cwd=hosted.path
    )
    assert set(new.split()) <= ours
    assert refs(tmp_path / "ours.git")["refs/heads/main"] == refs(hosted.path)["refs/heads/main"]
    fsck(tmp_path / "ours.git")


def test_sparse_checkout(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "-q", "--filter=blob:none", "--sparse", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    assert not (work / "src").exists()
    client("sparse-checkout", "set", "src/part1", cwd=work)
    assert {path.name for path in (work / "src").iterdir()} == {"part1"}
    here = client("ls-tree", "-r", "--name-only", "main", "src/part1", cwd=hosted.path).split()
    assert sorted(str(path.relative_to(work)) for path in work.rglob("src/part1/*")) == sorted(here)
    blobs = {line.split()[2] for line in client("ls-tree", "-r", "main", cwd=hosted.path).splitlines()}
    assert blobs - objects(client, work)
    client("sparse-checkout", "disable", cwd=work)
    assert client("status", "--porcelain", cwd=work) == ""
    assert not blobs - objects(client, work)
    fsck(work)


def test_shallow_and_partial(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "-q", "--depth=1", "--filter=blob:none", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    assert client("rev-list", "--count", "HEAD", cwd=work) == "1"
    client("fetch", "-q", "--depth=5", cwd=work)
    assert int(client("rev-list", "--count", "origin/main", cwd=work)) >= 5
    client("checkout", "-q", "origin/main~4", cwd=work)
    client("fetch", "-q", "--unshallow", cwd=work)
    everything = client("rev-list", "--count", "main", cwd=hosted.path)
    assert client("rev-list", "--count", "origin/main", cwd=work) == everything
    fsck(work)


def test_a_partial_clone_becomes_a_whole_one(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "-q", "--bare", "--filter=blob:none", hosted.url, "copy.git", cwd=tmp_path)
    copy = tmp_path / "copy.git"
    client("fetch", "-q", "--refetch", "--no-filter", "origin", "+refs/*:refs/*", cwd=copy)
    everything = client("rev-list", "--objects", "--no-object-names", "--all", cwd=hosted.path)
    assert set(everything.split()) <= objects(client, copy)


def test_a_push_from_a_partial_clone(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "-q", "--filter=tree:0", "--no-checkout", hosted.url, "work", cwd=tmp_path)
    work = tmp_path / "work"
    client("checkout", "-q", "main", cwd=work)
    new = commit_file(client, work, "src/part1/mine.txt", "mine\n")
    client("push", "-q", "origin", "main", cwd=work)
    assert refs(hosted.path)["refs/heads/main"] == new
    fsck(hosted.path)


def test_filters_that_the_server_does_not_know_of(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    """With uploadpack.allowFilter false git clones everything, and says so."""
    client("config", "uploadpack.allowFilter", "false", cwd=hosted.path)
    result = client.run("clone", "--bare", "--filter=blob:none", hosted.url, "copy.git", cwd=tmp_path)
    assert result.returncode == 0
    assert "filtering not recognized by server, ignoring" in result.stderr
    everything = client("rev-list", "--objects", "--no-object-names", "--all", cwd=hosted.path)
    assert set(everything.split()) == objects(client, tmp_path / "copy.git")


def test_filters_that_the_server_refuses(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("config", "uploadpackfilter.tree.allow", "false", cwd=hosted.path)
    stderr = client.fails("clone", "--bare", "--filter=tree:0", hosted.url, "copy.git", cwd=tmp_path)
    assert "filter 'tree' not supported" in stderr
    client("clone", "-q", "--bare", "--filter=blob:none", hosted.url, "other.git", cwd=tmp_path)


def test_commits_can_be_fetched_by_name(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    oid = client("rev-parse", "main~6", cwd=hosted.path)
    client("init", "-q", "work", cwd=tmp_path)
    client("fetch", "-q", "--depth=1", hosted.url, oid, cwd=tmp_path / "work")
    assert client("rev-parse", "FETCH_HEAD", cwd=tmp_path / "work") == oid
    lone = client("commit-tree", "-m", "of no ref", "main^{tree}", cwd=hosted.path)
    stderr = client.fails("fetch", "-q", hosted.url, lone, cwd=tmp_path / "work")
    assert f"not our ref {lone}" in stderr
