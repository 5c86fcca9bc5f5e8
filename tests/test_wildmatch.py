"""git's wildcard patterns, compared with C git's: in attributes (case folded too), and in includeIf."""

import re
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gitsmart.wildmatch import LIMIT_BYTES, compile_pattern, is_literal, wildmatch
from tests.conftest import Git

PATTERNS = [
    "*", "*.c", "a", "a/b", "a/*", "a/**", "**/b", "a/**/c", "**", "***", "a/**c", "a*c", "?", "a?c", "[ab]",
    "[!ab]", "[^ab]", "[a-c]x", "[]-]", "[[:alpha:]]", "[[:upper:]]", "[[:digit:]x]", "[[:nope:]]", "[", "[a",
    "\\*", "\\A", "a\\", "*/b", "**/b/**", "a/b/*.c", "*.tar.*", "a*b*c", "x/**/**/y", "**/b/c", "\\[ab]",
    "[a\\]]", "a/**b", "*a*b*", "a//b", "[--0]", "[b-a]", "[A-C]", "A*C", "[^/]", "a[/]b", "**\\/b", "[[:]",
    "[[:alpha:]/]b", "[a-\\c]x", "[\\]-a]", "*[!a]", "**/*b", "*/**/*", "?/?", "a**/c", "/a**/b", "a**",
    "x/a**/b", "a?**/b", "**a/b", "a***/b",
]  # fmt: skip
PATHS = [
    "a", "b", "A", "B", "ab", "abc", "axxc", "AxxC", "a/b", "a/b/c", "A/b", "a/x/y/c", "x.c", "a/x.c",
    "a/b/x.c", "ab/c", "ax", "bx", "cx", "1", "x", "]", "-", "*", "x/y", "x/1/2/y", "f.tar.gz", "aXbXc",
    "b/c", "z/b/c", "a/zb", "[ab]", "[", "[a", "_", "ay/c", "x/ay/b", "axx/b", "a/x/b",
]  # fmt: skip
BEHIND_A_START = re.compile(r"[^*?\[\\]*[^*?\[\\/]\*\*+(/|\\/|$)")


def compared(git: Git, patterns: list[str]) -> list[str]:
    """Leave out what git before 2.52 takes otherwise: `**` behind a literal start."""
    version = re.search(r"(\d+)\.(\d+)", git("version", cwd=Path("/")))
    assert version is not None
    if (int(version[1]), int(version[2])) >= (2, 52):
        return patterns
    return [pattern for pattern in patterns if not BEHIND_A_START.match(pattern)]


