"""Pushes with the real git client, over protocol v0, v1 and v2 (which pushes as v0 and v1 do)."""

import random
from pathlib import Path

import pytest

from tests.conftest import (
    Git,
    Hosted,
    HostFunction,
    MakeRepo,
    Server,
    commit_file,
    fsck,
    heads_and_tags,
    leftovers,
    refs,
    repository_files,
)


@pytest.fixture
def work(client: Git, hosted: Hosted, tmp_path: Path) -> Path:
    """A clone of `hosted`."""
    client("clone", hosted.url, "work", cwd=tmp_path)
    return tmp_path / "work"


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def test_fast_forward(client: Git, work: Path, hosted: Hosted) -> None:
    new = commit_file(client, work, "new.txt", "new\n")
    client("push", "origin", "main", cwd=work)
    assert refs(hosted.path)["refs/heads/main"] == new
    assert client("cat-file", "-p", "main:new.txt", cwd=hosted.path) == "new"


def test_several_in_a_row(client: Git, work: Path, hosted: Hosted) -> None:
    for n in range(6):
        new = commit_file(client, work, "new.txt", f"{n}\n")
        client("push", "origin", "main", cwd=work)
        assert refs(hosted.path)["refs/heads/main"] == new
    fsck(work)


def test_nothing_to_push(client: Git, work: Path) -> None:
    assert "Everything up-to-date" in client.run("push", "origin", "main", cwd=work).stderr


def test_new_branch_with_new_objects(client: Git, work: Path, hosted: Hosted) -> None:
    client("checkout", "-q", "-b", "feature/one", cwd=work)
    new = commit_file(client, work, "feature.txt", "one\n")
    result = client.run("push", "-u", "origin", "feature/one", cwd=work)
    assert result.returncode == 0
    assert "[new branch]" in result.stderr
    assert refs(hosted.path)["refs/heads/feature/one"] == new


def test_new_branch_without_new_objects(client: Git, work: Path, hosted: Hosted) -> None:
    before = repository_files(hosted.path / "objects")
    client("push", "origin", "main~2:refs/heads/older", cwd=work)
    assert refs(hosted.path)["refs/heads/older"] == client("rev-parse", "main~2", cwd=work)
    assert repository_files(hosted.path / "objects") == before


def test_five_hundred_new_branches(client: Git, work: Path, hosted: Hosted) -> None:
    tree = client("rev-parse", "main^{tree}", cwd=work)
    oids = [client("commit-tree", "-p", "main", "-m", f"{n}", tree, cwd=work) for n in range(20)]
    lines = [f"create refs/heads/many/{n} {oids[n % 20]}" for n in range(500)]
    client("update-ref", "--stdin", cwd=work, input="\n".join(lines) + "\n")
    client("push", "-q", "origin", "refs/heads/many/*:refs/heads/many/*", cwd=work)
    found = {name: oid for name, oid in refs(hosted.path).items() if "/many/" in name}
    assert found == {name: oid for name, oid in refs(work).items() if name.startswith("refs/heads/many/")}
    assert len(found) == 500


def test_forced(client: Git, work: Path, hosted: Hosted) -> None:
    client("reset", "-q", "--hard", "HEAD~3", cwd=work)
    new = commit_file(client, work, "other.txt", "another way\n")
    client("push", "--force", "origin", "main", cwd=work)
    assert refs(hosted.path)["refs/heads/main"] == new


def test_non_fast_forward_is_rejected_by_the_client(client: Git, work: Path, hosted: Hosted) -> None:
    before = repository_files(hosted.path)
    client("reset", "-q", "--hard", "HEAD~3", cwd=work)
    commit_file(client, work, "other.txt", "another way\n")
    assert "[rejected]" in client.fails("push", "origin", "main", cwd=work)
    assert repository_files(hosted.path) == before


