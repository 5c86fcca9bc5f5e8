"""A push's objects: apart until migrated, gone without a trace when not, whole afterwards."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gitsmart.errors import PackError
from gitsmart.pack.objects import BLOB, to_raw
from gitsmart.repo.quarantine import Push
from gitsmart.repo.ref_transaction import ReflogIdentity, RefUpdate
from gitsmart.repo.repository import Repository
from gitsmart.repo.root import RepositoryRoot

WHO = ReflogIdentity("pusher", "pusher@example.com")
Ingest = Callable[[Push, bytes], None]
Listing = Callable[[Path], dict[str, bytes]]


class Ends:
    """A client's repository with two commits, and the server's, which has the first of them."""

    def __init__(self, root: RepositoryRoot, git: Any, tmp_path: Path, object_format: str = "sha1") -> None:
        self.git = git
        git(tmp_path, "init", "-q", "--bare", f"--object-format={object_format}", "client")
        self.client = tmp_path / "client"
        files = {f"dir{n}/sub{m}/file": b"%d %d\n" % (n, m) for n in range(4) for m in range(4)}
        self.one = git.commit(self.client, files, "one")
        self.two = git.commit(self.client, files | {"dir1/sub1/file": b"changed\n"}, "two", self.one)
        git(self.client, "update-ref", "refs/heads/main", self.two.decode())
        self.repo: Repository = root.create("app", object_format=object_format)
        self.path = root.path / "app.git"
        self.zero = self.repo.format.zero
        git(self.client, "push", "-q", str(self.path), f"{self.one.decode()}:refs/heads/main")

    def thin(self) -> bytes:
        return bytes(
            self.git.pack(
                self.client, f"{self.two.decode()}\n^{self.one.decode()}\n", "--thin", "--delta-base-offset"
            )
        )

    def update(self, name: str = "refs/heads/main") -> RefUpdate:
        return RefUpdate(name.encode(), self.one if name == "refs/heads/main" else self.zero, self.two)


@pytest.fixture
def ends(root: RepositoryRoot, git: Any, tmp_path: Path) -> Ends:
    return Ends(root, git, tmp_path)


def test_a_whole_push(
    root: RepositoryRoot, git: Any, tmp_path: Path, ingest: Ingest, object_format: str
) -> None:
    ends = Ends(root, git, tmp_path, object_format)
    raw = to_raw(ends.two)
    with ends.repo.begin_push() as push:
        assert raw not in push.objects
        ingest(push, ends.thin())
        assert raw in push.objects
        assert raw not in ends.repo.objects
        assert push.unconnected([ends.two]) == {}
        push.migrate()
        assert raw in ends.repo.objects
        (keep,) = (ends.path / "objects" / "pack").glob("*.keep")
        assert keep.read_bytes().startswith(b"gitsmart ")
        assert push.commit([ends.update()], atomic=False, identity=WHO) == [None]
    assert list((ends.path / "objects" / "pack").glob("*.keep")) == []
    assert [p for p in os.listdir(ends.path / "objects") if p.startswith("tmp_")] == []
    git(ends.path, "fsck", "--strict", "--full")
    for index in (ends.path / "objects" / "pack").glob("*.idx"):
        git(ends.path, "verify-pack", str(index))
    assert git(ends.path, "rev-parse", "main") == ends.two


def test_hooks_see_the_quarantine_and_may_not_write_refs(ends: Ends, ingest: Ingest) -> None:
    with ends.repo.begin_push() as push:
        assert push.environ == {}
        ingest(push, ends.thin())
        assert set(push.environ) == {
            "GIT_QUARANTINE_PATH",
            "GIT_OBJECT_DIRECTORY",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        }
        environ = ends.git.environ | dict(push.environ) | {"GIT_DIR": str(ends.path)}
        log = subprocess.run(
            ["git", "log", "--format=%s", ends.two.decode()], env=environ, capture_output=True, check=True
        )
        assert log.stdout == b"two\none\n"
        moved = subprocess.run(
            ["git", "update-ref", "refs/heads/x", ends.two.decode()], env=environ, capture_output=True
        )
        assert b"quarantine" in moved.stderr
        push.migrate()
        assert push.environ == {}


@pytest.mark.parametrize("how", ["left", "raised", "corrupt", "truncated", "closed twice"])
def test_what_is_not_migrated_leaves_no_trace(ends: Ends, ingest: Ingest, listing: Listing, how: str) -> None:
    before = listing(ends.path)
    pack = ends.thin()
    if how == "corrupt":
        pack = pack[:-1] + bytes([pack[-1] ^ 1])
    if how == "truncated":
        pack = pack[:-30]
    expected = {"raised": RuntimeError, "corrupt": PackError, "truncated": PackError}.get(how, ())
    try:
        with ends.repo.begin_push() as push:
            ingest(push, pack)
            if how == "raised":
                raise RuntimeError
            push.unconnected([ends.two])
    except expected:
        assert expected
    else:
        assert not expected
    if how == "closed twice":
        push.close()
    assert listing(ends.path) == before


def test_an_empty_push_touches_nothing(ends: Ends, listing: Listing, ingest: Ingest) -> None:
    before = listing(ends.path)
    with ends.repo.begin_push() as push:
        push.migrate()
    assert listing(ends.path) == before
    with ends.repo.begin_push() as push:
        ingest(push, ends.git.pack(ends.client, ""))
        assert push.unconnected([ends.one]) == {}
        push.migrate()
    assert listing(ends.path) == before


def test_the_same_pack_twice_at_once_is_kept_for_each(ends: Ends, ingest: Ingest) -> None:
    """Each of two pushes of one pack has its own keep, so neither takes the other's protection away."""
    pack_dir = ends.path / "objects" / "pack"
    with ends.repo.begin_push() as first:
        ingest(first, ends.thin())
        with ends.repo.begin_push() as second:
            ingest(second, ends.thin())
            first.migrate()
            second.migrate()
            assert len(list(pack_dir.glob("*.keep"))) == 2
        assert len(list(pack_dir.glob("*.keep"))) == 1
        ends.git(ends.path, "repack", "-adq")
        assert first.commit([ends.update()], atomic=False, identity=WHO) == [None]
    assert list(pack_dir.glob("*.keep")) == []
    ends.git(ends.path, "fsck", "--full")


