"""Ref updates beside git's own: what git sees afterwards, what it would have said, and races with it."""

import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gitsmart.repo import files_transaction
from gitsmart.repo.ref_transaction import ReflogIdentity, RefUpdate
from gitsmart.repo.repository import Repository
from gitsmart.repo.root import RepositoryRoot

WHO = ReflogIdentity("pusher <x>", "pusher@example.com")
Listing = Callable[[Path], dict[str, bytes]]


class Fixture:
    """A bare repository with a chain of commits, and short ways to update and look at it."""

    def __init__(self, repo: Repository, path: Path, git: Any) -> None:
        self.repo, self.path, self.git = repo, path, git
        self.zero = repo.format.zero
        self.oids: list[bytes] = []
        for number in range(4):
            self.oids.append(git.commit(path, "f", str(number), *self.oids[-1:]))

    def push(self, *updates: tuple[str, bytes, bytes], atomic: bool = False) -> list[str | None]:
        commands = [RefUpdate(name.encode(), old, new) for name, old, new in updates]
        with self.repo.begin_push() as push:
            return push.commit(commands, atomic=atomic, identity=WHO)

    def set(self, name: str, oid: bytes) -> None:
        self.git(self.path, "update-ref", name, oid.decode())

    def get(self, name: str) -> bytes:
        return bytes(self.git(self.path, "rev-parse", "--verify", "-q", name, check=False))

    def leftovers(self) -> list[str]:
        return [
            str(path.relative_to(self.path))
            for path in self.path.rglob("*")
            if path.name.startswith("tmp_") or path.suffix in (".lock", ".keep")
        ]


def without_notes(found: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out what was noted of values that refs were about to lose, and then didn't: gone_refs.py."""
    return {name: data for name, data in found.items() if not name.startswith("info/gitsmart")}


@pytest.fixture
def fix(root: RepositoryRoot, git: Any) -> Fixture:
    return Fixture(root.create("app"), root.path / "app.git", git)


def test_create_update_delete(root: RepositoryRoot, git: Any, object_format: str) -> None:
    fix = Fixture(root.create("app", object_format=object_format), root.path / "app.git", git)
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    assert fix.push(("refs/heads/a/b/c", zero, one), ("refs/tags/t", zero, two)) == [None, None]
    assert (fix.get("refs/heads/a/b/c"), fix.get("refs/tags/t")) == (one, two)
    assert fix.push(("refs/heads/a/b/c", one, two), ("refs/tags/t", two, two)) == [None, None]
    assert fix.get("refs/heads/a/b/c") == two
    git(fix.path, "pack-refs", "--all")
    assert fix.push(("refs/heads/a/b/c", two, zero), ("refs/tags/t", two, zero)) == [None, None]
    assert git(fix.path, "show-ref", check=False) == b""
    assert not (fix.path / "refs" / "heads" / "a").exists()
    assert fix.leftovers() == []
    git(fix.path, "fsck", "--strict")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "old", "new", "result"),
    [
        ("refs/heads/main", 0, 2, "incorrect old value provided"),
        ("refs/heads/main", None, 2, "reference already exists"),
        ("refs/heads/none", 0, 2, "reference does not exist"),
        ("refs/heads/main", 0, None, "incorrect old value provided"),
        ("refs/heads/main", None, None, "incorrect old value provided"),
        ("refs/heads/none", 0, None, "reference does not exist"),
        ("refs/heads/none", None, None, None),
        ("refs/heads/main/x", None, 2, "refname conflict"),
        ("refs/heads/main/x/y", None, 2, "refname conflict"),
        ("refs/heads/deep", None, 2, "refname conflict"),
        ("refs/heads/deep/er", None, 2, "refname conflict"),
        ("refs/heads/main/x", 0, None, "refname conflict"),
        ("refs/heads/main", 1, 1, None),
        ("HEAD", None, 2, "funny refname"),
        ("refs/heads/../x", None, 2, "funny refname"),
    ],
)
def test_results_tell_the_truth(
    fix: Fixture,
    listing: Listing,
    packed: bool,
    name: str,
    old: int | None,
    new: int | None,
    result: str | None,
) -> None:
    fix.set("refs/heads/main", fix.oids[1])
    fix.set("refs/heads/deep/er/still", fix.oids[1])
    if packed:
        fix.git(fix.path, "pack-refs", "--all")
    if packed and name == "refs/heads/main/x" and new is None:
        result = "reference does not exist"
    before = listing(fix.path)
    command = (name, fix.zero if old is None else fix.oids[old], fix.zero if new is None else fix.oids[new])
    assert fix.push(command) == [result]
    assert listing(fix.path) == before


