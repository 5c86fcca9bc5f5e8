"""Repositories with reftables behind a server: any git pushes to them, one that knows them looks at them.

The system's git need not know of reftables to be a client. What is on the server's disk is judged by a newer
git, if there is one in PATH or among the binaries that GITSMART_TEST_GITS names (separated as in PATH); else
these tests are skipped.
"""

import hashlib
import os
import shutil
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from gitsmart.pack.objects import SHA1, SHA256
from gitsmart.repo.reftable import LogRecord, RefRecord
from gitsmart.repo.reftable_stack import ReftableStack, merge_logs, merge_refs
from gitsmart.repo.root import RepositoryRoot
from gitsmart.wire.pktline import pkt
from tests.conftest import Git, ServeFunction, Server, commit_file, hermetic_environ, leftovers

RECEIVE_PACK = "--receive-pack=git receive-pack"  # else a `git-receive-pack` elsewhere in PATH may be taken


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Git:
    """A git that knows of reftables."""
    binaries = os.environ.get("GITSMART_TEST_GITS", "").split(os.pathsep)
    for folder in ["", *(str(Path(binary).parent) for binary in filter(None, binaries))]:
        environ = hermetic_environ(tmp_path_factory.mktemp("home"))
        environ["PATH"] = os.pathsep.join(filter(None, [folder, environ["PATH"]]))
        git = Git(environ)
        where = tmp_path_factory.mktemp("probe")
        if not git.run("init", "-q", "--ref-format=reftable", where).returncode:
            return git
    pytest.skip("no git here knows of reftables")


@pytest.fixture(params=["sha1", "sha256"])
def object_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def make(root: Path, name: str, object_format: str = "sha1") -> Path:
    RepositoryRoot(root).create(name, object_format=object_format, ref_format="reftable")
    return root / f"{name}.git"


def listed(git: Git, url: str) -> dict[str, str]:
    lines = git("ls-remote", url).splitlines()
    return {name: oid for oid, name in (line.split("\t") for line in lines)}


