"""Attribute files against C git's `git check-attr`."""

import subprocess
from pathlib import Path

from gitsmart.wire.gitattributes import BINARY_MACRO, attributes_of, parse

PATTERNS = [
    "*", "*.c", "a", "/a", "a/", "a/b", "/a/b", "a/*", "a/**", "**/b", "a/**/c", "**", "a**c", "a*c",
    "?", "a?c", "[ab]", "[!ab]", "[^ab]", "[a-c]x", "[]-]", "[[:alpha:]]", "[[:digit:]x]", "[[:nope:]]",
    "[", "[a", "\\*", "a\\", "*/b", "**/b/**", "a/b/*.c", "*.tar.*", "a*b*c", "x/**/**/y", "b/c",
    "**/b/c", "\\[ab]", "[a\\]]", "a/**b", "*a*b*", "/*", "/**/c", "a//b", "[--0]", "[b-a]",
]  # fmt: skip
PATHS = [
    "a", "b", "c", "a/b", "a/b/c", "a/x/y/c", "x.c", "a/x.c", "a/b/x.c", "abc", "axxc", "a/c", "ab/c",
    "ax", "bx", "1", "x", "]", "-", "*", "x/y", "x/1/y", "x/1/2/y", "f.tar.gz", "aXbXc", "b/c", "z/b/c",
    "a/zb", "[ab]", "[", "[a", "xaybz", "z/b", "0",
]  # fmt: skip


def check_attr(tmp_path: Path, lines: str, paths: list[str]) -> dict[str, dict[str, str]]:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitattributes").write_bytes(lines.encode())
    out = subprocess.run(
        ["git", "check-attr", "-z", "--stdin", "-a"],
        cwd=tmp_path,
        input="\0".join([*paths, ""]).encode(),
        check=True,
        capture_output=True,
    ).stdout.decode()
    fields = out.split("\0")
    found: dict[str, dict[str, str]] = {path: {} for path in paths}
    for at in range(0, len(fields) - 1, 3):
        found[fields[at]][fields[at + 1]] = fields[at + 2]
    return found


def test_patterns_match_as_in_git(tmp_path: Path) -> None:
    lines = [f"{pattern} p{number}" for number, pattern in enumerate(PATTERNS)]
    expected = check_attr(tmp_path, "\n".join(lines) + "\n", PATHS)
    file = parse("\n".join(lines).encode())
    wanted = frozenset(b"p%d" % number for number in range(len(PATTERNS)))
    wrong = []
    for path in PATHS:
        got = attributes_of(path.encode(), (file,), wanted)
        for number, pattern in enumerate(PATTERNS):
            ours = got.get(b"p%d" % number) is True
            if ours != (f"p{number}" in expected[path]):
                wrong.append((pattern, path, ours))
    assert not wrong


def test_states_and_macros_are_as_in_git(tmp_path: Path) -> None:
    lines = """\
# comment
* one two=2 -three
a !one two
\t b  three\tone=
"c d" quoted
"\\303\\274" octal
[attr]mac -one two=mac four
d mac
e mac one
f -mac
g binary
h binary diff
!i bad
-bad-name
j bad!name =x -=y good
[attr] bracket
"""
    paths = ["a", "b", "c d", "ü", "d", "e", "f", "g", "h", "i", "j", "t", "zz"]
    expected = check_attr(tmp_path, lines, paths)
    files = (BINARY_MACRO, parse(lines.encode()))
    names = {name for found in expected.values() for name in found} | {"bad", "good", "octal", "one", "diff"}
    for path in paths:
        got = attributes_of(path.encode(), files, frozenset(name.encode() for name in names))
        words = {True: "set", False: "unset"}
        shown = {
            name.decode(): words[value] if isinstance(value, bool) else value.decode()
            for name, value in got.items()
            if value is not None
        }
        assert (path, shown) == (path, expected[path])


def test_folders() -> None:
    file = parse(b"dir/ x\nplain y\n", b"top/")
    wanted = frozenset({b"x", b"y"})
    assert attributes_of(b"top/dir/", (file,), wanted) == {b"x": True}
    assert attributes_of(b"top/dir", (file,), wanted) == {}
    assert attributes_of(b"dir/", (file,), wanted) == {}
    assert attributes_of(b"top/a/plain/", (file,), wanted) == {b"y": True}
    assert parse(b"[attr]m x\n", b"top/", macros=False).macros == ()


def test_garbage_is_left_out() -> None:
    for data in (
        b"\xff\xfe\0",
        b'"unterminated x',
        b'"bad\\q" x',
        b"x" * 5000 + b" y",
        b"[attr]",
        b"[attr] x",
    ):
        file = parse(data)
        assert attributes_of(b"any", (file,), frozenset({b"x", b"y"})) == {}
