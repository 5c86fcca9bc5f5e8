"""What refs lead to, held against what git says is reachable; what is remembered, and until when."""

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gitsmart.errors import Disconnected
from gitsmart.pack.objects import SHA1, to_hex
from gitsmart.pack.select import Reached, select_objects
from gitsmart.pack.store import ObjectStore
from gitsmart.repo import reachability as module
from gitsmart.repo.reachability import Reachability
from tests.conftest import Git, hermetic_environ, sample_history


def no_tick(number: int) -> None:
    pass


class Repo:
    """A repository that git writes; what is asked of it."""

    def __init__(self, git: Git, path: Path) -> None:
        self.git, self.path = git, path
        self.store = ObjectStore(path / "objects", SHA1)
        self.reachability = Reachability(self.store)
        self.expanded = 0

    def run(self, *args: str, **more: Any) -> str:
        out: str = self.git(*args, cwd=self.path, **more)
        return out

    def tips(self) -> frozenset[bytes]:
        return frozenset(self.run("for-each-ref", "--format=%(objectname)").encode().split())

    def all_objects(self) -> set[bytes]:
        rows = self.run("cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split()
        return {bytes.fromhex(row) for row in rows}

    def reached(self) -> set[bytes]:
        rows = self.run("rev-list", "--objects", "--no-object-names", "--all").split()
        return {bytes.fromhex(row) for row in rows}

    def unreached(self, *wants: bytes, first: bytes | None = None, tick: Any = no_tick) -> set[bytes]:
        return self.reachability.unreached(self.tips(), wants, first=first, tick=tick)

    def oid(self, name: str) -> bytes:
        return bytes.fromhex(self.run("rev-parse", name))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Git, Path]:
    path = tmp_path_factory.mktemp("template")
    git = Git(hermetic_environ(path / "home"))
    git("init", "-q", "--bare", path / "repo.git")
    subprocess.run(
        ["git", "fast-import", "--quiet"],
        cwd=path / "repo.git",
        env=git.environ,
        input=sample_history(40),
        check=True,
    )
    return git, path / "repo.git"


