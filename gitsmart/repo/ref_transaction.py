r"""Updating refs: all locks, all compares, then the writes, as far as that is the same for every backend.

    RefTransaction        results, symrefs, conflicts within a push, compares, the hook, what is logged
      FilesTransaction      locks and renames for each ref            files_transaction.py
      ReftableTransaction   one lock and one table for all of them    reftable_transaction.py

The results are values: None, or the words that git receive-pack sends after "ng <ref> " (checked with git's
HEAD of August 2026, builtin/receive-pack.c and refs.c ref_transaction_error_msg(); git 2.39 says "failed to
update ref" for all of the first five):

    incorrect old value provided      the ref is not what the client took it for
    reference already exists          it was to be created and is there
    reference does not exist          it was to be changed and is not
    refname conflict                  refs/a and refs/a/b can't both be: loose, packed, or in the same push
    missing necessary objects         the new tip is not there (any more)
    failed to update ref              not locked in time, or the disk said no (of a held lock git's HEAD says
                                      "reference already exists": it isn't true, so 2.39's words)
    failed to update refs             the same for a stack of reftables, which has one lock for all
    failed to delete                  the same for a delete
    broken symref, inconsistent aliased update     receive-pack.c check_aliased_update()
    atomic transaction failed         another ref of an atomic push failed; that one has its own reason

Deleting what is not there is done with when no old value was named (git: "deleting a non-existent ref" is a
warning). Where git would then delete whatever is there, unlooked at, a ref that exists and is sound is left
alone here: somebody has just made it.

A symref is followed: the ref it comes down to is updated, deleted too, and both have a line in their reflogs.
HEAD's reflog has one when HEAD points at the ref.

Not atomic: the deletes first, then the rest, each ref with a result of its own (git:
execute_commands_non_atomic()). Atomic: all refs or none.
"""

import abc
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from gitsmart.errors import RepositoryUnusable
from gitsmart.repo.gitconfig import GitConfig
from gitsmart.repo.gone_refs import GoneRef
from gitsmart.repo.ownership import OwnedDirectory
from gitsmart.repo.refs import RefState, RefStore, is_safe_ref

__all__ = [
    "FAILED_UPDATE",
    "NoteGone",
    "RefItem",
    "RefTransaction",
    "RefUpdate",
    "ReflogIdentity",
    "TransactionTerms",
]

REFLOG_MESSAGE: Final = b"push"
_LONGEST_TIMEOUT_MS = 60_000  # for "wait for ever", which git writes as -1

ALREADY_EXISTS: Final = "reference already exists"
DOES_NOT_EXIST: Final = "reference does not exist"
INCORRECT_OLD: Final = "incorrect old value provided"
NAME_CONFLICT: Final = "refname conflict"
MISSING_OBJECTS: Final = "missing necessary objects"
FAILED_UPDATE: Final = "failed to update ref"
FAILED_UPDATES: Final = "failed to update refs"
FAILED_DELETE: Final = "failed to delete"
DUPLICATE: Final = "multiple updates for ref not allowed"
BROKEN_SYMREF: Final = "broken symref"
INCONSISTENT: Final = "inconsistent aliased update"
ATOMIC_FAILED: Final = "atomic transaction failed"
HOOK_ABORTED: Final = "ref updates aborted by hook"


@dataclass(frozen=True, slots=True)
class RefUpdate:
    """One ref update command: hex oids, all-zero for a create's old and a delete's new value."""

    name: bytes
    old: bytes
    new: bytes
    is_forward: bool = False
    """Whether the new value is known to lead to the old one."""


@dataclass(frozen=True, slots=True)
class ReflogIdentity:
    """Who is written into reflogs."""

    name: str
    email: str

    def line(self, now_s: float | None = None) -> bytes:
        """`name <email> seconds zone`, without the characters that git leaves out of identities."""
        now = time.time() if now_s is None else now_s
        offset = time.localtime(now).tm_gmtoff // 60
        zone = f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02}{abs(offset) % 60:02}"
        text = f"{self.cleaned_name} <{self.cleaned_email}> {int(now)} {zone}"
        return text.encode("utf-8", "surrogateescape")

    @property
    def cleaned_name(self) -> str:
        """The name without what git leaves out."""
        return _clean(self.name)

    @property
    def cleaned_email(self) -> str:
        """The address without what git leaves out."""
        return _clean(self.email)


def _clean(text: str) -> str:
    # git: ident.c strbuf_addstr_without_crud()
    return re.sub(r"[<>\n\r\x00-\x1f\x7f]", "", text).strip(" .,:;\"\\'")


class FailedUpdate(Exception):
    """One ref can't be updated; `args[0]` is the result."""


