"""Hidden refs and namespaces, against what git's own services show."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.errors import RepositoryUnusable
from gitsmart.repo.gitconfig import GitConfig, parse
from gitsmart.repo.ref_view import HiddenRefs, RefView, Section, namespace_prefix
from gitsmart.repo.refs import Ref, RefSnapshot
from gitsmart.repo.root import RepositoryRoot

NAMES = [
    b"refs/heads/main", b"refs/heads/main-2", b"refs/heads/a/b", b"refs/heads/caf\xe9", b"refs/heads/a-b",
    b"refs/heads/a/c/d",
    b"refs/internal/x", b"refs/internal/deep/y", b"refs/namespaces/n/HEAD",
    b"refs/namespaces/n/refs/heads/main", b"refs/namespaces/n/refs/internal/z",
    b"refs/namespaces/n/refs/namespaces/m/refs/heads/main", b"refs/namespaces/n-1/refs/heads/main",
    b"refs/namespaces/o/refs/heads/main", b"refs/notes/commits", b"refs/tags/v1", b"refs/tags/v1.1",
    b"refs/top",
]  # fmt: skip

RULES = [
    pytest.param([], id="none"),
    pytest.param(["refs/internal"], id="folder"),
    pytest.param(["refs/internal/"], id="trailing slash"),
    pytest.param(["refs/heads/a"], id="whole components only"),
    pytest.param(["refs/heads/main"], id="one ref"),
    pytest.param(["refs", "!refs/heads", "refs/heads/a", "!refs/heads/a/c"], id="last one wins"),
    pytest.param(["!refs/heads/a", "refs/heads"], id="last one wins, the other way round"),
    pytest.param(["HEAD"], id="HEAD"),
    pytest.param(["refs/heads", "^refs/namespaces/n", "!^refs/namespaces/n/refs/heads"], id="stored names"),
    pytest.param(["^refs/heads"], id="stored branches"),
    pytest.param(["refs/namespaces"], id="namespaces"),
    pytest.param(["^refs/namespaces/n/refs/namespaces", "^refs/top"], id="stored, nested"),
    pytest.param(["", "!", "^", "/", "!^", "refs//heads", "/refs/heads", "refs/h", "^!refs"], id="odd ones"),
]


def make(git: Any, root: RepositoryRoot, names: list[bytes]) -> Path:
    root.create("r")
    path = root.path / "r.git"
    oids = [git.commit(path, "f", f"commit {number}") for number in range(3)]
    tag = git(path, "mktag", stdin=b"object %b\ntype commit\ntag v1\ntagger A <a@b> 1 +0000\n\nx\n" % oids[0])
    lines = [
        b"create %b %b\n" % (name, tag if b"tags/v1" in name else oids[place % 3])
        for place, name in enumerate(names)
        if not name.endswith(b"/HEAD")
    ]
    git(path, "update-ref", "--stdin", stdin=b"".join(lines))
    for name in names:
        if name.endswith(b"/HEAD"):
            git(path, "symbolic-ref", name.decode(), (name[:-4] + b"refs/heads/main").decode())
    return path


def gits_refs(git: Any, path: Path, section: Section, namespace: str) -> list[tuple[bytes, bytes]]:
    """Name and oid of each line of git's own advertisement."""
    service = {"uploadpack": "upload-pack", "receive": "receive-pack"}[section]
    environ, git.environ = git.environ, git.environ | {"GIT_NAMESPACE": namespace}
    out = git(path, service, "--advertise-refs", "--stateless-rpc", str(path))
    git.environ = environ
    found = []
    while not out.startswith(b"0000"):
        size = int(out[:4], 16)
        oid, _, name = out[4:size].split(b"\0")[0].rstrip(b"\n").partition(b" ")
        found.append((name, oid))
        out = out[size:]
    # git before 2.41 says nothing at all where there is nothing
    return [] if found and found[0][0] == b"capabilities^{}" else found


def our_refs(root: RepositoryRoot, section: Section, namespace: str) -> list[tuple[bytes, bytes]]:
    repo = root.open("r").in_namespace(namespace)
    if section == "receive":
        return list(repo.view("receive").for_push(repo.refs(peel=False)))
    snapshot = repo.shown_refs("uploadpack")
    found = []
    for ref in ([snapshot.head] if snapshot.head is not None else []) + list(snapshot.refs):
        found.append((ref.name, ref.oid))
        if ref.peeled is not None:
            found.append((ref.name + b"^{}", ref.peeled))
    return found


