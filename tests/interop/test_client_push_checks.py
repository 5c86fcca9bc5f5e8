"""What a push must pass: fsck of its objects, and where the history of a shallow clone ends.

Each is what C git's server does as well (`--server git`), with its words.
"""

import hashlib
import random
import zlib
from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, HostFunction, commit_file, fsck, refs, repository_files


def put_object(work: Path, kind: str, data: bytes) -> str:
    """Write an object that git itself would not make."""
    whole = f"{kind} {len(data)}\0".encode() + data
    oid = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
    path = work / ".git" / "objects" / oid[:2] / oid[2:]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zlib.compress(whole))
    return oid


@pytest.fixture
def work(client: Git, hosted: Hosted, tmp_path: Path) -> Path:
    """A clone of `hosted`, whose server checks what it gets."""
    client("clone", "-q", hosted.url, "work", cwd=tmp_path)
    client("config", "receive.fsckObjects", "true", cwd=hosted.path)
    client("config", "receive.unpackLimit", "1", cwd=hosted.path)
    return tmp_path / "work"


def commit_tree(client: Git, work: Path, *entries: tuple[str, str, str]) -> tuple[str, str]:
    """Commit a tree of (mode, name, oid); give the tree's and the commit's oid."""
    data = b"".join(f"{mode} {name}".encode() + b"\0" + bytes.fromhex(oid) for mode, name, oid in entries)
    tree = put_object(work, "tree", data)
    return tree, client("commit-tree", "-p", "main", "-m", "bad", tree, cwd=work)


def is_refused(client: Git, work: Path, hosted: Hosted, commit: str) -> str:
    before, files = refs(hosted.path), repository_files(hosted.path)
    said = client.fails("push", "origin", f"{commit}:refs/heads/bad", cwd=work)
    assert refs(hosted.path) == before
    assert repository_files(hosted.path) == files
    assert "remote unpack failed: index-pack abnormal exit" in said
    assert "! [remote rejected]" in said
    assert "(unpacker error)" in said
    return said


def test_dotgit(client: Git, work: Path, hosted: Hosted) -> None:
    empty = put_object(work, "tree", b"")
    tree, commit = commit_tree(client, work, ("40000", ".GIT", empty))
    said = is_refused(client, work, hosted, commit)
    assert f"remote: error: object {tree}: hasDotgit: contains '.git'" in said
    assert "remote: fatal: fsck error in packed object" in said


def test_gitmodules(client: Git, work: Path, hosted: Hosted) -> None:
    blob = put_object(work, "blob", b'[submodule "../x"]\n\turl = -u\n')
    _, commit = commit_tree(client, work, ("100644", ".gitmodules", blob))
    said = is_refused(client, work, hosted, commit)
    assert f"remote: error: object {blob}: gitmodulesName: disallowed submodule name: ../x" in said
    assert f"remote: error: object {blob}: gitmodulesUrl: disallowed submodule url: -u" in said


def test_a_commit_without_an_email(client: Git, work: Path, hosted: Hosted) -> None:
    tree = client("rev-parse", "main^{tree}", cwd=work)
    text = f"tree {tree}\nauthor A 1 +0000\ncommitter A <a> 1 +0000\n\nx\n"
    commit = put_object(work, "commit", text.encode())
    said = is_refused(client, work, hosted, commit)
    assert (
        f"remote: error: object {commit}: missingEmail: invalid author/committer line - missing email" in said
    )


def test_severities_and_warnings(client: Git, work: Path, hosted: Hosted) -> None:
    client("config", "receive.fsck.missingEmail", "warn", cwd=hosted.path)
    tree = client("rev-parse", "main^{tree}", cwd=work)
    commit = put_object(
        work, "commit", f"tree {tree}\nauthor A 1 +0000\ncommitter A <a> 1 +0000\n\nx\n".encode()
    )
    said = client.run("push", "origin", f"{commit}:refs/heads/bad", cwd=work)
    assert said.returncode == 0
    assert f"remote: warning: object {commit}: missingEmail: " in said.stderr
    assert refs(hosted.path)["refs/heads/bad"] == commit
    client("push", "-q", "origin", ":refs/heads/bad", cwd=work)
    client("gc", "-q", "--prune=now", cwd=hosted.path)  # the test's end wants a repository without faults


def test_the_skip_list(client: Git, work: Path, hosted: Hosted) -> None:
    empty = put_object(work, "tree", b"")
    tree, commit = commit_tree(client, work, ("40000", ".git", empty))
    (hosted.path / "skip").write_text(f"# known\n\n  {tree}  # by now\n")
    client("config", "receive.fsck.skipList", "skip", cwd=hosted.path)
    client("push", "-q", "origin", f"{commit}:refs/heads/bad", cwd=work)
    assert refs(hosted.path)["refs/heads/bad"] == commit
    client("push", "-q", "origin", ":refs/heads/bad", cwd=work)
    client("gc", "-q", "--prune=now", cwd=hosted.path)


def test_without_checks_all_is_taken(client: Git, work: Path, hosted: Hosted) -> None:
    client("config", "receive.fsckObjects", "false", cwd=hosted.path)
    empty = put_object(work, "tree", b"")
    _, commit = commit_tree(client, work, ("40000", ".git", empty))
    client("push", "-q", "origin", f"{commit}:refs/heads/bad", cwd=work)
    assert refs(hosted.path)["refs/heads/bad"] == commit
    client("push", "-q", "origin", ":refs/heads/bad", cwd=work)
    client("gc", "-q", "--prune=now", cwd=hosted.path)


