"""Complete or not: each kind of hole is found, whole pushes pass, small ones look at little."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gitsmart.pack.objects import to_raw
from gitsmart.pack.store import ObjectStore
from gitsmart.repo import connectivity
from gitsmart.repo.quarantine import Push
from gitsmart.repo.root import RepositoryRoot

Ingest = Callable[[Push, bytes], None]
MISSING = "missing necessary objects"


class Scene:
    """A server that has `base`, and a scratch repository in which a push's objects are made."""

    def __init__(self, root: RepositoryRoot, git: Any, tmp_path: Path, object_format: str) -> None:
        self.git = git
        git(tmp_path, "init", "-q", "--bare", f"--object-format={object_format}", "client")
        self.client = tmp_path / "client"
        self.files = {
            f"d{n}/s{m}/f{k}": b"%d%d%d" % (n, m, k) for n in range(5) for m in range(5) for k in range(5)
        }
        self.base = git.commit(self.client, self.files, "base")
        self.repo = root.create("app", object_format=object_format)
        self.path = root.path / "app.git"
        git(self.client, "push", "-q", str(self.path), f"{self.base.decode()}:refs/heads/main")

    def make(self, kind: str, data: bytes) -> bytes:
        return bytes(self.git.write(self.client, kind, data))

    def commit(self, changes: dict[str, bytes], message: str, *parents: bytes) -> bytes:
        return bytes(self.git.commit(self.client, self.files | changes, message, *parents))

    def parts(self, *tips: bytes) -> list[bytes]:
        """Every object that the tips reach and `base` does not."""
        listed = self.git(
            self.client, "rev-list", "--objects", *(tip.decode() for tip in tips), "^" + self.base.decode()
        )
        return [line.split(b" ")[0] for line in listed.split(b"\n")]

    def pack(self, *oids: bytes) -> bytes:
        return bytes(self.git(self.client, "pack-objects", "--stdout", "-q", stdin=b"\n".join(oids) + b"\n"))

    def tag(self, target: bytes, kind: str, name: str = "t") -> bytes:
        return self.make(
            "tag",
            b"object %b\ntype %b\ntag %b\ntagger A <a> 1 +0000\n\nx\n"
            % (target, kind.encode(), name.encode()),
        )


@pytest.fixture
def scene(root: RepositoryRoot, git: Any, tmp_path: Path, object_format: str) -> Scene:
    return Scene(root, git, tmp_path, object_format)


def test_every_hole_is_found(scene: Scene, ingest: Ingest) -> None:
    """Leave each object of a push out in turn, the tip too: missing, and without the fast way as well."""
    two = scene.commit({"d1/s1/f1": b"new"}, "two", scene.base)
    three = scene.commit({"d1/s1/f1": b"newer", "x/y": b"z"}, "three", two)
    tag = scene.tag(three, "commit")
    parts = [*scene.parts(three), tag]
    assert len(parts) == 13
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(*parts))
        assert push.unconnected([tag, three, two, scene.base]) == {}
    for left_out in parts:
        with scene.repo.begin_push() as push:
            ingest(push, scene.pack(*[oid for oid in parts if oid != left_out]))
            assert push.unconnected([tag]) == {tag: MISSING}
            assert push.unconnected([scene.base]) == {}