def test_a_missing_tip_is_refused_under_the_lock(fix: Fixture) -> None:
    assert fix.push(("refs/heads/x", fix.zero, b"12" * 20)) == ["missing necessary objects"]
    assert fix.leftovers() == []


def test_a_ref_to_a_missing_object_can_be_deleted(fix: Fixture) -> None:
    (fix.path / "refs" / "heads" / "bad").write_bytes(b"12" * 20 + b"\n")
    assert fix.push(("refs/heads/bad", fix.zero, fix.zero)) == [None]
    assert not (fix.path / "refs" / "heads" / "bad").exists()


def test_one_push_per_ref_results(fix: Fixture) -> None:
    fix.set("refs/heads/a", fix.oids[0])
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    results = fix.push(
        ("refs/heads/a", two, one),
        ("refs/heads/b", zero, one),
        ("refs/heads/c", zero, one),
        ("refs/heads/c", zero, two),
        ("refs/heads/d", zero, one),
        ("refs/heads/d/e", zero, one),
        ("refs/heads/f", zero, two),
    )
    assert results == [
        "incorrect old value provided",
        None,
        "multiple updates for ref not allowed",
        "multiple updates for ref not allowed",
        "refname conflict",
        "refname conflict",
        None,
    ]
    assert fix.git(fix.path, "for-each-ref", "--format=%(refname)").split() == [
        b"refs/heads/a",
        b"refs/heads/b",
        b"refs/heads/f",
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_a_delete_makes_room_in_the_same_push(fix: Fixture, packed: bool) -> None:
    fix.set("refs/heads/x", fix.oids[0])
    if packed:
        fix.git(fix.path, "pack-refs", "--all")
    commands = ("refs/heads/x/y", fix.zero, fix.oids[1]), ("refs/heads/x", fix.oids[0], fix.zero)
    assert set(fix.push(*commands, atomic=True)) == {"refname conflict"}
    assert fix.get("refs/heads/x") == fix.oids[0]
    assert fix.push(*commands) == [None, None]
    assert fix.get("refs/heads/x/y") == fix.oids[1]


def test_deleting_many_packed_refs_keeps_the_others(fix: Fixture) -> None:
    lines = "".join(f"create refs/tags/t{number} {fix.oids[0].decode()}\n" for number in range(200))
    fix.git(fix.path, "update-ref", "--stdin", stdin=lines.encode())
    fix.git(fix.path, "tag", "-a", "-m", "x", "annotated", fix.oids[0].decode())
    fix.git(fix.path, "pack-refs", "--all")
    fix.set("refs/tags/t3", fix.oids[2])
    gone = [(f"refs/tags/t{number}", fix.oids[0], fix.zero) for number in range(200) if number % 2 == 0]
    assert set(fix.push(*gone)) == {None}
    shown = fix.git(fix.path, "show-ref", "-d")
    assert len(shown.splitlines()) == 102
    assert b"refs/tags/annotated^{}" in shown
    packed = (fix.path / "packed-refs").read_bytes()
    assert packed.startswith(b"# pack-refs with: peeled fully-peeled sorted \n")
    assert fix.get("refs/tags/t3") == fix.oids[2]


@pytest.mark.parametrize("packed", [False, True])
def test_atomic_failure_leaves_refs_byte_for_byte(fix: Fixture, listing: Listing, packed: bool) -> None:
    for name in ("a", "b/c", "d"):
        fix.set(f"refs/heads/{name}", fix.oids[0])
    fix.git(fix.path, "config", "core.logAllRefUpdates", "always")
    if packed:
        fix.git(fix.path, "pack-refs", "--all")
    before = listing(fix.path)
    results = fix.push(
        ("refs/heads/a", fix.oids[0], fix.oids[1]),
        ("refs/heads/b/c", fix.oids[0], fix.zero),
        ("refs/heads/new/one", fix.zero, fix.oids[1]),
        ("refs/heads/d", fix.oids[3], fix.oids[1]),
        atomic=True,
    )
    failed = "atomic transaction failed"
    assert results == [failed, failed, failed, "incorrect old value provided"]
    assert listing(fix.path) == before


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("nth", range(1, 12))
def test_atomic_is_undone_when_the_disk_fails(
    fix: Fixture, listing: Listing, packed: bool, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nth rename or directory fsync of the transaction fails: refs and reflogs are as they were."""
    for name in ("a", "b/c", "d"):
        fix.set(f"refs/heads/{name}", fix.oids[0])
    fix.git(fix.path, "config", "core.logAllRefUpdates", "always")
    fix.git(fix.path, "update-ref", "--create-reflog", "-m", "x", "refs/heads/a", fix.oids[1].decode())
    fix.git(fix.path, "update-ref", "--create-reflog", "-m", "x", "refs/heads/d", fix.oids[1].decode())
    if packed:
        fix.git(fix.path, "pack-refs", "--all")
    before = listing(fix.path)
    calls = 0

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(5, "Input/output error")
            return real(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing(os.rename))
        patch.setattr(files_transaction, "_fsync_directory", failing(files_transaction._fsync_directory))
        results = fix.push(
            ("refs/heads/a", fix.oids[1], fix.oids[2]),
            ("refs/heads/b/c", fix.oids[0], fix.zero),
            ("refs/heads/d", fix.oids[1], fix.zero),
            ("refs/heads/new/one", fix.zero, fix.oids[1]),
            atomic=True,
        )
    if calls < nth:
        assert results == [None] * 4
        assert nth > 8
        return
    assert None not in results
    assert without_notes(listing(fix.path)) == before


def test_atomic_is_undone_without_space(
    fix: Fixture, listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the middle of the transaction on: what was done can still be taken back."""
    fix.set("refs/heads/a", fix.oids[0])
    fix.set("refs/heads/b", fix.oids[0])
    before = listing(fix.path)
    real = os.open
    is_full = False

    def open_(path: Any, flags: int, *args: Any, **options: Any) -> int:
        nonlocal is_full
        is_full = is_full or bytes(path).endswith(b"/logs/refs/heads/b")
        if is_full and flags & os.O_CREAT:
            raise OSError(28, "No space left on device")
        return real(path, flags, *args, **options)

    fix.git(fix.path, "config", "core.logAllRefUpdates", "always")
    before = listing(fix.path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_)
        results = fix.push(
            ("refs/heads/a", fix.oids[0], fix.oids[1]),
            ("refs/heads/b", fix.oids[0], fix.oids[1]),
            atomic=True,
        )
    assert is_full
    assert None not in results
    after = without_notes(listing(fix.path))
    for name in ("logs", "logs/refs", "logs/refs/heads"):  # these are git's to keep
        after.pop(name, None)
    assert after == before


def test_a_delete_is_durable_in_packed_refs_before_its_loose_file_goes(
    fix: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure brings back the older, packed value."""
    fix.set("refs/heads/a", fix.oids[0])
    fix.git(fix.path, "pack-refs", "--all", "--no-prune")
    fix.set("refs/heads/a", fix.oids[1])
    seen: list[str] = []
    rename, sync = os.rename, files_transaction._fsync_directory

    def renaming(source: Any, target: Any) -> None:
        rename(source, target)
        seen.append("loose goes" if source.endswith(b"/a") else os.path.basename(os.fsdecode(target)))

    def syncing(path: bytes) -> None:
        seen.append(f"sync {os.path.basename(os.fsdecode(path))}")
        sync(path)

    monkeypatch.setattr(os, "rename", renaming)
    monkeypatch.setattr(files_transaction, "_fsync_directory", syncing)
    assert fix.push(("refs/heads/a", fix.oids[1], fix.zero)) == [None]
    assert seen[:3] == ["packed-refs", "sync app.git", "loose goes"]
    assert fix.get("refs/heads/a") == b""


@pytest.mark.parametrize("nth", [1, 2])
def test_a_packed_delete_is_undone_when_the_disk_fails(
    fix: Fixture, listing: Listing, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix.set("refs/heads/a", fix.oids[0])
    fix.git(fix.path, "pack-refs", "--all")
    before = listing(fix.path)
    calls = 0

    def failing(path: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(files_transaction, "_fsync_directory", failing)
    assert fix.push(("refs/heads/a", fix.oids[0], fix.zero)) == ["failed to delete"]
    assert without_notes(listing(fix.path)) == before


@pytest.mark.parametrize("nth", range(1, 7))
def test_each_delete_tells_the_truth_when_the_disk_fails(
    fix: Fixture, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nth rename fails: of a log, of packed-refs, of a loose file."""
    names = ["refs/heads/both", "refs/heads/loose", "refs/heads/packed"]
    fix.set(names[0], fix.oids[0])
    fix.set(names[2], fix.oids[1])
    fix.git(fix.path, "pack-refs", "--all")
    fix.set(names[0], fix.oids[1])
    fix.set(names[1], fix.oids[1])
    real, calls = os.rename, 0

    def failing(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(5, "Input/output error")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        results = fix.push(*[(name, fix.oids[1], fix.zero) for name in names])
    assert calls >= nth
    assert "failed to delete" in results
    for name, result in zip(names, results, strict=True):
        assert fix.get(name) == (b"" if result is None else fix.oids[1])


@pytest.mark.parametrize("name", ["refs/heads/deep/er/" + "n" * 252, "refs/heads/" + "deep/" * 900 + "n"])
def test_a_name_that_is_too_long_leaves_no_directory(fix: Fixture, listing: Listing, name: str) -> None:
    before = listing(fix.path)
    assert fix.push((name, fix.zero, fix.oids[0])) == ["failed to update ref"]
    assert listing(fix.path) == before


def test_empty_directories_give_way_and_full_ones_do_not(fix: Fixture) -> None:
    (fix.path / "refs" / "heads" / "x" / "y" / "z").mkdir(parents=True)
    (fix.path / "refs" / "heads" / "full" / "y").mkdir(parents=True)
    (fix.path / "refs" / "heads" / "full" / "y" / "z.lock").write_bytes(b"")
    results = fix.push(("refs/heads/x", fix.zero, fix.oids[0]), ("refs/heads/full", fix.zero, fix.oids[0]))
    assert results == [None, "refname conflict"]
    assert fix.get("refs/heads/x") == fix.oids[0]


def test_symrefs_are_followed(fix: Fixture) -> None:
    fix.git(fix.path, "config", "core.logAllRefUpdates", "true")
    fix.set("refs/heads/main", fix.oids[0])
    fix.git(fix.path, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    fix.git(fix.path, "symbolic-ref", "refs/heads/alias2", "refs/heads/alias")
    fix.git(fix.path, "symbolic-ref", "refs/heads/loop", "refs/heads/loop")
    assert fix.push(("refs/heads/alias2", fix.oids[0], fix.oids[1])) == [None]
    assert fix.get("refs/heads/main") == fix.oids[1]
    assert (fix.path / "refs" / "heads" / "alias2").read_bytes() == b"ref: refs/heads/alias\n"
    for name in ("alias", "alias2", "main"):
        line = (fix.path / "logs" / "refs" / "heads" / name).read_bytes().splitlines()[-1]
        assert line.startswith(fix.oids[0] + b" " + fix.oids[1] + b" ")
    one, two, three = fix.oids[1], fix.oids[2], fix.oids[3]
    assert fix.push(("refs/heads/alias", one, two), ("refs/heads/main", one, two)) == [None, None]
    assert fix.push(("refs/heads/alias", two, one), ("refs/heads/main", two, three)) == [
        "inconsistent aliased update",
        "inconsistent aliased update",
    ]
    assert fix.push(("refs/heads/loop", fix.zero, one)) == ["broken symref"]
    assert fix.push(("refs/heads/alias", two, fix.zero)) == [None]
    assert fix.get("refs/heads/main") == b""
    assert fix.leftovers() == []


@pytest.mark.parametrize("setting", [None, "true", "false", "always"])
@pytest.mark.parametrize("bare", [True, False])
def test_reflogs_equal_git_s(
    root: RepositoryRoot, git: Any, listing: Listing, setting: str | None, bare: bool
) -> None:
    """The same updates by git push and by us: the same files, the same lines but for who and when."""
    written = []
    for name in ("theirs", "ours"):
        path = root.path / name
        git(root.path, "init", "-q", "-b", "main", *(["--bare"] if bare else []), name)
        git_dir = path if bare else path / ".git"
        if setting is not None:
            git(path, "config", "core.logAllRefUpdates", setting)
        git(path, "config", "receive.denyCurrentBranch", "ignore")
        git(path, "config", "receive.denyDeleteCurrent", "ignore")
        fix = Fixture(root.open(name), git_dir, git)
        zero, (one, two, *_) = fix.zero, fix.oids
        rounds = [
            [("refs/heads/main", zero, one), ("refs/heads/x/y", zero, one), ("refs/notes/n", zero, one),
             ("refs/tags/t", zero, one), ("refs/remotes/o/r", zero, one)],
            [("refs/heads/main", one, two), ("refs/tags/t", one, two), ("refs/heads/x/y", one, zero)],
            [("refs/heads/x", zero, one), ("refs/heads/main", two, zero)],
        ]  # fmt: skip
        for updates in rounds:
            if name == "ours":
                assert set(fix.push(*updates)) == {None}
                continue
            specs = [f"{'' if new == zero else new.decode()}:{ref}" for ref, _, new in updates]
            git(git_dir, "push", "-q", "--force", str(git_dir), *specs)
        logs = {
            file: [[*line.split(b" ")[:2], line.split(b"\t")[-1]] for line in data.splitlines()]
            for file, data in listing(git_dir / "logs").items()
            if data != b"/"
        }
        written.append(logs)
    assert written[1] == written[0]


def test_a_reflog_line_in_git_s_eyes(fix: Fixture) -> None:
    fix.git(fix.path, "config", "core.logAllRefUpdates", "true")
    fix.push(("refs/heads/main", fix.zero, fix.oids[0]))
    fix.push(("refs/heads/main", fix.oids[0], fix.oids[1]))
    shown = fix.git(fix.path, "reflog", "show", "--format=%H|%gn|%ge|%gs", "refs/heads/main").split(b"\n")
    assert shown == [oid + b"|pusher x|pusher@example.com|push" for oid in (fix.oids[1], fix.oids[0])]
    assert fix.git(fix.path, "reflog", "show", "--format=%H", "HEAD").split() == [fix.oids[1], fix.oids[0]]
    assert (
        abs(
            int(
                fix.git(fix.path, "log", "-1", "-g", "--date=unix", "--format=%gd", "main").split(b"{")[1][
                    :-1
                ]
            )
            - time.time()
        )
        < 60
    )


def test_a_reflog_that_exists_is_written_whatever_the_setting(fix: Fixture) -> None:
    fix.git(fix.path, "config", "core.logAllRefUpdates", "false")
    log = fix.path / "logs" / "refs" / "heads" / "main"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"")
    fix.push(("refs/heads/main", fix.zero, fix.oids[0]))
    assert log.read_bytes().startswith(fix.zero + b" " + fix.oids[0] + b" pusher x <pusher@example.com> ")


@pytest.mark.parametrize(
    ("identity", "line"),
    [
        (ReflogIdentity("anonymous", "a@b"), b"anonymous <a@b> 5 +0000"),
        (ReflogIdentity(" x\ny<z>. ", "<a\0@b>"), b"xyz <a@b> 5 +0000"),
        (ReflogIdentity("", ""), b" <> 5 +0000"),
    ],
)
def test_identities_can_t_break_the_line(
    identity: ReflogIdentity, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert identity.line(5) == line


def test_a_symref_that_is_pointed_elsewhere_before_it_is_locked(
    fix: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix.set("refs/heads/main", fix.oids[0])
    fix.set("refs/heads/other", fix.oids[0])
    fix.git(fix.path, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    real = files_transaction.FilesTransaction._lock_file
    is_moved = False

    def lock_file(self: Any, lock: bytes, timeout_ms: int) -> None:
        nonlocal is_moved
        if not is_moved:
            is_moved = True
            fix.git(fix.path, "symbolic-ref", "refs/heads/alias", "refs/heads/other")
        real(self, lock, timeout_ms)

    monkeypatch.setattr(files_transaction.FilesTransaction, "_lock_file", lock_file)
    assert fix.push(("refs/heads/alias", fix.oids[0], fix.oids[1])) == ["failed to update ref"]
    assert fix.get("refs/heads/main") == fix.get("refs/heads/other") == fix.oids[0]
    assert fix.push(("refs/heads/alias", fix.oids[0], fix.oids[1])) == [None]
    assert fix.get("refs/heads/other") == fix.oids[1]
    assert fix.leftovers() == []


def test_a_lock_of_others_is_waited_for_then_reported(fix: Fixture) -> None:
    fix.git(fix.path, "config", "core.filesRefLockTimeout", "50")
    lock = fix.path / "refs" / "heads" / "main.lock"
    lock.write_bytes(b"")
    assert fix.push(("refs/heads/main", fix.zero, fix.oids[0]), ("refs/heads/b", fix.zero, fix.oids[0])) == [
        "failed to update ref",
        None,
    ]
    assert lock.exists()
    fix.git(fix.path, "config", "core.filesRefLockTimeout", "5000")
    threading.Timer(0.1, lock.unlink).start()
    assert fix.push(("refs/heads/main", fix.zero, fix.oids[0])) == [None]
    (fix.path / "packed-refs.lock").write_bytes(b"")
    fix.git(fix.path, "config", "core.packedRefsTimeout", "50")
    assert fix.push(("refs/heads/main", fix.oids[0], fix.zero)) == ["failed to delete"]
    assert fix.get("refs/heads/main") == fix.oids[0]


def test_git_respects_our_lock(fix: Fixture) -> None:
    with fix.repo.begin_push() as push:
        push._directory().claim(os.fsencode(fix.path / "refs" / "heads" / "main.lock"))
        with pytest.raises(AssertionError, match=r"Unable to create .*main.lock': File exists"):
            fix.set("refs/heads/main", fix.oids[0])
    fix.set("refs/heads/main", fix.oids[0])


def test_one_winner_of_many(fix: Fixture) -> None:
    """Twelve at once from one old value, for eight rounds: one None each, and the ref is the winner's."""
    contenders = [fix.git.commit(fix.path, "f", f"contender {number}", fix.oids[0]) for number in range(12)]
    current = fix.zero
    with ThreadPoolExecutor(12) as pool:
        for _ in range(8):
            candidates = [oid for oid in contenders if oid != current]
            results = list(
                pool.map(lambda oid, old=current: fix.push(("refs/heads/main", old, oid))[0], candidates)
            )
            winners = [oid for oid, result in zip(candidates, results, strict=True) if result is None]
            assert len(winners) == 1
            losing = {"incorrect old value provided", "reference already exists"}
            assert {result for result in results if result is not None} <= losing
            current = winners[0]
            assert fix.get("refs/heads/main") == current


@pytest.mark.parametrize("other", ["git", "we"])
def test_no_lost_update(fix: Fixture, other: str) -> None:
    """Two count one ref up, each from the old value it saw: no step is lost and none is made twice.

    Beside a second writer of ours git packs the refs all the time. Not beside git's update-ref: git 2.39
    takes a small packed-refs for unchanged when size, second and inode are the same, and then overwrites what
    it did not see (git's race, found with git alone as well).
    """
    chain = [fix.oids[0]]
    for number in range(60):
        chain.append(fix.git.commit(fix.path, "f", str(number), chain[-1]))
    place = {oid: number for number, oid in enumerate(chain)}
    fix.set("refs/heads/main", chain[0])
    fix.set("refs/heads/other/x", chain[0])
    steps: list[int] = []
    done = threading.Event()

    def by_git() -> None:
        while (now := place[fix.get("refs/heads/main")]) + 1 < len(chain):
            command = ["git", "update-ref", "refs/heads/main", chain[now + 1].decode(), chain[now].decode()]
            done_by_git = subprocess.run(command, cwd=fix.path, capture_output=True, env=fix.git.environ)
            if done_by_git.returncode == 0:
                steps.append(now)

    def by_us() -> None:
        while True:
            ref = fix.repo.refs().get(b"refs/heads/main")
            assert ref is not None
            now = place[ref.oid]
            if now + 1 >= len(chain):
                return
            if fix.push(("refs/heads/main", chain[now], chain[now + 1])) == [None]:
                steps.append(now)
            time.sleep(0.005)

    def pack() -> None:
        while not done.is_set():
            fix.git(fix.path, "pack-refs", "--all", check=False)
            # gone and back again all the time, so that both write packed-refs
            fix.push(("refs/heads/other/x", chain[0], fix.zero))
            fix.push(("refs/heads/other/x", fix.zero, chain[0]))

    with ThreadPoolExecutor(3) as pool:
        packing = pool.submit(pack) if other == "we" else None
        counting = [pool.submit(by_git if other == "git" else by_us), pool.submit(by_us)]
        try:
            for one in counting:
                one.result(timeout=60)
        finally:
            done.set()
        if packing is not None:
            packing.result()
    assert fix.get("refs/heads/main") == chain[-1]
    assert sorted(steps) == list(range(60))
    assert fix.leftovers() == []
    fix.git(fix.path, "fsck")


def test_directories_that_come_and_go(fix: Fixture) -> None:
    """Eight threads make and delete refs in one directory, which each of them removes when it is empty."""

    def turn(number: int) -> list[str | None]:
        results: list[str | None] = []
        for _ in range(10):
            name = f"refs/heads/team/sub/{number}"
            results += fix.push((name, fix.zero, fix.oids[0]))
            results += fix.push((name, fix.oids[0], fix.zero))
        return results

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(turn, range(8)):
            assert set(results) == {None}
    assert not (fix.path / "refs" / "heads" / "team").exists()
    assert fix.leftovers() == []


def test_a_directory_that_goes_while_it_is_made(fix: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """mkdir says that it exists, and then `git pack-refs` has removed it: that is no conflict of names."""
    real = os.makedirs
    left = 3

    def makedirs(path: bytes, exist_ok: bool = False) -> None:
        nonlocal left
        if left and b"/team" in os.fsencode(path):
            left -= 1
            raise FileExistsError(errno.EEXIST, "File exists", path)
        real(path, exist_ok=exist_ok)

    monkeypatch.setattr(os, "makedirs", makedirs)
    assert fix.push(("refs/heads/team/one", fix.zero, fix.oids[0])) == [None]
    assert left == 0
    assert fix.get("refs/heads/team/one") == fix.oids[0]