# --- shallow clones


@pytest.fixture
def shallow(client: Git, hosted: Hosted, tmp_path: Path) -> Path:
    """A clone of `hosted` with two commits of history and a third of its own."""
    client("clone", "-q", "--depth", "2", hosted.url, "shallow", cwd=tmp_path)
    commit_file(client, tmp_path / "shallow", "new.txt", "new\n")
    return tmp_path / "shallow"


def test_history_that_the_server_lacks_is_refused(client: Git, shallow: Path, host: HostFunction) -> None:
    target = host(empty=True)
    said = client.fails("push", target.url, "main", cwd=shallow)
    assert "! [remote rejected] main -> main (shallow update not allowed)" in said
    assert refs(target.path) == {}
    assert not (target.path / "shallow").exists()


def test_a_server_may_become_shallow(client: Git, shallow: Path, host: HostFunction, tmp_path: Path) -> None:
    target = host(empty=True)
    client("config", "receive.shallowUpdate", "true", cwd=target.path)
    client("push", target.url, "main", cwd=shallow)
    tip = client("rev-parse", "main", cwd=shallow)
    assert refs(target.path) == {"refs/heads/main": tip}
    assert sorted((target.path / "shallow").read_text().split()) == sorted(
        (shallow / ".git" / "shallow").read_text().split()
    )
    # what is pushed on top needs no more of it, and whoever clones it gets as much history as there is
    new = commit_file(client, shallow, "more.txt", "more\n")
    client("push", target.url, "main", cwd=shallow)
    client("clone", "-q", target.url, "again", cwd=tmp_path)
    assert client("rev-parse", "HEAD", cwd=tmp_path / "again") == new
    assert client("rev-list", "--count", "HEAD", cwd=tmp_path / "again") == client(
        "rev-list", "--count", "main", cwd=shallow
    )
    fsck(tmp_path / "again")


def test_one_ref_needs_it_and_one_does_not(client: Git, shallow: Path, host: HostFunction) -> None:
    target = host(empty=True)
    client("checkout", "-q", "--orphan", "alone", cwd=shallow)
    alone = commit_file(client, shallow, "alone.txt", "x\n")
    said = client.fails("push", target.url, "main", "alone", cwd=shallow)
    assert "(shallow update not allowed)" in said
    assert refs(target.path) == {"refs/heads/alone": alone}
    assert not (target.path / "shallow").exists()
    client("config", "receive.shallowUpdate", "true", cwd=target.path)
    client("push", target.url, "main", "alone", cwd=shallow)
    assert set(refs(target.path)) == {"refs/heads/alone", "refs/heads/main"}
    assert (target.path / "shallow").exists()


def test_history_that_the_server_has_is_not_cut(client: Git, shallow: Path, hosted: Hosted) -> None:
    client("config", "receive.shallowUpdate", "true", cwd=hosted.path)
    client("push", "origin", "main", cwd=shallow)
    assert refs(hosted.path)["refs/heads/main"] == client("rev-parse", "main", cwd=shallow)
    assert not (hosted.path / "shallow").exists()


# --- work trees beside a bare repository


def test_a_branch_that_a_linked_work_tree_has(
    client: Git, hosted: Hosted, work: Path, tmp_path: Path
) -> None:
    client("worktree", "add", "-q", tmp_path / "linked", "topic", cwd=hosted.path)
    commit_file(client, work, "new.txt", "new\n")
    before = refs(hosted.path)
    said = client.fails("push", "-f", "origin", "main:topic", cwd=work)
    assert "! [remote rejected] main -> topic (branch is currently checked out)" in said
    said = client.fails("push", "origin", ":topic", cwd=work)
    assert "! [remote rejected] topic (branch is currently checked out)" in said
    assert refs(hosted.path) == before
    client("config", "receive.denyCurrentBranch", "warn", cwd=hosted.path)
    assert (
        "remote: warning: updating the current branch"
        in client.run("push", "-f", "origin", "main:topic", cwd=work).stderr
    )
    assert refs(hosted.path)["refs/heads/topic"] == client("rev-parse", "main", cwd=work)


def test_a_branch_that_is_rebased_in_a_linked_work_tree(
    client: Git, hosted: Hosted, work: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    client("worktree", "add", "-q", linked, "topic", cwd=hosted.path)
    editor = {"GIT_SEQUENCE_EDITOR": "echo break >"}
    client("rebase", "-q", "-i", "HEAD~1", cwd=linked, env=editor)
    assert client.run("symbolic-ref", "-q", "HEAD", cwd=linked).returncode == 1
    said = client.fails("push", "-f", "origin", "main:topic", cwd=work)
    assert "! [remote rejected] main -> topic (branch is currently checked out)" in said
    client("worktree", "remove", "--force", linked, cwd=hosted.path)
    client("push", "-q", "-f", "origin", "main:topic", cwd=work)


# --- size


@pytest.mark.parametrize(
    ("limit", "shown"), [("1k", "1024 bytes"), ("20k", "20.00 KiB"), ("30001", "29.30 KiB")]
)
def test_a_pack_that_is_too_large(client: Git, hosted: Hosted, work: Path, limit: str, shown: str) -> None:
    client("config", "receive.maxInputSize", limit, cwd=hosted.path)
    commit_file(client, work, "noise", random.Random(1).randbytes(50_000))
    commit = client("rev-parse", "HEAD", cwd=work)
    said = is_refused(client, work, hosted, commit)
    assert f"remote: fatal: pack exceeds maximum allowed size ({shown})" in said
