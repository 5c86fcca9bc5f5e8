"""The stage for parity sessions: gitsmart, and the http-backend of each git that is here.

The system's git is always a peer. So is any other that is named in the environment variable
GITSMART_TEST_GITS (paths, separated as in PATH) or found in one of the usual
places, if it is newer than the system's.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Git, MakeRepo, Server, start_server
from tests.parity.stage import Peer, Stage, Web, environ_with

_PLACES = (
    "/usr/bin/git", "/usr/local/bin/git", "/usr/local/git/bin/git", "/opt/git/bin/git",
    "/opt/homebrew/bin/git", "/home/linuxbrew/.linuxbrew/bin/git", "/opt/local/bin/git",
)  # fmt: skip


def version_of(git: Git) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", git("version"))[:3]))


def other_gits() -> list[Path]:
    named = os.environ.get("GITSMART_TEST_GITS", "").split(os.pathsep)
    system = Path(shutil.which("git") or "git").resolve()
    found: dict[Path, Path] = {}
    for place in (*filter(None, named), *_PLACES):
        path = Path(place)
        if path.exists() and path.resolve() != system:
            found.setdefault(path.resolve(), path)
    return list(found.values())


@pytest.fixture(scope="session", params=[None, *other_gits()], ids=lambda path: str(path or "system"))
def peer(
    git: Git, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Peer]:
    """Each git that is here, with its http-backend."""
    used, version = git, version_of(git)
    if request.param is not None:
        used = Git(environ_with(git, request.param), git.config)
        if version_of(used) < version:
            pytest.skip("older than the system's git")
        version = version_of(used)
    root = tmp_path_factory.mktemp("gits")
    with contextlib.closing(_Stopping(root, "--anonymous", "write", kind="git", git=used)) as started:
        yield Peer(".".join(map(str, version)), used, version, started.server)


class _Stopping:
    def __init__(self, root: Path, *flags: str, kind: str, git: Git) -> None:
        self.server: Server = start_server(root, *flags, kind=kind, environ=git.environ)

    def close(self) -> None:
        self.server.stop()


@pytest.fixture(scope="session")
def ours(git: Git, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """gitsmart, set up to believe `X-Git-Namespace` and `X-Remote-User`, as the peer does."""
    config = tmp_path_factory.mktemp("conf") / "gitsmart.toml"
    config.write_text('[access]\ntrusted_proxies = ["127.0.0.1"]\nproxy_namespace = true\n')
    root = tmp_path_factory.mktemp("ours")
    flags = ("--anonymous", "write", "--config", str(config))
    with contextlib.closing(_Stopping(root, *flags, kind="gitsmart", git=git)) as started:
        yield started.server


@pytest.fixture
def set_stage(
    peer: Peer, ours: Server, git: Git, make_repo: MakeRepo, tmp_path: Path
) -> Iterator[Callable[..., Stage]]:
    """Return a function: set_stage(protocol, object_format, empty, commits) -> Stage."""
    made: list[Stage] = []

    def make(*, protocol: int, object_format: str, empty: bool, commits: int) -> Stage:
        def prepare(path: Path) -> None:
            if empty:
                git("init", "-q", "--bare", f"--object-format={object_format}", path)
                shutil.rmtree(path / "hooks", ignore_errors=True)
            else:
                make_repo(path, commits=commits, object_format=object_format)

        stage = Stage(
            name=tmp_path.name,
            peer=peer,
            ours=ours,
            protocol=protocol,
            object_format=object_format,
            prepare=prepare,
            folder=tmp_path,
            web=Web(tmp_path / "web"),
        )
        made.append(stage)
        return stage

    yield make
    for stage in made:
        stage.web.close()
        for server in (stage.ours, stage.peer.backend):
            shutil.rmtree(server.root / stage.name, ignore_errors=True)
