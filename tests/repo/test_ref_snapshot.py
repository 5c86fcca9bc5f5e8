"""The list of refs against git's own, beside git's own writers."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gitsmart.errors import RepositoryUnusable
from gitsmart.repo import files_refs
from gitsmart.repo.refs import RefSnapshot, is_safe_ref
from gitsmart.repo.repository import Repository
from gitsmart.repo.root import RepositoryRoot


def shown(snapshot: RefSnapshot) -> list[bytes]:
    """As git show-ref --head -d prints."""
    lines = []
    for ref in ([] if snapshot.head is None else [snapshot.head]) + list(snapshot.refs):
        lines.append(ref.oid + b" " + ref.name)
        if ref.peeled is not None:
            lines.append(ref.peeled + b" " + ref.name + b"^{}")
    return lines


@pytest.fixture
def filled(root: RepositoryRoot, git: Any, object_format: str) -> tuple[Repository, Path]:
    repo = root.create("app", object_format=object_format)
    path = root.path / "app.git"
    one = git.commit(path, "f", "one")
    two = git.commit(path, "f", "two", one)
    commands = "".join(
        f"create refs/{name} {oid.decode()}\n"
        for name, oid in [
            ("heads/main", two), ("heads/a/b/c", one), ("heads/a-b", two), ("tags/light", one),
            ("odd/\xe9", two), ("top", one),
        ]
    )  # fmt: skip
    git(path, "update-ref", "--stdin", stdin=commands.encode("latin-1"))
    git(path, "tag", "-a", "-m", "m", "annotated", one.decode())
    git(path, "tag", "-a", "-m", "m", "nested", "annotated")
    git(path, "update-ref", "refs/heads-of-tags/x", git(path, "rev-parse", "annotated").decode())
    git(path, "symbolic-ref", "refs/remotes/o/HEAD", "refs/heads/a/b/c")
    git(path, "symbolic-ref", "refs/remotes/o/two", "refs/remotes/o/HEAD")
    return repo, path


@pytest.mark.parametrize("packing", ["loose", "packed", "mixed", "old traits", "no traits"])
def test_equals_show_ref(filled: tuple[Repository, Path], git: Any, packing: str) -> None:
    repo, path = filled
    if packing != "loose":
        git(path, "pack-refs", "--all")
    if packing == "mixed":
        git(path, "update-ref", "refs/heads/main", "refs/heads/main~1")
        git(path, "update-ref", "-d", "refs/tags/light")
        git(path, "tag", "-a", "-m", "again", "annotated2", "refs/heads/a-b")
    if packing.endswith("traits"):
        lines = (path / "packed-refs").read_bytes().split(b"\n", 1)
        assert lines[0] == b"# pack-refs with: peeled fully-peeled sorted "
        header = b"# pack-refs with: peeled \n" if packing == "old traits" else b""
        body = lines[1] if header else b"\n".join(x for x in lines[1].split(b"\n") if not x.startswith(b"^"))
        (path / "packed-refs").write_bytes(header + body)
    assert shown(repo.refs()) == git(path, "show-ref", "--head", "-d").split(b"\n")
    snapshot = repo.refs()
    assert snapshot.head_target == b"refs/heads/main"
    for name in (b"refs/remotes/o/HEAD", b"refs/remotes/o/two"):
        ref = snapshot.get(name)
        assert ref is not None
        assert ref.symref_target == b"refs/heads/a/b/c"
    assert [ref.name for ref in repo.refs(peel=False).refs] == [ref.name for ref in snapshot.refs]
    assert snapshot.get(b"refs/no") is None


def test_what_is_no_ref_is_left_out(filled: tuple[Repository, Path], git: Any) -> None:
    repo, path = filled
    good = shown(repo.refs())
    missing = ("12" * (repo.format.hex_len // 2)).encode()
    heads = path / "refs" / "heads"
    (heads / "x.lock").write_bytes(missing + b"\n")
    (heads / "broken").write_bytes(b"garbage\n")
    (heads / "short").write_bytes(missing[:-1] + b"\n")
    (heads / "long").write_bytes(missing + b"0\n")
    (heads / "empty").write_bytes(b"")
    (heads / "missing").write_bytes(missing + b"\n")
    (heads / "zero").write_bytes(repo.format.zero + b"\n")
    (heads / "bad~name").write_bytes(good[0][: repo.format.hex_len] + b"\n")
    (heads / "..dots").write_bytes(good[0][: repo.format.hex_len] + b"\n")
    (heads / "dangling").write_bytes(b"ref: refs/heads/none\n")
    (heads / "loop1").write_bytes(b"ref: refs/heads/loop2\n")
    (heads / "loop2").write_bytes(b"ref: refs/heads/loop1\n")
    (heads / "out").write_bytes(b"ref: ../../../../etc/passwd\n")
    os.mkfifo(heads / "fifo")
    (heads / "slash").symlink_to("/")
    (heads / "nowhere").symlink_to("nowhere")
    (heads / "empty-dir" / "deeper").mkdir(parents=True)
    assert shown(repo.refs()) == good


def test_a_symbolic_link_is_an_old_symref(filled: tuple[Repository, Path]) -> None:
    repo, path = filled
    (path / "refs" / "heads" / "link").symlink_to("refs/heads/main")
    ref = repo.refs().get(b"refs/heads/link")
    assert ref is not None
    assert ref.symref_target == b"refs/heads/main"


def test_head_detached_unborn_and_broken(filled: tuple[Repository, Path], git: Any) -> None:
    repo, path = filled
    oid = git(path, "rev-parse", "refs/heads/a-b")
    (path / "HEAD").write_bytes(oid + b"\n")
    snapshot = repo.refs()
    assert snapshot.head is not None
    assert (snapshot.head.oid, snapshot.head.symref_target, snapshot.head_target) == (oid, None, None)
    git(path, "symbolic-ref", "HEAD", "refs/heads/unborn")
    snapshot = repo.refs()
    assert (snapshot.head, snapshot.head_target) == (None, b"refs/heads/unborn")


@pytest.mark.parametrize(
    "data",
    [
        b"x\n",
        b"# pack-refs with: peeled",
        b"0" * 40 + b" refs/heads/x",
        b"^" + b"0" * 40 + b"\n",
        b"0" * 40 + b"\n",
    ],
)
def test_a_malformed_packed_refs_is_a_clear_error(root: RepositoryRoot, data: bytes) -> None:
    repo = root.create("app")
    (root.path / "app.git" / "packed-refs").write_bytes(data)
    with pytest.raises(RepositoryUnusable, match="packed-refs is malformed"):
        repo.refs()


def test_a_packed_ref_comes_back_with_its_object(filled: tuple[Repository, Path], git: Any) -> None:
    repo, path = filled
    git(path, "pack-refs", "--all")
    oid = git(path, "rev-parse", "refs/heads/a-b").decode()
    loose = path / "objects" / oid[:2] / oid[2:]
    loose.rename(path / "aside")
    assert repo.refs().get(b"refs/heads/a-b") is None
    assert repo.refs().get(b"refs/top") is not None
    (path / "aside").rename(loose)
    assert repo.refs().get(b"refs/heads/a-b") is not None


def test_no_ref_is_ever_missing_beside_git_pack_refs(root: RepositoryRoot, git: Any) -> None:
    repo = root.create("app")
    path = root.path / "app.git"
    oids = [git.commit(path, "f", str(number)).decode() for number in range(2)]
    names = {f"refs/heads/b{number}".encode() for number in range(20)}
    stop = threading.Event()
    errors: list[BaseException] = []

    def write() -> None:
        try:
            turn = 0
            while not stop.is_set():
                turn += 1
                lines = "".join(f"update {name.decode()} {oids[turn % 2]}\n" for name in names)
                git(path, "update-ref", "--stdin", stdin=lines.encode())
                git(path, "pack-refs", "--all", "--prune")
        except BaseException as error:
            errors.append(error)

    git(
        path,
        "update-ref",
        "--stdin",
        stdin="".join(f"create {n.decode()} {oids[0]}\n" for n in names).encode(),
    )
    writer = threading.Thread(target=write)
    writer.start()
    try:
        end = time.monotonic() + 1.5
        count = 0
        while time.monotonic() < end:
            assert {ref.name for ref in repo.refs().refs} == names
            count += 1
    finally:
        stop.set()
        writer.join()
    assert not errors
    assert count > 20


@pytest.mark.parametrize(
    ("ref", "safe"),
    [
        (b"refs/heads/main", True), (b"refs/x", True), (b"refs/heads/\xff", True), (b"HEAD", False),
        (b"refs/", False),
        (b"refs/../x", False), (b"refs/heads/..", False), (b"refs/a//b", False), (b"refs/.a", False),
        (b"refs/a.lock", False),
        (b"refs/a.lock/b", False), (b"refs/a b", False), (b"refs/a\n", False), (b"refs/a\0", False),
        (b"/refs/a", False),
        (b"refs/a@{1}", False), (b"refs/a.", False), (b"refs/a/", False), (b"refs/a:b", False),
        (b"refs/a*", False),
    ],
)  # fmt: skip
def test_safe_names(ref: bytes, safe: bool) -> None:
    assert is_safe_ref(ref) is safe


def test_the_same_list_is_given_while_nothing_changes(filled: tuple[Repository, Path], git: Any) -> None:
    """... and every change is seen at once, however it is made."""
    repo, path = filled
    one, two = (git(path, "rev-parse", f"refs/heads/{name}").decode() for name in ("a/b/c", "main"))
    loose = path / "refs" / "heads" / "main"
    changes: list[Any] = [
        lambda: git(path, "update-ref", "refs/heads/main", one),
        lambda: loose.write_text(two + "\n"),  # in place, as no git does
        lambda: git(path, "update-ref", "refs/heads/new/er", two),
        lambda: git(path, "pack-refs", "--all"),
        lambda: git(path, "update-ref", "-d", "refs/heads/new/er"),
        lambda: git(path, "symbolic-ref", "HEAD", "refs/heads/a/b/c"),
        lambda: git(path, "update-ref", "refs/heads/main", one),
        lambda: git(path, "update-ref", "-d", "refs/heads/main"),
    ]
    for change in changes:
        deadline = time.monotonic() + 5
        while repo.refs() is not repo.refs():
            assert time.monotonic() < deadline
        assert repo.refs(peel=False) is repo.refs()
        view = repo.shown_refs("uploadpack")
        assert view is repo.shown_refs("uploadpack")
        change()
        assert shown(repo.refs()) == git(path, "show-ref", "--head", "-d").splitlines()
        assert view is not repo.shown_refs("uploadpack")


class _WholeSeconds:
    """A stat's result, as a file system gives it whose times have whole seconds only."""

    def __init__(self, found: os.stat_result) -> None:
        self._found = found

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._found, name)
        return value // 1_000_000_000 * 1_000_000_000 if name.endswith("time_ns") else value


def test_times_of_whole_seconds(
    filled: tuple[Repository, Path], git: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Coarse:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def stat(self, path: bytes) -> _WholeSeconds:
            return _WholeSeconds(os.stat(path))

        def fstat(self, fd: int) -> _WholeSeconds:
            return _WholeSeconds(os.fstat(fd))

    repo, path = filled
    oid = git(path, "rev-parse", "refs/heads/main")
    monkeypatch.setattr(files_refs, "os", Coarse())
    while time.time() % 1 > 0.3:
        time.sleep(0.01)
    (path / "refs/heads/new1").write_bytes(oid + b"\n")
    time.sleep(0.1)
    assert b"refs/heads/new1" in [ref.name for ref in repo.refs().refs]
    (path / "refs/heads/new2").write_bytes(oid + b"\n")
    assert b"refs/heads/new2" in [ref.name for ref in repo.refs().refs]
