"""fsck of pushed objects: the findings of `git index-pack --strict` and of `git fsck`, word for word."""

import hashlib
import random
import re
import struct
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gitsmart.errors import LimitExceeded, PackError, RepositoryUnusable
from gitsmart.pack.fsck import (
    DANGEROUS,
    MESSAGES,
    BadSettingError,
    Fsck,
    FsckFailed,
    FsckRules,
    Severity,
    is_dot_name,
    severities,
)
from gitsmart.pack.indexer import IngestLimits, ingest_pack
from gitsmart.pack.objects import (
    BLOB,
    COMMIT,
    SHA1,
    SHA256,
    TAG,
    TREE,
    TYPE_NAMES,
    ObjectFormat,
    object_header,
)
from gitsmart.pack.store import ObjectStore
from gitsmart.pack.submodules import is_submodule_name, is_submodule_url, normalize_url
from gitsmart.repo.gitconfig import iter_entries
from gitsmart.wire.refname import is_valid_refname

FORMATS = [pytest.param(SHA1, id="sha1"), pytest.param(SHA256, id="sha256")]
Objects = list[tuple[int, bytes]]


def name_of(kind: int, data: bytes, fmt: ObjectFormat = SHA1) -> bytes:
    return hashlib.new(fmt.name.decode(), object_header(kind, len(data)) + data).digest()


def rules(
    *, strict: bool = True, settings: Sequence[tuple[str, str]] = (), skip: frozenset[bytes] = frozenset()
) -> FsckRules:
    found, longest = severities(settings, strict=strict, warn=lambda text: None)
    return FsckRules(
        severities=found,
        parse_config=iter_entries,
        parse_error=RepositoryUnusable,
        is_refname=is_valid_refname,
        skip=skip,
        longest_name=longest,
        tolerate_0664=not strict,
    )


def entry_header(kind: int, size: int) -> bytes:
    byte = kind << 4 | size & 15
    size >>= 4
    out = bytearray()
    while size:
        out.append(byte | 128)
        byte = size & 127
        size >>= 7
    return bytes([*out, byte])


def pack_of(objects: Objects, fmt: ObjectFormat = SHA1) -> bytes:
    body = b"PACK" + struct.pack(">II", 2, len(objects))
    for kind, data in objects:
        body += entry_header(kind, len(data)) + zlib.compress(data)
    return body + hashlib.new(fmt.name.decode(), body).digest()


EMPTY_BLOB = name_of(BLOB, b"")
EMPTY_TREE = name_of(TREE, b"")
WHO = b"A U Thor <author@example.com> 1700000000 +0100"


def tree(*entries: tuple[str, bytes] | tuple[str, bytes, bytes], fmt: ObjectFormat = SHA1) -> bytes:
    """A tree of (mode, name) with the empty blob or tree, or of (mode, name, raw oid)."""
    out = b""
    for mode, name, *oid in entries:
        kind = TREE if mode.lstrip("0").startswith("4") else BLOB
        out += b"%b %b\0" % (mode.encode(), name) + (oid[0] if oid else name_of(kind, b"", fmt))
    return out


def commit(
    *, tree_line: bytes | None = None, middle: bytes = b"", author: bytes = WHO, committer: bytes = WHO
) -> bytes:
    line = b"tree " + EMPTY_TREE.hex().encode() if tree_line is None else tree_line
    return line + b"\n" + middle + b"author " + author + b"\ncommitter " + committer + b"\n\nmessage\n"


def tag(
    *, name: bytes = b"tag v1\n", tagger: bytes = b"tagger " + WHO + b"\n", more: bytes = b"\nmessage\n"
) -> bytes:
    return b"object " + EMPTY_TREE.hex().encode() + b"\ntype tree\n" + name + tagger + more


def ours(objects: Objects, path: Path, fmt: ObjectFormat = SHA1, **more: Any) -> tuple[bool, list[str]]:
    """Ingest a pack of these; whether it was taken, and what was said."""
    said: list[str] = []
    directory = path / "incoming"
    directory.mkdir(parents=True)
    pieces = iter([pack_of(objects, fmt), b""])
    try:
        ingest_pack(
            lambda n: next(pieces, b""),
            directory,
            fmt,
            bases=ObjectStore(path, fmt),
            limits=IngestLimits(),
            tick=lambda done, total: None,
            fsck=Fsck(rules(**more), fmt, said.append),
        )
    except PackError:
        assert list(directory.iterdir()) == []
        return False, said
    return True, said


