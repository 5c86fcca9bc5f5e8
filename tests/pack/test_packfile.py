"""Packs and indexes of every version are read as git reads them; broken ones raise PackError, and nothing
else."""

import contextlib
import gc
import os
import random
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gitsmart import native
from gitsmart.errors import LimitExceeded, PackError
from gitsmart.native.entries import Entries
from gitsmart.pack import mapping, packfile, packorder
from gitsmart.pack.mapping import map_checked, map_file
from gitsmart.pack.objects import BLOB, SHA1, TYPE_NAMES
from gitsmart.pack.packfile import OFS_DELTA, BaseCache, PackFile

History = Any  # conftest.py's


def copy_pack(history: History, folder: Path, *index_options: str) -> PackFile:
    """Copy a history's only pack, index it anew, and open it."""
    (source,) = (history.path / "objects/pack").glob("*.pack")
    path = folder / "pack-1.pack"
    shutil.copyfile(source, path)
    subprocess.run(
        ["git", "index-pack", f"--object-format={history.format.name.decode()}", *index_options, str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    return PackFile(path, history.format)


@pytest.fixture(scope="session")
def packed256(new_history: Any) -> History:
    from gitsmart.pack.objects import SHA256

    history = new_history(SHA256, seed=4)
    history.grow(40, unpack=False)
    history.git("repack", "-adfq")
    return history


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("packed", (), id="v2"),
        pytest.param("packed", ("--rev-index",), id="v2-rev"),
        pytest.param("packed", ("--index-version=1",), id="v1"),
        pytest.param("packed", ("--index-version=2,0x40",), id="v2-64-bit-offsets"),
        pytest.param("packed", ("--index-version=2,0x40", "--rev-index"), id="v2-64-bit-offsets-rev"),
        pytest.param("packed256", (), id="sha256"),
        pytest.param("packed256", ("--rev-index",), id="sha256-rev"),
    ],
)
@pytest.mark.parametrize("ranks", [0, 10**9], ids=["table", "mapped"])
def test_as_git_reads_it(
    name: str,
    options: tuple[str, ...],
    ranks: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packfile, "_RANKS", ranks)
    history = request.getfixturevalue(name)
    pack = copy_pack(history, tmp_path, *options)
    assert (tmp_path / "pack-1.rev").exists() == ("--rev-index" in options)
    shown = subprocess.run(
        ["git", "show-index", f"--object-format={history.format.name.decode()}"],
        input=(tmp_path / "pack-1.idx").read_bytes(), capture_output=True, check=True,
    ).stdout  # fmt: skip
    rows = sorted((int(row.split()[0]), bytes.fromhex(row.split()[1].decode())) for row in shown.splitlines())
    assert pack.count == len(rows)
    stops = [*(offset for offset, _ in rows[1:]), pack.end]
    sizes = history.git(
        "cat-file",
        "--batch-check=%(objecttype) %(objectsize)",
        input=b"\n".join(oid.hex().encode() for _, oid in rows),
    ).splitlines()
    for (offset, oid), stop, line in zip(rows, stops, sizes, strict=True):
        assert pack.offset_of(oid) == offset
        assert oid in pack
        assert pack.oid_at(offset) == oid
        assert pack.next_offset(offset) == stop
        kind, size = pack.size_at(offset)
        assert b"%b %d" % (TYPE_NAMES[kind], size) == line
        assert pack.type_at(offset) == kind
        found, data = pack.read_at(offset)
        hasher = history.format.new_hash()
        hasher.update(b"%b %d\0" % (TYPE_NAMES[found], len(data)) + data)
        assert hasher.digest() == oid
        assert pack.next_offset(offset + 1) == stop
        with pytest.raises(PackError, match="no entry"):
            pack.oid_at(offset + 1)
    assert list(pack.by_offset()[0]) == [offset for offset, _ in rows]
    wanted = {oid for _, oid in rows[::3]}
    assert {pack.name_at(position) for position in pack.positions_in(wanted)} == wanted


