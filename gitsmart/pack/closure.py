"""May a pack be sent whole? Only if it holds all that its objects refer to, and nothing that no tip leads to.

    objects that no object of the pack refers to: its roots
    every reference stays within the pack: it is closed
    closed, all roots among the tips, all tips in it: it is what the tips reach, no more and no less

For references can't run in a circle, so that each object has a root above it. No walk is needed: commits,
trees and tags are read in the order in which they lie, and what they refer to is ticked off. That takes less
time than git takes to enumerate the objects once, and is not done twice: the roots are kept in a small file.

    <objects>/info/gitsmart/pack-<name>.roots         made at the first clone, removed when the pack is gone
    "GSRT" version(1) raw_len(1) closed(1) 0 objects(4) roots(4) pack-checksum *raw-oid checksum

It says nothing of refs, so it holds whatever they do. A file that is broken, or of another pack, is no file.
A pack whose trees name objects as what they are not (an entry says blob, and it is a tree) counts as not
closed.
"""

import logging
import struct
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gitsmart import native
from gitsmart.errors import PackError
from gitsmart.native.reach import BrokenError
from gitsmart.pack.objects import BLOB, COMMIT, TREE, parse_commit, parse_tag, tree_references
from gitsmart.pack.packfile import PackFile
from gitsmart.pack.packmap import PackMap
from gitsmart.pack.packnote import note_path, write_note

__all__ = ["Roots", "pack_roots", "stored_roots", "verdict"]

_logger = logging.getLogger(__name__)

_HEAD = struct.Struct(">4sBBBxII")
# A pack with more has nothing to do with what refs lead to, mostly: not worth the file, nor the look.
_ROOTS_MOST = 200_000
_SLICE = 4096
_WAIT_S = 0.5

Tick = Callable[[int], None]


def _no_tick(number: int) -> None:
    """Nobody waits."""


@dataclass(frozen=True, slots=True)
class Roots:
    """What is known of a pack."""

    is_closed: bool
    """Whether all that its objects refer to is in it (and `roots` is complete)."""
    roots: frozenset[bytes]
    """Raw oids that no other object of the pack refers to; none when it is not closed."""


_known: "weakref.WeakKeyDictionary[PackFile, Roots]" = weakref.WeakKeyDictionary()
_under_way: "weakref.WeakKeyDictionary[PackFile, threading.Lock]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def verdict(pack: PackFile, tips: Iterable[bytes], *, tick: Tick = _no_tick) -> bool:
    """Say whether `pack` holds nothing but what `tips`, raw oids, reach, and all of that.

    Tips are what refs hold: of an annotated tag its own oid. Takes some 5 us an object the first time that a
    pack is asked for, and other callers for the same pack wait; nothing to speak of ever after.

    Raises: what `tick` raises.
    """
    found = pack_roots(pack, tick=tick)
    if not found.is_closed:
        return False
    wanted = set(tips)
    return found.roots <= wanted and all(raw_oid in pack for raw_oid in wanted)


def stored_roots(pack: PackFile) -> Roots | None:
    """Return what is known of a pack without any work; None when nothing is."""
    found = _known.get(pack)
    if found is None:
        found = _read(pack)
        if found is not None:
            with _lock:
                _known[pack] = found
    return found


def pack_roots(pack: PackFile, *, tick: Tick = _no_tick) -> Roots:
    """Return what `verdict` goes by.

    Raises: what `tick` raises.
    """
    found = stored_roots(pack)
    if found is not None:
        return found
    with _lock:
        lock = _under_way.setdefault(pack, threading.Lock())
    while not lock.acquire(timeout=_WAIT_S):
        tick(0)
    try:
        found = _known.get(pack)
        if found is None:
            try:
                found = _find(pack, tick)
            except (PackError, BrokenError) as error:
                _logger.warning("%s can't be read through: %s", pack.path, error)
                found = Roots(False, frozenset())
            with _lock:
                _known[pack] = found
            write_note(pack.path, "roots", (_format(found, pack),))
        return found
    finally:
        lock.release()