def gits(
    git: Any, objects: Objects, path: Path, fmt: ObjectFormat = SHA1, strict: str = ""
) -> tuple[bool, list[str]]:
    """The same of `git index-pack --strict`."""
    git("init", "-q", "--bare", f"--object-format={fmt.name.decode()}", path)
    done = subprocess.run(
        ["git", "index-pack", "--threads=1", f"--strict{strict}", "--stdin"],
        cwd=path,
        env=git.environ,
        input=pack_of(objects, fmt),
        capture_output=True,
    )
    text = done.stderr.decode("utf-8", "backslashreplace")
    return done.returncode == 0, re.findall(r"^(?:error|warning): object [0-9a-f]+: .*\n", text, re.MULTILINE)


def with_tree(*entries: tuple[str, bytes] | tuple[str, bytes, bytes]) -> Objects:
    return [(BLOB, b""), (TREE, b""), (TREE, tree(*entries))]


def with_modules(text: bytes, name: bytes = b".gitmodules") -> Objects:
    return [(BLOB, text), (TREE, tree(("100644", name, name_of(BLOB, text))))]


def with_attributes(text: bytes) -> Objects:
    return [(BLOB, text), (TREE, tree(("100644", b".gitattributes", name_of(BLOB, text))))]


def submodule(key: str, value: str, name: str = "sub") -> Objects:
    return with_modules(f'[submodule "{name}"]\n\t{key} = {value}\n'.encode())


