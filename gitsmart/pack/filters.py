"""What a partial clone leaves out: the conditions of a filter, and sparse-checkout patterns.

    blob_limit   blobs of so many bytes and more are left out (blob:none is 0)
    tree_depth   what lies so deep below a commit's tree, or deeper (that tree itself lies at 0)
    types        the types that are sent
    sparse       blobs that no path leads to which all these patterns match

All of them hold together, so filters that are combined are one filter: its limits are the smaller ones.
Patterns are gitignore's, the last that matches counts, and what none matches is as the folder it is in is:

    pattern  =  [ "!" ] [ "/" ] wildcards [ "/" ]      ; "/" at the end: folders only

git-rev-list(1), "--filter"; gitignore(5); git: list-objects-filter.c, dir.c
last_matching_pattern_from_list(). What asked for an object is not known here.

Where this differs from git: of combined filters, git asks each only once about an object it has let pass, and
so may leave out what each of them would send. Nothing is lost here that every part lets pass.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from gitsmart import wildmatch
from gitsmart.errors import LimitExceeded, ObjectMissing, PackError
from gitsmart.pack.objects import BLOB, COMMIT, TAG, TREE, iter_tree
from gitsmart.pack.store import ObjectStore

__all__ = ["ALL_TYPES", "ObjectFilter", "SparsePatterns"]

ALL_TYPES: Final = frozenset({COMMIT, TREE, BLOB, TAG})

_TICK_EVERY = 1024
# Folders looked at for sparse patterns: a folder once for each path that it has. Hundreds of commits that
# each have all of their folders elsewhere are still served; trees built so that paths multiply are not.
_VISITS_AT_LEAST = 200_000
_VISITS_PER_TREE = 16


# -- sparse patterns


class SparsePatterns:
    """The patterns of one sparse-checkout file.

    >>> patterns = SparsePatterns(b"/*\\n!/*/\\n/docs/\\n")
    >>> patterns.match(b"docs", is_dir=True), patterns.match(b"src", is_dir=True)
    (True, False)
    """

    def __init__(self, data: bytes) -> None:
        r"""Read the file: "#" starts a comment, CR LF ends lines too (dir.c add_patterns_from_buffer())."""
        self._negative: list[bool] = []
        # Patterns without wildcards, by the name or path that they match, for files and for folders
        self._names: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
        self._paths: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
        self._wild: list[tuple[int, re.Pattern[bytes], bool, bool]] = []
        for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            if line and not line.startswith(b"#"):
                self._add(_trim(line.removesuffix(b"\r").partition(b"\0")[0]))
        self._wild.reverse()

    def _add(self, pattern: bytes) -> None:
        number = len(self._negative)
        self._negative.append(pattern.startswith(b"!"))
        pattern = pattern.removeprefix(b"!")
        dirs_only = pattern.endswith(b"/")
        pattern = pattern.removesuffix(b"/")
        is_name = b"/" not in pattern
        pattern = pattern.removeprefix(b"/")
        if not wildmatch.is_literal(pattern):
            self._wild.append((number, wildmatch.compile_pattern(pattern), is_name, dirs_only))
            return
        for of_dirs in (True,) if dirs_only else (True, False):
            (self._names if is_name else self._paths)[of_dirs][pattern] = number

    def match(self, path: bytes, *, is_dir: bool) -> bool | None:
        """Say whether a path belongs to the checkout by a pattern of its own; None: no pattern matches.

        The path of a commit's own tree is b"".
        """
        name = path[path.rfind(b"/") + 1 :]
        best = self._names[is_dir].get(name, -1)
        if path:
            best = max(best, self._paths[is_dir].get(path, -1))
        for number, regex, is_name, dirs_only in self._wild:
            if number < best:
                break
            text = name if is_name else path
            if (
                (is_dir or not dirs_only)
                and (is_name or path)
                and len(text) <= wildmatch.LIMIT_BYTES
                and regex.fullmatch(text)
            ):
                best = number
                break
        return None if best < 0 else not self._negative[best]


def _trim(line: bytes) -> bytes:
    """Take off blanks at the end that no backslash protects (git: dir.c trim_trailing_spaces())."""
    end = at = 0
    while at < len(line):
        if line[at] == 0x5C:
            at += 2
            end = at
            continue
        at += 1
        if line[at - 1] != 0x20:
            end = at
    return line[:end]


# -- filters


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFilter:
    """What is left out of a fetch; see the module. None means no limit."""

    blob_limit: int | None = None
    tree_depth: int | None = None
    types: frozenset[int] = ALL_TYPES
    sparse: tuple[SparsePatterns, ...] = field(default=(), repr=False)

    def also(self, other: "ObjectFilter") -> "ObjectFilter":
        """Return the filter that leaves out what either does."""
        return ObjectFilter(
            blob_limit=_smaller(self.blob_limit, other.blob_limit),
            tree_depth=_smaller(self.tree_depth, other.tree_depth),
            types=self.types & other.types,
            sparse=self.sparse + other.sparse,
        )

    @property
    def keeps_trees(self) -> bool:
        """False when trees matter neither for themselves nor for what is in them."""
        return bool(self.types & {TREE, BLOB}) and self.tree_depth != 0

    @property
    def drops_trees(self) -> bool:
        """True when a client that uses this filter may lack trees."""
        return self.tree_depth is not None or TREE not in self.types

    @property
    def drops_blobs(self) -> bool:
        """True when a client that uses this filter may lack blobs."""
        return self.drops_trees or self.blob_limit is not None or bool(self.sparse) or BLOB not in self.types

    def left(
        self,
        store: ObjectStore,
        objects: dict[bytes, int],
        given: Collection[bytes],
        *,
        roots: Iterable[bytes],
        opened: Iterable[bytes],
        known: Collection[bytes],
        tick: Callable[[int], None],
    ) -> dict[bytes, int]:
        """Return those of `objects` that are sent. `tree_depth` is the caller's business.

        Args:
            objects: raw oid -> type of everything that is reached.
            given: raw oids that were asked for: they are sent in any case.
            roots: the trees of commits, and `opened` those asked for by themselves: where paths begin.
            known: what paths don't lead into.

        Raises:
            ObjectMissing, PackError: a tree can't be read.
            LimitExceeded: paths multiply without end.
        """
        types, limit = self.types, self.blob_limit
        allowed: set[bytes] | None = None
        for patterns in self.sparse:
            matched = _matching(store, objects, patterns, roots, opened, known, tick)
            allowed = matched if allowed is None else allowed & matched
        kept: dict[bytes, int] = {}
        for number, (raw_oid, kind) in enumerate(objects.items()):
            if not number % _TICK_EVERY:
                tick(len(objects))
            if raw_oid not in given:
                if kind not in types:
                    continue
                if kind == BLOB and (
                    (allowed is not None and raw_oid not in allowed)
                    or (limit is not None and (not limit or _size(store, raw_oid) >= limit))
                ):
                    continue
            kept[raw_oid] = kind
        return kept


def _smaller(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def _size(store: ObjectStore, raw_oid: bytes) -> int:
    try:
        return store.size_of(raw_oid)[1]
    except ObjectMissing:
        return -1  # as git: it is to be sent then, and that it is missing comes out


def _matching(
    store: ObjectStore,
    objects: dict[bytes, int],
    patterns: SparsePatterns,
    roots: Iterable[bytes],
    opened: Iterable[bytes],
    known: Collection[bytes],
    tick: Callable[[int], None],
) -> set[bytes]:
    """Return the blobs that a path which matches leads to.

    git: list-objects-filter.c filter_sparse(). A folder that was asked for by itself is none of a path.
    """
    top = patterns.match(b"", is_dir=True) or False
    stack = [(raw_oid, b"", False) for raw_oid in opened]
    stack += [(raw_oid, b"", top) for raw_oid in roots]
    stack = [entry for entry in stack if entry[0] not in known]
    seen = {(raw_oid, path) for raw_oid, path, _ in stack}
    most = max(_VISITS_AT_LEAST, _VISITS_PER_TREE * len(objects))
    raw_len = store.format.raw_len
    matches: dict[tuple[bytes, bool], bool | None] = {}
    found: set[bytes] = set()
    visits = 0
    while stack:
        raw_oid, path, inherited = stack.pop()
        visits += 1
        if not visits % _TICK_EVERY:
            tick(len(objects))
        if visits > most:
            raise LimitExceeded("sparse filter: the same folders lie at too many paths")
        kind, data = store.read(raw_oid)
        if kind != TREE:
            raise PackError("an object is no tree, but taken for one")
        for mode, name, child in iter_tree(data, raw_len):
            form = mode & 0o170000
            is_dir = form == 0o040000
            if form == 0o160000 or child in known or (not is_dir and child in found):
                continue
            child_path = path + b"/" + name if path else name
            key = (child_path, is_dir)
            try:
                match = matches[key]
            except KeyError:
                match = patterns.match(child_path, is_dir=is_dir)
                if len(matches) < _VISITS_AT_LEAST:
                    matches[key] = match
            if match is None:
                match = inherited
            if is_dir:
                if (child, child_path) not in seen:
                    seen.add((child, child_path))
                    stack.append((child, child_path, match))
            elif match:
                found.add(child)
    return found
