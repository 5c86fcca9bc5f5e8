"""A push that lacks any object that its tips reach is refused; every file stays as it was, byte for byte."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import Git, Hosted, HostFunction, MakeRepo, commit_file, fsck, refs, repository_files
from tests.faults import rawpush
from tests.faults.conftest import NewCommit
from tests.faults.rawpush import ZERO


def refused(hosted: Hosted, response: rawpush.Response, before: dict[str, str]) -> str:
    """Assert that the push was refused in words and left nothing; return the first ref's reason."""
    assert response.status == 200, response
    assert response.complete
    report = response.report()
    assert "ok" not in report.refs.values(), report
    reason = next(iter(report.refs.values()), report.unpack or report.fatal)
    assert reason not in {"", "ok"}, report
    assert str(hosted.server.root) not in response.body.decode(errors="replace")
    if hosted.server.kind != "git":  # which keeps some
        assert repository_files(hosted.path) == before
    return reason


def send(hosted: Hosted, commands: list[tuple[str, str, str]], pack: bytes) -> rawpush.Response:
    return rawpush.push(hosted.server.url, hosted.name, commands, pack)


def test_the_whole_push_is_taken(hosted: Hosted, fresh: NewCommit) -> None:
    """What the other tests leave something out of."""
    report = send(hosted, [fresh.command], fresh.pack).report()
    assert report.unpack == "ok"
    assert report.refs == {"refs/heads/main": "ok"}
    assert refs(hosted.path)["refs/heads/main"] == fresh.oid


@pytest.mark.parametrize("chunk", [None, 7], ids=["content-length", "chunked"])
@pytest.mark.parametrize("missing", ["commit", "tree", "blob"])
def test_new_object_left_out(hosted: Hosted, fresh: NewCommit, missing: str, chunk: int | None) -> None:
    before = repository_files(hosted.path)
    pack = rawpush.pack_from([o for o in fresh.objects.values() if o[0] != missing])
    body = rawpush.push_body([fresh.command], pack)
    with rawpush.Connection(hosted.server.url) as connection:
        response = connection.request(
            "POST",
            f"/{hosted.name}/git-receive-pack",
            rawpush.post_headers("git-receive-pack"),
            body,
            chunk=chunk,
        )
    assert "missing" in refused(hosted, response, before)


@pytest.mark.slow
def test_every_object_of_a_history_left_out_in_turn(
    git: Git, host: HostFunction, make_repo: MakeRepo, tmp_path: Path
) -> None:
    """Each kind at each depth: commits, merges, root, trees, blobs, links, tags and tags of tags."""
    source = make_repo(tmp_path / "source.git", commits=12)
    hosted = host(empty=True)
    before = repository_files(hosted.path)
    oids = git("rev-list", "--objects", "--all", "--no-object-names", cwd=source).splitlines()
    commands = [(ZERO, oid, name) for name, oid in refs(source).items()]
    for left_out in oids:
        pack = rawpush.pack_of(source, (oid for oid in oids if oid != left_out))
        report = send(hosted, commands, pack).report()
        reached = [name for name, state in report.refs.items() if state == "ok"]
        for name in reached:  # those that do not reach it may pass
            listing = git("rev-list", "--objects", "--no-object-names", refs(source)[name], cwd=source)
            assert left_out not in listing.split(), f"{name} is without {left_out}"
        assert len(reached) < len(commands), f"{left_out} was not missed"
        fsck(hosted.path)
        if not reached and hosted.server.kind != "git":
            assert repository_files(hosted.path) == before
        for name in reached:
            git("update-ref", "-d", name, cwd=hosted.path)
        git("prune", "--expire=now", cwd=hosted.path)
        git("repack", "-adq", cwd=hosted.path)
        before = repository_files(hosted.path)


def test_no_pack_and_an_unknown_object(hosted: Hosted) -> None:
    before = repository_files(hosted.path)
    unknown = "1234567890" * 4
    response = send(hosted, [(ZERO, unknown, "refs/heads/new")], rawpush.pack_from([]))
    refused(hosted, response, before)