ZERO_WIDTH = "\u200c".encode()
TREES: dict[str, list[tuple[str, bytes] | tuple[str, bytes, bytes]]] = {
    "clean": [("100644", b".gitignore"), ("100755", b"a"), ("40000", b"b"), ("120000", b"c")],
    "dotgit": [("40000", b".git")],
    "dotgit upper case": [("40000", b".GIT")],
    "dotgit file": [("100644", b".git")],
    "dotgit hfs": [("40000", b".g" + ZERO_WIDTH + b"it")],
    "dotgit hfs first": [("40000", ZERO_WIDTH + b".git")],
    "dotgit hfs bom": [("40000", b".gi\xef\xbb\xbft")],
    "dotgit hfs upper case": [("40000", b".G\xe2\x80\xaeIT")],
    "dotgit ntfs": [("40000", b"git~1")],
    "dotgit ntfs upper case": [("40000", b"GIT~1")],
    "dotgit ntfs dots": [("40000", b".git.. .")],
    "dotgit ntfs stream": [("40000", b".git::$INDEX_ALLOCATION")],
    "dotgit backslash": [("40000", b".git\\config")],
    "dotgit behind backslash": [("100644", b"a\\.git")],
    "dotgit behind backslashes": [("100644", b"a\\b\\GIT~1")],
    "no dotgit ntfs": [("40000", b"git~2")],
    "no dotgit": [("40000", b".git-"), ("40000", b".github"), ("40000", b"git"), ("40000", b"git~10")],
    "no dotgit hfs": [("40000", b".g\xe2\x80\x8bit")],
    "no dotgit malformed utf-8": [("40000", b".gi\xefbt")],
    "dot": [("40000", b".")],
    "dotdot": [("40000", b"..")],
    "no dotdot": [("40000", b"...")],
    "full path": [("100644", b"a/b")],
    "dotgit in full path": [("100644", b".git/config")],
    "backslash": [("100644", b"a\\b")],
    "zero-padded": [("0100644", b"a")],
    "zero-padded tree": [("040000", b"a")],
    "bad mode 0664": [("100664", b"a")],
    "bad mode 0666": [("100666", b"a")],
    "bad mode of nothing": [("777", b"a")],
    "duplicates": [("100644", b"a"), ("100644", b"a")],
    "duplicates, file and folder": [("100644", b"a"), ("40000", b"a")],
    "duplicates, folder and file": [("40000", b"a"), ("100644", b"a")],
    "duplicates apart": [("100644", b"a"), ("100644", b"a.b"), ("40000", b"a")],
    "duplicates far apart": [
        ("100644", b"foo"),
        ("100644", b"foo.bar"),
        ("100644", b"foo.bar.baz"),
        ("40000", b"foo.bar"),
        ("40000", b"foo"),
    ],
    "unsorted": [("100644", b"b"), ("100644", b"a")],
    "unsorted folder": [("40000", b"a"), ("100644", b"a.b")],
    "null oid": [("100644", b"a", bytes(20))],
    "gitmodules symlink": [("120000", b".gitmodules")],
    "gitmodules symlink ntfs": [("120000", b"GITMOD~1")],
    "gitmodules symlink ntfs short": [("120000", b"gi7eba~1")],
    "gitmodules symlink ntfs shorter": [("120000", b"gi7~1234")],
    "gitmodules symlink ntfs shortest": [("120000", b"g~123456")],
    "gitmodules symlink hfs": [("120000", b".gitmod" + ZERO_WIDTH + b"ules")],
    "gitmodules symlink behind backslash": [("120000", b"a\\.gitmodules")],
    "gitmodules symlink stream": [("120000", b".gitmodules:x")],
    "no gitmodules symlink": [("120000", b"gitmod~5"), ("120000", b"gi7eba~0"), ("120000", b"gi7ebb~1")],
    "gitmodules folder": [("40000", b".gitmodules")],
    "gitattributes symlink": [("120000", b".gitattributes")],
    "gitattributes symlink ntfs": [("120000", b"GI7D29~1")],
    "gitattributes folder": [("40000", b".gitattributes")],
    "gitignore symlink": [("120000", b".gitignore")],
    "gitignore symlink ntfs": [("120000", b"gitign~3")],
    "mailmap symlink": [("120000", b".mailmap")],
    "mailmap symlink ntfs": [("120000", b"maba30~1")],
    "everything": [
        ("100664", b"..", bytes(20)),
        ("0100644", b"."),
        ("100644", b".git"),
        ("100644", b".git"),
        ("100644", b"/"),
    ],
}
COMMITS = {
    "clean": commit(),
    "clean, no body": commit()[: -len("\nmessage\n")],
    "no name": commit(author=b" <a@b> 1 +0000"),
    "date zero": commit(author=b"A <a> 0 +0000"),
    "tabs before the date": commit(author=b"A <a>  \t1 +0000"),
    "missing name": commit(author=b"<a@b> 1 +0000"),
    "missing space before email": commit(author=b"A<a@b> 1 +0000"),
    "missing email": commit(author=b"A 1 +0000"),
    "missing committer's email": commit(committer=b"A 1 +0000"),
    "bad name": commit(author=b"A> <a@b> 1 +0000"),
    "bad email": commit(author=b"A <a<@b> 1 +0000"),
    "bad email, no end": commit(author=b"A <a@b 1 +0000"),
    "missing space before date": commit(author=b"A <a@b>1 +0000"),
    "no date": commit(author=b"A <a@b> "),
    "zero-padded date": commit(author=b"A <a@b> 01 +0000"),
    "date overflow": commit(author=b"A <a@b> 18446744073709551616 +0000"),
    "date overflow of time_t": commit(author=b"A <a@b> 9223372036854775808 +0000"),
    "date no overflow": commit(author=b"A <a@b> 1234567890123456789 +0000"),
    "long date": commit(author=b"A <a@b> " + b"9" * 23 + b" +0000"),
    "bad date": commit(author=b"A <a@b> x +0000"),
    "bad date, no zone": commit(author=b"A <a@b> 1"),
    "bad zone": commit(author=b"A <a@b> 1 +000"),
    "bad zone, long": commit(author=b"A <a@b> 1 +00000"),
    "bad zone, no sign": commit(author=b"A <a@b> 1 00000"),
    "missing author": commit().replace(b"author", b"auth"),
    "two authors": commit(middle=b"author " + WHO + b"\n"),
    "missing committer": commit().replace(b"committer", b"commit"),
    "nul in header": commit(author=b"A\0 <a@b> 1 +0000"),
    "nul in body": commit() + b"\0",
    "unterminated": commit()[: -len("\n\nmessage\n")],
    "unknown headers": commit().replace(b"\n\n", b"\nencoding x\ngpgsig y\n z\n\n"),
}
TAGS = {
    "clean": tag(),
    "clean, no body": tag(more=b""),
    "bad name": tag(name=b"tag a..b\n"),
    "name with slash": tag(name=b"tag a/b\n"),
    "missing tag": tag(name=b"")[: -len(b"\nmessage\n")],
    "missing tagger": tag(tagger=b""),
    "bad tagger": tag(tagger=b"tagger A<a> 1 +0000\n"),
    "extra header": tag(more=b"extra x\n\nmessage\n"),
    "nul": tag(name=b"tag v\0\n"),
    "unterminated": tag(more=b"")[:-1],
}
BLOBS = {
    "modules clean": with_modules(b'[submodule "a"]\n\tpath = a\n\turl = ../a.git\n\tupdate = none\n'),
    "modules clean, odd": with_modules(b'# x\n[submodule "a"]\n\tpath="a"\n\turl\n[submodule "a"] ; y\n'),
    "modules unreadable": with_modules(b"[submodule\n"),
    "modules unreadable below bad name": with_modules(b'[submodule "../a"]\n\tpath = a\n[[\n'),
    "modules name": submodule("path", "a", "../a"),
    "modules name inside": submodule("path", "a", "a/../b"),
    "modules name backslash": submodule("path", "a", "a\\\\..\\\\b"),
    "modules name dots": submodule("path", "a", "..."),
    "modules name empty": submodule("path", "a", ""),
    "modules name without quotes": with_modules(b"[submodule.a] path = -a\n"),
    "modules another section": with_modules(b'[submodules "../a"]\n\tpath = a\n[submodule] path = -a\n'),
    "modules name of nothing": with_modules(b'[submodule "../a"]\n'),
    "modules path": submodule("path", "-a"),
    "modules update": submodule("update", "!rm"),
    "modules update odd": submodule("update", "odd"),
    "modules no newline at the end": with_modules(b'[submodule "a"]\n\tpath = -a'),
    "modules cr lf": with_modules(b'[submodule "a"]\r\n\tpath = -a\r\n'),
    "modules upper case": with_modules(b'[SUBMODULE "a"]\n\tPATH = -a\n'),
    "modules all at once": with_modules(
        b'[submodule "../a"]\n\tpath = -a\n\turl = -a\n\tupdate = !a\n[submodule "../b"]\n\tbranch = x\n'
    ),
    "modules ntfs name": with_modules(b'[submodule "a"]\n\tpath = -a\n', b"GITMOD~2"),
    "modules behind backslash": with_modules(b'[submodule "a"]\n\tpath = -a\n', b"x\\.gitmodules"),
    "attributes clean": with_attributes(b"* text\n" * 100),
    "attributes long line": with_attributes(b"a" * 2048 + b"\n"),
    "attributes almost long line": with_attributes(b"a" * 2047 + b"\n"),
    "attributes long line behind nul": with_attributes(b"a\0" + b"a" * 3000),
}
URLS = {
    "plain": "https://example.com/a.git",
    "dash": "-oProxyCommand=x",
    "relative": "../a.git",
    "newline": "https://example.com/%0ahost=x/a",
    "newline upper case": "https://example.com/%0Ahost",
    "newline in host": "https://example.com%0a.x/a",
    "newline in user": "https://%0a@example.com/a",
    "newline encoded twice": "https://example.com/%250a/a",
    "newline relative": "./%0ahost=x/a",
    "newline git": "git://host:1234/repo%0a",
    "newline ssh": "ssh://example.com/%0a",
    "newline in path": "a/%0a",
    "curl prefix": "http::https://example.com/%0a",
    "curl prefix of nothing": "http::example.com/a",
    "relative to host": "../../../:example.com/a",
    "relative to slash": "..//a",
    "relative to slash, dots": "./..//a",
    "relative here": "./:a",
    "scheme only": "https:///a",
    "no host": "http://",
    "colon": "https::example.com/a",
}