@pytest.mark.parametrize("rules", RULES)
def test_the_refs_that_git_shows(rules: list[str], root: RepositoryRoot, git: Any) -> None:
    path = make(git, root, NAMES)
    section: Section
    for rule in rules:
        git(path, "config", "--add", "transfer.hideRefs", rule)
    for namespace in ("", "n", "n/m", "o", "nothing"):
        for section in ("uploadpack", "receive"):
            assert our_refs(root, section, namespace) == gits_refs(git, path, section, namespace)


def test_each_service_has_rules_of_its_own_and_order_counts(root: RepositoryRoot, git: Any) -> None:
    path = make(git, root, NAMES)
    section: Section
    with open(path / "config", "a") as file:
        file.write("[uploadpack]\nhideRefs = refs/heads\n[transfer]\nhideRefs = !refs/heads/a\n")
        file.write("[receive]\nhideRefs = refs/heads/a\nhideRefs = !refs/heads/a/c\n")
    for section in ("uploadpack", "receive"):
        assert our_refs(root, section, "") == gits_refs(git, path, section, "")
    assert b"refs/heads/a/b" in dict(our_refs(root, "uploadpack", ""))
    assert b"refs/heads/a/b" not in dict(our_refs(root, "receive", ""))


def test_random_rules(root: RepositoryRoot, git: Any) -> None:
    path = make(git, root, NAMES)
    config = (path / "config").read_text()
    chance = random.Random(7)
    section: Section
    for _ in range(25):
        rules = []
        for _ in range(chance.randrange(1, 7)):
            parts = os.fsdecode(chance.choice([*NAMES, b"HEAD"])).split("/")
            prefix = "/".join(parts[: chance.randrange(1, len(parts) + 1)])
            rules.append(chance.choice(["", "!"]) + chance.choice(["", "^"]) + prefix)
        lines = "".join(f"hideRefs = {rule}\n" for rule in rules)
        (path / "config").write_bytes(os.fsencode(f"{config}[transfer]\n{lines}"))
        namespace = chance.choice(["", "n", "n/m"])
        for section in ("uploadpack", "receive"):
            ours, gits = our_refs(root, section, namespace), gits_refs(git, path, section, namespace)
            assert ours == gits, (rules, namespace, section)


@given(st.lists(st.sampled_from(["", "!", "^", "!^"]).flatmap(lambda mark: st.sampled_from(NAMES).flatmap(
    lambda name: st.integers(1, len(name)).map(lambda end: mark + os.fsdecode(name[:end]))
)), max_size=6), st.sampled_from(["", "n", "n/m"]))  # fmt: skip
def test_runs_of_refs_are_judged_as_each_ref_would_be(rules: list[str], namespace: str) -> None:
    hidden = HiddenRefs(rules)
    prefix = namespace_prefix(namespace)
    view = RefView(prefix, hidden)
    refs = tuple(Ref(name, b"%040d" % place, None, None) for place, name in enumerate(sorted(NAMES)))

    def slow(shown: bytes | None, stored: bytes) -> bool:
        """git's own loop, from the last rule to the first."""
        for rule in reversed(rules):
            text = os.fsencode(rule.rstrip("/"))
            shows, text = text.startswith(b"!"), text.removeprefix(b"!")
            subject, text = (stored, text[1:]) if text.startswith(b"^") else (shown, text)
            if subject is not None and (subject == text or subject.startswith(text + b"/")):
                return not shows
        return False

    lines = list(view.for_push(RefSnapshot(refs, None, None)))
    expected = [view.shown(ref.name) or b".have" for ref in refs if not slow(view.shown(ref.name), ref.name)]
    assert [name for name, _ in lines] == expected
    for ref in refs:
        assert hidden.hide(view.shown(ref.name), ref.name) == slow(view.shown(ref.name), ref.name)


def test_many_rules_and_many_refs_cost_no_product_of_both() -> None:
    refs = tuple(Ref(b"refs/pull/%06d/head" % n, b"0" * 40, None, None) for n in range(100_000))
    hidden = HiddenRefs([f"refs/pull/{n:06d}" for n in range(0, 100_000, 10)])
    start = time.perf_counter()
    shown = RefView(b"", hidden).refs(refs)
    assert len(shown) == 90_000
    assert shown[0].name == b"refs/pull/000001/head"
    # Measured: 0.15 s. A product would be 10^9 comparisons: minutes
    assert time.perf_counter() - start < 10


