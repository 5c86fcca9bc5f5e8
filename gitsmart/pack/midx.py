"""multi-pack-index files: which packs they span, and in what order their bitmap's bits are.

    names of packs, all objects sorted by name, for each the pack and offset; RIDX: in the order of bits

Only what bitmaps need is read here: objects are found through each pack's own index. Format: gitformat-pack,
"multi-pack-index". An index whose checksum is wrong is none.
"""

import re
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gitsmart.errors import PackError
from gitsmart.pack.chunkfile import is_intact, read_chunks, write_chunks
from gitsmart.pack.mapping import map_file
from gitsmart.pack.objects import ObjectFormat
from gitsmart.pack.packfile import PackFile

__all__ = ["MultiPackIndex", "pack_order", "read_midx", "write_midx"]


@dataclass(frozen=True, slots=True)
class MultiPackIndex:
    """One multi-pack-index."""

    checksum: bytes
    """Its trailer: what its bitmap is named by."""
    pack_names: tuple[str, ...]
    """As "pack-....idx", in its order."""
    names: memoryview
    """All raw oids, sorted, one after the other."""
    order: memoryview | None
    """For each bit, the position in `names`: 4 bytes each, big-endian. None when it has no bitmap."""
    count: int

    def in_order(self, raw_len: int) -> list[bytes]:
        """Return all raw oids in the order of bits.

        Raises:
            PackError: the order is not one of these names.
        """
        if self.order is None or len(self.order) != 4 * self.count:
            raise PackError("a multi-pack-index has no order of bits")
        places = array("I", bytes(self.order))
        if sys.byteorder == "little":
            places.byteswap()
        if self.count and max(places) >= self.count:
            raise PackError("a multi-pack-index's order points outside of it")
        names = bytes(self.names)
        return [names[at * raw_len : (at + 1) * raw_len] for at in places]


def read_midx(pack_dir: Path, fmt: ObjectFormat) -> MultiPackIndex:
    """Read the multi-pack-index of a pack directory.

    Raises:
        OSError: there is none (FileNotFoundError), or it can't be read.
        PackError: it is broken, of another format, or a chain of several.
    """
    data = map_file(pack_dir / "multi-pack-index")
    raw_len = fmt.raw_len
    if len(data) < 12 + raw_len or bytes(data[:4]) != b"MIDX":
        raise PackError("a file is no multi-pack-index")
    version, hash_id, chunks, bases, packs = struct.unpack_from(">BBBBI", data, 4)
    if version not in (1, 2) or hash_id != (1 if raw_len == 20 else 2) or bases:
        raise PackError("a multi-pack-index is of another kind")
    if not is_intact(data, fmt):
        raise PackError("a multi-pack-index has a wrong checksum")
    found = read_chunks(data, 12, chunks, fmt)
    try:
        fan, names, pack_names = found[b"OIDF"], found[b"OIDL"], bytes(found[b"PNAM"])
    except KeyError:
        raise PackError("a multi-pack-index lacks a chunk") from None
    if len(fan) != 1024:
        raise PackError("a multi-pack-index is broken")
    (count,) = struct.unpack_from(">I", fan, 1020)
    listed = pack_names.rstrip(b"\0").split(b"\0") if packs else []
    if len(names) != count * raw_len or len(listed) != packs:
        raise PackError("a multi-pack-index is broken")
    decoded = tuple(name.decode("ascii", "replace") for name in listed)
    if not all(re.fullmatch(r"[\w.-]+\.idx", name, re.ASCII) for name in decoded):
        raise PackError("a multi-pack-index names odd packs")
    checksum = bytes(data[-raw_len:])
    order = found.get(b"RIDX")
    if order is None:
        order = _read_rev(pack_dir / f"multi-pack-index-{checksum.hex()}.rev", count, checksum, raw_len)
    return MultiPackIndex(checksum, decoded, names, order, count)


def _read_rev(path: Path, count: int, checksum: bytes, raw_len: int) -> memoryview | None:
    """Read the order from where git before 2.36 has it."""
    try:
        data = map_file(path)
    except OSError:
        return None
    if len(data) != 12 + 4 * count + 2 * raw_len or bytes(data[:4]) != b"RIDX":
        return None
    if bytes(data[-2 * raw_len : -raw_len]) != checksum:
        return None
    return data[12 : 12 + 4 * count]


def pack_order(packs: Sequence[PackFile], preferred: PackFile) -> list[PackFile]:
    """Return packs in the order in which their objects' bits are: the preferred one, then by name."""
    rest = sorted((pack for pack in packs if pack is not preferred), key=lambda pack: pack.path.stem)
    return [preferred, *rest]


def write_midx(packs: Sequence[PackFile], fmt: ObjectFormat, *, preferred: PackFile | None = None) -> bytes:
    """Make the multi-pack-index of packs that lie in one directory, with the order of bits in it.

    An object that is in several packs counts as that of `preferred` (the first of `packs`, if none is given),
    else as that of the pack whose name comes first. So bits are in the order of `pack_order`. Memory: some
    200 bytes an object.

    Raises:
        PackError: there are no packs, or one has entries behind 4 GiB that its index can't tell.
    """
    if not packs:
        raise PackError("a multi-pack-index needs packs")
    raw_len = fmt.raw_len
    by_name = sorted(packs, key=lambda pack: pack.path.stem)
    number = {pack.serial: at for at, pack in enumerate(by_name)}
    preferred = preferred or packs[0]
    ordered = pack_order(packs, preferred)
    entries: dict[bytes, tuple[int, int]] = {}
    for pack in ordered:
        at = number[pack.serial]
        for position in range(pack.count):
            entries.setdefault(pack.name_at(position), (at, pack.offset_at(position)))
    names = sorted(entries)
    fan = [0] * 256
    for name in names:
        fan[name[0]] += 1
    for first in range(1, 256):
        fan[first] += fan[first - 1]
    large: list[int] = []
    rows = []
    for name in names:
        at, offset = entries[name]
        if offset >= 1 << 31:
            large.append(offset)
            offset = 0x80000000 | (len(large) - 1)
        rows.append(struct.pack(">II", at, offset))
    first_pack = number[preferred.serial]
    places = sorted(
        range(len(names)), key=lambda place: (entries[names[place]][0] != first_pack, entries[names[place]])
    )
    begin = 0
    sizes = [0] * len(by_name)
    for name in names:
        sizes[entries[name][0]] += 1
    starts = {}
    for at in [first_pack, *(at for at in range(len(by_name)) if at != first_pack)]:
        starts[at] = begin
        begin += sizes[at]
    bitmapped = [struct.pack(">II", starts[at], sizes[at]) for at in range(len(by_name))]
    pack_names = b"".join(pack.path.stem.encode() + b".idx\0" for pack in by_name)
    pack_names += b"\0" * (-len(pack_names) % 4)
    chunks = [
        (b"PNAM", pack_names),
        (b"OIDF", struct.pack(">256I", *fan)),
        (b"OIDL", b"".join(names)),
        (b"OOFF", b"".join(rows)),
    ]
    if large:
        chunks.append((b"LOFF", struct.pack(f">{len(large)}Q", *large)))
    chunks.append((b"RIDX", struct.pack(f">{len(places)}I", *places)))
    chunks.append((b"BTMP", b"".join(bitmapped)))
    head = struct.pack(">4sBBBBI", b"MIDX", 1, 1 if raw_len == 20 else 2, len(chunks), 0, len(by_name))
    return write_chunks(head, chunks, fmt)
