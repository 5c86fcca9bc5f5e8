"""Updating refs in reftables: one lock, all compares, one table.

    lock      reftable/tables.list.lock, made exclusively, as git does; waited for, then given up
    compare   under the lock, with the stack as it is then: the current value is the expected old one, the new
              tip is there, no D/F conflict
    write     one table with all new values, tombstones and lines of reflogs, durably; see reftable_stack.py
    compact   when the lock is let go of; whatever comes of that, the transaction is done

So a transaction is whole after any crash. What git's refs/reftable-backend.c writes for the same updates is
what is written here: of a tag what it peels to; a line for a ref whose reflog exists or is to be made, and
for HEAD if it points at the ref; with a deleted ref a deletion of each line of its reflog. An update that
changes nothing writes nothing (git: a line in HEAD's reflog).

Work trees' own refs (`refs/bisect/` and such) are those of the repository's main work tree.
"""

import logging
import time
from collections.abc import Iterator
from itertools import pairwise

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import to_raw
from gitsmart.repo.ref_transaction import (
    ATOMIC_FAILED,
    FAILED_UPDATES,
    MISSING_OBJECTS,
    NAME_CONFLICT,
    REFLOG_MESSAGE,
    FailedUpdate,
    RefItem,
    RefTransaction,
    RefUpdate,
    TransactionTerms,
    hook_lines,
    parents,
    timeout_of,
)
from gitsmart.repo.refs import RefState
from gitsmart.repo.reftable import BLOCK_SIZE, LARGEST_BLOCK, RESTART_INTERVAL, LogRecord, RefRecord
from gitsmart.repo.reftable_refs import ReftableRefStore, read_raw
from gitsmart.repo.reftable_stack import Addition, StackView, WriteOptions

__all__ = ["ReftableTransaction"]

log = logging.getLogger(__name__)

# git's default is 100 ms. The lock is for all refs, and held for three fsyncs and what the hook takes
LOCK_TIMEOUT_MS = 5_000
_LOOKUP_BYTES = (
    4_000  # of reflogs that are gone through in the time that finding one of them takes: some 0.3 ms
)
_SMALLEST_BLOCK = 512  # below it, names and log lines of ordinary lengths don't fit