def _find(pack: PackFile, tick: Tick) -> Roots:
    if not pack.count:
        return Roots(True, frozenset())
    if native.available:
        referred = _referred(pack, tick)
    else:
        referred = _referred_slowly(pack, tick)
    if referred is None:
        return Roots(False, frozenset())
    left = ~int.from_bytes(referred, "little") & ((1 << pack.count) - 1)
    if left.bit_count() > _ROOTS_MOST:
        return Roots(False, frozenset())
    names = PackMap((pack,), pack.format.raw_len).names(left.to_bytes((pack.count + 7) // 8, "little"))
    return Roots(True, frozenset(names))


def _referred(pack: PackFile, tick: Tick) -> bytes | None:
    """Return the bits of all that is referred to; None when something is not in the pack."""
    whole = PackMap((pack,), pack.format.raw_len)
    whole.know_types()
    walk = whole.walk()
    rank = 0
    while rank < pack.count:
        rank = walk.pack(rank, _SLICE)
        if walk.missing():
            return None
        tick(rank)
    return walk.bits() if walk.trees_match() else None


def _referred_slowly(pack: PackFile, tick: Tick) -> bytes | None:
    fmt = pack.format
    referred: dict[bytes, int] = {}
    offsets, positions = pack.by_offset()
    for number, offset in enumerate(offsets):
        if not number % _SLICE:
            tick(number)
        kind = pack.type_at(offset)
        if kind == BLOB:
            continue
        _, data = pack.read_at(offset)
        found: dict[bytes, int] = {}
        if kind == TREE:
            trees, blobs = tree_references(data, fmt.raw_len)
            found.update(dict.fromkeys(trees, TREE))
            found.update(dict.fromkeys(blobs, BLOB))
        elif kind == COMMIT:
            commit = parse_commit(data, fmt)
            found.update(dict.fromkeys(commit.parents, COMMIT))
            found[commit.tree] = TREE
        else:
            target, expected = parse_tag(data, fmt)
            found[target] = expected
        for raw_oid, expected in found.items():
            had = referred.get(raw_oid)
            if had is None:
                if raw_oid not in pack:
                    return None
                referred[raw_oid] = expected
            elif had != expected:
                return None
    bits = bytearray((pack.count + 7) // 8)
    for rank, position in enumerate(positions):
        expected = referred.get(pack.name_at(position), 0)
        if expected:
            if pack.type_at(offsets[rank]) != expected:
                return None
            bits[rank >> 3] |= 1 << (rank & 7)
    return bytes(bits)


# -- the file


def _read(pack: PackFile) -> Roots | None:
    try:
        data = note_path(pack.path, "roots").read_bytes()
    except OSError:
        return None
    return _parse(data, pack)


def _parse(data: bytes, pack: PackFile) -> Roots | None:
    fmt = pack.format
    raw_len = fmt.raw_len
    if len(data) < _HEAD.size + raw_len:
        return None
    magic, version, length, closed, objects, number = _HEAD.unpack_from(data)
    if (magic, version, length, objects) != (b"GSRT", 1, raw_len, pack.count) or closed > 1:
        return None
    start = _HEAD.size + raw_len
    if len(data) != start + raw_len * (number + 1) or data[_HEAD.size : start] != pack.checksum:
        return None
    checksum = fmt.new_hash()
    checksum.update(data[:-raw_len])
    if checksum.digest() != data[-raw_len:]:
        return None
    names = (data[at : at + raw_len] for at in range(start, len(data) - raw_len, raw_len))
    return Roots(bool(closed), frozenset(names))


def _format(roots: Roots, pack: PackFile) -> bytes:
    fmt = pack.format
    head = _HEAD.pack(b"GSRT", 1, fmt.raw_len, roots.is_closed, pack.count, len(roots.roots))
    data = head + pack.checksum + b"".join(sorted(roots.roots))
    checksum = fmt.new_hash()
    checksum.update(data)
    return data + checksum.digest()
