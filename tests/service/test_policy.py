"""What config allows, and who is whose ancestor."""

import random
import subprocess
from pathlib import Path

import pytest

from gitsmart.errors import Disconnected, ObjectMissing, RepositoryUnusable
from gitsmart.pack.objects import SHA1, Commit, to_raw
from gitsmart.pack.store import ObjectStore
from gitsmart.repo.gitconfig import GitConfig, parse
from gitsmart.service.policy import Deny, PushPolicy, Refusal, is_ancestor, judge_names, show_ref
from gitsmart.wire.push_request import RefCommand

ZERO = b"0" * 40
ONE, TWO = b"1" * 40, b"2" * 40


def policy(text: str) -> PushPolicy:
    return PushPolicy.from_config(GitConfig(parse(text.encode())))


@pytest.mark.parametrize(
    ("value", "want"),
    [
        pytest.param(None, Deny.UNCONFIGURED, id="unset"),
        pytest.param("= ignore", Deny.IGNORE, id="ignore"),
        pytest.param("= Warn", Deny.WARN, id="warn"),
        pytest.param("= refuse", Deny.REFUSE, id="refuse"),
        pytest.param("= updateinstead", Deny.UPDATE_INSTEAD, id="updateInstead"),
        pytest.param("= true", Deny.REFUSE, id="true"),
        pytest.param("", Deny.REFUSE, id="no-value"),
        pytest.param("= 1", Deny.REFUSE, id="one"),
        pytest.param("= no", Deny.IGNORE, id="no"),
        pytest.param("=", Deny.IGNORE, id="empty"),
    ],
)
@pytest.mark.parametrize("name", ["denyCurrentBranch", "denyDeleteCurrent"])
def test_deny_settings(name: str, value: str | None, want: Deny) -> None:
    read = policy("" if value is None else f"[receive]\n{name} {value}\n")
    got = read.deny_current_branch if name == "denyCurrentBranch" else read.deny_delete_current
    assert got is want


@pytest.mark.parametrize("name", ["denyCurrentBranch", "denyDeletes", "denyNonFastForwards"])
def test_a_bad_value_is_an_error(name: str) -> None:
    with pytest.raises(RepositoryUnusable, match="perhaps"):
        policy(f"[receive]\n{name} = perhaps\n")


def test_defaults() -> None:
    assert policy("") == PushPolicy()


def judge(
    settings: PushPolicy,
    command: RefCommand,
    *,
    target: bytes | None = None,
    head: bytes | None = b"refs/heads/main",
    checked_out: frozenset[bytes] = frozenset(),
) -> tuple[str | None, list[str]]:
    warnings: list[str] = []
    refusal = settings.judge(
        command, target=target or command.ref, head=head, checked_out=checked_out, warn=warnings.append
    )
    return (None if refusal is None else refusal.reason), warnings


UPDATE = RefCommand(ONE, TWO, b"refs/heads/main")
CREATE = RefCommand(ZERO, TWO, b"refs/heads/main")
DELETE = RefCommand(ONE, ZERO, b"refs/heads/main")
CURRENT = frozenset({b"refs/heads/main"})
CHECKED_OUT = "branch is currently checked out"
DELETE_CURRENT = "deletion of the current branch prohibited"


@pytest.mark.parametrize("command", [UPDATE, CREATE, DELETE], ids=["update", "create", "delete"])
def test_a_checked_out_branch_is_left_alone(command: RefCommand) -> None:
    assert judge(PushPolicy(), command, checked_out=CURRENT) == (CHECKED_OUT, [])
    assert (
        judge(PushPolicy(deny_current_branch=Deny.UPDATE_INSTEAD), command, checked_out=CURRENT)[0]
        == CHECKED_OUT
    )
    elsewhere = RefCommand(command.old, command.new, b"refs/heads/alias")
    assert judge(PushPolicy(), elsewhere, target=b"refs/heads/main", checked_out=CURRENT)[0] == CHECKED_OUT
    assert judge(PushPolicy(), elsewhere, checked_out=CURRENT) == (None, [])


