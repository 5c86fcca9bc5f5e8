"""Maintenance that the server does by itself, after pushes."""

import re
from pathlib import Path

from gitsmart.repo.repository import Repository
from tests.conftest import Git, MakeRepo, ServeFunction, commit_file, refs
from tests.maintenance.conftest import PushMany, add_pushes, check, maintain, packs_of


def test_pushes_over_http_leave_few_packs(
    git: Git, make_repo: MakeRepo, serve: ServeFunction, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path = make_repo(root / "busy.git", commits=10)
    config = tmp_path / "gitsmart.toml"
    config.write_text("[maintenance]\npacks = 4\ninterval_s = 0\n")
    server = serve(root, "--anonymous", "write", "--config", str(config))
    git("clone", "-q", server.url_of("busy.git"), tmp_path / "work")
    for n in range(25):
        commit_file(git, tmp_path / "work", f"file-{n % 3}", f"{n}\n" * 50)
        git("push", "-q", cwd=tmp_path / "work")
    line = server.wait_for_line("maintained repo=busy.git")
    assert int(re.findall(r"joined=(\d+)", line)[0]) > 0
    # What the last ones left may still be there, or be under way
    git("clone", "-q", "--bare", server.url_of("busy.git"), tmp_path / "clone.git")
    server.stop()
    assert len(packs_of(path)) < 20
    assert refs(tmp_path / "clone.git") == refs(path)
    assert refs(path)["refs/heads/main"] == git("rev-parse", "HEAD", cwd=tmp_path / "work")
    check(git, path)


def test_it_can_be_off(git: Git, make_repo: MakeRepo, serve: ServeFunction, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path = make_repo(root / "quiet.git", commits=10)
    add_pushes(git, path, 25)
    config = tmp_path / "gitsmart.toml"
    config.write_text("[maintenance]\nauto = false\n")
    server = serve(root, "--anonymous", "write", "--config", str(config))
    git("clone", "-q", server.url_of("quiet.git"), tmp_path / "work")
    commit_file(git, tmp_path / "work", "new", "new\n")
    git("push", "-q", cwd=tmp_path / "work")
    server.stop()
    assert len(packs_of(path)) == 27
    assert "maintained" not in server.text()


def test_when_it_is_due(git: Git, pushed: PushMany) -> None:
    path = pushed(6, commits=10)

    def is_due(*, packs: int = 5, interval_s: float = 60) -> bool:
        return Repository("x", path).is_maintenance_due(packs=packs, interval_s=interval_s)

    assert is_due()
    assert not is_due(packs=10)
    git("config", "receive.unpackLimit", "2", cwd=path)
    assert not is_due(), "no pack is small by that"
    git("config", "gc.autoPackLimit", "6", cwd=path)
    assert is_due(), "but there are many"
    for setting in (("gc.auto", "0"), ("receive.autogc", "false")):
        git("config", *setting, cwd=path)
        assert not is_due()
        git("config", "--unset", setting[0], cwd=path)
    git("config", "gc.autoPackLimit", "1", cwd=path)
    maintain(path)
    assert not is_due(), "a moment ago"
    assert is_due(interval_s=0)
