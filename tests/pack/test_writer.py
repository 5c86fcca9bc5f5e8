"""Packs that C git accepts, strictly, with exactly the selected objects; stored entries are reused."""

import hashlib
import itertools
import random
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from gitsmart import native as native_module
from gitsmart.errors import Disconnected, ObjectMissing
from gitsmart.pack import entrycopy, writer
from gitsmart.pack.objects import BLOB, SHA1
from gitsmart.pack.packfile import OFS_DELTA, REF_DELTA, PackFile
from gitsmart.pack.select import PackedObjects, Selection, select_objects
from gitsmart.pack.store import ObjectStore
from gitsmart.pack.writer import PackStats, write_pack

History = Any  # conftest.py's


def run_git(path: Path, *args: str, input: bytes = b"") -> None:
    subprocess.run(["git", "-C", str(path), *args], input=input, capture_output=True, check=True)


@pytest.fixture(params=["tangled", "tangled256", "packed"])
def history(request: pytest.FixtureRequest) -> History:
    return request.getfixturevalue(request.param)


def written(store: ObjectStore, selection: Selection, **options: Any) -> tuple[bytes, PackStats]:
    """Write a pack into memory."""
    pieces: list[bytes] = []

    def write(piece: bytes | memoryview) -> None:
        assert len(piece) <= 1 << 20
        pieces.append(bytes(piece))

    options = {"thin": False, "ofs_delta": True, "tick": lambda number: None, **options}
    stats = write_pack(store, selection, write, **options)
    stream = b"".join(pieces)
    assert stats.bytes == len(stream)
    assert stats.objects == len(selection) == stats.copied + stats.deflated
    assert stream[:12] == struct.pack(">4sII", b"PACK", 2, len(selection))
    return stream, stats


def selected(store: ObjectStore, **query: Any) -> Selection:
    """Select by names, whatever way the objects are found."""
    found = select_objects(store, **query)
    return Selection(
        {raw_oid: store.type_of(raw_oid) for raw_oid in found.names()}, set(found.client_has_names())
    )


