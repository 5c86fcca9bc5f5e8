"""One store over packs, loose objects, alternates and a quarantine's base; git works beside it."""

import os
import shutil
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from gitsmart.errors import LimitExceeded, ObjectMissing, PackError
from gitsmart.pack import store as store_module
from gitsmart.pack.objects import BLOB, COMMIT, SHA1, TAG, TREE, TYPE_NAMES
from gitsmart.pack.store import ObjectStore

History = Any  # conftest.py's


@pytest.fixture(params=["tangled", "tangled256"])
def history(request: pytest.FixtureRequest) -> History:
    return request.getfixturevalue(request.param)


def test_every_object_as_git_reads_it(history: History) -> None:
    store = history.store()
    out = history.git(
        "cat-file", "--batch-all-objects", "--batch-check=%(objectname) %(objecttype) %(objectsize)"
    )
    rows = [line.split() for line in out.splitlines()]
    assert len(rows) > 300
    assert len(store.packs()) == 3
    loose = 0
    for name, kind, size in rows:
        oid = bytes.fromhex(name.decode())
        assert oid in store
        found, data = store.read(oid)
        assert (TYPE_NAMES[found], len(data)) == (kind, int(size))
        assert store.type_of(oid) == found
        assert store.size_of(oid) == (found, len(data))
        hasher = history.format.new_hash()
        hasher.update(b"%b %b\0" % (kind, size) + data)
        assert hasher.digest() == oid
        loose += store.locate(oid) is None
    assert loose > 20
    oids = {bytes.fromhex(name.decode()) for name, _, _ in rows}
    assert store.present([*oids, b"\1" * len(next(iter(oids))), b"odd"]) == oids


def test_own_objects_are_not_those_of_alternates(tangled: History) -> None:
    store = tangled.store()
    lent, own = tangled.oids("refs/heads/c1", f"refs/heads/c{tangled.marks}")
    assert lent in store
    assert own in store
    assert not store.contains_own(lent)
    assert store.contains_own(own)


def test_missing(packed: History) -> None:
    store = packed.store()
    for oid in (b"\1" * 20, b"", b"\1" * 32):
        assert oid not in store
        assert store.locate(oid) is None
        for ask in (store.read, store.type_of, store.size_of, store.commit, store.peel):
            with pytest.raises(ObjectMissing) as raised:
                ask(oid)
            assert raised.value.args == (oid.hex(),)


def test_commits_and_tags(packed: History) -> None:
    store = packed.store()
    tip = f"refs/heads/c{packed.marks}"
    oid, tree, *parents = packed.oids(tip, tip + "^{tree}", tip + "^@")
    commit = store.commit(oid)
    assert (commit.tree, list(commit.parents)) == (tree, parents)
    assert commit.date == int(packed.git("log", "-1", "--format=%ct", tip))
    assert store.commit(oid) is commit
    nested, annotated = packed.oids("nested", "annotated")
    assert store.peel(nested) == ((nested, annotated), oid, COMMIT)
    assert store.peel(tree) == ((), tree, TREE)
    assert store.type_of(nested) == TAG
    assert store.peel(packed.oids("of-blob")[0])[2] == BLOB
    with pytest.raises(PackError, match="no commit"):
        store.commit(tree)


def test_tags_in_a_circle_end(new_history: Any) -> None:
    # Not possible with hashes; but a long row is.
    history = new_history()
    history.grow(1, unpack=True)
    target, kind = history.git("rev-parse", "refs/heads/c1").decode().strip(), "commit"
    for n in range(102):
        text = f"object {target}\ntype {kind}\ntag t{n}\ntagger T <t@example.com> 1 +0000\n\n"
        target, kind = (
            history.git("hash-object", "-wt", "tag", "--stdin", input=text.encode()).decode().strip(),
            "tag",
        )
    with pytest.raises(PackError, match="more than 100 tags"):
        history.store().peel(bytes.fromhex(target))


# -- loose objects


def loose_path(folder: Path, oid: bytes) -> Path:
    path = folder / oid.hex()[:2] / oid.hex()[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no zlib stream", id="garbage"),
        pytest.param(zlib.compress(b"blob 3 abc"), id="no NUL"),
        pytest.param(zlib.compress(b"blub 3\0abc"), id="type"),
        pytest.param(zlib.compress(b"blob 03\0abc"), id="size"),
        pytest.param(zlib.compress(b"blob 4\0abc"), id="short"),
        pytest.param(zlib.compress(b"blob 2\0abc"), id="long"),
        pytest.param(zlib.compress(b"blob 3\0abc")[:-3], id="cut"),
        pytest.param(zlib.compress(b"blob 90000\0" + bytes(90000))[:-30], id="cut later"),
        pytest.param(zlib.compress(b"blob 3\0abc")[:-1] + b"\0", id="checksum"),
    ],
)
def test_broken_loose_objects_raise(tmp_path: Path, data: bytes) -> None:
    oid = b"\xab" * 20
    loose_path(tmp_path, oid).write_bytes(data)
    store = ObjectStore(tmp_path, SHA1)
    assert oid in store
    with pytest.raises(PackError):
        store.read(oid)