@pytest.mark.parametrize("name", TREES)
def test_trees(git: Any, tmp_path: Path, name: str) -> None:
    objects = with_tree(*TREES[name])
    assert ours(objects, tmp_path / "ours") == gits(git, objects, tmp_path / "git")


@pytest.mark.parametrize("name", COMMITS)
def test_commits(git: Any, tmp_path: Path, name: str) -> None:
    objects = [(TREE, b""), (COMMIT, COMMITS[name])]
    assert ours(objects, tmp_path / "ours") == gits(git, objects, tmp_path / "git")


@pytest.mark.parametrize("name", TAGS)
def test_tags(git: Any, tmp_path: Path, name: str) -> None:
    objects = [(TREE, b""), (TAG, TAGS[name])]
    taken, said = gits(git, objects, tmp_path / "git")
    if name in ("nul", "missing tag", "unterminated"):  # git's parser is first to refuse these
        assert not taken
        assert ours(objects, tmp_path / "ours")[0] is False
    else:
        assert ours(objects, tmp_path / "ours") == (taken, said)


@pytest.mark.parametrize("name", BLOBS)
def test_blobs(git: Any, tmp_path: Path, name: str) -> None:
    assert ours(BLOBS[name], tmp_path / "ours") == gits(git, BLOBS[name], tmp_path / "git")