def test_a_checked_out_branch_may_be_updated_and_still_not_deleted() -> None:
    lax = PushPolicy(deny_current_branch=Deny.WARN)
    assert judge(lax, UPDATE, checked_out=CURRENT) == (None, ["updating the current branch"])
    assert judge(lax, DELETE, checked_out=CURRENT)[0] == DELETE_CURRENT


def test_deletes() -> None:
    assert judge(PushPolicy(), UPDATE) == (None, [])
    assert judge(PushPolicy(), DELETE) == (DELETE_CURRENT, [])
    assert judge(PushPolicy(), DELETE, head=b"refs/heads/other") == (None, [])
    assert judge(PushPolicy(), DELETE, head=None) == (None, [])
    strict = PushPolicy(deny_deletes=True, deny_delete_current=Deny.IGNORE)
    assert judge(strict, DELETE) == ("deletion prohibited", [])
    assert judge(strict, RefCommand(ONE, ZERO, b"refs/tags/v1")) == (None, [])
    assert (
        judge(strict, RefCommand(ONE, ZERO, b"refs/x/y"), target=b"refs/heads/y")[0] == "deletion prohibited"
    )
    lax = PushPolicy(deny_delete_current=Deny.WARN)
    assert judge(lax, DELETE) == (None, ["deleting the current branch"])
    nothing = RefCommand(ZERO, ZERO, b"refs/heads/main")
    assert judge(strict, nothing) == (None, []), "git: only a delete of something can be denied"


def test_judge_names() -> None:
    commands = [
        RefCommand(ZERO, ONE, b"refs/heads/a"),
        RefCommand(ZERO, ONE, b"HEAD"),
        RefCommand(ZERO, ONE, b"refs/heads/b"),
        RefCommand(ZERO, TWO, b"refs/heads/b"),
        RefCommand(ZERO, ONE, b"refs/one"),
        RefCommand(ONE, ZERO, b"refs/one-level-to-delete"),
    ]
    twice = "multiple updates for ref 'refs/heads/b' not allowed"
    assert judge_names(commands) == {
        1: Refusal("funny refname", "refusing to update funny ref 'HEAD' remotely"),
        2: Refusal(twice, twice),
        3: Refusal(twice, twice),
        4: Refusal("funny refname", "refusing to update funny ref 'refs/one' remotely"),
    }


@pytest.mark.parametrize(
    ("ref", "want"),
    [
        (b"refs/heads/main", "refs/heads/main"),
        ("refs/heads/über".encode(), "refs/heads/über"),
        (b"refs/heads/\xff\x1b[2J\n", "refs/heads/\\xff\\x1b[2J\\n"),
        (b"x" * 70000, "x" * 200 + "..."),
    ],
)
def test_show_ref(ref: bytes, want: str) -> None:
    assert show_ref(ref) == want


class History:
    """Commits out of thin air: numbers with parents and dates."""

    def __init__(self, parents: list[list[int]], dates: list[int]) -> None:
        self.parents = parents
        self.dates = dates
        self.asked = 0
        self.missing: set[int] = set()

    @staticmethod
    def name(number: int) -> bytes:
        return number.to_bytes(20, "big")

    def commit(self, raw_oid: bytes) -> Commit:
        number = int.from_bytes(raw_oid, "big")
        self.asked += 1
        if number in self.missing:
            raise ObjectMissing(raw_oid.hex())
        return Commit(b"", tuple(self.name(parent) for parent in self.parents[number]), self.dates[number])

    def reaches(self, old: int, new: int, shallow: frozenset[int] = frozenset()) -> bool:
        todo, seen = [new], set()
        while todo:
            number = todo.pop()
            if number == old:
                return True
            if number not in seen and number not in shallow and number not in self.missing:
                seen.add(number)
                todo += self.parents[number]
        return False

    def is_ancestor(self, old: int, new: int, shallow: frozenset[int] = frozenset()) -> bool:
        return is_ancestor(
            self,  # type: ignore[arg-type]
            self.name(old),
            self.name(new),
            shallow=frozenset(self.name(number) for number in shallow),
            tick=lambda: None,
        )


