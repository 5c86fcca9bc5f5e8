"""Which objects to send: from wants, haves and shallow boundaries to a `Selection`.

    wants, haves --peel--> commits --walk, newest first--> new commits, edge commits
    edge commits --trees--> what the client has near the edge
    new commits  --trees, level by level, in pack order--> new trees and blobs

The result is the set that `git rev-list --objects WANTS --not HAVES` gives (git: list-objects.c, revision.c):
like it, the walk stops as soon as nothing new can come, so an object that the client has only deep in its
history may be sent. With a filter (filters.py) what was found is gone through once more, and what it leaves
out is dropped, unless the client asked for just that; trees are read no deeper than the filter goes.

Reading trees is what a clone costs, so no tree is parsed twice over: a tree is stored as a delta of another
version of itself, and where that base has been gone through already, only entries that touch what the delta
changed can refer to anything new. `_Trees` does that. Entries need no name and no path, but for sparse
filters.
"""

import heapq
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, compress

from gitsmart import native
from gitsmart.errors import ObjectMissing, PackError
from gitsmart.pack.bitmap import Bitmaps, bitmaps_of
from gitsmart.pack.closure import pack_roots
from gitsmart.pack.delta import delta_sizes
from gitsmart.pack.ewah import combine
from gitsmart.pack.ewah import count as count_bits
from gitsmart.pack.filters import ObjectFilter
from gitsmart.pack.inflate import inflate
from gitsmart.pack.objects import BLOB, COMMIT, TAG, TREE, tree_references
from gitsmart.pack.packfile import OFS_DELTA, PackFile
from gitsmart.pack.packmap import PackMap, merged_names, pack_map
from gitsmart.pack.reach import BrokenError, Reach
from gitsmart.pack.store import ObjectStore

__all__ = [
    "PackedObjects",
    "Reached",
    "Selection",
    "Tick",
    "depth_boundary",
    "expand_trees",
    "reaches_common",
    "select_objects",
    "walk_commits",
]

Tick = Callable[[int], None]
"""Called now and then with the number of objects so far; raises `Disconnected` to stop the work."""

_TICK_EVERY = 1024
# As git's SLOP (revision.c): so many commits more are looked at when all seems known, since clocks are
# skewed.
_SLOP = 5
# Trees held while their level is read, with their skeletons. Measured on git.git's 190,000 trees: 2% are read
# again.
_TREES_BYTES = 32 << 20
# Levels of this many trees are read by going through whole delta chains, since all of a chain is likely in
# the level.
_BULK = 2048
# ... and in smaller ones a held tree is looked for that many bases away.
_NEAR = 2
# Packs of fewer objects are gone through in less than it takes to keep what was found.
_CLOSURE_LEAST = 20_000
# So few commits are looked for from where they are; more, by going through all of history.
_FEW_ROOTS = 8
# A base with more references that were not seen is no help.
_MANY = 32


def _no_tick(number: int) -> None:
    """Do nothing, for callers that nobody waits for."""


@dataclass(frozen=True, slots=True)
class PackedObjects:
    """Some of the objects of one pack, by their places in it."""

    pack: PackFile
    bits: bytes
    """Bit i % 8 (the lowest is 0) of byte i // 8: the i-th object of the pack, by offset, is one of them.
    Bytes that are not there are zeros; bits beyond the pack's objects are zeros."""

    def names(self) -> Iterator[bytes]:
        """Give their raw oids, in the pack's order."""
        return PackMap((self.pack,), self.pack.format.raw_len).names(self.bits)

    def __len__(self) -> int:
        return count_bits(self.bits)

    def among(self, raw_oids: Iterable[bytes]) -> set[bytes]:
        """Return those of `raw_oids` that are among them."""
        wanted, bits = list(raw_oids), self.bits
        ranks = PackMap((self.pack,), self.pack.format.raw_len).numbers_of(wanted)
        return {
            raw_oid
            for raw_oid, rank in zip(wanted, ranks, strict=True)
            if rank is not None and rank >> 3 < len(bits) and bits[rank >> 3] >> (rank & 7) & 1
        }

    def __contains__(self, raw_oid: bytes) -> bool:
        return bool(self.among((raw_oid,)))


