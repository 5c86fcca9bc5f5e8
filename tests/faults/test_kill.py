"""SIGKILL in the midst of pushes: every acknowledged push is there, and what was left behind is swept."""

import random
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import Git, MakeRepo, ServeFunction, Server, fsck, leftovers, refs
from tests.faults import rawpush
from tests.faults.conftest import new_commit
from tests.faults.rawpush import ZERO

ROUNDS = 10
PUSHERS = 4


class Pusher(threading.Thread):
    """Push to one branch, one push after the other, until the server is gone."""

    def __init__(self, git: Git, server: Server, number: int, old: str, seed: int) -> None:
        super().__init__()
        self.name_of_ref = f"refs/heads/pusher/{number}"
        self.acknowledged = old
        self.in_flight = old
        self.count = 0
        self.problems: list[str] = []
        self._git, self._server, self._seed = git, server, seed

    def run(self) -> None:
        random_bytes = random.Random(self._seed).randbytes
        while True:
            commit = new_commit(
                self._git,
                self._server.root / "sample.git",
                f"{self._seed}-{self.count}",
                content=random_bytes(random.Random(self.count).choice([500, 40_000, 300_000])),
            )
            self.in_flight = commit.oid
            command = (self.acknowledged, commit.oid, self.name_of_ref)
            try:
                response = rawpush.push(self._server.url, "sample.git", [command], commit.pack, chunk=30_000)
            except (OSError, ValueError):
                return
            if not response.complete:
                return
            report = response.report()
            if report.refs.get(self.name_of_ref) != "ok":
                self.problems.append(f"{response.status} {report}")
                return
            self.acknowledged = commit.oid
            self.count += 1


@pytest.mark.slow
def test_no_acknowledged_push_is_lost(
    git: Git, serve: ServeFunction, make_repo: MakeRepo, tmp_path: Path, server_kind: str
) -> None:
    if server_kind == "git":
        pytest.skip("its processes outlive their server")
    root = tmp_path / "root"
    path = make_repo(root / "sample.git")
    dice = random.Random(20261124)
    tips = [ZERO] * PUSHERS
    pushes = 0
    for number in range(ROUNDS):
        server = serve(root, "--anonymous", "write")
        assert leftovers(root) == []  # swept before the start-up line
        fsck(path)
        found = refs(path)
        pushers = [Pusher(git, server, n, tips[n], number * 100 + n) for n in range(PUSHERS)]
        for pusher in pushers:
            pusher.start()
        time.sleep(dice.uniform(0.05, 1.2))
        server.kill()
        for pusher in pushers:
            pusher.join()
        found = refs(path)
        for n, pusher in enumerate(pushers):
            assert pusher.problems == []
            now = found.get(pusher.name_of_ref, ZERO)
            assert now in {pusher.acknowledged, pusher.in_flight}, f"{pusher.name_of_ref} was lost"
            tips[n] = now
            pushes += pusher.count
        fsck(path, "--no-reflogs")
    assert pushes > ROUNDS
    server = serve(root, "--anonymous", "write")
    assert leftovers(root) == []
    for n in range(PUSHERS):
        commit = new_commit(git, path, f"last-{n}")
        report = rawpush.push(
            server.url, "sample.git", [(tips[n], commit.oid, f"refs/heads/pusher/{n}")], commit.pack
        ).report()
        assert report.refs == {f"refs/heads/pusher/{n}": "ok"}
    fsck(path)


def test_sigterm_lets_a_push_finish(
    git: Git, serve: ServeFunction, make_repo: MakeRepo, tmp_path: Path, server_kind: str
) -> None:
    """A server that is told to stop ends what it has begun; a push under way is answered."""
    if server_kind == "git":
        pytest.skip("the runner does not drain")
    root = tmp_path / "root"
    path = make_repo(root / "sample.git")
    server = serve(root, "--anonymous", "write")
    commit = new_commit(git, path, "late", content=random.Random(1).randbytes(200_000))
    body = rawpush.push_body([commit.command], commit.pack)
    with rawpush.Connection(server.url) as connection:
        headers = rawpush.post_headers("git-receive-pack") | {"Content-Length": str(len(body))}
        connection.socket.sendall(connection.head("POST", "/sample.git/git-receive-pack", headers))
        connection.socket.sendall(body[:100_000])
        time.sleep(0.2)
        stopping = threading.Thread(target=server.process.terminate)
        stopping.start()
        stopping.join()
        time.sleep(0.2)
        connection.socket.sendall(body[100_000:])
        assert connection.response().report().refs == {"refs/heads/main": "ok"}
    assert refs(path)["refs/heads/main"] == commit.oid
    assert server.process.wait(20) == 0
    server.forget()
    assert not server.crashes()
    assert leftovers(root) == []
