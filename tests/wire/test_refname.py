import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsmart.wire.refname import is_updatable_refname, is_valid_refname

# git-check-ref-format(1), rule by rule: name, valid, valid with --allow-onelevel
RULES = [
    (b"refs/heads/main", True, True),
    (b"heads/main", True, True),
    (b"a/b/c/d", True, True),
    (b"main", False, True),
    (b"HEAD", False, True),
    (b"refs/heads/\xc3\xa9\xff", True, True),
    (b"refs/heads/a@b", True, True),
    (b"refs/heads/@", True, True),
    (b"refs/heads/{x}", True, True),
    (b"refs/heads/a.lockx", True, True),
    (b"refs/heads/a.b.c", True, True),
    (b"refs/heads/-x", True, True),
    (b"refs/heads/'\"$(`;|&<>!", True, True),
    # 1: no component begins with a dot or ends with .lock
    (b".refs/a", False, False),
    (b"refs/.heads/a", False, False),
    (b"refs/heads/.a", False, False),
    (b"refs/heads/a.lock", False, False),
    (b"refs/heads.lock/a", False, False),
    (b"a.lock", False, False),
    (b".lock", False, False),
    # 3: no two dots in a row
    (b"refs/heads/a..b", False, False),
    (b"refs/../a", False, False),
    # 4: no control characters, DEL, space, ~, ^, :
    (b"refs/heads/a\x01b", False, False),
    (b"refs/heads/a\x1fb", False, False),
    (b"refs/heads/a\x7fb", False, False),
    (b"refs/heads/a b", False, False),
    (b"refs/heads/a\tb", False, False),
    (b"refs/heads/a\n", False, False),
    (b"refs/heads/a~1", False, False),
    (b"refs/heads/a^", False, False),
    (b"refs/heads/a:b", False, False),
    # 5: no ?, *, [
    (b"refs/heads/a?", False, False),
    (b"refs/heads/*", False, False),
    (b"refs/heads/a[b", False, False),
    # 6: no slash at either end, or two in a row
    (b"/refs/heads/a", False, False),
    (b"refs/heads/a/", False, False),
    (b"refs//heads/a", False, False),
    (b"/", False, False),
    (b"", False, False),
    # 7: no dot at the end
    (b"refs/heads/a.", False, False),
    (b".", False, False),
    # 8: no @{
    (b"refs/heads/a@{b", False, False),
    (b"refs/heads/@{-1}", False, False),
    # 9: not @ alone
    (b"@", False, False),
    # 10: no backslash
    (b"refs/heads/a\\b", False, False),
]


def git_accepts(name: bytes, *options: str) -> bool:
    return subprocess.run(["git", "check-ref-format", *options, name], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "full", "onelevel"), [pytest.param(*rule, id=repr(rule[0])) for rule in RULES]
)
def test_rules(name: bytes, full: bool, onelevel: bool) -> None:
    assert is_valid_refname(name) is full
    assert is_valid_refname(name, allow_onelevel=True) is onelevel


def test_git_agrees_with_the_table() -> None:
    for name, full, onelevel in RULES:
        assert git_accepts(name) is full, name
        assert git_accepts(name, "--allow-onelevel") is onelevel, name


def test_git_agrees_on_names_made_of_what_matters() -> None:
    pieces = [b".", b"/", b"@", b"{", b"lock", b"a", b"..", b"-", b".lock", b"*"]
    names = [a + b + c for a in pieces[:6] for b in pieces for c in (b"", b"a", b"/", b".")]
    wrong = [
        name
        for name in names[::7]
        if git_accepts(name, "--allow-onelevel") is not is_valid_refname(name, allow_onelevel=True)
    ]
    assert wrong == []


@given(st.binary(max_size=30))
def test_never_raises(name: bytes) -> None:
    if is_valid_refname(name):
        assert is_valid_refname(name, allow_onelevel=True)


@pytest.mark.parametrize(
    ("name", "update", "delete"),
    [
        (b"refs/heads/main", True, True),
        (b"refs/main", False, True),
        (b"refs/", False, False),
        (b"refs/@", False, False),
        (b"HEAD", False, False),
        (b"heads/main", False, False),
        (b"refs/heads/../../config", False, False),
        (b"refs/heads/a.lock", False, False),
    ],
)
def test_a_push_may_only_name_refs(name: bytes, update: bool, delete: bool) -> None:
    assert is_updatable_refname(name, is_delete=False) is update
    assert is_updatable_refname(name, is_delete=True) is delete
