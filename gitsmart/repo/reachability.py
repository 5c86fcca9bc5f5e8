"""Which objects do the refs lead to? Asked for every want of an object that no ref names.

    commits         by a walk from them and the refs, until all is known to be reached
    trees, blobs    by expanding the trees of the refs' commits, HEAD's first, then the newest, in growing
                    lots: the walk stops when all that was asked for is found, and goes on next time

Where there are bitmaps, they tell it all at once, and none of this is needed.

What was found stays proven: a bit for each object of a pack, where it was selected there, else 8 bytes. So a
partial clone's checkout costs one look at the trees of HEAD, and each of its later fetches some microseconds.
When refs move, what was proven stays so as long as the new refs lead to every old one; else all is forgotten.
Only to refuse an object takes the whole of history to be walked, once for each state of the refs.

A verdict is about the refs that the caller gives. Tags are not in what is proven, since they are asked for by
the refs themselves. What is missing (behind shallow commits, say) leads nowhere.
"""

import heapq
import threading
from collections.abc import Callable, Collection, Iterable
from itertools import islice

from gitsmart.errors import ObjectMissing, PackError
from gitsmart.pack.bitmap import Bitmaps, bitmaps_of
from gitsmart.pack.ewah import combine, count
from gitsmart.pack.objects import COMMIT, TAG, TREE, Commit, to_hex, to_raw
from gitsmart.pack.oidset import OidSet
from gitsmart.pack.packfile import PackFile
from gitsmart.pack.packmap import PackMap
from gitsmart.pack.reach import BrokenError, Reach
from gitsmart.pack.select import PackedObjects, Reached, expand_trees, walk_commits
from gitsmart.pack.store import ObjectStore

__all__ = ["Reachability"]

_LOT_MOST = 4096  # commits whose trees are read together
_RECENT = 300_000  # objects held as what needn't be expanded again: some 30 MB while a walk is under way
_WAIT_S = 0.5  # between two looks whether the client still waits for another request's walk

Tick = Callable[[int], None]


def _is_set(bits: bytes, number: int | None) -> bool:
    """Whether the bit of what a `PackMap` numbered is set; not of what is in no pack."""
    return number is not None and bool(bits[number >> 3] >> (number & 7) & 1)


class _Proven:
    """Objects: bits of packs, and names. Grows only; for threads that read while one adds."""

    def __init__(self) -> None:
        self._named = OidSet()
        self._packed: tuple[tuple[PackMap, bytes], ...] = ()

    def __len__(self) -> int:
        """How many there are, some counted more than once."""
        return len(self._named) + sum(count(bits) for _, bits in self._packed)

    def __contains__(self, raw_oid: bytes) -> bool:
        return raw_oid in self._named or bool(self._packed and not self.missing((raw_oid,)))

    def missing(self, raw_oids: Iterable[bytes]) -> set[bytes]:
        """Return those of `raw_oids` that are not among them."""
        left = {raw_oid for raw_oid in raw_oids if raw_oid not in self._named}
        for whole, bits in self._packed:
            if not left:
                break
            wanted = list(left)
            for raw_oid, number in zip(wanted, whole.numbers_of(wanted), strict=True):
                if _is_set(bits, number):
                    left.remove(raw_oid)
        return left

    def add(self, raw_oids: Iterable[bytes]) -> None:
        self._named.add(raw_oids)

    def add_packed(self, packed: Iterable[PackedObjects]) -> None:
        found = {whole.packs[0].serial: (whole, bits) for whole, bits in self._packed}
        for some in packed:
            serial = some.pack.serial
            whole, bits = found.get(serial) or (PackMap((some.pack,), some.pack.format.raw_len), b"")
            both = bytearray(whole.empty())
            for more in (bits, some.bits):
                combine("or", both, more.ljust(len(both), b"\0"))
            found[serial] = (whole, bytes(both))
        self._packed = tuple(found.values())

    def settle(self, packs: Collection[PackFile]) -> None:
        """Let go of packs that are no more: what was in them is in `packs` now."""
        serials = {pack.serial for pack in packs}
        gone = [(whole, bits) for whole, bits in self._packed if whole.packs[0].serial not in serials]
        if not gone:
            return
        now = PackMap(tuple(packs), gone[0][0].raw_len)
        moved = now.empty()
        for whole, bits in gone:
            names = whole.names(bits)
            while some := list(islice(names, _LOT_MOST)):
                left = []
                for raw_oid, number in zip(some, now.numbers_of(some), strict=True):
                    if number is None:
                        left.append(raw_oid)
                    else:
                        moved[number >> 3] |= 1 << (number & 7)
                self._named.add(left)
        self._packed = tuple(known for known in self._packed if known not in gone)
        self.add_packed(PackedObjects(pack, part) for pack, part in now.parts(moved))


