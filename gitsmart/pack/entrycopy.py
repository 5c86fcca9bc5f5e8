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

import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gitsmart.errors import LimitExceeded, PackError
from gitsmart.native import delta as native_delta
from gitsmart.native.entries import ASK, DONE, ORPHAN, RUN, Copier, Malformed, Part
from gitsmart.pack.packfile import OFS_DELTA, PackFile
from gitsmart.pack.packstream import Output, entry_head, ref_delta_head

__all__ = ["LEVEL", "EntryCopy", "Sent"]

LEVEL = 1
"""What is deflated anew. Level 1 costs a third of 6, for some 10% more bytes."""

_PIECE_BYTES = 256 << 10
# So many relatives are tried, the second only if the first gives no delta that is so many times shorter.
_TRIES = 2
_GOOD = 16
# Larger objects are not held twice over for a delta.
_REBUILD_MOST = 8 << 20
# Entries of fewer bytes are sent as they are stored, if they can be.
_LARGE = 512
# What looking for better deltas may cost: CPU seconds for each object that is sent, more for the first ones,
# and so many in all. git with bitmaps, which looks for none here, takes 20 ms and 6 us an object; copying one
# takes 1 us. What was found is remembered: a repository's fetches shrink until their large deltas are known.
# (benchmarks/fetch.py)
_SEARCH_S = 0.15
_SEARCH_OBJECT_S = 2e-6
_SEARCH_FIRST_S, _SEARCH_FIRST = 400e-6, 20
# What one costs, about: seconds once, and for each byte of the stored entry.
_DELTA_S = 60e-6
_DELTA_BYTE_S = 20e-9


class _DeltaCache:
    """Deltas that were made lately, deflated: the newest versions of files are fetched again and again.

    Least recently used ones go first. Thread-safe.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        # (serial of the pack, rank) -> rank of the base, size, deflated delta. None: there is no good one.
        self._entries: OrderedDict[tuple[int, int], tuple[int, int, bytes] | None] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> "tuple[int, int, bytes] | tuple[()] | None":
        """Return what is known: None if nothing is, () if there is no good delta."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key] or ()

    def put(self, key: tuple[int, int], delta: tuple[int, int, bytes] | None) -> None:
        """Keep one, dropping others for it."""
        with self._lock:
            entries = self._entries
            self._held_bytes += _cost(delta) - (_cost(entries[key]) if key in entries else 0)
            entries[key] = delta
            entries.move_to_end(key)
            while self._held_bytes > self._limit_bytes:
                _, dropped = entries.popitem(last=False)
                self._held_bytes -= _cost(dropped)


def _cost(delta: tuple[int, int, bytes] | None) -> int:
    return 300 + (len(delta[2]) if delta else 0)


# One for the process.
_DELTAS = _DeltaCache(16 << 20)


@dataclass(slots=True)
class Sent:
    """What is sent of one pack, and what the client has of it: bits by rank (see select.PackedObjects)."""

    pack: PackFile
    send: bytes | bytearray
    has: bytes | bytearray
    count: int