@pytest.mark.parametrize("atomic", [False, True])
def test_one_ref_of_two_is_incomplete(hosted: Hosted, fresh: NewCommit, atomic: bool) -> None:
    """Without atomic the other one passes; with it neither does (where C git applies the other one)."""
    before = refs(hosted.path)
    commands = [fresh.command, (ZERO, "1234567890" * 4, "refs/heads/incomplete")]
    capabilities = rawpush.CAPABILITIES + (" atomic" if atomic else "")
    response = rawpush.push(hosted.server.url, hosted.name, commands, fresh.pack, capabilities=capabilities)
    report = response.report()
    assert report.refs["refs/heads/incomplete"] != "ok"
    if hosted.server.kind == "git":
        return
    assert (report.refs["refs/heads/main"] == "ok") == (not atomic)
    assert (refs(hosted.path) == before) == atomic


def test_thin_pack_without_its_base(git: Git, hosted: Hosted, host: HostFunction, tmp_path: Path) -> None:
    git("clone", "-q", hosted.path, "work", cwd=tmp_path)
    work = tmp_path / "work"
    big = "".join(f"line {n}\n" for n in range(5000))
    base = commit_file(git, work, "big.txt", big)
    tip = commit_file(git, work, "big.txt", big.replace("line 77\n", "x\n"))
    pack = subprocess.run(
        ["git", "pack-objects", "--thin", "--revs", "--stdout", "-q"],
        cwd=work,
        input=f"{tip}\n^{base}\n".encode(),
        capture_output=True,
        check=True,
    ).stdout
    before = repository_files(hosted.path)
    old = refs(hosted.path)["refs/heads/main"]
    refused(hosted, send(hosted, [(old, tip, "refs/heads/main")], pack), before)


@pytest.mark.parametrize("kind", ["blob", "tree"])
def test_branch_on_something_else_than_a_commit(git: Git, hosted: Hosted, kind: str) -> None:
    before = repository_files(hosted.path)
    oid = git("rev-parse", "main:docs/README" if kind == "blob" else "main:docs", cwd=hosted.path)
    refused(hosted, send(hosted, [(ZERO, oid, "refs/heads/odd")], rawpush.pack_from([])), before)


def test_unreachable_object_in_the_store_does_not_count_as_whole(
    git: Git, hosted: Hosted, tmp_path: Path
) -> None:
    """A commit left by somebody else, whose tree is gone, may not be referred to."""
    tree = "e" * 40
    commit = rawpush.commit_object(tree, [], "lost")
    oid = git(
        "hash-object", "-t", "commit", "-w", "--stdin", "--literally", cwd=hosted.path, input=commit.decode()
    )
    before = repository_files(hosted.path)
    refused(hosted, send(hosted, [(ZERO, oid, "refs/heads/lost")], rawpush.pack_from([])), before)
    child = rawpush.commit_object(git("rev-parse", "main^{tree}", cwd=hosted.path), [oid], "child")
    pack = rawpush.pack_from([("commit", child)])
    refused(hosted, send(hosted, [(ZERO, rawpush.oid_of("commit", child), "refs/heads/lost")], pack), before)
    (hosted.path / "objects" / oid[:2] / oid[2:]).unlink()


def test_tree_of_a_commit_is_a_blob(hosted: Hosted, fresh: NewCommit) -> None:
    before = repository_files(hosted.path)
    blob = b"content\n"
    commit = rawpush.commit_object(rawpush.oid_of("blob", blob), [fresh.old], "tree is a blob")
    pack = rawpush.pack_from([("commit", commit), ("blob", blob)])
    refused(hosted, send(hosted, [(ZERO, rawpush.oid_of("commit", commit), "refs/heads/odd")], pack), before)


def test_blob_of_a_tree_is_a_tree(hosted: Hosted, fresh: NewCommit) -> None:
    """C git takes it, and then no clone of the repository passes `git fsck`."""
    if hosted.server.kind == "git":
        pytest.skip("C git accepts it")
    before = repository_files(hosted.path)
    blob = b"content\n"
    inner = rawpush.tree_object([("100644", "f", rawpush.oid_of("blob", blob))])
    outer = rawpush.tree_object([("100644", "not-a-blob", rawpush.oid_of("tree", inner))])
    commit = rawpush.commit_object(rawpush.oid_of("tree", outer), [fresh.old], "entry is a tree")
    pack = rawpush.pack_from([("commit", commit), ("tree", outer), ("tree", inner), ("blob", blob)])
    refused(hosted, send(hosted, [(ZERO, rawpush.oid_of("commit", commit), "refs/heads/odd")], pack), before)
