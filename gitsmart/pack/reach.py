"""What objects reach, as bits of a PackMap and a few that are in no pack.

    push commits -> commits, until one that has a bitmap: its bits are taken over -> trees, level by level
    what is in no pack is read by the store, and what it refers to goes on in the same way

A `Reach` only grows: asking it for haves, noting `bits`, and then for wants gives both, and nothing that the
haves reach is gone through for the wants. In C where there is a native module (native/reach.c), else in
Python, slowly.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from gitsmart import native
from gitsmart.errors import ObjectMissing, PackError
from gitsmart.native.reach import BrokenError
from gitsmart.pack.ewah import count
from gitsmart.pack.objects import BLOB, COMMIT, TREE, parse_commit, tree_references
from gitsmart.pack.packmap import PackMap
from gitsmart.pack.store import ObjectStore

__all__ = ["BrokenError", "KnownBits", "Reach"]

Tick = Callable[[int], None]


class KnownBits(Protocol):
    """Commits of which all that they reach is known."""

    @property
    def map(self) -> PackMap:
        """Whose numbers and bits they are."""

    def stops(self) -> bytes:
        """Return the bits of all those commits."""

    def bits(self, number: int) -> bytes | bytearray | None:
        """Return what one of them reaches; None when it turns out not to be known."""

    def keep(self, number: int, bits: bytes) -> None:
        """Take in one more."""


# Commits or trees between two ticks: some 20 ms
_SLICE = 8192
_SLICE_SLOW = 512


def _no_tick(number: int) -> None:
    """Nobody waits."""


class Reach:
    """See the module. Not thread-safe."""

    def __init__(
        self, store: ObjectStore, whole: PackMap, bitmaps: KnownBits | None = None, *, tick: Tick = _no_tick
    ) -> None:
        """Start with nothing reached. `bitmaps` must be of the same map."""
        assert bitmaps is None or bitmaps.map is whole
        self._store = store
        self.map = whole
        self._bitmaps = bitmaps
        self._tick = tick
        self._walk = whole.walk() if native.available else _Walk(whole)
        self._slice = _SLICE if native.available else _SLICE_SLOW
        self.loose: dict[bytes, int] = {}
        """Raw oid -> type of what was reached and is in none of the packs; None's types are as referred
        to."""

    def reset(self) -> None:
        """Forget what was reached."""
        self._walk.reset()
        self.loose = {}

    def bits(self) -> bytes:
        """Return all that is reached in packs."""
        return self._walk.bits()

    def add(
        self,
        objects: Iterable[tuple[bytes, int]],
        *,
        ends: Collection[bytes] = frozenset(),
        no_trees: bool = False,
        missing_ok: bool = False,
    ) -> None:
        """Reach objects, given by raw oid and type (no tags: reach what they point at), and all below them.

        Args:
            ends: commits whose parents are not followed.
            no_trees: commits only.
            missing_ok: what is missing leads nowhere.

        Raises:
            ObjectMissing: something below is missing. (That blobs are there is not looked at.)
            BrokenError, PackError: something is broken; BrokenError tells nothing of what.
        """
        whole, walk = self.map, self._walk
        # Bitmaps know nothing of ends, nor of what is only partly wanted.
        bitmaps = None if ends or no_trees else self._bitmaps
        stops = None if bitmaps is None else bitmaps.stops()
        ends_bits: bytes | None = None
        if ends:
            numbers = whole.numbers_of(ends)
            ends_bits = bytes(whole.bits_of(number for number in numbers if number is not None))
        elsewhere: list[tuple[int, bytes]] = []
        wanted = list(objects)
        for (raw_oid, kind), number in zip(wanted, whole.numbers_of(oid for oid, _ in wanted), strict=True):
            if number is None:
                elsewhere.append((kind, raw_oid))
            elif kind == COMMIT:
                walk.push(number)
            else:
                walk.reach(number, is_tree=kind == TREE)
        done = False
        while not done:
            while True:
                stopped = walk.commits(self._slice, stops=stops, ends=ends_bits, no_trees=no_trees)
                if stopped is None:
                    self._tell()
                elif stopped < 0:
                    break
                elif bitmaps is not None:
                    found = bitmaps.bits(stopped)
                    if found is None:
                        stops = bitmaps.stops()
                        if stops[stopped >> 3] >> (stopped & 7) & 1:
                            raise BrokenError
                        walk.push(stopped)
                    else:
                        walk.add_bits(found)
            elsewhere += walk.missing()
            if self._fetch(elsewhere, ends, no_trees=no_trees, missing_ok=missing_ok):
                continue
            while not walk.trees(self._slice):
                self._tell()
            elsewhere += walk.missing()
            done = not self._fetch(elsewhere, ends, no_trees=no_trees, missing_ok=missing_ok)
        self._tell()

    def _tell(self) -> None:
        self._tick(len(self.loose) + count(self._walk.bits()))

    def take(self, bits: bytes) -> None:
        """Count objects as reached, of which all that they refer to is among them, or reached."""
        if bits:
            self._walk.add_bits(bits)

    def mark(self, raw_oids: Collection[bytes]) -> None:
        """Count objects as reached, and nothing that they refer to."""
        wanted = list(raw_oids)
        for raw_oid, number in zip(wanted, self.map.numbers_of(wanted), strict=True):
            if number is None:
                self.loose.setdefault(raw_oid, COMMIT)
            else:
                self._walk.reach(number, is_tree=False)

    def add_and_keep(self, raw_oid: bytes, *, missing_ok: bool = False) -> None:
        """Reach a commit as the first of all, and keep its bits for others if they cost something."""
        self.add([(raw_oid, COMMIT)], missing_ok=missing_ok)
        number = self.map.number_of(raw_oid)
        if self._bitmaps is not None and number is not None and not self.loose:
            stops = self._bitmaps.stops()
            if not stops[number >> 3] >> (number & 7) & 1:
                self._bitmaps.keep(number, self._walk.bits())

    def _fetch(
        self, elsewhere: list[tuple[int, bytes]], ends: Collection[bytes], *, no_trees: bool, missing_ok: bool
    ) -> bool:
        """Go through objects that are in no pack; whether there is more to walk now."""
        any_read = False
        whole, walk, store, loose = self.map, self._walk, self._store, self.loose
        while elsewhere:
            kind, raw_oid = elsewhere.pop()
            if raw_oid in loose:
                continue
            loose[raw_oid] = kind
            try:
                if kind == COMMIT:
                    commit = store.commit(raw_oid)
                    more = [] if raw_oid in ends else [(parent, COMMIT) for parent in commit.parents]
                    if not no_trees:
                        more.append((commit.tree, TREE))
                    for found, found_kind in more:
                        number = whole.number_of(found)
                        if number is None:
                            elsewhere.append((found_kind, found))
                        elif found_kind == COMMIT:
                            walk.push(number)
                        else:
                            walk.reach(number, is_tree=True)
                    any_read = True
                elif kind == TREE:
                    found_kind, data = store.read(raw_oid)
                    if found_kind != TREE:
                        raise PackError("an object is no tree, but taken for one")
                    walk.tree(data)
                    elsewhere += walk.missing()
                    any_read = True
            except ObjectMissing:
                if not missing_ok:
                    raise
            if not len(loose) % 1024:
                self._tell()
        return any_read


class _Walk:
    """native.reach.Walk, in Python."""

    def __init__(self, whole: PackMap) -> None:
        self._map = whole
        self._seen = whole.empty()
        self._stack: list[int] = []
        self._pending: list[int] = []
        self._missing: list[tuple[int, bytes]] = []
        self._memo: set[bytes] = set()

    def _has(self, number: int) -> int:
        return self._seen[number >> 3] >> (number & 7) & 1

    def _put(self, number: int) -> None:
        self._seen[number >> 3] |= 1 << (number & 7)

    def reset(self) -> None:
        self._seen = self._map.empty()
        self._stack, self._pending, self._missing = [], [], []
        self._memo = set()

    def add_bits(self, bits: bytes | bytearray) -> None:
        found = int.from_bytes(self._seen, "little") | int.from_bytes(bits[: len(self._seen)], "little")
        self._seen[:] = found.to_bytes(len(self._seen), "little")

    def bits(self) -> bytes:
        return bytes(self._seen[: (self._map.total + 7) // 8])

    def push(self, number: int) -> None:
        self._stack.append(number)

    def reach(self, number: int, *, is_tree: bool) -> None:
        if not self._has(number):
            self._put(number)
            if is_tree:
                self._pending.append(number)

    def _reach_name(self, raw_oid: bytes, kind: int) -> None:
        if raw_oid in self._memo:
            return
        self._memo.add(raw_oid)
        number = self._map.number_of(raw_oid)
        if number is None:
            self._missing.append((kind, raw_oid))
        else:
            self.reach(number, is_tree=kind == TREE)

    def tree(self, data: bytes) -> None:
        trees, blobs = tree_references(data, self._map.raw_len)
        for raw_oid in trees:
            self._reach_name(raw_oid, TREE)
        for raw_oid in blobs:
            self._reach_name(raw_oid, BLOB)

    def _read(self, number: int, expected: int) -> bytes:
        pack, rank = self._map.place_of(number)
        kind, data = pack.read_at(pack.by_offset()[0][rank])
        if kind != expected:
            raise BrokenError
        return data

    def commits(
        self, most: int, *, stops: bytes | None = None, ends: bytes | None = None, no_trees: bool = False
    ) -> int | None:
        stack = self._stack
        while stack:
            number = stack.pop()
            if self._has(number):
                continue
            if stops is not None and stops[number >> 3] >> (number & 7) & 1:
                return number
            if not most:
                stack.append(number)
                return None
            most -= 1
            self._put(number)
            pack, _ = self._map.place_of(number)
            commit = parse_commit(self._read(number, COMMIT), pack.format)
            if not no_trees:
                self._reach_name(commit.tree, TREE)
            if ends is None or not ends[number >> 3] >> (number & 7) & 1:
                for parent in reversed(commit.parents):
                    found = self._map.number_of(parent)
                    if found is None:
                        self._missing.append((COMMIT, parent))
                    elif not self._has(found):
                        stack.append(found)
        return -1

    def trees(self, most: int) -> bool:
        while self._pending:
            if not most:
                return False
            most -= 1
            self.tree(self._read(self._pending.pop(), TREE))
        return True

    def missing(self) -> list[tuple[int, bytes]]:
        found, self._missing = self._missing, []
        return found