def test_force_with_lease(client: Git, work: Path, hosted: Hosted) -> None:
    client("reset", "-q", "--hard", "HEAD~1", cwd=work)
    new = commit_file(client, work, "other.txt", "another way\n")
    assert "stale info" in client.fails("push", f"--force-with-lease=main:{new}", "origin", "main", cwd=work)
    client("push", "--force-with-lease", "origin", "main", cwd=work)
    assert refs(hosted.path)["refs/heads/main"] == new


def test_delete(client: Git, work: Path, hosted: Hosted) -> None:
    client("push", "origin", ":topic", cwd=work)
    assert "refs/heads/topic" not in refs(hosted.path)
    client("push", "--delete", "origin", "other/deep/branch", "v1.0", cwd=work)
    assert not {"refs/heads/other/deep/branch", "refs/tags/v1.0"} & refs(hosted.path).keys()


def test_delete_of_a_loose_and_packed_ref(client: Git, work: Path, hosted: Hosted) -> None:
    client("push", "origin", "main:topic", "--force", cwd=work)  # loose over packed
    client("push", "origin", ":topic", cwd=work)
    assert "refs/heads/topic" not in refs(hosted.path)


def test_delete_and_create_in_one_push(client: Git, work: Path, hosted: Hosted) -> None:
    """other/deep/branch becomes other/deep/branch/leaf: folder and file change places."""
    client("push", "origin", ":other/deep/branch", cwd=work)
    client("push", "origin", "main:refs/heads/other/deep/branch/leaf", cwd=work)
    assert "refs/heads/other/deep/branch/leaf" in refs(hosted.path)
    client("push", "origin", ":other/deep/branch/leaf", cwd=work)
    client("push", "origin", "main:refs/heads/other", cwd=work)
    assert refs(hosted.path)["refs/heads/other"] == client("rev-parse", "main", cwd=work)


@pytest.mark.parametrize("name", ["other", "other/deep", "topic/sub", "main/x/y"])
def test_folder_and_file_conflict_is_refused(client: Git, work: Path, hosted: Hosted, name: str) -> None:
    before = refs(hosted.path)
    message = client.fails("push", "origin", f"main:refs/heads/{name}", cwd=work)
    assert f"! [remote rejected] main -> {name}" in message
    assert refs(hosted.path) == before


def test_all_tags(client: Git, work: Path, hosted: Hosted) -> None:
    new = commit_file(client, work, "new.txt", "new\n")
    client("tag", "-a", "-m", "annotated", "v3.0", cwd=work)
    client("tag", "-a", "-m", "on a tag", "v3.0-nested", "v3.0", cwd=work)
    client("tag", "light-3", cwd=work)
    client("tag", "blob-3", "HEAD:new.txt", cwd=work)
    client("tag", "-a", "-m", "on a tree", "tree-3", "HEAD^{tree}", cwd=work)
    client("push", "origin", "--tags", cwd=work)
    assert (
        heads_and_tags(hosted.path).items()
        >= {name: oid for name, oid in refs(work).items() if name.startswith("refs/tags/")}.items()
    )
    assert client("rev-parse", "v3.0-nested^{commit}", cwd=hosted.path) == new


def test_follow_tags(client: Git, work: Path, hosted: Hosted) -> None:
    commit_file(client, work, "new.txt", "new\n")
    client("tag", "-a", "-m", "annotated", "v3.0", cwd=work)
    client("push", "--follow-tags", "origin", "main", cwd=work)
    assert refs(hosted.path)["refs/tags/v3.0"] == client("rev-parse", "v3.0", cwd=work)


def test_moved_tag_needs_force(client: Git, work: Path, hosted: Hosted) -> None:
    client("tag", "-f", "light", "HEAD~5", cwd=work)
    assert "already exists" in client.fails("push", "origin", "light", cwd=work)
    client("push", "-f", "origin", "light", cwd=work)
    assert refs(hosted.path)["refs/tags/light"] == client("rev-parse", "HEAD~5", cwd=work)