@pytest.mark.parametrize("name", URLS)
def test_urls(git: Any, tmp_path: Path, name: str) -> None:
    for number, objects in enumerate((submodule("url", URLS[name]), submodule("url", f'"{URLS[name]}"'))):
        expected = gits(git, objects, tmp_path / f"git{number}")
        assert ours(objects, tmp_path / f"ours{number}") == expected
        assert is_submodule_url(URLS[name].encode()) == expected[0]


@pytest.mark.parametrize(
    "settings", ["hasdotgit=ignore", "hasdotgit=warn", "badfilemode=error", "treenotsorted=warn"]
)
def test_severities_are_gits(git: Any, tmp_path: Path, settings: str) -> None:
    objects = with_tree(("100664", b"b"), ("40000", b".git"))
    assert ours(objects, tmp_path / "ours", settings=[tuple(settings.split("="))]) == gits(
        git, objects, tmp_path / "git", strict="=" + settings
    )


def test_the_skip_list_forgives(git: Any, tmp_path: Path) -> None:
    objects = [*with_tree(("40000", b".git")), (COMMIT, COMMITS["missing email"])]
    named = [name_of(kind, data) for kind, data in objects]
    file = tmp_path / "skip"
    file.write_text("".join(f"{oid.hex()}\n" for oid in named))
    theirs = gits(git, objects, tmp_path / "git", strict=f"=skiplist={file}")
    assert ours(objects, tmp_path / "ours", skip=frozenset(named)) == theirs == (True, [])


def test_settings_that_git_dies_of() -> None:
    said: list[str] = []
    found, longest = severities(
        [("largePathname", "warn:10"), ("nosuch", "error")], strict=True, warn=said.append
    )
    assert (found["largePathname"], longest, said) == (
        Severity.WARN,
        10,
        ["skipping unknown msg id 'nosuch'"],
    )
    for setting, text in (
        (("nulInHeader", "warn"), "Cannot demote nulinheader to warn"),
        (("hasDotgit", "never"), "Unknown fsck message type: 'never'"),
        (("largePathname", "warn:x"), "unable to parse max tree entry len: x"),
    ):
        with pytest.raises(BadSettingError, match=re.escape(text)):
            severities([setting], strict=True, warn=said.append)


# --- what git 2.39 doesn't know yet; the texts are those of its later source


@pytest.mark.parametrize(
    ("objects", "text"),
    [
        pytest.param(
            with_tree(("100644", b"a" * 4097)),
            "largePathname: contains excessively large pathname",
            id="largePathname",
        ),
        pytest.param(
            submodule("url", "https://:443/a"),
            "gitmodulesUrl: disallowed submodule url: https://:443/a",
            id="url without a host",
        ),
        pytest.param(  # git says so and takes it, since the harmless header after it is judged last
            [(TREE, b""), (TAG, tag(tagger=b"tagger A<a> 1 +0000\n", more=b"extra x\n\nmessage\n"))],
            "missingSpaceBeforeEmail: invalid author/committer line - missing space before email",
            id="bad tagger, extra header",
        ),
        pytest.param(
            [(TREE, b""), (TAG, tag(more=b"gpgsig x\n y\nextra z\n\nmessage\n"))],
            "",
            id="signed, extra header",
        ),
    ],
)
def test_what_later_gits_find(tmp_path: Path, objects: Objects, text: str) -> None:
    taken, said = ours(objects, tmp_path)
    assert taken is not bool(text)
    assert [line.partition(": ")[2].partition(": ")[2] for line in said] == ([text + "\n"] if text else [])


