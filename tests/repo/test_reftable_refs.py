"""Refs in a stack of reftables: read as git reads them, updated under git's lock, compacted, swept.

The system's git may not know of reftables; tests/interop/test_reftable.py asks one that does, if any is here.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import SHA1, SHA256, to_raw
from gitsmart.repo import reftable_stack
from gitsmart.repo.ownership import OwnedDirectory
from gitsmart.repo.ref_transaction import ReflogIdentity, RefUpdate
from gitsmart.repo.reftable import RefRecord
from gitsmart.repo.reftable_refs import ReftableRefStore
from gitsmart.repo.reftable_stack import ReftableStack, WriteOptions, _segment
from gitsmart.repo.repository import Repository
from gitsmart.repo.root import RepositoryRoot

DATA = Path(__file__).parent / "data" / "reftable"
FORMATS = {"sha1": SHA1, "sha256": SHA256}
WHO = ReflogIdentity("pusher <x>", "pusher@example.com")
HEAD = b"HEAD"


class Everything:
    """Objects of which all are there and none is a tag."""

    def __contains__(self, raw_oid: bytes) -> bool:
        return True

    def peel(self, raw_oid: bytes) -> tuple[tuple[bytes, ...], bytes, int]:
        return (), raw_oid, 1


class Fixture:
    """A bare repository with reftables and a chain of commits, and short ways to update and look at it."""

    def __init__(self, root: RepositoryRoot, git: Any, object_format: str = "sha1") -> None:
        self.repo = root.create("app", object_format=object_format, ref_format="reftable")
        self.path = root.path / "app.git"
        self.stack_dir = self.path / "reftable"
        self.zero = self.repo.format.zero
        self.git = git
        self.oids: list[bytes] = []
        for number in range(4):
            self.oids.append(git.commit(self.path, "f", str(number), *self.oids[-1:]))

    def push(
        self,
        *updates: tuple[str, bytes, bytes],
        atomic: bool = False,
        hook: Callable[[str, bytes], bool] | None = None,
        repo: Repository | None = None,
    ) -> list[str | None]:
        commands = [RefUpdate(name.encode(), old, new) for name, old, new in updates]
        with (repo or self.repo).begin_push() as push:
            return push.commit(commands, atomic=atomic, identity=WHO, hook=hook)

    def store(self) -> ReftableRefStore:
        """The refs, as somebody sees them who looks for the first time."""
        return ReftableRefStore(os.fsencode(self.path), self.repo.format, self.repo.objects)

    def refs(self) -> dict[str, bytes]:
        found = {ref.name.decode(): ref.oid for ref in self.store().snapshot().refs}
        assert found == {ref.name.decode(): ref.oid for ref in self.repo.refs().refs}
        return found

    def logs(self, name: str) -> list[tuple[bytes, bytes]]:
        lines = self.store().stack.view().logs(name.encode())
        return [(line.old.hex().encode(), line.new.hex().encode()) for line in lines if line.old and line.new]

    def tables(self) -> list[str]:
        return (self.stack_dir / "tables.list").read_text().split()

    def write(self, *refs: RefRecord) -> None:
        """Add a table, as another program would."""
        owned = OwnedDirectory(self.path)
        with ReftableStack(os.fsencode(self.stack_dir), self.repo.format).locked(
            owned, WriteOptions()
        ) as addition:
            addition.add([ref._replace(update_index=addition.view.next_update_index) for ref in refs], [])
        owned.close()

    def check(self) -> None:
        """Nothing is in the directory but the list and what it names, and no push left anything."""
        assert sorted(os.listdir(self.stack_dir)) == sorted([*self.tables(), "tables.list"])
        assert not [name for name in os.listdir(self.path) if name.startswith("incoming-")]


@pytest.fixture
def fix(root: RepositoryRoot, git: Any) -> Iterator[Fixture]:
    fixture = Fixture(root, git)
    yield fixture
    fixture.check()


# What git wrote


@pytest.mark.parametrize("name", ["sha1", "sha256"])
def test_git_s_stack_is_listed_as_git_lists_it(name: str, tmp_path: Path) -> None:
    shutil.copytree(DATA / name, tmp_path / "reftable")
    store = ReftableRefStore(os.fsencode(tmp_path), FORMATS[name], Everything())
    snapshot = store.snapshot()
    lines = []
    for ref in snapshot.refs:
        fields = (ref.name, ref.oid, ref.peeled or b"", ref.symref_target or b"")
        lines.append(b" ".join(fields).rstrip(b" "))
    assert snapshot.head_target is not None
    lines.append(snapshot.head_target)
    text = (DATA / name / "refs.txt").read_bytes()
    # git separates by two spaces where there is no peeled oid, and so do we
    assert lines == text.splitlines()
    assert snapshot.head is not None
    assert snapshot.head.oid == store.resolve(b"refs/heads/main")[1].value
    for ref in snapshot.refs:
        assert store.resolve(ref.name)[1].value == ref.oid


@pytest.mark.parametrize("name", ["sha1", "sha256"])
def test_git_s_reflogs_are_read_as_git_reads_them(name: str) -> None:
    view = ReftableStack(os.fsencode(DATA / name), FORMATS[name]).view()
    lines = []
    for ref in (b"HEAD", b"refs/heads/main", b"refs/heads/topic/1000", b"refs/heads/topic/1001"):
        for number, line in enumerate(view.logs(ref)):
            assert line.new is not None
            short = ref.removeprefix(b"refs/heads/")
            lines.append(
                b"%b %b@{%d} %b %b <%b> %b"
                % (
                    ref,
                    short,
                    number,
                    line.new.hex().encode(),
                    line.who,
                    line.email,
                    line.message.rstrip(b"\n"),
                )
            )
    said = (DATA / name / "logs.txt").read_bytes().splitlines()
    assert lines == [line for line in said if b"release" not in line]


# Updates


def test_create_update_delete(root: RepositoryRoot, git: Any, object_format: str) -> None:
    fix = Fixture(root, git, object_format)
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    assert fix.refs() == {}
    assert fix.repo.refs().head_target == b"refs/heads/main"
    assert fix.push(("refs/heads/a/b/c", zero, one), ("refs/tags/t", zero, two)) == [None, None]
    assert fix.refs() == {"refs/heads/a/b/c": one, "refs/tags/t": two}
    assert fix.push(("refs/heads/a/b/c", one, two), ("refs/tags/t", two, two)) == [None, None]
    assert fix.refs() == {"refs/heads/a/b/c": two, "refs/tags/t": two}
    assert fix.push(("refs/heads/a/b/c", two, zero), ("refs/heads/main", zero, one)) == [None, None]
    assert fix.refs() == {"refs/heads/main": one, "refs/tags/t": two}
    head = fix.repo.refs().head
    assert head is not None
    assert head.oid == one
    fix.check()


@pytest.mark.parametrize(
    ("name", "old", "new", "result"),
    [
        ("refs/heads/main", 0, 2, "incorrect old value provided"),
        ("refs/heads/main", None, 2, "reference already exists"),
        ("refs/heads/none", 0, 2, "reference does not exist"),
        ("refs/heads/main", 0, None, "incorrect old value provided"),
        ("refs/heads/none", 0, None, "reference does not exist"),
        ("refs/heads/none", None, None, None),
        ("refs/heads/main/below", None, 2, "refname conflict"),
        ("refs/heads/a", None, 2, "refname conflict"),
        ("refs/heads/gone/below", None, 2, None),
        ("refs/heads/go", None, 2, None),
        ("refs/heads/main", 1, "f" * 40, "missing necessary objects"),
        ("refs/heads/" + "x" * 3000, None, 2, "failed to update ref"),
        ("refs/heads/x.lock", None, 2, "funny refname"),
        ("HEAD", None, 2, "funny refname"),
    ],
)
@pytest.mark.parametrize("atomic", [False, True])
def test_what_is_refused(
    fix: Fixture, name: str, old: int | None, new: Any, result: str | None, atomic: bool
) -> None:
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    fix.push(("refs/heads/main", zero, two), ("refs/heads/a/b", zero, one), ("refs/heads/gone", zero, one))
    fix.push(("refs/heads/gone", one, zero))
    before = fix.refs()

    def oid(which: int | str | None) -> bytes:
        return zero if which is None else which.encode() if isinstance(which, str) else fix.oids[which]

    found = fix.push((name, oid(old), oid(new)), ("refs/heads/other", zero, one), atomic=atomic)
    other = "atomic transaction failed" if atomic and result is not None else None
    assert found == [result, other]
    if result is not None:
        assert fix.refs() == before | ({} if atomic else {"refs/heads/other": one})


def test_conflicts_within_a_push(fix: Fixture) -> None:
    zero, one = fix.zero, fix.oids[0]
    assert fix.push(("refs/heads/a", zero, one), ("refs/heads/a/b", zero, one)) == ["refname conflict"] * 2
    assert fix.push(("refs/heads/a", zero, one)) == [None]
    # deletes go first, as in git, but within one atomic push nothing is first
    both = (("refs/heads/a", one, zero), ("refs/heads/a/b", zero, one))
    assert fix.push(*both, atomic=True) == ["refname conflict"] * 2
    assert fix.push(*both) == [None, None]
    assert fix.refs() == {"refs/heads/a/b": one}


def test_a_tag_is_written_with_what_it_comes_down_to(fix: Fixture) -> None:
    one = fix.oids[0]
    text = b"object %b\ntype commit\ntag t\ntagger T <t@e> 1700000000 +0000\n\nt\n" % one
    tag = fix.git.write(fix.path, "tag", text)
    nested = fix.git.write(fix.path, "tag", text.replace(b"commit", b"tag").replace(one, tag))
    assert fix.push(("refs/tags/n", fix.zero, nested), ("refs/odd", fix.zero, tag)) == [None, None]
    view = fix.store().stack.view()
    for name in (b"refs/tags/n", b"refs/odd"):
        record = view.ref(name)
        assert record is not None
        assert record.peeled == to_raw(one)
    assert [(ref.name, ref.peeled) for ref in fix.store().snapshot(peel=False).refs] == [
        (b"refs/odd", one),
        (b"refs/tags/n", one),
    ]


def test_a_tag_that_was_written_without_is_looked_at(fix: Fixture) -> None:
    text = b"object %b\ntype commit\ntag t\ntagger T <t@e> 1700000000 +0000\n\nt\n" % fix.oids[0]
    tag = fix.git.write(fix.path, "tag", text)
    fix.write(RefRecord(b"refs/tags/t", 0, to_raw(tag)))
    assert [ref.peeled for ref in fix.repo.refs(peel=False).refs] == [None]
    assert [ref.peeled for ref in fix.repo.refs().refs] == [fix.oids[0]]


def test_symrefs_are_followed(fix: Fixture) -> None:
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    fix.write(
        RefRecord(b"refs/heads/dangling", 0, target=b"refs/heads/nowhere"),
        RefRecord(b"refs/heads/loop", 0, target=b"refs/heads/loop"),
        RefRecord(b"refs/heads/main", 0, to_raw(one)),
        RefRecord(b"refs/heads/out", 0, target=b"HEAD"),
        RefRecord(b"refs/heads/sym", 0, target=b"refs/heads/main"),
    )
    refs = {ref.name: ref for ref in fix.repo.refs().refs}
    assert sorted(refs) == [b"refs/heads/main", b"refs/heads/sym"]
    assert refs[b"refs/heads/sym"].symref_target == b"refs/heads/main"
    assert fix.push(("refs/heads/sym", one, two)) == [None]
    assert fix.refs() == {"refs/heads/main": two, "refs/heads/sym": two}
    assert fix.push(("refs/heads/loop", zero, two), ("refs/heads/out", one, two)) == ["broken symref"] * 2
    assert fix.push(("refs/heads/sym", two, one), ("refs/heads/main", two, one)) == [None, None]
    assert fix.push(("refs/heads/sym", one, zero)) == [None]
    assert fix.refs() == {}
    # what pointed at it still does
    assert fix.store().read(b"refs/heads/sym").value == b"refs/heads/main"


def test_refs_whose_object_is_missing_come_when_it_comes(fix: Fixture) -> None:
    late = fix.git.commit(fix.path, "g", "late")
    file = fix.path / "objects" / late.decode()[:2] / late.decode()[2:]
    hidden = file.read_bytes()
    file.unlink()
    fix.write(RefRecord(b"refs/heads/a", 0, to_raw(late)), RefRecord(b"refs/heads/b", 0, to_raw(fix.oids[0])))
    assert list(fix.refs()) == ["refs/heads/b"]
    file.write_bytes(hidden)
    assert list(fix.refs()) == ["refs/heads/a", "refs/heads/b"]


# Reflogs


@pytest.mark.parametrize("setting", [None, "true", "always", "false"])
def test_reflogs_are_made_where_git_makes_them(root: RepositoryRoot, git: Any, setting: str | None) -> None:
    fix = Fixture(root, git)
    if setting is not None:
        with (fix.path / "config").open("a") as file:
            file.write(f"[core]\n\tlogAllRefUpdates = {setting}\n")
    repo = root.open("app")
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    names = ["refs/heads/main", "refs/heads/x", "refs/tags/t"]
    fix.push(*((name, zero, one) for name in names), repo=repo)
    fix.push(("refs/heads/main", one, two), repo=repo)
    logged = {"true": {"HEAD", *names[:2]}, "always": {"HEAD", *names}}.get(setting or "", set())
    for name in ["HEAD", *names]:
        moved = [(one, two)] if name in ("HEAD", "refs/heads/main") else []
        assert fix.logs(name) == ([*moved, (zero, one)] if name in logged else [])
    fix.push(("refs/heads/main", two, zero), repo=repo)
    assert fix.logs("refs/heads/main") == []
    assert fix.logs("HEAD") == ([(two, zero), (one, two), (zero, one)] if "HEAD" in logged else [])
    # a reflog that is there is continued, whatever the setting
    fix.push(("refs/heads/main", zero, one), repo=repo)
    assert len(fix.logs("HEAD")) == (4 if "HEAD" in logged else 0)
    fix.check()


def test_a_reflog_line_says_who_and_when(root: RepositoryRoot, git: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TZ", "XXX+03:30")
    time.tzset()
    try:
        fix = Fixture(root, git)
        with (fix.path / "config").open("a") as file:
            file.write("[core]\n\tlogAllRefUpdates = true\n")
        fix.push(("refs/heads/main", fix.zero, fix.oids[0]), repo=root.open("app"))
    finally:
        monkeypatch.undo()
        time.tzset()
    (line,) = fix.store().stack.view().logs(b"refs/heads/main")
    assert (line.who, line.email, line.zone) == (b"pusher x", b"pusher@example.com", -330)
    assert line.message == b"push\n"
    assert abs(line.time_s - time.time()) < 60


# With others


def test_a_held_lock_is_waited_for_and_then_given_up(fix: Fixture) -> None:
    zero, one = fix.zero, fix.oids[0]
    lock = fix.stack_dir / "tables.list.lock"
    lock.touch()
    with (fix.path / "config").open("a") as file:
        file.write("[reftable]\n\tlockTimeout = 50\n")
    assert (
        fix.push(("refs/heads/main", zero, one), ("refs/heads/b", zero, one)) == ["failed to update refs"] * 2
    )
    assert fix.push(("refs/heads/main", zero, one), atomic=True) == ["atomic transaction failed"]
    assert lock.exists()
    timer = threading.Timer(0.02, lock.unlink)
    timer.start()
    try:
        assert fix.push(("refs/heads/main", zero, one)) == [None]
    finally:
        timer.join()


def test_what_another_program_wrote_a_moment_ago_counts(fix: Fixture) -> None:
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    fix.push(("refs/heads/main", zero, one))
    fix.write(RefRecord(b"refs/heads/main", 0, to_raw(two)))
    assert fix.push(("refs/heads/main", one, two)) == ["incorrect old value provided"]
    fix.write(RefRecord(b"refs/heads/main", 0))
    assert fix.refs() == {}
    assert fix.push(("refs/heads/main", zero, one)) == [None]


def test_many_writers_lose_nothing(fix: Fixture, root: RepositoryRoot) -> None:
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    with (fix.path / "config").open("a") as file:
        file.write("[reftable]\n\tlockTimeout = -1\n")
    others = [RepositoryRoot(root.path).open("app") for _ in range(3)]  # as of other processes

    def run(number: int) -> list[str | None]:
        name = f"refs/heads/w{number}"
        results = []
        for _ in range(6):
            results += fix.push((name, zero, one), repo=others[number % 3])
            results += fix.push((name, one, two), (f"{name}-{_}", zero, one), repo=others[number % 3])
            results += fix.push((name, two, zero), repo=others[number % 3])
        return results + fix.push((name, zero, two), repo=others[number % 3])

    with ThreadPoolExecutor(6) as pool:
        for results in pool.map(run, range(6)):
            assert set(results) == {None}
    expected = {f"refs/heads/w{number}": two for number in range(6)}
    expected |= {f"refs/heads/w{number}-{n}": one for number in range(6) for n in range(6)}
    assert fix.refs() == expected
    assert len(fix.tables()) <= 6


def test_readers_see_every_push_while_tables_come_and_go(fix: Fixture) -> None:
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    fix.push(("refs/heads/main", zero, one), ("refs/heads/side", zero, one))
    done = threading.Event()
    seen: list[dict[bytes, bytes]] = []

    def read() -> None:
        store = fix.store()
        while not done.is_set():
            seen.append({ref.name: ref.oid for ref in store.snapshot().refs})

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for _ in range(30):
                fix.push(("refs/heads/main", one, two), ("refs/heads/side", one, two), atomic=True)
                fix.push(("refs/heads/main", two, one), ("refs/heads/side", two, one), atomic=True)
        finally:
            done.set()
        for reader in readers:
            reader.result()
    assert {tuple(found.items()) for found in seen} <= {
        ((b"refs/heads/main", oid), (b"refs/heads/side", oid)) for oid in (one, two)
    }


def test_hook_is_asked_under_the_lock(fix: Fixture) -> None:
    zero, one = fix.zero, fix.oids[0]
    lines = b"%b %b refs/heads/main\n" % (zero, one)
    calls: list[tuple[str, bytes, bool]] = []

    def hook(state: str, text: bytes) -> bool:
        calls.append((state, text, (fix.stack_dir / "tables.list.lock").exists()))
        return len(calls) > 1

    assert fix.push(("refs/heads/main", zero, one), hook=hook) == ["ref updates aborted by hook"]
    assert calls == [("prepared", lines, True), ("aborted", lines, True)]
    assert fix.refs() == {}
    calls[:] = calls[:1]
    assert fix.push(("refs/heads/main", zero, one), hook=hook) == [None]
    assert [call[::2] for call in calls[1:]] == [("prepared", True), ("committed", False)]


# Durability


def test_the_table_is_durable_before_the_list_names_it(fix: Fixture, monkeypatch: Any) -> None:
    steps: list[str] = []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            path = args[0] if not isinstance(args[0], int) else os.readlink(f"/proc/self/fd/{args[0]}")
            text = os.fsdecode(path)
            kind = "list" if text.endswith("tables.list") else "table" if ".ref" in text else "dir"
            steps.append(f"{name} {kind}")
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "link"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    fix.push(("refs/heads/main", fix.zero, fix.oids[0]))
    monkeypatch.undo()
    steps = steps[steps.index("fsync table") :]  # the locks are links, too
    assert steps[:6] == ["fsync table", "link table", "fsync dir", "fsync list", "rename list", "fsync dir"]


@pytest.mark.parametrize("step", range(6))
def test_a_disk_that_fails_leaves_what_was(fix: Fixture, monkeypatch: Any, step: int) -> None:
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    fix.push(("refs/heads/main", zero, one))
    before = (fix.tables(), fix.refs())
    count = iter(range(100))

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if isinstance(args[0], bytes) and args[0].endswith(b"/owner"):
                return real(*args, **kwargs)
            if next(count) == step:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("fsync", "rename", "link"):
            patch.setattr(os, name, failing(getattr(os, name)))
        results = fix.push(("refs/heads/main", one, two), ("refs/heads/new", zero, two), atomic=True)
    assert next(count) > step
    assert results == ["failed to update ref"] * 2
    assert (fix.tables(), fix.refs()) == before
    assert fix.push(("refs/heads/main", one, two)) == [None]


def killed(fix: Fixture, monkeypatch: Any, where: str) -> None:
    """Run a push that ends at once where `where` is called, as with SIGKILL."""
    pid = os.fork()
    if not pid:
        real = getattr(os, where)

        def die(*args: Any, **kwargs: Any) -> Any:
            if isinstance(args[0], bytes) and not args[0].endswith(b"/owner"):
                os._exit(0)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, where, die)
        fix.push(("refs/heads/main", fix.oids[0], fix.oids[1]), ("refs/heads/new", fix.zero, fix.oids[1]))
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("where", ["link", "rename", "unlink"])
def test_what_a_killed_server_left_is_swept(
    fix: Fixture, root: RepositoryRoot, monkeypatch: Any, where: str
) -> None:
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    fix.push(("refs/heads/main", zero, one))
    killed(fix, monkeypatch, where)
    assert (fix.stack_dir / "tables.list.lock").exists()
    assert root.sweep() > 0
    fix.check()
    now = two if where == "unlink" else one  # of the staged table, after the list was renamed
    assert fix.refs() == {"refs/heads/main": now} | ({"refs/heads/new": two} if now == two else {})
    assert fix.push(("refs/heads/main", now, zero)) == [None]


def test_sweeping_leaves_alone_what_is_not_ours(fix: Fixture, root: RepositoryRoot) -> None:
    for name in ("tables.list.lock", "0x000000000009-0x000000000009-00000000.ref", "x.ref.lock"):
        (fix.stack_dir / name).touch()
    root.sweep()
    for name in ("tables.list.lock", "0x000000000009-0x000000000009-00000000.ref", "x.ref.lock"):
        (fix.stack_dir / name).unlink()


# Compaction


def test_the_stack_stays_short(fix: Fixture) -> None:
    zero, one = fix.zero, fix.oids[0]
    fix.push(*((f"refs/heads/{number:04}", zero, one) for number in range(400)))
    for number in range(60):
        assert fix.push((f"refs/tags/{number}", zero, one)) == [None]
        assert len(fix.tables()) <= 6
    assert len(fix.refs()) == 460
    fix.push(*((name, oid, zero) for name, oid in fix.refs().items()))
    assert fix.refs() == {}
    owned = OwnedDirectory(fix.path)
    assert fix.store().stack.compact(owned, WriteOptions(geometric_factor=255))
    owned.close()
    # nothing is below the only table, so it needs no tombstones
    (table,) = fix.store().stack.view().tables
    assert [record.name for record in table.refs()] == [HEAD]


@pytest.mark.parametrize(
    ("sizes", "segment"),
    [
        ([], None),
        ([5], None),
        ([64, 32, 16, 8, 4, 2, 1], None),
        ([64, 32, 16, 8, 4, 3, 1], (0, 6)),
        ([128, 32, 16, 8, 4, 3, 1], (1, 6)),
        ([512, 64, 17, 16, 9, 9, 9, 16, 2, 16], (1, 10)),
        ([1, 1], (0, 2)),
        ([100, 1, 1], (1, 3)),
    ],
)
def test_tables_to_merge_are_git_s_choice(sizes: list[int], segment: tuple[int, int] | None) -> None:
    # examples of git's t/unit-tests/u-reftable-stack.c
    assert _segment([size + 23 for size in sizes], SHA1, 2) == segment


def test_tables_that_somebody_compacts_are_left_to_him(fix: Fixture) -> None:
    zero, one = fix.zero, fix.oids[0]
    fix.push(("refs/heads/main", zero, one))
    (first,) = fix.tables()
    lock = fix.stack_dir / f"{first}.lock"
    lock.touch()
    for number in range(8):
        assert fix.push((f"refs/heads/{number}", zero, one)) == [None]
    tables = fix.tables()
    assert tables[0] == first
    assert 2 <= len(tables) <= 5
    lock.unlink()
    fix.push(("refs/heads/last", zero, one))
    assert first not in fix.tables()
    assert len(fix.refs()) == 10


def test_a_push_while_tables_are_merged_is_kept(fix: Fixture, monkeypatch: Any) -> None:
    zero, one, two = fix.zero, fix.oids[0], fix.oids[1]
    pushed: list[str] = []
    real_write = reftable_stack.write_table

    def write_table(owned: OwnedDirectory, *args: Any) -> bytes:
        staged = real_write(owned, *args)
        if not pushed and args[1] != args[2]:  # it is a merged one
            pushed.append("")
            fix.write(RefRecord(b"refs/heads/meanwhile", 0, to_raw(two)))
        return staged

    monkeypatch.setattr(reftable_stack, "write_table", write_table)
    fix.push(("refs/heads/main", zero, one))
    monkeypatch.undo()
    assert pushed
    assert fix.refs() == {"refs/heads/main": one, "refs/heads/meanwhile": two}
    assert len(fix.tables()) == 2


# Broken stacks


def broken_list(path: Path) -> None:
    (path / "tables.list").write_bytes(b"../../etc/passwd\n")


def missing_table(path: Path) -> None:
    next(iter(path.glob("*.ref"))).unlink()


def missing_list(path: Path) -> None:
    (path / "tables.list").unlink()


def no_newline(path: Path) -> None:
    (path / "tables.list").write_bytes((path / "tables.list").read_bytes().rstrip(b"\n"))


def twice(path: Path) -> None:
    (path / "tables.list").write_bytes((path / "tables.list").read_bytes() * 2)


def empty_table(path: Path) -> None:
    next(iter(path.glob("*.ref"))).write_bytes(b"")


def fifo(path: Path) -> None:
    table = next(iter(path.glob("*.ref")))
    table.unlink()
    os.mkfifo(table)


def list_is_a_directory(path: Path) -> None:
    (path / "tables.list").unlink()
    (path / "tables.list").mkdir()


def other_format(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(DATA / "sha256", path)


@pytest.mark.parametrize(
    "damage",
    [
        broken_list,
        missing_table,
        missing_list,
        no_newline,
        twice,
        empty_table,
        fifo,
        list_is_a_directory,
        other_format,
    ],
)
def test_a_broken_stack_is_refused(
    root: RepositoryRoot, git: Any, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    fix = Fixture(root, git)
    fix.push(("refs/heads/main", fix.zero, fix.oids[0]))
    damage(fix.stack_dir)
    with pytest.raises(RepositoryUnusable):
        fix.repo.refs()
    with pytest.raises(RepositoryUnusable):
        fix.repo.ref_store.read(HEAD)
    assert fix.push(("refs/heads/main", fix.oids[0], fix.oids[1])) == ["failed to update ref"]
    assert not [name for name in os.listdir(fix.path) if name.startswith("incoming-")]
    assert caplog.records == []


@given(st.integers(0, 2), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=3))
@settings(deadline=None, max_examples=60)
def test_damaged_tables_never_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, which: int, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("damaged")
    shutil.copytree(DATA / "sha1", path / "reftable")
    name = (path / "reftable" / "tables.list").read_text().split()[which]
    data = bytearray((path / "reftable" / name).read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    (path / "reftable" / name).write_bytes(data)
    store = ReftableRefStore(os.fsencode(path), SHA1, Everything())
    owned = OwnedDirectory(path)
    for look in (
        store.snapshot,
        lambda: store.read(HEAD),
        lambda: list(store.stack.view().logs(b"refs/heads/main")),
        lambda: store.stack.compact(owned, WriteOptions(geometric_factor=255)),
    ):
        try:
            look()
        except RepositoryUnusable:
            pass
    owned.close()
    shutil.rmtree(path)


# The repository around it


def test_a_repository_with_unknown_settings_is_not_written(fix: Fixture, root: RepositoryRoot) -> None:
    with (fix.path / "config").open("a") as file:
        file.write("[reftable]\n\tblockSize = 99999999\n")
    result = fix.push(("refs/heads/main", fix.zero, fix.oids[0]), repo=root.open("app"))
    assert result == ["failed to update ref"]


def test_settings_of_tables_are_honoured(fix: Fixture, root: RepositoryRoot) -> None:
    with (fix.path / "config").open("a") as file:
        file.write(
            "[reftable]\n\tblockSize = 1024\n\trestartInterval = 5\n\tindexObjects = false\n"
            "\tgeometricFactor = 3\n\tlockTimeout = -1\n"
        )
    repo = root.open("app")
    names = [f"refs/heads/{number:03}" for number in range(200)]
    fix.push(*((name, fix.zero, fix.oids[0]) for name in names), repo=repo)
    assert fix.store().stack.view().tables[-1].table.block_size == 1024
    assert sorted(fix.refs()) == names


def test_work_trees_heads_are_seen(fix: Fixture) -> None:
    home = fix.path / "worktrees" / "w"
    home.mkdir(parents=True)
    (home / "HEAD").write_text("ref: refs/heads/.invalid\n")
    shutil.copytree(fix.stack_dir, home / "reftable")
    fix.write(RefRecord(HEAD, 0, target=b"refs/heads/other"))
    assert fix.repo.checked_out() == {b"refs/heads/main"}
    (home / "reftable" / "tables.list").write_bytes(b"garbage")
    assert fix.repo.checked_out() == frozenset()


def test_links_out_of_the_root_are_not_followed(fix: Fixture, root: RepositoryRoot, tmp_path: Path) -> None:
    shutil.move(fix.stack_dir, tmp_path / "elsewhere")
    fix.stack_dir.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="not found"):
        root.open("app")
    fix.stack_dir.unlink()
    shutil.move(tmp_path / "elsewhere", fix.stack_dir)


def test_an_unknown_ref_format_is_an_error(root: RepositoryRoot) -> None:
    with pytest.raises(ValueError, match="ref format"):
        root.create("app", ref_format="tables")