class Reachability:
    """What one repository's refs lead to. Thread-safe; memory: a bit or 8 bytes an object that was proven."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._state: tuple[frozenset[bytes], _Proven] = (frozenset(), _Proven())
        # By bitmaps: the map and tips that they are of, bits, and what is in no pack
        self._by_bits: tuple[PackMap, frozenset[bytes], bytes, Collection[bytes]] | None = None
        self._by_first: tuple[PackMap, bytes, bytes] | None = None
        self._forget()

    def _forget(self) -> None:
        self._proven = _Proven()
        self._noted: set[bytes] = set()  # wants whose selections were noted
        self._heads: list[bytes] | None = None
        # The walk: commits that were met (the last of them in a set), those to come, those whose trees are
        # next, trees of refs, and what was expanded lately
        self._met = OidSet()
        self._just_met: set[bytes] = set()
        self._queue: list[tuple[int, bytes]] = []
        self._next: list[bytes] = []
        self._trees: list[bytes] = []
        self._recent: dict[bytes, int] = {}
        self._lot = 1

    def note(self, tips: frozenset[bytes], wants: Collection[bytes], objects: Reached) -> None:
        """Learn what was found to be reached from `wants`, which are themselves reached from `tips`."""
        if bitmaps_of(self._store) or not self._lock.acquire(blocking=False):
            return  # others find out by themselves
        try:
            if tips != self._state[0]:
                self._move(tips, None, frozenset(), _no_tick)
            if self._noted.issuperset(wants) or len(self._proven) >= len(objects):
                return
            self._noted.update(wants)
            self._proven.settle(self._store.packs())
            self._proven.add_packed(objects.packed())
            self._proven.add(objects.named())
        finally:
            self._lock.release()

    def unreached(
        self,
        tips: frozenset[bytes],
        wants: Iterable[bytes],
        *,
        first: bytes | None = None,
        shallow: Collection[bytes] = frozenset(),
        tick: Tick,
    ) -> set[bytes]:
        """Return those of `wants`, raw oids of objects that are here, that `tips` don't lead to.

        Args:
            tips: the hex oids of refs.
            first: the tip whose trees are most likely to hold what is wanted, HEAD's.
            shallow: raw oids of the repository's commits whose parents aren't there.
            tick: called now and then; raises to stop. What was found until then is kept.

        Raises:
            ObjectMissing, PackError: a want is gone, or an object is broken.
        """
        asked = {raw_oid for raw_oid in wants if to_hex(raw_oid) not in tips}
        known, proven = self._state
        if asked and (known is tips or known == tips):
            asked = proven.missing(asked)
        if not asked:
            return asked
        kinds = {raw_oid: self._store.type_of(raw_oid) for raw_oid in asked}
        while not self._lock.acquire(timeout=_WAIT_S):
            tick(0)
        try:
            if not shallow:
                unreached = self._unreached_by_bits(tips, first, asked, tick)
                if unreached is not None:
                    return unreached
            if tips != self._state[0]:
                self._move(tips, first, shallow, tick)
            self._proven.settle(self._store.packs())
            left = self._proven.missing(asked)
            tags = {raw_oid for raw_oid in left if kinds[raw_oid] == TAG}
            commits = {raw_oid for raw_oid in left if kinds[raw_oid] == COMMIT}
            others = left - tags - commits
            left = tags - self._reached_tags(tips, tags)
            left |= commits - self._reached_commits(tips, commits, shallow, tick)
            return left | self._search(others, tick)
        finally:
            self._lock.release()

    def _unreached_by_bits(
        self, tips: frozenset[bytes], first: bytes | None, asked: set[bytes], tick: Tick
    ) -> set[bytes] | None:
        """Answer by bitmaps; None when there are none."""
        bitmaps = bitmaps_of(self._store)
        if not bitmaps:
            return None
        whole = bitmaps.map
        known = self._by_bits
        if known is None or known[0] is not whole or known[1] != tips:
            if first in tips and self._are_below(whole, bitmaps, first, asked, tick):
                # As is most of what is asked for; the bits of a thousand tips take longer
                return set()
            reach = Reach(self._store, whole, bitmaps, tick=tick)
            targets: list[tuple[bytes, int]] = []
            tags: set[bytes] = set()
            for tip in tips:
                try:
                    passed, raw_oid, kind = self._store.peel(to_raw(tip))
                except (ObjectMissing, PackError):
                    continue
                tags.update(passed)
                targets.append((raw_oid, kind))
            try:
                reach.add(targets, missing_ok=True)
            except (BrokenError, PackError):
                return None
            known = self._by_bits = (whole, tips, reach.bits(), tags.union(reach.loose))
        bits, others = known[2:]
        wanted = [raw_oid for raw_oid in asked if raw_oid not in others]
        return {
            raw_oid
            for raw_oid, number in zip(wanted, whole.numbers_of(wanted), strict=True)
            if not _is_set(bits, number)
        }

    def _are_below(
        self, whole: PackMap, bitmaps: Bitmaps, tip: bytes, asked: Collection[bytes], tick: Tick
    ) -> bool:
        """Tell by bitmaps whether one tip leads to all that is asked for."""
        known = self._by_first
        if known is None or known[0] is not whole or known[1] != tip:
            target = self._peel(tip)
            if target is None:
                return False
            reach = Reach(self._store, whole, bitmaps, tick=tick)
            try:
                reach.add([target], missing_ok=True)
            except (BrokenError, PackError):
                return False
            known = self._by_first = (whole, tip, reach.bits())
        bits = known[2]
        return all(_is_set(bits, number) for number in whole.numbers_of(asked))

    # -- the state of the refs

    def _move(
        self, tips: frozenset[bytes], first: bytes | None, shallow: Collection[bytes], tick: Tick
    ) -> None:
        """Go over to other refs; keep what was proven when they lead to all that the old ones did."""
        old = self._state[0]
        self._heads = None
        gone: set[bytes] = set()
        is_forward = bool(old)
        for tip in old - tips:
            peeled = self._peel(tip)
            is_forward = is_forward and peeled is not None and peeled[1] == COMMIT
            if peeled is not None:
                gone.add(peeled[0])
        try:
            if not is_forward or len(self._reached_commits(tips, gone, shallow, tick)) < len(gone):
                self._forget()
                old = frozenset()
        except BaseException:
            self._heads = None  # they are of refs that were not gone over to
            raise
        self._lot = 1
        # `first` before a tag of the same commit
        for tip in sorted(tips - old, key=lambda tip: tip != first):
            target = self._peel(tip)
            if target is None:
                continue
            raw_oid, kind = target
            if kind == COMMIT:
                self._meet(raw_oid, is_first=tip == first)
            elif kind == TREE:
                self._trees.append(raw_oid)
            else:
                self._proven.add([raw_oid])
        self._state = (tips, self._proven)

    def _peel(self, tip: bytes) -> tuple[bytes, int] | None:
        try:
            return self._store.peel(to_raw(tip))[1:]
        except (ObjectMissing, PackError):
            return None

    # -- tags and commits

    def _reached_tags(self, tips: Iterable[bytes], tags: set[bytes]) -> set[bytes]:
        """Which of `tags` stand behind a tag that is a tip."""
        found: set[bytes] = set()
        for tip in tips if tags else ():
            try:
                found.update(tags.intersection(self._store.peel(to_raw(tip))[0]))
            except (ObjectMissing, PackError):
                continue
        return found

    def _reached_commits(
        self, tips: Iterable[bytes], commits: set[bytes], shallow: Collection[bytes], tick: Tick
    ) -> set[bytes]:
        if not commits:
            return set()
        if self._heads is None:
            found = map(self._peel, tips)
            self._heads = [target[0] for target in found if target is not None and target[1] == COMMIT]
        try:
            new, _ = walk_commits(
                self._store, commits, self._heads, boundary=shallow, client_shallow=shallow, tick=tick
            )
        except (ObjectMissing, PackError):
            # Behind one of them something is missing; that says nothing about the others.
            if len(commits) == 1:
                return set()
            reached = set()
            for commit in commits:
                reached |= self._reached_commits(tips, {commit}, shallow, tick)
            return reached
        reached = commits.difference(new)
        self._proven.add(reached)
        return reached

    # -- trees and blobs

    def _commit(self, raw_oid: bytes) -> Commit | None:
        try:
            return self._store.commit(raw_oid)
        except (ObjectMissing, PackError):
            return None

    def _meet(self, raw_oid: bytes, *, is_first: bool = False) -> None:
        """Put a commit into the queue, once."""
        if raw_oid in self._just_met or raw_oid in self._met:
            return
        commit = self._commit(raw_oid)
        if commit is None:
            return
        if len(self._just_met) >= _LOT_MOST:
            self._met.add(self._just_met)
            self._just_met = set()
        self._just_met.add(raw_oid)
        heapq.heappush(self._queue, (-(1 << 80) if is_first else -commit.date, raw_oid))

    def _search(self, wanted: set[bytes], tick: Tick) -> set[bytes]:
        """Expand lot after lot until all that is wanted is found; return what is not, even by the last."""
        while wanted and (self._queue or self._next or self._trees):
            while self._queue and len(self._next) < self._lot:
                _, raw_oid = heapq.heappop(self._queue)
                commit = self._commit(raw_oid)
                if commit is not None:
                    self._next.append(raw_oid)
                    for parent in commit.parents:
                        self._meet(parent)
            trees = [commit.tree for commit in map(self._commit, self._next) if commit is not None]
            # Whoever is stopped by a tick in here leaves the lot to those who come later.
            found = expand_trees(self._store, [*self._trees, *trees], self._recent, tick=tick)
            proven = self._proven
            proven.add(proven.missing((*found, *self._next)))
            self._next, self._trees = [], []
            if len(self._recent) + len(found) > _RECENT:
                self._recent = {}
            self._recent.update(dict.fromkeys(found, 0))
            self._lot = min(4 * self._lot, _LOT_MOST)
            wanted = wanted - found
        if not self._queue:
            self._recent = {}
        return wanted


def _no_tick(number: int) -> None:
    """Nobody waits."""