def test_loose_objects_are_limited_by_their_header(tmp_path: Path) -> None:
    oid = b"\xab" * 20
    loose_path(tmp_path, oid).write_bytes(zlib.compress(b"blob 100\0" + bytes(100)))
    store = ObjectStore(tmp_path, SHA1)
    assert store.read(oid, limit_bytes=100) == (BLOB, bytes(100))
    with pytest.raises(LimitExceeded, match="more than the 99 allowed"):
        store.read(oid, limit_bytes=99)
    loose_path(tmp_path, oid).write_bytes(zlib.compress(b"blob 999999999999999\0"))
    assert store.size_of(oid) == (BLOB, 999999999999999)
    with pytest.raises(PackError):
        store.read(oid)


# -- alternates, quarantines


def test_alternates_of_all_kinds(new_history: Any, tmp_path: Path) -> None:
    folders = [tmp_path / f"objects{n}" for n in range(9)]
    for n, folder in enumerate(folders):
        (folder / "info").mkdir(parents=True)
        loose_path(folder, bytes([n]) * 20).write_bytes(zlib.compress(b"blob 1\0%d" % n))
    # Relative, absolute, quoted, commented; back to itself; to nowhere; in a circle; relative ones count at
    # first only.
    (folders[0] / "info/alternates").write_text(
        f'# comment\n../objects1\n{folders[2]}\n"{tmp_path}/\\157bjects3"\n../objects0\n/nowhere\n\n'
    )
    (folders[1] / "info/alternates").write_text(f"{folders[4]}\n../objects8\n")
    (folders[4] / "info/alternates").write_text(f"{folders[1]}\n{folders[5]}\n")
    store = ObjectStore(folders[0], SHA1)
    assert {n for n in range(9) if bytes([n]) * 20 in store} == {0, 1, 2, 3, 4, 5}
    assert store.read(b"\5" * 20) == (BLOB, b"5")
    # They are noticed when they change, and when they go.
    alternates = folders[0] / "info/alternates"
    alternates.write_text(f"{folders[7]}\n")
    store.refresh()
    assert {n for n in range(9) if bytes([n]) * 20 in store} == {0, 7}
    alternates.unlink()
    store.refresh()
    assert {n for n in range(9) if bytes([n]) * 20 in store} == {0}


def test_alternates_end(tmp_path: Path) -> None:
    folders = [tmp_path / f"objects{n}" for n in range(12)]
    for n, folder in enumerate(folders):
        (folder / "info").mkdir(parents=True)
        loose_path(folder, bytes([n]) * 20).write_bytes(zlib.compress(b"blob 1\0x"))
        (folder / "info/alternates").write_text(f"{tmp_path}/objects{n + 1}\n")
    store = ObjectStore(folders[0], SHA1)
    assert {n for n in range(12) if bytes([n]) * 20 in store} == set(range(7))


def test_a_quarantine_lies_over_its_repository(packed: History, tmp_path: Path) -> None:
    base = packed.store()
    (tip,) = packed.oids(f"refs/heads/c{packed.marks}")
    new = b"\xab" * 20
    loose_path(tmp_path, new).write_bytes(zlib.compress(b"blob 1\0x"))
    quarantine = ObjectStore(tmp_path, SHA1, over=base)
    assert quarantine.read(new) == (BLOB, b"x")
    assert quarantine.commit(tip) == base.commit(tip)
    assert tip in quarantine
    assert not quarantine.contains_own(tip)
    assert quarantine.contains_own(new)
    assert new not in base
    quarantine.close()
    assert tip in base


# -- while git works


def test_new_packs_are_seen_on_a_miss_and_old_ones_let_go(new_history: Any) -> None:
    history = new_history()
    history.grow(5, unpack=True)
    store = history.store()
    assert store.packs() == ()
    (tip,) = history.oids("refs/heads/c5")
    assert store.type_of(tip) == COMMIT
    history.git("repack", "-adq")
    assert store.type_of(tip) == COMMIT
    first = store.packs()
    assert len(first) == 1
    history.grow(5, unpack=False)
    assert store.type_of(history.oids("refs/heads/c10")[0]) == COMMIT
    assert set(first) < set(store.packs())
    history.git("repack", "-adq")
    store.refresh()
    assert len(store.packs()) == 1
    assert not set(first) & set(store.packs())


def test_a_broken_pack_hides_only_its_own_objects(new_history: Any, caplog: pytest.LogCaptureFixture) -> None:
    history = new_history()
    history.grow(5, unpack=False)
    first = history.oids("refs/heads/c5")[0]
    (good,) = (history.path / "objects/pack").glob("*.idx")
    history.grow(5, unpack=False)
    (bad,) = set((history.path / "objects/pack").glob("*.idx")) - {good}
    bad.chmod(0o644)
    bad.write_bytes(b"\0" * 100)
    store = history.store()
    assert first in store
    assert "cut short" in caplog.text
    assert bytes.fromhex((history.path / "refs/heads/c10").read_text()) not in store


