"""Objects of several packs, and loose ones, become one pack: for maintenance.

    parts, loose --write_pack, in a thread--> pipe --ingest_pack--> directory/pack-*.pack, .idx, .rev
    chains deeper than 100? those entries once more, every 50th of a chain whole

Stored entries are copied as they are; nothing is compared for better deltas. Every object of the new pack is
unfolded and its id computed anew, so that what replaces the old packs is known to be what its names say, even
where an old pack had gone bad: then PackError, and there is no new pack. The copied deltas of a push build on
the push before, so chains grow with every join: hence the second step (git: builtin/pack-objects.c
break_delta_chains()).

Also here: the file .mtimes of cruft packs (gitformat-pack), and which packs to join, as `git repack
--geometric` has it (git: repack-geometry.c).
"""

import os
import struct
import threading
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from gitsmart.errors import PackError
from gitsmart.pack.indexer import IngestLimits, ingest_pack
from gitsmart.pack.objects import BLOB, ObjectFormat
from gitsmart.pack.packfile import OFS_DELTA, PackFile
from gitsmart.pack.packmap import PackMap
from gitsmart.pack.select import PackedObjects, Selection
from gitsmart.pack.store import LooseObject, ObjectStore
from gitsmart.pack.writer import write_pack

__all__ = ["absent_from", "format_mtimes", "geometric_split", "join_objects", "read_mtimes", "unique_parts"]

_DEEP, _CUT_EVERY = 100, 50
# As far as the indexer in C goes (indexer_native.is_possible): what is beyond is not joined
_LIMITS = IngestLimits(
    objects=(1 << 30) - 1,
    object_bytes=1 << 62,
    delta_bytes=1 << 30,
    structure_bytes=1 << 30,
    delta_depth=(1 << 16) - 1,
)

Tick = Callable[[int], None]


