"""What the objects of a push must pass.

Each is what C git's server does as well (`--server git`), with its words.
"""

import hashlib
import zlib
from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, refs, repository_files


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
