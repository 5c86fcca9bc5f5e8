"""From a peer's name to a repository, or to a refusal that tells nothing."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gitsmart.errors import ConfigError, RepositoryError, RepositoryNotFound, RepositoryUnusable
from gitsmart.repo.root import InvalidRepositoryName, RepositoryExists, RepositoryRoot


def test_one_bare_repository_under_all_its_names(root: RepositoryRoot) -> None:
    made = root.create("team/app")
    assert made.name == "team/app.git"
    for name in ("team/app", "team/app.git", "/team/app", "team/app/", "/team/app.git/"):
        assert root.open(name) is made


def test_a_repository_without_the_suffix_and_one_with_a_work_tree(root: RepositoryRoot, git: Any) -> None:
    git(root.path, "init", "-q", "--bare", "plain")
    git(root.path, "init", "-q", "work/tree")
    for name in ("plain", "plain.git"):
        assert root.open(name).name == "plain"
    for name in ("work/tree", "work/tree.git", "work/tree/.git", "work/tree/"):
        repo = root.open(name)
        assert repo.name == "work/tree"
        assert not repo.is_bare
    assert root.open("plain").is_bare


def test_the_exact_name_goes_first(root: RepositoryRoot, git: Any) -> None:
    git(root.path, "init", "-q", "--bare", "a")
    git(root.path, "init", "-q", "--bare", "a.git")
    assert root.open("a").name == "a"
    assert root.open("a.git").name == "a.git"


@pytest.fixture
def trap(root: RepositoryRoot, git: Any) -> RepositoryRoot:
    """Repositories that are there, but that no name may lead to."""
    outside = root.path.parent / "outside"
    outside.mkdir()
    git(outside, "init", "-q", "--bare", "secret.git")
    root.create("app")
    (root.path / "link").symlink_to(outside)
    (root.path / "linked.git").symlink_to(outside / "secret.git")
    git(root.path / "app.git", "init", "-q", "--bare", "objects/planted.git")
    git(root.path, "init", "-q", "work")
    git(root.path / "work", "init", "-q", "--bare", "planted.git")
    (root.path / "gitfile").mkdir()
    (root.path / "gitfile" / ".git").write_text(f"gitdir: {outside / 'secret.git'}\n")
    (root.path / "gitfile2").write_text(f"gitdir: {outside / 'secret.git'}\n")
    git(root.path, "init", "-q", "--bare", "common.git")
    (root.path / "common.git" / "commondir").write_text(f"{outside / 'secret.git'}\n")
    git(root.path, "init", "-q", "--bare", "objects-out.git")
    (root.path / "objects-out.git" / "objects").rename(outside / "objects")
    (root.path / "objects-out.git" / "objects").symlink_to(outside / "objects")
    (root.path / "inward.git").symlink_to(root.path / "app.git" / "objects" / "planted.git")
    return root


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "//", ".", "..", "../outside/secret.git", "app/../app", "app/./", "./app", "//app",
        "app//", "a//b",
        "link/secret.git", "link/secret", "linked.git", "linked", "app.git/objects/planted.git",
        "app.git/objects/planted",
        "work/planted.git", "work/.git/hooks", "work/.git/.git", ".git", "gitfile", "gitfile/.git",
        "gitfile2", "common",
        "common.git", "objects-out", "inward", "no/such", "no-such", "app\0", "app\n", "app.git\x7f",
        "..\\outside\\secret.git",
        "app\\", "-app", "--upload-pack=x", "%2e%2e/outside/secret.git", "..%2foutside",
        "x" * 300, "x/" * 3000, "\ud800",
        "app.git/HEAD", "app.git/refs", "root/app", "~root", "app.git/.", "app\t", ".git/app",
    ],
)  # fmt: skip
def test_refusals_have_one_text(trap: RepositoryRoot, name: str) -> None:
    with pytest.raises(RepositoryNotFound, match=r"\Arepository not found\Z"):
        trap.open(name)


def test_an_absolute_path_is_a_name_like_others(trap: RepositoryRoot) -> None:
    with pytest.raises(RepositoryNotFound):
        trap.open(str(trap.path.parent / "outside" / "secret.git"))
    assert trap.open("/app").name == "app.git"


def test_a_link_that_stays_inside_gives_the_repository_itself(root: RepositoryRoot) -> None:
    app = root.create("app")
    (root.path / "alias").symlink_to("app.git")
    (root.path / "folder").mkdir()
    (root.path / "folder" / "loop").symlink_to("../folder")
    assert root.open("alias") is app
    assert list(root.names()) == ["app.git"]


def test_names_are_sorted_and_stop_at_repositories(trap: RepositoryRoot) -> None:
    trap.create("a/b/c")
    trap.create("a.b/x")
    trap.create("a-b")
    trap.create(".github")
    names = list(trap.names())
    assert names == sorted(names)
    assert names == [".github.git", "a-b.git", "a.b/x.git", "a/b/c.git", "app.git", "work"]
    for name in names:
        assert trap.open(name).name == name


def test_repositories_come_change_and_go(root: RepositoryRoot, git: Any) -> None:
    with pytest.raises(RepositoryNotFound):
        root.open("app")
    git(root.path, "init", "-q", "--bare", "app.git")
    first = root.open("app")
    assert root.open("app") is first
    assert first.config.get_bool("http.receivepack") is None
    git(root.path / "app.git", "config", "http.receivepack", "true")
    assert first.config.get_bool("http.receivepack") is True
    assert root.open("app").config.get_bool("http.receivepack") is True
    subprocess.run(["rm", "-r", root.path / "app.git"], check=True)
    with pytest.raises(RepositoryNotFound):
        root.open("app")
    git(root.path, "init", "-q", "--bare", "--object-format=sha256", "app.git")
    assert root.open("app").format.name == b"sha256"


def test_handles_are_bounded(root: RepositoryRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gitsmart.repo.root.HANDLES", 2)
    a, b, c = (root.create(name) for name in "abc")
    assert root.open("c") is c
    assert root.open("b") is b
    assert root.open("a") is not a
    assert a.refs().refs == ()


def test_created_repositories_are_git_s(root: RepositoryRoot, git: Any, object_format: str) -> None:
    repo = root.create("deep/er/app.git", object_format=object_format)
    path = root.path / "deep" / "er" / "app.git"
    git(path, "fsck", "--strict")
    assert git(path, "rev-parse", "--is-bare-repository", "--show-object-format").split() == [
        b"true",
        object_format.encode(),
    ]
    assert git(path, "symbolic-ref", "HEAD") == b"refs/heads/main"
    assert repo.format.name == object_format.encode()
    assert repo.is_bare
    assert repo.refs().head_target == b"refs/heads/main"
    assert repo.refs().head is None
    assert sorted(os.listdir(path.parent)) == ["app.git"]


@pytest.mark.parametrize(
    "name", ["app", "app.git", "app.git/sub", "work", "work/sub", "file", "file/x", "plain"]
)
def test_creating_over_or_inside_what_is_there(root: RepositoryRoot, git: Any, name: str) -> None:
    root.create("app")
    git(root.path, "init", "-q", "work")
    git(root.path, "init", "-q", "--bare", "plain")
    (root.path / "file.git").write_text("x")
    (root.path / "file").write_text("x")
    with pytest.raises(RepositoryExists):
        root.create(name)


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/../b", "-x", ".git", "a/.git", "a\0", "a\\b", "..git", ".gitsmart-new-x"]
)
def test_creating_under_a_malformed_name(root: RepositoryRoot, name: str) -> None:
    with pytest.raises(InvalidRepositoryName):
        root.create(name)
    assert os.listdir(root.path) == []


def test_nothing_is_created_through_a_link_that_leaves(trap: RepositoryRoot) -> None:
    with pytest.raises(RepositoryError):
        trap.create("link/new")
    assert not (trap.path.parent / "outside" / "new.git").exists()


def test_a_missing_root(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a directory"):
        RepositoryRoot(tmp_path / "none")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("[core]\nrepositoryformatversion = 2\n", "version 2 is not supported"),
        ("[core]\nrepositoryformatversion = x\n", "bad numeric config value"),
        (
            "[core]\nrepositoryformatversion = 1\n[extensions]\nmagic = true\n",
            "unknown repository extension 'magic'",
        ),
        ("[core]\nrepositoryformatversion = 1\n[extensions]\nobjectFormat = md5\n", "object format 'md5'"),
        (
            "[core]\nrepositoryformatversion = 0\n[extensions]\nobjectFormat = sha256\n",
            "needs repository format",
        ),
        (
            "[core]\nrepositoryformatversion = 1\n[extensions]\nrefStorage = tables\n",
            "ref storage 'tables'",
        ),
        ("[core]\nrepositoryformatversion = 1\n[extensions]\npartialClone = origin\n", "partial clone"),
        (
            "[core]\nrepositoryformatversion = 1\n[extensions]\ncompatObjectFormat = sha256\n",
            "compatObjectFormat",
        ),
        (
            "[core]\nrepositoryformatversion = 1\n[extensions]\npreciousObjects = perhaps\n",
            "bad boolean config value 'perhaps' for 'extensions.preciousObjects'",
        ),
        ("[core\n", "bad config line 1"),
    ],
)
def test_formats_that_can_t_be_served(root: RepositoryRoot, config: str, text: str) -> None:
    root.create("app")
    (root.path / "app.git" / "config").write_text(config)
    with pytest.raises(RepositoryUnusable, match=text):
        root.open("app")


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[core]\nrepositoryformatversion = 0\n[extensions]\nmagic = true\nnoop = 1\npreciousObjects = true\n",
        "[core]\nrepositoryformatversion = 1\n[extensions]\nnoop-v1\nworktreeConfig = true\n",
        "[core]\nrepositoryformatversion = 1\n[extensions]\nrelativeWorktrees\nsubmodulePathConfig = true\n",
        "[core]\nbare = true\n[extensions]\nobjectFormat = sha256\nmagic = true\n",
    ],
)
def test_formats_that_can(root: RepositoryRoot, config: str) -> None:
    root.create("app")
    (root.path / "app.git" / "config").write_text(config)
    assert root.open("app").format.name == b"sha1"


def test_hooks_are_found_as_git_finds_them(root: RepositoryRoot, git: Any) -> None:
    repo = root.create("app")
    path = root.path / "app.git"
    assert repo.hook("update") is None
    hook = path / "hooks" / "update"
    hook.write_text("#!/bin/sh\n")
    assert repo.hook("update") is None
    hook.chmod(0o755)
    command = repo.hook("update")
    assert command is not None
    assert command.argv == (str(hook),)
    assert command.cwd == str(path)
    assert command.environ["GIT_DIR"] == str(path)
    assert set(command.environ) == {"GIT_DIR", "PATH"}
    git(path, "config", "core.hooksPath", "other")
    assert repo.hook("update") is None
    (path / "other").mkdir()
    hook.rename(path / "other" / "update")
    found = repo.hook("update")
    assert found is not None
    assert found.argv == (str(path / "other" / "update"),)


def test_shallow_commits(root: RepositoryRoot) -> None:
    repo = root.create("app")
    assert repo.shallow() == frozenset()
    (root.path / "app.git" / "shallow").write_text("ab" * 20 + "\n" + "cd" * 20 + "\n")
    assert repo.shallow() == {b"\xab" * 20, b"\xcd" * 20}
    (root.path / "app.git" / "shallow").write_text("xyz\n")
    with pytest.raises(RepositoryUnusable, match="shallow"):
        repo.shallow()


def test_a_fifo_is_no_head_and_no_config(root: RepositoryRoot) -> None:
    for name, part in (("head.git", "HEAD"), ("config.git", "config")):
        root.create(name)
        (root.path / name / part).unlink()
        os.mkfifo(root.path / name / part)
    assert list(root.names()) == ["config.git"]  # and neither waits for ever
    with pytest.raises(RepositoryNotFound):
        root.open("head.git")
    assert root.open("config.git").config.get_bool("http.receivepack") is None


def test_a_directory_whose_name_is_not_utf_8_has_no_name(root: RepositoryRoot, git: Any) -> None:
    git(root.path, "init", "-q", "--bare", os.fsdecode(b"\xe4.git"))
    assert list(root.names()) == []


def test_a_root_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, who may read everything
    with pytest.raises(ConfigError, match="can't be read: Permission denied"):
        RepositoryRoot(tmp_path)