@dataclass(slots=True, eq=False)
class RefItem:
    """One update on its way."""

    update: RefUpdate
    name: bytes  # what is written, symrefs followed
    via: tuple[bytes, ...] = ()  # the symrefs passed
    result: str | None = None
    current: bytes | None = None  # hex oid under the lock; None when missing

    @property
    def failure(self) -> str:
        """The result when the disk says no."""
        return FAILED_DELETE if self.is_delete else FAILED_UPDATE

    @property
    def is_delete(self) -> bool:
        """Whether the ref is to go."""
        return not self.update.new.strip(b"0")


def hook_lines(items: Sequence[RefItem]) -> bytes:
    """The updates, as the hook reference-transaction reads them."""
    updates = [item.update for item in items]
    return b"".join([b"%b %b %b\n" % (update.old, update.new, update.name) for update in updates])


NoteGone = Callable[[Sequence[GoneRef]], None]
"""Told of what refs are about to lose, under their locks; see gone_refs.py. Never raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionTerms:
    """All that a transaction needs to know besides the refs and their updates."""

    owned: OwnedDirectory
    """Holds what is being prepared, on the refs' file system, and marks the locks as ours."""
    config: GitConfig
    is_bare: bool
    identity: ReflogIdentity
    has_object: Callable[[bytes], bool]
    hook: Callable[[str, bytes], bool] | None = None
    """The repository's reference-transaction, if it has one: told "prepared", when all is locked and
    compared, "committed" or "aborted", and the updates; what it returns counts for "prepared" alone. Where it
    is, each update that isn't atomic with others is a transaction of its own, as in git."""
    note_gone: NoteGone | None = None


ItemT = TypeVar("ItemT", bound=RefItem)
StoreT = TypeVar("StoreT", bound=RefStore)


