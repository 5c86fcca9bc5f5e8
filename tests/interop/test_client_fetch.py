"""Fetches into an existing clone with the real git client, over protocol v0, v1 and v2."""

from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, HostFunction, commit_file, fsck, heads_and_tags, refs


@pytest.fixture
def work(client: Git, hosted: Hosted, tmp_path: Path) -> Path:
    """A clone of `hosted`."""
    client("clone", hosted.url, "work", cwd=tmp_path)
    return tmp_path / "work"


@pytest.fixture
def other(client: Git, hosted: Hosted, tmp_path: Path) -> Path:
    """Another clone, to change the server's repository from, by path."""
    client("clone", "-q", hosted.path, "other", cwd=tmp_path)
    return tmp_path / "other"


def advance(git: Git, other: Path, count: int = 3) -> str:
    """Put `count` commits on the server's main."""
    oid = ""
    for n in range(count):
        oid = commit_file(git, other, f"new/{n}.txt", f"{other.name} {n}\n")
    git("push", "-q", "origin", "HEAD:main", cwd=other)
    return oid


def tracking(git: Git, work: Path, branch: str = "main") -> str:
    return git("rev-parse", f"refs/remotes/origin/{branch}", cwd=work)


def test_nothing_new(client: Git, work: Path) -> None:
    before = refs(work)
    assert client.run("fetch", cwd=work).stderr == ""
    assert refs(work) == before


def test_new_commits(client: Git, work: Path, other: Path) -> None:
    new = advance(client, other)
    client("fetch", cwd=work)
    assert tracking(client, work) == new
    fsck(work)


def test_only_what_is_new_is_sent(client: Git, work: Path, other: Path) -> None:
    advance(client, other)
    result = client.run("fetch", "--progress", cwd=work)
    # 3 commits, 3 x (root, new/), 3 blobs, and no more
    assert "Total 12" in result.stderr or "Unpacking objects: 100% (12/12)" in result.stderr, result.stderr
    fsck(work)


def test_a_small_fetch_is_thin(client: Git, work: Path, other: Path) -> None:
    """A one-line change of a big file comes as a delta against what the client has."""
    big = "".join(f"line {n}\n" for n in range(200_000))
    commit_file(client, other, "big.txt", big)
    client("push", "-q", "origin", "HEAD:main", cwd=other)
    client("fetch", cwd=work)
    commit_file(client, other, "big.txt", big.replace("line 77\n", "line seventy-seven\n"))
    client("push", "-q", "origin", "HEAD:main", cwd=other)
    client("repack", "-adq", "--depth=20", cwd=other)
    client("fetch", cwd=work)
    fsck(work)
    assert tracking(client, work) == client("rev-parse", "HEAD", cwd=other)


def test_both_sides_have_moved(client: Git, work: Path, other: Path) -> None:
    for n in range(40):  # more haves than one round of negotiation takes
        commit_file(client, work, "mine.txt", f"{n}\n")
    new = advance(client, other)
    client("pull", "--no-rebase", "--no-edit", cwd=work)
    assert client("rev-parse", "HEAD^2", cwd=work) == new
    fsck(work)


def test_many_haves_make_a_gzip_request(client: Git, work: Path, other: Path) -> None:
    later = {"GIT_COMMITTER_DATE": "1800000000 +0000"}  # newest first: none of these is known to the server
    for n in range(60):
        client("commit", "--allow-empty", "-q", "-m", f"mine {n}", cwd=work, env=later)
    new = advance(client, other)
    result = client.run("fetch", cwd=work, env={"GIT_TRACE_CURL": "1", "GIT_TRACE_CURL_NO_DATA": "1"})
    assert "content-encoding: gzip" in result.stderr.lower()
    assert tracking(client, work) == new
    fsck(work)