@dataclass(slots=True)
class Selection:
    """What is to be sent, and what the receiver has."""

    objects: dict[bytes, int]
    """Raw oid -> type, in the order to send: tags, commits, then trees and blobs."""
    client_has: set[bytes]
    """Raw oids that the client is known to have, near what is sent: bases of a thin pack. Never one of
    `objects`."""
    packed: tuple[PackedObjects, ...] = ()
    """More to send, beside `objects`: no object is in both, or in two of these."""
    client_has_packed: tuple[PackedObjects, ...] = ()
    """More that the client is known to have. Objects of `packed` may be among them: those are sent."""

    def __len__(self) -> int:
        return len(self.objects) + sum(map(len, self.packed))

    def names(self) -> Iterator[bytes]:
        """Give the raw oids of all that is to be sent."""
        return chain(self.objects, *(some.names() for some in self.packed))

    def sorted_names(self) -> Iterator[bytes]:
        """Give the raw oids of all that is to be sent, sorted and joined, in 256 pieces by their first bytes.

        Memory: a piece, and what `objects` takes.
        """
        named: list[list[bytes]] = [[] for _ in range(256)]
        raw_len = 0
        for raw_oid in self.objects:
            named[raw_oid[0]].append(raw_oid)
            raw_len = len(raw_oid)
        parts = []
        for some in self.packed:
            raw_len = some.pack.format.raw_len
            parts.append(PackMap((some.pack,), raw_len).sorted_names(some.bits))
        for few, *pieces in zip(named, *parts, strict=True):
            pieces.append(b"".join(sorted(few)))
            yield merged_names([piece for piece in pieces if piece], raw_len)

    def client_has_names(self) -> Iterator[bytes]:
        """Give the raw oids of all that the client is known to have; some may be sent as well."""
        return chain(self.client_has, *(some.names() for some in self.client_has_packed))

    def among(self, raw_oids: Collection[bytes]) -> set[bytes]:
        """Return those of `raw_oids` that are to be sent."""
        found = {raw_oid for raw_oid in raw_oids if raw_oid in self.objects}
        return found.union(*(some.among(raw_oids) for some in self.packed))

    def discard(self, raw_oid: bytes) -> bool:
        """Take an object out; whether it was in."""
        if self.objects.pop(raw_oid, None) is not None:
            return True
        for at, some in enumerate(self.packed):
            if raw_oid in some:
                rank = some.pack.rank_of(some.pack.offset_of(raw_oid) or 0)
                bits = bytearray(some.bits)
                bits[rank >> 3] &= ~(1 << (rank & 7))
                left = PackedObjects(some.pack, bytes(bits))
                self.packed = (*self.packed[:at], left, *self.packed[at + 1 :])
                return True
        return False

    def __contains__(self, raw_oid: bytes) -> bool:
        return raw_oid in self.objects or any(raw_oid in some for some in self.packed)


# -- commits


def walk_commits(
    store: ObjectStore,
    wants: Iterable[bytes],
    haves: Iterable[bytes],
    *,
    boundary: Collection[bytes] = frozenset(),
    client_shallow: Collection[bytes] = frozenset(),
    tick: Tick = _no_tick,
) -> tuple[list[bytes], set[bytes]]:
    """Return the commits reachable from `wants` and not from `haves`, newest first, and the edge commits.

    Edge commits are those known to the client that are parents of new ones. All oids are raw, and commits'.
    The walk ends where all that is left is known; its cost grows with the new commits and the age of `haves`,
    not with history.

    Args:
        boundary: commits whose parents are not to be sent.
        client_shallow: commits whose parents the client has not got, though it has them.

    Raises:
        ObjectMissing: a want, or a new commit's parent. What is missing behind a have is let be.
        PackError: a commit is malformed, or no commit.
    """
    new, _, edges = _walk(store, wants, haves, boundary, client_shallow, tick)
    return new, edges


_NEW, _KNOWN, _PARENT = 1, 2, 4
"""Flags of commits: reached from a want; reached from a have; parent of one that was taken for new."""


def _walk(
    store: ObjectStore,
    wants: Iterable[bytes],
    haves: Iterable[bytes],
    boundary: Collection[bytes],
    client_shallow: Collection[bytes],
    tick: Tick,
) -> tuple[list[bytes], list[bytes], set[bytes]]:
    """Return new commits, the tree of each, and the edge commits."""
    flags: dict[bytes, int] = {}
    queue: list[tuple[int, bytes]] = []
    done: set[bytes] = set()
    found: list[bytes] = []
    trees: list[bytes] = []
    commit = store.commit
    push, pop = heapq.heappush, heapq.heappop
    # Commits that are queued, new, and not known as well. Counted down exactly when one leaves the queue, or
    # loses that state while queued: an error here loses commits, or walks all of history.
    waiting = 0
    retracted = False

    def mark_known(raw_oid: bytes) -> None:
        """Mark as known; what was taken for new before passes that on to its parents at once."""
        nonlocal waiting, retracted
        stack = [raw_oid]
        while stack:
            raw_oid = stack.pop()
            had = flags.get(raw_oid, 0)
            if had & _KNOWN:
                continue
            flags[raw_oid] = had | _KNOWN
            if raw_oid in done:
                retracted = True
                if raw_oid not in client_shallow:
                    stack.extend(commit(raw_oid).parents)
            elif had:
                waiting -= 1
            else:
                try:
                    date = commit(raw_oid).date
                except (ObjectMissing, PackError):
                    continue
                push(queue, (-date, raw_oid))

    for raw_oid in haves:
        mark_known(raw_oid)
    for raw_oid in wants:
        if raw_oid not in flags:
            flags[raw_oid] = _NEW
            push(queue, (-commit(raw_oid).date, raw_oid))
            waiting += 1
    slop = _SLOP
    oldest = None
    while queue:
        key, raw_oid = pop(queue)
        if waiting or (oldest is not None and key <= oldest):
            slop = _SLOP
        elif slop:
            slop -= 1
        else:
            break
        done.add(raw_oid)
        details = commit(raw_oid)
        if flags[raw_oid] & _KNOWN:
            if raw_oid not in client_shallow:
                for parent in details.parents:
                    mark_known(parent)
            continue
        waiting -= 1
        oldest = key
        found.append(raw_oid)
        trees.append(details.tree)
        if not len(found) % _TICK_EVERY:
            tick(len(found))
        if raw_oid in boundary:
            continue
        for parent in details.parents:
            had = flags.get(parent)
            if had is None:
                flags[parent] = _NEW | _PARENT
                push(queue, (-commit(parent).date, parent))
                waiting += 1
            else:
                flags[parent] = had | _PARENT
    if not retracted:
        edges = {raw_oid for raw_oid, had in flags.items() if had & (_KNOWN | _PARENT) == _KNOWN | _PARENT}
        return found, trees, edges
    kept = [not flags[raw_oid] & _KNOWN for raw_oid in found]
    found, trees = list(compress(found, kept)), list(compress(trees, kept))
    edges = set()
    for raw_oid in found:
        if raw_oid not in boundary:
            edges.update(parent for parent in commit(raw_oid).parents if flags[parent] & _KNOWN)
    return found, trees, edges


