"""Odd packs, given to our indexer and to `git index-pack --stdin`: the files are the same, or both refuse.

Objects of every type, whole or as deltas by offset or by name, in any order: bases behind their deltas, bases
in the repository (loose, and in packs, whole and as deltas), deep chains, the same object again, empty packs;
and packs with a wrong count, a wrong checksum, cut short, with more behind their end, or with wrong bytes
within. Indexes have 64-bit offsets from a limit on that is drawn as well; offsets that really need them are
test_far_offsets.py's. With the native module, with its threads, and without.

    GITSMART_EXAMPLES=5000 python -m pytest tests/pack/test_odd_packs.py

tries more of them. Where we are stricter than git, on purpose: what REF_DELTAs name must be in the pack once
at most, and chains may have IngestLimits.delta_depth deltas.
"""

import contextlib
import io
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gitsmart import native as native_module
from gitsmart.errors import GitsmartError, PackError
from gitsmart.pack import indexer_native, packindex
from gitsmart.pack.fsck import Fsck, FsckRules, severities
from gitsmart.pack.indexer import IngestLimits, ingest_pack
from gitsmart.pack.objects import BLOB, COMMIT, SHA1, SHA256, TAG, TREE, ObjectFormat
from gitsmart.pack.store import ObjectStore
from tests.pack.builder import Builder, copy, delta, insert, name_of

EXAMPLES = os.environ.get("GITSMART_EXAMPLES")
WAYS = ["native", "native, threads and files", "python"]