def test_many_wants_make_a_gzip_request(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    parent = client("rev-parse", "main", cwd=hosted.path)
    tree = client("rev-parse", "main^{tree}", cwd=hosted.path)
    for n in range(60):
        oid = client("commit-tree", "-p", parent, "-m", f"branch {n}", tree, cwd=hosted.path)
        client("update-ref", f"refs/heads/many/{n}", oid, cwd=hosted.path)
    result = client.run("clone", "--bare", hosted.url, "copy.git", cwd=tmp_path, env={"GIT_TRACE_CURL": "1"})
    assert "content-encoding: gzip" in result.stderr.lower()
    assert heads_and_tags(tmp_path / "copy.git") == heads_and_tags(hosted.path)
    fsck(tmp_path / "copy.git")


def test_unrelated_histories(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("init", "-q", "alien", cwd=tmp_path)
    for n in range(40):
        commit_file(client, tmp_path / "alien", "alien.txt", f"{n}\n")
    client("fetch", hosted.url, "refs/heads/*:refs/remotes/origin/*", cwd=tmp_path / "alien")
    assert tracking(client, tmp_path / "alien") == refs(hosted.path)["refs/heads/main"]
    fsck(tmp_path / "alien")


def test_rewound_branch(client: Git, work: Path, hosted: Hosted) -> None:
    client("update-ref", "refs/heads/main", "main~4", cwd=hosted.path)
    client("fetch", cwd=work)
    assert tracking(client, work) == client("rev-parse", "main", cwd=hosted.path)
    fsck(work)


def test_tags_are_followed(client: Git, work: Path, other: Path, hosted: Hosted) -> None:
    advance(client, other)
    client("tag", "-a", "-m", "followed", "v3.0", cwd=other)
    client("tag", "light-3", cwd=other)
    client("push", "-q", "origin", "v3.0", "light-3", cwd=other)
    client("fetch", cwd=work)
    for name in ("refs/tags/v3.0", "refs/tags/light-3"):
        assert refs(work)[name] == refs(hosted.path)[name]
    fsck(work)


def test_prune(client: Git, work: Path, hosted: Hosted) -> None:
    client("update-ref", "-d", "refs/heads/topic", cwd=hosted.path)
    client("fetch", "--prune", cwd=work)
    assert "refs/remotes/origin/topic" not in refs(work)
    fsck(work)


def test_branch_replaced_by_a_folder(client: Git, work: Path, hosted: Hosted) -> None:
    main = client("rev-parse", "main", cwd=hosted.path)
    client("update-ref", "-d", "refs/heads/topic", cwd=hosted.path)
    client("update-ref", "refs/heads/topic/sub", main, cwd=hosted.path)
    client("fetch", "--prune", cwd=work)
    assert refs(work)["refs/remotes/origin/topic/sub"] == main


def test_mirror_update(client: Git, hosted: Hosted, other: Path, tmp_path: Path) -> None:
    client("clone", "--mirror", hosted.url, "mirror.git", cwd=tmp_path)
    advance(client, other)
    client("update-ref", "-d", "refs/heads/unrelated", cwd=hosted.path)
    client("remote", "update", "--prune", cwd=tmp_path / "mirror.git")
    assert refs(tmp_path / "mirror.git") == refs(hosted.path)
    fsck(tmp_path / "mirror.git")


def test_fetch_by_oid_of_a_tip(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    oid = refs(hosted.path)["refs/heads/other/deep/branch"]
    client("init", "-q", "--bare", "by-oid.git", cwd=tmp_path)
    client("fetch", "--no-tags", hosted.url, f"{oid}:refs/heads/got", cwd=tmp_path / "by-oid.git")
    assert refs(tmp_path / "by-oid.git") == {"refs/heads/got": oid}
    fsck(tmp_path / "by-oid.git")


def test_missing_oid_is_refused(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("init", "-q", "--bare", "by-oid.git", cwd=tmp_path)
    message = client.fails("fetch", hosted.url, "1" * 40 + ":refs/heads/got", cwd=tmp_path / "by-oid.git")
    assert "not our ref" in message or "unadvertised object" in message


def test_sha256(client: Git, host: HostFunction, tmp_path: Path) -> None:
    hosted = host(object_format="sha256")
    client("clone", hosted.url, "work", cwd=tmp_path)
    client("clone", "-q", hosted.path, "other", cwd=tmp_path)
    new = advance(client, tmp_path / "other")
    client("fetch", cwd=tmp_path / "work")
    assert tracking(client, tmp_path / "work") == new
    fsck(tmp_path / "work")


def test_one_connection_for_a_whole_fetch(client: Git, work: Path, other: Path) -> None:
    advance(client, other)
    result = client.run("fetch", cwd=work, env={"GIT_TRACE_CURL": "1", "GIT_TRACE_CURL_NO_DATA": "1"})
    assert result.stderr.count("Info: Connected to") == 1, result.stderr
    assert "Re-using existing connection" in result.stderr


# --- shallow clones


def same_history(git: Git, work: Path, twin: Path) -> None:
    """Both shallow clones end at the same commits."""
    assert git("rev-list", "--all", cwd=work) == git("rev-list", "--all", cwd=twin)
    assert boundary(work) == boundary(twin)
    fsck(work)


def boundary(work: Path) -> list[str]:
    file = work / ".git/shallow"
    return sorted(file.read_text().splitlines()) if file.exists() else []


@pytest.fixture
def shallow_pair(client: Git, hosted: Hosted, tmp_path: Path) -> tuple[Path, Path]:
    """The same shallow clone, made over HTTP and, to compare with, by C git through a pipe."""
    client("clone", "--depth", "3", hosted.url, "work", cwd=tmp_path)
    client("clone", "--depth", "3", f"file://{hosted.path}", "twin", cwd=tmp_path)
    return tmp_path / "work", tmp_path / "twin"


def test_fetch_in_a_shallow_clone(client: Git, shallow_pair: tuple[Path, Path], other: Path) -> None:
    new = advance(client, other)
    for path in shallow_pair:
        client("fetch", cwd=path)
    assert tracking(client, shallow_pair[0]) == new
    same_history(client, *shallow_pair)


@pytest.mark.parametrize(
    "flag",
    ["--depth=1", "--depth=8", "--depth=5000", "--deepen=4", "--unshallow", "--shallow-since=1600001800"],
)
def test_change_of_depth(client: Git, shallow_pair: tuple[Path, Path], flag: str) -> None:
    for path in shallow_pair:
        client("fetch", flag, cwd=path)
    same_history(client, *shallow_pair)


def test_deepen_step_by_step_to_the_root(client: Git, shallow_pair: tuple[Path, Path]) -> None:
    for depth in ("6", "12", "30"):
        for path in shallow_pair:
            client("fetch", f"--depth={depth}", cwd=path)
        same_history(client, *shallow_pair)
    for path in shallow_pair:
        client("fetch", "--unshallow", cwd=path)
    same_history(client, *shallow_pair)
    assert boundary(shallow_pair[0]) == []


def test_unshallow_while_the_branch_moved(client: Git, shallow_pair: tuple[Path, Path], other: Path) -> None:
    new = advance(client, other)
    for path in shallow_pair:
        client("fetch", "--unshallow", cwd=path)
    assert tracking(client, shallow_pair[0]) == new
    same_history(client, *shallow_pair)


def test_other_branch_into_a_shallow_clone(client: Git, shallow_pair: tuple[Path, Path]) -> None:
    for path in shallow_pair:
        client("fetch", "origin", "topic:refs/remotes/origin/topic", cwd=path)
    same_history(client, *shallow_pair)


def test_clone_of_a_shallow_repository(client: Git, host: HostFunction, tmp_path: Path) -> None:
    source = host()
    shallow = host(empty=True)
    client("fetch", "-q", "--depth=3", f"file://{source.path}", "main:refs/heads/main", cwd=shallow.path)
    client("clone", shallow.url, "work", cwd=tmp_path)
    fsck(tmp_path / "work")
    assert client("rev-list", "--count", "HEAD", cwd=tmp_path / "work") == client(
        "rev-list", "--count", "main", cwd=shallow.path
    )
