"""What pushes rewound or deleted, as others know it: handles that have nothing in common but the disk."""

import fcntl
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gitsmart.repo import gone_refs
from gitsmart.repo.gone_refs import GoneRef, GoneRefs
from gitsmart.repo.ownership import OwnedDirectory
from gitsmart.repo.ref_transaction import ReflogIdentity, RefUpdate
from gitsmart.repo.reftable import RefRecord
from gitsmart.repo.reftable_refs import ReftableRefStore
from gitsmart.repo.reftable_stack import WriteOptions
from gitsmart.repo.repository import Repository
from gitsmart.repo.root import RepositoryRoot
from gitsmart.repo.shown_tips import GRACE_S

A, B, C = b"a" * 40, b"b" * 40, b"c" * 40
RULES = b"0123456789abcdef"
MAIN = b"refs/heads/main"


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Files:
    """One repository's file, and any number of processes that use it."""

    def __init__(self, git_dir: Path) -> None:
        self.git_dir = git_dir
        self.path = git_dir / "info" / "gitsmart" / "gone"
        self.clock = Clock()

    def open(self) -> GoneRefs:
        return GoneRefs(self.git_dir, hex_len=40, clock=self.clock)

    def note(self, *refs: GoneRef, rules: bytes = RULES) -> None:
        self.open().note(rules, refs)

    def read(self, rules: bytes = RULES) -> list[GoneRef]:
        return list(self.open().read(rules))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def gone(name: bytes, oid: bytes = A, *, is_delete: bool = True) -> GoneRef:
    return GoneRef(name, oid, is_delete)


def line(text: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(text), text)


# The file


def test_one_process_notes_and_another_reads(files: Files) -> None:
    reader = files.open()
    assert reader.read(RULES) == ()
    first, second = gone(MAIN), gone(b"refs/heads/b", B, is_delete=False)
    files.note(first)
    assert reader.read(RULES) == (first,)
    files.note(second)
    assert reader.read(RULES) == (first, second)
    assert reader.read(RULES) is reader.read(RULES)
    assert files.read(b"f" * 16) == []


def test_nothing_to_note_touches_no_disk(files: Files) -> None:
    files.note()
    assert os.listdir(files.git_dir) == []


def test_what_is_noted_expires(files: Files) -> None:
    reader = files.open()
    files.note(gone(MAIN))
    files.clock.now += 200
    files.note(gone(b"refs/heads/b", B))
    files.clock.now += GRACE_S - 201
    assert len(reader.read(RULES)) == 2
    files.clock.now += 2
    assert [ref.oid for ref in reader.read(RULES)] == [B]
    files.clock.now += 200
    assert reader.read(RULES) == ()


def test_what_will_be_noted_in_an_hour_is_nothing(files: Files) -> None:
    """The clock was set back."""
    reader = files.open()
    files.note(gone(MAIN))
    assert reader.read(RULES)
    files.clock.now -= 3600
    assert reader.read(RULES) == ()


@pytest.mark.parametrize(
    "junk",
    [
        pytest.param(b"\0" * 3000, id="zeros, after a power failure"),
        pytest.param(b"%08x 17000" % zlib.crc32(b"17"), id="cut"),
        pytest.param(line(b"1700000000000 %b d %b %b" % (RULES, C, MAIN))[:-3], id="cut at the end"),
        pytest.param(line(b"1700000000000 %b d %b HEAD" % (RULES, C)), id="no ref"),
        pytest.param(line(b"1700000000000 %b d %b refs/../x" % (RULES, C)), id="no refname"),
        pytest.param(line(b"1700000000000 %b d %b %b" % (RULES, C[1:], MAIN)), id="short oid"),
        pytest.param(line(b"1700000000000 %b d %b %b" % (RULES, b"Z" * 40, MAIN)), id="no oid"),
        pytest.param(line(b"1700000000000 %b x %b %b" % (RULES, C, MAIN)), id="no kind"),
        pytest.param(line(b"-1 %b d %b %b" % (RULES, C, MAIN)), id="no time"),
        pytest.param(line(b"9" * 5000 + b" %b d %b %b" % (RULES, C, MAIN)), id="no such time"),
        pytest.param(line(b"1700000000000 %b d %b" % (RULES, C)), id="a field less"),
        pytest.param(b"".join(b"%x\n" % number for number in range(5000)), id="something else"),
    ],
)
def test_what_is_no_record_is_ignored(files: Files, junk: bytes) -> None:
    files.note(gone(MAIN))
    with open(files.path, "ab") as file:
        file.write(junk)
    assert files.read() == [gone(MAIN)]
    files.note(gone(b"refs/heads/b", B))
    assert files.read() == [gone(MAIN), gone(b"refs/heads/b", B)]