def depth_boundary(
    store: ObjectStore,
    heads: Iterable[bytes],
    depth: int,
    server_shallow: Collection[bytes],
    *,
    tick: Tick = _no_tick,
) -> tuple[set[bytes], set[bytes]]:
    """Return the commits `depth` commits away from the heads (these are 1), and all nearer ones.

    The former are the client's new shallow commits; also this repository's own ones, wherever they are met.
    Heads may be tags; what is no commit is passed over. As git: shallow.c get_shallow_commits(), a root
    commit that is just `depth` away is shallow too.

    Raises:
        ObjectMissing, PackError
    """
    seen: set[bytes] = set()
    shallow: set[bytes] = set()
    level: list[bytes] = []
    for head in heads:
        _, raw_oid, kind = store.peel(head)
        if kind == COMMIT:
            level.append(raw_oid)
    away = 1
    while level:
        following: list[bytes] = []
        for raw_oid in level:
            if raw_oid in seen:
                continue
            seen.add(raw_oid)
            if not len(seen) % _TICK_EVERY:
                tick(len(seen))
            if away >= depth or raw_oid in server_shallow:
                shallow.add(raw_oid)
            else:
                following.extend(parent for parent in store.commit(raw_oid).parents if parent not in seen)
        level = following
        away += 1
    return shallow, seen - shallow


def reaches_common(
    store: ObjectStore,
    wants: Iterable[bytes],
    common: Collection[bytes],
    client_shallow: Collection[bytes],
    *,
    tick: Tick = _no_tick,
) -> bool:
    """Tell whether every want reaches a commit of `common`: there is no need to negotiate further.

    Wants may be tags; trees and blobs, of which nothing can be told, count as reaching. Looks at each commit
    once, and at none that is older than all of `common`. (git: upload-pack.c ok_to_give_up())

    Raises:
        ObjectMissing, PackError
    """
    if not common:
        return False
    oldest = None
    for raw_oid in common:
        try:
            date = store.commit(raw_oid).date
        except (ObjectMissing, PackError):
            continue
        oldest = date if oldest is None or date < oldest else oldest
    if oldest is None:
        return False
    children: dict[bytes, list[bytes]] = {}
    queue: list[tuple[int, bytes]] = []
    unreached: set[bytes] = set()
    for want in wants:
        _, raw_oid, kind = store.peel(want)
        if kind == COMMIT and raw_oid not in common and raw_oid not in children:
            children[raw_oid] = []
            unreached.add(raw_oid)
            queue.append((-store.commit(raw_oid).date, raw_oid))
    heapq.heapify(queue)
    reaching: set[bytes] = set()
    looked = 0
    while unreached and queue:
        _, raw_oid = heapq.heappop(queue)
        looked += 1
        if not looked % _TICK_EVERY:
            tick(looked)
        if raw_oid in client_shallow:
            continue
        for parent in store.commit(raw_oid).parents:
            if parent in common or parent in reaching:
                stack = [raw_oid]
                while stack:
                    child = stack.pop()
                    if child not in reaching:
                        reaching.add(child)
                        unreached.discard(child)
                        stack.extend(children[child])
                continue
            known = children.get(parent)
            if known is not None:
                known.append(raw_oid)
                continue
            try:
                date = store.commit(parent).date
            except ObjectMissing:
                continue
            if date >= oldest:
                children[parent] = [raw_oid]
                heapq.heappush(queue, (-date, parent))
    return not unreached


# -- objects


def select_objects(
    store: ObjectStore,
    *,
    wants: Iterable[bytes],
    haves: Iterable[bytes],
    boundary: Collection[bytes] = frozenset(),
    client_shallow: Collection[bytes] = frozenset(),
    extra_uninteresting: Iterable[bytes] = (),
    keep: ObjectFilter | None = None,
    note: Callable[["Reached"], None] | None = None,
    tick: Tick = _no_tick,
) -> Selection:
    """Return all objects that `wants` reach and the client, having `haves`, lacks.

    Wants and haves may be of any type. Haves that are not here are passed over.

    Args:
        boundary: commits whose parents are not to be sent (the client's new shallow commits, and the server's
        own). client_shallow: commits whose parents the client has not got. extra_uninteresting: commits that
        the client has beside its haves, as those that it is to unshallow. keep: what is to be sent of what
        the wants reach; the wants themselves, and what their tags point at, always are. note: told all that
        was reached, before the filter.

    Raises:
        ObjectMissing, PackError
        LimitExceeded: by the filter, as it says.
    """
    query = _Query(store, wants, (*haves, *extra_uninteresting), boundary, client_shallow, keep, tick)
    found = _select_bits(query)
    if found is None:
        found = _select_names(query)
    selection, reached = found
    if note is not None:
        note(reached)
    return selection