@pytest.mark.parametrize("skew", [0, 3, 1000], ids=["true-dates", "small-skew", "random-dates"])
@pytest.mark.parametrize("seed", range(6))
def test_is_ancestor_agrees_with_a_plain_search(seed: int, skew: int) -> None:
    rng = random.Random(f"{seed}/{skew}")
    size = 40
    parents = [sorted(rng.sample(range(n), min(n, rng.choice([0, 1, 1, 1, 2, 2, 3])))) for n in range(size)]
    history = History(parents, [10 * n + rng.randint(-10 * skew, 10 * skew) for n in range(size)])
    shallow = frozenset(rng.sample(range(size), 3))
    for old in range(size):
        for new in range(size):
            assert history.is_ancestor(old, new) == history.reaches(old, new), (old, new)
            assert history.is_ancestor(old, new, shallow) == history.reaches(old, new, shallow), (old, new)
    history.missing = set(rng.sample(range(size), 3))
    for old in set(range(size)) - history.missing:
        for new in set(range(size)) - history.missing:
            assert history.is_ancestor(old, new) == history.reaches(old, new), (old, new)


def test_a_usual_push_looks_at_the_pushed_commits_only() -> None:
    size = 10_000
    history = History([[n - 1] if n else [] for n in range(size)], list(range(size)))
    assert history.is_ancestor(size - 6, size - 1)
    assert history.asked < 30


def test_a_rewritten_branch_is_walked_to_the_fork() -> None:
    """8,990 commits on both sides' past, five on each."""
    size = 9_000
    parents = [[n - 1] if n else [] for n in range(size)]
    parents[size - 5] = [size - 11]
    history = History(parents, list(range(size)))
    assert not history.is_ancestor(size - 6, size - 1)
    assert history.asked < 60


def test_a_long_walk_can_be_ended() -> None:
    size = 5_000
    history = History([[n - 1] if n else [] for n in range(size)], list(range(size)))

    def tick() -> None:
        raise Disconnected("the client has gone")

    with pytest.raises(Disconnected):
        is_ancestor(history, history.name(0), history.name(size - 1), tick=tick)  # type: ignore[arg-type]


def test_objects_are_judged(tmp_path: Path) -> None:
    def git(*args: str) -> bytes:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"]
        done = subprocess.run(["git", *identity, *args], cwd=tmp_path, capture_output=True, check=True)
        return done.stdout.rstrip(b"\n")

    git("init", "-q")
    (tmp_path / "file").write_text("text\n")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    git("commit", "-q", "--allow-empty", "-m", "two")
    git("tag", "-a", "-m", "t", "t")
    one, two, tag = (git("rev-parse", rev) for rev in ("HEAD~1", "HEAD", "t"))
    blob = git("rev-parse", "HEAD:file")
    store = ObjectStore(tmp_path / ".git" / "objects", SHA1)

    def judged(
        old: bytes, new: bytes, ref: str, *, deny: bool = False, want: bool = True
    ) -> tuple[str | None, bool]:
        command = RefCommand(old, new, ref.encode())
        refusal, forced = PushPolicy(deny_non_fast_forwards=deny).judge_objects(
            command, store, target=command.ref, shallow=frozenset(), want_forced=want, tick=lambda: None
        )
        return (None if refusal is None else refusal.reason), forced

    branch = "refs/heads/x"
    assert judged(one, two, branch) == (None, False)
    assert judged(two, one, branch) == (None, True)
    assert judged(two, one, branch, want=False) == (None, False)
    assert judged(two, one, branch, deny=True, want=False) == ("non-fast-forward", True)
    assert judged(two, one, "refs/tags/x", deny=True) == (None, True)
    assert judged(one, two, branch, deny=True) == (None, False)
    assert judged(ZERO, blob, branch) == ("invalid new value provided", False)
    assert judged(ZERO, tag, branch) == ("invalid new value provided", False)
    assert judged(ZERO, blob, "refs/tags/x") == (None, False)
    assert judged(tag, two, "refs/tags/x") == (None, True)
    assert judged(ONE, two, branch, deny=True) == ("bad ref", True), (
        "an old commit that isn't here proves nothing"
    )
    assert judged(ZERO, ONE, branch) == ("bad pack", False)
    assert judged(one, ZERO, branch, deny=True) == (None, False)
    assert to_raw(one) in store
    store.close()
