"""commit-graphs: git's are read, ours are verified by git, broken ones count for nothing."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from gitsmart.errors import ObjectMissing, PackError
from gitsmart.pack import commitgraph as module
from gitsmart.pack.commitgraph import CommitGraph, format_commit_graph, read_commit_graph, write_commit_graph
from gitsmart.pack.objects import SHA1, Commit, parse_commit
from gitsmart.pack.select import walk_commits
from gitsmart.pack.store import ObjectStore

History = Any  # conftest.py's


@pytest.fixture(scope="module", params=["packed", "tangled256", "skewed"])
def history(
    request: pytest.FixtureRequest, new_history: Any, tmp_path_factory: pytest.TempPathFactory
) -> History:
    if request.param == "skewed":
        made = new_history(seed=12, skewed=True)
        made.grow(120, unpack=False)
        return made
    found = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp("graph")
    for path in found.path.parent.iterdir():
        if path.is_dir() and path.name.endswith(".git"):
            shutil.copytree(path, folder / path.name)
    return type(found)(folder / found.path.name, found.format, found.environ, found.rng, marks=found.marks)


def commits_of(history: History) -> dict[bytes, Commit]:
    store = history.store()
    found = {}
    for line in history.git("rev-list", "--all").decode().split():
        raw_oid = bytes.fromhex(line)
        found[raw_oid] = parse_commit(store.read(raw_oid)[1], history.format)
    return found


def check(history: History, graph: CommitGraph) -> None:
    commits = commits_of(history)
    assert graph.count == len(commits)
    for raw_oid, commit in commits.items():
        assert graph.commit(raw_oid) == commit
        level, date = graph.generation(raw_oid) or (0, None)
        for parent in commit.parents:
            below = graph.generation(parent)
            assert below is not None
            assert below[0] < level
            assert date is None or below[1] is None or below[1] < date
        assert date is None or date >= commit.date
    assert graph.commit(b"\1" * history.format.raw_len) is None
    assert graph.commit(b"short") is None
    assert b"\1" * history.format.raw_len not in graph


def clean(history: History) -> Path:
    info: Path = history.path / "objects/info"
    (info / "commit-graph").unlink(missing_ok=True)
    shutil.rmtree(info / "commit-graphs", ignore_errors=True)
    return info


def test_git_s_own(history: History) -> None:
    objects = history.path / "objects"
    for version in ("1", "2"):
        clean(history)
        history.git("-c", f"commitGraph.generationVersion={version}", "commit-graph", "write", "--reachable")
        check(history, read_commit_graph(objects, history.format))
    info = clean(history)
    tips = history.git("rev-list", "--all").decode().split()
    for tip in (tips[len(tips) // 2], tips[len(tips) // 4], *tips):
        history.git(
            "commit-graph",
            "write",
            "--stdin-commits",
            "--split=no-merge",
            "--changed-paths",
            input=f"{tip}\n".encode(),
        )
        if len(list((info / "commit-graphs").glob("*.graph"))) == 3:
            break
    history.git("commit-graph", "write", "--reachable", "--split=no-merge")
    graph = read_commit_graph(objects, history.format)
    assert len(graph._layers) > 1
    check(history, graph)


def test_ours_are_verified_by_git(history: History) -> None:
    info = clean(history)
    objects = history.path / "objects"
    store = history.store()
    tips = history.oids(*[f"refs/heads/c{n}" for n in range(1, history.marks + 1)])
    assert write_commit_graph(objects, history.format, store.commit, tips) == info / "commit-graph"
    history.git("commit-graph", "verify")
    check(history, read_commit_graph(objects, history.format))
    assert not (info / "commit-graph.lock").exists()
    (info / "commit-graph.lock").write_bytes(b"")
    with pytest.raises(FileExistsError):
        write_commit_graph(objects, history.format, store.commit, tips)
    assert (info / "commit-graph.lock").exists()
    (info / "commit-graph.lock").unlink()


def test_stores_read_commits_from_it(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    clean(history)
    store = history.store()
    tips = history.oids(*[f"refs/heads/c{n}" for n in range(1, history.marks + 1)])
    expected = walk_commits(history.store(), tips[-1:], tips[:1])
    write_commit_graph(history.path / "objects", history.format, store.commit, tips)
    again = history.store()
    read: list[bytes] = []
    real = CommitGraph.commit

    def counting(self: CommitGraph, raw_oid: bytes) -> Commit | None:
        read.append(raw_oid)
        return real(self, raw_oid)

    monkeypatch.setattr(CommitGraph, "commit", counting)
    assert walk_commits(again, tips[-1:], tips[:1]) == expected
    assert read
    # One that came while the store was open
    clean(history)
    store = history.store()
    assert store.commit(tips[0])
    write_commit_graph(history.path / "objects", history.format, history.store().commit, tips)
    read.clear()
    store.refresh()
    store.commit(tips[-1])
    assert read == tips[-1:]


def test_what_is_in_no_pack_is_not_there_whatever_the_graph_says(new_history: Any, tmp_path: Path) -> None:
    history = new_history(seed=3)
    history.grow(10, unpack=False)
    (tip,) = history.oids("refs/heads/c10")
    write_commit_graph(history.path / "objects", SHA1, history.store().commit, [tip])
    (tmp_path / "objects/info").mkdir(parents=True)
    shutil.copy(history.path / "objects/info/commit-graph", tmp_path / "objects/info/commit-graph")
    with pytest.raises(ObjectMissing):
        ObjectStore(tmp_path / "objects", SHA1).commit(tip)


def test_history_that_is_cut_gets_none(tmp_path: Path) -> None:
    commit = Commit(b"\1" * 20, (b"\2" * 20,), 5)

    def read(raw_oid: bytes) -> Commit:
        if raw_oid == b"\2" * 20:
            raise ObjectMissing("02")
        return commit

    assert write_commit_graph(tmp_path, SHA1, read, [b"\3" * 20]) is None
    assert write_commit_graph(tmp_path, SHA1, read, []) is None
    assert not list(tmp_path.iterdir())


def test_dates_that_don_t_fit(tmp_path: Path) -> None:
    one, two = b"\1" * 20, b"\2" * 20
    commits = {one: Commit(one, (), (1 << 34) - 1), two: Commit(two, (one,), 0)}
    (tmp_path / "info").mkdir()
    (tmp_path / "info/commit-graph").write_bytes(format_commit_graph(commits, SHA1))
    graph = read_commit_graph(tmp_path, SHA1)
    assert graph.commit(one) == commits[one]
    assert graph.generation(two) == (2, 1 << 34)


def test_broken_files_count_for_nothing(
    packed: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commits = commits_of(packed)
    data = format_commit_graph(commits, SHA1)
    info = tmp_path / "info"
    info.mkdir()
    path = info / "commit-graph"
    rng = random.Random(5)
    for _ in range(60):
        broken = bytearray(data)
        if rng.random() < 0.5:
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        else:
            del broken[rng.randrange(len(broken)) :]
        path.unlink(missing_ok=True)
        path.write_bytes(bytes(broken))
        with pytest.raises(PackError):
            read_commit_graph(tmp_path, SHA1)
    assert ObjectStore(tmp_path, SHA1)._own.graph() is None
    assert "ignored the commit-graph" in caplog.text
    caplog.clear()
    # With checksums that are right, whatever is in them
    monkeypatch.setattr(module, "is_intact", lambda data, fmt: True)
    for _ in range(100):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 3, 30))):
            broken[rng.randrange(len(broken))] = rng.choice((0, 255, rng.randrange(256)))
        path.unlink()
        path.write_bytes(bytes(broken))
        try:
            graph = read_commit_graph(tmp_path, SHA1)
        except PackError:
            continue
        for raw_oid in commits:
            graph.commit(raw_oid)
            graph.generation(raw_oid)
