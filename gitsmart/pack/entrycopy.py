"""Stored entries of packs copied into a stream by the native module; what can't be copied gets a new delta.

    parts: packs, what is sent of each and what the client has of it, as bits by rank
    gs_copy --pieces--> out        runs of 64 KiB and more: views of the mapped pack instead
       `--orphan: its base is neither sent before nor the client's--> a delta against a relative, or whole

Relatives are objects that hang together with it by stored deltas: versions of one file, mostly. git writes
them side by side, so they are looked for among the entries around. What is rebuilt becomes a REF_DELTA of
something that the client has, or that was sent before; it can't be that circles come about: of all bases only
those that are stored so come later, and from the first one of these on, only the client's objects are taken.

writer.py has the same in Python, for when there is no native module.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gitsmart.errors import LimitExceeded, PackError
from gitsmart.native import delta as native_delta
from gitsmart.native.entries import DONE, ORPHAN, RUN, WHOLE, Copier, Part
from gitsmart.pack.packfile import OFS_DELTA, PackFile
from gitsmart.pack.packstream import Output, entry_head, ref_delta_head

__all__ = ["LEVEL", "EntryCopy", "Sent"]

LEVEL = 1
"""What is deflated anew. Level 1 costs a third of 6, for some 10% more bytes."""

_PIECE_BYTES = 256 << 10
# A base of a base is as good as one that many deltas away.
_CHAIN = 12
# So many entries on either side are looked at for relatives, and so many of those tried.
_AROUND = 48
_TRIES = 2
# Larger objects are not held twice over for a delta.
_REBUILD_MOST = 8 << 20


@dataclass(slots=True)
class Sent:
    """What is sent of one pack, and what the client has of it: bits by rank (see select.PackedObjects)."""

    pack: PackFile
    send: bytes | bytearray
    has: bytes | bytearray
    count: int

    def sends(self, rank: int) -> bool:
        """Tell whether the entry is sent."""
        return rank >> 3 < len(self.send) and bool(self.send[rank >> 3] >> (rank & 7) & 1)

    def client_has(self, rank: int) -> bool:
        """Tell whether the client is known to have it."""
        return rank >> 3 < len(self.has) and bool(self.has[rank >> 3] >> (rank & 7) & 1)


class EntryCopy:
    """Copies the sent entries of several packs, one pack after the other, in their order."""

    def __init__(
        self,
        sent: Sequence[Sent],
        out: Output,
        also_in_reach: Callable[[bytes], bool],
        *,
        ofs_delta: bool,
        count: Callable[[int], None],
    ) -> None:
        """Prepare it.

        Args:
            also_in_reach: whether an object that is in none of the packs may be a base.
            count: told how many more objects were written; may raise.
        """
        self._sent = sent
        self._out = out
        self._also_in_reach = also_in_reach
        self._count = count
        parts = [Part(some.pack.entries(), some.send, some.has) for some in sent]
        self._copier = Copier(parts, out.position, ofs_delta=ofs_delta)
        self.copied = 0
        self.copied_deltas = 0
        self.rebuilt = 0
        self.rebuilt_deltas = 0

    def copy(self, part: int) -> None:
        """Write the entries of one part. Parts before it have been written, those behind it have not.

        Raises:
            PackError: the pack, or an object that is rebuilt, is malformed.
        """
        copier, out = self._copier, self._out
        state = copier.state
        state.here = out.position
        copier.begin(part)
        pack = self._sent[part].pack
        before, deltas = state.copied, state.deltas
        counted = before
        try:
            while True:
                why, piece = copier.fill(_PIECE_BYTES)
                if piece:
                    out.add(piece)
                self._count(state.copied - counted)
                counted = state.copied
                if why == RUN:
                    start, stop = copier.run()
                    out.add(pack.data[start:stop])
                elif why in (ORPHAN, WHOLE):
                    start = out.position
                    self._write_otherwise(part, state.rank)
                    copier.wrote(out.position - start)
                    self._count(1)
                elif why == DONE:
                    break
        except ValueError as error:
            raise PackError(str(error)) from None
        self.copied += state.copied - before
        self.copied_deltas += state.deltas - deltas

    # -- what can't be copied

    def _write_otherwise(self, part: int, rank: int) -> None:
        pack = self._sent[part].pack
        offsets = pack.entries().offsets
        offset = offsets[rank]
        kind, size, base, start = pack.entry(offset)
        if kind >= OFS_DELTA:
            base_oid = pack.oid_at(pack.base_offset(kind, base, start))
            if self._also_in_reach(base_oid):
                stop = offsets[rank + 1] if rank + 1 < len(offsets) else pack.end
                self._out.add(ref_delta_head(size, base_oid))
                self._out.add(pack.data[start:stop])
                self.copied += 1
                self.copied_deltas += 1
                return
        self._out.add(self._rebuilt_entry(part, rank))

    def _rebuilt_entry(self, part: int, rank: int) -> bytes:
        pack = self._sent[part].pack
        offset = pack.entries().offsets[rank]
        self.rebuilt += 1
        kind, data = pack.read_at(offset)
        best: bytes | None = None
        best_base = b""
        if len(data) <= _REBUILD_MOST:
            most = len(data) // 2
            for base_oid, base_rank in self._bases(part, rank):
                delta = self._delta(pack, base_rank, base_oid, kind, data, most)
                if delta is not None:
                    best, best_base, most = delta, base_oid, len(delta) - 1
        if best is None:
            return entry_head(kind, len(data)) + zlib.compress(data, LEVEL)
        self.rebuilt_deltas += 1
        return ref_delta_head(len(best), best_base) + zlib.compress(best, LEVEL)

    def _delta(
        self, pack: PackFile, base_rank: int, base_oid: bytes, kind: int, data: bytes, most: int
    ) -> bytes | None:
        try:
            base_kind, base = pack.read_at(pack.entries().offsets[base_rank], limit_bytes=_REBUILD_MOST)
        except LimitExceeded:
            return None
        if base_kind != kind:
            raise PackError("a delta is of another type than its base")
        return native_delta.make(base, data, most)

    def _bases(self, part: int, rank: int) -> list[tuple[bytes, int]]:
        """Return objects that may be the base of the entry at `rank`, most promising first: oid and rank."""
        pack = self._sent[part].pack
        entries = pack.entries()
        offsets, count = entries.offsets, entries.count
        entry = pack.entry
        # How many deltas away from it: its bases, then whatever is a delta of these.
        away = {offsets[rank]: 0}
        found: list[tuple[int, int, bytes, int]] = []
        at = offsets[rank]
        for steps in range(1, _CHAIN + 1):
            kind, _, base, start = entry(at)
            if kind < OFS_DELTA:
                break
            at = pack.base_offset(kind, base, start)
            if at in away:
                raise PackError("a delta chain runs in a circle")
            away[at] = steps
            base_rank = entries.rank_of(at)
            base_oid = pack.name_at(entries.order[base_rank])
            if self._may_refer_to(part, rank, base_rank, base_oid):
                found.append((steps, 0, base_oid, base_rank))
                break
        for other in range(max(0, rank - _AROUND), min(count, rank + _AROUND)):
            at = offsets[other]
            if at in away:
                continue
            kind, _, base, start = entry(at)
            if kind < OFS_DELTA:
                continue
            steps = away.get(pack.base_offset(kind, base, start), -1) + 1
            if not steps:
                continue
            away[at] = steps
            oid = pack.name_at(entries.order[other])
            if self._may_refer_to(part, rank, other, oid):
                found.append((steps, abs(other - rank), oid, other))
        found.sort()
        return [(oid, base_rank) for _, _, oid, base_rank in found[:_TRIES]]

    def _may_refer_to(self, part: int, rank: int, base_rank: int, base_oid: bytes) -> bool:
        """Tell whether an object of the same pack may be a base of the entry at `rank`."""
        own = self._sent[part]
        if own.sends(base_rank):
            return base_rank < rank and not self._copier.state.forward
        if own.client_has(base_rank):
            return True
        for number, some in enumerate(self._sent):
            if number != part:
                offset = some.pack.offset_of(base_oid)
                if offset is not None:
                    other = some.pack.rank_of(offset)
                    if some.sends(other):
                        return number < part
                    if some.client_has(other):
                        return True
        return self._also_in_reach(base_oid)