def join_objects(
    store: ObjectStore,
    parts: Sequence[PackedObjects],
    loose: Collection[bytes],
    directory: Path,
    *,
    tick: Tick,
) -> PackFile | None:
    """Write a pack of these objects into `directory`, where nothing else is; None when there are none.

    `parts` are of different packs, and no object is in two of them or in `loose`; packs that an entry's base
    is in should come with it. The files are not fsynced. `tick` is called now and then, from another thread
    too; what it raises ends the work. Memory: as `write_pack` and `ingest_pack`.

    Raises:
        ObjectMissing, PackError: an object is missing or broken.
        LimitExceeded: a delta, or what it makes, is larger than 1 GiB.
        OSError: the disk says no.
    """
    selection = Selection(dict.fromkeys(loose, BLOB), set(), tuple(parts))
    if not len(selection):
        return None
    pack = _write(_Source(store, loose), selection, directory, tick)
    deep = _deep_entries(pack)
    if not deep:
        return pack
    bits = bytearray(((1 << pack.count) - 1).to_bytes((pack.count + 7) // 8, "little"))
    names = []
    offsets = pack.by_offset()[0]
    for rank in deep:
        bits[rank >> 3] &= ~(1 << (rank & 7))
        names.append(pack.oid_at(offsets[rank]))
    first = _Source(ObjectStore(directory.parent, pack.format), ())
    selection = Selection(dict.fromkeys(names, BLOB), set(), (PackedObjects(pack, bytes(bits)),))
    again = _write(first, selection, directory, tick)
    if again.path != pack.path:
        for suffix in (".idx", ".rev", ".pack"):
            pack.path.with_suffix(suffix).unlink(missing_ok=True)
    first.close()
    return again


class _Source(ObjectStore):
    """A store that gives objects as loose ones, whatever packs they are in: the writer writes these whole."""

    def __init__(self, store: ObjectStore, loose: Collection[bytes]) -> None:
        self.format = store.format
        self._real = store
        self._loose_names = loose

    def packs(self) -> tuple[PackFile, ...]:
        return ()

    def locate(self, raw_oid: bytes) -> None:
        return None

    def locate_all(self, raw_oids: Collection[bytes]) -> tuple[list[tuple[PackFile, bytearray]], list[bytes]]:
        return [], list(raw_oids)

    def open_loose(self, raw_oid: bytes) -> LooseObject | None:
        return self._real.open_loose(raw_oid) if raw_oid in self._loose_names else None

    def read(self, raw_oid: bytes, *, limit_bytes: int | None = None) -> tuple[int, bytes]:
        return self._real.read(raw_oid, limit_bytes=limit_bytes)

    def close(self) -> None:
        self._real.close()


def _write(store: _Source, selection: Selection, directory: Path, tick: Tick) -> PackFile:
    """Pass the stream of one thread to the indexer in this one."""
    reader, writer = os.pipe()
    failed: list[BaseException] = []

    def write(data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(writer, view) :]

    def run() -> None:
        try:
            write_pack(store, selection, write, thin=False, ofs_delta=True, tick=tick)
        except BaseException as error:
            failed.append(error)
        finally:
            os.close(writer)

    thread = threading.Thread(target=run, name="join-packs")
    thread.start()
    nothing = ObjectStore(directory / "nothing", store.format)
    try:
        found = ingest_pack(
            lambda n: os.read(reader, n),
            directory,
            store.format,
            bases=nothing,
            detect_collisions=False,
            limits=_LIMITS,
            tick=lambda done, _: tick(done),
        )
    except PackError:
        thread.join()
        if failed and not isinstance(failed[0], BrokenPipeError):
            raise failed[0] from None  # what came was cut short by that
        raise
    finally:
        os.close(reader)
        thread.join()
    if failed:
        raise failed[0]
    pack = PackFile(directory / f"pack-{found.checksum.decode('ascii')}.pack", store.format)
    if pack.count != len(selection):
        raise PackError("a joined pack has not as many objects as were to be joined")
    return pack


def _deep_entries(pack: PackFile) -> list[int]:
    """Return the ranks of entries to be written whole, so that no chain is deeper than the limit."""
    offsets = pack.by_offset()[0]
    rank_of = {offset: rank for rank, offset in enumerate(offsets)}
    bases = array("l", bytes(8 * len(offsets)))
    for rank, offset in enumerate(offsets):
        kind, _, base, start = pack.entry(offset)
        bases[rank] = rank_of[pack.base_offset(kind, base, start)] if kind >= OFS_DELTA else -1
    depths = array("l", (-1,)) * len(offsets)
    deepest = 0
    for first in range(len(offsets)):
        chain = []
        rank = first
        while rank >= 0 and depths[rank] < 0:
            chain.append(rank)
            rank = bases[rank]
        depth = depths[rank] if rank >= 0 else -1
        for rank in reversed(chain):
            depth += 1
            depths[rank] = depth
        deepest = max(deepest, depth)
    if deepest <= _DEEP:
        return []
    return [rank for rank, depth in enumerate(depths) if depth and not depth % (_CUT_EVERY + 1)]


# -- which objects


def unique_parts(packs: Sequence[PackFile], fmt: ObjectFormat) -> list[PackedObjects]:
    """Return all objects of packs, each once: as that of the first pack in the list that has it."""
    parts: list[PackedObjects] = []
    for at, pack in enumerate(packs):
        bits = bytearray(((1 << pack.count) - 1).to_bytes((pack.count + 7) // 8, "little"))
        if at:
            before = PackMap(packs[:at], fmt.raw_len)
            own = PackMap((pack,), fmt.raw_len)
            twice = [name for name, number in _numbered(before, pack) if number is not None]
            for rank in own.numbers_of(twice):
                assert rank is not None
                bits[rank >> 3] &= ~(1 << (rank & 7))
        parts.append(PackedObjects(pack, bytes(bits)))
    return parts


def _numbered(before: PackMap, pack: PackFile) -> Iterable[tuple[bytes, int | None]]:
    for start in range(0, pack.count, 65536):
        names = [pack.name_at(position) for position in range(start, min(start + 65536, pack.count))]
        yield from zip(names, before.numbers_of(names), strict=True)


def absent_from(packs: Sequence[PackFile], pack: PackFile) -> list[bytes]:
    """Return the raw oids of the objects of `pack` that none of `packs` holds."""
    whole = PackMap(packs, pack.format.raw_len)
    return [name for name, number in _numbered(whole, pack) if number is None]


def geometric_split(counts: Sequence[int], factor: int = 2) -> int:
    """Say how many of the packs, by ascending numbers of objects, are to be joined; 0 or at least 2.

    What is left, and the joined pack before it, are each `factor` times as large as the one before.

    >>> geometric_split([1, 1, 2, 4, 8]), geometric_split([1, 2, 4, 8]), geometric_split([3, 3, 100])
    (5, 0, 2)
    """
    split = len(counts) - 1
    while split > 0 and counts[split] >= factor * counts[split - 1]:
        split -= 1
    if split <= 0:
        return 0
    split += 1  # those before break the progression
    total = sum(counts[:split])
    while split < len(counts) and counts[split] < factor * total:
        total += counts[split]
        split += 1
    return split


# -- ages of unreachable objects


def format_mtimes(pack: PackFile, times: Mapping[bytes, int]) -> bytes:
    """Make the .mtimes of a cruft pack: since when, in seconds, nobody wrote each object (by raw oid)."""
    fmt = pack.format
    data = struct.pack(">4sII", b"MTME", 1, 1 if fmt.raw_len == 20 else 2)
    seconds = [min(max(times[pack.name_at(at)], 0), 0xFFFFFFFF) for at in range(pack.count)]
    data += struct.pack(f">{pack.count}I", *seconds) + pack.checksum
    checksum = fmt.new_hash()
    checksum.update(data)
    return data + checksum.digest()


def read_mtimes(pack: PackFile) -> "array[int] | None":
    """Read the .mtimes of a pack, in its index's order; None when it has none, or a broken one."""
    try:
        data = pack.path.with_suffix(".mtimes").read_bytes()
    except OSError:
        return None
    fmt = pack.format
    end = 12 + 4 * pack.count
    if (
        len(data) != end + 2 * fmt.raw_len
        or data[:4] != b"MTME"
        or data[end : end + fmt.raw_len] != pack.checksum
    ):
        return None
    checksum = fmt.new_hash()
    checksum.update(data[: -fmt.raw_len])
    if checksum.digest() != data[-fmt.raw_len :]:
        return None
    return array("I", struct.unpack_from(f">{pack.count}I", data, 12))