def test_what_is_shown_is_worked_out_once_while_nothing_changes(root: RepositoryRoot, git: Any) -> None:
    path = make(git, root, NAMES)
    git(path, "pack-refs", "--all")
    assert (path / "refs/namespaces/n/HEAD").is_file()  # a symbolic ref is never packed
    git(path, "config", "transfer.hideRefs", "refs/internal")
    repo = root.open("r")
    first = repo.shown_refs("uploadpack")
    assert repo.shown_refs("uploadpack").refs is first.refs
    assert repo.shown_refs("receive").refs is not first.refs
    inside = repo.in_namespace("n")
    assert inside.shown_refs("uploadpack").refs is repo.in_namespace("n").shown_refs("uploadpack").refs
    before = inside.shown_refs("uploadpack").refs
    git(path, "update-ref", "refs/namespaces/n/refs/heads/more", "refs/heads/main")
    assert len(inside.shown_refs("uploadpack").refs) == len(before) + 1
    assert first.get(b"refs/internal/x") is None
    git(path, "config", "--unset", "transfer.hideRefs")
    assert repo.shown_refs("uploadpack").get(b"refs/internal/x") is not None


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("", b""),
        ("a", b"refs/namespaces/a/"),
        ("a/b", b"refs/namespaces/a/refs/namespaces/b/"),
        ("/a//b/", b"refs/namespaces/a/refs/namespaces/b/"),
        ("ünï", "refs/namespaces/ünï/".encode()),
    ],
)
def test_namespaces(name: str, prefix: bytes) -> None:
    assert namespace_prefix(name) == prefix


@pytest.mark.parametrize(
    "name", ["..", "a..b", ".a", "a/.b", "a.lock", "a b", "a~", "a\n", "/", "a.", "@{", "*"]
)
def test_bad_namespaces(name: str, git: Any, root: RepositoryRoot) -> None:
    root.create("r")
    with pytest.raises(ValueError, match="bad git namespace path"):
        namespace_prefix(name)
    environ, git.environ = git.environ, git.environ | {"GIT_NAMESPACE": name}
    with pytest.raises(AssertionError, match="bad git namespace path"):
        git(root.path / "r.git", "upload-pack", "--advertise-refs", ".")
    git.environ = environ


def test_the_head_of_a_namespace(root: RepositoryRoot, git: Any) -> None:
    path = make(git, root, [name for name in NAMES if not name.endswith(b"HEAD")])
    repo = root.open("r").in_namespace("n")
    assert repo.shown_refs("uploadpack").head is None
    assert repo.shown_refs("uploadpack").head_target is None
    git(path, "symbolic-ref", "refs/namespaces/n/HEAD", "refs/namespaces/n/refs/heads/unborn")
    assert repo.shown_refs("uploadpack").head_target == b"refs/heads/unborn"
    git(path, "symbolic-ref", "refs/namespaces/n/HEAD", "refs/namespaces/n/refs/heads/main")
    shown = repo.shown_refs("uploadpack")
    assert shown.head is not None
    assert (shown.head.name, shown.head_target) == (b"HEAD", b"refs/heads/main")
    git(path, "symbolic-ref", "refs/namespaces/n/HEAD", "refs/heads/main")
    shown = repo.shown_refs("uploadpack")
    assert shown.head is not None
    assert shown.head_target is None  # it's outside: no name for it here
    oid = git(path, "rev-parse", "refs/heads/main")
    git(path, "update-ref", "--no-deref", "refs/namespaces/n/HEAD", oid.decode())
    shown = repo.shown_refs("uploadpack")
    assert shown.head is not None
    assert (shown.head.oid, shown.head_target) == (oid, None)


def test_a_rule_without_a_value_is_an_error_that_names_it() -> None:
    with pytest.raises(RepositoryUnusable, match=r"missing value for 'transfer\.hiderefs'"):
        HiddenRefs.from_config(GitConfig(parse(b"[transfer]\nhideRefs\n")), "receive")
    rules = os.fsdecode("refs/heads/ö".encode("latin-1"))
    assert HiddenRefs([rules]).hide(b"refs/heads/\xf6/x", b"refs/heads/\xf6/x")