class RefTransaction(abc.ABC, Generic[ItemT, StoreT]):
    """A set of ref updates, to be run once by one thread."""

    def __init__(self, refs: StoreT, terms: TransactionTerms) -> None:
        self._refs = refs
        self._owned = terms.owned
        self._config = terms.config
        self._is_bare = terms.is_bare
        self._identity = terms.identity
        self._has_object = terms.has_object
        self._hook = terms.hook
        self._tell_gone = terms.note_gone
        self._zero = refs.format.zero
        self._head_target: bytes | None = None
        self._reflogs: str | None = None

    def run(self, updates: Sequence[RefUpdate], *, atomic: bool) -> list[str | None]:
        """Do it; one result for each update, in their order. Leaves no lock behind, whatever happens."""
        items = [self._make_item(update) for update in updates]
        try:
            self._read_settings()
            self._refuse_odd(items)
            self._follow_symrefs(items)
        except RepositoryUnusable:
            for item in items:
                item.result = item.result or item.failure
        skipped = [item for item in items if item.result == _SKIP]
        for item in skipped:
            item.result = None
        ids = {id(item) for item in skipped}
        todo = [item for item in items if item.result is None and id(item) not in ids]
        if atomic:
            if all(item.result is None for item in items):
                self._run_batch(todo, atomic=True)
            if any(item.result is not None for item in items):
                for item in items:
                    item.result = item.result or ATOMIC_FAILED
        else:
            batches = [
                [item for item in todo if item.is_delete],
                [item for item in todo if not item.is_delete],
            ]
            if self._hook is not None:
                batches = [[item] for batch in batches for item in batch]
            for batch in batches:
                self._run_batch(batch, atomic=False)
        by_name = {item.update.name: item for item in items}
        for item in skipped:
            item.result = item.result or by_name[item.name].result
        return [item.result for item in items]

    # Before any lock

    def _read_settings(self) -> None:
        head = self._refs.read(b"HEAD")
        self._head_target = head.value if head.state is RefState.SYMREF else None
        # git: config.c repo_settings_get_log_all_ref_updates(), refs.c should_autocreate_reflog()
        value = self._config.get_str("core.logAllRefUpdates") if self._has_log_value() else "true"
        if value is None:
            self._reflogs = None if self._is_bare else "normal"
        elif value.lower() == "always":
            self._reflogs = "always"
        else:
            self._reflogs = "normal" if self._config.get_bool("core.logAllRefUpdates") else None

    def _has_log_value(self) -> bool:
        values = self._config.get_all("core.logAllRefUpdates")
        return not values or values[-1] is not None

    def _refuse_odd(self, items: Sequence[ItemT]) -> None:
        """Names that no service should have let through, and two commands for one ref."""
        seen: dict[bytes, ItemT] = {}
        for item in items:
            if not is_safe_ref(item.update.name):
                item.result = "funny refname"
                continue
            first = seen.setdefault(item.update.name, item)
            if first is not item:
                first.result = item.result = DUPLICATE

    def _follow_symrefs(self, items: Sequence[ItemT]) -> None:
        """git: builtin/receive-pack.c check_aliased_updates()"""
        by_name = {item.update.name: item for item in items}
        for item in items:
            if item.result is not None:
                continue
            via: list[bytes] = []
            name = item.update.name
            raw = self._refs.read(name)
            while raw.state is RefState.SYMREF and len(via) <= 5:
                via.append(name)
                name = raw.value
                if not is_safe_ref(name):
                    break
                raw = self._refs.read(name)
            if not via:
                continue
            if raw.state is RefState.SYMREF or not is_safe_ref(name):
                item.result = BROKEN_SYMREF
                continue
            item.name, item.via = name, tuple(via)
            target = by_name.get(name)
            if target is None:
                by_name[name] = item  # a second alias of the same ref is judged against the first
            elif (item.update.old, item.update.new) == (target.update.old, target.update.new):
                item.result = item.result or (_SKIP if target.update.name == name else DUPLICATE)
            else:
                item.result = target.result = INCONSISTENT

    @abc.abstractmethod
    def _make_item(self, update: RefUpdate) -> ItemT:
        """What the backend keeps of an update."""

    @abc.abstractmethod
    def _run_batch(self, items: list[ItemT], *, atomic: bool) -> None:
        """Lock, compare, ask the hook, write: a result for each item, in it. One that has a result is left.

        Atomic: all or none; none is written when one has a result by then.
        """

    # For the backends

    def _is_let(self, live: Sequence[ItemT]) -> bool:
        """Ask the hook, while all locks are held; git: refs.c ref_transaction_prepare()."""
        if self._hook is None:
            return True
        lines = hook_lines(live)
        if self._hook("prepared", lines):
            return True
        for item in live:
            item.result = HOOK_ABORTED
        self._hook("aborted", lines)
        return False

    def _note_gone(self, live: Sequence[ItemT]) -> None:
        """Tell what is lost, under the locks and before any ref is written."""
        if self._tell_gone is None:
            return
        self._tell_gone(
            [
                GoneRef(name, item.current, item.is_delete)
                for item in live
                if item.current not in (None, item.update.new) and not item.update.is_forward
                for name in (item.name, *item.via)
            ]
        )

    def _refuse_nested(self, items: Sequence[ItemT]) -> None:
        """Names of the batch that can't be together: both are refused, as git does."""
        by_name = {item.name: item for item in items if item.result is None}
        for item in by_name.values():
            for parent in parents(item.name):
                other = by_name.get(parent)
                if other is not None:
                    item.result = other.result = NAME_CONFLICT

    @staticmethod
    def _attempt(item: ItemT, step: Callable[[ItemT], None]) -> None:
        if item.result is not None:
            return
        try:
            step(item)
        except FailedUpdate as failed:
            item.result = str(failed)
        except (OSError, RepositoryUnusable):
            item.result = item.failure

    def _compare(self, item: ItemT) -> None:
        old = item.update.old
        if old == (item.current or self._zero):
            return
        if old == self._zero:
            if not item.is_delete:
                raise FailedUpdate(ALREADY_EXISTS)
            # git advertises no ref whose object is missing, so its client can't name the old value
            if item.current is not None and self._has_object(item.current):
                raise FailedUpdate(INCORRECT_OLD)
        elif item.current is None:
            if not (item.is_delete and not self._has_object(old)):
                raise FailedUpdate(DOES_NOT_EXIST)
        else:
            raise FailedUpdate(INCORRECT_OLD)

    def _creates_reflog(self, name: bytes) -> bool:
        """Whether a ref gets a reflog that has none; git: refs.c should_autocreate_reflog()."""
        return self._reflogs == "always" or (
            self._reflogs == "normal"
            and (name == b"HEAD" or name.startswith((b"refs/heads/", b"refs/remotes/", b"refs/notes/")))
        )

    def _logged_names(self, item: ItemT) -> list[bytes]:
        """The refs whose reflogs an update concerns, if they have one or get one."""
        names = list(item.via)
        if not item.is_delete:
            names.append(item.name)
        if self._head_target is not None and self._head_target in (item.name, *item.via):
            names.append(b"HEAD")
        return names


_SKIP: Final = "(done by the update of its target)"


def timeout_of(value_ms: int) -> int:
    """How long a setting has us wait for a lock, at the most."""
    return min(value_ms, _LONGEST_TIMEOUT_MS) if value_ms >= 0 else _LONGEST_TIMEOUT_MS


def parents(name: bytes) -> list[bytes]:
    """Every shorter ref name that `name` would lie below: refs/a/b/c gives refs/a and refs/a/b."""
    parts = name.split(b"/")
    return [b"/".join(parts[:count]) for count in range(2, len(parts))]