# --- the default: what is dangerous


SAFE_BY_DEFAULT = {
    "clean", "no dotgit ntfs", "no dotgit", "no dotgit hfs", "no dotgit malformed utf-8", "no dotdot",
    "backslash", "bad mode 0664", "unsorted", "unsorted folder", "no gitmodules symlink",
    "gitattributes symlink", "gitattributes symlink ntfs", "gitattributes folder", "gitignore symlink",
    "gitignore symlink ntfs", "mailmap symlink", "mailmap symlink ntfs",
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_the_default_refuses_dangerous_trees(tmp_path: Path, name: str) -> None:
    taken, said = ours(with_tree(*TREES[name]), tmp_path, strict=False)
    assert taken is (name in SAFE_BY_DEFAULT)
    assert taken or all(line.startswith("error: object ") for line in said)


@pytest.mark.parametrize("name", COMMITS)
def test_the_default_wants_fields_and_no_style(tmp_path: Path, name: str) -> None:
    taken, _ = ours([(TREE, b""), (COMMIT, COMMITS[name])], tmp_path, strict=False)
    assert taken is (name not in {"missing author", "missing committer", "nul in header", "unterminated"})


def test_the_default_reads_gitmodules(tmp_path: Path) -> None:
    for number, (name, objects) in enumerate(BLOBS.items()):
        harmless = "clean" in name or "attributes" in name or "odd" in name
        harmless = harmless or name in (
            "modules unreadable",
            "modules another section",
            "modules name of nothing",
        )
        harmless = harmless or name == "modules name dots"
        assert ours(objects, tmp_path / str(number), strict=False)[0] is harmless, name


def test_ids_are_known() -> None:
    assert set(MESSAGES) >= DANGEROUS
    documented = subprocess.run(["git", "help", "--config"], capture_output=True, text=True).stdout
    ids = set(re.findall(r"^fsck\.(\w+)$", documented, re.MULTILINE)) - {"skipList"}
    assert {name.lower() for name in ids} <= {name.lower() for name in MESSAGES}


# --- random objects, a repository full, compared with git fsck


def _mutate(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 2)):
        place = rng.randrange(len(out) + 1)
        action = rng.randrange(3)
        if action == 0:
            out[place:place] = rng.choice(pieces)
        elif action == 1:
            del out[place : place + rng.randint(1, 6)]
        else:
            out[place : place + 1] = rng.choice(pieces)
    return bytes(out)


def _random_objects(rng: random.Random) -> Objects:
    objects: Objects = []
    pieces = [b"\0", b"\n", b"<", b">", b" ", b"0", b"author ", b"x", b"\n\n", b"tree ", b"-", b"9" * 12]
    for _ in range(300):
        objects.append((COMMIT, _mutate(rng, commit(middle=b"parent " + b"1" * 40 + b"\n"), pieces)))
        objects.append((TAG, _mutate(rng, tag(), pieces)))
    letters = [
        b".", b"g", b"i", b"t", b"G", b"T", b"~", b"1", b" ", b":", b"\\", b"/", b"git", b".git", b"mod",
        b"ules", b"gi7eba", b"gi7d29", b"gitmod", b"gitatt", b"ributes", b"2", b"9", ZERO_WIDTH,
        b"\xef\xbb\xbf", b"\xe2",
    ]  # fmt: skip
    modes = ["100644", "100755", "40000", "120000", "0100644", "100664", "100600"]
    for _ in range(1500):
        entries = [
            (
                rng.choice(modes[:4] if rng.random() < 0.9 else modes),
                b"".join(rng.choices(letters, k=rng.randint(1, 4))),
            )
            for _ in range(rng.randint(1, 4))
        ]
        if rng.random() < 0.8:
            entries.sort(key=lambda entry: entry[1] + (b"/" if entry[0] == "40000" else b""))
        objects.append((TREE, tree(*entries)))
    return objects