def test_atomic(client: Git, work: Path, hosted: Hosted) -> None:
    new = commit_file(client, work, "new.txt", "new\n")
    client("push", "--atomic", "origin", "main", "main:one", "main:two", ":topic", cwd=work)
    found = refs(hosted.path)
    assert found["refs/heads/main"] == found["refs/heads/one"] == found["refs/heads/two"] == new
    assert "refs/heads/topic" not in found


def test_atomic_is_all_or_nothing(client: Git, work: Path, hosted: Hosted) -> None:
    commit_file(client, work, "new.txt", "new\n")
    before = refs(hosted.path)
    # a folder in the place of a file: only the server can know
    message = client.fails("push", "--atomic", "origin", "main", "main:one", "main:topic/sub", cwd=work)
    assert refs(hosted.path) == before
    assert message.count("! [remote rejected]") == 3, message
    # without --atomic the others go through
    message = client.fails("push", "origin", "main", "main:one", "main:topic/sub", cwd=work)
    assert message.count("! [remote rejected]") == 1, message
    assert refs(hosted.path)["refs/heads/one"] == client("rev-parse", "main", cwd=work)


def test_mirror(client: Git, work: Path, host: HostFunction, make_repo: MakeRepo, tmp_path: Path) -> None:
    target = host(empty=True)
    source = make_repo(tmp_path / "source.git")
    client("update-ref", "refs/notes/commits", "main", cwd=source)
    client("push", "--mirror", target.url, cwd=source)
    assert refs(target.path) == refs(source)
    client("update-ref", "-d", "refs/heads/topic", cwd=source)
    client("update-ref", "-d", "refs/notes/commits", cwd=source)
    client("update-ref", "refs/heads/main", "main~4", cwd=source)
    client("push", "--mirror", target.url, cwd=source)
    assert refs(target.path) == refs(source)


def test_push_options_reach_the_hook(client: Git, work: Path, hosted: Hosted) -> None:
    client("config", "receive.advertisePushOptions", "true", cwd=hosted.path)
    hook = hosted.path / "hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\necho "$GIT_PUSH_OPTION_COUNT:$GIT_PUSH_OPTION_0:$GIT_PUSH_OPTION_1"\n')
    hook.chmod(0o755)
    commit_file(client, work, "new.txt", "new\n")
    result = client.run("push", "-o", "ci.skip", "-o", "topic=a b", "origin", "main", cwd=work)
    assert result.returncode == 0, result.stderr
    assert "remote: 2:ci.skip:topic=a b" in result.stderr


def test_push_options_can_be_switched_off(client: Git, work: Path, hosted: Hosted) -> None:
    client("config", "receive.advertisePushOptions", "false", cwd=hosted.path)
    commit_file(client, work, "new.txt", "new\n")
    assert "does not support push options" in client.fails("push", "-o", "x", "origin", "main", cwd=work)


@pytest.mark.parametrize(
    ("post_buffer", "size"),
    [
        pytest.param(None, 100_000, id="one-body"),
        pytest.param(None, 3_000_000, id="default-buffer-chunked"),
        pytest.param(65536, 300_000, id="small-buffer-chunked"),
        pytest.param(65536, 3_000_000, id="small-buffer-many-chunks"),
        pytest.param(8_000_000, 3_000_000, id="big-buffer-content-length"),
    ],
)
def test_size_of_the_body(
    client: Git, work: Path, hosted: Hosted, post_buffer: int | None, size: int
) -> None:
    new = commit_file(client, work, "noise.bin", noise(size))
    git = client.with_config(f"http.postBuffer={post_buffer}") if post_buffer else client
    result = git.run(
        "push", "origin", "main", cwd=work, env={"GIT_TRACE_CURL": "1", "GIT_TRACE_CURL_NO_DATA": "1"}
    )
    assert result.returncode == 0, result.stderr
    chunked = size > (post_buffer or 1 << 20)
    assert ("transfer-encoding: chunked" in sent_headers(result.stderr)) == chunked
    assert refs(hosted.path)["refs/heads/main"] == new
    assert client("cat-file", "-s", "main:noise.bin", cwd=hosted.path) == str(size)


