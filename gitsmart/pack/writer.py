"""A selection becomes a pack stream: stored entries are copied as they lie in their packs.

    objects --by pack, in offset order--> entries      (entrycopy.py, by the native module; else here:)
    entry  no delta, or its base lies as far back as before  -> copied verbatim, in runs
           base is sent, but lies elsewhere                  -> header of our own, same zlib stream
           base is sent from another pack, or client has it  -> REF_DELTA header, same zlib stream
           base is none of these, but a base of the base is  -> the deltas joined into one
           a version of it is sent already, or client has it -> delta against that, from stored deltas
           else                                              -> inflated, and deflated whole
    loose object                                             -> inflated and deflated, in pieces

Versions of a file or folder are deltas of each other in a pack, in some order: so of two versions that hang
together by deltas, either can be given as a delta of the other. That makes packs of fetches small.

No search for better deltas. Chains can't become circles: an entry keeps its base within its own pack, where
chains end, or takes one from a pack written before, or one written whole, or one that is not sent at all.
Format: gitformat-pack.
"""

import struct
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress

from gitsmart import native
from gitsmart.pack.delta import delta_sizes
from gitsmart.pack.deltajoin import invert_delta, join_deltas
from gitsmart.pack.entrycopy import LEVEL, EntryCopy, Sent
from gitsmart.pack.inflate import inflate
from gitsmart.pack.packfile import OFS_DELTA, REF_DELTA, PackFile
from gitsmart.pack.packstream import PIECE_BYTES, Output, entry_head, ofs_distance, ref_delta_head
from gitsmart.pack.select import Selection, Tick
from gitsmart.pack.store import LooseObject, ObjectStore

__all__ = ["PackStats", "write_pack"]

_TICK_EVERY = 1024
# So many deltas are joined into one at most: each costs some 50 us, and the whole object some 200.
_JOIN_MOST = 12
_RELATED_STEPS = 8
# To find relatives of what the client has, each such object is looked up, at some 6 us: not before this many
# bytes were sent whole for each.
_WHOLE_BYTES = 16
# Entries below are not worth a delta, and whole ones above too big to hold for one.
_RELATED_LEAST, _RELATED_MOST = 128, 1 << 20


@dataclass(frozen=True, slots=True)
class PackStats:
    """What was written."""

    objects: int
    copied: int
    """Objects whose stored zlib stream was sent."""
    deflated: int
    """Objects that had to be deflated anew."""
    bytes: int
    """Of the whole stream, header and trailer included."""
    copied_deltas: int
    """How many of `copied` are deltas; those in packs that were copied whole are not counted."""
    deflated_deltas: int
    """How many of `deflated` are deltas."""
    whole_packs: int
    """Packs that were copied whole."""
    in_whole_packs: int
    """How many of `copied` came with these."""


def write_pack(
    store: ObjectStore,
    selection: Selection,
    write: Callable[[bytes | memoryview], None],
    *,
    thin: bool,
    ofs_delta: bool,
    tick: Tick,
    on_size: Callable[[int], None] | None = None,
) -> PackStats:
    """Write a pack of exactly the selected objects, each once.

    `write` gets pieces of 1 MiB at most, which are views of mapped packs mostly, valid as long as they are
    held. Memory: 16 bytes an object that is sent, less where many follow each other, 8 for each object of the
    packs, 1 MiB, and an object that has to be deflated anew, and its base, while they are not loose.

    Args:
        thin: deltas against `selection.client_has` are allowed (gitprotocol-capabilities, "thin-pack").
        ofs_delta: OFS_DELTA entries are allowed ("ofs-delta").
        tick: called with the number of objects written so far.
        on_size: called before the first piece if the size of the whole stream, in bytes, is known by then:
        when all objects come in whole packs.

    Raises:
        ObjectMissing: an object is not there (any more). Part of the stream has been written then.
        PackError: a stored object is broken.
    """
    return _Writer(store, selection, write, thin=thin, ofs_delta=ofs_delta, tick=tick).run(on_size)


