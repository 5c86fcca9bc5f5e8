"""What a repository's config lets a push do to its refs, in git's words.

    judge_names                 funny names, one ref twice                  needs nothing
    PushPolicy.judge            deletes, the current branch                 needs config and HEAD
    PushPolicy.judge_objects    non-fast-forwards, branches to no commit    needs the pushed objects

    receive.denyNonFastForwards   false    true: branches only move forward, even when forced
    receive.denyDeletes           false    true: branches can't be deleted
    receive.denyCurrentBranch     refuse   for a repository with a work tree: refuse, warn, ignore
    receive.denyDeleteCurrent     refuse   the branch that HEAD names, in bare ones too: refuse, warn, ignore

git-config(1), receive.*; git: builtin/receive-pack.c update(), parse_deny_action(). `updateInstead` is
refused as not supported: there is no work tree that we would touch. Where git looks at the command's refname
only, we follow symrefs first, so that the current branch is as safe behind another name.
"""

import enum
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final, Protocol

from gitsmart.errors import GitsmartError, ObjectMissing, PackError
from gitsmart.pack.objects import COMMIT, to_raw
from gitsmart.pack.store import ObjectStore
from gitsmart.wire.push_request import RefCommand
from gitsmart.wire.refname import is_updatable_refname

__all__ = ["INVALID_NEW", "Deny", "PushPolicy", "Refusal", "is_ancestor", "judge_names", "show_ref"]

INVALID_NEW: Final = "invalid new value provided"

_BRANCHES = b"refs/heads/"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command isn't carried out.

    `reason` goes into the report (`ng <ref> <reason>`), where git prints it as `[remote rejected] ...
    (reason)`. `error` is the longer text for band 2, without the leading `error: `.
    """

    reason: str
    error: str


class Deny(enum.Enum):
    """What to do about a doubtful update."""

    IGNORE = "ignore"
    WARN = "warn"
    REFUSE = "refuse"
    UNCONFIGURED = "unconfigured"
    """Refuse, and explain how to allow it."""
    UPDATE_INSTEAD = "updateInstead"


class Config(Protocol):
    """A repository's git config: `repo.gitconfig.GitConfig`."""

    def get_bool(self, name: str, default: bool) -> bool: ...
    def get_str(self, name: str) -> str | None: ...
    def __contains__(self, name: str) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPolicy:
    """The `receive.deny*` settings of one repository."""

    deny_non_fast_forwards: bool = False
    deny_deletes: bool = False
    deny_current_branch: Deny = Deny.UNCONFIGURED
    deny_delete_current: Deny = Deny.UNCONFIGURED

    @classmethod
    def from_config(cls, config: Config) -> "PushPolicy":
        """Read the settings. Raises RepositoryUnusable where git would die of a value."""
        return cls(
            deny_non_fast_forwards=config.get_bool("receive.denyNonFastForwards", False),
            deny_deletes=config.get_bool("receive.denyDeletes", False),
            deny_current_branch=_parse_deny(config, "receive.denyCurrentBranch"),
            deny_delete_current=_parse_deny(config, "receive.denyDeleteCurrent"),
        )

    def judge(
        self,
        command: RefCommand,
        *,
        stored: bytes | None = None,
        target: bytes,
        head: bytes | None,
        checked_out: Set[bytes],
        warn: Callable[[str], None],
    ) -> Refusal | None:
        """Judge a command by its name and kind. Its name has passed `judge_names`.

        Args:
            stored: the command's ref by its name in the repository; None: the command's own, as it is where
                there is no namespace.
            target: the ref that would be written: `stored`, symrefs followed.
            head: the branch that HEAD names.
            checked_out: branches that a work tree has checked out; empty for a bare repository without any.
            warn: told of what is allowed with a warning.
        """
        names = {command.ref if stored is None else stored, target}
        ref = show_ref(command.ref)
        if names & checked_out:
            match self.deny_current_branch:
                case Deny.IGNORE:
                    pass
                case Deny.WARN:
                    warn("updating the current branch")
                case Deny.UPDATE_INSTEAD:
                    return Refusal(
                        "branch is currently checked out",
                        f"receive.denyCurrentBranch = updateInstead is not supported here: {ref}",
                    )
                case _:
                    error = f"refusing to update checked out branch: {ref}"
                    if self.deny_current_branch is Deny.UNCONFIGURED:
                        error += _CURRENT_HINT
                    return Refusal("branch is currently checked out", error)
        if not command.is_delete or command.is_create:
            return None
        if self.deny_deletes and any(name.startswith(_BRANCHES) for name in (command.ref, target)):
            return Refusal("deletion prohibited", f"denying ref deletion for {ref}")
        if names & checked_out or head in names:
            match self.deny_delete_current:
                case Deny.IGNORE:
                    pass
                case Deny.WARN:
                    warn("deleting the current branch")
                case _:
                    error = f"refusing to delete the current branch: {ref}"
                    if self.deny_delete_current is Deny.UNCONFIGURED:
                        error += _DELETE_HINT
                    return Refusal("deletion of the current branch prohibited", error)
        return None

    def judge_objects(
        self,
        command: RefCommand,
        store: ObjectStore,
        *,
        target: bytes,
        shallow: Set[bytes],
        want_forced: bool,
        tick: Callable[[], None],
    ) -> tuple[Refusal | None, bool]:
        """Judge a command by the objects that it goes from and to; they are all there, but for the old one.

        Returns the refusal, and whether the update discards commits (only looked into with `want_forced`, or
        when the config forbids it). Cost: see `is_ancestor`.

        Args:
            store: the pushed objects over the repository's.
            shallow: raw oids of the repository's shallow commits.
            tick: called now and then; what it raises ends the walk.
        """
        if command.is_delete:
            return None, False
        ref, new, old = show_ref(command.ref), to_raw(command.new), to_raw(command.old)
        is_branch = command.ref.startswith(_BRANCHES) or target.startswith(_BRANCHES)
        try:
            kind = store.type_of(new)
        except ObjectMissing:
            return Refusal("bad pack", f"{command.new.decode()} is not in the pack"), False
        if is_branch and kind != COMMIT:
            return Refusal(
                INVALID_NEW,
                f"cannot update ref '{ref}': trying to write non-commit object {command.new.decode()}"
                f" to branch '{ref}'",
            ), False
        deny = is_branch and self.deny_non_fast_forwards
        if command.is_create or not (deny or want_forced):
            return None, False
        try:
            comparable = kind == COMMIT and store.type_of(old) == COMMIT
        except ObjectMissing:
            comparable = False
        if not comparable:
            if deny:
                return Refusal("bad ref", f"bad objects for {ref}"), True
            return None, True
        forced = not is_ancestor(store, old, new, shallow=shallow, tick=tick)
        if forced and deny:
            return Refusal(
                "non-fast-forward", f"denying non-fast-forward {ref} (you should pull first)"
            ), True
        return None, forced