def sent_headers(trace: str) -> str:
    return "\n".join(line for line in trace.lower().splitlines() if "=> send header" in line)


def test_big_delta_push_is_thin(client: Git, work: Path, hosted: Hosted) -> None:
    big = "".join(f"line {n}\n" for n in range(100_000))
    commit_file(client, work, "big.txt", big)
    client("push", "origin", "main", cwd=work)
    new = commit_file(client, work, "big.txt", big.replace("line 77\n", "line seventy-seven\n"))
    client("push", "--thin", "origin", "main", cwd=work)
    client("repack", "-adq", cwd=hosted.path)
    assert refs(hosted.path)["refs/heads/main"] == new


def test_whole_history_into_an_empty_repository(
    client: Git, host: HostFunction, make_repo: MakeRepo, tmp_path: Path
) -> None:
    target = host(empty=True)
    source = make_repo(tmp_path / "source.git", commits=120)
    client.with_config("http.postBuffer=65536")("push", target.url, "refs/*:refs/*", cwd=source)
    assert refs(target.path) == refs(source)


def test_sha256(client: Git, host: HostFunction, make_repo: MakeRepo, tmp_path: Path) -> None:
    target = host(empty=True, object_format="sha256")
    source = make_repo(tmp_path / "source.git", object_format="sha256")
    client("push", target.url, "refs/*:refs/*", cwd=source)
    assert refs(target.path) == refs(source)
    client("clone", target.url, "work", cwd=tmp_path)
    new = commit_file(client, tmp_path / "work", "new.txt", "new\n")
    client("push", "origin", "main", ":topic", cwd=tmp_path / "work")
    assert refs(target.path)["refs/heads/main"] == new
    assert "refs/heads/topic" not in refs(target.path)


def test_push_from_a_shallow_clone(client: Git, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "--depth", "2", hosted.url, "work", cwd=tmp_path)
    new = commit_file(client, tmp_path / "work", "new.txt", "new\n")
    client("push", "origin", "main", cwd=tmp_path / "work")
    assert refs(hosted.path)["refs/heads/main"] == new


def test_somebody_was_faster(client: Git, work: Path, hosted: Hosted, tmp_path: Path) -> None:
    client("clone", "-q", hosted.path, "other", cwd=tmp_path)
    theirs = commit_file(client, tmp_path / "other", "theirs.txt", "x\n")
    client("push", "-q", "origin", "main", cwd=tmp_path / "other")
    commit_file(client, work, "mine.txt", "x\n")
    assert "fetch first" in client.fails("push", "origin", "main", cwd=work)
    assert refs(hosted.path)["refs/heads/main"] == theirs
    client("pull", "-q", "--rebase", cwd=work)
    client("push", "origin", "main", cwd=work)
    assert refs(hosted.path)["refs/heads/main"] == client("rev-parse", "main", cwd=work)


# --- what the repository's config decides


def test_deny_non_fast_forwards(client: Git, work: Path, hosted: Hosted) -> None:
    client("config", "receive.denyNonFastForwards", "true", cwd=hosted.path)
    before = refs(hosted.path)
    client("reset", "-q", "--hard", "HEAD~3", cwd=work)
    commit_file(client, work, "other.txt", "another way\n")
    assert "[remote rejected] main -> main (non-fast-forward)" in client.fails(
        "push", "-f", "origin", "main", cwd=work
    )
    assert refs(hosted.path) == before


def test_deny_deletes(client: Git, work: Path, hosted: Hosted) -> None:
    client("config", "receive.denyDeletes", "true", cwd=hosted.path)
    before = refs(hosted.path)
    assert "[remote rejected] topic (deletion prohibited)" in client.fails(
        "push", "origin", ":topic", cwd=work
    )
    assert refs(hosted.path) == before