def test_a_changed_record_is_none(files: Files) -> None:
    files.note(gone(MAIN))
    files.path.write_bytes(files.path.read_bytes().replace(A, C))
    assert files.read() == []


def test_a_file_of_somebody_elses_is_replaced(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gone_refs, "_LIMIT_BYTES", 10_000)
    files.note(gone(MAIN))
    with open(files.path, "ab") as file:
        file.truncate(1 << 30)
    assert files.read() == []
    files.note(gone(MAIN, B))
    assert files.read() == [gone(MAIN, B)]
    assert files.path.stat().st_size < 1000


def test_the_file_is_bounded_and_the_latest_stay(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gone_refs, "_STEP_BYTES", 1 << 12)
    monkeypatch.setattr(gone_refs, "_LIMIT_BYTES", 1 << 15)
    names = [b"refs/heads/%05d" % number for number in range(3000)]
    for start in range(0, 2000, 10):
        files.note(*map(gone, names[start : start + 10]))
        assert files.path.stat().st_size <= (1 << 15) + (1 << 12)
    kept = [ref.name for ref in files.read()]
    assert len(kept) > 200
    assert kept == names[2000 - len(kept) : 2000]
    files.note(*map(gone, names))  # more than there is room for
    kept = [ref.name for ref in files.read()]
    assert len(kept) > 200
    assert kept == names[-len(kept) :]
    assert os.listdir(files.path.parent) == ["gone"]


def test_what_is_too_old_is_dropped(files: Files) -> None:
    files.note(*[gone(b"refs/heads/%d" % number) for number in range(500)])
    files.clock.now += GRACE_S + 1
    files.note(*[gone(b"refs/heads/%d" % number, B) for number in range(500)])
    assert files.path.stat().st_size < 1000 * 100
    files.note(*[gone(b"refs/heads/%d" % number, C) for number in range(500)])
    assert files.path.read_bytes().count(A) == 0
    assert {ref.oid for ref in files.read()} == {B, C}
    long_ago = files.clock.now - 2 * GRACE_S
    os.utime(files.path, (long_ago, long_ago))
    files.note(gone(MAIN, B))
    assert files.path.read_bytes().count(b"\n") == 2


def test_writers_take_turns(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gone_refs, "_STEP_BYTES", 1 << 10)  # most are rewriting
    monkeypatch.setattr(gone_refs, "_LOCK_WAIT_S", 60)
    names = [b"refs/heads/%04d" % number for number in range(200)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: files.note(gone(name)), names))
    assert sorted(ref.name for ref in files.read()) == names


def hold(files: Files) -> None:
    files.path.parent.mkdir(parents=True)
    fd = os.open(files.path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)  # until the process ends


def make_link(files: Files) -> None:
    files.path.parent.mkdir(parents=True)
    (files.git_dir / "other").write_bytes(b"precious")
    files.path.symlink_to(files.git_dir / "other")


def make_pipe(files: Files) -> None:
    files.path.parent.mkdir(parents=True)
    os.mkfifo(files.path)


@pytest.mark.parametrize(
    "obstacle",
    [
        pytest.param(hold, id="locked for ever"),
        pytest.param(make_link, id="a link"),
        pytest.param(make_pipe, id="a pipe"),
        pytest.param(lambda files: files.path.mkdir(parents=True), id="a directory"),
        pytest.param(lambda files: (files.git_dir / "info").write_bytes(b""), id="no place"),
    ],
)
def test_what_cannot_be_noted_is_not(files: Files, obstacle: Callable[[Files], None]) -> None:
    obstacle(files)
    files.note(gone(MAIN))
    assert files.read() == []
    if (files.git_dir / "other").exists():
        assert (files.git_dir / "other").read_bytes() == b"precious"


# Repositories


