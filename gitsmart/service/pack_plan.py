"""How the pack of a fetch is had through the clone cache: by which key, and made of what.

    no haves, no filter, no shallow boundary     may be built on a pack that is there already: on one of the
                                                 cache, or one of the repository's that holds just that
    with blob:none, blob:limit or tree:0         may be built on one of the cache
    wants of blobs and trees alone               not cached: partial clones ask so, each for something else

A base is fine if everything that reaches into it (its roots) is still reached by what is asked for now. Then
its entries go out as they lie, and behind them the objects that are not in it. So nobody gets an object that
can't be reached any more: a base with a root that is gone is no base.

What is sent is what `select_objects` gives; who may ask for it was decided before (wants.py).
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, compress
from typing import Protocol

from gitsmart.errors import ObjectMissing, PackError
from gitsmart.pack.cachefile import BASE_PACK, Base, Facts, PackBody
from gitsmart.pack.closure import pack_roots
from gitsmart.pack.objects import COMMIT
from gitsmart.pack.packcache import PackKey, PackSink
from gitsmart.pack.select import PackedObjects, Selection, walk_commits
from gitsmart.pack.store import ObjectStore
from gitsmart.pack.writer import PackStats, write_pack
from gitsmart.repo.repository import Repository
from gitsmart.service.shallow import ShallowPlan
from gitsmart.wire.filter_spec import FilterSpec
from gitsmart.wire.upload_request import FetchRequest

__all__ = ["PackPlan", "write_selection"]

_NOTHING = PackStats(0, 0, 0, 0, 0, 0, 0, 0)
_WALKS = 2
"""Bases whose roots are walked to, at most: a walk through unrelated history takes long."""
_OUTGROWN = 4
"""A base is no longer one when more than a quarter of its objects would come on top."""


class Select(Protocol):
    """Selects what to send to a client that has these raw oids, or to go behind a base."""

    def __call__(
        self, haves: Collection[bytes], tick: Callable[[int], None], base: Base | None = None
    ) -> Selection: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPlan:
    """All that decides the pack of one fetch."""

    repo: Repository
    request: FetchRequest
    wants: tuple[bytes, ...]
    """Raw oids, also those that follow from deepening."""
    common: tuple[bytes, ...]
    shallow: ShallowPlan
    tags: frozenset[bytes]
    """Raw oids of the annotated tags that the client sees, if it wants those of what is sent."""
    select: Select
    note: Callable[[Selection], None] | None = None

    @property
    def is_cacheable(self) -> bool:
        """Whether somebody else is likely to ask for the same."""
        spec = self.request.filter
        return not self.request.uri_protocols and not (spec and _is_sparse(spec)) and self._are_commits(any)

    @property
    def is_shared(self) -> bool:
        """Whether it is worth a file: clones of all kinds, which start from nothing."""
        return not self.common

    def _can_be_built_on(self) -> bool:
        """Whether a pack of this shape holds all that one does whose wants are reached by these."""
        shallow, spec = self.shallow, self.request.filter
        if self.common or shallow.boundary or shallow.client_shallow or shallow.extra_uninteresting:
            return False
        return spec is None or (_only_grows(spec) and self._are_commits(all))

    def _are_commits(self, how_many: Callable[[Iterable[bool]], bool]) -> bool:
        """Whether any of the wants leads to a commit, or all do."""
        try:
            return how_many(self.repo.objects.peel(want)[2] == COMMIT for want in self.wants)
        except (ObjectMissing, PackError):
            return False

    def key(self) -> PackKey:
        """Return what the cache knows the pack by."""
        request, shallow = self.request, self.shallow
        has_edge = bool(self.common or shallow.extra_uninteresting)
        parts = [
            b"1",  # raise it when packs are written so differently that old ones are to go
            b"ofs" if request.ofs_delta else b"",
            b"thin" if request.thin_pack and has_edge else b"",
            repr(request.filter).encode("ascii", "backslashreplace") if request.filter else b"",
            *(
                b"".join(sorted(raw_oids))
                for raw_oids in (
                    self.common,
                    shallow.boundary,
                    shallow.client_shallow,
                    shallow.extra_uninteresting,
                )
            ),
        ]
        shape = b"".join(b"%d:%b" % (len(part), part) for part in parts)
        wants = frozenset(self.wants)
        return PackKey(
            format=self.repo.format,
            repository=self.repo.identity,
            shape=shape,
            wants=wants,
            tags=self.tags - wants,
        )

    def make(self, sink: PackSink) -> Facts:
        """Make the pack: what `PackCache.open` calls, in a thread of its own.

        Raises: see `select_objects`, `write_pack`.
        """
        for base in self._bases(sink) if self._can_be_built_on() else ():
            selection = self.select(base.roots, sink.tick, base)
            selection = without(selection, base)
            if len(selection) * _OUTGROWN <= base.count:
                return self._write(sink, selection, base)
        return self._write(sink, self.select(self.common, sink.tick), None)

    def _write(self, sink: PackSink, selection: Selection, base: Base | None) -> Facts:
        count = len(selection)
        if base is not None and not count:
            facts = self._facts(_NOTHING, selection, base)
            sink.begin(base.count, base, stats=facts.stats)
            return facts
        if base is None:
            sink.begin(count, estimate_bytes=_estimate(self.repo.objects, count))
            thin = self.request.thin_pack
        else:
            # Deltas of what is in the base: it comes in the same pack.
            thin = True
            sink.begin(base.count + count, base)
        stats = write_selection(self.repo.objects, selection, sink.write, self.request, sink.tick, thin=thin)
        return self._facts(stats, selection, base)

    def _facts(self, stats: PackStats, selection: Selection, base: Base | None) -> Facts:
        """What is known of a pack, of which `stats` are those of the selection."""
        if base is not None:
            stats = replace(
                stats,
                objects=stats.objects + base.count,
                copied=stats.copied + base.count,
                whole_packs=stats.whole_packs + 1,
                in_whole_packs=stats.in_whole_packs + base.count,
            )
        roots = {*self.wants, *selection.among(self.tags)}
        if base is not None:
            roots |= {root for root in base.roots if root in self.tags}
        # What nothing is built on needs no names: to sort them takes as long as to send the pack.
        is_base = not self.common
        return Facts(
            count=stats.objects,
            new=len(selection) if is_base else 0,
            names=selection.sorted_names() if is_base else (),
            roots=roots,
            stats=(
                stats.objects,
                stats.copied,
                stats.deflated,
                stats.bytes,
                stats.copied_deltas,
                stats.deflated_deltas,
                stats.whole_packs,
                stats.in_whole_packs,
            ),
        )

    # -- bases

    def _bases(self, sink: PackSink) -> Iterator[Base]:
        """Give the packs that this one can be built on, the most promising first."""
        walks = 0
        for base in chain(self._whole_packs(sink.tick), sink.bases()):
            left = base.roots.difference(self.wants)
            if left and not self._are_tags_of_wants(left):
                walks += 1
                if walks > _WALKS:
                    return
                if not self._reach(left, sink.tick):
                    continue
            yield base

    def _whole_packs(self, tick: Callable[[int], None]) -> Iterator[Base]:
        """Give the repository's largest pack, if it holds all that its objects refer to.

        The first time that it's asked for, what it refers to is found out: see closure.py.
        """
        if self.request.filter is not None:
            return  # it holds more
        packs = self.repo.objects.packs()
        pack = max(packs, key=lambda pack: pack.count, default=None)
        if pack is None or not self.request.ofs_delta or pack.count * 2 < sum(pack.count for pack in packs):
            return
        if not any(want in pack for want in self.wants):
            return
        found = pack_roots(pack, tick=tick)
        if found.is_closed and pack.count:
            yield Base(
                kind=BASE_PACK,
                id=pack.checksum.ljust(32, b"\0"),
                body=PackBody(pack),
                count=pack.count,
                roots=found.roots,
                contains=pack.__contains__,
            )

    def _are_tags_of_wants(self, roots: frozenset[bytes]) -> bool:
        """Whether `roots` are tags that go along, all of wants themselves: no walk is needed then."""
        if not roots <= self.tags:
            return False
        peel = self.repo.objects.peel
        try:
            wanted = {peel(want)[1] for want in self.wants}
            return all(peel(root)[1] in wanted for root in roots)
        except (ObjectMissing, PackError):
            return False

    def _reach(self, roots: frozenset[bytes], tick: Callable[[int], None]) -> bool:
        """Whether the wants lead to all of `roots`: commits, and tags of commits that go along."""
        store = self.repo.objects
        try:
            # A tag goes along if what it names is sent anyway, and brings nothing else with it.
            roots = frozenset(store.peel(root)[1] if root in self.tags else root for root in roots)
            if any(store.type_of(root) != COMMIT for root in roots):
                return False
            peeled = [store.peel(want)[1:] for want in self.wants]
            commits = [raw_oid for raw_oid, kind in peeled if kind == COMMIT]
            return not walk_commits(store, roots, commits, tick=tick)[0]
        except (ObjectMissing, PackError):
            return False


def write_selection(
    store: ObjectStore,
    selection: Selection,
    write: Callable[[bytes | memoryview], None],
    request: FetchRequest,
    tick: Callable[[int], None],
    *,
    thin: bool,
) -> PackStats:
    """Write the pack of a selection as the client can read it; see `write_pack`."""
    return write_pack(store, selection, write, thin=thin, ofs_delta=request.ofs_delta, tick=tick)


def without(selection: Selection, base: Base) -> Selection:
    """Take out what is in a base; deltas may be made against it."""
    objects: dict[bytes, int] = {}
    client_has = set(selection.client_has)
    for raw_oid, kind in selection.objects.items():
        if base.contains(raw_oid):
            client_has.add(raw_oid)
        else:
            objects[raw_oid] = kind
    packed = []
    for some in selection.packed:
        kept = bytearray(some.bits)
        for rank, raw_oid in _ranked(some):
            if base.contains(raw_oid):
                client_has.add(raw_oid)
                kept[rank >> 3] &= ~(1 << (rank & 7))
        packed.append(PackedObjects(some.pack, bytes(kept)))
    return replace(selection, objects=objects, client_has=client_has, packed=tuple(packed))


def _ranked(some: PackedObjects) -> Iterator[tuple[int, bytes]]:
    """Give place and raw oid of each."""
    _, positions = some.pack.by_offset()
    bits = map(int, bin(int.from_bytes(some.bits, "little"))[:1:-1])
    name_at = some.pack.name_at
    for rank, position in compress(enumerate(positions), bits):
        yield rank, name_at(position)


def _is_sparse(spec: FilterSpec) -> bool:
    """Whether a filter depends on what a name stands for at the moment."""
    return spec.kind == "sparse:oid" or any(map(_is_sparse, spec.parts))


def _only_grows(spec: FilterSpec) -> bool:
    """Whether a filter decides by an object's type and size alone, so that what it lets pass once, for some
    commits, it lets pass for all that lead to them.

    Not so with depths: a tree that the client has deep down may come to lie higher. And of types alone, the
    commits that are asked for by name are sent in any case.
    """
    if spec.kind == "combine":
        return all(map(_only_grows, spec.parts))
    return spec.kind in ("blob:none", "blob:limit") or (spec.kind == "tree" and spec.number == 0)


def _estimate(store: ObjectStore, count: int) -> int:
    """About how many bytes so many objects take: as those of the packs do on average."""
    packs = store.packs()
    objects = sum(pack.count for pack in packs)
    return sum(pack.end for pack in packs) * count // objects if objects else 0