class Reached:
    """All that was found to be reached, by raw oid; without tags, and without what the client has."""

    def __init__(self, objects: dict[bytes, int], whole: PackMap | None = None, bits: bytes = b"") -> None:
        """Take in objects by name, and those of a map whose bits are set."""
        self._objects = objects
        self._map = whole
        self._bits = bits

    def __len__(self) -> int:
        """Return how many there are, tags counted."""
        return len(self._objects) + count_bits(self._bits)

    def packed(self) -> tuple[PackedObjects, ...]:
        """Return those that were found by their places in packs."""
        if self._map is None:
            return ()
        bits = bytearray(self._bits)
        combine("and_not", bits, self._map.of_type(TAG))
        return tuple(PackedObjects(pack, part) for pack, part in self._map.parts(bits))

    def named(self) -> Iterator[bytes]:
        """Give the others."""
        return (raw_oid for raw_oid, kind in self._objects.items() if kind != TAG)

    def __iter__(self) -> Iterator[bytes]:
        return chain(self.named(), *(some.names() for some in self.packed()))


class _Query:
    """What is asked for, sorted by type."""

    def __init__(
        self,
        store: ObjectStore,
        wants: Iterable[bytes],
        haves: Iterable[bytes],
        boundary: Collection[bytes],
        client_shallow: Collection[bytes],
        keep: ObjectFilter | None,
        tick: Tick,
    ) -> None:
        self.store = store
        self.boundary = boundary
        self.client_shallow = client_shallow
        self.keep = keep
        self.tick = tick
        # By type; tags are those passed on the way to the others
        self.wants: dict[int, list[bytes]] = {COMMIT: [], TREE: [], BLOB: [], TAG: []}
        self.haves: dict[int, list[bytes]] = {COMMIT: [], TREE: [], BLOB: [], TAG: []}
        for have in haves:
            try:
                tags, raw_oid, kind = store.peel(have)
            except (ObjectMissing, PackError):
                continue
            self.haves[TAG].extend(tags)
            self.haves[kind].append(raw_oid)
        self.given: set[bytes] = set()
        for want in wants:
            tags, raw_oid, kind = store.peel(want)
            self.given.update(tags)
            self.given.add(raw_oid)
            self.wants[TAG].extend(tags)
            self.wants[kind].append(raw_oid)
        self._walked: tuple[list[bytes], list[bytes], set[bytes]] | None = None

    @property
    def has_haves(self) -> bool:
        return any(self.haves.values())

    def walk(self) -> tuple[list[bytes], list[bytes], set[bytes]]:
        """Return new commits, their trees, and the edge commits."""
        if self._walked is None:
            new, trees, edges = _walk(
                self.store,
                self.wants[COMMIT],
                self.haves[COMMIT],
                self.boundary,
                self.client_shallow,
                self.tick,
            )
            if self.boundary or self.client_shallow:
                # The new commits are not children of the known ones then. (git: rev-list
                # --objects-edge-aggressive)
                edges.update(self.haves[COMMIT])
            self._walked = new, trees, edges
        return self._walked

    def known_trees(self) -> list[bytes]:
        """Return the trees of the edge commits, and those that are haves themselves."""
        trees = list(self.haves[TREE])
        for raw_oid in self.walk()[2]:
            try:
                trees.append(self.store.commit(raw_oid).tree)
            except (ObjectMissing, PackError):
                continue
        return trees


# -- by bits


def _select_bits(query: _Query) -> tuple[Selection, Reached] | None:
    """Select by numbers of objects; None where that can't be done, or what is odd had better be named."""
    keep = query.keep
    if keep is not None and (keep.sparse or keep.blob_limit or keep.tree_depth or query.wants[TREE]):
        return None
    try:
        bitmaps = None if query.boundary or query.client_shallow else bitmaps_of(query.store)
        if not bitmaps:
            bitmaps = None
        if bitmaps is None and not native.available:
            return None
        whole = pack_map(query.store) if bitmaps is None else bitmaps.map
        if not whole.total:
            return None
        return _select_in(query, whole, bitmaps)
    except (BrokenError, PackError):
        # The other way tells what it is, or does not need it.
        return None