def test_each_tip_has_its_own_answer(scene: Scene, ingest: Ingest) -> None:
    good = scene.commit({"a": b"good"}, "good", scene.base)
    bad = scene.commit({"b": b"bad"}, "bad", scene.base)
    hole = scene.git(scene.client, "rev-parse", f"{bad.decode()}:b")
    parts = [oid for oid in scene.parts(good, bad) if oid != hole]
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(*parts))
        none = ("ab" * (scene.repo.format.hex_len // 2)).encode()
        assert push.unconnected([good, bad, none]) == {bad: MISSING, none: MISSING}


def test_a_dangling_object_s_hole_is_nobody_s_fault(scene: Scene, ingest: Ingest) -> None:
    good = scene.commit({"a": b"good"}, "good", scene.base)
    stray = scene.commit({"b": b"bad"}, "stray", good)
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(*scene.parts(good), stray))
        assert push.unconnected([good]) == {}
        assert push.unconnected([stray]) == {stray: MISSING}


def test_a_reference_of_the_wrong_type(scene: Scene, ingest: Ingest) -> None:
    who = b"author A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nx\n"
    blob = scene.make("blob", b"I am no tree")
    known_blob = scene.git(scene.client, "rev-parse", f"{scene.base.decode()}:d0/s0/f0")
    tree = scene.git(scene.client, "rev-parse", f"{scene.base.decode()}^{{tree}}")
    raw = {oid: bytes.fromhex(oid.decode()) for oid in (blob, known_blob, tree)}
    tips = [
        scene.make("commit", b"tree %b\n" % blob + who),
        scene.make("commit", b"tree %b\n" % known_blob + who),
        scene.make("commit", b"tree %b\nparent %b\n" % (tree, tree) + who),
        scene.make("tree", b"40000 x\0" + raw[blob]),
        scene.make("tree", b"40000 x\0" + raw[known_blob]),
        scene.make("tree", b"100644 x\0" + raw[tree]),
        scene.tag(blob, "commit"),
        scene.tag(known_blob, "tree"),
    ]
    for tip in tips:
        with scene.repo.begin_push() as push:
            ingest(push, scene.pack(tip, blob))
            assert push.unconnected([tip]) == {tip: MISSING}


def test_tags_trees_and_blobs_as_tips(scene: Scene, ingest: Ingest) -> None:
    tree = scene.git(scene.client, "rev-parse", f"{scene.base.decode()}:d0")
    blob = scene.git(scene.client, "rev-parse", f"{scene.base.decode()}:d0/s0/f0")
    new_blob = scene.make("blob", b"fresh")
    inner = scene.tag(tree, "tree", "inner")
    outer = scene.tag(inner, "tag", "outer")
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(outer, inner, new_blob))
        assert push.unconnected([outer, inner, tree, blob, new_blob]) == {}
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(outer))
        assert push.unconnected([outer, tree]) == {outer: MISSING}


def test_gitlinks_lead_nowhere(scene: Scene, ingest: Ingest) -> None:
    link = b"160000 sub\0" + b"\x12" * scene.repo.format.raw_len
    tree = scene.make("tree", link)
    tip = scene.make("commit", b"tree %b\nauthor A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nx\n" % tree)
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(tip, tree))
        assert push.unconnected([tip]) == {}


def test_a_branch_at_what_is_there_already(scene: Scene) -> None:
    """No pack at all: an object in the store is only good when all that it reaches is."""
    lost = scene.git.commit(scene.path, {"a": b"1", "b/c": b"2"}, "unreachable", scene.base)
    with scene.repo.begin_push() as push:
        assert push.unconnected([lost, scene.base]) == {}
    blob = scene.git(scene.path, "rev-parse", f"{lost.decode()}:b/c").decode()
    (scene.path / "objects" / blob[:2] / blob[2:]).unlink()
    with scene.repo.begin_push() as push:
        assert push.unconnected([lost, scene.base]) == {lost: MISSING}


def test_a_push_on_top_of_what_no_ref_reaches(scene: Scene, ingest: Ingest) -> None:
    parent = scene.commit({"a": b"1"}, "parent", scene.base)
    tip = scene.commit({"a": b"2"}, "tip", parent)
    only_tip = [oid for oid in scene.parts(tip) if oid not in scene.parts(parent)]
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(*scene.parts(parent)))
        push.migrate()
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(*only_tip))
        assert push.unconnected([tip]) == {}
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(tip))
        assert push.unconnected([tip]) == {tip: MISSING}


def test_a_small_push_reads_only_what_it_changed(
    scene: Scene, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tip = scene.commit({"d1/s1/f1": b"new"}, "two", scene.base)
    read: list[bytes] = []
    real = ObjectStore.read

    def counting(self: ObjectStore, raw_oid: bytes, *, limit_bytes: int | None = None) -> tuple[int, bytes]:
        read.append(raw_oid)
        return real(self, raw_oid, limit_bytes=limit_bytes)

    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(*scene.parts(tip)))
        monkeypatch.setattr(ObjectStore, "read", counting)
        assert push.unconnected([tip]) == {}
    trees = [
        scene.git(scene.client, "rev-parse", f"{scene.base.decode()}:{path}") for path in ("", "d1", "d1/s1")
    ]
    commit = [to_raw(scene.base)] if to_raw(scene.base) in read else []
    assert sorted(read) == sorted([*commit, *(to_raw(tree) for tree in trees)])


