"""Refs in a stack of reftables: `reftable/`, with HEAD and all other refs of the repository itself in it.

The files HEAD (`ref: refs/heads/.invalid`) and refs/heads that lie beside it are there for programs that
don't know of reftables. Refs of linked work trees (their HEADs above all) are in stacks of their own,
`worktrees/<name>/reftable/`.

Cached: the refs of the oldest table, by far the largest, as long as it is there; newer ones are laid over
it. A listing when nothing has changed costs one stat. A tag's `peeled` is what the table has of it; where
it has nothing, only what is in refs/tags/ is looked at again, since git and the format promise it for all
tags.
"""

import os
from operator import attrgetter
from pathlib import Path

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import ObjectFormat, to_hex
from gitsmart.repo.refs import (
    BAD_NAME,
    SYMREF_DEPTH,
    RawRef,
    Ref,
    RefObjects,
    RefSnapshot,
    RefState,
    RefStore,
    is_safe_ref,
)
from gitsmart.repo.reftable import RefRecord
from gitsmart.repo.reftable_stack import ReftableStack, StackView

__all__ = ["ReftableRefStore", "read_raw", "worktree_head"]


def read_raw(view: StackView, name: bytes) -> RawRef:
    """Look at one ref as the stack has it. Raises: RepositoryUnusable."""
    record = view.ref(name)
    if record is None:
        return RawRef(RefState.MISSING)
    if record.target is not None:
        return RawRef(RefState.SYMREF, record.target)
    assert record.oid is not None
    return RawRef(RefState.OID, to_hex(record.oid))


def worktree_head(home: Path, fmt: ObjectFormat) -> bytes:
    """The ref that HEAD of a linked work tree names; b"" when it is detached, or can't be read."""
    try:
        raw = read_raw(ReftableStack(os.fsencode(home / "reftable"), fmt).view(), b"HEAD")
    except (RepositoryUnusable, OSError):
        return b""
    return raw.value if raw.state is RefState.SYMREF else b""


class ReftableRefStore(RefStore):
    """The refs of one repository, in reftables. Thread-safe."""

    def __init__(self, git_dir: bytes, fmt: ObjectFormat, objects: RefObjects) -> None:
        super().__init__(git_dir, fmt, objects)
        self.stack = ReftableStack(git_dir + b"/reftable", fmt)
        self._base: _Base | None = None
        self._whole: tuple[StackView, bool, RefSnapshot, frozenset[bytes]] | None = None

    def read(self, name: bytes) -> RawRef:
        return read_raw(self.stack.view(), name)

    def snapshot(self, *, peel: bool = True) -> RefSnapshot:
        view = self.stack.view()
        known = self._whole
        if (
            known is not None
            and known[0] is view
            and (known[1] or not peel)
            and not any(oid in self.objects for oid in known[3])
        ):
            return known[2]
        snapshot, absent = self._list(view, peel)
        self._whole = (view, peel, snapshot, frozenset(absent))
        return snapshot

    def known_snapshot(self, *, peel: bool = True) -> RefSnapshot | None:
        known = self._whole
        if known is None or (peel and not known[1]) or known[3] or not self.stack.is_current(known[0]):
            return None
        return known[2]

    def held_oids(self) -> tuple[set[bytes], bool]:
        tables = self.stack.view().tables
        return {record.oid for table in tables for record in table.refs() if record.oid is not None}, True

    def _list(self, view: StackView, peel: bool) -> tuple[RefSnapshot, set[bytes]]:
        """The refs, and the raw oids that refs have and that are not there."""
        base = self._base_of(view, peel)
        newer: dict[bytes, RefRecord] = {}
        for table in view.tables[1:]:
            newer.update((record.name, record) for record in table.refs())

        def look(name: bytes) -> RefRecord | None:
            return newer.get(name) or base.records.get(name)

        def make(record: RefRecord) -> Ref | None:
            target = None
            found: RefRecord | None = record
            for _ in range(SYMREF_DEPTH):
                if found is None or found.target is None:
                    break
                target = found.target
                found = look(target) if is_safe_ref(target) else None
            if found is None or found.oid is None:
                return None
            return self._make_ref(record.name, found, target, absent, peel)

        absent = set(base.absent)
        overlay: dict[bytes, Ref | None] = {}
        for name, record in newer.items():
            if is_safe_ref(name):
                overlay[name] = make(record)
        for record in base.symrefs:
            if record.name not in newer and is_safe_ref(record.name):
                overlay[record.name] = make(record)
        refs = base.refs
        if overlay:
            merged = [ref for ref in refs if ref.name not in overlay]
            merged += [ref for ref in overlay.values() if ref is not None]
            merged.sort(key=attrgetter("name"))
            refs = tuple(merged)
        head = look(b"HEAD")
        head_target = None
        if head is not None and head.target is not None:
            head_target = head.target
            for _ in range(SYMREF_DEPTH - 1):
                further = look(head_target)
                if further is None or further.target is None:
                    break
                head_target = further.target
        head_ref = None if head is None else make(head)
        return RefSnapshot(refs, head_ref, head_target), absent

    def _base_of(self, view: StackView, peel: bool) -> "_Base":
        table = view.tables[0] if view.tables else None
        known = self._base
        if (
            known is not None
            and known.table is table
            and (known.is_peeled or not peel)
            and not any(oid in self.objects for oid in known.absent)
        ):
            return known
        base = _Base(table, peel)
        records = [] if table is None else table.refs()
        base.records = {} if table is None else table.by_name()
        refs: list[Ref] = []
        for record in records:
            name, _, oid, _, target = record
            if target is not None:
                base.symrefs.append(record)
            elif oid is not None and name.startswith(b"refs/") and not BAD_NAME.search(name):
                ref = self._make_ref(name, record, None, base.absent, peel)
                if ref is not None:
                    refs.append(ref)
        base.refs = tuple(refs)
        self._base = base
        return base

    def _make_ref(
        self, name: bytes, record: RefRecord, target: bytes | None, absent: set[bytes], peel: bool
    ) -> Ref | None:
        """The ref of that name, which comes down to `record`; None when its object is not there."""
        raw_oid = record.oid
        assert raw_oid is not None
        oid = to_hex(raw_oid)
        if oid == self.format.zero:
            return None
        if raw_oid not in self.objects:
            absent.add(raw_oid)
            return None
        peeled = None if record.peeled is None else to_hex(record.peeled)
        if peeled is None and peel and record.name.startswith(b"refs/tags/"):
            peeled = self.peel(oid)
        return Ref(name, oid, peeled, target)


class _Base:
    """What is known of the oldest table of a stack."""

    def __init__(self, table: object, is_peeled: bool) -> None:
        self.table = table
        self.is_peeled = is_peeled
        self.records: dict[bytes, RefRecord] = {}
        self.refs: tuple[Ref, ...] = ()  # what is no symref, and whose object is there
        self.symrefs: list[RefRecord] = []
        self.absent: set[bytes] = set()