def test_random_objects_are_judged_as_by_git(git: Any, tmp_path: Path) -> None:
    rng = random.Random(4)
    git("init", "-q", "--bare", tmp_path / "git")
    objects: dict[bytes, tuple[int, bytes]] = {}
    for kind, data in [(BLOB, b""), (TREE, b""), *_random_objects(rng)]:
        oid = name_of(kind, data)
        path = tmp_path / "git" / "objects" / oid.hex()[:2] / oid.hex()[2:]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zlib.compress(object_header(kind, len(data)) + data, 1))
        objects[oid] = kind, data
    done = subprocess.run(
        ["git", "fsck", "--strict", "--no-dangling", "--no-reflogs", "--no-progress"],
        cwd=tmp_path / "git", env=git.environ, capture_output=True,
    )  # fmt: skip
    text = done.stderr.decode("utf-8", "backslashreplace")
    expected: dict[str, set[str]] = {}
    for line in re.findall(r"^(?:error|warning) in (?:tree|commit|tag|blob) .*$", text, re.MULTILINE):
        found = re.match(r"\w+ in \w+ ([0-9a-f]+): (\w+): ", line)
        assert found is not None
        expected.setdefault(found[1], set()).add(found[2])
    assert len(expected) > 700
    broken = set(re.findall(r"([0-9a-f]{40}): object could not be parsed|error: ([0-9a-f]{40}):", text))
    unparsed = {oid for pair in broken for oid in pair if oid}
    for oid, (kind, data) in objects.items():
        said: list[str] = []
        checker = Fsck(rules(), SHA1, said.append)
        try:
            clean = checker.check(kind, oid, data)
        except FsckFailed:
            clean = False
        assert clean is not bool(said)
        ids = {line.split(": ")[2] for line in said}
        theirs = expected.get(oid.hex(), set()) - {"gitmodulesBlob", "gitattributesBlob"}  # `finish`'s
        if oid.hex() in unparsed or (kind != TREE and theirs == {"badTree"}):
            continue
        if "treeNotSorted" in theirs:
            ids.discard("duplicateEntries")
            theirs.discard("duplicateEntries")
        assert ids == theirs, (data, said)


# --- deltas, and sizes


def test_a_tree_judged_by_its_changes_is_judged_alike() -> None:
    rng = random.Random(5)
    names = [
        b".git",
        b"a",
        b"b",
        b"c",
        b"git~1",
        b".gitmodules",
        b"x y",
        b"y",
        b".mailmap",
        b"Makefile",
        b"m~1",
    ]
    for _ in range(4000):
        base = {rng.choice(names): rng.choice(["100644", "40000", "120000"]) for _ in range(3)}
        checker = Fsck(rules(strict=False), SHA1, lambda text: None)
        data = tree(*((mode, name) for name, mode in base.items()))
        with_faults = rng.random() < 0.3
        try:
            if not checker.check(TREE, b"", data):
                continue
        except FsckFailed:
            continue
        new = tree(
            (rng.choice(["100644", "40000", "0100644"] if with_faults else ["100644"]), rng.choice(names))
        )
        cut = rng.choice([0, len(data)])
        result = data[:cut] + new + data[cut:]
        outcomes = []
        for is_whole in (True, False):
            said: list[str] = []
            checker = Fsck(rules(strict=False), SHA1, said.append)
            try:
                if is_whole:
                    checker.check(TREE, b"", result)
                else:
                    checker.check_changes(b"", result, [(cut, cut + len(new))])
            except FsckFailed:
                pass
            outcomes.append(said)
        assert outcomes[0] == outcomes[1], result


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_real_history_is_clean(fmt: ObjectFormat, tangled: Any, tangled256: Any, tmp_path: Path) -> None:
    history = tangled if fmt is SHA1 else tangled256
    pack = history.git("pack-objects", "--all", "--stdout", "--delta-base-offset", "-q", input=b"")
    pieces = iter([pack])
    for number, strict in enumerate((True, False)):
        directory = tmp_path / str(number)
        directory.mkdir()
        pieces = iter([pack])
        said: list[str] = []
        ingest_pack(
            lambda n, pieces=pieces: next(pieces, b""),  # type: ignore[misc]
            directory,
            fmt,
            bases=ObjectStore(tmp_path / "none", fmt),
            limits=IngestLimits(),
            tick=lambda done, total: None,
            fsck=Fsck(rules(strict=strict), fmt, said.append),
        )
        assert [line for line in said if not line.startswith("warning: ")] == []