def test_an_operator_s_keep_stays(ends: Ends, ingest: Ingest) -> None:
    pack_dir = ends.path / "objects" / "pack"
    for attempt in range(2):
        with ends.repo.begin_push() as push:
            ingest(push, ends.thin())
            push.migrate()
        if not attempt:
            for index in pack_dir.glob("*.idx"):
                index.with_suffix(".keep").write_bytes(b"mine\n")
    assert {keep.read_bytes() for keep in pack_dir.glob("*.keep")} == {b"mine\n"}


def test_a_repack_between_migrate_and_commit_loses_nothing(ends: Ends, ingest: Ingest) -> None:
    with ends.repo.begin_push() as push:
        ingest(push, ends.thin())
        push.migrate()
        ends.git(ends.path, "repack", "-adq")
        ends.git(ends.path, "prune", "--expire=now")
        assert push.commit([ends.update()], atomic=False, identity=WHO) == [None]
    ends.git(ends.path, "repack", "-adq")
    ends.git(ends.path, "fsck", "--full", "--strict")


def test_a_pack_that_vanished_before_commit_is_noticed(ends: Ends, ingest: Ingest) -> None:
    with ends.repo.begin_push() as push:
        ingest(push, ends.thin())
        push.migrate()
        for keep in (ends.path / "objects" / "pack").glob("*.keep"):
            for file in keep.parent.glob(keep.stem + ".*"):
                file.unlink()
        assert push.commit([ends.update()], atomic=False, identity=WHO) == ["missing necessary objects"]
    assert ends.git(ends.path, "rev-parse", "main") == ends.one
    ends.git(ends.path, "fsck", "--full")


@pytest.mark.parametrize("nth", range(1, 5))
def test_a_disk_that_fails_in_migrate(
    ends: Ends, ingest: Ingest, listing: Listing, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(ends.path)
    real = os.rename
    calls = 0

    def rename(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(28, "No space left on device")
        real(*args)

    def attempt() -> None:
        with ends.repo.begin_push() as push:
            ingest(push, ends.thin())
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", rename)
                push.migrate()

    if nth > 3:
        attempt()
        assert calls == 3
        return
    with pytest.raises(OSError, match="No space left"):
        attempt()
    assert listing(ends.path) == before


def test_durable_and_in_order(ends: Ends, ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of contents, .keep, .pack, .rev, .idx, fsync of the directory, and only then the ref."""
    events: list[str] = []
    rename, fsync, link = os.rename, os.fsync, os.link

    def name_of(fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    def note(real: Callable[..., Any], kind: str, name: Callable[..., str]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            events.append(f"{kind} {name(*args)}")
            return real(*args, **options)

        return call

    def name_of_second(_: Any, path: Any) -> str:
        return os.fsdecode(os.path.basename(path))

    with ends.repo.begin_push() as push:
        ingest(push, ends.thin())
        monkeypatch.setattr(os, "fsync", note(fsync, "fsync", name_of))
        monkeypatch.setattr(os, "rename", note(rename, "rename", name_of_second))
        monkeypatch.setattr(os, "link", note(link, "link", name_of_second))
        push.migrate()
        push.commit([ends.update()], atomic=False, identity=WHO)
    monkeypatch.undo()
    kinds = [
        event.split(" ")[0] + " " + event.split(".")[-1] if "pack-" in event else event for event in events
    ]
    assert sorted(kinds[:3]) == ["fsync idx", "fsync pack", "fsync rev"]
    assert kinds[3:9] == [
        "link keep",
        "rename pack",
        "rename rev",
        "rename idx",
        "fsync pack",
        "fsync objects",
    ]
    assert kinds[9] == "link main.lock"
    assert kinds[10].startswith("fsync ref-")
    assert kinds[11].startswith("link ref-")  # what it was, to be put back without needing space
    assert kinds[12:] == ["rename main", "fsync heads", "fsync refs"]


def test_without_hard_links(ends: Ends, ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*args: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with ends.repo.begin_push() as push:
        ingest(push, ends.thin())
        push.migrate()
        assert len(list((ends.path / "objects" / "pack").glob("*.keep"))) == 1
        assert push.commit([ends.update(), ends.update("refs/heads/b")], atomic=True, identity=WHO) == [
            None,
            None,
        ]
    assert not [
        p for p in ends.path.rglob("*") if p.suffix in (".keep", ".lock") or p.name.startswith("tmp_")
    ]


def test_a_quarantine_that_was_removed_by_others(ends: Ends, ingest: Ingest) -> None:
    with ends.repo.begin_push() as push:
        ingest(push, ends.thin())
        shutil.rmtree(push.environ["GIT_QUARANTINE_PATH"])
        with pytest.raises(OSError):
            push.migrate()


def test_objects_come_from_both_stores(ends: Ends, ingest: Ingest) -> None:
    with ends.repo.begin_push() as push:
        ingest(push, ends.thin())
        blob = ends.git(ends.client, "rev-parse", f"{ends.two.decode()}:dir0/sub0/file")
        assert push.objects.type_of(to_raw(blob)) == BLOB
        assert not push.objects.contains_own(to_raw(blob))