@pytest.fixture(scope="module")
def worktree(git: Git, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wildmatch")
    git("init", "-q", path)
    return path


def gits(
    worktree: Path, git: Git, patterns: list[str], paths: list[str], *options: str
) -> set[tuple[str, str]]:
    """The pairs that match, asked through attributes, with a slash before each: not a mere name."""
    lines = [f"/{pattern} p{number}\n" for number, pattern in enumerate(patterns)]
    (worktree / ".gitattributes").write_text("".join(lines))
    out = subprocess.run(
        ["git", *options, "check-attr", "-z", "--stdin", "-a"],
        cwd=worktree,
        env=git.environ,
        input="".join(path + "\0" for path in paths),
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    return {(patterns[int(out[at + 1][1:])], out[at]) for at in range(0, len(out) - 1, 3)}


def ours(patterns: list[str], paths: list[str], **options: bool) -> set[tuple[str, str]]:
    return {(p, path) for p in patterns for path in paths if wildmatch(p.encode(), path.encode(), **options)}


@pytest.mark.parametrize("ignore_case", [False, True], ids=["exact", "folded"])
def test_patterns_match_as_gits(worktree: Path, git: Git, ignore_case: bool) -> None:
    patterns = [p for p in compared(git, PATTERNS) if not p.startswith("/")]
    option = f"core.ignoreCase={str(ignore_case).lower()}"
    assert ours(patterns, PATHS, ignore_case=ignore_case) == gits(
        worktree, git, patterns, PATHS, "-c", option
    )


PIECES = st.sampled_from(
    [*"abA/?", "*", "**", "/**/", "**/", "[ab]", "[!a]", "[^/]", "[]a]", "[A-b]", "[[:alpha:]]",
     "[[:upper:]x]", "[[:x:]]", "[a", "\\a", "\\/", "\\*", "]", "-", "."]
)  # fmt: skip
GLOBS = st.lists(PIECES, min_size=1, max_size=8).map("".join).filter(lambda p: not re.search("^/|/$", p))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(patterns=st.lists(GLOBS, min_size=20, max_size=40, unique=True), ignore_case=st.booleans())
def test_random_patterns_match_as_gits(
    worktree: Path, git: Git, patterns: list[str], ignore_case: bool
) -> None:
    patterns = compared(git, patterns)
    option = f"core.ignoreCase={str(ignore_case).lower()}"
    assert ours(patterns, PATHS, ignore_case=ignore_case) == gits(
        worktree, git, patterns, PATHS, "-c", option
    )


def test_pathspecs_match_as_gits(worktree: Path, git: Git) -> None:
    """Without PATHNAME, as pathspecs are matched: against an index of all paths."""
    names = [path for path in PATHS if not any(other.startswith(path + "/") for other in PATHS)]
    blob = git("hash-object", "-w", "--stdin", cwd=worktree, input="")
    lines = "".join(f"100644 {blob}\t{name}\n" for name in names)
    git("update-index", "--index-info", cwd=worktree, input=lines)
    for pattern in PATTERNS:
        if is_literal(pattern.encode()) or pattern.startswith("/"):
            continue
        theirs = git("ls-files", "-z", "--", pattern, cwd=worktree).split("\0")
        mine = compile_pattern(pattern.encode(), pathname=False)
        # a name as such counts as well
        alike = {name for name in names if name == pattern}
        assert {name for name in names if mine.fullmatch(name.encode())} | alike == set(theirs) - {""}, (
            pattern
        )


def test_stars_behind_a_name_are_as_the_manual_has_it() -> None:
    """gitignore(5): "Other consecutive asterisks are considered regular asterisks"."""
    texts = ("a/b", "axx/b", "ab", "a/x/b")
    assert ours(["a**/b"], list(texts)) == {("a**/b", "a/b"), ("a**/b", "axx/b")}
    assert ours(["a/**b"], ["a/xb", "a/x/b", "a/b"]) == {("a/**b", "a/xb"), ("a/**b", "a/b")}


@given(st.text("ab/*?[]!-\\.:", max_size=30).map(str.encode), st.binary(max_size=30))
def test_any_pattern_has_an_answer(pattern: bytes, text: bytes) -> None:
    for ignore_case in (False, True):
        found = wildmatch(pattern, text, ignore_case=ignore_case)
        assert not is_literal(pattern) or ignore_case or found == (pattern == text)


def test_a_text_matches_itself_quoted() -> None:
    for text in (b"a/b[c]*?\\", "grüße/ß".encode(), b"\xff/\xfe", bytes(range(1, 256))):
        quoted = b"".join(b"\\" + bytes([char]) for char in text)
        assert wildmatch(quoted, text)
        assert not wildmatch(quoted, text + b"x")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        pytest.param(b"*a" * 4000 + b"b", b"a" * 8000, id="stars"),
        pytest.param(b"**/" * 2500 + b"b", b"a/" * 4000, id="folders"),
        pytest.param(b"**/a/" * 1600 + b"b", b"a/" * 4000, id="folders-and-names"),
        pytest.param(b"**/" + b"*a/" * 2000 + b"b", b"a/" * 4000, id="stars-in-folders"),
        pytest.param(b"*" + b"[ab]" * 2000 + b"c", b"a" * 8000, id="classes"),
        pytest.param(b"?*" * 4000 + b"b", b"a" * 8000, id="any-and-stars"),
    ],
)
def test_nothing_is_tried_twice(pattern: bytes, text: bytes) -> None:
    started = time.process_time()
    assert not wildmatch(pattern, text)
    assert time.process_time() - started < 2


def test_what_is_longer_than_a_path_matches_nothing() -> None:
    assert wildmatch(b"x" * LIMIT_BYTES, b"x" * LIMIT_BYTES)
    assert not wildmatch(b"*", b"x" * (LIMIT_BYTES + 1))
    assert not wildmatch(b"*" * (LIMIT_BYTES + 1), b"x")