@contextlib.contextmanager
def way(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if name == "python":
            patch.setattr(native_module, "available", False)
        elif not native_module.available:
            pytest.skip(f"no native module: {native_module.missing}")
        if name == WAYS[1]:
            patch.setattr(indexer_native, "_HELPERS", 3)
            patch.setattr(indexer_native, "_HELPED_BYTES", -1)
            patch.setattr(indexer_native, "_HELPED_OBJECTS", 0)
            patch.setattr(indexer_native, "_FILED_OBJECTS", 0)
        yield


@dataclass
class Repositories:
    """A repository of each format with some blobs, some packed and some loose."""

    paths: dict[bytes, Path]
    blobs: list[bytes]

    def index(self, fmt: ObjectFormat, pack: bytes, *, large_from: int) -> dict[str, bytes] | None:
        """Give the files that git makes of a pack, by suffix; None: it refuses."""
        path = self.paths[fmt.name]
        source = path / "source"
        source.write_bytes(pack)
        before = set((path / "objects" / "pack").iterdir())
        with source.open("rb") as stdin:
            done = subprocess.run(
                [
                    "git",
                    "index-pack",
                    "--stdin",
                    "--rev-index",
                    "--fix-thin",
                    f"--index-version=2,{large_from - 1}",
                ],
                cwd=path,
                env={"PATH": "/usr/bin:/bin", "HOME": str(path), "LC_ALL": "C", "GIT_CONFIG_NOSYSTEM": "1"},
                stdin=stdin,
                capture_output=True,
            )
        made = set((path / "objects" / "pack").iterdir()) - before
        files = {file.suffix: file.read_bytes() for file in made if file.suffix in (".pack", ".idx", ".rev")}
        for file in made:
            file.unlink()
        return None if done.returncode else files


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Repositories:
    chance = random.Random(5)
    blobs = [chance.randbytes(chance.randrange(20, 200)) for _ in range(6)]
    # versions of one file, which git stores as deltas of one another
    for _ in range(4):
        blobs.append(chance.randbytes(40) + blobs[-1] + chance.randbytes(40))
    paths = {}
    for fmt in (SHA1, SHA256):
        path = paths[fmt.name] = tmp_path_factory.mktemp("odd") / "r.git"

        def git(*args: str, path: Path = path, data: bytes = b"") -> bytes:
            return subprocess.run(
                ["git", *args], cwd=path, input=data, stdout=subprocess.PIPE, check=True
            ).stdout

        path.mkdir()
        git("init", "-q", "--bare", f"--object-format={fmt.name.decode()}")
        names = [git("hash-object", "-w", "--stdin", data=blob) for blob in blobs]
        git("pack-objects", "-q", "objects/pack/pack", data=b"".join(names[:3]))
        checksum = git("pack-objects", "-q", "objects/pack/pack", data=b"".join(names[6:]))
        git("prune-packed", "-q")
        rows = git("verify-pack", "-v", f"objects/pack/pack-{checksum.decode().strip()}.pack").splitlines()
        assert any(len(row.split()) == 7 for row in rows)  # there are deltas
    return Repositories(paths, blobs)


@dataclass
class Thing:
    kind: int
    data: bytes


def things(chance: random.Random, fmt: ObjectFormat) -> list[Thing]:
    """Objects that refer to one another, or to nothing that is there."""
    found = [Thing(BLOB, chance.randbytes(chance.randrange(60)) * chance.randrange(1, 4)) for _ in range(3)]
    for number in range(chance.randrange(12)):
        known = [(thing.kind, name_of(thing.kind, thing.data, fmt)) for thing in found]
        kind = chance.choice([BLOB, TREE, TREE, COMMIT, TAG])
        if kind == BLOB:
            data = chance.randbytes(chance.randrange(300))
        elif kind == TREE:
            data = b""
            for place, (type_number, raw_oid) in enumerate(known):
                mode = {BLOB: b"100644", TREE: b"40000", COMMIT: b"160000"}.get(type_number)
                if mode and chance.random() < 0.8:
                    data += b"%b %03d\0%b" % (mode, place, raw_oid)
        elif kind == COMMIT:
            tree = chance.choice([name for number_, name in known if number_ == TREE] or [bytes(fmt.raw_len)])
            data = b"tree %b\nauthor A <a> %d +0000\ncommitter C <c> 1 +0000\n\nm\n" % (
                tree.hex().encode(),
                number,
            )
        else:
            kind_, name = chance.choice(known)
            word = {BLOB: b"blob", TREE: b"tree", COMMIT: b"commit", TAG: b"tag"}[kind_]
            data = b"object %b\ntype %b\ntag t%d\n" % (name.hex().encode(), word, number)
        found.append(Thing(kind, data))
    return found


def delta_between(chance: random.Random, base: bytes, result: bytes) -> bytes:
    """A delta with what the two have in common at both ends, in pieces."""
    start = 0
    while start < min(len(base), len(result)) and base[start] == result[start]:
        start += 1
    end = 0
    while end < min(len(base), len(result)) - start and base[-1 - end] == result[-1 - end]:
        end += 1
    steps = []
    if start:
        cut = chance.randrange(start + 1)
        steps += [copy(0, cut)] if cut else []
        steps += [copy(cut, start - cut)] if cut < start else []
    if start < len(result) - end:
        steps.append(insert(result[start : len(result) - end]))
    if end:
        steps.append(copy(len(base) - end, end))
    made = delta(len(base), len(result), *steps)
    # git takes no delta of less than four bytes; sizes may be written long
    return made if len(made) >= 4 else b"%c\x80\x80\x00%c\x80\x80\x00" % (len(base) | 128, len(result) | 128)


def changed(chance: random.Random, thing: Thing, fmt: ObjectFormat) -> Thing:
    """Another object of the same type, that a delta can make of this one."""
    data = thing.data
    if thing.kind == BLOB:
        place = chance.randrange(len(data) + 1)
        return Thing(BLOB, data[:place] + chance.randbytes(chance.randrange(20)) + data[place:])
    if thing.kind == TREE:
        return Thing(TREE, data + b"100644 z%05d\0%b" % (len(data), chance.randbytes(fmt.raw_len)))
    return Thing(thing.kind, data + b"more\n")


def odd_pack(chance: random.Random, fmt: ObjectFormat, outside: list[bytes]) -> bytes:
    """A pack, most of them good."""
    objects: list[tuple[Thing, int]] = [(thing, -1) for thing in things(chance, fmt)]
    for _ in range(chance.randrange(20)):
        parent = chance.randrange(len(objects))
        objects.append((changed(chance, objects[parent][0], fmt), parent))
    if chance.random() < 0.2:  # a deep chain
        for _ in range(chance.choice([60, 60, 60, 400])):
            objects.append((changed(chance, objects[-1][0], fmt), len(objects) - 1))
    thin = []
    if chance.random() < 0.4:
        for blob in chance.sample(outside, 3):
            thin.append((changed(chance, Thing(BLOB, blob), fmt), blob))
    order = list(range(len(objects)))
    if chance.random() < 0.6:
        chance.shuffle(order)
    builder = Builder(fmt)
    placed: dict[int, int] = {}
    by_name = chance.choice([0.0, 0.3, 1.0])
    for k in order:
        thing, parent = objects[k]
        if parent < 0:
            placed[k] = builder.whole(thing.kind, thing.data)
            continue
        base = objects[parent][0]
        change = delta_between(chance, base.data, thing.data)
        if parent in placed and chance.random() >= by_name:
            placed[k] = builder.ofs(placed[parent], change)
        else:
            placed[k] = builder.ref(name_of(base.kind, base.data, fmt), change)
        if thin and chance.random() < 0.5:
            more, blob = thin.pop()
            builder.ref(name_of(BLOB, blob, fmt), delta_between(chance, blob, more.data))
    if chance.random() < 0.1:
        again = chance.choice(objects)[0]
        builder.whole(again.kind, again.data)
    if chance.random() < 0.1:
        builder.whole(BLOB, chance.choice(outside))
    count = len(builder.offsets)
    damage = chance.randrange(16)
    if damage == 4:  # under a good checksum
        builder.body[chance.randrange(len(builder.body))] ^= 1 << chance.randrange(8)
    pack = builder.pack(count=count + chance.choice([0] * 12 + [-1, 1, 1000]))
    if damage == 0:
        pack = pack[: chance.randrange(len(pack))]
    elif damage == 1:
        pack += chance.randbytes(3)
    elif damage == 2:
        pack = pack[:-1] + bytes([pack[-1] ^ 1])
    return Builder(fmt).pack() if damage == 3 else pack


@pytest.mark.parametrize("how", WAYS)
@settings(
    max_examples=int(EXAMPLES or 40),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(seed=st.integers(0, 1 << 40))
def test_files_are_gits_or_both_refuse(
    how: str, seed: int, repositories: Repositories, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    fmt = chance.choice([SHA1, SHA256])
    pack = odd_pack(chance, fmt, repositories.blobs)
    large_from = chance.choice([0x80000000, 0x80000000, 0x10, 0x200])
    theirs = repositories.index(fmt, pack, large_from=large_from)
    directory = tmp_path / "quarantine"
    directory.mkdir()
    rest = memoryview(pack)

    def read(limit: int) -> bytes:
        nonlocal rest
        size = min(limit, chance.choice([1, 100, 1 << 16]))
        piece, rest = rest[:size], rest[size:]
        return bytes(piece)

    try:
        with way(how), pytest.MonkeyPatch.context() as patch:
            patch.setattr(packindex, "_LARGE_FROM", large_from)
            result = ingest_pack(
                read,
                directory,
                fmt,
                bases=ObjectStore(repositories.paths[fmt.name] / "objects", fmt),
                detect_collisions=chance.random() < 0.5,
                limits=IngestLimits(),
                tick=lambda done, total: None,
                cache_bytes=chance.choice([0, 500, 1 << 20]),
            )
    except GitsmartError as error:
        assert list(directory.iterdir()) == []
        assert theirs is None or "is in the pack twice" in str(error), error  # noqa: PT017
    else:
        if result.objects:
            ours = {file.suffix: file.read_bytes() for file in directory.iterdir()}
            assert theirs == ours
            assert len(result.facts.own) <= result.objects == struct.unpack(">I", pack[8:12])[0]
        else:
            assert theirs is not None
    finally:
        shutil.rmtree(directory)


# --- what is said of objects, and what they refer to

NAMES = [b"a", b"a.c", b"a-b", b"a0", b"b", b"ab", b"a.c.d", b"z" * 40, b"Makefile"]
ODD_NAMES = [
    b".git", b".GIT", b"git~1", b".", b"..", b"a/b", b"a\\b", b".gitmodules", b".gitattributes",
    b".gitignore", b".mailmap", b".github", b".gitfoo", b"gitmod~1", b".git\xe2\x80\x8c",
    b"\xe2\x80\x8c.git", b"G~1", b"m~", b".m", b"\xef\xbb\xbf.git", b"a" * 5000,
]  # fmt: skip
MODES = [
    b"100644",
    b"100755",
    b"120000",
    b"160000",
    b"40000",
    b"100664",
    b"040000",
    b"100600",
    b"1",
    b"40755",
]


DEMOTED = [
    "hasDotgit",
    "nullSha1",
    "badFilemode",
    "duplicateEntries",
    "treeNotSorted",
    "hasDot",
    "hasDotdot",
    "fullPathname",
    "badTree",
    "zeroPaddedFilemode",
    "missingEmail",
    "largePathname",
    "badDate",
    "badTimezone",
    "missingSpaceBeforeEmail",
    "gitmodulesSymlink",
]


def any_tree(
    chance: random.Random, fmt: ObjectFormat, known: list[bytes]
) -> list[tuple[bytes, bytes, bytes]]:
    """Entries: mode, name, raw oid; mostly as git writes them."""
    found = {}
    for _ in range(chance.randrange(8)):
        name = chance.choice(ODD_NAMES if chance.random() < 0.06 else NAMES)
        mode = chance.choice(MODES if chance.random() < 0.06 else MODES[:5])
        raw_oid = bytes(fmt.raw_len) if chance.random() < 0.02 else chance.choice(known)
        found[name if chance.random() < 0.95 else chance.randbytes(2)] = (mode, name, raw_oid)
    entries = sorted(found.values(), key=lambda entry: entry[1] + b"/" * entry[0].endswith(b"40000"))
    if chance.random() < 0.05:
        chance.shuffle(entries)
    return entries


def written_tree(entries: list[tuple[bytes, bytes, bytes]]) -> bytes:
    return b"".join(b"%b %b\0%b" % entry for entry in entries)


def any_commit(chance: random.Random, fmt: ObjectFormat, known: list[bytes]) -> bytes:
    def maybe(good: bytes, *odd: bytes) -> bytes:
        return chance.choice(odd) if chance.random() < 0.05 else good

    lines = [b"tree %b\n" % maybe(chance.choice(known).hex().encode(), b"0" * fmt.hex_len, b"ABCD", b"")]
    lines += [
        b"parent %b\n" % maybe(chance.choice(known).hex().encode(), b"x")
        for _ in range(chance.choice([0, 1, 1, 2]))
    ]
    for word in (b"author", b"committer"):
        name = maybe(b"A U Thor ", b"", b"A", b"A <", b"A> ", b"\0 ")
        date = maybe(b"1234567890", b"0", b"01", b"9" * 18, b"9" * 19, b"", b"x")
        zone = maybe(b"+0100", b"-1200", b"+100", b"+01000", b"0100")
        lines.append(
            maybe(
                b"%b %b<%b> %b %b\n" % (word, name, maybe(b"a@b", b"", b"a<b", b"a\nb"), date, zone),
                b"",
                b"\n",
            )
        )
    return b"".join(lines) + maybe(
        b"\nmessage\n", b"", b"\n", b"\nnul \0", b"x", b"gpgsig a\n b\n\nm\n", b"\nno newline"
    )


def tree_pack(chance: random.Random, fmt: ObjectFormat) -> bytes:
    """Trees, whole and as deltas on one another, and commits: some of them as no git writes them."""
    builder = Builder(fmt)
    known = [bytes([k]) * fmt.raw_len for k in range(1, 12)]
    trees: list[tuple[int, list[tuple[bytes, bytes, bytes]]]] = []
    for _ in range(chance.randrange(1, 12)):
        if trees and chance.random() < 0.7:
            place, entries = chance.choice(trees)
            base = written_tree(entries)
            entries = list(entries)
            for _ in range(chance.randrange(1, 3)):
                at = chance.randrange(len(entries) + 1)
                new = any_tree(chance, fmt, known)[:1]
                entries[at : at + chance.randrange(2)] = new
            if chance.random() < 0.9:
                entries.sort(key=lambda entry: entry[1] + b"/" * entry[0].endswith(b"40000"))
            data = written_tree(entries)
            trees.append((builder.ofs(place, delta_between(chance, base, data)), entries))
        else:
            # long enough that a delta is small beside it
            entries = any_tree(chance, fmt, known)
            entries += [
                (b"100644", b"zz%03d" % k, chance.choice(known)) for k in range(chance.choice([0, 10, 40]))
            ]
            trees.append((builder.whole(TREE, written_tree(entries)), entries))
        known.append(name_of(TREE, written_tree(trees[-1][1]), fmt))
        if chance.random() < 0.5:
            builder.whole(COMMIT, any_commit(chance, fmt, known))
    if chance.random() < 0.1:
        builder.whole(TREE, written_tree(trees[0][1]) + b"100644 broken\0")
    return builder.pack()


@settings(
    max_examples=int(EXAMPLES or 80),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(seed=st.integers(0, 1 << 40))
def test_findings_and_facts_are_the_same_in_c(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    fmt = chance.choice([SHA1, SHA1, SHA256])
    pack = tree_pack(chance, fmt)
    strict, bare = chance.random() < 0.5, chance.random() < 0.1
    levels = [] if chance.random() < 0.5 else [(name, "warn") for name in DEMOTED]
    found: list[tuple[list[str], list[list[tuple[bytes, int]]]] | None] = []
    for how in WAYS:
        lines: list[str] = []
        rules = FsckRules(
            severities=severities(levels, strict=strict, warn=lines.append)[0],
            parse_config=lambda data: iter(()),
            parse_error=ValueError,
            is_refname=lambda name: True,
            tolerate_0664=not strict,
        )
        directory = tmp_path / "quarantine"
        directory.mkdir()
        try:
            with way(how):
                result = ingest_pack(
                    io.BytesIO(pack).read,
                    directory,
                    fmt,
                    bases=ObjectStore(tmp_path / "none", fmt),
                    limits=IngestLimits(),
                    tick=lambda done, total: None,
                    fsck=None if bare else Fsck(rules, fmt, lines.append),
                )
        except PackError:
            found.append(None)  # which of the bad objects is found first depends on the way
        else:
            facts = result.facts
            parts = (facts.own, facts.outside, facts.conflicting)
            found.append((sorted(lines), [sorted(part.items()) for part in parts]))
        finally:
            shutil.rmtree(directory)
    assert found[0] == found[1] == found[2]