class _Writer:
    def __init__(
        self,
        store: ObjectStore,
        selection: Selection,
        write: Callable[[bytes | memoryview], None],
        *,
        thin: bool,
        ofs_delta: bool,
        tick: Tick,
    ) -> None:
        self._store = store
        self._selection = selection
        self._objects = selection.objects
        self._number_of_objects = len(selection)
        self._client_has: set[bytes] = selection.client_has if thin else set()
        self._client_has_packed = selection.client_has_packed if thin else ()
        self._ofs_delta = ofs_delta
        self._tick = tick
        self._out = Output(store.format, write)
        self._groups: list[tuple[PackFile, array[int]]] = []
        self._loose: dict[bytes, None] = {}
        self._written_groups = 0
        self._number = 0
        self._copied = 0
        self._deflated = 0
        self._copied_deltas = 0
        self._deflated_deltas = 0
        self._whole_packs = 0
        self._in_whole_packs = 0
        # Clones are sent as they lie: their entries' bases are sent with them.
        self._relating = bool(selection.client_has)
        self._whole_bytes = 0
        self._relatives: _Relatives | None = None

    def run(self, on_size: Callable[[int], None] | None) -> PackStats:
        out = self._out
        sent = self._find_entries() if native.available else []
        if not native.available:
            self._place()
            sizes = [(pack, len(offsets)) for pack, offsets in self._groups]
        else:
            sizes = [(some.pack, some.count) for some in sent]
        whole = [self._ofs_delta and count == pack.count for pack, count in sizes]
        if on_size is not None and all(whole) and not self._loose:
            on_size(12 + sum(pack.end - 12 for pack, _ in sizes) + self._store.format.raw_len)
        out.add(struct.pack(">4sII", b"PACK", 2, self._number_of_objects))
        copy: EntryCopy | None = None
        for number, (pack, count) in enumerate(sizes):
            if whole[number] and count:
                # All of a pack, which is self-contained.
                self._copy_whole(pack)
            elif sent:
                if count:
                    if copy is None:
                        copy = EntryCopy(
                            sent,
                            out,
                            self._is_in_reach,
                            thin=bool(self._client_has or self._client_has_packed),
                            ofs_delta=self._ofs_delta,
                            count=self._count,
                        )
                    copy.copy(number)
            else:
                self._copy(*self._groups[number])
            self._written_groups += 1
        for raw_oid in self._loose:
            self._deflate_loose(raw_oid)
        out.finish()
        if copy is not None:
            self._copied += copy.copied
            self._copied_deltas += copy.copied_deltas
            self._deflated += copy.rebuilt
            self._deflated_deltas += copy.rebuilt_deltas
        assert self._copied + self._deflated == self._number_of_objects
        return PackStats(
            self._number_of_objects,
            self._copied,
            self._deflated,
            out.position,
            self._copied_deltas,
            self._deflated_deltas,
            self._whole_packs,
            self._in_whole_packs,
        )

    # -- where everything is

    def _find_entries(self) -> list[Sent]:
        """Find where each object is to be taken from, as bits by pack; the rest is `_loose`."""
        sent: dict[int, Sent] = {}

        def of(pack: PackFile) -> Sent:
            some = sent.get(pack.serial)
            if some is None:
                some = sent[pack.serial] = Sent(pack, b"", b"", 0)
            return some

        for packed in self._selection.packed:
            some = of(packed.pack)
            some.send = _united(some.send, packed.bits)
        found, missing = self._store.locate_all(self._objects)
        for pack, bits in found:
            some = of(pack)
            some.send = _united(some.send, bits)
        self._loose = dict.fromkeys(missing)
        for packed in self._client_has_packed:
            some = of(packed.pack)
            some.has = _united(some.has, packed.bits)
        if self._client_has:
            raw_oids = b"".join(self._client_has)
            for some in sent.values():
                marked = bytearray((some.pack.count + 7) // 8)
                some.pack.entries().mark(raw_oids, marked)
                some.has = _united(some.has, marked)
        for some in sent.values():
            some.count = int.from_bytes(some.send, "little").bit_count()
        return sorted(sent.values(), key=lambda some: some.count, reverse=True)

    def _is_in_reach(self, raw_oid: bytes) -> bool:
        """Tell whether an object that is in none of the packs that are sent from may be a base."""
        return raw_oid in self._loose or (raw_oid in self._client_has and raw_oid not in self._objects)

    def _place(self) -> None:
        """As `_find_entries`, in Python: `_groups`, by pack, as offsets; the rest is `_loose`."""
        packs = self._store.packs()
        objects = self._objects
        packed = self._selection.packed
        if len(packs) == 1 and len(objects) * 8 > packs[0].count and not packed:
            positions = packs[0].positions_in(objects)
            if len(positions) == len(objects):
                self._groups = [(packs[0], array("Q", sorted(map(packs[0].offset_at, positions))))]
                return
        groups: dict[int, tuple[PackFile, array[int]]] = {}
        for some in packed:
            pack = some.pack
            at = groups.setdefault(pack.serial, (pack, array("Q")))[1]
            at.extend(compress(pack.by_offset()[0], _each_bit(some.bits)))
        locate = self._store.locate
        for raw_oid in objects:
            place = locate(raw_oid)
            if place is None:
                self._loose[raw_oid] = None
                continue
            pack, offset = place
            group = groups.get(pack.serial)
            if group is None:
                groups[pack.serial] = (pack, array("Q", (offset,)))
            else:
                group[1].append(offset)
        self._groups = [(pack, array("Q", sorted(offsets))) for pack, offsets in groups.values()]
        self._groups.sort(key=lambda group: len(group[1]), reverse=True)

    def _count(self, number: int = 1) -> None:
        before = self._number
        self._number += number
        if before // _TICK_EVERY != self._number // _TICK_EVERY:
            self._tick(self._number)

    # -- objects in packs

    def _copy_whole(self, pack: PackFile) -> None:
        for start in range(12, pack.end, PIECE_BYTES):
            self._out.add(pack.data[start : min(start + PIECE_BYTES, pack.end)])
            self._tick(self._number)
        self._copied += pack.count
        self._number += pack.count
        self._whole_packs += 1
        self._in_whole_packs += pack.count

    def _copy(self, pack: PackFile, offsets: "array[int]") -> None:
        out = self._out
        data = pack.data
        entry, next_offset = pack.entry, pack.next_offset
        # Where the entries went: for the i-th of `offsets`, how far it moved.
        moved = array("q", bytes(8 * len(offsets)))
        self._relatives = None
        relating = self._relating
        run_start = run_stop = 0
        here = out.position
        for index, offset in enumerate(offsets):
            self._number += 1
            if not self._number % _TICK_EVERY:
                self._tick(self._number)
            stop = next_offset(offset)
            kind, size, base, start = entry(offset)
            move = here - offset
            moved[index] = move
            head = None
            if kind >= OFS_DELTA:
                if kind == REF_DELTA:
                    base = pack.base_offset(kind, base, start)
                at = bisect_left(offsets, base)
                if at < len(offsets) and offsets[at] == base:
                    if at > index:
                        # What comes later must keep its base then, or there might be a circle.
                        self._relatives, relating = None, False
                    if kind == OFS_DELTA:
                        if not self._ofs_delta:
                            head = ref_delta_head(size, pack.oid_at(base))
                        elif moved[at] != move:
                            head = entry_head(OFS_DELTA, size) + ofs_distance(here - base - moved[at])
                else:
                    base_oid = pack.oid_at(base)
                    if not self._may_refer_to(base_oid):
                        if run_stop:
                            out.add(data[run_start:run_stop])
                            run_stop = 0
                        if not self._rebuild(pack, offset, offsets, moved, relating=relating):
                            relating = False
                        here = out.position
                        continue
                    if kind == OFS_DELTA:
                        head = ref_delta_head(size, base_oid)
            elif relating and stop - offset >= _RELATED_LEAST and size <= _RELATED_MOST:
                if run_stop:
                    out.add(data[run_start:run_stop])
                    run_stop = 0
                related = self._related(pack, offset, offsets, moved, index, stop - offset)
                if related is not None:
                    out.add(related)
                    here = out.position
                    self._deflated += 1
                    self._deflated_deltas += 1
                    self._note_base(offset)
                    continue
            self._note_base(offset)
            self._copied += 1
            if kind >= OFS_DELTA:
                self._copied_deltas += 1
            if head is None:
                if run_stop != offset:
                    if run_stop:
                        out.add(data[run_start:run_stop])
                    run_start = offset
                run_stop = stop
                here += stop - offset
                continue
            if run_stop:
                out.add(data[run_start:run_stop])
                run_stop = 0
            out.add(head)
            out.add(data[start:stop])
            here = out.position
        if run_stop:
            out.add(data[run_start:run_stop])

    def _may_refer_to(self, raw_oid: bytes) -> bool:
        """Tell whether an object outside of the pack being copied may be a base."""
        if raw_oid in self._loose:
            return True
        for number, (pack, offsets) in enumerate(self._groups):
            offset = pack.offset_of(raw_oid)
            if offset is not None:
                at = bisect_left(offsets, offset)
                if at < len(offsets) and offsets[at] == offset:
                    return number < self._written_groups
        if raw_oid in self._client_has:
            return True
        for some in self._client_has_packed:
            offset = some.pack.offset_of(raw_oid)
            if offset is not None:
                rank = some.pack.rank_of(offset)
                if rank >> 3 < len(some.bits) and some.bits[rank >> 3] >> (rank & 7) & 1:
                    return True
        return False

    def _rebuild(
        self, pack: PackFile, offset: int, offsets: "array[int]", moved: "array[int]", *, relating: bool
    ) -> bool:
        """Send an object whose base is out of reach: as a delta of another one, or whole.

        Returns whether what comes later in this pack may still get other bases than it is stored with.
        """
        self._deflated += 1
        index = bisect_left(offsets, offset)
        entry, backward = self._joined(pack, offset, offsets, moved)
        if entry is None and relating:
            entry = self._related(pack, offset, offsets, moved, index, _RELATED_LEAST)
        if entry is None:
            kind, data = pack.read_at(offset)
            entry = entry_head(kind, len(data)) + zlib.compress(data, LEVEL)
            self._whole_bytes += len(entry)
        else:
            self._deflated_deltas += 1
        self._out.add(entry)
        if not backward:
            self._relatives = None
        self._note_base(offset)
        return backward

    def _note_base(self, offset: int) -> None:
        """Note an entry of the pack being copied that has been written."""
        if self._relatives is not None:
            self._relatives.add(offset)

    def _joined(
        self, pack: PackFile, offset: int, offsets: "array[int]", moved: "array[int]"
    ) -> tuple[bytes | None, bool]:
        """Make a delta of the nearest base in the chain that is in reach; None when it isn't worth it.

        Also returns whether that base has been written before, or is not of this pack.
        """
        joined = b""
        at = offset
        for _ in range(_JOIN_MOST):
            kind, size, base, start = pack.entry(at)
            if kind < OFS_DELTA:
                break
            delta, _ = inflate(pack.data, start, size)
            joined = join_deltas(delta, joined) if joined else delta
            if 2 * len(joined) > delta_sizes(joined)[1]:
                break
            at = pack.base_offset(kind, base, start)
            index = bisect_left(offsets, at)
            here = index < len(offsets) and offsets[index] == at
            if here or self._may_refer_to(pack.oid_at(at)):
                backward = not here or at < offset
                return self._delta_entry(pack, at, joined, offsets, moved, before=offset), backward
        return None, True

    def _delta_entry(
        self,
        pack: PackFile,
        base: int,
        delta: bytes,
        offsets: "array[int]",
        moved: "array[int]",
        *,
        before: int,
    ) -> bytes:
        """Encode a delta against the entry at `base`, by OFS_DELTA if that is among `offsets` and before
        `before`."""
        deflated = zlib.compress(delta, LEVEL)
        if self._ofs_delta and base < before:
            index = bisect_left(offsets, base)
            if index < len(offsets) and offsets[index] == base:
                distance = self._out.position - base - moved[index]
                return entry_head(OFS_DELTA, len(delta)) + ofs_distance(distance) + deflated
        return ref_delta_head(len(delta), pack.oid_at(base)) + deflated

    def _related(
        self,
        pack: PackFile,
        offset: int,
        offsets: "array[int]",
        moved: "array[int]",
        index: int,
        whole_bytes: int,
    ) -> bytes | None:
        """Make a delta against a version of the object that was sent before, or that the client has."""
        if self._relatives is None:
            self._whole_bytes += whole_bytes
            if self._whole_bytes < _WHOLE_BYTES * len(self._client_has):
                return None
            self._relatives = _Relatives(pack)
            for raw_oid in self._client_has:
                known = pack.offset_of(raw_oid)
                if known is not None and raw_oid not in self._objects:
                    self._relatives.add(known)
            for written in offsets[:index]:
                self._relatives.add(written)
        found = self._relatives.find(offset)
        if found is None:
            return None
        relative, delta = found
        return self._delta_entry(pack, relative, delta, offsets, moved, before=offset)

    # -- objects in no pack

    def _deflate_loose(self, raw_oid: bytes) -> None:
        self._count()
        self._deflated += 1
        out = self._out
        loose = self._store.open_loose(raw_oid)
        if loose is None:
            # git has packed it meanwhile, or it is gone.
            kind, data = self._store.read(raw_oid)
            out.add(entry_head(kind, len(data)) + zlib.compress(data, LEVEL))
            return
        with loose:
            self._deflate(loose)

    def _deflate(self, loose: LooseObject) -> None:
        out = self._out
        deflater = zlib.compressobj(LEVEL)
        out.add(entry_head(loose.type, loose.size))
        for piece in loose.pieces():
            deflated = deflater.compress(piece)
            if deflated:
                out.add(deflated)
        out.add(deflater.flush())


def _united(bits: bytes | bytearray, more: bytes | bytearray) -> bytes | bytearray:
    if not bits:
        return more
    size = max(len(bits), len(more))
    either = int.from_bytes(bits, "little") | int.from_bytes(more, "little")
    return either.to_bytes(size, "little")


def _each_bit(bits: bytes) -> bytes:
    """Return a byte, 0 or 1, for each bit."""
    return b"".join([_SPREAD[byte] for byte in bits])


_SPREAD = [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]


class _Relatives:
    """Which objects of a pack hang together by deltas with some that may be bases.

    90 bytes of memory for each entry between.
    """

    def __init__(self, pack: PackFile) -> None:
        self._pack = pack
        # Offset of an entry -> how many deltas away the nearest of them is, going from base to delta; and
        # where it is
        self._near: dict[int, tuple[int, int]] = {}

    def add(self, offset: int) -> None:
        """Let the entry at `offset` be a base."""
        near, pack = self._near, self._pack
        at = offset
        for steps in range(_RELATED_STEPS):
            had = near.get(at)
            if had is not None and had[0] <= steps:
                return
            near[at] = (steps, offset)
            kind, _, base, start = pack.entry(at)
            if kind < OFS_DELTA:
                return
            at = pack.base_offset(kind, base, start)

    def find(self, offset: int) -> tuple[int, bytes] | None:
        """Return the nearest base for the entry at `offset`, and a delta; None when there is none that is
        worth it."""
        pack = self._pack
        best: tuple[int, int] | None = None
        fewest = _RELATED_STEPS
        at = offset
        chain: list[int] = []
        for steps in range(_RELATED_STEPS):
            had = self._near.get(at)
            if had is not None and steps + had[0] < fewest:
                fewest, best = steps + had[0], (steps, had[1])
            if steps >= fewest:
                break
            kind, _, base, start = pack.entry(at)
            if kind < OFS_DELTA:
                break
            chain.append(at)
            at = pack.base_offset(kind, base, start)
        if best is None:
            return None
        steps, relative = best
        upward = b""
        common = offset
        for at in chain[:steps]:
            upward, common = self._joined(at, upward)
            if 5 * len(upward) > delta_sizes(upward)[1]:
                return None
        downward = b""
        at = relative
        while at != common:
            downward, at = self._joined(at, downward)
            if 5 * len(downward) > delta_sizes(downward)[1]:
                return None
        delta = upward
        if downward:
            delta = invert_delta(downward, pack.read_at(common, limit_bytes=_RELATED_MOST)[1])
            if upward:
                delta = join_deltas(delta, upward)
        # Not with itself: that would be no delta at all.
        if not delta or 2 * len(delta) > delta_sizes(delta)[1]:
            return None
        return relative, delta

    def _joined(self, at: int, following: bytes) -> tuple[bytes, int]:
        """Put the delta at `at` before `following`; return both as one, and where its base is."""
        kind, size, base, start = self._pack.entry(at)
        delta, _ = inflate(self._pack.data, start, size)
        return (join_deltas(delta, following) if following else delta), self._pack.base_offset(
            kind, base, start
        )