def _select_in(query: _Query, whole: PackMap, bitmaps: Bitmaps | None) -> tuple[Selection, Reached]:
    keep, boundary = query.keep, query.boundary
    no_trees = keep is not None and not keep.keeps_trees
    reach = Reach(query.store, whole, bitmaps, tick=query.tick)
    wanted = _typed(query.wants, (TREE, BLOB, TAG))
    known = _typed(query.haves, (BLOB, TAG))
    edges: set[bytes] = set()
    if bitmaps is not None or not query.has_haves:
        # All that is reached from the one side and not from the other
        commits = query.haves[COMMIT]
        if commits and bitmaps is not None:
            reach.add_and_keep(commits[0], missing_ok=True)
        known += _typed(query.haves, (COMMIT, TREE))
        reach.add(known, missing_ok=True)
        has, has_loose = reach.bits(), dict(reach.loose)
        commits = query.wants[COMMIT]
        if commits and bitmaps is not None and not query.has_haves:
            reach.add_and_keep(commits[0])
        elif bitmaps is None and not boundary:
            reach.take(_largest_pack(query, whole))
        wanted += [(raw_oid, COMMIT) for raw_oid in commits]
        reach.add(wanted, ends=boundary, no_trees=no_trees and bitmaps is None)
    else:
        # As git without bitmaps: what the client has deep in its history is not looked for
        new, trees, edges = query.walk()
        known += [(raw_oid, TREE) for raw_oid in query.known_trees()]
        reach.add(known, missing_ok=True)
        reach.mark(edges)
        has, has_loose = reach.bits(), dict(reach.loose)
        reach.mark(new)
        if not no_trees:
            wanted += [(raw_oid, TREE) for raw_oid in trees]
        reach.add(wanted)
    sent = bytearray(reach.bits())
    combine("and_not", sent, has)
    loose = {raw_oid: kind for raw_oid, kind in reach.loose.items() if raw_oid not in has_loose}
    reached = Reached(loose, whole, bytes(sent))
    client_has = bytearray(has)
    if keep is not None:
        mask = bytearray(len(sent))
        for kind in keep.types if keep.keeps_trees else keep.types - {TREE, BLOB}:
            if not (kind == BLOB and keep.blob_limit == 0):
                combine("or", mask, whole.of_type(kind))
        given = query.given
        numbers = whole.numbers_of(given)
        combine("or", mask, whole.bits_of(number for number in numbers if number is not None))
        combine("and", sent, mask)
        kept = {kind for kind in keep.types if not (kind == BLOB and keep.blob_limit == 0)}
        if not keep.keeps_trees:
            kept -= {TREE, BLOB}
        loose = {raw_oid: kind for raw_oid, kind in loose.items() if kind in kept or raw_oid in given}
        # No bases for thin packs that the filter may have kept from the client: it would have to fetch each.
        if keep.drops_trees:
            combine("and", client_has, whole.of_type(COMMIT))
            has_loose = {raw_oid: kind for raw_oid, kind in has_loose.items() if kind == COMMIT}
        elif keep.drops_blobs:
            combine("and_not", client_has, whole.of_type(BLOB))
            has_loose = {raw_oid: kind for raw_oid, kind in has_loose.items() if kind != BLOB}
    selection = Selection(
        loose,
        set(has_loose),
        tuple(PackedObjects(pack, bits) for pack, bits in whole.parts(sent)),
        tuple(PackedObjects(pack, bits) for pack, bits in whole.parts(client_has)),
    )
    return selection, reached


