"""What keeps objects in a repository, beside the refs that clients see.

    refs          all, hidden and broken ones too, of linked work trees as well
    HEAD, *_HEAD  in the repository, and in worktrees/*/; files of rebases there
    reflogs       logs/**, worktrees/*/logs/**; or in reftables, of linked work trees too
    index         the entries of work trees' indexes, and the trees that they cache

More than git counts (git: reachable.c mark_reachable_objects() takes fewer of the files named *_HEAD), never
less. What can't be read or parsed makes `is_known` False: then nothing may be dropped.
"""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gitsmart.errors import RepositoryUnusable
from gitsmart.pack.objects import ObjectFormat, to_raw
from gitsmart.repo.refs import RefStore
from gitsmart.repo.reftable_refs import ReftableRefStore
from gitsmart.repo.reftable_stack import ReftableStack, merge_logs

__all__ = ["GcRoots", "find_roots"]

_PSEUDO = re.compile(r"[A-Z_]*HEAD|AUTO_MERGE|BISECT_EXPECTED_REV|NOTES_MERGE_REF|NOTES_MERGE_PARTIAL")
_SMALL_BYTES = 64 << 20


@dataclass(slots=True)
class GcRoots:
    """Raw oids."""

    refs: set[bytes] = field(default_factory=set)
    """What refs and HEADs hold: must be there, with all that it reaches."""
    others: set[bytes] = field(default_factory=set)
    """What logs, indexes and left-over files name: kept as far as it is there."""
    is_known: bool = True
    """Whether that is all."""

    @property
    def all(self) -> set[bytes]:
        """Both."""
        return self.refs | self.others


def find_roots(git_dir: Path, refs: RefStore, fmt: ObjectFormat) -> GcRoots:
    """Read them all, as they are now."""
    roots = GcRoots()
    try:
        held, is_whole = refs.held_oids()
        roots.refs |= held
        roots.is_known &= is_whole
    except RepositoryUnusable:
        roots.is_known = False
    oid = re.compile(rb"(?<![0-9a-f])[0-9a-f]{%d}(?![0-9a-f])" % fmt.hex_len)

    def names_in(path: Path) -> set[bytes]:
        try:
            with open(path, "rb") as file:
                data = file.read(_SMALL_BYTES + 1)
        except FileNotFoundError:
            return set()
        except OSError:
            roots.is_known = False
            return set()
        if len(data) > _SMALL_BYTES:
            roots.is_known = False
        return {to_raw(found) for found in oid.findall(data)}

    homes = [git_dir, *_folders(git_dir / "worktrees")]
    for home in homes:
        for path in _listed(home):
            if _PSEUDO.fullmatch(path.name) and path.is_file():
                roots.others |= names_in(path)
        for folder in ("rebase-merge", "rebase-apply", "sequencer"):
            for path in _listed(home / folder):
                if path.is_file():
                    roots.others |= names_in(path)
        if home is not git_dir:
            for path in _below(home / "refs"):
                roots.refs |= names_in(path)
            if not isinstance(refs, ReftableRefStore):
                roots.refs |= names_in(home / "HEAD")
        for path in _below(home / "logs"):
            roots.others |= _logged(path, fmt, roots)
        if isinstance(refs, ReftableRefStore):
            _add_stack(home / "reftable", fmt, roots, of_worktree=home is not git_dir)
        try:
            indexed = _index_oids(home / "index", fmt)
        except OSError:
            indexed = None
        if indexed is None:
            roots.is_known = False
        else:
            roots.others |= indexed
    zero = to_raw(fmt.zero)
    roots.refs.discard(zero)
    roots.others.discard(zero)
    return roots


def _add_stack(directory: Path, fmt: ObjectFormat, roots: GcRoots, *, of_worktree: bool) -> None:
    if of_worktree and not directory.is_dir():
        return
    try:
        view = ReftableStack(os.fsencode(directory), fmt).view()
        if of_worktree:
            for table in view.tables:
                roots.refs.update(record.oid for record in table.refs() if record.oid is not None)
        for log in merge_logs([table.table.logs() for table in view.tables]):
            roots.others.update(oid for oid in (log.old, log.new) if oid is not None)
    except (RepositoryUnusable, OSError):
        roots.is_known = False


def _logged(path: Path, fmt: ObjectFormat, roots: GcRoots) -> set[bytes]:
    line = re.compile(rb"([0-9a-f]{%d}) ([0-9a-f]{%d}) " % (fmt.hex_len, fmt.hex_len))
    found: set[bytes] = set()
    try:
        with open(path, "rb") as file:
            for text in file:
                match = line.match(text)
                if match is not None:
                    found.update(map(to_raw, match.groups()))
    except FileNotFoundError:
        pass
    except OSError:
        roots.is_known = False
    return found


def _index_oids(path: Path, fmt: ObjectFormat) -> set[bytes] | None:
    """The raw oids that an index of version 2 or 3 names (gitformat-index); None for what isn't known."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return set()
    raw_len = fmt.raw_len
    if path.with_name("sharedindex").exists() or len(data) < 12 + raw_len or data[:4] != b"DIRC":
        return None
    version, count = struct.unpack_from(">II", data, 4)
    if version not in (2, 3):
        return None
    end = len(data) - raw_len
    found: set[bytes] = set()
    at = 12
    for _ in range(count):
        if at + 42 + raw_len > end:
            return None
        mode = int.from_bytes(data[at + 24 : at + 28], "big")
        if mode & 0o170000 != 0o160000:
            found.add(data[at + 40 : at + 40 + raw_len])
        flags = int.from_bytes(data[at + 40 + raw_len : at + 42 + raw_len], "big")
        name = at + 42 + raw_len + (2 if version == 3 and flags & 0x4000 else 0)
        nul = data.find(b"\0", name + (flags & 0xFFF if flags & 0xFFF < 0xFFF else 0xFFF), end)
        if nul < 0:
            return None
        at += (nul - at) // 8 * 8 + 8
    while at + 8 <= end:
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "big")
        body = data[at + 8 : at + 8 + size]
        if kind == b"TREE":
            found.update(re.findall(rb"(?s)[^\0]*\0\d+ \d+\n(.{%d})|[^\0]*\0-1 \d+\n" % raw_len, body))
        elif kind in (b"REUC", b"link") or kind[:1].islower():
            return None
        at += 8 + size
    found.discard(b"")
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _folders(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if path.is_dir()]


def _below(folder: Path) -> Iterator[Path]:
    for base, _, names in os.walk(folder):
        yield from (Path(base, name) for name in names if not name.endswith(".lock"))
