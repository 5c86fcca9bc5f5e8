"""References of a tree that came as a delta: only what the delta changed is parsed.

Most trees of a history differ from their base in an entry or two. Where the result copies whole entries of
the base, their references are the base's, noted when the base was read:

    base     |entry|entry|entry|entry|entry|      `ends`: where each entry ends, from an exact parse
    result   |==copy====|-- parsed --|=copy=|

An entry is copied whole when it begins, in both, where an entry begins: what an entry is depends on its own
bytes alone. So the outcome is that of a full parse, whatever the tree holds; where entries begin is never
guessed. Measured by benchmarks/ingest.py.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Final

from gitsmart.errors import PackError
from gitsmart.pack.delta import delta_sizes, iter_instructions

__all__ = ["TreeChanges", "delta_references", "entry_ends"]

_TREE: Final = 0o040000
_LINK: Final = 0o160000
_FORMAT: Final = 0o170000

# An entry as objects.iter_tree() takes it, without groups
_ENTRIES: Final = {
    raw_len: re.compile(rb"0*(?:1[0-7]{5}|[0-7]{1,5}) [^\0]++\0.{%d}" % raw_len, re.DOTALL)
    for raw_len in (20, 32)
}
_HEADS: Final = re.compile(rb"(0*(?:1[0-7]{5}|[0-7]{1,5})) [^\0]++\0")


@dataclass(slots=True)
class TreeChanges:
    """How a tree came out of its base: which entries were parsed, and which copied whole."""

    fresh: list[tuple[int, int]] = field(default_factory=list)
    """Start and end of each entry of the result that was parsed."""
    copied: list[tuple[int, int]] = field(default_factory=list)
    """Numbers of the base's entries, first and behind the last, in the result's order."""

    @property
    def is_each_copied_once(self) -> bool:
        """True when no entry of the base can be twice in the result."""
        return all(before[1] <= after[0] for before, after in pairwise(self.copied))


def entry_ends(data: bytes, raw_len: int) -> "array[int]":
    """Give the offset at which each entry of a tree ends: 4 bytes an entry.

    Raises: PackError when it is malformed.
    """
    ends = array("I", accumulate(map(len, _ENTRIES[raw_len].findall(data))))
    # Entries that leave no byte out are all there is; if one was left out, the last end falls short.
    if (ends[-1] if ends else 0) != len(data):
        raise PackError("bad tree: malformed entry")
    return ends


def delta_references(
    base_ends: "array[int]",
    delta: bytes,
    result: bytes,
    raw_len: int,
    changes: TreeChanges | None = None,
) -> tuple[set[bytes], set[bytes], "array[int]"]:
    """Give the raw oids of the subtrees and blobs that are new in `result`, and its ends.

    `base_ends` is `entry_ends` of the base, and `result` what `delta` made of it. Of the references that the
    base has too some are given, some not. `changes`, when given, is filled. One step for each instruction
    and for each entry not copied.

    Raises: PackError when the result is malformed.
    """
    ends = array("I")
    trees: set[bytes] = set()
    blobs: set[bytes] = set()
    match_head = _HEADS.match
    length = len(result)
    done = 0  # the result is parsed up to here, where an entry ends
    start = 0  # of what this instruction gives

    def parse_entry() -> int:
        head = match_head(result, done)
        if head is None:
            raise PackError("bad tree: malformed entry")
        end = head.end() + raw_len
        if end > length:
            raise PackError("bad tree: malformed entry")
        kind = int(head[1], 8) & _FORMAT
        if kind == _TREE:
            trees.add(result[end - raw_len : end])
        elif kind != _LINK:
            blobs.add(result[end - raw_len : end])
        ends.append(end)
        if changes is not None:
            changes.fresh.append((done, end))
        return end

    for from_base, offset, size in iter_instructions(delta, delta_sizes(delta)[2]):
        stop = start + size
        if from_base:
            while done < start:
                done = parse_entry()
            shift = start - offset
            while done < stop:
                first = _place(base_ends, done - shift)
                if first >= 0:
                    last = bisect_right(base_ends, offset + size)
                    if last > first:
                        if changes is not None:
                            changes.copied.append((first, last))
                        copied = base_ends[first:last]
                        if shift:
                            copied = array("I", [end + shift for end in copied])
                        ends += copied
                        done = copied[-1]
                    break
                done = parse_entry()
        start = stop
    while done < length:
        done = parse_entry()
    return trees, blobs, ends


def _place(ends: "array[int]", offset: int) -> int:
    """Give the number of the entry that begins at `offset`, -1 when none does."""
    if not offset:
        return 0
    place = bisect_left(ends, offset)
    return place + 1 if place < len(ends) and ends[place] == offset else -1
