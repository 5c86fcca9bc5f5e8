"""Are these tips complete: is every object that they reach there?

What existing refs reach is taken to be complete, as git does (`rev-list --objects NEW --not --all`; git:
connected.c check_connected()). The question is then about the pushed pack and its border with the repository:

    own      the pack's objects. The indexer has read them all, so every reference in them is known: it leads
             to `own`, or to `outside` together with the type that is expected there
    outside  if all of these are complete, everything in the pack is. Nothing in the pack is walked for that

    fast     outside commits   are ref tips, or reachable from them
             outside trees     are in the trees of those commits: expanded only where the pack has no answer,
             and blobs         so that a small push costs the directories that it changed
             what is left      is walked in the repository, down to its blobs (objects that no ref reaches)
    exact    when that fails (or references disagree about a type), each tip on its own: what an unrelated,
             dangling object of the pack lacks is no fault of the tips

Memory: 100 bytes for each object that the pack refers to and lacks, or that has to be walked in the
repository.
Existence means existence with the right type; contents are not hashed again.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from gitsmart.errors import ObjectMissing, PackError
from gitsmart.pack.indexer import PackFacts
from gitsmart.pack.objects import BLOB, COMMIT, TAG, TREE, parse_tag, to_raw, tree_references
from gitsmart.pack.select import walk_commits
from gitsmart.pack.store import ObjectStore

__all__ = ["MISSING", "find_unconnected"]

MISSING = "missing necessary objects"  # git: builtin/receive-pack.c set_connectivity_errors()

_TICK_EVERY = 2048
_EXPAND_AT_LEAST = (
    2000  # trees of the border to look at before the rest is walked; a checkout of linux has 4,700
)


def find_unconnected(
    objects: ObjectStore,
    store: ObjectStore,
    ref_tips: Iterable[bytes],
    tips: Sequence[bytes],
    facts: Sequence[PackFacts],
    *,
    shallow: Collection[bytes] = frozenset(),
    tick: Callable[[], None],
) -> dict[bytes, str]:
    """Say which of the hex `tips` are incomplete, and why; {} when all are whole.

    `objects` is the quarantine over `store`, the repository's own objects; `ref_tips` are the raw oids of its
    refs, `shallow` those of its commits whose parents it need not have. `tick` is called every few thousand
    objects.
    """
    check = _Check(objects, store, set(ref_tips), facts, shallow, tick)
    wanted = {tip: to_raw(tip) for tip in tips}
    if check.is_pack_complete():
        return {tip: MISSING for tip, raw_oid in wanted.items() if not check.is_whole_given_pack(raw_oid)}
    return {tip: MISSING for tip, raw_oid in wanted.items() if not check.is_whole(raw_oid)}


class _Check:
    def __init__(
        self,
        objects: ObjectStore,
        store: ObjectStore,
        ref_tips: set[bytes],
        facts: Sequence[PackFacts],
        shallow: Collection[bytes],
        tick: Callable[[], None],
    ) -> None:
        self.objects = objects
        self.store = store
        self.ref_tips = ref_tips
        self._facts = facts
        self.has_conflicts = any(one.conflicting for one in facts)
        self._shallow = shallow
        self._tick = tick
        self._steps = 0
        self._whole: set[bytes] = set()  # proven complete
        self._ref_commits: list[bytes] | None = None

    # Fast: everything in the pack, by its border

    def is_pack_complete(self) -> bool:
        """Whether every object of the pack has all that it refers to, in whole."""
        if self.has_conflicts:
            return False
        outside: dict[int, set[bytes]] = {COMMIT: set(), TREE: set(), BLOB: set(), TAG: set()}
        for one in self._facts:
            for oid, expected in one.outside.items():
                kind = self._own_type(oid) if len(self._facts) > 1 else None
                if kind is None:
                    outside[expected].add(oid)
                elif kind != expected:
                    return False
        commits, tags = list(outside[COMMIT]), outside[TAG]
        if not self._are_all(self.store, commits, COMMIT) or not self._are_all(self.store, tags, TAG):
            return False
        unreached = self._unreached(self.store, commits)
        if unreached is None:
            return False
        new_commits, edges = unreached
        need = {oid: kind for kind in (TREE, BLOB) for oid in outside[kind]}
        self._prove_by_trees_of([*edges, *(oid for oid in commits if oid not in set(new_commits))], need)
        rest = [(oid, TAG) for oid in tags if oid not in self.ref_tips]
        rest += need.items()
        return self._walk_commits(self.store, new_commits) and self._walk(self.store, rest)

    def is_whole_given_pack(self, raw_oid: bytes) -> bool:
        """Whether a tip is whole when everything in the pack is."""
        return self._own_type(raw_oid) is not None or self.is_whole(raw_oid)

    def _own_type(self, raw_oid: bytes) -> int | None:
        """The type of an object that came with the push."""
        for one in self._facts:
            kind = one.own.get(raw_oid)
            if kind is not None:
                return kind
        return None

    def _prove_by_trees_of(self, commits: Sequence[bytes], need: dict[bytes, int]) -> None:
        """Take from `need` what is seen, with the same type, in the trees of commits known to be whole."""
        budget = _EXPAND_AT_LEAST + 4 * sum(1 for kind in need.values() if kind == TREE)
        seen: set[bytes] = set()
        todo: deque[bytes] = deque()
        try:
            for commit in commits:
                if need:
                    tree = self.store.commit(commit).tree
                    if need.get(tree) == TREE:
                        del need[tree]
                    elif tree not in seen:
                        seen.add(tree)
                        todo.append(tree)
            while todo and need and budget:
                budget -= 1
                self._step()
                kind, data = self.store.read(todo.popleft())
                if kind != TREE:
                    continue
                trees, blobs = tree_references(data, self.store.format.raw_len)
                for oid in need.keys() & blobs:
                    if need[oid] == BLOB:
                        del need[oid]
                for oid in trees:
                    if need.get(oid) == TREE:
                        del need[oid]
                    elif oid not in seen:
                        seen.add(oid)
                        todo.append(oid)
        except (ObjectMissing, PackError):
            pass  # the repository is damaged there; what could not be proven is walked

    # Exact: one tip

    def is_whole(self, raw_oid: bytes) -> bool:
        """Whether all that a tip reaches is there; walks what no ref reaches."""
        try:
            while True:
                if raw_oid in self.ref_tips or raw_oid in self._whole:
                    return True
                kind, data = self._type_and_data(self.objects, raw_oid)
                if kind != TAG:
                    break
                target, declared = parse_tag(data, self.objects.format)
                if self._type(self.objects, target) != declared:
                    return False
                raw_oid = target
        except (ObjectMissing, PackError):
            return False
        if kind != COMMIT:
            return self._walk(self.objects, [(raw_oid, kind)])
        unreached = self._unreached(self.objects, [raw_oid])
        return unreached is not None and self._walk_commits(self.objects, unreached[0])

    def _unreached(
        self, objects: ObjectStore, commits: Sequence[bytes]
    ) -> tuple[list[bytes], set[bytes]] | None:
        """Those of `commits` and their ancestors that no ref reaches, and the edge; None: one is missing."""
        wants = [oid for oid in commits if oid not in self.ref_tips]
        if not wants:
            return [], set()
        if not self._are_all(objects, wants, COMMIT):
            return None
        try:
            new, edges = walk_commits(
                objects,
                wants,
                self._tips_as_commits(),
                boundary=self._shallow,
                client_shallow=self._shallow,  # what lies behind a ref's shallow commit, no ref vouches for
                tick=self._step,
            )
        except (ObjectMissing, PackError):
            return None
        # The walk reads commits from a cache that outlives them: a gc may have been here since
        return (new, edges) if self._are_all(objects, new, COMMIT) else None

    def _are_all(self, objects: ObjectStore, oids: Iterable[bytes], expected: int) -> bool:
        """Whether these are there, of that type: a ref's tip may be a tag where a commit is expected."""
        try:
            for oid in oids:
                self._step()
                if self._type(objects, oid) != expected:
                    return False
        except (ObjectMissing, PackError):
            return False
        return True

    def _tips_as_commits(self) -> list[bytes]:
        if self._ref_commits is None:
            found = []
            for oid in self.ref_tips:
                self._step()
                try:
                    _, target, kind = self.store.peel(oid)
                except (ObjectMissing, PackError):
                    continue
                if kind == COMMIT:
                    found.append(target)
            self._ref_commits = found
        return self._ref_commits

    def _walk_commits(self, objects: ObjectStore, commits: Sequence[bytes]) -> bool:
        """Whether the trees of `commits` are whole; their parents are in `commits`, or reached by refs."""
        try:
            return all(self._walk(objects, [(objects.commit(oid).tree, TREE)]) for oid in commits)
        except (ObjectMissing, PackError):
            return False

    def _walk(self, objects: ObjectStore, roots: Iterable[tuple[bytes, int]]) -> bool:
        """Whether all that trees, blobs and tags reach is there, with the types that are expected."""
        todo = list(roots)
        found: set[bytes] = set()
        try:
            while todo:
                oid, expected = todo.pop()
                if oid in self._whole or oid in found:
                    if self._type(objects, oid) != expected:
                        return False
                    continue
                self._step()
                if expected == COMMIT:
                    if not self.is_whole(oid):
                        return False
                elif expected == BLOB:
                    if self._type(objects, oid) != BLOB:
                        return False
                else:
                    kind, data = self._type_and_data(objects, oid)
                    if kind != expected:
                        return False
                    if kind == TREE:
                        trees, blobs = tree_references(data, objects.format.raw_len)
                        todo += [(sub, TREE) for sub in trees]
                        todo += [(sub, BLOB) for sub in blobs]
                    else:
                        todo.append(parse_tag(data, objects.format))
                found.add(oid)
        except (ObjectMissing, PackError):
            return False
        self._whole |= found
        return True

    def _type(self, objects: ObjectStore, raw_oid: bytes) -> int:
        kind = self._own_type(raw_oid) if objects is self.objects else None
        return objects.type_of(raw_oid) if kind is None else kind

    def _type_and_data(self, objects: ObjectStore, raw_oid: bytes) -> tuple[int, bytes]:
        kind = self._type(objects, raw_oid)
        return (kind, b"") if kind == BLOB else objects.read(raw_oid)

    def _step(self, *_: object) -> None:
        self._steps += 1
        if self._steps % _TICK_EVERY == 0:
            self._tick()