@pytest.mark.usefixtures("native")
def test_misses(packed: History) -> None:
    (pack,) = packed.store().packs()
    rng = random.Random(1)
    for _ in range(2000):
        assert pack.offset_of(rng.randbytes(20)) is None
    for odd in (b"", b"\0", b"\0" * 20, b"\xff" * 20, b"\xff" * 32):
        assert pack.offset_of(odd) is None
    name = pack.name_at(5)
    for near in (name[:19] + bytes([name[19] ^ 1]), name[1:] + name[:1]):
        assert pack.offset_of(near) is None


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("clustered", [False, True], ids=["spread", "clustered"])
def test_lookup_of_many_names(tmp_path: Path, clustered: bool) -> None:
    # Made by hand, so as to have many names, and names that are unlike hashes; entries are one empty blob
    # each.
    rng = random.Random(2)
    first = b"\7" if clustered else b""
    middle = b"\0" * 10 if clustered else b""
    names = sorted({first + middle + rng.randbytes(20 - len(first) - len(middle)) for _ in range(8000)})
    names += [] if clustered else [b"\xff" * 20]
    entry = bytes([BLOB << 4]) + zlib.compress(b"")
    body = struct.pack(">4sII", b"PACK", 2, len(names)) + entry * len(names)
    trailer = b"t" * 20
    fan = b"".join(struct.pack(">I", sum(name[0] <= n for name in names)) for n in (range(256)))
    offsets = [12 + len(entry) * n for n in range(len(names))]
    (tmp_path / "pack-2.pack").write_bytes(body + trailer)
    (tmp_path / "pack-2.idx").write_bytes(
        b"\xfftOc\0\0\0\2" + fan + b"".join(names) + bytes(4 * len(names))
        + struct.pack(f">{len(names)}I", *offsets) + trailer + b"i" * 20
    )  # fmt: skip
    pack = PackFile(tmp_path / "pack-2.pack", SHA1)
    assert [pack.offset_of(name) for name in names] == offsets
    assert not any(pack.offset_of(name[:12] + rng.randbytes(8)) for name in names[:5000])


def test_deltas_are_kept_to_their_limits(packed: History) -> None:
    (pack,) = packed.store().packs()
    deltas = [offset for offset in pack.by_offset()[0] if pack.entry(offset)[0] == OFS_DELTA]
    assert deltas
    for offset in deltas[:50]:
        size = pack.size_at(offset)[1]
        with pytest.raises(LimitExceeded):
            PackFile(pack.path, SHA1, bases=BaseCache(0)).read_at(offset, limit_bytes=size - 1)


def test_long_chains_are_unfolded_without_recursion(tmp_path: Path) -> None:
    depth = 3000
    contents = [b"%06d" % n for n in range(depth)]
    out = struct.pack(">4sII", b"PACK", 2, depth)
    out += bytes([BLOB << 4 | 6]) + zlib.compress(contents[0])
    at = 12
    for content in contents[1:]:
        delta = bytes((6, 6, 6)) + content
        entry = bytes([OFS_DELTA << 4 | len(delta)]) + bytes([len(out) - at]) + zlib.compress(delta)
        at = len(out)
        out += entry
    out += SHA1.new_hash().digest()
    checked = SHA1.new_hash()
    checked.update(out[:-20])
    path = tmp_path / "pack-3.pack"
    path.write_bytes(out[:-20] + checked.digest())
    subprocess.run(["git", "index-pack", str(path)], check=True, capture_output=True)
    pack = PackFile(path, SHA1)
    assert pack.read_at(at) == (BLOB, contents[-1])
    assert pack.type_at(at) == BLOB