def _largest_pack(query: _Query, whole: PackMap) -> bytes:
    """Return the bits of all of the first pack that is reached, when that is next to all of it; else none.

    It is when the pack is closed, and all its roots are wanted or reached. (closure.py) Tags that nobody
    wants may be roots too: they are left out.
    """
    pack = whole.packs[0]
    if pack.count < max(_CLOSURE_LEAST, whole.total // 2):
        return b""
    found = pack_roots(pack, tick=query.tick)
    if not found.is_closed:
        return b""
    store = query.store
    unwanted: set[bytes] = set()
    commits: set[bytes] = set()
    for root in found.roots - query.given:
        tags, raw_oid, kind = store.peel(root)
        if kind != COMMIT:
            return b""
        unwanted.update(tags)
        commits.add(raw_oid)
    commits -= query.given
    wanted = query.wants[COMMIT]
    if len(commits) <= _FEW_ROOTS:
        if walk_commits(store, commits, wanted, tick=query.tick)[0]:
            return b""
    else:
        reach = Reach(store, whole, tick=query.tick)
        reach.add(_typed(query.wants, (COMMIT,)), no_trees=True)
        bits = reach.bits()
        for number in whole.numbers_of(commits):
            if number is None or not bits[number >> 3] >> (number & 7) & 1:
                return b""
    whole_pack = bytearray(((1 << pack.count) - 1).to_bytes((pack.count + 7) // 8, "little"))
    for number in whole.numbers_of(unwanted - query.given):
        if number is not None and number < pack.count:
            whole_pack[number >> 3] &= ~(1 << (number & 7))
    return bytes(whole_pack)


def _typed(objects: dict[int, list[bytes]], kinds: Iterable[int]) -> list[tuple[bytes, int]]:
    return [(raw_oid, kind) for kind in kinds for raw_oid in objects[kind]]


# -- by names


def _select_names(query: _Query) -> tuple[Selection, Reached]:
    store, keep, tick = query.store, query.keep, query.tick
    objects: dict[bytes, int] = {}
    known: set[bytes] = {*query.haves[TAG], *query.haves[BLOB]}
    objects.update((tag, TAG) for tag in query.wants[TAG] if tag not in known)
    trees = query.wants[TREE]
    new, new_trees, edges = query.walk()
    reader = _Trees(store, objects, known, tick)
    known_blobs: set[bytes] | None = None if keep is None else set()
    reader.mark_known(query.known_trees(), blobs=known_blobs)
    known.update(edges)
    for raw_oid in new:
        objects[raw_oid] = COMMIT
    if keep is None:
        reader.select([*trees, *new_trees])
    else:
        # The tree of a new commit is one more of its trees, asked for or not.
        roots = set(new_trees)
        objects.update((raw_oid, TREE) for raw_oid in trees if raw_oid in roots and raw_oid not in known)
        trees = [raw_oid for raw_oid in trees if raw_oid not in roots]
        reader.select(roots if keep.keeps_trees else (), opened=trees, depth=keep.tree_depth)
    for raw_oid in query.wants[BLOB]:
        if raw_oid not in known:
            objects[raw_oid] = BLOB
    reached = Reached(objects)
    if keep is None:
        return Selection(objects, known), reached
    sent = keep.left(store, objects, query.given, roots=new_trees, opened=trees, known=known, tick=tick)
    # No bases for thin packs that the filter may have kept from the client: it would have to fetch each.
    if keep.drops_trees:
        return Selection(sent, set(edges)), reached
    if keep.drops_blobs and known_blobs:
        known -= known_blobs
    return Selection(sent, known), reached


def expand_trees(
    store: ObjectStore, trees: Iterable[bytes], seen: dict[bytes, int], *, tick: Tick = _no_tick
) -> set[bytes]:
    """Return `trees` and all below them, as far as it is not in `seen`, below which all is seen.

    What is missing is let be: it is in the result, what it would lead to is not.

    Raises:
        PackError: a tree is malformed.
    """
    found: set[bytes] = set()
    _Trees(store, seen, found, tick).mark_known(raw_oid for raw_oid in trees if raw_oid not in seen)
    return found


_KINDS = {b"40": TREE, b"10": BLOB, b"12": BLOB, b"16": 0}
"""What an entry refers to, by the first two digits of its mode as git writes it; 0 for a gitlink."""

_Reference = tuple[bytes, int]
"""A raw oid that a tree refers to, and its type by the entry's mode."""


def _kind_of(data: bytes, start: int) -> int:
    """Tell what the entry that starts at `start` refers to.

    Raises:
        PackError: its mode is no number.
    """
    kind = _KINDS.get(data[start : start + 2])
    if kind is None:
        # Written in an unusual way: zero-padded, or by old tools.
        mode = re.compile(b"([0-7]{1,11}) ").match(data, start)
        if mode is None:
            raise PackError("a tree is malformed")
        format_bits = int(mode[1], 8) & 0o170000
        kind = TREE if format_bits == 0o040000 else 0 if format_bits == 0o160000 else BLOB
    return kind


class _Tree:
    """A tree's data, its skeleton, and what it refers to as far as that was not seen before.

    The skeleton is the data with each oid blanked out, so that its only NULs are those that end names: with
    it, where an entry starts can be told without reading from the tree's start, and found in both directions
    in C.
    """

    __slots__ = ("data", "pending", "skeleton")

    def __init__(self, data: bytes, skeleton: bytes | None, pending: list[_Reference]) -> None:
        self.data = data
        self.skeleton = skeleton
        self.pending = pending


class _Trees:
    """Goes through trees, each once, and adds what they refer to to a dict of new or a set of known
    objects."""

    def __init__(self, store: ObjectStore, objects: dict[bytes, int], known: set[bytes], tick: Tick) -> None:
        self._store = store
        self._objects = objects
        self._known = known
        self._tick = tick
        raw_len = store.format.raw_len
        self._raw_len = raw_len
        self._blank = b"x" * raw_len
        self._blank_out = re.compile(b"(?s)\\0.{%d}" % raw_len).sub
        self._find_oids = re.compile(b"(?s)\\0(.{%d})" % raw_len).findall
        self._find_entries = re.compile(b"(?s)(..)[^\\0]*\\0(.{%d})" % raw_len).findall
        # (serial of pack, offset) -> tree, least recently used first
        self._cache: dict[tuple[int, int], _Tree] = {}
        self._cached_bytes = 0

    def mark_known(self, trees: Iterable[bytes], *, blobs: set[bytes] | None = None) -> None:
        """Add trees, and all that is below them, to the known objects; blobs to `blobs` as well. What is
        missing is let be.
        """
        known = self._known
        level = {raw_oid for raw_oid in trees if raw_oid not in known}
        known.update(level)
        while level:
            following: set[bytes] = set()
            for references in self._read(level, missing_ok=True):
                for raw_oid, kind in references:
                    known.add(raw_oid)
                    if kind == TREE:
                        following.add(raw_oid)
                    elif blobs is not None:
                        blobs.add(raw_oid)
            level = following

    def select(
        self, trees: Iterable[bytes], *, opened: Iterable[bytes] = (), depth: int | None = None
    ) -> None:
        """Add trees, and all that is below them, to the new objects, as far as they are not known.

        Args:
            opened: more trees, whose entries lie as deep as `trees` do.
            depth: where to end: at 1 with the trees themselves, and the entries of `opened`.
        """
        objects = self._objects
        level = {raw_oid for raw_oid in opened if raw_oid not in self._known}
        objects.update(dict.fromkeys(level, TREE))
        if depth == 0:
            return
        level = self._add_below(level)
        roots = {raw_oid for raw_oid in trees if raw_oid not in self._known}
        objects.update(dict.fromkeys(roots, TREE))
        level |= roots
        while level and (depth is None or depth > 1):
            depth = None if depth is None else depth - 1
            level = self._add_below(level)

    def _add_below(self, level: set[bytes]) -> set[bytes]:
        """Add what trees refer to; return the trees among that."""
        objects = self._objects
        following: set[bytes] = set()
        if level:
            for references in self._read(level, missing_ok=False):
                for raw_oid, kind in references:
                    objects[raw_oid] = kind
                    if kind == TREE:
                        following.add(raw_oid)
        return following

    def _read(self, level: set[bytes], *, missing_ok: bool) -> Iterator[list[_Reference]]:
        """Read trees in the order of packs; give for each what it refers to and was not seen before."""
        bulk = len(level) >= _BULK
        number = 0
        groups, missed = self._places(level)
        for pack, offsets in groups:
            for offset in offsets:
                number += 1
                if not number % _TICK_EVERY:
                    self._tick(len(self._objects))
                tree = self._tree_at(pack, offset, bulk=bulk)
                pending = tree.pending
                if pending:
                    tree.pending = []
                    yield self._unseen(pending)
        for raw_oid in missed:
            number += 1
            if not number % _TICK_EVERY:
                self._tick(len(self._objects))
            try:
                kind, data = self._store.read(raw_oid)
            except ObjectMissing:
                if missing_ok:
                    continue
                raise
            if kind != TREE:
                raise PackError("an object is no tree, but taken for one")
            yield self._references(data)

    def _places(self, level: set[bytes]) -> tuple[list[tuple[PackFile, list[int]]], list[bytes]]:
        """Group trees by pack, with offsets ascending; and those in no pack."""
        packs = self._store.packs()
        if len(packs) == 1 and len(level) * 12 > packs[0].count:
            pack = packs[0]
            positions = pack.positions_in(level)
            if len(positions) == len(level):
                return [(pack, sorted(map(pack.offset_at, positions)))], []
        groups: dict[int, tuple[PackFile, list[int]]] = {}
        missed: list[bytes] = []
        locate = self._store.locate
        for raw_oid in level:
            place = locate(raw_oid)
            if place is None:
                missed.append(raw_oid)
                continue
            pack, offset = place
            group = groups.get(pack.serial)
            if group is None:
                groups[pack.serial] = (pack, [offset])
            else:
                group[1].append(offset)
        for _, offsets in groups.values():
            offsets.sort()
        return list(groups.values()), missed

    # -- trees in packs

    def _tree_at(self, pack: PackFile, offset: int, *, bulk: bool) -> _Tree:
        """Read a tree: from the nearest one of its delta chain that is held, or else whole."""
        cache, serial = self._cache, pack.serial
        chain: list[tuple[int, int, int]] = []
        at = offset
        while True:
            held = cache.pop((serial, at), None)
            if held is not None:
                cache[serial, at] = held
                break
            kind, size, base, start = pack.entry(at)
            if kind < OFS_DELTA:
                if kind != TREE:
                    raise PackError("an object is no tree, but taken for one")
                if not bulk and chain:
                    return self._keep((serial, offset), self._whole(pack.read_at(offset)[1]))
                data, _ = inflate(pack.data, start, size)
                held = self._keep((serial, at), self._whole(data))
                break
            chain.append((at, start, size))
            if len(chain) > _NEAR and not bulk:
                # Going through what lies between costs more than going through this one whole.
                kind, data = pack.read_at(offset)
                if kind != TREE:
                    raise PackError("an object is no tree, but taken for one")
                return self._keep((serial, offset), self._whole(data))
            if len(chain) > pack.count:
                raise PackError("a delta chain runs in a circle")
            at = pack.base_offset(kind, base, start)
        while chain:
            at, start, size = chain.pop()
            delta, _ = inflate(pack.data, start, size)
            held = self._keep((serial, at), self._derived(held, delta))
        return held

    def _keep(self, key: tuple[int, int], tree: _Tree) -> _Tree:
        # Twice: a skeleton may still come.
        self._cached_bytes += 2 * len(tree.data)
        cache = self._cache
        cache[key] = tree
        while self._cached_bytes > _TREES_BYTES:
            self._cached_bytes -= 2 * len(cache.pop(next(iter(cache))).data)
        return tree

    def _unseen(self, references: list[_Reference]) -> list[_Reference]:
        objects, known = self._objects, self._known
        return [found for found in references if found[0] not in objects and found[0] not in known]

    def _whole(self, data: bytes) -> _Tree:
        return _Tree(data, None, self._references(data))

    def _references(self, data: bytes) -> list[_Reference]:
        """Parse a whole tree; give what was not seen before.

        Raises:
            PackError: it is malformed.
        """
        raw_len = self._raw_len
        oids = self._find_oids(data)
        if not data:
            return []
        if not oids or data[-raw_len - 1] or data[-raw_len:] != oids[-1]:
            raise PackError("a tree is malformed")
        objects, known = self._objects, self._known
        if not set(oids).difference(objects, known):
            return []
        references: list[_Reference] = []
        kinds = _KINDS
        for mode, oid in self._find_entries(data):
            if oid not in objects and oid not in known:
                kind = kinds.get(mode)
                if kind is None:
                    return self._odd_references(data)
                if kind:
                    references.append((oid, kind))
        return references

    def _odd_references(self, data: bytes) -> list[_Reference]:
        subtrees, blobs = tree_references(data, self._raw_len)
        return self._unseen([(oid, TREE) for oid in subtrees] + [(oid, BLOB) for oid in blobs])

    def _skeleton(self, tree: _Tree) -> bytes:
        skeleton = tree.skeleton
        if skeleton is None:
            skeleton = tree.skeleton = self._blank_out(b"\0" + self._blank, tree.data)
        return skeleton

    def _derived(self, base: _Tree, delta: bytes) -> _Tree:
        """Make a tree from its base and a delta.

        It refers to what the delta touches, and to what was pending of its base and is left. An entry is
        untouched when the delta copies it whole, from where an entry starts in the base. Starts are known
        exactly: the tree is gone through entry by entry, jumping over what was copied.

        Most of a clone's time is spent here: hence by hand, and in one piece. (benchmarks/enumerate.py)

        Raises:
            PackError: the delta or the tree is malformed.
        """
        base_size, size, at = delta_sizes(delta)
        base_data = base.data
        if base_size != len(base_data):
            raise PackError("failed to apply delta: base is of another size")
        skeleton = self._skeleton(base)
        objects, known = self._objects, self._known
        raw_len, blank = self._raw_len, self._blank
        step = raw_len + 1
        pieces: list[bytes] = []
        bones: list[bytes] = []
        references: list[_Reference] = []
        end = len(delta)
        # What of the current entry has come. Or, far more often: the base's data up to `stop`, where a name
        # ends.
        tail = b""
        named = False
        stop = 0
        try:
            while at < end:
                code = delta[at]
                at += 1
                if named:
                    if code == raw_len:
                        oid = delta[at : at + raw_len]
                        at += raw_len
                        pieces.append(oid)
                        bones.append(blank)
                        named = False
                        if oid not in objects and oid not in known:
                            start = skeleton.rfind(b"\0", 0, stop - 1) + step
                            kind = _kind_of(base_data, start if start >= step else 0)
                            if kind:
                                references.append((oid, kind))
                        continue
                    start = skeleton.rfind(b"\0", 0, stop - 1) + step
                    if start < step:
                        start = 0
                    bones[-1] = bones[-1][: start - stop]
                    tail = base_data[start:stop]
                    named = False
                if code < 0x80:
                    if not code:
                        raise PackError("bad delta: reserved instruction")
                    piece = delta[at : at + code]
                    at += code
                    pieces.append(piece)
                    tail += piece
                    while tail:
                        nul = tail.find(b"\0")
                        if nul < 0 or nul + step > len(tail):
                            break
                        self._note(tail, nul, references)
                        bones.append(tail[: nul + 1])
                        bones.append(blank)
                        tail = tail[nul + step :]
                    continue
                # delta.iter_instructions() inlined: four million of these are most of a big clone's select
                # (benchmarks/enumerate.py). Most copies have one or two bytes of offset and of length.
                if code == 0xB3:
                    offset = delta[at] | delta[at + 1] << 8
                    length = delta[at + 2] | delta[at + 3] << 8
                    at += 4
                elif code == 0x93:
                    offset = delta[at] | delta[at + 1] << 8
                    length = delta[at + 2]
                    at += 3
                else:
                    offset = length = 0
                    if code & 1:
                        offset = delta[at]
                        at += 1
                    if code & 2:
                        offset |= delta[at] << 8
                        at += 1
                    if code & 4:
                        offset |= delta[at] << 16
                        at += 1
                    if code & 8:
                        offset |= delta[at] << 24
                        at += 1
                    if code & 16:
                        length = delta[at]
                        at += 1
                    if code & 32:
                        length |= delta[at] << 8
                        at += 1
                    if code & 64:
                        length |= delta[at] << 16
                        at += 1
                    length = length or 0x10000
                stop = offset + length
                if stop > base_size:
                    raise PackError("failed to apply delta: out of bounds")
                pieces.append(base_data[offset:stop])
                if tail or (offset and (offset < step or skeleton[offset - step])):
                    # Not where an entry starts in both: entry by entry, until one does.
                    while True:
                        nul = tail.find(b"\0")
                        if nul >= 0:
                            following = offset + nul + step - len(tail)
                        else:
                            nul = base_data.find(b"\0", offset, stop)
                            following = nul + step if nul >= 0 else stop + 1
                        if following > stop:
                            tail += base_data[offset:stop]
                            offset = stop
                            break
                        tail += base_data[offset:following]
                        offset = following
                        nul = len(tail) - step
                        self._note(tail, nul, references)
                        bones.append(tail[: nul + 1])
                        bones.append(blank)
                        tail = b""
                        if offset == stop or (offset >= step and not skeleton[offset - step]):
                            break
                    if offset == stop:
                        continue
                if not skeleton[stop - 1]:
                    named = True
                    bones.append(skeleton[offset:stop])
                elif stop >= step and not skeleton[stop - step]:
                    bones.append(skeleton[offset:stop])
                else:
                    nul = skeleton.rfind(b"\0", offset, max(offset, stop - raw_len))
                    start = nul + step if nul >= 0 else offset
                    bones.append(skeleton[offset:start])
                    tail = base_data[start:stop]
        except IndexError:
            raise PackError("bad delta: ends in a copy instruction") from None
        data = b"".join(pieces)
        if len(data) != size:
            raise PackError("failed to apply delta: result is of another size")
        if tail or named:
            raise PackError("a tree is malformed")
        bare = b"".join(bones)
        if base.pending:
            base.pending = self._unseen(base.pending)
            if len(base.pending) > _MANY:
                references = self._references(data)
            else:
                for oid, _ in base.pending:
                    kind = _referred(data, bare, oid)
                    if kind:
                        references.append((oid, kind))
        return _Tree(data, bare, references)

    def _note(self, entry: bytes, nul: int, references: list[_Reference]) -> None:
        """Note what an entry refers to whose name ends at `nul`, unless it was seen before."""
        oid = entry[nul + 1 : nul + 1 + self._raw_len]
        if oid not in self._objects and oid not in self._known:
            kind = _kind_of(entry, 0)
            if kind:
                references.append((oid, kind))


def _referred(data: bytes, skeleton: bytes, raw_oid: bytes) -> int:
    """Return the type of a tree's entry of that oid; 0 when it has none, or gitlinks only."""
    at = data.find(raw_oid)
    while at > 0:
        # The NUL that ends a name: so this is an oid, and not bytes of one and of a name.
        if not skeleton[at - 1]:
            start = skeleton.rfind(b"\0", 0, at - 1) + 1
            kind = _kind_of(data, start + len(raw_oid) if start else 0)
            if kind:
                return kind
        at = data.find(raw_oid, at + 1)
    return 0