def test_deletion_of_heads_branch(client: Git, work: Path, hosted: Hosted) -> None:
    before = refs(hosted.path)
    assert "[remote rejected] main (deletion of the current branch prohibited)" in client.fails(
        "push", "origin", ":main", cwd=work
    )
    assert refs(hosted.path) == before
    client("config", "receive.denyDeleteCurrent", "false", cwd=hosted.path)
    client("push", "origin", ":main", cwd=work)
    assert "refs/heads/main" not in refs(hosted.path)


def test_checked_out_branch(client: Git, server: Server, make_repo: MakeRepo, tmp_path: Path) -> None:
    path = make_repo(server.root / f"checked-out-{tmp_path.name}", bare=False)
    client("clone", server.url_of(path.name), "work", cwd=tmp_path)
    work = tmp_path / "work"
    commit_file(client, work, "new.txt", "new\n")
    before = repository_files(path)  # after the clone, which may note what a pack holds
    assert "(branch is currently checked out)" in client.fails("push", "origin", "main", cwd=work)
    if server.kind != "git":  # which keeps the objects of a refused update
        assert repository_files(path) == before
    client("push", "origin", "main:elsewhere", cwd=work)
    assert refs(path)["refs/heads/elsewhere"] == client("rev-parse", "main", cwd=work)
    client("config", "receive.denyCurrentBranch", "ignore", cwd=path)
    client("push", "origin", "main", cwd=work)
    assert refs(path)["refs/heads/main"] == client("rev-parse", "main", cwd=work)
    fsck(path)


def test_receive_pack_switched_off(client: Git, work: Path, hosted: Hosted) -> None:
    client("config", "http.receivepack", "false", cwd=hosted.path)
    commit_file(client, work, "new.txt", "new\n")
    assert "403" in client.fails("push", "origin", "main", cwd=work)
    client("fetch", cwd=work)


def test_upload_pack_switched_off(client: Git, work: Path, hosted: Hosted) -> None:
    client("config", "http.uploadpack", "false", cwd=hosted.path)
    assert "403" in client.fails("fetch", cwd=work)


def test_reflog(client: Git, work: Path, hosted: Hosted) -> None:
    client("config", "core.logAllRefUpdates", "true", cwd=hosted.path)
    old = refs(hosted.path)["refs/heads/main"]
    new = commit_file(client, work, "new.txt", "new\n")
    client("push", "origin", "main", cwd=work)
    line = (hosted.path / "logs/refs/heads/main").read_text().splitlines()[-1]
    assert line.startswith(f"{old} {new} anonymous <")
    assert line.endswith("\tpush")
    assert client("rev-parse", "main@{0}", cwd=hosted.path) == new


def test_symbolic_branch_is_written_through(client: Git, work: Path, hosted: Hosted) -> None:
    """A push to a symref moves the branch that it names, as with C git."""
    client("symbolic-ref", "refs/heads/alias", "refs/heads/topic", cwd=hosted.path)
    new = commit_file(client, work, "new.txt", "new\n")
    client("push", "-f", "origin", "main:alias", cwd=work)
    assert refs(hosted.path)["refs/heads/topic"] == new
    assert client("symbolic-ref", "refs/heads/alias", cwd=hosted.path) == "refs/heads/topic"


# --- hooks


def write_hook(hosted: Hosted, name: str, script: str) -> None:
    hook = hosted.path / "hooks" / name
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\n" + script)
    hook.chmod(0o755)


def test_pre_receive_refuses(client: Git, work: Path, hosted: Hosted) -> None:
    """The plainest policy hook: `while read`, which would miss a last line without its newline."""
    write_hook(
        hosted,
        "pre-receive",
        'while read old new ref; do echo "no: $ref" >&2; git cat-file -t $new; exit 1; done\n',
    )
    before = repository_files(hosted.path)
    commit_file(client, work, "new.txt", "new\n")
    message = client.fails("push", "origin", "main", cwd=work)
    assert "remote: no: refs/heads/main" in message
    assert "remote: commit" in message  # the quarantined object is seen
    assert "[remote rejected] main -> main (pre-receive hook declined)" in message
    assert repository_files(hosted.path) == before