def test_no_descriptor_stays_open(packed: History, tmp_path: Path) -> None:
    pack = copy_pack(packed, tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    many = [PackFile(pack.path, SHA1) for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert many[0].count == pack.count


def test_a_deleted_pack_stays_readable_until_nobody_holds_it(packed: History, tmp_path: Path) -> None:
    pack = copy_pack(packed, tmp_path)
    held = pack.data[12:100]
    for path in tmp_path.iterdir():
        path.unlink()
    for offset in pack.by_offset()[0]:
        pack.read_at(offset)

    def mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text()

    assert mapped()
    del pack
    gc.collect()
    assert mapped()
    assert len(bytes(held)) == 88
    del held
    gc.collect()
    assert not mapped()


def test_map_file_of_any_size(tmp_path: Path) -> None:
    for size in (0, 1, 4096, 16383, 16384, 16385, 100_000):
        data = random.Random(size).randbytes(size)
        (tmp_path / "file").write_bytes(data)
        view = map_file(tmp_path / "file")
        assert bytes(view) == data
        assert view.readonly


# -- what is broken


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all files for old enough to be told by their times."""
    for name in ("_RACY_NS", "_COARSE_NS"):
        monkeypatch.setattr(mapping, name, -(1 << 62))


def test_a_file_is_checked_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one" * 9000)
    checks: list[int] = []

    def check(data: memoryview) -> bool:
        checks.append(len(data))
        return bytes(data[:1]) == b"o"

    assert map_checked(path, check, b"a") is not None  # it has just changed, and may again
    settled(monkeypatch)
    child = os.fork()
    if not child:
        os._exit(map_checked(path, check, b"a") is None)
    assert os.waitpid(child, 0)[1] == 0
    assert bytes(map_checked(path, check, b"a") or b"") == path.read_bytes()
    assert len(checks) == 1
    assert map_checked(path, check, b"b") is not None  # checked for something else
    path.write_bytes(b"two" * 9000)
    assert map_checked(path, check, b"a") is None
    assert map_checked(path, check, b"a") is None
    assert len(checks) == 4


@pytest.fixture(scope="session")
def small(new_history: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, bytes]:
    """A pack with deltas, its index and its reverse index."""
    history = new_history(seed=9)
    history.grow(15, unpack=False)
    history.git("repack", "-adfq")
    pack = copy_pack(history, tmp_path_factory.mktemp("small"), "--rev-index")
    path = pack.path
    return path.read_bytes(), path.with_suffix(".idx").read_bytes(), path.with_suffix(".rev").read_bytes()


def read_all(folder: Path, files: tuple[bytes, bytes, bytes]) -> None:
    for suffix, data in zip((".pack", ".idx", ".rev"), files, strict=True):
        (folder / f"pack-4{suffix}").write_bytes(data)
    pack = PackFile(folder / "pack-4.pack", SHA1, bases=BaseCache(1 << 20))
    for position in range(pack.count):
        with contextlib.suppress(PackError, LimitExceeded):
            offset = pack.offset_at(position)
            pack.size_at(offset)
            pack.read_at(offset, limit_bytes=1 << 20)
            pack.offset_of(pack.name_at(position))
            pack.oid_at(offset)
            pack.next_offset(offset)
    for offset in pack.by_offset()[0]:
        pack.oid_at(offset)
        pack.next_offset(offset)


@given(
    which=st.integers(0, 2),
    at=st.integers(0, 1 << 20),
    value=st.integers(0, 255),
    more=st.integers(0, 3),
    cut=st.booleans(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_broken_files_raise_packerror_only(
    small: tuple[bytes, bytes, bytes], tmp_path: Path, which: int, at: int, value: int, more: int, cut: bool
) -> None:
    files = [bytearray(data) for data in small]
    broken = files[which]
    at %= len(broken)
    broken[at : at + 1 + more] = bytes([value]) * (1 + more)
    if cut:
        del broken[at:]
    with contextlib.suppress(PackError):
        read_all(tmp_path, (bytes(files[0]), bytes(files[1]), bytes(files[2])))


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    ("pack", "index", "message"),
    [
        pytest.param((0, b"JACK"), None, "no pack", id="magic"),
        pytest.param((4, b"\0\0\0\4"), None, "version 4", id="version"),
        pytest.param((8, b"\0\0\1\0"), None, "index of", id="count"),
        pytest.param((-20, b"\1" * 20), None, "another pack", id="trailer"),
        pytest.param(None, (4, b"\0\0\0\3"), "unknown version", id="index version"),
        pytest.param(None, (8, b"\0\1\0\0"), "not sorted", id="fan-out"),
        pytest.param(None, (-40, b"\1" * 20), "another pack", id="index trailer"),
    ],
)
def test_opening_says_what_is_wrong(
    small: tuple[bytes, bytes, bytes], tmp_path: Path, pack: Any, index: Any, message: str
) -> None:
    files = list(small)
    for number, change in enumerate((pack, index)):
        if change is not None:
            at, new = change
            files[number] = changed(files[number], at % len(files[number]), new)
    with pytest.raises(PackError, match=message):
        read_all(tmp_path, (files[0], files[1], files[2]))


def test_a_broken_reverse_index_is_noticed(small: tuple[bytes, bytes, bytes], tmp_path: Path) -> None:
    for new in (small[2][16:20], b"\xff\0\0\0"):
        rev = changed(small[2], 12, new)
        with pytest.raises(PackError, match=r"not sorted|outside of the index"):
            read_all(tmp_path, (small[0], small[1], rev))


def test_circles_of_deltas_raise(tmp_path: Path) -> None:
    # Two REF_DELTA entries that name each other: no pack has that, but files may say anything.
    names = [b"\1" * 20, b"\2" * 20]
    delta = zlib.compress(b"\1\1\1x")
    entries = [bytes([7 << 4 | 4]) + name + delta for name in reversed(names)]
    trailer = b"t" * 20
    (tmp_path / "pack-5.pack").write_bytes(struct.pack(">4sII", b"PACK", 2, 2) + b"".join(entries) + trailer)
    fan = struct.pack(">256I", 0, 1, *[2] * 254)
    (tmp_path / "pack-5.idx").write_bytes(
        b"\xfftOc\0\0\0\2" + fan + b"".join(names) + bytes(8) + struct.pack(">II", 12, 12 + len(entries[0]))
        + trailer + b"i" * 20
    )  # fmt: skip
    pack = PackFile(tmp_path / "pack-5.pack", SHA1)
    for ask in (pack.type_at, pack.size_at, pack.read_at):
        with pytest.raises(PackError, match="circle"):
            ask(12)


# -- the order that is kept (packorder.py)


@pytest.fixture
def kept(packed: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PackFile, Path]:
    """A pack that is large enough, and where its order is kept."""
    if not native.available:
        pytest.skip(native.missing)
    monkeypatch.setattr(packorder, "_LEAST", 1)
    folder = tmp_path / "objects/pack"
    folder.mkdir(parents=True)
    (tmp_path / "objects/info").mkdir()
    return copy_pack(packed, folder), tmp_path / "objects/info/gitsmart/pack-1.order"


def test_the_order_is_kept_for_others(
    kept: tuple[PackFile, Path], packed: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, place = kept
    (place.parent.parent / "gitsmart").mkdir()
    (place.parent / "pack-2.order").write_bytes(b"of a pack that is gone")
    expected = [list(table) for table in pack.by_offset()]
    assert [path.name for path in place.parent.iterdir()] == ["pack-1.order"]
    assert place.stat().st_size == 64 + 12 * pack.count
    checks: list[bool] = []
    check = Entries.is_in_order

    def counted(self: Entries) -> bool:
        checks.append(check(self))
        return checks[-1]

    monkeypatch.setattr(Entries, "is_in_order", counted)
    settled(monkeypatch)
    for _ in range(3):
        again = PackFile(pack.path, packed.format)
        assert [list(table) for table in again.by_offset()] == expected
    assert checks == [True]


@pytest.mark.parametrize("at", [0, 8, 16, 30, 64, 70, -1, None])
def test_an_order_that_is_not_right_is_made_anew(
    kept: tuple[PackFile, Path], packed: History, at: int | None
) -> None:
    pack, place = kept
    expected = [list(table) for table in pack.by_offset()]
    right = place.read_bytes()
    broken = bytearray(right)
    if at is None:
        del broken[-1:]
    else:
        broken[at] ^= 2
    place.chmod(0o644)
    place.write_bytes(broken)
    again = PackFile(pack.path, packed.format)
    assert [list(table) for table in again.by_offset()] == expected
    assert place.read_bytes() == right


def test_an_order_that_cannot_be_kept_is_none(kept: tuple[PackFile, Path]) -> None:
    pack, place = kept
    place.parent.write_bytes(b"")  # a file where the folder would be
    assert list(pack.by_offset()[0]) == sorted(pack.offset_at(at) for at in range(pack.count))