class ReftableTransaction(RefTransaction[RefItem, ReftableRefStore]):
    """A set of updates of refs in a reftable stack, to be run once by one thread."""

    def __init__(self, refs: ReftableRefStore, terms: TransactionTerms) -> None:
        super().__init__(refs, terms)
        self._options = WriteOptions()
        self._stamp = (0, 0)
        self._lines: dict[bytes, list[int]] | None = None

    def _make_item(self, update: RefUpdate) -> RefItem:
        return RefItem(update, update.name)

    def _read_settings(self) -> None:
        super()._read_settings()
        config = self._config
        self._options = WriteOptions(
            block_size=self._setting("blockSize", BLOCK_SIZE, LARGEST_BLOCK),
            restart_interval=self._setting("restartInterval", RESTART_INTERVAL, (1 << 16) - 1),
            index_objects=config.get_bool("reftable.indexObjects") is not False,
            geometric_factor=self._setting("geometricFactor", 2, 255),
            lock_timeout_ms=timeout_of(config.get_int("reftable.lockTimeout", LOCK_TIMEOUT_MS)),
        )

    def _setting(self, name: str, default: int, highest: int) -> int:
        """Read a number; 0 is the default. Raises: RepositoryUnusable."""
        value = self._config.get_int(f"reftable.{name}", 0)
        if not 0 <= value <= highest:
            raise RepositoryUnusable(f"reftable.{name} = {value} is out of range")
        if value and name == "blockSize":
            return max(value, _SMALLEST_BLOCK)
        return value or default

    def _run_batch(self, items: list[RefItem], *, atomic: bool) -> None:
        if not items:
            return
        self._refuse_nested(items)
        if all(item.result is not None for item in items) or (
            atomic and any(item.result is not None for item in items)
        ):
            return
        try:
            with self._refs.stack.locked(self._owned, self._options) as addition:
                live = self._write(items, addition, atomic=atomic)
        except FileExistsError:
            # git: one lock for all, so one reason for all
            self._fail(items, ATOMIC_FAILED if atomic else FAILED_UPDATES)
            return
        except (OSError, RepositoryUnusable):
            self._fail(items, "")
            return
        if not live:
            return
        if self._hook is not None:
            self._hook("committed", hook_lines(live))
        try:
            self._refs.stack.compact(self._owned, self._options)
        except FileExistsError:
            pass  # somebody else is at it, or will be after the next push
        except (OSError, RepositoryUnusable) as error:
            log.warning("reftables were not compacted: %s", error)

    @staticmethod
    def _fail(items: list[RefItem], reason: str) -> None:
        for item in items:
            item.result = item.result or reason or item.failure

    def _write(self, items: list[RefItem], addition: Addition, *, atomic: bool) -> list[RefItem]:
        """Compare, ask the hook, and add the table; the items that are done. Raises: OSError."""
        view = addition.view
        head = read_raw(view, b"HEAD")
        self._head_target = head.value if head.state is RefState.SYMREF else None
        for item in items:
            self._attempt(item, lambda item: self._prepare(item, view))
            if atomic and item.result is not None:
                return []
        live = [item for item in items if item.result is None]
        if not live or not self._is_let(live):
            return []
        refs: list[RefRecord] = []
        logs: list[LogRecord] = []
        self._stamp = _stamp()
        # Where there are many, all reflogs are looked through at once
        self._lines = view.all_log_lines() if len(live) * _LOOKUP_BYTES > view.log_bytes else None
        for item in live:
            if item.current == (None if item.is_delete else item.update.new):
                continue
            refs.append(self._record(item, view))
            logs += self._log_records(item, view)
        refs.sort(key=lambda record: record.name)
        logs.sort(key=lambda record: record.key)
        self._note_gone(live)
        addition.add(refs, logs)
        return live

    def _prepare(self, item: RefItem, view: StackView) -> None:
        for name, target in pairwise((*item.via, item.name)):
            raw = read_raw(view, name)
            if raw.state is not RefState.SYMREF or raw.value != target:
                raise FailedUpdate(item.failure)  # it was pointed elsewhere before the lock was ours
        raw = read_raw(view, item.name)
        if raw.state is RefState.SYMREF:
            raise FailedUpdate(item.failure)
        item.current = raw.value if raw.state is RefState.OID else None
        self._compare(item)
        if item.is_delete:
            return
        if not self._has_object(item.update.new):
            raise FailedUpdate(MISSING_OBJECTS)
        # A line of its reflog, the largest record that a ref has, must fit into a block
        longest = max(map(len, (item.name, *item.via)))
        if longest + 200 > self._options.block_size // 2:
            raise FailedUpdate(item.failure)
        if item.current is None and (
            any(view.ref(parent) is not None for parent in parents(item.name))
            or view.has_below(item.name + b"/")
        ):
            raise FailedUpdate(NAME_CONFLICT)

    def _record(self, item: RefItem, view: StackView) -> RefRecord:
        if item.is_delete:
            return RefRecord(item.name, view.next_update_index)
        peeled = self._refs.peel(item.update.new)
        return RefRecord(
            item.name,
            view.next_update_index,
            to_raw(item.update.new),
            None if peeled is None else to_raw(peeled),
        )

    def _log_records(self, item: RefItem, view: StackView) -> list[LogRecord]:
        old = to_raw(item.current or self._zero)
        new = to_raw(item.update.new)
        records = [
            LogRecord(
                name,
                view.next_update_index,
                old,
                new,
                self._identity.cleaned_name.encode("utf-8", "surrogateescape"),
                self._identity.cleaned_email.encode("utf-8", "surrogateescape"),
                *self._stamp,
                REFLOG_MESSAGE + b"\n",
            )
            for name in self._logged_names(item)
            if self._creates_reflog(name) or next(self._log_lines(name, view), None) is not None
        ]
        if item.is_delete:
            records += [LogRecord(item.name, line) for line in self._log_lines(item.name, view)]
        return records

    def _log_lines(self, name: bytes, view: StackView) -> Iterator[int]:
        return view.log_lines(name) if self._lines is None else iter(self._lines.get(name, ()))


def _stamp() -> tuple[int, int]:
    """The time in seconds, and the zone as git has it in reftables: +0130 is 130."""
    now_s = int(time.time())
    offset = time.localtime(now_s).tm_gmtoff // 60
    hours, minutes = divmod(abs(offset), 60)
    return now_s, (100 * hours + minutes) * (-1 if offset < 0 else 1)
