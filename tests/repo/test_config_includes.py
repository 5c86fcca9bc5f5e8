"""Includes, worktree config and the server's defaults, against what git itself reads."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from gitsmart.errors import RepositoryUnusable
from gitsmart.repo import gitconfig
from gitsmart.repo.gitconfig import ServerConfig
from gitsmart.repo.root import RepositoryRoot


@pytest.fixture
def path(root: RepositoryRoot) -> Path:
    root.create("Group/r")
    return root.path / "Group" / "r.git"


def gits(git: Any, path: Path) -> list[tuple[str, str | None]]:
    """Every variable that git sees, in order."""
    found = []
    for item in git(path, "config", "--list", "--null").split(b"\0")[:-1]:
        name, newline, value = item.partition(b"\n")
        found.append((os.fsdecode(name), os.fsdecode(value) if newline else None))
    return found


def ours(path: Path, server: ServerConfig = gitconfig.NO_SERVER_CONFIG) -> list[tuple[str, str | None]]:
    return RepositoryRoot(path.parent, server).open(path.name).config._entries


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def add(path: Path, text: str) -> None:
    with open(path / "config", "a") as file:
        file.write(text)


def test_includes_stand_where_they_are_named(path: Path, git: Any, tmp_path: Path) -> None:
    write(tmp_path / "outside" / "shared", "[a]\nb = outside\n[include]\npath = more/deep\n")
    write(tmp_path / "outside" / "more" / "deep", "[a]\nb = deep\n")
    write(path / "side", "[a]\nb = side\n")
    write(tmp_path / "home" / "hosting", "[a]\nb = home\n")
    write(path / "sub" / "up", "[include]\npath = ../side\n")
    add(
        path,
        f"[a]\nb = first\n[include]\npath = side\npath = {tmp_path}/outside/shared\npath = missing\n"
        "path = side/no\npath = sub/up\n[a]\nb = last\n[include]\npath = side\n",
    )
    assert ours(path) == gits(git, path)
    assert [value for name, value in ours(path) if name == "a.b"] == [
        "first", "side", "outside", "deep", "side", "last", "side",
    ]  # fmt: skip


def test_home(path: Path, git: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "home" / "hosting", "[a]\nb = home\n")
    add(path, f'[include]\npath = ~/hosting\n[includeIf "gitdir:~/"]\npath = {tmp_path}/home/hosting\n')
    (tmp_path / "home" / "r.git").symlink_to(path)
    assert ours(path) == gits(git, path)
    assert ours(path).count(("a.b", "home")) == 1
    add(path, "[include]\npath = ~nobody-of-this-name/x\n")
    with pytest.raises(RepositoryUnusable, match=r"could not expand include\.path '~nobody"):
        ours(path)


CONDITIONS = [
    "gitdir:{path}", "gitdir:{path}/", "gitdir:{root}/", "gitdir:{root}/*", "gitdir:{root}/**",
    "gitdir:Group/", "gitdir:group/", "gitdir/i:group/", "gitdir/i:GROUP/R.GIT", "gitdir:r.git",
    "gitdir:*.git", "gitdir:./", "gitdir:./x", "gitdir:.", "gitdir:{root}/[A-Z]roup/r.git",
    "gitdir/i:{root}/[a-f]ROUP/", "gitdir/i:{root}/[a-g]ROUP/", "gitdir:?roup/r.git",
    "gitdir:**/r.git", "gitdir:", "gitdir:/", "gitdir", "worktree:/", "nonsense:x",
    "gitdir/i:{root}/**/R.git", "onbranch:main", "onbranch:ma*", "onbranch:*", "onbranch:**",
    "onbranch:topic/", "onbranch:topic/*", "onbranch:", "hasconfig:remote.*.url:https://*/**",
    "hasconfig:remote.*.url:https://example.com/r.git", "hasconfig:remote.*.url:**",
    "hasconfig:remote.*.url:*", "hasconfig:remote.x.url:**", "hasconfig:remote.*.url:ssh://**",
    "hasconfig:remote.*.pushurl:**",
]  # fmt: skip


@pytest.mark.parametrize("head", ["main", "topic/one", "topic/one/two", ""])
def test_conditions(head: str, path: Path, root: RepositoryRoot, git: Any) -> None:
    if head:
        git(path, "symbolic-ref", "HEAD", f"refs/heads/{head}")
    else:
        git(path, "update-ref", "--no-deref", "HEAD", git.commit(path, "f", "x").decode())
    lines = []
    for number, condition in enumerate(CONDITIONS):
        write(path / f"inc{number}", f"[hit]\nn{number} = {number}\n")
        text = condition.format(path=path, root=root.path)
        lines.append(f'[includeIf "{text}"]\npath = inc{number}\n')
    add(path, "".join(lines[:20]) + '[remote "x"]\nurl = https://example.com/r.git\n' + "".join(lines[20:]))
    assert ours(path) == gits(git, path)
    hits = {CONDITIONS[int(value or "")] for name, value in ours(path) if name.startswith("hit.")}
    assert {"gitdir:{root}/", "gitdir/i:group/", "hasconfig:remote.*.url:**", "gitdir:{path}/"} <= hits
    assert ("onbranch:topic/" in hits) is head.startswith("topic/")


def test_remote_urls_of_every_file_count(path: Path, git: Any) -> None:
    write(path / "hit", "[a]\nb = hit\n")
    write(path / "remotes", '[remote "o"]\nurl = git@example.com:x\n')
    add(path, '[includeIf "hasconfig:remote.*.url:git@*:**"]\npath = hit\n[include]\npath = remotes\n')
    assert ours(path) == gits(git, path)
    assert ("a.b", "hit") in ours(path)
    write(path / "hit", '[remote "p"]\nurl = y\n')
    with pytest.raises(AssertionError, match="remote URLs cannot be configured"):
        gits(git, path)
    with pytest.raises(RepositoryUnusable, match="remote URLs cannot be configured"):
        ours(path)


def test_depth_and_loops(path: Path, git: Any) -> None:
    for number in range(1, 11):
        write(path / f"inc{number}", f"[a]\nb = {number}\n[include]\npath = inc{number + 1}\n")
    add(path, "[include]\npath = inc1\n")
    assert ours(path) == gits(git, path)
    assert ("a.b", "10") in ours(path)
    write(path / "inc11", "[a]\nb = 11\n")
    for text in ("[a]\nb = 11\n", "[include]\npath = inc1\n"):
        write(path / "inc11", text)
        with pytest.raises(AssertionError, match="exceeded maximum include depth"):
            gits(git, path)
        with pytest.raises(RepositoryUnusable, match="more than 10 includes inside each other"):
            ours(path)


def test_includes_that_multiply_are_bounded(path: Path) -> None:
    for number in range(9):
        write(path / f"inc{number}", "[include]\n" + f"path = inc{number + 1}\n" * 50)
    write(path / "inc9", "[a]\nb = c\n")
    add(path, "[include]\npath = inc0\n")
    start = time.perf_counter()
    with pytest.raises(RepositoryUnusable, match="includes more than 1000 files"):
        ours(path)
    write(path / "inc0", f"#{'x' * 1_000_000}\n")
    add(path, "path = inc0\n" * 10)
    with pytest.raises(RepositoryUnusable, match="larger than 4194304 bytes"):
        ours(path)
    assert time.perf_counter() - start < 5


def test_errors_tell_which_file_and_no_path(path: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside" / "shared", "[a]\nb\nc = \\q\n")
    add(path, f"[include]\npath = {tmp_path}/outside/shared\n")
    with pytest.raises(
        RepositoryUnusable, match=r"^bad config line 3 in 'shared', which the repository's config"
    ):
        ours(path)
    (tmp_path / "outside" / "shared").unlink()
    (tmp_path / "outside" / "shared").mkdir()
    with pytest.raises(RepositoryUnusable, match=r"^'shared', which .* includes can't be read$"):
        ours(path)
    (tmp_path / "outside" / "shared").rmdir()
    (tmp_path / "outside" / "shared").symlink_to("/dev/zero")
    with pytest.raises(RepositoryUnusable, match=r"^'shared', which .* includes is larger than"):
        ours(path)
    (tmp_path / "outside" / "shared").unlink()
    os.mkfifo(tmp_path / "outside" / "shared")
    assert ("a.b", None) not in ours(path)
    add(path, "[include]\npath\n")
    with pytest.raises(RepositoryUnusable, match=r"missing value for 'include\.path'"):
        ours(path)


def test_a_change_of_any_file_is_noticed(path: Path, git: Any) -> None:
    add(
        path,
        '[include]\npath = one\n[includeIf "onbranch:topic"]\npath = two\n[extensions]\nworktreeConfig\n',
    )
    write(path / "two", "[a]\nb = two\n")
    root = RepositoryRoot(path.parent)
    repo = root.open("r")
    assert repo.config.get_str("a.b") is None
    assert repo.config is repo.config
    write(path / "one", "[a]\nb = one\n")
    assert repo.config.get_str("a.b") == "one"
    assert repo.config is repo.config
    write(path / "new", "[a]\nb = uno\n")
    os.rename(path / "new", path / "one")
    assert repo.config.get_str("a.b") == "uno"
    git(path, "symbolic-ref", "HEAD", "refs/heads/topic")
    assert repo.config.get_str("a.b") == "two"
    assert repo.config is repo.config
    write(path / "config.worktree", "[a]\nb = worktree\n")
    assert repo.config.get_str("a.b") == "worktree"
    (path / "config.worktree").unlink()
    (path / "two").unlink()
    assert repo.config.get_str("a.b") == "uno"
    assert root.open("r") is repo  # its format hasn't changed: nothing to open anew
    add(path, "[core]\nbare = false\n")
    assert root.open("r") is not repo


def test_worktree_config_is_followed_too(path: Path, git: Any) -> None:
    write(path / "config.worktree", "[a]\nb = worktree\n[include]\npath = side\n")
    write(path / "side", "[a]\nb = side\n")
    assert ours(path) == gits(git, path)
    git(path, "config", "core.repositoryFormatVersion", "1")
    git(path, "config", "extensions.worktreeConfig", "true")
    assert ours(path) == gits(git, path)
    assert ours(path)[-1] == ("a.b", "side")


def test_the_format_comes_from_the_config_file_alone(path: Path, git: Any) -> None:
    """git: setup.c read_repository_format() follows no includes; core.bare it reads again with them."""
    write(path / "side", "[core]\nrepositoryFormatVersion = 7\n[extensions]\nunheardOf = 1\n")
    add(path, "[include]\npath = side\n")
    assert git(path, "rev-parse", "--is-bare-repository") == b"true"
    assert RepositoryRoot(path.parent).open("r").is_bare
    write(path / "side", "[core]\nbare = false\n")
    assert git(path, "rev-parse", "--is-bare-repository") == b"false"
    assert not RepositoryRoot(path.parent).open("r").is_bare
    locked = ServerConfig.from_settings((), ("core.*",))
    assert RepositoryRoot(path.parent, locked).open("r").is_bare


# The server's own defaults


def test_the_server_s_defaults_come_first(path: Path) -> None:
    server = ServerConfig.from_settings(
        (("receive.denyDeletes", "true"), ("transfer.hideRefs", "refs/a"), ("transfer.hideRefs", "refs/b")),
        (),
    )
    repo = RepositoryRoot(path.parent, server).open("r")
    assert repo.config.get_bool("receive.denydeletes") is True
    add(path, "[receive]\ndenyDeletes = false\n[transfer]\nhideRefs = !refs/a\n")
    assert repo.config.get_bool("receive.denyDeletes") is False
    assert repo.config.get_all("transfer.hideRefs") == ("refs/a", "refs/b", "!refs/a")
    assert not repo.view("receive").hides(b"refs/a/x")


def test_what_is_locked_a_repository_can_t_set(path: Path, tmp_path: Path) -> None:
    write(path / "side", "[receive]\ndenyDeletes = false\n[other]\nx = 1\n")
    add(
        path,
        "[receive]\ndenyDeletes = false\nmaxInputSize = 5\n[include]\npath = side\n[core]\nhooksPath = /x\n",
    )
    add(path, '[remote "a.b"]\nurl = x\n')
    server = ServerConfig.from_settings(
        (("receive.denyDeletes", "true"),), ("Receive.DenyDeletes", "core.hooksPath")
    )
    config = RepositoryRoot(path.parent, server).open("r").config
    assert config.get_bool("receive.denyDeletes") is True
    assert config.get_int("receive.maxInputSize") == 5
    assert config.get_str("core.hooksPath") is None
    assert config.get_str("core.filemode") == "true"
    assert config.get_str("other.x") == "1"
    server = ServerConfig.from_settings(
        (("receive.denyDeletes", "true"),), ("receive.*", "include.*", "remote.*")
    )
    config = RepositoryRoot(path.parent, server).open("r").config
    assert config.get_bool("receive.denyDeletes") is True
    assert config.get_int("receive.maxInputSize") is None
    assert config.get_str("other.x") is None
    assert config.names("remote") == ()
    assert config.get_str("core.hooksPath") == "/x"


# Patterns

PARTS = [
    "a", "b", "ab", "A", "/", "/", "*", "**", "**/", "/**", "***", "?", "[ab]", "[!a]", "[a-c]", "[^/]",
    "[]a]",
    "[a-]", "[A-B]", "[[:]", "[[:alpha:]]", "[[:upper:]x]", "[[:nonsense:]]", "[a", "\\\\a", "\\\\*", ".",
]  # fmt: skip


def test_patterns_match_what_git_s_match(path: Path, git: Any) -> None:
    """git's wildmatch, asked through includeIf: hundreds of patterns in one config."""
    chance = random.Random(3)
    urls = [
        "a",
        "b",
        "ab",
        "a/b",
        "a/ab/b",
        "/a/b",
        "A/b",
        "ab/",
        "a/a/a",
        "x",
        "-",
        "]",
        "a/b/A/ab",
        "*",
        "[a",
        "a.",
    ]
    for url in urls:
        write(path / "config", f'[core]\nbare = true\n[remote "x"]\nurl = "{url}"\n')
        patterns = []
        for number in range(150):
            pattern = "".join(chance.choice(PARTS) for _ in range(chance.randrange(1, 6)))
            patterns.append(pattern)
            add(path, f'[includeIf "hasconfig:remote.*.url:{pattern}"]\npath = inc{number}\n')
            write(path / f"inc{number}", f"[hit]\nn{number} = {number}\n")
        theirs = {int(value or "") for name, value in gits(git, path) if name.startswith("hit.")}
        mine = {int(value or "") for name, value in ours(path) if name.startswith("hit.")}
        assert {patterns[n] for n in mine ^ theirs} == set(), url
