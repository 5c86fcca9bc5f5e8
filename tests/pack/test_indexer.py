"""Packs stream in: what git takes gives git's very files, what it refuses leaves nothing behind."""

import contextlib
import ctypes
import gc
import random
import resource
import shutil
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gitsmart import native as native_module
from gitsmart.errors import Disconnected, GitsmartError, LimitExceeded, PackError
from gitsmart.pack import indexer, indexer_native
from gitsmart.pack.indexer import IngestedPack, IngestLimits, ingest_pack
from gitsmart.pack.objectid import ObjectHasher
from gitsmart.pack.objects import (
    BLOB,
    COMMIT,
    SHA1,
    SHA256,
    TAG,
    TREE,
    ObjectFormat,
    to_raw,
    tree_references,
)
from gitsmart.pack.store import ObjectStore
from tests.pack.builder import OFS, Builder, append_delta, copy, delta, insert, name_of

pytestmark = pytest.mark.usefixtures("native")  # all of it with the native module, and without

FORMATS = [pytest.param(SHA1, id="sha1"), pytest.param(SHA256, id="sha256")]
GENEROUS = IngestLimits()


class Git(Protocol):
    """tests/conftest.py's fixture."""

    @property
    def environ(self) -> dict[str, str]: ...
    def __call__(self, *args: str | Path, cwd: Path | None = None, input: str | None = None) -> str: ...


# --- running


def pieces_of(data: bytes, cuts: Sequence[int] | int | None = None) -> Callable[[int], bytes]:
    """A `read` that gives `data` in pieces of a size, or cut at these places, or as asked for."""
    if isinstance(cuts, int):
        ends = list(range(cuts, len(data), cuts))
    else:
        ends = sorted(set(cuts or []))
    ends.append(len(data))
    pos = 0

    def read(limit: int) -> bytes:
        nonlocal pos
        while ends and ends[0] <= pos:
            ends.pop(0)
        piece = data[pos : min(pos + limit, ends[0] if ends else len(data))]
        pos += len(piece)
        return piece

    return read


@contextlib.contextmanager
def at_most(limit_bytes: int) -> Iterator[None]:
    """Assert that no more memory is taken at any time."""
    if native_module.available:
        # What C takes: resident memory, of which some is Python's own coming and going
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        yield
        assert resident_bytes("VmHWM") - before < limit_bytes + (6 << 20)
        return
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit_bytes
    finally:
        tracemalloc.stop()


def resident_bytes(what: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) << 10
    raise AssertionError(what)