def test_a_flood_of_misses_lists_nothing(packed: History, monkeypatch: pytest.MonkeyPatch) -> None:
    store = packed.store()
    # Directories changed just now are looked at again, for a while: let that pass.
    monkeypatch.setattr(store_module, "_RACY_NS", 0)
    assert b"\1" * 20 not in store
    os.utime(packed.path / "objects/pack", (1, 1))
    listed = 0

    def counting(real: Any) -> Any:
        def scan(*args: Any) -> Any:
            nonlocal listed
            listed += 1
            return real(*args)

        return scan

    monkeypatch.setattr(os, "scandir", counting(os.scandir))
    monkeypatch.setattr(os, "listdir", counting(os.listdir))
    flood = [bytes([n & 255, n >> 8]) * 10 for n in range(20000)]
    started = time.process_time()
    assert not any(oid in store for oid in flood)
    assert store.present(flood) == set()
    assert listed <= 2
    assert time.process_time() - started < 5


def test_many_small_packs_are_looked_up_at_once(new_history: Any) -> None:
    history = new_history()
    for _ in range(12):
        history.grow(1, unpack=False)
    store = history.store()
    assert len(store.packs()) == 12
    for oid in history.objects(history.oids("--all")):
        place = store.locate(oid)
        assert place is not None
        pack, offset = place
        assert pack.oid_at(offset) == oid


def test_a_pack_that_another_thread_saw_first(new_history: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a miss and the look at the directory, somebody else's look has taken the new pack in."""
    history = new_history()
    history.grow(3, unpack=False)
    store = history.store()
    history.grow(3, unpack=False)
    (tip,) = history.oids("refs/heads/c6")
    find = ObjectStore._find

    def beaten(self: ObjectStore, raw_oid: bytes) -> Any:
        found = find(self, raw_oid)
        monkeypatch.setattr(ObjectStore, "_find", find)
        self.refresh()
        return found

    for look in (store.locate, store.type_of, store.read, store.__contains__):
        store = history.store()
        monkeypatch.setattr(ObjectStore, "_find", beaten)
        assert look(tip)
    monkeypatch.setattr(ObjectStore, "_find", beaten)
    assert store.present([tip]) == {tip}


@pytest.mark.parametrize("quick", [True, False], ids=["within-a-tick", "later"])
def test_a_listing_that_saw_neither_the_old_nor_the_new_pack(
    new_history: Any, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    """As readdir may when it was past the new name as that came, and meets the old one gone."""
    history = new_history()
    history.grow(4, unpack=False)
    history.git("repack", "-adq")
    store = history.store()
    (tip,) = history.oids("refs/heads/c4")
    history.grow(1, unpack=False)
    folder = history.path / "objects/pack"
    stamp = os.stat(folder).st_mtime_ns
    real, calls = os.scandir, 0

    class Torn:
        def __enter__(self) -> Any:
            return iter(())

        def __exit__(self, *_: object) -> None:
            history.git("repack", "-adfq")
            if quick:
                os.utime(folder, ns=(stamp, stamp))

    def scandir(path: Any) -> Any:
        nonlocal calls
        calls += 1
        return Torn() if calls == 1 else real(path)

    assert b"\1" * 20 not in store
    store.close()
    monkeypatch.setattr(os, "scandir", scandir)
    if quick:
        monkeypatch.setattr(time, "time_ns", lambda: stamp + calls * 15_000_000)
    assert store.type_of(tip) == COMMIT
    assert calls > 1


@pytest.mark.slow
def test_readers_and_repacks_side_by_side(new_history: Any) -> None:
    history = new_history()
    history.grow(40, unpack=True)
    environ = history.environ
    store = history.store()
    oids = sorted(history.objects(history.oids("--all")))
    expected = {oid: store.read(oid) for oid in oids}
    failures: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for oid in oids:
                try:
                    if store.read(oid) != expected[oid] or oid not in store:
                        failures.append(oid.hex())
                except Exception as error:
                    failures.append(f"{oid.hex()}: {error!r}")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for round_number in range(6):
            history.git("repack", "-adfq" if round_number % 2 else "-adq")
            if round_number % 3 == 0:
                # To loose objects and back: git unpacks only what it does not have, so it is told of another
                # place.
                away = history.path / f"away{round_number}"
                (away / "objects").mkdir(parents=True)
                (pack,) = (history.path / "objects/pack").glob("*.pack")
                stream = pack.read_bytes()
                history.environ = {**environ, "GIT_OBJECT_DIRECTORY": str(away / "objects")}
                history.git("unpack-objects", "-q", input=stream)
                history.environ = environ
                shutil.copytree(away / "objects", history.path / "objects", dirs_exist_ok=True)
                for suffix in (".idx", ".rev", ".pack"):
                    pack.with_suffix(suffix).unlink(missing_ok=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:5]


def test_is_empty(tangled: History, tmp_path: Path) -> None:
    fresh = ObjectStore(tmp_path / "objects", SHA1)
    assert fresh.is_empty()
    assert not tangled.store().is_empty()
    assert not ObjectStore(tmp_path / "objects", SHA1, over=tangled.store()).is_empty()
    (tmp_path / "objects" / "a0").mkdir(parents=True)
    assert not fresh.is_empty()