def by_places(store: ObjectStore, selection: Selection) -> Selection:
    """Say the same by places in packs, as far as they are in packs."""

    def places(raw_oids: Iterable[bytes]) -> tuple[list[bytes], tuple[PackedObjects, ...]]:
        rest: list[bytes] = []
        bits: dict[PackFile, bytearray] = {}
        for raw_oid in raw_oids:
            place = store.locate(raw_oid)
            if place is None:
                rest.append(raw_oid)
                continue
            pack, offset = place
            rank = pack.rank_of(offset)
            bits.setdefault(pack, bytearray((pack.count + 7) // 8))[rank >> 3] |= 1 << (rank & 7)
        # Zeros at the end may be left out.
        return rest, tuple(PackedObjects(pack, bytes(some).rstrip(b"\0")) for pack, some in bits.items())

    objects, packed = places(selection.objects)
    has, has_packed = places(selection.client_has)
    kinds = {raw_oid: selection.objects[raw_oid] for raw_oid in objects}
    return Selection(kinds, set(has), packed, has_packed)


@pytest.fixture
def client(history: History, tmp_path: Path) -> Callable[..., set[bytes]]:
    """Return a function that feeds packs to one client repository, strictly, and gives the objects it has
    then."""
    path = tmp_path / "client.git"
    subprocess.run(
        ["git", "init", "-q", "--bare", f"--object-format={history.format.name.decode()}", str(path)],
        env=history.environ, check=True,
    )  # fmt: skip

    def take(stream: bytes, *flags: str) -> set[bytes]:
        result = subprocess.run(
            ["git", "-C", str(path), "index-pack", "--stdin", "--strict", *flags],
            input=stream, env=history.environ, capture_output=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr.decode()
        out = subprocess.run(
            ["git", "-C", str(path), "cat-file", "--batch-all-objects", "--batch-check=%(objectname)"],
            env=history.environ, capture_output=True, check=True,
        ).stdout  # fmt: skip
        return {bytes.fromhex(line) for line in out.decode().split()}

    return take


@pytest.mark.parametrize(("thin", "ofs_delta"), list(itertools.product((True, False), repeat=2)))
def test_git_takes_clone_and_fetches(
    native: bool, history: History, client: Callable[..., set[bytes]], thin: bool, ofs_delta: bool
) -> None:
    rng = random.Random(11)
    store = history.store()
    commits = history.oids(*[f"refs/heads/c{n}" for n in range(1, history.marks + 1)])
    has: set[bytes] = set()
    haves: list[bytes] = []
    for wants in (rng.sample(commits, 2), rng.sample(commits, 3), history.oids("nested", "of-tree"), commits):
        selection = selected(store, wants=wants, haves=haves)
        said = by_places(store, selection) if rng.random() < 0.5 else selection
        stream, _ = written(store, said, thin=thin, ofs_delta=ofs_delta)
        if selection.objects:
            now = client(stream, *(["--fix-thin"] if thin else []))
            assert now - has <= set(selection.objects)
            assert now == has | set(selection.objects)
            has = now
        haves += wants
    assert has == history.objects(haves)


def entries(stream: bytes, tmp_path: Path, fmt: Any) -> dict[bytes, int]:
    """Return raw oid -> stored type of a pack that is not thin."""
    path = tmp_path / f"entries-{hashlib.sha1(stream).hexdigest()}.pack"
    path.write_bytes(stream)
    subprocess.run(
        ["git", "index-pack", f"--object-format={fmt.name.decode()}", str(path)],
        check=True,
        capture_output=True,
    )
    pack = PackFile(path, fmt)
    return {pack.oid_at(offset): pack.entry(offset)[0] for offset in pack.by_offset()[0]}


def test_without_ofs_delta_there_is_none(native: bool, history: History, tmp_path: Path) -> None:
    store = history.store()
    selection = selected(store, wants=history.oids("--all"), haves=[])
    kinds = entries(written(store, selection, ofs_delta=False)[0], tmp_path, history.format).values()
    assert OFS_DELTA not in kinds
    assert REF_DELTA in kinds


def test_a_whole_pack_goes_out_as_it_is(native: bool, packed: History) -> None:
    store = packed.store()
    selection = selected(store, wants=packed.oids("--all"), haves=[])
    (pack,) = store.packs()
    assert len(selection.objects) == pack.count
    for said in (selection, by_places(store, selection)):
        sizes: list[int] = []
        stream, stats = written(store, said, on_size=sizes.append)
        assert stream == bytes(pack.data)
        assert stats.copied == pack.count
        assert sizes == [len(stream)]


def test_next_to_nothing_is_deflated_for_a_clone_of_a_branch(
    native: bool, packed: History, tmp_path: Path
) -> None:
    store = packed.store()
    selection = selected(store, wants=packed.oids("refs/heads/c150"), haves=[])
    (pack,) = store.packs()
    assert len(selection.objects) < pack.count
    stream, stats = written(store, selection)
    assert stats.deflated <= stats.objects // 10
    stored = entries(stream, tmp_path, SHA1)
    assert sum(kind == OFS_DELTA for kind in stored.values()) > 40


def test_thin_packs_refer_to_what_the_client_has(native: bool, packed: History) -> None:
    store = packed.store()
    rng = random.Random(12)
    commits = packed.oids(*[f"refs/heads/c{n}" for n in range(1, packed.marks + 1)])
    sizes = [0, 0]
    for _ in range(20):
        wants, haves = rng.sample(commits, 1), rng.sample(commits, 2)
        selection = selected(store, wants=wants, haves=haves)
        for thin in (0, 1):
            _, stats = written(store, selection, thin=bool(thin))
            sizes[thin] += stats.bytes
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(("thin", "ofs_delta"), list(itertools.product((True, False), repeat=2)))
def test_relatives_serve_as_bases(
    history: History,
    client: Callable[..., set[bytes]],
    thin: bool,
    ofs_delta: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native_module, "available", False)
    monkeypatch.setattr(writer, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(writer, "_RELATED_LEAST", 1)
    related = 0
    real = writer._Writer._related

    def counting(self: Any, *args: Any) -> bytes | None:
        nonlocal related
        entry = real(self, *args)
        related += entry is not None
        return entry

    monkeypatch.setattr(writer._Writer, "_related", counting)
    rng = random.Random(13)
    store = history.store()
    commits = history.oids(*[f"refs/heads/c{n}" for n in range(1, history.marks + 1)])
    has: set[bytes] = set()
    haves: list[bytes] = []
    for number in (1, 2, 2, 3, 20):
        wants = rng.sample(commits, number)
        selection = selected(store, wants=wants, haves=haves)
        stream, _ = written(store, selection, thin=thin, ofs_delta=ofs_delta)
        if selection.objects:
            now = client(stream, *(["--fix-thin"] if thin else []))
            assert now == has | set(selection.objects)
            has = now
        haves += wants
    assert has == history.objects(haves)
    assert related


def test_bases_of_bases_serve(packed: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_module, "available", False)
    joined: list[bytes] = []
    real = writer._Writer._joined

    def counting(self: Any, *args: Any) -> tuple[bytes | None, bool]:
        entry, backward = real(self, *args)
        if entry is not None:
            joined.append(entry)
        return entry, backward

    monkeypatch.setattr(writer._Writer, "_joined", counting)
    store = packed.store()
    for commit in packed.oids(*[f"refs/heads/c{n}" for n in range(40, packed.marks, 20)]):
        for ofs_delta in (True, False):
            selection = selected(store, wants=[commit], haves=[])
            stream, _ = written(store, selection, ofs_delta=ofs_delta)
            assert set(entries(stream, tmp_path, SHA1)) == set(selection.objects)
    assert len(joined) > 10


@pytest.fixture
def edited(new_history: Any) -> tuple[History, list[bytes], list[bytes]]:
    """A file of 1000 lines with a new version in each commit, packed: the history, its commits, its blobs."""
    history = new_history()
    rng = random.Random(3)
    lines = [rng.randbytes(20).hex().encode() for _ in range(1000)]
    stream = b""
    for number in range(1, 31):
        lines[rng.randrange(1000)] = rng.randbytes(20).hex().encode()
        content = b"\n".join(lines) + b"\n" * number
        stream += b"commit refs/heads/main\nmark :%d\ncommitter C <c@example.com> %d +0000\n" % (
            number,
            1_700_000_000 + number,
        )
        stream += b"data 0\n" + (b"from :%d\n" % (number - 1) if number > 1 else b"")
        stream += b"M 100644 inline file\ndata %d\n%b\n" % (len(content), content)
    history.git("fast-import", "--quiet", input=stream)
    history.git("repack", "-adfq", "--depth=5")
    commits = history.git("rev-list", "--reverse", "main").decode().split()
    blobs = history.oids(*(f"{commit}:file" for commit in commits))
    return history, [bytes.fromhex(commit) for commit in commits], blobs


needs_native = pytest.mark.skipif(not native_module.available, reason=native_module.missing)


@needs_native
@pytest.mark.parametrize("forms", [False, True], ids=["oids", "places"])
def test_large_entries_become_deltas_of_what_the_client_has(
    edited: tuple[History, list[bytes], list[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forms: bool,
) -> None:
    history, commits, blobs = edited
    store = history.store()
    sizes: dict[bool, int] = {}
    for thin in (False, True):
        selection = selected(store, wants=commits[-1:], haves=commits[-2:-1])
        # Whatever the client reaches from there, not only what is near.
        has = history.objects(commits[-2:-1])
        selection = Selection(dict(selection.objects), has - set(selection.objects))
        stream, stats = written(store, by_places(store, selection) if forms else selection, thin=thin)
        sizes[thin] = len(stream)
        client = client_at(history, commits[-2], tmp_path / f"client-{thin}.git")
        run_git(client, "index-pack", "--stdin", "--strict", "--fix-thin", input=stream)
        run_git(client, "update-ref", "refs/heads/new", commits[-1].hex())
        run_git(client, "fsck", "--full", "--strict")
        assert stats.deflated_deltas == (1 if thin else 0)
    assert sizes[True] < 1000 < 20_000 < sizes[False]
    # Known now, it costs nothing any more; and is used for clients that have its base only.
    monkeypatch.setattr(entrycopy, "_SEARCH_S", 0)
    for age, small in ((-2, True), (-20, False)):
        has = history.objects([commits[age]])
        stream, _ = written(store, Selection({blobs[-1]: BLOB}, has), thin=True)
        assert (len(stream) < 1000) == small


def client_at(history: History, commit: bytes, path: Path) -> Path:
    """Make a repository that has what the commit reaches, and nothing else."""
    history.git("update-ref", "refs/heads/old", commit.hex())
    history.git(
        "clone", "-q", "--bare", "--no-local", "--single-branch", "--branch=old", str(history.path), str(path)
    )
    return path


def test_empty_selection(native: bool, packed: History) -> None:
    stream, stats = written(packed.store(), Selection({}, set()))
    assert stream == b"PACK\0\0\0\2\0\0\0\0" + hashlib.sha1(b"PACK\0\0\0\2\0\0\0\0").digest()
    assert stats.objects == 0


def test_loose_objects_go_out_in_pieces(new_history: Any, tmp_path: Path) -> None:
    history = new_history()
    big = random.Random(1).randbytes(3 << 20)
    oids = [
        bytes.fromhex(history.git("hash-object", "-w", "--stdin", input=data).decode())
        for data in (big, b"", b"small", b"\0" * 5_000_000)
    ]
    store = history.store()
    stream, stats = written(store, Selection(dict.fromkeys(oids, BLOB), set()))
    assert stats.deflated == 4
    assert set(entries(stream, tmp_path, SHA1)) == set(oids)


def test_an_object_that_is_gone_raises(native: bool, packed: History) -> None:
    with pytest.raises(ObjectMissing):
        written(packed.store(), Selection({b"\1" * 20: BLOB}, set()))


def test_a_loose_object_that_gets_packed_meanwhile_is_found(
    native: bool, new_history: Any, tmp_path: Path
) -> None:
    history = new_history()
    history.grow(3, unpack=True)
    store = history.store()
    selection = selected(store, wants=history.oids("--all"), haves=[])
    history.git("repack", "-adq")
    stream, _ = written(store, selection)
    assert set(entries(stream, tmp_path, SHA1)) == set(selection.objects)


def test_packs_that_git_removes_meanwhile_are_read_on(native: bool, new_history: Any, tmp_path: Path) -> None:
    history = new_history()
    history.grow(30, unpack=False)
    store = history.store()
    selection = selected(store, wants=history.oids("--all"), haves=[])

    def tick(number: int) -> None:
        history.git("repack", "-adfq")
        store.refresh()

    stream, _ = written(store, selection, tick=tick)
    assert set(entries(stream, tmp_path, SHA1)) == set(selection.objects)


def test_ticks_may_cancel(native: bool, packed: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_TICK_EVERY", 10)
    store = packed.store()

    def gone(number: int) -> None:
        raise Disconnected("gone")

    for name in ("--all", "refs/heads/c150"):
        with pytest.raises(Disconnected):
            written(store, selected(store, wants=packed.oids(name), haves=[]), tick=gone)


# -- circles, and deltas across packs


def head(kind: int, size: int) -> bytes:
    out = bytearray([kind << 4 | size & 15])
    size >>= 4
    while size:
        out[-1] |= 0x80
        out.append(size & 0x7F)
        size >>= 7
    return bytes(out)


def delta(base: bytes, result: bytes) -> bytes:
    """Copy what is common at the start, insert the rest."""
    assert len(base) < 128 > len(result)
    common = next(
        (n for n, (a, b) in enumerate(zip(base, result, strict=False)) if a != b), min(len(base), len(result))
    )
    rest = result[common:]
    return bytes((len(base), len(result), 0x90, common)) + (bytes((len(rest),)) + rest if rest else b"")


def make_pack(path: Path, contents: list[tuple[bytes, bytes | None]]) -> None:
    """Write a pack of blobs: content, and the content of the base (REF_DELTA) or None."""
    out = struct.pack(">4sII", b"PACK", 2, len(contents))
    for content, base in contents:
        if base is None:
            out += head(BLOB, len(content)) + zlib.compress(content)
        else:
            body = delta(base, content)
            out += head(REF_DELTA, len(body)) + oid_of(base) + zlib.compress(body)
    out += hashlib.sha1(out).digest()
    path.write_bytes(out)
    subprocess.run(["git", "index-pack", str(path)], check=True, capture_output=True)


def oid_of(content: bytes) -> bytes:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).digest()


class Choosing(ObjectStore):
    """Takes objects from the packs that a test says."""

    choice: dict[bytes, str]

    def locate(self, raw_oid: bytes) -> tuple[PackFile, int] | None:
        if raw_oid not in self.choice:
            return super().locate(raw_oid)
        (pack,) = (pack for pack in self.packs() if pack.path.stem == f"pack-{self.choice[raw_oid]}")
        offset = pack.offset_of(raw_oid)
        assert offset is not None
        return pack, offset


X, Y, Z = b"common part, then x" * 2, b"common part, then y" * 2, b"common part, z" * 2


@pytest.fixture
def crossed(tmp_path: Path) -> Choosing:
    """Two packs, each holding as a delta what the other holds whole."""
    folder = tmp_path / "objects/pack"
    folder.mkdir(parents=True)
    make_pack(folder / "pack-a.pack", [(Y, None), (X, Y), (Z, None)])
    make_pack(folder / "pack-b.pack", [(X, None), (Y, X)])
    return Choosing(tmp_path / "objects", SHA1)


@pytest.mark.parametrize("places", list(itertools.product("ab", repeat=2)))
@pytest.mark.parametrize("thin", [True, False])
def test_deltas_across_packs_never_form_a_circle(
    native: bool, crossed: Choosing, tmp_path: Path, places: tuple[str, str], thin: bool
) -> None:
    crossed.choice = dict(zip((oid_of(X), oid_of(Y)), places, strict=True))
    objects = dict.fromkeys((oid_of(X), oid_of(Y), oid_of(Z)), BLOB)
    stream, stats = written(crossed, Selection(objects, set()), thin=thin)
    assert set(entries(stream, tmp_path, SHA1)) == set(objects)
    # With X from a and Y from b, both are deltas of each other: one may stay so.
    assert stats.deflated == (1 if places == ("a", "b") else 0)


def test_a_base_that_is_in_no_pack_any_more_is_sent_loose(
    native: bool, crossed: Choosing, tmp_path: Path
) -> None:
    # X is a delta of Y, Y comes from a loose object, which is written whole.
    loose = tmp_path / "objects" / oid_of(Y).hex()[:2] / oid_of(Y).hex()[2:]
    loose.parent.mkdir()
    loose.write_bytes(zlib.compress(b"blob %d\0%b" % (len(Y), Y)))

    class Forgetful(Choosing):
        def locate(self, raw_oid: bytes) -> tuple[PackFile, int] | None:
            return None if raw_oid == oid_of(Y) else super().locate(raw_oid)

    store = Forgetful(tmp_path / "objects", SHA1)
    store.choice = {oid_of(X): "a"}
    objects = dict.fromkeys((oid_of(X), oid_of(Y)), BLOB)
    stream, stats = written(store, Selection(objects, set()))
    assert entries(stream, tmp_path, SHA1) == {oid_of(X): REF_DELTA, oid_of(Y): BLOB}
    assert stats.deflated == 1


def test_client_objects_are_bases_of_thin_packs_only(native: bool, crossed: Choosing, tmp_path: Path) -> None:
    crossed.choice = {oid_of(X): "a"}
    selection = Selection({oid_of(X): BLOB}, {oid_of(Y)})
    stream, stats = written(crossed, selection, thin=False)
    assert (stats.copied, stats.deflated) == (0, 1)
    assert entries(stream, tmp_path, SHA1) == {oid_of(X): BLOB}
    stream, stats = written(crossed, selection, thin=True)
    assert (stats.copied, stats.deflated) == (1, 0)
    assert oid_of(Y) in stream
