"""Twins: the same repository behind gitsmart and behind C git's http-backend, to compare their answers."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Git, MakeRepo, Server, start_server


@dataclass(frozen=True, slots=True)
class Twins:
    """Two servers whose roots hold the same repositories."""

    ours: Server
    git: Server

    def each(self) -> Iterator[Server]:
        yield self.ours
        yield self.git


@pytest.fixture(scope="module")
def twins(git: Git, make_repo: MakeRepo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """Both servers over `sample.git` and `empty.git`; anonymous users may push."""
    started: list[Server] = []
    for kind in ("gitsmart", "git"):
        root = tmp_path_factory.mktemp(f"twin-{kind}")
        make_repo(root / "sample.git")
        git("init", "-q", "--bare", root / "empty.git")
        shutil.rmtree(root / "empty.git/hooks", ignore_errors=True)
        started.append(start_server(root, "--anonymous", "write", kind=kind, environ=git.environ))
    yield Twins(*started)
    for server in started:
        server.stop()


@pytest.fixture
def twin_repos(twins: Twins, make_repo: MakeRepo, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Return a function that puts a fresh copy of the sample behind both, and gives its name."""
    names: list[str] = []

    def make() -> str:
        name = f"{tmp_path.name}-{len(names)}.git"
        names.append(name)
        for server in twins.each():
            make_repo(server.root / name)
        return name

    yield make
    for name in names:
        for server in twins.each():
            shutil.rmtree(server.root / name)