def check(newer: Git, path: Path) -> None:
    """What git says of the whole repository."""
    result = newer.run("fsck", "--full", "--strict", "--no-dangling", "--no-progress", cwd=path)
    notices = [line for line in result.stderr.splitlines() if not line.startswith("notice: ")]
    assert (result.returncode, result.stdout, notices) == (0, "", [])
    result = newer.run("refs", "verify", "--strict", cwd=path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def stored(path: Path) -> tuple[list[RefRecord], list[LogRecord]]:
    """Everything that a stack has, without update indexes of refs, and without the times of logs."""
    fmt = SHA256 if "sha256" in (path / "config").read_text() else SHA1
    tables = ReftableStack(os.fsencode(path / "reftable"), fmt).view().tables
    refs = [
        record for record in merge_refs([table.table.refs() for table in tables]) if not record.is_deletion
    ]
    logs = [
        record._replace(time_s=0, zone=0, who=b"", email=b"")
        for record in merge_logs([table.table.logs() for table in tables])
        if not record.is_deletion
    ]
    return refs, logs


# Any client


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_clone_fetch_push_delete(
    git: Git, serve: ServeFunction, root: Path, tmp_path: Path, object_format: str, protocol: int
) -> None:
    path = make(root, "app", object_format)
    server = serve(root, "--anonymous", "write")
    client = git.with_config(f"protocol.version={protocol}")
    url = server.url_of("app.git")
    work = tmp_path / "work"
    client("init", "-q", f"--object-format={object_format}", work)
    client("remote", "add", "origin", url, cwd=work)
    first = commit_file(client, work, "f", "one\n")
    client("tag", "-a", "-m", "m", "v1", cwd=work)
    client("push", "-q", "origin", "main", "main:side/deep", "v1", cwd=work)
    second = commit_file(client, work, "f", "two\n")
    client("push", "-q", "--atomic", "origin", "main", ":side/deep", "main:other", cwd=work)
    tag = client("rev-parse", "v1", cwd=work)
    assert listed(client, url) == {
        "HEAD": second,
        "refs/heads/main": second,
        "refs/heads/other": second,
        "refs/tags/v1": tag,
        "refs/tags/v1^{}": first,
    }
    client("push", "-q", "-f", "origin", f"{first}:main", ":v1", cwd=work)
    client("clone", "-q", "--mirror", url, tmp_path / "copy")
    assert client(
        "for-each-ref", "--format=%(objectname) %(refname)", cwd=tmp_path / "copy"
    ).splitlines() == [
        f"{first} refs/heads/main",
        f"{second} refs/heads/other",
    ]
    client("fsck", "--strict", cwd=tmp_path / "copy")
    refused = client.run("push", "--atomic", "origin", "main:new", "main:other/x", cwd=work)
    assert "(atomic transaction failed)" in refused.stderr
    assert refused.stderr.count("[remote rejected]") == 2
    assert sorted(listed(client, url)) == ["HEAD", "refs/heads/main", "refs/heads/other"]
    assert leftovers(root) == []
    assert len((path / "reftable" / "tables.list").read_text().split()) <= 4


def test_what_is_hidden_and_what_is_of_a_namespace(
    git: Git, serve: ServeFunction, root: Path, tmp_path: Path
) -> None:
    path = make(root, "app")
    server = serve(root, "--anonymous", "write")
    url = server.url_of("app.git")
    git("clone", "-q", url, tmp_path / "work")
    one = commit_file(git, tmp_path / "work", "f", "one\n")
    git("push", "-q", "origin", "main", "main:refs/secret/x", cwd=tmp_path / "work")
    with (path / "config").open("a") as file:
        file.write("[transfer]\n\thideRefs = refs/secret\n")
    assert listed(git, url) == {"HEAD": one, "refs/heads/main": one}
    assert "deny updating a hidden ref" in git.fails(
        "push", "origin", "main:refs/secret/y", cwd=tmp_path / "work"
    )


def test_a_borrower_knows_what_the_lender_s_reftables_have(
    git: Git, serve: ServeFunction, root: Path, tmp_path: Path
) -> None:
    make(root, "lender")
    borrower = make(root, "borrower")
    server = serve(root, "--anonymous", "write")
    git("clone", "-q", server.url_of("lender.git"), tmp_path / "work")
    commit_file(git, tmp_path / "work", "f", "one\n")
    git("push", "-q", "origin", "main", cwd=tmp_path / "work")
    (borrower / "objects" / "info" / "alternates").write_text("../../lender.git/objects\n")
    trace = tmp_path / "trace"
    git(
        "push", "-q", server.url_of("borrower.git"), "main", cwd=tmp_path / "work",
        env={"GIT_TRACE_PACKET": str(trace)},
    )  # fmt: skip
    assert " .have" in trace.read_text()
    assert list((borrower / "objects" / "pack").iterdir()) == []


def test_a_checked_out_branch_of_a_work_tree_is_not_pushed_to(
    newer: Git, serve: ServeFunction, root: Path, tmp_path: Path
) -> None:
    path = make(root, "app")
    server = serve(root, "--anonymous", "write")
    newer("clone", "-q", server.url_of("app.git"), tmp_path / "work")
    commit_file(newer, tmp_path / "work", "f", "one\n")
    newer("push", "-q", "origin", "main", "main:linked", cwd=tmp_path / "work")
    newer("worktree", "add", "-q", tmp_path / "linked", "linked", cwd=path)
    commit_file(newer, tmp_path / "work", "f", "two\n")
    assert "branch is currently checked out" in newer.fails(
        "push", "origin", "main:linked", cwd=tmp_path / "work"
    )
    newer("push", "-q", "origin", "main", cwd=tmp_path / "work")
    check(newer, path)


# Beside a git that knows


@pytest.mark.parametrize("logs", ["always", "true", "false"])
def test_the_same_records_as_git_s_own_receive_pack(
    newer: Git, serve: ServeFunction, root: Path, tmp_path: Path, object_format: str, logs: str
) -> None:
    ours = root / "ours.git"
    newer("init", "-q", "--bare", "--ref-format=reftable", f"--object-format={object_format}", ours)
    newer("config", "core.logAllRefUpdates", logs, cwd=ours)
    newer("config", "receive.denyDeleteCurrent", "ignore", cwd=ours)
    newer("symbolic-ref", "refs/heads/sym", "refs/heads/main", cwd=ours)
    theirs = tmp_path / "theirs.git"
    shutil.copytree(ours, theirs)
    server = serve(root, "--anonymous", "write")
    work = tmp_path / "work"
    newer("init", "-q", f"--object-format={object_format}", work)
    commit_file(newer, work, "f", "one\n")
    newer("tag", "-a", "-m", "m", "v1", cwd=work)
    newer("tag", "-a", "-m", "m", "v2", "v1", cwd=work)
    pushes: list[list[str]] = [
        ["main", "main:x/y", "main:z", "v1", "v2", "v1:refs/odd/tag"],
        ["--atomic", "main", ":z", "main:n"],
        ["-f", "v2:v1", ":x/y"],
        ["main:x/y"],
        [":main"],
        ["main", ":n", "main~1:refs/heads/old"],
    ]
    for number, refspecs in enumerate(pushes):
        newer("push", "-q", server.url_of("ours.git"), *refspecs, cwd=work)
        newer("push", "-q", RECEIVE_PACK, theirs, *refspecs, cwd=work)
        if number < 4:
            commit_file(newer, work, "f", f"{number}\n")
        assert stored(ours) == stored(theirs)
    for path in (ours, theirs):
        check(newer, path)
    command = ("for-each-ref", "--format=%(refname) %(objectname) %(*objectname) %(symref)")
    assert newer(*command, cwd=ours) == newer(*command, cwd=theirs)
    assert newer("reflog", "list", cwd=ours) == newer("reflog", "list", cwd=theirs)
    if logs != "false":
        lines = newer("log", "-g", "--format=%gs %gn <%ge>", "HEAD", cwd=ours).splitlines()
        assert set(lines) == {"push anonymous <anonymous@http.127.0.0.1>"}


def loop(command: Callable[[], object], done: threading.Event, problems: list[str]) -> threading.Thread:
    def run() -> None:
        while not done.is_set():
            try:
                command()
            except Exception as problem:
                problems.append(repr(problem))
                return

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_pushes_beside_git_s_own_writers(
    newer: Git, serve: ServeFunction, root: Path, tmp_path: Path
) -> None:
    path = make(root, "app")
    with (path / "config").open("a") as file:
        file.write("[reftable]\n\tlockTimeout = -1\n[core]\n\tlogAllRefUpdates = true\n")
    server = serve(root, "--anonymous", "write")
    url = server.url_of("app.git")
    works = [tmp_path / f"work{number}" for number in range(2)]
    newer("clone", "-q", url, works[0])
    oids = [commit_file(newer, works[0], "f", f"{number}\n") for number in range(8)]
    newer("push", "-q", "origin", "main", "main:refs/heads/git", cwd=works[0])
    newer("clone", "-q", url, works[1])
    done = threading.Event()
    problems: list[str] = []
    counts = {"git": 0}

    def update() -> None:
        number = counts["git"]
        newer("update-ref", "refs/heads/git", oids[number % 8], oids[(number - 1) % 8], cwd=path)
        newer("update-ref", f"refs/git/{number}", oids[0], "", cwd=path)
        counts["git"] += 1

    threads = [
        loop(update, done, problems),
        loop(lambda: newer.run("pack-refs", cwd=path), done, problems),  # fails when we are at it,
        loop(lambda: newer("refs", "verify", cwd=path), done, problems),
    ]
    pushed: dict[str, str] = {}

    def push(work: Path, prefix: str) -> None:
        for number in range(12):
            oid = oids[number % 8]
            refspecs = [f"{oid}:refs/heads/{prefix}/{number}", f"+{oid}:refs/heads/{prefix}-moving"]
            if number > 2:
                refspecs.append(f":refs/heads/{prefix}/{number - 2}")
            newer("push", "-q", "--atomic", "origin", *refspecs, cwd=work)
            pushed[f"refs/heads/{prefix}/{number}"] = oid
            pushed[f"refs/heads/{prefix}-moving"] = oid
            if number > 2:
                del pushed[f"refs/heads/{prefix}/{number - 2}"]

    pushers = [threading.Thread(target=push, args=(work, f"p{n}")) for n, work in enumerate(works)]
    for pusher in pushers:
        pusher.start()
    for pusher in pushers:
        pusher.join()
    done.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert counts["git"] > 0
    expected = {"refs/heads/main": oids[7], "refs/heads/git": oids[(counts["git"] - 1) % 8], **pushed}
    expected |= {f"refs/git/{number}": oids[0] for number in range(counts["git"])}
    lines = newer("for-each-ref", "--format=%(refname) %(objectname)", cwd=path).splitlines()
    assert dict(line.split() for line in lines) == expected
    found = listed(newer, url)
    assert {name: oid for name, oid in found.items() if name != "HEAD"} == expected
    check(newer, path)
    assert leftovers(root) == []


def test_nothing_acknowledged_is_lost_when_the_server_is_killed(
    newer: Git, serve: ServeFunction, root: Path, tmp_path: Path
) -> None:
    path = make(root, "app")
    work = tmp_path / "work"
    newer("init", "-q", work)
    oids = [commit_file(newer, work, "f", f"{number}\n") for number in range(5)]
    acknowledged: dict[str, str] = {}
    tried: dict[str, set[str]] = {}
    for turn in range(4):
        server: Server = serve(root, "--anonymous", "write")
        assert leftovers(root) == []
        assert sorted(os.listdir(path / "reftable")) == sorted(
            [*(path / "reftable" / "tables.list").read_text().split(), "tables.list"]
        )
        check(newer, path)
        lines = newer("for-each-ref", "--format=%(refname) %(objectname)", cwd=path).splitlines()
        found = dict(line.split() for line in lines)
        for name, oid in acknowledged.items():
            assert found[name] in {oid, *tried.get(name, set())}
        # a push of two refs is whole or not there
        for name in found:
            assert found[name] == found[name.replace("one", "two")]
        acknowledged = found
        tried = {}
        stop = threading.Timer(0.3 + 0.3 * turn, server.kill)
        stop.start()
        number = 0
        while True:
            oid = oids[number % 5]
            names = [f"refs/heads/one/{number % 7}", f"refs/heads/two/{number % 7}"]
            for name in names:
                tried.setdefault(name, set()).add(oid)
            url = server.url_of("app.git")
            refspecs = [f"+{oid}:{name}" for name in names]
            if newer.run("push", "-q", "--atomic", url, *refspecs, cwd=work).returncode:
                break
            for name in names:
                acknowledged[name] = oid
                tried[name] = set()
            number += 1
        stop.join()
    serve(root)
    check(newer, path)


def test_git_can_go_on_after_us(newer: Git, root: Path, tmp_path: Path, object_format: str) -> None:
    path = make(root, "app", object_format)
    newer("init", "-q", f"--object-format={object_format}", tmp_path / "work")
    one = commit_file(newer, tmp_path / "work", "f", "one\n")
    newer("push", "-q", RECEIVE_PACK, path, "main", cwd=tmp_path / "work")
    assert newer("rev-parse", "HEAD", cwd=path) == one
    newer("branch", "topic", cwd=path)
    newer("pack-refs", cwd=path)
    repo = RepositoryRoot(root).open("app")
    assert [ref.name for ref in repo.refs().refs] == [b"refs/heads/main", b"refs/heads/topic"]
    newer("refs", "migrate", "--ref-format=files", cwd=path)
    assert [ref.name for ref in RepositoryRoot(root).open("app").refs().refs] == [
        b"refs/heads/main",
        b"refs/heads/topic",
    ]
    newer("refs", "migrate", "--ref-format=reftable", cwd=path)
    assert len(RepositoryRoot(root).open("app").refs().refs) == 2
    check(newer, path)


def test_an_atomic_push_of_5000_refs(
    git: Git, serve: ServeFunction, root: Path, tmp_path: Path, object_format: str
) -> None:
    """Without git's client: its time grows with the square of the refs of an atomic push."""
    make(root, "app", object_format)
    server = serve(root, "--anonymous", "write")
    work = tmp_path / "work"
    git("init", "-q", f"--object-format={object_format}", work)
    tip = commit_file(git, work, "f", "one\n")
    git("push", "-q", server.url_of("app.git"), "main", cwd=work)
    names = [f"refs/heads/b{number:04d}" for number in range(5000)]
    zero = "0" * len(tip)
    lines = [pkt(f"{zero} {tip} {name}".encode()) for name in names]
    lines[0] = pkt(f"{zero} {tip} {names[0]}\0report-status atomic object-format={object_format}".encode())
    pack = b"PACK" + (2).to_bytes(4, "big") + bytes(4)
    pack += hashlib.new(object_format, pack).digest()
    request = urllib.request.Request(
        server.url_of("app.git/git-receive-pack"),
        b"".join(lines) + b"0000" + pack,
        {"Content-Type": "application/x-git-receive-pack-request"},
    )
    with urllib.request.urlopen(request, timeout=100) as reply:
        report = reply.read()
    assert report.startswith(pkt(b"unpack ok\n"))
    assert report.count(b"ok refs/heads/b") == 5000
    expected = dict.fromkeys(["HEAD", *names, "refs/heads/main"], tip)
    assert listed(git, server.url_of("app.git")) == expected
    assert leftovers(root) == []


def test_reference_transaction_is_heard(git: Git, serve: ServeFunction, root: Path, tmp_path: Path) -> None:
    path = make(root, "app")
    server = serve(root, "--anonymous", "write")
    url = server.url_of("app.git")
    hook = path / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(
        '#!/bin/sh\ntext=$(cat)\nprintf "%s\\n%s\\n" "$1" "$text" >>heard\n'
        '[ "$1" != prepared ] || ! echo "$text" | grep -q refs/heads/bad\n'
    )
    hook.chmod(0o755)
    work = tmp_path / "work"
    git("init", "-q", work)
    tip = commit_file(git, work, "f", "one\n")
    git("push", "-q", "--atomic", url, "main", "main:two", cwd=work)
    zero = "0" * len(tip)
    told = [f"{zero} {tip} refs/heads/main", f"{zero} {tip} refs/heads/two"]
    assert (path / "heard").read_text().splitlines() == ["prepared", *told, "committed", *told]
    refused = git.run("push", "--atomic", url, "main:bad", ":two", cwd=work)
    assert refused.stderr.count("[remote rejected]") == 2
    assert (path / "heard").read_text().count("aborted\n") == 1
    assert listed(git, url) == {"HEAD": tip, "refs/heads/main": tip, "refs/heads/two": tip}
    assert leftovers(root) == []