def test_pre_receive_cannot_move_refs(client: Git, work: Path, hosted: Hosted) -> None:
    write_hook(hosted, "pre-receive", "read old new ref; git update-ref refs/heads/sneaky $new; exit 0\n")
    commit_file(client, work, "new.txt", "new\n")
    result = client.run("push", "origin", "main", cwd=work)
    assert result.returncode == 0
    assert "quarantine" in result.stderr
    assert "refs/heads/sneaky" not in refs(hosted.path)


def test_update_refuses_one_ref(client: Git, work: Path, hosted: Hosted) -> None:
    write_hook(hosted, "update", 'echo "$1 $2 $3"; test "$1" != refs/heads/forbidden\n')
    new = commit_file(client, work, "new.txt", "new\n")
    message = client.fails("push", "origin", "main", "main:forbidden", cwd=work)
    assert "[remote rejected] main -> forbidden (hook declined)" in message
    assert f"remote: refs/heads/forbidden {'0' * 40} {new}" in message
    assert "refs/heads/forbidden" not in refs(hosted.path)
    assert refs(hosted.path)["refs/heads/main"] == new


def test_update_refuses_an_atomic_push(client: Git, work: Path, hosted: Hosted) -> None:
    write_hook(hosted, "update", 'test "$1" != refs/heads/forbidden\n')
    before = refs(hosted.path)
    commit_file(client, work, "new.txt", "new\n")
    message = client.fails("push", "--atomic", "origin", "main", "main:forbidden", cwd=work)
    assert "main -> forbidden (hook declined)" in message
    assert refs(hosted.path) == before


def test_post_receive_is_heard(client: Git, work: Path, hosted: Hosted) -> None:
    write_hook(
        hosted,
        "post-receive",
        'while read old new ref; do echo "$ref is $(git rev-parse $ref)"; done; echo late >&2; exit 3\n',
    )
    new = commit_file(client, work, "new.txt", "new\n")
    result = client.run("push", "origin", "main", cwd=work)
    assert result.returncode == 0, result.stderr  # its failure never fails a push
    assert f"remote: refs/heads/main is {new}" in result.stderr
    assert "remote: late" in result.stderr


def test_hook_sees_gits_environment(client: Git, work: Path, hosted: Hosted) -> None:
    write_hook(hosted, "post-receive", 'echo "dir=$GIT_DIR at=$(pwd)"; git rev-parse --git-dir\n')
    commit_file(client, work, "new.txt", "new\n")
    result = client.run("push", "origin", "main", cwd=work)
    assert "remote: dir=. at=" + str(hosted.path) in result.stderr, result.stderr


def test_hook_that_is_not_executable_is_ignored(client: Git, work: Path, hosted: Hosted) -> None:
    write_hook(hosted, "pre-receive", "exit 1\n")
    (hosted.path / "hooks/pre-receive").chmod(0o644)
    new = commit_file(client, work, "new.txt", "new\n")
    client("push", "origin", "main", cwd=work)
    assert refs(hosted.path)["refs/heads/main"] == new


def test_hook_that_does_not_read_its_input(client: Git, work: Path, hosted: Hosted) -> None:
    write_hook(hosted, "pre-receive", "exit 0\n")
    names = [f"main:refs/heads/many/{n}" for n in range(300)]
    client("push", "-q", "origin", *names, cwd=work)
    assert len(refs(hosted.path)) > 300


def test_quarantine_is_gone_after_a_failed_push(client: Git, work: Path, hosted: Hosted) -> None:
    write_hook(hosted, "pre-receive", "ls -d objects/*; exit 1\n")
    commit_file(client, work, "noise.bin", noise(2_000_000))
    before = repository_files(hosted.path)
    client.fails("push", "origin", "main", cwd=work)
    assert leftovers(hosted.path) == []
    assert repository_files(hosted.path) == before