def _parse_deny(config: Config, name: str) -> Deny:
    if name not in config:
        return Deny.UNCONFIGURED
    try:
        word = config.get_str(name)
    except GitsmartError:
        word = None  # a variable without "=": the boolean true
    for deny in (Deny.IGNORE, Deny.WARN, Deny.REFUSE, Deny.UPDATE_INSTEAD):
        if word is not None and word.lower() == deny.value.lower():
            return deny
    return Deny.REFUSE if config.get_bool(name, True) else Deny.IGNORE


_CURRENT_HINT = """
Pushing to the branch that is checked out would leave the repository's index and work tree behind, so it is
not allowed by default. Push to another branch, or set receive.denyCurrentBranch to 'warn' or 'ignore' in the
repository's config. Set it to 'refuse' to be told without this explanation."""

_DELETE_HINT = """
A clone checks out the branch that HEAD names; without it, it would have no files. So deleting it is not
allowed by default. Point HEAD at another branch, or set receive.denyDeleteCurrent to 'warn' or 'ignore' in
the repository's config. Set it to 'refuse' to be told without this explanation."""


def judge_names(commands: Sequence[RefCommand]) -> Mapping[int, Refusal]:
    """Return the commands that can't be carried out whatever the repository holds: index -> refusal.

    A refname that git would not have (git: refs.c check_refname_format()), and more than one command for one
    ref: git refuses the transaction then, here all commands of that ref go and the others stay.
    """
    refused: dict[int, Refusal] = {}
    times = Counter(command.ref for command in commands)
    for index, command in enumerate(commands):
        ref = show_ref(command.ref)
        if not is_updatable_refname(command.ref, is_delete=command.is_delete):
            refused[index] = Refusal("funny refname", f"refusing to update funny ref '{ref}' remotely")
        elif times[command.ref] > 1:
            reason = f"multiple updates for ref '{ref}' not allowed"
            refused[index] = Refusal(reason, reason)
    return refused


def show_ref(ref: bytes) -> str:
    """Make a refname fit for a message: what is not text, or not printable, is escaped; cut to 200
    characters.
    """
    text = ref[:800].decode("utf-8", "backslashreplace")
    text = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )
    return text if len(text) <= 200 else text[:200] + "..."


_OLD, _NEW = 1, 2


def is_ancestor(
    store: ObjectStore, old: bytes, new: bytes, *, shallow: Set[bytes] = frozenset(), tick: Callable[[], None]
) -> bool:
    """Whether commit `old` can be reached from commit `new` (raw oids); a commit is its own ancestor.

    Walks from both, newest first, and stops when it meets `old`, or when only commits are left that both
    reach: for a usual push no more than the pushed commits, for a rewritten branch down to the fork. Exact
    however wrong the commits' dates are, which only make it longer. A missing commit ends its line of
    history, as a shallow one does.

    git: commit-reach.c paint_down_to_common().
    """
    if old == new:
        return True
    flags: dict[bytes, int] = {old: _OLD, new: _NEW}
    heap: list[tuple[int, bytes]] = []
    unsettled = 0  # queued commits that not both sides are known to reach
    queued: dict[bytes, int] = {}  # raw oid -> flags it was queued with

    def date(raw_oid: bytes) -> int | None:
        try:
            return store.commit(raw_oid).date
        except (ObjectMissing, PackError):
            return None

    def push(raw_oid: bytes) -> None:
        nonlocal unsettled
        when = date(raw_oid)
        if when is None:
            return
        before = queued.get(raw_oid)
        if before is None:
            heappush(heap, (-when, raw_oid))
        elif before != _OLD | _NEW:
            unsettled -= 1
        queued[raw_oid] = flags[raw_oid]
        if flags[raw_oid] != _OLD | _NEW:
            unsettled += 1

    push(old)
    push(new)
    steps = 0
    while unsettled:
        _, raw_oid = heappop(heap)
        reached = queued.pop(raw_oid)
        if reached != _OLD | _NEW:
            unsettled -= 1
        steps += 1
        if not steps % 256:
            tick()
        if raw_oid in shallow:
            continue
        for parent in store.commit(raw_oid).parents:
            seen = flags.get(parent, 0)
            if seen | reached == seen:
                continue
            flags[parent] = seen | reached
            if parent == old and reached & _NEW:
                return True
            push(parent)
    return False