def test_the_border_is_not_searched_for_ever(
    scene: Scene, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past its budget the fast way gives up and walks: the answer is the same."""
    monkeypatch.setattr(connectivity, "_EXPAND_AT_LEAST", -1000)
    tip = scene.commit({"d1/s1/f1": b"new"}, "two", scene.base)
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(*scene.parts(tip)))
        assert push.unconnected([tip]) == {}


def test_a_search_can_be_ended(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectivity, "_TICK_EVERY", 5)
    lost = scene.git.commit(scene.path, scene.files | {"x": b"y"}, "unreachable")

    def tick() -> None:
        raise TimeoutError

    with scene.repo.begin_push() as push, pytest.raises(TimeoutError):
        push.unconnected([lost], tick=tick)


def test_a_shallow_repository_s_own_border(scene: Scene, ingest: Ingest, git: Any) -> None:
    gone = ("cd" * (scene.repo.format.hex_len // 2)).encode()
    tree = git(scene.path, "rev-parse", f"{scene.base.decode()}^{{tree}}")
    who = b"author A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nx\n"
    border = git.write(scene.path, "commit", b"tree %b\nparent %b\n" % (tree, gone) + who)
    with scene.repo.begin_push() as push:
        assert push.unconnected([border]) == {border: MISSING}
    (scene.path / "shallow").write_bytes(border + b"\n")
    with scene.repo.begin_push() as push:
        assert push.unconnected([border]) == {}


def test_what_lies_behind_a_ref_s_shallow_commit(scene: Scene, ingest: Ingest) -> None:
    """No ref vouches for it: it may be there in parts, from before the repository became shallow."""
    one = scene.git.commit(scene.path, {"one": b"1"}, "one")
    two = scene.git.commit(scene.path, {"two": b"2"}, "two", one)
    three = scene.git.commit(scene.path, scene.files, "three", two)
    scene.git(scene.path, "update-ref", "refs/heads/main", three.decode())
    (scene.path / "shallow").write_bytes(three + b"\n")
    lost = scene.git(scene.path, "rev-parse", f"{two.decode()}:two").decode()
    tree = scene.git(scene.path, "rev-parse", f"{scene.base.decode()}^{{tree}}")
    who = b"author A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nx\n"
    tip = scene.make("commit", b"tree %b\nparent %b\n" % (tree, two) + who)
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(tip))
        assert push.unconnected([tip]) == {}
    (scene.path / "objects" / lost[:2] / lost[2:]).unlink()
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(tip))
        assert push.unconnected([tip]) == {tip: MISSING}


def test_a_ref_s_tip_of_the_wrong_type(scene: Scene, ingest: Ingest) -> None:
    """That a ref holds it does not make it a commit, or a tag."""
    who = b"author A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nx\n"
    annotated = scene.tag(scene.base, "commit")
    scene.git(scene.client, "push", "-q", str(scene.path), f"{annotated.decode()}:refs/tags/t")
    tree = scene.git(scene.client, "rev-parse", f"{scene.base.decode()}^{{tree}}")
    scene.git(scene.path, "update-ref", "refs/tags/tree", tree.decode())
    for tip in (
        scene.make("commit", b"tree %b\nparent %b\n" % (tree, annotated) + who),
        scene.make("commit", b"tree %b\nparent %b\n" % (tree, tree) + who),
        scene.tag(scene.base, "tag"),
        scene.tag(annotated, "commit"),
    ):
        with scene.repo.begin_push() as push:
            ingest(push, scene.pack(tip))
            assert push.unconnected([tip]) == {tip: MISSING}


def test_a_commit_that_was_read_before_it_was_pruned(scene: Scene, ingest: Ingest) -> None:
    one = scene.git.commit(scene.path, scene.files, "one")
    two = scene.git.commit(scene.path, scene.files, "two", one)
    tip = scene.commit({}, "tip", two)
    for oid in (one, two):
        scene.repo.objects.commit(to_raw(oid))
    (scene.path / "objects" / one[:2].decode() / one[2:].decode()).unlink()
    with scene.repo.begin_push() as push:
        ingest(push, scene.pack(tip))
        assert push.unconnected([tip]) == {tip: MISSING}