class Fixture:
    """A repository, pushed to by one process and read by others."""

    def __init__(self, path: Path, git: Any, ref_format: str) -> None:
        self.root, self.git = path, git
        self.repo = RepositoryRoot(path).create("app", ref_format=ref_format)
        self.path = path / "app.git"
        self.zero = self.repo.format.zero
        self.oids: list[bytes] = []
        for number in range(4):
            self.oids.append(git.commit(self.path, "f", str(number), *self.oids[-1:]))

    def other(self) -> Repository:
        return RepositoryRoot(self.root).open("app")

    def push(self, *updates: RefUpdate, atomic: bool = False, **more: Any) -> list[str | None]:
        with self.repo.begin_push() as push:
            return push.commit(
                updates, atomic=atomic, identity=ReflogIdentity("pusher", "pusher@example.com"), **more
            )

    def create(self, *names: bytes) -> None:
        assert not any(self.push(*[RefUpdate(name, self.zero, self.oids[3]) for name in names]))

    def tips(self, *, namespace: str = "") -> frozenset[bytes]:
        """What a process that has never listed anything adds to what is shown now."""
        repo = self.other().in_namespace(namespace)
        repo.shown_refs("uploadpack")
        return repo.with_gone_tips(repo.recent_tips()) - repo.recent_tips()

    def config(self, *arguments: str) -> None:
        self.git(self.path, "config", "--file", "config", *arguments)  # git may not know of reftables

    def symref(self, name: bytes, target: bytes) -> None:
        if not isinstance(self.repo.ref_store, ReftableRefStore):
            self.git(self.path, "symbolic-ref", name.decode(), target.decode())
            return
        owned = OwnedDirectory(self.path)
        with self.repo.ref_store.stack.locked(owned, WriteOptions()) as addition:
            addition.add([RefRecord(name, addition.view.next_update_index, target=target)], [])
        owned.close()


@pytest.fixture(params=["files", "reftable"])
def fix(request: pytest.FixtureRequest, tmp_path: Path, git: Any) -> Fixture:
    (tmp_path / "root").mkdir()
    return Fixture(tmp_path / "root", git, request.param)


def test_rewound_and_deleted_refs_are_known_to_all(fix: Fixture) -> None:
    old, new = fix.oids[3], fix.git.commit(fix.path, "f", "other", fix.oids[0])
    fix.create(MAIN, b"refs/heads/topic")
    assert fix.tips() == frozenset()
    assert fix.push(RefUpdate(MAIN, old, new)) == [None]
    assert fix.tips() == frozenset()  # topic has it still
    assert fix.other().gone_ref(MAIN) is None
    assert fix.push(RefUpdate(b"refs/heads/topic", old, fix.zero)) == [None]
    assert fix.tips() == {old}
    other = fix.other()
    assert other.gone_ref(b"refs/heads/topic") == old
    assert other.gone_ref(MAIN) is None
    other.shown_refs("uploadpack")
    tips = other.recent_tips()
    assert other.with_gone_tips(tips) is other.with_gone_tips(tips)


def test_head_by_name_when_its_branch_was_deleted(fix: Fixture) -> None:
    fix.symref(b"HEAD", MAIN)
    fix.create(MAIN)
    assert fix.push(RefUpdate(MAIN, fix.oids[3], fix.zero)) == [None]
    assert fix.other().gone_ref(b"HEAD") == fix.oids[3]
    fix.symref(b"HEAD", b"refs/heads/never")
    assert fix.other().gone_ref(b"HEAD") is None


def test_a_symref_is_known_by_its_name_too(fix: Fixture) -> None:
    alias = b"refs/heads/alias"
    fix.create(MAIN)
    fix.symref(alias, MAIN)
    assert fix.push(RefUpdate(alias, fix.oids[3], fix.zero)) == [None]
    assert fix.other().gone_ref(alias) == fix.other().gone_ref(MAIN) == fix.oids[3]


def test_only_what_is_lost_is_noted(fix: Fixture) -> None:
    new = fix.git.commit(fix.path, "f", "next", fix.oids[3])
    fix.create(MAIN)
    assert fix.push(RefUpdate(MAIN, fix.oids[3], new, is_forward=True)) == [None]
    assert fix.push(RefUpdate(MAIN, new, new)) == [None]
    assert not (fix.path / "info" / "gitsmart").exists()


