"""A set of very many raw oids in 8 bytes each, that only grows.

    add(raw oids) -> 64-bit keyed hashes, sorted: a run;  runs of like size are merged, small ones first
    raw oid in    -> bisect in each run: a few microseconds

Python's own sets take ten times the room. Oids are told apart by `hash`, SipHash with a key that each process
draws: two of ten million may be taken for each other once in a hundred thousand such sets, and nobody can
look for such a pair beforehand. Reading threads need no lock; one may add.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable

__all__ = ["OidSet"]

# Longer runs stay as they are: a merge holds both as Python integers for a moment.
_MERGED = 1 << 19


class OidSet:
    """See the module."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: tuple[array[int], ...] = ()

    def __len__(self) -> int:
        """Members, counted again where they were added again."""
        return sum(map(len, self._runs))

    def __contains__(self, raw_oid: bytes) -> bool:
        wanted = hash(raw_oid)
        for run in self._runs:
            at = bisect_left(run, wanted)
            if at < len(run) and run[at] == wanted:
                return True
        return False

    def add(self, raw_oids: Iterable[bytes]) -> None:
        """Take in more."""
        fresh = array("q", sorted(set(map(hash, raw_oids))))
        if not fresh:
            return
        runs = list(self._runs)
        while runs and len(runs[-1]) <= 2 * len(fresh) and len(runs[-1]) <= _MERGED:
            fresh = array("q", sorted({*runs.pop(), *fresh}))
        # Replaced whole: who is reading goes on with what was.
        self._runs = (*runs, fresh)
