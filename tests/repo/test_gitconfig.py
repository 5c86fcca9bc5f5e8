"""The parser against git config itself, and the getters against git's documentation."""

import os
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import RepositoryUnusable
from gitsmart.repo.gitconfig import ConfigFile, GitConfig, parse


class RunGit(Protocol):
    def __call__(self, cwd: Path, *args: str, stdin: bytes = b"", check: bool = True) -> bytes: ...


GOOD = [
    pytest.param(b"", id="empty"),
    pytest.param(b"[core]\n\tbare = true\n", id="usual"),
    pytest.param(b"[core] bare = true", id="one line, no newline"),
    pytest.param(b"\xef\xbb\xbf[core]\n\tbare = true\n", id="byte order mark"),
    pytest.param(b"[core]\r\n\tbare = true\r\n", id="crlf"),
    pytest.param(b"[Core]\n\tBare\n\tFileMode = FALSE\n", id="case, no value"),
    pytest.param(b'[remote "A.b\\"c\\\\d"]\n\turl = x\n', id="subsection with escapes"),
    pytest.param(b"[branch.Main]\n\tmerge = y\n", id="dotted section"),
    pytest.param(b'[a]\n\tb = one ; two\n\tc = one # two\n\td = "one ; two" # x\n', id="comments"),
    pytest.param(b'[a]\n\tb = "  lead" and  trail   \n', id="quotes and blanks"),
    pytest.param(b'[a]\n\tb = one\\\n two\n\tc = \\t\\n\\\\\\"x\n', id="continuation and escapes"),
    pytest.param(b"[a]\n\tb =\n\tb = 2\n\tc=   \n", id="empty values"),
    pytest.param(b"# all\n; comments\n[a] # here\n b-c1 = 1\n", id="comment lines"),
    pytest.param(b"[a] b = 1\n[c] d = 2\n[a] e = 3\n", id="sections on lines with variables"),
    pytest.param(b"[a]\n\tb = \xff\xc3\xa9\n", id="not utf-8"),
    pytest.param(b"[a]\n\tb = x\\", id="backslash at the end"),
]
BAD = [
    pytest.param(b"[core\n", id="section not closed"),
    pytest.param(b"[core]\n\t1bare = x\n", id="key starts with a digit"),
    pytest.param(b"[core]\n\tbare : x\n", id="no equals sign"),
    pytest.param(b'[core]\n\ta = "x\n', id="quote not closed"),
    pytest.param(b"[core]\n\ta = \\x\n", id="unknown escape"),
    pytest.param(b'[core "x]\n', id="subsection not closed"),
    pytest.param(b'[core"x"]\n', id="no blank before the subsection"),
    pytest.param(b'[core "x" ]\n', id="blank after the subsection"),
    pytest.param(b"[co_re]\n", id="underscore"),
    pytest.param(b"<<<<<<< HEAD\n", id="merge conflict"),
]


@pytest.mark.parametrize("data", GOOD)
def test_reads_what_git_reads(data: bytes, git: RunGit, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(data)
    listed = git(tmp_path, "config", "--file", str(path), "--null", "--list")
    theirs = []
    for entry in listed.removesuffix(b"\0").split(b"\0") if listed else []:
        name, newline, value = entry.partition(b"\n")
        theirs.append((os.fsdecode(name), os.fsdecode(value) if newline else None))
    assert parse(data) == theirs


@pytest.mark.parametrize("data", BAD)
def test_refuses_what_git_refuses(data: bytes, git: RunGit, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(data)
    with pytest.raises(AssertionError, match="bad config line"):
        git(tmp_path, "config", "--file", str(path), "--list")
    with pytest.raises(RepositoryUnusable, match="bad config line"):
        parse(data)


@given(st.binary(max_size=80))
def test_garbage_raises_one_error_only(data: bytes) -> None:
    for text in (data, b"[a]\nb = " + data, b'[a "' + data):
        try:
            parse(text)
        except RepositoryUnusable:
            pass


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", True), ("a = true", True), ("a = YES", True), ("a = on", True), ("a = 1", True),
        ("a = -2k", True),
        ("a = false", False), ("a = No", False), ("a = off", False), ("a = 0", False), ("a =", False),
        ("a = true\n a = no", False),
    ],
)  # fmt: skip
def test_booleans(text: str, value: bool) -> None:
    assert GitConfig(parse(f"[s]\n {text}\n".encode())).get_bool("S.A") is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("42", 42),
        ("-1", -1),
        ("+7", 7),
        ("1k", 1024),
        ("2M", 2 << 20),
        ("3g", 3 << 30),
        ("0x10", 16),
        ("010", 8),
    ],
)
def test_integers(text: str, value: int) -> None:
    assert GitConfig(parse(f"[s]\n a = {text}\n".encode())).get_int("s.a") == value