def test_a_gitmodules_in_the_repository_is_read(tmp_path: Path, git: Any) -> None:
    git("init", "-q", "--bare", tmp_path / "repo")
    text = '[submodule "a"]\n\tpath = -a\n'
    oid = bytes.fromhex(git("hash-object", "-w", "--stdin", cwd=tmp_path / "repo", input=text))
    said: list[str] = []
    pieces = iter([pack_of([(TREE, tree(("100644", b".gitmodules", oid)))])])
    directory = tmp_path / "incoming"
    directory.mkdir()
    with pytest.raises(FsckFailed, match="fsck error in packed object"):
        ingest_pack(
            lambda n: next(pieces, b""),
            directory,
            SHA1,
            bases=ObjectStore(tmp_path / "repo" / "objects", SHA1),
            limits=IngestLimits(),
            tick=lambda done, total: None,
            fsck=Fsck(rules(), SHA1, said.append),
        )
    assert said == [f"error: object {oid.hex()}: gitmodulesPath: disallowed submodule path: -a\n"]
    assert list(directory.iterdir()) == []


def test_large_gitmodules_and_many_odd_ones(tmp_path: Path) -> None:
    huge = b"#" * (5 << 20) + b"\n"
    assert ours(with_modules(huge), tmp_path / "large") == (
        False,
        [f"error: object {name_of(BLOB, huge).hex()}: gitmodulesLarge: .gitmodules too large to parse\n"],
    )
    odd = b"#" * (3 << 20) + b"\n"
    checker = Fsck(rules(), SHA1, lambda text: None)
    for number in range(30):
        assert checker.check(TREE, b"", tree(("100644", b".gitmodules", b"%020d" % number)))
    with pytest.raises(LimitExceeded, match=r"bytes of [.]gitmodules files in one push"):
        checker.finish(lambda raw_oid, limit_bytes: (BLOB, odd))


def test_malformed_trees_take_no_more_memory_than_their_size() -> None:
    import tracemalloc

    data = b"x" * (4 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(FsckFailed):
            Fsck(rules(), SHA1, lambda text: None).check(TREE, b"", data)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    finally:
        tracemalloc.stop()


def test_warnings_are_limited() -> None:
    said: list[str] = []
    checker = Fsck(rules(), SHA1, said.append)
    for number in range(3000):
        checker.check(TREE, b"", tree(("100664", b"%d" % number)))
    assert len(said) == 1000
    assert said[-1] == "warning: further findings are not shown\n"


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        (b"HTTP://Host/%7ea/./b/../c", b"http://host/~a/c"),
        (b"https://h:443/", b"https://h/"),
        (b"https://h:0444", b"https://h:444/"),
        (b"https://h:0/", None),
        (b"https://h:x/", None),
        (b"https://u:p@h/a", b"https://u:p@h/a"),
        (b"https://h/../a", None),
        (b"https://h/%zz", None),
        (b"https://h<x/", None),
        (b"https://[::1]:8080/a", b"https://[::1]:8080/a"),
        (b"https:///a", None),
        (b"nothing", None),
    ],
)
def test_urls_are_normalized_as_by_git(url: bytes, normal: bytes | None) -> None:
    assert normalize_url(url) == normal


def test_names_of_submodules_and_files() -> None:
    assert [is_submodule_name(name) for name in ("a", "", "..", "a/..", "..a", "a\\..\\b", "a..b")] == [
        True, False, False, False, True, False, True,
    ]  # fmt: skip
    assert is_dot_name(b".GITMODULES ", b"gitmodules")
    assert not is_dot_name(b".gitmodules2", b"gitmodules")


def test_every_type_has_its_check() -> None:
    assert Fsck(rules(), SHA1, lambda text: None).check(BLOB, b"", b"anything")
    assert set(TYPE_NAMES) == {COMMIT, TREE, BLOB, TAG}