class EntryCopy:
    """Copies the sent entries of several packs, one pack after the other, in their order."""

    def __init__(
        self,
        sent: Sequence[Sent],
        out: Output,
        also_in_reach: Callable[[bytes], bool],
        *,
        thin: bool,
        ofs_delta: bool,
        count: Callable[[int], None],
    ) -> None:
        """Prepare it.

        Args:
            thin: the client has something: it pays to look for better deltas.
            also_in_reach: whether an object that is in none of the packs may be a base.
            count: told how many more objects were written; may raise.
        """
        self._sent = sent
        self._out = out
        self._also_in_reach = also_in_reach
        self._thin = thin
        self._left_s = 0.0
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
            if self._thin:
                self._look_for_large(part)
            while True:
                why, piece = copier.fill(_PIECE_BYTES)
                if piece:
                    out.add(piece)
                self._count(state.copied - counted)
                counted = state.copied
                if why == RUN:
                    start, stop = copier.run()
                    out.add(pack.data[start:stop])
                elif why == ORPHAN:
                    start = out.position
                    self._write_otherwise(part, state.rank)
                    copier.wrote(out.position - start)
                    self._count(1)
                elif why == ASK:
                    entry = self._better(part, state.rank)
                    if entry is None:
                        copier.keep()
                    else:
                        out.add(entry)
                        copier.wrote(len(entry))
                        self._count(1)
                elif why == DONE:
                    break
        except Malformed as error:
            raise PackError(str(error)) from None
        self.copied += state.copied - before
        self.copied_deltas += state.deltas - deltas

    # -- what can be sent smaller than it is stored

    def _look_for_large(self, part: int) -> None:
        """Have the copier ask about the largest entries: as many as better deltas may be looked for, and all
        whose deltas are known."""
        some = self._sent[part]
        search_s = _SEARCH_FIRST_S * min(some.count, _SEARCH_FIRST) + _SEARCH_OBJECT_S * some.count
        self._left_s += min(search_s, _SEARCH_S)
        left_s = self._left_s
        asks: list[int] = []
        # Half of them may have no good delta, or one that is known.
        most = 16 + int(2 * left_s / _DELTA_S)
        for size, rank in sorted(self._copier.large_entries(_LARGE, most), reverse=True):
            if _DELTAS.get((some.pack.serial, rank)) is None:
                left_s -= _DELTA_S + _DELTA_BYTE_S * size
                if left_s < 0:
                    continue
            asks.append(rank)
        if asks:
            self._copier.ask(asks)

    def _better(self, part: int, rank: int) -> bytes | None:
        """Make an entry that is smaller than the stored one; None if there is none, or it would cost too
        much."""
        pack = self._sent[part].pack
        offsets = pack.entries().offsets
        stored = (offsets[rank + 1] if rank + 1 < len(offsets) else pack.end) - offsets[rank]
        began_s = time.thread_time()
        delta = self._known_delta(pack, rank)
        if delta is None and self._left_s > 0:
            delta = self._new_delta(pack, rank)
        self._left_s -= time.thread_time() - began_s
        if not delta:
            return None
        base_rank, size, deflated = delta
        head = ref_delta_head(size, pack.name_at(pack.entries().order[base_rank]))
        if len(head) + len(deflated) >= stored:
            return None
        self.rebuilt += 1
        self.rebuilt_deltas += 1
        return head + deflated

    # -- what can't be copied

    def _write_otherwise(self, part: int, rank: int) -> None:
        pack = self._sent[part].pack
        offsets = pack.entries().offsets
        offset = offsets[rank]
        kind, size, base, start = pack.entry(offset)
        if kind >= OFS_DELTA:
            base_oid = pack.name_at(
                pack.entries().order[pack.entries().rank_of(pack.base_offset(kind, base, start))]
            )
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
        self.rebuilt += 1
        delta = self._known_delta(pack, rank)
        if delta is None:
            delta = self._new_delta(pack, rank)
        if not delta:
            kind, data = pack.read_at(pack.entries().offsets[rank])
            return entry_head(kind, len(data)) + zlib.compress(data, LEVEL)
        self.rebuilt_deltas += 1
        base_rank, size, deflated = delta
        return ref_delta_head(size, pack.name_at(pack.entries().order[base_rank])) + deflated

    def _known_delta(self, pack: PackFile, rank: int) -> "tuple[int, int, bytes] | tuple[()] | None":
        """Return a delta that was made before, if its base may be one now."""
        known = _DELTAS.get((pack.serial, rank))
        return known if not known or self._copier.may_refer_to(known[0]) else None

    def _new_delta(self, pack: PackFile, rank: int) -> "tuple[int, int, bytes] | tuple[()]":
        """Make a delta of the object at `rank`: rank of the base, size, deflated delta; () if there is no
        good one."""
        offsets = pack.entries().offsets
        best: bytes | None = None
        best_base = 0
        try:
            for base_rank in self._copier.relatives(_TRIES):
                # The base first: the other one is mostly on the way to it, and in the cache then.
                base_kind, base = pack.read_at(offsets[base_rank], limit_bytes=_REBUILD_MOST)
                kind, data = pack.read_at(offsets[rank], limit_bytes=_REBUILD_MOST)
                if base_kind != kind:
                    raise PackError("a delta is of another type than its base")
                delta = native_delta.make(base, data, len(data) // 2 if best is None else len(best) - 1)
                if delta is not None:
                    best, best_base = delta, base_rank
                    if _GOOD * len(delta) < len(data):
                        break
        except LimitExceeded:
            pass
        made = None if best is None else (best_base, len(best), zlib.compress(best, LEVEL))
        _DELTAS.put((pack.serial, rank), made)
        return made or ()