def test_an_object_that_no_ref_had_is_never_granted(fix: Fixture) -> None:
    never = fix.oids[1]
    fix.create(MAIN)
    names = [MAIN, b"refs/heads/none"]
    for atomic in (False, True):
        results = fix.push(*[RefUpdate(name, never, fix.oids[0]) for name in names], atomic=atomic)
        assert None not in results
        results = fix.push(*[RefUpdate(name, never, fix.zero) for name in names], atomic=atomic)
        assert None not in results
    refused = fix.push(RefUpdate(MAIN, fix.oids[3], fix.oids[0]), hook=lambda state, _: state != "prepared")
    assert refused == ["ref updates aborted by hook"]
    assert not (fix.path / "info" / "gitsmart").exists()
    assert fix.tips() == frozenset()


def test_it_is_noted_before_the_ref_moves(fix: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    fix.create(MAIN, b"refs/heads/topic")
    seen: list[tuple[bytes, bytes]] = []
    note = GoneRefs.note

    def spy(self: GoneRefs, rules: bytes, refs: Any) -> None:
        note(self, rules, refs)
        now = {ref.name: ref.oid for ref in fix.other().refs().refs}
        seen.extend((ref.name, now[ref.name]) for ref in refs)

    monkeypatch.setattr(GoneRefs, "note", spy)
    old = fix.oids[3]
    assert not any(fix.push(RefUpdate(MAIN, old, fix.oids[0]), RefUpdate(b"refs/heads/topic", old, fix.zero)))
    assert sorted(seen) == [(MAIN, old), (b"refs/heads/topic", old)]


def test_hidden_stays_hidden(fix: Fixture) -> None:
    secret = b"refs/secret/x"
    fix.create(MAIN)
    fix.config("transfer.hideRefs", "refs/secret")
    assert fix.push(RefUpdate(secret, fix.zero, fix.oids[2])) == [None]
    assert fix.push(RefUpdate(secret, fix.oids[2], fix.zero)) == [None]
    assert fix.tips() == frozenset()
    assert fix.other().gone_ref(secret) is None
    fix.config("--unset", "transfer.hideRefs")  # nobody was shown it, when it was there
    assert fix.tips() == frozenset()
    assert fix.other().gone_ref(secret) is None


def test_what_is_hidden_from_now_on_is_hidden(fix: Fixture) -> None:
    fix.create(MAIN)
    assert fix.push(RefUpdate(MAIN, fix.oids[3], fix.zero)) == [None]
    assert fix.tips() == {fix.oids[3]}
    for name, rule in (("transfer.hideRefs", "refs/heads"), ("uploadpack.hideRefs", "refs/tags")):
        fix.config(name, rule)
        assert fix.tips() == frozenset()
        assert fix.other().gone_ref(MAIN) is None
        fix.config("--unset", name)
    fix.config("receive.hideRefs", "refs/heads")  # no matter of fetches
    assert fix.tips() == {fix.oids[3]}


def test_a_namespace_knows_its_own(fix: Fixture) -> None:
    stored = b"refs/namespaces/one/refs/heads/main"
    fix.create(MAIN, stored)
    fix.symref(b"refs/namespaces/one/HEAD", stored)
    assert fix.push(RefUpdate(stored, fix.oids[3], fix.oids[1])) == [None]
    assert fix.push(RefUpdate(stored, fix.oids[1], fix.zero)) == [None]
    assert fix.tips(namespace="one") == {fix.oids[3], fix.oids[1]}
    one = fix.other().in_namespace("one")
    assert one.gone_ref(MAIN) == one.gone_ref(b"HEAD") == fix.oids[1]
    assert fix.tips(namespace="two") == frozenset()
    assert fix.other().in_namespace("two").gone_ref(MAIN) is None
    assert fix.tips() == {fix.oids[1]}
    assert fix.other().gone_ref(MAIN) is None
    assert fix.other().gone_ref(stored) == fix.oids[1]


def test_a_copy_of_the_repository_knows_nothing_of_it(fix: Fixture) -> None:
    fix.create(MAIN)
    assert fix.push(RefUpdate(MAIN, fix.oids[3], fix.zero)) == [None]
    fix.path.rename(fix.root / "elsewhere.git")
    fix.git(fix.root, "init", "-q", "--bare", "app.git")
    (fix.root / "elsewhere.git" / "info" / "gitsmart").rename(fix.path / "info" / "gitsmart")
    assert fix.tips() == frozenset()