@pytest.fixture
def repo(template: tuple[Git, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """The sample, with a branch that is gone but not pruned. `expanded` counts the lots that are expanded."""
    git, path = template
    shutil.copytree(path, tmp_path / "repo.git")
    made = Repo(git, tmp_path / "repo.git")
    tree = made.run("rev-parse", "unrelated^{tree}")
    made.run("update-ref", "-d", "refs/heads/unrelated")
    blob = made.run("hash-object", "-w", "--stdin", input="of no ref\n")
    made.run("commit-tree", "-p", "main~3", "-m", "of no ref", tree)
    assert blob
    expand = module.expand_trees  # type: ignore[attr-defined]

    def counting(*args: Any, **more: Any) -> set[bytes]:
        made.expanded += 1
        return expand(*args, **more)

    monkeypatch.setattr(module, "expand_trees", counting)
    return made


def test_every_object_gets_gits_verdict(repo: Repo) -> None:
    everything, reached = repo.all_objects(), repo.reached()
    assert everything - reached
    assert repo.unreached(*everything) == everything - reached


def test_one_by_one_in_any_order(repo: Repo) -> None:
    everything, reached = sorted(repo.all_objects()), repo.reached()
    random.Random(5).shuffle(everything)
    for raw_oid in everything:
        assert repo.unreached(raw_oid) == {raw_oid} - reached


def test_what_was_found_costs_nothing_again(repo: Repo) -> None:
    blobs = [repo.oid(f"main:{name}") for name in repo.run("ls-tree", "-r", "--name-only", "main").split()]
    assert repo.unreached(*blobs, first=repo.run("rev-parse", "main").encode()) == set()
    assert repo.expanded == 1
    assert repo.unreached(*blobs) == set()
    assert repo.unreached(repo.oid("main^{tree}")) == set()
    assert repo.expanded == 1


def test_a_refusal_walks_history_once(repo: Repo) -> None:
    alone = next(iter(repo.all_objects() - repo.reached()))
    assert repo.unreached(alone) == {alone}
    before = repo.expanded
    assert repo.unreached(alone) == {alone}
    assert repo.expanded == before


def test_a_push_keeps_what_was_found(repo: Repo) -> None:
    old = repo.oid("main:docs")
    assert repo.unreached(old) == set()
    blob = repo.run("hash-object", "-w", "--stdin", input="new\n")
    tree = repo.run("mktree", input=f"100644 blob {blob}\tnew\n")
    commit = repo.run("commit-tree", "-p", "main", "-m", "new", tree)
    assert repo.unreached(bytes.fromhex(blob)) == {bytes.fromhex(blob)}
    repo.run("update-ref", "refs/heads/main", commit)
    before = repo.expanded
    assert repo.unreached(old) == set()
    assert repo.expanded == before
    assert repo.unreached(bytes.fromhex(blob)) == set()
    assert repo.expanded == before + 1


def test_a_rewound_ref_takes_back_what_only_it_led_to(repo: Repo) -> None:
    ahead = repo.oid("refs/heads/other/deep/branch")
    blob = repo.oid("refs/heads/other/deep/branch:ahead")
    assert repo.unreached(ahead, blob) == set()
    repo.run("update-ref", "refs/heads/other/deep/branch", "main")
    assert repo.unreached(ahead, blob) == {ahead, blob}
    repo.run("update-ref", "refs/heads/again", to_hex(ahead).decode())
    assert repo.unreached(ahead, blob) == set()


def test_a_deleted_tag_takes_nothing_that_others_lead_to(repo: Repo) -> None:
    tag = repo.oid("v2.0")
    blob = repo.oid("main~9:docs/README")
    assert repo.unreached(tag, blob) == set()
    before = repo.expanded
    repo.run("update-ref", "-d", "refs/tags/v2.0")
    assert repo.unreached(tag, blob) == {tag}
    assert repo.expanded == before


def test_tags_behind_tags_and_refs_to_trees_and_blobs(repo: Repo) -> None:
    blob = repo.run("hash-object", "-w", "--stdin", input="a blob with a ref\n")
    below = repo.run("hash-object", "-w", "--stdin", input="below\n")
    tree = repo.run("mktree", input=f"100644 blob {below}\tbelow\n")
    wanted = [bytes.fromhex(oid) for oid in (blob, below, tree)]
    assert repo.unreached(*wanted) == set(wanted)
    repo.run("tag", "a-blob", blob)
    repo.run("tag", "-a", "-m", "t", "a-tree", tree)
    assert repo.unreached(*wanted, repo.oid("a-tree")) == set()
    inner = repo.oid("v1.0")
    repo.run("update-ref", "-d", "refs/tags/v1.0")
    assert repo.unreached(inner) == set()  # the tag `nested` is of it
    repo.run("update-ref", "-d", "refs/tags/nested")
    assert repo.unreached(inner) == {inner}


def test_repacks_change_nothing(repo: Repo) -> None:
    everything, reached = repo.all_objects(), repo.reached()
    assert repo.unreached(*everything) == everything - reached
    repo.run("repack", "-adfq")
    repo.run("repack", "-Adq")
    before = repo.expanded
    assert repo.unreached(*reached) == set()
    assert repo.expanded == before


def test_who_is_stopped_leaves_the_walk_whole(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    everything, reached = repo.all_objects(), repo.reached()
    expand = module.expand_trees  # type: ignore[attr-defined]
    calls = 0

    def failing(*args: Any, **more: Any) -> set[bytes]:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise Disconnected("gone")
        return expand(*args, **more)

    monkeypatch.setattr(module, "expand_trees", failing)
    for _ in range(40):
        try:
            assert repo.unreached(*everything) == everything - reached
            break
        except Disconnected:
            continue
    else:
        raise AssertionError("never done")
    assert calls > 3


def test_who_is_stopped_between_refs_leaves_those_of_before(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = repo.run("rev-parse", "main").encode()
    new = repo.run("commit-tree", "-p", "main", "-m", "new", "main^{tree}").encode()
    before, after = frozenset({old}), frozenset({new})
    unreached = repo.reachability.unreached
    assert unreached(before, {bytes.fromhex(new.decode())}, tick=no_tick)
    walk = module.walk_commits  # type: ignore[attr-defined]

    def failing(*args: Any, **more: Any) -> Any:
        raise Disconnected("gone")

    monkeypatch.setattr(module, "walk_commits", failing)
    with pytest.raises(Disconnected):
        unreached(after, [repo.oid("main~2")], tick=no_tick)
    monkeypatch.setattr(module, "walk_commits", walk)
    wanted = bytes.fromhex(new.decode())
    assert unreached(before, [wanted], tick=no_tick) == {wanted}
    assert unreached(after, [repo.oid("main~2"), wanted], tick=no_tick) == set()


def test_what_was_noted_is_proven(repo: Repo) -> None:
    reached = repo.reached()
    kinds = {raw_oid: repo.store.type_of(raw_oid) for raw_oid in reached}
    repo.reachability.note(repo.tips(), {repo.oid("main")}, Reached(kinds))
    assert repo.unreached(*reached) == set()
    assert repo.expanded == 0


def test_what_was_selected_stays_proven_when_packs_go(repo: Repo, native: bool) -> None:
    repo.run("repack", "-dq")
    repo.store.refresh()
    wants = [bytes.fromhex(tip.decode()) for tip in repo.tips()]

    def note(found: Reached) -> None:
        repo.reachability.note(repo.tips(), set(wants), found)

    select_objects(repo.store, wants=wants, haves=(), note=note, tick=no_tick)
    reached = repo.reached()
    assert repo.unreached(*reached) == set()
    assert repo.expanded == 0
    repo.run("repack", "-adq")
    (old,) = repo.store.own_packs()
    repo.store.refresh()
    (new,) = repo.store.own_packs()
    assert old is not new
    assert repo.unreached(*reached) == set()
    assert repo.expanded == 0
    everything = repo.all_objects()
    assert repo.unreached(*everything) == everything - reached > set()


def test_a_walk_with_little_room(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RECENT", 10)
    monkeypatch.setattr(module, "_LOT_MOST", 4)
    everything, reached = repo.all_objects(), repo.reached()
    assert repo.unreached(*everything) == everything - reached


def test_a_shallow_repository(repo: Repo, tmp_path: Path) -> None:
    git = repo.git
    path = tmp_path / "shallow.git"
    git("clone", "-q", "--bare", "--depth=3", f"file://{repo.path}", path)
    shallow = Repo(git, path)
    ends = {bytes.fromhex(line) for line in (path / "shallow").read_text().split()}
    everything = shallow.all_objects()
    assert shallow.reachability.unreached(shallow.tips(), everything, shallow=ends, tick=no_tick) == set()
    for end in ends:
        fresh = Reachability(shallow.store)
        assert fresh.unreached(shallow.tips(), [end], shallow=ends, tick=no_tick) == set()
    lone = shallow.run("commit-tree", "-p", to_hex(sorted(ends)[0]).decode(), "-m", "x", "main^{tree}")
    raw_oid = bytes.fromhex(lone)
    assert shallow.reachability.unreached(shallow.tips(), [raw_oid], shallow=ends, tick=no_tick) == {raw_oid}


def test_what_is_missing_leads_nowhere(repo: Repo) -> None:
    """A damaged repository serves what is there."""
    repo.run("repack", "-adq")
    subprocess.run(
        "for p in objects/pack/*.pack; do mv $p p.pack; git unpack-objects -q < p.pack; done; rm p.pack",
        shell=True,
        cwd=repo.path,
        env=repo.git.environ,
        check=True,
    )
    (repo.path / "objects/pack").rename(repo.path / "objects/old")
    (repo.path / "objects/pack").mkdir()
    oid = repo.run("rev-parse", "main~10^{tree}")
    inside = repo.oid("main~2:docs/README")
    (repo.path / "objects" / oid[:2] / oid[2:]).unlink()
    repo.store = ObjectStore(repo.path / "objects", SHA1)
    repo.reachability = Reachability(repo.store)
    assert repo.unreached(inside) == set()
    lone = bytes.fromhex(repo.run("hash-object", "-w", "--stdin", input="nobody's\n"))
    assert repo.unreached(lone) == {lone}


def test_bitmaps_tell_it_all_at_once(repo: Repo, native: bool) -> None:
    # What no ref leads to is packed too, by itself; and something is loose.
    everything = sorted(repo.all_objects())
    repo.run("repack", "-Adb")
    alone = "\n".join(raw_oid.hex() for raw_oid in everything if raw_oid not in repo.reached()) + "\n"
    repo.run("pack-objects", "objects/pack/pack", input=alone)
    blob = repo.run("hash-object", "-w", "--stdin", input="new\n")
    tree = repo.run("mktree", input=f"100644 blob {blob}\tnew\n")
    commit = repo.run("commit-tree", "-p", "main", "-m", "new", tree)
    repo.store.refresh()
    fresh = {bytes.fromhex(oid) for oid in (blob, tree, commit)}
    asked = {*everything, *fresh}
    assert repo.unreached(*asked) == asked - repo.reached() >= fresh
    repo.run("update-ref", "refs/heads/main", commit)
    assert repo.unreached(*asked) == asked - repo.reached()
    assert not fresh & repo.unreached(*asked)
    repo.run("update-ref", "refs/heads/main", "main~3")
    assert repo.unreached(*asked) == asked - repo.reached() >= fresh
    assert repo.expanded == 0


def test_bitmaps_of_head_come_first(repo: Repo, native: bool) -> None:
    repo.run("repack", "-adb")
    repo.store.refresh()
    head = repo.run("rev-parse", "main").encode()
    rows = repo.run("rev-list", "--objects", "--no-object-names", "main").split()
    below = {bytes.fromhex(row) for row in rows}
    # One by one: what HEAD leads to, what others do, and what none does
    for raw_oid in sorted(repo.all_objects()):
        assert repo.unreached(raw_oid, first=head) == {raw_oid} - repo.reached()
    assert repo.reached() - below
    repo.run("update-ref", "refs/heads/main", "main~3")
    asked = sorted(below)
    assert repo.unreached(*asked, first=head) == below - repo.reached()  # it is no tip any more
    head = repo.run("rev-parse", "main").encode()
    for raw_oid in asked:
        assert repo.unreached(raw_oid, first=head) == {raw_oid} - repo.reached()