_FAKE_HASH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@pytest.fixture
def all_named(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Give all objects one name, as a collision would."""
    kept = []

    def name(raw_oid: bytes) -> None:
        def fake(out: int, data: int, size: int, kind: int) -> int:
            ctypes.memmove(out, raw_oid, len(raw_oid))
            return 0

        kept.append(_FAKE_HASH(fake))
        address = ctypes.cast(kept[-1], ctypes.c_void_p).value
        monkeypatch.setattr(ObjectHasher, "object_id", lambda *_: raw_oid)
        monkeypatch.setattr(ObjectHasher, "file_id", lambda *_: raw_oid)
        monkeypatch.setattr(ObjectHasher, "functions", lambda _: (0, address, 0, 0))

    yield name
    kept.clear()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "quarantine"
    path.mkdir()
    return path


@pytest.fixture
def nothing(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "empty", SHA1)


def ingest(
    pack: bytes | Callable[[int], bytes],
    directory: Path,
    bases: ObjectStore,
    *,
    limits: IngestLimits = GENEROUS,
    tick: Callable[[int, int], None] = lambda done, total: None,
    detect_collisions: bool = True,
    cache_bytes: int = 1 << 20,
) -> IngestedPack:
    read = pieces_of(pack) if isinstance(pack, bytes) else pack
    return ingest_pack(
        read,
        directory,
        bases.format,
        bases=bases,
        detect_collisions=detect_collisions,
        limits=limits,
        tick=tick,
        cache_bytes=cache_bytes,
    )


def refuse(
    pack: bytes | Callable[[int], bytes],
    directory: Path,
    bases: ObjectStore,
    error: type[BaseException] = PackError,
    match: str | None = None,
    *,
    limits: IngestLimits = GENEROUS,
) -> None:
    with pytest.raises(error, match=match):
        ingest(pack, directory, bases, limits=limits)
    assert list(directory.iterdir()) == []


def git_index(pack: bytes, fmt: ObjectFormat, scratch: Path) -> tuple[bytes, bytes] | str:
    """What git makes of a pack: .idx and .rev, or its complaint."""
    scratch.mkdir(exist_ok=True)
    path = scratch / "git.pack"
    path.write_bytes(pack)
    done = subprocess.run(
        ["git", "index-pack", "--rev-index", f"--object-format={fmt.name.decode()}", str(path)],
        cwd=scratch,
        env={"PATH": "/usr/bin:/bin", "HOME": str(scratch), "LC_ALL": "C", "GIT_CONFIG_NOSYSTEM": "1"},
        capture_output=True,
    )
    result: tuple[bytes, bytes] | str
    if done.returncode:
        result = done.stderr.decode()
    else:
        result = path.with_suffix(".idx").read_bytes(), path.with_suffix(".rev").read_bytes()
    shutil.rmtree(scratch)
    return result


def written(directory: Path, result: IngestedPack) -> tuple[bytes, bytes, bytes]:
    """The files of an ingested pack, after checking that there are no others and nobody may write them."""
    stem = f"pack-{result.checksum.decode()}"
    files = [directory / (stem + suffix) for suffix in (".idx", ".pack", ".rev")]
    assert sorted(directory.iterdir()) == files
    assert all(file.stat().st_mode & 0o777 == 0o444 for file in files)
    index, pack, reverse = (file.read_bytes() for file in files)
    return pack, index, reverse


# --- packs made by git


@dataclass(frozen=True)
class Sample:
    """A repository with its packs, in several shapes."""

    path: Path
    fmt: ObjectFormat
    ofs: bytes
    ref: bytes
    undeltified: bytes
    types: dict[bytes, int]


def pack_objects(git_dir: Path, environ: dict[str, str], revs: str, *flags: str) -> bytes:
    return subprocess.run(
        ["git", "pack-objects", "--stdout", "--revs", "-q", *flags],
        cwd=git_dir,
        env=environ,
        input=revs.encode(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


@pytest.fixture(scope="module", params=FORMATS)
def sample(
    request: pytest.FixtureRequest,
    make_repo: Callable[..., Path],
    git: Git,
    tmp_path_factory: pytest.TempPathFactory,
) -> Sample:
    fmt: ObjectFormat = request.param
    path = make_repo(
        tmp_path_factory.mktemp("packs") / "repo.git", commits=60, object_format=fmt.name.decode()
    )
    listed = git("cat-file", "--batch-all-objects", "--batch-check=%(objectname) %(objecttype)", cwd=path)
    kinds = {"commit": COMMIT, "tree": TREE, "blob": BLOB, "tag": TAG}
    return Sample(
        path,
        fmt,
        ofs=pack_objects(path, git.environ, "", "--all", "--delta-base-offset", "--no-reuse-delta"),
        ref=pack_objects(path, git.environ, "", "--all", "--no-reuse-delta"),
        undeltified=pack_objects(path, git.environ, "", "--all", "--window=0", "--no-reuse-delta"),
        types={to_raw(line.split()[0].encode()): kinds[line.split()[1]] for line in listed.splitlines()},
    )


@pytest.mark.parametrize("shape", ["ofs", "ref", "undeltified"])
@pytest.mark.parametrize("cut", [None, 1, 1000])
def test_files_are_gits(sample: Sample, shape: str, cut: int | None, directory: Path, tmp_path: Path) -> None:
    pack = getattr(sample, shape)
    result = ingest(pieces_of(pack, cut), directory, ObjectStore(tmp_path / "none", sample.fmt))
    index = git_index(pack, sample.fmt, tmp_path / "git")
    assert written(directory, result) == (pack, *index)
    assert result.checksum == pack[-sample.fmt.raw_len :].hex().encode()
    assert result.objects == struct.unpack(">I", pack[8:12])[0]
    assert result.pack_bytes == len(pack)
    assert result.facts.own == sample.types
    assert result.facts.outside == {}
    assert result.facts.conflicting == {}


@pytest.mark.parametrize("detect", [True, False])
@pytest.mark.parametrize("shape", ["ofs", "ref"])
def test_no_cache_at_all(sample: Sample, shape: str, detect: bool, directory: Path, tmp_path: Path) -> None:
    """Every base is inflated again from the file."""
    pack = getattr(sample, shape)
    bases = ObjectStore(tmp_path / "none", sample.fmt)
    result = ingest(pack, directory, bases, cache_bytes=0, detect_collisions=detect)
    assert written(directory, result)[1:] == git_index(pack, sample.fmt, tmp_path / "git")


@pytest.mark.parametrize("seed", range(4))
def test_any_cut(sample: Sample, seed: int, directory: Path, tmp_path: Path) -> None:
    chance = random.Random(seed)
    pack = sample.ofs
    cuts = [chance.randrange(len(pack)) for _ in range(400)]
    cuts += [len(pack) - back for back in range(1, 40)]
    result = ingest(pieces_of(pack, cuts), directory, ObjectStore(tmp_path / "none", sample.fmt))
    assert written(directory, result)[1:] == git_index(pack, sample.fmt, tmp_path / "git")


def test_thin_pack_is_completed(sample: Sample, directory: Path, tmp_path: Path, git: Git) -> None:
    tip = git("rev-parse", "main", cwd=sample.path)
    base = git("rev-parse", "main~6", cwd=sample.path)
    old = tmp_path / "old.git"
    git("init", "-q", "--bare", f"--object-format={sample.fmt.name.decode()}", old)
    git("fetch", "-q", sample.path, f"{base}:refs/heads/main", cwd=old)
    thin = pack_objects(sample.path, git.environ, f"{tip}\n^{base}\n", "--thin", "--delta-base-offset")
    bases = ObjectStore(old / "objects", sample.fmt)
    result = ingest(thin, directory, bases)
    pack, index, reverse = written(directory, result)
    count = struct.unpack(">I", pack[8:12])[0]
    assert count > result.objects == struct.unpack(">I", thin[8:12])[0], "the sample's pack is not thin"
    assert git_index(pack, sample.fmt, tmp_path / "git") == (index, reverse)
    assert len(result.facts.own) == result.objects
    # What is outside is in the old repository, and the rest of what the new commits refer to is not outside.
    assert result.facts.outside
    assert all(bases.type_of(raw_oid) == kind for raw_oid, kind in result.facts.outside.items())
    for path in directory.iterdir():
        shutil.copy(path, old / "objects" / "pack")
    git("update-ref", "refs/heads/main", tip, cwd=old)
    assert git("fsck", "--full", "--strict", "--no-dangling", cwd=old) == ""
    # git completes it with the same objects
    same = tmp_path / "same"
    shutil.copytree(old, same)
    for path in directory.iterdir():
        (same / "objects" / "pack" / path.name).unlink()
    done = subprocess.run(
        ["git", "index-pack", "--stdin", "--fix-thin"], cwd=same, env=git.environ, input=thin, check=True,
        capture_output=True,
    )  # fmt: skip
    name = done.stdout.decode().split()[-1]
    theirs = (same / "objects" / "pack" / f"pack-{name}.idx").read_bytes()
    names = slice(1032, 1032 + count * sample.fmt.raw_len)
    assert theirs[names] == index[names]


def test_thin_pack_without_its_base(sample: Sample, directory: Path, tmp_path: Path, git: Git) -> None:
    tip = git("rev-parse", "main", cwd=sample.path)
    thin = pack_objects(sample.path, git.environ, f"{tip}\n^{tip}~6\n", "--thin", "--delta-base-offset")
    bases = ObjectStore(tmp_path / "none", sample.fmt)
    refuse(thin, directory, bases, PackError, r"pack has \d+ unresolved deltas: no base [0-9a-f]{40}")


def test_known_objects_are_compared_and_taken(sample: Sample, directory: Path) -> None:
    bases = ObjectStore(sample.path / "objects", sample.fmt)
    result = ingest(sample.ofs, directory, bases)
    assert result.facts.own == sample.types


# --- by hand: what is legal


def test_empty_pack(directory: Path, nothing: ObjectStore) -> None:
    pack = Builder().pack()
    result = ingest(pack, directory, nothing)
    assert (result.objects, result.pack_bytes) == (0, 32)
    assert result.checksum == pack[-20:].hex().encode()
    assert list(directory.iterdir()) == []


def test_version_3(directory: Path, nothing: ObjectStore) -> None:
    builder = Builder()
    builder.whole(BLOB, b"x")
    assert ingest(builder.pack(version=3), directory, nothing).objects == 1


def test_empty_object_and_empty_delta_result(directory: Path, nothing: ObjectStore, tmp_path: Path) -> None:
    builder = Builder()
    builder.ofs(builder.whole(BLOB, b"abc"), b"\x83\x80\x00\x80\x00")  # sizes 3 and 0, written long
    builder.whole(TREE, b"")
    pack = builder.pack()
    result = ingest(pieces_of(pack, 1), directory, nothing)
    assert set(result.facts.own) == {name_of(BLOB, b"abc"), name_of(BLOB, b""), name_of(TREE, b"")}
    assert written(directory, result)[1:] == git_index(pack, SHA1, tmp_path / "git")


def test_bases_that_come_later(directory: Path, nothing: ObjectStore, tmp_path: Path) -> None:
    """REF_DELTAs before their bases, OFS_DELTAs on these, a chain backwards."""
    base = b"base" * 10
    texts = [base + b"%d" % k for k in range(40)]
    names = [name_of(BLOB, text) for text in texts]
    builder = Builder()
    for k in range(39, 0, -1):
        this = builder.ref(names[k - 1], delta(len(texts[k - 1]), len(texts[k]), insert(texts[k])))
        builder.ofs(this, append_delta(texts[k], b"!"))
    builder.whole(BLOB, texts[0])
    pack = builder.pack()
    seen: list[tuple[int, int]] = []
    result = ingest(pack, directory, nothing, tick=lambda done, total: seen.append((done, total)))
    assert result.facts.own == dict.fromkeys(names + [name_of(BLOB, t + b"!") for t in texts[1:]], BLOB)
    assert written(directory, result)[1:] == git_index(pack, SHA1, tmp_path / "git")
    assert seen[-1] == (79, 79)


FIRST = b"a blob of some length, so that a delta is worth it" * 5
SECOND = FIRST + b" and more"
THIRD = SECOND + b" of it"


def store_with(git: Git, path: Path, *texts: bytes) -> ObjectStore:
    git("init", "-q", "--bare", path)
    for text in texts:
        git("hash-object", "-w", "--stdin", cwd=path, input=text.decode())
    return ObjectStore(path / "objects", SHA1)


def cut_delta(base: bytes, result: bytes) -> bytes:
    return delta(len(base), len(result), copy(0, len(result)))


@pytest.mark.parametrize("order", ["21", "12", "312", "231"])
def test_bases_of_the_repository_that_build_on_the_pack(
    directory: Path, git: Git, tmp_path: Path, order: str
) -> None:
    """Deltas in a circle can be resolved once while the objects are there otherwise, and never read again."""
    store = store_with(git, tmp_path / "has.git", FIRST, SECOND, THIRD)
    texts = {"1": FIRST, "2": SECOND, "3": THIRD}
    build = Builder()
    for text, base in zip(order, order[1:] + order[0], strict=True):
        result, source = texts[text], texts[base]
        is_longer = len(result) > len(source)
        build.ref(
            name_of(BLOB, source),
            append_delta(source, result[len(source) :]) if is_longer else cut_delta(source, result),
        )
    with pytest.raises(PackError, match="delta cycle"):
        ingest(build.pack(), directory, store)
    assert list(directory.iterdir()) == []


def test_base_of_the_repository_that_comes_later(directory: Path, git: Git, tmp_path: Path) -> None:
    """git: t5309, "index-pack works with thin pack A->B->C with B on disk"."""
    store = store_with(git, tmp_path / "has.git", FIRST, SECOND)
    build = Builder()
    build.ref(name_of(BLOB, SECOND), append_delta(SECOND, b" of it"))
    build.ref(name_of(BLOB, FIRST), append_delta(FIRST, b" and more"))
    with pytest.raises(LimitExceeded, match="deeper"):
        ingest(build.pack(), directory, store, limits=IngestLimits(delta_depth=1))
    done = ingest(build.pack(), directory, store, limits=IngestLimits(delta_depth=2))
    assert done.facts.own == {name_of(BLOB, SECOND): BLOB, name_of(BLOB, THIRD): BLOB}
    git("verify-pack", directory / f"pack-{done.checksum.decode()}.idx")


@pytest.mark.parametrize("first_is_whole", [True, False])
def test_base_that_is_there_twice(
    directory: Path, git: Git, tmp_path: Path, nothing: ObjectStore, first_is_whole: bool
) -> None:
    """Readers may take the one that is a delta, in a circle; git index-pack refuses such packs."""
    build = Builder()
    if first_is_whole:
        build.whole(BLOB, FIRST)
    build.ref(name_of(BLOB, FIRST), append_delta(FIRST, b" and more"))
    build.ref(name_of(BLOB, SECOND), cut_delta(SECOND, FIRST))
    if not first_is_whole:
        build.whole(BLOB, FIRST)
    with pytest.raises(PackError, match="is in the pack twice"):
        ingest(build.pack(), directory, nothing)
    assert list(directory.iterdir()) == []


def test_same_object_twice(directory: Path, nothing: ObjectStore, tmp_path: Path) -> None:
    """git takes such packs (but not with `--strict`), and so do we."""
    builder = Builder()
    builder.whole(BLOB, b"abc")
    builder.whole(BLOB, b"abd")
    builder.whole(BLOB, b"abc")
    result = ingest(builder.pack(), directory, nothing)
    assert result.objects == 3
    assert len(result.facts.own) == 2
    theirs = git_index(builder.pack(), SHA1, tmp_path / "git")
    assert len(theirs[0]) == len(written(directory, result)[1])


def test_thin_base_that_also_comes(directory: Path, tmp_path: Path, git: Git) -> None:
    """A base that the repository has and the pack brings later is not appended."""
    git("init", "-q", "--bare", tmp_path / "r.git")
    git("hash-object", "-w", "--stdin", cwd=tmp_path / "r.git", input="known\n")
    bases = ObjectStore(tmp_path / "r.git" / "objects", SHA1)
    builder = Builder()
    builder.ref(name_of(BLOB, b"known\n"), append_delta(b"known\n", b"more"))
    thin = builder.pack()
    assert struct.unpack(">I", written(directory, ingest(thin, directory, bases))[0][8:12]) == (2,)
    for path in directory.iterdir():
        path.unlink()
    builder.whole(BLOB, b"known\n")
    pack = builder.pack()
    assert written(directory, ingest(pack, directory, bases))[0] == pack


# --- facts


def test_same_object_from_two_thin_bases(
    directory: Path, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both bases are needed to compare the two, and neither stays in the cache."""
    path = tmp_path / "two.git"
    git("init", "-q", "--bare", path)
    builder, same = Builder(), "same " * 20_000
    for first in "ab":
        base = git("hash-object", "-w", "--stdin", cwd=path, input=first + same).strip()
        builder.ref(bytes.fromhex(base), delta(100_001, 100_000, copy(1, 100_000)))
    reads = 0
    read = ObjectStore.read

    def counted(self: ObjectStore, *args: Any, **more: Any) -> tuple[int, bytes]:
        nonlocal reads
        reads += 1
        assert reads < 20, "it goes round and round"
        return read(self, *args, **more)

    monkeypatch.setattr(ObjectStore, "read", counted)
    store = ObjectStore(path / "objects", SHA1)
    result = ingest_pack(
        pieces_of(builder.pack()),
        directory,
        SHA1,
        bases=store,
        limits=GENEROUS,
        tick=lambda done, total: None,
        cache_bytes=1,
    )
    assert dict(result.facts.own) == {name_of(BLOB, same.encode()): BLOB}


def test_facts(directory: Path, nothing: ObjectStore) -> None:
    blob, tree, parent, link, subtree = (bytes([k]) * 20 for k in range(1, 6))
    here = b"blob of the pack"
    data = (
        b"100644 a\0" + blob + b"100644 b\0" + name_of(BLOB, here) + b"40000 c\0" + subtree
        + b"160000 d\0" + link + b"120000 e\0" + blob
    )  # fmt: skip
    commit = b"tree %b\nparent %b\n" % (name_of(TREE, data).hex().encode(), parent.hex().encode())
    second = b"tree %b\nparent %b\n" % (tree.hex().encode(), name_of(COMMIT, commit).hex().encode())
    tag = b"object %b\ntype commit\ntag t\n" % parent.hex().encode()
    builder = Builder()
    for kind, text in [(TAG, tag), (COMMIT, second), (COMMIT, commit), (TREE, data), (BLOB, here)]:
        builder.whole(kind, text)
    facts = ingest(builder.pack(), directory, nothing).facts
    assert facts.own == {
        name_of(TAG, tag): TAG,
        name_of(COMMIT, second): COMMIT,
        name_of(COMMIT, commit): COMMIT,
        name_of(TREE, data): TREE,
        name_of(BLOB, here): BLOB,
    }
    assert facts.outside == {blob: BLOB, subtree: TREE, tree: TREE, parent: COMMIT}
    assert facts.conflicting == {}


def test_conflicting_types(directory: Path, nothing: ObjectStore) -> None:
    blob = name_of(BLOB, b"x")
    unknown = b"\x07" * 20
    tree = b"40000 a\0" + blob + b"40000 b\0" + unknown + b"100644 c\0" + unknown
    tag = b"object %b\ntype commit\ntag t\n" % blob.hex().encode()
    builder = Builder()
    for kind, text in [(TREE, tree), (BLOB, b"x"), (TAG, tag)]:
        builder.whole(kind, text)
    facts = ingest(builder.pack(), directory, nothing).facts
    assert set(facts.conflicting) == {blob, unknown}
    assert set(facts.outside) == {unknown}


@pytest.mark.parametrize(
    ("kind", "data"),
    [(COMMIT, b"tree zzz\n"), (TREE, b"junk"), (TAG, b"object 1\n"), (COMMIT, b""), (TAG, b"")],
)
def test_objects_that_cant_be_read(kind: int, data: bytes, directory: Path, nothing: ObjectStore) -> None:
    builder = Builder()
    builder.whole(kind, data)
    refuse(builder.pack(), directory, nothing, PackError, "bad object " + name_of(kind, data).hex())


# --- by hand: what is not


def simple() -> Builder:
    builder = Builder()
    base = builder.whole(BLOB, b"hello")
    builder.ofs(base, append_delta(b"hello", b" world"))
    return builder


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


MALFORMED = [
    pytest.param(lambda: b"", "eof before pack header was fully read", id="nothing"),
    pytest.param(lambda: b"PACK", "eof before pack header was fully read", id="header cut"),
    pytest.param(lambda: simple().pack(magic=b"PICK"), "signature", id="magic"),
    pytest.param(lambda: simple().pack(version=1), "version unsupported", id="version 1"),
    pytest.param(lambda: simple().pack(version=4), "version unsupported", id="version 4"),
    pytest.param(lambda: simple().pack(count=1), "checksum mismatch", id="one more than declared"),
    pytest.param(lambda: simple().pack(count=3), None, id="one less than declared"),
    pytest.param(lambda: simple().pack(count=0), "checksum mismatch", id="two more than declared"),
    pytest.param(lambda: simple().pack() + b"x", "junk", id="a byte behind"),
    pytest.param(lambda: simple().pack() + bytes(100_000), "junk", id="much behind"),
    pytest.param(lambda: simple().pack() + simple().pack(), "junk", id="another pack behind"),
    pytest.param(lambda: simple().pack(more=b"x"), "checksum mismatch", id="a byte between"),
    pytest.param(lambda: simple().pack()[:-1], "early EOF", id="checksum cut"),
    pytest.param(lambda: simple().pack()[:-20], "early EOF", id="no checksum"),
    pytest.param(lambda: simple().pack()[:-20] + bytes(20), "checksum mismatch", id="wrong checksum"),
    pytest.param(lambda: Builder().pack()[:-20] + bytes(20), "checksum mismatch", id="empty, wrong checksum"),
    pytest.param(lambda: Builder().pack() + b"\0", "junk", id="empty, byte behind"),
]


@pytest.mark.parametrize("cut", [None, 1])
@pytest.mark.parametrize(("make", "match"), MALFORMED)
def test_malformed(
    make: Callable[[], bytes], match: str | None, cut: int | None, directory: Path, nothing: ObjectStore
) -> None:
    pack = make()
    refuse(pieces_of(pack, cut if len(pack) < 1000 else None), directory, nothing, PackError, match)


def bad_entries() -> list[tuple[str, Callable[[Builder], object], str]]:
    hello = b"hello"

    def on_hello(body: bytes) -> Callable[[Builder], object]:
        return lambda b: b.ofs(b.whole(BLOB, hello), body)

    return [
        ("type 0", lambda b: b.whole(0, b"x"), "unknown object type 0"),
        ("type 5", lambda b: b.whole(5, b"x"), "unknown object type 5"),
        ("longer than declared", lambda b: b.whole(BLOB, b"xyz", size=2), "inflated size"),
        ("shorter than declared", lambda b: b.whole(BLOB, b"xyz", size=4), "inflated size"),
        ("declared empty", lambda b: b.whole(BLOB, b"xyz", size=0), "inflated size"),
        ("no zlib stream", lambda b: b.whole(BLOB, b"xyz", stream=b"not zlib at all"), "inflate"),
        ("adler wrong", lambda b: b.whole(BLOB, b"x", stream=zlib.compress(b"x")[:-1] + b"?"), "inflate"),
        ("zlib header", lambda b: b.whole(BLOB, b"x", stream=b"\x79" + zlib.compress(b"x")[1:]), "inflate"),
        ("raw deflate", lambda b: b.whole(BLOB, b"x" * 30, stream=zlib.compress(b"x" * 30)[2:-4]), "inflate"),
        ("size of 70 bits", lambda b: b.raw(b"\xb1" + b"\xff" * 9 + b"\x7f"), "size too large"),
        ("OFS at itself", lambda b: b.ofs(12, delta(0, 0)), "out of bound"),
        ("OFS before the first", lambda b: (b.whole(BLOB, hello), b.ofs(11, delta(5, 0))), "out of bound"),
        ("OFS before the pack", lambda b: (b.whole(BLOB, hello), b.ofs(-1000, delta(5, 0))), "out of bound"),
        ("OFS into an object", lambda b: (b.whole(BLOB, hello), b.ofs(14, delta(5, 0))), "is no object"),
        ("endless OFS", lambda b: b.raw(b"\x60" + b"\xff" * 40), "out of bound"),
        ("REF to nothing", lambda b: b.ref(b"\x09" * 20, delta(5, 0)), "1 unresolved deltas: no base 0909"),
        ("REF at itself", lambda b: b.ref(name_of(BLOB, hello), delta(5, 5, copy(0, 5))), "unresolved"),
        ("base larger", on_hello(delta(4, 4, copy(0, 4))), "base is of another size"),
        ("base smaller", on_hello(delta(6, 5, copy(0, 5))), "base is of another size"),
        ("copy beyond the base", on_hello(delta(5, 6, copy(0, 6))), "failed to apply delta"),
        ("copy from beyond", on_hello(delta(5, 1, copy(5, 1))), "failed to apply delta"),
        ("copy far beyond", on_hello(delta(5, 1, copy(0xFFFFFFFF, 1))), "failed to apply delta"),
        ("reserved instruction", on_hello(delta(5, 5, copy(0, 5), b"\0")), "bad delta|failed to apply delta"),
        ("result longer", on_hello(delta(5, 4, copy(0, 5))), "failed to apply delta"),
        ("result shorter", on_hello(delta(5, 6, copy(0, 5))), "failed to apply delta"),
        ("insertion cut", on_hello(delta(5, 9, b"\x09abc")), "bad delta|failed to apply delta"),
        ("copy cut", on_hello(delta(5, 5, b"\xff\0\0")), "bad delta|failed to apply delta"),
        ("empty delta", on_hello(b""), "bad delta"),
        ("delta of three bytes", on_hello(delta(5, 0) + b"\x80"), "bad delta"),
        ("delta of one number", on_hello(b"\x85\x80\x80\x00"), "bad delta"),
        ("delta size of 70 bits", on_hello(b"\xff" * 9 + b"\x7f\x00"), "bad delta"),
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [None, 1])
@pytest.mark.parametrize(("build", "match"), [pytest.param(b, m, id=i) for i, b, m in bad_entries()])
def test_bad_entry(
    build: Callable[[Builder], object],
    match: str,
    cut: int | None,
    directory: Path,
    nothing: ObjectStore,
    tmp_path: Path,
) -> None:
    builder = Builder()
    build(builder)
    pack = builder.pack()
    refuse(pieces_of(pack, cut), directory, nothing, PackError, match)
    assert isinstance(git_index(pack, SHA1, tmp_path / "git"), str), "git takes it"


def test_ref_delta_cycles(directory: Path, nothing: ObjectStore) -> None:
    one, two = b"\x01" * 20, b"\x02" * 20
    builder = Builder()
    builder.whole(BLOB, b"innocent")
    last = builder.ref(one, delta(1, 1, insert(b"x")))
    builder.ref(two, delta(1, 1, insert(b"y")))
    builder.ofs(last, delta(1, 1, insert(b"z")))
    refuse(builder.pack(), directory, nothing, PackError, "pack has 3 unresolved deltas: no base 01")


def test_truncated_anywhere(directory: Path, nothing: ObjectStore) -> None:
    pack = simple().pack()
    for length in range(len(pack)):
        refuse(pack[:length], directory, nothing, PackError)


def test_every_bit_flipped(directory: Path, nothing: ObjectStore) -> None:
    pack = simple().pack()
    for place in range(8 * len(pack)):
        flipped = bytearray(pack)
        flipped[place // 8] ^= 1 << place % 8
        refuse(bytes(flipped), directory, nothing, GitsmartError)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_body_with_a_right_checksum(
    data: st.DataObject, directory: Path, nothing: ObjectStore, tmp_path: Path
) -> None:
    """Both we and git take a pack, with the same index, or neither does."""
    base = noise(300)
    builder = Builder()
    first = builder.whole(BLOB, base)
    second = builder.ofs(first, append_delta(base, b"second"))
    builder.ref(name_of(BLOB, base), delta(300, 20, copy(10, 10), insert(b"0123456789")))
    builder.ofs(second, delta(306, 3, insert(b"end")))
    body = builder.body
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(
            st.one_of(st.sampled_from(builder.offsets).map(lambda o: o - 12), st.integers(0, len(body) - 1))
        )
        body[min(place + data.draw(st.integers(0, 8)), len(body) - 1)] = data.draw(st.integers(0, 255))
    pack = builder.pack()
    theirs = git_index(pack, SHA1, tmp_path / "git")
    try:
        result = ingest(pack, directory, nothing)
    except GitsmartError:
        assert list(directory.iterdir()) == []
        assert isinstance(theirs, str)
    else:
        assert written(directory, result)[1:] == theirs
        for path in directory.iterdir():
            path.unlink()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_odd_packs(data: st.DataObject, directory: Path, nothing: ObjectStore, tmp_path: Path) -> None:
    """OFS and REF deltas in any order, deep chains, the same object again: the index is git's."""
    chance = data.draw(st.randoms(use_true_random=False))
    texts = [chance.randbytes(chance.randrange(40)) + b"%d" % k for k in range(chance.randrange(1, 25))]
    order = list(range(len(texts)))
    parents = [chance.randrange(-1, k) for k in order]
    chance.shuffle(order)
    builder = Builder()
    placed: dict[int, int] = {}
    for k in order:
        parent = parents[k]
        if parent < 0:
            placed[k] = builder.whole(BLOB, texts[k])
            continue
        base, text = texts[parent], texts[k]
        keep = chance.randrange(len(base) + 1)
        instructions = ([copy(0, keep)] if keep else []) + [insert(text)]
        texts_delta = delta(len(base), keep + len(text), *instructions)
        texts[k] = base[:keep] + text
        if parent in placed and chance.random() < 0.6:
            placed[k] = builder.ofs(placed[parent], texts_delta)
        else:
            placed[k] = builder.ref(name_of(BLOB, base), texts_delta)
    pack = builder.pack()
    cuts = [chance.randrange(len(pack)) for _ in range(chance.randrange(5))]
    theirs = git_index(pack, SHA1, tmp_path / "git")
    try:
        result = ingest(
            pieces_of(pack, cuts), directory, nothing, cache_bytes=chance.choice([0, 100, 1 << 20])
        )
    except PackError:
        # A child that was placed before its parent was made of another text: no such base.
        assert isinstance(theirs, str)
    else:
        assert isinstance(theirs, tuple)
        assert written(directory, result)[1:] == theirs
        for path in directory.iterdir():
            path.unlink()


# --- limits


def test_pack_bytes_limit(directory: Path, nothing: ObjectStore) -> None:
    pack = simple().pack()
    limits = IngestLimits(pack_bytes=len(pack))
    ingest(pack, directory, nothing, limits=limits)
    for path in directory.iterdir():
        path.unlink()
    limits = IngestLimits(pack_bytes=len(pack) - 1)
    refuse(pack, directory, nothing, LimitExceeded, "maximum allowed size", limits=limits)


def test_object_count_limit(directory: Path, nothing: ObjectStore) -> None:
    pack = Builder().pack(count=4_000_000_000)
    refuse(pack, directory, nothing, LimitExceeded, "4000000000 objects exceeds")


def test_a_claimed_count_costs_nothing(directory: Path, nothing: ObjectStore) -> None:
    pack = simple().pack(count=4_000_000_000)
    with at_most(2_000_000):
        refuse(pack, directory, nothing, PackError, limits=IngestLimits(objects=5_000_000_000))


@pytest.mark.parametrize("size", [(4 << 30) + 1, 1 << 31, (1 << 60) + 5, (1 << 63) - 1])
@pytest.mark.parametrize("kind", [BLOB, TREE, COMMIT, TAG, OFS])
def test_claimed_sizes_cost_nothing(kind: int, size: int, directory: Path, nothing: ObjectStore) -> None:
    if kind == BLOB and size <= GENEROUS.object_bytes:
        pytest.skip("within the limit")
    builder = Builder()
    first = builder.whole(BLOB, b"base")
    if kind == OFS:
        builder.ofs(first, b"x", size=size)
    else:
        builder.whole(kind, b"x", size=size)
    pack = builder.pack()
    with at_most(2_000_000):
        refuse(pack, directory, nothing, LimitExceeded, "exceeds the limit")


@pytest.mark.parametrize("kind", [BLOB, OFS])
def test_claimed_sizes_within_the_limit_cost_nothing(
    kind: int, directory: Path, nothing: ObjectStore
) -> None:
    builder = Builder()
    first = builder.whole(BLOB, b"base")
    if kind == OFS:
        builder.ofs(first, delta(4, 500 << 20, copy(0, 4)))
    else:
        builder.whole(kind, b"x", size=1 << 31)
    pack = builder.pack()
    with at_most(2_000_000):
        refuse(pack, directory, nothing, PackError)


@pytest.mark.parametrize(
    ("base_size", "result_size"), [(4, 1 << 40), (1 << 40, 4), (4, (512 << 20) + 1), (1 << 62, 1 << 62)]
)
def test_delta_claims(base_size: int, result_size: int, directory: Path, nothing: ObjectStore) -> None:
    builder = Builder()
    builder.ofs(builder.whole(BLOB, b"base"), delta(base_size, result_size, copy(0, 4)))
    refuse(builder.pack(), directory, nothing, GitsmartError)


def test_bombs(directory: Path, nothing: ObjectStore) -> None:
    """An entry, and a delta's result, beyond the limit: refused before they are unfolded."""
    limits = IngestLimits(object_bytes=1 << 20, delta_bytes=1 << 20)
    builder = Builder()
    builder.whole(BLOB, bytes(1 << 21))
    zip_bomb = builder.pack()
    builder = Builder()
    base = builder.whole(BLOB, bytes(1 << 16))
    builder.ofs(base, delta(1 << 16, 1 << 24, *[copy(0, 1 << 16)] * 256))
    delta_bomb = builder.pack()
    for bomb in (zip_bomb, delta_bomb):
        with at_most(2_500_000):
            refuse(bomb, directory, nothing, LimitExceeded, limits=limits)


def test_structures_have_a_limit_of_their_own(directory: Path, nothing: ObjectStore) -> None:
    limits = IngestLimits(structure_bytes=1000)
    tree = b"".join(b"100644 %02d\0" % k + bytes(20) for k in range(50))
    builder = Builder()
    builder.whole(TREE, tree)
    refuse(builder.pack(), directory, nothing, LimitExceeded, limits=limits)
    builder = Builder()
    base = builder.whole(TREE, tree[:900])
    builder.ofs(base, delta(900, 1200, copy(0, 600), copy(0, 600)))
    refuse(builder.pack(), directory, nothing, LimitExceeded, limits=limits)


@pytest.mark.parametrize("backwards", [False, True])
def test_delta_depth_limit(backwards: bool, directory: Path, nothing: ObjectStore, tmp_path: Path) -> None:
    texts = [b"%d" % k for k in range(12)]
    builder = Builder()
    if backwards:
        for k in range(11, 0, -1):
            base, text = texts[k - 1], texts[k]
            builder.ref(name_of(BLOB, base), delta(len(base), len(text), insert(text)))
        builder.whole(BLOB, texts[0])
    else:
        last = builder.whole(BLOB, texts[0])
        for base, text in pairwise(texts):
            last = builder.ofs(last, delta(len(base), len(text), insert(text)))
    pack = builder.pack()
    refuse(pack, directory, nothing, LimitExceeded, "deeper than 10", limits=IngestLimits(delta_depth=10))
    result = ingest(pack, directory, nothing, limits=IngestLimits(delta_depth=11))
    assert written(directory, result)[1:] == git_index(pack, SHA1, tmp_path / "git")


@pytest.mark.parametrize("kind", ["ofs", "ref"])
def test_interleaved_deep_chains_cost_no_more_than_their_objects(
    kind: str, directory: Path, nothing: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty chains, link by link in turn, and a cache for ten objects: no link's chain is built again."""
    chains, depth = 40, 60
    builder = Builder()
    texts = [noise(900 + k) for k in range(chains)]
    places = [builder.whole(BLOB, text) for text in texts]
    for link in range(depth):
        for k in range(chains):
            change = append_delta(texts[k], b"%d" % link)
            if kind == "ofs":
                places[k] = builder.ofs(places[k], change)
            else:
                builder.ref(name_of(BLOB, texts[k]), change)
            texts[k] += b"%d" % link
    pack = builder.pack()
    built = 0
    entry_data, close = indexer.Ingest._entry_data, indexer_native.NativeIngest.close

    def counting(self: indexer.Ingest, index: int) -> bytes:
        nonlocal built
        built += 1
        return entry_data(self, index)

    def closing(self: indexer_native.NativeIngest) -> None:
        nonlocal built
        built += self._table.state().rebuilt_entries
        close(self)

    monkeypatch.setattr(indexer.Ingest, "_entry_data", counting)
    monkeypatch.setattr(indexer_native.NativeIngest, "close", closing)
    result = ingest(pack, directory, nothing, cache_bytes=10_000)
    assert written(directory, result)[1:] == git_index(pack, SHA1, tmp_path / "git")
    assert built < 2 * chains * depth


def test_rebuilding_has_a_limit(
    directory: Path, nothing: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "REBUILT_BYTES", 0)
    monkeypatch.setattr(indexer, "REBUILT_TIMES", 0)
    texts = [noise(900 + k) for k in range(20)]
    builder = Builder()
    places = [builder.whole(BLOB, text) for text in texts]
    places = [builder.ofs(place, append_delta(text, b"1")) for place, text in zip(places, texts, strict=True)]
    for place, text in zip(places, texts, strict=True):
        builder.ofs(place, append_delta(text + b"1", b"2"))
    with pytest.raises(LimitExceeded, match="take too long"):
        ingest(pieces_of(builder.pack(), 300), directory, nothing, cache_bytes=2000)
    assert list(directory.iterdir()) == []


# --- large objects


@pytest.mark.parametrize("detect", [True, False])
@pytest.mark.parametrize("cut", [None, 777])
def test_huge_blobs_are_not_held(
    detect: bool, cut: int | None, directory: Path, nothing: ObjectStore, tmp_path: Path
) -> None:
    blobs = [bytes(48 << 20), noise(3 << 20), b"\xab" * (1 << 20)]
    builder = Builder()
    for blob in blobs:
        builder.whole(BLOB, blob)
    pack = builder.pack()
    names = [name_of(BLOB, blob) for blob in blobs]
    read = pieces_of(pack, cut)
    del blobs
    with at_most(3_000_000):
        result = ingest(read, directory, nothing, detect_collisions=detect)
    assert set(result.facts.own) == set(names)
    assert written(directory, result)[1:] == git_index(pack, SHA1, tmp_path / "git")


def test_delta_on_a_huge_blob(directory: Path, nothing: ObjectStore, tmp_path: Path) -> None:
    base = noise(1 << 21)
    builder = Builder()
    first = builder.whole(BLOB, base)
    builder.ofs(first, append_delta(base, b"more"))
    builder.ref(name_of(BLOB, base), append_delta(base, b"other"))
    pack = builder.pack()
    result = ingest(pack, directory, nothing)
    assert written(directory, result)[1:] == git_index(pack, SHA1, tmp_path / "git")


# --- collisions with what is there


@pytest.mark.parametrize("size", [20, 3 << 20])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("differs", [False, True])
def test_objects_that_are_there_must_be_the_same(
    size: int,
    packed: bool,
    differs: bool,
    directory: Path,
    tmp_path: Path,
    git: Git,
    all_named: Callable[[bytes], None],
) -> None:
    repo = tmp_path / "r.git"
    git("init", "-q", "--bare", repo)
    (tmp_path / "f").write_bytes(noise(size))
    git("hash-object", "-w", tmp_path / "f", cwd=repo)
    if packed:
        git("-c", "core.bigFileThreshold=1g", "repack", "-adk", "-q", cwd=repo)
    bases = ObjectStore(repo / "objects", SHA1)
    ours = noise(size)
    if differs:
        # No two such objects can be had: so let ours claim the other's name.
        ours = ours[:-1] + bytes([ours[-1] ^ 1])
        theirs = name_of(BLOB, noise(size))
        all_named(theirs)
    builder = Builder()
    builder.whole(BLOB, ours)
    if differs:
        refuse(builder.pack(), directory, bases, PackError, "SHA1 COLLISION FOUND WITH " + theirs.hex())
    else:
        assert ingest(builder.pack(), directory, bases).objects == 1


def test_collision_within_the_pack(
    directory: Path, nothing: ObjectStore, all_named: Callable[[bytes], None]
) -> None:
    all_named(b"\x01" * 20)
    builder = Builder()
    builder.whole(BLOB, b"one")
    builder.whole(BLOB, b"two")
    refuse(builder.pack(), directory, nothing, PackError, "SHA1 COLLISION FOUND")
    builder = Builder()
    builder.whole(BLOB, b"")
    builder.whole(TREE, b"")
    refuse(builder.pack(), directory, nothing, PackError, "SHA1 COLLISION FOUND")


# --- failures from outside


@pytest.mark.parametrize("error", [Disconnected, OSError, KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("after", [0, 1, 5, 50])
def test_a_failing_read_leaves_nothing(
    sample: Sample, error: type[BaseException], after: int, directory: Path, tmp_path: Path
) -> None:
    read = pieces_of(sample.ofs, 150)
    calls = 0

    def failing(limit: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error("gone")
        return read(limit)

    refuse(failing, directory, ObjectStore(tmp_path / "none", sample.fmt), error)


@pytest.mark.parametrize("after", range(3))
def test_a_failing_tick_leaves_nothing(sample: Sample, after: int, directory: Path, tmp_path: Path) -> None:
    calls = 0

    def failing(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Disconnected("gone")

    with pytest.raises(Disconnected):
        ingest(sample.ofs, directory, ObjectStore(tmp_path / "none", sample.fmt), tick=failing)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("name", ["index_pieces", "reverse_index_pieces", "order_by_name"])
def test_a_full_disk_leaves_nothing(
    name: str, directory: Path, nothing: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(indexer, name, full)
    refuse(simple().pack(), directory, nothing, OSError, "No space left")


def test_no_room_for_the_tables(
    native: bool, directory: Path, nothing: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that can't grow is an error, not a signal at the first touch of a page."""
    if not native:
        pytest.skip("tables are in a file with the native module alone")
    monkeypatch.setattr(indexer_native, "_FILED_OBJECTS", 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        refuse(simple().pack(), directory, nothing, OSError, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_failing_rename_leaves_nothing(
    fails: int, directory: Path, nothing: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    calls = 0

    def failing(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == fails:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    refuse(simple().pack(), directory, nothing, OSError, "Input/output")


def test_nothing_stays_open_and_no_garbage_stays(sample: Sample, directory: Path, tmp_path: Path) -> None:
    bases = ObjectStore(tmp_path / "none", sample.fmt)
    ingest(sample.ofs, directory, bases)
    before = set(Path("/proc/self/fd").iterdir())
    gc.collect()
    gc.disable()
    try:
        ingest(sample.ofs, directory, bases)
        with pytest.raises(PackError):
            ingest(sample.ofs[:-1], directory, bases)
        found = [
            thing
            for thing in gc.get_objects()
            if type(thing).__name__ in {"Ingest", "NativeIngest", "_BaseCache"}
        ]
        assert found == []
    finally:
        gc.enable()
    assert len(set(Path("/proc/self/fd").iterdir())) <= len(before)


def test_progress_is_reported(sample: Sample, directory: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = ingest(
        sample.ofs,
        directory,
        ObjectStore(tmp_path / "none", sample.fmt),
        tick=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {result.objects}
    assert seen[-1][0] == result.objects
    assert max(b - a for (a, _), (b, _) in pairwise(seen)) <= 300


def test_tree_references_of_facts_are_complete(sample: Sample, directory: Path, tmp_path: Path) -> None:
    """Sent without its blobs, the pack's `outside` is exactly the blobs that its trees name."""
    store = ObjectStore(sample.path / "objects", sample.fmt)
    builder = Builder(sample.fmt)
    wanted: set[bytes] = set()
    for raw_oid, kind in sample.types.items():
        if kind == TREE:
            data = store.read(raw_oid)[1]
            builder.whole(TREE, data)
            wanted |= tree_references(data, sample.fmt.raw_len)[1]
    facts = ingest(builder.pack(), directory, ObjectStore(tmp_path / "none", sample.fmt)).facts
    assert facts.outside == dict.fromkeys(wanted, BLOB)