@pytest.mark.parametrize("text", ["x", "", "1x", "1kk", "08", "0x", "9999999999999999999", "1 k", "--1"])
def test_bad_integers_are_errors(text: str) -> None:
    config = GitConfig(parse(f"[s]\n a = {text}\n".encode()))
    with pytest.raises(RepositoryUnusable, match="bad numeric config value"):
        config.get_int("s.a")


def test_bad_booleans_and_missing_values_are_errors() -> None:
    config = GitConfig(parse(b"[s]\n a = maybe\n b\n"))
    with pytest.raises(RepositoryUnusable, match=r"bad boolean config value 'maybe' for 's\.a'"):
        config.get_bool("s.a")
    with pytest.raises(RepositoryUnusable, match="missing value"):
        config.get_str("s.b")
    with pytest.raises(RepositoryUnusable, match="bad numeric"):
        config.get_int("s.b")


def test_defaults_last_one_wins_and_all_values() -> None:
    config = GitConfig(parse(b'[a "B"]\n c = 1\n C = 2\n[a "b"]\n c = 3\n'))
    assert (config.get_str("A.B.c"), config.get_str("a.b.C"), config.get_str("a.x.c")) == ("2", "3", None)
    assert config.get_all("a.B.c") == ("1", "2")
    assert config.get_int("no.such", 5) == 5
    assert config.get_bool("no.such", True) is True
    assert config.get_bool("no.such") is None
    assert config.names("a") == ("a.B.c", "a.b.c")
    assert "a.B.C" in config
    assert "a.bb.c" not in config


def test_a_file_is_parsed_again_only_when_it_changed(tmp_path: Path) -> None:
    file = ConfigFile(tmp_path)
    assert file.read().get_str("a.b") is None
    (tmp_path / "config").write_text("[a]\nb = 1\n")
    first = file.read()
    assert first.get_str("a.b") == "1"
    assert file.read() is first
    (tmp_path / "new").write_text("[a]\nb = 2\n")
    os.rename(tmp_path / "new", tmp_path / "config")
    assert file.read().get_str("a.b") == "2"
    assert first.get_str("a.b") == "1"
    (tmp_path / "config").unlink()
    assert file.read().get_str("a.b") is None


def test_the_worktree_config_comes_after(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[core]\nbare = true\n")
    (tmp_path / "config.worktree").write_text("[core]\nbare = false\n")
    file = ConfigFile(tmp_path)
    assert file.read().get_bool("core.bare") is True
    text = "[core]\nbare = true\n[extensions]\nworktreeConfig = true\n"
    (tmp_path / "config").write_text(text)
    assert file.read().get_bool("core.bare") is True  # no extension means anything without a version
    (tmp_path / "config").write_text(text + "[core]\nrepositoryFormatVersion = 0\n")
    assert file.read().get_bool("core.bare") is False


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gitsmart.repo.gitconfig.LIMIT_BYTES", 100)
    (tmp_path / "config").write_text("#" * 101)
    with pytest.raises(RepositoryUnusable, match="larger than 100 bytes"):
        ConfigFile(tmp_path).read()
